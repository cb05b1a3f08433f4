//! Adam and its family: a mean of gradients over a measure of their size, each corrected for its start at 0.

mod kinds;

pub(super) use kinds::{ADAM, ADAMAX, ADAMW, NADAM, RADAM};

use super::{Algorithm, Common, MAX_STATES};
use crate::real::Real;

/// Whose formula.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Semantics {
    /// `sqrt(v) / sqrt(bc2) + eps`; `AMSGrad` keeps the largest v before its correction.
    Torch,
    /// `sqrt(v) + eps`, bc2 in the step size ("epsilon hat"); `AMSGrad` as torch.
    Keras,
    /// `sqrt(v / bc2) + eps`; `AMSGrad` keeps the largest v after its correction (the paper's formula).
    Optax,
}

/// 1 - beta^step.
pub(super) fn correction(beta: f64, step: u64) -> f64 {
    1.0 - power(beta, step)
}

/// `base^exponent` of a number from 0 to 1, to the last bit or next to it.
///
/// By squaring, in pairs of f64 (Dekker 1971, "A floating-point technique for extending the available precision"): the
/// `pow` of a C library may differ in the last bit from one processor to the next.
fn power(base: f64, exponent: u64) -> f64 {
    let (mut result, mut square, mut left) = ([1.0, 0.0], [base, 0.0], exponent);
    while left > 0 {
        if left & 1 == 1 {
            result = product(result, square);
        }
        square = product(square, square);
        left >>= 1;
    }
    result[0] + result[1]
}

fn product([a, a_low]: [f64; 2], [b, b_low]: [f64; 2]) -> [f64; 2] {
    let split = |x: f64| {
        let scaled = x * 134_217_729.0;
        let high = scaled - (scaled - x);
        [high, x - high]
    };
    let ([a1, a2], [b1, b2]) = (split(a), split(b));
    let high = a * b;
    let low = ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2 + (a * b_low + a_low * b);
    let sum = high + low;
    [sum, low - (sum - high)]
}

/// The two means that all of the family keep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Means<C> {
    fresh1: C,
    beta2: C,
    fresh2: C,
}

impl<C: Real> Means<C> {
    pub(super) fn new([beta1, beta2]: [f64; 2]) -> Self {
        let [fresh1, beta2, fresh2] = [1.0 - beta1, beta2, 1.0 - beta2].map(C::from_f64);
        Self { fresh1, beta2, fresh2 }
    }

    /// m + (1 - beta1) (g - m), as torch writes it.
    #[inline(always)]
    pub(super) fn first(&self, mean: C, grad: C) -> C {
        mean + self.fresh1 * (grad - mean)
    }

    #[inline(always)]
    pub(super) fn second(&self, square: C, grad: C) -> C {
        self.beta2 * square + self.fresh2 * (grad * grad)
    }
}

/// `torch.optim.Adam` and `AdamW`; `AMSGRAD`: with the largest second moment as a third state.
///
/// Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1 (arXiv 1412.6980); Loshchilov and
/// Hutter 2019, "Decoupled Weight Decay Regularization" (arXiv 1711.05101); Reddi, Kale and Kumar 2018, "On the
/// Convergence of Adam and Beyond" (arXiv 1904.09237).
#[derive(Debug, Clone, Copy)]
pub struct Adam<C, const AMSGRAD: bool> {
    means: Means<C>,
    step_size: C,
    /// What the largest v is kept of is multiplied by it.
    before_largest: C,
    eps: C,
}

impl<C: Real, const AMSGRAD: bool> Adam<C, AMSGRAD> {
    /// The name of its step where the decay is of the parameter.
    pub const DECOUPLED_NAME: &'static str = "adamw_step";

    /// For step number `step`.
    pub fn new(common: &Common, betas: [f64; 2], eps: f64, semantics: Semantics, step: u64) -> Self {
        let [bc1, bc2] = betas.map(|beta| correction(beta, step));
        // The root's correction is taken out of the fraction: lr / bc1 m / (sqrt(v) / c + eps) is
        // lr c / bc1 m / (sqrt(v) + c eps), and a product for each element less.
        let corrected = bc2.sqrt();
        let (step_size, before_largest, eps) = match semantics {
            Semantics::Optax if AMSGRAD => (common.lr / bc1, 1.0 / bc2, eps),
            Semantics::Torch | Semantics::Optax => (common.lr * corrected / bc1, 1.0, eps * corrected),
            Semantics::Keras => (common.lr * corrected / bc1, 1.0, eps),
        };
        let [step_size, before_largest, eps] = [step_size, before_largest, eps].map(C::from_f64);
        Self { means: Means::new(betas), step_size, before_largest, eps }
    }
}

impl<C: Real, const AMSGRAD: bool> Algorithm<C> for Adam<C, AMSGRAD> {
    const NAME: &'static str = "adam_step";
    const STATES: usize = 2 + AMSGRAD as usize;
    const SIGNED: [bool; MAX_STATES] = [true, false, false];

    #[inline(always)]
    fn step(&self, param: C, grad: C, [mean, square, largest]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        let mean = self.means.first(mean, grad);
        let square = self.means.second(square, grad);
        let (mut size, mut largest) = (square, largest);
        if AMSGRAD {
            size = size * self.before_largest;
            // A NaN stays, as in torch.maximum.
            largest = if largest >= size { largest } else { size };
            size = largest;
        }
        let param = param - self.step_size * mean / (size.sqrt() + self.eps);
        (param, [mean, square, largest])
    }
}

/// `torch.optim.NAdam`. Dozat 2016, "Incorporating Nesterov Momentum into Adam".
#[derive(Debug, Clone, Copy)]
pub struct NAdam<C> {
    means: Means<C>,
    of_grad: C,
    of_mean: C,
    after_root: C,
    eps: C,
}

impl<C: Real> NAdam<C> {
    /// For step number `step`; `mu_product` is that of the steps before. The second of the pair is the next product.
    pub fn new(
        common: &Common,
        betas: [f64; 2],
        eps: f64,
        momentum_decay: f64,
        mu_product: f64,
        step: u64,
    ) -> (Self, f64) {
        let mu = |step: f64| betas[0] * (1.0 - 0.5 * 0.96f64.powf(step * momentum_decay));
        let (now, next) = (mu(step as f64), mu(step as f64 + 1.0));
        let product = mu_product * now;
        let of_grad = common.lr * (1.0 - now) / (1.0 - product);
        let of_mean = common.lr * next / (1.0 - product * next);
        let after_root = 1.0 / correction(betas[1], step).sqrt();
        let [of_grad, of_mean, after_root, eps] = [of_grad, of_mean, after_root, eps].map(C::from_f64);
        (Self { means: Means::new(betas), of_grad, of_mean, after_root, eps }, product)
    }
}

impl<C: Real> Algorithm<C> for NAdam<C> {
    const NAME: &'static str = "nadam_step";
    const STATES: usize = 2;
    const SIGNED: [bool; MAX_STATES] = [true, false, false];

    #[inline(always)]
    fn step(&self, param: C, grad: C, [mean, square, c]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        let mean = self.means.first(mean, grad);
        let square = self.means.second(square, grad);
        let size = square.sqrt() * self.after_root + self.eps;
        (param - (self.of_grad * grad + self.of_mean * mean) / size, [mean, square, c])
    }
}

/// `torch.optim.RAdam`. Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond" (arXiv 1908.03265).
#[derive(Debug, Clone, Copy)]
pub struct RAdam<C> {
    means: Means<C>,
    step_size: C,
    /// Whether the variance is tractable already: else the step is not divided.
    rectified: bool,
    eps: C,
}

impl<C: Real> RAdam<C> {
    /// For step number `step`.
    pub fn new(common: &Common, betas: [f64; 2], eps: f64, step: u64) -> Self {
        let [bc1, bc2] = betas.map(|beta| correction(beta, step));
        let longest = 2.0 / (1.0 - betas[1]) - 1.0;
        let length = longest - 2.0 * step as f64 * (1.0 - bc2) / bc2;
        let rectified = length > 5.0;
        let mut step_size = common.lr / bc1;
        if rectified {
            let rectification =
                (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length);
            step_size *= rectification.sqrt() * bc2.sqrt();
        }
        Self { means: Means::new(betas), step_size: C::from_f64(step_size), rectified, eps: C::from_f64(eps) }
    }
}

impl<C: Real> Algorithm<C> for RAdam<C> {
    const NAME: &'static str = "radam_step";
    const STATES: usize = 2;
    const SIGNED: [bool; MAX_STATES] = [true, false, false];

    #[inline(always)]
    fn step(&self, param: C, grad: C, [mean, square, c]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        let mean = self.means.first(mean, grad);
        let square = self.means.second(square, grad);
        let size = if self.rectified { square.sqrt() + self.eps } else { C::from_i16(1) };
        (param - self.step_size * mean / size, [mean, square, c])
    }
}

/// `torch.optim.Adamax`: the second state is a decaying maximum. Kingma and Ba 2015, algorithm 2.
#[derive(Debug, Clone, Copy)]
pub struct Adamax<C> {
    means: Means<C>,
    step_size: C,
    eps: C,
}

impl<C: Real> Adamax<C> {
    /// For step number `step`.
    pub fn new(common: &Common, betas: [f64; 2], eps: f64, step: u64) -> Self {
        let step_size = common.lr / correction(betas[0], step);
        Self { means: Means::new(betas), step_size: C::from_f64(step_size), eps: C::from_f64(eps) }
    }
}

impl<C: Real> Algorithm<C> for Adamax<C> {
    const NAME: &'static str = "adamax_step";
    const STATES: usize = 2;
    const SIGNED: [bool; MAX_STATES] = [true, false, false];

    #[inline(always)]
    fn step(&self, param: C, grad: C, [mean, largest, c]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        let mean = self.means.first(mean, grad);
        let (decayed, size) = (self.means.beta2 * largest, grad.abs() + self.eps);
        let largest = if decayed >= size { decayed } else { size };
        (param - self.step_size * mean / largest, [mean, largest, c])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_b6_powers_are_right_to_the_last_bit_or_next_to_it() {
        for base in [0.9, 0.99, 0.999, 0.9999, 0.95, 0.5, 1e-3] {
            for exponent in [0u64, 1, 2, 3, 10, 1000, 12_345, (1 << 24) + 1, (1 << 53) - 1] {
                let (got, want) = (power(base, exponent), base.powf(exponent as f64));
                assert!((got - want).abs() <= want * f64::EPSILON, "{base}^{exponent}: {got:e}, {want:e}");
            }
        }
        assert_eq!((power(0.0, 0), power(0.0, 5), power(0.5, 10)), (1.0, 0.0, 1.0 / 1024.0));
    }
}

//! Steps divided by the root of accumulated squares.

use super::Allowed::{BelowOne, NonNegative};
use super::kind::{MOMENTUM, PLAIN, nothing, runs};
use super::{Algorithm, Common, Hyper, Kind, MAX_STATES, Plain, Storage, Tensor, step};
use crate::real::Real;

/// `torch.optim.Adagrad`. State: the sum of squares.
///
/// Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization".
#[derive(Debug, Clone, Copy)]
pub struct Adagrad<C> {
    lr: C,
    eps: C,
}

impl<C: Real> Adagrad<C> {
    /// `lr / (1 + (step - 1) lr_decay)` is the step size.
    pub fn new(common: &Common, lr_decay: f64, eps: f64, step: u64) -> Self {
        let lr = common.lr / (1.0 + (step - 1) as f64 * lr_decay);
        Self { lr: C::from_f64(lr), eps: C::from_f64(eps) }
    }
}

impl<C: Real> Algorithm<C> for Adagrad<C> {
    const NAME: &'static str = "adagrad_step";
    const STATES: usize = 1;
    const SIGNED: [bool; MAX_STATES] = [false; MAX_STATES];

    #[inline(always)]
    fn step(&self, param: C, grad: C, [sum, b, c]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        let sum = sum + grad * grad;
        (param - self.lr * grad / (sum.sqrt() + self.eps), [sum, b, c])
    }
}

/// `torch.optim.RMSprop`. States: the mean square, then as there are the momentum buffer and the mean gradient.
///
/// Tieleman and Hinton 2012, lecture 6.5; centered: Graves 2013, "Generating Sequences With Recurrent Neural Networks".
#[derive(Debug, Clone, Copy)]
pub struct RmsProp<C, const MOMENTUM: bool, const CENTERED: bool> {
    lr: C,
    alpha: C,
    fresh: C,
    eps: C,
    momentum: C,
}

impl<C: Real, const MOMENTUM: bool, const CENTERED: bool> RmsProp<C, MOMENTUM, CENTERED> {
    /// `alpha` smooths the squares.
    pub fn new(common: &Common, alpha: f64, eps: f64, momentum: f64) -> Self {
        let [lr, alpha, fresh, eps, momentum] = [common.lr, alpha, 1.0 - alpha, eps, momentum].map(C::from_f64);
        Self { lr, alpha, fresh, eps, momentum }
    }
}

impl<C: Real, const MOMENTUM: bool, const CENTERED: bool> Algorithm<C> for RmsProp<C, MOMENTUM, CENTERED> {
    const NAME: &'static str = "rmsprop_step";
    const STATES: usize = 1 + MOMENTUM as usize + CENTERED as usize;
    const SIGNED: [bool; MAX_STATES] = [false, true, true];

    #[inline(always)]
    fn step(&self, param: C, grad: C, [square, b, c]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        let (mut buffer, mut mean) = if MOMENTUM { (b, c) } else { (c, b) };
        let square = self.alpha * square + self.fresh * (grad * grad);
        let mut variance = square;
        if CENTERED {
            mean = mean + self.fresh * (grad - mean);
            variance = square - mean * mean;
            // Rounding may take it below 0, where torch gets a NaN.
            let zero = C::from_i16(0);
            variance = if variance < zero { zero } else { variance };
        }
        let direction = grad / (variance.sqrt() + self.eps);
        if MOMENTUM {
            buffer = self.momentum * buffer + direction;
        }
        let param = param - self.lr * if MOMENTUM { buffer } else { direction };
        (param, if MOMENTUM { [square, buffer, mean] } else { [square, mean, buffer] })
    }
}

/// `torch.optim.Adadelta`. States: the mean square of gradients, and of steps.
///
/// Zeiler 2012, "ADADELTA: An Adaptive Learning Rate Method" (arXiv 1212.5701).
#[derive(Debug, Clone, Copy)]
pub struct Adadelta<C> {
    lr: C,
    rho: C,
    fresh: C,
    eps: C,
}

impl<C: Real> Adadelta<C> {
    /// `rho` smooths both squares.
    pub fn new(common: &Common, rho: f64, eps: f64) -> Self {
        let [lr, rho, fresh, eps] = [common.lr, rho, 1.0 - rho, eps].map(C::from_f64);
        Self { lr, rho, fresh, eps }
    }
}

impl<C: Real> Algorithm<C> for Adadelta<C> {
    const NAME: &'static str = "adadelta_step";
    const STATES: usize = 2;
    const SIGNED: [bool; MAX_STATES] = [false; MAX_STATES];

    #[inline(always)]
    fn step(&self, param: C, grad: C, [square, steps, c]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        let square = self.rho * square + self.fresh * (grad * grad);
        let delta = (steps + self.eps).sqrt() / (square + self.eps).sqrt() * grad;
        let steps = self.rho * steps + self.fresh * (delta * delta);
        (param - self.lr * delta, [square, steps, c])
    }
}

/// What Adagrad takes.
pub(super) const ADAGRAD: Kind = Kind {
    function: Adagrad::<f32>::NAME,
    numbers: &[("lr_decay", NonNegative), ("eps", NonNegative)],
    states: &[("state_sum", None)],
    signed: Adagrad::<f32>::SIGNED,
    coded_states: 1,
    runs: runs!(adagrad or 8),
    ..PLAIN
};

fn adagrad<C: Real, K: Storage<C>>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, K>>, threads: usize) -> f64 {
    let (common, x) = (&hyper.common, &hyper.numbers);
    step(tensors, common, Adagrad::new(common, x[0], x[1], hyper.step), threads);
    0.0
}

/// What `RMSprop` takes.
pub(super) const RMSPROP: Kind = Kind {
    function: RmsProp::<f32, true, true>::NAME,
    numbers: &[("alpha", BelowOne), ("eps", NonNegative), ("momentum", NonNegative)],
    states: &[("square_avg", None), MOMENTUM, ("grad_avg", Some("centered"))],
    signed: RmsProp::<f32, true, true>::SIGNED,
    coded_states: 1,
    runs: runs!(rmsprop, 8 rmsprop_alone),
    ..PLAIN
};

/// With its mean square alone.
fn rmsprop_alone<C: Real, K: Storage<C>>(
    hyper: &Hyper,
    _: usize,
    tensors: Vec<Tensor<'_, C, K>>,
    threads: usize,
) -> f64 {
    let (common, x) = (&hyper.common, &hyper.numbers);
    step(tensors, common, RmsProp::<C, false, false>::new(common, x[0], x[1], x[2]), threads);
    0.0
}

fn rmsprop<C: Real>(hyper: &Hyper, states: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    let (common, x) = (&hyper.common, &hyper.numbers);
    let (alpha, eps, momentum) = (x[0], x[1], x[2]);
    match states {
        1 => return rmsprop_alone(hyper, states, tensors, threads),
        3 => step(tensors, common, RmsProp::<C, true, true>::new(common, alpha, eps, momentum), threads),
        _ if momentum > 0.0 => {
            step(tensors, common, RmsProp::<C, true, false>::new(common, alpha, eps, momentum), threads);
        }
        _ => step(tensors, common, RmsProp::<C, false, true>::new(common, alpha, eps, momentum), threads),
    }
    0.0
}

/// What Adadelta takes.
pub(super) const ADADELTA: Kind = Kind {
    function: Adadelta::<f32>::NAME,
    numbers: &[("rho", BelowOne), ("eps", NonNegative)],
    states: &[("square_avg", None), ("acc_delta", None)],
    signed: Adadelta::<f32>::SIGNED,
    runs: runs!(adadelta),
    ..PLAIN
};

fn adadelta<C: Real>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    let (common, x) = (&hyper.common, &hyper.numbers);
    step(tensors, common, Adadelta::new(common, x[0], x[1]), threads);
    0.0
}

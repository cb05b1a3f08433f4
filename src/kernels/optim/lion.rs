//! Lion: the sign of an interpolation.

use super::kind::{BETAS, EXP_AVG, PLAIN, nothing, runs};
use super::{Algorithm, Common, Hyper, Kind, MAX_STATES, Storage, Tensor, step};
use crate::real::Real;

/// Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", program 1 (arXiv 2302.06675). sign(0) is 0: a
/// parameter without gradient and momentum stays where it is.
#[derive(Debug, Clone, Copy)]
pub struct Lion<C> {
    lr: C,
    beta1: C,
    fresh1: C,
    beta2: C,
    fresh2: C,
}

impl<C: Real> Lion<C> {
    /// `betas`: of the step, and of the mean that is kept.
    pub fn new(common: &Common, [beta1, beta2]: [f64; 2]) -> Self {
        let [lr, beta1, fresh1, beta2, fresh2] = [common.lr, beta1, 1.0 - beta1, beta2, 1.0 - beta2].map(C::from_f64);
        Self { lr, beta1, fresh1, beta2, fresh2 }
    }
}

impl<C: Real> Algorithm<C> for Lion<C> {
    const NAME: &'static str = "lion_step";
    const STATES: usize = 1;
    const SIGNED: [bool; MAX_STATES] = [true; MAX_STATES];

    #[inline(always)]
    fn step(&self, param: C, grad: C, [mean, b, c]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        let zero = C::from_i16(0);
        let direction = self.beta1 * mean + self.fresh1 * grad;
        // A NaN goes through, as in torch.sign.
        let lr = if direction > zero { self.lr } else { direction };
        let lr = if direction < zero { zero - self.lr } else { lr };
        (param - lr, [self.beta2 * mean + self.fresh2 * grad, b, c])
    }
}

/// What it takes.
pub(super) const LION: Kind = Kind {
    function: Lion::<f32>::NAME,
    numbers: &[BETAS[0], BETAS[1]],
    states: &[EXP_AVG],
    signed: Lion::<f32>::SIGNED,
    decoupled: true,
    coded_states: 1,
    runs: runs!(lion or 8),
    ..PLAIN
};

fn lion<C: Real, K: Storage<C>>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, K>>, threads: usize) -> f64 {
    step(tensors, &hyper.common, Lion::new(&hyper.common, hyper.betas()), threads);
    0.0
}

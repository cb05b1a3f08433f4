//! Gradient descent, with and without momentum.

use super::kind::{MOMENTUM, PLAIN, runs};
use super::{Algorithm, Allowed::NonNegative, Common, Hyper, Kind, MAX_STATES, Plain, Storage, Tensor, step};
use crate::real::Real;

/// `torch.optim.SGD`; `MOMENTUM`: with a momentum buffer.
///
/// Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning"; the buffer holds
/// gradients, not steps: `buf = momentum buf + (1 - dampening) g`.
#[derive(Debug, Clone, Copy)]
pub struct Sgd<C, const MOMENTUM: bool> {
    lr: C,
    momentum: C,
    /// 1 - dampening.
    fresh: C,
    is_first: bool,
    nesterov: bool,
}

impl<C: Real, const MOMENTUM: bool> Sgd<C, MOMENTUM> {
    /// For step number `step`: in the first the buffer becomes the gradient, whatever it held.
    pub fn new(common: &Common, momentum: f64, dampening: f64, nesterov: bool, step: u64) -> Self {
        let [lr, momentum, fresh] = [common.lr, momentum, 1.0 - dampening].map(C::from_f64);
        Self { lr, momentum, fresh, is_first: step == 1, nesterov }
    }
}

impl<C: Real, const MOMENTUM: bool> Algorithm<C> for Sgd<C, MOMENTUM> {
    const NAME: &'static str = "sgd_step";
    const STATES: usize = MOMENTUM as usize;
    const SIGNED: [bool; MAX_STATES] = [true; MAX_STATES];

    #[inline(always)]
    fn step(&self, param: C, grad: C, [buffer, b, c]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        if !MOMENTUM {
            return (param - self.lr * grad, [buffer, b, c]);
        }
        // Not even a NaN of what the buffer held stays in the first step.
        let buffer = if self.is_first { grad } else { self.momentum * buffer + self.fresh * grad };
        let direction = if self.nesterov { grad + self.momentum * buffer } else { buffer };
        (param - self.lr * direction, [buffer, b, c])
    }
}

/// What it takes.
pub(super) const SGD: Kind = Kind {
    function: Sgd::<f32, true>::NAME,
    numbers: &[("momentum", NonNegative), ("dampening", NonNegative)],
    states: &[MOMENTUM],
    signed: Sgd::<f32, true>::SIGNED,
    coded_states: 1,
    runs: runs!(sgd, 8 with_momentum),
    ..PLAIN
};

fn sgd<C: Real>(hyper: &Hyper, states: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    if states > 0 {
        return with_momentum(hyper, states, tensors, threads);
    }
    let common = &hyper.common;
    step(tensors, common, Sgd::<C, false>::new(common, 0.0, 0.0, false, hyper.step), threads);
    0.0
}

fn with_momentum<C: Real, K: Storage<C>>(
    hyper: &Hyper,
    _: usize,
    tensors: Vec<Tensor<'_, C, K>>,
    threads: usize,
) -> f64 {
    let (common, x) = (&hyper.common, &hyper.numbers);
    step(tensors, common, Sgd::<C, true>::new(common, x[0], x[1], hyper.nesterov, hyper.step), threads);
    0.0
}

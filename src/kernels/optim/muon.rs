//! The elementwise halves of Muon; between them the caller makes the direction orthogonal.
//!
//! Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", as `torch.optim.Muon`. States: the
//! momentum buffer, the direction, the buffer to be: nothing that counts is written before the second half.

use super::kind::{PLAIN, runs};
use super::{Algorithm, Allowed::NonNegative, Common, Hyper, Kind, MAX_STATES, Plain, Tensor, step};
use crate::real::Real;

/// The first half: the direction and the buffer to be, from gradient and buffer.
#[derive(Debug, Clone, Copy)]
pub struct MuonDirection<C> {
    fresh: C,
    nesterov: bool,
}

impl<C: Real> MuonDirection<C> {
    /// `momentum`: how much of the buffer stays.
    pub fn new(momentum: f64, nesterov: bool) -> Self {
        Self { fresh: C::from_f64(1.0 - momentum), nesterov }
    }
}

impl<C: Real> Algorithm<C> for MuonDirection<C> {
    const NAME: &'static str = "muon_step";
    const STATES: usize = 3;
    const SIGNED: [bool; MAX_STATES] = [true; MAX_STATES];

    #[inline(always)]
    fn step(&self, param: C, grad: C, [buffer, ..]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        let next = buffer + self.fresh * (grad - buffer);
        let ahead = next + self.fresh * (grad - next);
        (param, [buffer, if self.nesterov { ahead } else { next }, next])
    }
}

/// The second half.
#[derive(Debug, Clone, Copy)]
pub struct MuonStep<C> {
    lr: C,
}

impl<C: Real> MuonStep<C> {
    /// By the learning rate times the direction.
    pub fn new(common: &Common) -> Self {
        Self { lr: C::from_f64(common.lr) }
    }
}

impl<C: Real> Algorithm<C> for MuonStep<C> {
    const NAME: &'static str = <MuonDirection<C> as Algorithm<C>>::NAME;
    const STATES: usize = 3;
    const SIGNED: [bool; MAX_STATES] = [true; MAX_STATES];

    #[inline(always)]
    fn step(&self, param: C, _grad: C, [_, direction, next]: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        (param - self.lr * direction, [next, direction, next])
    }
}

/// What both take.
pub(super) const MUON: Kind = Kind {
    function: MuonStep::<f32>::NAME,
    numbers: &[("momentum", NonNegative), ("eps", NonNegative)],
    states: &[("momentum_buffer", None), ("direction", None), ("next", None)],
    decoupled: true,
    runs: runs!(muon),
    ..PLAIN
};

/// The halves are told apart by the step; the first leaves the parameter as it is.
fn muon<C: Real>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    let common = &hyper.common;
    if hyper.step == 1 {
        let common = Common { weight_decay: 0.0, ..*common };
        step(tensors, &common, MuonDirection::new(hyper.numbers[0], hyper.nesterov), threads);
    } else {
        step(tensors, common, MuonStep::new(common), threads);
    }
    0.0
}

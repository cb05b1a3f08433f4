//! Running averages and sums, which walk over lists of arrays as a step does.

use super::Allowed::BelowOne;
use super::kind::{PLAIN, runs};
use super::{Algorithm, Hyper, Kind, MAX_STATES, Plain, Tensor, step};
use crate::real::Real;

/// An exponential moving average of parameters: `param` is the average, `grad` what is averaged.
///
/// Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; with a decay as in most trainings
/// since Szegedy et al. 2016 (arXiv 1512.00567).
#[derive(Debug, Clone, Copy)]
pub struct Ema<C> {
    fresh: C,
}

impl<C: Real> Ema<C> {
    /// `decay` of the average stays.
    pub fn new(decay: f64) -> Self {
        Self { fresh: C::from_f64(1.0 - decay) }
    }
}

impl<C: Real> Algorithm<C> for Ema<C> {
    const NAME: &'static str = "ema_step";
    const STATES: usize = 0;
    const SIGNED: [bool; MAX_STATES] = [true; MAX_STATES];

    #[inline(always)]
    fn step(&self, average: C, param: C, states: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        (average + self.fresh * (param - average), states)
    }
}

/// A sum of gradients: `param` is the sum.
#[derive(Debug, Clone, Copy)]
pub struct Sum;

impl<C: Real> Algorithm<C> for Sum {
    const NAME: &'static str = "accumulate_step";
    const STATES: usize = 0;
    const SIGNED: [bool; MAX_STATES] = [true; MAX_STATES];

    #[inline(always)]
    fn step(&self, sum: C, grad: C, states: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        (sum + grad, states)
    }
}

/// What an average takes.
pub(super) const EMA: Kind = Kind {
    function: Ema::<f32>::NAME,
    names: [["average", "averages"], ["param", "params"]],
    numbers: &[("decay", BelowOne)],
    states: &[],
    runs: runs!(ema),
    ..PLAIN
};

fn ema<C: Real>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    step(tensors, &hyper.common, Ema::new(hyper.numbers[0]), threads);
    0.0
}

/// What a sum takes.
pub(super) const SUM: Kind = Kind {
    function: <Sum as Algorithm<f32>>::NAME,
    names: [["total", "totals"], ["grad", "grads"]],
    numbers: &[],
    states: &[],
    runs: runs!(sum),
    ..PLAIN
};

fn sum<C: Real>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    step(tensors, &hyper.common, Sum, threads);
    0.0
}

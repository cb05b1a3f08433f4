//! What Adam and its family take, and how their steps are run.

use super::super::Allowed::{NonNegative, Positive};
use super::super::kind::{BETAS, EXP_AVG, EXP_AVG_SQ, MU_PRODUCT, PLAIN, runs};
use super::super::{Algorithm, Hyper, Kind, Plain, Storage, Tensor, step};
use super::{Adam, Adamax, NAdam, RAdam};
use crate::real::Real;

/// What Adam takes.
pub(in crate::kernels::optim) const ADAM: Kind = Kind {
    function: Adam::<f32, false>::NAME,
    states: &[EXP_AVG, EXP_AVG_SQ, ("max_exp_avg_sq", Some("amsgrad"))],
    signed: Adam::<f32, true>::SIGNED,
    coded_states: 2,
    runs: runs!(adam, 8 and 4 adam_of_two),
    ..PLAIN
};

/// What `AdamW` takes.
pub(in crate::kernels::optim) const ADAMW: Kind =
    Kind { function: Adam::<f32, false>::DECOUPLED_NAME, decoupled: true, ..ADAM };

fn adam<C: Real>(hyper: &Hyper, states: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    if states < 3 {
        return adam_of_two(hyper, states, tensors, threads);
    }
    let (common, betas, eps) = (&hyper.common, hyper.betas(), hyper.numbers[2]);
    step(tensors, common, Adam::<C, true>::new(common, betas, eps, hyper.semantics, hyper.step), threads);
    0.0
}

/// With the two states that it always has.
fn adam_of_two<C: Real, K: Storage<C>>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, K>>, threads: usize) -> f64 {
    let (common, betas, eps) = (&hyper.common, hyper.betas(), hyper.numbers[2]);
    step(tensors, common, Adam::<C, false>::new(common, betas, eps, hyper.semantics, hyper.step), threads);
    0.0
}

/// What `NAdam` takes.
pub(in crate::kernels::optim) const NADAM: Kind = Kind {
    function: NAdam::<f32>::NAME,
    numbers: &[BETAS[0], BETAS[1], BETAS[2], ("momentum_decay", NonNegative), (MU_PRODUCT, Positive)],
    signed: NAdam::<f32>::SIGNED,
    runs: runs!(nadam),
    ..PLAIN
};

/// Gives the product for the next step.
fn nadam<C: Real>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    let (common, x) = (&hyper.common, &hyper.numbers);
    let (algorithm, product) = NAdam::new(common, hyper.betas(), x[2], x[3], x[4], hyper.step);
    step(tensors, common, algorithm, threads);
    product
}

/// What `RAdam` takes.
pub(in crate::kernels::optim) const RADAM: Kind =
    Kind { function: RAdam::<f32>::NAME, signed: RAdam::<f32>::SIGNED, runs: runs!(radam), ..PLAIN };

fn radam<C: Real>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    let common = &hyper.common;
    step(tensors, common, RAdam::new(common, hyper.betas(), hyper.numbers[2], hyper.step), threads);
    0.0
}

/// What Adamax takes.
pub(in crate::kernels::optim) const ADAMAX: Kind = Kind {
    function: Adamax::<f32>::NAME,
    states: &[EXP_AVG, ("exp_inf", None)],
    signed: Adamax::<f32>::SIGNED,
    runs: runs!(adamax),
    ..PLAIN
};

fn adamax<C: Real>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    let common = &hyper.common;
    step(tensors, common, Adamax::new(common, hyper.betas(), hyper.numbers[2], hyper.step), threads);
    0.0
}

//! Optimizer steps: one pass over a parameter, its gradient and its states.
//!
//! An [`Algorithm`] says what one step makes of one element; everything else stands here once: what is done to every
//! gradient first ([`Common`]), 16-bit parameters and gradients, states in codes, lists of tensors. Hyper-parameters come
//! in f64, what follows from them (bias corrections, step sizes) is computed in f64 and rounded once.

mod adafactor;
mod adagrad;
mod adam;
mod average;
mod coded;
mod coding;
mod kind;
mod lamb;
mod lion;
mod muon;
mod noise;
mod sgd;
mod storage;
mod tensor;
mod whole;

pub use adafactor::{Adafactor, Factored, adafactor};
pub use adam::Semantics;
pub use coded::{Blocks, decode, encode};
pub use coding::{Coding, DynamicMaps, FourBits, Minifloats};
pub use kind::{Allowed, Hyper, Kind, MU_PRODUCT, PLAIN, Runs};
pub use noise::Noise;
pub use storage::{Plain, Storage};
pub use tensor::{Grad, Narrow, Param, Tensor};

use crate::isa::kernel;
use crate::kernels::pack::{W1, unpack_codes};
use crate::par::{self, CHUNK};
use crate::real::Real;

/// All algorithms, but Adafactor, whose states have shapes of their own.
pub const KINDS: &[&Kind] = &[
    &sgd::SGD,
    &adagrad::ADAGRAD,
    &adagrad::RMSPROP,
    &adagrad::ADADELTA,
    &adam::ADAM,
    &adam::ADAMW,
    &adam::NADAM,
    &adam::RADAM,
    &adam::ADAMAX,
    &lion::LION,
    &average::EMA,
    &average::SUM,
    &lamb::LAMB,
    &muon::MUON,
];

/// State arrays that an algorithm has at most.
pub const MAX_STATES: usize = 3;

/// Elements of the pieces of a list that a thread takes at once: many small tensors are not worth a lock each.
const BATCH: usize = CHUNK / 4;

/// What one step makes of one element.
pub trait Algorithm<C: Real>: Copy + Send + Sync {
    /// The name of its step.
    const NAME: &'static str;
    /// How many state arrays it has.
    const STATES: usize;
    /// Which of them can be negative.
    const SIGNED: [bool; MAX_STATES];
    /// The parameter and the states after one step; states that it does not have come and go as 0.
    fn step(&self, param: C, grad: C, states: [C; MAX_STATES]) -> (C, [C; MAX_STATES]);
}

/// What is done to every gradient, and to the parameter, before the algorithm sees them.
#[derive(Debug, Clone, Copy)]
pub struct Common {
    /// The learning rate.
    pub lr: f64,
    /// The gradient is divided by it.
    pub grad_scale: f64,
    /// The gradient is clamped to ± this, after its scale (infinity: not at all).
    pub clip_value: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the decay is of the parameter (`AdamW`: p (1 - lr wd)) or part of the gradient (L2: g + wd p).
    pub decoupled: bool,
    /// Ascend instead of descend.
    pub maximize: bool,
}

/// The same, as the loop takes it.
#[derive(Debug, Clone, Copy)]
pub struct Prepared<C> {
    scale: C,
    clip: C,
    l2: C,
    has_l2: bool,
    keep: C,
}

impl<C: Real> Prepared<C> {
    fn new(common: &Common) -> Self {
        let sign = if common.maximize { -1.0 } else { 1.0 };
        let decay = common.weight_decay;
        Self {
            scale: C::from_f64(sign / common.grad_scale),
            clip: C::from_f64(common.clip_value),
            l2: C::from_f64(decay),
            has_l2: decay != 0.0 && !common.decoupled,
            keep: C::from_f64(if common.decoupled { 1.0 - common.lr * decay } else { 1.0 }),
        }
    }

    /// The gradient after its scale and its clip. Comparisons are such that a NaN stays. (A way past them, where there is neither,
    /// was no faster, and made each loop twice: 100 kB.)
    #[inline(always)]
    fn grad(&self, grad: C) -> C {
        let grad = grad * self.scale;
        let grad = if grad > self.clip { self.clip } else { grad };
        let lowest = C::from_i16(0) - self.clip;
        if grad < lowest { lowest } else { grad }
    }

    /// One element.
    #[inline(always)]
    fn step<A: Algorithm<C>>(&self, algorithm: &A, param: C, grad: C, states: [C; MAX_STATES]) -> (C, [C; MAX_STATES]) {
        let (param, states) = self.step_any(algorithm, param, grad, states);
        (param, states.map(one_nan))
    }

    /// The same, but a NaN in a state may be any.
    #[inline(always)]
    fn step_any<A: Algorithm<C>>(
        &self,
        algorithm: &A,
        param: C,
        grad: C,
        states: [C; MAX_STATES],
    ) -> (C, [C; MAX_STATES]) {
        let grad = self.grad(grad);
        let grad = if self.has_l2 { grad + self.l2 * param } else { grad };
        let (param, states) = algorithm.step(param * self.keep, grad, states);
        (one_nan(param), states)
    }
}

/// The same NaN whatever made it: which of two a product keeps is up to the order in which the compiler gives them, and
/// that differs from one instruction set to the next.
///
/// Not by `partial_cmp`: the loops around it would not vectorise (10 times the time).
#[inline(always)]
#[expect(clippy::eq_op, reason = "only a NaN differs from itself")]
fn one_nan<C: Real>(x: C) -> C {
    if x == x { x } else { C::from_f64(f64::NAN) }
}

kernel! {
    /// Zero what has no bit, of up to a buffer.
    fn keep_masked<C: Real>(x: &mut [C], mask: &[u8]) {
        let mut flags = [0; BUFFER];
        let flags = &mut flags[..x.len()];
        unpack_codes::<W1>(mask, flags, 0);
        for (x, &flag) in x.iter_mut().zip(flags.iter()) {
            *x = if flag != 0 { *x } else { C::from_i16(0) };
        }
    }
}

/// One step of all tensors, in one parallel region.
pub fn step<C: Real, K: Storage<C>, A: Algorithm<C>>(
    tensors: Vec<Tensor<'_, C, K>>,
    common: &Common,
    algorithm: A,
    threads: usize,
) {
    let mut pieces: Vec<_> = if tensors.iter().all(|tensor| tensor.elements() <= CHUNK) {
        tensors.into_iter().map(Some).collect() // in place: for thousands of small ones that counts
    } else {
        tensors.into_iter().flat_map(whole::pieces).map(Some).collect()
    };
    let batches = whole::batches(&mut pieces, |piece| piece.as_ref().map_or(0, Tensor::elements));
    let prepared = Prepared::new(common);
    par::for_each_with(
        threads,
        batches.into_iter(),
        || K::BUFFERS,
        |buffers, batch: &mut [Option<Tensor<'_, C, K>>]| {
            for piece in batch.iter_mut().filter_map(Option::take) {
                step_piece(piece, buffers, prepared, algorithm);
            }
        },
    );
}

/// Elements of the buffers, the longest block: all together are in the L1 cache. Not 1,024: buffers at a distance of 4 KiB
/// look alike to the loads that come after stores (measured: 1.17 of the time).
const BUFFER: usize = 960;

/// One piece: at once where nothing must be converted, else in blocks.
fn step_piece<C: Real, K: Storage<C>, A: Algorithm<C>>(
    mut piece: Tensor<'_, C, K>,
    buffers: &mut K::Buffers,
    prepared: Prepared<C>,
    algorithm: A,
) {
    if piece.mask.is_none()
        && let (Param::Own(param), Grad::Own(grad)) = (&mut piece.param, piece.grad)
    {
        return K::step_block(param, grad, &mut piece.states, buffers, &prepared, &algorithm);
    }
    let (mut params, mut grads) = ([C::from_i16(0); BUFFER], [C::from_i16(0); BUFFER]);
    while piece.elements() > 0 {
        let n = piece.elements().min(K::BLOCK);
        let mut block = piece.split_off(n);
        let (params, grads) = (&mut params[..n], &mut grads[..n]);
        let mut grad: &[C] = match block.grad {
            Grad::Own(x) => x,
            Grad::F16(x) => tensor::load(x, grads),
            Grad::Bf16(x) => tensor::load(x, grads),
        };
        if let Some(mask) = block.mask {
            if let Grad::Own(x) = block.grad {
                grads.copy_from_slice(x);
            }
            keep_masked(grads, mask);
            grad = grads;
        }
        let param = match &mut block.param {
            Param::Own(x) => &mut **x,
            Param::F16(x) => x.wide(params),
            Param::Bf16(x) => x.wide(params),
        };
        K::step_block(param, grad, &mut block.states, buffers, &prepared, &algorithm);
        if let Some(mask) = block.mask {
            keep_masked(param, mask);
        }
        match block.param {
            Param::Own(_) => {}
            Param::F16(x) => x.round(params),
            Param::Bf16(x) => x.round(params),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::adam::Adam;
    use super::sgd::Sgd;
    use super::*;
    use crate::isa::{self, Isa};

    const COMMON: Common =
        Common { lr: 1e-2, grad_scale: 4.0, clip_value: 0.2, weight_decay: 0.1, decoupled: true, maximize: false };

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Parameters and states of tensors of these lengths after one step.
    fn stepped(lengths: &[usize], threads: usize) -> Vec<[Vec<u32>; 3]> {
        let mut all: Vec<_> = lengths.iter().map(|&n| [1, 2, 3, 4].map(|seed| numbers(n, seed))).collect();
        for [_, _, _, square] in &mut all {
            for v in square {
                *v = v.abs();
            }
        }
        let tensors = all.iter_mut().map(|[param, grad, mean, square]| Tensor::<f32, Plain> {
            param: Param::Own(param),
            grad: Grad::Own(grad),
            states: [mean, square, &mut []],
            mask: None,
        });
        let adam = Adam::<f32, false>::new(&COMMON, [0.9, 0.999], 1e-8, Semantics::Torch, 5);
        step(tensors.collect(), &COMMON, adam, threads);
        let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect();
        all.into_iter().map(|[param, _, mean, square]| [bits(param), bits(mean), bits(square)]).collect()
    }

    #[test]
    fn test_b11_the_same_bits_for_every_instruction_set_thread_count_and_cut() {
        let lengths = [0, 1, 15, 257, 2 * CHUNK + 3, 7, CHUNK];
        let want = stepped(&lengths, 1);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            isa::set(isa);
            for threads in 1..5 {
                assert_eq!(stepped(&lengths, threads), want, "{} {threads}", isa.name());
            }
            for (&n, want) in lengths.iter().zip(&want) {
                assert_eq!(&stepped(&[n], 2)[0], want, "{} {n}", isa.name());
            }
        }
    }

    #[test]
    fn test_b5_a_nan_passes_the_clip() {
        let prepared = Prepared::<f32>::new(&COMMON);
        let sgd = Sgd::<f32, false>::new(&COMMON, 0.0, 0.0, false, 1);
        assert!(prepared.step(&sgd, 1.0, f32::NAN, [0.0; MAX_STATES]).0.is_nan());
        let clipped = |grad| prepared.step(&sgd, 0.0, grad, [0.0; MAX_STATES]).0;
        assert_eq!((clipped(f32::INFINITY), clipped(-1.0), clipped(0.4)), (-0.2 * 0.01, 0.2 * 0.01, -0.1 * 0.01));
    }
}

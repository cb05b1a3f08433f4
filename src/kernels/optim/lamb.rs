//! LAMB: Adam's step, made as long as the parameter times the learning rate.
//!
//! Two passes: the first updates the states and sums squares, the second makes the direction from the states again,
//! so that it needs no room of its own.

use super::adam::{Means, correction};
use super::kind::{PLAIN, runs};
use super::whole::{Squares, look_then_apply, read_grad, read_param, root_mean, square_sum, write_param};
use super::{BUFFER, Common, Hyper, Kind, Plain, Prepared, Tensor, one_nan};
use crate::isa::kernel;
use crate::real::Real;

/// You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", algorithm 2 (arXiv
/// 1904.00962), as Optax has it: the ratio of norms is not clipped, and 1 where one of the norms is 0.
#[derive(Debug, Clone, Copy)]
pub struct Lamb<C> {
    means: Means<C>,
    mean_over: C,
    square_over: C,
    eps: C,
    decay: C,
}

impl<C: Real> Lamb<C> {
    /// The name of its step.
    pub const NAME: &'static str = "lamb_step";

    /// For step number `step`.
    pub fn new(common: &Common, betas: [f64; 2], eps: f64, step: u64) -> Self {
        let [mean_over, square_over] = betas.map(|beta| C::from_f64(1.0 / correction(beta, step)));
        let [eps, decay] = [eps, common.weight_decay].map(C::from_f64);
        Self { means: Means::new(betas), mean_over, square_over, eps, decay }
    }

    /// What the parameters would be stepped by, were it not for the norms.
    #[inline(always)]
    fn directions(&self, params: &[C], means: &[C], squares: &[C], out: &mut [C]) {
        for (((out, &p), &m), &v) in out.iter_mut().zip(params).zip(means).zip(squares) {
            *out = m * self.mean_over / ((v * self.square_over).sqrt() + self.eps) + self.decay * p;
        }
    }
}

/// One step of all tensors, in two parallel regions.
pub fn lamb<C: Real>(tensors: Vec<Tensor<'_, C, Plain>>, common: &Common, lamb: Lamb<C>, threads: usize) {
    let prepared = Prepared::new(common);
    look_then_apply(
        tensors,
        |piece| look(piece, prepared, lamb),
        |squares, _| C::from_f64(common.lr * ratio(squares)),
        |piece, factor| apply(piece, lamb, factor),
        threads,
    );
}

/// Of the norms of the parameter and of its direction.
fn ratio(squares: Squares) -> f64 {
    let [param, direction] = squares.map(|sum| root_mean(sum, 1.0));
    if param == 0.0 || direction == 0.0 { 1.0 } else { param / direction }
}

kernel! {
    /// Update the states; the squares of the parameter and of its direction.
    fn look<C: Real>(piece: &mut Tensor<'_, C, Plain>, prepared: Prepared<C>, lamb: Lamb<C>) -> Squares {
        let n = piece.elements();
        let [mut params, mut grads, mut directions] = [[C::from_i16(0); BUFFER]; 3];
        let [means, squares, _] = &mut piece.states;
        let mut sums = [0.0; 2];
        for start in (0..n).step_by(BUFFER) {
            let range = start..n.min(start + BUFFER);
            let grads = read_grad(piece.grad, range.clone(), &prepared, &mut grads);
            let (means, squares) = (&mut means[range.clone()], &mut squares[range.clone()]);
            for ((m, v), &g) in means.iter_mut().zip(squares.iter_mut()).zip(grads.iter()) {
                *m = one_nan(lamb.means.first(*m, g));
                *v = one_nan(lamb.means.second(*v, g));
            }
            let params = read_param(&piece.param, range, &mut params);
            let directions = &mut directions[..params.len()];
            lamb.directions(params, means, squares, directions);
            sums[0] += square_sum(params);
            sums[1] += square_sum(directions);
        }
        sums
    }
}

kernel! {
    /// Step the parameter.
    fn apply<C: Real>(piece: &mut Tensor<'_, C, Plain>, lamb: Lamb<C>, factor: C) {
        let n = piece.elements();
        let [mut params, mut directions] = [[C::from_i16(0); BUFFER]; 2];
        let [means, squares, _] = &piece.states;
        for start in (0..n).step_by(BUFFER) {
            let range = start..n.min(start + BUFFER);
            let directions = &mut directions[..range.len()];
            let wide = read_param(&piece.param, range.clone(), &mut params);
            lamb.directions(wide, &means[range.clone()], &squares[range.clone()], directions);
            write_param(&mut piece.param, range, &mut params, directions, [C::from_i16(1), factor]);
        }
    }
}

/// What it takes.
pub(super) const LAMB: Kind = Kind { function: Lamb::<f32>::NAME, runs: runs!(run), ..PLAIN };

fn run<C: Real>(hyper: &Hyper, _: usize, tensors: Vec<Tensor<'_, C, Plain>>, threads: usize) -> f64 {
    let algorithm = Lamb::new(&hyper.common, hyper.betas(), hyper.numbers[2], hyper.step);
    lamb(tensors, &hyper.common, algorithm, threads);
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{self, Isa};
    use crate::kernels::optim::{Grad, Param};
    use crate::par::CHUNK;

    const COMMON: Common =
        Common { lr: 0.5, grad_scale: 1.0, clip_value: 1.0, weight_decay: 0.1, decoupled: false, maximize: false };

    /// The parameters of tensors of these lengths after one step.
    fn stepped(lengths: &[usize], threads: usize) -> Vec<Vec<u32>> {
        let numbers = |n, seed| (0..n).map(|i| ((i * 7919 + seed) % 2003) as f32 / 1001.0 - 1.0).collect();
        let mut all: Vec<[Vec<f32>; 4]> =
            lengths.iter().map(|&n| [numbers(n, 1), numbers(n, 2), vec![0.0; n], vec![0.25; n]]).collect();
        let tensors = all.iter_mut().map(|[param, grad, mean, square]| Tensor::<f32, Plain> {
            param: Param::Own(param),
            grad: Grad::Own(grad),
            states: [mean, square, &mut []],
            mask: None,
        });
        lamb(tensors.collect(), &COMMON, Lamb::<f32>::new(&COMMON, [0.9, 0.999], 1e-6, 3), threads);
        all.into_iter().map(|[param, ..]| param.into_iter().map(f32::to_bits).collect()).collect()
    }

    #[test]
    fn test_b11_the_same_bits_for_every_instruction_set_thread_count_and_list() {
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
    fn test_the_ratio_is_1_where_a_norm_is_0_and_a_nan_stays() {
        assert_eq!((ratio([0.0, 4.0]), ratio([4.0, 0.0]), ratio([9.0, 4.0])), (1.0, 1.0, 1.5));
        assert!(ratio([f64::NAN, 4.0]).is_nan() && ratio([4.0, f64::NAN]).is_nan());
    }
}

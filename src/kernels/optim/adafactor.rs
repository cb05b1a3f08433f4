//! Adafactor: second moments as a column times a row, and steps as long as the parameter.
//!
//! Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", algorithms 4 and 5 (arXiv
//! 1804.04235), as `torch.optim.Adafactor` has them: the learning rate bounds the relative step size and decays the
//! parameter, epsilon 1 bounds the moments from below instead of being added to the squares.
//!
//! The length of a step depends on the whole tensor: a first pass takes the gradient into the moments, a second one
//! sums the squares of the update, the last one applies it. The update is made anew each time, never stored.

mod matrix;
mod sums;
mod vector;

pub use matrix::Factored;

use super::whole::{Squares, root_mean};
use super::{Common, Plain, Prepared, Tensor, one_nan};
use crate::real::Real;

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub struct Adafactor {
    /// How much of a moment is new: t^decay.
    fresh: f64,
    eps: [f64; 2],
    clip: f64,
    /// The relative step size.
    rho: f64,
}

/// The same, as the loops take it.
#[derive(Debug, Clone, Copy)]
struct Rule<C> {
    prepared: Prepared<C>,
    fresh: f64,
    /// Moments are at least the square of it, their mean over the rows at least it.
    eps: f64,
    /// The largest that one over the root of a moment may be: 1 / eps.
    limit: C,
}

impl Adafactor {
    /// The name of its step.
    pub const NAME: &'static str = "adafactor_step";

    /// For step number `step`; `eps`: the floor of the moments' roots (None: the dtype's epsilon), and of the
    /// parameter's size; `d`: the largest size of an update that is not clipped.
    pub fn new<C: Real>(common: &Common, beta2_decay: f64, eps: (Option<f64>, f64), d: f64, step: u64) -> Self {
        let step = step as f64;
        let smallest = 2f64.powi(-(C::MANTISSA_BITS as i32));
        Self {
            fresh: step.powf(beta2_decay),
            eps: [eps.0.unwrap_or(smallest), eps.1],
            clip: d,
            rho: common.lr.min(1.0 / step.sqrt()),
        }
    }

    fn rule<C: Real>(&self, common: &Common) -> Rule<C> {
        let [eps, _] = self.eps;
        Rule { prepared: Prepared::new(common), fresh: self.fresh, eps, limit: C::from_f64(1.0 / eps) }
    }

    /// What the update of a tensor of `len` elements is multiplied by. A NaN in a root is passed over, as in torch.
    fn factor<C: Real>(&self, [param, update]: Squares, len: usize) -> C {
        let [param, update] = [param, update].map(|sum| root_mean(sum, len as f64));
        let alpha = self.eps[1].max(param) * self.rho;
        C::from_f64(alpha / (update / self.clip).max(1.0))
    }
}

impl<C: Real> Rule<C> {
    /// A moment with a new mean square taken in.
    #[inline(always)]
    fn fold(&self, moment: C, square: f64) -> C {
        one_nan(C::from_f64((1.0 - self.fresh) * moment.to_f64() + self.fresh * square))
    }

    /// Sums of `count` squares each.
    fn fold_all(&self, moments: &mut [C], sums: &[f64], count: usize) {
        for (moment, sum) in moments.iter_mut().zip(sums) {
            *moment = self.fold(*moment, sum / count as f64);
        }
    }

    /// One over the root, limited. A NaN stays.
    #[inline(always)]
    fn bounded(&self, root: C) -> C {
        if root > self.limit { self.limit } else { root }
    }
}

/// One step of all tensors; a tensor without axes or with one has its moments as its first state. In five parallel
/// regions at most.
pub fn adafactor<C: Real>(
    vectors: Vec<Tensor<'_, C, Plain>>,
    matrices: Vec<Factored<'_, C>>,
    common: &Common,
    adafactor: Adafactor,
    threads: usize,
) {
    let rule = adafactor.rule(common);
    vector::step(vectors, &adafactor, rule, threads);
    matrix::step(matrices, &adafactor, rule, threads);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{self, Isa};
    use crate::kernels::optim::{Grad, Param};

    const COMMON: Common =
        Common { lr: 0.5, grad_scale: 1.0, clip_value: 1.0, weight_decay: 0.1, decoupled: true, maximize: false };

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Parameter and moments of some matrices on end after one step.
    fn stepped([count, rows, cols]: [usize; 3], threads: usize) -> [Vec<f32>; 3] {
        let n = count * rows * cols;
        let (mut param, grad) = (numbers(n, 1), numbers(n, 2));
        let (mut row, mut col) = (vec![0.25; count * rows], vec![0.25; count * cols]);
        let (param_, grad_) = (Param::Own(&mut param), Grad::Own(&grad));
        let tensor = Tensor::<f32, Plain> { param: param_, grad: grad_, states: Default::default(), mask: None };
        let matrices = vec![Factored { tensor, row: &mut row, col: &mut col, rows, cols }];
        let rule = Adafactor::new::<f32>(&COMMON, -0.8, (None, 1e-3), 1.0, 3);
        adafactor(Vec::new(), matrices, &COMMON, rule, threads);
        [param, row, col]
    }

    /// On both sides of every cut.
    const SHAPES: [[usize; 3]; 12] = [
        [1, 1, 1],
        [1, 3, 0],
        [9000, 3, 3],
        [5, 1, 961],
        [2, 34, 960],
        [2, 35, 960],
        [2, 34, 961],
        [1, 70, 2000],
        [3, 2, 40_000],
        [2, 33_000, 2],
        [1, 40_000, 1],
        [3, 181, 182],
    ];

    #[test]
    fn test_b11_the_same_bits_for_every_instruction_set_and_thread_count() {
        for shape in SHAPES {
            let want = stepped(shape, 1);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                isa::set(isa);
                for threads in 1..5 {
                    assert_eq!(stepped(shape, threads), want, "{shape:?} {} {threads}", isa.name());
                }
            }
        }
    }

    #[test]
    fn test_b1_moments_match_a_plain_loop_for_every_cut() {
        let fresh = 3f64.powf(-0.8);
        for shape in SHAPES {
            let [count, rows, cols] = shape;
            let (grad, [_, row, col]) = (numbers(count * rows * cols, 2), stepped(shape, 2));
            let (mut row_sums, mut col_sums) = (vec![0.0; row.len()], vec![0.0; col.len()]);
            for (i, &g) in grad.iter().enumerate() {
                let square = f64::from(g) * f64::from(g);
                row_sums[i / cols] += square / cols as f64;
                col_sums[i / (rows * cols) * cols + i % cols] += square / rows as f64;
            }
            for (got, square) in row.into_iter().zip(row_sums).chain(col.into_iter().zip(col_sums)) {
                let want = if cols == 0 { 0.25 } else { (1.0 - fresh) * 0.25 + fresh * square };
                assert!((f64::from(got) - want).abs() < 1e-7, "{shape:?}: {got} {want}");
            }
        }
    }
}

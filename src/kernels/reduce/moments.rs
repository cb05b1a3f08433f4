//! Mean and variance in one pass over memory.

use super::{LANES, Sum, View, reduce_chunk, total};
use crate::isa::kernel;
use crate::kernels::number::Number;
use crate::par::{self, CHUNK};
use crate::real::Element;

/// Number, mean and sum of squared deviations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moments {
    /// How many numbers.
    pub n: f64,
    /// Their mean.
    pub mean: f64,
    /// The sum of their squared deviations from the mean.
    pub m2: f64,
}

impl Moments {
    /// Join two sets (Chan, Golub and LeVeque 1979, "Updating formulae", equation 2.1).
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        if self.n == 0.0 {
            return other;
        }
        let n = self.n + other.n;
        let delta = other.mean - self.mean;
        Self {
            n,
            mean: self.mean + delta * (other.n / n),
            m2: self.m2 + other.m2 + delta * delta * (self.n * other.n / n),
        }
    }
}

kernel! {
    /// Sum and sum of squares of the deviations from `mean` (the first corrects the rounding of `mean`).
    fn deviations<T: Element>(x: &[T], mean: f64) -> [f64; 2] {
        let mut sum = [0.0f64; LANES];
        let mut squares = [0.0f64; LANES];
        let (blocks, tail) = x.as_chunks::<LANES>();
        for block in blocks {
            for i in 0..LANES {
                let d = block[i].to_f64() - mean;
                sum[i] += d;
                squares[i] += d * d;
            }
        }
        for (i, v) in tail.iter().enumerate() {
            let d = v.to_f64() - mean;
            sum[i] += d;
            squares[i] += d * d;
        }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                sum[i] += sum[i + width];
                squares[i] += squares[i + width];
            }
            width /= 2;
        }
        [sum[0], squares[0]]
    }
}

/// Moments of at most `CHUNK` numbers; `memory` is for those that are not computed with as they are.
fn moments_chunk<T: Number>(chunk: &[T], memory: &mut Vec<T::Real>) -> Moments {
    let (chunk, n) = (T::load(chunk, memory), chunk.len() as f64);
    let mean = total(reduce_chunk::<T::Real, Sum>(chunk, Sum)) / n;
    let [sum, squares] = deviations(chunk, mean);
    Moments { n, mean: mean + sum / n, m2: squares - sum * sum / n }
}

/// The moments of one row; the second look at each chunk finds it in the cache.
fn moments_row<T: Number>(x: &[T], threads: usize) -> Moments {
    par::map(threads, x.chunks(CHUNK), |chunk| moments_chunk(chunk, &mut Vec::new()))
        .into_iter()
        .fold(Moments::default(), Moments::merge)
}

/// Moments over the middle axis: `outer * inner` of them.
pub fn moments_axis<T: Number>(x: &[T], view: View, threads: usize) -> Vec<Moments> {
    let View { outer, n, inner } = view;
    if n == 0 || x.is_empty() {
        return vec![Moments::default(); outer * inner];
    }
    if inner > 1 {
        return moments_strided(x, view, threads);
    }
    if n > CHUNK {
        return x.chunks_exact(n).map(|row| moments_row(row, threads)).collect();
    }
    let rows = CHUNK / n;
    let batches = par::map(threads, x.chunks(rows * n), |x| {
        let mut memory = Vec::new();
        x.chunks_exact(n).map(|row| moments_chunk(row, &mut memory)).collect::<Vec<_>>()
    });
    batches.into_iter().flatten().collect()
}

/// Moments where the reduced axis is not the last: pieces of rows, each column by column in f64.
fn moments_strided<T: Number>(x: &[T], view: View, threads: usize) -> Vec<Moments> {
    let View { n, inner, .. } = view;
    let rows = (CHUNK / inner).max(1);
    let mut out = Vec::with_capacity(view.outer * inner);
    for block in x.chunks_exact(n * inner) {
        let parts = par::map(threads, block.chunks(rows * inner), |piece| {
            let n = (piece.len() / inner) as f64;
            let mut mean = vec![0.0f64; inner];
            for row in piece.chunks_exact(inner) {
                mean.iter_mut().zip(row).for_each(|(m, v)| *m += v.as_f64());
            }
            for m in &mut mean {
                *m /= n;
            }
            let (mut sum, mut squares) = (vec![0.0f64; inner], vec![0.0f64; inner]);
            for row in piece.chunks_exact(inner) {
                for (((s, q), m), v) in sum.iter_mut().zip(&mut squares).zip(&mean).zip(row) {
                    let d = v.as_f64() - m;
                    *s += d;
                    *q += d * d;
                }
            }
            let column = |i: usize| Moments { n, mean: mean[i] + sum[i] / n, m2: squares[i] - sum[i] * sum[i] / n };
            (0..inner).map(column).collect::<Vec<_>>()
        });
        let mut merged = vec![Moments::default(); inner];
        for part in parts {
            merged.iter_mut().zip(part).for_each(|(a, b)| *a = a.merge(b));
        }
        out.extend(merged);
    }
    out
}

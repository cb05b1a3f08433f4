//! In float64 the lower triangular `V` with `H = Vᵀ V`, which GPTQ reads, and the upper triangular `U` with `H⁻¹ = Uᵀ U`,
//! which `SparseGPT` reads.
//!
//! `V` by a Cholesky factorisation from the last row to the first; `U` is the inverse of `Vᵀ`. (By the inverse of `H` and its
//! factor, as the reference has it: three times the work.) Both in one square: `V` below the diagonal, `U` from it on. n³ / 6
//! products and subtractions each: at n = 4,096 some 11 thousand millions.

use super::{All, Block, COLUMNS, Lanes, Panel, TILE, Tile, subtract_all, take_out_all};
use crate::isa::kernel;
use crate::par;

/// Rows that are finished together.
const BLOCK: usize = 128;

/// `V`, and which inputs are dead: their diagonal of `H` is 0.
pub struct Cholesky {
    /// Inputs.
    pub n: usize,
    lower: Vec<f64>,
    dead: Vec<bool>,
}

impl Cholesky {
    /// Of `h` (its lower triangle), with 1 on the diagonal for dead inputs, then `damping` of the diagonal's mean added.
    ///
    /// If that is not positive definite: the input where this is seen.
    pub fn new(h: Vec<f64>, n: usize, damping: f64, threads: usize) -> Result<Self, usize> {
        let mut a = h;
        let dead: Vec<bool> = (0..n).map(|i| a[i * n + i] == 0.0).collect();
        for (i, _) in dead.iter().enumerate().filter(|(_, dead)| **dead) {
            a[i * n + i] = 1.0;
        }
        let total: f64 = (0..n).map(|i| a[i * n + i]).sum();
        let damp = damping * total / n as f64;
        for i in 0..n {
            a[i * n + i] += damp;
        }
        factor(&mut a, n, threads)?;
        Ok(Self { n, lower: a, dead })
    }

    /// An element on or below the diagonal.
    pub(in crate::kernels) fn at(&self, i: usize, j: usize) -> f64 {
        self.lower[i * self.n + j]
    }
}

/// `U`, and which inputs are dead.
pub struct Factor {
    /// Inputs.
    pub n: usize,
    pub(in crate::kernels) upper: Vec<f64>,
    pub(in crate::kernels) dead: Vec<bool>,
}

impl Factor {
    /// Of `h`, as [`Cholesky::new`].
    pub fn new(h: Vec<f64>, n: usize, damping: f64, threads: usize) -> Result<Self, usize> {
        let Cholesky { n, lower: mut a, dead } = Cholesky::new(h, n, damping, threads)?;
        invert(&mut a, n, threads);
        Ok(Self { n, upper: a, dead })
    }

    /// An element on or above the diagonal.
    pub(in crate::kernels) fn at(&self, i: usize, j: usize) -> f64 {
        self.upper[i * self.n + j]
    }
}

kernel! {
    /// Make rows of `V` of the square that the rows behind them have left, from the last to the first, and what they are
    /// divided by; the row of a bad pivot.
    fn finish_square(rows: &mut [f64], n: usize, first: usize, roots: &mut [f64; BLOCK]) -> Option<usize> {
        for j in (0..rows.len() / n).rev() {
            let (before, later) = rows.split_at_mut((j + 1) * n);
            let row = &mut before[j * n + first..][..=j];
            for later in later.chunks(n).rev() {
                let later = &later[first..][..=j];
                let factor = later[j];
                for (x, &v) in row.iter_mut().zip(later) {
                    *x -= factor * v;
                }
            }
            let pivot = row[j];
            if !(pivot > 0.0 && pivot <= f64::MAX) {
                return Some(first + j);
            }
            roots[j] = pivot.sqrt();
            for x in row {
                *x /= roots[j];
            }
        }
        None
    }
}

kernel! {
    /// The same for columns before that square, some of all rows.
    fn finish_lanes(lanes: &mut [Lanes<f64, COLUMNS>], square: &[f64], n: usize, roots: &[f64; BLOCK]) {
        for j in (0..lanes.len()).rev() {
            let (before, later) = lanes.split_at_mut(j + 1);
            let mut sums = before[j].0;
            for (later, square) in later.iter().zip(square.chunks(n).skip(j + 1)).rev() {
                let factor = square[j];
                for (sum, &v) in sums.iter_mut().zip(&later.0) {
                    *sum -= factor * v;
                }
            }
            for (x, &sum) in before[j].0.iter_mut().zip(&sums) {
                *x = sum / roots[j];
            }
        }
    }
}

/// `V` with `a = Vᵀ V`, in the lower triangle of `a`.
fn factor(a: &mut [f64], n: usize, threads: usize) -> Result<(), usize> {
    for first in (0..n).step_by(BLOCK).rev() {
        let (before, rows) = a[..n.min(first + BLOCK) * n].split_at_mut(first * n);
        let mut roots = [1.0; BLOCK];
        if let Some(bad) = finish_square(rows, n, first, &mut roots) {
            return Err(bad);
        }
        let mut panel = Panel::new(rows.len() / n, first, |i, j| rows[i * n + j], threads);
        let square = &rows[first..];
        par::for_each(threads, panel.lanes.chunks_mut(rows.len() / n), |lanes| finish_lanes(lanes, square, n, &roots));
        par::for_each(threads, rows.chunks_mut(n).enumerate(), |(i, row)| panel.copy_row(i, &mut row[..first]));
        let rows = &*rows;
        let scratch = || vec![[0.0; TILE]; BLOCK];
        par::for_each_with(threads, before.chunks_mut(TILE * n).enumerate(), scratch, |factors, (t, tile)| {
            let count = tile.len() / n;
            for (factors, row) in factors.iter_mut().zip(rows.chunks(n)) {
                factors[..count].copy_from_slice(&row[t * TILE..][..count]);
            }
            let factors = &factors[..rows.len() / n];
            subtract_all(Tile { rows: tile, n, columns: 0..t * TILE + count }, factors, &panel);
        });
    }
    Ok(())
}

/// `U`, the inverse of `Vᵀ`: what the rows of the identity lose where all columns are taken out.
fn invert(a: &mut [f64], n: usize, threads: usize) {
    let diagonal: Vec<f64> = (0..n).map(|i| a[i * n + i]).collect();
    for i in 0..n {
        a[i * n + i] = 1.0;
        a[i * n + i + 1..(i + 1) * n].fill(0.0);
    }
    for first in (0..n).step_by(BLOCK) {
        let end = n.min(first + BLOCK);
        let at = |i: usize, j: usize| if i == j { diagonal[i] } else { a[j * n + i] };
        let block = Block::new(first..end, n, at, threads);
        let scratch = || vec![[0.0; TILE]; BLOCK];
        let tiles = a[..end * n].chunks_mut(TILE * n).enumerate();
        par::for_each_with(threads, tiles, scratch, |errors, (t, tile)| {
            let errors = &mut errors[..end - first];
            // Before the diagonal the square holds `V`.
            let before = |r: usize| (t * TILE + r).saturating_sub(first);
            for (i, errors) in errors.iter_mut().enumerate() {
                *errors = [0.0; TILE];
                for (r, (error, row)) in errors.iter_mut().zip(tile.chunks(n)).enumerate() {
                    *error = if i < before(r) { 0.0 } else { row[first + i] };
                }
            }
            take_out_all(errors, All, &block);
            for (r, row) in tile.chunks_mut(n).enumerate() {
                for (x, errors) in row[first..end].iter_mut().zip(&*errors).skip(before(r)) {
                    *x = errors[r];
                }
            }
            block.hand_on_all(tile, (n, n), errors);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of products of `rows` pseudorandom inputs.
    fn gram(n: usize, rows: usize) -> Vec<f64> {
        let mut state = 88_172_645_463_325_252_u64;
        let mut h = vec![0.0; n * n];
        for _ in 0..rows {
            let next = |_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state as i64 >> 20) as f64 * 1e-13
            };
            let x: Vec<f64> = (0..n).map(next).collect();
            for (i, row) in h.chunks_mut(n).enumerate() {
                row.iter_mut().zip(&x).for_each(|(h, v)| *h += x[i] * v);
            }
        }
        h
    }

    #[test]
    fn test_h_times_the_inverse_is_the_identity_for_every_size() {
        for n in [1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 200] {
            let h = gram(n, 2 * n + 3);
            let factor = Factor::new(h.clone(), n, 0.0, 2).unwrap();
            let upper = |i: usize, j: usize| if j < i { 0.0 } else { factor.at(i, j) };
            let inverse = |i: usize, j: usize| (0..n).map(|k| upper(k, i) * upper(k, j)).sum::<f64>();
            let inverse: Vec<f64> = (0..n * n).map(|k| inverse(k / n, k % n)).collect();
            for i in 0..n {
                for j in 0..n {
                    let got: f64 = (0..n).map(|k| h[i * n + k] * inverse[k * n + j]).sum();
                    assert!((got - f64::from(i == j)).abs() < 1e-7, "{n} {i} {j} {got}");
                }
            }
        }
    }

    #[test]
    fn test_threads_and_instruction_sets_do_not_change_a_bit() {
        let (n, h) = (193, gram(193, 400));
        let want = Factor::new(h.clone(), n, 0.01, 1).unwrap().upper;
        for isa in crate::isa::Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            crate::isa::set(isa);
            for threads in [1, 3] {
                assert!(Factor::new(h.clone(), n, 0.01, threads).unwrap().upper == want, "{} {threads}", isa.name());
            }
        }
    }

    #[test]
    fn test_what_is_not_positive_definite_is_told_and_dead_inputs_are_not_part_of_it() {
        assert_eq!(Factor::new(vec![1.0, 2.0, 2.0, 1.0], 2, 0.0, 1).err(), Some(0));
        assert_eq!(Factor::new(vec![1.0, 0.0, 0.0, -1.0], 2, 0.01, 1).err(), Some(1));
        let factor = Factor::new(vec![4.0, 0.0, 0.0, 0.0], 2, 0.0, 1).unwrap();
        assert_eq!(
            (factor.at(0, 0), factor.at(0, 1), factor.at(1, 1), factor.dead),
            (0.5, 0.0, 1.0, vec![false, true])
        );
    }
}

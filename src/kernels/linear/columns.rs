//! Rows of `x` times weights that are not transposed: `y[m, k] = sum over n of x[m, n] w[n, k]`, in floats.

use super::finished;
use crate::isa::kernel;
use crate::par;

/// Rows of the weights whose products are summed in order; then these sums are, in order too.
const ROWS: usize = 256;
/// Such pieces that are in work before their sums are added, at least: what they take of memory.
const WAVE: usize = 16;
/// As many sums may be in work in any case: of short rows all pieces, so that nobody waits for the last of a few.
const SUMS: usize = 1 << 20;
/// Sums that one thread adds at a time.
const ADDED: usize = 1 << 12;
/// Rows of `x` at a time.
const SLAB: usize = 64;
/// Elements of weights that are made numbers at a time.
const PIECE: usize = 1 << 14;

kernel! {
    /// Add the rows of `w`, each times its `x`, one after the other.
    fn add_rows(sums: &mut [f32], w: &[f32], x: &[f32]) {
        let cols = sums.len();
        let (fours, rest) = x.as_chunks::<4>();
        let (w_fours, w_rest) = w.split_at(4 * fours.len() * cols);
        for ([a, b, c, d], w) in fours.iter().zip(w_fours.chunks_exact(4 * cols)) {
            let (w, more) = w.split_at(2 * cols);
            let ((wa, wb), (wc, wd)) = (w.split_at(cols), more.split_at(cols));
            for ((((sum, wa), wb), wc), wd) in sums.iter_mut().zip(wa).zip(wb).zip(wc).zip(wd) {
                *sum = *sum + a * wa + b * wb + c * wc + d * wd;
            }
        }
        for (x, w) in rest.iter().zip(w_rest.chunks_exact(cols)) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum += x * w;
            }
        }
    }
}

/// Multiply rows of `x` by weights of `[rows, cols]`, whose numbers `fill` writes for the rows that it is given.
pub fn multiply_columns(
    x: &[f32],
    [rows, cols]: [usize; 2],
    fill: impl Fn(&[usize], &mut [f32]) + Sync,
    out: &mut [f32],
    threads: usize,
) {
    if out.is_empty() {
        return;
    }
    out.fill(0.0);
    let together = (PIECE / cols).clamp(1, ROWS);
    for (x, out) in x.chunks(SLAB * rows.max(1)).zip(out.chunks_mut(SLAB * cols)) {
        let starts: Vec<usize> = (0..rows).step_by(ROWS).collect();
        for wave in starts.chunks((SUMS / out.len()).max(WAVE)) {
            let parts = par::map(threads, wave.iter(), |&start| {
                let mut sums = vec![0.0; out.len()];
                let mut numbers = vec![0.0; together * cols];
                let end = rows.min(start + ROWS);
                for first in (start..end).step_by(together) {
                    let places: Vec<usize> = (first..end.min(first + together)).collect();
                    let w = &mut numbers[..places.len() * cols];
                    fill(&places, w);
                    for (x, sums) in x.chunks_exact(rows).zip(sums.chunks_exact_mut(cols)) {
                        add_rows(sums, w, &x[first..first + places.len()]);
                    }
                }
                sums
            });
            par::for_each(threads, out.chunks_mut(ADDED).enumerate(), |(i, out)| {
                for part in &parts {
                    for (y, sum) in out.iter_mut().zip(&part[i * ADDED..]) {
                        *y += sum;
                    }
                }
            });
        }
        for y in out {
            *y = finished(*y, 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_sums_are_those_of_any_number_of_threads_and_rows_of_x() {
        for (m, rows, cols) in [(1, 700, 33), (70, 300, 5), (3, 1, 1), (2, 0, 4), (5, 9000, 3)] {
            let number = |i: usize| (i as u32).wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.5;
            let x: Vec<f32> = (0..m * rows).map(number).collect();
            let fill = |places: &[usize], out: &mut [f32]| {
                for (out, row) in out.chunks_mut(cols).zip(places) {
                    out.iter_mut().enumerate().for_each(|(k, w)| *w = number(row * cols + k));
                }
            };
            let run = |x: &[f32], m: usize, threads| {
                let mut out = vec![f32::NAN; m * cols];
                multiply_columns(x, [rows, cols], fill, &mut out, threads);
                out
            };
            let all = run(&x, m, 1);
            assert_eq!(all, run(&x, m, 3));
            for i in 0..m {
                let row = &x[i * rows..(i + 1) * rows];
                assert_eq!(run(row, 1, 2), all[i * cols..(i + 1) * cols]);
                let exact = |k| (0..rows).map(|n| f64::from(row[n]) * f64::from(number(n * cols + k))).sum::<f64>();
                assert!((0..cols).all(|k| (exact(k) - f64::from(all[i * cols + k])).abs() < 1e-3));
            }
        }
    }
}

//! How far rows lie from all the others: the criterion of FPGM (He et al. 2019, arXiv 1811.00250, equation 5).

use crate::isa::kernel;
use crate::kernels::reduce::sum_of_lanes;
use crate::par;
use crate::real::Element;

/// Lanes of a distance.
const LANES: usize = 32;

/// Rows whose distances are summed together, so that each other row is read once for all of them.
const ROWS: usize = 8;

kernel! {
    /// The squared distance of two rows of one length.
    fn distance<T: Element>(a: &[T], b: &[T]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let ((blocks, tail), (others, other_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (block, other) in blocks.iter().zip(others) {
            for i in 0..LANES {
                let d = block[i].to_f64() - other[i].to_f64();
                lanes[i] += d * d;
            }
        }
        for ((lane, a), b) in lanes.iter_mut().zip(tail).zip(other_tail) {
            let d = a.to_f64() - b.to_f64();
            *lane += d * d;
        }
        sum_of_lanes(lanes)
    }
}

/// For each row of `width` elements the sum of its Euclidean distances to all rows.
pub fn distances<T: Element>(x: &[T], rows: usize, width: usize, threads: usize) -> Vec<f64> {
    if width == 0 {
        return vec![0.0; rows];
    }
    let sums = par::map(threads, x.chunks(ROWS * width), |mine| {
        let mut sums = [0.0f64; ROWS];
        for other in x.chunks_exact(width) {
            for (sum, row) in sums.iter_mut().zip(mine.chunks_exact(width)) {
                *sum += distance(row, other).sqrt();
            }
        }
        sums
    });
    sums.into_iter().flatten().take(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_distances_match_a_plain_loop_for_every_number_of_rows_and_tail() {
        for (rows, width) in [(1, 1), (3, 0), (5, 31), (8, 32), (9, 33), (17, 100)] {
            let x: Vec<f32> = (0..rows * width).map(|i| ((i * 7919) % 1013) as f32 * 0.25 - 100.0).collect();
            let row = |i: usize| &x[i * width..(i + 1) * width];
            let far = |i, j| {
                let squares = row(i).iter().zip(row(j)).map(|(a, b)| f64::from(a - b).powi(2));
                squares.sum::<f64>().sqrt()
            };
            let want: Vec<f64> = (0..rows).map(|i| (0..rows).map(|j| far(i, j)).sum()).collect();
            let got = distances(&x, rows, width, 1);
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-12 * b), "{got:?} {want:?}");
            assert_eq!(got, distances(&x, rows, width, 5));
        }
    }
}

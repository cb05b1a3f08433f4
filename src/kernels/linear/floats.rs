//! Products in floats: the numbers of codes are made a few rows at a time, in a cache.

use super::{by_columns, finished};
use crate::isa::kernel;
use crate::par;
use crate::real::{Element, Real};

/// Lanes of a sum.
const SUMS: usize = 64;
/// Elements of weights that are made numbers at a time.
const PIECE: usize = 1 << 14;

#[inline(always)]
fn add_products(sums: &mut [f32; SUMS], w: &[f32; SUMS], x: &[f32; SUMS]) {
    for ((sum, w), x) in sums.iter_mut().zip(w).zip(x) {
        *sum += w * x;
    }
}

kernel! {
    /// Sums of products of rows of `w` with `x`, in lanes that are joined in halves.
    fn dots(w: &[f32], x: &[f32], out: &mut [f32]) {
        let (blocks, tail) = x.as_chunks::<SUMS>();
        let mut last = [0.0; SUMS];
        last[..tail.len()].copy_from_slice(tail);
        for (w, out) in w.chunks_exact(x.len()).zip(out) {
            let mut sums = [0.0; SUMS];
            let (w_blocks, w_tail) = w.as_chunks::<SUMS>();
            for (w, x) in w_blocks.iter().zip(blocks) {
                add_products(&mut sums, w, x);
            }
            if !tail.is_empty() {
                let mut w = [0.0; SUMS];
                w[..w_tail.len()].copy_from_slice(w_tail);
                add_products(&mut sums, &w, &last);
            }
            let mut n = SUMS / 2;
            while n > 0 {
                let (low, high) = sums.split_at_mut(n);
                for (a, b) in low.iter_mut().zip(high) {
                    *a += *b;
                }
                n /= 2;
            }
            *out = sums[0];
        }
    }
}

kernel! {
    fn widen_all<T: Element>(x: &[T], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x.load().store_as();
        }
    }
}

/// Numbers as float32.
pub fn widen<T: Element>(x: &[T]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    widen_all(x, &mut out);
    out
}

/// Multiply rows of `x` by weights of `[rows, cols]`, whose numbers `fill` writes for the rows that it is given.
pub fn multiply_floats(
    x: &[f32],
    [rows, cols]: [usize; 2],
    fill: impl Fn(&[usize], &mut [f32]) + Sync,
    bias: &[f32],
    out: &mut [f32],
    threads: usize,
) {
    if out.is_empty() {
        return;
    }
    if cols == 0 {
        for out in out.chunks_mut(rows) {
            for (i, y) in out.iter_mut().enumerate() {
                *y = finished(0.0, bias.get(i).copied().unwrap_or(0.0));
            }
        }
        return;
    }
    let together = (PIECE / cols).max(1);
    let parts = by_columns(out, rows, together);
    let scratch = || (vec![0.0; together.min(rows) * cols], vec![]);
    par::for_each_with(threads, parts.enumerate(), scratch, |(numbers, places), (part, out)| {
        let (first, n) = (part * together, out[0].len());
        places.clear();
        places.extend(first..first + n);
        let w = &mut numbers[..n * cols];
        fill(places, w);
        let bias = bias.get(first..).unwrap_or_default();
        for (x, out) in x.chunks_exact(cols).zip(out) {
            dots(w, x, out);
            for (i, y) in out.iter_mut().enumerate() {
                *y = finished(*y, bias.get(i).copied().unwrap_or(0.0));
            }
        }
    });
}

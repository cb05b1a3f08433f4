//! What the loss would change by without a slice, to first order (Molchanov et al. 2019, arXiv 1906.10771).

use crate::isa::kernel;
use crate::kernels::number::each_computed;
use crate::kernels::reduce::sum_of_lanes;
use crate::par::{self, CHUNK};
use crate::real::{Element, Real};

/// Lanes of a sum.
const LANES: usize = 32;

/// The sum of `g w` over a slice, and of its squares.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Sum of g w.
    pub plain: f64,
    /// Sum of (g w)².
    pub squares: f64,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.plain += other.plain;
        self.squares += other.squares;
    }
}

/// The sums of one piece, a lane each.
#[derive(Default)]
struct Lanes {
    plain: [f64; LANES],
    squares: [f64; LANES],
}

kernel! {
    /// Go on with the next of a piece: whole lanes, but for the last.
    fn add<A: Real, B: Real>(w: &[A], g: &[B], lanes: &mut Lanes) {
        let (mut plain, mut squares) = (lanes.plain, lanes.squares);
        let ((ws, w_tail), (gs, g_tail)) = (w.as_chunks::<LANES>(), g.as_chunks::<LANES>());
        for (w, g) in ws.iter().zip(gs) {
            for i in 0..LANES {
                let p = w[i].to_f64() * g[i].to_f64();
                plain[i] += p;
                squares[i] += p * p;
            }
        }
        (lanes.plain, lanes.squares) = (plain, squares);
        for (i, (w, g)) in w_tail.iter().zip(g_tail).enumerate() {
            let p = w.to_f64() * g.to_f64();
            lanes.plain[i] += p;
            lanes.squares[i] += p * p;
        }
    }
}

kernel! {
    /// Add part of a row to the sums of its columns.
    fn columns<A: Real, B: Real>(w: &[A], g: &[B], sums: &mut [Sums]) {
        for ((w, g), sums) in w.iter().zip(g).zip(sums) {
            let p = w.to_f64() * g.to_f64();
            sums.plain += p;
            sums.squares += p * p;
        }
    }
}

/// Memory for numbers that are widened.
type Memory<A, B> = (Vec<<A as Element>::Compute>, Vec<<B as Element>::Compute>);

/// The sums of one slice, which lies together.
fn slice<A: Element, B: Element>(w: &[A], g: &[B], memory: &mut Memory<A, B>) -> Sums {
    let mut sums = Sums::default();
    for (w, g) in w.chunks(CHUNK).zip(g.chunks(CHUNK)) {
        let mut lanes = Lanes::default();
        each_computed(w, g, memory, |w, g| add(w, g, &mut lanes));
        sums.add(Sums { plain: sum_of_lanes(lanes.plain), squares: sum_of_lanes(lanes.squares) });
    }
    sums
}

/// The sums of each of the `n` slices of the middle axis of `w` and `g`, which are (outer, n, inner).
pub fn taylor<A: Element, B: Element>(w: &[A], g: &[B], n: usize, inner: usize, threads: usize) -> Vec<Sums> {
    if w.is_empty() {
        return vec![Sums::default(); n];
    }
    let block = n * inner;
    if w.len() == block {
        let slices = (CHUNK / inner).max(1) * inner;
        let parts = par::map(threads, w.chunks(slices).zip(g.chunks(slices)), |(w, g)| {
            let mut memory = (Vec::new(), Vec::new());
            let slices = w.chunks_exact(inner).zip(g.chunks_exact(inner));
            slices.map(|(w, g)| slice(w, g, &mut memory)).collect::<Vec<_>>()
        });
        return parts.into_iter().flatten().collect();
    }
    let blocks = (CHUNK / block).max(1) * block;
    let parts = par::map(threads, w.chunks(blocks).zip(g.chunks(blocks)), |(w, g)| {
        let (mut sums, mut memory) = (vec![Sums::default(); n], (Vec::new(), Vec::new()));
        for (w, g) in w.chunks_exact(block).zip(g.chunks_exact(block)) {
            if inner == 1 {
                let mut rest = &mut sums[..];
                each_computed(w, g, &mut memory, |w, g| {
                    columns(w, g, rest.split_off_mut(..w.len()).unwrap_or_default());
                });
            } else {
                for ((w, g), sums) in w.chunks_exact(inner).zip(g.chunks_exact(inner)).zip(&mut sums) {
                    sums.add(slice(w, g, &mut memory));
                }
            }
        }
        sums
    });
    let mut total = vec![Sums::default(); n];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(total, part)| total.add(part));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_taylor_matches_a_plain_loop_for_every_split_and_number_of_threads() {
        for (outer, n, inner) in [(1, 5, 70_001), (1, 900, 33), (40, 3, 9), (5000, 17, 1), (3, 40_000, 2), (0, 4, 4)] {
            let sample = |seed: usize| {
                (0..outer * n * inner).map(|i| ((i * seed) % 127) as f32 * 0.25 - 15.0).collect::<Vec<_>>()
            };
            let (w, g) = (sample(7919), sample(104_729));
            let mut want = vec![Sums::default(); n];
            for (i, (w, g)) in w.iter().zip(&g).enumerate() {
                let p = f64::from(w * g);
                want[i / inner % n].add(Sums { plain: p, squares: p * p });
            }
            for threads in [1, 2, 5] {
                // Multiples of 1/256 below 2^53: every order of the sum is exact.
                assert_eq!(taylor(&w, &g, n, inner, threads), want, "{outer} {n} {inner}");
            }
        }
    }
}

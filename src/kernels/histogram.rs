//! Equal-width histograms, bin for bin as `numpy.histogram` counts them.

use crate::isa::kernel;
use crate::kernels::number::Number;
use crate::par::{self, CHUNK};
use crate::real::Element;

/// Elements whose bins are guessed together, in a loop that vectorises; the counting after it is scalar by nature.
const BLOCK: usize = 256;

/// The edges of equal-width bins, as `numpy.linspace` places them.
pub fn edges(low: f64, high: f64, bins: usize) -> Vec<f64> {
    let width = high - low;
    let step = width / bins as f64;
    let edge = |i: usize| if step == 0.0 { i as f64 / bins as f64 * width } else { i as f64 * step } + low;
    (0..bins).map(edge).chain([high]).collect()
}

/// The bins, and one more for what lies outside and NaN.
struct Bins {
    first: f64,
    last: f64,
    norm: f64,
    /// Below its lower edge an element belongs to the bin before.
    lower: Vec<f64>,
    /// From its upper edge on to the bin after.
    upper: Vec<f64>,
}

impl Bins {
    fn new(edges: &[f64]) -> Self {
        let bins = edges.len() - 1;
        let mut upper = edges[1..].to_vec();
        // The last bin is closed.
        upper[bins - 1] = f64::INFINITY;
        // Nothing is below or above NaN: what lies outside stays there.
        upper.push(f64::NAN);
        let mut lower = edges.to_vec();
        lower[bins] = f64::NAN;
        let (first, last) = (edges[0], edges[bins]);
        Self { first, last, norm: bins as f64 / (last - first), lower, upper }
    }
}

kernel! {
    /// The bin of each element by its place in the range, which rounding may have put one off.
    fn guess<T: Element>(x: &[T], bins: &Bins, out: &mut [u32]) {
        let outside = bins.upper.len() - 1;
        let (first, last, norm, top) = (bins.first, bins.last, bins.norm, outside as f64 - 1.0);
        for (bin, v) in out.iter_mut().zip(x) {
            let v = v.to_f64();
            let place = (v - first) * norm;
            let place = if place < top { place } else { top };
            let place = if v >= first && v <= last { place } else { outside as f64 };
            // Truncated by hand: a cast from float does not vectorise where it must saturate.
            let rounded = place + f64::from_bits(TRUNCATING);
            let whole = rounded - f64::from_bits(TRUNCATING);
            *bin = (rounded.to_bits() as u32).wrapping_sub((whole > place) as u32);
        }
    }
}

/// 1.5 x 2^52: added to a small number it leaves the rounded integer in the low bits.
const TRUNCATING: u64 = 6_755_399_441_055_744.0f64.to_bits();

/// Count the elements of `x` in the bins between `edges` (ascending, at least two; the last bin is closed).
///
/// An element's bin is computed from its place in the range and then corrected against the edges, so that rounding
/// cannot put it on the wrong side (as in NumPy). What lies outside, and NaN, is not counted.
pub fn histogram<T: Number>(x: &[T], edges: &[f64], threads: usize) -> Vec<u64> {
    let bins = &Bins::new(edges);
    let mut counts = par::count(threads, x.chunks(CHUNK), edges.len(), |counts, chunk| {
        let mut guessed = [0; BLOCK];
        let mut memory = Vec::new();
        for block in chunk.chunks(BLOCK) {
            let block = T::load(block, &mut memory);
            guess(block, bins, &mut guessed);
            for (&bin, v) in guessed.iter().zip(block) {
                let (bin, v) = (bin as usize, v.to_f64());
                counts[bin + (v >= bins.upper[bin]) as usize - (v < bins.lower[bin]) as usize] += 1;
            }
        }
    });
    counts.resize(edges.len() - 1, 0);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_edges_belong_to_the_right_bin_and_the_last_bin_is_closed() {
        let x = [0.0f32, 0.5, 1.0, 1.5, 2.0, -1.0, 2.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(histogram(&x, &[0.0, 1.0, 2.0], 2), [2, 3]);
    }

    #[test]
    fn test_every_edge_and_its_neighbours_fall_where_a_search_puts_them() {
        for (low, high, bins) in [(0.0, 1.0, 7), (-1e-3, 1e5, 1000), (3.0, 3.0 + 1e-12, 50), (-1e308, 1e-300, 3)] {
            let edges = edges(low, high, bins);
            let x: Vec<f64> = edges.iter().flat_map(|e| [e.next_down(), *e, e.next_up()]).collect();
            let mut want = vec![0; bins];
            for v in x.iter().filter(|v| (low..=high).contains(*v)) {
                want[(edges.partition_point(|e| e <= v) - 1).min(bins - 1)] += 1;
            }
            assert_eq!(histogram(&x, &edges, 2), want, "{low} {high} {bins}");
        }
    }
}

//! Equal-width histograms, bin for bin as `numpy.histogram` counts them.

use crate::par::{self, CHUNK};
use crate::real::Element;

/// Count the elements of `x` in the bins between `edges` (ascending, at least two; the last bin is closed).
///
/// An element's bin is computed from its place in the range and then corrected against the edges, so that rounding
/// cannot put it on the wrong side (as in NumPy). What lies outside, and NaN, is not counted.
pub fn histogram<T: Element>(x: &[T], edges: &[f64], threads: usize) -> Vec<u64> {
    let bins = edges.len() - 1;
    let (first, last) = (edges[0], edges[bins]);
    let norm = bins as f64 / (last - first);
    let count = |counts: &mut Vec<u64>, chunk: &[T]| {
        for v in chunk {
            let v = v.to_f64();
            if v >= first && v <= last {
                let mut bin = (((v - first) * norm) as usize).min(bins - 1);
                if v < edges[bin] {
                    bin -= 1;
                } else if v >= edges[bin + 1] && bin + 1 < bins {
                    bin += 1;
                }
                counts[bin] += 1;
            }
        }
    };
    let mut all = vec![0; bins];
    for counts in par::fold(threads, x.chunks(CHUNK), || vec![0u64; bins], count) {
        all.iter_mut().zip(counts).for_each(|(a, c)| *a += c);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_edges_belong_to_the_right_bin_and_the_last_bin_is_closed() {
        let x = [0.0f32, 0.5, 1.0, 1.5, 2.0, -1.0, 2.5, f32::NAN];
        assert_eq!(histogram(&x, &[0.0, 1.0, 2.0], 2), [2, 3]);
    }
}

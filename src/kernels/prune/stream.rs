//! Pruning by one ranking of weights that come in pieces: count digits of their keys, piece by piece and pass by pass, until
//! the key of the last that goes is known to its last bit; then cut each piece by it.
//!
//! Counts add up over pieces, so however the weights are cut the key is that of all together, as `select` finds it in one
//! array.

use std::sync::atomic::{AtomicBool, Ordering};

use super::block::BLOCK;
use super::score::fill;
use super::whole::keep_lists;
use super::{Job, Output, Score};
pub use crate::kernels::select::Digit;
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// Bits of a digit at most: counters for the L2 cache.
pub const MAX_WIDTH: u32 = 16;

/// Add to `counts` how many keys have each value of the digit. Whether any key is NaN's.
pub fn count<T: Element, S: Score<T>>(x: &[T], score: S, digit: Digit, counts: &mut [i64], threads: usize) -> bool {
    let first = S::Key::MAX.to_u64() >> digit.shift < digit.bins() as u64;
    let nan = AtomicBool::new(false);
    let more = par::count(threads, x.chunks(CHUNK), digit.counters(first), |counts, chunk| {
        let mut keys = [S::Key::ZERO; BLOCK];
        for block in chunk.chunks(BLOCK) {
            let keys = &mut keys[..block.len()];
            if fill(block, score, 0, keys) > S::INFINITY {
                nan.store(true, Ordering::Relaxed);
            }
            digit.count(first, keys, Key::to_u64, counts);
        }
    });
    for (count, more) in counts.iter_mut().zip(digit.totals(first, &more)) {
        *count += more as i64;
    }
    nan.into_inner()
}

/// Weights whose key is below `key` go, and the first `ties` of those that have it. How many of these there were to go.
pub fn cut<T: Element, S: Score<T>, O: Output<T>>(
    job: Job<'_, T, O>,
    score: S,
    key: u64,
    ties: u64,
    threads: usize,
) -> u64 {
    let key = S::Wide::from_bits64(key).magnitude();
    keep_lists(vec![job], score, (key - S::Key::ONE, ties), threads).gone
}

#[cfg(test)]
mod tests {
    use super::super::score::{Computed, Double};
    use super::super::{Magnitude, Weights, magnitude};
    use super::*;
    use crate::real::{Bf16, F16};

    fn sample<T: Element>(n: usize, levels: u32) -> Vec<T> {
        let mut state = 0x2545_f491_u32;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            T::store_f64((state % levels) as f64 - levels as f64 / 2.5)
        };
        (0..n).map(next).collect()
    }

    /// The key of the weight of `rank`, and how many with this key go up to it.
    fn find<T: Element, S: Score<T>>(pieces: &[&[T]], score: S, bits: u32, rank: u64) -> (u64, u64) {
        let (mut prefix, mut shift, mut rank) = (0, bits - 1, rank);
        while shift > 0 {
            let width = shift.min(MAX_WIDTH - 1);
            shift -= width;
            let mut counts = vec![0; 1 << width];
            for piece in pieces {
                assert!(!count(piece, score, Digit { prefix, shift, width }, &mut counts, 2));
            }
            let mut value = 0;
            let counts: Vec<u64> = counts.iter().map(|&count: &i64| count as u64).collect();
            while rank >= counts[value] {
                rank -= counts[value];
                value += 1;
            }
            prefix = (prefix << width) | value as u64;
        }
        (prefix, rank + 1)
    }

    fn check<T: Element, S: Score<T>>(score: S, bits: u32) {
        for levels in [3, 1000, u32::MAX] {
            let x = sample::<T>(2 * CHUNK + 777, levels);
            for prune in [1, x.len() / 3, x.len()] {
                let mut want = x.clone();
                magnitude(vec![Job::<T, Weights> { x: None, out: &mut want }], prune as u64, 2);
                for size in [999, CHUNK + 1] {
                    let pieces: Vec<&[T]> = x.chunks(size).collect();
                    let (key, mut ties) = find(&pieces, score, bits, prune as u64 - 1);
                    let mut got = vec![T::from_bits64(0); x.len()];
                    for (x, out) in pieces.iter().zip(got.chunks_mut(size)) {
                        ties -= cut(Job::<T, Weights> { x: Some(x), out }, score, key, ties, 2);
                    }
                    assert_eq!(ties, 0);
                    assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits64() == b.to_bits64()), "{levels} {prune}");
                }
            }
        }
    }

    #[test]
    fn test_pieces_are_pruned_as_one_array_for_every_dtype_and_key() {
        check::<f32, _>(Magnitude, 32);
        check::<f64, _>(Magnitude, 64);
        check::<F16, _>(Magnitude, 16);
        check::<Bf16, _>(Magnitude, 16);
        check::<F16, _>(Computed, 32);
        check::<Bf16, _>(Computed, 32);
        check::<Bf16, _>(Double, 64);
        check::<f32, _>(Double, 64);
    }

    #[test]
    fn test_nan_is_told_in_each_key() {
        let x = [F16::store_f64(1.0), F16::store_f64(f64::NAN)];
        let digit = |shift| Digit { prefix: 0, shift, width: 15 };
        let mut counts = vec![0; 1 << 15];
        assert!(count(&x, Magnitude, digit(0), &mut counts, 1));
        assert!(count(&x, Computed, digit(16), &mut counts, 1));
        assert!(count(&x, Double, digit(48), &mut counts, 1));
        assert!(!count(&x[..1], Double, digit(48), &mut counts, 1));
        assert!(!count::<f32, _>(&[], Magnitude, digit(16), &mut counts, 1));
        assert_eq!(counts.iter().sum::<i64>(), 7);
    }
}

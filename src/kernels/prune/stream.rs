//! Pruning by one ranking of weights that come in pieces: count digits of their keys, piece by piece and pass by pass, until
//! the key of the last that goes is known to its last bit; then cut each piece by it.
//!
//! Counts add up over pieces, so however the weights are cut the key is that of all together, as `select` finds it in one
//! array.

use std::sync::atomic::{AtomicBool, Ordering};

use super::block::BLOCK;
use super::whole::{drop_ties, keep_all};
use super::{Job, Output, Score};
use crate::isa::kernel;
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// Bits of a digit at most: counters for the L2 cache.
pub const MAX_WIDTH: u32 = 16;

/// Counters for each value of the first digit, used in turn (see `select`).
const TURNS: usize = 4;

/// Counters, used in turn, for keys without the prefix.
const ELSEWHERE: usize = 16;

/// Which bits of a key are counted: `width` bits above `shift`, of the keys that have `prefix` above them.
#[derive(Debug, Clone, Copy)]
pub struct Digit {
    /// The bits above the digit.
    pub prefix: u64,
    /// How many bits are below it.
    pub shift: u32,
    /// Its own bits, at most `MAX_WIDTH`.
    pub width: u32,
}

kernel! {
    /// The keys of a block, and the largest.
    fn fill<T: Element, S: Score<T>>(x: &[T], score: S, keys: &mut [S::Key]) -> S::Key {
        score.keys(x, 0, keys);
        let mut largest = S::Key::ZERO;
        for &key in keys.iter() {
            largest = largest.max(key);
        }
        largest
    }
}

impl Digit {
    /// Count the digit of all keys: nothing is above it.
    fn count_all<K: Key>(self, keys: &[K], counts: &mut [u64]) {
        let (blocks, tail) = keys.as_chunks::<TURNS>();
        for block in blocks {
            for turn in 0..TURNS {
                counts[(block[turn].to_u64() >> self.shift) as usize * TURNS + turn] += 1;
            }
        }
        for key in tail {
            counts[(key.to_u64() >> self.shift) as usize * TURNS] += 1;
        }
    }

    /// Count the digit of those keys that have the prefix.
    fn count_some<K: Key>(self, keys: &[K], counts: &mut [u64]) {
        let bins = 1usize << self.width;
        for (i, key) in keys.iter().enumerate() {
            // Of the keys with the prefix nothing but the digit is left; all others are larger than any digit.
            let value = (key.to_u64() >> self.shift) ^ (self.prefix << self.width);
            counts[if value < bins as u64 { value as usize } else { bins + i % ELSEWHERE }] += 1;
        }
    }
}

/// Add to `counts` how many keys have each value of the digit. Whether any key is NaN's.
pub fn count<T: Element, S: Score<T>>(x: &[T], score: S, digit: Digit, counts: &mut [i64], threads: usize) -> bool {
    let bins = 1usize << digit.width;
    let first = S::Key::MAX.to_u64() >> digit.shift < bins as u64;
    let (turns, elsewhere) = if first { (TURNS, 0) } else { (1, ELSEWHERE) };
    let nan = AtomicBool::new(false);
    let more = par::count(threads, x.chunks(CHUNK), bins * turns + elsewhere, |counts, chunk| {
        let mut keys = [S::Key::ZERO; BLOCK];
        for block in chunk.chunks(BLOCK) {
            let keys = &mut keys[..block.len()];
            if fill(block, score, keys) > S::INFINITY {
                nan.store(true, Ordering::Relaxed);
            }
            if first { digit.count_all(keys, counts) } else { digit.count_some(keys, counts) }
        }
    });
    for (count, turns) in counts.iter_mut().zip(more.chunks(turns)) {
        *count += turns.iter().sum::<u64>() as i64;
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
    let mut pieces: Vec<Job<'_, T, O>> = job.pieces(CHUNK).collect();
    let equal = keep_all(&mut pieces, score, key - S::Key::ONE, threads).0;
    drop_ties(pieces, score, &equal, (key, ties), threads);
    ties.min(equal.iter().sum())
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

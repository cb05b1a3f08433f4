//! One rank of a long array in one vector pass: a sample says between which two keys it must lie, the pass counts what is
//! below them and collects the few between (Floyd and Rivest 1975, "Expected time bounds for selection").
//!
//! The answer is exact whatever the sample: where the rank is not between the keys, or too many keys are, the caller
//! counts digits instead. (Counting digits takes two passes of scalar increments, 5 times as long.)

use super::Found;
use crate::isa::{self, kernel};
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// The sample of a shorter array would say too little.
const SHORTEST: usize = 1 << 21;

/// Distance of the elements of the sample. Odd and prime, so that it meets all columns of a matrix in turn.
const STRIDE: usize = 257;

/// Half the width of the bracket, in standard deviations of a rank in the sample: one in 370 samples misses.
const DEVIATIONS: f64 = 3.0;

/// The largest share of keys that may be in the bracket.
const MOST: f64 = 1.0 / 16.0;

/// Elements of which one thread takes the sample: memory answers several threads faster than one.
const SAMPLED: usize = STRIDE << 10;

/// Elements that are looked at together.
const BLOCK: usize = 512;

/// Lanes in which they are counted.
const LANES: usize = 32;

/// How far ahead memory is asked for, in bytes. (0.72 of the time of the whole, with lanes: one thread, 16 M float32.)
const AHEAD: usize = 2048;

/// Of keys from several lists one is found by this many bits of them, which several threads count, then among few.
const BITS: u32 = 12;

/// Lists that one thread looks at together.
const LISTS: usize = 32;

/// The magnitudes that a rank may have.
#[derive(Clone, Copy)]
struct Bracket<K> {
    low: K,
    high: K,
}

/// The bracket of the magnitude of a rank among `n`, from a sample.
fn sample<T: Element>(x: &[&[T]], n: usize, rank: u64, threads: usize) -> Option<Bracket<T::Key>> {
    let parts: Vec<&[T]> = x.iter().flat_map(|x| x.chunks(SAMPLED)).collect();
    let taken = par::map(threads, parts.into_iter(), |part| {
        part.iter().step_by(STRIDE).map(|v| v.magnitude()).collect::<Vec<_>>()
    });
    let m = taken.iter().map(Vec::len).sum::<usize>() as f64;
    let share = rank as f64 / n as f64;
    let middle = share * m;
    let half = DEVIATIONS * (m * share * (1.0 - share)).sqrt() + 8.0;
    let (low, high) = ((middle - half).floor(), (middle + half).ceil());
    let all = Bracket { low: T::Key::ZERO, high: T::Key::MAX };
    let find = |place: f64| nth(&taken, all, place.clamp(0.0, m - 1.0) as u64, threads);
    let (low, below) = if low < 0.0 {
        (T::Key::ZERO, 0)
    } else {
        let found = find(low);
        (found.key, found.below)
    };
    let (high, up_to) = if high >= m {
        (T::Key::MAX, m as u64)
    } else {
        let found = find(high);
        (found.key, found.below + found.equal)
    };
    (low == high || (up_to - below) as f64 <= MOST * m).then_some(Bracket { low, high })
}

/// The key of a rank.
struct Nth<K> {
    key: K,
    /// Keys below it.
    below: u64,
    /// Keys like it, with itself.
    equal: u64,
}

/// The key of a 0-based rank among those of all lists, which lie in the bracket.
///
/// (By several threads: selected in one list by one thread, no number of threads made this part shorter.)
fn nth<K: Key>(lists: &[Vec<K>], bracket: Bracket<K>, rank: u64, threads: usize) -> Nth<K> {
    let width = u64::BITS - (bracket.high - bracket.low).to_u64().leading_zeros();
    let shift = width.saturating_sub(BITS);
    let digit = |key: K| ((key - bracket.low).to_u64() >> shift) as usize;
    let counts = par::count(threads, lists.chunks(LISTS), 1 << BITS, |counts, lists| {
        for &key in lists.iter().flatten() {
            counts[digit(key)] += 1;
        }
    });
    let (mut place, mut below) = (0, 0);
    while below + counts[place] <= rank {
        below += counts[place];
        place += 1;
    }
    let few = par::map(threads, lists.chunks(LISTS), |lists| {
        lists.iter().flatten().copied().filter(|&key| digit(key) == place).collect::<Vec<_>>()
    });
    let mut keys = few.concat();
    let key = *keys.select_nth_unstable((rank - below) as usize).1;
    let less = keys.iter().filter(|&&other| other < key).count() as u64;
    let equal = keys.iter().filter(|&&other| other == key).count() as u64;
    Nth { key, below: below + less, equal }
}

kernel! {
    /// How many magnitudes are below the bracket and how many equal to its lowest; those within, in `found`.
    fn look<T: Element>(x: &[T], bracket: Bracket<T::Key>, found: &mut Vec<T::Key>) -> [u64; 2] {
        let Bracket { low, high } = bracket;
        let (mut keys, mut flags) = ([T::Key::ZERO; BLOCK], [0u8; BLOCK]);
        // No lane sees more than a chunk by LANES: keys of 16 bits can count that.
        let (mut less, mut same) = ([T::Key::ZERO; LANES], [T::Key::ZERO; LANES]);
        for x in x.chunks(BLOCK) {
            let (parts, rest) = x.as_chunks::<LANES>();
            let (key_parts, flag_parts) = (keys.as_chunks_mut::<LANES>().0, flags.as_chunks_mut::<LANES>().0);
            for ((x, keys), flags) in parts.iter().zip(&mut *key_parts).zip(&mut *flag_parts) {
                isa::prefetch::<false, _>(x, AHEAD / size_of::<T>());
                for i in 0..LANES {
                    let key = x[i].magnitude();
                    less[i] = less[i] + if key < low { T::Key::ONE } else { T::Key::ZERO };
                    same[i] = same[i] + if key == low { T::Key::ONE } else { T::Key::ZERO };
                    (keys[i], flags[i]) = (key, (key >= low && key <= high) as u8);
                }
            }
            if !rest.is_empty() {
                let (keys, flags) = (&mut key_parts[parts.len()], &mut flag_parts[parts.len()]);
                *flags = [0; LANES];
                for (i, x) in rest.iter().enumerate() {
                    let key = x.magnitude();
                    less[0] = less[0] + if key < low { T::Key::ONE } else { T::Key::ZERO };
                    same[0] = same[0] + if key == low { T::Key::ONE } else { T::Key::ZERO };
                    (keys[i], flags[i]) = (key, (key >= low && key <= high) as u8);
                }
            }
            let n = x.len().next_multiple_of(LANES);
            let (keys, flags) = (&keys[..n], &flags[..n]);
            if low == high {
                continue;
            }
            for (keys, eight) in keys.chunks(8).zip(flags.as_chunks::<8>().0) {
                // Few keys are in the bracket: eight at a time are passed by, and seldom two of them are in it.
                let mut left = u64::from_le_bytes(*eight);
                while left != 0 {
                    found.push(keys[left.trailing_zeros() as usize / 8]);
                    left &= left - 1;
                }
            }
        }
        [less, same].map(|lanes| lanes.into_iter().map(Key::to_u64).sum())
    }
}

/// The element of a 0-based rank by magnitude among all arrays, if a sample helps.
pub(super) fn by_magnitude<T: Element>(x: &[&[T]], n: usize, rank: u64, threads: usize) -> Option<Found<T>> {
    if n < SHORTEST {
        return None;
    }
    let bracket = sample(x, n, rank, threads)?;
    let chunks: Vec<&[T]> = x.iter().flat_map(|x| x.chunks(CHUNK)).collect();
    let seen = par::map(threads, chunks.into_iter(), |chunk| {
        let mut found = Vec::new();
        (look(chunk, bracket, &mut found), found)
    });
    let total = |i: usize| seen.iter().map(|(counts, _)| counts[i]).sum::<u64>();
    let within = rank.checked_sub(total(0))?;
    if bracket.low == bracket.high {
        let equal = total(1);
        return (within < equal).then(|| Found { value: T::from_key(bracket.low), before: within, equal });
    }
    let found: Vec<_> = seen.into_iter().map(|(_, found)| found).collect();
    if within >= found.iter().map(Vec::len).sum::<usize>() as u64 {
        return None;
    }
    let Nth { key, below, equal } = nth(&found, bracket, within, threads);
    Some(Found { value: T::from_key(key), before: within - below, equal })
}

#[cfg(test)]
mod tests {
    use super::super::{Order, select};
    use super::*;
    use crate::real::{Bf16, F16};

    fn check<T: Element + PartialEq + std::fmt::Debug>(make: impl Fn(u32) -> f64, helps: bool) {
        let mut state = 0x2545_f491_u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        let n = SHORTEST + 12_345;
        let x: Vec<T> = (0..n).map(|_| T::store_f64(make(next()))).collect();
        let parts = x.split_at(n / 3);
        let mut sorted: Vec<_> = x.iter().map(|v| v.magnitude()).collect();
        sorted.sort_unstable();
        for rank in [0, 1, 20, n / 97, n / 3, n / 2, n - 2, n - 1] {
            let found = by_magnitude(&[parts.0, parts.1], n, rank as u64, 3);
            assert!(found.is_some() || !helps, "{rank}");
            let key = sorted[rank];
            let lower = sorted.partition_point(|&other| other < key);
            let equal = sorted.partition_point(|&other| other <= key) - lower;
            let want = Found { value: T::from_key(key), before: (rank - lower) as u64, equal: equal as u64 };
            assert_eq!(found.unwrap_or(want), want, "{rank}");
            assert_eq!(select(&[parts.0, parts.1], Order::Magnitude, &[rank as u64], 2), [want], "{rank}");
        }
    }

    #[test]
    fn test_a_rank_by_sample_is_exact_for_every_dtype_and_with_ties() {
        check::<f32>(|r| f64::from(r as i32), true);
        check::<f64>(|r| f64::from(r as i32) * 1e-9, true);
        check::<F16>(|r| f64::from(r as i32) * 1e-5, false);
        check::<Bf16>(|r| f64::from(r as i32), false);
        check::<f32>(|r| if r % 5 < 3 { 0.0 } else { f64::from(r) }, false);
        check::<f32>(|r| f64::from(r % 7), false);
        check::<f32>(|_| 1.0, false);
    }

    #[test]
    fn test_a_key_of_many_lists_is_that_of_all_sorted() {
        let mut state = 88_172_645_463_325_252_u64;
        for (width, lists, length) in [(3, 1, 1), (3, 70, 5), (13, 3, 100), (31, 100, 300), (31, 5, 0), (20, 33, 7)] {
            let (low, span) = (5, (1u64 << width) - 1);
            let mut list = |_| {
                let key = |_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    low + ((state >> 33) & span).min(span - 5) as i32
                };
                (0..length).map(key).collect::<Vec<i32>>()
            };
            let lists: Vec<_> = (0..lists).map(&mut list).collect();
            let mut sorted = lists.concat();
            sorted.sort_unstable();
            for (rank, &key) in sorted.iter().enumerate().step_by(97) {
                let bracket = Bracket { low, high: low + (span - 5) as i32 };
                let found = nth(&lists, bracket, rank as u64, 3);
                let below = sorted.partition_point(|&other| other < key);
                let equal = sorted.partition_point(|&other| other <= key) - below;
                assert_eq!((found.key, found.below, found.equal), (key, below as u64, equal as u64));
            }
        }
    }

    #[test]
    fn test_a_misleading_sample_is_noticed() {
        // Every element of the sample is large, all others are small.
        let n = 2 * SHORTEST;
        let x: Vec<f32> = (0..n).map(|i| if i % STRIDE == 0 { 1e6 + i as f32 } else { i as f32 }).collect();
        assert_eq!(by_magnitude(&[&x], n, n as u64 / 2, 2), None);
        let found = select(&[&x], Order::Magnitude, &[n as u64 / 2], 2)[0].value;
        assert!((n as f32 / 2.0 - found).abs() < n as f32 / 100.0, "{found}");
    }
}

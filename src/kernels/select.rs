//! Exact order statistics by radix selection over the bits: no sort, no copy of the array.
//!
//! The top digit of every key is counted; the bin that holds the wanted rank is then split by its next bits, in another
//! pass that counts the keys of that bin. Two passes serve a long float32 array (15 + 17 bits), one 16 bits, four float64; a short
//! array takes narrower digits, because clearing the counters would take longer than counting. Counts are exact, so
//! neither threads nor instruction sets matter. The counting loops are scalar by nature; one magnitude of a long array is
//! found without them, by a sample (`bracket`).

mod bracket;

use crate::par::{self, CHUNK};
use crate::real::Element;

/// Bits of the first digit at most: many counters, but the keys of most arrays keep to few of them.
const FIRST: u32 = 15;

/// Bits of a later digit at most: counters for the L2 cache. (13 + 19 bits instead: 1.3 times as long.)
const LATER: u32 = 17;

/// Counters for each value of the first digit, used in turn: keys crowd around few exponents, and a counter that was
/// just written is slow to read again (measured: 0.6 of the time with one).
const TURNS: usize = 4;

/// Counters, used in turn, for the keys that a later pass leaves out: counting them somewhere is faster than a branch
/// that is mispredicted for each key of the bin (0.5 of the time).
const ELSEWHERE: usize = 16;

/// Bits of a digit, of which `most` are allowed, for an array of `n` elements.
fn width(n: usize, most: u32) -> u32 {
    n.max(1).ilog2().clamp(6, most)
}

/// How elements are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By value.
    Value,
    /// By magnitude; NaN last.
    Magnitude,
    /// The bits as a signed integer: elements that carry integers.
    Signed,
    /// The bits as an unsigned integer.
    Unsigned,
}

/// The element's place in the order as an unsigned integer of `T::BITS` bits.
#[inline(always)]
fn rank_bits<T: Element>(x: T, order: Order) -> u64 {
    let bits = x.to_bits64();
    let top = 1u64 << (T::BITS - 1);
    match order {
        Order::Magnitude => bits & (top - 1),
        Order::Value => {
            // All bits of a negative number are turned, of another only the sign; without a branch on the sign.
            let negative = (bits >> (T::BITS - 1)).wrapping_neg();
            bits ^ ((negative & (top - 1)) | top)
        }
        Order::Signed => bits ^ top,
        Order::Unsigned => bits,
    }
}

/// The element of a place in the order.
fn from_rank_bits<T: Element>(rank: u64, order: Order) -> T {
    let top = 1u64 << (T::BITS - 1);
    T::from_bits64(match order {
        Order::Magnitude | Order::Unsigned => rank,
        Order::Signed => rank ^ top,
        Order::Value if rank & top != 0 => rank & (top - 1),
        Order::Value => !rank & (top | (top - 1)),
    })
}

/// Which bits of a key are counted: `width` bits above `shift`, of the keys that have `prefix` above them.
#[derive(Debug, Clone, Copy)]
pub struct Digit {
    /// The bits above the digit.
    pub prefix: u64,
    /// How many bits are below it.
    pub shift: u32,
    /// Its own bits.
    pub width: u32,
}

impl Digit {
    /// Its values.
    pub fn bins(self) -> usize {
        1 << self.width
    }

    /// How many counters are needed; `first`: nothing is above the digit.
    pub fn counters(self, first: bool) -> usize {
        if first { self.bins() * TURNS } else { self.bins() + ELSEWHERE }
    }

    /// Count the digit of the keys of a chunk, those that have the prefix (all, if it is the first).
    #[inline(always)]
    pub fn count<T: Copy>(self, first: bool, chunk: &[T], key: impl Fn(T) -> u64, counts: &mut [u64]) {
        if first {
            let (blocks, tail) = chunk.as_chunks::<TURNS>();
            for block in blocks {
                for turn in 0..TURNS {
                    counts[(key(block[turn]) >> self.shift) as usize * TURNS + turn] += 1;
                }
            }
            for &v in tail {
                counts[(key(v) >> self.shift) as usize * TURNS] += 1;
            }
            return;
        }
        let bins = self.bins();
        for (i, &v) in chunk.iter().enumerate() {
            // Of the keys with the prefix nothing but the digit is left; all others are larger than any digit.
            let digit = (key(v) >> self.shift) ^ (self.prefix << self.width);
            let place = if digit < bins as u64 { digit as usize } else { bins + i % ELSEWHERE };
            counts[place] += 1;
        }
    }

    /// How many keys have each value of the digit, from the counters.
    pub fn totals(self, first: bool, counts: &[u64]) -> impl Iterator<Item = u64> {
        counts.chunks(if first { TURNS } else { 1 }).take(self.bins()).map(|turns| turns.iter().sum())
    }

    /// How many elements have each value of the digit.
    fn count_elements<T: Element>(self, x: &[&[T]], order: Order, threads: usize) -> Vec<u64> {
        let first = self.shift + self.width == T::BITS;
        let chunks: Vec<&[T]> = x.iter().flat_map(|x| x.chunks(CHUNK)).collect();
        // By name, so that the loops are compiled for each order.
        let counts = par::count(threads, chunks.into_iter(), self.counters(first), |counts, chunk| match order {
            Order::Value => self.count(first, chunk, |v| rank_bits(v, Order::Value), counts),
            Order::Magnitude => self.count(first, chunk, |v| rank_bits(v, Order::Magnitude), counts),
            Order::Signed => self.count(first, chunk, |v| rank_bits(v, Order::Signed), counts),
            Order::Unsigned => self.count(first, chunk, |v| rank_bits(v, Order::Unsigned), counts),
        });
        self.totals(first, &counts).collect()
    }
}

/// An element of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<T> {
    /// The element.
    pub value: T,
    /// How many elements have the same key and a lower rank.
    pub before: u64,
    /// How many elements have the same key, this one among them.
    pub equal: u64,
}

/// The elements of the given 0-based ranks (each below the length of all arrays together), in the order of `ranks`.
pub fn select<T: Element>(x: &[&[T]], order: Order, ranks: &[u64], threads: usize) -> Vec<Found<T>> {
    if let (&[rank], Order::Magnitude) = (ranks, order)
        && let Some(found) = bracket::by_magnitude(x, length(x), rank, threads)
    {
        return vec![found];
    }
    let nothing = Found { value: from_rank_bits(0, order), before: 0, equal: 0 };
    let mut found = vec![nothing; ranks.len()];
    let wanted: Vec<(usize, u64)> = ranks.iter().copied().enumerate().collect();
    let first = width(length(x), if T::BITS == 16 { 16 } else { FIRST });
    let digit = Digit { prefix: 0, shift: T::BITS - first, width: first };
    split(x, (order, digit), &wanted, &mut found, threads);
    found
}

fn length<T>(x: &[&[T]]) -> usize {
    x.iter().map(|x| x.len()).sum()
}

/// The bytes of the given ranks; `flipped`: 128 for signed ones, as whose bits they come and go.
pub fn select_bytes(x: &[i8], flipped: u8, ranks: &[u64], threads: usize) -> Vec<i8> {
    let counts = par::count(threads, x.chunks(CHUNK), 256 * TURNS, |counts, chunk| {
        for (i, &v) in chunk.iter().enumerate() {
            counts[(v as u8 ^ flipped) as usize * TURNS + i % TURNS] += 1;
        }
    });
    let mut ends: Vec<u64> = counts.chunks(TURNS).map(|turns| turns.iter().sum()).collect();
    for i in 1..ends.len() {
        ends[i] += ends[i - 1];
    }
    ranks.iter().map(|&rank| (ends.partition_point(|&end| end <= rank) as u8 ^ flipped) as i8).collect()
}

/// Find `wanted` (index into `found`, rank among the keys of the prefix) by this digit, then the next.
fn split<T: Element>(
    x: &[&[T]],
    (order, digit): (Order, Digit),
    wanted: &[(usize, u64)],
    found: &mut [Found<T>],
    threads: usize,
) {
    let mut before = 0u64;
    for (value, count) in digit.count_elements(x, order, threads).into_iter().enumerate() {
        if count == 0 {
            continue;
        }
        let inside: Vec<(usize, u64)> = wanted
            .iter()
            .filter(|(_, rank)| (before..before + count).contains(rank))
            .map(|&(i, rank)| (i, rank - before))
            .collect();
        before += count;
        if inside.is_empty() {
            continue;
        }
        let prefix = (digit.prefix << digit.width) | value as u64;
        if digit.shift == 0 {
            for &(i, rank) in &inside {
                found[i] = Found { value: from_rank_bits(prefix, order), before: rank, equal: count };
            }
        } else {
            // Equal digits, so that the last is no shorter than it must be: 51 bits are 17 + 17 + 17.
            let width = digit.shift.div_ceil(digit.shift.div_ceil(width(length(x), LATER)));
            split(x, (order, Digit { prefix, shift: digit.shift - width, width }), &inside, found, threads);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::{Bf16, F16};

    fn sample(n: usize) -> Vec<f64> {
        let mut state = 88_172_645_463_325_252_u64;
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state as i64 >> 20) as f64 * 1e-9
            })
            .collect()
    }

    fn check<T: Element + PartialEq + std::fmt::Debug>(x: &[T]) {
        let ranks: Vec<u64> = (0..x.len() as u64).step_by(97).chain([x.len() as u64 - 1]).collect();
        for order in [Order::Value, Order::Magnitude, Order::Signed, Order::Unsigned] {
            let mut sorted = x.to_vec();
            sorted.sort_by_key(|&v| rank_bits(v, order));
            for threads in [1, 3] {
                // In two arrays, as if they were one.
                let parts = x.split_at(x.len() / 3);
                for (got, &rank) in select(&[parts.0, parts.1], order, &ranks, threads).into_iter().zip(&ranks) {
                    assert_eq!(got.value.to_f64().abs(), sorted[rank as usize].to_f64().abs(), "{order:?} {rank}");
                    let key = rank_bits(got.value, order);
                    let lower = sorted.iter().filter(|&&v| rank_bits(v, order) < key).count() as u64;
                    let equal = sorted.iter().filter(|&&v| rank_bits(v, order) == key).count() as u64;
                    assert_eq!((got.before, got.equal), (rank - lower, equal), "{order:?} {rank}");
                }
            }
        }
    }

    #[test]
    fn test_select_matches_sort_for_every_dtype() {
        let x = sample(1000);
        check(&x);
        check(&x.iter().map(|&v| v as f32).collect::<Vec<_>>());
        check(&x.iter().map(|&v| F16::store_f64(v)).collect::<Vec<_>>());
        check(&x.iter().map(|&v| Bf16::store_f64(v)).collect::<Vec<_>>());
        check(&[1.0f32; 100]);
    }

    #[test]
    fn test_value_order_has_negative_numbers_first_and_keeps_signs() {
        let x = [3.0f32, -1.0, f32::NEG_INFINITY, -0.0, 2.0];
        let values = |order, ranks: &[u64]| select(&[&x], order, ranks, 1).iter().map(|v| v.value).collect::<Vec<_>>();
        assert_eq!(values(Order::Value, &[0, 1, 3, 4]), [f32::NEG_INFINITY, -1.0, 2.0, 3.0]);
        assert_eq!(values(Order::Magnitude, &[1, 4]), [1.0, f32::INFINITY]);
    }
}

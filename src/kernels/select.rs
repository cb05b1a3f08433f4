//! Exact order statistics by radix selection over the bits: no sort, no copy of the array.
//!
//! The top 13 bits of every key are counted; the bin that holds the wanted rank is then split by its next bits, in
//! another pass that only counts the keys of that bin. Two passes serve float32 (13 + 19 bits), four float64.
//! Counts are exact, so neither threads nor instruction sets matter. The counting loop is scalar by nature.

use crate::par::{self, CHUNK};
use crate::real::Element;

/// Bits of the first digit: 8,192 counters of 4 bytes fit the L1 cache.
const FIRST: u32 = 13;

/// Bits of a later digit at most: its counters are touched by few keys.
const LATER: u32 = 19;

/// How elements are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By value.
    Value,
    /// By magnitude; NaN last.
    Magnitude,
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
    }
}

/// The element of a place in the order.
fn from_rank_bits<T: Element>(rank: u64, order: Order) -> T {
    let top = 1u64 << (T::BITS - 1);
    T::from_bits64(match order {
        Order::Magnitude => rank,
        Order::Value if rank & top != 0 => rank & (top - 1),
        Order::Value => !rank & (top | (top - 1)),
    })
}

/// Count the digit of `width` bits above `shift` of the keys whose bits above the digit equal `prefix`.
fn count_digit<T: Element>(x: &[T], order: Order, prefix: u64, shift: u32, width: u32, threads: usize) -> Vec<u64> {
    let bins = 1usize << width;
    let mask = bins as u64 - 1;
    let all = shift + width == T::BITS;
    let states = par::fold(
        threads,
        x.chunks(CHUNK),
        || vec![0u64; bins],
        |counts, chunk| {
            for &v in chunk {
                let digits = rank_bits(v, order) >> shift;
                if all || digits >> width == prefix {
                    counts[(digits & mask) as usize] += 1;
                }
            }
        },
    );
    states
        .into_iter()
        .reduce(|mut a, b| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        })
        .unwrap_or_else(|| vec![0; bins])
}

/// The elements of the given 0-based ranks (each below the length), in the order of `ranks`.
pub fn select<T: Element>(x: &[T], order: Order, ranks: &[u64], threads: usize) -> Vec<T> {
    let mut found = vec![from_rank_bits(0, order); ranks.len()];
    let wanted: Vec<(usize, u64)> = ranks.iter().copied().enumerate().collect();
    let first = FIRST.min(T::BITS);
    split(x, order, 0, T::BITS - first, first, &wanted, &mut found, threads);
    found
}

/// Find `wanted` (index into `found`, rank among the keys of `prefix`) by the digit above `shift`, then the next.
#[allow(clippy::too_many_arguments, reason = "one recursive step: its place in the key and what it looks for")]
fn split<T: Element>(
    x: &[T],
    order: Order,
    prefix: u64,
    shift: u32,
    width: u32,
    wanted: &[(usize, u64)],
    found: &mut [T],
    threads: usize,
) {
    let counts = count_digit(x, order, prefix, shift, width, threads);
    let mut before = 0u64;
    for (digit, &count) in counts.iter().enumerate() {
        let inside: Vec<(usize, u64)> = wanted
            .iter()
            .filter(|(_, rank)| (before..before + count).contains(rank))
            .map(|&(i, rank)| (i, rank - before))
            .collect();
        before += count;
        if inside.is_empty() {
            continue;
        }
        let path = (prefix << width) | digit as u64;
        if shift == 0 {
            for &(i, _) in &inside {
                found[i] = from_rank_bits(path, order);
            }
        } else {
            // Equal digits, so that the last is no shorter than it must be: 51 bits are 17 + 17 + 17.
            let next = shift.div_ceil(shift.div_ceil(LATER));
            split(x, order, path, shift - next, next, &inside, found, threads);
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
        for order in [Order::Value, Order::Magnitude] {
            let mut sorted = x.to_vec();
            sorted.sort_by_key(|&v| rank_bits(v, order));
            for threads in [1, 3] {
                for (got, &rank) in select(x, order, &ranks, threads).into_iter().zip(&ranks) {
                    assert_eq!(got.to_f64().abs(), sorted[rank as usize].to_f64().abs(), "{order:?} {rank}");
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
        assert_eq!(select(&x, Order::Value, &[0, 1, 3, 4], 1), [f32::NEG_INFINITY, -1.0, 2.0, 3.0]);
        assert_eq!(select(&x, Order::Magnitude, &[1, 4], 1), [1.0, f32::INFINITY]);
    }
}

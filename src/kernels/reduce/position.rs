//! Where the smallest or the largest number is: the first of equal ones, and the first NaN before all numbers.
//!
//! Chunks are reduced to their extremes, which reads the memory once; the position is looked up in one chunk only.

use super::words::{Extremes, Keys, Word};
use super::{COLUMNS, Op, STRIDED_CHUNK, View};
use crate::isa::kernel;
use crate::par::{self, CHUNK};

/// Which end of the order is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The smallest number.
    Smallest,
    /// The largest number.
    Largest,
}

/// Words that are looked at together.
const BLOCK: usize = 128;

/// Keys from `low` to `high`, or all others.
#[derive(Clone, Copy)]
struct Wanted<W> {
    low: W,
    high: W,
    others: bool,
}

kernel! {
    /// The first wanted word; the length where there is none.
    fn first<W: Word>(x: &[W], keys: Keys<W>, wanted: Wanted<W>) -> usize {
        for (i, block) in x.chunks(BLOCK).enumerate() {
            let mut found = W::ZERO;
            for &word in block {
                let key = keys.key(word);
                let hit = (key >= wanted.low && key <= wanted.high) != wanted.others;
                found = found | if hit { W::ONES } else { W::ZERO };
            }
            if found != W::ZERO {
                for (j, &word) in block.iter().enumerate() {
                    let key = keys.key(word);
                    if (key >= wanted.low && key <= wanted.high) != wanted.others {
                        return i * BLOCK + j;
                    }
                }
            }
        }
        x.len()
    }
}

kernel! {
    /// The largest key of each of some columns and its first row; `turned` is all bits where the smallest is looked for.
    fn best_of_columns<W: Word>(
        x: &[W],
        keys: Keys<W>,
        turned: W,
        place: (usize, usize),
        found: (&mut [W], &mut [u32]),
    ) {
        let ((stride, from), (best, rows)) = (place, found);
        for (r, row) in x.chunks_exact(stride).enumerate() {
            let row = &row[from..][..best.len()];
            for ((best, place), &word) in best.iter_mut().zip(rows.iter_mut()).zip(row) {
                let key = keys.key(word);
                let key = if keys.is_nan(key) { W::MAX } else { key ^ turned };
                *place = if key > *best { r as u32 } else { *place };
                *best = if key > *best { key } else { *best };
            }
        }
    }
}

/// The chunk of the wanted word, and what is wanted there.
fn chunk_of<W: Word>(parts: &[[W; 2]], keys: Keys<W>, end: End) -> (usize, Wanted<W>) {
    if let Some(i) = parts.iter().position(|&[low, high]| keys.is_nan(low) || keys.is_nan(high)) {
        return (i, keys.nan());
    }
    let side = end as usize;
    let best = parts.iter().copied().reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])]).map_or(W::ZERO, |all| all[side]);
    let i = parts.iter().position(|part| part[side] == best).unwrap_or(0);
    (i, Wanted { low: best, high: best, others: false })
}

impl<W: Word> Keys<W> {
    /// NaN.
    fn nan(self) -> Wanted<W> {
        let [low, high] = self.infinities();
        Wanted { low, high, others: true }
    }
}

/// The position in one row.
fn in_row<W: Word>(x: &[W], keys: Keys<W>, end: End, threads: usize) -> usize {
    if x.len() <= CHUNK {
        let (_, wanted) = chunk_of(&[Extremes(keys).chunk(x)], keys, end);
        return first(x, keys, wanted);
    }
    let parts = par::map(threads, x.chunks(CHUNK), |chunk| Extremes(keys).chunk(chunk));
    let (i, wanted) = chunk_of(&parts, keys, end);
    i * CHUNK + first(&x[i * CHUNK..x.len().min((i + 1) * CHUNK)], keys, wanted)
}

/// The positions over the middle axis, which is not empty: `outer * inner` of them.
pub fn positions<W: Word>(x: &[W], keys: Keys<W>, end: End, view: View, threads: usize) -> Vec<i64> {
    let View { outer, n, inner } = view;
    let mut places = vec![0i64; outer * inner];
    if x.is_empty() {
        return places;
    }
    if inner > 1 {
        for (places, block) in places.chunks_mut(inner).zip(x.chunks_exact(n * inner)) {
            in_columns(block, keys, end, places, threads);
        }
    } else if n > CHUNK {
        for (place, row) in places.iter_mut().zip(x.chunks_exact(n)) {
            *place = in_row(row, keys, end, threads) as i64;
        }
    } else {
        let rows = CHUNK / n;
        par::for_each(threads, places.chunks_mut(rows).zip(x.chunks(rows * n)), |(places, x)| {
            for (place, row) in places.iter_mut().zip(x.chunks_exact(n)) {
                *place = in_row(row, keys, end, 1) as i64;
            }
        });
    }
    places
}

/// The position in each column: pieces of rows x columns, the first piece before later ones where they are equal.
fn in_columns<W: Word>(x: &[W], keys: Keys<W>, end: End, places: &mut [i64], threads: usize) {
    let inner = places.len();
    let width = inner.min(COLUMNS);
    let (rows, tiles) = ((STRIDED_CHUNK / width).max(1), inner.div_ceil(width));
    let turned = if end == End::Smallest { W::ONES } else { W::ZERO };
    let pieces = x.len().div_ceil(rows * inner);
    let parts = par::map(threads, 0..tiles * pieces, |item| {
        let (tile, piece) = (item % tiles, item / tiles);
        let from = tile * width;
        let columns = width.min(inner - from);
        let (mut best, mut found) = (vec![W::MIN; columns], vec![0u32; columns]);
        let x = &x[piece * rows * inner..x.len().min((piece + 1) * rows * inner)];
        best_of_columns(x, keys, turned, (inner, from), (&mut best, &mut found));
        (best, found)
    });
    let mut largest = vec![W::MIN; inner];
    for (item, (best, found)) in parts.into_iter().enumerate() {
        let (from, start) = (item % tiles * width, item / tiles * rows);
        for (i, (best, row)) in best.into_iter().zip(found).enumerate() {
            if best > largest[from + i] {
                (largest[from + i], places[from + i]) = (best, (start + row as usize) as i64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::{Element, F16};

    /// As NumPy: the first NaN, else the first of the equal ones.
    fn plain(x: &[f32], end: End) -> usize {
        let better = |a: f32, b: f32| if end == End::Largest { a > b } else { a < b };
        let mut best = 0;
        for (i, &v) in x.iter().enumerate() {
            if !x[best].is_nan() && (v.is_nan() || better(v, x[best])) {
                best = i;
            }
        }
        best
    }

    #[test]
    fn test_positions_match_a_plain_loop_for_every_split() {
        let mut state = 7u32;
        let mut x: Vec<f32> = (0..70_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                [-0.0, 0.0, 1.0, -1.0, 2.5][(state >> 16) as usize % 5]
            })
            .collect();
        for nan in [None, Some(69_999), Some(40_000), Some(3)] {
            if let Some(i) = nan {
                x[i] = f32::NAN.copysign(if i % 2 == 0 { 1.0 } else { -1.0 });
            }
            let words: Vec<i32> = x.iter().map(|v| v.to_bits() as i32).collect();
            let keys = Keys::float(f32::INFINITY_KEY as u64);
            for (outer, inner) in [(1, 1), (7, 1), (1, 7), (10, 1400), (7000, 1), (1, 35_000), (2, 2)] {
                let n = x.len() / (outer * inner);
                for end in [End::Smallest, End::Largest] {
                    for threads in [1, 3] {
                        let got = positions(&words, keys, end, View { outer, n, inner }, threads);
                        for (i, &place) in got.iter().enumerate().step_by(1 + got.len() / 300) {
                            let (o, c) = (i / inner, i % inner);
                            let column: Vec<f32> = (0..n).map(|r| x[(o * n + r) * inner + c]).collect();
                            assert_eq!(place, plain(&column, end) as i64, "{outer} {inner} {i} {end:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn test_keys_have_the_order_of_the_numbers() {
        let keys = Keys::<i16>::float(F16::INFINITY_KEY as u64);
        for bits in 0..=u16::MAX {
            let (key, number) = (keys.key(bits as i16), F16(bits).to_f64());
            assert_eq!(keys.is_nan(key), number.is_nan());
            if !number.is_nan() {
                let other = F16(bits ^ 0x55);
                let order = number.partial_cmp(&other.to_f64());
                assert!(order.is_none() || order == Some(key.cmp(&keys.key(other.0 as i16))), "{bits:#x}");
            }
        }
        let (signed, unsigned) = (Keys::<i8>::integer(true), Keys::<i8>::integer(false));
        assert!(signed.key(-128) < signed.key(127) && unsigned.key(127) < unsigned.key(-128));
        assert_eq!(unsigned.integer_of(unsigned.key(-3)), -3);
    }
}

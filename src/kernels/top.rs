//! The k largest or smallest of each row: in their order, equal ones by their place.
//!
//! A chunk keeps what is above the k-th best that it has seen; a block of words is passed by unless one is. Chunks are
//! joined in their order, and (key, place) are never equal, so the answer does not depend on how they were cut.

use super::reduce::{End, Keys, Word};
use crate::isa::kernel;
use crate::par::{self, CHUNK};

/// Words that are looked at together.
const BLOCK: usize = 256;

/// A word by the key that it competes with, and its place.
type Candidate<W> = (W, usize);

/// How words compete: NaN as the largest number.
#[derive(Debug, Clone, Copy)]
pub struct Contest<W> {
    keys: Keys<W>,
    turned: W,
    /// How many are wanted.
    k: usize,
}

impl<W: Word> Contest<W> {
    /// The `k` at one end, the better ones with larger keys.
    pub fn new(keys: Keys<W>, end: End, k: usize) -> Self {
        Self { keys, turned: if end == End::Smallest { W::ONES } else { W::ZERO }, k }
    }

    #[inline(always)]
    fn key(self, word: W) -> W {
        self.keys.with_nan_above(word) ^ self.turned
    }

    /// Leave the k best; the key of the last of them, if there are so many.
    fn cut(self, best: &mut Vec<Candidate<W>>) -> Option<W> {
        if best.len() < self.k {
            return None;
        }
        if best.len() > self.k {
            best.select_nth_unstable_by(self.k - 1, order);
            best.truncate(self.k);
        }
        best.iter().map(|&(key, _)| key).min()
    }

    /// The k best of a piece of a row.
    fn of_piece(self, x: &[W], start: usize) -> Vec<Candidate<W>> {
        let most = 2 * self.k + BLOCK;
        let mut best: Vec<Candidate<W>> = Vec::with_capacity(most.min(x.len()));
        let mut floor = None;
        let mut above = [0u8; BLOCK];
        for (i, block) in x.chunks(BLOCK).enumerate() {
            let first = start + i * BLOCK;
            match floor {
                None => best.extend(block.iter().enumerate().map(|(j, &word)| (self.key(word), first + j))),
                Some(floor) if mark(block, self, floor, &mut above) => {
                    let marked = block.iter().zip(&above).enumerate().filter(|(_, (_, mark))| **mark != 0);
                    best.extend(marked.map(|(j, (&word, _))| (self.key(word), first + j)));
                }
                Some(_) => continue,
            }
            if floor.is_none() || best.len() + BLOCK > most {
                floor = self.cut(&mut best);
            }
        }
        self.cut(&mut best);
        best
    }

    /// The places of the k best of a row, best first.
    fn of_row(self, x: &[W], threads: usize, places: &mut [i64]) {
        // Pieces much longer than k: each hands k on.
        let piece = CHUNK.max(8 * self.k);
        let mut best = par::map(threads, x.chunks(piece).enumerate(), |(i, x)| self.of_piece(x, i * piece)).concat();
        self.cut(&mut best);
        best.sort_unstable_by(order);
        for (place, (_, i)) in places.iter_mut().zip(best) {
            *place = i as i64;
        }
    }
}

/// Larger keys first, then lower places.
fn order<W: Word>(a: &Candidate<W>, b: &Candidate<W>) -> std::cmp::Ordering {
    b.0.cmp(&a.0).then(a.1.cmp(&b.1))
}

kernel! {
    /// Mark the words whose key is above `floor`; whether there are any.
    fn mark<W: Word>(x: &[W], contest: Contest<W>, floor: W, above: &mut [u8; 256]) -> bool {
        let mut any = W::ZERO;
        for (mark, &word) in above.iter_mut().zip(x) {
            let is_above = contest.key(word) > floor;
            any = any | if is_above { W::ONES } else { W::ZERO };
            *mark = u8::from(is_above);
        }
        any != W::ZERO
    }
}

/// The places of the k best of each row of `n` words (k at most n), `k` to a row, best first.
pub fn top<W: Word>(x: &[W], n: usize, contest: Contest<W>, threads: usize) -> Vec<i64> {
    let rows = x.len().checked_div(n).unwrap_or(0);
    let mut places = vec![0i64; rows * contest.k];
    if places.is_empty() {
        return places;
    }
    if n > CHUNK {
        for (places, row) in places.chunks_exact_mut(contest.k).zip(x.chunks_exact(n)) {
            contest.of_row(row, threads, places);
        }
    } else {
        let batch = CHUNK / n;
        par::for_each(threads, places.chunks_mut(batch * contest.k).zip(x.chunks(batch * n)), |(places, x)| {
            for (places, row) in places.chunks_exact_mut(contest.k).zip(x.chunks_exact(n)) {
                contest.of_row(row, 1, places);
            }
        });
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_best_are_those_of_a_stable_sort_for_every_k_and_cut() {
        let mut state = 3u32;
        let x: Vec<i16> = (0..200_000)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if i < 70_000 { (state >> 16) as i16 } else { (state >> 28) as i16 }
            })
            .collect();
        let keys = Keys::integer(true);
        for (n, ks) in [(x.len(), vec![1, 2, 300, 9000, 200_000]), (1000, vec![1, 7, 1000]), (3, vec![0, 2, 3])] {
            for k in ks {
                for (end, sign) in [(End::Largest, -1i32), (End::Smallest, 1)] {
                    let got = top(&x, n, Contest::new(keys, end, k), 2);
                    assert_eq!(got, top(&x, n, Contest::new(keys, end, k), 1));
                    for (got, row) in got.chunks(k.max(1)).zip(x.chunks_exact(n)).step_by(7) {
                        let mut want: Vec<i64> = (0..n as i64).collect();
                        want.sort_by_key(|&i| sign * i32::from(row[i as usize]));
                        assert_eq!(got, &want[..k], "{n} {k} {end:?}");
                    }
                }
            }
        }
    }
}

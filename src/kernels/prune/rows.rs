//! The same share of each row: the cut of a row by bisection over its keys, which stay in the cache.
//!
//! A bisection counts the keys up to the middle again and again, by vector arithmetic, and ends as soon as the count is
//! right: after some 15 counts for rows of thousands. (Counting digits, as for whole arrays, takes longer for such rows: the
//! counters must be cleared, and each count is a scalar increment.)

use super::block::{drop_first, keep};
use super::score::fill;
use super::{Job, Output, Score, Threshold};
use crate::isa::kernel;
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// Longer rows are whole arrays, one after the other.
pub const LONG_ROW: usize = 8 * CHUNK;

kernel! {
    /// The cut that lets the `prune` lowest keys go, at least one and fewer than all.
    fn bisect<K: Key>(keys: &[K], prune: u64) -> Threshold<K> {
        let (mut smallest, mut largest) = (K::MAX, K::ZERO);
        for &key in keys {
            smallest = smallest.min(key);
            largest = largest.max(key);
        }
        // Up to `high` there are at least `prune` keys, below `low` there are `lower`, fewer.
        let (mut low, mut high, mut lower) = (smallest, largest, 0);
        while low < high {
            let middle = low.middle(high);
            let mut count = 0u64;
            for part in keys.chunks(1 << 12) {
                let mut few = K::ZERO;
                for &key in part {
                    few = few + if key <= middle { K::ONE } else { K::ZERO };
                }
                count += few.to_u64();
            }
            if count == prune {
                return Threshold { key: middle, ties: u64::MAX };
            }
            if count > prune {
                high = middle;
            } else {
                (low, lower) = (middle + K::ONE, count);
            }
        }
        Threshold { key: low, ties: prune - lower }
    }
}

/// Of each row of `n` elements the `prune` lowest go. Whether any key is NaN's (which is the largest).
pub fn rows<T: Element, S: Score<T>, O: Output<T>>(
    job: Job<'_, T, O>,
    n: usize,
    prune: usize,
    score: S,
    threads: usize,
) -> bool {
    let at_once = (CHUNK / n).max(1) * n;
    let nan = std::sync::atomic::AtomicBool::new(false);
    let keys = || vec![S::Key::ZERO; n];
    par::for_each_with(threads, job.pieces(at_once), keys, |keys, piece| {
        for row in piece.pieces(n) {
            if one_row(row, prune as u64, score, keys) {
                nan.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    nan.into_inner()
}

fn one_row<T: Element, S: Score<T>, O: Output<T>>(
    mut row: Job<'_, T, O>,
    prune: u64,
    score: S,
    keys: &mut [S::Key],
) -> bool {
    if prune == 0 {
        return keep(row, score, 0, S::Key::ZERO - S::Key::ONE).nan;
    }
    if prune == row.out.len() as u64 {
        return keep(row, score, 0, S::Key::MAX).nan;
    }
    fill(row.source(), score, 0, keys);
    let Threshold { key, ties } = bisect(keys, prune);
    if ties == u64::MAX {
        return keep(row, score, 0, key).nan;
    }
    let nan = keep(row.reborrow(), score, 0, key - S::Key::ONE).nan;
    drop_first(row, score, 0, key, ties);
    nan
}

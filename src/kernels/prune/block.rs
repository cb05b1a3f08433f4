//! One piece of weights: what is above a key stays.

use super::{Job, Output, Score, block_of};
use crate::isa::kernel;
use crate::real::{Element, Key};

/// Elements whose keys are made together, in the L1 cache.
pub(super) const BLOCK: usize = 1024;

/// What was seen on the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// How many keys are the one after the bound: the first that stays.
    pub(super) next: u64,
    /// Whether one is NaN's.
    pub(super) nan: bool,
}

kernel! {
    /// Write a piece of a row, from column `first` on: keys above `bound` stay.
    pub(super) fn keep<T: Element, S: Score<T>, O: Output<T>>(
        job: Job<'_, T, O>, score: S, first: usize, bound: S::Key
    ) -> Seen {
        let Job { x: given, out } = job;
        let mut keys = [S::Key::ZERO; BLOCK];
        let mut copied = [T::from_bits64(0); BLOCK];
        let mut largest = S::Key::ZERO;
        let mut equal = 0;
        let next = if bound == S::Key::MAX { bound } else { bound + S::Key::ONE };
        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
            let n = out.len();
            let x = block_of::<T, O>(given, i * BLOCK, out, &mut copied);
            let keys = &mut keys[..n];
            score.keys(x, first + i * BLOCK, keys);
            let mut found = 0u32;
            for ((out, &x), &key) in out.iter_mut().zip(x).zip(keys.iter()) {
                largest = largest.max(key);
                found += (key == next) as u32;
                *out = O::item(x, key > bound);
            }
            equal += found as u64;
        }
        Seen { next: equal, nan: largest > S::INFINITY }
    }
}

/// Let the first `n` go that have `key`.
pub(super) fn drop_first<T: Element, S: Score<T>, O: Output<T>>(
    job: Job<'_, T, O>,
    score: S,
    first: usize,
    key: S::Key,
    mut n: u64,
) {
    let Job { x, out } = job;
    let mut keys = [S::Key::ZERO; BLOCK];
    for (i, out) in out.chunks_mut(BLOCK).enumerate() {
        let len = out.len();
        let keys = &mut keys[..len];
        let piece = x.map(|x| &x[i * BLOCK..][..len]);
        score.keys(piece.unwrap_or_else(|| O::weights(out)), first + i * BLOCK, keys);
        for (out, _) in out.iter_mut().zip(keys).filter(|(_, found)| **found == key) {
            if n == 0 {
                return;
            }
            *out = O::item(T::from_bits64(0), false);
            n -= 1;
        }
    }
}

//! Whole arrays, one or many: the cut by radix selection over all of them, then one pass.

use super::block::{drop_first, keep};
use super::{Job, Magnitude, Output, Score};
use crate::kernels::select::{Order, select};
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// What was seen of all weights.
pub(super) struct Kept {
    /// Whether any key is NaN's.
    pub(super) nan: bool,
    /// How many of the keys after the bound went.
    pub(super) gone: u64,
}

/// Magnitudes whose key is above `bound` stay. Whether any is NaN (which is above all).
pub fn keep_above<T: Element, O: Output<T>>(job: Job<'_, T, O>, bound: T::Key, threads: usize) -> bool {
    keep_lists(vec![job], Magnitude, (bound, 0), threads).nan
}

/// The `prune` smallest magnitudes of all arrays go. Whether any is NaN (which is the largest).
pub fn magnitude<T: Element, O: Output<T>>(jobs: Vec<Job<'_, T, O>>, prune: u64, threads: usize) -> bool {
    let arrays: Vec<&[T]> = jobs.iter().map(Job::source).collect();
    let cut = match prune.checked_sub(1) {
        None => (T::Key::ZERO - T::Key::ONE, 0),
        Some(rank) => {
            let found = select(&arrays, Order::Magnitude, &[rank], threads)[0];
            let (key, ties) = (found.value.magnitude(), found.before + 1);
            // Where all that are equal go, one pass does it.
            if ties == found.equal { (key, 0) } else { (key - T::Key::ONE, ties) }
        }
    };
    keep_lists(jobs, Magnitude, cut, threads).nan
}

/// What is above `bound` stays, but for the first `ties` of those that are next.
pub(super) fn keep_lists<T: Element, S: Score<T>, O: Output<T>>(
    jobs: Vec<Job<'_, T, O>>,
    score: S,
    (bound, ties): (S::Key, u64),
    threads: usize,
) -> Kept {
    let mut pieces: Vec<Job<'_, T, O>> = jobs.into_iter().flat_map(|job| job.pieces(CHUNK)).collect();
    let seen = par::map(threads, pieces.iter_mut(), |job| keep(job.reborrow(), score, 0, bound));
    let equal: Vec<u64> = seen.iter().map(|seen| seen.next).collect();
    if ties > 0 {
        drop_ties(pieces, score, &equal, (bound + S::Key::ONE, ties), threads);
    }
    Kept { nan: seen.iter().any(|seen| seen.nan), gone: ties.min(equal.iter().sum()) }
}

/// Of those that have `key` (`equal` in each piece) the first `ties` go.
fn drop_ties<T: Element, S: Score<T>, O: Output<T>>(
    pieces: Vec<Job<'_, T, O>>,
    score: S,
    equal: &[u64],
    (key, ties): (S::Key, u64),
    threads: usize,
) {
    let mut left = ties;
    let share = |&equal: &u64| {
        let share = equal.min(left);
        left -= share;
        share
    };
    let shares: Vec<u64> = equal.iter().map(share).collect();
    let work: Vec<_> = pieces.into_iter().zip(equal).zip(shares).filter(|(_, share)| *share > 0).collect();
    par::for_each(threads, work.into_iter(), |((job, &equal), share)| {
        if share == equal {
            keep(job, score, 0, key);
        } else {
            drop_first(job, score, 0, key, share);
        }
    });
}

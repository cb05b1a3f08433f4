//! Whole arrays, one or many: the cut by radix selection over all of them, then one pass.

use super::block::{drop_first, keep};
use super::{Job, Magnitude, Output, Score};
use crate::kernels::select::{Order, select};
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// Write all pieces: keys above `bound` stay. How many are the next, in each piece; whether any is NaN's.
pub(super) fn keep_all<T: Element, S: Score<T>, O: Output<T>>(
    pieces: &mut [Job<'_, T, O>],
    score: S,
    bound: S::Key,
    threads: usize,
) -> (Vec<u64>, bool) {
    let seen = par::map(threads, pieces.iter_mut(), |job| keep(job.reborrow(), score, 0, bound));
    (seen.iter().map(|seen| seen.next).collect(), seen.iter().any(|seen| seen.nan))
}

/// Magnitudes whose key is above `bound` stay. Whether any is NaN (which is above all).
pub fn keep_above<T: Element, O: Output<T>>(job: Job<'_, T, O>, bound: T::Key, threads: usize) -> bool {
    keep_all(&mut job.pieces(CHUNK).collect::<Vec<_>>(), Magnitude, bound, threads).1
}

/// The `prune` smallest magnitudes of all arrays go. Whether any is NaN (which is the largest).
pub fn magnitude<T: Element, O: Output<T>>(jobs: Vec<Job<'_, T, O>>, prune: u64, threads: usize) -> bool {
    let arrays: Vec<&[T]> = jobs.iter().map(Job::source).collect();
    let Some(rank) = prune.checked_sub(1) else {
        return keep_lists(jobs, T::Key::ZERO - T::Key::ONE, 0, threads);
    };
    let found = select(&arrays, Order::Magnitude, &[rank], threads)[0];
    let key = found.value.magnitude();
    let ties = found.before + 1;
    if ties == found.equal {
        return keep_lists(jobs, key, 0, threads);
    }
    keep_lists(jobs, key - T::Key::ONE, ties, threads)
}

/// What is above `bound` stays, but for the first `ties` of those that are next.
fn keep_lists<T: Element, O: Output<T>>(jobs: Vec<Job<'_, T, O>>, bound: T::Key, ties: u64, threads: usize) -> bool {
    let mut pieces: Vec<Job<'_, T, O>> = jobs.into_iter().flat_map(|job| job.pieces(CHUNK)).collect();
    let (equal, nan) = keep_all(&mut pieces, Magnitude, bound, threads);
    if ties > 0 {
        drop_ties(pieces, Magnitude, &equal, (bound + T::Key::ONE, ties), threads);
    }
    nan
}

/// Of those that have `key` (`equal` in each piece) the first `ties` go.
pub(super) fn drop_ties<T: Element, S: Score<T>, O: Output<T>>(
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

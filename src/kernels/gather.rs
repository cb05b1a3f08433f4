//! Gathering of slices: `out[o, j, :] = x[o, indices[j], :]`, an array seen as (outer, n, inner).
//!
//! Numbers are only moved, so they are words of 1, 2, 4 or 8 bytes. Indices that follow each other make a run: long
//! runs are copied as they are, elements that stand alone are gathered one by one from a row that is read in order.

use crate::isa::kernel;
use crate::par::{self, CHUNK};

/// What is moved.
pub trait Word: Copy + Send + Sync {}
impl<T: Copy + Send + Sync> Word for T {}

/// Runs of fewer bytes on average are gathered element by element (a copy costs a call).
const SHORT_RUN: usize = 64;

/// Neighbours in a row of the input that are neighbours in a row of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    from: usize,
    to: usize,
    len: usize,
}

/// What to take of every row of `n * inner` elements.
enum Plan {
    Runs(Vec<Run>),
    Elements(Vec<u32>),
}

kernel! {
    /// Gather the elements of one row.
    fn gather<T: Word>(row: &[T], places: &[u32], out: &mut [T]) {
        for (out, &place) in out.iter_mut().zip(places) {
            *out = row[place as usize];
        }
    }
}

/// The runs of `indices`, each index being `inner` elements.
fn runs(indices: &[usize], inner: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (j, &index) in indices.iter().enumerate() {
        let from = index * inner;
        match runs.last_mut() {
            Some(run) if run.from + run.len == from => run.len += inner,
            _ => runs.push(Run { from, to: j * inner, len: inner }),
        }
    }
    runs
}

/// Copy the part of the runs that belongs to `out`, which begins at `first` of its row.
fn copy_runs<T: Word>(row: &[T], runs: &[Run], first: usize, out: &mut [T]) {
    let mut done = 0;
    let start = runs.partition_point(|run| run.to + run.len <= first);
    for run in &runs[start..] {
        if done == out.len() {
            break;
        }
        let skip = first + done - run.to;
        let len = (run.len - skip).min(out.len() - done);
        out[done..done + len].copy_from_slice(&row[run.from + skip..][..len]);
        done += len;
    }
}

impl Plan {
    /// `n` is the length of a row in elements.
    fn new<T>(indices: &[usize], n: usize, inner: usize) -> Self {
        let runs = runs(indices, inner);
        let bytes = indices.len() * inner * size_of::<T>();
        if bytes >= SHORT_RUN * runs.len() || n > u32::MAX as usize {
            return Self::Runs(runs);
        }
        Self::Elements(indices.iter().flat_map(|&i| i * inner..(i + 1) * inner).map(|i| i as u32).collect())
    }

    /// Fill `out`, which begins at `first` of the row of the output that `row` makes.
    fn fill<T: Word>(&self, row: &[T], first: usize, out: &mut [T]) {
        match self {
            Self::Runs(runs) => copy_runs(row, runs, first, out),
            Self::Elements(places) => gather(row, &places[first..first + out.len()], out),
        }
    }
}

/// The indices, or the first that is none of an axis of `n`.
pub fn checked(indices: &[i64], n: usize) -> Result<Vec<usize>, i64> {
    indices.iter().map(|&i| usize::try_from(i).ok().filter(|&index| index < n).ok_or(i)).collect()
}

/// The place among `n` that an index names, which may count from the end.
#[inline]
pub fn wrapped(index: i64, n: usize) -> Option<usize> {
    let from_front = if index < 0 { index.saturating_add(n as i64) } else { index };
    usize::try_from(from_front).ok().filter(|&index| index < n)
}

/// Take `indices` (each below `n`) of the middle axis of `x`, which is (outer, n, inner).
pub fn take<T: Word>(x: &[T], n: usize, inner: usize, indices: &[usize], out: &mut [T], threads: usize) {
    let (row, width) = (n * inner, indices.len() * inner);
    if out.is_empty() {
        return;
    }
    let plan = Plan::new::<T>(indices, row, inner);
    if width <= CHUNK {
        let rows = CHUNK / width;
        par::for_each(threads, out.chunks_mut(rows * width).zip(x.chunks(rows * row)), |(out, x)| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(row)) {
                plan.fill(x, 0, out);
            }
        });
        return;
    }
    let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(row));
    let pieces: Vec<_> =
        rows.flat_map(|(out, x)| out.chunks_mut(CHUNK).enumerate().map(move |(i, out)| (x, i * CHUNK, out))).collect();
    par::for_each(threads, pieces.into_iter(), |(x, first, out)| plan.fill(x, first, out));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(x: &[u32], n: usize, inner: usize, indices: &[usize]) -> Vec<u32> {
        let rows = x.chunks_exact(n * inner);
        rows.flat_map(|row| indices.iter().flat_map(|&i| row[i * inner..(i + 1) * inner].iter().copied())).collect()
    }

    #[test]
    fn test_take_matches_a_plain_loop_for_every_split_and_number_of_threads() {
        for (outer, n, inner) in [(1, 7, 1), (3, 5, 2), (2, 50_000, 1), (1, 9, 10_000), (2, 40_000, 3), (70_000, 3, 1)]
        {
            let x: Vec<u32> = (0..outer * n * inner).map(|i| i as u32).collect();
            let lists = [
                (0..n).collect::<Vec<_>>(),
                (0..n).step_by(2).collect(),
                (0..n).rev().collect(),
                vec![n - 1],
                (n / 3..n).filter(|i| i % 5 != 0).collect(),
                vec![0; 3],
            ];
            for indices in lists {
                for threads in [1, 2, 5] {
                    let mut out = vec![u32::MAX; outer * indices.len() * inner];
                    take(&x, n, inner, &indices, &mut out, threads);
                    assert_eq!(out, plain(&x, n, inner, &indices), "{outer} {n} {inner}");
                }
            }
        }
    }

    #[test]
    fn test_neighbours_are_one_run() {
        let run = |from, to, len| Run { from, to, len };
        assert_eq!(runs(&[2, 3, 4, 9, 1], 2), [run(4, 0, 6), run(18, 6, 2), run(2, 8, 2)]);
    }

    #[test]
    fn test_nothing_is_taken_of_nothing() {
        take::<u8>(&[], 0, 3, &[], &mut [], 2);
        take::<u8>(&[1, 2], 2, 1, &[], &mut [], 2);
    }
}

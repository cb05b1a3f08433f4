//! N:M sparsity: of each `group` consecutive weights along an axis the `keep` largest stay.
//!
//! A weight stays if fewer than `keep` of its group beat it; of two equal ones the later wins. Each pair of places is
//! compared once, for many groups at a time. (Measured for 2:4 beside it: comparing each weight with its neighbours in
//! place, without taking groups apart, is as fast for 2:4 and half as fast for 4:8; choosing the second largest by minima
//! and maxima does not say which of two equal weights stays. The choice as a kernel of the keys alone, compiled once for
//! each type of key: 8 % of the library less, 2:4 and 4:8 along rows 1.1 to 1.2 times as slow, across rows twice.)

use super::{Job, Output, Score, block_of};
use crate::isa::kernel;
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// The largest group.
pub const LARGEST: usize = 32;

/// An array seen as (outer, n, inner), with groups along n.
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    /// Weights of a group that stay.
    pub keep: usize,
    /// Weights of a group, 2 to 32.
    pub group: usize,
    /// Elements along the axis, a multiple of `group`.
    pub n: usize,
    /// Product of the axes after it.
    pub inner: usize,
}

/// A small number in the type of keys.
#[inline(always)]
pub(super) fn as_key<K: Key>(n: usize) -> K {
    (0..n).fold(K::ZERO, |sum, _| sum + K::ONE)
}

/// How many of its group beat each weight; keys by place (`G` at most), then group.
#[inline(always)]
fn beaten<K: Key, const L: usize, const G: usize>(keys: &[[K; L]; G], group: usize) -> [[K; L]; G] {
    let mut beaten = [[K::ZERO; L]; G];
    for later in 1..group {
        let (before, rest) = beaten.split_at_mut(later);
        let (later_keys, later_beaten) = (&keys[later], &mut rest[0]);
        for (keys, beaten) in keys[..later].iter().zip(before) {
            for i in 0..L {
                let loses = if keys[i] <= later_keys[i] { K::ONE } else { K::ZERO };
                beaten[i] = beaten[i] + loses;
                later_beaten[i] = later_beaten[i] + (K::ONE - loses);
            }
        }
    }
    beaten
}

/// `L` groups that follow each other.
#[inline(always)]
pub(super) fn consecutive<T: Element, K: Key, O: Output<T>, const L: usize, const G: usize>(
    x: &[T],
    keys: &[K],
    out: &mut [O::Item],
    (keep, group): (K, usize),
) {
    let (x, keys, out) = (&x[..L * group], &keys[..L * group], &mut out[..L * group]);
    let mut by_place = [[K::ZERO; L]; G];
    for i in 0..L {
        for p in 0..group {
            by_place[p][i] = keys[i * group + p];
        }
    }
    let beaten = beaten(&by_place, group);
    for i in 0..L {
        for p in 0..group {
            out[i * group + p] = O::item(x[i * group + p], beaten[p][i] < keep);
        }
    }
}

/// Weights whose keys are made together: of 64 groups of the largest size.
const BLOCK: usize = 64 * LARGEST;

/// A piece of a row, group after group, `L` groups at a time, then one at a time.
#[inline(always)]
fn along<T: Element, S: Score<T>, O: Output<T>, const L: usize, const G: usize>(
    job: Job<'_, T, O>,
    score: S,
    first: usize,
    (keep, group): (usize, usize),
) -> bool {
    let Job { x: given, out } = job;
    let few = as_key(keep);
    let block = BLOCK / (L * group) * (L * group);
    let (mut keys, mut copied) = ([S::Key::ZERO; BLOCK], [T::from_bits64(0); BLOCK]);
    let mut largest = S::Key::ZERO;
    for (i, out) in out.chunks_mut(block).enumerate() {
        let n = out.len();
        let x = block_of::<T, O>(given, i * block, out, &mut copied);
        let keys = &mut keys[..n];
        score.keys(x, first + i * block, keys);
        for &key in keys.iter() {
            largest = largest.max(key);
        }
        let whole = n / (L * group) * (L * group);
        for start in (0..whole).step_by(L * group) {
            consecutive::<T, S::Key, O, L, G>(&x[start..], &keys[start..], &mut out[start..], (few, group));
        }
        for start in (whole..n).step_by(group) {
            consecutive::<T, S::Key, O, 1, G>(&x[start..], &keys[start..], &mut out[start..], (few, group));
        }
    }
    largest > S::INFINITY
}

kernel! {
    /// A piece of a row from column `first` on, of whole groups. Whether any key is NaN's.
    fn row_piece<T: Element, S: Score<T>, O: Output<T>>(
        job: Job<'_, T, O>, score: S, first: usize, plan: Groups
    ) -> bool {
        // Known to the compiler, the comparisons of a small group stay in registers.
        match plan.group {
            2 => along::<T, S, O, 16, 2>(job, score, first, (plan.keep, 2)),
            4 => along::<T, S, O, 16, 4>(job, score, first, (plan.keep, 4)),
            8 => along::<T, S, O, 16, 8>(job, score, first, (plan.keep, 8)),
            group => along::<T, S, O, 64, LARGEST>(job, score, first, (plan.keep, group)),
        }
    }
}

/// `L` columns from `first` on of the rows of one band of groups.
#[inline(always)]
fn columns<T: Element, S: Score<T>, O: Output<T>, const L: usize, const G: usize>(
    job: &mut Job<'_, T, O>,
    score: S,
    first: usize,
    plan: Groups,
) -> bool {
    let few = as_key(plan.keep);
    let mut x = [[T::from_bits64(0); L]; G];
    let mut keys = [[S::Key::ZERO; L]; G];
    let mut largest = S::Key::ZERO;
    for p in 0..plan.group {
        x[p].copy_from_slice(&job.source()[p * plan.inner + first..][..L]);
        score.keys(&x[p], first, &mut keys[p]);
        for key in keys[p] {
            largest = largest.max(key);
        }
    }
    let beaten = beaten(&keys, plan.group);
    for p in 0..plan.group {
        for ((out, &x), &beaten) in job.out[p * plan.inner + first..][..L].iter_mut().zip(&x[p]).zip(&beaten[p]) {
            *out = O::item(x, beaten < few);
        }
    }
    largest > S::INFINITY
}

/// A band of groups: `group` rows of `inner` elements.
#[inline(always)]
fn across<T: Element, S: Score<T>, O: Output<T>, const G: usize>(
    mut job: Job<'_, T, O>,
    score: S,
    plan: Groups,
) -> bool {
    let mut nan = false;
    let (by_32, by_8) = (plan.inner / 32 * 32, plan.inner / 8 * 8);
    for first in (0..by_32).step_by(32) {
        nan |= columns::<T, S, O, 32, G>(&mut job, score, first, plan);
    }
    for first in (by_32..by_8).step_by(8) {
        nan |= columns::<T, S, O, 8, G>(&mut job, score, first, plan);
    }
    for first in by_8..plan.inner {
        nan |= columns::<T, S, O, 1, G>(&mut job, score, first, plan);
    }
    nan
}

kernel! {
    /// A band of groups. Whether any key is NaN's.
    fn band<T: Element, S: Score<T>, O: Output<T>>(job: Job<'_, T, O>, score: S, plan: Groups) -> bool {
        match plan.group {
            4 => across::<T, S, O, 4>(job, score, Groups { group: 4, ..plan }),
            _ => across::<T, S, O, LARGEST>(job, score, plan),
        }
    }
}

/// Of each group the `keep` largest stay. Whether any key is NaN's (which is the largest).
///
/// Where the axis is not the last one, `score` must not depend on the column. Where it depends on no column, rows of whole
/// groups may be given as one long row, which is faster if they are short.
pub fn groups<T: Element, S: Score<T>, O: Output<T>>(
    job: Job<'_, T, O>,
    plan: Groups,
    score: S,
    threads: usize,
) -> bool {
    let Groups { group, n, inner, .. } = plan;
    if job.out.is_empty() {
        return false;
    }
    let found = if inner == 1 && n > CHUNK {
        let part = CHUNK / group * group;
        let parts = job.pieces(n).flat_map(|row| row.pieces(part).enumerate());
        let parts: Vec<_> = parts.collect();
        par::map(threads, parts.into_iter(), |(i, piece)| row_piece(piece, score, i * part, plan))
    } else {
        let unit = if inner > 1 { group * inner } else { n };
        let at_once = (CHUNK / unit).max(1) * unit;
        par::map(threads, job.pieces(at_once), |piece| {
            let mut nan = false;
            for unit in piece.pieces(unit) {
                nan |= if inner > 1 { band(unit, score, plan) } else { row_piece(unit, score, 0, plan) };
            }
            nan
        })
    };
    found.into_iter().any(|nan| nan)
}

//! N:M sparsity: of each `group` consecutive weights along an axis the `keep` largest stay.
//!
//! A weight stays if fewer than `keep` of its group beat it; of two equal ones the later wins. Each pair of places is
//! compared once, for many groups at a time. (Measured for 2:4 beside it: comparing each weight with its neighbours in
//! place, without taking groups apart, is as fast for 2:4 and half as fast for 4:8; choosing the second largest by minima
//! and maxima does not say which of two equal weights stays.)

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

/// `L` groups that follow each other: each key becomes 1 if its weight stays, else 0.
#[inline(always)]
pub(super) fn consecutive<K: Key, const L: usize, const G: usize>(keys: &mut [K], (keep, group): (K, usize)) {
    let keys = &mut keys[..L * group];
    let mut by_place = [[K::ZERO; L]; G];
    for i in 0..L {
        for p in 0..group {
            by_place[p][i] = keys[i * group + p];
        }
    }
    let beaten = beaten(&by_place, group);
    for i in 0..L {
        for p in 0..group {
            keys[i * group + p] = if beaten[p][i] < keep { K::ONE } else { K::ZERO };
        }
    }
}

/// Groups one after the other, `L` at a time, then one at a time.
#[inline(always)]
fn along<K: Key, const L: usize, const G: usize>(keys: &mut [K], keep: K, group: usize) {
    let mut at_once = keys.chunks_exact_mut(L * group);
    for keys in &mut at_once {
        consecutive::<K, L, G>(keys, (keep, group));
    }
    for keys in at_once.into_remainder().chunks_exact_mut(group) {
        consecutive::<K, 1, G>(keys, (keep, group));
    }
}

kernel! {
    /// Whole groups, one after the other: each key becomes 1 if its weight stays, else 0.
    ///
    /// Never inlined: it is compiled for each type of key, not for each dtype, score and output too (a seventh of the
    /// library).
    #[inline(never)]
    fn stay_along<K: Key>(keys: &mut [K], keep: usize, group: usize) {
        let keep = K::from_u8(keep as u8);
        // Known to the compiler, the comparisons of a small group stay in registers.
        match group {
            2 => along::<K, 16, 2>(keys, keep, 2),
            4 => along::<K, 16, 4>(keys, keep, 4),
            8 => along::<K, 16, 8>(keys, keep, 8),
            _ => along::<K, 64, LARGEST>(keys, keep, group),
        }
    }
}

/// Weights whose keys are made together: of 64 groups of the largest size.
const BLOCK: usize = 64 * LARGEST;

kernel! {
    /// A piece of a row from column `first` on, of whole groups. Whether any key is NaN's.
    fn row_piece<T: Element, S: Score<T>, O: Output<T>>(
        job: Job<'_, T, O>, score: S, first: usize, plan: Groups
    ) -> bool {
        let Job { x: given, out } = job;
        let at_once = if plan.group <= 8 { 16 } else { 64 } * plan.group;
        let block = BLOCK / at_once * at_once;
        let (mut keys, mut copied) = ([S::Key::ZERO; BLOCK], [T::from_bits64(0); BLOCK]);
        let mut largest = S::Key::ZERO;
        for (i, out) in out.chunks_mut(block).enumerate() {
            let x = block_of::<T, O>(given, i * block, out, &mut copied);
            let keys = &mut keys[..x.len()];
            score.keys(x, first + i * block, keys);
            for &key in keys.iter() {
                largest = largest.max(key);
            }
            stay_along(keys, plan.keep, plan.group);
            for ((out, &x), &stays) in out.iter_mut().zip(x).zip(&*keys) {
                *out = O::item(x, stays != S::Key::ZERO);
            }
        }
        largest > S::INFINITY
    }
}

/// `L` groups beside each other, their keys by place: each key becomes 1 if its weight stays, else 0.
#[inline(always)]
fn beside<K: Key, const L: usize, const G: usize>(keys: &mut [K], keep: K, group: usize) {
    let (keys, _) = keys.as_chunks_mut::<L>();
    let mut by_place = [[K::ZERO; L]; G];
    by_place[..group].copy_from_slice(&keys[..group]);
    for (keys, beaten) in keys.iter_mut().zip(beaten(&by_place, group)) {
        for i in 0..L {
            keys[i] = if beaten[i] < keep { K::ONE } else { K::ZERO };
        }
    }
}

kernel! {
    /// `lanes` groups (32 or 8) beside each other, their keys by place: each key becomes 1 if its weight stays, else 0.
    #[inline(never)]
    fn stay_beside<K: Key>(keys: &mut [K], lanes: usize, keep: usize, group: usize) {
        let keep = K::from_u8(keep as u8);
        match (lanes, group) {
            (32, 4) => beside::<K, 32, 4>(keys, keep, 4),
            (32, _) => beside::<K, 32, LARGEST>(keys, keep, group),
            (_, 4) => beside::<K, 8, 4>(keys, keep, 4),
            _ => beside::<K, 8, LARGEST>(keys, keep, group),
        }
    }
}

/// `width` columns (`L` at most) from `first` on of the rows of one band of groups.
#[inline(always)]
fn columns<T: Element, S: Score<T>, O: Output<T>, const L: usize, const G: usize>(
    job: &mut Job<'_, T, O>,
    score: S,
    (first, width): (usize, usize),
    plan: Groups,
) -> bool {
    let mut x = [[T::from_bits64(0); L]; G];
    let mut keys = [[S::Key::ZERO; L]; G];
    let mut largest = S::Key::ZERO;
    for p in 0..plan.group {
        x[p][..width].copy_from_slice(&job.source()[p * plan.inner + first..][..width]);
        score.keys(&x[p][..width], first, &mut keys[p][..width]);
        for key in keys[p] {
            largest = largest.max(key);
        }
    }
    stay_beside(keys.as_flattened_mut(), L, plan.keep, plan.group);
    for p in 0..plan.group {
        for ((out, &x), &stays) in job.out[p * plan.inner + first..][..width].iter_mut().zip(&x[p]).zip(&keys[p]) {
            *out = O::item(x, stays != S::Key::ZERO);
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
    let by_32 = plan.inner / 32 * 32;
    for first in (0..by_32).step_by(32) {
        nan |= columns::<T, S, O, 32, G>(&mut job, score, (first, 32), plan);
    }
    for first in (by_32..plan.inner).step_by(8) {
        nan |= columns::<T, S, O, 8, G>(&mut job, score, (first, 8.min(plan.inner - first)), plan);
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

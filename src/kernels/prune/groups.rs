//! N:M sparsity: of each `group` consecutive weights along an axis the `keep` largest stay.
//!
//! A weight stays if fewer than `keep` of its group beat it; of two equal ones the later wins. Each pair of places is
//! compared once, for many groups at a time. The choice is of keys alone, a block of them in the L1 cache: compiled for
//! each type of key, and not for each dtype, score and output with it (a twelfth of the library).

use super::score::fill;
use super::{Job, Output, Score};
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
fn as_key<K: Key>(n: usize) -> K {
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

/// Of `L` groups that follow each other, 1 in the place of each key that stays, 0 in that of each other.
#[inline(always)]
fn consecutive<K: Key, const L: usize, const G: usize>(keys: &mut [K], keep: K, group: usize) {
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

/// The same of one group.
#[inline(always)]
pub(super) fn one_group<K: Key>(keys: &mut [K], keep: usize) {
    consecutive::<K, 1, LARGEST>(keys, as_key(keep), keys.len());
}

/// Weights whose keys are made together: of 64 groups of the largest size.
const BLOCK: usize = 64 * LARGEST;

/// Groups of a size that has no loop of its own that are chosen one by one where there are no more.
const FEW: usize = 8;

/// `L` groups at a time, and what is behind the last with them: nobody reads it.
#[inline(always)]
fn along<K: Key, const L: usize, const G: usize>(keys: &mut [K; BLOCK], n: usize, keep: usize, group: usize) {
    for start in (0..n).step_by(L * group) {
        consecutive::<K, L, G>(&mut keys[start..], as_key(keep), group);
    }
}

/// Elements of a block: of whole lanes of groups.
fn block_len(group: usize) -> usize {
    let lanes = if matches!(group, 2 | 4 | 8) { 16 } else { 64 };
    BLOCK / (lanes * group) * (lanes * group)
}

kernel! {
    /// Of the first `n` keys, group after group, 1 in the place of each that stays, 0 in that of each other.
    fn choose<K: Key>(keys: &mut [K; BLOCK], n: usize, keep: usize, group: usize) {
        // Known to the compiler, the comparisons of a small group stay in registers.
        match group {
            2 => along::<K, 16, 2>(keys, n, keep, 2),
            4 => along::<K, 16, 4>(keys, n, keep, 4),
            8 => along::<K, 16, 8>(keys, n, keep, 8),
            _ if n <= FEW * group => along::<K, 1, LARGEST>(keys, n, keep, group),
            _ => along::<K, 64, LARGEST>(keys, n, keep, group),
        }
    }
}

/// What stays, where it is not 0; in place, where there are no other weights.
#[inline(always)]
fn write_all<T: Element, K: Key, O: Output<T>>(x: Option<&[T]>, out: &mut [O::Item], stays: &[K]) {
    if let Some(x) = x {
        for ((out, &x), &stays) in out.iter_mut().zip(x).zip(stays) {
            *out = O::item(x, stays != K::ZERO);
        }
    } else {
        for (out, &stays) in out.iter_mut().zip(stays) {
            *out = O::masked(*out, stays != K::ZERO);
        }
    }
}

kernel! {
    /// What stays of a block.
    fn write<T: Element, K: Key, O: Output<T>>(job: Job<'_, T, O>, stays: &[K]) {
        write_all::<T, K, O>(job.x, job.out, stays);
    }
}

/// A piece of a row from column `first` on, of whole groups. Whether any key is NaN's.
fn row_piece<T: Element, S: Score<T>, O: Output<T>>(job: Job<'_, T, O>, score: S, first: usize, plan: Groups) -> bool {
    let mut keys = [S::Key::ZERO; BLOCK];
    let mut largest = S::Key::ZERO;
    let block = block_len(plan.group);
    for (i, piece) in job.pieces(block).enumerate() {
        let n = piece.out.len();
        largest = largest.max(fill(piece.source(), score, first + i * block, &mut keys[..n]));
        choose(&mut keys, n, plan.keep, plan.group);
        write(piece, &keys[..n]);
    }
    largest > S::INFINITY
}

/// `L` columns from each place on that is a multiple of it.
#[inline(always)]
fn across<K: Key, const L: usize, const G: usize>(keys: &mut [K; BLOCK], width: usize, keep: usize, group: usize) {
    let keep = as_key(keep);
    for first in (0..width).step_by(L) {
        let mut by_place = [[K::ZERO; L]; G];
        for p in 0..group {
            by_place[p].copy_from_slice(&keys[p * width + first..][..L]);
        }
        let beaten = beaten(&by_place, group);
        for p in 0..group {
            for (key, &beaten) in keys[p * width + first..][..L].iter_mut().zip(&beaten[p]) {
                *key = if beaten < keep { K::ONE } else { K::ZERO };
            }
        }
    }
}

kernel! {
    /// The same of keys by place: `group` rows of `width`, whole lanes.
    fn choose_across<K: Key>(keys: &mut [K; BLOCK], width: usize, keep: usize, group: usize) {
        // As many lanes as make two registers: more than a loop that is unrolled before it becomes vectors.
        match (group, size_of::<K>()) {
            (4, 2) => across::<K, 64, 4>(keys, width, keep, 4),
            (4, _) => across::<K, 32, 4>(keys, width, keep, 4),
            (_, 2) => across::<K, 64, LARGEST>(keys, width, keep, group),
            _ => across::<K, 32, LARGEST>(keys, width, keep, group),
        }
    }
}

/// Which columns of which bands are chosen together: `n` from `column` of `band` on, at `place` of their block.
#[derive(Clone, Copy)]
struct Span {
    band: usize,
    column: usize,
    place: usize,
    n: usize,
}

/// Columns `start..end`, where those of each band follow those of the band before.
#[inline(always)]
fn spans(start: usize, end: usize, inner: usize) -> impl Iterator<Item = Span> {
    (start / inner..end.div_ceil(inner)).map(move |band| {
        let (from, to) = (start.max(band * inner), end.min((band + 1) * inner));
        Span { band, column: from - band * inner, place: from - start, n: to - from }
    })
}

kernel! {
    /// The keys of columns, by place, and the largest.
    fn fill_across<T: Element, S: Score<T>>(
        x: &[T], score: S, columns: (usize, usize), plan: Groups, width: usize, keys: &mut [S::Key; BLOCK]
    ) -> S::Key {
        let mut largest = S::Key::ZERO;
        for Span { band, column, place, n } in spans(columns.0, columns.1, plan.inner) {
            for p in 0..plan.group {
                let x = &x[(band * plan.group + p) * plan.inner + column..][..n];
                let keys = &mut keys[p * width + place..][..n];
                largest = largest.max(score.keys(x, column, keys));
            }
        }
        largest
    }
}

kernel! {
    /// What stays of columns.
    fn write_across<T: Element, K: Key, O: Output<T>>(
        job: &mut Job<'_, T, O>, columns: (usize, usize), plan: Groups, width: usize, stays: &[K; BLOCK]
    ) {
        for Span { band, column, place, n } in spans(columns.0, columns.1, plan.inner) {
            for p in 0..plan.group {
                let start = (band * plan.group + p) * plan.inner + column;
                let (out, stays) = (&mut job.out[start..][..n], &stays[p * width + place..][..n]);
                write_all::<T, K, O>(job.x.map(|x| &x[start..][..n]), out, stays);
            }
        }
    }
}

/// Bands of groups: `group` rows of `inner` elements each. Whether any key is NaN's.
fn bands<T: Element, S: Score<T>, O: Output<T>>(job: Job<'_, T, O>, score: S, plan: Groups) -> bool {
    let mut job = job;
    let mut keys = [S::Key::ZERO; BLOCK];
    let mut largest = S::Key::ZERO;
    let columns = job.out.len() / plan.group;
    let width = (BLOCK / plan.group / 64 * 64).min(columns.next_multiple_of(64));
    for start in (0..columns).step_by(width) {
        let part = (start, columns.min(start + width));
        largest = largest.max(fill_across(job.source(), score, part, plan, width, &mut keys));
        choose_across(&mut keys, width, plan.keep, plan.group);
        write_across(&mut job, part, plan, width, &keys);
    }
    largest > S::INFINITY
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
        let whole = if inner > 1 { group * inner } else { n };
        let at_once = (CHUNK / whole).max(1) * whole;
        par::map(threads, job.pieces(at_once), |piece| {
            if inner > 1 {
                return bands(piece, score, plan);
            }
            let mut nan = false;
            for row in piece.pieces(whole) {
                nan |= row_piece(row, score, 0, plan);
            }
            nan
        })
    };
    found.into_iter().any(|nan| nan)
}

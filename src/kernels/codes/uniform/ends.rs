//! The ranges of the groups of a batch.

use super::ahead::Ahead;
use super::groups::{BATCH, IN_L1};
use super::mode::Mode;
use super::{BLOCK, Scheme};
use crate::isa::{self, kernel};
use crate::kernels::magnitude::largest_of_groups;
use crate::real::{Element, Key};

/// A group of up to so many elements is searched in blocks: a loop of unknown length is fast on long ones only.
const SHORT: usize = 256;

/// What is left of each such group is folded for all groups of a batch at once: from here on a group alone would use a
/// part of a register, then pass on one number (ranges of groups of 32 were a third of the whole, and are a quarter).
const LANES: usize = 8;

/// Groups of blocks in a batch.
const OF_BLOCKS: usize = IN_L1 / BLOCK;

/// Keys of the ends of ranges: the complements of the lowest, and the highest.
pub(super) type Ends<T> = [[<T as Element>::Key; BATCH]; 2];

kernel! {
    /// The ends of the ranges of groups. A kernel of its own: it is the same for several modes, for codes and for numbers.
    pub(super) fn find_ends<T: Element, M: Mode>(x: &[T], size: usize, ahead: Ahead, ends: &mut Ends<T>) {
        let n = x.len() / size;
        if M::SCHEME == Some(Scheme::Symmetric)
            && size == BLOCK
            && largest_of_groups::<T, BLOCK>(isa::current(), x, &mut ends[1][..n])
        {
            // Done.
        } else if FMA && size.is_multiple_of(BLOCK) && size <= SHORT {
            // (Old CPUs fold group by group: these loops were a third more bytes for them than for others.)
            ends_of_blocks::<T, M>(x, size, ends);
        } else {
            for (i, x) in x.chunks_exact(size).enumerate() {
                [ends[0][i], ends[1][i]] = ends_of_group::<T, M>(x, ahead);
            }
        }
        if M::SCHEME == Some(Scheme::Symmetric) {
            ends[0] = ends[1];
        }
    }
}

/// The ends of groups of blocks: plain folds of keys, which become vectors of any width, because they are exact in any
/// order.
#[inline(always)]
fn ends_of_blocks<T: Element, M: Mode>(x: &[T], size: usize, ends: &mut Ends<T>) {
    let mut lanes = [[[T::Key::MIN; LANES]; OF_BLOCKS]; 2];
    for (i, x) in x.chunks_exact(size).enumerate() {
        let mut of_group = [[T::Key::MIN; LANES]; 2];
        for block in x.as_chunks::<BLOCK>().0 {
            let [low, high] = &mut of_group;
            for (lane, (low, high)) in low.iter_mut().zip(high).enumerate() {
                for part in 0..BLOCK / LANES {
                    let [below, above] = ends_of::<T, M>(block[part * LANES + lane]);
                    *low = (*low).max(below);
                    *high = (*high).max(above);
                }
            }
        }
        [lanes[0][i], lanes[1][i]] = of_group;
    }
    let n = x.len() / size;
    if M::SCHEME != Some(Scheme::Symmetric) {
        fold_lanes(&lanes[0][..n], &mut ends[0]);
    }
    fold_lanes(&lanes[1][..n], &mut ends[1]);
}

/// The largest of each group's lanes: halves, quarters, then one of all groups in one loop.
#[inline(always)]
fn fold_lanes<K: Key>(lanes: &[[K; LANES]], out: &mut [K; BATCH]) {
    let (mut half, mut quarter) = ([K::MIN; OF_BLOCKS * LANES / 2], [K::MIN; OF_BLOCKS * LANES / 4]);
    let n = lanes.len();
    fold_pairs(lanes.as_flattened(), &mut half);
    fold_pairs(&half[..n * LANES / 2], &mut quarter);
    fold_pairs(&quarter[..n * LANES / 4], out);
}

/// The larger of each two.
#[inline(always)]
fn fold_pairs<K: Key>(x: &[K], out: &mut [K]) {
    for (out, &[a, b]) in out.iter_mut().zip(x.as_chunks::<2>().0) {
        *out = a.max(b);
    }
}

/// The ends of one group of any length.
#[inline(always)]
fn ends_of_group<T: Element, M: Mode>(x: &[T], ahead: Ahead) -> [T::Key; 2] {
    let (blocks, tail) = if x.len() <= SHORT { x.as_chunks::<BLOCK>() } else { (Default::default(), x) };
    let mut ends = [T::Key::MIN; 2];
    for block in blocks {
        let [low, high] = fold::<T, M>(block);
        ends = [ends[0].max(low), ends[1].max(high)];
    }
    for (part, quarter) in tail.chunks(IN_L1).zip(x.chunks(IN_L1 / 4)) {
        ahead.fetch_following(quarter);
        let [low, high] = fold::<T, M>(part);
        ends = [ends[0].max(low), ends[1].max(high)];
    }
    ends
}

/// The ends of the range of numbers, in one loop.
#[inline(always)]
fn fold<T: Element, M: Mode>(x: &[T]) -> [T::Key; 2] {
    let (mut low, mut high) = (T::Key::MIN, T::Key::MIN);
    for &v in x {
        let [below, above] = ends_of::<T, M>(v);
        low = low.max(below);
        high = high.max(above);
    }
    [low, high]
}

/// The ends of one number, of which symmetric codes need only the magnitude. Of finite numbers a NaN or an infinity shows
/// in the range, of others only the finite ones count.
#[inline(always)]
fn ends_of<T: Element, M: Mode>(v: T) -> [T::Key; 2] {
    if M::SCHEME == Some(Scheme::Symmetric) {
        return [T::Key::MIN, v.magnitude()];
    }
    let counts = M::SCHEME.is_some() || v.magnitude() < T::INFINITY_KEY;
    [v.key().not(), v.key()].map(|end| if counts { end } else { T::Key::MIN })
}

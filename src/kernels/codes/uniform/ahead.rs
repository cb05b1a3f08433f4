//! Memory that is asked for before it is read.

use super::BLOCK;
use super::groups::IN_L1;
use crate::isa;

/// How far ahead of what is computed memory is asked for, in elements, into both levels of the cache: codes are computed and
/// written from there, while the memory is read.
///
/// One thread, 64 M float32, groups of 32 to numbers, by a copy's time: 1.5 where nothing is asked for, 1.2 where it is for
/// one level, 0.95 to 1.0 for both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    /// Into the first level.
    near: usize,
    /// Into the second.
    pub(super) far: usize,
    /// The length of groups that are read twice, and not from the first level; 0 of others.
    group: usize,
}

impl Ahead {
    /// Of what is read from its begin to its end.
    pub(super) const STRAIGHT: Self = Self { near: IN_L1, far: 4 * IN_L1, group: 0 };

    /// Of long groups, which another follows: a quarter of it is asked for while the range is found, the rest with the codes.
    pub(super) const fn long_group(size: usize) -> Self {
        Self { near: IN_L1, far: size + size / 4, group: size }
    }

    /// While the range is found: of the group that follows what lies where `x` does in this one.
    #[inline(always)]
    pub(super) fn fetch_following<T>(self, x: &[T]) {
        if self.group > 0 {
            isa::prefetch::<true, _>(x, self.group);
        }
    }

    /// While the codes are made of a block that begins at so many elements of its group.
    #[inline(always)]
    pub(super) fn fetch<T>(self, block: &[T; BLOCK], at: usize) {
        isa::prefetch::<false, _>(block, Self::STRAIGHT.near);
        let is_late = at >= self.group - self.group / 4;
        isa::prefetch::<true, _>(block, if is_late { Self::STRAIGHT.far } else { self.far });
    }
}

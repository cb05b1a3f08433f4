//! Words that are zero, and those that are not.

use std::sync::atomic::{AtomicBool, Ordering};

use super::words::{LANES, Word, piece};
use super::{AHEAD, Op};
use crate::isa::{self, kernel};
use crate::par;

kernel! {
    /// How many words have some of these bits: in counters of their own width, emptied before they can overflow.
    fn count_words<W: Word>(x: &[W], mask: W) -> u64 {
        let mut count = 0;
        if W::BITS > 8 {
            // One sum: in lanes of so many bytes it is not kept in registers (8 times as long).
            for x in x.chunks(1 << 14) {
                let mut some = W::ZERO;
                for x in x.chunks(AHEAD / size_of::<W>()) {
                    isa::prefetch::<false, _>(x, x.len());
                    for &word in x {
                        some = some + if (word & mask) == W::ZERO { W::ZERO } else { W::ONE };
                    }
                }
                count += some.bits();
            }
            return count;
        }
        for x in x.chunks(127 * LANES) {
            let (blocks, tail) = x.as_chunks::<LANES>();
            let mut lanes = [W::ZERO; LANES];
            for block in blocks {
                isa::prefetch::<false, _>(block, AHEAD);
                for i in 0..LANES {
                    lanes[i] = lanes[i] + if (block[i] & mask) == W::ZERO { W::ZERO } else { W::ONE };
                }
            }
            for lane in lanes {
                count += lane.bits();
            }
            for &word in tail {
                count += u64::from((word & mask) != W::ZERO);
            }
        }
        count
    }
}

/// Whether a word that is zero, or one that is not, is found: chunks are read until there is one.
pub fn has<W: Word>(x: &[W], zero: bool, op: NonZero<W>, threads: usize) -> bool {
    let found = AtomicBool::new(false);
    par::for_each(threads, x.chunks(piece::<W>()), |chunk| {
        if found.load(Ordering::Relaxed) {
            return;
        }
        let [count, _] = op.chunk(chunk);
        if if zero { count < chunk.len() as u64 } else { count > 0 } {
            found.store(true, Ordering::Relaxed);
        }
    });
    found.into_inner()
}

/// How many words are not zero: of floats without their sign. (In the first; the second is not used.)
#[derive(Clone, Copy)]
pub struct NonZero<W>(W);

impl<W: Word> NonZero<W> {
    /// Of floats or integers.
    pub fn new(float: bool) -> Self {
        Self(if float { W::MAX } else { W::ONES })
    }
}

impl<W: Word> Op<W> for NonZero<W> {
    type Scalar = u64;
    const PIECE: usize = piece::<W>();
    const IDENTITY: [u64; 2] = [0; 2];
    #[inline(always)]
    fn step(self, s: [u64; 2], x: W) -> [u64; 2] {
        [s[0] + u64::from((x & self.0) != W::ZERO), s[1]]
    }
    fn chunk(self, x: &[W]) -> [u64; 2] {
        [count_words(x, self.0), 0]
    }
    #[inline(always)]
    fn merge(self, a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
        [a[0] + b[0], a[1] + b[1]]
    }
}

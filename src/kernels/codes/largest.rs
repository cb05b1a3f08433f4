//! The largest magnitudes of groups.

use super::Rows;
use crate::isa::kernel;

/// Elements that a loop takes at a time: loops of this length are vectorised as a whole.
const BLOCK: usize = 32;

/// Short groups, that are half of it.
const HALF: usize = BLOCK / 2;

kernel! {
    /// The largest magnitude of each group; a NaN or an infinity shows in it.
    pub fn absmax(x: &[f32], rows: Rows, out: &mut [f32]) {
        let Rows { row, size } = rows;
        for (row, out) in x.chunks(row).zip(out.chunks_mut(row.div_ceil(size))) {
            if size == HALF {
                largest_of_each::<HALF>(row, out);
            } else if size == BLOCK {
                largest_of_each::<BLOCK>(row, out);
            } else {
                for (group, out) in row.chunks(size).zip(out) {
                    *out = f32::from_bits(largest::<BLOCK>(group));
                }
            }
        }
    }
}

/// Of groups of a constant length, of which the last may be short.
#[inline(always)]
fn largest_of_each<const N: usize>(x: &[f32], out: &mut [f32]) {
    let (groups, tail) = x.as_chunks::<N>();
    let (whole, rest) = out.split_at_mut(groups.len());
    for (group, out) in groups.iter().zip(whole) {
        *out = f32::from_bits(largest::<N>(group));
    }
    if let Some(last) = rest.first_mut() {
        *last = f32::from_bits(largest::<N>(tail));
    }
}

/// The largest magnitude, by its bits: plain folds, exact in any order.
#[inline(always)]
fn largest<const N: usize>(x: &[f32]) -> u32 {
    let (blocks, tail) = x.as_chunks::<N>();
    let mut largest = 0;
    for block in blocks {
        let mut of_block = 0;
        for v in block {
            of_block = (v.to_bits() & 0x7fff_ffff).max(of_block);
        }
        largest = of_block.max(largest);
    }
    for v in tail {
        largest = (v.to_bits() & 0x7fff_ffff).max(largest);
    }
    largest
}

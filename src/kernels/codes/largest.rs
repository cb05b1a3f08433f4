//! The largest magnitudes of groups.

use super::Rows;
use crate::isa::{self, Isa, kernel};
use crate::kernels::magnitude::largest_of_groups;
use crate::real::Element;

/// Elements that a loop takes at a time: loops of this length are vectorised as a whole.
const BLOCK: usize = 32;

/// Longer groups are searched one by one.
const LONGEST: usize = 128;

/// How far ahead memory is asked for. (Further, and into the second level of the cache: 1.1 to 1.2 times as long.)
const AHEAD: usize = 512;

/// Short groups, that are half of it.
const HALF: usize = BLOCK / 2;

/// Blocks or halves whose magnitudes are found at once, where there is a way.
const AT_ONCE: usize = 16;

kernel! {
    /// The largest magnitude of each group; a NaN or an infinity shows in it.
    pub fn absmax(x: &[f32], rows: Rows, out: &mut [f32]) {
        let (Rows { row, size }, isa) = (rows, isa::current());
        for (row, out) in x.chunks(row).zip(out.chunks_mut(row.div_ceil(size))) {
            if size == HALF {
                largest_of_each::<HALF>(isa, row, HALF, out);
            } else if size.is_power_of_two() && (BLOCK..=LONGEST).contains(&size) {
                largest_of_each::<BLOCK>(isa, row, size, out);
            } else {
                for (group, out) in row.chunks(size).zip(out) {
                    *out = f32::from_bits(largest::<BLOCK>(group));
                }
            }
        }
    }
}

/// Of groups of one part of constant length, or a power of two of them; the last group may be short.
#[inline(always)]
fn largest_of_each<const N: usize>(isa: Isa, all: &[f32], size: usize, out: &mut [f32]) {
    let (parts, each) = (size / N, AT_ONCE * N / size);
    for (x, out) in all.chunks(AT_ONCE * N).zip(out.chunks_mut(each)) {
        isa::prefetch::<false, _>(x, AHEAD);
        let mut keys = [0; AT_ONCE];
        if x.len() == AT_ONCE * N && largest_of_groups::<f32, N>(isa, x, &mut keys) {
            for (out, keys) in out.iter_mut().zip(keys.chunks_exact(parts)) {
                *out = f32::from_key(keys.iter().copied().fold(0, i32::max));
            }
            continue;
        }
        for (group, out) in x.chunks(size).zip(out) {
            *out = f32::from_bits(largest::<N>(group));
        }
    }
}

/// The largest magnitude, by its bits, in lanes: exact in any order. (Of a fold of each block compilers take blocks side by
/// side, and gather their numbers one by one: 60 kB of it.)
#[inline(always)]
fn largest<const N: usize>(x: &[f32]) -> u32 {
    let (blocks, tail) = x.as_chunks::<N>();
    let mut lanes = [0; N];
    for block in blocks {
        for (lane, v) in lanes.iter_mut().zip(block) {
            *lane = (v.to_bits() & 0x7fff_ffff).max(*lane);
        }
    }
    let mut largest = lanes.into_iter().fold(0, u32::max);
    for v in tail {
        largest = (v.to_bits() & 0x7fff_ffff).max(largest);
    }
    largest
}

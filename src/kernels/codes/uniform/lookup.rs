//! Packed symmetric codes to float32 by a table of 16 numbers, by the instructions that permute lanes.
//!
//! One thread, in the cache, ns an element of groups of 32: 0.19 by way of a byte for each code, here 0.10 (2 bits: 0.11).

use super::decode::{BATCH, number};
use super::tiling::Runs;
use super::{BLOCK, ParamsRef, Scheme, Uniform};
use crate::isa::{self, Isa, kernel};
use crate::kernels::lines::Target;
use crate::par;
use crate::real::{Element, Fused, Real};

/// Bytes of a block of codes of 4 bits.
const BYTES: usize = BLOCK / 2;

/// The numbers of packed codes of 4 or 2 bits, past the caches where `streamed`: whether there was a way, for float32 in whole
/// blocks.
pub(super) fn values<C: Real, O: Element>(
    packed: &[u8],
    runs: Runs,
    uniform: Uniform,
    params: ParamsRef<'_, C>,
    out: &mut [O],
    streamed: bool,
) -> bool {
    // Without padding bits at the ends of rows.
    let is_dense = packed.len() * 8 == out.len() * uniform.bits as usize;
    let in_blocks = is_dense && out.len().is_multiple_of(BLOCK) && runs.are_of(BLOCK);
    let is_symmetric = uniform.scheme == Scheme::Symmetric && C::BITS == 32;
    if uniform.bits == 8 || !is_symmetric || !in_blocks || isa::current() == Isa::Portable {
        return false;
    }
    let Some(out) = O::as_float32_mut(out) else { return false };
    if uniform.bits == 4 {
        blocks(packed, runs, uniform, params, out, streamed);
    } else {
        par::with_scratch(out.len() / 2, |wide| {
            widen(packed, wide);
            blocks(wide, runs, uniform, params, out, streamed);
        });
    }
    true
}

kernel! {
    /// Codes of 2 bits as codes of 4.
    fn widen(packed: &[u8], wide: &mut [u8]) {
        for (wide, &byte) in wide.as_chunks_mut::<2>().0.iter_mut().zip(packed) {
            let halves = (byte as u16 | (byte as u16) << 4) & 0x0f0f;
            *wide = ((halves | halves << 2) & 0x3333).to_le_bytes();
        }
    }
}

kernel! {
    /// As [`super::decode::blocks`], of codes of 4 bits.
    fn blocks<C: Real>(
        packed: &[u8],
        runs: Runs,
        uniform: Uniform,
        params: ParamsRef<'_, C>,
        out: &mut [f32],
        streamed: bool,
    ) {
        let (isa, mut runs, mut packed, mut rest) = (isa::current(), runs, packed, out.len());
        let usual = table(uniform, C::from_i16(1));
        let mut target = Target::new(out, streamed);
        while rest > 0 {
            let (first, len, n) = runs.next_even(rest, BATCH);
            let codes = packed.split_off(..n * len / 2).unwrap_or_default();
            rest -= n * len;
            let scale = &params.scale[first..first + n];
            let (mut scales, mut are_usual) = ([1.0; BATCH], true);
            for (own, scale) in scales.iter_mut().zip(scale) {
                *own = scale.store_as();
                // Of a zero no product has a sign, and none comes near the largest number.
                are_usual &= *own > 0.0 && *own <= f32::DIVISORS[1];
            }
            if are_usual {
                look_up(isa, (codes, len), (&[usual], &scales), &mut target);
            } else {
                let tables: Vec<_> = scale.iter().map(|&scale| table(uniform, scale)).collect();
                look_up(isa, (codes, len), (&tables, &[1.0; BATCH]), &mut target);
            }
        }
        target.finish();
    }
}

/// The numbers of all codes with a scale.
#[inline(never)]
fn table<C: Real>(uniform: Uniform, scale: C) -> [f32; 16] {
    let coding = uniform.coding((scale, 0, C::ZERO));
    std::array::from_fn(|code| number(code as u8, coding).store_as())
}

/// The numbers of groups of `len` codes, of which each has a table (or all have one) and what its numbers are multiplied by.
#[inline(always)]
fn look_up(
    isa: Isa,
    (codes, len): (&[u8], usize),
    (tables, scales): (&[[f32; 16]], &[f32; BATCH]),
    target: &mut Target<'_, f32>,
) {
    let groups = codes.as_chunks::<BYTES>().0.chunks_exact(len / BLOCK).enumerate();
    match target {
        Target::Lines(lines) => {
            let mut own = lines.again();
            for (group, codes) in groups {
                let (table, scale) = (tables.get(group).unwrap_or(&tables[0]), scales[group % BATCH]);
                for codes in codes {
                    own.push(&block(isa, (table, scale), codes));
                }
            }
            let place = own.place();
            lines.go_on(place);
        }
        Target::Slice(out) => {
            let out = out.split_off_mut(..2 * codes.len()).unwrap_or_default().as_chunks_mut::<BLOCK>().0;
            for ((group, codes), out) in groups.zip(out.chunks_exact_mut(len / BLOCK)) {
                let (table, scale) = (tables.get(group).unwrap_or(&tables[0]), scales[group % BATCH]);
                for (codes, out) in codes.iter().zip(out) {
                    *out = block(isa, (table, scale), codes);
                }
            }
        }
    }
}

/// The numbers of a block.
#[inline(always)]
fn block(isa: Isa, (table, scale): (&[f32; 16], f32), codes: &[u8; BYTES]) -> [f32; BLOCK] {
    let mut block = [0.0; BLOCK];
    #[cfg(target_arch = "x86_64")]
    if super::super::x86::decode(isa, table, codes, [scale; 2], &mut block) {
        return block;
    }
    let _ = isa;
    for (pair, code) in block.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        *pair = [code & 15, code >> 4].map(|code| table[code as usize] * scale);
    }
    block
}

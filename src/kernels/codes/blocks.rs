//! The loops over groups of one code with one kind of scale.

use super::{Code, Rows, Scale};
use crate::isa::kernel;
use crate::kernels::pack::packed_len;

/// Elements that a loop takes at a time: loops of this length are vectorised as a whole.
const BLOCK: usize = 32;

kernel! {
    /// The largest magnitude of each group; a NaN or an infinity shows in it.
    pub fn absmax(x: &[f32], rows: Rows, out: &mut [f32]) {
        let Rows { row, size } = rows;
        for (row, out) in x.chunks(row).zip(out.chunks_mut(row.div_ceil(size))) {
            for (group, out) in row.chunks(size).zip(out) {
                *out = f32::from_bits(largest(group));
            }
        }
    }
}

/// The largest magnitude, by its bits: exact in any order.
#[inline(always)]
fn largest(x: &[f32]) -> u32 {
    let (blocks, tail) = x.as_chunks::<BLOCK>();
    let mut lanes = [0u32; BLOCK];
    for block in blocks {
        for (lane, v) in lanes.iter_mut().zip(block) {
            *lane = (v.to_bits() & 0x7fff_ffff).max(*lane);
        }
    }
    let mut largest = 0;
    for lane in lanes {
        largest = lane.max(largest);
    }
    for v in tail {
        largest = (v.to_bits() & 0x7fff_ffff).max(largest);
    }
    largest
}

kernel! {
    /// The scales of groups with these largest magnitudes.
    pub fn store<K: Code, S: Scale>(absmax: &[f32], global: f32, scale: &mut [S::Stored]) {
        for (scale, &absmax) in scale.iter_mut().zip(absmax) {
            *scale = S::store::<K>(absmax, global);
        }
    }
}

kernel! {
    /// Codes, packed.
    pub fn encode<K: Code, S: Scale>(x: &[f32], rows: Rows, scale: &[S::Stored], global: f32, codes: &mut [u8]) {
        let Rows { row, size } = rows;
        let each = x.chunks(row).zip(codes.chunks_mut(packed_len(row, K::BITS)));
        for ((x, codes), scale) in each.zip(scale.chunks(row.div_ceil(size))) {
            if size == 1 && K::BITS == 8 {
                encode_each::<K, S>(x, scale, global, codes);
            } else if size * 2 == BLOCK {
                encode_halves::<K, S>(x, scale, global, codes);
            } else {
                let groups = x.chunks(size).zip(codes.chunks_mut(packed_len(size, K::BITS)));
                for ((x, codes), &scale) in groups.zip(scale) {
                    encode_run::<K, S>(x, S::divisor(scale, global), codes);
                }
            }
        }
    }
}

/// The codes of numbers with one scale.
#[inline(always)]
fn encode_run<K: Code, S: Scale>(x: &[f32], divisor: S::Divisor, codes: &mut [u8]) {
    let (blocks, tail) = x.as_chunks::<BLOCK>();
    let (block_codes, tail_codes) = codes.split_at_mut(packed_len(blocks.len() * BLOCK, K::BITS));
    for (x, codes) in blocks.iter().zip(block_codes.chunks_exact_mut(packed_len(BLOCK, K::BITS))) {
        let mut bytes = [0; BLOCK];
        for (byte, &x) in bytes.iter_mut().zip(x) {
            *byte = K::encode(S::over(x, divisor)) as u8;
        }
        pack::<K>(&bytes, codes);
    }
    let mut bytes = [0; BLOCK];
    for (byte, &x) in bytes.iter_mut().zip(tail) {
        *byte = K::encode(S::over(x, divisor)) as u8;
    }
    pack_some::<K>(&bytes, tail_codes);
}

/// The codes of numbers of which each half of a block has a scale.
#[inline(always)]
fn encode_halves<K: Code, S: Scale>(x: &[f32], scale: &[S::Stored], global: f32, codes: &mut [u8]) {
    let each = x.chunks(BLOCK).zip(codes.chunks_mut(packed_len(BLOCK, K::BITS)));
    for ((x, codes), scale) in each.zip(scale.chunks(2)) {
        let last = scale.len() - 1;
        let mut divisors = [S::divisor(scale[0], global); BLOCK];
        divisors[BLOCK / 2..].fill(S::divisor(scale[last], global));
        let mut numbers = [0.0; BLOCK];
        numbers[..x.len()].copy_from_slice(x);
        let mut bytes = [0; BLOCK];
        for i in 0..BLOCK {
            bytes[i] = K::encode(S::over(numbers[i], divisors[i])) as u8;
        }
        if x.len() == BLOCK {
            pack::<K>(&bytes, codes);
        } else {
            bytes[x.len()..].fill(0);
            pack_some::<K>(&bytes, codes);
        }
    }
}

/// The codes of numbers with a scale each, of 8 bits.
#[inline(always)]
fn encode_each<K: Code, S: Scale>(x: &[f32], scale: &[S::Stored], global: f32, codes: &mut [u8]) {
    assert!(K::BITS == 8, "a code for each byte");
    for ((&x, &scale), code) in x.iter().zip(scale).zip(codes) {
        *code = K::encode(S::over(x, S::divisor(scale, global))) as u8;
    }
}

/// Pack the codes of a block.
#[inline(always)]
fn pack<K: Code>(bytes: &[u8; BLOCK], codes: &mut [u8]) {
    if K::BITS == 8 {
        codes.copy_from_slice(bytes);
        return;
    }
    for (code, pair) in codes.iter_mut().zip(bytes.as_chunks::<2>().0) {
        let w = u16::from_le_bytes(*pair);
        *code = (w | w >> 4) as u8;
    }
}

/// Pack the codes of less than a block; what follows them is 0.
#[inline(always)]
fn pack_some<K: Code>(bytes: &[u8; BLOCK], codes: &mut [u8]) {
    if K::BITS == 8 {
        codes.copy_from_slice(&bytes[..codes.len()]);
    } else {
        for (code, [low, high]) in codes.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *code = low | high << 4;
        }
    }
}

kernel! {
    /// The numbers of codes.
    pub fn decode<K: Code, S: Scale>(codes: &[u8], rows: Rows, scale: &[S::Stored], global: f32, out: &mut [f32]) {
        let Rows { row, size } = rows;
        let each = out.chunks_mut(row).zip(codes.chunks(packed_len(row, K::BITS)));
        for ((out, codes), scale) in each.zip(scale.chunks(row.div_ceil(size))) {
            if size == 1 && K::BITS == 8 {
                for ((out, &code), &scale) in out.iter_mut().zip(codes).zip(scale) {
                    *out = K::decode(code.into()) * S::value(scale, global);
                }
                continue;
            }
            let groups = out.chunks_mut(size).zip(codes.chunks(packed_len(size, K::BITS)));
            for ((out, codes), &scale) in groups.zip(scale) {
                decode_run::<K>(codes, S::value(scale, global), out);
            }
        }
    }
}

/// The numbers of codes with one scale.
#[inline(always)]
fn decode_run<K: Code>(codes: &[u8], scale: f32, out: &mut [f32]) {
    let (blocks, tail) = out.as_chunks_mut::<BLOCK>();
    let (block_codes, tail_codes) = codes.split_at(packed_len(blocks.len() * BLOCK, K::BITS));
    for (out, codes) in blocks.iter_mut().zip(block_codes.chunks_exact(packed_len(BLOCK, K::BITS))) {
        let bytes = unpack::<K>(codes);
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = K::decode(byte.into()) * scale;
        }
    }
    let bytes = unpack::<K>(tail_codes);
    for (out, byte) in tail.iter_mut().zip(bytes) {
        *out = K::decode(byte.into()) * scale;
    }
}

/// Up to a block of codes, one a byte.
#[inline(always)]
fn unpack<K: Code>(codes: &[u8]) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    if K::BITS == 8 {
        bytes[..codes.len()].copy_from_slice(codes);
    } else {
        for (pair, &code) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            let w = code as u16;
            *pair = ((w | w << 4) & 0x0f0f).to_le_bytes();
        }
    }
    bytes
}

//! The loops over groups of one code with one kind of scale.

use super::fused::{encode_four_bits, encode_one, pack, signed};
#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{BLOCK, Code, Rows, Scale};
use crate::isa::{self, Isa, kernel};
use crate::kernels::lines::{Lines, Target};
use crate::kernels::pack::packed_len;

/// Groups of this length are taken two at a time.
const HALF: usize = BLOCK / 2;

/// How far ahead memory is asked for: as far as the largest magnitudes of the next groups are found before their codes, so
/// that it comes while those of these are made.
const AHEAD: usize = 4096;
/// And that of the codes: a store to a line that is not there holds up all that follow.
const CODES_AHEAD: usize = 1024;

/// Such short groups whose scales are read in a loop of their own.
const AT_ONCE: usize = 32;

kernel! {
    /// The scales of groups with these largest magnitudes.
    pub fn store<K: Code, S: Scale>(absmax: &[f32], global: f32, scale: &mut [S::Item]) {
        for (scale, &absmax) in scale.iter_mut().zip(absmax) {
            *scale = S::store::<K>(absmax, global);
        }
    }
}

kernel! {
    /// Codes, packed.
    pub fn encode<K: Code, S: Scale>(x: &[f32], rows: Rows, scale: &[S::Item], global: f32, codes: &mut [u8]) {
        if FMA && S::is_fused(scale, global) {
            encode_rows::<K, S, true, FMA>(x, rows, scale, global, codes);
        } else {
            encode_rows::<K, S, false, FMA>(x, rows, scale, global, codes);
        }
    }
}

/// Loops for short groups are only for sets with `FMA`: what is left is a third of the bytes, and is for old CPUs.
#[inline(always)]
fn encode_rows<K: Code, S: Scale, const FUSED: bool, const FMA: bool>(
    x: &[f32],
    rows: Rows,
    scale: &[S::Item],
    global: f32,
    codes: &mut [u8],
) {
    let (Rows { row, size }, isa) = (rows, isa::current());
    let each = x.chunks(row).zip(codes.chunks_mut(packed_len(row, K::BITS)));
    for ((x, codes), scale) in each.zip(scale.chunks(row.div_ceil(size))) {
        if size == 1 && K::BITS == 8 {
            for ((&x, &scale), code) in x.iter().zip(scale).zip(codes) {
                *code = encode_one::<K, S, false>(x, S::divisor(scale, global)) as u8;
            }
            continue;
        }
        if !FMA || (size != HALF && size != BLOCK) {
            let groups = x.chunks(size).zip(codes.chunks_mut(packed_len(size, K::BITS)));
            for ((x, codes), &scale) in groups.zip(scale) {
                let divisor = S::divisor(scale, global);
                encode_blocks::<K, S, FUSED>(isa, x, |_| [divisor; 2], codes);
            }
            continue;
        }
        let batches = x.chunks(AT_ONCE * size).zip(codes.chunks_mut(packed_len(AT_ONCE * size, K::BITS)));
        for ((x, codes), scale) in batches.zip(scale.chunks(AT_ONCE)) {
            let divisors = of_each(scale, |scale| S::divisor(scale, global));
            if size == HALF {
                encode_blocks::<K, S, FUSED>(isa, x, |i| halves(&divisors, i), codes);
            } else {
                encode_blocks::<K, S, FUSED>(isa, x, |i| [divisors[i % AT_ONCE]; 2], codes);
            }
        }
    }
}

/// What groups that are taken at a time have, of their scales.
#[inline(always)]
fn of_each<T: Copy, D: Copy + Default>(scales: &[T], of: impl Fn(T) -> D) -> [D; AT_ONCE] {
    let mut all = [D::default(); AT_ONCE];
    if let Some(scales) = scales.first_chunk::<AT_ONCE>() {
        for i in 0..AT_ONCE {
            all[i] = of(scales[i]);
        }
    } else {
        for (one, &scale) in all.iter_mut().zip(scales) {
            *one = of(scale);
        }
    }
    all
}

/// What the halves of a block have, of what each has.
#[inline(always)]
fn halves<D: Copy>(each: &[D; AT_ONCE], block: usize) -> [D; 2] {
    [each[2 * block % AT_ONCE], each[(2 * block + 1) % AT_ONCE]]
}

/// The packed codes of whole blocks and a short one; `divisors` says those of a block's halves.
#[inline(always)]
fn encode_blocks<K: Code, S: Scale, const FUSED: bool>(
    isa: Isa,
    x: &[f32],
    divisors: impl Fn(usize) -> [S::Divisor; 2],
    codes: &mut [u8],
) {
    let (blocks, tail) = x.as_chunks::<BLOCK>();
    let bytes = packed_len(BLOCK, K::BITS);
    let (whole, rest) = codes.split_at_mut(blocks.len() * bytes);
    for (i, (x, codes)) in blocks.iter().zip(whole.chunks_exact_mut(bytes)).enumerate() {
        isa::prefetch::<true, _>(x, AHEAD);
        isa::prefetch::<false, _>(&*codes, CODES_AHEAD);
        encode_block::<K, S, FUSED>(isa, x, divisors(i), codes);
    }
    if !tail.is_empty() {
        encode_block::<K, S, FUSED>(isa, tail, divisors(blocks.len()), rest);
    }
}

/// The packed codes of up to a block, of which each half has a divisor; what follows the last is 0.
#[inline(always)]
fn encode_block<K: Code, S: Scale, const FUSED: bool>(
    isa: Isa,
    x: &[f32],
    divisors: [S::Divisor; 2],
    codes: &mut [u8],
) {
    let Some(x) = x.first_chunk::<BLOCK>() else {
        let mut bytes = [0; BLOCK];
        for (i, (byte, &x)) in bytes.iter_mut().zip(x).enumerate() {
            *byte = encode_one::<K, S, FUSED>(x, divisors[i / HALF]) as u8;
        }
        if K::BITS == 8 {
            codes.copy_from_slice(&bytes[..codes.len()]);
        } else {
            pack(&bytes, codes);
        }
        return;
    };
    let mut units = [0.0; BLOCK];
    for i in 0..HALF {
        units[i] = S::over::<FUSED>(x[i], divisors[0]);
        units[i + HALF] = S::over::<FUSED>(x[i + HALF], divisors[1]);
    }
    if K::BITS == 8 {
        for (code, (&units, &x)) in codes[..BLOCK].iter_mut().zip(units.iter().zip(x)) {
            *code = K::encode(signed::<FUSED>(units, x)) as u8;
        }
    } else if let Some(codes) = codes.first_chunk_mut::<{ BLOCK / 2 }>() {
        encode_four_bits::<K, FUSED>(isa, &units, x, codes);
    }
}

kernel! {
    /// The numbers of codes; past the caches where `streamed`.
    pub fn decode<K: Code, S: Scale>(
        codes: &[u8], rows: Rows, scale: &[S::Item], global: f32, out: &mut [f32], streamed: bool
    ) {
        let (Rows { row, size }, isa) = (rows, isa::current());
        // Rows of whole groups follow each other as those of one row.
        let in_blocks = row.is_multiple_of(size.max(BLOCK)) && (size == HALF || size.is_multiple_of(BLOCK));
        let out = match Target::new(out, FMA && streamed && in_blocks) {
            Target::Lines(mut lines) => {
                decode_lines::<K, S>(isa, codes, (size, scale, global), &mut lines);
                return lines.finish();
            }
            Target::Slice(out) => out,
        };
        let each = out.chunks_mut(row).zip(codes.chunks(packed_len(row, K::BITS)));
        for ((out, codes), scale) in each.zip(scale.chunks(row.div_ceil(size))) {
            if size == 1 && K::BITS == 8 {
                for ((out, &code), &scale) in out.iter_mut().zip(codes).zip(scale) {
                    *out = K::decode(code.into()) * S::value(scale, global);
                }
                continue;
            }
            if !FMA || (size != HALF && size != BLOCK) {
                let groups = out.chunks_mut(size).zip(codes.chunks(packed_len(size, K::BITS)));
                for ((out, codes), &scale) in groups.zip(scale) {
                    let value = S::value(scale, global);
                    decode_blocks::<K>(isa, codes, |_| [value; 2], out);
                }
                continue;
            }
            let batches = out.chunks_mut(AT_ONCE * size).zip(codes.chunks(packed_len(AT_ONCE * size, K::BITS)));
            for ((out, codes), scale) in batches.zip(scale.chunks(AT_ONCE)) {
                let values = of_each(scale, |scale| S::value(scale, global));
                if size == HALF {
                    decode_blocks::<K>(isa, codes, |i| halves(&values, i), out);
                } else {
                    decode_blocks::<K>(isa, codes, |i| [values[i % AT_ONCE]; 2], out);
                }
            }
        }
    }
}

/// The numbers of groups of blocks or halves, block by block.
#[inline(always)]
fn decode_lines<K: Code, S: Scale>(
    isa: Isa,
    codes: &[u8],
    (size, scale, global): (usize, &[S::Item], f32),
    lines: &mut Lines<'_, f32>,
) {
    let (n, bytes) = (size.div_ceil(BLOCK), packed_len(BLOCK, K::BITS));
    for (codes, scale) in codes.chunks(packed_len(AT_ONCE * size, K::BITS)).zip(scale.chunks(AT_ONCE)) {
        let values = of_each(scale, |scale| S::value(scale, global));
        let (step, second) = if size == HALF { (2, 1) } else { (1, 0) };
        for (codes, values) in codes.chunks(n * bytes).zip(values.chunks(step)) {
            for codes in codes.chunks_exact(bytes) {
                let mut block = [0.0; BLOCK];
                decode_block::<K>(isa, codes, [values[0], values[second]], &mut block);
                lines.push(&block);
            }
        }
    }
}

/// The numbers of whole blocks and a short one.
#[inline(always)]
pub(super) fn decode_blocks<K: Code>(isa: Isa, codes: &[u8], scales: impl Fn(usize) -> [f32; 2], out: &mut [f32]) {
    let (blocks, tail) = out.as_chunks_mut::<BLOCK>();
    let bytes = packed_len(BLOCK, K::BITS);
    let (whole, rest) = codes.split_at(blocks.len() * bytes);
    let last = scales(blocks.len());
    for (i, (out, codes)) in blocks.iter_mut().zip(whole.chunks_exact(bytes)).enumerate() {
        decode_block::<K>(isa, codes, scales(i), out);
    }
    if !tail.is_empty() {
        decode_block::<K>(isa, rest, last, tail);
    }
}

/// The numbers of up to a block of codes.
#[inline(always)]
fn decode_block<K: Code>(isa: Isa, codes: &[u8], scales: [f32; 2], out: &mut [f32]) {
    let mut bytes = [0; BLOCK];
    let Some(out) = out.first_chunk_mut::<BLOCK>() else {
        let mut some = [0; BLOCK];
        some[..codes.len()].copy_from_slice(codes);
        unpack::<K>(&some, &mut bytes);
        for (i, (out, &byte)) in out.iter_mut().zip(&bytes).enumerate() {
            *out = K::decode(byte.into()) * scales[i / HALF];
        }
        return;
    };
    #[cfg(target_arch = "x86_64")]
    if let (Some(numbers), Some(codes)) = (K::NUMBERS, codes.first_chunk::<{ BLOCK / 2 }>())
        && x86::decode(isa, numbers, codes, scales, out)
    {
        return;
    }
    unpack::<K>(&codes[..packed_len(BLOCK, K::BITS)], &mut bytes);
    let mut wide = [scales[0]; BLOCK];
    wide[HALF..].fill(scales[1]);
    for i in 0..BLOCK {
        out[i] = K::decode(bytes[i].into()) * wide[i];
    }
}

/// The codes of a block, one a byte.
#[inline(always)]
fn unpack<K: Code>(codes: &[u8], bytes: &mut [u8; BLOCK]) {
    if K::BITS == 8 {
        bytes.copy_from_slice(&codes[..BLOCK]);
        return;
    }
    for (pair, &code) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(&codes[..BLOCK / 2]) {
        let w = code as u16;
        *pair = ((w | w << 4) & 0x0f0f).to_le_bytes();
    }
}

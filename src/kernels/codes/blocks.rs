//! The loops over groups of one code with one kind of scale.

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{Code, Rows, Scale};
use crate::isa::{self, Isa, kernel};
use crate::kernels::pack::packed_len;

/// Elements that a loop takes at a time: loops of this length are vectorised as a whole.
const BLOCK: usize = 32;

/// Groups of this length are taken two at a time.
const HALF: usize = BLOCK / 2;

kernel! {
    /// The largest magnitude of each group; a NaN or an infinity shows in it.
    pub fn absmax(x: &[f32], rows: Rows, out: &mut [f32]) {
        let Rows { row, size } = rows;
        for (row, out) in x.chunks(row).zip(out.chunks_mut(row.div_ceil(size))) {
            for (group, out) in row.chunks(size).zip(out) {
                *out = f32::from_bits(if size == HALF { largest::<HALF>(group) } else { largest::<BLOCK>(group) });
            }
        }
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
        let (Rows { row, size }, isa) = (rows, isa::current());
        let each = x.chunks(row).zip(codes.chunks_mut(packed_len(row, K::BITS)));
        for ((x, codes), scale) in each.zip(scale.chunks(row.div_ceil(size))) {
            if size == 1 && K::BITS == 8 {
                for ((&x, &scale), code) in x.iter().zip(scale).zip(codes) {
                    *code = K::encode(S::over(x, S::divisor(scale, global))) as u8;
                }
            } else if size == HALF {
                let halves = x.chunks(BLOCK).zip(codes.chunks_mut(packed_len(BLOCK, K::BITS)));
                for ((x, codes), scale) in halves.zip(scale.chunks(2)) {
                    let last = scale[scale.len() - 1];
                    encode_block::<K, S>(isa, x, [scale[0], last].map(|scale| S::divisor(scale, global)), codes);
                }
            } else {
                let groups = x.chunks(size).zip(codes.chunks_mut(packed_len(size, K::BITS)));
                for ((x, codes), &scale) in groups.zip(scale) {
                    let divisors = [S::divisor(scale, global); 2];
                    for (x, codes) in x.chunks(BLOCK).zip(codes.chunks_mut(packed_len(BLOCK, K::BITS))) {
                        encode_block::<K, S>(isa, x, divisors, codes);
                    }
                }
            }
        }
    }
}

/// The packed codes of up to a block, of which each half has a divisor; what follows the last is 0.
#[inline(always)]
fn encode_block<K: Code, S: Scale>(isa: Isa, x: &[f32], divisors: [S::Divisor; 2], codes: &mut [u8]) {
    let Some(x) = x.first_chunk::<BLOCK>() else {
        let mut bytes = [0; BLOCK];
        for (i, (byte, &x)) in bytes.iter_mut().zip(x).enumerate() {
            *byte = K::encode(S::over(x, divisors[i / HALF])) as u8;
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
        units[i] = S::over(x[i], divisors[0]);
        units[i + HALF] = S::over(x[i + HALF], divisors[1]);
    }
    if K::BITS == 8 {
        for (code, &x) in codes[..BLOCK].iter_mut().zip(&units) {
            *code = K::encode(x) as u8;
        }
    } else if let Some(codes) = codes.first_chunk_mut::<{ BLOCK / 2 }>() {
        encode_four_bits::<K>(isa, &units, codes);
    }
}

/// The packed codes of a block.
#[inline(always)]
fn encode_four_bits<K: Code>(isa: Isa, x: &[f32; BLOCK], codes: &mut [u8; BLOCK / 2]) {
    let mut bytes = [0; BLOCK];
    if let Some(book) = K::CODEBOOK {
        #[cfg(target_arch = "x86_64")]
        if x86::encode(isa, book, x, codes) {
            return;
        }
        // In lanes of 32 bits, as what is compared: as bytes each comparison would be narrowed first.
        let mut wide = [0; BLOCK];
        for (code, &x) in wide.iter_mut().zip(x) {
            *code = K::encode(x);
        }
        for (byte, &code) in bytes.iter_mut().zip(&wide) {
            *byte = code as u8;
        }
    } else {
        for (byte, &x) in bytes.iter_mut().zip(x) {
            *byte = K::encode(x) as u8;
        }
    }
    pack(&bytes, codes);
}

/// Two codes of 4 bits to a byte.
#[inline(always)]
fn pack(bytes: &[u8], codes: &mut [u8]) {
    for (code, pair) in codes.iter_mut().zip(bytes.as_chunks::<2>().0) {
        let w = u16::from_le_bytes(*pair);
        *code = (w | w >> 4) as u8;
    }
}

kernel! {
    /// The numbers of codes.
    pub fn decode<K: Code, S: Scale>(codes: &[u8], rows: Rows, scale: &[S::Stored], global: f32, out: &mut [f32]) {
        let (Rows { row, size }, isa) = (rows, isa::current());
        let each = out.chunks_mut(row).zip(codes.chunks(packed_len(row, K::BITS)));
        for ((out, codes), scale) in each.zip(scale.chunks(row.div_ceil(size))) {
            if size == 1 && K::BITS == 8 {
                for ((out, &code), &scale) in out.iter_mut().zip(codes).zip(scale) {
                    *out = K::decode(code.into()) * S::value(scale, global);
                }
            } else if size == HALF {
                let halves = out.chunks_mut(BLOCK).zip(codes.chunks(packed_len(BLOCK, K::BITS)));
                for ((out, codes), scale) in halves.zip(scale.chunks(2)) {
                    let mut scales = [S::value(scale[0], global); BLOCK];
                    scales[HALF..].fill(S::value(scale[scale.len() - 1], global));
                    decode_block::<K>(isa, codes, &scales, out);
                }
            } else {
                let groups = out.chunks_mut(size).zip(codes.chunks(packed_len(size, K::BITS)));
                for ((out, codes), &scale) in groups.zip(scale) {
                    let scales = [S::value(scale, global); BLOCK];
                    for (out, codes) in out.chunks_mut(BLOCK).zip(codes.chunks(packed_len(BLOCK, K::BITS))) {
                        decode_block::<K>(isa, codes, &scales, out);
                    }
                }
            }
        }
    }
}

/// The numbers of up to a block of codes.
#[inline(always)]
fn decode_block<K: Code>(isa: Isa, codes: &[u8], scales: &[f32; BLOCK], out: &mut [f32]) {
    let mut bytes = [0; BLOCK];
    let Some(out) = out.first_chunk_mut::<BLOCK>() else {
        let mut some = [0; BLOCK];
        some[..codes.len()].copy_from_slice(codes);
        unpack::<K>(&some, &mut bytes);
        for ((out, &byte), &scale) in out.iter_mut().zip(&bytes).zip(scales) {
            *out = K::decode(byte.into()) * scale;
        }
        return;
    };
    unpack::<K>(&codes[..packed_len(BLOCK, K::BITS)], &mut bytes);
    #[cfg(target_arch = "x86_64")]
    if let Some(book) = K::CODEBOOK
        && x86::decode(isa, book, &bytes, scales, out)
    {
        return;
    }
    for i in 0..BLOCK {
        out[i] = K::decode(bytes[i].into()) * scales[i];
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

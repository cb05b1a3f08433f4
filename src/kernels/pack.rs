//! Packing of 4-, 2- and 1-bit codes: element 0 in the low bits, each row begins on a byte, padding bits are zero.

use crate::isa::kernel;
use crate::par::{self, CHUNK};

/// Bytes that hold `n` codes.
#[inline(always)]
pub const fn packed_len(n: usize, bits: u32) -> usize {
    // No overflow for any length that memory holds: n / 4 at most twice over.
    (n / (8 / bits as usize)) + (!n.is_multiple_of(8 / bits as usize)) as usize
}

/// The width of a code, as a type, so that kernels are compiled for each.
pub trait Width: Copy + Send + Sync {
    /// Bits of a code.
    const BITS: u32;
    /// Codes in a byte.
    const PER_BYTE: usize = 8 / Self::BITS as usize;
    /// The bits of one code.
    const MASK: u8 = 0xff >> (8 - Self::BITS);
}

/// 8 bits.
#[derive(Clone, Copy)]
pub struct W8;
/// 4 bits.
#[derive(Clone, Copy)]
pub struct W4;
/// 2 bits.
#[derive(Clone, Copy)]
pub struct W2;
/// 1 bit: masks.
#[derive(Clone, Copy)]
pub struct W1;
impl Width for W8 {
    const BITS: u32 = 8;
}
impl Width for W4 {
    const BITS: u32 = 4;
}
impl Width for W2 {
    const BITS: u32 = 2;
}
impl Width for W1 {
    const BITS: u32 = 1;
}

/// Pack bytes that hold one code each (high bits are dropped) into `packed`.
#[inline(always)]
pub(crate) fn pack_codes<W: Width>(codes: &[u8], packed: &mut [u8]) {
    let whole = codes.len() / W::PER_BYTE;
    if W::BITS == 8 {
        packed.copy_from_slice(codes);
    } else if W::BITS == 4 {
        for (byte, pair) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
            let w = u16::from_le_bytes(*pair) & 0x0f0f;
            *byte = (w | (w >> 4)) as u8;
        }
    } else if W::BITS == 1 {
        for (byte, eight) in packed.iter_mut().zip(codes.as_chunks::<8>().0) {
            // The product moves bit 0 of byte i to bit 56 + i; no two bits meet.
            let w = u64::from_le_bytes(*eight) & 0x0101_0101_0101_0101;
            *byte = (w.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
        }
    } else {
        for (byte, four) in packed.iter_mut().zip(codes.as_chunks::<4>().0) {
            let w = u32::from_le_bytes(*four) & 0x0303_0303;
            *byte = (w | (w >> 6) | (w >> 12) | (w >> 18)) as u8;
        }
    }
    if let Some(last) = packed.get_mut(whole) {
        *last = 0;
        for (i, &code) in codes[whole * W::PER_BYTE..].iter().enumerate() {
            *last |= (code & W::MASK) << (i as u32 * W::BITS);
        }
    }
}

/// Unpack codes to one byte each; `sign` is the sign bit of a two's complement code (0: unsigned), which is extended.
#[inline(always)]
pub(crate) fn unpack_codes<W: Width>(packed: &[u8], codes: &mut [u8], sign: u8) {
    let n = codes.len();
    if W::BITS == 8 {
        codes.copy_from_slice(packed);
        return;
    }
    if W::BITS == 4 {
        for (pair, &byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(packed) {
            let w = byte as u16;
            *pair = ((w | (w << 4)) & 0x0f0f).to_le_bytes();
        }
    } else if W::BITS == 1 {
        for (eight, &byte) in codes.as_chunks_mut::<8>().0.iter_mut().zip(packed) {
            // Bit i alone in byte i; 0x7f added carries any bit to the highest.
            let w = (byte as u64).wrapping_mul(0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
            *eight = ((w + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & 0x0101_0101_0101_0101).to_le_bytes();
        }
    } else {
        for (four, &byte) in codes.as_chunks_mut::<4>().0.iter_mut().zip(packed) {
            let w = byte as u32;
            *four = ((w | (w << 6) | (w << 12) | (w << 18)) & 0x0303_0303).to_le_bytes();
        }
    }
    let whole = n / W::PER_BYTE;
    for (i, code) in codes[whole * W::PER_BYTE..].iter_mut().enumerate() {
        *code = (packed[whole] >> (i as u32 * W::BITS)) & W::MASK;
    }
    if sign != 0 {
        for code in codes.iter_mut() {
            *code = (*code ^ sign).wrapping_sub(sign);
        }
    }
}

kernel! {
    pub(crate) fn pack_chunk<W: Width>(codes: &[u8], packed: &mut [u8]) {
        pack_codes::<W>(codes, packed);
    }
}
kernel! {
    pub(crate) fn unpack_chunk<W: Width>(packed: &[u8], codes: &mut [u8], sign: u8) {
        unpack_codes::<W>(packed, codes, sign);
    }
}
kernel! {
    fn out_of_range(codes: &[u8], limit: u8, bias: u8) -> bool {
        let mut worst = 0u8;
        for &code in codes {
            worst = worst.max(code.wrapping_add(bias));
        }
        worst > limit
    }
}
kernel! {
    fn or_all(bytes: &[u8], mask: u8) -> u8 {
        let mut all = 0;
        for &byte in bytes {
            all |= byte & mask;
        }
        all
    }
}

/// Call `$f::<W>` for the width of `$bits` (8, 4, or 2).
macro_rules! match_width {
    ($bits:expr, $w:ident => $body:expr) => {
        match $bits {
            8 => {
                type $w = $crate::kernels::pack::W8;
                $body
            }
            4 => {
                type $w = $crate::kernels::pack::W4;
                $body
            }
            _ => {
                type $w = $crate::kernels::pack::W2;
                $body
            }
        }
    };
}
pub(crate) use match_width;

/// The same for what is packed only: also 1 bit.
macro_rules! match_packed_width {
    ($bits:expr, $w:ident => $body:expr) => {
        if $bits == 1 {
            type $w = W1;
            $body
        } else {
            match_width!($bits, $w => $body)
        }
    };
}

/// Rows of codes, one byte each, to packed rows.
pub fn pack(codes: &[u8], cols: usize, bits: u32, packed: &mut [u8], threads: usize) {
    let row_bytes = packed_len(cols, bits);
    for_rows(codes, packed, [cols, row_bytes], 8 / bits as usize, threads, |codes, packed| {
        match_packed_width!(bits, W => pack_chunk::<W>(codes, packed));
    });
}

/// Packed rows to rows of codes, one byte each (`signed`: two's complement).
pub fn unpack(packed: &[u8], cols: usize, bits: u32, codes: &mut [u8], signed: bool, threads: usize) {
    let row_bytes = packed_len(cols, bits);
    let sign = if signed && bits < 8 { 1u8 << (bits - 1) } else { 0 };
    if cols == 0 {
        return;
    }
    let per_byte = 8 / bits as usize;
    if cols.is_multiple_of(per_byte) {
        let items = packed.chunks(CHUNK).zip(codes.chunks_mut(CHUNK * per_byte));
        par::for_each(threads, items, |(p, c)| match_packed_width!(bits, W => unpack_chunk::<W>(p, c, sign)));
    } else {
        let rows = (CHUNK / cols).max(1);
        let items = packed.chunks(rows * row_bytes).zip(codes.chunks_mut(rows * cols));
        par::for_each(threads, items, |(p, c)| {
            for (p, c) in p.chunks_exact(row_bytes).zip(c.chunks_exact_mut(cols)) {
                match_packed_width!(bits, W => unpack_chunk::<W>(p, c, sign));
            }
        });
    }
}

/// Cut rows of `[elements, bytes]` into pieces; whole rows at once where none has padding.
fn for_rows(
    codes: &[u8],
    packed: &mut [u8],
    [cols, row_bytes]: [usize; 2],
    per_byte: usize,
    threads: usize,
    f: impl Fn(&[u8], &mut [u8]) + Sync,
) {
    if cols == 0 {
        return;
    }
    if cols.is_multiple_of(per_byte) {
        par::for_each(threads, codes.chunks(CHUNK * per_byte).zip(packed.chunks_mut(CHUNK)), |(c, p)| f(c, p));
    } else {
        let rows = (CHUNK / cols).max(1);
        par::for_each(threads, codes.chunks(rows * cols).zip(packed.chunks_mut(rows * row_bytes)), |(c, p)| {
            c.chunks_exact(cols).zip(p.chunks_exact_mut(row_bytes)).for_each(|(c, p)| f(c, p));
        });
    }
}

/// The index of the first code that does not fit `bits` (`signed`: bytes are two's complement).
pub fn first_out_of_range(codes: &[u8], bits: u32, signed: bool, threads: usize) -> Option<usize> {
    let (limit, bias) = (0xff >> (8 - bits), if signed { 1u8 << (bits - 1) } else { 0 });
    let found = par::map(threads, codes.chunks(CHUNK), |chunk| out_of_range(chunk, limit, bias));
    let chunk = found.into_iter().position(|bad| bad)?;
    let within = codes[chunk * CHUNK..].iter().position(|code| code.wrapping_add(bias) > limit)?;
    Some(chunk * CHUNK + within)
}

/// The first row whose padding bits are not zero.
pub fn first_bad_padding(packed: &[u8], cols: usize, bits: u32) -> Option<usize> {
    let used = (cols % (8 / bits as usize)) as u32 * bits;
    if used == 0 {
        return None;
    }
    let mask = 0xffu8 << used;
    let row_bytes = packed_len(cols, bits);
    if row_bytes == 1 && or_all(packed, mask) == 0 {
        return None;
    }
    packed.chunks_exact(row_bytes).position(|row| row[row_bytes - 1] & mask != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a8_unpack_undoes_pack_for_every_length() {
        for bits in [1u32, 2, 4, 8] {
            for n in 0..1025usize {
                let codes: Vec<u8> = (0..n).map(|i| (i * 7 + i / 3) as u8 & (0xff >> (8 - bits))).collect();
                let mut packed = vec![0xaa; packed_len(n, bits)];
                pack(&codes, n, bits, &mut packed, 2);
                assert_eq!(first_bad_padding(&packed, n, bits), None);
                let mut back = vec![0xff; n];
                unpack(&packed, n, bits, &mut back, false, 2);
                assert_eq!(back, codes, "{bits} bits, {n}");
            }
        }
    }

    #[test]
    fn test_a8_order_signs_and_padding() {
        let mut packed = [0; 2];
        pack(&[1, 0xff, 7], 3, 4, &mut packed, 1);
        assert_eq!(packed, [0xf1, 0x07]);
        let mut codes = [0; 3];
        unpack(&packed, 3, 4, &mut codes, true, 1);
        assert_eq!(codes.map(|c| c as i8), [1, -1, 7]);
        assert_eq!(first_bad_padding(&[0xf1, 0x17], 3, 4), Some(0));
        assert_eq!(first_out_of_range(&[0, 15, 16], 4, false, 1), Some(2));
        assert_eq!(first_out_of_range(&[0, 0xf8, 0xf7], 4, true, 1), Some(2));
    }
}

//! Codes of numbers in units of their scale, whose signs zeros may have lost on the way.

use super::{BLOCK, Code, Scale};
use crate::isa::Isa;

/// The code of a number.
#[inline(always)]
pub(super) fn encode_one<K: Code, S: Scale, const FUSED: bool>(x: f32, divisor: S::Divisor) -> u32 {
    K::encode(signed::<FUSED>(S::over::<FUSED>(x, divisor), x))
}

/// Numbers in units with the signs of the numbers, which zeros may have lost where `FUSED`.
#[inline(always)]
pub(super) fn signed<const FUSED: bool>(units: f32, x: f32) -> f32 {
    if FUSED { units.copysign(x) } else { units }
}

/// The packed codes of a block of numbers `x` that are `units`.
#[inline(always)]
pub(super) fn encode_four_bits<K: Code, const FUSED: bool>(
    isa: Isa,
    units: &[f32; BLOCK],
    x: &[f32; BLOCK],
    codes: &mut [u8; BLOCK / 2],
) {
    if K::encode_packed(isa, units, x, codes) {
        return;
    }
    let mut bytes = [0; BLOCK];
    if K::CODEBOOK.is_some() {
        // In lanes of 32 bits, as what is compared: as bytes each comparison would be narrowed first.
        let mut wide = [0; BLOCK];
        for (code, (&units, &x)) in wide.iter_mut().zip(units.iter().zip(x)) {
            *code = K::encode(signed::<FUSED>(units, x));
        }
        for (byte, &code) in bytes.iter_mut().zip(&wide) {
            *byte = code as u8;
        }
    } else {
        for (byte, (&units, &x)) in bytes.iter_mut().zip(units.iter().zip(x)) {
            *byte = K::encode(signed::<FUSED>(units, x)) as u8;
        }
    }
    pack(&bytes, codes);
}

/// Two codes of 4 bits to a byte.
#[inline(always)]
pub(super) fn pack(bytes: &[u8], codes: &mut [u8]) {
    for (code, pair) in codes.iter_mut().zip(bytes.as_chunks::<2>().0) {
        let w = u16::from_le_bytes(*pair);
        *code = (w | w >> 4) as u8;
    }
}

//! Small floats of 8 bits.

use super::Coding;
use crate::real::select;

/// 8 bits as small floats: a sign, 4 bits of exponent and 3 of mantissa; without a sign, 4 and 4. From the largest number
/// of a block down to 2^-15 of 1.9 times it.
///
/// Steps round by chance, with the low bits of another number that they made. A second moment moves by a thousandth of
/// itself in a step: rounded to nearest it would stay where it is. Code 0 is 0 for what is signed; what is not has no 0 but
/// in a block of zeros: a first moment over a second moment that became 0 would be a huge step.
///
/// Tried: the second moment with 5 bits of exponent and 3 of mantissa, which has the range that its root would have in 4
/// and 4 (the loss of a perceptron on digits 2 % to 8 % off that of float32 states; so 0.5 %); to nearest (as much again);
/// the root itself (a sixth of the whole step); subnormal codes (a tenth).
#[derive(Debug, Clone, Copy)]
pub struct Float8;

impl Float8 {
    /// The bits of the number that the code 0 stands at: 2^-15.
    const FIRST: u32 = 112 << 23;

    /// Bits of an f32 below those of a code.
    const fn shift(signed: bool) -> u32 {
        if signed { 20 } else { 19 }
    }
}

impl Coding for Float8 {
    const BITS: usize = 8;
    const BLOCK: usize = 256;
    const ROOT: bool = false;

    #[inline(always)]
    fn top(signed: bool) -> f32 {
        if signed { 1.875 } else { 1.9375 }
    }

    #[inline(always)]
    fn encode(x: f32, signed: bool, random: u32) -> u32 {
        let bits = x.to_bits();
        let magnitude = (bits & 0x7fff_ffff) as i32;
        // A carry runs into the exponent, as it should.
        let above = magnitude - Self::FIRST as i32 + (random >> (20 - Self::shift(signed))) as i32;
        let code = above.max(0) as u32 >> Self::shift(signed);
        if signed { code | (bits >> 24 & 0x80) } else { code }
    }

    #[inline(always)]
    fn decode(code: u32, signed: bool) -> f32 {
        if !signed {
            return f32::from_bits((code << Self::shift(false)) + Self::FIRST);
        }
        // The sign of the byte, extended, is that of the number; what it fills between is cut away.
        let bits = ((code as i8 as i32 as u32) << Self::shift(true)) & (1 << 31 | 127 << Self::shift(true));
        f32::from_bits(select(bits << 1 > 0, bits + Self::FIRST, bits))
    }
}

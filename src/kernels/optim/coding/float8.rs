//! Small floats of 8 bits.

use super::Coding;
use crate::real::select;

/// 8 bits as small floats with 3 bits of mantissa: a sign and 4 bits of exponent, or without a sign 5. From the largest
/// number of a block down to 2^-15, or 2^-31, of 1.9 times it.
///
/// Steps round by chance, with the low bits of another number that they made. A second moment moves by a thousandth of
/// itself in a step: rounded to nearest it would stay where it is. Code 0 is 0 for what is signed; what is not has no 0
/// but in a block of zeros: a first moment over a second moment that became 0 would be a huge step.
///
/// Chance makes the steps of Adam larger, as the mean of 1 / sqrt(x) is above that of the mean: by 2 % at a decay of
/// 0.999. The loss of a perceptron on digits (8 epochs, 40 seeds) is 0.6 % to 0.8 % below that of float32 states, for
/// all that divide by a second moment.
///
/// Tried for second moments: 4 bits of exponent and 4 of mantissa (a loss as that of float32 states, but elements whose
/// gradient is 1e-3 of the block's largest move a quarter as far: they stand at the lowest code); codes twice as dense
/// in the highest 5 octaves, down to 2^-27 (the loss 0.3 % to 0.5 % off, 1.07 of the time of a step in the cache); to
/// nearest (1 % to 5 % off); the root itself (a sixth of the whole step); subnormal codes (a tenth).
#[derive(Debug, Clone, Copy)]
pub struct Float8;

impl Float8 {
    /// Bits of an f32 below those of a code.
    const SHIFT: u32 = 20;

    /// The bits of the number that the code 0 stands at: 2^-15 or 2^-31.
    const fn first(signed: bool) -> u32 {
        if signed { 112 << 23 } else { 96 << 23 }
    }
}

impl Coding for Float8 {
    const BITS: usize = 8;
    const BLOCK: usize = 256;
    const ROOT: bool = false;

    #[inline(always)]
    fn top(_signed: bool) -> f32 {
        1.875
    }

    #[inline(always)]
    fn encode(x: f32, signed: bool, random: u32) -> u32 {
        let bits = x.to_bits();
        let magnitude = (bits & 0x7fff_ffff) as i32;
        // A carry runs into the exponent, as it should.
        let above = magnitude - Self::first(signed) as i32 + random as i32;
        let code = above.max(0) as u32 >> Self::SHIFT;
        if signed { code | (bits >> 24 & 0x80) } else { code }
    }

    #[inline(always)]
    fn decode(code: u32, signed: bool) -> f32 {
        if !signed {
            return f32::from_bits((code << Self::SHIFT) + Self::first(false));
        }
        // The sign of the byte, extended, is that of the number; what it fills between is cut away.
        let bits = ((code as i8 as i32 as u32) << Self::SHIFT) & (1 << 31 | 127 << Self::SHIFT);
        f32::from_bits(select(bits << 1 > 0, bits + Self::first(true), bits))
    }
}

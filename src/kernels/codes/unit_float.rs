//! Small floats of 8 bits for numbers up to 1.9, without subnormal numbers; what the states of optimizers are kept in.

use super::{Code, NEAREST};
use crate::real::select;

/// A sign, 4 bits of exponent and 3 of mantissa: from 1.875 down to 2^-15. Code 0 is 0. It is not E4M3, which reaches
/// 448 and has subnormal numbers and a NaN.
#[derive(Debug, Clone, Copy)]
pub struct UnitE4M3;

/// 5 bits of exponent and 3 of mantissa, not signed: from 1.875 down to 2^-31; there is no 0.
#[derive(Debug, Clone, Copy)]
pub struct UnitE5M3;

/// Bits of an f32 below those of a code.
const SHIFT: u32 = 20;

/// The bits of the number that the code 0 stands at: 2^-15, 2^-31.
const FIRST_E4M3: u32 = 112 << 23;
const FIRST_E5M3: u32 = 96 << 23;

/// The code of a magnitude, with what is added below the last bit of the mantissa.
#[inline(always)]
fn magnitude_code(x: f32, first: u32, random: u32) -> u32 {
    let magnitude = (x.to_bits() & 0x7fff_ffff) as i32;
    // A carry runs into the exponent, as it should. (No bit is set in both: one sum less.)
    let more = (first.wrapping_neg() | random) as i32;
    magnitude.wrapping_add(more).max(0) as u32 >> SHIFT
}

impl Code for UnitE4M3 {
    const BITS: u32 = 8;
    const TOP: f32 = 1.875;

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        Self::encode_by_chance(x, NEAREST)
    }

    #[inline(always)]
    fn encode_by_chance(x: f32, random: u32) -> u32 {
        magnitude_code(x, FIRST_E4M3, random) | (x.to_bits() >> 24 & 0x80)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        // The sign of the byte, extended, is that of the number; what it fills between is cut away.
        let bits = ((code as i8 as i32 as u32) << SHIFT) & (1 << 31 | 127 << SHIFT);
        // Asked of the byte: its test is one of 64 codes. (No bit is set in both.)
        f32::from_bits(select(code as u8 & 127 != 0, bits | FIRST_E4M3, bits))
    }
}

impl Code for UnitE5M3 {
    const BITS: u32 = 8;
    const TOP: f32 = 1.875;

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        Self::encode_by_chance(x, NEAREST)
    }

    #[inline(always)]
    fn encode_by_chance(x: f32, random: u32) -> u32 {
        magnitude_code(x, FIRST_E5M3, random)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        f32::from_bits((code << SHIFT) + FIRST_E5M3)
    }
}

//! The FP4 of bitsandbytes.

use super::Code;
use super::codebook::{Codebook, bounds};
use crate::real::select;

/// A sign and seven magnitudes and 0: 1, 32, 48, 64, 96, 128 and 192 parts of 192 of the largest, in an order of
/// bitsandbytes' own. It is not E2M1: the smallest is a hundredth of what it would be there.
#[derive(Debug, Clone, Copy)]
pub struct Fp4;

/// Ascending.
const MAGNITUDES: [f32; 8] =
    [0.0, 0.0625 / 12.0, 2.0 / 12.0, 3.0 / 12.0, 4.0 / 12.0, 6.0 / 12.0, 8.0 / 12.0, 12.0 / 12.0];
/// The code of each.
const CODES: [u32; 8] = [0, 1, 6, 7, 4, 5, 2, 3];
const BOUNDS: [f32; 7] = bounds(&MAGNITUDES);

/// The magnitude of each code.
const BY_CODE: [f32; 8] = {
    let mut by_code = [0.0; 8];
    let mut i = 0;
    while i < 8 {
        by_code[CODES[i] as usize] = MAGNITUDES[i];
        i += 1;
    }
    by_code
};

/// The same with both signs, in the order of the numbers. The highest bound is above all.
static CODEBOOK: Codebook = {
    let (mut numbers, mut bounds, mut codes) = ([0.0; 16], [f32::INFINITY; 15], [0; 16]);
    let mut i = 0;
    while i < 8 {
        (numbers[i], numbers[i + 8]) = (BY_CODE[i], -BY_CODE[i]);
        codes[7 + i] = CODES[i] as u8;
        codes[7 - i] = if i > 0 { CODES[i] as u8 | 8 } else { 0 };
        if i < 7 {
            (bounds[7 + i], bounds[6 - i]) = (BOUNDS[i], -BOUNDS[i]);
        }
        i += 1;
    }
    Codebook::new(numbers, &bounds, codes)
};

impl Code for Fp4 {
    const BITS: u32 = 4;
    const TOP: f32 = 1.0;
    const CODEBOOK: Option<&'static Codebook> = Some(&CODEBOOK);
    const NUMBERS: Option<&'static [f32; 16]> = Some(&CODEBOOK.numbers);

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        let bits = x.to_bits();
        // In the middle the lower number, which of negative ones is that of the larger magnitude.
        let magnitude = (bits & 0x7fff_ffff) as i32 + (bits >> 31) as i32;
        let mut code = 0u32;
        for i in 0..BOUNDS.len() {
            code = code.wrapping_add(select(
                magnitude > BOUNDS[i].to_bits() as i32,
                CODES[i + 1].wrapping_sub(CODES[i]),
                0,
            ));
        }
        // What becomes 0 has no sign.
        code | select(code > 0, bits >> 28 & 8, 0)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        f32::from_bits(BY_CODE[(code & 7) as usize].to_bits() | (code & 8) << 28)
    }
}

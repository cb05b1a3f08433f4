//! The FP4 of bitsandbytes.

use super::Code;
use super::codebook::bounds;
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

impl Code for Fp4 {
    const BITS: u32 = 4;
    const TOP: f32 = 1.0;

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        let magnitude = x.abs();
        let mut code = 0u32;
        for i in 0..BOUNDS.len() {
            code = code.wrapping_add(select(magnitude > BOUNDS[i], CODES[i + 1].wrapping_sub(CODES[i]), 0));
        }
        // What becomes 0 has no sign.
        code | select(code > 0, x.to_bits() >> 28 & 8, 0)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        f32::from_bits(BY_CODE[(code & 7) as usize].to_bits() | (code & 8) << 28)
    }
}

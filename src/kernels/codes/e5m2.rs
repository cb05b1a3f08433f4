//! E5M2.

use super::{Code, minifloat};
use crate::real::select;

/// 8 bits up to 57344, the upper half of a float16: OCP 8-bit Floating Point v1.0; Micikevicius et al. 2022, "FP8
/// Formats for Deep Learning" (arXiv 2209.05433). Infinities are decoded, never made.
#[derive(Debug, Clone, Copy)]
pub struct E5M2;

impl Code for E5M2 {
    const BITS: u32 = 8;
    const TOP: f32 = 57344.0;

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        minifloat::encode::<8, 2, 15>(x, 0x7b)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        let x = minifloat::decode::<8, 2, 15>(code & 0xff);
        f32::from_bits(select(code & 0x7c == 0x7c, x.to_bits() | 0x7f80_0000, x.to_bits()))
    }
}

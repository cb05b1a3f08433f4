//! E4M3.

use super::{Code, minifloat};
use crate::real::select;

/// 8 bits up to 448, no infinities, one NaN of each sign ("e4m3fn"): OCP 8-bit Floating Point v1.0; Micikevicius et al.
/// 2022, "FP8 Formats for Deep Learning" (arXiv 2209.05433).
#[derive(Debug, Clone, Copy)]
pub struct E4M3;

impl Code for E4M3 {
    const BITS: u32 = 8;
    const TOP: f32 = 448.0;

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        minifloat::encode::<8, 3, 7>(x, 0x7e)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        let x = minifloat::decode::<8, 3, 7>(code & 0xff);
        f32::from_bits(select(code & 0x7f == 0x7f, x.to_bits() | 0x7fc0_0000, x.to_bits()))
    }
}

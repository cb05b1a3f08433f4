//! E2M1.

use super::{BLOCK, Code, minifloat};
use crate::isa::Isa;
use crate::kernels::e2m1;

/// 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives: FP4 of the OCP Microscaling Formats v1.0, 5.3.3.
#[derive(Debug, Clone, Copy)]
pub struct E2M1;

static NUMBERS: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

impl Code for E2M1 {
    const BITS: u32 = 4;
    const TOP: f32 = 6.0;
    const NUMBERS: Option<&'static [f32; 16]> = Some(&NUMBERS);

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        minifloat::encode::<4, 1, 1>(x, 7)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        minifloat::decode::<4, 1, 1>(code & 15)
    }

    #[inline(always)]
    fn encode_packed(isa: Isa, x: &[f32; BLOCK], signs: &[f32; BLOCK], codes: &mut [u8; BLOCK / 2]) -> bool {
        e2m1::encode(isa, x, signs, codes)
    }
}

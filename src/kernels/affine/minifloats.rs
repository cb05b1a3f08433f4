//! Floats of 8 and 4 bits as ONNX has them: with NaN where they have one, saturating.

use crate::kernels::codes::{Code, E2M1, E4M3, E5M2, minifloat};
use crate::real::select;

/// A float of a byte or less.
pub trait Minifloat: Copy + Send + Sync + 'static {
    /// The code of the nearest number, half to even; beyond the largest that; of NaN NaN, or 0 where there is none.
    fn encode(x: f32) -> u32;
    /// The number of a code.
    fn decode(code: u32) -> f32;
}

/// 8 bits up to 240, no infinities, no -0, whose code is NaN: Noune et al. 2022, "8-bit Numerical Formats for Deep
/// Neural Networks" (arXiv 2206.02915).
#[derive(Debug, Clone, Copy)]
pub struct E4M3Fnuz;
/// The same with 5 bits of exponent, up to 57344.
#[derive(Debug, Clone, Copy)]
pub struct E5M2Fnuz;

macro_rules! with_nan {
    ($($t:ty, $nan:literal);*) => {$(impl Minifloat for $t {
        #[inline(always)]
        fn encode(x: f32) -> u32 {
            let sign = x.to_bits() >> 31 << 7;
            select(x != x, $nan | sign, <Self as Code>::encode(x))
        }
        #[inline(always)]
        fn decode(code: u32) -> f32 {
            <Self as Code>::decode(code)
        }
    })*};
}
with_nan!(E4M3, 0x7f; E5M2, 0x7e);

impl Minifloat for E2M1 {
    #[inline(always)]
    fn encode(x: f32) -> u32 {
        select(x != x, 0, <Self as Code>::encode(x))
    }
    #[inline(always)]
    fn decode(code: u32) -> f32 {
        <Self as Code>::decode(code & 0xf)
    }
}

macro_rules! without_negative_zero {
    ($($t:ty, $mantissa:literal, $bias:literal);*) => {$(impl Minifloat for $t {
        #[inline(always)]
        fn encode(x: f32) -> u32 {
            let code = minifloat::encode::<8, $mantissa, $bias>(x, 0x7f);
            select(x != x, 0x80, select(code == 0x80, 0, code))
        }
        #[inline(always)]
        fn decode(code: u32) -> f32 {
            let x = minifloat::decode::<8, $mantissa, $bias>(code & 0xff);
            f32::from_bits(select(code & 0xff == 0x80, 0x7fc0_0000, x.to_bits()))
        }
    })*};
}
without_negative_zero!(E4M3Fnuz, 3, 8; E5M2Fnuz, 2, 16);

//! Uniform codes, affine quantization: q = clamp(round((x - offset) / scale) + zero point), x' = (q - zero point) * scale + offset.
//!
//! One formula serves the three schemes: `offset` is 0 but for minmax, the zero point 0 but for asymmetric.
//! Ranges and scales are computed in f64. x is divided by the scale, with the bits of a division (`Divisor::quotient`):
//! multiplying by a rounded 1 / scale would put ties, and numbers near them, on the wrong side.

mod ahead;
mod code;
mod decode;
mod dequantize;
mod ends;
mod grid;
mod groups;
mod halves;
mod learn;
mod lookup;
mod measure;
mod mode;
mod nearest;
mod params;
mod power;
mod quantize;
mod rows;
mod runs;
mod search;
mod sums;
mod tile;
mod tiling;
mod tries;

pub use dequantize::dequantize;
pub use grid::{How, ScaleDtype};
pub use nearest::{Nearest, NearestOfEach};
pub use params::Scheme;
pub use quantize::{fake_quantize, fake_quantize_given, quantize, quantize_given};
pub use rows::{RowsOf, dequantize_rows};
pub use search::{are_params, are_weights, find_scales};

use crate::real::Real;

/// Elements that a loop takes at a time: one of so many, and no other number, is vectorised as a whole, also in short
/// runs (16 are unrolled before they could be).
const BLOCK: usize = 32;

/// A uniform code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uniform {
    /// 8, 4 or 2.
    pub bits: u32,
    /// The scheme.
    pub scheme: Scheme,
    /// Symmetric codes stored as q + 2^(bits-1) instead of two's complement.
    pub offset_binary: bool,
    /// Asymmetric codes in two's complement, and so their zero points: where they were given. Only read.
    pub signed: bool,
}

/// The parameters, one for each part, as they lie in the output arrays; empty where the scheme has none.
#[derive(Debug)]
pub struct Params<'a, C> {
    /// Scales.
    pub scale: &'a mut [C],
    /// Zero points (asymmetric).
    pub zero_point: &'a mut [u8],
    /// Offsets (minmax).
    pub offset: &'a mut [C],
}

/// As [`Params`], to read.
#[derive(Debug, Clone, Copy)]
pub struct ParamsRef<'a, C> {
    /// Scales.
    pub scale: &'a [C],
    /// Zero points (asymmetric).
    pub zero_point: &'a [u8],
    /// Offsets (minmax).
    pub offset: &'a [C],
}

impl<C: Real> ParamsRef<'_, C> {
    #[inline(always)]
    fn get(&self, i: usize) -> (C, u8, C) {
        let zero_point = if self.zero_point.is_empty() { 0 } else { self.zero_point[i] };
        let offset = if self.offset.is_empty() { C::from_i16(0) } else { self.offset[i] };
        (self.scale[i], zero_point, offset)
    }

    /// The first `n` parts.
    #[inline(always)]
    fn first(&self, n: usize) -> Self {
        let zero_point = if self.zero_point.is_empty() { &[] } else { &self.zero_point[..n] };
        let offset = if self.offset.is_empty() { &[] } else { &self.offset[..n] };
        Self { scale: &self.scale[..n], zero_point, offset }
    }

    /// Without the first `n` parts.
    #[inline(always)]
    #[must_use]
    pub fn from(&self, n: usize) -> Self {
        let offset = self.offset.get(n..).unwrap_or_default();
        Self { scale: &self.scale[n..], zero_point: self.zero_point.get(n..).unwrap_or_default(), offset }
    }
}

impl<C: Real> Params<'_, C> {
    /// To read.
    #[inline(always)]
    pub fn as_ref(&self) -> ParamsRef<'_, C> {
        ParamsRef { scale: self.scale, zero_point: self.zero_point, offset: self.offset }
    }

    /// Without the first `n` parts.
    #[inline(always)]
    pub fn from(&mut self, n: usize) -> Params<'_, C> {
        let offset = self.offset.get_mut(n..).unwrap_or_default();
        Params { scale: &mut self.scale[n..], zero_point: self.zero_point.get_mut(n..).unwrap_or_default(), offset }
    }

    /// Cut off the first `n` parts.
    #[must_use]
    pub fn split_off(&mut self, n: usize) -> Self {
        Self {
            scale: self.scale.split_off_mut(..n).unwrap_or_default(),
            zero_point: self.zero_point.split_off_mut(..n).unwrap_or_default(),
            offset: self.offset.split_off_mut(..n).unwrap_or_default(),
        }
    }
}

//! Numbers to codes.
//!
//! A code is `round((x - offset) / scale)`: the quotient rounded to the dtype of the scale, then to an integer, half to
//! even. See `Real::over` for how a quotient is had at half the price of a division.

use super::{BLOCK, ParamsRef, Scheme, Spec};
use crate::isa;
use crate::real::{Element, Real};

/// How codes are made, known to the compiler.
pub(super) trait Mode: Copy + Send + Sync + 'static {
    /// The scheme of finite numbers; None: any scheme, of numbers of which some may be NaN or infinite.
    const SCHEME: Option<Scheme>;

    /// The scheme.
    #[inline(always)]
    fn scheme(spec: &Spec) -> Scheme {
        Self::SCHEME.unwrap_or(spec.scheme)
    }
}

/// Scheme "symmetric".
#[derive(Clone, Copy)]
pub(super) struct Symmetric;
/// Scheme "asymmetric".
#[derive(Clone, Copy)]
pub(super) struct Asymmetric;
/// Scheme "minmax".
#[derive(Clone, Copy)]
pub(super) struct MinMax;
/// Any scheme: NaN gets the code of zero, infinities the limits, and ranges are of the finite numbers.
#[derive(Clone, Copy)]
pub(super) struct Saturating;
impl Mode for Symmetric {
    const SCHEME: Option<Scheme> = Some(Scheme::Symmetric);
}
impl Mode for Asymmetric {
    const SCHEME: Option<Scheme> = Some(Scheme::Asymmetric);
}
impl Mode for MinMax {
    const SCHEME: Option<Scheme> = Some(Scheme::MinMax);
}
impl Mode for Saturating {
    const SCHEME: Option<Scheme> = None;
}

/// All that a quantizing loop needs of one part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coder<C> {
    /// 1, or 1/2 where max - min overflows: then x, offset and scale are halved, exactly, before they are used.
    half: C,
    half_offset: C,
    half_scale: C,
    low: C,
    high: C,
    nan: C,
    bias: u8,
}

impl<C: Real> Coder<C> {
    /// From stored scale, zero point and offset.
    #[inline(always)]
    pub(super) fn new<M: Mode>(spec: &Spec, (scale, zero_point, offset): (C, u8, C)) -> Self {
        let scheme = M::scheme(spec);
        let top = (1i16 << (spec.bits - 1)) - 1;
        let levels = (1i16 << spec.bits) - 1;
        let zero = zero_point as i16;
        let (low, high) = match scheme {
            Scheme::Symmetric => (-top, top),
            _ => (-zero, levels - zero),
        };
        let half = half(scheme, spec.bits, scale);
        Self {
            half,
            half_offset: offset * half,
            half_scale: scale * half,
            low: C::from_i16(low),
            high: C::from_i16(high),
            // A NaN becomes the code of 0; of minmax the nearest.
            nan: if scheme == Scheme::MinMax { (C::from_i16(0) - offset) / scale } else { C::from_i16(0) },
            bias: zero_point.wrapping_add(spec.bias()),
        }
    }

    /// x - offset.
    #[inline(always)]
    fn shifted<M: Mode>(&self, x: C) -> C {
        match M::SCHEME {
            Some(Scheme::Symmetric | Scheme::Asymmetric) => x,
            Some(Scheme::MinMax) | None => x * self.half - self.half_offset,
        }
    }

    /// The code of (x - offset) / scale: two's complement, or unsigned, in the low bits.
    #[inline(always)]
    fn code<M: Mode>(&self, quotient: C) -> u8 {
        let mut t = quotient;
        if M::SCHEME.is_none() {
            t = if t == t { t } else { self.nan };
        }
        // A range that holds all numbers needs no clamp, but where both its ends may be rounded away from zero.
        if matches!(M::SCHEME, None | Some(Scheme::Asymmetric)) {
            t = if t > self.low { t } else { self.low };
            t = if t < self.high { t } else { self.high };
        }
        t.round_to_byte().wrapping_add(self.bias)
    }
}

/// 1, or 1/2 where max - min may overflow: of numbers of that size halving is exact.
#[inline(always)]
pub(super) fn half<C: Real>(scheme: Scheme, bits: u32, scale: C) -> C {
    let levels = (1i16 << bits) - 1;
    let twice = scale * C::from_i16(levels) * C::from_i16(2);
    let half = if twice < C::from_f64(f64::INFINITY) { C::from_i16(1) } else { C::from_f64(0.5) };
    if scheme == Scheme::MinMax { half } else { C::from_i16(1) }
}

/// The codes of consecutive elements of `x` that share a part; what will be read later, of about the same length, is
/// fetched meanwhile: the range of a run waits for memory and its codes for the processor (together 0.85 of the time).
#[inline(always)]
pub(super) fn code_run<T: Element, M: Mode>(
    [x, ahead]: [&[T]; 2],
    spec: &Spec,
    stored: (T::Compute, u8, T::Compute),
    codes: &mut [u8],
) {
    let coder = Coder::new::<M>(spec, stored);
    let reciprocal = coder.half_scale.reciprocal();
    let (blocks, tail) = x.as_chunks::<BLOCK>();
    let (code_blocks, code_tail) = codes.as_chunks_mut::<BLOCK>();
    for (i, (block, codes)) in blocks.iter().zip(code_blocks).enumerate() {
        if let Some(ahead) = ahead.get(i * BLOCK..(i + 1) * BLOCK) {
            isa::prefetch(ahead);
        }
        for (code, v) in codes.iter_mut().zip(block) {
            *code = coder.code::<M>(coder.shifted::<M>(v.load()).over(reciprocal));
        }
    }
    for (code, v) in code_tail.iter_mut().zip(tail) {
        *code = coder.code::<M>(coder.shifted::<M>(v.load()).over(reciprocal));
    }
}

/// The codes of consecutive elements with a part each, from the first of `params` on.
#[inline(always)]
pub(super) fn code_elements<T: Element, M: Mode>(
    x: &[T],
    spec: &Spec,
    params: ParamsRef<'_, T::Compute>,
    codes: &mut [u8],
) {
    for (i, (code, v)) in codes.iter_mut().zip(x).enumerate() {
        let coder = Coder::new::<M>(spec, params.get(i));
        *code = coder.code::<M>(coder.shifted::<M>(v.load()) / coder.half_scale);
    }
}

//! Numbers to codes, or to the numbers that their codes stand for.
//!
//! A code is `round((x - offset) / scale)`: the quotient rounded to the dtype of the scale, then to an integer, half to
//! even. See `Divisor::quotient` for how quotients are had at less than the price of divisions.

use super::{BLOCK, ParamsRef, Scheme, Spec, dequantize};
use crate::isa;
use crate::real::{Divisor, Element, Real};

/// How codes are made, known to the compiler.
pub(super) trait Mode: Copy + Send + Sync + 'static {
    /// The scheme of finite numbers; None: any scheme, of numbers of which some may be NaN or infinite.
    const SCHEME: Option<Scheme>;

    /// The scheme.
    #[inline(always)]
    fn scheme(spec: Spec) -> Scheme {
        Self::SCHEME.unwrap_or(spec.scheme)
    }

    /// The parameters, without asking for those that the scheme lacks.
    #[inline(always)]
    fn of<C>(params: ParamsRef<'_, C>) -> ParamsRef<'_, C> {
        match Self::SCHEME {
            Some(Scheme::Symmetric) => ParamsRef { zero_point: &[], offset: &[], ..params },
            Some(Scheme::Asymmetric) => ParamsRef { offset: &[], ..params },
            Some(Scheme::MinMax) => ParamsRef { zero_point: &[], ..params },
            None => params,
        }
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
    pub(super) half_scale: C,
    low: C,
    high: C,
    nan: C,
    bias: u8,
}

impl<C: Real> Coder<C> {
    /// From stored scale, zero point and offset, and the half of [`half`].
    #[inline(always)]
    pub(super) fn new<M: Mode>(spec: Spec, (scale, zero_point, offset): (C, u8, C), half: C) -> Self {
        let scheme = M::scheme(spec);
        let top = (1i16 << (spec.bits - 1)) - 1;
        let levels = (1i16 << spec.bits) - 1;
        let zero = zero_point as i16;
        let (low, high) = match scheme {
            Scheme::Symmetric => (-top, top),
            _ => (-zero, levels - zero),
        };
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
    pub(super) fn shifted<M: Mode>(&self, x: C) -> C {
        match M::SCHEME {
            Some(Scheme::Symmetric | Scheme::Asymmetric) => x,
            Some(Scheme::MinMax) | None => x * self.half - self.half_offset,
        }
    }

    /// What is infinite, or far outside of the limits, somewhat outside of them: where that can be.
    #[inline(always)]
    fn near<M: Mode>(&self, shifted: C) -> C {
        if M::SCHEME.is_some() {
            return shifted;
        }
        let far = self.half_scale * C::from_i16(512);
        let shifted = if shifted > far { far } else { shifted };
        let far = C::from_i16(0) - far;
        if shifted < far { far } else { shifted }
    }

    /// The quotient, or what stands for it where that is NaN, between the limits.
    #[inline(always)]
    fn limited<M: Mode>(&self, quotient: C) -> C {
        let mut t = quotient;
        if M::SCHEME.is_none() {
            t = if t == t { t } else { self.nan };
        }
        // A range that holds all numbers needs no clamp, but where both its ends may be rounded away from zero.
        if matches!(M::SCHEME, None | Some(Scheme::Asymmetric)) {
            t = if t > self.low { t } else { self.low };
            t = if t < self.high { t } else { self.high };
        }
        t
    }

    /// The code of (x - offset) / scale: two's complement, or unsigned, in the low bits.
    #[inline(always)]
    pub(super) fn code<M: Mode>(&self, quotient: C) -> u8 {
        self.limited::<M>(quotient).round_to_byte().wrapping_add(self.bias)
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

/// What is made of a number: its code, or the number of its code.
pub(super) trait Make<T: Element>: Copy + Send + Sync + 'static {
    /// Its type.
    type Item: Copy + Send;
    /// Any.
    const ANY: Self::Item;
    /// Make it.
    fn make<M: Mode>(multiplier: &Multiplier<T::Compute>, x: T) -> Self::Item;
    /// Make it by division: without FMA, and for scales at the ends of the range of floats. Compiled for the baseline.
    fn divide<M: Mode>(x: &[T], spec: Spec, stored: (T::Compute, u8, T::Compute), out: &mut [Self::Item]);
}

/// Codes.
#[derive(Clone, Copy)]
pub(super) struct Codes;
/// The numbers that codes stand for.
#[derive(Clone, Copy)]
pub(super) struct Numbers;

impl<T: Element> Make<T> for Codes {
    type Item = u8;
    const ANY: u8 = 0;
    #[inline(always)]
    fn make<M: Mode>(multiplier: &Multiplier<T::Compute>, x: T) -> u8 {
        multiplier.coder.code::<M>(multiplier.quotient::<T, M>(x))
    }

    #[inline(never)]
    fn divide<M: Mode>(x: &[T], spec: Spec, stored: (T::Compute, u8, T::Compute), codes: &mut [u8]) {
        let coder = Coder::new::<M>(spec, stored, half(M::scheme(spec), spec.bits, stored.0));
        let code = |x: T| coder.code::<M>(coder.shifted::<M>(x.load()) / coder.half_scale);
        let (blocks, tail) = x.as_chunks::<BLOCK>();
        let (code_blocks, code_tail) = codes.as_chunks_mut::<BLOCK>();
        for (block, codes) in blocks.iter().zip(code_blocks) {
            let mut made = [0; BLOCK];
            for (made, &x) in made.iter_mut().zip(block) {
                *made = code(x);
            }
            *codes = made;
        }
        for (made, &x) in code_tail.iter_mut().zip(tail) {
            *made = code(x);
        }
    }
}

impl<T: Element> Make<T> for Numbers {
    type Item = T;
    const ANY: T = T::ZERO;
    #[inline(always)]
    fn make<M: Mode>(multiplier: &Multiplier<T::Compute>, x: T) -> T {
        let Multiplier { coder, .. } = multiplier;
        let rounded = coder.limited::<M>(multiplier.quotient::<T, M>(x)) + T::Compute::ROUNDING;
        // With such a scale no product comes near the largest number.
        T::store((rounded - T::Compute::ROUNDING) * coder.half_scale + coder.half_offset)
    }

    #[inline(never)]
    fn divide<M: Mode>(x: &[T], spec: Spec, stored: (T::Compute, u8, T::Compute), out: &mut [T]) {
        for (x, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
            let mut codes = [0; BLOCK];
            Codes::divide::<M>(x, spec, stored, &mut codes[..x.len()]);
            dequantize::numbers(&codes, spec, stored, out);
        }
    }
}

/// Makes codes or numbers where the scale is one that [`Divisor::quotient`] takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Multiplier<C> {
    coder: Coder<C>,
    divisor: Divisor<C>,
}

impl<C: Real> Multiplier<C> {
    #[inline(always)]
    pub(super) fn new<M: Mode>(spec: Spec, stored: (C, u8, C)) -> Self {
        // Such a scale needs no halves.
        Self { coder: Coder::new::<M>(spec, stored, C::from_i16(1)), divisor: Divisor::new(stored.0) }
    }

    #[inline(always)]
    fn quotient<T: Element<Compute = C>, M: Mode>(&self, x: T) -> C {
        self.divisor.quotient(self.coder.near::<M>(self.coder.shifted::<M>(x.load())))
    }

    #[inline(always)]
    pub(super) fn block<T: Element<Compute = C>, M: Mode, O: Make<T>>(&self, x: &[T; BLOCK]) -> [O::Item; BLOCK] {
        let mut made = [O::ANY; BLOCK];
        for (made, &x) in made.iter_mut().zip(x) {
            *made = O::make::<M>(self, x);
        }
        made
    }
}

/// Codes, or their numbers, of consecutive elements that share a part, where the scale is one that [`Divisor::quotient`]
/// takes; what will be read later, of the same length or none, is fetched meanwhile: the range of a run waits for memory
/// and its codes for the processor (together 0.85 of the time).
#[inline(always)]
pub(super) fn multiply<T: Element, M: Mode, O: Make<T>>(
    [x, ahead]: [&[T]; 2],
    spec: Spec,
    stored: (T::Compute, u8, T::Compute),
    out: &mut [O::Item],
) {
    let multiplier = Multiplier::new::<M>(spec, stored);
    let (blocks, tail) = x.as_chunks::<BLOCK>();
    let (out_blocks, out_tail) = out.as_chunks_mut::<BLOCK>();
    let ahead_blocks = ahead.as_chunks::<BLOCK>().0;
    for (i, (block, out)) in blocks.iter().zip(out_blocks).enumerate() {
        if let Some(ahead) = ahead_blocks.get(i) {
            isa::prefetch(ahead);
        }
        *out = multiplier.block::<T, M, O>(block);
    }
    for (out, &x) in out_tail.iter_mut().zip(tail) {
        *out = O::make::<M>(&multiplier, x);
    }
}

//! Numbers to codes, or to the numbers that their codes stand for.
//!
//! A code is `round((x - offset) / scale)`: the quotient rounded to the dtype of the scale, then to an integer, half to
//! even. See `Divisor::quotient` for how quotients are had at less than the price of divisions.

use super::ahead::Ahead;
use super::groups::IN_L1;
use super::mode::Mode;
use super::{BLOCK, Scheme, Uniform, decode};
use crate::isa;
use crate::kernels::lines::Lines;
use crate::kernels::pack::{match_width, pack_codes};
use crate::real::{Divisor, Real};

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
    /// What codes are more than integers: of symmetric ones part of what is added to round, as it is even.
    bias: u8,
    rounding: C,
}

impl<C: Real> Coder<C> {
    /// From stored scale, zero point and offset, and the half of [`half`].
    #[inline(always)]
    pub(super) fn new<M: Mode>(uniform: Uniform, (scale, zero_point, offset): (C, u8, C), half: C) -> Self {
        let scheme = M::scheme(uniform);
        let top = (1i16 << (uniform.bits - 1)) - 1;
        let levels = (1i16 << uniform.bits) - 1;
        let zero = zero_point as i16;
        let (low, high) = match scheme {
            Scheme::Symmetric => (-top - i16::from(M::LOWEST), top),
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
            bias: zero_point.wrapping_add(uniform.bias()),
            rounding: C::ROUNDING + C::from_i16(uniform.bias() as i16),
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
        let far = self.half_scale.abs() * C::from_i16(512);
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
        let limited = self.limited::<M>(quotient);
        if M::SCHEME == Some(Scheme::Symmetric) {
            return (limited + self.rounding).low_byte();
        }
        limited.round_to_byte().wrapping_add(self.bias)
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
pub(super) trait Make<C: Real>: Copy + Send + Sync + 'static {
    /// Its type.
    type Item: Copy + Send;
    /// Any.
    const ANY: Self::Item;
    /// How many are made before they are moved: the processor waits for stores past the caches where many come at once, and
    /// of each such piece may write two lines that are not whole.
    const SPAN: usize;
    /// Make it.
    fn make<M: Mode>(multiplier: &Multiplier<C>, x: C) -> Self::Item;
    /// Move a block to where it belongs: codes of less than 8 bits packed, others past the caches.
    fn put(block: &[Self::Item], bits: u32, out: &mut [Self::Item]);
    /// Make it by division: without FMA, and for scales at the ends of the range of floats. Compiled for the baseline.
    fn divide<M: Mode>(x: &[C], uniform: Uniform, stored: (C, u8, C), out: &mut [Self::Item]);
}

/// Codes.
#[derive(Clone, Copy)]
pub(super) struct Codes;
/// The numbers that codes stand for.
#[derive(Clone, Copy)]
pub(super) struct Numbers;

impl<C: Real> Make<C> for Codes {
    type Item = u8;
    const ANY: u8 = 0;
    const SPAN: usize = IN_L1;
    #[inline(always)]
    fn make<M: Mode>(multiplier: &Multiplier<C>, x: C) -> u8 {
        multiplier.coder.code::<M>(multiplier.quotient::<M>(x))
    }

    #[inline(always)]
    fn put(block: &[u8], bits: u32, out: &mut [u8]) {
        if bits == 8 {
            return isa::stream(block, out);
        }
        // (Past the caches these few bytes would gain nothing: 1.2 of the time.)
        match_width!(bits, W => pack_codes::<W>(block, out));
    }

    #[inline(never)]
    fn divide<M: Mode>(x: &[C], uniform: Uniform, stored: (C, u8, C), codes: &mut [u8]) {
        let coder = Coder::new::<M>(uniform, stored, half(M::scheme(uniform), uniform.bits, stored.0));
        let code = |x: C| coder.code::<M>(coder.shifted::<M>(x) / coder.half_scale);
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

impl<C: Real> Make<C> for Numbers {
    type Item = C;
    const ANY: C = C::ZERO;
    const SPAN: usize = IN_L1 / 2;
    #[inline(always)]
    fn make<M: Mode>(multiplier: &Multiplier<C>, x: C) -> C {
        let Multiplier { coder, .. } = multiplier;
        let rounded = coder.limited::<M>(multiplier.quotient::<M>(x)) + C::ROUNDING;
        // With such a scale no product comes near the largest number.
        (rounded - C::ROUNDING) * coder.half_scale + coder.half_offset
    }

    #[inline(always)]
    fn put(block: &[C], _bits: u32, out: &mut [C]) {
        isa::stream(block, out);
    }

    #[inline(never)]
    fn divide<M: Mode>(x: &[C], uniform: Uniform, stored: (C, u8, C), out: &mut [C]) {
        for (x, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
            let mut codes = [0; BLOCK];
            Codes::divide::<M>(x, uniform, stored, &mut codes[..x.len()]);
            decode::numbers(&codes, uniform, stored, out);
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
    pub(super) fn new<M: Mode>(uniform: Uniform, stored: (C, u8, C), divisor: Divisor<C>) -> Self {
        // Such a scale needs no halves.
        Self { coder: Coder::new::<M>(uniform, stored, C::from_i16(1)), divisor }
    }

    #[inline(always)]
    fn quotient<M: Mode>(&self, x: C) -> C {
        self.divisor.quotient(self.coder.near::<M>(self.coder.shifted::<M>(x)))
    }

    #[inline(always)]
    pub(super) fn block<M: Mode, O: Make<C>>(&self, x: &[C; BLOCK]) -> [O::Item; BLOCK] {
        let mut made = [O::ANY; BLOCK];
        for (made, &x) in made.iter_mut().zip(x) {
            *made = O::make::<M>(self, x);
        }
        made
    }
}

/// Codes, or their numbers, of consecutive elements that share a part, where the scale is one that [`Divisor::quotient`]
/// takes, from element `at` of a group on; what will be read later is fetched meanwhile.
#[inline(always)]
pub(super) fn multiply<C: Real, M: Mode, O: Make<C>>(
    x: &[C],
    (ahead, at): (Ahead, usize),
    multiplier: Multiplier<C>,
    out: &mut [O::Item],
) {
    let (blocks, tail) = x.as_chunks::<BLOCK>();
    let (out_blocks, out_tail) = out.as_chunks_mut::<BLOCK>();
    for (i, (block, out)) in blocks.iter().zip(out_blocks).enumerate() {
        ahead.fetch(block, at + i * BLOCK);
        *out = multiplier.block::<M, O>(block);
    }
    for (out, &x) in out_tail.iter_mut().zip(tail) {
        *out = O::make::<M>(&multiplier, x);
    }
}

/// The same of whole blocks past the caches.
#[inline(always)]
pub(super) fn multiply_lines<C: Real, M: Mode, O: Make<C>>(
    x: &[C],
    ahead: Ahead,
    multiplier: &Multiplier<C>,
    lines: &mut Lines<'_, O::Item>,
) {
    for (i, block) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        ahead.fetch(block, i * BLOCK);
        lines.push(&multiplier.block::<M, O>(block));
    }
}

/// The same by division.
pub(super) fn divide_lines<C: Real, M: Mode, O: Make<C>>(
    x: &[C],
    uniform: Uniform,
    stored: (C, u8, C),
    lines: &mut Lines<'_, O::Item>,
) {
    for block in x.as_chunks::<BLOCK>().0 {
        let mut made = [O::ANY; BLOCK];
        O::divide::<M>(block, uniform, stored, &mut made);
        lines.push(&made);
    }
}

#[cfg(test)]
mod tests {
    use super::super::mode::{Asymmetric, MinMax, Saturating, Symmetric};
    use super::*;
    use crate::isa::{Isa, kernel};
    use crate::real::{Bf16, Element, F16};

    kernel! {
        /// As where a scale takes the quotient; by division where there is no FMA.
        fn made<C: Real, M: Mode, O: Make<C>>(
            x: &[C],
            uniform: Uniform,
            stored: (C, u8, C),
            out: &mut [O::Item],
        ) {
            if FMA && Divisor::is_exact(stored.0) {
                let multiplier = Multiplier::new::<M>(uniform, stored, Divisor::new(stored.0));
                multiply::<C, M, O>(x, (Ahead::STRAIGHT, 0), multiplier, out);
            } else {
                O::divide::<M>(x, uniform, stored, out);
            }
        }
    }

    fn uniform(bits: u32, scheme: Scheme) -> Uniform {
        Uniform { bits, scheme, offset_binary: true, signed: false }
    }

    /// Codes and numbers are those of a division; `x` that a mode can't meet, beyond the range of the scale, are left out.
    fn check<T: Element, M: Mode>(x: &[T], uniform: Uniform, stored: (T::Compute, u8, T::Compute)) {
        let (scale, zero_point, offset) = stored;
        let levels = ((1u16 << uniform.bits) - 1) as f64;
        let range = match uniform.scheme {
            Scheme::Symmetric => -((levels - 1.0) / 2.0)..=((levels - 1.0) / 2.0),
            Scheme::Asymmetric => -(zero_point as f64 + 0.5)..=(levels - zero_point as f64 + 0.5),
            Scheme::MinMax => 0.0..=levels,
        };
        let meets = |x: &&T| M::SCHEME.is_none() || range.contains(&((x.to_f64() - offset.to_f64()) / scale.to_f64()));
        let x: Vec<T::Compute> = x.iter().filter(meets).map(|x| x.load()).collect();
        let (mut want, mut got) = (vec![0; x.len()], vec![1; x.len()]);
        Codes::divide::<M>(&x, uniform, stored, &mut want);
        made::<T::Compute, M, Codes>(&x, uniform, stored, &mut got);
        let at = want.iter().zip(&got).position(|(want, got)| want != got);
        assert!(at.is_none(), "{uniform:?} {:e} / {:e}: {at:?}", x[at.unwrap_or(0)].to_f64(), scale.to_f64());
        let (mut want, mut got) = (vec![T::Compute::ZERO; x.len()], vec![T::Compute::ZERO; x.len()]);
        Numbers::divide::<M>(&x, uniform, stored, &mut want);
        made::<T::Compute, M, Numbers>(&x, uniform, stored, &mut got);
        assert!(
            want.iter().zip(&got).all(|(want, got)| want.to_bits64() == got.to_bits64()),
            "{uniform:?} {:e}",
            scale.to_f64()
        );
    }

    fn check_schemes<T: Element>(x: &[T], scale: f64) {
        let (scale, zero) = (T::Compute::from_f64(scale), T::Compute::from_i16(0));
        for bits in [8, 4, 2] {
            let (symmetric, asymmetric, minmax) = (Scheme::Symmetric, Scheme::Asymmetric, Scheme::MinMax);
            check::<T, Symmetric>(x, uniform(bits, symmetric), (scale, 0, zero));
            check::<T, Saturating>(x, uniform(bits, symmetric), (scale, 0, zero));
            for zero_point in [0, 1, (1u16 << bits >> 1) as u8, ((1u16 << bits) - 1) as u8] {
                check::<T, Asymmetric>(x, uniform(bits, asymmetric), (scale, zero_point, zero));
                check::<T, Saturating>(x, uniform(bits, asymmetric), (scale, zero_point, zero));
            }
            for offset in [0.0, -0.3, 1e-3, -127.5 * scale.to_f64()] {
                let offset = T::Compute::from_f64(offset);
                check::<T, MinMax>(x, uniform(bits, minmax), (scale, 0, offset));
                check::<T, Saturating>(x, uniform(bits, minmax), (scale, 0, offset));
            }
        }
    }

    #[test]
    fn test_a7_every_16_bit_float_has_the_code_of_a_division() {
        let half: Vec<F16> = (0..=u16::MAX).map(F16).collect();
        let brain: Vec<Bf16> = (0..=u16::MAX).map(Bf16).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            isa::set(isa);
            for scale in
                [5.96e-8, 6.1e-5 / 127.0, 1.0 / 127.0, 0.007_843_137, 0.5, 1.0, 3.0, 65504.0 / 127.0, 65504.0 / 7.0]
            {
                check_schemes(&half, scale);
            }
            let least = f64::from(f32::MIN_POSITIVE);
            for scale in
                [least, 2f64.powi(-101), 2f64.powi(-100), 1.5e-30, 0.01, 1.0, 7.7e20, 2f64.powi(100), 2.7e36, 1e38]
            {
                check_schemes(&brain, scale);
            }
        }
    }

    #[test]
    fn test_a7_float32_at_both_ends_has_the_code_of_a_division() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for exponent in [-126, -125, -110, -101, -100, -99, -60, 0, 60, 99, 100, 101, 119, 120] {
            let scale = f32::from_bits(((127 + exponent) as u32) << 23 | (next() as u32 & 0x7f_ffff));
            let mut x: Vec<f32> = (0..2000).map(|_| scale * ((next() % 512) as f32 - 255.5) / 2.0).collect();
            x.extend((0..2000).map(|_| scale * ((next() % 512) as f32 - 256.0) * (next() as u32 as f32 / 4.3e9)));
            x.extend((0..2000).map(|_| f32::from_bits(next() as u32)));
            x.extend((0..2000).map(|_| f32::from_bits(next() as u32 & 0x80ff_ffff)));
            let near: Vec<f32> = x.iter().flat_map(|x| [x.next_down(), *x, x.next_up()]).collect();
            check_schemes(&near, scale as f64);
            let wide: Vec<f64> = near.iter().map(|&x| x as f64).collect();
            check_schemes(&wide, scale as f64);
        }
    }
}

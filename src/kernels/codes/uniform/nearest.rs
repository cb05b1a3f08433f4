//! One number at a time: its code, and the number that the code stands for.

use super::code::{Codes, Make};
use super::mode::{Given, Mode};
use super::{ParamsRef, Scheme, Uniform, decode};
use crate::real::{Divisor, Real};

/// Makes codes with given parameters, as [`super::quantize_given`] does, and their numbers, as [`super::dequantize`] does.
#[derive(Debug, Clone, Copy)]
pub struct Nearest<C> {
    uniform: Uniform,
    stored: (C, u8, C),
    /// Whether neither a quotient nor a product comes near the ends of the range of floats.
    is_usual: bool,
    low: C,
    high: C,
    bias: u8,
}

impl<C: Real> Nearest<C> {
    /// With the parameters of a part.
    #[inline(always)]
    pub fn new(uniform: Uniform, params: ParamsRef<'_, C>, part: usize) -> Self {
        let stored @ (scale, zero_point, offset) = params.get(part);
        let (top, levels) = ((1i16 << (uniform.bits - 1)) - 1, (1i16 << uniform.bits) - 1);
        let [low, high] = match uniform.scheme {
            Scheme::Symmetric => [-top - i16::from(Given::LOWEST), top],
            _ => [-i16::from(zero_point), levels - i16::from(zero_point)],
        };
        Self {
            uniform,
            stored,
            is_usual: Divisor::is_exact(scale) && offset.abs() <= C::DIVISORS[1],
            low: C::from_i16(low),
            high: C::from_i16(high),
            bias: zero_point.wrapping_add(uniform.bias()),
        }
    }

    /// The nearest code and its number; of NaN those of 0.
    #[inline(always)]
    pub fn of(&self, x: C) -> (u8, C) {
        let x = if x == x { x } else { C::from_i16(0) };
        if !self.is_usual {
            return self.of_unusual(x);
        }
        let (scale, _, offset) = self.stored;
        let t = (x - offset) / scale;
        let t = if t > self.low { t } else { self.low };
        let t = if t < self.high { t } else { self.high };
        let rounded = t + C::ROUNDING;
        (rounded.low_byte().wrapping_add(self.bias), (rounded - C::ROUNDING) * scale + offset)
    }

    #[inline(never)]
    fn of_unusual(&self, x: C) -> (u8, C) {
        let (mut code, mut number) = ([0], [x]);
        <Codes as Make<C>>::divide::<Given>(&[x], self.uniform, self.stored, &mut code);
        // As it is unpacked again.
        let unpacked = code.map(|code| code & ((1u16 << self.uniform.bits) - 1) as u8);
        decode::numbers(&unpacked, self.uniform, self.stored, &mut number);
        (code[0], number[0])
    }
}

/// The same for `N` numbers, each of a part of its own.
pub struct NearestOfEach<C, const N: usize> {
    each: [Nearest<C>; N],
    /// What `each` has, beside each other; where all of them are usual.
    usual: Option<[[C; N]; 4]>,
}

impl<C: Real, const N: usize> NearestOfEach<C, N> {
    /// Of these.
    #[inline(always)]
    pub fn new(each: [Nearest<C>; N]) -> Self {
        let of = |f: fn(&Nearest<C>) -> C| std::array::from_fn(|i| f(&each[i]));
        let usual = each.iter().all(|one| one.is_usual);
        let parts = || [of(|one| one.stored.0), of(|one| one.stored.2), of(|one| one.low), of(|one| one.high)];
        Self { each, usual: usual.then(parts) }
    }

    /// The nearest codes and their numbers.
    #[inline(always)]
    pub fn of(&self, x: &[C; N], codes: &mut [u8; N]) -> [C; N] {
        let mut numbers = *x;
        let Some([scale, offset, low, high]) = &self.usual else {
            for ((number, code), one) in numbers.iter_mut().zip(codes).zip(&self.each) {
                (*code, *number) = one.of(*number);
            }
            return numbers;
        };
        for i in 0..N {
            let x = if x[i] == x[i] { x[i] } else { C::from_i16(0) };
            let t = (x - offset[i]) / scale[i];
            let t = if t > low[i] { t } else { low[i] };
            let t = if t < high[i] { t } else { high[i] };
            numbers[i] = t + C::ROUNDING;
        }
        for i in 0..N {
            codes[i] = numbers[i].low_byte();
        }
        for i in 0..N {
            numbers[i] = (numbers[i] - C::ROUNDING) * scale[i] + offset[i];
        }
        for (code, one) in codes.iter_mut().zip(&self.each) {
            *code = code.wrapping_add(one.bias);
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::super::{dequantize, quantize_given};
    use super::*;
    use crate::kernels::codes::{Coding, FORMATS, Granularity, Spec};

    fn check<C: Real>(scales: &[f64]) {
        let edge = [0.0, -0.0, f64::MAX, f64::MIN_POSITIVE, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        let steps = (-3000..3000).map(|i| f64::from(i) * 0.0931);
        let spec = Spec { granularity: Granularity::Whole, cols: 1 };
        for format in &FORMATS {
            let Coding::Uniform(uniform) = format.coding else { continue };
            for &scale in scales {
                let x: Vec<C> = edge.into_iter().chain(steps.clone().map(|x| x * scale)).map(C::from_f64).collect();
                let zero_points: &[u8] = if uniform.scheme == Scheme::Asymmetric { &[0, 1, 3] } else { &[0] };
                for (&zero_point, offset) in zero_points.iter().zip([0.3, -90.0, 1e4]) {
                    let params = ParamsRef {
                        scale: &[C::from_f64(scale)],
                        zero_point: if uniform.scheme == Scheme::Asymmetric { &[zero_point] } else { &[] },
                        offset: if uniform.scheme == Scheme::MinMax { &[C::from_f64(offset * scale)] } else { &[] },
                    };
                    let (mut codes, mut numbers) = (vec![0; x.len()], vec![C::from_i16(0); x.len()]);
                    quantize_given(&x, uniform, spec, &mut codes, params, 1);
                    dequantize(&codes, uniform, spec, params, &mut numbers, 1);
                    let mask = ((1u16 << uniform.bits) - 1) as u8;
                    let nearest = Nearest::new(uniform, params, 0);
                    for ((&x, &code), &number) in x.iter().zip(&codes).zip(&numbers).filter(|((x, _), _)| *x == *x) {
                        let (got, value) = nearest.of(x);
                        let same = (got & mask, value.to_bits64()) == (code, number.to_bits64());
                        assert!(same, "{} {:e} / {scale:e}", format.name, x.to_f64());
                    }
                    assert!(nearest.of(C::from_f64(f64::NAN)) == nearest.of(C::from_i16(0)));
                }
            }
        }
    }

    #[test]
    fn test_one_number_has_the_code_and_the_number_that_an_array_gives_it() {
        check::<f32>(&[1.0, -0.37, 1e-30, f64::from(f32::MIN_POSITIVE), 1e36, 7.7e20]);
        check::<f64>(&[1.0, -0.37, 1e-300, f64::MIN_POSITIVE, 1e305, 7.7e20]);
    }
}

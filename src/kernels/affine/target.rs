//! What numbers become: integers of a byte or two, floats of a byte.

use std::marker::PhantomData;

use super::Minifloat;
use crate::real::Real;

/// How a quotient becomes a whole number.
pub trait Rounding: Copy + Send + Sync + 'static {
    /// A number of magnitude below 2^20, whose integer is in the low bits of the result.
    fn round<C: Real>(x: C) -> C;
}

/// Half to even.
#[derive(Debug, Clone, Copy)]
pub struct Even;
/// Half away from zero.
#[derive(Debug, Clone, Copy)]
pub struct Away;

impl Rounding for Even {
    #[inline(always)]
    fn round<C: Real>(x: C) -> C {
        x + C::ROUNDING
    }
}

impl Rounding for Away {
    #[inline(always)]
    fn round<C: Real>(x: C) -> C {
        let (zero, one, half) = (C::ZERO, C::from_i16(1), C::from_f64(0.5));
        let even = (x + C::ROUNDING) - C::ROUNDING;
        // Exact; of a tie that went towards zero it has the sign of x.
        let rest = x - even;
        let up = if rest == half && x > zero { one } else { zero };
        let down = if rest == zero - half && x < zero { one } else { zero };
        even + up - down + C::ROUNDING
    }
}

/// What is written.
pub trait Target: Copy + Send + Sync {
    /// A code.
    type Item: Copy + Send + Sync + Default;
    /// Whether quotients may be those of `Divisor::quotient`, which are rounded right where they matter to integers.
    const IS_WHOLE: bool;
    /// The code of x / scale.
    fn code<C: Real>(self, quotient: C, zero_point: i32) -> Self::Item;
}

/// Between the limits, less the zero point; NaN is 0.
#[inline(always)]
fn limited<C: Real>(quotient: C, low: i32, high: i32) -> C {
    let (low, high) = (C::from_i32(low), C::from_i32(high));
    let t = if quotient == quotient { quotient } else { C::ZERO };
    let t = if t > low { t } else { low };
    if t < high { t } else { high }
}

/// Integers of up to 8 bits, one a byte.
#[derive(Debug, Clone, Copy)]
pub struct ByteCodes<R> {
    low: i32,
    high: i32,
    mask: u8,
    rounding: PhantomData<R>,
}

impl<R> ByteCodes<R> {
    /// From `low` to `high`; `mask`: the bits that are written.
    pub const fn new(low: i32, high: i32, mask: u8) -> Self {
        Self { low, high, mask, rounding: PhantomData }
    }
}

impl<R: Rounding> Target for ByteCodes<R> {
    type Item = u8;
    const IS_WHOLE: bool = true;
    #[inline(always)]
    fn code<C: Real>(self, quotient: C, zero_point: i32) -> u8 {
        let t = limited(quotient, self.low - zero_point, self.high - zero_point);
        R::round(t).low_byte().wrapping_add(zero_point as u8) & self.mask
    }
}

/// Integers of 16 bits.
#[derive(Debug, Clone, Copy)]
pub struct WordCodes<R> {
    low: i32,
    high: i32,
    rounding: PhantomData<R>,
}

impl<R> WordCodes<R> {
    /// From `low` to `high`.
    pub const fn new(low: i32, high: i32) -> Self {
        Self { low, high, rounding: PhantomData }
    }
}

impl<R: Rounding> Target for WordCodes<R> {
    type Item = u16;
    const IS_WHOLE: bool = true;
    #[inline(always)]
    fn code<C: Real>(self, quotient: C, zero_point: i32) -> u16 {
        let t = limited(quotient, self.low - zero_point, self.high - zero_point);
        R::round(t).low_word().wrapping_add(zero_point as u16)
    }
}

/// Floats of a byte or less, one a byte. They have no zero point.
#[derive(Debug, Clone, Copy)]
pub struct FloatCodes<K>(PhantomData<K>);

impl<K> FloatCodes<K> {
    /// The only one.
    pub const NEW: Self = Self(PhantomData);
}

impl<K: Minifloat> Target for FloatCodes<K> {
    type Item = u8;
    const IS_WHOLE: bool = false;
    #[inline(always)]
    fn code<C: Real>(self, quotient: C, _zero_point: i32) -> u8 {
        K::encode(quotient.store_as::<f32>()) as u8
    }
}

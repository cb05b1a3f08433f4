//! From a range to scale, zero point and offset.

use crate::kernels::reduce;
use crate::real::{Element, Real};

/// The three schemes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// scale = absmax / (2^(b-1) - 1); no zero point.
    Symmetric,
    /// The range, widened to include 0, over 2^b - 1; an integer zero point (ONNX, torch).
    Asymmetric,
    /// Exactly [min, max] over 2^b - 1; offset = min.
    MinMax,
}

impl Scheme {
    /// The scheme of a name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "symmetric" => Some(Self::Symmetric),
            "asymmetric" => Some(Self::Asymmetric),
            "minmax" => Some(Self::MinMax),
            _ => None,
        }
    }
}

/// The largest code of `bits` bits, unsigned.
#[inline(always)]
fn levels(bits: u32) -> f64 {
    ((1u32 << bits) - 1) as f64
}

/// The scale of a range. Without branches on the numbers: a loop over ranges vectorises.
#[inline(always)]
pub(super) fn scale<T: Element>(scheme: Scheme, bits: u32, range: Range<T>) -> T::Compute {
    let floor = T::Compute::MIN_POSITIVE;
    if scheme == Scheme::Symmetric {
        // In the dtype of the scale: f64 between, of the bits of two f32, would change nothing.
        let (min, max) = range.ends();
        let negated = T::Compute::from_i16(0) - min;
        let absmax = if negated > max { negated } else { max };
        let scale = absmax / T::Compute::from_f64(levels(bits - 1));
        let scale = if scale < floor { floor } else { scale };
        return if absmax == T::Compute::from_i16(0) { T::Compute::from_i16(1) } else { scale };
    }
    let (min, max) = range.bounds(scheme);
    let scale = T::Compute::from_f64(step(min, max, levels(bits)));
    let scale = if scale < floor { floor } else { scale };
    // The range itself says whether there is one: the step may underflow to 0 where it is not.
    if max - min == 0.0 { T::Compute::from_i16(1) } else { scale }
}

/// The zero point of a range with this scale (asymmetric).
#[inline(always)]
pub(super) fn zero_point<T: Element>(bits: u32, range: Range<T>, scale: T::Compute) -> u8 {
    let (min, _) = range.bounds(Scheme::Asymmetric);
    let zero = -min / scale.to_f64();
    let zero = if zero < levels(bits) { zero } else { levels(bits) };
    zero.round_to_byte()
}

/// The offset of a range (minmax).
#[inline(always)]
pub(super) fn offset<T: Element>(range: Range<T>) -> T::Compute {
    T::Compute::from_f64(range.bounds(Scheme::MinMax).0)
}

/// (max - min) / levels: of f64 the difference itself may overflow, the difference of the quotients not.
#[inline(always)]
fn step(min: f64, max: f64, levels: f64) -> f64 {
    let width = max - min;
    if width < f64::INFINITY { width / levels } else { max / levels - min / levels }
}

/// A range, as the keys of its ends.
#[derive(Debug, Clone, Copy)]
pub struct Range<T: Element>(pub [T::Key; 2]);

impl<T: Element> Range<T> {
    /// The ends; (0, 0) where nothing was finite.
    #[inline(always)]
    fn ends(self) -> (T::Compute, T::Compute) {
        let [low, high] = self.0;
        let zero = T::Compute::from_i16(0);
        if low > high { (zero, zero) } else { (T::from_key(low).load(), T::from_key(high).load()) }
    }

    /// The ends, of an asymmetric range around 0.
    #[inline(always)]
    fn bounds(self, scheme: Scheme) -> (f64, f64) {
        let (min, max) = self.ends();
        let (min, max) = (min.to_f64(), max.to_f64());
        if scheme == Scheme::Asymmetric {
            (if min < 0.0 { min } else { 0.0 }, if max > 0.0 { max } else { 0.0 })
        } else {
            (min, max)
        }
    }

    /// Whether one end is infinite or NaN.
    #[inline(always)]
    pub fn is_nonfinite(self) -> bool {
        use crate::real::Key;
        let [low, high] = self.0;
        low <= high && (low.magnitude() >= T::INFINITY_KEY || high.magnitude() >= T::INFINITY_KEY)
    }

    /// The range of nothing.
    pub const EMPTY: Self = Self(<reduce::MinMax as reduce::Op<T>>::IDENTITY);
}

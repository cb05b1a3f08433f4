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

/// Scale, zero point and offset of a range. Without branches on the numbers: a loop over ranges vectorises.
#[inline(always)]
pub(super) fn stored<T: Element>(scheme: Scheme, bits: u32, range: Range<T>) -> (T::Compute, u8, T::Compute) {
    let levels = ((1u32 << bits) - 1) as f64;
    let top = ((1u32 << (bits - 1)) - 1) as f64;
    let (min, max) = range.bounds();
    // The range itself says whether there is one: the step may underflow to 0 where it is not.
    let scale = |range: f64, step: f64| {
        let floor = T::Compute::MIN_POSITIVE;
        let scale = T::Compute::from_f64(step);
        let scale = if scale < floor { floor } else { scale };
        if range == 0.0 { T::Compute::from_i16(1) } else { scale }
    };
    let none = T::Compute::from_i16(0);
    match scheme {
        Scheme::Symmetric => {
            let absmax = if -min > max { -min } else { max };
            (scale(absmax, absmax / top), 0, none)
        }
        Scheme::Asymmetric => {
            let (min, max) = (if min < 0.0 { min } else { 0.0 }, if max > 0.0 { max } else { 0.0 });
            let scale = scale(max - min, step(min, max, levels));
            let zero = -min / scale.to_f64();
            let zero = if zero < levels { zero } else { levels };
            (scale, zero.round_to_byte(), none)
        }
        Scheme::MinMax => (scale(max - min, step(min, max, levels)), 0, T::Compute::from_f64(min)),
    }
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
    fn bounds(self) -> (f64, f64) {
        let [low, high] = self.0;
        if low > high { (0.0, 0.0) } else { (T::from_key(low).to_f64(), T::from_key(high).to_f64()) }
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

//! The operations of reductions.
//!
//! Sums run in f64. Of float64 numbers the rounding errors are carried along in every lane (Ogita, Rump and Oishi
//! 2005, "Accurate sum and dot product", algorithm 4.1). Of narrower floats they are carried from chunk to chunk only:
//! within a chunk a lane adds at most 1,024 numbers of 24 bits in 53, and carrying there as well made the sum of 64 M
//! float32 1.3 times slower than reading them.

use super::Op;
use crate::real::{Element, Key};

/// Smallest and largest key; NaN keys lie outside the infinities, so that NaN shows in one of the two.
#[derive(Clone, Copy, Default)]
pub struct MinMax;
/// As `MinMax`, NaN left out.
#[derive(Clone, Copy, Default)]
pub struct NanMinMax;
/// As `MinMax`, NaN and the infinities left out.
#[derive(Clone, Copy, Default)]
pub struct FiniteMinMax;
/// Largest magnitude; NaN's is above infinity's.
#[derive(Clone, Copy, Default)]
pub struct AbsMax;
/// (sum, carried error).
#[derive(Clone, Copy, Default)]
pub struct Sum;
/// Sum of |x|.
#[derive(Clone, Copy, Default)]
pub struct AbsSum;
/// Sum of x².
#[derive(Clone, Copy, Default)]
pub struct SquareSum;
/// (not zero, not finite).
#[derive(Clone, Copy, Default)]
pub struct Counts;

impl<T: Element> Op<T> for MinMax {
    type Scalar = T::Key;
    const IDENTITY: [T::Key; 2] = [T::Key::MAX, T::Key::MIN];
    #[inline(always)]
    fn step(self, s: [T::Key; 2], x: T) -> [T::Key; 2] {
        let key = x.key();
        [s[0].min(key), s[1].max(key)]
    }
    #[inline(always)]
    fn merge(self, a: [T::Key; 2], b: [T::Key; 2]) -> [T::Key; 2] {
        [a[0].min(b[0]), a[1].max(b[1])]
    }
}

macro_rules! filtered_minmax {
    ($op:ident, |$magnitude:ident, $infinity:ident| $keep:expr) => {
        impl<T: Element> Op<T> for $op {
            type Scalar = T::Key;
            const IDENTITY: [T::Key; 2] = [T::Key::MAX, T::Key::MIN];
            #[inline(always)]
            fn step(self, s: [T::Key; 2], x: T) -> [T::Key; 2] {
                let (key, $magnitude, $infinity) = (x.key(), x.magnitude(), T::INFINITY_KEY);
                let low = if $keep { key } else { T::Key::MAX };
                let high = if $keep { key } else { T::Key::MIN };
                [s[0].min(low), s[1].max(high)]
            }
            #[inline(always)]
            fn merge(self, a: [T::Key; 2], b: [T::Key; 2]) -> [T::Key; 2] {
                Op::<T>::merge(MinMax, a, b)
            }
        }
    };
}
filtered_minmax!(NanMinMax, |magnitude, infinity| magnitude <= infinity);
filtered_minmax!(FiniteMinMax, |magnitude, infinity| magnitude < infinity);

impl<T: Element> Op<T> for AbsMax {
    type Scalar = T::Key;
    const IDENTITY: [T::Key; 2] = [T::Key::ZERO; 2];
    #[inline(always)]
    fn step(self, s: [T::Key; 2], x: T) -> [T::Key; 2] {
        [s[0].max(x.magnitude()), s[1]]
    }
    #[inline(always)]
    fn merge(self, a: [T::Key; 2], b: [T::Key; 2]) -> [T::Key; 2] {
        [a[0].max(b[0]), a[1]]
    }
}

/// Add `x` to `sum`, the rounding error to `error` (Knuth's two-sum).
#[inline(always)]
fn two_sum([sum, error]: [f64; 2], x: f64) -> [f64; 2] {
    let total = sum + x;
    let back = total - sum;
    [total, error + ((sum - (total - back)) + (x - back))]
}

macro_rules! sum_op {
    ($op:ident, |$x:ident| $term:expr) => {
        impl<T: Element> Op<T> for $op {
            type Scalar = f64;
            const IDENTITY: [f64; 2] = [0.0; 2];
            #[inline(always)]
            fn step(self, s: [f64; 2], x: T) -> [f64; 2] {
                let $x = x.to_f64();
                if T::BITS == 64 { two_sum(s, $term) } else { [s[0] + $term, s[1]] }
            }
            #[inline(always)]
            fn merge(self, a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
                let [sum, error] = two_sum(a, b[0]);
                [sum, error + b[1]]
            }
        }
    };
}
sum_op!(Sum, |x| x);
sum_op!(AbsSum, |x| x.abs());
sum_op!(SquareSum, |x| x * x);

/// The value of a carried sum. Where the sum is not finite, the error is meaningless and the sum says it all.
pub fn total([sum, error]: [f64; 2]) -> f64 {
    let corrected = sum + error;
    if sum.is_nan() {
        // One NaN: which sign and payload comes out of an addition depends on the instruction set.
        return f64::NAN;
    }
    if sum.is_finite() && corrected.is_finite() { corrected } else { sum }
}

impl<T: Element> Op<T> for Counts {
    type Scalar = u64;
    const IDENTITY: [u64; 2] = [0; 2];
    #[inline(always)]
    fn step(self, s: [u64; 2], x: T) -> [u64; 2] {
        let magnitude = x.magnitude();
        [s[0] + (magnitude != T::Key::ZERO) as u64, s[1] + (magnitude >= T::INFINITY_KEY) as u64]
    }
    #[inline(always)]
    fn merge(self, a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
        [a[0] + b[0], a[1] + b[1]]
    }
}

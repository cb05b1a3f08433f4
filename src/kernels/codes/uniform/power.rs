//! Powers of positive numbers, for norms other than the squared error: the same bits on every machine.

use std::f64::consts::{LN_2, LOG2_E};

/// 1.5 x 2^52: added and taken off again, it rounds to an integer.
const ROUNDING: f64 = 6_755_399_441_055_744.0;

/// x to the power p, off by less than a part in ten million, for normal positive x.
#[inline(always)]
pub(super) fn power(x: f64, p: f64) -> f64 {
    let bits = x.to_bits();
    let exponent = (bits >> 52) as i32 - 1023;
    let mantissa = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000);
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let tt = t * t;
    // ln((1 + t) / (1 - t)) = 2 (t + t^3 / 3 + t^5 / 5 ...), t up to a third.
    let mut series = 1.0 / 15.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * tt + 1.0 / odd;
    }
    let y = p * (f64::from(exponent) + 2.0 * t * series * LOG2_E);
    let y = if y > -1000.0 { y } else { -1000.0 };
    let y = if y < 1000.0 { y } else { 1000.0 };
    let whole = y + ROUNDING - ROUNDING;
    let rest = (y - whole) * LN_2;
    let mut value = 1.0;
    for n in [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        value = value * rest / n + 1.0;
    }
    value * f64::from_bits(((whole as i64 + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_powers_are_those_of_the_library() {
        for i in 0..2000 {
            let x = 1e-9 * 1.013f64.powi(i);
            for p in [-1.5, -1.3, 0.0, 0.4, 0.7, 2.4, 4.0] {
                let (found, want) = (power(x, p), x.powf(p));
                assert!((found - want).abs() < 1e-7 * want, "{x}^{p}: {found} {want}");
            }
        }
    }
}

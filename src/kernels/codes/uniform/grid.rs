//! How scales are searched: the grid, and what they are rounded to.

use super::tile::LANES;
use super::{Scheme, Uniform};
use crate::real::{Bf16, Element, F16, Real};

/// Longer groups have outliers, whole arrays more: their grids are wider.
const SHORT: usize = 64;
const LONG: usize = 4096;

/// The dtype that scales are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleDtype {
    /// As they are computed.
    Own,
    /// float32.
    F32,
    /// float16; below 8 bits with so few significant bits that code times scale is exact in float16: loaders multiply in
    /// float16 or in float32, and all then get the same numbers.
    F16,
    /// bfloat16.
    Bf16,
}

impl ScaleDtype {
    /// That of a name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "float32" => Some(Self::F32),
            "float16" => Some(Self::F16),
            "bfloat16" => Some(Self::Bf16),
            _ => None,
        }
    }

    /// The smallest and the largest magnitude of a scale.
    #[inline(always)]
    fn limits<C: Real>(self, bits: u32) -> [C; 2] {
        match self {
            Self::Own => [C::MIN_POSITIVE, C::MAX],
            Self::F32 => [f32::MIN_POSITIVE, f32::MAX].map(|limit| C::from_f64(limit.into())),
            Self::F16 => {
                let most = if bits < 8 { 65_504.0 / 16.0 } else { 65_504.0 };
                [1.0 / 16_777_216.0, most].map(C::from_f64)
            }
            Self::Bf16 => [f32::MIN_POSITIVE, f32::from_bits(0x7f7f_0000)].map(|limit| C::from_f64(limit.into())),
        }
    }

    /// Scales of codes of so many bits as they are read again.
    #[inline(always)]
    pub(super) fn round<C: Real>(self, bits: u32, scale: &mut [C; LANES]) {
        let [least, most] = self.limits::<C>(bits);
        for scale in scale.iter_mut() {
            let magnitude = scale.abs();
            let magnitude = if magnitude > least { magnitude } else { least };
            let magnitude = if magnitude < most { magnitude } else { most };
            *scale = if *scale < C::from_i16(0) { C::from_i16(0) - magnitude } else { magnitude };
        }
        match self {
            Self::Own => {}
            Self::F32 => each(scale, |scale| C::from_f64(scale.store_as::<f32>().to_f64())),
            Self::F16 => each(scale, |scale| {
                let scale = if bits < 8 { C::from_f64(seven_bits(scale.store_as()).into()) } else { scale };
                C::from_f64(scale.store_as::<F16>().to_f64())
            }),
            Self::Bf16 => each(scale, |scale| C::from_f64(scale.store_as::<Bf16>().to_f64())),
        }
    }
}

/// A normal number rounded to 7 significant bits, half to even.
#[inline(always)]
fn seven_bits(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0xffff + (bits >> 17 & 1)) & !0x1_ffff)
}

#[inline(always)]
fn each<C: Real>(scale: &mut [C; LANES], round: impl Fn(C) -> C) {
    for scale in scale.iter_mut() {
        *scale = round(*scale);
    }
}

/// How parameters are found.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// By search; else by the plain formula.
    pub search: bool,
    /// The dtype that scales are stored in.
    pub stored: ScaleDtype,
    /// Of what misses are raised to before they are added up: 2 for squared errors.
    pub norm: f64,
}

impl How {
    /// Whether they are those of the plain formula.
    pub fn is_plain(self) -> bool {
        !self.search && self.stored == ScaleDtype::Own
    }
}

/// The power of two that is at most a magnitude, and its reciprocal, as far as both are normal numbers.
#[inline(always)]
pub(super) fn units<C: Real>(magnitude: f64) -> [C; 2] {
    let [least, most] = if C::BITS == 32 { [1023 - 126, 1023 + 126] } else { [1, 2045] };
    let exponent = magnitude.to_bits() >> 52 & 0x7ff;
    let exponent = if exponent < least { least } else { exponent };
    let exponent = if exponent > most { most } else { exponent };
    [exponent, 2046 - exponent].map(|exponent| C::from_f64(f64::from_bits(exponent << 52)))
}

/// The grid: parts of the plain scale from, to and how many, and for asymmetric codes where the range lies that is left.
pub(super) fn grid(uniform: Uniform, size: usize) -> (Vec<f64>, &'static [f64]) {
    let (from, to, n) = match (uniform.bits, uniform.scheme, size <= SHORT) {
        (8, Scheme::Symmetric, true) => (0.97, 1.01, 9),
        (8, _, true) => (0.97, 1.01, 5),
        (8, _, false) if size <= LONG => (0.92, 1.01, 10),
        (8, _, false) => (0.6, 1.01, 12),
        (4, Scheme::Symmetric, true) => (0.88, 1.08, 5),
        (4, _, true) => (0.75, 1.1, 8),
        (4, _, false) => (0.4, 1.1, 10),
        (_, Scheme::Symmetric, true) => (0.35, 1.1, 6),
        (_, _, true) => (0.3, 1.1, 9),
        (_, _, false) => (0.15, 1.1, 12),
    };
    let factors = (0..n).map(|i| from + (to - from) * i as f64 / (n - 1) as f64).collect();
    let sides: &[f64] = match (uniform.bits, uniform.scheme, size <= SHORT) {
        // Both signs of the scale.
        (_, Scheme::Symmetric, _) => &[1.0, -1.0],
        // Few ranges are so lopsided that more than the middle gains a thousandth of a decibel.
        (4, _, true) => &[0.5],
        (2, ..) => &[0.25, 0.75],
        _ => &[0.0, 0.5, 1.0],
    };
    (factors, sides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(bits: u32, scheme: Scheme) -> Uniform {
        Uniform { bits, scheme, offset_binary: false, signed: false }
    }

    #[test]
    fn test_a_grid_ascends_around_the_plain_scale_and_has_sides_of_its_scheme() {
        for bits in [8, 4, 2] {
            for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
                for size in [1, SHORT, SHORT + 1, LONG, LONG + 1] {
                    let (factors, sides) = grid(uniform(bits, scheme), size);
                    assert!(factors.is_sorted_by(|a, b| a < b) && factors[0] < 1.0 && factors[factors.len() - 1] > 1.0);
                    if scheme == Scheme::Symmetric {
                        assert_eq!(sides, [1.0, -1.0]);
                    } else {
                        // As far from one end as from the other.
                        assert!(sides.iter().zip(sides.iter().rev()).all(|(a, b)| a + b == 1.0));
                    }
                }
            }
        }
    }

    #[test]
    fn test_a_unit_is_the_power_of_two_at_most_a_magnitude_and_normal_as_its_reciprocal_is() {
        for magnitude in [1.0, 1.5, 2.0f64.next_down(), 3e-30, 7e30, 2e-38] {
            let [unit, norm] = units::<f32>(magnitude);
            assert!(
                f64::from(unit) <= magnitude && magnitude < 2.0 * f64::from(unit) && unit * norm == 1.0,
                "{magnitude}"
            );
        }
        for magnitude in [0.0, 1e-45, 1e-38, 3e38, f64::MAX] {
            let [unit, norm] = units::<f32>(magnitude);
            assert!(unit.is_normal() && norm.is_normal() && unit * norm == 1.0, "{magnitude}");
            let [unit, norm] = units::<f64>(magnitude);
            assert!(unit.is_normal() && norm.is_normal() && unit * norm == 1.0, "{magnitude}");
        }
    }

    #[test]
    fn test_a_stored_scale_keeps_its_sign_is_never_0_or_infinite_and_stays_when_stored_again() {
        for stored in [ScaleDtype::Own, ScaleDtype::F32, ScaleDtype::F16, ScaleDtype::Bf16] {
            for (bits, given) in [8, 4]
                .into_iter()
                .flat_map(|bits| [1e-300, 1e-40, 1e-8, 0.1, 1.0, 70_000.0, 3.4e38, 1e300].map(|x| (bits, x)))
            {
                let mut scale: [f64; LANES] = [given; LANES];
                scale[1] = -given;
                stored.round(bits, &mut scale);
                assert!(scale[0] > 0.0 && scale[0].is_finite() && scale[1] == -scale[0], "{stored:?} {given}");
                let mut again = scale;
                stored.round(bits, &mut again);
                assert_eq!(again, scale, "{stored:?} {given}");
            }
            assert_eq!(ScaleDtype::parse("float16"), Some(ScaleDtype::F16));
            assert_eq!(ScaleDtype::parse("float8"), None);
        }
    }

    /// compressed-tensors multiplies in the dtype of the scales or in that of the model.
    #[test]
    fn test_codes_below_8_bits_times_scales_of_float16_are_exact_in_float16() {
        let mut bits = 1u32;
        for _ in 0..20_000 {
            let mut scale = [0.0f32; LANES];
            for scale in &mut scale {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *scale = f32::from_bits((bits & 0x8fff_ffff) + (90 << 23)); // 2^-37 to 2^-5, of both signs
                *scale *= if bits & 1 == 0 { 1.0 } else { 65_536.0 };
            }
            ScaleDtype::F16.round(4, &mut scale);
            for (code, scale) in (-15i8..16).flat_map(|code| scale.map(|scale| (code, scale))) {
                let product = f32::from(code) * scale;
                assert_eq!(product.store_as::<F16>().load(), product, "{code} x {scale:e}");
                assert!(scale != 0.0 && scale.abs() <= 4096.0);
            }
        }
    }

    #[test]
    fn test_scales_are_rounded_to_the_nearest() {
        for (stored, bits, part) in [(ScaleDtype::F16, 4, 2f32.powi(-7)), (ScaleDtype::F16, 8, 2f32.powi(-11))] {
            let mut scale: [f32; LANES] = std::array::from_fn(|lane| 1.0 + lane as f32 / 97.0);
            let exact = scale;
            stored.round(bits, &mut scale);
            for (scale, exact) in scale.iter().zip(exact) {
                assert!((scale - exact).abs() <= part * exact, "{stored:?} {exact}: {scale}");
            }
        }
    }
}

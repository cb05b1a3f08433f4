//! The 16-bit floats: conversions by integer arithmetic, without branches.

/// An IEEE 754 binary16 number, by its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct F16(pub u16);

/// A bfloat16 number (the upper half of a float32), by its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// Branch-free choice by mask, which vectorises where `if` on mixed types does not.
#[inline(always)]
pub fn select(condition: bool, yes: u32, no: u32) -> u32 {
    let mask = (condition as u32).wrapping_neg();
    (yes & mask) | (no & !mask)
}

impl F16 {
    #[inline(always)]
    pub(super) fn to_f32(self) -> f32 {
        let sign = (self.0 as u32 & 0x8000) << 16;
        let magnitude = (self.0 as u32 & 0x7fff) << 13;
        // Normal: exponent bias 15 -> 127. Infinity and NaN: exponent 31 -> 255, and a NaN's quiet bit is set.
        let normal = magnitude + (112 << 23);
        let special = (magnitude + (224 << 23)) | (((magnitude > 0x0f80_0000) as u32) << 22);
        // Subnormal m x 2^-24: put m under the exponent of 2^-14 and take 2^-14 away, exactly.
        let subnormal = (f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
        let bits = select(magnitude >= 0x0f80_0000, special, select(magnitude < 0x0080_0000, subnormal, normal));
        f32::from_bits(bits | sign)
    }

    #[inline(always)]
    pub(super) fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        // Half to even at bit 13; a carry runs into the exponent, up to infinity, as it should.
        let rounded = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + ((magnitude >> 13) & 1)) >> 13;
        // Below 2^-14 the last place is 2^-24: adding 0.5 rounds to it.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
        let small = select(magnitude < (113 << 23), subnormal, rounded);
        let finite = select(magnitude >= 0x4780_0000, 0x7c00, small);
        Self((select(magnitude > 0x7f80_0000, nan, finite) | sign) as u16)
    }

    /// Up or down by chance: up with the probability that is the distance from below, in places of the last bit.
    #[inline(always)]
    pub(super) fn from_f32_by_chance(x: f32, random: u32) -> Self {
        let bits = x.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        let random = random & 0x1fff;
        let rounded = magnitude.wrapping_sub(112 << 23).wrapping_add(random) >> 13;
        // Below 2^-14 in units of 2^-24, under 1024, plus a fraction; above 1024 a float has 13 bits for the fraction.
        let units = f32::from_bits(magnitude) * 16_777_216.0 + random as i32 as f32 / 8192.0;
        let subnormal = (units + 1024.0).to_bits().wrapping_sub(1024f32.to_bits()) >> 13;
        let nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
        let small = select(magnitude < (113 << 23), subnormal, rounded);
        let finite = select(magnitude >= 0x4780_0000, 0x7c00, small);
        Self((select(magnitude > 0x7f80_0000, nan, finite) | sign) as u16)
    }
}

impl Bf16 {
    #[inline(always)]
    pub(super) fn to_f32(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }

    #[inline(always)]
    pub(super) fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        Self(select(bits & 0x7fff_ffff > 0x7f80_0000, nan, rounded) as u16)
    }

    /// As [`F16::from_f32_by_chance`].
    #[inline(always)]
    pub(super) fn from_f32_by_chance(x: f32, random: u32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(random & 0xffff) >> 16;
        let nan = (bits >> 16) | 0x40;
        Self(select(bits & 0x7fff_ffff > 0x7f80_0000, nan, rounded) as u16)
    }
}

/// Round f64 to f32 to odd: a second rounding to 16 bits then gives what one rounding would have given.
///
/// Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd".
#[inline(always)]
pub(super) fn round_to_odd(x: f64) -> f32 {
    let near = x as f32;
    let bits = near.to_bits();
    let inexact = near as f64 != x && x == x;
    let away = (near as f64).abs() > x.abs();
    let odd = if away { bits - 1 } else { bits + 1 };
    f32::from_bits(if inexact && bits & 1 == 0 { odd } else { bits })
}

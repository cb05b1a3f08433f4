//! Floats of a few bits with a sign, subnormal numbers and rounding half to even, by integer arithmetic on bits.

use crate::real::select;

/// The code of the nearest number, at most `last`. `bias` is that of the exponent.
#[inline(always)]
pub fn encode<const BITS: u32, const MANTISSA: u32, const BIAS: u32>(x: f32, last: u32) -> u32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let shift = 23 - MANTISSA;
    // A carry runs into the exponent, as it should.
    let half_to_even = (1 << (shift - 1)) - 1 + (magnitude >> shift & 1);
    let normal = magnitude.wrapping_sub((127 - BIAS) << 23).wrapping_add(half_to_even) >> shift;
    // Below the smallest normal number all have the same last place: adding 2^23 of it rounds to it.
    let ulps = f32::from_bits((151 - BIAS - MANTISSA) << 23);
    let subnormal = (f32::from_bits(magnitude) + ulps).to_bits().wrapping_sub(ulps.to_bits());
    let code = select(magnitude < (128 - BIAS) << 23, subnormal, normal);
    code.min(last) | bits >> 31 << (BITS - 1)
}

/// The number of a code, all of whose exponents are finite.
#[inline(always)]
pub fn decode<const BITS: u32, const MANTISSA: u32, const BIAS: u32>(code: u32) -> f32 {
    let sign = code >> (BITS - 1) << 31;
    let magnitude = (code & ((1 << (BITS - 1)) - 1)) << (23 - MANTISSA);
    // Under the exponent of the smallest normal number, and that taken away again, exactly.
    let smallest = (128 - BIAS) << 23;
    let subnormal = (f32::from_bits(magnitude + smallest) - f32::from_bits(smallest)).to_bits();
    f32::from_bits(select(magnitude < 1 << 23, subnormal, magnitude + ((127 - BIAS) << 23)) | sign)
}

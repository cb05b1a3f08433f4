//! Floats of a few bits with a sign, subnormal numbers and rounding half to even, by integer arithmetic on bits.

/// The code of the nearest number, at most `last`. `bias` is that of the exponent.
///
/// A sum whose last place is that of the code rounds to it: n of these places are the low bits of the sum, and the
/// exponents above them differ from those of codes by a constant. A carry runs into the exponent, as it should.
#[inline(always)]
pub fn encode<const BITS: u32, const MANTISSA: u32, const BIAS: u32>(x: f32, last: u32) -> u32 {
    let bits = x.to_bits();
    let shift = 23 - MANTISSA;
    // Below the smallest normal number all have its last place.
    let smallest = (128 - BIAS) << 23;
    let magnitude = (bits & 0x7fff_ffff).min((last << shift) + ((127 - BIAS) << 23));
    let exponent = magnitude.max(smallest) & 0x7f80_0000;
    // What the low byte of the code below lacks otherwise: an even number of last places.
    let constant = ((shift + 128 - BIAS) << MANTISSA).wrapping_neg() & 0xff;
    let sum = (f32::from_bits(magnitude) + f32::from_bits(exponent + (shift << 23) + constant)).to_bits();
    let code = sum.wrapping_add(sum >> shift);
    code & ((1 << (BITS - 1)) - 1) | bits >> 31 << (BITS - 1)
}

/// The number of a code, all of whose exponents are finite.
#[inline(always)]
pub fn decode<const BITS: u32, const MANTISSA: u32, const BIAS: u32>(code: u32) -> f32 {
    let sign = code >> (BITS - 1) << 31;
    let magnitude = (code & ((1 << (BITS - 1)) - 1)) << (23 - MANTISSA);
    // Of a subnormal number a normal one was made: twice it without the smallest normal number is less, and right.
    let smallest = f32::from_bits((128 - BIAS) << 23);
    let normal = f32::from_bits(magnitude + ((127 - BIAS) << 23));
    let subnormal = normal + normal - smallest;
    let number = if subnormal < normal { subnormal } else { normal };
    f32::from_bits(number.to_bits() | sign)
}

//! States in blocks of codes: 8 or 4 bits an element, and the largest magnitude of each block as float32.
//!
//! A block is decoded, stepped and coded again while it is in the L1 cache, so a step reads and writes each code once.
//! All codings are arithmetic on whole vectors: a table of 256 numbers would need a gather for each element.

use crate::real::select;

/// How numbers in units of their block's largest magnitude become codes.
///
/// What can be negative is `signed`; the others (second moments) have all codes for the positive numbers.
pub trait Coding: Send + Sync + 'static {
    /// Bits of a code.
    const BITS: usize;
    /// Elements of a block.
    const BLOCK: usize;
    /// Whether the square root of what is not signed is stored: it has half the range.
    const ROOT: bool;
    /// What the largest magnitude becomes before it is coded.
    fn top(signed: bool) -> f32;
    /// The code of a number of magnitude below [`Coding::top`]: up or down by chance by 20 random bits, or to nearest by
    /// [`NEAREST`] (also where a coding has no use for chance).
    fn encode(x: f32, signed: bool, random: u32) -> u32;
    /// The number of a code.
    fn decode(code: u32, signed: bool) -> f32;
}

/// The codes of one block, a byte each: `codes` itself, or (4 bits, a short block) spread into `buffer`.
///
/// Loops run over whole blocks, so that their length is a constant.
#[inline(always)]
pub fn spread<'a, K: Coding>(codes: &'a [u8], buffer: &'a mut [u8; LONGEST]) -> &'a [u8] {
    if K::BITS == 8 && codes.len() == K::BLOCK {
        return &codes[..K::BLOCK];
    }
    if K::BITS == 8 {
        buffer[..codes.len()].copy_from_slice(codes);
        return &buffer[..K::BLOCK];
    }
    for (pair, byte) in buffer.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        *pair = [byte & 15, byte >> 4];
    }
    &buffer[..K::BLOCK]
}

/// The number of a code; `unit` is [`unit`] of its block.
#[inline(always)]
pub fn number<K: Coding>(code: u8, unit: f32, signed: bool) -> f32 {
    let x = K::decode(code.into(), signed) * unit;
    if K::ROOT && !signed { x * x } else { x }
}

/// What the numbers of codes are multiplied by.
#[inline(always)]
pub fn unit<K: Coding>(absmax: f32, signed: bool) -> f32 {
    absmax / K::top(signed)
}

/// A float whose low bits round to nearest.
pub const NEAREST: f32 = f32::from_bits(0x800);

/// The longest block.
pub const LONGEST: usize = 256;

/// Blocks whose largest magnitude is smaller are stored as zeros: the reciprocal would overflow.
pub const SMALLEST: f32 = 1e-37;

/// A number as it is stored: itself, or its root.
#[inline(always)]
pub fn stored<K: Coding>(x: f32, signed: bool) -> f32 {
    if K::ROOT && !signed { x.sqrt() } else { x }
}

/// The bits of |x|: their order is that of the magnitudes, with NaN above all.
#[inline(always)]
pub fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Code one block of what is [`stored`], with its largest magnitude.
///
/// The lowest 12 bits of `noise` are the chance of each number: those above are not even enough (of numbers of all sizes a
/// mantissa is rather small, which would make second moments smaller by 3e-4 in each step).
#[inline(always)]
pub fn store<K: Coding>(x: &[f32], noise: &[f32], signed: bool, absmax: f32, codes: &mut [u8]) {
    // Just below, so that no chance takes the largest above all codes.
    let scale = if absmax == 0.0 { 0.0 } else { K::top(signed) * (1.0 - 2.0 * f32::EPSILON) / absmax };
    let numbers = x[..K::BLOCK].iter().zip(&noise[..K::BLOCK]);
    let encode = |(x, noise): (&f32, &f32)| K::encode(*x * scale, signed, noise.to_bits() << 8 & 0x000f_ffff) as u8;
    if K::BITS == 8 && codes.len() == K::BLOCK {
        for (code, number) in codes[..K::BLOCK].iter_mut().zip(numbers) {
            *code = encode(number);
        }
        return;
    }
    let mut bytes = [0; LONGEST];
    for (code, number) in bytes.iter_mut().zip(numbers) {
        *code = encode(number);
    }
    if K::BITS == 4 {
        let pairs = bytes;
        for (byte, [low, high]) in bytes.iter_mut().zip(pairs.as_chunks::<2>().0) {
            *byte = low | high << 4;
        }
    }
    codes.copy_from_slice(&bytes[..codes.len()]);
}

/// 8 bits as small floats: a sign, 4 bits of exponent and 3 of mantissa; without a sign, 4 and 4. From the largest number
/// of a block down to 2^-15 of 1.9 times it.
///
/// Steps round by chance, with the low bits of another number that they made. A second moment moves by a thousandth of
/// itself in a step: rounded to nearest it would stay where it is. Code 0 is 0 for what is signed; what is not has no 0 but
/// in a block of zeros: a first moment over a second moment that became 0 would be a huge step.
///
/// Tried: the second moment with 5 bits of exponent and 3 of mantissa, which has the range that its root would have in 4
/// and 4 (the loss of a perceptron on digits 2 % to 8 % off that of float32 states; so 0.5 %); to nearest (as much again);
/// the root itself (a sixth of the whole step); subnormal codes (a tenth).
#[derive(Debug, Clone, Copy)]
pub struct Float8;

impl Float8 {
    /// The bits of the number that the code 0 stands at: 2^-15.
    const FIRST: u32 = 112 << 23;

    /// Bits of an f32 below those of a code.
    const fn shift(signed: bool) -> u32 {
        if signed { 20 } else { 19 }
    }
}

impl Coding for Float8 {
    const BITS: usize = 8;
    const BLOCK: usize = 256;
    const ROOT: bool = false;

    #[inline(always)]
    fn top(signed: bool) -> f32 {
        if signed { 1.875 } else { 1.9375 }
    }

    #[inline(always)]
    fn encode(x: f32, signed: bool, random: u32) -> u32 {
        let bits = x.to_bits();
        let magnitude = (bits & 0x7fff_ffff) as i32;
        // A carry runs into the exponent, as it should.
        let above = magnitude - Self::FIRST as i32 + (random >> (20 - Self::shift(signed))) as i32;
        let code = above.max(0) as u32 >> Self::shift(signed);
        if signed { code | (bits >> 24 & 0x80) } else { code }
    }

    #[inline(always)]
    fn decode(code: u32, signed: bool) -> f32 {
        if !signed {
            return f32::from_bits((code << Self::shift(false)) + Self::FIRST);
        }
        // The sign of the byte, extended, is that of the number; what it fills between is cut away.
        let bits = ((code as i8 as i32 as u32) << Self::shift(true)) & (1 << 31 | 127 << Self::shift(true));
        f32::from_bits(select(bits << 1 > 0, bits + Self::FIRST, bits))
    }
}

/// The signed and unsigned "dynamic" maps of Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization"
/// (arXiv 2110.02861): decades from 1e-6 (8 bits) to 1, each cut evenly into twice as many parts as the one below; a
/// code is the mean of its part. 0 and 1 have codes of their own. Codes are in the order of the numbers, as in
/// bitsandbytes: a signed code is the middle (0) plus or minus a rank, an unsigned code a rank from 0.
#[derive(Debug, Clone, Copy)]
pub struct Dynamic;

/// The arithmetic of a dynamic map: the rank of a magnitude is 2^k + j for part j of the decade that has 2^k parts.
struct Decades<const N: usize> {
    /// k of the lowest decade.
    first: u32,
    /// 10^-i of each decade, then what makes the rank above all of them the number 1.
    size: [f32; N],
    inverse: [f32; N],
    /// The midpoint between the largest number below a decade and its smallest.
    begin: [f32; N],
}

impl<const N: usize> Decades<N> {
    const fn new(first: u32) -> Self {
        let (mut size, mut inverse, mut begin) = ([0.0; N], [0.0; N], [0.0; N]);
        let mut below = 0.0;
        let mut decade = 1.0;
        let mut i = 2;
        while i < N {
            decade /= 10.0;
            i += 1;
        }
        i = 0;
        while i < N {
            let parts = (1u64 << (first + i as u32)) as f64;
            let smallest = if i + 1 < N { decade * (0.1 + 0.45 / parts) } else { 1.0 };
            let of_one = if i + 1 < N { decade } else { 1.0 / (0.1 + 0.45 / parts) };
            size[i] = of_one as f32;
            inverse[i] = (1.0 / of_one) as f32;
            begin[i] = f64::midpoint(below, smallest) as f32;
            below = decade * (1.0 - 0.45 / parts);
            decade *= 10.0;
            i += 1;
        }
        Self { first, size, inverse, begin }
    }

    /// The rank of a magnitude from 0 to 1.
    #[inline(always)]
    fn rank(&self, x: f32) -> u32 {
        let (mut inverse, mut parts) = (0.0, 0.0f32);
        let mut count = (1u32 << self.first) as f32;
        for i in 0..N {
            let reached = x >= self.begin[i];
            inverse = if reached { self.inverse[i] } else { inverse };
            parts = if reached { count } else { parts };
            count *= 2.0;
        }
        // The part, rounded down: by adding 1.5 x 2^23, which rounds to nearest, to half a part less.
        let part = (x * inverse - 0.1) * (parts / 0.9) - 0.5;
        let part = if part > 0.0 { part } else { 0.0 };
        let part = if part < parts - 1.0 { part } else { parts - 1.0 };
        let rank = (part + parts + 12_582_912.0).to_bits() & 0xffff;
        select(parts > 0.0, rank, 0)
    }

    /// The magnitude of a rank.
    #[inline(always)]
    fn magnitude(&self, rank: u32) -> f32 {
        let rank = rank as i32 as f32;
        let mut size = 0.0;
        let mut count = (1u32 << self.first) as f32;
        for i in 0..N {
            size = if rank >= count { self.size[i] } else { size };
            count *= 2.0;
        }
        let bits = rank.to_bits();
        // (rank - 2^k) / 2^k, and half a part: 2^-k / 2.
        let part = f32::from_bits((bits & 0x007f_ffff) | 1.0f32.to_bits()) - 1.0;
        let half = f32::from_bits((253 << 23) - (bits & 0x7f80_0000));
        (0.1 + 0.9 * (part + half)) * size
    }
}

const SIGNED8: Decades<8> = Decades::new(0);
const UNSIGNED8: Decades<8> = Decades::new(1);
const SIGNED4: Decades<4> = Decades::new(0);

/// A signed code: the middle, plus or minus a rank. The highest rank, 1, is only positive.
#[inline(always)]
fn encode_signed<const N: usize>(decades: &Decades<N>, x: f32) -> u32 {
    let middle = (1 << (N - 1)) - 1;
    let rank = decades.rank(x.abs());
    select(x < 0.0, middle - rank.min(middle), middle + rank)
}

#[inline(always)]
fn decode_signed<const N: usize>(decades: &Decades<N>, code: u32) -> f32 {
    let middle = (1 << (N - 1)) - 1;
    let is_negative = code < middle;
    let magnitude = decades.magnitude(select(is_negative, middle.wrapping_sub(code), code.wrapping_sub(middle)));
    f32::from_bits(magnitude.to_bits() | (is_negative as u32) << 31)
}

impl Coding for Dynamic {
    const BITS: usize = 8;
    const BLOCK: usize = 256;
    const ROOT: bool = false;

    #[inline(always)]
    fn top(_signed: bool) -> f32 {
        1.0
    }

    #[inline(always)]
    fn encode(x: f32, signed: bool, _random: u32) -> u32 {
        if signed { encode_signed(&SIGNED8, x) } else { UNSIGNED8.rank(x).saturating_sub(1) }
    }

    #[inline(always)]
    fn decode(code: u32, signed: bool) -> f32 {
        if signed { decode_signed(&SIGNED8, code) } else { UNSIGNED8.magnitude(code + 1) }
    }
}

/// 4 bits: Li, Chen and Zhu 2023, "Memory Efficient Optimizers with 4-bit States" (arXiv 2309.01507). First moments in
/// the dynamic map of 4 bits, second moments evenly and without 0, which would make huge steps; of their roots here.
#[derive(Debug, Clone, Copy)]
pub struct Four;

impl Coding for Four {
    const BITS: usize = 4;
    const BLOCK: usize = 128;
    const ROOT: bool = true;

    #[inline(always)]
    fn top(signed: bool) -> f32 {
        if signed { 1.0 } else { 16.0 }
    }

    #[inline(always)]
    fn encode(x: f32, signed: bool, _random: u32) -> u32 {
        if signed {
            return encode_signed(&SIGNED4, x);
        }
        let x = if x > 1.0 { x } else { 1.0 };
        ((x + 12_582_911.0).to_bits() & 0xff).min(15)
    }

    #[inline(always)]
    fn decode(code: u32, signed: bool) -> f32 {
        if signed { decode_signed(&SIGNED4, code) } else { (code + 1) as i32 as f32 }
    }
}

//! States in blocks of codes: 8 or 4 bits an element, and the largest magnitude of each block as float32.
//!
//! A block is decoded, stepped and coded again while it is in the L1 cache, so a step reads and writes each code once.
//! All codings are arithmetic on whole vectors: a table of 256 numbers would need a gather for each element.

mod dynamic;
mod float8;

pub use dynamic::{Dynamic, Four};
pub use float8::Float8;

use crate::real::Element;

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
    /// The code of a number of magnitude below [`Coding::top`]: up or down by chance by 20 random bits, or to nearest
    /// by [`NEAREST`] (also where a coding has no use for chance).
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

/// What rounds to nearest in the place of random bits.
pub const NEAREST: u32 = 1 << 19;

/// 20 random bits of a number that a step made.
///
/// They are its lowest 12: those above are not even enough (of numbers of all sizes a mantissa is rather small, which
/// would make second moments smaller by 3e-4 in each step). Nor are those, after subtractions: with the lowest k of
/// them 0 in 2^-k of all cases they are too small by 3e-4, so that every other is turned. The middle of what 12 bits
/// leave open is added. (Without both, second moments become smaller by 3e-5 in each step: at a decay of 0.999 by 2.5 %
/// in the end.)
#[inline(always)]
pub fn chance(noise: f32) -> u32 {
    (noise.to_bits() << 8 & 0x000f_ffff) ^ 0x0005_5580
}

/// The longest block.
pub const LONGEST: usize = 256;

/// Blocks whose largest magnitude is smaller are stored as zeros: the reciprocal would overflow.
const SMALLEST: f32 = 1e-37;

/// A number as it is stored: itself, or its root.
#[inline(always)]
pub fn stored<K: Coding>(x: f32, signed: bool) -> f32 {
    if K::ROOT && !signed { x.sqrt() } else { x }
}

/// The largest magnitude of a block as it is kept.
#[inline(always)]
pub fn absmax(largest: <f32 as Element>::Key) -> f32 {
    let x = f32::from_key(largest);
    if x < SMALLEST { 0.0 } else { x }
}

/// Code one block of what is [`stored`], with its largest magnitude; `random` makes random bits of a number of `noise`.
#[inline(always)]
pub fn store<K: Coding>(
    x: &[f32],
    noise: &[f32],
    random: impl Fn(f32) -> u32,
    signed: bool,
    absmax: f32,
    codes: &mut [u8],
) {
    // Just below, so that no chance takes the largest above all codes.
    let scale = if absmax == 0.0 { 0.0 } else { K::top(signed) * (1.0 - 2.0 * f32::EPSILON) / absmax };
    let numbers = x[..K::BLOCK].iter().zip(&noise[..K::BLOCK]);
    let encode = |(x, noise): (&f32, &f32)| K::encode(*x * scale, signed, random(*noise)) as u8;
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

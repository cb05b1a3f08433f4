//! States in blocks of codes: 8 or 4 bits an element, and the largest magnitude of each block as float32.
//!
//! A block is decoded, stepped and coded again while it is in the L1 cache, so a step reads and writes each code once.
//! All codings are arithmetic on whole vectors: a table of 256 numbers would need a gather for each element.

use crate::isa::kernel;
use crate::kernels::codes::{
    Code, Dynamic4, SignedDynamic, SixteenSteps, UnitE4M3, UnitE5M3, UnsignedDynamic, decode_group,
};
use crate::real::Element;

/// How a state is kept in blocks: a code for what can be negative, and one for the rest (second moments), which has all
/// its numbers above 0.
pub trait Coding: Send + Sync + 'static {
    /// Its name in Python.
    const NAME: &'static str;
    /// Elements of a block.
    const BLOCK: usize;
    /// Whether the square root of what is not signed is stored: it has half the range.
    const ROOT: bool;
    /// Whether a block is coded in the loop that steps the next: where both are short enough for the registers. (The dynamic maps
    /// of 8 bits take longer so.)
    const TOGETHER: bool = false;
    /// The code of first moments and momenta.
    type Signed: Code;
    /// The code of second moments, of as many bits.
    type Unsigned: Code;
    /// Bits of a code.
    const BITS: usize = Self::Signed::BITS as usize;
}

/// 8 bits as small floats with 3 bits of mantissa.
///
/// Steps round by chance, with the low bits of another number that they made. A second moment moves by a thousandth of
/// itself in a step: rounded to nearest it would stay where it is. Code 0 is 0 for what is signed; what is not has no 0
/// but in a block of zeros: a first moment over a second moment that became 0 would be a huge step.
///
/// Chance makes the steps of Adam larger, as the mean of 1 / sqrt(x) is above that of the mean: by 2 % at a decay of
/// 0.999. The loss of a perceptron on digits (8 epochs, 40 seeds) is 0.6 % to 0.8 % below that of float32 states, for
/// all that divide by a second moment.
///
/// Tried for second moments: 4 bits of exponent and 4 of mantissa (a loss as that of float32 states, but elements whose
/// gradient is 1e-3 of the block's largest move a quarter as far: they stand at the lowest code); codes twice as dense
/// in the highest 5 octaves, down to 2^-27 (the loss 0.3 % to 0.5 % off, 1.07 of the time of a step in the cache); to
/// nearest (1 % to 5 % off); the root itself (a sixth of the whole step); subnormal codes (a tenth).
#[derive(Debug, Clone, Copy)]
pub struct Minifloats;

impl Coding for Minifloats {
    const NAME: &'static str = "minifloat";
    const BLOCK: usize = 256;
    const ROOT: bool = false;
    const TOGETHER: bool = true;
    type Signed = UnitE4M3;
    type Unsigned = UnitE5M3;
}

/// The dynamic maps of 8 bits.
#[derive(Debug, Clone, Copy)]
pub struct DynamicMaps;

impl Coding for DynamicMaps {
    const NAME: &'static str = "dynamic";
    const BLOCK: usize = 256;
    const ROOT: bool = false;
    type Signed = SignedDynamic;
    type Unsigned = UnsignedDynamic;
}

/// 4 bits: first moments in the dynamic map, of second moments the roots, evenly and without 0, which would make huge
/// steps.
#[derive(Debug, Clone, Copy)]
pub struct FourBits;

impl Coding for FourBits {
    const NAME: &'static str = "dynamic4";
    const BLOCK: usize = 128;
    const ROOT: bool = true;
    const TOGETHER: bool = true;
    type Signed = Dynamic4;
    type Unsigned = SixteenSteps;
}

/// What the largest magnitude becomes before it is coded.
#[inline(always)]
fn top<K: Coding>(signed: bool) -> f32 {
    if signed { K::Signed::TOP } else { K::Unsigned::TOP }
}

/// The codes of one block, a byte each, in `buffer`.
pub fn spread<K: Coding>(codes: &[u8], buffer: &mut [u8; LONGEST]) {
    if K::BITS == 8 { buffer[..codes.len()].copy_from_slice(codes) } else { part_pairs(codes, buffer) }
}

/// The numbers of one block of codes of 4 bits, roots where these are stored; `scale` is [`scale`] of it.
pub fn numbers<K: Coding>(codes: &[u8], scale: f32, signed: bool, buffer: &mut [f32; LONGEST]) {
    let buffer = &mut buffer[..2 * codes.len()];
    if signed {
        decode_group::<K::Signed>(codes, scale, buffer);
    } else {
        decode_group::<K::Unsigned>(codes, scale, buffer);
    }
}

/// The codes of one block from a byte each.
pub fn gather<K: Coding>(bytes: &[u8; LONGEST], codes: &mut [u8]) {
    if K::BITS == 8 { codes.copy_from_slice(&bytes[..codes.len()]) } else { join_pairs(bytes, codes) }
}

kernel! {
    fn part_pairs(codes: &[u8], bytes: &mut [u8; LONGEST]) {
        for (pair, byte) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *pair = [byte & 15, byte >> 4];
        }
    }
}

kernel! {
    fn join_pairs(bytes: &[u8; LONGEST], codes: &mut [u8]) {
        for (byte, [low, high]) in codes.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *byte = low | high << 4;
        }
    }
}

/// The number of a code; `scale` is [`scale`] of its block.
#[inline(always)]
pub fn number<K: Coding>(code: u8, scale: f32, signed: bool) -> f32 {
    let x = if signed { K::Signed::decode(code.into()) } else { K::Unsigned::decode(code.into()) };
    of_stored::<K>(x * scale, signed)
}

/// A number of what is [`stored`].
#[inline(always)]
pub fn of_stored<K: Coding>(x: f32, signed: bool) -> f32 {
    if K::ROOT && !signed { x * x } else { x }
}

/// What the numbers of codes are multiplied by.
#[inline(always)]
pub fn scale<K: Coding>(absmax: f32, signed: bool) -> f32 {
    absmax / top::<K>(signed)
}

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

/// What the numbers of a block are multiplied by before they are coded.
#[inline(always)]
pub fn inverse_scale<K: Coding>(absmax: f32, signed: bool) -> f32 {
    // Just below, so that no chance takes the largest above all codes.
    if absmax == 0.0 { 0.0 } else { top::<K>(signed) * (1.0 - 2.0 * f32::EPSILON) / absmax }
}

/// The code of what is [`stored`].
#[inline(always)]
pub fn code<K: Coding>(x: f32, inverse_scale: f32, random: u32, signed: bool) -> u8 {
    let x = x * inverse_scale;
    let code = if signed { K::Signed::encode_by_chance(x, random) } else { K::Unsigned::encode_by_chance(x, random) };
    code as u8
}

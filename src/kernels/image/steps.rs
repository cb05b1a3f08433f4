//! From levels to what a model takes: `(x * scale - mean) / std` by channel, and its codes.
//!
//! In f32, each step rounded. A division of so many numbers takes twice as long as the memory: where two fused steps give the
//! same quotient of all 256 levels (asked once, when the plan is made), levels are divided by them.

use super::resample::{Pixel, Row};
use crate::isa::kernel;
use crate::real::{Bf16, Divisor, Divisors, Element, F16};

/// Channels at most.
pub const CHANNELS: usize = 4;

/// A number that 1, 3 and 4 channels go into: constants of so many neighbours in a row are alike for all of them.
const PERIOD: usize = 48;

/// Pixels at a time.
const BLOCK: usize = 64;

/// `(x * scale - mean) / std`; one of each for a channel, in the order of the image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    /// What levels are multiplied by.
    pub scale: f32,
    /// What is taken away from them.
    pub mean: [f32; CHANNELS],
    /// What they are divided by at last.
    pub std: [f32; CHANNELS],
}

/// `clamp(round(y / scale) + zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantization {
    /// The step between two codes.
    pub scale: f32,
    /// The code of 0, and of NaN.
    pub zero_point: i32,
    /// The least and the largest code.
    pub codes: [i32; 2],
    /// Whether halves are rounded away from 0; else to even.
    pub away: bool,
}

impl Steps {
    /// Of one number.
    #[inline(always)]
    pub fn of(&self, x: f32, channel: usize) -> f32 {
        (x * self.scale - self.mean[channel]) / self.std[channel]
    }

    /// The constants of each channel, with what divisions by it take.
    pub fn constants(&self) -> [Constants; CHANNELS] {
        std::array::from_fn(|c| Constants::new(self, c))
    }

    /// Whether the quotient of every level may be had by [`Divisor::quotient`].
    pub fn levels_need_no_division(&self) -> bool {
        (0..CHANNELS).all(|c| {
            let by = Divisor::new(self.std[c]);
            let same = |x: u8| {
                let x = x.number() * self.scale - self.mean[c];
                by.quotient(x).to_bits() == (x / self.std[c]).to_bits()
            };
            Divisor::is_exact(self.std[c]) && (0..=u8::MAX).all(same)
        })
    }
}

/// The constants of one number.
#[derive(Debug, Clone, Copy)]
pub struct Constants {
    scale: f32,
    mean: f32,
    std: f32,
    by: Divisor<f32>,
}

impl Constants {
    #[inline(always)]
    fn new(steps: &Steps, channel: usize) -> Self {
        let std = steps.std[channel];
        Self { scale: steps.scale, mean: steps.mean[channel], std, by: Divisor::new(std) }
    }

    #[inline(always)]
    fn of<const FUSED: bool>(&self, x: f32) -> f32 {
        let x = x * self.scale - self.mean;
        if FUSED { self.by.quotient(x) } else { x / self.std }
    }
}

/// Channels apart.
#[inline(always)]
fn planes_of<R: Row, const C: usize, const FUSED: bool>(
    x: &[R],
    constants: &[Constants; CHANNELS],
    out: &mut [&mut [f32]; CHANNELS],
) {
    let pixels = x.as_chunks::<C>().0;
    let (blocks, rest) = pixels.as_chunks::<BLOCK>();
    for (i, block) in blocks.iter().enumerate() {
        let mut apart = [[R::ZERO; BLOCK]; C];
        for j in 0..BLOCK {
            for c in 0..C {
                apart[c][j] = block[j][c];
            }
        }
        for c in 0..C {
            let by = constants[c];
            if let Some(out) = out[c][i * BLOCK..].first_chunk_mut::<BLOCK>() {
                for j in 0..BLOCK {
                    out[j] = by.of::<FUSED>(apart[c][j].number());
                }
            }
        }
    }
    let done = blocks.len() * BLOCK;
    for c in 0..C {
        let by = constants[c];
        for (out, pixel) in out[c][done..].iter_mut().zip(rest) {
            *out = by.of::<FUSED>(pixel[c].number());
        }
    }
}

#[inline(always)]
fn planes_by<R: Row, const FUSED: bool>(
    x: &[R],
    channels: usize,
    constants: &[Constants; CHANNELS],
    out: &mut [&mut [f32]; CHANNELS],
) {
    match channels {
        1 => planes_of::<R, 1, FUSED>(x, constants, out),
        3 => planes_of::<R, 3, FUSED>(x, constants, out),
        _ => planes_of::<R, 4, FUSED>(x, constants, out),
    }
}

kernel! {
    /// The steps of a row of pixels, a slice for each of 1, 3 or 4 channels.
    pub fn planes<R: Row>(x: &[R], channels: usize, constants: &[Constants; CHANNELS], fused: bool, out: &mut [&mut [f32]; CHANNELS]) {
        if FMA && fused {
            planes_by::<R, true>(x, channels, constants, out);
        } else {
            planes_by::<R, false>(x, channels, constants, out);
        }
    }
}

/// One constant of each of [`PERIOD`] neighbours.
type Alike = [f32; PERIOD];

#[inline(always)]
fn pixels_by<R: Row, const FUSED: bool>(x: &[R], channels: usize, constants: &[Constants; CHANNELS], out: &mut [f32]) {
    // Each constant in registers of its own: out of an array of structures they were gathered for each pixel.
    let (scale, mut mean, mut std): (_, Alike, Alike) = (constants[0].scale, [0.0; PERIOD], [1.0; PERIOD]);
    for i in 0..PERIOD {
        (mean[i], std[i]) = (constants[i % channels].mean, constants[i % channels].std);
    }
    let by = Divisors::new(&std);
    let (blocks, rest) = x.as_chunks::<PERIOD>();
    let (out, out_rest) = out.as_chunks_mut::<PERIOD>();
    for (out, block) in out.iter_mut().zip(blocks) {
        for i in 0..PERIOD {
            let x = block[i].number() * scale - mean[i];
            out[i] = if FUSED { by.quotient(i, x) } else { x / std[i] };
        }
    }
    for (i, (out, x)) in out_rest.iter_mut().zip(rest).enumerate() {
        let x = x.number() * scale - mean[i];
        *out = if FUSED { by.quotient(i, x) } else { x / std[i] };
    }
}

kernel! {
    /// The steps of a row of pixels, channels side by side as they are.
    pub fn pixels<R: Row>(x: &[R], channels: usize, constants: &[Constants; CHANNELS], fused: bool, out: &mut [f32]) {
        if FMA && fused {
            pixels_by::<R, true>(x, channels, constants, out);
        } else {
            pixels_by::<R, false>(x, channels, constants, out);
        }
    }
}

kernel! {
    /// The first and the third of 3 or 4 channels, each in the other's place.
    pub fn swapped<R: Row>(x: &[R], channels: usize, out: &mut [R]) {
        if channels == 3 {
            for (out, x) in out.as_chunks_mut::<3>().0.iter_mut().zip(x.as_chunks::<3>().0) {
                *out = [x[2], x[1], x[0]];
            }
        } else {
            for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x.as_chunks::<4>().0) {
                *out = [x[2], x[1], x[0], x[3]];
            }
        }
    }
}

kernel! {
    /// The codes of numbers.
    pub fn encode(y: &[f32], q: &Quantization, codes: &mut [u8]) {
        // Clamped before it is rounded, between whole numbers: the same.
        let [low, high] = [(q.codes[0] - q.zero_point) as f32, (q.codes[1] - q.zero_point) as f32];
        let rounding = 12_582_912.0_f32;
        for (code, &y) in codes.iter_mut().zip(y) {
            let v = y / q.scale;
            let v = if v == v { v } else { 0.0 };
            let v = if v < low { low } else { v };
            let v = if v > high { high } else { v };
            let even = v + rounding;
            let apart = v - (even - rounding);
            // A half that went towards 0.
            let up = (q.away && apart == 0.5 && v > 0.0) as u32;
            let down = (q.away && apart == -0.5 && v < 0.0) as u32;
            *code = even.to_bits().wrapping_add(up).wrapping_sub(down).wrapping_add(q.zero_point as u32) as u8;
        }
    }
}

/// What is written.
pub trait Target: Copy + Send + Sync + 'static {
    /// Nothing.
    const ZERO: Self;
    /// Whether numbers are written as they are computed.
    const ARE_NUMBERS: bool = false;
    /// From float32, rounded once; codes by `q`.
    fn store(y: &[f32], q: &Quantization, out: &mut [Self]);
    /// Numbers as they are computed, where that is what is written.
    fn as_numbers(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
    /// Codes, where that is what is written.
    fn as_codes(_: &mut [Self]) -> Option<&mut [u8]> {
        None
    }
}

impl Target for f32 {
    const ZERO: f32 = 0.0;
    const ARE_NUMBERS: bool = true;
    fn store(y: &[f32], _: &Quantization, out: &mut [f32]) {
        out.copy_from_slice(y);
    }
    fn as_numbers(out: &mut [f32]) -> Option<&mut [f32]> {
        Some(out)
    }
}

impl Target for u8 {
    const ZERO: u8 = 0;
    fn store(y: &[f32], q: &Quantization, out: &mut [u8]) {
        encode(y, q, out);
    }
    fn as_codes(out: &mut [u8]) -> Option<&mut [u8]> {
        Some(out)
    }
}

kernel! {
    /// Rounded to 16 bits.
    fn narrow<T: Element>(y: &[f32], out: &mut [T]) {
        for (out, &y) in out.iter_mut().zip(y) {
            *out = T::store_f32(y);
        }
    }
}

macro_rules! narrowed {
    ($($t:ty),*) => {$(
        impl Target for $t {
            const ZERO: $t = <$t as Element>::ZERO;
            fn store(y: &[f32], _: &Quantization, out: &mut [$t]) {
                narrow(y, out);
            }
        }
    )*};
}
narrowed!(F16, Bf16);

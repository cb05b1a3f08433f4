//! What is read, as numbers in blocks: floats, or codes.

use std::marker::PhantomData;

use super::params::{Part, Repeated};
use super::{BLOCK, IN_L1, Minifloat, Params};
use crate::isa::{self, kernel};
use crate::kernels::lines::STREAMED;
use crate::par::{self, CHUNK};
use crate::real::{Element, Real};

/// Numbers.
pub trait Source<C>: Sync {
    /// All of them, where they lie in memory as they are.
    fn direct(&self) -> Option<&[C]>;
    /// Those from `start` on, to be written.
    fn read(&self, start: usize, out: &mut [C]);
}

/// Floats that are computed in.
#[derive(Debug, Clone, Copy)]
pub struct Direct<'a, C>(pub &'a [C]);
/// Floats that are first converted to float32.
#[derive(Debug, Clone, Copy)]
pub struct Converted<'a, T>(pub &'a [T]);

impl<C: Real> Source<C> for Direct<'_, C> {
    fn direct(&self) -> Option<&[C]> {
        Some(self.0)
    }
    fn read(&self, start: usize, out: &mut [C]) {
        out.copy_from_slice(&self.0[start..start + out.len()]);
    }
}

kernel! {
    /// Floats to floats.
    fn convert<T: Element, O: Element>(x: &[T], out: &mut [O]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x.load().store_as();
        }
    }
}

impl<T: Element> Source<f32> for Converted<'_, T> {
    fn direct(&self) -> Option<&[f32]> {
        None
    }
    fn read(&self, start: usize, out: &mut [f32]) {
        convert(&self.0[start..start + out.len()], out);
    }
}

/// How a code is read.
pub trait Number: Copy + Send + Sync {
    /// A code.
    type Code: Copy + Send + Sync;
    /// Its number, less the zero point.
    fn number<C: Real>(self, code: Self::Code, zero_point: i32) -> C;
}

/// Integers of up to 8 bits, one a byte.
#[derive(Debug, Clone, Copy)]
pub struct Bytes {
    mask: u8,
    sign: u8,
}

impl Bytes {
    /// Of so many bits.
    pub const fn new(bits: u32, signed: bool) -> Self {
        Self { mask: 0xff >> (8 - bits), sign: if signed { 1 << (bits - 1) } else { 0 } }
    }
}

impl Number for Bytes {
    type Code = u8;
    #[inline(always)]
    fn number<C: Real>(self, code: u8, zero_point: i32) -> C {
        C::from_i32(((code & self.mask) ^ self.sign) as i32 - (self.sign as i32 + zero_point))
    }
}

/// Integers of 16 bits.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    sign: u16,
}

impl Words {
    /// int16 or uint16.
    pub const fn new(signed: bool) -> Self {
        Self { sign: if signed { 0x8000 } else { 0 } }
    }
}

impl Number for Words {
    type Code = u16;
    #[inline(always)]
    fn number<C: Real>(self, code: u16, zero_point: i32) -> C {
        C::from_i32((code ^ self.sign) as i32 - (self.sign as i32 + zero_point))
    }
}

/// int32: sums. The difference is rounded once.
#[derive(Debug, Clone, Copy)]
pub struct Ints;

impl Number for Ints {
    type Code = i32;
    #[inline(always)]
    fn number<C: Real>(self, code: i32, zero_point: i32) -> C {
        C::from_f64(code as f64 - zero_point as f64)
    }
}

/// Floats of a byte or less, one a byte. They have no zero point.
#[derive(Debug, Clone, Copy)]
pub struct Floats8<K>(PhantomData<K>);

impl<K> Floats8<K> {
    /// The only one.
    pub const NEW: Self = Self(PhantomData);
}

impl<K: Minifloat> Number for Floats8<K> {
    type Code = u8;
    #[inline(always)]
    fn number<C: Real>(self, code: u8, _zero_point: i32) -> C {
        K::decode(code as u32).store_as()
    }
}

/// Codes with their scales.
pub struct Coded<'a, C, N: Number> {
    codes: &'a [N::Code],
    number: N,
    params: Params<'a, C>,
    repeated: Option<Repeated<C>>,
}

impl<'a, C: Real, N: Number> Coded<'a, C, N> {
    /// The numbers of `codes`.
    pub fn new(codes: &'a [N::Code], number: N, params: Params<'a, C>) -> Self {
        Self { codes, number, params, repeated: params.repeated(codes.len()) }
    }
}

kernel! {
    /// The numbers of codes with one scale.
    fn numbers<C: Real, N: Number>(codes: &[N::Code], number: N, part: (C, i32), out: &mut [C]) {
        let (scale, zero_point) = part;
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = number.number::<C>(code, zero_point) * scale;
        }
    }
}

kernel! {
    /// The numbers of codes with a scale each.
    fn own_numbers<C: Real, N: Number>(
        codes: &[N::Code],
        number: N,
        scale: &[C],
        zero_point: &[i32],
        out: &mut [C],
    ) {
        for (((out, &code), &scale), &zero_point) in out.iter_mut().zip(codes).zip(scale).zip(zero_point) {
            *out = number.number::<C>(code, zero_point) * scale;
        }
    }
}

impl<C: Real, N: Number> Source<C> for Coded<'_, C, N> {
    fn direct(&self) -> Option<&[C]> {
        None
    }
    fn read(&self, start: usize, out: &mut [C]) {
        let codes = &self.codes[start..start + out.len()];
        let params = self.repeated.as_ref().map_or(self.params, Repeated::params);
        params.each(start, out.len(), |range, part| match part {
            Part::One(scale, zero_point) => {
                numbers(&codes[range.clone()], self.number, (scale, zero_point), &mut out[range]);
            }
            Part::Own(scale, zero_point) => {
                own_numbers(&codes[range.clone()], self.number, scale, zero_point, &mut out[range]);
            }
        });
    }
}

/// Write the numbers of a source as floats of any dtype.
pub fn dequantize<C: Real, O: Element>(source: &dyn Source<C>, out: &mut [O], threads: usize) {
    let streamed = out.len() >= STREAMED;
    let pieces: Vec<_> = out.chunks_mut(CHUNK).enumerate().collect();
    par::for_each(threads, pieces.into_iter(), |(i, out)| {
        let (mut block, mut made) = ([C::ZERO; IN_L1], [O::ZERO; IN_L1]);
        for (j, out) in out.chunks_mut(IN_L1).enumerate() {
            let block = &mut block[..out.len()];
            source.read(i * CHUNK + j * IN_L1, block);
            if streamed {
                convert(block, &mut made[..out.len()]);
                isa::stream(&made[..out.len()], out);
            } else {
                convert(block, out);
            }
        }
    });
}

const _: () = assert!(IN_L1.is_multiple_of(BLOCK));

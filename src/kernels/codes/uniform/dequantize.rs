//! Dequantize: straight from packed codes to any float.

use super::super::Spec;
use super::code;
use super::groups::IN_L1;
use super::tiling::Runs;
use super::{BLOCK, ParamsRef, Scheme, Uniform};
use crate::isa::{self, kernel};
use crate::kernels::number::store;
use crate::kernels::pack::{match_width, packed_len, unpack_chunk};
use crate::par;
use crate::real::{Element, Real};

/// Elements that are made in the L1 cache before they are written past it.
const STREAM_BLOCK: usize = 2048;

/// How stored codes become numbers: (code ^ flip) - zero.
#[derive(Debug, Clone, Copy)]
struct Coding<C> {
    flip: u8,
    zero: i16,
    /// 2 where the product with the scale may overflow before the offset brings it back (minmax over more than the
    /// largest number): then scale and offset are halved. Else 1.
    double: C,
    scale: C,
    offset: C,
    /// The last code may lie half a scale outside the range: next to the largest number it must not become infinite
    /// (unless the scale is).
    limit: C,
}

impl<C: Real> Coding<C> {
    /// Whether no number comes near the largest: 255 scales and the offset.
    #[inline(always)]
    fn is_small(&self) -> bool {
        let large = C::DIVISORS[1];
        self.scale.abs() <= large && self.offset.abs() <= large
    }
}

impl Uniform {
    #[inline(always)]
    fn coding<C: Real>(self, (scale, zero_point, offset): (C, u8, C)) -> Coding<C> {
        let half = 1u8 << (self.bits - 1);
        let (flip, zero) = match (self.scheme, self.offset_binary) {
            (Scheme::Symmetric, false) => (half, half as i16),
            (Scheme::Symmetric, true) => (0, half as i16),
            (Scheme::Asymmetric, _) if self.signed => (half, (zero_point as i8) as i16 + half as i16),
            _ => (0, zero_point as i16),
        };
        let factor = code::half(self.scheme, self.bits, scale);
        let infinity = C::from_f64(f64::INFINITY);
        let limit = if scale < infinity { C::MAX } else { infinity };
        Coding { flip, zero, double: C::from_i16(1) / factor, scale: scale * factor, offset: offset * factor, limit }
    }
}

#[inline(always)]
fn number<C: Real>(code: u8, coding: Coding<C>) -> C {
    let quantized = C::from_i16((code ^ coding.flip) as i16 - coding.zero);
    let x = (quantized * coding.scale + coding.offset) * coding.double;
    let x = if x > coding.limit { coding.limit } else { x };
    let lowest = C::from_i16(0) - coding.limit;
    if x < lowest { lowest } else { x }
}

/// The same where the scale is so small that no product comes near the largest number.
#[inline(always)]
fn small_number<C: Real>(code: u8, coding: Coding<C>) -> C {
    let quantized = C::from_i16((code ^ coding.flip) as i16 - coding.zero);
    quantized * coding.scale + coding.offset
}

/// Codes that a vector holds as numbers.
const FEW: usize = 16;
/// Runs shorter than this go by [`FEW`]: the compiler's loop takes so many at a time, and its rest by 8. (Longer runs in
/// blocks of 32 take three times as long in the cache.)
const SHORT: usize = 64;

/// The numbers of codes that share a part.
#[inline(always)]
fn run<C: Real>(codes: &[u8], coding: Coding<C>, out: &mut [C]) {
    if coding.is_small() {
        let (mut codes, mut out) = (codes, out);
        if codes.len() < SHORT {
            let (blocks, rest) = codes.as_chunks::<FEW>();
            let (out_blocks, out_rest) = out.as_chunks_mut::<FEW>();
            for (out, codes) in out_blocks.iter_mut().zip(blocks) {
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = small_number(code, coding);
                }
            }
            (codes, out) = (rest, out_rest);
        }
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = small_number(code, coding);
        }
    } else {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = number(code, coding);
        }
    }
}

/// The numbers of a few codes that share a part.
pub(super) fn numbers<C: Real>(codes: &[u8], uniform: Uniform, stored: (C, u8, C), out: &mut [C]) {
    let coding = uniform.coding(stored);
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = number(code, coding);
    }
}

/// The numbers of codes with a part each, from the first of `params` on. What the scheme lacks is made up of zeros for
/// a block at a time: a loop that asks for it at each element is not vectorised (13 times slower).
#[inline(always)]
fn by_element<C: Real>(codes: &[u8], uniform: Uniform, params: ParamsRef<'_, C>, out: &mut [C]) {
    let (blocks, tail) = out.as_chunks_mut::<BLOCK>();
    let (code_blocks, code_tail) = codes.as_chunks::<BLOCK>();
    let scales = params.scale.as_chunks::<BLOCK>().0;
    let zero_points = params.zero_point.as_chunks::<BLOCK>().0;
    let offsets = params.offset.as_chunks::<BLOCK>().0;
    for (i, ((out, codes), scale)) in blocks.iter_mut().zip(code_blocks).zip(scales).enumerate() {
        let zero_point = zero_points.get(i).copied().unwrap_or([0; BLOCK]);
        let offset = offsets.get(i).copied().unwrap_or([C::from_i16(0); BLOCK]);
        for ((((out, &code), &scale), zero_point), offset) in
            out.iter_mut().zip(codes).zip(scale).zip(zero_point).zip(offset)
        {
            *out = number(code, uniform.coding((scale, zero_point, offset)));
        }
    }
    let done = code_blocks.len() * BLOCK;
    for (i, (out, &code)) in tail.iter_mut().zip(code_tail).enumerate() {
        *out = number(code, uniform.coding(params.get(done + i)));
    }
}

kernel! {
    /// The numbers of codes, one a byte; the runs that follow.
    fn own_values<C: Real>(
        codes: &[u8],
        runs: Runs,
        uniform: Uniform,
        params: ParamsRef<'_, C>,
        out: &mut [C],
    ) -> Runs {
        let (mut runs, mut at) = (runs, 0);
        while at < out.len() {
            let (part, n) = runs.next(out.len() - at);
            let (codes, out) = (&codes[at..at + n], &mut out[at..at + n]);
            if runs.is_by_element() {
                by_element(codes, uniform, params.from(part), out);
            } else {
                run(codes, uniform.coding(params.get(part)), out);
            }
            at += n;
        }
        runs
    }
}

/// The numbers of codes, one a byte; the runs that follow. Of another type than they are computed in by way of the cache.
pub(super) fn values<C: Real, O: Element>(
    codes: &[u8],
    runs: Runs,
    uniform: Uniform,
    params: ParamsRef<'_, C>,
    out: &mut [O],
) -> Runs {
    if let Some(out) = C::own_mut(out) {
        return own_values(codes, runs, uniform, params, out);
    }
    let (mut runs, mut buffer) = (runs, [C::ZERO; IN_L1]);
    for (codes, out) in codes.chunks(IN_L1).zip(out.chunks_mut(IN_L1)) {
        let own = &mut buffer[..out.len()];
        runs = own_values(codes, runs, uniform, params, own);
        store(own, out);
    }
    runs
}

/// The numbers of codes, one a byte, to where `streamed` says.
pub(super) fn write_values<C: Real, O: Element>(
    codes: &[u8],
    runs: Runs,
    uniform: Uniform,
    params: ParamsRef<'_, C>,
    out: &mut [O],
    streamed: bool,
) {
    if !streamed {
        values(codes, runs, uniform, params, out);
        return;
    }
    let mut block = [O::store_f64(0.0); STREAM_BLOCK];
    let mut runs = runs;
    for (codes, out) in codes.chunks(STREAM_BLOCK).zip(out.chunks_mut(STREAM_BLOCK)) {
        let block = &mut block[..out.len()];
        runs = values(codes, runs, uniform, params, block);
        isa::stream(block, out);
    }
}

/// Dequantize packed rows into `out` (whole rows of `spec.cols`).
pub fn dequantize<C: Real, O: Element>(
    codes: &[u8],
    uniform: Uniform,
    spec: Spec,
    params: ParamsRef<'_, C>,
    out: &mut [O],
    threads: usize,
) {
    if out.is_empty() {
        return;
    }
    let tiling = uniform.tiling(spec, out.len());
    let (mut out, mut codes) = (out, codes);
    let items: Vec<_> = tiling
        .pieces(false)
        .map(|piece| (piece, codes.split_off(..piece.bytes), out.split_off_mut(..piece.len)))
        .map(|(piece, codes, out)| (piece, codes.unwrap_or_default(), out.unwrap_or_default()))
        .collect();
    par::for_each(threads, items.into_iter(), |(piece, packed, out)| {
        let runs = tiling.runs_at(piece.start);
        if uniform.bits == 8 {
            return write_values(packed, runs, uniform, params, out, tiling.is_streamed());
        }
        let row = tiling.row.min(out.len());
        par::with_scratch(out.len(), |codes| {
            for (codes, packed) in codes.chunks_mut(row).zip(packed.chunks(packed_len(row, uniform.bits))) {
                match_width!(uniform.bits, W => unpack_chunk::<W>(packed, codes, 0));
            }
            write_values(codes, runs, uniform, params, out, tiling.is_streamed());
        });
    });
}

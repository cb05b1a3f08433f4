//! Dequantize: straight from packed codes to any float.

use super::params::finite;
use super::{Granularity, Param, ParamsRef, Scheme, Spec, quantize::dimensions};
use crate::isa::kernel;
use crate::kernels::pack::{W8, Width, match_width, packed_len, unpack_codes};
use crate::par::{self, CHUNK};
use crate::real::{Element, Real};

/// Codes that are unpacked at a time, in registers or L1.
const BLOCK: usize = 32;

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
}

impl Spec {
    #[inline(always)]
    fn coding<C: Real>(&self, (scale, zero_point, offset): (C, u8, C)) -> Coding<C> {
        let half = 1u8 << (self.bits - 1);
        let (flip, zero) = match (self.scheme, self.offset_binary) {
            (Scheme::Symmetric, false) => (half, half as i16),
            (Scheme::Symmetric, true) => (0, half as i16),
            _ => (0, zero_point as i16),
        };
        let param = Param::from_parts(self.scheme, self.bits, scale, zero_point, offset);
        let (double, scale, offset) = param.to_value();
        Coding { flip, zero, double, scale, offset }
    }
}

#[inline(always)]
fn number<C: Real, O: Element>(code: u8, coding: Coding<C>) -> O {
    let quantized = C::from_i16((code ^ coding.flip) as i16 - coding.zero);
    finite((quantized * coding.scale + coding.offset) * coding.double).store_as()
}

/// Consecutive codes that share a part.
#[inline(always)]
fn run<C: Real, O: Element, W: Width>(codes: &[u8], coding: Coding<C>, out: &mut [O]) {
    if W::BITS == 8 {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = number(code, coding);
        }
        return;
    }
    let mut unpacked = [0u8; BLOCK];
    let bytes = BLOCK / W::PER_BYTE;
    let (blocks, tail) = out.as_chunks_mut::<BLOCK>();
    let (packed, packed_tail) = codes.split_at(blocks.len() * bytes);
    for (out, packed) in blocks.iter_mut().zip(packed.chunks_exact(bytes)) {
        unpack_codes::<W>(packed, &mut unpacked, 0);
        for (out, &code) in out.iter_mut().zip(&unpacked) {
            *out = number(code, coding);
        }
    }
    let rest = &mut unpacked[..tail.len()];
    unpack_codes::<W>(packed_tail, rest, 0);
    for (out, &code) in tail.iter_mut().zip(rest.iter()) {
        *out = number(code, coding);
    }
}

/// A piece of groups: the codes, how they are cut and what the groups have.
#[derive(Clone, Copy)]
struct Piece<'a, C> {
    codes: &'a [u8],
    size: usize,
    spec: Spec,
    params: ParamsRef<'a, C>,
    first: usize,
}

kernel! {
    fn groups_chunk<C: Real, O: Element, W: Width>(piece: Piece<'_, C>, out: &mut [O]) {
        let bytes = packed_len(piece.size, W::BITS);
        for (i, (codes, out)) in piece.codes.chunks(bytes).zip(out.chunks_mut(piece.size)).enumerate() {
            run::<C, O, W>(codes, piece.spec.coding(piece.params.get(piece.first + i)), out);
        }
    }
}
kernel! {
    fn run_chunk<C: Real, O: Element, W: Width>(codes: &[u8], coding: Coding<C>, out: &mut [O]) {
        run::<C, O, W>(codes, coding, out);
    }
}

/// Dequantize packed rows into `out` (whole rows of `spec.cols`).
pub fn dequantize<C: Real, O: Element>(
    codes: &[u8],
    spec: Spec,
    params: ParamsRef<'_, C>,
    out: &mut [O],
    threads: usize,
) {
    if out.is_empty() {
        return;
    }
    let per_byte = 8 / spec.bits as usize;
    let (_, channels, inner) = dimensions(spec, out.len());
    let group = match spec.granularity {
        Granularity::Group { size } if spec.cols.is_multiple_of(size) && size.is_multiple_of(per_byte) => Some(size),
        Granularity::Group { .. } => None,
        _ if inner > 1 && spec.is_flat() => Some(inner),
        _ => None,
    };
    match group {
        Some(size) if size <= CHUNK => {
            let count = CHUNK / size;
            let pieces = codes.chunks(count * packed_len(size, spec.bits)).zip(out.chunks_mut(count * size));
            par::for_each(threads, pieces.enumerate(), |(piece, (codes, out))| {
                if out.len() > channels * size && matches!(spec.granularity, Granularity::Channel { .. }) {
                    // Channels repeat within the piece: one run at a time.
                    let bytes = packed_len(size, spec.bits);
                    for (i, (codes, out)) in codes.chunks(bytes).zip(out.chunks_mut(size)).enumerate() {
                        one_run(codes, spec, params, (piece * count + i) % channels, out);
                    }
                } else {
                    cut_at_wrap(codes, spec, params, [piece * count, size], out);
                }
            });
        }
        Some(size) => {
            for (i, (codes, out)) in codes.chunks(size / per_byte).zip(out.chunks_mut(size)).enumerate() {
                let pieces = codes.chunks(CHUNK / per_byte).zip(out.chunks_mut(CHUNK));
                let part = part_of_run(spec, i);
                par::for_each(threads, pieces, |(codes, out)| one_run(codes, spec, params, part, out));
            }
        }
        None => by_row(codes, spec, params, out, threads),
    }
}

/// The part of run `i`: channels come again for each index of the outer axes.
fn part_of_run(spec: Spec, i: usize) -> usize {
    match spec.granularity {
        Granularity::Whole => 0,
        Granularity::Channel { channels, .. } => i % channels,
        Granularity::Group { .. } => i,
    }
}

fn one_run<C: Real, O: Element>(codes: &[u8], spec: Spec, params: ParamsRef<'_, C>, part: usize, out: &mut [O]) {
    let coding = spec.coding(params.get(part));
    match_width!(spec.bits, W => run_chunk::<C, O, W>(codes, coding, out));
}

/// Runs from number `first` on, of `size` each, whose parts come again from 0 at most once within them.
fn cut_at_wrap<C: Real, O: Element>(
    codes: &[u8],
    spec: Spec,
    params: ParamsRef<'_, C>,
    [first, size]: [usize; 2],
    out: &mut [O],
) {
    let first = part_of_run(spec, first);
    let until_wrap = match spec.granularity {
        Granularity::Channel { channels, .. } => (channels - first) * size,
        _ => out.len(),
    };
    let (head, tail) = out.split_at_mut(until_wrap.min(out.len()));
    let (head_codes, tail_codes) = codes.split_at(packed_len(head.len(), spec.bits));
    for (codes, first, out) in [(head_codes, first, head), (tail_codes, 0, tail)] {
        let piece = Piece { codes, size, spec, params, first };
        match_width!(spec.bits, W => groups_chunk::<C, O, W>(piece, out));
    }
}

/// The general way: rows with padding, groups that end within a byte, a part for each element.
fn by_row<C: Real, O: Element>(codes: &[u8], spec: Spec, params: ParamsRef<'_, C>, out: &mut [O], threads: usize) {
    let cols = spec.cols;
    let bytes = packed_len(cols, spec.bits);
    let rows = (CHUNK / cols).max(1);
    let pieces = codes.chunks(rows * bytes).zip(out.chunks_mut(rows * cols)).enumerate();
    let (_, channels, inner) = dimensions(spec, out_len(codes, bytes, cols));
    par::for_each(threads, pieces, |(piece, (codes, out))| {
        let mut unpacked = vec![0u8; cols];
        for (i, (codes, out)) in codes.chunks_exact(bytes).zip(out.chunks_exact_mut(cols)).enumerate() {
            let row = piece * rows + i;
            match_width!(spec.bits, W => unpack_codes::<W>(codes, &mut unpacked, 0));
            let size = match spec.granularity {
                Granularity::Group { size } => size,
                _ if inner == 1 => 1,
                _ => cols,
            };
            let in_row = cols.div_ceil(size);
            for (g, (codes, out)) in unpacked.chunks(size).zip(out.chunks_mut(size)).enumerate() {
                let part = match spec.granularity {
                    Granularity::Group { .. } => row * in_row + g,
                    _ => (row * cols + g * size) / inner % channels,
                };
                run_chunk::<C, O, W8>(codes, spec.coding(params.get(part)), out);
            }
        }
    });
}

/// Elements of packed rows.
fn out_len(codes: &[u8], bytes: usize, cols: usize) -> usize {
    codes.len() / bytes * cols
}

//! Quantize: ranges, then codes; in one pass over memory where a part fits the cache.

use super::groups::{All, Finite, flat_groups, groups};
use super::{Granularity, Param, Params, ParamsRef, Scheme, Spec, params::Range};
use crate::isa::kernel;
use crate::kernels::pack::{Width, match_width, pack_codes, packed_len};
use crate::kernels::reduce::{self, FiniteMinMax, MinMax, View};
use crate::par::{self, CHUNK};
use crate::real::{Element, Real};

/// Elements whose codes wait in registers or L1 before they are packed.
const BLOCK: usize = 32;

/// A part of up to this many bytes is quantized right after its range was found, from the cache.
const CACHED_BYTES: usize = 1 << 19;

/// Something was NaN or infinite (and was not to be saturated).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFinite;

/// Quantize consecutive elements that share a part.
#[inline(always)]
pub(super) fn run<T: Element, W: Width>(x: &[T], param: &Param<T::Compute>, codes: &mut [u8]) {
    if W::BITS == 8 {
        for (code, v) in codes.iter_mut().zip(x) {
            *code = param.code(v.load());
        }
        return;
    }
    let mut block_codes = [0u8; BLOCK];
    let (blocks, tail) = x.as_chunks::<BLOCK>();
    let (packed, packed_tail) = codes.split_at_mut(blocks.len() * (BLOCK / W::PER_BYTE));
    for (block, packed) in blocks.iter().zip(packed.chunks_exact_mut(BLOCK / W::PER_BYTE)) {
        for (code, v) in block_codes.iter_mut().zip(block) {
            *code = param.code(v.load());
        }
        pack_codes::<W>(&block_codes, packed);
    }
    let rest = &mut block_codes[..tail.len()];
    for (code, v) in rest.iter_mut().zip(tail) {
        *code = param.code(v.load());
    }
    pack_codes::<W>(rest, packed_tail);
}

kernel! {
    pub(super) fn run_chunk<T: Element, W: Width>(x: &[T], param: &Param<T::Compute>, codes: &mut [u8]) {
        run::<T, W>(x, param, codes);
    }
}
kernel! {
    /// One row whose elements have a part each.
    fn per_element<T: Element>(x: &[T], params: &[Param<T::Compute>], codes: &mut [u8]) {
        for ((code, v), param) in codes.iter_mut().zip(x).zip(params) {
            *code = param.code(v.load());
        }
    }
}
impl<C: Real> Params<'_, C> {
    #[inline(always)]
    pub(super) fn get(&self, spec: Spec, i: usize) -> Param<C> {
        let (scale, zero_point, offset) =
            ParamsRef { scale: self.scale, zero_point: self.zero_point, offset: self.offset }.get(i);
        Param::from_parts(spec.scheme, spec.bits, scale, zero_point, offset).with_bias(spec.bias())
    }

    #[inline(always)]
    pub(super) fn set(&mut self, i: usize, param: &Param<C>) {
        self.scale[i] = param.scale;
        if let Some(zero_point) = self.zero_point.get_mut(i) {
            *zero_point = param.zero_point;
        }
        if let Some(offset) = self.offset.get_mut(i) {
            *offset = param.offset;
        }
    }

    /// Cut into pieces of `n` parts.
    pub(super) fn pieces(&mut self, n: usize) -> impl ExactSizeIterator<Item = Params<'_, C>> + Send {
        let count = self.scale.len().div_ceil(n);
        let mut zero_point = self.zero_point.chunks_mut(n);
        let mut offset = self.offset.chunks_mut(n);
        let mut scale = self.scale.chunks_mut(n);
        (0..count).map(move |_| Params {
            scale: scale.next().unwrap_or_default(),
            zero_point: zero_point.next().unwrap_or_default(),
            offset: offset.next().unwrap_or_default(),
        })
    }
}

impl Spec {
    /// What offset binary adds to a two's complement code.
    #[inline(always)]
    pub(super) fn bias(&self) -> u8 {
        if self.offset_binary && self.scheme == Scheme::Symmetric { 1 << (self.bits - 1) } else { 0 }
    }

    pub(super) fn row_bytes(&self) -> usize {
        packed_len(self.cols, self.bits)
    }

    /// Whether rows follow each other without padding bits.
    pub(super) fn is_flat(&self) -> bool {
        self.cols.is_multiple_of(8 / self.bits as usize)
    }
}

/// Quantize `x` (whole rows of `spec.cols`) into packed rows of `codes` and the parameters.
///
/// With `saturate`, NaN gets the code of zero, infinities the limits, and ranges are of finite numbers; else a
/// number that is not finite ends in an error, and what was written is meaningless.
pub fn quantize<T: Element>(
    x: &[T],
    spec: Spec,
    saturate: bool,
    codes: &mut [u8],
    params: &mut Params<'_, T::Compute>,
    threads: usize,
) -> Result<(), NonFinite> {
    if x.is_empty() {
        params_of_nothing(spec, params);
        return Ok(());
    }
    if let Granularity::Group { size } = spec.granularity {
        return if saturate {
            groups::<T, Finite>(x, size, spec, codes, params, threads)
        } else {
            groups::<T, All>(x, size, spec, codes, params, threads)
        };
    }
    let (outer, _, inner) = dimensions(spec, x.len());
    if outer == 1 && inner > 1 && inner * size_of::<T>() <= CACHED_BYTES && spec.is_flat() {
        // A channel is then a run of whole rows: the same as a group.
        return if saturate {
            flat_groups::<T, Finite>(x, inner, spec, codes, params, threads)
        } else {
            flat_groups::<T, All>(x, inner, spec, codes, params, threads)
        };
    }
    let found = part_params(x, spec, saturate, threads)?;
    for (i, param) in found.iter().enumerate() {
        params.set(i, param);
    }
    let found: Vec<_> = found.into_iter().map(|param| param.with_bias(spec.bias())).collect();
    write_codes(x, spec, &found, codes, threads);
    Ok(())
}

/// Outer, channels, inner of one scale or one for each channel.
pub(super) fn dimensions(spec: Spec, n: usize) -> (usize, usize, usize) {
    match spec.granularity {
        Granularity::Channel { outer, channels, inner } => (outer, channels, inner),
        _ => (1, 1, n),
    }
}

/// The parameters of parts that hold no elements: as of an all-zero range.
fn params_of_nothing<C: Real>(spec: Spec, params: &mut Params<'_, C>) {
    let param = Param::new(spec.scheme, spec.bits, Range::<C>::EMPTY);
    for i in 0..params.scale.len() {
        params.set(i, &param);
    }
}

/// The parameters of the whole array or of each channel.
pub(super) fn part_params<T: Element>(
    x: &[T],
    spec: Spec,
    saturate: bool,
    threads: usize,
) -> Result<Vec<Param<T::Compute>>, NonFinite> {
    let (outer, channels, inner) = dimensions(spec, x.len());
    let view = if inner == 1 {
        View { outer: 1, n: outer, inner: channels }
    } else {
        View { outer: outer * channels, n: inner, inner: 1 }
    };
    let states = if saturate {
        reduce::reduce_axis::<T, FiniteMinMax>(x, view, threads)
    } else {
        reduce::reduce_axis::<T, MinMax>(x, view, threads)
    };
    let mut ranges = vec![Range::<T>::EMPTY; channels];
    for (i, state) in states.into_iter().enumerate() {
        let range = &mut ranges[i % channels];
        range.0 = [range.0[0].min(state[0]), range.0[1].max(state[1])];
    }
    if ranges.iter().any(|range| range.is_nonfinite()) {
        return Err(NonFinite);
    }
    Ok(ranges.into_iter().map(|range| Param::new(spec.scheme, spec.bits, range)).collect())
}

/// Codes where the parameters are known: runs of `inner` elements share a part, or each element has its own.
fn write_codes<T: Element>(x: &[T], spec: Spec, params: &[Param<T::Compute>], codes: &mut [u8], threads: usize) {
    let (_, channels, inner) = dimensions(spec, x.len());
    let per_byte = 8 / spec.bits as usize;
    if inner == 1 && spec.cols == channels && channels > 1 {
        return by_row(x, spec, codes, threads, |_, row, codes| per_element(row, params, codes));
    }
    if !spec.is_flat() {
        let rows_in_run = (inner / spec.cols).max(1);
        return by_row(x, spec, codes, threads, |r, row, codes| {
            run_chunk::<T, crate::kernels::pack::W8>(row, &params[r / rows_in_run % channels], codes);
        });
    }
    if inner >= CHUNK {
        for (i, (x, codes)) in x.chunks(inner).zip(codes.chunks_mut(inner / per_byte)).enumerate() {
            let pieces = x.chunks(CHUNK).zip(codes.chunks_mut(CHUNK / per_byte));
            let param = &params[i % channels];
            par::for_each(threads, pieces, |(x, codes)| {
                match_width!(spec.bits, W => run_chunk::<T, W>(x, param, codes));
            });
        }
    } else {
        let runs = CHUNK / inner;
        let pieces = x.chunks(runs * inner).zip(codes.chunks_mut(runs * inner / per_byte)).enumerate();
        par::for_each(threads, pieces, |(piece, (x, codes))| {
            for (i, (x, codes)) in x.chunks(inner).zip(codes.chunks_mut(inner / per_byte)).enumerate() {
                let param = &params[(piece * runs + i) % channels];
                match_width!(spec.bits, W => run_chunk::<T, W>(x, param, codes));
            }
        });
    }
}

/// The general way: each row's codes one byte each, then packed. `f` gets the row's index.
fn by_row<T: Element>(
    x: &[T],
    spec: Spec,
    codes: &mut [u8],
    threads: usize,
    f: impl Fn(usize, &[T], &mut [u8]) + Sync,
) {
    let (cols, bytes) = (spec.cols, spec.row_bytes());
    let rows = (CHUNK / cols).max(1);
    let pieces = x.chunks(rows * cols).zip(codes.chunks_mut(rows * bytes)).enumerate();
    par::for_each(threads, pieces, |(piece, (x, codes))| {
        let mut unpacked = vec![0u8; cols];
        for (i, (row, packed)) in x.chunks_exact(cols).zip(codes.chunks_exact_mut(bytes)).enumerate() {
            f(piece * rows + i, row, &mut unpacked);
            match_width!(spec.bits, W => pack_codes::<W>(&unpacked, packed));
        }
    });
}

//! Quantize, and quantize and dequantize at once: ranges, then codes, then packed bytes or numbers.

use super::code::{Asymmetric, MinMax, Mode, Saturating, Symmetric, code_elements, code_run};
use super::cut::{Cut, Piece, Runs};
use super::dequantize::values;
use super::groups::code_groups;
use super::params::{Range, stored};
use super::{Params, ParamsRef, Scheme, Spec};
use crate::isa::kernel;
use crate::kernels::pack::{match_width, pack_chunk, packed_len};
use crate::kernels::reduce::{self, FiniteMinMax};
use crate::par;
use crate::real::{Element, Real};

/// Something was NaN or infinite (and was not to be saturated).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFinite;

/// What the codes are made for.
enum Out<'a, T> {
    /// To be packed, each row on its own.
    Packed(&'a mut [u8]),
    /// To be turned back into numbers.
    Values(&'a mut [T]),
}

impl<T: Element> Out<'_, T> {
    /// Cut off what belongs to a piece.
    fn split_off(&mut self, piece: Piece) -> Self {
        match self {
            Self::Packed(bytes) => Self::Packed(bytes.split_off_mut(..piece.bytes).unwrap_or_default()),
            Self::Values(values) => Self::Values(values.split_off_mut(..piece.len).unwrap_or_default()),
        }
    }

    /// Where the `n` codes of a piece go, one byte each: at once to where they stay, if they stay so.
    fn codes<'a>(&'a mut self, bits: u32, n: usize, scratch: &'a mut Vec<u8>) -> &'a mut [u8] {
        if let Self::Packed(bytes) = self
            && bits == 8
        {
            return bytes;
        }
        scratch.resize(n, 0);
        scratch
    }

    /// Make of the codes what they are for.
    fn finish(self, codes: &[u8], row: usize, runs: Runs, spec: Spec, params: ParamsRef<'_, T::Compute>) {
        match self {
            Self::Packed(_) if spec.bits == 8 => {}
            Self::Packed(bytes) => {
                let row = row.min(codes.len());
                for (codes, bytes) in codes.chunks(row).zip(bytes.chunks_mut(packed_len(row, spec.bits))) {
                    match_width!(spec.bits, W => pack_chunk::<W>(codes, bytes));
                }
            }
            Self::Values(out) => values(codes, runs, spec, params, out),
        }
    }
}

impl<C> Params<'_, C> {
    /// Cut off the first `n` parts.
    fn split_off(&mut self, n: usize) -> Self {
        Self {
            scale: self.scale.split_off_mut(..n).unwrap_or_default(),
            zero_point: self.zero_point.split_off_mut(..n).unwrap_or_default(),
            offset: self.offset.split_off_mut(..n).unwrap_or_default(),
        }
    }

    /// The same, for a while.
    fn reborrow(&mut self) -> Params<'_, C> {
        Params { scale: self.scale, zero_point: self.zero_point, offset: self.offset }
    }

    /// To read.
    #[inline(always)]
    pub(super) fn as_ref(&self) -> ParamsRef<'_, C> {
        ParamsRef { scale: self.scale, zero_point: self.zero_point, offset: self.offset }
    }
}

impl Spec {
    /// What offset binary adds to a two's complement code.
    #[inline(always)]
    pub(super) fn bias(&self) -> u8 {
        if self.offset_binary && self.scheme == Scheme::Symmetric { 1 << (self.bits - 1) } else { 0 }
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
    run(x, spec, saturate, Out::Packed(codes), params, threads)
}

/// Quantize and dequantize without storing codes. With an error, `out` may hold part of the answer: the caller looks
/// first where that matters.
pub fn fake_quantize<T: Element>(
    x: &[T],
    spec: Spec,
    saturate: bool,
    out: &mut [T],
    threads: usize,
) -> Result<(), NonFinite> {
    let parts = spec.parts(x.len());
    let zero = T::Compute::from_i16(0);
    let mut scale = vec![zero; parts];
    let mut zero_point = vec![0; if spec.scheme == Scheme::Asymmetric { parts } else { 0 }];
    let mut offset = vec![zero; if spec.scheme == Scheme::MinMax { parts } else { 0 }];
    let mut params = Params { scale: &mut scale, zero_point: &mut zero_point, offset: &mut offset };
    // Unsigned codes: they need no sign from their width.
    run(x, Spec { offset_binary: true, ..spec }, saturate, Out::Values(out), &mut params, threads)
}

/// Choose the mode.
fn run<T: Element>(
    x: &[T],
    spec: Spec,
    saturate: bool,
    out: Out<'_, T>,
    params: &mut Params<'_, T::Compute>,
    threads: usize,
) -> Result<(), NonFinite> {
    if x.is_empty() {
        // Parts that hold nothing: as of an all-zero range.
        let ranges = vec![Range::<T>::EMPTY; params.scale.len()];
        store_params(&spec, &ranges, params);
        return Ok(());
    }
    match (saturate, spec.scheme) {
        (true, _) => pieces::<T, Saturating>(x, &spec, out, params, threads),
        (_, Scheme::Symmetric) => pieces::<T, Symmetric>(x, &spec, out, params, threads),
        (_, Scheme::Asymmetric) => pieces::<T, Asymmetric>(x, &spec, out, params, threads),
        (_, Scheme::MinMax) => pieces::<T, MinMax>(x, &spec, out, params, threads),
    }
}

/// Cut into pieces, and for each make the codes and what they are made for.
fn pieces<T: Element, M: Mode>(
    x: &[T],
    spec: &Spec,
    mut out: Out<'_, T>,
    params: &mut Params<'_, T::Compute>,
    threads: usize,
) -> Result<(), NonFinite> {
    let cut = spec.cut(x.len());
    let piece_of = |piece: Piece| &x[piece.start..piece.start + piece.len];
    if cut.has_cached_runs(size_of::<T>()) {
        let mut params = params.reborrow();
        let items: Vec<_> =
            cut.pieces(true).map(|piece| (piece, out.split_off(piece), params.split_off(piece.parts))).collect();
        let finite = par::map(threads, items.into_iter(), |(piece, mut out, mut params)| {
            let mut scratch = Vec::new();
            let codes = out.codes(spec.bits, piece.len, &mut scratch);
            let finite = code_groups::<T, M>(piece_of(piece), cut, *spec, codes, params.reborrow());
            out.finish(&scratch, cut.row, cut.own_runs(piece), *spec, params.as_ref());
            finite
        });
        return if finite.into_iter().all(|finite| finite) { Ok(()) } else { Err(NonFinite) };
    }
    find_params::<T, M>(x, &cut, spec, params, threads)?;
    let params = params.as_ref();
    let items: Vec<_> = cut.pieces(false).map(|piece| (piece, out.split_off(piece))).collect();
    par::for_each(threads, items.into_iter(), |(piece, mut out)| {
        let mut scratch = Vec::new();
        let runs = cut.runs_at(piece.start);
        code_runs::<T, M>(piece_of(piece), runs, *spec, params, out.codes(spec.bits, piece.len, &mut scratch));
        out.finish(&scratch, cut.row, runs, *spec, params);
    });
    Ok(())
}

kernel! {
    /// Codes where the parameters are known.
    fn code_runs<T: Element, M: Mode>(
        x: &[T],
        runs: Runs,
        spec: Spec,
        params: ParamsRef<'_, T::Compute>,
        codes: &mut [u8],
    ) {
        let (mut runs, mut at) = (runs, 0);
        while at < x.len() {
            if runs.is_by_element() {
                let (part, n) = runs.next_elements(x.len() - at);
                code_elements::<T, M>(&x[at..at + n], &spec, params.from(part), &mut codes[at..at + n]);
                at += n;
            } else {
                let (part, n) = runs.next(x.len() - at);
                code_run::<T, M>(&x[at..at + n], &spec, params, part, &mut codes[at..at + n]);
                at += n;
            }
        }
    }
}

/// The parameters of parts whose ranges are found first.
fn find_params<T: Element, M: Mode>(
    x: &[T],
    cut: &Cut,
    spec: &Spec,
    params: &mut Params<'_, T::Compute>,
    threads: usize,
) -> Result<(), NonFinite> {
    let states = if M::SCHEME.is_some() {
        reduce::reduce_axis::<T, reduce::MinMax>(x, cut.view(), threads)
    } else {
        reduce::reduce_axis::<T, FiniteMinMax>(x, cut.view(), threads)
    };
    let mut ranges = vec![Range::<T>::EMPTY; params.scale.len()];
    for (state, i) in states.into_iter().zip((0..ranges.len()).cycle()) {
        let range = &mut ranges[i];
        range.0 = [range.0[0].min(state[0]), range.0[1].max(state[1])];
    }
    if ranges.iter().any(|range| range.is_nonfinite()) {
        return Err(NonFinite);
    }
    store_params(spec, &ranges, params);
    Ok(())
}

fn store_params<T: Element>(spec: &Spec, ranges: &[Range<T>], params: &mut Params<'_, T::Compute>) {
    for (i, range) in ranges.iter().enumerate() {
        let (scale, zero_point, offset) = stored(spec.scheme, spec.bits, *range);
        params.scale[i] = scale;
        if let Some(slot) = params.zero_point.get_mut(i) {
            *slot = zero_point;
        }
        if let Some(slot) = params.offset.get_mut(i) {
            *slot = offset;
        }
    }
}

//! Quantize, and quantize and dequantize at once: ranges, then codes, then packed bytes or numbers.

use super::super::{NonFinite, Policy, Spec};
use super::code::{Codes, Numbers};
use super::dequantize::write_values;
use super::groups::store_params;
use super::halves::{code_by_element, code_groups, code_runs};
use super::mode::{Asymmetric, Given, MinMax, Mode, Saturating, Symmetric};
use super::params::Range;
use super::tiling::{Piece, Runs, Tiling};
use super::{Params, ParamsRef, Scheme, Uniform};
use crate::kernels::pack::{match_width, pack_chunk, packed_len};
use crate::kernels::reduce::{self, Op};
use crate::par;
use crate::real::{Element, Real};

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

    /// Bytes of scratch for `n` codes, one a byte; none where they are made in their place.
    fn scratch(&self, in_place: bool, n: usize) -> usize {
        if matches!(self, Self::Packed(_)) && in_place { 0 } else { n }
    }

    /// Where the codes go first.
    fn codes<'a>(&'a mut self, scratch: &'a mut [u8]) -> &'a mut [u8] {
        match self {
            Self::Packed(bytes) if scratch.is_empty() => bytes,
            _ => scratch,
        }
    }

    /// Make of the codes what they are for.
    fn finish(self, codes: &[u8], tiling: &Tiling, runs: Runs, uniform: Uniform, params: ParamsRef<'_, T::Compute>) {
        match self {
            Self::Packed(_) if codes.is_empty() => {}
            Self::Packed(bytes) => {
                let row = tiling.row.min(codes.len());
                for (codes, bytes) in codes.chunks(row).zip(bytes.chunks_mut(packed_len(row, uniform.bits))) {
                    match_width!(uniform.bits, W => pack_chunk::<W>(codes, bytes));
                }
            }
            Self::Values(out) => write_values(codes, runs, uniform, params, out, tiling.is_streamed()),
        }
    }
}

/// Parameters that no one else asked for.
struct OwnParams<C> {
    scale: Vec<C>,
    zero_point: Vec<u8>,
    offset: Vec<C>,
}

impl<C: Real> OwnParams<C> {
    fn new(scheme: Scheme, parts: usize) -> Self {
        let zero = C::from_i16(0);
        Self {
            scale: vec![zero; parts],
            zero_point: vec![0; if scheme == Scheme::Asymmetric { parts } else { 0 }],
            offset: vec![zero; if scheme == Scheme::MinMax { parts } else { 0 }],
        }
    }

    fn as_params(&mut self) -> Params<'_, C> {
        Params { scale: &mut self.scale, zero_point: &mut self.zero_point, offset: &mut self.offset }
    }
}

impl Uniform {
    /// What offset binary adds to a two's complement code.
    #[inline(always)]
    pub(super) fn bias(self) -> u8 {
        if self.offset_binary && self.scheme == Scheme::Symmetric { 1 << (self.bits - 1) } else { 0 }
    }
}

/// Quantize `x` (whole rows of `spec.cols`) into packed rows of `codes` and the parameters.
pub fn quantize<T: Element>(
    x: &[T],
    uniform: Uniform,
    spec: Spec,
    policy: Policy,
    codes: &mut [u8],
    mut params: Params<'_, T::Compute>,
    threads: usize,
) -> Result<(), NonFinite> {
    if x.is_empty() {
        // Parts that hold nothing: as of an all-zero range.
        store_params(uniform.scheme, uniform.bits, std::iter::repeat(Range::<T>::EMPTY), &mut params);
        return Ok(());
    }
    run(x, uniform, spec, policy, Out::Packed(codes), Some(params), threads)
}

/// Quantize and dequantize without storing codes.
pub fn fake_quantize<T: Element>(
    x: &[T],
    uniform: Uniform,
    spec: Spec,
    policy: Policy,
    out: &mut [T],
    threads: usize,
) -> Result<(), NonFinite> {
    if x.is_empty() {
        return Ok(());
    }
    // Unsigned codes: they need no sign from their width.
    run(x, Uniform { offset_binary: true, ..uniform }, spec, policy, Out::Values(out), None, threads)
}

/// Quantize where the parameters are known, of either scheme and sign: NaN becomes the code of 0, infinities the limits.
pub fn quantize_given<T: Element>(
    x: &[T],
    uniform: Uniform,
    spec: Spec,
    codes: &mut [u8],
    params: ParamsRef<'_, T::Compute>,
    threads: usize,
) {
    if !x.is_empty() {
        code::<T, Given>(x, uniform.tiling(spec, x.len()), uniform, Out::Packed(codes), params, threads);
    }
}

/// Quantize and dequantize where the parameters are known.
pub fn fake_quantize_given<T: Element>(
    x: &[T],
    uniform: Uniform,
    spec: Spec,
    out: &mut [T],
    params: ParamsRef<'_, T::Compute>,
    threads: usize,
) {
    if !x.is_empty() {
        let uniform = Uniform { offset_binary: true, ..uniform };
        code::<T, Given>(x, uniform.tiling(spec, x.len()), uniform, Out::Values(out), params, threads);
    }
}

/// Choose the mode.
fn run<T: Element>(
    x: &[T],
    uniform: Uniform,
    spec: Spec,
    policy: Policy,
    out: Out<'_, T>,
    params: Option<Params<'_, T::Compute>>,
    threads: usize,
) -> Result<(), NonFinite> {
    let tiling = uniform.tiling(spec, x.len());
    if tiling.has_cached_runs(size_of::<T>()) {
        if policy == Policy::RaiseFirst && reduce::reduce_all::<T, reduce::Counts>(x, threads)[1] > 0 {
            return Err(NonFinite);
        }
        let saturate = policy == Policy::Saturate;
        return match uniform.scheme {
            Scheme::Symmetric => find_and_code::<T, Symmetric>(x, tiling, uniform, saturate, out, params, threads),
            Scheme::Asymmetric => find_and_code::<T, Asymmetric>(x, tiling, uniform, saturate, out, params, threads),
            Scheme::MinMax => find_and_code::<T, MinMax>(x, tiling, uniform, saturate, out, params, threads),
        };
    }
    let mut own = OwnParams::new(uniform.scheme, if params.is_none() { spec.scales(x.len()) } else { 0 });
    let mut params = params.unwrap_or_else(|| own.as_params());
    let parts = params.scale.len();
    let mut ranges = find_ranges::<T, reduce::MinMax>(x, &tiling, parts, threads);
    let finite = !ranges.iter().any(|range| range.is_nonfinite());
    if !finite {
        if policy != Policy::Saturate {
            return Err(NonFinite);
        }
        ranges = find_ranges::<T, reduce::FiniteMinMax>(x, &tiling, parts, threads);
    }
    store_params(uniform.scheme, uniform.bits, ranges.iter().copied(), &mut params);
    match (finite, uniform.scheme) {
        (false, _) => code::<T, Saturating>(x, tiling, uniform, out, params.as_ref(), threads),
        (_, Scheme::Symmetric) => code::<T, Symmetric>(x, tiling, uniform, out, params.as_ref(), threads),
        (_, Scheme::Asymmetric) => code::<T, Asymmetric>(x, tiling, uniform, out, params.as_ref(), threads),
        (_, Scheme::MinMax) => code::<T, MinMax>(x, tiling, uniform, out, params.as_ref(), threads),
    }
    Ok(())
}

/// Ranges and codes, piece by piece.
fn find_and_code<T: Element, M: Mode>(
    x: &[T],
    tiling: Tiling,
    uniform: Uniform,
    saturate: bool,
    mut out: Out<'_, T>,
    mut params: Option<Params<'_, T::Compute>>,
    threads: usize,
) -> Result<(), NonFinite> {
    let items: Vec<_> = tiling
        .pieces(true)
        .map(|piece| (piece, out.split_off(piece), params.as_mut().map(|params| params.split_off(piece.parts))))
        .collect();
    let finite = par::map(threads, items.into_iter(), |(piece, mut out, params)| {
        let mut own = OwnParams::new(uniform.scheme, if params.is_none() { piece.parts } else { 0 });
        let mut params = params.unwrap_or_else(|| own.as_params());
        let x = &x[piece.start..piece.start + piece.len];
        let mut looked_at = false;
        if let Out::Values(values) = &mut out {
            let to = (8, tiling.is_streamed());
            let finite = code_groups::<T, M, Numbers>(x, tiling, uniform, values, to, params.from(0));
            if finite || !saturate {
                return finite;
            }
            looked_at = true;
        }
        let in_place = tiling.has_runs_on_bytes() && (uniform.bits == 8 || T::as_computed(x).is_some());
        par::with_scratch(out.scratch(in_place, piece.len), |scratch| {
            let to = if scratch.is_empty() { (uniform.bits, tiling.is_streamed()) } else { (8, false) };
            let codes = out.codes(scratch);
            let mut finite = !looked_at && code_groups::<T, M, Codes>(x, tiling, uniform, codes, to, params.from(0));
            if saturate && !finite {
                finite = code_groups::<T, Saturating, Codes>(x, tiling, uniform, codes, to, params.from(0));
            }
            out.finish(scratch, &tiling, tiling.own_runs(piece), uniform, params.as_ref());
            finite
        })
    });
    if finite.into_iter().all(|finite| finite) { Ok(()) } else { Err(NonFinite) }
}

/// Codes where the parameters are known, piece by piece.
fn code<T: Element, M: Mode>(
    x: &[T],
    tiling: Tiling,
    uniform: Uniform,
    mut out: Out<'_, T>,
    params: ParamsRef<'_, T::Compute>,
    threads: usize,
) {
    let items: Vec<_> = tiling.pieces(false).map(|piece| (piece, out.split_off(piece))).collect();
    par::for_each(threads, items.into_iter(), |(piece, mut out)| {
        let (x, runs) = (&x[piece.start..piece.start + piece.len], tiling.runs_at(piece.start));
        let to = (uniform, params, tiling.is_streamed());
        if let (Out::Values(values), false) = (&mut out, runs.is_by_element()) {
            return code_runs::<T, M, Numbers>(x, runs, to, values);
        }
        par::with_scratch(out.scratch(uniform.bits == 8, piece.len), |scratch| {
            let streamed = scratch.is_empty() && tiling.is_streamed();
            let codes = out.codes(scratch);
            if runs.is_by_element() {
                code_by_element::<T, M>(x, runs, uniform, params, codes);
            } else {
                code_runs::<T, M, Codes>(x, runs, (uniform, params, streamed), codes);
            }
            out.finish(scratch, &tiling, runs, uniform, params);
        });
    });
}

/// The ranges of all parts, each wherever it comes again.
fn find_ranges<T: Element, O: Op<T, Scalar = T::Key> + Default>(
    x: &[T],
    tiling: &Tiling,
    parts: usize,
    threads: usize,
) -> Vec<Range<T>> {
    let mut ranges = vec![Range::<T>::EMPTY; parts];
    for (state, i) in reduce::reduce_axis::<T, O>(x, tiling.view(), threads).into_iter().zip((0..parts).cycle()) {
        let range = &mut ranges[i];
        range.0 = [range.0[0].min(state[0]), range.0[1].max(state[1])];
    }
    ranges
}

//! Parts of few consecutive elements: range, parameters and codes while they are in the cache.

use super::quantize::{NonFinite, run, run_chunk};
use super::{Param, Params, Spec, params::Range};
use crate::isa::kernel;
use crate::kernels::pack::{W8, Width, match_width, pack_codes, packed_len};
use crate::kernels::reduce::{FiniteMinMax, MinMax, Op};
use crate::par::{self, CHUNK};
use crate::real::Element;

/// Groups whose ranges, then scales, then codes are computed together: three loops that vectorise, where one group
/// after the other waits for its own division (measured at groups of 32: 5 times slower).
const BATCH: usize = 64;

kernel! {
    /// Whole groups of `size`, without padding between them.
    fn group_chunk<T: Element, W: Width, R: RangeOf>(x: &[T], size: usize, spec: Spec, out: GroupOut<'_, T::Compute>) -> bool {
        let GroupOut { codes, mut params } = out;
        let bytes = packed_len(size, W::BITS);
        let mut finite = true;
        let mut ranges = [Range::<T>::EMPTY; BATCH];
        let batches = x.chunks(BATCH * size).zip(codes.chunks_mut(BATCH * bytes));
        for (batch, (x, codes)) in batches.enumerate() {
            let first = batch * BATCH;
            let ranges = &mut ranges[..x.len() / size];
            for (range, group) in ranges.iter_mut().zip(x.chunks_exact(size)) {
                *range = R::range(group);
            }
            for (i, range) in ranges.iter().enumerate() {
                finite &= !range.is_nonfinite();
                params.set(first + i, &Param::new(spec.scheme, W::BITS, *range));
            }
            for (i, (group, codes)) in x.chunks_exact(size).zip(codes.chunks_exact_mut(bytes)).enumerate() {
                let param = params.get(spec, first + i);
                run::<T, W>(group, &param, codes);
            }
        }
        finite
    }
}

/// What a piece of groups is written to.
struct GroupOut<'a, C> {
    codes: &'a mut [u8],
    params: Params<'a, C>,
}

/// Which numbers make a range.
pub(super) trait RangeOf: Copy {
    fn range<T: Element>(x: &[T]) -> Range<T>;
}

/// All: a NaN or infinity shows in the range.
#[derive(Clone, Copy)]
pub(super) struct All;

/// The finite ones.
#[derive(Clone, Copy)]
pub(super) struct Finite;

/// Minima and maxima of integers: any order gives the same, so the compiler may choose its own lanes.
#[inline(always)]
fn range<T: Element, O: Op<T, Scalar = T::Key>>(x: &[T]) -> Range<T> {
    let mut state = O::IDENTITY;
    let (blocks, tail) = x.as_chunks::<32>();
    for block in blocks {
        for &v in block {
            state = O::step(state, v);
        }
    }
    for &v in tail {
        state = O::step(state, v);
    }
    Range(state)
}

impl RangeOf for All {
    #[inline(always)]
    fn range<T: Element>(x: &[T]) -> Range<T> {
        range::<T, MinMax>(x)
    }
}

impl RangeOf for Finite {
    #[inline(always)]
    fn range<T: Element>(x: &[T]) -> Range<T> {
        range::<T, FiniteMinMax>(x)
    }
}

/// Groups along the rows.
pub(super) fn groups<T: Element, R: RangeOf + Sync>(
    x: &[T],
    size: usize,
    spec: Spec,
    codes: &mut [u8],
    params: &mut Params<'_, T::Compute>,
    threads: usize,
) -> Result<(), NonFinite> {
    let per_byte = 8 / spec.bits as usize;
    if spec.cols.is_multiple_of(size) && size.is_multiple_of(per_byte) {
        return flat_groups::<T, R>(x, size, spec, codes, params, threads);
    }
    // Groups that do not fill their bytes, or a short last group: row by row, one code a byte, then packed.
    let cols = spec.cols;
    let in_row = cols.div_ceil(size);
    let rows = (CHUNK / cols).max(1);
    let pieces = x.chunks(rows * cols).zip(codes.chunks_mut(rows * spec.row_bytes())).zip(params.pieces(rows * in_row));
    let finite = par::map(threads, pieces, |((x, codes), mut params)| {
        let mut unpacked = vec![0u8; cols];
        let mut finite = true;
        for (r, (row, packed)) in x.chunks_exact(cols).zip(codes.chunks_exact_mut(spec.row_bytes())).enumerate() {
            for (g, (group, codes)) in row.chunks(size).zip(unpacked.chunks_mut(size)).enumerate() {
                let range = R::range(group);
                finite &= !range.is_nonfinite();
                let param = Param::new(spec.scheme, spec.bits, range);
                params.set(r * in_row + g, &param);
                run_chunk::<T, W8>(group, &param.with_bias(spec.bias()), codes);
            }
            match_width!(spec.bits, W => pack_codes::<W>(&unpacked, packed));
        }
        finite
    });
    if finite.into_iter().all(|finite| finite) { Ok(()) } else { Err(NonFinite) }
}

/// Equal groups without padding anywhere: pieces of several groups.
pub(super) fn flat_groups<T: Element, R: RangeOf + Sync>(
    x: &[T],
    size: usize,
    spec: Spec,
    codes: &mut [u8],
    params: &mut Params<'_, T::Compute>,
    threads: usize,
) -> Result<(), NonFinite> {
    let bytes = packed_len(size, spec.bits);
    let count = (CHUNK / size).max(1);
    let pieces = x.chunks(count * size).zip(codes.chunks_mut(count * bytes)).zip(params.pieces(count));
    let finite = par::map(threads, pieces, |((x, codes), params)| {
        let out = GroupOut { codes, params };
        match_width!(spec.bits, W => group_chunk::<T, W, R>(x, size, spec, out))
    });
    if finite.into_iter().all(|finite| finite) { Ok(()) } else { Err(NonFinite) }
}

//! Parts of few consecutive elements: range, parameters and codes while they are in the cache.

use super::params::{Range, stored};
use super::quantize::{NonFinite, run, run_chunk};
use super::{Param, Params, Scheme, Spec};
use crate::isa::kernel;
use crate::kernels::pack::{W8, Width, match_width, pack_codes, packed_len};
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

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
        // No more groups than the cache holds between the first loop and the last.
        let in_batch = (CHUNK / 2 / size).clamp(1, BATCH);
        let batches = x.chunks(in_batch * size).zip(codes.chunks_mut(in_batch * bytes));
        for (batch, (x, codes)) in batches.enumerate() {
            let first = batch * in_batch;
            let ranges = &mut ranges[..x.len() / size];
            find_ranges::<T, R, BATCH>(x, size, spec.scheme, ranges);
            for range in ranges.iter() {
                finite &= !range.is_nonfinite();
            }
            // The scheme by name in each arm: the loops are then compiled for it.
            match spec.scheme {
                Scheme::Symmetric => store_params(Scheme::Symmetric, W::BITS, ranges, &mut params, first),
                Scheme::Asymmetric => store_params(Scheme::Asymmetric, W::BITS, ranges, &mut params, first),
                Scheme::MinMax => store_params(Scheme::MinMax, W::BITS, ranges, &mut params, first),
            }
            for (i, (group, codes)) in x.chunks_exact(size).zip(codes.chunks_exact_mut(bytes)).enumerate() {
                let param = params.get(spec, first + i);
                run::<T, W>(group, &param, codes);
            }
        }
        finite
    }
}

/// Scales, zero points and offsets of a batch, each a loop over plain arrays.
#[inline(always)]
fn store_params<T: Element>(
    scheme: Scheme,
    bits: u32,
    ranges: &[Range<T>],
    params: &mut Params<'_, T::Compute>,
    first: usize,
) {
    for (scale, range) in params.scale[first..].iter_mut().zip(ranges) {
        *scale = stored(scheme, bits, *range).0;
    }
    if scheme == Scheme::Asymmetric {
        for (zero_point, range) in params.zero_point[first..].iter_mut().zip(ranges) {
            *zero_point = stored(scheme, bits, *range).1;
        }
    }
    if scheme == Scheme::MinMax {
        for (offset, range) in params.offset[first..].iter_mut().zip(ranges) {
            *offset = stored(scheme, bits, *range).2;
        }
    }
}

/// Lanes that a group is first reduced to.
const LANES: usize = 8;

/// The ranges of a batch of groups: every group to [`LANES`] lanes, then the lanes of all groups, halved together.
#[inline(always)]
fn find_ranges<T: Element, R: RangeOf, const N: usize>(x: &[T], size: usize, scheme: Scheme, ranges: &mut [Range<T>]) {
    if scheme == Scheme::Symmetric {
        let mut lanes = [[T::Key::ZERO; LANES]; N];
        for (lanes, group) in lanes.iter_mut().zip(x.chunks_exact(size)) {
            let (blocks, tail) = group.as_chunks::<LANES>();
            for block in blocks {
                for i in 0..LANES {
                    lanes[i] = lanes[i].max(R::magnitude(block[i]));
                }
            }
            for (lane, &v) in lanes.iter_mut().zip(tail) {
                *lane = (*lane).max(R::magnitude(v));
            }
        }
        let absmax = halve(&lanes, Ord::max);
        for (range, &absmax) in ranges.iter_mut().zip(&absmax) {
            range.0 = [absmax.not(), absmax];
        }
        return;
    }
    let mut low = [[T::Key::MAX; LANES]; N];
    let mut high = [[T::Key::MIN; LANES]; N];
    for ((low, high), group) in low.iter_mut().zip(high.iter_mut()).zip(x.chunks_exact(size)) {
        let (blocks, tail) = group.as_chunks::<LANES>();
        for block in blocks {
            for i in 0..LANES {
                let [l, h] = R::keys(block[i]);
                low[i] = low[i].min(l);
                high[i] = high[i].max(h);
            }
        }
        for ((low, high), &v) in low.iter_mut().zip(high.iter_mut()).zip(tail) {
            let [l, h] = R::keys(v);
            *low = (*low).min(l);
            *high = (*high).max(h);
        }
    }
    let (low, high) = (halve(&low, Ord::min), halve(&high, Ord::max));
    for ((range, &low), &high) in ranges.iter_mut().zip(&low).zip(&high) {
        range.0 = [low, high];
    }
}

/// Join the lanes of each group: three flat loops over the whole batch.
#[inline(always)]
fn halve<K: Key, const N: usize>(lanes: &[[K; LANES]; N], join: impl Fn(K, K) -> K + Copy) -> [K; N] {
    let mut four = [[K::ZERO; 4]; N];
    for (out, a) in four.iter_mut().zip(lanes) {
        for i in 0..4 {
            out[i] = join(a[i], a[i + 4]);
        }
    }
    let mut one = [K::ZERO; N];
    for (out, a) in one.iter_mut().zip(&four) {
        *out = join(join(a[0], a[1]), join(a[2], a[3]));
    }
    one
}

/// What a piece of groups is written to.
struct GroupOut<'a, C> {
    codes: &'a mut [u8],
    params: Params<'a, C>,
}

/// Which numbers make a range.
pub(super) trait RangeOf: Copy {
    /// What a number gives to the smallest and to the largest key.
    fn keys<T: Element>(x: T) -> [T::Key; 2];
    /// What a number gives to the largest magnitude.
    fn magnitude<T: Element>(x: T) -> T::Key;
}

/// All: a NaN or infinity shows in the range.
#[derive(Clone, Copy)]
pub(super) struct All;

/// The finite ones.
#[derive(Clone, Copy)]
pub(super) struct Finite;

impl RangeOf for All {
    #[inline(always)]
    fn keys<T: Element>(x: T) -> [T::Key; 2] {
        [x.key(); 2]
    }
    #[inline(always)]
    fn magnitude<T: Element>(x: T) -> T::Key {
        x.magnitude()
    }
}

impl RangeOf for Finite {
    #[inline(always)]
    fn keys<T: Element>(x: T) -> [T::Key; 2] {
        let finite = x.magnitude() < T::INFINITY_KEY;
        [if finite { x.key() } else { T::Key::MAX }, if finite { x.key() } else { T::Key::MIN }]
    }
    #[inline(always)]
    fn magnitude<T: Element>(x: T) -> T::Key {
        let magnitude = x.magnitude();
        if magnitude < T::INFINITY_KEY { magnitude } else { T::Key::ZERO }
    }
}

/// The range of one group, as the batches find it.
#[inline(always)]
pub(super) fn range<T: Element, R: RangeOf>(x: &[T], scheme: Scheme) -> Range<T> {
    let mut one = [Range::<T>::EMPTY];
    find_ranges::<T, R, 1>(x, x.len().max(1), scheme, &mut one);
    one[0]
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
                let range = range::<T, R>(group, spec.scheme);
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

//! Short runs with a part each: ranges, parameters and codes while they are in the cache.

use super::code::{Mode, code_run};
use super::cut::Cut;
use super::params::{self, Range};
use super::{BLOCK, Params, Scheme, Spec};
use crate::isa::kernel;
use crate::real::{Element, Key};

/// Groups whose ranges, then parameters, then codes are computed together: loops that vectorise, where one group
/// after the other waits for its own division (measured at groups of 32: 5 times slower).
const BATCH: usize = 64;

/// Elements of such a batch, but for one longer group: what the L1 cache holds between the first loop and the last,
/// beside what is fetched for the next batch.
const IN_L1: usize = 1024;

/// A group of up to so many elements is searched in blocks: a loop of unknown length is fast on long ones only.
const SHORT: usize = 256;

kernel! {
    /// The parameters and codes of a piece of whole runs; whether all its numbers were finite.
    pub(super) fn code_groups<T: Element, M: Mode>(
        x: &[T],
        cut: Cut,
        spec: Spec,
        codes: &mut [u8],
        params: Params<'_, T::Compute>,
    ) -> bool {
        let mut params = params;
        let (row, size) = (cut.row.min(x.len()), cut.run);
        let in_batch = (IN_L1 / size).clamp(1, BATCH) * size;
        let mut finite = true;
        let mut first = 0;
        for (row, codes) in x.chunks(row).zip(codes.chunks_mut(row)) {
            let (mut rest, short) = row.split_at(row.len() / size * size);
            let (codes, short_codes) = codes.split_at_mut(rest.len());
            for codes in codes.chunks_mut(in_batch) {
                let (x, ahead) = rest.split_at(codes.len());
                finite &= batch::<T, M, BATCH>([x, ahead], size, &spec, codes, params.from(first));
                first += x.len() / size;
                rest = ahead;
            }
            if !short.is_empty() {
                finite &= batch::<T, M, 1>([short, &[]], short.len(), &spec, short_codes, params.from(first));
                first += 1;
            }
        }
        finite
    }
}

/// Up to `N` groups of `x`, and what will be read after them.
#[inline(always)]
fn batch<T: Element, M: Mode, const N: usize>(
    [x, ahead]: [&[T]; 2],
    size: usize,
    spec: &Spec,
    codes: &mut [u8],
    mut params: Params<'_, T::Compute>,
) -> bool {
    let mut ranges = [Range::<T>::EMPTY; N];
    let ranges = &mut ranges[..x.len() / size];
    for (range, x) in ranges.iter_mut().zip(x.chunks_exact(size)) {
        *range = self::range::<T, M>(x);
    }
    let mut nonfinite = false;
    for range in ranges.iter() {
        nonfinite |= range.is_nonfinite();
    }
    store_params(M::scheme(spec), spec.bits, ranges, &mut params);
    let params = params.as_ref();
    for (i, (x, codes)) in x.chunks_exact(size).zip(codes.chunks_exact_mut(size)).enumerate() {
        code_run::<T, M>([x, ahead.get(i * size..).unwrap_or_default()], spec, params.get(i), codes);
    }
    !nonfinite
}

/// Scales, zero points and offsets of parts, each a loop over plain arrays.
#[inline(always)]
pub(super) fn store_params<T: Element>(
    scheme: Scheme,
    bits: u32,
    ranges: &[Range<T>],
    params: &mut Params<'_, T::Compute>,
) {
    for (scale, range) in params.scale.iter_mut().zip(ranges) {
        *scale = params::scale(scheme, bits, *range);
    }
    for ((zero_point, range), &scale) in params.zero_point.iter_mut().zip(ranges).zip(params.scale.iter()) {
        *zero_point = params::zero_point(bits, *range, scale);
    }
    for (offset, range) in params.offset.iter_mut().zip(ranges) {
        *offset = params::offset(*range);
    }
}

/// The range of one group.
#[inline(always)]
fn range<T: Element, M: Mode>(x: &[T]) -> Range<T> {
    if M::SCHEME == Some(Scheme::Symmetric) {
        let absmax = largest::<T>(x, T::magnitude);
        return Range([absmax.not(), absmax]);
    }
    // A NaN or an infinity shows in the range; of a saturating mode only the finite numbers count.
    let counts = |x: T| M::SCHEME.is_some() || x.magnitude() < T::INFINITY_KEY;
    let low = largest::<T>(x, |x| if counts(x) { x.key().not() } else { T::Key::MIN });
    let high = largest::<T>(x, |x| if counts(x) { x.key() } else { T::Key::MIN });
    Range([low.not(), high])
}

/// The largest key: plain folds, which become vectors of any width, because they are exact in any order.
#[inline(always)]
fn largest<T: Element>(x: &[T], key: impl Fn(T) -> T::Key) -> T::Key {
    let mut largest = T::Key::MIN;
    let (blocks, tail) = if x.len() <= SHORT { x.as_chunks::<BLOCK>() } else { (Default::default(), x) };
    for block in blocks {
        let mut of_block = T::Key::MIN;
        for &v in block {
            of_block = of_block.max(key(v));
        }
        largest = largest.max(of_block);
    }
    for &v in tail {
        largest = largest.max(key(v));
    }
    largest
}

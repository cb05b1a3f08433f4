//! Short runs with a part each: ranges, parameters and codes while they are in the cache.

use super::code::{Make, Mode, Multiplier, multiply};
use super::cut::Cut;
use super::params::{self, Range};
use super::{BLOCK, Params, ParamsRef, Scheme, Uniform};
use crate::isa::{self, kernel};
use crate::real::{Divisor, Element, Key};

/// Groups whose ranges, then parameters, then codes are computed together: loops that vectorise, where one group
/// after the other waits for its own division (measured at groups of 32: 5 times slower).
const BATCH: usize = 64;

/// Elements of such a batch, but for one longer group: what the L1 cache holds between the first loop and the last,
/// beside what is fetched for the next batch.
pub(super) const IN_L1: usize = 1024;

/// A group of up to so many elements is searched in blocks: a loop of unknown length is fast on long ones only.
const SHORT: usize = 256;

kernel! {
    /// The parameters and codes (or their numbers) of a piece of whole runs; whether all its numbers were finite.
    pub(super) fn code_groups<T: Element, M: Mode, O: Make<T>>(
        x: &[T],
        cut: Cut,
        uniform: Uniform,
        out: &mut [O::Item],
        streamed: bool,
        params: Params<'_, T::Compute>,
    ) -> bool {
        let mut params = params;
        let mut block = [O::ANY; IN_L1];
        let (row, size) = (cut.row.min(x.len()), cut.run);
        let in_batch = (IN_L1 / size).clamp(1, BATCH) * size;
        let mut finite = true;
        let mut first = 0;
        for (row, mut out) in x.chunks(row).zip(out.chunks_mut(row)) {
            let mut rest = row;
            while !rest.is_empty() {
                // Whole groups, then the short one.
                let size = size.min(rest.len());
                let (x, next) = rest.split_at(in_batch.min(rest.len() / size * size));
                // At the end again what is there already.
                let ahead = next.get(..x.len()).unwrap_or(x);
                let out = out.split_off_mut(..x.len()).unwrap_or_default();
                let mut params = params.from(first);
                finite &= store_batch::<T, M>(x, size, uniform, &mut params);
                let params = M::of(params.as_ref());
                // Several groups are few elements; of a long one as many at a time.
                let step = if x.len() == size { IN_L1 } else { x.len() };
                for ((x, ahead), out) in x.chunks(step).zip(ahead.chunks(step)).zip(out.chunks_mut(step)) {
                    let to = if streamed { &mut block[..x.len()] } else { &mut *out };
                    code_batch::<T, M, O, FMA>([x, ahead], size.min(x.len()), uniform, params, to);
                    if streamed {
                        isa::stream(&block[..x.len()], out);
                    }
                }
                first += x.len() / size;
                rest = next;
            }
        }
        finite
    }
}

/// The parameters of up to [`BATCH`] groups; whether all their numbers were finite.
#[inline(always)]
fn store_batch<T: Element, M: Mode>(
    x: &[T],
    size: usize,
    uniform: Uniform,
    params: &mut Params<'_, T::Compute>,
) -> bool {
    let mut ranges = [Range::<T>::EMPTY; BATCH];
    let ranges = &mut ranges[..x.len() / size];
    for (range, x) in ranges.iter_mut().zip(x.chunks_exact(size)) {
        *range = self::range::<T, M>(x);
    }
    let mut nonfinite = false;
    for range in ranges.iter() {
        nonfinite |= range.is_nonfinite();
    }
    store_params(M::scheme(uniform), uniform.bits, ranges, params);
    !nonfinite
}

/// The codes, or their numbers, of such groups, while as much of what will be read after them is fetched.
#[inline(always)]
fn code_batch<T: Element, M: Mode, O: Make<T>, const FMA: bool>(
    [x, ahead]: [&[T]; 2],
    size: usize,
    uniform: Uniform,
    params: ParamsRef<'_, T::Compute>,
    out: &mut [O::Item],
) {
    let mut exact = FMA;
    for &scale in &params.scale[..x.len() / size] {
        exact &= Divisor::is_exact(scale);
    }
    if exact && size == BLOCK {
        // Of constant length: two thirds of the time.
        let blocks = x.as_chunks::<BLOCK>().0.iter().zip(ahead.as_chunks::<BLOCK>().0);
        for (i, ((x, ahead), out)) in blocks.zip(out.as_chunks_mut::<BLOCK>().0).enumerate() {
            isa::prefetch(ahead);
            *out = Multiplier::new::<M>(uniform, params.get(i)).block::<T, M, O>(x);
        }
        return;
    }
    let groups = x.chunks_exact(size).zip(ahead.chunks_exact(size)).zip(out.chunks_exact_mut(size));
    for (i, ((x, ahead), out)) in groups.enumerate() {
        if exact {
            multiply::<T, M, O>([x, ahead], uniform, params.get(i), out);
        } else {
            O::divide::<M>(x, uniform, params.get(i), out);
        }
    }
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

/// The range of one group: plain folds of keys, which become vectors of any width, because they are exact in any order.
#[inline(always)]
fn range<T: Element, M: Mode>(x: &[T]) -> Range<T> {
    let (blocks, tail) = if x.len() <= SHORT { x.as_chunks::<BLOCK>() } else { (Default::default(), x) };
    let mut range = Range::<T>::EMPTY;
    for block in blocks {
        range = range.and(fold::<T, M>(block));
    }
    range.and(fold::<T, M>(tail))
}

/// The range of numbers in one loop. Of finite numbers a NaN or an infinity shows in the range, of others only the finite
/// ones count.
#[inline(always)]
fn fold<T: Element, M: Mode>(x: &[T]) -> Range<T> {
    let (mut low, mut high) = (T::Key::MIN, T::Key::MIN);
    for &v in x {
        if M::SCHEME == Some(Scheme::Symmetric) {
            high = high.max(v.magnitude());
        } else {
            let counts = M::SCHEME.is_some() || v.magnitude() < T::INFINITY_KEY;
            low = low.max(if counts { v.key().not() } else { T::Key::MIN });
            high = high.max(if counts { v.key() } else { T::Key::MIN });
        }
    }
    if M::SCHEME == Some(Scheme::Symmetric) { Range([high.not(), high]) } else { Range([low.not(), high]) }
}

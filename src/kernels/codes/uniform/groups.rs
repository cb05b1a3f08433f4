//! Short runs with a part each: ranges, parameters and codes while they are in the cache.

use super::code::{Asymmetric, Make, Mode, Multiplier, Saturating, Symmetric, multiply, multiply_lines};
use super::cut::Cut;
use super::params::{self, Range};
use super::{BLOCK, Params, ParamsRef, Scheme, Uniform};
use crate::isa::{self, kernel};
use crate::kernels::lines::Lines;
use crate::kernels::magnitude::largest_of_groups;
use crate::kernels::pack::packed_len;
use crate::real::{Divisor, Element, Key, Real};

/// Groups whose ranges, then parameters, then codes are computed together: loops that vectorise, where one group
/// after the other waits for its own division (measured at groups of 32: 5 times slower).
const BATCH: usize = 64;

/// Elements of such a batch, but for one longer group: what the L1 cache holds between the first loop and the last,
/// beside what is fetched for the next batch.
pub(super) const IN_L1: usize = 1024;

/// How far ahead of a batch memory is asked for, in elements.
pub(super) const AHEAD: usize = 2048;

/// A group of up to so many elements is searched in blocks: a loop of unknown length is fast on long ones only.
const SHORT: usize = 256;

/// What is left of each such group is folded for all groups of a batch at once: from here on a group alone would use a
/// part of a register, then pass on one number (ranges of groups of 32 were a third of the whole, and are a quarter).
const LANES: usize = 8;

/// Groups of blocks in a batch.
const OF_BLOCKS: usize = IN_L1 / BLOCK;

/// Keys of the ends of ranges: the complements of the lowest, and the highest.
type Ends<T> = [[<T as Element>::Key; BATCH]; 2];

/// The parameters and codes (or their numbers) of a piece of whole runs; whether all its numbers were finite. Codes
/// of `bits` are packed on the way; where `streamed`, bytes and numbers go past the caches.
pub(super) fn code_groups<T: Element, M: Mode, O: Make<T>>(
    x: &[T],
    cut: Cut,
    uniform: Uniform,
    out: &mut [O::Item],
    to: (u32, bool),
    params: Params<'_, T::Compute>,
) -> bool {
    let (mut params, (bits, _)) = (params, to);
    let (row, size) = (cut.row.min(x.len()), cut.run);
    let in_batch = (IN_L1 / size).clamp(1, BATCH) * size;
    let mut finite = true;
    let mut first = 0;
    for (row, mut out) in x.chunks(row).zip(out.chunks_mut(packed_len(row, bits))) {
        let mut rest = row;
        while !rest.is_empty() {
            // Whole groups, then the short one.
            let size = size.min(rest.len());
            let (x, next) = rest.split_at(in_batch.min(rest.len() / size * size));
            // At the end again what is there already.
            let far = AHEAD.max(x.len());
            let ahead = rest.get(far..far + x.len()).unwrap_or(x);
            let out = out.split_off_mut(..packed_len(x.len(), bits)).unwrap_or_default();
            let mut params = params.from(first);
            finite &= store_batch::<T, M>(x, size, uniform, &mut params);
            code_batch::<T, M, O>([x, ahead], size, (uniform, params.as_ref()), out, to);
            first += x.len() / size;
            rest = next;
        }
    }
    finite
}

/// The parameters of up to [`BATCH`] groups; whether all their numbers were finite.
#[inline(always)]
fn store_batch<T: Element, M: Mode>(
    x: &[T],
    size: usize,
    uniform: Uniform,
    params: &mut Params<'_, T::Compute>,
) -> bool {
    let mut ends: Ends<T> = [[T::Key::MIN; BATCH]; 2];
    match M::SCHEME {
        Some(Scheme::Symmetric) => find_ends::<T, Symmetric>(x, size, &mut ends),
        Some(_) => find_ends::<T, Asymmetric>(x, size, &mut ends),
        None => find_ends::<T, Saturating>(x, size, &mut ends),
    }
    params_of_ends::<T>(M::scheme(uniform), uniform.bits, &ends, x.len() / size, params)
}

kernel! {
    /// The ends of the ranges of groups. A kernel of its own: it is the same for several modes, for codes and for numbers.
    fn find_ends<T: Element, M: Mode>(x: &[T], size: usize, ends: &mut Ends<T>) {
        let n = x.len() / size;
        if M::SCHEME == Some(Scheme::Symmetric)
            && size == BLOCK
            && largest_of_groups::<T, BLOCK>(isa::current(), x, &mut ends[1][..n])
        {
            // Done.
        } else if FMA && size.is_multiple_of(BLOCK) && size <= SHORT {
            // (Old CPUs fold group by group: these loops were a third more bytes for them than for others.)
            ends_of_blocks::<T, M>(x, size, ends);
        } else {
            for (i, x) in x.chunks_exact(size).enumerate() {
                [ends[0][i], ends[1][i]] = ends_of_group::<T, M>(x);
            }
        }
        if M::SCHEME == Some(Scheme::Symmetric) {
            ends[0] = ends[1];
        }
    }
}

kernel! {
    /// The parameters of `n` groups; whether their ends are finite. A kernel of its own: it is the same for all modes.
    fn params_of_ends<T: Element>(
        scheme: Scheme, bits: u32, ends: &Ends<T>, n: usize, params: &mut Params<'_, T::Compute>
    ) -> bool {
        let ranges = ends[0][..n].iter().zip(&ends[1][..n]).map(|(low, &high)| Range::<T>([low.not(), high]));
        let mut nonfinite = false;
        for range in ranges.clone() {
            nonfinite |= range.is_nonfinite();
        }
        // Known to the compiler in each of the loops.
        match scheme {
            Scheme::Symmetric => store_params(Scheme::Symmetric, bits, ranges, params),
            Scheme::Asymmetric => store_params(Scheme::Asymmetric, bits, ranges, params),
            Scheme::MinMax => store_params(Scheme::MinMax, bits, ranges, params),
        }
        !nonfinite
    }
}

kernel! {
    /// The codes, or their numbers, of such groups, while as much of what will be read after them is fetched.
    fn code_batch<T: Element, M: Mode, O: Make<T>>(
        both: [&[T]; 2],
        size: usize,
        how: (Uniform, ParamsRef<'_, T::Compute>),
        out: &mut [O::Item],
        to: (u32, bool),
    ) {
        let ([x, ahead], (uniform, params), (bits, streamed)) = (both, how, to);
        let params = M::of(params);
        let mut divisors = [Divisor::new(T::Compute::from_i16(1)); BATCH];
        let mut exact = FMA;
        for (divisor, &scale) in divisors.iter_mut().zip(&params.scale[..x.len() / size]) {
            exact &= Divisor::is_exact(scale);
            *divisor = Divisor::new(scale);
        }
        if exact && streamed && code_lines::<T, M, O>([x, ahead], size, (uniform, params), &divisors, out) {
            return;
        }
        let (mut block, in_place) = ([O::ANY; IN_L1], bits == 8 && !streamed);
        // Several groups, or parts of a long one.
        let (n, bytes) = ((O::SPAN / size).max(1), packed_len(O::SPAN, bits));
        let each = x.chunks(n * size).zip(ahead.chunks(n * size)).zip(out.chunks_mut(packed_len(n * size, bits)));
        for (i, ((x, ahead), out)) in each.enumerate() {
            for ((x, ahead), out) in x.chunks(O::SPAN).zip(ahead.chunks(O::SPAN)).zip(out.chunks_mut(bytes)) {
                let to = if in_place { &mut *out } else { &mut block[..x.len()] };
                let (size, params) = (size.min(x.len()), (uniform, params.from(i * n)));
                code_span::<T, M, O>([x, ahead], size, params, exact.then_some(&divisors[i * n..]), to);
                if !in_place {
                    O::put(&block[..x.len()], bits, out);
                }
            }
        }
    }
}

/// The same past the caches, block by block; whether that can be done.
#[inline(always)]
fn code_lines<T: Element, M: Mode, O: Make<T>>(
    [x, ahead]: [&[T]; 2],
    size: usize,
    (uniform, params): (Uniform, ParamsRef<'_, T::Compute>),
    divisors: &[Divisor<T::Compute>],
    out: &mut [O::Item],
) -> bool {
    if !size.is_multiple_of(BLOCK) {
        return false;
    }
    let Some(mut lines) = Lines::new(out) else { return false };
    for (i, (x, ahead)) in x.chunks_exact(size).zip(ahead.chunks_exact(size)).enumerate() {
        let multiplier = Multiplier::new::<M>(uniform, params.get(i), divisors[i]);
        multiply_lines::<T, M, O>([x, ahead], &multiplier, &mut lines);
    }
    lines.finish();
    true
}

/// The same of so few that they are made in the cache; with divisors that [`Divisor::quotient`] takes, or by division.
#[inline(always)]
fn code_span<T: Element, M: Mode, O: Make<T>>(
    [x, ahead]: [&[T]; 2],
    size: usize,
    (uniform, params): (Uniform, ParamsRef<'_, T::Compute>),
    divisors: Option<&[Divisor<T::Compute>]>,
    out: &mut [O::Item],
) {
    let Some(divisors) = divisors else {
        for (i, (x, out)) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)).enumerate() {
            O::divide::<M>(x, uniform, params.get(i), out);
        }
        return;
    };
    if size == BLOCK {
        // Of constant length: two thirds of the time. (Counted once: zipped, their lengths are compared for each.)
        let (x, ahead, out) = (x.as_chunks::<BLOCK>().0, ahead.as_chunks::<BLOCK>().0, out.as_chunks_mut::<BLOCK>().0);
        let n = x.len();
        let (ahead, out, divisors, params) = (&ahead[..n], &mut out[..n], &divisors[..n], params.first(n));
        for i in 0..n {
            isa::prefetch_early(&ahead[i]);
            out[i] = Multiplier::new::<M>(uniform, params.get(i), divisors[i]).block::<T, M, O>(&x[i]);
        }
        return;
    }
    let groups = x.chunks_exact(size).zip(ahead.chunks_exact(size)).zip(out.chunks_exact_mut(size));
    for (i, ((x, ahead), out)) in groups.enumerate() {
        let multiplier = Multiplier::new::<M>(uniform, params.get(i), divisors[i]);
        multiply::<T, M, O>([x, ahead], multiplier, out);
    }
}

/// Scales, zero points and offsets of parts, each a loop over plain arrays.
#[inline(always)]
pub(super) fn store_params<T: Element>(
    scheme: Scheme,
    bits: u32,
    ranges: impl Iterator<Item = Range<T>> + Clone,
    params: &mut Params<'_, T::Compute>,
) {
    for (scale, range) in params.scale.iter_mut().zip(ranges.clone()) {
        *scale = params::scale(scheme, bits, range);
    }
    for ((zero_point, range), &scale) in params.zero_point.iter_mut().zip(ranges.clone()).zip(params.scale.iter()) {
        *zero_point = params::zero_point(bits, range, scale);
    }
    for (offset, range) in params.offset.iter_mut().zip(ranges) {
        *offset = params::offset(range);
    }
}

/// The ends of groups of blocks: plain folds of keys, which become vectors of any width, because they are exact in any
/// order.
#[inline(always)]
fn ends_of_blocks<T: Element, M: Mode>(x: &[T], size: usize, ends: &mut Ends<T>) {
    let mut lanes = [[[T::Key::MIN; LANES]; OF_BLOCKS]; 2];
    for (i, x) in x.chunks_exact(size).enumerate() {
        let mut of_group = [[T::Key::MIN; LANES]; 2];
        for block in x.as_chunks::<BLOCK>().0 {
            let [low, high] = &mut of_group;
            for (lane, (low, high)) in low.iter_mut().zip(high).enumerate() {
                for part in 0..BLOCK / LANES {
                    let [below, above] = ends_of::<T, M>(block[part * LANES + lane]);
                    *low = (*low).max(below);
                    *high = (*high).max(above);
                }
            }
        }
        [lanes[0][i], lanes[1][i]] = of_group;
    }
    let n = x.len() / size;
    if M::SCHEME != Some(Scheme::Symmetric) {
        fold_lanes(&lanes[0][..n], &mut ends[0]);
    }
    fold_lanes(&lanes[1][..n], &mut ends[1]);
}

/// The largest of each group's lanes: halves, quarters, then one of all groups in one loop.
#[inline(always)]
fn fold_lanes<K: Key>(lanes: &[[K; LANES]], out: &mut [K; BATCH]) {
    let (mut half, mut quarter) = ([K::MIN; OF_BLOCKS * LANES / 2], [K::MIN; OF_BLOCKS * LANES / 4]);
    let n = lanes.len();
    fold_pairs(lanes.as_flattened(), &mut half);
    fold_pairs(&half[..n * LANES / 2], &mut quarter);
    fold_pairs(&quarter[..n * LANES / 4], out);
}

/// The larger of each two.
#[inline(always)]
fn fold_pairs<K: Key>(x: &[K], out: &mut [K]) {
    for (out, &[a, b]) in out.iter_mut().zip(x.as_chunks::<2>().0) {
        *out = a.max(b);
    }
}

/// The ends of one group of any length.
#[inline(always)]
fn ends_of_group<T: Element, M: Mode>(x: &[T]) -> [T::Key; 2] {
    let (blocks, tail) = if x.len() <= SHORT { x.as_chunks::<BLOCK>() } else { (Default::default(), x) };
    let mut ends = [T::Key::MIN; 2];
    for block in blocks {
        let [low, high] = fold::<T, M>(block);
        ends = [ends[0].max(low), ends[1].max(high)];
    }
    let [low, high] = fold::<T, M>(tail);
    [ends[0].max(low), ends[1].max(high)]
}

/// The ends of the range of numbers, in one loop.
#[inline(always)]
fn fold<T: Element, M: Mode>(x: &[T]) -> [T::Key; 2] {
    let (mut low, mut high) = (T::Key::MIN, T::Key::MIN);
    for &v in x {
        let [below, above] = ends_of::<T, M>(v);
        low = low.max(below);
        high = high.max(above);
    }
    [low, high]
}

/// The ends of one number, of which symmetric codes need only the magnitude. Of finite numbers a NaN or an infinity shows
/// in the range, of others only the finite ones count.
#[inline(always)]
fn ends_of<T: Element, M: Mode>(v: T) -> [T::Key; 2] {
    if M::SCHEME == Some(Scheme::Symmetric) {
        return [T::Key::MIN, v.magnitude()];
    }
    let counts = M::SCHEME.is_some() || v.magnitude() < T::INFINITY_KEY;
    [v.key().not(), v.key()].map(|end| if counts { end } else { T::Key::MIN })
}

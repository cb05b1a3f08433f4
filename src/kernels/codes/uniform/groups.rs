//! Short runs with a part each: ranges, parameters and codes while they are in the cache.

use super::ahead::Ahead;
use super::code::{Make, Multiplier, divide_lines, multiply, multiply_lines};
use super::ends::{Ends, find_ends};
use super::mode::{Asymmetric, Mode, Saturating, Symmetric};
use super::params::{self, Range};
use super::tiling::Tiling;
use super::{BLOCK, Params, ParamsRef, Scheme, Uniform};
use crate::isa::kernel;
use crate::kernels::lines::{Lines, Target};
use crate::kernels::pack::packed_len;
use crate::real::{Divisor, Element, Key, Real};

/// Groups whose ranges, then parameters, then codes are computed together: loops that vectorise, where one group
/// after the other waits for its own division (measured at groups of 32: 5 times slower).
pub(super) const BATCH: usize = 64;

/// Elements of such a batch, but for one longer group: what the L1 cache holds between the first loop and the last,
/// beside what is fetched for the next batch.
pub(super) const IN_L1: usize = 1024;

/// The parameters and codes (or their numbers) of a piece of whole runs; whether all its numbers were finite. Codes
/// of `bits` are packed on the way; where `streamed`, bytes and numbers go past the caches.
pub(super) fn code_groups<C: Real, M: Mode, O: Make<C>>(
    x: &[C],
    tiling: Tiling,
    uniform: Uniform,
    out: &mut [O::Item],
    to: (u32, bool),
    params: Params<'_, C>,
) -> bool {
    let (mut params, (bits, streamed)) = (params, to);
    let (row, size) = (tiling.row.min(x.len()), tiling.run);
    let in_batch = (IN_L1 / size).clamp(1, BATCH) * size;
    let mut finite = true;
    let mut first = 0;
    for (row, out) in x.chunks(row).zip(out.chunks_mut(packed_len(row, bits))) {
        let mut rest = row;
        let mut out = Target::new(out, streamed && [size, row.len()].iter().all(|n| n.is_multiple_of(BLOCK)));
        while !rest.is_empty() {
            // Whole groups, then the short one.
            let size = size.min(rest.len());
            let (x, next) = rest.split_at(in_batch.min(rest.len() / size * size));
            let is_followed = x.len() > Ahead::STRAIGHT.far && next.len() >= x.len();
            let ahead = if is_followed { Ahead::long_group(x.len()) } else { Ahead::STRAIGHT };
            let mut params = params.from(first);
            finite &= store_batch::<C, M>(x, (size, ahead), uniform, &mut params);
            code_batch::<C, M, O>(x, (size, ahead), (uniform, params.as_ref()), &mut out, to);
            first += x.len() / size;
            rest = next;
        }
        out.finish();
    }
    finite
}

/// The parameters of up to [`BATCH`] groups; whether all their numbers were finite.
#[inline(always)]
fn store_batch<C: Real, M: Mode>(
    x: &[C],
    (size, ahead): (usize, Ahead),
    uniform: Uniform,
    params: &mut Params<'_, C>,
) -> bool {
    let mut ends: Ends<C> = [[C::Key::MIN; BATCH]; 2];
    match M::SCHEME {
        Some(Scheme::Symmetric) => find_ends::<C, Symmetric>(x, size, ahead, &mut ends),
        Some(_) => find_ends::<C, Asymmetric>(x, size, ahead, &mut ends),
        None => find_ends::<C, Saturating>(x, size, ahead, &mut ends),
    }
    params_of_ends::<C>(M::scheme(uniform), uniform.bits, &ends, x.len() / size, params)
}

kernel! {
    /// The parameters of `n` groups; whether their ends are finite. A kernel of its own: it is the same for all modes.
    fn params_of_ends<C: Real>(
        scheme: Scheme, bits: u32, ends: &Ends<C>, n: usize, params: &mut Params<'_, C>
    ) -> bool {
        let ranges = ends[0][..n].iter().zip(&ends[1][..n]).map(|(low, &high)| Range::<C>([low.not(), high]));
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
    /// The codes, or their numbers, of such groups, while what will be read after them is fetched.
    fn code_batch<C: Real, M: Mode, O: Make<C>>(
        x: &[C],
        groups: (usize, Ahead),
        how: (Uniform, ParamsRef<'_, C>),
        out: &mut Target<'_, O::Item>,
        to: (u32, bool),
    ) {
        let ((size, ahead), (uniform, params), (bits, streamed)) = (groups, how, to);
        let params = M::of(params);
        let mut divisors = [Divisor::new(C::from_i16(1)); BATCH];
        let mut exact = FMA;
        for (divisor, &scale) in divisors.iter_mut().zip(&params.scale[..x.len() / size]) {
            exact &= Divisor::is_exact(scale);
            *divisor = Divisor::new(scale);
        }
        let out = match out {
            Target::Lines(lines) => {
                return code_lines::<C, M, O>(x, groups, (uniform, params), exact.then_some(&divisors), lines);
            }
            Target::Slice(out) => out.split_off_mut(..packed_len(x.len(), bits)).unwrap_or_default(),
        };
        let (mut block, in_place) = ([O::ANY; IN_L1], bits == 8 && !streamed);
        // Several groups, or parts of a long one.
        let (n, bytes) = ((O::SPAN / size).max(1), packed_len(O::SPAN, bits));
        let each = x.chunks(n * size).zip(out.chunks_mut(packed_len(n * size, bits)));
        for (i, (x, out)) in each.enumerate() {
            for (part, (x, out)) in x.chunks(O::SPAN).zip(out.chunks_mut(bytes)).enumerate() {
                let to = if in_place { &mut *out } else { &mut block[..x.len()] };
                let (size, params) = (size.min(x.len()), (uniform, params.from(i * n)));
                code_span::<C, M, O>(x, (size, ahead, part * O::SPAN), params, exact.then_some(&divisors[i * n..]), to);
                if !in_place {
                    O::put(&block[..x.len()], bits, out);
                }
            }
        }
    }
}

/// The same past the caches, block by block.
#[inline(always)]
fn code_lines<C: Real, M: Mode, O: Make<C>>(
    x: &[C],
    (size, ahead): (usize, Ahead),
    (uniform, params): (Uniform, ParamsRef<'_, C>),
    divisors: Option<&[Divisor<C>; BATCH]>,
    lines: &mut Lines<'_, O::Item>,
) {
    let Some(divisors) = divisors else {
        for (i, x) in x.chunks_exact(size).enumerate() {
            divide_lines::<C, M, O>(x, uniform, params.get(i), lines);
        }
        return;
    };
    let mut own = lines.again();
    for (i, x) in x.chunks_exact(size).enumerate() {
        let multiplier = Multiplier::new::<M>(uniform, params.get(i), divisors[i]);
        multiply_lines::<C, M, O>(x, ahead, &multiplier, &mut own);
    }
    let place = own.place();
    lines.go_on(place);
}

/// The same of so few that they are made in the cache; with divisors that [`Divisor::quotient`] takes, or by division.
#[inline(always)]
fn code_span<C: Real, M: Mode, O: Make<C>>(
    x: &[C],
    (size, ahead, at): (usize, Ahead, usize),
    (uniform, params): (Uniform, ParamsRef<'_, C>),
    divisors: Option<&[Divisor<C>]>,
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
        let (x, out) = (x.as_chunks::<BLOCK>().0, out.as_chunks_mut::<BLOCK>().0);
        let n = x.len();
        let (out, divisors, params) = (&mut out[..n], &divisors[..n], params.first(n));
        for i in 0..n {
            ahead.fetch(&x[i], at);
            out[i] = Multiplier::new::<M>(uniform, params.get(i), divisors[i]).block::<M, O>(&x[i]);
        }
        return;
    }
    for (i, (x, out)) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)).enumerate() {
        let multiplier = Multiplier::new::<M>(uniform, params.get(i), divisors[i]);
        multiply::<C, M, O>(x, (ahead, at), multiplier, out);
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

#[cfg(test)]
mod tests {
    use super::super::{fake_quantize, fake_quantize_given, quantize};
    use super::*;
    use crate::kernels::codes::{Granularity, Policy, Spec};
    use crate::kernels::lines::STREAMED;

    /// As many as are written past the caches, and some more.
    const N: usize = STREAMED + 32_768;

    /// Quantize and dequantize with the scales of the plain formula, found on the way or given.
    fn numbers(x: &[f32], uniform: Uniform, spec: Spec, is_given: bool) -> Vec<u32> {
        // Wherever it begins in a line.
        let mut out = vec![0.0; x.len() + 3];
        let (out, parts) = (&mut out[3..], spec.scales(x.len()));
        if is_given {
            let points = if uniform.scheme == Scheme::Asymmetric { parts } else { 0 };
            let (mut scale, mut zero_point) = (vec![0.0; parts], vec![0; points]);
            let mut codes = vec![0; packed_len(x.len(), uniform.bits)];
            let params = Params { scale: &mut scale, zero_point: &mut zero_point, offset: &mut [] };
            quantize(x, uniform, spec, Policy::Raise, &mut codes, params, 2).expect("finite");
            let params = ParamsRef { scale: &scale, zero_point: &zero_point, offset: &[] };
            fake_quantize_given(x, uniform, spec, out, params, 2);
        } else {
            fake_quantize(x, uniform, spec, Policy::Raise, out, 2).expect("finite");
        }
        out.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn test_numbers_that_go_past_the_caches_are_those_of_parts_that_do_not() {
        let x: Vec<f32> = (0..N as u32).map(|i| i.wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.37).collect();
        // Of some groups the scale is too small for fused steps.
        let small: Vec<f32> = x.iter().enumerate().map(|(i, x)| if i >> 7 & 3 == 1 { x * 1e-33 } else { *x }).collect();
        let cases = [
            (&x, 4, Scheme::Symmetric, 32, 4096),
            (&small, 4, Scheme::Symmetric, 32, 4096),
            (&x, 8, Scheme::Symmetric, 4096, 4096),
            // Longer than what is asked for ahead; a short one at the end of a row.
            (&x, 8, Scheme::Symmetric, 24_000, 32_768),
            (&small, 4, Scheme::Asymmetric, 128, 4096),
        ];
        for ((x, bits, scheme, size, cols), is_given) in
            cases.into_iter().flat_map(|case| [(case, false), (case, true)])
        {
            let x = &x[..N / cols * cols];
            let uniform = Uniform { bits, scheme, offset_binary: false, signed: false };
            let spec = Spec { granularity: Granularity::Group { size }, cols };
            let whole = numbers(x, uniform, spec, is_given);
            let mut parts = x.chunks(N / 2 / cols * cols).flat_map(|x| numbers(x, uniform, spec, is_given));
            assert!(whole.into_iter().all(|bits| parts.next() == Some(bits)), "{bits} {scheme:?} {size} {is_given}");
        }
    }
}

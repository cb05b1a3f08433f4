//! Codes to numbers.

use super::code;
use super::tiling::Runs;
use super::{BLOCK, ParamsRef, Scheme, Uniform};
use crate::isa::kernel;
use crate::kernels::lines::Target;
use crate::real::Real;

/// How stored codes become numbers: (code ^ flip) - zero.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coding<C> {
    flip: u8,
    zero: i16,
    /// 2 where the product with the scale may overflow before the offset brings it back (minmax over more than the
    /// largest number): then scale and offset are halved. Else 1.
    double: C,
    scale: C,
    offset: C,
    /// The last code may lie half a scale outside the range: next to the largest number it must not become infinite
    /// (unless the scale is).
    limit: C,
}

impl<C: Real> Coding<C> {
    /// Whether no number comes near the largest: 255 scales and the offset.
    #[inline(always)]
    fn is_small(&self) -> bool {
        let large = C::DIVISORS[1];
        self.scale.abs() <= large && self.offset.abs() <= large
    }
}

impl Uniform {
    #[inline(always)]
    pub(super) fn coding<C: Real>(self, (scale, zero_point, offset): (C, u8, C)) -> Coding<C> {
        let half = 1u8 << (self.bits - 1);
        let (flip, zero) = match (self.scheme, self.offset_binary) {
            (Scheme::Symmetric, false) => (half, half as i16),
            (Scheme::Symmetric, true) => (0, half as i16),
            (Scheme::Asymmetric, _) if self.signed => (half, (zero_point as i8) as i16 + half as i16),
            _ => (0, zero_point as i16),
        };
        let factor = code::half(self.scheme, self.bits, scale);
        let infinity = C::from_f64(f64::INFINITY);
        let limit = if scale < infinity { C::MAX } else { infinity };
        Coding { flip, zero, double: C::from_i16(1) / factor, scale: scale * factor, offset: offset * factor, limit }
    }
}

#[inline(always)]
pub(super) fn number<C: Real>(code: u8, coding: Coding<C>) -> C {
    let quantized = C::from_i16((code ^ coding.flip) as i16 - coding.zero);
    let x = (quantized * coding.scale + coding.offset) * coding.double;
    let x = if x > coding.limit { coding.limit } else { x };
    let lowest = C::from_i16(0) - coding.limit;
    if x < lowest { lowest } else { x }
}

/// The same where the scale is so small that no product comes near the largest number.
#[inline(always)]
fn small_number<C: Real>(code: u8, coding: Coding<C>) -> C {
    let quantized = C::from_i16((code ^ coding.flip) as i16 - coding.zero);
    quantized * coding.scale + coding.offset
}

/// Codes that a vector holds as numbers.
const FEW: usize = 16;
/// Runs shorter than this go by [`FEW`]: the compiler's loop takes so many at a time, and its rest by 8. (Longer runs in
/// blocks of 32 take three times as long in the cache.)
pub(super) const SHORT: usize = 64;

/// The numbers of codes that share a part.
#[inline(always)]
fn run<C: Real>(codes: &[u8], coding: Coding<C>, out: &mut [C]) {
    if coding.is_small() {
        let (mut codes, mut out) = (codes, out);
        if codes.len() < SHORT {
            let (blocks, rest) = codes.as_chunks::<FEW>();
            let (out_blocks, out_rest) = out.as_chunks_mut::<FEW>();
            for (out, codes) in out_blocks.iter_mut().zip(blocks) {
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = small_number(code, coding);
                }
            }
            (codes, out) = (rest, out_rest);
        }
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = small_number(code, coding);
        }
    } else {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = number(code, coding);
        }
    }
}

/// The numbers of a few codes that share a part. Compiled for the baseline: few groups need it.
#[inline(never)]
pub(super) fn numbers<C: Real>(codes: &[u8], uniform: Uniform, stored: (C, u8, C), out: &mut [C]) {
    let coding = uniform.coding(stored);
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = number(code, coding);
    }
}

/// The numbers of codes with a part each, from the first of `params` on. What the scheme lacks is made up of zeros for
/// a block at a time: a loop that asks for it at each element is not vectorised (13 times slower).
#[inline(always)]
fn by_element<C: Real>(codes: &[u8], uniform: Uniform, params: ParamsRef<'_, C>, out: &mut [C]) {
    let (blocks, tail) = out.as_chunks_mut::<BLOCK>();
    let (code_blocks, code_tail) = codes.as_chunks::<BLOCK>();
    let scales = params.scale.as_chunks::<BLOCK>().0;
    let zero_points = params.zero_point.as_chunks::<BLOCK>().0;
    let offsets = params.offset.as_chunks::<BLOCK>().0;
    for (i, ((out, codes), scale)) in blocks.iter_mut().zip(code_blocks).zip(scales).enumerate() {
        let zero_point = zero_points.get(i).copied().unwrap_or([0; BLOCK]);
        let offset = offsets.get(i).copied().unwrap_or([C::from_i16(0); BLOCK]);
        for ((((out, &code), &scale), zero_point), offset) in
            out.iter_mut().zip(codes).zip(scale).zip(zero_point).zip(offset)
        {
            *out = number(code, uniform.coding((scale, zero_point, offset)));
        }
    }
    let done = code_blocks.len() * BLOCK;
    for (i, (out, &code)) in tail.iter_mut().zip(code_tail).enumerate() {
        *out = number(code, uniform.coding(params.get(done + i)));
    }
}

kernel! {
    /// The numbers of codes, one a byte; the runs that follow.
    pub(super) fn own_values<C: Real>(
        codes: &[u8],
        runs: Runs,
        uniform: Uniform,
        params: ParamsRef<'_, C>,
        out: &mut [C],
    ) -> Runs {
        let (mut runs, mut at) = (runs, 0);
        while at < out.len() {
            let (part, n) = runs.next(out.len() - at);
            let (codes, out) = (&codes[at..at + n], &mut out[at..at + n]);
            if runs.is_by_element() {
                by_element(codes, uniform, params.from(part), out);
            } else {
                run(codes, uniform.coding(params.get(part)), out);
            }
            at += n;
        }
        runs
    }
}

/// Groups whose parameters are looked at together.
pub(super) const BATCH: usize = 64;

kernel! {
    /// The numbers of codes, one a byte, whose runs are blocks ([`Runs::are_of`]), past the caches where `streamed`; the runs
    /// that follow. (Of groups of 32, one thread, in the cache: 0.86 of the time of one run after the other.)
    pub(super) fn blocks<C: Real>(
        codes: &[u8],
        runs: Runs,
        uniform: Uniform,
        params: ParamsRef<'_, C>,
        out: &mut [C],
        streamed: bool,
    ) -> Runs {
        let (mut runs, mut codes, mut rest) = (runs, codes, out.len());
        let mut target = Target::new(out, streamed);
        while rest > 0 {
            let (first, len, n) = runs.next_even(rest, BATCH);
            let some = codes.split_off(..n * len).unwrap_or_default();
            rest -= n * len;
            let linear = Linear::new(uniform, params.from(first), n);
            if linear.are_small {
                linear.write::<true>(some, len, &mut target);
            } else {
                linear.write::<false>(some, len, &mut target);
            }
        }
        target.finish();
        runs
    }
}

/// How the codes of groups become numbers: ((code ^ flip) - zero) * scale + offset where `are_small`.
struct Linear<'a, C> {
    flip: u8,
    zero: [i16; BATCH],
    scale: &'a [C],
    offset: [C; BATCH],
    are_small: bool,
    uniform: Uniform,
    params: ParamsRef<'a, C>,
}

impl<'a, C: Real> Linear<'a, C> {
    /// Of `n` groups.
    #[inline(always)]
    fn new(uniform: Uniform, params: ParamsRef<'a, C>, n: usize) -> Self {
        let ParamsRef { scale, zero_point, offset } = params.first(n);
        let of_zero = uniform.coding((C::from_i16(1), 0, C::ZERO));
        let mut linear = Self {
            flip: of_zero.flip,
            zero: [of_zero.zero; BATCH],
            scale,
            offset: [C::ZERO; BATCH],
            are_small: true,
            uniform,
            params,
        };
        for (zero, &zero_point) in linear.zero.iter_mut().zip(zero_point) {
            *zero = uniform.coding((C::from_i16(1), zero_point, C::ZERO)).zero;
        }
        linear.offset[..offset.len()].copy_from_slice(offset);
        for &number in scale.iter().chain(offset) {
            linear.are_small &= number.abs() <= C::DIVISORS[1];
        }
        linear
    }

    /// Write the numbers of groups of `len`.
    #[inline(always)]
    fn write<const SMALL: bool>(&self, codes: &[u8], len: usize, target: &mut Target<'_, C>) {
        let groups = codes.as_chunks::<BLOCK>().0.chunks_exact(len / BLOCK).enumerate();
        match target {
            Target::Lines(lines) => {
                let mut own = lines.again();
                for (group, codes) in groups {
                    for codes in codes {
                        own.push(&self.block::<SMALL>(group, codes));
                    }
                }
                let place = own.place();
                lines.go_on(place);
            }
            Target::Slice(out) => {
                let out = out.split_off_mut(..codes.len()).unwrap_or_default().as_chunks_mut::<BLOCK>().0;
                for ((group, codes), out) in groups.zip(out.chunks_exact_mut(len / BLOCK)) {
                    for (codes, out) in codes.iter().zip(out) {
                        *out = self.block::<SMALL>(group, codes);
                    }
                }
            }
        }
    }

    /// The numbers of a block of a group. (Not a closure: it might not be inlined.)
    #[inline(always)]
    fn block<const SMALL: bool>(&self, group: usize, codes: &[u8; BLOCK]) -> [C; BLOCK] {
        let mut block = [C::ZERO; BLOCK];
        if SMALL {
            let (zero, scale, offset) = (self.zero[group % BATCH], self.scale[group], self.offset[group % BATCH]);
            for (number, &code) in block.iter_mut().zip(codes) {
                *number = C::from_i16((code ^ self.flip) as i16 - zero) * scale + offset;
            }
        } else {
            numbers(codes, self.uniform, self.params.get(group), &mut block);
        }
        block
    }
}

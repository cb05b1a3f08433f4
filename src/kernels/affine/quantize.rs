//! Numbers to codes.

use super::params::{Part, Repeated};
use super::{BLOCK, IN_L1, Params, Source, Target};
use crate::isa::{self, kernel};
use crate::kernels::lines::STREAMED;
use crate::par::{self, CHUNK};
use crate::real::{Divisor, Real};

/// Codes that are made in the cache before they are written past it: each time the processor waits for all of it.
const STREAM_BLOCK: usize = 8192;

/// How far ahead memory is asked for, in elements.
const AHEAD: usize = 2048;

/// Quotients beyond are beyond the limits of every code, whatever its zero point.
const FAR: i32 = 1 << 17;

/// What is infinite, or far outside of the limits, somewhat outside of them.
#[inline(always)]
fn near<C: Real>(x: C, far: C) -> C {
    let x = if x > far { far } else { x };
    let far = C::ZERO - far;
    if x < far { far } else { x }
}

kernel! {
    /// The codes of numbers with one scale. `Divisor::quotient` is exact for these quotients too: its proof holds for
    /// all of which neither they nor their products with the scale leave the normal numbers.
    fn codes<C: Real, K: Target>(both: [&[C]; 2], target: K, part: (C, i32), out: &mut [K::Item]) {
        let [x, ahead] = both;
        let (scale, zero_point) = part;
        let (blocks, tail) = x.as_chunks::<BLOCK>();
        let (out_blocks, out_tail) = out.as_chunks_mut::<BLOCK>();
        if FMA && K::IS_WHOLE && Divisor::is_exact(scale) {
            let (divisor, far) = (Divisor::new(scale), scale.abs() * C::from_i32(FAR));
            let ahead = ahead.as_chunks::<BLOCK>().0;
            for (i, (block, out)) in blocks.iter().zip(out_blocks).enumerate() {
                if let Some(ahead) = ahead.get(i) {
                    isa::prefetch::<true, _>(ahead, 0);
                }
                let mut made = [K::Item::default(); BLOCK];
                for (made, &x) in made.iter_mut().zip(block) {
                    *made = target.code(divisor.quotient(near(x, far)), zero_point);
                }
                *out = made;
            }
            for (out, &x) in out_tail.iter_mut().zip(tail) {
                *out = target.code(divisor.quotient(near(x, far)), zero_point);
            }
            return;
        }
        for (block, out) in blocks.iter().zip(out_blocks) {
            let mut made = [K::Item::default(); BLOCK];
            for (made, &x) in made.iter_mut().zip(block) {
                *made = target.code(x / scale, zero_point);
            }
            *out = made;
        }
        for (out, &x) in out_tail.iter_mut().zip(tail) {
            *out = target.code(x / scale, zero_point);
        }
    }
}

kernel! {
    /// The codes of numbers with a scale each.
    fn own_codes<C: Real, K: Target>(x: &[C], target: K, scale: &[C], zero_point: &[i32], out: &mut [K::Item]) {
        for (((out, &x), &scale), &zero_point) in out.iter_mut().zip(x).zip(scale).zip(zero_point) {
            *out = target.code(x / scale, zero_point);
        }
    }
}

/// The codes of numbers from element `start` on, as many as `out` has room for, of those that are read then.
fn write<C: Real, K: Target>(all: &[C], start: usize, params: &Params<'_, C>, target: K, out: &mut [K::Item]) {
    let (x, ahead) = (&all[..out.len()], all.get(AHEAD..).unwrap_or_default());
    params.each(start, x.len(), |range, part| match part {
        Part::One(scale, zero_point) => {
            let both = [&x[range.clone()], ahead.get(range.start..).unwrap_or_default()];
            codes(both, target, (scale, zero_point), &mut out[range]);
        }
        Part::Own(scale, zero_point) => own_codes(&x[range.clone()], target, scale, zero_point, &mut out[range]),
    });
}

/// Write the codes of all numbers of a source.
pub fn quantize<C: Real, K: Target>(
    source: &dyn Source<C>,
    params: Params<'_, C>,
    target: K,
    out: &mut [K::Item],
    threads: usize,
) {
    let (streamed, repeated) = (out.len() >= STREAMED, params.repeated(out.len()));
    let params = repeated.as_ref().map_or(params, Repeated::params);
    if let (Some(x), false) = (source.direct(), streamed) {
        let pieces: Vec<_> = out.chunks_mut(CHUNK).zip(x.chunks(CHUNK)).enumerate().collect();
        par::for_each(threads, pieces.into_iter(), |(i, (out, x))| write(x, i * CHUNK, &params, target, out));
        return;
    }
    let pieces: Vec<_> = out.chunks_mut(CHUNK).enumerate().collect();
    par::for_each(threads, pieces.into_iter(), |(i, out)| {
        if !streamed {
            return read_and_write(source, i * CHUNK, &params, target, out);
        }
        let mut made = [K::Item::default(); STREAM_BLOCK];
        for (j, out) in out.chunks_mut(STREAM_BLOCK).enumerate() {
            let (start, made) = (i * CHUNK + j * STREAM_BLOCK, &mut made[..out.len()]);
            match source.direct() {
                Some(x) => write(&x[start..], start, &params, target, made),
                None => read_and_write(source, start, &params, target, made),
            }
            isa::stream(made, out);
        }
    });
}

/// The codes of numbers that are first read, block by block.
fn read_and_write<C: Real, K: Target>(
    source: &dyn Source<C>,
    start: usize,
    params: &Params<'_, C>,
    target: K,
    out: &mut [K::Item],
) {
    let mut block = [C::ZERO; IN_L1];
    for (i, out) in out.chunks_mut(IN_L1).enumerate() {
        let block = &mut block[..out.len()];
        source.read(start + i * IN_L1, block);
        write(block, start + i * IN_L1, params, target, out);
    }
}

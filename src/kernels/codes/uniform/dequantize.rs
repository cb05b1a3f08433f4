//! Dequantize: straight from packed codes to any float.

use super::super::Spec;
use super::decode::{SHORT, blocks, own_values};
use super::groups::IN_L1;
use super::tiling::Runs;
use super::{BLOCK, ParamsRef, Uniform, lookup};
use crate::isa;
use crate::kernels::number::store;
use crate::kernels::pack::{match_width, packed_len, unpack_chunk};
use crate::par;
use crate::real::{Element, Real};

/// Elements that are made in the L1 cache before they are written past it.
const STREAM_BLOCK: usize = 2048;

/// The numbers of a few codes, one a byte, which stay in the cache; the runs that follow.
pub(super) fn values<C: Real, O: Element>(
    codes: &[u8],
    runs: Runs,
    uniform: Uniform,
    params: ParamsRef<'_, C>,
    out: &mut [O],
) -> Runs {
    // The parameters of long runs are seldom looked at.
    let in_blocks = out.len().is_multiple_of(BLOCK) && runs.are_of(BLOCK) && runs.length() < SHORT;
    if in_blocks {
        made(codes, runs, params, out, |codes, runs, params, out| blocks(codes, runs, uniform, params, out, false))
    } else {
        one_by_one(codes, runs, uniform, params, out)
    }
}

/// The same of any.
fn one_by_one<C: Real, O: Element>(
    codes: &[u8],
    runs: Runs,
    uniform: Uniform,
    params: ParamsRef<'_, C>,
    out: &mut [O],
) -> Runs {
    made(codes, runs, params, out, |codes, runs, params, out| own_values(codes, runs, uniform, params, out))
}

/// The numbers that `own` makes of codes; of another type than they are computed in by way of the cache.
fn made<C: Real, O: Element>(
    codes: &[u8],
    runs: Runs,
    params: ParamsRef<'_, C>,
    out: &mut [O],
    own: impl Fn(&[u8], Runs, ParamsRef<'_, C>, &mut [C]) -> Runs,
) -> Runs {
    if let Some(out) = C::own_mut(out) {
        return own(codes, runs, params, out);
    }
    let (mut runs, mut buffer) = (runs, [C::ZERO; IN_L1]);
    for (codes, out) in codes.chunks(IN_L1).zip(out.chunks_mut(IN_L1)) {
        let part = &mut buffer[..out.len()];
        runs = own(codes, runs, params, part);
        store(part, out);
    }
    runs
}

/// The numbers of codes, one a byte, to where `streamed` says. (Through the cache run after run: in blocks groups of 32 of 8 bits
/// take 0.82 of the time in the cache, but 1.4 to 1.6 where 16 M numbers are written.)
pub(super) fn write_values<C: Real, O: Element>(
    codes: &[u8],
    runs: Runs,
    uniform: Uniform,
    params: ParamsRef<'_, C>,
    out: &mut [O],
    streamed: bool,
) {
    if !streamed {
        one_by_one(codes, runs, uniform, params, out);
        return;
    }
    let in_blocks = out.len().is_multiple_of(BLOCK) && runs.are_of(BLOCK);
    if let (true, Some(out)) = (in_blocks, C::own_mut(out)) {
        blocks(codes, runs, uniform, params, out, true);
        return;
    }
    let mut block = [O::store_f64(0.0); STREAM_BLOCK];
    let mut runs = runs;
    for (codes, out) in codes.chunks(STREAM_BLOCK).zip(out.chunks_mut(STREAM_BLOCK)) {
        let block = &mut block[..out.len()];
        runs = one_by_one(codes, runs, uniform, params, block);
        isa::stream(block, out);
    }
}

/// Dequantize packed rows into `out` (whole rows of `spec.cols`).
pub fn dequantize<C: Real, O: Element>(
    codes: &[u8],
    uniform: Uniform,
    spec: Spec,
    params: ParamsRef<'_, C>,
    out: &mut [O],
    threads: usize,
) {
    if out.is_empty() {
        return;
    }
    let tiling = uniform.tiling(spec, out.len());
    let (mut out, mut codes) = (out, codes);
    let items: Vec<_> = tiling
        .pieces(false)
        .map(|piece| (piece, codes.split_off(..piece.bytes), out.split_off_mut(..piece.len)))
        .map(|(piece, codes, out)| (piece, codes.unwrap_or_default(), out.unwrap_or_default()))
        .collect();
    par::for_each(threads, items.into_iter(), |(piece, packed, out)| {
        let runs = tiling.runs_at(piece.start);
        if lookup::values(packed, runs, uniform, params, out, tiling.is_streamed()) {
            return;
        }
        if uniform.bits == 8 {
            return write_values(packed, runs, uniform, params, out, tiling.is_streamed());
        }
        let row = tiling.row.min(out.len());
        par::with_scratch(out.len(), |codes| {
            for (codes, packed) in codes.chunks_mut(row).zip(packed.chunks(packed_len(row, uniform.bits))) {
                match_width!(uniform.bits, W => unpack_chunk::<W>(packed, codes, 0));
            }
            write_values(codes, runs, uniform, params, out, tiling.is_streamed());
        });
    });
}

#[cfg(test)]
mod tests {
    use super::super::super::Granularity;
    use super::super::{Scheme, decode};
    use super::*;
    use crate::isa::Isa;

    /// The numbers one by one.
    fn plain<C: Real>(codes: &[u8], uniform: Uniform, size: usize, params: ParamsRef<'_, C>) -> Vec<u64> {
        let of_part = |(part, codes): (usize, &[u8])| {
            let coding = uniform.coding(params.get(part));
            codes.iter().map(|&code| decode::number(code, coding).to_bits64()).collect::<Vec<_>>()
        };
        codes.chunks(size).enumerate().flat_map(of_part).collect()
    }

    fn check<C: Real>(uniform: Uniform, size: usize) {
        let (bits, parts) = (uniform.bits, 150);
        let n = parts * size;
        let packed: Vec<u8> =
            (0..packed_len(n, bits) as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut codes = vec![0; n];
        match_width!(bits, W => unpack_chunk::<W>(&packed, &mut codes, 0));
        let some = |i: usize| C::from_f64(((i * 37 % 101) as f64 - 50.0) * 0.013);
        let (mut scale, mut offset): (Vec<C>, Vec<C>) = (0..parts).map(|i| (some(i), some(i + 7))).unzip();
        let zero_point: Vec<u8> = (0..parts).map(|i| (i % (1 << bits)) as u8).collect();
        // Of the last batch of groups all are above 0.
        for scale in &mut scale[128..] {
            *scale = scale.abs() + C::from_f64(0.001);
        }
        for odd in [0.0, f64::INFINITY, f64::NAN] {
            // Of one batch of groups: no product comes near the largest number in the others.
            scale[70] = if odd == 0.0 { C::MAX } else { C::from_f64(odd) };
            offset[80] = C::from_f64(-odd);
            let (zero_point, offset): (&[u8], &[C]) = match uniform.scheme {
                Scheme::Symmetric => (&[], &[]),
                Scheme::Asymmetric => (&zero_point, &[]),
                Scheme::MinMax => (&[], &offset),
            };
            let params = ParamsRef { scale: &scale, zero_point, offset };
            let want = plain(&codes, uniform, size, params);
            let spec = Spec { granularity: Granularity::Group { size }, cols: n };
            let is_same = |got: &[C]| {
                let both = |(got, &want): (&C, &u64)| {
                    got.to_bits64() == want || got != got && C::from_bits64(want) != C::from_bits64(want)
                };
                got.iter().zip(&want).all(both)
            };
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                isa::set(isa);
                let mut out = vec![C::ZERO; n + 1];
                dequantize(&packed, uniform, spec, params, &mut out[1..], 2);
                assert!(is_same(&out[1..]), "{uniform:?} {size} {odd} {isa:?}");
                // Past the caches.
                let mut out = vec![C::ZERO; n + 1];
                let runs = uniform.tiling(spec, n).runs_at(0);
                if !lookup::values(&packed, runs, uniform, params, &mut out[1..], true) {
                    write_values(&codes, runs, uniform, params, &mut out[1..], true);
                }
                isa::fence();
                assert!(is_same(&out[1..]), "{uniform:?} {size} {odd} {isa:?} streamed");
                // And those of a few rows, or of a product's.
                let mut out = vec![C::ZERO; n + 1];
                values(&codes, runs, uniform, params, &mut out[1..]);
                assert!(is_same(&out[1..]), "{uniform:?} {size} {odd} {isa:?} by values");
            }
        }
    }

    #[test]
    fn test_numbers_are_those_of_each_code_alone_for_every_instruction_set_and_group() {
        for bits in [8, 4, 2] {
            for scheme in [Scheme::Symmetric, Scheme::Asymmetric, Scheme::MinMax] {
                for (size, signed) in [(32, false), (32, true), (96, true), (20, false), (8, true)] {
                    let uniform = Uniform { bits, scheme, offset_binary: signed, signed };
                    check::<f32>(uniform, size);
                    check::<f64>(uniform, size);
                }
            }
        }
    }

    #[test]
    fn test_rows_that_end_within_a_byte_have_no_number_of_their_padding() {
        let (rows, cols, scale) = (64, 33, [0.37f32]);
        let params = ParamsRef { scale: &scale, zero_point: &[], offset: &[] };
        let spec = Spec { granularity: Granularity::Whole, cols };
        for bits in [4, 2] {
            let uniform = Uniform { bits, scheme: Scheme::Symmetric, offset_binary: false, signed: false };
            let packed: Vec<u8> = (0..rows * packed_len(cols, bits)).map(|i| (i * 37 + i / 7) as u8).collect();
            let mut codes = vec![0; rows * cols];
            for (codes, packed) in codes.chunks_mut(cols).zip(packed.chunks(packed_len(cols, bits))) {
                match_width!(bits, W => unpack_chunk::<W>(packed, codes, 0));
            }
            let want = plain(&codes, uniform, rows * cols, params);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                isa::set(isa);
                let mut out = vec![0.0f32; rows * cols];
                dequantize(&packed, uniform, spec, params, &mut out, 2);
                assert!(out.iter().zip(&want).all(|(got, &want)| got.to_bits64() == want), "{bits} {isa:?}");
            }
        }
    }
}

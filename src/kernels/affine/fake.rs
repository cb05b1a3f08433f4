//! Quantize and dequantize at once.

use super::groups::{All, Finite, range};
use super::quantize::{NonFinite, dimensions, part_params};
use super::{Granularity, Param, Scheme, Spec};
use crate::isa::kernel;
use crate::par::{self, CHUNK};
use crate::real::Element;

kernel! {
    fn fake_chunk<T: Element>(x: &[T], param: &Param<T::Compute>, signed: bool, out: &mut [T]) {
        for (out, v) in out.iter_mut().zip(x) {
            *out = T::store(param.fake(v.load(), signed));
        }
    }
}
/// Quantize and dequantize without storing codes. With an error, `out` may hold part of the answer only where a
/// group was not finite; the caller looks first.
pub fn fake_quantize<T: Element>(
    x: &[T],
    spec: Spec,
    saturate: bool,
    out: &mut [T],
    threads: usize,
) -> Result<(), NonFinite> {
    if x.is_empty() {
        return Ok(());
    }
    let signed = spec.scheme == Scheme::Symmetric;
    if let Granularity::Group { size } = spec.granularity {
        let cols = spec.cols;
        let rows = (CHUNK / cols).max(1);
        let finite = par::map(threads, x.chunks(rows * cols).zip(out.chunks_mut(rows * cols)), |(x, out)| {
            let mut finite = true;
            for (row, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
                for (group, out) in row.chunks(size).zip(out.chunks_mut(size)) {
                    let range = if saturate {
                        range::<T, Finite>(group, spec.scheme)
                    } else {
                        range::<T, All>(group, spec.scheme)
                    };
                    finite &= !range.is_nonfinite();
                    fake_chunk(group, &Param::new(spec.scheme, spec.bits, range), signed, out);
                }
            }
            finite
        });
        return if finite.into_iter().all(|finite| finite) { Ok(()) } else { Err(NonFinite) };
    }
    let params = part_params(x, spec, saturate, threads)?;
    let (_, channels, inner) = dimensions(spec, x.len());
    let piece = inner.min(CHUNK);
    if inner >= CHUNK {
        for (i, (x, out)) in x.chunks(inner).zip(out.chunks_mut(inner)).enumerate() {
            par::for_each(threads, x.chunks(piece).zip(out.chunks_mut(piece)), |(x, out)| {
                fake_chunk(x, &params[i % channels], signed, out);
            });
        }
    } else {
        let runs = CHUNK / inner;
        let pieces = x.chunks(runs * inner).zip(out.chunks_mut(runs * inner)).enumerate();
        par::for_each(threads, pieces, |(p, (x, out))| {
            for (i, (x, out)) in x.chunks(inner).zip(out.chunks_mut(inner)).enumerate() {
                fake_chunk(x, &params[(p * runs + i) % channels], signed, out);
            }
        });
    }
    Ok(())
}

//! Numbers to codes, and to codes and back at once, for every format of blocks.

use super::floats::{are_finite, is_finite, ranges, sanitize};
use super::granularity::{Piece, cut, cut_shared, merged};
use super::largest::absmax;
use super::{BlockFormat, Floats, Granularity, NonFinite, Parts, PartsRef, Policy, Rows, Scales, ScalesMut, Spec};
use crate::kernels::reduce;
use crate::par::{self, CHUNK};

/// Elements that are looked at, then coded, while they are in the L1 cache.
const BATCH: usize = 1 << 12;

/// Rows of up to so many elements with a scale each are looked at and coded one after the other.
const LONGEST_ROW: usize = 1 << 17;

/// What the codes are made for.
pub(super) enum Out<'a, T> {
    /// To be kept.
    Codes(&'a mut [u8]),
    /// To be turned back into numbers.
    Values(&'a mut [T]),
}

impl<'a, T> Out<'a, T> {
    /// Cut off a piece of so many elements and bytes of codes.
    pub(super) fn split_off(&mut self, elements: usize, bytes: usize) -> Out<'a, T> {
        match self {
            Self::Codes(codes) => Out::Codes(codes.split_off_mut(..bytes).unwrap_or_default()),
            Self::Values(values) => Out::Values(values.split_off_mut(..elements).unwrap_or_default()),
        }
    }
}

/// What one piece of work needs besides.
#[derive(Default)]
pub(super) struct Scratch {
    /// Numbers as float32, and the same without what is not finite.
    floats: Vec<f32>,
    finite: Vec<f32>,
    absmax: Vec<f32>,
    float_scales: Vec<f32>,
    byte_scales: Vec<u8>,
    codes: Vec<u8>,
    numbers: Vec<f32>,
}

/// One call: the format, and what holds for the whole array.
#[derive(Clone, Copy)]
pub(super) struct Call<'f> {
    format: &'f dyn BlockFormat,
    saturate: bool,
    global: f32,
    pub(super) threads: usize,
}

impl Call<'_> {
    /// Make codes, or numbers again, of numbers whose scales are stored.
    fn finish<T: Floats>(
        &self,
        x: &[f32],
        rows: Rows,
        scale: Scales<'_>,
        out: Out<'_, T>,
        codes: &mut Vec<u8>,
        numbers: &mut Vec<f32>,
    ) {
        match out {
            Out::Codes(codes) => self.format.encode(x, rows, scale, self.global, codes),
            Out::Values(out) => {
                let bytes = Piece { elements: 0..x.len(), rows, scales: 0..0 }.bytes(self.format.bits());
                codes.resize(bytes.max(codes.len()), 0);
                let codes = &mut codes[..bytes];
                self.format.encode(x, rows, scale, self.global, codes);
                let parts = PartsRef { codes, scale, global: self.global };
                T::write(out, numbers, |out, _| self.format.decode(parts, rows, out, false));
            }
        }
    }

    /// Find the scales of groups and code them, while they are in the cache; whether all was finite.
    pub(super) fn groups<T: Floats>(
        &self,
        x: &[T],
        rows: Rows,
        mut out: Out<'_, T>,
        mut scale: Option<ScalesMut<'_>>,
        scratch: &mut Scratch,
    ) -> bool {
        let Scratch { floats, finite, absmax: largest, float_scales, byte_scales, codes, numbers } = scratch;
        for batch in cut(x.len(), rows, BATCH) {
            let x = &x[batch.elements.clone()];
            let count = batch.scales.len();
            largest.resize(count.max(largest.len()), 0.0);
            let largest = &mut largest[..count];
            let mut numbers_in = T::floats(x, floats);
            absmax(numbers_in, batch.rows, largest);
            if !are_finite(largest) {
                if !self.saturate {
                    return false;
                }
                sanitize(x, finite, floats);
                absmax(&finite[..x.len()], batch.rows, largest);
                numbers_in = &floats[..x.len()];
            }
            let mut stored = match &mut scale {
                Some(scale) => scale.split_off(count),
                None if self.format.has_float_scales() => {
                    float_scales.resize(count.max(float_scales.len()), 0.0);
                    ScalesMut::Floats(&mut float_scales[..count])
                }
                None => {
                    byte_scales.resize(count.max(byte_scales.len()), 0);
                    ScalesMut::Bytes(&mut byte_scales[..count])
                }
            };
            self.format.store(largest, self.global, stored.again());
            let out = out.split_off(x.len(), batch.bytes(self.format.bits()));
            self.finish(numbers_in, batch.rows, stored.as_ref(), out, codes, numbers);
        }
        true
    }

    /// Groups of rows, with a scale each.
    fn local<T: Floats>(
        &self,
        x: &[T],
        rows: Rows,
        mut out: Out<'_, T>,
        mut scale: Option<ScalesMut<'_>>,
    ) -> Result<(), NonFinite> {
        let rows = merged(x.len(), rows, self.format.bits());
        let items: Vec<_> = cut(x.len(), rows, CHUNK)
            .map(|piece| {
                let out = out.split_off(piece.elements.len(), piece.bytes(self.format.bits()));
                let scale = scale.as_mut().map(|scale| scale.split_off(piece.scales.len()));
                (piece, out, scale)
            })
            .collect();
        let finite = par::map(self.threads, items.into_iter(), |(piece, out, scale)| {
            self.groups(&x[piece.elements], piece.rows, out, scale, &mut Scratch::default())
        });
        if finite.into_iter().all(|finite| finite) { Ok(()) } else { Err(NonFinite) }
    }

    /// Scales for the whole array, or for the indices of an axis: the ranges first, in a pass over memory of their own.
    fn shared<T: Floats>(
        &self,
        x: &[T],
        granularity: Granularity,
        mut out: Out<'_, T>,
        scale: Option<ScalesMut<'_>>,
    ) -> Result<(), NonFinite> {
        let (largest, finite) = largest_finite(x, granularity, self.saturate, self.threads)?;
        let (mut floats, mut bytes) = (vec![0.0; largest.len()], vec![0; largest.len()]);
        let own =
            if self.format.has_float_scales() { ScalesMut::Floats(&mut floats) } else { ScalesMut::Bytes(&mut bytes) };
        let mut scale = scale.unwrap_or(own);
        self.format.store(&largest, self.global, scale.again());
        let scale = scale.as_ref();
        let items: Vec<_> = cut_shared(x.len(), granularity, CHUNK)
            .into_iter()
            .map(|piece| {
                let out = out.split_off(piece.elements.len(), piece.bytes(self.format.bits()));
                (piece, out)
            })
            .collect();
        par::for_each(self.threads, items.into_iter(), |(piece, mut out)| {
            let Scratch { mut floats, finite: mut unused, mut codes, mut numbers, .. } = Scratch::default();
            let (period, row_bytes) = (piece.period(), piece.bytes(self.format.bits()));
            let bytes = row_bytes / (piece.elements.len() / period);
            let scale = scale.part(piece.scales.start, piece.scales.len());
            for x in x[piece.elements.clone()].chunks(period) {
                let numbers_in = if finite {
                    T::floats(x, &mut floats)
                } else {
                    sanitize(x, &mut unused, &mut floats);
                    &floats[..x.len()]
                };
                self.finish(numbers_in, piece.rows, scale, out.split_off(x.len(), bytes), &mut codes, &mut numbers);
            }
        });
        Ok(())
    }

    /// Choose how the array is cut.
    fn run<T: Floats>(
        &self,
        x: &[T],
        spec: Spec,
        out: Out<'_, T>,
        scale: Option<ScalesMut<'_>>,
    ) -> Result<(), NonFinite> {
        match spec.granularity {
            Granularity::Group { size } => self.local(x, Rows { row: spec.cols, size }, out, scale),
            Granularity::Channel { outer: 1, inner, .. } if inner > 1 && inner <= LONGEST_ROW => {
                self.local(x, Rows { row: inner, size: inner }, out, scale)
            }
            Granularity::Tile { height, rows, cols } => self.tiles(x, [height, spec.cols], [rows, cols], out, scale),
            _ => self.shared(x, spec.granularity, out, scale),
        }
    }
}

/// Quantize `x` (whole rows of `spec.cols`). `absmax`: at least the largest magnitude of an array that `x` is a part of,
/// 0 where it is whole.
pub fn quantize<T: Floats>(
    format: &dyn BlockFormat,
    x: &[T],
    spec: Spec,
    policy: Policy,
    absmax: f32,
    parts: Parts<'_>,
    threads: usize,
) -> Result<(), NonFinite> {
    let Parts { codes, mut scale, global } = parts;
    let call = prepare(format, x, policy, absmax, threads)?;
    *global = call.global;
    if x.is_empty() {
        // Parts that hold nothing: as of zeros.
        format.store(&vec![0.0; spec.scales(0)], call.global, scale.again());
        return Ok(());
    }
    call.run(x, spec, Out::Codes(codes), Some(scale))
}

/// Quantize and dequantize without storing codes.
pub fn fake_quantize<T: Floats>(
    format: &dyn BlockFormat,
    x: &[T],
    spec: Spec,
    policy: Policy,
    out: &mut [T],
    threads: usize,
) -> Result<(), NonFinite> {
    let call = prepare(format, x, policy, 0.0, threads)?;
    if x.is_empty() { Ok(()) } else { call.run(x, spec, Out::Values(out), None) }
}

/// What holds for the whole array, and the check before the first write.
///
/// (To keep the largest magnitudes of groups, where they are found on the way, took longer than to find them again: a byte is
/// written and read for each four of the numbers.)
fn prepare<'f, T: Floats>(
    format: &'f dyn BlockFormat,
    x: &[T],
    policy: Policy,
    absmax: f32,
    threads: usize,
) -> Result<Call<'f>, NonFinite> {
    let mut call = Call { format, saturate: policy == Policy::Saturate, global: 1.0, threads };
    if format.has_global() {
        let (largest, _) = largest_finite(x, Granularity::Whole, call.saturate, threads)?;
        call.global = format.global(largest[0].max(absmax));
    } else if policy == Policy::RaiseFirst && !is_finite(x, threads) {
        return Err(NonFinite);
    }
    Ok(call)
}

/// The largest magnitude of each part, of its finite numbers where not all are; whether all are. An error where they must be.
fn largest_finite<T: Floats>(
    x: &[T],
    granularity: Granularity,
    saturate: bool,
    threads: usize,
) -> Result<(Vec<f32>, bool), NonFinite> {
    let largest = ranges::<T, reduce::MinMax>(x, granularity, threads);
    if are_finite(&largest) {
        return Ok((largest, true));
    }
    if !saturate {
        return Err(NonFinite);
    }
    let largest = ranges::<T, reduce::FiniteMinMax>(x, granularity, threads);
    Ok((largest.into_iter().map(|largest| largest.min(f32::MAX)).collect(), false))
}

//! Numbers to codes, codes to numbers, and both at once, for every format.

use super::blocks::absmax;
use super::granularity::{Piece, cut, cut_shared, merged};
use super::{Format, Granularity, Parts, PartsRef, Rows, Scales, ScalesMut, Spec};
use crate::isa::kernel;
use crate::kernels::affine::{NonFinite, Policy};
use crate::kernels::reduce::{self, Op};
use crate::par::{self, CHUNK};
use crate::real::{Bf16, Element, F16};

/// Elements that are looked at, then coded, while they are in the L1 cache.
const BATCH: usize = 1 << 12;

/// Rows of up to so many elements with a scale each are looked at and coded one after the other.
const LONGEST_ROW: usize = 1 << 17;

/// A float that is coded by way of float32.
pub trait Floats: Element {
    /// As float32, rounded once: themselves, or in `buffer`.
    fn floats<'a>(x: &'a [Self], buffer: &'a mut Vec<f32>) -> &'a [f32];
    /// Have `f` write float32, and round them once.
    fn write(out: &mut [Self], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32]));
}

impl Floats for f32 {
    fn floats<'a>(x: &'a [f32], _buffer: &'a mut Vec<f32>) -> &'a [f32] {
        x
    }
    fn write(out: &mut [f32], _buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32])) {
        f(out);
    }
}

macro_rules! floats {
    ($($t:ty),*) => {$(
        impl Floats for $t {
            fn floats<'a>(x: &'a [$t], buffer: &'a mut Vec<f32>) -> &'a [f32] {
                buffer.resize(x.len().max(buffer.len()), 0.0);
                to_float32(x, &mut buffer[..x.len()]);
                &buffer[..x.len()]
            }
            fn write(out: &mut [$t], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32])) {
                buffer.resize(out.len().max(buffer.len()), 0.0);
                f(&mut buffer[..out.len()]);
                from_float32(buffer, out);
            }
        }
    )*};
}
floats!(f64, F16, Bf16);

kernel! {
    fn to_float32<T: Element>(x: &[T], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = f32::store_f64(x.to_f64());
        }
    }
}
kernel! {
    fn from_float32<T: Element>(x: &[f32], out: &mut [T]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = T::store_f32(x);
        }
    }
}

/// What the codes are made for.
enum Out<'a, T> {
    /// To be kept.
    Codes(&'a mut [u8]),
    /// To be turned back into numbers.
    Values(&'a mut [T]),
}

impl<'a, T> Out<'a, T> {
    /// Cut off a piece of so many elements and bytes of codes.
    fn split_off(&mut self, elements: usize, bytes: usize) -> Out<'a, T> {
        match self {
            Self::Codes(codes) => Out::Codes(codes.split_off_mut(..bytes).unwrap_or_default()),
            Self::Values(values) => Out::Values(values.split_off_mut(..elements).unwrap_or_default()),
        }
    }
}

/// What one piece of work needs besides.
#[derive(Default)]
struct Scratch {
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
struct Call<'f> {
    format: &'f dyn Format,
    saturate: bool,
    global: f32,
    threads: usize,
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
                T::write(out, numbers, |out| self.format.decode(parts, rows, out));
            }
        }
    }

    /// Find the scales of groups and code them, while they are in the cache; whether all was finite.
    fn groups<T: Floats>(
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
            if !largest.iter().all(|largest| *largest < f32::INFINITY) {
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
        let mut largest = ranges::<T, reduce::MinMax>(x, granularity, self.threads);
        if !largest.iter().all(|largest| *largest < f32::INFINITY) {
            if !self.saturate {
                return Err(NonFinite);
            }
            largest = ranges::<T, reduce::FiniteMinMax>(x, granularity, self.threads);
            largest.iter_mut().for_each(|largest| *largest = largest.min(f32::MAX));
        }
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
            let Scratch { mut floats, mut finite, mut codes, mut numbers, .. } = Scratch::default();
            let (period, row_bytes) = (piece.period(), piece.bytes(self.format.bits()));
            let bytes = row_bytes / (piece.elements.len() / period);
            let scale = scale.part(piece.scales.start, piece.scales.len());
            for x in x[piece.elements.clone()].chunks(period) {
                let numbers_in = if self.saturate {
                    sanitize(x, &mut finite, &mut floats);
                    &floats[..x.len()]
                } else {
                    T::floats(x, &mut floats)
                };
                self.finish(numbers_in, piece.rows, scale, out.split_off(x.len(), bytes), &mut codes, &mut numbers);
            }
        });
        Ok(())
    }

    /// Tiles of `[rows, cols]` in matrices of `[height, width]`.
    fn tiles<T: Floats>(
        &self,
        x: &[T],
        [height, width]: [usize; 2],
        [rows, cols]: [usize; 2],
        mut out: Out<'_, T>,
        mut scale: Option<ScalesMut<'_>>,
    ) -> Result<(), NonFinite> {
        let mut items = vec![];
        for matrix in x.chunks(height * width) {
            for band in matrix.chunks(rows.saturating_mul(width)) {
                let scale = scale.as_mut().map(|scale| scale.split_off(width.div_ceil(cols)));
                items.push((band, out.split_off(band.len(), band.len()), scale));
            }
        }
        let finite = par::map(self.threads, items.into_iter(), |(band, mut out, mut scale)| {
            let (mut tile, mut scratch) = (vec![], Scratch::default());
            let mut finite = true;
            for first in (0..width).step_by(cols) {
                let across = cols.min(width - first);
                tile.clear();
                band.chunks(width).for_each(|row| tile.extend_from_slice(&row[first..first + across]));
                let scale = scale.as_mut().map(|scale| scale.split_off(1));
                finite &= self.tile(&tile, [first, across, width], &mut out, scale, &mut scratch);
            }
            finite
        });
        if finite.into_iter().all(|finite| finite) { Ok(()) } else { Err(NonFinite) }
    }

    /// One tile: its rows are `width` apart in what is written, the first at `first`.
    fn tile<T: Floats>(
        &self,
        tile: &[T],
        [first, across, width]: [usize; 3],
        out: &mut Out<'_, T>,
        scale: Option<ScalesMut<'_>>,
        scratch: &mut Scratch,
    ) -> bool {
        let all = Rows { row: tile.len(), size: tile.len() };
        let mut codes = vec![0; tile.len()];
        match out {
            Out::Codes(out) => {
                let finite = self.groups(tile, all, Out::Codes(&mut codes), scale, scratch);
                for (row, codes) in out.chunks_mut(width).zip(codes.chunks(across)) {
                    row[first..first + across].copy_from_slice(codes);
                }
                finite
            }
            Out::Values(out) => {
                let mut values = tile.to_vec();
                let finite = self.groups(tile, all, Out::Values(&mut values), scale, scratch);
                for (row, values) in out.chunks_mut(width).zip(values.chunks(across)) {
                    row[first..first + across].copy_from_slice(values);
                }
                finite
            }
        }
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

/// Without what is not finite: in `finite` 0 in its place, in `floats` 0 for NaN and the largest number for infinities.
fn sanitize<T: Element>(x: &[T], finite: &mut Vec<f32>, floats: &mut Vec<f32>) {
    let limit = f32::MAX as f64;
    finite.resize(x.len().max(finite.len()), 0.0);
    floats.resize(x.len().max(floats.len()), 0.0);
    for ((x, finite), number) in x.iter().zip(finite.iter_mut()).zip(floats.iter_mut()) {
        let wide = x.to_f64();
        *number = if wide.is_nan() { 0.0 } else { wide.clamp(-limit, limit) as f32 };
        *finite = if wide.is_finite() { *number } else { 0.0 };
    }
}

/// The largest magnitude of each part, as float32; what is not finite shows unless `O` leaves it out.
fn ranges<T: Element, O: Op<T, Scalar = T::Key>>(x: &[T], granularity: Granularity, threads: usize) -> Vec<f32> {
    let (outer, channels, inner) = match granularity {
        Granularity::Channel { outer, channels, inner } => (outer, channels, inner),
        _ => (1, 1, x.len()),
    };
    let view = if inner == 1 {
        reduce::View { outer: 1, n: outer, inner: channels }
    } else {
        reduce::View { outer: outer * channels, n: inner, inner: 1 }
    };
    let mut largest = vec![0.0f32; channels];
    for (state, i) in reduce::reduce_axis::<T, O>(x, view, threads).into_iter().zip((0..channels).cycle()) {
        // A range of nothing has its ends the wrong way round.
        if state[0] <= state[1] {
            for key in state {
                let magnitude = T::from_key(key).to_f64().abs() as f32;
                largest[i] = if magnitude > largest[i] || magnitude.is_nan() { magnitude } else { largest[i] };
            }
        }
    }
    largest
}

/// The largest magnitude of all as float32; infinite where something is not finite, unless that is left out.
fn largest<T: Floats>(x: &[T], saturate: bool, threads: usize) -> f32 {
    let of_chunks = par::map(threads, x.chunks(CHUNK), |x| {
        let (mut floats, mut out) = (vec![], [0.0]);
        absmax(T::floats(x, &mut floats), Rows { row: x.len(), size: x.len() }, &mut out);
        if !(out[0] < f32::INFINITY) && saturate {
            let mut finite = vec![];
            sanitize(x, &mut finite, &mut floats);
            absmax(&finite, Rows { row: x.len(), size: x.len() }, &mut out);
        }
        if out[0].is_nan() { f32::INFINITY } else { out[0] }
    });
    of_chunks.into_iter().fold(0.0, f32::max)
}

/// The flat index of the first number that is finite but not as a float32.
pub fn first_beyond_float32<T: Element>(x: &[T]) -> Option<usize> {
    x.iter().position(|x| x.to_f64().is_finite() && (x.to_f64() as f32).is_infinite())
}

/// Quantize `x` (whole rows of `spec.cols`).
pub fn quantize<T: Floats>(
    format: &dyn Format,
    x: &[T],
    spec: Spec,
    policy: Policy,
    parts: Parts<'_>,
    threads: usize,
) -> Result<(), NonFinite> {
    let Parts { codes, mut scale, global } = parts;
    let call = prepare(format, x, policy, threads)?;
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
    format: &dyn Format,
    x: &[T],
    spec: Spec,
    policy: Policy,
    out: &mut [T],
    threads: usize,
) -> Result<(), NonFinite> {
    let call = prepare(format, x, policy, threads)?;
    if x.is_empty() { Ok(()) } else { call.run(x, spec, Out::Values(out), None) }
}

/// What holds for the whole array, and the check before the first write.
fn prepare<'f, T: Floats>(
    format: &'f dyn Format,
    x: &[T],
    policy: Policy,
    threads: usize,
) -> Result<Call<'f>, NonFinite> {
    let saturate = policy == Policy::Saturate;
    let mut global = 1.0;
    if format.has_global() || policy == Policy::RaiseFirst {
        let largest = largest(x, saturate, threads);
        if largest.is_infinite() {
            return Err(NonFinite);
        }
        global = format.global(largest);
    }
    Ok(Call { format, saturate, global, threads })
}

/// Dequantize into `out` (whole rows of `spec.cols`).
pub fn dequantize<O: Floats>(format: &dyn Format, parts: PartsRef<'_>, spec: Spec, out: &mut [O], threads: usize) {
    if out.is_empty() {
        return;
    }
    let (n, bits) = (out.len(), format.bits());
    let pieces: Vec<Piece> = match spec.granularity {
        Granularity::Group { size } => cut(n, merged(n, Rows { row: spec.cols, size }, bits), CHUNK).collect(),
        Granularity::Tile { height, rows, cols } => {
            let across = spec.cols.div_ceil(cols);
            let row = Rows { row: spec.cols, size: cols.min(spec.cols) };
            (0..n / spec.cols)
                .map(|i| {
                    let first = (i / height * height.div_ceil(rows) + i % height / rows) * across;
                    Piece { elements: i * spec.cols..(i + 1) * spec.cols, rows: row, scales: first..first + across }
                })
                .collect()
        }
        granularity => cut_shared(n, granularity, CHUNK),
    };
    let (mut out, mut codes) = (out, parts.codes);
    let items: Vec<_> = pieces
        .into_iter()
        .map(|piece| {
            let codes = codes.split_off(..piece.bytes(bits)).unwrap_or_default();
            let out = out.split_off_mut(..piece.elements.len()).unwrap_or_default();
            (piece, codes, out)
        })
        .collect();
    par::for_each(threads, items.into_iter(), |(piece, codes, out)| {
        let period = piece.period();
        let bytes = codes.len() / (out.len() / period);
        let scale = parts.scale.part(piece.scales.start, piece.scales.len());
        let mut buffer = vec![];
        for (out, codes) in out.chunks_mut(period).zip(codes.chunks(bytes)) {
            let parts = PartsRef { codes, scale, global: parts.global };
            O::write(out, &mut buffer, |out| format.decode(parts, piece.rows, out));
        }
    });
}

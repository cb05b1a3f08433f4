//! Codes to numbers, for every format of blocks.

use super::blocks::decode_blocks;
use super::granularity::{Piece, cut, cut_shared, merged};
use super::uniform::RowsOf;
use super::{BlockFormat, Code, Floats, Granularity, PartsRef, Rows, Spec};
use crate::isa::{self, kernel};
use crate::kernels::lines::STREAMED;
use crate::par::{self, CHUNK};

kernel! {
    /// The numbers of the packed codes of one group.
    pub fn decode_group<K: Code>(codes: &[u8], scale: f32, out: &mut [f32]) {
        decode_blocks::<K>(isa::current(), codes, |_| [scale; 2], out);
    }
}

/// Dequantize into `out` (whole rows of `spec.cols`).
pub fn dequantize<O: Floats>(format: &dyn BlockFormat, parts: PartsRef<'_>, spec: Spec, out: &mut [O], threads: usize) {
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
            O::write(out, &mut buffer, |out, is_own| format.decode(parts, piece.rows, out, is_own && n >= STREAMED));
        }
    });
}

/// How one row of the first axis of an array of `n` elements lies, and its scales.
fn row_of(spec: Spec, n: usize, height: usize, row: usize) -> (Spec, std::ops::Range<usize>) {
    let (scales, width) = (spec.scales(n), n / height);
    let own = scales / height;
    let (granularity, scales) = match spec.granularity {
        Granularity::Channel { outer: 1, channels, inner } if channels == height && inner == width => {
            (Granularity::Whole, row..row + 1)
        }
        Granularity::Channel { outer, channels, inner } => {
            (Granularity::Channel { outer: outer / height, channels, inner }, 0..scales)
        }
        // A matrix: the row is part of a row of tiles.
        Granularity::Tile { height: lines, rows, cols } if lines == height && width == spec.cols => {
            let across = spec.cols.div_ceil(cols);
            (Granularity::Tile { height: 1, rows: 1, cols }, row / rows * across..(row / rows + 1) * across)
        }
        Granularity::Whole => (Granularity::Whole, 0..1),
        granularity => (granularity, row * own..(row + 1) * own),
    };
    (Spec { granularity, ..spec }, scales)
}

/// Dequantize rows of the first axis, each wherever it lies.
pub fn dequantize_rows<O: Floats>(
    format: &dyn BlockFormat,
    parts: PartsRef<'_>,
    spec: Spec,
    of: RowsOf<'_>,
    out: &mut [O],
    threads: usize,
) {
    if out.is_empty() {
        return;
    }
    let bytes = parts.codes.len() / of.height;
    let together = (CHUNK / of.width).max(1);
    let items: Vec<_> = of.rows.chunks(together).zip(out.chunks_mut(together * of.width)).collect();
    par::for_each(threads, items.into_iter(), |(rows, out)| {
        for (&row, out) in rows.iter().zip(out.chunks_mut(of.width)) {
            let (spec, scales) = row_of(spec, of.height * of.width, of.height, row);
            let codes = &parts.codes[row * bytes..][..bytes];
            let scale = parts.scale.part(scales.start, scales.len());
            dequantize(format, PartsRef { codes, scale, global: parts.global }, spec, out, 1);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::{Coding, FORMATS, Parts, Policy, Scales, ScalesMut, Sizes, quantize};
    use super::*;

    #[test]
    fn test_blocks_that_go_past_the_caches_are_those_of_parts_that_do_not() {
        const COLS: usize = 4096;
        let n = STREAMED + COLS;
        let x: Vec<f32> = (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.37).collect();
        let cases = FORMATS.iter().flat_map(|format| [64, COLS].map(|size| (format, size)));
        for (format, size) in cases {
            let Coding::Blocks(blocks) = format.coding else { continue };
            if size == COLS && format.sizes != Sizes::AnyOrTiles {
                continue;
            }
            let size = if let Sizes::Fixed(size) = format.sizes { size } else { size };
            // Groups of a row, or a scale for each row.
            let spec_of = |n| match size {
                COLS => {
                    Spec { granularity: Granularity::Channel { outer: 1, channels: n / COLS, inner: COLS }, cols: COLS }
                }
                _ => Spec { granularity: Granularity::Group { size }, cols: COLS },
            };
            let spec = spec_of(n);
            let bytes = n * blocks.bits() as usize / 8;
            let (mut codes, mut floats, mut small) = (vec![0; bytes], vec![0.0; n / size], vec![0; n / size]);
            let is_float = blocks.has_float_scales();
            let scale = if is_float { ScalesMut::Floats(&mut floats) } else { ScalesMut::Bytes(&mut small) };
            let mut global = 1.0;
            let parts = Parts { codes: &mut codes, scale, global: &mut global };
            quantize(blocks, &x, spec, Policy::Raise, 0.0, parts, 2).expect("finite");
            let scale = if is_float { Scales::Floats(&floats) } else { Scales::Bytes(&small) };
            // Wherever it begins in a line; in two parts.
            let (mut whole, mut halves) = (vec![9.0f32; n + 3], vec![0.0f32; n]);
            dequantize(blocks, PartsRef { codes: &codes, scale, global }, spec, &mut whole[3..], 2);
            let (rows, per_row) = (n / COLS / 2, COLS / size);
            let (first, second) = halves.split_at_mut(rows * COLS);
            let (codes, other) = codes.split_at(rows * COLS * blocks.bits() as usize / 8);
            let scales = [scale.part(0, rows * per_row), scale.part(rows * per_row, n / size - rows * per_row)];
            dequantize(blocks, PartsRef { codes, scale: scales[0], global }, spec_of(rows * COLS), first, 1);
            dequantize(
                blocks,
                PartsRef { codes: other, scale: scales[1], global },
                spec_of(n - rows * COLS),
                second,
                1,
            );
            assert!(whole[3..] == halves && whole[..3] == [9.0; 3], "{} {size}", format.name);
        }
    }
}

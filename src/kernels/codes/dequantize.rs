//! Codes to numbers, for every format of blocks.

use super::granularity::{Piece, cut, cut_shared, merged};
use super::{BlockFormat, Floats, Granularity, PartsRef, Rows, Spec};
use crate::par::{self, CHUNK};

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
            O::write(out, &mut buffer, |out| format.decode(parts, piece.rows, out));
        }
    });
}

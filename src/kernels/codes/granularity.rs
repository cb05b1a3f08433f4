//! Which elements share a scale, and how an array is cut.

use std::ops::Range;

use super::Rows;
use crate::kernels::pack::packed_len;

/// Which elements share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// All.
    Whole,
    /// Those of each index of the middle axis of (outer, channels, inner).
    Channel {
        /// Product of the axes before.
        outer: usize,
        /// Length of the axis.
        channels: usize,
        /// Product of the axes after.
        inner: usize,
    },
    /// So many consecutive ones of a row; fewer at its end.
    Group {
        /// Elements of a group.
        size: usize,
    },
    /// Tiles of the last two axes; smaller at their ends.
    Tile {
        /// Length of the last axis but one.
        height: usize,
        /// Rows of a tile.
        rows: usize,
        /// Columns of a tile.
        cols: usize,
    },
}

/// How an array lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// Which elements share a scale.
    pub granularity: Granularity,
    /// Length of the last axis: a row, whose codes begin on a byte.
    pub cols: usize,
}

impl Spec {
    /// How many scales an array of `n` elements has.
    pub fn scales(&self, n: usize) -> usize {
        let rows = n.checked_div(self.cols).unwrap_or(0);
        match self.granularity {
            Granularity::Whole => 1,
            Granularity::Channel { channels, .. } => channels,
            Granularity::Group { size } => rows * self.cols.div_ceil(size),
            Granularity::Tile { height, rows: tall, cols } => {
                rows.checked_div(height).unwrap_or(0) * height.div_ceil(tall) * self.cols.div_ceil(cols)
            }
        }
    }
}

/// A piece of work: consecutive elements.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Which elements.
    pub elements: Range<usize>,
    /// How they lie.
    pub rows: Rows,
    /// Which scales are theirs: those of all rows one after the other, or the same for each row.
    pub scales: Range<usize>,
}

impl Piece {
    /// Bytes of its codes.
    pub fn bytes(&self, bits: u32) -> usize {
        let n = self.elements.len();
        n / self.rows.row * packed_len(self.rows.row, bits)
    }

    /// Elements after which the first scale comes again.
    pub fn period(&self) -> usize {
        let scales = self.rows.row.div_ceil(self.rows.size);
        if self.scales.len() == scales { self.rows.row } else { self.elements.len() }
    }
}

/// Cut `n` elements in rows of groups, with a scale for each group, into pieces of about `most` elements: rows, or
/// groups of a row.
pub fn cut(n: usize, rows: Rows, most: usize) -> impl Iterator<Item = Piece> {
    let Rows { row, size } = rows;
    let within = (most / size).max(1) * size;
    let together = (most / row).max(1) * row;
    let (mut start, mut scale) = (0, 0);
    std::iter::from_fn(move || {
        if start == n {
            return None;
        }
        let (len, rows) = if row > within {
            let len = within.min(row - start % row);
            (len, Rows { row: len, size: size.min(len) })
        } else {
            (together.min(n - start), rows)
        };
        let scales = len / rows.row * rows.row.div_ceil(rows.size);
        let piece = Piece { elements: start..start + len, rows, scales: scale..scale + scales };
        (start, scale) = (start + len, scale + scales);
        Some(piece)
    })
}

/// Cut an array whose scales are for the whole or for the indices of an axis into pieces of about `most` elements.
pub fn cut_shared(n: usize, granularity: Granularity, most: usize) -> Vec<Piece> {
    let (channels, inner) = match granularity {
        Granularity::Channel { channels, inner, .. } => (channels, inner),
        _ => (1, n),
    };
    let mut pieces = vec![];
    let mut start = 0;
    while start < n {
        let (part, within) = if inner == 1 { (start % channels, 0) } else { (start / inner % channels, start % inner) };
        let piece = if inner == 1 && channels <= most {
            let (len, rows) = ((most / channels * channels).min(n - start), Rows { row: channels, size: 1 });
            Piece { elements: start..start + len, rows, scales: 0..channels }
        } else if inner == 1 {
            let len = most.min(channels - part);
            Piece { elements: start..start + len, rows: Rows { row: len, size: 1 }, scales: part..part + len }
        } else if inner > most || within > 0 {
            let len = most.min(inner - within);
            Piece { elements: start..start + len, rows: Rows { row: len, size: len }, scales: part..part + 1 }
        } else {
            let count = (most / inner).min(channels - part);
            let (len, rows) = (count * inner, Rows { row: inner, size: inner });
            Piece { elements: start..start + len, rows, scales: part..part + count }
        };
        start = piece.elements.end;
        pieces.push(piece);
    }
    pieces
}

/// Whether rows have no padding and groups never end early: then all is one row.
pub fn merged(n: usize, rows: Rows, bits: u32) -> Rows {
    let per_byte = 8 / bits as usize;
    let even = rows.row.is_multiple_of(rows.size) && rows.row.is_multiple_of(per_byte);
    if even { Rows { row: n, size: rows.size } } else { rows }
}

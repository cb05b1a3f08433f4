//! How weights lie for products.

use crate::kernels::codes::Scheme;
use crate::kernels::pack::packed_len;

pub(super) use crate::kernels::transpose::{LINE, ROWS as LANES};

/// Elements of a block at most: 256 products of 255 and 128 are below 2^24, so that their sum is a float32.
pub(super) const LONGEST: usize = 256;
/// Elements of a block where a group is longer than that.
const PIECE: usize = 128;

/// Consecutive elements of a row: a group of the weights, or a piece of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    /// Its first element.
    pub start: usize,
    /// How many elements.
    pub len: usize,
    /// Which group of the row.
    pub group: usize,
    /// Lines of its codes.
    pub words: usize,
}

/// Panels of 16 rows. Of each block there is a line with the scales of the rows as float32; one with their zero points as int32
/// (asymmetric) or offsets as float32 (minmax); then lines of codes, 4 bytes of each row, unsigned.
#[derive(Debug, Clone)]
pub struct Form {
    /// 8, 4 or 2.
    pub bits: u32,
    /// The scheme.
    pub scheme: Scheme,
    /// Rows of the weights.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// The blocks of a row.
    pub(super) blocks: Vec<Block>,
    /// Lines of a panel.
    pub lines: usize,
    /// Lines of codes of a panel.
    pub(super) words: usize,
    /// Where they are, if they are the words of a row in order.
    pub(super) places: Option<Vec<usize>>,
}

impl Form {
    /// The form of `shape` weights whose rows have groups of so many elements.
    pub fn new(bits: u32, scheme: Scheme, shape: [usize; 2], group: usize) -> Self {
        let [rows, cols] = shape;
        let mut blocks = vec![];
        let step = if group <= LONGEST { group } else { PIECE };
        for (index, first) in (0..cols).step_by(group.max(1)).enumerate() {
            let end = cols.min(first + group);
            for start in (first..end).step_by(step) {
                let len = step.min(end - start);
                blocks.push(Block { start, len, group: index, words: packed_len(len, bits).div_ceil(4) });
            }
        }
        let words = blocks.iter().map(|block| block.words).sum();
        let header = if scheme == Scheme::Symmetric { 1 } else { 2 };
        let lines = words + header * blocks.len();
        let is_in_order = blocks.iter().all(|block: &Block| (block.start * bits as usize).is_multiple_of(32));
        let places = || {
            let ends = blocks.iter().scan(0, |end, block| {
                *end += header + block.words;
                Some((*end, block.words))
            });
            ends.flat_map(|(end, n)| end - n..end).collect()
        };
        let places = is_in_order.then(places);
        Self { bits, scheme, rows, cols, blocks, lines, words, places }
    }

    /// How many panels.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Bytes of a panel.
    pub fn panel_bytes(&self) -> usize {
        self.lines * LINE
    }

    /// Lines of a block before its codes.
    pub(super) fn header(&self) -> usize {
        if self.scheme == Scheme::Symmetric { 1 } else { 2 }
    }

    /// Codes in a byte.
    pub(super) fn planes(&self) -> usize {
        8 / self.bits as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_blocks_are_groups_or_pieces_of_them_and_cover_a_row() {
        for (cols, group, want) in [
            (100, 32, vec![32, 32, 32, 4]),
            (300, 300, vec![128, 128, 44]),
            (600, 257, vec![128, 128, 1, 128, 128, 1, 86]),
        ] {
            let form = Form::new(4, Scheme::Symmetric, [5, cols], group);
            assert_eq!(form.blocks.iter().map(|block| block.len).collect::<Vec<_>>(), want);
            assert!(form.blocks.windows(2).all(|two| two[0].start + two[0].len == two[1].start));
        }
        assert!(Form::new(8, Scheme::Symmetric, [5, 0], 0).blocks.is_empty());
    }
}

//! How weights lie for products.

use std::ops::Range;

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
    /// Which line of a panel has its scales: those of the group, before its first block.
    pub header: usize,
    /// Which line is the first of its codes.
    pub codes: usize,
    /// Lines of its codes.
    pub words: usize,
}

impl Block {
    /// Its lines of codes.
    pub fn lines(&self) -> Range<usize> {
        self.codes..self.codes + self.words
    }
}

/// Panels of 16 rows. Of each group there is a line with the scales of the rows as float32; one with their zero points as int32
/// (asymmetric) or offsets as float32 (minmax); then lines of codes, 4 bytes of each row, unsigned, of each of its blocks.
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
        let (mut blocks, mut lines) = (vec![], 0);
        let step = if group <= LONGEST { group } else { PIECE };
        for (index, first) in (0..cols).step_by(group.max(1)).enumerate() {
            let (end, header) = (cols.min(first + group), lines);
            lines += if scheme == Scheme::Symmetric { 1 } else { 2 };
            for start in (first..end).step_by(step) {
                let len = step.min(end - start);
                let words = packed_len(len, bits).div_ceil(4);
                blocks.push(Block { start, len, group: index, header, codes: lines, words });
                lines += words;
            }
        }
        let words = blocks.iter().map(|block| block.words).sum();
        let is_in_order = blocks.iter().all(|block: &Block| (block.start * bits as usize).is_multiple_of(32));
        let places = is_in_order.then(|| blocks.iter().flat_map(Block::lines).collect());
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

    #[test]
    fn test_lines_of_a_panel_are_the_codes_of_all_blocks_and_the_scales_of_each_group_once() {
        for (cols, group, groups) in [(100, 32, 4), (300, 300, 1), (600, 257, 3), (4096, 4096, 1)] {
            for (scheme, of_group) in [(Scheme::Symmetric, 1), (Scheme::Asymmetric, 2), (Scheme::MinMax, 2)] {
                let form = Form::new(8, scheme, [5, cols], group);
                let mut seen = vec![0; form.lines];
                form.blocks.iter().flat_map(Block::lines).for_each(|line| seen[line] += 1);
                let firsts = form.blocks.chunk_by(|a, b| a.group == b.group).map(|blocks| &blocks[0]);
                firsts.for_each(|block| (block.header..block.codes).for_each(|line| seen[line] += 1));
                assert!(seen.iter().all(|&n| n == 1) && form.lines == form.words + of_group * groups);
                assert!(
                    form.blocks
                        .windows(2)
                        .all(|two| (two[0].group == two[1].group) == (two[0].header == two[1].header))
                );
            }
        }
    }
}

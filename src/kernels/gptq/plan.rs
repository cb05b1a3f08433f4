//! In which order columns are rounded, in which blocks, and which of them share a scale.

use std::ops::Range;

use super::super::codes::uniform::How;
use super::super::codes::{Granularity, Spec, Uniform};
use super::super::elimination::{Cholesky, TILE};
use crate::par;

/// How a layer is rounded.
#[derive(Debug)]
pub struct Plan {
    /// The code.
    pub uniform: Uniform,
    /// Which weights share a scale: all, those of a row, or groups.
    pub spec: Spec,
    /// How scales are found.
    pub how: How,
    /// Which column is taken when.
    pub order: Vec<usize>,
    /// Whether the scales of a group are found when it is reached (then its columns follow each other); else all before.
    pub late: bool,
    /// About how many columns are rounded before those behind them follow; changes no bit.
    pub block: usize,
}

/// Columns, the largest element of the diagonal of `h` first; in `groups` (of so many columns) that stay together, the one
/// with the largest first.
pub fn by_diagonal(h: &[f64], n: usize, groups: Option<usize>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let diagonal = |i: usize| h[i * n + i];
    order.sort_by(|&a, &b| diagonal(b).total_cmp(&diagonal(a)));
    if let Some(size) = groups {
        let mut place = vec![n; n.div_ceil(size)];
        for (i, &column) in order.iter().enumerate().rev() {
            place[column / size] = i;
        }
        order.sort_by_key(|&column| place[column / size]);
    }
    order
}

/// The lower triangle of `h` with rows and columns in another order.
pub fn reorder(h: &[f64], order: &[usize], threads: usize) -> Vec<f64> {
    let n = order.len();
    let mut a = vec![0.0; n * n];
    par::for_each(threads, a.chunks_mut((TILE * n).max(1)).enumerate(), |(t, rows)| {
        for (i, row) in rows.chunks_mut(n).enumerate() {
            let (from, row) = (order[t * TILE + i], &mut row[..=t * TILE + i]);
            for (to, &column) in row.iter_mut().zip(order) {
                *to = h[from.max(column) * n + from.min(column)];
            }
        }
    });
    a
}

impl Plan {
    /// Scales of a row; 0 where all rows share one.
    pub(super) fn stride(&self) -> usize {
        match self.spec.granularity {
            Granularity::Group { size } => self.spec.cols.div_ceil(size),
            Granularity::Channel { .. } => 1,
            Granularity::Whole | Granularity::Tile { .. } => 0,
        }
    }

    /// Which of them is that of a column.
    pub(super) fn part(&self, column: usize) -> usize {
        if let Granularity::Group { size } = self.spec.granularity { column / size } else { 0 }
    }

    /// Blocks of consecutive places. A group whose scales are found late lies in one, or begins where one begins.
    pub(super) fn blocks(&self) -> Vec<Range<usize>> {
        let n = self.order.len();
        let mut blocks: Vec<Range<usize>> = vec![];
        for group in self.groups(0..n) {
            match blocks.last_mut() {
                Some(last) if last.len() + group.len() <= self.block => last.end = group.end,
                _ => blocks.extend(group.clone().step_by(self.block).map(|i| i..group.end.min(i + self.block))),
            }
        }
        blocks
    }

    /// The places among these of one group after the other, where scales are found late; else of so many columns as make a
    /// block.
    pub(super) fn groups(&self, places: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut start = places.start;
        std::iter::from_fn(move || {
            let first = (start < places.end).then_some(start)?;
            let part = |i: usize| self.part(self.order[i]);
            start = if self.late {
                (first..places.end).find(|&i| part(i) != part(first)).unwrap_or(places.end)
            } else {
                places.end.min(first + self.block)
            };
            Some(first..start)
        })
    }

    /// How much the error of each column counts beside that of others in the search of scales: it leaves the loss
    /// ((w - q) v)² behind. Nothing where all count alike.
    pub(super) fn importances(&self, factor: &Cholesky) -> Vec<f32> {
        let inverse = |i: usize| 1.0 / factor.at(i, i);
        let least = (0..factor.n).map(inverse).fold(f64::INFINITY, f64::min);
        // In par, whose float environment is the default.
        let counts = par::map(1, 0..factor.n, |i| (least / inverse(i)).powi(2) as f32);
        let mut weights = vec![0.0; factor.n];
        for (&column, count) in self.order.iter().zip(counts) {
            weights[column] = count;
        }
        if weights.iter().all(|&weight| weight == 1.0) { vec![] } else { weights }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::codes::Scheme;
    use super::super::super::codes::uniform::ScaleDtype;
    use super::*;

    /// Of 4 bits, asymmetric, in groups.
    pub(in crate::kernels::gptq) fn plan(n: usize, size: usize, order: Vec<usize>, late: bool, block: usize) -> Plan {
        let uniform = Uniform { bits: 4, scheme: Scheme::Asymmetric, offset_binary: false, signed: false };
        let spec = Spec { granularity: Granularity::Group { size }, cols: n };
        Plan { uniform, spec, how: How { search: false, stored: ScaleDtype::Own, norm: 2.0 }, order, late, block }
    }

    #[test]
    fn test_columns_are_ordered_by_the_diagonal_and_groups_by_their_largest() {
        let mut h = vec![0.0; 25];
        for (i, value) in [1.0, 3.0, 5.0, 5.0, 4.0].into_iter().enumerate() {
            h[i * 6] = value;
        }
        assert_eq!(by_diagonal(&h, 5, None), [2, 3, 4, 1, 0]);
        assert_eq!(by_diagonal(&h, 5, Some(2)), [2, 3, 4, 1, 0]);
        h[6] = 9.0;
        assert_eq!(by_diagonal(&h, 5, Some(2)), [1, 0, 2, 3, 4]);
        let h: Vec<f64> = (0..9).map(f64::from).collect();
        assert_eq!(reorder(&h, &[2, 0, 1], 2), [8.0, 0.0, 0.0, 6.0, 0.0, 0.0, 7.0, 3.0, 4.0]);
    }

    #[test]
    fn test_groups_that_are_found_late_lie_in_a_block_or_begin_one() {
        let blocks = |size, block| plan(10, size, (0..10).collect(), true, block).blocks();
        assert_eq!(blocks(4, 8), [0..8, 8..10]);
        assert_eq!(blocks(4, 3), [0..3, 3..4, 4..7, 7..10]);
        assert_eq!(blocks(4, 9), [0..8, 8..10]);
        assert_eq!(plan(10, 4, (0..10).collect(), false, 3).blocks(), [0..3, 3..6, 6..9, 9..10]);
    }
}

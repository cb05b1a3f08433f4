//! Columns that are taken out of rows, one after the other; what a row loses at one is made up for by those behind it.
//!
//! Where column `i` of a row becomes `q`, `w[j] -= (w[i] - q) / u[i][i] * u[i][j]` for all `j > i`. A [`Rule`] says what
//! becomes of weights: `SparseGPT` lets some of them go, and the rows of the inverse of `u` are what the rows of the identity
//! lose where all columns go. GPTQ, which rounds all of them, counts from what they were, with a `u` that is no inverse. A block of columns is
//! taken out row by row; the columns behind the block follow at once, a few of them in registers, and only for what was
//! lost (half of the columns at 50 %), or all columns of it in [`dense`]. Rows don't know of each other, and each sum has one order: neither threads nor
//! instruction sets nor the widths of blocks matter.

mod dense;
mod factor;

use std::ops::Range;

pub(super) use dense::{COLUMNS, ColumnRule, Errors, finite, subtract_all, take_out_all};
pub use factor::{Cholesky, Factor};

use crate::isa::kernel;
use crate::par;
use crate::real::Real;

/// Columns of one row whose sums are in registers.
pub(super) const LANES: usize = 64;

/// Rows of one piece of work: each looks at the whole panel.
pub(super) const TILE: usize = 64;

/// What a row lost: places within the block, and the weight there over the diagonal.
pub(super) type Lost<C> = Vec<(usize, C)>;

/// `N` columns of a row, from the beginning of a cache line: numbers that lie in two lines take twice as long to load.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Lanes<C, const N: usize>(pub(super) [C; N]);

/// Rows of a matrix: `N` columns of all of them, then the next; 0 behind the last column.
pub(super) struct Panel<C, const N: usize> {
    depth: usize,
    lanes: Vec<Lanes<C, N>>,
}

/// Rows that [`Panel::new`] reads beside each other: elements of a column in a cache line.
const LINE: usize = 8;

impl<C: Real, const N: usize> Panel<C, N> {
    /// `depth` rows of `columns` elements: `at(row, column)`.
    pub(super) fn new(depth: usize, columns: usize, at: impl Fn(usize, usize) -> C + Sync, threads: usize) -> Self {
        let mut lanes = vec![Lanes([C::from_f64(0.0); N]); depth * columns.div_ceil(N)];
        par::for_each(threads, lanes.chunks_mut(depth).enumerate(), |(i, lanes)| {
            for (rows, lanes) in lanes.chunks_mut(LINE).enumerate() {
                for (lane, column) in (i * N..columns.min(i * N + N)).enumerate() {
                    for (row, lanes) in lanes.iter_mut().enumerate() {
                        lanes.0[lane] = at(rows * LINE + row, column);
                    }
                }
            }
        });
        Self { depth, lanes }
    }

    /// Copy a row.
    fn copy_row(&self, i: usize, out: &mut [C]) {
        for (out, lanes) in out.chunks_mut(N).zip(self.lanes.chunks(self.depth)) {
            out.copy_from_slice(&lanes[i].0[..out.len()]);
        }
    }
}

/// A block of columns: its square of `u`, and the rows of `u` behind it.
pub(super) struct Block<C, const N: usize> {
    pub(super) columns: Range<usize>,
    square: Vec<C>,
    /// 1 over the diagonal.
    pub(super) scales: Vec<C>,
    panel: Panel<C, N>,
}

impl<C: Real, const N: usize> Block<C, N> {
    /// Of `u`, `at(row, column)` on and above the diagonal; behind it are the columns before `n`.
    pub(super) fn new(
        columns: Range<usize>,
        n: usize,
        at: impl Fn(usize, usize) -> f64 + Sync,
        threads: usize,
    ) -> Self {
        let Range { start, end } = columns;
        let place = |i: usize, j: usize| if j < i { 0.0 } else { at(start + i, start + j) };
        let width = columns.len();
        let square = (0..width * width).map(|k| C::from_f64(place(k / width, k % width))).collect();
        let scales = (0..width).map(|i| C::from_f64(1.0 / place(i, i))).collect();
        let panel = Panel::new(width, n - end, |i, j| C::from_f64(at(start + i, end + j)), threads);
        Self { columns, square, scales, panel }
    }
}

impl<C: Real> Block<C, LANES> {
    /// Take from the columns behind the block what the rows of a tile lost in it.
    pub(super) fn hand_on(&self, tile: &mut [C], n: usize, lost: &[Lost<C>]) {
        subtract(Tile { rows: tile, n, columns: self.columns.end..n }, lost, &self.panel);
    }
}

impl<C: Real> Block<C, COLUMNS> {
    /// The same, of `n` columns of rows of `stride`, where all columns went.
    pub(super) fn hand_on_all(&self, tile: &mut [C], (n, stride): (usize, usize), errors: &Errors<C>) {
        subtract_all(Tile { rows: tile, n: stride, columns: self.columns.end..n }, errors, &self.panel);
    }
}

/// Columns of consecutive rows of `n` elements.
pub(super) struct Tile<'a, C> {
    pub(super) rows: &'a mut [C],
    pub(super) n: usize,
    pub(super) columns: Range<usize>,
}

/// `sums` less what was lost times the rows of the panel, in the order of `lost`.
#[inline(always)]
fn less<C: Real>(mut sums: [C; LANES], lost: &[(usize, C)], panel: &[Lanes<C, LANES>]) -> [C; LANES] {
    for &(place, factor) in lost {
        let row = &panel[place].0;
        for l in 0..LANES {
            sums[l] = sums[l] - factor * row[l];
        }
    }
    sums
}

kernel! {
    /// Rows less the products of what they lost and the panel, whose first column is the first of the tile's.
    pub(super) fn subtract<C: Real>(tile: Tile<'_, C>, lost: &[Lost<C>], panel: &Panel<C, LANES>) {
        let Tile { rows, n, columns } = tile;
        for (start, lanes) in columns.clone().step_by(LANES).zip(panel.lanes.chunks(panel.depth)) {
            let end = columns.end.min(start + LANES);
            for (row, lost) in rows.chunks_mut(n).zip(lost) {
                let row = &mut row[start..end];
                let mut sums = [C::from_f64(0.0); LANES];
                sums[..row.len()].copy_from_slice(row);
                row.copy_from_slice(&less(sums, lost, lanes)[..end - start]);
            }
        }
    }
}

/// What becomes of the weights of a row.
pub(super) trait Rule<C: Real> {
    /// What becomes of the first of `rest`, which is in column `i` of the block and has made up for those before; None: it
    /// stays as it is. Asked from the first column on.
    fn becomes(&mut self, i: usize, rest: &[C]) -> Option<C>;
}

/// All columns go.
pub(super) struct All;

impl<C: Real> Rule<C> for All {
    #[inline(always)]
    fn becomes(&mut self, _: usize, _: &[C]) -> Option<C> {
        Some(C::from_i16(0))
    }
}

kernel! {
    /// Take columns out of a row (its part in the block), and add to `lost`; what is not finite is passed over.
    pub(super) fn take_out<C: Real, R: Rule<C>>(
        row: &mut [C], columns: Range<usize>, rule: R, block: &Block<C, LANES>, lost: &mut Lost<C>
    ) {
        let (width, mut rule) = (row.len(), rule);
        for i in columns {
            let Some(becomes) = rule.becomes(i, &row[i..]) else { continue };
            let difference = std::mem::replace(&mut row[i], becomes) - becomes;
            if difference == C::from_i16(0) || !(difference.abs() <= C::MAX) {
                continue;
            }
            let from = &block.square[i * width..][..width];
            let error = difference / from[i];
            for (w, &u) in row[i + 1..].iter_mut().zip(&from[i + 1..]) {
                *w = *w - error * u;
            }
            lost.push((i, error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_tile_less_products_is_that_of_plain_loops_for_every_width() {
        let at = |i: usize, j: usize| ((i * 37 + j * 11) % 101) as f32 - 50.3;
        for width in (0..10).chain([LANES - 1, LANES, LANES + 1, 3 * LANES + 5]) {
            let (n, first) = (width + 4, 3);
            let panel = Panel::new(5, width, at, 2);
            let lost: Vec<Lost<f32>> =
                (0..7).map(|r| (0..5).filter(|i| i % 2 != r % 2).map(|i| (i, 0.1)).collect()).collect();
            let mut got: Vec<f32> = (0..7 * n).map(|k| at(k / n, k % n)).collect();
            let mut want = got.clone();
            for (row, lost) in want.chunks_mut(n).zip(&lost) {
                for &(i, factor) in lost {
                    for j in 0..width {
                        row[first + j] -= factor * at(i, j);
                    }
                }
            }
            subtract(Tile { rows: &mut got, n, columns: first..first + width }, &lost, &panel);
            assert_eq!(got, want, "{width}");
        }
    }

    /// Columns become what is named.
    struct Named<'a>(&'a [Option<f32>]);

    impl Rule<f32> for Named<'_> {
        fn becomes(&mut self, i: usize, _: &[f32]) -> Option<f32> {
            self.0[i]
        }
    }

    #[test]
    fn test_what_is_not_finite_is_passed_over_and_what_stays_is_untouched() {
        let block = Block::new(0..4, 4, |i, j| if i == j { 2.0 } else { 1.0 }, 1);
        let (mut row, mut lost) = ([f32::NAN, 4.0, 1.0, 7.0], Lost::new());
        take_out(&mut row, 0..4, Named(&[Some(0.0), Some(0.0), None, Some(0.0)]), &block, &mut lost);
        assert_eq!((row, lost), ([0.0, 0.0, -1.0, 0.0], vec![(1, 2.0), (3, 2.5)]));
        let (mut row, mut lost) = ([5.0, 4.0, 1.0, 7.0], vec![(0, 9.0)]);
        take_out(&mut row, 1..3, Named(&[None, Some(3.0), Some(0.5), None]), &block, &mut lost);
        assert_eq!((row, &lost[..]), ([5.0, 3.0, 0.5, 6.5], &[(0, 9.0), (1, 0.5)][..]));
        take_out(&mut row, 0..4, All, &block, &mut lost);
        assert_eq!(row, [0.0; 4]);
    }
}

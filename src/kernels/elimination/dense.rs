//! Where rows lose something at each column of a block: what all of them lost, column after column, beside each other.

use super::{All, Block, Lanes, Panel, TILE, Tile};
use crate::isa::kernel;
use crate::real::Real;

/// Of each column of a block: what each row of a tile lost there, over the diagonal.
pub(in crate::kernels) type Errors<C> = [[C; TILE]];

/// Rows whose sums are in registers together: each number of the panel is loaded once for all of them.
const ROWS: usize = 4;

/// Columns whose sums are in registers together.
pub(in crate::kernels) const COLUMNS: usize = 32;

/// `sums` less errors times rows of the panel, in the order of columns. (An array of arrays with a loop over both stays in
/// memory: 8 times slower.)
#[inline(always)]
fn less<C: Real>(
    [mut a, mut b, mut c, mut d]: [[C; COLUMNS]; ROWS],
    errors: &[[C; ROWS]],
    lanes: &[Lanes<C, COLUMNS>],
) -> [[C; COLUMNS]; ROWS] {
    for (&[e, f, g, h], Lanes(lanes)) in errors.iter().zip(lanes) {
        for l in 0..COLUMNS {
            a[l] = a[l] - e * lanes[l];
            b[l] = b[l] - f * lanes[l];
            c[l] = c[l] - g * lanes[l];
            d[l] = d[l] - h * lanes[l];
        }
    }
    [a, b, c, d]
}

kernel! {
    /// Rows less the products of what they lost and the panel, whose first column is the first of the tile's.
    pub(in crate::kernels) fn subtract_all<C: Real>(tile: Tile<'_, C>, errors: &Errors<C>, panel: &Panel<C, COLUMNS>) {
        let Tile { rows, n, columns } = tile;
        // Those of as many rows beside each other: in the first cache the panel stays then.
        let depth = errors.len();
        let mut by_rows = vec![[C::from_i16(0); ROWS]; TILE / ROWS * depth];
        for (i, errors) in errors.iter().enumerate() {
            for (t, errors) in errors.as_chunks::<ROWS>().0.iter().enumerate() {
                by_rows[t * depth + i] = *errors;
            }
        }
        for (start, lanes) in columns.clone().step_by(COLUMNS).zip(panel.lanes.chunks(panel.depth)) {
            let columns = start..columns.end.min(start + COLUMNS);
            for (rows, errors) in rows.chunks_mut(ROWS * n).zip(by_rows.chunks(depth)) {
                let mut sums = [[C::from_i16(0); COLUMNS]; ROWS];
                for (sums, row) in sums.iter_mut().zip(rows.chunks(n)) {
                    let row = &row[columns.clone()];
                    match <&[C; COLUMNS]>::try_from(row) {
                        Ok(row) => *sums = *row,
                        Err(_) => sums[..row.len()].copy_from_slice(row),
                    }
                }
                let sums = less(sums, errors, lanes);
                for (sums, row) in sums.iter().zip(rows.chunks_mut(n)) {
                    let row = &mut row[columns.clone()];
                    match <&mut [C; COLUMNS]>::try_from(&mut *row) {
                        Ok(row) => *row = *sums,
                        Err(_) => row.copy_from_slice(&sums[..columns.len()]),
                    }
                }
            }
        }
    }
}

/// What becomes of the weights of a column.
pub(in crate::kernels) trait ColumnRule<C: Real> {
    /// What those of column `i` of the block lose, over the diagonal, which have made up for the columns before: nothing where
    /// that is not finite. Asked from the first on.
    fn loses(&mut self, i: usize, weights: &[C; TILE], diagonal: C) -> [C; TILE];
}

/// `difference`, or 0 where that is not finite.
#[inline(always)]
pub(in crate::kernels) fn finite<C: Real>(difference: C) -> C {
    if difference.abs() <= C::MAX { difference } else { C::from_i16(0) }
}

impl<C: Real> ColumnRule<C> for All {
    #[inline(always)]
    fn loses(&mut self, _: usize, weights: &[C; TILE], diagonal: C) -> [C; TILE] {
        let mut lost = *weights;
        for lost in &mut lost {
            *lost = finite(*lost) / diagonal;
        }
        lost
    }
}

kernel! {
    /// Take all columns of a block out of a tile. `errors` holds its weights, and becomes what they lost over the diagonal.
    pub(in crate::kernels) fn take_out_all<C: Real, R: ColumnRule<C>>(
        errors: &mut Errors<C>, rule: R, block: &Block<C, COLUMNS>
    ) {
        let (width, mut rule) = (block.columns.len(), rule);
        for i in 0..width {
            let (column, later) = errors[i..width].split_at_mut(1);
            let (column, from) = (&mut column[0], &block.square[i * width..][..width]);
            *column = rule.loses(i, column, from[i]);
            for (later, &u) in later.iter_mut().zip(&from[i + 1..]) {
                for r in 0..TILE {
                    later[r] = later[r] - column[r] * u;
                }
            }
        }
    }
}

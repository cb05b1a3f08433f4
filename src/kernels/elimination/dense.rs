//! Where rows lose something at each column of a block: what all of them lost, column after column, beside each other.

use super::{All, Block, LANES, Panel, TILE, Tile};
use crate::isa::kernel;
use crate::real::Real;

/// Of each column of a block: what each row of a tile lost there, over the diagonal.
pub(in crate::kernels) type Errors<C> = [[C; TILE]];

/// Rows whose sums are in registers together: each number of the panel is loaded once for all of them.
const ROWS: usize = 4;

/// Columns whose sums are in registers together.
const HALF: usize = LANES / 2;

/// `sums` less errors times rows of the panel (half of each), in the order of columns. (An array of arrays with a loop over
/// both stays in memory: 8 times slower.)
#[inline(always)]
fn less<C: Real>(
    [mut a, mut b, mut c, mut d]: [[C; HALF]; ROWS],
    (errors, first): (&Errors<C>, usize),
    (lanes, half): (&[[C; LANES]], usize),
) -> [[C; HALF]; ROWS] {
    for (errors, lanes) in errors.iter().zip(lanes) {
        let (errors, lanes) = (&errors[first..][..ROWS], &lanes[half..][..HALF]);
        let [e, f, g, h] = [errors[0], errors[1], errors[2], errors[3]];
        for l in 0..HALF {
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
    pub(in crate::kernels) fn subtract_all<C: Real>(tile: Tile<'_, C>, errors: &Errors<C>, panel: &Panel<C>) {
        let Tile { rows, n, columns } = tile;
        for (start, lanes) in columns.clone().step_by(LANES).zip(panel.lanes.chunks(panel.depth)) {
            for half in (0..LANES.min(columns.end - start)).step_by(HALF) {
                let columns = start + half..columns.end.min(start + half + HALF);
                for (t, rows) in rows.chunks_mut(ROWS * n).enumerate() {
                    let mut sums = [[C::from_i16(0); HALF]; ROWS];
                    for (sums, row) in sums.iter_mut().zip(rows.chunks(n)) {
                        let row = &row[columns.clone()];
                        match <&[C; HALF]>::try_from(row) {
                            Ok(row) => *sums = *row,
                            Err(_) => sums[..row.len()].copy_from_slice(row),
                        }
                    }
                    let sums = less(sums, (errors, t * ROWS), (lanes, half));
                    for (sums, row) in sums.iter().zip(rows.chunks_mut(n)) {
                        let row = &mut row[columns.clone()];
                        match <&mut [C; HALF]>::try_from(&mut *row) {
                            Ok(row) => *row = *sums,
                            Err(_) => row.copy_from_slice(&sums[..columns.len()]),
                        }
                    }
                }
            }
        }
    }
}

/// What becomes of the weights of a column.
pub(in crate::kernels) trait ColumnRule<C: Real> {
    /// What those of column `i` of the block become, which have made up for the columns before. Asked from the first on.
    fn becomes(&mut self, i: usize, weights: &[C; TILE]) -> [C; TILE];
}

impl<C: Real> ColumnRule<C> for All {
    #[inline(always)]
    fn becomes(&mut self, _: usize, _: &[C; TILE]) -> [C; TILE] {
        [C::from_i16(0); TILE]
    }
}

kernel! {
    /// Take all columns of a block out of a tile. `errors` holds its weights, and becomes what they lost over the diagonal:
    /// nothing where that is not finite.
    pub(in crate::kernels) fn take_out_all<C: Real, R: ColumnRule<C>>(
        errors: &mut Errors<C>, rule: R, block: &Block<C>
    ) {
        let (width, zero, mut rule) = (block.columns.len(), C::from_i16(0), rule);
        for i in 0..width {
            let (column, later) = errors[i..width].split_at_mut(1);
            let (column, from) = (&mut column[0], &block.square[i * width..][..width]);
            let becomes = rule.becomes(i, column);
            for r in 0..TILE {
                let difference = column[r] - becomes[r];
                let difference = if difference.abs() <= C::MAX { difference } else { zero };
                column[r] = difference / from[i];
            }
            for (later, &u) in later.iter_mut().zip(&from[i + 1..]) {
                for r in 0..TILE {
                    later[r] = later[r] - column[r] * u;
                }
            }
        }
    }
}

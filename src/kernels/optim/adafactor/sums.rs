//! The first pass over matrices: mean squares of rows and columns into the moments.
//!
//! Matrices are cut into tiles of at most [`BUFFER`] columns and about [`CHUNK`] elements. Where a tile holds whole rows
//! (or columns), their moments are updated at once; sums over parts of them are joined afterwards, in index order.

use super::{Rule, matrix::Factored};
use crate::isa::kernel;
use crate::kernels::optim::whole::{batches, read_grad, read_param, square_sum};
use crate::kernels::optim::{BUFFER, Plain, Tensor};
use crate::par::{self, CHUNK};
use crate::real::Real;

/// Where sums go.
enum Sums<'t, C> {
    /// They are whole: into the moments.
    Moments(&'t mut [C]),
    /// They are parts: kept, to be joined to those that begin at this moment.
    Parts(usize, Vec<f64>),
}

impl<C: Real> Sums<'_, C> {
    /// Sum number `i`, of `count` squares.
    #[inline(always)]
    fn put(&mut self, i: usize, sum: f64, count: usize, rule: &Rule<C>) {
        match self {
            Self::Moments(moments) => moments[i] = rule.fold(moments[i], sum / count as f64),
            Self::Parts(_, parts) => parts[i] = sum,
        }
    }

    /// What is left to join.
    fn parts(self) -> (usize, Vec<f64>) {
        match self {
            Self::Moments(_) => (0, Vec::new()),
            Self::Parts(first, parts) => (first, parts),
        }
    }
}

/// A rectangle of one matrix, or several matrices on end.
struct Tile<'t, 'a, C: Real> {
    tensor: &'t Tensor<'a, C, Plain>,
    owner: usize,
    /// The first element, and from one row to the next.
    start: usize,
    stride: usize,
    matrices: usize,
    rows: usize,
    cols: usize,
    row: Sums<'t, C>,
    col: Sums<'t, C>,
    /// Sum of the parameter's squares.
    squares: f64,
}

/// Take the gradients in; the sums of the parameters' squares.
pub(super) fn look<C: Real>(all: &mut [Factored<'_, C>], rule: Rule<C>, threads: usize) -> Vec<f64> {
    let mut tiles = Vec::new();
    for (owner, factored) in all.iter_mut().enumerate() {
        cut(owner, factored, &mut tiles);
    }
    let batched = batches(&mut tiles, |tile| tile.matrices * tile.rows * tile.cols);
    par::for_each(threads, batched.into_iter(), |batch| {
        for tile in batch {
            tile.squares = look_at(tile, rule);
        }
    });
    let results: Vec<_> =
        tiles.into_iter().map(|tile| (tile.owner, tile.squares, [tile.row, tile.col].map(Sums::parts))).collect();
    let mut squares = vec![0.0; all.len()];
    let mut joined = vec![[Vec::new(), Vec::new()]; all.len()];
    for (owner, sum, parts) in results {
        squares[owner] += sum;
        for (joined, part) in joined[owner].iter_mut().zip(parts) {
            join(joined, part);
        }
    }
    for (factored, [row, col]) in all.iter_mut().zip(&joined) {
        rule.fold_all(factored.row, row, factored.cols);
        rule.fold_all(factored.col, col, factored.rows);
    }
    squares
}

/// Add parts where they belong.
fn join(sums: &mut Vec<f64>, (first, part): (usize, Vec<f64>)) {
    let end = first + part.len();
    if sums.len() < end {
        sums.resize(end, 0.0);
    }
    for (sum, part) in sums[first..end].iter_mut().zip(part) {
        *sum += part;
    }
}

/// Cut the matrices of one tensor into tiles.
fn cut<'t, 'a, C: Real>(owner: usize, factored: &'t mut Factored<'a, C>, tiles: &mut Vec<Tile<'t, 'a, C>>) {
    let Factored { tensor, row, col, rows: n, cols: m } = factored;
    let (tensor, n, m) = (&*tensor, *n, *m);
    let width = m.min(BUFFER);
    let height = CHUNK / width;
    let tile = |start, matrices, [rows, cols]: [usize; 2], row, col| Tile {
        tensor,
        owner,
        start,
        stride: m,
        matrices,
        rows,
        cols,
        row,
        col,
        squares: 0.0,
    };
    if m <= width && n <= height {
        let many = (CHUNK / (n * m)).max(1);
        for (i, (row, col)) in row.chunks_mut(many * n).zip(col.chunks_mut(many * m)).enumerate() {
            let (start, matrices) = (i * many * n * m, row.len() / n);
            tiles.push(tile(start, matrices, [n, m], Sums::Moments(row), Sums::Moments(col)));
        }
        return;
    }
    for (i, (row, col)) in row.chunks_mut(n).zip(col.chunks_mut(m)).enumerate() {
        let (mut whole_rows, mut whole_cols) = (row.chunks_mut(height), col.chunks_mut(width));
        for top in (0..n).step_by(height) {
            for left in (0..m).step_by(width) {
                let (rows, cols) = (height.min(n - top), width.min(m - left));
                let parts = |first, len| Sums::Parts(first, vec![0.0; len]);
                let whole = if m <= width { whole_rows.next() } else { None };
                let row = whole.map_or_else(|| parts(i * n + top, rows), Sums::Moments);
                let whole = if n <= height { whole_cols.next() } else { None };
                let col = whole.map_or_else(|| parts(i * m + left, cols), Sums::Moments);
                tiles.push(tile(i * n * m + top * m + left, 1, [rows, cols], row, col));
            }
        }
    }
}

kernel! {
    /// The sums of one tile; that of the parameter's squares is returned.
    fn look_at<C: Real>(tile: &mut Tile<'_, '_, C>, rule: Rule<C>) -> f64 {
        let [mut params, mut grads] = [[C::from_i16(0); BUFFER]; 2];
        let mut sums = [0.0; BUFFER];
        let (rows, cols, stride) = (tile.rows, tile.cols, tile.stride);
        // As many rows at a time as the buffers hold, where they lie on end.
        let strip = if cols == stride { BUFFER / cols } else { 1 };
        let mut squares = 0.0;
        for matrix in 0..tile.matrices {
            let sums = &mut sums[..cols];
            sums.fill(0.0);
            for top in (0..rows).step_by(strip) {
                let start = tile.start + (matrix * rows + top) * stride;
                let range = start..start + strip.min(rows - top) * cols;
                squares += square_sum(read_param(&tile.tensor.param, range.clone(), &mut params));
                let grads = read_grad(tile.tensor.grad, range, &rule.prepared, &mut grads);
                for (i, grads) in grads.chunks_exact(cols).enumerate() {
                    tile.row.put(matrix * rows + top + i, square_sum(grads), stride, &rule);
                    for (sum, g) in sums.iter_mut().zip(grads) {
                        let g = g.to_f64();
                        *sum += g * g;
                    }
                }
            }
            for (i, &sum) in sums.iter().enumerate() {
                tile.col.put(matrix * cols + i, sum, rows, &rule);
            }
        }
        squares
    }
}

//! Tensors with two axes or more: a moment for each row and for each column of the last two.

use super::{Adafactor, Rule, sums};
use crate::isa::kernel;
use crate::kernels::optim::whole::{Squares, batches, read_grad, square_sum, write_param};
use crate::kernels::optim::{BUFFER, Plain, Tensor};
use crate::par::{self, CHUNK};
use crate::real::Real;

/// One or more matrices on end, with their moments.
pub struct Factored<'a, C: Real> {
    /// Parameter and gradient.
    pub tensor: Tensor<'a, C, Plain>,
    /// A moment for each row of each matrix.
    pub row: &'a mut [C],
    /// A moment for each column of each matrix.
    pub col: &'a mut [C],
    /// Rows of one matrix.
    pub rows: usize,
    /// Columns of one matrix.
    pub cols: usize,
}

/// Some whole matrices, some whole rows of one, or a part of one row: elements on end.
struct Piece<'t, 'a, C: Real> {
    tensor: Tensor<'a, C, Plain>,
    owner: usize,
    row: &'t [C],
    col: &'t [C],
    /// Rows here of each matrix.
    rows: usize,
    /// The mean over all rows, where they are not all here.
    mean: Option<f64>,
    squares: f64,
}

/// One step, in three parallel regions.
pub(super) fn step<C: Real>(all: Vec<Factored<'_, C>>, adafactor: &Adafactor, rule: Rule<C>, threads: usize) {
    let mut all: Vec<_> = all.into_iter().filter(|factored| factored.tensor.elements() > 0).collect();
    let squares = sums::look(&mut all, rule, threads);
    let lens: Vec<usize> = all.iter().map(|factored| factored.tensor.elements()).collect();
    let mut moments = Vec::with_capacity(all.len());
    let mut tensors = Vec::with_capacity(all.len());
    for Factored { tensor, row, col, rows, cols } in all {
        moments.push((&*row, &*col, rows, cols));
        tensors.push(tensor);
    }
    let mut pieces = Vec::new();
    for (owner, tensor) in tensors.into_iter().enumerate() {
        cut(owner, tensor, moments[owner], &mut pieces);
    }
    let cut = batches(&mut pieces, |piece| piece.tensor.elements());
    par::for_each(threads, cut.into_iter(), |batch| {
        for piece in batch {
            piece.squares = update::<C, Look>(piece, rule, C::from_i16(0));
        }
    });
    let mut squares: Vec<Squares> = squares.into_iter().map(|param| [param, 0.0]).collect();
    for piece in &pieces {
        squares[piece.owner][1] += piece.squares;
    }
    let cut = batches(&mut pieces, |piece| piece.tensor.elements());
    par::for_each(threads, cut.into_iter(), |batch| {
        for piece in batch {
            update::<C, Apply>(piece, rule, adafactor.factor(squares[piece.owner], lens[piece.owner]));
        }
    });
}

/// The mean of the moments of one matrix's rows.
#[inline(always)]
fn mean<C: Real>(row: &[C]) -> f64 {
    let mut sum = 0.0;
    for v in row {
        sum += v.to_f64();
    }
    sum / row.len() as f64
}

/// Cut one tensor into pieces of about [`CHUNK`] elements.
fn cut<'t, 'a, C: Real>(
    owner: usize,
    mut tensor: Tensor<'a, C, Plain>,
    (row, col, n, m): (&'t [C], &'t [C], usize, usize),
    pieces: &mut Vec<Piece<'t, 'a, C>>,
) {
    if n * m <= CHUNK {
        let many = CHUNK / (n * m);
        for (row, col) in row.chunks(many * n).zip(col.chunks(many * m)) {
            let tensor = tensor.split_off(row.len() * m);
            pieces.push(Piece { tensor, owner, row, col, rows: n, mean: None, squares: 0.0 });
        }
        return;
    }
    let width = m.min(CHUNK);
    for (row, col) in row.chunks(n).zip(col.chunks(m)) {
        let mean = Some(mean(row));
        for row in row.chunks(CHUNK / width) {
            for col in col.chunks(width) {
                let tensor = tensor.split_off(row.len() * col.len());
                pieces.push(Piece { tensor, owner, row, col, rows: row.len(), mean, squares: 0.0 });
            }
        }
    }
}

/// What is done with updates.
trait Use {
    /// Whether they step the parameter; else their squares are summed.
    const APPLY: bool;
}
struct Look;
struct Apply;
impl Use for Look {
    const APPLY: bool = false;
}
impl Use for Apply {
    const APPLY: bool = true;
}

kernel! {
    /// Make the updates of a piece, and sum their squares or step the parameter by them times `factor`.
    fn update<C: Real, U: Use>(piece: &mut Piece<'_, '_, C>, rule: Rule<C>, factor: C) -> f64 {
        let [mut params, mut grads, mut col_roots] = [[C::from_i16(0); BUFFER]; 3];
        let one = C::from_i16(1);
        let rows = piece.rows;
        let matrices = piece.row.len() / rows;
        let cols = piece.col.len() / matrices;
        // As many rows at a time as the buffers hold.
        let strip = (BUFFER / cols).max(1);
        let mut squares = 0.0;
        for (matrix, row) in piece.row.chunks_exact(rows).enumerate() {
            let mean = match piece.mean {
                Some(mean) => mean,
                None => mean(row),
            };
            // A NaN stays.
            let floor = if mean < rule.eps { rule.eps } else { mean };
            for left in (0..cols).step_by(BUFFER) {
                let width = BUFFER.min(cols - left);
                let moments = &piece.col[matrix * cols + left..][..width];
                for (root, v) in col_roots.iter_mut().zip(moments) {
                    *root = one / v.sqrt();
                }
                for (i, row) in row.chunks(strip).enumerate() {
                    let start = (matrix * rows + i * strip) * cols + left;
                    let range = start..start + row.len() * width;
                    let grads = read_grad(piece.tensor.grad, range.clone(), &rule.prepared, &mut grads);
                    for (grads, v) in grads.chunks_exact_mut(width).zip(row) {
                        let root = one / C::from_f64(v.to_f64() / floor).sqrt();
                        for (g, &col_root) in grads.iter_mut().zip(&col_roots) {
                            *g = *g * rule.bounded(root * col_root);
                        }
                    }
                    if U::APPLY {
                        write_param(&mut piece.tensor.param, range, &mut params, grads, [rule.prepared.keep, factor]);
                    } else {
                        squares += square_sum(grads);
                    }
                }
            }
        }
        squares
    }
}

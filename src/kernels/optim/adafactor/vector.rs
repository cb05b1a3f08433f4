//! Tensors with at most one axis: a moment for each element.

use super::{Adafactor, Rule, Squares};
use crate::isa::kernel;
use crate::kernels::optim::whole::{batches, read_grad, read_param, square_sum, write_param};
use crate::kernels::optim::{BUFFER, Plain, Tensor};
use crate::par::{self, CHUNK};
use crate::real::Real;

/// A piece of tensor number `owner`.
struct Piece<'a, C: Real> {
    tensor: Tensor<'a, C, Plain>,
    owner: usize,
    squares: Squares,
}

/// One step, in two parallel regions.
pub(super) fn step<C: Real>(tensors: Vec<Tensor<'_, C, Plain>>, adafactor: &Adafactor, rule: Rule<C>, threads: usize) {
    let lens: Vec<usize> = tensors.iter().map(Tensor::elements).collect();
    let mut squares = vec![[0.0; 2]; tensors.len()];
    let mut pieces = Vec::with_capacity(tensors.len());
    for (owner, mut tensor) in tensors.into_iter().enumerate() {
        while tensor.elements() > CHUNK {
            pieces.push(Piece { tensor: tensor.split_off(CHUNK), owner, squares: [0.0; 2] });
        }
        pieces.push(Piece { tensor, owner, squares: [0.0; 2] });
    }
    let cut = batches(&mut pieces, |piece| piece.tensor.elements());
    par::for_each(threads, cut.into_iter(), |batch| {
        for piece in batch {
            piece.squares = look(&mut piece.tensor, rule);
        }
    });
    for piece in &pieces {
        let [param, update] = &mut squares[piece.owner];
        *param += piece.squares[0];
        *update += piece.squares[1];
    }
    let cut = batches(&mut pieces, |piece| piece.tensor.elements());
    par::for_each(threads, cut.into_iter(), |batch| {
        for piece in batch {
            apply(&mut piece.tensor, rule, adafactor.factor(squares[piece.owner], lens[piece.owner]));
        }
    });
}

/// Gradients to updates.
#[inline(always)]
fn updates<C: Real>(grads: &mut [C], moments: &[C], rule: &Rule<C>) {
    for (g, &v) in grads.iter_mut().zip(moments) {
        *g = *g * rule.bounded(C::from_i16(1) / v.sqrt());
    }
}

kernel! {
    /// Take the gradient in; the squares of the parameter and of its update.
    fn look<C: Real>(piece: &mut Tensor<'_, C, Plain>, rule: Rule<C>) -> Squares {
        let n = piece.elements();
        let [mut params, mut grads] = [[C::from_i16(0); BUFFER]; 2];
        let (keep, fresh) = (C::from_f64(1.0 - rule.fresh), C::from_f64(rule.fresh));
        let mut sums = [0.0; 2];
        for start in (0..n).step_by(BUFFER) {
            let range = start..n.min(start + BUFFER);
            let grads = read_grad(piece.grad, range.clone(), &rule.prepared, &mut grads);
            let moments = &mut piece.states[0][range.clone()];
            for (v, &g) in moments.iter_mut().zip(grads.iter()) {
                *v = keep * *v + fresh * (g * g);
            }
            updates(grads, moments, &rule);
            sums[0] += square_sum(read_param(&piece.param, range, &mut params));
            sums[1] += square_sum(grads);
        }
        sums
    }
}

kernel! {
    /// Step the parameter.
    fn apply<C: Real>(piece: &mut Tensor<'_, C, Plain>, rule: Rule<C>, factor: C) {
        let n = piece.elements();
        let [mut params, mut grads] = [[C::from_i16(0); BUFFER]; 2];
        for start in (0..n).step_by(BUFFER) {
            let range = start..n.min(start + BUFFER);
            let grads = read_grad(piece.grad, range.clone(), &rule.prepared, &mut grads);
            updates(grads, &piece.states[0][range.clone()], &rule);
            write_param(&mut piece.param, range, &mut params, grads, [rule.prepared.keep, factor]);
        }
    }
}

//! Tensors with at most one axis: a moment for each element.

use super::{Adafactor, Rule};
use crate::isa::kernel;
use crate::kernels::optim::whole::{Squares, look_then_apply, read_grad, read_param, square_sum, write_param};
use crate::kernels::optim::{BUFFER, Plain, Tensor, one_nan};
use crate::real::Real;

/// One step, in two parallel regions.
pub(super) fn step<C: Real>(tensors: Vec<Tensor<'_, C, Plain>>, adafactor: &Adafactor, rule: Rule<C>, threads: usize) {
    look_then_apply(
        tensors,
        |piece| look(piece, rule),
        |squares, len| adafactor.factor(squares, len),
        |piece, factor| apply(piece, rule, factor),
        threads,
    );
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
                *v = one_nan(keep * *v + fresh * (g * g));
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

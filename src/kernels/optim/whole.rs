//! What the optimizers share that look at a whole tensor before they change it: cuts, sums, blocks of any dtype.

use std::ops::Range;

use super::tensor::load;
use super::{BATCH, Grad, Narrow, Param, Plain, Prepared, Storage, Tensor, one_nan};
use crate::kernels::reduce::sum_of_lanes;
use crate::par::{self, CHUNK};
use crate::real::{Half, Real};

/// A tensor in pieces of a chunk.
pub(super) fn pieces<C: Real, K: Storage<C>>(tensor: Tensor<'_, C, K>) -> impl Iterator<Item = Tensor<'_, C, K>> {
    let mut rest = Some(tensor);
    std::iter::from_fn(move || match &mut rest {
        Some(tensor) if tensor.elements() > CHUNK => Some(tensor.split_off(CHUNK)),
        _ => rest.take(),
    })
}

/// Sums of squares of one tensor: of the parameter and of its update.
pub(super) type Squares = [f64; 2];

/// A piece of tensor number `owner`.
struct Piece<'a, C: Real> {
    tensor: Tensor<'a, C, Plain>,
    owner: usize,
    squares: Squares,
}

/// Two passes over tensors, each one parallel region: `look` gives the squares of a piece, `apply` steps a piece by what
/// `factor` makes of its tensor's squares, joined in index order, and of its length.
pub(super) fn look_then_apply<C: Real>(
    tensors: Vec<Tensor<'_, C, Plain>>,
    look: impl Fn(&mut Tensor<'_, C, Plain>) -> Squares + Sync,
    factor: impl Fn(Squares, usize) -> C,
    apply: impl Fn(&mut Tensor<'_, C, Plain>, C) + Sync,
    threads: usize,
) {
    let lens: Vec<usize> = tensors.iter().map(Tensor::elements).collect();
    let of_tensor = |(owner, tensor)| pieces(tensor).map(move |tensor| Piece { tensor, owner, squares: [0.0; 2] });
    let mut all: Vec<_> = tensors.into_iter().enumerate().flat_map(of_tensor).collect();
    par::for_each(threads, batches(&mut all, |piece| piece.tensor.elements()).into_iter(), |batch| {
        for piece in batch {
            piece.squares = look(&mut piece.tensor);
        }
    });
    let mut squares = vec![[0.0; 2]; lens.len()];
    for piece in &all {
        for (sum, square) in squares[piece.owner].iter_mut().zip(piece.squares) {
            *sum += square;
        }
    }
    let factors: Vec<C> = squares.into_iter().zip(lens).map(|(squares, len)| factor(squares, len)).collect();
    par::for_each(threads, batches(&mut all, |piece| piece.tensor.elements()).into_iter(), |batch| {
        for piece in batch {
            apply(&mut piece.tensor, factors[piece.owner]);
        }
    });
}

/// Lanes of a sum: four 256-bit registers of f64.
const LANES: usize = 16;

/// The sum of squares, in f64: in fixed lanes, so that it is the same on every instruction set.
///
/// Squares of narrower floats are exact in f64. At most a block is summed at a time: no error is carried.
#[inline(always)]
pub(super) fn square_sum<C: Real>(x: &[C]) -> f64 {
    let (blocks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        for i in 0..LANES {
            let v = block[i].to_f64();
            lanes[i] += v * v;
        }
    }
    let mut sum = if blocks.is_empty() { 0.0 } else { sum_of_lanes(lanes) };
    for v in tail {
        let v = v.to_f64();
        sum += v * v;
    }
    sum
}

/// The root of a sum of squares over `count`; one NaN, whatever the instruction set makes of its sign.
pub(super) fn root_mean(sum: f64, count: f64) -> f64 {
    if sum.is_nan() { f64::NAN } else { (sum / count).sqrt() }
}

/// Gradients `range`, scaled and clipped, in `buffer`.
#[inline(always)]
pub(super) fn read_grad<'b, C: Real>(
    grad: Grad<'_, C>,
    range: Range<usize>,
    prepared: &Prepared<C>,
    buffer: &'b mut [C],
) -> &'b mut [C] {
    let out = &mut buffer[..range.len()];
    match grad {
        Grad::Own(x) => out.copy_from_slice(&x[range]),
        Grad::F16(x) => _ = load(&x[range], out),
        Grad::Bf16(x) => _ = load(&x[range], out),
    }
    for g in out.iter_mut() {
        *g = prepared.grad(*g);
    }
    out
}

/// Parameters `range`, in `buffer` where they must be converted.
#[inline(always)]
pub(super) fn read_param<'b, C: Real>(param: &'b Param<'_, C>, range: Range<usize>, buffer: &'b mut [C]) -> &'b [C] {
    let out = &mut buffer[..range.len()];
    match param {
        Param::Own(x) => &x[range],
        Param::F16(x) => x.read(range, out),
        Param::Bf16(x) => x.read(range, out),
    }
}

/// `param = keep param - factor update` for parameters `range`, by way of `buffer` where they must be converted.
#[inline(always)]
pub(super) fn write_param<C: Real>(
    param: &mut Param<'_, C>,
    range: Range<usize>,
    buffer: &mut [C],
    update: &[C],
    [keep, factor]: [C; 2],
) {
    match param {
        Param::Own(x) => move_by(&mut x[range], update, [keep, factor]),
        Param::F16(x) => write_narrow(x.part(range), buffer, update, [keep, factor]),
        Param::Bf16(x) => write_narrow(x.part(range), buffer, update, [keep, factor]),
    }
}

#[inline(always)]
fn move_by<C: Real>(param: &mut [C], update: &[C], [keep, factor]: [C; 2]) {
    for (p, &u) in param.iter_mut().zip(update) {
        *p = one_nan(keep * *p - factor * u);
    }
}

#[inline(always)]
fn write_narrow<T: Half, C: Real>(mut param: Narrow<'_, T, C>, buffer: &mut [C], update: &[C], factors: [C; 2]) {
    let buffer = &mut buffer[..update.len()];
    move_by(param.wide(buffer), update, factors);
    param.round(buffer);
}

/// Cut `items` of `len` elements each where enough elements have come together.
pub(super) fn batches<T>(items: &mut [T], len: impl Fn(&T) -> usize) -> Vec<&mut [T]> {
    let (mut batches, mut rest) = (Vec::new(), items);
    while !rest.is_empty() {
        let mut elements = 0;
        let enough = rest.iter().position(|item| {
            elements += len(item);
            elements >= BATCH
        });
        let count = enough.map_or(rest.len(), |last| last + 1);
        batches.extend(rest.split_off_mut(..count));
    }
    batches
}

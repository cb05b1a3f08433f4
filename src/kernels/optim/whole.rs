//! What the optimizers share that look at a whole tensor before they change it: blocks of any dtype, sums, batches.

use std::ops::Range;

use super::tensor::load;
use super::{BATCH, Grad, Narrow, Param, Prepared};
use crate::real::{Half, Real};

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
    let mut width = if blocks.is_empty() { 0 } else { LANES / 2 };
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    let mut sum = lanes[0];
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
        *p = keep * *p - factor * u;
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

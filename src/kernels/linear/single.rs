//! One row of `x` times rows of bytes that are in no panels: each is multiplied where it lies, as bringing them into panels on
//! the way takes longer than the products.

use super::activations::{Digits, Tile};
use super::form::{Form, LANES, LINE};
use super::panels::Panels;
use super::product::{Lanes, floats, ints};
use super::{PIECE, finished};
use crate::isa::kernel;
use crate::kernels::codes::Scheme;
use crate::kernels::row_dots::{self, Row, Sums};
use crate::par;

kernel! {
    /// The sums of all blocks by row, in the arithmetic of panels: see [`super::product::panels`].
    fn all_blocks(sums: &[Sums], headers: &[[u8; LINE]; 2], form: &Form, tile: &Tile) -> Lanes {
        let (scale, offset) = (floats(&headers[0]), floats(&headers[1]));
        let zero_points = match form.scheme {
            Scheme::Symmetric => [1 << (form.bits - 1); LANES],
            Scheme::Asymmetric => ints(&headers[1]),
            Scheme::MinMax => [0; LANES],
        };
        let mut all = [0.0; LANES];
        for ((sums, digits), &unit) in sums.iter().zip(tile.sums.chunks(tile.digits)).zip(&tile.scale) {
            // A float32 rounds the two digits that come first once, joined or not.
            let (first, last) = if let &[high, middle, low] = digits { (high * 256 + middle, low) } else { (digits[0], 0) };
            let factor = if digits.len() == 3 { 256.0 } else { 1.0 };
            let alone = digits.iter().fold(0.0, |x, &digit| x * 256.0 + digit as f32);
            for lane in 0..LANES {
                let high = (sums[0][lane] - zero_points[lane] * first) as f32;
                let low = (sums[1][lane] - zero_points[lane] * last) as f32;
                let product = (high * factor + low) * scale[lane];
                let product = if form.scheme == Scheme::MinMax { product + alone * offset[lane] } else { product };
                all[lane] += product * unit;
            }
        }
        all
    }
}

/// Multiply as [`super::multiply`], and to the same bits, where `x` is one row and this is faster; whether it was.
pub(super) fn multiply(
    x: &[f32],
    form: &Form,
    panels: &dyn Panels,
    digits: Digits,
    bias: &[f32],
    out: &mut [f32],
    threads: usize,
) -> bool {
    if out.len() != form.rows || !row_dots::is_fast() || panels.rows(form, 0).is_none() {
        return false;
    }
    let tile = Tile::new(x, 1, form, digits);
    let row = Row::new(form.blocks.iter().map(|block| [block.start, block.len]).collect(), tile.digits, &tile.words);
    let together = (PIECE / (LANES * form.cols).max(1)).max(1);
    let scratch = || vec![[[0; LANES]; 2]; form.blocks.len()];
    par::for_each_with(threads, out.chunks_mut(together * LANES).enumerate(), scratch, |sums, (part, out)| {
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let panel = part * together + i;
            let Some((bytes, headers)) = panels.rows(form, panel) else { return };
            row.sums(bytes, sums);
            let bias = bias.get(panel * LANES..).unwrap_or_default();
            for (i, (y, sum)) in out.iter_mut().zip(all_blocks(sums, &headers, form, &tile)).enumerate() {
                *y = finished(sum, bias.get(i).copied().unwrap_or(0.0));
            }
        }
    });
    true
}

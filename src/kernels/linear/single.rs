//! One row of `x` times rows of bytes that are in no panels: each is multiplied where it lies, as bringing them into panels on
//! the way takes longer than the products.

use super::activations::{Digits, Tile};
use super::form::{Form, LANES};
use super::panels::{Numbers, Panels};
use super::product::Lanes;
use super::{PIECE, finished};
use crate::isa::kernel;
use crate::kernels::codes::Scheme;
use crate::kernels::row_dots::{self, Row, Sums};
use crate::par;

kernel! {
    /// The sums of all blocks by row, in the arithmetic of panels: see [`super::product::panels`].
    fn all_blocks(sums: &[Sums], numbers: &Numbers, is_minmax: bool, tile: &Tile) -> Lanes {
        let Numbers { scale, zero_point, offset } = numbers;
        let mut all = [0.0; LANES];
        for ((sums, digits), &unit) in sums.iter().zip(tile.sums.chunks(tile.digits)).zip(&tile.scale) {
            // A float32 rounds the two digits that come first once, joined or not.
            let (first, last) = if let &[high, middle, low] = digits { (high * 256 + middle, low) } else { (digits[0], 0) };
            let factor = if digits.len() == 3 { 256.0 } else { 1.0 };
            let mut products = [0.0; LANES];
            for lane in 0..LANES {
                let high = (sums[0][lane] - zero_point[lane] * first) as f32;
                let low = (sums[1][lane] - zero_point[lane] * last) as f32;
                products[lane] = (high * factor + low) * scale[lane];
            }
            if is_minmax {
                let alone = digits.iter().fold(0.0, |x, &digit| x * 256.0 + digit as f32);
                for lane in 0..LANES {
                    products[lane] += alone * offset[lane];
                }
            }
            for lane in 0..LANES {
                all[lane] += products[lane] * unit;
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
            let Some((bytes, numbers)) = panels.rows(form, panel) else { return };
            row.sums(bytes, sums);
            let mut all = all_blocks(sums, &numbers, form.scheme == Scheme::MinMax, &tile);
            let mut of_rows = [0.0; LANES];
            let bias = bias.get(panel * LANES..).unwrap_or_default();
            of_rows.iter_mut().zip(bias).for_each(|(own, &bias)| *own = bias);
            all.iter_mut().zip(of_rows).for_each(|(y, bias)| *y = finished(*y, bias));
            out.copy_from_slice(&all[..out.len()]);
        }
    });
    true
}

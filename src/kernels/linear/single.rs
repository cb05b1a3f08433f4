//! One row of `x` times rows of bytes that are in no panels: each is multiplied where it lies, as bringing them into panels on
//! the way takes longer than the products.

use super::activations::{Digits, Tile};
use super::form::{Form, LANES};
use super::panels::{Numbers, Panels};
use super::{PIECE, finished};
use crate::isa::kernel;
use crate::kernels::row_dots::{self, Row};
use crate::par;

/// Pieces of work.
const PIECES: usize = 64;

kernel! {
    /// The sums of all blocks by row, in the arithmetic of panels: see [`super::product::panels`].
    ///
    /// Of all rows of a block, then of the next: loops over the 16 rows of a panel are taken apart before they are vectorised.
    fn all_blocks(sums: &[i32], numbers: &Numbers, tile: &Tile, bias: &[f32], out: &mut [f32]) {
        let Numbers { scale, zero_point, offset } = numbers;
        out.fill(0.0);
        let of_blocks = sums.chunks_exact(2 * row_dots::pitch(out.len()));
        for ((sums, digits), &unit) in of_blocks.zip(tile.sums.chunks_exact(tile.digits)).zip(&tile.scale) {
            // A float32 rounds the two digits that come first once, joined or not.
            let (first, last, factor) = match *digits {
                [high, middle, low] => (high * 256 + middle, low, 256.0),
                _ => (digits[0], 0, 1.0),
            };
            let (high, low) = sums.split_at(sums.len() / 2);
            let of_rows = out.iter_mut().zip(high).zip(low).zip(scale);
            if offset.is_empty() {
                for ((((y, high), low), scale), zero_point) in of_rows.zip(zero_point) {
                    let (high, low) = ((high - zero_point * first) as f32, (low - zero_point * last) as f32);
                    *y += (high * factor + low) * scale * unit;
                }
            } else {
                let alone = digits.iter().fold(0.0, |x, &digit| x * 256.0 + digit as f32);
                for ((((y, &high), &low), scale), offset) in of_rows.zip(offset) {
                    *y += ((high as f32 * factor + low as f32) * scale + alone * offset) * unit;
                }
            }
        }
        if bias.is_empty() {
            for y in out {
                *y = finished(*y, 0.0);
            }
            return;
        }
        for (y, &bias) in out.iter_mut().zip(bias) {
            *y = finished(*y, bias);
        }
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
    if out.len() != form.rows || !row_dots::is_fast() || panels.rows(form, 0..1, &mut Numbers::default()).is_none() {
        return false;
    }
    let tile = Tile::new(x, 1, form, digits, threads);
    let row = Row::new(form.blocks.iter().map(|block| [block.start, block.len]).collect(), tile.digits, tile.words());
    // Of few bytes small pieces, so that nobody waits; of many larger ones, as rows after a piece are asked for in vain.
    let piece = (form.rows * form.cols / PIECES).clamp(PIECE, 4 * PIECE);
    let together = (piece / form.cols.max(1)).max(1).next_multiple_of(LANES);
    let scratch = || (Numbers::default(), vec![]);
    par::for_each_with(threads, out.chunks_mut(together).enumerate(), scratch, |(numbers, sums), (part, out)| {
        let first = part * together;
        let Some(bytes) = panels.rows(form, first..first + out.len(), numbers) else { return };
        sums.resize(form.blocks.len() * 2 * row_dots::pitch(out.len()), 0);
        row.sums(bytes, sums);
        all_blocks(sums, numbers, &tile, bias.get(first..first + out.len()).unwrap_or_default(), out);
    });
    true
}

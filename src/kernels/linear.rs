//! Products with quantized weights: `y[m, n] = sum over k of x[m, k] w[n, k] + bias[n]`, `w` in codes of 8, 4 or 2 bits.
//!
//! In integers ([`multiply`]): each block of a row of `x` becomes whole numbers of its own scale, in one digit of 8 bits (as
//! onnxruntime's accuracy level 4) or three. Sums within a block are exact; those of blocks are floats, in the order of the
//! blocks, never fused. In floats ([`multiply_floats`]): the numbers of the codes, summed in so many lanes. Either way
//! neither instruction set nor number of threads changes a bit.
//!
//! Codes of 16 rows lie beside each other, 4 bytes of each in turn ([`Form`]): a lane of a vector is a row, so that there are
//! no sums across lanes, and one piece of `x` serves all of them. [`Rows`] are brought into that form on the way, [`Packed`]
//! are in it. One row of `x` is multiplied by rows of bytes where these lie (`single`).

mod activations;
mod columns;
mod floats;
mod form;
#[cfg(target_arch = "x86_64")]
mod in_tiles;
mod panels;
mod product;
mod single;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activations::Digits;
pub use columns::multiply_columns;
pub use floats::{multiply_floats, widen};
pub use form::Form;
pub use panels::{Packed, Panels, Rows, pack};

use activations::Tile;
use form::{LANES, LINE};
use product::{Lanes, PANELS, Worker};

use crate::isa::kernel;
use crate::par;

/// Rows of `x` that are made codes at a time: they stay in a cache.
const SLAB: usize = 512;
/// Bytes of the weights in one piece of work.
const PIECE: usize = 1 << 16;
/// Rows of `x` in a tile, at most.
const TALL: usize = 16;

/// Where the rows of a slab that lie in tiles begin and end: tiles of 8 rows (2 of three digits), then of fewer; where they are
/// multiplied as tiles of bytes, 16 rows, then the rest.
fn tiles(rows: usize, digits: Digits, words: usize) -> Vec<(usize, usize)> {
    if words > 1 {
        return (0..rows).step_by(TALL).map(|start| (start, TALL.min(rows - start))).collect();
    }
    let sizes: &[usize] = if digits == Digits::One { &[8, 4, 2, 1] } else { &[2, 1] };
    let mut found = vec![];
    let mut start = 0;
    for &size in sizes {
        while rows - start >= size {
            found.push((start, size));
            start += size;
        }
    }
    found
}

/// The rows of `out` cut at columns: for each range of columns its part of every row, made when it is asked for.
fn by_columns(
    out: &mut [f32],
    cols: usize,
    wide: usize,
) -> impl ExactSizeIterator<Item = Vec<&mut [f32]>> + Send + use<'_> {
    let mut rows: Vec<_> = out.chunks_mut(cols).collect();
    (0..cols.div_ceil(wide)).map(move |_| {
        let parts = rows.iter_mut().map(|row| row.split_off_mut(..wide.min(row.len())).unwrap_or_default());
        parts.collect()
    })
}

/// A sum as it is written: with its bias, and NaN always the same.
#[inline(always)]
fn finished(sum: f32, bias: f32) -> f32 {
    let y = sum + bias;
    if y == y { y } else { f32::NAN }
}

kernel! {
    /// Write the sums of a panel, each to its row from a column on.
    fn write(sums: &[Lanes], bias: &Lanes, out: &mut [&mut [f32]], first: usize) {
        for (y, sums) in out.iter_mut().zip(sums) {
            let y = &mut y[first..];
            if let Some(y) = y.first_chunk_mut::<LANES>() {
                for ((y, &sum), &bias) in y.iter_mut().zip(sums).zip(bias) {
                    *y = finished(sum, bias);
                }
            } else {
                for ((y, &sum), &bias) in y.iter_mut().zip(sums).zip(bias) {
                    *y = finished(sum, bias);
                }
            }
        }
    }
}

/// The bias of a panel; 0 where there is none.
fn of_panel(bias: &[f32], panel: usize) -> Lanes {
    let mut found = [0.0; LANES];
    let bias = bias.get(panel * LANES..).unwrap_or_default();
    found.iter_mut().zip(bias).for_each(|(found, &bias)| *found = bias);
    found
}

/// Multiply rows of `x` by weights, in integers; `bias` is empty or has a number for each row of the weights.
pub fn multiply(
    x: &[f32],
    form: &Form,
    panels: &dyn Panels,
    digits: Digits,
    bias: &[f32],
    out: &mut [f32],
    threads: usize,
) {
    if out.is_empty() || single::multiply(x, form, panels, digits, bias, out, threads) {
        return;
    }
    let (rows, cols) = (form.rows, form.cols);
    let together = (PIECE / (form.lines * LINE).max(1)).max(1).next_multiple_of(PANELS);
    for (i, out) in out.chunks_mut(SLAB * rows).enumerate() {
        let x = &x[i * SLAB * cols..][..out.len() / rows * cols];
        let words = product::words_together(out.len() / rows, form, digits);
        let tiles = Tile::all(x, &tiles(out.len() / rows, digits, words), form, (digits, words), threads);
        let parts = by_columns(out, rows, together * LANES);
        let scratch = || (vec![[0; LINE]; PANELS * panels.scratch(form)], Worker::new());
        par::for_each_with(threads, parts.enumerate(), scratch, |(scratch, worker), (part, mut out)| {
            let n = out[0].len().div_ceil(LANES);
            for first in (0..n).step_by(PANELS) {
                let places = [first, n.min(first + PANELS) - 1];
                let mut lines: [&[[u8; LINE]]; PANELS] = Default::default();
                let mut rooms = scratch.chunks_mut(panels.scratch(form).max(1));
                for (lines, i) in lines.iter_mut().zip(places) {
                    *lines = panels.lines(form, part * together + i, rooms.next().unwrap_or_default());
                }
                let bias = places.map(|i| of_panel(bias, part * together + i));
                let mut out = &mut out[..];
                for tile in &tiles {
                    let sums = product::panels(lines, form, tile, worker);
                    let of_tile = out.split_off_mut(..tile.rows).unwrap_or_default();
                    // The last may stand twice.
                    for ((sums, bias), &i) in sums.iter().zip(&bias).zip(&places[..PANELS.min(n - first)]) {
                        write(&sums[..tile.rows], bias, of_tile, i * LANES);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{self, Isa};
    use crate::kernels::codes::uniform::ParamsRef;
    use crate::kernels::codes::{Scheme, Uniform};
    use crate::kernels::pack::packed_len;

    fn numbers(n: usize) -> Vec<f32> {
        (1..=n as u32).map(|i| i.wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.5).collect()
    }

    fn run(shape: [usize; 3], group: usize, bits: u32, scheme: Scheme, digits: Digits) {
        let per_row = shape[2].div_ceil(group);
        run_by(shape, group, per_row, (bits, scheme, digits));
        if per_row == 1 {
            run_by(shape, group, 0, (bits, scheme, digits));
        }
    }

    fn run_by(shape: [usize; 3], group: usize, per_row: usize, how: (u32, Scheme, Digits)) {
        let ([m, n, k], (bits, scheme, digits)) = (shape, how);
        let form = Form::new(bits, scheme, [n, k], group);
        let codes: Vec<u8> = (0..n * packed_len(k, bits)).map(|i| (i * 37 + i / 7) as u8).collect();
        let (scale, offset) = (numbers(n * per_row.max(1)), numbers(n * per_row.max(1)));
        let zero_point: Vec<u8> = (0..n * per_row.max(1)).map(|i| (i % (1 << bits)) as u8).collect();
        let (x, bias) = (numbers(m * k), numbers(n));
        let params = ParamsRef { scale: &scale, zero_point: &zero_point, offset: &offset };
        let code = Uniform { bits, scheme, offset_binary: false, signed: false };
        let rows = Rows { codes: &codes, code, params, per_row };
        let mut panels = vec![1; form.panels() * form.panel_bytes()];
        pack(rows, &form, &mut panels, 2);
        isa::set(Isa::Portable);
        let mut want = vec![0.0; m * n];
        multiply(&x, &form, &rows, digits, &bias, &mut want, 1);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            isa::set(isa);
            for threads in [1, 3] {
                let packed = Packed(&panels);
                for panels in [&packed as &dyn Panels, &rows] {
                    let mut out = vec![f32::NAN; m * n];
                    multiply(&x, &form, panels, digits, &bias, &mut out, threads);
                    assert!(out == want, "{shape:?} {group} {bits} {scheme:?} {digits:?} {isa:?}");
                }
            }
        }
    }

    #[test]
    fn test_one_row_times_rows_of_bytes_is_the_same_in_panels_and_where_they_lie() {
        for scheme in [Scheme::Symmetric, Scheme::Asymmetric, Scheme::MinMax] {
            for digits in [Digits::One, Digits::Three] {
                for [n, k] in [[37, 384], [16, 256], [5, 257], [33, 700], [2, 64], [1, 1], [100, 127]] {
                    run([1, n, k], k, 8, scheme, digits);
                }
                // Several pieces of work, of long rows too, and rows that are longer than a piece.
                for [n, k] in [[300, 700], [70, 2100], [18, 70_000]] {
                    run([1, n, k], k, 8, scheme, digits);
                }
            }
        }
    }

    #[test]
    fn test_all_instruction_sets_and_both_forms_give_the_same_bits() {
        for (i, scheme) in [Scheme::Symmetric, Scheme::Asymmetric, Scheme::MinMax].into_iter().enumerate() {
            for (j, bits) in [8, 4, 2].into_iter().enumerate() {
                for digits in [Digits::One, Digits::Three] {
                    let m = [1, 4, 8, 17, 3, 0, 2, 15, 9][3 * i + j];
                    run([m, 37, 100], 32, bits, scheme, digits);
                    run([m, 16, 256], 16, bits, scheme, digits);
                    run([m, 5, 77], 19, bits, scheme, digits);
                    run([m, 33, 700], 700, bits, scheme, digits);
                    run([m, 1, 1], 1, bits, scheme, digits);
                    // Digits are made by several threads.
                    run([m, 2, 4100], 64, bits, scheme, digits);
                }
            }
        }
    }

    #[test]
    fn test_blocks_that_are_whole_tiles_of_bytes_give_the_same_bits_for_any_number_of_rows() {
        for scheme in [Scheme::Symmetric, Scheme::Asymmetric, Scheme::MinMax] {
            for (bits, group) in [(8, 64), (8, 448), (4, 64), (4, 448), (2, 64), (2, 192)] {
                for m in [1, 2, 3, 5, 7, 8, 9, 16, 17, 35] {
                    run([m, 37, 448], group, bits, scheme, Digits::One);
                }
            }
            run([19, 80, 4096], 4096, 8, scheme, Digits::One);
            run([SLAB + 3, 5, 64], 64, 8, scheme, Digits::One);
        }
    }

    #[test]
    fn test_tiles_cover_all_rows_once() {
        for rows in 0..40 {
            for digits in [Digits::One, Digits::Three] {
                for words in [1, 16] {
                    let ends = tiles(rows, digits, words).into_iter().fold(0, |end, (start, n)| {
                        assert_eq!(start, end);
                        end + n
                    });
                    assert_eq!(ends, rows);
                }
            }
        }
    }
}

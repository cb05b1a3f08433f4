//! Panels of weights times a tile of `x`.

use super::TALL;
use super::activations::{Digits, Tile};
#[cfg(target_arch = "x86_64")]
use super::form::LONGEST;
use super::form::{Form, LANES, LINE};
use crate::kernels::codes::Scheme;
use crate::kernels::tiles;

/// A number for each lane of the panel.
pub(super) type Lanes = [f32; LANES];

/// Panels at a time, line by line where there are registers for it: one core reads two places in turn a quarter faster than
/// one after the other (30 GB/s against 24 from the third cache of a Xeon), and each piece of `x` is loaded once for both.
pub(super) const PANELS: usize = 2;

/// Sums by panel and row of a tile.
pub(super) type Sums = [[Lanes; TALL]; PANELS];

/// What a thread works with, from one panel to the next.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Worker {
    pub sums: Sums,
    /// Codes of few bits as bytes.
    #[cfg(target_arch = "x86_64")]
    pub unpacked: [[[u8; LINE]; LONGEST / 4]; PANELS],
    #[cfg(target_arch = "x86_64")]
    pub tiles: tiles::Tiles,
}

impl Worker {
    pub fn new() -> Self {
        Self {
            sums: [[[0.0; LANES]; TALL]; PANELS],
            #[cfg(target_arch = "x86_64")]
            unpacked: [[[0; LINE]; LONGEST / 4]; PANELS],
            #[cfg(target_arch = "x86_64")]
            tiles: tiles::Tiles::default(),
        }
    }
}

/// How many words of a row of `x` lie beside each other, see [`Tile::words`]: 16 for products as tiles of bytes, else 1.
pub(super) fn words_together(rows: usize, form: &Form, digits: Digits) -> usize {
    #[cfg(target_arch = "x86_64")]
    let are_fit = super::in_tiles::are_fit(rows, form, digits);
    #[cfg(not(target_arch = "x86_64"))]
    let (are_fit, _) = (false, (rows, form, digits));
    if are_fit { tiles::ROWS } else { 1 }
}

/// The sums of each row of the tile, for each panel.
///
/// Of a block, with codes c, zero points z, scales s and offsets o of the rows of weights, and digits a of scale u:
/// sum += ((sum of c a - z sum of a) s + (sum of a) o) u, the first two sums whole numbers, digits joined from the highest.
pub(super) fn panels<'a>(lines: [&[[u8; LINE]]; PANELS], form: &Form, tile: &Tile, worker: &'a mut Worker) -> &'a Sums {
    worker.sums = [[[0.0; LANES]; TALL]; PANELS];
    #[cfg(target_arch = "x86_64")]
    if tile.together > 1 {
        super::in_tiles::panels(lines, form, tile, worker);
        return &worker.sums;
    } else if super::x86::panels(lines, form, tile, &mut worker.sums) {
        return &worker.sums;
    }
    for (lines, sums) in lines.into_iter().zip(&mut worker.sums) {
        plain(lines, form, tile, sums);
    }
    &worker.sums
}

/// What lanes of 4 bytes hold.
fn ints(line: &[u8; LINE]) -> [i32; LANES] {
    std::array::from_fn(|i| i32::from_le_bytes([line[4 * i], line[4 * i + 1], line[4 * i + 2], line[4 * i + 3]]))
}

fn floats(line: &[u8; LINE]) -> Lanes {
    ints(line).map(|bits| f32::from_bits(bits as u32))
}

/// The plain loop.
fn plain(lines: &[[u8; LINE]], form: &Form, tile: &Tile, sums: &mut [Lanes; TALL]) {
    let (wide, planes) = (tile.rows * tile.digits, form.planes());
    let mask = 0xff_u8 >> (8 - form.bits);
    for (row, sums) in sums.iter_mut().enumerate().take(tile.rows) {
        let mut word = 0;
        for (i, block) in form.blocks.iter().enumerate() {
            let (header, codes) = (&lines[block.header..], &lines[block.lines()]);
            let scale = floats(&header[0]);
            let zero_points = match form.scheme {
                Scheme::Symmetric => [1 << (form.bits - 1); LANES],
                Scheme::Asymmetric => ints(&header[1]),
                Scheme::MinMax => [0; LANES],
            };
            // Digits joined: those of products, and those of x alone.
            let (mut products, mut alone) = ([0.0; LANES], 0.0);
            for digit in 0..tile.digits {
                let at = row * tile.digits + digit;
                let sum = tile.sums[i * wide + at];
                let mut whole = zero_points.map(|zero_point| -zero_point * sum);
                for (j, codes) in codes.iter().enumerate() {
                    for plane in 0..planes {
                        let digits = tile.words()[((word + j) * planes + plane) * wide + at].to_le_bytes();
                        let shift = plane as u32 * form.bits;
                        for (whole, codes) in whole.iter_mut().zip(codes.as_chunks::<4>().0) {
                            for (&code, digit) in codes.iter().zip(digits) {
                                *whole += ((code >> shift) & mask) as i32 * (digit as i8) as i32;
                            }
                        }
                    }
                }
                for (product, whole) in products.iter_mut().zip(whole) {
                    *product = *product * 256.0 + whole as f32;
                }
                alone = alone * 256.0 + sum as f32;
            }
            let row_scale = tile.scale[i * tile.rows + row];
            for ((sum, product), scale) in sums.iter_mut().zip(&mut products).zip(scale) {
                *product *= scale;
                if form.scheme != Scheme::MinMax {
                    *sum += *product * row_scale;
                }
            }
            if form.scheme == Scheme::MinMax {
                for ((sum, product), offset) in sums.iter_mut().zip(products).zip(floats(&header[1])) {
                    *sum += (product + alone * offset) * row_scale;
                }
            }
            word += block.words;
        }
    }
}

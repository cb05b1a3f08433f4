//! Panels of weights times a tile of `x`.

use super::TALL;
use super::activations::Tile;
use super::form::{Form, LANES, LINE};
#[cfg(target_arch = "x86_64")]
use crate::kernels::codes::Scheme;

/// A number for each lane of the panel.
pub(super) type Lanes = [f32; LANES];

/// Panels at a time, line by line where there are registers for it: one core reads two places in turn a quarter faster than
/// one after the other (30 GB/s against 24 from the third cache of a Xeon), and each piece of `x` is loaded once for both.
pub(super) const PANELS: usize = 2;

/// The sums of each row of the tile, for each panel.
///
/// Of a block, with codes c, zero points z, scales s and offsets o of the rows of weights, and digits a of scale u:
/// sum += ((sum of c a - z sum of a) s + (sum of a) o) u, the first two sums whole numbers, digits joined from the highest.
pub(super) fn panels(lines: [&[[u8; LINE]]; PANELS], form: &Form, tile: &Tile) -> [[Lanes; TALL]; PANELS] {
    let mut sums = [[[0.0; LANES]; TALL]; PANELS];
    #[cfg(target_arch = "x86_64")]
    if super::x86::panels(lines, form, tile, &mut sums) {
        return sums;
    }
    for (lines, sums) in lines.into_iter().zip(&mut sums) {
        plain(lines, form, tile, sums);
    }
    sums
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
                        let digits = tile.words[((word + j) * planes + plane) * wide + at].to_le_bytes();
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

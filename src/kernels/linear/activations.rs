//! Rows of `x` as whole numbers: each block in units of its own scale, in digits of 8 bits.

use super::form::{Block, Form, LONGEST};
use crate::isa::kernel;

/// How finely `x` is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digits {
    /// -127 to 127.
    One,
    /// -4194303 to 4194303, as three digits to the base of 256.
    Three,
}

impl Digits {
    fn count(self) -> usize {
        if self == Self::One { 1 } else { 3 }
    }

    /// The largest whole number: for three digits the largest that a float32 is rounded to as in [`numbers`].
    fn top(self) -> f32 {
        if self == Self::One { 127.0 } else { 4_194_303.0 }
    }
}

/// Some rows of `x`, for one pass over a panel.
#[derive(Debug)]
pub(super) struct Tile {
    /// How many rows.
    pub rows: usize,
    /// Of each row; from the highest.
    pub digits: usize,
    /// 4 digits for each line and each code of its bytes, of all rows and digits after each other.
    pub words: Vec<u32>,
    /// Scales: blocks, rows.
    pub scale: Vec<f32>,
    /// Sums of digits: blocks, rows, digits.
    pub sums: Vec<i32>,
}

/// 1.5 x 2^23: a sum with it has the nearest whole number in its low bits, halves to even.
const ROUNDING: f32 = 12_582_912.0;

kernel! {
    /// The nearest whole numbers of blocks in units of their scales: their largest magnitudes by `top`. Where one is NaN or
    /// infinite the scale is NaN, where it is so small that the scale is 0 all are 0.
    fn numbers(x: &[f32], blocks: &[Block], top: f32, out: &mut [i32], scales: &mut [f32]) {
        for (block, scale) in blocks.iter().zip(scales) {
            let x = &x[block.start..block.start + block.len];
            let out = &mut out[block.start..block.start + block.len];
            let mut largest = 0;
            for x in x {
                largest = largest.max(x.to_bits() & 0x7fff_ffff);
            }
            if largest >= 0x7f80_0000 {
                *scale = f32::NAN;
                out.fill(0);
                continue;
            }
            *scale = f32::from_bits(largest) / top;
            let divisor = if *scale == 0.0 { 1.0 } else { *scale };
            for (out, &x) in out.iter_mut().zip(x) {
                let q = x / divisor;
                let q = if q > top { top } else { q };
                let q = if q < -top { -top } else { q };
                *out = ((q + ROUNDING).to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32);
            }
        }
    }
}

/// The last digits of whole numbers, which keep what is before them; return their sum.
#[inline(always)]
fn last_digits(whole: &mut [i32], digits: &mut [u8]) -> i32 {
    let mut sum = 0;
    for (whole, digit) in whole.iter_mut().zip(digits) {
        let last = (*whole << 24) >> 24;
        *whole = (*whole - last) >> 8;
        *digit = last as u8;
        sum += last;
    }
    sum
}

/// Where digits go: codes in a byte, words beside each other, and which of these.
type Places = (usize, usize, usize);

kernel! {
    /// Put the last digits of all blocks in their places, and their sums: of the 4 bytes of a line the codes of one plane,
    /// then of the next.
    fn put(whole: &mut [i32], blocks: &[Block], places: Places, words: &mut [u32], sums: &mut [i32]) {
        let (planes, wide, at) = places;
        let (mut first, mut digits) = (at, [0; LONGEST]);
        for (block, sums) in blocks.iter().zip(sums.chunks_mut(wide)) {
            let digits = &mut digits[..block.len];
            sums[at] = last_digits(&mut whole[block.start..block.start + block.len], digits);
            match planes {
                1 => put_planes::<4>(digits, wide, &mut words[first..]),
                2 => put_planes::<8>(digits, wide, &mut words[first..]),
                _ => put_planes::<16>(digits, wide, &mut words[first..]),
            }
            first += block.words * planes * wide;
        }
    }
}

/// With so many codes in a line.
#[inline(always)]
fn put_planes<const CODES: usize>(digits: &[u8], wide: usize, words: &mut [u32]) {
    let planes = CODES / 4;
    let (lines, rest) = digits.as_chunks::<CODES>();
    let mut last = [0; CODES];
    last[..rest.len()].copy_from_slice(rest);
    let lines = lines.iter().chain((!rest.is_empty()).then_some(&last));
    for (line, words) in lines.zip(words.chunks_mut(planes * wide)) {
        for plane in 0..planes {
            let four = [line[plane], line[planes + plane], line[2 * planes + plane], line[3 * planes + plane]];
            words[plane * wide] = u32::from_le_bytes(four);
        }
    }
}

impl Tile {
    pub fn new(x: &[f32], rows: usize, form: &Form, digits: Digits) -> Self {
        let (count, blocks, planes) = (digits.count(), form.blocks.len(), form.planes());
        let wide = rows * count;
        let mut words = vec![0u32; form.words * planes * wide];
        let (mut scale, mut sums) = (vec![0.0; blocks * rows], vec![0; blocks * wide]);
        let (mut whole, mut scales) = (vec![0; form.cols], vec![0.0; blocks]);
        for row in 0..rows {
            numbers(&x[row * form.cols..][..form.cols], &form.blocks, digits.top(), &mut whole, &mut scales);
            for (i, &of_block) in scales.iter().enumerate() {
                scale[i * rows + row] = of_block;
            }
            for digit in (0..count).rev() {
                put(&mut whole, &form.blocks, (planes, wide, row * count + digit), &mut words, &mut sums);
            }
        }
        Self { rows, digits: count, words, scale, sums }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::codes::Scheme;

    /// What a tile says of element `k` of a row.
    fn number(tile: &Tile, form: &Form, row: usize, k: usize) -> f64 {
        let (planes, wide) = (form.planes(), tile.rows * tile.digits);
        let mut first = 0;
        for (i, block) in form.blocks.iter().enumerate() {
            if k < block.start + block.len {
                let (byte, plane) = ((k - block.start) / planes, (k - block.start) % planes);
                let at = ((first + byte / 4) * planes + plane) * wide + row * tile.digits;
                let digit = |j| f64::from((tile.words[at + j] >> (8 * (byte % 4))) as u8 as i8);
                let whole = (0..tile.digits).fold(0.0, |n, j| n * 256.0 + digit(j));
                return whole * f64::from(tile.scale[i * tile.rows + row]);
            }
            first += block.words;
        }
        unreachable!("no such element")
    }

    #[test]
    fn test_digits_tell_every_number_to_within_a_half_unit() {
        let x: Vec<f32> = (0..2 * 70u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.5) * 3.0).collect();
        for (digits, part) in [(Digits::One, 0.501 / 127.0), (Digits::Three, 0.7 / 4_194_303.0)] {
            for bits in [8, 4, 2] {
                let form = Form::new(bits, Scheme::Symmetric, [3, 70], 27);
                let tile = Tile::new(&x, 2, &form, digits);
                for (i, &x) in x.iter().enumerate() {
                    let off = (number(&tile, &form, i / 70, i % 70) - f64::from(x)).abs();
                    assert!(off <= 1.5 * part, "{bits} {digits:?} {off}");
                }
            }
        }
    }

    #[test]
    fn test_blocks_that_are_tiny_zero_or_not_finite() {
        let form = Form::new(8, Scheme::Symmetric, [1, 8], 2);
        let x = [1e-45, -1e-45, 0.0, -0.0, f32::NAN, 1.0, f32::NEG_INFINITY, 1.0];
        let tile = Tile::new(&x, 1, &form, Digits::One);
        assert!(tile.scale[..2] == [0.0; 2] && tile.scale[2..].iter().all(|scale| scale.is_nan()));
        assert!(tile.words.iter().all(|&word| word == 0));
        let most = Tile::new(&[2.66e-43, -1.4e-43], 1, &Form::new(8, Scheme::Symmetric, [1, 2], 2), Digits::One);
        assert_eq!(most.words[0], 0x0000_9c7f, "{:x}", most.words[0]);
    }
}

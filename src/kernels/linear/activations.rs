//! Rows of `x` as whole numbers: each block in units of its own scale, in digits of 8 bits.

use super::TALL;
use super::form::{Block, Form, LINE, LONGEST};
use crate::isa::kernel;
use crate::par;
use crate::real::Divisor;

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
    /// How many words of a row lie beside each other.
    pub together: usize,
    /// Whether it is the first that a panel is multiplied by.
    pub is_first: bool,
    /// See [`Tile::words`]; before them come a few, so that they begin with a line of the cache.
    words: Vec<u32>,
    skipped: usize,
    /// Scales: blocks, rows.
    pub scale: Vec<f32>,
    /// Sums of digits: blocks, rows, digits.
    pub sums: Vec<i32>,
}

/// 1.5 x 2^23: a sum with it has the nearest whole number in its low bits, halves to even.
const ROUNDING: f32 = 12_582_912.0;

/// The nearest whole number within limits.
#[inline(always)]
fn nearest(q: f32, top: f32) -> i32 {
    let q = if q > top { top } else { q };
    let q = if q < -top { -top } else { q };
    ((q + ROUNDING).to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32)
}

/// The nearest whole numbers in units of a scale: their largest magnitude by `top`. Where one is NaN or infinite the scale is
/// NaN, where it is so small that the scale is 0 all are 0.
#[inline(always)]
fn numbers<const FMA: bool>(x: &[f32], top: f32, out: &mut [i32]) -> f32 {
    let mut largest = 0;
    for x in x {
        largest = largest.max(x.to_bits() & 0x7fff_ffff);
    }
    if largest >= 0x7f80_0000 {
        out.fill(0);
        return f32::NAN;
    }
    let scale = f32::from_bits(largest) / top;
    let divisor = if scale == 0.0 { 1.0 } else { scale };
    // A division takes as long as all else together. What is below 1/2 is 0 either way; of larger quotients none is too large.
    if FMA && Divisor::is_exact(divisor) {
        let divisor = Divisor::new(divisor);
        for (out, &x) in out.iter_mut().zip(x) {
            *out = nearest(divisor.quotient(x), top);
        }
    } else {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = nearest(x / divisor, top);
        }
    }
    scale
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

/// Words before those of a tile, at most.
const SKIPPED: usize = LINE / size_of::<u32>() - 1;
/// Elements of one piece of work.
const PIECE: usize = 1 << 11;
/// Of fewer pieces none is worth another thread.
const FEW: usize = 16;

/// Some blocks of all rows of a tile.
struct Part<'a> {
    /// The rows, from the first element of the blocks on.
    x: &'a [f32],
    blocks: &'a [Block],
    rows: usize,
    words: &'a mut [u32],
    scale: &'a mut [f32],
    sums: &'a mut [i32],
}

kernel! {
    /// Fill a part: of the 4 bytes of a line the codes of one plane, then of the next.
    fn fill(part: Part<'_>, form: &Form, digits: Digits, together: usize) {
        let (count, planes, wide) = (digits.count(), form.planes(), part.sums.len() / part.blocks.len());
        let (mut whole, mut bytes, mut words) = ([0; LONGEST], [[0; LONGEST]; TALL], part.words);
        let of_blocks = part.scale.chunks_mut(part.rows).zip(part.sums.chunks_mut(wide));
        for (block, (scale, sums)) in part.blocks.iter().zip(of_blocks) {
            let (start, len, n) = (block.start - part.blocks[0].start, block.len, planes * block.words);
            let whole = &mut whole[..len];
            for (row, scale) in scale.iter_mut().enumerate() {
                *scale = numbers::<FMA>(&part.x[row * form.cols + start..][..len], digits.top(), whole);
                for at in (row * count..(row + 1) * count).rev() {
                    let bytes = &mut bytes[at][..4 * n];
                    sums[at] = last_digits(whole, bytes);
                    if len < bytes.len() {
                        bytes[len..].fill(0);
                    }
                    match planes {
                        1 => {}
                        2 => bytes.as_chunks_mut().0.iter_mut().for_each(two_planes),
                        _ => bytes.as_chunks_mut().0.iter_mut().for_each(four_planes),
                    }
                }
            }
            let of_block;
            (of_block, words) = words.split_at_mut(n * wide);
            weave(&bytes[..wide], of_block, together);
        }
    }
}

/// Bring 8 digits in the order of their planes.
#[inline(always)]
fn two_planes(line: &mut [u8; 8]) {
    let all = u64::from_le_bytes(*line);
    let all = (all & 0xff00_00ff_ff00_00ff) | ((all >> 8) & 0xff00_0000_ff00) | ((all << 8) & 0xff_0000_00ff_0000);
    let all = (all & 0xffff_0000_0000_ffff) | ((all >> 16) & 0xffff_0000) | ((all << 16) & 0xffff_0000_0000);
    *line = all.to_le_bytes();
}

/// Bring 16 digits in the order of their planes.
#[inline(always)]
fn four_planes(line: &mut [u8; 16]) {
    *line = std::array::from_fn(|i| line[i % 4 * 4 + i / 4]);
}

/// So many words of one after the other, in turn.
#[inline(always)]
fn weave(bytes: &[[u8; LONGEST]], words: &mut [u32], together: usize) {
    match (bytes.len(), together) {
        (8, 1) => weave_of::<8>(bytes, words),
        (4, 1) => weave_of::<4>(bytes, words),
        (wide, 2..) => {
            for (i, words) in words.chunks_exact_mut(wide * together).enumerate() {
                for (words, bytes) in words.chunks_exact_mut(together).zip(bytes) {
                    for (word, four) in words.iter_mut().zip(&bytes.as_chunks().0[i * together..]) {
                        *word = u32::from_le_bytes(*four);
                    }
                }
            }
        }
        (wide, _) => {
            for (at, bytes) in bytes.iter().enumerate() {
                for (word, four) in words[at..].iter_mut().step_by(wide).zip(bytes.as_chunks().0) {
                    *word = u32::from_le_bytes(*four);
                }
            }
        }
    }
}

/// So many at a time: the stores are in order.
#[inline(always)]
fn weave_of<const WIDE: usize>(bytes: &[[u8; LONGEST]], words: &mut [u32]) {
    let bytes = &bytes.as_chunks::<WIDE>().0[0];
    for (i, words) in words.as_chunks_mut::<WIDE>().0.iter_mut().enumerate() {
        for (word, bytes) in words.iter_mut().zip(bytes) {
            *word = u32::from_le_bytes(bytes.as_chunks().0[i]);
        }
    }
}

impl Tile {
    /// All numbers 0 yet.
    fn empty(rows: usize, form: &Form, digits: Digits, together: usize) -> Self {
        let (digits, blocks) = (digits.count(), form.blocks.len());
        let words = vec![0; form.words * form.planes() * rows * digits + SKIPPED];
        let skipped = words.as_ptr().align_offset(LINE).min(SKIPPED);
        let (scale, sums) = (vec![0.0; blocks * rows], vec![0; blocks * rows * digits]);
        Self { rows, digits, together, is_first: true, words, skipped, scale, sums }
    }

    /// 4 digits for each line and each code of its bytes: so many words of a row and digit beside each other, of all rows and
    /// digits after each other.
    pub fn words(&self) -> &[u32] {
        &self.words[self.skipped..][..self.words.len() - SKIPPED]
    }

    /// What of it is to be filled from so many rows of `x`, in pieces.
    fn parts<'a>(&'a mut self, x: &'a [f32], form: &'a Form) -> impl Iterator<Item = Part<'a>> {
        let (rows, wide) = (self.rows, self.rows * self.digits);
        let together = form.blocks.first().map_or(1, |block| PIECE / (rows * block.len)).max(1);
        let (mut words, mut scale, mut sums) =
            (&mut self.words[self.skipped..], &mut self.scale[..], &mut self.sums[..]);
        form.blocks.chunks(together).map(move |blocks| {
            let of_words = blocks.iter().map(|block| block.words).sum::<usize>() * form.planes() * wide;
            let n = blocks.len();
            Part {
                x: &x[blocks[0].start..],
                blocks,
                rows,
                words: words.split_off_mut(..of_words).unwrap_or_default(),
                scale: scale.split_off_mut(..n * rows).unwrap_or_default(),
                sums: sums.split_off_mut(..n * wide).unwrap_or_default(),
            }
        })
    }

    /// Rows of `x` in tiles: where each begins, and how many it has.
    pub fn all(
        x: &[f32],
        places: &[(usize, usize)],
        form: &Form,
        (digits, together): (Digits, usize),
        threads: usize,
    ) -> Vec<Self> {
        let empty = |&(_, rows): &(usize, usize)| Self::empty(rows, form, digits, together);
        let mut tiles: Vec<_> = places.iter().map(empty).collect();
        tiles.iter_mut().skip(1).for_each(|tile| tile.is_first = false);
        let of_tiles =
            tiles.iter_mut().zip(places).flat_map(|(tile, &(start, _))| tile.parts(&x[start * form.cols..], form));
        let parts: Vec<_> = of_tiles.collect();
        let threads = if parts.len() < FEW { 1 } else { threads };
        par::for_each(threads, parts.into_iter(), |part| fill(part, form, digits, together));
        tiles
    }

    /// All rows of `x` in one.
    pub fn new(x: &[f32], rows: usize, form: &Form, digits: Digits, threads: usize) -> Self {
        let mut all = Self::all(x, &[(0, rows)], form, (digits, 1), threads);
        all.remove(0)
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
                let digit = |j| f64::from((tile.words()[at + j] >> (8 * (byte % 4))) as u8 as i8);
                let whole = (0..tile.digits).fold(0.0, |n, j| n * 256.0 + digit(j));
                return whole * f64::from(tile.scale[i * tile.rows + row]);
            }
            first += block.words;
        }
        unreachable!("no such element")
    }

    #[test]
    fn test_digits_tell_every_number_to_within_a_half_unit() {
        // Several pieces of work.
        const COLS: usize = 1500;
        let x: Vec<f32> =
            (0..2 * COLS as u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.5) * 3.0).collect();
        for (digits, part) in [(Digits::One, 0.501 / 127.0), (Digits::Three, 0.7 / 4_194_303.0)] {
            for bits in [8, 4, 2] {
                let form = Form::new(bits, Scheme::Symmetric, [3, COLS], 27);
                let tile = Tile::new(&x, 2, &form, digits, 1);
                for (i, &x) in x.iter().enumerate() {
                    let off = (number(&tile, &form, i / COLS, i % COLS) - f64::from(x)).abs();
                    assert!(off <= 1.5 * part, "{bits} {digits:?} {off}");
                }
            }
        }
    }

    #[test]
    fn test_blocks_that_are_tiny_zero_or_not_finite() {
        let form = Form::new(8, Scheme::Symmetric, [1, 8], 2);
        let x = [1e-45, -1e-45, 0.0, -0.0, f32::NAN, 1.0, f32::NEG_INFINITY, 1.0];
        let tile = Tile::new(&x, 1, &form, Digits::One, 1);
        assert!(tile.scale[..2] == [0.0; 2] && tile.scale[2..].iter().all(|scale| scale.is_nan()));
        assert!(tile.words().iter().all(|&word| word == 0));
        let most = Tile::new(&[2.66e-43, -1.4e-43], 1, &Form::new(8, Scheme::Symmetric, [1, 2], 2), Digits::One, 1);
        assert_eq!(most.words()[0], 0x0000_9c7f, "{:x}", most.words()[0]);
    }
}

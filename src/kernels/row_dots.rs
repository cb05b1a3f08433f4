//! Products of rows of bytes with one row of digits, each row where it lies: sums of blocks as whole numbers, 16 rows at once.
//!
//! Tried as tiles of bytes (AMX), the digits of three blocks as columns of one: 32 rows of 384 took as long in the cache, 1.25
//! times as long from memory.

#[cfg(target_arch = "x86_64")]
mod x86;

/// Rows at once.
pub const ROWS: usize = 16;
/// Bytes of a row that are multiplied at once.
pub const PIECE: usize = 64;

/// Rows of codes.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a> {
    /// Those of these rows, and maybe more after them.
    pub codes: &'a [u8],
    /// How many rows there are: one or more.
    pub rows: usize,
    /// From the first byte of a row to that of the next.
    pub stride: usize,
    /// What each byte is flipped with to have no sign.
    pub flip: u8,
}

/// Signed digits of one row, and what they are of.
#[derive(Debug)]
pub struct Row {
    /// Where each block begins, and how many bytes it has.
    blocks: Vec<[usize; 2]>,
    /// For each piece of each block its digits, from the highest; 0 behind the end of the block.
    lines: Vec<[u8; PIECE]>,
    /// 1 or 3.
    digits: usize,
}

/// How many sums a block has of each kind, for so many rows.
pub fn pitch(rows: usize) -> usize {
    rows.next_multiple_of(ROWS)
}

impl Row {
    /// `words` has 4 digits for each 4 bytes of each block, of each of the `digits` after each other.
    pub fn new(blocks: Vec<[usize; 2]>, digits: usize, words: &[u32]) -> Self {
        let (mut lines, mut words) = (vec![], words);
        for &[_, len] in &blocks {
            let (of_block, rest) = words.split_at(len.div_ceil(4) * digits);
            words = rest;
            for piece in of_block.chunks(PIECE / 4 * digits) {
                for digit in 0..digits {
                    let mut line = [0; PIECE];
                    for (four, word) in
                        line.as_chunks_mut::<4>().0.iter_mut().zip(piece.iter().skip(digit).step_by(digits))
                    {
                        *four = word.to_le_bytes();
                    }
                    lines.push(line);
                }
            }
        }
        Self { blocks, lines, digits }
    }

    /// Of each block the sums by row: of the highest two digits of three, joined (a high one is 64 at most, so that they are
    /// less than 2^31), or of the only one; then of the lowest of three, or 0. There are [`pitch`] of each, from the last row
    /// on all the same.
    pub fn sums(&self, bytes: Bytes<'_>, sums: &mut [i32]) {
        let pitch = pitch(bytes.rows);
        assert!(bytes.rows > 0 && sums.len() == self.blocks.len() * 2 * pitch);
        #[cfg(target_arch = "x86_64")]
        if x86::sums(self, bytes, sums) {
            return;
        }
        let mut lines = &self.lines[..];
        for (&[start, len], sums) in self.blocks.iter().zip(sums.chunks_exact_mut(2 * pitch)) {
            let (of_block, rest) = lines.split_at(len.div_ceil(PIECE) * self.digits);
            lines = rest;
            let (first, second) = sums.split_at_mut(pitch);
            for (row, (first, second)) in first.iter_mut().zip(second).enumerate() {
                let codes = &bytes.codes[row.min(bytes.rows - 1) * bytes.stride + start..][..len];
                let mut found = [0i32; 3];
                for (codes, lines) in codes.chunks(PIECE).zip(of_block.chunks(self.digits)) {
                    for (found, line) in found.iter_mut().zip(lines) {
                        for (&code, &digit) in codes.iter().zip(line) {
                            *found += i32::from(code ^ bytes.flip) * i32::from(digit as i8);
                        }
                    }
                }
                let [high, middle, low] = found;
                (*first, *second) = if self.digits == 3 { (high * 256 + middle, low) } else { (high, 0) };
            }
        }
    }
}

/// Whether there is a fast way.
pub fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::isa::current().has_vnni();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{self, Isa};

    #[test]
    fn test_every_instruction_set_gives_the_same_sums_wherever_blocks_begin_and_end() {
        for (blocks, rows) in [
            (vec![[0, 128], [128, 128], [256, 128]], 16),
            (vec![[0, 64], [64, 1], [65, 130]], 16),
            (vec![[3, 256], [259, 63]], 5),
            (vec![[0, 1]], 1),
            (vec![[0, 65], [65, 192]], 37),
            ((0..17).map(|i| [100 * i, 100]).collect(), 70),
            (vec![], 2),
        ] {
            let stride = blocks.last().map_or(1, |[start, len]| start + len);
            let codes: Vec<u8> = (0..rows * stride).map(|i| (i * 37 + i / 7) as u8).collect();
            for digits in [1, 3] {
                // The largest are among them: 0x80 and, of three, 64 before it. Behind the end of a block there are zeros.
                let mut words = vec![];
                for &[start, len] in &blocks {
                    for place in (start..start + len).step_by(4) {
                        for digit in 0..digits {
                            let byte = |at: usize| match (digit, digits) {
                                _ if at >= start + len => 0,
                                (0, 3) => ((at * 57 % 129) as i8 - 64) as u8,
                                (2, _) => 0x80,
                                _ => (at * 91) as u8,
                            };
                            words.push(u32::from_le_bytes([0, 1, 2, 3].map(|i| byte(place + i))));
                        }
                    }
                }
                let row = Row::new(blocks.clone(), digits, &words);
                for flip in [0, 0x80] {
                    isa::set(Isa::Portable);
                    let mut want = vec![0; blocks.len() * 2 * pitch(rows)];
                    row.sums(Bytes { codes: &codes, rows, stride, flip }, &mut want);
                    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                        isa::set(isa);
                        let mut got = vec![9; blocks.len() * 2 * pitch(rows)];
                        row.sums(Bytes { codes: &codes, rows, stride, flip }, &mut got);
                        assert_eq!(got, want);
                    }
                }
            }
        }
    }
}

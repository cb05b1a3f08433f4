//! Words of 16 rows beside each other: word j of row i becomes lane i of a line of 64 bytes.

#[cfg(target_arch = "x86_64")]
mod x86;

/// Rows: lanes of a line.
pub const ROWS: usize = 16;
/// Bytes of a line.
pub const LINE: usize = 4 * ROWS;

/// Write word j of each row, its bits flipped by `flip`, to the line of number `places[j]`. A row begins every `stride` bytes
/// and has that many words at least.
pub fn transpose_words(rows: &[u8], stride: usize, places: &[usize], flip: u32, lines: &mut [[u8; LINE]]) {
    #[cfg(target_arch = "x86_64")]
    let done = x86::transpose_words(rows, stride, places, flip, lines);
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    for (j, &place) in places.iter().enumerate().skip(done) {
        let line = &mut lines[place];
        for (i, lane) in line.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let word = rows[i * stride + 4 * j..].first_chunk().copied().unwrap_or_default();
            *lane = (u32::from_le_bytes(word) ^ flip).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{self, Isa};

    #[test]
    fn test_every_word_comes_to_its_lane_with_any_instruction_set() {
        for n in [0, 1, 15, 16, 17, 40] {
            let stride = 4 * n + 3;
            let rows: Vec<u8> = (0..ROWS * stride).map(|i| (i * 31 + i / 256) as u8).collect();
            let places: Vec<usize> = (0..n).map(|j| (2 * j + n) % (2 * n + 1)).collect();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                isa::set(isa);
                let mut lines = vec![[9; LINE]; 2 * n + 1];
                transpose_words(&rows, stride, &places, 0x8000_0001, &mut lines);
                for (j, &place) in places.iter().enumerate() {
                    for (i, row) in rows.chunks(stride).enumerate() {
                        let want: Vec<u8> =
                            row[4 * j..4 * j + 4].iter().zip([1, 0, 0, 0x80]).map(|(a, b)| a ^ b).collect();
                        assert_eq!(lines[place][4 * i..4 * i + 4], want);
                    }
                }
                assert!((0..lines.len()).all(|i| places.contains(&i) || lines[i] == [9; LINE]));
            }
        }
    }
}

//! Products of bytes as tiles (AMX): rows of digits times lines of codes, of two places at once.
//!
//! One instruction makes 16 x 16 sums of 64 products each, 8 times as many in a cycle as one of AVX-512 VNNI. Sums are exact.

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub use x86::{Tiles, are_available, unpack};

use super::transpose::ROWS as LANES;

/// Rows of a tile, and words of 4 bytes in each.
pub const ROWS: usize = 16;
/// Places of codes at once.
pub const PLACES: usize = 2;

/// Sums by place, row of digits and lane of the lines.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Sums(pub [[[i32; LANES]; ROWS]; PLACES]);

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::transpose::LINE;
    use super::*;

    /// Bytes that are all among them.
    fn bytes(n: usize) -> impl Iterator<Item = u8> {
        (0..n).map(|i| (i * 37 + i / 7) as u8)
    }

    #[test]
    fn test_products_of_tiles_are_those_of_their_bytes_one_by_one() {
        if !are_available() {
            return;
        }
        let mut tiles = Tiles::default();
        // Shapes change, and stay.
        for (rows, n) in (1..=ROWS).rev().chain(1..=ROWS).chain([ROWS]).zip([16, 48, 32].into_iter().cycle()) {
            let codes: Vec<[u8; LINE]> = bytes(2 * n * LINE).collect::<Vec<_>>().as_chunks().0.to_vec();
            let x: Vec<u8> = bytes(rows * n * 4).map(|byte| byte ^ 0x80).collect();
            let words: Vec<u32> = x.as_chunks().0.iter().map(|four| u32::from_le_bytes(*four)).collect();
            let mut sums = Sums([[[7; LANES]; ROWS]; PLACES]);
            tiles.products(rows, &words, [&codes[..n], &codes[n..]], &mut sums);
            for (place, codes) in codes.chunks(n).enumerate() {
                for (row, lane) in (0..rows).flat_map(|row| (0..LANES).map(move |lane| (row, lane))) {
                    let digit =
                        |line: usize, i: usize| x[((line / ROWS * rows + row) * ROWS + line % ROWS) * 4 + i] as i8;
                    let of_line = |line: usize| {
                        (0..4).map(|i| i32::from(codes[line][4 * lane + i]) * i32::from(digit(line, i))).sum::<i32>()
                    };
                    assert_eq!(sums.0[place][row][lane], (0..n).map(of_line).sum::<i32>(), "{rows} {n}");
                }
            }
        }
    }

    #[test]
    fn test_a_thread_has_one_set_of_tiles_at_a_time() {
        if !are_available() {
            return;
        }
        let (line, mut sums) = ([[1; LINE]; ROWS], Sums::default());
        let mut one = Tiles::default();
        one.products(1, &[0x0101_0101; ROWS], [&line; 2], &mut sums);
        let second = std::panic::catch_unwind(|| {
            Tiles::default().products(2, &[0; 2 * ROWS], [&line; 2], &mut Sums::default());
        });
        assert!(second.is_err());
        one.products(1, &[0x0101_0101; ROWS], [&line; 2], &mut sums);
        assert_eq!(sums.0[1][0][LANES - 1], 64);
        drop(one);
        Tiles::default().products(1, &[0x0202_0202; ROWS], [&line; 2], &mut sums);
        assert_eq!(sums.0[1][0][LANES - 1], 128);
    }
}

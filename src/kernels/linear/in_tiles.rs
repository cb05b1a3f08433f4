//! Panels times a tile of `x` as tiles of bytes, see [`tiles`].

mod x86;

use x86::{Beside, add_block};

use super::activations::{Digits, Tile};
use super::form::{Block, Form, LINE};
use super::product::{PANELS, Worker};
use crate::isa::{self, kernel};
use crate::kernels::codes::Scheme;
use crate::kernels::tiles;

/// Whether products with so many rows are made so: blocks must be whole tiles.
///
/// 1, 2, 4 and 8 rows, one tile for instructions on vectors, wait for memory either way (8 bits, 4,096 x 4,096). Others take 0.5 to
/// 0.8 of the time, where scales are for 64 elements and more; for 32, in half a tile, they would take as long, and a few rows
/// of 2 bits longer: it is not worth it to unpack codes.
pub(super) fn are_fit(rows: usize, form: &Form, digits: Digits) -> bool {
    let is_whole = |block: &Block| (block.words * form.planes()).is_multiple_of(tiles::ROWS);
    let is_fast = rows <= 8 && (rows.is_power_of_two() || form.bits == 2);
    let are_whole = !is_fast && digits == Digits::One && form.blocks.iter().all(is_whole);
    are_whole && isa::current().has_vnni() && tiles::are_available()
}

kernel! {
    /// The sums of the tile's rows for each panel. Floats come a block later than whole numbers, as these take a while.
    pub(super) fn panels(lines: [&[[u8; LINE]]; PANELS], form: &Form, tile: &Tile, worker: &mut Worker) {
        let (rows, second) = (tile.rows, usize::from(form.scheme != Scheme::Symmetric));
        let (mut whole, mut x) = ([tiles::Sums::default(), tiles::Sums::default()], tile.words());
        let mut before: Option<Beside<'_>> = None;
        let of_blocks = tile.sums.chunks_exact(rows).zip(tile.scale.chunks_exact(rows));
        for (i, (block, (digits, units))) in form.blocks.iter().zip(of_blocks).enumerate() {
            let (n, of_block);
            n = block.words * form.planes();
            (of_block, x) = x.split_at(n * rows);
            let mut codes = [&lines[0][block.lines()], &lines[1][block.lines()]];
            if tile.is_first {
                // What follows, a block ahead: a tile that waits for its lines keeps all else waiting.
                let ahead = form.blocks.get(i + 1).map_or(block.words, |next| next.codes - block.codes) * LINE;
                for (first, last) in codes[0].iter().zip(codes[1]) {
                    isa::prefetch::<false, _>(first, ahead);
                    isa::prefetch::<false, _>(last, ahead);
                }
            }
            if form.bits < 8 {
                for (codes, bytes) in codes.iter_mut().zip(&mut worker.unpacked) {
                    tiles::unpack(codes, form.bits, &mut bytes[..n]);
                    *codes = &bytes[..n];
                }
            }
            worker.tiles.products(rows, of_block, codes, &mut whole[i % 2]);
            let [first, last] = lines;
            let headers = [first, last].map(|lines| [&lines[block.header], &lines[block.header + second]]);
            if let Some(before) = before.replace(Beside { headers, digits, units }) {
                add_block(&whole[(i + 1) % 2], before, form, &mut worker.sums);
            }
        }
        if let Some(last) = before {
            add_block(&whole[(form.blocks.len() + 1) % 2], last, form, &mut worker.sums);
        }
    }
}

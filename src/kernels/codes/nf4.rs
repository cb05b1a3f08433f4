//! NF4.

use super::Code;
use super::codebook::{Codebook, bounds, rank};

/// "4-bit NormalFloat": Dettmers et al. 2023, "`QLoRA`" (arXiv 2305.14314), appendix E: quantiles of a normal
/// distribution, 0 and ±1 among them. The numbers are those of bitsandbytes; so is the choice of the lower of two that
/// are equally near.
#[derive(Debug, Clone, Copy)]
pub struct Nf4;

/// As in bitsandbytes, with all of their digits.
#[expect(clippy::excessive_precision, clippy::unreadable_literal, reason = "as they are published")]
const NUMBERS: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];
const BOUNDS: [f32; 15] = bounds(&NUMBERS);
static CODEBOOK: Codebook = Codebook::new(NUMBERS, &BOUNDS, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

impl Code for Nf4 {
    const BITS: u32 = 4;
    const TOP: f32 = 1.0;
    const CODEBOOK: Option<&'static Codebook> = Some(&CODEBOOK);
    const NUMBERS: Option<&'static [f32; 16]> = Some(&CODEBOOK.numbers);

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        rank(&BOUNDS, x)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        NUMBERS[(code & 15) as usize]
    }
}

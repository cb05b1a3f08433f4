//! The dynamic maps, of 8 and of 4 bits.

use super::Code;
use crate::real::select;

/// The signed "dynamic" map of Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization"
/// (arXiv 2110.02861): decades from 1e-6 (8 bits) to 1, each cut evenly into twice as many parts as the one below; a
/// code is the mean of its part. 0 and 1 have codes of their own. Codes are in the order of the numbers, as in
/// bitsandbytes: the middle (0) plus or minus a rank.
#[derive(Debug, Clone, Copy)]
pub struct SignedDynamic;

/// The arithmetic of a dynamic map: the rank of a magnitude is 2^k + j for part j of the decade that has 2^k parts.
struct Decades<const N: usize> {
    /// k of the lowest decade.
    first: u32,
    /// 10^-i of each decade, then what makes the rank above all of them the number 1.
    size: [f32; N],
    inverse: [f32; N],
    /// The midpoint between the largest number below a decade and its smallest.
    begin: [f32; N],
}

impl<const N: usize> Decades<N> {
    const fn new(first: u32) -> Self {
        let (mut size, mut inverse, mut begin) = ([0.0; N], [0.0; N], [0.0; N]);
        let mut below = 0.0;
        let mut decade = 1.0;
        let mut i = 2;
        while i < N {
            decade /= 10.0;
            i += 1;
        }
        i = 0;
        while i < N {
            let parts = (1u64 << (first + i as u32)) as f64;
            let smallest = if i + 1 < N { decade * (0.1 + 0.45 / parts) } else { 1.0 };
            let of_one = if i + 1 < N { decade } else { 1.0 / (0.1 + 0.45 / parts) };
            size[i] = of_one as f32;
            inverse[i] = (1.0 / of_one) as f32;
            begin[i] = f64::midpoint(below, smallest) as f32;
            below = decade * (1.0 - 0.45 / parts);
            decade *= 10.0;
            i += 1;
        }
        Self { first, size, inverse, begin }
    }

    /// The rank of a magnitude from 0 to 1.
    #[inline(always)]
    fn rank(&self, x: f32) -> u32 {
        let (mut inverse, mut parts) = (0.0, 0.0f32);
        let mut count = (1u32 << self.first) as f32;
        for i in 0..N {
            let reached = x >= self.begin[i];
            inverse = if reached { self.inverse[i] } else { inverse };
            parts = if reached { count } else { parts };
            count *= 2.0;
        }
        // The part, rounded down: by adding 1.5 x 2^23, which rounds to nearest, to half a part less.
        let part = (x * inverse - 0.1) * (parts / 0.9) - 0.5;
        let part = if part > 0.0 { part } else { 0.0 };
        let part = if part < parts - 1.0 { part } else { parts - 1.0 };
        let rank = (part + parts + 12_582_912.0).to_bits() & 0xffff;
        select(parts > 0.0, rank, 0)
    }

    /// The magnitude of a rank.
    #[inline(always)]
    fn magnitude(&self, rank: u32) -> f32 {
        let rank = rank as i32 as f32;
        let mut size = 0.0;
        let mut count = (1u32 << self.first) as f32;
        for i in 0..N {
            size = if rank >= count { self.size[i] } else { size };
            count *= 2.0;
        }
        let bits = rank.to_bits();
        // (rank - 2^k) / 2^k, and half a part: 2^-k / 2.
        let part = f32::from_bits((bits & 0x007f_ffff) | 1.0f32.to_bits()) - 1.0;
        let half = f32::from_bits((253 << 23) - (bits & 0x7f80_0000));
        (0.1 + 0.9 * (part + half)) * size
    }
}

const SIGNED8: Decades<8> = Decades::new(0);
const UNSIGNED8: Decades<8> = Decades::new(1);
const SIGNED4: Decades<4> = Decades::new(0);

/// A signed code: the middle, plus or minus a rank. The highest rank, 1, is only positive.
#[inline(always)]
fn encode_signed<const N: usize>(decades: &Decades<N>, x: f32) -> u32 {
    let middle = (1 << (N - 1)) - 1;
    let rank = decades.rank(x.abs());
    select(x < 0.0, middle - rank.min(middle), middle + rank)
}

#[inline(always)]
fn decode_signed<const N: usize>(decades: &Decades<N>, code: u32) -> f32 {
    let middle = (1 << (N - 1)) - 1;
    let is_negative = code < middle;
    let magnitude = decades.magnitude(select(is_negative, middle.wrapping_sub(code), code.wrapping_sub(middle)));
    f32::from_bits(magnitude.to_bits() | (is_negative as u32) << 31)
}

impl Code for SignedDynamic {
    const BITS: u32 = 8;
    const TOP: f32 = 1.0;

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        encode_signed(&SIGNED8, x)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        decode_signed(&SIGNED8, code)
    }
}

/// The same without negative numbers: a rank, from 0.
#[derive(Debug, Clone, Copy)]
pub struct UnsignedDynamic;

impl Code for UnsignedDynamic {
    const BITS: u32 = 8;
    const TOP: f32 = 1.0;

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        UNSIGNED8.rank(x).saturating_sub(1)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        UNSIGNED8.magnitude(code + 1)
    }
}

/// The signed dynamic map of 4 bits: Li, Chen and Zhu 2023, "Memory Efficient Optimizers with 4-bit States" (arXiv
/// 2309.01507), for first moments.
#[derive(Debug, Clone, Copy)]
pub struct Dynamic4;

impl Code for Dynamic4 {
    const BITS: u32 = 4;
    const TOP: f32 = 1.0;

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        encode_signed(&SIGNED4, x)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        decode_signed(&SIGNED4, code)
    }
}

/// 1 to 16, evenly: what the same paper has for second moments, without a 0.
#[derive(Debug, Clone, Copy)]
pub struct SixteenSteps;

impl Code for SixteenSteps {
    const BITS: u32 = 4;
    const TOP: f32 = 16.0;

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        let x = if x > 1.0 { x } else { 1.0 };
        ((x + 12_582_911.0).to_bits() & 0xff).min(15)
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        (code + 1) as i32 as f32
    }
}

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

/// The numbers, in order: as a [`Decades`] of three and 1 has them.
#[expect(clippy::excessive_precision, clippy::unreadable_literal, reason = "with all of their digits")]
static NUMBERS4: [f32; 16] = [
    -0.887499988,
    -0.662500024,
    -0.437499970,
    -0.212500006,
    -0.0775000006,
    -0.0324999988,
    -0.00549999997,
    0.0,
    0.00549999997,
    0.0324999988,
    0.0775000006,
    0.212500006,
    0.437499970,
    0.662500024,
    0.887499988,
    1.0,
];

/// The smallest magnitude of each rank from 1 on, by its bits: half of the way, as float32 arithmetic finds it.
const RANKS4: [u32; 8] =
    [0x3b34_3958, 0x3c9b_a5e3, 0x3d61_47b0, 0x3e14_7ae1, 0x3ea6_6669, 0x3f0c_cccc, 0x3f46_6668, 0x3f71_999a];

impl Code for Dynamic4 {
    const BITS: u32 = 4;
    const TOP: f32 = 1.0;
    const NUMBERS: Option<&'static [f32; 16]> = Some(&NUMBERS4);

    #[inline(always)]
    fn encode(x: f32) -> u32 {
        let (sign, mut rank) = (x.to_bits() as i32 >> 31, 0);
        for least in RANKS4 {
            rank += (x.abs() >= f32::from_bits(least)) as i32;
        }
        // Minus the rank, one more than its bits turned, where negative.
        let rank = if rank > 7 + sign { 8 + sign } else { rank };
        (7 + ((rank ^ sign) - sign)) as u32
    }

    #[inline(always)]
    fn decode(code: u32) -> f32 {
        NUMBERS4[(code & 15) as usize]
    }
}

/// 1 to 16, evenly: what the same paper has for second moments, without a 0.
#[derive(Debug, Clone, Copy)]
pub struct SixteenSteps;

static STEPS: [f32; 16] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0];

impl Code for SixteenSteps {
    const BITS: u32 = 4;
    const TOP: f32 = 16.0;
    const NUMBERS: Option<&'static [f32; 16]> = Some(&STEPS);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_what_is_listed_of_four_bits_is_the_arithmetic_of_the_map() {
        let decades = Decades::<4>::new(0);
        for code in 0..16 {
            assert_eq!(Dynamic4::decode(code).to_bits(), decode_signed(&decades, code).to_bits(), "{code}");
        }
        let beside = |bits: u32| [bits - 1, bits, bits + 1].map(f32::from_bits);
        let all = (0..=0x7fff).map(|bits| f32::from_bits(bits << 16)).chain(RANKS4.into_iter().flat_map(beside));
        // Above 1 are NaN alone, which have the code of 0.
        for x in all.filter(|&x| !(x > 1.0)).flat_map(|x| [x, -x]) {
            assert_eq!(Dynamic4::encode(x), encode_signed(&decades, x), "{x:e}");
        }
    }
}

//! Reductions over words: the bits of elements of any dtype, so that one loop serves all dtypes of a width.
//!
//! What tells the dtypes of a width apart is a few words that an operation is given when it runs; the additional
//! operations on integers hide behind the memory.

use super::{AHEAD, Op, reduce_chunk};
use crate::isa::{self, kernel};
use crate::par::CHUNK;
use crate::real::Key;

/// Words of a piece: as many bytes of all widths.
pub(super) const fn piece<W>() -> usize {
    if size_of::<W>() < 4 { CHUNK * 4 / size_of::<W>() } else { CHUNK }
}

/// A word: a signed integer of the width of an element.
pub trait Word:
    Key + std::ops::BitAnd<Output = Self> + std::ops::BitOr<Output = Self> + std::ops::BitXor<Output = Self> + Default
{
    /// All bits.
    const ONES: Self;
    /// How many bits.
    const BITS: u32;
    /// All bits where negative, else none.
    #[must_use]
    fn sign(self) -> Self;
    /// The difference, wrapping around.
    #[must_use]
    fn minus(self, other: Self) -> Self;
    /// The bits, others zero.
    fn bits(self) -> u64;
    /// The low bits of `bits`.
    fn of_bits(bits: u64) -> Self;
    /// The sum of words without a sign after these bits of each were turned, where there is a fast one.
    fn fast_sum(_: &[Self], _turned: Self) -> Option<u64> {
        None
    }
}

macro_rules! word {
    ($($t:ty, $unsigned:ty $(, $fast:ident)?);*) => {$(
        impl Word for $t {
            const ONES: Self = -1;
            const BITS: u32 = <$t>::BITS;
            #[inline(always)]
            fn sign(self) -> Self {
                self >> (<$t>::BITS - 1)
            }
            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn bits(self) -> u64 {
                u64::from(self as $unsigned)
            }
            #[inline(always)]
            fn of_bits(bits: u64) -> Self {
                bits as $t
            }
            $(
                fn fast_sum(x: &[Self], turned: Self) -> Option<u64> {
                    Some($fast(x, turned))
                }
            )?
        }
    )*};
}
word!(i8, u8, sum_of_bytes; i16, u16, sum_of_halves; i32, u32; i64, u64);

/// Neighbours are added in a word twice as wide, while it can't overflow (all widened to 64 bits: three times as long).
macro_rules! sum_of_pairs {
    ($name:ident, $word:ty, $wide:ty, $rounds:literal) => {
        kernel! {
            fn $name(x: &[$word], turned: $word) -> u64 {
                let turned = (turned.bits() | (turned.bits() << <$word>::BITS)) as $wide;
                let mut sum = 0u64;
                for x in x.chunks($rounds * 2 * LANES) {
                    let (blocks, tail) = x.as_chunks::<{ 2 * LANES }>();
                    let mut lanes = [0 as $wide; LANES];
                    for block in blocks {
                        isa::prefetch::<false, _>(block, AHEAD / size_of::<$word>());
                        for i in 0..LANES {
                            let (low, high) = (block[2 * i], block[2 * i + 1]);
                            let pair = (low.bits() | (high.bits() << <$word>::BITS)) as $wide ^ turned;
                            lanes[i] += (pair & (<$wide>::MAX >> <$word>::BITS)) + (pair >> <$word>::BITS);
                        }
                    }
                    for lane in lanes {
                        sum += u64::from(lane);
                    }
                    for &word in tail {
                        sum += word.bits() ^ u64::from(turned & (<$wide>::MAX >> <$word>::BITS));
                    }
                }
                sum
            }
        }
    };
}
/// Lanes of 16 or 32 bits.
pub(super) const LANES: usize = 64;
sum_of_pairs!(sum_of_bytes, i8, u16, 128);
sum_of_pairs!(sum_of_halves, i16, u32, 256);

/// The integer whose bits a word has.
pub fn integer_as_f64<W: Word>(word: W, signed: bool) -> f64 {
    if signed { word.to_u64() as i64 as f64 } else { word.bits() as f64 }
}

/// How words are ordered: signed integers whose order is that of the numbers. Both zeros of floats have the key 0.
#[derive(Debug, Clone, Copy)]
pub struct Keys<W> {
    /// What is turned and what is carried where a word is negative: of floats, whose magnitude is negated.
    turned: W,
    carried: W,
    /// The top bit of unsigned integers.
    flipped: W,
    /// The keys of the infinities; beyond them lie NaN.
    infinity: W,
    minus_infinity: W,
}

impl<W: Word> Keys<W> {
    /// Of floats whose infinity has these bits.
    pub fn float(infinity: u64) -> Self {
        let infinity = W::of_bits(infinity);
        let minus_infinity = W::ZERO.minus(infinity);
        Self { turned: W::MAX, carried: W::ONES, flipped: W::ZERO, infinity, minus_infinity }
    }

    /// Of integers.
    pub fn integer(signed: bool) -> Self {
        let flipped = if signed { W::ZERO } else { W::MIN };
        Self { turned: W::ZERO, carried: W::ZERO, flipped, infinity: W::MAX, minus_infinity: W::MIN }
    }

    /// The key of a word.
    #[inline(always)]
    pub fn key(self, word: W) -> W {
        let sign = word.sign();
        ((word ^ (sign & self.turned)).minus(sign & self.carried)) ^ self.flipped
    }

    /// Whether a key is a NaN's.
    #[inline(always)]
    pub fn is_nan(self, key: W) -> bool {
        key > self.infinity || key < self.minus_infinity
    }

    /// The key where NaN are above all numbers, and equal.
    #[inline(always)]
    pub fn with_nan_above(self, word: W) -> W {
        let key = self.key(word);
        if self.is_nan(key) { W::MAX } else { key }
    }

    /// The keys of the infinities; of integers the smallest and the largest.
    pub fn infinities(self) -> [W; 2] {
        [self.minus_infinity, self.infinity]
    }

    /// The word of an integer's key.
    pub fn integer_of(self, key: W) -> W {
        key ^ self.flipped
    }
}

/// The bits of floats as integers in the order of keys, a negative zero below the other; of integers their keys.
#[derive(Clone, Copy)]
struct Turned<W>(Keys<W>);

impl<W: Word> Op<W> for Turned<W> {
    type Scalar = W;
    const IDENTITY: [W; 2] = [W::MAX, W::MIN];
    #[inline(always)]
    fn step(self, s: [W; 2], x: W) -> [W; 2] {
        let turned = x ^ (x.sign() & self.0.turned) ^ self.0.flipped;
        [s[0].min(turned), s[1].max(turned)]
    }
    #[inline(always)]
    fn merge(self, a: [W; 2], b: [W; 2]) -> [W; 2] {
        [a[0].min(b[0]), a[1].max(b[1])]
    }
}

/// Smallest and largest key; NaN lie outside the infinities.
#[derive(Clone, Copy)]
pub struct Extremes<W>(pub Keys<W>);

impl<W: Word> Op<W> for Extremes<W> {
    type Scalar = W;
    const PIECE: usize = piece::<W>();
    const IDENTITY: [W; 2] = [W::MAX, W::MIN];
    #[inline(always)]
    fn step(self, s: [W; 2], x: W) -> [W; 2] {
        let key = self.0.key(x);
        [s[0].min(key), s[1].max(key)]
    }
    fn chunk(self, x: &[W]) -> [W; 2] {
        if x.is_empty() {
            return Self::IDENTITY;
        }
        // What tells the keys of the two zeros apart is taken away once and not of each.
        reduce_chunk(x, Turned(self.0)).map(|turned| turned.minus(turned.sign() & self.0.carried))
    }
    #[inline(always)]
    fn merge(self, a: [W; 2], b: [W; 2]) -> [W; 2] {
        [a[0].min(b[0]), a[1].max(b[1])]
    }
}

/// The exact sum of integers or of their magnitudes: (of their low 32 bits, of their bits above), of words made unsigned.
#[derive(Clone, Copy)]
pub struct WordSum<W> {
    turned: W,
    flipped: W,
}

impl<W: Word> WordSum<W> {
    /// Of the integers.
    pub fn new(signed: bool) -> Self {
        Self { turned: W::ZERO, flipped: if signed { W::MIN } else { W::ZERO } }
    }

    /// Of their magnitudes.
    pub fn of_magnitudes(signed: bool) -> Self {
        Self { turned: if signed { W::ONES } else { W::ZERO }, flipped: W::ZERO }
    }

    /// The sum of `n` integers.
    pub fn total(self, [low, high]: [u64; 2], n: usize) -> i128 {
        i128::from(low) + (i128::from(high) << 32) - i128::from(self.flipped.bits()) * n as i128
    }
}

impl<W: Word> Op<W> for WordSum<W> {
    type Scalar = u64;
    const PIECE: usize = piece::<W>();
    const IDENTITY: [u64; 2] = [0; 2];
    #[inline(always)]
    fn step(self, s: [u64; 2], x: W) -> [u64; 2] {
        let turned = x.sign() & self.turned;
        let bits = ((x ^ turned).minus(turned) ^ self.flipped).bits();
        [s[0] + (bits & 0xffff_ffff), s[1] + (bits >> 32)]
    }
    fn chunk(self, x: &[W]) -> [u64; 2] {
        let fast = if self.turned == W::ZERO { W::fast_sum(x, self.flipped) } else { None };
        fast.map_or_else(|| reduce_chunk(x, self), |sum| [sum, 0])
    }
    #[inline(always)]
    fn merge(self, a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
        [a[0] + b[0], a[1] + b[1]]
    }
}

//! What rows of numbers become.

use std::marker::PhantomData;

use super::{Code, Scale, ScaleItem, Scheme, TwoLevel, Uniform, blocks};

/// Numbers that lie in rows, each row in groups of `size` with a scale each; the last group of a row may be short. The
/// codes of each row begin on a byte.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Elements of a row.
    pub row: usize,
    /// Elements of a group.
    pub size: usize,
}

/// Scales to read, in the format's own type.
#[derive(Debug, Clone, Copy)]
pub enum Scales<'a> {
    /// As float32.
    Floats(&'a [f32]),
    /// As bytes.
    Bytes(&'a [u8]),
}

impl<'a> Scales<'a> {
    /// Those from `first` on, `n` of them.
    #[must_use]
    pub fn part(self, first: usize, n: usize) -> Scales<'a> {
        match self {
            Self::Floats(scales) => Self::Floats(&scales[first..first + n]),
            Self::Bytes(scales) => Self::Bytes(&scales[first..first + n]),
        }
    }
}

/// Scales to be written.
#[derive(Debug)]
pub enum ScalesMut<'a> {
    /// As float32.
    Floats(&'a mut [f32]),
    /// As bytes.
    Bytes(&'a mut [u8]),
}

impl<'a> ScalesMut<'a> {
    /// To read.
    pub fn as_ref(&self) -> Scales<'_> {
        match self {
            Self::Floats(scales) => Scales::Floats(scales),
            Self::Bytes(scales) => Scales::Bytes(scales),
        }
    }

    /// To be written here and again later.
    pub fn again(&mut self) -> ScalesMut<'_> {
        match self {
            Self::Floats(scales) => ScalesMut::Floats(scales),
            Self::Bytes(scales) => ScalesMut::Bytes(scales),
        }
    }

    /// Cut off the first `n`.
    #[must_use]
    pub fn split_off(&mut self, n: usize) -> ScalesMut<'a> {
        match self {
            Self::Floats(scales) => ScalesMut::Floats(scales.split_off_mut(..n).unwrap_or_default()),
            Self::Bytes(scales) => ScalesMut::Bytes(scales.split_off_mut(..n).unwrap_or_default()),
        }
    }
}

/// The arrays of a quantized array, to be written.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The codes, each row of the last axis from a byte on; of two in a byte the first in the low bits.
    pub codes: &'a mut [u8],
    /// A scale for each group.
    pub scale: ScalesMut<'a>,
    /// The number for the whole array, where the format has one.
    pub global: &'a mut f32,
}

/// As [`Parts`], to read.
#[derive(Debug, Clone, Copy)]
pub struct PartsRef<'a> {
    /// The codes.
    pub codes: &'a [u8],
    /// The scales.
    pub scale: Scales<'a>,
    /// The number for the whole array; 1 where there is none.
    pub global: f32,
}

/// Which groups a format can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// So many elements.
    Fixed(usize),
    /// A power of two from 32 to 4,096.
    PowersOfTwo,
    /// Any number; also the whole array and each index of an axis.
    Any,
    /// The same, and tiles.
    AnyOrTiles,
}

/// A format of quantized arrays.
#[derive(Clone, Copy)]
pub struct Format {
    /// The name that callers give.
    pub name: &'static str,
    /// Which groups it can have.
    pub sizes: Sizes,
    /// How its codes are made.
    pub coding: Coding,
}

/// How the codes of a format are made.
#[derive(Clone, Copy)]
pub enum Coding {
    /// Evenly, in the dtype of the scale, with what the scheme stores beside scales.
    Uniform(Uniform),
    /// As float32, in blocks with a scale each.
    Blocks(&'static dyn BlockFormat),
}

impl Format {
    /// Uniform codes.
    pub const fn uniform(name: &'static str, bits: u32, scheme: Scheme) -> Self {
        let coding = Coding::Uniform(Uniform { bits, scheme, offset_binary: false, signed: false });
        Self { name, sizes: Sizes::Any, coding }
    }

    /// Symmetric codes that are stored without a sign.
    pub const fn offset_binary(name: &'static str, bits: u32) -> Self {
        let coding = Coding::Uniform(Uniform { bits, scheme: Scheme::Symmetric, offset_binary: true, signed: false });
        Self { name, sizes: Sizes::Any, coding }
    }

    /// Codes `K` in blocks, each with a scale `S`.
    pub const fn blocks<K: Code, S: Scale>(name: &'static str, sizes: Sizes) -> Self {
        Self { name, sizes, coding: Coding::Blocks(&Blocks::<K, S>(PhantomData)) }
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        match self.coding {
            Coding::Uniform(uniform) => uniform.bits,
            Coding::Blocks(blocks) => blocks.bits(),
        }
    }
}

/// A way to turn rows of numbers into bytes and back. All numbers are float32 here and have no NaN.
pub trait BlockFormat: Send + Sync {
    /// Bits of a code.
    fn bits(&self) -> u32;
    /// Whether scales are stored as float32, or as bytes.
    fn has_float_scales(&self) -> bool;
    /// Whether there is one number for the whole array.
    fn has_global(&self) -> bool;
    /// That number, of the array's largest magnitude.
    fn global(&self, absmax: f32) -> f32;
    /// The scales of groups with these largest magnitudes.
    fn store(&self, absmax: &[f32], global: f32, scale: ScalesMut<'_>);
    /// The codes of rows whose scales are stored.
    fn encode(&self, x: &[f32], rows: Rows, scale: Scales<'_>, global: f32, codes: &mut [u8]);
    /// The numbers of codes; past the caches where `streamed`.
    fn decode(&self, parts: PartsRef<'_>, rows: Rows, out: &mut [f32], streamed: bool);
}

/// Groups of codes `K`, each with a scale `S`.
struct Blocks<K, S>(PhantomData<(K, S)>);

impl<K: Code, S: Scale> BlockFormat for Blocks<K, S> {
    fn bits(&self) -> u32 {
        K::BITS
    }

    fn has_float_scales(&self) -> bool {
        S::Item::IS_FLOAT
    }

    fn has_global(&self) -> bool {
        S::HAS_GLOBAL
    }

    fn global(&self, absmax: f32) -> f32 {
        if S::HAS_GLOBAL { TwoLevel::global::<K>(absmax) } else { 1.0 }
    }

    fn store(&self, absmax: &[f32], global: f32, scale: ScalesMut<'_>) {
        blocks::store::<K, S>(absmax, global, S::Item::write(scale));
    }

    fn encode(&self, x: &[f32], rows: Rows, scale: Scales<'_>, global: f32, codes: &mut [u8]) {
        blocks::encode::<K, S>(x, rows, S::Item::read(scale), global, codes);
    }

    fn decode(&self, parts: PartsRef<'_>, rows: Rows, out: &mut [f32], streamed: bool) {
        blocks::decode::<K, S>(parts.codes, rows, S::Item::read(parts.scale), parts.global, out, streamed);
    }
}

//! How the scale of a block is stored.

use super::{Code, E4M3, Scales, ScalesMut};
use crate::real::{self, Fused, select};

/// How the largest magnitude of a block becomes its stored scale, and what that means.
///
/// `global` is one number for the whole array, 1 where a scale has none.
pub trait Scale: Copy + Send + Sync + 'static {
    /// What is stored.
    type Item: ScaleItem;
    /// What [`Scale::over`] divides by.
    type Divisor: Copy + Default;
    /// Whether there is one number for the whole array.
    const HAS_GLOBAL: bool = false;
    /// The stored scale of a block of codes `K`.
    fn store<K: Code>(absmax: f32, global: f32) -> Self::Item;
    /// What the numbers of codes are multiplied by.
    fn value(stored: Self::Item, global: f32) -> f32;
    /// What numbers are divided by.
    fn divisor(stored: Self::Item, global: f32) -> Self::Divisor;
    /// Whether [`Scale::over`] may take the fused steps of [`real::Divisor::quotient`]: no code differs.
    #[inline(always)]
    fn is_fused(_stored: &[Self::Item], _global: f32) -> bool {
        false
    }
    /// The number in units of the scale; `FUSED`: a zero may be one of the other sign.
    fn over<const FUSED: bool>(x: f32, divisor: Self::Divisor) -> f32;
}

/// A type of stored scales: f32, or bytes.
pub trait ScaleItem: Copy + Default + Send + Sync + 'static {
    /// Whether it is f32.
    const IS_FLOAT: bool;
    /// Those that were given.
    fn read(scales: Scales<'_>) -> &[Self];
    /// Those to be written.
    fn write(scales: ScalesMut<'_>) -> &mut [Self];
}

impl ScaleItem for f32 {
    const IS_FLOAT: bool = true;
    #[inline(always)]
    fn read(scales: Scales<'_>) -> &[f32] {
        let Scales::Floats(scales) = scales else { unreachable!("the format's own kind") };
        scales
    }
    #[inline(always)]
    fn write(scales: ScalesMut<'_>) -> &mut [f32] {
        let ScalesMut::Floats(scales) = scales else { unreachable!("the format's own kind") };
        scales
    }
}

impl ScaleItem for u8 {
    const IS_FLOAT: bool = false;
    #[inline(always)]
    fn read(scales: Scales<'_>) -> &[u8] {
        let Scales::Bytes(scales) = scales else { unreachable!("the format's own kind") };
        scales
    }
    #[inline(always)]
    fn write(scales: ScalesMut<'_>) -> &mut [u8] {
        let ScalesMut::Bytes(scales) = scales else { unreachable!("the format's own kind") };
        scales
    }
}

/// The largest magnitude itself, as float32; numbers are multiplied by its rounded reciprocal, as by bitsandbytes. The
/// code's largest number must be 1.
#[derive(Debug, Clone, Copy)]
pub struct Absmax;

/// Below, the reciprocal might overflow: the block is made larger first, exactly.
const SMALL: f32 = f32::from_bits(27 << 23);
const ENLARGE: f32 = f32::from_bits(227 << 23);

impl Scale for Absmax {
    type Item = f32;
    type Divisor = [f32; 2];

    #[inline(always)]
    fn store<K: Code>(absmax: f32, _global: f32) -> f32 {
        const { assert!(K::TOP == 1.0) };
        absmax
    }

    #[inline(always)]
    fn value(stored: f32, _global: f32) -> f32 {
        stored
    }

    #[inline(always)]
    fn divisor(stored: f32, _global: f32) -> [f32; 2] {
        let factor = if stored < SMALL { ENLARGE } else { 1.0 };
        // A block of zeros is divided by 1.
        let absmax = if stored == 0.0 { 1.0 } else { stored * factor };
        [factor, 1.0 / absmax]
    }

    #[inline(always)]
    fn over<const FUSED: bool>(x: f32, [factor, reciprocal]: [f32; 2]) -> f32 {
        x * factor * reciprocal
    }
}

/// The largest magnitude over that of the codes, as float32; of zeros 1, and never below the smallest normal number.
#[derive(Debug, Clone, Copy)]
pub struct Linear;

impl Scale for Linear {
    type Item = f32;
    type Divisor = real::Divisor<f32>;

    #[inline(always)]
    fn store<K: Code>(absmax: f32, _global: f32) -> f32 {
        let scale = absmax / K::TOP;
        // Rounded up, the largest number would come back as infinity.
        let scale = if scale * K::TOP > f32::MAX { scale.next_down() } else { scale };
        let scale = if scale < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { scale };
        if absmax == 0.0 { 1.0 } else { scale }
    }

    #[inline(always)]
    fn value(stored: f32, _global: f32) -> f32 {
        stored
    }

    #[inline(always)]
    fn divisor(stored: f32, _global: f32) -> Self::Divisor {
        real::Divisor::new(stored)
    }

    /// Quotients are below 2^17, of what is beyond the largest number any above it will do; those below 2^-17 all become 0.
    #[inline(always)]
    fn is_fused(stored: &[f32], _global: f32) -> bool {
        let [mut least, mut greatest] = [u32::MAX, 0];
        for scale in stored {
            (least, greatest) = (least.min(scale.to_bits()), greatest.max(scale.to_bits()));
        }
        least >= real::Divisor::SMALL.to_bits() && greatest <= f32::DIVISORS[1].to_bits()
    }

    #[inline(always)]
    fn over<const FUSED: bool>(x: f32, by: Self::Divisor) -> f32 {
        if FUSED { by.quotient(x) } else { x / by.get() }
    }
}

/// E8M0, a power of two: 2^(floor(log2(absmax)) - emax), emax the largest exponent of the codes (OCP Microscaling
/// Formats v1.0, 6.3); 2^-127 at least, which blocks of zeros have. What is then above the largest code becomes it.
#[derive(Debug, Clone, Copy)]
pub struct Exponent;

impl Scale for Exponent {
    type Item = u8;
    type Divisor = f32;

    #[inline(always)]
    fn store<K: Code>(absmax: f32, _global: f32) -> u8 {
        // Both have the bias of float32.
        (absmax.to_bits() >> 23).saturating_sub((K::TOP.to_bits() >> 23) - 127) as u8
    }

    #[inline(always)]
    fn value(stored: u8, _global: f32) -> f32 {
        let exponent = stored as u32;
        let normal = select(exponent == 255, 0x7fc0_0000, exponent << 23);
        f32::from_bits(select(exponent == 0, 1 << 22, normal))
    }

    #[inline(always)]
    fn divisor(stored: u8, _global: f32) -> f32 {
        let exponent = 254 - stored as u32;
        f32::from_bits(select(exponent == 0, 1 << 22, exponent << 23))
    }

    #[inline(always)]
    fn over<const FUSED: bool>(x: f32, reciprocal: f32) -> f32 {
        x * reciprocal
    }
}

/// E4M3 in units of a float32 for the whole array, which is such that the array's largest magnitude gives the largest
/// scale (NVFP4). A scale is E4M3(absmax / 6 x global) and means itself / global; no smaller than 2^-9 but of zeros.
#[derive(Debug, Clone, Copy)]
pub struct TwoLevel;

impl TwoLevel {
    /// The number for the whole array; 1 for zeros.
    pub fn global<K: Code>(absmax: f32) -> f32 {
        let global = (E4M3::TOP * K::TOP / absmax).min(f32::MAX);
        // Rounded down, the largest number might come back as infinity.
        let global = if E4M3::TOP / global * K::TOP > f32::MAX { global.next_up() } else { global };
        if absmax == 0.0 { 1.0 } else { global }
    }
}

impl Scale for TwoLevel {
    type Item = u8;
    type Divisor = real::Divisor<f32>;
    const HAS_GLOBAL: bool = true;

    #[inline(always)]
    fn store<K: Code>(absmax: f32, global: f32) -> u8 {
        let code = E4M3::encode(absmax / K::TOP * global);
        select(absmax == 0.0, 0, code.max(1)) as u8
    }

    #[inline(always)]
    fn value(stored: u8, global: f32) -> f32 {
        E4M3::decode(stored as u32) / global
    }

    #[inline(always)]
    fn divisor(stored: u8, global: f32) -> Self::Divisor {
        real::Divisor::new(if stored == 0 { 1.0 } else { Self::value(stored, global) })
    }

    /// Scales are from 2^-9 to 448, and quotients below 2^4; those below 1/4 all become 0.
    #[inline(always)]
    fn is_fused(_stored: &[u8], global: f32) -> bool {
        const LIMIT: f32 = f32::from_bits((127 + 90) << 23);
        (1.0 / LIMIT..=LIMIT).contains(&global)
    }

    #[inline(always)]
    fn over<const FUSED: bool>(x: f32, by: Self::Divisor) -> f32 {
        if FUSED { by.quotient(x) } else { x / by.get() }
    }
}

//! Codes of a few bits: how numbers become codes and back, written once for quantized arrays and for the states of
//! optimizers.
//!
//! A [`Format`] is what an array becomes, by name. Its codes are [`Uniform`], with loops of their own ([`uniform`]), or a
//! [`Code`] with a [`Scale`] in blocks: arithmetic on one number in units of its block's scale, and how the largest
//! magnitude of a block is stored. For all of these `quantize`, `dequantize` and `fake_quantize` cut arrays and share the
//! pieces among threads. All formats have one [`Granularity`], and one [`Spec`] of how an array lies.

mod blocks;
mod codebook;
mod dequantize;
mod dynamic;
mod e2m1;
mod e4m3;
mod e5m2;
mod floats;
mod format;
mod fp4;
mod fused;
mod granularity;
mod largest;
pub(crate) mod minifloat;
mod nf4;
mod quantize;
mod scale;
mod tiles;
pub mod uniform;
mod unit_float;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use codebook::Codebook;
pub use dequantize::{decode_group, dequantize, dequantize_rows};
pub use dynamic::{Dynamic4, SignedDynamic, SixteenSteps, UnsignedDynamic};
pub use e2m1::E2M1;
pub use e4m3::E4M3;
pub use e5m2::E5M2;
pub use floats::{Floats, first_beyond_float32};
pub use format::{BlockFormat, Coding, Format, Parts, PartsRef, Rows, Scales, ScalesMut, Sizes};
pub use fp4::Fp4;
pub use granularity::{Granularity, Spec};
pub use nf4::Nf4;
pub use quantize::{fake_quantize, quantize};
pub use scale::{Absmax, Exponent, Linear, Scale, ScaleItem, TwoLevel};
pub use uniform::{Scheme, Uniform};
pub use unit_float::{UnitE4M3, UnitE5M3};

use crate::isa::Isa;

/// Elements that a loop takes at a time: loops of this length are vectorised as a whole.
const BLOCK: usize = 32;

/// How numbers become codes of a few bits and back: numbers in units of their block's scale, so that the largest
/// magnitude of a block is [`Code::TOP`] or near it.
///
/// Arithmetic on whole vectors, without branches. What is above the largest number becomes the largest.
pub trait Code: Copy + Send + Sync + 'static {
    /// Bits of a code: 4 or 8.
    const BITS: u32;
    /// The largest magnitude of which there are codes.
    const TOP: f32;
    /// The numbers as a list, where they have no arithmetic.
    const CODEBOOK: Option<&'static Codebook> = None;
    /// The number of each code of 4 bits, where they may be looked up.
    const NUMBERS: Option<&'static [f32; 16]> = None;
    /// The code of a number that is not NaN: that of the nearest number.
    fn encode(x: f32) -> u32;
    /// The code of one of the two nearest numbers, by chance: 20 random bits, of which [`NEAREST`] round to nearest.
    /// Codes that have no use for chance take the nearest.
    #[inline(always)]
    fn encode_by_chance(x: f32, _random: u32) -> u32 {
        Self::encode(x)
    }
    /// The number of a code.
    fn decode(code: u32) -> f32;
    /// The packed codes of 4 bits of a block, where there is more than a plain loop: whether there is. Signs are those of
    /// `signs`, as zeros among `x` may have lost theirs. For a kernel; `isa` is [`crate::isa::current`].
    #[inline(always)]
    fn encode_packed(isa: Isa, x: &[f32; BLOCK], signs: &[f32; BLOCK], codes: &mut [u8; BLOCK / 2]) -> bool {
        match Self::CODEBOOK {
            #[cfg(target_arch = "x86_64")]
            Some(book) => x86::encode(isa, book, x, codes),
            _ => {
                let _ = (isa, x, signs, codes);
                false
            }
        }
    }
}

/// What rounds to nearest in the place of random bits.
pub const NEAREST: u32 = 1 << 19;

/// Something was NaN or infinite (and was not to be saturated).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFinite;

/// What happens to NaN and infinities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// An error, found on the way: what was written until then is meaningless.
    Raise,
    /// An error, found before the first write.
    RaiseFirst,
    /// NaN gets the code of zero, infinities the limits, and ranges are of the finite numbers.
    Saturate,
}

/// Every format of quantized arrays, by name.
pub static FORMATS: [Format; 19] = [
    Format::uniform("int8", 8, Scheme::Symmetric),
    Format::uniform("int8_asymmetric", 8, Scheme::Asymmetric),
    Format::uniform("int8_minmax", 8, Scheme::MinMax),
    Format::uniform("int4", 4, Scheme::Symmetric),
    Format::uniform("int4_asymmetric", 4, Scheme::Asymmetric),
    Format::uniform("int4_minmax", 4, Scheme::MinMax),
    Format::uniform("int2", 2, Scheme::Symmetric),
    Format::uniform("int2_asymmetric", 2, Scheme::Asymmetric),
    Format::uniform("int2_minmax", 2, Scheme::MinMax),
    Format::offset_binary("uint8b128", 8),
    Format::offset_binary("uint4b8", 4),
    Format::offset_binary("uint2b2", 2),
    Format::blocks::<Nf4, Absmax>("nf4", Sizes::PowersOfTwo),
    Format::blocks::<Fp4, Absmax>("fp4", Sizes::PowersOfTwo),
    Format::blocks::<E2M1, Exponent>("mxfp4", Sizes::Fixed(32)),
    Format::blocks::<E4M3, Exponent>("mxfp8", Sizes::Fixed(32)),
    Format::blocks::<E2M1, TwoLevel>("nvfp4", Sizes::Fixed(16)),
    Format::blocks::<E4M3, Linear>("fp8_e4m3", Sizes::AnyOrTiles),
    Format::blocks::<E5M2, Linear>("fp8_e5m2", Sizes::AnyOrTiles),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::{self, Fused};

    fn numbers<K: Code>() -> Vec<f32> {
        (0..1 << K::BITS).map(K::decode).filter(|x| x.is_finite()).collect()
    }

    /// Numbers between and beside those of a code.
    fn samples<K: Code>() -> Vec<f32> {
        let mut all = numbers::<K>();
        all.sort_by(f32::total_cmp);
        let between: Vec<f32> =
            all.windows(2).flat_map(|w| [0.25, 0.5, 0.75].map(|t| w[0] + t * (w[1] - w[0]))).collect();
        all.extend(between.into_iter().flat_map(|x| [x, x.next_up(), x.next_down()]));
        all.retain(|x| x.abs() <= K::TOP);
        all
    }

    fn check_nearest<K: Code>(name: &str) {
        let numbers = numbers::<K>();
        for x in samples::<K>() {
            let got = (f64::from(K::decode(K::encode(x))) - f64::from(x)).abs();
            let best = numbers.iter().map(|&n| (f64::from(n) - f64::from(x)).abs()).fold(f64::INFINITY, f64::min);
            // A middle that is no f32 is rounded.
            assert!(got <= best + 1e-7, "{name}: {x:e} is off by {got:e}, not {best:e}");
        }
        for number in numbers {
            assert_eq!(K::decode(K::encode(number)), number, "{name}");
        }
    }

    #[test]
    fn test_every_code_is_of_the_nearest_number() {
        check_nearest::<Nf4>("nf4");
        check_nearest::<Fp4>("fp4");
        check_nearest::<E2M1>("e2m1");
        check_nearest::<E4M3>("e4m3");
        check_nearest::<E5M2>("e5m2");
        check_nearest::<SixteenSteps>("16 steps");
    }

    #[test]
    fn test_the_largest_number_is_the_top_and_more_becomes_it() {
        fn check<K: Code>() {
            let largest = numbers::<K>().into_iter().fold(0.0, |a: f32, b| a.max(b.abs()));
            assert_eq!(largest, K::TOP);
            for x in [K::TOP * 1.5, f32::MAX, f32::INFINITY] {
                assert_eq!(K::decode(K::encode(x)), K::TOP);
            }
            for x in [-K::TOP * 1.5, f32::MIN, f32::NEG_INFINITY] {
                assert_eq!(K::decode(K::encode(x)), -K::TOP);
            }
        }
        check::<Nf4>();
        check::<Fp4>();
        check::<E2M1>();
        check::<E4M3>();
        check::<E5M2>();
    }

    #[test]
    fn test_numbers_that_are_looked_up_are_those_of_the_codes() {
        fn check<K: Code>() {
            for (code, number) in (0..).zip(K::NUMBERS.expect("a list")) {
                assert_eq!(K::decode(code).to_bits(), number.to_bits(), "{code}");
            }
        }
        check::<Nf4>();
        check::<Fp4>();
        check::<E2M1>();
        check::<Dynamic4>();
        check::<SixteenSteps>();
    }

    #[test]
    fn test_e5m2_is_the_upper_half_of_a_float16() {
        for code in 0..=255u8 {
            let want = half::f16::from_bits(u16::from(code) << 8).to_f32();
            let got = E5M2::decode(code.into());
            assert!(got == want || got.is_nan() && want.is_nan(), "{code:#x}");
        }
    }

    #[test]
    fn test_names_are_different() {
        let names = FORMATS.map(|format| format.name);
        assert!(names.iter().enumerate().all(|(i, name)| !names[..i].contains(name)));
    }

    /// Those of a division, which portable code does, also of -0 and at every tie.
    #[test]
    fn test_nvfp4_by_fused_steps_has_the_codes_of_a_division() {
        use crate::isa::{self, Isa};
        let Coding::Blocks(format) = FORMATS[16].coding else { panic!("nvfp4") };
        for scale in [1.0, 3e-27, 1.7e-5, 0.37, 2.3e9, 4e30] {
            // All bfloat16 from -6 to 6 or so, and what lies beside every tie.
            let mut x: Vec<f32> = (0..=u16::MAX).map(|bits| f32::from_bits(u32::from(bits) << 16)).collect();
            x.extend([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0].into_iter().flat_map(|tie: f32| {
                (1..=100).flat_map(move |part| {
                    let x = tie * part as f32 / 100.0;
                    [x, -x, x.next_up(), -x.next_up(), x.next_down(), -x.next_down()]
                })
            }));
            x.retain(|x| x.abs() <= 6.5);
            for x in &mut x {
                *x *= scale;
            }
            x.truncate(x.len() / 16 * 16);
            let spec = Spec { granularity: Granularity::Group { size: 16 }, cols: x.len() };
            let run = || {
                let (mut codes, mut scales, mut global) = (vec![0; x.len() / 2], vec![0; x.len() / 16], 0.0);
                let parts = Parts { codes: &mut codes, scale: ScalesMut::Bytes(&mut scales), global: &mut global };
                quantize(format, &x, spec, Policy::Raise, 0.0, parts, 1).expect("finite");
                (codes, scales, global)
            };
            isa::set(Isa::Portable);
            let want = run();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                isa::set(isa);
                assert!(run() == want, "{scale:e} {}", isa.name());
            }
        }
    }

    /// Also of what is beyond the largest number, and of scales that are no longer normal.
    #[test]
    fn test_fp8_by_fused_steps_has_the_codes_of_a_division() {
        use crate::isa::{self, Isa};
        fn check<K: Code>(format: Format, absmax: f32) {
            let Coding::Blocks(format) = format.coding else { panic!("blocks") };
            let scale = <Linear as Scale>::store::<K>(absmax, 1.0);
            let mut x: Vec<f32> = (0..=u16::MAX).map(|bits| f32::from_bits(u32::from(bits) << 16)).collect();
            for tie in samples::<K>().into_iter().map(|tie| tie * scale) {
                x.extend([tie.next_down().next_down(), tie.next_down(), tie, tie.next_up(), tie.next_up().next_up()]);
            }
            x.retain(|x| x.abs() <= absmax);
            x.extend([absmax, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
            let number = |x: f32| if x.is_nan() { 0.0 } else { x.clamp(f32::MIN, f32::MAX) };
            let want: Vec<u8> = x.iter().map(|&x| K::encode(number(x) / scale) as u8).collect();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                isa::set(isa);
                let (mut codes, mut scales) = (vec![0; x.len()], [0.0]);
                let parts = Parts { codes: &mut codes, scale: ScalesMut::Floats(&mut scales), global: &mut 1.0 };
                let spec = Spec { granularity: Granularity::Whole, cols: x.len() };
                quantize(format, &x, spec, Policy::Saturate, 0.0, parts, 1).expect("saturated");
                assert_eq!(scales, [scale]);
                let wrong = want.iter().zip(&codes).position(|(want, code)| want != code);
                assert!(wrong.is_none(), "{:e} / {scale:e} {}", x[wrong.unwrap_or(0)], isa.name());
            }
        }
        let small = real::Divisor::SMALL;
        for part in [1.0, 1.37, 1.5, 1.999_999_9] {
            for size in [f32::MIN_POSITIVE, small / 2.0, small, 3e-7, 1.0, 2.3e9, f32::DIVISORS[1]] {
                check::<E4M3>(FORMATS[17], size * part * E4M3::TOP);
                check::<E5M2>(FORMATS[18], size * part * E5M2::TOP);
            }
        }
    }

    /// The same as one group after the other, whatever the lengths.
    #[test]
    fn test_pieces_are_coded_as_the_whole() {
        let x: Vec<f32> = (0..3 * 40_000).map(|i: u32| (i.wrapping_mul(2_654_435_761) as f32 / 4.3e9) - 0.5).collect();
        for Format { name, sizes, coding } in FORMATS {
            let Coding::Blocks(format) = coding else { continue };
            let size = match sizes {
                Sizes::Fixed(size) => size,
                _ => 64,
            };
            for cols in [40_000, 3 * 40_000, 50, 33] {
                let n = x.len() / cols * cols;
                let spec = Spec { granularity: Granularity::Group { size }, cols };
                let bytes = n / cols * crate::kernels::pack::packed_len(cols, format.bits());
                let run = |threads| {
                    let (mut codes, mut global) = (vec![0; bytes], 0.0);
                    let (mut floats, mut scales) = (vec![0.0; spec.scales(n)], vec![0; spec.scales(n)]);
                    let scale = if format.has_float_scales() {
                        ScalesMut::Floats(&mut floats)
                    } else {
                        ScalesMut::Bytes(&mut scales)
                    };
                    let parts = Parts { codes: &mut codes, scale, global: &mut global };
                    let policy = Policy::Raise;
                    quantize(format, &x[..n], spec, policy, 0.0, parts, threads).expect("finite");
                    (codes, floats, scales, global)
                };
                let (codes, floats, scales, global) = run(1);
                assert_eq!((codes.clone(), floats.clone(), scales.clone(), global), run(3));
                let scale = if format.has_float_scales() { Scales::Floats(&floats) } else { Scales::Bytes(&scales) };
                let mut back = vec![0.0f32; n];
                dequantize(format, PartsRef { codes: &codes, scale, global }, spec, &mut back, 2);
                let worst = x.iter().zip(&back).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(worst < 0.126, "{name} {worst}");
            }
        }
    }
}

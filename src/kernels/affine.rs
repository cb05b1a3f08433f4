//! Affine quantization with given scales, one code an item, as ONNX's `QuantizeLinear` and `DequantizeLinear` have it:
//! code = saturate(round(x / scale) + zero point), number = (code - zero point) * scale.
//!
//! What is read is a [`Source`] of numbers: floats, or codes with their own scales. So codes become other codes by the
//! same loops, and with the same bits, as when their numbers were written between. What is written is a [`Target`].
//! [`Params`] say which scale an element has. Codes of floats of 8 and 4 bits are a [`Minifloat`].

mod minifloats;
mod params;
mod quantize;
mod source;
mod target;

pub use minifloats::{E4M3Fnuz, E5M2Fnuz, Minifloat};
pub use params::{Layout, Params, Shared, narrowed, no_scale, widened};
pub use quantize::quantize;
pub use source::{Bytes, Coded, Converted, Direct, Floats8, Ints, Source, Words, dequantize};
pub use target::{Away, ByteCodes, Even, FloatCodes, Rounding, Target, WordCodes};

/// Elements that are worked on at a time, in the L1 cache.
const IN_L1: usize = 960;

/// Elements that a loop takes at a time, see the uniform codes.
const BLOCK: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::{Bf16, F16};

    fn whole<'a>(scale: &'a [f32], zero_point: &'a [i32]) -> Params<'a, f32> {
        Params { layout: Layout::WHOLE, scale, zero_point }
    }

    const INT8: ByteCodes<Even> = ByteCodes::new(-128, 127, 0xff);

    #[test]
    fn test_codes_are_those_of_the_plain_formula_at_ties_and_beyond_the_limits() {
        let values = [-300.0, -1.25, -0.75, -0.25, -0.0, 0.25, 0.75, 1.25, 63.25, 63.75, 300.0];
        let x: Vec<f32> = values.into_iter().chain([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]).collect();
        let mut codes = vec![0u8; x.len()];
        quantize(&Direct(&x), whole(&[0.5], &[]), INT8, &mut codes, 1);
        assert_eq!(codes.map_i8(), [-128, -2, -2, 0, 0, 0, 2, 2, 126, 127, 127, 0, 127, -128]);
        quantize(&Direct(&x), whole(&[0.5], &[]), ByteCodes::<Away>::new(-128, 127, 0xff), &mut codes, 1);
        assert_eq!(codes.map_i8(), [-128, -3, -2, -1, 0, 1, 2, 3, 127, 127, 127, 0, 127, -128]);
    }

    trait Signed {
        fn map_i8(&self) -> Vec<i8>;
    }
    impl Signed for Vec<u8> {
        fn map_i8(&self) -> Vec<i8> {
            self.iter().map(|&code| code as i8).collect()
        }
    }

    fn random(n: usize) -> Vec<f32> {
        (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.5) * 40.0).collect()
    }

    /// A part for each element, by the formula of the layout.
    fn part(layout: Layout, i: usize) -> usize {
        let Layout { channels, inner, shared, .. } = layout;
        let (o, c, k) = (i / inner / channels, i / inner % channels, i % inner);
        match shared {
            Shared::All => 0,
            Shared::Axis => c,
            Shared::Blocks(size) => (o * channels.div_ceil(size) + c / size) * inner + k,
        }
    }

    #[test]
    fn test_every_layout_gives_each_element_its_own_scale_for_any_threads() {
        for (outer, channels, inner) in [(3, 5, 1), (2000, 3, 1), (7, 40, 3), (2, 3, 700), (5, 70, 100), (1, 90_000, 1)]
        {
            for shared in [Shared::All, Shared::Axis, Shared::Blocks(1), Shared::Blocks(7), Shared::Blocks(64)] {
                let layout = Layout { channels, inner, shared };
                let n = outer * channels * inner;
                let parts = 1 + (0..n).map(|i| part(layout, i)).max().unwrap();
                let scale: Vec<f32> = (0..parts).map(|i| 0.1 + (i % 23) as f32 * 0.013).collect();
                let zero_point: Vec<i32> = (0..parts).map(|i| (i % 17) as i32 - 8).collect();
                let x = random(n);
                let params = Params { layout, scale: &scale, zero_point: &zero_point };
                let run = |threads| {
                    let mut codes = vec![0u8; n];
                    quantize(&Direct(&x), params, INT8, &mut codes, threads);
                    let mut back = vec![0f32; n];
                    dequantize::<f32, f32>(&Coded::new(&codes, Bytes::new(8, true), params), &mut back, threads);
                    (codes, back)
                };
                let (codes, back) = run(1);
                for (i, &code) in codes.iter().enumerate() {
                    let (s, z) = (scale[part(layout, i)], zero_point[part(layout, i)]);
                    let want = ((x[i] / s).round_ties_even() + z as f32).clamp(-128.0, 127.0);
                    assert_eq!(code as i8, want as i8, "{layout:?} {i}");
                    assert_eq!(back[i], (i32::from(code as i8) - z) as f32 * s);
                }
                assert!(run(3) == (codes, back));
            }
        }
    }

    #[test]
    fn test_every_16_bit_float_becomes_the_code_of_a_division() {
        fn check(x: &[f32], source: &dyn Source<f32>) {
            for scale in [0.5f32, 0.1, 1.0 / 3.0, 0.007_812_5, 3e-39, 1e38] {
                for zero_point in [0, -100, 32_767] {
                    let mut codes = vec![0u16; x.len()];
                    let target = WordCodes::<Even>::new(-32768, 32767);
                    quantize(source, whole(&[scale], &[zero_point]), target, &mut codes, 2);
                    for (&x, &code) in x.iter().zip(&codes) {
                        let t = if x.is_nan() { 0.0 } else { f64::from(x / scale).round_ties_even() };
                        let want = (t + f64::from(zero_point)).clamp(-32768.0, 32767.0);
                        assert_eq!(f64::from(code as i16), want, "{x} {scale} {zero_point}");
                    }
                }
            }
        }
        use crate::real::Element;
        let (halves, brains): (Vec<_>, Vec<_>) = (0..=u16::MAX).map(|bits| (F16(bits), Bf16(bits))).unzip();
        check(&halves.iter().map(|x| x.load()).collect::<Vec<_>>(), &Converted(&halves));
        check(&brains.iter().map(|x| x.load()).collect::<Vec<_>>(), &Converted(&brains));
    }

    #[test]
    fn test_ties_of_16_bits_are_those_of_a_division_and_away_from_zero_where_asked() {
        for scale in [0.1f32, 0.123_456, 1e-5, 0.003_906_25] {
            let ties = (-33_000..33_000).map(|k| (k as f32 + 0.5) * scale);
            let x: Vec<f32> = ties.flat_map(|x| [x.next_down(), x, x.next_up()]).collect();
            let [mut even, mut away] = [vec![0u16; x.len()], vec![0u16; x.len()]];
            quantize(&Direct(&x), whole(&[scale], &[]), WordCodes::<Even>::new(-32768, 32767), &mut even, 1);
            quantize(&Direct(&x), whole(&[scale], &[]), WordCodes::<Away>::new(-32768, 32767), &mut away, 1);
            for ((&x, &even), &away) in x.iter().zip(&even).zip(&away) {
                let t = x / scale;
                assert_eq!(f32::from(even as i16), t.round_ties_even().clamp(-32768.0, 32767.0), "{x} {scale}");
                assert_eq!(f32::from(away as i16), t.round().clamp(-32768.0, 32767.0), "{x} {scale}");
            }
        }
    }

    #[test]
    fn test_codes_to_other_codes_are_those_of_the_numbers_between() {
        let codes: Vec<u8> = (0..=255).collect();
        let (from, to) = (whole(&[0.07], &[3]), whole(&[0.11], &[-5]));
        let source = Coded::new(&codes, Bytes::new(8, true), from);
        let (mut between, mut want, mut got) = ([0f32; 256], [0u8; 256], [0u8; 256]);
        dequantize(&source, &mut between, 1);
        quantize(&Direct(&between), to, INT8, &mut want, 1);
        quantize(&source, to, INT8, &mut got, 1);
        assert_eq!(got, want);
    }

    fn check_float<K: Minifloat>(nan: u8) {
        let codes: Vec<u8> = (0..=255).collect();
        let mut numbers = vec![0f32; 256];
        dequantize::<f32, f32>(&Coded::new(&codes, Floats8::<K>::NEW, whole(&[1.0], &[])), &mut numbers, 1);
        let mut back = vec![0u8; 256];
        quantize(&Direct(&numbers), whole(&[1.0], &[]), FloatCodes::<K>::NEW, &mut back, 1);
        for (&code, (&number, &back)) in codes.iter().zip(numbers.iter().zip(&back)) {
            if number.is_finite() {
                assert_eq!(back, code, "{number}");
            } else if number.is_nan() {
                assert_eq!(back & 0x7f | nan & 0x80, nan);
            }
        }
        let mut made = [0u8; 3];
        quantize(&Direct(&[f32::INFINITY, -1e30, -1e-30]), whole(&[0.5], &[]), FloatCodes::<K>::NEW, &mut made, 1);
        let largest = numbers.iter().copied().filter(|x| x.is_finite()).fold(0.0, f32::max);
        assert_eq!([numbers[usize::from(made[0])], numbers[usize::from(made[1])]], [largest, -largest]);
        assert_eq!(numbers[usize::from(made[2])], 0.0);
    }

    #[test]
    fn test_floats_of_8_bits_come_back_and_saturate() {
        check_float::<crate::kernels::codes::E4M3>(0x7f);
        check_float::<crate::kernels::codes::E5M2>(0x7e);
        check_float::<E4M3Fnuz>(0x80);
        check_float::<E5M2Fnuz>(0x80);
    }
}

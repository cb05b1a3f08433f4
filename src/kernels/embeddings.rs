//! Vectors of a search index as bytes and bits, as the libraries that search them make them.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::isa::kernel;
use crate::par;
use crate::real::{Element, Real};

/// Elements of a piece of work.
const PIECE: usize = 1 << 15;
/// Sums are made in so many lanes, and joined in the order of the lanes.
const LANES: usize = 16;
/// Numbers that are compared before their bits are packed.
const SIGNS: usize = 512;

/// Ranges of the columns, and what codes are made of: floor(limited((x - start) / step, 0, top) * factor) ^ flip.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a, C> {
    /// The lowest number of each column.
    pub start: &'a [C],
    /// What is divided by; not 0.
    pub step: &'a [C],
    /// 255 where steps are those of a code, 1 where they are whole ranges.
    pub top: i16,
    /// 0, or 128 for signed bytes.
    pub flip: u8,
}

/// The integer below a number of magnitude below 2^20, plus 1.5 x 2^(mantissa bits).
#[inline(always)]
fn below<C: Real>(t: C) -> C {
    let near = (t + C::ROUNDING) - C::ROUNDING;
    let over = if near > t { C::from_i16(1) } else { C::ZERO };
    near - over + C::ROUNDING
}

kernel! {
    /// Whole rows. NaN is the lowest code.
    fn column_codes<T: Element>(x: &[T], columns: Columns<'_, T::Compute>, out: &mut [u8]) {
        let Columns { start, step, top, flip } = columns;
        let (zero, top) = (T::Compute::ZERO, T::Compute::from_i16(top));
        let factor = T::Compute::from_i16(255) / top;
        for (x, out) in x.chunks(start.len()).zip(out.chunks_mut(start.len())) {
            for (((out, &x), &start), &step) in out.iter_mut().zip(x).zip(start).zip(step) {
                let t = (x.load() - start) / step;
                let t = if t > zero { t } else { zero };
                let t = if t < top { t } else { top };
                *out = below(t * factor).low_byte() ^ flip;
            }
        }
    }
}

/// Codes by the ranges of columns.
pub fn quantize_columns<T: Element>(x: &[T], columns: Columns<'_, T::Compute>, out: &mut [u8], threads: usize) {
    by_rows(x, columns.start.len(), out, columns.start.len(), threads, |x, out| column_codes(x, columns, out));
}

kernel! {
    /// Whole rows in units of their Euclidean norm, times 127 and towards zero; NaN and rows of zeros are 0.
    fn unit_codes<T: Element>(x: &[T], dim: usize, out: &mut [u8]) {
        for (x, out) in x.chunks(dim).zip(out.chunks_mut(dim)) {
            let mut lanes = [0f64; LANES];
            let (blocks, tail) = x.as_chunks::<LANES>();
            for block in blocks {
                for (lane, &x) in lanes.iter_mut().zip(block) {
                    let x = x.to_f64();
                    *lane += x * x;
                }
            }
            let mut sum = 0.0;
            for lane in lanes {
                sum += lane;
            }
            for &x in tail {
                sum += x.to_f64() * x.to_f64();
            }
            let norm = sum.sqrt();
            let norm = if norm > 0.0 { norm } else { f64::INFINITY };
            for (out, &x) in out.iter_mut().zip(x) {
                let t = x.to_f64() * 127.0 / norm;
                let t = if t == t { t } else { 0.0 };
                let t = if t > -127.0 { t } else { -127.0 };
                let t = if t < 127.0 { t } else { 127.0 };
                let magnitude = below(t.abs()).low_byte();
                *out = if t < 0.0 { magnitude.wrapping_neg() } else { magnitude };
            }
        }
    }
}

/// Codes of rows in units of their Euclidean norm.
pub fn quantize_units<T: Element>(x: &[T], dim: usize, out: &mut [u8], threads: usize) {
    by_rows(x, dim, out, dim, threads, |x, out| unit_codes(x, dim, out));
}

kernel! {
    /// Whether numbers are over 0, as bytes.
    fn over_zero<T: Element>(x: &[T], out: &mut [u8; SIGNS]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = (x.load() > T::Compute::ZERO) as u8;
        }
    }
}

kernel! {
    /// Eight bytes of 0 and 1 to the bits of one, the first the highest.
    fn pack_bits(bytes: &[u8; SIGNS], flip: u8, out: &mut [u8]) {
        for (out, eight) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
            // The product moves bit 0 of byte i to bit 63 - i; no two bits meet.
            *out = (u64::from_le_bytes(*eight).wrapping_mul(0x8040_2010_0804_0201) >> 56) as u8 ^ flip;
        }
    }
}

/// The signs of rows as bits, each row from a byte on: 1 for what is over 0. `flip` changes bits of every byte.
pub fn sign_bits<T: Element>(x: &[T], dim: usize, flip: u8, out: &mut [u8], threads: usize) {
    by_rows(x, dim, out, dim.div_ceil(8), threads, |x, out| {
        let (dim, bytes) = if dim.is_multiple_of(8) { (x.len(), out.len()) } else { (dim, dim.div_ceil(8)) };
        for (x, out) in x.chunks(dim).zip(out.chunks_mut(bytes)) {
            #[cfg(target_arch = "x86_64")]
            let done = x86::sign_bits(x, flip, out);
            #[cfg(not(target_arch = "x86_64"))]
            let done = 0;
            let (x, out) = (&x[8 * done..], &mut out[done..]);
            for (x, out) in x.chunks(SIGNS).zip(out.chunks_mut(SIGNS / 8)) {
                let mut signs = [0; SIGNS];
                over_zero(x, &mut signs);
                pack_bits(&signs, flip, out);
            }
        }
    });
}

/// Call `f` on pieces of whole rows: of `dim` numbers, `bytes` of the output.
fn by_rows<T: Element>(
    x: &[T],
    dim: usize,
    out: &mut [u8],
    bytes: usize,
    threads: usize,
    f: impl Fn(&[T], &mut [u8]) + Sync,
) {
    if x.is_empty() {
        return;
    }
    let rows = (PIECE / dim).max(1);
    let pieces: Vec<_> = x.chunks(rows * dim).zip(out.chunks_mut(rows * bytes)).collect();
    par::for_each(threads, pieces.into_iter(), |(x, out)| f(x, out));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: u32) -> Vec<f32> {
        (0..n).map(|i| i.wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.5).collect()
    }

    #[test]
    fn test_bits_are_the_signs_of_rows_from_the_highest_on() {
        for dim in [1usize, 7, 8, 9, 384, 513, 520, 1000] {
            let x = numbers(37 * dim as u32);
            let bytes = dim.div_ceil(8);
            let mut out = vec![0; 37 * bytes];
            sign_bits(&x, dim, 0x80, &mut out, 2);
            for (x, out) in x.chunks(dim).zip(out.chunks(bytes)) {
                let mut want = vec![0u8; bytes];
                for (i, &x) in x.iter().enumerate() {
                    want[i / 8] |= u8::from(x > 0.0) << (7 - i % 8);
                }
                assert!(want.iter().zip(out).all(|(want, got)| want ^ 0x80 == *got), "{dim}");
            }
        }
    }

    #[test]
    fn test_codes_of_columns_are_floors_within_their_limits() {
        let dim = 41;
        let x: Vec<f32> = numbers(100 * dim as u32).into_iter().chain([f32::NAN; 41]).collect();
        let start: Vec<f32> = (0..dim).map(|i| -0.4 + i as f32 * 0.001).collect();
        let step: Vec<f32> = (0..dim).map(|i| 0.003 + i as f32 * 1e-5).collect();
        let mut out = vec![0; x.len()];
        quantize_columns(&x, Columns { start: &start, step: &step, top: 255, flip: 0 }, &mut out, 3);
        for (i, (&x, &got)) in x.iter().zip(&out).enumerate() {
            let want = ((x - start[i % dim]) / step[i % dim]).floor().clamp(0.0, 255.0);
            assert_eq!(got, if x.is_nan() { 0 } else { want as u8 });
        }
    }

    #[test]
    fn test_codes_of_units_go_towards_zero() {
        let mut x = numbers(3 * 50);
        x[50..100].fill(0.0);
        let mut out = vec![1; 150];
        quantize_units(&x, 50, &mut out, 1);
        for (x, out) in x.chunks(50).zip(out.chunks(50)) {
            let norm = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            for (&x, &got) in x.iter().zip(out) {
                let want = if norm > 0.0 { (f64::from(x) * 127.0 / norm).trunc() } else { 0.0 };
                assert_eq!(f64::from(got as i8), want);
            }
        }
    }
}

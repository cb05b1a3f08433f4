//! Moving what is not zero together, and apart again, by the instructions that AVX-512 has for it.
//!
//! The plain loops of [`super::sparse`] move weights one by one: 450 ps each in one thread, 6 times a copy. Here 16 go at once;
//! the same bytes come out. For elements of 32 and 16 bits (which are widened on the way: their own instructions came later).

use std::arch::x86_64::{
    __m512i, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_cvtepi32_epi16, _mm512_cvtepu16_epi32, _mm512_loadu_si512,
    _mm512_maskz_compress_epi32, _mm512_maskz_expand_epi32, _mm512_set1_epi32, _mm512_storeu_si512,
    _mm512_test_epi32_mask,
};

use crate::isa::{Isa, current};
use crate::real::Element;

/// Elements at a time.
const L: usize = 16;

/// Whether rows of these elements can be moved by this CPU. Asked once for a row: another thread may set the instruction set.
#[inline]
fn can<T: Element>() -> bool {
    T::BITS <= 32 && current() == Isa::Avx512
}

/// Load elements, each into 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn load<T: Element>(x: &[T; L]) -> __m512i {
    // SAFETY: `x` is 16 elements; `can` has them of 4 bytes, or of 2 (f32, f16, bf16: plain numbers without padding).
    unsafe {
        if T::BITS == 32 {
            _mm512_loadu_si512(x.as_ptr().cast())
        } else {
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()))
        }
    }
}

/// Store what [`load`] has loaded.
#[inline]
#[target_feature(enable = "avx512f")]
fn store<T: Element>(v: __m512i, out: &mut [T; L]) {
    // SAFETY: as in `load`; every pattern of bits is a number.
    unsafe {
        if T::BITS == 32 {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), v);
        } else {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(v));
        }
    }
}

/// See [`to_bits`].
#[target_feature(enable = "avx512f,popcnt")]
fn rows_to_bits<T: Element>(x: &[[T; L]], values: &mut [T], bits: &mut [[u8; 2]]) -> Option<usize> {
    let magnitude = _mm512_set1_epi32(if T::BITS == 32 { 0x7fff_ffff } else { 0x7fff });
    let mut n = 0;
    for (x, bits) in x.iter().zip(bits) {
        let v = load(x);
        let mask = _mm512_test_epi32_mask(v, magnitude);
        *bits = mask.to_le_bytes();
        let moved = _mm512_maskz_compress_epi32(mask, v);
        let count = mask.count_ones() as usize;
        if let Some(values) = values.get_mut(n..).and_then(|rest| rest.first_chunk_mut::<L>()) {
            store(moved, values); // what is too many is written over by the next
        } else {
            let mut last = [T::from_bits64(0); L];
            store(moved, &mut last);
            values.get_mut(n..n + count)?.copy_from_slice(&last[..count]);
        }
        n += count;
    }
    Some(n)
}

/// See [`from_bits`].
#[target_feature(enable = "avx512f,popcnt")]
fn rows_from_bits<T: Element>(values: &[T], bits: &[[u8; 2]], out: &mut [[T; L]]) -> usize {
    let mut n = 0;
    for (out, bits) in out.iter_mut().zip(bits) {
        let mask = u16::from_le_bytes(*bits);
        let v = if let Some(values) = values[n..].first_chunk::<L>() {
            load(values)
        } else {
            let mut last = [T::from_bits64(0); L];
            last[..values.len() - n].copy_from_slice(&values[n..]);
            load(&last)
        };
        store(_mm512_maskz_expand_epi32(mask, v), out);
        n += mask.count_ones() as usize;
    }
    n
}

/// The values and bits of the first weights of a row, 16 after 16: how many weights were taken (none where this CPU cannot),
/// and how many values they are; None where there are more than `values` has room for.
pub(super) fn to_bits<T: Element>(x: &[T], values: &mut [T], bits: &mut [u8]) -> Option<(usize, usize)> {
    if !can::<T>() {
        return Some((0, 0));
    }
    let (x, bits) = (x.as_chunks::<L>().0, bits.as_chunks_mut::<2>().0);
    // SAFETY: `can` says that this CPU has AVX-512 F, and with it POPCNT.
    let n = unsafe { rows_to_bits(x, values, bits) }?;
    Some((x.len() * L, n))
}

/// The first weights of a row from values and bits: how many weights were made (none where this CPU cannot), of how many values.
pub(super) fn from_bits<T: Element>(values: &[T], bits: &[u8], out: &mut [T]) -> (usize, usize) {
    if !can::<T>() {
        return (0, 0);
    }
    let out = out.as_chunks_mut::<L>().0;
    let made = out.len() * L;
    // SAFETY: as in `to_bits`.
    let n = unsafe { rows_from_bits(values, bits.as_chunks::<2>().0, out) };
    (made, n)
}

//! 16 x 16 words in four steps of permutations. A plain loop moves one word at a time, at a third of the speed of memory.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_shuffle_i32x4,
    _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    _mm512_xor_si512,
};

use super::{LINE, ROWS};
use crate::isa::{Isa, current};

/// Write the first words and return how many: a multiple of 16, 0 without AVX-512.
#[inline]
pub(super) fn transpose_words(
    rows: &[u8],
    stride: usize,
    places: &[usize],
    flip: u32,
    lines: &mut [[u8; LINE]],
) -> usize {
    if current() != Isa::Avx512 {
        return 0;
    }
    let places = places.as_chunks::<ROWS>().0;
    assert!(places.is_empty() || rows.len() >= (ROWS - 1) * stride + places.len() * LINE);
    // SAFETY: the instruction set in use is one that this CPU has, and rows are as long as was checked.
    unsafe { transpose_words_avx512(rows, stride, places, flip, lines) }
    places.len() * ROWS
}

/// # Safety
///
/// From each of 16 places of `rows`, `stride` bytes apart, there are 64 bytes for each of `places`.
#[target_feature(enable = "avx512f")]
unsafe fn transpose_words_avx512(
    rows: &[u8],
    stride: usize,
    places: &[[usize; ROWS]],
    flip: u32,
    lines: &mut [[u8; LINE]],
) {
    let flip = _mm512_set1_epi32(flip as i32);
    for (i, places) in places.iter().enumerate() {
        let mut x = [flip; ROWS];
        for (row, x) in x.iter_mut().enumerate() {
            let place = row * stride + i * LINE;
            // What the next 16 rows have here, while these are worked on. SAFETY: as the caller says; a prefetch of any
            // address has no effect but on the cache.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(rows.as_ptr().wrapping_add(place + ROWS * stride).cast());
                *x = _mm512_loadu_si512(rows.as_ptr().add(place).cast());
            }
        }
        transpose(&mut x);
        for (&x, &place) in x.iter().zip(places) {
            let x = _mm512_xor_si512(x, flip);
            // SAFETY: a line is 64 bytes.
            unsafe { _mm512_storeu_si512(lines[place].as_mut_ptr().cast(), x) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(x: &mut [__m512i; ROWS]) {
    // Quarters of registers have 4 columns of 4 rows, then one column of them.
    for i in (0..ROWS).step_by(2) {
        (x[i], x[i + 1]) = (_mm512_unpacklo_epi32(x[i], x[i + 1]), _mm512_unpackhi_epi32(x[i], x[i + 1]));
    }
    for i in (0..ROWS).step_by(4) {
        let [a, b, c, d] = [x[i], x[i + 1], x[i + 2], x[i + 3]];
        (x[i], x[i + 1]) = (_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c));
        (x[i + 2], x[i + 3]) = (_mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d));
    }
    for i in 0..4 {
        let [a, b, c, d] = [x[i], x[i + 4], x[i + 8], x[i + 12]];
        let even = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
        let odd = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
        x[i] = _mm512_shuffle_i32x4::<0x88>(even.0, even.1);
        x[i + 8] = _mm512_shuffle_i32x4::<0xdd>(even.0, even.1);
        x[i + 4] = _mm512_shuffle_i32x4::<0x88>(odd.0, odd.1);
        x[i + 12] = _mm512_shuffle_i32x4::<0xdd>(odd.0, odd.1);
    }
}

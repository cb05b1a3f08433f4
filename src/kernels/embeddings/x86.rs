//! Signs as bits by a comparison that gives a mask: the plain loop makes a byte of each first, and takes 0.27 ns a number in the
//! cache, where reading one from memory takes 0.4 on top.

use std::any::TypeId;
use std::arch::x86_64::{
    _CMP_GT_OQ, _mm256_cmp_ps, _mm256_loadu_ps, _mm256_movemask_ps, _mm256_permutevar8x32_ps, _mm256_set_epi32,
    _mm256_setzero_ps, _mm512_cmp_ps_mask, _mm512_loadu_ps, _mm512_permutexvar_ps, _mm512_set_epi32, _mm512_setzero_ps,
};

use crate::isa::{Isa, current};

/// The numbers, if they are float32.
fn as_f32<T: 'static>(x: &[T]) -> Option<&[f32]> {
    // SAFETY: the types are the same.
    (TypeId::of::<T>() == TypeId::of::<f32>())
        .then(|| unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) })
}

#[target_feature(enable = "avx512f")]
fn sixteens(x: &[[f32; 16]], flip: u8, out: &mut [[u8; 2]]) {
    // Eight numbers are one byte, the first its highest bit.
    let turned = _mm512_set_epi32(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    for (x, out) in x.iter().zip(out) {
        // SAFETY: it is 16 numbers.
        let x = _mm512_permutexvar_ps(turned, unsafe { _mm512_loadu_ps(x.as_ptr()) });
        let signs = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_setzero_ps());
        *out = (signs ^ u16::from_le_bytes([flip; 2])).to_le_bytes();
    }
}

#[target_feature(enable = "avx2")]
fn eights(x: &[[f32; 8]], flip: u8, out: &mut [u8]) {
    let turned = _mm256_set_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (x, out) in x.iter().zip(out) {
        // SAFETY: it is 8 numbers.
        let x = _mm256_permutevar8x32_ps(unsafe { _mm256_loadu_ps(x.as_ptr()) }, turned);
        *out = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_setzero_ps())) as u8 ^ flip;
    }
}

/// The bits of the first numbers: of how many bytes.
pub(super) fn sign_bits<T: 'static>(x: &[T], flip: u8, out: &mut [u8]) -> usize {
    let Some(x) = as_f32(x) else { return 0 };
    match current() {
        Isa::Avx512 => {
            let (x, _) = x.as_chunks::<16>();
            // SAFETY: the instruction set in use is one that this CPU has.
            unsafe { sixteens(x, flip, out.as_chunks_mut::<2>().0) };
            2 * x.len()
        }
        Isa::Avx2 => {
            let (x, _) = x.as_chunks::<8>();
            // SAFETY: as above.
            unsafe { eights(x, flip, out) };
            x.len()
        }
        Isa::Portable => 0,
    }
}

//! The floats of products as tiles of bytes, by AVX-512.
//!
//! They are those of the plain loop, which not every compiler's options make vectors of (16 rows at opt-level 2: 2.99 ms, and 0.83 so).

use std::arch::x86_64::{
    _mm512_add_epi32, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_mullo_epi32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
};

use super::super::TALL;
use super::super::form::{Form, LINE};
use super::super::product::{PANELS, Sums};
use crate::kernels::codes::Scheme;
use crate::kernels::tiles;

/// What is known of a block besides its codes: the lines before them, and of `x` sums of digits and scales.
#[derive(Clone, Copy)]
pub(super) struct Beside<'a> {
    pub(super) headers: [[&'a [u8; LINE]; 2]; PANELS],
    pub(super) digits: &'a [i32],
    pub(super) units: &'a [f32],
}

/// Add the floats of a block that was multiplied as tiles of bytes.
pub(super) fn add_block(whole: &tiles::Sums, beside: Beside<'_>, form: &Form, sums: &mut Sums) {
    assert!(tiles::are_available());
    // SAFETY: where there are tiles this CPU has AVX-512 F.
    unsafe {
        match form.scheme {
            Scheme::Symmetric => add_block_of::<0>(whole, beside, -(1 << (form.bits - 1)), sums),
            Scheme::Asymmetric => add_block_of::<1>(whole, beside, -1, sums),
            Scheme::MinMax => add_block_of::<2>(whole, beside, 1, sums),
        }
    }
}

/// Sums of digits are multiplied by `factor`, then added, added times the zero points, or times the offsets.
#[target_feature(enable = "avx512f")]
fn add_block_of<const SCHEME: u8>(whole: &tiles::Sums, beside: Beside<'_>, factor: i32, sums: &mut Sums) {
    let mut added = [0; TALL];
    added.iter_mut().zip(beside.digits).for_each(|(added, digits)| *added = digits * factor);
    for ((header, whole), sums) in beside.headers.iter().zip(&whole.0).zip(sums) {
        // SAFETY: a line is 64 bytes.
        let (scale, second) =
            unsafe { (_mm512_loadu_ps(header[0].as_ptr().cast()), _mm512_loadu_si512(header[1].as_ptr().cast())) };
        for (((sum, whole), added), unit) in sums.iter_mut().zip(whole).zip(&added).zip(beside.units) {
            // SAFETY: as many lanes.
            let (mut whole, added) = (unsafe { _mm512_loadu_si512(whole.as_ptr().cast()) }, _mm512_set1_epi32(*added));
            match SCHEME {
                0 => whole = _mm512_add_epi32(whole, added),
                1 => whole = _mm512_add_epi32(whole, _mm512_mullo_epi32(second, added)),
                _ => {}
            }
            let mut product = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale);
            if SCHEME == 2 {
                let alone = _mm512_mul_ps(_mm512_cvtepi32_ps(added), _mm512_castsi512_ps(second));
                product = _mm512_add_ps(product, alone);
            }
            let product = _mm512_mul_ps(product, _mm512_set1_ps(*unit));
            // SAFETY: as many lanes.
            unsafe { _mm512_storeu_ps(sum.as_mut_ptr(), _mm512_add_ps(_mm512_loadu_ps(sum.as_ptr()), product)) };
        }
    }
}

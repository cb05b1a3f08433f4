//! By the instruction that multiplies bytes and adds (AVX-512 VNNI), along the rows.
//!
//! A lane has sums of its own columns, so that lanes are added at the end of each block; to bring the codes into panels first,
//! a lane for each row, takes a permutation for each register of codes, 2.8 times as long as to read them.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_loadu_si512,
    _mm512_maskz_loadu_epi8, _mm512_set1_epi8, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32,
    _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    _mm512_xor_si512,
};

use super::{Bytes, PIECE, ROWS, Row, Sums};
use crate::isa;

/// Rows whose sums are in registers.
const FEW: usize = 4;

/// Write the sums, if this CPU can.
pub(super) fn sums(row: &Row, bytes: Bytes<'_>, sums: &mut [Sums]) -> bool {
    if !isa::has_vnni() {
        return false;
    }
    let end = row.blocks.iter().map(|[start, len]| start + len).max().unwrap_or(0);
    assert!((1..=ROWS).contains(&bytes.rows) && bytes.codes.len() >= (bytes.rows - 1) * bytes.stride + end);
    // SAFETY: `has_vnni` says that this CPU has AVX-512 F, BW and VNNI, and the rows are as long as was checked.
    unsafe {
        match row.digits {
            3 => sums_of::<3>(row, bytes, sums),
            _ => sums_of::<1>(row, bytes, sums),
        }
    }
    true
}

/// # Safety
///
/// Each of the rows has the bytes of each block.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn sums_of<const DIGITS: usize>(row: &Row, bytes: Bytes<'_>, sums: &mut [Sums]) {
    let flip = _mm512_set1_epi8(bytes.flip as i8);
    let mut lines = row.lines.as_chunks::<DIGITS>().0;
    for (&[start, len], sums) in row.blocks.iter().zip(sums) {
        let (of_block, rest) = lines.split_at(len.div_ceil(PIECE));
        lines = rest;
        let mut quarters = [[flip; 2]; ROWS / FEW];
        for (i, quarter) in quarters.iter_mut().enumerate() {
            let place = |j: usize| (FEW * i + j).min(bytes.rows - 1) * bytes.stride + start;
            let places = [place(0), place(1), place(2), place(3)];
            // SAFETY: as the caller says.
            let found = unsafe { few::<DIGITS>(bytes, places, len, of_block, flip) };
            quarter[0] = lanes(found[0]);
            if DIGITS == 3 {
                quarter[1] = lanes(found[1]);
            }
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            let found = if i < DIGITS { joined(quarters.map(|quarter| quarter[i])) } else { _mm512_setzero_si512() };
            // SAFETY: as many lanes.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), found) };
        }
    }
}

/// The sums of few rows, which have no other lanes yet: as [`Sums`].
///
/// # Safety
///
/// At each of the places there are `len` bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn few<const DIGITS: usize>(
    bytes: Bytes<'_>,
    places: [usize; FEW],
    len: usize,
    lines: &[[[u8; PIECE]; DIGITS]],
    flip: __m512i,
) -> [[__m512i; FEW]; 2] {
    let mut sums = [[_mm512_setzero_si512(); DIGITS]; FEW];
    for (i, line) in lines.iter().enumerate() {
        let left = len - i * PIECE;
        let mut x = [flip; DIGITS];
        for (x, line) in x.iter_mut().zip(line) {
            // SAFETY: a line is 64 bytes.
            *x = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
        }
        for (sums, place) in sums.iter_mut().zip(places) {
            let at = bytes.codes.as_ptr().wrapping_add(place + i * PIECE);
            // What the rows after these have here. SAFETY: a prefetch of any address has no effect but on the cache; what is
            // loaded are bytes of the block.
            let codes = unsafe {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ROWS * bytes.stride).cast());
                if left >= PIECE {
                    _mm512_loadu_si512(at.cast())
                } else {
                    _mm512_maskz_loadu_epi8(!(!0 << left), at.cast())
                }
            };
            let codes = _mm512_xor_si512(codes, flip);
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm512_dpbusd_epi32(*sum, codes, x);
            }
        }
    }
    let mut found = [[flip; FEW]; 2];
    for (i, sums) in sums.iter().enumerate() {
        found[0][i] = sums[0];
        if DIGITS == 3 {
            found[0][i] = _mm512_add_epi32(_mm512_slli_epi32::<8>(sums[0]), sums[1]);
            found[1][i] = sums[2];
        }
    }
    found
}

/// Each quarter of a register: the sums of its lanes, of the four rows beside each other.
#[inline]
#[target_feature(enable = "avx512f")]
fn lanes([a, b, c, d]: [__m512i; FEW]) -> __m512i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// The sums of the quarters of each, beside each other.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined([a, b, c, d]: [__m512i; FEW]) -> __m512i {
    let ab = _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
    let cd = _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
    _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(ab, cd), _mm512_shuffle_i32x4::<0xdd>(ab, cd))
}

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

use super::{Bytes, PIECE, ROWS, Row, pitch};
use crate::isa;

/// Rows whose sums are in registers.
const FEW: usize = 4;
/// Bytes of a row from which on asking for what comes next in it is enough.
const LONG: usize = 2048;

/// Write the sums, if this CPU can.
pub(super) fn sums(row: &Row, bytes: Bytes<'_>, sums: &mut [i32]) -> bool {
    if !isa::current().has_vnni() {
        return false;
    }
    let end = row.blocks.iter().map(|[start, len]| start + len).max().unwrap_or(0);
    assert!(bytes.rows > 0 && bytes.codes.len() >= (bytes.rows - 1) * bytes.stride + end);
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
unsafe fn sums_of<const DIGITS: usize>(row: &Row, bytes: Bytes<'_>, sums: &mut [i32]) {
    let (flip, pitch) = (_mm512_set1_epi8(bytes.flip as i8), pitch(bytes.rows));
    for first in (0..pitch).step_by(ROWS) {
        // The next rows at the same place are asked for: without it shorter rows take 2 to 3 times as long, those of a page 1.1
        // times. But not past the last, as those are mostly another thread's: both took together as long as one.
        let ahead = if first + ROWS < pitch || bytes.stride < LONG { ROWS * bytes.stride } else { 8 * PIECE };
        // Once for all blocks: for each of them it took a tenth of the time.
        let row_at = |j: usize| bytes.codes[(first + j).min(bytes.rows - 1) * bytes.stride..].as_ptr();
        let rows: [_; ROWS] = std::array::from_fn(row_at);
        let mut lines = row.lines.as_chunks::<DIGITS>().0;
        for (&[start, len], sums) in row.blocks.iter().zip(sums.chunks_exact_mut(2 * pitch)) {
            let (of_block, rest) = lines.split_at(len.div_ceil(PIECE));
            lines = rest;
            let [mut firsts, mut seconds] = [[flip; ROWS / FEW]; 2];
            for (i, (of_first, of_second)) in firsts.iter_mut().zip(&mut seconds).enumerate() {
                let places = [0, 1, 2, 3].map(|j| rows[FEW * i + j].wrapping_add(start));
                // SAFETY: as the caller says.
                let found = unsafe { few::<DIGITS>(places, len, of_block, flip, ahead) };
                *of_first = lanes(found[0]);
                *of_second = if DIGITS == 3 { lanes(found[1]) } else { _mm512_setzero_si512() };
            }
            let (of_first, of_second) = sums.split_at_mut(pitch);
            for (sums, quarters) in [(of_first, firsts), (of_second, seconds)] {
                // SAFETY: as many lanes.
                unsafe { _mm512_storeu_si512(sums[first..first + ROWS].as_mut_ptr().cast(), joined(quarters)) };
            }
        }
    }
}

/// The sums of few rows, as [`Row::sums`] has them, in lanes yet.
///
/// # Safety
///
/// At each of the places there are `len` bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn few<const DIGITS: usize>(
    mut places: [*const u8; FEW],
    len: usize,
    lines: &[[[u8; PIECE]; DIGITS]],
    flip: __m512i,
    ahead: usize,
) -> [[__m512i; FEW]; 2] {
    let mut sums = [[_mm512_setzero_si512(); DIGITS]; FEW];
    let (whole, rest) = lines.split_at(len / PIECE);
    for line in whole {
        let x = loaded(line);
        for (sums, at) in sums.iter_mut().zip(&mut places) {
            // SAFETY: a prefetch of any address has no effect but on the cache; what is loaded are bytes of the block.
            let codes = unsafe {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ahead).cast());
                _mm512_loadu_si512(at.cast())
            };
            *at = at.wrapping_add(PIECE);
            add(sums, codes, x, flip);
        }
    }
    if let [line] = rest {
        let x = loaded(line);
        for (sums, at) in sums.iter_mut().zip(places) {
            // SAFETY: what is left of the block.
            let codes = unsafe { _mm512_maskz_loadu_epi8(!(!0 << (len % PIECE)), at.cast()) };
            add(sums, codes, x, flip);
        }
    }
    let mut found = [[flip; FEW]; 2];
    for (i, sums) in sums.iter().enumerate() {
        found[0][i] = if DIGITS == 3 { _mm512_add_epi32(_mm512_slli_epi32::<8>(sums[0]), sums[1]) } else { sums[0] };
        found[1][i] = sums[DIGITS - 1];
    }
    found
}

/// A line for each digit.
#[inline]
#[target_feature(enable = "avx512f")]
fn loaded<const DIGITS: usize>(line: &[[u8; PIECE]; DIGITS]) -> [__m512i; DIGITS] {
    // SAFETY: a line is 64 bytes.
    std::array::from_fn(|digit| unsafe { _mm512_loadu_si512(line[digit].as_ptr().cast()) })
}

/// Add the products of a row's codes with each digit.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add<const DIGITS: usize>(sums: &mut [__m512i; DIGITS], codes: __m512i, x: [__m512i; DIGITS], flip: __m512i) {
    let codes = _mm512_xor_si512(codes, flip);
    for (sum, x) in sums.iter_mut().zip(x) {
        *sum = _mm512_dpbusd_epi32(*sum, codes, x);
    }
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

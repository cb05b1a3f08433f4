//! A panel times a tile by the instructions that multiply bytes and add (AVX-512 VNNI; `maddubs` and `madd` of AVX2).
//!
//! The plain loop is not vectorised: products of bytes are widened to 32 bits first. All sums are exact, so that their order
//! is free; the floats of a block are those of the plain loop, in its order.

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _mm_cvtsi32_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256,
    _mm256_castsi256_ps, _mm256_cvtepi32_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_mul_ps, _mm256_mullo_epi32, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_slli_epi16, _mm256_srai_epi16, _mm256_srl_epi16, _mm256_srli_epi16, _mm256_storeu_ps, _mm512_add_ps,
    _mm512_and_si512, _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_mullo_epi32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_srl_epi16, _mm512_storeu_ps,
};

use super::TALL;
use super::activations::Tile;
use super::form::{Form, LANES, LINE};
use super::product::{Lanes, PANELS};
use crate::isa;
use crate::kernels::codes::Scheme;

/// Lines that are asked for ahead of use.
const AHEAD: usize = 16;

/// What instruction sets differ in: vectors of lanes, a part of a panel each.
macro_rules! panel {
    (
        $name:ident $features:literal $lanes:literal $int:ident $float:ident $dot:ident
        [$load:ident $store:ident $and:ident $shift:ident $mullo:ident $bytes:ident]
        [$ints:ident $floats:ident $as_floats:ident $convert:ident $mul:ident $add:ident]
    ) => {
        #[target_feature(enable = $features)]
        fn $name<const BITS: i32, const ROWS: usize, const WIDE: usize>(
            lines: [&[[u8; LINE]]; PANELS],
            form: &Form,
            tile: &Tile,
            out: &mut [[Lanes; TALL]; PANELS],
        ) {
            const PARTS: usize = LANES / $lanes;
            let (planes, digits) = (8 / BITS as usize, WIDE / ROWS);
            let mask = $bytes((0xff_u8 >> (8 - BITS)) as i8);
            // SAFETY: each part of a line has as many lanes as are loaded.
            let load = |line: &[u8; LINE], part: usize| unsafe { $load(line[4 * $lanes * part..].as_ptr().cast()) };
            let mut sums: [[[$float; PARTS]; ROWS]; PANELS] = [[[$floats(0.0); PARTS]; ROWS]; PANELS];
            let (mut lines, mut words) = (lines, tile.words.as_chunks::<WIDE>().0);
            let scales = tile.scale.as_chunks::<ROWS>().0;
            for ((block, of_block), units) in form.blocks.iter().zip(tile.sums.as_chunks::<WIDE>().0).zip(scales) {
                let (digits_of, rest_of_words) = words.split_at(block.words * planes);
                words = rest_of_words;
                for (lines, sums) in lines.iter_mut().zip(&mut sums) {
                    let (header, rest) = lines.split_at(form.header());
                    let (codes, rest) = rest.split_at(block.words);
                    *lines = rest;
                    isa::prefetch(rest.get(AHEAD..AHEAD + form.header() + block.words).unwrap_or_default());
                    for part in 0..PARTS {
                        let mut whole: [$int; WIDE] = match form.scheme {
                            Scheme::Symmetric => of_block.map(|sum| $ints(-(sum << (BITS - 1)))),
                            Scheme::Asymmetric => of_block.map(|sum| $mullo(load(&header[1], part), $ints(-sum))),
                            Scheme::MinMax => [$ints(0); WIDE],
                        };
                        for (line, x) in codes.iter().zip(digits_of.chunks_exact(planes)) {
                            let mut line = load(line, part);
                            for x in x {
                                let plane = if BITS == 8 { line } else { $and(line, mask) };
                                for (whole, &x) in whole.iter_mut().zip(x) {
                                    *whole = $dot::<BITS>(*whole, plane, x as i32);
                                }
                                if BITS < 8 {
                                    line = $shift(line, _mm_cvtsi32_si128(BITS));
                                }
                            }
                        }
                        let scale = $as_floats(load(&header[0], part));
                        for (row, (sums, &unit)) in sums.iter_mut().zip(units).enumerate() {
                            let (mut product, mut alone) = ($floats(0.0), 0.0);
                            for digit in row * digits..(row + 1) * digits {
                                product = $add($mul(product, $floats(256.0)), $convert(whole[digit]));
                                alone = alone * 256.0 + of_block[digit] as f32;
                            }
                            product = $mul(product, scale);
                            if form.scheme == Scheme::MinMax {
                                product = $add(product, $mul($floats(alone), $as_floats(load(&header[1], part))));
                            }
                            sums[part] = $add(sums[part], $mul(product, $floats(unit)));
                        }
                    }
                }
            }
            for (sums, out) in sums.iter().flatten().zip(out.iter_mut().flat_map(|out| &mut out[..ROWS])) {
                for (sum, out) in sums.iter().zip(out.as_chunks_mut::<$lanes>().0) {
                    // SAFETY: as many lanes.
                    unsafe { $store(out.as_mut_ptr(), *sum) };
                }
            }
        }
    };
}

panel! { vnni "avx2,avx512f,avx512bw,avx512vnni" 16 __m512i __m512 dot_vnni
[_mm512_loadu_si512 _mm512_storeu_ps _mm512_and_si512 _mm512_srl_epi16 _mm512_mullo_epi32 _mm512_set1_epi8]
[_mm512_set1_epi32 _mm512_set1_ps _mm512_castsi512_ps _mm512_cvtepi32_ps _mm512_mul_ps _mm512_add_ps] }
panel! { avx2 "avx2" 8 __m256i __m256 dot_avx2
[_mm256_loadu_si256 _mm256_storeu_ps _mm256_and_si256 _mm256_srl_epi16 _mm256_mullo_epi32 _mm256_set1_epi8]
[_mm256_set1_epi32 _mm256_set1_ps _mm256_castsi256_ps _mm256_cvtepi32_ps _mm256_mul_ps _mm256_add_ps] }

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_vnni<const BITS: i32>(sum: __m512i, codes: __m512i, x: i32) -> __m512i {
    _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x))
}

#[inline]
#[target_feature(enable = "avx2")]
fn dot_avx2<const BITS: i32>(sum: __m256i, codes: __m256i, x: i32) -> __m256i {
    let x = _mm256_set1_epi32(x);
    if BITS < 8 {
        // 15 x 128 x 2 fits 16 bits.
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
    }
    // 255 x 127 x 2 does not: bytes 0 and 2 of each lane, then 1 and 3, as 16 bits.
    let even = _mm256_madd_epi16(
        _mm256_and_si256(codes, _mm256_set1_epi16(0xff)),
        _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)),
    );
    let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes), _mm256_srai_epi16::<8>(x));
    _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
}

/// Write the sums of the tile's rows for each panel, with an instruction set that is not portable.
pub(super) fn panels(lines: [&[[u8; LINE]]; PANELS], form: &Form, tile: &Tile, out: &mut [[Lanes; TALL]; PANELS]) {
    macro_rules! call {
        ($bits:literal, $($rows:literal, $wide:literal);*) => {
            match (tile.rows, tile.rows * tile.digits, isa::has_vnni()) {
                // SAFETY: `has_vnni` says that this CPU has AVX-512 F, BW and VNNI.
                $(($rows, $wide, true) => unsafe { vnni::<$bits, $rows, $wide>(lines, form, tile, out) },)*
                // SAFETY: the instruction set in use has AVX2.
                $(($rows, $wide, false) => unsafe { avx2::<$bits, $rows, $wide>(lines, form, tile, out) },)*
                _ => unreachable!("the sizes of tiles"),
            }
        };
    }
    assert!(isa::current() != isa::Isa::Portable);
    match form.bits {
        8 => call!(8, 1, 1; 2, 2; 4, 4; 8, 8; 1, 3; 2, 6),
        4 => call!(4, 1, 1; 2, 2; 4, 4; 8, 8; 1, 3; 2, 6),
        _ => call!(2, 1, 1; 2, 2; 4, 4; 8, 8; 1, 3; 2, 6),
    }
}

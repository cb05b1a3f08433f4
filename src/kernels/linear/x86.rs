//! A panel times a tile by the instructions that multiply bytes and add (AVX-512 VNNI; `maddubs` and `madd` of AVX2).
//!
//! The plain loop is not vectorised: products of bytes are widened to 32 bits first. All sums are exact, so that their order
//! is free; the floats of a block are those of the plain loop.

use std::arch::x86_64::{
    __m256i, _MM_HINT_T0, _mm_cvtsi32_si128, _mm_prefetch, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256,
    _mm256_castsi256_ps, _mm256_cvtepi32_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_mul_ps, _mm256_mullo_epi32, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_slli_epi16, _mm256_srai_epi16, _mm256_srl_epi16, _mm256_srli_epi16, _mm256_storeu_ps, _mm512_add_ps,
    _mm512_and_si512, _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_mullo_epi32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_srl_epi16, _mm512_storeu_ps,
};

use super::{TALL, activations::Tile, form::Form, form::LANES, form::LINE, product::Lanes, product::PANELS};
use crate::isa::{self, Isa};
use crate::kernels::codes::Scheme;

/// Lines that are asked for ahead of use. One at a time: a block of them at once waits for itself.
const AHEAD: usize = 32;

/// What instruction sets differ in: vectors of lanes, a part of a panel each; how many panels go line by line together.
macro_rules! panel {
    (
        $name:ident $features:literal $lanes:literal [$($panel:literal)+] [$dot_of_bytes:ident $dot_of_few_bits:ident]
        [$load:ident $store:ident $and:ident $shift:ident $mullo:ident $bytes:ident]
        [$ints:ident $floats:ident $as_floats:ident $convert:ident $mul:ident $add:ident]
    ) => {
        #[target_feature(enable = $features)]
        fn $name<const BITS: i32, const ROWS: usize, const WIDE: usize>(
            lines: &[&[[u8; LINE]]], form: &Form, tile: &Tile, out: &mut [[Lanes; TALL]],
        ) {
            const TOGETHER: usize = [$($panel),+].len();
            const PARTS: usize = LANES / $lanes;
            let (planes, digits) = (8 / BITS as usize, WIDE / ROWS);
            // What a symmetric scheme has not is read as its scales, and not used.
            let header = usize::from(form.scheme != Scheme::Symmetric);
            let (mask, shift) = ($bytes((0xff_u8 >> (8 - BITS)) as i8), _mm_cvtsi32_si128(BITS));
            // SAFETY: each part of a line has as many lanes as are loaded.
            let load = |line: &[u8; LINE], part: usize| unsafe { $load(line[4 * $lanes * part..].as_ptr().cast()) };
            let mut sums = [[[$floats(0.0); PARTS]; ROWS]; TOGETHER];
            let (lines, units) = ([lines[0], lines[TOGETHER - 1]], tile.scale.as_chunks::<ROWS>().0);
            let mut words = tile.words().as_chunks::<WIDE>().0;
            for ((block, of_block), units) in form.blocks.iter().zip(tile.sums.as_chunks::<WIDE>().0).zip(units) {
                let digits_of;
                (digits_of, words) = words.split_at(block.words * planes);
                let [scale, second] = [block.header, block.header + header].map(|at| [&lines[0][at], &lines[1][at]]);
                for part in 0..PARTS {
                    let mut whole = [[$ints(0); WIDE]; TOGETHER];
                    $(for digit in 0..WIDE {
                        let sum = of_block[digit];
                        whole[$panel][digit] = match form.scheme {
                            Scheme::Symmetric => $ints(-(sum << (BITS - 1))),
                            Scheme::Asymmetric => $mullo(load(second[$panel], part), $ints(-sum)),
                            Scheme::MinMax => $ints(0),
                        };
                    })+
                    let codes = lines[0][block.lines()].iter().zip(&lines[1][block.lines()]);
                    for ((first, last), x) in codes.zip(digits_of.chunks_exact(planes)) {
                        if part == 0 {
                            $(_mm_prefetch::<_MM_HINT_T0>([first, last][$panel].as_ptr().wrapping_add(AHEAD * LINE).cast());)+
                        }
                        let mut codes = [load(first, part), load(last, part)];
                        for x in x {
                            for digit in 0..WIDE {
                                let x = $ints(x[digit] as i32);
                                $(let (sum, code) = (whole[$panel][digit], codes[$panel]);
                                whole[$panel][digit] = match BITS {
                                    8 => $dot_of_bytes(sum, code, x),
                                    _ => $dot_of_few_bits(sum, $and(code, mask), x),
                                };)+
                            }
                            codes = [$shift(codes[0], shift), $shift(codes[1], shift)];
                        }
                    }
                    $(for row in 0..ROWS {
                        let (i, mut product) = ($panel, $floats(0.0));
                        for digit in row * digits..(row + 1) * digits {
                            product = $add($mul(product, $floats(256.0)), $convert(whole[i][digit]));
                        }
                        product = $mul(product, $as_floats(load(scale[i], part)));
                        if form.scheme == Scheme::MinMax {
                            let x = of_block[row * digits..][..digits].iter().fold(0.0, |x, &sum| x * 256.0 + sum as f32);
                            product = $add(product, $mul($floats(x), $as_floats(load(second[i], part))));
                        }
                        sums[i][row][part] = $add(sums[i][row][part], $mul(product, $floats(units[row])));
                    })+
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

panel! { vnni "avx2,avx512f,avx512bw,avx512vnni" 16 [0 1] [_mm512_dpbusd_epi32 _mm512_dpbusd_epi32]
[_mm512_loadu_si512 _mm512_storeu_ps _mm512_and_si512 _mm512_srl_epi16 _mm512_mullo_epi32 _mm512_set1_epi8]
[_mm512_set1_epi32 _mm512_set1_ps _mm512_castsi512_ps _mm512_cvtepi32_ps _mm512_mul_ps _mm512_add_ps] }
panel! { avx2 "avx2" 8 [0] [dot_of_bytes dot_of_few_bits]
[_mm256_loadu_si256 _mm256_storeu_ps _mm256_and_si256 _mm256_srl_epi16 _mm256_mullo_epi32 _mm256_set1_epi8]
[_mm256_set1_epi32 _mm256_set1_ps _mm256_castsi256_ps _mm256_cvtepi32_ps _mm256_mul_ps _mm256_add_ps] }
panel! { avx2_pair "avx2" 8 [0 1] [dot_of_bytes dot_of_few_bits]
[_mm256_loadu_si256 _mm256_storeu_ps _mm256_and_si256 _mm256_srl_epi16 _mm256_mullo_epi32 _mm256_set1_epi8]
[_mm256_set1_epi32 _mm256_set1_ps _mm256_castsi256_ps _mm256_cvtepi32_ps _mm256_mul_ps _mm256_add_ps] }

/// 15 x 128 x 2 fits 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_of_few_bits(sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)))
}

/// 255 x 127 x 2 does not: bytes 0 and 2 of each lane, then 1 and 3, as 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_of_bytes(sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    let (low, of_low) = (_mm256_and_si256(codes, _mm256_set1_epi16(0xff)), _mm256_slli_epi16::<8>(x));
    let even = _mm256_madd_epi16(low, _mm256_srai_epi16::<8>(of_low));
    let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes), _mm256_srai_epi16::<8>(x));
    _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
}

/// Write the sums of the tile's rows for each panel, if this CPU can.
pub(super) fn panels(
    lines: [&[[u8; LINE]]; PANELS],
    form: &Form,
    tile: &Tile,
    out: &mut [[Lanes; TALL]; PANELS],
) -> bool {
    // Asked once: another thread may set the instruction set.
    let isa = isa::current();
    if isa == Isa::Portable {
        return false;
    }
    macro_rules! call {
        ($bits:literal, $($rows:literal, $wide:literal);*) => {
            match (tile.rows, tile.rows * tile.digits, isa.has_vnni()) {
                // SAFETY: `has_vnni` says that this CPU has AVX-512 F, BW and VNNI.
                $(($rows, $wide, true) => unsafe { vnni::<$bits, $rows, $wide>(&lines, form, tile, out) },)*
                // SAFETY: the instruction set in use has AVX2. It has registers for two panels of two rows.
                $(($rows, $wide, false) if $wide <= 2 => unsafe { avx2_pair::<$bits, $rows, $wide>(&lines, form, tile, out) },
                ($rows, $wide, false) => for i in 0..PANELS {
                    // SAFETY: as above.
                    unsafe { avx2::<$bits, $rows, $wide>(&lines[i..=i], form, tile, &mut out[i..=i]) };
                },)*
                _ => unreachable!("the sizes of tiles"),
            }
        };
    }
    match form.bits {
        8 => call!(8, 1, 1; 2, 2; 4, 4; 8, 8; 1, 3; 2, 6),
        4 => call!(4, 1, 1; 2, 2; 4, 4; 8, 8; 1, 3; 2, 6),
        _ => call!(2, 1, 1; 2, 2; 4, 4; 8, 8; 1, 3; 2, 6),
    }
    true
}

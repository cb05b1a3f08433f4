//! Packed codes of E2M1 (0, 0.5, 1, 1.5, 2, 3, 4 and 6, with a sign), where there is more than a plain loop.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::isa::Isa;

/// The codes of the nearest numbers, halves to even, of two in a byte the first in the low bits: whether there is more than a
/// plain loop for it. Signs are those of `signs`. For a kernel; `isa` is [`crate::isa::current`].
#[inline(always)]
pub fn encode(isa: Isa, x: &[f32; 32], signs: &[f32; 32], codes: &mut [u8; 16]) -> bool {
    #[cfg(target_arch = "x86_64")]
    let done = x86::encode(isa, x, signs, codes);
    #[cfg(not(target_arch = "x86_64"))]
    let done = {
        let _ = (isa, x, signs, codes);
        false
    };
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;
    use crate::kernels::codes::{Code, E2M1};

    #[test]
    fn test_codes_of_a_block_are_those_of_each_number() {
        let mut x: Vec<f32> = (0..=u16::MAX).map(|bits| f32::from_bits(u32::from(bits) << 16)).collect();
        x.extend(
            [0.25f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 8.0]
                .into_iter()
                .flat_map(|tie| [tie, -tie, tie.next_up(), -tie.next_up(), tie.next_down(), -tie.next_down()]),
        );
        x.retain(|x| !x.is_nan());
        for x in x.as_chunks::<32>().0 {
            let mut codes = [0; 16];
            if encode(isa::current(), &x.map(f32::abs), x, &mut codes) {
                let want = x.as_chunks::<2>().0.iter().map(|[a, b]| (E2M1::encode(*a) | E2M1::encode(*b) << 4) as u8);
                assert!(codes.into_iter().eq(want), "{x:?}");
            }
        }
    }
}

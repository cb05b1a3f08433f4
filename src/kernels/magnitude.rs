//! The largest magnitudes of short groups.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::isa::Isa;
use crate::real::Element;

/// The largest magnitudes of groups of 16 or 32, where there is more than a plain loop for so many: whether there is. For a
/// kernel; `isa` is [`crate::isa::current`].
#[inline(always)]
pub fn largest_of_groups<T: Element, const SIZE: usize>(isa: Isa, x: &[T], largest: &mut [T::Key]) -> bool {
    #[cfg(target_arch = "x86_64")]
    let done = x86::largest::<T, SIZE>(isa, x, largest);
    #[cfg(not(target_arch = "x86_64"))]
    let done = false;
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;

    fn check<const SIZE: usize>() {
        for at in 0..SIZE {
            let x: Vec<f32> = (0..40 * SIZE)
                .map(|i| {
                    let (group, sign) = (i / SIZE, if i % 2 == 0 { 1.0 } else { -1.0 });
                    sign * if i % SIZE == (at + group * 5) % SIZE { 1e3 + group as f32 } else { i as f32 / 100.0 }
                })
                .collect();
            for n in [16, 32, 40] {
                let mut largest = vec![-1; n];
                if largest_of_groups::<f32, SIZE>(isa::current(), &x[..n * SIZE], &mut largest) {
                    let want = (0..n).map(|group| (1e3 + group as f32).key());
                    assert!(largest.iter().copied().eq(want), "{at} {n}");
                } else {
                    assert!(largest.iter().all(|&largest| largest == -1));
                }
            }
        }
    }

    #[test]
    fn test_each_group_has_its_own_largest_wherever_it_lies_in_it() {
        check::<16>();
        check::<32>();
    }
}

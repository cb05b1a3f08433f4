//! Storage of N:M sparsity: `keep` values of each group, and their places in it.

use super::sparse::{BLOCK, flag_nonzero, gather, scatter};
use super::two_of_four::{are_pairs, pairs_from_slots, pairs_to_slots};
use crate::isa::kernel;
use crate::par::{self, CHUNK};
use crate::real::Element;

/// Flag zeros as well, those of the lowest places, where a group has fewer than `keep` flags. Whether none has more.
#[inline(always)]
fn fill_groups(flags: &mut [u8], keep: usize, group: usize) -> bool {
    let mut fits = true;
    for flags in flags.chunks_exact_mut(group) {
        let count: u8 = flags.iter().sum();
        fits &= count as usize <= keep;
        if (count as usize) < keep {
            let missing = flags.iter_mut().filter(|flag| **flag == 0).take(keep - count as usize);
            missing.for_each(|flag| *flag = 1);
        }
    }
    fits
}

#[inline(always)]
pub(super) fn to_slots<T: Element>(x: &[T], keep: usize, group: usize, values: &mut [T], places: &mut [u8]) -> bool {
    let (at_once, slots) = (BLOCK / group * group, BLOCK / group * keep);
    let (mut kept, mut flags) = ([T::from_bits64(0); BLOCK], [0; BLOCK]);
    let (mut at, mut place_of) = ([0; BLOCK], [0; BLOCK]);
    place_of.iter_mut().enumerate().for_each(|(i, place)| *place = (i % group) as u8);
    for ((x, values), places) in x.chunks(at_once).zip(values.chunks_mut(slots)).zip(places.chunks_mut(slots)) {
        let flags = &mut flags[..x.len()];
        flag_nonzero(x, flags);
        if !fill_groups(flags, keep, group) {
            return false;
        }
        gather(x, flags, &mut kept);
        gather(&place_of, flags, &mut at);
        values.copy_from_slice(&kept[..values.len()]);
        places.copy_from_slice(&at[..places.len()]);
    }
    true
}

kernel! {
    /// Groups to `keep` values each and their places, ascending. Fewer that are not zero: zeros of the lowest places with them.
    /// Whether no group has more.
    fn groups_to_slots<T: Element>(x: &[T], keep: usize, group: usize, values: &mut [T], places: &mut [u8]) -> bool {
        to_slots(x, keep, group, values, places)
    }
}

kernel! {
    /// Whether the places of each group ascend and lie within it.
    fn are_places(places: &[u8], keep: usize, group: usize) -> bool {
        let mut fits = true;
        for places in places.chunks_exact(keep) {
            for pair in places.windows(2) {
                fits &= pair[1] > pair[0];
            }
            fits &= (places[keep - 1] as usize) < group;
        }
        fits
    }
}

#[inline(always)]
pub(super) fn from_slots<T: Element>(values: &[T], places: &[u8], keep: usize, group: usize, out: &mut [T]) {
    let (at_once, slots) = (BLOCK / group * group, BLOCK / group * keep);
    let (mut next, mut flags) = ([T::from_bits64(0); BLOCK], [0; BLOCK]);
    for ((out, values), places) in out.chunks_mut(at_once).zip(values.chunks(slots)).zip(places.chunks(slots)) {
        flags.fill(0);
        for (i, places) in places.chunks_exact(keep).enumerate() {
            for &place in places {
                flags[(i * group + place as usize) & (BLOCK - 1)] = 1;
            }
        }
        next[..values.len()].copy_from_slice(values);
        scatter(&next, &flags[..out.len()], out);
    }
}

kernel! {
    fn groups_from_slots<T: Element>(values: &[T], places: &[u8], keep: usize, group: usize, out: &mut [T]) {
        from_slots(values, places, keep, group, out);
    }
}

/// Groups of N:M sparsity to values and places (a byte each). Whether no group has more than `keep` that are not zero.
pub fn compress_groups<T: Element>(
    x: &[T],
    (keep, group): (usize, usize),
    values: &mut [T],
    places: &mut [u8],
    threads: usize,
) -> bool {
    let at_once = CHUNK / group;
    let items = x.chunks(at_once * group).zip(values.chunks_mut(at_once * keep)).zip(places.chunks_mut(at_once * keep));
    let fits = par::map(threads, items, |((x, values), places)| match (keep, group) {
        (2, 4) => pairs_to_slots(x, values, places),
        _ => groups_to_slots(x, keep, group, values, places),
    });
    fits.into_iter().all(|fits| fits)
}

/// The groups back. Whether all places ascend within their group: nothing is written where they do not.
pub fn decompress_groups<T: Element>(
    values: &[T],
    places: &[u8],
    (keep, group): (usize, usize),
    out: &mut [T],
    threads: usize,
) -> bool {
    let at_once = CHUNK / group;
    let fits = par::map(threads, places.chunks(at_once * keep), |places| match (keep, group) {
        (2, 4) => are_pairs(places),
        _ => are_places(places, keep, group),
    });
    if !fits.into_iter().all(|fits| fits) {
        return false;
    }
    let items = out.chunks_mut(at_once * group).zip(values.chunks(at_once * keep)).zip(places.chunks(at_once * keep));
    par::for_each(threads, items, |((out, values), places)| match (keep, group) {
        (2, 4) => pairs_from_slots(values, places, out),
        _ => groups_from_slots(values, places, keep, group, out),
    });
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::prune::groups::LARGEST;

    #[test]
    fn test_groups_come_back_for_every_group() {
        for (group, n) in (2..=LARGEST).map(|group| (group, 9)).chain([(4, 77)]) {
            for keep in 1..group {
                let mut x = (0..group * n)
                    .map(|i| if (i * 7 + i / 5) % 2 == 0 { i as f32 - 3.5 } else { 0.0 })
                    .collect::<Vec<_>>();
                for g in x.chunks_mut(group) {
                    let extra = g.iter().filter(|v| **v != 0.0).count().saturating_sub(keep);
                    g.iter_mut().filter(|v| **v != 0.0).take(extra).for_each(|v| *v = 0.0);
                }
                let (mut values, mut places) = (vec![9.0; keep * n], vec![99; keep * n]);
                assert!(compress_groups(&x, (keep, group), &mut values, &mut places, 2));
                let mut back = vec![9.0; x.len()];
                assert!(decompress_groups(&values, &places, (keep, group), &mut back, 2));
                assert_eq!(back, x);
                x[..group].fill(1.0);
                assert!(!compress_groups(&x, (keep, group), &mut values, &mut places, 2));
                places[0] = group as u8;
                assert!(!decompress_groups(&values, &places, (keep, group), &mut back, 2));
            }
        }
    }
}

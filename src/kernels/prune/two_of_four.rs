//! Storage of 2:4 sparsity, the form that most hardware has: as in [`super::slots`], for many groups at a time.
//!
//! Groups are taken apart by place, so that which two of four stand in the slots is a choice between whole lanes (moved one by
//! one as for other groups, they took three times as long).

use super::slots::{from_slots, to_slots};
use super::sparse::{flag_nonzero, is_zero};
use crate::isa::kernel;
use crate::real::{Element, Key};

/// Groups at a time.
const L: usize = 32;

/// The place of a slot as a key.
#[inline(always)]
fn place<K: Key>(n: u8) -> K {
    let (one, two) = (K::ONE, K::ONE + K::ONE);
    [K::ZERO, one, two, one + two][n as usize]
}

/// `L` groups to slots. Whether none has more than two weights that are not zero.
#[inline(always)]
fn lanes_to_slots<T: Element>(x: &[T], values: &mut [T], places: &mut [u8]) -> bool {
    let (x, values, places) = (&x[..4 * L], &mut values[..2 * L], &mut places[..2 * L]);
    let mut flags = [0; 4 * L];
    flag_nonzero(x, &mut flags);
    let mut more = 0;
    for (flags, places) in flags.as_chunks::<4>().0.iter().zip(places.as_chunks_mut::<2>().0) {
        let word = u32::from_le_bytes(*flags);
        let (a, b, c, d) = (word & 1, word >> 8 & 1, word >> 16 & 1, word >> 24);
        // Where there are fewer than two, zeros of the lowest places stand with them.
        let second = 1 + (c | d) + d;
        let first = (1 - a) * (b * (c | d) + 2 * (1 - b) * c * d);
        more |= u32::from(a + b + c + d > 2);
        *places = ((first | second << 8) as u16).to_le_bytes();
    }
    let mut at = [[T::from_bits64(0); L]; 4];
    for i in 0..L {
        for p in 0..4 {
            at[p][i] = x[4 * i + p];
        }
    }
    for i in 0..L {
        let [a, b, c, d] = [at[0][i], at[1][i], at[2][i], at[3][i]];
        let (is_a, is_b, is_c, is_d) = (!is_zero(a), !is_zero(b), !is_zero(c), !is_zero(d));
        let behind = is_c | is_d;
        let from_c = if is_c & is_d { c } else { a };
        let from_b = if is_b & behind { b } else { from_c };
        values[2 * i] = if is_a { a } else { from_b };
        let to_c = if is_c { c } else { b };
        values[2 * i + 1] = if is_d { d } else { to_c };
    }
    more == 0
}

kernel! {
    /// Groups to two values each and their places, ascending. Whether no group has more.
    pub(super) fn pairs_to_slots<T: Element>(x: &[T], values: &mut [T], places: &mut [u8]) -> bool {
        let mut fits = true;
        let whole = x.len() / (4 * L) * (4 * L);
        for ((x, values), places) in
            x[..whole].chunks_exact(4 * L).zip(values.chunks_exact_mut(2 * L)).zip(places.chunks_exact_mut(2 * L))
        {
            fits &= lanes_to_slots(x, values, places);
        }
        fits & to_slots(&x[whole..], 2, 4, &mut values[whole / 2..], &mut places[whole / 2..])
    }
}

kernel! {
    /// Whether the places of each group ascend and lie within it.
    pub(super) fn are_pairs(places: &[u8]) -> bool {
        let mut wrong = 0;
        for pair in places.as_chunks::<2>().0 {
            let word = u16::from_le_bytes(*pair);
            let (first, second) = (word & 0xff, word >> 8);
            wrong |= u16::from(first >= second) | u16::from(second > 3);
        }
        wrong == 0
    }
}

/// `L` groups from slots.
#[inline(always)]
fn lanes_from_slots<T: Element>(values: &[T], places: &[u8], out: &mut [T]) {
    let (values, places, out) = (&values[..2 * L], &places[..2 * L], &mut out[..4 * L]);
    let nothing = T::from_bits64(0);
    let (mut value, mut at) = ([[nothing; L]; 2], [[T::Key::ZERO; L]; 2]);
    // A loop for each slot: both in one were unrolled before they were vectorised.
    for s in 0..2 {
        for i in 0..L {
            value[s][i] = values[2 * i + s];
        }
        for i in 0..L {
            at[s][i] = T::Key::from_u8(places[2 * i + s]);
        }
    }
    for i in 0..L {
        for p in 0..4 {
            let second = if at[1][i] == place(p) { value[1][i] } else { nothing };
            out[4 * i + p as usize] = if at[0][i] == place(p) { value[0][i] } else { second };
        }
    }
}

kernel! {
    /// The groups back from two values each and their places.
    pub(super) fn pairs_from_slots<T: Element>(values: &[T], places: &[u8], out: &mut [T]) {
        let whole = out.len() / (4 * L) * (4 * L);
        for ((out, values), places) in
            out[..whole].chunks_exact_mut(4 * L).zip(values.chunks_exact(2 * L)).zip(places.chunks_exact(2 * L))
        {
            lanes_from_slots(values, places, out);
        }
        from_slots(&values[whole / 2..], &places[whole / 2..], 2, 4, &mut out[whole..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::Bf16;

    /// Every pattern of groups of at most two weights, many times.
    fn check<T: Element + PartialEq + std::fmt::Debug>() {
        let masks = (0..16u32).filter(|mask| mask.count_ones() <= 2).cycle().take(5 * L + 7);
        let x: Vec<T> = masks
            .enumerate()
            .flat_map(|(i, mask)| {
                (0..4).map(move |p| T::store_f64(if mask >> p & 1 == 1 { (i * 4 + p) as f64 - 300.5 } else { 0.0 }))
            })
            .collect();
        let (slots, nothing) = (x.len() / 2, T::from_bits64(0));
        let (mut values, mut places) = (vec![nothing; slots], vec![9; slots]);
        let (mut plain_values, mut plain_places) = (vec![nothing; slots], vec![9; slots]);
        assert!(pairs_to_slots(&x, &mut values, &mut places));
        assert!(to_slots(&x, 2, 4, &mut plain_values, &mut plain_places));
        assert_eq!((&values, &places), (&plain_values, &plain_places));
        let mut back = vec![T::store_f64(9.0); x.len()];
        pairs_from_slots(&values, &places, &mut back);
        assert_eq!(back, x);
        for group in [0, L - 1, 5 * L, 5 * L + 6] {
            let mut x = x.clone();
            x[group * 4..][..3].fill(T::store_f64(1.0));
            assert!(!pairs_to_slots(&x, &mut values, &mut places), "{group}");
        }
    }

    #[test]
    fn test_lanes_of_groups_are_stored_as_groups_one_by_one() {
        check::<f32>();
        check::<f64>();
        check::<Bf16>();
    }
}

//! Storage of what was pruned: the weights that are not zero, and where they stood.
//!
//! Rows are worked on by themselves. Values are moved one by one, without a branch: a mask changes from weight to weight, so
//! that each branch would be guessed wrong half of the time. (-0 counts as zero and comes back as 0.)

use super::groups::LARGEST;
use crate::isa::kernel;
use crate::kernels::pack::{W1, pack_chunk, packed_len, unpack_chunk};
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// Weights that are moved together through a buffer; whole bytes of a mask.
const BLOCK: usize = 256;

/// Where the weights of a row stand.
pub enum Places<'a> {
    /// A bit for each weight, 1 for what is stored; rows begin on a byte.
    Bits(&'a mut [u8]),
    /// The column of each value.
    Columns(&'a mut [i32]),
}

#[inline(always)]
fn is_zero<T: Element>(x: T) -> bool {
    x.magnitude() == T::Key::ZERO
}

kernel! {
    /// The values of a row, and a bit for each weight. Whether there were as many values as `values` has room for.
    fn row_to_bits<T: Element>(x: &[T], values: &mut [T], bits: &mut [u8]) -> bool {
        let mut rest = values;
        for (x, bits) in x.chunks(BLOCK).zip(bits.chunks_mut(BLOCK / 8)) {
            let (mut kept, mut flags) = ([T::from_bits64(0); BLOCK + 1], [0; BLOCK]);
            let mut n = 0;
            for (&x, flag) in x.iter().zip(&mut flags) {
                kept[n & (BLOCK - 1)] = x;
                *flag = !is_zero(x) as u8;
                n += *flag as usize;
            }
            pack_chunk::<W1>(&flags[..x.len()], bits);
            let Some((values, after)) = rest.split_at_mut_checked(n) else { return false };
            values.copy_from_slice(&kept[..n]);
            rest = after;
        }
        rest.is_empty()
    }
}

kernel! {
    /// The values of a row, and the column of each.
    fn row_to_columns<T: Element>(x: &[T], values: &mut [T], columns: &mut [i32]) -> bool {
        let mut n = 0;
        for (column, &x) in x.iter().enumerate() {
            if !is_zero(x) {
                let (Some(value), Some(place)) = (values.get_mut(n), columns.get_mut(n)) else { return false };
                (*value, *place) = (x, column as i32);
                n += 1;
            }
        }
        n == values.len()
    }
}

kernel! {
    /// A row from its values and bits; as many bits are set as there are values.
    fn row_from_bits<T: Element>(values: &[T], bits: &[u8], out: &mut [T]) {
        let mut rest = values;
        for (out, bits) in out.chunks_mut(BLOCK).zip(bits.chunks(BLOCK / 8)) {
            let (mut next, mut flags) = ([T::from_bits64(0); BLOCK], [0; BLOCK]);
            unpack_chunk::<W1>(bits, &mut flags[..out.len()], 0);
            let few = rest.len().min(BLOCK);
            next[..few].copy_from_slice(&rest[..few]);
            let mut n = 0;
            for (out, &flag) in out.iter_mut().zip(&flags) {
                let value = next[n & (BLOCK - 1)];
                *out = if flag == 1 { value } else { T::from_bits64(0) };
                n += flag as usize;
            }
            rest = &rest[n..];
        }
    }
}

kernel! {
    fn ones(bits: &[u8]) -> u64 {
        let mut n = 0u64;
        for part in bits.chunks(128) {
            n += part.iter().map(|byte| byte.count_ones()).sum::<u32>() as u64;
        }
        n
    }
}

/// Cut what belongs to rows: row `i` has the elements from `offsets[i]` to `offsets[i + 1]`.
fn cut<'a, T>(mut all: &'a mut [T], offsets: &[u64]) -> Vec<&'a mut [T]> {
    let mut rows = Vec::with_capacity(offsets.len() - 1);
    for pair in offsets.windows(2) {
        let (row, rest) = std::mem::take(&mut all).split_at_mut((pair[1] - pair[0]) as usize);
        rows.push(row);
        all = rest;
    }
    rows
}

/// Rows of `cols` weights to values (the weights that are not zero) and places. `offsets` (ascending, from 0 to the number of
/// values) say where the values of each row begin. The first row that has another number of values, if any.
pub fn compress<T: Element>(
    x: &[T],
    cols: usize,
    offsets: &[u64],
    values: &mut [T],
    places: Places<'_>,
    threads: usize,
) -> Option<usize> {
    if cols == 0 {
        return None;
    }
    let rows = x.chunks_exact(cols).zip(cut(values, offsets));
    let fits = match places {
        Places::Bits(bits) => {
            let rows: Vec<_> = rows.zip(bits.chunks_exact_mut(packed_len(cols, 1))).collect();
            in_batches(threads, cols, rows, |((x, values), bits)| row_to_bits(x, values, bits))
        }
        Places::Columns(columns) => {
            let rows: Vec<_> = rows.zip(cut(columns, offsets)).collect();
            in_batches(threads, cols, rows, |((x, values), columns)| row_to_columns(x, values, columns))
        }
    };
    fits.into_iter().position(|fits| !fits)
}

/// What `f` says of each row, many short rows at a time.
fn in_batches<R: Send>(threads: usize, cols: usize, rows: Vec<R>, f: impl Fn(R) -> bool + Sync) -> Vec<bool> {
    let at_once = (CHUNK / cols).max(1);
    let mut rows = rows.into_iter();
    let batches: Vec<Vec<R>> =
        (0..rows.len().div_ceil(at_once)).map(|_| rows.by_ref().take(at_once).collect()).collect();
    let said = par::map(threads, batches.into_iter(), |batch| batch.into_iter().map(&f).collect::<Vec<_>>());
    said.into_iter().flatten().collect()
}

/// The rows back from values and bits. The first row whose bits are not as many as its values: nothing is written then.
pub fn decompress<T: Element>(
    values: &[T],
    offsets: &[u64],
    bits: &[u8],
    cols: usize,
    out: &mut [T],
    threads: usize,
) -> Option<usize> {
    if cols == 0 {
        return None;
    }
    let row_bytes = packed_len(cols, 1);
    let spans: Vec<_> = offsets.windows(2).zip(bits.chunks_exact(row_bytes)).collect();
    let fits = in_batches(threads, row_bytes, spans.clone(), |(span, bits)| ones(bits) == span[1] - span[0]);
    if let Some(row) = fits.into_iter().position(|fits| !fits) {
        return Some(row);
    }
    let rows: Vec<_> = spans.into_iter().zip(out.chunks_exact_mut(cols)).collect();
    in_batches(threads, cols, rows, |((span, bits), out)| {
        row_from_bits(&values[span[0] as usize..span[1] as usize], bits, out);
        true
    });
    None
}

kernel! {
    /// Groups to `keep` values each and their places, ascending. Fewer that are not zero: zeros of the lowest places with them.
    /// Whether no group has more.
    fn groups_to_slots<T: Element>(x: &[T], keep: usize, group: usize, values: &mut [T], places: &mut [u8]) -> bool {
        let mut fits = true;
        for ((x, values), places) in
            x.chunks_exact(group).zip(values.chunks_exact_mut(keep)).zip(places.chunks_exact_mut(keep))
        {
            let mut zeros = keep;
            for &x in x {
                zeros = zeros.wrapping_sub(!is_zero(x) as usize);
            }
            fits &= zeros <= keep;
            let (mut kept, mut at) = ([T::from_bits64(0); LARGEST], [0; LARGEST]);
            let mut n = 0;
            for (place, &x) in x.iter().enumerate() {
                let zero = is_zero(x) as usize;
                let taken = 1 - (zero & (zeros == 0) as usize);
                (kept[n & (LARGEST - 1)], at[n & (LARGEST - 1)]) = (x, place as u8);
                zeros = zeros.wrapping_sub(zero & taken);
                n += taken;
            }
            values.copy_from_slice(&kept[..keep]);
            places.copy_from_slice(&at[..keep]);
        }
        fits
    }
}

kernel! {
    /// Whether the places of each group ascend and lie within it.
    fn are_places(places: &[u8], keep: usize, group: usize) -> bool {
        let mut fits = true;
        for places in places.chunks_exact(keep) {
            let mut least = 0;
            for &place in places {
                fits &= place >= least;
                least = place.saturating_add(1);
            }
            fits &= least as usize <= group;
        }
        fits
    }
}

kernel! {
    fn groups_from_slots<T: Element>(values: &[T], places: &[u8], keep: usize, group: usize, out: &mut [T]) {
        for ((out, values), places) in
            out.chunks_exact_mut(group).zip(values.chunks_exact(keep)).zip(places.chunks_exact(keep))
        {
            let mut whole = [T::from_bits64(0); LARGEST];
            for (&value, &place) in values.iter().zip(places) {
                whole[place as usize & (LARGEST - 1)] = value;
            }
            out.copy_from_slice(&whole[..group]);
        }
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
    par::map(threads, items, |((x, values), places)| match (keep, group) {
        (2, 4) => groups_to_slots(x, 2, 4, values, places),
        _ => groups_to_slots(x, keep, group, values, places),
    })
    .into_iter()
    .all(|fits| fits)
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
    let fits = par::map(threads, places.chunks(at_once * keep), |places| are_places(places, keep, group));
    if !fits.into_iter().all(|fits| fits) {
        return false;
    }
    let items = out.chunks_mut(at_once * group).zip(values.chunks(at_once * keep)).zip(places.chunks(at_once * keep));
    par::for_each(threads, items, |((out, values), places)| groups_from_slots(values, places, keep, group, out));
    true
}

kernel! {
    fn masked<T: Element>(x: &[T], mask: &[u8], out: &mut [T]) {
        for ((out, &x), &stays) in out.iter_mut().zip(x).zip(mask) {
            *out = if stays != 0 { x } else { T::from_bits64(0) };
        }
    }
}
kernel! {
    fn masked_in_place<T: Element>(x: &mut [T], mask: &[u8]) {
        for (x, &stays) in x.iter_mut().zip(mask) {
            *x = if stays != 0 { *x } else { T::from_bits64(0) };
        }
    }
}

/// Weights where the byte of the mask is not 0, else 0; in place where there is no `x`.
pub fn apply_mask<T: Element>(x: Option<&[T]>, mask: &[u8], out: &mut [T], threads: usize) {
    let items = out.chunks_mut(CHUNK).zip(mask.chunks(CHUNK)).enumerate();
    par::for_each(threads, items, |(i, (out, mask))| match x {
        Some(x) => masked(&x[i * CHUNK..][..out.len()], mask, out),
        None => masked_in_place(out, mask),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(n: usize, every: usize) -> Vec<f32> {
        (0..n).map(|i| if (i * 7 + i / 5) % every == 0 { i as f32 - 3.5 } else { 0.0 }).collect()
    }

    #[test]
    fn test_decompress_undoes_compress_for_every_length_and_density() {
        for cols in (1..40).chain([255, 256, 257, 1000]) {
            for every in [1, 2, 3, 50] {
                let x = sparse(5 * cols, every);
                let counts = x.chunks(cols).map(|row| row.iter().filter(|v| **v != 0.0).count() as u64);
                let mut offsets = vec![0];
                counts.for_each(|count| offsets.push(offsets[offsets.len() - 1] + count));
                let mut values = vec![9.0; offsets[5] as usize];
                let mut bits = vec![0xff; 5 * packed_len(cols, 1)];
                assert_eq!(compress(&x, cols, &offsets, &mut values, Places::Bits(&mut bits), 2), None);
                assert_eq!(values, x.iter().copied().filter(|v| *v != 0.0).collect::<Vec<_>>());
                let mut back = vec![9.0; x.len()];
                assert_eq!(decompress(&values, &offsets, &bits, cols, &mut back, 2), None);
                assert_eq!(back, x);
                let mut columns = vec![0; values.len()];
                assert_eq!(compress(&x, cols, &offsets, &mut values, Places::Columns(&mut columns), 2), None);
                for (row, pair) in offsets.windows(2).enumerate() {
                    for i in pair[0] as usize..pair[1] as usize {
                        assert_eq!(x[row * cols + columns[i] as usize], values[i]);
                    }
                }
                bits[0] ^= 1;
                assert_eq!(decompress(&values, &offsets, &bits, cols, &mut back, 2), Some(0));
            }
        }
    }

    #[test]
    fn test_groups_come_back_for_every_group() {
        for group in 2..=LARGEST {
            for keep in 1..group {
                let mut x = sparse(group * 9, 2);
                for g in x.chunks_mut(group) {
                    let extra = g.iter().filter(|v| **v != 0.0).count().saturating_sub(keep);
                    g.iter_mut().filter(|v| **v != 0.0).take(extra).for_each(|v| *v = 0.0);
                }
                let (mut values, mut places) = (vec![9.0; keep * 9], vec![99; keep * 9]);
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

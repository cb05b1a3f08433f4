//! Storage of what was pruned: the weights that are not zero, and where they stood.
//!
//! Rows are worked on by themselves. Values are moved one by one, without a branch: a mask changes from weight to weight, so
//! that each branch would be guessed wrong half of the time. (-0 counts as zero and comes back as 0.)

#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::isa::kernel;
use crate::kernels::pack::{W1, pack_chunk, packed_len, unpack_chunk};
use crate::kernels::reduce::{Counts, View, reduce_axis};
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// Weights that are moved together through a buffer; whole bytes of a mask.
pub(super) const BLOCK: usize = 256;

/// Where the weights of a row stand.
pub enum Places<'a> {
    /// A bit for each weight, 1 for what is stored; rows begin on a byte.
    Bits(&'a mut [u8]),
    /// The column of each value.
    Columns(&'a mut [i32]),
}

#[inline(always)]
pub(super) fn is_zero<T: Element>(x: T) -> bool {
    x.magnitude() == T::Key::ZERO
}

/// Move what is flagged (1, else 0) to the front of `kept`; how many that is.
///
/// Flags are made in a loop of their own, which vectorises: made and used in one loop, they took five times as long.
#[inline(always)]
pub(super) fn gather<T: Copy>(x: &[T], flags: &[u8], kept: &mut [T; BLOCK]) -> usize {
    let mut n = 0;
    for (&x, &flag) in x.iter().zip(flags) {
        kept[n & (BLOCK - 1)] = x;
        n += flag as usize;
    }
    n
}

/// Undo [`gather`]: the next of `values` where there is a flag, else 0.
#[inline(always)]
pub(super) fn scatter<T: Element>(values: &[T; BLOCK], flags: &[u8], out: &mut [T]) -> usize {
    let mut n = 0;
    for (out, &flag) in out.iter_mut().zip(flags) {
        let value = values[n & (BLOCK - 1)].to_bits64();
        *out = T::from_bits64(value & (flag as u64).wrapping_neg());
        n += flag as usize;
    }
    n
}

#[inline(always)]
pub(super) fn flag_nonzero<T: Element>(x: &[T], flags: &mut [u8]) {
    for (flag, &x) in flags.iter_mut().zip(x) {
        *flag = !is_zero(x) as u8;
    }
}

kernel! {
    /// The values of a row, and a bit for each weight. Whether there were as many values as `values` has room for.
    fn row_to_bits<T: Element>(x: &[T], values: &mut [T], bits: &mut [u8]) -> bool {
        let (mut kept, mut flags) = ([T::from_bits64(0); BLOCK], [0; BLOCK]);
        let mut rest = values;
        for (x, bits) in x.chunks(BLOCK).zip(bits.chunks_mut(BLOCK / 8)) {
            let flags = &mut flags[..x.len()];
            flag_nonzero(x, flags);
            pack_chunk::<W1>(flags, bits);
            let n = gather(x, flags, &mut kept);
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
        let (mut next, mut flags) = ([T::from_bits64(0); BLOCK], [0; BLOCK]);
        let mut rest = values;
        for (out, bits) in out.chunks_mut(BLOCK).zip(bits.chunks(BLOCK / 8)) {
            let flags = &mut flags[..out.len()];
            unpack_chunk::<W1>(bits, flags, 0);
            let few = rest.len().min(BLOCK);
            next[..few].copy_from_slice(&rest[..few]);
            rest = &rest[scatter(&next, flags, out)..];
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

/// The values of a row, and a bit for each weight, by the fastest means.
fn to_bits<T: Element>(x: &[T], values: &mut [T], bits: &mut [u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = x86::to_bits(x, values, bits);
    #[cfg(not(target_arch = "x86_64"))]
    let found = Some((0, 0));
    found.is_some_and(|(done, n)| row_to_bits(&x[done..], &mut values[n..], &mut bits[done / 8..]))
}

/// Undo [`to_bits`]; as many bits are set as there are values.
fn from_bits<T: Element>(values: &[T], bits: &[u8], out: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    let (done, n) = x86::from_bits(values, bits, out);
    #[cfg(not(target_arch = "x86_64"))]
    let (done, n) = (0, 0);
    row_from_bits(&values[n..], &bits[done / 8..], &mut out[done..]);
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

/// Where the values of each of `rows` rows begin, and where the last ends.
pub fn row_offsets<T: Element>(x: &[T], rows: usize, cols: usize, threads: usize) -> Vec<u64> {
    let counts = reduce_axis::<T, Counts>(x, View { outer: rows, n: cols, inner: 1 }, threads);
    let mut end = 0;
    let ends = counts.into_iter().map(|[count, _]| {
        end += count;
        end
    });
    std::iter::once(0).chain(ends).collect()
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
            in_batches(threads, cols, rows, |((x, values), bits)| to_bits(x, values, bits))
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
        from_bits(&values[span[0] as usize..span[1] as usize], bits, out);
        true
    });
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{self, Isa};
    use crate::real::{Bf16, F16};

    fn sparse<T: Element>(n: usize, every: usize) -> Vec<T> {
        (0..n).map(|i| T::store_f64(if (i * 7 + i / 5) % every == 0 { i as f64 - 3.5 } else { 0.0 })).collect()
    }

    /// On every instruction set.
    fn check<T: Element + PartialEq + std::fmt::Debug>() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            isa::set(isa);
            check_one::<T>();
        }
    }

    #[test]
    fn test_decompress_undoes_compress_for_every_length_density_and_dtype() {
        check::<f32>();
        check::<f64>();
        check::<Bf16>();
        check::<F16>();
    }

    fn check_one<T: Element + PartialEq + std::fmt::Debug>() {
        let nine = T::store_f64(9.0);
        for cols in (1..40).chain([255, 256, 257, 1000]) {
            for every in [1, 2, 3, 50] {
                let x = sparse::<T>(5 * cols, every);
                let counts = x.chunks(cols).map(|row| row.iter().filter(|v| v.to_f64() != 0.0).count() as u64);
                let mut offsets = vec![0];
                counts.for_each(|count| offsets.push(offsets[offsets.len() - 1] + count));
                let mut values = vec![nine; offsets[5] as usize];
                let mut bits = vec![0xff; 5 * packed_len(cols, 1)];
                assert_eq!(compress(&x, cols, &offsets, &mut values, Places::Bits(&mut bits), 2), None);
                assert_eq!(values, x.iter().copied().filter(|v| v.to_f64() != 0.0).collect::<Vec<_>>());
                let mut back = vec![nine; x.len()];
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
}

//! Pruning of single weights: which stay, and what is written for those that do not.
//!
//! A [`Score`] makes an integer key of each weight; the lowest keys go, among equal keys those of the lowest index. How many
//! go becomes a [`Threshold`] (by radix selection over whole arrays or pieces that come one by one, by bisection over rows) or a
//! place in a group of N:M, and an [`Output`] says what is written: the weights with zeros, or a mask.

mod block;
mod groups;
mod mask;
mod rows;
mod score;
mod slots;
mod sparse;
mod sparsegpt;
mod stream;
mod two_of_four;
mod whole;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use groups::{Groups, groups};
pub use mask::apply_mask;
pub use rows::{LONG_ROW, rows};
pub use score::{Computed, Double, Magnitude, Scaled, Score};
pub use slots::{compress_groups, decompress_groups};
pub use sparse::{Places, compress, decompress, row_offsets};
pub use sparsegpt::{Share, sparsegpt};
pub use stream::{Digit, MAX_WIDTH, count, cut};
pub use whole::{keep_above, magnitude};

use crate::real::Element;

/// What is written for a weight.
pub trait Output<T: Element>: Copy + Send + Sync + 'static {
    /// What it is written as.
    type Item: Copy + Send + Sync;
    /// The item of a weight that stays, or goes.
    fn item(x: T, stays: bool) -> Self::Item;
    /// The item again of a weight that stays, or that of one that goes.
    fn masked(item: Self::Item, stays: bool) -> Self::Item;
    /// The weights, where they are written in place.
    fn weights(items: &[Self::Item]) -> &[T];
}

/// The weights; 0 for those that go.
#[derive(Debug, Clone, Copy)]
pub struct Weights;
/// 1 for those that stay, 0 for those that go.
#[derive(Debug, Clone, Copy)]
pub struct Mask;

impl<T: Element> Output<T> for Weights {
    type Item = T;
    #[inline(always)]
    fn item(x: T, stays: bool) -> T {
        if stays { x } else { T::from_bits64(0) }
    }
    #[inline(always)]
    fn masked(x: T, stays: bool) -> T {
        Self::item(x, stays)
    }
    #[inline(always)]
    fn weights(items: &[T]) -> &[T] {
        items
    }
}

impl<T: Element> Output<T> for Mask {
    type Item = u8;
    #[inline(always)]
    fn item(_: T, stays: bool) -> u8 {
        stays as u8
    }
    #[inline(always)]
    fn masked(_: u8, stays: bool) -> u8 {
        stays as u8
    }
    fn weights(_: &[u8]) -> &[T] {
        unreachable!("a mask is written beside its weights")
    }
}

/// Weights and the memory that is written: apart, or (no `x`) one and the same.
pub struct Job<'a, T: Element, O: Output<T>> {
    /// The weights.
    pub x: Option<&'a [T]>,
    /// What is written; as many.
    pub out: &'a mut [O::Item],
}

impl<'a, T: Element, O: Output<T>> Job<'a, T, O> {
    /// The weights, wherever they lie.
    #[inline(always)]
    fn source(&self) -> &[T] {
        self.x.unwrap_or_else(|| O::weights(self.out))
    }

    /// Pieces of `n` elements.
    pub fn pieces(self, n: usize) -> impl ExactSizeIterator<Item = Self> + Send + use<'a, T, O> {
        let x = self.x;
        self.out.chunks_mut(n).enumerate().map(move |(i, out)| Job { x: x.map(|x| &x[i * n..][..out.len()]), out })
    }

    /// The same, for less long.
    fn reborrow(&mut self) -> Job<'_, T, O> {
        Job { x: self.x, out: self.out }
    }
}

/// The weights that `out` is written for: those of `given` from `start` on, or (in place) what `out` holds, copied.
#[inline(always)]
fn block_of<'a, T: Element, O: Output<T>>(
    given: Option<&'a [T]>,
    start: usize,
    out: &[O::Item],
    copied: &'a mut [T],
) -> &'a [T] {
    let n = out.len();
    if let Some(x) = given {
        return &x[start..][..n];
    }
    copied[..n].copy_from_slice(O::weights(out));
    &copied[..n]
}

/// Which keys of one array or row go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Threshold<K> {
    /// Keys below it go; those above stay.
    key: K,
    /// How many of the keys that are equal to it go, lowest index first.
    ties: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{self, Isa};
    use crate::par::CHUNK;
    use crate::real::{Bf16, F16};

    /// Numbers with many ties; every 97th is 0.
    fn sample<T: Element>(n: usize, levels: u32) -> Vec<T> {
        let mut state = 0x2545_f491_u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        (0..n)
            .map(|i| T::store_f64(if i % 97 == 0 { 0.0 } else { (next() % levels) as f64 - levels as f64 / 2.5 }))
            .collect()
    }

    /// By sorting: which stay when the `prune` lowest of `keys` go.
    fn kept<K: Copy + Ord>(keys: &[K], prune: usize) -> Vec<u8> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&i| keys[i]);
        let mut kept = vec![1; keys.len()];
        order[..prune].iter().for_each(|&i| kept[i] = 0);
        kept
    }

    fn mask<T: Element>(x: &[T], f: impl FnOnce(Job<'_, T, Mask>) -> bool) -> Vec<u8> {
        let mut out = vec![9; x.len()];
        assert!(!f(Job { x: Some(x), out: &mut out }));
        out
    }

    fn check_all<T: Element>(n: usize) {
        for levels in [3, 1000, u32::MAX] {
            let x = sample::<T>(n, levels);
            let keys: Vec<_> = x.iter().map(|v| v.magnitude()).collect();
            for prune in [0, 1, n / 97, n / 3, n / 2, n.saturating_sub(1), n].into_iter().filter(|&k| k <= n) {
                let want = kept(&keys, prune);
                assert!(mask(&x, |job| magnitude(vec![job], prune as u64, 3)) == want, "{n} {levels} {prune}");
                assert!(mask(&x, |job| rows(job, n.max(1), prune, Magnitude, 2)) == want, "row {n} {levels} {prune}");
                let mut in_place = x.clone();
                assert!(!magnitude(vec![Job::<T, Weights> { x: None, out: &mut in_place }], prune as u64, 2));
                for ((got, x), &stays) in in_place.iter().zip(&x).zip(&want) {
                    assert_eq!(got.to_bits64(), if stays == 1 { x.to_bits64() } else { 0 });
                }
            }
        }
    }

    #[test]
    fn test_b12_magnitude_prunes_exactly_k_the_lowest_index_first_for_every_dtype_and_length() {
        for n in (0..70).chain([1023, 1025, CHUNK - 1, 2 * CHUNK + 77]) {
            check_all::<f32>(n);
        }
        for n in [0, 1, 33, 1025, CHUNK + 5] {
            check_all::<f64>(n);
            check_all::<F16>(n);
            check_all::<Bf16>(n);
        }
    }

    #[test]
    fn test_several_arrays_are_pruned_as_one() {
        let x = sample::<f32>(3 * CHUNK, 50);
        let keys: Vec<_> = x.iter().map(|v| v.magnitude()).collect();
        for prune in [1, CHUNK, 2 * CHUNK] {
            let mut out = vec![9; x.len()];
            let (a, b) = x.split_at(CHUNK / 3);
            let (c, d) = out.split_at_mut(CHUNK / 3);
            let jobs = vec![Job::<f32, Mask> { x: Some(a), out: c }, Job { x: Some(b), out: d }];
            assert!(!magnitude(jobs, prune as u64, 2));
            assert_eq!(out, kept(&keys, prune));
        }
    }

    #[test]
    fn test_groups_keep_the_largest_of_each_group_along_any_axis_for_every_group() {
        for group in 2..=32 {
            for keep in [1, group / 2, group - 1] {
                for (outer, inner) in [(1, 1), (37, 1), (1, 3), (3, 16), (2, 40)] {
                    let plan = Groups { keep, group, n: 3 * group, inner };
                    let x = sample::<f32>(outer * plan.n * inner, 7);
                    let got = mask(&x, |job| groups(job, plan, Magnitude, 2));
                    for o in 0..outer {
                        for g in 0..3 {
                            for c in 0..inner {
                                let at = |p: usize| (o * plan.n + g * group + p) * inner + c;
                                let keys: Vec<_> = (0..group).map(|p| x[at(p)].magnitude()).collect();
                                let got: Vec<u8> = (0..group).map(|p| got[at(p)]).collect();
                                assert!(got == kept(&keys, group - keep), "{keep} of {group}, {outer} {inner}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn test_scaled_rows_and_groups_rank_by_the_product() {
        let (x, norms) = (sample::<Bf16>(60 * 50, 9), sample::<f32>(60, 9));
        let norms: Vec<f32> = norms.iter().map(|v| v.abs()).collect();
        let product = |(i, v): (usize, &Bf16)| (v.load().abs() * norms[i % 60]).magnitude();
        let keys: Vec<i32> = x.iter().enumerate().map(product).collect();
        let got = mask(&x, |job| rows(job, 60, 31, Scaled(&norms), 2));
        let want: Vec<u8> = keys.chunks(60).flat_map(|row| kept(row, 31)).collect();
        assert!(got == want);
        let long = 6 * CHUNK / 5 / 12 * 12;
        let (x_long, norms_long) = (sample::<f32>(3 * long, 9), sample::<f32>(long, 11));
        let norms_long: Vec<f32> = norms_long.iter().map(|v| v.abs()).collect();
        let plan = Groups { keep: 2, group: 12, n: long, inner: 1 };
        let got = mask(&x_long, |job| groups(job, plan, Scaled(&norms_long), 2));
        let product = |(i, v): (usize, &f32)| (v.abs() * norms_long[i % long]).magnitude();
        let long_keys: Vec<_> = x_long.iter().enumerate().map(product).collect();
        assert!(got == long_keys.chunks(12).flat_map(|row| kept(row, 10)).collect::<Vec<u8>>());
        for group in [2, 4, 12, 30] {
            let plan = Groups { keep: 1, group, n: 60, inner: 1 };
            let got = mask(&x, |job| groups(job, plan, Scaled(&norms), 2));
            let want: Vec<u8> = keys.chunks(group).flat_map(|row| kept(row, group - 1)).collect();
            assert!(got == want, "{group}");
        }
    }

    #[test]
    fn test_nan_is_told_and_is_the_largest() {
        for place in 0..67 {
            let mut x = sample::<f32>(67, 1000);
            x[place] = f32::NAN.copysign(if place % 2 == 0 { 1.0 } else { -1.0 });
            let mut out = vec![9; 67];
            assert!(keep_above(Job::<f32, Mask> { x: Some(&x), out: &mut out }, 0x7f80_0000, 2));
            assert_eq!(out.iter().map(|&stays| u32::from(stays)).sum::<u32>(), 1);
            assert!(magnitude(vec![Job::<f32, Mask> { x: Some(&x), out: &mut out }], 66, 2));
            assert_eq!(out[place], 1);
            assert!(rows(Job::<f32, Mask> { x: Some(&x), out: &mut out }, 67, 66, Magnitude, 2));
            assert_eq!(out[place], 1);
        }
    }

    #[test]
    fn test_b11_the_same_bits_for_every_instruction_set() {
        let x = sample::<f32>(CHUNK + 1000, 400);
        let all = || {
            let plan = Groups { keep: 2, group: 4, n: 8, inner: 1 };
            let x = &x[..x.len() / 120 * 120];
            [
                mask(x, |job| magnitude(vec![job], x.len() as u64 / 2, 3)),
                mask(x, |job| rows(job, 120, 55, Magnitude, 3)),
                mask(x, |job| groups(job, plan, Magnitude, 3)),
                mask(x, |job| groups(job, Groups { group: 10, n: 10, ..plan }, Magnitude, 3)),
                mask(x, |job| groups(job, Groups { group: 8, n: 8, inner: 15, ..plan }, Magnitude, 3)),
            ]
        };
        let want = all();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            isa::set(isa);
            assert!(all() == want, "{}", isa.name());
        }
    }
}

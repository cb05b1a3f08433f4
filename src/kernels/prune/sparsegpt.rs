//! `SparseGPT` (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1): the weights that stay make up for those that go.

use super::super::elimination::{Block, Factor, LANES, Lost, Rule, TILE, take_out};
use super::groups::{LARGEST, one_group};
use super::{Job, Mask, Scaled, Score, Weights, magnitude};
use crate::isa::kernel;
use crate::par;
use crate::real::{Element, Key, Real};

/// Which weights go.
#[derive(Debug, Clone, Copy)]
pub enum Share<'a> {
    /// How many of each block of columns, over all rows.
    Counts(&'a [u64]),
    /// All but `keep` of each `group` of a row.
    Groups(usize, usize),
}

kernel! {
    /// What the weights of a block are ranked by.
    fn scores<C: Real>(rows: &[C], n: usize, block: &Block<C, LANES>, out: &mut [C]) {
        let columns = block.columns.clone();
        for (out, row) in out.chunks_mut(columns.len()).zip(rows.chunks(n)) {
            for ((out, w), &scale) in out.iter_mut().zip(&row[columns.clone()]).zip(&block.scales) {
                *out = w.abs() * scale;
            }
        }
    }
}

/// The mask of a block: the `prune` lowest scores go.
fn choose<C: Real>(work: &[C], n: usize, block: &Block<C, LANES>, prune: u64, threads: usize) -> Vec<u8> {
    let width = block.columns.len();
    let size = work.len() / n * width;
    let (mut ranked, mut stays) = (vec![C::from_f64(0.0); size], vec![0; size]);
    let tiles = ranked.chunks_mut(TILE * width).zip(work.chunks(TILE * n));
    par::for_each(threads, tiles, |(out, rows)| scores(rows, n, block, out));
    magnitude(vec![Job::<C, Mask> { x: Some(&ranked), out: &mut stays }], prune, threads);
    stays
}

/// Prune rows of `factor.n` weights in blocks of `block` columns (for groups: whole ones), and correct what stays.
pub fn sparsegpt<T: Element>(
    job: Job<'_, T, Weights>,
    factor: &Factor,
    (block, share): (usize, Share<'_>),
    threads: usize,
) {
    let n = factor.n;
    let zero = T::Compute::from_f64(0.0);
    let mut work = vec![zero; job.out.len()];
    par::for_each(threads, work.chunks_mut(TILE * n).zip(job.source().chunks(TILE * n)), |(work, x)| {
        for (work, x) in work.chunks_mut(n).zip(x.chunks(n)) {
            for ((work, x), &dead) in work.iter_mut().zip(x).zip(&factor.dead) {
                *work = if dead { zero } else { x.load() };
            }
        }
    });
    for (i, first) in (0..n).step_by(block).enumerate() {
        let block = Block::new(first..n.min(first + block), n, |i, j| factor.at(i, j), threads);
        prune_block(&mut work, n, &block, (i, share), threads);
    }
    par::for_each(threads, job.out.chunks_mut(TILE * n).zip(work.chunks(TILE * n)), |(out, work)| {
        for (out, &work) in out.iter_mut().zip(work) {
            *out = T::store(work);
        }
    });
}

/// Which columns of a row go.
struct Choice<'a, C> {
    /// 1 for those that stay, 0 for those that go.
    stays: &'a mut [u8],
    /// How many of each group stay: chosen here, when the group is reached.
    groups: Option<(usize, usize)>,
    /// What weights are multiplied by to be ranked.
    scales: &'a [C],
}

impl<C: Real> Rule<C> for Choice<'_, C> {
    #[inline(always)]
    fn becomes(&mut self, i: usize, rest: &[C]) -> Option<C> {
        if let Some((keep, group)) = self.groups
            && i.is_multiple_of(group)
        {
            let mut keys = [<<C as Element>::Key as Key>::ZERO; LARGEST];
            let keys = &mut keys[..group];
            Scaled(self.scales).keys(&rest[..group], i, keys);
            one_group(keys, keep);
            for (stays, &key) in self.stays[i..].iter_mut().zip(keys.iter()) {
                *stays = u8::from(key != Key::ZERO);
            }
        }
        if self.stays[i] == 0 { Some(C::from_i16(0)) } else { None }
    }
}

/// Prune block number `i`, and correct it and what is behind it.
fn prune_block<C: Real>(
    work: &mut [C],
    n: usize,
    block: &Block<C, LANES>,
    (i, share): (usize, Share<'_>),
    threads: usize,
) {
    let (columns, width) = (block.columns.clone(), block.columns.len());
    let (mut stays, groups) = match share {
        Share::Counts(counts) => (choose(work, n, block, counts[i], threads), None),
        Share::Groups(keep, group) => (vec![0; work.len() / n * width], Some((keep, group))),
    };
    let tiles = work.chunks_mut(TILE * n).zip(stays.chunks_mut(TILE * width));
    par::for_each_with(
        threads,
        tiles,
        || vec![Lost::new(); TILE],
        |lost, (tile, stays)| {
            for ((row, stays), lost) in tile.chunks_mut(n).zip(stays.chunks_mut(width)).zip(lost.iter_mut()) {
                lost.clear();
                let choice = Choice { stays, groups, scales: &block.scales };
                take_out(&mut row[columns.clone()], 0..width, choice, block, lost);
            }
            block.hand_on(tile, n, lost);
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::{Bf16, F16};

    /// With independent inputs nothing is corrected, and each block loses its smallest magnitudes.
    fn check<T: Element>() {
        let (rows, n) = (2 * TILE + 3, 21);
        let h: Vec<f64> = (0..n * n).map(|k| f64::from(k / n == k % n)).collect();
        let factor = Factor::new(h, n, 0.01, 2).unwrap();
        let x: Vec<T> = (0..rows * n).map(|k| T::store_f64(((k * 7919) % 1009) as f64 - 504.0)).collect();
        let mut out = x.clone();
        sparsegpt(Job { x: Some(&x), out: &mut out }, &factor, (21, Share::Counts(&[1000])), 3);
        let mut want = x.clone();
        magnitude(vec![Job::<T, Weights> { x: Some(&x), out: &mut want }], 1000, 1);
        let bits = |x: &[T]| x.iter().map(|v| v.to_bits64()).collect::<Vec<_>>();
        assert!(bits(&out) == bits(&want));
        let mut in_place = x.clone();
        sparsegpt(Job { x: None, out: &mut in_place }, &factor, (7, Share::Groups(1, 7)), 2);
        assert_eq!(in_place.iter().filter(|v| v.to_f64() != 0.0).count(), rows * 3);
    }

    #[test]
    fn test_groups_choose_when_they_are_reached() {
        let block = Block::new(0..4, 4, |i, j| if i == j { 2.0 } else { 1.0 }, 1);
        let (mut row, mut stays) = ([1.0f32, 4.0, 3.0, 3.0], [9; 4]);
        let choice = Choice { stays: &mut stays, groups: Some((1, 2)), scales: &block.scales };
        take_out(&mut row, 0..4, choice, &block, &mut Lost::new());
        assert_eq!((row, stays), ([0.0, 3.5, 0.0, 1.25], [0, 1, 0, 1]));
    }

    #[test]
    fn test_independent_inputs_are_pruned_by_magnitude_for_every_dtype() {
        check::<f32>();
        check::<f64>();
        check::<F16>();
        check::<Bf16>();
    }
}

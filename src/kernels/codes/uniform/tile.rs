//! Groups in lanes: what the search of scales reads.

use crate::real::{Element, Real};

/// Groups that are searched together: loops of this length are vectorised as a whole.
pub(super) const LANES: usize = 32;

/// Elements of each that lie in the cache, and whose sums are of the dtype of the scale.
pub(super) const DEPTH: usize = 256;

/// What is searched: rows of groups, the last of a row may be shorter.
#[derive(Debug)]
pub(super) struct Source<'a, T: Element> {
    pub(super) x: &'a [T],
    /// None, or one for each of `cols`.
    pub(super) weights: &'a [T::Compute],
    pub(super) row: usize,
    pub(super) size: usize,
    /// Elements of the last axis.
    pub(super) cols: usize,
}

impl<T: Element> Source<'_, T> {
    /// Where a group begins and ends.
    #[inline(always)]
    pub(super) fn group(&self, i: usize) -> (usize, usize) {
        let in_row = self.row.div_ceil(self.size);
        let (row, within) = (i / in_row * self.row, i % in_row * self.size);
        let start = row + within;
        (start.min(self.x.len()), (start + self.size.min(self.row - within)).min(self.x.len()))
    }

    /// The groups from `first` on, empty after the last.
    #[inline(always)]
    pub(super) fn groups(&self, first: usize) -> Lanes {
        let mut lanes = [(0, 0); LANES];
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = self.group(first + i);
        }
        Lanes(lanes)
    }
}

/// Where each lane begins and ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes([(usize, usize); LANES]);

impl Lanes {
    /// A piece of a long group in as many segments.
    #[inline(always)]
    pub(super) fn segments((start, end): (usize, usize)) -> Self {
        let each = crate::par::CHUNK / LANES;
        let mut lanes = [(0, 0); LANES];
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = (end.min(start + i * each), end.min(start + (i + 1) * each));
        }
        Self(lanes)
    }

    /// The length of the longest.
    #[inline(always)]
    pub(super) fn length(&self) -> usize {
        self.0.iter().fold(0, |length, (start, end)| length.max(end - start))
    }
}

/// Up to [`DEPTH`] elements of each lane, side by side; zeros after the end of one: they change no sum.
#[derive(Debug)]
pub(super) struct Tile<C> {
    pub(super) x: Vec<[C; LANES]>,
    /// None, or as many.
    pub(super) weights: Vec<[C; LANES]>,
    pub(super) depth: usize,
}

impl<C: Real> Tile<C> {
    /// For this source; `weighted` where zeros would change sums: then what there is counts 1, or its weight.
    pub(super) fn new<T: Element<Compute = C>>(source: &Source<'_, T>, weighted: bool) -> Self {
        let depth = source.size.min(DEPTH);
        let zeros = vec![[C::from_i16(0); LANES]; depth];
        let weighted = weighted || !source.weights.is_empty();
        Self { weights: if weighted { zeros.clone() } else { vec![] }, x: zeros, depth }
    }

    /// The elements of each lane from its element `at` on, times its `norm`; what is none, or not finite, becomes `blank`
    /// and has no weight.
    #[inline(always)]
    pub(super) fn load<T: Element<Compute = C>>(
        &mut self,
        source: &Source<'_, T>,
        lanes: &Lanes,
        at: usize,
        norm: &[C; LANES],
        blank: C,
    ) {
        self.depth = DEPTH.min(lanes.length() - at);
        for (lane, (&(start, end), &norm)) in lanes.0.iter().zip(norm).enumerate() {
            let from = end.min(start + at);
            let x = &source.x[from..end.min(from + self.depth)];
            let (tile, rest) = self.x[..self.depth].split_at_mut(x.len());
            for (tile, &x) in tile.iter_mut().zip(x) {
                tile[lane] = if x.magnitude() < T::INFINITY_KEY { x.load() * norm } else { blank };
            }
            for tile in rest {
                tile[lane] = blank;
            }
            if !self.weights.is_empty() {
                self.load_weights(source, lane, from, x);
            }
        }
    }

    #[inline(always)]
    fn load_weights<T: Element<Compute = C>>(&mut self, source: &Source<'_, T>, lane: usize, from: usize, x: &[T]) {
        let (zero, ones) = (C::from_i16(0), [C::from_i16(1)]);
        let weights = if source.weights.is_empty() { &ones } else { source.weights };
        let (tile, rest) = self.weights[..self.depth].split_at_mut(x.len());
        let weights = weights.iter().cycle().skip(from % source.cols.min(weights.len()));
        for ((tile, &x), &weight) in tile.iter_mut().zip(x).zip(weights) {
            tile[lane] = if x.magnitude() < T::INFINITY_KEY { weight } else { zero };
        }
        for tile in rest {
            tile[lane] = zero;
        }
    }

    /// The ranges, low and high, of each lane with those that it had before.
    #[inline(always)]
    pub(super) fn widen(&self, range: &mut [[C; LANES]; 2]) {
        let [mut low, mut high] = *range;
        for x in &self.x[..self.depth] {
            for lane in 0..LANES {
                low[lane] = if x[lane] < low[lane] { x[lane] } else { low[lane] };
                high[lane] = if x[lane] > high[lane] { x[lane] } else { high[lane] };
            }
        }
        *range = [low, high];
    }

    /// Each lane times its `norm`; what is blank becomes 0.
    #[inline(always)]
    pub(super) fn scale(&mut self, norm: &[C; LANES]) {
        for x in &mut self.x[..self.depth] {
            for lane in 0..LANES {
                x[lane] = if x[lane] == x[lane] { x[lane] * norm[lane] } else { C::from_i16(0) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONES: [f32; LANES] = [1.0; LANES];

    /// Two rows of ten numbers in groups of four: the third of each row has two.
    fn source<'a>(x: &'a [f32], weights: &'a [f32]) -> Source<'a, f32> {
        Source { x, weights, row: 10, size: 4, cols: 10 }
    }

    #[test]
    fn test_lanes_are_groups_which_end_with_their_row() {
        let x: Vec<f32> = (0..20).map(|i| i as f32 + 1.0).collect();
        let weights: Vec<f32> = (0..10).map(|i| i as f32 + 0.5).collect();
        let source = source(&x, &weights);
        let ends: Vec<_> = (0..7).map(|i| source.group(i)).collect();
        assert_eq!(ends, [(0, 4), (4, 8), (8, 10), (10, 14), (14, 18), (18, 20), (20, 20)]);
        let lanes = source.groups(1);
        assert_eq!(lanes.length(), 4);
        let mut tile = Tile::new(&source, false);
        tile.load(&source, &lanes, 0, &[2.0; LANES], 0.0);
        let lane = |i: usize| [0, 1, 2, 3].map(|p| tile.x[p][i]);
        assert_eq!(
            [lane(0), lane(1), lane(4)],
            [[10.0, 12.0, 14.0, 16.0], [18.0, 20.0, 0.0, 0.0], [38.0, 40.0, 0.0, 0.0]]
        );
        assert_eq!(lane(LANES - 1), [0.0; 4]);
        assert_eq!([0, 1, 2, 3].map(|p| tile.weights[p][0]), [4.5, 5.5, 6.5, 7.5]);
        assert_eq!([0, 1].map(|p| tile.weights[p][4]), [8.5, 9.5]);
    }

    #[test]
    fn test_segments_are_a_chunk_cut_into_lanes() {
        let each = crate::par::CHUNK / LANES;
        let Lanes(lanes) = Lanes::segments((7, 7 + each + 3));
        assert_eq!(lanes[..3], [(7, 7 + each), (7 + each, 10 + each), (10 + each, 10 + each)]);
    }

    #[test]
    fn test_what_is_not_finite_counts_as_0_and_the_range_grows() {
        let x = [f32::NAN, f32::INFINITY, -3.0, 2.0, 1.0, f32::NEG_INFINITY, 0.0, 5.0];
        let source = Source { x: &x, weights: &[], row: 8, size: 4, cols: 8 };
        let mut tile = Tile::new(&source, false);
        tile.load(&source, &source.groups(0), 0, &ONES, 0.0);
        let mut range = [[0.0; LANES]; 2];
        tile.widen(&mut range);
        assert_eq!((range[0][0], range[1][0], range[0][1], range[1][1]), (-3.0, 2.0, 0.0, 5.0));
        tile.scale(&[0.5; LANES]);
        assert_eq!([0, 1, 2, 3].map(|p| tile.x[p][0]), [0.0, 0.0, -1.5, 1.0]);
    }
}

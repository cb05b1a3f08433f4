//! Groups in lanes: what the search of scales reads.

use super::power::power;
use crate::real::{Element, Real};

/// What is missed by less, in units of the scale, counts as missed by so much: or it would count without end.
const LEAST_MISS: f64 = 1.0 / 1024.0;

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
    x: Vec<[C; LANES]>,
    weights: Vec<[C; LANES]>,
    depth: usize,
}

impl<C: Real> Tile<C> {
    /// For this source.
    pub(super) fn new<T: Element<Compute = C>>(source: &Source<'_, T>) -> Self {
        let depth = source.size.min(DEPTH);
        let zeros = vec![[C::from_i16(0); LANES]; depth];
        Self { weights: if source.weights.is_empty() { vec![] } else { zeros.clone() }, x: zeros, depth }
    }

    /// The elements of each lane from its element `at` on, times its `norm`; what is not finite becomes 0.
    #[inline(always)]
    pub(super) fn load<T: Element<Compute = C>>(
        &mut self,
        source: &Source<'_, T>,
        lanes: &Lanes,
        at: usize,
        norm: &[C; LANES],
    ) {
        let zero = C::from_i16(0);
        self.depth = DEPTH.min(lanes.length() - at);
        for (lane, (&(start, end), &norm)) in lanes.0.iter().zip(norm).enumerate() {
            let from = end.min(start + at);
            let x = &source.x[from..end.min(from + self.depth)];
            let (tile, rest) = self.x[..self.depth].split_at_mut(x.len());
            for (tile, &x) in tile.iter_mut().zip(x) {
                tile[lane] = if x.magnitude() < T::INFINITY_KEY { x.load() * norm } else { zero };
            }
            for tile in rest {
                tile[lane] = zero;
            }
            if !source.weights.is_empty() {
                let weights = source.weights.iter().cycle().skip(from % source.cols);
                for (tile, &weight) in self.weights.iter_mut().zip(weights.take(x.len())) {
                    tile[lane] = weight;
                }
            }
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

    /// Each lane times its `norm`.
    #[inline(always)]
    pub(super) fn scale(&mut self, norm: &[C; LANES]) {
        for x in &mut self.x[..self.depth] {
            for lane in 0..LANES {
                x[lane] = x[lane] * norm[lane];
            }
        }
    }

    /// For numbers by x * factor and codes between bounds: the sums of dd, dq and qq, where d is what a code q misses.
    #[inline(always)]
    pub(super) fn sums(&self, factor: &[C; LANES], bounds: &[[C; LANES]; 2]) -> [[C; LANES]; 3] {
        if self.weights.is_empty() { self.plain_sums(factor, bounds) } else { self.weighted_sums(factor, bounds) }
    }

    /// The same with each square times |d| to the power `norm` - 2: dd is then the sum of |d| to the power `norm`.
    #[inline(always)]
    pub(super) fn sums_of_norm(&self, factor: &[C; LANES], bounds: &[[C; LANES]; 2], norm: f64) -> [[C; LANES]; 3] {
        let zero = [C::from_i16(0); LANES];
        let (mut dd, mut dq, mut qq) = (zero, zero, zero);
        for (i, x) in self.x[..self.depth].iter().enumerate() {
            for lane in 0..LANES {
                let (q, d) = coded(x[lane] * factor[lane], [bounds[0][lane], bounds[1][lane]]);
                let miss = d.abs().to_f64();
                let more = C::from_f64(power(if miss > LEAST_MISS { miss } else { LEAST_MISS }, norm - 2.0));
                let weight = self.weights.get(i).map_or(more, |weights| weights[lane] * more);
                dd[lane] = dd[lane] + d * (d * weight);
                dq[lane] = dq[lane] + q * (d * weight);
                qq[lane] = qq[lane] + q * (q * weight);
            }
        }
        [dd, dq, qq]
    }

    #[inline(always)]
    fn plain_sums(&self, factor: &[C; LANES], bounds: &[[C; LANES]; 2]) -> [[C; LANES]; 3] {
        let zero = [C::from_i16(0); LANES];
        let (mut dd, mut dq, mut qq) = (zero, zero, zero);
        let (factor, bounds) = (*factor, *bounds);
        for x in &self.x[..self.depth] {
            for lane in 0..LANES {
                let (q, d) = coded(x[lane] * factor[lane], [bounds[0][lane], bounds[1][lane]]);
                dd[lane] = dd[lane] + d * d;
                dq[lane] = dq[lane] + d * q;
                qq[lane] = qq[lane] + q * q;
            }
        }
        [dd, dq, qq]
    }

    #[inline(always)]
    fn weighted_sums(&self, factor: &[C; LANES], bounds: &[[C; LANES]; 2]) -> [[C; LANES]; 3] {
        let zero = [C::from_i16(0); LANES];
        let (mut dd, mut dq, mut qq) = (zero, zero, zero);
        let (factor, bounds) = (*factor, *bounds);
        for (x, weight) in self.x[..self.depth].iter().zip(&self.weights) {
            for lane in 0..LANES {
                let (q, d) = coded(x[lane] * factor[lane], [bounds[0][lane], bounds[1][lane]]);
                let weighted = [d * weight[lane], q * weight[lane]];
                dd[lane] = dd[lane] + d * weighted[0];
                dq[lane] = dq[lane] + q * weighted[0];
                qq[lane] = qq[lane] + q * weighted[1];
            }
        }
        [dd, dq, qq]
    }
}

/// The code of a number in units of its scale, less the zero point, and what it misses.
#[inline(always)]
fn coded<C: Real>(t: C, [low, high]: [C; 2]) -> (C, C) {
    let limited = if t > low { t } else { low };
    let limited = if limited < high { limited } else { high };
    let q = limited + C::ROUNDING - C::ROUNDING;
    (q, t - q)
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
        let mut tile = Tile::new(&source);
        tile.load(&source, &lanes, 0, &[2.0; LANES]);
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
        let mut tile = Tile::new(&source);
        tile.load(&source, &source.groups(0), 0, &ONES);
        let mut range = [[0.0; LANES]; 2];
        tile.widen(&mut range);
        assert_eq!((range[0][0], range[1][0], range[0][1], range[1][1]), (-3.0, 2.0, 0.0, 5.0));
        tile.scale(&[0.5; LANES]);
        assert_eq!([0, 1, 2, 3].map(|p| tile.x[p][0]), [0.0, 0.0, -1.5, 1.0]);
    }

    #[test]
    fn test_sums_are_those_of_the_codes_half_to_even_within_their_limits() {
        let x = [0.5f32, 1.5, -9.0, 0.25];
        let weights = [1.0f32, 2.0, 0.0, 4.0];
        for weights in [&[][..], &weights] {
            let source = Source { x: &x, weights, row: 4, size: 4, cols: 4 };
            let mut tile = Tile::new(&source);
            tile.load(&source, &source.groups(0), 0, &ONES);
            let sums = tile.sums(&ONES, &[[-7.0; LANES], [8.0; LANES]]).map(|sum| sum[0]);
            // Codes 0, 2, -7 and 0; off by 0.5, -0.5, -2 and 0.25.
            let w = |i: usize| weights.get(i).copied().unwrap_or(1.0);
            let (q, d) = ([0.0, 2.0, -7.0, 0.0], [0.5, -0.5, -2.0, 0.25]);
            let sum = |of: fn(f32, f32) -> f32| (0..4).map(|i| w(i) * of(d[i], q[i])).sum::<f32>();
            assert_eq!(sums, [sum(|d, _| d * d), sum(|d, q| d * q), sum(|_, q| q * q)]);
        }
    }
}

//! What a tile says of scales: sums of what their codes miss.

use super::power::power;
use super::tile::{LANES, Tile};
use crate::real::Real;

/// What is missed by less, in units of the scale, counts as missed by so much: or it would count without end.
const LEAST_MISS: f64 = 1.0 / 1024.0;

impl<C: Real> Tile<C> {
    /// For numbers t = x * factor and codes between bounds: the sums of dd, dq and qq, where d is what a code q misses.
    #[inline(always)]
    pub(super) fn sums(&self, factor: &[C; LANES], bounds: &[[C; LANES]; 2]) -> [[C; LANES]; 3] {
        if self.weights.is_empty() { self.plain_sums(factor, bounds) } else { self.weighted_sums(factor, bounds) }
    }

    /// For the same factor and several bounds: the sums of tq and qq. The numbers are rounded once for all bounds.
    #[inline(always)]
    pub(super) fn sums_of_sides<const N: usize>(
        &self,
        factor: &[C; LANES],
        bounds: &[[[C; LANES]; 2]; N],
    ) -> [[[C; LANES]; 2]; N] {
        if self.weights.is_empty() {
            self.counted_sides::<N, false>(factor, bounds)
        } else {
            self.counted_sides::<N, true>(factor, bounds)
        }
    }

    #[inline(always)]
    fn counted_sides<const N: usize, const WEIGHTED: bool>(
        &self,
        factor: &[C; LANES],
        bounds: &[[[C; LANES]; 2]; N],
    ) -> [[[C; LANES]; 2]; N] {
        let zero = [C::from_i16(0); LANES];
        let (mut tq, mut qq) = ([zero; N], [zero; N]);
        let (factor, bounds) = (*factor, *bounds);
        for (i, x) in self.x[..self.depth].iter().enumerate() {
            let weight = if WEIGHTED { &self.weights[i] } else { x };
            for lane in 0..LANES {
                let t = x[lane] * factor[lane];
                let rounded = t + C::ROUNDING - C::ROUNDING;
                // Loops of a known length within one over lanes: all sums stay in registers.
                for side in 0..N {
                    let q = limited(rounded, [bounds[side][0][lane], bounds[side][1][lane]]);
                    let weighted = if WEIGHTED { q * weight[lane] } else { q };
                    tq[side][lane] = tq[side][lane] + t * weighted;
                    qq[side][lane] = qq[side][lane] + q * weighted;
                }
            }
        }
        std::array::from_fn(|side| [tq[side], qq[side]])
    }

    /// As `sums` with each square times |d| to the power `norm` - 2: dd is then the sum of |d| to the power `norm`.
    #[inline(always)]
    pub(super) fn sums_of_norm(&self, factor: &[C; LANES], bounds: &[[C; LANES]; 2], norm: f64) -> [[C; LANES]; 3] {
        let zero = [C::from_i16(0); LANES];
        let (mut dd, mut dq, mut qq) = (zero, zero, zero);
        for (i, x) in self.x[..self.depth].iter().enumerate() {
            for lane in 0..LANES {
                let (q, d) = coded(x[lane] * factor[lane], [bounds[0][lane], bounds[1][lane]]);
                let more = more(d, norm);
                let weight = self.weights.get(i).map_or(more, |weights| weights[lane] * more);
                dd[lane] = dd[lane] + d * (d * weight);
                dq[lane] = dq[lane] + q * (d * weight);
                qq[lane] = qq[lane] + q * (q * weight);
            }
        }
        [dd, dq, qq]
    }

    /// For numbers t = (x - offset) * factor and codes up to `levels`: the sums of dd, dq and qq, and those of the weights,
    /// d and q; all weighted, and by |d| to the power `norm` - 2 too.
    #[inline(always)]
    pub(super) fn sums_of_offset(
        &self,
        factor: &[C; LANES],
        offset: &[C; LANES],
        levels: C,
        norm: f64,
    ) -> [[[C; LANES]; 3]; 2] {
        let zero = C::from_i16(0);
        let (mut second, mut first) = ([[zero; LANES]; 3], [[zero; LANES]; 3]);
        for (x, weights) in self.x[..self.depth].iter().zip(&self.weights) {
            let (mut codes, mut misses, mut counts) = (*x, *x, *weights);
            for lane in 0..LANES {
                (codes[lane], misses[lane]) = coded((x[lane] - offset[lane]) * factor[lane], [zero, levels]);
            }
            if norm != 2.0 {
                for lane in 0..LANES {
                    counts[lane] = counts[lane] * more(misses[lane], norm);
                }
            }
            for lane in 0..LANES {
                let (q, d, weight) = (codes[lane], misses[lane], counts[lane]);
                let weighted = [d * weight, q * weight];
                second[0][lane] = second[0][lane] + d * weighted[0];
                second[1][lane] = second[1][lane] + q * weighted[0];
                second[2][lane] = second[2][lane] + q * weighted[1];
                first[0][lane] = first[0][lane] + weight;
                first[1][lane] = first[1][lane] + weighted[0];
                first[2][lane] = first[2][lane] + weighted[1];
            }
        }
        [second, first]
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

/// What the square of a miss counts more by, so that it is a power of it.
#[inline(always)]
fn more<C: Real>(d: C, norm: f64) -> C {
    let miss = d.abs().to_f64();
    C::from_f64(power(if miss > LEAST_MISS { miss } else { LEAST_MISS }, norm - 2.0))
}

#[inline(always)]
fn limited<C: Real>(t: C, [low, high]: [C; 2]) -> C {
    let limited = if t > low { t } else { low };
    if limited < high { limited } else { high }
}

/// The code of a number in units of its scale, less the zero point, and what it misses.
#[inline(always)]
fn coded<C: Real>(t: C, bounds: [C; 2]) -> (C, C) {
    let q = limited(t, bounds) + C::ROUNDING - C::ROUNDING;
    (q, t - q)
}

#[cfg(test)]
mod tests {
    use super::super::tile::Source;
    use super::*;

    const ONES: [f32; LANES] = [1.0; LANES];

    #[test]
    fn test_sums_are_those_of_the_codes_half_to_even_within_their_limits() {
        let x = [0.5f32, 1.5, -9.0, 0.25];
        let weights = [1.0f32, 2.0, 0.0, 4.0];
        for weights in [&[][..], &weights] {
            let source = Source { x: &x, weights, row: 4, size: 4, cols: 4 };
            let mut tile = Tile::new(&source, false);
            tile.load(&source, &source.groups(0), 0, &ONES, 0.0);
            let sums = tile.sums(&ONES, &[[-7.0; LANES], [8.0; LANES]]).map(|sum| sum[0]);
            // Codes 0, 2, -7 and 0; off by 0.5, -0.5, -2 and 0.25.
            let w = |i: usize| weights.get(i).copied().unwrap_or(1.0);
            let (q, d) = ([0.0, 2.0, -7.0, 0.0], [0.5, -0.5, -2.0, 0.25]);
            let sum = |of: fn(f32, f32) -> f32| (0..4).map(|i| w(i) * of(d[i], q[i])).sum::<f32>();
            assert_eq!(sums, [sum(|d, _| d * d), sum(|d, q| d * q), sum(|_, q| q * q)]);
        }
    }

    #[test]
    fn test_sums_of_an_offset_count_what_there_is_by_its_weight() {
        let x = [0.5f32, 1.5, -9.0, f32::NAN, 2.25];
        for weights in [&[][..], &[1.0f32, 2.0, 0.5, 9.0, 4.0]] {
            let source = Source { x: &x, weights, row: 5, size: 4, cols: 5 };
            let mut tile = Tile::new(&source, true);
            tile.load(&source, &source.groups(0), 0, &ONES, f32::NAN);
            tile.scale(&ONES);
            for norm in [2.0, 4.0] {
                let [second, first] = tile.sums_of_offset(&[2.0; LANES], &[-1.0; LANES], 15.0, norm);
                // Numbers 3, 5 and -16, codes 3, 5 and 0.
                let w = |i: usize| weights.get(i).copied().unwrap_or(1.0);
                let more = [2.0f64, 4.0].map(|norm| power(LEAST_MISS, norm - 2.0) as f32)[usize::from(norm == 4.0)];
                let far = w(2) * if norm == 4.0 { 256.0 } else { 1.0 };
                let each = [w(0) * more, w(1) * more, far];
                let sum = |of: [f32; 3]| (0..3).fold(0.0, |sum, i| sum + each[i] * of[i]);
                assert_eq!(second.map(|sum| sum[0]), [sum([0.0, 0.0, 256.0]), 0.0, sum([9.0, 25.0, 0.0])]);
                assert_eq!(first.map(|sum| sum[0]), [sum([1.0; 3]), sum([0.0, 0.0, -16.0]), sum([3.0, 5.0, 0.0])]);
                // The second lane has one number, 6.5; its code is 6.
                assert_eq!(first[2][1], first[0][1] * 6.0);
                assert_eq!(first[0][2], 0.0);
            }
        }
    }

    #[test]
    fn test_sums_of_sides_are_those_of_each_bound_alone() {
        let x: Vec<f32> = (0..96).map(|i| ((i * 37 + 5) % 96) as f32 / 4.0 - 12.0).collect();
        let source = Source { x: &x, weights: &[], row: 96, size: 32, cols: 96 };
        let mut tile = Tile::new(&source, false);
        tile.load(&source, &source.groups(0), 0, &ONES, 0.0);
        let bounds: [_; 3] = [-8.0f32, -3.0, 0.0].map(|low| [[low; LANES], [low + 15.0; LANES]]);
        for (found, bounds) in tile.sums_of_sides(&ONES, &bounds).iter().zip(&bounds) {
            let [_, dq, qq] = tile.sums(&ONES, bounds);
            for lane in 0..3 {
                assert_eq!([found[0][lane], found[1][lane]], [dq[lane] + qq[lane], qq[lane]]);
            }
        }
    }
}

//! What the search of scales tries, and what it learns from the sums: loops over lanes of several arrays at once.

#![expect(clippy::needless_range_loop, reason = "lanes are indices into several arrays")]

use super::grid::{How, grid, units};
use super::params::{self, Range};
use super::power::error;
use super::tile::{LANES, Tile, some};
use super::{Params, Scheme, Uniform};
use crate::real::Real;

/// What a searched scale must be better by than the plain formula: more than the sums are rounded by.
const BETTER: f64 = 1.0 - 1.0 / 4096.0;

/// A scale for each lane, in its unit, and a zero point.
#[derive(Debug, Clone, Copy)]
struct Try<C> {
    scale: [C; LANES],
    zero_point: [C; LANES],
}

/// Where the search of a tile stands.
#[derive(Debug, Clone)]
pub(super) struct State<C> {
    uniform: Uniform,
    how: How,
    factors: Vec<f64>,
    sides: &'static [f64],
    /// The range of each lane, with 0.
    range: [[C; LANES]; 2],
    /// The power of two that lanes are divided by, and its reciprocal.
    unit: [C; LANES],
    pub(super) norm: [C; LANES],
    tries: Vec<Try<C>>,
    /// Of each try, for each lane: of dd, dq and qq.
    pub(super) sums: Vec<[[f64; LANES]; 3]>,
    round: usize,
    best: Try<C>,
    error: [f64; LANES],
}

impl<C: Real> State<C> {
    pub(super) fn new(uniform: Uniform, how: How, size: usize) -> Self {
        let ones = [C::from_i16(1); LANES];
        let (factors, sides) = grid(uniform, size);
        let n = factors.len() * sides.len();
        Self {
            uniform,
            how,
            factors,
            sides,
            range: [ones; 2],
            unit: ones,
            norm: ones,
            tries: Vec::with_capacity(n),
            sums: Vec::with_capacity(n),
            round: 0,
            best: Try { scale: ones, zero_point: ones },
            error: [0.0; LANES],
        }
    }

    /// Begin with lanes of these ranges.
    #[inline(always)]
    pub(super) fn start(&mut self, range: [[C; LANES]; 2]) {
        self.range = range;
        for lane in 0..LANES {
            let (low, high) = (C::from_i16(0) - range[0][lane], range[1][lane]);
            let largest = if low > high { low } else { high };
            [self.unit[lane], self.norm[lane]] = units(largest.to_f64());
        }
        (self.round, self.best) = (0, self.plain());
        self.tries.clear();
        if self.how.search {
            for i in 0..self.factors.len() {
                for &side in self.sides {
                    let given = self.of_grid(self.factors[i], side);
                    self.tries.push(given);
                }
            }
        }
        self.clear_sums();
    }

    #[inline(always)]
    fn clear_sums(&mut self) {
        self.sums.clear();
        self.sums.resize(self.tries.len(), [[0.0; LANES]; 3]);
    }

    /// The middle code of symmetric ones, which stands for 0.
    #[inline(always)]
    fn middle(&self) -> C {
        C::from_i16(1 << (self.uniform.bits - 1))
    }

    #[inline(always)]
    fn levels(&self) -> C {
        C::from_i16((1 << self.uniform.bits) - 1)
    }

    /// The plain formula.
    #[inline(always)]
    fn plain(&self) -> Try<C> {
        let Uniform { bits, scheme, .. } = self.uniform;
        let mut scale = [C::from_i16(1); LANES];
        let mut zero_point = [self.middle(); LANES];
        for lane in 0..LANES {
            let range = Range::<C>([self.range[0][lane].key(), self.range[1][lane].key()]);
            scale[lane] = params::scale(scheme, bits, range);
        }
        self.how.stored.round(self.uniform.bits, &mut scale);
        if scheme != Scheme::Symmetric {
            for lane in 0..LANES {
                let range = Range::<C>([self.range[0][lane].key(), self.range[1][lane].key()]);
                zero_point[lane] = C::from_i16(params::zero_point(bits, range, scale[lane]) as i16);
            }
        }
        for lane in 0..LANES {
            scale[lane] = scale[lane] * self.norm[lane];
        }
        Try { scale, zero_point }
    }

    /// A try of the grid.
    #[inline(always)]
    fn of_grid(&self, factor: f64, side: f64) -> Try<C> {
        let (zero, one) = (C::from_i16(0), C::from_i16(1));
        let (levels, middle) = (self.levels(), self.middle());
        let (sign, slack) = (C::from_f64(side * factor), C::from_f64(side * (1.0 - factor)));
        let part = C::from_f64(factor) / levels;
        let (mut scale, mut zero_point) = ([one; LANES], [middle; LANES]);
        for lane in 0..LANES {
            let (low, high) = (self.range[0][lane] * self.norm[lane], self.range[1][lane] * self.norm[lane]);
            let width = high - low;
            if self.uniform.scheme == Scheme::Symmetric {
                let largest = if zero - low > high { zero - low } else { high };
                scale[lane] = if width > zero { largest * sign / middle } else { one };
            } else {
                let s = if width > zero { width * part } else { one };
                let z = zero - (low + width * slack) / s;
                let z = if z > zero { z } else { zero };
                let z = if z < levels { z } else { levels };
                (scale[lane], zero_point[lane]) = (s, z + C::ROUNDING - C::ROUNDING);
            }
        }
        Try { scale, zero_point }
    }

    /// Whether there is something to measure.
    #[inline(always)]
    pub(super) fn has_tries(&self) -> bool {
        !self.tries.is_empty()
    }

    /// Add up what the tries make of a tile.
    #[inline(always)]
    pub(super) fn measure(&mut self, tile: &Tile<C>) {
        let levels = self.levels();
        for (given, sums) in self.tries.iter().zip(&mut self.sums) {
            let (mut factor, mut bounds) = (given.scale, [given.zero_point; 2]);
            for lane in 0..LANES {
                factor[lane] = C::from_i16(1) / given.scale[lane];
                bounds[0][lane] = C::from_i16(0) - given.zero_point[lane];
                bounds[1][lane] = levels - given.zero_point[lane];
            }
            let norm = self.how.norm;
            let [dd, dq, qq] =
                if norm == 2.0 { tile.sums(&factor, &bounds) } else { tile.sums_of_norm(&factor, &bounds, norm) };
            for lane in 0..LANES {
                sums[0][lane] += dd[lane].to_f64();
            }
            for lane in 0..LANES {
                sums[1][lane] += dq[lane].to_f64();
            }
            for lane in 0..LANES {
                sums[2][lane] += qq[lane].to_f64();
            }
        }
    }

    /// Add to the sums of all lanes, which are one group.
    pub(super) fn add(&mut self, more: &[[f64; 3]]) {
        for (sums, more) in self.sums.iter_mut().zip(more) {
            for (sum, more) in sums.iter_mut().zip(more) {
                for sum in sum.iter_mut() {
                    *sum += more;
                }
            }
        }
    }

    /// Go on from what was measured.
    #[inline(always)]
    pub(super) fn learn(&mut self) {
        let next = if self.round == 0 {
            let best = self.best_of_grid();
            self.tries.clear();
            self.tries.push(self.best);
            best
        } else {
            if self.round == 1 {
                for lane in 0..LANES {
                    self.error[lane] =
                        error(self.tries[0].scale[lane].to_f64(), self.sums[0][0][lane], self.how.norm) * BETTER;
                }
            }
            let next = self.take_last();
            self.tries.clear();
            next
        };
        // How often codes are made with the best scale for the last ones.
        if self.round < if self.uniform.bits == 8 { 3 } else { 2 } {
            self.tries.push(next);
        }
        self.round += 1;
        self.clear_sums();
    }

    /// The best of the grid, with the best scale for its codes.
    #[inline(always)]
    fn best_of_grid(&self) -> Try<C> {
        // Errors are fractions, compared without a division. Plain loops over lanes of one type: they are vectorised.
        let (mut above, mut below, mut miss) = ([f64::INFINITY; LANES], [1.0; LANES], [0.0; LANES]);
        let mut best = [0.0; LANES];
        for (i, (given, [dd, dq, qq])) in self.tries.iter().zip(&self.sums).enumerate() {
            let under = some(qq);
            let mut over = [0.0; LANES];
            for lane in 0..LANES {
                let scale = given.scale[lane].to_f64();
                over[lane] = scale * scale * (dd[lane] * under[lane] - dq[lane] * dq[lane]);
            }
            if self.how.norm != 2.0 {
                // What another scale makes of these codes can't be told.
                for lane in 0..LANES {
                    over[lane] = error(given.scale[lane].to_f64(), dd[lane], self.how.norm) * under[lane];
                }
            }
            for lane in 0..LANES {
                let better = over[lane] * below[lane] < above[lane] * under[lane];
                above[lane] = if better { over[lane] } else { above[lane] };
                below[lane] = if better { under[lane] } else { below[lane] };
                miss[lane] = if better { dq[lane] } else { miss[lane] };
                best[lane] = if better { i as f64 } else { best[lane] };
            }
        }
        let mut given = self.best;
        for lane in 0..LANES {
            let of = &self.tries[best[lane] as usize];
            (given.scale[lane], given.zero_point[lane]) = (of.scale[lane], of.zero_point[lane]);
        }
        self.refit(given, &miss, &below)
    }

    /// Keep the last try where it is the best; with the best scale for its codes.
    #[inline(always)]
    fn take_last(&mut self) -> Try<C> {
        let last = self.tries.len() - 1;
        let (given, [dd, dq, qq]) = (self.tries[last], self.sums[last]);
        for lane in 0..LANES {
            let found = error(given.scale[lane].to_f64(), dd[lane], self.how.norm);
            let better = found < self.error[lane];
            self.error[lane] = if better { found } else { self.error[lane] };
            self.best.scale[lane] = if better { given.scale[lane] } else { self.best.scale[lane] };
            self.best.zero_point[lane] = if better { given.zero_point[lane] } else { self.best.zero_point[lane] };
        }
        self.refit(given, &dq, &some(&qq))
    }

    /// The best scale for codes, as it is stored.
    #[inline(always)]
    fn refit(&self, given: Try<C>, dq: &[f64; LANES], qq: &[f64; LANES]) -> Try<C> {
        let mut scale = given.scale;
        for lane in 0..LANES {
            let of_unit = given.scale[lane].to_f64() * (1.0 + dq[lane] / qq[lane]);
            scale[lane] = C::from_f64(of_unit * self.unit[lane].to_f64());
        }
        self.how.stored.round(self.uniform.bits, &mut scale);
        for lane in 0..LANES {
            scale[lane] = scale[lane] * self.norm[lane];
        }
        Try { scale, ..given }
    }

    /// Write the parameters of a lane to the first part.
    pub(super) fn write(&self, lane: usize, params: &mut Params<'_, C>) {
        params.scale[0] = self.best.scale[lane] * self.unit[lane];
        if let Some(zero_point) = params.zero_point.first_mut() {
            *zero_point = self.best.zero_point[lane].round_to_byte();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::grid::ScaleDtype;
    use super::super::tile::Source;
    use super::*;

    const FOUR: Uniform = Uniform { bits: 4, scheme: Scheme::Symmetric, offset_binary: false, signed: false };

    /// The parameters of the first group of a search, its squared error, and how often codes were made.
    fn searched(x: &[f32], uniform: Uniform, how: How) -> (f32, u8, f64, usize) {
        let source = Source { x, weights: &[], row: x.len(), size: x.len(), cols: x.len() };
        let (mut tile, mut state) = (Tile::new(&source), State::<f32>::new(uniform, how, x.len()));
        tile.load(&source, &source.groups(0), 0, &[1.0; LANES]);
        let mut range = [[0.0; LANES]; 2];
        tile.widen(&mut range);
        state.start(range);
        tile.scale(&state.norm);
        let mut rounds = 0;
        while state.has_tries() {
            state.measure(&tile);
            state.learn();
            rounds += 1;
        }
        let (mut scale, mut zero_point) = ([0.0], [0]);
        state.write(0, &mut Params { scale: &mut scale, zero_point: &mut zero_point, offset: &mut [] });
        let (low, high) = if uniform.scheme == Scheme::Symmetric { (-8.0, 7.0) } else { (0.0, 15.0) };
        let zero = f32::from(zero_point[0]) * f32::from(u8::from(uniform.scheme != Scheme::Symmetric));
        let back = |x: f32| (((x / scale[0]).round_ties_even() + zero).clamp(low, high) - zero) * scale[0];
        let error = x.iter().map(|&x| f64::from(x - back(x)).powi(2)).sum();
        (scale[0], zero_point[0], error, rounds)
    }

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 211) as f32 / 97.0 - 1.1).map(|x| x * x * x).collect()
    }

    const SEARCH: How = How { search: true, stored: ScaleDtype::Own, norm: 2.0 };

    #[test]
    fn test_numbers_that_have_codes_are_found_whole() {
        let x: Vec<f32> = (0..32).map(|i| ((i % 16) as f32 - 8.0) * -0.375).collect();
        let (scale, _, error, _) = searched(&x, FOUR, SEARCH);
        // The lowest code stands for the largest number: by a negative scale.
        assert!((scale + 0.375).abs() < 1e-6 && error < 1e-11, "{scale} {error}");
        let x: Vec<f32> = (0..32).map(|i| ((i % 16) as f32 - 5.0) * 0.375).collect();
        let (scale, zero_point, error, _) = searched(&x, Uniform { scheme: Scheme::Asymmetric, ..FOUR }, SEARCH);
        assert!((scale - 0.375).abs() < 1e-6 && zero_point == 5 && error < 1e-11, "{scale} {zero_point} {error}");
    }

    #[test]
    fn test_a_search_ends_after_three_rounds_and_is_no_worse_than_the_plain_formula() {
        for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
            let (uniform, x) = (Uniform { scheme, ..FOUR }, numbers(48));
            let (plain, found) =
                (searched(&x, uniform, How { search: false, ..SEARCH }), searched(&x, uniform, SEARCH));
            assert_eq!(plain.3, 0);
            assert!((2..=4).contains(&found.3), "{}", found.3);
            assert!(found.2 < plain.2, "{scheme:?}: {} and {}", found.2, plain.2);
        }
    }

    #[test]
    fn test_a_group_of_zeros_has_the_plain_parameters() {
        let plain = searched(&[0.0; 8], FOUR, How { search: false, ..SEARCH });
        assert_eq!(searched(&[0.0; 8], FOUR, SEARCH).0, plain.0);
        assert_eq!(plain.0, 1.0);
    }

    #[test]
    fn test_a_norm_has_less_of_its_own_error_than_the_plain_formula() {
        let mut x = numbers(48);
        x[7] = 4.0;
        let sum = |scale: f32, norm: f64| {
            let miss = |x: f32| f64::from(x - (x / scale).round_ties_even().clamp(-8.0, 7.0) * scale).abs();
            x.iter().map(|&x| miss(x).powf(norm)).sum::<f64>()
        };
        let (plain, square) = (searched(&x, FOUR, How { search: false, ..SEARCH }).0, searched(&x, FOUR, SEARCH).0);
        for norm in [0.7, 2.4] {
            let scale = searched(&x, FOUR, How { norm, ..SEARCH }).0;
            let [found, plain, square] = [scale, plain, square].map(|scale| sum(scale, norm));
            // Near 2 both searches are on the same hill, and each ends somewhere on it.
            assert!(found < plain && found < 1.01 * square, "{norm}: {found} {plain} {square}");
        }
    }

    #[test]
    fn test_scales_are_found_as_they_are_stored() {
        let (scale, ..) = searched(&numbers(64), FOUR, How { stored: ScaleDtype::Bf16, ..SEARCH });
        assert_eq!(scale.to_bits() & 0xffff, 0);
    }
}

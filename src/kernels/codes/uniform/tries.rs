//! What the search of scales tries: the plain formula, a grid around it, and what was learned from those.

#![expect(clippy::needless_range_loop, reason = "lanes are indices into several arrays")]

use super::grid::{How, grid, units};
use super::params::{self, Range};
use super::tile::LANES;
use super::{Params, Scheme, Uniform};
use crate::real::Real;

/// A scale for each lane, in its unit, and a zero point, or an offset in the same unit.
///
/// In the grid the scales of symmetric codes are positive, and what stands for a negative one is the zero point one lower:
/// the codes with their signs changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Try<C> {
    pub(super) scale: [C; LANES],
    pub(super) shift: [C; LANES],
}

/// Where the search of a tile stands.
#[derive(Debug, Clone)]
pub(super) struct State<C> {
    pub(super) uniform: Uniform,
    pub(super) how: How,
    factors: Vec<f64>,
    pub(super) sides: &'static [f64],
    /// The range of each lane; with 0, but for offsets.
    range: [[C; LANES]; 2],
    /// The power of two that lanes are divided by, and its reciprocal.
    pub(super) unit: [C; LANES],
    pub(super) norm: [C; LANES],
    pub(super) tries: Vec<Try<C>>,
    /// Of each try, for each lane: of dd, dq and qq.
    pub(super) sums: Vec<[[f64; LANES]; 3]>,
    /// For offsets also of weights, d and q.
    pub(super) first_sums: Vec<[[f64; LANES]; 3]>,
    pub(super) round: usize,
    pub(super) best: Try<C>,
    pub(super) error: [f64; LANES],
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
            first_sums: vec![],
            round: 0,
            best: Try { scale: ones, shift: ones },
            error: [0.0; LANES],
        }
    }

    /// The range of nothing.
    pub(super) fn no_range(&self) -> [[C; LANES]; 2] {
        let ends = if self.has_offset() { [f64::INFINITY, f64::NEG_INFINITY] } else { [0.0; 2] };
        ends.map(|end| [C::from_f64(end); LANES])
    }

    #[inline(always)]
    pub(super) fn has_offset(&self) -> bool {
        self.uniform.scheme == Scheme::MinMax
    }

    /// Begin with lanes of these ranges.
    #[inline(always)]
    pub(super) fn start(&mut self, range: [[C; LANES]; 2]) {
        let zero = C::from_i16(0);
        for lane in 0..LANES {
            let [low, high] = [range[0][lane], range[1][lane]];
            let is_empty = low > high;
            let [low, high] = [if is_empty { zero } else { low }, if is_empty { zero } else { high }];
            [self.range[0][lane], self.range[1][lane]] = [low, high];
            let largest = if zero - low > high { zero - low } else { high };
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
    pub(super) fn clear_sums(&mut self) {
        self.sums.clear();
        self.sums.resize(self.tries.len(), [[0.0; LANES]; 3]);
        if self.has_offset() {
            self.first_sums.clear();
            self.first_sums.resize(self.tries.len(), [[0.0; LANES]; 3]);
        }
    }

    /// The middle code of symmetric ones, which stands for 0.
    #[inline(always)]
    pub(super) fn middle(&self) -> C {
        C::from_i16(1 << (self.uniform.bits - 1))
    }

    #[inline(always)]
    pub(super) fn levels(&self) -> C {
        C::from_i16((1 << self.uniform.bits) - 1)
    }

    /// The plain formula.
    #[inline(always)]
    fn plain(&self) -> Try<C> {
        let Uniform { bits, scheme, .. } = self.uniform;
        let mut scale = [C::from_i16(1); LANES];
        let mut shift = [self.middle(); LANES];
        for lane in 0..LANES {
            let range = Range::<C>([self.range[0][lane].key(), self.range[1][lane].key()]);
            scale[lane] = params::scale(scheme, bits, range);
        }
        self.how.stored.round(self.uniform.bits, &mut scale);
        if scheme == Scheme::Asymmetric {
            for lane in 0..LANES {
                let range = Range::<C>([self.range[0][lane].key(), self.range[1][lane].key()]);
                shift[lane] = C::from_i16(params::zero_point(bits, range, scale[lane]) as i16);
            }
        }
        if scheme == Scheme::MinMax {
            for lane in 0..LANES {
                shift[lane] = self.range[0][lane] * self.norm[lane];
            }
        }
        for lane in 0..LANES {
            scale[lane] = scale[lane] * self.norm[lane];
        }
        Try { scale, shift }
    }

    /// A try of the grid; those of one factor have one scale.
    #[inline(always)]
    fn of_grid(&self, factor: f64, side: f64) -> Try<C> {
        let (zero, one) = (C::from_i16(0), C::from_i16(1));
        let (levels, middle) = (self.levels(), self.middle());
        let slack = C::from_f64(side * (1.0 - factor));
        let (part, factor) = (C::from_f64(factor) / levels, C::from_f64(factor));
        let (mut scale, mut low, mut width) = ([one; LANES], self.range[0], self.range[1]);
        for lane in 0..LANES {
            low[lane] = low[lane] * self.norm[lane];
            width[lane] = width[lane] * self.norm[lane] - low[lane];
            scale[lane] = if width[lane] > zero { width[lane] * part } else { one };
        }
        // (One loop with this match in it would not be vectorised.)
        let mut shift = [middle; LANES];
        match self.uniform.scheme {
            Scheme::Symmetric => {
                for lane in 0..LANES {
                    let (low, high) = (zero - low[lane], self.range[1][lane] * self.norm[lane]);
                    let largest = if low > high { low } else { high };
                    scale[lane] = if width[lane] > zero { largest * factor / middle } else { one };
                    shift[lane] = if side < 0.0 { middle - one } else { middle };
                }
            }
            Scheme::Asymmetric => {
                for lane in 0..LANES {
                    let z = zero - (low[lane] + width[lane] * slack) / scale[lane];
                    let z = if z > zero { z } else { zero };
                    let z = if z < levels { z } else { levels };
                    shift[lane] = z + C::ROUNDING - C::ROUNDING;
                }
            }
            Scheme::MinMax => {
                for lane in 0..LANES {
                    shift[lane] = low[lane] + width[lane] * slack;
                }
            }
        }
        Try { scale, shift }
    }

    /// Whether there is something to measure.
    #[inline(always)]
    pub(super) fn has_tries(&self) -> bool {
        !self.tries.is_empty()
    }

    /// Write the parameters of a lane to the first part.
    pub(super) fn write(&self, lane: usize, params: &mut Params<'_, C>) {
        params.scale[0] = self.best.scale[lane] * self.unit[lane];
        if let Some(zero_point) = params.zero_point.first_mut() {
            *zero_point = self.best.shift[lane].round_to_byte();
        }
        if let Some(offset) = params.offset.first_mut() {
            *offset = self.best.shift[lane] * self.unit[lane];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::grid::ScaleDtype;
    use super::super::tile::{Source, Tile};
    use super::*;

    const FOUR: Uniform = Uniform { bits: 4, scheme: Scheme::Symmetric, offset_binary: false, signed: false };

    /// Scale and zero point or offset of the first group of a search, its squared error, and how often codes were made.
    fn searched(x: &[f32], uniform: Uniform, how: How) -> (f32, f32, f64, usize) {
        let source = Source { x, weights: &[], row: x.len(), size: x.len(), cols: x.len() };
        let has_offset = uniform.scheme == Scheme::MinMax;
        let (mut tile, mut state) = (Tile::new(&source, has_offset), State::<f32>::new(uniform, how, x.len()));
        tile.load(&source, &source.groups(0), 0, &[1.0; LANES], f32::NAN);
        let mut range = state.no_range();
        tile.widen(&mut range);
        state.start(range);
        tile.scale(&state.norm);
        let mut rounds = 0;
        while state.has_tries() {
            state.measure(&tile);
            state.learn();
            rounds += 1;
        }
        let (mut scale, mut zero_point, mut offset) = ([0.0], [0], [0.0]);
        state.write(0, &mut Params { scale: &mut scale, zero_point: &mut zero_point, offset: &mut offset });
        let (scale, zero) = (scale[0], f32::from(zero_point[0]));
        let back = |x: f32| match uniform.scheme {
            Scheme::Symmetric => (x / scale).round_ties_even().clamp(-8.0, 7.0) * scale,
            Scheme::Asymmetric => (((x / scale).round_ties_even() + zero).clamp(0.0, 15.0) - zero) * scale,
            Scheme::MinMax => ((x - offset[0]) / scale).round_ties_even().clamp(0.0, 15.0) * scale + offset[0],
        };
        let error = x.iter().map(|&x| f64::from(x - back(x)).powi(2)).sum();
        (scale, if has_offset { offset[0] } else { zero }, error, rounds)
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
        assert!((scale - 0.375).abs() < 1e-6 && zero_point == 5.0 && error < 1e-11, "{scale} {zero_point} {error}");
        let x: Vec<f32> = (0..32).map(|i| ((i % 16) as f32 + 50.3) * 0.375).collect();
        let (scale, offset, error, _) = searched(&x, Uniform { scheme: Scheme::MinMax, ..FOUR }, SEARCH);
        assert!((scale - 0.375).abs() < 1e-6 && (offset - 18.8625).abs() < 1e-5 && error < 1e-9, "{offset} {error}");
    }

    #[test]
    fn test_a_search_ends_after_some_rounds_and_is_better_than_the_plain_formula() {
        for scheme in [Scheme::Symmetric, Scheme::Asymmetric, Scheme::MinMax] {
            let (uniform, x) = (Uniform { scheme, ..FOUR }, numbers(48));
            let (plain, found) =
                (searched(&x, uniform, How { search: false, ..SEARCH }), searched(&x, uniform, SEARCH));
            assert_eq!(plain.3, 0);
            assert!((2..=6).contains(&found.3), "{}", found.3);
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

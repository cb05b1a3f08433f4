//! What the search of scales learns from what it measured: which try is the best, and the best parameters for its codes.

#![expect(clippy::needless_range_loop, reason = "lanes are indices into several arrays")]

use super::Scheme;
use super::power::error;
use super::tile::LANES;
use super::tries::{State, Try};
use crate::real::Real;

/// What a searched scale must be better by than the plain formula: more than the sums are rounded by.
const BETTER: f64 = 1.0 - 1.0 / 4096.0;
/// Steps of the dtype below the largest number that a number with an offset is off by when it is measured or decoded, at most.
const STEPS: f64 = 8.0;

/// Sums of one try.
type Sums = [[f64; LANES]; 3];

impl<C: Real> State<C> {
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
                    let plain =
                        error(self.tries[0].scale[lane].to_f64(), self.sums[0][0][lane], self.how.norm) * BETTER;
                    // Of other norms the inequality doesn't hold.
                    let is_square = self.has_offset() && self.how.norm == 2.0;
                    self.error[lane] = if is_square { self.above_rounding(plain, lane) } else { plain };
                }
            }
            let next = self.take_last();
            self.tries.clear();
            next
        };
        if self.round < self.rounds() {
            self.tries.push(next);
        }
        self.round += 1;
        self.clear_sums();
    }

    /// What an error of the plain formula is at least, and one that is found at most, whatever is rounded: 0 where it may be
    /// that of nothing else. By the triangle inequality, with the largest number between 1 and 2.
    #[inline(always)]
    fn above_rounding(&self, plain: f64, lane: usize) -> f64 {
        let step = 1.5 / C::ROUNDING.to_f64();
        let least = plain.sqrt() - 2.0 * STEPS * step * self.first_sums[0][0][lane].sqrt();
        if least > 0.0 { least * least } else { 0.0 }
    }

    /// How often codes are made with the best scale for the last ones.
    #[inline(always)]
    fn rounds(&self) -> usize {
        match (self.uniform.scheme, self.uniform.bits) {
            (Scheme::MinMax, _) => 4,
            (_, 8) => 3,
            _ => 2,
        }
    }

    /// The best of the grid, with the best parameters for its codes.
    #[inline(always)]
    fn best_of_grid(&self) -> Try<C> {
        // Errors are fractions, compared without a division. Plain loops over lanes of one type: they are vectorised.
        let (mut above, mut below, mut best) = ([f64::INFINITY; LANES], [1.0; LANES], [0.0; LANES]);
        for (i, given) in self.tries.iter().enumerate() {
            let [dd, dq, qq] = self.centred(i);
            let under = some(&qq);
            let mut over = [0.0; LANES];
            for lane in 0..LANES {
                let scale = given.scale[lane].to_f64();
                over[lane] = scale * scale * (dd[lane] * under[lane] - dq[lane] * dq[lane]);
            }
            if self.how.norm != 2.0 {
                // What another scale makes of these codes can't be told.
                for lane in 0..LANES {
                    let missed = self.sums[i][0][lane];
                    over[lane] = error(given.scale[lane].to_f64(), missed, self.how.norm) * under[lane];
                }
            }
            for lane in 0..LANES {
                let better = over[lane] * below[lane] < above[lane] * under[lane];
                above[lane] = if better { over[lane] } else { above[lane] };
                below[lane] = if better { under[lane] } else { below[lane] };
                best[lane] = if better { i as f64 } else { best[lane] };
            }
        }
        self.chosen(&best)
    }

    /// The sums of a try; with offsets those of numbers and codes less their means.
    #[inline(always)]
    fn centred(&self, i: usize) -> Sums {
        if self.has_offset() { centred(&self.sums[i], &self.first_sums[i]) } else { self.sums[i] }
    }

    /// The tries that are best for each lane, with the best parameters for their codes.
    #[inline(always)]
    fn chosen(&self, best: &[f64; LANES]) -> Try<C> {
        let (mut given, mut sums, mut first) = (self.best, [[0.0; LANES]; 3], [[0.0; LANES]; 3]);
        for lane in 0..LANES {
            let i = best[lane] as usize;
            (given.scale[lane], given.shift[lane]) = (self.tries[i].scale[lane], self.tries[i].shift[lane]);
            for (sum, of) in sums.iter_mut().zip(&self.sums[i]) {
                sum[lane] = of[lane];
            }
            if let Some(of) = self.first_sums.get(i) {
                for (sum, of) in first.iter_mut().zip(of) {
                    sum[lane] = of[lane];
                }
            }
        }
        if self.uniform.scheme == Scheme::Symmetric {
            let middle = self.middle();
            for lane in 0..LANES {
                let scale = given.scale[lane];
                given.scale[lane] = if given.shift[lane] < middle { C::from_i16(0) - scale } else { scale };
                given.shift[lane] = middle;
            }
        }
        self.refit(given, &sums, &first)
    }

    /// Keep the last try where it is the best; with the best parameters for its codes.
    #[inline(always)]
    fn take_last(&mut self) -> Try<C> {
        let last = self.tries.len() - 1;
        let (given, sums) = (self.tries[last], self.sums[last]);
        for lane in 0..LANES {
            let found = error(given.scale[lane].to_f64(), sums[0][lane], self.how.norm);
            let better = found < self.error[lane];
            self.error[lane] = if better { found } else { self.error[lane] };
            self.best.scale[lane] = if better { given.scale[lane] } else { self.best.scale[lane] };
            self.best.shift[lane] = if better { given.shift[lane] } else { self.best.shift[lane] };
        }
        self.refit(given, &sums, &self.first_sums.get(last).copied().unwrap_or([[0.0; LANES]; 3]))
    }

    /// The best scale for codes, as it is stored; and the best offset.
    #[inline(always)]
    fn refit(&self, given: Try<C>, sums: &Sums, first: &Sums) -> Try<C> {
        let Try { mut scale, mut shift } = given;
        let [_, dq, qq] = if self.has_offset() { centred(sums, first) } else { *sums };
        let qq = some(&qq);
        if self.has_offset() {
            let [weights, d, q] = first;
            let weights = some(weights);
            for lane in 0..LANES {
                let miss = (d[lane] - dq[lane] / qq[lane] * q[lane]) / weights[lane];
                shift[lane] = C::from_f64(shift[lane].to_f64() + scale[lane].to_f64() * miss);
            }
        }
        for lane in 0..LANES {
            let of_unit = given.scale[lane].to_f64() * (1.0 + dq[lane] / qq[lane]);
            scale[lane] = C::from_f64(of_unit * self.unit[lane].to_f64());
        }
        self.how.stored.round(self.uniform.bits, &mut scale);
        for lane in 0..LANES {
            scale[lane] = scale[lane] * self.norm[lane];
        }
        Try { scale, shift }
    }
}

/// Sums of dd, dq and qq as they are when means are taken from d and q: 0 where all codes are one.
#[inline(always)]
fn centred([dd, dq, qq]: &Sums, [weights, d, q]: &Sums) -> Sums {
    let weights = some(weights);
    let mut of = [[0.0; LANES]; 3];
    for lane in 0..LANES {
        let square = qq[lane] - q[lane] * q[lane] / weights[lane];
        // What is left by rounding is no difference of codes.
        let differ = square > qq[lane] * 1e-9;
        of[0][lane] = dd[lane] - d[lane] * d[lane] / weights[lane];
        of[1][lane] = if differ { dq[lane] - d[lane] * q[lane] / weights[lane] } else { 0.0 };
        of[2][lane] = if differ { square } else { 0.0 };
    }
    of
}

/// What can be divided by: 1 where all codes, and so all products with them, are 0.
#[inline(always)]
fn some(qq: &[f64; LANES]) -> [f64; LANES] {
    let mut some = [1.0; LANES];
    for lane in 0..LANES {
        some[lane] = if qq[lane] > 0.0 { qq[lane] } else { 1.0 };
    }
    some
}

//! How the search of scales measures what it tries, tile by tile.

#![expect(clippy::needless_range_loop, reason = "lanes are indices into several arrays")]

use super::tile::{LANES, Tile};
use super::tries::{State, Try};
use crate::real::Real;

/// The sums of some tries, and the first sums of offsets.
pub(super) type Sums = [Vec<[f64; 3]>; 2];

impl<C: Real> State<C> {
    /// Add up what the tries make of a tile.
    #[inline(always)]
    pub(super) fn measure(&mut self, tile: &Tile<C>) {
        // Of 8 bits what is missed is so little that it would be lost in a difference of sums.
        let by_sides = self.round == 0 && self.how.norm == 2.0 && self.uniform.bits < 8;
        let [mut all, mut first] = [std::mem::take(&mut self.sums), std::mem::take(&mut self.first_sums)];
        match (by_sides, self.sides.len()) {
            _ if self.has_offset() => self.measure_offsets(tile, &mut all, &mut first),
            (true, 1) => self.measure_sides::<1>(tile, &mut all),
            (true, 2) => self.measure_sides::<2>(tile, &mut all),
            (true, 3) => self.measure_sides::<3>(tile, &mut all),
            _ => self.measure_each(tile, &mut all),
        }
        (self.sums, self.first_sums) = (all, first);
    }

    #[inline(always)]
    fn measure_each(&self, tile: &Tile<C>, all: &mut [[[f64; LANES]; 3]]) {
        let norm = self.how.norm;
        for (given, sums) in self.tries.iter().zip(all) {
            let (factor, bounds) = (inverse(&given.scale), self.bounds(given));
            let more =
                if norm == 2.0 { tile.sums(&factor, &bounds) } else { tile.sums_of_norm(&factor, &bounds, norm) };
            add(sums, &more);
        }
    }

    /// The same for the tries of each factor at once; dd without the sum of all tt, which is the same for all scales.
    #[inline(always)]
    fn measure_sides<const N: usize>(&self, tile: &Tile<C>, all: &mut [[[f64; LANES]; 3]]) {
        for (given, sums) in self.tries.as_chunks::<N>().0.iter().zip(all.as_chunks_mut::<N>().0) {
            let bounds = given.each_ref().map(|given| self.bounds(given));
            let more = tile.sums_of_sides(&inverse(&given[0].scale), &bounds);
            for (sums, [tq, qq]) in sums.iter_mut().zip(&more) {
                for lane in 0..LANES {
                    let (tq, qq) = (tq[lane].to_f64(), qq[lane].to_f64());
                    sums[0][lane] += qq - 2.0 * tq;
                    sums[1][lane] += tq - qq;
                    sums[2][lane] += qq;
                }
            }
        }
    }

    #[inline(always)]
    fn measure_offsets(&self, tile: &Tile<C>, all: &mut [[[f64; LANES]; 3]], first: &mut [[[f64; LANES]; 3]]) {
        for ((given, sums), first) in self.tries.iter().zip(all).zip(first) {
            let (factor, levels) = (inverse(&given.scale), self.levels());
            let [more, more_first] = tile.sums_of_offset(&factor, &given.shift, levels, self.how.norm);
            add(sums, &more);
            add(first, &more_first);
        }
    }

    /// The codes of a try, less its zero point.
    #[inline(always)]
    fn bounds(&self, given: &Try<C>) -> [[C; LANES]; 2] {
        let levels = self.levels();
        let mut bounds = [given.shift; 2];
        for lane in 0..LANES {
            bounds[0][lane] = C::from_i16(0) - given.shift[lane];
            bounds[1][lane] = levels - given.shift[lane];
        }
        bounds
    }

    /// Add to the sums of all lanes, which are one group.
    pub(super) fn add(&mut self, [more, more_first]: &Sums) {
        for (sums, more) in [(&mut self.sums, more), (&mut self.first_sums, more_first)] {
            for (sums, more) in sums.iter_mut().zip(more) {
                for (sum, more) in sums.iter_mut().zip(more) {
                    for sum in sum.iter_mut() {
                        *sum += more;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn add<C: Real>(sums: &mut [[f64; LANES]; 3], more: &[[C; LANES]; 3]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        for lane in 0..LANES {
            sum[lane] += more[lane].to_f64();
        }
    }
}

/// 1 / scale.
#[inline(always)]
fn inverse<C: Real>(scale: &[C; LANES]) -> [C; LANES] {
    let mut inverse = *scale;
    for lane in 0..LANES {
        inverse[lane] = C::from_i16(1) / scale[lane];
    }
    inverse
}

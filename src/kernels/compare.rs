//! How far two arrays are apart: the sums behind SQNR and cosine, and the largest error, in one pass.

use crate::isa::kernel;
use crate::kernels::number::each_computed;
use crate::par::{self, CHUNK};
use crate::real::{Element, Real};

const LANES: usize = 16;

/// Sums over two arrays, in f64.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Sum of x².
    pub xx: f64,
    /// Sum of y².
    pub yy: f64,
    /// Sum of x y.
    pub xy: f64,
    /// Sum of (x - y)².
    pub dd: f64,
    /// Largest |x - y|; NaN if there is one.
    pub max: f64,
}

/// The larger of two non-negative numbers; NaN if either is (its bits are above infinity's).
#[inline(always)]
fn max_bits(a: f64, b: f64) -> f64 {
    f64::from_bits((a.to_bits() & (u64::MAX >> 1)).max(b.to_bits() & (u64::MAX >> 1)))
}

/// The sums of a chunk, a lane each.
#[derive(Default)]
struct Lanes([[f64; LANES]; 5]);

impl Lanes {
    fn total(self) -> Stats {
        let [xx, yy, xy, dd, max] = self.0;
        let lane = |i: usize| Stats { xx: xx[i], yy: yy[i], xy: xy[i], dd: dd[i], max: max[i] };
        (0..LANES).map(lane).fold(Stats::default(), merge)
    }
}

kernel! {
    /// Go on with the next of a chunk: whole lanes, but for the last.
    fn add<A: Real, B: Real>(x: &[A], y: &[B], lanes: &mut Lanes) {
        let [mut xx, mut yy, mut xy, mut dd, mut max] = lanes.0;
        let (xs, x_tail) = x.as_chunks::<LANES>();
        let (ys, y_tail) = y.as_chunks::<LANES>();
        for (x, y) in xs.iter().zip(ys) {
            for i in 0..LANES {
                let (a, b) = (x[i].to_f64(), y[i].to_f64());
                let d = a - b;
                xx[i] += a * a;
                yy[i] += b * b;
                xy[i] += a * b;
                dd[i] += d * d;
                max[i] = max_bits(max[i], d);
            }
        }
        lanes.0 = [xx, yy, xy, dd, max];
        let [xx, yy, xy, dd, max] = &mut lanes.0;
        for (i, (a, b)) in x_tail.iter().zip(y_tail).enumerate() {
            let (a, b) = (a.to_f64(), b.to_f64());
            let d = a - b;
            xx[i] += a * a;
            yy[i] += b * b;
            xy[i] += a * b;
            dd[i] += d * d;
            max[i] = max_bits(max[i], d);
        }
    }
}

/// The sums of a chunk.
fn chunk<A: Element, B: Element>(x: &[A], y: &[B]) -> Stats {
    let mut lanes = Lanes::default();
    each_computed(x, y, &mut (Vec::new(), Vec::new()), |x, y| add(x, y, &mut lanes));
    lanes.total()
}

fn merge(a: Stats, b: Stats) -> Stats {
    Stats { xx: a.xx + b.xx, yy: a.yy + b.yy, xy: a.xy + b.xy, dd: a.dd + b.dd, max: max_bits(a.max, b.max) }
}

/// Compare two arrays of one length.
pub fn stats<A: Element, B: Element>(x: &[A], y: &[B], threads: usize) -> Stats {
    par::map(threads, x.chunks(CHUNK).zip(y.chunks(CHUNK)), |(x, y)| chunk(x, y))
        .into_iter()
        .fold(Stats::default(), merge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_stats_match_the_definition_and_nan_propagates() {
        let x: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let y: Vec<f64> = (0..100).map(|i| f64::from(i) + if i == 50 { -3.0 } else { 0.0 }).collect();
        let s = stats(&x, &y, 2);
        assert_eq!((s.xx, s.dd, s.max), (328_350.0, 9.0, 3.0));
        assert_eq!(s.xy, 328_350.0 - 150.0);
        let mut y = y;
        y[99] = f64::NAN;
        assert!(stats(&x, &y, 1).max.is_nan());
    }
}

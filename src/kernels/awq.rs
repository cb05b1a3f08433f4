//! AWQ (Lin et al. 2023, arXiv 2306.00978): inputs that are large have their weights multiplied before they are rounded.
//!
//! The factors are powers of the inputs' magnitudes, one exponent for the layer, the best of a grid. Rows are tiles of work,
//! and each sum has one order.

use std::iter;

use super::codes::uniform::{self, How, Params};
use super::codes::{Granularity, Policy, Scheme, Spec, Uniform};
use crate::isa::kernel;
use crate::kernels::reduce::sum_of_lanes;
use crate::par;
use crate::real::{Element, Real};

/// Rows of one piece of work.
const TILE: usize = 64;

/// Sums of an error.
const LANES: usize = 32;

/// How weights are rounded, and what is tried.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The code.
    pub uniform: Uniform,
    /// Columns of a row that share a scale.
    pub size: usize,
    /// How scales are found.
    pub how: How,
    /// The mean magnitude of each input.
    pub magnitudes: &'a [f64],
    /// How much the squared error of each column counts.
    pub counts: &'a [f64],
    /// Exponents that are tried: 0, and so many in all below 1.
    pub grid: usize,
}

kernel! {
    /// The sum of what the errors of rows count.
    fn error<C: Real>(x: &[C], rounded: &[C], factors: &[C], counts: &[f64]) -> f64 {
        let n = factors.len();
        let mut sums = [0.0; LANES];
        for (x, rounded) in x.chunks(n).zip(rounded.chunks(n)) {
            let columns = x.chunks(LANES).zip(rounded.chunks(LANES)).zip(factors.chunks(LANES).zip(counts.chunks(LANES)));
            for ((x, rounded), (factors, counts)) in columns {
                for l in 0..x.len() {
                    let lost = x[l].to_f64() - (rounded[l] / factors[l]).to_f64();
                    sums[l] += lost * lost * counts[l];
                }
            }
        }
        sum_of_lanes(sums)
    }
}

/// The factors of an exponent: 1 for 0; their largest and their smallest are reciprocals of each other.
fn factors<C: Real>(magnitudes: &[f64], exponent: f64) -> Vec<C> {
    let powers: Vec<f64> = magnitudes.iter().map(|m| m.powf(exponent).max(1e-4)).collect();
    let (least, most) = powers.iter().fold((f64::INFINITY, 0.0f64), |(a, b), &p| (a.min(p), b.max(p)));
    let middle = (least * most).sqrt();
    powers.iter().map(|p| C::from_f64(p / middle)).collect()
}

impl Plan<'_> {
    /// The error that rows have with these factors.
    fn error_of<T: Element>(&self, x: &[T], factors: &[T::Compute]) -> f64 {
        let (n, zero) = (factors.len(), T::Compute::from_i16(0));
        let own: Vec<T::Compute> = x.iter().map(|x| x.load()).collect();
        let scaled: Vec<_> = own.chunks(n).flat_map(|x| x.iter().zip(factors)).map(|(&x, &f)| x * f).collect();
        let mut rounded = vec![zero; scaled.len()];
        let spec = Spec { granularity: Granularity::Group { size: self.size }, cols: n };
        if self.how.is_plain() {
            // Finite weights times such factors may be infinite; then so is their error.
            let _ = uniform::fake_quantize(&scaled, self.uniform, spec, Policy::Saturate, &mut rounded, 1);
        } else {
            let parts = spec.scales(scaled.len());
            let of = |scheme| if self.uniform.scheme == scheme { parts } else { 0 };
            let (mut zero_point, mut offset) = (vec![0; of(Scheme::Asymmetric)], vec![zero; of(Scheme::MinMax)]);
            let mut scale = vec![zero; parts];
            let mut params = Params { scale: &mut scale, zero_point: &mut zero_point, offset: &mut offset };
            uniform::find_scales(
                &scaled,
                &self.importances(factors),
                (self.uniform, spec),
                self.how,
                params.from(0),
                1,
            );
            uniform::fake_quantize_given(&scaled, self.uniform, spec, &mut rounded, params.as_ref(), 1);
        }
        error(&own, &rounded, factors, self.counts)
    }

    /// How much the errors of columns that were multiplied count in the search of scales.
    fn importances<C: Real>(&self, factors: &[C]) -> Vec<f32> {
        let of: Vec<f64> = self.counts.iter().zip(factors).map(|(count, f)| count / f.to_f64().powi(2)).collect();
        let most = of.iter().fold(0.0f64, |a, &b| a.max(b));
        of.iter().map(|count| if most > 0.0 { (count / most) as f32 } else { 1.0 }).collect()
    }
}

/// Write the best factors; the first of equal ones. The errors of all exponents.
pub fn awq<T: Element>(x: &[T], plan: &Plan<'_>, out: &mut [T::Compute], threads: usize) -> Vec<f64> {
    let n = plan.magnitudes.len();
    out.fill(T::Compute::from_i16(1));
    if x.is_empty() {
        return vec![0.0; plan.grid];
    }
    let mut errors: Vec<f64> = vec![];
    for i in 0..plan.grid {
        // In par, whose float environment is the default.
        let factors =
            par::map(1, iter::once(i as f64 / plan.grid as f64), |exponent| factors(plan.magnitudes, exponent));
        let of = par::map(threads, x.chunks(TILE * n), |x| plan.error_of(x, &factors[0]));
        let total = par::map(1, iter::once(of), |of| of.into_iter().fold(0.0, |a, b| a + b))[0];
        if errors.iter().all(|&error| total < error) {
            out.copy_from_slice(&factors[0]);
        }
        errors.push(total);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::codes::uniform::ScaleDtype;

    #[test]
    fn test_the_best_exponent_is_taken_and_none_where_all_inputs_are_equal() {
        let n = 40;
        let x: Vec<f32> = (0..70 * n).map(|k| ((k * 7919) % 1009) as f32 - 504.3).collect();
        let uniform = Uniform { bits: 4, scheme: Scheme::Symmetric, offset_binary: false, signed: false };
        for magnitudes in [vec![3.0; n], (0..n).map(|j| 0.1 + (j % 7) as f64).collect::<Vec<_>>()] {
            let counts: Vec<f64> = magnitudes.iter().map(|m| m * m).collect();
            for search in [false, true] {
                let how = How { search, stored: ScaleDtype::Own, norm: 2.0 };
                let plan = Plan { uniform, size: 16, how, magnitudes: &magnitudes, counts: &counts, grid: 10 };
                let mut out = vec![0.0f32; n];
                let errors = awq(&x, &plan, &mut out, 2);
                let least = errors.iter().fold(f64::INFINITY, |a, &b| a.min(b));
                let best = errors.iter().position(|&error| error == least).unwrap();
                assert_eq!(out, factors::<f32>(&magnitudes, best as f64 / 10.0));
                assert_eq!(best == 0, magnitudes[0] == magnitudes[1], "{errors:?}");
            }
        }
    }
}

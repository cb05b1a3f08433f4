//! Floats of 16 bits, by way of float32 in the cache: the loops that make codes are compiled for what is computed in alone.

use super::code::Codes;
use super::groups::{self, IN_L1, store_params};
use super::mode::Mode;
use super::params::Range;
use super::runs::{self, code_by_element};
use super::tiling::{Runs, Tiling};
use super::{Params, ParamsRef, Uniform};
use crate::kernels::number::load;
use crate::kernels::reduce::{FiniteMinMax, MinMax, reduce_all};
use crate::real::{Element, Real};

/// As [`groups::code_groups`], of numbers that need no widening at once; of others a code a byte.
pub(super) fn code_groups<T: Element, M: Mode>(
    x: &[T],
    tiling: Tiling,
    uniform: Uniform,
    codes: &mut [u8],
    to: (u32, bool),
    mut params: Params<'_, T::Compute>,
) -> bool {
    if let Some(x) = T::as_computed(x) {
        return groups::code_groups::<T::Compute, M, Codes>(x, tiling, uniform, codes, to, params);
    }
    let (row, size) = (tiling.row.min(x.len()), tiling.run);
    let in_batch = (IN_L1 / size).max(1) * size;
    let mut buffer = [T::Compute::ZERO; IN_L1];
    let (mut finite, mut first) = (true, 0);
    for (row, codes) in x.chunks(row).zip(codes.chunks_mut(row)) {
        for (x, codes) in row.chunks(in_batch).zip(codes.chunks_mut(in_batch)) {
            let own = params.from(first);
            first += x.len().div_ceil(size);
            finite &= if x.len() > IN_L1 {
                code_long_group::<T, M>(x, uniform, codes, to, own)
            } else {
                let wide = &mut buffer[..x.len()];
                load(x, wide);
                groups::code_groups::<T::Compute, M, Codes>(wide, tiling, uniform, codes, to, own)
            };
        }
    }
    finite
}

/// The same of one group that is longer than the buffer: its range is found in 16 bits.
fn code_long_group<T: Element, M: Mode>(
    x: &[T],
    uniform: Uniform,
    codes: &mut [u8],
    (_, streamed): (u32, bool),
    mut params: Params<'_, T::Compute>,
) -> bool {
    let ends = if M::SCHEME.is_some() { reduce_all::<T, MinMax>(x, 1) } else { reduce_all::<T, FiniteMinMax>(x, 1) };
    let range = Range::<T>(ends);
    store_params(M::scheme(uniform), uniform.bits, std::iter::once(range), &mut params);
    code_runs::<T, M>(x, Runs::one(x.len(), 0), (uniform, params.as_ref(), streamed), codes);
    !range.is_nonfinite()
}

/// Codes, a byte each, where the parameters are known; of numbers that need no widening at once.
pub(super) fn code_runs<T: Element, M: Mode>(
    x: &[T],
    mut runs: Runs,
    how: (Uniform, ParamsRef<'_, T::Compute>, bool),
    codes: &mut [u8],
) {
    if let Some(x) = T::as_computed(x) {
        code_computed::<T::Compute, M>(x, runs, how, codes);
        return;
    }
    let mut buffer = [T::Compute::ZERO; IN_L1];
    for (x, codes) in x.chunks(IN_L1).zip(codes.chunks_mut(IN_L1)) {
        let wide = &mut buffer[..x.len()];
        load(x, wide);
        runs = code_computed::<T::Compute, M>(wide, runs, how, codes);
    }
}

fn code_computed<C: Real, M: Mode>(
    x: &[C],
    runs: Runs,
    how: (Uniform, ParamsRef<'_, C>, bool),
    codes: &mut [u8],
) -> Runs {
    if runs.is_by_element() {
        code_by_element::<C, M>(x, runs, how.0, how.1, codes)
    } else {
        runs::code_runs::<C, M, Codes>(x, runs, how, codes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Scheme, fake_quantize, quantize};
    use super::*;
    use crate::kernels::codes::{Granularity, Policy, Spec};
    use crate::kernels::pack::packed_len;
    use crate::real::{Bf16, F16};

    type Made = (Vec<u8>, Vec<u32>, Vec<u8>, bool);

    /// Codes, scales and offsets, zero points, and whether it was finite.
    fn codes_of<T: Element<Compute = f32>>(x: &[T], uniform: Uniform, spec: Spec, policy: Policy) -> Made {
        let parts = spec.scales(x.len());
        let (mut scale, mut zero_point, mut offset) = (vec![0.0; parts], vec![], vec![]);
        match uniform.scheme {
            Scheme::Symmetric => {}
            Scheme::Asymmetric => zero_point = vec![0; parts],
            Scheme::MinMax => offset = vec![0.0; parts],
        }
        let mut codes = vec![0; x.len() / spec.cols * packed_len(spec.cols, uniform.bits)];
        let params = Params { scale: &mut scale, zero_point: &mut zero_point, offset: &mut offset };
        let finite = quantize(x, uniform, spec, policy, &mut codes, params, 2).is_ok();
        (codes, scale.into_iter().chain(offset).map(f32::to_bits).collect(), zero_point, finite)
    }

    fn check<T: Element<Compute = f32>>(of_bits: impl Fn(u16) -> T) {
        let cols = 3001;
        let finite = |i: usize| of_bits(((i * 40_503) as u16 & 0xbfff) | ((i as u16 & 3) << 8));
        let mut x: Vec<T> = (0..4 * cols).map(finite).collect();
        let granularities =
            [1, 7, 32, 1024, 1500].map(|size| Granularity::Group { size }).into_iter().chain([Granularity::Whole]);
        let granularities = granularities.chain([
            Granularity::Channel { outer: 1, channels: 4, inner: cols },
            Granularity::Channel { outer: 4, channels: cols, inner: 1 },
        ]);
        let cases: Vec<_> = granularities
            .flat_map(|granularity| [8, 4, 2].map(|bits| (granularity, bits)))
            .flat_map(|case| [Scheme::Symmetric, Scheme::Asymmetric, Scheme::MinMax].map(|scheme| (case, scheme)))
            .collect();
        for policy in [Policy::Raise, Policy::Saturate] {
            for &((granularity, bits), scheme) in &cases {
                let (uniform, spec) =
                    (Uniform { bits, scheme, offset_binary: false, signed: false }, Spec { granularity, cols });
                let wide: Vec<f32> = x.iter().map(|x| x.load()).collect();
                let what = format!("{bits} {scheme:?} {granularity:?} {policy:?}");
                assert_eq!(codes_of(&x, uniform, spec, policy), codes_of(&wide, uniform, spec, policy), "{what}");
                let (mut got, mut want) = (x.clone(), wide.clone());
                fake_quantize(&x, uniform, spec, policy, &mut got, 2).expect("allowed");
                fake_quantize(&wide, uniform, spec, policy, &mut want, 2).expect("allowed");
                let same = got.iter().zip(want).all(|(got, want)| got.to_bits64() == T::store(want).to_bits64());
                assert!(same, "{what}");
            }
            // What is saturated: in a short group, in a long one, and a group of nothing else.
            let odd = [of_bits(0x7fff), T::store(f32::INFINITY), T::store(f32::NEG_INFINITY)];
            for (i, at) in [5, 900, 2999, cols + 40, 2 * cols].into_iter().enumerate() {
                x[at] = odd[i % odd.len()];
            }
            x[3 * cols..].fill(odd[0]);
        }
    }

    #[test]
    fn test_a_float_of_16_bits_has_the_code_and_the_number_of_its_float32() {
        check(F16);
        check(Bf16);
    }
}

//! Floats of 16 bits, by way of float32 in the cache: the loops that make codes are compiled for what is computed in alone.
//!
//! One thread, bfloat16: codes take 1.1 to 1.3, numbers 1.2 to 1.7 of the time that loops of their own took, which were a
//! tenth of the library.

use super::code::{Codes, Make, Numbers};
use super::groups::{self, IN_L1, store_params};
use super::mode::Mode;
use super::params::Range;
use super::runs;
use super::tiling::{Runs, Tiling};
use super::{Params, ParamsRef, Uniform};
use crate::kernels::number::{load, store};
use crate::kernels::reduce::{FiniteMinMax, MinMax, reduce_all};
use crate::real::{Element, Real};

/// What is made of floats that may have to be widened.
pub(super) trait Store<T: Element>: Make<T::Compute> {
    /// What it is stored as.
    type Stored: Copy + Send;
    /// Where it is stored, if it is made there.
    fn in_place(out: &mut [Self::Stored]) -> Option<&mut [Self::Item]>;
    /// Have `f` make so much, at most [`IN_L1`], and store it.
    fn write(out: &mut [Self::Stored], f: impl FnOnce(&mut [Self::Item]));
}

impl<T: Element> Store<T> for Codes {
    type Stored = u8;
    fn in_place(out: &mut [u8]) -> Option<&mut [u8]> {
        Some(out)
    }
    fn write(out: &mut [u8], f: impl FnOnce(&mut [u8])) {
        f(out);
    }
}

impl<T: Element> Store<T> for Numbers {
    type Stored = T;
    fn in_place(out: &mut [T]) -> Option<&mut [T::Compute]> {
        T::Compute::own_mut(out)
    }
    fn write(out: &mut [T], f: impl FnOnce(&mut [T::Compute])) {
        let mut made = [T::Compute::ZERO; IN_L1];
        let made = &mut made[..out.len()];
        f(made);
        store(made, out);
    }
}

/// As [`groups::code_groups`]; of what must be widened a code a byte.
pub(super) fn code_groups<T: Element, M: Mode, O: Store<T>>(
    x: &[T],
    tiling: Tiling,
    uniform: Uniform,
    out: &mut [O::Stored],
    to: (u32, bool),
    mut params: Params<'_, T::Compute>,
) -> bool {
    if let (Some(x), Some(out)) = (T::as_computed(x), O::in_place(out)) {
        return groups::code_groups::<T::Compute, M, O>(x, tiling, uniform, out, to, params);
    }
    let (row, size) = (tiling.row.min(x.len()), tiling.run);
    let in_batch = (IN_L1 / size).max(1) * size;
    let mut buffer = [T::Compute::ZERO; IN_L1];
    let (mut finite, mut first) = (true, 0);
    for (row, out) in x.chunks(row).zip(out.chunks_mut(row)) {
        for (x, out) in row.chunks(in_batch).zip(out.chunks_mut(in_batch)) {
            let own = params.from(first);
            first += x.len().div_ceil(size);
            if x.len() > IN_L1 {
                finite &= code_long_group::<T, M, O>(x, uniform, out, to.1, own);
                continue;
            }
            let wide = &mut buffer[..x.len()];
            load(x, wide);
            O::write(out, |out| {
                finite &= groups::code_groups::<T::Compute, M, O>(wide, tiling, uniform, out, (8, false), own);
            });
        }
    }
    finite
}

/// The same of one group that is longer than the buffer: its range is found in 16 bits.
fn code_long_group<T: Element, M: Mode, O: Store<T>>(
    x: &[T],
    uniform: Uniform,
    out: &mut [O::Stored],
    streamed: bool,
    mut params: Params<'_, T::Compute>,
) -> bool {
    let ends = if M::SCHEME.is_some() { reduce_all::<T, MinMax>(x, 1) } else { reduce_all::<T, FiniteMinMax>(x, 1) };
    let range = Range::<T>(ends);
    store_params(M::scheme(uniform), uniform.bits, std::iter::once(range), &mut params);
    code_runs::<T, M, O>(x, Runs::one(x.len(), 0), (uniform, params.as_ref(), streamed), out);
    !range.is_nonfinite()
}

/// As [`runs::code_runs`].
pub(super) fn code_runs<T: Element, M: Mode, O: Store<T>>(
    x: &[T],
    mut runs: Runs,
    how: (Uniform, ParamsRef<'_, T::Compute>, bool),
    out: &mut [O::Stored],
) {
    if let (Some(x), Some(out)) = (T::as_computed(x), O::in_place(out)) {
        runs::code_runs::<T::Compute, M, O>(x, runs, how, out);
        return;
    }
    let mut buffer = [T::Compute::ZERO; IN_L1];
    for (x, out) in x.chunks(IN_L1).zip(out.chunks_mut(IN_L1)) {
        let wide = &mut buffer[..x.len()];
        load(x, wide);
        O::write(out, |out| runs = runs::code_runs::<T::Compute, M, O>(wide, runs, (how.0, how.1, false), out));
    }
}

/// As [`runs::code_by_element`].
pub(super) fn code_by_element<T: Element, M: Mode>(
    x: &[T],
    mut runs: Runs,
    uniform: Uniform,
    params: ParamsRef<'_, T::Compute>,
    codes: &mut [u8],
) {
    if let Some(x) = T::as_computed(x) {
        runs::code_by_element::<T::Compute, M>(x, runs, uniform, params, codes);
        return;
    }
    let mut buffer = [T::Compute::ZERO; IN_L1];
    for (x, codes) in x.chunks(IN_L1).zip(codes.chunks_mut(IN_L1)) {
        let wide = &mut buffer[..x.len()];
        load(x, wide);
        runs = runs::code_by_element::<T::Compute, M>(wide, runs, uniform, params, codes);
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

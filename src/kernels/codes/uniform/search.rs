//! Scales of least squared error, by search: a grid of scales around that of the plain formula, then least squares.
//!
//! For codes q of x = s (q + d) the best scale is s (1 + Σdq / Σqq), and leaves the error s² (Σdd - (Σdq)² / Σqq): three
//! sums say of each scale of the grid how good its codes are with the best scale for them. The codes of the best one are
//! then made anew with their best scale, as it is stored, and so on. What is hardly better than the plain formula, by less
//! than the rounding of the sums, is not taken: so no group is ever worse.
//!
//! A group is a lane: sums run element by element, so no instruction set changes a bit. Its numbers are scaled by a power
//! of two, so that no square overflows or underflows.

use super::super::{Granularity, Spec};
use super::grid::{How, units};
use super::measure::Sums;
use super::tile::{DEPTH, LANES, Lanes, Source, Tile};
use super::tries::State;
use super::{Params, ParamsRef, Scheme, Uniform};
use crate::isa::kernel;
use crate::kernels::reduce::{self, sum_of_lanes};
use crate::par::{self, CHUNK};
use crate::real::{Element, Real};

/// Find the parameters of `x`, of which what is not finite counts as 0; `weights` (none, or one for each element of the
/// last axis) are importances. Of channels only those of the first axis.
pub fn find_scales<T: Element>(
    x: &[T],
    weights: &[f32],
    (uniform, spec): (Uniform, Spec),
    how: How,
    mut params: Params<'_, T::Compute>,
    threads: usize,
) {
    let (row, size) = match spec.granularity {
        Granularity::Group { size } => (spec.cols, size),
        Granularity::Channel { inner, .. } => (inner, inner),
        Granularity::Whole | Granularity::Tile { .. } => (x.len(), x.len()),
    };
    if x.is_empty() {
        params.scale.fill(T::Compute::from_i16(1));
        params.zero_point.fill(0);
        params.offset.fill(T::Compute::from_i16(0));
        return;
    }
    let weights = in_range(weights);
    let source = Source { x, weights: &weights, row, size, cols: spec.cols };
    if size > CHUNK {
        for i in 0..params.scale.len() {
            let found = find_long(&source, i, uniform, how, threads);
            found.write(0, &mut params.split_off(1));
        }
        return;
    }
    let each = (CHUNK / (LANES * size)).max(1) * LANES;
    let items: Vec<_> = (0..params.scale.len())
        .step_by(each)
        .map(|first| (first, params.split_off(each.min(params.scale.len()))))
        .collect();
    let make = || (new_tile(&source, uniform), State::new(uniform, how, size));
    par::for_each_with(threads, items.into_iter(), make, |(tile, state), (first, mut params)| {
        for at in (0..params.scale.len()).step_by(LANES) {
            find_groups(&source, first + at, tile, state);
            for lane in 0..LANES.min(params.scale.len() - at) {
                state.write(lane, &mut params.from(at + lane));
            }
        }
    });
}

fn new_tile<T: Element>(source: &Source<'_, T>, uniform: Uniform) -> Tile<T::Compute> {
    Tile::new(source, uniform.scheme == Scheme::MinMax)
}

/// Weights scaled by a power of two, the largest to less than 2.
fn in_range<C: Real>(weights: &[f32]) -> Vec<C> {
    let largest = weights.iter().fold(0.0f32, |a, &b| a.max(b));
    let norm = units::<f64>(f64::from(largest))[1];
    weights.iter().map(|&w| C::from_f64(f64::from(w) * norm)).collect()
}

/// Whether weights are finite and not negative.
pub fn are_weights(weights: &[f32]) -> bool {
    weights.iter().all(|&w| (0.0..f32::INFINITY).contains(&w))
}

/// Whether given parameters are such that numbers can be divided by them.
pub fn are_params<C: Real>(uniform: Uniform, params: ParamsRef<'_, C>) -> [bool; 2] {
    let (zero, infinity) = (C::from_i16(0), C::from_f64(f64::INFINITY));
    let levels = ((1u16 << uniform.bits) - 1) as u8;
    [
        params.scale.iter().all(|&scale| scale != zero && scale.abs() < infinity),
        params.zero_point.iter().all(|&zero_point| zero_point <= levels),
    ]
}

kernel! {
    /// The only part of a search that knows the dtype: numbers to lanes.
    fn load<T: Element>(
        source: &Source<'_, T>, lanes: &Lanes, at: usize, norm: &[T::Compute; LANES], blank: T::Compute,
        tile: &mut Tile<T::Compute>
    ) {
        tile.load(source, lanes, at, norm, blank);
    }
}

kernel! {
    fn widen<C: Real>(tile: &Tile<C>, range: &mut [[C; LANES]; 2]) {
        tile.widen(range);
    }
}

kernel! {
    fn begin<C: Real>(state: &mut State<C>, range: [[C; LANES]; 2]) {
        state.start(range);
    }
}

kernel! {
    fn measure<C: Real>(state: &mut State<C>, tile: &Tile<C>) {
        state.measure(tile);
    }
}

kernel! {
    fn learn<C: Real>(state: &mut State<C>) {
        state.learn();
    }
}

kernel! {
    fn scale<C: Real>(tile: &mut Tile<C>, norm: &[C; LANES]) {
        tile.scale(norm);
    }
}

/// The parameters of the groups from `first` on, as many as there are lanes.
fn find_groups<T: Element>(
    source: &Source<'_, T>,
    first: usize,
    tile: &mut Tile<T::Compute>,
    state: &mut State<T::Compute>,
) {
    let lanes = source.groups(first);
    let length = lanes.length();
    let (zero, one) = (T::Compute::from_i16(0), [T::Compute::from_i16(1); LANES]);
    let mut range = state.no_range();
    // What is blank is no part of a range; of one with 0 it may be 0.
    let blank = if state.has_offset() { T::Compute::from_f64(f64::NAN) } else { zero };
    for at in (0..length).step_by(DEPTH) {
        load(source, &lanes, at, &one, blank, tile);
        widen(tile, &mut range);
    }
    begin(state, range);
    if length <= DEPTH {
        scale(tile, &state.norm);
    }
    while state.has_tries() {
        for at in (0..length).step_by(DEPTH) {
            if length > DEPTH {
                load(source, &lanes, at, &state.norm, zero, tile);
            }
            measure(state, tile);
        }
        learn(state);
    }
}

/// The sums of a part of a long group, for each of the tries.
fn measure_segments<T: Element>(source: &Source<'_, T>, range: (usize, usize), state: &State<T::Compute>) -> Sums {
    let lanes = Lanes::segments(range);
    let mut tile = new_tile(source, state.uniform);
    let mut state = state.clone();
    for at in (0..lanes.length()).step_by(DEPTH) {
        load(source, &lanes, at, &state.norm, T::Compute::from_i16(0), &mut tile);
        measure(&mut state, &tile);
    }
    [state.sums, state.first_sums].map(|sums| sums.iter().map(|sums| sums.map(sum_of_lanes)).collect())
}

/// The parameters of one long group: its segments are lanes.
fn find_long<T: Element>(
    source: &Source<'_, T>,
    group: usize,
    uniform: Uniform,
    how: How,
    threads: usize,
) -> State<T::Compute> {
    let (start, end) = source.group(group);
    let [low, high] = reduce::reduce_all::<T, reduce::FiniteMinMax>(&source.x[start..end], threads);
    let zero = T::Compute::from_i16(0);
    let (low, high) = if low > high { (zero, zero) } else { (T::from_key(low).load(), T::from_key(high).load()) };
    let mut state = State::new(uniform, how, source.size);
    let has_offset = state.has_offset();
    let limit = |limit, is_beyond| [if has_offset || is_beyond { limit } else { zero }; LANES];
    begin(&mut state, [limit(low, low < zero), limit(high, high > zero)]);
    while state.has_tries() {
        let chunks: Vec<_> = (start..end).step_by(CHUNK).map(|at| (at, end.min(at + CHUNK))).collect();
        for sums in par::map(threads, chunks.into_iter(), |range| measure_segments(source, range, &state)) {
            state.add(&sums);
        }
        learn(&mut state);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::super::{ScaleDtype, Scheme, fake_quantize_given};
    use super::*;
    use crate::isa::{self, Isa};

    const HOW: How = How { search: true, stored: ScaleDtype::F16, norm: 2.0 };

    fn numbers(n: usize) -> Vec<f32> {
        let uniform = |i: usize| (i as u32).wrapping_mul(2_654_435_761) as f32 / 4.3e9 - 0.5;
        (0..n).map(|i| uniform(i) + uniform(i * 7 + 1) * uniform(i * 3 + 2)).collect()
    }

    type Found = (Vec<f32>, Vec<u8>, Vec<f32>, f64);

    fn found(x: &[f32], uniform: Uniform, spec: Spec, how: How) -> Found {
        let parts = spec.scales(x.len());
        let of = |scheme| if uniform.scheme == scheme { parts } else { 0 };
        let mut scale = vec![0.0; parts];
        let (mut zero_point, mut offset) = (vec![0; of(Scheme::Asymmetric)], vec![0.0; of(Scheme::MinMax)]);
        let mut params = Params { scale: &mut scale, zero_point: &mut zero_point, offset: &mut offset };
        find_scales(x, &[], (uniform, spec), how, params.from(0), 2);
        let mut back = vec![0.0; x.len()];
        fake_quantize_given(x, uniform, spec, &mut back, params.as_ref(), 1);
        let error = x.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        (scale, zero_point, offset, error)
    }

    #[test]
    fn test_what_is_found_is_better_and_the_same_for_every_instruction_set() {
        // Rows for two pieces of groups, and for three of the whole.
        let (cols, all) = (3_001, numbers(30 * 3_001));
        let granularities =
            [(Granularity::Group { size: 32 }, 12), (Granularity::Group { size: 300 }, 12), (Granularity::Whole, 30)];
        let schemes = [Scheme::Symmetric, Scheme::Asymmetric, Scheme::MinMax];
        for (bits, scheme) in [8, 4, 2].into_iter().flat_map(|bits| schemes.map(|scheme| (bits, scheme))) {
            let uniform = Uniform { bits, scheme, offset_binary: false, signed: false };
            let how = How { stored: if scheme == Scheme::MinMax { ScaleDtype::Own } else { HOW.stored }, ..HOW };
            for (granularity, rows) in granularities {
                let (spec, x) = (Spec { granularity, cols }, &all[..rows * cols]);
                let mut norms = None;
                isa::set(Isa::Portable);
                let want = found(x, uniform, spec, how);
                // Of 8 bits and many elements the plain formula may be the best.
                let plain = found(x, uniform, spec, How { search: false, ..how }).3;
                let is_better = if bits == 8 { want.3 <= plain } else { want.3 < plain };
                assert!(is_better, "{uniform:?} {spec:?}: {} and {plain}", want.3);
                for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                    isa::set(isa);
                    assert_eq!(found(x, uniform, spec, how), want, "{uniform:?} {spec:?} {isa:?}");
                    let robust = How { norm: 0.7, ..how };
                    let found = found(&x[..cols], uniform, spec, robust);
                    assert_eq!(*norms.get_or_insert_with(|| found.clone()), found, "{uniform:?} {spec:?} {isa:?}");
                }
            }
        }
    }

    #[test]
    fn test_weights_of_any_size_are_scaled_to_what_squares_can_hold() {
        for largest in [1e-30, 1.0, 3e38] {
            let weights: Vec<f32> = in_range(&[0.0, largest / 2.0, largest]);
            assert!(weights[0] == 0.0 && (1.0..2.0).contains(&weights[2]), "{weights:?}");
        }
        assert!(are_weights(&[0.0, 1.0]) && !are_weights(&[-1.0]) && !are_weights(&[f32::NAN, 1.0]));
    }
}

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
use super::tile::{DEPTH, LANES, Lanes, Source, Tile};
use super::tries::State;
use super::{Params, ParamsRef, Uniform};
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
    let make = || (Tile::new(&source), State::new(uniform, how, size));
    par::for_each_with(threads, items.into_iter(), make, |(tile, state), (first, mut params)| {
        for at in (0..params.scale.len()).step_by(LANES) {
            find_groups(&source, first + at, tile, state);
            for lane in 0..LANES.min(params.scale.len() - at) {
                state.write(lane, &mut params.from(at + lane));
            }
        }
    });
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
    /// The parameters of the groups from `first` on, as many as there are lanes.
    fn find_groups<T: Element>(
        source: &Source<'_, T>,
        first: usize,
        tile: &mut Tile<T::Compute>,
        state: &mut State<T::Compute>,
    ) {
        let lanes = source.groups(first);
        let length = lanes.length();
        let one = [T::Compute::from_i16(1); LANES];
        let mut range = [[T::Compute::from_i16(0); LANES]; 2];
        for at in (0..length).step_by(DEPTH) {
            tile.load(source, &lanes, at, &one);
            tile.widen(&mut range);
        }
        state.start(range);
        if length <= DEPTH {
            tile.scale(&state.norm);
        }
        while state.has_tries() {
            for at in (0..length).step_by(DEPTH) {
                if length > DEPTH {
                    tile.load(source, &lanes, at, &state.norm);
                }
                state.measure(tile);
            }
            state.learn();
        }
    }
}

kernel! {
    /// The sums of a part of a long group, for each of the tries.
    fn measure_segments<T: Element>(
        source: &Source<'_, T>,
        range: (usize, usize),
        state: &State<T::Compute>,
    ) -> Vec<[f64; 3]> {
        let lanes = Lanes::segments(range);
        let mut tile = Tile::new(source);
        let mut state = state.clone();
        for at in (0..lanes.length()).step_by(DEPTH) {
            tile.load(source, &lanes, at, &state.norm);
            state.measure(&tile);
        }
        state.sums.iter().map(|sums| sums.map(sum_of_lanes)).collect()
    }
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
    state.start([[if low < zero { low } else { zero }; LANES], [if high > zero { high } else { zero }; LANES]]);
    while state.has_tries() {
        let chunks: Vec<_> = (start..end).step_by(CHUNK).map(|at| (at, end.min(at + CHUNK))).collect();
        for sums in par::map(threads, chunks.into_iter(), |range| measure_segments(source, range, &state)) {
            state.add(&sums);
        }
        state.learn();
    }
    state
}

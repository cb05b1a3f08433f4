//! What becomes of the weights of a strip: columns that are rounded before those behind them in their block follow.

use std::ops::Range;

use super::super::codes::uniform::{Nearest, NearestOfEach, ParamsRef};
use super::super::elimination::{ColumnRule, TILE, finite};
use super::Plan;
use crate::real::{Element, Real};

/// Columns of a strip, at most.
pub(super) const STRIP: usize = 32;

/// Weights of a strip, by column.
pub(super) type Columns<C> = [[C; TILE]; STRIP];

/// Weights of a tile that are rounded, from a place on.
pub(super) struct Rounded<'a, C> {
    pub(super) plan: &'a Plan,
    /// Of the tile.
    pub(super) params: ParamsRef<'a, C>,
    pub(super) rows: usize,
    /// Which parameter of a row is that of each place.
    pub(super) parts: &'a [usize],
    /// The last of these, and what rounds with it.
    pub(super) current: Option<(usize, NearestOfEach<C, TILE>)>,
    /// Weights before any correction.
    pub(super) given: &'a Columns<C>,
    pub(super) codes: &'a mut [[u8; TILE]],
}

impl<C: Real> ColumnRule<C> for Rounded<'_, C> {
    #[inline(always)]
    fn loses(&mut self, i: usize, weights: &[C; TILE], _: C) -> [C; TILE] {
        let part = self.parts[i];
        if self.current.as_ref().is_none_or(|(current, _)| *current != part) {
            // Behind the last row the first once more.
            let row = |r: usize| if r < self.rows { r * self.plan.stride() } else { 0 };
            let nearest = |r| Nearest::new(self.plan.uniform, self.params.from(row(r)), part);
            self.current = Some((part, NearestOfEach::new(std::array::from_fn(nearest))));
        }
        let Some((_, nearest)) = &self.current else { return [C::from_i16(0); TILE] };
        let mut lost = nearest.of(weights, &mut self.codes[i]);
        for (lost, &given) in lost.iter_mut().zip(&self.given[i]) {
            *lost = finite(*lost - given);
        }
        lost
    }
}

/// Those of some places of all rows of a tile: of `work` into `out`, and as they were before any correction.
pub(super) fn load_strip<T: Element>(
    (x, work): (&[T], &[T::Compute]),
    order: &[usize],
    places: &Range<usize>,
    out: &mut [[T::Compute; TILE]],
) -> Columns<T::Compute> {
    let (n, zero) = (order.len(), T::Compute::from_i16(0));
    let mut given = [[zero; TILE]; STRIP];
    out.fill([zero; TILE]);
    for (r, (row, x)) in work.chunks(n).zip(x.chunks(n)).enumerate() {
        let weights = row[places.clone()].iter().zip(&order[places.clone()]);
        for ((out, given), (&weight, &column)) in out.iter_mut().zip(&mut given).zip(weights) {
            (out[r], given[r]) = (weight, x[column].load());
        }
    }
    given
}

/// Nothing is rounded.
pub(super) struct Kept<'a, C> {
    /// Weights before any correction.
    pub(super) given: &'a Columns<C>,
    /// What they are.
    pub(super) kept: &'a mut Columns<C>,
}

impl<C: Real> ColumnRule<C> for Kept<'_, C> {
    #[inline(always)]
    fn loses(&mut self, i: usize, weights: &[C; TILE], _: C) -> [C; TILE] {
        let mut lost = *weights;
        self.kept[i] = lost;
        for (lost, &given) in lost.iter_mut().zip(&self.given[i]) {
            *lost = finite(*lost - given);
        }
        lost
    }
}

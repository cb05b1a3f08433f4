//! GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded one after the other, and those behind make up for what
//! was lost.
//!
//! The authors hand on what each column loses as it is rounded, by the factor of the inverse of `H`. Counted from the weights
//! as they were, before any correction, what columns have lost is handed on by the factor of `H` itself: with `H = Vᵀ V`,
//! `w[j] += sum((w₀[i] - q[i]) * V[j][i] / V[j][j])` over all `i < j` makes row `j` of `V (w₀ - q)` as small as it can be (Chen
//! et al. 2025, arXiv 2507.18553: GPTQ is Babai's nearest plane). The same numbers, and nothing is inverted.
//!
//! Rows don't know of each other: a tile of them goes through all columns while it lies in the cache, and how rows are cut
//! changes no bit.

mod plan;
mod strip;

use std::ops::Range;

pub use plan::{Plan, by_diagonal, reorder};

use super::codes::uniform::{self, Params, ParamsRef};
use super::codes::{Granularity, Policy, Spec};
use super::elimination::{Block, COLUMNS, Cholesky, TILE, take_out_all};
use super::pack::{match_width, pack_chunk, packed_len};
use crate::par;
use crate::real::{Element, Real};
use strip::{Kept, Rounded, STRIP, load_strip};

/// Weights, in rows of `plan.spec.cols`, and what becomes of them.
pub struct Job<'a, T: Element> {
    /// The weights.
    pub x: &'a [T],
    /// Packed codes.
    pub codes: &'a mut [u8],
    /// The parameters.
    pub params: Params<'a, T::Compute>,
}

/// Find parameters; `codes` is written and of no use.
fn find<T: Element>(
    (plan, spec, weights): (&Plan, Spec, &[f32]),
    x: &[T],
    codes: &mut [u8],
    params: Params<'_, T::Compute>,
    threads: usize,
) {
    if plan.how.is_plain() {
        // What is infinite by now makes no range infinite, and is no error.
        let _ = uniform::quantize(x, plan.uniform, spec, Policy::Saturate, codes, params, threads);
    } else {
        uniform::find_scales(x, weights, (plan.uniform, spec), plan.how, params, threads);
    }
}

/// Parameters of the rows of a tile.
enum Parts<'a, C> {
    /// Those that there are.
    Known(ParamsRef<'a, C>),
    /// Those that are found on the way.
    Late(Params<'a, C>),
}

impl<C: Real> Parts<'_, C> {
    fn as_ref(&self) -> ParamsRef<'_, C> {
        match self {
            Self::Known(params) => *params,
            Self::Late(params) => params.as_ref(),
        }
    }
}

/// Memory for a tile.
struct Scratch<C> {
    /// Weights, those of a group before it is rounded, and codes: in the order of places.
    work: Vec<C>,
    ahead: Vec<C>,
    codes: Vec<u8>,
    /// Of a block.
    errors: Vec<[C; TILE]>,
    row: Vec<u8>,
}

impl<C: Real> Scratch<C> {
    fn new(n: usize, block: usize) -> Self {
        let zero = C::from_i16(0);
        let (work, codes, errors) = (vec![zero; TILE * n], vec![0; TILE * n], vec![[zero; TILE]; block]);
        Self { ahead: work.clone(), work, codes, errors, row: vec![0; n] }
    }
}

/// All that tiles share.
struct Pass<'a, C> {
    plan: &'a Plan,
    /// Each with its strips, whose panels end where it ends.
    blocks: Vec<(Block<C, COLUMNS>, Vec<Block<C, COLUMNS>>)>,
    /// Of each place: which parameter of a row is its own.
    parts: Vec<usize>,
    /// Of each column, or none.
    importances: Vec<f32>,
}

impl<C: Real> Pass<'_, C> {
    fn round<T: Element<Compute = C>>(
        &self,
        x: &[T],
        packed: &mut [u8],
        mut params: Parts<'_, C>,
        scratch: &mut Scratch<C>,
    ) {
        let n = self.plan.order.len();
        let Scratch { work, ahead, codes, errors, row } = scratch;
        let (work, ahead) = (&mut work[..x.len()], &mut ahead[..x.len()]);
        for (work, x) in work.chunks_mut(n).zip(x.chunks(n)) {
            for (work, &column) in work.iter_mut().zip(&self.plan.order) {
                *work = x[column].load();
            }
        }
        for (block, strips) in &self.blocks {
            let Range { start, end } = block.columns;
            for strip in strips {
                let columns = &strip.columns;
                if let (Parts::Late(params), Some(group)) = (&mut params, self.group(columns.start)) {
                    self.look_ahead((x, work), &group, ahead, errors);
                    self.find_group(ahead, group, params);
                }
                let errors = &mut errors[columns.start - start..columns.end - start];
                self.round_strip((x, work), codes, strip, params.as_ref(), errors);
                strip.hand_on_all(work, (end, n), errors);
            }
            block.hand_on_all(work, (n, n), &errors[..end - start]);
        }
        let bits = self.plan.uniform.bits;
        for (codes, packed) in codes.chunks(n).zip(packed.chunks_mut(packed_len(n, bits))) {
            for (&code, &column) in codes.iter().zip(&self.plan.order) {
                row[column] = code;
            }
            match_width!(bits, W => pack_chunk::<W>(row, packed));
        }
    }

    /// The places of the group that begins here.
    fn group(&self, start: usize) -> Option<Range<usize>> {
        let part = self.parts[start];
        if start > 0 && self.parts[start - 1] == part {
            return None;
        }
        Some(start..(start..self.parts.len()).find(|&i| self.parts[i] != part).unwrap_or(self.parts.len()))
    }

    /// Weights of a group as they make up best for what was lost before it: what each is when the others of the group before it
    /// are not rounded.
    fn look_ahead<T: Element<Compute = C>>(
        &self,
        (x, work): (&[T], &[C]),
        group: &Range<usize>,
        ahead: &mut [C],
        errors: &mut [[C; TILE]],
    ) {
        let n = self.plan.order.len();
        for (ahead, work) in ahead.chunks_mut(n).zip(work.chunks(n)) {
            ahead[group.clone()].copy_from_slice(&work[group.clone()]);
        }
        let lies_in = |place: &Range<usize>| group.start <= place.start && place.end <= group.end;
        for (block, strips) in &self.blocks {
            let end = group.end.min(block.columns.end);
            for strip in strips.iter().filter(|strip| group.start > 0 && lies_in(&strip.columns)) {
                let Range { start, end: behind } = strip.columns;
                let errors = &mut errors[start - block.columns.start..behind - block.columns.start];
                let given = load_strip((x, ahead), &self.plan.order, &strip.columns, errors);
                let mut kept = [[C::from_i16(0); TILE]; STRIP];
                take_out_all(errors, Kept { given: &given, kept: &mut kept }, strip);
                for (r, row) in ahead.chunks_mut(n).enumerate() {
                    row[start..behind].iter_mut().zip(&kept).for_each(|(weight, kept)| *weight = kept[r]);
                }
                strip.hand_on_all(ahead, (end, n), errors);
            }
            if end < group.end && lies_in(&block.columns) {
                block.hand_on_all(ahead, (group.end, n), &errors[..block.columns.len()]);
            }
        }
    }

    /// Find the parameters of a group, of all rows.
    fn find_group(&self, work: &[C], places: Range<usize>, params: &mut Params<'_, C>) {
        let (n, part, size) = (self.plan.order.len(), self.parts[places.start], places.len());
        let x: Vec<C> = work.chunks(n).flat_map(|row| &row[places.clone()]).copied().collect();
        let weights: Vec<f32> = match &self.importances[..] {
            [] => vec![],
            of => self.plan.order[places].iter().map(|&column| of[column]).collect(),
        };
        let rows = x.len() / size;
        let (mut scale, mut zero_point, mut offset) = (vec![C::from_i16(0); rows], vec![0; rows], vec![]);
        zero_point.truncate(params.zero_point.len());
        offset.resize(rows.min(params.offset.len()), C::from_i16(0));
        let mut codes = vec![0; rows * packed_len(size, self.plan.uniform.bits)];
        let spec = Spec { granularity: Granularity::Group { size }, cols: size };
        let found = Params { scale: &mut scale, zero_point: &mut zero_point, offset: &mut offset };
        find((self.plan, spec, &weights), &x, &mut codes, found, 1);
        let places = |i: usize| i * self.plan.stride() + part;
        scale.into_iter().enumerate().for_each(|(i, scale)| params.scale[places(i)] = scale);
        zero_point.into_iter().enumerate().for_each(|(i, zero_point)| params.zero_point[places(i)] = zero_point);
        offset.into_iter().enumerate().for_each(|(i, offset)| params.offset[places(i)] = offset);
    }

    /// Round places of all rows; what is behind them in the strip follows, behind the strip nothing does.
    fn round_strip<T: Element<Compute = C>>(
        &self,
        (x, work): (&[T], &[C]),
        codes: &mut [u8],
        strip: &Block<C, COLUMNS>,
        params: ParamsRef<'_, C>,
        errors: &mut [[C; TILE]],
    ) {
        let (n, columns) = (self.plan.order.len(), strip.columns.clone());
        let mut found = [[0; TILE]; STRIP];
        let given = load_strip((x, work), &self.plan.order, &columns, errors);
        let (plan, parts, rows) = (self.plan, &self.parts[columns.clone()], work.len() / n);
        let rule = Rounded { plan, params, rows, parts, current: None, given: &given, codes: &mut found };
        take_out_all(errors, rule, strip);
        for (r, codes) in codes.chunks_mut(n).take(rows).enumerate() {
            for (code, found) in codes[columns.clone()].iter_mut().zip(&found) {
                *code = found[r];
            }
        }
    }
}

/// The blocks of a plan, with their strips.
fn blocks<C: Real>(factor: &Cholesky, plan: &Plan, threads: usize) -> Vec<(Block<C, COLUMNS>, Vec<Block<C, COLUMNS>>)> {
    let block = |columns, end| Block::new(columns, end, |i, j| factor.at(j, i) / factor.at(j, j), threads);
    let strips = |columns: Range<usize>| {
        let end = columns.end;
        let strips = move |group: Range<usize>| {
            let end = group.end;
            group.step_by(STRIP).map(move |i| i..end.min(i + STRIP))
        };
        plan.groups(columns).flat_map(strips).map(|strip| block(strip, end)).collect()
    };
    plan.blocks().into_iter().map(|columns| (block(columns.clone(), factor.n), strips(columns))).collect()
}

/// Round rows of weights. `factor` is of the columns in the order of the plan.
pub fn gptq<T: Element>(job: Job<'_, T>, factor: &Cholesky, plan: &Plan, threads: usize) {
    let Job { x, codes, mut params } = job;
    let (n, stride, importances) = (factor.n, plan.stride(), plan.importances(factor));
    if !plan.late || x.is_empty() {
        find((plan, plan.spec, &importances), x, codes, params.from(0), threads);
    }
    if x.is_empty() {
        return;
    }
    let pass = Pass {
        plan,
        blocks: blocks(factor, plan, threads),
        parts: plan.order.iter().map(|&column| plan.part(column)).collect(),
        importances,
    };
    let block = pass.blocks.iter().map(|(block, _)| block.columns.len()).max().unwrap_or(0);
    let tiles = x.chunks(TILE * n).zip(codes.chunks_mut(TILE * packed_len(n, plan.uniform.bits)));
    if plan.late {
        let items: Vec<_> = tiles.map(|(x, codes)| ((x, codes), params.split_off(x.len() / n * stride))).collect();
        par::for_each_with(
            threads,
            items.into_iter(),
            || Scratch::new(n, block),
            |scratch, ((x, codes), params)| {
                pass.round(x, codes, Parts::Late(params), scratch);
            },
        );
        return;
    }
    let params = params.as_ref();
    par::for_each_with(
        threads,
        tiles.enumerate(),
        || Scratch::new(n, block),
        |scratch, (t, (x, codes))| {
            pass.round(x, codes, Parts::Known(params.from(t * TILE * stride)), scratch);
        },
    );
}

#[cfg(test)]
mod tests {
    use super::plan::tests::plan;
    use super::*;

    #[test]
    fn test_independent_inputs_give_plain_codes_in_any_order() {
        let (rows, n, size) = (TILE + 3, 21, 8);
        let x: Vec<f32> = (0..rows * n).map(|k| ((k * 7919) % 1009) as f32 - 504.3).collect();
        let h: Vec<f64> = (0..n * n).map(|k| f64::from(k / n == k % n)).collect();
        let factor = Cholesky::new(h, n, 0.01, 2).unwrap();
        let groups = n.div_ceil(size);
        let empty = || (vec![0u8; rows * packed_len(n, 4)], vec![0.0f32; rows * groups], vec![0u8; rows * groups]);
        let mut want = empty();
        let given = plan(n, size, (0..n).collect(), true, 128);
        let params = Params { scale: &mut want.1, zero_point: &mut want.2, offset: &mut [] };
        uniform::quantize(&x, given.uniform, given.spec, Policy::Raise, &mut want.0, params, 1).unwrap();
        for (late, order) in [(true, (0..n).collect()), (false, (0..n).rev().collect::<Vec<_>>())] {
            let mut got = empty();
            let params = Params { scale: &mut got.1, zero_point: &mut got.2, offset: &mut [] };
            gptq(Job { x: &x, codes: &mut got.0, params }, &factor, &plan(n, size, order, late, 5), 3);
            assert!(got == want);
        }
    }
}

//! Rows of a table that is looked up: gathered and dequantized in one pass.

use super::super::Spec;
use super::dequantize::values;
use super::tiling::{Runs, Tiling};
use super::{ParamsRef, Uniform, lookup};
use crate::isa;
use crate::kernels::pack::{match_width, packed_len, unpack_chunk};
use crate::par;
use crate::real::{Element, Real};

/// Rows of the first axis of an array.
#[derive(Debug, Clone, Copy)]
pub struct RowsOf<'a> {
    /// How many rows the array has.
    pub height: usize,
    /// Elements of a row: whole rows of `Spec::cols`.
    pub width: usize,
    /// Which are wanted.
    pub rows: &'a [usize],
}

/// Rows whose codes and scales are asked for ahead of use: a table does not fit the caches.
const AHEAD: usize = 8;

/// The codes of a table and how they lie.
#[derive(Clone, Copy)]
struct Table<'a, C> {
    codes: &'a [u8],
    params: ParamsRef<'a, C>,
    uniform: Uniform,
    tiling: Tiling,
    height: usize,
    /// Elements and bytes of a row.
    width: usize,
    bytes: usize,
}

impl<'a, C> Table<'a, C> {
    /// From the part of a row to that of the next, where each row is one run.
    fn part_of_row(&self) -> Option<usize> {
        match self.params.scale.len() {
            1 => Some(0),
            n if n == self.height && self.tiling.run == self.width => Some(1),
            _ => None,
        }
    }

    #[inline(always)]
    fn packed(&self, row: usize) -> &'a [u8] {
        &self.codes[row * self.bytes..][..self.bytes]
    }

    /// Of the scales only those that lie by rows are known without a division.
    #[inline(always)]
    fn ask(&self, row: usize) {
        let packed = self.packed(row);
        isa::prefetch::<false, _>(packed, 0);
        // Rows seldom begin with a cache line, so they end in one more: it was a fifth of the time of 64 rows.
        isa::prefetch::<false, _>(&packed[packed.len().saturating_sub(1)..], 0);
        if self.params.scale.len() == self.height {
            isa::prefetch::<false, _>(&self.params.scale[row..=row], 0);
        }
    }
}

/// Rows of codes of a byte. Never inlined, as it is called in two places.
#[inline(never)]
fn byte_rows<C: Real, O: Element>(table: &Table<'_, C>, rows: &[usize], out: &mut [O]) {
    let of_row = table.part_of_row();
    rows.iter().take(AHEAD).for_each(|&row| table.ask(row));
    for (i, (&row, out)) in rows.iter().zip(out.chunks_mut(table.width)).enumerate() {
        if let Some(&next) = rows.get(i + AHEAD) {
            table.ask(next);
        }
        // Where runs begin takes divisions: an eighth of the time where a row is one.
        let runs = match of_row {
            Some(step) => Runs::one(table.width, row * step),
            None => table.tiling.runs_at(row * table.width),
        };
        values(table.packed(row), runs, table.uniform, table.params, out);
    }
}

/// Rows of codes of few bits; as above.
#[inline(never)]
fn packed_rows<C: Real, O: Element>(table: &Table<'_, C>, rows: &[usize], out: &mut [O]) {
    let bits = table.uniform.bits;
    let line = table.tiling.row.min(table.width);
    par::with_scratch(table.width, |codes| {
        rows.iter().take(AHEAD).for_each(|&row| table.ask(row));
        for (i, (&row, out)) in rows.iter().zip(out.chunks_mut(table.width)).enumerate() {
            if let Some(&next) = rows.get(i + AHEAD) {
                table.ask(next);
            }
            let runs = table.tiling.runs_at(row * table.width);
            if lookup::values(table.packed(row), runs, table.uniform, table.params, out, false) {
                continue;
            }
            let lines = table.packed(row).chunks(packed_len(line, bits));
            for (codes, packed) in codes.chunks_mut(line).zip(lines) {
                match_width!(bits, W => unpack_chunk::<W>(packed, codes, 0));
            }
            values(codes, runs, table.uniform, table.params, out);
        }
    });
}

/// Dequantize rows of the first axis, each wherever it lies.
pub fn dequantize_rows<C: Real, O: Element>(
    codes: &[u8],
    uniform: Uniform,
    spec: Spec,
    params: ParamsRef<'_, C>,
    of: RowsOf<'_>,
    out: &mut [O],
    threads: usize,
) {
    let RowsOf { height, width, rows } = of;
    if out.is_empty() {
        return;
    }
    let bytes = width / spec.cols * packed_len(spec.cols, uniform.bits);
    let table = Table { codes, params, uniform, tiling: uniform.tiling(spec, height * width), height, width, bytes };
    let some = |rows: &[usize], out: &mut [O]| {
        if uniform.bits == 8 { byte_rows(&table, rows, out) } else { packed_rows(&table, rows, out) }
    };
    let together = (par::CHUNK / width).max(1);
    if rows.len() <= together {
        return some(rows, out);
    }
    let items: Vec<_> = rows.chunks(together).zip(out.chunks_mut(together * width)).collect();
    par::for_each(threads, items.into_iter(), |(rows, out)| some(rows, out));
}

//! How an array is cut: pieces of work, rows that begin on a byte, runs of elements that share a part.

use super::super::{Granularity, Spec};
use super::Uniform;
use crate::kernels::lines::STREAMED;
use crate::kernels::pack::packed_len;
use crate::kernels::reduce::View;
use crate::par::CHUNK;

/// A run of up to this many bytes is quantized right after its range was found, from the cache.
const CACHED_BYTES: usize = 1 << 19;

/// Into about so many pieces whole runs of such arrays are cut: enough for many threads.
const PIECES: usize = 256;

/// Longer runs than a piece keep the threads busy if there are so many.
const ENOUGH_RUNS: usize = 16;

/// The rows and runs of one array.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    /// Elements of the array.
    n: usize,
    /// Elements of a row, which begins on a byte; all of them where no row has padding bits.
    pub(super) row: usize,
    /// Elements that share a part (fewer at the end of a row where `anew`).
    pub(super) run: usize,
    /// Parts, after which the first comes again.
    parts: usize,
    /// Whether each row begins with a new run.
    anew: bool,
    bits: u32,
}

/// One piece of work: consecutive elements that begin on a byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Its first element.
    pub(super) start: usize,
    /// Its elements.
    pub(super) len: usize,
    /// The bytes of its packed codes.
    pub(super) bytes: usize,
    /// Its runs, where it holds whole ones.
    pub(super) parts: usize,
}

impl Uniform {
    /// How an array of `n` elements, at least one, is cut.
    pub(super) fn tiling(self, spec: Spec, n: usize) -> Tiling {
        let cols = spec.cols;
        let padded = !cols.is_multiple_of(8 / self.bits as usize);
        let parts = spec.scales(n);
        let (run, anew) = match spec.granularity {
            // There are no tiles of uniform codes.
            Granularity::Whole | Granularity::Tile { .. } => (n, false),
            // The first axis of two: a row is a run.
            Granularity::Channel { outer: 1, inner, .. } if inner == cols && inner > 1 => (inner, true),
            Granularity::Channel { inner, .. } => (inner, false),
            Granularity::Group { size } => (size, true),
        };
        let row = if padded || (anew && !cols.is_multiple_of(run)) { cols } else { n };
        Tiling { n, row, run, parts, anew, bits: self.bits }
    }
}

impl Tiling {
    /// Whether runs are quantized right after their ranges were found, from the cache, run by run.
    ///
    /// Else the ranges come first, in another pass over memory: for long runs, runs that share a part, a part for each
    /// element. (Long groups that end early in each row are looked at twice, but one after the other.)
    pub(super) fn has_cached_runs(&self, element_bytes: usize) -> bool {
        let cached = self.run * element_bytes <= CACHED_BYTES && (self.run <= CHUNK || self.parts >= ENOUGH_RUNS);
        if cached {
            self.anew || (self.run > 1 && self.row == self.n && self.is_even())
        } else {
            self.anew && !self.is_even()
        }
    }

    /// Whether what is made is written past the caches.
    pub(super) fn is_streamed(&self) -> bool {
        self.n >= STREAMED
    }

    /// Whether each run begins on a byte.
    pub(super) fn has_runs_on_bytes(&self) -> bool {
        self.run.is_multiple_of(8 / self.bits as usize)
    }

    /// Whether all runs have the same length and a part each.
    fn is_even(&self) -> bool {
        self.run * self.parts == self.n
    }

    /// The array as reduced over its runs: the results are those of the parts, again and again.
    pub(super) fn view(&self) -> View {
        if self.run == 1 {
            View { outer: 1, n: self.n / self.parts, inner: self.parts }
        } else {
            View { outer: self.n / self.run, n: self.run, inner: 1 }
        }
    }

    /// Pieces of about [`CHUNK`] elements, or some of these; of whole runs where `whole_runs`.
    pub(super) fn pieces(&self, whole_runs: bool) -> impl Iterator<Item = Piece> + use<> {
        let tiling = *self;
        let per_byte = 8 / tiling.bits as usize;
        // Elements that end on a byte, and a run with them.
        let multiple = match (whole_runs, tiling.has_runs_on_bytes()) {
            (false, _) => per_byte,
            (true, true) => tiling.run,
            (true, false) => tiling.run * per_byte,
        };
        // At the begin of a piece nothing was fetched ahead: of large arrays pieces of whole runs are longer.
        let chunk =
            if whole_runs && tiling.is_streamed() { (tiling.n / PIECES).clamp(4 * CHUNK, 16 * CHUNK) } else { CHUNK };
        let within = (chunk / multiple).max(1) * multiple;
        let rows = (chunk / tiling.row).max(1);
        let mut start = 0;
        std::iter::from_fn(move || {
            if start == tiling.n {
                return None;
            }
            let to_row_end = tiling.row - start % tiling.row;
            let piece = if tiling.row > within {
                let len = within.min(to_row_end);
                Piece { start, len, bytes: packed_len(len, tiling.bits), parts: len.div_ceil(tiling.run) }
            } else {
                let rows = rows.min((tiling.n - start) / tiling.row);
                let (bytes, parts) =
                    (rows * packed_len(tiling.row, tiling.bits), rows * tiling.row.div_ceil(tiling.run));
                Piece { start, len: rows * tiling.row, bytes, parts }
            };
            start += piece.len;
            Some(piece)
        })
    }

    /// The runs from element `start` on.
    pub(super) fn runs_at(&self, start: usize) -> Runs {
        let Tiling { row, run, parts, .. } = *self;
        let row = if self.anew { row } else { self.n };
        let (before, within) = (start / row, start % row);
        let part = (before * row.div_ceil(run) + within / run) % parts;
        Runs { row, run, parts, part, to_run_end: run - within % run, to_row_end: row - within }
    }

    /// The runs of a piece of whole runs whose parts are counted from its own first.
    pub(super) fn own_runs(&self, piece: Piece) -> Runs {
        let runs = self.runs_at(piece.start);
        Runs { part: 0, parts: piece.parts, ..runs }
    }
}

/// Where one is among the runs: gives one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs {
    row: usize,
    run: usize,
    parts: usize,
    part: usize,
    to_run_end: usize,
    to_row_end: usize,
}

impl Runs {
    /// One run of `n` elements, of a part.
    pub(super) fn one(n: usize, part: usize) -> Self {
        Runs { row: n, run: n, parts: part + 1, part, to_run_end: n, to_row_end: n }
    }

    /// Whether each element has its own part.
    #[inline(always)]
    pub(super) fn is_by_element(&self) -> bool {
        self.run == 1
    }

    /// How many elements a whole run has.
    pub(super) fn length(&self) -> usize {
        self.run
    }

    /// Whether all are whole blocks of so many elements.
    pub(super) fn are_of(&self, block: usize) -> bool {
        [self.row, self.run, self.to_run_end, self.to_row_end].iter().all(|n| n.is_multiple_of(block))
    }

    /// The next runs of one length, at most so many, whose parts follow each other: the first part, the length, how many.
    #[inline(always)]
    pub(super) fn next_even(&mut self, rest: usize, most: usize) -> (usize, usize, usize) {
        let (part, len) = self.next(rest);
        if len != self.run || self.to_run_end != self.run || self.part != part + 1 {
            return (part, len, 1);
        }
        let more = ((rest - len).min(self.to_row_end) / len).min(self.parts - self.part).min(most - 1);
        self.part = (self.part + more) % self.parts;
        self.to_row_end -= more * len;
        if self.to_row_end == 0 {
            self.to_row_end = self.row;
        }
        (part, len, 1 + more)
    }

    /// The part of the next run, and its elements, of which at most `rest` are left. By element: the first of the next
    /// parts that follow each other, and how many they are.
    #[inline(always)]
    pub(super) fn next(&mut self, rest: usize) -> (usize, usize) {
        let part = self.part;
        if self.is_by_element() {
            let len = (self.parts - part).min(rest);
            self.part = if part + len == self.parts { 0 } else { part + len };
            return (part, len);
        }
        let len = self.to_run_end.min(self.to_row_end).min(rest);
        self.to_run_end -= len;
        self.to_row_end -= len;
        if self.to_run_end == 0 || self.to_row_end == 0 {
            self.part = if part + 1 == self.parts { 0 } else { part + 1 };
            self.to_run_end = self.run;
        }
        if self.to_row_end == 0 {
            self.to_row_end = self.row;
        }
        (part, len)
    }
}

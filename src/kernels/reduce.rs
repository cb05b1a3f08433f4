//! Reductions along one axis: an [`Op`] says how two numbers become one, everything else stands here once.
//!
//! An array is seen as (outer, n, inner) and reduced over n. A chunk is reduced in [`LANES`] fixed lanes that are
//! joined as a tree; chunks are joined in index order.

mod moments;
mod ops;
mod position;
mod words;
mod zeros;

pub use moments::{Moments, moments_axis};
pub use ops::{AbsMax, AbsSum, Counts, FiniteMinMax, MinMax, NanMinMax, SquareSum, Sum, total};
pub use position::{End, positions};
pub use words::{Extremes, Keys, Word, WordSum, integer_as_f64};
pub use zeros::{NonZero, has};

use std::ops::Range;

use crate::isa::{self, kernel};
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// How far ahead memory is asked for, in bytes. (One thread that sums 64 M bytes takes 1.45 times as long without, on a busy
/// machine; 1,024 bytes are as good, 4,096 worse.)
const AHEAD: usize = 2048;

/// Lanes of a chunk: four 512-bit registers of f64, or eight of 256 bits.
const LANES: usize = 32;

/// Columns that one piece of work reduces at a time where n is not the last axis.
const COLUMNS: usize = 1024;

/// Elements in one piece of columns: states are joined once for each piece, which with [`CHUNK`] cost as much as all
/// the rest.
const STRIDED_CHUNK: usize = 8 * CHUNK;

/// An array seen as (outer, n, inner), reduced over `n`.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Product of the axes before the reduced ones.
    pub outer: usize,
    /// Product of the reduced axes.
    pub n: usize,
    /// Product of the axes after the reduced ones.
    pub inner: usize,
}

/// What a reduction does with a number. Its state is two scalars, so that lanes are two plain arrays.
pub trait Op<T>: Copy + Send + Sync {
    /// The scalar of the state.
    type Scalar: Copy + Send + Sync + PartialEq;
    /// The state of nothing.
    const IDENTITY: [Self::Scalar; 2];
    /// Take one number in.
    fn step(self, state: [Self::Scalar; 2], x: T) -> [Self::Scalar; 2];
    /// Join two states.
    fn merge(self, a: [Self::Scalar; 2], b: [Self::Scalar; 2]) -> [Self::Scalar; 2];
    /// Elements of a piece of work at most. An exact operation may have more where they are short: a piece of few bytes takes
    /// no longer than to fetch it.
    const PIECE: usize = CHUNK;
    /// Reduce a piece: what an exact operation may do in another order.
    fn chunk(self, x: &[T]) -> [Self::Scalar; 2]
    where
        T: Copy,
    {
        reduce_chunk::<T, Self>(x, self)
    }
}

/// The state of an operation.
pub type State<T, O> = [<O as Op<T>>::Scalar; 2];

kernel! {
    /// Reduce one contiguous piece of at most [`CHUNK`] elements.
    pub fn reduce_chunk<T: Copy, O: Op<T>>(x: &[T], op: O) -> State<T, O> {
        let mut a = [O::IDENTITY[0]; LANES];
        let mut b = [O::IDENTITY[1]; LANES];
        let (blocks, tail) = x.as_chunks::<LANES>();
        for block in blocks {
            isa::prefetch::<false, _>(block, AHEAD / size_of::<T>());
            for i in 0..LANES {
                [a[i], b[i]] = op.step([a[i], b[i]], block[i]);
            }
        }
        if !tail.is_empty() {
            // In lanes of its own: an index known only at run time would keep the others out of the registers.
            let (mut tail_a, mut tail_b) = ([O::IDENTITY[0]; LANES], [O::IDENTITY[1]; LANES]);
            for ((a, b), &v) in tail_a.iter_mut().zip(&mut tail_b).zip(tail) {
                [*a, *b] = op.step([*a, *b], v);
            }
            for i in 0..LANES {
                [a[i], b[i]] = op.merge([a[i], b[i]], [tail_a[i], tail_b[i]]);
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                [a[i], b[i]] = op.merge([a[i], b[i]], [a[i + width], b[i + width]]);
            }
            width /= 2;
        }
        [a[0], b[0]]
    }
}

kernel! {
    /// Reduce rows of `stride` elements into `width` columns that begin at `first`.
    fn reduce_columns<T: Copy, O: Op<T>>(x: &[T], op: O, stride: usize, first: usize, states: &mut [State<T, O>]) {
        let width = states.len();
        let mut a = [O::IDENTITY[0]; COLUMNS];
        let mut b = [O::IDENTITY[1]; COLUMNS];
        let (a, b) = (&mut a[..width], &mut b[..width]);
        // Several rows at a time, each number still in its turn: states are loaded and stored once for all of them. (Not on
        // old CPUs, for the bytes of it.)
        let fours = if FMA { x } else { &[] }.chunks_exact(4 * stride);
        let rest = if FMA { fours.remainder() } else { x };
        for rows in fours {
            let [r0, r1, r2, r3] = [0, 1, 2, 3].map(|i| &rows[i * stride + first..][..width]);
            for i in 0..width {
                let state = op.step(op.step([a[i], b[i]], r0[i]), r1[i]);
                [a[i], b[i]] = op.step(op.step(state, r2[i]), r3[i]);
            }
        }
        for row in rest.chunks_exact(stride) {
            for ((a, b), &v) in a.iter_mut().zip(b.iter_mut()).zip(&row[first..first + width]) {
                [*a, *b] = op.step([*a, *b], v);
            }
        }
        for ((state, &a), &b) in states.iter_mut().zip(a.iter()).zip(b.iter()) {
            *state = [a, b];
        }
    }
}

/// The sum of lanes, joined as a tree.
#[inline(always)]
pub fn sum_of_lanes<const N: usize>(mut lanes: [f64; N]) -> f64 {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Numbers and an operation: how an array is cut and shared is compiled once for each kind of state, not for each of them.
trait Pieces<S>: Sync {
    /// The state of consecutive elements.
    fn chunk(&self, elements: Range<usize>) -> S;
    /// The states of rows of `n` elements from row `first` on.
    fn rows(&self, first: usize, n: usize, states: &mut [S]);
    /// The states of columns from `first` on, of rows of `stride` elements.
    fn columns(&self, elements: Range<usize>, stride: usize, first: usize, states: &mut [S]);
    /// Take in numbers from `first` on, one for each state.
    fn step(&self, first: usize, states: &mut [S]);
    /// Join others to states.
    fn merge(&self, states: &mut [S], others: &[S]);
}

struct Given<'a, T, O> {
    x: &'a [T],
    op: O,
}

impl<T: Copy + Sync, O: Op<T>> Pieces<State<T, O>> for Given<'_, T, O> {
    fn chunk(&self, elements: Range<usize>) -> State<T, O> {
        self.op.chunk(&self.x[elements])
    }

    fn rows(&self, first: usize, n: usize, states: &mut [State<T, O>]) {
        // Short rows side by side, a lane for each element: 0.4 (16 columns) to 0.17 (4) of the time, a sixth of the library.
        for (state, row) in states.iter_mut().zip(self.x[first * n..].chunks_exact(n)) {
            *state = self.op.chunk(row);
        }
    }

    fn columns(&self, elements: Range<usize>, stride: usize, first: usize, states: &mut [State<T, O>]) {
        reduce_columns::<T, O>(&self.x[elements], self.op, stride, first, states);
    }

    fn step(&self, first: usize, states: &mut [State<T, O>]) {
        for (state, &v) in states.iter_mut().zip(&self.x[first..]) {
            *state = self.op.step(*state, v);
        }
    }

    fn merge(&self, states: &mut [State<T, O>], others: &[State<T, O>]) {
        for (state, &other) in states.iter_mut().zip(others) {
            *state = self.op.merge(*state, other);
        }
    }
}

/// Reduce a whole array to one state.
pub fn reduce_all<T: Copy + Sync, O: Op<T> + Default>(x: &[T], threads: usize) -> State<T, O> {
    reduce_all_by(O::default(), x, threads)
}

/// The same by an operation that has numbers of its own.
pub fn reduce_all_by<T: Copy + Sync, O: Op<T>>(op: O, x: &[T], threads: usize) -> State<T, O> {
    whole(&Given { x, op }, 0..x.len(), (O::PIECE, O::IDENTITY), threads)
}

/// Reduce over the middle axis: `outer * inner` states, in C order.
pub fn reduce_axis<T: Copy + Sync, O: Op<T> + Default>(x: &[T], view: View, threads: usize) -> Vec<State<T, O>> {
    reduce_axis_by(O::default(), x, view, threads)
}

/// The same by an operation that has numbers of its own.
pub fn reduce_axis_by<T: Copy + Sync, O: Op<T>>(op: O, x: &[T], view: View, threads: usize) -> Vec<State<T, O>> {
    let mut states = vec![O::IDENTITY; view.outer * view.inner];
    if !x.is_empty() {
        axis(&Given { x, op }, (O::PIECE, O::IDENTITY), view, &mut states, threads);
    }
    states
}

/// The state of `elements`, in pieces of so many; `identity` is that of nothing.
#[inline(never)]
fn whole<S: Copy + Send + Sync>(
    of: &dyn Pieces<S>,
    elements: Range<usize>,
    (piece, identity): (usize, S),
    threads: usize,
) -> S {
    let (start, end) = (elements.start, elements.end);
    let parts = par::map(threads, 0..(end - start).div_ceil(piece), |i| {
        of.chunk(start + i * piece..(start + (i + 1) * piece).min(end))
    });
    let mut all = [identity];
    for part in parts {
        of.merge(&mut all, &[part]);
    }
    all[0]
}

/// The states over the middle axis.
#[inline(never)]
fn axis<S: Copy + Send + Sync>(of: &dyn Pieces<S>, how: (usize, S), view: View, states: &mut [S], threads: usize) {
    let View { n, inner, .. } = view;
    if inner > 1 {
        for (block, states) in states.chunks_mut(inner).enumerate() {
            strided(of, block * n * inner, n, (states, how.1), threads);
        }
    } else if n > CHUNK {
        for (row, state) in states.iter_mut().enumerate() {
            *state = whole(of, row * n..(row + 1) * n, how, threads);
        }
    } else {
        let rows = CHUNK / n;
        par::for_each(threads, states.chunks_mut(rows).enumerate(), |(i, states)| of.rows(i * rows, n, states));
    }
}

/// The case where the reduced axis is not the last, of a block that begins at `start`: pieces of rows x columns, joined in the
/// order of the rows.
///
/// Rows of few columns are first taken several at a time, as one wide row, so that the inner loop stays long.
#[inline(never)]
fn strided<S: Copy + Send + Sync>(
    of: &dyn Pieces<S>,
    start: usize,
    n: usize,
    (states, identity): (&mut [S], S),
    threads: usize,
) {
    let inner = states.len();
    let fused = (256 / inner).clamp(1, n);
    let (wide, wide_rows) = (fused * inner, n / fused);
    let width = wide.min(COLUMNS);
    let rows_in_piece = (STRIDED_CHUNK / width).max(1);
    let (tiles, pieces) = (wide.div_ceil(width), wide_rows.div_ceil(rows_in_piece));
    let parts = par::map(threads, 0..tiles * pieces, |item| {
        let (tile, piece) = (item % tiles, item / tiles);
        let first = tile * width;
        let [from, to] = [piece, piece + 1].map(|piece| start + (piece * rows_in_piece).min(wide_rows) * wide);
        let mut part = vec![identity; width.min(wide - first)];
        of.columns(from..to, wide, first, &mut part);
        part
    });
    for (item, part) in parts.into_iter().enumerate() {
        // Several rows as one make one tile, which begins at column 0.
        let first = (item % tiles) * width;
        for row in part.chunks(inner) {
            of.merge(&mut states[first..], row);
        }
    }
    for row in wide_rows * fused..n {
        of.step(start + row * inner, states);
    }
}

/// The number of a minimum or maximum key, or None if it is a NaN's.
pub fn number<T: Element>(key: T::Key) -> Option<T> {
    (key.magnitude() <= T::INFINITY_KEY).then(|| T::from_key(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{self, Isa};
    use crate::real::{Bf16, F16};

    fn sample(n: usize) -> Vec<f32> {
        let mut state = 0x2545_f491_u32;
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state as i32 as f32) * 1e-6
            })
            .collect()
    }

    #[test]
    fn test_minmax_and_absmax_match_a_plain_fold_for_every_tail() {
        let x = sample(300);
        for n in 1..300 {
            let x = &x[..n];
            let [low, high] = reduce_all::<f32, MinMax>(x, 1);
            assert_eq!(number::<f32>(low).unwrap(), x.iter().copied().fold(f32::INFINITY, f32::min));
            assert_eq!(number::<f32>(high).unwrap(), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let [abs, _] = reduce_all::<f32, AbsMax>(x, 1);
            assert_eq!(f32::from_key(abs), x.iter().map(|v| v.abs()).fold(0.0, f32::max));
        }
    }

    #[test]
    fn test_a3_nan_shows_at_every_place() {
        for sign in [1.0f32, -1.0] {
            for place in 0..130 {
                let mut x = sample(130);
                x[place] = f32::NAN.copysign(sign);
                let [low, high] = reduce_all::<f32, MinMax>(&x, 1);
                assert!(number::<f32>(low).is_none() || number::<f32>(high).is_none());
                let [low, high] = reduce_all::<f32, NanMinMax>(&x, 1);
                assert!(number::<f32>(low).is_some() && number::<f32>(high).is_some());
            }
        }
    }

    #[test]
    fn test_b13_large_cancelling_sums_are_exact() {
        let x: Vec<f64> = [1e100, 1.0, -1e100].repeat(50_001);
        assert_eq!(total(reduce_all::<f64, Sum>(&x, 2)), 50_001.0);
        assert_eq!(total(reduce_all::<f64, Sum>(&[1.0, f64::INFINITY, 1.0], 1)), f64::INFINITY);
        assert!(total(reduce_all::<f64, Sum>(&[f64::NAN], 1)).is_nan());
    }

    #[test]
    fn test_b10_b11_sums_have_the_same_bits_for_every_thread_count_and_instruction_set() {
        let x = &sample(5 * CHUNK + 77)[..];
        let view = View { outer: 3, n: x.len() / 15, inner: 5 };
        let all = || {
            let rows = &x[..3 * view.n * 5];
            (1..9).map(move |threads| {
                let sum = reduce_all::<f32, Sum>(x, threads);
                let axis = reduce_axis::<f32, SquareSum>(rows, view, threads);
                let var = moments_axis(rows, view, threads);
                (sum, axis, var.into_iter().map(|m| (m.mean, m.m2)).collect::<Vec<_>>())
            })
        };
        let want = all().next().unwrap();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            isa::set(isa);
            assert!(all().all(|got| got == want), "{}", isa.name());
        }
    }

    #[test]
    fn test_axis_matches_a_plain_loop_for_every_split() {
        let x = sample(2 * 3 * 5 * 7 * 64);
        for (outer, inner) in [(1, 1), (6, 1), (1, 7), (3, 448), (2, 2), (30, 64), (1, 3 * 5 * 7 * 64)] {
            let n = x.len() / (outer * inner);
            let got = reduce_axis::<f32, Sum>(&x, View { outer, n, inner }, 2);
            for (i, state) in got.into_iter().enumerate() {
                let (o, c) = (i / inner, i % inner);
                let want: f64 = (0..n).map(|r| f64::from(x[(o * n + r) * inner + c])).sum();
                assert!((total(state) - want).abs() <= 1e-9 * want.abs().max(1.0), "{outer} {inner} {i}");
            }
        }
    }

    #[test]
    fn test_counts_of_16_bit_floats() {
        let half: Vec<F16> = (0..=u16::MAX).map(F16).collect();
        assert_eq!(reduce_all::<F16, Counts>(&half, 1), [65_534, 2048]);
        let brain: Vec<Bf16> = (0..=u16::MAX).map(Bf16).collect();
        assert_eq!(reduce_all::<Bf16, Counts>(&brain, 1), [65_534, 256]);
    }
}

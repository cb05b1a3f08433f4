//! Reductions along one axis: an [`Op`] says how two numbers become one, everything else stands here once.
//!
//! An array is seen as (outer, n, inner) and reduced over n. A chunk is reduced in [`LANES`] fixed lanes that are
//! joined as a tree; chunks are joined in index order. Sums run in f64 with the rounding errors carried along
//! (Knuth's two-sum in every lane; Ogita, Rump and Oishi 2005, "Accurate sum and dot product", algorithm 4.1), which
//! costs nothing where memory is the bound.

use crate::isa::kernel;
use crate::par::{self, CHUNK};
use crate::real::{Element, Key};

/// Lanes of a chunk: four 512-bit registers of f64, or eight of 256 bits.
const LANES: usize = 32;

/// Columns that one piece of work reduces at a time where n is not the last axis.
const COLUMNS: usize = 1024;

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
pub trait Op<T: Element>: Copy + Send + Sync {
    /// The scalar of the state.
    type Scalar: Copy + Send + Sync + PartialEq;
    /// The state of nothing.
    const IDENTITY: [Self::Scalar; 2];
    /// Take one number in.
    fn step(state: [Self::Scalar; 2], x: T) -> [Self::Scalar; 2];
    /// Join two states.
    fn merge(a: [Self::Scalar; 2], b: [Self::Scalar; 2]) -> [Self::Scalar; 2];
}

/// The state of an operation.
pub type State<T, O> = [<O as Op<T>>::Scalar; 2];

/// Smallest and largest key; NaN keys lie outside the infinities, so that NaN shows in one of the two.
#[derive(Clone, Copy)]
pub struct MinMax;
/// As `MinMax`, NaN left out.
#[derive(Clone, Copy)]
pub struct NanMinMax;
/// As `MinMax`, NaN and the infinities left out.
#[derive(Clone, Copy)]
pub struct FiniteMinMax;
/// Largest magnitude; NaN's is above infinity's.
#[derive(Clone, Copy)]
pub struct AbsMax;
/// (sum, carried error).
#[derive(Clone, Copy)]
pub struct Sum;
/// Sum of |x|.
#[derive(Clone, Copy)]
pub struct AbsSum;
/// Sum of x².
#[derive(Clone, Copy)]
pub struct SquareSum;
/// (not zero, not finite).
#[derive(Clone, Copy)]
pub struct Counts;

impl<T: Element> Op<T> for MinMax {
    type Scalar = T::Key;
    const IDENTITY: [T::Key; 2] = [T::Key::MAX, T::Key::MIN];
    #[inline(always)]
    fn step(s: [T::Key; 2], x: T) -> [T::Key; 2] {
        let key = x.key();
        [s[0].min(key), s[1].max(key)]
    }
    #[inline(always)]
    fn merge(a: [T::Key; 2], b: [T::Key; 2]) -> [T::Key; 2] {
        [a[0].min(b[0]), a[1].max(b[1])]
    }
}

macro_rules! filtered_minmax {
    ($op:ident, |$magnitude:ident, $infinity:ident| $keep:expr) => {
        impl<T: Element> Op<T> for $op {
            type Scalar = T::Key;
            const IDENTITY: [T::Key; 2] = [T::Key::MAX, T::Key::MIN];
            #[inline(always)]
            fn step(s: [T::Key; 2], x: T) -> [T::Key; 2] {
                let (key, $magnitude, $infinity) = (x.key(), x.magnitude(), T::INFINITY_KEY);
                let low = if $keep { key } else { T::Key::MAX };
                let high = if $keep { key } else { T::Key::MIN };
                [s[0].min(low), s[1].max(high)]
            }
            #[inline(always)]
            fn merge(a: [T::Key; 2], b: [T::Key; 2]) -> [T::Key; 2] {
                <MinMax as Op<T>>::merge(a, b)
            }
        }
    };
}
filtered_minmax!(NanMinMax, |magnitude, infinity| magnitude <= infinity);
filtered_minmax!(FiniteMinMax, |magnitude, infinity| magnitude < infinity);

impl<T: Element> Op<T> for AbsMax {
    type Scalar = T::Key;
    const IDENTITY: [T::Key; 2] = [T::Key::ZERO; 2];
    #[inline(always)]
    fn step(s: [T::Key; 2], x: T) -> [T::Key; 2] {
        [s[0].max(x.magnitude()), s[1]]
    }
    #[inline(always)]
    fn merge(a: [T::Key; 2], b: [T::Key; 2]) -> [T::Key; 2] {
        [a[0].max(b[0]), a[1]]
    }
}

/// Add `x` to `sum`, the rounding error to `error`.
#[inline(always)]
fn two_sum([sum, error]: [f64; 2], x: f64) -> [f64; 2] {
    let total = sum + x;
    let back = total - sum;
    [total, error + ((sum - (total - back)) + (x - back))]
}

macro_rules! sum_op {
    ($op:ident, |$x:ident| $term:expr) => {
        impl<T: Element> Op<T> for $op {
            type Scalar = f64;
            const IDENTITY: [f64; 2] = [0.0; 2];
            #[inline(always)]
            fn step(s: [f64; 2], x: T) -> [f64; 2] {
                let $x = x.to_f64();
                two_sum(s, $term)
            }
            #[inline(always)]
            fn merge(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
                let [sum, error] = two_sum(a, b[0]);
                [sum, error + b[1]]
            }
        }
    };
}
sum_op!(Sum, |x| x);
sum_op!(AbsSum, |x| x.abs());
sum_op!(SquareSum, |x| x * x);

/// The value of a carried sum. Where the sum is not finite, the error is meaningless and the sum says it all.
pub fn total([sum, error]: [f64; 2]) -> f64 {
    let corrected = sum + error;
    if sum.is_finite() && corrected.is_finite() { corrected } else { sum }
}

impl<T: Element> Op<T> for Counts {
    type Scalar = u64;
    const IDENTITY: [u64; 2] = [0; 2];
    #[inline(always)]
    fn step(s: [u64; 2], x: T) -> [u64; 2] {
        let magnitude = x.magnitude();
        [s[0] + (magnitude != T::Key::ZERO) as u64, s[1] + (magnitude >= T::INFINITY_KEY) as u64]
    }
    #[inline(always)]
    fn merge(a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
        [a[0] + b[0], a[1] + b[1]]
    }
}

/// Reduce one contiguous piece: the text that every instruction set runs.
#[inline(always)]
pub(crate) fn reduce_lanes<T: Element, O: Op<T>>(x: &[T]) -> State<T, O> {
    let mut a = [O::IDENTITY[0]; LANES];
    let mut b = [O::IDENTITY[1]; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            [a[i], b[i]] = O::step([a[i], b[i]], block[i]);
        }
    }
    for (i, &v) in tail.iter().enumerate() {
        [a[i], b[i]] = O::step([a[i], b[i]], v);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            [a[i], b[i]] = O::merge([a[i], b[i]], [a[i + width], b[i + width]]);
        }
        width /= 2;
    }
    [a[0], b[0]]
}

kernel! {
    /// Reduce one contiguous piece of at most [`CHUNK`] elements.
    pub fn reduce_chunk<T: Element, O: Op<T>>(x: &[T]) -> State<T, O> {
        reduce_lanes::<T, O>(x)
    }
}

kernel! {
    /// Reduce rows of `stride` elements into `width` columns that begin at `first`.
    fn reduce_columns<T: Element, O: Op<T>>(x: &[T], stride: usize, first: usize, states: &mut [State<T, O>]) {
        let width = states.len();
        let mut a = [O::IDENTITY[0]; COLUMNS];
        let mut b = [O::IDENTITY[1]; COLUMNS];
        let (a, b) = (&mut a[..width], &mut b[..width]);
        for row in x.chunks_exact(stride) {
            for ((a, b), &v) in a.iter_mut().zip(b.iter_mut()).zip(&row[first..first + width]) {
                [*a, *b] = O::step([*a, *b], v);
            }
        }
        for ((state, &a), &b) in states.iter_mut().zip(a.iter()).zip(b.iter()) {
            *state = [a, b];
        }
    }
}

/// Reduce a whole array to one state.
pub fn reduce_all<T: Element, O: Op<T>>(x: &[T], threads: usize) -> State<T, O> {
    par::map(threads, x.chunks(CHUNK), reduce_chunk::<T, O>).into_iter().fold(O::IDENTITY, O::merge)
}

/// Reduce over the middle axis: `outer * inner` states, in C order.
pub fn reduce_axis<T: Element, O: Op<T>>(x: &[T], view: View, threads: usize) -> Vec<State<T, O>> {
    let View { outer, n, inner } = view;
    let mut states = vec![O::IDENTITY; outer * inner];
    if x.is_empty() {
        return states;
    }
    if inner > 1 {
        reduce_strided::<T, O>(x, view, &mut states, threads);
    } else if n > CHUNK {
        for (state, row) in states.iter_mut().zip(x.chunks_exact(n)) {
            *state = reduce_all::<T, O>(row, threads);
        }
    } else {
        let rows = CHUNK / n;
        par::for_each(threads, states.chunks_mut(rows).zip(x.chunks(rows * n)), |(states, x)| {
            for (state, row) in states.iter_mut().zip(x.chunks_exact(n)) {
                *state = reduce_chunk::<T, O>(row);
            }
        });
    }
    states
}

/// The case where the reduced axis is not the last: pieces of rows x columns, joined in the order of the rows.
///
/// Rows of few columns are first taken several at a time, as one wide row, so that the inner loop stays long.
fn reduce_strided<T: Element, O: Op<T>>(x: &[T], view: View, states: &mut [State<T, O>], threads: usize) {
    let View { outer, n, inner } = view;
    let fused = (256 / inner).clamp(1, n);
    let wide = fused * inner;
    let width = wide.min(COLUMNS);
    let rows_in_piece = (CHUNK / width).max(1);
    let wide_rows = n / fused;
    let tiles = wide.div_ceil(width);
    let pieces = wide_rows.div_ceil(rows_in_piece);
    for o in 0..outer {
        let block = &x[o * n * inner..(o + 1) * n * inner];
        let (body, rest) = block.split_at(wide_rows * wide);
        let parts = par::map(threads, 0..tiles * pieces, |item| {
            let (tile, piece) = (item % tiles, item / tiles);
            let first = tile * width;
            let rows = piece * rows_in_piece..((piece + 1) * rows_in_piece).min(wide_rows);
            let mut part = vec![O::IDENTITY; width.min(wide - first)];
            reduce_columns::<T, O>(&body[rows.start * wide..rows.end * wide], wide, first, &mut part);
            part
        });
        let out = &mut states[o * inner..(o + 1) * inner];
        for (item, part) in parts.into_iter().enumerate() {
            for (i, state) in part.into_iter().enumerate() {
                let column = ((item % tiles) * width + i) % inner;
                out[column] = O::merge(out[column], state);
            }
        }
        for row in rest.chunks_exact(inner) {
            for (state, &v) in out.iter_mut().zip(row) {
                *state = O::step(*state, v);
            }
        }
    }
}

/// Number, mean and sum of squared deviations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moments {
    /// How many numbers.
    pub n: f64,
    /// Their mean.
    pub mean: f64,
    /// The sum of their squared deviations from the mean.
    pub m2: f64,
}

impl Moments {
    /// Join two sets (Chan, Golub and LeVeque 1979, "Updating formulae", equation 2.1).
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        if self.n == 0.0 {
            return other;
        }
        let n = self.n + other.n;
        let delta = other.mean - self.mean;
        Self {
            n,
            mean: self.mean + delta * (other.n / n),
            m2: self.m2 + other.m2 + delta * delta * (self.n * other.n / n),
        }
    }
}

kernel! {
    /// Sum and sum of squares of the deviations from `mean` (the first corrects the rounding of `mean`).
    fn deviations<T: Element>(x: &[T], mean: f64) -> [f64; 2] {
        let mut sum = [0.0f64; LANES];
        let mut squares = [0.0f64; LANES];
        let (blocks, tail) = x.as_chunks::<LANES>();
        for block in blocks {
            for i in 0..LANES {
                let d = block[i].to_f64() - mean;
                sum[i] += d;
                squares[i] += d * d;
            }
        }
        for (i, v) in tail.iter().enumerate() {
            let d = v.to_f64() - mean;
            sum[i] += d;
            squares[i] += d * d;
        }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                sum[i] += sum[i + width];
                squares[i] += squares[i + width];
            }
            width /= 2;
        }
        [sum[0], squares[0]]
    }
}

/// The moments of one row; the second look at each chunk finds it in the cache.
fn moments_row<T: Element>(x: &[T], threads: usize) -> Moments {
    par::map(threads, x.chunks(CHUNK), |chunk| {
        let n = chunk.len() as f64;
        let mean = total(reduce_chunk::<T, Sum>(chunk)) / n;
        let [sum, squares] = deviations(chunk, mean);
        Moments { n, mean: mean + sum / n, m2: squares - sum * sum / n }
    })
    .into_iter()
    .fold(Moments::default(), Moments::merge)
}

/// Moments over the middle axis: `outer * inner` of them.
pub fn moments_axis<T: Element>(x: &[T], view: View, threads: usize) -> Vec<Moments> {
    let View { outer, n, inner } = view;
    if n == 0 || x.is_empty() {
        return vec![Moments::default(); outer * inner];
    }
    if inner > 1 {
        return moments_strided(x, view, threads);
    }
    if n > CHUNK {
        return x.chunks_exact(n).map(|row| moments_row(row, threads)).collect();
    }
    let rows = CHUNK / n;
    let batches = par::map(threads, x.chunks(rows * n), |x| {
        x.chunks_exact(n).map(|row| moments_row(row, 1)).collect::<Vec<_>>()
    });
    batches.into_iter().flatten().collect()
}

/// Moments where the reduced axis is not the last: pieces of rows, each column by column in f64.
fn moments_strided<T: Element>(x: &[T], view: View, threads: usize) -> Vec<Moments> {
    let View { n, inner, .. } = view;
    let rows = (CHUNK / inner).max(1);
    let mut out = Vec::with_capacity(view.outer * inner);
    for block in x.chunks_exact(n * inner) {
        let parts = par::map(threads, block.chunks(rows * inner), |piece| {
            let n = (piece.len() / inner) as f64;
            let mut mean = vec![0.0f64; inner];
            for row in piece.chunks_exact(inner) {
                mean.iter_mut().zip(row).for_each(|(m, v)| *m += v.to_f64());
            }
            mean.iter_mut().for_each(|m| *m /= n);
            let (mut sum, mut squares) = (vec![0.0f64; inner], vec![0.0f64; inner]);
            for row in piece.chunks_exact(inner) {
                for (((s, q), m), v) in sum.iter_mut().zip(&mut squares).zip(&mean).zip(row) {
                    let d = v.to_f64() - m;
                    *s += d;
                    *q += d * d;
                }
            }
            let column = |i: usize| Moments { n, mean: mean[i] + sum[i] / n, m2: squares[i] - sum[i] * sum[i] / n };
            (0..inner).map(column).collect::<Vec<_>>()
        });
        let mut merged = vec![Moments::default(); inner];
        for part in parts {
            merged.iter_mut().zip(part).for_each(|(a, b)| *a = a.merge(b));
        }
        out.extend(merged);
    }
    out
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

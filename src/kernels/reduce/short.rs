//! Reductions of rows that are shorter than the lanes of a chunk: many rows side by side.

use super::{Op, State};
use crate::isa::kernel;

/// Elements of a row at most. (Of longer rows the loops over each are faster, but for sums.)
pub(super) const LONGEST: usize = 16;

/// Rows at a time.
const ROWS: usize = 32;

kernel! {
    /// Reduce rows of `n` elements to what [`Op::chunk`] makes of each: element `i` of a row has a lane of its own, and lanes are
    /// joined as there, but the loops run over the rows. (Row by row: the largest magnitudes of 16
    /// columns 1.8 times as long, of 4 columns 7 times, sums 5 to 20 times.)
    pub fn reduce_rows<T: Copy, O: Op<T>>(x: &[T], op: O, n: usize, states: &mut [State<T, O>]) {
        let Some(&first) = x.first() else { return };
        let (mut a, mut b) = ([[O::IDENTITY[0]; ROWS]; LONGEST], [[O::IDENTITY[1]; ROWS]; LONGEST]);
        let mut columns = [[first; ROWS]; LONGEST];
        for (x, states) in x.chunks(ROWS * n).zip(states.chunks_mut(ROWS)) {
            put_columns(x, n, &mut columns);
            for ((a, b), column) in a.iter_mut().zip(&mut b).zip(&columns).take(n) {
                for r in 0..ROWS {
                    [a[r], b[r]] = op.step(O::IDENTITY, column[r]);
                }
            }
            let (mut lanes, mut width) = (n, LONGEST / 2);
            while width > 0 {
                let ((a, more_a), (b, more_b)) = (a.split_at_mut(width), b.split_at_mut(width));
                let more = more_a.iter().zip(&*more_b).take(lanes.saturating_sub(width));
                for ((a, b), (more_a, more_b)) in a.iter_mut().zip(b).zip(more) {
                    for r in 0..ROWS {
                        [a[r], b[r]] = op.merge([a[r], b[r]], [more_a[r], more_b[r]]);
                    }
                }
                lanes = lanes.min(width);
                width /= 2;
            }
            for (r, state) in states.iter_mut().enumerate() {
                *state = [a[0][r], b[0][r]];
            }
        }
    }
}

/// Rows as columns; behind the last row stands what was there.
#[inline(always)]
fn put_columns<T: Copy>(x: &[T], n: usize, columns: &mut [[T; ROWS]; LONGEST]) {
    // Rows of a known length are vectorised: 0.5 to 0.8 of the time of the whole.
    let done = match n {
        2 => put_known::<T, 2>(x, columns),
        4 => put_known::<T, 4>(x, columns),
        8 => put_known::<T, 8>(x, columns),
        16 => put_known::<T, 16>(x, columns),
        _ => false,
    };
    if !done {
        for (r, row) in x.chunks_exact(n).enumerate() {
            for (column, &v) in columns.iter_mut().zip(row) {
                column[r] = v;
            }
        }
    }
}

/// The same for as many rows as there is room for; whether there are.
#[inline(always)]
fn put_known<T: Copy, const N: usize>(x: &[T], columns: &mut [[T; ROWS]; LONGEST]) -> bool {
    let Some(rows) = x.as_chunks::<N>().0.first_chunk::<ROWS>() else { return false };
    for i in 0..N {
        for r in 0..ROWS {
            columns[i][r] = rows[r][i];
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::{AbsMax, Counts, MinMax, NanMinMax, Sum, View, reduce_axis, total};
    use super::*;
    use crate::isa::{self, Isa};
    use crate::real::Element;

    #[test]
    fn test_short_rows_are_reduced_as_each_of_them_alone() {
        fn check<T: Element, O: Op<T> + Default>(x: &[T], value: impl Fn(State<T, O>) -> u64) {
            for n in [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33] {
                for rows in [1, 31, 32, 33, 100] {
                    let x = &x[..rows * n];
                    let want: Vec<_> = x.chunks(n).map(|row| value(O::default().chunk(row))).collect();
                    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                        isa::set(isa);
                        let states = reduce_axis::<T, O>(x, View { outer: rows, n, inner: 1 }, 2);
                        assert!(states.into_iter().map(&value).eq(want.iter().copied()), "{n} {rows} {}", isa.name());
                    }
                }
            }
        }
        let mut x: Vec<f64> = (0..6400u32).map(|i| f64::from(i.wrapping_mul(2_654_435_761) as i32) * 1e-6).collect();
        let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        check::<f64, Sum>(&x, |state| total(state).to_bits());
        check::<f32, Sum>(&narrow(&x), |state| total(state).to_bits());
        for (i, v) in [f64::NAN, f64::INFINITY, -0.0, f64::NEG_INFINITY, 0.0].into_iter().cycle().enumerate().take(900)
        {
            x[i * 7] = v;
        }
        check::<f64, Sum>(&x, |state| total(state).to_bits());
        check::<f64, MinMax>(&x, |[low, high]| low as u64 ^ (high as u64).rotate_left(7));
        check::<f64, NanMinMax>(&x, |[low, high]| low as u64 ^ (high as u64).rotate_left(7));
        check::<f32, AbsMax>(&narrow(&x), |state| state[0] as u64);
        check::<f64, Counts>(&x, |[zeros, infinite]| zeros ^ infinite << 32);
    }
}

//! Whether two arrays agree within tolerances: `|a - b| <= atol + rtol |b|`, computed in float64.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::number::{Number, widen};
use crate::isa::kernel;
use crate::par::{self, CHUNK};

/// What counts as close.
#[derive(Debug, Clone, Copy)]
pub struct Tolerances {
    /// Relative to `|b|`.
    pub relative: f64,
    /// Absolute.
    pub absolute: f64,
    /// Whether two NaN agree.
    pub equal_nan: bool,
}

/// An array that is read as float64, a range at a time.
pub type Reader<'a> = Box<dyn Fn(Range<usize>, &mut [f64]) + Sync + Send + 'a>;

/// The reader of an array; of one number, which goes for all, as often as asked.
pub fn reader<T: Number>(x: &[T]) -> Reader<'_> {
    match x {
        &[one] => Box::new(move |_, out| out.fill(one.as_f64())),
        _ => Box::new(move |range, out| widen(&x[range], out)),
    }
}

/// Elements that are compared at a time.
const BLOCK: usize = 1024;

kernel! {
    /// How many of two blocks are not close.
    fn count_apart(a: &[f64], b: &[f64], tolerances: Tolerances) -> u64 {
        let Tolerances { relative, absolute, equal_nan } = tolerances;
        let mut apart = 0;
        for (&a, &b) in a.iter().zip(b) {
            // Infinities agree where they are equal; from a finite number they are infinitely far.
            let near = (a - b).abs() <= absolute + relative * b.abs() && b.abs() < f64::INFINITY;
            let close = near || a == b || (equal_nan && a != a && b != b);
            apart += u64::from(!close);
        }
        apart
    }
}

/// Whether all `n` pairs are close.
pub fn all_close(n: usize, (a, b): (&Reader<'_>, &Reader<'_>), tolerances: Tolerances, threads: usize) -> bool {
    let apart = AtomicBool::new(false);
    par::for_each(threads, 0..n.div_ceil(CHUNK), |chunk| {
        let (mut left, mut right) = ([0.0; BLOCK], [0.0; BLOCK]);
        for start in (chunk * CHUNK..n.min((chunk + 1) * CHUNK)).step_by(BLOCK) {
            // One pair decides: the rest need not be read.
            if apart.load(Ordering::Relaxed) {
                return;
            }
            let range = start..n.min(start + BLOCK);
            let (left, right) = (&mut left[..range.len()], &mut right[..range.len()]);
            a(range.clone(), left);
            b(range, right);
            if count_apart(left, right, tolerances) > 0 {
                apart.store(true, Ordering::Relaxed);
            }
        }
    });
    !apart.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_close_is_numpys_formula() {
        let tolerances = Tolerances { relative: 0.1, absolute: 0.5, equal_nan: false };
        let close = |a: f64, b: f64, tolerances| all_close(1, (&reader(&[a]), &reader(&[b])), tolerances, 1);
        for (a, b, want) in [
            (10.0, 11.5, true),
            (11.5, 10.0, true),
            (11.6, 10.0, false),
            (f64::INFINITY, f64::INFINITY, true),
            (f64::INFINITY, f64::NEG_INFINITY, false),
            (1.0, f64::INFINITY, false),
            (f64::INFINITY, 1.0, false),
            (f64::NAN, f64::NAN, false),
            (-0.0, 0.0, true),
        ] {
            assert_eq!(close(a, b, tolerances), want, "{a} {b}");
        }
        assert!(close(f64::NAN, f64::NAN, Tolerances { equal_nan: true, ..tolerances }));
    }

    #[test]
    fn test_one_pair_apart_is_found_at_every_place() {
        let tolerances = Tolerances { relative: 0.0, absolute: 0.0, equal_nan: false };
        let x = vec![3u8; CHUNK + 7];
        for place in [0, 1, BLOCK, CHUNK - 1, CHUNK, CHUNK + 6] {
            let mut y = vec![3.0f32; x.len()];
            assert!(all_close(x.len(), (&reader(&x), &reader(&y)), tolerances, 2));
            y[place] = 4.0;
            assert!(!all_close(x.len(), (&reader(&x), &reader(&y)), tolerances, 2));
        }
    }
}

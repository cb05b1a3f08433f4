//! Pruning of weights that come in pieces: counts of their magnitudes, and the cut that follows from them.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::Name;
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{compute, entry};
use super::pruned::{Nan, Options, nan_error, nan_rule};
use super::threads::resolve;
use crate::error::{Error, Result};
use crate::kernels::prune::{self as kernel, Computed, Digit, Double, Job, MAX_WIDTH, Magnitude, Weights};
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

/// `$body` with the score whose keys have `$bits` bits (the element's own, or those of a wider float), else an error.
macro_rules! with_score {
    ($function:literal, $bits:expr, $t:ident, $score:ident => $body:expr) => {
        match $bits {
            bits if bits == <$t as Element>::BITS => {
                let $score = Magnitude;
                $body
            }
            bits if bits == <<$t as Element>::Compute as Element>::BITS => {
                let $score = Computed;
                $body
            }
            64 => {
                let $score = Double;
                $body
            }
            bits => return Err(narrow($function, <$t as Element>::BITS, bits).into()),
        }
    };
}

fn narrow(function: &str, own: u32, bits: u32) -> Error {
    let known = match own {
        16 => "16, 32 or 64",
        32 => "32 or 64",
        _ => "64",
    };
    Error::Value(format!("{function}: bits must be {known} for this dtype, got {bits}"))
}

/// `(bits of a key, prefix, shift, width)`.
type GivenDigit = (u32, u64, u32, u32);

fn check_digit((bits, prefix, shift, width): GivenDigit) -> Result<Digit> {
    let above = bits.checked_sub(1).and_then(|rest| rest.checked_sub(shift)).and_then(|rest| rest.checked_sub(width));
    match above {
        Some(above) if (1..=MAX_WIDTH).contains(&width) && bits <= 64 && prefix >> above == 0 => {
            Ok(Digit { prefix, shift, width })
        }
        _ => {
            let text = format!("count_magnitudes: digit must lie within a key, got {bits} {prefix} {shift} {width}");
            Err(Error::Value(text))
        }
    }
}

/// Add to `counts` how many magnitudes have each value of a digit.
#[pyfunction]
fn count_magnitudes<'py>(w: &Obj<'py>, digit: GivenDigit, counts: &Obj<'py>, options: Options<'py>) -> PyResult<()> {
    const FUNCTION: &str = "count_magnitudes";
    entry(FUNCTION, || {
        let (nan, dtype, threads) = options;
        let (nan, threads) = (nan_rule(FUNCTION, &nan)?, resolve(FUNCTION, threads.as_ref())?);
        let w = Array::float(Name::new(FUNCTION, "w"), w, dtype.as_ref())?;
        let bits = digit.0;
        let digit = check_digit(digit)?;
        let mut counts = Array::ints_out(Name::new(FUNCTION, "counts"), counts)?;
        counts.expect_dtype(Dtype::I64, "int64")?;
        counts.expect_shape(&[1 << digit.width])?;
        let _borrow = borrow(&[&w, &counts])?;
        let saw_nan = match_dtype!(w, T => with_score!("count_magnitudes", bits, T, score => {
            let (x, counts) = (w.slice::<T>(), counts.slice_mut::<i64>());
            compute(w.object.py(), || kernel::count(x, score, digit, counts, threads))?
        }));
        if saw_nan && nan != Nan::Largest {
            let order: Vec<usize> = (0..w.shape().len()).collect();
            return Err(nan_error(&w, &order, threads));
        }
        Ok(())
    })
}

/// In place: weights whose key is below `key` go, and the first `ties` of those that have it. How many of these went.
#[pyfunction]
fn apply_cut<'py>(
    w: &Obj<'py>,
    cut: (u32, u64, u64),
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<u64> {
    entry("apply_cut", || {
        let (bits, key, ties) = cut;
        let threads = resolve("apply_cut", threads)?;
        let mut w = Array::float_out(Name::new("apply_cut", "w"), w, dtype)?;
        if !(16..=64).contains(&bits) || key >> (bits - 1) != 0 {
            let text = format!("apply_cut: key must be a magnitude of {bits} bits, got {key}");
            return Err(Error::Value(text).into());
        }
        let _borrow = borrow(&[&w])?;
        let py = w.object.py();
        match_dtype!(w, T => with_score!("apply_cut", bits, T, score => {
            let job = Job::<T, Weights> { x: None, out: w.slice_mut::<T>() };
            compute(py, || kernel::cut(job, score, key, ties, threads))
        }))
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(count_magnitudes, m)?)?;
    m.add_function(wrap_pyfunction!(apply_cut, m)?)
}

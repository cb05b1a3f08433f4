//! Order statistics, histograms, and the comparison of two arrays.

use numpy::{PyArray1, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{Name, int, number, pair};
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{match_dtype, match_number, match_width};
use super::error::{ask_memory, compute, entry};
use super::result::result;
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::reduce::{self as kernel, Extremes, Keys, MinMax, Word, integer_as_f64};
use crate::kernels::{compare, histogram as hist, select};
use crate::real::{Element, F16};

type Obj<'py> = Bound<'py, PyAny>;

/// Bins at most: the edges and counts then take 1 GiB.
const MAX_BINS: i64 = 1 << 26;

/// The ends of a range.
fn ends(given: &Obj<'_>) -> PyResult<(f64, f64)> {
    let [low, high] = pair("histogram", "range", given)?;
    Ok((number("histogram", "range", &low)?, number("histogram", "range", &high)?))
}

#[pyfunction]
#[pyo3(signature = (x, bins, range, dtype, threads))]
fn histogram<'py>(
    x: &Obj<'py>,
    bins: &Obj<'py>,
    range: Option<&Obj<'py>>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<(Obj<'py>, Obj<'py>)> {
    entry("histogram", || {
        let py = x.py();
        let array = Array::number(Name::new("histogram", "x"), x, dtype)?;
        let threads = resolve("histogram", threads)?;
        let bins = int("histogram", "bins", "from 1 to 67,108,864", bins)?;
        if !(1..=MAX_BINS).contains(&bins) {
            return Err(Error::Value(format!("histogram: bins must be from 1 to {MAX_BINS}, got {bins}")).into());
        }
        let _borrow = borrow(&[&array])?;
        let (low, high) = match range {
            Some(given) => ends(given)?,
            None if array.len() == 0 => (0.0, 1.0),
            None => found_ends(&array, threads)?,
        };
        if !(low.is_finite() && high.is_finite()) {
            let text = format!("histogram: range must be finite, got ({low}, {high}); pass range=(low, high)");
            return Err(Error::Value(text).into());
        }
        if low > high {
            let text = format!("histogram: range must have low <= high, got ({low}, {high})");
            return Err(Error::Value(text).into());
        }
        let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
        // Edges, bins and counts, and the counters of each worker.
        ask_memory("histogram", (bins as usize + 2) * 8 * (5 + threads))?;
        let edges = hist::edges(low, high, bins as usize);
        let counts = match_number!(array, x => compute(py, || hist::histogram(x, &edges, threads))?);
        let counts = PyArray1::from_iter(py, counts.into_iter().map(|count| count as i64));
        Ok((counts.into_any(), PyArray1::from_vec(py, edges).into_any()))
    })
}

/// The smallest and the largest element, NaN where there is one.
fn found_ends(array: &Array<'_>, threads: usize) -> PyResult<(f64, f64)> {
    let (py, signed) = (array.object.py(), array.dtype.is_signed());
    if !array.dtype.is_float() {
        return match_width!(array, W => {
            let (x, keys) = (array.bits_as::<W>(), Keys::<W>::integer(signed));
            let [low, high] = compute(py, || kernel::reduce_all_by(Extremes(keys), x, threads))?;
            let end = |key| integer_as_f64(keys.integer_of(key), signed);
            Ok((end(low), end(high)))
        });
    }
    match_dtype!(array, T => {
        let x = array.slice::<T>();
        let [low, high] = compute(py, || kernel::reduce_all::<T, MinMax>(x, threads))?;
        let end = |key| kernel::number::<T>(key).map_or(f64::NAN, T::to_f64);
        Ok((end(low), end(high)))
    })
}

/// Elements of the given ranks of integers, which words of their size carry.
fn ranked_integers(array: &Array<'_>, ranks: &[u64], threads: usize) -> Vec<f64> {
    let signed = array.dtype.is_signed();
    macro_rules! carried {
        ($carrier:ty, $word:ty) => {{
            let order = if signed { select::Order::Signed } else { select::Order::Unsigned };
            let found = select::select(&[array.bits_as::<$carrier>()], order, ranks, threads);
            found.iter().map(|f| integer_as_f64(<$word>::of_bits(f.value.to_bits64()), signed)).collect()
        }};
    }
    match array.dtype.size() {
        1 => {
            let flipped = if signed { 0x80 } else { 0 };
            let found = select::select_bytes(array.bits_as::<i8>(), flipped, ranks, threads);
            found.into_iter().map(|byte| integer_as_f64(byte, signed)).collect()
        }
        2 => carried!(F16, i16),
        4 => carried!(f32, i32),
        _ => carried!(f64, i64),
    }
}

/// The same of floats; None where one is NaN.
fn ranked_floats<T: Element>(x: &[T], ranks: &[u64], threads: usize) -> Option<Vec<f64>> {
    let [low, high] = kernel::reduce_all::<T, MinMax>(x, threads);
    kernel::number::<T>(low).and(kernel::number::<T>(high))?;
    let found = select::select(&[x], select::Order::Value, ranks, threads);
    Some(found.iter().map(|f| f.value.to_f64()).collect())
}

#[pyfunction]
fn quantile<'py>(
    x: &Obj<'py>,
    q: PyReadonlyArray1<'py, f64>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("quantile", || {
        let py = x.py();
        let array = Array::number(Name::new("quantile", "x"), x, dtype)?;
        let threads = resolve("quantile", threads)?;
        let q = q.as_array();
        if array.len() == 0 {
            return Err(Error::Value("quantile: x must not be empty".into()).into());
        }
        if let Some(bad) = q.iter().find(|q| !(0.0..=1.0).contains(*q)) {
            return Err(Error::Value(format!("quantile: q must be from 0 to 1, got {bad}")).into());
        }
        let last = (array.len() - 1) as f64;
        // NumPy's linear method: between the neighbours of the virtual index q (n - 1).
        let places: Vec<f64> = q.iter().map(|q| q * last).collect();
        let ranks: Vec<u64> = places.iter().flat_map(|p| [p.floor() as u64, p.ceil() as u64]).collect();
        let _borrow = borrow(&[&array])?;
        let found = if array.dtype.is_float() {
            match_dtype!(array, T => {
                let x = array.slice::<T>();
                compute(py, || ranked_floats(x, &ranks, threads))?
            })
        } else {
            Some(ranked_integers(&array, &ranks, threads))
        };
        let values: Vec<f64> = match found {
            Some(found) => {
                let between = |(pair, place): (&[f64], &f64)| interpolate(pair[0], pair[1], place.fract());
                found.chunks_exact(2).zip(&places).map(between).collect()
            }
            None => vec![f64::NAN; places.len()],
        };
        Ok(PyArray1::from_vec(py, values).into_any())
    })
}

/// Between a and b as `numpy.quantile` does it: from the nearer end, so that the ends are met exactly.
fn interpolate(a: f64, b: f64, t: f64) -> f64 {
    if a == b {
        return a;
    }
    let difference = b - a;
    if t >= 0.5 { b - difference * (1.0 - t) } else { a + difference * t }
}

#[pyfunction]
fn kth_magnitude<'py>(
    x: &Obj<'py>,
    k: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("kth_magnitude", || {
        let array = Array::float(Name::new("kth_magnitude", "x"), x, dtype)?;
        let threads = resolve("kth_magnitude", threads)?;
        let n = array.len();
        let k = int("kth_magnitude", "k", "from 0 to below the number of elements", k)?;
        let k = u64::try_from(k).ok().filter(|&k| k < n as u64).ok_or_else(|| {
            Error::Value(format!("kth_magnitude: k must be from 0 to below the {n} elements, got {k}"))
        })?;
        let _borrow = borrow(&[&array])?;
        match_dtype!(array, T => {
            let slice = array.slice::<T>();
            let found = compute(x.py(), || select::select(&[slice], select::Order::Magnitude, &[k], threads))?;
            result(x.py(), &[found[0].value], &[], array.object.dtype().as_any())
        })
    })
}

#[pyfunction]
fn error_stats<'py>(
    x: &Obj<'py>,
    y: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<(f64, f64, f64, f64, f64)> {
    entry("error_stats", || {
        let a = Array::float(Name::new("error_stats", "x"), x, dtype)?;
        let b = Array::float(Name::new("error_stats", "y"), y, None)?;
        let threads = resolve("error_stats", threads)?;
        b.expect_shape(a.shape())?;
        let _borrow = borrow(&[&a, &b])?;
        let s = match_dtype!(a, A => match_dtype!(b, B => {
            let (a, b) = (a.slice::<A>(), b.slice::<B>());
            compute(x.py(), || compare::stats(a, b, threads))?
        }));
        Ok((s.xx, s.yy, s.xy, s.dd, s.max))
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(histogram, m)?)?;
    m.add_function(wrap_pyfunction!(quantile, m)?)?;
    m.add_function(wrap_pyfunction!(kth_magnitude, m)?)?;
    m.add_function(wrap_pyfunction!(error_stats, m)?)
}

//! Reductions and order statistics.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::number;
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype, match_number, match_width};
use super::error::{compute, entry};
use super::reduction::Call;
use crate::error::Error;
use crate::kernels::reduce::{
    self as kernel, AbsMax, AbsSum, Counts, Extremes, FiniteMinMax, Keys, MinMax, Moments, NanMinMax, SquareSum, Sum,
    WordSum, integer_as_f64,
};
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

/// The same NaN whatever computed it.
fn one_nan(x: f64) -> f64 {
    if x.is_nan() { f64::NAN } else { x }
}

/// The total of each part under one of the sums.
macro_rules! sums {
    ($call:expr, $op:ident) => {
        match_dtype!($call.x, T => $call.states::<T, $op>()?.into_iter().map(kernel::total).collect::<Vec<f64>>())
    };
}

/// The smallest (0) or largest (1) elements, those that are asked for.
pub fn extremes<'py, const N: usize>(call: &Call<'py>, nan: &str, sides: [usize; N]) -> PyResult<[Obj<'py>; N]> {
    call.refuse_empty()?;
    let ends: Vec<Obj<'py>> = if call.x.dtype.is_float() {
        match_dtype!(call.x, T => {
            let states = match nan {
                "propagate" => call.states::<T, MinMax>()?,
                "ignore" => call.states::<T, NanMinMax>()?,
                _ => call.states::<T, FiniteMinMax>()?,
            };
            let nan = T::store_f64(f64::NAN);
            let end = |i: usize| states.iter().map(|&[low, high]| {
                match (kernel::number::<T>(low), kernel::number::<T>(high)) {
                    (Some(low), Some(high)) => [low, high][i],
                    _ => nan,
                }
            }).collect::<Vec<T>>();
            sides.iter().map(|&i| call.own(&end(i))).collect::<PyResult<_>>()?
        })
    } else {
        match_width!(call.x, W => {
            let keys = Keys::<W>::integer(call.x.dtype.is_signed());
            let states = call.word_states(Extremes(keys))?;
            let end = |i: usize| call.own_words(states.iter().map(|state| keys.integer_of(state[i])));
            sides.iter().map(|&i| end(i)).collect::<PyResult<_>>()?
        })
    };
    ends.try_into().map_err(|_| unreachable!("as many as were asked for"))
}

/// The exact sums of integers, or of their magnitudes.
fn integer_sums(call: &Call<'_>, magnitudes: bool) -> PyResult<Vec<i128>> {
    let (n, signed) = (call.view.n, call.x.dtype.is_signed());
    if call.x.dtype == Dtype::Bool {
        return Ok(call.nonzero()?.into_iter().map(i128::from).collect());
    }
    match_width!(call.x, W => {
        let op = if magnitudes { WordSum::<W>::of_magnitudes(signed) } else { WordSum::new(signed) };
        Ok(call.word_states(op)?.into_iter().map(|state| op.total(state, n)).collect())
    })
}

fn moments(call: &Call<'_>) -> PyResult<Vec<Moments>> {
    call.reserve()?;
    let _borrow = borrow(&[&call.x])?;
    let (view, threads) = (call.view, call.threads);
    match_number!(call.x, x => compute(call.x.object.py(), || kernel::moments_axis(x, view, threads)))
}

/// Norms of integers: of the order inf their largest magnitude.
fn integer_norms(call: &Call<'_>, ord: f64) -> PyResult<Vec<f64>> {
    if ord == 1.0 {
        return Ok(integer_sums(call, true)?.into_iter().map(|sum| sum as f64).collect());
    }
    if ord == 2.0 {
        return Ok(moments(call)?.into_iter().map(|m| (m.m2 + m.n * m.mean * m.mean).sqrt()).collect());
    }
    let signed = call.x.dtype.is_signed();
    Ok(match_width!(call.x, W => {
        let keys = Keys::<W>::integer(signed);
        let states = call.word_states(Extremes(keys))?;
        let magnitude = |key: W| integer_as_f64(keys.integer_of(key), signed).abs();
        states.into_iter().map(|[low, high]| magnitude(low).max(magnitude(high))).collect()
    }))
}

#[pyfunction]
fn minmax<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    nan: &str,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<(Obj<'py>, Obj<'py>)> {
    let function = if nan == "propagate" { "minmax" } else { "nanminmax" };
    entry(function, || {
        let call = Call::new(function, Array::number, x, (axis, keepdims), dtype, threads)?;
        let [low, high] = extremes(&call, nan, [0, 1])?;
        Ok((low, high))
    })
}

#[pyfunction]
fn absmax<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("absmax", || {
        let call = Call::new("absmax", Array::float, x, (axis, keepdims), dtype, threads)?;
        call.refuse_empty()?;
        match_dtype!(call.x, T => {
            let values: Vec<T> = call.states::<T, AbsMax>()?.into_iter().map(|[key, _]| T::from_key(key)).collect();
            call.own(&values)
        })
    })
}

#[pyfunction]
fn sum<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("sum", || {
        let call = Call::new("sum", Array::number, x, (axis, keepdims), dtype, threads)?;
        if call.x.dtype.is_float() {
            return call.f64(&sums!(call, Sum));
        }
        // Modulo 2^64, as NumPy.
        let sums = integer_sums(&call, false)?.into_iter();
        if call.x.dtype.is_signed() || call.x.dtype == Dtype::Bool {
            return call.i64(sums.map(|sum| sum as i64));
        }
        call.u64(sums.map(|sum| sum as u64))
    })
}

#[pyfunction]
fn mean<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("mean", || {
        let call = Call::new("mean", Array::number, x, (axis, keepdims), dtype, threads)?;
        call.refuse_empty()?;
        let n = call.view.n as f64;
        let sums = if call.x.dtype.is_float() {
            sums!(call, Sum)
        } else {
            integer_sums(&call, false)?.into_iter().map(|sum| sum as f64).collect()
        };
        call.f64(&sums.into_iter().map(|sum| sum / n).collect::<Vec<_>>())
    })
}

#[pyfunction]
fn var<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    ddof: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("var", || {
        let call = Call::new("var", Array::number, x, (axis, keepdims), dtype, threads)?;
        call.refuse_empty()?;
        let ddof = number("var", "ddof", ddof)?;
        if !(ddof < call.view.n as f64) {
            let text = format!("var: ddof must be less than the {} elements, got {ddof}", call.view.n);
            return Err(Error::Value(text).into());
        }
        call.f64(&moments(&call)?.into_iter().map(|m| one_nan(m.m2 / (m.n - ddof))).collect::<Vec<_>>())
    })
}

#[pyfunction]
fn norm<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    ord: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("norm", || {
        let call = Call::new("norm", Array::number, x, (axis, keepdims), dtype, threads)?;
        let ord = number("norm", "ord", ord)?;
        if ord == f64::INFINITY {
            call.refuse_empty()?;
        } else if ord != 1.0 && ord != 2.0 {
            return Err(Error::Value(format!("norm: ord must be 1, 2 or inf, got {ord}")).into());
        }
        let values = if !call.x.dtype.is_float() {
            integer_norms(&call, ord)?
        } else if ord == 1.0 {
            sums!(call, AbsSum)
        } else if ord == 2.0 {
            sums!(call, SquareSum).into_iter().map(f64::sqrt).collect()
        } else {
            match_dtype!(call.x, T => {
                call.states::<T, AbsMax>()?.into_iter().map(|[key, _]| one_nan(T::from_key(key).to_f64())).collect()
            })
        };
        call.f64(&values)
    })
}

#[pyfunction]
fn count_nonzero<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("count_nonzero", || {
        let call = Call::new("count_nonzero", Array::number, x, (axis, keepdims), dtype, threads)?;
        call.i64(call.nonzero()?.into_iter().map(|count| count as i64))
    })
}

#[pyfunction]
fn count_nonfinite<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("count_nonfinite", || {
        let call = Call::new("count_nonfinite", Array::number, x, (axis, keepdims), dtype, threads)?;
        if !call.x.dtype.is_float() {
            call.reserve()?;
            return call.i64(vec![0; call.view.outer * call.view.inner].into_iter());
        }
        let states = match_dtype!(call.x, T => call.states::<T, Counts>()?);
        call.i64(states.into_iter().map(|[_, count]| count as i64))
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(minmax, m)?)?;
    m.add_function(wrap_pyfunction!(absmax, m)?)?;
    m.add_function(wrap_pyfunction!(sum, m)?)?;
    m.add_function(wrap_pyfunction!(mean, m)?)?;
    m.add_function(wrap_pyfunction!(var, m)?)?;
    m.add_function(wrap_pyfunction!(norm, m)?)?;
    m.add_function(wrap_pyfunction!(count_nonzero, m)?)?;
    m.add_function(wrap_pyfunction!(count_nonfinite, m)?)
}

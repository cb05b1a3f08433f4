//! Quantize, dequantize and fake-quantize in named formats.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;
use pyo3::types::{PyModule, PyTuple};

use super::arg::Name;
use super::array::Array;
use super::borrow::borrow;
use super::dtype::match_dtype;
use super::error::{ask_memory, compute, entry};
use super::format_parts::{Arrays, GivenParts, GivenSpec, plan};
use super::quant::{nonfinite_error, policy};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::codes::{self, Floats};

type Obj<'py> = Bound<'py, PyAny>;

fn nonfinite<T: Floats>(function: &str, x: &[T], shape: &[usize], threads: usize) -> Error {
    if let Some(i) = codes::first_beyond_float32(x) {
        let value = x[i].to_f64();
        return Error::Value(format!(
            "{function}: x must be within the range of float32, got {value:e} at flat index {i}"
        ));
    }
    nonfinite_error(function, x, shape, threads)
}

#[pyfunction]
fn format_shapes<'py>(
    py: Python<'py>,
    shape: Vec<usize>,
    spec: GivenSpec<'py>,
) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyTuple>)> {
    entry("quantize", || {
        let plan = plan("quantize", &spec, &shape)?;
        Ok((PyTuple::new(py, plan.codes)?, PyTuple::new(py, plan.scale)?))
    })
}

#[pyfunction]
fn quantize_format<'py>(
    x: &Obj<'py>,
    out: GivenParts<'py>,
    spec: GivenSpec<'py>,
    nonfinite: &Obj<'py>,
    absmax: Option<f32>,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("quantize", || {
        let py = x.py();
        let threads = resolve("quantize", threads)?;
        let policy = policy("quantize", nonfinite)?;
        let x = Array::float(Name::new("quantize", "x"), x, dtype)?;
        let plan = plan("quantize", &spec, x.shape())?;
        let mut arrays = Arrays::new("quantize", &out, &plan, true)?;
        let _borrow = borrow(&std::iter::once(&x).chain(arrays.all()).collect::<Vec<_>>())?;
        ask_memory("quantize", plan.scratch(x.len()))?;
        match_dtype!(x, T => {
            let (source, shape) = (x.slice::<T>(), x.shape().to_vec());
            let mut none = 1.0;
            let parts = arrays.write(&mut none);
            compute(py, || {
                codes::quantize(plan.format, source, plan.spec, policy, absmax.unwrap_or(0.0), parts, threads)
                    .map_err(|_| self::nonfinite("quantize", source, &shape, threads))
            })??;
        });
        Ok(())
    })
}

#[pyfunction]
fn dequantize_format<'py>(
    parts: GivenParts<'py>,
    spec: GivenSpec<'py>,
    out: &Obj<'py>,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("dequantize", || {
        let py = out.py();
        let threads = resolve("dequantize", threads)?;
        let mut out = Array::float_out(Name::new("dequantize", "out"), out, dtype)?;
        let plan = plan("dequantize", &spec, out.shape())?;
        let arrays = Arrays::new("dequantize", &parts, &plan, false)?;
        let _borrow = borrow(&std::iter::once(&out).chain(arrays.all()).collect::<Vec<_>>())?;
        match_dtype!(out, O => {
            let (parts, target) = (arrays.read(), out.slice_mut::<O>());
            compute(py, || codes::dequantize(plan.format, parts, plan.spec, target, threads))?;
        });
        Ok(())
    })
}

#[pyfunction]
fn fake_quantize_format<'py>(
    x: &Obj<'py>,
    out: &Obj<'py>,
    spec: GivenSpec<'py>,
    nonfinite: &Obj<'py>,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("fake_quantize", || {
        let py = x.py();
        let threads = resolve("fake_quantize", threads)?;
        let policy = policy("fake_quantize", nonfinite)?;
        let x = Array::float(Name::new("fake_quantize", "x"), x, dtype)?;
        let plan = plan("fake_quantize", &spec, x.shape())?;
        let mut out = Array::float_out(Name::new("fake_quantize", "out"), out, dtype)?;
        out.expect_shape(x.shape())?;
        out.expect_dtype(x.dtype, x.object.dtype())?;
        let _borrow = borrow(&[&x, &out])?;
        ask_memory("fake_quantize", plan.scratch(x.len()))?;
        match_dtype!(x, T => {
            let (source, shape, target) = (x.slice::<T>(), x.shape().to_vec(), out.slice_mut::<T>());
            compute(py, || {
                codes::fake_quantize(plan.format, source, plan.spec, policy, target, threads)
                    .map_err(|_| self::nonfinite("fake_quantize", source, &shape, threads))
            })??;
        });
        Ok(())
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(format_shapes, m)?)?;
    m.add_function(wrap_pyfunction!(quantize_format, m)?)?;
    m.add_function(wrap_pyfunction!(dequantize_format, m)?)?;
    m.add_function(wrap_pyfunction!(fake_quantize_format, m)?)
}

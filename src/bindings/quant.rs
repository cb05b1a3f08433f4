//! Quantize, dequantize, fake-quantize.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;
use pyo3::types::{PyModule, PyTuple};

use super::arg::{Name, text};
use super::array::{Array, tuple};
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{ask_memory, compute, entry};
use super::parts::{GivenParts, GivenSpec, Parts, plan};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::affine::{self, Policy};
use crate::kernels::reduce::{Counts, reduce_all};
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

/// The dtype that scales of `x` have.
fn compute_dtype(x: &Array<'_>) -> (Dtype, &'static str) {
    if x.dtype == Dtype::F64 { (Dtype::F64, "float64") } else { (Dtype::F32, "float32") }
}

pub fn policy(function: &str, given: &Obj<'_>) -> PyResult<Policy> {
    let text = text(function, "nonfinite", given)?;
    match text.as_str() {
        // The outputs are the caller's own and not yet anyone else's.
        "raise" => Ok(Policy::Raise),
        "raise-first" => Ok(Policy::RaiseFirst),
        "saturate" => Ok(Policy::Saturate),
        _ => Err(Error::Value(format!("{function}: nonfinite must be 'raise' or 'saturate', got {text:?}")).into()),
    }
}

/// How many are not finite, and where the first lies.
pub fn nonfinite_text<T: Element>(x: &[T], shape: &[usize], threads: usize) -> String {
    let [_, count] = reduce_all::<T, Counts>(x, threads);
    let flat = x.iter().position(|v| v.magnitude() >= T::INFINITY_KEY).unwrap_or(0);
    let mut index = vec![0; shape.len()];
    let mut rest = flat;
    for (i, &n) in shape.iter().enumerate().rev() {
        index[i] = rest % n;
        rest /= n;
    }
    let values = if count == 1 { "value" } else { "values" };
    format!("{count} non-finite {values}, first at index {}", tuple(&index))
}

pub fn nonfinite_error<T: Element>(function: &str, x: &[T], shape: &[usize], threads: usize) -> Error {
    let text = nonfinite_text(x, shape, threads);
    Error::Value(format!("{function}: x has {text}; pass nonfinite=\"saturate\" to map them"))
}

#[pyfunction]
fn quantize<'py>(
    x: &Obj<'py>,
    out: GivenParts<'py>,
    spec: GivenSpec<'py>,
    nonfinite: &Obj<'py>,
    offset_binary: bool,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("quantize", || {
        let py = x.py();
        let threads = resolve("quantize", threads)?;
        let policy = policy("quantize", nonfinite)?;
        let x = Array::float(Name::new("quantize", "x"), x, dtype)?;
        let plan = plan("quantize", &spec, x.shape(), offset_binary)?;
        let mut parts = Parts::new("quantize", &out, &plan, true)?;
        let (wanted, what) = compute_dtype(&x);
        parts.scale.expect_dtype(wanted, what)?;
        let _borrow = borrow(&std::iter::once(&x).chain(parts.arrays()).collect::<Vec<_>>())?;
        ask_memory("quantize", plan.scratch())?;
        match_dtype!(x, T => {
            let (source, shape) = (x.slice::<T>(), x.shape().to_vec());
            let (codes, params) = parts.write::<<T as Element>::Compute>();
            compute(py, || {
                affine::quantize(source, plan.spec, policy, codes, params, threads)
                    .map_err(|_| nonfinite_error("quantize", source, &shape, threads))
            })??;
        });
        Ok(())
    })
}

#[pyfunction]
fn dequantize<'py>(
    parts: GivenParts<'py>,
    spec: GivenSpec<'py>,
    out: &Obj<'py>,
    offset_binary: bool,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("dequantize", || {
        let py = out.py();
        let threads = resolve("dequantize", threads)?;
        let mut out = Array::float_out(Name::new("dequantize", "out"), out, dtype)?;
        let plan = plan("dequantize", &spec, out.shape(), offset_binary)?;
        let parts = Parts::new("dequantize", &parts, &plan, false)?;
        let _borrow = borrow(&std::iter::once(&out).chain(parts.arrays()).collect::<Vec<_>>())?;
        match_dtype!(out, O => {
            let target = out.slice_mut::<O>();
            if parts.scale.dtype == Dtype::F64 {
                let (codes, params) = parts.read::<f64>();
                compute(py, || affine::dequantize(codes, plan.spec, params, target, threads))?;
            } else {
                let (codes, params) = parts.read::<f32>();
                compute(py, || affine::dequantize(codes, plan.spec, params, target, threads))?;
            }
        });
        Ok(())
    })
}

#[pyfunction]
fn fake_quantize<'py>(
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
        let plan = plan("fake_quantize", &spec, x.shape(), false)?;
        let mut out = Array::float_out(Name::new("fake_quantize", "out"), out, dtype)?;
        out.expect_shape(x.shape())?;
        out.expect_dtype(x.dtype, x.object.dtype())?;
        let _borrow = borrow(&[&x, &out])?;
        ask_memory("fake_quantize", plan.scratch())?;
        match_dtype!(x, T => {
            let (source, shape, target) = (x.slice::<T>(), x.shape().to_vec(), out.slice_mut::<T>());
            compute(py, || {
                affine::fake_quantize(source, plan.spec, policy, target, threads)
                    .map_err(|_| nonfinite_error("fake_quantize", source, &shape, threads))
            })??;
        });
        Ok(())
    })
}

/// The shapes of codes and scales, and all that can be wrong with a specification.
#[pyfunction]
fn quantized_shapes<'py>(
    py: Python<'py>,
    shape: Vec<usize>,
    spec: GivenSpec<'py>,
) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyTuple>)> {
    entry("quantize", || {
        let plan = plan("quantize", &spec, &shape, false)?;
        Ok((PyTuple::new(py, plan.codes)?, PyTuple::new(py, plan.parts)?))
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(quantized_shapes, m)?)?;
    m.add_function(wrap_pyfunction!(quantize, m)?)?;
    m.add_function(wrap_pyfunction!(dequantize, m)?)?;
    m.add_function(wrap_pyfunction!(fake_quantize, m)?)
}

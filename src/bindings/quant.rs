//! Quantize, dequantize, fake-quantize: every format.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;
use pyo3::types::{PyModule, PyTuple};

use super::arg::{Name, text};
use super::array::{Array, tuple};
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{ask_memory, compute, entry};
use super::parts::{Arrays, GivenParts};
use super::spec::{GivenSpec, plan};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::codes::{self, Coding, Floats, Policy, uniform};
use crate::kernels::reduce::{Counts, reduce_all};
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

/// The dtype that scales of `x` have.
pub fn compute_dtype(x: &Array<'_>) -> (Dtype, &'static str) {
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

/// Why an array is not finite: of blocks, whose numbers are float32, also what is finite in its own dtype only.
fn refused<T: Floats>(function: &str, coding: Coding, x: &[T], shape: &[usize], threads: usize) -> Error {
    if let (Coding::Blocks(_), Some(i)) = (coding, codes::first_beyond_float32(x)) {
        let value = x[i].to_f64();
        return Error::Value(format!(
            "{function}: x must be within the range of float32, got {value:e} at flat index {i}"
        ));
    }
    nonfinite_error(function, x, shape, threads)
}

#[pyfunction]
fn quantize<'py>(
    x: &Obj<'py>,
    out: GivenParts<'py>,
    spec: GivenSpec<'py>,
    nonfinite: &Obj<'py>,
    absmax: Option<f32>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("quantize", || {
        let py = x.py();
        let threads = resolve("quantize", threads)?;
        let policy = policy("quantize", nonfinite)?;
        let x = Array::float(Name::new("quantize", "x"), x, dtype)?;
        let plan = plan("quantize", &spec, x.shape())?;
        let mut arrays = Arrays::new("quantize", &out, &plan, true)?;
        let coding = plan.format.coding;
        if let Coding::Uniform(_) = coding {
            let (wanted, what) = compute_dtype(&x);
            arrays.scale.expect_dtype(wanted, what)?;
        }
        let _borrow = borrow(&std::iter::once(&x).chain(arrays.all()).collect::<Vec<_>>())?;
        ask_memory("quantize", plan.scratch(x.len()))?;
        match_dtype!(x, T => {
            let (source, shape) = (x.slice::<T>(), x.shape().to_vec());
            let refused = |_| refused("quantize", coding, source, &shape, threads);
            match coding {
                Coding::Uniform(code) => {
                    let (codes, params) = arrays.write_uniform::<<T as Element>::Compute>();
                    compute(py, || {
                        uniform::quantize(source, code, plan.spec, policy, codes, params, threads).map_err(refused)
                    })??;
                }
                Coding::Blocks(blocks) => {
                    let (mut none, absmax) = (1.0, absmax.unwrap_or(0.0));
                    let parts = arrays.write_blocks(&mut none);
                    compute(py, || {
                        codes::quantize(blocks, source, plan.spec, policy, absmax, parts, threads).map_err(refused)
                    })??;
                }
            }
        });
        Ok(())
    })
}

#[pyfunction]
fn dequantize<'py>(
    parts: GivenParts<'py>,
    spec: GivenSpec<'py>,
    out: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
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
            let target = out.slice_mut::<O>();
            match plan.format.coding {
                Coding::Uniform(code) if arrays.scale.dtype == Dtype::F64 => {
                    let ((codes, params), code) = (arrays.read_uniform::<f64>(), arrays.uniform(code));
                    compute(py, || uniform::dequantize(codes, code, plan.spec, params, target, threads))?;
                }
                Coding::Uniform(code) => {
                    let ((codes, params), code) = (arrays.read_uniform::<f32>(), arrays.uniform(code));
                    compute(py, || uniform::dequantize(codes, code, plan.spec, params, target, threads))?;
                }
                Coding::Blocks(blocks) => {
                    let parts = arrays.read_blocks();
                    compute(py, || codes::dequantize(blocks, parts, plan.spec, target, threads))?;
                }
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
    dtype: Option<&Obj<'_>>,
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
        let coding = plan.format.coding;
        match_dtype!(x, T => {
            let (source, shape, target) = (x.slice::<T>(), x.shape().to_vec(), out.slice_mut::<T>());
            compute(py, || {
                match coding {
                    Coding::Uniform(code) => {
                        uniform::fake_quantize(source, code, plan.spec, policy, target, threads)
                    }
                    Coding::Blocks(blocks) => {
                        codes::fake_quantize(blocks, source, plan.spec, policy, target, threads)
                    }
                }
                .map_err(|_| refused("fake_quantize", coding, source, &shape, threads))
            })??;
        });
        Ok(())
    })
}

/// The shapes of codes and scales, and all that can be wrong with a specification.
#[pyfunction]
#[pyo3(signature = (shape, spec, function = "quantize"))]
fn quantized_shapes<'py>(
    py: Python<'py>,
    shape: Vec<usize>,
    spec: GivenSpec<'py>,
    function: &str,
) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyTuple>)> {
    entry("quantize", || {
        let plan = plan(function, &spec, &shape)?;
        Ok((PyTuple::new(py, plan.codes)?, PyTuple::new(py, plan.scale)?))
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(quantized_shapes, m)?)?;
    m.add_function(wrap_pyfunction!(quantize, m)?)?;
    m.add_function(wrap_pyfunction!(dequantize, m)?)?;
    m.add_function(wrap_pyfunction!(fake_quantize, m)?)
}

//! Vectors of a search index as bytes and bits.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::Name;
use super::array::{Array, tuple};
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{compute, entry};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::embeddings::{self, Columns};
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

const NAME: &str = "quantize_embeddings";

/// What is read, and how many elements a vector has.
fn vectors<'py>(x: &Obj<'py>) -> PyResult<(Array<'py>, usize)> {
    let x = Array::float(Name::new(NAME, "x"), x, None)?;
    let dim = x.cols();
    if x.shape().is_empty() || dim == 0 {
        let got = tuple(x.shape());
        let what = "vectors of at least 1 element in its last axis";
        return Err(Error::Shape(format!("{NAME}: x must have {what}, got shape {got}")).into());
    }
    Ok((x, dim))
}

fn output<'py>(x: &Array<'_>, out: &Obj<'py>, bytes: usize) -> PyResult<Array<'py>> {
    let out = Array::bytes_out(Name::new(NAME, "out"), out)?;
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = bytes;
    }
    out.expect_shape(&shape)?;
    Ok(out)
}

#[pyfunction]
fn quantize_columns<'py>(
    x: &Obj<'py>,
    columns: (Obj<'py>, Obj<'py>),
    top: i16,
    flip: u8,
    out: &Obj<'py>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry(NAME, || {
        let (py, threads) = (x.py(), resolve(NAME, threads)?);
        let (x, dim) = vectors(x)?;
        let mut out = output(&x, out, dim)?;
        let (wanted, what) = if x.dtype == Dtype::F64 { (Dtype::F64, "float64") } else { (Dtype::F32, "float32") };
        let column = |object| -> PyResult<_> {
            let array = Array::float(Name::new(NAME, "ranges"), object, None)?;
            array.expect_shape(&[dim])?;
            array.expect_dtype(wanted, what)?;
            Ok(array)
        };
        let (start, step) = (column(&columns.0)?, column(&columns.1)?);
        let _borrow = borrow(&[&x, &start, &step, &out])?;
        match_dtype!(x, T => {
            type C = <T as Element>::Compute;
            let columns = Columns { start: start.slice::<C>(), step: step.slice::<C>(), top, flip };
            let (x, codes) = (x.slice::<T>(), out.slice_mut::<u8>());
            compute(py, || embeddings::quantize_columns(x, columns, codes, threads))
        })
    })
}

#[pyfunction]
fn quantize_units<'py>(x: &Obj<'py>, out: &Obj<'py>, threads: Option<&Obj<'py>>) -> PyResult<()> {
    entry(NAME, || {
        let (py, threads) = (x.py(), resolve(NAME, threads)?);
        let (x, dim) = vectors(x)?;
        let mut out = output(&x, out, dim)?;
        let _borrow = borrow(&[&x, &out])?;
        match_dtype!(x, T => {
            let (x, codes) = (x.slice::<T>(), out.slice_mut::<u8>());
            compute(py, || embeddings::quantize_units(x, dim, codes, threads))
        })
    })
}

#[pyfunction]
fn sign_bits<'py>(x: &Obj<'py>, flip: u8, out: &Obj<'py>, threads: Option<&Obj<'py>>) -> PyResult<()> {
    entry(NAME, || {
        let (py, threads) = (x.py(), resolve(NAME, threads)?);
        let (x, dim) = vectors(x)?;
        let mut out = output(&x, out, dim.div_ceil(8))?;
        let _borrow = borrow(&[&x, &out])?;
        match_dtype!(x, T => {
            let (x, bits) = (x.slice::<T>(), out.slice_mut::<u8>());
            compute(py, || embeddings::sign_bits(x, dim, flip, bits, threads))
        })
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(quantize_columns, m)?)?;
    m.add_function(wrap_pyfunction!(quantize_units, m)?)?;
    m.add_function(wrap_pyfunction!(sign_bits, m)?)
}

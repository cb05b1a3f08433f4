//! Rows of a quantized array as numbers: a table that is looked up.

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyModule};

use super::arg::{Name, int};
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{compute, entry};
use super::parts::{Arrays, GivenParts};
use super::spec::{GivenSpec, plan};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::codes::uniform::{self, RowsOf};
use crate::kernels::codes::{self, Coding};
use crate::kernels::gather::wrapped;

type Obj<'py> = Bound<'py, PyAny>;

/// The rows that are wanted, and the shape of their indices.
fn rows(indices: &Obj<'_>, height: usize) -> PyResult<(Vec<usize>, Vec<usize>)> {
    let (given, shape) = if indices.is_instance_of::<PyInt>() {
        (vec![int("take", "indices", "within the rows", indices)?], vec![])
    } else {
        let array = Array::ints(Name::new("take", "indices"), indices)?;
        array.expect_dtype(Dtype::I64, "int64")?;
        (array.slice::<i64>().to_vec(), array.shape().to_vec())
    };
    let rows = wrapped(&given, height).map_err(|index| {
        PyIndexError::new_err(format!("take: indices must be within the {height} rows, got {index}"))
    })?;
    Ok((rows, shape))
}

#[pyfunction]
fn take_rows<'py>(
    parts: GivenParts<'py>,
    spec: GivenSpec<'py>,
    shape: Vec<usize>,
    indices: &Obj<'py>,
    out: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("take", || {
        let (py, threads) = (out.py(), resolve("take", threads)?);
        let Some((&height, rest)) = shape.split_first() else {
            return Err(Error::Shape("take: q must have axes, got shape ()".into()).into());
        };
        let (rows, mut wanted) = rows(indices, height)?;
        wanted.extend(rest);
        let mut out = Array::float_out(Name::new("take", "out"), out, dtype)?;
        out.expect_shape(&wanted)?;
        let plan = plan("take", &spec, &shape)?;
        let arrays = Arrays::new("take", &parts, &plan, false)?;
        let _borrow = borrow(&std::iter::once(&out).chain(arrays.all()).collect::<Vec<_>>())?;
        let (of, spec) = (RowsOf { height, width: rest.iter().product(), rows: &rows }, plan.spec);
        match_dtype!(out, O => {
            let target = out.slice_mut::<O>();
            match plan.format.coding {
                Coding::Uniform(code) if arrays.scale.dtype == Dtype::F64 => {
                    let ((codes, params), code) = (arrays.read_uniform::<f64>(), arrays.uniform(code));
                    compute(py, || uniform::dequantize_rows(codes, code, spec, params, of, target, threads))?;
                }
                Coding::Uniform(code) => {
                    let ((codes, params), code) = (arrays.read_uniform::<f32>(), arrays.uniform(code));
                    compute(py, || uniform::dequantize_rows(codes, code, spec, params, of, target, threads))?;
                }
                Coding::Blocks(blocks) => {
                    let parts = arrays.read_blocks();
                    compute(py, || codes::dequantize_rows(blocks, parts, spec, of, target, threads))?;
                }
            }
        });
        Ok(())
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(take_rows, m)?)
}

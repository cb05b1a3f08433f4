//! Rows of a quantized array as numbers: a table that is looked up.

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyModule, PyTuple};

use super::arg::{Name, int};
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{compute, entry};
use super::parts::{Arrays, Held};
use super::spec::{Plan, plan};
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

/// A table that was checked once: rows are then looked up without another look at what it is made of.
#[pyclass(frozen, module = "modelopt_rs._core")]
struct Table {
    /// What it was made of: parts, then the specification.
    given: Py<PyTuple>,
    arrays: Held,
    plan: Plan,
    height: usize,
    rest: Vec<usize>,
}

#[pymethods]
impl Table {
    /// `given`: codes, scale, zero point, offset and global scale; format or (bits, scheme), axis, group size; shape.
    #[new]
    fn new(given: &Bound<'_, PyTuple>) -> PyResult<Self> {
        entry("take", || {
            type Given<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>, Option<Obj<'py>>, Option<Obj<'py>>);
            let parts: Given<'_> = given.get_slice(0, 5).extract()?;
            let (bits, scheme, format): (Obj<'_>, Obj<'_>, Obj<'_>) = given.get_slice(5, 8).extract()?;
            let (axis, group, shape): (Obj<'_>, Obj<'_>, Vec<usize>) = given.get_slice(8, 11).extract()?;
            let Some((&height, rest)) = shape.split_first() else {
                return Err(Error::Shape("take: q must have axes, got shape ()".into()).into());
            };
            let format = if format.is_none() { PyTuple::new(given.py(), [bits, scheme])?.into_any() } else { format };
            let plan = plan("take", &(format, axis, group), &shape)?;
            let arrays = Arrays::new("take", &parts, &plan, false)?.held();
            Ok(Self { given: given.clone().unbind(), arrays, plan, height, rest: rest.to_vec() })
        })
    }

    /// Fill `out` with rows; False, and nothing done, where the table is no longer what it was made of.
    fn take<'py>(
        &self,
        given: &Bound<'py, PyTuple>,
        indices: &Obj<'py>,
        out: &Obj<'py>,
        dtype: Option<&Obj<'_>>,
        threads: Option<&Obj<'py>>,
    ) -> PyResult<bool> {
        entry("take", || {
            let py = out.py();
            let same =
                |i: usize| matches!((given.get_item(i), self.given.bind(py).get_item(i)), (Ok(a), Ok(b)) if a.is(&b));
            if !(0..11).all(same) {
                return Ok(false);
            }
            let Some(arrays) = self.arrays.arrays(py, "take", &self.plan)? else { return Ok(false) };
            let threads = resolve("take", threads)?;
            let (rows, mut wanted) = rows(indices, self.height)?;
            wanted.extend(&self.rest);
            let mut out = Array::float_out(Name::new("take", "out"), out, dtype)?;
            out.expect_shape(&wanted)?;
            let _borrow = borrow(&std::iter::once(&out).chain(arrays.all()).collect::<Vec<_>>())?;
            let of = RowsOf { height: self.height, width: self.rest.iter().product(), rows: &rows };
            look_up(py, (&arrays, &self.plan), of, &mut out, threads)?;
            Ok(true)
        })
    }
}

/// Gather and dequantize.
fn look_up(
    py: Python<'_>,
    (arrays, plan): (&Arrays<'_>, &Plan),
    of: RowsOf<'_>,
    out: &mut Array<'_>,
    threads: usize,
) -> PyResult<()> {
    let spec = plan.spec;
    match_dtype!(out, O => {
        let target = out.slice_mut::<O>();
        match plan.format.coding {
            Coding::Uniform(code) if arrays.scale.dtype == Dtype::F64 => {
                let ((codes, params), code) = (arrays.read_uniform::<f64>(), arrays.uniform(code));
                compute(py, || uniform::dequantize_rows(codes, code, spec, params, of, target, threads))
            }
            Coding::Uniform(code) => {
                let ((codes, params), code) = (arrays.read_uniform::<f32>(), arrays.uniform(code));
                compute(py, || uniform::dequantize_rows(codes, code, spec, params, of, target, threads))
            }
            Coding::Blocks(blocks) => {
                let parts = arrays.read_blocks();
                compute(py, || codes::dequantize_rows(blocks, parts, spec, of, target, threads))
            }
        }
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Table>()
}

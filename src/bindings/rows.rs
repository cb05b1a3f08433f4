//! Rows of a quantized array as numbers: a table that is looked up.

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyModule, PyTuple};

use super::arg::{Name, shown};
use super::array::Array;
use super::borrow::{borrow, borrow_at_once};
use super::dtype::{Dtype, match_dtype};
use super::error::{compute, entry};
use super::parts::{Arrays, Held};
use super::spec::{Plan, plan};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::codes::uniform::{self, RowsOf};
use crate::kernels::codes::{self, Coding};
use crate::kernels::gather::wrapped;
use crate::par::CHUNK;

type Obj<'py> = Bound<'py, PyAny>;

/// Look-ups of up to so many numbers, which are one piece of work, keep the GIL: to give it away and get it again takes
/// longer than they do, some milliseconds where other threads want it.
const SMALL: usize = CHUNK;

/// The rows that are wanted.
enum Indices<'py> {
    One(usize),
    Many(Array<'py>, Vec<usize>),
}

impl<'py> Indices<'py> {
    fn new(given: &Obj<'py>, height: usize) -> PyResult<Self> {
        let wrong = |index: String| {
            PyIndexError::new_err(format!("take: indices must be within the {height} rows, got {index}"))
        };
        if given.is_instance_of::<PyInt>() {
            let row = given.extract().ok().and_then(|index| wrapped(index, height));
            return Ok(Self::One(row.ok_or_else(|| wrong(shown(given)))?));
        }
        let array = Array::ints(Name::new("take", "indices"), given)?;
        let row = |index| wrapped(index, height).ok_or(index);
        let rows: Result<_, i64> = match array.dtype {
            Dtype::I32 => array.slice::<i32>().iter().map(|&index| row(index.into())).collect(),
            _ => array.slice::<i64>().iter().map(|&index| row(index)).collect(),
        };
        let rows = rows.map_err(|index| wrong(index.to_string()))?;
        Ok(Self::Many(array, rows))
    }

    fn rows(&self) -> &[usize] {
        match self {
            Self::One(row) => std::slice::from_ref(row),
            Self::Many(_, rows) => rows,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::One(_) => &[],
            Self::Many(array, _) => array.shape(),
        }
    }
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

    /// Rows, in `out` or in a new array of float32; None, and nothing done, where the table is no longer what it was
    /// made of.
    fn take<'py>(
        &self,
        given: &Bound<'py, PyTuple>,
        indices: &Obj<'py>,
        out: Option<&Obj<'py>>,
        dtype: Option<&Obj<'_>>,
        threads: Option<&Obj<'py>>,
    ) -> PyResult<Option<Obj<'py>>> {
        entry("take", || {
            let py = given.py();
            let mut same = self.given.bind(py).iter_borrowed().zip(given.iter_borrowed()).map(|(a, b)| a.is(&*b));
            if !same.all(|same| same) {
                return Ok(None);
            }
            let Some(arrays) = self.arrays.arrays(py, "take", &self.plan)? else { return Ok(None) };
            let threads = resolve("take", threads)?;
            let indices = Indices::new(indices, self.height)?;
            let (name, shape) = (Name::new("take", "out"), [indices.shape(), &self.rest].concat());
            let mut target = match out {
                Some(out) => Array::float_out(name, out, dtype)?,
                None => Array::new_float32(name, py, &shape)?,
            };
            target.expect_shape(&shape)?;
            let at_once = target.len() <= SMALL;
            let _borrow = if at_once {
                borrow_at_once(&target, arrays.all())?
            } else {
                Some(borrow(&std::iter::once(&target).chain(arrays.all()).collect::<Vec<_>>())?)
            };
            let of = RowsOf { height: self.height, width: self.rest.iter().product(), rows: indices.rows() };
            look_up(py, (&arrays, &self.plan), of, &mut target, (threads, at_once))?;
            Ok(Some(out.cloned().unwrap_or_else(|| target.object.into_any())))
        })
    }
}

/// Compute with the GIL where that is soon done, else without it.
fn run(py: Python<'_>, at_once: bool, f: impl FnOnce() + Send) -> PyResult<()> {
    if at_once {
        f();
        return Ok(());
    }
    compute(py, f)
}

/// Gather and dequantize.
fn look_up(
    py: Python<'_>,
    (arrays, plan): (&Arrays<'_>, &Plan),
    of: RowsOf<'_>,
    out: &mut Array<'_>,
    (threads, at_once): (usize, bool),
) -> PyResult<()> {
    let spec = plan.spec;
    match_dtype!(out, O => {
        let target = out.slice_mut::<O>();
        match plan.format.coding {
            Coding::Uniform(code) if arrays.scale.dtype == Dtype::F64 => {
                let ((codes, params), code) = (arrays.read_uniform::<f64>(), arrays.uniform(code));
                run(py, at_once, || uniform::dequantize_rows(codes, code, spec, params, of, target, threads))
            }
            Coding::Uniform(code) => {
                let ((codes, params), code) = (arrays.read_uniform::<f32>(), arrays.uniform(code));
                run(py, at_once, || uniform::dequantize_rows(codes, code, spec, params, of, target, threads))
            }
            Coding::Blocks(blocks) => {
                let parts = arrays.read_blocks();
                run(py, at_once, || codes::dequantize_rows(blocks, parts, spec, of, target, threads))
            }
        }
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Table>()
}

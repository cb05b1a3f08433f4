//! Headers of model files.

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyModule, PyString, PyTuple};

use super::error::{FormatError, LimitError, UnsupportedError, entry};
use crate::files::safetensors::{ErrorKind, HeaderError, parse_header};

type Parsed<'py> =
    (Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyArray1<i64>>, Bound<'py, PyDict>);

fn to_python(error: HeaderError) -> PyErr {
    match error.kind {
        ErrorKind::Format => FormatError::new_err(error.message),
        ErrorKind::Limit => LimitError::new_err(error.message),
        ErrorKind::Unsupported => UnsupportedError::new_err(error.message),
    }
}

#[pyfunction]
fn parse_safetensors_header<'py>(
    py: Python<'py>,
    header: &[u8],
    data_len: u64,
    max_tensors: usize,
) -> PyResult<Parsed<'py>> {
    entry("parse_safetensors_header", || {
        let header = py.detach(|| parse_header(header, data_len, max_tensors)).map_err(to_python)?;
        let names = PyList::empty(py);
        let dtypes = PyList::empty(py);
        let shapes = PyList::empty(py);
        let begins: Vec<i64> = header.tensors.iter().map(|tensor| tensor.begin as i64).collect();
        // By value: each tensor's text is freed as soon as Python has it.
        for tensor in header.tensors {
            names.append(tensor.name)?;
            // Interned: a million tensors share a dozen strings.
            dtypes.append(PyString::intern(py, tensor.dtype))?;
            shapes.append(PyTuple::new(py, &tensor.shape)?)?;
        }
        let begins = PyArray1::from_vec(py, begins);
        let metadata = PyDict::new(py);
        for (key, value) in &header.metadata {
            metadata.set_item(key, value)?;
        }
        Ok((names, dtypes, shapes, begins, metadata))
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(parse_safetensors_header, m)?)
}

//! Headers of model files.

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyModule, PyString, PyTuple};

use super::error::{FormatError, LimitError, UnsupportedError, entry};
use crate::files::safetensors::{ErrorKind, HeaderError, Table, parse_header};

fn to_python(error: HeaderError) -> PyErr {
    match error.kind {
        ErrorKind::Format => FormatError::new_err(error.message),
        ErrorKind::Limit => LimitError::new_err(error.message),
        ErrorKind::Unsupported => UnsupportedError::new_err(error.message),
    }
}

/// A header that was checked; its tensors become Python objects when they are asked for.
#[pyclass(frozen, module = "modelopt_rs._core")]
struct SafetensorsHeader {
    table: Table,
    metadata: Vec<(String, String)>,
}

#[pymethods]
impl SafetensorsHeader {
    #[new]
    fn new(py: Python<'_>, header: &[u8], data_len: u64, max_tensors: usize) -> PyResult<Self> {
        entry("SafetensorsHeader", || {
            let max_tensors = max_tensors.min(u32::MAX as usize);
            let parsed = py.detach(|| parse_header(header, data_len, max_tensors).map(|h| Table::new(h, data_len)));
            let (table, metadata) = parsed.map_err(to_python)?;
            Ok(Self { table, metadata })
        })
    }

    fn __len__(&self) -> usize {
        self.table.len()
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.table.find(name)
    }

    fn name(&self, i: usize) -> PyResult<&str> {
        self.check(i)?;
        Ok(self.table.name(i))
    }

    #[allow(clippy::type_complexity, reason = "a Python tuple")]
    fn tensor<'py>(
        &self,
        py: Python<'py>,
        i: usize,
    ) -> PyResult<(Bound<'py, PyString>, Bound<'py, PyTuple>, u64, u64)> {
        self.check(i)?;
        let (begin, end) = self.table.extent(i);
        // Interned: a million tensors share a dozen strings.
        let dtype = PyString::intern(py, self.table.dtype(i));
        Ok((dtype, PyTuple::new(py, self.table.shape(i))?, begin, end))
    }

    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metadata = PyDict::new(py);
        for (key, value) in &self.metadata {
            metadata.set_item(key, value)?;
        }
        Ok(metadata)
    }
}

impl SafetensorsHeader {
    fn check(&self, i: usize) -> PyResult<()> {
        if i < self.table.len() { Ok(()) } else { Err(PyIndexError::new_err(i)) }
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<SafetensorsHeader>()
}

//! Errors and panics on their way to Python, and the one gate that every entry point goes through.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::{create_exception, types::PyModule};

use crate::error::Error;
use crate::{isa, par};

create_exception!(modelopt_rs, FormatError, PyValueError, "A file is malformed.");
create_exception!(modelopt_rs, LimitError, FormatError, "A file exceeds a limit.");
create_exception!(modelopt_rs, UnsupportedError, FormatError, "A file is valid, but of a kind that is not supported.");
create_exception!(modelopt_rs, InternalError, PyRuntimeError, "A defect of modelopt_rs; please report it.");

/// While set, every entry point panics (a test that a panic becomes an `InternalError`).
static FAULT: AtomicBool = AtomicBool::new(false);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Dtype(text) => PyTypeError::new_err(text),
            Error::Shape(text) | Error::Layout(text) | Error::Value(text) => PyValueError::new_err(text),
        }
    }
}

/// Run an entry point; a panic in it becomes an `InternalError`.
pub fn entry<R>(name: &str, f: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    let guarded = || {
        assert!(!FAULT.load(Ordering::Relaxed), "injected fault");
        // The few operations outside the kernels (a mean's division, a quantile's interpolation) count as well.
        isa::with_default_float_environment(f)
    };
    catch_unwind(AssertUnwindSafe(guarded)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("unknown");
        Err(InternalError::new_err(format!("{name}: internal error ({what}); please report it")))
    })
}

/// Release the GIL once and compute.
pub fn compute<R: Send>(py: Python<'_>, f: impl FnOnce() -> R + Send) -> PyResult<R> {
    let (mut f, mut result) = (Some(f), None);
    detached(py, &mut || result = f.take().map(|f| f()))?;
    Ok(result.expect("it was called"))
}

/// The same through a pointer: compiled once.
#[inline(never)]
fn detached(py: Python<'_>, f: &mut (dyn FnMut() + Send)) -> PyResult<()> {
    py.detach(f);
    if par::take_spawn_failure() {
        let warning = py.get_type::<pyo3::exceptions::PyRuntimeWarning>();
        let text = c"modelopt_rs: worker threads could not be started; the work ran in the calling thread alone";
        PyErr::warn(py, &warning, text, 1)?;
    }
    Ok(())
}

#[pyfunction]
fn set_fault(on: bool) {
    FAULT.store(on, Ordering::Relaxed);
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = m.py();
    m.add("FormatError", py.get_type::<FormatError>())?;
    m.add("LimitError", py.get_type::<LimitError>())?;
    m.add("UnsupportedError", py.get_type::<UnsupportedError>())?;
    m.add("InternalError", py.get_type::<InternalError>())?;
    m.add_function(wrap_pyfunction!(set_fault, m)?)
}

/// Ask for memory that a kernel will need: an allocation that fails within it could only abort.
pub fn ask_memory(function: &str, bytes: usize) -> PyResult<()> {
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| {
        PyMemoryError::new_err(format!("{function}: no memory for the {bytes} bytes that the results take"))
    })
}

//! Thread counts and the choice of instruction set.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyModule};

use super::arg::shown;
use super::error::entry;
use crate::{isa, par};

/// Read the environment when the module is imported.
pub fn init() -> PyResult<()> {
    par::init_from_env().and_then(|()| isa::init_from_env()).map_err(PyValueError::new_err)
}

/// Check a number of threads that a user gave; `what` names it in the message.
fn check(what: &str, n: &Bound<'_, PyAny>) -> PyResult<usize> {
    let refused = || PyTypeError::new_err(format!("{what} must be an integer, got {}", type_name(n)));
    if n.is_instance_of::<PyBool>() {
        return Err(refused());
    }
    // What is an int already needs no `__index__` (a fifth of a small call).
    let index = if n.is_exact_instance_of::<PyInt>() {
        n.clone()
    } else {
        n.call_method0("__index__").map_err(|_| refused())?
    };
    index.extract::<usize>().ok().filter(|n| (1..=par::MAX_THREADS).contains(n)).ok_or_else(|| {
        PyValueError::new_err(format!("{what} must be from 1 to {}, got {}", par::MAX_THREADS, shown(&index)))
    })
}

fn type_name(x: &Bound<'_, PyAny>) -> String {
    x.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string())
}

/// The number of threads of a call with `threads=n`.
pub fn resolve(function: &str, n: Option<&Bound<'_, PyAny>>) -> PyResult<usize> {
    n.map_or_else(|| Ok(par::num_threads()), |n| check(&format!("{function}: threads"), n))
}

#[pyfunction]
fn set_num_threads(n: &Bound<'_, PyAny>) -> PyResult<()> {
    entry("set_num_threads", || {
        par::set_num_threads(check("set_num_threads: n", n)?);
        Ok(())
    })
}

#[pyfunction]
fn get_num_threads() -> PyResult<usize> {
    entry("get_num_threads", || Ok(par::num_threads()))
}

#[pyfunction]
#[pyo3(signature = (n))]
fn swap_thread_override(n: Option<&Bound<'_, PyAny>>) -> PyResult<Option<usize>> {
    entry("num_threads", || {
        let n = n.map_or(Ok(0), |n| check("num_threads: n", n))?;
        Ok(Some(par::swap_override(n)).filter(|&before| before > 0))
    })
}

#[pyfunction(name = "isa")]
fn current_isa() -> PyResult<&'static str> {
    entry("isa", || Ok(isa::current().name()))
}

#[pyfunction]
fn set_isa(name: &str) -> PyResult<()> {
    entry("set_isa", || {
        isa::set(isa::parse(name).map_err(|why| PyValueError::new_err(format!("set_isa: name {why}")))?);
        Ok(())
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(set_num_threads, m)?)?;
    m.add_function(wrap_pyfunction!(get_num_threads, m)?)?;
    m.add_function(wrap_pyfunction!(swap_thread_override, m)?)?;
    m.add_function(wrap_pyfunction!(current_isa, m)?)?;
    m.add_function(wrap_pyfunction!(set_isa, m)?)
}

//! Dicts of options and states, by names that are kept as Python's strings.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};

use super::optim::Nonfinite;
use crate::error::Error;

type Obj<'py> = Bound<'py, PyAny>;

/// The names of options and states that were asked for, as Python's strings (to make one takes longer than to look it up
/// in a dict, and a small step no longer than a few of them).
static NAMES: PyOnceLock<Mutex<HashMap<&'static str, Py<PyString>>>> = PyOnceLock::new();

/// A name as a key of dicts.
pub fn key<'py>(py: Python<'py>, name: &'static str) -> Bound<'py, PyString> {
    let names = NAMES.get_or_init(py, Mutex::default);
    let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
    names.entry(name).or_insert_with(|| PyString::intern(py, name).unbind()).bind(py).clone()
}

/// What a dict has by this name.
pub fn find<'py>(dict: &Bound<'py, PyDict>, name: &'static str) -> PyResult<Option<Obj<'py>>> {
    dict.get_item(key(dict.py(), name))
}

/// The same, which must be there.
pub fn option<'py>(options: &Bound<'py, PyDict>, name: &'static str) -> PyResult<Obj<'py>> {
    find(options, name)?.ok_or_else(|| PyKeyError::new_err(name))
}

/// The rule for gradients that are not finite.
pub fn nonfinite(function: &str, word: &str) -> PyResult<Nonfinite> {
    match word {
        "propagate" => Ok(Nonfinite::Propagate),
        "raise" => Ok(Nonfinite::Raise),
        "skip" => Ok(Nonfinite::Skip),
        _ => {
            let text = format!("{function}: nonfinite must be 'propagate', 'raise' or 'skip', got '{word}'");
            Err(Error::Value(text).into())
        }
    }
}

//! Dicts of options and states, by names that are kept as Python's strings.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyStringMethods};

use super::arg::not_one_of;

type Obj<'py> = Bound<'py, PyAny>;

/// The names of options and states that were asked for, as Python's strings (to make one takes longer than to look it up
/// in a dict, and a small step no longer than a few of them).
static NAMES: Mutex<Vec<(&str, Py<PyString>)>> = Mutex::new(Vec::new());

/// A name as a key of dicts.
pub fn key<'py>(py: Python<'py>, name: &'static str) -> Bound<'py, PyString> {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    // By its address: to compare or hash the text of a dozen names took a tenth of a small step.
    let found = names.iter().position(|(known, _)| std::ptr::eq(*known, name));
    let at = found.unwrap_or_else(|| {
        names.push((name, PyString::intern(py, name).unbind()));
        names.len() - 1
    });
    names[at].1.bind(py).clone()
}

/// What a dict has by this name.
pub fn find<'py>(dict: &Bound<'py, PyDict>, name: &'static str) -> PyResult<Option<Obj<'py>>> {
    dict.get_item(key(dict.py(), name))
}

/// The same, which must be there.
pub fn option<'py>(options: &Bound<'py, PyDict>, name: &'static str) -> PyResult<Obj<'py>> {
    find(options, name)?.ok_or_else(|| PyKeyError::new_err(name))
}

/// What is done about gradients that are not finite.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Nonfinite {
    Propagate,
    Raise,
    Skip,
}

/// The rule for gradients that are not finite; a step function can't skip.
pub fn nonfinite(function: &str, given: &Obj<'_>, can_skip: bool) -> PyResult<Nonfinite> {
    // A text that is no UTF-8 (a surrogate) is none of the words.
    let word = given.cast::<PyString>().ok().and_then(|word| word.to_cow().ok());
    match word.as_deref() {
        Some("propagate") => Ok(Nonfinite::Propagate),
        Some("raise") => Ok(Nonfinite::Raise),
        Some("skip") if can_skip => Ok(Nonfinite::Skip),
        _ => {
            let words = if can_skip { "'propagate', 'raise' or 'skip'" } else { "'propagate' or 'raise'" };
            Err(not_one_of(function, "nonfinite", words, given))
        }
    }
}

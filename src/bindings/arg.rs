//! The names of arguments, and plain ones: integers, numbers and words, with messages that name them.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString};

type Obj<'py> = Bound<'py, PyAny>;

/// How messages name an argument: `quantize: x`, or one array of a list: `adam_step: grads[3]`.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    pub function: &'static str,
    pub arg: Arg,
}

/// The argument alone.
#[derive(Debug, Clone, Copy)]
pub struct Arg(&'static str, Option<usize>);

impl Name {
    pub fn new(function: &'static str, arg: &'static str) -> Self {
        Self { function, arg: Arg(arg, None) }
    }

    /// Array number `index` of a list.
    pub fn of_list(function: &'static str, arg: &'static str, index: usize) -> Self {
        Self { function, arg: Arg(arg, Some(index)) }
    }
}

impl std::fmt::Display for Arg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            Some(index) => write!(f, "{}[{index}]", self.0),
            None => f.write_str(self.0),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.function, self.arg)
    }
}

/// How many characters of what came a message shows.
const SHOWN: usize = 60;

/// What came, in a few words: what is short itself, anything else by its type.
pub fn shown(x: &Obj<'_>) -> String {
    let is_short = x.is_instance_of::<PyString>() || x.len().is_ok_and(|n| n <= 8) || x.len().is_err();
    let text = if is_short { x.repr().ok().map(|text| text.to_string_lossy().into_owned()) } else { None };
    match text {
        Some(text) if !text.contains('\n') && text.len() <= SHOWN => text,
        Some(text) if x.is_instance_of::<PyString>() => text.chars().take(SHOWN).chain("...".chars()).collect(),
        _ => x.get_type().name().map_or_else(|_| "?".into(), |kind| kind.to_string()),
    }
}

/// An argument of the wrong type.
pub fn refused(function: &str, arg: &str, what: &str, got: &Obj<'_>) -> PyErr {
    PyTypeError::new_err(format!("{function}: {arg} must be {what}, got {}", shown(got)))
}

/// None of the words that an argument takes: a `ValueError` where it is a word at all.
pub fn not_one_of(function: &str, arg: &str, words: &str, got: &Obj<'_>) -> PyErr {
    if got.is_instance_of::<PyString>() {
        return PyValueError::new_err(format!("{function}: {arg} must be {words}, got {}", shown(got)));
    }
    refused(function, arg, words, got)
}

/// An integer; one that no i64 holds is out of range, which `range` describes.
pub fn int(function: &str, arg: &str, range: &str, x: &Obj<'_>) -> PyResult<i64> {
    if x.is_instance_of::<PyBool>() {
        return Err(refused(function, arg, "an integer", x));
    }
    // What is an int already needs no `__index__` (a tenth of a small call).
    if x.is_exact_instance_of::<PyInt>()
        && let Ok(value) = x.extract()
    {
        return Ok(value);
    }
    let index = x.call_method0("__index__").map_err(|_| refused(function, arg, "an integer", x))?;
    index
        .extract()
        .map_err(|_| PyValueError::new_err(format!("{function}: {arg} must be {range}, got {}", shown(&index))))
}

/// An integer, or None.
pub fn optional_int(function: &str, arg: &str, range: &str, x: &Obj<'_>) -> PyResult<Option<i64>> {
    if x.is_none() { Ok(None) } else { int(function, arg, range, x).map(Some) }
}

/// The size of groups, or None. No group is longer than its row, so that one number that no i64 holds is as good as another.
pub fn group_size(function: &str, range: &str, x: &Obj<'_>) -> PyResult<Option<i64>> {
    let is_huge = x.is_exact_instance_of::<PyInt>() && x.extract::<i64>().is_err() && x.gt(0)?;
    if is_huge { Ok(Some(i64::MAX)) } else { optional_int(function, "group_size", range, x) }
}

/// A number.
pub fn number(function: &str, arg: &str, x: &Obj<'_>) -> PyResult<f64> {
    x.extract().map_err(|_| {
        if x.is_instance_of::<PyInt>() {
            return PyValueError::new_err(format!(
                "{function}: {arg} must be within the numbers of float64, got {}",
                shown(x)
            ));
        }
        refused(function, arg, "a number", x)
    })
}

/// Yes or no.
pub fn flag(function: &str, arg: &str, x: &Obj<'_>) -> PyResult<bool> {
    x.extract().map_err(|_| refused(function, arg, "a bool", x))
}

/// Two things, in whatever holds them.
pub fn pair<'py>(function: &str, arg: &str, x: &Obj<'py>) -> PyResult<[Obj<'py>; 2]> {
    let items: Option<Vec<_>> = x.try_iter().ok().and_then(|items| items.take(3).collect::<PyResult<_>>().ok());
    items.and_then(|items| items.try_into().ok()).ok_or_else(|| refused(function, arg, "a pair of numbers", x))
}

/// A word.
pub fn text(function: &str, arg: &str, x: &Obj<'_>) -> PyResult<String> {
    // What is no Unicode (a lone surrogate) is no word that any argument takes: its message shows it.
    x.cast::<PyString>()
        .map(|text| text.to_string_lossy().into_owned())
        .map_err(|_| refused(function, arg, "a string", x))
}

/// As NumPy writes a shape.
pub fn tuple(shape: &[usize]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

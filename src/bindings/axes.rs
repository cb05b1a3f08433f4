//! The `axis=` argument.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::error::Error;

/// The axes that `axis` names, ascending; None for all.
pub fn axes(function: &str, axis: &Bound<'_, PyAny>, ndim: usize) -> PyResult<Option<Vec<usize>>> {
    if axis.is_none() {
        return Ok(None);
    }
    let given: Vec<isize> = match axis.cast::<PyTuple>() {
        Ok(tuple) => tuple.extract()?,
        Err(_) => vec![axis.extract().map_err(|_| {
            PyTypeError::new_err(format!("{function}: axis must be None, an integer or integers, got {axis}"))
        })?],
    };
    let mut axes = Vec::new();
    for axis in given {
        let index = if axis < 0 { axis + ndim as isize } else { axis };
        if !(0..ndim as isize).contains(&index) {
            let text = format!("{function}: axis must be within the {ndim} axes of x, got {axis}");
            return Err(Error::Value(text).into());
        }
        if axes.contains(&(index as usize)) {
            return Err(Error::Value(format!("{function}: axis must name each axis once, got {axis} twice")).into());
        }
        axes.push(index as usize);
    }
    axes.sort_unstable();
    Ok(Some(axes))
}

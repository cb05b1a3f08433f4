//! The `axis=` argument.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::arg::int;
use crate::error::Error;

/// The axes of the argument `of` that `axis` names, ascending; None for all.
pub fn axes(function: &str, of: &str, axis: &Bound<'_, PyAny>, ndim: usize) -> PyResult<Option<Vec<usize>>> {
    if axis.is_none() {
        return Ok(None);
    }
    let one = |axis: &Bound<'_, PyAny>| int(function, "axis", &format!("within the axes of {of}"), axis);
    let given: Vec<i64> = match axis.cast::<PyTuple>() {
        Ok(tuple) => tuple.iter().map(|axis| one(&axis)).collect::<PyResult<_>>()?,
        Err(_) => vec![one(axis)?],
    };
    let mut axes = Vec::with_capacity(given.len());
    for axis in given {
        let index = if axis < 0 { axis.saturating_add(ndim as i64) } else { axis };
        if !(0..ndim as i64).contains(&index) {
            let text = format!("{function}: axis must be within the {ndim} axes of {of}, got {axis}");
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

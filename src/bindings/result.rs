//! Results as NumPy arrays and scalars.

use numpy::PyArray1;
use pyo3::prelude::*;

use crate::real::Element;

/// A result as a new NumPy array of `shape`, or as a NumPy scalar where that is ().
pub fn result<'py, T: Element>(
    py: Python<'py>,
    values: &[T],
    shape: &[usize],
    descr: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    // The bits, in NumPy's own integers, seen as the dtype: this serves bfloat16, which NumPy does not know.
    let bits: Bound<'py, PyAny> = match T::BITS {
        16 => PyArray1::from_iter(py, values.iter().map(|v| v.to_bits64() as u16)).into_any(),
        32 => PyArray1::from_iter(py, values.iter().map(|v| v.to_bits64() as u32)).into_any(),
        _ => PyArray1::from_iter(py, values.iter().map(|v| v.to_bits64())).into_any(),
    };
    shaped(&bits.call_method1("view", (descr,))?, shape)
}

/// `array` in `shape`; as a scalar where that is ().
pub fn shaped<'py>(array: &Bound<'py, PyAny>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    if shape.is_empty() {
        return array.get_item(0);
    }
    array.call_method1("reshape", (shape,))
}

//! In what order the elements of arrays lie.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::array::data;

/// An axis along which a step is shorter than what lies within one: places of several elements, as no view has them but
/// those of `broadcast_to` and `as_strided`.
pub fn repeated_axis(array: &Bound<'_, PyUntypedArray>) -> Option<usize> {
    if array.len() == 0 {
        return None;
    }
    let steps = array.shape().iter().zip(array.strides()).enumerate().filter(|(_, (n, _))| **n > 1);
    let mut steps: Vec<_> = steps.map(|(axis, (n, stride))| (stride.unsigned_abs(), axis, *n)).collect();
    steps.sort_unstable();
    let mut within = array.dtype().itemsize();
    for (step, axis, n) in steps {
        if step < within {
            return Some(axis);
        }
        within += step * (n - 1);
    }
    None
}

/// Whether it lies as kernels need it.
pub fn is_in_order(array: &Bound<'_, PyUntypedArray>) -> bool {
    let align = array.dtype().itemsize().clamp(1, 8);
    array.is_c_contiguous() && (array.len() == 0 || data(array).is_multiple_of(align))
}

/// The array itself where it lies as kernels need it, else a copy that does.
pub fn in_order<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyUntypedArray>> {
    if is_in_order(array) {
        return Ok(array.clone());
    }
    Ok(array.call_method1("copy", ("C",))?.cast_into::<PyUntypedArray>()?)
}

/// Whether two arrays are the same elements in the same order.
pub fn are_same(a: &Bound<'_, PyAny>, b: &Bound<'_, PyAny>) -> bool {
    match (a.cast::<PyUntypedArray>(), b.cast::<PyUntypedArray>()) {
        (Ok(a), Ok(b)) => {
            let same_places = data(a) == data(b) && a.shape() == b.shape() && a.strides() == b.strides();
            same_places && a.dtype().is_equiv_to(&b.dtype())
        }
        _ => false,
    }
}

/// How many elements such axes have, where they lie in C order; strides in elements.
pub fn len_in_order(shape: &[i64], strides: &[i64]) -> Option<usize> {
    let (mut len, mut is_so) = (1i64, true);
    for (&n, &stride) in shape.iter().zip(strides).rev() {
        is_so &= n == 1 || stride == len;
        len = len.checked_mul(n)?;
    }
    (is_so || len == 0).then_some(len as usize)
}

/// Whether the elements of the last two axes lie in order from each index of those before on, aligned.
pub fn has_rows(array: &Bound<'_, PyUntypedArray>) -> bool {
    let (shape, strides, size) = (array.shape(), array.strides(), array.dtype().itemsize());
    let [rows @ .., n, last] = shape else { return false };
    let of_row = [(*n, size * last), (*last, size)];
    let lies_so = of_row.iter().zip(&strides[rows.len()..]).all(|(&(n, want), &got)| n < 2 || got == want as isize);
    let align = size.clamp(1, 8);
    let steps = strides[..rows.len()].iter().map(|stride| stride.unsigned_abs());
    lies_so && array.len() > 0 && steps.chain([data(array)]).all(|bytes| bytes.is_multiple_of(align))
}

/// How many bytes lie before the first element, and from it to the last, in the order of memory.
pub fn reach(array: &Bound<'_, PyUntypedArray>) -> [usize; 2] {
    let mut reach = [0, 0];
    for (&n, &stride) in array.shape().iter().zip(array.strides()) {
        reach[usize::from(stride > 0)] += n.saturating_sub(1) * stride.unsigned_abs();
    }
    reach
}

//! Importance of slices, and the gathering of those that stay.

use numpy::{PyArray1, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{Name, int};
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, float_dtype, match_dtype, ndarray};
use super::error::{ask_memory, compute, entry};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::{gather, median, taylor};

type Obj<'py> = Bound<'py, PyAny>;

/// The one axis that is named.
fn one_axis((function, arg): (&str, &str), axis: &Obj<'_>, (array, shape): (&str, &[usize])) -> PyResult<usize> {
    let range = format!("within the {} axes of {array}", shape.len());
    let axis = int(function, arg, &range, axis)?;
    let found = if axis < 0 { axis.saturating_add(shape.len() as i64) } else { axis };
    usize::try_from(found)
        .ok()
        .filter(|&found| found < shape.len())
        .ok_or_else(|| Error::Value(format!("{function}: {arg} must be {range}, got {axis}")).into())
}

/// The array as (outer, n, inner) about an axis: n and inner.
fn about(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[axis], shape[axis + 1..].iter().product())
}

/// The arrays of `importance` and the names of their axes.
const ARRAYS: [(&str, &str); 4] =
    [("w", "axis"), ("grad", "axis"), ("scale", "axis"), ("activations", "activation_axis")];

/// Check an array that `importance` was given and its axis, which comes back counted from the front.
#[pyfunction]
fn importance_axis<'py>(
    arg: &str,
    w: &Obj<'py>,
    axis: &Obj<'py>,
    size: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<usize> {
    entry("importance", || {
        resolve("importance", threads)?;
        let (arg, arg_axis) = *ARRAYS.iter().find(|(name, _)| *name == arg).unwrap_or(&ARRAYS[0]);
        let name = Name::new("importance", arg);
        let array = ndarray(name, w)?;
        float_dtype(name, &array, dtype)?;
        let axis = one_axis(("importance", arg_axis), axis, (arg, array.shape()))?;
        let n = array.shape()[axis];
        let size = int("importance", "size", "at least 1", size)?;
        if size < 1 || !n.is_multiple_of(size as usize) {
            let text =
                format!("importance: size must be at least 1 and divide the {n} indices of axis {axis}, got {size}");
            return Err(Error::Value(text).into());
        }
        Ok(axis)
    })
}

/// (sum g w, sum (g w)²) of each slice.
#[pyfunction]
fn taylor_sums<'py>(
    w: &Obj<'py>,
    grad: &Obj<'py>,
    axis: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<(Obj<'py>, Obj<'py>)> {
    let function = "importance";
    entry(function, || {
        let w = Array::float(Name::new(function, "w"), w, dtype)?;
        let g = Array::float(Name::new(function, "grad"), grad, dtype)?;
        g.expect_shape_of(&w)?;
        let axis = one_axis((function, "axis"), axis, ("w", w.shape()))?;
        let threads = resolve(function, threads)?;
        let (n, inner) = about(w.shape(), axis);
        ask_memory(function, n.saturating_mul(64))?;
        let _borrow = borrow(&[&w, &g])?;
        let sums = match_dtype!(w, A => match_dtype!(g, B => {
            let (w, g) = (w.slice::<A>(), g.slice::<B>());
            compute(grad.py(), || taylor::taylor(w, g, n, inner, threads))?
        }));
        let plain = PyArray1::from_iter(grad.py(), sums.iter().map(|sums| sums.plain));
        let squares = PyArray1::from_iter(grad.py(), sums.iter().map(|sums| sums.squares));
        Ok((plain.into_any(), squares.into_any()))
    })
}

/// The sum of the distances of each slice of the first axis to all slices.
#[pyfunction]
fn slice_distances<'py>(w: &Obj<'py>, dtype: Option<&Obj<'_>>, threads: Option<&Obj<'py>>) -> PyResult<Obj<'py>> {
    let function = "importance";
    entry(function, || {
        let w = Array::float(Name::new(function, "w"), w, dtype)?;
        if w.shape().is_empty() {
            return Err(Error::Shape(format!("{} must have an axis, got shape ()", w.name)).into());
        }
        let threads = resolve(function, threads)?;
        let (n, inner) = about(w.shape(), 0);
        let _borrow = borrow(&[&w])?;
        let sums = match_dtype!(w, T => {
            let x = w.slice::<T>();
            compute(w.object.py(), || median::distances(x, n, inner, threads))?
        });
        Ok(PyArray1::from_vec(w.object.py(), sums).into_any())
    })
}

/// Gather: the words of an array are seen as unsigned integers.
#[pyfunction]
fn take<'py>(
    x: &Obj<'py>,
    indices: &Obj<'py>,
    axis: &Obj<'py>,
    out: &Obj<'py>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    let function = "take";
    entry(function, || {
        let x = Array::words(Name::new(function, "x"), x)?;
        let axis = one_axis((function, "axis"), axis, ("x", x.shape()))?;
        let threads = resolve(function, threads)?;
        let (n, inner) = about(x.shape(), axis);
        let given = indices.cast::<PyArray1<i64>>().ok().and_then(|given| given.try_readonly().ok());
        let Some(given) = given.as_ref().and_then(|given| given.as_slice().ok()) else {
            let got = indices.get_type().name()?;
            return Err(Error::Dtype(format!("take: indices must be a 1-d array of int64, got {got}")).into());
        };
        let indices = gather::checked(given, n).map_err(|bad| {
            Error::Value(format!("take: indices must be from 0 to below the {n} indices of axis {axis}, got {bad}"))
        })?;
        let mut shape = x.shape().to_vec();
        shape[axis] = indices.len();
        let mut target = Array::words_out(Name::new(function, "out"), out)?;
        target.expect_shape(&shape)?;
        target.expect_dtype(x.dtype, "as x")?;
        let _borrow = borrow(&[&x, &target])?;
        macro_rules! gather {
            ($t:ty) => {{
                let (x, target) = (x.slice::<$t>(), target.slice_mut::<$t>());
                compute(out.py(), || gather::take(x, n, inner, &indices, target, threads))
            }};
        }
        match x.dtype {
            Dtype::U16 => gather!(u16),
            Dtype::U32 => gather!(u32),
            Dtype::U64 => gather!(u64),
            _ => gather!(u8),
        }
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(importance_axis, m)?)?;
    m.add_function(wrap_pyfunction!(taylor_sums, m)?)?;
    m.add_function(wrap_pyfunction!(slice_distances, m)?)?;
    m.add_function(wrap_pyfunction!(take, m)?)
}

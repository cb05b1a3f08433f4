//! Storage of pruned weights: bitmask, compressed rows, N:M.

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::Name;
use super::array::{Array, tuple};
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{ask_memory, compute, entry};
use super::threads::resolve;
use crate::error::{Error, Result};
use crate::kernels::pack::packed_len;
use crate::kernels::prune::{self as kernel, Places};

type Obj<'py> = Bound<'py, PyAny>;

/// Where the values of each row begin and end; ascending from 0 to `total`.
fn offsets(name: Name, array: &Array<'_>, rows: usize, total: usize) -> PyResult<Vec<u64>> {
    array.expect_dtype(Dtype::I64, "int64")?;
    array.expect_shape(&[rows + 1])?;
    let offsets: Vec<u64> = array.slice::<i64>().iter().map(|&offset| offset as u64).collect();
    let whole = offsets.first() == Some(&0) && offsets.last() == Some(&(total as u64)) && offsets.is_sorted();
    if whole {
        return Ok(offsets);
    }
    Err(Error::Value(format!("{name} must ascend from 0 to the number of values, {total}")).into())
}

/// Rows of an array: all axes but the last.
fn rows_of(shape: &[usize]) -> usize {
    shape[..shape.len().saturating_sub(1)].iter().product()
}

fn bits_shape(shape: &[usize], cols: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    match shape.last_mut() {
        Some(last) => *last = packed_len(cols, 1),
        None => shape.push(1),
    }
    shape
}

/// Where the values of each row will begin, and where the last ends.
#[pyfunction]
fn row_offsets<'py>(
    w: &Obj<'py>,
    csr: bool,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let function = if csr { "to_csr" } else { "compress" };
    entry(function, || {
        let threads = resolve(function, threads)?;
        let w = Array::float(Name::new(function, "w"), w, dtype)?;
        let (rows, cols) = (rows_of(w.shape()), w.cols());
        ask_memory(function, rows.saturating_mul(48))?;
        let _borrow = borrow(&[&w])?;
        let offsets = match_dtype!(w, T => {
            let x = w.slice::<T>();
            compute(w.object.py(), || kernel::row_offsets(x, rows, cols, threads))?
        });
        Ok(PyArray1::from_iter(w.object.py(), offsets.into_iter().map(|offset| offset as i64)))
    })
}

/// `(row_offsets, values, bitmask, or None and the columns of the values)`.
type GivenRows<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>, Option<Obj<'py>>);

#[pyfunction]
fn compress<'py>(
    w: &Obj<'py>,
    out: GivenRows<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("compress", || {
        let name = |arg| Name::new("compress", arg);
        let (py, threads) = (w.py(), resolve("compress", threads)?);
        let w = Array::float(name("w"), w, dtype)?;
        let (rows, cols) = (rows_of(w.shape()), w.cols());
        let mut values = Array::float_out(name("values"), &out.1, dtype)?;
        values.expect_dtype(w.dtype, w.object_dtype())?;
        let given = Array::ints(name("row_offsets"), &out.0)?;
        let offsets = offsets(name("row_offsets"), &given, rows, values.len())?;
        let mut places = match (&out.2, &out.3) {
            (Some(bits), _) => {
                let bits = Array::bytes_out(name("bitmask"), bits)?;
                bits.expect_shape(&bits_shape(w.shape(), cols))?;
                bits
            }
            (None, columns) => {
                let columns = Array::ints_out(name("columns"), columns.as_ref().expect("bitmask or columns"))?;
                columns.expect_dtype(Dtype::I32, "int32")?;
                columns.expect_shape(values.shape())?;
                columns
            }
        };
        let _borrow = borrow(&[&w, &given, &values, &places])?;
        let is_bits = places.dtype == Dtype::U8;
        let wrong = match_dtype!(w, T => {
            let places = if is_bits {
                Places::Bits(places.slice_mut::<u8>())
            } else {
                Places::Columns(places.slice_mut::<i32>())
            };
            let (x, values) = (w.slice::<T>(), values.slice_mut::<T>());
            compute(py, || kernel::compress(x, cols, &offsets, values, places, threads))?
        });
        match wrong {
            None => Ok(()),
            Some(row) => Err(Error::Value(format!("compress: w changed while row {row} was read")).into()),
        }
    })
}

/// `(row_offsets, values, bitmask)`.
type GivenBits<'py> = (Obj<'py>, Obj<'py>, Obj<'py>);

#[pyfunction]
fn decompress<'py>(
    parts: GivenBits<'py>,
    out: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("decompress", || {
        let name = |arg| Name::new("decompress", arg);
        let (py, threads) = (out.py(), resolve("decompress", threads)?);
        let mut out = Array::float_out(name("out"), out, dtype)?;
        let values = Array::float(name("values"), &parts.1, dtype)?;
        values.expect_dtype(out.dtype, out.object_dtype())?;
        let bits = Array::bytes(name("bitmask"), &parts.2)?;
        let (rows, cols) = (rows_of(out.shape()), out.cols());
        bits.expect_shape(&bits_shape(out.shape(), cols))?;
        let given = Array::ints(name("row_offsets"), &parts.0)?;
        let offsets = offsets(name("row_offsets"), &given, rows, values.len())?;
        let _borrow = borrow(&[&given, &values, &bits, &out])?;
        let bits = bits.slice::<u8>();
        if let Some(row) = crate::kernels::pack::first_bad_padding(bits, cols, 1) {
            let text = format!("decompress: bitmask must have zero padding bits, got others at the end of row {row}");
            return Err(Error::Value(text).into());
        }
        let wrong = match_dtype!(out, T => {
            let (values, target) = (values.slice::<T>(), out.slice_mut::<T>());
            compute(py, || kernel::decompress(values, &offsets, bits, cols, target, threads))?
        });
        match wrong {
            None => Ok(()),
            Some(row) => {
                let text =
                    format!("decompress: bitmask must have a bit for each value of row {row}, got another number");
                Err(Error::Value(text).into())
            }
        }
    })
}

/// The shape of values: `keep` for each `group` of the last axis.
fn slots_shape(function: &str, shape: &[usize], (keep, group): (usize, usize)) -> Result<Vec<usize>> {
    let mut slots = shape.to_vec();
    let Some(n) = slots.last_mut().filter(|n| n.is_multiple_of(group)) else {
        let got = tuple(shape);
        let text = format!("{function}: w must have a multiple of {group} elements in its last axis, got shape {got}");
        return Err(Error::Shape(text));
    };
    *n = *n / group * keep;
    Ok(slots)
}

/// `(values, indices, keep, group)`: an index a byte; the numbers were checked.
type GivenSlots<'py> = (Obj<'py>, Obj<'py>, usize, usize);

#[pyfunction]
fn compress_groups<'py>(
    w: &Obj<'py>,
    out: GivenSlots<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("compress", || {
        let name = |arg| Name::new("compress", arg);
        let (py, threads, sizes) = (w.py(), resolve("compress", threads)?, (out.2, out.3));
        let w = Array::float(name("w"), w, dtype)?;
        let shape = slots_shape("compress", w.shape(), sizes)?;
        let mut values = Array::float_out(name("values"), &out.0, dtype)?;
        values.expect_dtype(w.dtype, w.object_dtype())?;
        values.expect_shape(&shape)?;
        let mut places = Array::bytes_out(name("indices"), &out.1)?;
        places.expect_shape(&shape)?;
        let _borrow = borrow(&[&w, &values, &places])?;
        let fits = match_dtype!(w, T => {
            let (x, values, places) = (w.slice::<T>(), values.slice_mut::<T>(), places.slice_mut::<u8>());
            compute(py, || kernel::compress_groups(x, sizes, values, places, threads))?
        });
        if fits {
            return Ok(());
        }
        let (keep, group) = sizes;
        let text =
            format!("compress: w must have at most {keep} non-zero of each {group} consecutive weights, got more");
        Err(Error::Value(format!("{text}; prune it by n_of_m first")).into())
    })
}

#[pyfunction]
fn decompress_groups<'py>(
    parts: GivenSlots<'py>,
    out: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("decompress", || {
        let name = |arg| Name::new("decompress", arg);
        let (py, threads, sizes) = (out.py(), resolve("decompress", threads)?, (parts.2, parts.3));
        let mut out = Array::float_out(name("out"), out, dtype)?;
        let shape = slots_shape("decompress", out.shape(), sizes)?;
        let values = Array::float(name("values"), &parts.0, dtype)?;
        values.expect_dtype(out.dtype, out.object_dtype())?;
        values.expect_shape(&shape)?;
        let places = Array::bytes(name("indices"), &parts.1)?;
        places.expect_shape(&shape)?;
        let _borrow = borrow(&[&values, &places, &out])?;
        let fits = match_dtype!(out, T => {
            let (values, places, target) = (values.slice::<T>(), places.slice::<u8>(), out.slice_mut::<T>());
            compute(py, || kernel::decompress_groups(values, places, sizes, target, threads))?
        });
        if fits {
            return Ok(());
        }
        Err(Error::Value(format!("decompress: indices must ascend from 0 to below {} in each group", sizes.1)).into())
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(row_offsets, m)?)?;
    m.add_function(wrap_pyfunction!(compress, m)?)?;
    m.add_function(wrap_pyfunction!(decompress, m)?)?;
    m.add_function(wrap_pyfunction!(compress_groups, m)?)?;
    m.add_function(wrap_pyfunction!(decompress_groups, m)?)
}

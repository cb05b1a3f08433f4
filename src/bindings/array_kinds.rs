//! Arrays by what they hold: floats, bytes, integers, words; and the checks of shapes and dtypes.

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arg::Name;
use super::array::{Array, data, is_writeable, tuple};
use super::array_order::{has_rows, in_order, is_in_order, reach, repeated_axis};
use super::borrow::Extent;
use super::dtype::{Dtype, byte_dtype, float_dtype, int_dtype, ndarray, number_dtype, word_dtype};
use crate::error::{Error, Result};

type Obj<'py> = Bound<'py, PyAny>;

impl<'py> Array<'py> {
    /// What is read.
    pub fn input(name: Name, array: &Bound<'py, PyUntypedArray>, dtype: Dtype) -> PyResult<Self> {
        let object = in_order(array)?;
        let mut made = Self::new(name, object, dtype, false);
        made.original = (!made.object.is(array)).then(|| array.clone());
        Ok(made)
    }

    /// What is read by [`Self::rows`], which may lie anywhere: of an image that is a part of another, or upside down.
    pub fn rows_input(name: Name, array: &Bound<'py, PyUntypedArray>, dtype: Dtype) -> PyResult<Self> {
        if is_in_order(array) || !has_rows(array) {
            return Self::input(name, array, dtype);
        }
        let mut made = Self::new(name, array.clone(), dtype, false);
        made.by_rows = true;
        Ok(made)
    }

    /// What is written.
    pub fn output(name: Name, array: &Bound<'py, PyUntypedArray>, dtype: Dtype) -> PyResult<Self> {
        if !is_writeable(array) {
            return Err(Error::Layout(format!("{name} must be writeable, got a read-only array")).into());
        }
        if !is_in_order(array) {
            let text = format!("{name} must be C-contiguous and aligned, got another layout; pass a contiguous array");
            return Err(Error::Layout(text).into());
        }
        Ok(Self::new(name, array.clone(), dtype, true))
    }

    /// Length of the last axis (1 for 0-d).
    pub fn cols(&self) -> usize {
        self.shape().last().copied().unwrap_or(1)
    }

    /// The bytes that it lies in.
    pub fn extent(&self) -> Extent {
        let (start, size) = (data(&self.object), self.dtype.size());
        if self.by_rows {
            let [before, behind] = reach(&self.object);
            return Extent { start: start - before, end: start + behind + size, writes: false };
        }
        Extent { start, end: start + self.len() * size, writes: self.is_written() }
    }

    /// An input of floats (`bf16`: uint16 is read as bfloat16).
    pub fn float(name: Name, object: &Bound<'py, PyAny>, bf16: Option<&Obj<'_>>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = float_dtype(name, &array, bf16)?;
        Self::input(name, &array, dtype)
    }

    /// An input of floats, integers or bools.
    pub fn number(name: Name, object: &Bound<'py, PyAny>, bf16: Option<&Obj<'_>>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = number_dtype(name, &array, bf16)?;
        Self::input(name, &array, dtype)
    }

    /// An input of bytes: uint8 or int8.
    pub fn bytes(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = byte_dtype(name, &array)?;
        Self::input(name, &array, dtype)
    }

    /// An input of integers: int32 or int64.
    pub fn ints(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = int_dtype(name, &array)?;
        Self::input(name, &array, dtype)
    }

    /// An output of integers.
    pub fn ints_out(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = int_dtype(name, &array)?;
        Self::output(name, &array, dtype)
    }

    /// An input of words that are only moved: unsigned integers.
    pub fn words(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = word_dtype(name, &array)?;
        Self::input(name, &array, dtype)
    }

    /// An output of words.
    pub fn words_out(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = word_dtype(name, &array)?;
        Self::output(name, &array, dtype)
    }

    /// An output of floats.
    pub fn float_out(name: Name, object: &Bound<'py, PyAny>, bf16: Option<&Obj<'_>>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = float_dtype(name, &array, bf16)?;
        Self::output(name, &array, dtype)
    }

    /// What is read and written in place, in any layout: one that kernels do not take is worked on in a copy, which
    /// [`Array::write_back`] puts in its place.
    pub fn float_inout(name: Name, object: &Bound<'py, PyAny>, bf16: Option<&Obj<'_>>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = float_dtype(name, &array, bf16)?;
        Self::inout(name, &array, dtype)
    }

    /// The same for bytes.
    pub fn bytes_inout(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = byte_dtype(name, &array)?;
        Self::inout(name, &array, dtype)
    }

    /// An output of bytes.
    pub fn bytes_out(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = byte_dtype(name, &array)?;
        Self::output(name, &array, dtype)
    }

    /// What is read and written in place.
    pub fn inout(name: Name, array: &Bound<'py, PyUntypedArray>, dtype: Dtype) -> PyResult<Self> {
        if is_writeable(array) && is_in_order(array) {
            return Ok(Self::new(name, array.clone(), dtype, true));
        }
        if !is_writeable(array) {
            return Self::output(name, array, dtype);
        }
        if let Some(axis) = repeated_axis(array) {
            let stride = array.strides()[axis];
            let text = format!("{name} must have a place for each element, got stride {stride} along axis {axis}");
            return Err(Error::Layout(text).into());
        }
        let copy = array.call_method1("copy", ("C",))?.cast_into::<PyUntypedArray>()?;
        let mut inout = Self::new(name, copy, dtype, true);
        inout.original = Some(array.clone());
        Ok(inout)
    }

    /// Put what was computed in a copy in its place.
    pub fn write_back(&self) -> PyResult<()> {
        match &self.original {
            Some(original) if self.is_written() => {
                original.call_method1("__setitem__", (self.object.py().Ellipsis(), &self.object))?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Refuse another shape.
    pub fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape() == shape {
            return Ok(());
        }
        let (name, want, got) = (self.name, tuple(shape), tuple(self.shape()));
        Err(Error::Shape(format!("{name} must have shape {want}, got {got}")))
    }

    /// Refuse another shape than that of `other`.
    pub fn expect_shape_of(&self, other: &Self) -> Result<()> {
        if self.shape() == other.shape() {
            return Ok(());
        }
        let (name, like, want, got) = (self.name, other.name.arg, tuple(other.shape()), tuple(self.shape()));
        Err(Error::Shape(format!("{name} must have shape {want} like {like}, got {got}")))
    }

    /// The dtype as NumPy writes it.
    pub fn object_dtype(&self) -> impl std::fmt::Display + use<'py> {
        self.object.dtype()
    }

    /// Refuse another dtype.
    pub fn expect_dtype(&self, dtype: Dtype, what: impl std::fmt::Display) -> PyResult<()> {
        if self.dtype == dtype {
            return Ok(());
        }
        let got = self.object.dtype();
        Err(Error::Dtype(format!("{} must have dtype {what}, got {got}", self.name)).into())
    }
}

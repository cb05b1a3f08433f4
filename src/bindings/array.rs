//! NumPy arrays as slices: the checks, the borrows, and the only `unsafe` of the bindings.
//!
//! An [`Array`] has passed all checks: C-contiguous, aligned, native bytes, a known dtype. What is read and does not
//! lie so is copied by NumPy first; what is written is refused. `borrow` then registers the memory of the call.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arg::Name;
use super::borrow::Extent;
use super::dtype::{Dtype, Item, byte_dtype, float_dtype, int_dtype, ndarray, word_dtype};
use crate::error::{Error, Result};

/// A checked array. It holds the reference for the whole call, so `resize` refuses and nothing frees the memory.
pub struct Array<'py> {
    pub object: Bound<'py, PyUntypedArray>,
    pub dtype: Dtype,
    pub name: Name,
    /// What was given, where `object` is a copy of it.
    pub original: Option<Bound<'py, PyUntypedArray>>,
    writeable: bool,
}

impl<'py> Array<'py> {
    /// An input of floats (`bf16`: uint16 is read as bfloat16).
    pub fn float(name: Name, object: &Bound<'py, PyAny>, bf16: Option<&str>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = float_dtype(name, array, bf16)?;
        Self::input(name, array, dtype)
    }

    /// An input of bytes: uint8 or int8.
    pub fn bytes(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = byte_dtype(name, array)?;
        Self::input(name, array, dtype)
    }

    /// An input of integers: int32 or int64.
    pub fn ints(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = int_dtype(name, array)?;
        Self::input(name, array, dtype)
    }

    /// An output of integers.
    pub fn ints_out(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = int_dtype(name, array)?;
        Self::output(name, array, dtype)
    }

    /// An input of words that are only moved: unsigned integers.
    pub fn words(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = word_dtype(name, array)?;
        Self::input(name, array, dtype)
    }

    /// An output of words.
    pub fn words_out(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = word_dtype(name, array)?;
        Self::output(name, array, dtype)
    }

    /// An output of floats.
    pub fn float_out(name: Name, object: &Bound<'py, PyAny>, bf16: Option<&str>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = float_dtype(name, array, bf16)?;
        Self::output(name, array, dtype)
    }

    /// What is read and written in place, in any layout: one that kernels do not take is worked on in a copy, which
    /// [`Array::write_back`] puts in its place.
    pub fn float_inout(name: Name, object: &Bound<'py, PyAny>, bf16: Option<&str>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = float_dtype(name, array, bf16)?;
        Self::inout(name, array, dtype)
    }

    /// The same for bytes.
    pub fn bytes_inout(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = byte_dtype(name, array)?;
        Self::inout(name, array, dtype)
    }

    fn inout(name: Name, array: &Bound<'py, PyUntypedArray>, dtype: Dtype) -> PyResult<Self> {
        if !is_writeable(array) || is_in_order(array) {
            return Self::output(name, array, dtype);
        }
        if let Some(axis) = repeated_axis(array) {
            let text = format!("{name} must have a place for each element, got stride 0 along axis {axis}");
            return Err(Error::Layout(text).into());
        }
        let copy = array.call_method1("copy", ("C",))?.cast_into::<PyUntypedArray>()?;
        Ok(Self { original: Some(array.clone()), ..Self::new(name, copy, dtype, true) })
    }

    /// Put what was computed in a copy in its place.
    pub fn write_back(&self) -> PyResult<()> {
        match &self.original {
            Some(original) if self.writeable => {
                original.call_method1("__setitem__", (self.object.py().Ellipsis(), &self.object))?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The array that was given.
    pub fn given(&self) -> &Bound<'py, PyUntypedArray> {
        self.original.as_ref().unwrap_or(&self.object)
    }

    /// Whether it is written.
    pub fn is_written(&self) -> bool {
        self.writeable
    }

    /// An output of bytes.
    pub fn bytes_out(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = byte_dtype(name, array)?;
        Self::output(name, array, dtype)
    }

    fn input(name: Name, array: &Bound<'py, PyUntypedArray>, dtype: Dtype) -> PyResult<Self> {
        let object = in_order(array)?;
        let original = (!object.is(array)).then(|| array.clone());
        Ok(Self { original, ..Self::new(name, object, dtype, false) })
    }

    fn new(name: Name, object: Bound<'py, PyUntypedArray>, dtype: Dtype, writeable: bool) -> Self {
        Self { dtype, object, name, original: None, writeable }
    }

    fn output(name: Name, array: &Bound<'py, PyUntypedArray>, dtype: Dtype) -> PyResult<Self> {
        if !is_writeable(array) {
            return Err(Error::Layout(format!("{name} must be writeable, got a read-only array")).into());
        }
        if !is_in_order(array) {
            let text = format!("{name} must be C-contiguous and aligned, got another layout; pass a contiguous array");
            return Err(Error::Layout(text).into());
        }
        Ok(Self::new(name, array.clone(), dtype, true))
    }

    /// Its shape. Not to be kept while the GIL is released: another thread may set a new one.
    pub fn shape(&self) -> &[usize] {
        self.object.shape()
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.object.len()
    }

    /// Length of the last axis (1 for 0-d).
    pub fn cols(&self) -> usize {
        self.shape().last().copied().unwrap_or(1)
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

    /// The bytes that it lies in.
    pub fn extent(&self) -> Extent {
        let start = data(&self.object);
        Extent { start, end: start + self.len() * self.object.dtype().itemsize(), writes: self.writeable }
    }

    /// The elements.
    pub fn slice<T: Item>(&self) -> &[T] {
        let start = self.pointer::<T>();
        // SAFETY: NumPy owns `len` elements from `start` on (C-contiguous, checked); `pointer` has checked type and
        // alignment and gives a dangling but aligned pointer where there are none; every bit pattern is a value of T;
        // `self` holds a reference, and no other call of ours writes there while `borrow` is held.
        unsafe { std::slice::from_raw_parts(start, self.len()) }
    }

    /// The elements, to be written.
    pub fn slice_mut<T: Item>(&mut self) -> &mut [T] {
        assert!(self.writeable, "an output");
        let start = self.pointer::<T>();
        // SAFETY: as for `slice`, and `output` has checked that it is writeable; `borrow` has checked that no other
        // array of this or another running call overlaps, and `&mut self` that no other slice of it is alive.
        unsafe { std::slice::from_raw_parts_mut(start, self.len()) }
    }

    fn pointer<T: Item>(&self) -> *mut T {
        let signed_bytes = T::DTYPE == Dtype::U8 && self.dtype == Dtype::I8;
        assert!(T::DTYPE == self.dtype || signed_bytes, "dtype was matched");
        let start = data(&self.object) as *mut T;
        if self.len() == 0 { std::ptr::NonNull::dangling().as_ptr() } else { start }
    }
}

/// The address of the first element.
fn data(array: &Bound<'_, PyUntypedArray>) -> usize {
    // SAFETY: the pointer is that of a live array object, whose layout is NumPy's stable ABI; only a field is read.
    unsafe { (*array.as_array_ptr()).fields.data as usize }
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

/// The flag of this name.
fn is_writeable(array: &Bound<'_, PyUntypedArray>) -> bool {
    // SAFETY: as for `data`.
    let flags = unsafe { (*array.as_array_ptr()).fields.flags };
    flags & numpy::npyffi::NPY_ARRAY_WRITEABLE != 0
}

/// As NumPy writes a shape.
pub fn tuple(shape: &[usize]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// An axis along which one place is many elements.
fn repeated_axis(array: &Bound<'_, PyUntypedArray>) -> Option<usize> {
    array.shape().iter().zip(array.strides()).position(|(&n, &stride)| n > 1 && stride == 0)
}

fn is_in_order(array: &Bound<'_, PyUntypedArray>) -> bool {
    let align = array.dtype().itemsize().clamp(1, 8);
    array.is_c_contiguous() && (array.len() == 0 || data(array).is_multiple_of(align))
}

/// The array itself where it lies as kernels need it, else a copy that does.
fn in_order<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyUntypedArray>> {
    if is_in_order(array) {
        return Ok(array.clone());
    }
    Ok(array.call_method1("copy", ("C",))?.cast_into::<PyUntypedArray>()?)
}

//! NumPy arrays as slices: the checks, the borrows, and the only `unsafe` of the bindings.
//!
//! An [`Array`] has passed all checks: C-contiguous, aligned, native bytes, a known dtype. What is read and does not
//! lie so is copied by NumPy first; what is written is refused. `borrow` then registers the memory of the call.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::arg::Name;
use super::borrow::Extent;
use crate::error::{Error, Result};
use crate::real::{Bf16, F16};

/// The dtypes that kernels know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F64,
    F16,
    Bf16,
    U8,
    I8,
}

/// A type of the kernels and its dtype.
pub trait Item: Copy + Send + Sync + 'static {
    const DTYPE: Dtype;
}
macro_rules! item {
    ($($t:ty => $dtype:ident),*) => {$(impl Item for $t { const DTYPE: Dtype = Dtype::$dtype; })*};
}
item!(f32 => F32, f64 => F64, F16 => F16, Bf16 => Bf16, u8 => U8);

/// Bind `$t` to the float type of `$array` and evaluate `$body`; the dtype was checked to be a float.
macro_rules! match_dtype {
    ($array:expr, $t:ident => $body:expr) => {
        match $array.dtype {
            $crate::bindings::array::Dtype::F32 => {
                type $t = f32;
                $body
            }
            $crate::bindings::array::Dtype::F64 => {
                type $t = f64;
                $body
            }
            $crate::bindings::array::Dtype::F16 => {
                type $t = $crate::real::F16;
                $body
            }
            $crate::bindings::array::Dtype::Bf16 => {
                type $t = $crate::real::Bf16;
                $body
            }
            _ => unreachable!("checked to be a float"),
        }
    };
}
pub(crate) use match_dtype;

/// A checked array. It holds the reference for the whole call, so `resize` refuses and nothing frees the memory.
pub struct Array<'py> {
    pub object: Bound<'py, PyUntypedArray>,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub name: Name,
    /// What was given, where `object` is a copy of it.
    pub original: Option<Bound<'py, PyUntypedArray>>,
    writeable: bool,
}

const FLOATS: &str = "float32, float64, float16 or bfloat16";

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

    /// An output of floats.
    pub fn float_out(name: Name, object: &Bound<'py, PyAny>, bf16: Option<&str>) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = float_dtype(name, array, bf16)?;
        Self::output(name, array, dtype)
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
        Self { dtype, shape: object.shape().to_vec(), object, name, original: None, writeable }
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

    /// How many elements.
    pub fn len(&self) -> usize {
        self.object.len()
    }

    /// Length of the last axis (1 for 0-d).
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Refuse another shape.
    pub fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        let (name, want, got) = (self.name, tuple(shape), tuple(&self.shape));
        Err(Error::Shape(format!("{name} must have shape {want}, got {got}")))
    }

    /// Refuse another shape than that of `other`.
    pub fn expect_shape_of(&self, other: &Self) -> Result<()> {
        if self.shape == other.shape {
            return Ok(());
        }
        let (name, like, want, got) = (self.name, other.name.arg, tuple(&other.shape), tuple(&self.shape));
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

/// An ndarray; a masked array is refused, because its mask would be lost.
fn ndarray<'a, 'py>(name: Name, object: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyUntypedArray>> {
    if object.is_exact_instance_of::<PyUntypedArray>() {
        return Ok(object.cast::<PyUntypedArray>()?);
    }
    let kind = object.get_type().name().map_or_else(|_| "?".into(), |kind| kind.to_string());
    match object.cast::<PyUntypedArray>() {
        Ok(array) if kind != "MaskedArray" => Ok(array),
        _ => {
            let fix = if kind == "MaskedArray" { "; its mask would be lost" } else { "" };
            Err(Error::Dtype(format!("{name} must be a NumPy array, got {kind}{fix}")).into())
        }
    }
}

fn float_dtype(name: Name, array: &Bound<'_, PyUntypedArray>, bf16: Option<&str>) -> PyResult<Dtype> {
    let descr = array.dtype();
    let itemsize = descr.itemsize();
    if let Some(other) = bf16.filter(|&text| text != "bf16") {
        return Err(Error::Value(format!("{}: dtype must be None or 'bf16', got {other:?}", name.function)).into());
    }
    if descr.byteorder() == b'>' {
        let (got, kind) = (descr.getattr("str")?, char::from(descr.kind()));
        let text = format!("{name} has big-endian dtype '{got}'; use {}.astype('={kind}{itemsize}')", name.arg);
        return Err(Error::Dtype(text).into());
    }
    match (descr.kind(), itemsize, bf16) {
        (b'u', 2, Some(_)) => Ok(Dtype::Bf16),
        (b'f', 4, None) => Ok(Dtype::F32),
        (b'f', 8, None) => Ok(Dtype::F64),
        (b'f', 2, None) => Ok(Dtype::F16),
        (b'V', 2, _) if descr.getattr("name")?.cast::<PyString>()?.to_cow()? == "bfloat16" => Ok(Dtype::Bf16),
        (b'u', 2, None) => {
            let text = format!(
                "{name} must have dtype {FLOATS}, got uint16; for bfloat16 bits pass dtype=\"bf16\" or \
                 x.view(ml_dtypes.bfloat16)"
            );
            Err(Error::Dtype(text).into())
        }
        (_, _, Some(_)) => {
            Err(Error::Dtype(format!("{name} must have dtype uint16 where dtype=\"bf16\", got {descr}")).into())
        }
        _ => Err(Error::Dtype(format!("{name} must have dtype {FLOATS}, got {descr}")).into()),
    }
}

fn byte_dtype(name: Name, array: &Bound<'_, PyUntypedArray>) -> PyResult<Dtype> {
    let descr = array.dtype();
    match (descr.kind(), descr.itemsize()) {
        (b'u', 1) => Ok(Dtype::U8),
        (b'i', 1) => Ok(Dtype::I8),
        _ => Err(Error::Dtype(format!("{name} must have dtype uint8 or int8, got {descr}")).into()),
    }
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

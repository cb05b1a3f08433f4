//! The dtypes of arrays: which kernels know, and the messages about the others.

use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::arg::{Name, not_one_of};
use crate::error::Error;
use crate::real::{Bf16, Element, F16};

/// The dtypes that kernels know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F64,
    F16,
    Bf16,
    Bool,
    U8,
    I8,
    I16,
    I32,
    I64,
    U16,
    U32,
    U64,
}

impl Dtype {
    /// Whether it is a float.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::Bf16)
    }

    /// That of an array of native floats or bytes; None of any other.
    pub fn of_numbers(array: &Bound<'_, PyUntypedArray>) -> Option<Self> {
        let descr = array.dtype();
        match (descr.kind(), descr.itemsize(), descr.byteorder()) {
            (_, _, b'>') => None,
            (b'f', 4, _) => Some(Self::F32),
            (b'f', 8, _) => Some(Self::F64),
            (b'u', 1, _) => Some(Self::U8),
            (b'i', 1, _) => Some(Self::I8),
            _ => None,
        }
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::F16 | Self::Bf16 | Self::U16 | Self::I16 => 2,
            Self::F32 | Self::U32 | Self::I32 => 4,
            Self::F64 | Self::U64 | Self::I64 => 8,
        }
    }

    /// Whether it is a signed integer.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }

    /// The bits of a float's infinity.
    pub fn infinity(self) -> u64 {
        match self {
            Self::F16 => F16::INFINITY_KEY as u64,
            Self::Bf16 => Bf16::INFINITY_KEY as u64,
            Self::F64 => f64::INFINITY_KEY as u64,
            _ => f32::INFINITY_KEY as u64,
        }
    }
}

/// A type of the kernels and its dtype.
pub trait Item: Copy + Send + Sync + 'static {
    const DTYPE: Dtype;
}
macro_rules! item {
    ($($t:ty => $dtype:ident),*) => {$(impl Item for $t { const DTYPE: Dtype = Dtype::$dtype; })*};
}
item!(f32 => F32, f64 => F64, F16 => F16, Bf16 => Bf16, u8 => U8, u16 => U16, u32 => U32, u64 => U64, i8 => I8, i16 => I16, i32 => I32,
    i64 => I64);

/// Bind `$t` to the float type of `$array` and evaluate `$body`; the dtype was checked to be a float.
macro_rules! match_dtype {
    ($array:expr, $t:ident => $body:expr) => {
        match $array.dtype {
            $crate::bindings::dtype::Dtype::F32 => {
                type $t = f32;
                $body
            }
            $crate::bindings::dtype::Dtype::F64 => {
                type $t = f64;
                $body
            }
            $crate::bindings::dtype::Dtype::F16 => {
                type $t = $crate::real::F16;
                $body
            }
            $crate::bindings::dtype::Dtype::Bf16 => {
                type $t = $crate::real::Bf16;
                $body
            }
            _ => unreachable!("checked to be a float"),
        }
    };
}
pub(crate) use match_dtype;

/// Bind `$t` to the integer of the size of the elements of `$array`, whatever their dtype, and evaluate `$body`.
macro_rules! match_width {
    ($array:expr, $t:ident => $body:expr) => {
        match $array.dtype.size() {
            1 => {
                type $t = i8;
                $body
            }
            2 => {
                type $t = i16;
                $body
            }
            4 => {
                type $t = i32;
                $body
            }
            _ => {
                type $t = i64;
                $body
            }
        }
    };
}
pub(crate) use match_width;

/// Bind `$x` to the elements of `$array`, which are floats, integers or bools (as bytes), and evaluate `$body`.
macro_rules! match_number {
    ($array:expr, $x:ident => $body:expr) => {{
        use $crate::bindings::dtype::Dtype;
        macro_rules! integers {
            ($t:ty) => {{
                let $x = $array.bits_as::<$t>();
                $body
            }};
        }
        match $array.dtype {
            Dtype::Bool | Dtype::U8 => integers!(u8),
            Dtype::I8 => integers!(i8),
            Dtype::U16 => integers!(u16),
            Dtype::I16 => integers!(i16),
            Dtype::U32 => integers!(u32),
            Dtype::I32 => integers!(i32),
            Dtype::U64 => integers!(u64),
            Dtype::I64 => integers!(i64),
            _ => $crate::bindings::dtype::match_dtype!($array, T => {
                let $x = $array.slice::<T>();
                $body
            }),
        }
    }};
}
pub(crate) use match_number;

type Obj<'py> = Bound<'py, PyAny>;

const FLOATS: &str = "float32, float64, float16 or bfloat16";

/// An ndarray, or the memory of what is none: `modelopt_rs.arrays` decides. A masked array is refused, because its mask
/// would be lost.
pub fn ndarray<'py>(name: Name, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    if object.is_exact_instance_of::<PyUntypedArray>() {
        return Ok(object.cast::<PyUntypedArray>()?.clone());
    }
    let kind = object.get_type().name().map_or_else(|_| "?".into(), |kind| kind.to_string());
    match object.cast::<PyUntypedArray>() {
        Ok(array) if kind != "MaskedArray" => Ok(array.clone()),
        Ok(_) => {
            let text = format!("{name} must be a NumPy array, got {kind}; its mask would be lost");
            Err(Error::Dtype(text).into())
        }
        Err(_) => {
            let arrays = object.py().import("modelopt_rs.arrays")?;
            Ok(arrays.call_method1("as_array", (object, name.to_string()))?.cast_into()?)
        }
    }
}

/// Whether a `dtype=` says that uint16 is bfloat16.
pub fn is_bf16(word: &Obj<'_>) -> bool {
    word.cast::<PyString>().is_ok_and(|text| text.to_str().is_ok_and(|text| text == "bf16"))
}

/// Refuse bytes in another order than this machine's: they would have to be copied.
pub fn expect_native(name: Name, descr: &Bound<'_, PyArrayDescr>) -> PyResult<()> {
    if descr.byteorder() != b'>' {
        return Ok(());
    }
    let (got, kind, size) = (descr.getattr("str")?, char::from(descr.kind()), descr.itemsize());
    let text = format!("{name} has big-endian dtype '{got}'; use {}.astype('={kind}{size}')", name.arg);
    Err(Error::Dtype(text).into())
}

pub fn float_dtype(name: Name, array: &Bound<'_, PyUntypedArray>, bf16: Option<&Obj<'_>>) -> PyResult<Dtype> {
    let descr = array.dtype();
    let itemsize = descr.itemsize();
    if let Some(other) = bf16.filter(|word| !is_bf16(word)) {
        return Err(not_one_of(name.function, "dtype", "None or 'bf16'", other));
    }
    expect_native(name, &descr)?;
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

/// A float, an integer or a bool.
pub fn number_dtype(name: Name, array: &Bound<'_, PyUntypedArray>, bf16: Option<&Obj<'_>>) -> PyResult<Dtype> {
    let descr = array.dtype();
    expect_native(name, &descr)?;
    match (descr.kind(), descr.itemsize()) {
        _ if bf16.is_some() => float_dtype(name, array, bf16),
        (b'f', 2 | 4 | 8) => float_dtype(name, array, bf16),
        (b'V', 2) if descr.getattr("name")?.cast::<PyString>()?.to_cow()? == "bfloat16" => Ok(Dtype::Bf16),
        (b'b', 1) => Ok(Dtype::Bool),
        (b'u', 1) => Ok(Dtype::U8),
        (b'i', 1) => Ok(Dtype::I8),
        (b'u', 2) => Ok(Dtype::U16),
        (b'i', 2) => Ok(Dtype::I16),
        (b'u', 4) => Ok(Dtype::U32),
        (b'i', 4) => Ok(Dtype::I32),
        (b'u', 8) => Ok(Dtype::U64),
        (b'i', 8) => Ok(Dtype::I64),
        _ => Err(Error::Dtype(format!("{name} must have dtype {FLOATS}, of integers or bool, got {descr}")).into()),
    }
}

pub fn byte_dtype(name: Name, array: &Bound<'_, PyUntypedArray>) -> PyResult<Dtype> {
    let descr = array.dtype();
    expect_native(name, &descr)?;
    match (descr.kind(), descr.itemsize()) {
        (b'u', 1) => Ok(Dtype::U8),
        (b'i', 1) => Ok(Dtype::I8),
        _ => Err(Error::Dtype(format!("{name} must have dtype uint8 or int8, got {descr}")).into()),
    }
}

pub fn int_dtype(name: Name, array: &Bound<'_, PyUntypedArray>) -> PyResult<Dtype> {
    let descr = array.dtype();
    expect_native(name, &descr)?;
    match (descr.kind(), descr.itemsize()) {
        (b'i', 4) => Ok(Dtype::I32),
        (b'i', 8) => Ok(Dtype::I64),
        _ => Err(Error::Dtype(format!("{name} must have dtype int32 or int64, got {descr}")).into()),
    }
}

/// What is only moved: unsigned integers of any size.
pub fn word_dtype(name: Name, array: &Bound<'_, PyUntypedArray>) -> PyResult<Dtype> {
    let descr = array.dtype();
    expect_native(name, &descr)?;
    match (descr.kind(), descr.itemsize()) {
        (b'u', 1) => Ok(Dtype::U8),
        (b'u', 2) => Ok(Dtype::U16),
        (b'u', 4) => Ok(Dtype::U32),
        (b'u', 8) => Ok(Dtype::U64),
        _ => Err(Error::Dtype(format!("{name} must have an unsigned integer dtype, got {descr}")).into()),
    }
}

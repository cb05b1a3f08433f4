//! The dtypes of codes, one an item: those that NumPy has, and those of `ml_dtypes`, by name.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::arg::{Name, text};
use super::array::Array;
use super::dtype::{Dtype, expect_native, ndarray};
use crate::error::Error;

type Obj<'py> = Bound<'py, PyAny>;

/// Floats of a byte or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinifloatKind {
    E4M3,
    E5M2,
    E4M3Fnuz,
    E5M2Fnuz,
    E2M1,
}

/// What codes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whole numbers of 8, 4 or 2 bits, one a byte.
    Byte { bits: u32, signed: bool },
    /// Whole numbers of 16 bits.
    Word { signed: bool },
    /// int32, which is only read.
    Int,
    /// Floats, one a byte.
    Float(MinifloatKind),
}

const KINDS: [(&str, Kind); 14] = [
    ("int8", Kind::Byte { bits: 8, signed: true }),
    ("uint8", Kind::Byte { bits: 8, signed: false }),
    ("int16", Kind::Word { signed: true }),
    ("uint16", Kind::Word { signed: false }),
    ("int4", Kind::Byte { bits: 4, signed: true }),
    ("uint4", Kind::Byte { bits: 4, signed: false }),
    ("int2", Kind::Byte { bits: 2, signed: true }),
    ("uint2", Kind::Byte { bits: 2, signed: false }),
    ("float8_e4m3fn", Kind::Float(MinifloatKind::E4M3)),
    ("float8_e5m2", Kind::Float(MinifloatKind::E5M2)),
    ("float8_e4m3fnuz", Kind::Float(MinifloatKind::E4M3Fnuz)),
    ("float8_e5m2fnuz", Kind::Float(MinifloatKind::E5M2Fnuz)),
    ("float4_e2m1fn", Kind::Float(MinifloatKind::E2M1)),
    ("int32", Kind::Int),
];

impl Kind {
    /// What may be written.
    pub fn of_target(function: &str, given: &Obj<'_>) -> PyResult<Self> {
        Self::of(function, ["dtype", "dtype"], given, &KINDS[..KINDS.len() - 1])
    }

    /// What may be read.
    pub fn of_source(function: &str, given: &Obj<'_>) -> PyResult<Self> {
        Self::of(function, ["q", "q_dtype"], given, &KINDS)
    }

    fn of(function: &str, [arg, _]: [&str; 2], given: &Obj<'_>, known: &[(&str, Self)]) -> PyResult<Self> {
        let word = text(function, arg, given)?;
        let found = known.iter().find(|(name, _)| *name == word).map(|(_, kind)| *kind);
        found.ok_or_else(|| {
            let names = known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            let what = if arg == "q" { "have a dtype of" } else { "be one of" };
            Error::Dtype(format!("{function}: {arg} must {what} {names}, got {word}")).into()
        })
    }

    /// As users name it.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// The lowest and the highest code; of floats those of zero points.
    pub fn limits(self) -> (i32, i32) {
        let (bits, signed) = match self {
            Self::Byte { bits, signed } => (bits, signed),
            Self::Word { signed } => (16, signed),
            Self::Int => return (i32::MIN, i32::MAX),
            Self::Float(_) => return (0, 0),
        };
        let half = 1 << (bits - 1);
        if signed { (-half, half - 1) } else { (0, 2 * half - 1) }
    }

    /// The bits of a byte that are written: in arrays of `ml_dtypes` those above a code are 0, in NumPy's the number is
    /// that of the whole byte.
    pub fn mask(self, out: &Array<'_>) -> u8 {
        match self {
            Self::Byte { bits, .. } if out.object.dtype().kind() == b'V' => 0xff >> (8 - bits),
            _ => 0xff,
        }
    }

    /// How an array of NumPy holds such codes: the kind and the size of its dtype.
    fn numpy(self) -> (u8, usize) {
        match self {
            Self::Byte { signed: true, .. } => (b'i', 1),
            Self::Byte { .. } | Self::Float(_) => (b'u', 1),
            Self::Word { signed: true } => (b'i', 2),
            Self::Word { .. } => (b'u', 2),
            Self::Int => (b'i', 4),
        }
    }

    fn dtype(self, name: Name, array: &Bound<'_, PyUntypedArray>) -> PyResult<Dtype> {
        let descr = array.dtype();
        let (kind, itemsize) = self.numpy();
        expect_native(name, &descr)?;
        let is_own = || -> PyResult<bool> {
            let is_extension = matches!(descr.kind(), b'V' | b'f') && descr.itemsize() == 1;
            Ok(is_extension && descr.getattr("name")?.cast::<PyString>()?.to_cow()? == self.name())
        };
        if (descr.kind(), descr.itemsize()) != (kind, itemsize) && !is_own()? {
            let plain = format!("{}int{}", if kind == b'u' { "u" } else { "" }, 8 * itemsize);
            let own = if plain == self.name() { String::new() } else { format!("{} or ", self.name()) };
            return Err(Error::Dtype(format!("{name} must have dtype {own}{plain}, got {descr}")).into());
        }
        Ok(match itemsize {
            1 => Dtype::U8,
            2 => Dtype::U16,
            _ => Dtype::I32,
        })
    }
}

impl<'py> Array<'py> {
    /// An input of codes.
    pub fn codes(name: Name, object: &Bound<'py, PyAny>, kind: Kind) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = kind.dtype(name, &array)?;
        Self::input(name, &array, dtype)
    }

    /// An output of codes.
    pub fn codes_out(name: Name, object: &Bound<'py, PyAny>, kind: Kind) -> PyResult<Self> {
        let array = ndarray(name, object)?;
        let dtype = kind.dtype(name, &array)?;
        Self::output(name, &array, dtype)
    }
}

//! Tensors of other frameworks by `DLPack`'s exchange of descriptions (version 1.3), without an object for each.
//!
//! It costs some ten nanoseconds where a tensor's own `numpy()` costs most of a microsecond. A description is looked at
//! at once; an array that is made of it holds the storage that the memory is part of.

use std::ffi::c_void;

use numpy::{PyArrayDescr, PyUntypedArray, dtype};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule, PyList, PyModule, PyType};

use super::array::{Describe, describe_function, described, read_only};
use super::error::entry;
use crate::error::Error;

/// `DLTensor` of dlpack.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    pub data: usize,
    /// The kind of device (1: a CPU) and its number.
    device: [i32; 2],
    pub ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    pub shape: *const i64,
    pub strides: *const i64,
    pub byte_offset: u64,
}

/// Axes that are looked at.
pub const MAX_AXES: usize = 8;

/// A description by value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Described {
    pub data: usize,
    /// The kind of device (1: a CPU), of numbers (2: IEEE floats, 4: bfloat), their bits, how many lie together.
    pub kind: [u16; 4],
    pub axes: usize,
    pub shape: [i64; MAX_AXES],
    /// In elements.
    pub strides: [i64; MAX_AXES],
}

impl Tensor {
    pub fn kind(&self) -> [u16; 4] {
        [self.device[0] as u16, self.code.into(), self.bits.into(), self.lanes]
    }
}

impl Default for Tensor {
    fn default() -> Self {
        let (shape, strides) = (std::ptr::null(), std::ptr::null());
        let (data, device, ndim, code, bits, lanes, byte_offset) = (0, [0; 2], 0, 0, 0, 0, 0);
        Self { data, device, ndim, code, bits, lanes, shape, strides, byte_offset }
    }
}

/// `DLPackExchangeAPI` of dlpack.h, without its end.
#[repr(C)]
pub struct Exchange {
    /// Major and minor.
    pub version: [u32; 2],
    _previous: *const c_void,
    _allocate: *const c_void,
    _from_object: *const c_void,
    _to_object: *const c_void,
    pub describe: Option<Describe>,
}

/// Tensors of one type of torch.
#[pyclass(frozen, module = "modelopt_rs._core")]
struct TensorExchange {
    kind: Py<PyType>,
    bf16: Py<PyArrayDescr>,
    describe: Describe,
}

#[pymethods]
impl TensorExchange {
    /// For `torch.Tensor`, with the dtype that its bfloat16 becomes; `ValueError` where it doesn't exchange descriptions.
    #[new]
    fn new(kind: Bound<'_, PyType>, bf16: Bound<'_, PyArrayDescr>) -> PyResult<Self> {
        let refused = || Error::Value("TensorExchange: kind must have DLPack's exchange of version 1".into());
        let capsule = kind.getattr_opt("__dlpack_c_exchange_api__")?.ok_or_else(refused)?;
        let describe = describe_function(capsule.cast::<PyCapsule>()?)?.ok_or_else(refused)?;
        Ok(Self { kind: kind.unbind(), bf16: bf16.unbind(), describe })
    }

    /// Where tensors lie and how, as bytes to compare; None where one has no memory.
    fn layouts<'py>(&self, tensors: &Bound<'py, PyList>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        entry("layouts", || {
            let mut bytes = Vec::with_capacity(40 * tensors.len());
            for tensor in tensors {
                let Some(found) = described(self.describe, &tensor) else { return Ok(None) };
                bytes.extend(found.data.to_ne_bytes());
                bytes.extend([found.kind[0] as u8, found.kind[1] as u8, found.kind[2] as u8, found.axes as u8]);
                for n in found.shape[..found.axes].iter().chain(&found.strides[..found.axes]) {
                    bytes.extend(n.to_ne_bytes());
                }
            }
            Ok(Some(PyBytes::new(tensors.py(), &bytes)))
        })
    }

    /// Arrays to read of dense tensors of floats on a CPU; None where one is not such: a subclass, negated lazily.
    fn arrays<'py>(&self, tensors: &Bound<'py, PyList>) -> PyResult<Option<Bound<'py, PyList>>> {
        entry("arrays", || {
            let arrays = PyList::empty(tensors.py());
            for tensor in tensors {
                match self.array(&tensor)? {
                    Some(array) => arrays.append(array)?,
                    None => return Ok(None),
                }
            }
            Ok(Some(arrays))
        })
    }
}

impl TensorExchange {
    fn array<'py>(&self, tensor: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyUntypedArray>>> {
        let py = tensor.py();
        if !tensor.get_type().is(&self.kind) || tensor.call_method0(intern!(py, "is_neg"))?.is_truthy()? {
            return Ok(None);
        }
        // What has no storage (a sparse tensor) has no memory to describe either.
        let Ok(owner) = tensor.call_method0(intern!(py, "untyped_storage")) else { return Ok(None) };
        let Some(found) = described(self.describe, tensor) else { return Ok(None) };
        let descr = match found.kind {
            [1, 2, 32, 1] => dtype::<f32>(py),
            [1, 2, 64, 1] => dtype::<f64>(py),
            [1, 2, 16, 1] => PyArrayDescr::new(py, "float16")?,
            [1, 4, 16, 1] => self.bf16.bind(py).clone(),
            _ => return Ok(None),
        };
        if found.data == 0 && !found.shape[..found.axes].contains(&0) {
            return Ok(None);
        }
        read_only(&found, descr, owner).map(Some)
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<TensorExchange>()
}

//! Tensors of other frameworks by `DLPack`'s exchange of descriptions (version 1.3), without an object for each.
//!
//! It costs some ten nanoseconds where a tensor's own `numpy()` costs most of a microsecond. A description is looked at
//! at once; an array that is made of it holds the storage that the memory is part of.

use std::ffi::c_void;

use numpy::{PyArrayDescr, PyUntypedArray, dtype};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule, PyDict, PyList, PyModule, PyType};

use super::array::{Describe, describe_function, described, of_memory, retype, unpacked};
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

    /// Other numbers of the same size.
    pub fn retype(&mut self, code: u8, bits: u8) {
        (self.code, self.bits) = (code, bits);
    }
}

/// `DLManagedTensor` of dlpack.h, without its end.
#[repr(C)]
pub struct Managed {
    pub tensor: Tensor,
}

/// `DLManagedTensorVersioned` of dlpack.h.
#[repr(C)]
pub struct VersionedManaged {
    /// Major and minor.
    pub version: [u32; 2],
    _context: *const c_void,
    _deleter: *const c_void,
    pub flags: u64,
    pub tensor: Tensor,
}

/// What a capsule has.
#[derive(Debug)]
pub struct Capsule {
    pub tensor: Described,
    /// Of versions before 1 there are none.
    pub flags: Option<u64>,
}

/// Of a capsule's flags.
const READ_ONLY: u64 = 1;
const PADDED: u64 = 4;

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
pub struct TensorExchange {
    kind: Py<PyType>,
    bf16: Py<PyArrayDescr>,
    pub describe: Describe,
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

    /// Which parameters these are, what each has in `states`, and where all of it lies and how: objects by their addresses,
    /// which stay theirs as long as someone holds them. None where one has no memory or no state.
    fn trace<'py>(
        &self,
        params: &Bound<'py, PyList>,
        states: &Bound<'py, PyDict>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        entry("trace", || {
            let mut trace = Vec::new();
            let is_whole = self.walk(params, states, |words| {
                trace.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
                true
            })?;
            Ok(is_whole.then(|| PyBytes::new(params.py(), &trace)))
        })
    }

    /// Whether that is still so, without a copy of it: for small parameters it is the larger part of a step.
    fn is_at(&self, trace: &[u8], params: &Bound<'_, PyList>, states: &Bound<'_, PyDict>) -> PyResult<bool> {
        entry("is_at", || {
            let mut left = trace.as_chunks().0.iter();
            let is_same = |words: &[u64]| words.iter().all(|word| left.next() == Some(&word.to_ne_bytes()));
            Ok(self.walk(params, states, is_same)? && left.next().is_none())
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
    /// Hand on all that [`Self::trace`] says, until `taken` says no; whether it never did and all was there.
    fn walk<'py>(
        &self,
        params: &Bound<'py, PyList>,
        states: &Bound<'py, PyDict>,
        mut taken: impl FnMut(&[u64]) -> bool,
    ) -> PyResult<bool> {
        let mut in_order = states.iter();
        for param in params {
            let Some(state) = state_of(&param, in_order.next(), states)? else { return Ok(false) };
            if !taken(&[state.as_ptr() as u64, state.len() as u64]) || !self.takes(&param, &mut taken)? {
                return Ok(false);
            }
            for (key, value) in state {
                // What is no tensor (how a state is coded) is itself all that there is to it.
                let is_tensor = value.get_type().is(&self.kind) || value.is_instance(self.kind.bind(value.py()))?;
                let words = [key.as_ptr() as u64, value.as_ptr() as u64];
                if !taken(&words) || (is_tensor && !self.takes(&value, &mut taken)?) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether it is a tensor of torch's own type.
    pub fn is_own(&self, tensor: &Bound<'_, PyAny>) -> bool {
        tensor.get_type().is(&self.kind)
    }

    /// The same of one tensor.
    fn takes(&self, tensor: &Bound<'_, PyAny>, taken: &mut impl FnMut(&[u64]) -> bool) -> PyResult<bool> {
        let sign = u64::from(is_negated(tensor)?);
        let Some(found) = described(self.describe, tensor) else { return Ok(false) };
        let [device, code, bits, lanes] = found.kind.map(u64::from);
        let kind = ((device << 16 | code) << 16 | bits) << 16 | lanes;
        let axes = found.shape[..found.axes].iter().zip(&found.strides[..found.axes]);
        Ok(taken(&[tensor.as_ptr() as u64, found.data as u64, kind, (found.axes as u64) << 1 | sign])
            && axes.into_iter().all(|(&n, &stride)| taken(&[n as u64, stride as u64])))
    }

    fn array<'py>(&self, tensor: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyUntypedArray>>> {
        let py = tensor.py();
        if !self.is_own(tensor) || is_negated(tensor)? {
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
        of_memory(&found, descr, owner, false).map(Some)
    }
}

/// Whether the numbers of a tensor lie there with the other sign.
pub fn is_negated(tensor: &Bound<'_, PyAny>) -> PyResult<bool> {
    tensor.call_method0(intern!(tensor.py(), "is_neg"))?.is_truthy()
}

/// The state of a parameter. States mostly stand in the order of the parameters, and then need not be looked up: torch's
/// hash is a call.
pub fn state_of<'py>(
    param: &Bound<'py, PyAny>,
    next: Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    states: &Bound<'py, PyDict>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let state = match next {
        Some((key, state)) if key.is(param) => Some(state),
        _ => states.get_item(param)?,
    };
    Ok(state.map(Bound::cast_into).transpose()?)
}

/// The name of NumPy's dtype for numbers of this kind, or of integers of their size; None where they share bytes.
fn numpy_name([_, code, bits, lanes]: [u16; 4], padded: bool) -> Option<String> {
    let bits = if bits < 8 && padded { 8 } else { bits };
    if lanes != 1 || !matches!(bits, 8 | 16 | 32 | 64 | 128) {
        return None;
    }
    Some(match (code, bits) {
        (0, 8..=64) => format!("int{bits}"),
        (2, 16..=64) => format!("float{bits}"),
        (5, 64 | 128) => format!("complex{bits}"),
        (6, 8) => "bool".into(),
        // Unsigned integers, and what NumPy has no dtype for.
        (1, 8..=64) | (3.., 8 | 16) => format!("uint{bits}"),
        _ => return None,
    })
}

/// The array of a capsule of `__dlpack__`, which it keeps, with the kind and bits of its numbers: where NumPy has no dtype
/// for them, in unsigned integers. None where it is not on a CPU or can't be an array. `writeable`: where the capsule doesn't
/// say whether it may be written, as before `DLPack` 1.0.
#[pyfunction]
fn dlpack_array<'py>(
    capsule: &Bound<'py, PyCapsule>,
    writeable: bool,
) -> PyResult<Option<(Bound<'py, PyUntypedArray>, u16, u16)>> {
    entry("as_array", || {
        let Some(found) = unpacked(capsule) else { return Ok(None) };
        let (flags, kind) = (found.flags.unwrap_or(if writeable { 0 } else { READ_ONLY }), found.tensor.kind);
        let Some(name) = numpy_name(kind, flags & PADDED != 0) else { return Ok(None) };
        let descr = PyArrayDescr::new(capsule.py(), name)?;
        let is_empty = found.tensor.shape[..found.tensor.axes].contains(&0);
        if found.tensor.data == 0 && !is_empty {
            return Ok(None);
        }
        let array = of_memory(&found.tensor, descr, capsule.clone().into_any(), flags & READ_ONLY == 0)?;
        Ok(Some((array, kind[1], kind[2])))
    })
}

/// Say of what kind the numbers of a new capsule are; False where its version can't.
#[pyfunction]
fn dlpack_retype(capsule: &Bound<'_, PyCapsule>, code: u8, bits: u8) -> PyResult<bool> {
    entry("to_dlpack", || Ok(retype(capsule, code, bits, if bits < 8 { PADDED } else { 0 })))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(dlpack_array, m)?)?;
    m.add_function(wrap_pyfunction!(dlpack_retype, m)?)?;
    m.add_class::<TensorExchange>()
}

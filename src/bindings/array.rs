//! NumPy arrays as slices: the checks, the borrows, and the only `unsafe` of the bindings.
//!
//! An [`Array`] has passed all checks: C-contiguous, aligned, native bytes, a known dtype. What is read and does not
//! lie so is copied by NumPy first; what is written is refused. `borrow` then registers the memory of the call.

use std::ffi::c_void;
use std::marker::PhantomData;

use numpy::npyffi::{NpyTypes, PY_ARRAY_API, get_type_object};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods};

use super::arg::Name;
pub use super::arg::tuple;
use super::array_order::len_in_order;
use super::borrow::Extent;
use super::dlpack::{Capsule, Described, Exchange, MAX_AXES, Managed, Tensor, VersionedManaged};
use super::dtype::{Dtype, Item};

/// A checked array. It holds the reference for the whole call, so `resize` refuses and nothing frees the memory.
pub struct Array<'py> {
    pub object: Bound<'py, PyUntypedArray>,
    pub dtype: Dtype,
    pub name: Name,
    /// What was given, where `object` is a copy of it.
    pub original: Option<Bound<'py, PyUntypedArray>>,
    writeable: bool,
    /// Whether only its rows lie in order, see `rows_input`.
    pub by_rows: bool,
}

impl<'py> Array<'py> {
    /// The array that was given.
    pub fn given(&self) -> &Bound<'py, PyUntypedArray> {
        self.original.as_ref().unwrap_or(&self.object)
    }

    /// Whether it is written.
    pub fn is_written(&self) -> bool {
        self.writeable
    }

    pub(super) fn new(name: Name, object: Bound<'py, PyUntypedArray>, dtype: Dtype, writeable: bool) -> Self {
        Self { dtype, object, name, original: None, writeable, by_rows: false }
    }

    /// A new array of any contents, to be written.
    pub fn new_float32(name: Name, py: Python<'py>, shape: &[usize]) -> PyResult<Self> {
        let mut dims: Vec<isize> = shape.iter().map(|&n| n.cast_signed()).collect();
        let (descr, axes) = (numpy::dtype::<f32>(py).into_dtype_ptr(), shape.len() as i32);
        // SAFETY: there are as many lengths as axes; the function steals the reference to the dtype, checks the lengths, and
        // returns a new array or null with an exception.
        let object = unsafe {
            let made = PY_ARRAY_API.PyArray_Empty(py, axes, dims.as_mut_ptr(), descr, 0);
            Bound::from_owned_ptr_or_err(py, made)?.cast_into_unchecked()
        };
        Ok(Self::new(name, object, Dtype::F32, true))
    }

    /// Its shape. Not to be kept while the GIL is released: another thread may set a new one.
    pub fn shape(&self) -> &[usize] {
        self.object.shape()
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.object.len()
    }

    /// The elements.
    pub fn slice<T: Item>(&self) -> &[T] {
        let start = self.pointer::<T>();
        // SAFETY: NumPy owns `len` elements from `start` on (C-contiguous, checked); `pointer` has checked type and
        // alignment and gives a dangling but aligned pointer where there are none; every bit pattern is a value of T;
        // `self` holds a reference, and no other call of ours writes there while `borrow` is held.
        unsafe { std::slice::from_raw_parts(start, self.len()) }
    }

    /// The rows: what the last two axes have, for all indices of those before.
    pub fn rows<T: Item>(&self) -> Vec<&[T]> {
        let (shape, start) = (self.shape(), self.address::<T>());
        let before = shape.len() - 2;
        let mut offsets = vec![0];
        for (&n, &stride) in shape[..before].iter().zip(self.object.strides()) {
            offsets = offsets.iter().flat_map(|offset| (0..n as isize).map(move |i| offset + i * stride)).collect();
        }
        // SAFETY: as for `slice`: these are places of NumPy's array, from each of which on the elements of its last two axes
        // lie in order and aligned, which `rows_input` has checked.
        let row =
            |at: isize| unsafe { std::slice::from_raw_parts(start.byte_offset(at), shape[before..].iter().product()) };
        offsets.into_iter().map(row).collect()
    }

    /// The bits of the elements as numbers of their size, whatever their dtype.
    pub fn bits_as<W: Item>(&self) -> &[W] {
        let fits = size_of::<W>() == self.object.dtype().itemsize() && align_of::<W>() == size_of::<W>();
        assert!(fits && !self.by_rows, "matched by size");
        let start = if self.len() == 0 { std::ptr::dangling() } else { data(&self.object) as *const W };
        // SAFETY: as for `slice`; every bit pattern is a value of W, which has the elements' size, and an array in order is
        // aligned to that size.
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
        assert!(!self.by_rows, "read by rows");
        self.address()
    }

    fn address<T: Item>(&self) -> *mut T {
        let signed_bytes = T::DTYPE == Dtype::U8 && self.dtype == Dtype::I8;
        assert!(T::DTYPE == self.dtype || signed_bytes, "dtype was matched");
        let start = data(&self.object) as *mut T;
        if self.len() == 0 { std::ptr::NonNull::dangling().as_ptr() } else { start }
    }
}

/// The address of the first element.
pub fn data(array: &Bound<'_, PyUntypedArray>) -> usize {
    // SAFETY: the pointer is that of a live array object, whose layout is NumPy's stable ABI; only a field is read.
    unsafe { (*array.as_array_ptr()).fields.data as usize }
}

/// The flag of this name.
pub fn is_writeable(array: &Bound<'_, PyUntypedArray>) -> bool {
    // SAFETY: as for `data`.
    let flags = unsafe { (*array.as_array_ptr()).fields.flags };
    flags & numpy::npyffi::NPY_ARRAY_WRITEABLE != 0
}

/// `DLPack`'s function that describes a tensor.
pub type Describe = unsafe extern "C" fn(*mut c_void, *mut Tensor) -> i32;

/// What a type's capsule says of how its tensors are described; None in another major version.
pub fn describe_function(capsule: &Bound<'_, PyCapsule>) -> PyResult<Option<Describe>> {
    let start = capsule.pointer_checked(Some(c"dlpack_exchange_api"))?.cast::<Exchange>();
    // SAFETY: by DLPack a capsule of this name, which was checked, holds such a struct, which lives as long as the process;
    // its version comes first in all versions, and what is looked at later is the same within a major one.
    let exchange = unsafe { start.as_ref() };
    Ok(if exchange.version[0] == 1 { exchange.describe } else { None })
}

/// What `describe` says of a tensor; None where it has no memory, or more axes than are copied.
pub fn described(describe: Describe, tensor: &Bound<'_, PyAny>) -> Option<Described> {
    let mut found = Tensor::default();
    // SAFETY: the function is that of DLPack's capsule: it takes any object, fills the struct, or says that it can't.
    let status = unsafe { describe(tensor.as_ptr().cast(), &raw mut found) };
    if status != 0 {
        let _ = PyErr::take(tensor.py());
        return None;
    }
    if found.strides.is_null() && found.ndim > 0 {
        return None;
    }
    copied(&found)
}

/// A description by value; None where it has more axes than are copied.
fn copied(found: &Tensor) -> Option<Described> {
    let n = usize::try_from(found.ndim).ok().filter(|&n| n <= MAX_AXES)?;
    let [mut shape, mut strides] = [[0; MAX_AXES]; 2];
    if n > 0 {
        if found.shape.is_null() {
            return None;
        }
        // SAFETY: by DLPack both have `ndim` items and live as long as the tensor is neither freed nor given another shape:
        // the caller holds a reference and the GIL, and nothing else runs before they are copied.
        shape[..n].copy_from_slice(unsafe { std::slice::from_raw_parts(found.shape, n) });
        let mut dense = 1i64;
        for (stride, &n) in strides[..n].iter_mut().zip(&shape[..n]).rev() {
            (*stride, dense) = (dense, dense.saturating_mul(n));
        }
        if !found.strides.is_null() {
            // SAFETY: as above. Without strides (before version 1.2) the elements lie close together, as computed.
            strides[..n].copy_from_slice(unsafe { std::slice::from_raw_parts(found.strides, n) });
        }
    }
    Some(Described { data: found.data + found.byte_offset as usize, kind: found.kind(), axes: n, shape, strides })
}

/// Floats in order in a tensor on a CPU, where `described` has found them: to be used before anything else can run, or as
/// long as the storage is held.
pub struct Floats<'a> {
    start: usize,
    len: usize,
    pub dtype: Dtype,
    tensor: PhantomData<&'a ()>,
}

impl<'a> Floats<'a> {
    /// Those of a tensor, and how it lies; None where it has other numbers, or they lie otherwise.
    pub fn of(describe: Describe, tensor: &'a Bound<'_, PyAny>) -> Option<(Self, Described)> {
        let found = described(describe, tensor)?;
        let dtype = match found.kind {
            [1, 2, 32, 1] => Dtype::F32,
            [1, 2, 64, 1] => Dtype::F64,
            [1, 2, 16, 1] => Dtype::F16,
            [1, 4, 16, 1] => Dtype::Bf16,
            _ => return None,
        };
        let len = len_in_order(&found.shape[..found.axes], &found.strides[..found.axes])?;
        let start = found.data;
        let is_there = len == 0 || (start != 0 && start.is_multiple_of(dtype.size()));
        is_there.then_some((Self { start, len, dtype, tensor: PhantomData }, found))
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn extent(&self, writes: bool) -> Extent {
        Extent { start: self.start, end: self.start + self.len * self.dtype.size(), writes }
    }

    /// The numbers, to be read.
    pub fn slice<T: Item>(&self) -> &[T] {
        // SAFETY: by DLPack `len` elements of this dtype lie from `start` on, as `of` has checked. The caller keeps the GIL
        // from `of` on and calls nothing of Python's, or holds the storage; `borrow_extents` has said that nothing here is
        // written.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }

    /// The numbers, to be written.
    pub fn slice_mut<T: Item>(&mut self) -> &mut [T] {
        // SAFETY: as above; `borrow_extents` has said that what is written overlaps nothing else, here or in a running call.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len) }
    }

    fn pointer<T: Item>(&self) -> *mut T {
        assert!(T::DTYPE == self.dtype, "dtype was matched");
        if self.len == 0 { std::ptr::NonNull::dangling().as_ptr() } else { self.start as *mut T }
    }
}

/// What the capsule of a `__dlpack__` describes, and its flags (0: may be read only); None where there is no such thing.
pub fn unpacked(capsule: &Bound<'_, PyCapsule>) -> Option<Capsule> {
    if let Ok(start) = capsule.pointer_checked(Some(c"dltensor_versioned")) {
        // SAFETY: by DLPack a capsule of this name, which was checked, holds such a struct until someone takes it over and
        // renames it, which needs the GIL that is held here.
        let managed = unsafe { start.cast::<VersionedManaged>().as_ref() };
        let known = managed.version[0] == 1;
        return copied(&managed.tensor).filter(|_| known).map(|tensor| Capsule { tensor, flags: Some(managed.flags) });
    }
    let start = capsule.pointer_checked(Some(c"dltensor")).ok()?;
    // SAFETY: as above.
    let managed = unsafe { start.cast::<Managed>().as_ref() };
    copied(&managed.tensor).map(|tensor| Capsule { tensor, flags: None })
}

/// Give the tensor of a capsule that was just made, and that nobody else has, another kind of numbers of the same size.
pub fn retype(capsule: &Bound<'_, PyCapsule>, code: u8, bits: u8, more_flags: u64) -> bool {
    if let Ok(start) = capsule.pointer_checked(Some(c"dltensor_versioned")) {
        // SAFETY: as for `unpacked`; the capsule is new, so that nothing else refers to the struct.
        let managed = unsafe { start.cast::<VersionedManaged>().as_mut() };
        managed.flags |= more_flags;
        managed.tensor.retype(code, bits);
        return true;
    }
    let Ok(start) = capsule.pointer_checked(Some(c"dltensor")) else { return false };
    // SAFETY: as above.
    unsafe { start.cast::<Managed>().as_mut() }.tensor.retype(code, bits);
    more_flags == 0
}

/// A tensor as an array, kept alive by `owner`, which is what holds its memory.
pub fn of_memory<'py>(
    tensor: &Described,
    descr: Bound<'py, PyArrayDescr>,
    owner: Bound<'py, PyAny>,
    writeable: bool,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let (py, size) = (owner.py(), descr.itemsize() as isize);
    let mut dims = tensor.shape.map(|n| n as isize);
    let mut steps = tensor.strides.map(|n| n as isize * size);
    // SAFETY: as `described` says, `data` holds elements of this dtype at all places of this shape and these strides; the
    // array holds a reference to their owner; both functions steal the references that they are given.
    unsafe {
        let kind = get_type_object(py, NpyTypes::PyArray_Type);
        let (dims, steps, null) = (dims.as_mut_ptr(), steps.as_mut_ptr(), std::ptr::null_mut());
        let (descr, axes, data) = (descr.into_dtype_ptr(), tensor.axes as i32, tensor.data as *mut c_void);
        let flags = if writeable { numpy::npyffi::NPY_ARRAY_WRITEABLE } else { 0 };
        let array = PY_ARRAY_API.PyArray_NewFromDescr(py, kind, descr, axes, dims, steps, data, flags, null);
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        if PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast(), owner.into_ptr()) != 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(array.cast_into_unchecked())
    }
}

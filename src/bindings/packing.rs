//! Packing of codes.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{Name, int};
use super::array::{Array, tuple};
use super::borrow::borrow;
use super::dtype::Dtype;
use super::error::{compute, entry};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::pack::{self as packing, packed_len};

type Obj<'py> = Bound<'py, PyAny>;

fn check_bits(function: &str, bits: &Obj<'_>) -> PyResult<u32> {
    match int(function, "bits", "8, 4, 2 or 1", bits)? {
        bits @ (8 | 4 | 2 | 1) => Ok(bits as u32),
        bits => Err(Error::Value(format!("{function}: bits must be 8, 4, 2 or 1, got {bits}")).into()),
    }
}

#[pyfunction]
fn pack<'py>(codes: &Obj<'py>, bits: &Obj<'py>, out: &Obj<'py>, threads: Option<&Obj<'py>>) -> PyResult<()> {
    entry("pack", || {
        let threads = resolve("pack", threads)?;
        let bits = check_bits("pack", bits)?;
        let codes = Array::bytes(Name::new("pack", "codes"), codes)?;
        let mut target = Array::bytes_out(Name::new("pack", "out"), out)?;
        target.expect_dtype(Dtype::U8, "uint8")?;
        let (mut shape, cols) = (codes.shape().to_vec(), codes.cols());
        match shape.last_mut() {
            Some(last) => *last = packed_len(cols, bits),
            None => shape.push(1),
        }
        target.expect_shape(&shape)?;
        let _borrow = borrow(&[&codes, &target])?;
        let signed = codes.dtype == Dtype::I8;
        let (source, packed) = (codes.slice::<u8>(), target.slice_mut::<u8>());
        let bad = compute(out.py(), || packing::first_out_of_range(source, bits, signed, threads))?;
        if let Some(i) = bad {
            let got = if signed { i64::from(source[i] as i8) } else { i64::from(source[i]) };
            let half = 1i64 << (bits - 1);
            let (low, high) = if signed { (-half, half - 1) } else { (0, 2 * half - 1) };
            let text = format!("pack: codes must be from {low} to {high} for {bits} bits, got {got} at flat index {i}");
            return Err(Error::Value(text).into());
        }
        compute(out.py(), || packing::pack(source, cols, bits, packed, threads))
    })
}

#[pyfunction]
fn unpack<'py>(
    packed: &Obj<'py>,
    bits: &Obj<'py>,
    n: &Obj<'py>,
    out: &Obj<'py>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("unpack", || {
        let threads = resolve("unpack", threads)?;
        let bits = check_bits("unpack", bits)?;
        let n = int("unpack", "length", "at least 0 and no longer than memory", n)?;
        let n = usize::try_from(n).map_err(|_| Error::Value(format!("unpack: length must be at least 0, got {n}")))?;
        let packed = Array::bytes(Name::new("unpack", "packed"), packed)?;
        packed.expect_dtype(Dtype::U8, "uint8")?;
        let mut target = Array::bytes_out(Name::new("unpack", "out"), out)?;
        let want = packed_len(n, bits);
        if packed.shape().last() != Some(&want) {
            let got = tuple(packed.shape());
            let text = format!("unpack: packed must have {want} bytes in its last axis for {n} codes, got shape {got}");
            return Err(Error::Shape(text).into());
        }
        let mut shape = packed.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = n;
        }
        target.expect_shape(&shape)?;
        let _borrow = borrow(&[&packed, &target])?;
        let signed = target.dtype == Dtype::I8;
        let (source, codes) = (packed.slice::<u8>(), target.slice_mut::<u8>());
        if let Some(row) = compute(out.py(), || packing::first_bad_padding(source, n, bits))? {
            let text = format!("unpack: packed must have zero padding bits, got others at the end of row {row}");
            return Err(Error::Value(text).into());
        }
        compute(out.py(), || packing::unpack(source, n, bits, codes, signed, threads))
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(pack, m)?)?;
    m.add_function(wrap_pyfunction!(unpack, m)?)
}

//! Quantization, packing.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::array::{Array, Dtype, Item, Name, borrow, match_dtype, tuple};
use super::error::{compute, entry};
use super::threads::resolve;
use crate::error::{Error, Result};
use crate::kernels::affine::{self, Granularity, Params, ParamsRef, Scheme, Spec};
use crate::kernels::pack::{self as packing, packed_len};
use crate::kernels::reduce::{Counts, reduce_all};
use crate::real::{Element, Real};

type Obj<'py> = Bound<'py, PyAny>;

/// bits, scheme, axis, group_size.
type GivenSpec = (u32, String, Option<isize>, Option<isize>);
/// codes, scale, zero_point, offset.
type GivenParts<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>, Option<Obj<'py>>);

/// A checked specification, and the shapes that follow from it.
struct Plan {
    spec: Spec,
    codes: Vec<usize>,
    parts: Vec<usize>,
}

fn check_bits(function: &str, bits: u32) -> Result<()> {
    if matches!(bits, 8 | 4 | 2) {
        return Ok(());
    }
    Err(Error::Value(format!("{function}: bits must be 8, 4 or 2, got {bits}")))
}

fn plan(function: &str, given: &GivenSpec, shape: &[usize], offset_binary: bool) -> Result<Plan> {
    let (bits, ref scheme, axis, group_size) = *given;
    check_bits(function, bits)?;
    let scheme = Scheme::parse(scheme).ok_or_else(|| {
        Error::Value(format!("{function}: scheme must be 'symmetric', 'asymmetric' or 'minmax', got {scheme:?}"))
    })?;
    let cols = shape.last().copied().unwrap_or(1);
    let (granularity, parts) = match (axis, group_size) {
        (None, None) => (Granularity::Whole, vec![]),
        (Some(axis), None) => {
            let ndim = shape.len() as isize;
            let index = if axis < 0 { axis + ndim } else { axis };
            if !(0..ndim).contains(&index) {
                let text = format!("{function}: axis must be within the {ndim} axes of x, got {axis}");
                return Err(Error::Value(text));
            }
            let i = index as usize;
            let (outer, inner) = (shape[..i].iter().product(), shape[i + 1..].iter().product());
            (Granularity::Channel { outer, channels: shape[i], inner }, vec![shape[i]])
        }
        (None, Some(size)) => {
            if size < 1 || shape.is_empty() {
                let text = format!("{function}: group_size must be at least 1, of an array with axes, got {size}");
                return Err(Error::Value(text));
            }
            let mut parts = shape.to_vec();
            if let Some(last) = parts.last_mut() {
                *last = last.div_ceil(size as usize);
            }
            (Granularity::Group { size: (size as usize).min(cols.max(1)) }, parts)
        }
        (Some(_), Some(_)) => {
            let text = format!("{function}: axis and group_size must not both be given; groups lie along the last axis");
            return Err(Error::Value(text));
        }
    };
    let mut codes = shape.to_vec();
    match codes.last_mut() {
        Some(last) => *last = packed_len(*last, bits),
        None if bits < 8 => codes.push(1),
        None => {}
    }
    Ok(Plan { spec: Spec { bits, scheme, granularity, cols, offset_binary }, codes, parts })
}

/// The arrays of a quantized array, checked against the plan.
struct Parts<'py> {
    codes: Array<'py>,
    scale: Array<'py>,
    zero_point: Option<Array<'py>>,
    offset: Option<Array<'py>>,
}

impl<'py> Parts<'py> {
    fn new(function: &'static str, given: &GivenParts<'py>, plan: &Plan, out: bool) -> PyResult<Self> {
        let float = |arg, array: &Obj<'py>| {
            let name = Name(function, arg);
            if out { Array::float_out(name, array, None) } else { Array::float(name, array, None) }
        };
        let bytes = |arg, array: &Obj<'py>| {
            let name = Name(function, arg);
            if out { Array::bytes_out(name, array) } else { Array::bytes(name, array) }
        };
        let codes = bytes("codes", &given.0)?;
        codes.expect_shape(&plan.codes)?;
        let scale = float("scale", &given.1)?;
        scale.expect_shape(&plan.parts)?;
        if !matches!(scale.dtype, Dtype::F32 | Dtype::F64) {
            return Err(Error::Dtype(format!("{function}: scale must have dtype float32 or float64")).into());
        }
        let needs = |arg: &str, wanted: bool, given: bool| {
            if wanted == given {
                return Ok(());
            }
            let what = if wanted { "be given" } else { "be None" };
            Err(Error::Value(format!("{function}: {arg} must {what} for this scheme")))
        };
        needs("zero_point", plan.spec.scheme == Scheme::Asymmetric, given.2.is_some())?;
        needs("offset", plan.spec.scheme == Scheme::MinMax, given.3.is_some())?;
        let zero_point = given.2.as_ref().map(|array| bytes("zero_point", array)).transpose()?;
        let offset = given.3.as_ref().map(|array| float("offset", array)).transpose()?;
        for part in [&zero_point, &offset].into_iter().flatten() {
            part.expect_shape(&plan.parts)?;
        }
        if let Some(offset) = &offset
            && offset.dtype != scale.dtype
        {
            return Err(Error::Dtype(format!("{function}: offset must have the dtype of scale")).into());
        }
        Ok(Self { codes, scale, zero_point, offset })
    }

    fn arrays(&self) -> impl Iterator<Item = &Array<'py>> {
        [&self.codes, &self.scale].into_iter().chain(&self.zero_point).chain(&self.offset)
    }

    fn to_write<C: Real + Item>(&mut self) -> (&mut [u8], Params<'_, C>) {
        let params = Params {
            scale: self.scale.slice_mut::<C>(),
            zero_point: self.zero_point.as_mut().map(Array::slice_mut::<u8>).unwrap_or_default(),
            offset: self.offset.as_mut().map(Array::slice_mut::<C>).unwrap_or_default(),
        };
        (self.codes.slice_mut::<u8>(), params)
    }

    fn to_read<C: Real + Item>(&self) -> (&[u8], ParamsRef<'_, C>) {
        let params = ParamsRef {
            scale: self.scale.slice::<C>(),
            zero_point: self.zero_point.as_ref().map(Array::slice::<u8>).unwrap_or_default(),
            offset: self.offset.as_ref().map(Array::slice::<C>).unwrap_or_default(),
        };
        (self.codes.slice::<u8>(), params)
    }
}

/// The dtype that scales of `x` have.
fn compute_dtype(x: &Array<'_>) -> (Dtype, &'static str) {
    if x.dtype == Dtype::F64 { (Dtype::F64, "float64") } else { (Dtype::F32, "float32") }
}

/// What to do with NaN and infinities.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NonFinite {
    /// An error, found on the way: the outputs are the caller's own and not yet anyone else's.
    Raise,
    /// An error, found before anything is written.
    RaiseFirst,
    Saturate,
}

impl NonFinite {
    fn parse(function: &str, text: &str) -> Result<Self> {
        match text {
            "raise" => Ok(Self::Raise),
            "raise-first" => Ok(Self::RaiseFirst),
            "saturate" => Ok(Self::Saturate),
            _ => Err(Error::Value(format!("{function}: nonfinite must be 'raise' or 'saturate', got {text:?}"))),
        }
    }
}

/// How many are not finite, and where the first lies.
fn nonfinite_error<T: Element>(function: &str, x: &[T], shape: &[usize], threads: usize) -> Error {
    let [_, count] = reduce_all::<T, Counts>(x, threads);
    let flat = x.iter().position(|v| v.magnitude() >= T::INFINITY_KEY).unwrap_or(0);
    let mut index = vec![0; shape.len()];
    let mut rest = flat;
    for (i, &n) in shape.iter().enumerate().rev() {
        index[i] = rest % n;
        rest /= n;
    }
    let values = if count == 1 { "value" } else { "values" };
    let place = tuple(&index);
    Error::Value(format!(
        "{function}: x has {count} non-finite {values}, first at index {place}; pass nonfinite=\"saturate\" to map them"
    ))
}

#[pyfunction]
fn quantize<'py>(
    x: &Obj<'py>,
    out: GivenParts<'py>,
    spec: GivenSpec,
    nonfinite: &str,
    offset_binary: bool,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("quantize", || {
        let py = x.py();
        let threads = resolve("quantize", threads)?;
        let nonfinite = NonFinite::parse("quantize", nonfinite)?;
        let x = Array::float(Name("quantize", "x"), x, dtype)?;
        let plan = plan("quantize", &spec, &x.shape, offset_binary)?;
        let mut parts = Parts::new("quantize", &out, &plan, true)?;
        let (wanted, what) = compute_dtype(&x);
        parts.scale.expect_dtype(wanted, what)?;
        let _borrow = borrow(&std::iter::once(&x).chain(parts.arrays()).collect::<Vec<_>>())?;
        match_dtype!(x, T => {
            let (source, shape) = (x.slice::<T>(), &x.shape);
            let (codes, mut params) = parts.to_write::<<T as Element>::Compute>();
            compute(py, || {
                if nonfinite == NonFinite::RaiseFirst && reduce_all::<T, Counts>(source, threads)[1] > 0 {
                    return Err(nonfinite_error("quantize", source, shape, threads));
                }
                let saturate = nonfinite == NonFinite::Saturate;
                affine::quantize(source, plan.spec, saturate, codes, &mut params, threads)
                    .map_err(|_| nonfinite_error("quantize", source, shape, threads))
            })??;
        });
        Ok(())
    })
}

#[pyfunction]
fn dequantize<'py>(
    parts: GivenParts<'py>,
    spec: GivenSpec,
    out: &Obj<'py>,
    offset_binary: bool,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("dequantize", || {
        let py = out.py();
        let threads = resolve("dequantize", threads)?;
        let mut out = Array::float_out(Name("dequantize", "out"), out, dtype)?;
        let plan = plan("dequantize", &spec, &out.shape, offset_binary)?;
        let parts = Parts::new("dequantize", &parts, &plan, false)?;
        let _borrow = borrow(&std::iter::once(&out).chain(parts.arrays()).collect::<Vec<_>>())?;
        match_dtype!(out, O => {
            let target = out.slice_mut::<O>();
            if parts.scale.dtype == Dtype::F64 {
                let (codes, params) = parts.to_read::<f64>();
                compute(py, || affine::dequantize(codes, plan.spec, params, target, threads))?;
            } else {
                let (codes, params) = parts.to_read::<f32>();
                compute(py, || affine::dequantize(codes, plan.spec, params, target, threads))?;
            }
        });
        Ok(())
    })
}

#[pyfunction]
fn fake_quantize<'py>(
    x: &Obj<'py>,
    out: &Obj<'py>,
    spec: GivenSpec,
    nonfinite: &str,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("fake_quantize", || {
        let py = x.py();
        let threads = resolve("fake_quantize", threads)?;
        let nonfinite = NonFinite::parse("fake_quantize", nonfinite)?;
        let x = Array::float(Name("fake_quantize", "x"), x, dtype)?;
        let plan = plan("fake_quantize", &spec, &x.shape, false)?;
        let mut out = Array::float_out(Name("fake_quantize", "out"), out, dtype)?;
        out.expect_shape(&x.shape)?;
        out.expect_dtype(x.dtype, &x.object.dtype().to_string())?;
        let _borrow = borrow(&[&x, &out])?;
        match_dtype!(x, T => {
            let (source, shape, target) = (x.slice::<T>(), &x.shape, out.slice_mut::<T>());
            compute(py, || {
                if nonfinite == NonFinite::RaiseFirst && reduce_all::<T, Counts>(source, threads)[1] > 0 {
                    return Err(nonfinite_error("fake_quantize", source, shape, threads));
                }
                affine::fake_quantize(source, plan.spec, nonfinite == NonFinite::Saturate, target, threads)
                    .map_err(|_| nonfinite_error("fake_quantize", source, shape, threads))
            })??;
        });
        Ok(())
    })
}

#[pyfunction]
fn pack<'py>(codes: &Obj<'py>, bits: u32, out: &Obj<'py>, threads: Option<&Obj<'py>>) -> PyResult<()> {
    entry("pack", || {
        let threads = resolve("pack", threads)?;
        check_bits("pack", bits)?;
        let codes = Array::bytes(Name("pack", "codes"), codes)?;
        let mut target = Array::bytes_out(Name("pack", "out"), out)?;
        let (mut shape, cols) = (codes.shape.clone(), codes.cols());
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
    bits: u32,
    n: usize,
    out: &Obj<'py>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("unpack", || {
        let threads = resolve("unpack", threads)?;
        check_bits("unpack", bits)?;
        let packed = Array::bytes(Name("unpack", "packed"), packed)?;
        let mut target = Array::bytes_out(Name("unpack", "out"), out)?;
        let want = packed_len(n, bits);
        if packed.shape.last() != Some(&want) {
            let got = tuple(&packed.shape);
            let text = format!("unpack: packed must have {want} bytes in its last axis for {n} codes, got shape {got}");
            return Err(Error::Shape(text).into());
        }
        let mut shape = packed.shape.clone();
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
    m.add_function(wrap_pyfunction!(quantize, m)?)?;
    m.add_function(wrap_pyfunction!(dequantize, m)?)?;
    m.add_function(wrap_pyfunction!(fake_quantize, m)?)?;
    m.add_function(wrap_pyfunction!(pack, m)?)?;
    m.add_function(wrap_pyfunction!(unpack, m)?)
}

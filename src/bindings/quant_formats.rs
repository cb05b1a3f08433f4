//! Quantize, dequantize and fake-quantize in named formats.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;
use pyo3::types::{PyModule, PyTuple};

use super::arg::{Name, optional_int, text};
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{compute, entry};
use super::quant::{nonfinite_error, policy};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::codes::{
    self, FORMATS, Floats, Format, Granularity, Parts, PartsRef, Scales, ScalesMut, Sizes, Spec,
};
use crate::kernels::pack::packed_len;

type Obj<'py> = Bound<'py, PyAny>;

/// `(format, axis, group_size)`.
type GivenSpec<'py> = (Obj<'py>, Obj<'py>, Obj<'py>);
/// `(codes, scale, global_scale)`.
type GivenParts<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>);

/// A checked specification, and the shapes that follow from it.
struct Plan {
    format: &'static dyn Format,
    spec: Spec,
    codes: Vec<usize>,
    scale: Vec<usize>,
}

fn format_of(function: &str, given: &Obj<'_>) -> PyResult<&'static dyn Format> {
    let word = text(function, "format", given)?;
    FORMATS.into_iter().find(|format| format.name() == word).ok_or_else(|| {
        let known = FORMATS.map(Format::name).join(", ");
        Error::Value(format!("{function}: format must be one of {known}, got {word:?}")).into()
    })
}

/// The numbers of a group size: one, or rows and columns; none.
fn group_sizes(function: &str, what: &str, given: &Obj<'_>) -> PyResult<Vec<i64>> {
    let items = match given.cast::<PyTuple>() {
        Ok(items) => items.iter().collect(),
        Err(_) => vec![given.clone()],
    };
    let numbers: Vec<_> =
        items.iter().map(|item| optional_int(function, "group_size", what, item)).collect::<PyResult<_>>()?;
    Ok(numbers.into_iter().flatten().collect())
}

/// The group size that was given, if the format has it.
fn check_group(function: &str, format: &dyn Format, ndim: usize, given: &Obj<'_>) -> PyResult<Vec<usize>> {
    let name = format.name();
    let what = match format.sizes() {
        Sizes::Fixed(size) => format!("{size} for format {name:?}"),
        Sizes::PowersOfTwo => format!("a power of two from 32 to 4096 for format {name:?}"),
        Sizes::Any => format!("at least 1, or two such numbers, of an array with as many axes, for format {name:?}"),
    };
    let sizes = group_sizes(function, &what, given)?;
    let fits = match (format.sizes(), &sizes[..]) {
        (Sizes::Fixed(only), [size]) => *size == only as i64,
        (Sizes::PowersOfTwo, [size]) => (32..=4096).contains(size) && size.count_ones() == 1,
        (Sizes::Any, sizes) => sizes.len() <= ndim.min(2) && sizes.iter().all(|&size| size > 0),
        _ => false,
    };
    if fits {
        return Ok(sizes.into_iter().map(|size| size as usize).collect());
    }
    let got = given.repr()?;
    Err(Error::Value(format!("{function}: group_size must be {what}, got {got}")).into())
}

/// A scale for each index of an axis.
fn channels(function: &str, shape: &[usize], axis: i64) -> PyResult<(Granularity, Vec<usize>)> {
    let ndim = shape.len() as i64;
    let index = if axis < 0 { axis.saturating_add(ndim) } else { axis };
    if !(0..ndim).contains(&index) {
        let text = format!("{function}: axis must be within the {ndim} axes of x, got {axis}");
        return Err(Error::Value(text).into());
    }
    let i = index as usize;
    let (outer, inner) = (shape[..i].iter().product(), shape[i + 1..].iter().product());
    Ok((Granularity::Channel { outer, channels: shape[i], inner }, vec![shape[i]]))
}

/// Which elements share a scale, and the shape of the scales.
fn granularity(
    function: &str,
    format: &dyn Format,
    shape: &[usize],
    axis: Option<i64>,
    group: &Obj<'_>,
) -> PyResult<(Granularity, Vec<usize>)> {
    if let Some(axis) = axis {
        if format.sizes() != Sizes::Any {
            let name = format.name();
            let text = format!("{function}: axis must be None for format {name:?}, got {axis}; its blocks lie in rows");
            return Err(Error::Value(text).into());
        }
        if !group.is_none() {
            let text =
                format!("{function}: axis and group_size must not both be given; groups lie along the last axis");
            return Err(Error::Value(text).into());
        }
        return channels(function, shape, axis);
    }
    let mut scale = shape.to_vec();
    match check_group(function, format, shape.len(), group)?[..] {
        [] => Ok((Granularity::Whole, vec![])),
        [size] => {
            let cols = shape.last().copied().unwrap_or(1);
            if let Some(last) = scale.last_mut() {
                *last = cols.div_ceil(size);
            }
            Ok((Granularity::Group { size: size.min(cols.max(1)) }, scale))
        }
        [rows, cols, ..] => {
            let [.., height, width] = &mut scale[..] else { unreachable!("as many axes as numbers") };
            let granularity = Granularity::Tile { height: *height, rows, cols };
            (*height, *width) = (height.div_ceil(rows), width.div_ceil(cols));
            Ok((granularity, scale))
        }
    }
}

fn plan(function: &str, given: &GivenSpec<'_>, shape: &[usize]) -> PyResult<Plan> {
    let format = format_of(function, &given.0)?;
    let axis = optional_int(function, "axis", "within the axes of x", &given.1)?;
    let (granularity, scale) = granularity(function, format, shape, axis, &given.2)?;
    let cols = shape.last().copied().unwrap_or(1);
    let mut codes = shape.to_vec();
    match codes.last_mut() {
        Some(last) => *last = packed_len(*last, format.bits()),
        None if format.bits() < 8 => codes.push(1),
        None => {}
    }
    Ok(Plan { format, spec: Spec { granularity, cols }, codes, scale })
}

/// The arrays of a quantized array, checked against the plan.
struct Arrays<'py> {
    codes: Array<'py>,
    scale: Array<'py>,
    global: Option<Array<'py>>,
}

impl<'py> Arrays<'py> {
    fn new(function: &'static str, given: &GivenParts<'py>, plan: &Plan, out: bool) -> PyResult<Self> {
        let name = |arg: [&'static str; 2]| Name::new(function, arg[usize::from(out)]);
        let float = |arg, array: &Obj<'py>| {
            let name = name(arg);
            let array = if out { Array::float_out(name, array, None) } else { Array::float(name, array, None) }?;
            array.expect_dtype(Dtype::F32, "float32")?;
            PyResult::Ok(array)
        };
        let bytes = |arg, array: &Obj<'py>| {
            let name = name(arg);
            let array = if out { Array::bytes_out(name, array) } else { Array::bytes(name, array) }?;
            array.expect_dtype(Dtype::U8, "uint8")?;
            PyResult::Ok(array)
        };
        let codes = bytes(["codes", "out.codes"], &given.0)?;
        codes.expect_shape(&plan.codes)?;
        let scale = ["scale", "out.scale"];
        let scale = if plan.format.has_float_scales() { float(scale, &given.1)? } else { bytes(scale, &given.1)? };
        scale.expect_shape(&plan.scale)?;
        if plan.format.has_global() != given.2.is_some() {
            let what = if plan.format.has_global() { "be given" } else { "be None" };
            let text = format!("{function}: global_scale must {what} for format {:?}", plan.format.name());
            return Err(Error::Value(text).into());
        }
        let global = given.2.as_ref().map(|array| float(["global_scale", "out.global_scale"], array)).transpose()?;
        if let Some(global) = &global {
            global.expect_shape(&[])?;
        }
        Ok(Self { codes, scale, global })
    }

    fn all(&self) -> impl Iterator<Item = &Array<'py>> {
        [&self.codes, &self.scale].into_iter().chain(&self.global)
    }

    fn read(&self) -> PartsRef<'_> {
        let scale = match self.scale.dtype {
            Dtype::F32 => Scales::Floats(self.scale.slice::<f32>()),
            _ => Scales::Bytes(self.scale.slice::<u8>()),
        };
        let global = self.global.as_ref().map_or(1.0, |global| global.slice::<f32>()[0]);
        PartsRef { codes: self.codes.slice::<u8>(), scale, global }
    }
}

fn nonfinite<T: Floats>(function: &str, x: &[T], shape: &[usize], threads: usize) -> Error {
    if let Some(i) = codes::first_beyond_float32(x) {
        let value = x[i].to_f64();
        return Error::Value(format!(
            "{function}: x must be within the range of float32, got {value:e} at flat index {i}"
        ));
    }
    nonfinite_error(function, x, shape, threads)
}

#[pyfunction]
fn format_shapes<'py>(
    py: Python<'py>,
    shape: Vec<usize>,
    spec: GivenSpec<'py>,
) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyTuple>)> {
    entry("quantize", || {
        let plan = plan("quantize", &spec, &shape)?;
        Ok((PyTuple::new(py, plan.codes)?, PyTuple::new(py, plan.scale)?))
    })
}

#[pyfunction]
fn quantize_format<'py>(
    x: &Obj<'py>,
    out: GivenParts<'py>,
    spec: GivenSpec<'py>,
    nonfinite: &Obj<'py>,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("quantize", || {
        let py = x.py();
        let threads = resolve("quantize", threads)?;
        let policy = policy("quantize", nonfinite)?;
        let x = Array::float(Name::new("quantize", "x"), x, dtype)?;
        let plan = plan("quantize", &spec, x.shape())?;
        let mut arrays = Arrays::new("quantize", &out, &plan, true)?;
        let _borrow = borrow(&std::iter::once(&x).chain(arrays.all()).collect::<Vec<_>>())?;
        match_dtype!(x, T => {
            let (source, shape) = (x.slice::<T>(), x.shape().to_vec());
            let mut none = 1.0;
            let Arrays { codes, scale, global } = &mut arrays;
            let scale = match scale.dtype {
                Dtype::F32 => ScalesMut::Floats(scale.slice_mut::<f32>()),
                _ => ScalesMut::Bytes(scale.slice_mut::<u8>()),
            };
            let global = global.as_mut().map_or(&mut none, |global| &mut global.slice_mut::<f32>()[0]);
            let parts = Parts { codes: codes.slice_mut::<u8>(), scale, global };
            compute(py, || {
                codes::quantize(plan.format, source, plan.spec, policy, parts, threads)
                    .map_err(|_| self::nonfinite("quantize", source, &shape, threads))
            })??;
        });
        Ok(())
    })
}

#[pyfunction]
fn dequantize_format<'py>(
    parts: GivenParts<'py>,
    spec: GivenSpec<'py>,
    out: &Obj<'py>,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("dequantize", || {
        let py = out.py();
        let threads = resolve("dequantize", threads)?;
        let mut out = Array::float_out(Name::new("dequantize", "out"), out, dtype)?;
        let plan = plan("dequantize", &spec, out.shape())?;
        let arrays = Arrays::new("dequantize", &parts, &plan, false)?;
        let _borrow = borrow(&std::iter::once(&out).chain(arrays.all()).collect::<Vec<_>>())?;
        match_dtype!(out, O => {
            let (parts, target) = (arrays.read(), out.slice_mut::<O>());
            compute(py, || codes::dequantize(plan.format, parts, plan.spec, target, threads))?;
        });
        Ok(())
    })
}

#[pyfunction]
fn fake_quantize_format<'py>(
    x: &Obj<'py>,
    out: &Obj<'py>,
    spec: GivenSpec<'py>,
    nonfinite: &Obj<'py>,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("fake_quantize", || {
        let py = x.py();
        let threads = resolve("fake_quantize", threads)?;
        let policy = policy("fake_quantize", nonfinite)?;
        let x = Array::float(Name::new("fake_quantize", "x"), x, dtype)?;
        let plan = plan("fake_quantize", &spec, x.shape())?;
        let mut out = Array::float_out(Name::new("fake_quantize", "out"), out, dtype)?;
        out.expect_shape(x.shape())?;
        out.expect_dtype(x.dtype, x.object.dtype())?;
        let _borrow = borrow(&[&x, &out])?;
        match_dtype!(x, T => {
            let (source, shape, target) = (x.slice::<T>(), x.shape().to_vec(), out.slice_mut::<T>());
            compute(py, || {
                codes::fake_quantize(plan.format, source, plan.spec, policy, target, threads)
                    .map_err(|_| self::nonfinite("fake_quantize", source, &shape, threads))
            })??;
        });
        Ok(())
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(format_shapes, m)?)?;
    m.add_function(wrap_pyfunction!(quantize_format, m)?)?;
    m.add_function(wrap_pyfunction!(dequantize_format, m)?)?;
    m.add_function(wrap_pyfunction!(fake_quantize_format, m)?)
}

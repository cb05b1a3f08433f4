//! The specification of a named format and the arrays of an array in it, checked.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::arg::{Name, optional_int, text};
use super::array::Array;
use super::dtype::Dtype;
use crate::error::Error;
use crate::kernels::codes::{FORMATS, Format, Granularity, Parts, PartsRef, Scales, ScalesMut, Sizes, Spec};
use crate::kernels::pack::packed_len;

type Obj<'py> = Bound<'py, PyAny>;

/// `(format, axis, group_size)`.
pub type GivenSpec<'py> = (Obj<'py>, Obj<'py>, Obj<'py>);
/// `(codes, scale, global_scale)`.
pub type GivenParts<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>);

/// A checked specification, and the shapes that follow from it.
pub struct Plan {
    pub format: &'static dyn Format,
    pub spec: Spec,
    pub codes: Vec<usize>,
    pub scale: Vec<usize>,
}

impl Plan {
    /// Bytes that the ranges of `n` elements take on the way (those of groups come and go with each piece, unless all
    /// are needed before the first is coded).
    pub fn scratch(&self, n: usize) -> usize {
        match self.spec.granularity {
            Granularity::Channel { .. } => self.spec.scales(n).saturating_mul(64),
            _ if self.format.has_global() => self.spec.scales(n).saturating_mul(4),
            _ => 0,
        }
    }
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

pub fn plan(function: &str, given: &GivenSpec<'_>, shape: &[usize]) -> PyResult<Plan> {
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
pub struct Arrays<'py> {
    codes: Array<'py>,
    scale: Array<'py>,
    global: Option<Array<'py>>,
}

impl<'py> Arrays<'py> {
    pub fn new(function: &'static str, given: &GivenParts<'py>, plan: &Plan, out: bool) -> PyResult<Self> {
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

    pub fn all(&self) -> impl Iterator<Item = &Array<'py>> {
        [&self.codes, &self.scale].into_iter().chain(&self.global)
    }

    pub fn read(&self) -> PartsRef<'_> {
        let scale = match self.scale.dtype {
            Dtype::F32 => Scales::Floats(self.scale.slice::<f32>()),
            _ => Scales::Bytes(self.scale.slice::<u8>()),
        };
        let global = self.global.as_ref().map_or(1.0, |global| global.slice::<f32>()[0]);
        PartsRef { codes: self.codes.slice::<u8>(), scale, global }
    }

    /// To be written; `none` is what a format without a number for the whole array writes.
    pub fn write<'a>(&'a mut self, none: &'a mut f32) -> Parts<'a> {
        let scale = match self.scale.dtype {
            Dtype::F32 => ScalesMut::Floats(self.scale.slice_mut::<f32>()),
            _ => ScalesMut::Bytes(self.scale.slice_mut::<u8>()),
        };
        let global = self.global.as_mut().map_or(none, |global| &mut global.slice_mut::<f32>()[0]);
        Parts { codes: self.codes.slice_mut::<u8>(), scale, global }
    }
}

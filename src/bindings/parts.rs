//! The specification of a quantization and the arrays of a quantized array, checked.

use pyo3::prelude::*;

use super::arg::{Name, int, optional_int, text};
use super::array::Array;
use super::dtype::{Dtype, Item};
use crate::error::Error;
use crate::kernels::affine::{Granularity, Params, ParamsRef, Scheme, Spec};
use crate::kernels::pack::packed_len;
use crate::real::Real;

type Obj<'py> = Bound<'py, PyAny>;

/// `(bits, scheme, axis, group_size)`.
pub type GivenSpec<'py> = (Obj<'py>, Obj<'py>, Obj<'py>, Obj<'py>);
/// `(codes, scale, zero_point, offset)`.
pub type GivenParts<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>, Option<Obj<'py>>);

/// A checked specification, and the shapes that follow from it.
pub struct Plan {
    pub spec: Spec,
    pub codes: Vec<usize>,
    pub parts: Vec<usize>,
}

impl Plan {
    /// Bytes that the ranges of channels take on the way (those of groups come and go with each piece).
    pub fn scratch(&self) -> usize {
        match self.spec.granularity {
            Granularity::Channel { channels, .. } => channels.saturating_mul(64),
            _ => 0,
        }
    }
}

fn check_bits(function: &str, bits: &Obj<'_>) -> PyResult<u32> {
    match int(function, "bits", "8, 4 or 2", bits)? {
        bits @ (8 | 4 | 2) => Ok(bits as u32),
        bits => Err(Error::Value(format!("{function}: bits must be 8, 4 or 2, got {bits}")).into()),
    }
}

pub fn plan(function: &str, given: &GivenSpec<'_>, shape: &[usize], offset_binary: bool) -> PyResult<Plan> {
    let bits = check_bits(function, &given.0)?;
    let scheme = text(function, "scheme", &given.1)?;
    let axis = optional_int(function, "axis", "within the axes of x", &given.2)?;
    let group_size = optional_int(function, "group_size", "at least 1 and no longer than memory", &given.3)?;
    let scheme = Scheme::parse(&scheme).ok_or_else(|| {
        Error::Value(format!("{function}: scheme must be 'symmetric', 'asymmetric' or 'minmax', got {scheme:?}"))
    })?;
    let cols = shape.last().copied().unwrap_or(1);
    let (granularity, parts) = match (axis, group_size) {
        (None, None) => (Granularity::Whole, vec![]),
        (Some(axis), None) => {
            let ndim = shape.len() as i64;
            let index = if axis < 0 { axis.saturating_add(ndim) } else { axis };
            if !(0..ndim).contains(&index) {
                let text = format!("{function}: axis must be within the {ndim} axes of x, got {axis}");
                return Err(Error::Value(text).into());
            }
            let i = index as usize;
            let (outer, inner) = (shape[..i].iter().product(), shape[i + 1..].iter().product());
            (Granularity::Channel { outer, channels: shape[i], inner }, vec![shape[i]])
        }
        (None, Some(size)) => {
            if size < 1 || shape.is_empty() {
                let text = format!("{function}: group_size must be at least 1, of an array with axes, got {size}");
                return Err(Error::Value(text).into());
            }
            let mut parts = shape.to_vec();
            if let Some(last) = parts.last_mut() {
                *last = last.div_ceil(size as usize);
            }
            (Granularity::Group { size: (size as usize).min(cols.max(1)) }, parts)
        }
        (Some(_), Some(_)) => {
            let text =
                format!("{function}: axis and group_size must not both be given; groups lie along the last axis");
            return Err(Error::Value(text).into());
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
pub struct Parts<'py> {
    pub codes: Array<'py>,
    pub scale: Array<'py>,
    pub zero_point: Option<Array<'py>>,
    pub offset: Option<Array<'py>>,
}

impl<'py> Parts<'py> {
    pub fn new(function: &'static str, given: &GivenParts<'py>, plan: &Plan, out: bool) -> PyResult<Self> {
        let name = |arg: [&'static str; 2]| Name::new(function, arg[usize::from(out)]);
        let float = |arg, array: &Obj<'py>| {
            let name = name(arg);
            if out { Array::float_out(name, array, None) } else { Array::float(name, array, None) }
        };
        let bytes = |arg, array: &Obj<'py>| {
            let name = name(arg);
            if out { Array::bytes_out(name, array) } else { Array::bytes(name, array) }
        };
        let codes = bytes(["codes", "out.codes"], &given.0)?;
        codes.expect_shape(&plan.codes)?;
        let scale = float(["scale", "out.scale"], &given.1)?;
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
        let zero_point = given.2.as_ref().map(|array| bytes(["zero_point", "out.zero_point"], array)).transpose()?;
        let offset = given.3.as_ref().map(|array| float(["offset", "out.offset"], array)).transpose()?;
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

    pub fn arrays(&self) -> impl Iterator<Item = &Array<'py>> {
        [&self.codes, &self.scale].into_iter().chain(&self.zero_point).chain(&self.offset)
    }

    pub fn write<C: Real + Item>(&mut self) -> (&mut [u8], Params<'_, C>) {
        let params = Params {
            scale: self.scale.slice_mut::<C>(),
            zero_point: self.zero_point.as_mut().map(Array::slice_mut::<u8>).unwrap_or_default(),
            offset: self.offset.as_mut().map(Array::slice_mut::<C>).unwrap_or_default(),
        };
        (self.codes.slice_mut::<u8>(), params)
    }

    pub fn read<C: Real + Item>(&self) -> (&[u8], ParamsRef<'_, C>) {
        let params = ParamsRef {
            scale: self.scale.slice::<C>(),
            zero_point: self.zero_point.as_ref().map(Array::slice::<u8>).unwrap_or_default(),
            offset: self.offset.as_ref().map(Array::slice::<C>).unwrap_or_default(),
        };
        (self.codes.slice::<u8>(), params)
    }
}

//! Scales and zero points that are given: one, one for each index of an axis, or one for each block along it.

use numpy::PyUntypedArray;
use pyo3::prelude::*;

use super::arg::{Name, group_size, int, number, optional_int};
use super::array::{Array, tuple};
use super::code_kind::Kind;
use super::dtype::{Dtype, Item, match_dtype};
use crate::error::Error;
use crate::kernels::affine::{Layout, Params, Shared, narrowed, no_scale, widened};
use crate::real::Real;

type Obj<'py> = Bound<'py, PyAny>;

/// `(scale, zero_point)`.
pub type GivenParams<'py> = (Obj<'py>, Option<Obj<'py>>);

/// `(name of the codes, axis, group_size)`.
pub type GivenPlace<'py> = (Obj<'py>, Obj<'py>, Obj<'py>);

/// Where scales lie that are more than one, and their shape.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    shape: &'a [usize],
    axis: Option<usize>,
    block: Option<usize>,
}

/// Check `axis` and `group_size` against the shape of the argument `of`.
pub fn place_of<'a>(function: &str, of: &str, shape: &'a [usize], given: &GivenPlace<'_>) -> PyResult<Place<'a>> {
    let what = format!("within the axes of {of}");
    let axis = optional_int(function, "axis", &what, &given.1)?;
    let block = group_size(function, "at least 1", &given.2)?;
    let ndim = shape.len() as i64;
    let axis = axis.map(|axis| {
        let index = if axis < 0 { axis.saturating_add(ndim) } else { axis };
        if (0..ndim).contains(&index) {
            return Ok(index as usize);
        }
        Err(Error::Value(format!("{function}: axis must be within the {ndim} axes of {of}, got {axis}")))
    });
    let axis = axis.transpose()?;
    if let Some(block) = block {
        if block < 1 {
            return Err(Error::Value(format!("{function}: group_size must be at least 1, got {block}")).into());
        }
        if axis.is_none() {
            return Err(Error::Value(format!("{function}: axis must be given with group_size, got None")).into());
        }
    }
    Ok(Place { shape, axis, block: block.map(|block| block as usize) })
}

impl Place<'_> {
    /// The shape of scales that are more than one.
    fn scales(&self) -> Vec<usize> {
        match (self.axis, self.block) {
            (Some(axis), Some(block)) => {
                let mut shape = self.shape.to_vec();
                shape[axis] = shape[axis].div_ceil(block);
                shape
            }
            (Some(axis), None) => vec![self.shape[axis]],
            (None, _) => vec![],
        }
    }

    fn layout(&self) -> Layout {
        let Some(axis) = self.axis else { return Layout::WHOLE };
        let shared = self.block.map_or(Shared::Axis, Shared::Blocks);
        Layout { channels: self.shape[axis], inner: self.shape[axis + 1..].iter().product(), shared }
    }
}

/// Checked parameters, in the dtype that is computed in.
pub struct Owned<C> {
    layout: Layout,
    scale: Vec<C>,
    zero_point: Vec<i32>,
    name: Name,
}

impl<C: Real + Item> Owned<C> {
    /// For codes of this kind.
    pub fn new(
        function: &'static str,
        names: [&'static str; 2],
        given: &GivenParams<'_>,
        place: Place<'_>,
        kind: Kind,
    ) -> PyResult<Self> {
        let [name, of_zero_point] = names.map(|arg| Name::new(function, arg));
        let (scale, shape) = match given.0.cast::<PyUntypedArray>() {
            Ok(_) => {
                let array = Array::float(name, &given.0, None)?;
                (match_dtype!(array, T => widened::<T, C>(array.slice::<T>())), array.shape().to_vec())
            }
            Err(_) => (vec![C::from_f64(number(function, names[0], &given.0)?)], vec![]),
        };
        let wanted = place.scales();
        let is_one = shape.is_empty() || (shape == [1] && wanted != shape);
        if !is_one && shape != wanted {
            let (got, what) = (tuple(&shape), tuple(&wanted));
            let text = match (place.axis, place.block) {
                (None, _) => format!("{name} must be one number where axis is None, got shape {got}; pass axis"),
                (_, None) => format!("{name} must be one number or have shape {what}, got {got}"),
                _ => format!("{name} must have shape {what} for these blocks, got {got}"),
            };
            return Err(Error::Shape(text).into());
        }
        let layout = if is_one { Layout::WHOLE } else { place.layout() };
        let zero_point = given.1.as_ref().map(|given| zero_points(of_zero_point, given, &shape, kind));
        let zero_point = zero_point.transpose()?.unwrap_or_default();
        Ok(Self { layout, scale, zero_point, name })
    }

    /// Scales that numbers are divided by.
    pub fn divisors(self) -> PyResult<Self> {
        match no_scale(&self.scale) {
            None => Ok(self),
            Some(got) => {
                Err(Error::Value(format!("{} must be finite and not 0, got {}", self.name, got.to_f64())).into())
            }
        }
    }

    pub fn params(&self) -> Params<'_, C> {
        Params { layout: self.layout, scale: &self.scale, zero_point: &self.zero_point }
    }
}

/// One, or as many as there are scales, from `low` to `high`.
fn zero_points(name: Name, given: &Obj<'_>, shape: &[usize], kind: Kind) -> PyResult<Vec<i32>> {
    let (low, high) = kind.limits();
    let what = if low == high { "0".into() } else { format!("within {low} to {high}") };
    let n: usize = shape.iter().product();
    let refused = |got: i64| Error::Value(format!("{name} must be {what} for {}, got {got}", kind.name()));
    if given.cast::<PyUntypedArray>().is_err() {
        let value = int(name.function, "zero_point", &what, given)?;
        return Ok(narrowed(&[value], n, low, high).map_err(refused)?);
    }
    let array = Array::ints(name, given)?;
    array.expect_dtype(Dtype::I64, "int64")?;
    if array.len() != 1 {
        array.expect_shape(shape)?;
    }
    Ok(narrowed(array.slice::<i64>(), n, low, high).map_err(refused)?)
}

//! The specification of a quantization, checked.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::arg::{group_size, int, optional_int, shown, text};
use crate::error::Error;
use crate::kernels::codes::{Coding, FORMATS, Format, Granularity, Scheme, Sizes, Spec, Uniform};
use crate::kernels::pack::packed_len;

type Obj<'py> = Bound<'py, PyAny>;

/// `(format or (bits, scheme), axis, group_size)`.
pub type GivenSpec<'py> = (Obj<'py>, Obj<'py>, Obj<'py>);

/// A checked specification, and the shapes that follow from it.
pub struct Plan {
    pub format: &'static Format,
    pub spec: Spec,
    pub codes: Vec<usize>,
    pub scale: Vec<usize>,
}

impl Plan {
    /// Bytes that the ranges of `n` elements take on the way (those of groups come and go with each piece, unless all
    /// are needed before the first is coded).
    pub fn scratch(&self, n: usize) -> usize {
        match (self.spec.granularity, self.format.coding) {
            (Granularity::Channel { .. }, _) => self.spec.scales(n).saturating_mul(64),
            (_, Coding::Blocks(blocks)) if blocks.has_global() => self.spec.scales(n).saturating_mul(4),
            _ => 0,
        }
    }
}

/// The uniform format of `(bits, scheme)`.
fn uniform(function: &str, given: &Bound<'_, PyTuple>) -> PyResult<&'static Format> {
    let (bits, scheme): (Obj<'_>, Obj<'_>) = given.extract()?;
    let bits = int(function, "bits", "8, 4 or 2", &bits)?;
    if ![8, 4, 2].contains(&bits) {
        return Err(Error::Value(format!("{function}: bits must be 8, 4 or 2, got {bits}")).into());
    }
    let scheme = text(function, "scheme", &scheme)?;
    let parsed = Scheme::parse(&scheme).ok_or_else(|| {
        Error::Value(format!("{function}: scheme must be 'symmetric', 'asymmetric' or 'minmax', got {scheme:?}"))
    })?;
    let wanted = Uniform { bits: bits as u32, scheme: parsed, offset_binary: false, signed: false };
    let found = FORMATS.iter().find(|format| matches!(format.coding, Coding::Uniform(uniform) if uniform == wanted));
    Ok(found.expect("a format for each scheme and width"))
}

fn format_of(function: &str, given: &Obj<'_>) -> PyResult<&'static Format> {
    if let Ok(pair) = given.cast::<PyTuple>() {
        return uniform(function, pair);
    }
    let word = text(function, "format", given)?;
    FORMATS.iter().find(|format| format.name == word).ok_or_else(|| {
        let known = FORMATS.map(|format| format.name).join(", ");
        Error::Value(format!("{function}: format must be one of {known}, got {word:?}")).into()
    })
}

/// The numbers of a group size: one, or rows and columns; none.
fn group_sizes(function: &str, what: &str, given: &Obj<'_>) -> PyResult<Vec<i64>> {
    let items = match given.cast::<PyTuple>() {
        Ok(items) => items.iter().collect(),
        Err(_) => vec![given.clone()],
    };
    let numbers: Vec<_> = items.iter().map(|item| group_size(function, what, item)).collect::<PyResult<_>>()?;
    Ok(numbers.into_iter().flatten().collect())
}

/// The group size that was given, if the format has it.
fn check_group(function: &str, format: &Format, ndim: usize, given: &Obj<'_>) -> PyResult<Vec<usize>> {
    if given.is_none() && matches!(format.sizes, Sizes::Any | Sizes::AnyOrTiles) {
        return Ok(vec![]); // before any text is made: that counts in small calls
    }
    let name = format.name;
    let what = match format.sizes {
        Sizes::Fixed(size) => format!("{size} for format {name:?}"),
        Sizes::PowersOfTwo => format!("a power of two from 32 to 4096 for format {name:?}"),
        Sizes::Any => "at least 1, of an array with axes".into(),
        Sizes::AnyOrTiles => {
            format!("at least 1, or two such numbers, of an array with as many axes, for format {name:?}")
        }
    };
    let sizes = group_sizes(function, &what, given)?;
    let fits = match (format.sizes, &sizes[..]) {
        (Sizes::Fixed(only), [size]) => *size == only as i64,
        (Sizes::PowersOfTwo, [size]) => (32..=4096).contains(size) && size.count_ones() == 1,
        (Sizes::Any, sizes) => sizes.len() <= ndim.min(1) && sizes.iter().all(|&size| size > 0),
        (Sizes::AnyOrTiles, sizes) => sizes.len() <= ndim.min(2) && sizes.iter().all(|&size| size > 0),
        _ => false,
    };
    if fits {
        return Ok(sizes.into_iter().map(|size| size as usize).collect());
    }
    Err(Error::Value(format!("{function}: group_size must be {what}, got {}", shown(given))).into())
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
    format: &Format,
    shape: &[usize],
    axis: Option<i64>,
    group: &Obj<'_>,
) -> PyResult<(Granularity, Vec<usize>)> {
    if let Some(axis) = axis {
        if !matches!(format.sizes, Sizes::Any | Sizes::AnyOrTiles) {
            let name = format.name;
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

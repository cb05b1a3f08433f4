//! The arrays of a quantized array, checked.

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arg::Name;
use super::array::Array;
use super::dtype::{Dtype, Item};
use super::spec::Plan;
use crate::error::Error;
use crate::kernels::codes::uniform::{Params, ParamsRef};
use crate::kernels::codes::{Coding, Format, Parts, PartsRef, Scales, ScalesMut, Scheme, Uniform};
use crate::real::Real;

type Obj<'py> = Bound<'py, PyAny>;

/// `(codes, scale, zero_point, offset, global_scale)`.
pub type GivenParts<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>, Option<Obj<'py>>, Option<Obj<'py>>);

/// The arrays of a quantized array, checked against the plan.
pub struct Arrays<'py> {
    codes: Array<'py>,
    pub scale: Array<'py>,
    zero_point: Option<Array<'py>>,
    offset: Option<Array<'py>>,
    global: Option<Array<'py>>,
}

/// The arrays of a quantized array that were checked once, to be used again.
pub struct Held(Vec<(Py<PyUntypedArray>, Dtype, usize)>);

impl Held {
    /// The arrays again, if all are still what was checked.
    pub fn arrays<'py>(&self, py: Python<'py>, function: &'static str, plan: &Plan) -> PyResult<Option<Arrays<'py>>> {
        let mut found: [Option<Array<'py>>; NAMES.len()] = Default::default();
        for (object, dtype, place) in &self.0 {
            let object = object.bind(py);
            let shape: &[usize] = match place {
                0 => &plan.codes,
                4 => &[],
                _ => &plan.scale,
            };
            // A dtype that was set in place could have made other numbers of the bytes.
            if object.shape() != shape || Dtype::of_numbers(object) != Some(*dtype) {
                return Ok(None);
            }
            found[*place] = Some(Array::input(Name::new(function, NAMES[*place]), object, *dtype)?);
        }
        let [Some(codes), Some(scale), zero_point, offset, global] = found else { return Ok(None) };
        Ok(Some(Arrays { codes, scale, zero_point, offset, global }))
    }
}

/// The names of the arrays, in the order of [`GivenParts`].
const NAMES: [&str; 5] = ["codes", "scale", "zero_point", "offset", "global_scale"];

/// The functions of checks, and whether their arrays are to be written.
#[derive(Clone, Copy)]
struct Check {
    function: &'static str,
    out: bool,
}

impl Check {
    fn name(self, arg: [&'static str; 2]) -> Name {
        Name::new(self.function, arg[usize::from(self.out)])
    }

    fn float<'py>(self, arg: [&'static str; 2], array: &Obj<'py>, shape: &[usize]) -> PyResult<Array<'py>> {
        let name = self.name(arg);
        let array = if self.out { Array::float_out(name, array, None) } else { Array::float(name, array, None) }?;
        array.expect_shape(shape)?;
        Ok(array)
    }

    fn bytes<'py>(self, arg: [&'static str; 2], array: &Obj<'py>, shape: &[usize]) -> PyResult<Array<'py>> {
        let name = self.name(arg);
        let array = if self.out { Array::bytes_out(name, array) } else { Array::bytes(name, array) }?;
        array.expect_shape(shape)?;
        Ok(array)
    }

    /// Which arrays a format has.
    fn needs(self, format: &Format, given: &GivenParts<'_>) -> PyResult<()> {
        let wanted = match format.coding {
            Coding::Uniform(Uniform { scheme, .. }) => [scheme == Scheme::Asymmetric, scheme == Scheme::MinMax, false],
            Coding::Blocks(blocks) => [false, false, blocks.has_global()],
        };
        let given = [&given.2, &given.3, &given.4].map(Option::is_some);
        for ((wanted, given), arg) in wanted.into_iter().zip(given).zip(["zero_point", "offset", "global_scale"]) {
            if wanted != given {
                let what = if wanted { "be given" } else { "be None" };
                let text = format!("{}: {arg} must {what} for format {:?}", self.function, format.name);
                return Err(Error::Value(text).into());
            }
        }
        Ok(())
    }
}

impl<'py> Arrays<'py> {
    pub fn new(function: &'static str, given: &GivenParts<'py>, plan: &Plan, out: bool) -> PyResult<Self> {
        let (check, shape) = (Check { function, out }, &plan.scale);
        let codes = check.bytes(["codes", "out.codes"], &given.0, &plan.codes)?;
        let names = ["scale", "out.scale"];
        let scale = match plan.format.coding {
            Coding::Uniform(_) => {
                let scale = check.float(names, &given.1, shape)?;
                if !matches!(scale.dtype, Dtype::F32 | Dtype::F64) {
                    let (name, got) = (scale.name, scale.object_dtype());
                    return Err(Error::Dtype(format!("{name} must have dtype float32 or float64, got {got}")).into());
                }
                scale
            }
            Coding::Blocks(blocks) => {
                codes.expect_dtype(Dtype::U8, "uint8")?;
                let floats = blocks.has_float_scales();
                let (dtype, what) = if floats { (Dtype::F32, "float32") } else { (Dtype::U8, "uint8") };
                let scale =
                    if floats { check.float(names, &given.1, shape) } else { check.bytes(names, &given.1, shape) }?;
                scale.expect_dtype(dtype, what)?;
                scale
            }
        };
        check.needs(plan.format, given)?;
        let zero_point = given.2.as_ref().map(|array| check.bytes(["zero_point", "out.zero_point"], array, shape));
        let offset = given.3.as_ref().map(|array| check.float(["offset", "out.offset"], array, shape)).transpose()?;
        if let Some(offset) = &offset {
            offset.expect_dtype(scale.dtype, format!("{} like scale", scale.object_dtype()))?;
        }
        let global = given.4.as_ref().map(|array| check.float(["global_scale", "out.global_scale"], array, &[]));
        let global = global.transpose()?;
        if let Some(global) = &global {
            global.expect_dtype(Dtype::F32, "float32")?;
        }
        let zero_point = zero_point.transpose()?;
        if let (Some(zero_point), true) = (&zero_point, out) {
            zero_point.expect_dtype(Dtype::U8, "uint8")?;
        }
        Ok(Self { codes, scale, zero_point, offset, global })
    }

    /// What is written where the parameters are given: the codes alone.
    pub fn codes(function: &'static str, given: &Obj<'py>, plan: &Plan) -> PyResult<Array<'py>> {
        Check { function, out: true }.bytes(["codes", "out.codes"], given, &plan.codes)
    }

    /// The arrays that were given, to be used again.
    pub fn held(&self) -> Held {
        let all = [Some(&self.codes), Some(&self.scale), self.zero_point.as_ref(), self.offset.as_ref()];
        let all = all.into_iter().chain([self.global.as_ref()]).enumerate();
        Held(all.filter_map(|(i, array)| array.map(|a| (a.given().clone().unbind(), a.dtype, i))).collect())
    }

    pub fn all(&self) -> impl Iterator<Item = &Array<'py>> + Clone {
        [&self.codes, &self.scale].into_iter().chain(&self.zero_point).chain(&self.offset).chain(&self.global)
    }

    /// Codes and parameters of uniform codes, to be written.
    pub fn write_uniform<C: Real + Item>(&mut self) -> (&mut [u8], Params<'_, C>) {
        let params = Params {
            scale: self.scale.slice_mut::<C>(),
            zero_point: self.zero_point.as_mut().map(Array::slice_mut::<u8>).unwrap_or_default(),
            offset: self.offset.as_mut().map(Array::slice_mut::<C>).unwrap_or_default(),
        };
        (self.codes.slice_mut::<u8>(), params)
    }

    /// How the codes are read: signed where their zero points are.
    pub fn uniform(&self, code: Uniform) -> Uniform {
        let signed = self.zero_point.as_ref().is_some_and(|zero_point| zero_point.dtype == Dtype::I8);
        Uniform { signed, ..code }
    }

    /// The same, to be read.
    pub fn read_uniform<C: Real + Item>(&self) -> (&[u8], ParamsRef<'_, C>) {
        let params = ParamsRef {
            scale: self.scale.slice::<C>(),
            zero_point: self.zero_point.as_ref().map(Array::slice::<u8>).unwrap_or_default(),
            offset: self.offset.as_ref().map(Array::slice::<C>).unwrap_or_default(),
        };
        (self.codes.slice::<u8>(), params)
    }

    /// Codes and scales of blocks, to be written; `none` is what a format without a number for the whole array writes.
    pub fn write_blocks<'a>(&'a mut self, none: &'a mut f32) -> Parts<'a> {
        let scale = match self.scale.dtype {
            Dtype::F32 => ScalesMut::Floats(self.scale.slice_mut::<f32>()),
            _ => ScalesMut::Bytes(self.scale.slice_mut::<u8>()),
        };
        let global = self.global.as_mut().map_or(none, |global| &mut global.slice_mut::<f32>()[0]);
        Parts { codes: self.codes.slice_mut::<u8>(), scale, global }
    }

    /// The same, to be read.
    pub fn read_blocks(&self) -> PartsRef<'_> {
        let scale = match self.scale.dtype {
            Dtype::F32 => Scales::Floats(self.scale.slice::<f32>()),
            _ => Scales::Bytes(self.scale.slice::<u8>()),
        };
        let global = self.global.as_ref().map_or(1.0, |global| global.slice::<f32>()[0]);
        PartsRef { codes: self.codes.slice::<u8>(), scale, global }
    }
}

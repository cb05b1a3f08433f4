//! Scales that are searched, scales that are given.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyModule};

use super::arg::{Name, number, text};
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, Item, match_dtype};
use super::error::{compute, entry};
use super::parts::Arrays;
use super::quant::{compute_dtype, nonfinite_error, policy};
use super::spec::{GivenSpec, Plan, plan};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::affine::no_scale;
use crate::kernels::codes::uniform::{self, How, Params, ParamsRef, ScaleDtype};
use crate::kernels::codes::{Coding, Granularity, Policy, Scheme, Uniform};
use crate::kernels::reduce::{Counts, reduce_all};
use crate::real::{Element, Real};

type Obj<'py> = Bound<'py, PyAny>;

/// Scales, and zero points or offsets.
type GivenScales<'py> = (Obj<'py>, Option<Obj<'py>>);

/// Checked parameters.
struct Scales<'py> {
    scale: Array<'py>,
    zero_point: Option<Array<'py>>,
    offset: Option<Array<'py>>,
}

impl<'py> Scales<'py> {
    /// For codes of `x`; to be written where `out`.
    fn new(x: &Array<'_>, given: &GivenScales<'py>, plan: &Plan, out: bool) -> PyResult<(Uniform, Self)> {
        let function = x.name.function;
        let Coding::Uniform(uniform) = plan.format.coding else {
            let name = plan.format.name;
            return Err(Error::Value(format!(
                "{function}: search, scale and scale_dtype must be None for format {name:?}"
            ))
            .into());
        };
        let name = |arg| Name::new(function, arg);
        let floats = |arg, given| -> PyResult<_> {
            let array =
                if out { Array::float_out(name(arg), given, None)? } else { Array::float(name(arg), given, None)? };
            array.expect_shape(&plan.scale)?;
            let (wanted, what) = compute_dtype(x);
            array.expect_dtype(wanted, what)?;
            Ok(array)
        };
        let scale = floats("scale", &given.0)?;
        if uniform.scheme == Scheme::MinMax {
            let Some(offset) = &given.1 else {
                return Err(Error::Value(format!("{function}: scale must be None for scheme 'minmax'")).into());
            };
            return Ok((uniform, Self { scale, zero_point: None, offset: Some(floats("offset", offset)?) }));
        }
        if given.1.is_some() != (uniform.scheme == Scheme::Asymmetric) {
            let text = match given.1 {
                Some(_) => "zero_point must be None for scheme 'symmetric'",
                None => "zero_point must be given with scale for scheme 'asymmetric'",
            };
            return Err(Error::Value(format!("{function}: {text}")).into());
        }
        let zero_point = given.1.as_ref().map(|given| -> PyResult<_> {
            let name = name("zero_point");
            let array = if out { Array::bytes_out(name, given)? } else { Array::bytes(name, given)? };
            array.expect_shape(&plan.scale)?;
            array.expect_dtype(Dtype::U8, "uint8")?;
            Ok(array)
        });
        Ok((uniform, Self { scale, zero_point: zero_point.transpose()?, offset: None }))
    }

    fn all(&self) -> impl Iterator<Item = &Array<'py>> {
        std::iter::once(&self.scale).chain(&self.zero_point).chain(&self.offset)
    }

    fn read<C: Real + Item>(&self) -> ParamsRef<'_, C> {
        let zero_point = self.zero_point.as_ref().map(Array::slice::<u8>).unwrap_or_default();
        let offset = self.offset.as_ref().map(Array::slice::<C>).unwrap_or_default();
        ParamsRef { scale: self.scale.slice::<C>(), zero_point, offset }
    }

    fn write<C: Real + Item>(&mut self) -> Params<'_, C> {
        let zero_point = self.zero_point.as_mut().map(Array::slice_mut::<u8>).unwrap_or_default();
        let offset = self.offset.as_mut().map(Array::slice_mut::<C>).unwrap_or_default();
        Params { scale: self.scale.slice_mut::<C>(), zero_point, offset }
    }

    /// To divide by.
    fn read_checked<C: Real + Item>(&self, uniform: Uniform) -> PyResult<ParamsRef<'_, C>> {
        let (params, function) = (self.read::<C>(), self.scale.name.function);
        match uniform::are_params(uniform, params) {
            [true, true] => Ok(params),
            [false, _] => {
                let got = no_scale(params.scale).map_or(0.0, C::to_f64);
                Err(Error::Value(format!("{function}: scale must be finite and not 0, got {got}")).into())
            }
            [true, false] => {
                let (levels, got) = ((1u16 << uniform.bits) - 1, params.zero_point.iter().max().unwrap_or(&0));
                Err(Error::Value(format!("{function}: zero_point must be within 0 to {levels}, got {got}")).into())
            }
        }
    }
}

/// The name of one of two functions that share an entry.
fn name_of(function: &str) -> &'static str {
    if function == "fake_quantize" { "fake_quantize" } else { "quantize" }
}

/// Refuse what is not finite, unless it is to be saturated.
pub fn check_finite<T: Element>(
    function: &str,
    x: &[T],
    shape: &[usize],
    policy: Policy,
    threads: usize,
) -> Result<(), Error> {
    if policy == Policy::Saturate || reduce_all::<T, Counts>(x, threads)[1] == 0 {
        return Ok(());
    }
    Err(nonfinite_error(function, x, shape, threads))
}

/// What errors can be raised to.
const NORMS: std::ops::RangeInclusive<f64> = 0.5..=4.0;

/// The function, "mse" or a norm (a float) or None, the name of the dtype that scales are stored in or None.
type GivenHow<'py> = (String, Option<Obj<'py>>, Option<Obj<'py>>);

pub fn search_how(function: &str, how: &GivenHow<'_>) -> PyResult<How> {
    let norm = match how.1.as_ref() {
        None => None,
        Some(given) if given.is_instance_of::<PyFloat>() => Some(number(function, "norm", given)?),
        Some(given) => match text(function, "search", given)?.as_str() {
            "mse" => Some(2.0),
            word => return Err(Error::Value(format!("{function}: search must be None or 'mse', got {word:?}")).into()),
        },
    };
    if let Some(norm) = norm.filter(|norm| !NORMS.contains(norm)) {
        let [least, most] = [NORMS.start(), NORMS.end()];
        return Err(Error::Value(format!("{function}: norm must be from {least} to {most}, got {norm}")).into());
    }
    let stored = how.2.as_ref().map(|given| text(function, "scale_dtype", given)).transpose()?;
    let stored = match stored {
        None => ScaleDtype::Own,
        Some(word) => ScaleDtype::parse(&word).ok_or_else(|| {
            let what = "None, 'float32', 'float16' or 'bfloat16'";
            Error::Value(format!("{function}: scale_dtype must be {what}, got {word:?}"))
        })?,
    };
    Ok(How { search: norm.is_some(), stored, norm: norm.unwrap_or(2.0) })
}

/// Offsets are stored as they are computed, and so are scales beside them.
pub fn check_stored(function: &str, uniform: Uniform, how: How) -> Result<(), Error> {
    if uniform.scheme == Scheme::MinMax && how.stored != ScaleDtype::Own {
        return Err(Error::Value(format!("{function}: scale_dtype must be None for scheme 'minmax'")));
    }
    Ok(())
}

/// Importances of the columns of `x`.
fn checked_weights<'py>(x: &Array<'_>, given: &Obj<'py>) -> PyResult<Array<'py>> {
    let weights = Array::float(Name::new(x.name.function, "weights"), given, None)?;
    weights.expect_dtype(Dtype::F32, "float32")?;
    weights.expect_shape(&[x.cols()])?;
    if !uniform::are_weights(weights.slice::<f32>()) {
        let function = x.name.function;
        return Err(Error::Value(format!("{function}: weights must be finite and not negative")).into());
    }
    Ok(weights)
}

#[pyfunction]
fn find_scales<'py>(
    x: &Obj<'py>,
    weights: Option<&Obj<'py>>,
    out: GivenScales<'py>,
    spec: GivenSpec<'py>,
    how: GivenHow<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    let function = name_of(&how.0);
    entry(function, || {
        let py = x.py();
        let threads = resolve(function, threads)?;
        let how = search_how(function, &how)?;
        let x = Array::float(Name::new(function, "x"), x, dtype)?;
        let plan = plan(function, &spec, x.shape())?;
        if let Granularity::Channel { outer: 2.., .. } = plan.spec.granularity {
            return Err(Error::Value(format!("{function}: axis must be the first of x")).into());
        }
        let (uniform, mut scales) = Scales::new(&x, &out, &plan, true)?;
        check_stored(function, uniform, how)?;
        let weights = weights.map(|given| checked_weights(&x, given)).transpose()?;
        let _borrow = borrow(&std::iter::once(&x).chain(&weights).chain(scales.all()).collect::<Vec<_>>())?;
        let weights = weights.as_ref().map(Array::slice::<f32>).unwrap_or_default();
        match_dtype!(x, T => {
            let (values, params) = (x.slice::<T>(), scales.write::<<T as Element>::Compute>());
            compute(py, || uniform::find_scales(values, weights, (uniform, plan.spec), how, params, threads))?;
        });
        Ok(())
    })
}

#[pyfunction]
fn quantize_given<'py>(
    x: &Obj<'py>,
    codes: &Obj<'py>,
    scales: GivenScales<'py>,
    spec: GivenSpec<'py>,
    nonfinite: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("quantize", || {
        let py = x.py();
        let threads = resolve("quantize", threads)?;
        let policy = policy("quantize", nonfinite)?;
        let x = Array::float(Name::new("quantize", "x"), x, dtype)?;
        let plan = plan("quantize", &spec, x.shape())?;
        let (uniform, scales) = Scales::new(&x, &scales, &plan, false)?;
        let mut codes = Arrays::codes("quantize", codes, &plan)?;
        let _borrow = borrow(&[&x, &codes].into_iter().chain(scales.all()).collect::<Vec<_>>())?;
        match_dtype!(x, T => {
            let (values, shape, target) = (x.slice::<T>(), x.shape().to_vec(), codes.slice_mut::<u8>());
            let params = scales.read_checked::<<T as Element>::Compute>(uniform)?;
            compute(py, || {
                check_finite("quantize", values, &shape, policy, threads)?;
                uniform::quantize_given(values, uniform, plan.spec, target, params, threads);
                Ok::<(), Error>(())
            })??;
        });
        Ok(())
    })
}

#[pyfunction]
fn fake_quantize_given<'py>(
    x: &Obj<'py>,
    out: &Obj<'py>,
    scales: GivenScales<'py>,
    spec: GivenSpec<'py>,
    nonfinite: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry("fake_quantize", || {
        let py = x.py();
        let threads = resolve("fake_quantize", threads)?;
        let policy = policy("fake_quantize", nonfinite)?;
        let x = Array::float(Name::new("fake_quantize", "x"), x, dtype)?;
        let plan = plan("fake_quantize", &spec, x.shape())?;
        let (uniform, scales) = Scales::new(&x, &scales, &plan, false)?;
        let mut out = Array::float_out(Name::new("fake_quantize", "out"), out, dtype)?;
        out.expect_shape(x.shape())?;
        out.expect_dtype(x.dtype, x.object.dtype())?;
        let _borrow = borrow(&[&x, &out].into_iter().chain(scales.all()).collect::<Vec<_>>())?;
        match_dtype!(x, T => {
            let (values, shape, target) = (x.slice::<T>(), x.shape().to_vec(), out.slice_mut::<T>());
            let params = scales.read_checked::<<T as Element>::Compute>(uniform)?;
            compute(py, || {
                check_finite("fake_quantize", values, &shape, policy, threads)?;
                uniform::fake_quantize_given(values, uniform, plan.spec, target, params, threads);
                Ok::<(), Error>(())
            })??;
        });
        Ok(())
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(find_scales, m)?)?;
    m.add_function(wrap_pyfunction!(quantize_given, m)?)?;
    m.add_function(wrap_pyfunction!(fake_quantize_given, m)?)
}

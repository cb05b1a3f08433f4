//! Codes with given scales: quantize, dequantize, requantize, as ONNX's operators.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::affine_params::{GivenParams, GivenPlace, Owned, place_of};
use super::arg::{Name, text};
use super::array::Array;
use super::borrow::borrow;
use super::code_kind::{Kind, MinifloatKind};
use super::dtype::{Dtype, Item, match_dtype};
use super::error::{compute, entry};
use super::quant::policy;
use super::scales::check_finite;
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::affine::{
    self, Away, ByteCodes, Bytes, Coded, Converted, Direct, E4M3Fnuz, E5M2Fnuz, Even, FloatCodes, Floats8, Ints,
    Params, Rounding, Source, WordCodes, Words,
};
use crate::kernels::codes::{E2M1, E4M3, E5M2};
use crate::real::Real;

type Obj<'py> = Bound<'py, PyAny>;

/// Bind `$k` to the type of a float of a byte or less and evaluate `$body`.
macro_rules! match_minifloat {
    ($kind:expr, $k:ident => $body:expr) => {
        match $kind {
            MinifloatKind::E4M3 => {
                type $k = E4M3;
                $body
            }
            MinifloatKind::E5M2 => {
                type $k = E5M2;
                $body
            }
            MinifloatKind::E4M3Fnuz => {
                type $k = E4M3Fnuz;
                $body
            }
            MinifloatKind::E5M2Fnuz => {
                type $k = E5M2Fnuz;
                $body
            }
            MinifloatKind::E2M1 => {
                type $k = E2M1;
                $body
            }
        }
    };
}

/// Whether halves go away from zero.
fn rounds_away(function: &str, kind: Kind, given: &Obj<'_>) -> PyResult<bool> {
    let word = text(function, "rounding", given)?;
    match (word.as_str(), kind) {
        ("away", Kind::Float(_)) => {
            let text = format!("{function}: rounding must be 'even' for {}, got 'away'", kind.name());
            Err(Error::Value(text).into())
        }
        ("even", _) => Ok(false),
        ("away", _) => Ok(true),
        _ => Err(Error::Value(format!("{function}: rounding must be 'even' or 'away', got {word:?}")).into()),
    }
}

/// Codes of whole numbers.
fn write_whole<C: Real + Item, R: Rounding>(
    source: &dyn Source<C>,
    params: Params<'_, C>,
    kind: Kind,
    out: &mut Array<'_>,
    threads: usize,
) -> PyResult<()> {
    let (py, (low, high)) = (out.object.py(), kind.limits());
    if let Kind::Word { .. } = kind {
        let (target, out) = (WordCodes::<R>::new(low, high), out.slice_mut::<u16>());
        return compute(py, || affine::quantize(source, params, target, out, threads));
    }
    let (target, out) = (ByteCodes::<R>::new(low, high, kind.mask(out)), out.slice_mut::<u8>());
    compute(py, || affine::quantize(source, params, target, out, threads))
}

/// Codes of numbers.
fn write<C: Real + Item>(
    source: &dyn Source<C>,
    params: Params<'_, C>,
    (kind, away): (Kind, bool),
    out: &mut Array<'_>,
    threads: usize,
) -> PyResult<()> {
    if away {
        write_whole::<C, Away>(source, params, kind, out, threads)
    } else {
        write_whole::<C, Even>(source, params, kind, out, threads)
    }
}

/// Codes of float32 numbers, which floats of a byte are made of.
fn write_any(
    source: &dyn Source<f32>,
    params: Params<'_, f32>,
    how: (Kind, bool),
    out: &mut Array<'_>,
    threads: usize,
) -> PyResult<()> {
    let Kind::Float(float) = how.0 else { return write(source, params, how, out, threads) };
    let (py, codes) = (out.object.py(), out.slice_mut::<u8>());
    match_minifloat!(float, K => {
        compute(py, || affine::quantize(source, params, FloatCodes::<K>::NEW, codes, threads))
    })
}

/// What the codes of an array stand for.
fn with_source<C: Real + Item, R>(
    codes: &Array<'_>,
    kind: Kind,
    params: Params<'_, C>,
    f: impl FnOnce(&dyn Source<C>) -> R,
) -> R {
    match kind {
        Kind::Byte { bits, signed } => f(&Coded::new(codes.slice::<u8>(), Bytes::new(bits, signed), params)),
        Kind::Word { signed } => f(&Coded::new(codes.slice::<u16>(), Words::new(signed), params)),
        Kind::Int => f(&Coded::new(codes.slice::<i32>(), Ints, params)),
        Kind::Float(float) => {
            match_minifloat!(float, K => f(&Coded::new(codes.slice::<u8>(), Floats8::<K>::NEW, params)))
        }
    }
}

#[pyfunction]
fn quantize_linear<'py>(
    x: &Obj<'py>,
    out: &Obj<'py>,
    params: GivenParams<'py>,
    place: GivenPlace<'py>,
    how: (Obj<'py>, Obj<'py>),
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    const NAME: &str = "quantize_linear";
    entry(NAME, || {
        let threads = resolve(NAME, threads)?;
        let kind = Kind::of_target(NAME, &place.0)?;
        let how = (rounds_away(NAME, kind, &how.0)?, policy(NAME, &how.1)?);
        let x = Array::float(Name::new(NAME, "x"), x, None)?;
        let place = place_of(NAME, "x", x.shape(), &place)?;
        let mut out = Array::codes_out(Name::new(NAME, "out"), out, kind)?;
        out.expect_shape(x.shape())?;
        let _borrow = borrow(&[&x, &out])?;
        let shape = x.shape().to_vec();
        let check = |x: &Array<'_>| -> PyResult<()> {
            match_dtype!(x, T => Ok(check_finite(NAME, x.slice::<T>(), &shape, how.1, threads)?))
        };
        if x.dtype == Dtype::F64 && !matches!(kind, Kind::Float(_)) {
            let owned = Owned::<f64>::new(NAME, ["scale", "zero_point"], &params, place, kind)?.divisors()?;
            check(&x)?;
            return write(&Direct(x.slice::<f64>()), owned.params(), (kind, how.0), &mut out, threads);
        }
        let owned = Owned::<f32>::new(NAME, ["scale", "zero_point"], &params, place, kind)?.divisors()?;
        check(&x)?;
        if x.dtype == Dtype::F32 {
            return write_any(&Direct(x.slice::<f32>()), owned.params(), (kind, how.0), &mut out, threads);
        }
        match_dtype!(x, T => {
            write_any(&Converted(x.slice::<T>()), owned.params(), (kind, how.0), &mut out, threads)
        })
    })
}

#[pyfunction]
fn dequantize_linear<'py>(
    q: &Obj<'py>,
    out: &Obj<'py>,
    params: GivenParams<'py>,
    place: GivenPlace<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    const NAME: &str = "dequantize_linear";
    entry(NAME, || {
        let (py, threads) = (q.py(), resolve(NAME, threads)?);
        let kind = Kind::of_source(NAME, &place.0)?;
        let q = Array::codes(Name::new(NAME, "q"), q, kind)?;
        let place = place_of(NAME, "q", q.shape(), &place)?;
        let mut out = Array::float_out(Name::new(NAME, "out"), out, dtype)?;
        out.expect_shape(q.shape())?;
        let _borrow = borrow(&[&q, &out])?;
        if out.dtype == Dtype::F64 {
            let owned = Owned::<f64>::new(NAME, ["scale", "zero_point"], &params, place, kind)?;
            let out = out.slice_mut::<f64>();
            return with_source(&q, kind, owned.params(), |source| {
                compute(py, || affine::dequantize(source, out, threads))
            });
        }
        let owned = Owned::<f32>::new(NAME, ["scale", "zero_point"], &params, place, kind)?;
        match_dtype!(out, O => {
            let out = out.slice_mut::<O>();
            with_source(&q, kind, owned.params(), |source| compute(py, || affine::dequantize(source, out, threads)))
        })
    })
}

#[pyfunction]
fn requantize_linear<'py>(
    arrays: (Obj<'py>, Obj<'py>),
    params: GivenParams<'py>,
    to: GivenParams<'py>,
    place: GivenPlace<'py>,
    how: (Obj<'py>, Obj<'py>),
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    const NAME: &str = "requantize_linear";
    entry(NAME, || {
        let threads = resolve(NAME, threads)?;
        let (from_kind, to_kind) = (Kind::of_source(NAME, &place.0)?, Kind::of_target(NAME, &how.0)?);
        let away = rounds_away(NAME, to_kind, &how.1)?;
        let q = Array::codes(Name::new(NAME, "q"), &arrays.0, from_kind)?;
        let place = place_of(NAME, "q", q.shape(), &place)?;
        let mut out = Array::codes_out(Name::new(NAME, "out"), &arrays.1, to_kind)?;
        out.expect_shape(q.shape())?;
        let _borrow = borrow(&[&q, &out])?;
        let from = Owned::<f32>::new(NAME, ["scale", "zero_point"], &params, place, from_kind)?;
        let to = Owned::<f32>::new(NAME, ["to_scale", "to_zero_point"], &to, place, to_kind)?.divisors()?;
        with_source(&q, from_kind, from.params(), |source| {
            write_any(source, to.params(), (to_kind, away), &mut out, threads)
        })
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(quantize_linear, m)?)?;
    m.add_function(wrap_pyfunction!(dequantize_linear, m)?)?;
    m.add_function(wrap_pyfunction!(requantize_linear, m)?)
}

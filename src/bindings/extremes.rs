//! Ends of an array and where they are, what is true of it, and whether two agree.

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyModule, PyTuple};

use super::arg::{Name, flag, int, number, refused};
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{match_number, match_width};
use super::error::{ask_memory, compute, entry};
use super::reduce::extremes;
use super::reduction::{Call, Options};
use super::result::shaped;
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::close::{Reader, Tolerances, all_close, reader};
use crate::kernels::reduce::{End, Keys, NonZero, Word, has, positions};
use crate::kernels::top::{Contest, top};

type Obj<'py> = Bound<'py, PyAny>;

/// The order of an array's words.
fn keys<W: Word>(x: &Array<'_>) -> Keys<W> {
    if x.dtype.is_float() { Keys::float(x.dtype.infinity()) } else { Keys::integer(x.dtype.is_signed()) }
}

/// The smallest or the largest element; `arg`: its place.
fn end<'py>(
    function: &'static str,
    x: &Obj<'py>,
    (axis, keepdims): Options<'_, 'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry(function, || {
        let side = if function.ends_with("min") { End::Smallest } else { End::Largest };
        if !function.starts_with("arg") {
            let call = Call::new(function, Array::number, x, (axis, keepdims), dtype, threads)?;
            let [found] = extremes(&call, "propagate", [side as usize])?;
            return Ok(found);
        }
        if axis.is_instance_of::<PyTuple>() {
            return Err(refused(function, "axis", "None or an integer", axis));
        }
        let call = Call::new(function, Array::number, x, (axis, keepdims), dtype, threads)?;
        call.refuse_empty()?;
        call.reserve()?;
        let _borrow = borrow(&[&call.x])?;
        let places = match_width!(call.x, W => {
            let (x, keys, view, threads) = (call.x.bits_as::<W>(), keys(&call.x), call.view, call.threads);
            compute(call.x.object.py(), || positions(x, keys, side, view, threads))?
        });
        call.i64(places.into_iter())
    })
}

/// Whether any, or whether all elements are not zero.
fn truth<'py>(
    function: &'static str,
    x: &Obj<'py>,
    options: Options<'_, 'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry(function, || {
        let call = Call::new(function, Array::number, x, options, dtype, threads)?;
        let (all, n) = (function == "all", call.view.n as u64);
        if call.view.outer * call.view.inner == 1 {
            let _borrow = borrow(&[&call.x])?;
            let found = match_width!(call.x, W => {
                let (x, op) = (call.x.bits_as::<W>(), NonZero::new(call.x.dtype.is_float()));
                compute(call.x.object.py(), || has(x, all, op, call.threads))?
            });
            return call.bools([found != all].into_iter());
        }
        call.bools(call.nonzero()?.into_iter().map(|count| if all { count == n } else { count > 0 }))
    })
}

macro_rules! reductions {
    ($($name:ident => $run:ident),*) => {$(
        #[pyfunction]
        fn $name<'py>(
            x: &Obj<'py>,
            axis: &Obj<'py>,
            keepdims: &Obj<'py>,
            dtype: Option<&Obj<'_>>,
            threads: Option<&Obj<'py>>,
        ) -> PyResult<Obj<'py>> {
            $run(stringify!($name), x, (axis, keepdims), dtype, threads)
        }
    )*};
}
reductions!(min => end, max => end, argmin => end, argmax => end, any => truth, all => truth);

/// The places of the k largest or smallest along the last axis, in the shape of `x` but for that axis.
#[pyfunction]
fn top_places<'py>(
    x: &Obj<'py>,
    k: &Obj<'py>,
    largest: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("topk", || {
        let x = Array::number(Name::new("topk", "x"), x, dtype)?;
        let threads = resolve("topk", threads)?;
        let (n, range) = (x.cols(), "from 0 to the length of the axis");
        let k = int("topk", "k", range, k)?;
        let k = usize::try_from(k)
            .ok()
            .filter(|&k| k <= n)
            .ok_or_else(|| Error::Value(format!("topk: k must be {range}, {n}, got {k}")))?;
        let end = if flag("topk", "largest", largest)? { End::Largest } else { End::Smallest };
        let mut shape = x.shape().to_vec();
        shape.pop();
        let rows: usize = shape.iter().product();
        shape.push(k);
        // Places, and the candidates of the pieces of one row.
        ask_memory("topk", (rows * k).saturating_add(4 * n.min(k.saturating_mul(1 + n / 32_768))).saturating_mul(8))?;
        let _borrow = borrow(&[&x])?;
        let places = match_width!(x, W => {
            let (words, contest) = (x.bits_as::<W>(), Contest::new(keys(&x), end, k));
            compute(x.object.py(), || top(words, n, contest, threads))?
        });
        shaped(PyArray1::from_vec(x.object.py(), places).as_any(), &shape)
    })
}

/// An array as float64, wherever it is read.
fn as_reader<'a>(x: &'a Array<'_>) -> Reader<'a> {
    match_number!(x, x => reader(x))
}

#[pyfunction]
fn allclose<'py>(
    a: &Obj<'py>,
    b: &Obj<'py>,
    tolerances: (Obj<'py>, Obj<'py>, Obj<'py>),
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<bool> {
    entry("allclose", || {
        let x = Array::number(Name::new("allclose", "a"), a, dtype)?;
        let y = Array::number(Name::new("allclose", "b"), b, dtype)?;
        let threads = resolve("allclose", threads)?;
        let relative = number("allclose", "rtol", &tolerances.0)?;
        let absolute = number("allclose", "atol", &tolerances.1)?;
        let equal_nan = flag("allclose", "equal_nan", &tolerances.2)?;
        if x.len() != 1 && y.len() != 1 {
            y.expect_shape_of(&x)?;
        }
        let n = if x.len() == 1 { y.len() } else { x.len() };
        let _borrow = borrow(&[&x, &y])?;
        let (a, b) = (as_reader(&x), as_reader(&y));
        compute(x.object.py(), || all_close(n, (&a, &b), Tolerances { relative, absolute, equal_nan }, threads))
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(min, m)?)?;
    m.add_function(wrap_pyfunction!(max, m)?)?;
    m.add_function(wrap_pyfunction!(argmin, m)?)?;
    m.add_function(wrap_pyfunction!(argmax, m)?)?;
    m.add_function(wrap_pyfunction!(any, m)?)?;
    m.add_function(wrap_pyfunction!(all, m)?)?;
    m.add_function(wrap_pyfunction!(top_places, m)?)?;
    m.add_function(wrap_pyfunction!(allclose, m)?)
}

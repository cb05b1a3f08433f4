//! Reductions and order statistics.

use numpy::{PyArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{Name, flag, number};
use super::array::Array;
use super::axes::axes;
use super::borrow::borrow;
use super::dtype::{Item, match_dtype};
use super::error::{ask_memory, compute, entry};
use super::result::{result, shaped};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::reduce::{
    self as kernel, AbsMax, AbsSum, Counts, FiniteMinMax, MinMax, Moments, NanMinMax, Op, SquareSum, State, Sum, View,
};
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

/// An input and how it is reduced.
struct Call<'py> {
    x: Array<'py>,
    view: View,
    shape: Vec<usize>,
    threads: usize,
}

/// `axis` and `keepdims`.
type Options<'a, 'py> = (&'a Obj<'py>, &'a Obj<'py>);

impl<'py> Call<'py> {
    fn new(
        function: &'static str,
        x: &Obj<'py>,
        options: Options<'_, 'py>,
        dtype: Option<&Obj<'_>>,
        threads: Option<&Obj<'py>>,
    ) -> PyResult<Self> {
        let name = Name::new(function, "x");
        let threads = resolve(function, threads)?;
        let array = Array::float(name, x, dtype)?;
        let (full, keepdims) = (array.shape().to_vec(), flag(function, "keepdims", options.1)?);
        let Some(axes) = axes(function, "x", options.0, full.len())? else {
            let shape = if keepdims { vec![1; full.len()] } else { vec![] };
            let view = View { outer: 1, n: array.len(), inner: 1 };
            return Ok(Self { x: array, view, shape, threads });
        };
        let kept = |i: &usize| !axes.contains(i);
        let shape = if keepdims {
            (0..full.len()).map(|i| if kept(&i) { full[i] } else { 1 }).collect()
        } else {
            (0..full.len()).filter(kept).map(|i| full[i]).collect()
        };
        let product = |range: std::ops::Range<usize>| full[range].iter().product::<usize>();
        let (first, last) = (axes.first().copied().unwrap_or(0), axes.last().map_or(0, |a| a + 1));
        if last - first == axes.len() {
            let view = View { outer: product(0..first), n: product(first..last), inner: product(last..full.len()) };
            return Ok(Self { x: array, view, shape, threads });
        }
        // Axes that are not neighbours: NumPy brings them to the end, in a copy.
        let order: Vec<usize> = (0..full.len()).filter(kept).chain(axes.iter().copied()).collect();
        let n = axes.iter().map(|&i| full[i]).product();
        let outer = (0..full.len()).filter(kept).map(|i| full[i]).product();
        let moved = array.object.call_method1("transpose", (order,))?;
        let x = Array::float(name, &moved, dtype)?;
        Ok(Self { x, view: View { outer, n, inner: 1 }, shape, threads })
    }

    fn refuse_empty(&self) -> Result<(), Error> {
        if self.view.n == 0 {
            return Err(Error::Value(format!("{} must not be empty along the reduced axis", self.x.name)));
        }
        Ok(())
    }

    fn reserve(&self) -> PyResult<()> {
        let results = self.view.outer.saturating_mul(self.view.inner);
        ask_memory(self.x.name.function, results.saturating_mul(64))
    }

    fn states<T: Element + Item, O: Op<T>>(&self) -> PyResult<Vec<State<T, O>>> {
        self.reserve()?;
        let _borrow = borrow(&[&self.x])?;
        let (x, view, threads) = (self.x.slice::<T>(), self.view, self.threads);
        compute(self.x.object.py(), || {
            if view.outer * view.inner == 1 {
                vec![kernel::reduce_all::<T, O>(x, threads)]
            } else {
                kernel::reduce_axis::<T, O>(x, view, threads)
            }
        })
    }

    /// Values of x's own dtype.
    fn own<T: Element>(&self, values: &[T]) -> PyResult<Obj<'py>> {
        result(self.x.object.py(), values, &self.shape, self.x.object.dtype().as_any())
    }

    fn f64(&self, values: &[f64]) -> PyResult<Obj<'py>> {
        shaped(PyArray1::from_slice(self.x.object.py(), values).as_any(), &self.shape)
    }

    fn counts(&self, which: usize) -> PyResult<Obj<'py>> {
        let states = match_dtype!(self.x, T => self.states::<T, Counts>()?);
        let counts = PyArray1::from_iter(self.x.object.py(), states.into_iter().map(|state| state[which] as i64));
        shaped(counts.as_any(), &self.shape)
    }
}

/// The same NaN whatever computed it.
fn one_nan(x: f64) -> f64 {
    if x.is_nan() { f64::NAN } else { x }
}

/// The total of each part under one of the sums.
macro_rules! sums {
    ($call:expr, $op:ident) => {
        match_dtype!($call.x, T => $call.states::<T, $op>()?.into_iter().map(kernel::total).collect::<Vec<f64>>())
    };
}

#[pyfunction]
fn minmax<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    nan: &str,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<(Obj<'py>, Obj<'py>)> {
    let function = if nan == "propagate" { "minmax" } else { "nanminmax" };
    entry(function, || {
        let call = Call::new(function, x, (axis, keepdims), dtype, threads)?;
        call.refuse_empty()?;
        match_dtype!(call.x, T => {
            let states = match nan {
                "propagate" => call.states::<T, MinMax>()?,
                "ignore" => call.states::<T, NanMinMax>()?,
                _ => call.states::<T, FiniteMinMax>()?,
            };
            let nan = T::store_f64(f64::NAN);
            let end = |i: usize| states.iter().map(|&[low, high]| {
                match (kernel::number::<T>(low), kernel::number::<T>(high)) {
                    (Some(low), Some(high)) => [low, high][i],
                    _ => nan,
                }
            }).collect::<Vec<T>>();
            Ok((call.own(&end(0))?, call.own(&end(1))?))
        })
    })
}

#[pyfunction]
fn absmax<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("absmax", || {
        let call = Call::new("absmax", x, (axis, keepdims), dtype, threads)?;
        call.refuse_empty()?;
        match_dtype!(call.x, T => {
            let values: Vec<T> = call.states::<T, AbsMax>()?.into_iter().map(|[key, _]| T::from_key(key)).collect();
            call.own(&values)
        })
    })
}

#[pyfunction]
fn sum<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("sum", || {
        let call = Call::new("sum", x, (axis, keepdims), dtype, threads)?;
        call.f64(&sums!(call, Sum))
    })
}

#[pyfunction]
fn mean<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("mean", || {
        let call = Call::new("mean", x, (axis, keepdims), dtype, threads)?;
        call.refuse_empty()?;
        let n = call.view.n as f64;
        call.f64(&sums!(call, Sum).into_iter().map(|sum| sum / n).collect::<Vec<_>>())
    })
}

#[pyfunction]
fn var<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    ddof: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("var", || {
        let call = Call::new("var", x, (axis, keepdims), dtype, threads)?;
        call.refuse_empty()?;
        let ddof = number("var", "ddof", ddof)?;
        if !(ddof < call.view.n as f64) {
            let text = format!("var: ddof must be less than the {} elements, got {ddof}", call.view.n);
            return Err(Error::Value(text).into());
        }
        call.reserve()?;
        let _borrow = borrow(&[&call.x])?;
        let moments: Vec<Moments> = match_dtype!(call.x, T => {
            let (x, view, threads) = (call.x.slice::<T>(), call.view, call.threads);
            compute(call.x.object.py(), || kernel::moments_axis(x, view, threads))?
        });
        call.f64(&moments.into_iter().map(|m| one_nan(m.m2 / (m.n - ddof))).collect::<Vec<_>>())
    })
}

#[pyfunction]
fn norm<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    ord: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("norm", || {
        let call = Call::new("norm", x, (axis, keepdims), dtype, threads)?;
        let ord = number("norm", "ord", ord)?;
        let values = if ord == 1.0 {
            sums!(call, AbsSum)
        } else if ord == 2.0 {
            sums!(call, SquareSum).into_iter().map(f64::sqrt).collect()
        } else if ord == f64::INFINITY {
            call.refuse_empty()?;
            match_dtype!(call.x, T => {
                call.states::<T, AbsMax>()?.into_iter().map(|[key, _]| one_nan(T::from_key(key).to_f64())).collect()
            })
        } else {
            return Err(Error::Value(format!("norm: ord must be 1, 2 or inf, got {ord}")).into());
        };
        call.f64(&values)
    })
}

#[pyfunction]
fn count_nonzero<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("count_nonzero", || Call::new("count_nonzero", x, (axis, keepdims), dtype, threads)?.counts(0))
}

#[pyfunction]
fn count_nonfinite<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("count_nonfinite", || Call::new("count_nonfinite", x, (axis, keepdims), dtype, threads)?.counts(1))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(minmax, m)?)?;
    m.add_function(wrap_pyfunction!(absmax, m)?)?;
    m.add_function(wrap_pyfunction!(sum, m)?)?;
    m.add_function(wrap_pyfunction!(mean, m)?)?;
    m.add_function(wrap_pyfunction!(var, m)?)?;
    m.add_function(wrap_pyfunction!(norm, m)?)?;
    m.add_function(wrap_pyfunction!(count_nonzero, m)?)?;
    m.add_function(wrap_pyfunction!(count_nonfinite, m)?)
}

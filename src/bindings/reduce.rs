//! Reductions and order statistics.

use numpy::{PyArray1, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyModule, PyTuple};

use super::array::{Array, Item, Name, borrow, match_dtype, result, shaped};
use super::error::{compute, entry};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::reduce::{
    self as kernel, AbsMax, AbsSum, Counts, FiniteMinMax, MinMax, Moments, NanMinMax, Op, SquareSum, State, Sum, View,
};
use crate::kernels::{compare, histogram as hist, select};
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
type Options<'a, 'py> = (&'a Obj<'py>, bool);

fn axes(function: &str, axis: &Obj<'_>, ndim: usize) -> PyResult<Option<Vec<usize>>> {
    if axis.is_none() {
        return Ok(None);
    }
    let given: Vec<isize> = match axis.cast::<PyTuple>() {
        Ok(tuple) => tuple.extract()?,
        Err(_) => vec![axis.extract().map_err(|_| {
            PyTypeError::new_err(format!("{function}: axis must be None, an integer or a tuple of integers, got {axis}"))
        })?],
    };
    let mut axes = Vec::with_capacity(given.len());
    for axis in given {
        let index = if axis < 0 { axis + ndim as isize } else { axis };
        if !(0..ndim as isize).contains(&index) {
            let text = format!("{function}: axis must be within the {ndim} axes of x, got {axis}");
            return Err(Error::Value(text).into());
        }
        if axes.contains(&(index as usize)) {
            return Err(Error::Value(format!("{function}: axis must name each axis once, got {axis} twice")).into());
        }
        axes.push(index as usize);
    }
    axes.sort_unstable();
    Ok(Some(axes))
}

impl<'py> Call<'py> {
    fn new(
        function: &'static str,
        x: &Obj<'py>,
        options: Options<'_, 'py>,
        dtype: Option<&str>,
        threads: Option<&Obj<'py>>,
    ) -> PyResult<Self> {
        let name = Name(function, "x");
        let threads = resolve(function, threads)?;
        let array = Array::float(name, x, dtype)?;
        let full = array.shape.clone();
        let Some(axes) = axes(function, options.0, full.len())? else {
            let shape = if options.1 { vec![1; full.len()] } else { vec![] };
            let view = View { outer: 1, n: array.len(), inner: 1 };
            return Ok(Self { x: array, view, shape, threads });
        };
        let kept = |i: &usize| !axes.contains(i);
        let shape = if options.1 {
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

    fn states<T: Element + Item, O: Op<T>>(&self) -> PyResult<Vec<State<T, O>>> {
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
    keepdims: bool,
    nan: &str,
    dtype: Option<&str>,
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
                let (low, high) = (kernel::number::<T>(low), kernel::number::<T>(high));
                match (low, high) {
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
    keepdims: bool,
    dtype: Option<&str>,
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
    keepdims: bool,
    dtype: Option<&str>,
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
    keepdims: bool,
    dtype: Option<&str>,
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
    keepdims: bool,
    ddof: f64,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("var", || {
        let call = Call::new("var", x, (axis, keepdims), dtype, threads)?;
        call.refuse_empty()?;
        if !(ddof < call.view.n as f64) {
            let text = format!("var: ddof must be less than the {} elements, got {ddof}", call.view.n);
            return Err(Error::Value(text).into());
        }
        let _borrow = borrow(&[&call.x])?;
        let moments: Vec<Moments> = match_dtype!(call.x, T => {
            let (x, view, threads) = (call.x.slice::<T>(), call.view, call.threads);
            compute(call.x.object.py(), || kernel::moments_axis(x, view, threads))?
        });
        call.f64(&moments.into_iter().map(|m| m.m2 / (m.n - ddof)).collect::<Vec<_>>())
    })
}

#[pyfunction]
fn norm<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: bool,
    ord: f64,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("norm", || {
        let call = Call::new("norm", x, (axis, keepdims), dtype, threads)?;
        let values = if ord == 1.0 {
            sums!(call, AbsSum)
        } else if ord == 2.0 {
            sums!(call, SquareSum).into_iter().map(f64::sqrt).collect()
        } else if ord == f64::INFINITY {
            call.refuse_empty()?;
            match_dtype!(call.x, T => {
                call.states::<T, AbsMax>()?.into_iter().map(|[key, _]| T::from_key(key).to_f64()).collect()
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
    keepdims: bool,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("count_nonzero", || Call::new("count_nonzero", x, (axis, keepdims), dtype, threads)?.counts(0))
}

#[pyfunction]
fn count_nonfinite<'py>(
    x: &Obj<'py>,
    axis: &Obj<'py>,
    keepdims: bool,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("count_nonfinite", || Call::new("count_nonfinite", x, (axis, keepdims), dtype, threads)?.counts(1))
}

/// Bins at most: the edges and counts then take 1 GiB.
const MAX_BINS: i64 = 1 << 26;

#[pyfunction]
#[pyo3(signature = (x, bins, range, dtype, threads))]
fn histogram<'py>(
    x: &Obj<'py>,
    bins: i64,
    range: Option<(f64, f64)>,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<(Obj<'py>, Obj<'py>)> {
    entry("histogram", || {
        let py = x.py();
        let array = Array::float(Name("histogram", "x"), x, dtype)?;
        let threads = resolve("histogram", threads)?;
        if !(1..=MAX_BINS).contains(&bins) {
            return Err(Error::Value(format!("histogram: bins must be from 1 to {MAX_BINS}, got {bins}")).into());
        }
        let _borrow = borrow(&[&array])?;
        match_dtype!(array, T => {
            let x = array.slice::<T>();
            let found = match range {
                Some(range) => range,
                None if x.is_empty() => (0.0, 1.0),
                None => {
                    let [low, high] = compute(py, || kernel::reduce_all::<T, MinMax>(x, threads))?;
                    let end = |key| kernel::number::<T>(key).map_or(f64::NAN, T::to_f64);
                    (end(low), end(high))
                }
            };
            let (low, high) = found;
            if !(low.is_finite() && high.is_finite()) {
                let text = format!("histogram: range must be finite, got ({low}, {high}); pass range=(low, high)");
                return Err(Error::Value(text).into());
            }
            if low > high {
                let text = format!("histogram: range must have low <= high, got ({low}, {high})");
                return Err(Error::Value(text).into());
            }
            let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
            // NumPy's own edges, so that the bins are its bins.
            let edges = py.import("numpy")?.call_method1("linspace", (low, high, bins + 1))?;
            let edges: PyReadonlyArray1<'py, f64> = edges.extract()?;
            let slice = edges.as_slice()?;
            let counts = compute(py, || hist::histogram(x, slice, threads))?;
            let counts = PyArray1::from_iter(py, counts.into_iter().map(|count| count as i64));
            Ok((counts.into_any(), edges.as_any().clone()))
        })
    })
}

#[pyfunction]
fn quantile<'py>(
    x: &Obj<'py>,
    q: PyReadonlyArray1<'py, f64>,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("quantile", || {
        let py = x.py();
        let array = Array::float(Name("quantile", "x"), x, dtype)?;
        let threads = resolve("quantile", threads)?;
        let q = q.as_array();
        if array.len() == 0 {
            return Err(Error::Value("quantile: x must not be empty".into()).into());
        }
        if let Some(bad) = q.iter().find(|q| !(0.0..=1.0).contains(*q)) {
            return Err(Error::Value(format!("quantile: q must be from 0 to 1, got {bad}")).into());
        }
        let last = (array.len() - 1) as f64;
        // NumPy's linear method: between the neighbours of the virtual index q (n - 1).
        let places: Vec<f64> = q.iter().map(|q| q * last).collect();
        let ranks: Vec<u64> = places.iter().flat_map(|p| [p.floor() as u64, p.ceil() as u64]).collect();
        let _borrow = borrow(&[&array])?;
        let values: Vec<f64> = match_dtype!(array, T => {
            let x = array.slice::<T>();
            compute(py, || {
                let [low, high] = kernel::reduce_all::<T, MinMax>(x, threads);
                if kernel::number::<T>(low).is_none() || kernel::number::<T>(high).is_none() {
                    return vec![f64::NAN; places.len()];
                }
                let found = select::select(x, select::Order::Value, &ranks, threads);
                let pairs = found.chunks_exact(2).zip(&places);
                pairs.map(|(pair, place)| interpolate(pair[0].to_f64(), pair[1].to_f64(), place.fract())).collect()
            })?
        });
        Ok(PyArray1::from_vec(py, values).into_any())
    })
}

/// Between a and b as `numpy.quantile` does it: from the nearer end, so that the ends are met exactly.
fn interpolate(a: f64, b: f64, t: f64) -> f64 {
    if a == b {
        return a;
    }
    let difference = b - a;
    if t >= 0.5 { b - difference * (1.0 - t) } else { a + difference * t }
}

#[pyfunction]
fn kth_magnitude<'py>(
    x: &Obj<'py>,
    k: i64,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Obj<'py>> {
    entry("kth_magnitude", || {
        let array = Array::float(Name("kth_magnitude", "x"), x, dtype)?;
        let threads = resolve("kth_magnitude", threads)?;
        let n = array.len();
        let k = u64::try_from(k).ok().filter(|&k| k < n as u64).ok_or_else(|| {
            Error::Value(format!("kth_magnitude: k must be from 0 to below the {n} elements, got {k}"))
        })?;
        let _borrow = borrow(&[&array])?;
        match_dtype!(array, T => {
            let slice = array.slice::<T>();
            let found = compute(x.py(), || select::select(slice, select::Order::Magnitude, &[k], threads))?;
            result(x.py(), &found, &[], array.object.dtype().as_any())
        })
    })
}

#[pyfunction]
fn error_stats<'py>(
    x: &Obj<'py>,
    y: &Obj<'py>,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<(f64, f64, f64, f64, f64)> {
    entry("error_stats", || {
        let a = Array::float(Name("error_stats", "x"), x, dtype)?;
        let b = Array::float(Name("error_stats", "y"), y, None)?;
        let threads = resolve("error_stats", threads)?;
        b.expect_shape(&a.shape)?;
        let _borrow = borrow(&[&a, &b])?;
        let s = match_dtype!(a, A => match_dtype!(b, B => {
            let (a, b) = (a.slice::<A>(), b.slice::<B>());
            compute(x.py(), || compare::stats(a, b, threads))?
        }));
        Ok((s.xx, s.yy, s.xy, s.dd, s.max))
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(minmax, m)?)?;
    m.add_function(wrap_pyfunction!(absmax, m)?)?;
    m.add_function(wrap_pyfunction!(sum, m)?)?;
    m.add_function(wrap_pyfunction!(mean, m)?)?;
    m.add_function(wrap_pyfunction!(var, m)?)?;
    m.add_function(wrap_pyfunction!(norm, m)?)?;
    m.add_function(wrap_pyfunction!(count_nonzero, m)?)?;
    m.add_function(wrap_pyfunction!(count_nonfinite, m)?)?;
    m.add_function(wrap_pyfunction!(histogram, m)?)?;
    m.add_function(wrap_pyfunction!(quantile, m)?)?;
    m.add_function(wrap_pyfunction!(kth_magnitude, m)?)?;
    m.add_function(wrap_pyfunction!(error_stats, m)?)
}

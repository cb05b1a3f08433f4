//! Weights and what is written for them: checked, borrowed, in place or apart.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use super::arg::{Name, number, text};
use super::array::{Array, tuple};
use super::array_order::are_same;
use super::borrow::{Borrow, borrow};
use super::dtype::{Dtype, Item, match_dtype, ndarray};
use super::error::compute;
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::prune::{Job, Mask, Weights};
use crate::kernels::reduce::{AbsMax, reduce_all};
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

/// When NaN is refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Nan {
    /// Never: it is the largest.
    Largest,
    /// Before anything is written.
    RaiseFirst,
    /// Also after: what was written is not yet anyone else's.
    Raise,
}

pub(super) fn nan_rule(function: &str, given: &Obj<'_>) -> PyResult<Nan> {
    let text = text(function, "nonfinite", given)?;
    match text.as_str() {
        "largest" => Ok(Nan::Largest),
        "raise" => Ok(Nan::Raise),
        "raise-first" => Ok(Nan::RaiseFirst),
        _ => Err(Error::Value(format!("{function}: nonfinite must be 'raise' or 'largest', got {text:?}")).into()),
    }
}

/// The error about NaN in an array whose axes are `order` of those given.
pub(super) fn nan_error(w: &Array<'_>, order: &[usize], threads: usize) -> PyErr {
    let (count, at) = match_dtype!(w, T => {
        let x = w.slice::<T>();
        let is_nan = |v: &T| v.magnitude() > T::INFINITY_KEY;
        let count = crate::par::map(threads, x.chunks(crate::par::CHUNK), |x| x.iter().filter(|v| is_nan(v)).count());
        (count.into_iter().sum::<usize>(), x.iter().position(is_nan).unwrap_or(0))
    });
    let (mut index, mut rest) = (vec![0; order.len()], at);
    for (&axis, &n) in order.iter().zip(w.shape()).rev() {
        (index[axis], rest) = (rest % n, rest / n);
    }
    let text = format!("{} has {count} NaN, first at index {}", w.name, tuple(&index));
    Error::Value(format!("{text}; pass nonfinite=\"largest\" to keep NaN as the largest")).into()
}

/// Weights and what is written for them, checked: the weights with zeros, or (bytes) a mask.
pub struct Pair<'py> {
    /// None where they are written in place.
    pub w: Option<Array<'py>>,
    pub out: Array<'py>,
    /// Which axes of what was given the axes are.
    pub order: Vec<usize>,
}

impl<'py> Pair<'py> {
    /// `names` of the weights and of the output; `order` of the axes.
    pub fn new(
        names: (Name, Name),
        w: &Obj<'py>,
        out: &Obj<'py>,
        order: Vec<usize>,
        dtype: Option<&Obj<'_>>,
    ) -> PyResult<Self> {
        let turned = |object: &Obj<'py>| -> PyResult<Obj<'py>> {
            if order.is_sorted() { Ok(object.clone()) } else { object.call_method1("transpose", (order.clone(),)) }
        };
        let (w, target) = (&ndarray(names.0, w)?.into_any(), ndarray(names.1, out)?);
        let out = target.as_any();
        if are_same(w, out) {
            let out = Array::float_inout(names.0, &turned(w)?, dtype)?;
            return Ok(Self { w: None, out, order });
        }
        let given = Array::float(names.0, w, dtype)?;
        if target.shape() != given.shape() {
            let (want, got) = (tuple(given.shape()), tuple(target.shape()));
            let (out, like) = (names.1, names.0.arg);
            return Err(Error::Shape(format!("{out} must have shape {want} like {like}, got {got}")).into());
        }
        let w = if order.is_sorted() { given } else { Array::float(names.0, &turned(w)?, dtype)? };
        let out = turned(out)?;
        let is_mask = out.getattr("dtype")?.getattr("itemsize")?.extract::<usize>()? == 1;
        let out = if is_mask { Array::bytes_inout(names.1, &out)? } else { Array::float_inout(names.1, &out, dtype)? };
        if !is_mask {
            out.expect_dtype(w.dtype, w.object_dtype())?;
        }
        Ok(Self { w: Some(w), out, order })
    }

    pub fn weights(&self) -> &Array<'py> {
        self.w.as_ref().unwrap_or(&self.out)
    }

    pub fn arrays(&self) -> impl Iterator<Item = &Array<'py>> {
        self.w.iter().chain([&self.out])
    }

    pub fn has_nan(&self, py: Python<'py>, threads: usize) -> PyResult<bool> {
        let w = self.weights();
        match_dtype!(w, T => {
            let x = w.slice::<T>();
            compute(py, || reduce_all::<T, AbsMax>(x, threads)[0] > T::INFINITY_KEY)
        })
    }

    pub fn job<T: Element + Item>(&mut self) -> AnyJob<'_, T> {
        let x = self.w.as_ref().map(Array::slice::<T>);
        if self.out.dtype == Dtype::U8 {
            AnyJob::Mask(Job { x, out: self.out.slice_mut::<u8>() })
        } else {
            AnyJob::Weights(Job { x, out: self.out.slice_mut::<T>() })
        }
    }
}

/// A job of either output.
pub enum AnyJob<'a, T: Element> {
    Weights(Job<'a, T, Weights>),
    Mask(Job<'a, T, Mask>),
}

/// `$f` of the job, whichever it is.
macro_rules! with_job {
    ($any:expr, $job:ident => $body:expr) => {
        match $any {
            AnyJob::Weights($job) => $body,
            AnyJob::Mask($job) => $body,
        }
    };
}
pub(super) use with_job;

/// One pair, borrowed, and how it is worked on.
pub struct Call<'py> {
    pub pair: Pair<'py>,
    pub nan: Nan,
    pub threads: usize,
    _borrow: Borrow,
}

/// `(nan, dtype, threads)`.
pub type Options<'py> = (Obj<'py>, Option<Obj<'py>>, Option<Obj<'py>>);

impl<'py> Call<'py> {
    pub fn new(
        function: &'static str,
        (w, out): (&Obj<'py>, &Obj<'py>),
        order: Option<Vec<usize>>,
        (nan, dtype, threads): &Options<'py>,
    ) -> PyResult<Self> {
        let names = (Name::new(function, "w"), Name::new(function, "out"));
        let (threads, nan) = (resolve(function, threads.as_ref())?, nan_rule(function, nan)?);
        let ndim = ndarray(names.0, w)?.shape().len();
        let pair = Pair::new(names, w, out, order.unwrap_or_else(|| (0..ndim).collect()), dtype.as_ref())?;
        let borrow = borrow(&pair.arrays().collect::<Vec<_>>())?;
        Ok(Self { pair, nan, threads, _borrow: borrow })
    }

    /// Refuse an output that is a mask.
    pub fn refuse_mask(&self) -> PyResult<()> {
        if self.pair.out.dtype != Dtype::U8 {
            return Ok(());
        }
        let (name, want) = (self.pair.out.name, self.pair.weights().object_dtype());
        Err(Error::Dtype(format!("{name} must have dtype {want} like w, got bytes")).into())
    }

    /// Refuse NaN before the first write, where that is asked for, or the kernel cannot tell (`always`).
    pub fn check_nan(&self, py: Python<'py>, always: bool) -> PyResult<()> {
        let now = self.nan == Nan::RaiseFirst || (always && self.nan == Nan::Raise);
        if now && self.pair.has_nan(py, self.threads)? {
            Err(nan_error(self.pair.weights(), &self.pair.order, self.threads))
        } else {
            Ok(())
        }
    }

    /// Refuse NaN that the kernel has seen; put what was computed in a copy in its place.
    pub fn finish(&self, saw_nan: bool) -> PyResult<()> {
        if saw_nan && self.nan != Nan::Largest {
            return Err(nan_error(self.pair.weights(), &self.pair.order, self.threads));
        }
        self.pair.out.write_back()
    }
}

/// How many of `n` go: half to even, as Python rounds.
pub fn pruned(n: usize, sparsity: f64) -> u64 {
    (sparsity * n as f64).round_ties_even() as u64
}

pub fn check_sparsity(function: &str, sparsity: &Obj<'_>) -> PyResult<f64> {
    let value = number(function, "sparsity", sparsity)?;
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(Error::Value(format!("{function}: sparsity must be from 0 to 1, got {value}")).into())
}

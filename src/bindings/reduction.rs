//! A reduction that was asked for: an input, over which axes, and the shape and dtype of what comes back.

use numpy::{PyArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arg::{Name, flag};
use super::array::Array;
use super::axes::axes;
use super::borrow::borrow;
use super::dtype::{Dtype, Item, match_width};
use super::error::{ask_memory, compute};
use super::result::{result, shaped};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::reduce::{self as kernel, NonZero, Op, State, View, Word};
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

/// What takes an input: of floats only, or of all numbers.
type Takes<'py> = fn(Name, &Obj<'py>, Option<&Obj<'_>>) -> PyResult<Array<'py>>;

/// An input and how it is reduced.
pub struct Call<'py> {
    pub x: Array<'py>,
    pub view: View,
    pub shape: Vec<usize>,
    pub threads: usize,
}

/// `axis` and `keepdims`.
pub type Options<'a, 'py> = (&'a Obj<'py>, &'a Obj<'py>);

impl<'py> Call<'py> {
    /// `takes`: which dtypes; `options`: `axis` and `keepdims`.
    pub fn new(
        function: &'static str,
        takes: Takes<'py>,
        x: &Obj<'py>,
        options: Options<'_, 'py>,
        dtype: Option<&Obj<'_>>,
        threads: Option<&Obj<'py>>,
    ) -> PyResult<Self> {
        let name = Name::new(function, "x");
        let threads = resolve(function, threads)?;
        let array = takes(name, x, dtype)?;
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
        let x = takes(name, &moved, dtype)?;
        Ok(Self { x, view: View { outer, n, inner: 1 }, shape, threads })
    }

    pub fn refuse_empty(&self) -> Result<(), Error> {
        if self.view.n == 0 {
            return Err(Error::Value(format!("{} must not be empty along the reduced axis", self.x.name)));
        }
        Ok(())
    }

    pub fn reserve(&self) -> PyResult<()> {
        let results = self.view.outer.saturating_mul(self.view.inner);
        ask_memory(self.x.name.function, results.saturating_mul(64))
    }

    /// Reduce floats.
    pub fn states<T: Element + Item, O: Op<T> + Default>(&self) -> PyResult<Vec<State<T, O>>> {
        self.states_of(self.x.slice::<T>(), O::default())
    }

    /// Reduce the bits of any dtype.
    pub fn word_states<W: Word + Item, O: Op<W>>(&self, op: O) -> PyResult<Vec<State<W, O>>> {
        self.states_of(self.x.bits_as::<W>(), op)
    }

    fn states_of<T: Copy + Send + Sync, O: Op<T>>(&self, x: &[T], op: O) -> PyResult<Vec<State<T, O>>> {
        self.reserve()?;
        let _borrow = borrow(&[&self.x])?;
        let (view, threads) = (self.view, self.threads);
        compute(self.x.object.py(), || {
            if view.outer * view.inner == 1 {
                vec![kernel::reduce_all_by(op, x, threads)]
            } else {
                kernel::reduce_axis_by(op, x, view, threads)
            }
        })
    }

    /// How many elements are not zero.
    pub fn nonzero(&self) -> PyResult<Vec<u64>> {
        let float = self.x.dtype.is_float();
        let states = match_width!(self.x, W => self.word_states(NonZero::<W>::new(float))?);
        Ok(states.into_iter().map(|[count, _]| count).collect())
    }

    /// Values of x's own dtype.
    pub fn own<T: Element>(&self, values: &[T]) -> PyResult<Obj<'py>> {
        result(self.x.object.py(), values, &self.shape, self.x.object.dtype().as_any())
    }

    pub fn f64(&self, values: &[f64]) -> PyResult<Obj<'py>> {
        shaped(PyArray1::from_slice(self.x.object.py(), values).as_any(), &self.shape)
    }

    /// Integers of x's own dtype, by their bits.
    pub fn own_words<W: Word + numpy::Element>(&self, words: impl ExactSizeIterator<Item = W>) -> PyResult<Obj<'py>> {
        let is_bool = self.x.dtype == Dtype::Bool;
        let words = words.map(|word| if is_bool { W::of_bits(u64::from(word != W::ZERO)) } else { word });
        let array = PyArray1::from_iter(self.x.object.py(), words);
        shaped(&array.call_method1("view", (self.x.object.dtype(),))?, &self.shape)
    }

    pub fn i64(&self, values: impl ExactSizeIterator<Item = i64>) -> PyResult<Obj<'py>> {
        shaped(PyArray1::from_iter(self.x.object.py(), values).as_any(), &self.shape)
    }

    pub fn u64(&self, values: impl ExactSizeIterator<Item = u64>) -> PyResult<Obj<'py>> {
        shaped(PyArray1::from_iter(self.x.object.py(), values).as_any(), &self.shape)
    }

    pub fn bools(&self, values: impl ExactSizeIterator<Item = bool>) -> PyResult<Obj<'py>> {
        shaped(PyArray1::from_iter(self.x.object.py(), values).as_any(), &self.shape)
    }
}

//! Steps of tensors of torch by descriptions alone: no array is made for any of them.
//!
//! All is looked at anew in each step. Of small tensors the GIL is kept from the first look at memory to the last write:
//! nothing can move in between. Of others the storages are held, as an array holds its own, and the GIL is released. What
//! does not lie plainly is left to the steps of arrays, which also say what is wrong with it.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyModule, PyString};

use super::algorithms::Step;
use super::array::{Describe, Floats};
use super::borrow::{Extent, borrow_extents};
use super::dlpack::{TensorExchange, is_negated, state_of};
use super::dtype::{Dtype, Item};
use super::error::{compute, entry};
use super::optimizers::{Groups, step};
use super::options::find;
use super::threads::resolve;
use crate::kernels::optim::{Grad, Kind, MAX_STATES, Narrow, Param, Plain, Tensor};
use crate::real::Real;

type Obj<'py> = Bound<'py, PyAny>;

/// Elements of a tensor in the mean up to which its step takes about as long as the look at it, for which the GIL is kept
/// in any case; storages cost another look.
const SMALL: usize = 1024;

/// Numbers up to which float32 has all integers.
const LAST_STEP: f32 = 16_777_216.0;

/// The names of the states of each group, as torch has them.
type Names<'py> = Vec<Vec<Bound<'py, PyString>>>;
/// `(params, grads, states by parameter)`, in the order of the groups.
type Given<'py> = (Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyDict>);

/// The tensors of one parameter.
struct Found<'py> {
    group: usize,
    param: Obj<'py>,
    grad: Obj<'py>,
    number: Obj<'py>,
    states: [Option<Obj<'py>>; MAX_STATES],
}

/// The same where they lie.
struct Placed<'a> {
    param: Floats<'a>,
    grad: Floats<'a>,
    number: Floats<'a>,
    states: [Option<Floats<'a>>; MAX_STATES],
}

/// Those of a group that make step `number`.
struct Batch<'a> {
    group: usize,
    number: u64,
    placed: Vec<Placed<'a>>,
}

/// All tensors; None where one is missing or is not simply a tensor. Python's code may run here.
fn found<'py>(
    exchange: &TensorExchange,
    (groups, names): (&Groups<'py>, &Names<'py>),
    (params, grads, states): &Given<'py>,
) -> PyResult<Option<Vec<Found<'py>>>> {
    let mut all = Vec::with_capacity(params.len());
    let (mut in_order, mut pairs) = (states.iter(), params.iter().zip(grads));
    for (group, ((_, count), names)) in groups.iter().zip(names).enumerate() {
        for (param, grad) in pairs.by_ref().take(*count) {
            let Some(state) = state_of(&param, in_order.next(), states)? else { return Ok(None) };
            let Some(number) = state.get_item(intern!(param.py(), "step"))? else { return Ok(None) };
            let mut own: [Option<Obj<'py>>; MAX_STATES] = Default::default();
            for (own, name) in own.iter_mut().zip(names) {
                *own = state.get_item(name)?.filter(|tensor| exchange.is_own(tensor));
                let Some(state) = own else { return Ok(None) };
                if is_negated(state)? {
                    return Ok(None);
                }
            }
            let is_plain = exchange.is_own(&grad) && exchange.is_own(&number);
            if !is_plain || is_negated(&grad)? || is_negated(&param)? || is_negated(&number)? {
                return Ok(None);
            }
            all.push(Found { group, param, grad, number, states: own });
        }
    }
    Ok(Some(all))
}

/// In what numbers of this dtype are stepped.
fn computed_in(dtype: Dtype) -> Dtype {
    if dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 }
}

/// A parameter in 16 bits, rounded to nearest.
fn rounded<T, C>(stored: &mut [T]) -> Narrow<'_, T, C> {
    Narrow { stored, master: &mut [], noise: None }
}

impl<'a> Placed<'a> {
    /// None where they don't lie alike and in order, or `hold` says no: it is called right before the look at what a tensor
    /// has, for Python's code may run there.
    #[inline(always)]
    fn of<'py>(
        describe: Describe,
        found: &'a Found<'py>,
        hold: &mut impl FnMut(&Obj<'py>) -> Option<()>,
    ) -> Option<Self> {
        let mut lying = |tensor: &'a Obj<'py>| hold(tensor).and_then(|()| Floats::of(describe, tensor));
        let (param, lies) = lying(&found.param)?;
        let (number, scalar) = lying(&found.number)?;
        let mut like = |tensor: &'a Obj<'py>| {
            let (floats, own) = lying(tensor)?;
            ((own.axes, own.shape) == (lies.axes, lies.shape)).then_some(floats)
        };
        let wide = computed_in(param.dtype);
        let grad = like(&found.grad).filter(|grad| computed_in(grad.dtype) == wide)?;
        let mut states: [Option<Floats<'a>>; MAX_STATES] = Default::default();
        for (placed, state) in states.iter_mut().zip(found.states.iter().flatten()) {
            *placed = Some(like(state).filter(|state| state.dtype == wide)?);
        }
        (scalar.axes == 0 && number.dtype == Dtype::F32).then_some(Self { param, grad, number, states })
    }

    /// The number of the next step; None where the last was none.
    fn next(&self) -> Option<u64> {
        let last = self.number.slice::<f32>()[0];
        let is_number = (0.0..LAST_STEP).contains(&last) && last.fract() == 0.0;
        is_number.then_some(last as u64 + 1)
    }

    fn tensor<C: Real + Item>(&mut self) -> Tensor<'_, C, Plain> {
        let states = self.states.each_mut().map(|state| state.as_mut().map(Floats::slice_mut).unwrap_or_default());
        let param = match self.param.dtype {
            Dtype::F16 => Param::F16(rounded(self.param.slice_mut())),
            Dtype::Bf16 => Param::Bf16(rounded(self.param.slice_mut())),
            _ => Param::Own(self.param.slice_mut()),
        };
        let grad = match self.grad.dtype {
            Dtype::F16 => Grad::F16(self.grad.slice()),
            Dtype::Bf16 => Grad::Bf16(self.grad.slice()),
            _ => Grad::Own(self.grad.slice()),
        };
        Tensor { param, grad, states, mask: None }
    }
}

/// All in batches; None where one lies otherwise.
fn in_batches<'a, 'py>(
    describe: Describe,
    all: &'a [Found<'py>],
    mut hold: impl FnMut(&Obj<'py>) -> Option<()>,
) -> Option<Vec<Batch<'a>>> {
    let mut batches: Vec<Batch<'a>> = Vec::new();
    let mut last = 0; // most belong to the batch of the one before
    for found in all {
        let placed = Placed::of(describe, found, &mut hold)?;
        let wide = computed_in(placed.param.dtype);
        let first = batches.first().map_or(wide, |batch| computed_in(batch.placed[0].param.dtype));
        if wide != first {
            return None;
        }
        let (group, number) = (found.group, placed.next()?);
        let is_same = |batch: &Batch<'_>| (batch.group, batch.number) == (group, number);
        if !batches.get(last).is_some_and(is_same) {
            last = batches.iter().position(is_same).unwrap_or(batches.len());
        }
        if last == batches.len() {
            batches.push(Batch { group, number, placed: Vec::with_capacity(all.len()) });
        }
        batches[last].placed.push(placed);
    }
    Some(batches)
}

/// What is written and read: kinds one after the other, which mostly lie in order.
fn extents(batches: &[Batch<'_>]) -> Vec<Extent> {
    let all = || batches.iter().flat_map(|batch| &batch.placed);
    let mut extents: Vec<Extent> = all().map(|placed| placed.param.extent(true)).collect();
    extents.extend(all().map(|placed| placed.grad.extent(false)));
    for i in 0..MAX_STATES {
        extents.extend(all().filter_map(|placed| placed.states[i].as_ref()).map(|state| state.extent(true)));
    }
    extents
}

/// Step each, and write the numbers of its steps.
fn run(steps: &mut [Option<Step>], batches: &mut [Batch<'_>], threads: usize) {
    for Batch { group, number, placed } in batches {
        let Some(step) = &mut steps[*group] else { unreachable!("it has parameters") };
        step.hyper.step = *number;
        let states = placed[0].states.iter().flatten().count();
        if placed[0].param.dtype == Dtype::F64 {
            let tensors = placed.iter_mut().map(Placed::tensor).collect();
            (step.kind.runs.float64)(&step.hyper, states, tensors, threads);
        } else {
            let tensors = placed.iter_mut().map(Placed::tensor).collect();
            (step.kind.runs.float32)(&step.hyper, states, tensors, threads);
        }
        for placed in placed {
            placed.number.slice_mut()[0] = *number as f32;
        }
    }
}

/// Step all, or (false) nothing, where one has no state or one does not lie plainly.
#[pyfunction]
fn tensors_step<'py>(
    exchange: &Bound<'py, TensorExchange>,
    function: &str,
    groups: Groups<'py>,
    names: Names<'py>,
    given: Given<'py>,
    grad_scale: Obj<'py>,
    threads: Option<&Obj<'py>>,
) -> PyResult<bool> {
    entry(function, || {
        let (py, exchange, kind) = (exchange.py(), exchange.get(), Kind::of(function)?);
        let threads = resolve(function, threads)?;
        let mut steps = Vec::with_capacity(groups.len());
        for (options, count) in &groups {
            if kind.has_product() || find(options, "rounding_seed")?.is_some_and(|seed| !seed.is_none()) {
                return Ok(false);
            }
            let how = (None, grad_scale.clone(), None);
            steps.push(if *count > 0 { Some(step(kind, options, how, 1, 1.0)?) } else { None });
        }
        let Some(found) = found(exchange, (&groups, &names), &given)? else { return Ok(false) };
        // From here on nothing of Python's runs, but where storages are taken.
        let describe = exchange.describe;
        let Some(mut batches) = in_batches(describe, &found, |_| Some(())) else { return Ok(false) };
        let elements: usize = batches.iter().flat_map(|batch| &batch.placed).map(|placed| placed.param.len()).sum();
        let mut storages = Vec::new();
        if elements > SMALL * found.len() {
            let mut hold = |tensor: &Obj<'py>| {
                storages.push(tensor.call_method0(intern!(py, "untyped_storage")).ok()?);
                Some(())
            };
            let Some(again) = in_batches(describe, &found, &mut hold) else { return Ok(false) };
            batches = again;
        }
        let Some(_borrow) = borrow_extents(extents(&batches)) else { return Ok(false) };
        let mut run = || run(&mut steps, &mut batches, threads);
        if storages.is_empty() {
            run();
        } else {
            compute(py, run)?;
        }
        Ok(true)
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(tensors_step, m)?)
}

//! Steps of optimizer objects: options and states come in dicts, as `modelopt_rs.optim.Optimizer` keeps them.
//!
//! What a user may change between steps (options, states, step numbers) is read anew each time; nothing is kept here.

use numpy::PyUntypedArray;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyModule, PyString, PyTuple};

use super::algorithms::Step;
use super::arg::{Name, flag, int, text};
use super::error::entry;
use super::optim::{Ready, run_all};
use super::options::{find, key, nonfinite, option};
use super::states::BlockState;
use super::tensors::{Listed, check_seed, is_of};
use super::threads::resolve;
use crate::kernels::optim::{Kind, MAX_STATES, MU_PRODUCT};

type Obj<'py> = Bound<'py, PyAny>;

/// The options of each group, and of how many parameters it is.
pub type Groups<'py> = Vec<(Bound<'py, PyDict>, usize)>;
/// `(params, grads, states, bits of masks)`, in the order of the groups; a parameter whose gradient is None is left as it
/// is.
type Given<'py> = (Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyList>, Option<Bound<'py, PyList>>);
/// `(grad_scale, clip_value, nonfinite, learning rates of the groups)`.
type How<'py> = (Obj<'py>, Option<Obj<'py>>, Obj<'py>, Option<Vec<Obj<'py>>>);

/// `NumPy` makes a number of what was computed from an array without axes: an array again.
fn array_of_number(grad: Obj<'_>) -> PyResult<Obj<'_>> {
    if grad.is_instance_of::<PyUntypedArray>() {
        return Ok(grad);
    }
    let numpy = grad.py().import("numpy")?;
    if grad.is_instance(&numpy.getattr("generic")?)? { numpy.call_method1("asarray", (grad,)) } else { Ok(grad) }
}

/// Step number `number` with these options, checked.
pub fn step<'py>(
    kind: &'static Kind,
    options: &Bound<'py, PyDict>,
    (lr, grad_scale, clip_value): (Option<Obj<'py>>, Obj<'py>, Option<Obj<'py>>),
    number: i64,
    mu_product: f64,
) -> PyResult<Step> {
    let py = options.py();
    let given = lr.map_or_else(|| option(options, "lr"), Ok)?;
    // A schedule.
    let lr = if given.is_callable() { given.call1((number,))? } else { given };
    let zero = || PyFloat::new(py, 0.0).into_any();
    let weight_decay = find(options, "weight_decay")?.unwrap_or_else(zero);
    let maximize = option(options, "maximize")?;
    let no = || PyBool::new(py, false).to_owned().into_any();
    let nesterov = find(options, "nesterov")?.unwrap_or_else(no);
    let of_name = |name| match name {
        MU_PRODUCT => Ok(PyFloat::new(py, mu_product).into_any()),
        _ => option(options, name),
    };
    let numbers = kind.options().into_iter().map(of_name).collect::<PyResult<_>>()?;
    let torch = || intern!(py, "torch").clone().into_any();
    let semantics = find(options, "semantics")?.unwrap_or_else(torch);
    let common = (lr, grad_scale, clip_value, weight_decay, maximize);
    let given = (numbers, number.into_pyobject(py)?.into_any(), nesterov, semantics);
    let mut step = Step::new(kind.function, &common, &given)?;
    if let Some(given) = find(options, "decoupled_weight_decay")? {
        step.hyper.common.decoupled = flag(kind.function, "decoupled_weight_decay", &given)?;
    }
    Ok(step)
}

/// What one call can step: parameters of one group, number of step, precision and kind of states.
#[derive(PartialEq)]
struct Key {
    group: usize,
    step: i64,
    mu_product: f64,
    wide: bool,
    coding: Option<String>,
}

struct Batch<'py> {
    key: Key,
    listed: Listed<'py>,
    /// Their states.
    states: Vec<Bound<'py, PyDict>>,
}

/// The names of the states of a group, as dicts are asked for them.
type Names<'py> = Vec<(Bound<'py, PyString>, &'static str, bool)>;

/// Those that these options ask for.
fn names<'py>(kind: &'static Kind, options: &Bound<'py, PyDict>) -> PyResult<Names<'py>> {
    let mut names = Vec::with_capacity(kind.states.len());
    for ((name, asked_by), signed) in kind.states.iter().zip(kind.signed) {
        if asked_by.map_or(Ok(true), |by| option(options, by)?.is_truthy())? {
            names.push((key(options.py(), name), *name, signed));
        }
    }
    Ok(names)
}

/// How the first state is coded.
fn coding(function: &str, state: Option<&Obj<'_>>) -> PyResult<Option<String>> {
    match state {
        Some(state) if !state.is_exact_instance_of::<PyUntypedArray>() && BlockState::is(state) => {
            text(function, "coding", &state.getattr("coding")?).map(Some)
        }
        _ => Ok(None),
    }
}

impl<'py> Batch<'py> {
    /// For up to `n` parameters.
    fn new(key: Key, names: &Names<'py>, seed: Option<Obj<'py>>, n: usize) -> Self {
        let states = names.iter().map(|(_, _, signed)| (*signed, Vec::with_capacity(n))).collect();
        let [params, grads] = [n, n].map(Vec::with_capacity);
        let listed = Listed { params, grads, states, masters: Vec::new(), masks: Vec::new(), seed };
        Self { key, listed, states: Vec::with_capacity(n) }
    }

    fn push(
        &mut self,
        function: &'static str,
        [param, grad]: [Obj<'py>; 2],
        arrays: impl Iterator<Item = (&'static str, Obj<'py>)>,
        state: Bound<'py, PyDict>,
    ) -> PyResult<()> {
        let (py, i, listed) = (param.py(), self.listed.params.len(), &mut self.listed);
        let named = |arg| Name::of_list(function, arg, i);
        listed.params.push((named("params"), param));
        listed.grads.push((named("grads"), grad));
        let mut known = 1; // the step
        for ((_, list), (name, array)) in listed.states.iter_mut().zip(arrays) {
            list.push((named(name), array));
            known += 1;
        }
        // Looked for only where there is more than the states.
        let master = if state.len() > known { state.get_item(intern!(py, "master"))? } else { None };
        if master.is_some() || !listed.masters.is_empty() {
            let none = |i| (Name::of_list(function, "masters", i), py.None().into_bound(py));
            listed.masters.extend((listed.masters.len()..i).map(none));
            listed.masters.push((named("masters"), master.unwrap_or_else(|| py.None().into_bound(py))));
        }
        self.states.push(state);
        Ok(())
    }
}

/// Options may have been changed to some that ask for other states.
fn lacks(function: &str, i: usize, key: &Bound<'_, PyString>, state: &Bound<'_, PyDict>) -> PyErr {
    let got = state.keys().iter().map(|key| key.to_string()).collect::<Vec<_>>().join(", ");
    PyValueError::new_err(format!(
        "{function}: the state of params[{i}] must have '{key}' for these options, got {got}"
    ))
}

/// All that has a gradient, in the order of the first of each batch.
fn batches<'py>(kind: &'static Kind, groups: &Groups<'py>, given: &Given<'py>) -> PyResult<Vec<Batch<'py>>> {
    let (params, grads, states, masks) = given;
    let mut all: Vec<Batch<'py>> = Vec::new();
    let mut end = 0;
    for (group, (options, count)) in groups.iter().enumerate() {
        let (py, names) = (options.py(), names(kind, options)?);
        let mut last = usize::MAX; // most belong to the batch of the one before
        let start = end;
        end += count;
        for i in start..end {
            let grad = grads.get_item(i)?;
            if grad.is_none() {
                continue;
            }
            let (param, state) = (params.get_item(i)?, states.get_item(i)?.cast_into::<PyDict>()?);
            let of_state =
                |key: &Bound<'py, PyString>| state.get_item(key)?.ok_or_else(|| lacks(kind.function, i, key, &state));
            let mut arrays: [Option<Obj<'py>>; MAX_STATES] = Default::default();
            for (array, (key, ..)) in arrays.iter_mut().zip(&names) {
                *array = Some(of_state(key)?);
            }
            let before = int(kind.function, "step", "from 1 to 2^53", &of_state(intern!(py, "step"))?)?;
            let mu_product = if kind.has_product() { of_state(intern!(py, MU_PRODUCT))?.extract()? } else { 1.0 };
            let coding = coding(kind.function, arrays[0].as_ref())?;
            let step = before.saturating_add(1);
            let key = Key { group, step, mu_product, wide: is_of(&param, b'f', 8), coding };
            if all.get(last).is_none_or(|batch| batch.key != key) {
                last = all.iter().position(|batch| batch.key == key).unwrap_or(all.len());
            }
            if last == all.len() {
                let seed = find(options, "rounding_seed")?.filter(|seed| !seed.is_none());
                all.push(Batch::new(key, &names, seed, end - i));
            }
            let named = names.iter().zip(arrays).filter_map(|((_, name, _), array)| Some((*name, array?)));
            all[last].push(kind.function, [param, array_of_number(grad)?], named, state)?;
            if let Some(masks) = masks {
                all[last].listed.masks.push((Name::new(kind.function, "mask"), masks.get_item(i)?));
            }
        }
    }
    Ok(all)
}

/// Step all parameters that have a gradient, or refuse or (false) skip them: then nothing was changed.
#[pyfunction]
fn optimizer_step<'py>(
    function: &str,
    groups: Groups<'py>,
    given: Given<'py>,
    how: How<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<bool> {
    entry(function, || {
        let py = how.0.py();
        let kind = Kind::of(function)?;
        let threads = resolve(function, threads)?;
        let count: usize = groups.iter().map(|(_, count)| count).sum();
        let (grad_scale, clip_value, nonfinite, rates) = how;
        let nonfinite = self::nonfinite(function, &nonfinite, true)?;
        if [given.0.len(), given.1.len(), given.2.len()] != [count; 3] {
            let text = format!("{function}: params, grads and states must be {count}, as in the groups");
            return Err(PyValueError::new_err(text));
        }
        let batches = batches(kind, &groups, &given)?;
        let mut ready = Vec::with_capacity(batches.len());
        for Batch { key, listed, .. } in &batches {
            let rate = rates.as_ref().and_then(|rates| rates.get(key.group)).cloned();
            let given = (rate, grad_scale.clone(), clip_value.clone());
            let step = step(kind, &groups[key.group].0, given, key.step, key.mu_product)?;
            ready.push(Ready::new(step, listed, dtype)?);
        }
        let Some(products) = run_all(py, ready, nonfinite, threads)? else { return Ok(false) };
        for (batch, product) in batches.iter().zip(products) {
            let (step, product) = (PyInt::new(py, batch.key.step), PyFloat::new(py, product));
            for state in &batch.states {
                state.set_item(intern!(py, "step"), &step)?;
                if kind.has_product() {
                    state.set_item(intern!(py, MU_PRODUCT), &product)?;
                }
            }
        }
        Ok(true)
    })
}

/// Refuse options that a first step would refuse.
#[pyfunction]
fn check_options(function: &str, options: &Bound<'_, PyDict>) -> PyResult<()> {
    entry(function, || {
        let one = PyFloat::new(options.py(), 1.0).into_any();
        step(Kind::of(function)?, options, (None, one, None), 1, 1.0)?;
        if let Some(seed) = find(options, "rounding_seed")?.filter(|seed| !seed.is_none()) {
            check_seed(function, &seed)?;
        }
        Ok(())
    })
}

/// `(options that are its numbers, (name, can be negative, option that asks for it) of its states, (number of states,
/// bits) that may be in blocks)`.
#[pyfunction]
fn specification<'py>(py: Python<'py>, function: &str) -> PyResult<Bound<'py, PyTuple>> {
    entry(function, || {
        let kind = Kind::of(function)?;
        let numbers = PyTuple::new(py, kind.options())?;
        let states = kind.states.iter().zip(kind.signed).map(|((name, asked_by), signed)| (*name, signed, *asked_by));
        let states = PyTuple::new(py, states.collect::<Vec<_>>())?;
        let blocks = (kind.coded_states, PyTuple::new(py, kind.bits())?);
        (numbers, states, blocks).into_pyobject(py)
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(optimizer_step, m)?)?;
    m.add_function(wrap_pyfunction!(check_options, m)?)?;
    m.add_function(wrap_pyfunction!(specification, m)?)
}

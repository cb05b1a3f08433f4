//! Optimizer steps: one array or a list of arrays, checked as a whole before the first write.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::algorithms::{GivenCommon, GivenStep, Step};
use super::arg::Name;
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{compute, entry};
use super::options::{Nonfinite, nonfinite};
use super::states::Coded;
use super::tensors::{GivenTensors, Listed, Tensors, bits};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::optim::{Kind, Runs};
use crate::kernels::reduce::{SquareSum, reduce_all, total};

type Obj<'py> = Bound<'py, PyAny>;

/// One call: `(function, arrays, common, step)`.
type GivenCall<'py> = (String, GivenTensors<'py>, GivenCommon<'py>, GivenStep<'py>);

/// A checked call, which can be made together with others.
pub trait Checked<'py> {
    fn tensors(&self) -> &Tensors<'py>;
    /// All arrays that it reads and writes.
    fn all(&self) -> Vec<&Array<'py>>;
    /// Step; what the algorithm returns.
    fn run(&mut self, py: Python<'_>, threads: usize) -> PyResult<f64>;
    /// Put what was stepped in a copy in its place.
    fn write_back(&self) -> PyResult<()>;
}

/// A checked call of an algorithm of `KINDS`.
pub struct Ready<'py> {
    step: Step,
    tensors: Tensors<'py>,
}

impl<'py> Ready<'py> {
    /// Check the arrays of a checked step, and that they go with it.
    pub fn new(step: Step, listed: &Listed<'py>, dtype: Option<&Obj<'_>>) -> PyResult<Self> {
        let tensors = Tensors::new(step.kind, listed, dtype)?;
        if let (states, Some(coding)) = tensors.storage()
            && !step.takes_blocks(states, coding.bits())
        {
            let text = format!("{}: {}", step.kind.function, no_blocks(step.kind, coding));
            return Err(Error::Value(text).into());
        }
        Ok(Self { step, tensors })
    }
}

impl<'py> Checked<'py> for Ready<'py> {
    fn tensors(&self) -> &Tensors<'py> {
        &self.tensors
    }

    fn all(&self) -> Vec<&Array<'py>> {
        self.tensors.all()
    }

    fn write_back(&self) -> PyResult<()> {
        self.tensors.write_back()
    }

    fn run(&mut self, py: Python<'_>, threads: usize) -> PyResult<f64> {
        let (Step { kind, hyper }, (states, coding)) = (&self.step, self.tensors.storage());
        let wide = self.tensors.params.first().is_some_and(|param| param.dtype == Dtype::F64);
        let Runs { float32, float64, bits8, bits4 } = kind.runs;
        match (coding, bits8, bits4) {
            (Some(Coded::Minifloats), Some((run, _)), _) => {
                let blocks = self.tensors.blocks(hyper.step);
                compute(py, || run(hyper, states, blocks, threads))
            }
            (Some(Coded::DynamicMaps), Some((_, run)), _) => {
                let blocks = self.tensors.blocks(hyper.step);
                compute(py, || run(hyper, states, blocks, threads))
            }
            (Some(Coded::FourBits), _, Some(run)) => {
                let blocks = self.tensors.blocks(hyper.step);
                compute(py, || run(hyper, states, blocks, threads))
            }
            (Some(_), ..) => unreachable!("`takes_blocks` was asked"),
            (None, ..) if wide => {
                let slices = self.tensors.slices(hyper.step);
                compute(py, || float64(hyper, states, slices, threads))
            }
            (None, ..) => {
                let slices = self.tensors.slices(hyper.step);
                compute(py, || float32(hyper, states, slices, threads))
            }
        }
    }
}

/// Why a state in blocks is refused.
fn no_blocks(kind: &Kind, coding: Coded) -> String {
    let name = kind.states[0].0;
    let what = if coding.bits() == 4 { "in 4 bits" } else { "in blocks" };
    format!(
        "{name} must be a float32 array, got a BlockState: this algorithm, or this form of it, has no states {what}"
    )
}

/// Step checked calls one after the other, or refuse or skip them all; what each returns, None where they were skipped.
pub fn run_all<'py>(
    py: Python<'_>,
    mut ready: Vec<impl Checked<'py>>,
    nonfinite: Nonfinite,
    threads: usize,
) -> PyResult<Option<Vec<f64>>> {
    let arrays: Vec<_> = ready.iter().flat_map(Checked::all).collect();
    let _borrow = borrow(&arrays)?;
    for call in &ready {
        match nonfinite {
            Nonfinite::Propagate => break,
            Nonfinite::Raise => call.tensors().refuse_nonfinite(py, threads)?,
            Nonfinite::Skip if call.tensors().nonfinite(py, threads)?.is_some() => return Ok(None),
            Nonfinite::Skip => {}
        }
    }
    let results: PyResult<Vec<f64>> = ready.iter_mut().map(|call| call.run(py, threads)).collect();
    ready.iter().try_for_each(Checked::write_back)?;
    results.map(Some)
}

/// Check all calls, then step them one after the other; what each returns.
#[pyfunction]
fn optim_step<'py>(
    py: Python<'py>,
    calls: Vec<GivenCall<'py>>,
    nonfinite: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Vec<f64>> {
    let name = calls.first().map_or("optim_step", |call| call.0.as_str()).to_owned();
    entry(&name, || {
        let threads = resolve(&name, threads)?;
        let check = |(function, arrays, common, step): &GivenCall<'py>| {
            let step = Step::new(function, common, step)?;
            let listed = Listed::new(step.kind, arrays)?;
            Ready::new(step, &listed, dtype)
        };
        let ready = calls.iter().map(check).collect::<PyResult<_>>()?;
        let nonfinite = self::nonfinite(&name, nonfinite, false)?;
        Ok(run_all(py, ready, nonfinite, threads)?.unwrap_or_default())
    })
}

/// The 2-norm of each array.
#[pyfunction]
fn norms(arrays: Vec<Obj<'_>>, dtype: Option<&Obj<'_>>, threads: Option<&Obj<'_>>) -> PyResult<Vec<f64>> {
    entry("global_norm", || {
        let threads = resolve("global_norm", threads)?;
        let norm = |x: &Obj<'_>| -> PyResult<f64> {
            let x = Array::float(Name::new("global_norm", "grads"), x, bits(x, dtype))?;
            let _borrow = borrow(&[&x])?;
            match_dtype!(x, T => {
                let numbers = x.slice::<T>();
                compute(x.object.py(), || total(reduce_all::<T, SquareSum>(numbers, threads)).sqrt())
            })
        };
        arrays.iter().map(norm).collect()
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(norms, m)?)?;
    m.add_function(wrap_pyfunction!(optim_step, m)?)
}

//! Optimizer steps: one array or a list of arrays, checked as a whole before the first write.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::algorithms::{GivenCommon, GivenStep, Kind, Step};
use super::arg::Name;
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{compute, entry};
use super::options::nonfinite;
use super::states::Coded;
use super::tensors::{GivenTensors, Listed, Tensors, bits};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::optim::{
    Adadelta, Adagrad, Adam, Adamax, Algorithm, Coding, Common, DynamicMaps, Ema, FourBits, Lamb, Lion, Minifloats,
    MuonDirection, MuonStep, NAdam, Plain, RAdam, RmsProp, Sgd, Sum, Tensor, lamb, step as run,
};
use crate::kernels::reduce::{SquareSum, reduce_all, total};
use crate::real::Real;

type Obj<'py> = Bound<'py, PyAny>;

impl Step {
    /// Call the kernel; what `nadam_step` returns, else 0.
    fn run<C: Real>(&self, tensors: Vec<Tensor<'_, C, Plain>>, states: usize, threads: usize) -> f64 {
        let (common, x, step) = (&self.common, &self.numbers[..], self.number);
        match (self.kind.function, states) {
            (Sgd::<f32, true>::NAME, 0) => {
                run(tensors, common, Sgd::<C, false>::new(common, 0.0, 0.0, false, step), threads);
            }
            (Sgd::<f32, true>::NAME, _) => {
                run(tensors, common, Sgd::<C, true>::new(common, x[0], x[1], self.nesterov, step), threads);
            }
            (Adagrad::<f32>::NAME, _) => run(tensors, common, Adagrad::new(common, x[0], x[1], step), threads),
            (RmsProp::<f32, true, true>::NAME, 1) => {
                run(tensors, common, RmsProp::<C, false, false>::new(common, x[0], x[1], x[2]), threads);
            }
            (RmsProp::<f32, true, true>::NAME, 3) => {
                run(tensors, common, RmsProp::<C, true, true>::new(common, x[0], x[1], x[2]), threads);
            }
            (RmsProp::<f32, true, true>::NAME, _) if x[2] > 0.0 => {
                run(tensors, common, RmsProp::<C, true, false>::new(common, x[0], x[1], x[2]), threads);
            }
            (RmsProp::<f32, true, true>::NAME, _) => {
                run(tensors, common, RmsProp::<C, false, true>::new(common, x[0], x[1], x[2]), threads);
            }
            (Ema::<f32>::NAME, _) => run(tensors, common, Ema::new(x[0]), threads),
            (<Sum as Algorithm<f32>>::NAME, _) => run(tensors, common, Sum, threads),
            (Adadelta::<f32>::NAME, _) => run(tensors, common, Adadelta::new(common, x[0], x[1]), threads),
            (NAdam::<f32>::NAME, _) => {
                let (nadam, product) = NAdam::new(common, [x[0], x[1]], x[2], x[3], x[4], step);
                run(tensors, common, nadam, threads);
                return product;
            }
            (RAdam::<f32>::NAME, _) => run(tensors, common, RAdam::new(common, [x[0], x[1]], x[2], step), threads),
            (Adamax::<f32>::NAME, _) => run(tensors, common, Adamax::new(common, [x[0], x[1]], x[2], step), threads),
            (Lion::<f32>::NAME, _) => run(tensors, common, Lion::new(common, [x[0], x[1]]), threads),
            (Lamb::<f32>::NAME, _) => lamb(tensors, common, Lamb::new(common, [x[0], x[1]], x[2], step), threads),
            // Its two halves are told apart by the step; the first leaves the parameter as it is.
            (MuonStep::<f32>::NAME, _) if step == 1 => {
                let common = Common { weight_decay: 0.0, ..*common };
                run(tensors, &common, MuonDirection::new(x[0], self.nesterov), threads);
            }
            (MuonStep::<f32>::NAME, _) => run(tensors, common, MuonStep::new(common), threads),
            (_, 3) => {
                let adam = Adam::<C, true>::new(common, [x[0], x[1]], x[2], self.semantics, step);
                run(tensors, common, adam, threads);
            }
            _ => {
                let adam = Adam::<C, false>::new(common, [x[0], x[1]], x[2], self.semantics, step);
                run(tensors, common, adam, threads);
            }
        }
        0.0
    }

    /// The same with states in 8 bits; [`Step::takes_blocks`] was asked.
    fn run_coded<K: Coding>(&self, tensors: Vec<Tensor<'_, f32, K>>, threads: usize) {
        let (common, x, step) = (&self.common, &self.numbers[..], self.number);
        match self.kind.function {
            Sgd::<f32, true>::NAME => {
                run(tensors, common, Sgd::<f32, true>::new(common, x[0], x[1], self.nesterov, step), threads);
            }
            Adagrad::<f32>::NAME => run(tensors, common, Adagrad::new(common, x[0], x[1], step), threads),
            RmsProp::<f32, true, true>::NAME => {
                run(tensors, common, RmsProp::<f32, false, false>::new(common, x[0], x[1], x[2]), threads);
            }
            Lion::<f32>::NAME => run(tensors, common, Lion::new(common, [x[0], x[1]]), threads),
            _ => self.run_adam_coded(tensors, threads),
        }
    }

    /// Adam and `AdamW`, the only ones with states in 4 bits.
    fn run_adam_coded<K: Coding>(&self, tensors: Vec<Tensor<'_, f32, K>>, threads: usize) {
        let (common, x) = (&self.common, &self.numbers[..]);
        let adam = Adam::<f32, false>::new(common, [x[0], x[1]], x[2], self.semantics, self.number);
        run(tensors, common, adam, threads);
    }
}

/// One call: `(function, arrays, common, step)`.
type GivenCall<'py> = (String, GivenTensors<'py>, GivenCommon<'py>, GivenStep<'py>);

/// A checked call.
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

    fn run(&mut self, py: Python<'_>, threads: usize) -> PyResult<f64> {
        let (step, (states, coding)) = (&self.step, self.tensors.storage());
        let wide = self.tensors.params.first().is_some_and(|param| param.dtype == Dtype::F64);
        match coding {
            Some(Coded::Minifloats) => {
                let blocks = self.tensors.blocks::<Minifloats>(step.number);
                compute(py, || step.run_coded(blocks, threads)).map(|()| 0.0)
            }
            Some(Coded::DynamicMaps) => {
                let blocks = self.tensors.blocks::<DynamicMaps>(step.number);
                compute(py, || step.run_coded(blocks, threads)).map(|()| 0.0)
            }
            Some(Coded::FourBits) => {
                let blocks = self.tensors.blocks::<FourBits>(step.number);
                compute(py, || step.run_adam_coded(blocks, threads)).map(|()| 0.0)
            }
            None if wide => {
                let slices = self.tensors.slices::<f64>(step.number);
                compute(py, || step.run(slices, states, threads))
            }
            None => {
                let slices = self.tensors.slices::<f32>(step.number);
                compute(py, || step.run(slices, states, threads))
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

/// What is done about gradients that are not finite.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Nonfinite {
    Propagate,
    Raise,
    Skip,
}

/// Step checked calls one after the other, or refuse or skip them all; what each returns, None where they were skipped.
pub fn run_all(
    py: Python<'_>,
    mut ready: Vec<Ready<'_>>,
    nonfinite: Nonfinite,
    threads: usize,
) -> PyResult<Option<Vec<f64>>> {
    let arrays: Vec<_> = ready.iter().flat_map(|call| call.tensors.all()).collect();
    let _borrow = borrow(&arrays)?;
    for call in &ready {
        match nonfinite {
            Nonfinite::Propagate => break,
            Nonfinite::Raise => call.tensors.refuse_nonfinite(py, threads)?,
            Nonfinite::Skip if call.tensors.nonfinite(py, threads)?.is_some() => return Ok(None),
            Nonfinite::Skip => {}
        }
    }
    let results: PyResult<Vec<f64>> = ready.iter_mut().map(|call| call.run(py, threads)).collect();
    for call in &ready {
        call.tensors.write_back()?;
    }
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

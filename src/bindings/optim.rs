//! Optimizer steps: one array or a list of arrays, checked as a whole before the first write.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{int, number, pair, text};
use super::array::Dtype;
use super::borrow::borrow;
use super::error::{compute, entry};
use super::states::Coded;
use super::tensors::{GivenTensors, Tensors};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::optim::{
    Adadelta, Adagrad, Adam, Adamax, Coding, Common, Dynamic, Ema, Float8, Four, Lion, NAdam, Plain, RAdam, RmsProp,
    Semantics, Sgd, Sum, Tensor, step as run,
};
use crate::real::Real;

type Obj<'py> = Bound<'py, PyAny>;

/// Which numbers a hyper-parameter may be.
#[derive(Clone, Copy, PartialEq)]
enum Allowed {
    NonNegative,
    Positive,
    BelowOne,
}

impl Allowed {
    fn check(self, function: &str, name: &str, given: &Obj<'_>) -> PyResult<f64> {
        let x = number(function, name, given)?;
        let (fits, what) = match self {
            Self::NonNegative => ((0.0..f64::INFINITY).contains(&x), "at least 0 and finite"),
            Self::Positive => (x > 0.0 && x < f64::INFINITY, "greater than 0 and finite"),
            Self::BelowOne => ((0.0..1.0).contains(&x), "from 0 to below 1"),
        };
        if fits { Ok(x) } else { Err(Error::Value(format!("{function}: {name} must be {what}, got {x}")).into()) }
    }
}

use Allowed::{BelowOne, NonNegative, Positive};

/// What an algorithm takes besides what all take: numbers, and the states that it may have.
struct Kind {
    function: &'static str,
    numbers: &'static [(&'static str, Allowed)],
    states: &'static [&'static str],
}

impl Kind {
    /// The names of what is written and of what is read, of one array and of a list.
    fn names(&self) -> [[&'static str; 2]; 2] {
        match self.function {
            "ema_step" => [["average", "averages"], ["param", "params"]],
            "accumulate_step" => [["total", "totals"], ["grad", "grads"]],
            _ => [["param", "params"], ["grad", "grads"]],
        }
    }
}

const BETAS: [(&str, Allowed); 3] = [("betas[0]", BelowOne), ("betas[1]", BelowOne), ("eps", NonNegative)];

#[rustfmt::skip]
const KINDS: [Kind; 12] = [
    Kind { function: "sgd_step", numbers: &[("momentum", NonNegative), ("dampening", NonNegative)], states: &["momentum_buffer"] },
    Kind { function: "adagrad_step", numbers: &[("lr_decay", NonNegative), ("eps", NonNegative)], states: &["state_sum"] },
    Kind {
        function: "rmsprop_step",
        numbers: &[("alpha", BelowOne), ("eps", NonNegative), ("momentum", NonNegative)],
        states: &["square_avg", "momentum_buffer", "grad_avg"],
    },
    Kind { function: "adadelta_step", numbers: &[("rho", BelowOne), ("eps", NonNegative)], states: &["square_avg", "acc_delta"] },
    Kind { function: "adam_step", numbers: &BETAS, states: &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"] },
    Kind { function: "adamw_step", numbers: &BETAS, states: &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"] },
    Kind {
        function: "nadam_step",
        numbers: &[BETAS[0], BETAS[1], BETAS[2], ("momentum_decay", NonNegative), ("mu_product", Positive)],
        states: &["exp_avg", "exp_avg_sq"],
    },
    Kind { function: "radam_step", numbers: &BETAS, states: &["exp_avg", "exp_avg_sq"] },
    Kind { function: "adamax_step", numbers: &BETAS, states: &["exp_avg", "exp_inf"] },
    Kind { function: "lion_step", numbers: &[BETAS[0], BETAS[1]], states: &["exp_avg"] },
    Kind { function: "ema_step", numbers: &[("decay", BelowOne)], states: &[] },
    Kind { function: "accumulate_step", numbers: &[], states: &[] },
];

/// Everything but the arrays, checked.
struct Step {
    kind: &'static Kind,
    common: Common,
    numbers: Vec<f64>,
    number: u64,
    nesterov: bool,
    semantics: Semantics,
}

/// `(lr, grad_scale, clip_value, weight_decay, decoupled, maximize)`.
type GivenCommon<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>, Obj<'py>, bool, bool);
/// `(numbers, of which betas are one, step, nesterov, semantics)`.
type GivenStep<'py> = (Vec<Obj<'py>>, Obj<'py>, bool, Obj<'py>);

impl Step {
    fn new(function: &str, common: &GivenCommon<'_>, step: &GivenStep<'_>) -> PyResult<Self> {
        let kind = KINDS.iter().find(|kind| kind.function == function);
        let kind = kind.ok_or_else(|| Error::Value(format!("optim_step: unknown function {function:?}")))?;
        let clip_value = common.2.as_ref().map(|x| Positive.check(function, "clip_value", x)).transpose()?;
        let common = Common {
            lr: NonNegative.check(function, "lr", &common.0)?,
            grad_scale: Positive.check(function, "grad_scale", &common.1)?,
            clip_value: clip_value.unwrap_or(f64::INFINITY),
            weight_decay: NonNegative.check(function, "weight_decay", &common.3)?,
            decoupled: common.4,
            maximize: common.5,
        };
        let mut given = step.0.clone();
        if kind.numbers.starts_with(&BETAS[..2]) {
            given.splice(..1, pair(function, "betas", &step.0[0])?);
        }
        let numbers = kind.numbers.iter().zip(&given);
        let numbers = numbers.map(|((name, allowed), x)| allowed.check(function, name, x)).collect::<PyResult<_>>()?;
        let number = int(function, "step", "from 1 to 2^53", &step.1)?;
        if !(1..=1 << 53).contains(&number) {
            return Err(Error::Value(format!("{function}: step must be from 1 to 2^53, got {number}")).into());
        }
        let semantics = match text(function, "semantics", &step.3)?.as_str() {
            "torch" => Semantics::Torch,
            "keras" => Semantics::Keras,
            "optax" => Semantics::Optax,
            other => {
                let text = format!("{function}: semantics must be 'torch', 'keras' or 'optax', got {other:?}");
                return Err(Error::Value(text).into());
            }
        };
        Ok(Self { kind, common, numbers, number: number as u64, nesterov: step.2, semantics })
    }

    /// Call the kernel; what `nadam_step` returns, else 0.
    fn run<C: Real>(&self, tensors: Vec<Tensor<'_, C, Plain>>, states: usize, threads: usize) -> f64 {
        let (common, x, step) = (&self.common, &self.numbers[..], self.number);
        match (self.kind.function, states) {
            ("sgd_step", 0) => run(tensors, common, Sgd::<C, false>::new(common, 0.0, 0.0, false, step), threads),
            ("sgd_step", _) => {
                run(tensors, common, Sgd::<C, true>::new(common, x[0], x[1], self.nesterov, step), threads);
            }
            ("adagrad_step", _) => run(tensors, common, Adagrad::new(common, x[0], x[1], step), threads),
            ("rmsprop_step", 1) => {
                run(tensors, common, RmsProp::<C, false, false>::new(common, x[0], x[1], x[2]), threads);
            }
            ("rmsprop_step", 3) => {
                run(tensors, common, RmsProp::<C, true, true>::new(common, x[0], x[1], x[2]), threads);
            }
            ("rmsprop_step", _) if x[2] > 0.0 => {
                run(tensors, common, RmsProp::<C, true, false>::new(common, x[0], x[1], x[2]), threads);
            }
            ("rmsprop_step", _) => {
                run(tensors, common, RmsProp::<C, false, true>::new(common, x[0], x[1], x[2]), threads);
            }
            ("ema_step", _) => run(tensors, common, Ema::new(x[0]), threads),
            ("accumulate_step", _) => run(tensors, common, Sum, threads),
            ("adadelta_step", _) => run(tensors, common, Adadelta::new(common, x[0], x[1]), threads),
            ("nadam_step", _) => {
                let (nadam, product) = NAdam::new(common, [x[0], x[1]], x[2], x[3], x[4], step);
                run(tensors, common, nadam, threads);
                return product;
            }
            ("radam_step", _) => run(tensors, common, RAdam::new(common, [x[0], x[1]], x[2], step), threads),
            ("adamax_step", _) => run(tensors, common, Adamax::new(common, [x[0], x[1]], x[2], step), threads),
            ("lion_step", _) => run(tensors, common, Lion::new(common, [x[0], x[1]]), threads),
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

    /// Whether the algorithm takes states in blocks: every one that does is compiled once more for each coding.
    fn takes_blocks(&self, states: usize, coding: Coded) -> bool {
        match (self.kind.function, states) {
            ("adam_step" | "adamw_step", 2) => true,
            ("sgd_step" | "adagrad_step" | "rmsprop_step" | "lion_step", 1) => coding != Coded::Four,
            _ => false,
        }
    }

    /// The same with states in 8 bits; [`Step::takes_blocks`] was asked.
    fn run_coded<K: Coding>(&self, tensors: Vec<Tensor<'_, f32, K>>, threads: usize) {
        let (common, x, step) = (&self.common, &self.numbers[..], self.number);
        match self.kind.function {
            "sgd_step" => run(tensors, common, Sgd::<f32, true>::new(common, x[0], x[1], self.nesterov, step), threads),
            "adagrad_step" => run(tensors, common, Adagrad::new(common, x[0], x[1], step), threads),
            "rmsprop_step" => {
                run(tensors, common, RmsProp::<f32, false, false>::new(common, x[0], x[1], x[2]), threads);
            }
            "lion_step" => run(tensors, common, Lion::new(common, [x[0], x[1]]), threads),
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
struct Ready<'py> {
    step: Step,
    tensors: Tensors<'py>,
}

impl Ready<'_> {
    fn run(&mut self, py: Python<'_>, threads: usize) -> PyResult<f64> {
        let (step, (states, coding)) = (&self.step, self.tensors.storage());
        let wide = self.tensors.params.first().is_some_and(|param| param.dtype == Dtype::F64);
        match coding {
            Some(Coded::Float8) => {
                let blocks = self.tensors.blocks::<Float8>(step.number);
                compute(py, || step.run_coded(blocks, threads)).map(|()| 0.0)
            }
            Some(Coded::Dynamic) => {
                let blocks = self.tensors.blocks::<Dynamic>(step.number);
                compute(py, || step.run_coded(blocks, threads)).map(|()| 0.0)
            }
            Some(Coded::Four) => {
                let blocks = self.tensors.blocks::<Four>(step.number);
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
    let name = kind.states[0];
    let what = if coding == Coded::Four { "in 4 bits" } else { "in blocks" };
    format!(
        "{name} must be a float32 array, got a BlockState: this algorithm, or this form of it, has no states {what}"
    )
}

/// Check all calls, then step them one after the other; what each returns.
#[pyfunction]
fn optim_step<'py>(
    py: Python<'py>,
    calls: Vec<GivenCall<'py>>,
    error_if_nonfinite: bool,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<Vec<f64>> {
    let name = calls.first().map_or("optim_step", |call| call.0.as_str()).to_owned();
    entry(&name, || {
        let threads = resolve(&name, threads)?;
        let mut ready = Vec::with_capacity(calls.len());
        for (function, arrays, common, step) in &calls {
            let step = Step::new(function, common, step)?;
            let tensors = Tensors::new(step.kind.function, step.kind.names(), step.kind.states, arrays, dtype)?;
            if let (states, Some(coding)) = tensors.storage()
                && !step.takes_blocks(states, coding)
            {
                return Err(Error::Value(format!("{function}: {}", no_blocks(step.kind, coding))).into());
            }
            ready.push(Ready { step, tensors });
        }
        let arrays: Vec<_> = ready.iter().flat_map(|call| call.tensors.all()).collect();
        let _borrow = borrow(&arrays)?;
        if error_if_nonfinite {
            for call in &ready {
                call.tensors.refuse_nonfinite(py, threads)?;
            }
        }
        ready.iter_mut().map(|call| call.run(py, threads)).collect()
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(optim_step, m)?)
}

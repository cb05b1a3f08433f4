//! Optimizer steps: one array or a list of arrays, checked as a whole before the first write.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{int, number, pair, text};
use super::array::Dtype;
use super::borrow::borrow;
use super::error::{compute, entry};
use super::tensors::{GivenTensors, Tensors};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::optim::{
    Adadelta, Adagrad, Adam, Adamax, Common, Lamb, Lion, MuonDirection, MuonStep, NAdam, RAdam, RmsProp, Semantics,
    Sgd, Tensor, lamb, step as run,
};
use crate::real::Real;

type Obj<'py> = Bound<'py, PyAny>;

/// Which numbers a hyper-parameter may be.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Allowed {
    NonNegative,
    Positive,
    BelowOne,
    NonPositive,
    AtLeastOne,
}

impl Allowed {
    pub(super) fn check(self, function: &str, name: &str, given: &Obj<'_>) -> PyResult<f64> {
        let x = number(function, name, given)?;
        let (fits, what) = match self {
            Self::NonNegative => ((0.0..f64::INFINITY).contains(&x), "at least 0 and finite"),
            Self::Positive => (x > 0.0 && x < f64::INFINITY, "greater than 0 and finite"),
            Self::BelowOne => ((0.0..1.0).contains(&x), "from 0 to below 1"),
            Self::NonPositive => (x <= 0.0 && x > f64::NEG_INFINITY, "at most 0 and finite"),
            Self::AtLeastOne => ((1.0..f64::INFINITY).contains(&x), "at least 1 and finite"),
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
    Kind { function: "lamb_step", numbers: &BETAS, states: &["exp_avg", "exp_avg_sq"] },
    Kind {
        function: "muon_step",
        numbers: &[("momentum", NonNegative), ("eps", NonNegative)],
        states: &["momentum_buffer", "direction", "next"],
    },
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
pub(super) type GivenCommon<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>, Obj<'py>, bool, bool);
/// `(numbers, of which betas are one, step, nesterov, semantics)`.
type GivenStep<'py> = (Vec<Obj<'py>>, Obj<'py>, bool, Obj<'py>);

/// What all take, checked.
pub(super) fn common(function: &str, given: &GivenCommon<'_>) -> PyResult<Common> {
    let clip_value = given.2.as_ref().map(|x| Positive.check(function, "clip_value", x)).transpose()?;
    Ok(Common {
        lr: NonNegative.check(function, "lr", &given.0)?,
        grad_scale: Positive.check(function, "grad_scale", &given.1)?,
        clip_value: clip_value.unwrap_or(f64::INFINITY),
        weight_decay: NonNegative.check(function, "weight_decay", &given.3)?,
        decoupled: given.4,
        maximize: given.5,
    })
}

/// The number of a step.
pub(super) fn step_number(function: &str, given: &Obj<'_>) -> PyResult<u64> {
    let number = int(function, "step", "from 1 to 2^53", given)?;
    if !(1..=1 << 53).contains(&number) {
        return Err(Error::Value(format!("{function}: step must be from 1 to 2^53, got {number}")).into());
    }
    Ok(number as u64)
}

impl Step {
    fn new(function: &str, common: &GivenCommon<'_>, step: &GivenStep<'_>) -> PyResult<Self> {
        let kind = KINDS.iter().find(|kind| kind.function == function);
        let kind = kind.ok_or_else(|| Error::Value(format!("optim_step: unknown function {function:?}")))?;
        let common = self::common(function, common)?;
        let mut given = step.0.clone();
        if kind.numbers.starts_with(&BETAS[..2]) {
            given.splice(..1, pair(function, "betas", &step.0[0])?);
        }
        let numbers = kind.numbers.iter().zip(&given);
        let numbers = numbers.map(|((name, allowed), x)| allowed.check(function, name, x)).collect::<PyResult<_>>()?;
        let number = step_number(function, &step.1)?;
        let semantics = match text(function, "semantics", &step.3)?.as_str() {
            "torch" => Semantics::Torch,
            "keras" => Semantics::Keras,
            "optax" => Semantics::Optax,
            other => {
                let text = format!("{function}: semantics must be 'torch', 'keras' or 'optax', got {other:?}");
                return Err(Error::Value(text).into());
            }
        };
        Ok(Self { kind, common, numbers, number, nesterov: step.2, semantics })
    }

    /// Call the kernel; what `nadam_step` returns, else 0.
    fn run<C: Real>(&self, tensors: Vec<Tensor<'_, C>>, states: usize, threads: usize) -> f64 {
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
            ("adadelta_step", _) => run(tensors, common, Adadelta::new(common, x[0], x[1]), threads),
            ("nadam_step", _) => {
                let (nadam, product) = NAdam::new(common, [x[0], x[1]], x[2], x[3], x[4], step);
                run(tensors, common, nadam, threads);
                return product;
            }
            ("radam_step", _) => run(tensors, common, RAdam::new(common, [x[0], x[1]], x[2], step), threads),
            ("adamax_step", _) => run(tensors, common, Adamax::new(common, [x[0], x[1]], x[2], step), threads),
            ("lion_step", _) => run(tensors, common, Lion::new(common, [x[0], x[1]]), threads),
            ("lamb_step", _) => lamb(tensors, common, Lamb::new(common, [x[0], x[1]], x[2], step), threads),
            // Its two halves are told apart by the step; the first leaves the parameter as it is.
            ("muon_step", _) if step == 1 => {
                let common = Common { weight_decay: 0.0, ..*common };
                run(tensors, &common, MuonDirection::new(x[0], self.nesterov), threads);
            }
            ("muon_step", _) => run(tensors, common, MuonStep::new(common), threads),
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
}

#[pyfunction]
fn optim_step<'py>(
    function: &str,
    arrays: GivenTensors<'py>,
    common: GivenCommon<'py>,
    step: GivenStep<'py>,
    error_if_nonfinite: bool,
    dtype: Option<&str>,
    threads: Option<&Obj<'py>>,
) -> PyResult<f64> {
    entry(function, || {
        let py = arrays.0.py();
        let threads = resolve(function, threads)?;
        let step = Step::new(function, &common, &step)?;
        let mut tensors = Tensors::new(step.kind.function, step.kind.states, &arrays, dtype)?;
        let _borrow = borrow(&tensors.all())?;
        if error_if_nonfinite {
            tensors.refuse_nonfinite(py, threads)?;
        }
        let states = tensors.states.len();
        match tensors.params.first().map(|param| param.dtype) {
            None => Ok(step.run::<f32>(Vec::new(), states, threads)),
            Some(Dtype::F64) => {
                let slices = tensors.slices::<f64>();
                compute(py, || step.run(slices, states, threads))
            }
            Some(_) => {
                let slices = tensors.slices::<f32>();
                compute(py, || step.run(slices, states, threads))
            }
        }
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(optim_step, m)?)
}

//! The algorithms by name, their hyper-parameters and the checks of these.

use pyo3::prelude::*;

use super::arg::{int, number, pair, text};
use crate::error::Error;
use crate::kernels::optim::{Common, Semantics};

type Obj<'py> = Bound<'py, PyAny>;

/// Which numbers a hyper-parameter may be.
#[derive(Clone, Copy, PartialEq)]
pub enum Allowed {
    NonNegative,
    Positive,
    BelowOne,
    NonPositive,
    AtLeastOne,
}

impl Allowed {
    pub fn check(self, function: &str, name: &str, given: &Obj<'_>) -> PyResult<f64> {
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
pub struct Kind {
    pub function: &'static str,
    pub numbers: &'static [(&'static str, Allowed)],
    pub states: &'static [&'static str],
}

/// The names of what nearly all write and read, of one array and of a list.
pub const PARAM_AND_GRAD: [[&str; 2]; 2] = [["param", "params"], ["grad", "grads"]];

impl Kind {
    /// The names of what is written and of what is read, of one array and of a list.
    pub fn names(&self) -> [[&'static str; 2]; 2] {
        match self.function {
            "ema_step" => [["average", "averages"], ["param", "params"]],
            "accumulate_step" => [["total", "totals"], ["grad", "grads"]],
            _ => PARAM_AND_GRAD,
        }
    }
}

const BETAS: [(&str, Allowed); 3] = [("betas[0]", BelowOne), ("betas[1]", BelowOne), ("eps", NonNegative)];

#[rustfmt::skip]
const KINDS: [Kind; 14] = [
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
    Kind { function: "lamb_step", numbers: &BETAS, states: &["exp_avg", "exp_avg_sq"] },
    Kind {
        function: "muon_step",
        numbers: &[("momentum", NonNegative), ("eps", NonNegative)],
        states: &["momentum_buffer", "direction", "next"],
    },
];

/// Everything but the arrays, checked.
pub struct Step {
    pub kind: &'static Kind,
    pub common: Common,
    pub numbers: Vec<f64>,
    pub number: u64,
    pub nesterov: bool,
    pub semantics: Semantics,
}

/// `(lr, grad_scale, clip_value, weight_decay, decoupled, maximize)`.
pub type GivenCommon<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>, Obj<'py>, bool, bool);
/// `(numbers, of which betas are one, step, nesterov, semantics)`.
pub type GivenStep<'py> = (Vec<Obj<'py>>, Obj<'py>, bool, Obj<'py>);

/// What all take, checked.
pub fn common(function: &str, given: &GivenCommon<'_>) -> PyResult<Common> {
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
pub fn step_number(function: &str, given: &Obj<'_>) -> PyResult<u64> {
    let number = int(function, "step", "from 1 to 2^53", given)?;
    if !(1..=1 << 53).contains(&number) {
        return Err(Error::Value(format!("{function}: step must be from 1 to 2^53, got {number}")).into());
    }
    Ok(number as u64)
}

impl Step {
    /// Check what is given for this function.
    pub fn new(function: &str, common: &GivenCommon<'_>, step: &GivenStep<'_>) -> PyResult<Self> {
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
}

//! The algorithms by name, and the checks of their hyper-parameters.

use pyo3::prelude::*;

use super::arg::{flag, int, number, pair, text};
use crate::error::Error;
use crate::kernels::optim::Allowed::{self, NonNegative, Positive};
use crate::kernels::optim::{Common, Hyper, KINDS, Kind, Semantics};

type Obj<'py> = Bound<'py, PyAny>;

impl Allowed {
    /// A number that was given, if it is one of them.
    pub fn check(self, function: &str, name: &str, given: &Obj<'_>) -> PyResult<f64> {
        let x = number(function, name, given)?;
        let (fits, what) = self.has(x);
        if fits { Ok(x) } else { Err(Error::Value(format!("{function}: {name} must be {what}, got {x}")).into()) }
    }
}

impl Kind {
    /// That of a function.
    pub fn of(function: &str) -> PyResult<&'static Self> {
        let kind = KINDS.iter().copied().find(|kind| kind.function == function);
        kind.ok_or_else(|| Error::Value(format!("optim_step: unknown function {function:?}")).into())
    }
}

/// Everything but the arrays, checked.
pub struct Step {
    pub kind: &'static Kind,
    pub hyper: Hyper,
}

/// `(lr, grad_scale, clip_value, weight_decay, maximize)`.
pub type GivenCommon<'py> = (Obj<'py>, Obj<'py>, Option<Obj<'py>>, Obj<'py>, Obj<'py>);
/// `(numbers, of which betas are one, step, nesterov, semantics)`.
pub type GivenStep<'py> = (Vec<Obj<'py>>, Obj<'py>, Obj<'py>, Obj<'py>);

/// What all take, checked.
pub fn common(kind: &Kind, given: &GivenCommon<'_>) -> PyResult<Common> {
    let function = kind.function;
    let clip_value = given.2.as_ref().map(|x| Positive.check(function, "clip_value", x)).transpose()?;
    Ok(Common {
        lr: NonNegative.check(function, "lr", &given.0)?,
        grad_scale: Positive.check(function, "grad_scale", &given.1)?,
        clip_value: clip_value.unwrap_or(f64::INFINITY),
        weight_decay: NonNegative.check(function, "weight_decay", &given.3)?,
        decoupled: kind.decoupled,
        maximize: flag(function, "maximize", &given.4)?,
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
    pub fn new(function: &str, common: &GivenCommon<'_>, given: &GivenStep<'_>) -> PyResult<Self> {
        let kind = Kind::of(function)?;
        let common = self::common(kind, common)?;
        let mut numbers = given.0.clone();
        if kind.has_betas() {
            numbers.splice(..1, pair(function, "betas", &given.0[0])?);
        }
        let numbers = kind.numbers.iter().zip(&numbers);
        let numbers = numbers.map(|((name, allowed), x)| allowed.check(function, name, x)).collect::<PyResult<_>>()?;
        let step = step_number(function, &given.1)?;
        let semantics = match text(function, "semantics", &given.3)?.as_str() {
            "torch" => Semantics::Torch,
            "keras" => Semantics::Keras,
            "optax" => Semantics::Optax,
            other => {
                let text = format!("{function}: semantics must be 'torch', 'keras' or 'optax', got {other:?}");
                return Err(Error::Value(text).into());
            }
        };
        let nesterov = flag(function, "nesterov", &given.2)?;
        Ok(Self { kind, hyper: Hyper { common, numbers, step, nesterov, semantics } })
    }

    /// Whether the algorithm takes `states` states in blocks of this many bits.
    pub fn takes_blocks(&self, states: usize, bits: u32) -> bool {
        states == self.kind.coded_states && self.kind.bits().contains(&bits)
    }
}

//! The algorithms by name, their hyper-parameters and the checks of these.

use pyo3::prelude::*;

use super::arg::{flag, int, number, pair, text};
use crate::error::Error;
use crate::kernels::optim::{
    Adadelta, Adagrad, Adam, Adamax, Algorithm, Common, Ema, Lamb, Lion, MAX_STATES, MuonStep, NAdam, RAdam, RmsProp,
    Semantics, Sgd, Sum,
};

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

/// A state that an algorithm may have: its name, and the option that asks for it (None: it always has it).
pub type State = (&'static str, Option<&'static str>);

/// The specification of an algorithm: what it takes besides what all take. Python reads it from here.
pub struct Kind {
    pub function: &'static str,
    pub numbers: &'static [(&'static str, Allowed)],
    pub states: &'static [State],
    /// Which states can be negative.
    pub signed: [bool; MAX_STATES],
    /// Whether weight decay is of the parameter where no option says so.
    pub decoupled: bool,
    /// With how many states they may be in blocks, and of how many bits.
    pub blocks: (usize, &'static [u32]),
}

/// The names of what nearly all write and read, of one array and of a list.
pub const PARAM_AND_GRAD: [[&str; 2]; 2] = [["param", "params"], ["grad", "grads"]];

impl Kind {
    /// That of a function.
    pub fn of(function: &str) -> PyResult<&'static Self> {
        let kind = KINDS.iter().find(|kind| kind.function == function);
        kind.ok_or_else(|| Error::Value(format!("optim_step: unknown function {function:?}")).into())
    }

    /// The names of what is written and of what is read, of one array and of a list.
    pub fn names(&self) -> [[&'static str; 2]; 2] {
        match self.function {
            Ema::<f32>::NAME => [["average", "averages"], ["param", "params"]],
            <Sum as Algorithm<f32>>::NAME => [["total", "totals"], ["grad", "grads"]],
            _ => PARAM_AND_GRAD,
        }
    }

    /// The options that are its numbers: two betas are one.
    pub fn options(&self) -> Vec<&'static str> {
        let (betas, others) = self.numbers.split_at(if self.has_betas() { 2 } else { 0 });
        betas.iter().take(1).map(|_| "betas").chain(others.iter().map(|(name, _)| *name)).collect()
    }

    /// Whether one number follows a parameter like a state.
    pub fn has_product(&self) -> bool {
        self.numbers.iter().any(|(name, _)| *name == MU_PRODUCT)
    }

    fn has_betas(&self) -> bool {
        self.numbers.starts_with(&BETAS[..2])
    }
}

const BETAS: [(&str, Allowed); 3] = [("betas[0]", BelowOne), ("betas[1]", BelowOne), ("eps", NonNegative)];
const EXP_AVG: State = ("exp_avg", None);
const EXP_AVG_SQ: State = ("exp_avg_sq", None);
const MOMENTUM: State = ("momentum_buffer", Some("momentum"));

/// Of an algorithm whose states are never in blocks and whose weight decay is L2.
pub const PLAIN: Kind = Kind {
    function: "",
    numbers: &BETAS,
    states: &[EXP_AVG, EXP_AVG_SQ],
    signed: Adam::<f32, false>::SIGNED,
    decoupled: false,
    blocks: (0, &[]),
};
const ADAM: Kind = Kind {
    function: Adam::<f32, false>::NAME,
    states: &[EXP_AVG, EXP_AVG_SQ, ("max_exp_avg_sq", Some("amsgrad"))],
    blocks: (2, &[8, 4]),
    ..PLAIN
};

#[rustfmt::skip]
const KINDS: [Kind; 14] = [
    Kind {
        function: Sgd::<f32, true>::NAME, numbers: &[("momentum", NonNegative), ("dampening", NonNegative)], states: &[MOMENTUM],
        signed: Sgd::<f32, true>::SIGNED, blocks: (1, &[8]), ..PLAIN
    },
    Kind {
        function: Adagrad::<f32>::NAME, numbers: &[("lr_decay", NonNegative), ("eps", NonNegative)], states: &[("state_sum", None)],
        signed: Adagrad::<f32>::SIGNED, blocks: (1, &[8]), ..PLAIN
    },
    Kind {
        function: RmsProp::<f32, true, true>::NAME, numbers: &[("alpha", BelowOne), ("eps", NonNegative), ("momentum", NonNegative)],
        states: &[("square_avg", None), MOMENTUM, ("grad_avg", Some("centered"))],
        signed: RmsProp::<f32, true, true>::SIGNED, blocks: (1, &[8]), ..PLAIN
    },
    Kind {
        function: Adadelta::<f32>::NAME, numbers: &[("rho", BelowOne), ("eps", NonNegative)],
        states: &[("square_avg", None), ("acc_delta", None)], signed: Adadelta::<f32>::SIGNED, ..PLAIN
    },
    ADAM,
    Kind { function: Adam::<f32, false>::DECOUPLED_NAME, decoupled: true, ..ADAM },
    Kind {
        function: NAdam::<f32>::NAME,
        numbers: &[BETAS[0], BETAS[1], BETAS[2], ("momentum_decay", NonNegative), (MU_PRODUCT, Positive)], ..PLAIN
    },
    Kind { function: RAdam::<f32>::NAME, ..PLAIN },
    Kind { function: Adamax::<f32>::NAME, states: &[EXP_AVG, ("exp_inf", None)], ..PLAIN },
    Kind {
        function: Lion::<f32>::NAME, numbers: &[BETAS[0], BETAS[1]], states: &[EXP_AVG],
        signed: Lion::<f32>::SIGNED, decoupled: true, blocks: (1, &[8]),
    },
    Kind { function: Ema::<f32>::NAME, numbers: &[("decay", BelowOne)], states: &[], ..PLAIN },
    Kind { function: <Sum as Algorithm<f32>>::NAME, numbers: &[], states: &[], ..PLAIN },
    Kind { function: Lamb::<f32>::NAME, ..PLAIN },
    Kind {
        function: MuonStep::<f32>::NAME, numbers: &[("momentum", NonNegative), ("eps", NonNegative)],
        states: &[("momentum_buffer", None), ("direction", None), ("next", None)], decoupled: true, ..PLAIN
    },
];

/// The number of `nadam_step` that the step before returned.
pub const MU_PRODUCT: &str = "mu_product";

/// Everything but the arrays, checked.
pub struct Step {
    pub kind: &'static Kind,
    pub common: Common,
    pub numbers: Vec<f64>,
    pub number: u64,
    pub nesterov: bool,
    pub semantics: Semantics,
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
    pub fn new(function: &str, common: &GivenCommon<'_>, step: &GivenStep<'_>) -> PyResult<Self> {
        let kind = Kind::of(function)?;
        let common = self::common(kind, common)?;
        let mut given = step.0.clone();
        if kind.has_betas() {
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
        let nesterov = flag(function, "nesterov", &step.2)?;
        Ok(Self { kind, common, numbers, number, nesterov, semantics })
    }

    /// Whether the algorithm takes `states` states in blocks of this many bits: every one that does is compiled once more
    /// for each coding.
    pub fn takes_blocks(&self, states: usize, bits: u32) -> bool {
        let (count, of_bits) = self.kind.blocks;
        states == count && of_bits.contains(&bits)
    }
}

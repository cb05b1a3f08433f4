//! What is known of an algorithm outside of its loop: its names, what it takes, and how its step is run.

use super::coding::{DynamicMaps, FourBits, Minifloats};
use super::{Common, MAX_STATES, Plain, Semantics, Tensor};
use crate::real::Real;

/// Which numbers a hyper-parameter may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Allowed {
    /// From 0.
    NonNegative,
    /// Above 0.
    Positive,
    /// From 0 to below 1.
    BelowOne,
    /// Up to 0.
    NonPositive,
    /// From 1.
    AtLeastOne,
}

use Allowed::{BelowOne, NonNegative};

impl Allowed {
    /// Whether a number is one of them, and what they are.
    pub fn has(self, x: f64) -> (bool, &'static str) {
        match self {
            Self::NonNegative => ((0.0..f64::INFINITY).contains(&x), "at least 0 and finite"),
            Self::Positive => (x > 0.0 && x < f64::INFINITY, "greater than 0 and finite"),
            Self::BelowOne => ((0.0..1.0).contains(&x), "from 0 to below 1"),
            Self::NonPositive => (x <= 0.0 && x > f64::NEG_INFINITY, "at most 0 and finite"),
            Self::AtLeastOne => ((1.0..f64::INFINITY).contains(&x), "at least 1 and finite"),
        }
    }
}

/// A state that an algorithm may have: its name, and the option that asks for it (None: it always has it).
pub type State = (&'static str, Option<&'static str>);

/// The hyper-parameters of one step, in range.
#[derive(Debug)]
pub struct Hyper {
    /// What all have.
    pub common: Common,
    /// The algorithm's own, in the order of [`Kind::numbers`].
    pub numbers: Vec<f64>,
    /// The number of the step, from 1.
    pub step: u64,
    /// Whether momentum looks ahead.
    pub nesterov: bool,
    /// Whose formula.
    pub semantics: Semantics,
}

impl Hyper {
    /// The first two numbers of those that have betas.
    pub(super) fn betas(&self) -> [f64; 2] {
        [self.numbers[0], self.numbers[1]]
    }
}

/// Steps tensors of so many states; what the next step is given by some, else 0.
pub type Run<C, K> = fn(&Hyper, usize, Vec<Tensor<'_, C, K>>, usize) -> f64;

/// The step of one algorithm, for each way that states are stored; None where it has none in such blocks.
#[derive(Clone, Copy)]
pub struct Runs {
    /// Computed in float32.
    pub float32: Run<f32, Plain>,
    /// Computed in float64.
    pub float64: Run<f64, Plain>,
    /// In 8 bits: small floats, and dynamic maps.
    pub bits8: Option<(Run<f32, Minifloats>, Run<f32, DynamicMaps>)>,
    /// In 4 bits.
    pub bits4: Option<Run<f32, FourBits>>,
}

/// [`Runs`] of a function of the dtype; `8` or `8 and 4`: and of one of dtype and storage, for states in blocks of so many
/// bits; `or 8`: of one such for all. Every one is compiled once more for each.
macro_rules! runs {
    ($run:ident) => {
        $crate::kernels::optim::Runs { float32: $run::<f32>, float64: $run::<f64>, bits8: None, bits4: None }
    };
    ($run:ident or 8) => {
        $crate::kernels::optim::Runs { float32: $run::<f32, _>, float64: $run::<f64, _>, ..runs!(nothing, 8 $run) }
    };
    ($run:ident, 8 $coded:ident) => {
        $crate::kernels::optim::Runs { bits8: Some(($coded::<f32, _>, $coded::<f32, _>)), ..runs!($run) }
    };
    ($run:ident, 8 and 4 $coded:ident) => {
        $crate::kernels::optim::Runs { bits4: Some($coded::<f32, _>), ..runs!($run, 8 $coded) }
    };
}
pub(super) use runs;

/// The specification of an algorithm: what it takes besides what all take. Python reads it from here.
#[derive(Clone, Copy)]
pub struct Kind {
    /// The name of its step.
    pub function: &'static str,
    /// The names of what is written and of what is read, of one array and of a list.
    pub names: [[&'static str; 2]; 2],
    /// Its hyper-parameters.
    pub numbers: &'static [(&'static str, Allowed)],
    /// Its states.
    pub states: &'static [State],
    /// Which states can be negative.
    pub signed: [bool; MAX_STATES],
    /// Whether weight decay is of the parameter where no option says so.
    pub decoupled: bool,
    /// With how many states they may be in blocks.
    pub coded_states: usize,
    /// Its step.
    pub runs: Runs,
}

impl Kind {
    /// The options that are its numbers: two betas are one.
    pub fn options(&self) -> Vec<&'static str> {
        let (betas, others) = self.numbers.split_at(if self.has_betas() { 2 } else { 0 });
        betas.iter().take(1).map(|_| "betas").chain(others.iter().map(|(name, _)| *name)).collect()
    }

    /// Whether one number follows a parameter like a state.
    pub fn has_product(&self) -> bool {
        self.numbers.iter().any(|(name, _)| *name == MU_PRODUCT)
    }

    /// Whether its first two numbers are a pair.
    pub fn has_betas(&self) -> bool {
        self.numbers.starts_with(&BETAS[..2])
    }

    /// Of how many bits states in blocks may be.
    pub fn bits(&self) -> Vec<u32> {
        [(8, self.runs.bits8.is_some()), (4, self.runs.bits4.is_some())]
            .into_iter()
            .filter_map(|(bits, has)| has.then_some(bits))
            .collect()
    }
}

/// The number of `nadam_step` that the step before returned.
pub const MU_PRODUCT: &str = "mu_product";

pub(super) const BETAS: [(&str, Allowed); 3] = [("betas[0]", BelowOne), ("betas[1]", BelowOne), ("eps", NonNegative)];
pub(super) const EXP_AVG: State = ("exp_avg", None);
pub(super) const EXP_AVG_SQ: State = ("exp_avg_sq", None);
pub(super) const MOMENTUM: State = ("momentum_buffer", Some("momentum"));

pub(super) fn nothing<C: Real>(_: &Hyper, _: usize, _: Vec<Tensor<'_, C, Plain>>, _: usize) -> f64 {
    0.0
}

/// Of an algorithm with Adam's numbers and states, never in blocks, whose weight decay is L2. Its step is to be given.
pub const PLAIN: Kind = Kind {
    function: "",
    names: [["param", "params"], ["grad", "grads"]],
    numbers: &BETAS,
    states: &[EXP_AVG, EXP_AVG_SQ],
    signed: [true, false, false],
    decoupled: false,
    coded_states: 0,
    runs: runs!(nothing),
};

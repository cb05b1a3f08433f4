//! States in blocks of codes: `BlockState` objects, checked, and their conversion to numbers and back.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{Name, text};
use super::array::{Array, tuple};
use super::borrow::borrow;
use super::dtype::Dtype;
use super::error::{compute, entry};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::optim::{Blocks, Coding, decode, encode};

type Obj<'py> = Bound<'py, PyAny>;

/// The codings by name.
macro_rules! codings {
    ($($coding:ident),*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Coded {
            $($coding,)*
        }

        impl Coded {
            const ALL: &[Self] = &[$(Self::$coding),*];
        }

        /// Bind `$k` to the coding's type and evaluate `$body`.
        macro_rules! match_coding {
            ($given:expr, $k:ident => $body:expr) => {
                match $given {
                    $($crate::bindings::states::Coded::$coding => {
                        type $k = $crate::kernels::optim::$coding;
                        $body
                    })*
                }
            };
        }
    };
}
codings!(Minifloats, DynamicMaps, FourBits);

impl Coded {
    fn word(self) -> &'static str {
        match_coding!(self, K => <K as Coding>::NAME)
    }

    fn parse(name: Name, word: &str) -> PyResult<Self> {
        let known = Self::ALL.iter().copied().find(|coding| coding.word() == word);
        known.ok_or_else(|| {
            let text = format!("{name} must have coding 'minifloat', 'dynamic' or 'dynamic4', got {word:?}");
            Error::Value(text).into()
        })
    }

    /// Bits of a code.
    pub fn bits(self) -> u32 {
        match_coding!(self, K => K::BITS as u32)
    }

    /// Bytes and blocks of so many elements.
    fn sizes(self, elements: usize) -> (usize, usize) {
        match_coding!(self, K => ((elements * <K as Coding>::BITS).div_ceil(8), elements.div_ceil(<K as Coding>::BLOCK)))
    }
}

/// A state in blocks, checked against its own shape.
pub struct BlockState<'py> {
    pub coding: Coded,
    pub signed: bool,
    pub shape: Vec<usize>,
    codes: Array<'py>,
    absmax: Array<'py>,
}

impl<'py> BlockState<'py> {
    /// Whether this is one (a `modelopt_rs.optim.BlockState`).
    pub fn is(given: &Obj<'_>) -> bool {
        given.get_type().name().is_ok_and(|name| name == "BlockState")
    }

    pub fn new(name: Name, given: &Obj<'py>) -> PyResult<Self> {
        let word = text(name.function, "coding", &given.getattr("coding")?)?;
        let coding = Coded::parse(name, &word)?;
        let shape: Vec<usize> = given.getattr("shape")?.extract()?;
        let codes = Array::bytes_out(name, &given.getattr("codes")?)?;
        let absmax = Array::float_out(name, &given.getattr("absmax")?, None)?;
        absmax.expect_dtype(Dtype::F32, "float32 for absmax")?;
        let elements = shape.iter().try_fold(1usize, |n, &k| n.checked_mul(k));
        let (bytes, blocks) = coding.sizes(elements.filter(|&n| n < usize::MAX / 8).unwrap_or(usize::MAX / 8));
        if (codes.len(), absmax.len()) != (bytes, blocks) {
            let (got, got_blocks) = (codes.len(), absmax.len());
            let text = format!(
                "{name} must have {bytes} bytes of codes and {blocks} of absmax for its shape, got {got} and {got_blocks}"
            );
            return Err(Error::Shape(text).into());
        }
        Ok(Self { coding, signed: given.getattr("signed")?.extract()?, shape, codes, absmax })
    }

    pub fn arrays(&self) -> [&Array<'py>; 2] {
        [&self.codes, &self.absmax]
    }

    pub fn blocks(&mut self) -> Blocks<'_> {
        Blocks { codes: self.codes.slice_mut::<u8>(), absmax: self.absmax.slice_mut::<f32>() }
    }
}

/// Each state of all tensors.
pub enum States<'py> {
    Plain(Vec<Vec<Array<'py>>>),
    Coded(Coded, Vec<Vec<BlockState<'py>>>),
}

/// Refuse another dtype of a state than that of its parameter asks for.
pub fn expect_dtype_for(state: &Array<'_>, param: &Array<'_>) -> PyResult<()> {
    let (dtype, word) = if param.dtype == Dtype::F64 { (Dtype::F64, "float64") } else { (Dtype::F32, "float32") };
    // Written out only in an error: a dtype's text takes longer than the step of a small array.
    state.expect_dtype(dtype, format_args!("{word} for {} {}", param.name.arg, param.object_dtype()))
}

impl<'py> States<'py> {
    /// What was listed for each state, with whether it can be negative.
    pub fn new(listed: &[(bool, Vec<(Name, Obj<'py>)>)]) -> PyResult<Self> {
        let first = listed.iter().flat_map(|(_, state)| state).next();
        if !first.is_some_and(|(_, state)| BlockState::is(state)) {
            let arrays = |(_, state): &(bool, Vec<(Name, Obj<'py>)>)| {
                state.iter().map(|(name, object)| Array::float_inout(*name, object, None)).collect()
            };
            return Ok(Self::Plain(listed.iter().map(arrays).collect::<PyResult<_>>()?));
        }
        let mut coding = None;
        let mut all = Vec::with_capacity(listed.len());
        for (wants, state) in listed {
            let mut blocks = Vec::with_capacity(state.len());
            for (name, object) in state {
                if !BlockState::is(object) {
                    let got = object.get_type().name()?;
                    return Err(Error::Dtype(format!("{name} must be a BlockState like the others, got {got}")).into());
                }
                let state = BlockState::new(*name, object)?;
                let coding = *coding.get_or_insert(state.coding);
                if (state.coding, state.signed) != (coding, *wants) {
                    let (want, got, signed) = (coding.word(), state.coding.word(), state.signed);
                    let text = format!("{name} must be coded as {want}, signed={wants}, got {got}, signed={signed}");
                    return Err(Error::Value(text).into());
                }
                blocks.push(state);
            }
            all.push(blocks);
        }
        Ok(Self::Coded(coding.unwrap_or(Coded::Minifloats), all))
    }

    /// Shapes and dtypes of the states of tensor `i`.
    pub fn check(&self, i: usize, param: &Array<'py>) -> PyResult<()> {
        let is_wide = param.dtype == Dtype::F64;
        match self {
            Self::Plain(states) => {
                for array in states.iter().map(|states| &states[i]) {
                    array.expect_shape_of(param)?;
                    expect_dtype_for(array, param)?;
                }
            }
            Self::Coded(_, states) => {
                let what = "float32, float16 or bfloat16 for states in blocks";
                if is_wide {
                    let text = format!("{} must have dtype {what}, got float64", param.name);
                    return Err(Error::Dtype(text).into());
                }
                for state in states.iter().map(|states| &states[i]) {
                    if state.shape != param.shape() {
                        let (want, got) = (tuple(param.shape()), tuple(&state.shape));
                        let (name, like) = (state.arrays()[0].name, param.name.arg);
                        return Err(
                            Error::Shape(format!("{name} must have shape {want} like {like}, got {got}")).into()
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// Add all arrays.
    pub fn add_to<'a>(&'a self, all: &mut Vec<&'a Array<'py>>) {
        match self {
            Self::Plain(states) => all.extend(states.iter().flatten()),
            Self::Coded(_, states) => all.extend(states.iter().flatten().flat_map(BlockState::arrays)),
        }
    }
}

/// Write the numbers of a state to `out`, or (`store`) code `out` as the state.
#[pyfunction]
fn block_state<'py>(
    function: &str,
    state: &Obj<'py>,
    array: &Obj<'py>,
    store: bool,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry(function, || {
        let threads = resolve(function, threads)?;
        let (name, other) = (Name::new("BlockState", "state"), Name::new("BlockState", "array"));
        let mut state = BlockState::new(name, state)?;
        let mut array = if store { Array::float(other, array, None)? } else { Array::float_out(other, array, None)? };
        array.expect_dtype(Dtype::F32, "float32")?;
        array.expect_shape(&state.shape)?;
        let [codes, absmax] = state.arrays();
        let _borrow = borrow(&[codes, absmax, &array])?;
        let (py, signed, coding) = (array.object.py(), state.signed, state.coding);
        let blocks = state.blocks();
        if store {
            let x = array.slice::<f32>();
            compute(py, || match_coding!(coding, K => encode::<K>(x, signed, blocks, threads)))
        } else {
            let x = array.slice_mut::<f32>();
            compute(py, || match_coding!(coding, K => decode::<K>(blocks, signed, x, threads)))
        }
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(block_state, m)?)
}

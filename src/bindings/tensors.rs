//! Parameters with their gradients and states: one array of each, or lists of them, checked as a whole.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::arg::{Name, int};
use super::array::Array;
use super::dtype::{Dtype, Item, is_bf16, match_dtype};
use super::error::compute;
use super::quant::nonfinite_text;
use super::states::{BlockState, Coded, States};
use crate::error::{Error, Result};
use crate::kernels::optim::{Blocks, Coding, Grad, Kind, MAX_STATES, Narrow, Noise, Param, Plain, Tensor};
use crate::kernels::reduce::{Counts, reduce_all};
use crate::real::{Bf16, F16, Real};

type Obj<'py> = Bound<'py, PyAny>;

/// `(param, grad, the states or None in the order of their kind, master, seed of stochastic rounding)`.
pub type GivenTensors<'py> = (Obj<'py>, Obj<'py>, Vec<Obj<'py>>, Option<Obj<'py>>, Option<Obj<'py>>);

/// The same with the names that messages have for each; states with whether they can be negative.
pub struct Listed<'py> {
    pub params: Vec<(Name, Obj<'py>)>,
    pub grads: Vec<(Name, Obj<'py>)>,
    pub states: Vec<(bool, Vec<(Name, Obj<'py>)>)>,
    pub masters: Vec<(Name, Obj<'py>)>,
    /// Bits of masks, or None; empty where there are none at all.
    pub masks: Vec<(Name, Obj<'py>)>,
    pub seed: Option<Obj<'py>>,
}

impl<'py> Listed<'py> {
    /// What was given to a function of this kind.
    pub fn new(kind: &Kind, given: &GivenTensors<'py>) -> PyResult<Self> {
        let function = kind.function;
        let [of_params, of_grads] = kind.names;
        let params = listed(function, of_params, &given.0)?;
        let same_length = |what, items: &Vec<_>| expect_count(function, what, items.len(), of_params[1], params.len());
        let grads = listed(function, of_grads, &given.1)?;
        same_length(of_grads[1], &grads)?;
        let mut states = Vec::with_capacity(given.2.len());
        for (((name, asked_by), signed), arrays) in kind.states.iter().zip(kind.signed).zip(&given.2) {
            if asked_by.is_some() && arrays.is_none() {
                continue;
            }
            let arrays = listed(function, [name, name], arrays)?;
            same_length(name, &arrays)?;
            states.push((signed, arrays));
        }
        let mut masters = Vec::new();
        if let Some(given) = &given.3 {
            masters = listed(function, ["master", "masters"], given)?;
            same_length("masters", &masters)?;
        }
        Ok(Self { params, grads, states, masters, masks: Vec::new(), seed: given.4.clone() })
    }
}

/// The arrays of all tensors, checked.
pub struct Tensors<'py> {
    pub params: Vec<Array<'py>>,
    grads: Vec<Array<'py>>,
    states: States<'py>,
    /// Float32 copies of parameters in 16 bits; empty where there are none at all.
    masters: Vec<Option<Array<'py>>>,
    masks: Vec<Option<Array<'py>>>,
    seed: Option<u64>,
}

/// One array (or state in blocks), or a list of them; `single` and `many` are the names of the argument.
pub fn listed<'py>(
    function: &'static str,
    [single, many]: [&'static str; 2],
    given: &Obj<'py>,
) -> PyResult<Vec<(Name, Obj<'py>)>> {
    if given.is_instance_of::<PyList>() || given.is_instance_of::<PyTuple>() {
        let items = given.try_iter()?.enumerate();
        return items.map(|(i, item)| Ok((Name::of_list(function, many, i), item?))).collect();
    }
    if given.is_instance_of::<PyUntypedArray>() || BlockState::is(given) || given.hasattr("__dlpack__")? {
        return Ok(vec![(Name::new(function, single), given.clone())]);
    }
    let got = given.get_type().name()?;
    let text = format!("{function}: {single} must be a NumPy array or a list of NumPy arrays, got {got}");
    Err(PyTypeError::new_err(text))
}

/// Refuse a list of `n` arrays where another, `like`, has `want`.
pub fn expect_count(function: &str, what: &str, n: usize, like: &str, want: usize) -> Result<()> {
    if n == want {
        return Ok(());
    }
    Err(Error::Value(format!("{function}: {what} must have {want} arrays like {like}, got {n}")))
}

/// The seed of stochastic rounding.
pub fn check_seed(function: &str, seed: &Obj<'_>) -> PyResult<u64> {
    const RANGE: &str = "at least 0 and below 2^63";
    let seed = int(function, "rounding_seed", RANGE, seed)?;
    let refused = |_| Error::Value(format!("{function}: rounding_seed must be {RANGE}, got {seed}")).into();
    u64::try_from(seed).map_err(refused)
}

/// Whether it is an array of numbers of this kind and size, as `NumPy` spells them.
pub fn is_of(object: &Obj<'_>, kind: u8, itemsize: usize) -> bool {
    let array = object.cast::<PyUntypedArray>();
    array.is_ok_and(|array| (array.dtype().kind(), array.dtype().itemsize()) == (kind, itemsize))
}

/// As what an array is read: sums, averages and parameters of floats may stand beside bfloat16 bits.
pub fn bits<'a, 'py>(object: &Obj<'_>, dtype: Option<&'a Obj<'py>>) -> Option<&'a Obj<'py>> {
    dtype.filter(|word| !is_bf16(word) || ![2, 4, 8].iter().any(|&size| is_of(object, b'f', size)))
}

impl<'py> Tensors<'py> {
    /// Check all.
    pub fn new(kind: &Kind, listed: &Listed<'py>, dtype: Option<&Obj<'_>>) -> PyResult<Self> {
        let function = kind.function;
        let written = |(name, object): &(Name, Obj<'py>)| Array::float_inout(*name, object, bits(object, dtype));
        let read = |(name, object): &(Name, Obj<'py>)| Array::float(*name, object, bits(object, dtype));
        let params = listed.params.iter().map(written).collect::<PyResult<Vec<_>>>()?;
        let grads = listed.grads.iter().map(read).collect::<PyResult<Vec<_>>>()?;
        let states = States::new(&listed.states)?;
        let master = |(name, object): &(Name, Obj<'py>)| {
            (!object.is_none()).then(|| Array::float_inout(*name, object, None)).transpose()
        };
        let masters = listed.masters.iter().map(master).collect::<PyResult<_>>()?;
        let mask =
            |(name, object): &(Name, Obj<'py>)| (!object.is_none()).then(|| Array::bytes(*name, object)).transpose();
        let masks = listed.masks.iter().map(mask).collect::<PyResult<_>>()?;
        let seed = listed.seed.as_ref().map(|seed| check_seed(function, seed)).transpose()?;
        let tensors = Self { params, grads, states, masters, masks, seed };
        tensors.check()?;
        Ok(tensors)
    }

    /// Shapes and dtypes that go together.
    fn check(&self) -> PyResult<()> {
        let wide = |dtype| dtype == Dtype::F64;
        for (i, param) in self.params.iter().enumerate() {
            let first = &self.params[0];
            if wide(param.dtype) != wide(first.dtype) {
                let (got, want) = (param.object_dtype(), first.object_dtype());
                let text = format!(
                    "{} must be computed in the precision of {} ({want}), got {got}",
                    param.name, first.name.arg
                );
                return Err(Error::Dtype(text).into());
            }
            self.states.check(i, param)?;
            if let Some(master) = self.masters.get(i).and_then(Option::as_ref) {
                if !matches!(param.dtype, Dtype::F16 | Dtype::Bf16) {
                    let (got, want) = (param.object_dtype(), "float16 or bfloat16");
                    return Err(
                        Error::Dtype(format!("{} must have dtype {want} for a master, got {got}", param.name)).into()
                    );
                }
                master.expect_shape_of(param)?;
                master.expect_dtype(Dtype::F32, "float32")?;
            }
            if let Some(mask) = self.masks.get(i).and_then(Option::as_ref) {
                mask.expect_shape(&[param.len().div_ceil(8)])?;
            }
            let grad = &self.grads[i];
            grad.expect_shape_of(param)?;
            if wide(grad.dtype) != wide(param.dtype) {
                let what = if wide(param.dtype) { "float64" } else { "float32, float16 or bfloat16" };
                let (got, want) = (grad.object_dtype(), param.object_dtype());
                let text = format!("{} must have dtype {what} for {} {want}, got {got}", grad.name, param.name.arg);
                return Err(Error::Dtype(text).into());
            }
        }
        Ok(())
    }

    /// How many states each tensor has, and how they are coded.
    pub fn storage(&self) -> (usize, Option<Coded>) {
        match &self.states {
            States::Plain(states) => (states.len(), None),
            States::Coded(coding, states) => (states.len(), Some(*coding)),
        }
    }

    pub fn all(&self) -> Vec<&Array<'py>> {
        let beside = self.masters.iter().chain(&self.masks).flatten();
        let mut all: Vec<_> = self.params.iter().chain(&self.grads).chain(beside).collect();
        self.states.add_to(&mut all);
        all
    }

    /// Put what was stepped in a copy in its place.
    pub fn write_back(&self) -> PyResult<()> {
        let states = match &self.states {
            States::Plain(states) => &states[..],
            States::Coded(..) => &[],
        };
        let written = self.params.iter().chain(self.masters.iter().flatten()).chain(states.iter().flatten());
        written.filter(|array| array.original.is_some()).try_for_each(Array::write_back)
    }

    /// The first gradient that is not finite, and what it has.
    pub fn nonfinite(&self, py: Python<'_>, threads: usize) -> PyResult<Option<String>> {
        for grad in &self.grads {
            match_dtype!(grad, T => {
                let (x, shape) = (grad.slice::<T>(), grad.shape().to_vec());
                let found = compute(py, || {
                    let bad = reduce_all::<T, Counts>(x, threads)[1] > 0;
                    bad.then(|| nonfinite_text(x, &shape, threads))
                })?;
                if let Some(text) = found {
                    return Ok(Some(format!("{} has {text}", grad.name)));
                }
            });
        }
        Ok(None)
    }

    /// An error for it.
    pub fn refuse_nonfinite(&self, py: Python<'_>, threads: usize) -> PyResult<()> {
        let error = |text| Err(Error::Value(format!("{text}; nothing was changed")).into());
        self.nonfinite(py, threads)?.map_or(Ok(()), error)
    }

    /// The same as slices; `step` is the number of the step.
    pub fn slices<C: Real + Item>(&mut self, step: u64) -> Vec<Tensor<'_, C, Plain>> {
        let States::Plain(states) = &mut self.states else { unreachable!("looked at `storage`") };
        let mut states: Vec<_> = states.iter_mut().map(|states| states.iter_mut()).collect();
        let pairs = pairs(&mut self.params, &self.grads, (&mut self.masters, &self.masks), self.seed, step);
        let tensor = |(param, grad, mask)| {
            let mut slices: [&mut [C]; MAX_STATES] = Default::default();
            for (slice, states) in slices.iter_mut().zip(&mut states) {
                *slice = states.next().map(Array::slice_mut::<C>).unwrap_or_default();
            }
            Tensor { param, grad, states: slices, mask }
        };
        pairs.map(tensor).collect()
    }

    /// The same with states in blocks.
    pub fn blocks<K: Coding>(&mut self, step: u64) -> Vec<Tensor<'_, f32, K>> {
        let States::Coded(_, states) = &mut self.states else { unreachable!("looked at `storage`") };
        let mut states: Vec<_> = states.iter_mut().map(|states| states.iter_mut()).collect();
        let pairs = pairs(&mut self.params, &self.grads, (&mut self.masters, &self.masks), self.seed, step);
        let tensor = |(param, grad, mask)| {
            let mut blocks: [Blocks<'_>; MAX_STATES] = Default::default();
            for (block, states) in blocks.iter_mut().zip(&mut states) {
                *block = states.next().map(BlockState::blocks).unwrap_or_default();
            }
            Tensor { param, grad, states: blocks, mask }
        };
        pairs.map(tensor).collect()
    }
}

/// Parameters, gradients and masks as slices.
fn pairs<'a, C: Real + Item>(
    params: &'a mut [Array<'_>],
    grads: &'a [Array<'_>],
    (masters, masks): (&'a mut [Option<Array<'_>>], &'a [Option<Array<'_>>]),
    seed: Option<u64>,
    step: u64,
) -> impl Iterator<Item = (Param<'a, C>, Grad<'a, C>, Option<&'a [u8]>)> {
    let mut masters = masters.iter_mut();
    params.iter_mut().zip(grads).enumerate().map(move |(i, (param, grad))| {
        let master = masters.next().and_then(Option::as_mut).map(Array::slice_mut::<C>).unwrap_or_default();
        let noise = seed.map(|seed| Noise::new(seed, step, i as u64));
        let param = match param.dtype {
            Dtype::F16 => Param::F16(Narrow { stored: param.slice_mut::<F16>(), master, noise }),
            Dtype::Bf16 => Param::Bf16(Narrow { stored: param.slice_mut::<Bf16>(), master, noise }),
            _ => Param::Own(param.slice_mut::<C>()),
        };
        let grad = match grad.dtype {
            Dtype::F16 => Grad::F16(grad.slice::<F16>()),
            Dtype::Bf16 => Grad::Bf16(grad.slice::<Bf16>()),
            _ => Grad::Own(grad.slice::<C>()),
        };
        let mask = masks.get(i).and_then(Option::as_ref).map(Array::slice::<u8>);
        (param, grad, mask)
    })
}

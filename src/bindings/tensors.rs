//! Parameters with their gradients and states: one array of each, or lists of them, checked as a whole.

use numpy::PyUntypedArray;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::arg::Name;
use super::array::{Array, Dtype, Item, match_dtype};
use super::error::compute;
use super::quant::nonfinite_text;
use crate::error::Error;
use crate::kernels::optim::{Grad, MAX_STATES, Param, Tensor};
use crate::kernels::reduce::{Counts, reduce_all};
use crate::real::{Bf16, F16, Real};

type Obj<'py> = Bound<'py, PyAny>;

/// `(param, grad, states by name)`.
pub type GivenTensors<'py> = (Obj<'py>, Obj<'py>, Vec<(String, Obj<'py>)>);

/// The arrays of all tensors, checked.
pub struct Tensors<'py> {
    pub params: Vec<Array<'py>>,
    pub grads: Vec<Array<'py>>,
    pub states: Vec<Vec<Array<'py>>>,
}

/// One array, or a list of them; `single` and `many` are the names of the argument.
pub(super) fn listed<'py>(
    function: &'static str,
    [single, many]: [&'static str; 2],
    given: &Obj<'py>,
) -> PyResult<Vec<(Name, Obj<'py>)>> {
    if given.is_instance_of::<PyList>() || given.is_instance_of::<PyTuple>() {
        let items = given.try_iter()?.enumerate();
        return items.map(|(i, item)| Ok((Name::of_list(function, many, i), item?))).collect();
    }
    if given.is_instance_of::<PyUntypedArray>() {
        return Ok(vec![(Name::new(function, single), given.clone())]);
    }
    let got = given.get_type().name()?;
    let text = format!("{function}: {single} must be a NumPy array or a list of NumPy arrays, got {got}");
    Err(PyTypeError::new_err(text))
}

impl<'py> Tensors<'py> {
    /// `states`: the names of those that the function may have.
    pub fn new(
        function: &'static str,
        states: &[&'static str],
        given: &GivenTensors<'py>,
        dtype: Option<&str>,
    ) -> PyResult<Self> {
        let known = states;
        let params = listed(function, ["param", "params"], &given.0)?;
        let same_length = |what: &str, n: usize| {
            if n == params.len() {
                return Ok(());
            }
            let want = params.len();
            Err(Error::Value(format!("{function}: {what} must have {want} arrays like params, got {n}")))
        };
        let grads = listed(function, ["grad", "grads"], &given.1)?;
        same_length("grads", grads.len())?;
        let float = |(name, object): &(Name, Obj<'py>), dtype| Array::float_out(*name, object, dtype);
        let params_checked = params.iter().map(|item| float(item, dtype)).collect::<PyResult<Vec<_>>>()?;
        let grads = grads.iter().map(|(name, object)| Array::float(*name, object, dtype));
        let grads = grads.collect::<PyResult<Vec<_>>>()?;
        let mut states = Vec::with_capacity(given.2.len());
        for (state, arrays) in &given.2 {
            let name = *known.iter().find(|name| *name == state).expect("a state of this algorithm");
            let arrays = listed(function, [name, name], arrays)?;
            same_length(name, arrays.len())?;
            states.push(arrays.iter().map(|item| float(item, None)).collect::<PyResult<Vec<_>>>()?);
        }
        let tensors = Self { params: params_checked, grads, states };
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
            let state = if wide(param.dtype) { (Dtype::F64, "float64") } else { (Dtype::F32, "float32") };
            for array in self.states.iter().map(|states| &states[i]) {
                array.expect_shape_of(param)?;
                // Written out only in an error: a dtype's text takes longer than the step of a small array.
                let what = format_args!("{} for {} {}", state.1, param.name.arg, param.object_dtype());
                array.expect_dtype(state.0, what)?;
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

    pub fn all(&self) -> Vec<&Array<'py>> {
        self.params.iter().chain(&self.grads).chain(self.states.iter().flatten()).collect()
    }

    /// An error for the first gradient that is not finite.
    pub fn refuse_nonfinite(&self, py: Python<'_>, threads: usize) -> PyResult<()> {
        for grad in &self.grads {
            match_dtype!(grad, T => {
                let (x, shape) = (grad.slice::<T>(), &grad.shape);
                let found = compute(py, || {
                    let bad = reduce_all::<T, Counts>(x, threads)[1] > 0;
                    bad.then(|| nonfinite_text(x, shape, threads))
                })?;
                if let Some(text) = found {
                    return Err(Error::Value(format!("{} has {text}; nothing was changed", grad.name)).into());
                }
            });
        }
        Ok(())
    }

    /// The same as slices.
    pub fn slices<C: Real + Item>(&mut self) -> Vec<Tensor<'_, C>> {
        let mut states: Vec<_> = self.states.iter_mut().map(|states| states.iter_mut()).collect();
        let mut tensors = Vec::with_capacity(self.params.len());
        for (param, grad) in self.params.iter_mut().zip(&self.grads) {
            let mut slices: [&mut [C]; MAX_STATES] = Default::default();
            for (slice, states) in slices.iter_mut().zip(&mut states) {
                *slice = states.next().map(Array::slice_mut::<C>).unwrap_or_default();
            }
            let param = match param.dtype {
                Dtype::F16 => Param::F16(param.slice_mut::<F16>()),
                Dtype::Bf16 => Param::Bf16(param.slice_mut::<Bf16>()),
                _ => Param::Own(param.slice_mut::<C>()),
            };
            let grad = match grad.dtype {
                Dtype::F16 => Grad::F16(grad.slice::<F16>()),
                Dtype::Bf16 => Grad::Bf16(grad.slice::<Bf16>()),
                _ => Grad::Own(grad.slice::<C>()),
            };
            tensors.push(Tensor { param, grad, states: slices });
        }
        tensors
    }
}

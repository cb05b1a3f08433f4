//! Adafactor's step: its states have shapes of their own.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyModule, PyTuple};

use super::algorithms::{GivenCommon, common, step_number};
use super::arg::{Name, pair};
use super::array::{Array, tuple};
use super::dtype::{Dtype, Item};
use super::error::{ask_memory, compute, entry};
use super::optim::{Checked, run_all};
use super::options::nonfinite;
use super::states::expect_dtype_for;
use super::tensors::{Listed, Tensors, expect_count, listed};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::optim::{Adafactor, Allowed, Common, Factored, Kind, PLAIN, Tensor, adafactor};
use crate::real::Real;

type Obj<'py> = Bound<'py, PyAny>;

const FUNCTION: &str = Adafactor::NAME;
/// Its numbers and its states are not like those of others: they are checked here.
const KIND: Kind = Kind { function: FUNCTION, numbers: &[], states: &[], decoupled: true, ..PLAIN };
const STATES: [&str; 3] = ["row_var", "col_var", "variance"];

/// `(param, grad, row_var, col_var, variance, master, rounding_seed)`.
type Given<'py> = (Obj<'py>, Obj<'py>, Obj<'py>, Obj<'py>, Obj<'py>, Option<Obj<'py>>, Option<Obj<'py>>);
/// `(step, beta2_decay, eps, d)`.
type GivenNumbers<'py> = (Obj<'py>, Obj<'py>, Obj<'py>, Obj<'py>);
/// One call.
type GivenCall<'py> = (Given<'py>, GivenCommon<'py>, GivenNumbers<'py>);

/// The numbers, checked.
struct Numbers {
    step: u64,
    beta2_decay: f64,
    eps: (Option<f64>, f64),
    d: f64,
}

impl Numbers {
    fn new(given: &GivenNumbers<'_>) -> PyResult<Self> {
        let [first, second] = pair(FUNCTION, "eps", &given.2)?;
        let floor = (!first.is_none()).then(|| Allowed::NonNegative.check(FUNCTION, "eps[0]", &first)).transpose()?;
        Ok(Self {
            step: step_number(FUNCTION, &given.0)?,
            beta2_decay: Allowed::NonPositive.check(FUNCTION, "beta2_decay", &given.1)?,
            eps: (floor, Allowed::NonNegative.check(FUNCTION, "eps[1]", &second)?),
            d: Allowed::AtLeastOne.check(FUNCTION, "d", &given.3)?,
        })
    }
}

/// The second moments of one tensor: of rows and columns, or of elements.
enum Moments<'py> {
    Factored([Array<'py>; 2]),
    Full(Array<'py>),
}

impl<'py> Moments<'py> {
    /// Those of `param`, from what was given as each of `STATES`.
    fn new(param: &Array<'py>, names: [Name; 3], given: [Option<&Obj<'py>>; 3]) -> PyResult<Self> {
        let axes = param.shape().len();
        let state = |i: usize, shape: &[usize]| {
            let object = given[i].ok_or_else(|| {
                let (like, want) = (param.name.arg, tuple(shape));
                Error::Value(format!("{} must be given, of shape {want}, for {like} of {axes} axes", names[i]))
            })?;
            let array = Array::float_inout(names[i], object, None)?;
            array.expect_shape(shape)?;
            expect_dtype_for(&array, param)?;
            PyResult::Ok(array)
        };
        let absent = |i: usize| {
            let text = || format!("{} must be None for {} of {axes} axes", names[i], param.name.arg);
            if given[i].is_none() { Ok(()) } else { Err(Error::Value(text())) }
        };
        if axes < 2 {
            absent(0)?;
            absent(1)?;
            return Ok(Self::Full(state(2, param.shape())?));
        }
        absent(2)?;
        let [mut row, mut col] = [param.shape().to_vec(), param.shape().to_vec()];
        (row[axes - 1], col[axes - 2]) = (1, 1);
        Ok(Self::Factored([state(0, &row)?, state(1, &col)?]))
    }

    fn arrays(&self) -> &[Array<'py>] {
        match self {
            Self::Factored(arrays) => arrays,
            Self::Full(array) => std::slice::from_ref(array),
        }
    }
}

/// The states of all tensors, one by one.
fn moments<'py>(params: &[Array<'py>], is_list: bool, given: [&Obj<'py>; 3]) -> PyResult<Vec<Moments<'py>>> {
    let mut lists = Vec::with_capacity(STATES.len());
    for (name, given) in STATES.into_iter().zip(given) {
        let list = if given.is_none() { None } else { Some(listed(FUNCTION, [name, name], given)?) };
        if let Some(list) = &list {
            expect_count(FUNCTION, name, list.len(), "params", params.len())?;
        }
        lists.push(list);
    }
    let of_tensor = |(i, param): (usize, &Array<'py>)| {
        let name = |name| if is_list { Name::of_list(FUNCTION, name, i) } else { Name::new(FUNCTION, name) };
        let object = |j: usize| lists[j].as_ref().map(|list| &list[i].1).filter(|object| !object.is_none());
        Moments::new(param, STATES.map(name), [object(0), object(1), object(2)])
    };
    params.iter().enumerate().map(of_tensor).collect()
}

/// A checked call.
struct Ready<'py> {
    tensors: Tensors<'py>,
    moments: Vec<Moments<'py>>,
    common: Common,
    numbers: Numbers,
}

impl<'py> Ready<'py> {
    fn new((arrays, common, numbers): &GivenCall<'py>, dtype: Option<&Obj<'_>>) -> PyResult<Self> {
        let (param, grad, row_var, col_var, variance, master, seed) = arrays.clone();
        let (common, numbers) = (self::common(&KIND, common)?, Numbers::new(numbers)?);
        let is_list = param.is_instance_of::<PyList>() || param.is_instance_of::<PyTuple>();
        let listed = Listed::new(&KIND, &(param, grad, Vec::new(), master, seed))?;
        let tensors = Tensors::new(&KIND, &listed, dtype)?;
        let moments = moments(&tensors.params, is_list, [&row_var, &col_var, &variance])?;
        Ok(Self { tensors, moments, common, numbers })
    }

    fn elements(&self) -> usize {
        self.tensors.params.iter().map(Array::len).sum()
    }

    /// The slices of all, and the step.
    fn step<C: Real + Item>(&mut self, py: Python<'_>, threads: usize) -> PyResult<()> {
        let sizes: Vec<[usize; 2]> = self.tensors.params.iter().map(|param| last_axes(param.shape())).collect();
        let Numbers { step, beta2_decay, eps, d } = self.numbers;
        let (mut vectors, mut matrices) = (Vec::new(), Vec::new());
        let tensors = self.tensors.slices::<C>(step);
        for ((tensor, moments), [rows, cols]) in tensors.into_iter().zip(&mut self.moments).zip(sizes) {
            match moments {
                Moments::Full(variance) => {
                    let states = [variance.slice_mut::<C>(), &mut [], &mut []];
                    vectors.push(Tensor { states, ..tensor });
                }
                Moments::Factored([row, col]) => {
                    let (row, col) = (row.slice_mut::<C>(), col.slice_mut::<C>());
                    matrices.push(Factored { tensor, row, col, rows, cols });
                }
            }
        }
        let (common, rule) = (&self.common, Adafactor::new::<C>(&self.common, beta2_decay, eps, d, step));
        compute(py, || adafactor(vectors, matrices, common, rule, threads))
    }
}

impl<'py> Checked<'py> for Ready<'py> {
    fn tensors(&self) -> &Tensors<'py> {
        &self.tensors
    }

    fn all(&self) -> Vec<&Array<'py>> {
        let mut all = self.tensors.all();
        all.extend(self.moments.iter().flat_map(Moments::arrays));
        all
    }

    fn run(&mut self, py: Python<'_>, threads: usize) -> PyResult<f64> {
        match self.tensors.params.first().map(|param| param.dtype) {
            None => {}
            Some(Dtype::F64) => self.step::<f64>(py, threads)?,
            Some(_) => self.step::<f32>(py, threads)?,
        }
        Ok(0.0)
    }

    fn write_back(&self) -> PyResult<()> {
        self.tensors.write_back()?;
        self.moments.iter().flat_map(Moments::arrays).try_for_each(Array::write_back)
    }
}

/// The lengths of the last two axes, 1 where there are fewer.
fn last_axes(shape: &[usize]) -> [usize; 2] {
    match shape {
        [.., rows, cols] => [*rows, *cols],
        _ => [1, 1],
    }
}

/// Check all calls, then step them one after the other.
#[pyfunction]
fn adafactor_step<'py>(
    py: Python<'py>,
    calls: Vec<GivenCall<'py>>,
    nonfinite: &Obj<'py>,
    dtype: Option<&Obj<'_>>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry(FUNCTION, || {
        let threads = resolve(FUNCTION, threads)?;
        let ready = calls.iter().map(|call| Ready::new(call, dtype)).collect::<PyResult<Vec<_>>>()?;
        let nonfinite = self::nonfinite(FUNCTION, nonfinite, false)?;
        // Sums over parts of rows and columns, 8 bytes each: less than a byte for each element.
        ask_memory(FUNCTION, ready.iter().map(Ready::elements).sum())?;
        run_all(py, ready, nonfinite, threads)?;
        Ok(())
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(adafactor_step, m)?)
}

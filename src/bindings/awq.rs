//! Factors of a layer's inputs, by their magnitudes.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{Name, int};
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{ask_memory, compute, entry};
use super::gptq::{GivenSearch, check_weights, checked_code};
use super::prune::matrix_shape;
use super::quant::compute_dtype;
use super::spec::GivenSpec;
use super::threads::resolve;
use crate::error::{Error, Result};
use crate::kernels::awq::{self as kernel, Plan};
use crate::kernels::codes::Granularity;
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

const FUNCTION: &str = "awq_scales";

fn refused(text: &str) -> PyErr {
    Error::Value(format!("{FUNCTION}: {text}")).into()
}

/// One float64 for each input, finite and not negative.
fn of_inputs<'py>(arg: &'static str, given: &Obj<'py>, n: usize) -> PyResult<Array<'py>> {
    let array = Array::float(Name::new(FUNCTION, arg), given, None)?;
    array.expect_dtype(Dtype::F64, "float64")?;
    array.expect_shape(&[n])?;
    if array.slice::<f64>().iter().all(|x| (0.0..f64::INFINITY).contains(x)) {
        return Ok(array);
    }
    Err(refused(&format!("{arg} must be finite and not negative")))
}

#[pyfunction]
fn awq_scales<'py>(
    w: &Obj<'py>,
    inputs: (Obj<'py>, Obj<'py>),
    out: &Obj<'py>,
    spec: GivenSpec<'py>,
    how: GivenSearch<'py>,
    grid: &Obj<'py>,
    options: (Option<Obj<'py>>, Option<Obj<'py>>),
) -> PyResult<Vec<f64>> {
    entry(FUNCTION, || {
        let (py, threads) = (w.py(), resolve(FUNCTION, options.1.as_ref())?);
        let shape = matrix_shape(FUNCTION, w)?;
        let w = Array::float(Name::new(FUNCTION, "w"), w, options.0.as_ref())?;
        let (spec, uniform, how) = checked_code(FUNCTION, shape, &spec, how)?;
        let size = match spec.spec.granularity {
            Granularity::Group { size } => size,
            Granularity::Channel { .. } => shape[1],
            _ => return Err(refused("group_size or axis=0 must be given, got neither")),
        };
        let grid = int(FUNCTION, "grid", "from 1 to 10,000", grid)?;
        if !(1..=10_000).contains(&grid) {
            return Err(refused(&format!("grid must be from 1 to 10,000, got {grid}")));
        }
        let (magnitudes, counts) =
            (of_inputs("x_stats", &inputs.0, shape[1])?, of_inputs("x_stats", &inputs.1, shape[1])?);
        let mut out = Array::float_out(Name::new(FUNCTION, "out"), out, None)?;
        out.expect_shape(&[shape[1]])?;
        let (wanted, what) = compute_dtype(&w);
        out.expect_dtype(wanted, what)?;
        let _borrow = borrow(&[&w, &magnitudes, &counts, &out])?;
        // Weights of a tile of each thread, as they are, multiplied and rounded.
        ask_memory(FUNCTION, 8 * 3 * 64 * shape[1] * threads)?;
        let (magnitudes, counts) = (magnitudes.slice::<f64>(), counts.slice::<f64>());
        let plan = Plan { uniform, size: size.max(1), how, magnitudes, counts, grid: grid as usize };
        match_dtype!(w, T => {
            let (x, out) = (w.slice::<T>(), out.slice_mut::<<T as Element>::Compute>());
            compute(py, || -> Result<Vec<f64>> {
                check_weights(FUNCTION, x, shape, threads)?;
                Ok(kernel::awq(x, &plan, out, threads))
            })?.map_err(PyErr::from)
        })
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(awq_scales, m)?)
}

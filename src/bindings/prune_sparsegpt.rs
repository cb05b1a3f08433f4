//! Pruning with correction.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{Name, int, number};
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{ask_memory, compute, entry};
use super::prune::{Share, given_share, matrix_shape};
use super::pruned::{AnyJob, Call, Options, pruned};
use crate::error::{Error, Result};
use crate::kernels::elimination::Factor;
use crate::kernels::prune::{self as kernel, Groups};
use crate::kernels::reduce::{AbsMax, reduce_all};
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

const FUNCTION: &str = "sparsegpt";

fn check_damping(damping: &Obj<'_>) -> PyResult<f64> {
    let value = number(FUNCTION, "damping", damping)?;
    if value >= 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(Error::Value(format!("{FUNCTION}: damping must be finite and at least 0, got {value}")).into())
}

/// Columns of a block: no more than there are, and whole groups.
fn check_block(block: &Obj<'_>, n: usize, groups: Option<Groups>) -> PyResult<usize> {
    let given = int(FUNCTION, "block_size", "at least 1", block)?;
    if given < 1 {
        return Err(Error::Value(format!("{FUNCTION}: block_size must be at least 1, got {given}")).into());
    }
    Ok((given as usize).min(n.max(1)).next_multiple_of(groups.map_or(1, |groups| groups.group)))
}

/// How many weights go of each block of columns: as many of all blocks up to it as the share says.
fn counts((rows, n): (usize, usize), block: usize, sparsity: f64) -> Vec<u64> {
    let up_to = |column: usize| pruned(rows * column.min(n), sparsity);
    (0..n).step_by(block).map(|first| up_to(first + block) - up_to(first)).collect()
}

pub fn indefinite(function: &str, input: usize, damping: &str) -> Error {
    Error::Value(format!("{function}: hessian must be positive definite, is not at index {input}; raise {damping}"))
}

pub fn check_finite(py: Python<'_>, hessian: &Array<'_>, threads: usize) -> PyResult<()> {
    let h = hessian.slice::<f64>();
    if compute(py, || reduce_all::<f64, AbsMax>(h, threads)[0] >= f64::INFINITY_KEY)? {
        return Err(Error::Value(format!("{} must be finite, is not", hessian.name)).into());
    }
    Ok(())
}

#[pyfunction]
fn sparsegpt<'py>(
    w: &Obj<'py>,
    hessian: &Obj<'py>,
    share: Share<'py>,
    how: (Obj<'py>, Obj<'py>),
    out: &Obj<'py>,
    options: Options<'py>,
) -> PyResult<()> {
    entry(FUNCTION, || {
        let py = w.py();
        let [rows, n] = matrix_shape(FUNCTION, w)?;
        let hessian = Array::float(Name::new(FUNCTION, "hessian"), hessian, None)?;
        hessian.expect_dtype(Dtype::F64, "float64")?;
        hessian.expect_shape(&[n, n])?;
        let (sparsity, groups) = given_share(FUNCTION, &share, [rows, n])?;
        let (damping, block) = (check_damping(&how.0)?, check_block(&how.1, n, groups)?);
        let mut call = Call::new(FUNCTION, (w, out), None, &options)?;
        call.refuse_mask()?;
        let (_borrow, threads) = (borrow(&[&hessian])?, call.threads);
        check_finite(py, &hessian, threads)?;
        call.check_nan(py, true)?;
        if call.pair.out.len() == 0 {
            return Ok(());
        }
        // The factor; weights, scores and panels at 8 bytes each.
        ask_memory(FUNCTION, 8 * (n * n + rows * n + (rows + 2 * n) * block))?;
        let h = hessian.slice::<f64>();
        let factor: Result<Factor> = compute(py, || {
            Factor::new(h.to_vec(), n, damping, threads).map_err(|input| indefinite(FUNCTION, input, "damping"))
        })?;
        let factor = factor?;
        let counts = sparsity.map(|sparsity| counts((rows, n), block, sparsity));
        let share = match (&counts, groups) {
            (_, Some(Groups { keep, group, .. })) => kernel::Share::Groups(keep, group),
            (counts, None) => kernel::Share::Counts(counts.as_deref().unwrap_or_default()),
        };
        match_dtype!(call.pair.weights(), T => if let AnyJob::Weights(job) = call.pair.job::<T>() {
            compute(py, || kernel::sparsegpt(job, &factor, (block, share), threads))?;
        });
        call.finish(false)
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(sparsegpt, m)?)
}

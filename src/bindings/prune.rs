//! Pruning of single weights.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{Name, int, number};
use super::array::{Array, tuple};
use super::axes::axes;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype, ndarray};
use super::error::{ask_memory, compute, entry};
use super::tensors::{expect_count, listed};
use super::threads::resolve;
use crate::error::{Error, Result};
use crate::kernels::prune::{self as kernel, Groups, Job, LONG_ROW, Magnitude, Scaled};
use crate::real::{Element, Key};

use super::pruned::{AnyJob, Call, Nan, Options, Pair, check_sparsity, nan_error, nan_rule, pruned, with_job};

type Obj<'py> = Bound<'py, PyAny>;

#[pyfunction]
fn threshold<'py>(w: &Obj<'py>, eps: &Obj<'py>, out: &Obj<'py>, options: Options<'py>) -> PyResult<()> {
    entry("threshold", || {
        let py = w.py();
        let eps = number("threshold", "eps", eps)?;
        if !(eps >= 0.0) {
            return Err(Error::Value(format!("threshold: eps must be at least 0, got {eps}")).into());
        }
        let mut call = Call::new("threshold", (w, out), None, &options)?;
        call.check_nan(py, false)?;
        let threads = call.threads;
        let nan = match_dtype!(call.pair.weights(), T => {
            // The largest number that is no larger.
            let near = T::store_f64(eps);
            let bound = if near.to_f64() > eps { near.magnitude() - <T as Element>::Key::ONE } else { near.magnitude() };
            with_job!(call.pair.job::<T>(), job => compute(py, || kernel::keep_above(job, bound, threads))?)
        });
        call.finish(nan)
    })
}

/// The order of axes that puts `reduced` last.
fn last(reduced: &[usize], ndim: usize) -> Vec<usize> {
    (0..ndim).filter(|axis| !reduced.contains(axis)).chain(reduced.iter().copied()).collect()
}

#[pyfunction]
fn magnitude<'py>(
    w: &Obj<'py>,
    sparsity: &Obj<'py>,
    axis: &Obj<'py>,
    out: &Obj<'py>,
    options: Options<'py>,
) -> PyResult<()> {
    entry("magnitude", || {
        let py = w.py();
        let sparsity = check_sparsity("magnitude", sparsity)?;
        let shape = ndarray(Name::new("magnitude", "w"), w)?.shape().to_vec();
        let axes = axes("magnitude", "w", axis, shape.len())?;
        let order = axes.as_ref().map(|axes| last(axes, shape.len()));
        let mut call = Call::new("magnitude", (w, out), order, &options)?;
        call.check_nan(py, false)?;
        let n = axes.map_or(call.pair.out.len(), |axes| axes.iter().map(|&axis| shape[axis]).product());
        let (prune, threads) = (pruned(n, sparsity), call.threads);
        if call.pair.out.len() == 0 {
            return Ok(());
        }
        ask_memory("magnitude", n.min(LONG_ROW) * 8 * threads)?;
        let nan = match_dtype!(call.pair.weights(), T => with_job!(call.pair.job::<T>(), job => compute(py, || {
            if n <= LONG_ROW {
                return kernel::rows(job, n, prune as usize, Magnitude, threads);
            }
            job.pieces(n).map(|row| kernel::magnitude(vec![row], prune, threads)).fold(false, |a, b| a | b)
        })?));
        call.finish(nan)
    })
}

#[pyfunction]
fn global_magnitude<'py>(
    arrays: &Obj<'py>,
    sparsity: &Obj<'py>,
    out: &Obj<'py>,
    options: Options<'py>,
) -> PyResult<()> {
    const FUNCTION: &str = "global_magnitude";
    entry(FUNCTION, || {
        let (py, (nan, dtype, threads)) = (arrays.py(), options);
        let (nan, threads) = (nan_rule(FUNCTION, &nan)?, resolve(FUNCTION, threads.as_ref())?);
        let sparsity = check_sparsity(FUNCTION, sparsity)?;
        let sources = listed(FUNCTION, ["arrays", "arrays"], arrays)?;
        let targets = listed(FUNCTION, ["out", "out"], out)?;
        expect_count(FUNCTION, "out", targets.len(), "arrays", sources.len())?;
        let mut pairs = Vec::with_capacity(sources.len());
        for ((name, w), (out_name, out)) in sources.iter().zip(&targets) {
            let ndim = ndarray(*name, w)?.shape().len();
            pairs.push(Pair::new((*name, *out_name), w, out, (0..ndim).collect(), dtype.as_ref())?);
        }
        let Some((first, rest)) = pairs.split_first() else { return Ok(()) };
        for pair in rest {
            let like = format!("{} like arrays[0]", first.weights().object_dtype());
            pair.weights().expect_dtype(first.weights().dtype, like)?;
            if pair.out.dtype != first.out.dtype {
                let (want, got) = (first.out.object_dtype(), pair.out.object_dtype());
                let text = format!("{} must have dtype {want} like out[0], got {got}", pair.out.name);
                return Err(Error::Dtype(text).into());
            }
        }
        let _borrow = borrow(&pairs.iter().flat_map(Pair::arrays).collect::<Vec<_>>())?;
        if nan != Nan::Largest {
            for pair in &pairs {
                if pair.has_nan(py, threads)? {
                    return Err(nan_error(pair.weights(), &pair.order, threads));
                }
            }
        }
        let prune = pruned(pairs.iter().map(|pair| pair.out.len()).sum(), sparsity);
        match_dtype!(pairs[0].weights(), T => {
            let (mut weights, mut masks) = (Vec::new(), Vec::new());
            for pair in &mut pairs {
                match pair.job::<T>() {
                    AnyJob::Weights(job) => weights.push(job),
                    AnyJob::Mask(job) => masks.push(job),
                }
            }
            compute(py, || kernel::magnitude(weights, prune * u64::from(masks.is_empty()), threads))?;
            compute(py, || kernel::magnitude(masks, prune, threads))?;
        });
        pairs.iter().try_for_each(|pair| pair.out.write_back())
    })
}

/// `n` and `m`: how many stay of how many.
fn check_groups(function: &str, n: &Obj<'_>, m: &Obj<'_>) -> PyResult<(usize, usize)> {
    let m = int(function, "m", "from 2 to 32", m)?;
    if !(2..=32).contains(&m) {
        return Err(Error::Value(format!("{function}: m must be from 2 to 32, got {m}")).into());
    }
    let n = int(function, "n", "from 1 to below m", n)?;
    if !(1..m).contains(&n) {
        return Err(Error::Value(format!("{function}: n must be from 1 to below m ({m}), got {n}")).into());
    }
    Ok((n as usize, m as usize))
}

/// The groups of an array of this shape along `axis`.
fn plan_groups(function: &str, shape: &[usize], axis: usize, (keep, group): (usize, usize)) -> Result<Groups> {
    let n = shape[axis];
    if !n.is_multiple_of(group) {
        let text = format!("{function}: w must have a multiple of {group} elements along axis {axis}, got {n}");
        return Err(Error::Shape(text));
    }
    Ok(Groups { keep, group, n, inner: shape[axis + 1..].iter().product() })
}

#[pyfunction]
fn n_of_m<'py>(
    w: &Obj<'py>,
    keep: &Obj<'py>,
    group: &Obj<'py>,
    axis: &Obj<'py>,
    out: &Obj<'py>,
    options: Options<'py>,
) -> PyResult<()> {
    entry("n_of_m", || {
        let py = w.py();
        let sizes = check_groups("n_of_m", keep, group)?;
        let shape = ndarray(Name::new("n_of_m", "w"), w)?.shape().to_vec();
        let axis = match axes("n_of_m", "w", axis, shape.len())?.as_deref() {
            Some([axis]) => *axis,
            _ => return Err(Error::Value(format!("n_of_m: axis must be one axis of w, got {axis}")).into()),
        };
        let mut plan = plan_groups("n_of_m", &shape, axis, sizes)?;
        let mut call = Call::new("n_of_m", (w, out), None, &options)?;
        call.check_nan(py, false)?;
        if plan.inner == 1 {
            // Rows of whole groups: as one.
            plan.n = call.pair.out.len();
        }
        let threads = call.threads;
        let nan = match_dtype!(call.pair.weights(), T => {
            with_job!(call.pair.job::<T>(), job => compute(py, || kernel::groups(job, plan, Magnitude, threads))?)
        });
        call.finish(nan)
    })
}

/// Sparsity, or keep and group.
pub(super) type Share<'py> = (Option<Obj<'py>>, Option<(Obj<'py>, Obj<'py>)>);

/// The shape of a matrix (out, in).
pub(super) fn matrix_shape(function: &'static str, w: &Obj<'_>) -> PyResult<[usize; 2]> {
    let shape = ndarray(Name::new(function, "w"), w)?.shape().to_vec();
    shape.try_into().map_err(|shape: Vec<usize>| {
        let got = tuple(&shape);
        Error::Shape(format!("{function}: w must have 2 dimensions (out, in), got shape {got}")).into()
    })
}

/// A share of a matrix of this shape, checked.
pub(super) fn given_share(
    function: &str,
    (sparsity, groups): &Share<'_>,
    shape: [usize; 2],
) -> PyResult<(Option<f64>, Option<Groups>)> {
    let sparsity = sparsity.as_ref().map(|sparsity| check_sparsity(function, sparsity)).transpose()?;
    let groups = groups.as_ref().map(|(keep, group)| check_groups(function, keep, group)).transpose()?;
    let plan = groups.map(|sizes| plan_groups(function, &shape, 1, sizes)).transpose()?;
    Ok((sparsity, plan))
}

#[pyfunction]
fn wanda<'py>(
    w: &Obj<'py>,
    x_norm: &Obj<'py>,
    share: Share<'py>,
    out: &Obj<'py>,
    options: Options<'py>,
) -> PyResult<()> {
    entry("wanda", || {
        let py = w.py();
        let shape = matrix_shape("wanda", w)?;
        let n = shape[1];
        let x_norm = Array::float(Name::new("wanda", "x_stats"), x_norm, None)?;
        x_norm.expect_shape(&[n])?;
        let (sparsity, plan) = given_share("wanda", &share, shape)?;
        let mut call = Call::new("wanda", (w, out), None, &options)?;
        let double = call.pair.weights().dtype == Dtype::F64;
        let (want, what) = if double { (Dtype::F64, "float64") } else { (Dtype::F32, "float32") };
        x_norm.expect_dtype(want, format!("{what} for w {}", call.pair.weights().object_dtype()))?;
        let _borrow = borrow(&[&x_norm])?;
        let bad = match_dtype!(x_norm, C => {
            x_norm.slice::<C>().iter().map(|v| v.to_f64()).position(|v| !(v >= 0.0 && v.is_finite()))
        });
        if let Some(i) = bad {
            let text = format!("wanda: x_stats must be finite and at least 0, is not at index {i}");
            return Err(Error::Value(text).into());
        }
        call.check_nan(py, true)?;
        if call.pair.out.len() == 0 {
            return Ok(());
        }
        let threads = call.threads;
        ask_memory("wanda", n * 8 * threads)?;
        let prune = sparsity.map_or(0, |sparsity| pruned(n, sparsity)) as usize;
        match_dtype!(call.pair.weights(), T => {
            let scale = Scaled(x_norm.slice::<<T as Element>::Compute>());
            with_job!(call.pair.job::<T>(), job => compute(py, || match plan {
                Some(plan) => kernel::groups(job, plan, scale, threads),
                None => kernel::rows(job, n, prune, scale, threads),
            })?)
        });
        call.finish(false)
    })
}

/// Weights where `mask` is not 0.
#[pyfunction]
fn apply_mask<'py>(w: &Obj<'py>, mask: &Obj<'py>, out: &Obj<'py>, options: Options<'py>) -> PyResult<()> {
    entry("apply_mask", || {
        let py = w.py();
        let mut call = Call::new("apply_mask", (w, out), None, &options)?;
        call.refuse_mask()?;
        let mask = Array::bytes(Name::new("apply_mask", "mask"), mask)?;
        mask.expect_shape_of(call.pair.weights())?;
        let _borrow = borrow(&[&mask])?;
        let (threads, flags) = (call.threads, mask.slice::<u8>());
        match_dtype!(call.pair.weights(), T => if let AnyJob::Weights(Job { x, out }) = call.pair.job::<T>() {
            compute(py, || kernel::apply_mask(x, flags, out, threads))?;
        });
        call.finish(false)
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(threshold, m)?)?;
    m.add_function(wrap_pyfunction!(magnitude, m)?)?;
    m.add_function(wrap_pyfunction!(global_magnitude, m)?)?;
    m.add_function(wrap_pyfunction!(n_of_m, m)?)?;
    m.add_function(wrap_pyfunction!(wanda, m)?)?;
    m.add_function(wrap_pyfunction!(apply_mask, m)?)
}

//! Quantization with correction.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{Name, int, number, optional_int, shown};
use super::array::Array;
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{ask_memory, compute, entry};
use super::parts::{Arrays, GivenParts};
use super::prune::matrix_shape;
use super::prune_sparsegpt::{check_finite, indefinite};
use super::quant::{compute_dtype, nonfinite_text};
use super::scales::{check_stored, search_how};
use super::spec::{GivenSpec, Plan as SpecPlan, plan};
use super::threads::resolve;
use crate::error::{Error, Result};
use crate::kernels::codes::uniform::How;
use crate::kernels::codes::{Coding, Granularity, Spec, Uniform};
use crate::kernels::elimination::Cholesky;
use crate::kernels::gptq::{self as kernel, Job, Plan};
use crate::kernels::reduce::{Counts, reduce_all};
use crate::real::Element;

type Obj<'py> = Bound<'py, PyAny>;

const FUNCTION: &str = "gptq";

/// `(search, scale_dtype)`.
pub type GivenSearch<'py> = (Option<Obj<'py>>, Option<Obj<'py>>);

/// `(act_order, static_groups, damping, block_size)`.
type GivenPass<'py> = (Obj<'py>, Obj<'py>, Obj<'py>, Obj<'py>);

fn refused(text: String) -> PyErr {
    Error::Value(format!("{FUNCTION}: {text}")).into()
}

/// In which order columns are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// As they are.
    Given,
    /// The largest diagonal element of `h` first.
    Activation,
    /// The same for groups, and for the columns of each.
    Groups,
}

impl Order {
    fn parse(given: &Obj<'_>) -> PyResult<Self> {
        match (given.extract::<bool>(), given.extract::<String>()) {
            (Ok(false), _) => Ok(Self::Given),
            (Ok(true), _) => Ok(Self::Activation),
            (_, Ok(word)) if word == "groups" => Ok(Self::Groups),
            _ => Err(refused(format!("act_order must be False, True or 'groups', got {}", shown(given)))),
        }
    }
}

/// Checked numbers of a pass.
struct Pass {
    order: Order,
    fixed: bool,
    damping: f64,
    block: usize,
}

impl Pass {
    fn new(given: &GivenPass<'_>, grouped: bool) -> PyResult<Self> {
        let order = Order::parse(&given.0)?;
        let Ok(fixed) = given.1.extract::<bool>() else {
            return Err(refused(format!("static_groups must be True or False, got {}", shown(&given.1))));
        };
        let damping = number(FUNCTION, "damping", &given.2)?;
        if !(damping >= 0.0 && damping.is_finite()) {
            return Err(refused(format!("damping must be finite and at least 0, got {damping}")));
        }
        let block = int(FUNCTION, "block_size", "at least 1", &given.3)?;
        if block < 1 {
            return Err(refused(format!("block_size must be at least 1, got {block}")));
        }
        if grouped && order == Order::Activation && !fixed {
            let text = "static_groups must be True for act_order=True with group_size";
            return Err(refused(format!("{text}, got False; or pass act_order='groups', which keeps groups together")));
        }
        Ok(Self { order, fixed, damping, block: block as usize })
    }
}

/// A layer, checked.
struct Layer<'py> {
    shape: [usize; 2],
    w: Array<'py>,
    hessian: Array<'py>,
}

impl<'py> Layer<'py> {
    fn new(w: &Obj<'py>, hessian: &Obj<'py>, dtype: Option<&Obj<'_>>) -> PyResult<Self> {
        let shape = matrix_shape(FUNCTION, w)?;
        let w = Array::float(Name::new(FUNCTION, "w"), w, dtype)?;
        let hessian = Array::float(Name::new(FUNCTION, "hessian"), hessian, None)?;
        hessian.expect_dtype(Dtype::F64, "float64")?;
        hessian.expect_shape(&[shape[1]; 2])?;
        Ok(Self { shape, w, hessian })
    }
}

/// Refuse weights that are not finite.
pub fn check_weights<T: Element>(function: &str, x: &[T], shape: [usize; 2], threads: usize) -> Result<()> {
    if reduce_all::<T, Counts>(x, threads)[1] == 0 {
        return Ok(());
    }
    Err(Error::Value(format!("{function}: w must be finite, has {}", nonfinite_text(x, &shape, threads))))
}

/// In which order columns are taken, and the factor of them in it.
fn factor(h: &[f64], pass: &Pass, spec: Spec, threads: usize) -> Result<(Vec<usize>, Cholesky)> {
    let n = spec.cols;
    let groups = match (pass.order, spec.granularity) {
        (Order::Groups, Granularity::Group { size }) => Some(size),
        _ => None,
    };
    let (order, h) = if pass.order == Order::Given {
        ((0..n).collect(), h.to_vec())
    } else {
        let order = kernel::by_diagonal(h, n, groups);
        let h = kernel::reorder(h, &order, threads);
        (order, h)
    };
    match Cholesky::new(h, n, pass.damping, threads) {
        Ok(factor) => Ok((order, factor)),
        Err(place) => Err(indefinite(FUNCTION, order[place], "damping")),
    }
}

/// The code, and how its scales are found, checked against the shape of a layer.
pub fn checked_code(
    function: &str,
    shape: [usize; 2],
    given: &GivenSpec<'_>,
    how: GivenSearch<'_>,
) -> PyResult<(SpecPlan, Uniform, How)> {
    let refused = |text: String| PyErr::from(Error::Value(format!("{function}: {text}")));
    if let Some(axis) = optional_int(function, "axis", "None or 0", &given.1)?.filter(|axis| ![0, -2].contains(axis)) {
        return Err(refused(format!("axis must be None or 0, which has a scale for each row, got {axis}")));
    }
    let spec = plan(function, given, &shape)?;
    let Coding::Uniform(uniform) = spec.format.coding else {
        return Err(refused(format!("format must be one of uniform codes, got {:?}", spec.format.name)));
    };
    let how = search_how(function, &(function.into(), how.0, how.1))?;
    check_stored(function, uniform, how)?;
    Ok((spec, uniform, how))
}

#[pyfunction]
fn gptq<'py>(
    w: &Obj<'py>,
    hessian: &Obj<'py>,
    out: GivenParts<'py>,
    spec: GivenSpec<'py>,
    how: GivenSearch<'py>,
    pass_: GivenPass<'py>,
    options: (Option<Obj<'py>>, Option<Obj<'py>>),
) -> PyResult<()> {
    entry(FUNCTION, || {
        let (py, threads) = (w.py(), resolve(FUNCTION, options.1.as_ref())?);
        let layer = Layer::new(w, hessian, options.0.as_ref())?;
        let (spec, uniform, how) = checked_code(FUNCTION, layer.shape, &spec, how)?;
        let grouped = matches!(spec.spec.granularity, Granularity::Group { .. });
        let pass = Pass::new(&pass_, grouped)?;
        let mut arrays = Arrays::new(FUNCTION, &out, &spec, true)?;
        let (wanted, what) = compute_dtype(&layer.w);
        arrays.scale.expect_dtype(wanted, what)?;
        let _borrow = borrow(&[&layer.w, &layer.hessian].into_iter().chain(arrays.all()).collect::<Vec<_>>())?;
        check_finite(py, &layer.hessian, threads)?;
        // The factor, panels, and tiles of each thread, at 8 bytes each.
        ask_memory(FUNCTION, 8 * layer.shape[1] * (2 * layer.shape[1] + 192 * threads))?;
        match_dtype!(layer.w, T => {
            let (x, h, shape) = (layer.w.slice::<T>(), layer.hessian.slice::<f64>(), layer.shape);
            let (codes, params) = arrays.write_uniform::<<T as Element>::Compute>();
            compute(py, || -> Result<()> {
                check_weights(FUNCTION, x, shape, threads)?;
                let (order, factor) = factor(h, &pass, spec.spec, threads)?;
                let late = grouped && !pass.fixed;
                let plan = Plan { uniform, spec: spec.spec, how, order, late, block: pass.block };
                kernel::gptq(Job { x, codes, params }, &factor, &plan, threads);
                Ok(())
            })??;
        });
        Ok(())
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(gptq, m)?)
}

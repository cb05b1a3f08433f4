//! The Python module `modelopt_rs._core`: each function borrows, checks, matches the dtype, releases the GIL, calls.
//!
//! No arithmetic stands here. The documentation for users is in the Python face and in `_core.pyi`.

mod affine;
mod affine_params;
mod algorithms;
mod arg;
mod array;
mod array_kinds;
mod array_order;
mod awq;
mod axes;
mod borrow;
mod code_kind;
mod crop;
mod dlpack;
mod dtype;
mod embeddings;
mod error;
mod extremes;
mod files;
mod gptq;
mod image;
mod image_arrays;
mod linear;
mod optim;
mod optim_at_once;
mod optim_factored;
mod optimizers;
mod options;
mod order;
mod packing;
mod parts;
mod prune;
mod prune_sparsegpt;
mod prune_stream;
mod pruned;
mod quant;
mod reduce;
mod reduction;
mod result;
mod rows;
mod scales;
mod sparse;
mod spec;
mod states;
mod tensors;
mod threads;

use pyo3::prelude::*;

/// The compiled kernels.
#[pymodule(gil_used = true)]
fn _core(m: &Bound<'_, PyModule>) -> PyResult<()> {
    threads::init()?;
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::register(m)?;
    reduce::register(m)?;
    extremes::register(m)?;
    order::register(m)?;
    crop::register(m)?;
    quant::register(m)?;
    scales::register(m)?;
    gptq::register(m)?;
    affine::register(m)?;
    rows::register(m)?;
    embeddings::register(m)?;
    awq::register(m)?;
    linear::register(m)?;
    optim::register(m)?;
    states::register(m)?;
    optim_at_once::register(m)?;
    optim_factored::register(m)?;
    optimizers::register(m)?;
    dlpack::register(m)?;
    packing::register(m)?;
    prune::register(m)?;
    prune_sparsegpt::register(m)?;
    prune_stream::register(m)?;
    sparse::register(m)?;
    threads::register(m)?;
    image::register(m)?;
    files::register(m)
}

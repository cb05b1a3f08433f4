//! The kernels: pure Rust on slices, one file per operation, each ending with its tests.

pub mod affine;
pub mod awq;
pub mod close;
pub mod codes;
pub mod compare;
pub mod e2m1;
pub mod elimination;
pub mod embeddings;
pub mod gather;
pub mod gptq;
pub mod histogram;
pub mod image;
pub mod linear;
pub(crate) mod lines;
pub(crate) mod magnitude;
pub mod median;
pub mod number;
pub mod optim;
pub mod pack;
pub mod prune;
pub mod reduce;
pub mod row_dots;
pub mod select;
pub mod taylor;
pub mod top;
pub mod transpose;

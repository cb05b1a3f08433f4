//! The kernels: pure Rust on slices, one file per operation, each ending with its tests.

pub mod affine;
pub mod compare;
pub mod histogram;
pub mod optim;
pub mod pack;
pub mod prune;
pub mod reduce;
pub mod select;

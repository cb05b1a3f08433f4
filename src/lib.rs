//! Kernels that make trained models smaller and training steps faster on a CPU.
//!
//! The road of one datum, with no turning back: a Python call; the binding borrows and checks everything
//! (`bindings`); the GIL is released once; [`par`] cuts fixed chunks; `kernel!` ([`isa`]) picks the instruction
//! set once per chunk; a plain loop over slices ([`kernels`]); done.
//!
//! Kernels are total functions on slices: they cannot fail. Threads are outside, the instruction set inside.
//! Neither ever changes a result: chunk sizes are constants, partial results are combined in index order, every
//! instruction set runs the same text, and `a * b + c` is never contracted.

pub mod error;
pub mod files;
pub mod isa;
pub mod kernels;
pub mod par;
pub mod real;

#[cfg(feature = "python")]
mod bindings;

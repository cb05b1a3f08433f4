//! Parsers of untrusted model files. Safe Rust on byte slices: they reserve nothing that a file merely declares,
//! recurse nowhere, and return an error for whatever they do not fully understand.

pub mod safetensors;
mod text;

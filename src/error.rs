//! What can be wrong with a call. The bindings turn each kind into the Python exception of the same meaning.

use std::fmt;

/// A refused call; the text is the whole message that the user sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// A wrong type or dtype: `TypeError`.
    Dtype(String),
    /// A wrong shape: `ValueError`.
    Shape(String),
    /// Read-only, overlapping, not contiguous, in use: `ValueError`.
    Layout(String),
    /// A number out of its range or not finite: `ValueError`.
    Value(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Dtype(text) | Self::Shape(text) | Self::Layout(text) | Self::Value(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for Error {}

/// The result of what may be refused.
pub type Result<T> = std::result::Result<T, Error>;

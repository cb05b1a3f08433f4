//! Images as they are given.

use super::taps::Size;

/// The pixels of an image, channels side by side.
#[derive(Debug, Clone, Copy)]
pub enum Pixels<'a, P> {
    /// Row by row.
    Whole(&'a [P]),
    /// Rows that lie anywhere.
    Rows(&'a [&'a [P]]),
}

impl<'a, P> Pixels<'a, P> {
    /// A row of so many elements.
    #[inline(always)]
    pub(super) fn row(self, y: usize, width: usize) -> &'a [P] {
        match self {
            Self::Whole(x) => &x[y * width..][..width],
            Self::Rows(rows) => rows[y],
        }
    }
}

/// An image: its rows and columns, and its pixels.
pub type Image<'a, P> = (Size, Pixels<'a, P>);

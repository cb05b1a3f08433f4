//! What weights are ranked by.

use crate::real::{Element, Real};

/// The rank of a weight as a key, an integer that is not negative.
pub trait Score<T: Element>: Copy + Send + Sync {
    /// The key.
    type Key: crate::real::Key;
    /// The key of infinity: those above are NaN's.
    const INFINITY: Self::Key;
    /// The keys of the weights of a row from column `first` on.
    fn keys(self, x: &[T], first: usize, keys: &mut [Self::Key]);
}

/// |w|.
#[derive(Debug, Clone, Copy)]
pub struct Magnitude;

/// |w| times the number of its column, rounded once.
#[derive(Debug, Clone, Copy)]
pub struct Scaled<'a, C>(pub &'a [C]);

impl<T: Element> Score<T> for Magnitude {
    type Key = T::Key;
    const INFINITY: T::Key = T::INFINITY_KEY;
    #[inline(always)]
    fn keys(self, x: &[T], _: usize, keys: &mut [T::Key]) {
        for (key, x) in keys.iter_mut().zip(x) {
            *key = x.magnitude();
        }
    }
}

impl<T: Element> Score<T> for Scaled<'_, T::Compute> {
    type Key = <T::Compute as Element>::Key;
    const INFINITY: Self::Key = <T::Compute as Element>::INFINITY_KEY;
    #[inline(always)]
    fn keys(self, x: &[T], first: usize, keys: &mut [Self::Key]) {
        for ((key, x), &scale) in keys.iter_mut().zip(x).zip(&self.0[first..]) {
            *key = (x.load().abs() * scale).magnitude();
        }
    }
}

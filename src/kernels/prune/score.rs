//! What weights are ranked by.

use crate::isa::kernel;
use crate::real::{Element, Key, Real};

/// The rank of a weight as a key, an integer that is not negative.
pub trait Score<T: Element>: Copy + Send + Sync {
    /// The key.
    type Key: Key;
    /// The float whose magnitude it is.
    type Wide: Element<Key = Self::Key>;
    /// The key of infinity: those above are NaN's.
    const INFINITY: Self::Key = Self::Wide::INFINITY_KEY;
    /// The keys of the weights of a row from column `first` on; the largest.
    fn keys(self, x: &[T], first: usize, keys: &mut [Self::Key]) -> Self::Key;
}

/// |w|.
#[derive(Debug, Clone, Copy)]
pub struct Magnitude;

/// |w| in the dtype that it is computed in: weights of several dtypes have comparable keys.
#[derive(Debug, Clone, Copy)]
pub struct Computed;

/// |w| in f64.
#[derive(Debug, Clone, Copy)]
pub struct Double;

/// |w| times the number of its column, rounded once.
#[derive(Debug, Clone, Copy)]
pub struct Scaled<'a, C>(pub &'a [C]);

impl<T: Element> Score<T> for Magnitude {
    type Key = T::Key;
    type Wide = T;
    #[inline(always)]
    fn keys(self, x: &[T], _: usize, keys: &mut [T::Key]) -> T::Key {
        let mut largest = T::Key::ZERO;
        for (key, x) in keys.iter_mut().zip(x) {
            *key = x.magnitude();
            largest = largest.max(*key);
        }
        largest
    }
}

impl<T: Element> Score<T> for Computed {
    type Key = <T::Compute as Element>::Key;
    type Wide = T::Compute;
    #[inline(always)]
    fn keys(self, x: &[T], _: usize, keys: &mut [Self::Key]) -> Self::Key {
        let mut largest = Self::Key::ZERO;
        for (key, x) in keys.iter_mut().zip(x) {
            *key = x.load().magnitude();
            largest = largest.max(*key);
        }
        largest
    }
}

impl<T: Element> Score<T> for Double {
    type Key = <f64 as Element>::Key;
    type Wide = f64;
    #[inline(always)]
    fn keys(self, x: &[T], _: usize, keys: &mut [Self::Key]) -> Self::Key {
        let mut largest = Self::Key::ZERO;
        for (key, x) in keys.iter_mut().zip(x) {
            *key = x.to_f64().magnitude();
            largest = largest.max(*key);
        }
        largest
    }
}

impl<T: Element> Score<T> for Scaled<'_, T::Compute> {
    type Key = <T::Compute as Element>::Key;
    type Wide = T::Compute;
    #[inline(always)]
    fn keys(self, x: &[T], first: usize, keys: &mut [Self::Key]) -> Self::Key {
        let mut largest = Self::Key::ZERO;
        for ((key, x), &scale) in keys.iter_mut().zip(x).zip(&self.0[first..]) {
            *key = (x.load().abs() * scale).magnitude();
            largest = largest.max(*key);
        }
        largest
    }
}

kernel! {
    /// The keys of the weights of a row, from column `first` on, and the largest.
    pub(super) fn fill<T: Element, S: Score<T>>(x: &[T], score: S, first: usize, keys: &mut [S::Key]) -> S::Key {
        score.keys(x, first, keys)
    }
}

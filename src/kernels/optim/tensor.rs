//! What a step works on: a parameter, its gradient and its states, each as it is stored, cut in step with each other.

use std::ops::Range;

use super::MAX_STATES;
use super::noise::{self, Noise};
use super::storage::Storage;
use crate::isa::kernel;
use crate::real::{Bf16, Element, F16, Half, Real};

/// A parameter, in the dtype that it is stored in.
#[derive(Debug)]
pub enum Param<'a, C> {
    /// In the dtype that is computed in.
    Own(&'a mut [C]),
    /// As float16.
    F16(Narrow<'a, F16, C>),
    /// As bfloat16.
    Bf16(Narrow<'a, Bf16, C>),
}

/// A parameter in 16 bits.
#[derive(Debug)]
pub struct Narrow<'a, T, C> {
    /// What the model reads.
    pub stored: &'a mut [T],
    /// The same before it was rounded, which is then what is stepped; or empty.
    pub master: &'a mut [C],
    /// Round by chance instead of to nearest.
    pub noise: Option<Noise>,
}

impl<T, C> Narrow<'_, T, C> {
    #[inline(always)]
    fn split_off(&mut self, n: usize) -> Self {
        let noise = self.noise;
        self.noise = noise.map(|noise| noise.after(n));
        Self {
            stored: self.stored.split_off_mut(..n).unwrap_or_default(),
            master: self.master.split_off_mut(..n).unwrap_or_default(),
            noise,
        }
    }
}

/// A gradient, in the dtype that it is stored in.
#[derive(Debug, Clone, Copy)]
pub enum Grad<'a, C> {
    /// In the dtype that is computed in.
    Own(&'a [C]),
    /// As float16.
    F16(&'a [F16]),
    /// As bfloat16.
    Bf16(&'a [Bf16]),
}

/// One tensor of a list: arrays of equal length.
pub struct Tensor<'a, C: Real, K: Storage<C>> {
    /// Written.
    pub param: Param<'a, C>,
    /// Read.
    pub grad: Grad<'a, C>,
    /// Written; as many as the algorithm has, the others empty.
    pub states: [K::State<'a>; MAX_STATES],
    /// A bit for each element, the first in the low bits of a byte: where it is 0, the gradient counts as 0 and the
    /// parameter becomes 0. Not for what looks at whole tensors.
    pub mask: Option<&'a [u8]>,
}

impl<C: Real, K: Storage<C>> Tensor<'_, C, K> {
    /// How many elements.
    pub fn elements(&self) -> usize {
        match &self.param {
            Param::Own(x) => x.len(),
            Param::F16(x) => x.stored.len(),
            Param::Bf16(x) => x.stored.len(),
        }
    }

    /// Cut off the first `n` elements: a multiple of the storage's block, or all.
    #[inline(always)]
    #[must_use]
    pub fn split_off(&mut self, n: usize) -> Self {
        let param = match &mut self.param {
            Param::Own(x) => Param::Own(x.split_off_mut(..n).unwrap_or_default()),
            Param::F16(x) => Param::F16(x.split_off(n)),
            Param::Bf16(x) => Param::Bf16(x.split_off(n)),
        };
        let grad = match &mut self.grad {
            Grad::Own(x) => Grad::Own(x.split_off(..n).unwrap_or_default()),
            Grad::F16(x) => Grad::F16(x.split_off(..n).unwrap_or_default()),
            Grad::Bf16(x) => Grad::Bf16(x.split_off(..n).unwrap_or_default()),
        };
        let [a, b, c] = &mut self.states;
        let mask = self.mask.as_mut().map(|mask| mask.split_off(..n.div_ceil(8)).unwrap_or_default());
        Self { param, grad, states: [a, b, c].map(|state| K::split_off(state, n)), mask }
    }
}

/// The numbers of `x`, in `out`.
#[inline(always)]
pub fn load<'a, T: Element, C: Real>(x: &[T], out: &'a mut [C]) -> &'a mut [C] {
    widen(x, out);
    out
}

kernel! {
    /// A kernel of its own, as [`round`] is: part of each algorithm, both would be a third of its code.
    fn widen<T: Element, C: Real>(x: &[T], out: &mut [C]) {
        for (out, v) in out.iter_mut().zip(x) {
            *out = C::from_f64(v.to_f64());
        }
    }
}

kernel! {
    /// Round to nearest, or by chance.
    fn round<T: Half, C: Real>(wide: &[C], stored: &mut [T], noise: Option<Noise>) {
        match noise {
            None => {
                for (stored, v) in stored.iter_mut().zip(wide) {
                    *stored = v.store_as();
                }
            }
            Some(noise) => {
                let keys = noise.keys();
                for ((stored, v), i) in stored.iter_mut().zip(wide).zip(0u32..) {
                    *stored = T::store_by_chance(v.store_as(), noise::bits(keys, i));
                }
            }
        }
    }
}

impl<T: Half, C: Real> Narrow<'_, T, C> {
    /// The numbers of elements `range`, in `out` where they must be converted.
    #[inline(always)]
    pub fn read<'a>(&'a self, range: Range<usize>, out: &'a mut [C]) -> &'a [C] {
        if self.master.is_empty() { load(&self.stored[range], out) } else { &self.master[range] }
    }

    /// Elements `range` alone.
    #[inline(always)]
    pub fn part(&mut self, range: Range<usize>) -> Narrow<'_, T, C> {
        let master = if self.master.is_empty() { &mut [] } else { &mut self.master[range.clone()] };
        let noise = self.noise.map(|noise| noise.after(range.start));
        Narrow { stored: &mut self.stored[range], master, noise }
    }

    /// The numbers to be stepped: the master copy, or `buffer`.
    #[inline(always)]
    pub fn wide<'a>(&'a mut self, buffer: &'a mut [C]) -> &'a mut [C] {
        if self.master.is_empty() { load(self.stored, buffer) } else { self.master }
    }

    /// Round what was stepped.
    #[inline(always)]
    pub fn round(self, buffer: &[C]) {
        round(if self.master.is_empty() { buffer } else { self.master }, self.stored, self.noise);
    }
}

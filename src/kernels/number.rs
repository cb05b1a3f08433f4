//! Numbers of any dtype as floats: integers are widened a piece at a time, in the cache, and then computed like floats.

use crate::isa::kernel;
use crate::real::{Element, Real};

/// A number of an array: a float, or an integer that is computed in float64.
pub trait Number: Copy + Send + Sync + 'static {
    /// What it is computed as.
    type Real: Element;
    /// As float64: 64-bit integers are rounded, all others exact.
    fn as_f64(self) -> f64;
    /// The numbers as floats: themselves, or widened into `memory`.
    fn load<'a>(x: &'a [Self], memory: &'a mut Vec<Self::Real>) -> &'a [Self::Real];
}

impl<T: Element> Number for T {
    type Real = T;
    #[inline(always)]
    fn as_f64(self) -> f64 {
        self.to_f64()
    }
    fn load<'a>(x: &'a [T], _: &'a mut Vec<T>) -> &'a [T] {
        x
    }
}

macro_rules! number {
    ($($t:ty),*) => {$(
        impl Number for $t {
            type Real = f64;
            #[inline(always)]
            fn as_f64(self) -> f64 {
                self as f64
            }
            fn load<'a>(x: &'a [Self], memory: &'a mut Vec<f64>) -> &'a [f64] {
                memory.resize(x.len(), 0.0);
                widen(x, memory);
                memory
            }
        }
    )*};
}
number!(i8, u8, i16, u16, i32, u32, i64, u64);

kernel! {
    /// Numbers as float64.
    pub fn widen<T: Number>(x: &[T], out: &mut [f64]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x.as_f64();
        }
    }
}

/// The numbers as they are computed: themselves, or widened into `memory`.
pub fn computed<'a, T: Element>(x: &'a [T], memory: &'a mut Vec<T::Compute>) -> &'a [T::Compute] {
    if let Some(own) = T::as_computed(x) {
        return own;
    }
    memory.resize(x.len(), T::Compute::from_i16(0));
    load(x, memory);
    memory
}

/// Elements of two arrays that are widened at a time, a multiple of all lanes.
const WIDENED: usize = 1024;

/// Two arrays of one length as they are computed, from the first elements to the last: at once, or a piece at a time.
///
/// So loops over pairs are compiled for 4 pairs of types, not for 16.
pub fn each_computed<A: Element, B: Element>(
    x: &[A],
    y: &[B],
    memory: &mut (Vec<A::Compute>, Vec<B::Compute>),
    mut each: impl FnMut(&[A::Compute], &[B::Compute]),
) {
    if let (Some(x), Some(y)) = (A::as_computed(x), B::as_computed(y)) {
        return each(x, y);
    }
    for (x, y) in x.chunks(WIDENED).zip(y.chunks(WIDENED)) {
        each(computed(x, &mut memory.0), computed(y, &mut memory.1));
    }
}

kernel! {
    /// Numbers as they are computed, exactly.
    pub fn load<T: Element>(x: &[T], out: &mut [T::Compute]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x.load();
        }
    }
}

kernel! {
    /// Numbers as they are stored, each rounded once.
    pub fn store<C: Real, O: Element>(x: &[C], out: &mut [O]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x.store_as();
        }
    }
}

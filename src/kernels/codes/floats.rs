//! Inputs and outputs of any float as float32, which codes are made of, and the largest magnitudes of inputs.

use super::largest::absmax;
use super::{Granularity, Rows};
use crate::isa::kernel;
use crate::kernels::reduce::{self, Op};
use crate::par::{self, CHUNK};
use crate::real::{Bf16, Element, F16};

/// A float that is coded by way of float32.
pub trait Floats: Element {
    /// As float32, rounded once: themselves, or in `buffer`.
    fn floats<'a>(x: &'a [Self], buffer: &'a mut Vec<f32>) -> &'a [f32];
    /// Have `f` write float32, and round them once; it is told whether they are `out` itself.
    fn write(out: &mut [Self], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32], bool));
}

impl Floats for f32 {
    fn floats<'a>(x: &'a [f32], _buffer: &'a mut Vec<f32>) -> &'a [f32] {
        x
    }
    fn write(out: &mut [f32], _buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32], bool)) {
        f(out, true);
    }
}

macro_rules! floats {
    ($($t:ty),*) => {$(
        impl Floats for $t {
            fn floats<'a>(x: &'a [$t], buffer: &'a mut Vec<f32>) -> &'a [f32] {
                buffer.resize(x.len().max(buffer.len()), 0.0);
                to_float32(x, &mut buffer[..x.len()]);
                &buffer[..x.len()]
            }
            fn write(out: &mut [$t], buffer: &mut Vec<f32>, f: impl FnOnce(&mut [f32], bool)) {
                buffer.resize(out.len().max(buffer.len()), 0.0);
                f(&mut buffer[..out.len()], false);
                from_float32(buffer, out);
            }
        }
    )*};
}
floats!(f64, F16, Bf16);

kernel! {
    fn to_float32<T: Element>(x: &[T], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = f32::store_f64(x.to_f64());
        }
    }
}
kernel! {
    fn from_float32<T: Element>(x: &[f32], out: &mut [T]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = T::store_f32(x);
        }
    }
}

/// Without what is not finite: in `finite` 0 in its place, in `floats` 0 for NaN and the largest number for infinities.
pub fn sanitize<T: Element>(x: &[T], finite: &mut Vec<f32>, floats: &mut Vec<f32>) {
    let limit = f32::MAX as f64;
    finite.resize(x.len().max(finite.len()), 0.0);
    floats.resize(x.len().max(floats.len()), 0.0);
    for ((x, finite), number) in x.iter().zip(finite.iter_mut()).zip(floats.iter_mut()) {
        let wide = x.to_f64();
        *number = if wide.is_nan() { 0.0 } else { wide.clamp(-limit, limit) as f32 };
        *finite = if wide.is_finite() { *number } else { 0.0 };
    }
}

/// The largest magnitude of each part, as float32; what is not finite shows unless `O` leaves it out.
pub fn ranges<T: Element, O: Op<T, Scalar = T::Key> + Default>(
    x: &[T],
    granularity: Granularity,
    threads: usize,
) -> Vec<f32> {
    let (outer, channels, inner) = match granularity {
        Granularity::Channel { outer, channels, inner } => (outer, channels, inner),
        _ => (1, 1, x.len()),
    };
    let view = if inner == 1 {
        reduce::View { outer: 1, n: outer, inner: channels }
    } else {
        reduce::View { outer: outer * channels, n: inner, inner: 1 }
    };
    let mut largest = vec![0.0f32; channels];
    for (state, i) in reduce::reduce_axis::<T, O>(x, view, threads).into_iter().zip((0..channels).cycle()) {
        // A range of nothing has its ends the wrong way round.
        if state[0] <= state[1] {
            for key in state {
                let magnitude = T::from_key(key).to_f64().abs() as f32;
                largest[i] = if magnitude > largest[i] || magnitude.is_nan() { magnitude } else { largest[i] };
            }
        }
    }
    largest
}

kernel! {
    /// The largest of magnitudes; a NaN is above all.
    fn largest(absmax: &[f32]) -> i32 {
        let mut largest = 0;
        for absmax in absmax {
            largest = largest.max(absmax.to_bits() as i32);
        }
        largest
    }
}

/// Whether largest magnitudes are of finite numbers.
pub fn are_finite(absmax: &[f32]) -> bool {
    largest(absmax) < f32::INFINITY_KEY
}

/// Whether all is finite, as float32.
pub fn is_finite<T: Floats>(x: &[T], threads: usize) -> bool {
    let finite = par::map(threads, x.chunks(CHUNK), |x| {
        let (mut floats, mut out) = (vec![], [0.0]);
        absmax(T::floats(x, &mut floats), Rows { row: x.len(), size: x.len() }, &mut out);
        are_finite(&out)
    });
    finite.into_iter().all(|finite| finite)
}

/// The flat index of the first number that is finite but not as a float32.
pub fn first_beyond_float32<T: Element>(x: &[T]) -> Option<usize> {
    x.iter().position(|x| x.to_f64().is_finite() && (x.to_f64() as f32).is_infinite())
}

//! Weights under a mask that is given.

use crate::isa::kernel;
use crate::par::{self, CHUNK};
use crate::real::Element;

kernel! {
    fn masked<T: Element>(x: &[T], mask: &[u8], out: &mut [T]) {
        for ((out, &x), &stays) in out.iter_mut().zip(x).zip(mask) {
            *out = if stays != 0 { x } else { T::from_bits64(0) };
        }
    }
}
kernel! {
    fn masked_in_place<T: Element>(x: &mut [T], mask: &[u8]) {
        for (x, &stays) in x.iter_mut().zip(mask) {
            *x = if stays != 0 { *x } else { T::from_bits64(0) };
        }
    }
}

/// Weights where the byte of the mask is not 0, else 0; in place where there is no `x`.
pub fn apply_mask<T: Element>(x: Option<&[T]>, mask: &[u8], out: &mut [T], threads: usize) {
    let items = out.chunks_mut(CHUNK).zip(mask.chunks(CHUNK)).enumerate();
    par::for_each(threads, items, |(i, (out, mask))| match x {
        Some(x) => masked(&x[i * CHUNK..][..out.len()], mask, out),
        None => masked_in_place(out, mask),
    });
}

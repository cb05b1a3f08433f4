//! Rows of a resized image: first down the columns, over whole rows, then along the row.
//!
//! Both are sums of products in f32, in the order of the pixels, rounded after each; levels of a uint8 image are then rounded
//! to uint8 again, half to even, as every program that resizes such images does.

use super::pixels::Pixels;
use super::taps::Taps;
use crate::isa::kernel;
use crate::real::{Bf16, Element, F16, Real};

/// What pixels of an image are.
pub trait Pixel: Copy + Send + Sync + 'static {
    /// What pixels of it are once they are resized: uint8 again, else float32.
    type Row: Row;
    /// In float32.
    fn number(self) -> f32;
    /// Pixels as those of a resized image, where they are the same type.
    fn as_rows(x: &[Self]) -> Option<&[Self::Row]>;
}

/// What pixels of a resized image are.
pub trait Row: Pixel {
    /// Nothing.
    const ZERO: Self;
    /// Of a weighted sum.
    fn of_sum(sum: f32) -> Self;
    /// Levels, where that is what they are.
    fn as_levels(x: &[Self]) -> Option<&[u8]>;
}

impl Pixel for u8 {
    type Row = u8;
    #[inline(always)]
    fn number(self) -> f32 {
        self as i32 as f32
    }
    fn as_rows(x: &[u8]) -> Option<&[u8]> {
        Some(x)
    }
}

impl Row for u8 {
    const ZERO: u8 = 0;
    #[inline(always)]
    fn of_sum(sum: f32) -> u8 {
        sum.round_to_byte()
    }
    fn as_levels(x: &[u8]) -> Option<&[u8]> {
        Some(x)
    }
}

impl Pixel for f32 {
    type Row = f32;
    #[inline(always)]
    fn number(self) -> f32 {
        self
    }
    fn as_rows(x: &[f32]) -> Option<&[f32]> {
        Some(x)
    }
}

impl Row for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    fn of_sum(sum: f32) -> f32 {
        sum
    }
    fn as_levels(_: &[f32]) -> Option<&[u8]> {
        None
    }
}

macro_rules! converted {
    ($($t:ty => |$x:ident| $number:expr),*) => {$(
        impl Pixel for $t {
            type Row = f32;
            #[inline(always)]
            fn number(self) -> f32 {
                let $x = self;
                $number
            }
            fn as_rows(_: &[$t]) -> Option<&[f32]> {
                None
            }
        }
    )*};
}
converted!(f64 => |x| x as f32, F16 => |x| x.load(), Bf16 => |x| x.load());

kernel! {
    /// Numbers in float32.
    fn widen<P: Pixel>(x: &[P], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x.number();
        }
    }
}

kernel! {
    /// Two weighted numbers.
    fn pair<P: Pixel>(x: [&[P]; 2], weights: [f32; 2], out: &mut [f32]) {
        for ((out, &a), &b) in out.iter_mut().zip(x[0]).zip(x[1]) {
            *out = weights[0] * a.number() + weights[1] * b.number();
        }
    }
}

kernel! {
    /// One more weighted number.
    fn add<P: Pixel>(x: &[P], weight: f32, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out += weight * x.number();
        }
    }
}

/// A row of `width` numbers at `first` out of rows of `stride`, from row `start` on, with these weights.
pub fn down<P: Pixel>(
    x: Pixels<'_, P>,
    stride: usize,
    first: usize,
    (start, weights): (usize, &[f32]),
    out: &mut [f32],
) {
    let width = out.len();
    let row = |k: usize| &x.row(start + k, stride)[first..][..width];
    match *weights {
        // One pixel has a weight of 1: times 1 is itself.
        [] | [_] => widen(row(0), out),
        [a, b] => pair([row(0), row(1)], [a, b], out),
        [a, b, ref more @ ..] => {
            pair([row(0), row(1)], [a, b], out);
            for (k, &weight) in more.iter().enumerate() {
                add(row(k + 2), weight, out);
            }
        }
    }
}

/// Along a row whose first pixel is pixel `first` of the image.
#[inline(always)]
fn along_of<R: Row, const C: usize>(x: &[f32], first: usize, taps: &Taps, out: &mut [R]) {
    let x = x.as_chunks::<C>().0;
    for (i, out) in out.as_chunks_mut::<C>().0.iter_mut().enumerate() {
        let (start, weights) = taps.of(i);
        let x = &x[start - first..][..weights.len()];
        let mut sum = [0.0; C];
        match (x, weights) {
            // One pixel has a weight of 1.
            (&[pixel], _) => sum = pixel,
            (&[a, b], &[v, w]) => {
                for c in 0..C {
                    sum[c] = v * a[c] + w * b[c];
                }
            }
            _ => {
                for (k, (pixel, &weight)) in x.iter().zip(weights).enumerate() {
                    for c in 0..C {
                        let term = weight * pixel[c];
                        sum[c] = if k == 0 { term } else { sum[c] + term };
                    }
                }
            }
        }
        for c in 0..C {
            out[c] = R::of_sum(sum[c]);
        }
    }
}

kernel! {
    /// Along a row of 1, 3 or 4 channels whose first pixel is pixel `first` of the image.
    pub fn along<R: Row>(x: &[f32], first: usize, channels: usize, taps: &Taps, out: &mut [R]) {
        match channels {
            1 => along_of::<R, 1>(x, first, taps, out),
            3 => along_of::<R, 3>(x, first, taps, out),
            _ => along_of::<R, 4>(x, first, taps, out),
        }
    }
}

kernel! {
    /// The numbers of a resized row whose columns stay as they are.
    pub fn round<R: Row>(x: &[f32], out: &mut [R]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = R::of_sum(x);
        }
    }
}

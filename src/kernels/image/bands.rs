//! The output, cut into the pieces of work.

use std::iter::Enumerate;
use std::slice::{ChunksExactMut, ChunksMut};

use super::steps::CHANNELS;
use super::taps::Size;
use crate::par::CHUNK;

/// Rows of one image of the output, in slices of its channels (side by side: in the first).
pub struct Band<'a, T> {
    /// Which image.
    pub image: usize,
    /// Which row is its first.
    pub first: usize,
    /// A slice of each channel; where they lie side by side, the first is of all.
    pub planes: [&'a mut [T]; CHANNELS],
}

/// The output in bands, image after image.
pub struct Bands<'a, T> {
    images: Enumerate<ChunksExactMut<'a, T>>,
    image: usize,
    planes: [ChunksMut<'a, T>; CHANNELS],
    band: usize,
    /// Elements of a plane and of a band of it; rows of a band; planes; bands still to come.
    plane: usize,
    elements: usize,
    rows: usize,
    apart: usize,
    left: usize,
}

impl<'a, T> Bands<'a, T> {
    /// Of images of `size` with `channels`.
    pub fn new(planar: bool, size: Size, channels: usize, out: &'a mut [T]) -> Self {
        let [height, width] = size;
        let (apart, line) = if planar { (channels, width) } else { (1, width * channels) };
        let plane = height * line;
        let rows = (CHUNK / (width * channels)).clamp(1, height);
        let images = out.chunks_exact_mut(plane * apart);
        let left = images.len() * height.div_ceil(rows);
        let none = || [].chunks_mut(1);
        let planes = [none(), none(), none(), none()];
        Self { images: images.enumerate(), image: 0, planes, band: 0, plane, elements: rows * line, rows, apart, left }
    }
}

impl<'a, T> Iterator for Bands<'a, T> {
    type Item = Band<'a, T>;

    fn next(&mut self) -> Option<Band<'a, T>> {
        if self.planes[0].len() == 0 {
            let (image, pixels) = self.images.next()?;
            let mut planes = pixels.chunks_exact_mut(self.plane);
            let elements = self.elements;
            self.planes = std::array::from_fn(|c| {
                let plane = if c < self.apart { planes.next() } else { None };
                plane.unwrap_or_default().chunks_mut(elements)
            });
            (self.image, self.band) = (image, 0);
        }
        let planes = self.planes.each_mut().map(|plane| plane.next().unwrap_or_default());
        let first = self.band * self.rows;
        self.band += 1;
        self.left -= 1;
        Some(Band { image: self.image, first, planes })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> ExactSizeIterator for Bands<'_, T> {}

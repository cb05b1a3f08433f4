//! A scale for each tile of a matrix.

use super::quantize::{Call, Out, Scratch};
use super::{Floats, NonFinite, Rows, ScalesMut};
use crate::par;

impl Call<'_> {
    /// Tiles of `[rows, cols]` in matrices of `[height, width]`.
    pub(super) fn tiles<T: Floats>(
        &self,
        x: &[T],
        [height, width]: [usize; 2],
        [rows, cols]: [usize; 2],
        mut out: Out<'_, T>,
        mut scale: Option<ScalesMut<'_>>,
    ) -> Result<(), NonFinite> {
        let mut items = vec![];
        for matrix in x.chunks(height * width) {
            for band in matrix.chunks(rows.saturating_mul(width)) {
                let scale = scale.as_mut().map(|scale| scale.split_off(width.div_ceil(cols)));
                items.push((band, out.split_off(band.len(), band.len()), scale));
            }
        }
        let finite = par::map(self.threads, items.into_iter(), |(band, mut out, mut scale)| {
            let (mut tile, mut scratch) = (vec![], Scratch::default());
            let mut finite = true;
            for first in (0..width).step_by(cols) {
                let across = cols.min(width - first);
                tile.clear();
                band.chunks(width).for_each(|row| tile.extend_from_slice(&row[first..first + across]));
                let scale = scale.as_mut().map(|scale| scale.split_off(1));
                finite &= self.tile(&tile, [first, across, width], &mut out, scale, &mut scratch);
            }
            finite
        });
        if finite.into_iter().all(|finite| finite) { Ok(()) } else { Err(NonFinite) }
    }

    /// One tile: its rows are `width` apart in what is written, the first at `first`.
    fn tile<T: Floats>(
        &self,
        tile: &[T],
        [first, across, width]: [usize; 3],
        out: &mut Out<'_, T>,
        scale: Option<ScalesMut<'_>>,
        scratch: &mut Scratch,
    ) -> bool {
        let all = Rows { row: tile.len(), size: tile.len() };
        let mut codes = vec![0; tile.len()];
        match out {
            Out::Codes(out) => {
                let finite = self.groups(tile, all, Out::Codes(&mut codes), scale, scratch);
                for (row, codes) in out.chunks_mut(width).zip(codes.chunks(across)) {
                    row[first..first + across].copy_from_slice(codes);
                }
                finite
            }
            Out::Values(out) => {
                let mut values = tile.to_vec();
                let finite = self.groups(tile, all, Out::Values(&mut values), scale, scratch);
                for (row, values) in out.chunks_mut(width).zip(values.chunks(across)) {
                    row[first..first + across].copy_from_slice(values);
                }
                finite
            }
        }
    }
}

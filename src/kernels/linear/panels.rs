//! Weights as panels: packed before, or from their rows on the way.

use std::ops::Range;

use super::form::{Form, LANES, LINE};
use crate::kernels::codes::uniform::ParamsRef;
use crate::kernels::codes::{Scheme, Uniform};
use crate::kernels::pack::packed_len;
use crate::kernels::row_dots::Bytes;
use crate::kernels::transpose;
use crate::par;
use crate::real::Real;

/// Where the lines of a panel come from.
pub trait Panels: Sync {
    /// How many lines [`Panels::lines`] needs to work with.
    fn scratch(&self, form: &Form) -> usize;
    /// Rows where they lie, and what they have beside their codes, if they are bytes and have one scale each.
    fn rows(&self, _form: &Form, _rows: Range<usize>, _numbers: &mut Numbers) -> Option<Bytes<'_>> {
        None
    }
    /// The lines of a panel.
    fn lines<'a>(&'a self, form: &Form, panel: usize, scratch: &'a mut [[u8; LINE]]) -> &'a [[u8; LINE]];
}

/// What each of some rows has beside its codes; what a scheme has not is left out.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Scales.
    pub scale: Vec<f32>,
    /// What is taken from codes, as these have no sign.
    pub zero_point: Vec<i32>,
    /// Offsets.
    pub offset: Vec<f32>,
}

/// All panels one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a>(pub &'a [u8]);

impl Panels for Packed<'_> {
    fn scratch(&self, _form: &Form) -> usize {
        0
    }

    fn lines<'a>(&'a self, form: &Form, panel: usize, _scratch: &'a mut [[u8; LINE]]) -> &'a [[u8; LINE]] {
        &self.0.as_chunks::<LINE>().0[panel * form.lines..][..form.lines]
    }
}

/// Weights as quantization makes them.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, C> {
    /// Codes, each row from a byte on.
    pub codes: &'a [u8],
    /// How they are coded.
    pub code: Uniform,
    /// Scales and what the scheme has beside them.
    pub params: ParamsRef<'a, C>,
    /// Scales of a row; 0: one for all rows.
    pub per_row: usize,
}

/// 4 bytes of a row from a bit on; 0 behind its end.
#[inline(always)]
fn bits_at(row: &[u8], bit: usize) -> u32 {
    let byte = bit / 8;
    let eight = match row.get(byte..byte + 8) {
        Some(eight) => eight.try_into().unwrap_or_default(),
        None => std::array::from_fn(|i| row.get(byte + i).copied().unwrap_or(0)),
    };
    (u64::from_le_bytes(eight) >> (bit % 8)) as u32
}

impl<C: Real> Rows<'_, C> {
    /// What a symmetric code is flipped with to have no sign, in each byte.
    fn flip(&self) -> u32 {
        let signed = match self.code.scheme {
            Scheme::Symmetric => !self.code.offset_binary,
            Scheme::Asymmetric => self.code.signed,
            Scheme::MinMax => false,
        };
        let sign = [0x8080_8080, 0x8888_8888, 0xaaaa_aaaa][match self.code.bits {
            8 => 0,
            4 => 1,
            _ => 2,
        }];
        if signed { sign } else { 0 }
    }

    fn row(&self, form: &Form, row: usize) -> &[u8] {
        let bytes = packed_len(form.cols, form.bits);
        &self.codes[row * bytes..][..bytes]
    }

    /// Replace numbers by those of some rows.
    #[inline(always)]
    fn fill<T, N: Copy>(&self, rows: Range<usize>, parts: &[T], numbers: &mut Vec<N>, number: impl Fn(&T) -> N) {
        numbers.clear();
        match self.per_row {
            0 => numbers.resize(rows.len(), number(&parts[0])),
            _ => numbers.extend(parts[rows].iter().map(number)),
        }
    }

    /// What comes before the codes of a block of a row.
    fn header(&self, form: &Form, part: usize) -> [[u8; 4]; 2] {
        let scale = self.params.scale[part].store_as::<f32>().to_le_bytes();
        let second = match self.code.scheme {
            Scheme::Symmetric => [0; 4],
            Scheme::Asymmetric if self.code.signed => {
                (i32::from(self.params.zero_point[part] as i8) + (1 << (form.bits - 1))).to_le_bytes()
            }
            Scheme::Asymmetric => u32::from(self.params.zero_point[part]).to_le_bytes(),
            Scheme::MinMax => self.params.offset[part].store_as::<f32>().to_le_bytes(),
        };
        [scale, second]
    }

    /// Write a panel; lanes without a row are 0.
    fn panel(&self, form: &Form, panel: usize, lines: &mut [[u8; LINE]]) {
        let (first, flip) = (panel * LANES, self.flip());
        let n = LANES.min(form.rows - first);
        if n < LANES {
            lines.fill([0; LINE]);
        }
        // All words of all rows at once, where they can be.
        let places = form.places.as_ref().filter(|_| n == LANES);
        if let Some(places) = places {
            let bytes = packed_len(form.cols, form.bits);
            transpose::transpose_words(&self.codes[first * bytes..], bytes, &places[..bytes / 4], flip, lines);
        }
        for (i, block) in form.blocks.iter().enumerate() {
            if i == 0 || form.blocks[i - 1].group != block.group {
                for lane in 0..n {
                    let four = self.header(form, (first + lane) * self.per_row + block.group);
                    for (line, four) in lines[block.header..block.codes].iter_mut().zip(four) {
                        line[4 * lane..4 * lane + 4].copy_from_slice(&four);
                    }
                }
            }
            let bit = block.start * form.bits as usize;
            let whole = places.map_or(0, |_| packed_len(form.cols, form.bits).saturating_sub(bit / 8) / 4);
            for word in whole.min(block.words)..block.words {
                for lane in 0..n {
                    let four = (bits_at(self.row(form, first + lane), bit + 32 * word) ^ flip).to_le_bytes();
                    lines[block.codes + word][4 * lane..4 * lane + 4].copy_from_slice(&four);
                }
            }
        }
    }
}

impl<C: Real> Panels for Rows<'_, C> {
    fn scratch(&self, form: &Form) -> usize {
        form.lines
    }

    fn rows(&self, form: &Form, rows: Range<usize>, numbers: &mut Numbers) -> Option<Bytes<'_>> {
        if form.bits != 8 || self.per_row > 1 {
            return None;
        }
        let (stride, ParamsRef { scale, zero_point, offset }) = (form.cols, self.params);
        let (codes, flip) = (&self.codes[rows.start * stride..], self.flip() as u8);
        self.fill(rows.clone(), scale, &mut numbers.scale, |&x| x.store_as());
        match self.code.scheme {
            Scheme::Symmetric => numbers.zero_point.resize(rows.len(), 128),
            Scheme::Asymmetric => {
                let signed = self.code.signed;
                let number = |&z: &u8| if signed { i32::from(z as i8) + 128 } else { i32::from(z) };
                self.fill(rows.clone(), zero_point, &mut numbers.zero_point, number);
            }
            Scheme::MinMax => self.fill(rows.clone(), offset, &mut numbers.offset, |&x| x.store_as()),
        }
        Some(Bytes { codes, rows: rows.len(), stride, flip })
    }

    fn lines<'a>(&'a self, form: &Form, panel: usize, scratch: &'a mut [[u8; LINE]]) -> &'a [[u8; LINE]] {
        self.panel(form, panel, scratch);
        scratch
    }
}

/// Bring rows into panels: `out` has all of them.
pub fn pack<C: Real>(rows: Rows<'_, C>, form: &Form, out: &mut [u8], threads: usize) {
    if form.lines == 0 {
        return;
    }
    let panels = out.as_chunks_mut::<LINE>().0.chunks_mut(form.lines).enumerate();
    par::for_each(threads, panels, |(panel, lines)| rows.panel(form, panel, lines));
}

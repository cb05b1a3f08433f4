//! Images as a model takes them: resized, framed, normalized, channels apart or not, as floats or codes, in one pass.
//!
//! A piece of work is a band of rows of one image of the batch: each row of it is resized ([`resample`]), which leaves it in the
//! cache, and from there written where it belongs ([`steps`], [`levels`]).

mod bands;
mod levels;
mod pixels;
mod resample;
mod steps;
mod taps;
#[cfg(target_arch = "x86_64")]
mod x86;

use bands::{Band, Bands};
use levels::Tables;
pub use pixels::{Image, Pixels};
pub use resample::{Pixel, Row};
pub use steps::{CHANNELS, Constants, Quantization, Steps, Target};
pub use taps::{Filter, Fit, Placement, Size, place};

use crate::par;
use taps::Taps;

/// Where pixels come from and go.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Rows and columns of the output; None: those of the images.
    pub size: Option<Size>,
    /// How images are brought to it.
    pub fit: Fit,
    /// What its pixels are made of.
    pub filter: Filter,
    /// Whether channels lie apart.
    pub planar: bool,
    /// Whether the first and the third of 3 or 4 channels change places.
    pub swap: bool,
}

/// What is done to images, and all that can be told of it before they are there.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The place of pixels.
    pub layout: Layout,
    /// What the steps take, in the order in which channels come to them.
    constants: [Constants; CHANNELS],
    /// Whether levels are divided by two fused steps.
    fused: bool,
    /// The number of the border, in each channel of the output.
    border: [f32; CHANNELS],
    quantization: Quantization,
    tables: Option<Box<Tables>>,
}

/// So few elements are read and written before another thread is there.
const ALONE: usize = 1 << 19;
/// Elements of rows that are written as one row, in the L1 cache.
const TOGETHER: usize = 12_288;

/// Codes that nothing is rounded to.
const NO_CODES: Quantization = Quantization { scale: 1.0, zero_point: 0, codes: [0, 255], away: false };

impl Plan {
    /// Of steps in the order of the output's channels; `pad` is the level of the border.
    pub fn new(layout: Layout, mut steps: Steps, pad: f32, codes: Option<Quantization>) -> Self {
        let border = std::array::from_fn(|c| steps.of(pad, c));
        // Apart, it is the slices that change places; side by side, pixels are turned first.
        if layout.swap && layout.planar {
            steps.mean.swap(0, 2);
            steps.std.swap(0, 2);
        }
        let tables = codes.map(|q| Box::new(Tables::new(&steps, &q)));
        let (fused, quantization) = (steps.levels_need_no_division(), codes.unwrap_or(NO_CODES));
        Self { layout, constants: steps.constants(), fused, border, quantization, tables }
    }
}

/// How images of one size are resized.
struct Resize {
    from: Size,
    /// Rows and columns of the output that are not border.
    inside: [std::ops::Range<usize>; 2],
    taps: [Taps; 2],
}

impl Resize {
    /// None where nothing would be left of the image.
    fn new(plan: &Plan, from: Size, to: Size) -> Option<Self> {
        let placement = place(plan.layout.fit, from, to)?;
        let inside = [0, 1].map(|axis| {
            let start = placement.offset[axis].max(0) as usize;
            start..(start + placement.resized[axis]).min(to[axis])
        });
        let taps = [0, 1].map(|axis| {
            let start = (-placement.offset[axis]).max(0) as usize;
            let range = start..start + inside[axis].len();
            Taps::new(plan.layout.filter, from[axis], placement.resized[axis], range)
        });
        Some(Self { from, inside, taps })
    }
}

/// Memory of a worker: a row that is resized down, along, and one of numbers.
struct Scratch<R> {
    down: Vec<f32>,
    along: Vec<R>,
    swapped: Vec<R>,
    numbers: Vec<f32>,
}

/// Write images of `channels` (1, 3 or 4) to `out`, which is as many images of `to`; each was asked whether it can be placed.
pub fn run<P: Pixel, T: Target>(
    plan: &Plan,
    images: &[Image<'_, P>],
    (to, channels): (Size, usize),
    out: &mut [T],
    threads: usize,
) {
    let mut resizes: Vec<Resize> = vec![];
    let mut by = Vec::with_capacity(images.len());
    for (from, _) in images {
        let found = resizes.iter().position(|resize| resize.from == *from);
        by.push(found.unwrap_or(resizes.len()));
        if found.is_none() {
            resizes.extend(Resize::new(plan, *from, to));
        }
    }
    let elements = out.len() + images.iter().map(|(size, _)| size[0] * size[1] * channels).sum::<usize>();
    let threads = if elements < ALONE { 1 } else { threads };
    let row = Rows { plan, channels };
    let make = || Scratch { down: vec![], along: vec![], swapped: vec![], numbers: vec![] };
    par::for_each_with(threads, Bands::new(plan.layout.planar, to, channels, out), make, |scratch, band| {
        if let Some(resize) = by.get(band.image).and_then(|&i| resizes.get(i)) {
            row.write_band(images[band.image].1, resize, to[1], scratch, band);
        }
    });
}

/// How rows are written.
#[derive(Clone, Copy)]
struct Rows<'a> {
    plan: &'a Plan,
    channels: usize,
}

impl Rows<'_> {
    fn write_band<P: Pixel, T: Target>(
        self,
        x: Pixels<'_, P>,
        resize: &Resize,
        width: usize,
        scratch: &mut Scratch<P::Row>,
        band: Band<'_, T>,
    ) {
        let (line, channels) =
            if self.plan.layout.planar { (width, 1) } else { (width * self.channels, self.channels) };
        let [rows, columns] = resize.inside.clone();
        let mut border = [T::ZERO; CHANNELS];
        T::store(&self.plan.border, &self.plan.quantization, &mut border);
        let n = band.planes[0].len() / line;
        if let Some(pixels) = self.whole_rows(x, resize, (band.first, n), width) {
            let together = (TOGETHER / (width * self.channels)).max(1);
            let mut planes = band.planes.map(|plane| plane.chunks_mut(together * line));
            for pixels in pixels.chunks(together * width * self.channels) {
                let parts = planes.each_mut().map(|plane| plane.next().unwrap_or_default());
                self.write_pixels(pixels, &mut scratch.swapped, &mut scratch.numbers, parts);
            }
            return;
        }
        let mut planes = band.planes.map(|plane| plane.chunks_exact_mut(line));
        for y in band.first..band.first + n {
            let mut parts = planes.each_mut().map(|plane| plane.next().unwrap_or_default());
            if !rows.contains(&y) {
                self.fill(border, &mut parts);
                continue;
            }
            let mut inner: [&mut [T]; CHANNELS] = Default::default();
            let [mut left, mut right]: [[&mut [T]; CHANNELS]; 2] = Default::default();
            for (c, part) in parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()) {
                let (start, rest) = part.split_at_mut(columns.start * channels);
                let (middle, end) = rest.split_at_mut(columns.len() * channels);
                (left[c], inner[c], right[c]) = (start, middle, end);
            }
            self.fill(border, &mut left);
            self.fill(border, &mut right);
            self.write_row(x, resize, y - rows.start, scratch, inner);
        }
    }

    /// The pixels of `n` rows of the output, where they lie so in the image: what is done once for a row, and for the
    /// pixels that fill no register at its end, takes longer than a short row itself.
    fn whole_rows<'x, P: Pixel>(
        self,
        x: Pixels<'x, P>,
        resize: &Resize,
        (first, n): (usize, usize),
        width: usize,
    ) -> Option<&'x [P::Row]> {
        let ([rows, columns], [down, along]) = (&resize.inside, &resize.taps);
        let is_whole =
            columns.len() == width && width == resize.from[1] && rows.contains(&first) && first + n <= rows.end;
        let Pixels::Whole(x) = x else { return None };
        if !(is_whole && down.plain && along.plain) {
            return None;
        }
        let stride = width * self.channels;
        P::as_rows(&x[down.of(first - rows.start).0 * stride..][..n * stride])
    }

    /// Border.
    fn fill<T: Target>(self, border: [T; CHANNELS], parts: &mut [&mut [T]; CHANNELS]) {
        if self.plan.layout.planar {
            parts.iter_mut().zip(border).for_each(|(part, border)| part.fill(border));
        } else {
            let pixel = &border[..self.channels];
            parts[0].chunks_exact_mut(self.channels).for_each(|out| out.copy_from_slice(pixel));
        }
    }

    /// One row of the resized image.
    fn write_row<P: Pixel, T: Target>(
        self,
        x: Pixels<'_, P>,
        resize: &Resize,
        y: usize,
        scratch: &mut Scratch<P::Row>,
        out: [&mut [T]; CHANNELS],
    ) {
        let (c, [down, along]) = (self.channels, &resize.taps);
        let (stride, pixels) = (resize.from[1] * c, along.pixels());
        let (start, weights) = down.of(y);
        let whole = &x.row(start, stride)[pixels.start * c..][..pixels.len() * c];
        let Scratch { down: sums, along: row, swapped, numbers } = scratch;
        let row = if let (true, Some(whole)) = (along.plain && weights.len() == 1, P::as_rows(whole)) {
            whole
        } else {
            sums.resize(pixels.len() * c, 0.0);
            row.resize(along.len() * c, P::Row::ZERO);
            resample::down(x, stride, pixels.start * c, (start, weights), sums);
            if along.plain {
                resample::round(sums, row);
            } else {
                resample::along(sums, pixels.start, c, along, row);
            }
            row
        };
        self.write_pixels(row, swapped, numbers, out);
    }

    /// A row of resized pixels.
    fn write_pixels<'a, R: Row, T: Target>(
        self,
        mut row: &'a [R],
        swapped: &'a mut Vec<R>,
        numbers: &mut Vec<f32>,
        mut out: [&mut [T]; CHANNELS],
    ) {
        let (plan, channels, n) = (self.plan, self.channels, row.len());
        if plan.layout.swap && channels >= 3 {
            if plan.layout.planar {
                out.swap(0, 2);
            } else {
                swapped.resize(n, R::ZERO);
                steps::swapped(row, channels, swapped);
                row = swapped;
            }
        }
        if let (Some(levels), Some(tables)) = (R::as_levels(row), &plan.tables) {
            let mut codes = out.map(|part| T::as_codes(part).unwrap_or_default());
            if plan.layout.planar {
                tables.planes(levels, channels, &mut codes);
            } else {
                tables.pixels(levels, channels, codes[0]);
            }
        } else if T::ARE_NUMBERS {
            self.write_numbers(row, &mut out.map(|part| T::as_numbers(part).unwrap_or_default()));
        } else {
            numbers.resize(n, 0.0);
            let planes = if plan.layout.planar { channels } else { 1 };
            let mut parts: [&mut [f32]; CHANNELS] = Default::default();
            parts.iter_mut().zip(numbers.chunks_exact_mut(n / planes)).for_each(|(part, plane)| *part = plane);
            self.write_numbers(row, &mut parts);
            for (part, out) in parts.iter().zip(out).take(planes) {
                T::store(part, &plan.quantization, out);
            }
        }
    }

    /// The steps of a row.
    fn write_numbers<R: Row>(self, row: &[R], out: &mut [&mut [f32]; CHANNELS]) {
        let (plan, fused) = (self.plan, self.plan.fused && R::as_levels(&[]).is_some());
        if plan.layout.planar {
            steps::planes(row, self.channels, &plan.constants, fused, out);
        } else {
            steps::pixels(row, self.channels, &plan.constants, fused, out[0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{self, Isa};
    use crate::real::{Bf16, F16};

    fn levels(n: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 11) as u8
        };
        (0..n).map(|_| next()).collect()
    }

    const STEPS: Steps =
        Steps { scale: 1.0 / 255.0, mean: [0.485, 0.456, 0.406, 0.5], std: [0.229, 0.224, 0.225, 0.25] };

    fn plan(fit: Fit, filter: Filter, size: Size, (planar, swap): (bool, bool), codes: bool) -> Plan {
        let layout = Layout { size: Some(size), fit, filter, planar, swap };
        let q = Quantization { scale: 0.02, zero_point: -3, codes: [-128, 127], away: false };
        Plan::new(layout, STEPS, 114.0, codes.then_some(q))
    }

    fn bits<P: Pixel, T: Target>(plan: &Plan, images: &[Image<'_, P>], channels: usize, threads: usize) -> Vec<T> {
        let size = plan.layout.size.unwrap();
        let mut out = vec![T::ZERO; images.len() * size[0] * size[1] * channels];
        run(plan, images, (size, channels), &mut out, threads);
        out
    }

    #[test]
    fn test_levels_of_the_usual_constants_need_no_division() {
        assert!(plan(Fit::Same, Filter::Linear, [4, 4], (true, false), false).fused);
    }

    #[test]
    fn test_every_layout_is_the_plain_formula_at_every_width() {
        for channels in [1, 3, 4] {
            for width in (1..70).chain([127, 128, 129, 191, 192, 193, 640]) {
                let size = [3, width];
                let x = levels(3 * width * channels);
                let layouts = [(true, false), (false, false), (true, true), (false, true)];
                // One channel has one mean: there is nothing to change places with.
                for (planar, swap) in layouts.into_iter().filter(|&(_, swap)| channels > 1 || !swap) {
                    let steps = plan(Fit::Same, Filter::Linear, size, (planar, swap), false);
                    let coded = plan(Fit::Same, Filter::Linear, size, (planar, swap), true);
                    let out: Vec<f32> = bits(&steps, &[(size, Pixels::Whole(&x))], channels, 1);
                    let codes: Vec<u8> = bits(&coded, &[(size, Pixels::Whole(&x))], channels, 1);
                    for i in 0..3 * width {
                        for c in 0..channels {
                            let from = if swap && c < 3 { 2 - c } else { c };
                            let want = STEPS.of(x[i * channels + from] as f32, c);
                            let place = if planar { c * 3 * width + i } else { i * channels + c };
                            assert_eq!(out[place].to_bits(), want.to_bits(), "{channels} {width} {planar} {swap}");
                            let code = ((want / 0.02).round_ties_even() as i32 - 3).clamp(-128, 127) as i8;
                            assert_eq!(codes[place] as i8, code, "{channels} {width} {planar} {swap}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn test_the_same_bits_for_instruction_sets_threads_and_images_alone() {
        let shapes = [[1, 1], [2, 1], [37, 53], [120, 90], [90, 200]];
        let all = || {
            let mut found: Vec<Vec<u32>> = vec![];
            for channels in [1, 3, 4] {
                let images: Vec<Vec<u8>> = shapes.iter().map(|s| levels(s[0] * s[1] * channels)).collect();
                let floats: Vec<Vec<f32>> =
                    images.iter().map(|x| x.iter().map(|&v| v as f32 * 1.37 - 20.0).collect()).collect();
                for fit in [Fit::Letterbox, Fit::Stretch, Fit::Crop] {
                    for filter in [Filter::Nearest, Filter::Linear, Filter::Triangle, Filter::Area] {
                        for layout in [(true, false), (false, true)] {
                            let plain = plan(fit, filter, [61, 67], layout, false);
                            let coded = plan(fit, filter, [61, 67], layout, true);
                            let batch: Vec<_> =
                                shapes.iter().copied().zip(images.iter().map(|x| Pixels::Whole(x))).collect();
                            let float: Vec<_> =
                                shapes.iter().copied().zip(floats.iter().map(|x| Pixels::Whole(x))).collect();
                            let alone: Vec<f32> = batch
                                .iter()
                                .flat_map(|&image| bits::<u8, f32>(&plain, &[image], channels, 1))
                                .collect();
                            for threads in [1, 3] {
                                let whole: Vec<f32> = bits(&plain, &batch, channels, threads);
                                assert!(whole.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()));
                                let half: Vec<F16> = bits(&plain, &batch, channels, threads);
                                let brain: Vec<Bf16> = bits(&plain, &float, channels, threads);
                                let codes: Vec<u8> = bits(&coded, &batch, channels, threads);
                                let more: Vec<u8> = bits(&coded, &float, channels, threads);
                                found.push(whole.iter().map(|v| v.to_bits()).collect());
                                found.push(half.iter().map(|v| v.0.into()).collect());
                                found.push(brain.iter().map(|v| v.0.into()).collect());
                                found.push(codes.into_iter().chain(more).map(u32::from).collect());
                            }
                        }
                    }
                }
            }
            found
        };
        let before = isa::current();
        let want = all();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            isa::set(isa);
            assert!(all() == want, "{}", isa.name());
        }
        isa::set(before);
    }

    #[test]
    fn test_rows_that_lie_anywhere_are_those_of_a_whole_image() {
        for channels in [1, 3, 4] {
            let (size, x) = ([31, 45], levels(31 * 45 * channels));
            let rows: Vec<&[u8]> = x.chunks(45 * channels).collect();
            let apart: Vec<Vec<u8>> = rows.iter().map(|row| row.to_vec()).collect();
            let apart: Vec<&[u8]> = apart.iter().map(|row| &row[..]).collect();
            for fit in [Fit::Letterbox, Fit::Crop] {
                for to in [[31, 45], [17, 60], [64, 20]] {
                    for filter in [Filter::Nearest, Filter::Linear, Filter::Triangle, Filter::Area] {
                        let plan = plan(fit, filter, to, (false, true), true);
                        let want: Vec<u8> = bits(&plan, &[(size, Pixels::Whole(&x))], channels, 1);
                        let got: Vec<u8> = bits(&plan, &[(size, Pixels::Rows(&apart))], channels, 2);
                        assert!(got == want, "{fit:?} {filter:?} {to:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn test_codes_round_halves_to_even_or_away_and_saturate() {
        let y = [0.5, 1.5, -0.5, -1.5, 0.499_999_97, 300.0, -300.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let q = Quantization { scale: 1.0, zero_point: 10, codes: [0, 255], away: false };
        let mut codes = [0; 10];
        steps::encode(&y, &q, &mut codes);
        assert_eq!(codes, [10, 12, 10, 8, 10, 255, 0, 10, 255, 0]);
        steps::encode(&y, &Quantization { away: true, ..q }, &mut codes);
        assert_eq!(codes, [11, 12, 9, 8, 10, 255, 0, 10, 255, 0]);
    }
}

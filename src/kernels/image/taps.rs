//! Which pixels of an axis an output pixel is made of, and with what weights; and where an image comes to lie.
//!
//! All of it is computed in f64 and integers, once for each size of image; weights are then rounded to f32.

/// How an image is brought to the size of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// As large as it fits in, in the middle of a border.
    Letterbox,
    /// To the size, whatever becomes of its proportions.
    Stretch,
    /// As small as it covers all; what is too much on both sides is left out.
    Crop,
    /// Not at all: it has the size.
    Same,
}

/// What an output pixel is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The pixel that its middle lies in.
    Nearest,
    /// Of the two pixels whose middles it lies between, in each direction.
    Linear,
    /// By a triangle as wide as two output pixels, where it shrinks: `Linear` without aliasing.
    Triangle,
    /// The mean of what it covers.
    Area,
}

/// Rows and columns.
pub type Size = [usize; 2];

/// Where an image comes to lie in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// What it is resized to.
    pub resized: Size,
    /// Rows above and columns left of it; negative where as many of its own are left out.
    pub offset: [i64; 2],
}

/// Where an image of size `from` comes to lie in `to`; None where nothing would be left of it.
pub fn place(fit: Fit, from: Size, to: Size) -> Option<Placement> {
    if from.contains(&0) {
        return None;
    }
    let ratio = |axis: usize| to[axis] as f64 / from[axis] as f64;
    let by = |ratio: f64| from.map(|n| (n as f64 * ratio).round_ties_even() as usize);
    let resized = match fit {
        Fit::Same => from,
        Fit::Stretch => to,
        Fit::Letterbox => {
            let [rows, columns] = by(ratio(0).min(ratio(1)));
            [rows.min(to[0]), columns.min(to[1])]
        }
        Fit::Crop => {
            let [rows, columns] = by(ratio(0).max(ratio(1)));
            [rows.max(to[0]), columns.max(to[1])]
        }
    };
    let half = |axis: usize| {
        let (out, own) = (to[axis] as i64, resized[axis] as i64);
        if out >= own { (out - own) / 2 } else { -((own - out) / 2) }
    };
    (!resized.contains(&0)).then(|| Placement { resized, offset: [half(0), half(1)] })
}

/// The pixels of one axis that each of a range of output pixels is made of.
#[derive(Debug, Clone, Default)]
pub struct Taps {
    /// For each output pixel its first pixel, and its first weight; and one more, the end of all weights.
    spans: Vec<(usize, usize)>,
    weights: Vec<f32>,
    /// Whether each is one pixel, with all the weight, beside the one before.
    pub plain: bool,
}

impl Taps {
    /// For the output pixels `range` of an axis that is resized from `n` to `resized` pixels.
    pub fn new(filter: Filter, n: usize, resized: usize, range: std::ops::Range<usize>) -> Self {
        let mut taps = Self { spans: Vec::with_capacity(range.len() + 1), ..Self::default() };
        for i in range {
            match filter {
                Filter::Nearest => {
                    let middle = (2 * i as u128 + 1) * n as u128;
                    taps.push((middle / (2 * resized as u128)) as usize, &[1.0]);
                }
                Filter::Linear => taps.push_linear(n, resized, i),
                Filter::Triangle => taps.push_triangle(n, resized, i),
                Filter::Area => taps.push_area(n as u128, resized as u128, i as u128),
            }
        }
        let first = taps.spans.first().map_or(0, |span| span.0);
        let beside = |(i, span): (usize, &(usize, usize))| span.0 == first + i;
        taps.plain = taps.weights.len() == taps.spans.len() && taps.spans.iter().enumerate().all(beside);
        taps.spans.push((0, taps.weights.len()));
        taps
    }

    /// Take an output pixel in; weights of 0 at its ends are left out, so that what isn't looked at can't be NaN.
    fn push(&mut self, start: usize, weights: &[f32]) {
        let zeros = weights.iter().take_while(|&&w| w == 0.0).count();
        let end = weights.iter().rposition(|&w| w != 0.0).map_or(zeros, |last| last + 1);
        self.spans.push((start + zeros, self.weights.len()));
        self.weights.extend(&weights[zeros..end]);
    }

    fn push_linear(&mut self, n: usize, resized: usize, i: usize) {
        let place = (i as f64 + 0.5) * (n as f64 / resized as f64) - 0.5;
        let whole = place.max(0.0).floor() as usize;
        if place <= 0.0 || whole + 1 >= n {
            return self.push(whole.min(n - 1), &[1.0]);
        }
        let t = (place - whole as f64) as f32;
        self.push(whole, &[1.0 - t, t]);
    }

    fn push_triangle(&mut self, n: usize, resized: usize, i: usize) {
        let scale = n as f64 / resized as f64;
        let (width, middle) = (scale.max(1.0), (i as f64 + 0.5) * scale);
        let start = (middle - width + 0.5).max(0.0) as usize;
        let end = ((middle + width + 0.5) as usize).min(n);
        let weight = |j: usize| (1.0 - ((j as f64 - middle + 0.5) / width).abs()).max(0.0);
        let total: f64 = (start..end).map(weight).sum();
        self.push(start, &(start..end).map(|j| (weight(j) / total) as f32).collect::<Vec<_>>());
    }

    /// In units of 1 / resized of a pixel, which are whole numbers.
    fn push_area(&mut self, n: u128, resized: u128, i: u128) {
        let (low, high) = (i * n, (i + 1) * n);
        let (start, end) = (low / resized, high.div_ceil(resized));
        let share = |j: u128| high.min((j + 1) * resized) - low.max(j * resized);
        self.push(start as usize, &(start..end).map(|j| (share(j) as f64 / n as f64) as f32).collect::<Vec<_>>());
    }

    /// How many output pixels there are.
    pub fn len(&self) -> usize {
        self.spans.len() - 1
    }

    /// The first pixel of output pixel `i` and the weights from there on.
    #[inline(always)]
    pub fn of(&self, i: usize) -> (usize, &[f32]) {
        (self.spans[i].0, &self.weights[self.spans[i].1..self.spans[i + 1].1])
    }

    /// From which pixel to before which the output pixels are made.
    pub fn pixels(&self) -> std::ops::Range<usize> {
        let end = |i: usize| self.of(i).0 + self.of(i).1.len();
        if self.len() == 0 { 0..0 } else { self.of(0).0..end(self.len() - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTERS: [Filter; 4] = [Filter::Nearest, Filter::Linear, Filter::Triangle, Filter::Area];

    #[test]
    fn test_weights_add_up_to_1_and_pixels_lie_within_the_image_in_order() {
        for filter in FILTERS {
            for (n, resized) in [(1, 1), (1, 7), (2, 1), (2, 3), (7, 2), (640, 641), (1080, 360), (5, 1000), (1000, 3)]
            {
                let taps = Taps::new(filter, n, resized, 0..resized);
                assert_eq!(taps.len(), resized);
                let mut before = 0;
                for i in 0..resized {
                    let (start, weights) = taps.of(i);
                    assert!(start >= before && !weights.is_empty() && start + weights.len() <= n, "{filter:?} {n} {i}");
                    assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{filter:?} {n} {resized} {i}");
                    before = start;
                }
            }
        }
    }

    #[test]
    fn test_an_axis_that_keeps_its_length_is_left_as_it_is() {
        for filter in FILTERS {
            assert!((1..70).all(|n| Taps::new(filter, n, n, 0..n).plain), "{filter:?}");
            assert!(!Taps::new(filter, 9, 3, 0..3).plain, "{filter:?}");
        }
    }

    #[test]
    fn test_a_letterbox_fits_in_and_a_crop_covers() {
        for from in [[1, 1], [1080, 1920], [1920, 1080], [7, 640], [333, 1000]] {
            for to in [[640, 640], [3, 5], [1, 1]] {
                if let Some(placed) = place(Fit::Letterbox, from, to) {
                    assert!((0..2).all(|i| placed.resized[i] <= to[i]) && (0..2).any(|i| placed.resized[i] == to[i]));
                }
                let placed = place(Fit::Crop, from, to).unwrap();
                assert!((0..2).all(|i| placed.resized[i] >= to[i]) && (0..2).any(|i| placed.resized[i] == to[i]));
            }
        }
        assert_eq!(place(Fit::Letterbox, [1, 10_000], [640, 640]), None);
        assert_eq!(place(Fit::Stretch, [0, 3], [4, 4]), None);
        let wide = Placement { resized: [360, 640], offset: [140, 0] };
        assert_eq!(place(Fit::Letterbox, [1080, 1920], [640, 640]), Some(wide));
        let cut = Placement { resized: [640, 1138], offset: [0, -249] };
        assert_eq!(place(Fit::Crop, [1080, 1920], [640, 640]), Some(cut));
    }
}

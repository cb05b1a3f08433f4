//! Which scale and zero point an element has.

use std::ops::Range;

use super::IN_L1;
use crate::real::{Element, Real};

/// Shorter stretches of one scale are not worth a loop of their own.
const SHORT: usize = 64;

/// Which elements share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// All.
    All,
    /// Those of each index of the axis.
    Axis,
    /// So many consecutive ones along the axis, fewer at its end.
    Blocks(usize),
}

/// An array seen as (outer, channels, inner), with an axis in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Length of the axis.
    pub channels: usize,
    /// Product of the axes after.
    pub inner: usize,
    /// Which elements share a scale.
    pub shared: Shared,
}

/// Consecutive elements: all with part `part`, or one each from `part` on.
struct Stretch {
    part: usize,
    n: usize,
    own: bool,
}

impl Layout {
    /// One scale.
    pub const WHOLE: Self = Self { channels: 1, inner: 1, shared: Shared::All };

    /// The stretch that begins at an element, of which at most `rest` are left.
    fn stretch(&self, at: usize, rest: usize) -> Stretch {
        let Self { channels, inner, shared } = *self;
        let (row, within) = (at / inner, at % inner);
        let stretch = match (shared, inner) {
            (Shared::All, _) => Stretch { part: 0, n: rest, own: false },
            (Shared::Axis, 1) => Stretch { part: row % channels, n: channels - row % channels, own: true },
            (Shared::Axis, _) => Stretch { part: row % channels, n: inner - within, own: false },
            (Shared::Blocks(size), _) => {
                let (outer, channel) = (row / channels, row % channels);
                let block = outer * channels.div_ceil(size) + channel / size;
                let to_end = (size - channel % size).min(channels - channel);
                match inner {
                    1 => Stretch { part: block, n: to_end, own: false },
                    _ => Stretch { part: block * inner + within, n: inner - within, own: true },
                }
            }
        };
        Stretch { n: stretch.n.min(rest), ..stretch }
    }
}

/// Scales and zero points, one for each part.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a, C> {
    /// Which element has which.
    pub layout: Layout,
    /// Scales.
    pub scale: &'a [C],
    /// Zero points; empty: 0.
    pub zero_point: &'a [i32],
}

/// The parameters of a stretch.
pub(super) enum Part<'a, C> {
    One(C, i32),
    Own(&'a [C], &'a [i32]),
}

/// Parameters of an axis of so few that they are repeated, for a part each to elements that follow each other.
pub(super) struct Repeated<C> {
    layout: Layout,
    scale: Vec<C>,
    zero_point: Vec<i32>,
}

impl<C: Real> Repeated<C> {
    pub(super) fn params(&self) -> Params<'_, C> {
        Params { layout: self.layout, scale: &self.scale, zero_point: &self.zero_point }
    }
}

impl<C: Real> Params<'_, C> {
    fn zero_point(&self, part: usize) -> i32 {
        self.zero_point.get(part).copied().unwrap_or(0)
    }

    /// The same for `n` elements with a part for each of many consecutive ones, where stretches are short and few.
    pub(super) fn repeated(&self, n: usize) -> Option<Repeated<C>> {
        let Layout { channels, inner, shared } = self.layout;
        let period = channels * inner;
        let stretch = if inner == 1 { channels } else { inner };
        if shared != Shared::Axis || stretch >= SHORT || period > IN_L1 || n <= IN_L1 {
            return None;
        }
        let len = IN_L1 / period * period;
        let parts = || (0..len).map(|i| i / inner % channels);
        Some(Repeated {
            layout: Layout { channels: len, inner: 1, shared: Shared::Axis },
            scale: parts().map(|part| self.scale[part]).collect(),
            zero_point: parts().map(|part| self.zero_point(part)).collect(),
        })
    }

    /// Call `f` on consecutive stretches of `n` elements from `start` on, counted from there. Short ones are put together.
    pub(super) fn each(&self, start: usize, n: usize, mut f: impl FnMut(Range<usize>, Part<'_, C>)) {
        let mut at = 0;
        while at < n {
            let Stretch { part, n: len, own } = self.layout.stretch(start + at, n - at);
            let is_long = len >= SHORT || len == n - at;
            if is_long && !own {
                f(at..at + len, Part::One(self.scale[part], self.zero_point(part)));
                at += len;
            } else if is_long && !self.zero_point.is_empty() {
                f(at..at + len, Part::Own(&self.scale[part..part + len], &self.zero_point[part..part + len]));
                at += len;
            } else {
                at = self.gather(start, at..n.min(at + IN_L1), &mut f);
            }
        }
    }

    /// One stretch of many short ones; where it ends.
    fn gather(&self, start: usize, range: Range<usize>, f: &mut impl FnMut(Range<usize>, Part<'_, C>)) -> usize {
        let (mut scale, mut zero_point) = ([C::ZERO; IN_L1], [0; IN_L1]);
        let mut len = 0;
        while len < range.len() {
            let stretch = self.layout.stretch(start + range.start + len, range.len() - len);
            let (part, to) = (stretch.part, len..len + stretch.n);
            if stretch.own {
                scale[to.clone()].copy_from_slice(&self.scale[part..part + stretch.n]);
                if let Some(own) = self.zero_point.get(part..part + stretch.n) {
                    zero_point[to].copy_from_slice(own);
                }
            } else {
                scale[to.clone()].fill(self.scale[part]);
                zero_point[to].fill(self.zero_point(part));
            }
            len += stretch.n;
        }
        f(range.clone(), Part::Own(&scale[..len], &zero_point[..len]));
        range.end
    }
}

/// The first that nothing can be divided by.
pub fn no_scale<C: Real>(scale: &[C]) -> Option<C> {
    scale.iter().copied().find(|&scale| !(scale.abs() <= C::MAX) || scale == C::ZERO)
}

/// `n` zero points of as many, or of one; or the first that is not from `low` to `high`.
pub fn narrowed(zero_point: &[i64], n: usize, low: i32, high: i32) -> Result<Vec<i32>, i64> {
    let range = i64::from(low)..=i64::from(high);
    match zero_point.iter().copied().find(|point| !range.contains(point)) {
        Some(point) => Err(point),
        None => Ok(zero_point.iter().cycle().take(n).map(|&point| point as i32).collect()),
    }
}

/// Scales in the dtype that is computed in, rounded once.
pub fn widened<T: Element, C: Real>(scale: &[T]) -> Vec<C> {
    scale.iter().map(|scale| C::from_f64(scale.to_f64())).collect()
}

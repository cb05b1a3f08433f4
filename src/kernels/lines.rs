//! Blocks of numbers that are written past the caches as they are made, where a CPU can; see `isa::stream` for all others.

#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
pub use x86::Lines;

/// Where there is none: [`Lines::new`] says so.
#[cfg(not(target_arch = "x86_64"))]
pub struct Lines<'a, T> {
    never: std::convert::Infallible,
    out: std::marker::PhantomData<&'a mut [T]>,
}

#[cfg(not(target_arch = "x86_64"))]
impl<'a, T: Copy> Lines<'a, T> {
    /// What it was given.
    pub fn new(out: &'a mut [T]) -> Result<Self, &'a mut [T]> {
        Err(out)
    }
    /// Never called.
    pub fn push<const N: usize>(&mut self, _block: &[T; N]) {
        match self.never {}
    }
    /// Never called.
    pub fn finish(self) {}
    /// Never called.
    pub fn again(&mut self) -> Lines<'_, T> {
        match self.never {}
    }
    /// Never called.
    pub fn place(self) {}
    /// Never called.
    pub fn go_on(&mut self, _place: ()) {}
}

/// What is made of so many elements or more is written past the caches: nothing of it would still be there. (In tests of fewer.)
pub const STREAMED: usize = if cfg!(test) { 1 << 20 } else { 1 << 24 };

/// What is left to be written of an array.
pub enum Target<'a, T> {
    /// In blocks, past the caches.
    Lines(Lines<'a, T>),
    /// As it is.
    Slice(&'a mut [T]),
}

impl<'a, T: Copy> Target<'a, T> {
    /// In blocks where `in_blocks`, if there is a way.
    pub fn new(out: &'a mut [T], in_blocks: bool) -> Self {
        if in_blocks { Lines::new(out).map_or_else(Self::Slice, Self::Lines) } else { Self::Slice(out) }
    }

    /// Write what is left of the last block.
    pub fn finish(self) {
        if let Self::Lines(lines) = self {
            lines.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;

    fn check<T: Copy + PartialEq + std::fmt::Debug, const N: usize>(number: impl Fn(usize) -> T) {
        let zero = number(0);
        for start in 0..70 {
            for blocks in 0..5 {
                let mut out = vec![zero; start + blocks * N + 9];
                let Ok(mut lines) = Lines::new(&mut out[start..start + blocks * N]) else { continue };
                for block in 0..blocks {
                    lines.push::<N>(&std::array::from_fn(|i| number(1 + block * N + i)));
                }
                lines.finish();
                isa::fence();
                let want =
                    |i: usize| if (start..start + blocks * N).contains(&i) { number(1 + i - start) } else { zero };
                assert_eq!(out, (0..out.len()).map(want).collect::<Vec<_>>(), "{start} {blocks}");
            }
        }
    }

    #[test]
    fn test_blocks_are_written_wherever_they_begin_and_nothing_beside_them() {
        check::<f32, 32>(|i| i as f32);
        check::<f64, 32>(|i| i as f64);
        check::<u16, 32>(|i| i as u16);
    }
}

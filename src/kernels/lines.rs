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
    /// Nothing.
    pub fn new(_out: &'a mut [T]) -> Option<Self> {
        None
    }
    /// Never called.
    pub fn push<const N: usize>(&mut self, _block: &[T; N]) {
        match self.never {}
    }
    /// Never called.
    pub fn finish(self) {}
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
                let Some(mut lines) = Lines::new(&mut out[start..start + blocks * N]) else { continue };
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

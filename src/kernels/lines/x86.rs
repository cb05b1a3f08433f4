//! Numbers to whole lines of the cache by AVX-512, which are written past it as they are made.
//!
//! Blocks that are made in the cache and then written, 16 or more lines after each other, wait for the memory while nothing is
//! computed. One thread, 32 M float32, ns an element: numbers of 4-bit codes in groups of 32 0.80 to 0.92 that way, here 0.58
//! to 0.65 (with what is read asked for earlier); of 8-bit codes by row 0.62 and 0.50; a copy 0.36 to 0.39.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_permutex2var_ps,
    _mm512_setzero_ps, _mm512_stream_ps,
};

use crate::isa::{Isa, current};

/// Bytes of a line, which is a register.
const LINE: usize = 64;

/// Lanes of a register.
const LANES: usize = 16;

/// Indices of lanes: from each of the first on those of a line that begins there, in two registers after each other.
static INDICES: [i32; 2 * LANES] = {
    let mut indices = [0; 2 * LANES];
    let mut i = 0;
    while i < 2 * LANES {
        indices[i] = i as i32;
        i += 1;
    }
    indices
};

/// What is written one block after the other.
pub struct Lines<'a, T> {
    out: &'a mut [T],
    /// Bytes of `out` that the blocks so far have made, of which the last register's are not all written.
    made: usize,
    /// Lanes before the first line begins.
    head: usize,
    from_head: __m512i,
    before: __m512,
}

/// Bytes that were made, and the last register of them.
pub struct Place(usize, __m512);

impl<'a, T: Copy> Lines<'a, T> {
    /// To write `out`, where this CPU can, its elements are of 2, 4 or 8 bytes and it begins where one of 4 could; else `out`.
    #[inline(always)]
    pub fn new(out: &'a mut [T]) -> Result<Self, &'a mut [T]> {
        let start = out.as_ptr().addr();
        if current() != Isa::Avx512 || !matches!(size_of::<T>(), 2 | 4 | 8) || !start.is_multiple_of(4) {
            return Err(out);
        }
        let head = start.wrapping_neg() % LINE / 4;
        // SAFETY: this CPU has AVX-512; from each lane on there are as many indices as lanes.
        let (from_head, before) = unsafe { (_mm512_loadu_si512(INDICES[head..].as_ptr().cast()), _mm512_setzero_ps()) };
        Ok(Self { out, made: 0, head, from_head, before })
    }

    /// The same for one loop, which has it in registers, and where it then is, for [`Self::go_on`]. (Else each block is followed
    /// by two more stores, which wait behind those to memory.)
    #[inline(always)]
    pub fn again(&mut self) -> Lines<'_, T> {
        Lines { out: self.out, made: self.made, head: self.head, from_head: self.from_head, before: self.before }
    }

    /// Where it is.
    #[inline(always)]
    pub fn place(self) -> Place {
        Place(self.made, self.before)
    }

    /// From there.
    #[inline(always)]
    pub fn go_on(&mut self, Place(made, before): Place) {
        (self.made, self.before) = (made, before);
    }

    /// Write the next block.
    #[inline(always)]
    pub fn push<const N: usize>(&mut self, block: &[T; N]) {
        let n = size_of_val(block);
        assert!(n.is_multiple_of(LINE) && self.made + n <= size_of_val(self.out));
        for i in 0..n / LINE {
            // SAFETY: `new` has found AVX-512; a register of the block is read, and `out` has room for as many.
            unsafe { self.push_register(_mm512_loadu_ps(block.as_ptr().cast::<f32>().add(LANES * i))) };
        }
    }

    /// # Safety
    ///
    /// This CPU has AVX-512 F, and `out` has room for 64 bytes more.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn push_register(&mut self, register: __m512) {
        let out = self.out.as_mut_ptr().cast::<u8>();
        // SAFETY: within `out` as it has room: the first lanes, or a whole line that ends within this register.
        unsafe {
            if self.made == 0 {
                _mm512_mask_storeu_ps(out.cast(), !(!0 << self.head), register);
            } else {
                let line = _mm512_permutex2var_ps(self.before, self.from_head, register);
                _mm512_stream_ps(out.add(self.made - LINE + 4 * self.head).cast(), line);
            }
        }
        (self.made, self.before) = (self.made + LINE, register);
    }

    /// Write what is left of the last block.
    #[inline(always)]
    pub fn finish(self) {
        if self.made > 0 {
            // SAFETY: `new` has found AVX-512.
            unsafe { self.write_rest() };
        }
    }

    /// # Safety
    ///
    /// This CPU has AVX-512 F, and a register was made.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn write_rest(self) {
        let rest = _mm512_permutex2var_ps(self.before, self.from_head, self.before);
        // SAFETY: the lanes of the last register that no line had, up to where it ends.
        unsafe {
            let to = self.out.as_mut_ptr().cast::<u8>().add(self.made - LINE + 4 * self.head);
            _mm512_mask_storeu_ps(to.cast(), !0 >> self.head, rest);
        }
    }
}

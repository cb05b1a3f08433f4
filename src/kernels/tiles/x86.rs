//! By AMX-INT8, in assembler: Rust's functions for it are not stable.

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid, __cpuid_count, _mm_cvtsi32_si128, _mm512_and_si512, _mm512_loadu_si512, _mm512_set1_epi8,
    _mm512_srl_epi16, _mm512_storeu_si512,
};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, Ordering};

use super::super::transpose::LINE;
use super::{PLACES, ROWS, Sums};
use crate::isa::Isa;

thread_local! {
    /// Whether a [`Tiles`] has set the shapes of this thread's tiles.
    static IN_USE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this CPU multiplies tiles of bytes (AMX-INT8), and Linux lets this process use them; asked once.
///
/// Linux wants to be asked, as their registers are 8 KiB more for each thread to save (Documentation/arch/x86/xstate.rst): from
/// then on it refuses stacks of signals that have no room for them, and where a thread has such a stack already it refuses this.
/// onnxruntime and oneDNN ask in the same way.
pub fn are_available() -> bool {
    static KNOWN: AtomicU8 = AtomicU8::new(0);
    match KNOWN.load(Ordering::Relaxed) {
        0 => {
            let found = cfg!(target_os = "linux") && ask();
            KNOWN.store(1 + u8::from(found), Ordering::Relaxed);
            found
        }
        known => known == 2,
    }
}

/// Ask the CPU, then Linux.
fn ask() -> bool {
    /// AMX-TILE and AMX-INT8, of leaf 7, EDX.
    const TILES_OF_BYTES: u32 = 1 << 24 | 1 << 25;
    /// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
    const CALL: [usize; 3] = [158, 0x1023, 18];
    let has_tiles = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES_OF_BYTES == TILES_OF_BYTES;
    if !has_tiles || !Isa::Avx512.is_available() {
        return false;
    }
    let [mut answer, request, feature] = CALL;
    // SAFETY: the call touches no memory of ours, and what it changes is named.
    unsafe {
        asm!("syscall", inout("rax") answer, in("rdi") request, in("rsi") feature, out("rcx") _, out("r11") _,
            options(nostack));
    }
    answer == 0
}

/// Codes of few bits as bytes: of a line those in the low bits, then the next.
pub fn unpack(lines: &[[u8; LINE]], bits: u32, bytes: &mut [[u8; LINE]]) {
    assert!(are_available());
    // SAFETY: this CPU has AVX-512 F and BW, see `ask`.
    unsafe { if bits == 4 { unpack_by_lines::<2>(lines, bytes) } else { unpack_by_lines::<4>(lines, bytes) } }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn unpack_by_lines<const PLANES: usize>(lines: &[[u8; LINE]], bytes: &mut [[u8; LINE]]) {
    let bits = 8 / PLANES as i32;
    let (mask, shift) = (_mm512_set1_epi8((0xff_u8 >> (8 - bits)) as i8), _mm_cvtsi32_si128(bits));
    for (line, planes) in lines.iter().zip(bytes.as_chunks_mut::<PLANES>().0) {
        // SAFETY: a line is 64 bytes.
        let mut codes = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
        for plane in planes {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(plane.as_mut_ptr().cast(), _mm512_and_si512(codes, mask)) };
            codes = _mm512_srl_epi16(codes, shift);
        }
    }
}

/// The tiles of this thread, and their shapes, which are set when they change: it takes as long as to multiply two blocks.
#[derive(Debug, Default)]
pub struct Tiles {
    /// Rows of the sums and of the digits; 0: not set.
    rows: usize,
    of_thread: PhantomData<*const ()>,
}

impl Tiles {
    /// 0 and 1 are sums, 2 is digits, 3 and 4 are lines.
    fn shape(&mut self, rows: usize) {
        if self.rows == rows {
            return;
        }
        assert!((1..=ROWS).contains(&rows) && are_available());
        assert!(self.rows > 0 || !IN_USE.replace(true), "a thread has one set of tiles");
        self.rows = rows;
        // The first palette; bytes of each row as 16 bits from byte 16 on, and rows from byte 48 on.
        let mut shapes = [0u8; LINE];
        shapes[0] = 1;
        for (i, rows) in [rows, rows, rows, ROWS, ROWS].into_iter().enumerate() {
            (shapes[16 + 2 * i], shapes[48 + i]) = (LINE as u8, rows as u8);
        }
        // SAFETY: this process may use tiles; 64 bytes are read.
        unsafe { asm!("ldtilecfg [{}]", in(reg) shapes.as_ptr(), options(nostack, readonly, preserves_flags)) };
    }

    /// The sums of products of `rows` rows of signed digits and of lines, a multiple of 16, which are unsigned.
    ///
    /// `x` has of every row the digits of 16 lines, 4 for each, then those of the next 16.
    pub fn products(&mut self, rows: usize, x: &[u32], lines: [&[[u8; LINE]]; PLACES], sums: &mut Sums) {
        let (n, [of_first, of_second]) = (lines[0].len(), &mut sums.0);
        assert!(n > 0 && n.is_multiple_of(ROWS) && lines[1].len() == n && x.len() == rows * n);
        self.shape(rows);
        // SAFETY: tiles have their shapes. Of `n / 16` tiles each of `x` is `rows` and each of `lines` 16 times 64 bytes, as was
        // checked; sums have room for 16 times 64.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "2:",
                "tileloadd tmm2, [{x} + {line}]",
                "tileloadd tmm3, [{first} + {line}]",
                "tdpbsud tmm0, tmm2, tmm3",
                "tileloadd tmm4, [{second} + {line}]",
                "tdpbsud tmm1, tmm2, tmm4",
                "add {x}, {of_x}",
                "add {first}, {of_lines}",
                "add {second}, {of_lines}",
                "dec {n}",
                "jnz 2b",
                "tilestored [{of_first} + {line}], tmm0",
                "tilestored [{of_second} + {line}], tmm1",
                x = inout(reg) x.as_ptr() => _,
                first = inout(reg) lines[0].as_ptr() => _,
                second = inout(reg) lines[1].as_ptr() => _,
                n = inout(reg) n / ROWS => _,
                line = in(reg) LINE,
                of_x = in(reg) rows * LINE,
                of_lines = const ROWS * LINE,
                of_first = in(reg) of_first.as_mut_ptr(),
                of_second = in(reg) of_second.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.rows > 0 {
            // SAFETY: there are tiles, as their shapes were set.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
            IN_USE.set(false);
        }
    }
}

//! Which instruction set: detected once, overridden by `MODELOPT_RS_ISA`, applied by the `kernel!` macro.
//!
//! A kernel is one plain body. `kernel!` compiles it once per instruction set (the body is inlined into functions
//! that differ in nothing but `#[target_feature]`) and calls the one that this CPU has. The bodies hold no
//! intrinsics, and Rust neither reorders nor contracts float arithmetic, so every set gives the same bits.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m128i;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Isa {
    /// What every CPU of the target has: SSE2 on x86-64, NEON on 64-bit Arm.
    Portable = 1,
    /// AVX2 with FMA and F16C, as x86-64-v3.
    Avx2 = 2,
    /// AVX-512 F, BW, CD, DQ and VL, as x86-64-v4.
    Avx512 = 3,
}

/// The environment variable that overrides the detection.
pub const VARIABLE: &str = "MODELOPT_RS_ISA";

/// Whether what every CPU of the target has includes FMA: on 64-bit Arm.
pub const PORTABLE_FMA: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

static CURRENT: AtomicU8 = AtomicU8::new(0);

impl Isa {
    /// All of them, narrowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The name that `MODELOPT_RS_ISA` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let found = match self {
            Self::Portable => true,
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi2")
            }
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512cd")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
        };
        #[cfg(not(target_arch = "x86_64"))]
        let found = self == Self::Portable;
        found
    }

    /// Whether this is AVX-512, and this CPU has its products of bytes as well (VNNI).
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub fn has_vnni(self) -> bool {
        self == Self::Avx512 && is_x86_feature_detected!("avx512vnni")
    }

    /// The widest that this CPU has.
    fn best() -> Self {
        *Self::ALL.iter().rfind(|isa| isa.is_available()).unwrap_or(&Self::Portable)
    }
}

/// Look `name` up and check that this CPU has it.
pub fn parse(name: &str) -> Result<Isa, String> {
    let known = Isa::ALL.map(Isa::name).join(", ");
    let isa = Isa::ALL
        .into_iter()
        .find(|isa| isa.name() == name)
        .ok_or_else(|| format!("must be one of {known}, got {name:?}"))?;
    if isa.is_available() { Ok(isa) } else { Err(format!("is {name:?}, which this CPU does not have")) }
}

/// Read `MODELOPT_RS_ISA`; an error names the variable.
pub fn init_from_env() -> Result<(), String> {
    match std::env::var(VARIABLE) {
        Ok(name) => parse(&name).map(set).map_err(|why| format!("{VARIABLE} {why}")),
        Err(std::env::VarError::NotPresent) => Ok(()),
        Err(why) => Err(format!("{VARIABLE}: {why}")),
    }
}

/// Use `isa` from now on (it must be available: `parse` has checked it).
pub fn set(isa: Isa) {
    assert!(isa.is_available(), "{} is not available", isa.name());
    CURRENT.store(isa as u8, Ordering::Relaxed);
}

/// The instruction set in use. Never one that this CPU lacks; another thread may set it, so what decides twice asks once.
#[inline]
pub fn current() -> Isa {
    match CURRENT.load(Ordering::Relaxed) {
        1 => Isa::Portable,
        2 => Isa::Avx2,
        3 => Isa::Avx512,
        _ => {
            let best = Isa::best();
            set(best);
            best
        }
    }
}

/// Define a kernel: a function whose body is compiled once per instruction set.
///
/// Generic parameters are `name: path` (carry a constant as an associated constant of a trait). What the body
/// calls must be `#[inline(always)]`, or it is compiled for the baseline. In the body the constant `FMA` says whether its
/// set multiplies and adds with one rounding. Never inlined: in other kernels the baseline's body would stand once more.
macro_rules! kernel {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(< $($g:ident : $bound:path),+ >)? ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)?
        $body:block
    ) => {
        $(#[$meta])*
        #[inline(never)]
        $vis fn $name $(< $($g : $bound),+ >)? ( $($arg : $ty),* ) $(-> $ret)? {
            #[inline(always)]
            fn body < $($($g : $bound,)+)? const FMA: bool > ( $($arg : $ty),* ) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2")]
            fn avx2 $(< $($g : $bound),+ >)? ( $($arg : $ty),* ) $(-> $ret)? {
                body::< $($($g,)+)? true > ( $($arg),* )
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
            fn avx512 $(< $($g : $bound),+ >)? ( $($arg : $ty),* ) $(-> $ret)? {
                body::< $($($g,)+)? true > ( $($arg),* )
            }

            match $crate::isa::current() {
                $crate::isa::Isa::Portable => body::< $($($g,)+)? { $crate::isa::PORTABLE_FMA } > ( $($arg),* ),
                // SAFETY: `current` returns a set only after `is_available` has found all of its features.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx2 => unsafe { avx2 $(::< $($g),+ >)? ( $($arg),* ) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx512 => unsafe { avx512 $(::< $($g),+ >)? ( $($arg),* ) },
                #[cfg(not(target_arch = "x86_64"))]
                _ => body::< $($($g,)+)? { $crate::isa::PORTABLE_FMA } > ( $($arg),* ),
            }
        }
    };
}
pub(crate) use kernel;

/// Ask for the cache lines that lie `ahead` elements after `x`, whatever is there: changes nothing else. `EARLY`: into the
/// second level, for what is read some thousands of elements later, as the first waits for few lines at a time.
#[inline(always)]
pub fn prefetch<const EARLY: bool, T>(x: &[T], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in x.chunks((64 / size_of::<T>()).max(1)).map(|line| line.as_ptr().wrapping_add(ahead).cast()) {
        use std::arch::x86_64::_mm_prefetch as ask;
        // SAFETY: SSE is part of the x86-64 baseline, and a prefetch of any address has no effect but on the cache.
        unsafe { if EARLY { ask::<2>(at) } else { ask::<3>(at) } };
    }
}

/// Copy to memory that nobody reads soon, past the caches: its lines are not read first, as an ordinary store does.
///
/// The bytes are those of `copy_from_slice`. For plain numbers, in pieces that lie in the cache; [`fence`] comes after the
/// last.
pub fn stream<T: Copy>(from: &[T], to: &mut [T]) {
    let per_line = (64 / size_of::<T>()).max(1);
    let head = to.as_ptr().align_offset(64).min(to.len());
    to[..head].copy_from_slice(&from[..head]);
    let (from, to) = (&from[head..], &mut to[head..]);
    let lines = if per_line * size_of::<T>() == 64 { to.len() / per_line } else { 0 };
    let (from_lines, from) = from.split_at(lines * per_line);
    let (to_lines, to) = to.split_at_mut(lines * per_line);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction set in use is one that this CPU has; both hold so many lines of 64 bytes, and the second
    // begins on a line: at `head`, unless there are none.
    unsafe {
        let (from, to) = (from_lines.as_ptr().cast(), to_lines.as_mut_ptr().cast());
        if current() == Isa::Avx512 { wide_lines(from, to, lines) } else { narrow_lines(from, to, lines) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    to_lines.copy_from_slice(from_lines);
    to.copy_from_slice(from);
}

/// Order what was streamed before what follows: at the end of a worker, and not for each piece, as it waits for them all.
#[inline]
pub fn fence() {
    // SAFETY: SSE is part of the x86-64 baseline.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Stream lines of 64 bytes, one store for each.
///
/// # Safety
///
/// Both hold `lines` of them, and `to` begins on a line.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn wide_lines(from: *const __m128i, to: *mut __m128i, lines: usize) {
    use std::arch::x86_64::{_mm512_loadu_si512, _mm512_stream_si512};
    for i in 0..lines {
        // SAFETY: `i` is one of the lines.
        unsafe { _mm512_stream_si512(to.add(4 * i).cast(), _mm512_loadu_si512(from.add(4 * i).cast())) };
    }
}

/// The same with SSE2, part of the x86-64 baseline.
///
/// # Safety
///
/// As for [`wide_lines`].
#[cfg(target_arch = "x86_64")]
unsafe fn narrow_lines(from: *const __m128i, to: *mut __m128i, lines: usize) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_stream_si128};
    for i in 0..4 * lines {
        // SAFETY: `i` is a quarter of one of the lines.
        unsafe { _mm_stream_si128(to.add(i), _mm_loadu_si128(from.add(i))) };
    }
}

/// Run `f` in the default floating-point environment, whatever a library has set in this thread.
///
/// A library built with `-ffast-math` sets flush-to-zero and denormals-are-zero in the thread that loads it, and
/// threads started from there inherit it: without this, bits would depend on who loaded what before.
pub fn with_default_float_environment<R>(f: impl FnOnce() -> R) -> R {
    let _restored_on_drop = FloatEnvironment::enter();
    f()
}

struct FloatEnvironment {
    #[cfg(target_arch = "x86_64")]
    saved: u32,
}

#[cfg(target_arch = "x86_64")]
impl FloatEnvironment {
    /// All exceptions masked, round to nearest even, no flush-to-zero: what a new process starts with.
    const DEFAULT: u32 = 0x1f80;
    /// The six sticky exception flags: they change no result.
    const FLAGS: u32 = 0x3f;

    fn enter() -> Self {
        let saved = Self::get();
        if saved & !Self::FLAGS != Self::DEFAULT {
            Self::set(Self::DEFAULT);
        }
        Self { saved }
    }

    fn get() -> u32 {
        let mut value = 0u32;
        // SAFETY: stmxcsr (SSE, part of the x86-64 baseline) writes four bytes to `value`.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
        value
    }

    fn set(value: u32) {
        // SAFETY: ldmxcsr reads four bytes from `value`, which holds no reserved bits: it is DEFAULT or what
        // stmxcsr gave. The default is the environment that Rust assumes.
        unsafe {
            std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags, readonly));
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for FloatEnvironment {
    fn drop(&mut self) {
        if self.saved & !Self::FLAGS != Self::DEFAULT {
            Self::set(self.saved);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl FloatEnvironment {
    fn enter() -> Self {
        Self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_best_is_available() {
        assert!(Isa::best().is_available());
        assert!(current().is_available());
    }

    #[test]
    fn test_unknown_name_is_refused_with_the_known_ones() {
        let why = parse("sse9").unwrap_err();
        assert!(why.contains("portable, avx2, avx512") && why.contains("sse9"), "{why}");
    }

    #[test]
    fn test_stream_copies_from_and_to_any_place() {
        let from: Vec<u16> = (0..400).collect();
        for (start, n) in [(0, 0), (0, 400), (1, 1), (3, 64), (5, 200), (31, 369), (32, 32), (33, 7)] {
            let mut to = vec![9; 400];
            stream(&from[start..start + n], &mut to[400 - n..]);
            assert!(to[400 - n..] == from[start..start + n] && to[..400 - n].iter().all(|&v| v == 9));
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn test_b9_flush_to_zero_is_lifted_and_restored() {
        let flush_and_daz = FloatEnvironment::DEFAULT | 0x8040;
        FloatEnvironment::set(flush_and_daz);
        let inside = with_default_float_environment(FloatEnvironment::get) & !FloatEnvironment::FLAGS;
        let after = FloatEnvironment::get() & !FloatEnvironment::FLAGS;
        FloatEnvironment::set(FloatEnvironment::DEFAULT);
        assert_eq!((inside, after), (FloatEnvironment::DEFAULT, flush_and_daz));
    }
}

//! How many threads a call has.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More threads than this are refused (a typo, not a machine).
pub const MAX_THREADS: usize = 1024;

/// The environment variable for the default number of threads.
const VARIABLE: &str = "MODELOPT_RS_NUM_THREADS";

/// 0: not set, the CPUs of this process.
static DEFAULT_THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's own default (0: none).
    static OVERRIDE: Cell<usize> = const { Cell::new(0) };
}

/// Read `MODELOPT_RS_NUM_THREADS`; an error names the variable.
pub fn init_from_env() -> Result<(), String> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let text = text.to_string_lossy();
    match text.trim().parse::<usize>() {
        Ok(n) if (1..=MAX_THREADS).contains(&n) => {
            set_num_threads(n);
            Ok(())
        }
        _ => Err(format!("{VARIABLE} must be an integer from 1 to {MAX_THREADS}, got {text:?}")),
    }
}

/// Set the process's default (1 to `MAX_THREADS`).
pub fn set_num_threads(n: usize) {
    DEFAULT_THREADS.store(n, Ordering::Relaxed);
}

/// Set this thread's own default (0: none) and return the one before.
pub fn swap_override(n: usize) -> usize {
    OVERRIDE.replace(n)
}

/// The number of threads of a call that names none.
pub fn num_threads() -> usize {
    match (OVERRIDE.get(), DEFAULT_THREADS.load(Ordering::Relaxed)) {
        (0, 0) => {
            // Asks the kernel (affinity, cgroup quota), so the answer is kept.
            let n = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_THREADS);
            DEFAULT_THREADS.store(n, Ordering::Relaxed);
            n
        }
        (0, n) | (n, _) => n,
    }
}

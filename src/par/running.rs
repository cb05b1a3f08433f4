//! Workers that were called by a thread, and its waiting for them.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long the thread waits awake: to be woken takes as long.
const PATIENCE: Duration = Duration::from_micros(50);

/// How many were called and have not ended.
#[derive(Debug, Default)]
pub(super) struct Running(AtomicUsize);

/// One of them, until it is dropped, also while a panic unwinds.
#[derive(Debug)]
pub(super) struct Ending<'a>(&'a Running);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

impl Running {
    /// Count another one.
    pub fn another(&self) -> Ending<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ending(self)
    }

    /// Wait until all have ended, or for a while.
    pub fn wait(&self) {
        let start = Instant::now();
        while self.0.load(Ordering::Acquire) > 0 && start.elapsed() < PATIENCE {
            spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_waiting_ends_with_the_last_one_or_after_a_while() {
        let running = Running::default();
        running.wait();
        let two = [running.another(), running.another()];
        let start = Instant::now();
        running.wait();
        assert!(start.elapsed() >= PATIENCE);
        drop(two);
        assert_eq!(running.0.into_inner(), 0);
    }
}

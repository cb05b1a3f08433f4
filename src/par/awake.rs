//! Workers that are awake: after a call they look for more work for a while before they sleep.
//!
//! To wake a sleeping thread takes 5 us of the caller's and 50 us until it runs, as long as a whole small call. And a thread
//! that waits its turn on a busy CPU may wait for milliseconds. So a call counts on those workers alone that have looked just
//! now, and claims them; others it wakes where that pays ([`super::pace`]).

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a worker looks before it sleeps.
const PATIENCE: Duration = Duration::from_micros(100);
/// A worker that has not looked for so long is not running.
const FRESH: Duration = Duration::from_micros(10);
/// Turns between two looks.
const TURNS: usize = 8;

/// When each worker has looked last, in nanoseconds from the start on; 0: it does not look, or is claimed.
#[derive(Debug)]
pub(super) struct Awake {
    start: Instant,
    looks: Box<[AtomicU64]>,
}

impl Awake {
    pub fn new(workers: usize) -> Self {
        Self { start: Instant::now(), looks: (0..workers).map(|_| AtomicU64::new(0)).collect() }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64 + 1
    }

    /// Claim up to `n` workers that look for work now; how many there were.
    pub fn claim(&self, n: usize) -> usize {
        if n == 0 || self.looks.iter().all(|look| look.load(Ordering::Relaxed) == 0) {
            return 0; // without asking for the time
        }
        let now = self.now();
        let is_claimed = |look: &&AtomicU64| {
            let at = look.load(Ordering::Relaxed);
            let is_fresh = at > 0 && now.saturating_sub(at) < FRESH.as_nanos() as u64;
            is_fresh && look.compare_exchange(at, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        self.looks.iter().filter(is_claimed).take(n).count()
    }

    /// Whether no worker looks for work.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.looks.iter().all(|look| look.load(Ordering::Relaxed) == 0)
    }

    /// Look for work until there has been none for a while; `look` does what there is, and says whether there was any.
    pub fn watch(&self, worker: usize, look: impl Fn() -> bool) {
        let Some(slot) = self.looks.get(worker) else { return };
        let mut at = self.now();
        let mut until = at + PATIENCE.as_nanos() as u64;
        slot.store(at, Ordering::Relaxed);
        while at < until {
            let worked = look();
            let now = self.now();
            if worked {
                until = now + PATIENCE.as_nanos() as u64;
                slot.store(now, Ordering::Relaxed);
            } else {
                // Who is claimed stays so until the work has come.
                let _ = slot.compare_exchange(at, now, Ordering::Relaxed, Ordering::Relaxed);
                (0..TURNS).for_each(|_| spin_loop());
            }
            at = now;
        }
        slot.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn test_only_a_worker_that_looks_is_claimed_and_once() {
        let awake = Awake::new(2);
        assert_eq!(awake.claim(2), 0);
        let seen = Cell::new(vec![]);
        awake.watch(1, || {
            let mut all = seen.take();
            if all.len() < 4 {
                all.push(awake.claim(2));
            }
            seen.set(all);
            false
        });
        // The first claim has it; until there was work nobody else has. (0, 0 ... where this test itself had to wait.)
        assert!(matches!(seen.take()[..], [1, 0, 0, 0] | [0, ..]));
        assert_eq!(awake.claim(2), 0);
    }

    #[test]
    fn test_a_worker_sleeps_after_a_while_without_work() {
        let awake = Awake::new(1);
        let (start, left) = (Instant::now(), Cell::new(3u32));
        awake.watch(0, || left.replace(left.get().saturating_sub(1)) > 0);
        assert!(start.elapsed() >= PATIENCE && left.get() == 0);
        awake.watch(7, || unreachable!("there is no such worker"));
    }
}

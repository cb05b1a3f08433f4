//! Whether it pays to have more workers for what is left of a call.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// To wake a worker takes about half as long.
const WORTH: Duration = Duration::from_micros(100);
/// Of so few items each may be long: their pace is known too late.
const FEW: usize = 16;
/// A worker that is awake may have gone to sleep again before an item of this length is done.
const LONG: Duration = Duration::from_micros(40);

/// What to do about workers that are not awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// Go on without them.
    Alone,
    /// Wake them; those that are awake by then are called after a later item.
    Wake,
    /// Call them, and wait for them at the end.
    Call,
}

/// How fast the calling thread goes.
#[derive(Debug)]
pub(super) struct Pace {
    start: Instant,
    items: usize,
    done: Cell<usize>,
    /// When to wake again, in nanoseconds: who was awake may sleep again.
    next: Cell<u128>,
}

impl Pace {
    pub fn new(items: usize) -> Self {
        Self { start: Instant::now(), items, done: Cell::new(0), next: Cell::new(0) }
    }

    /// Before the first item.
    pub fn at_start(&self) -> Advice {
        if self.items < FEW { Advice::Call } else { Advice::Alone }
    }

    /// After each of the calling thread's items, where so many threads are at work.
    pub fn after_item(&self, together: usize) -> Advice {
        self.after_item_at(self.start.elapsed().as_nanos(), together)
    }

    /// So many nanoseconds after the start.
    fn after_item_at(&self, elapsed: u128, together: usize) -> Advice {
        let done = self.done.get() + 1;
        self.done.set(done);
        let left = self.items.saturating_sub(done * together) as u128 * elapsed / (done * together) as u128;
        if elapsed < self.next.get() || left < WORTH.as_nanos() {
            return Advice::Alone;
        }
        self.next.set(4 * elapsed + 4 * WORTH.as_nanos());
        if elapsed / done as u128 > LONG.as_nanos() { Advice::Call } else { Advice::Wake }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_workers_are_woken_for_long_work_and_called_for_long_items() {
        assert_eq!(Pace::new(FEW - 1).at_start(), Advice::Call);
        let long = Pace::new(100_000);
        assert_eq!(long.at_start(), Advice::Alone);
        assert_eq!(long.after_item_at(1_000, 1), Advice::Wake);
        assert_eq!(long.after_item_at(2_000, 1), Advice::Alone); // they are on their way
        assert_eq!(long.after_item_at(5 * WORTH.as_nanos(), 1), Advice::Wake); // they may sleep again
        assert_eq!(Pace::new(1000).after_item_at(LONG.as_nanos() + 1, 1), Advice::Call);
        let short = Pace::new(2);
        assert_eq!(short.after_item_at(10 * WORTH.as_nanos(), 2), Advice::Alone); // nothing is left
        assert_eq!(Pace::new(3).after_item_at(WORTH.as_nanos() / 3, 1), Advice::Alone);
    }
}

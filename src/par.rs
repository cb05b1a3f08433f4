//! The thread pool and the only ways to use it: [`for_each`], [`map`] and [`count`] over fixed chunks.
//!
//! A caller hands over an iterator of work items (disjoint slices, mostly from `chunks_mut`); workers take the next
//! one whenever they are free, so uneven work balances itself. How the work is cut never depends on the number of
//! threads, and results come back in the order of the items: the number of threads cannot change a bit.
//!
//! The calling thread works too; with one thread, or one item, no pool is ever started. One pool serves the process
//! that made it: a forked child (which has none of the threads) makes its own. The cells are atomic pointers, so a
//! fork can never copy a lock that is held.

mod awake;
mod pace;
mod running;
mod settings;

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use once_cell::race::OnceBox;

pub use settings::{MAX_THREADS, init_from_env, num_threads, set_num_threads, swap_override};

use crate::isa;
use awake::Awake;
use pace::{Advice, Pace};
use running::Running;

/// Elements in one piece of work: 128 KiB of float32, so that a second look at a chunk finds it in the L2 cache.
pub const CHUNK: usize = 1 << 15;

/// Set when worker threads could not be started and the work ran in the calling thread instead.
static SPAWN_FAILED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread is inside a parallel section: what it calls then runs inline.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// Whether this worker looks for work, see [`Pool::watch`].
    static WATCHING: Cell<bool> = const { Cell::new(false) };
    /// See [`with_scratch`].
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// More scratch than this is given back at once.
const KEPT_SCRATCH: usize = 1 << 20;

/// Lend `n` bytes of any contents, which this thread keeps from one piece of work to the next (new memory for each
/// piece: 5 % to 8 % on top of 4-bit quantize and dequantize, and an allocation that could fail on the way).
pub fn with_scratch<R>(n: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut bytes = SCRATCH.take();
    if bytes.len() < n {
        bytes.resize(n, 0);
    }
    let result = f(&mut bytes[..n]);
    if bytes.len() <= KEPT_SCRATCH {
        SCRATCH.set(bytes);
    }
    result
}

/// Whether a pool could not be started since this was last asked.
pub fn take_spawn_failure() -> bool {
    SPAWN_FAILED.load(Ordering::Relaxed) && SPAWN_FAILED.swap(false, Ordering::Relaxed)
}

/// A pool and the process that it belongs to. Pools are never dropped: a call may be inside.
struct Pool {
    pid: u32,
    workers: usize,
    threads: rayon::ThreadPool,
    awake: Awake,
    next: OnceBox<Pool>,
}

impl Pool {
    /// Wake `n` workers: each takes what work there is, and looks for more for a while.
    fn wake(&'static self, n: usize) {
        for _ in 0..n {
            self.threads.spawn(|| self.watch());
        }
    }

    fn watch(&self) {
        if let Some(worker) = self.threads.current_thread_index()
            && !WATCHING.replace(true)
        {
            self.awake.watch(worker, || self.threads.yield_now() == Some(rayon::Yield::Executed));
            WATCHING.set(false);
        }
    }
}

static POOLS: OnceBox<Pool> = OnceBox::new();

/// This process's pool with at least `workers` threads, or None if they could not be started.
fn pool(workers: usize) -> Option<&'static Pool> {
    let pid = std::process::id();
    let mut cell = &POOLS;
    let mut largest = 0;
    loop {
        match cell.get() {
            Some(found) if found.pid == pid && found.workers >= workers => return Some(found),
            Some(found) => {
                if found.pid == pid {
                    largest = found.workers;
                }
                cell = &found.next;
            }
            None => {
                // At least doubled, so that asking for one more each time cannot pile pools up.
                let size = workers.max(2 * largest).min(MAX_THREADS).max(workers);
                let made = rayon::ThreadPoolBuilder::new()
                    .num_threads(size)
                    .thread_name(|i| format!("modelopt-rs-{i}"))
                    .build();
                let Ok(threads) = made else {
                    SPAWN_FAILED.store(true, Ordering::Relaxed);
                    return None;
                };
                // Two threads may race here: the loser's pool is dropped, and the loop looks again.
                let awake = Awake::new(size);
                let _ = cell.set(Box::new(Pool { pid, workers: size, threads, awake, next: OnceBox::new() }));
            }
        }
    }
}

/// Marks this thread as inside a parallel section, also while a panic unwinds.
struct Inside(bool);

impl Inside {
    fn enter() -> Self {
        Self(INSIDE.replace(true))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}

/// What a worker does: take items until there are none, and call what it is given after each.
type Worker<'a> = &'a (dyn Fn(&dyn Fn()) + Sync);

/// Run `worker` in up to `threads` threads at once, this one among them, and return when all are done.
///
/// Workers that are awake are called at once. The others are woken when what is left of the `items` is long enough, and called
/// once they are awake: so a call of many short items never waits for a thread to wake up, nor for one that waits for a CPU.
/// Called through a pointer, once for a thread, so that each kernel's loop is compiled once.
fn run_workers(threads: usize, items: usize, worker: Worker) {
    let pool = if threads > 1 && !INSIDE.get() { pool(threads - 1) } else { None };
    let work = |after: &dyn Fn()| {
        let _inside = Inside::enter();
        isa::with_default_float_environment(|| worker(after));
        isa::fence();
    };
    let Some(pool) = pool else { return work(&|| ()) };
    let running = Running::default();
    pool.threads.in_place_scope(|scope| {
        let call = |n| {
            for _ in 0..n {
                let ending = running.another();
                scope.spawn(|_| {
                    let _ending = ending;
                    work(&|| ());
                });
            }
        };
        let (pace, asleep) = (Pace::new(items), Cell::new(threads - 1));
        let call_awake = || {
            let awake = pool.awake.claim(asleep.get());
            asleep.set(asleep.get() - awake);
            call(awake);
        };
        let follow = |advice| match advice {
            Advice::Alone => {}
            Advice::Wake => pool.wake(asleep.get()),
            Advice::Call => {
                pool.wake(asleep.get());
                call(asleep.take());
            }
        };
        call_awake();
        if asleep.get() > 0 {
            follow(pace.at_start());
        }
        work(&|| {
            if asleep.get() > 0 {
                call_awake();
                follow(pace.after_item(threads - asleep.get()));
            }
        });
        running.wait();
    });
}

/// The next item, its lock held for no longer than taking it.
fn take<I>(items: &Mutex<impl Iterator<Item = I>>) -> Option<I> {
    // Only an iterator that panicked can have poisoned the lock; then the panic is already on its way out.
    items.lock().ok()?.next()
}

/// Call `f` on every item. `items` should be cut into pieces of about [`CHUNK`] elements.
pub fn for_each<I: Send>(threads: usize, items: impl ExactSizeIterator<Item = I> + Send, f: impl Fn(I) + Sync) {
    let (threads, mut items) = (threads.min(items.len()), items);
    each(threads, &mut items, &f);
}

/// The same through pointers, so that it is compiled once for each type of item and not for each kernel.
#[inline(never)]
fn each<I: Send>(threads: usize, items: &mut (dyn ExactSizeIterator<Item = I> + Send), f: &(dyn Fn(I) + Sync)) {
    let (n, items) = (items.len(), Mutex::new(items));
    run_workers(threads, n, &|after| {
        while let Some(item) = take(&items) {
            f(item);
            after();
        }
    });
}

/// Call `f` on every item, with memory of any contents that each worker makes once for itself.
pub fn for_each_with<I: Send, S>(
    threads: usize,
    items: impl ExactSizeIterator<Item = I> + Send,
    make: impl Fn() -> S + Sync,
    f: impl Fn(&mut S, I) + Sync,
) {
    let (threads, mut items) = (threads.min(items.len()), items);
    each_with(threads, &mut items, &make, &f);
}

/// As [`each`].
#[inline(never)]
fn each_with<I: Send, S>(
    threads: usize,
    items: &mut (dyn ExactSizeIterator<Item = I> + Send),
    make: &(dyn Fn() -> S + Sync),
    f: &(dyn Fn(&mut S, I) + Sync),
) {
    let (n, items) = (items.len(), Mutex::new(items));
    run_workers(threads, n, &|after| {
        let mut scratch = make();
        while let Some(item) = take(&items) {
            f(&mut scratch, item);
            after();
        }
    });
}

/// Call `f` on every item and return what it gives, in the order of the items.
pub fn map<I: Send, R: Send>(
    threads: usize,
    items: impl ExactSizeIterator<Item = I> + Send,
    f: impl Fn(I) -> R + Sync,
) -> Vec<R> {
    let mut results: Vec<Option<R>> = (0..items.len()).map(|_| None).collect();
    for_each(threads, items.zip(results.iter_mut()), |(item, slot)| *slot = Some(f(item)));
    results.into_iter().flatten().collect()
}

/// Count: `f` adds to `counters` counters, which each worker has for itself; return their sums.
///
/// Only counting can be shared out so: which items a worker sees depends on timing, but sums of integers do not.
pub fn count<I: Send>(
    threads: usize,
    items: impl ExactSizeIterator<Item = I> + Send,
    counters: usize,
    f: impl Fn(&mut [u64], I) + Sync,
) -> Vec<u64> {
    let (threads, n) = (threads.min(items.len()), items.len());
    let items = Mutex::new(items);
    let sums = Mutex::new(vec![]);
    run_workers(threads, n, &|after| {
        let mut counts = vec![0; counters];
        while let Some(item) = take(&items) {
            f(&mut counts, item);
            after();
        }
        if let Ok(mut sums) = sums.lock() {
            if sums.is_empty() {
                *sums = counts;
            } else {
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
        }
    });
    sums.into_inner().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::atomic::AtomicUsize;
    use std::thread::{current, yield_now};
    use std::time::{Duration, Instant};

    /// Wait for a condition, but no longer than this.
    fn wait_for(limit: Duration, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() && start.elapsed() < limit {
            yield_now();
        }
    }

    #[test]
    fn test_map_keeps_the_order_of_the_items_for_any_number_of_threads() {
        let want: Vec<usize> = (0..1000).map(|i| i * i).collect();
        for threads in 1..9 {
            assert_eq!(map(threads, 0..1000usize, |i| i * i), want);
        }
    }

    #[test]
    fn test_count_sees_every_item_once() {
        for threads in 1..9 {
            let sums = count(threads, 0..1000usize, 2, |sums, i| sums[i % 2] += i as u64);
            assert_eq!(sums.iter().sum::<u64>(), 499_500);
        }
    }

    #[test]
    fn test_every_item_is_done_once_by_workers_that_are_awake_or_asleep() {
        let all_sleep = || pool(2).is_none_or(|pool| pool.awake.is_idle());
        for round in 0..40 {
            if round % 2 == 0 {
                wait_for(Duration::from_secs(1), all_sleep);
            }
            for (threads, n) in [(2, 3), (3, 40), (2, 200)] {
                let got = map(threads, 0..n, |i| {
                    if round % 8 == 0 && i % 10 == 0 {
                        wait_for(Duration::from_micros(30), || false); // a long item
                    }
                    i
                });
                assert!(got.into_iter().eq(0..n));
            }
        }
    }

    #[test]
    fn test_work_of_many_items_or_of_few_long_ones_is_shared_out() {
        for n in [2usize, 100] {
            // Each item lasts until two threads are at work.
            let seen = Mutex::new(HashSet::new());
            let both = || seen.lock().is_ok_and(|seen| seen.len() == 2);
            for_each(2, 0..n, |_| {
                seen.lock().map(|mut seen| seen.insert(current().id())).unwrap();
                wait_for(Duration::from_millis(1000 / n as u64), both);
            });
            assert!(both(), "{n}");
        }
    }

    #[test]
    fn test_d4_no_lock_is_held_while_an_item_is_worked_on() {
        // Of two items each waits until the other one is worked on too: a lock would keep it out.
        let working = AtomicUsize::new(0);
        let both = |(): &()| {
            working.fetch_add(1, Ordering::SeqCst);
            wait_for(Duration::from_secs(2), || working.load(Ordering::SeqCst) >= 2);
            working.load(Ordering::SeqCst)
        };
        let items = [(), ()];
        let together = |run: &dyn Fn()| {
            working.store(0, Ordering::SeqCst);
            run();
        };
        together(&|| for_each(2, items.iter(), |item| assert_eq!(both(item), 2)));
        together(&|| for_each_with(2, items.iter(), || (), |(), item| assert_eq!(both(item), 2)));
        together(&|| assert_eq!(map(2, items.iter(), both), [2, 2]));
        together(&|| assert_eq!(count(2, items.iter(), 1, |sums, item| sums[0] += both(item) as u64), [4]));
    }

    #[test]
    fn test_d7_a_nested_call_runs_inline() {
        let inner = map(4, 0..8, |_| {
            let me = current().id();
            map(4, 0..8, move |_| current().id() == me)
        });
        assert!(inner.into_iter().flatten().all(|same| same));
    }

    #[test]
    fn test_d8_a_panic_in_a_worker_reaches_the_caller_and_the_pool_goes_on() {
        let caught = std::panic::catch_unwind(|| for_each(4, 0..64, |i| assert!(i != 40, "on purpose")));
        assert!(caught.is_err());
        assert_eq!(map(4, 0..4, |i| i), [0, 1, 2, 3]);
    }
}

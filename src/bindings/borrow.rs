//! Who reads and writes which memory: a call that would write what another call uses is refused instead of racing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::prelude::*;

use super::array::Array;
use crate::error::Error;

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub start: usize,
    pub end: usize,
    pub writes: bool,
}

/// The memory of all calls that are running, by call. Locked only while the GIL is held, so a fork never copies it
/// locked.
static RUNNING: Mutex<Vec<(u64, Vec<Extent>)>> = Mutex::new(Vec::new());

/// The number of the next call.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Registered memory; given back when dropped.
pub struct Borrow(u64);

/// Two extents of which one is written where the other is: the first such in the order of memory.
///
/// By sorting: a call may have thousands of arrays. Stable, which merges the runs that they mostly come in: parameters,
/// gradients, states, each allocated one after the other.
fn conflict(extents: &[Extent]) -> Option<(usize, usize)> {
    let mut order: Vec<usize> = (0..extents.len()).filter(|&i| extents[i].start < extents[i].end).collect();
    order.sort_by_key(|&i| extents[i].start);
    // The extents so far that reach farthest: of all, and of those that are written.
    let (mut any, mut written): (Option<usize>, Option<usize>) = (None, None);
    for i in order {
        let farthest = if extents[i].writes { any } else { written };
        if let Some(j) = farthest.filter(|&j| extents[j].end > extents[i].start) {
            return Some((i.min(j), i.max(j)));
        }
        let farther = |j: Option<usize>| if j.is_some_and(|j| extents[j].end >= extents[i].end) { j } else { Some(i) };
        any = farther(any);
        if extents[i].writes {
            written = farther(written);
        }
    }
    None
}

/// What was copied first cannot spoil the answer, but its owner would find it changed, or one result lost.
///
/// Asks `NumPy`, which knows that interleaved views do not overlap; where that is too hard to tell, they do.
fn refuse_overlap_with_copied(arrays: &[&Array<'_>]) -> PyResult<()> {
    for (i, copied) in arrays.iter().enumerate().filter(|(_, array)| array.original.is_some()) {
        let numpy = copied.object.py().import("numpy")?;
        for (j, other) in arrays.iter().enumerate() {
            let pair_of_copies = other.original.is_some() && j < i; // seen from the other one
            if i == j || pair_of_copies || !(copied.is_written() || other.is_written()) {
                continue;
            }
            let found = numpy.call_method1("shares_memory", (copied.given(), other.given(), HARDEST));
            if found.is_ok_and(|found| !found.is_truthy().unwrap_or(true)) {
                continue;
            }
            let (out, read) =
                if other.is_written() && !(copied.is_written() && i < j) { (other, copied) } else { (copied, other) };
            let text = format!("{} and {} overlap in memory", out.name, read.name.arg);
            return Err(Error::Layout(text).into());
        }
    }
    Ok(())
}

/// How much `NumPy` may look at to tell whether two views overlap.
const HARDEST: usize = 1_000_000;

/// Register the memory of one call: refused where its own arrays overlap what it writes, or another call is there.
///
/// Copies are the call's own; they are made and put back with the GIL held.
pub fn borrow(arrays: &[&Array<'_>]) -> PyResult<Borrow> {
    refuse_overlap_with_copied(arrays)?;
    let extents: Vec<Extent> = arrays.iter().map(|array| array.extent()).collect();
    if let Some((i, j)) = conflict(&extents) {
        let (first, second) = if extents[i].writes { (i, j) } else { (j, i) };
        let (first, second) = (arrays[first].name, arrays[second].name);
        return Err(Error::Layout(format!("{first} and {} overlap in memory", second.arg)).into());
    }
    let in_use = |i: usize| Error::Layout(format!("{} is in use by another call", arrays[i].name)).into();
    register(extents).map_err(in_use)
}

/// Register what doesn't overlap itself; or the first of it that another call has.
fn register(mut extents: Vec<Extent>) -> Result<Borrow, usize> {
    let mut running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !running.is_empty() {
        let own = extents.len();
        extents.extend(running.iter().flat_map(|(_, others)| others));
        if let Some((i, _)) = conflict(&extents) {
            return Err(i);
        }
        extents.truncate(own);
    }
    let call = NEXT.fetch_add(1, Ordering::Relaxed);
    running.push((call, extents));
    Ok(Borrow(call))
}

/// The same of a call that keeps the GIL and writes one array: while no other is running none can begin, and nothing need
/// be registered.
pub fn borrow_at_once<'a, 'py: 'a>(
    written: &'a Array<'py>,
    read: impl Iterator<Item = &'a Array<'py>> + Clone,
) -> PyResult<Option<Borrow>> {
    let Extent { start, end, .. } = written.extent();
    let is_apart = |array: &Array<'_>| {
        let other = array.extent();
        array.original.is_none() && (other.end <= start || end <= other.start)
    };
    let alone = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_empty();
    if alone && read.clone().all(is_apart) {
        return Ok(None);
    }
    borrow(&std::iter::once(written).chain(read).collect::<Vec<_>>()).map(Some)
}

/// Register the memory of one call; None where something that is written overlaps anything else, or another call is there.
pub fn borrow_extents(extents: Vec<Extent>) -> Option<Borrow> {
    if conflict(&extents).is_some() { None } else { register(extents).ok() }
}

impl Drop for Borrow {
    fn drop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        running.retain(|(call, _)| *call != self.0);
    }
}

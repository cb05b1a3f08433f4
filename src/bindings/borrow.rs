//! Who reads and writes which memory: a call that would write what another call uses is refused instead of racing.

use std::sync::Mutex;

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

impl Extent {
    fn conflicts(&self, other: &Self) -> bool {
        (self.writes || other.writes) && self.start < other.end && other.start < self.end
    }
}

/// The memory of all calls that are running. Locked only while the GIL is held, so a fork never copies it locked.
static RUNNING: Mutex<Vec<Extent>> = Mutex::new(Vec::new());

/// Registered memory; given back when dropped.
pub struct Borrow(Vec<Extent>);

/// An input that was copied first cannot spoil the answer, but its owner would find it changed.
fn refuse_overlap_with_copied(arrays: &[&Array<'_>]) -> PyResult<()> {
    for (copied, original) in arrays.iter().filter_map(|array| Some((array, array.original.as_ref()?))) {
        for out in arrays.iter().filter(|array| array.extent().writes) {
            let numpy = out.object.py().import("numpy")?;
            if numpy.call_method1("shares_memory", (original, &out.object))?.is_truthy()? {
                let text = format!("{} and {} overlap in memory", out.name, copied.name.1);
                return Err(Error::Layout(text).into());
            }
        }
    }
    Ok(())
}

/// Register the memory of one call: refused where its own arrays overlap what it writes, or another call is there.
pub fn borrow(arrays: &[&Array<'_>]) -> PyResult<Borrow> {
    refuse_overlap_with_copied(arrays)?;
    let extents: Vec<Extent> = arrays.iter().map(|array| array.extent()).collect();
    for (i, a) in extents.iter().enumerate() {
        if let Some(j) = extents[..i].iter().position(|b| a.conflicts(b)) {
            let (first, second) = if a.writes { (i, j) } else { (j, i) };
            let (first, second) = (arrays[first].name, arrays[second].name);
            return Err(Error::Layout(format!("{first} and {} overlap in memory", second.1)).into());
        }
    }
    let mut running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(i) = extents.iter().position(|a| running.iter().any(|b| a.conflicts(b))) {
        return Err(Error::Layout(format!("{} is in use by another call", arrays[i].name)).into());
    }
    running.extend(&extents);
    Ok(Borrow(extents))
}

impl Drop for Borrow {
    fn drop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for extent in &self.0 {
            if let Some(i) = running.iter().position(|other| other == extent) {
                running.swap_remove(i);
            }
        }
    }
}

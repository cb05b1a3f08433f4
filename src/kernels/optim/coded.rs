//! Steps of states in blocks of codes, and these states as numbers.

use super::coding::{Coding, absmax, load, store};
use super::storage::{Storage, step_arrays};
use super::{Algorithm, BUFFER, MAX_STATES, Prepared};
use crate::isa::kernel;
use crate::par::{self, CHUNK};

/// Codes and scales of one state.
#[derive(Debug, Default)]
pub struct Blocks<'a> {
    /// The codes; of two 4-bit codes in a byte the first is in the low bits.
    pub codes: &'a mut [u8],
    /// The largest magnitude of each block.
    pub absmax: &'a mut [f32],
}

/// Elements that are stepped at a time: several blocks, whose largest magnitudes are looked for at the same time (one by
/// one each waits for its own: half as much again). Not 1,024: see [`Plain`].
const SPAN: usize = 768;

impl<'a> Blocks<'a> {
    /// Each block's codes and its largest magnitude.
    #[inline(always)]
    fn each<K: Coding>(&mut self) -> impl Iterator<Item = (&mut [u8], &mut f32)> + use<'_, 'a, K> {
        self.codes.chunks_mut(K::BLOCK * K::BITS / 8).zip(self.absmax.iter_mut())
    }
}

/// Code all blocks of `numbers`, which has zeros up to the end of a block.
#[inline(always)]
fn store_all<K: Coding>(numbers: &mut [f32], signed: bool, state: &mut Blocks<'_>) {
    for (numbers, (_, largest)) in numbers.chunks_exact_mut(K::BLOCK).zip(state.each::<K>()) {
        *largest = absmax::<K>(numbers, signed);
    }
    for (numbers, (codes, largest)) in numbers.chunks_exact(K::BLOCK).zip(state.each::<K>()) {
        store::<K>(numbers, signed, *largest, codes);
    }
}

impl<K: Coding> Storage<f32> for K {
    type State<'a> = Blocks<'a>;
    const BLOCK: usize = SPAN;
    const ANY_LENGTH: bool = false;

    #[inline(always)]
    fn split_off<'a: 'a>(state: &mut Blocks<'a>, n: usize) -> Blocks<'a> {
        let bytes = (n * K::BITS).div_ceil(8).min(state.codes.len());
        let blocks = n.div_ceil(K::BLOCK).min(state.absmax.len());
        Blocks {
            codes: state.codes.split_off_mut(..bytes).unwrap_or_default(),
            absmax: state.absmax.split_off_mut(..blocks).unwrap_or_default(),
        }
    }

    #[inline(always)]
    fn step_block<A: Algorithm<f32>>(
        param: &mut [f32],
        grad: &[f32],
        states: &mut [Blocks<'_>; MAX_STATES],
        numbers: &mut [[f32; BUFFER]; MAX_STATES],
        prepared: &Prepared<f32>,
        algorithm: &A,
    ) {
        let n = param.len();
        for ((numbers, state), signed) in numbers.iter_mut().zip(&mut *states).zip(A::SIGNED).take(A::STATES) {
            for (numbers, (codes, largest)) in numbers.chunks_exact_mut(K::BLOCK).zip(state.each::<K>()) {
                load::<K>(codes, *largest, signed, numbers);
            }
            numbers[n..SPAN].fill(0.0);
        }
        step_arrays(param, grad, &mut numbers.each_mut().map(|x| &mut x[..n]), prepared, algorithm);
        for ((numbers, state), signed) in numbers.iter_mut().zip(states).zip(A::SIGNED).take(A::STATES) {
            store_all::<K>(&mut numbers[..SPAN], signed, state);
        }
    }
}

/// A state cut into pieces.
fn pieces<K: Coding>(mut state: Blocks<'_>, n: usize) -> Vec<Blocks<'_>> {
    (0..n.div_ceil(CHUNK)).map(|i| <K as Storage<f32>>::split_off(&mut state, CHUNK.min(n - i * CHUNK))).collect()
}

/// The numbers of a state.
pub fn decode<K: Coding>(state: Blocks<'_>, signed: bool, out: &mut [f32], threads: usize) {
    let work = pieces::<K>(state, out.len()).into_iter().zip(out.chunks_mut(CHUNK));
    par::for_each(threads, work, |(state, out)| decode_piece::<K>(state, signed, out));
}

/// Code a state.
pub fn encode<K: Coding>(x: &[f32], signed: bool, state: Blocks<'_>, threads: usize) {
    let work = pieces::<K>(state, x.len()).into_iter().zip(x.chunks(CHUNK));
    par::for_each(threads, work, |(state, x)| encode_piece::<K>(x, signed, state));
}

kernel! {
    fn decode_piece<K: Coding>(state: Blocks<'_>, signed: bool, out: &mut [f32]) {
        let mut state = state;
        for (out, (codes, largest)) in out.chunks_mut(K::BLOCK).zip(state.each::<K>()) {
            let mut numbers = [0.0; 256];
            load::<K>(codes, *largest, signed, &mut numbers[..K::BLOCK]);
            out.copy_from_slice(&numbers[..out.len()]);
        }
    }
}

kernel! {
    fn encode_piece<K: Coding>(x: &[f32], signed: bool, state: Blocks<'_>) {
        let mut state = state;
        for x in x.chunks(SPAN) {
            let mut numbers = [0.0; SPAN];
            numbers[..x.len()].copy_from_slice(x);
            store_all::<K>(&mut numbers, signed, &mut K::split_off(&mut state, x.len()));
        }
    }
}

//! Steps of states in blocks of codes, and these states as numbers.

use super::coding::{Coding, LONGEST, absmax, chance, number, spread, store, stored, unit};
use super::storage::Storage;
use super::{Algorithm, BUFFER, MAX_STATES, Prepared};
use crate::isa::kernel;
use crate::kernels::codes::NEAREST;
use crate::par::{self, CHUNK};
use crate::real::Element;

/// A magnitude by its bits.
type Key = <f32 as Element>::Key;

/// Codes and scales of one state.
#[derive(Debug, Default)]
pub struct Blocks<'a> {
    /// The codes; of two 4-bit codes in a byte the first is in the low bits.
    pub codes: &'a mut [u8],
    /// The largest magnitude of each block.
    pub absmax: &'a mut [f32],
}

/// Elements that are stepped at a time: several blocks, all stepped before the first is coded, which would wait for its
/// largest magnitude. Not 1,024: see [`BUFFER`].
const SPAN: usize = 768;

impl<'a> Blocks<'a> {
    /// Block number `i`: its codes, a byte each, and their unit; of a state that is not there, anything.
    #[inline(always)]
    fn block<'b, K: Coding>(&'b self, i: usize, signed: bool, buffer: &'b mut [u8; LONGEST]) -> (&'b [u8], f32) {
        let bytes = K::BLOCK * K::BITS / 8;
        let Some(&absmax) = self.absmax.get(i) else { return (buffer, 0.0) };
        let codes = &self.codes[i * bytes..self.codes.len().min((i + 1) * bytes)];
        (spread::<K>(codes, buffer), unit::<K>(absmax, signed))
    }

    /// Each block's codes and its largest magnitude.
    #[inline(always)]
    fn each<K: Coding>(&mut self) -> impl Iterator<Item = (&mut [u8], &mut f32)> + use<'_, 'a, K> {
        self.codes.chunks_mut(K::BLOCK * K::BITS / 8).zip(self.absmax.iter_mut())
    }
}

/// Code all blocks of `numbers`, which are as they are stored, with zeros up to the end of a block.
#[inline(always)]
fn store_all<K: Coding>(numbers: &[f32], noise: &[f32], signed: bool, state: &mut Blocks<'_>) {
    let numbers = numbers[..SPAN].chunks_exact(K::BLOCK).zip(noise[..SPAN].chunks_exact(K::BLOCK));
    for ((numbers, noise), (codes, largest)) in numbers.zip(state.each::<K>()) {
        store::<K>(numbers, noise, chance, signed, *largest, codes);
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
        let [a, b, _] = states;
        let [numbers_a, numbers_b, _] = numbers;
        let (mut spread_a, mut spread_b) = ([0; LONGEST], [0; LONGEST]);
        for (i, (param, grad)) in param.chunks_mut(K::BLOCK).zip(grad.chunks(K::BLOCK)).enumerate() {
            let (codes_a, unit_a) = a.block::<K>(i, A::SIGNED[0], &mut spread_a);
            let (codes_b, unit_b) = b.block::<K>(i, A::SIGNED[1], &mut spread_b);
            let place = i * K::BLOCK..(i + 1) * K::BLOCK;
            let numbers = [&mut numbers_a[place.clone()], &mut numbers_b[place]];
            let (codes, units) = ([codes_a, codes_b], [unit_a, unit_b]);
            let [largest_a, largest_b] = if param.len() == K::BLOCK {
                step_one::<A, K>(param, grad, codes, units, numbers, *prepared, *algorithm)
            } else {
                step_short::<A, K>(param, grad, codes, units, numbers, *prepared, *algorithm)
            };
            a.absmax[i] = absmax(largest_a);
            if A::STATES > 1 {
                b.absmax[i] = absmax(largest_b);
            }
        }
        store_all::<K>(numbers_a, numbers_b, A::SIGNED[0], a);
        if A::STATES > 1 {
            store_all::<K>(numbers_b, numbers_a, A::SIGNED[1], b);
        }
    }
}

kernel! {
    /// Step one block; the new states go to `numbers`, as they are stored, and their largest magnitudes come back.
    ///
    /// Decoded in the loop that steps: its divisions and roots leave the other units idle. A kernel of its own: within
    /// the other loops the compiler keeps this one's constants on the stack, each a load for every vector (1.1 of the
    /// time).
    fn step_one<A: Algorithm<f32>, K: Coding>(
        param: &mut [f32],
        grad: &[f32],
        codes: [&[u8]; 2],
        units: [f32; 2],
        numbers: [&mut [f32]; 2],
        prepared: Prepared<f32>,
        algorithm: A,
    ) -> [Key; 2] {
        let ([codes_a, codes_b], [numbers_a, numbers_b]) = (codes, numbers);
        let (codes_a, codes_b) = (&codes_a[..K::BLOCK], &codes_b[..K::BLOCK]);
        let (numbers_a, numbers_b) = (&mut numbers_a[..K::BLOCK], &mut numbers_b[..K::BLOCK]);
        let (param, grad) = (&mut param[..K::BLOCK], &grad[..K::BLOCK]);
        let mut largest = [0; 2];
        for i in 0..K::BLOCK {
            let a = number::<K>(codes_a[i], units[0], A::SIGNED[0]);
            let b = if A::STATES > 1 { number::<K>(codes_b[i], units[1], A::SIGNED[1]) } else { 0.0 };
            let (p, [a, b, _]) = prepared.step(&algorithm, param[i], grad[i], [a, b, 0.0]);
            let a = stored::<K>(a, A::SIGNED[0]);
            largest[0] = a.magnitude().max(largest[0]);
            (param[i], numbers_a[i]) = (p, a);
            let b = if A::STATES > 1 { stored::<K>(b, A::SIGNED[1]) } else { p };
            largest[1] = b.magnitude().max(largest[1]);
            numbers_b[i] = b;
        }
        largest
    }
}

/// The same of a block that is not full, with zeros after its new states.
#[inline(always)]
fn step_short<A: Algorithm<f32>, K: Coding>(
    param: &mut [f32],
    grad: &[f32],
    codes: [&[u8]; 2],
    units: [f32; 2],
    [numbers_a, numbers_b]: [&mut [f32]; 2],
    prepared: Prepared<f32>,
    algorithm: A,
) -> [Key; 2] {
    let n = param.len();
    let (mut params, mut grads) = ([0.0; LONGEST], [0.0; LONGEST]);
    params[..n].copy_from_slice(param);
    grads[..n].copy_from_slice(grad);
    let _of_zeros =
        step_one::<A, K>(&mut params, &grads, codes, units, [&mut *numbers_a, &mut *numbers_b], prepared, algorithm);
    param.copy_from_slice(&params[..n]);
    [numbers_a, numbers_b].map(|numbers| {
        numbers[n..].fill(0.0);
        numbers[..n].iter().fold(0, |largest, x| x.magnitude().max(largest))
    })
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
            let mut buffer = [0; LONGEST];
            let (codes, unit) = (spread::<K>(codes, &mut buffer), unit::<K>(*largest, signed));
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = number::<K>(code, unit, signed);
            }
        }
    }
}

kernel! {
    fn encode_piece<K: Coding>(x: &[f32], signed: bool, state: Blocks<'_>) {
        let mut state = state;
        for (x, (codes, scale)) in x.chunks(K::BLOCK).zip(state.each::<K>()) {
            let mut numbers = [0.0; LONGEST];
            let mut largest = 0;
            for (number, &x) in numbers.iter_mut().zip(x) {
                *number = stored::<K>(x, signed);
                largest = number.magnitude().max(largest);
            }
            *scale = absmax(largest);
            store::<K>(&numbers, &numbers, |_| NEAREST, signed, *scale, codes);
        }
    }
}

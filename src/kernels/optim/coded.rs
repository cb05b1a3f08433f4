//! Steps of states in blocks of codes, and these states as numbers.
//!
//! A block may be coded while the next one is stepped, in one loop: the divisions and roots of a step leave units idle, and the
//! largest magnitude of a block, which its codes wait for, is known by then. (One loop after the other: 1.1 of the time.)

mod arrays;

pub use arrays::{decode, encode};

use super::coding::{
    Coding, LONGEST, absmax, chance, code, gather, inverse_scale, number, numbers, of_stored, scale, spread, stored,
};
use super::storage::Storage;
use super::{Algorithm, MAX_STATES, Prepared};
use crate::isa::{self, kernel};
use crate::real::Element;

/// A magnitude by its bits.
type Key = <f32 as Element>::Key;

/// A block of each of two states. (References to such arrays are known to be apart, slices within others are not.)
type Two<T> = [[T; LONGEST]; 2];

/// Codes and scales of one state.
#[derive(Debug, Default)]
pub struct Blocks<'a> {
    /// The codes; of two 4-bit codes in a byte the first is in the low bits.
    pub codes: &'a mut [u8],
    /// The largest magnitude of each block.
    pub absmax: &'a mut [f32],
}

/// How far ahead memory is asked for, into the first and into the second level of the cache, for each part of so many lanes.
/// (All of a block at once: the processor waits.)
const NEAR: usize = 512;
const FAR: usize = 2048;
const LANES: usize = 32;
/// Elements of several blocks, where parameters or gradients are converted.
const SPAN: usize = 768;

impl<'a> Blocks<'a> {
    /// The codes of block number `i`.
    fn codes_of<K: Coding>(&mut self, i: usize) -> &mut [u8] {
        let bytes = K::BLOCK * K::BITS / 8;
        let end = self.codes.len().min((i + 1) * bytes);
        &mut self.codes[i * bytes..end]
    }

    /// Block number `i` as state number `at`: its codes and their unit; of a state that is not there, anything.
    fn read<K: Coding>(&mut self, i: usize, signed: bool, at: usize, read: &mut Read) {
        let Some(&absmax) = self.absmax.get(i) else { return };
        read.scales[at] = scale::<K>(absmax, signed);
        if K::BITS == 4 {
            numbers::<K>(self.codes_of::<K>(i), read.scales[at], signed, &mut read.stored[at]);
        } else {
            spread::<K>(self.codes_of::<K>(i), &mut read.codes[at]);
        }
    }

    /// The largest magnitude of block number `i`; what its numbers are multiplied by.
    fn set_largest<K: Coding>(&mut self, i: usize, signed: bool, largest: Key) -> f32 {
        let largest = absmax(largest);
        let Some(place) = self.absmax.get_mut(i) else { return 0.0 };
        *place = largest;
        inverse_scale::<K>(largest, signed)
    }

    /// Each block's codes and its largest magnitude.
    #[inline(always)]
    fn each<K: Coding>(&mut self) -> impl Iterator<Item = (&mut [u8], &mut f32)> + use<'_, 'a, K> {
        self.codes.chunks_mut(K::BLOCK * K::BITS / 8).zip(self.absmax.iter_mut())
    }
}

/// A block that was read of each of two states: of 8 bits the codes, a byte each, which the step turns into numbers, and their
/// units; of 4 bits the numbers, by a list in a register.
#[derive(Debug)]
struct Read {
    codes: Two<u8>,
    scales: [f32; 2],
    stored: Two<f32>,
}

impl Read {
    /// Number `i` of state number `at`.
    #[inline(always)]
    fn number<K: Coding>(&self, at: usize, i: usize, signed: bool) -> f32 {
        if K::BITS == 4 {
            of_stored::<K>(self.stored[at][i], signed)
        } else {
            number::<K>(self.codes[at][i], self.scales[at], signed)
        }
    }
}

/// What each worker has for itself.
#[derive(Debug)]
pub struct Buffers {
    /// The new states, as they are stored, of the block that is stepped and of the one before it, by turns.
    numbers: [Two<f32>; 2],
    /// What is read, and the codes of the block before that are made.
    read: Read,
    made: Two<u8>,
}

impl<K: Coding> Storage<f32> for K {
    type State<'a> = Blocks<'a>;
    type Buffers = Buffers;
    const BUFFERS: Buffers = Buffers {
        numbers: [[[0.0; LONGEST]; 2]; 2],
        read: Read { codes: [[0; LONGEST]; 2], scales: [0.0; 2], stored: [[0.0; LONGEST]; 2] },
        made: [[0; LONGEST]; 2],
    };
    const BLOCK: usize = SPAN;

    #[inline(always)]
    fn split_off<'a: 'a>(state: &mut Blocks<'a>, n: usize) -> Blocks<'a> {
        let bytes = (n * K::BITS).div_ceil(8).min(state.codes.len());
        let blocks = n.div_ceil(K::BLOCK).min(state.absmax.len());
        Blocks {
            codes: state.codes.split_off_mut(..bytes).unwrap_or_default(),
            absmax: state.absmax.split_off_mut(..blocks).unwrap_or_default(),
        }
    }

    fn step_block<A: Algorithm<f32>>(
        param: &mut [f32],
        grad: &[f32],
        [a, b, _]: &mut [Blocks<'_>; MAX_STATES],
        buffers: &mut Buffers,
        prepared: &Prepared<f32>,
        algorithm: &A,
    ) {
        let [signed_a, signed_b, _] = A::SIGNED;
        let Buffers { numbers: [numbers, before], read, made } = buffers;
        let (mut numbers, mut before) = (numbers, before);
        let mut inverse_scales = [0.0; 2];
        let (n, blocks) = (param.len(), param.len().div_ceil(K::BLOCK));
        let block_at = |start: usize| n.min(start)..n.min(start + K::BLOCK);
        for i in 0..blocks {
            let own = block_at(i * K::BLOCK);
            let (param, grad) = (&mut param[own.clone()], &grad[own]);
            a.read::<K>(i, signed_a, 0, read);
            b.read::<K>(i, signed_b, 1, read);
            let how = How { inverse_scales, prepared: *prepared, algorithm: *algorithm };
            let largest = if param.len() == K::BLOCK {
                step_and_code::<A, K>(param, grad, read, numbers, before, made, how)
            } else {
                step_short::<A, K>(param, grad, read, numbers, before, made, how)
            };
            if K::TOGETHER && i > 0 {
                put::<A, K>(i - 1, made, [&mut *a, &mut *b]);
            }
            let [largest_a, largest_b] = with_one_nan(numbers, largest);
            inverse_scales = [a.set_largest::<K>(i, signed_a, largest_a), b.set_largest::<K>(i, signed_b, largest_b)];
            if !K::TOGETHER || i + 1 == blocks {
                code_block::<K>(numbers, inverse_scales, A::SIGNED, &mut *made, A::STATES);
                put::<A, K>(i, made, [&mut *a, &mut *b]);
            }
            (numbers, before) = (before, numbers);
        }
    }
}

/// Store the codes that were made of block number `i`.
fn put<A: Algorithm<f32>, K: Coding>(i: usize, made: &Two<u8>, states: [&mut Blocks<'_>; 2]) {
    for (state, made) in states.into_iter().zip(made).take(A::STATES) {
        gather::<K>(made, state.codes_of::<K>(i));
    }
}

/// The inverse scales of the block before the one that is stepped, and the step.
#[derive(Debug, Clone, Copy)]
struct How<A> {
    inverse_scales: [f32; 2],
    prepared: Prepared<f32>,
    algorithm: A,
}

kernel! {
    /// Step one block and code the one before it: its new states go to `numbers`, as they are stored, and their largest
    /// magnitudes come back.
    fn step_and_code<A: Algorithm<f32>, K: Coding>(
        param: &mut [f32],
        grad: &[f32],
        read: &Read,
        numbers: &mut Two<f32>,
        before: &Two<f32>,
        made: &mut Two<u8>,
        how: How<A>,
    ) -> [Key; 2] {
        let How { inverse_scales, prepared, algorithm } = how;
        let (param, grad) = (&mut param[..K::BLOCK], &grad[..K::BLOCK]);
        let mut largest = [0; 2];
        for part in 0..K::BLOCK / LANES {
            let ahead = part * LANES..(part + 1) * LANES;
            isa::prefetch::<false, _>(&param[ahead.clone()], NEAR);
            isa::prefetch::<false, _>(&grad[ahead.clone()], NEAR);
            isa::prefetch::<true, _>(&param[ahead.clone()], FAR);
            isa::prefetch::<true, _>(&grad[ahead], FAR);
            for lane in 0..LANES {
                let i = part * LANES + lane;
                // First, what needs no division: it runs while those of the elements before are waited for (0.95 of the time).
                // Chance by the low bits of the other number.
                if K::TOGETHER {
                    made[0][i] = code::<K>(before[0][i], inverse_scales[0], chance(before[1][i]), A::SIGNED[0]);
                }
                if K::TOGETHER && A::STATES > 1 {
                    made[1][i] = code::<K>(before[1][i], inverse_scales[1], chance(before[0][i]), A::SIGNED[1]);
                }
                let a = read.number::<K>(0, i, A::SIGNED[0]);
                let b = if A::STATES > 1 { read.number::<K>(1, i, A::SIGNED[1]) } else { 0.0 };
                let (p, [a, b, _]) = prepared.step_any(&algorithm, param[i], grad[i], [a, b, 0.0]);
                let a = stored::<K>(a, A::SIGNED[0]);
                largest[0] = larger(largest[0], a, A::SIGNED[0]);
                (param[i], numbers[0][i]) = (p, a);
                let b = if A::STATES > 1 { stored::<K>(b, A::SIGNED[1]) } else { p };
                largest[1] = larger(largest[1], b, A::STATES == 1 || A::SIGNED[1]);
                numbers[1][i] = b;
            }
        }
        largest.map(|bits| f32::from_bits(bits).magnitude())
    }
}

/// The larger of the bits of a magnitude and of a number. What is not signed is its own magnitude, but for the sign of a
/// NaN, with which it is above all numbers, as without.
#[inline(always)]
fn larger(largest: u32, x: f32, signed: bool) -> u32 {
    largest.max(if signed { x.to_bits() & 0x7fff_ffff } else { x.to_bits() })
}

/// The same of a block that is not full, with zeros after its new states.
fn step_short<A: Algorithm<f32>, K: Coding>(
    param: &mut [f32],
    grad: &[f32],
    read: &Read,
    numbers: &mut Two<f32>,
    before: &Two<f32>,
    made: &mut Two<u8>,
    how: How<A>,
) -> [Key; 2] {
    let n = param.len();
    let (mut params, mut grads) = ([0.0; LONGEST], [0.0; LONGEST]);
    params[..n].copy_from_slice(param);
    grads[..n].copy_from_slice(grad);
    let _of_zeros = step_and_code::<A, K>(&mut params, &grads, read, numbers, before, made, how);
    param.copy_from_slice(&params[..n]);
    numbers.each_mut().map(|numbers| {
        numbers[n..].fill(0.0);
        numbers[..n].iter().fold(0, |largest, x| x.magnitude().max(largest))
    })
}

/// The largest magnitudes of a block; where one is NaN's, all of its NaN become the same one, as everywhere.
fn with_one_nan(numbers: &mut Two<f32>, largest: [Key; 2]) -> [Key; 2] {
    let mut largest = largest;
    for (numbers, largest) in numbers.iter_mut().zip(&mut largest) {
        if *largest > f32::INFINITY_KEY {
            numbers.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = f32::NAN);
            *largest = f32::NAN.magnitude();
        }
    }
    largest
}

/// The codes of a block of one state, by the chance of another number.
#[inline(always)]
fn code_all<K: Coding>([numbers, noise]: [&[f32; LONGEST]; 2], scale: f32, signed: bool, made: &mut [u8; LONGEST]) {
    for i in 0..K::BLOCK {
        made[i] = code::<K>(numbers[i], scale, chance(noise[i]), signed);
    }
}

kernel! {
    /// The codes of a block of the first states, as [`step_and_code`] makes them.
    fn code_block<K: Coding>(
        numbers: &Two<f32>, inverse_scales: [f32; 2], signed: [bool; MAX_STATES], made: &mut Two<u8>, states: usize
    ) {
        for state in 0..states {
            let (numbers, made) = ([&numbers[state], &numbers[1 - state]], &mut made[state]);
            // Known to the compiler in each.
            if signed[state] {
                code_all::<K>(numbers, inverse_scales[state], true, made);
            } else {
                code_all::<K>(numbers, inverse_scales[state], false, made);
            }
        }
    }
}

//! Whole states as numbers, and numbers as states.

use super::Blocks;
use crate::isa::kernel;
use crate::kernels::codes::NEAREST;
use crate::kernels::optim::Storage;
use crate::kernels::optim::coding::{
    Coding, LONGEST, absmax, code, gather, inverse_scale, number, scale, spread, stored,
};
use crate::par::{self, CHUNK};
use crate::real::Element;

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
            let mut bytes = [0; LONGEST];
            spread::<K>(codes, &mut bytes);
            let scale = scale::<K>(*largest, signed);
            for (out, &code) in out.iter_mut().zip(&bytes) {
                *out = number::<K>(code, scale, signed);
            }
        }
    }
}

kernel! {
    fn encode_piece<K: Coding>(x: &[f32], signed: bool, state: Blocks<'_>) {
        let mut state = state;
        for (x, (codes, place)) in x.chunks(K::BLOCK).zip(state.each::<K>()) {
            let (mut numbers, mut largest) = ([0.0; LONGEST], 0);
            for (number, &x) in numbers.iter_mut().zip(x) {
                *number = stored::<K>(x, signed);
                largest = number.magnitude().max(largest);
            }
            *place = absmax(largest);
            let (inverse_scale, mut bytes) = (inverse_scale::<K>(*place, signed), [0; LONGEST]);
            for i in 0..K::BLOCK {
                bytes[i] = code::<K>(numbers[i], inverse_scale, NEAREST, signed);
            }
            gather::<K>(&bytes, codes);
        }
    }
}

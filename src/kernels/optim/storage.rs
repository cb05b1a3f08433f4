//! How states are stored: as numbers, or in blocks of codes (`coded.rs`).

use super::{Algorithm, BUFFER, MAX_STATES, Prepared};
use crate::isa::kernel;
use crate::real::Real;

/// A way to store states, and how what is stored so is stepped.
pub trait Storage<C: Real>: Send + Sync + 'static {
    /// One state, of whatever length.
    type State<'a>: Default + Send;
    /// Memory that each worker has for itself.
    type Buffers;
    /// Of any contents.
    const BUFFERS: Self::Buffers;
    /// Elements that are stepped at a time where something is converted.
    const BLOCK: usize;
    /// Cut off the first `n` elements: a multiple of [`Storage::BLOCK`], or all.
    fn split_off<'a>(state: &mut Self::State<'a>, n: usize) -> Self::State<'a>;
    /// Step a block whose parameters and gradients are in the dtype that is computed in.
    fn step_block<A: Algorithm<C>>(
        param: &mut [C],
        grad: &[C],
        states: &mut [Self::State<'_>; MAX_STATES],
        buffers: &mut Self::Buffers,
        prepared: &Prepared<C>,
        algorithm: &A,
    );
}

/// In the dtype that is computed in.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl<C: Real> Storage<C> for Plain {
    type State<'a> = &'a mut [C];
    type Buffers = ();
    const BUFFERS: () = ();
    const BLOCK: usize = BUFFER;

    #[inline(always)]
    #[expect(clippy::mut_mut, reason = "what a state is stays open in the trait")]
    fn split_off<'a: 'a>(state: &mut &'a mut [C], n: usize) -> &'a mut [C] {
        state.split_off_mut(..n).unwrap_or_default()
    }

    fn step_block<A: Algorithm<C>>(
        param: &mut [C],
        grad: &[C],
        states: &mut [&mut [C]; MAX_STATES],
        (): &mut (),
        prepared: &Prepared<C>,
        algorithm: &A,
    ) {
        step_plain(param, grad, states, *prepared, *algorithm);
    }
}

kernel! {
    /// The loop itself, over as many arrays as the algorithm has.
    fn step_plain<C: Real, A: Algorithm<C>>(
        param: &mut [C],
        grad: &[C],
        states: &mut [&mut [C]; MAX_STATES],
        prepared: Prepared<C>,
        algorithm: A,
    ) {
        let zero = C::from_i16(0);
        let [a, b, c] = states;
        let zipped = param.iter_mut().zip(grad);
        match A::STATES {
            0 => {
                for (p, &g) in zipped {
                    (*p, _) = prepared.step(&algorithm, *p, g, [zero; MAX_STATES]);
                }
            }
            1 => {
                for ((p, &g), a) in zipped.zip(a.iter_mut()) {
                    (*p, [*a, _, _]) = prepared.step(&algorithm, *p, g, [*a, zero, zero]);
                }
            }
            2 => {
                for (((p, &g), a), b) in zipped.zip(a.iter_mut()).zip(b.iter_mut()) {
                    (*p, [*a, *b, _]) = prepared.step(&algorithm, *p, g, [*a, *b, zero]);
                }
            }
            _ => {
                for ((((p, &g), a), b), c) in zipped.zip(a.iter_mut()).zip(b.iter_mut()).zip(c.iter_mut()) {
                    (*p, [*a, *b, *c]) = prepared.step(&algorithm, *p, g, [*a, *b, *c]);
                }
            }
        }
    }
}

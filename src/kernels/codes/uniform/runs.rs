//! Codes where the parameters are known: of runs that share a part, of elements with a part each.

use super::ahead::Ahead;
use super::code::{Coder, Make, Multiplier, divide_lines, half, multiply, multiply_lines};
use super::groups::IN_L1;
use super::mode::Mode;
use super::tiling::Runs;
use super::{BLOCK, ParamsRef, Uniform};
use crate::isa::{self, kernel};
use crate::kernels::lines::Target;
use crate::real::{Divisor, Real};

kernel! {
    /// Codes, or their numbers, where the parameters are known: the code, they, and whether to write past the
    /// caches. Gives the runs that follow.
    pub(super) fn code_runs<C: Real, M: Mode, O: Make<C>>(
        x: &[C],
        runs: Runs,
        how: (Uniform, ParamsRef<'_, C>, bool),
        out: &mut [O::Item],
    ) -> Runs {
        let (uniform, params, streamed) = how;
        let mut block = [O::ANY; IN_L1];
        let (mut runs, mut at) = (runs, 0);
        let mut target = Target::new(out, streamed && x.len().is_multiple_of(BLOCK) && runs.are_of(BLOCK));
        while at < x.len() {
            let rest = x.len() - at;
            let (part, n) = runs.next(if streamed { rest.min(IN_L1) } else { rest });
            let x = &x[at..at + n];
            at += n;
            let stored = params.get(part);
            let multiplier = Multiplier::new::<M>(uniform, stored, Divisor::new(stored.0));
            let exact = FMA && Divisor::is_exact(stored.0);
            let out = match &mut target {
                Target::Lines(lines) if exact => {
                    let mut own = lines.again();
                    multiply_lines::<C, M, O>(x, Ahead::STRAIGHT, &multiplier, &mut own);
                    let place = own.place();
                    lines.go_on(place);
                    continue;
                }
                Target::Lines(lines) => {
                    divide_lines::<C, M, O>(x, uniform, stored, lines);
                    continue;
                }
                Target::Slice(rest) => rest.split_off_mut(..n).unwrap_or_default(),
            };
            let to = if streamed { &mut block[..n] } else { &mut *out };
            if exact {
                multiply::<C, M, O>(x, (Ahead::STRAIGHT, 0), multiplier, to);
            } else {
                O::divide::<M>(x, uniform, stored, to);
            }
            if streamed {
                isa::stream(&block[..n], out);
            }
        }
        target.finish();
        runs
    }
}

kernel! {
    /// Codes of elements with a part each. Gives the runs that follow.
    pub(super) fn code_by_element<C: Real, M: Mode>(
        x: &[C],
        runs: Runs,
        uniform: Uniform,
        params: ParamsRef<'_, C>,
        codes: &mut [u8],
    ) -> Runs {
        let (mut runs, mut at) = (runs, 0);
        while at < x.len() {
            let (part, n) = runs.next(x.len() - at);
            code_elements::<C, M>(&x[at..at + n], uniform, params.from(part), &mut codes[at..at + n]);
            at += n;
        }
        runs
    }
}

/// The codes of consecutive elements with a part each, from the first of `params` on.
#[inline(always)]
fn code_elements<C: Real, M: Mode>(x: &[C], uniform: Uniform, params: ParamsRef<'_, C>, codes: &mut [u8]) {
    for (i, (code, &v)) in codes.iter_mut().zip(x).enumerate() {
        let stored = params.get(i);
        let coder = Coder::new::<M>(uniform, stored, half(M::scheme(uniform), uniform.bits, stored.0));
        *code = coder.code::<M>(coder.shifted::<M>(v) / coder.half_scale);
    }
}

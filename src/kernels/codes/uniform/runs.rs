//! Codes where the parameters are known: of runs that share a part, of elements with a part each.

use super::code::{Coder, Codes, Fill, IN_L1, Make, Mode, Multiplier, Wide, half, multiply};
use super::cut::Runs;
use super::{ParamsRef, Uniform};
use crate::isa::{self, kernel};
use crate::real::{Divisor, Element, Real};

/// Codes, or their numbers, where the parameters are known: the code, they, and whether to write past the caches.
pub(super) fn code_runs<T: Element, M: Mode, O: Fill<T>>(
    x: &[T],
    mut runs: Runs,
    (uniform, params, streamed): (Uniform, ParamsRef<'_, T::Compute>, bool),
    out: &mut [O::Stored],
) {
    O::by_computed(x, (out, streamed), &mut Wide::new(), |x, out, streamed| {
        code_run::<T::Compute, M, O>(x, &mut runs, (uniform, params, streamed), out);
    });
}

kernel! {
    /// The same of numbers as they are computed.
    fn code_run<C: Real, M: Mode, O: Make<C>>(
        x: &[C],
        runs: &mut Runs,
        how: (Uniform, ParamsRef<'_, C>, bool),
        out: &mut [O::Item],
    ) {
        let (uniform, params, streamed) = how;
        let mut block = [O::ANY; IN_L1];
        let mut at = 0;
        while at < x.len() {
            let rest = x.len() - at;
            let (part, n) = runs.next(if streamed { rest.min(IN_L1) } else { rest });
            let (x, out) = (&x[at..at + n], &mut out[at..at + n]);
            let to = if streamed { &mut block[..n] } else { &mut *out };
            let stored = params.get(part);
            if FMA && Divisor::is_exact(stored.0) {
                let multiplier = Multiplier::new::<M>(uniform, stored, Divisor::new(stored.0));
                multiply::<C, M, O>([x, &[]], multiplier, to);
            } else {
                O::divide::<M>(x, uniform, stored, to);
            }
            if streamed {
                isa::stream(&block[..n], out);
            }
            at += n;
        }
    }
}

/// Codes of elements with a part each.
pub(super) fn code_by_element<T: Element, M: Mode>(
    x: &[T],
    mut runs: Runs,
    uniform: Uniform,
    params: ParamsRef<'_, T::Compute>,
    codes: &mut [u8],
) {
    Codes::by_computed(x, (codes, false), &mut Wide::new(), |x, codes, _| {
        code_each::<T::Compute, M>(x, &mut runs, uniform, params, codes);
    });
}

kernel! {
    /// The same of numbers as they are computed.
    fn code_each<C: Real, M: Mode>(
        x: &[C],
        runs: &mut Runs,
        uniform: Uniform,
        params: ParamsRef<'_, C>,
        codes: &mut [u8],
    ) {
        let mut at = 0;
        while at < x.len() {
            let (part, n) = runs.next(x.len() - at);
            code_elements::<C, M>(&x[at..at + n], uniform, params.from(part), &mut codes[at..at + n]);
            at += n;
        }
    }
}

/// The codes of consecutive elements with a part each, from the first of `params` on.
#[inline(always)]
fn code_elements<C: Real, M: Mode>(x: &[C], uniform: Uniform, params: ParamsRef<'_, C>, codes: &mut [u8]) {
    for (i, (code, v)) in codes.iter_mut().zip(x).enumerate() {
        let stored = params.get(i);
        let coder = Coder::new::<M>(uniform, stored, half(M::scheme(uniform), uniform.bits, stored.0));
        *code = coder.code::<M>(coder.shifted::<M>(v.load()) / coder.half_scale);
    }
}

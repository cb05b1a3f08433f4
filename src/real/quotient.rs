//! The quotient of many numbers by one, without a division for each.

use super::Real;

/// One product and one sum, rounded once.
pub trait Fused: Copy {
    /// The smallest and the largest divisor for which [`Divisor::quotient`] is exact; see there.
    const DIVISORS: [Self; 2];
    /// `self * factor + term`. Right in this file only: without FMA it is a call of a function of libm.
    #[must_use]
    fn fused(self, factor: Self, term: Self) -> Self;
}

impl Fused for f32 {
    const DIVISORS: [Self; 2] = [f32::from_bits((127 - 100) << 23), f32::from_bits((127 + 100) << 23)];
    #[inline(always)]
    fn fused(self, factor: Self, term: Self) -> Self {
        self.mul_add(factor, term)
    }
}

impl Fused for f64 {
    const DIVISORS: [Self; 2] = [f64::from_bits((1023 - 960) << 52), f64::from_bits((1023 + 960) << 52)];
    #[inline(always)]
    fn fused(self, factor: Self, term: Self) -> Self {
        self.mul_add(factor, term)
    }
}

/// What numbers are divided by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Divisor<C> {
    negated: C,
    reciprocal: C,
}

impl Divisor<f32> {
    /// From here on the quotient is exact from 2^-20 on.
    pub const SMALL: f32 = f32::from_bits((127 - 80) << 23);
}

impl<C: Real> Divisor<C> {
    /// For a number of either sign: rounding to nearest is symmetric.
    #[inline(always)]
    pub fn new(divisor: C) -> Self {
        Self { negated: C::from_i16(0) - divisor, reciprocal: C::from_i16(1) / divisor }
    }

    /// The divisor.
    #[inline(always)]
    pub fn get(&self) -> C {
        C::from_i16(0) - self.negated
    }

    /// Whether [`Self::quotient`] may be asked of this divisor.
    #[inline(always)]
    pub fn is_exact(divisor: C) -> bool {
        let [least, greatest] = C::DIVISORS;
        let magnitude = divisor.abs();
        magnitude >= least && magnitude <= greatest
    }

    /// x / divisor, rounded once, where that is between 1/4 and 1024 in magnitude; below 1/2 where it is below 1/4. Only
    /// where [`Self::is_exact`], and in a body whose instruction set has FMA.
    ///
    /// Markstein's correction (IBM Journal of Research and Development 34, 1990): r = 1/s rounded, t = x r rounded, then
    /// t + r (x - t s) with two fused steps. Be p the bits, e = 2^-p, s in [1, 2), u the last place of q = x/s; so r is
    /// off by e/2. Twice the distance of x from m s, where m lies in the middle of two numbers, is a whole number of last
    /// places of s times u: q is e u / s away from m, or more.
    /// - Near m, by less than 2.5 e u: x r is off from q by less than (1 - 2.5 e) u (but for the last x below 4, whose q
    ///   is near no m), so t is one of the two numbers beside m; x - t s then has p bits and is exact, and what is added
    ///   to t is off by (1/2 + d) u s e/2 for q a distance d u from m. That is less than d u, as s < 2.
    /// - Elsewhere t is off by 1.5 u at most, x - t s is rounded by 2 e u at most, and both together move the sum by less
    ///   than 2.5 e u: not across m.
    ///
    /// It holds for normal numbers. r is one. With t of 1/8 or more and s of 2^-100 or more the last place of x - t s
    /// is 2^-149 or more, as f32 has it (f64: 2^-960, 2^-1074). Below, t is off by little, as is the sum. As all of it is the
    /// same for x times a power of two, a smaller quotient is exact by a larger divisor (t of 2^-21, s of [`Self::SMALL`]),
    /// and a larger one where x - t s is no infinity; else it may be NaN.
    #[inline(always)]
    #[must_use]
    pub fn quotient(&self, x: C) -> C {
        let near = x * self.reciprocal;
        self.reciprocal.fused(near.fused(self.negated, x), near)
    }
}

/// What numbers are divided by that have a divisor each, in turn.
#[derive(Debug, Clone, Copy)]
pub struct Divisors<C, const N: usize> {
    negated: [C; N],
    reciprocal: [C; N],
}

impl<C: Real, const N: usize> Divisors<C, N> {
    /// As [`Divisor::new`] of each.
    #[inline(always)]
    pub fn new(divisors: &[C; N]) -> Self {
        let each = |i: usize| Divisor::new(divisors[i]);
        Self {
            negated: std::array::from_fn(|i| each(i).negated),
            reciprocal: std::array::from_fn(|i| each(i).reciprocal),
        }
    }

    /// [`Divisor::quotient`] by divisor `i`.
    #[inline(always)]
    #[must_use]
    pub fn quotient(&self, i: usize, x: C) -> C {
        Divisor { negated: self.negated[i], reciprocal: self.reciprocal[i] }.quotient(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::kernel;

    kernel! {
        /// The first of `x` whose quotient is not that of a division; where that is below 1/4, not below 1/2.
        fn first_wrong<C: Real>(x: &[C], divisor: C) -> Option<C> {
            let by = Divisor::new(divisor);
            let [quarter, half, most] = [0.25, 0.5, 1024.0].map(C::from_f64);
            let mut wrong = 0;
            for &x in x {
                let (got, want) = if FMA { (by.quotient(x), x / divisor) } else { (x, x) };
                let right = if want.abs() < quarter { !FMA || got.abs() < half } else { got == want || want.abs() > most };
                wrong += !right as usize;
            }
            if wrong == 0 { return None; }
            x.iter().copied().find(|&x| by.quotient(x) != x / divisor)
        }
    }

    fn check<C: Real + std::fmt::LowerExp>(x: &[C], divisor: C) {
        assert!(Divisor::is_exact(divisor), "{divisor:e}");
        if let Some(x) = first_wrong(x, divisor) {
            panic!("{x:e} / {divisor:e}");
        }
    }

    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    /// The divisors of 24 bits that `significands` names, at each of the exponents, and by them all numbers whose quotient
    /// is at k + 1/2 or next to it: no others can get another code than by division.
    fn check_ties(significands: impl Iterator<Item = u32>, exponents: &[i32]) {
        let mut x = vec![];
        for significand in significands {
            for exponent in exponents {
                let divisor = f32::from_bits(((127 + exponent) as u32) << 23 | significand);
                x.clear();
                for k in 0..256 {
                    let tie = divisor * (k as f32 + 0.5);
                    x.extend([
                        tie.next_down().next_down(),
                        tie.next_down(),
                        tie,
                        tie.next_up(),
                        tie.next_up().next_up(),
                    ]);
                }
                check(&x, divisor);
            }
        }
    }

    #[test]
    fn test_a7_quotients_at_ties_are_those_of_a_division() {
        check_ties((0..1 << 23).step_by(4099).chain([1, 2, 3, 0x7f_fffd, 0x7f_fffe, 0x7f_ffff]), &[-100, -7, 0, 99]);
    }

    #[test]
    #[ignore = "a minute: all 2^23 significands of a divisor, once per release"]
    fn test_a7_quotients_at_ties_by_every_significand() {
        check_ties(0..1 << 23, &[0]);
    }

    fn check_random(divisors: usize) {
        let mut state = 88_172_645_463_325_252;
        let (mut x, mut wide) = (vec![0f32; 1024], vec![0f64; 1024]);
        for _ in 0..divisors {
            let bits = random(&mut state);
            let exponent = (bits >> 32) as i32 % 101;
            let divisor = f32::from_bits(((127 + exponent) as u32) << 23 | (bits as u32 & 0x7f_ffff));
            // Quotients from 2^-12 to 2^10.
            for x in &mut x {
                let bits = random(&mut state);
                let exponent = (exponent + (bits >> 32) as i32 % 11).max(-126);
                *x = f32::from_bits((bits as u32 & 0x807f_ffff) | ((127 + exponent) as u32) << 23);
            }
            check(&x, if Divisor::is_exact(divisor) { divisor } else { 1.5 });
            let divisor = f64::from_bits(((1023 + 9 * exponent as i64) as u64) << 52 | bits >> 12);
            for wide in &mut wide {
                // (-0 becomes 0.)
                let tie = divisor * ((random(&mut state) as i16 as f64 / 128.0).round() / 2.0 + 0.0);
                let bits = random(&mut state);
                *wide = f64::from_bits(tie.to_bits().max(4) + bits % 8 - 4);
                if bits >> 60 == 0 {
                    *wide = f64::from_bits((tie.to_bits() & !((1 << 52) - 1)) | bits >> 12);
                }
            }
            check(&wide, divisor);
        }
    }

    #[test]
    fn test_a7_random_quotients_are_those_of_a_division() {
        check_random(2000);
    }

    #[test]
    #[ignore = "a minute: a thousand million pairs, once per release"]
    fn test_a7_many_random_quotients_are_those_of_a_division() {
        check_random(1_000_000);
    }

    #[test]
    fn test_a7_tiny_numbers_have_tiny_quotients() {
        let x: Vec<f32> =
            (0..0x0100_0000).step_by(509).chain(0..4096).map(f32::from_bits).flat_map(|x| [x, -x]).collect();
        for divisor in [f32::DIVISORS[0], f32::DIVISORS[0].next_up(), 1.0, 3e-30, f32::DIVISORS[1]] {
            check(&x, divisor);
        }
        let x: Vec<f64> = x.iter().map(|&x| x as f64 * (f64::MIN_POSITIVE / f32::MIN_POSITIVE as f64)).collect();
        for divisor in [f64::DIVISORS[0], 1.0, f64::DIVISORS[1]] {
            check(&x, divisor);
        }
        assert!(!Divisor::is_exact(f32::MIN_POSITIVE) && !Divisor::is_exact(f32::MAX));
    }
}

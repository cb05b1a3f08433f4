//! Random bits for stochastic rounding, from a counter: a number's bits depend on the seed, the step, its tensor and its
//! index, and on nothing else, so no number of threads and no cut of the work can change them.

/// The random bits of one tensor from some element on.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    key: u64,
    /// The index of the first element.
    first: u64,
}

/// The finalizer of `SplitMix64`: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Noise {
    /// For one tensor in one step.
    pub const fn new(seed: u64, step: u64, tensor: u64) -> Self {
        let key = mix(mix(mix(seed.wrapping_add(GOLDEN)) ^ step.wrapping_mul(GOLDEN)) ^ tensor.wrapping_mul(GOLDEN));
        Self { key, first: 0 }
    }

    /// Of the elements after the first `n`.
    #[must_use]
    pub const fn after(self, n: usize) -> Self {
        Self { key: self.key, first: self.first + n as u64 }
    }

    /// Two words of key for elements whose indices have the same upper half, and the lower half of the first.
    #[inline(always)]
    pub fn keys(&self) -> (u32, u32, u32) {
        let key = mix(self.key ^ (self.first >> 32).wrapping_mul(GOLDEN));
        (key as u32, (key >> 32) as u32, self.first as u32)
    }
}

/// 32 random bits of an element: two rounds of the multiply-xorshift hash `lowbias32` (Wellons 2018, "Prospecting for
/// hash functions"), each keyed. 32-bit products only, so it vectorises on every instruction set.
#[inline(always)]
pub fn bits((low, high, first): (u32, u32, u32), index: u32) -> u32 {
    let x = first.wrapping_add(index) ^ low;
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_add(high).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_every_bit_is_set_half_of_the_time_and_neighbours_are_independent() {
        let n = 1 << 16;
        for noise in [Noise::new(0, 1, 0), Noise::new(0, 2, 0), Noise::new(0, 1, 1), Noise::new(7, 1, 0)] {
            let keys = noise.keys();
            let all: Vec<u32> = (0..n).map(|i| bits(keys, i)).collect();
            for bit in 0..32 {
                let ones = all.iter().filter(|x| *x >> bit & 1 == 1).count() as f64;
                let equal = all.windows(2).filter(|w| (w[0] ^ w[1]) >> bit & 1 == 0).count() as f64;
                // Six standard deviations of a fair coin.
                let most = 3.0 * f64::from(n).sqrt();
                assert!((ones - f64::from(n) / 2.0).abs() < most, "bit {bit}: {ones}");
                assert!((equal - f64::from(n) / 2.0).abs() < most, "bit {bit}: {equal}");
            }
        }
    }

    #[test]
    fn test_a_cut_changes_no_bits_and_tensors_and_steps_differ() {
        let noise = Noise::new(3, 5, 2);
        let want: Vec<u32> = (0..100).map(|i| bits(noise.keys(), i)).collect();
        let rest = noise.after(60);
        let got = (0..60).map(|i| bits(noise.keys(), i)).chain((0..40).map(|i| bits(rest.keys(), i)));
        assert_eq!(got.collect::<Vec<_>>(), want);
        let firsts = [(3, 5, 2), (3, 5, 3), (3, 6, 2), (4, 5, 2)].map(|(a, b, c)| bits(Noise::new(a, b, c).keys(), 0));
        assert!((0..4).all(|i| (0..i).all(|j| firsts[i] != firsts[j])), "{firsts:?}");
    }
}

//! The integers whose order is that of floats.

/// The signed integers that keys are.
pub trait Key:
    Copy + Ord + Send + Sync + std::fmt::Debug + std::ops::Add<Output = Self> + std::ops::Sub<Output = Self> + 'static
{
    /// The largest key: neutral for a minimum.
    const MAX: Self;
    /// The smallest key: neutral for a maximum.
    const MIN: Self;
    /// Zero: neutral for the maximum of magnitudes.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// The middle between two keys that are not negative, rounded down.
    #[must_use]
    fn middle(self, other: Self) -> Self;
    /// As a count: a key that is not negative.
    fn to_u64(self) -> u64;
    /// A small number as a key (0 to 127).
    fn from_u8(n: u8) -> Self;
    /// -x - 1.
    #[must_use]
    fn not(self) -> Self;
    /// The magnitude of a key: the key itself, or its complement where it is negative.
    #[must_use]
    #[inline(always)]
    fn magnitude(self) -> Self {
        if self < Self::ZERO { self.not() } else { self }
    }
}

macro_rules! key {
    ($($t:ty),*) => {$(
        impl Key for $t {
            const MAX: Self = <$t>::MAX;
            const MIN: Self = <$t>::MIN;
            const ZERO: Self = 0;
            const ONE: Self = 1;
            #[inline(always)]
            fn middle(self, other: Self) -> Self {
                (self & other) + ((self ^ other) >> 1)
            }
            #[inline(always)]
            fn from_u8(n: u8) -> Self {
                n as Self
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn not(self) -> Self {
                !self
            }
        }
    )*};
}
key!(i8, i16, i32, i64);

//! Codes whose numbers are a list.

/// What is above `bounds[i]` is nearer to number `i + 1` of ascending numbers than to number `i`; the middle itself
/// belongs to the lower one. The largest f32 that is not above the middle: comparisons with it are exact.
pub const fn bounds<const N: usize, const M: usize>(numbers: &[f32; N]) -> [f32; M] {
    assert!(M + 1 == N, "a bound between each two numbers");
    let mut bounds = [0.0; M];
    let mut i = 0;
    while i < M {
        let middle = f64::midpoint(numbers[i] as f64, numbers[i + 1] as f64);
        let near = middle as f32;
        bounds[i] = if near as f64 > middle { near.next_down() } else { near };
        i += 1;
    }
    bounds
}

/// How many bounds `x` is above.
#[inline(always)]
pub fn rank<const M: usize>(bounds: &[f32; M], x: f32) -> u32 {
    let mut rank = 0;
    for &bound in bounds {
        rank += (x > bound) as u32;
    }
    rank
}

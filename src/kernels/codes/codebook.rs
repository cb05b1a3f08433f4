//! Codes whose numbers are a list.

/// 16 numbers, by code and in ascending order.
#[derive(Debug)]
pub struct Codebook {
    /// The number of each code.
    pub numbers: [f32; 16],
    /// The bounds as a search tree: those below and above `tree[i]` are `tree[2 * i]` and `tree[2 * i + 1]`.
    pub tree: [f32; 16],
    /// The code of each rank: of so many bounds that are below a number.
    pub codes: [u8; 16],
}

impl Codebook {
    /// Of the number of each code, ascending bounds, and the code of each rank.
    pub const fn new(numbers: [f32; 16], bounds: &[f32; 15], codes: [u8; 16]) -> Self {
        let mut tree = [0.0; 16];
        let mut i = 1usize;
        while i < 16 {
            // Node i is number i - 2^level of its level, whose nodes are 16 / 2^level bounds apart.
            let (first, apart) = (1 << i.ilog2(), 16 >> i.ilog2());
            tree[i] = bounds[(i - first) * apart + apart / 2 - 1];
            i += 1;
        }
        Self { numbers, tree, codes }
    }
}

/// What is above `bounds[i]` becomes number `i + 1` of ascending numbers: the middle between it and number `i`, rounded
/// to float32 and itself with the lower one, as in bitsandbytes.
pub const fn bounds<const N: usize, const M: usize>(numbers: &[f32; N]) -> [f32; M] {
    assert!(M + 1 == N, "a bound between each two numbers");
    let mut bounds = [0.0; M];
    let mut i = 0;
    while i < M {
        bounds[i] = f32::midpoint(numbers[i], numbers[i + 1]);
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

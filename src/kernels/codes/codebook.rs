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
    /// Where cells of [`CELLS`] are as wide as one: the bound in each, if any, and how many are in the cells below it. The
    /// cells of negative numbers are the last 16.
    pub bound_in_cell: [f32; 32],
    /// See `bound_in_cell`.
    pub rank_of_cell: [i32; 32],
}

/// Cells from 0 to 1, a little wider than a 16th so that 1 is in one of 16. No two bounds are in one.
pub const CELLS: f32 = 15.9;

/// The cell of a number from -1 to 1, rounded down.
const fn cell(x: f32) -> i32 {
    let toward_zero = (x * CELLS) as i32;
    if x * CELLS < toward_zero as f32 { toward_zero - 1 } else { toward_zero }
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
        let (mut bound_in_cell, mut rank_of_cell) = ([f32::INFINITY; 32], [0; 32]);
        let (mut at, mut rank) = (-16i32, 0);
        while at < 16 {
            let place = (at & 31) as usize;
            rank_of_cell[place] = rank as i32;
            if rank < 15 && bounds[rank] < 1.0 && cell(bounds[rank]) == at {
                bound_in_cell[place] = bounds[rank];
                rank += 1;
            }
            at += 1;
        }
        assert!(rank == 15 || bounds[rank] >= 1.0, "no two bounds in a cell");
        Self { numbers, tree, codes, bound_in_cell, rank_of_cell }
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

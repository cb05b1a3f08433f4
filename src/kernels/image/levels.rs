//! Codes of levels: by a table of 256 for each channel, made by the plain steps.

use super::steps::{CHANNELS, Quantization, Steps, encode};
#[cfg(target_arch = "x86_64")]
use super::x86;

/// The code of each level, by channel.
#[derive(Debug, Clone)]
pub struct Tables {
    /// One for each channel.
    pub of: [[u8; 256]; CHANNELS],
    /// Whether all are the same.
    pub alike: bool,
}

impl Tables {
    /// Of these steps.
    pub fn new(steps: &Steps, q: &Quantization) -> Self {
        let mut of = [[0; 256]; CHANNELS];
        for (c, table) in of.iter_mut().enumerate() {
            let numbers: [f32; 256] = std::array::from_fn(|x| steps.of(x as f32, c));
            encode(&numbers, q, table);
        }
        Self { of, alike: of.iter().all(|table| *table == of[0]) }
    }

    /// The codes of a row of pixels, a slice for each channel.
    pub fn planes(&self, x: &[u8], channels: usize, out: &mut [&mut [u8]; CHANNELS]) {
        if channels == 1 {
            return self.pixels(x, 1, out[0]);
        }
        #[cfg(target_arch = "x86_64")]
        let done = if channels == 3 { x86::planes(x, self, out) } else { 0 };
        #[cfg(not(target_arch = "x86_64"))]
        let done = 0;
        for (c, out) in out.iter_mut().enumerate().take(channels) {
            for (code, pixel) in out[done..].iter_mut().zip(x.chunks_exact(channels).skip(done)) {
                *code = self.of[c][pixel[c] as usize];
            }
        }
    }

    /// The codes of a row of pixels, channels side by side.
    pub fn pixels(&self, x: &[u8], channels: usize, out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        let done = x86::pixels(x, self, channels, out);
        #[cfg(not(target_arch = "x86_64"))]
        let done = 0;
        for (i, (code, &x)) in out.iter_mut().zip(x).enumerate().skip(done) {
            *code = self.of[i % channels][x as usize];
        }
    }
}

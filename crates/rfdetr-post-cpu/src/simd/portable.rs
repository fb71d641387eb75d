//! The path for every machine: safe Rust, whatever the compiler makes of it.
#![forbid(unsafe_code)]

use super::{Isa, Kernel, LANES};

/// No instruction set beyond the target's baseline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Isa for Portable {
    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn positive_mask(self, values: &[f32; LANES]) -> u32 {
        mask(values, |v| v > 0.0)
    }

    #[inline(always)]
    fn count_positive(self, a: f32, b: f32, wa: &[f32; LANES], wb: &[f32; LANES]) -> u32 {
        // Only the sign is asked for, and double precision has it exactly: the product of two f32 is exact in f64, and
        // a rounded sum has the sign of the exact one. Rounding to f32, which the fused operation would do, cannot
        // make a positive sum zero here: callers rule out sums below the subnormals (see `crossing.rs`).
        let mut count = 0;
        for (&wa, &wb) in wa.iter().zip(wb) {
            count += u32::from(f64::from(b) * f64::from(wb) + f64::from(a * wa) > 0.0);
        }
        count
    }

    #[inline(always)]
    fn notable_mask(self, values: &[f32; LANES], min: f32) -> u32 {
        mask(values, |v| !(v < min) | (v == f32::NEG_INFINITY))
    }

    #[inline(always)]
    fn below_mask(self, row: u8, thresholds: &[u8; 64], flips: &[u8; 64]) -> u64 {
        let mut bits = 0;
        for i in 0..64 {
            bits |= u64::from(u8::from(thresholds[i] > row) ^ (flips[i] & 1)) << i;
        }
        bits
    }
}

#[inline(always)]
fn mask(values: &[f32; LANES], test: impl Fn(f32) -> bool) -> u32 {
    values.iter().enumerate().fold(0, |bits, (i, &v)| bits | u32::from(test(v)) << i)
}

//! The path for every machine: safe Rust, whatever the compiler makes of it.
#![forbid(unsafe_code)]

use super::{Edges, Isa, Kernel, LANES, ORDINARY_MIN, ORDINARY_RANGE};

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
    fn unusual_mask(self, values: &[f32; LANES]) -> u32 {
        let mut unusual = 0;
        for (i, v) in values.iter().enumerate() {
            let magnitude = v.to_bits() & 0x7fff_ffff;
            let outside = magnitude.wrapping_sub(ORDINARY_MIN) >= ORDINARY_RANGE;
            unusual |= u32::from(outside & (magnitude != 0)) << i;
        }
        unusual
    }

    #[inline(always)]
    fn count_positive(self, a: f32, b: f32, wa: &[f32; LANES], wb: &[f32; LANES]) -> u32 {
        let mut count = 0;
        for (&wa, &wb) in wa.iter().zip(wb) {
            count += u32::from(fma_is_positive(b, wb, a * wa));
        }
        count
    }

    #[inline(always)]
    fn edges(
        self,
        rounded: &[f32; LANES],
        fused: &[f32; LANES],
        lower_first: bool,
        weights: (&[f32], &[f32]),
    ) -> Edges {
        let lower = if lower_first { rounded } else { fused };
        let mut counts = [0u8; LANES];
        for (&wr, &wf) in weights.0.iter().zip(weights.1) {
            for i in 0..LANES {
                counts[i] += u8::from(fma_is_positive(fused[i], wf, rounded[i] * wr));
            }
        }
        edges_of_counts(&counts, lower, weights.0.len() as u8)
    }

    #[inline(always)]
    fn notable_mask(self, values: &[f32; LANES], min: f32) -> u32 {
        mask(values, |v| v.is_nan() | (v >= min) | (v == f32::NEG_INFINITY))
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

/// `fma(a, b, c) > 0`, without the instruction, which machines of the baseline lack.
///
/// The fused sum is positive if the exact one is above 2^-150: half the smallest f32, a tie that goes to zero. In
/// double precision the product is exact, and the sum is rounded, which keeps it on its side of 2^-150 unless it comes
/// to lie on it. But there it is exact: `c` is a multiple of 2^-149, so the product is at least 2^-150 in magnitude if
/// the sum is that close, has 48 bits, and so is the sum a multiple of 2^-197, which double precision holds.
#[inline(always)]
fn fma_is_positive(a: f32, b: f32, c: f32) -> bool {
    const HALF_OF_LEAST: f64 = f64::from_bits((1023 - 150) << 52);
    f64::from(a) * f64::from(b) + f64::from(c) > HALF_OF_LEAST
}

/// Edges from the numbers of positive rows: these are the first rows if the lower cell is positive, else the last.
#[inline(always)]
pub(super) fn edges_of_counts(counts: &[u8; LANES], lower: &[f32; LANES], num_rows: u8) -> Edges {
    let mut edges = ([0; LANES], [0; LANES]);
    for i in 0..LANES {
        let falls = lower[i] > 0.0;
        edges.0[i] = if falls { counts[i] } else { num_rows - counts[i] };
        edges.1[i] = u8::from(!falls);
    }
    edges
}

#[inline(always)]
fn mask(values: &[f32; LANES], test: impl Fn(f32) -> bool) -> u32 {
    values.iter().enumerate().fold(0, |bits, (i, &v)| bits | u32::from(test(v)) << i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_signs_of_all_magnitudes() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let mut positive = 0;
        for i in 0..2_000_000 {
            let (a, b) = (f32::from_bits(next()), f32::from_bits(next() & 0x3fff_ffff));
            // Every other time, something that nearly cancels the product.
            let c = if i % 2 == 0 {
                f32::from_bits((-a * b).to_bits().wrapping_add(next() % 3))
            } else {
                f32::from_bits(next())
            };
            if a.is_finite() && c.is_finite() {
                assert_eq!(fma_is_positive(a, b, c), a.mul_add(b, c) > 0.0, "{a:e} {b:e} {c:e}");
                positive += u32::from(a.mul_add(b, c) > 0.0);
            }
        }
        assert!(positive > 100_000);
        let least = f32::from_bits(1);
        for (a, b, c) in [(least, 0.5, 0.0), (least, 0.500_000_06, 0.0), (-least, 0.5, least), (least, -0.499, least)] {
            assert_eq!(fma_is_positive(a, b, c), a.mul_add(b, c) > 0.0, "{a:e} {b:e} {c:e}");
        }
    }
}

//! NEON, which every 64-bit Arm machine has. Not run by us: we had no such machine and no such target to compile for.
#![forbid(unsafe_code)]

use super::{
    Edges, Isa, Kernel, LANES,
    portable::{Portable, edges_of_counts},
};

/// NEON. It is part of the baseline of its architecture, so the compiler uses it for the portable source, fused
/// multiply-add included, and no intrinsics are needed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// The token; always there.
    pub(crate) fn detect() -> Option<Self> {
        Some(Self(()))
    }
}

impl Isa for Neon {
    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn positive_mask(self, values: &[f32; LANES]) -> u32 {
        Portable.positive_mask(values)
    }

    #[inline(always)]
    fn unusual_mask(self, values: &[f32; LANES]) -> u32 {
        Portable.unusual_mask(values)
    }

    #[inline(always)]
    fn count_positive(self, a: f32, b: f32, wa: &[f32; LANES], wb: &[f32; LANES]) -> u32 {
        // The baseline has the fused operation, so nothing has to be widened.
        wa.iter().zip(wb).map(|(&wa, &wb)| u32::from(b.mul_add(wb, a * wa) > 0.0)).sum()
    }

    #[inline(always)]
    fn edges(
        self,
        rounded: &[f32; LANES],
        fused: &[f32; LANES],
        lower_first: bool,
        weights: (&[f32], &[f32]),
    ) -> Edges {
        let mut counts = [0u8; LANES];
        for (&wr, &wf) in weights.0.iter().zip(weights.1) {
            for i in 0..LANES {
                counts[i] += u8::from(fused[i].mul_add(wf, rounded[i] * wr) > 0.0);
            }
        }
        edges_of_counts(&counts, if lower_first { rounded } else { fused }, weights.0.len() as u8)
    }

    #[inline(always)]
    fn notable_mask(self, values: &[f32; LANES], min: f32) -> u32 {
        Portable.notable_mask(values, min)
    }

    #[inline(always)]
    fn below_mask(self, row: u8, thresholds: &[u8; 64], flips: &[u8; 64]) -> u64 {
        Portable.below_mask(row, thresholds, flips)
    }
}

//! Elements of a tensor as f32. Every widening is exact.

use half::{bf16, f16};
use rfdetr_post_core::TensorData;

/// Writes the elements from `start` on, as many as `out` holds.
#[inline(always)]
pub(crate) fn widen(data: TensorData<'_>, start: usize, out: &mut [f32]) {
    let end = start + out.len();
    match data {
        TensorData::F32(data) => out.copy_from_slice(&data[start..end]),
        TensorData::F16(data) => out.iter_mut().zip(&data[start..end]).for_each(|(out, &x)| *out = from_f16(x)),
        TensorData::Bf16(data) => out.iter_mut().zip(&data[start..end]).for_each(|(out, &x)| *out = from_bf16(x)),
    }
}

/// Without branches, so that loops of it become vectors.
#[inline(always)]
fn from_f16(x: f16) -> f32 {
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    const INFINITY: u32 = 0x7c00 << 13;
    let bits = u32::from(x.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    // The exponents' biases differ by 112; the product is exact and also normalizes the subnormals.
    let finite = (f32::from_bits(magnitude) * SCALE).to_bits();
    let special = magnitude | 0x7f80_0000 | if magnitude > INFINITY { 0x0040_0000 } else { 0 };
    f32::from_bits((bits & 0x8000) << 16 | if magnitude < INFINITY { finite } else { special })
}

#[inline(always)]
fn from_bf16(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_patterns_of_both_types() {
        for bits in 0..=u16::MAX {
            let (a, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            for (got, expected) in [(from_f16(a), a.to_f32()), (from_bf16(b), b.to_f32())] {
                assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{bits:04x}");
            }
        }
    }
}

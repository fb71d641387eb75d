//! The two sigmoids: the portable one, whose bits are the CPU's, and torch CUDA's own.

use crate::simt::math::{self, fma};

/// `exp(x)`: every step rounded once, in the order of the specification (3.2, CANON).
#[inline(always)]
fn portable_exp(x: f32) -> f32 {
    let n = math::rne(x * f32::from_bits(0x3fb8_aa3b));
    let r = fma(n, f32::from_bits(0xbf31_8000), x);
    let r = fma(n, f32::from_bits(0x395e_8083), r);
    let mut p = f32::from_bits(0x3950_6967);
    p = fma(p, r, f32::from_bits(0x3ab7_43ce));
    p = fma(p, r, f32::from_bits(0x3c08_8908));
    p = fma(p, r, f32::from_bits(0x3d2a_a9c1));
    p = fma(p, r, f32::from_bits(0x3e2a_aaaa));
    p = fma(p, r, 0.5);
    let y = fma(p, r * r, r) + 1.0;
    // 2^n in two steps, so that a subnormal result rounds once. Where `n` is out of range the limits below decide.
    let n = n as i32;
    let (a, b) = (n >> 1, n.wrapping_sub(n >> 1));
    let power = |k: i32| f32::from_bits((k.wrapping_add(127) as u32) << 23);
    let result = (y * power(a)) * power(b);
    if x > f32::from_bits(0x42b1_7218) {
        f32::INFINITY
    } else if x < f32::from_bits(0xc2cf_f1b5) {
        0.0
    } else {
        // NaN comes through the arithmetic.
        result
    }
}

/// The portable score of a logit. Spec 3.2, CANON.
#[inline(always)]
pub fn portable_sigmoid(logit: f32) -> f32 {
    math::reciprocal(1.0 + portable_exp(-logit))
}

/// Torch CUDA's score of a logit. Spec 3.2, TC: CUDA's `expf`, then an IEEE division.
#[inline(always)]
pub fn torch_sigmoid(logit: f32) -> f32 {
    let a = -logit;
    let t = fma(a, f32::from_bits(0x3bbb_989d), 0.5);
    // Saturation to 0..=1; NaN becomes 0 here and comes back through the second factor.
    let t = if t > 1.0 {
        1.0
    } else if t > 0.0 {
        t
    } else {
        0.0
    };
    let j = math::fma_rd(t, 252.0, 12_582_913.0);
    let n = j - 12_583_039.0;
    let f = fma(a, f32::from_bits(0x3fb8_aa3b), -n);
    let f = fma(a, f32::from_bits(0x32a5_7060), f);
    let exp = f32::from_bits(j.to_bits() << 23) * math::ex2_approx_ftz(f);
    math::reciprocal(1.0 + exp)
}

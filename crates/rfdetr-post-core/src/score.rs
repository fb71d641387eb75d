//! The portable sigmoid, and the logit that a threshold stands for.

use crate::math::{fma, rne};

/// `exp(x)` in single precision: the same bits on every machine.
///
/// Cody-Waite reduction by ln 2 and a polynomial of degree 6, every step rounded once (spec 3.2, CANON).
fn exp(x: f32) -> f32 {
    // The constants' bit patterns are the spec's appendix A.
    const MAX: f32 = f32::from_bits(0x42b1_7218);
    const MIN: f32 = f32::from_bits(0xc2cf_f1b5);
    const LOG2_E: f32 = f32::from_bits(0x3fb8_aa3b);
    const LN_2_HIGH_NEG: f32 = f32::from_bits(0xbf31_8000);
    const LN_2_LOW_NEG: f32 = f32::from_bits(0x395e_8083);
    const POLYNOMIAL: [f32; 6] = [
        f32::from_bits(0x3950_6967),
        f32::from_bits(0x3ab7_43ce),
        f32::from_bits(0x3c08_8908),
        f32::from_bits(0x3d2a_a9c1),
        f32::from_bits(0x3e2a_aaaa),
        f32::from_bits(0x3f00_0000),
    ];
    if x > MAX {
        return f32::INFINITY;
    }
    if x < MIN {
        return 0.0;
    }
    if x.is_nan() {
        return f32::NAN;
    }
    let n = rne(x * LOG2_E);
    let r = fma(n, LN_2_HIGH_NEG, x);
    let r = fma(n, LN_2_LOW_NEG, r);
    let p = POLYNOMIAL[1..].iter().fold(POLYNOMIAL[0], |p, &c| fma(p, r, c));
    let y = fma(p, r * r, r) + 1.0;
    // 2^n in two steps, so that results in the subnormal range round once.
    let n = n as i32;
    let (a, b) = (n >> 1, n - (n >> 1));
    let power = |k: i32| f32::from_bits(((k + 127) as u32) << 23);
    (y * power(a)) * power(b)
}

/// The lowest logit with a score above 0 (-88.72283); those below score exactly 0.
pub const UNDERFLOW_LOGIT: f32 = f32::from_bits(0xc2b1_7217);

/// The score of a logit: `1 / (1 + exp(-logit))`, the same bits on every machine.
///
/// Units: logit in, score in 0..=1 out; NaN in, NaN out. Monotone over all inputs. At most 2 ulp from the correctly
/// rounded value down to [`UNDERFLOW_LOGIT`]; below it `exp(-logit)` overflows and the score is 0, as torch's is, where
/// the true value is below 2.94e-39 (checked over all 2^32 inputs by `cargo run --release -p rfdetr-post-tests --bin sigmoid`).
/// Source: spec 3.2, CANON; at most 4 ulp from torch CUDA's.
pub fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + exp(-logit))
}

/// Maps floats to integers of the same order; NaN excluded. `-0` comes directly before `+0`.
fn ordered_from_f32(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn f32_from_ordered(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// The smallest logit whose score is strictly above `threshold`, so that `sigmoid(x) > threshold` is
/// `x >= min_logit(threshold)`. NaN when no score is above it, which makes that comparison false for every logit.
///
/// Exact, because [`sigmoid`] is monotone: a bisection over all floats.
pub fn min_logit(threshold: f32) -> f32 {
    let (mut low, mut high) = (ordered_from_f32(f32::NEG_INFINITY), ordered_from_f32(f32::INFINITY));
    if sigmoid(f32::NEG_INFINITY) > threshold {
        return f32::NEG_INFINITY;
    }
    if threshold.is_nan() || sigmoid(f32::INFINITY) <= threshold {
        return f32::NAN;
    }
    // Invariant: the score at `low` is not above the threshold, the one at `high` is.
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if sigmoid(f32_from_ordered(middle)) > threshold {
            high = middle;
        } else {
            low = middle;
        }
    }
    f32_from_ordered(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Input and output bits of the spec's appendix A.
    #[test]
    fn sigmoid_of_the_spec() {
        for (input, output) in [
            (0x0000_0000, 0x3f00_0000),
            (0x3f80_0000, 0x3f3b_26a8),
            (0xbf80_0000, 0x3e89_b2b1),
            (0xbecf_991f, 0x3ecc_cccd),
            (0x4020_0000, 0x3f6c_948f),
            (0xc0e8_0000, 0x3a3a_092d),
            (0x4120_0000, 0x3f7f_fd06),
            (0x4185_1591, 0x3f7f_fffe),
            (0x4185_1592, 0x3f80_0000),
            (0xc1f0_0000, 0x29d2_b707),
            (0xc2ae_0000, 0x00b3_3688),
            (0xc2b1_6666, 0x0020_bd47),
            (0xc2b1_75c3, 0x0000_0000),
            (0xc093_0b39, 0x3c23_d709),
            (0x7f80_0000, 0x3f80_0000),
            (0xff80_0000, 0x0000_0000),
            (0x8000_0000, 0x3f00_0000),
        ] {
            let got = sigmoid(f32::from_bits(input)).to_bits();
            assert_eq!(got, output, "sigmoid({input:08x}) = {got:08x}, expected {output:08x}");
        }
        assert!(sigmoid(f32::NAN).is_nan());
        assert!(sigmoid(-f32::NAN).is_nan());
    }

    /// Every 1,009th float: monotone, and at most 2 ulp from the value in double precision.
    #[test]
    fn sigmoid_is_monotone_and_accurate_on_a_dense_sample() {
        let mut previous = 0.0;
        let (first, last) = (ordered_from_f32(f32::NEG_INFINITY), ordered_from_f32(f32::INFINITY));
        for key in (first..=last).step_by(1009) {
            let x = f32_from_ordered(key);
            let score = sigmoid(x);
            assert!(score >= previous, "sigmoid({x}) = {score} is below {previous}");
            previous = score;
            if x < UNDERFLOW_LOGIT {
                assert_eq!(score, 0.0, "sigmoid({x})");
                continue;
            }
            let exact = (1.0 / (1.0 + libm::exp(-f64::from(x)))) as f32;
            let ulps = score.to_bits().abs_diff(exact.to_bits());
            assert!(ulps <= 2, "sigmoid({x}) = {score}, {ulps} ulp from {exact}");
        }
    }

    #[test]
    fn min_logit_is_the_boundary() {
        for threshold in [0.0, 1e-40, 1e-6, 0.25, 0.4, 0.5, 0.500_000_06, 0.75, 0.999_999_9] {
            let logit = min_logit(threshold);
            assert!(sigmoid(logit) > threshold);
            let below = f32_from_ordered(ordered_from_f32(logit) - 1);
            assert!(sigmoid(below) <= threshold, "{below} is below {logit}, and above {threshold}");
        }
        assert_eq!(min_logit(0.0), UNDERFLOW_LOGIT);
        // A boundary between the zeros would tell them apart, and floats do not.
        assert!(min_logit(0.499_999_97).is_sign_negative());
        assert_eq!(min_logit(-0.5), f32::NEG_INFINITY);
        assert!(min_logit(1.0).is_nan());
        assert!(min_logit(f32::INFINITY).is_nan());
        assert!(min_logit(f32::NAN).is_nan());
    }

    #[test]
    fn ordered_keys_round_trip() {
        for x in [f32::NEG_INFINITY, -1.5, -0.0, 0.0, 1e-45, 3.0, f32::INFINITY] {
            assert_eq!(f32_from_ordered(ordered_from_f32(x)).to_bits(), x.to_bits());
        }
        assert!(ordered_from_f32(-0.0) < ordered_from_f32(0.0));
    }
}

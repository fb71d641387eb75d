//! The few operations that want intrinsics, behind one trait, and the choice among its implementations.
//!
//! Everything else in this crate is plain safe Rust that is generic over [`Isa`] and `#[inline(always)]`. It is
//! instantiated once for each instruction set inside [`Isa::vectorize`], a function compiled with that set's features,
//! where the compiler turns the same loops into its vectors. So all paths share one source and cannot drift apart, and
//! `unsafe` is confined to `x86.rs`, which the compiler sees to.
//!
//! A closure is a function of its own, and does not take the features of the function around it unless it happens to be
//! inlined. So kernels use functions marked `#[inline(always)]` where arithmetic or the token is involved. (The first
//! version used closures, and AVX2 was slower than the portable path.)
//!
//! An [`Isa`] value is a token: it exists only after its instruction set was detected, which is what makes its methods
//! safe to call.

// Compiled for tests everywhere: it has no intrinsics.
#[cfg(any(target_arch = "aarch64", test))]
pub(crate) mod neon;
pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "intrinsics: the only file of this crate that has any")]
pub(crate) mod x86;

use crate::SimdLevel;

/// Number of lanes that kernels work in. Tables are padded to it.
pub(crate) const LANES: usize = 16;

/// Bits of the smallest ordinary magnitude, 2^-40.
pub(crate) const ORDINARY_MIN: u32 = (127 - 40) << 23;

/// Number of ordinary magnitudes, as bits: up to 2^100.
pub(crate) const ORDINARY_RANGE: u32 = 140 << 23;

/// A piece of work that is compiled once for each instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// Does the work. Implementations are `#[inline(always)]`, so that they take the features of their caller.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// An instruction set that was detected on this machine.
///
/// Arithmetic written in kernels rounds as written: `f32::mul_add` once, everything else after each operation. The
/// compiler contracts nothing.
pub(crate) trait Isa: Copy + Send + Sync {
    /// Runs a kernel with the instruction set's features.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// Bit `i` tells whether `values[i] > 0`.
    fn positive_mask(self, values: &[f32; LANES]) -> u32;

    /// Bit `i` tells whether `values[i]` is not ordinary: neither zero nor of a magnitude in 2^-40..2^100.
    fn unusual_mask(self, values: &[f32; LANES]) -> u32;

    /// Number of lanes with `fma(b, wb, a * wa) > 0`.
    fn count_positive(self, a: f32, b: f32, wa: &[f32; LANES], wb: &[f32; LANES]) -> u32;

    /// For each of 16 columns, where the pixels of a group of rows change.
    ///
    /// With `value[row] = fma(fused, wf[row], rounded * wr[row])`, row `y` of the group is positive if and only if
    /// `(threshold > y) != flip`, provided that the values change their sign at most once, and from that of the lower
    /// cell (`rounded` if `lower_first`) to that of the upper. There are at most 255 rows.
    fn edges(self, rounded: &[f32; LANES], fused: &[f32; LANES], lower_first: bool, weights: (&[f32], &[f32]))
    -> Edges;

    /// Bit `i` tells whether `values[i]` is NaN, -Inf, or not below `min`, which is not NaN.
    fn notable_mask(self, values: &[f32; LANES], min: f32) -> u32;

    /// Sets bytes to zero, past the caches where the instruction set can. Owes a [`Isa::fence`].
    #[inline(always)]
    fn stream_zero(self, out: &mut [u8]) {
        out.fill(0);
    }

    /// Writes `u8::from(thresholds[i] > row) ^ flips[i]`, past the caches where the instruction set can. All slices
    /// have one length. Owes a [`Isa::fence`].
    #[inline(always)]
    fn stream_below(self, row: u8, thresholds: &[u8], flips: &[u8], out: &mut [u8]) {
        write_below(row, thresholds, flips, out);
    }

    /// Makes what was streamed visible to other threads in order, as other writes are. Due before the borrow of the
    /// written bytes ends.
    #[inline(always)]
    fn fence(self) {}

    /// Bit `i` tells whether `thresholds[i] > row`, xor the lowest bit of `flips[i]`.
    fn below_mask(self, row: u8, thresholds: &[u8; 64], flips: &[u8; 64]) -> u64;
}

/// Writes `u8::from(thresholds[i] > row) ^ flips[i]`.
#[inline(always)]
pub(crate) fn write_below(row: u8, thresholds: &[u8], flips: &[u8], out: &mut [u8]) {
    for (out, (&threshold, &flip)) in out.iter_mut().zip(thresholds.iter().zip(flips)) {
        *out = u8::from(threshold > row) ^ flip;
    }
}

/// Thresholds and flips (0 or 1) of 16 columns.
pub(crate) type Edges = ([u8; LANES], [u8; LANES]);

/// The instruction set to use, as a value that was checked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Token {
    Portable(portable::Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

impl Token {
    /// The token of a level, if the machine has it.
    pub(crate) fn new(level: SimdLevel) -> Option<Self> {
        match level {
            SimdLevel::Portable => Some(Self::Portable(portable::Portable)),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => x86::Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => x86::Avx512::detect().map(Self::Avx512),
            #[cfg(target_arch = "aarch64")]
            SimdLevel::Neon => neon::Neon::detect().map(Self::Neon),
            #[allow(unreachable_patterns, reason = "the levels of other architectures")]
            _ => None,
        }
    }

    /// Runs a kernel on this instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable(isa) => isa.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(isa) => isa.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(isa) => isa.vectorize(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(isa) => isa.vectorize(kernel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that an operation can answer, for one input.
    type Answers = (Vec<u32>, Edges, u64, Vec<u8>, Vec<u8>);

    struct Ask<'a> {
        values: &'a [f32; LANES],
        others: &'a [f32; LANES],
        weights: (&'a [f32; LANES], &'a [f32; LANES]),
        bytes: (&'a [u8; 64], &'a [u8; 64]),
        cut: usize,
    }

    impl Kernel for Ask<'_> {
        type Output = Answers;

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Answers {
            let Self { values, others, weights, bytes, cut } = self;
            let numbers = vec![
                isa.positive_mask(values),
                isa.unusual_mask(values),
                isa.notable_mask(values, if others[0].is_nan() { 0.5 } else { others[0] }),
                isa.count_positive(values[0], others[0], weights.0, weights.1),
            ];
            let rows = 1 + cut % LANES;
            let edges = isa.edges(values, others, cut % 2 == 0, (&weights.0[..rows], &weights.1[..rows]));
            // Lengths and places that leave something before and after the vectors.
            let mut zeroed = vec![7; 200];
            isa.stream_zero(&mut zeroed[cut % 40..150 + cut % 50]);
            let mut streamed = vec![9; 100];
            isa.stream_below(bytes.0[0], &bytes.0[cut % 64..], &bytes.1[cut % 64..], &mut streamed[3..67 - cut % 64]);
            isa.fence();
            (numbers, edges, isa.below_mask(bytes.1[0].wrapping_mul(3), bytes.0, bytes.1), zeroed, streamed)
        }
    }

    #[test]
    fn all_instruction_sets_answer_alike() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let special =
            [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-45, 2f32.powi(-40), 2f32.powi(100)];
        for round in 0..20_000 {
            let mut float = |n: usize| match next() % 4 {
                0 => special[n % special.len()],
                1 => f32::from_bits(next()),
                _ => (next() as f32 / 2f32.powi(31) - 1.0) * 8.0,
            };
            let [mut values, mut others, mut wa, mut wb] = [[0.0; LANES]; 4];
            for i in 0..LANES {
                (values[i], others[i]) = (float(i + round), float(i + 2 * round));
                // Edges and counts are asked of ordinary values only.
                if round % 2 == 0 {
                    let ordinary = |x: f32| if x.is_finite() { x % 8.0 + 2f32.powi(-30) } else { -1.5 };
                    (values[i], others[i]) = (ordinary(values[i]), ordinary(others[i]));
                }
            }
            for i in 0..LANES {
                wb[i] = (next() >> 8) as f32 / 2f32.powi(24);
                wa[i] = 1.0 - wb[i];
            }
            let (mut thresholds, mut flips) = ([0u8; 64], [0u8; 64]);
            for i in 0..64 {
                (thresholds[i], flips[i]) = (next() as u8, (next() >> 31) as u8);
            }
            let answers = |token: &dyn Fn(Ask<'_>) -> Answers| {
                token(Ask {
                    values: &values,
                    others: &others,
                    weights: (&wa, &wb),
                    bytes: (&thresholds, &flips),
                    cut: round,
                })
            };
            let expected = answers(&|ask| ask.run(portable::Portable));
            assert_eq!(
                answers(&|ask| ask.run(neon::Neon::detect().unwrap())),
                expected,
                "neon's source, round {round}"
            );
            for level in SimdLevel::available() {
                let token = Token::new(level).unwrap();
                assert_eq!(answers(&|ask| token.run(ask)), expected, "{level:?}, round {round}");
            }
        }
    }
}

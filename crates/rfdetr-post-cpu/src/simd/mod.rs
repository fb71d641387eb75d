//! The few operations that want intrinsics, behind one trait, and the choice among its implementations.
//!
//! Everything else in this crate is plain safe Rust that is generic over [`Isa`] and `#[inline(always)]`. It is
//! instantiated once for each instruction set inside [`Isa::vectorize`], a function compiled with that set's features,
//! where the compiler turns the same loops into its vectors. So all paths share one source and cannot drift apart, and
//! `unsafe` is confined to `x86.rs` and `neon.rs`.
//!
//! A closure is a function of its own, and does not take the features of the function around it unless it happens to be
//! inlined. So kernels use functions marked `#[inline(always)]` where arithmetic or the token is involved. (The first
//! version used closures, and AVX2 was slower than the portable path.)
//!
//! An [`Isa`] value is a token: it exists only after its instruction set was detected, which is what makes its methods
//! safe to call.

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
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

    /// Bit `i` tells whether `values[i]` is NaN, -Inf, or not below `min`.
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

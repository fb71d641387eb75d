//! RF-DETR and RF-DETR-Seg post-processing on the CPU, fast: the answers of
//! [`rfdetr_post_core::reference::process`], bit for bit.
//!
//! ```
//! use rfdetr_post_core::{ImageMeta, Options, Request, Size, Tensor, Tensors};
//! use rfdetr_post_cpu::{CpuConfig, CpuPostprocessor};
//!
//! let (boxes, logits) = ([0.5f32, 0.5, 0.2, 0.1], [-3.0f32, 2.0]);
//! let tensors = Tensors {
//!     boxes: Tensor::new(&boxes[..], &[1, 1, 4]),
//!     logits: Tensor::new(&logits[..], &[1, 1, 2]),
//!     masks: None,
//! };
//! let metas = [ImageMeta::stretch(Size::new(640, 480), Size::new(384, 384))?];
//! let options = Options::default();
//! let request = Request::new(tensors, &metas, &options)?;
//!
//! let mut postprocessor = CpuPostprocessor::new(CpuConfig::default())?;
//! let detections = postprocessor.process(&request)?;
//! assert_eq!(detections.images[0].rows[0].xyxy, [256.0, 216.0, 384.0, 264.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The stages are those of the reference, under the same names: `select`, `boxes`, `masks`, and `runs` for its `rle`.
#![deny(unsafe_code)]

mod axis;
mod bits;
mod boxes;
mod crossing;
mod full;
mod grid;
mod masks;
mod processor;
mod runs;
mod select;
mod simd;
mod threads;
mod widen;

use std::num::NonZero;

pub use crate::processor::CpuPostprocessor;

/// How to compute. The answers do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuConfig {
    /// How many threads to use.
    pub threads: Threads,
    /// The instructions to use; none for the best that the machine has.
    pub simd: Option<SimdLevel>,
}

/// How many threads to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Threads {
    /// The caller's only.
    #[default]
    One,
    /// As many as rayon's global pool has: all cores, unless the program has set it up otherwise. The caller's is one.
    All,
    /// So many: the caller's, and a pool of its own with the others.
    Count(NonZero<usize>),
}

/// A set of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SimdLevel {
    /// The target's baseline.
    Portable,
    /// x86-64 with AVX2, FMA and BMI.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// 64-bit Arm. Compiles from the same source as the others, but was not run by us.
    Neon,
}

impl SimdLevel {
    /// The levels that this machine has, best last.
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512]
            .into_iter()
            .filter(|&level| simd::Token::new(level).is_some())
            .collect()
    }

    /// The level's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }
}

/// A configuration that this machine cannot follow.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The machine lacks the instructions. Pass none to use the best that it has.
    #[error("`simd` is {}, expected one of {}", .got.name(), .available.iter().map(|l| l.name()).collect::<Vec<_>>().join(", "))]
    Simd {
        /// The level that was asked for.
        got: SimdLevel,
        /// The levels that the machine has.
        available: Vec<SimdLevel>,
    },
    /// The threads could not be started. Ask for fewer.
    #[error("`threads` is {got}, and so many could not be started: {source}")]
    Threads {
        /// The number of threads that was asked for.
        got: NonZero<usize>,
        /// What the system said.
        source: rayon::ThreadPoolBuildError,
    },
}

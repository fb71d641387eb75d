//! Post-processing of RF-DETR and RF-DETR-Seg: what is computed, on which data, exactly.
//!
//! This crate holds the data layout, the geometry and the CPU *reference*: plain loops that nobody can doubt, which
//! judge the fast CPU path and the GPU kernels bit for bit. It knows nothing of CUDA, files or threads.
//!
//! The path of data:
//!
//! ```text
//! Tensors + ImageMeta + Options -> Request (checked once) -> Plan (plain sizes) -> reference or kernels
//!                                                                              -> Detections
//! ```
//!
//! - [`request`]: borrowed model outputs, options, and the one place that rejects bad input;
//! - [`geometry`]: how an image became a network input, and the way back;
//! - [`score`]: the portable sigmoid and the logit that a threshold stands for;
//! - [`mod@reference`]: selection, boxes, masks and run lengths as plain loops;
//! - [`plan`]: every buffer size and launch dimension of the GPU path, as values that can be printed;
//! - [`packed`]: the `repr(C)` records that host and device share;
//! - [`unpack`]: a packed result, checked and decoded;
//! - [`watch`]: how a host sees that a packed result is there;
//! - [`detections`]: the answer.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod packed;

#[cfg(feature = "std")]
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "alloc")]
pub mod detections;
#[cfg(feature = "alloc")]
pub mod error;
#[cfg(feature = "alloc")]
pub mod geometry;
#[cfg(feature = "alloc")]
mod math;
#[cfg(feature = "alloc")]
pub mod models;
#[cfg(feature = "alloc")]
pub mod options;
#[cfg(feature = "alloc")]
pub mod plan;
#[cfg(feature = "alloc")]
pub mod reference;
#[cfg(feature = "alloc")]
pub mod request;
#[cfg(feature = "alloc")]
pub mod score;
#[cfg(feature = "alloc")]
pub mod tensor;
#[cfg(feature = "alloc")]
pub mod unpack;
#[cfg(feature = "alloc")]
pub mod watch;

#[cfg(feature = "alloc")]
pub use crate::{
    detections::{Detections, Health, ImageDetections, MaskRef, Masks},
    error::{Error, Result},
    geometry::{ImageMeta, Offset, Padding, Preprocessing, Resize, Size, StaticCrop},
    options::{
        BoxRounding, ClassLayout, Frame, MaskFormat, MaskResize, NegativeSizes, Options, ScoreArithmetic, Semantics,
        Thresholds,
    },
    packed::DetectionRow,
    request::{Request, Tensors},
    tensor::{DType, Tensor, TensorData},
};

//! What can be wrong with a request, a plan or a packed result.

use alloc::{string::String, vec::Vec};

/// The result of everything fallible in this crate.
pub type Result<T> = core::result::Result<T, Error>;

/// Bad input, or a request that this back end cannot serve.
///
/// Every message names the field, what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong number of dimensions. Reshape it; layouts are never guessed.
    #[error("`{field}` has rank {got}, expected {expected}")]
    Rank {
        /// The tensor.
        field: &'static str,
        /// The rank and layout that are expected.
        expected: &'static str,
        /// The rank that came.
        got: usize,
    },
    /// A tensor's shape contradicts the others. Check that all outputs come from one run of one model.
    #[error("`{field}` has shape {got:?}, expected {expected}")]
    Shape {
        /// The tensor.
        field: &'static str,
        /// The shape that is expected.
        expected: String,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A tensor's data has not as many elements as its shape says.
    #[error("`{field}` holds {got} elements, its shape needs {expected}")]
    DataLength {
        /// The tensor.
        field: &'static str,
        /// Elements that the shape needs.
        expected: usize,
        /// Elements that came.
        got: usize,
    },
    /// Not one metadata record an image.
    #[error("`metas` holds {got} records, expected {expected}: one for each image of the batch")]
    MetaCount {
        /// The batch size.
        expected: usize,
        /// Records that came.
        got: usize,
    },
    /// A metadata record that cannot be.
    #[error("`metas[{image}].{field}` is {got}, expected {expected}")]
    Meta {
        /// Index of the image in the batch.
        image: usize,
        /// The record's field.
        field: &'static str,
        /// What is expected.
        expected: String,
        /// What came.
        got: String,
    },
    /// A pre-processing step cannot be, such as a crop outside the image.
    #[error("`{field}` is {got}, expected {expected}")]
    Preprocessing {
        /// The field.
        field: &'static str,
        /// What is expected.
        expected: String,
        /// What came.
        got: String,
    },
    /// A threshold is NaN or outside -1..=1. Scores lie in 0..=1; any negative threshold keeps everything.
    #[error("`{field}` is {got}, expected a number in -1..=1 (scores lie in 0..=1)")]
    Threshold {
        /// `threshold`, or the entry of a per-class list.
        field: String,
        /// What came.
        got: f64,
    },
    /// Not one threshold a class id.
    #[error("`threshold.per_class` holds {got} values, expected {expected}: one for each class id")]
    ThresholdCount {
        /// Number of class ids.
        expected: usize,
        /// Values that came.
        got: usize,
    },
    /// The class table does not describe the logits' columns.
    #[error("`classes` describes {got} columns, the logits have {expected}")]
    ClassTableLength {
        /// Columns of the logits.
        expected: usize,
        /// Columns that the table describes.
        got: usize,
    },
    /// A class id of the remap table does not fit.
    #[error("`classes.remap[{column}]` is {got}, expected an id of at most {max}")]
    ClassId {
        /// The column.
        column: usize,
        /// Largest id.
        max: u32,
        /// The id that came.
        got: u32,
    },
    /// `num_select` is zero: nothing could ever be selected.
    #[error("`num_select` is 0, expected at least 1, or none for the number of queries")]
    NumSelect,
    /// Masks were asked of a model without masks. Pass the mask logits, or ask for `MaskFormat::None`.
    #[error("`mask_format` is {format}, but the request has no `masks`: expected mask logits `[B, Q, Mh, Mw]`")]
    MasksMissing {
        /// The format that was asked for.
        format: &'static str,
    },
    /// The whole-image frame ignores padding and crops, so a record that has any would give wrong boxes.
    /// Use `Frame::UndoPreprocessing`, or describe the image with a plain stretch.
    #[error(
        "`metas[{image}].{field}` is {got}, but `semantics.frame` is `whole_image`, which cannot undo it: \
         expected a plain stretch, or `undo_preprocessing`"
    )]
    FrameMismatch {
        /// Index of the image in the batch.
        image: usize,
        /// The record's field.
        field: &'static str,
        /// What came.
        got: String,
    },
    /// Torch's CUDA sigmoid uses a hardware table, so only the GPU has it.
    #[error("`semantics.score` is `torch_cuda`, which only a GPU can compute: expected `portable` on this back end")]
    ScoreArithmetic,
    /// A size does not fit. Split the batch or use a smaller image.
    #[error("`{field}` overflows: {got}, expected at most {max}")]
    Overflow {
        /// What overflows.
        field: &'static str,
        /// The largest value.
        max: u64,
        /// What came (saturated).
        got: u64,
    },
    /// More than the GPU path takes. The CPU takes it.
    #[error("`{field}` is {got}, the GPU path takes at most {max}")]
    Limit {
        /// What is too large.
        field: &'static str,
        /// The largest value.
        max: u64,
        /// What came.
        got: u64,
    },
    /// A request is larger than the plan it is to run under. Plan again with the size that came.
    #[error("`{field}` is {got}, the plan holds at most {planned}")]
    Plan {
        /// What is larger than planned.
        field: &'static str,
        /// What the plan holds.
        planned: u64,
        /// What came.
        got: u64,
    },
    /// The answer did not fit the room that the plan gave each mask. Nothing was truncated: plan again with
    /// `mask_capacity` of at least `needed`.
    #[error("a mask of `images[{image}]` needs a capacity of {needed} {unit}, the plan gave {capacity}")]
    Capacity {
        /// Index of the image in the batch.
        image: usize,
        /// Bytes or counts.
        unit: &'static str,
        /// The capacity of one mask.
        capacity: u64,
        /// The capacity that the largest mask needs.
        needed: u64,
    },
    /// The output does not fit into memory.
    #[error("out of memory: `{field}` needs {bytes} bytes")]
    OutOfMemory {
        /// The output.
        field: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// A COCO run-length string is malformed.
    #[error("run lengths: {message} at byte {position}")]
    Rle {
        /// What is wrong.
        message: &'static str,
        /// Where.
        position: usize,
    },
    /// A packed result contradicts itself. This is a fault of ours or of the memory, not of the request.
    #[error("packed result: `{field}` is {got}, expected {expected}")]
    Packed {
        /// The field.
        field: &'static str,
        /// What is expected.
        expected: String,
        /// What came.
        got: String,
    },
}

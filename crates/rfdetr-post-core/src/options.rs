//! What to compute: thresholds, classes, mask format and semantics. All of it is `serde`.

use alloc::{format, string::ToString, vec, vec::Vec};

use crate::error::{Error, Result};

/// Everything that can be configured. The same options serve any number of batches.
///
/// ```
/// use rfdetr_post_core::{ClassLayout, MaskFormat, Options, Thresholds};
/// let options = Options {
///     classes: ClassLayout::coco91(),
///     threshold: Thresholds::Scalar(0.5),
///     mask_format: MaskFormat::Rle,
///     ..Options::default()
/// };
/// # let _ = options;
/// ```
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Whose arithmetic to follow.
    pub semantics: Semantics,
    /// What the logit columns mean.
    pub classes: ClassLayout,
    /// Scores must be strictly above it.
    pub threshold: Thresholds,
    /// Size of the flat top-k over all (query, class) pairs; none for the number of queries, as Roboflow does.
    /// Never more than the number of pairs.
    pub num_select: Option<usize>,
    /// At most this many detections an image, after the threshold; none for no cap.
    pub max_detections: Option<usize>,
    /// What to make of the mask logits.
    pub mask_format: MaskFormat,
}

impl Default for Options {
    /// Roboflow's semantics and threshold (0.4), every column a class, no masks.
    fn default() -> Self {
        Self {
            semantics: Semantics::roboflow_inference(),
            classes: ClassLayout::Identity,
            threshold: Thresholds::Scalar(0.4),
            num_select: None,
            max_detections: None,
            mask_format: MaskFormat::None,
        }
    }
}

/// The form of the masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum MaskFormat {
    /// No masks, even if the model has them.
    #[default]
    None = 0,
    /// One byte a pixel, 0 or 1, row-major `[n, height, width]`.
    Dense = 1,
    /// One bit a pixel, row-major; each row padded to whole `u32` words, column `x` in bit `x % 32` of word `x / 32`
    /// (`numpy.packbits(..., bitorder="little")` of rows padded to a multiple of 32).
    BitPacked = 2,
    /// The mask logits of the detection's query as they come, widened to f32: `[n, mask_h, mask_w]`.
    GridLogits = 3,
    /// COCO run lengths, uncompressed: column-major, alternating, background first.
    Counts = 4,
    /// COCO's compressed run-length string.
    Rle = 5,
}

impl MaskFormat {
    /// Whether masks are run lengths.
    pub const fn is_run_length(self) -> bool {
        matches!(self, Self::Counts | Self::Rle)
    }

    /// The format's name, as in configuration files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Dense => "dense",
            Self::BitPacked => "bit_packed",
            Self::GridLogits => "grid_logits",
            Self::Counts => "counts",
            Self::Rle => "rle",
        }
    }
}

/// Whose arithmetic to follow, as independent knobs. Order and ties are the same everywhere: score descending, then
/// flat index ascending, NaN first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Semantics {
    /// Which space boxes and masks are mapped to.
    pub frame: Frame,
    /// Whether boxes become whole numbers.
    pub box_rounding: BoxRounding,
    /// Whether boxes are clipped to the image.
    pub clip_boxes: bool,
    /// What to do with a negative width or height.
    pub negative_sizes: NegativeSizes,
    /// How the mask grid is resized.
    pub mask_resize: MaskResize,
    /// Which sigmoid gives the scores.
    pub score: ScoreArithmetic,
}

impl Semantics {
    /// Roboflow inference (commit 3bb973b5, plain torch path): pads and crops undone, boxes clipped and rounded half to
    /// even, antialiased mask resize.
    pub const fn roboflow_inference() -> Self {
        Self {
            frame: Frame::UndoPreprocessing,
            box_rounding: BoxRounding::HalfEven,
            clip_boxes: true,
            negative_sizes: NegativeSizes::Keep,
            mask_resize: MaskResize::Antialias,
            score: ScoreArithmetic::Portable,
        }
    }

    /// rf-detr 1.9.3's `PostProcess`: float boxes over the whole image, clipped, negative sizes clamped to zero, mask
    /// resize without antialias.
    pub const fn rf_detr() -> Self {
        Self {
            frame: Frame::WholeImage,
            box_rounding: BoxRounding::None,
            clip_boxes: true,
            negative_sizes: NegativeSizes::Clamp,
            mask_resize: MaskResize::Bilinear,
            score: ScoreArithmetic::Portable,
        }
    }
}

impl Default for Semantics {
    fn default() -> Self {
        Self::roboflow_inference()
    }
}

/// Which space normalized coordinates are mapped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// Pads, scales and crops of the record are undone (spec 4, variant A; 5.1; 5.7).
    UndoPreprocessing,
    /// Normalized coordinates times the original size (spec 4, variant D). Records must be plain stretches.
    WholeImage,
}

/// Whether boxes become whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxRounding {
    /// To the nearest integer, halves to even; NaN becomes 0.
    HalfEven,
    /// Left as floats; NaN stays.
    None,
}

/// What to do with a negative width or height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NegativeSizes {
    /// Corners come out swapped.
    Keep,
    /// Taken as zero.
    Clamp,
}

/// How the mask grid is resized to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskResize {
    /// Bilinear with antialias: a triangle filter, horizontal pass first (spec 5.3, 5.4).
    Antialias,
    /// Bilinear between the four nearest cells (spec 5.6).
    Bilinear,
}

/// Which sigmoid gives the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreArithmetic {
    /// The same bits on every machine; at most 4 ulp from torch CUDA's.
    Portable,
    /// Torch CUDA's own bits (spec 3.2, TC). Needs a GPU: its exponential is a hardware table.
    TorchCuda,
}

/// Scores must be strictly above the threshold.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thresholds {
    /// One threshold for all classes. It is rounded to f32 before the comparison.
    Scalar(f64),
    /// One threshold for each class id (after remapping).
    PerClass(Vec<f32>),
}

/// What the logit columns mean.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassLayout {
    /// Every column is a class, and its id is the column.
    Identity,
    /// The first `num_classes` columns are classes; what follows (the no-object column) is dropped.
    NoObject {
        /// Number of classes.
        num_classes: usize,
    },
    /// The id of each column, or none where the column is dropped. One entry a column.
    Remap(Vec<Option<u32>>),
}

/// COCO's category ids that name no class: the columns that a 91-column head never uses.
pub const COCO_UNUSED_COLUMNS: [usize; 11] = [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83];

/// Class ids are `i32`.
const MAX_CLASS_ID: u32 = i32::MAX as u32;

impl ClassLayout {
    /// A COCO head of 91 columns, remapped to the 80 classes 0..80, as Roboflow's packages do.
    pub fn coco91() -> Self {
        let mut next = 0;
        let entry = |column| {
            if COCO_UNUSED_COLUMNS.contains(&column) {
                return None;
            }
            next += 1;
            Some(next - 1)
        };
        Self::Remap((0..91).map(entry).collect())
    }

    /// A COCO head of 91 columns whose ids stay COCO's category ids (1..=90); unused columns are dropped.
    pub fn coco91_category_ids() -> Self {
        Self::Remap((0..91).map(|c| (!COCO_UNUSED_COLUMNS.contains(&(c as usize))).then_some(c)).collect())
    }

    /// A fine-tuned head of `num_classes + 1` columns: the last one is the no-object column.
    pub const fn fine_tuned(num_classes: usize) -> Self {
        Self::NoObject { num_classes }
    }

    /// The layout of a head whose columns are named and some names are removed; what has no name is dropped.
    ///
    /// Every entry whose name is removed is dropped, and the rest get the ids 0, 1, ... in order (spec 3.3).
    pub fn from_names<S: AsRef<str>>(names: &[S], removed: &[S], num_columns: usize) -> Self {
        let mut next = 0;
        let mut table: Vec<_> = names
            .iter()
            .map(|name| {
                if removed.iter().any(|other| other.as_ref() == name.as_ref()) {
                    return None;
                }
                next += 1;
                Some(next - 1)
            })
            .collect();
        if table.len() < num_columns {
            table.resize(num_columns, None);
        }
        Self::Remap(table)
    }

    /// The class id of each of `num_columns` columns, -1 where dropped.
    ///
    /// Errors: the table does not describe `num_columns` columns; an id beyond `i32`.
    pub fn column_ids(&self, num_columns: usize) -> Result<Vec<i32>> {
        match self {
            Self::Identity => Ok((0..num_columns as i32).collect()),
            Self::NoObject { num_classes } => {
                if *num_classes > num_columns {
                    return Err(Error::ClassTableLength { expected: num_columns, got: *num_classes });
                }
                Ok((0..num_columns).map(|c| if c < *num_classes { c as i32 } else { -1 }).collect())
            }
            Self::Remap(table) => {
                if table.len() != num_columns {
                    return Err(Error::ClassTableLength { expected: num_columns, got: table.len() });
                }
                table
                    .iter()
                    .enumerate()
                    .map(|(column, id)| match id {
                        None => Ok(-1),
                        Some(id) if *id <= MAX_CLASS_ID => Ok(*id as i32),
                        Some(id) => Err(Error::ClassId { column, max: MAX_CLASS_ID, got: *id }),
                    })
                    .collect()
            }
        }
    }
}

impl Thresholds {
    /// The f32 threshold of each column; columns that are dropped (id -1) get +Inf.
    ///
    /// Errors: a threshold that is NaN or outside -1..=1; not one threshold a class id.
    pub fn column_thresholds(&self, column_ids: &[i32]) -> Result<Vec<f32>> {
        let check = |field: &dyn Fn() -> alloc::string::String, value: f64| {
            if (-1.0..=1.0).contains(&value) { Ok(()) } else { Err(Error::Threshold { field: field(), got: value }) }
        };
        match self {
            Self::Scalar(value) => {
                check(&|| "threshold".to_string(), *value)?;
                Ok(column_ids.iter().map(|&id| if id < 0 { f32::INFINITY } else { *value as f32 }).collect())
            }
            Self::PerClass(values) => {
                for (idx, &value) in values.iter().enumerate() {
                    check(&|| format!("threshold.per_class[{idx}]"), f64::from(value))?;
                }
                let num_ids = column_ids.iter().max().map_or(0, |&id| (i64::from(id) + 1) as usize);
                if values.len() != num_ids {
                    return Err(Error::ThresholdCount { expected: num_ids, got: values.len() });
                }
                let mut thresholds = vec![f32::INFINITY; column_ids.len()];
                for (threshold, &id) in thresholds.iter_mut().zip(column_ids) {
                    if let Ok(id) = usize::try_from(id) {
                        *threshold = values[id];
                    }
                }
                Ok(thresholds)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coco91_keeps_80_classes_in_order() {
        let ids = ClassLayout::coco91().column_ids(91).unwrap();
        assert_eq!(ids.iter().filter(|&&id| id >= 0).count(), 80);
        assert_eq!((ids[0], ids[1], ids[11], ids[12], ids[13], ids[90]), (-1, 0, 10, -1, 11, 79));
        let categories = ClassLayout::coco91_category_ids().column_ids(91).unwrap();
        assert_eq!((categories[0], categories[1], categories[12], categories[90]), (-1, 1, -1, 90));
    }

    #[test]
    fn names_are_removed_wherever_they_stand() {
        let layout = ClassLayout::from_names(&["background", "cat", "background", "dog"], &["background"], 5);
        assert_eq!(layout.column_ids(5).unwrap(), [-1, 0, -1, 1, -1]);
    }

    #[test]
    fn class_tables_must_fit() {
        assert_eq!(
            ClassLayout::Remap(vec![None, Some(0)]).column_ids(3),
            Err(Error::ClassTableLength { expected: 3, got: 2 })
        );
        assert_eq!(
            ClassLayout::NoObject { num_classes: 4 }.column_ids(3),
            Err(Error::ClassTableLength { expected: 3, got: 4 })
        );
        assert_eq!(ClassLayout::fine_tuned(2).column_ids(3).unwrap(), [0, 1, -1]);
        assert_eq!(
            ClassLayout::Remap(vec![Some(u32::MAX)]).column_ids(1),
            Err(Error::ClassId { column: 0, max: i32::MAX as u32, got: u32::MAX })
        );
    }

    #[test]
    fn thresholds_are_checked_and_spread_over_columns() {
        let ids = [-1, 1, 0];
        assert_eq!(Thresholds::Scalar(0.1).column_thresholds(&ids).unwrap(), [f32::INFINITY, 0.1, 0.1]);
        assert_eq!(
            Thresholds::PerClass(vec![0.25, 0.75]).column_thresholds(&ids).unwrap(),
            [f32::INFINITY, 0.75, 0.25]
        );
        assert_eq!(
            Thresholds::PerClass(vec![0.5]).column_thresholds(&ids),
            Err(Error::ThresholdCount { expected: 2, got: 1 })
        );
        for bad in [f64::NAN, f64::INFINITY, 1.5, -1.01] {
            assert!(matches!(Thresholds::Scalar(bad).column_thresholds(&ids), Err(Error::Threshold { .. })), "{bad}");
        }
        let error = Thresholds::PerClass(vec![0.5, f32::NAN]).column_thresholds(&ids).unwrap_err();
        assert!(error.to_string().contains("threshold.per_class[1]"), "{error}");
    }

    #[test]
    fn options_round_trip_through_json() {
        let options = Options {
            semantics: Semantics { box_rounding: BoxRounding::None, ..Semantics::roboflow_inference() },
            classes: ClassLayout::Remap(vec![None, Some(3)]),
            threshold: Thresholds::PerClass(vec![0.25, 0.5, 0.0, 1.0]),
            num_select: Some(7),
            max_detections: Some(0),
            mask_format: MaskFormat::BitPacked,
        };
        let json = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&json).unwrap(), options);
        assert_eq!(serde_json::from_str::<Options>("{}").unwrap(), Options::default());
        assert!(serde_json::from_str::<Options>("{\"treshold\": 1}").is_err());
    }
}

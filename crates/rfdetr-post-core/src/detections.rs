//! The answer: detections and masks of a batch, in columns, without an allocation a detection.

use alloc::{vec, vec::Vec};

pub use crate::packed::Health;
use crate::{
    error::{Error, Result},
    geometry::Size,
    options::MaskFormat,
    packed::DetectionRow,
    reference::rle,
};

/// The detections of a batch, one entry an image, in input order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Detections {
    /// One entry an image.
    pub images: Vec<ImageDetections>,
}

/// The detections of one image: score descending, then flat index (query, class) ascending.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageDetections {
    /// Size of the original image, and of its masks.
    pub size: Size,
    /// One row a detection.
    pub rows: Vec<DetectionRow>,
    /// The masks of all rows.
    pub masks: Masks,
    /// Non-finite values met.
    pub health: Health,
}

/// The masks of all detections of one image, one after the other.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Masks {
    /// None were asked for.
    #[default]
    None,
    /// `[n, height, width]`, one byte a pixel, 0 or 1.
    Dense(Vec<u8>),
    /// `[n, height, words]` with `words = width.div_ceil(32)`; column `x` is bit `x % 32` of word `x / 32`.
    BitPacked(Vec<u32>),
    /// `[n, mask_h, mask_w]`: mask logits, widened to f32.
    GridLogits {
        /// Rows of the grid.
        mask_h: usize,
        /// Columns of the grid.
        mask_w: usize,
        /// The logits.
        logits: Vec<f32>,
    },
    /// COCO counts; those of a row are `mask_offset..mask_offset + mask_len`.
    Counts(Vec<u32>),
    /// COCO's compressed strings (ASCII); that of a row is `mask_offset..mask_offset + mask_len`.
    Rle(Vec<u8>),
}

/// The mask of one detection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaskRef<'a> {
    /// `[height, width]`, 0 or 1.
    Dense(&'a [u8]),
    /// `[height, words]`.
    BitPacked(&'a [u32]),
    /// `[mask_h, mask_w]`.
    GridLogits(&'a [f32]),
    /// COCO counts.
    Counts(&'a [u32]),
    /// COCO's compressed string.
    Rle(&'a [u8]),
}

impl Masks {
    /// The format of these masks.
    pub const fn format(&self) -> MaskFormat {
        match self {
            Self::None => MaskFormat::None,
            Self::Dense(_) => MaskFormat::Dense,
            Self::BitPacked(_) => MaskFormat::BitPacked,
            Self::GridLogits { .. } => MaskFormat::GridLogits,
            Self::Counts(_) => MaskFormat::Counts,
            Self::Rle(_) => MaskFormat::Rle,
        }
    }
}

impl ImageDetections {
    /// An image without detections.
    pub fn empty(size: Size) -> Self {
        Self { size, rows: Vec::new(), masks: Masks::None, health: Health::default() }
    }

    /// Number of detections.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing was detected.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The mask of detection `idx`. None beyond the detections, or when no masks were asked for.
    pub fn mask(&self, idx: usize) -> Option<MaskRef<'_>> {
        let row = self.rows.get(idx)?;
        let (offset, len) = (row.mask_offset as usize, row.mask_len as usize);
        // Masks of a fixed size follow each other, so their rows need no offset (it could exceed u32).
        let fixed = idx * len..(idx + 1) * len;
        match &self.masks {
            Masks::None => None,
            Masks::Dense(bytes) => bytes.get(fixed).map(MaskRef::Dense),
            Masks::BitPacked(words) => words.get(fixed).map(MaskRef::BitPacked),
            Masks::GridLogits { logits, .. } => logits.get(fixed).map(MaskRef::GridLogits),
            Masks::Counts(counts) => counts.get(offset..offset + len).map(MaskRef::Counts),
            Masks::Rle(bytes) => bytes.get(offset..offset + len).map(MaskRef::Rle),
        }
    }

    /// The mask of detection `idx` as one byte a pixel, row-major, 0 or 1, whatever its format.
    ///
    /// Shapes: `[height, width]` of the image; of the grid for mask-grid logits (cells above 0).
    /// Errors: a run-length string that does not decode, which only a damaged answer can hold.
    pub fn dense_mask(&self, idx: usize) -> Result<Option<Vec<u8>>> {
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        let Some(mask) = self.mask(idx) else { return Ok(None) };
        Ok(Some(match mask {
            MaskRef::Dense(bytes) => bytes.to_vec(),
            MaskRef::BitPacked(words) => unpack_bits(words, width, height),
            MaskRef::GridLogits(logits) => logits.iter().map(|&logit| u8::from(logit > 0.0)).collect(),
            MaskRef::Counts(counts) => dense_from_counts(counts, width, height)?,
            MaskRef::Rle(bytes) => dense_from_counts(&rle::decode_string(bytes)?, width, height)?,
        }))
    }
}

/// The integer box of a row: the nearest `i32` of each coordinate; NaN becomes 0.
pub fn xyxy_i32(row: &DetectionRow) -> [i32; 4] {
    row.xyxy.map(|x| crate::math::rne(x) as i32)
}

/// Packs a dense mask `[height, width]` to bits, each row padded to whole words.
pub fn pack_bits(mask: &[u8], width: usize, height: usize) -> Vec<u32> {
    let words = width.div_ceil(32);
    let mut packed = vec![0; words * height];
    for y in 0..height {
        for x in 0..width {
            packed[y * words + x / 32] |= u32::from(mask[y * width + x] != 0) << (x % 32);
        }
    }
    packed
}

/// The inverse of [`pack_bits`].
pub fn unpack_bits(packed: &[u32], width: usize, height: usize) -> Vec<u8> {
    let words = width.div_ceil(32);
    let mut mask = vec![0; width * height];
    for y in 0..height {
        for x in 0..width {
            mask[y * width + x] = (packed[y * words + x / 32] >> (x % 32) & 1) as u8;
        }
    }
    mask
}

/// The dense mask `[height, width]` of COCO counts.
///
/// Errors: counts that do not sum to the number of pixels.
pub fn dense_from_counts(counts: &[u32], width: usize, height: usize) -> Result<Vec<u8>> {
    let pixels = width * height;
    if counts.iter().map(|&count| u64::from(count)).sum::<u64>() != pixels as u64 {
        return Err(Error::Rle { message: "the counts do not sum to the number of pixels", position: 0 });
    }
    let mut mask = vec![0; pixels];
    let mut position = 0;
    for (idx, &count) in counts.iter().enumerate() {
        if idx % 2 == 1 {
            for column_major in position..position + count as usize {
                mask[column_major % height * width + column_major / height] = 1;
            }
        }
        position += count as usize;
    }
    Ok(mask)
}

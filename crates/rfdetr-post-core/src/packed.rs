//! The `repr(C)` records that host and device share.
//!
//! Kernels take these types and the constants below from here and nothing else, so layout cannot drift.
//! All fields are 4 bytes wide or multiples of it, and no record has padding.

/// One detection, as the kernels write it and as users read it.
///
/// Units: `xyxy` and the mask's box in pixels of the original image; `mask_offset` and `mask_len` in elements of the
/// mask format (bytes of a COCO string, `u32` counts, `u32` words of bit-packed rows, bytes of a dense mask, `f32` of
/// mask-grid logits).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C, align(16))]
pub struct DetectionRow {
    /// Left, top, right, bottom. Whole numbers when the semantics round boxes.
    pub xyxy: [f32; 4],
    /// Score in 0..=1.
    pub confidence: f32,
    /// Class id after remapping.
    pub class_id: i32,
    /// The query (decoder slot) that the detection comes from.
    pub query_idx: u32,
    /// The logit column that the detection comes from.
    pub class_idx: u32,
    /// Tight box of the mask: left, top, right, bottom, half-open. All zero when the mask is empty or absent.
    /// In pixels of the image; in cells of the mask grid for `MaskFormat::GridLogits`.
    pub mask_xyxy: [u32; 4],
    /// Number of foreground pixels (cells for `MaskFormat::GridLogits`).
    pub mask_area: u32,
    /// First element of the mask in the payload. Zero for the formats of a fixed size a mask.
    pub mask_offset: u32,
    /// Number of elements of the mask.
    pub mask_len: u32,
    /// Number of run-length counts, for the run-length formats.
    pub num_counts: u32,
}

const _: () = {
    assert!(size_of::<DetectionRow>() == 64);
    assert!(core::mem::offset_of!(DetectionRow, confidence) == 16);
    assert!(core::mem::offset_of!(DetectionRow, mask_xyxy) == 32);
    assert!(core::mem::offset_of!(DetectionRow, mask_area) == 48);
    assert!(core::mem::offset_of!(DetectionRow, num_counts) == 60);
};

/// Non-finite values met in one image. They are inputs, not errors; a non-zero count usually means a broken model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable, serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Health {
    /// Class logits that are NaN. Each takes a place of the flat top-k and is never a detection.
    pub nan_logits: u32,
    /// Class logits that are +Inf (score 1).
    pub pos_inf_logits: u32,
    /// Class logits that are -Inf (score 0).
    pub neg_inf_logits: u32,
    /// Box coordinates that are NaN or infinite, over all queries.
    pub nonfinite_boxes: u32,
    /// Mask logits that are NaN or infinite, summed over the detections: inside the cropped grid that each mask is
    /// made of (the whole grid for `MaskFormat::GridLogits`). Zero when no masks were asked for.
    pub nonfinite_mask_logits: u32,
}

const _: () = assert!(size_of::<Health>() == 20);

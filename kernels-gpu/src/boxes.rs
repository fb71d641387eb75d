//! Stage 2: box decode. Every step rounds on its own; nothing is fused.

use rfdetr_post_core::packed::{
    FLAG_CLAMP_SIZES, FLAG_CLIP_BOXES, FLAG_ROUND_BOXES, FLAG_WHOLE_IMAGE, IMAGE_CROPPED, ImageRecord,
};

use crate::simt::math;

/// The box of one query, `cxcywh` normalised, in pixels of the original image, `xyxy`.
///
/// Source: spec 4, variants A and D.
#[inline(always)]
pub fn decode(cxcywh: [f32; 4], record: &ImageRecord, flags: u32) -> [f32; 4] {
    let [cx, cy, w, h] = cxcywh;
    let clamps = flags & FLAG_CLAMP_SIZES != 0;
    // A comparison, so that NaN stays NaN.
    let half = |size: f32| 0.5 * if clamps && size < 0.0 { 0.0 } else { size };
    let (half_w, half_h) = (half(w), half(h));
    let (width, height) = (record.width as f32, record.height as f32);
    let x = |corner| {
        place(corner, width, record.frame_w, record.pad_left, record.box_scale_x, record.crop_x, record, flags)
    };
    let y = |corner| {
        place(corner, height, record.frame_h, record.pad_top, record.box_scale_y, record.crop_y, record, flags)
    };
    [x(cx - half_w), y(cy - half_h), x(cx + half_w), y(cy + half_h)]
}

/// One corner along one axis.
#[expect(
    clippy::too_many_arguments,
    reason = "one axis of the record; a struct for it would be built and torn down once"
)]
#[inline(always)]
fn place(corner: f32, side: f32, frame: f32, pad: f32, scale: f32, crop: f32, record: &ImageRecord, flags: u32) -> f32 {
    let mut at = if flags & FLAG_WHOLE_IMAGE != 0 {
        corner * side
    } else {
        let at = math::div(corner * frame - pad, scale);
        if record.flags & IMAGE_CROPPED != 0 { at + crop } else { at }
    };
    if flags & FLAG_CLIP_BOXES != 0 {
        if at < 0.0 {
            at = 0.0;
        }
        if at > side {
            at = side;
        }
    }
    if flags & FLAG_ROUND_BOXES == 0 {
        return at;
    }
    // NaN becomes 0, and adding zero turns -0 into +0, as in an integer.
    if at.is_nan() { 0.0 } else { math::rne(at) + 0.0 }
}

//! Stage 2: box decode. Every step rounds on its own; nothing is fused.

use rfdetr_post_core::packed::{
    FLAG_CLAMP_SIZES, FLAG_CLIP_BOXES, FLAG_ROUND_BOXES, FLAG_WHOLE_IMAGE, IMAGE_CROPPED, ImageRecord,
};

use crate::simt::math;

/// Coordinate `i` (left, top, right, bottom) of the box of one query, `cxcywh` normalised, in pixels of the original image.
///
/// Source: spec 4, variants A and D.
#[inline(always)]
pub fn decode(cxcywh: [f32; 4], record: &ImageRecord, flags: u32, i: u32) -> f32 {
    let [cx, cy, w, h] = cxcywh;
    let is_x = i.is_multiple_of(2);
    let (center, size) = if is_x { (cx, w) } else { (cy, h) };
    // A comparison, so that NaN stays NaN.
    let half = 0.5 * if flags & FLAG_CLAMP_SIZES != 0 && size < 0.0 { 0.0 } else { size };
    let corner = if i < 2 { center - half } else { center + half };
    let pick = |x: f32, y: f32| if is_x { x } else { y };
    place(
        corner,
        pick(record.width as f32, record.height as f32),
        pick(record.frame_w, record.frame_h),
        pick(record.pad_left, record.pad_top),
        pick(record.box_scale_x, record.box_scale_y),
        pick(record.crop_x, record.crop_y),
        record,
        flags,
    )
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

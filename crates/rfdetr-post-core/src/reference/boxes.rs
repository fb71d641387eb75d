//! Stage 2: box decode (spec 4, variants A and D). Every step rounds on its own; nothing is fused.

use crate::{
    math::rne,
    options::{BoxRounding, Frame, NegativeSizes},
    request::Request,
};

/// The box of one query in pixels of the original image, `xyxy`.
pub fn decode(request: &Request<'_>, image: usize, query_idx: usize) -> [f32; 4] {
    let meta = &request.metas()[image];
    let semantics = &request.options().semantics;
    let base = (image * request.shape().num_queries + query_idx) * 4;
    let [cx, cy, w, h] = [0, 1, 2, 3].map(|i| request.tensors().boxes.at(base + i));
    // A comparison, so that NaN stays NaN.
    let size = |x: f32| if semantics.negative_sizes == NegativeSizes::Clamp && x < 0.0 { 0.0 } else { x };
    let (half_w, half_h) = (0.5 * size(w), 0.5 * size(h));

    let corners_norm = [cx - half_w, cy - half_h, cx + half_w, cy + half_h];
    let (width, height) = (meta.original.width as f32, meta.original.height as f32);
    let place = |corner: f32, horizontal: bool| {
        let mut x = match semantics.frame {
            Frame::UndoPreprocessing => {
                let frame = meta.frame();
                let (side, pad, scale, offset) = if horizontal {
                    (frame.width, meta.padding.left, meta.scale_x, meta.crop_offset.x)
                } else {
                    (frame.height, meta.padding.top, meta.scale_y, meta.crop_offset.y)
                };
                let x = (corner * side as f32 - pad as f32) / scale as f32;
                if meta.crop_offset.x != 0 || meta.crop_offset.y != 0 { x + offset as f32 } else { x }
            }
            Frame::WholeImage => corner * if horizontal { width } else { height },
        };
        if semantics.clip_boxes {
            let side = if horizontal { width } else { height };
            x = if x < 0.0 { 0.0 } else { x };
            x = if x > side { side } else { x };
        }
        match semantics.box_rounding {
            BoxRounding::None => x,
            BoxRounding::HalfEven if x.is_nan() => 0.0,
            // Adding zero turns -0 into +0, as an integer would.
            BoxRounding::HalfEven => rne(x) + 0.0,
        }
    };
    let [x1, y1, x2, y2] = corners_norm;
    [place(x1, true), place(y1, false), place(x2, true), place(y2, false)]
}

/// Number of box coordinates of the image that are NaN or infinite.
pub fn count_nonfinite(request: &Request<'_>, image: usize) -> u32 {
    let len = request.shape().num_queries * 4;
    (0..len).filter(|i| !request.tensors().boxes.at(image * len + i).is_finite()).count() as u32
}

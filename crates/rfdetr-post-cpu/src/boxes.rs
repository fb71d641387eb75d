//! Stage 2: box decode (spec 4, variants A and D). Every step rounds on its own; nothing is fused.
#![forbid(unsafe_code)]

use rfdetr_post_core::{BoxRounding, Frame, NegativeSizes, Request};

use crate::{
    simd::{Isa, Kernel},
    widen::widen,
};

/// The numbers of one image that its boxes need.
#[derive(Debug)]
pub(crate) struct Decoder {
    whole_image: bool,
    clamp: bool,
    clip: bool,
    round: bool,
    shift: bool,
    /// Per axis: side of the frame, padding, scale, offset, side of the image.
    axes: [[f32; 5]; 2],
}

impl Decoder {
    pub(crate) fn new(request: &Request<'_>, image: usize) -> Self {
        let meta = &request.metas()[image];
        let semantics = &request.options().semantics;
        let frame = meta.frame();
        Self {
            whole_image: semantics.frame == Frame::WholeImage,
            clamp: semantics.negative_sizes == NegativeSizes::Clamp,
            clip: semantics.clip_boxes,
            round: semantics.box_rounding == BoxRounding::HalfEven,
            shift: meta.crop_offset.x != 0 || meta.crop_offset.y != 0,
            axes: [
                [
                    frame.width as f32,
                    meta.padding.left as f32,
                    meta.scale_x as f32,
                    meta.crop_offset.x as f32,
                    meta.original.width as f32,
                ],
                [
                    frame.height as f32,
                    meta.padding.top as f32,
                    meta.scale_y as f32,
                    meta.crop_offset.y as f32,
                    meta.original.height as f32,
                ],
            ],
        }
    }

    /// Left, top, right, bottom of a box `cxcywh`.
    #[inline(always)]
    pub(crate) fn decode(&self, [cx, cy, w, h]: [f32; 4]) -> [f32; 4] {
        let size = |x: f32| if self.clamp && x < 0.0 { 0.0 } else { x };
        let (half_w, half_h) = (0.5 * size(w), 0.5 * size(h));
        let [horizontal, vertical] = &self.axes;
        [
            self.place(cx - half_w, horizontal),
            self.place(cy - half_h, vertical),
            self.place(cx + half_w, horizontal),
            self.place(cy + half_h, vertical),
        ]
    }

    #[inline(always)]
    fn place(&self, corner: f32, &[frame, padding, scale, offset, side]: &[f32; 5]) -> f32 {
        let mut x = if self.whole_image {
            corner * side
        } else {
            let x = (corner * frame - padding) / scale;
            if self.shift { x + offset } else { x }
        };
        if self.clip {
            x = if x < 0.0 { 0.0 } else { x };
            x = if x > side { side } else { x };
        }
        match self.round {
            false => x,
            true if x.is_nan() => 0.0,
            // Adding zero turns -0 into +0, as an integer would.
            true => x.round_ties_even() + 0.0,
        }
    }
}

/// Counts the box coordinates of one image that are NaN or infinite.
pub(crate) struct CountNonfinite<'a, 'r> {
    pub(crate) request: &'a Request<'r>,
    pub(crate) image: usize,
}

impl Kernel for CountNonfinite<'_, '_> {
    type Output = u32;

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) -> u32 {
        let len = self.request.shape().num_queries * 4;
        let data = self.request.tensors().boxes.data();
        let mut values = [0.0; 256];
        let mut count = 0;
        for start in (0..len).step_by(values.len()) {
            let values = &mut values[..(len - start).min(256)];
            widen(data, self.image * len + start, values);
            count += values.iter().map(|x| u32::from(!x.is_finite())).sum::<u32>();
        }
        count
    }
}

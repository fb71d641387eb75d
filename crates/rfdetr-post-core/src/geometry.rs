//! How an image became a network input, and the way back. Pure arithmetic in f64.
//!
//! Pre-processing crops the image (static crop), resizes it into a *frame* D (stretch, letterbox or center crop) and,
//! in the two-step modes, stretches the frame to the network input T. Normalized boxes and the mask grid span D.

use alloc::{format, string::ToString};

use nalgebra::{Affine2, Matrix3};

use crate::{
    error::{Error, Result},
    math,
};

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Size {
    /// A size from width and height, in this order.
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// Number of pixels.
    pub const fn area(self) -> u64 {
        self.width as u64 * self.height as u64
    }
}

impl core::fmt::Display for Size {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// Padding of the frame D in its pixels; a negative side was cropped away instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Padding {
    /// Columns on the left.
    pub left: i32,
    /// Rows on top.
    pub top: i32,
    /// Columns on the right.
    pub right: i32,
    /// Rows at the bottom.
    pub bottom: i32,
}

/// Position of the static crop inside the original image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offset {
    /// Columns left of the crop.
    pub x: u32,
    /// Rows above the crop.
    pub y: u32,
}

/// A static crop, in pixels of the original image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticCrop {
    /// First column.
    pub x: u32,
    /// First row.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl StaticCrop {
    /// The crop that Roboflow's pre-processing cuts for percentages of the image's sides.
    ///
    /// Units: percent, 0..=100, of `original`.
    /// Errors: a percentage that is not in 0..=100, or a crop without a pixel.
    /// Source: spec 2.1; each edge is truncated to a whole pixel.
    pub fn from_percent(original: Size, x_min: f64, y_min: f64, x_max: f64, y_max: f64) -> Result<Self> {
        let edge = |field, percent: f64, side: u32| {
            if !(0.0..=100.0).contains(&percent) {
                let expected = "a percentage in 0..=100".to_string();
                return Err(Error::Preprocessing { field, expected, got: percent.to_string() });
            }
            Ok((percent / 100.0 * f64::from(side)) as u32)
        };
        let (x0, x1) =
            (edge("static_crop.x_min", x_min, original.width)?, edge("static_crop.x_max", x_max, original.width)?);
        let (y0, y1) =
            (edge("static_crop.y_min", y_min, original.height)?, edge("static_crop.y_max", y_max, original.height)?);
        if x1 <= x0 || y1 <= y0 {
            return Err(Error::Preprocessing {
                field: "static_crop",
                expected: "at least one pixel".to_string(),
                got: format!("columns {x0}..{x1}, rows {y0}..{y1}"),
            });
        }
        Ok(Self { x: x0, y: y0, width: x1 - x0, height: y1 - y0 })
    }
}

/// How the (cropped) image was brought to the network input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Resize {
    /// Each axis scaled on its own to the network input.
    Stretch {
        /// The network input T.
        network: Size,
    },
    /// Scaled by one factor to fit `frame`, padded, and then stretched to `network` (usually the same size).
    Letterbox {
        /// The padded frame D.
        frame: Size,
        /// The network input T.
        network: Size,
    },
    /// Padded or cropped around the center to `frame` without scaling, and then stretched to `network`.
    CenterCrop {
        /// The frame D.
        frame: Size,
        /// The network input T.
        network: Size,
    },
}

/// The pre-processing of one image in the words of its configuration; [`Preprocessing::meta`] does the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// The caller's image before any crop.
    pub original: Size,
    /// The static crop, applied before the resize.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub static_crop: Option<StaticCrop>,
    /// The resize.
    pub resize: Resize,
}

impl Preprocessing {
    /// The metadata record of this pre-processing.
    ///
    /// Errors: a zero size, or a crop that is not inside the image.
    /// Source: spec 2.2.
    pub fn meta(&self) -> Result<ImageMeta> {
        let crop = self.static_crop.unwrap_or(StaticCrop {
            x: 0,
            y: 0,
            width: self.original.width,
            height: self.original.height,
        });
        let inside = |start: u32, len: u32, side: u32| len > 0 && start.checked_add(len).is_some_and(|end| end <= side);
        if self.static_crop.is_some()
            && !(inside(crop.x, crop.width, self.original.width) && inside(crop.y, crop.height, self.original.height))
        {
            return Err(Error::Preprocessing {
                field: "static_crop",
                expected: format!("a region of at least one pixel inside {}", self.original),
                got: format!("{crop:?}"),
            });
        }
        let content = Size::new(crop.width, crop.height);
        let (frame, network) = match self.resize {
            Resize::Stretch { network } => (network, network),
            Resize::Letterbox { frame, network } | Resize::CenterCrop { frame, network } => (frame, network),
        };
        for (field, size) in [("original", self.original), ("network", network), ("frame", frame)] {
            if !(1..=MAX_SIDE).contains(&size.width) || !(1..=MAX_SIDE).contains(&size.height) {
                let expected = "sides in 1..=2^23".to_string();
                return Err(Error::Preprocessing { field, expected, got: size.to_string() });
            }
        }
        let (w, h) = (f64::from(content.width), f64::from(content.height));
        let (frame_w, frame_h) = (f64::from(frame.width), f64::from(frame.height));
        let (scale_x, scale_y, padding) = match self.resize {
            Resize::Stretch { .. } => (frame_w / w, frame_h / h, Padding::default()),
            Resize::Letterbox { .. } => {
                let scale = f64::min(frame_w / w, frame_h / h);
                // Truncation may lose a pixel against the frame; the right and bottom pads absorb it (spec 2.2).
                let (new_w, new_h) = ((w * scale) as i32, (h * scale) as i32);
                let (frame_w, frame_h) = (frame.width as i32, frame.height as i32);
                let (left, top) = ((frame_w - new_w) / 2, (frame_h - new_h) / 2);
                let padding = Padding { left, top, right: frame_w - left - new_w, bottom: frame_h - top - new_h };
                (scale, scale, padding)
            }
            Resize::CenterCrop { .. } => {
                let pads = |target: u32, image: u32| {
                    let spare = i64::from(target) - i64::from(image);
                    // Both directions leave the odd pixel to the far side.
                    let near = spare.signum() * (spare.abs() / 2);
                    (near as i32, (spare - near) as i32)
                };
                let (left, right) = pads(frame.width, content.width);
                let (top, bottom) = pads(frame.height, content.height);
                (1.0, 1.0, Padding { left, top, right, bottom })
            }
        };
        Ok(ImageMeta {
            original: self.original,
            content,
            network,
            intermediate: match self.resize {
                Resize::Stretch { .. } => None,
                Resize::Letterbox { .. } | Resize::CenterCrop { .. } => Some(frame),
            },
            padding,
            scale_x,
            scale_y,
            crop_offset: Offset { x: crop.x, y: crop.y },
        })
    }
}

/// Up to this side, pixel centers (`i + 0.5`) are exact in f32, as spec 5.3 takes for granted. Beyond it they are not,
/// and an axis table may end without a tap.
pub const MAX_SIDE: u32 = 1 << 23;

/// What post-processing must know of one image: the record that pre-processing leaves behind.
///
/// The constructors do the arithmetic; fill the fields by hand only to pass on a record that somebody else computed
/// (records are accepted as they come and never recomputed). Source: spec 2.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageMeta {
    /// The caller's image before any crop.
    pub original: Size,
    /// After the static crop, before any resize.
    pub content: Size,
    /// The network input T.
    pub network: Size,
    /// The frame D of a two-step resize; none when D is T.
    #[serde(default)]
    pub intermediate: Option<Size>,
    /// Padding of D, in pixels of D; negative where pixels were cropped away.
    #[serde(default)]
    pub padding: Padding,
    /// D-pixels a content pixel, horizontally.
    pub scale_x: f64,
    /// D-pixels a content pixel, vertically.
    pub scale_y: f64,
    /// Position of the static crop inside the original.
    #[serde(default)]
    pub crop_offset: Offset,
}

impl ImageMeta {
    /// An image stretched to the network input: what rf-detr does, and the usual case.
    pub fn stretch(original: Size, network: Size) -> Result<Self> {
        Preprocessing { original, static_crop: None, resize: Resize::Stretch { network } }.meta()
    }

    /// An image fitted into `frame` with its aspect ratio kept, padded, then stretched to `network`.
    pub fn letterbox(original: Size, frame: Size, network: Size) -> Result<Self> {
        Preprocessing { original, static_crop: None, resize: Resize::Letterbox { frame, network } }.meta()
    }

    /// An image cropped or padded around its center to `frame`, then stretched to `network`.
    pub fn center_crop(original: Size, frame: Size, network: Size) -> Result<Self> {
        Preprocessing { original, static_crop: None, resize: Resize::CenterCrop { frame, network } }.meta()
    }

    /// A static crop of the image, brought to the network by any of the resizes.
    pub fn static_crop(original: Size, crop: StaticCrop, resize: Resize) -> Result<Self> {
        Preprocessing { original, static_crop: Some(crop), resize }.meta()
    }

    /// The frame D that normalized coordinates and the mask grid span.
    pub fn frame(&self) -> Size {
        self.intermediate.unwrap_or(self.network)
    }

    /// Maps normalized network coordinates (`_norm`, 0..1 over D) to pixels of the original image (`_img`).
    pub fn image_from_norm(&self) -> Affine2<f64> {
        let axis = |frame: u32, pad: i32, scale: f64, offset: u32| {
            (f64::from(frame) / scale, f64::from(offset) - f64::from(pad) / scale)
        };
        let frame = self.frame();
        let (ax, bx) = axis(frame.width, self.padding.left, self.scale_x, self.crop_offset.x);
        let (ay, by) = axis(frame.height, self.padding.top, self.scale_y, self.crop_offset.y);
        Affine2::from_matrix_unchecked(Matrix3::new(ax, 0.0, bx, 0.0, ay, by, 0.0, 0.0, 1.0))
    }

    /// Maps pixels of the original image (`_img`) to normalized network coordinates (`_norm`, 0..1 over D).
    pub fn norm_from_image(&self) -> Affine2<f64> {
        let axis = |frame: u32, pad: i32, scale: f64, offset: u32| {
            let frame = f64::from(frame);
            (scale / frame, (f64::from(pad) - f64::from(offset) * scale) / frame)
        };
        let frame = self.frame();
        let (ax, bx) = axis(frame.width, self.padding.left, self.scale_x, self.crop_offset.x);
        let (ay, by) = axis(frame.height, self.padding.top, self.scale_y, self.crop_offset.y);
        Affine2::from_matrix_unchecked(Matrix3::new(ax, 0.0, bx, 0.0, ay, by, 0.0, 0.0, 1.0))
    }

    /// The part of a `mask_w` x `mask_h` grid that shows the content, grown by zeros where pads are negative.
    pub fn mask_window(&self, mask_w: usize, mask_h: usize) -> MaskWindow {
        let frame = self.frame();
        let cells =
            |mask: usize, frame: u32, pad: i32| math::rne_f64(mask as f64 / f64::from(frame) * f64::from(pad)) as i64;
        let left = cells(mask_w, frame.width, self.padding.left);
        let right = cells(mask_w, frame.width, self.padding.right);
        let top = cells(mask_h, frame.height, self.padding.top);
        let bottom = cells(mask_h, frame.height, self.padding.bottom);
        MaskWindow { x: left, y: top, width: mask_w as i64 - left - right, height: mask_h as i64 - top - bottom }
    }

    /// Checks that the record can be. `image` is the index that an error names.
    pub(crate) fn check(&self, image: usize) -> Result<()> {
        let err = |field, expected: &str, got: alloc::string::String| {
            Err(Error::Meta { image, field, expected: expected.to_string(), got })
        };
        for (field, size) in [
            ("original", self.original),
            ("content", self.content),
            ("network", self.network),
            ("intermediate", self.frame()),
        ] {
            if size.width == 0 || size.height == 0 || size.width > MAX_SIDE || size.height > MAX_SIDE {
                return err(field, "sides in 1..=2^23", size.to_string());
            }
        }
        if self.original.area() > u64::from(u32::MAX) {
            return err("original", "at most 2^32 - 1 pixels", self.original.to_string());
        }
        for (field, scale) in [("scale_x", self.scale_x), ("scale_y", self.scale_y)] {
            // The f32 test also rejects scales that vanish or overflow in the box arithmetic.
            if !(scale as f32 > 0.0 && (scale as f32).is_finite()) {
                return err(field, "a positive finite f32", scale.to_string());
            }
        }
        let fits = |start: u32, len: u32, side: u32| start.checked_add(len).is_some_and(|end| end <= side);
        if !fits(self.crop_offset.x, self.content.width, self.original.width)
            || !fits(self.crop_offset.y, self.content.height, self.original.height)
        {
            return err(
                "crop_offset",
                "the content inside the original image",
                format!(
                    "({}, {}) with content {} in {}",
                    self.crop_offset.x, self.crop_offset.y, self.content, self.original
                ),
            );
        }
        let Padding { left, top, right, bottom } = self.padding;
        for (field, pad) in
            [("padding.left", left), ("padding.top", top), ("padding.right", right), ("padding.bottom", bottom)]
        {
            if pad.unsigned_abs() > MAX_SIDE {
                return err(field, "an absolute value of at most 2^23", pad.to_string());
            }
        }
        // A letterbox of an extremely flat image leaves no pixel of content; that is allowed, less is not.
        if i64::from(left) + i64::from(right) > i64::from(self.frame().width) {
            return err("padding", "left + right of at most the frame's width", format!("{left} + {right}"));
        }
        if i64::from(top) + i64::from(bottom) > i64::from(self.frame().height) {
            return err("padding", "top + bottom of at most the frame's height", format!("{top} + {bottom}"));
        }
        Ok(())
    }
}

/// A window of the mask grid, in cells. Cells outside the grid are zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskWindow {
    /// First column; negative where zeros are added on the left.
    pub x: i64,
    /// First row; negative where zeros are added on top.
    pub y: i64,
    /// Columns; not positive when nothing is left, which makes every mask empty.
    pub width: i64,
    /// Rows; not positive when nothing is left.
    pub height: i64,
}

impl MaskWindow {
    /// Whether no cell is left.
    pub const fn is_empty(&self) -> bool {
        self.width <= 0 || self.height <= 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use nalgebra::Point2;

    fn size(width: u32, height: u32) -> Size {
        Size::new(width, height)
    }

    #[test]
    fn letterbox_of_the_spec() {
        let meta = ImageMeta::letterbox(size(640, 480), size(640, 640), size(432, 432)).unwrap();
        assert_eq!(meta.padding, Padding { left: 0, top: 80, right: 0, bottom: 80 });
        assert_eq!(meta.scale_x, 1.0);
        // Halves round to even: 108 / 640 * 80 = 13.5 becomes 14 on both sides.
        assert_eq!(meta.mask_window(108, 108), MaskWindow { x: 0, y: 14, width: 108, height: 80 });
    }

    #[test]
    fn letterbox_loses_a_pixel_to_truncation() {
        for width in [37, 74, 77, 135] {
            let meta = ImageMeta::letterbox(size(width, width / 2), size(312, 312), size(312, 312)).unwrap();
            assert_eq!(meta.padding.left + meta.padding.right, 1, "width {width}");
            assert_eq!(meta.padding.left, 0, "the odd pixel goes to the right");
        }
    }

    #[test]
    fn center_crop_of_the_spec() {
        let meta = ImageMeta::center_crop(size(60, 41), size(32, 64), size(32, 64)).unwrap();
        assert_eq!(meta.padding, Padding { left: -14, top: 11, right: -14, bottom: 12 });
        let odd = ImageMeta::center_crop(size(61, 41), size(32, 32), size(32, 32)).unwrap();
        assert_eq!(odd.padding, Padding { left: -14, top: -4, right: -15, bottom: -5 });
        let spec = Preprocessing {
            original: size(60, 40),
            static_crop: None,
            resize: Resize::CenterCrop { frame: size(32, 32), network: size(32, 32) },
        };
        assert_eq!(spec.meta().unwrap().mask_window(8, 8), MaskWindow { x: -4, y: -1, width: 16, height: 10 });
    }

    #[test]
    fn static_crop_in_percent() {
        let crop = StaticCrop::from_percent(size(641, 359), 5.0, 10.0, 70.5, 100.0).unwrap();
        assert_eq!(crop, StaticCrop { x: 32, y: 35, width: 451 - 32, height: 359 - 35 });
        assert!(matches!(
            StaticCrop::from_percent(size(10, 10), 50.0, 0.0, 50.0, 100.0),
            Err(Error::Preprocessing { field: "static_crop", .. })
        ));
        assert!(matches!(
            StaticCrop::from_percent(size(10, 10), f64::NAN, 0.0, 50.0, 100.0),
            Err(Error::Preprocessing { field: "static_crop.x_min", .. })
        ));
    }

    #[test]
    fn bad_preprocessing_is_named() {
        let field = |result: Result<ImageMeta>| match result {
            Err(Error::Preprocessing { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(ImageMeta::stretch(size(0, 4), size(8, 8))), "original");
        assert_eq!(field(ImageMeta::stretch(size(4, 4), size(8, 0))), "network");
        assert_eq!(field(ImageMeta::letterbox(size(4, 4), size(0, 8), size(8, 8))), "frame");
        assert_eq!(field(ImageMeta::stretch(size(1 << 24, 4), size(8, 8))), "original");
        let crop = StaticCrop { x: 3, y: 0, width: 2, height: 1 };
        let resize = Resize::Stretch { network: size(8, 8) };
        assert_eq!(field(ImageMeta::static_crop(size(4, 4), crop, resize)), "static_crop");
        let crop = StaticCrop { x: u32::MAX, y: 0, width: 2, height: 1 };
        assert_eq!(field(ImageMeta::static_crop(size(4, 4), crop, resize)), "static_crop");
    }

    #[test]
    fn affine_maps_the_frame_to_the_image_and_back() {
        let crop = StaticCrop { x: 32, y: 7, width: 416, height: 300 };
        let resize = Resize::Letterbox { frame: size(400, 312), network: size(312, 312) };
        let meta = ImageMeta::static_crop(size(640, 480), crop, resize).unwrap();
        let to_image = meta.image_from_norm();
        let to_norm = meta.norm_from_image();
        // The content's corner lies where the padding ends.
        let corner = to_norm * Point2::new(32.0, 7.0);
        assert!((corner.x * 400.0 - f64::from(meta.padding.left)).abs() < 1e-9);
        assert!((corner.y * 312.0 - f64::from(meta.padding.top)).abs() < 1e-9);
        for (x, y) in [(0.0, 0.0), (1.0, 0.25), (-0.3, 1.7)] {
            let back = to_norm * (to_image * Point2::new(x, y));
            assert!((back.x - x).abs() < 1e-12 && (back.y - y).abs() < 1e-12);
        }
    }

    #[test]
    fn impossible_records_are_named() {
        let good = ImageMeta::stretch(size(60, 40), size(32, 32)).unwrap();
        good.check(0).unwrap();
        type Damage = fn(&mut ImageMeta);
        let damage: [(&str, Damage); 12] = [
            ("original", |m| m.original.width = 0),
            ("content", |m| m.content.height = 0),
            ("network", |m| m.network.height = 0),
            ("intermediate", |m| m.intermediate = Some(Size::new(0, 3))),
            ("original", |m| m.original = Size::new(70_000, 70_000)),
            ("scale_x", |m| m.scale_x = f64::NAN),
            ("scale_y", |m| m.scale_y = 0.0),
            ("scale_x", |m| m.scale_x = 1e-60),
            ("crop_offset", |m| m.crop_offset.x = 1),
            ("padding.left", |m| m.padding.left = i32::MIN),
            ("padding", |m| m.padding.right = 33),
            ("padding", |m| m.padding.top = 33),
        ];
        let named: Vec<_> = damage
            .iter()
            .map(|(_, break_it)| {
                let mut meta = good;
                break_it(&mut meta);
                match meta.check(3) {
                    Err(Error::Meta { image: 3, field, .. }) => field,
                    other => panic!("{other:?}"),
                }
            })
            .collect();
        assert_eq!(named, damage.map(|(field, _)| field));
    }
}

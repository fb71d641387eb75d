//! The overlay picture: tinted masks with an outline, boxes, names and scores.
//!
//! Text is drawn with pre-rasterized glyphs of Noto Sans Mono (SIL Open Font License 1.1), which the crate
//! `noto-sans-mono-bitmap` embeds.

use anyhow::Result;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster};
use rfdetr_post::{ImageDetections, MaskRef};

use super::{coco, picture::Picture};

/// Share of the mask's color over the picture.
const TINT: f32 = 0.45;

/// Draws all detections; the best score comes out on top.
pub fn draw(picture: &mut Picture, detections: &ImageDetections, class_names: &[String]) -> Result<()> {
    let short_side = picture.width().min(picture.height());
    let stroke = (short_side as f32 / 320.0).round().clamp(1.0, 8.0) as i64;
    for idx in (0..detections.len()).rev() {
        // Grid logits do not cover the image.
        if matches!(detections.mask(idx), Some(MaskRef::GridLogits(_)) | None) {
            continue;
        }
        if let Some(mask) = detections.dense_mask(idx)? {
            tint_mask(picture, &mask, detections.rows[idx].mask_xyxy, color(idx), stroke);
        }
    }
    for (idx, row) in detections.rows.iter().enumerate().rev() {
        if let Some(rect) = Rect::from_xyxy(row.xyxy, picture) {
            stroke_rect(picture, rect, color(idx), stroke);
        }
    }
    draw_labels(picture, detections, class_names, stroke);
    Ok(())
}

/// Half-open, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rect {
    x0: i64,
    y0: i64,
    x1: i64,
    y1: i64,
}

impl Rect {
    /// None if a coordinate is NaN.
    fn from_xyxy(xyxy: [f32; 4], picture: &Picture) -> Option<Self> {
        if xyxy.iter().any(|x| x.is_nan()) {
            return None;
        }
        let within = |x: f32, side: u32| x.clamp(0.0, side as f32).round() as i64;
        let (xa, xb) = (within(xyxy[0], picture.width()), within(xyxy[2], picture.width()));
        let (ya, yb) = (within(xyxy[1], picture.height()), within(xyxy[3], picture.height()));
        Some(Self { x0: xa.min(xb), y0: ya.min(yb), x1: xa.max(xb), y1: ya.max(yb) })
    }

    /// Number of pixels that both hold.
    fn overlap(&self, other: &Self) -> i64 {
        let side = |a0: i64, a1: i64, b0: i64, b1: i64| (a1.min(b1) - a0.max(b0)).max(0);
        side(self.x0, self.x1, other.x0, other.x1) * side(self.y0, self.y1, other.y0, other.y1)
    }
}

/// The color of the `idx`-th detection: hues a golden angle apart, so that neighbors in rank differ most.
fn color(idx: usize) -> [u8; 3] {
    const GOLDEN_ANGLE: f32 = 137.507_77;
    let hue = (25.0 + GOLDEN_ANGLE * (idx % 1024) as f32).to_radians();
    let lightness = [0.70, 0.62, 0.76][idx % 3];
    oklch(lightness, 0.17, hue)
}

/// Converts Oklch to sRGB, clipped to what a screen shows.
fn oklch(lightness: f32, chroma: f32, hue: f32) -> [u8; 3] {
    let (a, b) = (chroma * hue.cos(), chroma * hue.sin());
    let cube = |x: f32| x * x * x;
    let l = cube(lightness + 0.396_337_78 * a + 0.215_803_76 * b);
    let m = cube(lightness - 0.105_561_346 * a - 0.063_854_17 * b);
    let s = cube(lightness - 0.089_484_18 * a - 1.291_485_5 * b);
    let encode = |x: f32| {
        let x = x.clamp(0.0, 1.0);
        let x = if x <= 0.003_130_8 { 12.92 * x } else { 1.055 * x.powf(1.0 / 2.4) - 0.055 };
        (x * 255.0).round() as u8
    };
    [
        encode(4.076_741_7 * l - 3.307_711_6 * m + 0.230_969_94 * s),
        encode(-1.268_438 * l + 2.609_757_4 * m - 0.341_319_4 * s),
        encode(-0.004_196_086_3 * l - 0.703_418_6 * m + 1.707_614_7 * s),
    ]
}

/// Mixes `color` into a pixel; outside the picture nothing happens.
fn blend(picture: &mut Picture, x: i64, y: i64, color: [u8; 3], share: f32) {
    if let Some(pixel) = picture.pixel_mut(x, y) {
        for (old, new) in pixel.iter_mut().zip(color) {
            *old = (f32::from(*old) + (f32::from(new) - f32::from(*old)) * share).round() as u8;
        }
    }
}

/// Tints the mask's pixels and draws its outline inside it. `bounds` is the mask's tight box.
fn tint_mask(picture: &mut Picture, mask: &[u8], bounds: [u32; 4], color: [u8; 3], stroke: i64) {
    let (width, height) = (i64::from(picture.width()), i64::from(picture.height()));
    // What lies outside the picture counts as inside the mask, so that no outline runs along the picture's edge.
    let inside = |x: i64, y: i64| {
        if (0..width).contains(&x) && (0..height).contains(&y) { mask[(y * width + x) as usize] != 0 } else { true }
    };
    let reach = (stroke / 2).max(1);
    let diagonal = (reach * 7 + 5) / 10;
    let [x0, y0, x1, y1] = bounds.map(i64::from);
    for y in y0..y1.min(height) {
        for x in x0..x1.min(width) {
            if !inside(x, y) {
                continue;
            }
            let edge = [
                (reach, 0),
                (-reach, 0),
                (0, reach),
                (0, -reach),
                (diagonal, diagonal),
                (-diagonal, diagonal),
                (diagonal, -diagonal),
                (-diagonal, -diagonal),
            ]
            .iter()
            .any(|&(dx, dy)| !inside(x + dx, y + dy));
            blend(picture, x, y, color, if edge { 0.95 } else { TINT });
        }
    }
}

/// Draws the outline of a rectangle, inside it, with rounded corners.
fn stroke_rect(picture: &mut Picture, rect: Rect, color: [u8; 3], stroke: i64) {
    let radius = (stroke * 3).min((rect.x1 - rect.x0) / 2).min((rect.y1 - rect.y0) / 2);
    let stroke = stroke.max(1) as f32;
    let mut pixel = |x: i64, y: i64| {
        let depth = rounded_depth(rect, radius, x, y);
        // Half a pixel of antialias on both sides of the line.
        let share = (depth + 0.5).clamp(0.0, 1.0) * (stroke - depth + 0.5).clamp(0.0, 1.0);
        if share > 0.0 {
            blend(picture, x, y, color, share);
        }
    };
    let band = stroke as i64 + radius + 1;
    for y in rect.y0..rect.y1 {
        if y < rect.y0 + band || y >= rect.y1 - band {
            (rect.x0..rect.x1).for_each(|x| pixel(x, y));
        } else {
            let middle = (rect.x0 + band).min(rect.x1);
            (rect.x0..middle).chain((rect.x1 - band).max(middle)..rect.x1).for_each(|x| pixel(x, y));
        }
    }
}

/// How deep the pixel's center lies inside a rounded rectangle; negative outside.
fn rounded_depth(rect: Rect, radius: i64, x: i64, y: i64) -> f32 {
    let radius = radius as f32;
    let axis = |x: i64, x0: i64, x1: i64| {
        let center = (x0 + x1) as f32 / 2.0;
        (x as f32 + 0.5 - center).abs() - ((x1 - x0) as f32 / 2.0 - radius)
    };
    let (dx, dy) = (axis(x, rect.x0, rect.x1), axis(y, rect.y0, rect.y1));
    let outside = dx.max(0.0).hypot(dy.max(0.0));
    radius - outside - dx.max(dy).min(0.0)
}

/// Fills a rounded rectangle.
fn fill_rect(picture: &mut Picture, rect: Rect, radius: i64, color: [u8; 3]) {
    for y in rect.y0..rect.y1 {
        for x in rect.x0..rect.x1 {
            blend(picture, x, y, color, (rounded_depth(rect, radius, x, y) + 0.5).clamp(0.0, 1.0));
        }
    }
}

/// Draws the name and score of each detection, best first at the best place, away from each other.
fn draw_labels(picture: &mut Picture, detections: &ImageDetections, class_names: &[String], stroke: i64) {
    let (font, zoom) = font_size(picture.width().min(picture.height()));
    let line_height = font.val() as i64 * zoom;
    let char_width = glyph(' ', font).map_or(0, |glyph| glyph.width()) as i64 * zoom;
    let (pad_x, pad_y) = (char_width / 2 + 1, zoom);
    let (width, height) = (i64::from(picture.width()), i64::from(picture.height()));
    let targets: Vec<_> = detections.rows.iter().filter_map(|row| Rect::from_xyxy(row.xyxy, picture)).collect();
    let mut placed: Vec<Rect> = Vec::new();
    for (idx, row) in detections.rows.iter().enumerate() {
        let Some(target) = Rect::from_xyxy(row.xyxy, picture) else { continue };
        let text = format!("{} {:.2}", coco::class_label(class_names, row.class_id), row.confidence);
        let plate_width = text.chars().count() as i64 * char_width + 2 * pad_x;
        let plate_height = line_height + 2 * pad_y;
        let plate = |x: i64, y: i64| {
            let x = x.min(width - plate_width).max(0);
            let y = y.min(height - plate_height).max(0);
            Rect { x0: x, y0: y, x1: x + plate_width, y1: y + plate_height }
        };
        let others = targets.iter().filter(|other| **other != target);
        let cost = |place: &Rect, rank: usize| {
            let labels: i64 = placed.iter().map(|other| place.overlap(other)).sum();
            let boxes: i64 = others.clone().map(|other| place.overlap(other)).sum();
            // A label may rather cover a box than another label; among equals the first place wins.
            labels * 16 + boxes + rank as i64 * plate_width * plate_height / 16
        };
        let (left, right, above) = (target.x0, target.x1 - plate_width, target.y0 - plate_height);
        let places = [
            plate(left, above),
            plate(right, above),
            plate(left, target.y1),
            plate(right, target.y1),
            plate(left, target.y0 + stroke),
            plate(left, above - plate_height),
            plate(left, target.y1 + plate_height),
            plate(left, target.y0 + stroke + plate_height),
            plate(left, target.y0 + stroke + 2 * plate_height),
        ];
        let best = places.iter().enumerate().min_by_key(|&(rank, place)| cost(place, rank));
        let place = best.map_or(places[0], |(_, place)| *place);
        placed.push(place);

        let color = color(idx);
        fill_rect(picture, place, plate_height / 5, color);
        let [r, g, b] = color.map(f32::from);
        let ink = if 0.299 * r + 0.587 * g + 0.114 * b > 125.0 { [16, 18, 24] } else { [255; 3] };
        for (position, char) in text.chars().enumerate() {
            let x0 = place.x0 + pad_x + position as i64 * char_width;
            let Some(glyph) = glyph(char, font) else { continue };
            for y in 0..line_height {
                for x in 0..char_width {
                    if let Some(coverage @ 1..) = glyph.pixel((x / zoom) as usize, (y / zoom) as usize) {
                        blend(picture, x0 + x, place.y0 + pad_y + y, ink, f32::from(coverage) / 255.0);
                    }
                }
            }
        }
    }
}

/// A font of about a 40th of the picture's short side, and how many pixels each of its pixels becomes.
fn font_size(short_side: u32) -> (RasterHeight, i64) {
    match short_side / 40 {
        0..=17 => (RasterHeight::Size16, 1),
        18..=22 => (RasterHeight::Size20, 1),
        23..=28 => (RasterHeight::Size24, 1),
        29..=40 => (RasterHeight::Size32, 1),
        41..=54 => (RasterHeight::Size24, 2),
        height => (RasterHeight::Size32, i64::from((height + 16) / 32)),
    }
}

/// The glyph of a character; a question mark for those that the font lacks.
fn glyph(char: char, font: RasterHeight) -> Option<noto_sans_mono_bitmap::RasterizedChar> {
    get_raster(char, FontWeight::Regular, font).or_else(|| get_raster('?', FontWeight::Regular, font))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rfdetr_post::{DetectionRow, Health, Masks, Size};

    fn scene(width: u32, height: u32, boxes: &[[f32; 4]]) -> (Picture, ImageDetections) {
        let mask = vec![1; (width * height) as usize];
        let rows = boxes
            .iter()
            .map(|&xyxy| DetectionRow {
                xyxy,
                mask_xyxy: [0, 0, width, height],
                mask_len: width * height,
                ..DetectionRow::default()
            })
            .collect::<Vec<_>>();
        let masks = Masks::Dense(mask.repeat(rows.len()));
        let size = Size::new(width, height);
        (Picture::black(width, height), ImageDetections { size, rows, masks, health: Health::default() })
    }

    #[test]
    fn strange_boxes_and_tiny_pictures_are_drawn_without_a_panic() {
        let inf = f32::INFINITY;
        let boxes = [
            [0.0, 0.0, 1.0, 1.0],
            [5.0, 5.0, 2.0, 1.0],
            [f32::NAN, 0.0, 3.0, 3.0],
            [-inf, -1e30, inf, 1e30],
            [3.0, 3.0, 3.0, 3.0],
        ];
        for (width, height) in [(1, 1), (7, 3), (64, 200)] {
            let (mut picture, detections) = scene(width, height, &boxes);
            draw(&mut picture, &detections, &["é水".to_owned()]).unwrap();
            assert!(picture.pixels().any(|pixel| pixel != [0; 3]));
        }
    }

    #[test]
    fn colors_differ() {
        // The 22nd hue comes close to the second's.
        let colors: Vec<_> = (0..20).map(color).collect();
        for (idx, a) in colors.iter().enumerate() {
            for b in &colors[..idx] {
                let distance: i32 = a.iter().zip(b).map(|(&a, &b)| (i32::from(a) - i32::from(b)).abs()).sum();
                assert!(distance > 20, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn text_grows_with_the_picture() {
        let height = |side| {
            let (font, zoom) = font_size(side);
            font.val() as i64 * zoom
        };
        assert_eq!([176, 720, 1080, 2160, 4320, 60_000].map(height), [16, 20, 24, 48, 96, 1504]);
        let sides: Vec<_> = (1..9000).map(height).collect();
        assert!(sides.is_sorted());
    }

    #[test]
    fn labels_keep_apart() {
        let same = [100.0, 100.0, 300.0, 200.0];
        let (mut one, detections) = scene(640, 480, &[same]);
        draw_labels(&mut one, &detections, &[], 1);
        let (mut two, detections) = scene(640, 480, &[same, same]);
        draw_labels(&mut two, &detections, &[], 1);
        let drawn = |picture: &Picture| picture.pixels().filter(|pixel| *pixel != [0; 3]).count();
        assert!(drawn(&two) > drawn(&one) * 19 / 10);
    }
}

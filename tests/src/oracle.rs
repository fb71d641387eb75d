//! A third, independent implementation: f64, matrices, textbook definitions, and a bound on how far f32 may be off.
//!
//! Nothing here follows the reference's steps. Weights are the triangle filter's formula; a resize is
//! `rows x grid x columns'`; ranks come from a stable sort of f64 scores. What rounding may change is bounded, and the
//! checks demand equality wherever the bound leaves no choice. `docs/numerics.md` argues the bounds; in short, with
//! `u` = 2^-24:
//!
//! - **scores**: 2 ulp, or exactly 0 and 1 where the f32 exponential overflows or vanishes;
//! - **boxes**: every f32 step of the decode adds `u` times its result, carried through the division by the scale;
//! - **masks**: the center of a filter is off by at most `u` times the grid's side, each weight by that over the
//!   support, and each pass adds a rounding a tap. With `M` the largest |logit| among the taps (and their neighbors)
//!   the value of a pixel is off by at most `M` times the sum of what [`Axis::error`] says for its row and column.

use nalgebra::{DMatrix, DVector};
use rfdetr_post_core::{
    BoxRounding, Frame, ImageDetections, ImageMeta, MaskResize, NegativeSizes, Request, Semantics, Size,
};

/// Half an ulp of 1 in f32: the relative error of one rounding.
const U: f64 = 1.0 / 16_777_216.0;
/// The absolute error of one rounding in the subnormal range.
const TINY: f64 = 1.0 / (1u128 << 75) as f64 / (1u128 << 75) as f64;
/// Beyond this, f32 may overflow where f64 does not; such values are not judged.
const HUGE: f64 = 1e37;

/// What a comparison judged, so that a test can tell that it judged something.
#[derive(Debug, Default, Clone, Copy)]
pub struct Judged {
    /// Images whose selection had one possible outcome.
    pub selections: usize,
    /// Images whose selection depends on rounding.
    pub ambiguous_selections: usize,
    /// Rows.
    pub rows: usize,
    /// Box coordinates with one possible value.
    pub coordinates: usize,
    /// Mask pixels with one possible sign.
    pub pixels: usize,
    /// Mask pixels whose sign depends on rounding, or on non-finite logits.
    pub open_pixels: usize,
    /// The largest error of a resized value, as a share of its bound.
    pub largest_share: f64,
}

impl std::ops::AddAssign for Judged {
    fn add_assign(&mut self, other: Self) {
        self.selections += other.selections;
        self.ambiguous_selections += other.ambiguous_selections;
        self.rows += other.rows;
        self.coordinates += other.coordinates;
        self.pixels += other.pixels;
        self.open_pixels += other.open_pixels;
        self.largest_share = self.largest_share.max(other.largest_share);
    }
}

/// The score of a logit.
pub fn score(logit: f32) -> f64 {
    let x = f64::from(logit);
    // In f32, 1 + exp(-x) is 1 from here on (spec 3.2), and where exp(-x) overflows, the score vanishes.
    if x >= 16.635_532 {
        1.0
    } else if ((-x).exp() as f32).is_infinite() {
        0.0
    } else {
        1.0 / (1.0 + (-x).exp())
    }
}

/// Whether f32 scores of these logits may compare differently than the f64 scores do.
fn scores_may_swap(a: f32, b: f32) -> bool {
    let (sa, sb) = (score(a), score(b));
    // Each f32 score is within 2 ulp; an ulp is at most 2u of the larger score, or the last subnormal bit.
    a != b && sa != sb && (sa - sb).abs() <= 8.0 * U * sa.max(sb) + 8.0 * TINY
}

/// Checks the rows of one image: selection, order, classes, scores, boxes.
///
/// Errors: what is wrong, in words.
pub fn check_rows(
    request: &Request<'_>,
    image: usize,
    got: &ImageDetections,
    judged: &mut Judged,
) -> Result<(), String> {
    let (queries, classes) = (request.shape().num_queries, request.shape().num_classes);
    let logit = |k: usize| request.tensors().logits.at(image * queries * classes + k);
    let ids = request.columns().class_ids.as_slice();
    let thresholds = request.columns().thresholds.as_slice();

    let mut ranked: Vec<usize> = (0..queries * classes).collect();
    // NaN first, then by score; the sort is stable, so equal scores stay in index order.
    ranked.sort_by(|&a, &b| {
        let key = |k: usize| if logit(k).is_nan() { 2.0 } else { score(logit(k)) };
        key(b).total_cmp(&key(a))
    });
    let numbers = || ranked.iter().filter(|&&k| !logit(k).is_nan());
    let ambiguous_order = numbers().zip(numbers().skip(1)).any(|(&a, &b)| scores_may_swap(logit(a), logit(b)));
    let ambiguous_threshold = numbers().any(|&k| {
        let (x, threshold) = (logit(k), f64::from(thresholds[k % classes]));
        // 0, 1/2 and 1 are exact in every arithmetic.
        let exact = x == 0.0 || score(x) == 0.0 || score(x) == 1.0;
        !exact && (score(x) - threshold).abs() <= 4.0 * U * score(x) + 4.0 * TINY
    });
    if ambiguous_order || ambiguous_threshold {
        judged.ambiguous_selections += 1;
    } else {
        judged.selections += 1;
        let places = request.options().num_select.unwrap_or(queries);
        let cap = request.options().max_detections.unwrap_or(usize::MAX);
        let expected: Vec<usize> = ranked
            .iter()
            .take(places)
            .copied()
            .filter(|&k| ids[k % classes] >= 0 && score(logit(k)) > f64::from(thresholds[k % classes]))
            .take(cap)
            .collect();
        let got: Vec<usize> = got.rows.iter().map(|row| flat_idx(row, classes)).collect();
        if got != expected {
            return Err(format!("flat indices {got:?}, the oracle has {expected:?}"));
        }
    }
    for (idx, row) in got.rows.iter().enumerate() {
        judged.rows += 1;
        let k = flat_idx(row, classes);
        if row.query_idx as usize >= queries || row.class_idx as usize >= classes {
            return Err(format!("rows[{idx}] is of query {} and class {}", row.query_idx, row.class_idx));
        }
        if row.class_id < 0 || row.class_id != ids[k % classes] {
            return Err(format!("rows[{idx}].class_id is {}, the oracle has {}", row.class_id, ids[k % classes]));
        }
        let exact = score(logit(k));
        let error = (f64::from(row.confidence) - exact).abs();
        // 2 ulp and the rounding of the exact value: 2.5 ulp, an ulp being at most 2u of the value.
        if error > 5.0 * U * exact + 2.5 * TINY {
            return Err(format!("rows[{idx}].confidence is {:e}, the oracle has {exact:e}", row.confidence));
        }
        let boxes = [0, 1, 2, 3].map(|i| request.tensors().boxes.at((image * queries + k / classes) * 4 + i));
        check_box(&boxes, &request.metas()[image], &request.options().semantics, &row.xyxy, judged)
            .map_err(|text| format!("rows[{idx}].{text}"))?;
    }
    Ok(())
}

/// Checks the health record of one image.
///
/// Errors: what was counted wrong, in words.
pub fn check_health(request: &Request<'_>, image: usize, got: &ImageDetections) -> Result<(), String> {
    let shape = request.shape();
    let tensors = request.tensors();
    let values = |tensor: &rfdetr_post_core::Tensor<'_>, len: usize| -> Vec<f32> {
        (image * len..(image + 1) * len).map(|idx| tensor.at(idx)).collect()
    };
    let logits = values(&tensors.logits, shape.num_queries * shape.num_classes);
    let boxes = values(&tensors.boxes, shape.num_queries * 4);
    let count = |values: &[f32], what: fn(&f32) -> bool| values.iter().filter(|x| what(x)).count() as u32;
    let mut nonfinite_mask_logits = 0;
    if request.mask_geometry(image).is_some() {
        let oracle = Oracle::new(request, image);
        let whole = request.options().mask_format == rfdetr_post_core::MaskFormat::GridLogits;
        for row in &got.rows {
            let grid = grid(request, image, row.query_idx as usize);
            let seen = if whole { grid } else { oracle.cut(&grid) };
            nonfinite_mask_logits += seen.iter().filter(|x| !x.is_finite()).count() as u32;
        }
    }
    let expected = rfdetr_post_core::Health {
        nan_logits: count(&logits, |x| x.is_nan()),
        pos_inf_logits: count(&logits, |x| *x == f32::INFINITY),
        neg_inf_logits: count(&logits, |x| *x == f32::NEG_INFINITY),
        nonfinite_boxes: count(&boxes, |x| !x.is_finite()),
        nonfinite_mask_logits,
    };
    if got.health == expected {
        Ok(())
    } else {
        Err(format!("health is {:?}, the oracle has {expected:?}", got.health))
    }
}

fn flat_idx(row: &rfdetr_post_core::DetectionRow, classes: usize) -> usize {
    row.query_idx as usize * classes + row.class_idx as usize
}

/// Checks one decoded box.
fn check_box(
    cxcywh: &[f32; 4],
    meta: &ImageMeta,
    semantics: &Semantics,
    got: &[f32; 4],
    judged: &mut Judged,
) -> Result<(), String> {
    for (i, name) in ["left", "top", "right", "bottom"].into_iter().enumerate() {
        let horizontal = i % 2 == 0;
        let side = |size: Size| f64::from(if horizontal { size.width } else { size.height });
        let center = f64::from(cxcywh[i % 2]);
        let extent = f64::from(cxcywh[2 + i % 2]);
        let extent = match semantics.negative_sizes {
            NegativeSizes::Clamp if extent < 0.0 => 0.0,
            _ => extent,
        };
        let corner = center + if i < 2 { -0.5 } else { 0.5 } * extent;
        // The value, and the sum of all f32 intermediate results as they reach the output: each rounds once.
        let (value, carried) = match semantics.frame {
            Frame::UndoPreprocessing => {
                let (pad, scale, offset) = if horizontal {
                    (meta.padding.left, meta.scale_x, meta.crop_offset.x)
                } else {
                    (meta.padding.top, meta.scale_y, meta.crop_offset.y)
                };
                let (pad, offset) = (f64::from(pad), f64::from(offset));
                let in_frame = corner * side(meta.frame());
                let in_content = (in_frame - pad) / scale;
                let carried = (2.0 * in_frame.abs() + (in_frame - pad).abs()) / scale + 2.0 * in_content.abs();
                (in_content + offset, carried + (in_content + offset).abs())
            }
            Frame::WholeImage => {
                let value = corner * side(meta.original);
                (value, 2.0 * value.abs())
            }
        };
        let name_it = |expected: f64| format!("xyxy {name} is {:?}, the oracle has {expected:?}", got[i]);
        let got = f64::from(got[i]);
        if [center, extent, corner].iter().any(|x| x.is_finite() && x.abs() > HUGE)
            || (value.is_finite() && (value.abs() > HUGE || carried > HUGE))
            || carried * meta.scale_x.max(meta.scale_y) > HUGE && carried.is_finite()
        {
            continue;
        }
        judged.coordinates += 1;
        let round = |x: f64| if semantics.box_rounding == BoxRounding::HalfEven { x.round_ties_even() } else { x };
        let clip = |x: f64| if semantics.clip_boxes { x.max(0.0).min(side(meta.original)) } else { x };
        if value.is_nan() {
            let right = match semantics.box_rounding {
                BoxRounding::HalfEven => got == 0.0,
                BoxRounding::None => got.is_nan(),
            };
            if !right {
                return Err(name_it(value));
            }
            continue;
        }
        if value.is_infinite() {
            if got != round(clip(value)) {
                return Err(name_it(value));
            }
            continue;
        }
        // One part in a million on top covers the products of errors.
        let error = carried * U * 1.000_001 + 8.0 * TINY * (1.0 + side(meta.frame()) / meta.scale_x.min(meta.scale_y));
        let (low, high) = (round(clip(value - error)), round(clip(value + error)));
        // Rounding to f32 is monotone, so it may not leave the interval of the rounded ends.
        if !(f64::from(low as f32) <= got && got <= f64::from(high as f32)) {
            return Err(name_it(value));
        }
    }
    Ok(())
}

/// One axis of a resize: the exact weights, and how far the f32 ones may be off.
#[derive(Debug, Clone)]
pub struct Axis {
    /// `[n_out, n_in]`.
    pub weights: DMatrix<f64>,
    /// Error of the pass for each output index, as a multiple of the largest |value| among `reach`.
    pub error: DVector<f64>,
    /// Absolute error of the pass for each output index, where f32 is subnormal.
    pub tiny: DVector<f64>,
    /// Source cells that may have a tap, zero weights included: a half-open range for each output index.
    pub reach: Vec<(usize, usize)>,
}

impl Axis {
    /// The identity: values are used as they are.
    fn identity(n: usize) -> Self {
        Self {
            weights: DMatrix::identity(n, n),
            error: DVector::zeros(n),
            tiny: DVector::zeros(n),
            reach: (0..n).map(|i| (i, i + 1)).collect(),
        }
    }

    /// The axis of a resize from `n_in` to `n_out` cells.
    pub fn new(n_in: usize, n_out: usize, resize: MaskResize) -> Self {
        let step = n_in as f64 / n_out as f64;
        let support = match resize {
            MaskResize::Antialias => step.max(1.0),
            MaskResize::Bilinear => 1.0,
        };
        let mut axis = Self {
            weights: DMatrix::zeros(n_out, n_in),
            error: DVector::zeros(n_out),
            tiny: DVector::zeros(n_out),
            reach: Vec::with_capacity(n_out),
        };
        for i in 0..n_out {
            let center = (i as f64 + 0.5) * step;
            match resize {
                MaskResize::Antialias => {
                    // The triangle filter over cell centers, normalized to 1.
                    let raw =
                        DVector::from_fn(n_in, |j, _| (1.0 - ((j as f64 + 0.5 - center) / support).abs()).max(0.0));
                    let total = raw.sum();
                    axis.weights.set_row(i, &(&raw / total).transpose());
                    let low = (center - support - 0.5).floor().max(0.0) as usize;
                    let high = ((center + support + 1.5).ceil() as usize).min(n_in);
                    axis.reach.push((low, high));
                    let taps = (high - low) as f64;
                    // Center, distance (two sums), inverse and product, then `1 - |t|`.
                    let weight = U * ((n_in as f64 + 3.0 * (support + 2.0)) / support + 7.0);
                    axis.error[i] = 1.01 * (2.0 * taps * weight / total + (2.0 * taps + 1.0) * U);
                    axis.tiny[i] = taps * TINY;
                }
                MaskResize::Bilinear => {
                    // Between the two nearest cell centers; outside of them, the last cell.
                    let position = (center - 0.5).clamp(0.0, n_in as f64 - 1.0);
                    let lower = (position.floor() as usize).min(n_in - 1);
                    let upper = (lower + 1).min(n_in - 1);
                    axis.weights[(i, lower)] += 1.0 - (position - lower as f64);
                    axis.weights[(i, upper)] += position - lower as f64;
                    axis.reach.push((lower.saturating_sub(1), (upper + 2).min(n_in)));
                    // The position moves by 2u of the side, which shifts weight between neighbors.
                    axis.error[i] = 1.01 * U * (4.0 * n_in as f64 + 8.0);
                    axis.tiny[i] = 4.0 * TINY;
                }
            }
        }
        axis
    }
}

/// A resize of one image's masks, as matrices.
#[derive(Debug, Clone)]
pub struct Oracle {
    rows: Axis,
    columns: Axis,
    window: Window,
    content: Size,
    offset: (usize, usize),
    canvas: Size,
}

/// The part of the grid that shows the content; cells outside of the grid are zero.
#[derive(Debug, Clone, Copy)]
struct Window {
    left: i64,
    top: i64,
    width: i64,
    height: i64,
}

/// The exact values of a mask, how far f32 may be off, and the cells that non-finite logits reach.
#[derive(Debug, Clone)]
pub struct Values {
    /// `[content height, content width]`.
    pub values: DMatrix<f64>,
    /// Bound of the error, of the same shape; infinite where nothing can be said.
    pub bound: DMatrix<f64>,
}

impl Oracle {
    /// The oracle of one image of a request with masks.
    pub fn new(request: &Request<'_>, image: usize) -> Self {
        let meta = &request.metas()[image];
        let semantics = &request.options().semantics;
        let (mask_h, mask_w) = request.shape().mask_grid.expect("the request has masks");
        let whole = Window { left: 0, top: 0, width: mask_w as i64, height: mask_h as i64 };
        let (window, content, offset) = match semantics.frame {
            Frame::WholeImage => (whole, meta.original, (0, 0)),
            Frame::UndoPreprocessing => {
                let frame = meta.frame();
                let cells = |side: usize, frame: u32, pad: i32| {
                    (side as f64 / f64::from(frame) * f64::from(pad)).round_ties_even() as i64
                };
                let (left, right) =
                    (cells(mask_w, frame.width, meta.padding.left), cells(mask_w, frame.width, meta.padding.right));
                let (top, bottom) =
                    (cells(mask_h, frame.height, meta.padding.top), cells(mask_h, frame.height, meta.padding.bottom));
                let window =
                    Window { left, top, width: mask_w as i64 - left - right, height: mask_h as i64 - top - bottom };
                (window, meta.content, (meta.crop_offset.y as usize, meta.crop_offset.x as usize))
            }
        };
        let (n_h, n_w) = (window.height.max(0) as usize, window.width.max(0) as usize);
        let (out_h, out_w) = (content.height as usize, content.width as usize);
        let (rows, columns) = if n_h == 0 || n_w == 0 {
            (Axis::identity(0), Axis::identity(0))
        } else if (n_h, n_w) == (out_h, out_w) {
            (Axis::identity(n_h), Axis::identity(n_w))
        } else {
            (Axis::new(n_h, out_h, semantics.mask_resize), Axis::new(n_w, out_w, semantics.mask_resize))
        };
        Self { rows, columns, window, content, offset, canvas: meta.original }
    }

    /// Whether the window has the content's size, so that nothing is resized.
    fn same_size(&self) -> bool {
        (self.window.width, self.window.height) == (i64::from(self.content.width), i64::from(self.content.height))
    }

    /// The window of one query's grid, zero-extended.
    fn cut(&self, grid: &DMatrix<f64>) -> DMatrix<f64> {
        let (height, width) = (self.window.height.max(0) as usize, self.window.width.max(0) as usize);
        DMatrix::from_fn(height, width, |y, x| {
            let (y, x) = (y as i64 + self.window.top, x as i64 + self.window.left);
            match (usize::try_from(y), usize::try_from(x)) {
                (Ok(y), Ok(x)) => grid.get((y, x)).copied().unwrap_or(0.0),
                _ => 0.0,
            }
        })
    }

    /// The values of one mask over the content; none when no cell of the grid shows it.
    pub fn values(&self, grid: &DMatrix<f64>) -> Option<Values> {
        let window = self.cut(grid);
        if window.is_empty() {
            return None;
        }
        if self.same_size() {
            // Used as they are, non-finite ones included.
            return Some(Values { bound: DMatrix::zeros(window.nrows(), window.ncols()), values: window });
        }
        let finite = window.map(|x| if x.is_finite() { x } else { 0.0 });
        let values = &self.rows.weights * finite * self.columns.weights.transpose();
        // The largest |logit| in reach, infinite where one is not finite or f32 might overflow.
        let magnitude = window.map(|x| if x.abs() < 3e38 { x.abs() } else { f64::INFINITY });
        let largest = reach_max(&reach_max(&magnitude, &self.columns.reach, false), &self.rows.reach, true);
        let bound = DMatrix::from_fn(values.nrows(), values.ncols(), |y, x| {
            let (rows, columns) = (self.rows.error[y], self.columns.error[x]);
            let tiny = self.rows.tiny[y] + self.columns.tiny[x];
            // Where every logit in reach is zero, every product is: no error at all.
            if largest[(y, x)] == 0.0 { 0.0 } else { largest[(y, x)] * (rows + columns + rows * columns) + tiny }
        });
        Some(Values { values, bound })
    }

    /// Checks a dense mask of the canvas against the values.
    ///
    /// Errors: the first pixel that is wrong for sure.
    pub fn check_mask(&self, grid: &DMatrix<f64>, mask: &[u8], judged: &mut Judged) -> Result<(), String> {
        let (width, height) = (self.canvas.width as usize, self.canvas.height as usize);
        if mask.len() != width * height {
            return Err(format!("the mask has {} pixels, the canvas {width} x {height}", mask.len()));
        }
        let values = self.values(grid);
        let (content_h, content_w) = (self.content.height as usize, self.content.width as usize);
        for y in 0..height {
            for x in 0..width {
                let inside = y
                    .checked_sub(self.offset.0)
                    .filter(|&y| y < content_h)
                    .zip(x.checked_sub(self.offset.1).filter(|&x| x < content_w));
                let got = mask[y * width + x];
                let wrong = match (inside, &values) {
                    (Some(place), Some(values)) => {
                        let (value, bound) = (values.values[place], values.bound[place]);
                        if value.abs() <= bound && bound > 0.0 {
                            judged.open_pixels += 1;
                            got > 1
                        } else {
                            judged.pixels += 1;
                            got != u8::from(value > 0.0)
                        }
                    }
                    // Outside of the content, or no cell shows it.
                    _ => got != 0,
                };
                if wrong {
                    let value = inside.zip(values.as_ref()).map(|(place, v)| (v.values[place], v.bound[place]));
                    return Err(format!("pixel x={x} y={y} is {got}, the oracle has (value, bound) {value:?}"));
                }
            }
        }
        Ok(())
    }
}

/// The largest value in reach of each output index, along the columns or along the rows.
fn reach_max(values: &DMatrix<f64>, reach: &[(usize, usize)], along_rows: bool) -> DMatrix<f64> {
    if along_rows {
        return reach_max(&values.transpose(), reach, false).transpose();
    }
    DMatrix::from_fn(values.nrows(), reach.len(), |y, i| {
        (reach[i].0..reach[i].1).map(|j| values[(y, j)]).fold(0.0, f64::max)
    })
}

/// The grid of one query in f64.
pub fn grid(request: &Request<'_>, image: usize, query_idx: usize) -> DMatrix<f64> {
    let (mask_h, mask_w) = request.shape().mask_grid.expect("the request has masks");
    let masks = request.tensors().masks.as_ref().expect("the request has masks");
    let base = (image * request.shape().num_queries + query_idx) * mask_h * mask_w;
    DMatrix::from_fn(mask_h, mask_w, |y, x| f64::from(masks.at(base + y * mask_w + x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 cells to 2: the filter's half-width is 2, so the first output sees 1, 3, 3, 1 eighths of which one lies
    /// outside.
    #[test]
    fn weights_of_a_reduction() {
        let axis = Axis::new(4, 2, MaskResize::Antialias);
        let expected = DMatrix::from_row_slice(2, 4, &[3.0, 3.0, 1.0, 0.0, 0.0, 1.0, 3.0, 3.0]) / 7.0;
        assert!((axis.weights - expected).abs().max() < 1e-15);
    }

    #[test]
    fn weights_of_an_enlargement() {
        for resize in [MaskResize::Antialias, MaskResize::Bilinear] {
            let axis = Axis::new(2, 4, resize);
            let expected = [1.0, 0.0, 0.75, 0.25, 0.25, 0.75, 0.0, 1.0];
            assert!((axis.weights - DMatrix::from_row_slice(4, 2, &expected)).abs().max() < 1e-15);
        }
        // Without antialias a reduction skips cells.
        let axis = Axis::new(4, 2, MaskResize::Bilinear);
        let expected = [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5];
        assert!((axis.weights - DMatrix::from_row_slice(2, 4, &expected)).abs().max() < 1e-15);
    }

    #[test]
    fn constants_are_exact() {
        assert_eq!(TINY, f64::from(f32::from_bits(1)) / 2.0);
        assert_eq!(U, f64::from(f32::EPSILON) / 2.0);
        assert_eq!(score(0.0), 0.5);
        assert_eq!(score(f32::INFINITY), 1.0);
        assert_eq!(score(f32::NEG_INFINITY), 0.0);
    }
}

//! Stage 3: masks. A window of the grid is resized to the content, thresholded and put on a canvas (spec 5).

use alloc::{vec, vec::Vec};

use crate::{
    error::{Error, Result},
    geometry::MaskWindow,
    math::fma,
    options::MaskResize,
    request::{MaskGeometry, Request},
};

/// Source cells and weights of one output index along one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Taps {
    /// First source index.
    pub first: usize,
    /// Weight of each source index from `first` on.
    pub weights: Vec<f32>,
}

/// The antialias taps of one output index (spec 5.3, profile TC: the three `fma` are nvcc's contractions).
pub fn antialias_taps(n_in: usize, n_out: usize, i: usize) -> Taps {
    let s = n_in as f32 / n_out as f32;
    let p = i as f32 + 0.5;
    let (support, inverse) = if s >= 1.0 { (s, (1.0 / f64::from(s)) as f32) } else { (1.0, 1.0) };
    let low = fma(s, p, -support) + 0.5;
    let high = fma(s, p, support) + 0.5;
    let first = (low as i64).max(0);
    let count = (high as i64).min(n_in as i64) - first;
    let d = fma(-s, p, first as f32);
    let mut weights: Vec<f32> = (0..count)
        .map(|j| {
            let t = ((j as f32 + d) + 0.5) * inverse;
            if t.abs() < 1.0 { 1.0 - t.abs() } else { 0.0 }
        })
        .collect();
    let total = weights.iter().fold(0.0, |sum, w| sum + w);
    if total != 0.0 {
        weights.iter_mut().for_each(|w| *w /= total);
    }
    Taps { first: first as usize, weights }
}

/// Lower source index, upper source index, and their weights, without antialias (spec 5.6).
pub fn bilinear_taps(n_in: usize, n_out: usize, i: usize) -> (usize, usize, f32, f32) {
    let s = n_in as f32 / n_out as f32;
    let p = i as f32 + 0.5;
    let u = fma(s, p, -0.5).max(0.0);
    let lower = (u as usize).min(n_in - 1);
    let upper = lower + usize::from(lower < n_in - 1);
    let upper_weight = u - lower as f32;
    (lower, upper, 1.0 - upper_weight, upper_weight)
}

/// The grid `[mask_h, mask_w]` of one query, widened to f32.
pub fn load_grid(request: &Request<'_>, image: usize, query_idx: usize) -> Vec<f32> {
    let (mask_h, mask_w) = request.shape().mask_grid.unwrap_or_default();
    let base = (image * request.shape().num_queries + query_idx) * mask_h * mask_w;
    let Some(masks) = &request.tensors().masks else { return Vec::new() };
    (base..base + mask_h * mask_w).map(|idx| masks.at(idx)).collect()
}

/// The window of a grid; cells outside the grid are zero. Empty if nothing is left (spec 5.1).
pub fn crop_window(grid: &[f32], mask_w: usize, mask_h: usize, window: &MaskWindow) -> Vec<f32> {
    let mut cells = Vec::new();
    if window.is_empty() {
        return cells;
    }
    for y in window.y..window.y + window.height {
        for x in window.x..window.x + window.width {
            let inside = (0..mask_w as i64).contains(&x) && (0..mask_h as i64).contains(&y);
            cells.push(if inside { grid[y as usize * mask_w + x as usize] } else { 0.0 });
        }
    }
    cells
}

/// Number of values that are NaN or infinite.
pub fn count_nonfinite(values: &[f32]) -> u32 {
    values.iter().filter(|value| !value.is_finite()).count() as u32
}

/// Resizes the windows of one image; its taps are built once.
#[derive(Debug)]
pub struct Resizer {
    geometry: MaskGeometry,
    resize: MaskResize,
    columns: Vec<Taps>,
    rows: Vec<Taps>,
}

impl Resizer {
    /// Builds the taps of both axes.
    pub fn new(request: &Request<'_>, geometry: MaskGeometry) -> Self {
        let resize = request.options().semantics.mask_resize;
        let taps = |n_in: i64, n_out: u32| match resize {
            MaskResize::Antialias if !geometry.window.is_empty() => {
                (0..n_out as usize).map(|i| antialias_taps(n_in as usize, n_out as usize, i)).collect()
            }
            _ => Vec::new(),
        };
        Self {
            geometry,
            resize,
            columns: taps(geometry.window.width, geometry.content.width),
            rows: taps(geometry.window.height, geometry.content.height),
        }
    }

    /// The dense mask `[height, width]` of the canvas, 0 or 1.
    ///
    /// Foreground is a value `> 0`: zeros of both signs and NaN are background (spec 5.5).
    pub fn mask(&self, window: &[f32]) -> Result<Vec<u8>> {
        let (width, height) = (self.geometry.canvas.width as usize, self.geometry.canvas.height as usize);
        let mut canvas = Vec::new();
        let bytes = width * height;
        canvas.try_reserve_exact(bytes).map_err(|_| Error::OutOfMemory { field: "masks", bytes: bytes as u64 })?;
        canvas.resize(bytes, 0);
        if self.geometry.window.is_empty() {
            return Ok(canvas);
        }
        let (content_w, content_h) = (self.geometry.content.width as usize, self.geometry.content.height as usize);
        let values = self.resize(window);
        for y in 0..content_h {
            let start = (self.geometry.offset_y as usize + y) * width + self.geometry.offset_x as usize;
            for x in 0..content_w {
                canvas[start + x] = u8::from(values[y * content_w + x] > 0.0);
            }
        }
        Ok(canvas)
    }

    /// The resized window: `[content height, content width]` values.
    pub fn resize(&self, window: &[f32]) -> Vec<f32> {
        let (n_w, n_h) = (self.geometry.window.width as usize, self.geometry.window.height as usize);
        let (content_w, content_h) = (self.geometry.content.width as usize, self.geometry.content.height as usize);
        if (n_w, n_h) == (content_w, content_h) {
            return window.to_vec();
        }
        match self.resize {
            MaskResize::Antialias => self.resize_antialias(window, n_w, n_h),
            MaskResize::Bilinear => resize_bilinear(window, n_w, n_h, content_w, content_h),
        }
    }

    /// Horizontal pass, rounded to f32, then vertical pass (spec 5.2 to 5.4).
    fn resize_antialias(&self, window: &[f32], n_w: usize, n_h: usize) -> Vec<f32> {
        let content_w = self.columns.len();
        let mut stretched = vec![0.0; n_h * content_w];
        for y in 0..n_h {
            for (x, taps) in self.columns.iter().enumerate() {
                stretched[y * content_w + x] = accumulate(taps, |i| window[y * n_w + i]);
            }
        }
        let mut values = vec![0.0; self.rows.len() * content_w];
        for (y, taps) in self.rows.iter().enumerate() {
            for x in 0..content_w {
                values[y * content_w + x] = accumulate(taps, |i| stretched[i * content_w + x]);
            }
        }
        values
    }
}

/// The weighted sum of the taps: the first product rounded, the others fused. Zero weights multiply too.
fn accumulate(taps: &Taps, value: impl Fn(usize) -> f32) -> f32 {
    let mut sum = value(taps.first) * taps.weights[0];
    for (j, &weight) in taps.weights.iter().enumerate().skip(1) {
        sum = fma(value(taps.first + j), weight, sum);
    }
    sum
}

/// Bilinear resize without antialias (spec 5.6).
fn resize_bilinear(window: &[f32], n_w: usize, n_h: usize, content_w: usize, content_h: usize) -> Vec<f32> {
    let mut values = vec![0.0; content_w * content_h];
    for y in 0..content_h {
        let (y0, y1, l0, l1) = bilinear_taps(n_h, content_h, y);
        for x in 0..content_w {
            let (x0, x1, m0, m1) = bilinear_taps(n_w, content_w, x);
            let (a, b) = (window[y0 * n_w + x0], window[y0 * n_w + x1]);
            let (c, e) = (window[y1 * n_w + x0], window[y1 * n_w + x1]);
            values[y * content_w + x] = fma(l0, fma(m0, a, m1 * b), l1 * fma(m0, c, m1 * e));
        }
    }
    values
}

/// Number of foreground pixels and their tight box (left, top, right, bottom, half-open; zeros when empty).
pub fn area_and_box(mask: &[u8], width: usize, height: usize) -> (u32, [u32; 4]) {
    let mut area = 0;
    let mut tight = [u32::MAX, u32::MAX, 0, 0];
    for y in 0..height {
        for x in 0..width {
            if mask[y * width + x] != 0 {
                area += 1;
                tight = [
                    tight[0].min(x as u32),
                    tight[1].min(y as u32),
                    tight[2].max(x as u32 + 1),
                    tight[3].max(y as u32 + 1),
                ];
            }
        }
    }
    (area, if area == 0 { [0; 4] } else { tight })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(n_in, n_out, i, first, weights as bits)` of the spec's appendix A, TC.
    #[test]
    fn axis_tables_of_the_spec() {
        let cases: [(usize, usize, usize, usize, &[u32]); 9] = [
            (78, 640, 3, 0, &[0x3f80_0000]),
            (78, 640, 4, 0, &[0x3f73_9999, 0x3d46_6670]),
            (78, 640, 100, 11, &[0x3e80_ccc4, 0x3f3f_999e]),
            (78, 640, 333, 40, &[0x3f5a_ccbc, 0x3e14_cd10]),
            (108, 480, 7, 1, &[0x3f50_0001, 0x3e3f_fffc]),
            (108, 480, 239, 53, &[0x3f1c_cce5, 0x3ec6_6636]),
            (192, 1080, 1000, 177, &[0x3f22_21da, 0x3ebb_bc4c]),
            (78, 26, 10, 29, &[0x3de3_8e39, 0x3e63_8e39, 0x3eaa_aaac, 0x3e63_8e39, 0x3de3_8e39, 0x0000_0000]),
            (96, 96, 5, 5, &[0x3f80_0000, 0x0000_0000]),
        ];
        for (n_in, n_out, i, first, weights) in cases {
            let taps = antialias_taps(n_in, n_out, i);
            let bits: Vec<u32> = taps.weights.iter().map(|w| w.to_bits()).collect();
            assert_eq!((taps.first, &bits[..]), (first, weights), "{n_in} -> {n_out}, {i}");
        }
    }

    #[test]
    fn every_output_has_a_tap_inside_the_input() {
        for n_in in 1..40 {
            for n_out in (1..90).chain([1000, 4001]) {
                for i in 0..n_out {
                    let taps = antialias_taps(n_in, n_out, i);
                    assert!(!taps.weights.is_empty(), "{n_in} -> {n_out}, {i}");
                    assert!(taps.first + taps.weights.len() <= n_in);
                    assert!(taps.weights.len() <= 2 * n_in.div_ceil(n_out) + 2);
                    let (lower, upper, ..) = bilinear_taps(n_in, n_out, i);
                    assert!(lower <= upper && upper < n_in);
                }
            }
        }
    }

    #[test]
    fn area_and_box_of_odd_shapes() {
        assert_eq!(area_and_box(&[0; 6], 3, 2), (0, [0; 4]));
        assert_eq!(area_and_box(&[0, 0, 1, 0, 1, 0], 3, 2), (2, [1, 0, 3, 2]));
        assert_eq!(area_and_box(&[1], 1, 1), (1, [0, 0, 1, 1]));
    }
}

//! Axis tables: which cells of the mask window make up an output column or row, and with which weights.
//!
//! They depend on sizes only, so spare blocks of the selection kernel build them while the selection runs, and the mask
//! kernels read them. Nothing is kept from one request to the next: no size is ever slower than another.

use rfdetr_post_core::packed::{AxesLayout, FLAG_BILINEAR, IMAGE_IDENTITY, ImageRecord};

use crate::simt::{global::Global, math, thread};

/// One axis of the resize.
#[derive(Clone, Copy)]
pub struct Axis {
    /// Cells of the window.
    pub n_in: u32,
    /// Output columns or rows.
    pub n_out: u32,
    /// Cells an output index.
    pub scale: f32,
    /// Half width of the filter.
    pub support: f32,
    /// Its reciprocal.
    pub inverse: f32,
    /// Without antialias.
    pub is_bilinear: bool,
    /// The window has the content's size on both axes.
    pub is_identity: bool,
}

impl Axis {
    /// The horizontal axis of an image.
    #[inline(always)]
    pub fn columns(record: &ImageRecord, flags: u32) -> Self {
        Self {
            n_in: record.window_w,
            n_out: record.content_w,
            scale: record.scale_x,
            support: record.support_x,
            inverse: record.inverse_x,
            is_bilinear: flags & FLAG_BILINEAR != 0,
            is_identity: record.flags & IMAGE_IDENTITY != 0,
        }
    }

    /// The vertical axis of an image.
    #[inline(always)]
    pub fn rows(record: &ImageRecord, flags: u32) -> Self {
        Self {
            n_in: record.window_h,
            n_out: record.content_h,
            scale: record.scale_y,
            support: record.support_y,
            inverse: record.inverse_y,
            ..Self::columns(record, flags)
        }
    }

    /// First cell and number of cells of an output index (spec 5.3, 5.6).
    #[inline(always)]
    pub fn span(&self, i: u32) -> (u32, u32) {
        if self.is_identity {
            return (i, 1);
        }
        let p = i as f32 + 0.5;
        if self.is_bilinear {
            let u = math::fma(self.scale, p, -0.5);
            let u = if u > 0.0 { u } else { 0.0 };
            return ((u as u32).min(self.n_in - 1), 2);
        }
        let low = math::fma(self.scale, p, -self.support) + 0.5;
        let high = math::fma(self.scale, p, self.support) + 0.5;
        let first = (low as i32).max(0);
        let end = (high as i32).min(self.n_in as i32);
        (first as u32, (end - first) as u32)
    }

    /// Distance of the first cell from the output's center, in cells; one rounding (spec 5.3).
    #[inline(always)]
    fn distance(&self, i: u32, first: u32) -> f32 {
        math::fma(-self.scale, i as f32 + 0.5, first as f32)
    }

    /// Weight of cell `first + j` before normalisation.
    #[inline(always)]
    pub fn filter(&self, distance: f32, j: u32) -> f32 {
        let t = ((j as f32 + distance) + 0.5) * self.inverse;
        let t = if t < 0.0 { -t } else { t };
        if t < 1.0 { 1.0 - t } else { 0.0 }
    }

    /// The weights of an output index of one or two cells: those of its table entry, sooner. `span` is the index's.
    #[inline(always)]
    pub fn pair(&self, i: u32, (first, count): (u32, u32)) -> [f32; 2] {
        if self.is_identity {
            return [1.0, 0.0];
        }
        if self.is_bilinear {
            let u = math::fma(self.scale, i as f32 + 0.5, -0.5);
            let upper = (if u > 0.0 { u } else { 0.0 }) - first as f32;
            return [1.0 - upper, upper];
        }
        let distance = self.distance(i, first);
        let (w0, w1) = (self.filter(distance, 0), if count == 2 { self.filter(distance, 1) } else { 0.0 });
        let total = w0 + w1;
        [normalize(w0, total), normalize(w1, total)]
    }

    /// The table entry of an output index: `[first | count << 16, w0, w1, w2]`, or `[first | count << 16, total, distance, 0]`
    /// for more than three cells.
    #[inline(always)]
    fn entry(&self, i: u32) -> [u32; 4] {
        let (first, count) = self.span(i);
        let span = first | count << 16;
        if self.is_identity {
            return [span, 1f32.to_bits(), 0, 0];
        }
        if self.is_bilinear {
            let u = math::fma(self.scale, i as f32 + 0.5, -0.5);
            let upper = (if u > 0.0 { u } else { 0.0 }) - first as f32;
            return [span, (1.0 - upper).to_bits(), upper.to_bits(), 0];
        }
        let distance = self.distance(i, first);
        let mut total = 0.0;
        let mut j = 0;
        while j < count {
            total += self.filter(distance, j);
            j += 1;
        }
        if count > 3 {
            return [span, total.to_bits(), distance.to_bits(), 0];
        }
        let weight = |j| if j < count { normalize(self.filter(distance, j), total).to_bits() } else { 0 };
        [span, weight(0), weight(1), weight(2)]
    }
}

/// A weight divided by the sum of all, unless that is zero.
#[inline(always)]
pub fn normalize(weight: f32, total: f32) -> f32 {
    if total != 0.0 { math::div(weight, total) } else { weight }
}

/// Builds the part `part` of `num_parts` of one image's tables.
///
/// # Safety
/// `axes_at` has the tables of a plan that the image fits, and no other block builds this part.
#[inline(always)]
pub unsafe fn build(
    axes_at: u64,
    layout: &AxesLayout,
    record: &ImageRecord,
    flags: u32,
    image: u32,
    part: u32,
    num_parts: u32,
) {
    let at = axes_at + 16 * image as u64 * layout.image_stride as u64;
    let (columns, rows) = (Axis::columns(record, flags), Axis::rows(record, flags));
    if columns.n_in == 0 || rows.n_in == 0 {
        return;
    }
    let entries = Global::<[u32; 4]>::from_address(at);
    let step = num_parts * thread::block_dim_x();
    let mut i = part * thread::block_dim_x() + thread::thread_idx_x();
    while i < columns.n_out + rows.n_out {
        // SAFETY: the plan made room for the content's columns and its rows.
        unsafe {
            if i < columns.n_out {
                entries.store(i as usize, columns.entry(i));
            } else {
                let y = i - columns.n_out;
                entries.store((layout.rows_offset + y) as usize, rows.entry(y));
            }
        }
        i += step;
    }
}

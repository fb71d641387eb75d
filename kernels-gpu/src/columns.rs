//! One output column of a mask, as the rows where it changes between background and foreground.
//!
//! The simple version evaluates every pixel:
//!
//! ```text
//! for y in rows: if (value(x, y) > 0) != state: emit(y); state = !state
//! ```
//!
//! The fast version knows that between two rows of the mask window a column is monotone. Output rows come in groups that
//! blend the same two window rows `a`, `b` (after the horizontal pass) as `fl(b * w1 + fl(a * w0))`, with `w1` rising
//! and `w0` falling down the group. So:
//!
//! 1. If `a > 0` and `b > 0` agree, the whole group has that sign: weights are not negative and at least one is positive.
//!    Products that underflow could round to zero, so two positive values of which one is tiny take the simple loop.
//! 2. Otherwise the exact sum moves one way down the group, and so does its rounded value, because rounding is monotone:
//!    the sign changes at most once, and a bisection with the exact expression finds the row.
//! 3. Columns that touch a value that is not finite take the simple loop, and the rare groups with a row of three taps are
//!    checked to be monotone with the exact sum.
//!
//! A column then costs O(window rows) instead of O(output rows). Without antialias the blend is
//! `fl(a * w0 + fl(b * w1))`, for which the same holds.

use rfdetr_post_core::packed::{DTYPE_F16, DTYPE_F32, ImageRecord, MaskArgs};

use crate::{
    axes::{Axis, normalize},
    inputs::load_element,
    simt::{global::Global, math, shared::Shared},
};

/// Rows of the strips of cells that a lane loads at a time.
pub const STRIP_ROWS: u32 = 16;

/// The array of a strip, written out: an iterator would index it at run time.
macro_rules! array_of_strip {
    ($cell:expr) => {
        [
            $cell(0),
            $cell(1),
            $cell(2),
            $cell(3),
            $cell(4),
            $cell(5),
            $cell(6),
            $cell(7),
            $cell(8),
            $cell(9),
            $cell(10),
            $cell(11),
            $cell(12),
            $cell(13),
            $cell(14),
            $cell(15),
        ]
    };
}

/// The masks of one image: its geometry and where its tables lie.
#[derive(Clone, Copy)]
pub struct Geometry {
    /// Canvas, content and window.
    pub record: ImageRecord,
    /// The horizontal axis.
    pub columns: Axis,
    /// The vertical axis.
    pub rows: Axis,
    column_entries: Global<[u32; 4]>,
    row_entries: Global<[u32; 4]>,
}

impl Geometry {
    /// The geometry of image `image`.
    ///
    /// # Safety
    /// `args` holds what [`MaskArgs`] promises, and `record` is the image's.
    #[inline(always)]
    pub unsafe fn new(args: &MaskArgs, record: ImageRecord, image: u32) -> Self {
        let at = args.axes_at + 16 * image as u64 * args.axes.image_stride as u64;
        Self::of_tables(record, args.flags, at, args.axes.rows_offset)
    }

    /// The geometry of a record whose tables begin at `at`, those of the rows so many entries behind.
    #[inline(always)]
    pub fn of_tables(record: ImageRecord, flags: u32, at: u64, rows_offset: u32) -> Self {
        Self {
            columns: Axis::columns(&record, flags),
            rows: Axis::rows(&record, flags),
            column_entries: Global::from_address(at),
            row_entries: Global::from_address(at + 16 * rows_offset as u64),
            record,
        }
    }

    /// The taps of a content column.
    ///
    /// # Safety
    /// `x` is below the content's width.
    #[inline(always)]
    pub unsafe fn column(&self, x: u32) -> Taps {
        // SAFETY: passed on to the caller.
        Taps::new(unsafe { self.column_entry(x) }, self.columns.n_in, self.columns.is_bilinear)
    }

    /// The table entry of a content column.
    ///
    /// # Safety
    /// `x` is below the content's width.
    #[inline(always)]
    pub unsafe fn column_entry(&self, x: u32) -> [u32; 4] {
        // SAFETY: one entry a content column.
        unsafe { self.column_entries.load(x as usize) }
    }

    /// [`column_entry`](Self::column_entry) that is issued here, not where it is used first.
    ///
    /// # Safety
    /// As [`column_entry`](Self::column_entry).
    #[inline(always)]
    pub unsafe fn column_entry_early(&self, x: u32) -> [u32; 4] {
        // SAFETY: one entry a content column.
        unsafe { self.column_entries.load_early(x as usize) }
    }

    /// The taps of a content row.
    ///
    /// # Safety
    /// `y` is below the content's height.
    #[inline(always)]
    pub unsafe fn row(&self, y: u32) -> Taps {
        // SAFETY: passed on to the caller.
        Taps::new(unsafe { self.row_entry(y) }, self.rows.n_in, self.rows.is_bilinear)
    }

    /// The table entry of a content row.
    ///
    /// # Safety
    /// `y` is below the content's height.
    #[inline(always)]
    pub unsafe fn row_entry(&self, y: u32) -> [u32; 4] {
        // SAFETY: one entry a content row.
        unsafe { self.row_entries.load(y as usize) }
    }
}

/// Cells and weights of one output index. For more than three cells `w0` is the sum of the weights and `w1` the distance.
#[derive(Clone, Copy)]
pub struct Taps {
    /// First cell.
    pub first: u32,
    /// Number of cells.
    pub count: u32,
    /// Second cell; the first if there is none.
    pub second: u32,
    w0: f32,
    w1: f32,
    w2: f32,
    is_bilinear: bool,
}

impl Taps {
    /// The cells and weights that a table entry of an axis of `n_in` cells says.
    #[inline(always)]
    pub fn new([span, w0, w1, w2]: [u32; 4], n_in: u32, is_bilinear: bool) -> Self {
        let (first, count) = (span & 0xffff, span >> 16);
        let has_second = count > 1 && first + 1 < n_in;
        Self {
            first,
            count,
            second: first + has_second as u32,
            w0: f32::from_bits(w0),
            w1: f32::from_bits(w1),
            w2: f32::from_bits(w2),
            is_bilinear,
        }
    }

    /// The value of at most two cells (spec 5.4, 5.6).
    #[inline(always)]
    pub fn blend(&self, v0: f32, v1: f32) -> f32 {
        if self.count == 1 {
            v0 * self.w0
        } else if self.is_bilinear {
            math::fma(self.w0, v0, self.w1 * v1)
        } else {
            math::fma(v1, self.w1, v0 * self.w0)
        }
    }

    /// Whether the value is that of one or two cells: a third whose weight is zero changes no finite value.
    #[inline(always)]
    pub fn is_pair(&self) -> bool {
        self.count < 3 || self.count == 3 && self.w2 == 0.0
    }

    /// The value of one or two finite cells: the second weight of a single one is zero.
    #[inline(always)]
    fn blend_finite(&self, v0: f32, v1: f32) -> f32 {
        if self.is_bilinear { math::fma(self.w0, v0, self.w1 * v1) } else { math::fma(v1, self.w1, v0 * self.w0) }
    }

    /// The weight of cell `first + j`.
    #[inline(always)]
    pub fn weight(&self, axis: &Axis, j: u32) -> f32 {
        if self.count > 3 {
            normalize(axis.filter(self.w1, j), self.w0)
        } else {
            match j {
                0 => self.w0,
                1 => self.w1,
                _ => self.w2,
            }
        }
    }

    /// The value of any number of cells, in the order of the specification: zero weights multiply too.
    #[inline(always)]
    pub fn sum(&self, axis: &Axis, value: impl Fn(u32) -> f32) -> f32 {
        let mut sum = 0.0;
        let mut step = 0;
        while step < self.count {
            // Without antialias the product of the second cell is the one that is rounded.
            let j = if self.is_bilinear { self.count - 1 - step } else { step };
            let weight = self.weight(axis, j);
            let cell = value((self.first + j).min(axis.n_in - 1));
            sum = if step == 0 { cell * weight } else { math::fma(cell, weight, sum) };
            step += 1;
        }
        sum
    }
}

/// The mask logits of one query, seen through the image's window.
#[derive(Clone, Copy)]
pub struct Window {
    masks_at: u64,
    dtype: u32,
    first: usize,
    mask_w: u32,
    mask_h: u32,
    window_x: i32,
    window_y: i32,
}

impl Window {
    /// The window of query `query_idx` of image `image`.
    #[inline(always)]
    pub fn new(args: &MaskArgs, record: &ImageRecord, image: u32, query_idx: u32) -> Self {
        let grid_idx = image as usize * args.num_queries as usize + query_idx as usize;
        Self::of_grid(args, record, grid_idx, args.mask_h, args.mask_w)
    }

    /// The window on grid `grid_idx` of the batch, of `mask_h` rows and `mask_w` columns.
    #[inline(always)]
    pub fn of_grid(args: &MaskArgs, record: &ImageRecord, grid_idx: usize, mask_h: u32, mask_w: u32) -> Self {
        Self {
            masks_at: args.masks_at,
            dtype: args.masks_dtype,
            first: grid_idx * (mask_h as usize * mask_w as usize),
            mask_w,
            mask_h,
            window_x: record.window_x,
            window_y: record.window_y,
        }
    }

    /// The cell at window row `r` and column `c`; zero outside the grid.
    ///
    /// # Safety
    /// The mask tensor is what [`MaskArgs`] promises.
    #[inline(always)]
    pub unsafe fn cell(&self, r: u32, c: u32) -> f32 {
        let (x, y) = (c as i32 + self.window_x, r as i32 + self.window_y);
        if (x as u32) < self.mask_w && (y as u32) < self.mask_h {
            // SAFETY: inside the grid; negative coordinates are above its sides as `u32`.
            unsafe {
                load_element(self.masks_at, self.dtype, self.first + y as usize * self.mask_w as usize + x as usize)
            }
        } else {
            0.0
        }
    }
}

impl Window {
    /// Cells of window column `c` from row `r` on, [`STRIP_ROWS`] of them: behind row `row_end - 1` that row's again, and in
    /// columns that the window has not those of its last, or zeros. Zero outside the grid. All loads are issued before the
    /// first is used: a branch around a load would have it waited for.
    ///
    /// Callers: every lane of a warp, with 32 columns in a row.
    ///
    /// # Safety
    /// The mask tensor is what [`MaskArgs`] promises; `r` is below `row_end`.
    #[inline(always)]
    pub unsafe fn strip(&self, r: u32, row_end: u32, c: u32, num_columns: u32) -> [f32; STRIP_ROWS as usize] {
        let last = (row_end - r).min(STRIP_ROWS) - 1;
        let y = r as i32 + self.window_y;
        let first_x = (c & !31) as i32 + self.window_x;
        let last_x = (c | 31).min(num_columns - 1) as i32 + self.window_x;
        // The same in all lanes.
        if y >= 0 && y + (last as i32) < self.mask_h as i32 && first_x >= 0 && last_x < self.mask_w as i32 {
            let x = (c as i32 + self.window_x).min(last_x) as u32;
            let first = self.first as u64 + (y as u32 * self.mask_w + x) as u64;
            let size = if self.dtype == DTYPE_F32 { 4 } else { 2 };
            let (address, pitch) = (self.masks_at + size as u64 * first, size * self.mask_w);
            let row = |i: u32| address + i.min(last) as u64 * pitch as u64;
            if self.dtype == DTYPE_F32 {
                // SAFETY: row and column are inside the grid.
                let cell = |i: u32| unsafe { Global::<f32>::from_address(row(i)).load_nc_early(0) };
                return array_of_strip!(cell);
            }
            // SAFETY: as above.
            let cell = |i: u32| unsafe { Global::<u16>::from_address(row(i)).load_nc_early(0) };
            let strip: [u16; STRIP_ROWS as usize] = array_of_strip!(cell);
            let is_f16 = self.dtype == DTYPE_F16;
            return strip.map(|bits| if is_f16 { math::f16_to_f32(bits) } else { math::bf16_to_f32(bits) });
        }
        let cell = |i: u32| {
            // SAFETY: the caller vouches for the tensor.
            if c < num_columns { unsafe { self.cell(r + i.min(last), c) } } else { 0.0 }
        };
        array_of_strip!(cell)
    }

    /// The cells of window column `first_c + lane`, or `last_c` at most, in rows `r` to `r + 3`, or `r + last` at most; zeros outside
    /// the grid. All loads are issued before the first is used: a branch around a load would have it waited for.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// The mask tensor is what [`MaskArgs`] promises; `first_c` is at most `last_c`.
    #[inline(always)]
    pub unsafe fn four(&self, r: u32, last: u32, first_c: u32, last_c: u32, lane: u32) -> [f32; 4] {
        let (y, x) = (r as i32 + self.window_y, first_c as i32 + self.window_x);
        let c = (first_c + lane).min(last_c);
        // The same in all lanes.
        if y >= 0
            && y + (last.min(3) as i32) < self.mask_h as i32
            && x >= 0
            && last_c as i32 + self.window_x < self.mask_w as i32
        {
            let idx = self.first as u64 + (y as u32 * self.mask_w + (c as i32 + self.window_x) as u32) as u64;
            let size = if self.dtype == DTYPE_F32 { 4 } else { 2 };
            let (address, pitch) = (self.masks_at + size as u64 * idx, size * self.mask_w);
            let row = |i: u32| address + (i.min(last) * pitch) as u64;
            if self.dtype == DTYPE_F32 {
                // SAFETY: row and column are inside the grid.
                let cell = |i: u32| unsafe { Global::<f32>::from_address(row(i)).load_nc_early(0) };
                return [cell(0), cell(1), cell(2), cell(3)];
            }
            // SAFETY: as above.
            let cell = |i: u32| unsafe { Global::<u16>::from_address(row(i)).load_nc_early(0) };
            let bits = [cell(0), cell(1), cell(2), cell(3)];
            let is_f16 = self.dtype == DTYPE_F16;
            return bits.map(|bits| if is_f16 { math::f16_to_f32(bits) } else { math::bf16_to_f32(bits) });
        }
        // SAFETY: the caller vouches for the tensor.
        let cell = |i: u32| unsafe { self.cell(r + i.min(last), c) };
        [cell(0), cell(1), cell(2), cell(3)]
    }

    /// Whether the pixel of an output column in content row `y` is foreground: the plain way, for any cells and taps.
    ///
    /// # Safety
    /// The column's cells are inside the window, and `y` is below the content's height.
    #[inline(always)]
    pub unsafe fn is_foreground(&self, geometry: &Geometry, column: &Taps, y: u32) -> bool {
        // SAFETY: the caller vouches for column and row.
        unsafe {
            let row = geometry.row(y);
            row.sum(&geometry.rows, |r| column.sum(&geometry.columns, |c| self.cell(r, c))) > 0.0
        }
    }
}

/// The cells of the window: in shared memory, or in device memory where they have no room there.
#[derive(Clone, Copy)]
pub struct Cells<const IN_SHARED: bool> {
    /// Where they come from.
    pub window: Window,
    /// Row by row.
    pub shared: Shared<f32>,
    /// Cells of a row.
    pub num_columns: u32,
}

impl<const IN_SHARED: bool> Cells<IN_SHARED> {
    /// # Safety
    /// The cell is inside the window, and loaded if it is shared.
    #[inline(always)]
    unsafe fn at(&self, r: u32, c: u32) -> f32 {
        // SAFETY: the caller vouches for the cell.
        unsafe { if IN_SHARED { self.shared.load(r * self.num_columns + c) } else { self.window.cell(r, c) } }
    }

    /// An output column's value in window row `r`: the horizontal pass, for columns of one or two cells, both finite.
    ///
    /// # Safety
    /// The cells are inside the window, and loaded if they are shared.
    #[inline(always)]
    pub unsafe fn stretched(&self, column: &Taps, r: u32) -> f32 {
        // SAFETY: the caller vouches for the cells.
        unsafe { column.blend_finite(self.at(r, column.first), self.at(r, column.second)) }
    }

    /// The value of a pixel, for columns of one or two cells and rows of at most three, all finite.
    ///
    /// # Safety
    /// As [`stretched`](Self::stretched); `y` is below the content's height.
    #[inline(always)]
    pub unsafe fn pixel(&self, geometry: &Geometry, column: &Taps, y: u32) -> f32 {
        // SAFETY: the caller vouches for column and row.
        unsafe { geometry.row(y).sum(&geometry.rows, |r| self.stretched(column, r)) }
    }
}

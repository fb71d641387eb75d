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

use rfdetr_post_core::packed::{DTYPE_F16, DTYPE_F32, GROUP_IS_IRREGULAR, ImageRecord, MaskArgs, RleLayout};

use crate::{
    axes::{Axis, normalize},
    inputs::load_element,
    simt::{global::Global, math, shared::Shared, thread},
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

/// Some row groups are irregular.
pub const HAS_IRREGULAR: u32 = 1;
/// Some row groups have no row.
pub const HAS_EMPTY: u32 = 2;

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
    group_ends: Global<u32>,
    /// The row groups' copy in shared memory, if there is one.
    shared_groups: Option<Shared<u32>>,
    /// The rows' weights in shared memory, if they are there.
    shared_weights: Option<Shared<[f32; 2]>>,
}

impl Geometry {
    /// The geometry of image `image`.
    ///
    /// # Safety
    /// `args` holds what [`MaskArgs`] promises, and `record` is the image's.
    #[inline(always)]
    pub unsafe fn new(args: &MaskArgs, record: ImageRecord, image: u32) -> Self {
        let at = args.axes_at + 16 * image as u64 * args.axes.image_stride as u64;
        Self::of_tables(record, args.flags, at, args.axes.rows_offset, args.axes.groups_offset)
    }

    /// The geometry of a record whose tables begin at `at`, those of the rows and of the row groups so many entries behind.
    #[inline(always)]
    pub fn of_tables(record: ImageRecord, flags: u32, at: u64, rows_offset: u32, groups_offset: u32) -> Self {
        Self {
            columns: Axis::columns(&record, flags),
            rows: Axis::rows(&record, flags),
            column_entries: Global::from_address(at),
            row_entries: Global::from_address(at + 16 * rows_offset as u64),
            group_ends: Global::from_address(at + 16 * groups_offset as u64),
            shared_groups: None,
            shared_weights: None,
            record,
        }
    }

    /// Uses copies of row groups and weights in shared memory, each if it has room; `copies` also makes them. Returns
    /// [`HAS_IRREGULAR`] and [`HAS_EMPTY`] for the groups that this thread copied.
    ///
    /// Callers: every thread of the block. A barrier is owed before the copies are read.
    ///
    /// # Safety
    /// The block has the shared memory of `layout`; without `copies`, it holds the copies of this image.
    #[inline(always)]
    pub unsafe fn share_rows(&mut self, layout: &RleLayout, copies: bool) -> u32 {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        let mut found = 0;
        // SAFETY: offsets are the layout's; copies stay inside their arrays.
        unsafe {
            if self.record.content_h <= layout.num_weights {
                let weights = Shared::<[f32; 2]>::at(layout.weights_offset);
                let (num, mut y) = (self.record.content_h, tid);
                while copies && y < num {
                    // Four at a time: their loads do not wait for each other. Behind the last it is loaded again.
                    let at = |i: u32| (y + i * block).min(num - 1);
                    let load = |i: u32| self.row_entries.load(at(i) as usize);
                    let store = |i: u32, [_, w0, w1, _]: [u32; 4]| {
                        if y + i * block < num {
                            weights.store(at(i), [f32::from_bits(w0), f32::from_bits(w1)]);
                        }
                    };
                    let (e0, e1, e2, e3) = (load(0), load(1), load(2), load(3));
                    store(0, e0);
                    store(1, e1);
                    store(2, e2);
                    store(3, e3);
                    y += 4 * block;
                }
                self.shared_weights = Some(weights);
            }
            if self.record.window_h <= layout.num_groups {
                let groups = Shared::<u32>::at(layout.groups_offset);
                let mut r = tid;
                while copies && r < self.record.window_h {
                    let end = self.group_ends.load(r as usize);
                    let before = if r > 0 { self.group_ends.load(r as usize - 1) & !GROUP_IS_IRREGULAR } else { 0 };
                    groups.store(r, end);
                    if end & GROUP_IS_IRREGULAR != 0 {
                        found |= HAS_IRREGULAR;
                    }
                    if end & !GROUP_IS_IRREGULAR == before {
                        found |= HAS_EMPTY;
                    }
                    r += block;
                }
                self.shared_groups = Some(groups);
            }
        }
        found
    }

    /// The value of content row `y`, which blends the window rows above and below it; not for irregular groups.
    ///
    /// # Safety
    /// `y` is below the content's height.
    #[inline(always)]
    pub unsafe fn blend_rows(&self, y: u32, above: f32, below: f32) -> f32 {
        // SAFETY: two words a content row.
        let [w0, w1] = unsafe {
            match self.shared_weights {
                Some(weights) => weights.load(y),
                None => {
                    let [_, w0, w1, _] = self.row_entries.load(y as usize);
                    [f32::from_bits(w0), f32::from_bits(w1)]
                }
            }
        };
        // A row of one cell has a second weight of zero, which changes no finite value.
        if self.rows.is_bilinear { math::fma(w0, above, w1 * below) } else { math::fma(below, w1, above * w0) }
    }

    /// Whether nothing of the grid shows content: every mask is empty.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.record.window_w == 0 || self.record.window_h == 0
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

    /// End of the group of window row `r`, with its flag.
    ///
    /// # Safety
    /// `r` is below the window's height.
    #[inline(always)]
    pub unsafe fn group_end(&self, r: u32) -> u32 {
        // SAFETY: one word a window row.
        unsafe {
            match self.shared_groups {
                Some(groups) => groups.load(r),
                None => self.group_ends.load(r as usize),
            }
        }
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
    /// Cells of window column `c` from row `r` on, [`STRIP_ROWS`] of them; zero outside the grid, from `row_end` on, and in
    /// columns that the window has not. All loads are issued before the first is used: behind the last row its cell is read
    /// again, because a branch around a load would have it waited for.
    ///
    /// Callers: every lane of a warp, with 32 columns in a row.
    ///
    /// # Safety
    /// The mask tensor is what [`MaskArgs`] promises.
    #[inline(always)]
    pub unsafe fn strip(&self, r: u32, row_end: u32, c: u32, num_columns: u32) -> [f32; STRIP_ROWS as usize] {
        let (x, y) = (c as i32 + self.window_x, r as i32 + self.window_y);
        let has_column = c < num_columns && (x as u32) < self.mask_w;
        let num_rows = row_end - r;
        if self.dtype == DTYPE_F32 && y >= 0 && y + num_rows.min(STRIP_ROWS) as i32 <= self.mask_h as i32 {
            let last = num_rows.min(STRIP_ROWS) - 1;
            let idx = y as u32 * self.mask_w + if has_column { x as u32 } else { 0 };
            let cells = Global::<f32>::from_address(self.masks_at + 4 * (self.first as u64 + idx as u64));
            let cell = |i: u32| {
                // SAFETY: row and column are inside the grid.
                let cell = unsafe { cells.load_nc_early((i.min(last) * self.mask_w) as usize) };
                if has_column && i <= last { cell } else { 0.0 }
            };
            return array_of_strip!(cell);
        }
        let cell = |i: u32| {
            // SAFETY: the caller vouches for the tensor.
            if c < num_columns && i < num_rows { unsafe { self.cell(r + i, c) } } else { 0.0 }
        };
        array_of_strip!(cell)
    }

    /// The cells of window column `c` in rows `r` and `r + 4`; zero outside the grid. Both loads are issued before the first
    /// is used.
    ///
    /// # Safety
    /// The mask tensor is what [`MaskArgs`] promises.
    #[inline(always)]
    pub unsafe fn pair(&self, r: u32, c: u32) -> [f32; 2] {
        let (x, y) = ((c as i32 + self.window_x) as u32, (r as i32 + self.window_y) as u32);
        let is_first = x < self.mask_w && y < self.mask_h;
        let is_second = x < self.mask_w && y.wrapping_add(4) < self.mask_h;
        // Outside, the grid's first cell is loaded, and not used.
        let idx = y.wrapping_mul(self.mask_w).wrapping_add(x);
        let first = self.first + if is_first { idx as usize } else { 0 };
        let second = self.first + if is_second { idx.wrapping_add(4 * self.mask_w) as usize } else { 0 };
        // SAFETY: the indices are inside the grid of a query.
        let [v0, v1] = unsafe {
            if self.dtype == DTYPE_F32 {
                let cells = Global::<f32>::from_address(self.masks_at);
                [cells.load_nc(first), cells.load_nc(second)]
            } else {
                let cells = Global::<u16>::from_address(self.masks_at);
                let (v0, v1) = (cells.load_nc(first), cells.load_nc(second));
                if self.dtype == DTYPE_F16 {
                    [math::f16_to_f32(v0), math::f16_to_f32(v1)]
                } else {
                    [math::bf16_to_f32(v0), math::bf16_to_f32(v1)]
                }
            }
        };
        [if is_first { v0 } else { 0.0 }, if is_second { v1 } else { 0.0 }]
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

/// The cells of the window: in shared memory if they have room there, else in device memory.
#[derive(Clone, Copy)]
pub struct Cells {
    /// Where they come from.
    pub window: Window,
    /// Row by row.
    pub shared: Shared<f32>,
    /// Whether they are in shared memory.
    pub is_shared: bool,
    /// Cells of a row.
    pub num_columns: u32,
}

impl Cells {
    /// # Safety
    /// The cell is inside the window, and loaded if it is shared.
    #[inline(always)]
    unsafe fn at(&self, r: u32, c: u32) -> f32 {
        // SAFETY: the caller vouches for the cell.
        unsafe { if self.is_shared { self.shared.load(r * self.num_columns + c) } else { self.window.cell(r, c) } }
    }

    /// An output column's value in window row `r`: the horizontal pass, for columns of at most three cells, all finite.
    ///
    /// # Safety
    /// The cells are inside the window, and loaded if they are shared.
    #[inline(always)]
    pub unsafe fn stretched(&self, column: &Taps, r: u32) -> f32 {
        // SAFETY: the caller vouches for the cells.
        unsafe {
            let (first, second) = (self.at(r, column.first), self.at(r, column.second));
            // The second weight of a single cell is zero, which changes no finite value.
            let value = column.blend_finite(first, second);
            if column.count == 3 { math::fma(self.at(r, column.first + 2), column.w2, value) } else { value }
        }
    }

    /// The value of a pixel, for columns and rows of at most three cells, all finite.
    ///
    /// # Safety
    /// As [`stretched`](Self::stretched); `y` is below the content's height.
    #[inline(always)]
    pub unsafe fn pixel(&self, geometry: &Geometry, column: &Taps, y: u32) -> f32 {
        // SAFETY: the caller vouches for column and row.
        unsafe { geometry.row(y).sum(&geometry.rows, |r| self.stretched(column, r)) }
    }
}

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
//! 3. Groups that touch a value that is not finite, and the rare groups with a row of three taps, take the simple loop.
//!
//! A column then costs O(window rows) instead of O(output rows). Without antialias the blend is
//! `fl(a * w0 + fl(b * w1))`, for which the same holds.

use rfdetr_post_core::packed::{
    DTYPE_F32, GROUP_IS_IRREGULAR, IMAGE_PLAIN_ROWS, ImageRecord, MaskArgs, RleLayout,
};

use crate::{
    axes::{Axis, normalize},
    inputs::load_element,
    scan::div_rem,
    simt::{global::Global, math, shared::Shared, thread},
};

/// Positive values below this may underflow when multiplied by a weight. Weights are zero or at least 2^-38: they are
/// differences of multiples of 2^-38, the smallest scale (2^-14) having 24 bits.
const TINY: f32 = 1.0 / (1u128 << 100) as f32;

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
        Self {
            columns: Axis::columns(&record, args.flags),
            rows: Axis::rows(&record, args.flags),
            column_entries: Global::from_address(at),
            row_entries: Global::from_address(at + 16 * args.axes.rows_offset as u64),
            group_ends: Global::from_address(at + 16 * args.axes.groups_offset as u64),
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
                let mut y = tid;
                while copies && y < self.record.content_h {
                    let [_, w0, w1, _] = self.row_entries.load(y as usize);
                    weights.store(y, [f32::from_bits(w0), f32::from_bits(w1)]);
                    y += block;
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
        if self.rows.is_bilinear {
            math::fma(w0, above, w1 * below)
        } else {
            math::fma(below, w1, above * w0)
        }
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
        // SAFETY: one entry a content column.
        Taps::new(unsafe { self.column_entries.load(x as usize) }, self.columns.n_in, self.columns.is_bilinear)
    }

    /// The taps of a content row.
    ///
    /// # Safety
    /// `y` is below the content's height.
    #[inline(always)]
    pub unsafe fn row(&self, y: u32) -> Taps {
        // SAFETY: one entry a content row.
        Taps::new(unsafe { self.row_entries.load(y as usize) }, self.rows.n_in, self.rows.is_bilinear)
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
    #[inline(always)]
    fn new([span, w0, w1, w2]: [u32; 4], n_in: u32, is_bilinear: bool) -> Self {
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
    fn blend(&self, v0: f32, v1: f32) -> f32 {
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

    /// The value of any number of cells, in the order of the specification: zero weights multiply too.
    #[inline(always)]
    fn sum(&self, axis: &Axis, value: impl Fn(u32) -> f32) -> f32 {
        let mut sum = 0.0;
        let mut step = 0;
        while step < self.count {
            // Without antialias the product of the second cell is the one that is rounded.
            let j = if self.is_bilinear { self.count - 1 - step } else { step };
            let weight = if self.count > 3 {
                normalize(axis.filter(self.w1, j), self.w0)
            } else {
                match j {
                    0 => self.w0,
                    1 => self.w1,
                    _ => self.w2,
                }
            };
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
        let grid = args.mask_h as usize * args.mask_w as usize;
        Self {
            masks_at: args.masks_at,
            dtype: args.masks_dtype,
            first: (image as usize * args.num_queries as usize + query_idx as usize) * grid,
            mask_w: args.mask_w,
            mask_h: args.mask_h,
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
    /// Cells of window column `c` from row `r` on, eight of them; zero outside the grid, from `row_end` on, and in columns
    /// that the window has not. All loads are issued before the first is used.
    ///
    /// Callers: every lane of a warp, with 32 columns in a row.
    ///
    /// # Safety
    /// The mask tensor is what [`MaskArgs`] promises.
    #[inline(always)]
    pub unsafe fn octet(&self, r: u32, row_end: u32, c: u32, num_columns: u32) -> [f32; 8] {
        let (x, y) = (c as i32 + self.window_x, r as i32 + self.window_y);
        let has_column = c < num_columns && (x as u32) < self.mask_w;
        let has_rows = r + 8 <= row_end && y >= 0 && y + 8 <= self.mask_h as i32;
        if self.dtype == DTYPE_F32 && has_rows {
            let stride = 4 * self.mask_w as u64;
            let idx = y as u32 * self.mask_w + if has_column { x as u32 } else { 0 };
            let at = self.masks_at + 4 * (self.first as u64 + idx as u64);
            let cell = |i: u64| {
                // SAFETY: row and column are inside the grid.
                let cell = unsafe { Global::<f32>::from_address(at + i * stride).load_nc(0) };
                if has_column { cell } else { 0.0 }
            };
            return [cell(0), cell(1), cell(2), cell(3), cell(4), cell(5), cell(6), cell(7)];
        }
        let cell = |i: u32| {
            // SAFETY: the caller vouches for the tensor.
            if c < num_columns && r + i < row_end { unsafe { self.cell(r + i, c) } } else { 0.0 }
        };
        [cell(0), cell(1), cell(2), cell(3), cell(4), cell(5), cell(6), cell(7)]
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
        unsafe {
            if self.is_shared { self.shared.load(r * self.num_columns + c) } else { self.window.cell(r, c) }
        }
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

/// A rectangle of the window in shared memory, or, where that has no room for it, in global memory.
#[derive(Clone, Copy)]
pub struct Slab {
    window: Window,
    cells: Shared<f32>,
    is_shared: bool,
    first_row: u32,
    first_column: u32,
    num_columns: u32,
    /// First row with a cell that can make a pixel foreground; above `last_row` if there is none.
    pub first_live_row: u32,
    /// Last such row.
    pub last_live_row: u32,
    /// First column with such a cell.
    pub first_live_column: u32,
    /// Last such column.
    pub last_live_column: u32,
}

/// A half-open range of window rows or columns.
#[derive(Clone, Copy)]
pub struct Span {
    /// First index.
    pub start: u32,
    /// End.
    pub end: u32,
}

impl Slab {
    /// Loads a rectangle of the window; counts the cells of the range `owned` (a range of columns, or of rows if
    /// `owns_rows`) that are not finite.
    ///
    /// Callers: every thread of the block; valid in all threads. A barrier is owed before the slab, or `counters[0..5]`,
    /// are used again. Cost: two barriers.
    ///
    /// # Safety
    /// `cells` has `capacity` words, `counters` five; the spans lie inside the window.
    #[expect(clippy::too_many_arguments, reason = "a rectangle, a range, and two places in shared memory")]
    #[track_caller]
    #[inline(always)]
    pub unsafe fn load(
        window: Window,
        rows: Span,
        columns: Span,
        owned: Span,
        owns_rows: bool,
        cells: Shared<f32>,
        capacity: u32,
        counters: Shared<u32>,
    ) -> (Self, u32) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        if tid < 5 {
            // SAFETY: the caller gave five words: first live row and column, ends of the live rows and columns, and
            // non-finite cells.
            unsafe { counters.store(tid, if tid < 2 { u32::MAX } else { 0 }) };
        }
        thread::sync_threads();
        let num_columns = columns.end - columns.start;
        let len = (rows.end - rows.start) * num_columns;
        let is_shared = len <= capacity;
        let (mut first_row, mut row_end, mut nonfinite) = (u32::MAX, 0, 0);
        let (mut first_column, mut column_end) = (u32::MAX, 0);
        let mut i = tid;
        while i < len {
            // SAFETY: the window has columns.
            let (r, c) = unsafe { div_rem(i, num_columns) };
            let (r, c) = (rows.start + r, columns.start + c);
            // SAFETY: inside the window.
            let cell = unsafe { window.cell(r, c) };
            if is_shared {
                // SAFETY: `i` is below the capacity.
                unsafe { cells.store(i, cell) };
            }
            // NaN and infinities may spoil or make anything, so they are live.
            if !(cell <= 0.0 && cell > f32::NEG_INFINITY) {
                first_row = first_row.min(r);
                row_end = row_end.max(r + 1);
                first_column = first_column.min(c);
                column_end = column_end.max(c + 1);
                let owner = if owns_rows { r } else { c };
                if !cell.is_finite() && owned.start <= owner && owner < owned.end {
                    nonfinite += 1;
                }
            }
            i += block;
        }
        if row_end > 0 {
            // SAFETY: five words.
            unsafe {
                counters.fetch_min(0, first_row);
                counters.fetch_min(1, first_column);
                counters.fetch_max(2, row_end);
                counters.fetch_max(3, column_end);
                if nonfinite > 0 {
                    counters.fetch_add(4, nonfinite);
                }
            }
        }
        thread::sync_threads();
        // SAFETY: written before the barrier.
        let [first_row, first_column, row_end, column_end, nonfinite] =
            unsafe { [0, 1, 2, 3, 4].map(|i| counters.load(i)) };
        let slab = Self {
            window,
            cells,
            is_shared,
            first_row: rows.start,
            first_column: columns.start,
            num_columns,
            first_live_row: first_row,
            last_live_row: row_end.wrapping_sub(1),
            first_live_column: first_column,
            last_live_column: column_end.wrapping_sub(1),
        };
        (slab, nonfinite)
    }

    /// A slab that makes no pixel foreground.
    #[inline(always)]
    pub fn dead(window: Window) -> Self {
        Self {
            window,
            // SAFETY: a dead slab is not read.
            cells: unsafe { Shared::at(0) },
            is_shared: false,
            first_row: 0,
            first_column: 0,
            num_columns: 0,
            first_live_row: u32::MAX,
            last_live_row: 0,
            first_live_column: u32::MAX,
            last_live_column: 0,
        }
    }

    /// Whether no pixel that the slab makes can be foreground.
    #[inline(always)]
    pub fn is_dead(&self) -> bool {
        self.first_live_row == u32::MAX
    }

    /// Whether a column can have foreground pixels.
    #[inline(always)]
    pub fn is_live(&self, column: &Taps) -> bool {
        !self.is_dead() && column.first <= self.last_live_column && column.first + column.count > self.first_live_column
    }

    /// # Safety
    /// The cell is inside the slab's rectangle.
    #[inline(always)]
    unsafe fn cell(&self, r: u32, c: u32) -> f32 {
        // SAFETY: the caller vouches for the cell.
        unsafe { if self.is_shared { self.shared_cell(r, c) } else { self.window.cell(r, c) } }
    }

    /// # Safety
    /// The slab is shared, and the cell inside its rectangle.
    #[inline(always)]
    unsafe fn shared_cell(&self, r: u32, c: u32) -> f32 {
        // SAFETY: the caller vouches for the cell.
        unsafe { self.cells.load((r - self.first_row) * self.num_columns + (c - self.first_column)) }
    }

    /// A cell of a column after the horizontal pass.
    ///
    /// # Safety
    /// The slab holds the column's cells of row `r`.
    #[inline(always)]
    unsafe fn stretched(&self, geometry: &Geometry, column: &Taps, r: u32) -> f32 {
        // SAFETY: the caller vouches for the row.
        unsafe {
            if self.is_shared && column.count <= 2 {
                column.blend(self.shared_cell(r, column.first), self.shared_cell(r, column.second))
            } else {
                column.sum(&geometry.columns, |c| self.cell(r, c))
            }
        }
    }

    /// Walks down a content column from row `y0` to `y1`, as if above it were background, and emits the rows where it
    /// changes. Returns the state of the last row.
    ///
    /// # Safety
    /// The slab holds the cells of the column's rows, and is not dead; rows are inside the content.
    #[inline(always)]
    pub unsafe fn walk(&self, geometry: &Geometry, column: &Taps, y0: u32, y1: u32, mut emit: impl FnMut(u32)) -> bool {
        let all_plain = geometry.record.flags & IMAGE_PLAIN_ROWS != 0;
        let last_row = geometry.rows.n_in - 1;
        let mut state = false;
        let mut y = y0;
        // A row of three taps reaches two rows down.
        let mut r = self.first_live_row.saturating_sub(2).max(self.first_row);
        // SAFETY: the caller vouches for the rows; groups between the live rows lie inside the window.
        unsafe {
            if r > 0 && !all_plain {
                y = y.max(geometry.group_end(r - 1) & !GROUP_IS_IRREGULAR);
            }
            // The window rows above and below the group; the first round only makes the one above.
            let (mut above, mut has_above) = (0.0, all_plain);
            while y < y1 && (all_plain || r <= self.last_live_row) {
                let below = if all_plain {
                    0.0
                } else {
                    self.stretched(geometry, column, (r + has_above as u32).min(last_row))
                };
                if !has_above {
                    (above, has_above) = (below, true);
                    continue;
                }
                // Without groups all rows are one, and plain.
                let group_end = if all_plain { y1 | GROUP_IS_IRREGULAR } else { geometry.group_end(r) };
                let end = (group_end & !GROUP_IS_IRREGULAR).min(y1);
                if y < end {
                    let (from, to) = (above > 0.0, below > 0.0);
                    let is_plain = group_end & GROUP_IS_IRREGULAR != 0
                        || !(above.is_finite() && below.is_finite())
                        || from && to && (above < TINY || below < TINY);
                    if is_plain {
                        while y < end {
                            let row = geometry.row(y);
                            let value = row.sum(&geometry.rows, |r| column.sum(&geometry.columns, |c| self.cell(r, c)));
                            if (value > 0.0) != state {
                                emit(y);
                                state = !state;
                            }
                            y += 1;
                        }
                    } else {
                        // First row of the group that has the sign of the row below.
                        let mut change = y;
                        if from != to {
                            let mut high = end;
                            while change < high {
                                let middle = (change + high) / 2;
                                if (geometry.row(middle).blend(above, below) > 0.0) == to {
                                    high = middle;
                                } else {
                                    change = middle + 1;
                                }
                            }
                        }
                        if y < change && from != state {
                            emit(y);
                            state = from;
                        }
                        if change < end && to != state {
                            emit(change);
                            state = to;
                        }
                        y = end;
                    }
                }
                above = below;
                r += 1;
            }
        }
        if y < y1 && state {
            emit(y);
            state = false;
        }
        state
    }
}

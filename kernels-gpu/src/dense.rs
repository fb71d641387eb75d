//! Stage 3 for dense and bit-packed masks.
//!
//! The simple version evaluates every pixel:
//!
//! ```text
//! for (x, y) in mask: store(x, y, value(x, y) > 0)
//! ```
//!
//! The fast version does the same for few pixels, and is quick to see that the others need nothing:
//!
//! ```text
//! a work item is a tile of 128 columns and 32 rows of one mask; a warp makes it
//! cells = the few cells of the window that the tile is made of, most often two a lane
//! no cell is positive              -> zeros
//! all are, and ordinary            -> ones
//! else, row by row: each lane blends the window rows above and below in its four columns;
//!                   a vote for each makes 4 words of 32 pixels
//! after each 4 rows: a lane has 16 pixels of one of them, and stores them as 16 bytes
//! ```
//!
//! What makes it fast:
//!
//! 1. Warps share nothing, so no barrier makes one wait for another, and most tiles are stores and next to nothing else.
//! 2. The horizontal pass happens where the window row changes, not in every pixel. That is all the cleverness there is:
//!    pixels of the contour's tiles are evaluated by the very expression of the specification, whatever their cells are,
//!    so nothing has to be argued for NaN, infinities or underflow. A pixel is four instructions.
//! 3. Nothing is unrolled but the four columns of a lane, and nothing is computed before the loop over the tiles that is
//!    cheap to compute in it: kernels of a few microseconds wait for their instructions, and for registers that do not
//!    fit.
//! 4. Masks are not finished one by one. The last block of the grid writes all rows of the result.
//!
//! Tiles that do not fit that (more than two cells along an axis: images smaller than the grid; more cells than there is room
//! for: images hardly larger) are *plain*: each pixel is evaluated on its own, from device memory.
//!
//! Why tiles without a positive cell are background: weights are not negative, so no sum of such cells is positive, nor is
//! NaN. Why tiles of positive ordinary cells are foreground: each pass has a weight of at least 2^-10 (the largest of at most
//! 1025), so a sum is at least 2^-60, and at most 2^101.
//!
//! 16-byte stores need a width that is a multiple of 16. Other widths store each row as words of four pixels where the
//! address allows it, and as bytes at the tile's edges.

use rfdetr_post_core::packed::{
    AxesLayout, FLAG_BILINEAR, FLAG_BIT_PACKED, INLINE_IMAGES, ImageHeader, ImageRecord, MaskArgs, PackedRow,
    shared::masks::{
        DENSE_CELLS, DENSE_TILE_H as TILE_H, DENSE_TILE_W as TILE_W, DENSE_WARP_BYTES, DENSE_WARP_CELLS,
        DENSE_WARP_RECORD, DENSE_WARP_ROWS, DENSE_WARPS,
    },
};

use crate::{
    axes::Axis,
    columns::{Geometry, Taps, Window},
    inputs::{RECORD_WORDS, load_record_word, record_of_words},
    masks::{self, Stats, Work},
    scan::{div_ceil, div_rem},
    signs::Span,
    simt::{
        global::Global,
        grid, math,
        params::Params,
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// The smallest positive cell that is ordinary.
const SMALLEST: f32 = 1.0 / (1u64 << 40) as f32;
/// The largest.
const LARGEST: f32 = (1u128 << 100) as f32;

/// Offset of the axis tables' layout in the arguments.
const AXES: u32 = core::mem::offset_of!(MaskArgs, axes) as u32;

/// Word of the counters: whether the block is the last.
const IS_LAST: u32 = 0;

/// Makes the dense or bit-packed masks of every detection of the batch.
///
/// Callers: every thread of every block.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises, and the block has `layout::dense_bytes` of shared memory.
#[inline(always)]
pub unsafe fn masks_dense(args: &MaskArgs, params: Params) {
    grid::depend_wait();
    let (block, num_warps) = (thread::block_idx_x(), thread::block_dim_x() / 32);
    // SAFETY: the selection has ended; images are of this launch.
    unsafe {
        // The number of tiles fits: they are fewer than the payload's bytes over 32, but for masks of a few pixels.
        let work = Work::new(args, |image, num_detections| {
            let record = masks::record(args, params, image);
            num_detections * record.width.div_ceil(TILE_W) * record.height.div_ceil(TILE_H)
        });
        // Without a mask the first block still publishes.
        let num_blocks = div_ceil(work.num_items.max(1), num_warps).min(thread::grid_dim_x());
        if block >= num_blocks {
            return;
        }
        let mut item = block * num_warps + warp::warp_id();
        while item < work.num_items {
            let (image, within) = work.image_of(item);
            let at = DENSE_WARPS + DENSE_WARP_BYTES * warp::warp_id();
            let (lane, flags, at) = (math::opaque(warp::lane_id()), math::opaque(args.flags), math::opaque(at));
            let warp = Warp { args, params, image, lane, flags, at };
            // The lanes may still read what they shared for the tile before.
            warp::sync_warp(FULL_MASK);
            if args.batch > 1 || item < num_blocks * num_warps {
                warp.keep();
            }
            warp.make_tile(within);
            item += num_blocks * num_warps;
        }
        finish(args, params, num_blocks);
    }
}

/// Counts the block as finished; the last of `num_blocks` writes the rows of the result and publishes it.
///
/// Callers: every thread of the block, when its tiles are written.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises; each block is counted once.
#[track_caller]
#[inline(always)]
unsafe fn finish(args: &MaskArgs, params: Params, num_blocks: u32) {
    let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
    thread::sync_threads();
    // SAFETY: `done` is zero between launches; rows below an image's number of detections are the selection's; the block
    // has the counters.
    unsafe {
        let counters = masks::counters();
        if tid == 0 {
            // The barrier ordered the block's writes before the count, which releases them to the block that publishes.
            let done = Global::<u32>::from_address(args.done_at);
            let is_last = done.fetch_add_acq_rel(0, 1) == num_blocks - 1;
            if is_last {
                done.store(0, 0);
            }
            counters.store(IS_LAST, is_last as u32);
        }
        thread::sync_threads();
        if counters.load(IS_LAST) == 0 {
            return;
        }
        let headers = Global::<u32>::from_address(args.headers_at);
        let num_detections = |image: u32| headers.load(image as usize * size_of::<ImageHeader>() / 4);
        let mut row = tid;
        while row < args.batch * args.max_detections {
            let (image, slot) = div_rem(row, args.max_detections);
            if slot < num_detections(image) {
                let record = masks::record(args, params, image);
                let is_packed = args.flags & FLAG_BIT_PACKED != 0;
                let len = record.height * if is_packed { record.width.div_ceil(32) } else { record.width };
                let (stats, nonfinite) = load_stats(args, row as usize);
                masks::write_result_row(args, row as usize, &stats, nonfinite, len);
            }
            row += block;
        }
        masks::publish_all(args);
    }
}

/// What a tile's cells make of it.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Background.
    Empty,
    /// Foreground.
    Full,
    /// Its pixels are blends of four cells at most, which are in shared memory.
    Mixed,
    /// Its pixels are evaluated one by one.
    Plain,
}

/// A tile of a mask, and the part of the window that it is made of.
#[derive(Clone, Copy)]
struct Tile {
    /// Row of the selection.
    row: u32,
    /// First and end column and row of the canvas.
    left: u32,
    right: u32,
    top: u32,
    bottom: u32,
    /// First window row and column.
    first_row: u32,
    first_column: u32,
    num_columns: u32,
}

/// A warp: its image, and its part of shared memory.
struct Warp<'a> {
    args: &'a MaskArgs,
    params: Params,
    image: u32,
    lane: u32,
    flags: u32,
    /// Where its part of shared memory begins.
    at: u32,
}

/// Where a tile goes.
#[derive(Clone, Copy)]
struct Out {
    /// Where this lane's part of the first four rows begins; where the first row does, if rows are not aligned.
    at: u64,
    row_bytes: u32,
    is_packed: bool,
    /// Rows are bytes, and do not begin at multiples of 16.
    is_unaligned: bool,
    /// This lane has a part of the rows, and stores it.
    stores: bool,
}

impl Out {
    /// Stores a tile whose pixels are all alike: words of 32 pixels. Tiles of foreground are 128 columns wide.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// The tile is inside the mask.
    #[track_caller]
    #[inline(always)]
    unsafe fn fill(&self, lane: u32, tile: &Tile, word: u32) {
        let left = (tile.bottom - tile.top) as i32 - (lane / 8) as i32;
        let mut left = if self.stores { left } else { 0 };
        let (mut at, step) = (self.at, 4 * self.row_bytes as u64);
        // The vote keeps the compiler from unrolling: eight rounds of one line of instructions are fewer than four lines.
        while warp::warp_vote_any(FULL_MASK, left > 0) {
            if left > 0 {
                // SAFETY: the row is inside the mask.
                unsafe {
                    if self.is_packed {
                        Global::<u32>::from_address(at).store_streaming(0, word);
                    } else {
                        Global::<[u32; 4]>::from_address(at).store_streaming(0, [word & 0x0101_0101; 4]);
                    }
                }
            }
            left -= 4;
            at += step;
        }
    }

    /// Stores one row of a tile, `len` columns, from its four words: aligned words of four bytes, and bytes where the row's
    /// ends leave a part of such a word to the neighbors.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// `at` is where the row begins in a dense mask.
    #[inline(always)]
    unsafe fn store_row(lane: u32, at: u64, len: u32, [w0, w1, w2, w3]: [u32; 4]) {
        let word = |i: u32| match i {
            0 => w0,
            1 => w1,
            2 => w2,
            3 => w3,
            _ => 0,
        };
        // Bytes before the first whole word, and behind the last.
        let skew = at as u32 % 4;
        let head = (4 - skew) % 4;
        let tail = (len + skew) % 4;
        // SAFETY: whole words and single bytes are inside the row.
        unsafe {
            let first = head + 4 * lane;
            if first + 4 <= len {
                let pixels = (word(first / 32 + 1) as u64) << 32 | word(first / 32) as u64;
                Global::<u32>::from_address(at + first as u64)
                    .store_streaming(0, bytes_of((pixels >> (first % 32)) as u32 & 15));
            }
            // Lanes 0 to 3 have the bytes before, lanes 4 to 7 those behind.
            let x = if lane < 4 { lane } else { (len + 3).wrapping_sub(lane) };
            let is_edge = if lane < 4 { lane < head.min(len) } else { lane < 4 + tail && x >= head && x < len };
            if is_edge {
                Global::<u8>::from_address(at + x as u64).store_streaming(0, (word(x / 32) >> (x % 32) & 1) as u8);
            }
        }
    }
}

/// Four bits as four bytes.
#[inline(always)]
fn bytes_of(bits: u32) -> u32 {
    // The product puts copies 7 bits apart, the mask keeps one bit of each.
    bits.wrapping_mul(0x0020_4081) & 0x0101_0101
}

impl Warp<'_> {
    /// An address or a size of the arguments, read where it is used: what is computed from `args` in the loop over the tiles
    /// would be computed before it, and held in registers that the loop needs.
    ///
    /// # Safety
    /// A field of eight bytes lies `offset` into the arguments.
    #[inline(always)]
    unsafe fn argument(&self, offset: usize) -> u64 {
        // SAFETY: passed on to the caller.
        unsafe { self.params.load(offset as u32) }
    }

    /// The mask logits of a row of the selection.
    ///
    /// # Safety
    /// As [`masks_dense`]; `row` is one of the image's detections.
    #[inline(always)]
    unsafe fn window(&self, record: &ImageRecord, row: u32) -> Window {
        // SAFETY: fields of the arguments; the caller vouches for the row.
        unsafe {
            // Through the cache: other tiles ask for the same.
            let query_idx = Global::<u32>::from_address(self.args.queries_at).load(4 * row as usize);
            let mask_h: u32 = self.params.load(core::mem::offset_of!(MaskArgs, mask_h) as u32);
            let mask_w: u32 = self.params.load(core::mem::offset_of!(MaskArgs, mask_w) as u32);
            let grid_idx = self.image as usize * self.args.num_queries as usize + query_idx as usize;
            Window::of_grid(self.args, record, grid_idx, mask_h, mask_w)
        }
    }

    /// Where the axis tables of the image begin, and where those of its rows.
    #[inline(always)]
    fn tables(&self) -> (u64, u32) {
        // SAFETY: fields of the arguments.
        unsafe {
            let stride: u32 = self.params.load(AXES + core::mem::offset_of!(AxesLayout, image_stride) as u32);
            let rows: u32 = self.params.load(AXES + core::mem::offset_of!(AxesLayout, rows_offset) as u32);
            (self.argument(core::mem::offset_of!(MaskArgs, axes_at)) + 16 * (self.image * stride) as u64, rows)
        }
    }

    /// # Safety
    /// The block has the layout's shared memory.
    #[inline(always)]
    unsafe fn cells(&self) -> Shared<f32> {
        // SAFETY: the caller vouches for it.
        unsafe { Shared::at(self.at + DENSE_WARP_CELLS) }
    }

    /// The table entries of the tile's columns.
    ///
    /// # Safety
    /// As [`Warp::cells`].
    #[inline(always)]
    unsafe fn columns(&self) -> Shared<[u32; 4]> {
        // SAFETY: the caller vouches for it.
        unsafe { Shared::at(self.at) }
    }

    /// The words of the tile's rows, where the columns' entries are not needed.
    ///
    /// # Safety
    /// As [`Warp::cells`].
    #[inline(always)]
    unsafe fn words(&self) -> Shared<[u32; 4]> {
        // SAFETY: the caller vouches for it.
        unsafe { Shared::at(self.at) }
    }

    /// The table entries of the tile's rows.
    ///
    /// # Safety
    /// As [`Warp::cells`].
    #[inline(always)]
    unsafe fn rows(&self) -> Shared<[u32; 4]> {
        // SAFETY: the caller vouches for it.
        unsafe { Shared::at(self.at + DENSE_WARP_ROWS) }
    }

    /// # Safety
    /// As [`Warp::cells`].
    #[inline(always)]
    unsafe fn record_words(&self) -> Shared<[u32; 4]> {
        // SAFETY: the caller vouches for it.
        unsafe { Shared::at(self.at + DENSE_WARP_RECORD) }
    }

    /// The record of the warp's image, of which only what is used is read.
    ///
    /// # Safety
    /// It is kept.
    #[inline(always)]
    unsafe fn record(&self) -> ImageRecord {
        // SAFETY: the caller vouches for the words.
        record_of_words(|word| unsafe { self.record_words().load(word) })
    }

    /// Keeps the record of the image in shared memory: in registers it would crowd out everything else.
    ///
    /// Callers: every lane of the warp.
    ///
    /// # Safety
    /// As [`masks_dense`]; the image is below the batch.
    #[track_caller]
    #[inline(always)]
    unsafe fn keep(&self) {
        // SAFETY: the caller vouches for the image.
        unsafe {
            if self.lane < RECORD_WORDS {
                let offset = core::mem::offset_of!(MaskArgs, records) as u32;
                let is_inline = self.args.batch as usize <= INLINE_IMAGES;
                let records_at = self.args.records_at;
                let word = load_record_word(is_inline, self.params, offset, records_at, self.image, self.lane);
                self.record_words().store(self.lane, word);
            }
        }
        warp::sync_warp(FULL_MASK);
    }

    /// Makes one tile: item `within` of those of the warp's image.
    ///
    /// Callers: every lane of the warp.
    ///
    /// # Safety
    /// As [`masks_dense`]; the record is kept, and the tile is the warp's own.
    #[track_caller]
    #[inline(always)]
    unsafe fn make_tile(&self, within: u32) {
        let (args, lane) = (self.args, self.lane);
        // SAFETY: the tile is of this launch; an image has tiles.
        unsafe {
            let ImageRecord { width, height, .. } = self.record();
            let num_across = width.div_ceil(TILE_W);
            let (slot, part) = div_rem(within, num_across * height.div_ceil(TILE_H));
            let (y, x) = div_rem(part, num_across);
            let (left, top) = (TILE_W * x, TILE_H * y);
            let mut tile = Tile {
                row: self.image * args.max_detections + slot,
                left,
                right: (left + TILE_W).min(width),
                top,
                bottom: (top + TILE_H).min(height),
                first_row: 0,
                first_column: 0,
                num_columns: 0,
            };
            let kind = self.load(&mut tile);

            if kind == Kind::Plain {
                self.evaluate(&tile);
            }
            let ImageRecord { width, height, .. } = self.record();
            let is_packed = self.flags & FLAG_BIT_PACKED != 0;
            let row_bytes = if is_packed { 4 * width.div_ceil(32) } else { width };
            let is_unaligned = !is_packed && row_bytes % 16 != 0;
            let fill = if kind == Kind::Full { u32::MAX } else { 0 };
            if is_unaligned && (kind == Kind::Empty || kind == Kind::Full) {
                // Every row of the tile.
                self.words().store(lane, [fill; 4]);
                warp::sync_warp(FULL_MASK);
            }
            // A mask is at most 2^28 bytes.
            let mask_bytes = (row_bytes * height + 15) & !15;
            let image_at = self.argument(core::mem::offset_of!(MaskArgs, payload_at))
                + self.image as u64 * self.argument(core::mem::offset_of!(MaskArgs, payload_image_bytes));
            let mask_at = image_at + slot as u64 * mask_bytes as u64;
            // Of four rows in a row, a lane stores 16 columns of one, or of 32 columns their word.
            let lane_x = left + lane % 8 * 16;
            let lane_byte = if is_packed { lane_x / 32 * 4 } else { lane_x };
            let out = Out {
                at: mask_at
                    + if is_unaligned { top * row_bytes + left } else { (top + lane / 8) * row_bytes + lane_byte }
                        as u64,
                row_bytes,
                is_packed,
                is_unaligned,
                stores: !is_unaligned && lane_x < tile.right && !(is_packed && lane % 2 == 1),
            };
            if is_unaligned || kind == Kind::Mixed || kind == Kind::Plain {
                self.draw(&tile, kind, out);
            } else {
                out.fill(lane, &tile, fill);
            }
            if kind == Kind::Full && lane == 0 {
                let area = (tile.bottom - top) * TILE_W;
                self.add_stats(tile.row, area, [left, top, left + TILE_W, tile.bottom]);
            }
        }
    }

    /// Loads the cells of the tile, into shared memory too if they have room there, and counts those that are not finite;
    /// says what they make of the tile.
    ///
    /// Callers: every lane of the warp; valid in all lanes. Cost: a load of the query, then one of cells for most tiles, and
    /// six shuffles.
    ///
    /// # Safety
    /// As [`Warp::make_tile`].
    #[track_caller]
    #[inline(always)]
    unsafe fn load(&self, tile: &mut Tile) -> Kind {
        let lane = self.lane;
        // SAFETY: the row is of this launch; table entries are those of the content; cells are inside the window, and
        // stored in the warp's own room.
        unsafe {
            let record = self.record();
            // The content's part of the tile.
            let (x0, y0) = (tile.left.max(record.offset_x), tile.top.max(record.offset_y));
            let x1 = tile.right.min(record.offset_x + record.content_w);
            let y1 = tile.bottom.min(record.offset_y + record.content_h);
            if x0 >= x1 || y0 >= y1 || record.window_w == 0 || record.window_h == 0 {
                return Kind::Empty;
            }
            let window = self.window(&record, tile.row);
            let is_covered = x1 - x0 == TILE_W && y1 - y0 == tile.bottom - tile.top;

            // Three lanes look up rows, three columns: the first, the last, and the one behind.
            let is_row = lane & 4 == 0;
            let pick = |row: u32, column: u32| if is_row { row } else { column };
            let offset = pick(record.offset_y, record.offset_x);
            let (start, end) = (pick(y0, x0) - offset, pick(y1, x1) - offset);
            let n_out = pick(record.content_h, record.content_w);
            // Selected without branches: a match would become a table of jumps.
            let (is_start, is_last) = (lane & 3 == 0, lane & 3 == 1);
            let i = if is_start { start } else { (end - is_last as u32).min(n_out - 1) };
            // Computed, not looked up: the table would have to be waited for.
            let all = pick(record.window_h, record.window_w);
            let (rows, columns) = (Axis::rows(&record, self.flags), Axis::columns(&record, self.flags));
            let (scale, support) = if is_row { (rows.scale, rows.support) } else { (columns.scale, columns.support) };
            let (first, count) = Axis { n_in: all, n_out, scale, support, ..columns }.span(i);
            // Cells before the first are of the tile before, but for the first tile; those behind the last, likewise.
            let value = first + if is_last { count } else { 0 };
            let value = if is_start && start == 0 { 0 } else { value };
            let value = if !is_start && !is_last && end == n_out { all } else { value };
            let from = |lane: u32| warp::warp_shuffle_idx(FULL_MASK, value, lane);
            let owned_rows = Span { start: from(0), end: from(2) };
            let owned_columns = Span { start: from(4), end: from(6) };
            let row_end = from(1).max(owned_rows.end).min(record.window_h);
            let column_end = from(5).max(owned_columns.end).min(record.window_w);
            tile.first_row = owned_rows.start;
            tile.first_column = owned_columns.start;
            tile.num_columns = column_end - tile.first_column;
            let is_shared = (row_end - tile.first_row) * tile.num_columns <= DENSE_CELLS;

            let cells = self.cells();
            let (mut any, mut all, mut is_finite) = (false, true, true);
            // Eight columns and eight rows at a time, two rows a lane.
            let mut first_r = tile.first_row;
            while first_r < row_end {
                let r = first_r + lane / 8;
                let mut c = tile.first_column + lane % 8;
                let mut idx = (r - tile.first_row) * tile.num_columns + lane % 8;
                while c < column_end {
                    let [cell, other] = window.pair(r, c);
                    let mut visit = |r: u32, idx: u32, cell: f32| {
                        if r < row_end {
                            any |= cell > 0.0;
                            all &= (SMALLEST..=LARGEST).contains(&cell);
                            is_finite &= cell.is_finite();
                            if is_shared {
                                cells.store(idx, cell);
                            }
                        }
                    };
                    visit(r, idx, cell);
                    visit(r + 4, idx + 4 * tile.num_columns, other);
                    c += 8;
                    idx += 8;
                }
                first_r += 8;
            }
            if !warp::warp_vote_any(FULL_MASK, any || !is_finite) {
                return Kind::Empty;
            }
            if !warp::warp_vote_all(FULL_MASK, is_finite) {
                let mut count = 0;
                let mut r = owned_rows.start;
                while r < owned_rows.end {
                    let mut c = owned_columns.start + lane;
                    while c < owned_columns.end {
                        count += !window.cell(r, c).is_finite() as u32;
                        c += 32;
                    }
                    r += 1;
                }
                let count = warp::warp_reduce_add(FULL_MASK, count);
                if lane == 0 && count > 0 {
                    let rows_at = self.argument(core::mem::offset_of!(MaskArgs, rows_at));
                    let at = rows_at + tile.row as u64 * size_of::<PackedRow>() as u64;
                    Global::<u32>::from_address(at).fetch_add(NONFINITE_WORD, count);
                }
            }
            if is_covered && warp::warp_vote_all(FULL_MASK, all) {
                return Kind::Full;
            }
            // The lanes have the rows' entries, and those of the columns, one after the other.
            let (tables_at, rows_offset) = self.tables();
            let entries = Global::<[u32; 4]>::from_address(tables_at);
            // Columns and rows outside the content have no cells.
            let column = |i: u32| {
                let x = (tile.left + 32 * i + lane).wrapping_sub(record.offset_x);
                if x < record.content_w { entries.load(x as usize) } else { [0; 4] }
            };
            let y = (tile.top + lane).wrapping_sub(record.offset_y);
            let is_row = y < record.content_h;
            let row = if is_row { entries.load((rows_offset + y) as usize) } else { [0; 4] };
            let (c0, c1, c2, c3) = (column(0), column(1), column(2), column(3));
            let columns = self.columns();
            columns.store(lane, c0);
            columns.store(32 + lane, c1);
            columns.store(64 + lane, c2);
            columns.store(96 + lane, c3);
            // The weight of the product that is rounded comes first: without antialias that is the second cell's.
            let [span, w0, w1, _] = row;
            let is_bilinear = self.flags & FLAG_BILINEAR != 0;
            self.rows().store(lane, if is_bilinear { [span, w1, w0, 0] } else { [span, w0, w1, 0] });
            // Counts are in the upper halves.
            let most = row[0].max(c0[0]).max(c1[0]).max(c2[0].max(c3[0])) >> 16;
            warp::sync_warp(FULL_MASK);
            if is_shared && !warp::warp_vote_any(FULL_MASK, most > 2) { Kind::Mixed } else { Kind::Plain }
        }
    }

    /// Evaluates the pixels of a tile one by one, whatever its cells and axes are. Nothing else is asked for less often.
    ///
    /// Callers: every lane of the warp.
    ///
    /// # Safety
    /// The tile was loaded.
    #[track_caller]
    #[inline(always)]
    unsafe fn evaluate(&self, tile: &Tile) {
        // SAFETY: the row is of this launch; pixels are inside the content.
        unsafe {
            let words = Shared::<u32>::at(self.at);
            let mut i = 0;
            while i < 4 * (tile.bottom - tile.top) {
                // Nothing is held in registers from one round to the next, where tiles that are not plain need them.
                let warp = Warp { image: math::opaque(self.image), at: math::opaque(self.at), ..*self };
                let (tables_at, rows_offset) = warp.tables();
                let geometry = Geometry::of_tables(warp.record(), self.flags, tables_at, rows_offset);
                let record = &geometry.record;
                let window = warp.window(record, math::opaque(tile.row));
                let x = (tile.left + i % 4 * 32 + self.lane).wrapping_sub(record.offset_x);
                let y = (tile.top + i / 4).wrapping_sub(record.offset_y);
                let is_foreground = x < record.content_w
                    && y < record.content_h
                    && window.is_foreground(&geometry, &geometry.column(x), y);
                let word = warp::warp_vote_ballot(FULL_MASK, is_foreground);
                if self.lane == 0 {
                    words.store(i, word);
                }
                i += 1;
            }
        }
        warp::sync_warp(FULL_MASK);
    }

    /// Adds the area and box of a tile to the selection's row, which began with neutral values. Callers: one lane.
    ///
    /// # Safety
    /// `row` is a row that the selection wrote.
    #[inline(always)]
    unsafe fn add_stats(&self, row: u32, area: u32, [left, top, right, bottom]: [u32; 4]) {
        // SAFETY: the caller vouches for the row.
        unsafe {
            let rows_at = self.argument(core::mem::offset_of!(MaskArgs, rows_at));
            let words = Global::<u32>::from_address(rows_at + row as u64 * size_of::<PackedRow>() as u64);
            words.fetch_add(AREA_WORD, area);
            words.fetch_min(BOX_WORD, left);
            words.fetch_min(BOX_WORD + 1, top);
            words.fetch_max(BOX_WORD + 2, right);
            words.fetch_max(BOX_WORD + 3, bottom);
        }
    }

    /// Stores a tile row by row: evaluates the pixels if it is mixed, else takes their words from shared memory.
    ///
    /// Callers: every lane of the warp.
    ///
    /// # Safety
    /// The tile was loaded, and has its words if it is not mixed.
    #[track_caller]
    #[inline(always)]
    unsafe fn draw(&self, tile: &Tile, kind: Kind, out: Out) {
        let lane = self.lane;
        let is_bilinear = self.flags & FLAG_BILINEAR != 0;
        let is_mixed = kind == Kind::Mixed;
        let mut out = out;
        let mut stats = Stats::EMPTY;
        // SAFETY: the caller vouches for the tile; shared memory is the warp's own.
        unsafe {
            // Of the window rows above and below: which they are, and the values of this lane's four columns, `a` those whose
            // product is rounded: above, or without antialias below.
            let mut span = 0;
            let (mut a0, mut a1, mut a2, mut a3) = (0.0, 0.0, 0.0, 0.0);
            let (mut b0, mut b1, mut b2, mut b3) = (0.0, 0.0, 0.0, 0.0);
            let mut mine = 0;
            let mut y = tile.top;
            while y < tile.bottom {
                let (w0, w1, w2, w3);
                if is_mixed {
                    let [row_span, weight_a, weight_b, _] = self.rows().load(y - tile.top);
                    let (weight_a, weight_b) = (f32::from_bits(weight_a), f32::from_bits(weight_b));
                    if row_span != span {
                        let (first, count) = (row_span & 0xffff, row_span >> 16);
                        // One row further, the row below becomes the one above.
                        let is_next = span >> 16 == 2 && span & 0xffff == first.wrapping_sub(1);
                        let mut step = if is_next { 4 } else { 0 };
                        span = row_span;
                        while step < 4 * count {
                            let value = self.stretched(tile, step % 4 * 32 + lane, first + step / 4);
                            let (a, b) = if is_bilinear { (value, a0) } else { (b0, value) };
                            // Four rounds bring each column back to its place.
                            (a0, a1, a2, a3) = (a1, a2, a3, a);
                            (b0, b1, b2, b3) = (b1, b2, b3, b);
                            step += 1;
                        }
                        if count == 1 {
                            // What a cell that does not exist adds is zero, even next to infinity.
                            if is_bilinear {
                                (b0, b1, b2, b3) = (a0, a1, a2, a3);
                                (a0, a1, a2, a3) = (0.0, 0.0, 0.0, 0.0);
                            } else {
                                (a0, a1, a2, a3) = (b0, b1, b2, b3);
                                (b0, b1, b2, b3) = (0.0, 0.0, 0.0, 0.0);
                            }
                        }
                    }
                    // Rows outside the content have weights of zero.
                    let is_foreground = |a: f32, b: f32| math::fma(b, weight_b, a * weight_a) > 0.0;
                    w0 = warp::warp_vote_ballot(FULL_MASK, is_foreground(a0, b0));
                    w1 = warp::warp_vote_ballot(FULL_MASK, is_foreground(a1, b1));
                    w2 = warp::warp_vote_ballot(FULL_MASK, is_foreground(a2, b2));
                    w3 = warp::warp_vote_ballot(FULL_MASK, is_foreground(a3, b3));
                } else {
                    [w0, w1, w2, w3] = self.words().load(y - tile.top);
                }
                if out.is_unaligned {
                    Out::store_row(lane, out.at, tile.right - tile.left, [w0, w1, w2, w3]);
                    out.at += out.row_bytes as u64;
                }
                let (low, high) = if lane & 2 == 0 { (w0, w2) } else { (w1, w3) };
                let round = (y - tile.top) % 4;
                if round == lane / 8 {
                    mine = if lane & 4 == 0 { low } else { high };
                }
                y += 1;
                if round == 3 || y == tile.bottom {
                    let pixels = mine >> (16 * (lane & 1)) & 0xffff;
                    let (lane_x, lane_y) = (tile.left + lane % 8 * 16, y - 1 - round + lane / 8);
                    if pixels != 0 {
                        let (first, end) = (pixels.trailing_zeros(), 32 - pixels.leading_zeros());
                        stats.add(pixels.count_ones(), [lane_x + first, lane_y, lane_x + end, lane_y + 1]);
                    }
                    if out.stores && lane_y < tile.bottom {
                        if out.is_packed {
                            Global::<u32>::from_address(out.at).store_streaming(0, mine);
                        } else {
                            let bytes = |shift: u32| bytes_of(pixels >> shift & 15);
                            Global::<[u32; 4]>::from_address(out.at)
                                .store_streaming(0, [bytes(0), bytes(4), bytes(8), bytes(12)]);
                        }
                    }
                    if !out.is_unaligned {
                        out.at += 4 * out.row_bytes as u64;
                    }
                    mine = 0;
                }
            }
            if kind != Kind::Empty && kind != Kind::Full {
                let area = warp::warp_reduce_add(FULL_MASK, stats.area);
                let left = warp::warp_reduce_min(FULL_MASK, stats.tight[0]);
                let top = warp::warp_reduce_min(FULL_MASK, stats.tight[1]);
                let right = warp::warp_reduce_max(FULL_MASK, stats.tight[2]);
                let bottom = warp::warp_reduce_max(FULL_MASK, stats.tight[3]);
                if lane == 0 && area > 0 {
                    self.add_stats(tile.row, area, [left, top, right, bottom]);
                }
            }
        }
    }

    /// The value of column `i` of the tile in window row `r`, or in the window's last: the horizontal pass. Columns
    /// without cells have weights of zero.
    ///
    /// # Safety
    /// The tile is mixed, and its part of the window has the row.
    #[inline(always)]
    unsafe fn stretched(&self, tile: &Tile, i: u32, r: u32) -> f32 {
        // SAFETY: the caller vouches for the row; a column outside the content is said to have the tile's first cell.
        unsafe {
            let ImageRecord { window_w, window_h, .. } = self.record();
            let column = Taps::new(self.columns().load(i), window_w, self.flags & FLAG_BILINEAR != 0);
            let at = (r.min(window_h - 1) - tile.first_row) * tile.num_columns;
            let cell = |c: u32| self.cells().load(at + c.max(tile.first_column) - tile.first_column);
            column.blend(cell(column.first), cell(column.second))
        }
    }
}

const BOX_WORD: usize = core::mem::offset_of!(PackedRow, mask_xyxy) / 4;
const AREA_WORD: usize = core::mem::offset_of!(PackedRow, mask_area) / 4;
const NONFINITE_WORD: usize = core::mem::offset_of!(PackedRow, nonfinite_mask_logits) / 4;

/// The sums of all tiles of a row, and their cells that are not finite.
///
/// # Safety
/// All tiles are finished, and their writes visible.
#[inline(always)]
unsafe fn load_stats(args: &MaskArgs, row: usize) -> (Stats, u32) {
    let words = Global::<[u32; 4]>::from_address(args.rows_at + (row * size_of::<PackedRow>()) as u64);
    // SAFETY: the caller vouches for the row.
    unsafe {
        let [area, nonfinite, ..] = words.load(AREA_WORD / 4);
        (Stats { area, tight: words.load(BOX_WORD / 4) }, nonfinite)
    }
}

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
//! cells = the few cells of the window that the tile is made of, one or a few a lane
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
//! 3. Nothing is unrolled but the four columns of a lane: kernels of a few microseconds wait for their instructions.
//! 4. Masks are not finished one by one. The last block of the grid writes all rows of the result.
//!
//! Why tiles without a positive cell are background: weights are not negative, so no sum of such cells is positive, nor is
//! NaN. Why tiles of positive ordinary cells are foreground: each pass has a weight of at least 2^-10 (the largest of at most
//! 1025), so a sum is at least 2^-60, and at most 2^101.
//!
//! 16-byte stores need a width that is a multiple of 16. Other widths store each row as words of four pixels where the
//! address allows it, and as bytes at the tile's edges.

use rfdetr_post_core::packed::{
    DetectionRow, FLAG_BILINEAR, FLAG_BIT_PACKED, ImageHeader, MaskArgs,
    shared::masks::{
        DENSE_CELLS, DENSE_TILE_H as TILE_H, DENSE_TILE_W as TILE_W, DENSE_WARP_BYTES, DENSE_WARP_CELLS, DENSE_WARPS,
    },
};

use crate::{
    axes::Axis,
    columns::{Geometry, Taps, Window},
    masks::{self, Stats, Work},
    scan::{div_ceil, div_rem},
    signs::Span,
    simt::{
        fence,
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
        if work.num_items == 0 {
            if block == 0 {
                masks::publish_all(args, 0);
            }
            return;
        }
        let num_blocks = div_ceil(work.num_items, num_warps).min(thread::grid_dim_x());
        if block >= num_blocks {
            return;
        }
        let mut item = block * num_warps + warp::warp_id();
        while item < work.num_items {
            let (image, within) = work.image_of(item);
            make_tile(args, params, image, within);
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
            // The barrier ordered the block's writes before this fence, the fence before the count.
            fence::device();
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
                masks::write_result_row(args, row as usize, &load_stats(args, row as usize), 0, len, 0);
            }
            row += block;
        }
        let (mut num_masks, mut image) = (0, warp::lane_id());
        while image < args.batch {
            num_masks += num_detections(image);
            image += 32;
        }
        masks::publish_all(args, warp::warp_reduce_add(FULL_MASK, num_masks));
    }
}

/// What a tile's cells make of it.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Background.
    Empty,
    /// Foreground.
    Full,
    /// Its pixels must be evaluated.
    Mixed,
}

/// A tile of a mask, and the part of the window that it is made of.
#[derive(Clone, Copy)]
struct Tile {
    image: u32,
    row: usize,
    /// First and end column and row of the canvas.
    left: u32,
    right: u32,
    top: u32,
    bottom: u32,
    /// Window rows and columns.
    rows: Span,
    columns: Span,
    /// The warp's part of shared memory.
    scratch_at: u32,
}

/// Makes one tile: item `within` of those of an image.
///
/// Callers: every lane of a warp.
///
/// # Safety
/// As [`masks_dense`]; the tile is the warp's own.
#[track_caller]
#[inline(always)]
unsafe fn make_tile(args: &MaskArgs, params: Params, image: u32, within: u32) {
    let lane = warp::lane_id();
    // SAFETY: image and tile are of this launch; an image has tiles; shared memory is the warp's own.
    unsafe {
        let record = masks::record(args, params, image);
        let num_across = record.width.div_ceil(TILE_W);
        let (slot, part) = div_rem(within, num_across * record.height.div_ceil(TILE_H));
        let (y, x) = div_rem(part, num_across);
        let (left, top) = (TILE_W * x, TILE_H * y);
        let mut tile = Tile {
            image,
            row: masks::row_idx(args, image, slot),
            left,
            right: (left + TILE_W).min(record.width),
            top,
            bottom: (top + TILE_H).min(record.height),
            rows: Span { start: 0, end: 0 },
            columns: Span { start: 0, end: 0 },
            scratch_at: DENSE_WARPS + DENSE_WARP_BYTES * warp::warp_id(),
        };
        let kind = tile.load(args, params);

        let is_packed = args.flags & FLAG_BIT_PACKED != 0;
        let row_bytes = if is_packed { 4 * record.width.div_ceil(32) } else { record.width };
        let mask_bytes = (row_bytes as u64 * record.height as u64).next_multiple_of(16);
        let mask_at = args.payload_at + image as u64 * args.payload_image_bytes + slot as u64 * mask_bytes;
        let is_unaligned = !is_packed && row_bytes % 16 != 0;
        // Of four rows in a row, a lane stores 16 columns of one, or of 32 columns their word.
        let lane_x = left + lane % 8 * 16;
        let lane_byte = if is_packed { lane_x / 32 * 4 } else { lane_x };
        let out = Out {
            at: mask_at + (top + lane / 8) as u64 * row_bytes as u64 + lane_byte as u64,
            row_at: mask_at + top as u64 * row_bytes as u64 + left as u64,
            row_bytes,
            is_packed,
            is_unaligned,
            stores: !is_unaligned && lane_x < tile.right && !(is_packed && lane % 2 == 1),
        };
        let mut stats = Stats::EMPTY;
        if kind == Kind::Mixed || is_unaligned {
            tile.draw(args, params, kind, out, &mut stats);
        } else {
            out.fill(&tile, kind);
            if kind == Kind::Full && lane == 0 {
                stats.add((tile.right - left) * (tile.bottom - top), [left, top, tile.right, tile.bottom]);
            }
        }
        if kind != Kind::Empty {
            add_stats(args, tile.row, &stats);
        }
    }
}

/// Where a tile goes.
#[derive(Clone, Copy)]
struct Out {
    /// Where this lane's part of the first four rows begins.
    at: u64,
    /// Where the first row begins.
    row_at: u64,
    row_bytes: u32,
    is_packed: bool,
    /// Rows are bytes, and do not begin at multiples of 16.
    is_unaligned: bool,
    /// This lane has a part of the rows, and stores it.
    stores: bool,
}

impl Out {
    /// Stores a tile whose pixels are all alike. Tiles of foreground are 128 columns wide.
    ///
    /// # Safety
    /// The tile is inside the mask.
    #[inline(always)]
    unsafe fn fill(&self, tile: &Tile, kind: Kind) {
        let mut y = tile.top + warp::lane_id() / 8;
        let mut at = self.at;
        let word = if kind == Kind::Full { u32::MAX } else { 0 };
        while self.stores && y < tile.bottom {
            // SAFETY: the rows are inside the mask.
            unsafe { self.store(at, word, word & 0x0101_0101) };
            y += 4;
            at += 4 * self.row_bytes as u64;
        }
    }

    /// Stores a word of 32 pixels, or bytes that are all alike.
    ///
    /// # Safety
    /// `at` is inside the mask.
    #[inline(always)]
    unsafe fn store(&self, at: u64, word: u32, bytes: u32) {
        // SAFETY: passed on to the caller.
        unsafe {
            if self.is_packed {
                Global::<u32>::from_address(at).store_streaming(0, word);
            } else {
                Global::<[u32; 4]>::from_address(at).store_streaming(0, [bytes; 4]);
            }
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
    unsafe fn store_row(at: u64, len: u32, [w0, w1, w2, w3]: [u32; 4]) {
        let lane = warp::lane_id();
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

impl Tile {
    /// Loads the cells of the tile, into shared memory too if they have room there, and counts those that are not finite;
    /// says what they make of the tile.
    ///
    /// Callers: every lane of a warp; valid in all lanes. Cost: one load of cells for most tiles, and six shuffles.
    ///
    /// # Safety
    /// As [`make_tile`].
    #[track_caller]
    #[inline(always)]
    unsafe fn load(&mut self, args: &MaskArgs, params: Params) -> Kind {
        let lane = warp::lane_id();
        // SAFETY: image and row are of this launch; cells are inside the window, and stored in the warp's own room.
        unsafe {
            let record = masks::record(args, params, self.image);
            // The content's part of the tile.
            let (x0, y0) = (self.left.max(record.offset_x), self.top.max(record.offset_y));
            let x1 = self.right.min(record.offset_x + record.content_w);
            let y1 = self.bottom.min(record.offset_y + record.content_h);
            if x0 >= x1 || y0 >= y1 || record.window_w == 0 || record.window_h == 0 {
                return Kind::Empty;
            }
            let is_covered = x0 == self.left && x1 == self.left + TILE_W && y0 == self.top && y1 == self.bottom;
            let (x0, x1) = (x0 - record.offset_x, x1 - record.offset_x);
            let (y0, y1) = (y0 - record.offset_y, y1 - record.offset_y);

            // Three lanes look up rows, three columns: the first, the last, and the one behind.
            let (rows, columns) = (Axis::rows(&record, args.flags), Axis::columns(&record, args.flags));
            let is_row = lane & 4 == 0;
            let pick = |row: u32, column: u32| if is_row { row } else { column };
            let axis = Axis {
                n_in: pick(rows.n_in, columns.n_in),
                scale: f32::from_bits(pick(rows.scale.to_bits(), columns.scale.to_bits())),
                support: f32::from_bits(pick(rows.support.to_bits(), columns.support.to_bits())),
                ..rows
            };
            let (start, end) = (pick(y0, x0), pick(y1, x1));
            let n_out = pick(rows.n_out, columns.n_out);
            let (first, count) = axis.span(match lane & 3 {
                0 => start,
                1 => end - 1,
                _ => end.min(n_out - 1),
            });
            // Cells before the first are of the tile before, but for the first tile.
            let first_or_0 = if start == 0 { 0 } else { first };
            let next_or_all = if end == n_out { axis.n_in } else { first };
            let from = |value: u32, lane: u32| warp::warp_shuffle_idx(FULL_MASK, value, lane);
            let owned_rows = Span { start: from(first_or_0, 0), end: from(next_or_all, 2) };
            let owned_columns = Span { start: from(first_or_0, 4), end: from(next_or_all, 6) };
            let row_end = from(first + count, 1).max(owned_rows.end).min(record.window_h);
            let column_end = from(first + count, 5).max(owned_columns.end).min(record.window_w);
            self.rows = Span { start: owned_rows.start, end: row_end };
            self.columns = Span { start: owned_columns.start, end: column_end };

            let window = Window::new(args, &record, self.image, masks::query_of(args, self.row));
            let (shared, num_columns, is_shared) = (self.cells(), column_end - owned_columns.start, self.is_shared());
            // The lanes may still read what is stored below.
            warp::sync_warp(FULL_MASK);
            let (mut any, mut all, mut is_finite) = (false, true, true);
            let mut c = self.columns.start + lane;
            while c < column_end {
                let mut r = self.rows.start;
                let mut idx = c - self.columns.start;
                while r < row_end {
                    let mut visit = |i: u32, cell: f32| {
                        if r + i < row_end {
                            any |= cell > 0.0;
                            all &= cell >= SMALLEST && cell <= LARGEST;
                            is_finite &= cell.is_finite();
                            if is_shared {
                                shared.store(idx + i * num_columns, cell);
                            }
                        }
                    };
                    // Written out: an iterator over the array would index it.
                    let [c0, c1, c2, c3] = window.quad(r, c);
                    visit(0, c0);
                    visit(1, c1);
                    visit(2, c2);
                    visit(3, c3);
                    r += 4;
                    idx += 4 * num_columns;
                }
                c += 32;
            }
            if !warp::warp_vote_all(FULL_MASK, is_finite) {
                let mut count = 0;
                let mut c = owned_columns.start + lane;
                while c < owned_columns.end {
                    let mut r = owned_rows.start;
                    while r < owned_rows.end {
                        count += !window.cell(r, c).is_finite() as u32;
                        r += 1;
                    }
                    c += 32;
                }
                let count = warp::warp_reduce_add(FULL_MASK, count);
                if lane == 0 {
                    masks::add_nonfinite(args, self.image, count);
                }
            }
            if !warp::warp_vote_any(FULL_MASK, any) {
                Kind::Empty
            } else if warp::warp_vote_all(FULL_MASK, all) && is_covered {
                Kind::Full
            } else {
                Kind::Mixed
            }
        }
    }

    /// Whether the tile's cells have room in shared memory.
    #[inline(always)]
    fn is_shared(&self) -> bool {
        (self.rows.end - self.rows.start) * (self.columns.end - self.columns.start) <= DENSE_CELLS
    }

    /// The tile's cells, row by row.
    ///
    /// # Safety
    /// The block has the layout's shared memory.
    #[inline(always)]
    unsafe fn cells(&self) -> Shared<f32> {
        // SAFETY: the caller vouches for it.
        unsafe { Shared::at(self.scratch_at + DENSE_WARP_CELLS) }
    }

    /// Evaluates the pixels of a mixed tile and stores what [`Out::fill`] cannot: mixed tiles, and those of unaligned rows.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// The tile was loaded.
    #[track_caller]
    #[inline(always)]
    unsafe fn draw(&self, args: &MaskArgs, params: Params, kind: Kind, out: Out, stats: &mut Stats) {
        let lane = warp::lane_id();
        let is_bilinear = args.flags & FLAG_BILINEAR != 0;
        let mut out = out;
        // SAFETY: the caller vouches for the tile; entries of columns and rows of the content, and shared memory of the warp's own.
        unsafe {
            let columns = Shared::<[u32; 4]>::at(self.scratch_at);
            let rows = Shared::<[u32; 4]>::at(self.scratch_at + 16 * TILE_W);
            let num_rows_in = masks::record(args, params, self.image).window_h;
            if kind == Kind::Mixed {
                let geometry = Geometry::new(args, masks::record(args, params, self.image), self.image);
                let record = &geometry.record;
                // Columns and rows outside the content have no cells.
                let column = |i: u32| {
                    let x = (self.left + 32 * i + lane).wrapping_sub(record.offset_x);
                    if x < record.content_w { geometry.column_entry(x) } else { [0; 4] }
                };
                let y = (self.top + lane).wrapping_sub(record.offset_y);
                let row = if y < record.content_h { geometry.row_entry(y) } else { [0; 4] };
                let (c0, c1, c2, c3) = (column(0), column(1), column(2), column(3));
                columns.store(lane, c0);
                columns.store(32 + lane, c1);
                columns.store(64 + lane, c2);
                columns.store(96 + lane, c3);
                rows.store(lane, row);
            }
            warp::sync_warp(FULL_MASK);

            // Of the window rows above and below: which they are, and the values of this lane's four columns.
            let mut span = 0;
            let (mut a0, mut a1, mut a2, mut a3) = (0.0, 0.0, 0.0, 0.0);
            let (mut b0, mut b1, mut b2, mut b3) = (0.0, 0.0, 0.0, 0.0);
            let mut mine = 0;
            let mut y = self.top;
            while y < self.bottom {
                let fill = if kind == Kind::Full { u32::MAX } else { 0 };
                let (mut w0, mut w1, mut w2, mut w3) = (fill, fill, fill, fill);
                if kind == Kind::Mixed {
                    let entry = rows.load(y - self.top);
                    let [row_span, weight_a, weight_b, _] = entry;
                    let (mut weight_a, mut weight_b) = (f32::from_bits(weight_a), f32::from_bits(weight_b));
                    if row_span != span {
                        let (first, count) = (row_span & 0xffff, row_span >> 16);
                        // Rows of more than two cells are summed up in `a`, once for each row.
                        let is_sum = count > 2;
                        // One row further, the row below becomes the one above.
                        let is_next = !is_sum && span >> 16 == 2 && span & 0xffff == first.wrapping_sub(1);
                        let mut step = if is_next { 4 } else { 0 };
                        span = row_span;
                        if is_sum {
                            span = 0;
                            // A product is what it adds to -0.
                            (a0, a1, a2, a3) = (-0.0, -0.0, -0.0, -0.0);
                            (b0, b1, b2, b3) = (0.0, 0.0, 0.0, 0.0);
                            (weight_a, weight_b) = (1.0, 0.0);
                        }
                        while step < 4 * count {
                            let r = (first + step / 4).min(num_rows_in - 1);
                            let value = self.stretched(args, params, columns.load(step % 4 * 32 + lane), r);
                            let (mut above, mut below) = (b0, value);
                            if is_sum {
                                let record = masks::record(args, params, self.image);
                                let taps = Taps::new(entry, num_rows_in, is_bilinear);
                                let weight = taps.weight(&Axis::rows(&record, args.flags), step / 4);
                                (above, below) = (math::fma(value, weight, a0), 0.0);
                            }
                            // Four rounds bring each column back to its place.
                            (a0, a1, a2, a3) = (a1, a2, a3, above);
                            (b0, b1, b2, b3) = (b1, b2, b3, below);
                            step += 1;
                        }
                        if count == 1 {
                            (a0, a1, a2, a3) = (b0, b1, b2, b3);
                            (b0, b1, b2, b3) = (0.0, 0.0, 0.0, 0.0);
                        }
                    }
                    let is_foreground = |a: f32, b: f32| {
                        let value = if is_bilinear {
                            math::fma(weight_a, a, weight_b * b)
                        } else {
                            math::fma(b, weight_b, a * weight_a)
                        };
                        value > 0.0
                    };
                    w0 = warp::warp_vote_ballot(FULL_MASK, is_foreground(a0, b0));
                    w1 = warp::warp_vote_ballot(FULL_MASK, is_foreground(a1, b1));
                    w2 = warp::warp_vote_ballot(FULL_MASK, is_foreground(a2, b2));
                    w3 = warp::warp_vote_ballot(FULL_MASK, is_foreground(a3, b3));
                }
                if out.is_unaligned {
                    Out::store_row(out.row_at, self.right - self.left, [w0, w1, w2, w3]);
                    out.row_at += out.row_bytes as u64;
                }
                let (low, high) = if lane & 2 == 0 { (w0, w2) } else { (w1, w3) };
                let round = (y - self.top) % 4;
                if round == lane / 8 {
                    mine = if lane & 4 == 0 { low } else { high };
                }
                y += 1;
                if round == 3 || y == self.bottom {
                    let pixels = mine >> (16 * (lane & 1)) & 0xffff;
                    let (lane_x, lane_y) = (self.left + lane % 8 * 16, y - 1 - round + lane / 8);
                    if pixels != 0 {
                        let (first, end) = (pixels.trailing_zeros(), 32 - pixels.leading_zeros());
                        stats.add(pixels.count_ones(), [lane_x + first, lane_y, lane_x + end, lane_y + 1]);
                    }
                    if out.stores && lane_y < self.bottom {
                        if out.is_packed {
                            Global::<u32>::from_address(out.at).store_streaming(0, mine);
                        } else {
                            let bytes = |shift: u32| bytes_of(pixels >> shift & 15);
                            Global::<[u32; 4]>::from_address(out.at)
                                .store_streaming(0, [bytes(0), bytes(4), bytes(8), bytes(12)]);
                        }
                    }
                    out.at += 4 * out.row_bytes as u64;
                    mine = 0;
                }
            }
        }
    }

    /// The value of an output column in window row `r`: the horizontal pass. Zero for a column without cells.
    ///
    /// # Safety
    /// The tile was loaded, and its part of the window has the row and the column's cells.
    #[inline(always)]
    unsafe fn stretched(&self, args: &MaskArgs, params: Params, entry: [u32; 4], r: u32) -> f32 {
        // SAFETY: the caller vouches for row and column.
        unsafe {
            let record = masks::record(args, params, self.image);
            let column = Taps::new(entry, record.window_w, args.flags & FLAG_BILINEAR != 0);
            let (cells, is_shared) = (self.cells(), self.is_shared());
            let row_at = (r - self.rows.start) * (self.columns.end - self.columns.start);
            let shared = |c: u32| cells.load(row_at + (c - self.columns.start));
            if column.count == 0 {
                0.0
            } else if is_shared && column.count <= 2 {
                column.blend(shared(column.first), shared(column.second))
            } else {
                let window = Window::new(args, &record, self.image, masks::query_of(args, self.row));
                column.sum(
                    &Axis::columns(&record, args.flags),
                    |c| {
                        if is_shared { shared(c) } else { window.cell(r, c) }
                    },
                )
            }
        }
    }
}

const BOX_WORD: usize = core::mem::offset_of!(DetectionRow, mask_xyxy) / 4;
const AREA_WORD: usize = core::mem::offset_of!(DetectionRow, mask_area) / 4;

/// Adds the area and box of a tile, of which each lane has a part, to the selection's row, which began with neutral values.
///
/// Callers: every lane of a warp.
///
/// # Safety
/// `row` is a row that the selection wrote.
#[track_caller]
#[inline(always)]
unsafe fn add_stats(args: &MaskArgs, row: usize, stats: &Stats) {
    let area = warp::warp_reduce_add(FULL_MASK, stats.area);
    let left = warp::warp_reduce_min(FULL_MASK, stats.tight[0]);
    let top = warp::warp_reduce_min(FULL_MASK, stats.tight[1]);
    let right = warp::warp_reduce_max(FULL_MASK, stats.tight[2]);
    let bottom = warp::warp_reduce_max(FULL_MASK, stats.tight[3]);
    if warp::lane_id() == 0 && area > 0 {
        let words = Global::<u32>::from_address(args.rows_at);
        let first = row * size_of::<DetectionRow>() / 4;
        // SAFETY: the caller vouches for the row.
        unsafe {
            words.fetch_add(first + AREA_WORD, area);
            words.fetch_min(first + BOX_WORD, left);
            words.fetch_min(first + BOX_WORD + 1, top);
            words.fetch_max(first + BOX_WORD + 2, right);
            words.fetch_max(first + BOX_WORD + 3, bottom);
        }
    }
}

/// The sums of all tiles of a row.
///
/// # Safety
/// All tiles are finished, and their writes visible.
#[inline(always)]
unsafe fn load_stats(args: &MaskArgs, row: usize) -> Stats {
    let words = Global::<[u32; 4]>::from_address(args.rows_at + (row * size_of::<DetectionRow>()) as u64);
    // SAFETY: the caller vouches for the row.
    unsafe {
        let [area, ..] = words.load(AREA_WORD / 4);
        Stats { area, tight: words.load(BOX_WORD / 4) }
    }
}

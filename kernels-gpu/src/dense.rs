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
//! a work item is a group of up to 16 tiles side by side, of 128 columns and 8 rows each, of one mask; of two rows of tiles, where
//! only fewer of them have room
//! a warp looks at it: it loads the few cells that the group is made of, a column each lane; votes make them two bits a cell;
//! then each lane has a tile, and sees in the bits of its rows and columns:
//!   no cell is positive              -> zeros
//!   all are, and ordinary            -> ones
//!   else                             -> the tile is mixed, and is listed
//! then the warps of the block share everything out that was found, whosever it is: one in four stores zeros and ones, the
//! others draw mixed tiles, and who is done does the other; where there are more mixed tiles than warps, all draw first
//! a mixed tile: row by row, each lane blends the window rows above and below in its four columns
//! ```
//!
//! What makes it fast:
//!
//! 1. Most of a mask is zeros, known as such at the cost of a few cells, and stored while the mixed tiles are drawn: memory
//!    and arithmetic are busy at the same time.
//! 2. Tiles that cost something lie side by side along the contour. The warps of a block look at groups that are far apart,
//!    and draw what they found together, so none has much more to do than the others.
//! 3. The horizontal pass happens where the window row changes, not in every pixel. That is all the cleverness there is:
//!    pixels of mixed tiles are evaluated by the very expression of the specification, whatever their cells are, so nothing
//!    has to be argued for NaN, infinities or underflow. A pixel is four instructions.
//! 4. Nothing is held in registers that is cheap to read again: kernels of a few microseconds wait for registers that do
//!    not fit.
//! 5. Masks are not finished one by one. The last block of the grid writes the masks' fields of all rows of the result.
//! 6. What does not need the selection is done while it runs: of a single image, where each warp's first group lies, and which
//!    cells it is made of.
//!
//! Rows and columns of more than two cells (images smaller than the grid), and groups of more cells than there is room for
//! (images hardly larger), are *plain*: each pixel is evaluated on its own, from device memory.
//!
//! Why tiles without a positive cell are background: weights are not negative, so no sum of such cells is positive, nor is
//! NaN; a NaN counts as a cell of its sign. Why tiles of positive ordinary cells are foreground: each pass has a weight of at
//! least 2^-10 (the largest of at most 1025), so a sum is at least 2^-60, and at most 2^101.
//!
//! 16-byte stores need a width that is a multiple of 16. Other widths store each row as words of four pixels where the
//! address allows it, and as bytes at the tile's edges.

use rfdetr_post_core::packed::{
    AxesLayout, FLAG_BILINEAR, FLAG_BIT_PACKED, INLINE_IMAGES, ImageHeader, ImageRecord, MaskArgs, PackedRow,
    shared::masks::{
        DENSE_ACROSS as ACROSS, DENSE_CELLS, DENSE_DOWN as DOWN, DENSE_LIST, DENSE_TILE_H as TILE_H,
        DENSE_TILE_W as TILE_W, DENSE_TILES as TILES, DENSE_WARP_BYTES, DENSE_WARP_CELLS, DENSE_WARP_GROUP,
        DENSE_WARP_ROWS, DENSE_WARP_STATS, DENSE_WARPS,
    },
};

use crate::{
    axes::Axis,
    columns::{Geometry, Taps, Window},
    flags::block_set_flag,
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

/// Three sets of counters: tiles that were taken from the list, groups whose zeros and ones somebody took to store them, and
/// tiles in the list.
const TAKEN: u32 = 0;
const NUM_TILES: u32 = 2;
const NUM_COUNTERS: u32 = 3;

/// Makes the dense or bit-packed masks of every detection of the batch.
///
/// Callers: every thread of every block.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises, and the block has `layout::dense_bytes` of shared memory.
#[inline(always)]
pub unsafe fn masks_dense(args: &MaskArgs, params: Params) {
    let (tid, block, num_warps) = (thread::thread_idx_x(), thread::block_idx_x(), thread::block_dim_x() / 32);
    let num_blocks = thread::grid_dim_x();
    // SAFETY: the block has the counters.
    unsafe {
        if tid < 2 * NUM_COUNTERS {
            masks::counters().store(TAKEN + tid, 0);
        }
    }
    thread::sync_threads();
    // SAFETY: images are of this launch; what the selection writes is read when it has ended; barriers separate who looks and who
    // draws.
    unsafe {
        let counters = masks::counters();
        // Groups of a block are far apart: what one warp finds little of, another may find much of.
        let before = num_blocks * warp::warp_id();
        let mut work = Work::counted(args);
        let is_batch = args.batch > 1;
        if is_batch {
            grid::depend_wait();
            work = count(args, params);
        } else {
            let mut half = 0;
            while half < math::opaque(2) {
                Group::new(args, params, half, warp::warp_id()).keep(0);
                half += 1;
            }
        }
        // In each turn the block draws what it looked at in the turn before, and looks at what comes next.
        let (mut first, mut next, mut turn) = (block, block, 0);
        loop {
            // Two halves of the warps' part of shared memory and of the list, and three sets of counters.
            let (drawn, looked) = (turn % 2, (turn + 1) % 2);
            let (taken, counted) = (TAKEN + (turn + 2) % 3 * NUM_COUNTERS, TAKEN + turn % 3 * NUM_COUNTERS);
            if turn > 0 {
                if tid < NUM_COUNTERS {
                    // Those of the turn before, which nobody uses any more, and of the next.
                    counters.store(TAKEN + (turn + 1) % 3 * NUM_COUNTERS + tid, 0);
                }
                let num_groups = div_ceil(work.num_items - first, num_blocks).min(num_warps);
                let num_tiles = counters.load(taken + NUM_TILES);
                // A quarter of the warps stores while the others draw, unless each has something to draw.
                let (mut fills, mut pass) = (num_tiles <= num_warps && warp::warp_id() < num_warps.div_ceil(4), 0);
                while pass < 2 {
                    let (counter, num) = (taken + fills as u32, if fills { num_groups } else { num_tiles });
                    loop {
                        let mut i = 0;
                        if warp::lane_id() == 0 {
                            i = counters.fetch_add(counter, 1);
                        }
                        let i = warp::warp_shuffle_idx(FULL_MASK, i, 0);
                        if i >= num {
                            break;
                        }
                        if fills {
                            Group::new(args, params, drawn, i).fill();
                        } else {
                            let entry = list(drawn).load(i);
                            Group::new(args, params, drawn, entry / TILES).draw(entry % TILES);
                        }
                    }
                    fills = !fills;
                    pass += 1;
                }
            }
            let item = next + before;
            // The only image's groups are known before it is known how many there are.
            if !is_batch && turn == 0 || item < work.num_items {
                let (image, within) = work.image_of(item);
                let group = Group::new(args, params, looked, warp::warp_id());
                // The first lane may still read the sums of the group before.
                warp::sync_warp(FULL_MASK);
                if is_batch {
                    group.keep(image);
                }
                let aim = group.aim(image, within);
                if !is_batch && turn == 0 {
                    grid::depend_wait();
                }
                // On its way while the detections are counted.
                let query_idx = aim.query_idx(args);
                if !is_batch && turn == 0 {
                    work = count(args, params);
                }
                if item < work.num_items {
                    let mixed = group.look(&aim, query_idx);
                    if mixed != 0 {
                        let mut slot = 0;
                        if group.lane == 0 {
                            slot = counters.fetch_add(counted + NUM_TILES, mixed.count_ones());
                        }
                        let slot = warp::warp_shuffle_idx(FULL_MASK, slot, 0);
                        if mixed >> group.lane & 1 != 0 {
                            let before = (mixed & ((1 << group.lane) - 1)).count_ones();
                            list(looked).store(slot + before, TILES * warp::warp_id() + group.lane);
                        }
                    }
                }
            }
            if turn == 0 && block == num_blocks - 1 {
                begin_rows(args, params);
            }
            thread::sync_threads();
            if turn > 0 && first + before < work.num_items {
                Group::new(args, params, drawn, warp::warp_id()).add_stats();
            }
            (first, turn) = (next, turn + 1);
            next += num_blocks * num_warps;
            if first >= work.num_items {
                break;
            }
        }
        finish(args);
    }
}

/// The groups of every image.
///
/// Callers: every thread of the block; valid in all threads.
///
/// # Safety
/// As [`masks_dense`]; the selection has ended, and the record of a single image is kept.
#[track_caller]
#[inline(always)]
unsafe fn count(args: &MaskArgs, params: Params) -> Work {
    // The number of groups fits: they are fewer than the payload's bytes over 32, but for masks of a few pixels.
    // SAFETY: the caller vouches for the selection and the record; images are of this launch.
    unsafe {
        Work::new(args, |image, num_detections| {
            let shape = if args.batch == 1 {
                Group::new(args, params, 1, warp::warp_id()).shape()
            } else {
                Shape::new(&masks::record(args, params, image))
            };
            num_detections * shape.num_groups
        })
    }
}

/// Writes what is known of the result before there are masks: the headers, and of each row what the selection wrote, and the
/// mask's length.
///
/// Callers: every thread of one block.
///
/// # Safety
/// As [`masks_dense`]; the selection has ended.
#[track_caller]
#[inline(always)]
unsafe fn begin_rows(args: &MaskArgs, params: Params) {
    // SAFETY: rows below an image's number of detections are the selection's.
    unsafe {
        masks::block_copy_headers(args);
        for_each_row(args, |image, row| {
            let record = masks::record(args, params, image);
            let is_packed = args.flags & FLAG_BIT_PACKED != 0;
            let len = record.height * if is_packed { record.width.div_ceil(32) } else { record.width };
            let at = (row * size_of::<PackedRow>()) as u64;
            let from = Global::<[u32; 4]>::from_address(args.rows_at + at);
            let to = Global::<[u32; 4]>::from_address(args.result_rows_at + at);
            to.store(0, from.load(0));
            to.store(1, from.load(1));
            Global::<[u32; 2]>::from_address(args.result_rows_at + at).store(LEN_WORD / 2, [len, 0]);
        });
    }
}

/// Counts the block as finished; the last of the grid writes the rest of the rows and sets the flag.
///
/// Callers: every thread of every block, when its tiles are written.
///
/// # Safety
/// As [`masks_dense`]; each block is counted once.
#[track_caller]
#[inline(always)]
unsafe fn finish(args: &MaskArgs) {
    // SAFETY: all tiles are finished when the last block is counted.
    unsafe {
        if !masks::count_block(args) {
            return;
        }
        for_each_row(args, |_, row| {
            let (stats, nonfinite) = load_stats(args, row);
            let at = args.result_rows_at + (row * size_of::<PackedRow>()) as u64;
            Global::<[u32; 4]>::from_address(at).store(BOX_WORD / 4, stats.tight_or_zeros());
            Global::<[u32; 2]>::from_address(at).store(AREA_WORD / 2, [stats.area, nonfinite]);
        });
        block_set_flag(args.block_flags_at, 0, args.sequence);
    }
}

/// Calls `f` with image and index of every row of the result.
///
/// Callers: every thread of the block, of which each has some rows.
///
/// # Safety
/// As [`masks_dense`]; the selection has ended.
#[inline(always)]
unsafe fn for_each_row(args: &MaskArgs, f: impl Fn(u32, usize)) {
    let headers = Global::<u32>::from_address(args.headers_at);
    let mut row = thread::thread_idx_x();
    while row < args.batch * args.max_detections {
        // SAFETY: an image has rows, and a header.
        unsafe {
            let (image, slot) = div_rem(row, args.max_detections);
            if slot < headers.load(image as usize * size_of::<ImageHeader>() / 4) {
                f(image, row as usize);
            }
        }
        row += thread::block_dim_x();
    }
}

/// The list of the mixed tiles of the block's groups: one of two.
///
/// # Safety
/// The block has the layout's shared memory.
#[inline(always)]
unsafe fn list(half: u32) -> Shared<u32> {
    // SAFETY: the caller vouches for it.
    unsafe { Shared::at(DENSE_LIST + 4 * TILES * (thread::block_dim_x() / 32) * half) }
}

/// How a mask is cut into groups.
#[derive(Clone, Copy)]
struct Shape {
    /// Groups of the mask, and side by side.
    num_groups: u32,
    num_across: u32,
    /// Tiles of a group side by side, of the last group perhaps fewer; and one above the other.
    across: u32,
    down: u32,
}

impl Shape {
    /// As few groups as can be, of as equal width as can be, whose cells have room; if not even those of a tile have, tiles. Where
    /// only few tiles side by side have room, two rows of them share what they load.
    #[inline(always)]
    fn new(record: &ImageRecord) -> Self {
        let fitting = |down: u32| {
            // Rows and columns of cells, with those on both sides, and one for the rounding.
            let num_rows = (down * TILE_H) as f32 * record.scale_y + 3.0;
            let fitting = (DENSE_CELLS as f32 - 3.0 * num_rows) / (TILE_W as f32 * record.scale_x * num_rows);
            (fitting as u32).clamp(1, ACROSS)
        };
        let num_tiles = record.width.div_ceil(TILE_W);
        let down = if fitting(1) < num_tiles.min(ACROSS) { DOWN } else { 1 };
        // SAFETY: an image has columns.
        unsafe {
            let num_across = div_ceil(num_tiles, fitting(down));
            let across = div_ceil(num_tiles, num_across);
            Self { num_groups: num_across * div_ceil(record.height, down * TILE_H), num_across, across, down }
        }
    }

    /// Mask, first column and first row of a group of an image.
    ///
    /// # Safety
    /// The shape is an image's.
    #[inline(always)]
    unsafe fn place(&self, within: u32) -> (u32, u32, u32) {
        // SAFETY: an image has groups.
        unsafe {
            let (slot, part) = div_rem(within, self.num_groups);
            let (y, x) = if self.num_across == 1 { (part, 0) } else { div_rem(part, self.num_across) };
            (slot, TILE_W * self.across * x, self.down * TILE_H * y)
        }
    }
}

/// What the groups of one warp lie in: its part of shared memory. The warps that draw its tiles read it there.
struct Group<'a> {
    args: &'a MaskArgs,
    params: Params,
    lane: u32,
    flags: u32,
    /// Where the warp's part of shared memory begins.
    at: u32,
}

/// Where a group lies, and the part of the window that it is made of.
struct Place {
    /// Row of the selection.
    row: u32,
    image: u32,
    query_idx: u32,
    /// First column and row of the canvas.
    left: u32,
    top: u32,
    /// First window row and column, and columns of it that are in shared memory.
    first_row: u32,
    first_column: u32,
    num_columns: u32,
    /// Whether the cells are in shared memory, and no row has more than two.
    can_blend: bool,
}

impl Place {
    /// First column and row of a tile.
    #[inline(always)]
    fn tile(&self, tile: u32) -> (u32, u32) {
        (self.left + tile % ACROSS * TILE_W, self.top + tile / ACROSS * TILE_H)
    }
}

/// A group that a warp is about to look at.
struct Aim {
    image: u32,
    /// Of the image's rows.
    slot: u32,
    /// Of the selection's.
    row: u32,
    /// First column and row of the canvas.
    left: u32,
    top: u32,
    /// The cells that the group is made of, and those of the lane's tile.
    window_rows: Span,
    window_columns: Span,
    rows: Span,
    columns: Span,
}

impl Aim {
    /// The detection's query; anything where there is no such row.
    ///
    /// # Safety
    /// As [`masks_dense`]; the selection has ended.
    #[inline(always)]
    unsafe fn query_idx(&self, args: &MaskArgs) -> u32 {
        if self.slot >= args.max_detections {
            return 0;
        }
        // SAFETY: a row of the image.
        unsafe { masks::query_of(args, self.row as usize) }
    }
}

/// The cells along one axis that output indices `start` to `end - 1` are made of, and those that they count, see [`counted`].
/// Computed, not looked up: the table would have to be waited for.
#[inline(always)]
fn reach(axis: &Axis, start: u32, end: u32) -> Span {
    let (first, _) = axis.span(start);
    let (last, count) = axis.span(end - 1);
    // Without antialias a last cell is said to have another behind it.
    let cells = Span { start: first, end: (last + count).min(axis.n_in) };
    if axis.scale <= 1.0 {
        return cells;
    }
    let counted = counted(axis, start, end);
    Span { start: cells.start.min(counted.start), end: cells.end.max(counted.end) }
}

/// The cells along one axis that output indices `start` to `end - 1` count: those up to the next index's first. A first index's
/// are all before, the last one's all behind.
#[inline(always)]
fn counted(axis: &Axis, start: u32, end: u32) -> Span {
    Span {
        start: if start == 0 { 0 } else { axis.span(start).0 },
        end: if end == axis.n_out { axis.n_in } else { axis.span(end).0 },
    }
}

/// A lane's tile.
struct Part {
    /// It begins inside the mask, and is one of the group's.
    exists: bool,
    /// Left, top, right and bottom of what the tile has of the content; zeros if it has none, or if no cell is in the window.
    content: [u32; 4],
    /// All of the tile that is inside the mask is content.
    is_covered: bool,
}

impl Part {
    #[inline(always)]
    fn has_content(&self) -> bool {
        self.content[2] > 0
    }

    /// The rows and columns of cells that `span` says of its content: [`reach`] or [`counted`]. Without content, spans that add
    /// nothing to others.
    #[inline(always)]
    fn spans(&self, record: &ImageRecord, flags: u32, span: impl Fn(&Axis, u32, u32) -> Span) -> [Span; 2] {
        if !self.has_content() {
            return [Span { start: u32::MAX, end: 0 }; 2];
        }
        let [x0, y0, x1, y1] = self.content;
        let rows = span(&Axis::rows(record, flags), y0 - record.offset_y, y1 - record.offset_y);
        [rows, span(&Axis::columns(record, flags), x0 - record.offset_x, x1 - record.offset_x)]
    }
}

/// Where rows of a mask go, and how.
#[derive(Clone, Copy)]
struct Out {
    mask_at: u64,
    row_bytes: u32,
    is_packed: bool,
}

impl Out {
    /// Where the pixels of row `y` from column `x` on begin; of bit-packed masks, those of the column's word.
    #[inline(always)]
    fn pixels_at(&self, x: u32, y: u32) -> u64 {
        // A mask is at most 2^28 bytes.
        self.mask_at + (y * self.row_bytes + if self.is_packed { x / 32 * 4 } else { x }) as u64
    }

    /// Stores the zeros and ones of a group: the tiles whose bits are set in `zeros` or `ones`.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// The group begins inside the mask, whose size is `width` x `height`.
    #[track_caller]
    #[inline(always)]
    unsafe fn fill(&self, lane: u32, [left, top]: [u32; 2], [width, height]: [u32; 2], zeros: u32, ones: u32) {
        // Zeros of the upper tiles, of the lower ones, then ones of both.
        let mut part = 0;
        // SAFETY: rows and columns are inside the mask.
        unsafe {
            while part < 2 * DOWN {
                let (is_one, down) = (part >= DOWN, part % DOWN);
                let tiles = (if is_one { ones } else { zeros }) >> (ACROSS * down) & ((1 << ACROSS) - 1);
                let top = top + TILE_H * down;
                part += 1;
                if tiles == 0 || top >= height {
                    continue;
                }
                let num_rows = (height - top).min(TILE_H);
                if self.is_packed {
                    // A lane has two words of each row. Bits behind the width are zero.
                    let mut i = 0;
                    while i < 2 * num_rows {
                        let within = i % 2 * 32 + lane;
                        let x = left + 32 * within;
                        if x < width && tiles >> (32 * within / TILE_W) & 1 != 0 {
                            let word = if width - x < 32 { (1 << (width - x)) - 1 } else { u32::MAX };
                            let at = Global::<u32>::from_address(self.pixels_at(x, top + i / 2));
                            at.store_streaming(0, if is_one { word } else { 0 });
                        }
                        i += 1;
                    }
                } else if self.row_bytes.is_multiple_of(16) {
                    // A lane has 16 pixels of each quarter of a row, which is four tiles.
                    let has = |quarter: u32| {
                        left + 4 * TILE_W * quarter + 16 * lane < width && tiles >> (4 * quarter + lane / 8) & 1 != 0
                    };
                    let (has_0, has_1, has_2, has_3) = (has(0), has(1), has(2), has(3));
                    let word = if is_one { 0x0101_0101 } else { 0 };
                    let mut at = self.pixels_at(left + 16 * lane, top);
                    let mut i = 0;
                    while i < num_rows {
                        let row = Global::<[u32; 4]>::from_address(at);
                        let store = |has: bool, quarter: usize| {
                            if has {
                                row.store_streaming(quarter * (4 * TILE_W / 16) as usize, [word; 4]);
                            }
                        };
                        store(has_0, 0);
                        store(has_1, 1);
                        store(has_2, 2);
                        store(has_3, 3);
                        at += self.row_bytes as u64;
                        i += 1;
                    }
                } else {
                    let mut i = 0;
                    while i < num_rows {
                        let mut rest = tiles;
                        while rest != 0 {
                            let x = left + TILE_W * rest.trailing_zeros();
                            rest &= rest - 1;
                            let nibble = if is_one { 15 } else { 0 };
                            Self::store_row(lane, self.pixels_at(x, top + i), width - x, nibble);
                        }
                        i += 1;
                    }
                }
            }
        }
    }

    /// Stores the tile that begins at column `left` and row `top` of a mask of `width` x `height`: `bits` are four of each row, the
    /// lane's pixels.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// The tile begins inside the mask.
    #[track_caller]
    #[inline(always)]
    unsafe fn store(&self, lane: u32, [left, top]: [u32; 2], [width, height]: [u32; 2], bits: u32) {
        let (at, len) = (self.pixels_at(left, top), width - left);
        let num_rows = (height - top).min(TILE_H);
        // SAFETY: rows below the height, columns below the width.
        unsafe {
            if self.is_packed {
                // Eight lanes have the eight fours of a word, of eight rows: transposed, each has all of a row's.
                let halves = exchange(bits, lane, 4, 0x0000_ffff);
                let quarters = exchange(halves, lane, 2, 0x00ff_00ff);
                let word = exchange(quarters, lane, 1, 0x0f0f_0f0f);
                let (row, word_idx) = (lane % 8, lane / 8);
                if row < num_rows && 32 * word_idx < len {
                    let at = at + (row * self.row_bytes) as u64;
                    Global::<u32>::from_address(at).store_streaming(word_idx as usize, word);
                }
                return;
            }
            let (mut i, mut rest) = (0, bits);
            if (self.row_bytes | at as u32).is_multiple_of(4) {
                // The width is the row's bytes.
                let mut at = at + 4 * lane as u64;
                while i < num_rows {
                    if 4 * lane < len {
                        Global::<u32>::from_address(at).store_streaming(0, bytes_of(rest & 15));
                    }
                    at += self.row_bytes as u64;
                    rest >>= 4;
                    i += 1;
                }
                return;
            }
            while i < num_rows {
                Self::store_row(lane, at + (i * self.row_bytes) as u64, len, rest & 15);
                rest >>= 4;
                i += 1;
            }
        }
    }

    /// Stores the first `len` pixels of a row of a tile, or all: aligned words of four bytes, and bytes where the row's ends
    /// leave a part of such a word to the neighbors.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// `at` is where the row begins in a dense mask.
    #[track_caller]
    #[inline(always)]
    unsafe fn store_row(lane: u32, at: u64, len: u32, nibble: u32) {
        let skew = at as u32 % 4;
        let len = len.min(TILE_W);
        // SAFETY: whole words and single bytes are inside the row.
        unsafe {
            if skew == 0 && len.is_multiple_of(4) {
                if 4 * lane < len {
                    Global::<u32>::from_address(at).store_streaming(lane as usize, bytes_of(nibble));
                }
                return;
            }
            // A lane's word begins `skew` columns before its pixels. What the first lane's has before the row are the row's
            // last pixels, of the last lane.
            let before = warp::warp_shuffle_idx(FULL_MASK, nibble, (lane + 31) % 32);
            let bits = (nibble << 4 | before) >> (4 - skew);
            if 4 * lane >= skew && 4 * lane - skew + 4 <= len {
                let word = Global::<u32>::from_address(at + (4 * lane - skew) as u64);
                word.store_streaming(0, bytes_of(bits & 15));
            } else {
                let mut i = 0;
                while i < 4 {
                    let x = if 4 * lane + i < skew { TILE_W + i - skew } else { 4 * lane + i - skew };
                    if x < len {
                        Global::<u8>::from_address(at + x as u64).store_streaming(0, (bits >> i & 1) as u8);
                    }
                    i += 1;
                }
            }
        }
    }
}

/// A step of a transposition: of lanes `distance` apart, one keeps the fours of bits of `mask` and takes the other's, the other one
/// the rest. Callers: every lane of a warp.
#[track_caller]
#[inline(always)]
fn exchange(bits: u32, lane: u32, distance: u32, mask: u32) -> u32 {
    let other = warp::warp_shuffle_xor(FULL_MASK, bits, distance);
    if lane & distance == 0 {
        bits & mask | (other & mask) << (4 * distance)
    } else {
        bits & !mask | (other & !mask) >> (4 * distance)
    }
}

/// Four bits as four bytes.
#[inline(always)]
fn bytes_of(bits: u32) -> u32 {
    // The product puts copies 7 bits apart, the mask keeps one bit of each.
    bits.wrapping_mul(0x0020_4081) & 0x0101_0101
}

impl<'a> Group<'a> {
    /// The group that a warp of the block looked at, or looks at; `half` is that of shared memory.
    #[inline(always)]
    fn new(args: &'a MaskArgs, params: Params, half: u32, warp: u32) -> Self {
        // Not known to the compiler, which would compute what follows from them before the loop, and hold it.
        let (lane, flags) = (math::opaque(warp::lane_id()), math::opaque(args.flags));
        let idx = thread::block_dim_x() / 32 * half + warp;
        Self { args, params, lane, flags, at: math::opaque(DENSE_WARPS + DENSE_WARP_BYTES * idx) }
    }

    /// An address or a size of the arguments, read where it is used: what is computed from `args` in the loop over the groups
    /// would be computed before it, and held in registers that the loop needs.
    ///
    /// # Safety
    /// A field of eight bytes lies `offset` into the arguments.
    #[inline(always)]
    unsafe fn argument(&self, offset: usize) -> u64 {
        // SAFETY: passed on to the caller.
        unsafe { self.params.load(offset as u32) }
    }

    /// The mask logits of a query.
    ///
    /// # Safety
    /// As [`masks_dense`]; `query_idx` is one of the image's.
    #[inline(always)]
    unsafe fn window(&self, record: &ImageRecord, image: u32, query_idx: u32) -> Window {
        // SAFETY: fields of the arguments; the caller vouches for the query.
        unsafe {
            let mask_h: u32 = self.params.load(core::mem::offset_of!(MaskArgs, mask_h) as u32);
            let mask_w: u32 = self.params.load(core::mem::offset_of!(MaskArgs, mask_w) as u32);
            let grid_idx = image as usize * self.args.num_queries as usize + query_idx as usize;
            Window::of_grid(self.args, record, grid_idx, mask_h, mask_w)
        }
    }

    /// Where the axis tables of an image begin, and where those of its rows.
    #[inline(always)]
    fn tables(&self, image: u32) -> (u64, u32) {
        // SAFETY: fields of the arguments.
        unsafe {
            let stride: u32 = self.params.load(AXES + core::mem::offset_of!(AxesLayout, image_stride) as u32);
            let rows: u32 = self.params.load(AXES + core::mem::offset_of!(AxesLayout, rows_offset) as u32);
            (self.argument(core::mem::offset_of!(MaskArgs, axes_at)) + 16 * (image * stride) as u64, rows)
        }
    }

    /// # Safety
    /// The block has the layout's shared memory.
    #[inline(always)]
    unsafe fn cells(&self) -> Shared<f32> {
        // SAFETY: the caller vouches for it.
        unsafe { Shared::at(self.at + DENSE_WARP_CELLS) }
    }

    /// Which cells the group's rows are made of, and with which weights: their table entries.
    ///
    /// # Safety
    /// As [`Group::cells`].
    #[inline(always)]
    unsafe fn rows(&self) -> Shared<[u32; 4]> {
        // SAFETY: the caller vouches for it.
        unsafe { Shared::at(self.at + DENSE_WARP_ROWS) }
    }

    /// Area, then left, top, right and bottom of the group's foreground.
    ///
    /// # Safety
    /// As [`Group::cells`].
    #[inline(always)]
    unsafe fn stats(&self) -> Shared<u32> {
        // SAFETY: the caller vouches for it.
        unsafe { Shared::at(self.at + DENSE_WARP_STATS) }
    }

    /// The record of the group's image, of which only what is used is read.
    ///
    /// # Safety
    /// It is kept.
    #[inline(always)]
    unsafe fn record(&self) -> ImageRecord {
        // SAFETY: the caller vouches for the words.
        record_of_words(|word| unsafe { Shared::<[u32; 4]>::at(self.at).load(word) })
    }

    /// Keeps the record of an image in shared memory: in registers it would crowd out everything else; and how its masks are cut.
    ///
    /// Callers: every lane of the warp.
    ///
    /// # Safety
    /// As [`masks_dense`]; the image is below the batch.
    #[track_caller]
    #[inline(always)]
    unsafe fn keep(&self, image: u32) {
        // SAFETY: the caller vouches for the image.
        unsafe {
            if self.lane < RECORD_WORDS {
                let offset = core::mem::offset_of!(MaskArgs, records) as u32;
                let is_inline = self.args.batch as usize <= INLINE_IMAGES;
                let records_at = self.args.records_at;
                let word = load_record_word(is_inline, self.params, offset, records_at, image, self.lane);
                Shared::<[u32; 4]>::at(self.at).store(self.lane, word);
            }
            warp::sync_warp(FULL_MASK);
            let Shape { num_groups, num_across, across, down } = Shape::new(&self.record());
            if self.lane == 0 {
                Shared::<[u32; 4]>::at(self.at).store(RECORD_WORDS, [num_groups, num_across, across, down]);
            }
            warp::sync_warp(FULL_MASK);
        }
    }

    /// How masks of the group's image are cut.
    ///
    /// # Safety
    /// The record is kept.
    #[inline(always)]
    unsafe fn shape(&self) -> Shape {
        // SAFETY: the caller vouches for the words.
        let [num_groups, num_across, across, down] = unsafe { Shared::<[u32; 4]>::at(self.at).load(RECORD_WORDS) };
        Shape { num_groups, num_across, across, down }
    }

    /// Where the group lies.
    ///
    /// # Safety
    /// The group's warp has looked at it.
    #[inline(always)]
    unsafe fn place(&self) -> Place {
        // SAFETY: the caller vouches for the words.
        unsafe {
            let words = Shared::<[u32; 4]>::at(self.at + DENSE_WARP_GROUP);
            let ([row, image, left, top], [first_row, first_column, num_columns, query_idx]) =
                (words.load(0), words.load(1));
            let [_, _, can_blend, _] = words.load(2);
            let can_blend = can_blend != 0;
            Place { row, image, query_idx, left, top, first_row, first_column, num_columns, can_blend }
        }
    }

    /// Where a mask goes: that of row `row` of the selection.
    ///
    /// # Safety
    /// As [`masks_dense`].
    #[inline(always)]
    unsafe fn out(&self, record: &ImageRecord, image: u32, row: u32) -> Out {
        let is_packed = self.flags & FLAG_BIT_PACKED != 0;
        let row_bytes = if is_packed { 4 * record.width.div_ceil(32) } else { record.width };
        // A mask is at most 2^28 bytes.
        let mask_bytes = (row_bytes * record.height + 15) & !15;
        // SAFETY: fields of the arguments.
        unsafe {
            let image_at = self.argument(core::mem::offset_of!(MaskArgs, payload_at))
                + image as u64 * self.argument(core::mem::offset_of!(MaskArgs, payload_image_bytes));
            let slot = row - image * self.args.max_detections;
            Out { mask_at: image_at + slot as u64 * mask_bytes as u64, row_bytes, is_packed }
        }
    }

    /// Stores the group's tiles of zeros and ones.
    ///
    /// Callers: every lane of a warp, of the group's or another, after a barrier behind [`Group::look`].
    ///
    /// # Safety
    /// As [`masks_dense`].
    #[track_caller]
    #[inline(always)]
    unsafe fn fill(&self) {
        // SAFETY: the group is of this launch.
        unsafe {
            let [zeros, ones, ..] = Shared::<[u32; 4]>::at(self.at + DENSE_WARP_GROUP).load(2);
            let (place, record) = (self.place(), self.record());
            let out = self.out(&record, place.image, place.row);
            out.fill(self.lane, [place.left, place.top], [record.width, record.height], zeros, ones);
        }
    }

    /// Where item `within` of an image's groups lies, and the cells that it is made of.
    ///
    /// Callers: every lane of the warp.
    ///
    /// # Safety
    /// As [`masks_dense`]; the record is kept.
    #[track_caller]
    #[inline(always)]
    unsafe fn aim(&self, image: u32, within: u32) -> Aim {
        // SAFETY: an image has groups.
        unsafe {
            let record = self.record();
            let (slot, left, top) = self.shape().place(within);
            let row = image * self.args.max_detections + slot;
            let [rows, columns] = self.part(left, top).spans(&record, self.flags, reach);
            let of_warp = |span: Span| Span {
                start: warp::warp_reduce_min(FULL_MASK, span.start),
                end: warp::warp_reduce_max(FULL_MASK, span.end),
            };
            let (window_rows, window_columns) = (of_warp(rows), of_warp(columns));
            Aim { image, slot, row, left, top, window_rows, window_columns, rows, columns }
        }
    }

    /// Looks at a group: keeps its cells, where it lies, and which of its tiles are zeros or ones; returns a bit for each tile that
    /// is mixed.
    ///
    /// Callers: every lane of the warp; valid in all lanes. Cost: a load of cells for most groups.
    ///
    /// # Safety
    /// As [`masks_dense`]; the record is kept, the group is the warp's own, and exists.
    #[track_caller]
    #[inline(always)]
    unsafe fn look(&self, aim: &Aim, query_idx: u32) -> u32 {
        // SAFETY: the group is of this launch; cells are inside the window, and stored in the warp's own room.
        unsafe {
            let Aim { image, row, left, top, window_rows, window_columns, rows, columns, .. } = *aim;
            let record = self.record();
            let num_columns = window_columns.end.saturating_sub(window_columns.start);
            let num_rows = window_rows.end.saturating_sub(window_rows.start);
            let is_shared = num_rows * num_columns <= DENSE_CELLS;

            // Which cells the group's rows are made of: on their way beside the cells. Outside the content there are none.
            let (tables_at, rows_offset) = self.tables(image);
            let y = (top + self.lane).wrapping_sub(record.offset_y);
            let mut entry = [0; 4];
            if self.lane < DOWN * TILE_H && y < record.content_h && num_rows * num_columns > 0 {
                entry = Global::<[u32; 4]>::from_address(tables_at).load_early((rows_offset + y) as usize);
            }

            // Of the tile's cells: whether one is positive, and whether one is not positive or out of the ordinary.
            let (mut has_positive, mut has_other) = (false, false);
            if num_rows * num_columns > 0 {
                let window = self.window(&record, image, query_idx);
                let cells = self.cells();
                let load = |base: u32, r: u32| {
                    let c = window_columns.start + base;
                    window.four(window_rows.start + r, num_rows - 1 - r, c, window_columns.end - 1, self.lane)
                };
                // Rows of the tile, from the window's first.
                let (first_row, num_tile_rows) = (rows.start - window_rows.start, rows.end.saturating_sub(rows.start));
                let (mut base, mut r) = (0, 0);
                let mut four = load(0, 0);
                // Of the tile's rows in these columns: positive ones, and others. Of all cells, the greatest magnitude.
                let (mut positive, mut other, mut magnitude) = (0, 0, 0);
                loop {
                    // The next are on their way meanwhile.
                    let (old_base, old_r) = (base, r);
                    r += 4;
                    if r >= num_rows {
                        (base, r) = (base + 32, 0);
                    }
                    let next = if base < num_columns { load(base, r) } else { [0.0; 4] };
                    let is_kept = is_shared && old_base + self.lane < num_columns;
                    let mut at = old_r * num_columns + old_base + self.lane;
                    let mut visit = |i: u32, cell: f32| {
                        let is_of_tile = (old_r + i).wrapping_sub(first_row) < num_tile_rows;
                        let bits = cell.to_bits();
                        let is_other = bits.wrapping_sub(SMALLEST.to_bits()) > LARGEST.to_bits() - SMALLEST.to_bits();
                        let (positives, others) = (
                            warp::warp_vote_ballot(FULL_MASK, bits as i32 > 0),
                            warp::warp_vote_ballot(FULL_MASK, is_other),
                        );
                        if is_of_tile {
                            positive |= positives;
                            other |= others;
                        }
                        magnitude = magnitude.max(bits & 0x7fff_ffff);
                        if is_kept && old_r + i < num_rows {
                            cells.store(at, cell);
                        }
                        at += num_columns;
                    };
                    let [a, b, c, d] = four;
                    visit(0, a);
                    visit(1, b);
                    visit(2, c);
                    visit(3, d);
                    four = next;
                    if r > 0 {
                        continue;
                    }
                    // These columns are done. The tile's among them:
                    let bits = |end: u32| {
                        let end = end.saturating_sub(window_columns.start + old_base);
                        if end < 32 { (1 << end) - 1 } else { u32::MAX }
                    };
                    let tile_columns = bits(columns.end) & !bits(columns.start);
                    has_positive |= positive & tile_columns != 0;
                    has_other |= other & tile_columns != 0;
                    (positive, other) = (0, 0);
                    if base >= num_columns {
                        break;
                    }
                }
                if warp::warp_vote_any(FULL_MASK, magnitude >= f32::INFINITY.to_bits()) {
                    self.count_nonfinite(aim, query_idx);
                }
            }
            // Counts are in the upper halves.
            let can_blend = is_shared && warp::warp_vote_all(FULL_MASK, entry[0] >> 16 <= 2);
            if self.lane < DOWN * TILE_H {
                self.rows().store(self.lane, entry);
            }
            let group = Self { lane: math::opaque(self.lane), ..*self };
            let part = group.part(left, top);
            let is_full = part.is_covered && has_positive && !has_other;
            let is_mixed = part.has_content() && has_positive && !is_full;
            let ones = warp::warp_vote_ballot(FULL_MASK, is_full);
            let zeros = warp::warp_vote_ballot(FULL_MASK, part.exists && !is_full && !is_mixed);
            let mixed = warp::warp_vote_ballot(FULL_MASK, is_mixed);

            let mut stats = Stats::EMPTY;
            if is_full {
                let [x0, y0, x1, y1] = part.content;
                stats.add((x1 - x0) * (y1 - y0), part.content);
            }
            self.reset_stats();
            if ones != 0 {
                self.add_to_stats(&stats);
            }
            if self.lane < 3 {
                let words = Shared::<[u32; 4]>::at(self.at + DENSE_WARP_GROUP);
                let window = [window_rows.start, window_columns.start, num_columns, query_idx];
                let tiles = [zeros, ones, can_blend as u32, 0];
                let rest = if self.lane == 1 { window } else { tiles };
                words.store(self.lane, if self.lane == 0 { [row, image, left, top] } else { rest });
            }
            mixed
        }
    }

    /// The lane's tile of the group that begins at column `left` and row `top`.
    ///
    /// # Safety
    /// The record is kept.
    #[inline(always)]
    unsafe fn part(&self, left: u32, top: u32) -> Part {
        // SAFETY: the caller vouches for the record.
        let record = unsafe { self.record() };
        let (x, y) = (left + self.lane % ACROSS * TILE_W, top + self.lane / ACROSS * TILE_H);
        let (right, bottom) = ((x + TILE_W).min(record.width), (y + TILE_H).min(record.height));
        // SAFETY: as above.
        let shape = unsafe { self.shape() };
        let is_of_group = self.lane % ACROSS < shape.across && self.lane / ACROSS < shape.down;
        let exists = is_of_group && x < right && y < bottom;
        let (x0, y0) = (x.max(record.offset_x), y.max(record.offset_y));
        let x1 = right.min(record.offset_x + record.content_w);
        let y1 = bottom.min(record.offset_y + record.content_h);
        let has_content = exists && x0 < x1 && y0 < y1 && record.window_w > 0 && record.window_h > 0;
        let content = if has_content { [x0, y0, x1, y1] } else { [0; 4] };
        Part { exists, content, is_covered: has_content && content == [x, y, right, bottom] }
    }

    /// Counts the cells of a group that are not finite. Nothing else is asked for less often.
    ///
    /// Callers: every lane of the warp.
    ///
    /// # Safety
    /// As [`Group::look`].
    #[track_caller]
    #[inline(always)]
    unsafe fn count_nonfinite(&self, aim: &Aim, query_idx: u32) {
        // SAFETY: the caller vouches for the group, whose cells no other group counts; the image has a header.
        unsafe {
            let group = Self { lane: math::opaque(self.lane), ..*self };
            let record = group.record();
            let [rows, columns] = group.part(aim.left, aim.top).spans(&record, self.flags, counted);
            let r_end = warp::warp_reduce_max(FULL_MASK, rows.end);
            let c_end = warp::warp_reduce_max(FULL_MASK, columns.end);
            let first_c = warp::warp_reduce_min(FULL_MASK, columns.start);
            let mut r = warp::warp_reduce_min(FULL_MASK, rows.start);
            let window = group.window(&record, aim.image, query_idx);
            let mut count = 0;
            while r < r_end {
                let mut c = first_c + self.lane;
                while c < c_end {
                    count += !window.cell(r, c).is_finite() as u32;
                    c += 32;
                }
                r += 1;
            }
            let count = warp::warp_reduce_add(FULL_MASK, count);
            if self.lane == 0 && count > 0 {
                let rows_at = self.argument(core::mem::offset_of!(MaskArgs, rows_at));
                let at = rows_at + aim.row as u64 * size_of::<PackedRow>() as u64;
                Global::<u32>::from_address(at).fetch_add(NONFINITE_WORD, count);
            }
        }
    }

    /// Readies the group's sums. Callers: every lane of the warp.
    ///
    /// # Safety
    /// As [`Group::cells`].
    #[track_caller]
    #[inline(always)]
    unsafe fn reset_stats(&self) {
        if self.lane < 5 {
            // SAFETY: five words.
            unsafe { self.stats().store(self.lane, if self.lane == 1 || self.lane == 2 { u32::MAX } else { 0 }) };
        }
        warp::sync_warp(FULL_MASK);
    }

    /// Adds the warp's parts to the group's sums. Callers: every lane of a warp.
    ///
    /// # Safety
    /// As [`Group::cells`].
    #[track_caller]
    #[inline(always)]
    unsafe fn add_to_stats(&self, stats: &Stats) {
        let area = warp::warp_reduce_add(FULL_MASK, stats.area);
        let left = warp::warp_reduce_min(FULL_MASK, stats.tight[0]);
        let top = warp::warp_reduce_min(FULL_MASK, stats.tight[1]);
        let right = warp::warp_reduce_max(FULL_MASK, stats.tight[2]);
        let bottom = warp::warp_reduce_max(FULL_MASK, stats.tight[3]);
        if self.lane == 0 && area > 0 {
            // SAFETY: five words.
            unsafe {
                let words = self.stats();
                words.fetch_add(0, area);
                words.fetch_min(1, left);
                words.fetch_min(2, top);
                words.fetch_max(3, right);
                words.fetch_max(4, bottom);
            }
        }
    }

    /// Adds the group's sums to the selection's row, which began with neutral values.
    ///
    /// Callers: every lane of the group's warp, when its tiles are drawn and a barrier was passed.
    ///
    /// # Safety
    /// The warp has looked at the group.
    #[track_caller]
    #[inline(always)]
    unsafe fn add_stats(&self) {
        // SAFETY: five words of shared memory; the row is one that the selection wrote.
        unsafe {
            if self.lane == 0 && self.stats().load(0) > 0 {
                let rows_at = self.argument(core::mem::offset_of!(MaskArgs, rows_at));
                let at = rows_at + self.place().row as u64 * size_of::<PackedRow>() as u64;
                let (words, stats) = (Global::<u32>::from_address(at), self.stats());
                words.fetch_add(AREA_WORD, stats.load(0));
                words.fetch_min(BOX_WORD, stats.load(1));
                words.fetch_min(BOX_WORD + 1, stats.load(2));
                words.fetch_max(BOX_WORD + 2, stats.load(3));
                words.fetch_max(BOX_WORD + 3, stats.load(4));
            }
        }
    }

    /// Draws a mixed tile of the group.
    ///
    /// Callers: every lane of a warp, of the group's or another, after a barrier behind [`Group::look`].
    ///
    /// # Safety
    /// As [`masks_dense`]; the tile is the warp's own.
    #[track_caller]
    #[inline(always)]
    unsafe fn draw(&self, tile: u32) {
        // SAFETY: the caller vouches for the tile; its rows and columns are inside the mask.
        unsafe {
            let mut bits = 0;
            if !self.blend(tile, &mut bits) {
                bits = self.evaluate(tile);
            }
            let (place, record) = (self.place(), self.record());
            let (left, top) = place.tile(tile);
            let out = self.out(&record, place.image, place.row);
            out.store(self.lane, [left, top], [record.width, record.height], bits);
            let mut stats = Stats::EMPTY;
            if bits != 0 {
                let union = bits | bits >> 16;
                let union = union | union >> 8;
                let union = (union | union >> 4) & 15;
                let x = left + 4 * self.lane;
                let right = x + 32 - union.leading_zeros();
                let bottom = top + 8 - bits.leading_zeros() / 4;
                stats.add(
                    bits.count_ones(),
                    [x + union.trailing_zeros(), top + bits.trailing_zeros() / 4, right, bottom],
                );
            }
            self.add_to_stats(&stats);
        }
    }

    /// The pixels of a mixed tile: four bits a row, the lane's columns. False, and none, if a row or a column has more than two
    /// cells, or the cells are not in shared memory.
    ///
    /// Callers: every lane of a warp; the answer is the same in all.
    ///
    /// # Safety
    /// As [`Group::draw`].
    #[track_caller]
    #[inline(always)]
    unsafe fn blend(&self, tile: u32, bits: &mut u32) -> bool {
        let is_bilinear = self.flags & FLAG_BILINEAR != 0;
        // SAFETY: the group is of this launch; table entries are those of the content; what rows and columns of the tile are
        // made of was kept.
        unsafe {
            let place = self.place();
            if !place.can_blend {
                return false;
            }
            let (left, _) = place.tile(tile);
            let record = self.record();
            // The lanes have the entries of four columns each. Outside the content there are no cells.
            let (tables_at, _) = self.tables(place.image);
            let entries = Global::<[u32; 4]>::from_address(tables_at);
            let x = (left + 4 * self.lane).wrapping_sub(record.offset_x);
            let entry = |i: u32| {
                let x = x.wrapping_add(i);
                if x < record.content_w { entries.load_early(x as usize) } else { [0; 4] }
            };
            let (c0, c1, c2, c3) = (entry(0), entry(1), entry(2), entry(3));
            // Counts are in the upper halves.
            let most = c0[0].max(c1[0]).max(c2[0].max(c3[0])) >> 16;
            if warp::warp_vote_any(FULL_MASK, most > 2) {
                return false;
            }
            let column = |entry: [u32; 4]| Column::new(entry, record.window_w, place.first_column, is_bilinear);
            let (c0, c1, c2, c3) = (column(c0), column(c1), column(c2), column(c3));
            let last_row = record.window_h - 1;
            let cells = self.cells();
            let stretched = |r: u32| {
                let at = (r.min(last_row) - place.first_row) * place.num_columns;
                [c0.blend(cells, at), c1.blend(cells, at), c2.blend(cells, at), c3.blend(cells, at)]
            };

            // The window rows above and below, in this lane's columns, and which they are.
            let (mut above, mut below, mut span) = ([0.0; 4], [0.0; 4], 0);
            let rows = self.rows();
            let mut i = 0;
            while i < TILE_H {
                let [row_span, w0, w1, _] = rows.load(tile / ACROSS * TILE_H + i);
                let (first, count) = (row_span & 0xffff, row_span >> 16);
                let (w0, w1) = (f32::from_bits(w0), f32::from_bits(w1));
                if row_span != span && count > 0 {
                    // One row further, the row below becomes the one above.
                    let is_next = span >> 16 == 2 && span & 0xffff == first.wrapping_sub(1);
                    above = if is_next { below } else { stretched(first) };
                    // What a cell that does not exist adds is zero, even next to infinity.
                    below = if count == 2 { stretched(first + 1) } else { [0.0; 4] };
                    span = row_span;
                }
                // Rows outside the content have weights of zero.
                let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (above, below);
                let is_foreground = |a: f32, b: f32| {
                    let value = if is_bilinear { math::fma(w0, a, w1 * b) } else { math::fma(b, w1, a * w0) };
                    (value > 0.0) as u32
                };
                let nibble = is_foreground(a0, b0)
                    | is_foreground(a1, b1) << 1
                    | is_foreground(a2, b2) << 2
                    | is_foreground(a3, b3) << 3;
                *bits |= nibble << (4 * i);
                i += 1;
            }
        }
        true
    }

    /// The pixels of a tile as [`blend`](Self::blend) has them, one by one, whatever its cells and axes are.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// As [`Group::draw`].
    #[inline(always)]
    unsafe fn evaluate(&self, tile: u32) -> u32 {
        let mut bits = 0;
        let mut j = 0;
        while j < 4 * TILE_H {
            // SAFETY: the row is of this launch; pixels are inside the content.
            unsafe {
                // Nothing is held in registers from one round to the next, where tiles that are not plain need them.
                let group = Self { at: math::opaque(self.at), ..*self };
                let place = group.place();
                let (left, top) = place.tile(tile);
                let (tables_at, rows_offset) = group.tables(place.image);
                let geometry = Geometry::of_tables(group.record(), self.flags, tables_at, rows_offset);
                let record = &geometry.record;
                let window = group.window(record, place.image, place.query_idx);
                let x = (left + 4 * self.lane + j % 4).wrapping_sub(record.offset_x);
                let y = (top + j / 4).wrapping_sub(record.offset_y);
                let is_foreground = x < record.content_w
                    && y < record.content_h
                    && window.is_foreground(&geometry, &geometry.column(x), y);
                bits |= (is_foreground as u32) << j;
            }
            j = math::opaque(j) + 1;
        }
        bits
    }
}

/// A column of one or two cells, of those that a group has in shared memory; or of none, outside the content.
#[derive(Clone, Copy)]
struct Column {
    taps: Taps,
    /// Its cells' indices in a row.
    first: u32,
    second: u32,
}

impl Column {
    #[inline(always)]
    fn new(entry: [u32; 4], window_w: u32, first_column: u32, is_bilinear: bool) -> Self {
        let taps = Taps::new(entry, window_w, is_bilinear);
        // Outside the content it is said to have the first cell, with weights of zero.
        let idx = |c: u32| c.max(first_column) - first_column;
        Self { taps, first: idx(taps.first), second: idx(taps.second) }
    }

    /// Its value in the row of cells that begins at `at`: the horizontal pass.
    ///
    /// # Safety
    /// The row has been kept.
    #[inline(always)]
    unsafe fn blend(&self, cells: Shared<f32>, at: u32) -> f32 {
        // SAFETY: the caller vouches for the row.
        unsafe { self.taps.blend(cells.load(at + self.first), cells.load(at + self.second)) }
    }
}

const NONFINITE_WORD: usize = core::mem::offset_of!(PackedRow, nonfinite_mask_logits) / 4;
const BOX_WORD: usize = core::mem::offset_of!(PackedRow, mask_xyxy) / 4;
const AREA_WORD: usize = core::mem::offset_of!(PackedRow, mask_area) / 4;
const LEN_WORD: usize = core::mem::offset_of!(PackedRow, mask_len) / 4;

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

//! Stages 3 and 4 for run lengths: masks as COCO counts or as COCO's compressed string, without touching pixels.
//!
//! In short:
//!
//! ```text
//! signs    = a bit for each cell of the mask                                              (crate::signs)
//! columns  = for each output column, a bit for each window row: does the sign change here?
//! position = for each change, the output row where it shows: a bisection between two window rows
//! counts   = differences of positions; text = differences of counts, two apart, in groups of five bits
//! ```
//!
//! A block makes a whole mask. What makes it fast:
//!
//! 1. Arithmetic happens only where two neighbor cells have different signs, and in the bisections; the rest is bits.
//! 2. A warp takes a tile of output columns. They lie between the same few cells, so its lanes take the same branches.
//! 3. Only tiles that live cells reach are looked at.
//! 4. A tile's number of changes is known before any position is, so each position is written to its final place, and
//!    the encoder works on all of them at once.
//!
//! Why the bits give the exact number of changes: between two window rows an output column is monotone (see
//! [`crate::columns`]), so a change of sign between them is one change of state, unless no output row shows it. A single
//! window row of its own sign may fall between two output rows; such *islands* are evaluated and removed. Longer ones show:
//! every group of rows has a row. The first and last output row have the sign of the first and last window row, because
//! there is one cell under them.
//!
//! Columns whose values are out of the ordinary (NaN, infinities, underflow), images that are lower than the window, and
//! windows without room in shared memory are evaluated pixel by pixel, twice: to count, and to place.

use rfdetr_post_core::packed::{
    FLAG_RLE_STRING, GROUP_IS_IRREGULAR, IMAGE_PLAIN_ROWS, ImageHeader, ImageRecord, MaskArgs, RleLayout,
    shared::masks::{self as layout, TILE},
};

use crate::{
    columns::{Cells, Geometry, HAS_EMPTY, HAS_IRREGULAR, Taps, Window},
    masks::{self, Stats, Work},
    scan::{block_exclusive_add, div_ceil, div_rem, warp_inclusive_add},
    signs::{Signs, Span},
    simt::{
        global::Global,
        grid, math,
        params::Params,
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// Word of the counters: what the row groups hold.
const GROUPS_FOUND: u32 = 7;
/// A tile's start carries this bit if its columns are evaluated pixel by pixel.
const TILE_IS_ODD: u32 = 1 << 31;

/// Shared memory of the encoder.
#[derive(Clone, Copy)]
struct Scratch {
    transitions: Shared<u32>,
    stage: Shared<u8>,
    stage_words: Shared<[u32; 4]>,
}

/// Turns transitions into counts or text, window by window.
struct Encoder {
    scratch: Scratch,
    payload_at: u64,
    capacity: u32,
    is_string: bool,
    /// Transitions encoded so far.
    num_counts: u32,
    /// Bytes of text that left the stage: a multiple of 16.
    flushed: u32,
    /// Bytes of text in the stage: below 16 between rounds.
    staged: u32,
    /// This thread's part of the foreground pixels.
    area: u32,
}

impl Encoder {
    /// Callers: every thread of the block. A barrier is owed before the first window.
    ///
    /// # Safety
    /// `payload_at` has room for `capacity` elements and is 16-byte aligned.
    #[inline(always)]
    unsafe fn new(scratch: Scratch, payload_at: u64, capacity: u32, is_string: bool) -> Self {
        if thread::thread_idx_x() < 3 {
            // SAFETY: before the first transition there are three at position 0.
            unsafe { scratch.transitions.store(thread::thread_idx_x(), 0) };
        }
        Self { scratch, payload_at, capacity, is_string, num_counts: 0, flushed: 0, staged: 0, area: 0 }
    }

    /// Encodes the `len` transitions of the window, which lie behind the three before them.
    ///
    /// Callers: every thread of the block, after a barrier. Ends with a barrier.
    ///
    /// # Safety
    /// `len` is at most the window.
    #[track_caller]
    #[inline(always)]
    unsafe fn encode(&mut self, len: u32) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        let transitions = self.scratch.transitions;
        let mut base = 0;
        while base < len {
            // Two in a row for each thread: one prefix sum then orders twice as many.
            let first = base + 2 * tid;
            let at = |i: u32| {
                // SAFETY: three words before the window, then the window.
                if first + i < len + 3 { unsafe { transitions.load(first + i) } } else { 0 }
            };
            let [t0, t1, t2, t3, t4] = [0, 1, 2, 3, 4].map(at);
            let coded = [self.code(first, len, [t0, t1, t2, t3]), self.code(first + 1, len, [t1, t2, t3, t4])];
            if self.is_string {
                // SAFETY: the stage has room for 6 characters a transition and 15 left over.
                unsafe { self.write_text(coded) };
            }
            base += 2 * block;
        }
        self.num_counts += len;
        thread::sync_threads();
        let mut carry = 0;
        if tid < 3 {
            // SAFETY: the last three transitions, of this window or before it.
            carry = unsafe { transitions.load(len + tid) };
        }
        thread::sync_threads();
        if tid < 3 {
            // SAFETY: the words before the window.
            unsafe { transitions.store(tid, carry) };
        }
        thread::sync_threads();
    }

    /// Codes the count that ends with transition `i` of the window, the last of four transitions in a row: the value and
    /// its number of characters. Counts of foreground go to the area; uncompressed counts to the payload.
    #[inline(always)]
    fn code(&mut self, i: u32, len: u32, [t3, t2, t1, t0]: [u32; 4]) -> (i32, u32) {
        if i >= len {
            return (0, 0);
        }
        let count = t0 - t1;
        let idx = self.num_counts + i;
        if idx % 2 == 1 {
            self.area += count;
        }
        if !self.is_string {
            if idx < self.capacity {
                // SAFETY: below the capacity.
                unsafe { Global::<u32>::from_address(self.payload_at).store(idx as usize, count) };
            }
            return (0, 0);
        }
        let value = if idx > 2 { count as i32 - (t2 - t3) as i32 } else { count as i32 };
        // Five bits a character, and one bit for the sign.
        let magnitude = if value < 0 { !value } else { value } as u32;
        (value, (32 - magnitude.leading_zeros() + 1).div_ceil(5))
    }

    /// Appends two coded values behind those of the threads below; sends whole words on their way.
    ///
    /// # Safety
    /// Every thread of the block calls this; a value has at most 6 characters.
    #[track_caller]
    #[inline(always)]
    unsafe fn write_text(&mut self, coded: [(i32, u32); 2]) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        let (stage, stage_words) = (self.scratch.stage, self.scratch.stage_words);
        // SAFETY: barriers separate the uses of scan scratch and stage; the payload is not written past its capacity.
        unsafe {
            let [(first, first_len), (second, second_len)] = coded;
            let (before, total) = block_exclusive_add(first_len + second_len, masks::scratch());
            let mut at = self.staged + before;
            let (mut rest, mut left, mut is_second) = (first, first_len, false);
            // One loop for both.
            while !is_second || left > 0 {
                if left == 0 {
                    (rest, left, is_second) = (second, second_len, true);
                    continue;
                }
                left -= 1;
                let more = if left > 0 { 32 } else { 0 };
                stage.store(at, (48 + (rest & 31) + more) as u8);
                rest >>= 5;
                at += 1;
            }
            thread::sync_threads();
            let len = self.staged + total;
            let num_words = len / 16;
            let mut word = tid;
            while word < num_words {
                if self.flushed + 16 * word + 16 <= self.capacity {
                    Global::<[u32; 4]>::from_address(self.payload_at + self.flushed as u64)
                        .store(word as usize, stage_words.load(word));
                }
                word += block;
            }
            let rest = len % 16;
            let mut moved = 0;
            if tid < rest {
                moved = stage.load(16 * num_words + tid);
            }
            thread::sync_threads();
            if tid < rest {
                stage.store(tid, moved);
            }
            self.flushed += 16 * num_words;
            self.staged = rest;
        }
    }

    /// Ends the text; returns the number of elements of the mask.
    ///
    /// # Safety
    /// Every thread of the block calls this, after the last window.
    #[track_caller]
    #[inline(always)]
    unsafe fn finish(&mut self) -> u32 {
        if !self.is_string {
            return self.num_counts;
        }
        let tid = thread::thread_idx_x();
        // SAFETY: the first word of the stage; the payload is not written past its capacity.
        unsafe {
            if tid >= self.staged && tid < 16 {
                self.scratch.stage.store(tid, 0);
            }
            thread::sync_threads();
            if tid == 0 && self.staged > 0 && self.flushed + 16 <= self.capacity {
                Global::<[u32; 4]>::from_address(self.payload_at + self.flushed as u64)
                    .store(0, self.scratch.stage_words.load(0));
            }
        }
        self.flushed + self.staged
    }
}

/// Makes the run lengths of every detection of the batch.
///
/// Callers: every thread of every block.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises, and the block has the shared memory of `args.rle`.
#[inline(always)]
pub unsafe fn masks_rle(args: &MaskArgs, params: Params) {
    grid::depend_wait();
    // SAFETY: the selection has ended; the plan gave this kernel the layout's shared memory.
    unsafe {
        let work = Work::new(args, |_, num_detections| num_detections);
        let num_masks = work.num_items;
        if num_masks == 0 {
            if thread::block_idx_x() == 0 {
                masks::publish_all(args, 0);
            }
            return;
        }
        let mut item = thread::block_idx_x();
        let mut copied_image = u32::MAX;
        while item < num_masks {
            let (image, slot) = work.image_of(item);
            mask(args, params, image, slot, image != copied_image);
            copied_image = image;
            masks::finish_mask(args, num_masks);
            item += thread::grid_dim_x();
        }
    }
}

/// Makes the run lengths of one mask. `copies`: the block made none of this image just before.
///
/// # Safety
/// As [`masks_rle`]; the mask is the block's own.
#[inline(always)]
unsafe fn mask(args: &MaskArgs, params: Params, image: u32, slot: u32, copies: bool) {
    let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
    // SAFETY: image and slot are of this launch; shared memory is used inside its layout; barriers separate the phases.
    unsafe {
        let counters = masks::counters();
        let odd = Shared::<u32>::at(layout::ODD);
        let row = masks::row_idx(args, image, slot);
        masks::keep_record(args, params, image, row);
        Signs::reset(counters, odd, layout::ODD_WORDS);
        if copies && tid == 0 {
            counters.store(GROUPS_FOUND, 0);
        }
        thread::sync_threads();
        let signs = load(args, image, copies);
        if tid == 0 {
            masks::add_nonfinite(args, image, signs.nonfinite);
        }
        let mask = Mask { args, image, signs, found: counters.load(GROUPS_FOUND) };
        let is_string = args.flags & FLAG_RLE_STRING != 0;
        let offset = slot * args.mask_capacity;
        let element = if is_string { 1 } else { 4 };
        let payload_at = args.payload_at + image as u64 * args.payload_image_bytes + offset as u64 * element;
        let scratch = Scratch {
            transitions: Shared::at(args.rle.transitions_offset),
            stage: Shared::at(args.rle.stage_offset),
            stage_words: Shared::at(args.rle.stage_offset),
        };
        let mut encoder = Encoder::new(scratch, payload_at, args.mask_capacity, is_string);
        let starts = Shared::<u32>::at(layout::TILE_STARTS);
        let carries = Shared::<u32>::at(layout::TILE_CARRIES);

        let (live, num_pixels, batch) = mask.columns().extent();
        let batch = batch.min(block).min(layout::MAX_TILES);
        let num_tiles = div_ceil(live.end - live.start, TILE);
        let num_warps = block / 32;
        let mut stats = Stats::EMPTY;
        let mut first_tile = 0;
        loop {
            let num = (num_tiles - first_tile).min(batch);
            let is_last = first_tile + num == num_tiles;
            let mut tile = warp::warp_id();
            while tile < num {
                let x0 = live.start + TILE * (first_tile + tile);
                let (count, carry, is_odd) = mask.columns().count(tile, x0, live.end, &mut stats);
                if warp::lane_id() == 0 {
                    starts.store(tile, count | if is_odd { TILE_IS_ODD } else { 0 });
                    carries.store(tile, carry);
                }
                tile += num_warps;
            }
            thread::sync_threads();
            let start = if tid < num { starts.load(tid) } else { 0 };
            let (before, total) = block_exclusive_add(start & !TILE_IS_ODD, masks::scratch());
            if tid < num {
                starts.store(tid, before | start & TILE_IS_ODD);
            }
            // The last run ends with the mask.
            let total = total + is_last as u32;
            thread::sync_threads();

            let mut start = 0;
            while start < total {
                let len = (total - start).min(args.rle.window);
                let place = Place { transitions: scratch.transitions, start, len };
                let mut tile = warp::warp_id();
                while tile < num {
                    let first = starts.load(tile);
                    let end = if tile + 1 < num { starts.load(tile + 1) & !TILE_IS_ODD } else { total };
                    if first & !TILE_IS_ODD < start + len && end > start {
                        let x0 = live.start + TILE * (first_tile + tile);
                        mask.columns().place(tile, x0, live.end, first, carries.load(tile), &place, &mut stats);
                    }
                    tile += num_warps;
                }
                if is_last && tid == 0 {
                    place.at(total - 1, num_pixels);
                }
                thread::sync_threads();
                encoder.encode(len);
                start += len;
            }
            first_tile += num;
            if is_last {
                break;
            }
        }
        let len = encoder.finish();
        stats.area = encoder.area;
        let stats = stats.block_sum();
        if tid == 0 {
            masks::write_result_row(args, row, &stats, offset, len, encoder.num_counts);
            let word = image as usize * size_of::<ImageHeader>() + core::mem::offset_of!(ImageHeader, needed_mask_len);
            Global::<u32>::from_address(args.headers_at).fetch_max(word / 4, len);
        }
    }
}

/// Copies row groups and weights, if `copies`, and loads the signs of the mask that the block keeps the record of.
///
/// Callers: every thread of the block; valid in all threads.
///
/// # Safety
/// As [`mask`].
#[track_caller]
#[inline(always)]
unsafe fn load(args: &MaskArgs, image: u32, copies: bool) -> Signs {
    // SAFETY: the caller vouches for the record; shared memory is used inside its layout.
    unsafe {
        let mut geometry = Geometry::new(args, masks::kept_record(), image);
        // Tables of an empty window do not exist, and single rows need no groups.
        if !geometry.is_empty() && geometry.record.flags & IMAGE_PLAIN_ROWS == 0 {
            let found = geometry.share_rows(&args.rle, copies);
            if found != 0 {
                masks::counters().fetch_or(GROUPS_FOUND, found);
            }
        }
        let window = Window::new(args, &geometry.record, image, masks::kept_query());
        let rows = Span { start: 0, end: geometry.record.window_h };
        let words = has_room(&args.rle, &geometry.record).then_some(args.rle.signs_offset);
        let odd = Shared::<u32>::at(layout::ODD);
        Signs::load(&cells(&args.rle, &geometry.record, window), rows, rows, words, odd, masks::counters())
    }
}

/// The cells of a mask, in shared memory if they have room.
///
/// # Safety
/// The block has the shared memory of `rle`.
#[inline(always)]
unsafe fn cells(rle: &RleLayout, record: &ImageRecord, window: Window) -> Cells {
    Cells {
        window,
        // SAFETY: the caller vouches for it.
        shared: unsafe { Shared::at(rle.cells_offset) },
        is_shared: record.window_w * record.window_h <= rle.num_cells,
        num_columns: record.window_w,
    }
}

/// Whether signs, groups and crossings of an image have room in shared memory.
#[inline(always)]
fn has_room(rle: &RleLayout, record: &ImageRecord) -> bool {
    let num_words = record.window_h.div_ceil(32);
    record.window_w * num_words <= rle.num_sign_words
        && record.window_w <= 32 * layout::ODD_WORDS
        && 32 * num_words <= rle.num_crossing_words
        && record.window_h <= rle.num_groups
}

/// What the phases of one mask hand on.
#[derive(Clone, Copy)]
struct Mask<'a> {
    args: &'a MaskArgs,
    image: u32,
    signs: Signs,
    /// What the row groups hold.
    found: u32,
}

impl Mask<'_> {
    /// The mask's columns, as one phase sees them: everything is read anew.
    ///
    /// # Safety
    /// The block keeps the record.
    #[inline(always)]
    unsafe fn columns(&self) -> Columns {
        let args = self.args;
        // SAFETY: the caller vouches for the record; `copies` is not asked for.
        unsafe {
            let mut geometry = Geometry::new(args, masks::kept_record(), self.image);
            geometry.share_rows(&args.rle, false);
            let record = geometry.record;
            let has_room = has_room(&args.rle, &record);
            Columns {
                geometry,
                cells: cells(&args.rle, &record, Window::new(args, &record, self.image, masks::kept_query())),
                signs: self.signs,
                crossings: Shared::at(args.rle.crossings_offset),
                num_crossing_words: args.rle.num_crossing_words,
                is_fast: has_room && record.flags & IMAGE_PLAIN_ROWS == 0 && self.found & HAS_EMPTY == 0,
                has_irregular: self.found & HAS_IRREGULAR != 0,
                joins: record.offset_y == 0 && record.content_h == record.height,
                num_pixels: record.width * record.height,
            }
        }
    }
}

/// A window of transitions.
#[derive(Clone, Copy)]
struct Place {
    transitions: Shared<u32>,
    start: u32,
    len: u32,
}

impl Place {
    /// Whether transition `idx` is in the window.
    #[inline(always)]
    fn has(&self, idx: u32) -> bool {
        idx >= self.start && idx - self.start < self.len
    }

    /// Writes transition `idx`, if it is in the window.
    ///
    /// # Safety
    /// Nobody else writes it.
    #[inline(always)]
    unsafe fn at(&self, idx: u32, position: u32) {
        if self.has(idx) {
            // SAFETY: inside the window, behind the three words before it.
            unsafe { self.transitions.store(3 + idx - self.start, position) };
        }
    }
}

/// What [`Columns::store_crossings`] found in a column.
struct Found {
    /// Changes of state, from background above the first row on.
    count: u32,
    /// First state.
    top: bool,
    /// Last state.
    bottom: bool,
    /// Whether any row is foreground.
    any: bool,
    /// The column must be evaluated pixel by pixel; the rest means nothing.
    is_odd: bool,
}

/// The columns of one mask.
struct Columns {
    geometry: Geometry,
    cells: Cells,
    signs: Signs,
    crossings: Shared<u32>,
    num_crossing_words: u32,
    /// Signs and crossings can be used.
    is_fast: bool,
    has_irregular: bool,
    /// The last pixel of a column and the first of the next are neighbors in the mask, and both are content.
    joins: bool,
    num_pixels: u32,
}

impl Columns {
    /// The columns to look at, the number of pixels, and how many tiles have room for their crossings.
    #[inline(always)]
    fn extent(&self) -> (Span, u32, u32) {
        let tile_words = 32 * if self.is_fast { self.signs.num_words.max(1) } else { 1 };
        // SAFETY: a tile has words.
        (self.live(), self.num_pixels, unsafe { div_rem(self.num_crossing_words, tile_words).0 })
    }

    /// Content columns that may have foreground, and at least one more behind them if there is one.
    #[inline(always)]
    fn live(&self) -> Span {
        let content_w = if self.geometry.is_empty() { 0 } else { self.geometry.record.content_w };
        if !self.is_fast {
            return Span { start: 0, end: content_w };
        }
        let live = self.signs.live;
        if live.end == 0 || content_w == 0 {
            return Span { start: 0, end: 0 };
        }
        // An estimate that is never too narrow: the filter reaches `support` cells from a center; rounding is far below
        // the cell and the columns added.
        let axis = &self.geometry.columns;
        let reach = axis.support + 1.5;
        let start = math::div(live.start as f32 - reach, axis.scale) as i32 - 2;
        let end = math::div(live.end as f32 + reach, axis.scale) as i32 + 3;
        Span { start: start.max(0) as u32, end: end.max(0).min(content_w as i32) as u32 }
    }

    /// Flat position of the first content pixel of column `x`.
    #[inline(always)]
    fn base(&self, x: u32) -> u32 {
        (self.geometry.record.offset_x + x) * self.geometry.record.height + self.geometry.record.offset_y
    }

    /// Whether the run that reaches the bottom of column `x` ends there: it is no part of the next column's, and does not
    /// end with the mask.
    #[inline(always)]
    fn ends_at_bottom(&self, x: u32) -> bool {
        let record = &self.geometry.record;
        !(self.joins && x + 1 < record.content_w) && self.base(x) + record.content_h < self.num_pixels
    }

    /// Where this lane's crossings of word `k` lie.
    #[inline(always)]
    fn crossing_idx(&self, tile: u32, k: u32) -> u32 {
        (tile * self.signs.num_words + k) * 32 + warp::lane_id()
    }

    /// Counts the transitions of a tile of columns, and stores where they are: the number, each column's state before its
    /// first row as a bit of its lane, and whether the columns are evaluated pixel by pixel.
    ///
    /// Lane 0 has the column before the tile, for its last state only.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// The tile has room for its crossings; `x0` is below `x_end`.
    #[track_caller]
    #[inline(always)]
    unsafe fn count(&self, tile: u32, x0: u32, x_end: u32, stats: &mut Stats) -> (u32, u32, bool) {
        let record = &self.geometry.record;
        let lane = warp::lane_id();
        let is_looked_at = x0 + lane > 0 && x0 + lane - 1 < x_end;
        let is_column = is_looked_at && lane > 0;
        let x = if is_looked_at { x0 + lane - 1 } else { x0 };
        // SAFETY: columns are inside the content, rows inside the window; a lane reads and writes its own crossings.
        unsafe {
            let column = self.geometry.column(x);
            let mut is_odd = !self.is_fast;
            // The column's changes from background, its first and its last state.
            let (mut count, mut top, mut bottom) = (0, false, false);
            if self.is_fast && is_looked_at {
                let found = self.store_crossings(tile, &column);
                (count, top, bottom, is_odd) = (found.count, found.top, found.bottom, found.is_odd);
                if found.any && is_column {
                    // Rows come with the positions, but for those that have none.
                    let (first, last) = (record.offset_y, record.offset_y + record.content_h);
                    let at = record.offset_x + x;
                    let (low, high) = (if top { first } else { u32::MAX }, if bottom { last } else { 0 });
                    stats.add(0, [at, low, at + 1, high]);
                }
            }
            let is_odd = warp::warp_vote_any(FULL_MASK, is_odd);
            if is_odd {
                (count, top, bottom) = (0, false, false);
                let mut y = if is_column { 0 } else { record.content_h - 1 };
                while is_looked_at && y < record.content_h {
                    let state = self.cells.window.is_foreground(&self.geometry, &column, y);
                    if state && is_column {
                        let at = (record.offset_x + x, record.offset_y + y);
                        stats.add(0, [at.0, at.1, at.0 + 1, at.1 + 1]);
                    }
                    top |= state && y == 0;
                    count += (state != bottom) as u32;
                    bottom = state;
                    y += 1;
                }
            }
            let bottoms = warp::warp_vote_ballot(FULL_MASK, bottom);
            let before = self.joins && bottoms << 1 >> lane & 1 != 0;
            // The first row was compared with background.
            count = count + (top != before) as u32 - top as u32 + (bottom && self.ends_at_bottom(x)) as u32;
            if is_odd {
                self.crossings.store(self.odd_idx(tile), count);
            } else if before && is_column {
                let idx = self.crossing_idx(tile, 0);
                self.crossings.store(idx, self.crossings.load(idx) ^ 1);
            }
            let total = warp::warp_reduce_add(FULL_MASK, if is_column { count } else { 0 });
            (total, warp::warp_vote_ballot(FULL_MASK, before), is_odd)
        }
    }

    /// Where a lane of an odd tile keeps its number of transitions.
    #[inline(always)]
    fn odd_idx(&self, tile: u32) -> u32 {
        let words = if self.is_fast { self.signs.num_words } else { 1 };
        tile * words * 32 + warp::lane_id()
    }

    /// The bits of word `k` that are window rows.
    #[inline(always)]
    fn row_bits(&self, k: u32) -> u32 {
        let left = self.geometry.record.window_h - 32 * k;
        if left >= 32 { u32::MAX } else { (1 << left) - 1 }
    }

    /// Stores where the signs of a column change, as if above it were background, without the changes that no output row
    /// shows.
    ///
    /// # Safety
    /// As [`Columns::count`].
    #[inline(always)]
    unsafe fn store_crossings(&self, tile: u32, column: &Taps) -> Found {
        let num_words = self.signs.num_words;
        let last = self.geometry.record.window_h - 1;
        // SAFETY: the caller vouches for tile and column; groups are those of window rows.
        unsafe {
            let mut found = Found { count: 0, top: false, bottom: false, any: false, is_odd: self.signs.is_odd(column) };
            if found.is_odd {
                return found;
            }
            // The word before, this one and the next; of the word before, also what of it is shown.
            let (mut before, mut word, mut shown_before) = (0, 0, 0);
            let mut k = 0;
            while k <= num_words {
                let mut next = 0;
                if k < num_words {
                    let (signs, is_tiny) = self.signs.column(&self.cells, column, k);
                    next = signs;
                    found.is_odd |= is_tiny;
                }
                if k > 0 {
                    let rows = self.row_bits(k - 1);
                    // Rows that differ from both neighbors, but for the first and the last, which show.
                    let below = word >> 1 | next << 31;
                    let mut islands = (word ^ (word << 1 | before >> 31)) & (word ^ below) & rows;
                    if k == 1 {
                        islands &= !1;
                    }
                    if k - 1 == last / 32 {
                        islands &= !(1 << (last % 32));
                    }
                    let mut shown = word;
                    if islands != 0 {
                        shown ^= self.hidden(column, 32 * (k - 1), islands, word);
                    }
                    if self.has_irregular {
                        let changes = word ^ below;
                        // Bits of the word's rows and of two below.
                        let asked = changes | changes >> 1 | (next ^ next >> 1) << 31;
                        found.is_odd |= !self.is_monotone(column, 32 * (k - 1), asked & rows, word, below);
                    }
                    let crossings = (shown ^ (shown << 1 | shown_before >> 31)) & rows;
                    self.crossings.store(self.crossing_idx(tile, k - 1), crossings);
                    found.count += crossings.count_ones();
                    found.any |= shown != 0;
                    found.top |= k == 1 && shown & 1 != 0;
                    found.bottom = shown >> (last % 32) & 1 != 0;
                    shown_before = shown;
                }
                (before, word) = (word, next);
                k += 1;
            }
            found
        }
    }

    /// Of the rows `islands` of a word that begins with window row `first_row`, those that no output row shows. An island
    /// shows in the output row above its own group, or in the first of its group.
    ///
    /// # Safety
    /// As [`Columns::count`].
    #[inline(always)]
    unsafe fn hidden(&self, column: &Taps, first_row: u32, islands: u32, word: u32) -> u32 {
        let (mut rest, mut hidden) = (islands, 0);
        while rest != 0 {
            let bit = rest.trailing_zeros();
            rest &= rest - 1;
            // SAFETY: an island has window rows above and below, and every group has output rows.
            unsafe {
                let y = self.geometry.group_end(first_row + bit - 1) & !GROUP_IS_IRREGULAR;
                let is_positive = word >> bit & 1 != 0;
                let is_shown = (self.cells.pixel(&self.geometry, column, y - 1) > 0.0) == is_positive
                    || (self.cells.pixel(&self.geometry, column, y) > 0.0) == is_positive;
                hidden |= (!is_shown as u32) << bit;
            }
        }
        hidden
    }

    /// Whether the rows of the irregular groups among `asked` have the states that the signs of their window rows say: the
    /// first's (`word`), then the second's (`below`). The last row of such a group has three cells, the third with next to
    /// no weight.
    ///
    /// # Safety
    /// As [`Columns::count`].
    #[inline(always)]
    unsafe fn is_monotone(&self, column: &Taps, first_row: u32, asked: u32, word: u32, below: u32) -> bool {
        let (mut rest, mut is_monotone) = (asked, true);
        while rest != 0 {
            let bit = rest.trailing_zeros();
            rest &= rest - 1;
            let r = first_row + bit;
            // SAFETY: rows of the group, which has a window row below.
            unsafe {
                let end = self.geometry.group_end(r);
                if r + 1 == self.geometry.record.window_h || end & GROUP_IS_IRREGULAR == 0 {
                    continue;
                }
                let (end, start) = (end & !GROUP_IS_IRREGULAR, self.group_start(r));
                let (from, to) = (word >> bit & 1 != 0, below >> bit & 1 != 0);
                let last = self.cells.pixel(&self.geometry, column, end - 1) > 0.0;
                let is_first = end - 1 == start;
                is_monotone &= last == to
                    || from != to && (is_first || (self.cells.pixel(&self.geometry, column, end - 2) > 0.0) == from);
            }
        }
        is_monotone
    }

    /// First output row of the group of window row `r`.
    ///
    /// # Safety
    /// `r` is below the window's height.
    #[inline(always)]
    unsafe fn group_start(&self, r: u32) -> u32 {
        // SAFETY: the caller vouches for the row.
        unsafe { if r > 0 { self.geometry.group_end(r - 1) & !GROUP_IS_IRREGULAR } else { 0 } }
    }

    /// Places those transitions of a tile that are in a window. `first` and `carry` are what was counted.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// The tile was counted.
    #[track_caller]
    #[allow(clippy::too_many_arguments, reason = "a tile, what was counted of it, and where it goes")]
    #[inline(always)]
    unsafe fn place(
        &self,
        tile: u32,
        x0: u32,
        x_end: u32,
        first: u32,
        carry: u32,
        place: &Place,
        stats: &mut Stats,
    ) {
        let record = &self.geometry.record;
        let lane = warp::lane_id();
        let x = (x0 + lane).wrapping_sub(1);
        let is_column = lane > 0 && x < x_end;
        let is_odd = first & TILE_IS_ODD != 0;
        let before = carry >> lane & 1 != 0;
        // SAFETY: columns are inside the content; crossings were stored by this lane's twin in `count`.
        unsafe {
            let mut count = 0;
            let mut ends = false;
            if is_column && is_odd {
                count = self.crossings.load(self.odd_idx(tile));
            } else if is_column {
                let mut k = 0;
                while k < self.signs.num_words {
                    count += self.crossings.load(self.crossing_idx(tile, k)).count_ones();
                    k += 1;
                }
                ends = (count & 1 != 0) != before && self.ends_at_bottom(x);
                count += ends as u32;
            }
            let mut idx = (first & !TILE_IS_ODD) + warp_inclusive_add(count) - count;
            if count == 0 || idx >= place.start + place.len || idx + count <= place.start {
                return;
            }
            let base = self.base(x);
            let column = self.geometry.column(x);
            let mut state = before;
            if is_odd {
                let mut y = 0;
                while y < record.content_h {
                    if self.cells.window.is_foreground(&self.geometry, &column, y) != state {
                        state = !state;
                        place.at(idx, base + y);
                        idx += 1;
                    }
                    y += 1;
                }
                ends = state && self.ends_at_bottom(x);
            } else {
                let mut k = 0;
                while k < self.signs.num_words {
                    let mut crossings = self.crossings.load(self.crossing_idx(tile, k));
                    while crossings != 0 {
                        state = !state;
                        if place.has(idx) {
                            let y = self.position(&column, 32 * k + crossings.trailing_zeros(), state);
                            place.at(idx, base + y);
                            let y = record.offset_y + y;
                            let (low, high) = if state { (y, 0) } else { (u32::MAX, y) };
                            stats.add(0, [u32::MAX, low, 0, high]);
                        }
                        idx += 1;
                        crossings &= crossings - 1;
                    }
                    k += 1;
                }
            }
            if ends {
                place.at(idx, base + record.content_h);
            }
        }
    }

    /// The first content row that has the state of window row `r`, which differs from that of the row above it.
    ///
    /// # Safety
    /// As [`Columns::place`].
    #[inline(always)]
    unsafe fn position(&self, column: &Taps, r: u32, state: bool) -> u32 {
        if r == 0 {
            return 0;
        }
        // SAFETY: the rows are inside the window, those of the bisection inside the content.
        unsafe {
            let end = self.geometry.group_end(r - 1);
            let is_irregular = end & GROUP_IS_IRREGULAR != 0;
            let mut high = end & !GROUP_IS_IRREGULAR;
            let mut low = self.group_start(r - 1);
            let (above, below) = (self.cells.stretched(column, r - 1), self.cells.stretched(column, r));
            while low < high {
                let middle = (low + high) / 2;
                let value = if is_irregular {
                    self.cells.pixel(&self.geometry, column, middle)
                } else {
                    self.geometry.blend_rows(middle, above, below)
                };
                if (value > 0.0) == state {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            low
        }
    }
}

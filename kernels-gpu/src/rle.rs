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
//! A block makes a whole mask, or, with few masks, a part of its columns: the block that finishes the last part of a mask
//! encodes it. What makes it fast:
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
    FLAG_RLE_STRING, GROUP_IS_IRREGULAR, IMAGE_PLAIN_ROWS, ImageRecord, MaskArgs, RleLayout,
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
/// A tile's count carries this bit if its columns are evaluated pixel by pixel.
const TILE_IS_ODD: u32 = 1 << 31;

/// Shared memory of the encoder.
#[derive(Clone, Copy)]
struct Scratch {
    transitions: Shared<u32>,
    stage: Shared<u8>,
    stage_words: Shared<[u32; 4]>,
}

impl Scratch {
    /// # Safety
    /// The block has the shared memory of `args.rle`.
    #[inline(always)]
    unsafe fn new(args: &MaskArgs) -> Self {
        // SAFETY: the caller vouches for it.
        unsafe {
            Self {
                transitions: Shared::at(args.rle.transitions_offset),
                stage: Shared::at(args.rle.stage_offset),
                stage_words: Shared::at(args.rle.stage_offset),
            }
        }
    }
}

/// Turns transitions into counts or text, window by window.
struct Encoder<'a> {
    args: &'a MaskArgs,
    image: u32,
    slot: u32,
    /// Transitions encoded so far.
    num_counts: u32,
    /// Bytes of text that left the stage: a multiple of 16.
    flushed: u32,
    /// Bytes of text in the stage: below 16 between windows.
    staged: u32,
}

impl<'a> Encoder<'a> {
    /// The encoder of row `slot` of an image. Callers: every thread of the block. A barrier is owed before the first window.
    ///
    /// # Safety
    /// `args` holds what [`MaskArgs`] promises.
    #[inline(always)]
    unsafe fn new(args: &'a MaskArgs, image: u32, slot: u32) -> Self {
        if thread::thread_idx_x() < 3 {
            // SAFETY: before the first transition there are three at position 0.
            unsafe { Scratch::new(args).transitions.store(thread::thread_idx_x(), 0) };
        }
        Self { args, image, slot, num_counts: 0, flushed: 0, staged: 0 }
    }

    #[inline(always)]
    fn is_string(&self) -> bool {
        self.args.flags & FLAG_RLE_STRING != 0
    }

    /// First element of the mask in the image's payload.
    #[inline(always)]
    fn offset(&self) -> u32 {
        self.slot * self.args.mask_capacity
    }

    /// Address of the mask: it has room for the plan's capacity, and is 16-byte aligned.
    #[inline(always)]
    fn payload_at(&self) -> u64 {
        let element = if self.is_string() { 1 } else { 4 };
        self.args.payload_at + self.image as u64 * self.args.payload_image_bytes + self.offset() as u64 * element
    }

    /// Encodes the `len` transitions of the window, which lie behind the three before them, and adds the foreground to the
    /// mask's area. Ends with a barrier.
    ///
    /// Callers: every thread of the block, after a barrier.
    ///
    /// # Safety
    /// `len` is at most the window; the block has the statistics in shared memory.
    #[track_caller]
    #[inline(always)]
    unsafe fn encode(&mut self, len: u32, is_last: bool) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        // SAFETY: the block has the layout's shared memory.
        let Scratch { transitions, stage, stage_words } = unsafe { Scratch::new(self.args) };
        let (payload_at, capacity) = (self.payload_at(), self.args.mask_capacity);
        // SAFETY: three transitions before the window, then the window; the stage has room for 6 characters each, and 15
        // left over; the payload is not written past its capacity; barriers separate the phases.
        unsafe {
            // A run of transitions for each thread: first to count characters, then to write them.
            let share = div_ceil(len, block);
            let (first, end) = ((tid * share).min(len), ((tid + 1) * share).min(len));
            let (mut area, mut num_chars, mut at, mut total) = (0, 0, 0, 0);
            let mut next_pass = 0;
            while next_pass < 2 {
                // Not known to the compiler, which would make this body twice.
                let pass = math::opaque(next_pass);
                next_pass = pass + 1;
                let (mut i, mut idx) = (first, self.num_counts + first);
                let at_idx = |i: u32| if first < end { transitions.load(i) } else { 0 };
                let (mut t3, mut t2, mut t1) = (at_idx(first), at_idx(first + 1), at_idx(first + 2));
                while i < end {
                    let t0 = transitions.load(3 + i);
                    let count = t0 - t1;
                    let value = if idx > 2 { count as i32 - (t2 - t3) as i32 } else { count as i32 };
                    // Five bits a character, and one bit for the sign.
                    let magnitude = if value < 0 { !value } else { value } as u32;
                    let mut left = (32 - magnitude.leading_zeros() + 1).div_ceil(5);
                    if pass == 0 {
                        num_chars += left;
                        area += if idx % 2 == 1 { count } else { 0 };
                        if !self.is_string() && idx < capacity {
                            Global::<u32>::from_address(payload_at).store(idx as usize, count);
                        }
                    } else {
                        let mut rest = value;
                        while left > 0 {
                            left -= 1;
                            let more = if left > 0 { 32 } else { 0 };
                            stage.store(at, (48 + (rest & 31) + more) as u8);
                            rest >>= 5;
                            at += 1;
                        }
                    }
                    (t3, t2, t1) = (t2, t1, t0);
                    (i, idx) = (i + 1, idx + 1);
                }
                if pass == 0 {
                    Stats::add_area_to_shared(area);
                    let before;
                    (before, total) = block_exclusive_add(num_chars, masks::scratch());
                    at = self.staged + before;
                    if !self.is_string() {
                        break;
                    }
                }
            }
            self.num_counts += len;
            let mut flushed_len = 0;
            if self.is_string() {
                let len = self.staged + total;
                // What is left over waits for the next window; the last one fills up with zeros.
                let num_words = if is_last { len.div_ceil(16) } else { len / 16 };
                if tid < 16 && len + tid < 16 * num_words {
                    stage.store(len + tid, 0);
                }
                thread::sync_threads();
                let mut word = tid;
                while word < num_words {
                    if self.flushed + 16 * word + 16 <= capacity {
                        Global::<[u32; 4]>::from_address(payload_at + self.flushed as u64)
                            .store(word as usize, stage_words.load(word));
                    }
                    word += block;
                }
                self.flushed += len & !15;
                self.staged = len & 15;
                flushed_len = len & !15;
            }
            if !is_last {
                let mut moved = 0;
                if tid < self.staged {
                    moved = stage.load(flushed_len + tid);
                }
                let carried = if tid < 3 { transitions.load(len + tid) } else { 0 };
                thread::sync_threads();
                if tid < self.staged {
                    stage.store(tid, moved);
                }
                if tid < 3 {
                    transitions.store(tid, carried);
                }
            }
            thread::sync_threads();
        }
    }

    /// Number of elements of the mask, after the last window.
    #[inline(always)]
    fn len(&self) -> u32 {
        if self.is_string() { self.flushed + self.staged } else { self.num_counts }
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
        // Parts only where they all run at once: each has a room of its own (P4).
        let mut num_parts = 1;
        while num_parts < layout::MAX_PARTS && (num_parts + 1) * work.num_items <= thread::grid_dim_x() {
            num_parts += 1;
        }
        let mut item = thread::block_idx_x();
        let mut copied_image = u32::MAX;
        while item < work.num_items * num_parts {
            let (mask_idx, part) = div_rem(item, num_parts);
            let (image, slot) = work.image_of(mask_idx);
            let part = Part { idx: part, num: num_parts, item };
            mask(args, params, image, slot, part, image != copied_image, work.num_items);
            copied_image = image;
            item += thread::grid_dim_x();
        }
        if work.num_items == 0 && thread::block_idx_x() == 0 {
            masks::publish_all(args, 0);
        }
    }
}

/// A part of a mask: of its columns.
#[derive(Clone, Copy)]
struct Part {
    /// Index in the mask.
    idx: u32,
    /// Parts of the mask.
    num: u32,
    /// Work item: the index of the part's room.
    item: u32,
}

impl Part {
    /// This part of `len` columns.
    ///
    /// # Safety
    /// A mask has parts.
    #[inline(always)]
    unsafe fn of(&self, len: u32) -> Span {
        // SAFETY: passed on to the caller.
        unsafe { Span { start: div_rem(self.idx * len, self.num).0, end: div_rem((self.idx + 1) * len, self.num).0 } }
    }
}

/// Makes a part of one of `num_masks` masks; the block that makes the last part encodes the mask. `copies`: the block made
/// none of this image just before.
///
/// # Safety
/// As [`masks_rle`]; the part is the block's own.
#[inline(always)]
unsafe fn mask(args: &MaskArgs, params: Params, image: u32, slot: u32, part: Part, copies: bool, num_masks: u32) {
    let tid = thread::thread_idx_x();
    // SAFETY: image, slot and part are of this launch; shared memory is used inside its layout; barriers separate the
    // phases; a part hands over no more than its room.
    unsafe {
        let counters = masks::counters();
        // All by the first warp, which was the last to read the mask before.
        masks::keep_record(args, params, image, masks::row_idx(args, image, slot));
        Stats::reset_shared();
        if tid < 32 {
            Signs::reset(counters, Shared::at(layout::ODD), layout::ODD_WORDS);
            if copies && tid == 0 {
                counters.store(GROUPS_FOUND, 0);
            }
        }
        let mut encoder = Encoder::new(args, image, slot);
        let room = |item: u32| Global::<u32>::from_address(args.parts_at + 4 * item as u64 * args.part_capacity as u64);

        let counts = Shared::<u32>::at(layout::TILE_COUNTS);
        let carries = Shared::<u32>::at(layout::TILE_CARRIES);
        let starts = Shared::<u32>::at(layout::PART_STARTS);
        let num_warps = thread::block_dim_x() / 32;

        // Three ways to transitions, in one loop, so that the code that counts, places and encodes exists once: a part's go
        // to its room, a whole mask's to shared memory, window by window, and those of parts that are merged come from the
        // rooms.
        let (mut part, mut copies, mut is_redone, mut is_merged) = (part, copies, false, false);
        let mut mask = Mask { args, image, part };
        let mut stats = Stats::EMPTY;
        let (mut first_tile, mut handed) = (0, 0);
        let mut is_loaded = false;
        loop {
            if !is_loaded {
                thread::sync_threads();
                load(args, image, part, copies);
                mask.part = part;
                if tid == 0 {
                    let (live, batch) = mask.columns().extent();
                    masks::keep_extent([live.start, live.end, batch.min(layout::MAX_TILES)]);
                }
                thread::sync_threads();
                (first_tile, handed, stats, is_loaded) = (0, 0, Stats::EMPTY, true);
            }
            let is_part = part.num > 1 && !is_merged;
            let [live_start, live_end, batch] = masks::kept_extent();
            let num_tiles = div_ceil(live_end - live_start, TILE);
            let num = if is_merged { 0 } else { (num_tiles - first_tile).min(batch) };
            let is_last = is_merged || first_tile + num == num_tiles;
            let mut tile = warp::warp_id();
            while tile < num {
                let x0 = live_start + TILE * (first_tile + tile);
                let (count, carry, is_odd) = mask.columns().count(tile, x0, live_end, &mut stats);
                if warp::lane_id() == 0 {
                    counts.store(tile, count | if is_odd { TILE_IS_ODD } else { 0 });
                    carries.store(tile, carry);
                }
                tile += num_warps;
            }
            thread::sync_threads();

            // The last run ends with the mask.
            let total = if is_merged { starts.load(part.num) } else { warp_sum_of_tiles(counts, num) };
            let total = total + (is_last && !is_part) as u32;
            let mut start = 0;
            while start < total {
                let len = if is_part { total } else { (total - start).min(args.rle.window) };
                let place = Place {
                    transitions: Scratch::new(args).transitions,
                    room: room(part.item),
                    is_whole: !is_part,
                    start,
                    len: if is_part { args.part_capacity.saturating_sub(handed) } else { len },
                    handed,
                };
                let mut tile = warp::warp_id();
                while tile < num {
                    let count = counts.load(tile);
                    let first = warp_sum_of_tiles(counts, tile);
                    if first < start + len && first + (count & !TILE_IS_ODD) > start {
                        let [live_start, live_end, _] = masks::kept_extent();
                        let x0 = live_start + TILE * (first_tile + tile);
                        let is_odd = count & TILE_IS_ODD != 0;
                        mask.columns().place(tile, x0, live_end, is_odd, first, carries.load(tile), &place, &mut stats);
                    }
                    tile += num_warps;
                }
                if is_merged {
                    gather(args, room(part.item - part.idx), part.num, start, len.min(total - 1 - start));
                }
                let is_end = is_last && start + len == total;
                if is_end && !is_part && tid == 0 {
                    let record = masks::kept_record();
                    place.at(total - 1, record.width * record.height);
                }
                if is_end && !is_merged {
                    stats.add_to_shared();
                    stats = Stats::EMPTY;
                }
                thread::sync_threads();
                if !is_part {
                    encoder.encode(len, is_end);
                }
                start += len;
            }
            if total == 0 {
                stats.add_to_shared();
                stats = Stats::EMPTY;
                // No window had a barrier; the next tiles overwrite what was summed.
                thread::sync_threads();
            }
            handed += total;
            first_tile += num;
            if !is_last {
                continue;
            }
            if !is_part {
                break;
            }

            // The part is done. Its box is for the block that finishes the mask.
            let row = masks::row_idx(args, image, slot);
            let lens = Global::<u32>::from_address(args.part_lens_at);
            if tid == 0 {
                masks::add_stats(args, row, &Stats::of_shared());
                masks::add_nonfinite(args, image, mask.columns().signs.nonfinite);
                lens.store(part.item as usize, handed);
            }
            if !masks::is_last_part(args, row, part.num) {
                return;
            }
            let len = if tid < part.num { lens.load((part.item - part.idx + tid) as usize) } else { 0 };
            if thread::sync_threads_or(len > args.part_capacity) {
                // A part has no room for its transitions: the whole mask once more, in one.
                part = Part { idx: 0, num: 1, item: part.item };
                (copies, is_redone, is_loaded) = (false, true, false);
                if tid < 32 {
                    Stats::reset_shared();
                    Signs::reset(counters, Shared::at(layout::ODD), layout::ODD_WORDS);
                }
            } else {
                is_merged = true;
                if tid < 32 {
                    let before = warp_inclusive_add(len) - len;
                    if tid <= part.num {
                        starts.store(tid, before);
                    }
                    if tid == 0 {
                        masks::load_stats(args, row).store_box_to_shared();
                    }
                }
            }
        }
        if warp::warp_id() == 0 {
            let stats = Stats::of_shared();
            let len = encoder.len();
            let row = masks::row_idx(args, image, slot);
            let lens = [encoder.offset(), len, encoder.num_counts];
            let nonfinite = if is_redone || is_merged { 0 } else { mask.columns().signs.nonfinite };
            masks::warp_finish_mask(args, image, row, &stats, lens, nonfinite, num_masks);
        }
    }
}

/// Fetches `len` transitions from number `start` on from the rooms of a mask's parts to the window.
///
/// # Safety
/// `rooms` are the rooms of the mask's parts, whose transitions they hold, and shared memory has where each begins.
#[inline(always)]
unsafe fn gather(args: &MaskArgs, rooms: Global<u32>, num_parts: u32, start: u32, len: u32) {
    // SAFETY: the layout has the words.
    let starts = unsafe { Shared::<u32>::at(layout::PART_STARTS) };
    let mut i = thread::thread_idx_x();
    while i < len {
        // SAFETY: the caller vouches for the rooms; the window has room.
        unsafe {
            // The last part that begins at or before the transition.
            let (mut k, mut step) = (0, layout::MAX_PARTS / 2);
            while step > 0 {
                if k + step < num_parts && starts.load(k + step) <= start + i {
                    k += step;
                }
                step /= 2;
            }
            let at = k * args.part_capacity + start + i - starts.load(k);
            Scratch::new(args).transitions.store(3 + i, rooms.load(at as usize));
        }
        i += thread::block_dim_x();
    }
}

/// Transitions of the first `num` tiles.
///
/// Callers: every lane of a warp; valid in all lanes.
///
/// # Safety
/// The tiles were counted.
#[track_caller]
#[inline(always)]
unsafe fn warp_sum_of_tiles(counts: Shared<u32>, num: u32) -> u32 {
    let (mut sum, mut tile) = (0, warp::lane_id());
    while tile < num {
        // SAFETY: the caller vouches for the tiles.
        sum += unsafe { counts.load(tile) } & !TILE_IS_ODD;
        tile += 32;
    }
    warp::warp_reduce_add(FULL_MASK, sum)
}

/// Copies row groups and weights, if `copies`, and loads the signs of the mask that the block keeps the record of.
///
/// Callers: every thread of the block. Ends with a barrier.
///
/// # Safety
/// As [`mask`].
#[track_caller]
#[inline(always)]
unsafe fn load(args: &MaskArgs, image: u32, part: Part, copies: bool) {
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
        let (window_w, content_w) = (geometry.record.window_w, geometry.record.content_w);
        let counted = part.of(window_w);
        // The cells that the part's columns are made of, the column before it included, and those that it counts.
        let mut columns = Span { start: 0, end: window_w };
        if part.num > 1 {
            let (axis, content) = (&geometry.columns, part.of(content_w));
            let reach = axis.support + axis.scale + 1.5;
            let start = (content.start as f32 * axis.scale - reach) as i32 - 1;
            let end = (content.end as f32 * axis.scale + reach) as i32 + 2;
            columns.start = (start.max(0) as u32).min(counted.start);
            columns.end = (end.max(0) as u32).max(counted.end).min(window_w);
        }
        let words = has_room(&args.rle, &geometry.record).then_some(args.rle.signs_offset);
        let odd = Shared::<u32>::at(layout::ODD);
        let cells = cells(&args.rle, &geometry.record, window);
        Signs::load(&cells, geometry.record.window_h, columns, counted, words, odd, masks::counters());
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
    part: Part,
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
            let (counters, odd) = (masks::counters(), Shared::at(layout::ODD));
            let found = counters.load(GROUPS_FOUND);
            let words = Shared::at(args.rle.signs_offset);
            Columns {
                geometry,
                cells: cells(&args.rle, &record, Window::new(args, &record, self.image, masks::kept_query())),
                signs: Signs::loaded(words, record.window_h.div_ceil(32), odd, counters),
                part: self.part.of(record.content_w),
                crossings: Shared::at(args.rle.crossings_offset),
                num_crossing_words: args.rle.num_crossing_words,
                is_fast: has_room && record.flags & IMAGE_PLAIN_ROWS == 0 && found & HAS_EMPTY == 0,
                has_irregular: found & HAS_IRREGULAR != 0,
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
    /// Where the transitions of a part go.
    room: Global<u32>,
    is_whole: bool,
    start: u32,
    len: u32,
    /// Transitions that are in the room already.
    handed: u32,
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
            // SAFETY: inside the window, behind the three words before it; or inside the room.
            unsafe {
                if self.is_whole {
                    self.transitions.store(3 + idx - self.start, position);
                } else {
                    self.room.store((self.handed + idx) as usize, position);
                }
            }
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
    /// The content columns of the part.
    part: Span,
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
    /// The columns to look at, and how many tiles have room for their crossings.
    #[inline(always)]
    fn extent(&self) -> (Span, u32) {
        let tile_words = 32 * if self.is_fast { self.signs.num_words.max(1) } else { 1 };
        // SAFETY: a tile has words.
        (self.live(), unsafe { div_rem(self.num_crossing_words, tile_words).0 })
    }

    /// Content columns that may have foreground, and at least one more behind them if there is one.
    #[inline(always)]
    fn live(&self) -> Span {
        let none = Span { start: self.part.start, end: self.part.start };
        if self.geometry.is_empty() {
            return none;
        }
        if !self.is_fast {
            return self.part;
        }
        let live = self.signs.live;
        if live.end == 0 {
            return none;
        }
        // An estimate that is never too narrow: the filter reaches `support` cells from a center; rounding is far below
        // the cell and the columns added.
        let axis = &self.geometry.columns;
        let reach = axis.support + 1.5;
        let start = math::div(live.start as f32 - reach, axis.scale) as i32 - 2;
        let end = math::div(live.end as f32 + reach, axis.scale) as i32 + 3;
        let start = (start.max(0) as u32).max(self.part.start).min(self.part.end);
        Span { start, end: (end.max(0) as u32).min(self.part.end).max(start) }
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
            let mut found =
                Found { count: 0, top: false, bottom: false, any: false, is_odd: self.signs.is_odd(column) };
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

    /// Places those transitions of a tile that are in a window; `first` is the index of its first. `is_odd` and `carry` are
    /// what was found when they were counted.
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
        is_odd: bool,
        first: u32,
        carry: u32,
        place: &Place,
        stats: &mut Stats,
    ) {
        let record = &self.geometry.record;
        let lane = warp::lane_id();
        let x = (x0 + lane).wrapping_sub(1);
        let is_column = lane > 0 && x < x_end;
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
            let mut idx = first + warp_inclusive_add(count) - count;
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

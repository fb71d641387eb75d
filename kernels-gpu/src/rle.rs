//! Stages 3 and 4 for run lengths: masks as COCO counts or as COCO's compressed string, without touching pixels.
//!
//! In short:
//!
//! ```text
//! transitions of a mask = positions, down the columns, where it changes        (crate::columns)
//! counts = differences of transitions; text = differences of counts, two apart, in groups of five bits
//! ```
//!
//! A work item is a strip of a mask's columns. Each thread walks one column; a prefix sum over the columns puts their
//! transitions in order. With many masks a strip is the whole mask, and its block encodes as it goes. With few masks
//! each is cut into strips, which hand their transitions over in global memory, and the block that finishes the last
//! strip of a mask encodes them. A strip with more transitions than its room says so, and that block then walks the
//! whole mask itself: slower, but the answer is the same.

use rfdetr_post_core::packed::{FLAG_RLE_STRING, ImageHeader, MAX_MASK_SIDE, MaskArgs, shared::masks as layout};

use crate::{
    columns::{Geometry, Slab, Span, Taps, Window},
    masks::{self, Stats, Work},
    scan::{block_exclusive_add, div_ceil, div_rem},
    simt::{
        global::Global,
        grid,
        params::Params,
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// A mask is cut into at most this many strips.
const MAX_STRIPS: u32 = 16;
/// Words of the counters: the last row's state of each warp's columns.
const BOTTOMS: u32 = 8;

/// Shared memory of this kernel.
#[derive(Clone, Copy)]
struct Scratch {
    slab: Shared<f32>,
    kept: Shared<u32>,
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
    height: u32,
    /// Transitions encoded so far.
    num_counts: u32,
    /// Bytes of text that left the stage: a multiple of 16.
    flushed: u32,
    /// Bytes of text in the stage: below 16 between rounds.
    staged: u32,
    /// This thread's part of area and box.
    stats: Stats,
}

impl Encoder {
    /// Callers: every thread of the block. A barrier is owed before the first window.
    ///
    /// # Safety
    /// `payload_at` has room for `capacity` elements and is 16-byte aligned.
    #[inline(always)]
    unsafe fn new(scratch: Scratch, payload_at: u64, capacity: u32, is_string: bool, height: u32) -> Self {
        if thread::thread_idx_x() < 3 {
            // SAFETY: before the first transition there are three at position 0.
            unsafe { scratch.transitions.store(thread::thread_idx_x(), 0) };
        }
        let stats = Stats::EMPTY;
        Self { scratch, payload_at, capacity, is_string, height, num_counts: 0, flushed: 0, staged: 0, stats }
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
            // Four in a row for each thread: one prefix sum then orders four times as many.
            let first = base + 4 * tid;
            let at = |i: u32| {
                // SAFETY: three words before the window, then the window.
                if first + i < len + 3 { unsafe { transitions.load(first + i) } } else { 0 }
            };
            let [t0, t1, t2, t3, t4, t5, t6] = [0, 1, 2, 3, 4, 5, 6].map(at);
            let coded = [
                self.code(first, len, [t0, t1, t2, t3]),
                self.code(first + 1, len, [t1, t2, t3, t4]),
                self.code(first + 2, len, [t2, t3, t4, t5]),
                self.code(first + 3, len, [t3, t4, t5, t6]),
            ];
            if self.is_string {
                // SAFETY: the stage has room for 24 characters a thread and 15 left over.
                unsafe { self.write_text(coded) };
            }
            base += 4 * block;
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
    /// its number of characters. Counts of foreground go to area and box; uncompressed counts to the payload.
    #[inline(always)]
    fn code(&mut self, i: u32, len: u32, [t3, t2, t1, t0]: [u32; 4]) -> (i32, u32) {
        if i >= len {
            return (0, 0);
        }
        let count = t0 - t1;
        let idx = self.num_counts + i;
        if idx % 2 == 1 {
            self.add_run(t1, t0);
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

    /// Counts the foreground run from position `start` to `end`.
    #[inline(always)]
    fn add_run(&mut self, start: u32, end: u32) {
        // SAFETY: an image has rows.
        let ((first_x, first_y), (last_x, last_y)) =
            unsafe { (div_rem(start, self.height), div_rem(end - 1, self.height)) };
        let (top, bottom) = if first_x == last_x { (first_y, last_y + 1) } else { (0, self.height) };
        self.stats.add(end - start, [first_x, top, last_x + 1, bottom]);
    }

    /// Appends four coded values behind those of the threads below; sends whole words on their way.
    ///
    /// # Safety
    /// Every thread of the block calls this; a value has at most 6 characters.
    #[track_caller]
    #[inline(always)]
    unsafe fn write_text(&mut self, coded: [(i32, u32); 4]) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        let (stage, stage_words) = (self.scratch.stage, self.scratch.stage_words);
        // SAFETY: barriers separate the uses of scan scratch and stage; the payload is not written past its capacity.
        unsafe {
            let [(_, n0), (_, n1), (_, n2), (_, n3)] = coded;
            let (before, total) = block_exclusive_add(n0 + n1 + n2 + n3, masks::scratch());
            let mut at = self.staged + before;
            let mut write = |(value, num_chars): (i32, u32)| {
                let mut rest = value;
                let mut left = num_chars;
                while left > 0 {
                    left -= 1;
                    let more = if left > 0 { 32 } else { 0 };
                    stage.store(at, (48 + (rest & 31) + more) as u8);
                    rest >>= 5;
                    at += 1;
                }
            };
            let [c0, c1, c2, c3] = coded;
            write(c0);
            write(c1);
            write(c2);
            write(c3);
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
/// `args` holds what [`MaskArgs`] promises, and the block has `layout::RLE_BYTES` of shared memory.
#[inline(always)]
pub unsafe fn masks_rle(args: &MaskArgs, params: Params) {
    grid::depend_wait();
    let num_blocks = thread::grid_dim_x();
    // SAFETY: the selection has ended; the plan gave this kernel the layout's shared memory.
    unsafe {
        let scratch = Scratch {
            slab: Shared::at(layout::SLAB),
            kept: Shared::at(layout::KEPT),
            transitions: Shared::at(layout::TRANSITIONS),
            stage: Shared::at(layout::STAGE),
            stage_words: Shared::at(layout::STAGE),
        };
        let work = Work::new(args, |_, num_detections| num_detections);
        let num_masks = work.num_items;
        if num_masks == 0 {
            if thread::block_idx_x() == 0 {
                masks::publish_all(args, 0);
            }
            return;
        }
        // Strips only where they all run at once: each has a room of its own (P4).
        let mut num_strips = 1;
        while num_strips < MAX_STRIPS && 2 * num_strips * num_masks <= num_blocks {
            num_strips *= 2;
        }
        let mut item = thread::block_idx_x();
        while item < num_masks * num_strips {
            let (image, slot) = work.image_of(item >> num_strips.trailing_zeros());
            if strip(args, params, scratch, image, slot, item, num_strips) {
                masks::finish_mask(args, num_masks);
            }
            item += num_blocks;
            thread::sync_threads();
        }
    }
}

/// Makes one strip of a mask; true in the block that finished the mask.
///
/// Transitions come in batches: of a chunk of columns, of the mask's end, or of a strip that was handed over. All of them
/// go through one loop, so that the code that walks and the code that encodes exist once.
///
/// # Safety
/// As [`masks_rle`]; the strip is the block's own.
#[inline(always)]
unsafe fn strip(
    args: &MaskArgs,
    params: Params,
    scratch: Scratch,
    image: u32,
    slot: u32,
    item: u32,
    num_strips: u32,
) -> bool {
    let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
    let (lane, warp) = (warp::lane_id(), warp::warp_id());
    // SAFETY: image, slot and item are of this launch; shared memory is used inside its layout; barriers separate the
    // phases of a batch.
    unsafe {
        let mut geometry = Geometry::new(args, masks::record(args, params, image), image);
        geometry.share_groups(Shared::at(layout::GROUPS), MAX_MASK_SIDE);
        let record = &geometry.record;
        let row = masks::row_idx(args, image, slot);
        let window = Window::new(args, record, image, masks::query_of(args, row));
        let is_string = args.flags & FLAG_RLE_STRING != 0;
        let offset = slot * args.mask_capacity;
        let element = if is_string { 1 } else { 4 };
        let payload_at = args.payload_at + image as u64 * args.payload_image_bytes + offset as u64 * element;
        let mut encoder = Encoder::new(scratch, payload_at, args.mask_capacity, is_string, record.height);

        let content_w = if geometry.is_empty() { 0 } else { record.content_w };
        let content_bottom = record.offset_y + record.content_h;
        let reaches_bottom = content_bottom == record.height;
        let chunk_w = chunk_width(&geometry);

        // The number of strips is a power of two.
        let strip_idx = item & (num_strips - 1);
        let strip_w = div_ceil(content_w, num_strips);
        let mut columns =
            Span { start: (strip_idx * strip_w).min(content_w), end: ((strip_idx + 1) * strip_w).min(content_w) };
        // The strip of the last column also has the mask's end.
        let mut owns_end = columns.start < columns.end && columns.end == content_w || content_w == 0 && strip_idx == 0;
        let mut is_direct = num_strips == 1;
        let mut is_redone = false;
        let first_item = item - strip_idx;
        let lens = Global::<u32>::from_address(args.strip_lens_at);
        let room =
            |item: u32| Global::<u32>::from_address(args.strips_at + 4 * item as u64 * args.strip_capacity as u64);

        // Transitions of all strips while they are merged; none while columns are walked.
        let mut merged = None;
        let mut next_column = columns.start;
        // State of the last row of the column before the chunk.
        let mut before_chunk = false;
        let mut handed = 0;
        loop {
            let is_end = merged.is_none() && next_column >= columns.end;
            let is_chunk = merged.is_none() && !is_end;
            // Does a run that reaches the content's last pixel end there, short of the mask's end?
            let ends_early = before_chunk && record.offset_x + content_w < record.width;
            let mut total = match merged {
                Some(total) => total,
                None if owns_end => 1 + ends_early as u32,
                None => 0,
            };

            // The columns of a chunk: one a thread. The column before a strip comes along, for its last row only.
            let has_ghost = is_chunk && next_column == columns.start && next_column > 0 && reaches_bottom;
            let x0 = next_column - has_ghost as u32;
            let x1 = (x0 + chunk_w).min(columns.end);
            let is_column = is_chunk && tid < x1 - x0;
            let is_ghost = has_ghost && tid == 0;
            let column_start = (record.offset_x + x0 + tid) * record.height;
            let mut column = Taps::NONE;
            let mut slab = Slab::dead(window);
            if is_chunk {
                let first = geometry.column(x0);
                let last = geometry.column(x1 - 1);
                column = geometry.column(if is_column { x0 + tid } else { x0 });
                // Each cell belongs to the chunk in whose range of first cells it is.
                let owned = Span {
                    start: if next_column == 0 { 0 } else { geometry.column(next_column).first },
                    end: if x1 == content_w { record.window_w } else { geometry.column(x1).first },
                };
                let end = (last.first + last.count.max(2)).min(record.window_w);
                let span = Span { start: owned.start.min(first.first), end: end.max(owned.end) };
                let rows = Span { start: 0, end: record.window_h };
                let nonfinite;
                (slab, nonfinite) =
                    Slab::load(window, rows, span, owned, false, scratch.slab, layout::SLAB_CELLS, masks::counters());
                if tid == 0 && !is_redone {
                    masks::add_nonfinite(args, image, nonfinite);
                }
            }
            if is_chunk && slab.is_dead() && !before_chunk && !has_ghost {
                // Nothing here, and nothing ends here.
                next_column = x1;
                thread::sync_threads();
                continue;
            }
            let is_walked = is_column && slab.is_live(&column);

            // The first pass counts a column's transitions and keeps a few, later ones place them, a window at a time.
            let mut is_counted = !is_chunk;
            let (mut num_transitions, mut first_idx, mut start) = (0, 0, 0);
            let (mut starts_foreground, mut changes_at_top, mut chunk_bottom) = (false, false, false);
            loop {
                if is_counted && start >= total {
                    break;
                }
                let window_len = (total - start).min(layout::WINDOW);
                let place = |idx: u32, position: u32| {
                    if idx >= start && idx - start < window_len {
                        scratch.transitions.store(3 + idx - start, position);
                    }
                };
                let mut ends_foreground = false;
                let is_in_window = first_idx < start + window_len && first_idx + num_transitions > start;
                if is_walked && (!is_counted || num_transitions > layout::COLUMN_KEEPS && is_in_window) {
                    let mut seen = 0;
                    let mut visit = |y: u32| {
                        if y == 0 {
                            starts_foreground = true;
                            return;
                        }
                        if is_counted {
                            place(first_idx + seen, column_start + y);
                        } else if seen < layout::COLUMN_KEEPS {
                            scratch.kept.store(seen * block + tid, y);
                        }
                        seen += 1;
                    };
                    ends_foreground =
                        slab.walk(&geometry, &column, 0, record.content_h, |y| visit(record.offset_y + y));
                    if ends_foreground && !reaches_bottom {
                        visit(content_bottom);
                        ends_foreground = false;
                    }
                    num_transitions = seen;
                }
                if !is_counted {
                    // A run that ends with a column and one that begins with the next are one run.
                    let bottoms = warp::warp_vote_ballot(FULL_MASK, ends_foreground);
                    if lane == 0 {
                        masks::counters().store(BOTTOMS + warp, bottoms);
                    }
                    thread::sync_threads();
                    let before_column = if tid == 0 {
                        before_chunk
                    } else if lane == 0 {
                        masks::counters().load(BOTTOMS + warp - 1) >> 31 != 0
                    } else {
                        bottoms >> (lane - 1) & 1 != 0
                    };
                    let last = x1 - x0 - 1;
                    chunk_bottom = masks::counters().load(BOTTOMS + last / 32) >> (last % 32) & 1 != 0;
                    changes_at_top = is_column && !is_ghost && before_column != starts_foreground;
                    if is_ghost {
                        num_transitions = 0;
                    }
                    let count = num_transitions + changes_at_top as u32;
                    (first_idx, total) = block_exclusive_add(count, masks::scratch());
                    if changes_at_top {
                        first_idx += 1;
                    }
                    is_counted = true;
                    continue;
                }
                if merged.is_some() {
                    let mut i = tid;
                    while i < window_len {
                        // The last strip that begins at or before the transition.
                        let (mut k, mut step) = (0, MAX_STRIPS / 2);
                        while step > 0 {
                            if k + step < num_strips && scratch.kept.load(k + step) <= start + i {
                                k += step;
                            }
                            step /= 2;
                        }
                        let within = start + i - scratch.kept.load(k);
                        scratch.transitions.store(3 + i, room(first_item + k).load(within as usize));
                        i += block;
                    }
                } else if is_end {
                    if tid == 0 {
                        if ends_early {
                            place(0, (record.offset_x + content_w) * record.height);
                        }
                        // The last run ends with the mask.
                        place(ends_early as u32, record.width * record.height);
                    }
                } else {
                    if changes_at_top {
                        place(first_idx - 1, column_start);
                    }
                    if num_transitions <= layout::COLUMN_KEEPS {
                        let mut k = 0;
                        while k < num_transitions {
                            place(first_idx + k, column_start + scratch.kept.load(k * block + tid));
                            k += 1;
                        }
                    }
                }
                thread::sync_threads();
                if is_direct || merged.is_some() {
                    encoder.encode(window_len);
                } else {
                    hand_over(scratch, room(item), handed + start, window_len, args.strip_capacity);
                }
                start += window_len;
            }
            handed += total;
            if is_chunk {
                before_chunk = chunk_bottom;
                next_column = x1;
                thread::sync_threads();
                continue;
            }
            if is_direct || merged.is_some() {
                break;
            }
            if tid == 0 {
                lens.store(item as usize, handed);
            }
            if !masks::is_last_part(args, row, num_strips) {
                return false;
            }
            let len = if tid < num_strips { lens.load((first_item + tid) as usize) } else { 0 };
            let (before, total) = block_exclusive_add(len, masks::scratch());
            if tid < num_strips {
                scratch.kept.store(tid, before);
            }
            if !thread::sync_threads_or(len > args.strip_capacity) {
                merged = Some(total);
            } else {
                columns = Span { start: 0, end: content_w };
                (next_column, before_chunk, handed) = (0, false, 0);
                (is_direct, is_redone, owns_end) = (true, true, true);
            }
        }
        let len = encoder.finish();
        let stats = encoder.stats.block_sum();
        if tid == 0 {
            masks::write_result_row(args, row, &stats, offset, len, encoder.num_counts);
            let word = image as usize * size_of::<ImageHeader>() + core::mem::offset_of!(ImageHeader, needed_mask_len);
            Global::<u32>::from_address(args.headers_at).fetch_max(word / 4, len);
        }
        true
    }
}

/// Columns of a chunk: as many as have room in shared memory, at least a warp's; if even those have none, the slab stays
/// in global memory.
#[inline(always)]
fn chunk_width(geometry: &Geometry) -> u32 {
    let fits = |chunk_w: u32| {
        ((chunk_w as f32 * geometry.columns.scale) as u32 + 4) * geometry.record.window_h <= layout::SLAB_CELLS
    };
    let block = thread::block_dim_x();
    let mut chunk_w = block;
    while chunk_w > 32 && !fits(chunk_w) {
        chunk_w /= 2;
    }
    if fits(chunk_w) { chunk_w } else { block }
}

/// Copies a window of transitions to the strip's room, as far as it reaches. Ends with a barrier.
///
/// # Safety
/// `room` has `capacity` words.
#[track_caller]
#[inline(always)]
unsafe fn hand_over(scratch: Scratch, room: Global<u32>, start: u32, len: u32, capacity: u32) {
    let mut i = thread::thread_idx_x();
    while i < len && start + i < capacity {
        // SAFETY: below the capacity; the window was written before the barrier.
        unsafe { room.store((start + i) as usize, scratch.transitions.load(3 + i)) };
        i += thread::block_dim_x();
    }
    thread::sync_threads();
}

//! Stages 3 and 4 for run lengths: masks as COCO counts or as COCO's compressed string, without touching pixels.
//!
//! In short:
//!
//! ```text
//! signs    = a bit for each cell of the mask                                              (crate::signs)
//! columns  = for each output column, a bit for each window row: does the sign change here?
//! list     = all changes, column by column, each where it belongs
//! position = for each change, the output row where it shows: a search between two window rows
//! counts   = differences of positions; text = differences of counts, two apart, in groups of five bits
//! ```
//!
//! A block makes a whole mask, or, with few masks, a part of its columns: the block that finishes the last part of a mask
//! encodes it. What makes it fast:
//!
//! 1. Arithmetic happens only where two neighbor cells have different signs, and in the searches; the rest is bits.
//! 2. A warp takes a tile of output columns. They lie between the same few cells, so its lanes take the same branches.
//! 3. Only tiles that live cells reach are looked at.
//! 4. A tile's number of changes is known before any position is, so changes are listed where they belong, and every thread
//!    of the block takes one at a time, whichever column it is of.
//! 5. What only the image's size decides is computed while the selection runs.
//!
//! Why the bits give the exact number of changes: between two window rows an output column is monotone (see
//! [`crate::columns`]), so a change of sign between them is one change of state, unless no output row shows it. A single
//! window row of its own sign may fall between two output rows; such *islands* are evaluated and removed. Longer ones show:
//! every group of rows has a row. The first and last output row have the sign of the first and last window row, because
//! there is one cell under them.
//!
//! Columns whose values are out of the ordinary (NaN, infinities, underflow), images that are lower than the window, and
//! windows without room in shared memory are evaluated pixel by pixel: once where a bit for each row has room, else twice, to
//! count and to list.

use rfdetr_post_core::packed::{
    FLAG_BILINEAR, FLAG_RLE_STRING, IMAGE_PLAIN_ROWS, ImageRecord, MaskArgs, RleLayout,
    shared::masks::{self as layout, TILE, TILE_ENTRY_WORDS},
};

use crate::{
    axes::Axis,
    columns::{Cells, Geometry, Taps, Window},
    masks::{self, Stats, Work},
    scan::{block_exclusive_add, div_ceil, div_rem, warp_inclusive_add},
    signs::{Signs, Span, TINY},
    simt::{
        global::Global,
        grid, math,
        params::Params,
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// Some row groups are irregular.
const HAS_IRREGULAR: u32 = 1;
/// Some row groups have no row.
const HAS_EMPTY: u32 = 2;
/// Rows blend two rows of the window, which is not empty, and signs, cells, groups and changes have room in shared memory.
const HAS_ROOM: u32 = 4;
/// A row group's end carries this bit if its last row has more than two cells.
const GROUP_IS_IRREGULAR: u32 = 1 << 31;

/// A tile's count carries this bit if its changes are those of output rows.
const TILE_IS_PLAIN: u32 = 1 << 31;
/// And this one if there is no room for them.
const TILE_IS_WALKED: u32 = 1 << 30;
/// The count itself.
const TILE_COUNT: u32 = TILE_IS_WALKED - 1;

/// A listed change whose position is not known yet: its tile from bit 16 on, its lane from bit 11, its window row from bit 1,
/// and the state that begins. Positions are below 2^28.
const IS_SOUGHT: u32 = 1 << 31;

/// Shared memory of the encoder.
#[derive(Clone, Copy)]
struct Scratch {
    transitions: Shared<u32>,
    stage: Shared<u8>,
    stage_words: Shared<[u32; 4]>,
    stage_counts: Shared<u32>,
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
                stage_counts: Shared::at(args.rle.stage_offset),
            }
        }
    }
}

/// Turns transitions into counts or text, window by window.
struct Encoder {
    params: Params,
    image: u32,
    slot: u32,
    /// Transitions encoded so far.
    num_counts: u32,
    /// Bytes of text that left the stage: a multiple of 16.
    flushed: u32,
    /// Bytes of text in the stage: below 16 between windows.
    staged: u32,
}

impl Encoder {
    /// The encoder of row `slot` of an image. Callers: every thread of the block. A barrier is owed before the first window.
    ///
    /// # Safety
    /// `args` holds what [`MaskArgs`] promises.
    #[inline(always)]
    unsafe fn new(params: Params, image: u32, slot: u32) -> Self {
        if thread::thread_idx_x() < 3 {
            // SAFETY: before the first transition there are three at position 0.
            unsafe { Scratch::new(&masks::args(params)).transitions.store(thread::thread_idx_x(), 0) };
        }
        Self { params, image, slot, num_counts: 0, flushed: 0, staged: 0 }
    }

    /// First element of the mask in the image's payload.
    #[inline(always)]
    fn offset(&self, args: &MaskArgs) -> u32 {
        self.slot * args.mask_capacity
    }

    /// Address of the mask: it has room for the plan's capacity, and is 16-byte aligned.
    #[inline(always)]
    fn payload_at(&self, args: &MaskArgs) -> u64 {
        let element = if args.flags & FLAG_RLE_STRING != 0 { 1 } else { 4 };
        args.payload_at + self.image as u64 * args.payload_image_bytes + self.offset(args) as u64 * element
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
        let args = &unsafe { masks::args(self.params) };
        // SAFETY: as above.
        let Scratch { transitions, stage, stage_words, stage_counts } = unsafe { Scratch::new(args) };
        let (payload_at, capacity) = (self.payload_at(args), args.mask_capacity);
        let is_string = args.flags & FLAG_RLE_STRING != 0;
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
                        if !is_string {
                            stage_counts.store(i, count);
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
                    if !is_string {
                        break;
                    }
                }
            }
            if !is_string {
                // The sum's barrier stands between.
                let mut i = tid;
                while i < len && self.num_counts + i < capacity {
                    let count = stage_counts.load(i);
                    Global::<u32>::from_address(payload_at).store((self.num_counts + i) as usize, count);
                    i += block;
                }
            }
            self.num_counts += len;
            let mut flushed_len = 0;
            if is_string {
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
    fn len(&self, args: &MaskArgs) -> u32 {
        if args.flags & FLAG_RLE_STRING != 0 { self.flushed + self.staged } else { self.num_counts }
    }
}

/// Makes the run lengths of every detection of the batch. `IN_SHARED`: the cells of a mask have room in shared memory.
///
/// Callers: every thread of every block.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises, and the block has the shared memory of `args.rle`.
#[inline(always)]
pub unsafe fn masks_rle<const IN_SHARED: bool>(params: Params) {
    // SAFETY: the plan gave this kernel the layout's shared memory; the selection has ended where its results are read.
    unsafe {
        // While the selection runs.
        reset();
        let mut geometry = prepare::<IN_SHARED>(params, 0, u32::MAX);
        // Parts that give each warp a tile.
        let num_columns = TILE * (thread::block_dim_x() / 32);
        let max_parts = div_ceil(masks::kept_record().content_w, num_columns).clamp(1, layout::MAX_PARTS);
        grid::depend_wait();
        let args = &masks::args(params);
        // On their way while the detections are counted.
        let lane = warp::lane_id();
        let queries = if args.batch == 1 && lane < args.max_detections { masks::query_of(args, lane as usize) } else { 0 };
        let work = Work::new(args, |_, num_detections| num_detections);
        let mut shares = Shares::new(work.num_items, max_parts);
        // What is needed after the first item is read again: held in registers meanwhile, it would crowd out everything else.
        if thread::thread_idx_x() == 0 {
            shares.store();
        }
        let mut prepared_image = 0;
        let mut item = thread::block_idx_x();
        while item < shares.num_items {
            let (mask_idx, part) = shares.of(item);
            let args = &masks::args(params);
            let (image, slot) = Work::counted(args).image_of(mask_idx);
            if image != prepared_image {
                geometry = prepare::<IN_SHARED>(params, image, geometry);
                prepared_image = image;
            }
            let is_first = item == thread::block_idx_x();
            let query_idx = if is_first && args.batch == 1 && slot < 32 {
                warp::warp_shuffle_idx(FULL_MASK, queries, slot)
            } else {
                masks::query_of(args, masks::row_idx(args, image, slot))
            };
            mask(Mask::<IN_SHARED> { params, image, slot, query_idx, part });
            item += thread::grid_dim_x();
            shares = Shares::load();
        }
        if shares.num_masks == 0 && thread::block_idx_x() == 0 {
            masks::publish_all(&masks::args(params), 0);
        }
    }
}

/// How the masks are shared out among the blocks: whole masks while there is one for every block; those that are left are cut
/// into as many parts as run at once (P4).
#[derive(Clone, Copy)]
struct Shares {
    /// Masks.
    num_masks: u32,
    /// Masks that are not cut: the first ones, each an item.
    num_whole: u32,
    /// Parts of each of the others, each an item.
    num_parts: u32,
    /// Items.
    num_items: u32,
}

impl Shares {
    #[inline(always)]
    fn new(num_masks: u32, max_parts: u32) -> Self {
        let grid = thread::grid_dim_x();
        // SAFETY: a grid has blocks, and the other divisor is at least 1.
        let (num_cut, num_parts) = unsafe {
            let (_, num_cut) = div_rem(num_masks, grid);
            (num_cut, div_rem(grid, num_cut.max(1)).0.clamp(1, max_parts))
        };
        let num_whole = num_masks - num_cut;
        Self { num_masks, num_whole, num_parts, num_items: num_whole + num_parts * num_cut }
    }

    /// The mask of an item, and the part of it.
    #[inline(always)]
    fn of(&self, item: u32) -> (u32, Part) {
        if item < self.num_whole {
            return (item, Part::WHOLE);
        }
        let room = item - self.num_whole;
        // SAFETY: a mask has parts.
        let (cut, idx) = unsafe { div_rem(room, self.num_parts) };
        (self.num_whole + cut, Part { idx, num: self.num_parts, room })
    }

    /// # Safety
    /// The block has the layout's shared memory.
    #[inline(always)]
    unsafe fn store(&self) {
        // SAFETY: the layout has the words.
        unsafe {
            Shared::<[u32; 4]>::at(layout::SHARES)
                .store(0, [self.num_masks, self.num_whole, self.num_parts, self.num_items]);
        }
    }

    /// # Safety
    /// They were stored, and a barrier was passed.
    #[inline(always)]
    unsafe fn load() -> Self {
        // SAFETY: the layout has the words.
        let [num_masks, num_whole, num_parts, num_items] =
            unsafe { Shared::<[u32; 4]>::at(layout::SHARES).load(0) };
        Self { num_masks, num_whole, num_parts, num_items }
    }
}

/// A part of a mask: of its columns.
#[derive(Clone, Copy)]
struct Part {
    /// Index in the mask.
    idx: u32,
    /// Parts of the mask.
    num: u32,
    /// Index of the part's room.
    room: u32,
}

impl Part {
    /// A whole mask.
    const WHOLE: Self = Self { idx: 0, num: 1, room: 0 };

    /// This part of `len` columns: about as many as the others, and where one ends the next begins.
    #[inline(always)]
    fn of(&self, len: u32) -> Span {
        let share = math::div_approx(len as f32, self.num as f32);
        let at = |idx: u32| if idx < self.num { ((idx as f32 * share) as u32).min(len) } else { len };
        Span { start: at(self.idx), end: at(self.idx + 1) }
    }
}

/// Readies the counters of a mask. Callers: the block's first warp, or all of it. A barrier is owed.
///
/// # Safety
/// The block has the layout's shared memory.
#[inline(always)]
unsafe fn reset() {
    if thread::thread_idx_x() < 32 {
        // SAFETY: the layout has the words.
        unsafe {
            Stats::reset_shared();
            Signs::reset(masks::counters(), Shared::at(layout::ODD), layout::ODD_WORDS);
        }
    }
}

/// Keeps the record of an image, and the weights and groups of its rows unless its geometry is the one that was `prepared`.
/// Returns the image's geometry.
///
/// Callers: every thread of the block. Ends with a barrier.
///
/// # Safety
/// As [`masks_rle`]; a barrier was passed since record and rows were read.
#[track_caller]
#[inline(always)]
unsafe fn prepare<const IN_SHARED: bool>(params: Params, image: u32, prepared: u32) -> u32 {
    // SAFETY: the caller vouches for the image; arrays are filled inside their room, between barriers.
    unsafe {
        let args = &masks::args(params);
        masks::keep_record(args, params, image);
        thread::sync_threads();
        let record = masks::kept_record();
        if record.geometry != prepared {
            if thread::thread_idx_x() == 0 {
                Facts::new::<IN_SHARED>(&args.rle, &record).store();
            }
            thread::sync_threads();
            // Tables of an empty window do not exist, and single rows need no groups.
            if !is_empty(&record) && record.flags & IMAGE_PLAIN_ROWS == 0 {
                let (axis, has_groups) = (Axis::rows(&record, args.flags), record.window_h <= args.rle.num_groups);
                let found = Rows::new(params, &record, image).fill(&axis, has_groups);
                if found != 0 {
                    Shared::<u32>::at(layout::FACTS).fetch_or(0, found);
                }
            }
            thread::sync_threads();
        }
        record.geometry
    }
}

/// What follows from an image's geometry.
#[derive(Clone, Copy)]
struct Facts {
    /// [`HAS_ROOM`], [`HAS_IRREGULAR`], [`HAS_EMPTY`].
    findings: u32,
    /// Words of a column's changes; 0 if they have no room.
    num_words: u32,
    /// Words of a tile.
    tile_words: u32,
    /// Tiles that have room.
    num_tiles: u32,
}

impl Facts {
    #[inline(always)]
    fn new<const IN_SHARED: bool>(rle: &RleLayout, record: &ImageRecord) -> Self {
        let window_words = record.window_h.div_ceil(32);
        let has_room = record.window_w * window_words <= rle.num_sign_words
            && record.window_w <= 32 * layout::ODD_WORDS
            && (!IN_SHARED || record.window_w * record.window_h <= rle.num_cells)
            && TILE_ENTRY_WORDS + 32 * (1 + window_words) <= rle.num_tile_words
            && record.window_h <= rle.num_groups
            && record.flags & IMAGE_PLAIN_ROWS == 0
            && !is_empty(record);
        // Rows of which a tile keeps changes: those of the window, or of the content if they have room.
        let content_words = record.content_h.div_ceil(32);
        let (num_words, tile_words) = match (has_room, 32 * (1 + content_words) <= rle.num_tile_words) {
            (true, _) => (window_words, TILE_ENTRY_WORDS + 32 * (1 + window_words)),
            (false, true) => (content_words, 32 * (1 + content_words)),
            (false, false) => (0, 32),
        };
        // SAFETY: a tile has words.
        let (num_tiles, _) = unsafe { div_rem(rle.num_tile_words, tile_words) };
        let findings = if has_room { HAS_ROOM } else { 0 };
        Self { findings, num_words, tile_words, num_tiles: num_tiles.min(layout::MAX_TILES) }
    }

    /// # Safety
    /// The block has the layout's shared memory, and a barrier was passed since they were read.
    #[inline(always)]
    unsafe fn store(&self) {
        // SAFETY: the layout has the words.
        let words = unsafe { Shared::<[u32; 4]>::at(layout::FACTS) };
        // SAFETY: as above.
        unsafe { words.store(0, [self.findings, self.num_words, self.tile_words, self.num_tiles]) };
    }

    /// # Safety
    /// They were stored, and a barrier was passed.
    #[inline(always)]
    unsafe fn load() -> Self {
        // SAFETY: the layout has the words.
        let [findings, num_words, tile_words, num_tiles] = unsafe { Shared::<[u32; 4]>::at(layout::FACTS).load(0) };
        Self { findings, num_words, tile_words, num_tiles }
    }

    /// Whether changes are those of window rows, found by signs; else they are those of output rows.
    #[inline(always)]
    fn is_fast(&self) -> bool {
        self.findings & (HAS_ROOM | HAS_EMPTY) == HAS_ROOM
    }
}

/// Whether the last pixel of a column and the first of the next are neighbors in the mask, and both are content.
#[inline(always)]
fn joins(record: &ImageRecord) -> bool {
    record.offset_y == 0 && record.content_h == record.height
}

/// Flat position of the first content pixel of column `x`.
#[inline(always)]
fn base(record: &ImageRecord, x: u32) -> u32 {
    (record.offset_x + x) * record.height + record.offset_y
}

/// Whether the run that reaches the bottom of column `x` ends there: it is no part of the next column's, and does not end with
/// the mask.
#[inline(always)]
fn ends_at_bottom(record: &ImageRecord, x: u32) -> bool {
    !(joins(record) && x + 1 < record.content_w) && base(record, x) + record.content_h < record.width * record.height
}

/// Whether nothing of the grid shows content: every mask is empty.
#[inline(always)]
fn is_empty(record: &ImageRecord) -> bool {
    record.window_w == 0 || record.window_h == 0
}

/// The output rows: their weights, and which of them lie between which window rows.
#[derive(Clone, Copy)]
struct Rows {
    params: Params,
    image: u32,
    groups: Shared<u32>,
    weights: Shared<[f32; 2]>,
    /// Whether the weights have room; else they are read from the table.
    has_weights: bool,
    is_bilinear: bool,
}

impl Rows {
    /// # Safety
    /// The running entry's arguments are those of a mask kernel, which has the shared memory of their `rle`; `record` is the
    /// image's.
    #[inline(always)]
    unsafe fn new(params: Params, record: &ImageRecord, image: u32) -> Self {
        // SAFETY: the caller vouches for it.
        unsafe {
            let args = masks::args(params);
            Self {
                params,
                image,
                groups: Shared::at(args.rle.groups_offset),
                weights: Shared::at(args.rle.weights_offset),
                has_weights: record.content_h <= args.rle.num_weights,
                is_bilinear: args.flags & FLAG_BILINEAR != 0,
            }
        }
    }

    /// Computes groups and weights. The group of window row `r` are the output rows whose first cell is `r`; kept is its end.
    /// Returns [`HAS_IRREGULAR`] and [`HAS_EMPTY`] for the groups that this thread ended.
    ///
    /// Example: 3 rows stretched to 7 have the first cells 0 0 0 0 1 1 2, so the ends are 4, 6 and 7.
    ///
    /// Callers: every thread of the block. A barrier is owed.
    ///
    /// # Safety
    /// As [`Rows::new`]; `axis` is the image's, and `has_groups` says whether its window's groups have room.
    #[inline(always)]
    unsafe fn fill(&self, axis: &Axis, has_groups: bool) -> u32 {
        let mut found = 0;
        let mut y = thread::thread_idx_x();
        while y < axis.n_out {
            let (first, count) = axis.span(y);
            // SAFETY: both arrays have room where they say so; first cells never decrease, so each group is ended by one row.
            unsafe {
                if self.has_weights {
                    // Those of rows of three cells are not used.
                    self.weights.store(y, axis.pair(y, (first, count)));
                }
                let next = if y + 1 < axis.n_out { axis.span(y + 1).0 } else { axis.n_in };
                if has_groups {
                    let mut r = if y == 0 { 0 } else { first };
                    while r < next {
                        // Above two cells only the last row of a group can be, by a rounding of its bounds: `high - low` is
                        // 2, so a third cell needs `low` within two ulp of the next cell, which the row below has passed.
                        let is_irregular = r == first && count > 2;
                        let end = if r < first { 0 } else { y + 1 };
                        self.groups.store(r, end | if is_irregular { GROUP_IS_IRREGULAR } else { 0 });
                        found |= if is_irregular { HAS_IRREGULAR } else { 0 };
                        found |= if r != first { HAS_EMPTY } else { 0 };
                        r += 1;
                    }
                }
            }
            y += thread::block_dim_x();
        }
        found
    }

    /// End of the group of window row `r`, with its flag.
    ///
    /// # Safety
    /// `r` is below the window's height, and the groups have room.
    #[inline(always)]
    unsafe fn group_end(&self, r: u32) -> u32 {
        // SAFETY: the caller vouches for the row.
        unsafe { self.groups.load(r) }
    }

    /// First output row of the group of window row `r`.
    ///
    /// # Safety
    /// As [`group_end`](Self::group_end).
    #[inline(always)]
    unsafe fn group_start(&self, r: u32) -> u32 {
        // SAFETY: the caller vouches for the row.
        unsafe { if r > 0 { self.group_end(r - 1) & !GROUP_IS_IRREGULAR } else { 0 } }
    }

    /// The value of content row `y`, which blends the window rows above and below it; not for irregular groups.
    ///
    /// # Safety
    /// `y` is below the content's height.
    #[inline(always)]
    unsafe fn blend(&self, y: u32, above: f32, below: f32) -> f32 {
        // SAFETY: the caller vouches for the row.
        let [w0, w1] = unsafe {
            if self.has_weights {
                self.weights.load(y)
            } else {
                let geometry = Geometry::new(&masks::args(self.params), masks::kept_record(), self.image);
                let [_, w0, w1, _] = geometry.row_entry(y);
                [f32::from_bits(w0), f32::from_bits(w1)]
            }
        };
        // A row of one cell has a second weight of zero, which changes no finite value.
        if self.is_bilinear { math::fma(w0, above, w1 * below) } else { math::fma(below, w1, above * w0) }
    }
}

/// Makes a part of a mask; the block that makes the last part encodes the mask.
///
/// Callers: every thread of the block, after a barrier behind [`reset`] and [`prepare`]. Ends with both done and a barrier passed.
///
/// # Safety
/// As [`masks_rle`]; the part is the block's own.
#[track_caller]
#[inline(always)]
unsafe fn mask<const IN_SHARED: bool>(mut mask: Mask<IN_SHARED>) {
    let (params, image, tid) = (mask.params, mask.image, thread::thread_idx_x());
    // SAFETY: image, slot and part are of this launch; shared memory is used inside its layout; barriers separate the
    // phases; a part hands over no more than its room.
    unsafe {
        let mut encoder = Encoder::new(params, image, mask.slot);
        let mut nonfinite = 0;
        let (mut is_redone, mut is_finished) = (false, true);
        loop {
            let args = &masks::args(params);
            let kept = masks::load_row(args, masks::row_idx(args, image, mask.slot));
            mask.load();
            masks::keep_row(kept);
            thread::sync_threads();
            let handed = mask.transitions(&mut encoder);
            let Part { idx, num, room } = mask.part;
            // The first warp alone, which readies the counters for the next mask. A part that is done anew was counted before.
            if warp::warp_id() == 0 && !is_redone {
                nonfinite = mask.nonfinite();
            }
            if num == 1 {
                break;
            }

            // The part is done. Its box is for the block that finishes the mask.
            let args = &masks::args(params);
            let row = masks::row_idx(args, image, mask.slot);
            let lens = Global::<u32>::from_address(args.part_lens_at);
            if tid == 0 {
                masks::add_stats(args, row, &Stats::of_shared());
                masks::add_nonfinite(args, image, nonfinite);
                lens.store(room as usize, handed);
            }
            nonfinite = 0;
            if !masks::is_last_part(args, row, num) {
                is_finished = false;
                break;
            }
            let first = room - idx;
            let len = if tid < num { lens.load((first + tid) as usize) } else { 0 };
            if thread::sync_threads_or(len > args.part_capacity) {
                // A part has no room for its transitions: the whole mask once more, in one.
                mask.part = Part::WHOLE;
                is_redone = true;
                reset();
                thread::sync_threads();
                continue;
            }
            let starts = Shared::<u32>::at(layout::PART_STARTS);
            if tid < 32 {
                let before = warp_inclusive_add(len) - len;
                if tid <= num {
                    starts.store(tid, before);
                }
                if tid == 0 {
                    masks::load_stats(args, row).store_box_to_shared();
                }
            }
            thread::sync_threads();
            // The last run ends with the mask.
            let total = starts.load(num) + 1;
            let mut start = 0;
            while start < total {
                let len = (total - start).min(args.rle.window);
                let is_end = start + len == total;
                gather(args, room_of(args, first), num, start, len - is_end as u32);
                if is_end && tid == 0 {
                    let record = masks::kept_record();
                    Scratch::new(args).transitions.store(3 + len - 1, record.width * record.height);
                }
                thread::sync_threads();
                encoder.encode(len, is_end);
                start += len;
            }
            break;
        }
        if is_finished && warp::warp_id() == 0 {
            let args = &masks::args(params);
            let row = masks::row_idx(args, image, mask.slot);
            let lens = [encoder.offset(args), encoder.len(args), encoder.num_counts];
            masks::warp_finish_mask(args, image, row, &Stats::of_shared(), lens, nonfinite, Shares::load().num_masks);
        }
        reset();
        thread::sync_threads();
    }
}

/// Where a part hands its transitions over.
#[inline(always)]
fn room_of(args: &MaskArgs, room: u32) -> Global<u32> {
    Global::from_address(args.parts_at + 4 * room as u64 * args.part_capacity as u64)
}

/// Fetches `len` transitions from number `start` on from the rooms of a mask's parts to the window.
///
/// # Safety
/// `rooms` are the rooms of the mask's parts, whose transitions they hold, and shared memory has where each begins.
#[inline(always)]
unsafe fn gather(args: &MaskArgs, rooms: Global<u32>, num_parts: u32, start: u32, len: u32) {
    // SAFETY: the layout has the words.
    let starts = unsafe { Shared::<u32>::at(layout::PART_STARTS) };
    let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
    // Where the transition number `start + i` lies; behind the last it is the last.
    let at = |i: u32| {
        let idx = start + i.min(len - 1);
        // The last part that begins at or before it.
        let (mut k, mut step) = (0, layout::MAX_PARTS / 2);
        while step > 0 {
            // SAFETY: a word for each part.
            if k + step < num_parts && unsafe { starts.load(k + step) } <= idx {
                k += step;
            }
            step /= 2;
        }
        // SAFETY: as above.
        (k * args.part_capacity + idx - unsafe { starts.load(k) }) as usize
    };
    let mut i = tid;
    while i < len {
        // SAFETY: the caller vouches for the rooms; the window has room.
        unsafe {
            // Four at a time: their loads do not wait for each other.
            let load = |j: u32| rooms.load_volatile(at(i + j * block));
            let (t0, t1, t2, t3) = (load(0), load(1), load(2), load(3));
            let store = |j: u32, transition: u32| {
                if i + j * block < len {
                    Scratch::new(args).transitions.store(3 + i + j * block, transition);
                }
            };
            store(0, t0);
            store(1, t1);
            store(2, t2);
            store(3, t3);
        }
        i += 4 * block;
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
        sum += unsafe { counts.load(tile) } & TILE_COUNT;
        tile += 32;
    }
    warp::warp_reduce_add(FULL_MASK, sum)
}

/// The part of a mask that a block makes.
#[derive(Clone, Copy)]
struct Mask<const IN_SHARED: bool> {
    params: Params,
    image: u32,
    slot: u32,
    query_idx: u32,
    part: Part,
}

impl<const IN_SHARED: bool> Mask<IN_SHARED> {
    /// The cells of the mask.
    ///
    /// # Safety
    /// The block has the shared memory of `args.rle`.
    #[inline(always)]
    unsafe fn cells(&self, args: &MaskArgs, record: &ImageRecord) -> Cells<IN_SHARED> {
        Cells {
            window: Window::new(args, record, self.image, self.query_idx),
            // SAFETY: the caller vouches for it.
            shared: unsafe { Shared::at(args.rle.cells_offset) },
            num_columns: record.window_w,
        }
    }

    /// Loads cells and signs.
    ///
    /// Callers: every thread of the block, after a barrier behind [`reset`]. A barrier is owed.
    ///
    /// # Safety
    /// As [`mask`].
    #[track_caller]
    #[inline(always)]
    unsafe fn load(&self) {
        // SAFETY: the caller vouches for the record; shared memory is used inside its layout.
        unsafe {
            let args = &masks::args(self.params);
            let record = masks::kept_record();
            let (window_w, part) = (record.window_w, self.part);
            let counted = part.of(window_w);
            // The cells that the part's columns are made of, the column before it included, and those that it counts.
            let mut columns = Span { start: 0, end: window_w };
            if part.num > 1 {
                let (axis, content) = (Axis::columns(&record, args.flags), part.of(record.content_w));
                let reach = axis.support + axis.scale + 1.5;
                let start = (content.start as f32 * axis.scale - reach) as i32 - 1;
                let end = (content.end as f32 * axis.scale + reach) as i32 + 2;
                columns.start = (start.max(0) as u32).min(counted.start);
                columns.end = (end.max(0) as u32).max(counted.end).min(window_w);
            }
            let has_room = Facts::load().findings & HAS_ROOM != 0;
            let words = has_room.then_some(args.rle.signs_offset);
            let odd = Shared::<u32>::at(layout::ODD);
            Signs::load(&self.cells(args, &record), record.window_h, columns, counted, words, odd, masks::counters());
        }
    }

    /// Cells of the part that are not finite, after a barrier behind [`load`](Self::load).
    ///
    /// # Safety
    /// As [`mask`].
    #[inline(always)]
    unsafe fn nonfinite(&self) -> u32 {
        // SAFETY: the caller vouches for the counters.
        unsafe { Signs::loaded(Shared::at(0), 0, Shared::at(layout::ODD), masks::counters()).nonfinite }
    }

    /// The mask's columns, as one phase sees them: everything is read anew.
    ///
    /// # Safety
    /// The block keeps the record, and a barrier was passed since [`load`](Self::load).
    #[inline(always)]
    unsafe fn columns(&self) -> Columns<IN_SHARED> {
        // SAFETY: the caller vouches for the record.
        unsafe {
            let args = &masks::args(self.params);
            let record = masks::kept_record();
            Columns {
                mask: *self,
                facts: Facts::load(),
                is_bilinear: args.flags & FLAG_BILINEAR != 0,
                cells: self.cells(args, &record),
                signs: Signs::loaded(
                    Shared::at(args.rle.signs_offset),
                    record.window_h.div_ceil(32),
                    Shared::at(layout::ODD),
                    masks::counters(),
                ),
                tiles_offset: args.rle.tiles_offset,
                tiles: Shared::at(args.rle.tiles_offset),
                window_h: record.window_h,
            }
        }
    }

    /// Tables and cells for what is computed pixel by pixel. It is rare, so nothing of it is held beside the rest.
    ///
    /// # Safety
    /// As [`columns`](Self::columns).
    #[inline(always)]
    unsafe fn plain(&self) -> (Geometry, Cells<IN_SHARED>) {
        // SAFETY: the caller vouches for the record.
        unsafe {
            let (args, record) = (&masks::args(self.params), masks::kept_record());
            (Geometry::new(args, record, self.image), self.cells(args, &record))
        }
    }

    /// Makes the transitions of the part, batch of tiles by batch, window by window: those of a whole mask go to the encoder,
    /// those of a part to its room. Returns their number; above the room's capacity some are missing there.
    ///
    /// Callers: every thread of the block, after a barrier behind [`load`](Self::load). Ends with a barrier.
    ///
    /// # Safety
    /// As [`mask`].
    #[track_caller]
    #[inline(always)]
    unsafe fn transitions(&self, encoder: &mut Encoder) -> u32 {
        let (tid, is_whole) = (thread::thread_idx_x(), self.part.num == 1);
        let num_warps = thread::block_dim_x() / 32;
        // SAFETY: the caller vouches for the mask; barriers separate the phases.
        unsafe {
            let (counts, carries) =
                (Shared::<u32>::at(layout::TILE_COUNTS), Shared::<u32>::at(layout::TILE_CARRIES));
            let (live, batch) = (self.columns().live(), Facts::load().num_tiles);
            let num_tiles = div_ceil(live.end - live.start, TILE);
            let (mut first_tile, mut handed) = (0, 0);
            loop {
                let num = (num_tiles - first_tile).min(batch);
                let is_last = first_tile + num == num_tiles;
                let batch_x = live.start + TILE * first_tile;
                let (columns, mut stats) = (self.columns(), Stats::EMPTY);
                let mut tile = warp::warp_id();
                while tile < num {
                    let (count, carry) = columns.count(tile, batch_x + TILE * tile, live.end, &mut stats);
                    if warp::lane_id() == 0 {
                        counts.store(tile, count);
                        carries.store(tile, carry);
                    }
                    tile += num_warps;
                }
                stats.add_to_shared();
                thread::sync_threads();

                // The last run ends with the mask.
                let total = warp_sum_of_tiles(counts, num) + (is_last && is_whole) as u32;
                let mut start = 0;
                while start < total {
                    let args = &masks::args(self.params);
                    let len = (total - start).min(args.rle.window);
                    let is_end = is_last && is_whole && start + len == total;
                    let place = Place { transitions: Scratch::new(args).transitions, start, len };
                    let columns = self.columns();
                    let mut tile = warp::warp_id();
                    while tile < num {
                        let count = counts.load(tile);
                        let first = warp_sum_of_tiles(counts, tile);
                        if first < start + len && first + (count & TILE_COUNT) > start {
                            let x0 = batch_x + TILE * tile;
                            columns.list(tile, x0, live.end, count, first, carries.load(tile), &place);
                        }
                        tile += num_warps;
                    }
                    if is_end && tid == 0 {
                        let record = masks::kept_record();
                        place.at(total - 1, record.width * record.height);
                    }
                    thread::sync_threads();
                    let args = &masks::args(self.params);
                    let room = room_of(args, self.part.room);
                    let (columns, record, mut stats) = (self.columns(), masks::kept_record(), Stats::EMPTY);
                    let rows = Rows::new(self.params, &record, self.image);
                    let mut i = tid;
                    while i < len {
                        let position = columns.find(&rows, &record, batch_x, place.transitions.load(3 + i), &mut stats);
                        let at = handed + start + i;
                        if is_whole {
                            place.transitions.store(3 + i, position);
                        } else if at < args.part_capacity {
                            room.store(at as usize, position);
                        }
                        i += thread::block_dim_x();
                    }
                    stats.add_to_shared();
                    thread::sync_threads();
                    if is_whole {
                        encoder.encode(len, is_end);
                    }
                    start += len;
                }
                handed += total;
                first_tile += num;
                if is_last {
                    return handed;
                }
                if total == 0 {
                    // No window had a barrier; the next tiles overwrite what was summed.
                    thread::sync_threads();
                }
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
    /// Lists transition `idx`, if it is in the window.
    ///
    /// # Safety
    /// Nobody else lists it.
    #[inline(always)]
    unsafe fn at(&self, idx: u32, transition: u32) {
        // Below the window's start the difference is above any length.
        let i = idx.wrapping_sub(self.start);
        if i < self.len {
            // SAFETY: inside the window, behind the three words before it.
            unsafe { self.transitions.store(3 + i, transition) };
        }
    }
}

/// The bits below bit `i` and the bit itself, each as the parity of the bits up to it: changes become states.
#[inline(always)]
fn states_of(changes: u32) -> u32 {
    let mut states = changes;
    states ^= states << 1;
    states ^= states << 2;
    states ^= states << 4;
    states ^= states << 8;
    states ^ states << 16
}

/// The columns of one mask.
struct Columns<const IN_SHARED: bool> {
    mask: Mask<IN_SHARED>,
    facts: Facts,
    is_bilinear: bool,
    cells: Cells<IN_SHARED>,
    signs: Signs,
    tiles_offset: u32,
    tiles: Shared<u32>,
    window_h: u32,
}

impl<const IN_SHARED: bool> Columns<IN_SHARED> {
    /// Content columns that may have foreground, and at least one more behind them if there is one.
    ///
    /// # Safety
    /// As [`Mask::columns`].
    #[inline(always)]
    unsafe fn live(&self) -> Span {
        // SAFETY: the caller vouches for the record.
        let record = unsafe { masks::kept_record() };
        let part = self.mask.part.of(record.content_w);
        let none = Span { start: part.start, end: part.start };
        if is_empty(&record) {
            return none;
        }
        if !self.facts.is_fast() {
            return part;
        }
        let live = self.signs.live;
        if live.end == 0 {
            return none;
        }
        // An estimate that is never too narrow: the filter reaches `support` cells from a center; rounding is far below
        // the cell and the columns added.
        let reach = record.support_x + 1.5;
        let start = ((live.start as f32 - reach) * record.columns_per_cell) as i32 - 2;
        let end = ((live.end as f32 + reach) * record.columns_per_cell) as i32 + 3;
        let start = (start.max(0) as u32).max(part.start).min(part.end);
        Span { start, end: (end.max(0) as u32).min(part.end).max(start) }
    }

    /// Where a tile keeps the table entries of its columns.
    ///
    /// # Safety
    /// The tile has room.
    #[inline(always)]
    unsafe fn entries(&self, tile: u32) -> Shared<[u32; 4]> {
        // SAFETY: tiles begin at multiples of 128 bytes.
        unsafe { Shared::at(self.tiles_offset + 4 * tile * self.facts.tile_words) }
    }

    /// Where this lane's number of transitions before lies; its word `k` of changes is 32 (1 + k) behind.
    #[inline(always)]
    fn column_idx(&self, tile: u32) -> u32 {
        tile * self.facts.tile_words + if self.facts.is_fast() { TILE_ENTRY_WORDS } else { 0 } + warp::lane_id()
    }

    /// Counts the transitions of a tile of columns, and stores where they are. Returns their number with its flags, and each
    /// column's state before its first row as a bit of its lane.
    ///
    /// Lane 0 has the column before the tile, for its last state only.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// The tile has room; `x0` is below `x_end`.
    #[track_caller]
    #[inline(always)]
    unsafe fn count(&self, tile: u32, x0: u32, x_end: u32, stats: &mut Stats) -> (u32, u32) {
        let lane = warp::lane_id();
        let is_looked_at = x0 + lane > 0 && x0 + lane - 1 < x_end;
        let is_column = is_looked_at && lane > 0;
        let x = if is_looked_at { x0 + lane - 1 } else { x0 };
        let at = self.column_idx(tile);
        // SAFETY: columns are inside the content, rows inside the window; a lane reads and writes its own words.
        unsafe {
            // The column's changes from background, and its first state.
            let (mut count, mut top, mut is_plain) = (0, 0, true);
            if self.facts.is_fast() {
                let entry = self.mask.plain().0.column_entry(x);
                self.entries(tile).store(lane, entry);
                let column = Taps::new(entry, self.cells.num_columns, self.is_bilinear);
                let is_odd;
                (count, top, is_odd) = self.store_changes(at, &column);
                is_plain = warp::warp_vote_any(FULL_MASK, is_odd && is_looked_at);
            }
            let mut flag = 0;
            if is_plain {
                let has_room = masks::kept_record().content_h <= 32 * self.facts.num_words;
                flag = if has_room { TILE_IS_PLAIN } else { TILE_IS_WALKED };
            } else if count > 0 && is_column {
                let record = masks::kept_record();
                // Rows come with the positions, but for those that have none.
                let (first, last) = (record.offset_y, record.offset_y + record.content_h);
                let x = record.offset_x + x;
                let (low, high) = (if top != 0 { first } else { u32::MAX }, if count & 1 != 0 { last } else { 0 });
                stats.add(0, [x, low, x + 1, high]);
            }
            if flag != 0 {
                let record = masks::kept_record();
                (count, top) = (0, 0);
                let mut k = 0;
                while k < self.facts.num_words {
                    self.tiles.store(at + 32 * (1 + k), 0);
                    k += 1;
                }
                let start = if is_column { 0 } else { record.content_h - 1 };
                let (x, y0) = (record.offset_x + x, record.offset_y);
                self.walk(x - record.offset_x, if is_looked_at { start } else { record.content_h }, false, |y, state| {
                    count += 1;
                    top |= (y == 0) as u32;
                    if is_column {
                        stats.add(0, if state { [x, y0 + y, x + 1, y0 + y + 1] } else { [u32::MAX, u32::MAX, 0, y0 + y] });
                        if flag == TILE_IS_PLAIN {
                            let word = at + 32 * (1 + y / 32);
                            self.tiles.store(word, self.tiles.load(word) | 1 << (y % 32));
                        }
                    }
                });
                if is_column && count & 1 != 0 {
                    stats.add(0, [u32::MAX, u32::MAX, 0, y0 + record.content_h]);
                }
            }
            let is_bottom = is_looked_at && count & 1 != 0;
            let bottoms = warp::warp_vote_ballot(FULL_MASK, is_bottom);
            let record = masks::kept_record();
            let before = if joins(&record) { bottoms << 1 } else { 0 };
            let is_before = before >> lane & 1 != 0;
            // The first row was compared with background.
            if is_before && is_column && flag != TILE_IS_WALKED {
                let word = at + 32;
                self.tiles.store(word, self.tiles.load(word) ^ 1);
            }
            count = count + ((top != 0) != is_before) as u32 - top + (is_bottom && ends_at_bottom(&record, x)) as u32;
            let up_to = warp_inclusive_add(if is_column { count } else { 0 });
            self.tiles.store(at, up_to - if is_column { count } else { 0 });
            (warp::warp_shuffle_idx(FULL_MASK, up_to, 31) | flag, before)
        }
    }

    /// Calls `visit(y, state)` for every content row from `start` on where column `x` changes from the state before, which is
    /// `state` at first: the plain way.
    ///
    /// # Safety
    /// As [`Columns::count`].
    #[inline(always)]
    unsafe fn walk(&self, x: u32, start: u32, mut state: bool, mut visit: impl FnMut(u32, bool)) {
        // SAFETY: the caller vouches for the column.
        unsafe {
            let (geometry, cells) = self.mask.plain();
            let column = geometry.column(x);
            let mut y = start;
            while y < geometry.record.content_h {
                if cells.window.is_foreground(&geometry, &column, y) != state {
                    state = !state;
                    visit(y, state);
                }
                y += 1;
            }
        }
    }

    /// The bits of word `k` that are window rows.
    #[inline(always)]
    fn row_bits(&self, k: u32) -> u32 {
        let left = self.window_h - 32 * k;
        if left >= 32 { u32::MAX } else { (1 << left) - 1 }
    }

    /// Stores, from word `at + 32` on, where the signs of a column change, as if above it were background, without the changes
    /// that no output row shows. Returns their number, the first state, and whether the column must be evaluated pixel by pixel:
    /// then the rest means nothing.
    ///
    /// # Safety
    /// As [`Columns::count`].
    #[inline(always)]
    unsafe fn store_changes(&self, at: u32, column: &Taps) -> (u32, u32, bool) {
        // SAFETY: the caller vouches for tile and column.
        unsafe {
            let mut is_odd = self.signs.is_odd(column);
            let (mut count, mut top, mut islands) = (0, 0, 0);
            let (mut state, mut change) = (0, 0);
            let mut k = 0;
            while k < self.facts.num_words {
                let (first, second) = (self.signs.word(column.first, k), self.signs.word(column.second, k));
                let (mut word, mut mixed) = (first & second, first ^ second);
                while mixed != 0 {
                    let bit = mixed.trailing_zeros();
                    mixed &= mixed - 1;
                    let value = self.cells.stretched(column, 32 * k + bit);
                    word |= ((value > 0.0) as u32) << bit;
                    // Positive and tiny.
                    is_odd |= value.to_bits().wrapping_sub(1) < TINY.to_bits() - 1;
                }
                let changes = (word ^ (word << 1 | state)) & self.row_bits(k);
                // Two changes in a row make an island, unless they are the first row's, which shows.
                let is_first = (k == 0) as u32;
                islands |= changes & ((changes & !is_first) << 1 | change);
                top |= word & is_first;
                count += changes.count_ones();
                self.tiles.store(at + 32 * (1 + k), changes);
                (state, change) = (word >> 31, changes >> 31);
                k += 1;
            }
            if self.facts.findings & HAS_IRREGULAR != 0 {
                is_odd |= !self.is_monotone(at, column);
            }
            if islands != 0 && !is_odd {
                count = self.hide_islands(at, column);
            }
            (count, top, is_odd)
        }
    }

    /// Takes the islands that no output row shows out of a column's changes. Returns the number of changes that are left.
    ///
    /// # Safety
    /// As [`Columns::store_changes`].
    #[inline(always)]
    unsafe fn hide_islands(&self, at: u32, column: &Taps) -> u32 {
        // SAFETY: the caller vouches for tile and column; an island has window rows above and below.
        unsafe {
            let (mut count, mut state, mut shown_state) = (0, 0, 0);
            let mut changes = self.tiles.load(at + 32);
            let mut k = 0;
            while k < self.facts.num_words {
                let next = if k + 1 < self.facts.num_words { self.tiles.load(at + 32 * (2 + k)) } else { 0 };
                let rows = self.row_bits(k);
                let word = (states_of(changes) ^ 0u32.wrapping_sub(state)) & rows;
                let is_first = (k == 0) as u32;
                let islands = changes & !is_first & (changes >> 1 | next << 31);
                let shown = word ^ self.hidden(column, 32 * k, islands, word);
                let shown_changes = (shown ^ (shown << 1 | shown_state)) & rows;
                self.tiles.store(at + 32 * (1 + k), shown_changes);
                count += shown_changes.count_ones();
                (state, shown_state, changes) = (word >> 31, shown >> 31, next);
                k += 1;
            }
            count
        }
    }

    /// Of the rows `islands` of a word that begins with window row `first_row`, those that no output row shows. An island
    /// shows in the output row above its own group, or in the first of its group.
    ///
    /// # Safety
    /// As [`Columns::store_changes`].
    #[inline(always)]
    unsafe fn hidden(&self, column: &Taps, first_row: u32, islands: u32, word: u32) -> u32 {
        let (mut rest, mut hidden) = (islands, 0);
        while rest != 0 {
            let bit = rest.trailing_zeros();
            rest &= rest - 1;
            // SAFETY: an island has window rows above and below, and every group has output rows.
            unsafe {
                let (geometry, cells) = self.mask.plain();
                let rows = Rows::new(self.mask.params, &geometry.record, self.mask.image);
                let y = rows.group_start(first_row + bit);
                let is_positive = word >> bit & 1 != 0;
                let is_shown = (cells.pixel(&geometry, column, y - 1) > 0.0) == is_positive
                    || (cells.pixel(&geometry, column, y) > 0.0) == is_positive;
                hidden |= (!is_shown as u32) << bit;
            }
        }
        hidden
    }

    /// Whether the rows of the irregular groups beside a column's changes have the states that the signs of their window rows
    /// say. The last row of such a group has three cells, the third with next to no weight.
    ///
    /// # Safety
    /// As [`Columns::store_changes`].
    #[inline(always)]
    unsafe fn is_monotone(&self, at: u32, column: &Taps) -> bool {
        let (mut is_monotone, mut state) = (true, false);
        // Whether the window rows above change.
        let mut r = 0;
        // SAFETY: rows of the group, which has a window row below.
        unsafe {
            let (geometry, cells) = self.mask.plain();
            let rows = Rows::new(self.mask.params, &geometry.record, self.mask.image);
            while r + 1 < self.window_h {
                let changes = |r: u32| {
                    r < self.window_h && self.tiles.load(at + 32 * (1 + r / 32)) >> (r % 32) & 1 != 0
                };
                state ^= changes(r);
                let end = rows.group_end(r);
                if end & GROUP_IS_IRREGULAR != 0 && (changes(r + 1) || changes(r + 2)) {
                    let (end, start) = (end & !GROUP_IS_IRREGULAR, rows.group_start(r));
                    let (from, to) = (state, state ^ changes(r + 1));
                    let last = cells.pixel(&geometry, column, end - 1) > 0.0;
                    let is_first = end - 1 == start;
                    is_monotone &= last == to
                        || from != to && (is_first || (cells.pixel(&geometry, column, end - 2) > 0.0) == from);
                }
                r += 1;
            }
        }
        is_monotone
    }

    /// Lists those transitions of a tile that are in a window; `first` is the index of its first. `count` and `carry` are what
    /// [`count`](Self::count) returned.
    ///
    /// # Safety
    /// The tile was counted.
    #[allow(clippy::too_many_arguments, reason = "a tile, what was counted of it, and where it goes")]
    #[inline(always)]
    unsafe fn list(&self, tile: u32, x0: u32, x_end: u32, count: u32, first: u32, carry: u32, place: &Place) {
        let lane = warp::lane_id();
        let x = (x0 + lane).wrapping_sub(1);
        if lane == 0 || x >= x_end {
            return;
        }
        let at = self.column_idx(tile);
        // SAFETY: the caller vouches for the record.
        let record = unsafe { masks::kept_record() };
        let base = base(&record, x);
        let is_plain = count & TILE_IS_PLAIN != 0;
        // SAFETY: columns are inside the content; changes were stored by this lane's twin in `count`.
        unsafe {
            let mut idx = first + self.tiles.load(at);
            let mut state = carry >> lane & 1 != 0;
            if count & TILE_IS_WALKED != 0 {
                let before = state;
                self.walk(x, 0, before, |y, visited| {
                    state = visited;
                    place.at(idx, base + y);
                    idx += 1;
                });
            }
            let mut k = 0;
            while k < self.facts.num_words && count & TILE_IS_WALKED == 0 {
                let mut changes = self.tiles.load(at + 32 * (1 + k));
                while changes != 0 {
                    let r = 32 * k + changes.trailing_zeros();
                    changes &= changes - 1;
                    state = !state;
                    let sought = IS_SOUGHT | tile << 16 | lane << 11 | r << 1 | state as u32;
                    place.at(idx, if is_plain { base + r } else { sought });
                    idx += 1;
                }
                k += 1;
            }
            if state && ends_at_bottom(&record, x) {
                place.at(idx, base + record.content_h);
            }
        }
    }

    /// The flat position of what was listed, of a batch of tiles that begins with column `batch_x`.
    ///
    /// # Safety
    /// The tile was counted, and a barrier was passed.
    #[inline(always)]
    unsafe fn find(&self, rows: &Rows, record: &ImageRecord, batch_x: u32, listed: u32, stats: &mut Stats) -> u32 {
        if listed & IS_SOUGHT == 0 {
            return listed;
        }
        let (tile, lane) = (listed >> 16 & 0x7fff, listed >> 11 & 31);
        let (r, state) = (listed >> 1 & 0x3ff, listed & 1 != 0);
        // SAFETY: the caller vouches for the tile.
        unsafe {
            let entry = self.entries(tile).load(lane);
            let column = Taps::new(entry, self.cells.num_columns, self.is_bilinear);
            let y = self.position(rows, record, &column, r, state);
            let row = record.offset_y + y;
            stats.add(0, if state { [u32::MAX, row, 0, 0] } else { [u32::MAX, u32::MAX, 0, row] });
            base(record, batch_x + TILE * tile + lane - 1) + y
        }
    }

    /// The first content row that has the state of window row `r`, which differs from that of the row above it.
    ///
    /// # Safety
    /// As [`Columns::find`].
    #[inline(always)]
    unsafe fn position(&self, rows: &Rows, record: &ImageRecord, column: &Taps, r: u32, state: bool) -> u32 {
        if r == 0 {
            return 0;
        }
        // SAFETY: the rows are inside the window, those of the search inside the content.
        unsafe {
            let end = rows.group_end(r - 1);
            let (mut low, mut high) = (rows.group_start(r - 1), end & !GROUP_IS_IRREGULAR);
            if end & GROUP_IS_IRREGULAR != 0 {
                let (geometry, cells) = self.mask.plain();
                while low < high {
                    let middle = (low + high) / 2;
                    let is_there = (cells.pixel(&geometry, column, middle) > 0.0) == state;
                    (low, high) = if is_there { (low, middle) } else { (middle + 1, high) };
                }
                return low;
            }
            let (above, below) = (self.cells.stretched(column, r - 1), self.cells.stretched(column, r));
            let is_there = |y: u32| (rows.blend(y, above, below) > 0.0) == state;
            // Where the line between both crosses zero. Two looks beside it leave nearly always nothing to search.
            let crossing = (r as f32 - 0.5) + math::div_approx(above, above - below);
            let guess = (crossing * record.rows_per_cell - 0.5) as i32 + 1;
            let guess = (guess.max(0) as u32).max(low).min(high);
            let (last, next) = (guess.max(low + 1) - 1, guess.min(high - 1));
            let (is_at_last, is_at_next) = (is_there(last), is_there(next));
            (low, high) = match (is_at_last, is_at_next) {
                (true, _) => (low, last),
                (false, true) => (last + 1, next),
                (false, false) => (next + 1, high),
            };
            while low < high {
                let middle = (low + high) / 2;
                (low, high) = if is_there(middle) { (low, middle) } else { (middle + 1, high) };
            }
            low
        }
    }
}

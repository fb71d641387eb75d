//! Where the columns of a mask change between background and foreground: signs become transitions.
//!
//! [`crate::rle`] tells how, and why that is exact.

use rfdetr_post_core::packed::{
    FLAG_BILINEAR, ImageRecord, MaskArgs,
    shared::masks::{self as layout, TILE, TILE_ENTRY_WORDS},
};

use crate::{
    axes::Axis,
    columns::{Cells, Geometry, Taps, Window},
    encode::{Encoder, Scratch},
    masks::{self, Stats},
    parts::NO_ROOM,
    rows::{Facts, GROUP_IS_IRREGULAR, HAS_IRREGULAR, HAS_ROOM, Rows, is_empty},
    scan::{div_ceil, warp_inclusive_add},
    signs::{Signs, Span, TINY},
    simt::{
        cluster, math,
        params::Params,
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// A tile's count carries this bit if its changes are those of output rows.
const TILE_IS_PLAIN: u32 = 1 << 31;
/// A tile's count carries this bit if there is no room for its changes: its columns are evaluated again to be listed.
const TILE_IS_WALKED: u32 = 1 << 30;
/// The count itself.
const TILE_COUNT: u32 = TILE_IS_WALKED - 1;

/// A listed change whose position is not known yet: its tile from bit 16 on, its lane from bit 11, its window row from bit 1,
/// and the state that begins. Positions are below 2^28.
const IS_SOUGHT: u32 = 1 << 31;

/// What a block is at. Kept in shared memory, as the record is.
#[derive(Clone, Copy)]
pub struct Item {
    /// Image of the mask.
    pub image: u32,
    /// Row of the image.
    pub slot: u32,
    /// Query of the row.
    pub query_idx: u32,
}

impl Item {
    /// Keeps it. Callers: one thread; a barrier is owed.
    ///
    /// # Safety
    /// The block has the layout's shared memory, and a barrier was passed since it was read.
    #[inline(always)]
    pub unsafe fn store(&self) {
        // SAFETY: the layout has the words.
        unsafe { Shared::<[u32; 4]>::at(layout::ITEM).store(0, [self.image, self.slot, self.query_idx, 0]) };
    }

    /// The one that is kept.
    ///
    /// # Safety
    /// It was stored, and a barrier was passed.
    #[inline(always)]
    pub unsafe fn load() -> Self {
        // SAFETY: the layout has the words.
        let [image, slot, query_idx, _] = unsafe { Shared::<[u32; 4]>::at(layout::ITEM).load(0) };
        Self { image, slot, query_idx }
    }
}

/// Keeps the block's columns of the mask. Callers: one thread; a barrier is owed.
///
/// # Safety
/// As [`Item::store`].
#[inline(always)]
pub unsafe fn keep_part(part: Span) {
    // SAFETY: the layout has the words.
    unsafe { Shared::<[u32; 2]>::at(layout::PART).store(0, [part.start, part.end]) };
}

/// The block's columns of the mask.
///
/// # Safety
/// They were kept, and a barrier was passed.
#[inline(always)]
unsafe fn kept_part() -> Span {
    // SAFETY: the layout has the words.
    let [start, end] = unsafe { Shared::<[u32; 2]>::at(layout::PART).load(0) };
    Span { start, end }
}

/// The columns that block `rank` of `num` makes of a mask whose box goes from `left` to `right`: where one block ends the next
/// begins. The box is shared out evenly, because that is where the mask is; whatever else there is of it counts all the same.
/// With them the column where the box begins among them.
#[inline(always)]
pub fn columns_of_part(record: &ImageRecord, left: f32, right: f32, rank: u32, num: u32) -> (Span, u32) {
    let (len, offset) = (record.content_w as f32, record.offset_x as f32);
    // NaN becomes 0.
    let inside = |x: f32| if x - offset > 0.0 { (x - offset).min(len) } else { 0.0 };
    let left = inside(left);
    let share = math::div_approx((inside(right) - left).max(0.0), num as f32);
    let at = |rank: u32| match rank {
        0 => 0,
        _ if rank == num => record.content_w,
        _ => ((left + rank as f32 * share) as u32).min(record.content_w),
    };
    let part = Span { start: at(rank), end: at(rank + 1) };
    (part, part.start.max(left as u32))
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

/// The mask that a block makes, or makes its part of. Which it is lies in shared memory.
#[derive(Clone, Copy)]
pub struct Mask<const IN_SHARED: bool> {
    /// The arguments.
    pub params: Params,
    /// Blocks that share it: 1, or those of the cluster.
    pub num_parts: u32,
}

impl<const IN_SHARED: bool> Mask<IN_SHARED> {
    /// The cells of a mask.
    ///
    /// # Safety
    /// The block has the shared memory of `args.rle`.
    #[inline(always)]
    unsafe fn cells(args: &MaskArgs, record: &ImageRecord, item: &Item) -> Cells<IN_SHARED> {
        Cells {
            window: Window::new(args, record, item.image, item.query_idx),
            // SAFETY: the caller vouches for it.
            shared: unsafe { Shared::at(args.rle.cells_offset) },
            num_columns: record.window_w,
        }
    }

    /// Loads cells and signs for the content's columns `part` of mask `item`, of which column `hint` is probably the first with
    /// foreground.
    ///
    /// Callers: every thread of the block, after a barrier behind [`Signs::reset`]. A barrier is owed.
    ///
    /// # Safety
    /// The block keeps record, facts and rows of the mask's image, and has the shared memory of `args.rle`.
    #[track_caller]
    #[inline(always)]
    pub unsafe fn load(&self, item: &Item, part: Span, hint: u32) {
        // SAFETY: the caller vouches for the record; shared memory is used inside its layout.
        unsafe {
            let args = &masks::args(self.params);
            let record = masks::kept_record();
            let window_w = record.window_w;
            // The columns' table entries will be in the cache when they are needed.
            let x = hint + thread::thread_idx_x();
            if x < part.end && !is_empty(&record) {
                Geometry::new(args, record, item.image).column_entry_early(x);
            }
            // The cells that the part's columns are made of, the column before it included, and those that it counts: where one
            // part's end the next one's begin.
            let axis = Axis::columns(&record, args.flags);
            let reach = axis.support + axis.scale + 1.5;
            let counted = |x: u32| {
                if x == record.content_w { window_w } else { ((x as f32 * axis.scale) as u32).min(window_w) }
            };
            let counted = Span { start: counted(part.start), end: counted(part.end) };
            let start = (part.start as f32 * axis.scale - reach) as i32 - 1;
            let end = (part.end as f32 * axis.scale + reach) as i32 + 2;
            let columns = Span {
                start: (start.max(0) as u32).min(counted.start),
                end: (end.max(0) as u32).max(counted.end).min(window_w),
            };
            let has_room = Facts::load().findings & HAS_ROOM != 0;
            let words = has_room.then_some(args.rle.signs_offset);
            let odd = Shared::<u32>::at(layout::ODD);
            Signs::load(
                &Self::cells(args, &record, item),
                record.window_h,
                columns,
                counted,
                words,
                odd,
                masks::counters(),
            );
        }
    }

    /// Cells of the part that are not finite, after a barrier behind [`load`](Self::load).
    ///
    /// # Safety
    /// As [`load`](Self::load).
    #[inline(always)]
    pub unsafe fn nonfinite(&self) -> u32 {
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
                cells: Self::cells(args, &record, &Item::load()),
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
            let (args, record, item) = (&masks::args(self.params), masks::kept_record(), Item::load());
            (Geometry::new(args, record, item.image), Self::cells(args, &record, &item))
        }
    }

    /// Makes the transitions of the part, batch of tiles by batch. Those of a whole mask go to the encoder, window by window;
    /// those of a part stay in the window. Returns their number, or [`NO_ROOM`] for a part with more than a window.
    ///
    /// Callers: every thread of the block, after a barrier behind [`load`](Self::load). Ends with a barrier, unless there is no
    /// room.
    ///
    /// # Safety
    /// As [`load`](Self::load); the block keeps the part's columns.
    #[track_caller]
    #[inline(always)]
    pub unsafe fn transitions(&self, encoder: &mut Encoder) -> u32 {
        let (tid, is_whole) = (thread::thread_idx_x(), self.num_parts == 1);
        let has_end = is_whole || cluster::block_rank() + 1 == self.num_parts;
        let num_warps = thread::block_dim_x() / 32;
        // SAFETY: the caller vouches for the mask; barriers separate the phases.
        unsafe {
            let (counts, carries) = (Shared::<u32>::at(layout::TILE_COUNTS), Shared::<u32>::at(layout::TILE_CARRIES));
            let (live, batch) = (self.columns().live(), Facts::load().num_tiles);
            let num_tiles = div_ceil(live.end - live.start, TILE);
            // Transitions that the window holds already.
            let (mut first_tile, mut held) = (0, 0);
            loop {
                let num = (num_tiles - first_tile).min(batch);
                let is_last = first_tile + num == num_tiles;
                let batch_x = live.start + TILE * first_tile;
                let (columns, mut stats) = (self.columns(), Stats::EMPTY);
                let mut tile = warp::warp_id();
                // The next tile's entries are on their way meanwhile.
                let load = |tile: u32| {
                    if tile < num { columns.load_entry(batch_x + TILE * tile, live.end) } else { [0; 4] }
                };
                let mut entry = load(tile);
                while tile < num {
                    let next = load(tile + num_warps);
                    let (count, carry) = columns.count(tile, batch_x + TILE * tile, live.end, entry, &mut stats);
                    if warp::lane_id() == 0 {
                        counts.store(tile, count);
                        carries.store(tile, carry);
                    }
                    entry = next;
                    tile += num_warps;
                }
                stats.add_to_shared();
                thread::sync_threads();

                // The last run ends with the mask.
                let total = warp_sum_of_tiles(counts, num) + (is_last && has_end) as u32;
                if !is_whole && held + total > masks::args(self.params).rle.window {
                    return NO_ROOM;
                }
                let mut start = 0;
                while start < total {
                    let args = &masks::args(self.params);
                    let len = (total - start).min(args.rle.window);
                    let is_end = is_last && has_end && start + len == total;
                    let place = Place { transitions: Scratch::window(args, held), start, len };
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
                    let (columns, record, mut stats) = (self.columns(), masks::kept_record(), Stats::EMPTY);
                    let rows = Rows::new(self.params, &record, Item::load().image);
                    let mut i = tid;
                    while i < len {
                        let listed = place.transitions.load(i);
                        place.transitions.store(i, columns.find(&rows, &record, batch_x, listed, &mut stats));
                        i += thread::block_dim_x();
                    }
                    stats.add_to_shared();
                    thread::sync_threads();
                    if is_whole {
                        encoder.encode(len, is_end, 1, 0);
                    } else {
                        held += len;
                    }
                    start += len;
                }
                first_tile += num;
                if is_last {
                    return held;
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
            // SAFETY: inside the window.
            unsafe { self.transitions.store(i, transition) };
        }
    }
}

/// Each bit as the parity of the bits up to it: changes from background become states.
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
        // SAFETY: the caller vouches for record and part.
        let (record, part) = unsafe { (masks::kept_record(), kept_part()) };
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

    /// The column of this lane in a tile that begins with column `x0`, of which those below `x_end` are looked at: lane 0 has the
    /// one before, and lanes without a column have the tile's first. Says whether the lane's column is looked at.
    #[inline(always)]
    fn column_of_lane(x0: u32, x_end: u32) -> (u32, bool) {
        let lane = warp::lane_id();
        let is_looked_at = x0 + lane > 0 && x0 + lane - 1 < x_end;
        (if is_looked_at { x0 + lane - 1 } else { x0 }, is_looked_at)
    }

    /// The table entry of this lane's column; zeros where entries are not used.
    ///
    /// # Safety
    /// `x0` is below `x_end`, and that is inside the content.
    #[inline(always)]
    unsafe fn load_entry(&self, x0: u32, x_end: u32) -> [u32; 4] {
        if !self.facts.is_fast() {
            return [0; 4];
        }
        // SAFETY: a content column.
        unsafe { self.mask.plain().0.column_entry_early(Self::column_of_lane(x0, x_end).0) }
    }

    /// Counts the transitions of a tile of columns, and stores where they are. Returns their number with its flags, and each
    /// column's state before its first row as a bit of its lane.
    ///
    /// Lane 0 has the column before the tile, for its last state only.
    ///
    /// Callers: every lane of a warp.
    ///
    /// # Safety
    /// The tile has room; `x0` is below `x_end`; `entry` is what [`load_entry`](Self::load_entry) gave.
    #[track_caller]
    #[inline(always)]
    unsafe fn count(&self, tile: u32, x0: u32, x_end: u32, entry: [u32; 4], stats: &mut Stats) -> (u32, u32) {
        let lane = warp::lane_id();
        let (x, is_looked_at) = Self::column_of_lane(x0, x_end);
        let is_column = is_looked_at && lane > 0;
        let at = self.column_idx(tile);
        // SAFETY: columns are inside the content, rows inside the window; a lane reads and writes its own words.
        unsafe {
            // The column's changes from background, and its first state.
            let (mut count, mut top, mut is_plain) = (0, 0, true);
            if self.facts.is_fast() {
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
                self.walk(
                    x - record.offset_x,
                    if is_looked_at { start } else { record.content_h },
                    false,
                    |y, state| {
                        count += 1;
                        top |= (y == 0) as u32;
                        if is_column {
                            stats.add(
                                0,
                                if state { [x, y0 + y, x + 1, y0 + y + 1] } else { [u32::MAX, u32::MAX, 0, y0 + y] },
                            );
                            if flag == TILE_IS_PLAIN {
                                let word = at + 32 * (1 + y / 32);
                                self.tiles.store(word, self.tiles.load(word) | 1 << (y % 32));
                            }
                        }
                    },
                );
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

    /// Stores, from word `at + 32` on and in the live words alone, where the signs of a column change, as if above it were background, without the changes
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
            let mut k = self.signs.live_words.start;
            while k < self.signs.live_words.end {
                let (first, second) = (self.signs.word(column.first, k), self.signs.word(column.second, k));
                let (mut word, mut mixed) = (first & second, first ^ second);
                while mixed != 0 {
                    // Four at a time, the last one again where there are fewer: they do not wait for each other's cells.
                    let first = mixed.trailing_zeros();
                    let mut next = || {
                        let bit = if mixed != 0 { mixed.trailing_zeros() } else { first };
                        mixed &= mixed.wrapping_sub(1);
                        (bit, self.cells.stretched(column, 32 * k + bit))
                    };
                    let (a, b, c, d) = (next(), next(), next(), next());
                    let mut put = |(bit, value): (u32, f32)| {
                        word |= ((value > 0.0) as u32) << bit;
                        // Positive and tiny.
                        is_odd |= value.to_bits().wrapping_sub(1) < TINY.to_bits() - 1;
                    };
                    put(a);
                    put(b);
                    put(c);
                    put(d);
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
            let Span { start, end } = self.signs.live_words;
            let mut changes = self.tiles.load(at + 32 * (1 + start));
            let mut k = start;
            while k < end {
                let next = if k + 1 < end { self.tiles.load(at + 32 * (2 + k)) } else { 0 };
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
                let record = masks::kept_record();
                let rows = Rows::new(self.mask.params, &record, Item::load().image);
                let r = first_row + bit;
                let (above, own) = (rows.group_end(r - 1), rows.group_end(r));
                let y = above & !GROUP_IS_IRREGULAR;
                let is_positive = word >> bit & 1 != 0;
                let is_shown = if (above | own) & GROUP_IS_IRREGULAR == 0 {
                    let island = self.cells.stretched(column, r);
                    let (before, after) = (self.cells.stretched(column, r - 1), self.cells.stretched(column, r + 1));
                    (rows.blend(y - 1, before, island) > 0.0) == is_positive
                        || (rows.blend(y, island, after) > 0.0) == is_positive
                } else {
                    let (geometry, cells) = self.mask.plain();
                    (cells.pixel(&geometry, column, y - 1) > 0.0) == is_positive
                        || (cells.pixel(&geometry, column, y) > 0.0) == is_positive
                };
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
        let mut r = 0;
        // SAFETY: rows of the group, which has a window row below.
        unsafe {
            let (geometry, cells) = self.mask.plain();
            let rows = Rows::new(self.mask.params, &geometry.record, Item::load().image);
            while r + 1 < self.window_h {
                let changes = |r: u32| {
                    self.signs.live_words.has(r / 32) && self.tiles.load(at + 32 * (1 + r / 32)) >> (r % 32) & 1 != 0
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
            let live = self.signs.live_words;
            let (mut k, end) = if is_plain { (0, self.facts.num_words) } else { (live.start, live.end) };
            while k < end && count & TILE_IS_WALKED == 0 {
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

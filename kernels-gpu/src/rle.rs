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
    IMAGE_PLAIN_ROWS, MaskArgs,
    shared::masks::{self as layout, TILE},
};

use crate::{
    axes::Axis,
    changes::{Mask, Part, room_of},
    encode::{Encoder, Scratch},
    masks::{self, Stats, Work},
    rows::{Facts, Rows, is_empty},
    scan::{div_ceil, div_rem, warp_inclusive_add},
    signs::Signs,
    simt::{
        global::Global,
        grid,
        params::Params,
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// Makes the run lengths of every detection of the batch. `IN_SHARED`: the cells of a mask have room in shared memory.
///
/// Callers: every thread of every block.
///
/// # Safety
/// The running entry's arguments hold what [`MaskArgs`] promises, and the block has the shared memory of their `rle`.
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
        let queries =
            if args.batch == 1 && lane < args.max_detections { masks::query_of(args, lane as usize) } else { 0 };
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
        let [num_masks, num_whole, num_parts, num_items] = unsafe { Shared::<[u32; 4]>::at(layout::SHARES).load(0) };
        Self { num_masks, num_whole, num_parts, num_items }
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

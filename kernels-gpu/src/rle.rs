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
//! The blocks of a cluster share a mask: each makes some of its columns, and they tell each other, through distributed shared
//! memory, how many transitions and characters the others have, so that each encodes its own. A mask that has too many
//! transitions for that is left to one block, and so are all masks where there are no clusters. What makes it fast:
//!
//! 1. Arithmetic happens only where two neighbor cells have different signs, and in the searches; the rest is bits.
//! 2. A warp takes a tile of output columns. They lie between the same few cells, so its lanes take the same branches.
//! 3. Only tiles that live cells reach are looked at.
//! 4. A tile's number of changes is known before any position is, so changes are listed where they belong, and every thread
//!    of the block takes one at a time, whichever column it is of.
//! 5. What only the image's size decides is computed while the selection runs.
//! 6. The columns of a mask are shared out by its box, so each block has as much to do as the others.
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

use rfdetr_post_core::packed::{IMAGE_PLAIN_ROWS, MaskArgs, shared::masks as layout};

use crate::{
    axes::Axis,
    changes::{Item, Mask, columns_of_part, keep_part},
    encode::Encoder,
    flags::block_set_flag,
    masks::{self, Stats, Work},
    parts,
    rows::{Facts, Rows, is_empty},
    scan::div_rem,
    signs::Signs,
    simt::{cluster, grid, params::Params, shared::Shared, thread, warp},
};

/// Makes the run lengths of every detection of the batch. `IN_SHARED`: the cells of a mask have room in shared memory.
///
/// Callers: every thread of every block of whole clusters.
///
/// # Safety
/// The running entry's arguments hold what [`MaskArgs`] promises, and the block has the shared
/// memory of their `rle`.
#[inline(always)]
pub unsafe fn masks_rle<const IN_SHARED: bool>(params: Params) {
    let (block, grid, rank) = (thread::block_idx_x(), thread::grid_dim_x(), cluster::block_rank());
    // SAFETY: the plan gave this kernel the layout's shared memory; the selection has ended where its results are read; a grid has
    // clusters, and a cluster has blocks.
    unsafe {
        // While the selection runs.
        reset();
        let mut geometry = prepare::<IN_SHARED>(params, 0, u32::MAX);
        let (cluster, _) = div_rem(block, cluster::num_blocks());
        // The others have begun when their shared memory is written.
        cluster::sync_cluster();
        grid::depend_wait();
        let args = &masks::args(params);
        // On its way while the detections are counted: of the mask that a cluster shares, if it does.
        let mut is_known = args.batch == 1 && cluster < args.max_detections;
        let mut row = if is_known { masks::query_and_box_of(args, cluster as usize) } else { (0, [0.0; 2]) };
        let work = Work::new(args, |_, num_detections| num_detections);
        let num_masks = work.num_items;
        if block == 0 {
            masks::block_copy_headers(args);
        }
        let (num_shared, is_ranked) = num_shared(num_masks, grid, cluster::num_blocks());
        let mut prepared_image = 0;
        // The cluster's mask, or the block's own; if they are ranked, blocks that share one have none.
        let (mut mask_idx, mut num_parts) = (cluster, cluster::num_blocks());
        if cluster >= num_shared {
            let num_busy = if is_ranked { num_shared * cluster::num_blocks() } else { 0 };
            (mask_idx, num_parts) = (num_shared + (block - num_busy), 1);
            is_known = false;
        }
        let mut ranked = 0;
        if is_ranked && mask_idx < num_masks {
            ranked = of_rank(&work, args, mask_idx);
            is_known = false;
        }
        while mask_idx < num_masks {
            let args = &masks::args(params);
            let (image, slot) = Work::counted(args).image_of(if is_ranked { ranked } else { mask_idx });
            if image != prepared_image {
                geometry = prepare::<IN_SHARED>(params, image, geometry);
                prepared_image = image;
            }
            if !core::mem::take(&mut is_known) {
                row = masks::query_and_box_of(args, masks::row_idx(args, image, slot));
            }
            let item = Item { image, slot, query_idx: row.0 };
            let is_shared = mask_idx < num_shared;
            match mask(Mask::<IN_SHARED> { params, num_parts }, item, row.1, !is_shared) {
                Outcome::Taken(taken) if !is_shared => mask_idx = num_shared + grid + taken,
                // The first block makes a mask that has too many transitions to be shared.
                Outcome::NoRoom if rank == 0 => {}
                // Ranked masks are no more than one for each block.
                _ => mask_idx = if is_ranked { num_masks } else { num_shared + block },
            }
            num_parts = 1;
        }
        let args = &masks::args(params);
        block_set_flag(args.block_flags_at, block, args.sequence);
    }
}

/// How many masks clusters of `num_blocks` blocks share, one each, and whether these are the widest, see [`of_rank`].
///
/// - All, if there is a cluster for each.
/// - Else, if there is a block for each: the widest, as many as blocks are left over for.
/// - Else those that are left when every block has as many as every other, if there is a cluster for each of them: the first.
#[inline(always)]
fn num_shared(num_masks: u32, grid: u32, num_blocks: u32) -> (u32, bool) {
    if num_blocks == 1 {
        return (0, false);
    }
    if num_masks * num_blocks > grid && num_masks <= grid && num_masks <= layout::MAX_TILES {
        // SAFETY: more than one block a cluster.
        let num_shared = unsafe { div_rem(grid - num_masks, num_blocks - 1).0 };
        return (num_shared, num_shared > 0);
    }
    // SAFETY: a grid has blocks.
    let left = if num_masks < grid { num_masks } else { unsafe { div_rem(num_masks, grid).1 } };
    (if left * num_blocks <= grid { left } else { 0 }, false)
}

/// The mask of a rank: those of wider boxes come first, of equal ones the first. Width is what a mask's time grows with.
///
/// Callers: every thread of the block; valid in all threads. Ends with a barrier. Cost: a load, and a comparison for every two masks.
///
/// # Safety
/// As [`masks_rle`]; `work` are the detections, at most `layout::MAX_TILES` and more than `rank`.
#[track_caller]
#[inline(always)]
unsafe fn of_rank(work: &Work, args: &MaskArgs, rank: u32) -> u32 {
    let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
    // SAFETY: the caller vouches for the detections; the layout has the words, which no mask uses yet.
    unsafe {
        let (widths, found) = (Shared::<u32>::at(layout::TILE_COUNTS), Shared::<u32>::at(layout::NEXT));
        let mut i = tid;
        while i < work.num_items {
            let (image, slot) = work.image_of(i);
            let (_, [left, right]) = masks::query_and_box_of(args, masks::row_idx(args, image, slot));
            let width = right - left;
            // Numbers that are not negative are in the order of their bits.
            widths.store(i, if width > 0.0 { width.to_bits() } else { 0 });
            i += block;
        }
        thread::sync_threads();
        let mut i = warp::warp_id();
        while i < work.num_items {
            let width = widths.load(i);
            let (mut before, mut other) = (0, warp::lane_id());
            while other < work.num_items {
                let other_width = widths.load(other);
                before += (other_width > width || other_width == width && other < i) as u32;
                other += 32;
            }
            if warp::warp_reduce_add(warp::FULL_MASK, before) == rank && warp::lane_id() == 0 {
                found.store(0, i);
            }
            i += block / 32;
        }
        thread::sync_threads();
        found.load(0)
    }
}

/// How a mask ended.
enum Outcome {
    /// Made; so many masks were taken before the block's next one, if it took one.
    Taken(u32),
    /// A part had no room for its transitions: nothing was made.
    NoRoom,
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

/// Makes a mask, or the block's part of it; `takes` another one for the block.
///
/// Callers: every thread of the block, after a barrier behind [`reset`] and [`prepare`]; of the cluster, if it shares the mask.
/// Ends with both done and a barrier passed.
///
/// # Safety
/// As [`masks_rle`]; the mask is the block's own, or the cluster's.
#[track_caller]
#[inline(always)]
unsafe fn mask<const IN_SHARED: bool>(
    mask: Mask<IN_SHARED>,
    item: Item,
    [left, right]: [f32; 2],
    takes: bool,
) -> Outcome {
    let (params, num_parts, tid) = (mask.params, mask.num_parts, thread::thread_idx_x());
    let rank = if num_parts > 1 { cluster::block_rank() } else { 0 };
    // SAFETY: image and slot are of this launch; shared memory is used inside its layout; barriers separate the phases.
    unsafe {
        let args = &masks::args(params);
        let kept = masks::load_row(args, masks::row_idx(args, item.image, item.slot));
        // On its way until it is stored.
        let taken = if takes && tid == 0 { masks::take_mask(args) } else { 0 };
        let (part, hint) = columns_of_part(&masks::kept_record(), left, right, rank, num_parts);
        if tid == 0 {
            item.store();
            keep_part(part);
        }
        mask.load(&item, part, hint);
        masks::keep_row(kept);
        let mut encoder = Encoder::new(params);
        encoder.begin(0, [0; 3]);
        thread::sync_threads();
        let num = mask.transitions(&mut encoder);

        // Of the first warp, which readies the counters for the next mask.
        let nonfinite = if warp::warp_id() == 0 { mask.nonfinite() } else { 0 };
        let has_room = num_parts == 1 || encoder.encode(num, rank + 1 == num_parts, num_parts, nonfinite);
        if has_room && rank == 0 && warp::warp_id() == 0 {
            let (args, item) = (&masks::args(params), Item::load());
            let (mut stats, mut nonfinite) = (Stats::of_shared(), nonfinite);
            if num_parts > 1 {
                (stats.tight, nonfinite) = parts::warp_sum(num_parts);
            }
            let row = masks::row_idx(args, item.image, item.slot);
            masks::warp_write_row(args, row, &stats, [nonfinite, encoder.len(args), encoder.num_counts]);
            // All lanes have read the counters, which are reset below.
            warp::sync_warp(warp::FULL_MASK);
        }
        let next = Shared::<u32>::at(layout::NEXT);
        if tid == 0 {
            next.store(0, taken);
        }
        reset();
        thread::sync_threads();
        if has_room { Outcome::Taken(next.load(0)) } else { Outcome::NoRoom }
    }
}

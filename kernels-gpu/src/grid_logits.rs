//! Mask-grid logits: the grid of each detection's query, widened to f32.

use rfdetr_post_core::packed::MaskArgs;

use crate::{
    flags::block_set_flag,
    inputs::load_element,
    masks::{self, Stats, Work},
    scan::div_rem,
    simt::{global::Global, grid, params::Params, thread},
};

/// Copies the mask grid of every detection of the batch.
///
/// Callers: every thread of every block.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises, and the block has `shared::masks::GRID_BYTES` of shared memory.
#[inline(always)]
pub unsafe fn masks_grid(args: &MaskArgs, _params: Params) {
    grid::depend_wait();
    // SAFETY: the selection has ended; images and rows are of this launch.
    unsafe {
        let work = Work::new(args, |_, num_detections| num_detections);
        if thread::block_idx_x() == 0 {
            masks::block_copy_headers(args);
        }
        let mut item = thread::block_idx_x();
        while item < work.num_items {
            let (image, slot) = work.image_of(item);
            copy_grid(args, image, slot);
            item += thread::grid_dim_x();
            // The sums are read, and may be used again.
            thread::sync_threads();
        }
        if masks::count_block(args) {
            block_set_flag(args.block_flags_at, 0, args.sequence);
        }
    }
}

/// Copies the grid of one detection.
///
/// # Safety
/// As [`masks_grid`].
#[inline(always)]
unsafe fn copy_grid(args: &MaskArgs, image: u32, slot: u32) {
    let cells = args.mask_h * args.mask_w;
    // SAFETY: image and slot are of this launch; the payload has room for the grid.
    unsafe {
        let row = masks::row_idx(args, image, slot);
        let query = image as usize * args.num_queries as usize + masks::query_of(args, row) as usize;
        let mask_bytes = (4 * cells as u64).next_multiple_of(16);
        let at = args.payload_at + image as u64 * args.payload_image_bytes + slot as u64 * mask_bytes;
        let to = Global::<f32>::from_address(at);
        let mut stats = Stats::EMPTY;
        let mut nonfinite = 0;
        let mut i = thread::thread_idx_x();
        while i < cells {
            let cell = load_element(args.masks_at, args.masks_dtype, query * cells as usize + i as usize);
            to.store(i as usize, cell);
            nonfinite += !cell.is_finite() as u32;
            if cell > 0.0 {
                let (y, x) = div_rem(i, args.mask_w);
                stats.add(1, [x, y, x + 1, y + 1]);
            }
            i += thread::block_dim_x();
        }
        let (stats, nonfinite) = stats.block_sum(nonfinite);
        if thread::thread_idx_x() == 0 {
            masks::write_result_row(args, row, &stats, nonfinite, cells);
        }
    }
}

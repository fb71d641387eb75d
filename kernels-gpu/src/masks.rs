//! What the mask kernels share: the list of work, the end of a mask, and the end of the request.

use rfdetr_post_core::packed::{
    AxesLayout, INLINE_IMAGES, ImageHeader, ImageRecord, MaskArgs, PackedRow, RleLayout,
    shared::{COUNTERS, SCAN, masks as layout},
};

use crate::{
    inputs::{RECORD_WORDS, load_record, load_record_word, record_of_words},
    scan::block_exclusive_add,
    signs::NUM_COUNTERS,
    simt::{
        global::Global,
        params::Params,
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// Words of the counters that this module uses, behind those of the signs.
const BROADCAST: u32 = NUM_COUNTERS;
/// Area, then left, top, right, bottom of a mask, and [`OTHER`].
const STATS: u32 = 16;
/// Of run lengths, what the area would be if the first run were foreground; of grids, cells that are not finite.
const OTHER: u32 = STATS + 5;

/// Shared words of the counters.
///
/// # Safety
/// The block has the layout's shared memory.
#[inline(always)]
pub unsafe fn counters() -> Shared<u32> {
    // SAFETY: the caller vouches for it.
    unsafe { Shared::at(COUNTERS) }
}

/// Shared words of the scan.
///
/// # Safety
/// The block has the layout's shared memory.
#[inline(always)]
pub unsafe fn scratch() -> Shared<u32> {
    // SAFETY: the caller vouches for it.
    unsafe { Shared::at(SCAN) }
}

/// The work of one launch: items of every image, counted from the selection's headers.
pub struct Work {
    /// Items of the whole batch.
    pub num_items: u32,
    prefix: Shared<u32>,
    batch: u32,
}

impl Work {
    /// Counts the items of each image with `items(image, num_detections)`.
    ///
    /// Callers: every thread of the block; valid in all threads.
    ///
    /// # Safety
    /// `args` holds what [`MaskArgs`] promises, and the selection's writes are visible.
    #[track_caller]
    #[inline(always)]
    pub unsafe fn new(args: &MaskArgs, items: impl Fn(u32, u32) -> u32) -> Self {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        let headers = Global::<u32>::from_address(args.headers_at);
        // SAFETY: `prefix` has a word for each image and one more; every image has a header.
        unsafe {
            let prefix = Shared::<u32>::at(layout::PREFIX);
            let num_items = |image: u32| {
                if image < args.batch {
                    items(image, headers.load(image as usize * size_of::<ImageHeader>() / 4))
                } else {
                    0
                }
            };
            if args.batch == 1 {
                return Self { num_items: num_items(0), prefix, batch: 1 };
            }
            let mut sum = 0;
            let mut base = 0;
            while base < args.batch {
                let image = base + tid;
                let (before, total) = block_exclusive_add(num_items(image), scratch());
                if image < args.batch {
                    prefix.store(image, sum + before);
                }
                sum += total;
                base += block;
                thread::sync_threads();
            }
            if tid == 0 {
                prefix.store(args.batch, sum);
            }
            thread::sync_threads();
            Self { num_items: sum, prefix, batch: args.batch }
        }
    }

    /// The work that [`new`](Self::new) counted, to ask for images. A barrier must have been passed.
    ///
    /// # Safety
    /// As [`new`](Self::new).
    #[inline(always)]
    pub unsafe fn counted(args: &MaskArgs) -> Self {
        // SAFETY: the caller vouches for the layout.
        Self { num_items: 0, prefix: unsafe { Shared::at(layout::PREFIX) }, batch: args.batch }
    }

    /// The image of an item, and its index among the image's items.
    ///
    /// # Safety
    /// `item` is below `num_items`.
    #[inline(always)]
    pub unsafe fn image_of(&self, item: u32) -> (u32, u32) {
        if self.batch == 1 {
            return (0, item);
        }
        // The last image that begins at or before the item.
        let (mut low, mut high) = (0, self.batch);
        // SAFETY: indices stay below the batch; the words were written in `new`.
        unsafe {
            while high - low > 1 {
                let middle = (low + high) / 2;
                if self.prefix.load(middle) <= item {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            (low, item - self.prefix.load(low))
        }
    }
}

/// The arguments of a mask kernel, read anew: see [`Params::anew`]. Without the images' records, for which there is [`record`].
///
/// # Safety
/// The running entry's argument record is a [`MaskArgs`].
#[inline(always)]
pub unsafe fn args(params: Params) -> MaskArgs {
    let params = params.anew();
    macro_rules! read {
        ($($field:tt).+) => {
            // SAFETY: the field lies there.
            unsafe { params.load(core::mem::offset_of!(MaskArgs, $($field).+) as u32) }
        };
    }
    MaskArgs {
        masks_at: read!(masks_at),
        headers_at: read!(headers_at),
        rows_at: read!(rows_at),
        queries_at: read!(queries_at),
        axes_at: read!(axes_at),
        done_at: read!(done_at),
        block_flags_at: read!(block_flags_at),
        result_headers_at: read!(result_headers_at),
        result_rows_at: read!(result_rows_at),
        payload_at: read!(payload_at),
        payload_image_bytes: read!(payload_image_bytes),
        records_at: read!(records_at),
        batch: read!(batch),
        num_queries: read!(num_queries),
        mask_h: read!(mask_h),
        mask_w: read!(mask_w),
        masks_dtype: read!(masks_dtype),
        max_detections: read!(max_detections),
        flags: read!(flags),
        mask_capacity: read!(mask_capacity),
        axes: AxesLayout { rows_offset: read!(axes.rows_offset), image_stride: read!(axes.image_stride) },
        sequence: read!(sequence),
        rle: RleLayout {
            stage_offset: read!(rle.stage_offset),
            transitions_offset: read!(rle.transitions_offset),
            window: read!(rle.window),
            weights_offset: read!(rle.weights_offset),
            num_weights: read!(rle.num_weights),
            groups_offset: read!(rle.groups_offset),
            num_groups: read!(rle.num_groups),
            cells_offset: read!(rle.cells_offset),
            num_cells: read!(rle.num_cells),
            signs_offset: read!(rle.signs_offset),
            num_sign_words: read!(rle.num_sign_words),
            tiles_offset: read!(rle.tiles_offset),
            num_tile_words: read!(rle.num_tile_words),
        },
        records: [ImageRecord::default(); INLINE_IMAGES],
    }
}

/// The record of an image.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises; `image` is below the batch.
#[inline(always)]
pub unsafe fn record(args: &MaskArgs, params: Params, image: u32) -> ImageRecord {
    let is_inline = args.batch as usize <= INLINE_IMAGES;
    // SAFETY: the caller vouches for the records.
    unsafe { load_record(is_inline, params, core::mem::offset_of!(MaskArgs, records) as u32, args.records_at, image) }
}

/// Keeps the record of an image in shared memory. What a phase needs of it is read there again: held in registers over all
/// phases, it would crowd out everything else.
///
/// Callers: every thread of the block. A barrier is owed before [`kept_record`].
///
/// # Safety
/// As [`record`].
#[inline(always)]
pub unsafe fn keep_record(args: &MaskArgs, params: Params, image: u32) {
    let tid = thread::thread_idx_x();
    let is_inline = args.batch as usize <= INLINE_IMAGES;
    if tid < RECORD_WORDS {
        let offset = core::mem::offset_of!(MaskArgs, records) as u32;
        // SAFETY: the caller vouches for the image; the layout has the words.
        unsafe {
            let word = load_record_word(is_inline, params, offset, args.records_at, image, tid);
            Shared::<[u32; 4]>::at(layout::RECORD).store(tid, word);
        }
    }
}

/// What the selection wrote of a row, a word a lane: for [`keep_row`], on its way meanwhile. Callers: every thread of the block.
///
/// # Safety
/// `row` is a row that the selection wrote, and the selection has ended.
#[inline(always)]
pub unsafe fn load_row(args: &MaskArgs, row: usize) -> u32 {
    let at = args.rows_at + (row * size_of::<PackedRow>()) as u64;
    // SAFETY: the first half of the row, which nobody writes any more. Volatile: loaded here, not where it is used.
    unsafe { Global::<u32>::from_address(at).load_volatile((warp::lane_id() % 8) as usize) }
}

/// Keeps what [`load_row`] loaded. Callers: every thread of the block; a barrier is owed before [`warp_write_row`].
///
/// # Safety
/// The layout has the words behind the record.
#[inline(always)]
pub unsafe fn keep_row(word: u32) {
    let idx = thread::thread_idx_x();
    if idx < 8 {
        // SAFETY: the caller vouches for the words.
        unsafe { Shared::<u32>::at(layout::RECORD).store(4 * RECORD_WORDS + idx, word) };
    }
}

/// The record that [`keep_record`] kept.
///
/// # Safety
/// It was kept, and a barrier was passed.
#[inline(always)]
pub unsafe fn kept_record() -> ImageRecord {
    // SAFETY: the caller vouches for the words.
    record_of_words(|word| unsafe { Shared::<[u32; 4]>::at(layout::RECORD).load(word) })
}

/// Writes the final row of a mask whose row [`keep_row`] kept. `mask` are its cells that are not finite, its length and its number
/// of counts.
///
/// Callers: every lane of the first warp.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises; each mask is finished once.
#[inline(always)]
pub unsafe fn warp_write_row(args: &MaskArgs, row: usize, stats: &Stats, mask: [u32; 3]) {
    let lane = warp::lane_id();
    let [nonfinite, len, num_counts] = mask;
    // SAFETY: the caller vouches for the row.
    unsafe {
        if lane < 4 {
            let word = if lane < 2 {
                Shared::<[u32; 4]>::at(layout::RECORD).load(RECORD_WORDS + lane)
            } else if lane == 2 {
                stats.tight_or_zeros()
            } else {
                [stats.area, nonfinite, len, num_counts]
            };
            let to = args.result_rows_at + (row * size_of::<PackedRow>()) as u64;
            Global::<[u32; 4]>::from_address(to).store(lane as usize, word);
        }
    }
}

/// Takes a mask that nobody took: the number of those taken before.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises.
#[inline(always)]
pub unsafe fn take_mask(args: &MaskArgs) -> u32 {
    // SAFETY: a word that the selection has set to zero.
    unsafe { Global::<u32>::from_address(args.done_at).fetch_add(1, 1) }
}

/// Copies the headers of all images to the result.
///
/// Callers: every thread of one block.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises, and the selection's writes are visible.
#[inline(always)]
pub unsafe fn block_copy_headers(args: &MaskArgs) {
    let from = Global::<[u32; 4]>::from_address(args.headers_at);
    let to = Global::<[u32; 4]>::from_address(args.result_headers_at);
    let mut i = thread::thread_idx_x();
    while i < args.batch * (size_of::<ImageHeader>() / 16) as u32 {
        // SAFETY: two words a header.
        unsafe { to.store(i as usize, from.load(i as usize)) };
        i += thread::block_dim_x();
    }
}

/// Index of a row of the batch.
#[inline(always)]
pub fn row_idx(args: &MaskArgs, image: u32, slot: u32) -> usize {
    image as usize * args.max_detections as usize + slot as usize
}

/// The query of a row, [`NO_QUERY`](rfdetr_post_core::packed::NO_QUERY) behind the image's last.
///
/// # Safety
/// `row` is below the batch's rows.
#[inline(always)]
pub unsafe fn query_of(args: &MaskArgs, row: usize) -> u32 {
    // SAFETY: the selection wrote four words for each row. Volatile: loaded here, not where it is used.
    unsafe { Global::<u32>::from_address(args.queries_at).load_volatile(4 * row) }
}

/// The query of a row, and left and right of its box.
///
/// # Safety
/// As [`query_of`].
#[inline(always)]
pub unsafe fn query_and_box_of(args: &MaskArgs, row: usize) -> (u32, [f32; 2]) {
    // SAFETY: the selection wrote four words for each row. Early: it is on its way while other things are waited for.
    let [query_idx, left, right, _] = unsafe { Global::<[u32; 4]>::from_address(args.queries_at).load_early(row) };
    (query_idx, [f32::from_bits(left), f32::from_bits(right)])
}

/// Area and tight box of a mask, or of a thread's part of it.
#[derive(Clone, Copy)]
pub struct Stats {
    /// Foreground pixels.
    pub area: u32,
    /// Left, top, right, bottom, half-open; `[MAX, MAX, 0, 0]` when empty.
    pub tight: [u32; 4],
}

impl Stats {
    /// Nothing.
    pub const EMPTY: Self = Self { area: 0, tight: [u32::MAX, u32::MAX, 0, 0] };

    /// Adds `area` pixels inside the box `tight`.
    #[inline(always)]
    pub fn add(&mut self, area: u32, tight: [u32; 4]) {
        self.area += area;
        self.tight = [
            self.tight[0].min(tight[0]),
            self.tight[1].min(tight[1]),
            self.tight[2].max(tight[2]),
            self.tight[3].max(tight[3]),
        ];
    }

    /// Readies the sums in shared memory. Callers: every thread of the block, or its first warp; a barrier is owed.
    ///
    /// # Safety
    /// The block has the layout's shared memory.
    #[inline(always)]
    pub unsafe fn reset_shared() {
        let tid = thread::thread_idx_x();
        if tid < 6 {
            // SAFETY: the statistics have six words of the counters.
            unsafe { counters().store(STATS + tid, if tid == 1 || tid == 2 { u32::MAX } else { 0 }) };
        }
    }

    /// Adds the warp's parts to the sums in shared memory. Callers: every lane of a warp.
    ///
    /// # Safety
    /// As [`reset_shared`](Self::reset_shared), which was called, and a barrier passed.
    #[track_caller]
    #[inline(always)]
    pub unsafe fn add_to_shared(self) {
        let area = warp::warp_reduce_add(FULL_MASK, self.area);
        let left = warp::warp_reduce_min(FULL_MASK, self.tight[0]);
        let top = warp::warp_reduce_min(FULL_MASK, self.tight[1]);
        let right = warp::warp_reduce_max(FULL_MASK, self.tight[2]);
        let bottom = warp::warp_reduce_max(FULL_MASK, self.tight[3]);
        if warp::lane_id() == 0 && (area > 0 || top < u32::MAX || right > 0 || bottom > 0) {
            // SAFETY: the statistics have six words of the counters.
            unsafe {
                let stats = counters();
                stats.fetch_add(STATS, area);
                stats.fetch_min(STATS + 1, left);
                stats.fetch_min(STATS + 2, top);
                stats.fetch_max(STATS + 3, right);
                stats.fetch_max(STATS + 4, bottom);
            }
        }
    }

    /// Adds the warp's parts of the area, and of what would be it if the first run were foreground. Callers and safety as
    /// [`add_to_shared`](Self::add_to_shared).
    ///
    /// # Safety
    /// As [`add_to_shared`](Self::add_to_shared).
    #[track_caller]
    #[inline(always)]
    pub unsafe fn add_areas_to_shared(area: u32, other_area: u32) {
        let area = warp::warp_reduce_add(FULL_MASK, area);
        let other_area = warp::warp_reduce_add(FULL_MASK, other_area);
        if warp::lane_id() == 0 {
            // SAFETY: the statistics have six words of the counters.
            unsafe {
                counters().fetch_add(STATS, area);
                counters().fetch_add(OTHER, other_area);
            }
        }
    }

    /// What [`add_areas_to_shared`](Self::add_areas_to_shared) added up, after a barrier.
    ///
    /// # Safety
    /// As [`add_to_shared`](Self::add_to_shared).
    #[inline(always)]
    pub unsafe fn areas_of_shared() -> (u32, u32) {
        // SAFETY: the statistics have six words of the counters.
        unsafe { (counters().load(STATS), counters().load(OTHER)) }
    }

    /// Puts the area into shared memory. Callers: one thread.
    ///
    /// # Safety
    /// As [`reset_shared`](Self::reset_shared); barriers separate it from other uses.
    #[inline(always)]
    pub unsafe fn store_area_to_shared(area: u32) {
        // SAFETY: the statistics have six words of the counters.
        unsafe { counters().store(STATS, area) };
    }

    /// The sums in shared memory, after a barrier.
    ///
    /// # Safety
    /// As [`add_to_shared`](Self::add_to_shared).
    #[inline(always)]
    pub unsafe fn of_shared() -> Self {
        // SAFETY: the statistics have six words of the counters.
        let [area, left, top, right, bottom] = [0, 1, 2, 3, 4].map(|i| unsafe { counters().load(STATS + i) });
        Self { area, tight: [left, top, right, bottom] }
    }

    /// The sum over the block, and that of its cells that are not finite. Callers: every thread of the block; valid in all
    /// threads. Cost: two barriers; one is owed before the counters are used again.
    ///
    /// # Safety
    /// The block has the layout's shared memory.
    #[track_caller]
    #[inline(always)]
    pub unsafe fn block_sum(self, nonfinite: u32) -> (Self, u32) {
        // SAFETY: the caller vouches for the shared memory; barriers separate the steps.
        unsafe {
            Self::reset_shared();
            thread::sync_threads();
            self.add_to_shared();
            let nonfinite = warp::warp_reduce_add(FULL_MASK, nonfinite);
            if warp::lane_id() == 0 && nonfinite > 0 {
                counters().fetch_add(OTHER, nonfinite);
            }
            thread::sync_threads();
            (Self::of_shared(), counters().load(OTHER))
        }
    }

    /// The box as the result has it: zeros when empty.
    #[inline(always)]
    pub fn tight_or_zeros(&self) -> [u32; 4] {
        if self.area == 0 { [0; 4] } else { self.tight }
    }
}

/// Writes the final row of a detection: what the selection wrote, and the mask's fields. `nonfinite` cells are not finite.
///
/// # Safety
/// One thread a row; `row` is a row that the selection wrote.
#[inline(always)]
pub unsafe fn write_result_row(args: &MaskArgs, row: usize, stats: &Stats, nonfinite: u32, len: u32) {
    let at = (row * size_of::<PackedRow>()) as u64;
    let from = Global::<[u32; 4]>::from_address(args.rows_at + at);
    let to = Global::<[u32; 4]>::from_address(args.result_rows_at + at);
    // SAFETY: the caller vouches for the row.
    unsafe {
        to.store(0, from.load(0));
        to.store(1, from.load(1));
        to.store(2, stats.tight_or_zeros());
        to.store(3, [stats.area, nonfinite, len, 0]);
    }
}

/// Counts the block as finished: whether it is the last of the grid. Blocks without work count, too: when all have, none reads
/// anything of the request any more.
///
/// Callers: every thread of every block, when it has written what it has to; valid in all threads.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises; each block is counted once.
#[track_caller]
#[inline(always)]
pub unsafe fn count_block(args: &MaskArgs) -> bool {
    thread::sync_threads();
    // SAFETY: the first word is zero between launches; the broadcast word is this function's between its barriers.
    unsafe {
        if thread::thread_idx_x() == 0 {
            // The barrier ordered the block's writes before the count, which releases them to the block that publishes.
            let done = Global::<u32>::from_address(args.done_at);
            let is_last = done.fetch_add_acq_rel(0, 1) == thread::grid_dim_x() - 1;
            if is_last {
                done.store(0, 0);
            }
            counters().store(BROADCAST, is_last as u32);
        }
        thread::sync_threads();
        counters().load(BROADCAST) != 0
    }
}

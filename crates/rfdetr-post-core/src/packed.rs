//! The `repr(C)` records that host and device share.
//!
//! Kernels take these types and the constants below from here and nothing else, so layout cannot drift.
//! All fields are 4 bytes wide or multiples of it, and no record has padding.

/// One detection, as users read it; the kernels write a [`PackedRow`].
///
/// Units: `xyxy` and the mask's box in pixels of the original image; `mask_offset` and `mask_len` in elements of the
/// mask format (bytes of a COCO string, `u32` counts, `u32` words of bit-packed rows, bytes of a dense mask, `f32` of
/// mask-grid logits).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C, align(16))]
pub struct DetectionRow {
    /// Left, top, right, bottom. Whole numbers when the semantics round boxes.
    pub xyxy: [f32; 4],
    /// Score in 0..=1.
    pub confidence: f32,
    /// Class id after remapping.
    pub class_id: i32,
    /// The query (decoder slot) that the detection comes from.
    pub query_idx: u32,
    /// The logit column that the detection comes from.
    pub class_idx: u32,
    /// Tight box of the mask: left, top, right, bottom, half-open. All zero when the mask is empty or absent.
    /// In pixels of the image; in cells of the mask grid for `MaskFormat::GridLogits`.
    pub mask_xyxy: [u32; 4],
    /// Number of foreground pixels (cells for `MaskFormat::GridLogits`).
    pub mask_area: u32,
    /// First element of the mask in the payload. Zero for the formats of a fixed size a mask.
    pub mask_offset: u32,
    /// Number of elements of the mask.
    pub mask_len: u32,
    /// Number of run-length counts, for the run-length formats.
    pub num_counts: u32,
}

/// One detection, as the kernels write it: a [`DetectionRow`] whose mask lies where its index says, so that a word is free to
/// count what is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C, align(16))]
pub struct PackedRow {
    /// As in [`DetectionRow`], and so are the other fields but one.
    pub xyxy: [f32; 4],
    /// Score.
    pub confidence: f32,
    /// Class id after remapping.
    pub class_id: i32,
    /// Decoder slot.
    pub query_idx: u32,
    /// Logit column.
    pub class_idx: u32,
    /// Tight box of the mask.
    pub mask_xyxy: [u32; 4],
    /// Number of foreground pixels or cells.
    pub mask_area: u32,
    /// Mask logits that are NaN or infinite, of those that the mask is made of: this row's share of
    /// [`Health::nonfinite_mask_logits`].
    pub nonfinite_mask_logits: u32,
    /// Number of elements of the mask. Above the planned capacity the mask is incomplete.
    pub mask_len: u32,
    /// Number of run-length counts.
    pub num_counts: u32,
}

impl PackedRow {
    /// The row as users read it, with the first element of its mask.
    pub const fn detection(&self, mask_offset: u32) -> DetectionRow {
        DetectionRow {
            xyxy: self.xyxy,
            confidence: self.confidence,
            class_id: self.class_id,
            query_idx: self.query_idx,
            class_idx: self.class_idx,
            mask_xyxy: self.mask_xyxy,
            mask_area: self.mask_area,
            mask_offset,
            mask_len: self.mask_len,
            num_counts: self.num_counts,
        }
    }
}

const _: () = {
    assert!(size_of::<PackedRow>() == 64);
    assert!(core::mem::offset_of!(PackedRow, confidence) == 16);
    assert!(core::mem::offset_of!(PackedRow, mask_xyxy) == 32);
    assert!(core::mem::offset_of!(PackedRow, mask_area) == 48);
    assert!(core::mem::offset_of!(PackedRow, nonfinite_mask_logits) == 52);
    assert!(core::mem::offset_of!(PackedRow, num_counts) == 60);
};

/// Non-finite values met in one image. They are inputs, not errors; a non-zero count usually means a broken model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable, serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct Health {
    /// Class logits that are NaN. Each takes a place of the flat top-k and is never a detection.
    pub nan_logits: u32,
    /// Class logits that are +Inf (score 1).
    pub pos_inf_logits: u32,
    /// Class logits that are -Inf (score 0).
    pub neg_inf_logits: u32,
    /// Box coordinates that are NaN or infinite, over all queries.
    pub nonfinite_boxes: u32,
    /// Mask logits that are NaN or infinite, summed over the detections: inside the cropped grid that each mask is
    /// made of (the whole grid for `MaskFormat::GridLogits`). Zero when no masks were asked for.
    pub nonfinite_mask_logits: u32,
}

const _: () = assert!(size_of::<Health>() == 20);

/// The most queries, class columns and selected candidates that the kernels take.
pub const MAX_QUERIES: u32 = 1024;
/// The most class columns that the kernels take.
pub const MAX_CLASSES: u32 = 1024;
/// The largest `num_select` that the kernels take: one block sorts the selected candidates.
pub const MAX_SELECT: u32 = 1024;
/// The largest side of a mask grid that the kernels take.
pub const MAX_MASK_SIDE: u32 = 512;
/// Rows and columns that a window may have beyond the mask grid for the fast way to run lengths.
pub const WINDOW_MARGIN: u32 = 32;
/// The largest side of an image that the kernels take.
pub const MAX_IMAGE_SIDE: u32 = 16_384;
/// The largest batch that the kernels take.
pub const MAX_BATCH: u32 = 256;

/// Image records that travel inside the argument record; larger batches read them from device memory.
pub const INLINE_IMAGES: usize = 8;

/// Element type of a device tensor, as in `DType`.
pub const DTYPE_F32: u32 = 0;
/// IEEE binary16.
pub const DTYPE_F16: u32 = 1;
/// bfloat16.
pub const DTYPE_BF16: u32 = 2;

/// Scores by torch CUDA's sigmoid instead of the portable one.
pub const FLAG_TORCH_SCORE: u32 = 1;
/// Boxes are normalised coordinates times the original size.
pub const FLAG_WHOLE_IMAGE: u32 = 1 << 1;
/// Boxes are clipped to the image.
pub const FLAG_CLIP_BOXES: u32 = 1 << 2;
/// Boxes are rounded half to even.
pub const FLAG_ROUND_BOXES: u32 = 1 << 3;
/// Negative sizes count as zero.
pub const FLAG_CLAMP_SIZES: u32 = 1 << 4;
/// Masks are resized without antialias.
pub const FLAG_BILINEAR: u32 = 1 << 5;
/// Run lengths leave as COCO's compressed string, otherwise as counts.
pub const FLAG_RLE_STRING: u32 = 1 << 6;
/// Masks leave as bits, otherwise as bytes.
pub const FLAG_BIT_PACKED: u32 = 1 << 7;
/// The selection is the last kernel: it writes the answer itself.
pub const FLAG_SELECT_ONLY: u32 = 1 << 8;

/// No row.
pub const NO_QUERY: u32 = u32::MAX;

/// Image flag: a static crop offset is added to the boxes.
pub const IMAGE_CROPPED: u32 = 1;
/// Image flag: the window already has the content's size, its values are used as they are.
pub const IMAGE_IDENTITY: u32 = 1 << 1;
/// Image flag: rows have more than two taps, every output row is evaluated on its own.
pub const IMAGE_PLAIN_ROWS: u32 = 1 << 2;

/// What the kernels must know of one image.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C, align(16))]
pub struct ImageRecord {
    /// Columns of the mask: the original image's.
    pub width: u32,
    /// Rows of the mask.
    pub height: u32,
    /// Columns that the window is resized to.
    pub content_w: u32,
    /// Rows that the window is resized to.
    pub content_h: u32,
    /// Columns of the canvas left of the content.
    pub offset_x: u32,
    /// Rows of the canvas above the content.
    pub offset_y: u32,
    /// First grid column of the window; negative where zeros are added.
    pub window_x: i32,
    /// First grid row of the window.
    pub window_y: i32,
    /// Columns of the window; 0 when nothing is left.
    pub window_w: u32,
    /// Rows of the window; 0 when nothing is left.
    pub window_h: u32,
    /// Window cells an output column.
    pub scale_x: f32,
    /// Half width of the horizontal filter, in cells.
    pub support_x: f32,
    /// Its reciprocal.
    pub inverse_x: f32,
    /// Window cells an output row.
    pub scale_y: f32,
    /// Half height of the vertical filter, in cells.
    pub support_y: f32,
    /// Its reciprocal.
    pub inverse_y: f32,
    /// `IMAGE_` flags.
    pub flags: u32,
    /// Columns of the frame D.
    pub frame_w: f32,
    /// Rows of the frame D.
    pub frame_h: f32,
    /// Left padding of D.
    pub pad_left: f32,
    /// Top padding of D.
    pub pad_top: f32,
    /// D-pixels a content pixel, horizontally.
    pub box_scale_x: f32,
    /// D-pixels a content pixel, vertically.
    pub box_scale_y: f32,
    /// Static crop offset.
    pub crop_x: f32,
    /// Static crop offset.
    pub crop_y: f32,
    /// Content columns a window cell; 0 when nothing is left of the window.
    pub columns_per_cell: f32,
    /// Content rows a window cell.
    pub rows_per_cell: f32,
    /// Images of a batch with the same number have the same mask geometry: everything above but the box's fields.
    pub geometry: u32,
}

const _: () = assert!(size_of::<ImageRecord>() == 112);

/// Header of one image in the packed result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C, align(16))]
pub struct ImageHeader {
    /// Number of rows.
    pub num_detections: u32,
    /// Non-finite values but for mask logits, which the rows count: zero here.
    pub health: Health,
    /// Unused.
    pub reserved: [u32; 2],
}

const _: () = {
    assert!(size_of::<ImageHeader>() == 32);
    assert!(core::mem::offset_of!(ImageHeader, health) == 4);
};

/// Words of an [`ImageHeader`].
pub const HEADER_WORDS: u32 = size_of::<ImageHeader>() as u32 / 4;

/// Words of a [`PackedRow`].
pub const ROW_WORDS: u32 = size_of::<PackedRow>() as u32 / 4;

/// What no word of a detection-only answer is, so that a host which puts it there before a launch sees when a word is written. (But
/// for a NaN in a box, if it has these bits.)
pub const NOT_WRITTEN: u32 = u32::MAX;

/// Words of a row without a mask, the first ones, which the kernels write. The others are zeros from the start.
pub const EARLY_ROW_WORDS: u32 = 8;

const _: () = assert!(core::mem::offset_of!(PackedRow, mask_xyxy) == 4 * EARLY_ROW_WORDS as usize);

/// The word of flag number `flag` of the result. Each has 64 bytes for itself: memory that the host looks at all the time is slow
/// to write.
pub const fn flag_word(flag: u32) -> u32 {
    16 * flag
}

/// Arguments of the kernel `rfdetr_select`. Fields that end in `_at` are device addresses.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C, align(16))]
pub struct SelectArgs {
    /// `[batch, num_queries, num_classes]` logits.
    pub logits_at: u64,
    /// `[batch, num_queries, 4]` boxes.
    pub boxes_at: u64,
    /// `[num_classes]` class ids (`i32`, -1 where dropped), each with its threshold (`f32`).
    pub columns_at: u64,
    /// `[batch, max_detections]` fours of words, for the mask kernels: written, the query of each row, [`NO_QUERY`] behind the
    /// last, then left and right of its box (`f32`).
    pub queries_at: u64,
    /// `[batch]` [`ImageHeader`]: written.
    pub headers_at: u64,
    /// `[batch, max_detections]` [`PackedRow`]: written; with `FLAG_SELECT_ONLY`, the first [`EARLY_ROW_WORDS`] of each.
    pub rows_at: u64,
    /// Axis tables: written.
    pub axes_at: u64,
    /// One word: masks that were taken, for the run-length kernels. Written: none.
    pub taken_at: u64,
    /// `[batch]` flags of the result; used with `FLAG_SELECT_ONLY`. Written: `sequence`, each behind what its image has of the
    /// result.
    pub block_flags_at: u64,
    /// `[batch]` [`ImageRecord`]; used when the batch exceeds `INLINE_IMAGES`.
    pub records_at: u64,
    /// Number of images.
    pub batch: u32,
    /// Q.
    pub num_queries: u32,
    /// C.
    pub num_classes: u32,
    /// Size of the flat top-k.
    pub num_select: u32,
    /// Cap of the detections, and rows an image.
    pub max_detections: u32,
    /// `DTYPE_` of the logits.
    pub logits_dtype: u32,
    /// `DTYPE_` of the boxes.
    pub boxes_dtype: u32,
    /// `FLAG_` bits.
    pub flags: u32,
    /// Smallest logit whose portable score is above the smallest threshold; NaN if there is none.
    pub min_logit: f32,
    /// The smallest threshold.
    pub min_threshold: f32,
    /// Blocks that build the axis tables of one image; 0 when no mask is resized.
    pub axis_blocks: u32,
    /// Layout of the axis tables.
    pub axes: AxesLayout,
    /// Number of the request.
    pub sequence: u32,
    /// 2^31 / C, rounded up: the class count's reciprocal, by which an index of a pair is divided.
    pub classes_inverse: u32,
    /// Unused.
    pub reserved: u32,
    /// The records of small batches.
    pub records: [ImageRecord; INLINE_IMAGES],
}

/// Layout of the axis tables of one image, in 16-byte entries from the image's start.
///
/// Columns: `[content_w]` entries, rows: `[content_h]` entries, each `[first | count << 16, w0, w1, w2]` (for more than three
/// taps `[first | count << 16, total, distance, 0]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct AxesLayout {
    /// Where the rows begin.
    pub rows_offset: u32,
    /// Entries of one image.
    pub image_stride: u32,
}

const _: () = {
    assert!(size_of::<SelectArgs>() == 80 + 16 * 4 + INLINE_IMAGES * 112);
    assert!(core::mem::offset_of!(SelectArgs, records) == 144);
    // What dividing by multiplication needs: an error below C in the reciprocal, times an index.
    assert!(MAX_QUERIES as u64 * MAX_CLASSES as u64 * MAX_CLASSES as u64 <= 1 << 31);
};

/// Arguments of the mask kernels. Fields that end in `_at` are device addresses.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C, align(16))]
pub struct MaskArgs {
    /// `[batch, num_queries, mask_h, mask_w]` mask logits.
    pub masks_at: u64,
    /// `[batch]` [`ImageHeader`] of the selection.
    pub headers_at: u64,
    /// `[batch, max_detections]` [`PackedRow`] of the selection.
    pub rows_at: u64,
    /// `[batch, max_detections]` fours of words of the selection: the query of each row, [`NO_QUERY`] behind the last, then left
    /// and right of its box (`f32`).
    pub queries_at: u64,
    /// Axis tables of the selection.
    pub axes_at: u64,
    /// Two words. Finished blocks, where one of them finishes all: zero between launches. Masks that were taken, for run lengths:
    /// zero when the selection has ended.
    pub done_at: u64,
    /// Flags of the result. Written: `sequence`, for run lengths by each block behind what it has stored of the result, else the
    /// first flag alone, behind all of it.
    pub block_flags_at: u64,
    /// `[batch]` [`ImageHeader`]: written.
    pub result_headers_at: u64,
    /// `[batch, max_detections]` [`PackedRow`]: written.
    pub result_rows_at: u64,
    /// The masks: written.
    pub payload_at: u64,
    /// Bytes of the payload of one image.
    pub payload_image_bytes: u64,
    /// `[batch]` [`ImageRecord`]; used when the batch exceeds `INLINE_IMAGES`.
    pub records_at: u64,
    /// Number of images.
    pub batch: u32,
    /// Q.
    pub num_queries: u32,
    /// Rows of the grid.
    pub mask_h: u32,
    /// Columns of the grid.
    pub mask_w: u32,
    /// `DTYPE_` of the masks.
    pub masks_dtype: u32,
    /// Rows an image.
    pub max_detections: u32,
    /// `FLAG_` bits.
    pub flags: u32,
    /// Elements of one run-length mask: bytes (a multiple of 16) or counts.
    pub mask_capacity: u32,
    /// Layout of the axis tables.
    pub axes: AxesLayout,
    /// Number of the request.
    pub sequence: u32,
    /// Shared memory of `rfdetr_masks_rle` and `rfdetr_masks_rle_large`.
    pub rle: RleLayout,
    /// The records of small batches.
    pub records: [ImageRecord; INLINE_IMAGES],
}

const _: () = {
    assert!(size_of::<MaskArgs>() == 96 + 24 * 4 + INLINE_IMAGES * 112);
    assert!(core::mem::offset_of!(MaskArgs, records) == 192);
};

/// The part of the shared memory of `rfdetr_masks_rle` that depends on the plan: where each array begins, in bytes from the
/// start of the shared memory, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "alloc", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct RleLayout {
    /// Characters on their way out: 16, and 6 for each transition of a window. 16-byte aligned.
    pub stage_offset: u32,
    /// Three transitions before the window, then the window.
    pub transitions_offset: u32,
    /// Transitions that are encoded at a time.
    pub window: u32,
    /// Weights of the content's rows, two words a row.
    pub weights_offset: u32,
    /// Rows whose weights have room.
    pub num_weights: u32,
    /// Row groups, a word a window row.
    pub groups_offset: u32,
    /// Window rows whose groups have room.
    pub num_groups: u32,
    /// A mask's cells.
    pub cells_offset: u32,
    /// Cells that have room: none, or all of a mask grid.
    pub num_cells: u32,
    /// Signs of a mask's cells, a bit a cell.
    pub signs_offset: u32,
    /// Their words.
    pub num_sign_words: u32,
    /// Tiles of columns: each column's table entry, its number of transitions before, and its changes, a bit a row. 16-byte
    /// aligned.
    pub tiles_offset: u32,
    /// Their words.
    pub num_tile_words: u32,
}

/// Shared memory of the kernels, in bytes from its start. The host asks for `BYTES`; the kernels use the offsets.
pub mod shared {
    /// Scan scratch (36 words), then counters (28 words).
    pub const SCAN: u32 = 0;
    /// Counters.
    pub const COUNTERS: u32 = 144;

    /// `rfdetr_select`.
    pub mod select {
        use super::super::{MAX_CLASSES, MAX_QUERIES, MAX_SELECT};

        /// 256 words: the radix histogram.
        pub const HISTOGRAM: u32 = 256;
        /// `MAX_SELECT` keys of 8 bytes: the hits, as they come.
        pub const LIST: u32 = HISTOGRAM + 1024;
        /// Fours of logits that have room; with more, logits are read again.
        pub const MAX_FOURS: u32 = 1024;
        /// `MAX_FOURS` fours of logits.
        pub const FOURS: u32 = LIST + 8 * MAX_SELECT;
        /// `MAX_FOURS` words: which each is.
        pub const FOUR_INDICES: u32 = FOURS + 16 * MAX_FOURS;
        /// `MAX_QUERIES` boxes of 16 bytes.
        pub const BOXES: u32 = FOUR_INDICES + 4 * MAX_FOURS;
        /// `MAX_CLASSES` pairs of class id and threshold.
        pub const COLUMNS: u32 = BOXES + 16 * MAX_QUERIES;
        /// Size.
        pub const BYTES: u32 = COLUMNS + 8 * MAX_CLASSES;
    }

    /// The mask kernels.
    pub mod masks {
        use super::super::{MAX_BATCH, MAX_IMAGE_SIDE, MAX_MASK_SIDE};

        /// Largest block of the mask kernels, but for those named below.
        pub const MAX_THREADS: u32 = 384;
        /// Run lengths: largest block.
        pub const RLE_MAX_THREADS: u32 = 512;
        /// Columns of a tile: a warp's, without the lane that looks at the column before.
        pub const TILE: u32 = 31;
        /// Words of the table entries of a tile's columns.
        pub const TILE_ENTRY_WORDS: u32 = 4 * 32;
        /// Tiles that are counted at a time.
        pub const MAX_TILES: u32 = MAX_IMAGE_SIDE / 32;
        /// Words with a bit for each window column in shared memory.
        pub const ODD_WORDS: u32 = (MAX_MASK_SIDE + super::super::WINDOW_MARGIN).div_ceil(32);

        /// `MAX_BATCH + 1` words: work items before each image.
        pub const PREFIX: u32 = 256;
        /// Window columns with cells out of the ordinary.
        pub const ODD: u32 = (PREFIX + 4 * (MAX_BATCH + 1)).next_multiple_of(16);
        /// The image's record, and the first half of the mask's row.
        pub const RECORD: u32 = (ODD + 4 * ODD_WORDS).next_multiple_of(16);
        /// Run lengths: four words of what follows from the image's geometry.
        pub const FACTS: u32 = RECORD + size_of::<super::super::ImageRecord>() as u32 + 32;
        /// Run lengths: blocks of a cluster, on devices that have them: they share a mask.
        pub const RLE_CLUSTER: u32 = 4;
        /// Run lengths: four words: image, slot and query of the mask, and one that is not used.
        pub const ITEM: u32 = FACTS + 16;
        /// Run lengths: two words: start and end of the block's columns.
        pub const PART: u32 = ITEM + 16;
        /// Run lengths: a word: how many masks were taken before the block's next one.
        pub const NEXT: u32 = PART + 8;
        /// Run lengths: what the blocks of the cluster tell each other: sixteen words each.
        pub const HANDED: u32 = PART + 16;
        /// Run lengths: size of that.
        pub const HANDED_BYTES: u32 = 64 * RLE_CLUSTER;
        /// Run lengths: transitions of each tile, and whether it is out of the ordinary.
        pub const TILE_COUNTS: u32 = HANDED + HANDED_BYTES;
        /// Run lengths: states before each tile's columns.
        pub const TILE_CARRIES: u32 = TILE_COUNTS + 4 * MAX_TILES;
        /// Run lengths: size of the part that is the same in every plan.
        pub const RLE_FIXED_BYTES: u32 = (TILE_CARRIES + 4 * MAX_TILES).next_multiple_of(16);

        /// Dense masks: largest block.
        pub const DENSE_MAX_THREADS: u32 = 256;
        /// Dense masks: blocks of that size that the compiler leaves registers for on a multiprocessor: the most without
        /// spills.
        pub const DENSE_MIN_BLOCKS: u32 = 3;
        /// Dense masks: columns of a tile.
        pub const DENSE_TILE_W: u32 = 128;
        /// Dense masks: rows of a tile.
        pub const DENSE_TILE_H: u32 = 8;
        /// Dense masks: tiles side by side of a group, at most.
        pub const DENSE_ACROSS: u32 = 16;
        /// Dense masks: tiles of a group one above the other, at most.
        pub const DENSE_DOWN: u32 = 2;
        /// Dense masks: tiles of a group, at most: a warp looks at them together, a tile each lane.
        pub const DENSE_TILES: u32 = DENSE_ACROSS * DENSE_DOWN;
        /// Dense masks: cells of a group that have room; groups with more read them from device memory again.
        pub const DENSE_CELLS: u32 = 832;
        /// Dense masks: the mixed tiles of the groups that the block draws, and of those that it looks at: words, as many for each
        /// warp as a group has tiles.
        pub const DENSE_LIST: u32 = ODD;
        /// Dense masks: what each warp has for a group, from here on, twice: the image's record, how its masks are cut, where the
        /// group lies, its sums, and its cells.
        pub const DENSE_WARPS: u32 = (DENSE_LIST + 2 * 4 * DENSE_TILES * (DENSE_MAX_THREADS / 32)).next_multiple_of(16);
        /// Dense masks: where three fours of words begin that say where a warp's group lies, and which of its tiles are zeros
        /// and ones.
        pub const DENSE_WARP_GROUP: u32 = size_of::<super::super::ImageRecord>() as u32 + 16;
        /// Dense masks: where a group's sums begin.
        pub const DENSE_WARP_STATS: u32 = DENSE_WARP_GROUP + 48;
        /// Dense masks: where the table entries of a group's rows begin.
        pub const DENSE_WARP_ROWS: u32 = DENSE_WARP_STATS + 32;
        /// Dense masks: where a group's cells begin.
        pub const DENSE_WARP_CELLS: u32 = DENSE_WARP_ROWS + 16 * DENSE_DOWN * DENSE_TILE_H;
        /// Dense masks: bytes of a warp.
        pub const DENSE_WARP_BYTES: u32 = DENSE_WARP_CELLS + 4 * DENSE_CELLS;

        /// Size for `rfdetr_masks_dense`.
        pub const fn dense_bytes(threads: u32) -> u32 {
            DENSE_WARPS + 2 * (threads / 32) * DENSE_WARP_BYTES
        }

        /// Size for `rfdetr_masks_grid`.
        pub const GRID_BYTES: u32 = ODD;

        const _: () = assert!(dense_bytes(DENSE_MAX_THREADS) <= 64 * 1024);
    }
}

//! The plan of the GPU path: every buffer size and launch dimension, as values that can be printed.
//!
//! A plan is made once for the largest request to come and never touches a device. Invariants, relied on by kernels
//! and launcher:
//!
//! - P1: every request run under the plan fits its batch, model shape and image size ([`Plan::check`]).
//! - P2: the rows of an image are `max_detections`, and the selection writes no more.
//! - P3: `work_bytes` and `result_bytes` end behind the last section of their layouts; sections are 256-byte aligned.
//! - P4: the arrays of [`RleLayout`] lie behind each other, end at `mask_shared_bytes`, and a tile of the tallest window whose
//!   signs have room has room, too; where the run-length kernel has clusters, its grid is a whole number of them.
//! - P5: the shared memory of every kernel is at most `limits.max_shared_bytes`, of which it needs 64 KiB at least.

use alloc::vec::Vec;

use crate::{
    error::{Error, Result},
    geometry::{ImageMeta, Size},
    options::{BoxRounding, Frame, MaskFormat, MaskResize, NegativeSizes, Options, ScoreArithmetic},
    packed::{
        self, AxesLayout, FLAG_BILINEAR, FLAG_BIT_PACKED, FLAG_CLAMP_SIZES, FLAG_CLIP_BOXES, FLAG_RLE_STRING,
        FLAG_ROUND_BOXES, FLAG_SELECT_ONLY, FLAG_TORCH_SCORE, FLAG_WHOLE_IMAGE, IMAGE_CROPPED, IMAGE_IDENTITY,
        IMAGE_PLAIN_ROWS, INLINE_IMAGES, ImageHeader, ImageRecord, MaskArgs, PackedRow, RleLayout, SelectArgs,
        WINDOW_MARGIN, shared::masks as shared,
    },
    request::{self, ColumnTable, MaskGeometry, ModelShape},
    score::min_logit,
    tensor::DType,
};

/// What a plan is made for.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PlanSpec {
    /// Q, C and the mask grid.
    pub shape: ModelShape,
    /// The largest batch.
    pub max_batch: usize,
    /// The largest image: its widest and its highest side.
    pub max_image: Size,
    /// What to compute.
    pub options: Options,
    /// Room for one run-length mask, in its elements (bytes or counts); none for 16 elements a column of the largest
    /// image. A mask that needs more is reported as [`Error::Capacity`] with the number that it needs.
    #[serde(default)]
    pub mask_capacity: Option<u32>,
}

/// Shared memory that every supported device has for a block.
pub const MIN_SHARED_BYTES: u32 = 64 << 10;
/// Threads that a large device's multiprocessor has at a time.
const THREADS_PER_MULTIPROCESSOR: u32 = 2048;
/// Transitions that the run-length kernel encodes at a time: at least, and where there is room.
const WINDOWS: [u32; 4] = [1024, 2048, 4096, 8192];
/// Tiles of columns that the run-length kernel should have room for at a time before the window becomes larger.
const WANTED_TILES: [u32; 3] = [16, 24, 24];
/// Rows whose weights may lie in shared memory.
const MAX_SHARED_ROWS: u32 = 4096;

/// What the plan must know of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceLimits {
    /// Number of multiprocessors.
    pub num_multiprocessors: u32,
    /// Threads of a block of the selection kernel, a multiple of 32, at most 1024.
    pub select_threads: u32,
    /// Threads of the run-length kernel on a multiprocessor, a multiple of 32; 512 at most are taken. Its blocks share them.
    pub rle_threads: u32,
    /// Clusters of the run-length kernel, of [`shared::RLE_CLUSTER`] blocks each: as many as run at a time. 0: each block makes
    /// whole masks, as the kernels do that know no clusters; to the launcher it means that it asks the device.
    pub rle_clusters: u32,
    /// Blocks of the run-length kernel a multiprocessor, at most, where there are no clusters; fewer where a mask's cells need the
    /// shared memory of several.
    pub rle_blocks_per_multiprocessor: u32,
    /// Threads of a block of the other mask kernels, a multiple of 32; 384 at most are taken, 256 by the dense kernel.
    pub mask_threads: u32,
    /// Blocks of the other mask kernels a multiprocessor; fewer where their threads are more than a multiprocessor has.
    pub mask_blocks_per_multiprocessor: u32,
    /// Shared memory that a block can have, in bytes: at least 64 KiB.
    pub max_shared_bytes: u32,
}

impl DeviceLimits {
    /// The measured choice for a device of `num_multiprocessors`, with the shared memory that every device has.
    pub const fn new(num_multiprocessors: u32) -> Self {
        Self {
            num_multiprocessors,
            select_threads: 1024,
            rle_threads: 512,
            rle_clusters: 0,
            rle_blocks_per_multiprocessor: 1,
            mask_threads: 256,
            mask_blocks_per_multiprocessor: 3,
            max_shared_bytes: MIN_SHARED_BYTES,
        }
    }
}

/// The kernels of the mask stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskKernel {
    /// Run lengths of grids that have room in shared memory.
    Rle,
    /// Run lengths of larger grids.
    RleLarge,
    /// Dense and bit-packed masks.
    Dense,
    /// Mask-grid logits.
    Grid,
}

impl MaskKernel {
    /// Whether it makes run lengths.
    pub const fn is_run_length(self) -> bool {
        matches!(self, Self::Rle | Self::RleLarge)
    }

    /// The entry's name in the PTX.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rle => "rfdetr_masks_rle",
            Self::RleLarge => "rfdetr_masks_rle_large",
            Self::Dense => "rfdetr_masks_dense",
            Self::Grid => "rfdetr_masks_grid",
        }
    }
}

/// The entry's name of the selection kernel.
pub const SELECT_KERNEL: &str = "rfdetr_select";

/// Offsets of the device-only buffer's sections, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct WorkLayout {
    /// Counters of finished blocks, and of masks that were taken; the first must be zero before the first launch.
    pub counters: u64,
    /// `[C]` pairs of class id and threshold ([`Plan::column_bytes`]): uploaded once.
    pub columns: u64,
    /// `[max_batch]` [`ImageRecord`]: uploaded by requests of more than `INLINE_IMAGES` images.
    pub records: u64,
    /// `[max_batch]` [`ImageHeader`].
    pub headers: u64,
    /// `[max_batch, max_detections]` [`PackedRow`].
    pub rows: u64,
    /// `[max_batch, max_detections]` fours of words.
    pub queries: u64,
    /// Axis tables.
    pub axes: u64,
    /// Size of the buffer.
    pub bytes: u64,
}

/// Offsets of the result's sections, in bytes. The result is what the host reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct ResultLayout {
    /// Flags, a word each: all that a request sets ([`Plan::num_flags`]) have its number when, and only when, everything else is
    /// there.
    pub flags: u64,
    /// `[max_batch]` [`ImageHeader`].
    pub headers: u64,
    /// `[max_batch, max_detections]` [`PackedRow`].
    pub rows: u64,
    /// Run-length masks: `[max_batch, max_detections, mask_capacity]` elements. Empty for the other formats, whose
    /// masks have a buffer of their own (`payload_bytes`).
    pub masks: u64,
    /// Size of the result.
    pub bytes: u64,
}

/// Buffer sizes and launch dimensions for every request that fits [`PlanSpec`].
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Plan {
    /// What the plan was made for.
    pub spec: PlanSpec,
    /// The device.
    pub limits: DeviceLimits,
    /// Rows an image.
    pub max_detections: u32,
    /// Size of the flat top-k.
    pub num_select: u32,
    /// Kernel of the mask stage; none without masks.
    pub mask_kernel: Option<MaskKernel>,
    /// Blocks of the mask stage.
    pub mask_grid: u32,
    /// Threads of its blocks.
    pub mask_threads: u32,
    /// Shared memory of its blocks, in bytes.
    pub mask_shared_bytes: u32,
    /// Elements of one run-length mask.
    pub mask_capacity: u32,
    /// Bytes of the dense, bit-packed or grid masks of one image.
    pub payload_image_bytes: u64,
    /// Bytes of the dense, bit-packed or grid masks of the batch; they stay on the device.
    pub payload_bytes: u64,
    /// Layout of the axis tables.
    #[serde(skip)]
    pub axes: AxesLayout,
    /// Layout of the run-length kernel's shared memory.
    #[serde(skip)]
    pub rle: RleLayout,
    /// Layout of the device-only buffer.
    pub work: WorkLayout,
    /// Layout of the result.
    pub result: ResultLayout,
    /// `FLAG_` bits of the options.
    pub flags: u32,
    /// Class ids and thresholds by column.
    #[serde(skip)]
    pub columns: ColumnTable,
    min_logit: f32,
}

/// Axis-table blocks of 256 entries each cost nothing beside the selection; more than this many are never needed.
const AXIS_ENTRIES_PER_BLOCK: u32 = 1024;

impl Plan {
    /// Plans for `spec` on a device.
    ///
    /// Errors: [`Error::Limit`] beyond the kernels' sizes, those of the options, [`Error::Overflow`] where a buffer
    /// cannot be addressed.
    pub fn new(spec: PlanSpec, limits: DeviceLimits) -> Result<Self> {
        let columns = request::check_options(&spec.options, &spec.shape)?;
        let limit = |field, max: u32, got: usize| {
            if got as u64 > u64::from(max) {
                Err(Error::Limit { field, max: max.into(), got: got as u64 })
            } else {
                Ok(())
            }
        };
        limit("num_queries", packed::MAX_QUERIES, spec.shape.num_queries)?;
        limit("num_classes", packed::MAX_CLASSES, spec.shape.num_classes)?;
        limit("max_batch", packed::MAX_BATCH, spec.max_batch)?;
        limit("max_image.width", packed::MAX_IMAGE_SIDE, spec.max_image.width as usize)?;
        limit("max_image.height", packed::MAX_IMAGE_SIDE, spec.max_image.height as usize)?;
        let (mask_h, mask_w) = spec.shape.mask_grid.unwrap_or((0, 0));
        limit("mask_h", packed::MAX_MASK_SIDE, mask_h)?;
        limit("mask_w", packed::MAX_MASK_SIDE, mask_w)?;
        let num_select = spec.options.num_select.unwrap_or(spec.shape.num_queries).min(spec.shape.num_pairs());
        limit("num_select", packed::MAX_SELECT, num_select)?;
        let max_detections = spec.options.max_detections.unwrap_or(num_select).min(num_select) as u32;

        let format = spec.options.mask_format;
        let rle = rle_layout(mask_h as u32, mask_w as u32, spec.max_image, &limits);
        let mask_kernel = match format {
            MaskFormat::None => None,
            MaskFormat::Dense | MaskFormat::BitPacked => Some(MaskKernel::Dense),
            MaskFormat::GridLogits => Some(MaskKernel::Grid),
            MaskFormat::Counts | MaskFormat::Rle if rle.layout.num_cells > 0 => Some(MaskKernel::Rle),
            MaskFormat::Counts | MaskFormat::Rle => Some(MaskKernel::RleLarge),
        };
        let (mask_threads, blocks) = match mask_kernel {
            Some(MaskKernel::Rle | MaskKernel::RleLarge) => (rle.threads, rle.blocks),
            Some(MaskKernel::Dense) => {
                (limits.mask_threads.min(shared::DENSE_MAX_THREADS), limits.mask_blocks_per_multiprocessor)
            }
            _ => (limits.mask_threads.min(shared::MAX_THREADS), limits.mask_blocks_per_multiprocessor),
        };
        // No more than a multiprocessor's threads: blocks that wait for others to end would find no work.
        let fitting = (THREADS_PER_MULTIPROCESSOR / mask_threads.max(1)).max(1);
        let is_run_length = mask_kernel.is_some_and(MaskKernel::is_run_length);
        let mask_grid = if is_run_length && limits.rle_clusters > 0 {
            limits.rle_clusters * shared::RLE_CLUSTER
        } else {
            limits.num_multiprocessors.max(1) * blocks.clamp(1, fitting)
        };
        let (max_w, max_h) = (spec.max_image.width, spec.max_image.height);

        let default_capacity = 16 * max_w.max(64);
        let mask_capacity = match format {
            MaskFormat::Rle | MaskFormat::Counts => {
                let asked = spec.mask_capacity.unwrap_or(default_capacity);
                asked.checked_next_multiple_of(16).ok_or(Error::Overflow {
                    field: "mask_capacity",
                    max: u64::from(u32::MAX - 15),
                    got: asked.into(),
                })?
            }
            _ => 0,
        };
        let rle = rle.layout;
        let mask_shared_bytes = match mask_kernel {
            Some(MaskKernel::Rle | MaskKernel::RleLarge) => rle.tiles_offset + 4 * rle.num_tile_words,
            Some(MaskKernel::Dense) => shared::dense_bytes(mask_threads),
            Some(MaskKernel::Grid) => shared::GRID_BYTES,
            None => 0,
        };

        let rows_bytes = spec.max_batch as u64 * u64::from(max_detections);
        let mask_bytes = match format {
            MaskFormat::Dense => u64::from(max_w) * u64::from(max_h),
            MaskFormat::BitPacked => u64::from(max_w.div_ceil(32)) * 4 * u64::from(max_h),
            MaskFormat::GridLogits => (mask_h * mask_w * 4) as u64,
            _ => 0,
        };
        let payload_image_bytes = mask_bytes.next_multiple_of(16) * u64::from(max_detections);
        let payload_bytes = payload_image_bytes * spec.max_batch as u64;

        let axes = match mask_kernel {
            Some(MaskKernel::Grid) | None => AxesLayout::default(),
            Some(_) => AxesLayout { rows_offset: max_w, image_stride: max_w + max_h },
        };

        let mut end = 0;
        let mut section = |bytes: u64| {
            let start = end;
            end = (start + bytes).next_multiple_of(256);
            start
        };
        let batch = spec.max_batch as u64;
        let work = WorkLayout {
            counters: section(16),
            columns: section(8 * spec.shape.num_classes as u64),
            records: section(batch * size_of::<ImageRecord>() as u64),
            headers: section(batch * size_of::<ImageHeader>() as u64),
            rows: section(rows_bytes * size_of::<PackedRow>() as u64),
            queries: section(rows_bytes * 16),
            axes: section(batch * u64::from(axes.image_stride) * 16),
            bytes: 0,
        };
        let work = WorkLayout { bytes: end, ..work };

        let mut end = 0;
        let mut section = |bytes: u64| {
            let start = end;
            end = (start + bytes).next_multiple_of(64);
            start
        };
        let element = if format == MaskFormat::Counts { 4 } else { 1 };
        let result = ResultLayout {
            flags: section(4 * u64::from(packed::flag_word(num_flags(mask_kernel, mask_grid, spec.max_batch)))),
            headers: section(batch * size_of::<ImageHeader>() as u64),
            rows: section(rows_bytes * size_of::<PackedRow>() as u64),
            masks: section(rows_bytes * u64::from(mask_capacity) * element),
            bytes: 0,
        };
        let result = ResultLayout { bytes: end, ..result };
        for (field, got) in [("work", work.bytes), ("result", result.bytes), ("payload", payload_bytes)] {
            if got > isize::MAX as u64 {
                return Err(Error::Overflow { field, max: isize::MAX as u64, got });
            }
        }

        Ok(Self {
            limits,
            max_detections,
            num_select: num_select as u32,
            mask_kernel,
            mask_grid,
            mask_threads,
            mask_shared_bytes,
            mask_capacity,
            payload_image_bytes,
            payload_bytes,
            axes,
            rle,
            work,
            result,
            flags: flags(&spec.options),
            min_logit: min_logit(columns.min_threshold),
            columns,
            spec,
        })
    }

    /// Checks that a batch of images fits the plan (P1).
    ///
    /// Errors: bad metadata, [`Error::Plan`] where the batch or an image is larger than planned.
    pub fn check(&self, metas: &[ImageMeta], batch: usize) -> Result<()> {
        request::check_metas(metas, batch, &self.spec.options)?;
        let plan = |field, planned: u64, got: u64| {
            if got > planned { Err(Error::Plan { field, planned, got }) } else { Ok(()) }
        };
        plan("batch", self.spec.max_batch as u64, batch as u64)?;
        for meta in metas {
            plan("width", self.spec.max_image.width.into(), meta.original.width.into())?;
            plan("height", self.spec.max_image.height.into(), meta.original.height.into())?;
        }
        Ok(())
    }

    /// The kernels' records of a batch that [`Plan::check`] passed.
    pub fn records(&self, metas: &[ImageMeta]) -> Vec<ImageRecord> {
        let mut records: Vec<ImageRecord> = metas.iter().map(|meta| image_record(meta, &self.spec)).collect();
        for i in 1..records.len() {
            let before = records[i - 1];
            records[i].geometry =
                if mask_geometry(&records[i]) == mask_geometry(&before) { before.geometry } else { i as u32 };
        }
        records
    }

    /// The bytes of the work buffer's columns: class id and threshold of each.
    pub fn column_bytes(&self) -> Vec<u8> {
        let columns = self.columns.class_ids.iter().zip(&self.columns.thresholds);
        columns.flat_map(|(id, threshold)| [id.to_ne_bytes(), threshold.to_ne_bytes()]).flatten().collect()
    }

    /// Blocks of the selection kernel for a batch: one an image, and those that build the axis tables.
    pub fn select_grid(&self, batch: usize) -> u32 {
        batch as u32 * (1 + self.axis_blocks())
    }

    /// Flags that a request of `batch` images sets, from the first on: one for each block that writes a part of the result.
    pub fn num_flags(&self, batch: usize) -> u32 {
        num_flags(self.mask_kernel, self.mask_grid, batch)
    }

    fn axis_blocks(&self) -> u32 {
        match self.mask_kernel {
            Some(MaskKernel::Grid) | None => 0,
            Some(_) => self.axes.image_stride.div_ceil(AXIS_ENTRIES_PER_BLOCK).max(1),
        }
    }

    /// Both argument records of a request that [`Plan::check`] passed.
    pub fn args(
        &self,
        inputs: &DeviceInputs,
        buffers: &DeviceBuffers,
        records: &[ImageRecord],
        sequence: u32,
    ) -> (SelectArgs, MaskArgs) {
        let mut inline = [ImageRecord::default(); INLINE_IMAGES];
        if records.len() <= INLINE_IMAGES {
            inline[..records.len()].copy_from_slice(records);
        }
        let work = |offset: u64| buffers.work_at + offset;
        let result = |offset: u64| buffers.result_at + offset;
        let (headers_at, rows_at) = match self.mask_kernel {
            Some(_) => (work(self.work.headers), work(self.work.rows)),
            None => (result(self.result.headers), result(self.result.rows)),
        };
        let (mask_h, mask_w) = self.spec.shape.mask_grid.unwrap_or((0, 0));
        let is_run_length = self.mask_kernel.is_some_and(MaskKernel::is_run_length);
        let element = if self.flags & FLAG_RLE_STRING != 0 { 1 } else { 4 };
        let select = SelectArgs {
            logits_at: inputs.logits_at,
            boxes_at: inputs.boxes_at,
            columns_at: work(self.work.columns),
            queries_at: work(self.work.queries),
            headers_at,
            rows_at,
            axes_at: work(self.work.axes),
            taken_at: work(self.work.counters) + 4,
            block_flags_at: result(self.result.flags),
            records_at: work(self.work.records),
            batch: records.len() as u32,
            num_queries: self.spec.shape.num_queries as u32,
            num_classes: self.spec.shape.num_classes as u32,
            num_select: self.num_select,
            max_detections: self.max_detections,
            logits_dtype: inputs.logits_dtype as u32,
            boxes_dtype: inputs.boxes_dtype as u32,
            flags: self.flags,
            min_logit: self.min_logit,
            min_threshold: self.columns.min_threshold,
            axis_blocks: self.axis_blocks(),
            axes: self.axes,
            sequence,
            classes_inverse: (1u32 << 31).div_ceil(self.spec.shape.num_classes.max(1) as u32),
            reserved: 0,
            records: inline,
        };
        let masks = MaskArgs {
            masks_at: inputs.masks_at,
            headers_at,
            rows_at,
            queries_at: work(self.work.queries),
            axes_at: work(self.work.axes),
            done_at: work(self.work.counters),
            block_flags_at: result(self.result.flags),
            result_headers_at: result(self.result.headers),
            result_rows_at: result(self.result.rows),
            payload_at: if is_run_length { result(self.result.masks) } else { buffers.payload_at },
            payload_image_bytes: if is_run_length {
                u64::from(self.max_detections) * u64::from(self.mask_capacity) * element
            } else {
                self.payload_image_bytes
            },
            records_at: work(self.work.records),
            batch: records.len() as u32,
            num_queries: self.spec.shape.num_queries as u32,
            mask_h: mask_h as u32,
            mask_w: mask_w as u32,
            masks_dtype: inputs.masks_dtype as u32,
            max_detections: self.max_detections,
            flags: self.flags,
            mask_capacity: self.mask_capacity,
            axes: self.axes,
            sequence,
            rle: self.rle,
            records: inline,
        };
        (select, masks)
    }
}

/// Where a request's tensors lie on the device, row-major and contiguous, aligned to their elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInputs {
    /// `[B, Q, 4]`.
    pub boxes_at: u64,
    /// Element type of the boxes.
    pub boxes_dtype: DType,
    /// `[B, Q, C]`.
    pub logits_at: u64,
    /// Element type of the logits.
    pub logits_dtype: DType,
    /// `[B, Q, Mh, Mw]`; anything without masks.
    pub masks_at: u64,
    /// Element type of the masks.
    pub masks_dtype: DType,
}

/// Where a plan's buffers lie, in addresses that the device can use; aligned to 256 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceBuffers {
    /// `work.bytes`.
    pub work_at: u64,
    /// `result.bytes`; may be memory of the host that is mapped.
    pub result_at: u64,
    /// `payload_bytes`; anything if that is 0.
    pub payload_at: u64,
}

/// Launch sizes and shared memory of the run-length kernel.
struct RlePlan {
    threads: u32,
    blocks: u32,
    layout: RleLayout,
}

/// As many blocks a multiprocessor as asked for, if a mask's cells and enough tiles have room in the share of each; else fewer.
fn rle_layout(mask_h: u32, mask_w: u32, max_image: Size, limits: &DeviceLimits) -> RlePlan {
    // A multiprocessor has 1 KiB more than a block can have, and takes 1 KiB of it for each block.
    let all = limits.max_shared_bytes.max(MIN_SHARED_BYTES) + 1024;
    let mut blocks = if limits.rle_clusters > 0 { 1 } else { limits.rle_blocks_per_multiprocessor.max(1) };
    loop {
        let budget = (all / blocks - 1024) & !15;
        let layout = rle_layout_within(mask_h, mask_w, max_image, budget);
        if let Some(layout) = layout.filter(|layout| layout.num_cells > 0 || blocks == 1) {
            let threads = (limits.rle_threads.min(shared::RLE_MAX_THREADS) / blocks / 32).max(1) * 32;
            return RlePlan { threads, blocks, layout };
        }
        blocks -= 1;
    }
}

/// Shares `budget` bytes of shared memory out. A window of transitions, the signs, the row groups and one tile must have room;
/// then come the cells, which every change reads, the rows' weights, some tiles, a larger window, and more tiles take what is
/// left. None if not even cells and some tiles have room; where the budget is a whole block's there is always something.
fn rle_layout_within(mask_h: u32, mask_w: u32, max_image: Size, budget: u32) -> Option<RleLayout> {
    let words = (mask_h + WINDOW_MARGIN).div_ceil(32);
    let tile_words = shared::TILE_ENTRY_WORDS + 32 * (1 + words);
    let num_sign_words = (mask_w + WINDOW_MARGIN) * words;
    let num_groups = mask_h + WINDOW_MARGIN;
    let window_words = |window: u32| (16 + 6 * window) / 4 + (3 + window).next_multiple_of(2);
    // Every array begins at a multiple of 16 bytes.
    let padding = 4 * 6;
    let needed =
        shared::RLE_FIXED_BYTES / 4 + window_words(WINDOWS[0]) + num_groups + num_sign_words + tile_words + padding;
    let mut left = (budget / 4).checked_sub(needed)?;
    let mut take = |words: u32| {
        let fits = words <= left;
        left -= if fits { words } else { 0 };
        fits
    };
    let num_cells = if take(mask_h * mask_w) { mask_h * mask_w } else { 0 };
    let num_rows = max_image.height.min(MAX_SHARED_ROWS);
    let num_weights = if take(2 * num_rows) { num_rows } else { 0 };
    let max_tiles = max_image.width.div_ceil(shared::TILE).clamp(1, shared::MAX_TILES);
    let mut num_tiles = 1;
    let mut window = WINDOWS[0];
    for (larger, wanted_tiles) in WINDOWS[1..].iter().zip(WANTED_TILES) {
        while num_tiles < max_tiles.min(wanted_tiles) && take(tile_words) {
            num_tiles += 1;
        }
        if take(window_words(*larger) - window_words(window)) {
            window = *larger;
        }
    }
    num_tiles = max_tiles.min(num_tiles + left / tile_words);

    let mut end = shared::RLE_FIXED_BYTES;
    let mut place = |bytes: u32| {
        let offset = end;
        end = (end + bytes).next_multiple_of(16);
        offset
    };
    Some(RleLayout {
        stage_offset: place(16 + 6 * window),
        transitions_offset: place(4 * (3 + window)),
        window,
        weights_offset: place(8 * num_weights),
        num_weights,
        groups_offset: place(4 * num_groups),
        num_groups,
        cells_offset: place(4 * num_cells),
        num_cells,
        signs_offset: place(4 * num_sign_words),
        num_sign_words,
        tiles_offset: place(4 * tile_words * num_tiles),
        num_tile_words: tile_words * num_tiles,
    })
}

/// See [`Plan::num_flags`].
fn num_flags(mask_kernel: Option<MaskKernel>, mask_grid: u32, batch: usize) -> u32 {
    match mask_kernel {
        None => batch as u32,
        Some(MaskKernel::Rle | MaskKernel::RleLarge) => mask_grid,
        // Of the block that counts itself last.
        Some(MaskKernel::Dense | MaskKernel::Grid) => 1,
    }
}

/// `FLAG_` bits of the options.
fn flags(options: &Options) -> u32 {
    let semantics = &options.semantics;
    let flag = |is_set, bit| if is_set { bit } else { 0 };
    flag(semantics.score == ScoreArithmetic::TorchCuda, FLAG_TORCH_SCORE)
        | flag(semantics.frame == Frame::WholeImage, FLAG_WHOLE_IMAGE)
        | flag(semantics.clip_boxes, FLAG_CLIP_BOXES)
        | flag(semantics.box_rounding == BoxRounding::HalfEven, FLAG_ROUND_BOXES)
        | flag(semantics.negative_sizes == NegativeSizes::Clamp, FLAG_CLAMP_SIZES)
        | flag(semantics.mask_resize == MaskResize::Bilinear, FLAG_BILINEAR)
        | flag(options.mask_format == MaskFormat::Rle, FLAG_RLE_STRING)
        | flag(options.mask_format == MaskFormat::BitPacked, FLAG_BIT_PACKED)
        | flag(options.mask_format == MaskFormat::None, FLAG_SELECT_ONLY)
}

/// The kernels' record of one image.
fn image_record(meta: &ImageMeta, spec: &PlanSpec) -> ImageRecord {
    let options = &spec.options;
    let (mask_h, mask_w) = spec.shape.mask_grid.unwrap_or((0, 0));
    let geometry = MaskGeometry::new(meta, &options.semantics, mask_h, mask_w);
    let (window, content) = (geometry.window, geometry.content);
    let is_antialias = options.semantics.mask_resize == MaskResize::Antialias;
    // The scales of spec 5.3 and 5.6; without antialias the filter has no support of its own.
    let axis = |n_in: i64, n_out: u32| {
        let scale = n_in.max(0) as f32 / n_out as f32;
        if is_antialias && scale >= 1.0 { (scale, scale, (1.0 / f64::from(scale)) as f32) } else { (scale, 1.0, 1.0) }
    };
    let (scale_x, support_x, inverse_x) = axis(window.width, content.width);
    let (scale_y, support_y, inverse_y) = axis(window.height, content.height);
    let is_empty = window.is_empty();
    let is_identity = (window.width, window.height) == (i64::from(content.width), i64::from(content.height));
    let frame = meta.frame();
    let is_cropped = meta.crop_offset.x != 0 || meta.crop_offset.y != 0;
    let flag = |is_set, bit| if is_set { bit } else { 0 };
    ImageRecord {
        width: geometry.canvas.width,
        height: geometry.canvas.height,
        content_w: content.width,
        content_h: content.height,
        offset_x: geometry.offset_x,
        offset_y: geometry.offset_y,
        window_x: window.x as i32,
        window_y: window.y as i32,
        window_w: if is_empty { 0 } else { window.width as u32 },
        window_h: if is_empty { 0 } else { window.height as u32 },
        scale_x,
        support_x,
        inverse_x,
        scale_y,
        support_y,
        inverse_y,
        flags: flag(is_cropped, IMAGE_CROPPED)
            | flag(is_identity, IMAGE_IDENTITY)
            | flag(is_antialias && !is_identity && scale_y > 1.0, IMAGE_PLAIN_ROWS),
        frame_w: frame.width as f32,
        frame_h: frame.height as f32,
        pad_left: meta.padding.left as f32,
        pad_top: meta.padding.top as f32,
        box_scale_x: meta.scale_x as f32,
        box_scale_y: meta.scale_y as f32,
        crop_x: meta.crop_offset.x as f32,
        crop_y: meta.crop_offset.y as f32,
        columns_per_cell: if is_empty { 0.0 } else { content.width as f32 / window.width as f32 },
        rows_per_cell: if is_empty { 0.0 } else { content.height as f32 / window.height as f32 },
        geometry: 0,
    }
}

/// The fields of a record that decide how masks are resized.
fn mask_geometry(record: &ImageRecord) -> ([u32; 10], u32) {
    let ImageRecord { width, height, content_w, content_h, offset_x, offset_y, window_w, window_h, .. } = *record;
    let (window_x, window_y) = (record.window_x as u32, record.window_y as u32);
    let sizes = [width, height, content_w, content_h, offset_x, offset_y, window_x, window_y, window_w, window_h];
    (sizes, record.flags & !IMAGE_CROPPED)
}

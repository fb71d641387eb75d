//! The order of work: images, then masks, on one thread or many, with buffers that live from call to call.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};

use rfdetr_post_core::{
    DetectionRow, Detections, Error, Health, ImageDetections, MaskFormat, Masks, Request, Result,
    request::{MaskGeometry, check_cpu},
};

use crate::{
    ConfigError, CpuConfig, SimdLevel, Threads,
    axis::{Axes, Axis},
    boxes::{CountNonfinite, Decoder},
    masks::{self, MakeMask, Output},
    select::{self, Select},
    simd::Token,
    threads::{Batch, Shared, Slots},
    widen::widen,
};

/// Post-processes batches on the CPU. Built once, used many times; after the first batches of a kind it allocates
/// nothing but the answers' own buffers, and with [`CpuPostprocessor::process_into`] not even those.
#[derive(Debug)]
pub struct CpuPostprocessor {
    token: Token,
    /// None for one thread.
    pool: Option<Pool>,
    axes: Axes,
    /// One entry a thread.
    scratch: Vec<Mutex<Scratch>>,
    /// One entry an image.
    plans: Vec<Plan>,
    /// One entry an image and detection, for what many threads write.
    slots: Vec<Slots>,
    /// Dense masks of an image from this many bytes on are written past the caches.
    streamed_bytes: usize,
}

#[derive(Debug)]
enum Pool {
    Global,
    Own(rayon::ThreadPool),
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    select: select::Scratch,
    pub(crate) masks: masks::Scratch,
}

/// How the masks of one image are made.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) geometry: Option<MaskGeometry>,
    pub(crate) axes: Option<[Arc<Axis>; 2]>,
}

impl CpuPostprocessor {
    /// Checks the configuration against the machine and starts the threads.
    ///
    /// Errors: instructions that the machine lacks; threads that cannot be started.
    pub fn new(config: CpuConfig) -> std::result::Result<Self, ConfigError> {
        let available = SimdLevel::available();
        let level = config.simd.or(available.last().copied()).unwrap_or(SimdLevel::Portable);
        let token = Token::new(level).ok_or(ConfigError::Simd { got: level, available })?;
        let pool = match config.threads {
            Threads::One => None,
            Threads::All => Some(Pool::Global),
            // The caller's thread is one of them.
            Threads::Count(got) if got.get() == 1 => None,
            Threads::Count(got) => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(got.get() - 1).build();
                Some(Pool::Own(pool.map_err(|source| ConfigError::Threads { got, source })?))
            }
        };
        Ok(Self {
            token,
            pool,
            axes: Axes::default(),
            scratch: Vec::new(),
            plans: Vec::new(),
            slots: Vec::new(),
            streamed_bytes: STREAMED_BYTES,
        })
    }

    /// Writes the dense masks of an image past the caches from `bytes` on. For tests: the answers do not depend on it.
    #[doc(hidden)]
    pub fn set_streamed_bytes(&mut self, bytes: usize) {
        self.streamed_bytes = bytes;
    }

    /// Computes the detections of a whole batch.
    ///
    /// Errors: [`Error::ScoreArithmetic`] if the scores need a GPU, [`Error::OutOfMemory`] if the masks do not fit.
    pub fn process(&mut self, request: &Request<'_>) -> Result<Detections> {
        let mut detections = Detections::default();
        self.process_into(request, &mut detections)?;
        Ok(detections)
    }

    /// Like [`CpuPostprocessor::process`], but overwrites an earlier answer and reuses its buffers.
    ///
    /// Errors: as there; the answer is then unspecified.
    pub fn process_into(&mut self, request: &Request<'_>, detections: &mut Detections) -> Result<()> {
        check_cpu(request.options())?;
        let images = &mut detections.images;
        images.truncate(request.batch());
        for (image, meta) in request.metas().iter().enumerate() {
            match images.get_mut(image) {
                Some(answer) => answer.size = meta.original,
                None => images.push(ImageDetections::empty(meta.original)),
            }
        }
        self.plans.clear();
        for image in 0..request.batch() {
            let geometry = request.mask_geometry(image);
            let axes = geometry.filter(|g| needs_axes(request) && !g.window.is_empty()).map(|g| {
                let cells = (g.window.width as usize, g.window.height as usize);
                let pixels = (g.content.width as usize, g.content.height as usize);
                self.axes.get(cells, pixels, request.options().semantics.mask_resize)
            });
            self.plans.push(Plan { geometry, axes });
        }
        let num_workers = self.num_workers(request);
        self.scratch.resize_with(num_workers.max(self.scratch.len()), Mutex::default);
        let token = self.token;
        let Some(pool) = self.pool.as_ref().filter(|_| num_workers > 1) else {
            let scratch = self.scratch[0].get_mut().unwrap_or_else(PoisonError::into_inner);
            for (image, (answer, plan)) in images.iter_mut().zip(&self.plans).enumerate() {
                process_image(token, request, image, plan, answer, scratch, self.streamed_bytes)?;
            }
            return Ok(());
        };
        self.slots.resize_with(request.batch().max(self.slots.len()), Vec::new);
        let shared = Shared { token, request, plans: &self.plans, scratch: &self.scratch };
        let batch = Batch::new(shared, images, &mut self.slots, self.streamed_bytes);
        match pool {
            Pool::Global => rayon::in_place_scope(|scope| batch.run(num_workers, scope)),
            Pool::Own(pool) => pool.in_place_scope(|scope| batch.run(num_workers, scope)),
        }
        batch.outcome()
    }

    /// How many threads have something to do: at most one for each image, or for each mask that there may be.
    fn num_workers(&self, request: &Request<'_>) -> usize {
        let threads = match &self.pool {
            None => 1,
            Some(Pool::Global) => rayon::current_num_threads(),
            Some(Pool::Own(pool)) => pool.current_num_threads() + 1,
        };
        let options = request.options();
        let num_masks = match options.mask_format {
            MaskFormat::None => 1,
            _ => options.max_detections.unwrap_or(usize::MAX).min(request.num_select()),
        };
        threads.min(request.batch().saturating_mul(num_masks)).max(1)
    }
}

/// Dense masks of an image from this size on are written past the caches: they do not fit into them anyway, and then a
/// line need not be read before it is written.
const STREAMED_BYTES: usize = 8 << 20;

/// Mask-grid logits are not resized.
fn needs_axes(request: &Request<'_>) -> bool {
    request.options().mask_format != MaskFormat::GridLogits
}

/// Selection and boxes of one image.
pub(crate) fn detect(
    token: Token,
    request: &Request<'_>,
    image: usize,
    answer: &mut ImageDetections,
    scratch: &mut Scratch,
) {
    let ImageDetections { rows, health, .. } = answer;
    *health = Health::default();
    rows.clear();
    let decoder = Decoder::new(request, image);
    let boxes = request.tensors().boxes.data();
    let survivors = token.run(Select { request, image, scratch: &mut scratch.select, health });
    rows.extend(survivors.iter().map(|survivor| {
        let mut cxcywh = [0.0; 4];
        let query = image * request.shape().num_queries + survivor.query_idx as usize;
        widen(boxes, query * 4, &mut cxcywh);
        DetectionRow {
            xyxy: decoder.decode(cxcywh),
            confidence: survivor.score,
            class_id: survivor.class_id,
            query_idx: survivor.query_idx,
            class_idx: survivor.class_idx,
            ..DetectionRow::default()
        }
    }));
    health.nonfinite_boxes = token.run(CountNonfinite { request, image });
}

/// Gives the masks the requested form, with room for all masks of a fixed size. Returns the length of one.
pub(crate) fn shape_masks(request: &Request<'_>, plan: &Plan, answer: &mut ImageDetections) -> Result<usize> {
    let Some(geometry) = &plan.geometry else {
        answer.masks = Masks::None;
        return Ok(0);
    };
    let (width, height) = (geometry.canvas.width as usize, geometry.canvas.height as usize);
    let (mask_h, mask_w) = request.shape().mask_grid.unwrap_or_default();
    let (count, format) = (answer.rows.len(), request.options().mask_format);
    let old = std::mem::take(&mut answer.masks);
    let (masks, len) = match (format, old) {
        (MaskFormat::None, _) => (Masks::None, 0),
        (MaskFormat::Dense, old) => {
            let len = width * height;
            (Masks::Dense(sized(bytes_of(old), count, len)?), len)
        }
        (MaskFormat::BitPacked, old) => {
            let len = width.div_ceil(32) * height;
            (Masks::BitPacked(sized(words_of(old), count, len)?), len)
        }
        (MaskFormat::GridLogits, old) => {
            let len = mask_h * mask_w;
            let logits = if let Masks::GridLogits { logits, .. } = old { logits } else { Vec::new() };
            (Masks::GridLogits { mask_h, mask_w, logits: sized(logits, count, len)? }, len)
        }
        (MaskFormat::Counts, old) => {
            let mut counts = words_of(old);
            counts.clear();
            (Masks::Counts(counts), 0)
        }
        (MaskFormat::Rle, old) => {
            let mut string = bytes_of(old);
            string.clear();
            (Masks::Rle(string), 0)
        }
    };
    answer.masks = masks;
    Ok(len)
}

fn bytes_of(masks: Masks) -> Vec<u8> {
    if let Masks::Dense(bytes) | Masks::Rle(bytes) = masks { bytes } else { Vec::new() }
}

fn words_of(masks: Masks) -> Vec<u32> {
    if let Masks::BitPacked(words) | Masks::Counts(words) = masks { words } else { Vec::new() }
}

/// A buffer of `count` masks of `len` elements, whatever they are; `old` if it is large enough.
fn sized<T: Copy + Default>(mut old: Vec<T>, count: usize, len: usize) -> Result<Vec<T>> {
    let total = count.saturating_mul(len);
    if total > old.capacity() {
        // Zeros come from the system for free where a buffer is new; to ask first keeps a refusal an error.
        old = Vec::new();
        let bytes = (total as u64).saturating_mul(size_of::<T>() as u64);
        old.try_reserve_exact(total).map_err(|_| Error::OutOfMemory { field: "masks", bytes })?;
        drop(std::mem::take(&mut old));
        return Ok(vec![T::default(); total]);
    }
    old.resize(total, T::default());
    Ok(old)
}

/// All stages of one image on this thread.
fn process_image(
    token: Token,
    request: &Request<'_>,
    image: usize,
    plan: &Plan,
    answer: &mut ImageDetections,
    scratch: &mut Scratch,
    streamed_bytes: usize,
) -> Result<()> {
    detect(token, request, image, answer, scratch);
    let len = shape_masks(request, plan, answer)?;
    let Some(geometry) = &plan.geometry else { return Ok(()) };
    let axes = plan.axes.as_ref().map(|axes| axes.each_ref().map(|axis| &**axis));
    let stream = answer.rows.len().saturating_mul(len) >= streamed_bytes;
    for (i, row) in answer.rows.iter_mut().enumerate() {
        let fixed = i * len..(i + 1) * len;
        let (output, offset) = match &mut answer.masks {
            Masks::None => return Ok(()),
            Masks::Dense(bytes) => (Output::Dense(&mut bytes[fixed], stream), 0),
            Masks::BitPacked(words) => (Output::BitPacked(&mut words[fixed]), 0),
            Masks::GridLogits { logits, .. } => (Output::GridLogits(&mut logits[fixed]), 0),
            Masks::Counts(counts) => {
                let offset = counts.len();
                (Output::Counts(counts), offset)
            }
            Masks::Rle(string) => {
                let offset = string.len();
                (Output::Rle(string), offset)
            }
        };
        let scratch = &mut scratch.masks;
        answer.health.nonfinite_mask_logits +=
            token.run(MakeMask { request, image, geometry, axes, row, output, scratch });
        row.mask_offset = checked_offset(offset, row.mask_len)?;
    }
    Ok(())
}

/// The offset of a mask of run lengths; it and the length must fit `u32`.
pub(crate) fn checked_offset(offset: usize, len: u32) -> Result<u32> {
    u32::try_from(offset).map_err(|_| Error::Overflow {
        field: "masks",
        max: u32::MAX.into(),
        got: (offset as u64).saturating_add(len.into()),
    })
}

//! Times the GPU path beside its floors. Not part of the interface: front ends are `rfdetr-post bench --device cuda` and
//! the example `rfdetr-post-gpu-bench`, which bring the judge of the answers.
//!
//! - wall: from the call of `enqueue`, inputs on the device and the stream idle, until `Ticket::wait` returns; decoding
//!   is not in it. Dense masks stay on the device; they are done when the ticket is.
//! - gpu: CUDA events around requests that wait behind a closed gate on their stream, so that nothing of the launches'
//!   cost on the host is in it: one request alone (`gpu_one`), and a queue of them in slots of their own, for each
//!   (`gpu_each`).
//!
//! Each launch mode is an entry of its own; `fill` is the driver's memset of as many bytes as the masks have.

mod gpu;

use std::time::{Duration, Instant};

use rfdetr_post_core::{
    DType, Detections, ImageMeta, MaskFormat, Size,
    bench::{Case, FULL_HD, HD, Inputs, MP12, Times, UHD, difference, foreground, is_named, now, sample},
    models::VARIANTS,
    plan::{DeviceLimits, Plan, PlanSpec},
    request::ModelShape,
};
use serde::Serialize;

use self::gpu::{Gpu, Memory};
use crate::{
    CudaConfig, CudaPostprocessor, DeviceChoice, DeviceInfo, DeviceTensor, DeviceTensors, KernelChoice, LaunchMode,
};

/// Any error; front ends only print it.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Buffers of the queue of requests take no more than this.
const QUEUE_BYTES: u64 = 6 << 30;

/// What a case is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Median wall time, in microseconds.
    WallMedianUs(f64),
    /// GPU time of a request in a queue, in multiples of a fill of the same bytes.
    GpuOfFill(f64),
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What to time.
    pub case: Case,
    /// What it is to reach.
    pub goal: Option<Goal>,
}

/// The table of goals, and the floor: requests in which nothing survives.
pub fn goals() -> Vec<Entry> {
    use MaskFormat::{Dense, None, Rle};
    let wall = |goal, model, frame, detections, batch, format| Entry {
        case: Case::new(model, frame, detections, batch, format),
        goal: Some(Goal::WallMedianUs(goal)),
    };
    let dense = |detections| Entry {
        case: Case::new("seg-nano", FULL_HD, detections, 1, Dense),
        goal: Some(Goal::GpuOfFill(1.25)),
    };
    let plain = |case| Entry { case, goal: Option::None };
    let worst = Case::new("seg-2xlarge", UHD, 300, 1, Rle).worst();
    vec![
        wall(12.0, "seg-nano", FULL_HD, 20, 1, Rle),
        wall(15.0, "seg-nano", UHD, 20, 1, Rle),
        wall(25.0, "seg-2xlarge", UHD, 20, 1, Rle),
        wall(60.0, "seg-2xlarge", UHD, 100, 1, Rle),
        wall(30.0, "seg-nano", FULL_HD, 20, 8, Rle),
        dense(20),
        dense(100),
        wall(9.0, "nano", FULL_HD, 20, 1, None),
        wall(11.0, "nano", FULL_HD, 20, 8, None),
        wall(25.0, "nano", FULL_HD, 20, 64, None),
        Entry { case: worst.clone(), goal: Some(Goal::WallMedianUs(250.0)) },
        plain(worst.noise()),
        plain(Case::new("nano", FULL_HD, 0, 1, None)),
        plain(Case::new("seg-nano", FULL_HD, 0, 1, Rle)),
    ]
}

/// Every model, frame, format, batch and number of detections, but not each with each.
pub fn all() -> Vec<Entry> {
    use MaskFormat::{BitPacked, Counts, Dense, GridLogits, Rle};
    let mut entries = goals();
    let mut add = |case: Case| {
        if entries.iter().all(|other| other.case.name != case.name) {
            entries.push(Entry { case, goal: None });
        }
    };
    for variant in VARIANTS.iter().filter(|variant| variant.mask_side.is_some()) {
        for frame in [Size::new(312, 176), HD, FULL_HD, UHD, MP12] {
            add(Case::new(variant.name, frame, 20, 1, Rle));
        }
    }
    for (model, queries) in [("seg-nano", 100), ("seg-2xlarge", 300)] {
        for detections in [0, 5, 20, 100, queries] {
            add(Case::new(model, FULL_HD, detections, 1, Rle));
            add(Case::new(model, UHD, detections, 1, Rle));
        }
        for format in [Counts, GridLogits, BitPacked, Dense] {
            add(Case::new(model, FULL_HD, 20, 1, format));
            add(Case::new(model, UHD, 20, 1, format));
        }
        for batch in [8, 32] {
            add(Case::new(model, FULL_HD, 20, batch, Rle));
        }
    }
    add(Case::new("seg-nano", FULL_HD, 20, 8, Dense));
    add(Case::new("seg-nano", FULL_HD, 20, 32, BitPacked));
    add(Case::new("seg-2xlarge", MP12, 300, 1, Rle));
    for variant in VARIANTS.iter().filter(|variant| variant.mask_side.is_none()) {
        add(Case::new(variant.name, FULL_HD, 20, 1, MaskFormat::None));
    }
    entries
}

/// The entries that `names` stands for: `goals`, `all`, or names and beginnings of names, with commas.
///
/// Errors: no entry has such a name.
pub fn entries(names: &str) -> Result<Vec<Entry>> {
    let chosen: Vec<_> = match names {
        "goals" => goals(),
        "all" => all(),
        names => {
            let all = all();
            let known = || all.iter().map(|entry| &entry.case.name[..]);
            all.iter().filter(|entry| is_named(&entry.case.name, names, known())).cloned().collect()
        }
    };
    if chosen.is_empty() { Err(format!("no case is called {names}").into()) } else { Ok(chosen) }
}

/// How to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Ordinal of the device.
    pub device: usize,
    /// How to launch; each mode in turn.
    pub modes: Vec<LaunchMode>,
    /// Which of the launcher's kernels to load.
    pub kernels: KernelChoice,
    /// Wall samples of an entry, if `budget` allows.
    pub samples: usize,
    /// Time for the samples of one figure.
    pub budget: Duration,
    /// Threads of a mask block, in place of the measured choice.
    pub mask_threads: Option<u32>,
    /// Mask blocks a multiprocessor, in place of the measured choice.
    pub mask_blocks_per_multiprocessor: Option<u32>,
    /// Threads of a selection block, in place of the measured choice.
    pub select_threads: Option<u32>,
    /// Whether to time `new()` and first requests, and to count memory.
    pub startup: bool,
    /// Whether to time waits, copies and fills of the driver's.
    pub floors: bool,
    /// For the record.
    pub commit: String,
}

impl Settings {
    fn limits(&self, info: &DeviceInfo) -> DeviceLimits {
        let mut limits = info.limits();
        let override_by = |limit: &mut u32, value: Option<u32>| *limit = value.unwrap_or(*limit);
        override_by(&mut limits.mask_threads, self.mask_threads);
        override_by(&mut limits.rle_threads, self.mask_threads);
        override_by(&mut limits.rle_blocks_per_multiprocessor, self.mask_blocks_per_multiprocessor);
        override_by(&mut limits.mask_blocks_per_multiprocessor, self.mask_blocks_per_multiprocessor);
        override_by(&mut limits.select_threads, self.select_threads);
        limits
    }
}

/// What a judge says of a request.
#[derive(Debug, Clone, Default)]
pub struct Judged {
    /// The right answer; none to leave answers unchecked.
    pub answer: Option<Detections>,
    /// Whose answer it is.
    pub by: &'static str,
    /// The largest run-length mask, in elements; 0 for other formats.
    pub largest_mask: u32,
}

/// What a peer needed for the same request.
#[derive(Debug, Clone, Serialize)]
pub struct PeerTime {
    /// Median wall time.
    pub median_us: f64,
    /// The peer's own record.
    pub record: String,
}

/// Asked about each request.
pub type Ask<'a, T> = &'a mut dyn FnMut(&Case, &Inputs) -> Result<T>;

/// The judge and the peer of a run.
pub struct Others<'a> {
    /// Judges a request.
    pub judge: Ask<'a, Judged>,
    /// Times a peer on it.
    pub peer: Option<Ask<'a, PeerTime>>,
    /// Is told what comes next.
    pub progress: &'a mut dyn FnMut(&str),
}

/// Everything that a run has to say.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Who wrote it.
    pub tool: &'static str,
    /// Of the source.
    pub commit: String,
    /// When the run began.
    pub date: String,
    /// The device's name.
    pub device: String,
    /// As `major.minor`.
    pub compute_capability: String,
    /// Number of multiprocessors.
    pub num_multiprocessors: u32,
    /// Memory of the device.
    pub memory_bytes: u64,
    /// By the memory's clock and bus.
    pub peak_bandwidth_gb_s: Option<f64>,
    /// CUDA version of the driver.
    pub driver_cuda: i32,
    /// The driver's own words.
    pub driver: Option<String>,
    /// Launch sizes.
    pub limits: DeviceLimits,
    /// Loading the driver and making the context, before everything else.
    pub context_ms: f64,
    /// `new()` and first requests: first in the process, again, and with PTX where machine code was loaded.
    pub startup: Vec<Startup>,
    /// Device memory of the largest run-length request, by number of slots.
    pub memory: Vec<MemoryUse>,
    /// Floors of the driver's.
    pub floors: Vec<Floor>,
    /// The table.
    pub cases: Vec<Row>,
    /// What went wrong.
    pub errors: Vec<String>,
}

/// What it costs to begin.
#[derive(Debug, Clone, Serialize)]
pub struct Startup {
    /// What was loaded, with the reason if machine code was refused.
    pub kernels: String,
    /// `CudaPostprocessor::new`.
    pub new_ms: f64,
    /// Its first request.
    pub first_us: f64,
    /// The second, in the second slot.
    pub second_us: f64,
    /// The third.
    pub third_us: f64,
    /// The first of another frame size.
    pub other_size_us: f64,
    /// The first of a third frame size.
    pub third_size_us: f64,
}

/// Device memory of one postprocessor.
#[derive(Debug, Clone, Serialize)]
pub struct MemoryUse {
    /// The request.
    pub case: String,
    /// Requests in flight at once.
    pub slots: usize,
    /// What the postprocessor says.
    pub device_bytes: u64,
    /// What the driver says is gone.
    pub taken_bytes: u64,
    /// What it is to stay below.
    pub goal_bytes: u64,
}

/// A figure that no request can go below.
#[derive(Debug, Clone, Serialize)]
pub struct Floor {
    /// What was timed.
    pub name: String,
    /// How long it took.
    pub times: Times,
}

/// A row of the table.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the names say it, and the module's text the rest")]
pub struct Row {
    pub case: String,
    pub mode: &'static str,
    pub kernels: String,
    pub model: &'static str,
    pub width: u32,
    pub height: u32,
    pub batch: usize,
    pub detections: usize,
    pub format: MaskFormat,
    pub threshold: f64,
    pub noise: bool,
    pub mask_capacity: Option<u32>,
    pub judged_by: &'static str,
    pub foreground_pixels: Option<u64>,
    pub wall: Times,
    pub gpu_one: Times,
    pub gpu_each: Times,
    pub queue: usize,
    pub fill_wall: Option<Times>,
    pub fill_gpu: Option<Times>,
    pub mask_bytes: u64,
    pub mask_gb_s: Option<f64>,
    pub result_bytes: u64,
    pub device_bytes_per_slot: u64,
    pub new_ms: f64,
    pub first_us: f64,
    pub goal: Option<Goal>,
    pub is_met: Option<bool>,
    pub peer: Option<PeerTime>,
}

const fn mode_name(mode: LaunchMode) -> &'static str {
    match mode {
        LaunchMode::Graph => "graph",
        LaunchMode::Stream => "stream",
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The inputs on the device.
struct Uploaded {
    tensors: DeviceTensors,
    _memory: Vec<Memory>,
}

impl Uploaded {
    fn new(gpu: &Gpu, inputs: &Inputs) -> Result<Self> {
        let mut memory = Vec::new();
        let mut upload = |values: &[f32]| -> Result<DeviceTensor> {
            let bytes: &[u8] = bytemuck::cast_slice(values);
            let buffer = gpu.memory(bytes.len())?;
            buffer.write(bytes)?;
            let address = buffer.address();
            memory.push(buffer);
            Ok(DeviceTensor { address, dtype: DType::F32 })
        };
        let tensors = DeviceTensors {
            boxes: upload(&inputs.boxes)?,
            logits: upload(&inputs.logits)?,
            masks: if inputs.masks.is_empty() { None } else { Some(upload(&inputs.masks)?) },
        };
        Ok(Self { tensors, _memory: memory })
    }
}

/// Times `entries`. What fails is told in the record, and the rest is timed all the same.
///
/// Errors: no driver or device.
pub fn run(entries: &[Entry], settings: &Settings, others: &mut Others<'_>) -> Result<Record> {
    let start = Instant::now();
    let info = crate::device_info(settings.device)?;
    let gpu = Gpu::new(settings.device)?;
    let context_ms = milliseconds(start);
    let mut record = Record {
        tool: "rfdetr-post",
        commit: settings.commit.clone(),
        date: now(),
        device: info.name.clone(),
        compute_capability: format!("{}.{}", info.compute_capability.0, info.compute_capability.1),
        num_multiprocessors: info.num_multiprocessors,
        memory_bytes: info.memory_bytes,
        peak_bandwidth_gb_s: gpu.peak_bandwidth_gb_s(),
        driver_cuda: info.driver_version,
        driver: std::fs::read_to_string("/proc/driver/nvidia/version")
            .ok()
            .and_then(|text| text.lines().next().map(str::to_string)),
        limits: settings.limits(&info),
        context_ms,
        startup: Vec::new(),
        memory: Vec::new(),
        floors: Vec::new(),
        cases: Vec::new(),
        errors: Vec::new(),
    };
    let bench = Bench { gpu, settings, limits: record.limits };
    if settings.startup {
        (others.progress)("startup and memory");
        let others = (settings.kernels == KernelChoice::Auto).then_some(KernelChoice::Ptx);
        for kernels in [settings.kernels, settings.kernels].into_iter().chain(others) {
            match bench.startup(kernels) {
                Ok(startup) => record.startup.push(startup),
                Err(error) => record.errors.push(format!("startup: {error}")),
            }
        }
        for slots in [1, 2] {
            match bench.memory(slots) {
                Ok(memory) => record.memory.push(memory),
                Err(error) => record.errors.push(format!("memory: {error}")),
            }
        }
    }
    if settings.floors {
        (others.progress)("floors");
        match bench.floors() {
            Ok(floors) => record.floors = floors,
            Err(error) => record.errors.push(format!("floors: {error}")),
        }
    }
    for (idx, entry) in entries.iter().enumerate() {
        let name = &entry.case.name;
        (others.progress)(&format!("[{}/{}] {name}", idx + 1, entries.len()));
        let inputs = entry.case.inputs();
        let judged = match (others.judge)(&entry.case, &inputs) {
            Ok(judged) => judged,
            Err(error) => {
                record.errors.push(format!("{name}: no answer to compare with: {error}"));
                continue;
            }
        };
        let peer = others.peer.as_mut().and_then(|peer| {
            peer(&entry.case, &inputs).map_err(|error| record.errors.push(format!("{name}: peer: {error}"))).ok()
        });
        for &mode in &settings.modes {
            match bench.measure(entry, &inputs, &judged, mode) {
                Ok(row) => record.cases.push(Row { peer: peer.clone(), ..row }),
                Err(error) => record.errors.push(format!("{name}, {}: {error}", mode_name(mode))),
            }
        }
    }
    Ok(record)
}

/// What the figures share.
struct Bench<'a> {
    gpu: Gpu,
    settings: &'a Settings,
    limits: DeviceLimits,
}

impl Bench<'_> {
    fn spec(case: &Case, mask_capacity: Option<u32>) -> PlanSpec {
        PlanSpec {
            shape: ModelShape {
                num_queries: case.variant.num_queries as usize,
                num_classes: case.variant.num_classes as usize,
                mask_grid: case.variant.mask_side.map(|side| (side as usize, side as usize)),
            },
            max_batch: case.batch,
            max_image: case.frame,
            options: case.options(),
            mask_capacity,
        }
    }

    fn config(&self, spec: PlanSpec, slots: usize, launch: LaunchMode) -> CudaConfig {
        CudaConfig {
            device: DeviceChoice::Ordinal(self.settings.device),
            slots,
            launch,
            kernels: self.settings.kernels,
            limits: Some(self.limits),
            ..CudaConfig::new(spec)
        }
    }

    fn postprocessor(&self, spec: PlanSpec, slots: usize, launch: LaunchMode) -> Result<CudaPostprocessor> {
        Ok(CudaPostprocessor::new(self.config(spec, slots, launch))?)
    }

    fn measure(&self, entry: &Entry, inputs: &Inputs, judged: &Judged, mode: LaunchMode) -> Result<Row> {
        let (gpu, case) = (&self.gpu, &entry.case);
        let (samples, budget) = (self.settings.samples, self.settings.budget);
        let uploaded = Uploaded::new(gpu, inputs)?;
        let stream = gpu.stream();
        let is_default_enough = judged.largest_mask <= 16 * case.frame.width.max(64);
        let mask_capacity = (!is_default_enough).then_some(judged.largest_mask);
        let spec = Self::spec(case, mask_capacity);
        let check = |got: &Detections, when: &str| -> Result<()> {
            match judged.answer.as_ref().and_then(|expected| difference(expected, got)) {
                Some(difference) => Err(format!("WRONG ANSWER {when}: {difference}").into()),
                None => Ok(()),
            }
        };

        let start = Instant::now();
        let mut ours = self.postprocessor(spec.clone(), 2, mode)?;
        let new_ms = milliseconds(start);
        let device_bytes_per_slot = ours.device_bytes() / 2;
        let result_bytes = ours.plan().result.bytes;
        let kernels = ours.kernels().to_string();
        let start = Instant::now();
        // SAFETY: the tensors are as large as the plan's shapes, fully written, and outlive every ticket here.
        let mut ticket = unsafe { ours.enqueue(&uploaded.tensors, &inputs.metas, stream)? };
        ticket.wait()?;
        let first_us = milliseconds(start) * 1e3;
        check(&ticket.wait()?.detections()?, "at first")?;
        drop(ticket);

        let wall = sample(samples, budget, || -> Result<Duration> {
            gpu.synchronize()?;
            let start = Instant::now();
            // SAFETY: as above.
            let mut ticket = unsafe { ours.enqueue(&uploaded.tensors, &inputs.metas, stream)? };
            ticket.wait()?;
            Ok(start.elapsed())
        })?;
        // Once more, now that every slot has been used often.
        // SAFETY: as above.
        check(&unsafe { ours.process(&uploaded.tensors, &inputs.metas, stream)? }, "after the samples")?;
        drop(ours);

        let plan = Plan::new(spec.clone(), self.limits)?;
        let slot_bytes = plan.work.bytes + plan.result.bytes + plan.payload_bytes;
        let queue = (QUEUE_BYTES / slot_bytes.max(1)).clamp(2, 16) as usize;
        let mut ours = self.postprocessor(spec, queue, mode)?;
        // Every slot is used without a gate before anything waits behind one.
        for _ in 0..2 {
            let mut tickets = Vec::with_capacity(queue);
            for _ in 0..queue {
                // SAFETY: as above.
                tickets.push(unsafe { ours.enqueue(&uploaded.tensors, &inputs.metas, stream)? });
            }
            tickets.iter_mut().try_for_each(|ticket| ticket.wait().map(|_| ()))?;
        }
        let mut queued = |count: usize| -> Result<Times> {
            let times = sample(samples / 20, budget / 2, || {
                let mut tickets = Vec::with_capacity(count);
                gpu.gated(|| {
                    for _ in 0..count {
                        // SAFETY: as above.
                        tickets.push(unsafe { ours.enqueue(&uploaded.tensors, &inputs.metas, stream)? });
                    }
                    Ok(())
                })
            })?;
            Ok(times.each(count))
        };
        let gpu_one = queued(1)?;
        let gpu_each = queued(queue)?;
        drop(ours);

        let mask_bytes = case.mask_bytes();
        let (fill_wall, fill_gpu) = match mask_bytes {
            0 => (None, None),
            bytes => self.fill(bytes as usize, queue).map(|(wall, gpu)| (Some(wall), Some(gpu)))?,
        };
        let is_met = match (entry.goal, fill_gpu) {
            (Some(Goal::WallMedianUs(goal)), _) => Some(wall.median_us <= goal),
            (Some(Goal::GpuOfFill(share)), Some(fill)) => Some(gpu_each.median_us <= share * fill.median_us),
            _ => None,
        };
        Ok(Row {
            case: case.name.clone(),
            mode: mode_name(mode),
            kernels,
            model: case.variant.name,
            width: case.frame.width,
            height: case.frame.height,
            batch: case.batch,
            detections: case.detections,
            format: case.format,
            threshold: case.threshold,
            noise: case.noise,
            mask_capacity,
            judged_by: judged.by,
            foreground_pixels: judged.answer.as_ref().map(foreground),
            wall,
            gpu_one,
            gpu_each,
            queue,
            fill_wall,
            fill_gpu,
            mask_bytes,
            mask_gb_s: (mask_bytes > 0).then(|| mask_bytes as f64 / gpu_each.median_us / 1e3),
            result_bytes,
            device_bytes_per_slot,
            new_ms,
            first_us,
            goal: entry.goal,
            is_met,
            peer: None,
        })
    }

    /// A fill of `bytes`, wall and GPU time, in as many buffers as the requests have.
    fn fill(&self, bytes: usize, queue: usize) -> Result<(Times, Times)> {
        let gpu = &self.gpu;
        let (samples, budget) = (self.settings.samples, self.settings.budget / 2);
        let buffers = (0..queue).map(|_| gpu.memory(bytes)).collect::<Result<Vec<_>>>()?;
        let mut turn = 0;
        let wall = sample(samples / 4, budget, || -> Result<Duration> {
            gpu.synchronize()?;
            turn = (turn + 1) % 2;
            let start = Instant::now();
            gpu.fill(&buffers[turn], bytes / 4)?;
            gpu.synchronize()?;
            Ok(start.elapsed())
        })?;
        let times = sample(samples / 20, budget, || {
            gpu.gated(|| buffers.iter().try_for_each(|buffer| gpu.fill(buffer, bytes / 4)))
        })?;
        Ok((wall, times.each(queue)))
    }

    fn floors(&self) -> Result<Vec<Floor>> {
        let gpu = &self.gpu;
        let (samples, budget) = (self.settings.samples, self.settings.budget / 2);
        let mut floors = Vec::new();
        let mut add = |name: &str, times: Times| floors.push(Floor { name: name.to_string(), times });
        let idle = sample(samples, budget, || -> Result<Duration> {
            let start = Instant::now();
            gpu.synchronize()?;
            Ok(start.elapsed())
        })?;
        add("wall: synchronize an idle stream", idle);
        add("gpu: two events with nothing between", sample(samples / 10, budget, || gpu.gated(|| Ok(())))?);
        let memory = gpu.memory(1 << 30)?;
        for (name, bytes) in [("4 KiB", 4usize << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20), ("16 MiB", 16 << 20)] {
            let pinned = gpu.pinned(bytes)?;
            let times = sample(samples, budget, || -> Result<Duration> {
                gpu.synchronize()?;
                let start = Instant::now();
                gpu.copy_to_host(&pinned, &memory, bytes)?;
                gpu.synchronize()?;
                Ok(start.elapsed())
            })?;
            add(&format!("wall: copy {name} to pinned memory and synchronize"), times);
        }
        for (name, bytes) in [("4 KiB", 4usize << 10), ("41.5 MB", 1920 * 1080 * 20), ("1 GiB", 1 << 30)] {
            let times = sample(samples / 10, budget, || gpu.gated(|| gpu.fill(&memory, bytes / 4)))?;
            add(&format!("gpu: fill {name}"), times);
        }
        Ok(floors)
    }

    fn startup(&self, kernels: KernelChoice) -> Result<Startup> {
        let gpu = &self.gpu;
        let case = Case::new("seg-nano", FULL_HD, 20, 1, MaskFormat::Rle);
        let inputs = case.inputs();
        let uploaded = Uploaded::new(gpu, &inputs)?;
        let start = Instant::now();
        let config = self.config(Self::spec(&case, None), 2, LaunchMode::Graph);
        let mut ours = CudaPostprocessor::new(CudaConfig { kernels, ..config })?;
        let new_ms = milliseconds(start);
        let kernels = ours.kernels().to_string();
        let mut request = |frame: Size| -> Result<f64> {
            let metas = [ImageMeta::stretch(frame, Size::new(312, 312))?];
            let start = Instant::now();
            // SAFETY: the tensors are as large as the plan's shapes, fully written, and outlive the ticket.
            unsafe { ours.enqueue(&uploaded.tensors, &metas, gpu.stream())? }.wait()?;
            Ok(milliseconds(start) * 1e3)
        };
        Ok(Startup {
            kernels,
            new_ms,
            first_us: request(FULL_HD)?,
            second_us: request(FULL_HD)?,
            third_us: request(FULL_HD)?,
            other_size_us: request(HD)?,
            third_size_us: request(Size::new(1000, 999))?,
        })
    }

    fn memory(&self, slots: usize) -> Result<MemoryUse> {
        let gpu = &self.gpu;
        let case = Case::new("seg-2xlarge", MP12, 300, 1, MaskFormat::Rle);
        let inputs = case.inputs();
        let uploaded = Uploaded::new(gpu, &inputs)?;
        let before = gpu.free_bytes()?;
        let mut ours = self.postprocessor(Self::spec(&case, None), slots, LaunchMode::Graph)?;
        for _ in 0..2 * slots {
            // SAFETY: the tensors are as large as the plan's shapes, fully written, and outlive the ticket.
            unsafe { ours.enqueue(&uploaded.tensors, &inputs.metas, gpu.stream())? }.wait()?;
        }
        Ok(MemoryUse {
            case: case.name,
            slots,
            device_bytes: ours.device_bytes(),
            taken_bytes: before.saturating_sub(gpu.free_bytes()?),
            goal_bytes: 64 << 20,
        })
    }
}

impl Record {
    /// Whether everything was timed and every answer was right. Goals do not count.
    pub fn is_complete(&self) -> bool {
        self.errors.is_empty()
    }

    /// The record for people: aligned tables.
    pub fn text(&self) -> String {
        let us = |time: f64| format!("{time:.2}");
        let mut text = format!(
            "{}, compute capability {}, {} multiprocessors, driver CUDA {}, commit {}, {}\n{:?}\n",
            self.device,
            self.compute_capability,
            self.num_multiprocessors,
            self.driver_cuda,
            self.commit,
            self.date,
            self.limits
        );
        if !self.startup.is_empty() {
            text +=
                &format!("\nDriver and context: {:.1} ms, and then (goals: 150 ms, first 5000 us)\n", self.context_ms);
            let rows: Vec<_> = (self.startup.iter().zip(["first in the process", "second", "with the PTX"]))
                .map(|(s, name)| {
                    let times = [s.first_us, s.second_us, s.third_us, s.other_size_us, s.third_size_us];
                    let mut row = vec![name.to_string(), us(s.new_ms)];
                    row.extend(times.map(us));
                    row.push(s.kernels.clone());
                    row
                })
                .collect();
            text += &table(&["new()", "ms", "first us", "2nd", "3rd", "other size", "third size", "loaded"], &rows);
        }
        if !self.memory.is_empty() {
            let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
            let rows: Vec<_> = (self.memory.iter())
                .map(|m| {
                    let met = m.device_bytes.max(m.taken_bytes) < m.goal_bytes;
                    let (own, taken, goal) = (mib(m.device_bytes), mib(m.taken_bytes), mib(m.goal_bytes));
                    vec![m.case.clone(), m.slots.to_string(), own, taken, goal, yes(met)]
                })
                .collect();
            text += "\n";
            text += &table(&["device memory", "slots", "MiB", "by the driver", "goal", "met?"], &rows);
        }
        if !self.floors.is_empty() {
            let rows: Vec<_> = (self.floors.iter())
                .map(|floor| {
                    let t = &floor.times;
                    vec![floor.name.clone(), us(t.median_us), us(t.p10_us), us(t.p90_us), us(t.min_us)]
                })
                .collect();
            text += "\n";
            text += &table(&["floor", "median us", "p10", "p90", "min"], &rows);
        }
        let rows: Vec<_> = self.cases.iter().map(Row::cells).collect();
        text += "\n";
        text += &table(
            &[
                "case",
                "mode",
                "wall us",
                "p10",
                "p90",
                "p99",
                "min",
                "gpu 1",
                "gpu each",
                "fill gpu",
                "fill wall",
                "goal",
                "met?",
                "peer us",
                "ratio",
            ],
            &rows,
        );
        for error in &self.errors {
            text += &format!("FAILED {error}\n");
        }
        text
    }
}

fn yes(is_met: bool) -> String {
    if is_met { "yes" } else { "NO" }.to_string()
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let us = |time: f64| format!("{time:.2}");
        let median = |times: Option<Times>| times.map_or_else(|| "-".to_string(), |times| us(times.median_us));
        let wall = &self.wall;
        vec![
            self.case.clone(),
            self.mode.to_string(),
            us(wall.median_us),
            us(wall.p10_us),
            us(wall.p90_us),
            us(wall.p99_us),
            us(wall.min_us),
            us(self.gpu_one.median_us),
            us(self.gpu_each.median_us),
            median(self.fill_gpu),
            median(self.fill_wall),
            match (self.goal, self.fill_gpu) {
                (Some(Goal::WallMedianUs(goal)), _) => us(goal),
                (Some(Goal::GpuOfFill(share)), Some(fill)) => format!("gpu {:.2}", share * fill.median_us),
                _ => "-".to_string(),
            },
            self.is_met.map_or_else(|| "-".to_string(), yes),
            self.peer.as_ref().map_or_else(|| "-".to_string(), |peer| format!("{:.0}", peer.median_us)),
            self.peer
                .as_ref()
                .map_or_else(|| "-".to_string(), |peer| format!("{:.0} x", peer.median_us / wall.median_us)),
        ]
    }
}

/// Rows in columns; the first is aligned to the left.
fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).enumerate();
        let cells: Vec<_> = cells
            .map(|(idx, (cell, &width))| if idx == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") })
            .collect();
        cells.join("  ").trim_end().to_string() + "\n"
    };
    let mut text = line(&header.iter().map(|cell| cell.to_string()).collect::<Vec<_>>());
    text += &line(&widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>());
    rows.iter().for_each(|row| text += &line(row));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_choose() {
        let all = all();
        for (idx, entry) in all.iter().enumerate() {
            assert!(all[..idx].iter().all(|other| other.case.name != entry.case.name), "{} twice", entry.case.name);
            let spec = Bench::spec(&entry.case, None);
            Plan::new(spec, DeviceLimits::new(132)).expect("every case can be planned");
        }
        assert_eq!(entries("goals").unwrap(), goals());
        assert_eq!(entries("nano-1080p-b8,nano-1080p-b64").unwrap().len(), 2);
        assert_eq!(entries("seg-2xlarge-4k-b1-n300-rle").unwrap().len(), 1);
        assert!(entries("nothing").is_err());
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["a".to_string(), "1.00".to_string()], vec!["long".to_string(), "-".to_string()]];
        assert_eq!(table(&["x", "us"], &rows), "x       us\n----  ----\na     1.00\nlong     -\n");
    }
}

//! Times the GPU path: `rfdetr-post-gpu-bench [--cases goals|all|NAME,..] [--json FILE] ..` (`--help` says the rest).
//!
//! Every timed answer is first compared with the reference (large ones with the fast CPU path, which is equal to it).
//!
//! - wall: from the call of `enqueue`, inputs on the device and the stream idle, until `Ticket::wait` returns; decoding
//!   is not in it. Dense masks stay on the device; they are done when the ticket is.
//! - gpu: CUDA events around k requests that wait behind a closed gate on their stream, so that nothing of the launches'
//!   cost on the host is in it: one request alone (`gpu 1`), and a queue of them in slots of their own, for each
//!   (`gpu each`).

use std::{
    ffi::c_void,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rfdetr_post_core::{
    ClassLayout, DType, Detections, MaskFormat, Masks, Options, Request, Size, Thresholds,
    models::{VARIANTS, Variant},
    plan::{DeviceLimits, Plan, PlanSpec},
    reference,
    request::ModelShape,
};
use rfdetr_post_cpu::{CpuConfig, CpuPostprocessor, Threads};
use rfdetr_post_cuda::{
    CudaConfig, CudaPostprocessor, DeviceInfo, DeviceTensor, DeviceTensors, LaunchMode, ResultPlace, Stream,
};
use serde_json::{Value, json};

use crate::{
    gpu::{Gpu, Memory},
    inputs::{Inputs, Scene},
};

#[path = "../../rfdetr-post-cpu/benches/inputs.rs"]
mod inputs;

type Failure = Box<dyn std::error::Error>;
type Result<T> = std::result::Result<T, Failure>;

/// Pixels of all masks up to which the reference itself is the judge.
const REFERENCE_PIXELS: u64 = 50_000_000;
/// Buffers of the queue of requests take no more than this.
const QUEUE_BYTES: u64 = 6 << 30;

/// One row of the table.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    variant: Variant,
    frame: Size,
    detections: usize,
    batch: usize,
    format: MaskFormat,
    threshold: f64,
    noise: bool,
    goal: Goal,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Goal {
    None,
    /// Median wall time, in microseconds.
    Wall(f64),
    /// GPU time in multiples of a plain fill of the same bytes.
    Fill(f64),
}

fn variant(name: &str) -> Variant {
    *VARIANTS.iter().find(|variant| variant.name == name).expect("a published name")
}

const HD: Size = Size::new(1280, 720);
const FULL_HD: Size = Size::new(1920, 1080);
const UHD: Size = Size::new(3840, 2160);
const MP12: Size = Size::new(4000, 3000);

fn frame_name(frame: Size) -> String {
    match frame {
        HD => "720p".to_string(),
        FULL_HD => "1080p".to_string(),
        UHD => "4k".to_string(),
        MP12 => "12mp".to_string(),
        Size { width, height } => format!("{width}x{height}"),
    }
}

impl Case {
    fn new(name: &str, frame: Size, detections: usize, batch: usize, format: MaskFormat) -> Self {
        let variant = variant(name);
        let name = format!("{name}-{}-b{batch}-n{detections}-{}", frame_name(frame), format.name());
        Self { name, variant, frame, detections, batch, format, threshold: 0.4, noise: false, goal: Goal::None }
    }

    fn goal(self, goal: Goal) -> Self {
        Self { goal, ..self }
    }

    fn named(self, suffix: &str) -> Self {
        Self { name: format!("{}-{suffix}", self.name), ..self }
    }

    fn options(&self) -> Options {
        Options {
            classes: if self.variant.num_classes == 91 { ClassLayout::coco91() } else { ClassLayout::Identity },
            threshold: Thresholds::Scalar(self.threshold),
            mask_format: self.format,
            ..Options::default()
        }
    }

    fn scene(&self) -> Scene {
        Scene {
            batch: self.batch,
            queries: self.variant.num_queries as usize,
            classes: self.variant.num_classes as usize,
            side: self.variant.mask_side.unwrap_or(0) as usize,
            detections: self.detections,
            image: self.frame,
            noise: self.noise,
        }
    }

    fn spec(&self, mask_capacity: Option<u32>) -> PlanSpec {
        let side = self.variant.mask_side.map(|side| (side as usize, side as usize));
        PlanSpec {
            shape: ModelShape {
                num_queries: self.variant.num_queries as usize,
                num_classes: self.variant.num_classes as usize,
                mask_grid: side,
            },
            max_batch: self.batch,
            max_image: self.frame,
            options: self.options(),
            mask_capacity,
        }
    }
}

/// The table of goals.
fn goals() -> Vec<Case> {
    use MaskFormat::{Dense, None, Rle};
    let case = Case::new;
    vec![
        case("seg-nano", FULL_HD, 20, 1, Rle).goal(Goal::Wall(12.0)),
        case("seg-nano", UHD, 20, 1, Rle).goal(Goal::Wall(15.0)),
        case("seg-2xlarge", UHD, 20, 1, Rle).goal(Goal::Wall(25.0)),
        case("seg-2xlarge", UHD, 100, 1, Rle).goal(Goal::Wall(60.0)),
        case("seg-nano", FULL_HD, 20, 8, Rle).goal(Goal::Wall(30.0)),
        case("seg-nano", FULL_HD, 20, 1, Dense).goal(Goal::Fill(1.25)),
        case("seg-nano", FULL_HD, 100, 1, Dense).goal(Goal::Fill(1.25)),
        case("nano", FULL_HD, 20, 1, None).goal(Goal::Wall(9.0)),
        case("nano", FULL_HD, 20, 8, None).goal(Goal::Wall(11.0)),
        case("nano", FULL_HD, 20, 64, None).goal(Goal::Wall(25.0)),
        Case { threshold: 0.0, ..case("seg-2xlarge", UHD, 300, 1, Rle) }.named("t0").goal(Goal::Wall(250.0)),
        Case { threshold: 0.0, noise: true, ..case("seg-2xlarge", UHD, 300, 1, Rle) }.named("t0-noise"),
        // The floor: nothing survives.
        case("nano", FULL_HD, 0, 1, None),
        case("seg-nano", FULL_HD, 0, 1, Rle),
    ]
}

/// Every segmentation model, frame, format, batch and number of detections, but not each with each.
fn all() -> Vec<Case> {
    use MaskFormat::{BitPacked, Counts, Dense, GridLogits, Rle};
    let mut cases = goals();
    let mut add = |case: Case| {
        if cases.iter().all(|other| other.name != case.name) {
            cases.push(case);
        }
    };
    let small = Size::new(312, 176);
    for variant in VARIANTS.iter().filter(|variant| variant.mask_side.is_some()) {
        for frame in [small, HD, FULL_HD, UHD, MP12] {
            add(Case::new(variant.name, frame, 20, 1, Rle));
        }
    }
    for name in ["seg-nano", "seg-2xlarge"] {
        let queries = variant(name).num_queries as usize;
        for n in [0, 5, 20, 100, queries] {
            add(Case::new(name, FULL_HD, n, 1, Rle));
            add(Case::new(name, UHD, n, 1, Rle));
        }
        for format in [Rle, Counts, GridLogits, BitPacked, Dense] {
            add(Case::new(name, FULL_HD, 20, 1, format));
            add(Case::new(name, UHD, 20, 1, format));
        }
        for batch in [8, 32] {
            add(Case::new(name, FULL_HD, 20, batch, Rle));
        }
    }
    add(Case::new("seg-nano", FULL_HD, 20, 8, Dense));
    add(Case::new("seg-nano", FULL_HD, 20, 32, BitPacked));
    add(Case::new("seg-2xlarge", MP12, 300, 1, Rle));
    for variant in VARIANTS.iter().filter(|variant| variant.mask_side.is_none()) {
        add(Case::new(variant.name, FULL_HD, 20, 1, MaskFormat::None));
    }
    cases
}

const HELP: &str = "rfdetr-post-gpu-bench: times the GPU path, answers checked

  --cases goals|all|NAME[,NAME..]  which cases (a NAME also stands for all that begin with it); default goals
  --list                           print the names and end
  --mode graph|stream|both         how to launch; default both
  --samples N                      wall samples a case; default 2000 (fewer for slow cases)
  --json FILE                      write the record
  --commit TEXT                    commit for the record; else RFDETR_POST_COMMIT, or what git says
  --device N                       ordinal; default 0
  --block N --grid-per-sm N --select-threads N   launch sizes, to tune
  --no-check                       do not compare the answers with the reference
  --no-startup --no-floors         leave out these parts
  --no-jit-cache                   compile the PTX as if for the first time on the machine
  --torch [--python P] [--torch-script FILE]     run torch_eager.py on the same inputs, on the same device
";

/// The command line.
struct Args {
    cases: String,
    list: bool,
    modes: Vec<LaunchMode>,
    samples: usize,
    json: Option<PathBuf>,
    commit: Option<String>,
    device: usize,
    block: Option<u32>,
    grid_per_sm: Option<u32>,
    select_threads: Option<u32>,
    check: bool,
    startup: bool,
    floors: bool,
    jit_cache: bool,
    torch: bool,
    python: String,
    torch_script: Option<PathBuf>,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut args = Self {
            cases: "goals".to_string(),
            list: false,
            modes: vec![LaunchMode::Graph, LaunchMode::Stream],
            samples: 2000,
            json: None,
            commit: None,
            device: 0,
            block: None,
            grid_per_sm: None,
            select_threads: None,
            check: true,
            startup: true,
            floors: true,
            jit_cache: true,
            torch: false,
            python: "python3".to_string(),
            torch_script: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--cases" => args.cases = value()?,
                "--list" => args.list = true,
                "--mode" => {
                    args.modes = match value()?.as_str() {
                        "graph" => vec![LaunchMode::Graph],
                        "stream" => vec![LaunchMode::Stream],
                        "both" => vec![LaunchMode::Graph, LaunchMode::Stream],
                        other => return Err(format!("--mode is {other}, expected graph, stream or both").into()),
                    }
                }
                "--samples" => args.samples = value()?.parse()?,
                "--json" => args.json = Some(value()?.into()),
                "--commit" => args.commit = Some(value()?),
                "--device" => args.device = value()?.parse()?,
                "--block" => args.block = Some(value()?.parse()?),
                "--grid-per-sm" => args.grid_per_sm = Some(value()?.parse()?),
                "--select-threads" => args.select_threads = Some(value()?.parse()?),
                "--no-check" => args.check = false,
                "--no-startup" => args.startup = false,
                "--no-floors" => args.floors = false,
                "--no-jit-cache" => args.jit_cache = false,
                "--torch" => args.torch = true,
                "--python" => args.python = value()?,
                "--torch-script" => args.torch_script = Some(value()?.into()),
                "--help" | "-h" => {
                    print!("{HELP}");
                    std::process::exit(0);
                }
                other => return Err(format!("{other} is unknown\n\n{HELP}").into()),
            }
        }
        Ok(args)
    }

    fn cases(&self) -> Result<Vec<Case>> {
        match self.cases.as_str() {
            "goals" => Ok(goals()),
            "all" => Ok(all()),
            names => {
                let cases: Vec<_> =
                    all().into_iter().filter(|case| names.split(',').any(|n| case.name.starts_with(n))).collect();
                if cases.is_empty() { Err(format!("no case is called {names}; --list names them").into()) } else { Ok(cases) }
            }
        }
    }

    fn limits(&self, info: &DeviceInfo) -> DeviceLimits {
        let mut limits = DeviceLimits::new(info.num_multiprocessors);
        limits.mask_threads = self.block.unwrap_or(limits.mask_threads);
        limits.mask_blocks_per_multiprocessor = self.grid_per_sm.unwrap_or(limits.mask_blocks_per_multiprocessor);
        limits.select_threads = self.select_threads.unwrap_or(limits.select_threads);
        limits
    }

    fn config(&self, spec: PlanSpec, info: &DeviceInfo, slots: usize, launch: LaunchMode) -> CudaConfig {
        CudaConfig {
            device: rfdetr_post_cuda::DeviceChoice::Ordinal(self.device),
            slots,
            result: ResultPlace::Host,
            launch,
            limits: Some(self.limits(info)),
            ..CudaConfig::new(spec)
        }
    }

    /// Commit for the record.
    fn commit(&self) -> String {
        let git = || {
            let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
        };
        let built = || option_env!("RFDETR_POST_COMMIT").map(str::to_string);
        self.commit
            .clone()
            .or_else(|| std::env::var("RFDETR_POST_COMMIT").ok())
            .or_else(built)
            .or_else(git)
            .unwrap_or_else(|| "unknown".to_string())
    }
}

/// Order statistics of times in microseconds.
#[derive(Debug, Clone, Copy)]
struct Times {
    median: f64,
    p10: f64,
    p90: f64,
    p99: f64,
    min: f64,
    count: usize,
}

impl Times {
    fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        Self { median: at(0.5), p10: at(0.1), p90: at(0.9), p99: at(0.99), min: times[0], count: times.len() }
    }

    /// The share of one of `count`.
    fn each(self, count: usize) -> Self {
        let each = |time: f64| time / count as f64;
        Self {
            median: each(self.median),
            p10: each(self.p10),
            p90: each(self.p90),
            p99: each(self.p99),
            min: each(self.min),
            count: self.count,
        }
    }

    fn json(&self) -> Value {
        let round = |time: f64| (time * 1000.0).round() / 1000.0;
        json!({
            "median_us": round(self.median), "p10_us": round(self.p10), "p90_us": round(self.p90),
            "p99_us": round(self.p99), "min_us": round(self.min), "n": self.count,
        })
    }
}

/// Calls `work` after a warm-up until there are `count` samples or `budget` is spent. Each call says how long it took.
fn sample(count: usize, budget: Duration, mut work: impl FnMut() -> Result<Duration>) -> Result<Times> {
    let start = Instant::now();
    let mut warmups = 0;
    while warmups < 3 || (warmups < 200 && start.elapsed() < budget / 5) {
        work()?;
        warmups += 1;
    }
    let start = Instant::now();
    let mut times = Vec::with_capacity(count);
    while times.len() < 10 || (times.len() < count && start.elapsed() < budget) {
        times.push(work()?.as_secs_f64() * 1e6);
    }
    Ok(Times::new(times))
}

/// The judge's answer, and the room that its largest run-length mask needs.
fn judge(case: &Case, inputs: &Inputs, options: &Options, check: bool) -> Result<(Option<Detections>, Option<u32>)> {
    let is_run_length = matches!(case.format, MaskFormat::Rle | MaskFormat::Counts);
    if !check && !is_run_length {
        return Ok((None, None));
    }
    let request = Request::new(inputs.tensors(), &inputs.metas, options)?;
    let pixels = match case.format {
        MaskFormat::None | MaskFormat::GridLogits => 0,
        _ => case.frame.area() * (case.detections * case.batch) as u64,
    };
    let answer = if check && pixels <= REFERENCE_PIXELS {
        reference::process(&request)?
    } else {
        CpuPostprocessor::new(CpuConfig { threads: Threads::All, simd: None })?.process(&request)?
    };
    let largest = answer.images.iter().flat_map(|image| &image.rows).map(|row| row.mask_len).max().unwrap_or(0);
    let default = 16 * case.frame.width.max(64);
    let capacity = (is_run_length && largest > default).then_some(largest);
    Ok((check.then_some(answer), capacity))
}

/// The first difference of two answers, in words.
fn difference(expected: &Detections, got: &Detections) -> Option<String> {
    if expected == got {
        return None;
    }
    for (image, (expected, got)) in expected.images.iter().zip(&got.images).enumerate() {
        if expected.rows.len() != got.rows.len() {
            return Some(format!("image {image} has {} rows, expected {}", got.rows.len(), expected.rows.len()));
        }
        for (idx, (expected, got)) in expected.rows.iter().zip(&got.rows).enumerate() {
            if expected != got {
                return Some(format!("image {image} row {idx} is {got:?}, expected {expected:?}"));
            }
        }
        if expected.health != got.health {
            return Some(format!("image {image}: {:?}, expected {:?}", got.health, expected.health));
        }
        if expected.masks != got.masks {
            return Some(format!("the masks of image {image} differ"));
        }
    }
    Some("the answers differ".to_string())
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
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            let buffer = gpu.memory(bytes.len())?;
            buffer.write(&bytes)?;
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

/// What was measured of one case and launch mode.
struct Measured {
    wall: Times,
    gpu_one: Times,
    gpu_each: Times,
    queue: usize,
    fill_wall: Option<Times>,
    fill_gpu: Option<Times>,
    output_bytes: u64,
    device_bytes: u64,
    result_bytes: u64,
    new_ms: f64,
    first_us: f64,
    judged_by: &'static str,
}

/// What a run shares.
struct Bench<'a> {
    args: &'a Args,
    gpu: &'a Gpu,
    info: DeviceInfo,
    samples: usize,
    budget: Duration,
}

impl Bench<'_> {
    fn measure(
        &self,
        case: &Case,
        inputs: &Inputs,
        expected: Option<&Detections>,
        capacity: Option<u32>,
        mode: LaunchMode,
    ) -> Result<Measured> {
        let (gpu, args) = (self.gpu, self.args);
        let uploaded = Uploaded::new(gpu, inputs)?;
        let spec = case.spec(capacity);
        let stream = gpu.stream();

        let start = Instant::now();
        let mut ours = CudaPostprocessor::new(args.config(spec.clone(), &self.info, 2, mode))?;
        let new_ms = start.elapsed().as_secs_f64() * 1e3;
        let device_bytes = ours.device_bytes() / 2;
        let result_bytes = ours.plan().result.bytes;

        let start = Instant::now();
        // SAFETY: the tensors are as large as the plan's shapes, fully written, and outlive every ticket here.
        let mut ticket = unsafe { ours.enqueue(&uploaded.tensors, &inputs.metas, stream)? };
        ticket.wait()?;
        let first_us = start.elapsed().as_secs_f64() * 1e6;
        if let Some(expected) = expected {
            let got = ticket.wait()?.detections()?;
            if let Some(difference) = difference(expected, &got) {
                return Err(format!("WRONG ANSWER: {difference}").into());
            }
        }
        drop(ticket);

        let wall = sample(self.samples, self.budget, || {
            gpu.synchronize()?;
            let start = Instant::now();
            // SAFETY: as above.
            let mut ticket = unsafe { ours.enqueue(&uploaded.tensors, &inputs.metas, stream)? };
            ticket.wait()?;
            Ok(start.elapsed())
        })?;
        if let Some(expected) = expected {
            // Once more, now that every slot has been used often.
            // SAFETY: as above.
            let got = unsafe { ours.process(&uploaded.tensors, &inputs.metas, stream)? };
            if let Some(difference) = difference(expected, &got) {
                return Err(format!("WRONG ANSWER after {} requests: {difference}", wall.count).into());
            }
        }
        drop(ours);

        let plan = Plan::new(spec.clone(), args.limits(&self.info))?;
        let slot_bytes = plan.work.bytes + plan.result.bytes + plan.payload_bytes;
        let queue = (QUEUE_BYTES / slot_bytes.max(1)).clamp(2, 16) as usize;
        let mut ours = CudaPostprocessor::new(args.config(spec, &self.info, queue, mode))?;
        // Warm up every slot without a gate before anything waits behind one.
        for _ in 0..2 {
            let mut tickets = Vec::new();
            for _ in 0..queue {
                // SAFETY: as above.
                tickets.push(unsafe { ours.enqueue(&uploaded.tensors, &inputs.metas, stream)? });
            }
            tickets.iter_mut().try_for_each(|ticket| ticket.wait().map(|_| ()))?;
        }
        let mut queued = |count: usize| -> Result<Times> {
            let times = sample(self.samples / 20, self.budget / 2, || {
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

        let pixels = case.frame.area() * (case.detections * case.batch) as u64;
        let row_words = u64::from(case.frame.width.div_ceil(32)) * u64::from(case.frame.height);
        let output_bytes = match case.format {
            MaskFormat::Dense => pixels,
            MaskFormat::BitPacked => 4 * row_words * (case.detections * case.batch) as u64,
            MaskFormat::GridLogits => {
                let side = u64::from(case.variant.mask_side.unwrap_or(0));
                4 * side * side * (case.detections * case.batch) as u64
            }
            _ => 0,
        };
        let (mut fill_wall, mut fill_gpu) = (None, None);
        if output_bytes > 0 {
            // As many buffers as the queue has slots, so that the cache helps neither more than the other.
            let buffers = (0..queue).map(|_| gpu.memory(output_bytes as usize)).collect::<Result<Vec<_>>>()?;
            let words = output_bytes as usize / 4;
            let mut turn = 0;
            fill_wall = Some(sample(self.samples / 4, self.budget / 2, || {
                gpu.synchronize()?;
                turn = (turn + 1) % queue.min(2);
                let start = Instant::now();
                gpu.fill(&buffers[turn], words)?;
                gpu.synchronize()?;
                Ok(start.elapsed())
            })?);
            let times = sample(self.samples / 20, self.budget / 2, || {
                gpu.gated(|| buffers.iter().try_for_each(|buffer| gpu.fill(buffer, words)))
            })?;
            fill_gpu = Some(times.each(queue));
        }
        let judged_by = match expected {
            None => "nobody",
            Some(_) if pixels <= REFERENCE_PIXELS || output_bytes == 0 && case.format == MaskFormat::None => "reference",
            Some(_) => "fast CPU path",
        };
        Ok(Measured {
            wall,
            gpu_one,
            gpu_each,
            queue,
            fill_wall,
            fill_gpu,
            output_bytes,
            device_bytes,
            result_bytes,
            new_ms,
            first_us,
            judged_by,
        })
    }

    /// Floors that no request can go below: waits, copies and fills of the driver's own.
    fn floors(&self) -> Result<Vec<(String, Times)>> {
        let gpu = self.gpu;
        let mut rows = vec![(
            "synchronize an idle stream".to_string(),
            sample(self.samples, self.budget, || {
                let start = Instant::now();
                gpu.synchronize()?;
                Ok(start.elapsed())
            })?,
        )];
        rows.push((
            "two events on a gated stream, nothing between (GPU)".to_string(),
            sample(self.samples / 10, self.budget, || gpu.gated(|| Ok(())))?,
        ));
        let memory = gpu.memory(1 << 30)?;
        for (name, bytes) in [("4 KiB", 4usize << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20), ("16 MiB", 16 << 20)] {
            let pinned = gpu.pinned(bytes)?;
            let times = sample(self.samples, self.budget, || {
                gpu.synchronize()?;
                let start = Instant::now();
                gpu.copy_to_host(&pinned, &memory, bytes)?;
                gpu.synchronize()?;
                Ok(start.elapsed())
            })?;
            rows.push((format!("copy {name} to pinned memory and synchronize"), times));
        }
        for (name, bytes) in [("4 KiB", 4usize << 10), ("41.5 MB", 1920 * 1080 * 20), ("1 GiB", 1 << 30)] {
            let times = sample(self.samples / 10, self.budget, || gpu.gated(|| gpu.fill(&memory, bytes / 4)))?;
            rows.push((format!("fill {name} of device memory (GPU)"), times));
        }
        Ok(rows)
    }

    /// `new()`, first results, and what another frame size costs.
    fn startup(&self) -> Result<Value> {
        let gpu = self.gpu;
        let case = Case::new("seg-nano", FULL_HD, 20, 1, MaskFormat::Rle);
        let inputs = Inputs::new(case.scene());
        let uploaded = Uploaded::new(gpu, &inputs)?;
        let mut rounds = Vec::new();
        for _ in 0..2 {
            let start = Instant::now();
            let mut ours =
                CudaPostprocessor::new(self.args.config(case.spec(None), &self.info, 2, LaunchMode::Graph))?;
            let new_ms = start.elapsed().as_secs_f64() * 1e3;
            let mut first = |frame: Size| -> Result<f64> {
                let metas = vec![rfdetr_post_core::ImageMeta::stretch(frame, Size::new(312, 312))?];
                let start = Instant::now();
                // SAFETY: the tensors are as large as the plan's shapes, fully written, and outlive the ticket.
                let mut ticket = unsafe { ours.enqueue(&uploaded.tensors, &metas, gpu.stream())? };
                ticket.wait()?;
                Ok(start.elapsed().as_secs_f64() * 1e6)
            };
            let first_us = first(FULL_HD)?;
            let second_us = first(FULL_HD)?;
            let third_us = first(FULL_HD)?;
            let resized_us = first(HD)?;
            let resized_again_us = first(Size::new(1000, 999))?;
            rounds.push(json!({
                "new_ms": new_ms, "first_us": first_us, "second_us": second_us, "third_us": third_us,
                "first_of_another_size_us": resized_us, "first_of_a_third_size_us": resized_again_us,
            }));
        }
        Ok(json!({ "jit_cache": self.args.jit_cache, "rounds": rounds }))
    }

    /// Device memory of the largest run-length request.
    fn memory(&self) -> Result<Value> {
        let gpu = self.gpu;
        let case = Case::new("seg-2xlarge", MP12, 300, 1, MaskFormat::Rle);
        let inputs = Inputs::new(case.scene());
        let uploaded = Uploaded::new(gpu, &inputs)?;
        gpu.synchronize()?;
        let mut rows = Vec::new();
        for slots in [1, 2] {
            let before = gpu.free_bytes()?;
            let mut ours =
                CudaPostprocessor::new(self.args.config(case.spec(None), &self.info, slots, LaunchMode::Graph))?;
            for _ in 0..2 * slots {
                // SAFETY: the tensors are as large as the plan's shapes, fully written, and outlive the ticket.
                unsafe { ours.enqueue(&uploaded.tensors, &inputs.metas, gpu.stream())? }.wait()?;
            }
            let taken = before.saturating_sub(gpu.free_bytes()?);
            rows.push(json!({
                "case": case.name, "slots": slots, "device_bytes": ours.device_bytes(), "taken_bytes": taken,
                "goal_bytes": 64 << 20, "met": ours.device_bytes() < 64 << 20 && taken < 64 << 20,
            }));
        }
        Ok(Value::Array(rows))
    }
}

/// Runs torch_eager.py on the same inputs; its record.
fn torch(args: &Args, case: &Case, inputs: &Inputs) -> Result<Value> {
    let format = match case.format {
        MaskFormat::None => "boxes",
        MaskFormat::Dense => "dense",
        MaskFormat::Counts => "counts",
        MaskFormat::Rle => "rle",
        other => return Err(format!("torch_eager.py has no format {}", other.name()).into()),
    };
    let beside = std::env::current_exe()?.parent().map(|folder| folder.join("torch_eager.py"));
    let known = [
        args.torch_script.clone(),
        beside,
        Some(PathBuf::from("crates/rfdetr-post/bench/torch_eager.py")),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../rfdetr-post/bench/torch_eager.py")),
    ];
    let script = known.into_iter().flatten().find(|path| path.is_file()).ok_or("torch_eager.py was not found")?;
    let folder = std::env::temp_dir().join(format!("rfdetr-post-gpu-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("request.safetensors");
    std::fs::write(&path, inputs.safetensors())?;
    let side = case.variant.resolution;
    let mapping = match case.options().classes {
        ClassLayout::Remap(ids) => json!(ids.iter().map(|id| id.map_or(-1, i64::from)).collect::<Vec<_>>()),
        _ => Value::Null,
    };
    let config = json!({
        "images": [{ "width": case.frame.width, "height": case.frame.height }],
        "network": { "width": side, "height": side },
        "threshold": case.threshold, "format": format, "class_mapping": mapping,
    });
    let output = Command::new(&args.python)
        .arg(&script)
        .arg("--inputs")
        .arg(&path)
        .args(["--config", &config.to_string(), "--device", &format!("cuda:{}", args.device), "--threads", "0"])
        .args(["--repeats", if case.detections * case.batch > 150 { "10" } else { "30" }])
        .output();
    let _ = std::fs::remove_dir_all(&folder);
    let output = output?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(text.lines().last().unwrap_or("torch_eager.py failed").to_string().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Foreground pixels of all masks, or rows without masks.
fn foreground(answer: &Detections) -> u64 {
    let area = |image: &rfdetr_post_core::ImageDetections| match &image.masks {
        Masks::None => 0,
        _ => image.rows.iter().map(|row| u64::from(row.mask_area)).sum::<u64>(),
    };
    answer.images.iter().map(area).sum()
}

fn mode_name(mode: LaunchMode) -> &'static str {
    match mode {
        LaunchMode::Graph => "graph",
        LaunchMode::Stream => "stream",
    }
}

/// Date and time in UTC, as ISO 8601.
fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days to a civil date: years that begin in March, in eras of 400 years.
    let z = days + 719_468;
    let (era, day) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Prints rows in columns; the first is aligned to the left.
fn print_table(header: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let cells: Vec<_> = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(idx, (cell, &width))| if idx == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") })
            .collect();
        println!("{}", cells.join("  ").trim_end());
    };
    line(&header.iter().map(|cell| cell.to_string()).collect::<Vec<_>>());
    line(&widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
}

fn run() -> Result<bool> {
    let args = Args::parse()?;
    let cases = args.cases()?;
    if args.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(true);
    }
    if !args.jit_cache {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CUDA_CACHE_DISABLE", "1") };
    }
    let start = Instant::now();
    let info = rfdetr_post_cuda::device_info(args.device)?;
    let gpu = Gpu::new(args.device)?;
    let context_ms = start.elapsed().as_secs_f64() * 1e3;
    let (major, minor) = info.compute_capability;
    let (samples, budget) =
        if args.cases == "all" { (args.samples.min(500), 120) } else { (args.samples, 1000) };
    let bench = Bench { args: &args, gpu: &gpu, info, samples, budget: Duration::from_millis(budget) };
    let info = &bench.info;
    let commit = args.commit();
    println!(
        "{}, compute capability {major}.{minor}, {} multiprocessors, driver CUDA {}, commit {commit}, {}",
        info.name,
        info.num_multiprocessors,
        info.driver_version,
        now(),
    );
    println!("{:?}", args.limits(info));

    let mut ok = true;
    let mut note = |what: &str, result: Result<Value>| match result {
        Ok(value) => value,
        Err(error) => {
            ok = false;
            eprintln!("{what}: {error}");
            json!({ "error": error.to_string() })
        }
    };
    let (mut startup, mut memory) = (Value::Null, Value::Null);
    if args.startup {
        startup = note("startup", bench.startup());
        memory = note("memory", bench.memory());
        println!("\nstartup (driver and context before it: {context_ms:.1} ms)");
        let number = |round: &Value, key: &str| format!("{:.2}", round[key].as_f64().unwrap_or(f64::NAN));
        let keys =
            ["new_ms", "first_us", "second_us", "third_us", "first_of_another_size_us", "first_of_a_third_size_us"];
        let rows: Vec<Vec<_>> = startup["rounds"]
            .as_array()
            .into_iter()
            .flatten()
            .zip(["first in the process", "second"])
            .map(|(round, name)| [name.to_string()].into_iter().chain(keys.map(|key| number(round, key))).collect())
            .collect();
        print_table(&[&["new()"], &keys[..]].concat(), &rows);
        println!("goals: new() under 150 ms, first result under 5000 us");
        println!("\ndevice memory");
        for row in memory.as_array().into_iter().flatten() {
            println!("{row}");
        }
    }
    let mut floors = Vec::new();
    if args.floors {
        match bench.floors() {
            Ok(rows) => floors = rows,
            Err(error) => {
                ok = false;
                eprintln!("floors: {error}");
            }
        }
        println!();
        let rows: Vec<Vec<_>> = floors
            .iter()
            .map(|(name, t)| {
                [name.clone()].into_iter().chain([t.median, t.p10, t.p90, t.min].map(|t| format!("{t:.2}"))).collect()
            })
            .collect();
        print_table(&["floor", "median us", "p10", "p90", "min"], &rows);
    }

    let mut table: Vec<Vec<String>> = Vec::new();
    let mut records = Vec::new();
    for (idx, case) in cases.iter().enumerate() {
        eprintln!("[{}/{}] {}", idx + 1, cases.len(), case.name);
        let inputs = Inputs::new(case.scene());
        let options = case.options();
        let (expected, capacity) = match judge(case, &inputs, &options, args.check) {
            Ok(judged) => judged,
            Err(error) => {
                ok = false;
                eprintln!("  no expected answer: {error}");
                continue;
            }
        };
        let peer = if args.torch { Some(torch(&args, case, &inputs)) } else { None };
        for &mode in &args.modes {
            let measured = match bench.measure(case, &inputs, expected.as_ref(), capacity, mode) {
                Ok(measured) => measured,
                Err(error) => {
                    ok = false;
                    eprintln!("  {}: {error}", mode_name(mode));
                    table.push(vec![case.name.clone(), mode_name(mode).to_string(), format!("FAILED: {error}")]);
                    records.push(json!({ "case": case.name, "mode": mode_name(mode), "error": error.to_string() }));
                    continue;
                }
            };
            let us = |time: f64| format!("{time:.2}");
            let fill = measured.fill_gpu.map(|times| times.median);
            let (goal, met) = match (case.goal, fill) {
                (Goal::Wall(goal), _) => (us(goal), Some(measured.wall.median <= goal)),
                (Goal::Fill(share), Some(fill)) => {
                    (format!("gpu {:.2}", share * fill), Some(measured.gpu_each.median <= share * fill))
                }
                _ => ("-".to_string(), None),
            };
            let torch_us = match &peer {
                Some(Ok(record)) => record["median_us"].as_f64(),
                _ => None,
            };
            table.push(vec![
                case.name.clone(),
                mode_name(mode).to_string(),
                us(measured.wall.median),
                us(measured.wall.p10),
                us(measured.wall.p90),
                us(measured.wall.p99),
                us(measured.wall.min),
                us(measured.gpu_one.median),
                us(measured.gpu_each.median),
                fill.map_or("-".to_string(), us),
                measured.fill_wall.map_or("-".to_string(), |times| us(times.median)),
                goal,
                met.map_or("-", |met| if met { "yes" } else { "NO" }).to_string(),
                torch_us.map_or("-".to_string(), |time| format!("{time:.0}")),
                torch_us.map_or("-".to_string(), |time| format!("{:.0} x", time / measured.wall.median)),
            ]);
            let bandwidth = |time: f64| measured.output_bytes as f64 / time / 1e3;
            records.push(json!({
                "case": case.name, "mode": mode_name(mode), "model": case.variant.name,
                "width": case.frame.width, "height": case.frame.height, "batch": case.batch,
                "detections": case.detections, "format": case.format.name(), "threshold": case.threshold,
                "noise": case.noise, "mask_capacity": capacity, "judged_by": measured.judged_by,
                "wall": measured.wall.json(), "gpu_one": measured.gpu_one.json(), "gpu_each": measured.gpu_each.json(),
                "queue": measured.queue,
                "fill_wall": measured.fill_wall.map(|t| t.json()), "fill_gpu": measured.fill_gpu.map(|t| t.json()),
                "output_bytes": measured.output_bytes, "result_bytes": measured.result_bytes,
                "output_gb_s": (measured.output_bytes > 0).then(|| bandwidth(measured.gpu_each.median)),
                "fill_gb_s": fill.map(bandwidth),
                "device_bytes_per_slot": measured.device_bytes,
                "new_ms": measured.new_ms, "first_us": measured.first_us,
                "goal": match case.goal {
                    Goal::None => Value::Null,
                    Goal::Wall(us) => json!({ "wall_median_us": us }),
                    Goal::Fill(share) => json!({ "gpu_each_of_fill_gpu": share }),
                },
                "met": met,
                "foreground_pixels": expected.as_ref().map(foreground),
                "torch": match &peer {
                    Some(Ok(record)) => record.clone(),
                    Some(Err(error)) => json!({ "error": error.to_string() }),
                    None => Value::Null,
                },
            }));
        }
        if let Some(Err(error)) = &peer {
            eprintln!("  torch: {error}");
        }
    }
    println!();
    let header = [
        "case", "mode", "median us", "p10", "p90", "p99", "min", "gpu 1", "gpu each", "fill gpu", "fill wall", "goal",
        "met?", "torch us", "ratio",
    ];
    print_table(&header, &table);
    if let Some(path) = &args.json {
        let limits = serde_json::to_value(args.limits(info))?;
        let floors: Vec<_> = floors.iter().map(|(name, times)| json!({ "name": name, "times": times.json() })).collect();
        let record = json!({
            "tool": "rfdetr-post-gpu-bench", "commit": commit, "date": now(),
            "device": info.name, "compute_capability": format!("{major}.{minor}"),
            "num_multiprocessors": info.num_multiprocessors, "memory_bytes": info.memory_bytes,
            "peak_bandwidth_gb_s": gpu.peak_bandwidth_gb_s(), "driver_cuda": info.driver_version,
            "driver": std::fs::read_to_string("/proc/driver/nvidia/version").ok().and_then(|text| {
                text.lines().next().map(str::to_string)
            }),
            "limits": limits, "context_ms": context_ms, "startup": startup, "memory": memory, "floors": floors,
            "cases": records,
        });
        std::fs::write(path, serde_json::to_string_pretty(&record)? + "\n")?;
        println!("\nrecord: {}", path.display());
    }
    Ok(ok)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The few driver calls that the bench makes itself. All of its other `unsafe` is calls of `enqueue`.
mod gpu {
    use std::{
        ptr,
        sync::{
            Arc,
            atomic::{AtomicU32, AtomicU64, Ordering},
        },
        time::{Duration, Instant},
    };

    use cudarc::driver::sys;

    use super::{Result, Stream, c_void};

    /// A gate that was closed for so long is opened by the watchman: something behind it waits for the device.
    const GATE_LIMIT: Duration = Duration::from_secs(3);

    fn check(call: &str, status: sys::CUresult) -> Result<()> {
        if status == sys::CUresult::CUDA_SUCCESS { Ok(()) } else { Err(format!("{call}: {status:?}").into()) }
    }

    macro_rules! cu {
        ($name:ident($($arg:expr),* $(,)?)) => {
            check(stringify!($name), sys::$name($($arg),*))
        };
    }

    /// A device's primary context, current on the main thread until the process ends, and a stream.
    pub struct Gpu {
        device: i32,
        stream: sys::CUstream,
        before: sys::CUevent,
        after: sys::CUevent,
        gate: Arc<Gate>,
    }

    /// A word that a stream waits for.
    struct Gate {
        word: Pinned,
        device_address: u64,
        /// When it was closed, in milliseconds since `epoch`; 0 while it is open.
        closed_at: AtomicU64,
        epoch: Instant,
        forced: AtomicU32,
    }

    impl Gate {
        fn word(&self) -> &AtomicU32 {
            // SAFETY: pinned memory of four bytes, alive as long as the gate; the device only reads it.
            unsafe { AtomicU32::from_ptr(self.word.host.cast()) }
        }

        fn close(&self) {
            self.word().store(0, Ordering::SeqCst);
            self.closed_at.store(self.epoch.elapsed().as_millis() as u64 + 1, Ordering::SeqCst);
        }

        fn open(&self) {
            self.word().store(1, Ordering::SeqCst);
            self.closed_at.store(0, Ordering::SeqCst);
        }
    }

    /// Device memory.
    pub struct Memory {
        address: u64,
        len: usize,
    }

    /// Pinned memory of the host.
    pub struct Pinned {
        host: *mut c_void,
        len: usize,
    }

    // SAFETY: plain memory that may be used from any thread; the gate's word is atomic.
    unsafe impl Send for Pinned {}
    // SAFETY: as above.
    unsafe impl Sync for Pinned {}

    impl Gpu {
        pub fn new(ordinal: usize) -> Result<Self> {
            let (mut device, mut context) = (0, ptr::null_mut());
            let (mut stream, mut before, mut after) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
            // SAFETY: the driver was loaded by `device_info`; every pointer is to a local of the right type.
            unsafe {
                cu!(cuInit(0))?;
                cu!(cuDeviceGet(&mut device, ordinal as i32))?;
                cu!(cuDevicePrimaryCtxRetain(&mut context, device))?;
                cu!(cuCtxSetCurrent(context))?;
                cu!(cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32))?;
                cu!(cuEventCreate(&mut before, 0))?;
                cu!(cuEventCreate(&mut after, 0))?;
            }
            let word = Pinned::new(4)?;
            let mut device_address = 0;
            // SAFETY: memory that was allocated with the flag for it.
            unsafe { cu!(cuMemHostGetDevicePointer_v2(&mut device_address, word.host, 0))? };
            let gate = Arc::new(Gate {
                word,
                device_address,
                closed_at: AtomicU64::new(0),
                epoch: Instant::now(),
                forced: AtomicU32::new(0),
            });
            gate.open();
            let watched = Arc::downgrade(&gate);
            std::thread::spawn(move || {
                while let Some(gate) = watched.upgrade() {
                    let closed_at = gate.closed_at.load(Ordering::SeqCst);
                    let now = gate.epoch.elapsed().as_millis() as u64;
                    if closed_at != 0 && now > closed_at + GATE_LIMIT.as_millis() as u64 {
                        gate.forced.fetch_add(1, Ordering::SeqCst);
                        gate.open();
                    }
                    drop(gate);
                    std::thread::sleep(GATE_LIMIT / 10);
                }
            });
            Ok(Self { device, stream, before, after, gate })
        }

        pub fn stream(&self) -> Stream {
            // SAFETY: the stream is of the primary context and lives until the process ends.
            unsafe { Stream::from_raw(self.stream.cast()) }
        }

        pub fn synchronize(&self) -> Result<()> {
            // SAFETY: the stream is ours.
            unsafe { cu!(cuStreamSynchronize(self.stream)) }
        }

        pub fn memory(&self, len: usize) -> Result<Memory> {
            let mut address = 0;
            // SAFETY: the context is current.
            unsafe { cu!(cuMemAlloc_v2(&mut address, len.max(4)))? };
            Ok(Memory { address, len })
        }

        pub fn pinned(&self, len: usize) -> Result<Pinned> {
            Pinned::new(len)
        }

        /// Sets words to a value that is neither 0 nor 1.
        pub fn fill(&self, memory: &Memory, words: usize) -> Result<()> {
            assert!(4 * words <= memory.len, "the fill stays inside the buffer");
            // SAFETY: inside the buffer, checked above.
            unsafe { cu!(cuMemsetD32Async(memory.address, 0x0101_0001, words, self.stream)) }
        }

        pub fn copy_to_host(&self, host: &Pinned, memory: &Memory, len: usize) -> Result<()> {
            assert!(len <= memory.len && len <= host.len, "the copy stays inside both buffers");
            // SAFETY: inside both buffers, checked above; both outlive the synchronize that follows.
            unsafe { cu!(cuMemcpyDtoHAsync_v2(host.host, memory.address, len, self.stream)) }
        }

        pub fn free_bytes(&self) -> Result<u64> {
            let (mut free, mut total) = (0, 0);
            // SAFETY: the context is current.
            unsafe { cu!(cuMemGetInfo_v2(&mut free, &mut total))? };
            Ok(free as u64)
        }

        /// What the memory's clock and bus say, in GB/s; none where the driver does not.
        pub fn peak_bandwidth_gb_s(&self) -> Option<f64> {
            use sys::CUdevice_attribute::{
                CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH as WIDTH, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE as CLOCK,
            };
            let attribute = |attribute| {
                let mut value = 0;
                // SAFETY: the device exists.
                unsafe { cu!(cuDeviceGetAttribute(&mut value, attribute, self.device)) }.ok()?;
                (value > 0).then_some(f64::from(value))
            };
            Some(2.0 * attribute(CLOCK)? * 1e3 * attribute(WIDTH)? / 8.0 / 1e9)
        }

        /// Time on the device of what `work` puts on the stream, all of it queued before the first of it begins.
        pub fn gated(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
            let forced = self.gate.forced.load(Ordering::SeqCst);
            self.gate.close();
            let queued = (|| {
                // SAFETY: stream, events and the gate's word are ours and live until the process ends.
                unsafe {
                    cu!(cuStreamWaitValue32_v2(self.stream, self.gate.device_address, 1, 0))?;
                    cu!(cuEventRecord(self.before, self.stream))?;
                }
                work()?;
                // SAFETY: as above.
                unsafe { cu!(cuEventRecord(self.after, self.stream)) }
            })();
            self.gate.open();
            self.synchronize()?;
            queued?;
            if self.gate.forced.load(Ordering::SeqCst) != forced {
                return Err("the launches waited for the device: GPU time cannot be told".into());
            }
            let mut milliseconds = 0.0;
            // SAFETY: both events were recorded and are done.
            unsafe { cu!(cuEventElapsedTime(&mut milliseconds, self.before, self.after))? };
            Ok(Duration::from_secs_f64(f64::from(milliseconds) / 1e3))
        }
    }

    impl Memory {
        pub fn address(&self) -> u64 {
            self.address
        }

        pub fn write(&self, bytes: &[u8]) -> Result<()> {
            assert!(bytes.len() <= self.len, "the copy stays inside the buffer");
            // SAFETY: inside the buffer, checked above.
            unsafe { cu!(cuMemcpyHtoD_v2(self.address, bytes.as_ptr().cast(), bytes.len())) }
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: allocated in `memory`; every user was waited for.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }

    impl Pinned {
        fn new(len: usize) -> Result<Self> {
            let mut host = ptr::null_mut();
            // SAFETY: the context is current.
            unsafe { cu!(cuMemHostAlloc(&mut host, len, sys::CU_MEMHOSTALLOC_DEVICEMAP))? };
            Ok(Self { host, len })
        }
    }

    impl Drop for Pinned {
        fn drop(&mut self) {
            // SAFETY: allocated in `new`; every copy was waited for. The context lives until the process ends.
            let _ = unsafe { sys::cuMemFreeHost(self.host) };
        }
    }
}

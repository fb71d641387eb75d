//! The parts that need no device pointers: everything goes through `process_host`.

use std::{
    collections::HashSet,
    time::{SystemTime, UNIX_EPOCH},
};

use proptest::strategy::{Strategy, ValueTree};
use rfdetr_post_core::{
    DType, Detections, Error as CoreError, ImageMeta, MaskFormat, Options, ScoreArithmetic, Semantics, Size,
    Thresholds,
    plan::{DeviceLimits, MaskKernel},
    score::sigmoid as host_sigmoid,
};
use rfdetr_post_cuda::{CudaPostprocessor, DeviceChoice, Error, KernelChoice, KernelImage, device_count, device_info};
use rfdetr_post_tests::{
    case::{OwnedData, OwnedTensor, RequestCase},
    compare,
    edge_cases::EDGE_CASES,
    fixtures::{self, FORMATS, Fixture, names},
    random::Random,
    strategies::{self, Limits},
    suite::text,
    tally::{Outcome, Tally, parallel},
};

use crate::judge::{Gpu, How, Verdict};

/// Pixels of a batch up to which a case is quick.
const QUICK_AREA: u64 = 120_000;

/// Judges a case and counts the verdict.
fn judge(gpu: &Gpu, case: &RequestCase, how: &How, tally: &mut Tally) -> Result<(), String> {
    match gpu.judge(case, how)? {
        Verdict::Same { replanned } => {
            tally.count("requests equal");
            tally.count(format!("with {}", case.options.mask_format.name()));
            if replanned > 0 {
                tally.count("planned again for a longer mask");
            }
        }
        Verdict::Limit => tally.count("beyond the kernels' sizes"),
    }
    Ok(())
}

fn area(case: &RequestCase) -> u64 {
    case.metas.iter().map(|meta| u64::from(meta.original.width) * u64::from(meta.original.height)).sum()
}

/// Every file of `upstream` and `torch_cpu`, under both presets, in all formats; launch modes and block sizes vary.
pub fn fixtures(gpu: &Gpu, is_quick: bool) -> Outcome {
    let files = fixtures::all();
    let run = |idx: u64, tally: &mut Tally| {
        let (folder, name) = &files[idx as usize];
        let fixture = Fixture::load(folder, name);
        if is_quick && area(&fixture.case) > QUICK_AREA {
            return Ok(());
        }
        tally.count("files");
        let formats = if fixture.case.masks.is_some() { &FORMATS[..] } else { &FORMATS[..1] };
        let rf_detr = fixture.rf_detr(fixture.lowest_threshold(), MaskFormat::None);
        for (preset, case) in [fixture.case.clone(), rf_detr].into_iter().enumerate() {
            for (at, &mask_format) in formats.iter().enumerate() {
                // Quick: each format at every third file and preset.
                if is_quick && !(at + idx as usize + preset).is_multiple_of(3) {
                    continue;
                }
                let case = case.with_options(|options| options.mask_format = mask_format);
                let how = How::ALL[(at + preset + idx as usize) % 4];
                judge(gpu, &case, &how, tally)
                    .map_err(|message| format!("preset {preset}, {mask_format:?}: {message}"))?;
            }
        }
        Ok(())
    };
    let name = |idx: u64| format!("{}/{}", files[idx as usize].0, files[idx as usize].1);
    let tally = parallel(files.len() as u64, gpu.threads, name, run);
    if files.len() != 81 {
        return Err(format!("{} files, expected 81", files.len()));
    }
    tally.outcome()
}

/// A handful of small requests that run every kernel on every path, each once: for tools that slow the device down a
/// thousandfold.
pub fn tiny(gpu: &Gpu) -> Outcome {
    let (mut tally, mut kernels) = (Tally::default(), HashSet::new());
    for (idx, (name, case)) in tiny_cases().into_iter().enumerate() {
        // Few multiprocessors: as many blocks as have work, but as many threads in each as users get.
        let how = How { limits: Some(DeviceLimits::new(4)), ..How::ALL[idx % 4] };
        let (got, postprocessor, _) = gpu.answer(&case, &how).map_err(|error| format!("{name}: {error}"))?;
        kernels.insert(postprocessor.plan().mask_kernel.map(MaskKernel::name));
        compare::compare(&case.reference(), &got).map_err(|difference| format!("{name}, {how:?}: {difference}"))?;
        tally.count("requests equal");
        tally.count(format!("with {}", case.options.mask_format.name()));
    }
    for kernel in [MaskKernel::Rle, MaskKernel::RleLarge, MaskKernel::Dense, MaskKernel::Grid] {
        if !kernels.contains(&Some(kernel.name())) {
            return Err(format!("no request came to {}", kernel.name()));
        }
    }
    tally.outcome()
}

/// The requests of [`tiny`] by name.
fn tiny_cases() -> Vec<(String, RequestCase)> {
    let few = |name: &str, mask_format: MaskFormat, max_detections: usize| {
        let case = Fixture::load("torch_cpu", name).case.with_options(|options| {
            options.mask_format = mask_format;
            options.max_detections = Some(max_detections);
        });
        (format!("{name} as {}", mask_format.name()), case)
    };
    let mut cases: Vec<_> = FORMATS.iter().map(|&format| few("strange_masks_77x52", format, 3)).collect();
    // Antialiased on both axes, and noise: the most transitions a column.
    for mask_format in [MaskFormat::Rle, MaskFormat::Counts, MaskFormat::Dense, MaskFormat::BitPacked] {
        cases.push(few("downscale_both_29x17", mask_format, 2));
        cases.push(few("noise_masks_173x119", mask_format, 1));
    }
    // Pads, crops, and images of different sizes; both half types.
    cases.push(few("batch3_mixed", MaskFormat::Rle, 2));
    cases.push(few("batch3_mixed", MaskFormat::Dense, 1));
    cases.push(few("f16_inputs", MaskFormat::Rle, 2));
    cases.push(few("bf16_inputs", MaskFormat::BitPacked, 1));
    for mask_format in [MaskFormat::Rle, MaskFormat::Dense] {
        let fixture = Fixture::load("torch_cpu", "downscale_both_29x17");
        let case = fixture
            .rf_detr(fixture.lowest_threshold(), mask_format)
            .with_options(|options| options.max_detections = Some(2));
        cases.push((format!("downscale_both_29x17 under rf_detr as {}", mask_format.name()), case));
    }
    // Records that do not travel with the arguments.
    let (name, case) = few("grid_1x9", MaskFormat::Rle, 1);
    cases.push((format!("{name}, 9 times"), tiled(&case.image(0), 9)));
    cases.push(("radix select".to_string(), more_hits_than_places()));
    // Cells that have no room in the shared memory of these limits.
    cases.push((
        "large grid".to_string(),
        large_grid(&mut Random::new(6), (192, 160), Size::new(211, 283), MaskFormat::Rle),
    ));
    cases
}

/// Detections with smooth masks on a grid that small devices have no room for in shared memory.
fn large_grid(
    random: &mut Random,
    (mask_h, mask_w): (usize, usize),
    size: Size,
    mask_format: MaskFormat,
) -> RequestCase {
    let queries = 2;
    let mut masks = Vec::with_capacity(queries * mask_h * mask_w);
    for _ in 0..queries {
        let (center_r, center_c) = (random.uniform(0.0, mask_h as f32), random.uniform(0.0, mask_w as f32));
        let (radius, ripple) = (random.uniform(1.0, 0.6 * mask_h as f32), random.uniform(0.0, 6.0));
        masks.extend((0..mask_h * mask_w).map(|cell| {
            let (r, c) = ((cell / mask_w) as f32 - center_r, (cell % mask_w) as f32 - center_c);
            (radius - r.hypot(c) + ripple * (r * 0.7).sin() * (c * 0.9).cos()) / 4.0
        }));
    }
    RequestCase {
        boxes: OwnedTensor::new([0.5, 0.4, 0.3, 0.6].repeat(queries), &[1, queries, 4], DType::F32),
        logits: OwnedTensor::new(vec![2.0; queries], &[1, queries, 1], DType::F32),
        masks: Some(OwnedTensor::new(masks, &[1, queries, mask_h, mask_w], DType::F32)),
        metas: vec![ImageMeta::stretch(size, Size::new(768, 768)).expect("a plain stretch")],
        options: Options { mask_format, ..Options::default() },
    }
}

/// More pairs above the threshold than can be sorted at once, many of them equal.
fn more_hits_than_places() -> RequestCase {
    let (queries, classes) = (45, 31);
    let mut random = Random::new(5);
    let logits = (0..queries * classes).map(|_| (random.normal(-1.0, 2.0) * 4.0).round() / 4.0).collect();
    let boxes = (0..queries * 4).map(|_| random.uniform(0.1, 0.9)).collect();
    RequestCase {
        boxes: OwnedTensor::new(boxes, &[1, queries, 4], DType::F32),
        logits: OwnedTensor::new(logits, &[1, queries, classes], DType::F32),
        masks: None,
        metas: vec![ImageMeta::stretch(Size::new(97, 61), Size::new(56, 48)).expect("a plain stretch")],
        options: Options { threshold: Thresholds::Scalar(-1.0), num_select: Some(50), ..Options::default() },
    }
}

/// Every request of every named edge case, in its own format and in all others that it can have.
pub fn edge_cases(gpu: &Gpu, is_quick: bool) -> Outcome {
    let run = |idx: u64, tally: &mut Tally| {
        let (_, edge_case) = EDGE_CASES[idx as usize];
        let requests = RequestCase::recorded(edge_case);
        tally.count("named cases");
        for (at, case) in requests.iter().enumerate() {
            if is_quick && area(case) > QUICK_AREA {
                continue;
            }
            let how = How::ALL[(at + idx as usize) % 4];
            judge(gpu, case, &how, tally)?;
            let others = FORMATS.iter().filter(|&&format| format != case.options.mask_format);
            for &mask_format in others.filter(|_| case.masks.is_some() && !is_quick) {
                judge(gpu, &case.with_options(|options| options.mask_format = mask_format), &how, tally)?;
            }
        }
        Ok(())
    };
    let name = |idx: u64| EDGE_CASES[idx as usize].0.to_string();
    parallel(EDGE_CASES.len() as u64, gpu.threads, name, run).outcome()
}

/// CUDA version of the assembler of the machine code. Older drivers may refuse it.
const ASSEMBLER: i32 = 12_090;

/// The small fixtures and edge cases, and those that run every kernel, through the kernels of a choice; which must be the
/// ones that were asked for, and machine code wherever there can be some.
pub fn image(gpu: &Gpu, choice: KernelChoice) -> Outcome {
    let gpu = gpu.with_kernels(choice).map_err(text)?;
    let (loaded, info) = (gpu.kernels(), gpu.info());
    let (major, minor) = info.compute_capability;
    let newest_ptx = KernelImage::Ptx(if major >= 9 { (9, 0) } else { (7, 5) });
    let is_right = match choice {
        // There is machine code for 7.5 to 9.x.
        KernelChoice::Auto if major <= 9 && info.driver_version >= ASSEMBLER => {
            matches!(loaded.image, KernelImage::Cubin(made_for) if made_for.0 == major && made_for.1 <= minor)
        }
        KernelChoice::Auto => matches!(loaded.image, KernelImage::Cubin(_)) || loaded.image == newest_ptx,
        KernelChoice::Ptx => loaded.image == newest_ptx,
        KernelChoice::OldestPtx => loaded.image == KernelImage::Ptx((7, 5)),
    };
    if !is_right {
        return Err(format!("sm_{major}{minor} got the {loaded}"));
    }
    let (tiny, fixtures, edge_cases) = (tiny(&gpu)?, fixtures(&gpu, true)?, edge_cases(&gpu, true)?);
    Ok(format!("{loaded}; every kernel: {tiny}; fixtures: {fixtures}; edge cases: {edge_cases}"))
}

/// Request `idx` of a seed: mostly the strategies' own, some with larger pictures, batches or selections.
fn random_case(seed: u64, idx: u64) -> RequestCase {
    let mut runner = strategies::runner(seed, idx);
    let strategy = strategies::requests_within(Limits::ordinary());
    let mut case = strategy.new_tree(&mut runner).expect("the strategy rejects nothing").current();
    let mut random = Random::new(seed ^ idx.wrapping_mul(0x9e37_79b9));
    match idx % 20 {
        7 => {
            for meta in &mut case.metas {
                let size = Size::new(1 + random.below(1900) as u32, 1 + random.below(1100) as u32);
                *meta = ImageMeta::stretch(size, meta.network).expect("a plain stretch");
            }
            // The reference is slow.
            case.options.max_detections = Some(case.options.max_detections.unwrap_or(12).min(12));
        }
        // More images than travel with the arguments.
        13 => case = tiled(&case, 2 + random.below(7)),
        17 => case = large_selection(&mut random),
        19 => {
            let grid = (100 + random.below(120), 100 + random.below(120));
            let size = Size::new(90 + random.below(900) as u32, 90 + random.below(900) as u32);
            let mask_format = random.pick(&[MaskFormat::Rle, MaskFormat::Counts]);
            case = large_grid(&mut random, grid, size, mask_format);
        }
        _ => {}
    }
    case
}

/// The batch `times` times.
pub fn tiled(case: &RequestCase, times: usize) -> RequestCase {
    let tile = |tensor: &OwnedTensor| {
        let data = match &tensor.data {
            OwnedData::F32(data) => OwnedData::F32(data.repeat(times)),
            OwnedData::F16(data) => OwnedData::F16(data.repeat(times)),
            OwnedData::Bf16(data) => OwnedData::Bf16(data.repeat(times)),
        };
        let mut shape = tensor.shape.clone();
        shape[0] *= times;
        OwnedTensor { data, shape }
    };
    RequestCase {
        boxes: tile(&case.boxes),
        logits: tile(&case.logits),
        masks: case.masks.as_ref().map(tile),
        metas: case.metas.repeat(times),
        options: case.options.clone(),
    }
}

/// Detections only, with queries and columns of real models and up to the kernels' limits.
fn large_selection(random: &mut Random) -> RequestCase {
    let (queries, classes) = random.pick(&[(300, 91), (301, 365), (1024, 80), (1024, 300), (900, 1), (3, 1024)]);
    let batch = 1 + random.below(3);
    let dtype = random.pick(&[DType::F32, DType::F16, DType::Bf16]);
    let spread = random.pick(&[0.1, 1.0, 3.0]);
    let logits = (0..batch * queries * classes).map(|_| random.normal(-3.0, spread)).collect();
    let boxes = (0..batch * queries * 4).map(|_| random.uniform(0.0, 1.0)).collect();
    let size = Size::new(1 + random.below(4000) as u32, 1 + random.below(4000) as u32);
    RequestCase {
        boxes: OwnedTensor::new(boxes, &[batch, queries, 4], DType::F32),
        logits: OwnedTensor::new(logits, &[batch, queries, classes], dtype),
        masks: None,
        metas: vec![ImageMeta::stretch(size, Size::new(560, 560)).expect("a plain stretch"); batch],
        options: Options {
            threshold: Thresholds::Scalar(random.pick(&[-1.0, 0.0, 0.05, 0.3])),
            num_select: random.pick(&[None, Some(1), Some(300), Some(1024)]),
            ..Options::default()
        },
    }
}

/// Random requests with random launches. The same seed gives the same requests.
pub fn fuzz(gpu: &Gpu, num_cases: u64, seed: Option<u64>, only: Option<u64>) -> Outcome {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let seed = seed.unwrap_or(now);
    println!("fuzz: seed {seed}");
    let run = |idx: u64, tally: &mut Tally| {
        let case = random_case(seed, idx);
        let how = How::from_seed(seed ^ (idx << 20), gpu.num_multiprocessors);
        if only.is_some() {
            println!("{how:#?}\n{case:#?}");
        }
        let dtypes = [Some(&case.logits), Some(&case.boxes), case.masks.as_ref()].into_iter().flatten();
        dtypes
            .map(OwnedTensor::dtype)
            .collect::<HashSet<_>>()
            .into_iter()
            .for_each(|dtype| tally.count(format!("with {dtype:?}")));
        tally.add("images", case.metas.len() as u64);
        if case.metas.len() > 8 {
            tally.count("with a batch above 8");
        }
        if case.options.semantics == Semantics::rf_detr() {
            tally.count("under rf_detr");
        } else if case.options.semantics == Semantics::roboflow_inference() {
            tally.count("under roboflow_inference");
        }
        if how.limits.is_some() {
            tally.count("with other block sizes");
        }
        judge(gpu, &case, &how, tally)
    };
    let name = |idx: u64| format!("--seed {seed} --case {idx}");
    let tally = match only {
        Some(idx) => return parallel(1, 1, |_| name(idx), |_, tally| run(idx, tally)).outcome(),
        None => parallel(num_cases, gpu.threads, name, run),
    };
    let missing: Vec<String> = fuzz_kinds().into_iter().filter(|kind| tally.get(kind) == 0).collect();
    let outcome = tally.outcome()?;
    // So many requests have everything in them; if they have not, the strategies have lost something.
    if num_cases >= 2000 && !missing.is_empty() {
        return Err(format!("no request {}; {outcome}", missing.join(", none ")));
    }
    Ok(outcome)
}

/// What a long fuzz must have met.
fn fuzz_kinds() -> Vec<String> {
    let dtypes = [DType::F32, DType::F16, DType::Bf16].map(|dtype| format!("with {dtype:?}"));
    let formats = FORMATS.map(|format| format!("with {}", format.name()));
    let others = ["with a batch above 8", "with other block sizes", "under rf_detr", "under roboflow_inference"];
    dtypes.into_iter().chain(formats).chain(others.map(String::from)).collect()
}

/// Queries and images of one request of [`sigmoid`]: each image is sorted whole, so every logit comes back.
const SIGMOID_QUERIES: usize = 1024;
const SIGMOID_BATCH: usize = 256;

/// Every bit pattern as a logit: the score that comes back is the host's, and NaN is counted, not kept.
pub fn sigmoid(gpu: &Gpu, stride: u64) -> Outcome {
    let block = (SIGMOID_QUERIES * SIGMOID_BATCH) as u64;
    let num_blocks = (1u64 << 32) / block;
    let meta = ImageMeta::stretch(Size::new(8, 8), Size::new(8, 8)).map_err(text)?;
    let blank = RequestCase {
        boxes: OwnedTensor::new(
            vec![0.0; SIGMOID_BATCH * SIGMOID_QUERIES * 4],
            &[SIGMOID_BATCH, SIGMOID_QUERIES, 4],
            DType::F16,
        ),
        logits: OwnedTensor::new(
            vec![0.0; SIGMOID_BATCH * SIGMOID_QUERIES],
            &[SIGMOID_BATCH, SIGMOID_QUERIES, 1],
            DType::F32,
        ),
        masks: None,
        metas: vec![meta; SIGMOID_BATCH],
        options: Options { threshold: Thresholds::Scalar(-1.0), ..Options::default() },
    };
    // A thread takes every `threads`-th block, with one postprocessor for all of them.
    let run = |thread: u64, tally: &mut Tally| {
        let mut case = blank.clone();
        let mut postprocessor = gpu.postprocessor_for(&case, &How::ALL[2]).map_err(text)?;
        for at in (thread * stride..num_blocks).step_by(stride as usize * gpu.threads) {
            let first = (at * block) as u32;
            case.logits.data = OwnedData::F32((0..block as u32).map(|i| f32::from_bits(first + i)).collect());
            let tensors = *case.request().map_err(text)?.tensors();
            let answer = postprocessor.process_host(&tensors, &case.metas).map_err(text)?;
            for (image, answer) in answer.images.iter().enumerate() {
                let first = first + (image * SIGMOID_QUERIES) as u32;
                let kept = answer.rows.len() as u64 + u64::from(answer.health.nan_logits);
                if kept != SIGMOID_QUERIES as u64 {
                    return Err(format!("{first:08x}: {kept} scores and NaN, expected {SIGMOID_QUERIES}"));
                }
                let mut is_there = [false; SIGMOID_QUERIES];
                for row in &answer.rows {
                    let bits = first + row.query_idx;
                    let expected = host_sigmoid(f32::from_bits(bits));
                    if row.confidence.to_bits() != expected.to_bits() {
                        return Err(format!("sigmoid({bits:08x}) is {:e}, expected {expected:e}", row.confidence));
                    }
                    is_there[row.query_idx as usize] = true;
                }
                let nans = (0..SIGMOID_QUERIES as u32).filter(|&i| f32::from_bits(first + i).is_nan()).count() as u64;
                let found = is_there.iter().filter(|&&there| there).count() as u64;
                if (found, nans) != (answer.rows.len() as u64, answer.health.nan_logits.into()) {
                    return Err(format!("{first:08x}: {found} queries and {nans} NaN, expected {:?}", answer.health));
                }
                tally.add("scores equal", found);
                tally.add("NaN", nans);
            }
        }
        Ok(())
    };
    let tally = parallel(gpu.threads as u64, gpu.threads, |thread| format!("thread {thread}"), run);
    let visited = tally.get("scores equal") + tally.get("NaN");
    let expected = num_blocks.div_ceil(stride) * block;
    let outcome = tally.outcome()?;
    if visited == expected { Ok(outcome) } else { Err(format!("{visited} bit patterns, expected {expected}")) }
}

/// One request many times, and by every way to launch it: always the same bits.
pub fn repeats(gpu: &Gpu, count: u32) -> Outcome {
    let cases = [
        ("upstream", "nano_640x480", MaskFormat::Rle),
        ("upstream", "batch2_mixed", MaskFormat::BitPacked),
        ("upstream", "saturated_logits", MaskFormat::Counts),
        ("torch_cpu", "nano_true_shapes_641x427", MaskFormat::Dense),
        ("torch_cpu", "strange_masks_77x52", MaskFormat::GridLogits),
    ];
    let run = |idx: u64, tally: &mut Tally| {
        let (folder, name, mask_format) = cases[idx as usize];
        let case = Fixture::load(folder, name).case.with_options(|options| options.mask_format = mask_format);
        let expected = case.reference();
        let tensors = *case.request().map_err(text)?.tensors();
        let mut repeat = |how: How, count: u32| -> Result<(), String> {
            let mut postprocessor = gpu.postprocessor_for(&case, &how).map_err(text)?;
            for round in 0..count {
                let got = postprocessor.process_host(&tensors, &case.metas).map_err(text)?;
                compare::compare(&expected, &got)
                    .map_err(|difference| format!("round {round}, {how:?}: {difference}"))?;
                tally.count("answers of one bit pattern");
            }
            Ok(())
        };
        repeat(How::DEFAULT, count)?;
        for how in How::ALL {
            for (select_threads, mask_threads, mask_blocks_per_multiprocessor) in
                [(1024, 128, 4), (64, 32, 1), (256, 256, 2)]
            {
                let limits = DeviceLimits {
                    num_multiprocessors: gpu.num_multiprocessors,
                    select_threads,
                    rle_threads: mask_threads,
                    rle_blocks_per_multiprocessor: mask_blocks_per_multiprocessor,
                    mask_threads,
                    mask_blocks_per_multiprocessor,
                    ..DeviceLimits::new(gpu.num_multiprocessors)
                };
                repeat(How { limits: Some(limits), ..how }, count.div_ceil(40))?;
            }
        }
        Ok(())
    };
    parallel(cases.len() as u64, gpu.threads, |idx| cases[idx as usize].1.to_string(), run).outcome()
}

/// A plan whose masks are too short says how long they must be; the plan with that room gives the answer.
pub fn overflow(gpu: &Gpu) -> Outcome {
    let mut tally = Tally::default();
    for (name, mask_format) in [
        ("nano_640x480", MaskFormat::Rle),
        ("nano_640x480", MaskFormat::Counts),
        ("batch2_mixed", MaskFormat::Rle),
        ("quantized_masks", MaskFormat::Counts),
    ] {
        let case = Fixture::load("upstream", name).case.with_options(|options| options.mask_format = mask_format);
        let expected = case.reference();
        let request = case.request().map_err(text)?;
        let run = |capacity: u32, how: &How| {
            let mut spec = case.plan_spec()?;
            spec.mask_capacity = Some(capacity);
            let mut postprocessor = gpu.postprocessor(gpu.config(spec, how))?;
            let answer = postprocessor.process_host(request.tensors(), &case.metas);
            // Whatever became of it, the next request finds a sound postprocessor.
            let mut quiet = case.clone();
            quiet.logits = OwnedTensor::new(vec![-20.0; case.logits.widened().len()], &case.logits.shape, DType::F32);
            let quiet_answer = postprocessor.process_host(quiet.request()?.tensors(), &quiet.metas)?;
            Ok::<_, Error>((answer, compare::compare(&quiet.reference(), &quiet_answer).map_err(text)))
        };
        let longest = expected.images.iter().flat_map(|image| &image.rows).map(|row| row.mask_len).max().unwrap_or(0);
        for how in How::ALL {
            let mut capacity = 16;
            let answer = loop {
                let (answer, after) = run(capacity, &how).map_err(text)?;
                after.map_err(|difference| format!("{name}, {how:?}, the request after it: {difference}"))?;
                match answer {
                    Err(Error::Request(CoreError::Capacity { needed, capacity: had, .. })) => {
                        if needed <= u64::from(capacity) || needed > longest.into() || u64::from(capacity) != had {
                            return Err(format!(
                                "{name}, {how:?}: needed {needed} of {longest}, had {had} of {capacity}"
                            ));
                        }
                        capacity = needed as u32;
                        tally.count("capacity errors");
                    }
                    answer => break answer.map_err(text)?,
                }
            };
            compare::compare(&expected, &answer).map_err(|difference| format!("{name}, {how:?}: {difference}"))?;
            tally.count("plans that held the answer");
        }
    }
    tally.outcome()
}

/// The bits of an image's scores, in the answer's order.
fn score_bits(answer: &Detections, image: usize) -> Vec<u32> {
    answer.images[image].rows.iter().map(|row| row.confidence.to_bits()).collect()
}

/// With torch CUDA's sigmoid, the scores of the upstream fixtures are torch CUDA's bits.
pub fn torch_scores(gpu: &Gpu) -> Outcome {
    let mut tally = Tally::default();
    for name in names("upstream") {
        let fixture = Fixture::load("upstream", &name);
        for reference in ["dense", "rle", "od", "rfdetr"] {
            let rf_detr = || fixture.rf_detr(fixture.lowest_threshold(), MaskFormat::None);
            let mut case = if reference == "rfdetr" { rf_detr() } else { fixture.case.clone() };
            case.masks = None;
            case.options.semantics.score = ScoreArithmetic::TorchCuda;
            match reference {
                // All rows, whatever their score.
                "rfdetr" => case.options.threshold = Thresholds::Scalar(-1.0),
                // The detection path knows no cap.
                "od" => case.options.max_detections = None,
                _ => {}
            }
            let (answer, ..) =
                gpu.answer(&case, &How::DEFAULT).map_err(|error| format!("{name}/{reference}: {error}"))?;
            for image in 0..case.metas.len() {
                // Both are in descending order, so ties do not matter.
                let expected: Vec<u32> =
                    fixture.answer(reference, image).confidence.iter().map(|x| x.to_bits()).collect();
                let got = score_bits(&answer, image);
                if got != expected {
                    let at = got.iter().zip(&expected).position(|(a, b)| a != b);
                    let (rows, want) = (got.len(), expected.len());
                    tally.fail(&format!(
                        "{name}/{reference}/{image}: {rows} scores, expected {want}; first difference at {at:?}"
                    ));
                }
                tally.add("scores equal", got.iter().zip(&expected).filter(|(a, b)| a == b).count() as u64);
            }
        }
    }
    tally.outcome()
}

/// Every error that needs no pointer: each is of its own kind, and the postprocessor works afterwards.
pub fn errors(gpu: &Gpu) -> Outcome {
    let case =
        Fixture::load("upstream", "nano_312x176").case.with_options(|options| options.mask_format = MaskFormat::Rle);
    let request = case.request().map_err(text)?;
    let good = case.plan_spec().map_err(text)?;
    let config = gpu.config(good.clone(), &How::DEFAULT);
    let mut postprocessor = gpu.postprocessor(config.clone()).map_err(text)?;
    let mut tally = Tally::default();
    let mut expect = |what: &str, is_right: fn(&Error) -> bool, got: Result<(), Error>| {
        match got {
            Err(error) if is_right(&error) => tally.count("errors of the right kind"),
            Err(error) => tally.fail(&format!("{what}: the wrong error: {error}")),
            Ok(()) => tally.fail(&format!("{what}: no error")),
        };
    };
    let count = device_count().map_err(text)?;

    let mut made = |what: &str, is_right: fn(&Error) -> bool, change: &dyn Fn(&mut rfdetr_post_cuda::CudaConfig)| {
        let mut config = config.clone();
        change(&mut config);
        expect(what, is_right, CudaPostprocessor::new(config).map(drop));
    };
    made("no such device", |e| matches!(e, Error::NoDevice { ordinal: 4096, .. }), &|config| {
        config.device = DeviceChoice::Ordinal(4096);
    });
    made("no slots", |e| matches!(e, Error::Config { field: "slots", .. }), &|config| config.slots = 0);
    made("queries", |e| matches!(e, Error::Request(CoreError::Limit { field: "num_queries", .. })), &|config| {
        config.spec.shape.num_queries = 1025;
    });
    made("too many pixels for memory", |e| matches!(e, Error::OutOfMemory { what: "payload", .. }), &|config| {
        config.spec.options.mask_format = MaskFormat::Dense;
        config.spec.max_batch = 256;
        config.spec.max_image = Size::new(16_384, 16_384);
    });
    // A thread of its own has no context.
    let on_new_thread = || {
        let mut config = config.clone();
        config.device = DeviceChoice::CurrentContext;
        CudaPostprocessor::new(config).map(drop)
    };
    let got = std::thread::scope(|scope| scope.spawn(on_new_thread).join()).map_err(|_| "a panic".to_string())?;
    expect("no context", |e| matches!(e, Error::NoContext), got);
    expect("no such device", |e| matches!(e, Error::NoDevice { .. }), device_info(count).map(drop));
    let mut beside = config.clone();
    beside.device = DeviceChoice::Ordinal(gpu.device + 1);
    expect(
        "beside another",
        |e| matches!(e, Error::Config { field: "device", .. }),
        gpu.postprocessor(beside).map(drop),
    );
    let mut other_kernels = config.clone();
    other_kernels.kernels = match config.kernels {
        KernelChoice::OldestPtx => KernelChoice::Auto,
        _ => KernelChoice::OldestPtx,
    };
    expect(
        "beside one with other kernels",
        |e| matches!(e, Error::Config { field: "kernels", .. }),
        gpu.postprocessor(other_kernels).map(drop),
    );

    let mut processed = |what: &str, is_right: fn(&Error) -> bool, change: &dyn Fn(&mut RequestCase)| {
        let mut case = case.clone();
        change(&mut case);
        let tensors = rfdetr_post_core::Tensors {
            boxes: case.boxes.borrow(),
            logits: case.logits.borrow(),
            masks: case.masks.as_ref().map(OwnedTensor::borrow),
        };
        expect(what, is_right, postprocessor.process_host(&tensors, &case.metas).map(drop));
    };
    processed("a larger image", |e| matches!(e, Error::Request(CoreError::Plan { field: "width", .. })), &|case| {
        case.metas[0] = ImageMeta::stretch(Size::new(313, 176), case.metas[0].network).expect("a stretch");
    });
    processed("a larger batch", |e| matches!(e, Error::Request(CoreError::Plan { field: "batch", .. })), &|case| {
        *case = tiled(case, 2);
    });
    processed("other metadata", |e| matches!(e, Error::Request(CoreError::MetaCount { .. })), &|case| {
        case.metas.clear()
    });
    processed("no masks", |e| matches!(e, Error::Request(CoreError::MasksMissing { .. })), &|case| case.masks = None);
    processed("another model", |e| matches!(e, Error::Config { field: "tensors", .. }), &|case| {
        let order: Vec<usize> = (0..case.logits.shape[1]).collect();
        for tensor in [Some(&mut case.boxes), Some(&mut case.logits), case.masks.as_mut()].into_iter().flatten() {
            let per_query: usize = tensor.shape[2..].iter().product();
            let mut values = tensor.permute_queries(&order).widened();
            values.truncate(per_query * (order.len() - 1));
            let mut shape = tensor.shape.clone();
            shape[1] -= 1;
            *tensor = OwnedTensor::new(values, &shape, DType::F32);
        }
    });

    let answer = postprocessor.process_host(request.tensors(), &case.metas).map_err(text)?;
    compare::compare(&case.reference(), &answer).map_err(|difference| format!("after the errors: {difference}"))?;
    tally.count("answers after them");
    tally.outcome()
}

#[cfg(test)]
mod tests {
    use rfdetr_post_core::packed::{INLINE_IMAGES, MAX_SELECT};

    use super::*;

    /// What the device is to be compared on exists, is not refused, and is the same in every run.
    #[test]
    fn random_cases_are_requests_and_repeatable() {
        let mut largest = 0;
        for idx in 0..120 {
            let case = random_case(7, idx);
            assert!(case.request().is_ok(), "case {idx}");
            assert!(format!("{case:?}") == format!("{:?}", random_case(7, idx)), "case {idx}");
            largest = largest.max(case.metas.len());
        }
        assert!(largest > 8, "no batch above the {} images that travel inline", 8);
    }

    /// The few requests of the slow tools still go everywhere.
    #[test]
    fn tiny_cases_run_every_path() {
        let cases = tiny_cases();
        assert!(cases.len() < 25, "{} are no handful", cases.len());
        for mask_format in FORMATS {
            assert!(cases.iter().any(|(_, case)| case.options.mask_format == mask_format), "{mask_format:?}");
        }
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            assert!(cases.iter().any(|(_, case)| case.logits.dtype() == dtype), "{dtype:?}");
        }
        for semantics in [Semantics::rf_detr(), Semantics::roboflow_inference()] {
            assert!(cases.iter().any(|(_, case)| case.options.semantics == semantics), "{semantics:?}");
        }
        assert!(cases.iter().any(|(_, case)| case.metas.len() > INLINE_IMAGES));
        let largest = cases.iter().map(|(_, case)| case.logits.widened().len() / case.metas.len()).max();
        assert!(largest > Some(MAX_SELECT as usize), "{largest:?} pairs are never more than fit the list");
        for (name, case) in &cases {
            let expected = case.reference();
            assert!(expected.images.iter().all(|image| !image.is_empty()), "{name}: an image without detections");
            assert!(area(case) < QUICK_AREA, "{name}");
        }
    }

    /// Every named case but those of formulas alone asks the reference for something.
    #[test]
    fn edge_cases_are_recorded() {
        let without: Vec<_> =
            EDGE_CASES.iter().filter(|(_, run)| RequestCase::recorded(run).is_empty()).map(|(name, _)| *name).collect();
        assert_eq!(
            without,
            [
                "letterboxes_that_lose_a_pixel",
                "grid_pads_round_half_to_even",
                "the_center_rounds_once",
                "axis_tables_of_enormous_sides"
            ]
        );
    }
}

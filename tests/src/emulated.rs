//! The kernels under the emulator, from a request to its detections.

use std::cell::RefCell;

use rfdetr_post_core::{
    Detections, Error, Request, Result, Size,
    packed::{EARLY_ROW_WORDS, INLINE_IMAGES, MaskArgs, ROW_WORDS, SelectArgs, shared},
    plan::{DeviceBuffers, DeviceInputs, DeviceLimits, MIN_SHARED_BYTES, MaskKernel, Plan, PlanSpec},
    tensor::{DType, Tensor, TensorData},
    unpack::PackedResult,
    watch::ResultWatch,
};
use rfdetr_post_kernels::{
    rfdetr_masks_dense, rfdetr_masks_grid, rfdetr_masks_rle, rfdetr_masks_rle_large, rfdetr_select,
    simt::emulator::{Arena, Device, Fault, Options},
};

use crate::host;

/// A run that did not come to its end.
#[derive(Debug)]
pub enum Failure {
    /// The request was refused, or the answer is malformed.
    Error(Error),
    /// A detector of the emulator saw something.
    Fault(Box<Fault>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// How the kernels are launched: sizes that differ from a real GPU's, so that every loop is run more than once.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Threads of the selection's blocks.
    pub select_threads: u32,
    /// Threads of the mask kernels' blocks.
    pub mask_threads: u32,
    /// Blocks of the mask kernels.
    pub mask_grid: u32,
    /// Transitions that are encoded at a time; the plan's if none.
    pub window: Option<u32>,
    /// Words for the tiles of a mask's columns; the plan's if none.
    pub num_tile_words: Option<u32>,
    /// The cells of a mask stay in device memory.
    pub is_large: bool,
    /// Clusters of the run-length kernel; 0 for a device without clusters.
    pub num_clusters: u32,
    /// Rows whose weights have room in shared memory; the plan's if none.
    pub num_weights: Option<u32>,
    /// Room for one run-length mask; the plan's if none.
    pub mask_capacity: Option<u32>,
    /// Damages the kernels' arguments, for tests of the comparison.
    pub damage: Option<Damage>,
}

/// Changes the arguments of both kernels.
pub type Damage = fn(&mut SelectArgs, &mut MaskArgs);

impl Shape {
    /// A shape drawn from a seed: small blocks, few of them, sometimes next to no room in
    /// shared memory.
    pub fn from_seed(seed: u64) -> Self {
        let pick = |shift: u32, choices: &[u32]| choices[(seed >> shift) as usize % choices.len()];
        Self {
            select_threads: pick(0, &[32, 64, 64, 96, 160]),
            mask_threads: pick(8, &[32, 32, 64, 96]),
            mask_grid: pick(16, &[1, 2, 5, 9, 24]),
            window: [None, Some(1024), Some(32), Some(5)][(seed >> 24) as usize % 4],
            num_tile_words: [None, None, Some(300), Some(32)][(seed >> 32) as usize % 4],
            is_large: seed >> 56 & 3 == 0,
            num_weights: [None, None, Some(0)][(seed >> 40) as usize % 3],
            num_clusters: pick(48, &[0, 1, 2, 8, 8]),
            mask_capacity: if seed >> 58 & 3 == 3 { Some(16) } else { None },
            damage: None,
        }
    }
}

/// Runs a request under the emulator, with the schedule and the launch shape of `seed`.
///
/// A mask that does not fit the plan's room is planned again with the room that it needs, as a user would.
pub fn process(request: &Request<'_>, seed: u64) -> std::result::Result<Detections, Failure> {
    process_shaped(request, seed, Shape::from_seed(seed))
}

/// [`process`] with a given launch shape.
pub fn process_shaped(request: &Request<'_>, seed: u64, shape: Shape) -> std::result::Result<Detections, Failure> {
    process_watched(request, seed, shape).map(|(detections, _)| detections)
}

/// [`process_shaped`], and whether the answer was read before its flag was seen.
pub fn process_watched(
    request: &Request<'_>,
    seed: u64,
    shape: Shape,
) -> std::result::Result<(Detections, bool), Failure> {
    let mut shape = shape;
    // Each image has an error of its own.
    for _ in request.metas() {
        match run(request, seed, shape) {
            Err(Failure::Error(Error::Capacity { needed, .. })) => {
                // A count for each pixel, of six characters, is the most.
                let areas = request.metas().iter().map(|meta| meta.original.area());
                assert!(areas.max() >= Some((needed / 6).saturating_sub(1)), "a mask that needs {needed} elements");
                shape.mask_capacity = Some(needed as u32);
            }
            answer => return answer,
        }
    }
    run(request, seed, shape)
}

fn run(request: &Request<'_>, seed: u64, shape: Shape) -> std::result::Result<(Detections, bool), Failure> {
    let metas = request.metas();
    let side = |f: fn(Size) -> u32| metas.iter().map(|meta| f(meta.original)).max().unwrap_or(1);
    let spec = PlanSpec {
        shape: request.shape(),
        max_batch: metas.len(),
        max_image: Size::new(side(|size| size.width), side(|size| size.height)),
        options: request.options().clone(),
        mask_capacity: shape.mask_capacity,
    };
    let limits = DeviceLimits {
        num_multiprocessors: shape.mask_grid,
        select_threads: shape.select_threads,
        rle_threads: shape.mask_threads,
        rle_clusters: shape.num_clusters,
        rle_blocks_per_multiprocessor: 1,
        mask_threads: shape.mask_threads,
        mask_blocks_per_multiprocessor: 1,
        max_shared_bytes: MIN_SHARED_BYTES,
    };
    let mut plan = Plan::new(spec, limits)?;
    plan.check(metas, metas.len())?;
    let lower = |planned: &mut u32, asked: Option<u32>| *planned = asked.map_or(*planned, |asked| asked.min(*planned));
    lower(&mut plan.rle.window, shape.window);
    lower(&mut plan.rle.num_tile_words, shape.num_tile_words);
    if shape.is_large && plan.mask_kernel == Some(MaskKernel::Rle) {
        (plan.mask_kernel, plan.rle.num_cells) = (Some(MaskKernel::RleLarge), 0);
    }
    lower(&mut plan.rle.num_weights, shape.num_weights);
    if metas.is_empty() {
        return Ok((Detections::default(), false));
    }

    let mut device = Device::new(seed);
    let arena = &mut device.arena;
    let tensors = request.tensors();
    let boxes = upload(arena, &tensors.boxes);
    let logits = upload(arena, &tensors.logits);
    let masks = tensors.masks.as_ref().map(|masks| upload(arena, masks)).unwrap_or((0, DType::F32));
    let inputs = DeviceInputs {
        boxes_at: boxes.0,
        boxes_dtype: boxes.1,
        logits_at: logits.0,
        logits_dtype: logits.1,
        masks_at: masks.0,
        masks_dtype: masks.1,
    };
    let buffers = DeviceBuffers {
        work_at: arena.alloc(plan.work.bytes as usize),
        result_at: arena.alloc(plan.result.bytes as usize),
        payload_at: arena.alloc(plan.payload_bytes.max(1) as usize),
    };
    let work = |offset: u64| buffers.work_at + offset;
    // Of the counters, the selection sets the second; of the result, nobody relies on anything but what the host prepares, and the
    // zeros of rows without masks.
    arena.write(work(plan.work.counters), &[0, 0, 0, 0, 0xa5, 0xa5, 0xa5, 0xa5]);
    let mut before = vec![0xa5a5_a5a5; plan.result.masks as usize / 4];
    if plan.mask_kernel.is_none() {
        for row in before[plan.result.rows as usize / 4..].chunks_mut(ROW_WORDS as usize) {
            row[EARLY_ROW_WORDS as usize..].fill(0);
        }
    }
    let words = RefCell::new(before);
    let mut watch = ResultWatch::new(&plan, true);
    let store = |word: u32, value: u32| words.borrow_mut()[word as usize] = value;
    watch.begin(&plan, metas.len(), |word| words.borrow()[word as usize], store);
    let before = words.into_inner();
    arena.write(buffers.result_at, bytemuck::cast_slice(&before));
    arena.write(work(plan.work.columns), &plan.column_bytes());
    let records = plan.records(metas);
    if records.len() > INLINE_IMAGES {
        arena.write(work(plan.work.records), bytemuck::cast_slice(&records));
    }

    let sequence = seed as u32 | 1;
    let (mut select_args, mut mask_args) = plan.args(&inputs, &buffers, &records, sequence);
    if let Some(damage) = shape.damage {
        damage(&mut select_args, &mut mask_args);
    }
    let answer = RefCell::default();
    let mut launches = vec![rfdetr_select::launch(
        select_args,
        plan.select_grid(metas.len()),
        limits.select_threads,
        shared::select::BYTES,
    )];
    if let Some(kernel) = plan.mask_kernel {
        let launch = match kernel {
            MaskKernel::Rle => rfdetr_masks_rle::launch,
            MaskKernel::RleLarge => rfdetr_masks_rle_large::launch,
            MaskKernel::Dense => rfdetr_masks_dense::launch,
            MaskKernel::Grid => rfdetr_masks_grid::launch,
        };
        let launch = launch(mask_args, plan.mask_grid, plan.mask_threads, plan.mask_shared_bytes);
        launches.push(if shape.num_clusters > 0 { launch } else { launch.without_clusters() });
    }
    let host = host::Request { plan: &plan, buffers, batch: metas.len(), sequence, watch, before, seed };
    launches.push(host::launch(host, &answer));
    let options = Options { pdl: seed & 1 == 0, ..Options::default() };
    device.run(&launches, options).map_err(|fault| Failure::Fault(Box::new(fault)))?;

    let payload = device.arena.download(buffers.payload_at, plan.payload_bytes as usize);
    assert_eq!(device.arena.download(work(plan.work.counters), 4), [0; 4], "the counter is not zero between launches");
    drop(launches);
    let host::Answer { bytes, is_early } = answer.into_inner();
    Ok((PackedResult::new(&plan, metas, &bytes)?.decode(&payload)?, is_early))
}

fn upload(arena: &mut Arena, tensor: &Tensor<'_>) -> (u64, DType) {
    let data = tensor.data();
    let address = match data {
        TensorData::F32(data) => arena.upload(bytemuck::cast_slice(data)),
        TensorData::F16(data) => arena.upload(bytemuck::cast_slice(data)),
        TensorData::Bf16(data) => arena.upload(bytemuck::cast_slice(data)),
    };
    (address, data.dtype())
}

/// The answer for a comparison with the reference: a fault of the emulator is a panic that prints it.
///
/// Errors: those of the request.
pub fn answer(request: &Request<'_>, seed: u64) -> Result<Detections> {
    match process(request, seed) {
        Ok(detections) => Ok(detections),
        Err(Failure::Error(error)) => Err(error),
        Err(Failure::Fault(fault)) => panic!("seed {seed}: {fault}"),
    }
}

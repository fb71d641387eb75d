//! Fused post-processing of RF-DETR and RF-DETR-Seg on NVIDIA GPUs.
//!
//! A [`CudaPostprocessor`] is made once for the largest request to come. It loads the kernels (machine code
//! or PTX inside this crate), plans, allocates, and from then on a request is two kernel launches joined by a graph: the host only reads the answer.
//!
//! ```no_run
//! use rfdetr_post_core::{ClassLayout, DType, ImageMeta, MaskFormat, Options, Size, plan::PlanSpec, request::ModelShape};
//! use rfdetr_post_cuda::{CudaConfig, CudaPostprocessor, DeviceTensor, DeviceTensors, Stream};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (boxes_at, logits_at, masks_at) = (0, 0, 0);
//! let options =
//!     Options { classes: ClassLayout::coco91(), mask_format: MaskFormat::Rle, ..Options::default() };
//! let shape = ModelShape { num_queries: 100, num_classes: 91, mask_grid: Some((78, 78)) };
//! let spec = PlanSpec { shape, max_batch: 1, max_image: Size::new(1920, 1080), options, mask_capacity: None };
//! let mut postprocessor = CudaPostprocessor::new(CudaConfig::new(spec))?;
//!
//! let tensors = DeviceTensors {
//!     boxes: DeviceTensor { address: boxes_at, dtype: DType::F32 },
//!     logits: DeviceTensor { address: logits_at, dtype: DType::F32 },
//!     masks: Some(DeviceTensor { address: masks_at, dtype: DType::F32 }),
//! };
//! let metas = [ImageMeta::stretch(Size::new(1920, 1080), Size::new(312, 312))?];
//! // SAFETY: the model wrote these tensors on this stream, and nobody frees them before the ticket is done.
//! let mut ticket = unsafe { postprocessor.enqueue(&tensors, &metas, Stream::DEFAULT)? };
//! for image in ticket.wait()?.detections()?.images {
//!     println!("{} detections", image.len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here computes: formulas live in the kernels (`kernels-gpu`) and in `rfdetr-post-core`'s reference.
//! libcuda is loaded at run time; without a driver every call is a typed [`Error`].

#[cfg(any(feature = "cudarc", feature = "cust"))]
pub mod adapters;
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "dlpack")]
mod dlpack;
mod driver;
mod error;
pub mod fleet;
mod image;
mod slot;

use std::{
    collections::VecDeque,
    ffi::c_void,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cudarc::driver::sys;
use rfdetr_post_core::{
    DType, Detections, ImageMeta, MaskFormat, Size, Tensor, TensorData, Tensors,
    packed::{ImageHeader, PackedRow, shared::masks as shared},
    plan::{DeviceInputs, DeviceLimits, MaskKernel, Plan, PlanSpec, SELECT_KERNEL},
    request::Request,
    unpack::PackedResult,
};

use crate::{
    driver::{Context, DeviceBuffer, Module, OwnStream, max_active_clusters},
    slot::{Functions, Slot},
};
/// The crate whose managed tensors [`DeviceTensor::from_dlpack`] takes.
#[cfg(feature = "dlpack")]
pub use dlpark;

pub use crate::{
    driver::{DeviceInfo, device_count, device_info},
    error::{Error, Result},
    fleet::CudaFleet,
    image::{KernelChoice, KernelImage, LoadedKernels},
};

/// Which context to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The primary context of a device, by the driver's ordinal: the one that torch and the runtime API use.
    Ordinal(usize),
    /// The context that is current on the calling thread; the caller keeps it alive.
    CurrentContext,
}

/// Where the packed result (headers, rows, run lengths) is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultPlace {
    /// Pinned host memory, by the kernels themselves: the host waits on flags, without a copy or a driver call.
    Host,
    /// Device memory, for those who stay there; `wait` copies it.
    Device,
}

/// How the two kernels are launched. The answer is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchMode {
    /// One graph launch.
    Graph,
    /// Two launches, which may be captured into a graph of the caller's.
    Stream,
}

/// The configuration of a [`CudaPostprocessor`].
#[derive(Debug, Clone, PartialEq)]
pub struct CudaConfig {
    /// What to plan for.
    pub spec: PlanSpec,
    /// Which context to use.
    pub device: DeviceChoice,
    /// Requests in flight at once; each has buffers of its own.
    pub slots: usize,
    /// Where the result goes.
    pub result: ResultPlace,
    /// How the kernels are launched.
    pub launch: LaunchMode,
    /// Which of the kernels in this crate are loaded.
    pub kernels: KernelChoice,
    /// Block and grid sizes; none for the measured choice.
    pub limits: Option<DeviceLimits>,
}

impl CudaConfig {
    /// Device 0, two slots, results to the host, graph launches, machine code where there is some.
    pub fn new(spec: PlanSpec) -> Self {
        Self {
            spec,
            device: DeviceChoice::Ordinal(0),
            slots: 2,
            result: ResultPlace::Host,
            launch: LaunchMode::Graph,
            kernels: KernelChoice::Auto,
            limits: None,
        }
    }
}

/// A stream of the caller's: a `CUstream`, which is also the runtime API's `cudaStream_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(*mut c_void);

// SAFETY: stream handles may be used from any thread.
unsafe impl Send for Stream {}

impl Stream {
    /// The default stream.
    pub const DEFAULT: Self = Self(std::ptr::null_mut());

    /// A stream by its handle.
    ///
    /// # Safety
    /// The stream belongs to the postprocessor's context, and lives until every ticket of it is done.
    pub const unsafe fn from_raw(stream: *mut c_void) -> Self {
        Self(stream)
    }
}

/// A row-major, contiguous tensor in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceTensor {
    /// Its address, a multiple of the element's size.
    pub address: u64,
    /// Its element type.
    pub dtype: DType,
}

/// The outputs of one run of the model, on the device. Shapes are the plan's, with the request's batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceTensors {
    /// `[B, Q, 4]`, `cxcywh`.
    pub boxes: DeviceTensor,
    /// `[B, Q, C]`.
    pub logits: DeviceTensor,
    /// `[B, Q, Mh, Mw]`; needed if masks were asked for.
    pub masks: Option<DeviceTensor>,
}

/// What postprocessor and tickets share. Fields are dropped in this order: slots before their kernels.
#[derive(Debug)]
struct Inner {
    ring: Mutex<VecDeque<Box<Slot>>>,
    plan: Plan,
    kernels: Arc<Kernels>,
}

/// What postprocessors of one device share.
#[derive(Debug)]
struct Kernels {
    module: Module,
    loaded: LoadedKernels,
}

impl Inner {
    fn ring(&self) -> MutexGuard<'_, VecDeque<Box<Slot>>> {
        // A panic elsewhere leaves the ring whole: slots are moved in and out by single calls.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Post-processing on one GPU: made once, used from any one thread at a time.
#[derive(Debug)]
pub struct CudaPostprocessor {
    host_inputs: Option<HostInputs>,
    inner: Arc<Inner>,
    checked: Option<(DeviceTensors, usize)>,
    context: Arc<Context>,
    config: CudaConfig,
    device_bytes: u64,
}

/// Device copies of tensors that come from the host.
#[derive(Debug)]
struct HostInputs {
    stream: OwnStream,
    boxes: DeviceBuffer,
    logits: DeviceBuffer,
    masks: Option<DeviceBuffer>,
}

impl CudaPostprocessor {
    /// Loads the kernels, plans, and allocates everything that requests will need.
    ///
    /// Errors: no driver, no such device, a device before sm_75, out of memory, a spec that cannot be.
    pub fn new(config: CudaConfig) -> Result<Self> {
        let context = match config.device {
            DeviceChoice::Ordinal(ordinal) => Context::primary(ordinal)?,
            DeviceChoice::CurrentContext => Context::current()?,
        };
        let info = device_info(context.device as usize)?;
        let (major, minor) = info.compute_capability;
        if (major, minor) < (7, 5) {
            return Err(Error::ComputeCapability { ordinal: info.ordinal, major, minor });
        }
        let (module, loaded) = image::load(config.kernels, info.compute_capability, |image| {
            let module = Module::load(&context, image)?;
            // Drivers may look at the code only when it is asked for.
            module.function(SELECT_KERNEL, info.max_shared_bytes)?;
            Ok(module)
        })?;
        let kernels = Arc::new(Kernels { module, loaded });
        Self::assemble(context, kernels, &info, config)
    }

    /// A postprocessor in the context of another one, with the kernels that it has loaded: plans and allocates only.
    /// For another model or another size on the same device; `config.device` and `config.kernels` must be the other's.
    ///
    /// Errors: those of [`new`](Self::new) but for the driver's and the device's; [`Error::Config`] for another device or
    /// other kernels.
    pub fn new_beside(other: &Self, config: CudaConfig) -> Result<Self> {
        if config.device != other.config.device {
            return Err(Error::Config {
                field: "device",
                expected: "the choice of the other postprocessor",
                got: format!("{:?}, the other has {:?}", config.device, other.config.device),
            });
        }
        if config.kernels != other.config.kernels {
            return Err(Error::Config {
                field: "kernels",
                expected: "the choice of the other postprocessor",
                got: format!("{:?}, the other has {:?}", config.kernels, other.config.kernels),
            });
        }
        let info = device_info(other.device())?;
        Self::assemble(other.context.clone(), other.inner.kernels.clone(), &info, config)
    }

    fn assemble(context: Arc<Context>, kernels: Arc<Kernels>, info: &DeviceInfo, config: CudaConfig) -> Result<Self> {
        if config.slots == 0 {
            return Err(Error::Config { field: "slots", expected: "at least 1", got: "0".to_string() });
        }
        let mut limits = config.limits.unwrap_or(info.limits());
        let is_run_length = config.spec.options.mask_format.is_run_length();
        if !kernels.loaded.image.has_clusters() {
            limits.rle_clusters = 0;
        } else if limits.rle_clusters == 0 && is_run_length {
            // How the multiprocessors are grouped is not known otherwise.
            let shared_bytes = limits.max_shared_bytes.min(info.max_shared_bytes);
            let function = kernels.module.function(MaskKernel::Rle.name(), info.max_shared_bytes)?;
            let threads = limits.rle_threads.clamp(32, shared::RLE_MAX_THREADS);
            let count = max_active_clusters(&context, function, shared::RLE_CLUSTER, threads, shared_bytes)?;
            limits.rle_clusters = count.max(1);
        }
        let plan = Plan::new(config.spec.clone(), limits)?;
        let functions = Functions {
            select: kernels.module.function(SELECT_KERNEL, info.max_shared_bytes)?,
            masks: match plan.mask_kernel {
                Some(kernel) => Some(kernels.module.function(kernel.name(), info.max_shared_bytes)?),
                None => None,
            },
            overlaps: kernels.loaded.image.waits_for_launch_before(),
        };
        let slots = (0..config.slots)
            .map(|_| Slot::new(&context, &plan, functions, config.result, config.launch).map(Box::new))
            .collect::<Result<VecDeque<_>>>()?;
        let device_bytes = slots.iter().map(|slot| slot.device_bytes()).sum();
        let inner = Arc::new(Inner { ring: Mutex::new(slots), plan, kernels });
        Ok(Self { host_inputs: None, inner, checked: None, context, config, device_bytes })
    }

    /// Buffer sizes and launch dimensions.
    pub fn plan(&self) -> &Plan {
        &self.inner.plan
    }

    /// Ordinal of the device.
    pub fn device(&self) -> usize {
        self.context.device as usize
    }

    /// The kernels that are loaded.
    pub fn kernels(&self) -> &LoadedKernels {
        &self.inner.kernels.loaded
    }

    /// Bytes of device memory that all slots hold together (inputs are the caller's).
    pub fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    /// Launches a request behind what is on `stream`, and returns at once. Allocates nothing on the device.
    ///
    /// Tickets of one stream are done in the order of their requests. A slot is free again when its ticket is dropped
    /// and its work has ended.
    ///
    /// Errors: metadata or tensors that do not fit the plan, [`Error::Busy`] when every slot is in flight.
    ///
    /// # Safety
    /// The tensors hold what the plan's shape and `metas.len()` say, are written by work that is on `stream` (or done),
    /// and stay alive and unchanged until the ticket is ready.
    pub unsafe fn enqueue(&mut self, tensors: &DeviceTensors, metas: &[ImageMeta], stream: Stream) -> Result<Ticket> {
        self.inner.plan.check(metas, metas.len())?;
        self.check_tensors(tensors, metas.len())?;
        let inputs = DeviceInputs {
            boxes_at: tensors.boxes.address,
            boxes_dtype: tensors.boxes.dtype,
            logits_at: tensors.logits.address,
            logits_dtype: tensors.logits.dtype,
            masks_at: tensors.masks.map_or(0, |masks| masks.address),
            masks_dtype: tensors.masks.map_or(DType::F32, |masks| masks.dtype),
        };
        let mut slot = self.take_slot()?;
        // SAFETY: the caller vouches for the tensors; plan and metadata were checked above.
        let launched = unsafe { slot.launch(&self.inner.plan, &inputs, metas, stream.0.cast()) };
        let ticket = Ticket { slot: Some(slot), inner: self.inner.clone() };
        launched.map(|()| ticket)
    }

    /// [`enqueue`](Self::enqueue), then waits and decodes everything, masks of any format included.
    ///
    /// # Safety
    /// As [`enqueue`](Self::enqueue).
    pub unsafe fn process(
        &mut self,
        tensors: &DeviceTensors,
        metas: &[ImageMeta],
        stream: Stream,
    ) -> Result<Detections> {
        // SAFETY: passed on to the caller.
        unsafe { self.enqueue(tensors, metas, stream)? }.wait()?.detections()
    }

    /// Copies host tensors to the device, processes them and decodes everything.
    ///
    /// Errors: those of [`Request::new`] and of [`enqueue`](Self::enqueue); another model shape than the plan's.
    pub fn process_host(&mut self, tensors: &Tensors<'_>, metas: &[ImageMeta]) -> Result<Detections> {
        let request = Request::new(*tensors, metas, &self.inner.plan.spec.options)?;
        let (expected, got) = (self.inner.plan.spec.shape, request.shape());
        let shape = |shape: rfdetr_post_core::request::ModelShape| {
            (shape.num_queries, shape.num_classes, shape.mask_grid.filter(|_| self.inner.plan.mask_kernel.is_some()))
        };
        if shape(expected) != shape(got) {
            return Err(Error::Config {
                field: "tensors",
                expected: "the model shape of the plan",
                got: format!("{got:?}, planned {expected:?}"),
            });
        }
        self.inner.plan.check(metas, request.batch())?;
        if self.host_inputs.is_none() {
            self.host_inputs = Some(HostInputs::new(&self.context, &self.inner.plan)?);
        }
        let Some(inputs) = &self.host_inputs else { unreachable!("made above") };
        let upload = |buffer: &DeviceBuffer, tensor: &Tensor<'_>| {
            let bytes: &[u8] = match tensor.data() {
                TensorData::F32(data) => bytemuck::cast_slice(data),
                TensorData::F16(data) => bytemuck::cast_slice(data),
                TensorData::Bf16(data) => bytemuck::cast_slice(data),
            };
            // On the stream of the request, which does not wait for copies of the default stream.
            buffer.write_on(&inputs.stream, bytes)?;
            Ok::<_, Error>(DeviceTensor { address: buffer.address(), dtype: tensor.data().dtype() })
        };
        let device_tensors = DeviceTensors {
            boxes: upload(&inputs.boxes, &tensors.boxes)?,
            logits: upload(&inputs.logits, &tensors.logits)?,
            masks: match (&inputs.masks, &tensors.masks) {
                (Some(buffer), Some(masks)) => Some(upload(buffer, masks)?),
                _ => None,
            },
        };
        let stream = Stream(inputs.stream.handle().cast());
        // SAFETY: the copies above are on the stream, as large as the checked shapes say, and ours until the answer is there.
        unsafe { self.process(&device_tensors, metas, stream) }
    }

    /// A slot whose work has ended, oldest first.
    fn take_slot(&mut self) -> Result<Box<Slot>> {
        let mut ring = self.inner.ring();
        for _ in 0..ring.len() {
            let Some(mut slot) = ring.pop_front() else { break };
            // A ticket that was dropped in flight leaves a slot that is still at work.
            match slot.is_ready() {
                Ok(true) => return Ok(slot),
                Ok(false) => ring.push_back(slot),
                Err(error) => {
                    ring.push_back(slot);
                    return Err(error);
                }
            }
        }
        Err(Error::Busy { slots: self.config.slots })
    }

    /// Checks address, alignment, device and size of each tensor. What was checked last is not checked again.
    fn check_tensors(&mut self, tensors: &DeviceTensors, batch: usize) -> Result<()> {
        if self.checked == Some((*tensors, batch)) || batch == 0 {
            return Ok(());
        }
        let shape = self.inner.plan.spec.shape;
        let queries = batch * shape.num_queries;
        self.check_tensor("boxes", tensors.boxes, queries * 4)?;
        self.check_tensor("logits", tensors.logits, queries * shape.num_classes)?;
        if self.inner.plan.mask_kernel.is_some() {
            let (mask_h, mask_w) = shape.mask_grid.unwrap_or((0, 0));
            let format = self.inner.plan.spec.options.mask_format.name();
            let masks = tensors.masks.ok_or(rfdetr_post_core::Error::MasksMissing { format })?;
            self.check_tensor("masks", masks, queries * mask_h * mask_w)?;
        }
        self.checked = Some((*tensors, batch));
        Ok(())
    }

    fn check_tensor(&self, field: &'static str, tensor: DeviceTensor, len: usize) -> Result<()> {
        let (address, align) = (tensor.address, tensor.dtype.size() as u64);
        if len == 0 {
            return Ok(());
        }
        if address == 0 || !address.is_multiple_of(align) {
            return Err(Error::Address { field, address, align });
        }
        let expected = self.device();
        let (device, got) = match self.context.with(|| driver::allocation(address)) {
            Ok(found) => found,
            Err(Error::Driver { code, .. }) if code == sys::CUresult::CUDA_ERROR_INVALID_VALUE as u32 => {
                return Err(Error::WrongDevice { field, expected, got: "no memory that CUDA knows".to_string() });
            }
            Err(error) => return Err(error),
        };
        if device != self.context.device {
            return Err(Error::WrongDevice { field, expected, got: format!("device {device}") });
        }
        let bytes = len as u64 * align;
        if bytes > got {
            return Err(Error::Allocation { field, expected: bytes, got });
        }
        Ok(())
    }
}

impl HostInputs {
    fn new(context: &Arc<Context>, plan: &Plan) -> Result<Self> {
        let shape = plan.spec.shape;
        let queries = plan.spec.max_batch * shape.num_queries;
        let (mask_h, mask_w) = shape.mask_grid.unwrap_or((0, 0));
        Ok(Self {
            stream: OwnStream::new(context)?,
            boxes: DeviceBuffer::new(context, queries * 16, "boxes")?,
            logits: DeviceBuffer::new(context, queries * shape.num_classes * 4, "logits")?,
            masks: match plan.mask_kernel {
                Some(_) => Some(DeviceBuffer::new(context, queries * mask_h * mask_w * 4, "masks")?),
                None => None,
            },
        })
    }
}

/// A request in flight. Dropping it is safe at any time: the work goes on, and its slot is free when it has ended.
#[derive(Debug)]
pub struct Ticket {
    slot: Option<Box<Slot>>,
    inner: Arc<Inner>,
}

impl Ticket {
    /// Whether the answer is there.
    ///
    /// Errors: what the driver says of the request's work.
    pub fn is_ready(&mut self) -> Result<bool> {
        self.slot().is_ready()
    }

    /// Waits for the answer. May be called again: the answer stays until the ticket is dropped.
    ///
    /// Errors: what the driver says; [`rfdetr_post_core::Error::Capacity`] if a mask did not fit its room.
    pub fn wait(&mut self) -> Result<Answer<'_>> {
        let Some(slot) = &mut self.slot else { unreachable!("a ticket has a slot until it is dropped") };
        let plan = &self.inner.plan;
        slot.wait()?;
        let mut answer = Answer { slot, plan };
        answer.fetch()?;
        answer.packed()?;
        Ok(answer)
    }

    /// An event behind the request on its stream (a `CUevent`), to chain on. It is recorded now, so it is also behind
    /// what else is on the stream by now. Lives as long as the ticket.
    pub fn event(&mut self) -> Result<*mut c_void> {
        Ok(self.slot().record_event()?.cast())
    }

    /// Where the answer lies on the device, for work behind the request on its stream.
    pub fn device_answer(&self) -> DeviceAnswer {
        let Some(slot) = &self.slot else { unreachable!("a ticket has a slot until it is dropped") };
        let (result_at, payload_at) = slot.addresses();
        let plan = &self.inner.plan;
        DeviceAnswer {
            headers_at: result_at + plan.result.headers,
            rows_at: result_at + plan.result.rows,
            run_lengths_at: result_at + plan.result.masks,
            payload_at,
        }
    }

    fn slot(&mut self) -> &mut Slot {
        match &mut self.slot {
            Some(slot) => slot,
            None => unreachable!("a ticket has a slot until it is dropped"),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.inner.ring().push_back(slot);
        }
    }
}

/// Addresses of an answer that the device can use; layouts are those of the plan (`docs/packed-format.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceAnswer {
    /// `[max_batch]` image headers.
    pub headers_at: u64,
    /// `[max_batch, max_detections]` rows: [`PackedRow`].
    pub rows_at: u64,
    /// `[max_batch, max_detections, mask_capacity]` run lengths.
    pub run_lengths_at: u64,
    /// Dense, bit-packed or grid masks; 0 if there are none.
    pub payload_at: u64,
}

/// An answer, borrowed from its ticket.
#[derive(Debug)]
pub struct Answer<'a> {
    slot: &'a mut Slot,
    plan: &'a Plan,
}

impl Answer<'_> {
    /// The packed result, in place: rows and run lengths without a copy. None for an empty batch.
    ///
    /// Errors: [`rfdetr_post_core::Error::Capacity`] if a mask did not fit its room.
    pub fn packed(&mut self) -> Result<Option<PackedResult<'_>>> {
        if self.slot.metas.is_empty() {
            return Ok(None);
        }
        let (bytes, metas) = self.slot.result(self.plan.result.bytes as usize);
        Ok(Some(PackedResult::new(self.plan, metas, bytes)?))
    }

    /// Copies a result that is on the device, as far as it was written: first the headers, which say how many rows there
    /// are, then the rows, which say where their run lengths are, then those.
    fn fetch(&mut self) -> Result<()> {
        let plan = self.plan;
        if self.slot.metas.is_empty() || !self.slot.has_result_on_device() {
            return Ok(());
        }
        self.slot.fetch(&[header_range(plan, self.slot.metas.len())])?;
        let (bytes, metas) = self.slot.result(plan.result.bytes as usize);
        let ranges = row_ranges(plan, &PackedResult::of_headers(plan, metas, bytes)?);
        self.slot.fetch(&ranges)?;
        let ranges = self.packed()?.map(|packed| run_length_ranges(plan, &packed)).unwrap_or_default();
        self.slot.fetch(&ranges)
    }

    /// Decodes everything; masks that stayed on the device are copied.
    pub fn detections(&mut self) -> Result<Detections> {
        let plan = self.plan;
        if self.slot.metas.is_empty() {
            return Ok(Detections::default());
        }
        let mut payload = Vec::new();
        if plan.payload_bytes > 0 {
            let ranges = self.packed()?.map(|packed| {
                let image = |image| (packed.size(image), packed.num_detections(image));
                payload_ranges(plan, (0..packed.num_images()).map(image))
            });
            let ranges = ranges.unwrap_or_default();
            payload.resize(ranges.iter().map(|range| range.1).max().unwrap_or(0), 0);
            self.slot.read_payload(&ranges, &mut payload)?;
        }
        match self.packed()? {
            Some(packed) => Ok(packed.decode(&payload)?),
            None => Ok(Detections::default()),
        }
    }
}

/// The part of the result that holds headers of `batch` images.
fn header_range(plan: &Plan, batch: usize) -> (usize, usize) {
    let headers = plan.result.headers as usize;
    (headers, headers + batch * size_of::<ImageHeader>())
}

/// The parts of the result that hold rows. Needs the headers.
fn row_ranges(plan: &Plan, packed: &PackedResult<'_>) -> Vec<(usize, usize)> {
    let row = size_of::<PackedRow>();
    let of_image = |image| {
        let start = plan.result.rows as usize + image * plan.max_detections as usize * row;
        let end = start + packed.num_detections(image) as usize * row;
        (end > start).then_some((start, end))
    };
    (0..packed.num_images()).filter_map(of_image).collect()
}

/// The parts of the result that hold run lengths. Needs headers and rows.
fn run_length_ranges(plan: &Plan, packed: &PackedResult<'_>) -> Vec<(usize, usize)> {
    let element = match plan.spec.options.mask_format {
        MaskFormat::Rle => 1,
        MaskFormat::Counts => 4,
        _ => return Vec::new(),
    };
    let image_len = plan.mask_capacity as usize * plan.max_detections as usize;
    let mut ranges = Vec::new();
    for image in 0..packed.num_images() {
        for idx in 0..packed.num_detections(image) as usize {
            let row = packed.row(image, idx);
            let start = plan.result.masks as usize + (image * image_len + row.mask_offset as usize) * element;
            let end = start + row.mask_len as usize * element;
            // A row that points elsewhere is damaged; decoding says so.
            if row.mask_len > 0 && end as u64 <= plan.result.bytes {
                ranges.push((start, end));
            }
        }
    }
    ranges
}

/// The parts of the payload that were written, for images of these sizes and numbers of detections: every mask, without
/// the bytes between its end and the next multiple of 16. One part where masks lie without a gap.
fn payload_ranges(plan: &Plan, images: impl Iterator<Item = (Size, u32)>) -> Vec<(usize, usize)> {
    let (mask_h, mask_w) = plan.spec.shape.mask_grid.unwrap_or((0, 0));
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for (image, (size, num_detections)) in images.enumerate() {
        let bytes = match plan.spec.options.mask_format {
            MaskFormat::Dense => size.area() as usize,
            MaskFormat::BitPacked => size.width.div_ceil(32) as usize * 4 * size.height as usize,
            _ => mask_h * mask_w * 4,
        };
        let first = image * plan.payload_image_bytes as usize;
        for start in (0..num_detections as usize).map(|idx| first + idx * bytes.next_multiple_of(16)) {
            match ranges.last_mut() {
                Some((_, end)) if *end == start => *end = start + bytes,
                _ => ranges.push((start, start + bytes)),
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use rfdetr_post_core::{Options, request::ModelShape};

    fn plan(mask_format: MaskFormat, mask_grid: (usize, usize)) -> Plan {
        let shape = ModelShape { num_queries: 10, num_classes: 3, mask_grid: Some(mask_grid) };
        let options = Options { mask_format, ..Options::default() };
        let spec = PlanSpec { shape, max_batch: 3, max_image: Size::new(50, 40), options, mask_capacity: None };
        Plan::new(spec, DeviceLimits::new(4)).unwrap()
    }

    /// Only what was written is copied: reading the gaps is reading uninitialized memory.
    #[test]
    fn copies_leave_out_the_gaps_between_masks() {
        let dense = plan(MaskFormat::Dense, (6, 9));
        let second = dense.payload_image_bytes as usize;
        let ranges = |plan: &Plan, images: &[(Size, u32)]| payload_ranges(plan, images.iter().copied());
        // 7 x 3 pixels: 21 bytes, 11 of a gap.
        let got = ranges(&dense, &[(Size::new(7, 3), 2), (Size::new(50, 40), 0), (Size::new(5, 5), 1)]);
        assert_eq!(got, [(0, 21), (32, 53), (2 * second, 2 * second + 25)]);
        // 16 x 3: no gap, one copy.
        let got = ranges(&dense, &[(Size::new(16, 3), 3), (Size::new(7, 3), 1)]);
        assert_eq!(got, [(0, 144), (second, second + 21)]);
        // An image that fills its room up to the next one's.
        assert_eq!(second, 10 * 2000);
        let got = ranges(&dense, &[(Size::new(50, 40), 10), (Size::new(50, 40), 2)]);
        assert_eq!(got, [(0, 12 * 2000)]);
        // 33 columns are 2 words a row: 24 bytes of 32.
        let bits = plan(MaskFormat::BitPacked, (6, 9));
        assert_eq!(ranges(&bits, &[(Size::new(33, 3), 2)]), [(0, 24), (32, 56)]);
        // The grid is that of the model, whatever the image: 54 floats of 56.
        let grid = plan(MaskFormat::GridLogits, (6, 9));
        assert_eq!(ranges(&grid, &[(Size::new(7, 3), 2)]), [(0, 216), (224, 440)]);
        assert_eq!(ranges(&grid, &[]), []);
    }

    /// A result of three images, of which each part is copied as soon as the parts before it say where it is.
    #[test]
    fn copies_of_a_result_leave_out_what_was_not_written() {
        for (mask_format, element) in [(MaskFormat::Rle, 1), (MaskFormat::Counts, 4), (MaskFormat::Dense, 0)] {
            let plan = plan(mask_format, (6, 9));
            let metas = [ImageMeta::stretch(Size::new(50, 40), Size::new(36, 24)).unwrap(); 3];
            let headers = plan.result.headers as usize;
            assert_eq!(headers, 64 * plan.num_flags(3) as usize, "headers lie behind the flags");
            assert_eq!(header_range(&plan, 3), (headers, headers + 96));
            assert_eq!(header_range(&plan, 1), (headers, headers + 32));

            // What the request before has left: masks that did not fit.
            let mut bytes = vec![0xff; plan.result.bytes as usize];
            let put = |bytes: &mut [u8], at: usize, record: &[u8]| {
                bytes[at..at + record.len()].copy_from_slice(record);
            };
            let num_detections = [2u32, 0, 1];
            for (image, num_detections) in num_detections.into_iter().enumerate() {
                let header = ImageHeader { num_detections, ..Default::default() };
                put(&mut bytes, headers + 32 * image, bytemuck::bytes_of(&header));
            }
            let rows = plan.result.rows as usize;
            let packed = PackedResult::of_headers(&plan, &metas, &bytes).unwrap();
            assert_eq!(row_ranges(&plan, &packed), [(rows, rows + 128), (rows + 64 * 20, rows + 64 * 21)]);
            let capacity = plan.mask_capacity;
            for (image, idx, mask_len) in [(0, 0, 7), (0, 1, 0), (2, 0, 3)] {
                let row = PackedRow { mask_len, ..Default::default() };
                put(&mut bytes, rows + 64 * (10 * image + idx), bytemuck::bytes_of(&row));
            }
            let packed = PackedResult::new(&plan, &metas, &bytes).unwrap();
            let masks = plan.result.masks as usize;
            let third = masks + 2 * 10 * capacity as usize * element;
            let expected = [(masks, masks + 7 * element), (third, third + 3 * element)];
            let expected = if element > 0 { &expected[..] } else { &[] };
            assert_eq!(run_length_ranges(&plan, &packed), expected);
        }
    }
}

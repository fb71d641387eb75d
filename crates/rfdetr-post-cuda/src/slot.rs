//! A slot: the buffers and the graph of one request in flight.
//!
//! # Protocol
//!
//! A slot is in the ring (free) or owned by one ticket. While its work is in flight the device writes `result`; the host
//! reads its flags, and nothing else until all that the request sets say that they are. They are set to 0 before a launch
//! and to [`SEQUENCE`] by the kernels: each by one block, by a release store of system scope after everything that the block
//! stores of the result, and after which it touches nothing of the slot. So when all are seen the result is there and the
//! slot's buffers are free, though the last blocks may not have ended. (Dense and grid masks have one flag, of the block that
//! counted itself last.)
//!
//! Detections of one image are seen before their flag: the host also looks at the words of the answer, each of which says
//! whether it is there ([`ResultWatch`]). The ticket is done then, and may be dropped, but the slot is not free: the next launch
//! waits for the flag first, and so does who frees the buffers.

use std::{
    ffi::c_void,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use cudarc::driver::sys;
use rfdetr_post_core::{
    ImageMeta,
    packed::{INLINE_IMAGES, ImageRecord, MaskArgs, SelectArgs, shared},
    plan::{DeviceBuffers, DeviceInputs, Plan},
    watch::ResultWatch,
};

use crate::{
    LaunchMode, ResultPlace,
    driver::{Context, DeviceBuffer, Event, Launch, OwnStream, PinnedBuffer, check, cu},
    error::{Error, Result},
};

/// What the kernels write into the result's flags.
const SEQUENCE: u32 = 1;

/// The entries of the module that a plan needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Functions {
    pub select: sys::CUfunction,
    pub masks: Option<sys::CUfunction>,
    /// Whether the second kernel may begin before the first has ended.
    pub overlaps: bool,
}

// SAFETY: function handles may be used from any thread, as long as their module is loaded.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

/// Where the packed result is written.
#[derive(Debug)]
enum ResultBuffer {
    /// Pinned host memory: the kernel's stores go over the bus, and the host waits on its flags.
    Host(PinnedBuffer),
    /// Device memory, and the host's copy of it.
    Device(DeviceBuffer, Vec<u8>),
}

/// A captured pair of launches.
#[derive(Debug)]
struct Graph {
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
    select: sys::CUgraphNode,
    masks: Option<sys::CUgraphNode>,
    context: Arc<Context>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: both were created in `capture`; the slot waited for its work. There is nobody to tell of an error.
        let _ = self.context.with(|| unsafe {
            cu!(cuGraphExecDestroy(self.exec))?;
            cu!(cuGraphDestroy(self.graph))
        });
    }
}

/// The buffers and the graph of one request in flight.
#[derive(Debug)]
pub(crate) struct Slot {
    context: Arc<Context>,
    functions: Functions,
    work: DeviceBuffer,
    result: ResultBuffer,
    payload: Option<DeviceBuffer>,
    staged_records: Option<PinnedBuffer>,
    done: Event,
    graph: Option<Graph>,
    captured: Option<(SelectArgs, MaskArgs)>,
    /// The inputs of the captured arguments and of the records on the device, as long as these are of the slot's images.
    captured_inputs: Option<DeviceInputs>,
    stream: sys::CUstream,
    mode: LaunchMode,
    /// The answer was not seen yet. (The flags of one that was may be on their way.)
    in_flight: bool,
    /// What was seen of a result on the host.
    watch: ResultWatch,
    /// The images of the request.
    pub metas: Vec<ImageMeta>,
}

// SAFETY: the handles may be used from any thread, and a slot has one owner at a time.
unsafe impl Send for Slot {}

impl Slot {
    /// Allocates the buffers of `plan`, and uploads its column tables.
    pub fn new(
        context: &Arc<Context>,
        plan: &Plan,
        functions: Functions,
        place: ResultPlace,
        mode: LaunchMode,
    ) -> Result<Self> {
        let work = DeviceBuffer::new(context, plan.work.bytes as usize, "work")?;
        work.clear()?;
        work.write(plan.work.columns as usize, &plan.column_bytes())?;
        let result_len = plan.result.bytes as usize;
        let result = match place {
            ResultPlace::Host => ResultBuffer::Host(PinnedBuffer::new(context, result_len, "result")?),
            ResultPlace::Device => {
                let buffer = DeviceBuffer::new(context, result_len, "result")?;
                if plan.mask_kernel.is_none() {
                    // What rows say of masks is zero, and nobody writes it.
                    buffer.clear()?;
                }
                ResultBuffer::Device(buffer, vec![0; result_len])
            }
        };
        let payload = match plan.payload_bytes {
            0 => None,
            bytes => Some(DeviceBuffer::new(context, bytes as usize, "payload")?),
        };
        let staged_records = match plan.spec.max_batch {
            batch if batch > INLINE_IMAGES => {
                Some(PinnedBuffer::new(context, batch * size_of::<ImageRecord>(), "records")?)
            }
            _ => None,
        };
        Ok(Self {
            context: context.clone(),
            functions,
            work,
            result,
            payload,
            staged_records,
            done: Event::new(context)?,
            graph: None,
            captured: None,
            captured_inputs: None,
            stream: ptr::null_mut(),
            mode,
            in_flight: false,
            // Stream launches may be captured by the caller, and then repeated behind the watch's back.
            watch: ResultWatch::new(plan, mode == LaunchMode::Graph),
            metas: Vec::with_capacity(plan.spec.max_batch),
        })
    }

    /// Bytes of device memory.
    pub fn device_bytes(&self) -> u64 {
        let result = match &self.result {
            ResultBuffer::Host(_) => 0,
            ResultBuffer::Device(buffer, _) => buffer.len(),
        };
        (self.work.len() + result + self.payload.as_ref().map_or(0, DeviceBuffer::len)) as u64
    }

    fn buffers(&self) -> DeviceBuffers {
        DeviceBuffers {
            work_at: self.work.address(),
            result_at: match &self.result {
                ResultBuffer::Host(buffer) => buffer.device_address(),
                ResultBuffer::Device(buffer, _) => buffer.address(),
            },
            payload_at: self.payload.as_ref().map_or(0, DeviceBuffer::address),
        }
    }

    /// Addresses of result and payload on the device.
    pub fn addresses(&self) -> (u64, u64) {
        let buffers = self.buffers();
        (buffers.result_at, buffers.payload_at)
    }

    /// Launches a request, as soon as nothing of the one before is on its way. The slot must not be in flight.
    ///
    /// Errors: what the driver says.
    ///
    /// # Safety
    /// `inputs` stay alive and unchanged until the work has ended, and fit the plan and `metas`.
    pub unsafe fn launch(
        &mut self,
        plan: &Plan,
        inputs: &DeviceInputs,
        metas: &[ImageMeta],
        stream: sys::CUstream,
    ) -> Result<()> {
        debug_assert!(!self.in_flight, "a slot has one request at a time");
        self.wait_for_end()?;
        let is_same = self.metas == metas;
        if !is_same {
            self.metas.clear();
            self.metas.extend_from_slice(metas);
            self.captured_inputs = None;
        }
        self.stream = stream;
        self.in_flight = !metas.is_empty();
        if metas.is_empty() {
            return Ok(());
        }
        if let ResultBuffer::Host(buffer) = &self.result {
            let words = Words(buffer);
            self.watch.begin(plan, metas.len(), |idx| words.load(idx), |idx, value| words.store(idx, value));
        }
        let context = self.context.clone();
        context.with(|| {
            match self.mode {
                LaunchMode::Stream => {
                    let records = plan.records(metas);
                    self.upload_records(plan, &records, stream)?;
                    let (select, masks) = plan.args(inputs, &self.buffers(), &records, SEQUENCE);
                    let (first, second) = self.launches(plan, metas.len());
                    // SAFETY: the caller vouches for the inputs; the slot owns everything else.
                    unsafe {
                        first.on(stream, &select)?;
                        if let Some(second) = second {
                            second.on(stream, &masks)?;
                        }
                    }
                }
                LaunchMode::Graph => {
                    // The same buffers and images as in the request before: so are the arguments, and the records on the device.
                    if self.captured_inputs.take() != Some(*inputs) {
                        let records = plan.records(metas);
                        self.upload_records(plan, &records, stream)?;
                        let (select, masks) = plan.args(inputs, &self.buffers(), &records, SEQUENCE);
                        self.prepare_graph(plan, metas.len(), &select, &masks)?;
                    }
                    let exec = self.graph.as_ref().map_or(ptr::null_mut(), |graph| graph.exec);
                    // SAFETY: as above; the graph's arguments are the request's.
                    unsafe { cu!(cuGraphLaunch(exec, stream))? };
                    // Not before: after an error nothing is known of graph and records, which a stream that is captured has not copied.
                    self.captured_inputs = Some(*inputs);
                }
            }
            if matches!(self.result, ResultBuffer::Device(..)) {
                // SAFETY: the event is the slot's.
                unsafe { cu!(cuEventRecord(self.done.handle(), stream))? };
            }
            Ok(())
        })
    }

    /// Copies the records of the images to the device, if they are more than the arguments have room for.
    fn upload_records(&self, plan: &Plan, records: &[ImageRecord], stream: sys::CUstream) -> Result<()> {
        let Some(staged) = self.staged_records.as_ref().filter(|_| records.len() > INLINE_IMAGES) else {
            return Ok(());
        };
        let bytes: &[u8] = bytemuck::cast_slice(records);
        let address = self.work.address() + plan.work.records;
        // SAFETY: the plan sized both for `max_batch` records; the last copy from here ended with the last request.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), staged.host(), bytes.len().min(staged.len()));
            cu!(cuMemcpyHtoDAsync_v2(address, staged.host().cast::<c_void>(), bytes.len(), stream))
        }
    }

    fn launches(&self, plan: &Plan, batch: usize) -> (Launch, Option<Launch>) {
        let first = Launch {
            function: self.functions.select,
            grid: plan.select_grid(batch),
            block: plan.limits.select_threads,
            shared_bytes: shared::select::BYTES,
            overlaps: false,
        };
        let second = self.functions.masks.map(|function| Launch {
            function,
            grid: plan.mask_grid,
            block: plan.mask_threads,
            shared_bytes: plan.mask_shared_bytes,
            overlaps: self.functions.overlaps,
        });
        (first, second)
    }

    /// Makes sure that the slot's graph has these arguments. Captured once; later only what differs is set.
    fn prepare_graph(&mut self, plan: &Plan, batch: usize, select: &SelectArgs, masks: &MaskArgs) -> Result<()> {
        let (first, second) = self.launches(plan, batch);
        let Some(graph) = &self.graph else {
            self.graph = Some(capture(&self.context, &first, second.as_ref(), select, masks)?);
            self.captured = Some((*select, *masks));
            return Ok(());
        };
        if let Some((old_select, old_masks)) = &self.captured {
            // Compared as bytes: a NaN bound is equal to itself.
            if bytemuck::bytes_of(old_select) != bytemuck::bytes_of(select) {
                // SAFETY: the node launches this kernel, which takes this record.
                unsafe { set_node(graph, graph.select, &first, select)? };
            }
            if let (Some(node), Some(second)) = (graph.masks, &second)
                && bytemuck::bytes_of(old_masks) != bytemuck::bytes_of(masks)
            {
                // SAFETY: as above.
                unsafe { set_node(graph, node, second, masks)? };
            }
        }
        self.captured = Some((*select, *masks));
        Ok(())
    }

    /// Whether the answer is there.
    ///
    /// Errors: what the stream says.
    pub fn is_ready(&mut self) -> Result<bool> {
        if !self.in_flight {
            return Ok(true);
        }
        let is_there = match &self.result {
            ResultBuffer::Host(buffer) => self.watch.is_answered(SEQUENCE, |idx| Words(buffer).load(idx)),
            ResultBuffer::Device(..) => {
                let handle = self.done.handle();
                // SAFETY: the event was recorded by the launch.
                let status = self.context.with(|| Ok(unsafe { sys::cuEventQuery(handle) }))?;
                if status != sys::CUresult::CUDA_ERROR_NOT_READY {
                    check("cuEventQuery", status)?;
                }
                status == sys::CUresult::CUDA_SUCCESS
            }
        };
        self.in_flight = !is_there;
        Ok(is_there)
    }

    /// Waits until the answer is there.
    ///
    /// Errors: what the stream says.
    pub fn wait(&mut self) -> Result<()> {
        let mut spins = 0u32;
        while !self.is_ready()? {
            spins += 1;
            if spins.is_multiple_of(4096) {
                self.check_stream()?;
            }
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Whether nothing of the last request, whose answer was seen, is on its way any more.
    fn has_ended(&mut self) -> bool {
        match &self.result {
            ResultBuffer::Host(buffer) => self.watch.has_ended(SEQUENCE, |idx| Words(buffer).load(idx)),
            ResultBuffer::Device(..) => true,
        }
    }

    /// Waits until nothing of the last request, whose answer was seen, is on its way any more: about a round trip to the device.
    ///
    /// Errors: what the context says.
    fn wait_for_end(&mut self) -> Result<()> {
        let mut spins = 0u32;
        while !self.has_ended() {
            spins += 1;
            if spins.is_multiple_of(4096) {
                // The ticket is done, so its stream may be gone. In a broken context any event is an error, also an idle one.
                let handle = self.done.handle();
                // SAFETY: the event is the slot's.
                let status = self.context.with(|| Ok(unsafe { sys::cuEventQuery(handle) }))?;
                if status != sys::CUresult::CUDA_ERROR_NOT_READY {
                    check("cuEventQuery", status)?;
                }
            }
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// The host's bytes of the packed result, `len` of them, and the images of the request, whose answer is there. A result that
    /// is on the device is here as far as [`fetch`](Self::fetch) has copied it.
    pub fn result(&self, len: usize) -> (&[u8], &[ImageMeta]) {
        debug_assert!(!self.in_flight, "the device may still write");
        let bytes = match &self.result {
            // SAFETY: every word that the device writes of the answer was seen, or a flag behind it, by loads of acquire order, and
            // is written once until the next launch, which needs the slot. A flag that may be on its way is not read here.
            ResultBuffer::Host(buffer) => unsafe { std::slice::from_raw_parts(buffer.host(), len) },
            ResultBuffer::Device(_, copy) => copy,
        };
        (bytes, &self.metas)
    }

    /// Copies these parts of a result that is on the device; nothing for one on the host. Waits.
    pub fn fetch(&mut self, ranges: &[(usize, usize)]) -> Result<()> {
        match &mut self.result {
            ResultBuffer::Host(_) => Ok(()),
            ResultBuffer::Device(buffer, copy) => {
                ranges.iter().try_for_each(|&(start, end)| buffer.read(start, &mut copy[start..end]))
            }
        }
    }

    /// Whether the result is on the device.
    pub fn has_result_on_device(&self) -> bool {
        matches!(self.result, ResultBuffer::Device(..))
    }

    /// An error if the stream has one, or if it is idle and the result still missing.
    fn check_stream(&mut self) -> Result<()> {
        let stream = self.stream;
        // SAFETY: the caller keeps the stream alive while a ticket waits.
        let status = self.context.with(|| Ok(unsafe { sys::cuStreamQuery(stream) }))?;
        if status == sys::CUresult::CUDA_ERROR_NOT_READY {
            return Ok(());
        }
        check("cuStreamQuery", status)?;
        if self.is_ready()? {
            return Ok(());
        }
        Err(Error::Driver {
            call: "rfdetr-post kernels",
            code: 0,
            name: "ended without a result".to_string(),
            is_sticky: false,
        })
    }

    /// Copies the payload to the host; waits.
    pub fn read_payload(&self, ranges: &[(usize, usize)], payload: &mut [u8]) -> Result<()> {
        let Some(buffer) = &self.payload else { return Ok(()) };
        ranges.iter().try_for_each(|&(start, end)| buffer.read(start, &mut payload[start..end]))
    }

    /// Records an event behind everything that is on the slot's stream now.
    pub fn record_event(&self) -> Result<sys::CUevent> {
        // SAFETY: the event is the slot's; the caller keeps the stream alive.
        self.context.with(|| unsafe { cu!(cuEventRecord(self.done.handle(), self.stream)) })?;
        Ok(self.done.handle())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.in_flight || !self.has_ended() {
            // The stream may be gone by now, so the whole context is waited for. There is nobody to tell of an error.
            // SAFETY: the context is alive.
            let _ = self.context.with(|| unsafe { cu!(cuCtxSynchronize()) });
        }
    }
}

/// The words of a result that the device may be writing.
struct Words<'a>(&'a PinnedBuffer);

impl Words<'_> {
    fn word(&self, idx: u32) -> &AtomicU32 {
        let offset = 4 * idx as usize;
        debug_assert!(offset + 4 <= self.0.len(), "word {idx} is behind the result");
        // SAFETY: a word of the plan's result, for which the buffer was made, and it begins at a page; what the device may write
        // is accessed atomically only.
        unsafe { AtomicU32::from_ptr(self.0.host().add(offset).cast()) }
    }

    fn load(&self, idx: u32) -> u32 {
        self.word(idx).load(Ordering::Acquire)
    }

    fn store(&self, idx: u32, value: u32) {
        self.word(idx).store(value, Ordering::Release);
    }
}

/// Captures both launches into a graph.
fn capture(
    context: &Arc<Context>,
    first: &Launch,
    second: Option<&Launch>,
    select: &SelectArgs,
    masks: &MaskArgs,
) -> Result<Graph> {
    let stream = OwnStream::new(context)?;
    let (mut graph, mut exec) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: capture runs nothing; the stream is ours; the arguments are copied.
    unsafe {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        cu!(cuStreamBeginCapture_v2(stream.handle(), mode))?;
        let launched = first
            .on(stream.handle(), select)
            .and_then(|()| second.map_or(Ok(()), |second| second.on(stream.handle(), masks)));
        let ended = cu!(cuStreamEndCapture(stream.handle(), &mut graph));
        launched.and(ended)?;
        cu!(cuGraphInstantiateWithFlags(&mut exec, graph, 0))?;
    }
    let mut nodes = [ptr::null_mut(); 2];
    let mut count = nodes.len();
    // SAFETY: the graph has one node a launch, at most two.
    unsafe { cu!(cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count))? };
    let mut captured = Graph { graph, exec, select: nodes[0], masks: None, context: context.clone() };
    for &node in &nodes[..count] {
        // SAFETY: zeros are a valid value of this plain record; every node is a kernel's.
        let function = unsafe {
            let mut params: sys::CUDA_KERNEL_NODE_PARAMS = std::mem::zeroed();
            cu!(cuGraphKernelNodeGetParams_v2(node, &mut params))?;
            params.func
        };
        if function == first.function {
            captured.select = node;
        } else {
            captured.masks = Some(node);
        }
    }
    Ok(captured)
}

/// Sets arguments and dimensions of a node.
///
/// # Safety
/// The node launches `launch.function`, which takes `args`.
unsafe fn set_node<A: Copy>(graph: &Graph, node: sys::CUgraphNode, launch: &Launch, args: &A) -> Result<()> {
    let mut kernel_params = [ptr::from_ref(args).cast_mut().cast::<c_void>()];
    // SAFETY: zeros are a valid value of this plain record; the driver copies the arguments.
    unsafe {
        let mut params: sys::CUDA_KERNEL_NODE_PARAMS = std::mem::zeroed();
        params.func = launch.function;
        (params.gridDimX, params.gridDimY, params.gridDimZ) = (launch.grid, 1, 1);
        (params.blockDimX, params.blockDimY, params.blockDimZ) = (launch.block, 1, 1);
        params.sharedMemBytes = launch.shared_bytes;
        params.kernelParams = kernel_params.as_mut_ptr();
        cu!(cuGraphExecKernelNodeSetParams_v2(graph.exec, node, &params))
    }
}

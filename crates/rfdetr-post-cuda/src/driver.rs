//! The driver's calls, behind types that free what they own. All of this crate's `unsafe` is here and in `slot.rs`.
//!
//! # Safety
//!
//! Everything of a context (modules, memory, graphs) holds an [`Arc`] of it, so a context outlives them. Calls that need
//! a current context go through [`Context::with`], which pushes it and pops it again, so the caller's thread keeps its own.

use std::{
    ffi::{CStr, CString, c_void},
    mem::MaybeUninit,
    ptr,
    sync::{Arc, OnceLock},
};

use cudarc::driver::sys;
use rfdetr_post_core::plan::DeviceLimits;

use crate::{
    error::{Error, Result},
    image::{Code, KernelImage},
};

/// The oldest driver whose calls are used: CUDA 12.0 has `cuLaunchKernelEx` with programmatic launches in graphs from
/// 12.3 on; older ones are not tried.
const MIN_DRIVER: i32 = 12_030;

/// Turns a status into a result; `call` names the driver's function.
pub(crate) fn check(call: &'static str, status: sys::CUresult) -> Result<()> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = ptr::null();
    // SAFETY: writes a pointer to a static string, or null.
    let known = unsafe { sys::cuGetErrorName(status, &mut name) } == sys::CUresult::CUDA_SUCCESS && !name.is_null();
    let name = if known {
        // SAFETY: a static, null-terminated string of the driver's.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    } else {
        "unknown error".to_string()
    };
    let is_sticky = matches!(
        status,
        sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | sys::CUresult::CUDA_ERROR_LAUNCH_FAILED
            | sys::CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | sys::CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | sys::CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | sys::CUresult::CUDA_ERROR_INVALID_PC
            | sys::CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | sys::CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | sys::CUresult::CUDA_ERROR_ASSERT
            | sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
    );
    Err(Error::Driver { call, code: status as u32, name, is_sticky })
}

/// `check` of a driver call, its name included.
macro_rules! cu {
    ($name:ident($($arg:expr),* $(,)?)) => {
        check(stringify!($name), sys::$name($($arg),*))
    };
}
pub(crate) use cu;

/// Loads and initializes the driver, once a process.
pub(crate) fn init() -> Result<()> {
    static INIT: OnceLock<Result<()>> = OnceLock::new();
    INIT.get_or_init(|| {
        // SAFETY: loads libcuda, whose initializers are the vendor's.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoDriver);
        }
        let mut version = 0;
        // SAFETY: the first calls of any program; they exist since CUDA 2.
        let started = unsafe { sys::cuInit(0) };
        if started == sys::CUresult::CUDA_ERROR_NO_DEVICE {
            return Err(Error::NoDevice { ordinal: 0, count: 0 });
        }
        check("cuInit", started)?;
        // SAFETY: as above.
        unsafe { cu!(cuDriverGetVersion(&mut version))? };
        if version < MIN_DRIVER {
            return Err(Error::DriverTooOld { got: version, expected: MIN_DRIVER });
        }
        Ok(())
    })
    .clone()
}

/// Number of devices that the driver lists.
///
/// Errors: [`Error::NoDriver`], [`Error::DriverTooOld`]; [`Error::NoDevice`] where the driver starts without any.
pub fn device_count() -> Result<usize> {
    init()?;
    let mut count = 0;
    // SAFETY: the driver is initialized.
    unsafe { cu!(cuDeviceGetCount(&mut count))? };
    Ok(count as usize)
}

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Ordinal in the driver's list.
    pub ordinal: usize,
    /// The vendor's name.
    pub name: String,
    /// Compute capability.
    pub compute_capability: (i32, i32),
    /// Number of multiprocessors.
    pub num_multiprocessors: u32,
    /// Shared memory that a block can have, in bytes.
    pub max_shared_bytes: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// CUDA version of the driver, as 1000 x major + 10 x minor.
    pub driver_version: i32,
}

impl DeviceInfo {
    /// What a plan must know of the device, with the measured choice of block and grid sizes.
    pub fn limits(&self) -> DeviceLimits {
        DeviceLimits { max_shared_bytes: self.max_shared_bytes, ..DeviceLimits::new(self.num_multiprocessors) }
    }
}

/// Asks the driver for a device.
///
/// Errors: [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`].
pub fn device_info(ordinal: usize) -> Result<DeviceInfo> {
    let count = device_count()?;
    if ordinal >= count {
        return Err(Error::NoDevice { ordinal, count });
    }
    let mut device = 0;
    let mut name = [0; 256];
    let (mut memory_bytes, mut driver_version) = (0, 0);
    // SAFETY: the ordinal exists; `name` is as long as said.
    unsafe {
        cu!(cuDeviceGet(&mut device, ordinal as i32))?;
        cu!(cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device))?;
        cu!(cuDeviceTotalMem_v2(&mut memory_bytes, device))?;
        cu!(cuDriverGetVersion(&mut driver_version))?;
    }
    use sys::CUdevice_attribute::*;
    let attribute = |attribute| -> Result<i32> {
        let mut value = 0;
        // SAFETY: the device exists.
        unsafe { cu!(cuDeviceGetAttribute(&mut value, attribute, device))? };
        Ok(value)
    };
    // SAFETY: the driver ends the name with a null.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    Ok(DeviceInfo {
        ordinal,
        name,
        compute_capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        max_shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as u32,
        memory_bytes: memory_bytes as u64,
        driver_version,
    })
}

/// A context: a device's primary one, or the caller's.
#[derive(Debug)]
pub(crate) struct Context {
    handle: sys::CUcontext,
    /// The device.
    pub device: sys::CUdevice,
    is_primary: bool,
}

// SAFETY: the driver's context handles may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above; `with` makes the context current for the calling thread only.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a device: the one that the runtime API and torch use.
    pub fn primary(ordinal: usize) -> Result<Arc<Self>> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        let (mut device, mut handle) = (0, ptr::null_mut());
        // SAFETY: the ordinal exists.
        unsafe {
            cu!(cuDeviceGet(&mut device, ordinal as i32))?;
            cu!(cuDevicePrimaryCtxRetain(&mut handle, device))?;
        }
        Ok(Arc::new(Self { handle, device, is_primary: true }))
    }

    /// The context that is current on this thread. The caller keeps it alive.
    pub fn current() -> Result<Arc<Self>> {
        init()?;
        let (mut device, mut handle) = (0, ptr::null_mut());
        // SAFETY: the driver is initialized; a device can be asked for once a context is known to be current.
        unsafe {
            cu!(cuCtxGetCurrent(&mut handle))?;
            if handle.is_null() {
                return Err(Error::NoContext);
            }
            cu!(cuCtxGetDevice(&mut device))?;
        }
        Ok(Arc::new(Self { handle, device, is_primary: false }))
    }

    /// Runs `f` with this context current.
    pub fn with<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut current = ptr::null_mut();
        // SAFETY: asks only.
        unsafe { cu!(cuCtxGetCurrent(&mut current))? };
        if current == self.handle {
            return f();
        }
        // SAFETY: the context is alive; what is pushed is popped, also on an error.
        unsafe { cu!(cuCtxPushCurrent_v2(self.handle))? };
        let result = f();
        let mut popped = ptr::null_mut();
        // SAFETY: pushed above.
        unsafe { cu!(cuCtxPopCurrent_v2(&mut popped))? };
        result
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.is_primary {
            // SAFETY: retained in `primary`. There is nobody to tell of an error.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}

/// A loaded module.
#[derive(Debug)]
pub(crate) struct Module {
    handle: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: module handles may be used from any thread; every call makes the context current.
unsafe impl Send for Module {}
// SAFETY: as above; nothing is changed after loading.
unsafe impl Sync for Module {}

impl Module {
    /// Loads machine code, or compiles PTX for the device.
    pub fn load(context: &Arc<Context>, image: KernelImage) -> Result<Self> {
        let mut handle = ptr::null_mut();
        match image.code() {
            Some(Code::Cubin(bytes)) => {
                // SAFETY: a cubin says itself where it ends: it is an ELF file, whole and aligned.
                context.with(|| unsafe { cu!(cuModuleLoadData(&mut handle, bytes.as_ptr().cast())) })?;
            }
            Some(Code::Ptx(text)) => {
                let text = CString::new(text).map_err(|_| Error::Config {
                    field: "ptx",
                    expected: "text without null bytes",
                    got: "a null byte".to_string(),
                })?;
                // SAFETY: the image is PTX, ended with a null.
                context.with(|| unsafe { cu!(cuModuleLoadData(&mut handle, text.as_ptr().cast())) })?;
            }
            None => {
                let expected = "an image that this crate has";
                return Err(Error::Config { field: "kernels", expected, got: image.to_string() });
            }
        }
        Ok(Self { handle, context: context.clone() })
    }

    /// An entry, allowed to use `shared_bytes` of dynamic shared memory: as much as the device has, because plans that
    /// share the module need different amounts.
    pub fn function(&self, name: &str, shared_bytes: u32) -> Result<sys::CUfunction> {
        let mut function = ptr::null_mut();
        let name = CString::new(name).unwrap_or_default();
        self.context.with(|| {
            // SAFETY: the module is loaded; the name ends with a null.
            unsafe {
                cu!(cuModuleGetFunction(&mut function, self.handle, name.as_ptr()))?;
                let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                cu!(cuFuncSetAttribute(function, attribute, shared_bytes as i32))?;
            }
            Ok(function)
        })
    }
}

/// Clusters of `cluster_blocks` blocks that run at a time, each block with so many threads and so much shared memory; the function
/// may use that much.
pub(crate) fn max_active_clusters(
    context: &Context,
    function: sys::CUfunction,
    cluster_blocks: u32,
    block: u32,
    shared_bytes: u32,
) -> Result<u32> {
    let mut attribute = MaybeUninit::<sys::CUlaunchAttribute>::zeroed();
    let attribute = attribute.as_mut_ptr();
    // SAFETY: an attribute is plain data; zeros are a valid one, and the fields set belong together.
    unsafe {
        (*attribute).id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        (*attribute).value.clusterDim.x = cluster_blocks;
        (*attribute).value.clusterDim.y = 1;
        (*attribute).value.clusterDim.z = 1;
    }
    let config = sys::CUlaunchConfig {
        gridDimX: cluster_blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes,
        hStream: ptr::null_mut(),
        attrs: attribute,
        numAttrs: 1,
    };
    let mut count = 0;
    // SAFETY: the function's module is loaded; nothing is launched.
    context.with(|| unsafe { cu!(cuOccupancyMaxActiveClusters(&mut count, function, &config)) })?;
    Ok(count.max(0) as u32)
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: nothing of the module runs any more: slots wait for their work before they drop it.
        let _ = self.context.with(|| unsafe { cu!(cuModuleUnload(self.handle)) });
    }
}

/// Device memory.
#[derive(Debug)]
pub(crate) struct DeviceBuffer {
    address: u64,
    len: usize,
    context: Arc<Context>,
}

impl DeviceBuffer {
    /// Allocates `len` bytes (at least one).
    pub fn new(context: &Arc<Context>, len: usize, what: &'static str) -> Result<Self> {
        let mut address = 0;
        context
            // SAFETY: the context is current.
            .with(|| unsafe { cu!(cuMemAlloc_v2(&mut address, len.max(1))) })
            .map_err(|error| out_of_memory(error, what, len))?;
        Ok(Self { address, len, context: context.clone() })
    }

    /// Address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes to the device and waits.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        assert!(offset + bytes.len() <= self.len, "the copy stays inside the buffer");
        // A copy from pageable memory returns when the driver has taken the bytes over, which may be before the device has
        // them; and the streams of requests do not wait for the default stream.
        // SAFETY: inside the buffer, checked above.
        self.context.with(|| unsafe {
            cu!(cuMemcpyHtoD_v2(self.address + offset as u64, bytes.as_ptr().cast(), bytes.len()))?;
            cu!(cuStreamSynchronize(ptr::null_mut()))
        })
    }

    /// Copies bytes to the start of the buffer, behind what is on `stream`. They may be changed or freed afterwards.
    pub fn write_on(&self, stream: &OwnStream, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= self.len, "the copy stays inside the buffer");
        // SAFETY: inside the buffer, checked above; the driver takes pageable memory over before it returns.
        self.context.with(|| unsafe {
            cu!(cuMemcpyHtoDAsync_v2(self.address, bytes.as_ptr().cast(), bytes.len(), stream.handle()))
        })
    }

    /// Copies bytes from the device and waits.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        assert!(offset + bytes.len() <= self.len, "the copy stays inside the buffer");
        // SAFETY: inside the buffer, checked above.
        self.context.with(|| unsafe {
            cu!(cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), self.address + offset as u64, bytes.len()))
        })
    }

    /// Fills the buffer with zeros and waits.
    pub fn clear(&self) -> Result<()> {
        // SAFETY: the whole buffer, on the default stream, which is waited for.
        self.context.with(|| unsafe {
            cu!(cuMemsetD8_v2(self.address, 0, self.len.max(1)))?;
            cu!(cuStreamSynchronize(ptr::null_mut()))
        })
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`. There is nobody to tell of an error.
        let _ = self.context.with(|| unsafe { cu!(cuMemFree_v2(self.address)) });
    }
}

/// Pinned host memory that the device can write.
#[derive(Debug)]
pub(crate) struct PinnedBuffer {
    host: *mut u8,
    device_address: u64,
    len: usize,
    context: Arc<Context>,
}

// SAFETY: plain memory, owned; access is by the slot's protocol (see `slot.rs`).
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates `len` bytes of zeros (at least one).
    pub fn new(context: &Arc<Context>, len: usize, what: &'static str) -> Result<Self> {
        let mut host: *mut c_void = ptr::null_mut();
        let mut device_address = 0;
        context
            .with(|| {
                // SAFETY: the context is current; the memory is as long as said.
                unsafe {
                    let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
                    cu!(cuMemHostAlloc(&mut host, len.max(1), flags))?;
                    ptr::write_bytes(host.cast::<u8>(), 0, len.max(1));
                    cu!(cuMemHostGetDevicePointer_v2(&mut device_address, host, 0))
                }
            })
            .map_err(|error| out_of_memory(error, what, len))?;
        Ok(Self { host: host.cast(), device_address, len, context: context.clone() })
    }

    /// Address on the host.
    pub fn host(&self) -> *mut u8 {
        self.host
    }

    /// Address on the device.
    pub fn device_address(&self) -> u64 {
        self.device_address
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`. There is nobody to tell of an error.
        let _ = self.context.with(|| unsafe { cu!(cuMemFreeHost(self.host.cast())) });
    }
}

fn out_of_memory(error: Error, what: &'static str, len: usize) -> Error {
    match error {
        Error::Driver { code, .. } if code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32 => {
            Error::OutOfMemory { what, bytes: len as u64 }
        }
        error => error,
    }
}

/// A stream of ours, for the calls that take host data.
#[derive(Debug)]
pub(crate) struct OwnStream {
    handle: sys::CUstream,
    context: Arc<Context>,
}

// SAFETY: stream handles may be used from any thread.
unsafe impl Send for OwnStream {}
// SAFETY: as above.
unsafe impl Sync for OwnStream {}

impl OwnStream {
    /// Creates a stream that does not wait for the default stream.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        let mut handle = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current.
        context.with(|| unsafe { cu!(cuStreamCreate(&mut handle, flags)) })?;
        Ok(Self { handle, context: context.clone() })
    }

    /// The handle.
    pub fn handle(&self) -> sys::CUstream {
        self.handle
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        // SAFETY: created in `new`. There is nobody to tell of an error.
        let _ = self.context.with(|| unsafe { cu!(cuStreamDestroy_v2(self.handle)) });
    }
}

/// An event without timing.
#[derive(Debug)]
pub(crate) struct Event {
    handle: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: event handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Creates an event.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        let mut handle = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current.
        context.with(|| unsafe { cu!(cuEventCreate(&mut handle, flags)) })?;
        Ok(Self { handle, context: context.clone() })
    }

    /// The handle.
    pub fn handle(&self) -> sys::CUevent {
        self.handle
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created in `new`. There is nobody to tell of an error.
        let _ = self.context.with(|| unsafe { cu!(cuEventDestroy_v2(self.handle)) });
    }
}

/// What the driver knows of a device address: the device, and the bytes from it to the end of its allocation.
pub(crate) fn allocation(address: u64) -> Result<(i32, u64)> {
    use sys::CUpointer_attribute::*;
    let (mut device, mut start, mut size) = (0i32, 0u64, 0usize);
    // SAFETY: each value has the type that the attribute writes.
    unsafe {
        let attribute = |value: *mut c_void, attribute| cu!(cuPointerGetAttribute(value, attribute, address));
        attribute(ptr::from_mut(&mut device).cast(), CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)?;
        attribute(ptr::from_mut(&mut start).cast(), CU_POINTER_ATTRIBUTE_RANGE_START_ADDR)?;
        attribute(ptr::from_mut(&mut size).cast(), CU_POINTER_ATTRIBUTE_RANGE_SIZE)?;
    }
    Ok((device, (start + size as u64).saturating_sub(address)))
}

/// One kernel launch.
pub(crate) struct Launch {
    pub function: sys::CUfunction,
    pub grid: u32,
    pub block: u32,
    pub shared_bytes: u32,
    /// May begin before the launch before it has ended (programmatic dependent launch).
    pub overlaps: bool,
}

impl Launch {
    /// Launches on a stream.
    ///
    /// # Safety
    /// `args` is the record that the kernel takes, and everything it points to stays alive until the kernel has ended;
    /// the context is current.
    pub unsafe fn on<A: Copy>(&self, stream: sys::CUstream, args: &A) -> Result<()> {
        let mut attribute = MaybeUninit::<sys::CUlaunchAttribute>::zeroed();
        let attribute = attribute.as_mut_ptr();
        // SAFETY: an attribute is plain data; zeros are a valid one, and the fields set belong together.
        unsafe {
            (*attribute).id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            (*attribute).value.programmaticStreamSerializationAllowed = 1;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: self.grid,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: self.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: stream,
            attrs: attribute,
            numAttrs: u32::from(self.overlaps),
        };
        let mut params = [ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the caller vouches for the arguments; the driver copies them before it returns.
        unsafe { cu!(cuLaunchKernelEx(&config, self.function, params.as_mut_ptr(), ptr::null_mut())) }
    }
}

//! The few driver calls that the bench makes itself.

use std::{
    ffi::c_void,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cudarc::driver::sys;

use super::Result;
use crate::Stream;

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
        // The copy may return before the device has the bytes, and other streams do not wait for the default one.
        // SAFETY: inside the buffer, checked above.
        unsafe {
            cu!(cuMemcpyHtoD_v2(self.address, bytes.as_ptr().cast(), bytes.len()))?;
            cu!(cuStreamSynchronize(ptr::null_mut()))
        }
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

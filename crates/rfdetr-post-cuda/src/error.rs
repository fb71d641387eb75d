//! What can go wrong on the way to a GPU and back.

/// The result of everything fallible in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A request that cannot be served, or a driver that says no.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bad input, or an answer that did not fit its plan.
    #[error(transparent)]
    Request(#[from] rfdetr_post_core::Error),
    /// No NVIDIA driver: libcuda cannot be loaded. Install the driver, or use the CPU.
    #[error("no NVIDIA driver: libcuda cannot be loaded; install the driver, or use the CPU back end")]
    NoDriver,
    /// The driver is older than the calls that this crate makes. Update it, or use the CPU.
    #[error(
        "the NVIDIA driver supports CUDA {got}, expected at least {expected}; update the driver, or use the CPU back end"
    )]
    DriverTooOld {
        /// CUDA version of the driver, as 1000 x major + 10 x minor.
        got: i32,
        /// The oldest that works.
        expected: i32,
    },
    /// No such device.
    #[error("device {ordinal} does not exist: the driver lists {count}")]
    NoDevice {
        /// The ordinal that was asked for.
        ordinal: usize,
        /// Devices that the driver lists.
        count: usize,
    },
    /// The device is older than the kernels: sm_75 (Turing) is the oldest.
    #[error("device {ordinal} has compute capability {major}.{minor}, expected at least 7.5; use the CPU back end")]
    ComputeCapability {
        /// The device.
        ordinal: usize,
        /// Major number.
        major: i32,
        /// Minor number.
        minor: i32,
    },
    /// No context is current on the calling thread, and none was to be created.
    #[error("no CUDA context is current on this thread; make one current, or choose a device by ordinal")]
    NoContext,
    /// A buffer does not fit into the device's (or the host's pinned) memory.
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// The buffer.
        what: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// A device tensor's address is null or not a multiple of its element.
    #[error("`{field}` has address {address:#x}, expected a multiple of {align} that is not null")]
    Address {
        /// The tensor.
        field: &'static str,
        /// The address.
        address: u64,
        /// Size of an element.
        align: u64,
    },
    /// A tensor of another library has an element type that the kernels do not read. Convert it.
    #[error("`{field}` has elements of {got}, expected f32, f16 or bf16")]
    ElementType {
        /// The tensor.
        field: &'static str,
        /// The type that came.
        got: String,
    },
    /// A tensor of another library is not row-major and contiguous. Make it so, with torch by `contiguous()`.
    #[error("`{field}` has strides {got:?}, expected {expected:?}: row-major and contiguous")]
    Strides {
        /// The tensor.
        field: &'static str,
        /// The strides of a contiguous tensor of this shape, in elements.
        expected: Vec<i64>,
        /// The strides that came, in elements.
        got: Vec<i64>,
    },
    /// The description of a DLPack tensor contradicts itself: a fault of the library that made it.
    #[error("`{field}` is no valid DLPack tensor: {reason}")]
    Dlpack {
        /// The tensor.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A device tensor reaches past its allocation.
    #[error("`{field}` needs {expected} bytes, its allocation has {got} left")]
    Allocation {
        /// The tensor.
        field: &'static str,
        /// Bytes that the shape needs.
        expected: u64,
        /// Bytes from the address to the end of the allocation.
        got: u64,
    },
    /// A device tensor lies on another device, or is no memory that CUDA knows.
    #[error("`{field}` lies on {got}, expected device {expected}")]
    WrongDevice {
        /// The tensor.
        field: &'static str,
        /// The postprocessor's device.
        expected: usize,
        /// What the driver says of the address.
        got: String,
    },
    /// Every slot is in flight. Wait for a ticket, or plan more slots.
    #[error("all {slots} slots are in flight; wait for a ticket, or configure more slots")]
    Busy {
        /// Number of slots.
        slots: usize,
    },
    /// A configuration that cannot be.
    #[error("`{field}` is {got}, expected {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is expected.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// The driver refused a call. After an illegal access in any kernel of the process the context stays broken
    /// (a "sticky" error): end the process.
    #[error("{call} failed: {name} ({code}){}", if *.is_sticky { "; the context is broken, restart the process" } else { "" })]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// Its code.
        code: u32,
        /// The code's name.
        name: String,
        /// Whether the context is broken for good.
        is_sticky: bool,
    },
}

//! A SIMT machine on the host: runs the real kernel bodies under a seeded, hostile schedule, and checks every access.
//!
//! A newcomer's view: each GPU lane is a coroutine with a stack of its own. A lane runs until it meets a barrier, a vote, a
//! shuffle, an atomic, a fence or a read of a flag; there the scheduler may run any other lane of any resident block
//! first, and it chooses badly on purpose. Meanwhile a shadow of memory remembers who touched what, and the first
//! thing that could go wrong on some device, under some schedule, ends the run with a [`Fault`] that names both places.
//!
//! ```ignore
//! let mut device = Device::new(seed);
//! let values = device.arena.upload(bytes);
//! device.run(&[add_one::launch(AddOneArgs { values, len }, 2, 64, 0)], Options::default())?;
//! let bytes = device.arena.download(values, len);
//! ```
//!
//! # What it catches
//!
//! Divergent barriers (a lane elsewhere, or ended); votes, shuffles, reductions and `sync_warp` whose lanes will not come;
//! shuffles from outside the mask; accesses out of bounds or misaligned; reads of bytes nobody wrote; data races in
//! shared and global memory, also between blocks of a cluster and between grids joined by programmatic dependent launch;
//! remote accesses to a block that the cluster has not, that may not have begun, or that may have ended; `load_nc` of memory
//! that is written meanwhile; deadlocks and endless loops; panics.
//!
//! Two accesses race when one is a plain write or one is plain and the other an atomic write, and no chain of barriers (of
//! the block or the cluster), `sync_warp`, release and acquire (or fence, relaxed write, relaxed read, fence), or ends of
//! grids orders them. This is found by logical clocks, so a race is reported even when the schedule happened to hide its
//! effect.
//!
//! # What it cannot see
//!
//! - A schedule it did not draw. Races do not depend on the draw, wrong answers from atomics' order do: run several seeds.
//! - Values that only a weak memory model allows. Execution is sequentially consistent; races are reported instead.
//! - The device's compiler and hardware: bank conflicts, register spills, approximate instructions
//!   ([`math::ex2_approx_ftz`](facade::math::ex2_approx_ftz)), instruction counts, PTX rules.
//! - Which barrier a lane of a loop is at: a barrier, vote or shuffle is named by its place in the source, so lanes in
//!   different rounds of one loop pair up. A helper that contains barriers is one place unless it is `#[track_caller]`.
//! - Atomics' scopes: block, device and system scope are all taken to reach far enough, and a shared-memory atomic between
//!   blocks cannot be written: remote accesses are plain. The host is no thread: what the kernel releases to it is seen
//!   when the run ends.
//! - Memory that a lane reaches without the facade (captured Rust variables in a test).
//! - Whether a device has room for a whole cluster at once, and clusters of more than 8 blocks, which not every device takes.
//! - More than 256 groups of unordered accesses to one word: the oldest is forgotten.
//! - Grids more than one apart under programmatic dependent launch: a launch begins only when the one before its
//!   predecessor has ended.
//! - `load_nc` is checked by the 4-byte word: narrower neighbors in one word count as one.
//! - Loops without any call of the facade.

mod clock;
mod engine;
pub mod facade;
mod fault;
mod memory;

pub use facade::global::Element;
pub use fault::{Fault, FaultKind, Other, Place, Space};

use super::KernelInfo;
use facade::params::Params;
use memory::Memory;

/// Addresses of device memory begin here, so that no offset passes for an address.
const GLOBAL_BASE: u64 = 0x7_0000_0000;

/// Blocks of the largest cluster that every device with clusters takes.
const MAX_CLUSTER: u32 = 8;

/// Bytes that exist for nobody, between allocations.
const RED_ZONE: usize = 256;

/// A small, fast generator (splitmix64): the schedule needs speed and repeatability only.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * bound as u64) >> 32) as u32
    }
}

/// One launch: a kernel over `grid` blocks of `block` lanes.
pub struct Launch<'a> {
    info: KernelInfo,
    grid: u32,
    block: u32,
    shared_bytes: u32,
    body: Box<dyn Fn() + 'a>,
}

impl<'a> Launch<'a> {
    /// A launch of a declared kernel; `kernel!` writes the call.
    pub fn new<A: Copy + 'a>(
        info: KernelInfo,
        args: A,
        grid: u32,
        block: u32,
        shared_bytes: u32,
        body: fn(&A, Params),
    ) -> Self {
        // Boxed first: the record must stay where `Params` points.
        let args = Box::new(args);
        Self { info, grid, block, shared_bytes, body: Box::new(move || body(&args, Params::new(&*args))) }
    }

    /// A launch of a closure, for tests of the facade and the emulator.
    pub fn closure(name: &'static str, grid: u32, block: u32, shared_bytes: u32, body: impl Fn() + 'a) -> Self {
        let info = KernelInfo { name, max_threads: 1024, min_blocks: 1, cluster_blocks: 1, args_bytes: 0 };
        Self { info, grid, block, shared_bytes, body: Box::new(body) }
    }

    /// The same in clusters of `blocks` blocks, whatever the kernel is declared with.
    pub fn clusters_of(mut self, blocks: u32) -> Self {
        self.info.cluster_blocks = blocks;
        self
    }

    /// The same as on a device that has no clusters: each block is one of its own.
    pub fn without_clusters(self) -> Self {
        self.clusters_of(1)
    }
}

/// Who runs next. Drawn from the seed for each run unless [`Options::policy`] names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Any lane, a switch at every chance.
    #[default]
    RandomLane,
    /// Any warp, its lanes in order.
    RandomWarp,
    /// One warp as far as it gets, then any other.
    GreedyWarp,
    /// One block as far as it gets, then any other.
    GreedyBlock,
    /// The first warp that can run.
    Forward,
    /// The last warp that can run.
    Reverse,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 6] =
        [Self::RandomLane, Self::RandomWarp, Self::GreedyWarp, Self::GreedyBlock, Self::Forward, Self::Reverse];
}

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Programmatic dependent launch: a launch may begin when every block of its predecessor has called
    /// `grid::launch_dependents` or ended, and sees its predecessor's memory only after `grid::depend_wait`.
    pub pdl: bool,
    /// Accesses and waits of all lanes together before the run counts as endless.
    pub step_limit: u64,
    /// At most so many blocks are resident at once, but a whole cluster always is; the number itself is drawn. 6 when
    /// absent.
    pub max_resident_blocks: Option<u32>,
    /// The policy; drawn when absent.
    pub policy: Option<Policy>,
}

impl Default for Options {
    fn default() -> Self {
        Self { pdl: false, step_limit: 1 << 30, max_resident_blocks: None, policy: None }
    }
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    /// Blocks run.
    pub blocks: u64,
    /// Times that a lane was given the thread.
    pub switches: u64,
    /// Barriers of whole blocks; one of a cluster counts for each of its blocks.
    pub barriers: u64,
    /// The policy that was used.
    pub policy: Policy,
}

/// Device memory: allocations apart from each other by red zones, each byte unwritten until somebody writes it.
#[derive(Debug)]
pub struct Arena {
    memory: Memory,
    end: usize,
}

impl Arena {
    fn new() -> Self {
        Self { memory: Memory::new(Space::Global, GLOBAL_BASE), end: RED_ZONE }
    }

    fn reserve(&mut self, bytes: usize, is_written: bool) -> u64 {
        let offset = self.end;
        self.end = (offset + bytes).next_multiple_of(256) + RED_ZONE;
        if self.end > self.memory.len() {
            self.memory.grow(self.end.max(self.memory.len() * 2));
        }
        self.memory.add(offset, bytes, is_written);
        GLOBAL_BASE + offset as u64
    }

    /// `bytes` bytes that nobody wrote, at a multiple of 256.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        self.reserve(bytes, false)
    }

    /// `bytes` zeros, at a multiple of 256.
    pub fn alloc_zeroed(&mut self, bytes: usize) -> u64 {
        let address = self.reserve(bytes, true);
        let offset = (address - GLOBAL_BASE) as usize;
        self.memory.bytes[offset..offset + bytes].fill(0);
        address
    }

    /// A copy of `bytes`, at a multiple of 256.
    pub fn upload(&mut self, bytes: &[u8]) -> u64 {
        let address = self.reserve(bytes.len(), true);
        let offset = (address - GLOBAL_BASE) as usize;
        self.memory.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        address
    }

    /// A copy of `values`, at a multiple of 256.
    pub fn upload_slice<T: Element>(&mut self, values: &[T]) -> u64 {
        // SAFETY: an `Element` is plain data without padding.
        self.upload(unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) })
    }

    /// Overwrites memory from the host.
    ///
    /// # Panics
    /// When the range is not inside one allocation.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        assert!(self.memory.exists(address, bytes.len()), "the host writes outside device memory at {address:#x}");
        let offset = (address - GLOBAL_BASE) as usize;
        self.memory.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.memory.set_written(offset, bytes.len());
        self.memory.forget_range(offset, bytes.len());
    }

    /// `len` bytes from `address`. Bytes that nobody wrote hold 0xa5 or what an earlier owner left.
    ///
    /// # Panics
    /// When the range is not inside one allocation.
    pub fn download(&self, address: u64, len: usize) -> Vec<u8> {
        assert!(self.memory.exists(address, len), "the host reads outside device memory at {address:#x}");
        let offset = (address - GLOBAL_BASE) as usize;
        self.memory.bytes[offset..offset + len].to_vec()
    }

    /// `count` values from `address`.
    ///
    /// # Panics
    /// When the range is not inside one allocation.
    pub fn download_slice<T: Element>(&self, address: u64, count: usize) -> Vec<T> {
        let bytes = self.download(address, count * T::SIZE as usize);
        // SAFETY: every `Element` takes any bits, and the chunk is as long as one.
        bytes.chunks_exact(T::SIZE as usize).map(|at| unsafe { at.as_ptr().cast::<T>().read_unaligned() }).collect()
    }

    /// Whether every one of `len` bytes was written by somebody.
    pub fn is_written(&self, address: u64, len: usize) -> bool {
        self.memory.exists(address, len) && self.memory.is_written(address, len)
    }

    /// Frees everything. Cheaper than a new device.
    pub fn reset(&mut self) {
        self.memory.clear(self.end);
        self.end = RED_ZONE;
    }
}

/// A device with its memory. Belongs to one thread; any number of threads may have one each.
#[derive(Debug)]
pub struct Device {
    /// The memory.
    pub arena: Arena,
    random: Random,
    seed: u64,
    next_uid: u32,
    /// Shared memory of resident blocks, kept from run to run.
    shared: Vec<Memory>,
}

impl Device {
    /// A device whose runs are all drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { arena: Arena::new(), random: Random(seed), seed, next_uid: 1, shared: Vec::new() }
    }

    /// Draws later runs from `seed`, and frees all memory: as good as new.
    pub fn reset(&mut self, seed: u64) {
        self.arena.reset();
        self.random = Random(seed);
        self.seed = seed;
    }

    /// Runs launches in stream order, to the end or to the first fault.
    ///
    /// # Errors
    /// The first thing that a detector saw.
    pub fn run(&mut self, launches: &[Launch<'_>], options: Options) -> Result<Stats, Fault> {
        for launch in launches {
            let info = launch.info;
            let message = if launch.block == 0 || !launch.block.is_multiple_of(32) || launch.grid == 0 {
                format!("{} blocks of {} lanes; want whole warps, at least one", launch.grid, launch.block)
            } else if launch.block > info.max_threads.min(1024) {
                format!("{} lanes a block; the kernel is compiled for {}", launch.block, info.max_threads.min(1024))
            } else if info.cluster_blocks == 0 || info.cluster_blocks > MAX_CLUSTER {
                format!("clusters of {} blocks; every device takes 1 to {MAX_CLUSTER}", info.cluster_blocks)
            } else if !launch.grid.is_multiple_of(info.cluster_blocks) {
                format!("{} blocks; want whole clusters of {}", launch.grid, info.cluster_blocks)
            } else {
                continue;
            };
            return Err(Fault {
                kind: FaultKind::BadLaunch(message),
                kernel: info.name,
                block: 0,
                lane: 0,
                place: None,
                other: None,
                seed: self.seed,
            });
        }
        let num_blocks: u32 = launches.iter().map(|launch| launch.grid).sum();
        if num_blocks == 0 {
            return Ok(Stats::default());
        }
        if self.next_uid as u64 + num_blocks as u64 > clock::MAX_BLOCK_UID as u64 {
            self.arena.memory.forget();
            self.shared.clear();
            self.next_uid = 1;
        }
        let random = Random(self.random.next());
        let first_uid = self.next_uid;
        self.next_uid += num_blocks;
        let mut engine = engine::Engine::new(
            launches,
            options,
            random,
            self.seed,
            first_uid,
            &mut self.arena.memory,
            &mut self.shared,
        );
        engine.run()
    }
}

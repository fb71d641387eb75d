//! What the detectors report.

use std::fmt;
use std::panic::Location;

/// A place in the source.
pub type Place = &'static Location<'static>;

/// One fault of a kernel, with everything needed to find it. The run ends at the first.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// The kernel that was running.
    pub kernel: &'static str,
    /// The block of the lane that met the fault.
    pub block: u32,
    /// The lane (index in its block) that met the fault.
    pub lane: u32,
    /// Where in the source that lane was; absent when it was at no call of the facade.
    pub place: Option<Place>,
    /// The other side: who wrote, who waits, who left.
    pub other: Option<Box<Other>>,
    /// Seed of the device; the same calls on a device of the same seed meet the same fault.
    pub seed: u64,
}

/// The other side of a fault.
#[derive(Debug, Clone)]
pub struct Other {
    /// What it did.
    pub what: &'static str,
    /// Its kernel.
    pub kernel: &'static str,
    /// Its block.
    pub block: u32,
    /// Its lanes, as indices in the block.
    pub lanes: Vec<u32>,
    /// Where in the source; absent for a lane that has ended.
    pub place: Option<Place>,
}

/// Which memory an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Dynamic shared memory; addresses are byte offsets into it.
    Shared,
    /// Dynamic shared memory of another block of the cluster; addresses are byte offsets into it.
    Remote {
        /// The block's index in the cluster.
        rank: u32,
    },
    /// Device memory.
    Global,
    /// The argument record; addresses are byte offsets into it.
    Params,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// Lanes of one block stand at different barriers, or lanes of one cluster at different `sync_cluster`, or some ended
    /// while others wait.
    DivergentBarrier,
    /// A vote, shuffle, reduction or `sync_warp` names lanes that will not come.
    MissingLanes {
        /// The mask that the lane passed.
        mask: u32,
    },
    /// A lane passed a mask that does not name itself.
    LaneNotInMask {
        /// The mask that the lane passed.
        mask: u32,
    },
    /// A shuffle reads from a lane outside its mask.
    ShuffleFromOutside {
        /// The mask that the lane passed.
        mask: u32,
        /// The lane read from.
        source: u32,
    },
    /// An access outside every allocation.
    OutOfBounds {
        /// The memory.
        space: Space,
        /// First byte.
        address: u64,
        /// Bytes accessed.
        bytes: u32,
    },
    /// An access at an address that is no multiple of its size.
    Misaligned {
        /// The memory.
        space: Space,
        /// First byte.
        address: u64,
        /// Bytes accessed.
        bytes: u32,
    },
    /// A read of memory that nobody wrote.
    Uninitialized {
        /// The memory.
        space: Space,
        /// First byte of the access.
        address: u64,
        /// Bytes accessed.
        bytes: u32,
    },
    /// Two accesses, one of them a write and one of them not atomic, that nothing orders.
    Race {
        /// The memory.
        space: Space,
        /// First byte of the access.
        address: u64,
        /// Bytes accessed.
        bytes: u32,
    },
    /// Memory read by `load_nc` and written while the kernel, or one that it overlaps, runs.
    NonCoherent {
        /// First byte of the access.
        address: u64,
    },
    /// A remote access to a block that the cluster has not.
    OutsideCluster {
        /// The rank that the lane passed.
        rank: u32,
        /// Blocks of the cluster.
        num_blocks: u32,
    },
    /// A remote access to a block of which nothing says that it has begun.
    NotBegun {
        /// The block's index in the cluster.
        rank: u32,
    },
    /// A remote access to a block that has ended, or that nothing keeps from ending first.
    Ended {
        /// The block's index in the cluster.
        rank: u32,
    },
    /// Lanes wait and nobody is left to wake them.
    Deadlock,
    /// Lanes only read flags that nobody will set, or the step limit was reached.
    EndlessLoop,
    /// The kernel panicked.
    Panic(String),
    /// The launch asks for what the kernel is not compiled for.
    BadLaunch(String),
}

impl FaultKind {
    /// The same of an access that its lane calls by another space.
    pub(super) fn in_space(mut self, new: Space) -> Self {
        if let Self::OutOfBounds { space, .. }
        | Self::Misaligned { space, .. }
        | Self::Uninitialized { space, .. }
        | Self::Race { space, .. } = &mut self
        {
            *space = new;
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}; block {}, lane {}", self.kernel, self.kind, self.block, self.lane)?;
        if let Some(place) = self.place {
            write!(out, " at {place}")?;
        }
        if let Some(other) = &self.other {
            write!(out, "; {}: ", other.what)?;
            if other.kernel != self.kernel {
                write!(out, "{}, ", other.kernel)?;
            }
            write!(out, "block {}, lanes {:?}", other.block, other.lanes)?;
            if let Some(place) = other.place {
                write!(out, " at {place}")?;
            }
        }
        write!(out, "; seed {}", self.seed)
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DivergentBarrier => write!(out, "divergent barrier"),
            Self::MissingLanes { mask } => write!(out, "lanes of mask {mask:#010x} are missing"),
            Self::LaneNotInMask { mask } => write!(out, "the calling lane is not in mask {mask:#010x}"),
            Self::ShuffleFromOutside { mask, source } => {
                write!(out, "shuffle reads lane {source}, outside mask {mask:#010x}")
            }
            Self::OutOfBounds { space, address, bytes } => {
                write!(out, "{bytes} bytes at {space:?} {address:#x} are out of bounds")
            }
            Self::Misaligned { space, address, bytes } => {
                write!(out, "{bytes} bytes at {space:?} {address:#x} are misaligned")
            }
            Self::Uninitialized { space, address, bytes } => {
                write!(out, "read of {bytes} bytes at {space:?} {address:#x} that nobody wrote")
            }
            Self::Race { space, address, bytes } => write!(out, "race on {bytes} bytes at {space:?} {address:#x}"),
            Self::NonCoherent { address } => {
                write!(out, "Global {address:#x} is read by load_nc and written in the same launch")
            }
            Self::OutsideCluster { rank, num_blocks } => {
                write!(out, "remote access to rank {rank}, outside the cluster of {num_blocks}")
            }
            Self::NotBegun { rank } => {
                write!(out, "remote access to rank {rank}, whose block may not have begun")
            }
            Self::Ended { rank } => {
                write!(out, "remote access to rank {rank}, whose block may have ended and its shared memory with it")
            }
            Self::Deadlock => write!(out, "deadlock"),
            Self::EndlessLoop => write!(out, "endless loop"),
            Self::Panic(message) => write!(out, "panic: {message}"),
            Self::BadLaunch(message) => write!(out, "bad launch: {message}"),
        }
    }
}

impl std::error::Error for Fault {}

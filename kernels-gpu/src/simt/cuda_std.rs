//! The facade over rust-cuda's `cuda_std` 0.2.2: who the thread is, barriers, and fences.
//!
//! `cuda_std` has no votes, no shuffles, no clusters, no scoped shared-memory atomics and no loads with a state space. For
//! those, the device build takes `device.rs`, which needs nothing but intrinsics and inline PTX. On the host this file is
//! type-checked and never called: `cuda_std`'s functions panic there.

/// Identity of the calling thread, and barriers over its block.
pub mod thread {
    use cuda_std::thread;

    /// Index of the thread in its block.
    #[inline(always)]
    pub fn thread_idx_x() -> u32 {
        thread::thread_idx_x()
    }

    /// Index of the block in the grid.
    #[inline(always)]
    pub fn block_idx_x() -> u32 {
        thread::block_idx_x()
    }

    /// Threads in a block.
    #[inline(always)]
    pub fn block_dim_x() -> u32 {
        thread::block_dim_x()
    }

    /// Blocks in the grid.
    #[inline(always)]
    pub fn grid_dim_x() -> u32 {
        thread::grid_dim_x()
    }

    /// Waits for every thread of the block; orders all memory before it against all memory after it, in the block.
    #[inline(always)]
    pub fn sync_threads() {
        thread::sync_threads();
    }

    /// A barrier that returns in how many threads `predicate` was true.
    #[inline(always)]
    pub fn sync_threads_count(predicate: bool) -> u32 {
        thread::sync_threads_count(predicate as u32)
    }

    /// A barrier that returns whether `predicate` was true in every thread.
    #[inline(always)]
    pub fn sync_threads_and(predicate: bool) -> bool {
        thread::sync_threads_and(predicate as u32) != 0
    }

    /// A barrier that returns whether `predicate` was true in any thread.
    #[inline(always)]
    pub fn sync_threads_or(predicate: bool) -> bool {
        thread::sync_threads_or(predicate as u32) != 0
    }
}

/// Operations over the 32 lanes of a warp.
pub mod warp {
    // Votes, shuffles and reductions: `cuda_std` 0.2.2 has none.
    #[cfg(target_arch = "nvptx64")]
    pub use super::super::device::warp::{
        warp_reduce_add, warp_reduce_max, warp_reduce_min, warp_shuffle_down, warp_shuffle_idx, warp_shuffle_up,
        warp_shuffle_xor, warp_vote_all, warp_vote_any, warp_vote_ballot,
    };

    /// All 32 lanes.
    pub const FULL_MASK: u32 = u32::MAX;

    /// Index of the lane in its warp.
    #[inline(always)]
    pub fn lane_id() -> u32 {
        super::thread::thread_idx_x() & 31
    }

    /// Index of the warp in its block.
    #[inline(always)]
    pub fn warp_id() -> u32 {
        super::thread::thread_idx_x() >> 5
    }

    /// Waits for the lanes of `mask`; orders their memory before it against their memory after it.
    #[inline(always)]
    pub fn sync_warp(mask: u32) {
        // SAFETY: a call by the wrong lanes hangs; it breaks no memory rule.
        unsafe { cuda_std::warp::sync_warp(mask) }
    }
}

/// Memory fences: they order, they do not wait.
pub mod fence {
    use cuda_std::thread;

    /// Acquire and release fence of device scope.
    #[inline(always)]
    pub fn device() {
        thread::device_fence();
    }

    /// Acquire and release fence of system scope.
    #[inline(always)]
    pub fn system() {
        thread::system_fence();
    }
}

/// Every name and type that the other two implementations of these modules have.
const _: () = {
    const _: [fn() -> u32; 6] = [
        thread::thread_idx_x,
        thread::block_idx_x,
        thread::block_dim_x,
        thread::grid_dim_x,
        warp::lane_id,
        warp::warp_id,
    ];
    const _: [fn(); 3] = [thread::sync_threads, fence::device, fence::system];
    const _: fn(bool) -> u32 = thread::sync_threads_count;
    const _: [fn(bool) -> bool; 2] = [thread::sync_threads_and, thread::sync_threads_or];
    const _: fn(u32) = warp::sync_warp;
    const _: u32 = warp::FULL_MASK;
};

/// `cuda_std`'s own attribute on an entry of the shape that `kernel!` writes: by-value, `Copy`, no result.
#[cfg(not(target_arch = "nvptx64"))]
const _: () = {
    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Record {
        _address: u64,
    }

    #[cuda_std::kernel]
    #[expect(dead_code, reason = "never called: it type-checks the attribute")]
    pub unsafe fn rfdetr_post_type_check(_record: Record) {}
};

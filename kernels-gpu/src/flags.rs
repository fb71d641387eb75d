//! What the host waits for: flags, one for each block that writes a part of the result.
//!
//! A block sets its flag behind everything that it has stored of the result, and touches nothing of the request any more. When the
//! host has seen all of them, the result is there, and so are the buffers for the next request.

use rfdetr_post_core::packed::flag_word;

use crate::simt::{fence, global::Global, thread};

/// Sets flag number `flag` to `sequence`: whoever sees it sees what the block has stored.
///
/// Callers: every thread of the block, as its last act. Cost: a barrier, and a round trip to where the result is.
///
/// # Safety
/// `flags_at` has the flag, which nobody else sets.
#[track_caller]
#[inline(always)]
pub unsafe fn block_set_flag(flags_at: u64, flag: u32, sequence: u32) {
    // Orders the block's writes before the fence, which orders them before the flag for all observers: one fence a block, because
    // each costs a round trip.
    thread::sync_threads();
    if thread::thread_idx_x() == 0 {
        fence::system();
        // SAFETY: the caller vouches for the flag.
        unsafe { Global::<u32>::from_address(flags_at).store_volatile(flag_word(flag) as usize, sequence) };
    }
}

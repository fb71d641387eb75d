//! Sums over warps and blocks, and division without a panic path.

use core::num::NonZeroU32;

use crate::simt::{
    shared::Shared,
    thread,
    warp::{self, FULL_MASK},
};

/// The sum of `value` over this lane and the lanes below it.
///
/// Callers: every lane of the warp. Cost: five shuffles.
#[track_caller]
#[inline(always)]
pub fn warp_inclusive_add(value: u32) -> u32 {
    let lane = warp::lane_id();
    let mut sum = value;
    let mut delta = 1;
    while delta < 32 {
        let below = warp::warp_shuffle_up(FULL_MASK, sum, delta);
        if lane >= delta {
            sum += below;
        }
        delta *= 2;
    }
    sum
}

/// The sum of `value` over the threads below this one, and over the whole block.
///
/// Example: a block of 64 threads with `value` 1 in the odd ones gives thread 5 the pair (2, 32).
///
/// Callers: every thread of the block; valid in all threads. Needs 32 words of `scratch`; a barrier is owed before
/// they are used again. Cost: one barrier, five shuffles and two reductions.
///
/// # Safety
/// `scratch` has 32 words that nobody else uses before the next barrier.
#[track_caller]
#[inline(always)]
pub unsafe fn block_exclusive_add(value: u32, scratch: Shared<u32>) -> (u32, u32) {
    let (lane, warp) = (warp::lane_id(), warp::warp_id());
    let num_warps = thread::block_dim_x() / 32;
    let inclusive = warp_inclusive_add(value);
    if lane == 31 {
        // SAFETY: `warp` is below 32, and the caller gave 32 words.
        unsafe { scratch.store(warp, inclusive) };
    }
    thread::sync_threads();
    // Every warp sums for itself: a second round would cost a second barrier.
    // SAFETY: only written entries are read, ordered by the barrier.
    let sum = if lane < num_warps { unsafe { scratch.load(lane) } } else { 0 };
    let before = warp::warp_reduce_add(FULL_MASK, if lane < warp { sum } else { 0 });
    (before + inclusive - value, warp::warp_reduce_add(FULL_MASK, sum))
}

/// Quotient and remainder. A division that could panic would leave a panic path in the PTX.
///
/// # Safety
/// `divisor` is not zero.
#[inline(always)]
pub unsafe fn div_rem(value: u32, divisor: u32) -> (u32, u32) {
    // SAFETY: the caller vouches for it.
    let divisor = unsafe { NonZeroU32::new_unchecked(divisor) };
    (value / divisor, value % divisor)
}

/// Quotient, rounded up.
///
/// # Safety
/// `divisor` is not zero, and `value + divisor` fits `u32`.
#[inline(always)]
pub unsafe fn div_ceil(value: u32, divisor: u32) -> u32 {
    // SAFETY: the caller vouches for it.
    unsafe { div_rem(value + (divisor - 1), divisor).0 }
}

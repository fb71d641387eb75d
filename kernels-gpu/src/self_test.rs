//! One kernel that uses every call of the facade, so that the device's and the emulator's can be compared.
//!
//! Feature `self-test`; no part of the PTX that the launcher loads.

use crate::kernel;
use crate::simt::global::Global;
use crate::simt::params::Params;
use crate::simt::shared::Shared;
use crate::simt::thread::{self, block_dim_x, block_idx_x, grid_dim_x, sync_threads, thread_idx_x};
use crate::simt::{cluster, fence, grid, math, warp};

/// Words that each thread writes.
pub const WORDS: usize = 57;
/// Words of counters, all zero before the launch.
pub const COUNTERS: usize = 16;
/// Threads in a block.
pub const BLOCK: u32 = 64;
/// Blocks of a cluster; the grid is a multiple of it.
pub const CLUSTER: u32 = 2;
/// Dynamic shared memory, in bytes.
pub const SHARED_BYTES: u32 = 8192;

/// Arguments of [`facade_self_test`].
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SelfTestArgs {
    /// `grid * BLOCK` words.
    pub input: u64,
    /// `grid * BLOCK * WORDS` words.
    pub output: u64,
    /// [`COUNTERS`] words of zeros.
    pub counters: u64,
    /// `grid * BLOCK` vectors of 16 bytes.
    pub vectors: u64,
    /// Read at an index known only at run time.
    pub table: [u32; 8],
}

kernel! {
    /// Writes to `output` what every call of the facade returned, thread by thread. A device without clusters has another
    /// answer, where the calls of `cluster` and the remote accesses are concerned.
    #[launch_bounds(BLOCK, 1, cluster = CLUSTER)]
    pub fn facade_self_test(args: &SelfTestArgs, params: Params) {
        // SAFETY: the test gives every array the size that `SelfTestArgs` asks for.
        unsafe { body(args, params) }
    }
}

/// # Safety
/// The arrays of `args` have the sizes that its fields name, and the launch has [`SHARED_BYTES`].
#[inline(always)]
unsafe fn body(args: &SelfTestArgs, params: Params) {
    let (input, output) = (Global::<u32>::from_address(args.input), Global::<u32>::from_address(args.output));
    let counters = Global::<u32>::from_address(args.counters);
    let vectors = Global::<[u32; 4]>::from_address(args.vectors);
    let (thread, block, lane) = (thread_idx_x(), block_idx_x(), warp::lane_id());
    let flat = (block * block_dim_x() + thread) as usize;
    let mut at = flat * WORDS;
    let mut put = |value: u32| {
        // SAFETY: fewer than `WORDS` calls, each thread to its own words.
        unsafe { output.store(at, value) };
        at += 1;
    };
    grid::launch_dependents();
    grid::depend_wait();

    // SAFETY: as this function's.
    let value = unsafe { input.load_nc(flat) };
    put(thread);
    put(block + grid_dim_x() * 1000 + block_dim_x() * 100);
    put(warp::warp_id() * 32 + lane);
    // SAFETY: the table has 8 words.
    put(unsafe { params.load(core::mem::offset_of!(SelfTestArgs, table) as u32 + 4 * (thread & 7)) });
    // SAFETY: as above.
    put(unsafe { params.anew().load(core::mem::offset_of!(SelfTestArgs, table) as u32 + 4 * (lane & 7)) });

    let full = warp::FULL_MASK;
    put(warp::warp_vote_ballot(full, value & 1 == 1));
    put(warp::warp_vote_any(full, value == 7) as u32);
    put(warp::warp_vote_all(full, value != 7) as u32);
    put(warp::warp_shuffle_idx(full, value, value & 31));
    put(warp::warp_shuffle_up(full, value, 3));
    put(warp::warp_shuffle_down(full, value, 5));
    put(warp::warp_shuffle_xor(full, value, 9));
    put(warp::warp_reduce_add(full, value));
    put(warp::warp_reduce_min(full, value));
    put(warp::warp_reduce_max(full, value));
    if lane < 12 {
        put(warp::warp_reduce_add(0xfff, value));
        put(warp::warp_reduce_min(0xfff, value));
        put(warp::warp_vote_ballot(0xfff, lane % 3 == 0));
        warp::sync_warp(0xfff);
    } else {
        put(warp::warp_reduce_max(!0xfff, value));
        put(1);
        put(2);
    }
    put(thread::sync_threads_count(value & 2 == 2));
    put(thread::sync_threads_and(value != 7) as u32);
    put(thread::sync_threads_or(value == 7) as u32);

    // SAFETY: as this function's: the offsets below lie inside `SHARED_BYTES`.
    unsafe {
        let (words, bytes, halves) = (Shared::<u32>::at(0), Shared::<u8>::at(1024), Shared::<u16>::at(2048));
        let (floats, longs, quads) = (Shared::<f32>::at(3072), Shared::<u64>::at(4096), Shared::<[u32; 4]>::at(5120));
        let (tally, signed) = (Shared::<u32>::at(7168), Shared::<i32>::at(7424));
        words.store(thread, value);
        bytes.store(thread, value as u8);
        halves.store(thread, value as u16);
        floats.store(thread, value as f32);
        longs.store(thread, (value as u64) << 20);
        quads.store(thread, [value, thread, block, 5]);
        signed.store(thread, -(thread as i32));
        if thread < 5 {
            tally.store(thread, if thread == 2 { u32::MAX } else { 0 });
        }
        sync_threads();
        let other = block_dim_x() - 1 - thread;
        put(words.load(other));
        put(bytes.load(other) as u32);
        put(halves.load(other) as u32);
        put(floats.load(other).to_bits());
        put((longs.load(other) >> 8) as u32);
        put(quads.load(other).iter().fold(0, |sum, word| sum * 3 + word));
        put(signed.load(other) as u32);
        tally.fetch_add(0, value);
        tally.fetch_max(1, value);
        tally.fetch_min(2, value);
        tally.fetch_or(3, 1 << lane);
        if thread == 9 {
            tally.exchange(4, 99);
        }
        sync_threads();
        put(tally.load(0));
        put(tally.load(1) + tally.load(2));
        put(tally.load(3));
        put(tally.load(4));

        let vector = vectors.load(flat);
        vectors.store_streaming(flat, [vector[3], vector[2], vector[1], vector[0]]);
        let pair = Global::<[f32; 2]>::from_address(args.vectors).load(2 * flat);
        put(pair[1].to_bits());
        counters.fetch_add(0, 1);
        counters.fetch_max(1, value);
        counters.fetch_or(2, 1 << lane);
        counters.fetch_add_acq_rel_system(3, value);
        if thread == 0 {
            // A baton through the blocks, in order: each writes what it got from the one before, plus one.
            while counters.load_acquire(4) != block {}
            let sum =
                if block == 0 { counters.load_volatile(5) } else { Global::<u32>::from_address(args.counters).load(6) };
            Global::<u32>::from_address(args.counters).store(6, sum + block + 1);
            fence::device();
            counters.store_release(4, block + 1);
            fence::system();
            counters.store_volatile(7, 1);
            counters.store_release_system(8, 1);
            counters.exchange(9, 3);
            counters.fetch_min(10, 0);
            counters.fetch_add_acq_rel(11, 2);
        }
    }

    // Each thread hands a vector, a pair, a word and a byte to the next block of the cluster, and takes a word.
    // SAFETY: as this function's: the offsets below lie inside `SHARED_BYTES`, and the barriers keep the blocks running.
    unsafe {
        let (rank, num_blocks) = (cluster::block_rank(), cluster::num_blocks());
        let next = if rank + 1 == num_blocks { 0 } else { rank + 1 };
        let (words, pairs) = (Shared::<u32>::at(0), Shared::<[u32; 2]>::at(4096));
        let (bytes, quads) = (Shared::<u8>::at(1024), Shared::<[u32; 4]>::at(5120));
        put(rank + num_blocks * 16);
        cluster::sync_cluster();
        quads.store_remote(next, thread, [value, block, rank, 6]);
        pairs.store_remote(next, thread, [value + 1, thread]);
        words.store_remote(next, thread, value * 3 + block);
        bytes.store_remote(next, thread, (value + rank) as u8);
        cluster::sync_cluster();
        put(quads.load(thread).iter().fold(0, |sum, word| sum * 3 + word));
        put(pairs.load(thread)[0] * 5 + pairs.load(thread)[1]);
        put(bytes.load(thread) as u32);
        put(words.load_remote(next, thread));
        cluster::sync_cluster();
    }

    let (a, b, c) = (value as f32 * 1.1, -3.7e-3 * thread as f32, 0.25 + block as f32);
    put(math::fma(a, b, c).to_bits());
    put(math::fma_rd(a, b, c).to_bits());
    put(math::fma_rd(b, a, -c).to_bits());
    put(math::div(a, c).to_bits());
    put(math::reciprocal(c).to_bits());
    // This approximation, too: the emulator's is coarser.
    put(((math::div_approx(a, c) - math::div(a, c)).abs() <= math::div(a, c) / 64.0) as u32);
    put(math::rne(a).to_bits());
    put(math::rne(b * 1000.0).to_bits());
    // The approximation is compared by a bound.
    put((math::ex2_approx_ftz(b) * 65536.0 + 0.5) as u32);
    put(math::f16_to_f32((value * 37) as u16 & 0xfbff).to_bits());
    put(math::f16_to_f32(thread as u16).to_bits());
    put(math::bf16_to_f32((value * 91) as u16).to_bits());
    put((a + b * c).to_bits());
}

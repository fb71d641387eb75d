//! The facade on the device: LLVM's NVPTX intrinsics where a call is convergent, inline PTX elsewhere.
//!
//! Convergent operations are intrinsics, not `asm!`: rustc does not mark inline assembly convergent, so LLVM could
//! duplicate it into two branches. Plain loads are `pure, readonly`, so LLVM may merge two of them unless a store, an
//! atomic or a barrier stands between; everything else is volatile to it.

use core::arch::asm;

// 32-bit shared addresses come from this symbol; the language has no word for dynamic shared memory.
#[cfg(not(feature = "cuda-std"))]
core::arch::global_asm!(".extern .shared .align 16 .b8 DYN_SHARED[];");

/// 32-bit address of the dynamic shared memory.
#[cfg(not(feature = "cuda-std"))]
#[inline(always)]
fn dynamic_shared_base() -> u32 {
    let base: u32;
    // Not `pure`: the compiler would compute every address in shared memory once, ahead of everything, and run out of registers.
    // SAFETY: takes an address, touches no memory.
    unsafe { asm!("mov.u32 {}, DYN_SHARED;", out(reg32) base, options(nomem, nostack)) };
    base
}

/// 32-bit address of the dynamic shared memory. rust-cuda's compiler takes no module-level assembly.
#[cfg(feature = "cuda-std")]
#[inline(always)]
fn dynamic_shared_base() -> u32 {
    use cuda_std::ptr::{AddressSpace, convert_generic_to_specific_address_space};
    let generic = cuda_std::shared::dynamic_shared_mem::<u8>();
    // SAFETY: the pointer is into shared memory, whose own addresses have 32 bits.
    unsafe { convert_generic_to_specific_address_space(generic, AddressSpace::Shared) as u32 }
}

#[allow(improper_ctypes, reason = "LLVM intrinsics take i1 where Rust has bool")]
unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier0.popc"]
    fn barrier_popc(predicate: u32) -> u32;
    #[link_name = "llvm.nvvm.barrier0.and"]
    fn barrier_and(predicate: u32) -> u32;
    #[link_name = "llvm.nvvm.barrier0.or"]
    fn barrier_or(predicate: u32) -> u32;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn bar_warp_sync(mask: u32);
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn vote_ballot(mask: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.vote.any.sync"]
    fn vote_any(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.all.sync"]
    fn vote_all(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn shuffle_idx(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.up.i32"]
    fn shuffle_up(mask: u32, value: u32, delta: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.down.i32"]
    fn shuffle_down(mask: u32, value: u32, delta: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn shuffle_bfly(mask: u32, value: u32, lane_mask: u32, clamp: u32) -> u32;
    #[cfg(target_feature = "sm_80")]
    #[link_name = "llvm.nvvm.redux.sync.add"]
    fn redux_add(value: u32, mask: u32) -> u32;
    #[cfg(target_feature = "sm_80")]
    #[link_name = "llvm.nvvm.redux.sync.umin"]
    fn redux_min(value: u32, mask: u32) -> u32;
    #[cfg(target_feature = "sm_80")]
    #[link_name = "llvm.nvvm.redux.sync.umax"]
    fn redux_max(value: u32, mask: u32) -> u32;
    #[cfg(target_feature = "sm_90")]
    #[link_name = "llvm.nvvm.barrier.cluster.arrive.aligned"]
    fn barrier_cluster_arrive();
    #[cfg(target_feature = "sm_90")]
    #[link_name = "llvm.nvvm.barrier.cluster.wait.aligned"]
    fn barrier_cluster_wait();
}

/// Identity of the calling thread, and barriers over its block.
pub mod thread {
    use core::arch::nvptx;

    /// Index of the thread in its block.
    #[inline(always)]
    pub fn thread_idx_x() -> u32 {
        // SAFETY: reads a special register.
        unsafe { nvptx::_thread_idx_x() as u32 }
    }

    /// Index of the block in the grid.
    #[inline(always)]
    pub fn block_idx_x() -> u32 {
        // SAFETY: reads a special register.
        unsafe { nvptx::_block_idx_x() as u32 }
    }

    /// Threads in a block.
    #[inline(always)]
    pub fn block_dim_x() -> u32 {
        // SAFETY: reads a special register.
        unsafe { nvptx::_block_dim_x() as u32 }
    }

    /// Blocks in the grid.
    #[inline(always)]
    pub fn grid_dim_x() -> u32 {
        // SAFETY: reads a special register.
        unsafe { nvptx::_grid_dim_x() as u32 }
    }

    /// Waits for every thread of the block; orders all memory before it against all memory after it, in the block.
    #[inline(always)]
    pub fn sync_threads() {
        // SAFETY: a divergent call hangs or traps; it breaks no memory rule.
        unsafe { nvptx::_syncthreads() }
    }

    /// A barrier that returns in how many threads `predicate` was true.
    #[inline(always)]
    pub fn sync_threads_count(predicate: bool) -> u32 {
        // SAFETY: as `sync_threads`.
        unsafe { super::barrier_popc(predicate as u32) }
    }

    /// A barrier that returns whether `predicate` was true in every thread.
    #[inline(always)]
    pub fn sync_threads_and(predicate: bool) -> bool {
        // SAFETY: as `sync_threads`.
        unsafe { super::barrier_and(predicate as u32) != 0 }
    }

    /// A barrier that returns whether `predicate` was true in any thread.
    #[inline(always)]
    pub fn sync_threads_or(predicate: bool) -> bool {
        // SAFETY: as `sync_threads`.
        unsafe { super::barrier_or(predicate as u32) != 0 }
    }
}

/// Operations over the 32 lanes of a warp.
pub mod warp {
    use super::thread;

    /// All 32 lanes.
    pub const FULL_MASK: u32 = u32::MAX;

    /// Index of the lane in its warp.
    #[inline(always)]
    pub fn lane_id() -> u32 {
        thread::thread_idx_x() & 31
    }

    /// Index of the warp in its block.
    #[inline(always)]
    pub fn warp_id() -> u32 {
        thread::thread_idx_x() >> 5
    }

    /// Waits for the lanes of `mask`; orders their memory before it against their memory after it.
    #[inline(always)]
    pub fn sync_warp(mask: u32) {
        // SAFETY: a call by the wrong lanes hangs; it breaks no memory rule.
        unsafe { super::bar_warp_sync(mask) }
    }

    /// The lanes of `mask` whose predicate is true.
    #[inline(always)]
    pub fn warp_vote_ballot(mask: u32, predicate: bool) -> u32 {
        // SAFETY: as `sync_warp`.
        unsafe { super::vote_ballot(mask, predicate) }
    }

    /// Whether any lane of `mask` has a true predicate.
    #[inline(always)]
    pub fn warp_vote_any(mask: u32, predicate: bool) -> bool {
        // SAFETY: as `sync_warp`.
        unsafe { super::vote_any(mask, predicate) }
    }

    /// Whether every lane of `mask` has a true predicate.
    #[inline(always)]
    pub fn warp_vote_all(mask: u32, predicate: bool) -> bool {
        // SAFETY: as `sync_warp`.
        unsafe { super::vote_all(mask, predicate) }
    }

    /// The value that lane `lane & 31` passed in.
    #[inline(always)]
    pub fn warp_shuffle_idx(mask: u32, value: u32, lane: u32) -> u32 {
        // SAFETY: as `sync_warp`.
        unsafe { super::shuffle_idx(mask, value, lane, 31) }
    }

    /// The value of the lane `delta` below; lanes below `delta` keep their own.
    #[inline(always)]
    pub fn warp_shuffle_up(mask: u32, value: u32, delta: u32) -> u32 {
        // SAFETY: as `sync_warp`.
        unsafe { super::shuffle_up(mask, value, delta, 0) }
    }

    /// The value of the lane `delta` above; the upper `delta` lanes keep their own.
    #[inline(always)]
    pub fn warp_shuffle_down(mask: u32, value: u32, delta: u32) -> u32 {
        // SAFETY: as `sync_warp`.
        unsafe { super::shuffle_down(mask, value, delta, 31) }
    }

    /// The value of the lane whose index differs by `lane_mask`.
    #[inline(always)]
    pub fn warp_shuffle_xor(mask: u32, value: u32, lane_mask: u32) -> u32 {
        // SAFETY: as `sync_warp`.
        unsafe { super::shuffle_bfly(mask, value, lane_mask, 31) }
    }

    /// Sum over the lanes of `mask`, wrapping; valid in all of them.
    #[inline(always)]
    pub fn warp_reduce_add(mask: u32, value: u32) -> u32 {
        #[cfg(target_feature = "sm_80")]
        // SAFETY: as `sync_warp`.
        return unsafe { super::redux_add(value, mask) };
        #[cfg(not(target_feature = "sm_80"))]
        reduce(mask, value, 0, u32::wrapping_add)
    }

    /// Least value over the lanes of `mask`; valid in all of them.
    #[inline(always)]
    pub fn warp_reduce_min(mask: u32, value: u32) -> u32 {
        #[cfg(target_feature = "sm_80")]
        // SAFETY: as `sync_warp`.
        return unsafe { super::redux_min(value, mask) };
        #[cfg(not(target_feature = "sm_80"))]
        reduce(mask, value, u32::MAX, u32::min)
    }

    /// Greatest value over the lanes of `mask`; valid in all of them.
    #[inline(always)]
    pub fn warp_reduce_max(mask: u32, value: u32) -> u32 {
        #[cfg(target_feature = "sm_80")]
        // SAFETY: as `sync_warp`.
        return unsafe { super::redux_max(value, mask) };
        #[cfg(not(target_feature = "sm_80"))]
        reduce(mask, value, 0, u32::max)
    }

    /// Shuffles for sm_75, which has no `redux`: a butterfly for the whole warp, lane by lane for a part of it.
    #[cfg(not(target_feature = "sm_80"))]
    #[inline(always)]
    fn reduce(mask: u32, value: u32, neutral: u32, combine: impl Fn(u32, u32) -> u32) -> u32 {
        if mask == FULL_MASK {
            let mut result = value;
            result = combine(result, warp_shuffle_xor(mask, result, 16));
            result = combine(result, warp_shuffle_xor(mask, result, 8));
            result = combine(result, warp_shuffle_xor(mask, result, 4));
            result = combine(result, warp_shuffle_xor(mask, result, 2));
            return combine(result, warp_shuffle_xor(mask, result, 1));
        }
        let (mut result, mut rest) = (neutral, mask);
        while rest != 0 {
            result = combine(result, warp_shuffle_idx(mask, value, rest.trailing_zeros()));
            rest &= rest - 1;
        }
        result
    }
}

/// Thread block clusters: blocks that run at the same time and write each other's shared memory. One block below sm_90.
pub mod cluster {
    #[cfg(target_feature = "sm_90")]
    use core::arch::asm;

    /// Index of the block in its cluster.
    #[inline(always)]
    pub fn block_rank() -> u32 {
        #[cfg(target_feature = "sm_90")]
        {
            let rank: u32;
            // SAFETY: reads a special register.
            unsafe { asm!("mov.u32 {}, %cluster_ctarank;", out(reg32) rank, options(pure, nomem, nostack)) };
            rank
        }
        #[cfg(not(target_feature = "sm_90"))]
        0
    }

    /// Blocks of the cluster.
    #[inline(always)]
    pub fn num_blocks() -> u32 {
        #[cfg(target_feature = "sm_90")]
        {
            let count: u32;
            // SAFETY: reads a special register.
            unsafe { asm!("mov.u32 {}, %cluster_nctarank;", out(reg32) count, options(pure, nomem, nostack)) };
            count
        }
        #[cfg(not(target_feature = "sm_90"))]
        1
    }

    /// Waits for every thread of the cluster; orders all memory before it against all memory after it, in the cluster.
    #[inline(always)]
    pub fn sync_cluster() {
        #[cfg(target_feature = "sm_90")]
        // SAFETY: a divergent call hangs or traps; it breaks no memory rule.
        unsafe {
            super::barrier_cluster_arrive();
            super::barrier_cluster_wait();
        }
        #[cfg(not(target_feature = "sm_90"))]
        super::thread::sync_threads();
    }
}

/// Loads and stores of one instruction. Sealed: the list below is all that PTX has and the kernels need.
pub trait Element: Copy + 'static {
    /// Size and alignment in bytes.
    const SIZE: u32;
    #[doc(hidden)]
    unsafe fn load_shared(address: u32) -> Self;
    #[doc(hidden)]
    unsafe fn store_shared(address: u32, value: Self);
    #[cfg(target_feature = "sm_90")]
    #[doc(hidden)]
    unsafe fn load_cluster(address: u32) -> Self;
    #[cfg(target_feature = "sm_90")]
    #[doc(hidden)]
    unsafe fn store_cluster(address: u32, value: Self);
    #[doc(hidden)]
    unsafe fn load_global(address: u64) -> Self;
    #[doc(hidden)]
    unsafe fn load_global_early(address: u64) -> Self;
    #[doc(hidden)]
    unsafe fn load_global_nc(address: u64) -> Self;
    #[doc(hidden)]
    unsafe fn load_global_nc_early(address: u64) -> Self;
    #[doc(hidden)]
    unsafe fn store_global(address: u64, value: Self);
    #[doc(hidden)]
    unsafe fn store_global_streaming(address: u64, value: Self);
    #[doc(hidden)]
    unsafe fn load_param(address: u64) -> Self;
}

macro_rules! scalar_load {
    ($name:ident, $address:ty, $address_register:ident, $instruction:literal, $register:ident, $carrier:ty, $bits:literal) => {
        scalar_load!(
            $name, $address, $address_register, $instruction, $register, $carrier, $bits, pure, readonly, nostack
        );
    };
    ($name:ident, $address:ty, $address_register:ident, $instruction:literal, $register:ident, $carrier:ty, $bits:literal,
     $($option:ident),+) => {
        #[inline(always)]
        unsafe fn $name(address: $address) -> Self {
            let value: $carrier;
            // SAFETY: the caller vouches for the address.
            unsafe {
                asm!(concat!($instruction, ".", $bits, " {}, [{}];"),
                     out($register) value, in($address_register) address, options($($option),+))
            };
            value as Self
        }
    };
}

macro_rules! scalar_store {
    ($name:ident, $address:ty, $address_register:ident, $instruction:literal, $register:ident, $carrier:ty, $bits:literal) => {
        #[inline(always)]
        unsafe fn $name(address: $address, value: Self) {
            // SAFETY: the caller vouches for the address.
            unsafe {
                asm!(concat!($instruction, ".", $bits, " [{}], {};"),
                     in($address_register) address, in($register) value as $carrier, options(nostack))
            };
        }
    };
}

macro_rules! scalar {
    ($type:ty, $register:ident, $carrier:ty, $bits:literal) => {
        impl Element for $type {
            const SIZE: u32 = size_of::<$type>() as u32;
            scalar_load!(load_shared, u32, reg32, "ld.shared", $register, $carrier, $bits);
            scalar_load!(load_global, u64, reg64, "ld.global", $register, $carrier, $bits);
            scalar_load!(load_global_early, u64, reg64, "ld.global", $register, $carrier, $bits, nostack);
            scalar_load!(load_global_nc, u64, reg64, "ld.global.nc", $register, $carrier, $bits);
            scalar_load!(load_global_nc_early, u64, reg64, "ld.global.nc", $register, $carrier, $bits, nostack);
            scalar_load!(load_param, u64, reg64, "ld.param", $register, $carrier, $bits);
            scalar_store!(store_shared, u32, reg32, "st.shared", $register, $carrier, $bits);
            #[cfg(target_feature = "sm_90")]
            scalar_load!(load_cluster, u32, reg32, "ld.shared::cluster", $register, $carrier, $bits, nostack);
            #[cfg(target_feature = "sm_90")]
            scalar_store!(store_cluster, u32, reg32, "st.shared::cluster", $register, $carrier, $bits);
            scalar_store!(store_global, u64, reg64, "st.global", $register, $carrier, $bits);
            scalar_store!(store_global_streaming, u64, reg64, "st.global.cs", $register, $carrier, $bits);
        }
    };
}

scalar!(u8, reg16, u16, "u8");
scalar!(u16, reg16, u16, "u16");
scalar!(u32, reg32, u32, "b32");
scalar!(i32, reg32, i32, "b32");
scalar!(f32, reg32, f32, "b32");
scalar!(u64, reg64, u64, "b64");

macro_rules! vector_load {
    ($name:ident, $address:ty, $address_register:ident, $instruction:literal, $type:ty, $count:tt) => {
        vector_load!($name, $address, $address_register, $instruction, $type, $count, pure, readonly, nostack);
    };
    ($name:ident, $address:ty, $address_register:ident, $instruction:literal, $type:ty, 2, $($option:ident),+) => {
        #[inline(always)]
        unsafe fn $name(address: $address) -> Self {
            let (x, y): ($type, $type);
            // SAFETY: the caller vouches for the address.
            unsafe {
                asm!(concat!($instruction, ".v2.b32 {{{}, {}}}, [{}];"),
                     out(reg32) x, out(reg32) y, in($address_register) address, options($($option),+))
            };
            [x, y]
        }
    };
    ($name:ident, $address:ty, $address_register:ident, $instruction:literal, $type:ty, 4, $($option:ident),+) => {
        #[inline(always)]
        unsafe fn $name(address: $address) -> Self {
            let (x, y, z, w): ($type, $type, $type, $type);
            // SAFETY: the caller vouches for the address.
            unsafe {
                asm!(concat!($instruction, ".v4.b32 {{{}, {}, {}, {}}}, [{}];"),
                     out(reg32) x, out(reg32) y, out(reg32) z, out(reg32) w,
                     in($address_register) address, options($($option),+))
            };
            [x, y, z, w]
        }
    };
}

macro_rules! vector_store {
    ($name:ident, $address:ty, $address_register:ident, $instruction:literal, 2) => {
        #[inline(always)]
        unsafe fn $name(address: $address, value: Self) {
            let [x, y] = value;
            // SAFETY: the caller vouches for the address.
            unsafe {
                asm!(concat!($instruction, ".v2.b32 [{}], {{{}, {}}};"),
                     in($address_register) address, in(reg32) x, in(reg32) y, options(nostack))
            };
        }
    };
    ($name:ident, $address:ty, $address_register:ident, $instruction:literal, 4) => {
        #[inline(always)]
        unsafe fn $name(address: $address, value: Self) {
            let [x, y, z, w] = value;
            // SAFETY: the caller vouches for the address.
            unsafe {
                asm!(concat!($instruction, ".v4.b32 [{}], {{{}, {}, {}, {}}};"),
                     in($address_register) address, in(reg32) x, in(reg32) y, in(reg32) z, in(reg32) w,
                     options(nostack))
            };
        }
    };
}

macro_rules! vector {
    ($type:ty, $count:tt) => {
        impl Element for [$type; $count] {
            const SIZE: u32 = size_of::<[$type; $count]>() as u32;
            vector_load!(load_shared, u32, reg32, "ld.shared", $type, $count);
            vector_load!(load_global, u64, reg64, "ld.global", $type, $count);
            vector_load!(load_global_early, u64, reg64, "ld.global", $type, $count, nostack);
            vector_load!(load_global_nc, u64, reg64, "ld.global.nc", $type, $count);
            vector_load!(load_global_nc_early, u64, reg64, "ld.global.nc", $type, $count, nostack);
            vector_load!(load_param, u64, reg64, "ld.param", $type, $count);
            vector_store!(store_shared, u32, reg32, "st.shared", $count);
            #[cfg(target_feature = "sm_90")]
            vector_load!(load_cluster, u32, reg32, "ld.shared::cluster", $type, $count, nostack);
            #[cfg(target_feature = "sm_90")]
            vector_store!(store_cluster, u32, reg32, "st.shared::cluster", $count);
            vector_store!(store_global, u64, reg64, "st.global", $count);
            vector_store!(store_global_streaming, u64, reg64, "st.global.cs", $count);
        }
    };
}

vector!(u32, 2);
vector!(f32, 2);
vector!(u32, 4);
vector!(f32, 4);

macro_rules! atomics {
    ($index:ty, $register:ident; $($(#[$doc:meta])* $name:ident => $instruction:literal;)*) => {
        $(
            $(#[$doc])*
            /// Returns the value before.
            ///
            /// # Safety
            /// The element lies inside the memory, and nobody accesses it other than atomically meanwhile.
            #[inline(always)]
            pub unsafe fn $name(self, idx: $index, value: u32) -> u32 {
                let before: u32;
                // SAFETY: the caller vouches for the address.
                unsafe {
                    asm!(concat!($instruction, " {}, [{}], {};"),
                         out(reg32) before, in($register) self.element_address(idx), in(reg32) value,
                         options(nostack))
                };
                before
            }
        )*
    };
}

/// Dynamic shared memory.
pub mod shared {
    pub use super::Element;
    use core::arch::asm;
    use core::marker::PhantomData;

    /// An array in the dynamic shared memory of the block.
    #[derive(Clone, Copy)]
    pub struct Shared<T> {
        address: u32,
        element: PhantomData<T>,
    }

    impl<T: Element> Shared<T> {
        /// The array that begins `byte_offset` into the dynamic shared memory.
        ///
        /// # Safety
        /// `byte_offset` is a multiple of the size of `T` and lies inside what the launch asked for.
        #[inline(always)]
        pub unsafe fn at(byte_offset: u32) -> Self {
            let base = super::dynamic_shared_base();
            Self { address: base + byte_offset, element: PhantomData }
        }

        #[inline(always)]
        fn element_address(self, idx: u32) -> u32 {
            self.address + idx * T::SIZE
        }

        /// Reads element `idx`.
        ///
        /// # Safety
        /// The element lies inside the memory, was written, and nobody writes it unordered with this.
        #[inline(always)]
        pub unsafe fn load(self, idx: u32) -> T {
            // SAFETY: passed on to the caller.
            unsafe { T::load_shared(self.element_address(idx)) }
        }

        /// Writes element `idx`.
        ///
        /// # Safety
        /// The element lies inside the memory, and nobody accesses it unordered with this.
        #[inline(always)]
        pub unsafe fn store(self, idx: u32, value: T) {
            // SAFETY: passed on to the caller.
            unsafe { T::store_shared(self.element_address(idx), value) }
        }

        /// The same address in the shared memory of block `rank` of the cluster.
        #[cfg(target_feature = "sm_90")]
        #[inline(always)]
        fn remote_address(self, rank: u32, idx: u32) -> u32 {
            let address: u32;
            // SAFETY: computes an address, touches no memory.
            unsafe {
                asm!("mapa.shared::cluster.u32 {}, {}, {};",
                     out(reg32) address, in(reg32) self.element_address(idx), in(reg32) rank,
                     options(pure, nomem, nostack))
            };
            address
        }

        /// Reads element `idx` of the array at the same place in the shared memory of block `rank` of the cluster.
        ///
        /// # Safety
        /// As `load`, there. The cluster has such a block, it has begun, and it does not end before this.
        #[inline(always)]
        pub unsafe fn load_remote(self, rank: u32, idx: u32) -> T {
            #[cfg(target_feature = "sm_90")]
            // SAFETY: passed on to the caller.
            return unsafe { T::load_cluster(self.remote_address(rank, idx)) };
            #[cfg(not(target_feature = "sm_90"))]
            {
                _ = rank;
                // SAFETY: passed on to the caller; the cluster is this block.
                unsafe { self.load(idx) }
            }
        }

        /// Writes element `idx` of the array at the same place in the shared memory of block `rank` of the cluster.
        ///
        /// # Safety
        /// As `store`, there. The cluster has such a block, it has begun, and it does not end before this.
        #[inline(always)]
        pub unsafe fn store_remote(self, rank: u32, idx: u32, value: T) {
            #[cfg(target_feature = "sm_90")]
            // SAFETY: passed on to the caller.
            unsafe {
                T::store_cluster(self.remote_address(rank, idx), value)
            };
            #[cfg(not(target_feature = "sm_90"))]
            {
                _ = rank;
                // SAFETY: passed on to the caller; the cluster is this block.
                unsafe { self.store(idx, value) }
            }
        }
    }

    /// Atomics of block scope that order no other memory.
    impl Shared<u32> {
        atomics! { u32, reg32;
            /// Adds, wrapping.
            fetch_add => "atom.relaxed.cta.shared.add.u32";
            /// Keeps the greater value.
            fetch_max => "atom.relaxed.cta.shared.max.u32";
            /// Keeps the smaller value.
            fetch_min => "atom.relaxed.cta.shared.min.u32";
            /// Sets bits.
            fetch_or => "atom.relaxed.cta.shared.or.b32";
            /// Replaces the value.
            exchange => "atom.relaxed.cta.shared.exch.b32";
        }
    }
}

/// Device memory.
pub mod global {
    pub use super::Element;
    use core::arch::asm;
    use core::marker::PhantomData;

    /// An array in device memory, or in host memory mapped into it.
    #[repr(transparent)]
    #[derive(Clone, Copy)]
    pub struct Global<T> {
        address: u64,
        element: PhantomData<T>,
    }

    impl<T: Element> Global<T> {
        /// The array at `address`, which is a multiple of the size of `T`.
        #[inline(always)]
        pub fn from_address(address: u64) -> Self {
            Self { address, element: PhantomData }
        }

        /// Address of the first element.
        #[inline(always)]
        pub fn address(self) -> u64 {
            self.address
        }

        #[inline(always)]
        fn element_address(self, idx: usize) -> u64 {
            self.address + idx as u64 * T::SIZE as u64
        }

        /// Reads element `idx`.
        ///
        /// # Safety
        /// The element lies inside the memory, was written, and nobody writes it unordered with this.
        #[inline(always)]
        pub unsafe fn load(self, idx: usize) -> T {
            // SAFETY: passed on to the caller.
            unsafe { T::load_global(self.element_address(idx)) }
        }

        /// [`load`](Self::load) that is issued here, not where its value is used first.
        ///
        /// # Safety
        /// As `load`.
        #[inline(always)]
        pub unsafe fn load_early(self, idx: usize) -> T {
            // SAFETY: passed on to the caller.
            unsafe { T::load_global_early(self.element_address(idx)) }
        }

        /// Reads element `idx` past the coherent cache.
        ///
        /// # Safety
        /// As `load`, and nobody writes the element while this kernel or one that it overlaps runs.
        #[inline(always)]
        pub unsafe fn load_nc(self, idx: usize) -> T {
            // SAFETY: passed on to the caller.
            unsafe { T::load_global_nc(self.element_address(idx)) }
        }

        /// [`load_nc`](Self::load_nc) that is issued here, not where its value is used first: the compiler would rather
        /// save registers than have many loads on their way.
        ///
        /// # Safety
        /// As `load_nc`.
        #[inline(always)]
        pub unsafe fn load_nc_early(self, idx: usize) -> T {
            // SAFETY: passed on to the caller.
            unsafe { T::load_global_nc_early(self.element_address(idx)) }
        }

        /// Writes element `idx`.
        ///
        /// # Safety
        /// The element lies inside the memory, and nobody accesses it unordered with this.
        #[inline(always)]
        pub unsafe fn store(self, idx: usize, value: T) {
            // SAFETY: passed on to the caller.
            unsafe { T::store_global(self.element_address(idx), value) }
        }

        /// Writes element `idx`, which no kernel will read soon.
        ///
        /// # Safety
        /// As `store`.
        #[inline(always)]
        pub unsafe fn store_streaming(self, idx: usize, value: T) {
            // SAFETY: passed on to the caller.
            unsafe { T::store_global_streaming(self.element_address(idx), value) }
        }
    }

    macro_rules! ordered_load {
        ($($(#[$doc:meta])* $name:ident => $instruction:literal;)*) => {
            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// The element lies inside the memory, was written, and is only accessed atomically meanwhile.
                #[inline(always)]
                pub unsafe fn $name(self, idx: usize) -> u32 {
                    let value: u32;
                    // SAFETY: the caller vouches for the address.
                    unsafe {
                        asm!(concat!($instruction, " {}, [{}];"),
                             out(reg32) value, in(reg64) self.element_address(idx), options(nostack))
                    };
                    value
                }
            )*
        };
    }

    macro_rules! ordered_store {
        ($($(#[$doc:meta])* $name:ident => $instruction:literal;)*) => {
            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// The element lies inside the memory, and is only accessed atomically meanwhile.
                #[inline(always)]
                pub unsafe fn $name(self, idx: usize, value: u32) {
                    // SAFETY: the caller vouches for the address.
                    unsafe {
                        asm!(concat!($instruction, " [{}], {};"),
                             in(reg64) self.element_address(idx), in(reg32) value, options(nostack))
                    };
                }
            )*
        };
    }

    impl Global<u32> {
        atomics! { usize, reg64;
            /// Adds, wrapping; device scope, orders no other memory.
            fetch_add => "atom.relaxed.gpu.global.add.u32";
            /// Keeps the greater value; device scope, orders no other memory.
            fetch_max => "atom.relaxed.gpu.global.max.u32";
            /// Keeps the smaller value; device scope, orders no other memory.
            fetch_min => "atom.relaxed.gpu.global.min.u32";
            /// Sets bits; device scope, orders no other memory.
            fetch_or => "atom.relaxed.gpu.global.or.b32";
            /// Replaces the value; device scope, orders no other memory.
            exchange => "atom.relaxed.gpu.global.exch.b32";
            /// Adds, wrapping; acquire and release, device scope.
            fetch_add_acq_rel => "atom.acq_rel.gpu.global.add.u32";
            /// Adds, wrapping; acquire and release, system scope.
            fetch_add_acq_rel_system => "atom.acq_rel.sys.global.add.u32";
        }
        ordered_load! {
            /// Reads element `idx` anew each time; orders no other memory.
            load_volatile => "ld.volatile.global.u32";
            /// Reads element `idx`; what follows sees what its writer released. Device scope.
            load_acquire => "ld.acquire.gpu.global.u32";
        }
        ordered_store! {
            /// Writes element `idx` at once; orders no other memory.
            store_volatile => "st.volatile.global.u32";
            /// Writes element `idx` after everything before it. Device scope.
            store_release => "st.release.gpu.global.u32";
            /// Writes element `idx` after everything before it, for the host too.
            store_release_system => "st.release.sys.global.u32";
        }
    }
}

/// The argument record, read in place.
pub mod params {
    use super::Element;

    /// The argument record of the running entry, for reads at an index known only at run time.
    #[derive(Clone, Copy)]
    pub struct Params {
        address: u64,
    }

    impl Params {
        #[doc(hidden)]
        #[inline(always)]
        pub fn from_address(address: u64) -> Self {
            Self { address }
        }

        /// The record, of which the compiler does not know that it is the same: what is read through it is read anew, from
        /// the constant bank, in place of being held in registers.
        #[inline(always)]
        pub fn anew(self) -> Self {
            let address: u64;
            // SAFETY: copies a register.
            unsafe {
                core::arch::asm!("mov.b64 {}, {};", out(reg64) address, in(reg64) self.address, options(nomem, nostack))
            };
            Self { address }
        }

        /// Reads a `T` that begins `byte_offset` into the argument record.
        ///
        /// # Safety
        /// A `T` lies there, at a multiple of its size.
        #[inline(always)]
        pub unsafe fn load<T: Element>(self, byte_offset: u32) -> T {
            // SAFETY: passed on to the caller.
            unsafe { T::load_param(self.address + byte_offset as u64) }
        }
    }
}

/// Memory fences: they order, they do not wait.
pub mod fence {
    use core::arch::asm;

    /// Acquire and release fence of device scope.
    #[inline(always)]
    pub fn device() {
        // SAFETY: a fence touches no memory of its own.
        unsafe { asm!("fence.acq_rel.gpu;", options(nostack)) };
    }

    /// Acquire and release fence of system scope.
    #[inline(always)]
    pub fn system() {
        // SAFETY: a fence touches no memory of its own.
        unsafe { asm!("fence.acq_rel.sys;", options(nostack)) };
    }
}

/// Programmatic dependent launch: two grids of one stream that overlap. Nothing below sm_90, where they cannot.
pub mod grid {
    #[cfg(target_feature = "sm_90")]
    use core::arch::asm;

    /// Waits until the grid before this one in the stream has ended and its memory is visible.
    #[inline(always)]
    pub fn depend_wait() {
        #[cfg(target_feature = "sm_90")]
        // SAFETY: waits only.
        unsafe {
            asm!("griddepcontrol.wait;", options(nostack))
        };
    }

    /// Lets the next grid of the stream start once every block of this one has called this or ended.
    #[inline(always)]
    pub fn launch_dependents() {
        #[cfg(target_feature = "sm_90")]
        // SAFETY: a hint to the scheduler.
        unsafe {
            asm!("griddepcontrol.launch_dependents;", options(nostack))
        };
    }
}

/// Arithmetic whose rounding is part of the contract.
pub mod math {
    use core::arch::asm;

    macro_rules! ternary {
        ($($(#[$doc:meta])* $name:ident => $instruction:literal;)*) => {
            $(
                $(#[$doc])*
                #[inline(always)]
                pub fn $name(a: f32, b: f32, c: f32) -> f32 {
                    let result: f32;
                    // SAFETY: arithmetic only.
                    unsafe {
                        asm!(concat!($instruction, " {}, {}, {}, {};"),
                             out(reg32) result, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack))
                    };
                    result
                }
            )*
        };
    }

    ternary! {
        /// `a * b + c`, rounded once, to nearest.
        fma => "fma.rn.f32";
        /// `a * b + c`, rounded once, toward minus infinity.
        fma_rd => "fma.rm.f32";
    }

    macro_rules! binary {
        ($($(#[$doc:meta])* $name:ident => $instruction:literal;)*) => {
            $(
                $(#[$doc])*
                #[inline(always)]
                pub fn $name(a: f32, b: f32) -> f32 {
                    let result: f32;
                    // SAFETY: arithmetic only.
                    unsafe {
                        asm!(concat!($instruction, " {}, {}, {};"),
                             out(reg32) result, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
                    };
                    result
                }
            )*
        };
    }

    binary! {
        /// `a / b`, rounded to nearest.
        div => "div.rn.f32";
        /// About `a / b`: for guesses.
        div_approx => "div.approx.ftz.f32";
    }

    macro_rules! unary {
        ($($(#[$doc:meta])* $name:ident($register:ident $type:ty) => $instruction:literal;)*) => {
            $(
                $(#[$doc])*
                #[inline(always)]
                pub fn $name(x: $type) -> f32 {
                    let result: f32;
                    // SAFETY: arithmetic only.
                    unsafe {
                        asm!(concat!($instruction, " {}, {};"),
                             out(reg32) result, in($register) x, options(pure, nomem, nostack))
                    };
                    result
                }
            )*
        };
    }

    unary! {
        /// 2 to the `x`, by the hardware's approximation; subnormal input and output become zero.
        ex2_approx_ftz(reg32 f32) => "ex2.approx.ftz.f32";
        /// `1 / x`, rounded to nearest: what `div(1.0, x)` is, in fewer steps.
        reciprocal(reg32 f32) => "rcp.rn.f32";
        /// The nearest whole number, ties to even.
        rne(reg32 f32) => "cvt.rni.f32.f32";
        /// An IEEE half as `f32`; exact. A NaN may change its payload.
        f16_to_f32(reg16 u16) => "cvt.f32.f16";
    }

    /// The value, of which the compiler knows nothing, each time anew: a loop with such a bound is not unrolled, and one
    /// with such a condition inside is not made twice.
    #[inline(always)]
    pub fn opaque(value: u32) -> u32 {
        let result: u32;
        // SAFETY: copies a register.
        unsafe { asm!("mov.b32 {}, {};", out(reg32) result, in(reg32) value, options(nomem, nostack)) };
        result
    }

    /// A bfloat16 as `f32`; exact.
    #[inline(always)]
    pub fn bf16_to_f32(bits: u16) -> f32 {
        f32::from_bits((bits as u32) << 16)
    }
}

//! The device facade: everything that a kernel body may ask of the machine it runs on.
//!
//! A kernel body is plain Rust over the modules below, named as in rust-cuda's `cuda_std` where that has the call.
//! Which machine answers is decided here and nowhere else:
//!
//! - [`mod@emulator`]: the host. Lanes are coroutines under a seeded, hostile schedule, and every access is checked.
//! - `device`: nvptx64, by LLVM's intrinsics and inline PTX.
//! - `cuda_std`: nvptx64 under rust-cuda, feature `cuda-std`.
//!
//! # Rules that hold for all three
//!
//! - Blocks and grids have one dimension. A block is a whole number of warps.
//! - Barriers, votes, shuffles and reductions are called by every lane that they wait for, from one place in the source.
//! - Votes, shuffles and `warp_reduce_*` order no memory. `sync_warp`, `sync_threads`, `sync_cluster` and the release and
//!   acquire calls do.
//! - Memory has no generic addresses: [`shared::Shared`] and [`global::Global`] say which space is meant, and each access
//!   is one instruction of the width of its type.
//! - The blocks of a cluster have neighboring indices. A kernel must give the same result when every cluster is one block,
//!   which is what devices before sm_90 make of it.
//! - A block's shared memory is there for others while it runs: a remote access stands between two `sync_cluster`, of which
//!   the first says that the block has begun and the second keeps it from ending.

#[cfg(not(target_arch = "nvptx64"))]
pub mod emulator;
#[cfg(not(target_arch = "nvptx64"))]
pub use emulator::facade::{cluster, fence, global, grid, math, params, shared, thread, warp};

#[cfg(all(target_arch = "nvptx64", not(feature = "cuda-std")))]
mod device;
#[cfg(all(target_arch = "nvptx64", not(feature = "cuda-std")))]
pub use device::{cluster, fence, global, grid, math, params, shared, thread, warp};

#[cfg(feature = "cuda-std")]
mod cuda_std;
#[cfg(all(target_arch = "nvptx64", feature = "cuda-std"))]
mod device;
#[cfg(all(target_arch = "nvptx64", feature = "cuda-std"))]
pub use {
    cuda_std::{fence, thread, warp},
    device::{cluster, global, grid, math, params, shared},
};

/// What the launcher and the emulator must know about one entry. Written by [`kernel!`](crate::kernel).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelInfo {
    /// Name of the entry in the PTX.
    pub name: &'static str,
    /// Largest block that the entry is compiled for (`.maxntid`).
    pub max_threads: u32,
    /// Blocks that must fit on one multiprocessor (`.minnctapersm`).
    pub min_blocks: u32,
    /// Blocks of a cluster on devices that have clusters (`.reqnctapercluster`); 1 for none.
    pub cluster_blocks: u32,
    /// Size of the argument record, in bytes.
    pub args_bytes: usize,
}

/// Declares the kernel entries of this crate, and `KERNELS`, the list of them.
///
/// From one declaration come:
/// - on the device, the entry `NAME` in the PTX, and its launch bounds, which `cargo xtask build-ptx` copies from a
///   comment that this macro leaves there (the language cannot say them): threads of a block, blocks of a multiprocessor
///   and, behind `cluster =`, blocks of a cluster, 1 when absent;
/// - on the host, a module `NAME` with `INFO`, the type `Args`, and `launch`, which makes the emulator's launch.
///
/// The argument record is `repr(C)`, `Copy`, and passed by value. The body sees it by reference; reading an array in it
/// at an index known only at run time would copy it to local memory, so such reads go through the optional second
/// parameter (see [`params`]). A module and a kernel cannot share a name.
///
/// ```ignore
/// kernel! {
///     /// Adds one to every element.
///     #[launch_bounds(256, 2)]
///     pub fn add_one(args: &AddOneArgs) {
///         // SAFETY: `values` holds `len` elements.
///         unsafe { body(args) }
///     }
/// }
/// ```
#[macro_export]
macro_rules! kernel {
    ($(
        $(#[doc = $doc:expr])*
        #[launch_bounds($max_threads:expr, $min_blocks:expr $(, cluster = $cluster_blocks:expr)? $(,)?)]
        pub fn $name:ident($args:ident: &$args_type:ty $(, $params:ident: Params)? $(,)?) $body:block
    )*) => {
        $(
            $(#[doc = $doc])*
            pub mod $name {
                #[allow(unused_imports, reason = "a declaration may name everything by path")]
                use super::*;

                /// The argument record, passed by value.
                pub type Args = $args_type;

                /// Name, bounds and argument size.
                pub const INFO: $crate::simt::KernelInfo = $crate::simt::KernelInfo {
                    name: stringify!($name),
                    max_threads: $max_threads,
                    min_blocks: $min_blocks,
                    cluster_blocks: $crate::kernel!(@cluster_blocks $($cluster_blocks)?),
                    args_bytes: size_of::<Args>(),
                };

                #[inline(always)]
                fn declared_body($args: &Args, _params: $crate::simt::params::Params) {
                    $(let $params = _params;)?
                    $body
                }

                #[cfg(target_arch = "nvptx64")]
                $crate::kernel!(@entry $name);

                /// The launch that the emulator runs: this kernel over `grid` blocks of `block` lanes.
                #[cfg(not(target_arch = "nvptx64"))]
                pub fn launch(
                    args: Args, grid: u32, block: u32, shared_bytes: u32,
                ) -> $crate::simt::emulator::Launch<'static> {
                    $crate::simt::emulator::Launch::new(INFO, args, grid, block, shared_bytes, declared_body)
                }
            }
        )*

        /// Every entry of this crate, in the order of declaration.
        pub const KERNELS: &[$crate::simt::KernelInfo] = &[$($name::INFO),*];
    };
    (@cluster_blocks) => { 1 };
    (@cluster_blocks $cluster_blocks:expr) => { $cluster_blocks };
    (@entry $name:ident) => {
        // rust-cuda's compiler takes no module-level assembly; its PTX goes without bounds.
        #[cfg(not(feature = "cuda-std"))]
        core::arch::global_asm!(
            concat!("// launch-bounds ", stringify!($name), " {} {} {}"),
            const INFO.max_threads,
            const INFO.min_blocks,
            const INFO.cluster_blocks,
        );

        /// The entry of the PTX.
        ///
        /// # Safety
        /// The launcher owes what the declaration's documentation asks of its argument record.
        #[cfg(not(feature = "cuda-std"))]
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name(args: Args) {
            let address: u64;
            // SAFETY: takes the address of this entry's own parameter; touches no memory.
            unsafe {
                core::arch::asm!(
                    concat!("mov.b64 {}, ", stringify!($name), "_param_0;"),
                    out(reg64) address,
                    options(pure, nomem, nostack)
                )
            };
            declared_body(&args, $crate::simt::params::Params::from_address(address));
        }

        /// The entry of the PTX, under rust-cuda.
        ///
        /// # Safety
        /// The launcher owes what the declaration's documentation asks of its argument record.
        #[cfg(feature = "cuda-std")]
        #[::cuda_std::kernel]
        pub unsafe fn $name(args: Args) {
            declared_body(&args, $crate::simt::params::Params::from_address(&raw const args as u64));
        }
    };
}

//! The kernels of rfdetr-post, in Rust.
//!
//! The same sources are built twice: for nvptx64 by `cargo xtask build-ptx`, which writes the PTX that the launcher
//! loads, and for the host, where [`simt::emulator`] runs them under a hostile schedule and checks every access.

#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, stdarch_nvptx, asm_experimental_arch, link_llvm_intrinsics))]
#![cfg_attr(feature = "cuda-std", allow(unexpected_cfgs, reason = "cuda_std's attribute names targets of the past"))]
#![cfg_attr(
    target_arch = "nvptx64",
    allow(internal_features, reason = "convergent operations exist only as intrinsics")
)]

pub mod axes;
pub mod boxes;
pub mod changes;
pub mod columns;
pub mod dense;
pub mod encode;
pub mod flags;
pub mod grid_logits;
pub mod inputs;
pub mod masks;
pub mod parts;
pub mod rle;
pub mod rows;
pub mod scan;
pub mod score;
pub mod select;
#[cfg(feature = "self-test")]
pub mod self_test;
pub mod signs;
pub mod simt;

use rfdetr_post_core::packed::{
    INLINE_IMAGES, MaskArgs, SelectArgs,
    shared::masks::{DENSE_MAX_THREADS, DENSE_MIN_BLOCKS, MAX_THREADS, RLE_CLUSTER, RLE_MAX_THREADS},
};

use crate::simt::{grid, thread};

kernel! {
    /// Selects and decodes the detections of a batch: one block an image. Further blocks, `axis_blocks` an image, build
    /// the axis tables of the mask kernels meanwhile.
    #[launch_bounds(1024, 1)]
    pub fn rfdetr_select(args: &SelectArgs, params: Params) {
        grid::launch_dependents();
        let block = thread::block_idx_x();
        // SAFETY: the launcher built `args` from a plan, and launches as many blocks and as much shared memory as it says.
        unsafe {
            if block < args.batch {
                select::select(args, params, block);
            } else {
                let (image, part) = scan::div_rem(block - args.batch, args.axis_blocks);
                let offset = core::mem::offset_of!(SelectArgs, records) as u32;
                let is_inline = args.batch as usize <= INLINE_IMAGES;
                let record = inputs::load_record(is_inline, params, offset, args.records_at, image);
                axes::build(args.axes_at, &args.axes, &record, args.flags, image, part, args.axis_blocks);
            }
        }
    }

    /// Makes the run lengths of every detection: any number of clusters, whose blocks share masks. The cells of a mask have room in shared memory.
    #[launch_bounds(RLE_MAX_THREADS, 1, cluster = RLE_CLUSTER)]
    pub fn rfdetr_masks_rle(_args: &MaskArgs, params: Params) {
        // SAFETY: the launcher built `args` from a plan, and launches as many blocks and as much shared memory as it says.
        unsafe { rle::masks_rle::<true>(params) }
    }

    /// Makes the run lengths of every detection: any number of clusters, whose blocks share masks. The cells stay in device memory.
    #[launch_bounds(RLE_MAX_THREADS, 1, cluster = RLE_CLUSTER)]
    pub fn rfdetr_masks_rle_large(_args: &MaskArgs, params: Params) {
        // SAFETY: the launcher built `args` from a plan, and launches as many blocks and as much shared memory as it says.
        unsafe { rle::masks_rle::<false>(params) }
    }

    /// Makes the dense or bit-packed masks of every detection: any number of blocks.
    #[launch_bounds(DENSE_MAX_THREADS, DENSE_MIN_BLOCKS)]
    pub fn rfdetr_masks_dense(args: &MaskArgs, params: Params) {
        // SAFETY: the launcher built `args` from a plan, and launches as many blocks and as much shared memory as it says.
        unsafe { dense::masks_dense(args, params) }
    }

    /// Copies the mask grids of every detection: any number of blocks.
    #[launch_bounds(MAX_THREADS, 1)]
    pub fn rfdetr_masks_grid(args: &MaskArgs, params: Params) {
        // SAFETY: the launcher built `args` from a plan, and launches as many blocks and as much shared memory as it says.
        unsafe { grid_logits::masks_grid(args, params) }
    }
}

#[cfg(all(target_arch = "nvptx64", not(feature = "cuda-std")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: ends the kernel with an error. `build-ptx` rejects PTX in which a call could get here.
    unsafe { core::arch::nvptx::trap() }
}

//! The kernels of rfdetr-post, in Rust.
//!
//! The same sources are built twice: for nvptx64 by `cargo xtask build-ptx`, which writes the PTX that the launcher
//! loads, and for the host, where [`simt::emulator`] runs them under a hostile schedule and checks every access.

#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(abi_ptx, stdarch_nvptx, asm_experimental_arch, link_llvm_intrinsics)
)]
#![cfg_attr(feature = "cuda-std", allow(unexpected_cfgs, reason = "cuda_std's attribute names targets of the past"))]
#![cfg_attr(target_arch = "nvptx64", allow(internal_features, reason = "convergent operations exist only as intrinsics"))]

#[cfg(feature = "self-test")]
pub mod self_test;
pub mod simt;

#[cfg(all(target_arch = "nvptx64", not(feature = "cuda-std")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: ends the kernel with an error. `build-ptx` rejects PTX in which a call could get here.
    unsafe { core::arch::nvptx::trap() }
}

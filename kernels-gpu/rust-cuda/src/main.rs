//! Compiles the kernels through rust-cuda's `cuda_builder`: `rfdetr-post-rust-cuda FOLDER ARCH...`.

use std::path::Path;

use cuda_builder::{CudaBuilder, NvvmArch};

fn main() -> Result<(), String> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: rfdetr-post-rust-cuda FOLDER ARCH...")?;
    std::fs::create_dir_all(&folder).map_err(|error| format!("cannot make {folder}: {error}"))?;
    for arch in args {
        let nvvm_arch = match arch.as_str() {
            "sm_75" => NvvmArch::Compute75,
            "sm_80" => NvvmArch::Compute80,
            _ => {
                println!("{arch}: skipped; this revision's LLVM 7 back end is set up here for sm_75 and sm_80");
                continue;
            }
        };
        let path = Path::new(&folder).join(format!("rfdetr_post_{arch}.ptx"));
        CudaBuilder::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels"))
            .arch(nvvm_arch)
            // Contraction is on by default there, and would change bits: fma happens only where the source says so.
            .fma_contraction(false)
            .build_args(&["--ignore-rust-version"])
            .copy_to(&path)
            .build()
            .map_err(|error| format!("{arch}: {error}"))?;
        println!("{}", path.display());
    }
    Ok(())
}

//! `cargo xtask gpu-test`: one folder that holds the GPU suite and runs on a GPU machine without cargo or network.

use anyhow::Result;

use crate::bundle::{Bundle, Flags};

/// Programs and script.
pub const BUNDLE: Bundle = Bundle {
    programs: &[
        ("rfdetr-post-tests", "--bin", "rfdetr-post-gpu-test"),
        ("rfdetr-post", "--bin", "rfdetr-post"),
        ("rfdetr-post-cuda", "--example", "rfdetr-post-gpu-bench"),
    ],
    script: include_str!("gpu_test.sh"),
    machine: "GPU machine",
};

/// Runs `gpu-test`.
pub fn run(flags: &Flags) -> Result<()> {
    BUNDLE.make("gpu-bundle", flags)
}

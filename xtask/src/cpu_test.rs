//! `cargo xtask cpu-test`: one folder that holds the suite and the bench of the fast CPU path and runs on a machine without
//! cargo or network.

use anyhow::Result;

use crate::bundle::{Bundle, Flags};

/// Programs and script.
pub const BUNDLE: Bundle = Bundle {
    programs: &[("rfdetr-post-tests", "--bin", "rfdetr-post-cpu-test"), ("rfdetr-post", "--bin", "rfdetr-post")],
    script: include_str!("cpu_test.sh"),
    machine: "machine to test",
};

/// Runs `cpu-test`.
pub fn run(flags: &Flags) -> Result<()> {
    BUNDLE.make("cpu-bundle", flags)
}

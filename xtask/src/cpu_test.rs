//! `cargo xtask cpu-test`: one folder that holds the suite and the bench of the fast CPU path and runs on a machine without
//! cargo or network.

use anyhow::Result;

use crate::bundle::{Bundle, Flags, Program};

/// Programs and script.
pub const BUNDLE: Bundle = Bundle {
    programs: &[Program::bin("rfdetr-post-tests", "rfdetr-post-cpu-test"), Program::bin("rfdetr-post", "rfdetr-post")],
    script: include_str!("cpu_test.sh"),
    machine: "machine to test",
};

/// Runs `cpu-test`.
pub fn run(flags: &Flags) -> Result<()> {
    BUNDLE.make("cpu-bundle", flags, &[])
}

//! The workshop of the workspace: `cargo xtask COMMAND`.
//!
//! This file declares the flags and dispatches; each command is a module. The commands spawn cargo and read files, so this
//! crate depends on no other crate of the workspace.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod build_ptx;
mod bundle;
mod ci;
mod cpu_memcheck;
mod cpu_test;
mod cubins;
mod dependencies;
mod gpu_test;
mod ptx_check;
mod ptx_report;
mod ptxas;
mod test;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The workshop of the workspace")]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test that a machine without GPU, CUDA and Python can run.
    Test(test::Flags),
    /// Run all checks: formatting, lints, documentation, dependencies, tests, the demo, the PTX.
    Ci(ci::Flags),
    /// Build the GPU suite into one folder that runs on a GPU machine without cargo or network.
    GpuTest(bundle::Flags),
    /// Build the suite and the bench of the CPU path into one folder that runs without cargo or network.
    CpuTest(bundle::Flags),
    /// Run the CPU path under valgrind and the address sanitizer.
    CpuMemcheck(cpu_memcheck::Flags),
    /// Time the CPU path or a GPU beside their peers; write the record and a picture to `docs/bench/`.
    Bench(bench::Flags),
    /// Compile the kernels to PTX, assemble that, and write both to `crates/rfdetr-post-cuda/ptx/`.
    BuildPtx(build_ptx::Flags),
    /// Show registers, spills, shared memory and stack of every kernel; fail on spills, a stack or generic accesses.
    PtxReport(ptx_report::Flags),
}

fn main() -> Result<()> {
    match Flags::parse().command {
        Command::Test(flags) => test::run(&flags),
        Command::Ci(flags) => ci::run(&flags),
        Command::GpuTest(flags) => gpu_test::run(&flags),
        Command::CpuTest(flags) => cpu_test::run(&flags),
        Command::CpuMemcheck(flags) => cpu_memcheck::run(&flags),
        Command::Bench(flags) => bench::run(&flags),
        Command::BuildPtx(flags) => build_ptx::run(&flags),
        Command::PtxReport(flags) => ptx_report::run(&flags),
    }
}

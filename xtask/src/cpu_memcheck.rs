//! `cargo xtask cpu-memcheck`: the fast CPU path under valgrind, and under the compiler's address sanitizer.
//!
//! Valgrind shows the program a processor without AVX-512, so it covers the portable path and AVX2, and finds reads of
//! uninitialized memory, too. The sanitizer runs on the machine as it is, so it covers AVX-512 where there is any.

use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::workspace;

/// Flags of `cpu-memcheck`.
#[derive(Args)]
pub struct Flags {
    /// The checker; default: both
    #[arg(long, value_enum)]
    only: Option<Checker>,
    /// Random requests under each
    #[arg(long, value_name = "N", default_value_t = 2000)]
    cases: u64,
    /// Seed of the requests
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// A memory checker.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Checker {
    /// valgrind's memcheck
    Valgrind,
    /// AddressSanitizer of this compiler
    Asan,
}

const PROGRAM: &str = "rfdetr-post-cpu-test";
const BUILD: [&str; 7] = ["build", "--locked", "--release", "-p", "rfdetr-post-tests", "--bin", PROGRAM];
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs `cpu-memcheck`.
pub fn run(flags: &Flags) -> Result<()> {
    let wants = |checker| flags.only.is_none_or(|only| only == checker);
    let (cases, seed) = (flags.cases.to_string(), flags.seed.to_string());
    let parts = [vec!["fixtures", "--quick"], vec!["parity", "--cases", &cases, "--seed", &seed]];
    if wants(Checker::Valgrind) {
        workspace::run(&mut workspace::cargo(&BUILD))?;
        for part in &parts {
            let mut command = Command::new("valgrind");
            // Threads of a pool that end with the process leave blocks that are possibly lost.
            command.args(["--quiet", "--error-exitcode=9", "--leak-check=full"]);
            command.args(["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"]);
            command.arg(workspace::target_dir().join("release").join(PROGRAM)).args(part).args(["--threads", "1"]);
            checked(&mut command)?;
        }
    }
    if wants(Checker::Asan) {
        let target_dir = workspace::target_dir().join("asan");
        let mut build = workspace::cargo(&BUILD);
        build.args(["--target", TARGET]).arg("--target-dir").arg(&target_dir);
        // The sanitizer's runtime comes with the stable compiler, the flag that asks for it does not.
        build.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
        println!("RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address {}", workspace::shown(&build));
        workspace::run(&mut build)?;
        for part in &parts {
            let mut command = Command::new(target_dir.join(TARGET).join("release").join(PROGRAM));
            command.args(part).args(["--threads", "1"]);
            checked(&mut command)?;
        }
    }
    Ok(())
}

/// Runs a command, and says which one it is.
fn checked(command: &mut Command) -> Result<()> {
    println!("{}", workspace::shown(command));
    if let Err(error) = workspace::run(command) {
        bail!("a report, or a wrong answer: {error:#}");
    }
    Ok(())
}

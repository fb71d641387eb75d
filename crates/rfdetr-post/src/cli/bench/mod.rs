//! `rfdetr-post bench`: what this machine needs for model-like requests, answers checked, peers beside it in the same run.
//!
//! [`cpu`] times the CPU path, [`cuda`] a GPU; [`peers`] runs the Python scripts, [`plot`] draws.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod peers;
mod plot;

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    args::{DeviceArg, DeviceFlag},
    summary::print,
};

/// Flags of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to time.
    #[command(flatten)]
    pub device: DeviceFlag,
    /// goals, all, or names with commas; what is no name stands for all that begin with it
    #[arg(long, value_name = "CASES", default_value = "goals")]
    pub cases: String,
    /// Print the names of the cases and end
    #[arg(long)]
    pub list: bool,
    /// Write the record
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the record
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Commit for the record; default: RFDETR_POST_COMMIT, or what git says
    #[arg(long, value_name = "TEXT")]
    pub commit: Option<String>,
    /// Seconds for each figure
    #[arg(long, value_name = "S", default_value_t = 0.5)]
    pub seconds: f64,
    /// Python of the peers: torch, pycocotools and OpenCV, as far as it has them
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    pub python: String,
    /// Time no peers
    #[arg(long)]
    pub no_peers: bool,

    /// Wall samples of a case, if --seconds allows
    #[arg(long, value_name = "N", default_value_t = 2000, help_heading = "GPU")]
    pub samples: usize,
    /// How to launch the kernels
    #[arg(long, value_enum, default_value_t = ModeArg::Both, help_heading = "GPU")]
    pub mode: ModeArg,
    /// Threads of a mask block, in place of the measured choice
    #[arg(long, value_name = "N", help_heading = "GPU")]
    pub block: Option<u32>,
    /// Mask blocks a multiprocessor, in place of the measured choice
    #[arg(long, value_name = "N", help_heading = "GPU")]
    pub grid_per_sm: Option<u32>,
    /// Threads of a selection block, in place of the measured choice
    #[arg(long, value_name = "N", help_heading = "GPU")]
    pub select_threads: Option<u32>,
    /// Leave out new(), first requests, memory, and the driver's waits, copies and fills
    #[arg(long, help_heading = "GPU")]
    pub cases_only: bool,
}

/// How kernels are launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// One graph launch
    Graph,
    /// Two launches
    Stream,
    /// One after the other
    Both,
}

/// Runs the command. The result says whether everything was timed and every answer was right.
pub fn run(args: &BenchArgs) -> Result<bool> {
    match args.device.device {
        DeviceArg::Cpu => cpu::run(args),
        #[cfg(feature = "cuda")]
        DeviceArg::Auto if rfdetr_post_cuda::device_count().is_ok_and(|count| count > 0) => cuda::run(args, 0),
        DeviceArg::Auto => cpu::run(args),
        #[cfg(feature = "cuda")]
        DeviceArg::Cuda(ordinal) => cuda::run(args, ordinal),
        #[cfg(not(feature = "cuda"))]
        DeviceArg::Cuda(_) => anyhow::bail!("--device: this program was built without the feature `cuda`"),
    }
}

/// Commit for the record.
fn commit(args: &BenchArgs) -> String {
    let given = args.commit.clone().or_else(|| std::env::var("RFDETR_POST_COMMIT").ok());
    given.or_else(|| ask("git", &["describe", "--always", "--dirty", "--abbrev=12"])).unwrap_or_else(unknown)
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// First line that a program prints, if it can be run.
fn ask(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

/// Prints the tables and writes the files.
fn report(args: &BenchArgs, text: &str, record: &impl Serialize, picture: &str) -> Result<()> {
    print(text)?;
    let write = |path: &Option<PathBuf>, content: &str| match path {
        Some(path) => std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display())),
        None => Ok(()),
    };
    write(&args.json, &(serde_json::to_string_pretty(record)? + "\n"))?;
    write(&args.svg, picture)
}

//! `cargo xtask bench`: the bench tables, their records and pictures under `docs/bench`.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::workspace;

/// Flags of `bench`.
#[derive(Args)]
pub struct Flags {
    /// What to time: cpu, or cuda and cuda:N where there is a GPU
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Name of the record and the picture in docs/bench; default: the device's
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Flags of `rfdetr-post bench`, such as --cases all, --python PROGRAM, --seconds 2
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs `bench`.
pub fn run(flags: &Flags) -> Result<()> {
    let folder = workspace::root().join("docs/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let name = flags.name.clone().unwrap_or_else(|| flags.device.replace(':', "-"));
    let git = ["describe", "--always", "--dirty", "--abbrev=12"];
    let commit = workspace::read(Command::new("git").current_dir(workspace::root()).args(git));
    let compiler = workspace::read(Command::new("rustc").current_dir(workspace::root()).arg("--version"));
    let mut command = workspace::cargo(&["run", "--release", "--package", "rfdetr-post", "--", "bench", "--device"]);
    command.arg(&flags.device);
    command.arg("--json").arg(folder.join(format!("{name}.json")));
    command.arg("--svg").arg(folder.join(format!("{name}.svg")));
    command.args(&flags.rest);
    command.env("RFDETR_POST_COMMIT", commit?.trim()).env("RFDETR_POST_RUSTC", compiler?.trim());
    workspace::run(&mut command)
}

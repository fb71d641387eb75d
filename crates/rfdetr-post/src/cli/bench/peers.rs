//! The peers: scripts that are built in, run by the Python that the user names.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use rfdetr_post::bench::{Case, Inputs};
use serde::Serialize;
use serde_json::Value;

const SCRIPTS: [(&str, &str); 3] = [
    ("common.py", include_str!("../../../bench/common.py")),
    ("torch_eager.py", include_str!("../../../bench/torch_eager.py")),
    ("opencv_resize.py", include_str!("../../../bench/opencv_resize.py")),
];

/// The scripts in a folder of their own, which goes away with this.
#[derive(Debug)]
pub struct Peers {
    python: String,
    folder: PathBuf,
}

/// A peer's figures.
#[derive(Debug, Clone, Serialize)]
pub struct PeerRecord {
    /// Median wall time.
    pub median_us: f64,
    /// Foreground pixels of all masks.
    pub checksum: Option<u64>,
    /// All that the script says.
    pub record: Value,
}

impl Peers {
    /// Writes the scripts.
    pub fn new(python: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("rfdetr-post-bench-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let peers = Self { python: python.to_owned(), folder };
        for (name, text) in SCRIPTS {
            fs::write(peers.folder.join(name), text).with_context(|| format!("cannot write {name}"))?;
        }
        Ok(peers)
    }

    /// Whether Python has a module.
    pub fn has(&self, module: &str) -> bool {
        let output = Command::new(&self.python).args(["-c", &format!("import {module}")]).output();
        output.is_ok_and(|output| output.status.success())
    }

    /// Writes the inputs that the next runs take.
    pub fn write(&self, inputs: &Inputs) -> Result<()> {
        fs::write(self.folder.join("request.safetensors"), inputs.safetensors()).context("cannot write the inputs")
    }

    /// Runs a script on the inputs that were written last.
    ///
    /// Errors: no such format, Python's last words.
    pub fn run(&self, script: &str, case: &Case, args: &[&str]) -> Result<PeerRecord> {
        let Some(config) = case.peer_config() else { bail!("the peers have no format {}", case.format.name()) };
        let output = Command::new(&self.python)
            .current_dir(&self.folder)
            .args([script, "--inputs", "request.safetensors", "--config", &config])
            .args(["--warmup", if case.pixels() > 100_000_000 { "1" } else { "3" }])
            .args(["--repeats", repeats(case)])
            .args(args)
            .output()
            .with_context(|| format!("cannot run {}", self.python))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("{script}: {}", text.lines().last().unwrap_or("failed without a word"));
        }
        let record: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("what {script} printed"))?;
        let median_us = record["median_us"].as_f64().with_context(|| format!("{script} gave no median"))?;
        Ok(PeerRecord { median_us, checksum: record["checksum"].as_u64(), record })
    }
}

/// Few where one takes a second.
fn repeats(case: &Case) -> &'static str {
    match case.pixels() {
        _ if case.format == rfdetr_post::MaskFormat::None => "200",
        0..=100_000_000 => "15",
        100_000_001..=500_000_000 => "5",
        _ => "3",
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

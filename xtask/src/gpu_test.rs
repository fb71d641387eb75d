//! `cargo xtask gpu-test`: one folder that holds the GPU suite and runs on a GPU machine without cargo or network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace;

/// Flags of `gpu-test`.
#[derive(Args)]
pub struct Flags {
    /// Folder to make or to update, relative to the workspace
    #[arg(long, value_name = "DIR", default_value = "gpu-bundle")]
    out: PathBuf,
    /// Then run it here: for a GPU machine that has cargo
    #[arg(long)]
    run: bool,
    /// Build with this cargo profile
    #[arg(long, value_name = "NAME", default_value = "release")]
    profile: String,
}

/// Package, kind of target, its name.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("rfdetr-post-tests", "--bin", "rfdetr-post-gpu-test"),
    ("rfdetr-post", "--bin", "rfdetr-post"),
    ("rfdetr-post-cuda", "--example", "rfdetr-post-gpu-bench"),
];

/// Folders of `tests/fixtures` that the suite reads.
const FIXTURES: [&str; 2] = ["upstream", "torch_cpu"];

/// The largest bundle, in bytes: it is carried around.
const MAX_BYTES: u64 = 60 << 20;

/// Runs `gpu-test`.
pub fn run(flags: &Flags) -> Result<()> {
    let out = workspace::root().join(&flags.out);
    // Other files in the folder are left alone.
    let fixtures = out.join("fixtures");
    if fixtures.exists() {
        fs::remove_dir_all(&fixtures)?;
    }
    fs::create_dir_all(&fixtures)?;
    for (package, kind, name) in PROGRAMS {
        let mut build =
            workspace::cargo(&["build", "--locked", "--profile", &flags.profile, "-p", package, kind, name]);
        println!("{}", workspace::shown(&build));
        workspace::run(&mut build)?;
        let folder = workspace::target_dir().join(if flags.profile == "dev" { "debug" } else { &flags.profile });
        let built = if kind == "--example" { folder.join("examples").join(name) } else { folder.join(name) };
        let program = out.join(name);
        fs::copy(&built, &program).with_context(|| format!("cannot copy {}", built.display()))?;
        strip(&program);
    }
    for folder in FIXTURES {
        let (from, to) = (workspace::root().join("tests/fixtures").join(folder), fixtures.join(folder));
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(&from)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "npz") {
                fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
            }
        }
    }
    let commit = workspace::read(Command::new("git").current_dir(workspace::root()).args(["rev-parse", "HEAD"]));
    let changes =
        workspace::read(Command::new("git").current_dir(workspace::root()).args(["status", "--porcelain", "-uno"]));
    let is_clean = changes.is_ok_and(|text| text.is_empty());
    let commit = commit.unwrap_or_else(|_| "unknown".to_owned());
    fs::write(out.join("commit.txt"), format!("{}{}\n", commit.trim(), if is_clean { "" } else { " with changes" }))?;
    let script = out.join(SCRIPT_NAME);
    fs::write(&script, SCRIPT)?;
    make_executable(&script)?;
    let bytes = size(&out)?;
    println!("{}: {:.1} MiB", out.display(), bytes as f64 / f64::from(1 << 20));
    if bytes > MAX_BYTES {
        bail!("the bundle is larger than {} MiB", MAX_BYTES >> 20);
    }
    println!("on the GPU machine, with the folder as it is:\n  sh {}/{SCRIPT_NAME}", flags.out.display());
    if flags.run {
        let mut command = Command::new("sh");
        command.arg(&script);
        println!("{}", workspace::shown(&command));
        workspace::run(&mut command)?;
    }
    Ok(())
}

/// Drops symbols and debug sections. Without `strip` the program is larger, and as good.
fn strip(program: &Path) {
    if let Err(error) = workspace::read(Command::new("strip").arg(program)) {
        println!("not stripped: {error:#}");
    }
}

#[cfg(unix)]
fn make_executable(script: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(script, fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<()> {
    bail!("the suite runs on Linux")
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}

const SCRIPT_NAME: &str = "run.sh";
const SCRIPT: &str = include_str!("gpu_test.sh");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_a_shell_script() {
        let mut check = Command::new("sh");
        check.arg("-n").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gpu_test.sh"));
        workspace::run(&mut check).unwrap();
    }

    /// The script calls what the bundle holds.
    #[test]
    fn the_script_names_every_program() {
        for (.., name) in PROGRAMS {
            assert!(SCRIPT.contains(&format!("./{name} ")), "{name}");
        }
    }
}

//! One folder that holds programs, fixtures and a script, and runs on a machine without cargo or network: what `gpu-test`
//! and `cpu-test` have in common.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace;

/// What a bundle is made of.
pub struct Bundle {
    /// The programs.
    pub programs: &'static [Program],
    /// The text of `run.sh`.
    pub script: &'static str,
    /// What the machine is called in messages.
    pub machine: &'static str,
}

/// A program of a bundle.
pub struct Program {
    /// Its package.
    pub package: &'static str,
    /// `--bin` or `--example`.
    pub kind: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Features of the package.
    pub features: &'static [&'static str],
    /// The manifest of a package outside the workspace, relative to it.
    pub manifest: Option<&'static str>,
}

impl Program {
    /// A binary of a package of the workspace.
    pub const fn bin(package: &'static str, name: &'static str) -> Self {
        Self { package, kind: "--bin", name, features: &[], manifest: None }
    }

    /// Builds it, and returns where it is.
    fn build(&self, profile: &str, environment: &[(&str, &Path)]) -> Result<PathBuf> {
        let mut build = workspace::cargo(&["build", "--locked", "--profile", profile, "-p", self.package]);
        build.args([self.kind, self.name]);
        if !self.features.is_empty() {
            build.arg("--features").arg(self.features.join(","));
        }
        let mut target = workspace::target_dir();
        if let Some(manifest) = self.manifest {
            target = target.join(self.name);
            build.arg("--manifest-path").arg(workspace::root().join(manifest)).arg("--target-dir").arg(&target);
        }
        build.envs(environment.iter().copied());
        println!("{}", workspace::shown(&build));
        workspace::run(&mut build)?;
        let folder = target.join(if profile == "dev" { "debug" } else { profile });
        Ok(if self.kind == "--example" { folder.join("examples").join(self.name) } else { folder.join(self.name) })
    }
}

/// Flags of a command that makes a bundle.
#[derive(Args)]
pub struct Flags {
    /// Folder to make or to update, relative to the workspace; default: the command's
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Then run it here: for such a machine that has cargo
    #[arg(long)]
    run: bool,
    /// Build with this cargo profile
    #[arg(long, value_name = "NAME", default_value = "release")]
    profile: String,
}

/// Folders of `tests/fixtures` that the suites read.
const FIXTURES: [&str; 2] = ["upstream", "torch_cpu"];

/// The largest bundle, in bytes: it is carried around.
const MAX_BYTES: u64 = 60 << 20;

const SCRIPT_NAME: &str = "run.sh";
/// What every script begins with.
const STEPS: &str = include_str!("steps.sh");

impl Bundle {
    /// Makes or updates the folder; other files in it are left alone. Programs are built with `environment`.
    pub fn make(&self, default_out: &str, flags: &Flags, environment: &[(&str, &Path)]) -> Result<()> {
        let relative = flags.out.as_deref().unwrap_or(Path::new(default_out));
        let out = workspace::root().join(relative);
        let fixtures = out.join("fixtures");
        if fixtures.exists() {
            fs::remove_dir_all(&fixtures)?;
        }
        fs::create_dir_all(&fixtures)?;
        for program in self.programs {
            let built = program.build(&flags.profile, environment)?;
            let copy = out.join(program.name);
            fs::copy(&built, &copy).with_context(|| format!("cannot copy {}", built.display()))?;
            strip(&copy);
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
        fs::write(out.join("commit.txt"), commit())?;
        let compiler = workspace::read(Command::new("rustc").current_dir(workspace::root()).arg("--version"));
        fs::write(out.join("compiler.txt"), compiler?)?;
        fs::write(out.join("steps.sh"), STEPS)?;
        let script = out.join(SCRIPT_NAME);
        fs::write(&script, self.script)?;
        make_executable(&script)?;
        let bytes = size(&out)?;
        println!("{}: {:.1} MiB", out.display(), bytes as f64 / f64::from(1 << 20));
        if bytes > MAX_BYTES {
            bail!("the bundle is larger than {} MiB", MAX_BYTES >> 20);
        }
        println!("on the {}, with the folder as it is:\n  sh {}/{SCRIPT_NAME}", self.machine, relative.display());
        if flags.run {
            let mut command = Command::new("sh");
            command.arg(&script);
            println!("{}", workspace::shown(&command));
            workspace::run(&mut command)?;
        }
        Ok(())
    }
}

/// The commit, and whether the sources differ from it, as a line.
fn commit() -> String {
    let commit = workspace::read(Command::new("git").current_dir(workspace::root()).args(["rev-parse", "HEAD"]));
    let changes =
        workspace::read(Command::new("git").current_dir(workspace::root()).args(["status", "--porcelain", "-uno"]));
    let is_clean = changes.is_ok_and(|text| text.is_empty());
    let commit = commit.unwrap_or_else(|_| "unknown".to_owned());
    format!("{}{}\n", commit.trim(), if is_clean { "" } else { " with changes" })
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
    bail!("the suites run on Linux")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cpu_test, gpu_test};

    #[test]
    fn the_scripts_are_shell_scripts() {
        for name in ["steps.sh", "gpu_test.sh", "cpu_test.sh"] {
            let mut check = Command::new("sh");
            check.arg("-n").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name));
            workspace::run(&mut check).unwrap();
        }
    }

    /// A script calls what its bundle holds, and begins with what the scripts share.
    #[test]
    fn the_scripts_name_every_program() {
        for bundle in [gpu_test::BUNDLE, cpu_test::BUNDLE] {
            assert!(bundle.script.contains("\n. ./steps.sh\n"));
            for Program { name, .. } in bundle.programs {
                assert!(bundle.script.contains(&format!("./{name} ")), "{name}");
            }
        }
    }
}

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

/// A program of the bundle.
struct Program {
    package: &'static str,
    /// `--bin` or `--example`.
    kind: &'static str,
    name: &'static str,
    features: &'static [&'static str],
}

/// The programs of the workspace.
const PROGRAMS: [Program; 4] = [
    Program { package: "rfdetr-post-tests", kind: "--bin", name: "rfdetr-post-gpu-test", features: &[] },
    Program { package: "rfdetr-post-tests", kind: "--bin", name: "rfdetr-post-gpu-cust", features: &["cust"] },
    Program { package: "rfdetr-post", kind: "--bin", name: "rfdetr-post", features: &[] },
    Program { package: "rfdetr-post-cuda", kind: "--example", name: "rfdetr-post-gpu-bench", features: &[] },
];

/// The program of the crate outside the workspace.
const DOWNSTREAM: &str = "downstream";

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
    let toolkit = stand_in_toolkit()?;
    let folder = if flags.profile == "dev" { "debug" } else { &flags.profile };
    for program in &PROGRAMS {
        let mut build = workspace::cargo(&["build", "--locked", "--profile", &flags.profile, "-p", program.package]);
        build.args([program.kind, program.name]);
        if !program.features.is_empty() {
            build.arg("--features").arg(program.features.join(","));
            build.env("CUDA_LIBRARY_PATH", &toolkit);
            println!("CUDA_LIBRARY_PATH={} \\", toolkit.display());
        }
        println!("{}", workspace::shown(&build));
        workspace::run(&mut build)?;
        let built = workspace::target_dir().join(folder);
        let built = if program.kind == "--example" { built.join("examples") } else { built };
        take(&built.join(program.name), &out)?;
    }
    let target = workspace::target_dir().join(DOWNSTREAM);
    let mut build = workspace::cargo(&["build", "--locked", "--profile", &flags.profile, "--manifest-path"]);
    build.arg(workspace::root().join("tests/downstream/Cargo.toml")).arg("--target-dir").arg(&target);
    println!("{}", workspace::shown(&build));
    workspace::run(&mut build)?;
    take(&target.join(folder).join(DOWNSTREAM), &out)?;
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

/// Copies a program into the bundle, without symbols.
fn take(built: &Path, out: &Path) -> Result<()> {
    let program = out.join(built.file_name().unwrap_or_default());
    fs::copy(built, &program).with_context(|| format!("cannot copy {}", built.display()))?;
    strip(&program);
    Ok(())
}

/// A folder that `cust`'s build script takes for a CUDA toolkit: with a libcuda that has every function of the driver's
/// that `cust` declares, and does nothing but say that there is no device. A program that is linked with it loads the
/// machine's own when it starts.
fn stand_in_toolkit() -> Result<PathBuf> {
    let mut metadata = workspace::cargo(&["metadata", "--format-version", "1", "--locked", "--all-features"]);
    let metadata = workspace::read(&mut metadata)?;
    let manifest = manifest(&metadata, "cust_raw").context("`cust_raw` is no dependency any more")?;
    let bindings = manifest.with_file_name("src").join("cuda.rs");
    let bindings = fs::read_to_string(&bindings).with_context(|| format!("cannot read {}", bindings.display()))?;
    let toolkit = workspace::target_dir().join("stand-in-cuda");
    let lib64 = toolkit.join("lib64");
    fs::create_dir_all(&lib64)?;
    let source = toolkit.join("cuda.c");
    fs::write(&source, stand_in_source(&bindings)?)?;
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(lib64.join("libcuda.so")).arg(&source);
    println!("{}", workspace::shown(&compile));
    workspace::run(&mut compile)?;
    Ok(toolkit)
}

/// Path of a package's manifest in the output of `cargo metadata`.
fn manifest(metadata: &str, package: &str) -> Option<PathBuf> {
    let paths = metadata.split("\"manifest_path\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    // The folder is the package's name, in a registry's cache with the version behind it.
    let is_its = |path: &&Path| {
        let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        folder.strip_prefix(package).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    paths.map(Path::new).find(is_its).map(PathBuf::from)
}

/// A definition for each `pub fn cu...` of the bindings: 100 is `CUDA_ERROR_NO_DEVICE`.
fn stand_in_source(bindings: &str) -> Result<String> {
    let declared = bindings.lines().filter_map(|line| line.trim_start().strip_prefix("pub fn cu"));
    let names: Vec<&str> = declared.filter_map(|rest| rest.split('(').next()).collect();
    if names.is_empty() {
        bail!("the bindings of `cust_raw` declare no function");
    }
    Ok(names.iter().map(|name| format!("int cu{name}(void) {{ return 100; }}\n")).collect())
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
        for name in PROGRAMS.iter().map(|program| program.name).chain([DOWNSTREAM]) {
            assert!(SCRIPT.contains(&format!("./{name} ")), "{name}");
        }
    }

    #[test]
    fn the_stand_in_defines_what_is_declared() {
        let bindings = "    pub fn cuInit(Flags: u32) -> CUresult;\n}\npub fn other();\n    pub fn cuMemAlloc_v2(\n";
        let source = stand_in_source(bindings).unwrap();
        assert_eq!(source, "int cuInit(void) { return 100; }\nint cuMemAlloc_v2(void) { return 100; }\n");
        assert!(stand_in_source("pub fn other();").is_err());
    }

    #[test]
    fn manifests_are_found_by_package() {
        let metadata =
            r#"{"manifest_path":"/r/cust-0.3.2/Cargo.toml"},{"manifest_path":"/r/cust_raw-0.11.3/Cargo.toml"}"#;
        assert_eq!(manifest(metadata, "cust_raw"), Some("/r/cust_raw-0.11.3/Cargo.toml".into()));
        assert_eq!(manifest(metadata, "cust"), Some("/r/cust-0.3.2/Cargo.toml".into()));
        assert_eq!(manifest(metadata, "cust_core"), None);
    }
}

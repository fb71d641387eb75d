//! `cargo xtask ci`: everything that must hold before a change is merged, as steps that can be rerun one by one.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::{build_ptx, dependencies, ptxas, test, test::Totals, workspace};

/// Flags of `ci`.
#[derive(Args)]
pub struct Flags {
    /// Run these steps only
    #[arg(value_name = "STEP", value_parser = STEPS.map(|(name, _)| name))]
    steps: Vec<String>,
}

/// What a step came to, besides failure.
enum Outcome {
    Passed,
    /// With the reason.
    Skipped(String),
    Tested(Totals),
}

/// A step's name and what it does.
type Step = (&'static str, fn() -> Result<Outcome>);

/// The steps, cheapest first, so that a slip shows early. Each goes on although an earlier one failed.
const STEPS: [Step; 12] = [
    ("format", format),
    ("dependencies", dependencies),
    ("clippy", clippy),
    ("docs", docs),
    ("features", features),
    ("minimum-rust", minimum_rust),
    ("test", tests),
    ("benches", benches),
    ("demo", demo),
    ("downstream", downstream),
    ("ptx", ptx),
    ("ptx-report", report),
];

/// Runs `ci`.
pub fn run(flags: &Flags) -> Result<()> {
    let start = Instant::now();
    let chosen = |name: &str| flags.steps.is_empty() || flags.steps.iter().any(|step| step == name);
    let steps: Vec<_> = STEPS.iter().filter(|(name, _)| chosen(name)).collect();
    let mut summary = Vec::new();
    let mut totals = None;
    let mut num_failed = 0;
    for (at, (name, step)) in steps.iter().enumerate() {
        println!("\n=== {name} ({} of {})", at + 1, steps.len());
        let begun = Instant::now();
        let outcome = step();
        let seconds = begun.elapsed().as_secs_f64();
        let text = match outcome {
            Ok(Outcome::Passed) => "passed".to_owned(),
            Ok(Outcome::Tested(sum)) => {
                totals = Some(sum);
                "passed".to_owned()
            }
            Ok(Outcome::Skipped(why)) => {
                println!("!!! SKIPPED: {name}: {why}");
                format!("SKIPPED: {why}")
            }
            Err(error) => {
                num_failed += 1;
                totals = error.downcast_ref::<FailedTests>().map(|failed| failed.0).or(totals);
                println!("!!! FAILED: {name}: {error:#}\n    again: cargo xtask ci {name}");
                format!("FAILED: {}", error.to_string().lines().next().unwrap_or_default())
            }
        };
        summary.push(format!("{name:<13} {seconds:>6.0} s  {text}"));
    }
    println!("\n=== summary, {:.0} s\n{}", start.elapsed().as_secs_f64(), summary.join("\n"));
    println!("{num_failed} of {} steps failed", steps.len());
    if let Some(totals) = totals {
        println!("{}\n{totals}", test::DEVICE);
    }
    // The totals are the last word, also of a failure.
    if num_failed > 0 { std::process::exit(1) } else { Ok(()) }
}

/// Tests that ran and did not all pass.
#[derive(Debug)]
struct FailedTests(Totals, String);

impl std::fmt::Display for FailedTests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.1)
    }
}

impl std::error::Error for FailedTests {}

/// Shows a command, then runs it.
fn call(command: &mut Command) -> Result<()> {
    println!("{}", workspace::shown(command));
    workspace::run(command)
}

fn cargo(args: &[&str]) -> Result<()> {
    call(&mut workspace::cargo(args))
}

fn format() -> Result<Outcome> {
    cargo(&["fmt", "--all", "--check"])?;
    Ok(Outcome::Passed)
}

/// Licenses, duplicates, sources; with advisories where `cargo deny` is there.
fn dependencies() -> Result<Outcome> {
    dependencies::check()?;
    if workspace::read(&mut workspace::cargo(&["deny", "--version"])).is_ok() {
        cargo(&["deny", "check"])?;
    } else {
        println!("advisories: not checked, `cargo deny` is not installed");
    }
    Ok(Outcome::Passed)
}

/// Also compiles what nothing else does: examples, benches, every binary.
fn clippy() -> Result<Outcome> {
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--keep-going",
        "--features",
        SELF_TEST,
        "--",
        "-D",
        "warnings",
    ])?;
    Ok(Outcome::Passed)
}

const SELF_TEST: &str = "rfdetr-post-kernels/self-test";

/// Broken links in documentation show nowhere else.
fn docs() -> Result<Outcome> {
    println!("RUSTDOCFLAGS='-D warnings' \\");
    let mut command = workspace::cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
    call(command.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Outcome::Passed)
}

/// Feature sets that a build of the whole workspace hides, because it turns all features on.
fn features() -> Result<Outcome> {
    // The device build: the layout alone, without an allocator.
    cargo(&["check", "--locked", "-p", "rfdetr-post-core", "--no-default-features"])?;
    // `no_std` with an allocator.
    cargo(&["check", "--locked", "-p", "rfdetr-post-core", "--no-default-features", "--features", "alloc"])?;
    // The library without the command line and without the GPU, which then says why it takes the CPU.
    cargo(&["test", "--locked", "-p", "rfdetr-post", "--no-default-features", "--lib"])?;
    // The command line without the GPU, and the GPU without the command line.
    cargo(&["check", "--locked", "-p", "rfdetr-post", "--no-default-features", "--features", "cli"])?;
    cargo(&["check", "--locked", "-p", "rfdetr-post", "--no-default-features", "--features", "cuda"])?;
    // What the launcher's adapters are called here.
    cargo(&["check", "--locked", "-p", "rfdetr-post", "--no-default-features", "--features", "cudarc,dlpack"])?;
    // Adapters to other crates' types: tensors that are refused, and types that must fit.
    cargo(&["test", "--locked", "-p", "rfdetr-post-cuda", "--features", "cudarc,dlpack", "--lib"])?;
    // `cust` asks for a toolkit, and checking needs nothing of it but its folder. Its program is linted nowhere else.
    let toolkit = workspace::target_dir().join("no-cuda");
    std::fs::create_dir_all(toolkit.join("lib64"))?;
    let mut adapters = workspace::cargo(&["clippy", "--locked", "-p", "rfdetr-post-cuda", "-p", "rfdetr-post-tests"]);
    adapters.args(["--features", "rfdetr-post-tests/cust", "--lib", "--bins", "--", "-D", "warnings"]);
    println!("CUDA_LIBRARY_PATH={} \\", toolkit.display());
    call(adapters.env("CUDA_LIBRARY_PATH", &toolkit))?;
    // The facade's third implementation against the published `cuda_std`.
    cargo(&["check", "--locked", "-p", "rfdetr-post-kernels", "--features", "cuda-std"])?;
    Ok(Outcome::Passed)
}

/// Something newer than the declared minimum slips in unseen when only newer compilers build it.
fn minimum_rust() -> Result<Outcome> {
    let manifest = std::fs::read_to_string(workspace::root().join("Cargo.toml"))?;
    let minimum = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "));
    let minimum = minimum.context("Cargo.toml declares no rust-version")?.trim_matches('"');
    let version = workspace::read(Command::new("rustc").arg("--version"))?;
    let check = ["check", "--workspace", "--all-targets", "--locked"];
    if version.starts_with(&format!("rustc {minimum}.")) {
        println!("{} is the declared minimum, {minimum}", version.trim());
        cargo(&check)?;
        return Ok(Outcome::Passed);
    }
    let mut command = workspace::clean_command("rustup");
    command.args(["run", minimum, "cargo"]).args(check);
    command.arg("--target-dir").arg(workspace::target_dir().join("minimum-rust"));
    if workspace::read(workspace::clean_command("rustup").args(["run", minimum, "rustc", "--version"])).is_err() {
        return Ok(Outcome::Skipped(format!("no Rust {minimum} here: rustup toolchain install {minimum}")));
    }
    call(&mut command)?;
    Ok(Outcome::Passed)
}

fn tests() -> Result<Outcome> {
    let mut command = test::command();
    command.arg("--locked");
    let (totals, outcome) = test::watch(command, &mut std::io::stdout());
    match outcome {
        Ok(()) => Ok(Outcome::Tested(totals)),
        Err(error) => Err(FailedTests(totals, format!("{error:#}")).into()),
    }
}

/// Runs each bench once: a bench that panics, or whose back ends disagree, is found before somebody needs its numbers.
fn benches() -> Result<Outcome> {
    // Without `--bench` criterion runs each case once and measures nothing.
    // The whole workspace, as for the tests: other features would build half of the dependencies again.
    cargo(&["test", "--workspace", "--locked", "--features", SELF_TEST, "--bench", "*"])?;
    Ok(Outcome::Passed)
}

/// The README's first command.
fn demo() -> Result<Outcome> {
    let out = workspace::target_dir().join("ci-demo");
    cargo(&["run", "--release", "--locked", "--", "demo", "--out", &out.to_string_lossy()])?;
    Ok(Outcome::Passed)
}

/// A crate outside the workspace that uses the library as published. What only works inside shows here.
fn downstream() -> Result<Outcome> {
    let manifest = workspace::root().join("tests/downstream/Cargo.toml").to_string_lossy().into_owned();
    let target = workspace::target_dir().join("downstream").to_string_lossy().into_owned();
    cargo(&["fmt", "--check", "--manifest-path", &manifest])?;
    cargo(&["run", "--locked", "--manifest-path", &manifest, "--target-dir", &target])?;
    Ok(Outcome::Passed)
}

/// The committed PTX is what the sources give, and the machine code what the PTX gives. Installs Debian's compiler where
/// it may.
fn ptx() -> Result<Outcome> {
    if !build_ptx::has_compiler() && !install_compiler() {
        xtask(&["build-ptx", "--check", "--only-cubins"])?;
        return Ok(Outcome::Skipped(
            "all but the machine code: no compiler for nvptx64, see `cargo xtask build-ptx`".to_owned(),
        ));
    }
    xtask(&["build-ptx", "--check"])
}

/// As root, on Debian.
fn install_compiler() -> bool {
    let is_root = workspace::read(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if !is_root || workspace::read(Command::new("apt-get").arg("--version")).is_err() {
        return false;
    }
    let packages = ["rustc-web", "rust-web-src", "cargo-web"];
    let install = || -> Result<()> {
        call(Command::new("apt-get").args(["update", "-qq"]))?;
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
        call(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    match install() {
        Ok(()) => build_ptx::has_compiler(),
        Err(error) => {
            println!("{error:#}");
            false
        }
    }
}

fn report() -> Result<Outcome> {
    if let Err(error) = ptxas::any() {
        return Ok(Outcome::Skipped(format!("{error:#}")));
    }
    xtask(&["ptx-report"])
}

/// Another command of ours, as a process of its own, so that its command line can be rerun.
fn xtask(args: &[&str]) -> Result<Outcome> {
    println!("cargo xtask {}", args.join(" "));
    workspace::run(Command::new(std::env::current_exe()?).current_dir(workspace::root()).args(args))?;
    Ok(Outcome::Passed)
}

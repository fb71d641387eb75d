//! `cargo xtask build-ptx`: from the Rust sources of the kernels to the committed PTX, and from that to machine code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{cubins, ptx_check, workspace};

/// Flags of `build-ptx`.
#[derive(Args)]
pub struct Flags {
    /// Which compiler turns Rust into PTX.
    #[arg(long, value_enum, default_value_t = Backend::Rustc)]
    backend: Backend,
    /// Rebuild and compare with the committed files; write nothing.
    #[arg(long)]
    check: bool,
    /// Architectures to build for. The first two are the ones that the launcher loads.
    #[arg(long, value_delimiter = ',', default_value = "sm_75,sm_90")]
    arch: Vec<String>,
    /// Write PTX to this folder in place of the committed one, and no machine code.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Leave the PTX as it is and only assemble it: needs no compiler.
    #[arg(long, conflicts_with_all = ["out", "backend", "arch"])]
    only_cubins: bool,
    /// Features of the kernel crate; `self-test` adds a kernel that uses every call of the facade. Needs `--out`.
    #[arg(long, value_delimiter = ',', requires = "out")]
    features: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// LLVM's NVPTX backend in rustc.
    Rustc,
    /// rust-cuda's `cuda_builder`, over NVIDIA's libNVVM.
    RustCuda,
}

/// The command that mends a stale file.
pub const MEND: &str = "cargo xtask build-ptx";
const TARGET: &str = "nvptx64-nvidia-cuda";

const HELP: &str = "\
no compiler here can build for nvptx64-nvidia-cuda. One of these two commands installs one:
    rustup toolchain install nightly --component rust-src
    apt-get install -y --no-install-recommends rustc-web rust-web-src cargo-web   # Debian 12; as root";

/// How to mend what the lints find.
const HINT: &str = "\
call: a panic. Divide by a `NonZero` or with `checked_div`; keep indices in range where the compiler can see it.
local-memory: an array indexed at run time. Unroll, select, or put it in shared memory; in arguments, read by `Params`.
generic-access: a plain pointer. Use `Shared` or `Global`.";

/// Runs `build-ptx`.
pub fn run(flags: &Flags) -> Result<()> {
    if flags.backend == Backend::RustCuda {
        return rust_cuda::run(flags);
    }
    let mut stale = Vec::new();
    if !flags.only_cubins {
        stale = build(flags)?;
    }
    if flags.out.is_none() {
        if flags.check {
            stale.extend(cubins::check()?);
        } else {
            cubins::write().with_context(|| {
                format!("no machine code was written, and what is there may be stale; mend this, then `{MEND}`")
            })?;
        }
    }
    if !stale.is_empty() {
        bail!("stale: {}; run `{MEND}` and commit the result", stale.join(", "));
    }
    Ok(())
}

/// Compiles the kernels and writes the PTX, or compares it; returns the files that are stale.
fn build(flags: &Flags) -> Result<Vec<String>> {
    let compiler = Compiler::find()?;
    println!("compiler: {} ({})", compiler.version, compiler.origin);
    let sources = source_hash(workspace::root())?;
    let mut stale = Vec::new();
    for arch in &flags.arch {
        let ptx = compiler.build(arch, &flags.features, false)?;
        let ptx = ptx_check::set_launch_bounds(&ptx).with_context(|| format!("in the PTX for {arch}"))?;
        let found = ptx_check::lint(&ptx);
        if !found.is_empty() {
            // Once more with debug information, which names the places in the source.
            let found = ptx_check::lint(&compiler.build(arch, &flags.features, true)?);
            bail!("the PTX for {arch} must not hold this:\n    {}\n{HINT}", found.join("\n    "));
        }
        let text = format!("{}{ptx}", header(arch, &compiler.version, &sources));
        let path = match &flags.out {
            Some(folder) => folder.join(format!("rfdetr_post_{arch}.ptx")),
            None => workspace::ptx_path(arch),
        };
        let shown = path.strip_prefix(workspace::root()).unwrap_or(&path).display();
        if !flags.check {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            fs::write(&path, &text).with_context(|| format!("cannot write {shown}"))?;
            println!("{shown}: {}", ptx_check::entries(&ptx).join(", "));
            continue;
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        let built_with = header_field(&committed, "compiler").unwrap_or("none");
        if built_with != compiler.version && !committed.is_empty() {
            println!("{shown}: builds; not compared, because it was made by {built_with}");
        } else if committed == text {
            println!("{shown}: up to date");
        } else {
            stale.push(shown.to_string());
        }
    }
    Ok(stale)
}

fn header(arch: &str, version: &str, sources: &str) -> String {
    format!("// Generated by `{MEND}`; do not edit.\n// arch: {arch}\n// compiler: {version}\n// sources: {sources}\n")
}

fn header_field<'a>(ptx: &'a str, name: &str) -> Option<&'a str> {
    ptx.lines().take(8).find_map(|line| line.strip_prefix("// ")?.strip_prefix(name)?.strip_prefix(": "))
}

/// Whether some compiler here can build for nvptx64.
pub fn has_compiler() -> bool {
    Compiler::find().is_ok()
}

/// Hash of all that decides the PTX, besides the compiler: the kernels, the device facade and the shared layout. The
/// emulator and the `cuda_std` facade are not compiled into it.
fn source_hash(root: &Path) -> Result<String> {
    let kernels = root.join("kernels-gpu/src");
    let mut files = vec![root.join("crates/rfdetr-post-core/src/packed.rs")];
    let mut folders = vec![kernels.clone()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = item?.path();
            if path == kernels.join("simt/emulator") || path == kernels.join("simt/cuda_std.rs") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut parts = Vec::new();
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file).to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        parts.extend([name, text.replace("\r\n", "\n")]);
    }
    Ok(fnv1a64(parts.iter().map(|part| part.as_bytes())))
}

/// FNV-1a of several texts: the hash guards against forgetting, not against an attacker, and needs no dependency.
pub fn fnv1a64<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.iter().chain(&[0xff]) {
            hash = (hash ^ *byte as u64).wrapping_mul(0x100_0000_01b3);
        }
    }
    format!("fnv1a64 {hash:016x}")
}

/// A compiler that can build for nvptx64.
struct Compiler {
    cargo: Vec<String>,
    rustc: Option<String>,
    version: String,
    origin: String,
    /// Whether the target's `core` comes ready-made, so that it need not be built from source.
    has_target: bool,
}

impl Compiler {
    /// The one that made the committed PTX, if it is here; else a rustup toolchain with `rust-src` or the target; else
    /// the system's.
    fn find() -> Result<Self> {
        let committed = fs::read_to_string(workspace::ptx_path("sm_75")).unwrap_or_default();
        let made_by = header_field(&committed, "compiler").unwrap_or_default();
        let mut compilers: Vec<Self> = Self::rustup().into_iter().chain(Self::debian()).collect();
        let at = compilers.iter().position(|compiler| compiler.version == made_by).unwrap_or(0);
        if compilers.is_empty() { bail!(HELP) } else { Ok(compilers.swap_remove(at)) }
    }

    fn rustup() -> Vec<Self> {
        let list = workspace::read(workspace::clean_command("rustup").args(["toolchain", "list"])).unwrap_or_default();
        let mut names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
        names.sort_by_key(|name| !name.starts_with("nightly"));
        let compiler = |name: &str| {
            let rustc = || {
                let mut command = workspace::clean_command("rustup");
                command.args(["run", name, "rustc"]);
                command
            };
            let sysroot = workspace::read(rustc().args(["--print", "sysroot"])).ok()?;
            let has_target = has_parts(Path::new(sysroot.trim()))?;
            let version = workspace::read(rustc().arg("--version")).ok()?.trim().to_owned();
            let cargo = ["rustup", "run", name, "cargo"].map(str::to_owned).to_vec();
            Some(Self { cargo, rustc: None, version, origin: format!("rustup toolchain {name}"), has_target })
        };
        names.into_iter().filter_map(compiler).collect()
    }

    fn debian() -> Option<Self> {
        let rustc = "/usr/bin/rustc";
        let sysroot = workspace::read(workspace::clean_command(rustc).args(["--print", "sysroot"])).ok()?;
        let has_target = has_parts(Path::new(sysroot.trim()))?;
        let version = workspace::read(workspace::clean_command(rustc).arg("--version")).ok()?.trim().to_owned();
        if !Path::new("/usr/bin/cargo").exists() {
            return None;
        }
        Some(Self {
            cargo: vec!["/usr/bin/cargo".to_owned()],
            rustc: Some(rustc.to_owned()),
            version,
            origin: "the system's packages".to_owned(),
            has_target,
        })
    }

    fn build(&self, arch: &str, features: &[String], debug: bool) -> Result<String> {
        let target_dir = workspace::target_dir().join("ptx");
        fs::create_dir_all(&target_dir)?;
        let cargo = |subcommand: &str| {
            let mut command: Command = workspace::clean_command(&self.cargo[0]);
            command.args(&self.cargo[1..]);
            // The kernels need unstable features of the target; Debian ships a stable compiler with the sources of `core`.
            command.env("RUSTC_BOOTSTRAP", "1");
            if let Some(rustc) = &self.rustc {
                command.env("RUSTC", rustc);
            }
            command.args([subcommand, "--quiet", "--package", "rfdetr-post-kernels", "--release", "--target", TARGET]);
            command.arg("--target-dir").arg(&target_dir);
            command
        };
        // Cargo calls a crate fresh by its inputs; it does not know that the text below is an output.
        workspace::run(&mut cargo("clean"))?;
        let mut command = cargo("rustc");
        command.args(["--lib", "--crate-type", "cdylib"]);
        if !features.is_empty() {
            command.arg("--features").arg(features.join(","));
        }
        if !self.has_target {
            command.arg("-Zbuild-std=core");
        }
        // One module with everything inlined is what makes `--emit=asm` a whole program.
        for setting in ["lto='fat'", "codegen-units=1", "panic='abort'", "opt-level=3"] {
            command.arg("--config").arg(format!("profile.release.{setting}"));
        }
        command.arg("--config").arg(format!("profile.release.debug={}", debug as u8));
        // rustc's own optimizations know nothing of convergence: its jump threading copies barriers and shuffles into the
        // arms of a divergent branch, where lanes then wait for each other at different places, for ever (seen on an
        // H200). LLVM's passes respect it, and do all the rest.
        command.args(["--", "--emit=asm", "-Zno-link", "-Zmir-opt-level=0", "-C"]).arg(format!("target-cpu={arch}"));
        workspace::run(&mut command).with_context(|| format!("cannot compile the kernels for {arch}"))?;
        let ptx = target_dir.join(TARGET).join("release/deps/rfdetr_post_kernels.s");
        fs::read_to_string(&ptx).with_context(|| format!("cannot read {}", ptx.display()))
    }
}

/// `Some(true)` when the sysroot has the target's `core`, `Some(false)` when it has its source.
fn has_parts(sysroot: &Path) -> Option<bool> {
    let lib = sysroot.join("lib/rustlib");
    if lib.join(TARGET).join("lib").exists() {
        return Some(true);
    }
    lib.join("src/rust/library/core/src/lib.rs").exists().then_some(false)
}

/// The other back end: a crate outside the workspace with its own toolchain.
mod rust_cuda {
    use super::*;

    /// What rust-cuda at the pinned revision needs.
    const TOOLCHAIN: &str = "nightly-2025-06-23";

    pub fn run(flags: &Flags) -> Result<()> {
        let missing = missing();
        if !missing.is_empty() {
            bail!(
                "rust-cuda's back end needs what this machine lacks:\n    - {}\nkernels-gpu/rust-cuda/README.md tells \
                 how to get it. The default, `--backend rustc`, needs none of it",
                missing.join("\n    - ")
            );
        }
        if flags.check {
            bail!("--check compares the committed files, which `--backend rustc` makes");
        }
        let mut command = workspace::clean_command("rustup");
        command.current_dir(workspace::root().join("kernels-gpu/rust-cuda"));
        let target_dir = workspace::target_dir().join("rust-cuda");
        command.args(["run", TOOLCHAIN, "cargo", "run", "--release", "--target-dir"]).arg(target_dir.join("build"));
        command.arg("--").arg(&target_dir);
        command.args(&flags.arch);
        workspace::run(&mut command)
    }

    fn missing() -> Vec<String> {
        let mut missing = Vec::new();
        let sysroot =
            workspace::read(workspace::clean_command("rustup").args(["run", TOOLCHAIN, "rustc", "--print", "sysroot"]));
        match sysroot {
            Err(_) => missing.push(format!(
                "the toolchain: rustup toolchain install {TOOLCHAIN} --component rust-src,rustc-dev,llvm-tools"
            )),
            Ok(sysroot) => {
                let lib = Path::new(sysroot.trim()).join("lib/rustlib");
                let has_dev = fs::read_dir(lib.join("x86_64-unknown-linux-gnu/lib")).is_ok_and(|mut items| {
                    items.any(|item| item.is_ok_and(|item| item.file_name().to_string_lossy().contains("rustc_driver")))
                });
                if !has_dev {
                    missing.push(format!("rustc-dev: rustup component add rustc-dev --toolchain {TOOLCHAIN}"));
                }
                if !lib.join("src").exists() {
                    missing.push(format!("rust-src: rustup component add rust-src --toolchain {TOOLCHAIN}"));
                }
            }
        }
        let llvm = std::env::var("LLVM_CONFIG").unwrap_or_else(|_| "llvm-config-7".to_owned());
        match workspace::read(workspace::clean_command(&llvm).arg("--version")) {
            Ok(version) if version.starts_with("7.") => {}
            _ => missing.push(format!("LLVM 7: `{llvm}` does not answer as version 7 (LLVM_CONFIG names another)")),
        }
        let cuda = ["CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"].iter().find_map(std::env::var_os);
        let cuda = cuda.map_or_else(|| PathBuf::from("/usr/local/cuda"), PathBuf::from);
        if !cuda.join("nvvm").exists() {
            missing.push(format!("libNVVM: no {}/nvvm (CUDA toolkit; CUDA_PATH names another)", cuda.display()));
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drift shows here, on any machine, without the compiler that `--check` needs.
    #[test]
    fn committed_ptx_is_of_these_sources() {
        let sources = source_hash(workspace::root()).unwrap();
        for arch in ["sm_75", "sm_90"] {
            let path = workspace::ptx_path(arch);
            let ptx = fs::read_to_string(&path).unwrap_or_else(|_| panic!("no {}; run `{MEND}`", path.display()));
            assert_eq!(header_field(&ptx, "sources"), Some(&*sources), "{} is stale; run `{MEND}`", path.display());
            assert_eq!(header_field(&ptx, "arch"), Some(arch));
            assert!(ptx.contains(&format!(".target {arch}")), "{}", path.display());
            assert_eq!(ptx_check::lint(&ptx), Vec::<String>::new());
        }
    }

    #[test]
    fn header_reads_back() {
        let text = header("sm_75", "rustc 1.2.3 (abc)", "fnv1a64 00");
        assert_eq!(header_field(&text, "arch"), Some("sm_75"));
        assert_eq!(header_field(&text, "compiler"), Some("rustc 1.2.3 (abc)"));
        assert_eq!(header_field(&text, "sources"), Some("fnv1a64 00"));
        assert_eq!(header_field("", "sources"), None);
    }
}

//! Where things are, and how to spawn commands.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};

/// Root of the workspace: where cargo runs this from, also when the folder was moved after this was compiled.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&package).parent().map_or_else(|| ".".into(), Path::to_path_buf)
    });
    &ROOT
}

/// Folder for build outputs: cargo's own, also when `CARGO_TARGET_DIR` moves it.
pub fn target_dir() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root().join(target)
}

/// Folder of the committed PTX.
pub fn ptx_dir() -> PathBuf {
    root().join("crates/rfdetr-post-cuda/ptx")
}

/// The committed PTX of one architecture.
pub fn ptx_path(arch: &str) -> PathBuf {
    ptx_dir().join(format!("rfdetr_post_{arch}.ptx"))
}

/// The cargo that runs this, in the workspace root, with all settings of the user.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root()).args(args);
    command
}

/// A command in the workspace root without the variables that cargo and rustup pass down: they would force this
/// compiler's settings on another one.
pub fn clean_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        // The user's own settings stay: where cargo lives and how it reaches the network.
        let is_users = ["HOME", "HTTP", "NET", "REGISTR", "SOURCE"]
            .iter()
            .any(|name| text.strip_prefix("CARGO_").is_some_and(|rest| rest.starts_with(name)));
        let is_ours = text.starts_with("CARGO_") && !is_users || text.starts_with("RUSTC");
        if is_ours || matches!(&*text, "CARGO" | "RUSTFLAGS" | "RUSTDOCFLAGS" | "RUSTUP_TOOLCHAIN" | "LD_LIBRARY_PATH")
        {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command and returns its standard output.
pub fn read(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!("`{}`: {}\n{}", shown(command), output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", shown(command)))
}

/// Runs a command with its output on ours.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}`: {status}", shown(command));
    }
    Ok(())
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

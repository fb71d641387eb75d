//! NVIDIA's assembler: which release makes the committed machine code, and how to get it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace;

/// The release. By NVIDIA's rules drivers for CUDA 12 and newer load its machine code; one that does not gets the PTX.
pub const VERSION: &str = "12.9.86";

/// PyPI's package of it.
const PACKAGE: &str = "nvidia-cuda-nvcc-cu12";

/// The pinned release: the `ptxas` on the path if it is that one, or PyPI's, installed once under the target folder.
pub fn pinned() -> Result<PathBuf> {
    let is_pinned = |program: &Path| version(program).is_ok_and(|version| version == VERSION);
    let on_path = PathBuf::from("ptxas");
    if is_pinned(&on_path) {
        return Ok(on_path);
    }
    let folder = workspace::target_dir().join(format!("ptxas-{VERSION}"));
    let program = folder.join("nvidia/cuda_nvcc/bin/ptxas");
    if is_pinned(&program) {
        return Ok(program);
    }
    println!("no ptxas {VERSION} on the path; installing PyPI's {PACKAGE} under the target folder");
    let mut pip = workspace::clean_command("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]).arg(&folder);
    workspace::run(pip.arg(format!("{PACKAGE}=={VERSION}"))).with_context(|| {
        format!("neither ptxas {VERSION} on the path nor a Python with pip to fetch it: install one of them")
    })?;
    let found = version(&program).with_context(|| format!("PyPI's {PACKAGE} brought no ptxas that runs"))?;
    anyhow::ensure!(found == VERSION, "PyPI's {PACKAGE}=={VERSION} brought ptxas {found}");
    Ok(program)
}

/// Any release: the one on the path, or the pinned one.
pub fn any() -> Result<PathBuf> {
    if version(Path::new("ptxas")).is_ok() { Ok("ptxas".into()) } else { pinned() }
}

/// The release of a `ptxas`.
pub fn version(program: &Path) -> Result<String> {
    let text = workspace::read(workspace::clean_command(program).arg("--version"))?;
    Ok(parse(&text).with_context(|| format!("`{} --version` names no release:\n{text}", program.display()))?.to_owned())
}

fn parse(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.contains("release"))?;
    line.rsplit_once(", V").map(|(_, version)| version.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let text = "\
ptxas: NVIDIA (R) Ptx optimizing assembler
Built on Tue_May_27_02:18:05_PDT_2025
Cuda compilation tools, release 12.9, V12.9.86
Build cuda_12.9.r12.9/compiler.36037853_0
";
        assert_eq!(parse(text), Some("12.9.86"));
        assert_eq!(parse("ptxas: something else"), None);
        assert!(version(Path::new("no-such-ptxas")).is_err());
    }
}

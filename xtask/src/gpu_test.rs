//! `cargo xtask gpu-test`: one folder that holds the GPU suite and runs on a GPU machine without cargo or network.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    bundle::{Bundle, Flags, Program},
    workspace,
};

/// Programs and script.
pub const BUNDLE: Bundle = Bundle {
    programs: &[
        Program::bin("rfdetr-post-tests", "rfdetr-post-gpu-test"),
        Program { features: &["cust"], ..Program::bin("rfdetr-post-tests", "rfdetr-post-gpu-cust") },
        Program::bin("rfdetr-post", "rfdetr-post"),
        Program { kind: "--example", ..Program::bin("rfdetr-post-cuda", "rfdetr-post-gpu-bench") },
        Program { manifest: Some("tests/downstream/Cargo.toml"), ..Program::bin("downstream", "downstream") },
    ],
    script: include_str!("gpu_test.sh"),
    machine: "GPU machine",
};

/// Runs `gpu-test`.
pub fn run(flags: &Flags) -> Result<()> {
    // Only the build of `cust` looks at it.
    let toolkit = stand_in_toolkit()?;
    println!("CUDA_LIBRARY_PATH={} \\", toolkit.display());
    BUNDLE.make("gpu-bundle", flags, &[("CUDA_LIBRARY_PATH", &toolkit)])
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

#[cfg(test)]
mod tests {
    use super::*;

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

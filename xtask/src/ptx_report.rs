//! `cargo xtask ptx-report`: what NVIDIA's assembler makes of the committed PTX.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{ptx_check, ptxas, workspace};

/// Flags of `ptx-report`.
#[derive(Args)]
pub struct Flags {
    /// Architectures to assemble for.
    #[arg(long, value_delimiter = ',', default_value = "sm_75,sm_80,sm_86,sm_89,sm_90,sm_100,sm_120")]
    arch: Vec<String>,
    /// Folder of the PTX, in place of the committed one.
    #[arg(long)]
    ptx: Option<PathBuf>,
}

/// What one kernel costs on one architecture.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cost {
    kernel: String,
    registers: u32,
    stack_bytes: u32,
    spill_bytes: u32,
    shared_bytes: u32,
    barriers: u32,
}

/// Runs `ptx-report`.
pub fn run(flags: &Flags) -> Result<()> {
    let ptxas = ptxas::any()?;
    println!("ptxas: {}", ptxas::version(&ptxas)?);
    let mut faults = Vec::new();
    println!("| arch | kernel | registers | spills (B) | shared (B) | stack (B) | barriers |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    for arch in &flags.arch {
        let path = ptx_for(arch, flags.ptx.as_deref().unwrap_or(&workspace::ptx_dir()))?;
        let ptx = fs::read_to_string(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        faults.extend(ptx_check::lint(&ptx).into_iter().map(|fault| format!("{name}: {fault}")));
        let mut command = workspace::clean_command(&ptxas);
        command.arg("-v").arg(format!("-arch={arch}")).args(["-o", "/dev/null"]).arg(&path);
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("ptxas rejects {name} for {arch}:\n{text}");
        }
        let costs = parse(&text);
        if costs.len() != ptx_check::entries(&ptx).len() {
            bail!("cannot read what ptxas printed for {arch}:\n{text}");
        }
        for cost in costs {
            let Cost { kernel, registers, stack_bytes, spill_bytes, shared_bytes, barriers } = cost;
            println!(
                "| {arch} | {kernel} | {registers} | {spill_bytes} | {shared_bytes} | {stack_bytes} | {barriers} |"
            );
            if spill_bytes + stack_bytes > allowed(&kernel) {
                faults.push(format!("{arch}, {kernel}: {spill_bytes} bytes spilled, {stack_bytes} bytes of stack"));
            }
        }
    }
    faults.dedup();
    if !faults.is_empty() {
        bail!(
            "the kernels must not spill, keep a stack (beyond what `allowed` says), or use generic addresses:\n    {}",
            faults.join("\n    ")
        );
    }
    Ok(())
}

/// Bytes of spills and stack that are no fault.
///
/// The run-length kernels have 128 registers a thread, what 512 threads leave. Rare ways to evaluate a column need more, and
/// the compiler keeps some of the sharing out on the stack meanwhile: a few words a mask, outside of the loops. On an H100 the
/// same kernel with 768 threads, 80 registers and 860 bytes of spills took 1.2 times as long, so many would be a sign of spills
/// in the loops. The dense kernel has 80 registers, and keeps some of what all its turns need on the stack.
fn allowed(kernel: &str) -> u32 {
    match kernel {
        "rfdetr_masks_rle" | "rfdetr_masks_rle_large" => 200,
        "rfdetr_masks_dense" => 100,
        _ => 0,
    }
}

fn number(arch: &str) -> Result<u32> {
    arch.strip_prefix("sm_").and_then(|text| text.parse().ok()).with_context(|| format!("`{arch}` is not like sm_90"))
}

/// The file that the driver would be given for `arch`: the newest one that is not newer.
pub fn ptx_for(arch: &str, folder: &Path) -> Result<PathBuf> {
    let arch = number(arch)?;
    let mut best = None;
    for item in fs::read_dir(folder).with_context(|| format!("no {}; run `cargo xtask build-ptx`", folder.display()))? {
        let path = item?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(text) = name.strip_prefix("rfdetr_post_").and_then(|name| name.strip_suffix(".ptx")) else { continue };
        let built_for = number(text)?;
        if built_for <= arch && best.as_ref().is_none_or(|(newest, _)| *newest < built_for) {
            best = Some((built_for, path));
        }
    }
    let (_, path) = best.with_context(|| format!("no PTX for sm_{arch} or older in {}", folder.display()))?;
    Ok(path)
}

/// Reads `ptxas -v`.
fn parse(text: &str) -> Vec<Cost> {
    let mut costs: Vec<Cost> = Vec::new();
    let before = |line: &str, unit: &str| -> u32 {
        let Some((head, _)) = line.split_once(unit) else { return 0 };
        head.trim_end().rsplit([' ', ',']).next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or(rest).to_owned();
            costs.push(Cost { kernel, ..Cost::default() });
        }
        let Some(cost) = costs.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            cost.stack_bytes = before(line, "bytes stack frame");
            cost.spill_bytes = before(line, "bytes spill stores") + before(line, "bytes spill loads");
        }
        if line.contains("Used ") && line.contains(" registers") {
            cost.registers = before(line, "registers");
            cost.shared_bytes = before(line, "bytes smem");
            cost.barriers = before(line, "barriers");
        }
    }
    costs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ptxas() {
        let text = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem, 624 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 7 registers, 360 bytes cmem[0]
";
        let one = Cost {
            kernel: "one".into(),
            registers: 24,
            stack_bytes: 8,
            spill_bytes: 16,
            shared_bytes: 512,
            barriers: 1,
        };
        let two = Cost { kernel: "two".into(), registers: 7, ..Cost::default() };
        assert_eq!(parse(text), [one, two]);
    }

    #[test]
    fn architectures_have_numbers() {
        assert_eq!(number("sm_120").unwrap(), 120);
        assert!(number("90").is_err());
    }
}

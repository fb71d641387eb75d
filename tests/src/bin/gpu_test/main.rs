//! The GPU suite: the device's answers are the reference's, bit for bit. One program that needs no cargo and no network.
//!
//! ```sh
//! cargo xtask gpu-test          # builds it into a folder that runs on a GPU machine
//! ./rfdetr-post-gpu-test all    # there
//! ```
//!
//! Each part prints one line, `PASS name: counts` or `FAIL name: ...`; the last line counts the parts. Ends with 1 if
//! anything failed, and without a GPU it does fail.
//!
//! - [`parts`]: what needs no device pointers, through `process_host`;
//! - [`adapters`]: tensors and streams of other crates;
//! - [`fleet`]: several GPUs;
//! - [`raw`]: tickets, streams and bad pointers, with memory and streams made by `cudarc`, as a user would;
//! - [`judge`]: a postprocessor for a request, and the comparison.
#![deny(unsafe_code)]

mod adapters;
mod fleet;
mod judge;
mod parts;
mod raw;

use std::{
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use clap::{Parser, Subcommand, ValueEnum};
use rfdetr_post_cuda::{KernelChoice, device_info};
use rfdetr_post_tests::{
    fixtures,
    suite::{self, text},
    tally::{Outcome, Sum},
};

use judge::Gpu;

#[derive(Parser)]
#[command(about = "The GPU suite of rfdetr-post: device = reference, bit for bit")]
struct Flags {
    /// The part to run
    #[command(subcommand)]
    part: Part,
    /// Folder of the fixtures; default: `fixtures` beside the program, or else the source tree's
    #[arg(long, value_name = "DIR", global = true)]
    fixtures: Option<PathBuf>,
    /// Ordinal of the device
    #[arg(long, value_name = "N", global = true, default_value_t = 0)]
    device: usize,
    /// Threads that compute references and drive the device
    #[arg(long, value_name = "N", global = true)]
    threads: Option<usize>,
    /// Kernels to load
    #[arg(long, value_enum, value_name = "KIND", global = true, default_value_t = Kernels::Auto)]
    kernels: Kernels,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kernels {
    /// Machine code where there is some for the device
    Auto,
    /// The newest PTX that suits the device
    Ptx,
    /// The oldest PTX
    OldestPtx,
}

impl From<Kernels> for KernelChoice {
    fn from(kernels: Kernels) -> Self {
        match kernels {
            Kernels::Auto => Self::Auto,
            Kernels::Ptx => Self::Ptx,
            Kernels::OldestPtx => Self::OldestPtx,
        }
    }
}

#[derive(Subcommand, Clone)]
enum Part {
    /// Everything below
    All(All),
    /// Every fixture and every named edge case, in all mask formats
    Fixtures(Fixtures),
    /// Quick fixtures and edge cases through each of the kernels: machine code, the newest PTX, the oldest
    Images,
    /// Random requests
    Fuzz(Fuzz),
    /// Random requests in several processes at once: the device serves them in turn, so that what is not ordered shows
    Processes(Processes),
    /// The sigmoid over all 2^32 logits, device against host
    Sigmoid(Sigmoid),
    /// One request again and again gives one bit pattern
    Repeats(Repeats),
    /// Threads with postprocessors and streams of their own
    Threads(Threads),
    /// Tickets in flight, dropped, out of order, waited for twice; events
    Tickets,
    /// Masks that do not fit, and the plan that holds them
    Overflow,
    /// Bad pointers, shapes, devices
    Errors,
    /// Tensors and streams of cudarc's safe API, and DLPack's managed tensors
    Adapters,
    /// A batch and a queue over several GPUs; with one, over it several times
    Fleet,
    /// A kernel that breaks its context, in a process of its own
    Broken,
    /// The child of `broken`: ends with a broken context
    #[command(hide = true)]
    BrokenContext,
    /// The scores of torch CUDA in the upstream fixtures
    TorchScores,
}

#[derive(clap::Args, Clone)]
struct All {
    #[command(flatten)]
    fixtures: Fixtures,
    #[command(flatten)]
    fuzz: Fuzz,
    #[command(flatten)]
    repeats: Repeats,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    processes: Processes,
}

#[derive(clap::Args, Clone)]
struct Fixtures {
    /// Small pictures and a third of the formats: for the sanitizers
    #[arg(long)]
    quick: bool,
    /// A handful of small requests that run every kernel: for the slowest of the sanitizers
    #[arg(long, conflicts_with = "quick")]
    tiny: bool,
}

#[derive(clap::Args, Clone)]
struct Fuzz {
    /// Number of random requests
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    cases: u64,
    /// Seed of all requests; default: the time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Run this request only, and print it
    #[arg(long, value_name = "INDEX")]
    case: Option<u64>,
}

#[derive(clap::Args, Clone)]
struct Processes {
    /// Number of processes
    #[arg(long, value_name = "N", default_value_t = 6)]
    processes: u64,
    /// Number of random requests in each
    #[arg(long, value_name = "N", default_value_t = 6_000)]
    cases_each: u64,
}

#[derive(clap::Args, Clone)]
struct Sigmoid {
    /// Check every N-th block of 2^18 bit patterns only
    #[arg(long, value_name = "N", default_value_t = 1)]
    stride: u64,
}

#[derive(clap::Args, Clone)]
struct Repeats {
    /// How often
    #[arg(long, value_name = "N", default_value_t = 1000)]
    count: u32,
}

#[derive(clap::Args, Clone)]
struct Threads {
    /// How long
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let mut sum = Sum::default();
    if let Err(message) = suite::use_fixtures(flags.fixtures) {
        sum.add("setup", || Err(message));
    }
    let threads = flags.threads.or_else(|| std::thread::available_parallelism().ok().map(|n| n.get().min(8)));
    let gpu =
        device_info(flags.device).and_then(|info| Gpu::new(&info, threads.unwrap_or(1).max(1), flags.kernels.into()));
    match gpu {
        Err(error) => sum.add("setup", || Err(error.to_string())),
        Ok(gpu) => {
            let info = gpu.info();
            let (major, minor) = info.compute_capability;
            println!(
                "device {}: {}, sm_{major}{minor}, {} multiprocessors, {} MiB, driver for CUDA {}.{}",
                info.ordinal,
                info.name,
                info.num_multiprocessors,
                info.memory_bytes >> 20,
                info.driver_version / 1000,
                info.driver_version % 1000 / 10
            );
            println!("kernels: {}", gpu.kernels());
            if sum.failed == 0 {
                run(&gpu, flags.part, &mut sum);
            }
        }
    }
    sum.finish()
}

/// Runs the part that breaks its context where it does no harm.
fn broken(gpu: &Gpu) -> Outcome {
    let program = std::env::current_exe().map_err(text)?;
    let mut child = Command::new(program);
    child.arg("broken-context").arg("--device").arg(gpu.device.to_string()).arg("--fixtures").arg(fixtures::root());
    let output = child.output().map_err(text)?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let line = printed.lines().find_map(|line| line.strip_prefix("PASS broken-context: "));
    match line {
        Some(counts) if output.status.success() => Ok(counts.to_string()),
        _ => Err(format!("{}: {printed}{}", output.status, String::from_utf8_lossy(&output.stderr))),
    }
}

/// Runs `fuzz` in several processes at once.
fn processes(gpu: &Gpu, flags: &Processes) -> Outcome {
    let program = std::env::current_exe().map_err(text)?;
    let mut children = Vec::new();
    for seed in 1..=flags.processes {
        let mut child = Command::new(&program);
        child.arg("fuzz").arg("--cases").arg(flags.cases_each.to_string()).arg("--seed").arg(seed.to_string());
        child.arg("--device").arg(gpu.device.to_string()).arg("--fixtures").arg(fixtures::root());
        children.push(child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(text)?);
    }
    // All are waited for, whichever fails.
    let mut failed = Vec::new();
    for child in children {
        let output = child.wait_with_output().map_err(text)?;
        if !output.status.success() {
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            failed.push(format!("{}: {out}{err}", output.status));
        }
    }
    if failed.is_empty() {
        Ok(format!("{} processes of {} random requests each, none failed", flags.processes, flags.cases_each))
    } else {
        Err(failed.join("\n"))
    }
}

fn run(gpu: &Gpu, part: Part, sum: &mut Sum) {
    match part {
        Part::All(all) => {
            let parts = [
                Part::Errors,
                Part::Tickets,
                Part::Overflow,
                Part::Adapters,
                Part::Fleet,
                Part::Broken,
                Part::TorchScores,
                Part::Fixtures(all.fixtures),
                Part::Images,
                Part::Repeats(all.repeats),
                Part::Fuzz(all.fuzz),
                Part::Processes(all.processes),
                Part::Sigmoid(Sigmoid { stride: 1 }),
                Part::Threads(all.threads),
            ];
            parts.into_iter().for_each(|part| run(gpu, part, sum));
        }
        Part::Fixtures(Fixtures { tiny: true, .. }) => sum.add("tiny", || parts::tiny(gpu)),
        Part::Fixtures(flags) => {
            sum.add("fixtures", || parts::fixtures(gpu, flags.quick));
            sum.add("edge-cases", || parts::edge_cases(gpu, flags.quick));
        }
        Part::Images => {
            for (name, choice) in [
                ("images-auto", KernelChoice::Auto),
                ("images-ptx", KernelChoice::Ptx),
                ("images-oldest-ptx", KernelChoice::OldestPtx),
            ] {
                sum.add(name, || parts::image(gpu, choice));
            }
        }
        Part::Fuzz(flags) => sum.add("fuzz", || parts::fuzz(gpu, flags.cases, flags.seed, flags.case)),
        Part::Processes(flags) => sum.add("processes", || processes(gpu, &flags)),
        Part::Sigmoid(flags) => sum.add("sigmoid", || parts::sigmoid(gpu, flags.stride.max(1))),
        Part::Repeats(flags) => sum.add("repeats", || parts::repeats(gpu, flags.count)),
        Part::Threads(flags) => sum.add("threads", || raw::threads(gpu, flags.seconds)),
        Part::Tickets => sum.add("tickets", || raw::tickets(gpu)),
        Part::Overflow => sum.add("overflow", || parts::overflow(gpu)),
        Part::Errors => {
            sum.add("errors", || parts::errors(gpu));
            sum.add("pointer-errors", || raw::pointer_errors(gpu));
        }
        Part::Adapters => {
            sum.add("cudarc", || adapters::cudarc(gpu));
            sum.add("dlpack", || adapters::dlpack(gpu));
        }
        Part::Broken => sum.add("broken", || broken(gpu)),
        Part::BrokenContext => sum.add("broken-context", || raw::broken_context(gpu)),
        Part::Fleet => sum.add("fleet", || fleet::fleet(gpu)),
        Part::TorchScores => sum.add("torch-scores", || parts::torch_scores(gpu)),
    }
}

//! Times the GPU path where there is no cargo: `rfdetr-post-gpu-bench [--cases goals|all|NAME,..] [--json FILE] ..`
//! (`--help` says the rest; `rfdetr_post_cuda::bench` says what is timed).
//!
//! Every timed answer is first compared with the reference (large ones with the fast CPU path, which is equal to it).

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use rfdetr_post_core::{
    MaskFormat, Request,
    bench::{Case, Inputs},
    reference,
};
use rfdetr_post_cpu::{CpuConfig, CpuPostprocessor, Threads};
use rfdetr_post_cuda::{
    KernelChoice, LaunchMode,
    bench::{self, Judged, Others, PeerTime, Result, Settings},
};

/// Pixels of all masks up to which the reference itself is the judge.
const REFERENCE_PIXELS: u64 = 50_000_000;

const HELP: &str = "rfdetr-post-gpu-bench: times the GPU path, answers checked

  --cases goals|all|NAME[,NAME..]  which cases (a NAME also stands for all that begin with it); default goals
  --list                           print the names and end
  --mode graph|stream|both         how to launch; default both
  --samples N                      wall samples a case; default 2000 (fewer for slow cases)
  --json FILE                      write the record
  --commit TEXT                    commit for the record; else RFDETR_POST_COMMIT, or what git says
  --device N                       ordinal; default 0
  --block N --grid-per-sm N --select-threads N   launch sizes, to tune
  --no-check                       do not compare the answers with the reference
  --no-startup --no-floors         leave out these parts
  --kernels auto|ptx|oldest-ptx    which kernels to load: machine code where there is some, or PTX; default auto
  --no-jit-cache                   compile PTX as if for the first time on the machine (machine code needs no cache)
  --torch [--python P] [--torch-script FILE]     run torch_eager.py on the same inputs, on the same device
";

/// The command line.
struct Args {
    cases: String,
    list: bool,
    settings: Settings,
    json: Option<PathBuf>,
    check: bool,
    jit_cache: bool,
    torch: bool,
    python: String,
    torch_script: Option<PathBuf>,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut args = Self {
            cases: "goals".to_string(),
            list: false,
            settings: Settings {
                device: 0,
                modes: vec![LaunchMode::Graph, LaunchMode::Stream],
                kernels: KernelChoice::Auto,
                samples: 2000,
                budget: Duration::from_secs(1),
                mask_threads: None,
                mask_blocks_per_multiprocessor: None,
                select_threads: None,
                startup: true,
                floors: true,
                commit: commit(),
            },
            json: None,
            check: true,
            jit_cache: true,
            torch: false,
            python: "python3".to_string(),
            torch_script: None,
        };
        let settings = &mut args.settings;
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--cases" => args.cases = value()?,
                "--list" => args.list = true,
                "--mode" => {
                    settings.modes = match value()?.as_str() {
                        "graph" => vec![LaunchMode::Graph],
                        "stream" => vec![LaunchMode::Stream],
                        "both" => vec![LaunchMode::Graph, LaunchMode::Stream],
                        other => return Err(format!("--mode is {other}, expected graph, stream or both").into()),
                    }
                }
                "--kernels" => {
                    settings.kernels = match value()?.as_str() {
                        "auto" => KernelChoice::Auto,
                        "ptx" => KernelChoice::Ptx,
                        "oldest-ptx" => KernelChoice::OldestPtx,
                        other => return Err(format!("--kernels is {other}, expected auto, ptx or oldest-ptx").into()),
                    }
                }
                "--samples" => settings.samples = value()?.parse()?,
                "--json" => args.json = Some(value()?.into()),
                "--commit" => settings.commit = value()?,
                "--device" => settings.device = value()?.parse()?,
                "--block" => settings.mask_threads = Some(value()?.parse()?),
                "--grid-per-sm" => settings.mask_blocks_per_multiprocessor = Some(value()?.parse()?),
                "--select-threads" => settings.select_threads = Some(value()?.parse()?),
                "--no-check" => args.check = false,
                "--no-startup" => settings.startup = false,
                "--no-floors" => settings.floors = false,
                "--no-jit-cache" => args.jit_cache = false,
                "--torch" => args.torch = true,
                "--python" => args.python = value()?,
                "--torch-script" => args.torch_script = Some(value()?.into()),
                "--help" | "-h" => {
                    print!("{HELP}");
                    std::process::exit(0);
                }
                other => return Err(format!("{other} is unknown\n\n{HELP}").into()),
            }
        }
        if args.cases == "all" {
            // Four minutes for all of them.
            settings.samples = settings.samples.min(500);
            settings.budget = Duration::from_millis(120);
        }
        Ok(args)
    }
}

/// Commit for the record.
fn commit() -> String {
    let git = || {
        let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let built = || option_env!("RFDETR_POST_COMMIT").map(str::to_string);
    std::env::var("RFDETR_POST_COMMIT").ok().or_else(built).or_else(git).unwrap_or_else(|| "unknown".to_string())
}

/// The judge's answer.
fn judge(case: &Case, inputs: &Inputs, check: bool) -> Result<Judged> {
    let is_run_length = matches!(case.format, MaskFormat::Rle | MaskFormat::Counts);
    if !check && !is_run_length {
        return Ok(Judged { by: "nobody", ..Judged::default() });
    }
    let options = case.options();
    let request = Request::new(inputs.tensors(), &inputs.metas, &options)?;
    let is_pixels = !matches!(case.format, MaskFormat::None | MaskFormat::GridLogits);
    let (answer, by) = if check && (!is_pixels || case.pixels() <= REFERENCE_PIXELS) {
        (reference::process(&request)?, "reference")
    } else {
        let config = CpuConfig { threads: Threads::All, simd: None };
        (CpuPostprocessor::new(config)?.process(&request)?, if check { "fast CPU path" } else { "nobody" })
    };
    let largest = answer.images.iter().flat_map(|image| &image.rows).map(|row| row.mask_len).max().unwrap_or(0);
    Ok(Judged { answer: check.then_some(answer), by, largest_mask: if is_run_length { largest } else { 0 } })
}

/// Runs torch_eager.py on the same inputs.
fn torch(args: &Args, case: &Case, inputs: &Inputs) -> Result<PeerTime> {
    let config = case.peer_config().ok_or_else(|| format!("torch_eager.py has no format {}", case.format.name()))?;
    let beside = std::env::current_exe()?.parent().map(|folder| folder.join("torch_eager.py"));
    let known = [
        args.torch_script.clone(),
        beside,
        Some(PathBuf::from("crates/rfdetr-post/bench/torch_eager.py")),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../rfdetr-post/bench/torch_eager.py")),
    ];
    let script = known.into_iter().flatten().find(|path| path.is_file()).ok_or("torch_eager.py was not found")?;
    let folder = std::env::temp_dir().join(format!("rfdetr-post-gpu-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("request.safetensors");
    std::fs::write(&path, inputs.safetensors())?;
    let output = Command::new(&args.python)
        .arg(&script)
        .arg("--inputs")
        .arg(&path)
        .args(["--config", &config, "--device", &format!("cuda:{}", args.settings.device), "--threads", "0"])
        .args(["--repeats", if case.detections * case.batch > 150 { "10" } else { "30" }])
        .output();
    let _ = std::fs::remove_dir_all(&folder);
    let output = output?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(text.lines().last().unwrap_or("torch_eager.py failed").into());
    }
    let record: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let median_us = record["median_us"].as_f64().ok_or("torch_eager.py gave no median")?;
    Ok(PeerTime { median_us, record: record.to_string() })
}

fn run() -> Result<bool> {
    let args = Args::parse()?;
    let entries = bench::entries(&args.cases)?;
    if args.list {
        entries.iter().for_each(|entry| println!("{}", entry.case.name));
        return Ok(true);
    }
    if !args.jit_cache {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CUDA_CACHE_DISABLE", "1") };
    }
    let mut judge = |case: &Case, inputs: &Inputs| judge(case, inputs, args.check);
    let mut torch = |case: &Case, inputs: &Inputs| torch(&args, case, inputs);
    let mut others = Others {
        judge: &mut judge,
        peer: if args.torch { Some(&mut torch) } else { None },
        progress: &mut |text| eprintln!("{text}"),
    };
    let record = bench::run(&entries, &args.settings, &mut others)?;
    print!("{}", record.text());
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&record)? + "\n")?;
        println!("\nrecord: {}", path.display());
    }
    Ok(record.is_complete())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

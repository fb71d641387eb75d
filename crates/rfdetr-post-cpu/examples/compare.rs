//! Times the CPU back end against a memset, torch and OpenCV, on the same inputs in one run.
//!
//! ```sh
//! cargo run --release -p rfdetr-post-cpu --example compare -- --python python3
//! cargo run --release -p rfdetr-post-cpu --example compare -- --only nano-rle --repeats 10
//! valgrind --tool=callgrind compare --only nano-rle --fixed 10
//! ```
//!
//! Without `--python` only our own times are taken. Peers are the scripts in `crates/rfdetr-post/bench`.
//! Prints CSV: case, who, microseconds (median, minimum), and the ratio to our best on one thread.

#[path = "../benches/inputs/mod.rs"]
mod inputs;

use std::{hint::black_box, num::NonZero, process::Command, time::Instant};

use inputs::{Inputs, Scene};
use rfdetr_post_core::{Detections, MaskFormat, Masks, Options, Request, Size};
use rfdetr_post_cpu::{CpuConfig, CpuPostprocessor, SimdLevel, Threads};

struct Case {
    name: &'static str,
    scene: Scene,
    format: MaskFormat,
    /// Torch's own repeats; large cases take it seconds.
    peer_repeats: usize,
}

const NANO: Scene =
    Scene { batch: 1, queries: 100, classes: 91, side: 78, detections: 20, image: Size::new(1920, 1080), noise: false };

fn cases() -> Vec<Case> {
    let case = |name, scene, format, peer_repeats| Case { name, scene, format, peer_repeats };
    let xxl = Scene { queries: 300, side: 192, detections: 100, image: Size::new(3840, 2160), ..NANO };
    let small = Scene { queries: 300, side: 192, detections: 100, image: Size::new(150, 110), ..NANO };
    let boxes = Scene { queries: 300, side: 0, ..NANO };
    vec![
        case("nano-rle", NANO, MaskFormat::Rle, 15),
        case("nano-counts", NANO, MaskFormat::Counts, 0),
        case("nano-grid", NANO, MaskFormat::GridLogits, 0),
        case("nano-none", NANO, MaskFormat::None, 0),
        case("nano-dense", NANO, MaskFormat::Dense, 15),
        case("nano-packed", NANO, MaskFormat::BitPacked, 0),
        case("nano-noise-rle", Scene { noise: true, ..NANO }, MaskFormat::Rle, 5),
        case("nano-noise-dense", Scene { noise: true, ..NANO }, MaskFormat::Dense, 5),
        case("2xlarge-4k-rle", xxl, MaskFormat::Rle, 2),
        case("2xlarge-4k-dense", xxl, MaskFormat::Dense, 2),
        case("2xlarge-150x110-rle", small, MaskFormat::Rle, 15),
        case("2xlarge-150x110-dense", small, MaskFormat::Dense, 15),
        case("boxes", boxes, MaskFormat::None, 200),
        case("nano-batch8-rle", Scene { batch: 8, ..NANO }, MaskFormat::Rle, 3),
        case("nano-batch8-dense", Scene { batch: 8, ..NANO }, MaskFormat::Dense, 0),
    ]
}

/// Median and minimum of `repeats` runs, in microseconds.
fn time(repeats: usize, mut work: impl FnMut()) -> (f64, f64) {
    for _ in 0..(repeats / 10).max(2) {
        work();
    }
    let mut times: Vec<f64> = (0..repeats)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[repeats / 2], times[0])
}

/// Runs a peer's script; median, minimum and checksum.
fn peer(python: &str, script: &str, args: &[&str]) -> Option<(f64, f64, f64)> {
    let path = format!("{}/../rfdetr-post/bench/{script}", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python).arg(path).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        eprintln!("{script} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let number = |key: &str| {
        let rest = &text[text.find(&format!("\"{key}\":"))? + key.len() + 3..];
        rest.trim_start().split([',', '}']).next()?.trim().parse::<f64>().ok()
    };
    Some((number("median_us")?, number("min")?, number("checksum").unwrap_or(-1.0)))
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let option = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let (python, only) = (option("--python"), option("--only"));
    let scale: f64 = option("--repeats").and_then(|s| s.parse().ok()).unwrap_or(1.0);
    let folder = std::env::temp_dir().join(format!("rfdetr-post-cpu-{}", std::process::id()));
    println!("case,who,median_us,min_us,ratio");
    for case in cases() {
        if only.as_deref().is_some_and(|only| !case.name.starts_with(only)) {
            continue;
        }
        let inputs = Inputs::new(case.scene);
        let options = Options { mask_format: case.format, ..Options::default() };
        let request = Request::new(inputs.tensors(), &inputs.metas, &options).expect("a good request");
        let mut answer = Detections::default();
        let mut best = f64::INFINITY;
        let mut checksum = 0;
        let show = |who: &str, (median, min): (f64, f64), best: f64| {
            println!("{},{who},{median:.1},{min:.1},{:.2}", case.name, median / best);
        };
        let mut ours = |config: CpuConfig| {
            let mut processor = CpuPostprocessor::new(config).expect("levels of this machine");
            processor.process_into(&request, &mut answer).expect("an answer");
            let start = Instant::now();
            processor.process_into(&request, &mut answer).expect("an answer");
            let once = start.elapsed().as_secs_f64();
            let repeats = ((0.7 * scale / once) as usize).clamp(5, 20_000);
            let timed = time(repeats, || processor.process_into(black_box(&request), &mut answer).expect("an answer"));
            checksum = answer.images.iter().flat_map(|i| &i.rows).map(|r| u64::from(r.mask_area)).sum();
            timed
        };
        if let Some(fixed) = option("--fixed").and_then(|s| s.parse().ok()) {
            // So many calls and nothing else, for callgrind: the difference of two runs is the cost of the calls.
            let level = option("--simd").and_then(|s| SimdLevel::available().into_iter().find(|l| l.name() == s));
            let config = CpuConfig { threads: Threads::One, simd: level };
            let mut processor = CpuPostprocessor::new(config).expect("levels of this machine");
            for _ in 0..fixed {
                processor.process_into(black_box(&request), &mut answer).expect("an answer");
            }
            continue;
        }
        let mut rows = Vec::new();
        for simd in SimdLevel::available() {
            let timed = ours(CpuConfig { threads: Threads::One, simd: Some(simd) });
            best = timed.0;
            rows.push((format!("ours {}", simd.name()), timed));
        }
        let two = NonZero::new(2).expect("two");
        rows.push(("ours, two threads".into(), ours(CpuConfig { threads: Threads::Count(two), simd: None })));
        if case.format == MaskFormat::Dense {
            // In turns with our own calls and on the same bytes, so that both see the same machine.
            let mut processor = CpuPostprocessor::new(CpuConfig::default()).expect("a processor");
            let (mut fills, mut calls) = (Vec::new(), Vec::new());
            for _ in 0..((1.0 * scale / best * 1e6) as usize).clamp(7, 2000) {
                let start = Instant::now();
                for image in &mut answer.images {
                    if let Masks::Dense(bytes) = &mut image.masks {
                        black_box(bytes).fill(0);
                    }
                }
                fills.push(start.elapsed().as_secs_f64() * 1e6);
                let start = Instant::now();
                processor.process_into(black_box(&request), &mut answer).expect("an answer");
                calls.push(start.elapsed().as_secs_f64() * 1e6);
            }
            for (who, mut times) in [("memset of the output", fills), ("ours, in turns with memset", calls)] {
                times.sort_by(f64::total_cmp);
                rows.push((who.into(), (times[times.len() / 2], times[0])));
            }
        }
        for (who, timed) in &rows {
            show(who, *timed, best);
        }
        let detections: usize = answer.images.iter().map(|i| i.len()).sum();
        let counts: u64 = answer.images.iter().flat_map(|i| &i.rows).map(|r| u64::from(r.num_counts)).sum();
        println!("{},# {detections} detections; {checksum} foreground pixels; {counts} counts", case.name);
        let Some(python) = python.as_deref().filter(|_| case.peer_repeats > 0) else { continue };
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let file = folder.join("inputs.safetensors");
        std::fs::write(&file, inputs.safetensors()).expect("room for the inputs");
        let size = case.scene.image;
        let net = inputs.metas[0].network.width;
        let format = if case.format == MaskFormat::None { "boxes" } else { case.format.name() };
        let config = format!(
            "{{\"images\":[{{\"width\":{},\"height\":{}}}],\"network\":{{\"width\":{net},\"height\":{net}}},\"format\":\"{format}\"}}",
            size.width, size.height
        );
        let repeats = case.peer_repeats.to_string();
        let inputs = file.to_string_lossy().into_owned();
        for (threads, rle) in [("1", "torch"), ("1", "encode"), ("0", "torch"), ("0", "encode")] {
            // The largest cases take torch half a minute a call; one thread is what the goals ask for.
            let is_large = case.peer_repeats < 5 && threads == "0";
            if is_large || rle == "encode" && case.format != MaskFormat::Rle {
                continue;
            }
            let args = [
                "--inputs",
                &inputs,
                "--config",
                &config,
                "--threads",
                threads,
                "--rle",
                rle,
                "--repeats",
                &repeats,
                "--warmup",
                "1",
            ];
            if let Some((median, min, sum)) = peer(python, "torch_eager.py", &args) {
                let threads = if threads == "1" { "one thread" } else { "all threads" };
                let rle = if case.format != MaskFormat::Rle {
                    ""
                } else if rle == "torch" {
                    ", runs in torch"
                } else {
                    ", pycocotools.encode"
                };
                show(&format!("torch {threads}{rle}"), (median, min), best);
                println!("{},# torch's foreground pixels: {sum}", case.name);
            }
        }
        let args = ["--inputs", &inputs, "--config", &config, "--threads", "1", "--repeats", &repeats, "--warmup", "1"];
        if let Some((median, min, _)) = peer(python, "opencv_resize.py", &args) {
            show("opencv one thread (other arithmetic)", (median, min), best);
        }
    }
    let _ = std::fs::remove_dir_all(folder);
}

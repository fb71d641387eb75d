//! A GPU: `rfdetr_post_cuda::bench` with a judge, torch on the same device, and a picture.

use std::{cell::RefCell, time::Duration};

use anyhow::{Result, anyhow};
use rfdetr_post::{
    CpuConfig, CpuPostprocessor, MaskFormat, Request, Threads,
    bench::{Case, Inputs},
    reference,
};
use rfdetr_post_cuda::{
    KernelChoice, LaunchMode,
    bench::{self, Judged, Others, PeerTime, Record, Settings},
};

use super::{
    BenchArgs, ModeArg, commit,
    peers::Peers,
    plot::{Bar, Group, svg},
    report,
};

/// Pixels of all masks up to which the reference itself is the judge.
const REFERENCE_PIXELS: u64 = 50_000_000;

/// Runs the command on a device.
pub fn run(args: &BenchArgs, ordinal: usize) -> Result<bool> {
    let to_anyhow = |err: Box<dyn std::error::Error + Send + Sync>| anyhow!("{err}");
    let entries = bench::entries(&args.cases).map_err(to_anyhow)?;
    if args.list {
        entries.iter().for_each(|entry| println!("{}", entry.case.name));
        return Ok(true);
    }
    let settings = Settings {
        device: ordinal,
        modes: match args.mode {
            ModeArg::Graph => vec![LaunchMode::Graph],
            ModeArg::Stream => vec![LaunchMode::Stream],
            ModeArg::Both => vec![LaunchMode::Graph, LaunchMode::Stream],
        },
        kernels: KernelChoice::Auto,
        samples: args.samples,
        budget: Duration::from_secs_f64(args.seconds.max(0.0)),
        mask_threads: args.block,
        mask_blocks_per_multiprocessor: args.grid_per_sm,
        select_threads: args.select_threads,
        startup: !args.cases_only,
        floors: !args.cases_only,
        commit: commit(args),
    };
    let peers = if args.no_peers { None } else { Some(Peers::new(&args.python)?) };
    let torch = peers.as_ref().filter(|peers| peers.has("torch"));
    if torch.is_none() && !args.no_peers {
        eprintln!("warning: {} has no module torch: that peer is not timed", args.python);
    }
    let can_encode = peers.as_ref().is_some_and(|peers| peers.has("pycocotools"));
    if torch.is_some() && !can_encode {
        eprintln!("warning: {} has no module pycocotools: torch makes run lengths in one way only", args.python);
    }
    let device = format!("cuda:{ordinal}");
    let mut time_torch = |case: &Case, inputs: &Inputs| -> bench::Result<PeerTime> {
        let Some(peers) = torch else { return Err("there is no torch".into()) };
        peers.write(inputs)?;
        // Torch's two ways to run lengths, of which one needs pycocotools; the faster one counts.
        let ways: &[&str] =
            if case.format == MaskFormat::Rle && can_encode { &["torch", "encode"] } else { &["torch"] };
        let runs = ways
            .iter()
            .map(|way| peers.run("torch_eager.py", case, &["--device", &device, "--threads", "0", "--rle", way]));
        let mut runs = runs.collect::<Result<Vec<_>>>()?;
        runs.sort_by(|a, b| a.median_us.total_cmp(&b.median_us));
        let best = runs.swap_remove(0);
        Ok(PeerTime { median_us: best.median_us, record: best.record.to_string() })
    };
    let cpu = CpuConfig { threads: Threads::All, simd: None };
    let cpu = RefCell::new(CpuPostprocessor::new(cpu)?);
    let mut others = Others {
        judge: &mut |case, inputs| judge(case, inputs, &mut cpu.borrow_mut()),
        peer: if torch.is_some() { Some(&mut time_torch) } else { None },
        progress: &mut |text| eprintln!("{text}"),
    };
    let record = bench::run(&entries, &settings, &mut others).map_err(to_anyhow)?;
    report(args, &record.text(), &record, &picture(&record))?;
    Ok(record.is_complete())
}

/// The reference's answer, or that of the fast CPU path, which is equal to it, for many pixels.
fn judge(case: &Case, inputs: &Inputs, cpu: &mut CpuPostprocessor) -> bench::Result<Judged> {
    let options = case.options();
    let request = Request::new(inputs.tensors(), &inputs.metas, &options)?;
    let makes_pixels = !matches!(case.format, MaskFormat::None | MaskFormat::GridLogits);
    let (answer, by) = if makes_pixels && case.pixels() > REFERENCE_PIXELS {
        (cpu.process(&request)?, "fast CPU path")
    } else {
        (reference::process(&request)?, "reference")
    };
    let is_run_length = case.format.is_run_length();
    let rows = answer.images.iter().flat_map(|image| &image.rows).filter(|_| is_run_length);
    let largest_mask = rows.map(|row| row.mask_len).max().unwrap_or(0);
    Ok(Judged { answer: Some(answer), by, largest_mask })
}

fn picture(record: &Record) -> String {
    let mut groups: Vec<Group> = Vec::new();
    for row in &record.cases {
        if groups.last().is_none_or(|group| group.name != row.case) {
            groups.push(Group { name: row.case.clone(), bars: Vec::new() });
            let Some(group) = groups.last_mut() else { continue };
            let fill = row.fill_gpu.map(|times| ("a fill of the masks' bytes", times.median_us));
            let peer = row.peer.as_ref().map(|peer| ("torch eager", peer.median_us));
            let bars = fill.into_iter().chain(peer);
            group.bars.extend(bars.map(|(label, us)| Bar { label: label.to_owned(), us, is_ours: false }));
        }
        let Some(group) = groups.last_mut() else { continue };
        let bar = |what: &str, us| Bar { label: format!("ours, {}, {what}", row.mode), us, is_ours: true };
        group.bars.extend([bar("wall", row.wall.median_us), bar("on the GPU", row.gpu_each.median_us)]);
    }
    let subtitle =
        format!("{}, driver CUDA {}, commit {}, {}", record.device, record.driver_cuda, record.commit, record.date);
    svg("rfdetr-post on the GPU: median time of a request", &subtitle, &groups)
}

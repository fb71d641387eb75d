//! `rfdetr-post run`: many inputs in parallel, one result.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rayon::prelude::*;
use rfdetr_post::{CpuConfig, Postprocessor, Threads};

use super::{
    Usage,
    args::{BackendArg, DeviceArg, OutputArgs, ResizeArg, RunArgs},
    coco::{self, Dataset},
    job::{self, Flags},
    summary::{InputReport, Report, print},
    tensors::FileKind,
};

/// Runs the command. The result says whether all inputs went well.
pub fn run(args: RunArgs) -> Result<bool> {
    let start = Instant::now();
    check_usage(&args)?;
    let RunArgs { inputs, image, meta, tensor_names, geometry, options, output, .. } = args;
    let inputs = expand(&inputs);
    if image.as_ref().is_some_and(|image| !image.is_dir()) && inputs.len() > 1 {
        let message = format!("--image names one picture, but there are {} inputs: expected a folder", inputs.len());
        return Err(Usage(message).into());
    }
    let flags = Flags {
        patch: options.patch(),
        tensor_names: tensor_names.unwrap_or_default(),
        meta,
        image,
        geometry,
        save_masks: args.save_masks,
        overlay: !args.no_overlay,
        out: output.out.clone(),
    };
    make_out(&flags.out)?;
    // One input has all cores to itself; many inputs share them, each on one thread.
    let threads = if inputs.len() == 1 { Threads::All } else { Threads::One };
    let config = CpuConfig { threads, ..CpuConfig::default() };
    let device = args.device.device;
    let idle = IdlePostprocessors::new(|| match args.backend {
        BackendArg::Cpu => device.postprocessor(config),
        BackendArg::Reference => Ok(Postprocessor::reference()),
    })?;
    let jobs = args.jobs.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(jobs).build().context("cannot start threads")?;

    let bases = output_names(&inputs);
    let progress = progress_bar(inputs.len(), &output);
    let reports: Vec<InputReport> = pool.install(|| {
        let work = inputs.into_par_iter().zip(bases).map(|(input, base)| {
            let input = match input {
                Ok(path) => {
                    let work = |postprocessor: &mut Postprocessor| job::run(&path, &base, &flags, postprocessor);
                    let outcome = idle.lend(work).map_err(|err| format!("{err:#}"));
                    InputReport { input: path.display().to_string(), outcome }
                }
                Err((path, error)) => InputReport { input: path.display().to_string(), outcome: Err(error) },
            };
            progress.inc(1);
            input
        });
        work.collect()
    });
    progress.finish_and_clear();
    report(reports, &idle.first()?, &output, start)
}

/// Postprocessors that no job uses at the moment. Making one may take a while (on a GPU), so that each serves many jobs;
/// there are never more of them than threads.
struct IdlePostprocessors<F> {
    idle: Mutex<Vec<Postprocessor>>,
    make: F,
}

impl<F: Fn() -> Result<Postprocessor>> IdlePostprocessors<F> {
    /// Makes the first, so that a device that is not there fails before any input is read.
    fn new(make: F) -> Result<Self> {
        Ok(Self { idle: Mutex::new(vec![make()?]), make })
    }

    /// An idle one, or a new one.
    fn first(&self) -> Result<Postprocessor> {
        // A job that panicked took its postprocessor with it; the list is whole.
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(&self.make, Ok)
    }

    fn lend<T>(&self, job: impl FnOnce(&mut Postprocessor) -> Result<T>) -> Result<T> {
        let mut postprocessor = self.first()?;
        let outcome = job(&mut postprocessor);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(postprocessor);
        outcome
    }
}

/// What clap cannot check.
fn check_usage(args: &RunArgs) -> Result<(), Usage> {
    let geometry = &args.geometry;
    if geometry.is_given() && geometry.network.is_none() {
        return Err(Usage(
            "--network is missing: the flags for image metadata need the network's input size (`rfdetr-post info` lists \
             the models')"
                .to_owned(),
        ));
    }
    if geometry.frame.is_some() && matches!(geometry.resize, None | Some(ResizeArg::Stretch)) {
        return Err(Usage("--frame needs --resize letterbox or center-crop: a stretch has no frame".to_owned()));
    }
    if args.backend == BackendArg::Reference && args.device.device != DeviceArg::Cpu {
        return Err(Usage("--backend reference computes on the CPU: expected no --device beside it".to_owned()));
    }
    for (flag, path) in [("--image", &args.image), ("--meta", &args.meta)] {
        if let Some(path) = path.as_ref().filter(|path| !path.exists()) {
            return Err(Usage(format!("{flag}: {} does not exist", path.display())));
        }
    }
    Ok(())
}

/// An input, or why it is none.
type Input = Result<PathBuf, (PathBuf, String)>;

/// Replaces folders by the inputs that they hold, sorted by name.
fn expand(inputs: &[PathBuf]) -> Vec<Input> {
    let mut expanded = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            expanded.push(Ok(input.clone()));
            continue;
        }
        let list = || -> std::io::Result<Vec<PathBuf>> {
            let mut paths = Vec::new();
            for entry in fs::read_dir(input)? {
                let path = entry?.path();
                if path.is_file() && FileKind::of(&path).is_some() {
                    paths.push(path);
                }
            }
            paths.sort();
            Ok(paths)
        };
        match list() {
            Err(err) => expanded.push(Err((input.clone(), format!("cannot be read: {err}")))),
            Ok(paths) if paths.is_empty() => {
                expanded.push(Err((input.clone(), "holds no .npz or .safetensors files".to_owned())));
            }
            Ok(paths) => expanded.extend(paths.into_iter().map(Ok)),
        }
    }
    expanded
}

/// The base name of each input's output files: its stem, numbered where stems repeat.
fn output_names(inputs: &[Input]) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let name = |input: &Input| {
        let path = match input {
            Ok(path) | Err((path, _)) => path,
        };
        let stem = path.file_stem().map_or_else(|| "input".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let count = seen.entry(stem.clone()).or_default();
        *count += 1;
        if *count == 1 { stem } else { format!("{stem}~{count}") }
    };
    inputs.iter().map(name).collect()
}

fn progress_bar(len: usize, output: &OutputArgs) -> ProgressBar {
    // indicatif itself hides the bar when stderr is no terminal.
    let hidden = len < 2 || output.quiet || output.json;
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(len as u64), target);
    if let Ok(style) = ProgressStyle::with_template("{bar:32.cyan/dim} {pos}/{len} inputs, {eta} left") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Makes the folder for the results.
pub fn make_out(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("--out: cannot make {}", out.display()))
}

/// Writes the JSON files and prints the summary. The result says whether all inputs went well.
pub fn report(
    mut inputs: Vec<InputReport>,
    postprocessor: &Postprocessor,
    output: &OutputArgs,
    start: Instant,
) -> Result<bool> {
    number_images(&mut inputs);
    let (backend, fallback) = (postprocessor.backend(), postprocessor.fallback_reason().map(str::to_owned));
    let mut report = Report { backend, fallback, inputs, detections: None, images: None, wall: Duration::ZERO };
    if report.num_failed() < report.inputs.len() {
        let (detections, images) = (output.out.join("detections.json"), output.out.join("images.json"));
        write_detections(&detections, &report.inputs)?;
        write_images(&images, &report.inputs)?;
        (report.detections, report.images) = (Some(detections), Some(images));
    }
    report.wall = start.elapsed();
    eprint!("{}", report.messages(!output.quiet));
    if output.json {
        print(&report.json())?;
    } else if !output.quiet {
        print(&report.table())?;
    }
    Ok(report.num_failed() == 0)
}

/// Gives every image an id of its own. Ids that sidecars give are kept; an input that repeats one fails.
fn number_images(inputs: &mut [InputReport]) {
    let mut taken: BTreeMap<u64, String> = BTreeMap::new();
    for InputReport { input, outcome } in &mut *inputs {
        let Ok(done) = outcome else { continue };
        let mut own = BTreeSet::new();
        let clash = done.images.iter().filter_map(|image| image.id).find_map(|id| match taken.get(&id) {
            Some(other) => Some((id, other.clone())),
            None => (!own.insert(id)).then(|| (id, input.clone())),
        });
        match clash {
            Some((id, other)) => {
                *outcome = Err(format!(
                    "image id {id} is taken by {other}: expected an id of its own in each sidecar's `images`, or none"
                ));
            }
            None => taken.extend(own.into_iter().map(|id| (id, input.clone()))),
        }
    }
    let mut free = (1..).filter(|id| !taken.contains_key(id));
    for InputReport { outcome, .. } in inputs {
        let Ok(done) = outcome else { continue };
        for image in &mut done.images {
            let id = image.id.or_else(|| free.next());
            image.id = id;
            image.records.iter_mut().for_each(|record| record.image_id = id.unwrap_or_default());
        }
    }
}

/// Writes COCO results, one detection a line.
fn write_detections(path: &Path, inputs: &[InputReport]) -> Result<()> {
    let done = inputs.iter().filter_map(|input| input.outcome.as_ref().ok());
    job::write_file(path, |file| {
        let mut before = "[\n";
        for record in done.flat_map(|done| &done.images).flat_map(|image| &image.records) {
            file.write_all(before.as_bytes())?;
            serde_json::to_writer(&mut *file, record)?;
            before = ",\n";
        }
        file.write_all(if before == "[\n" { b"[]\n".as_slice() } else { b"\n]\n" })?;
        Ok(())
    })
}

/// Writes the data set that the results refer to.
fn write_images(path: &Path, inputs: &[InputReport]) -> Result<()> {
    let mut dataset = Dataset::default();
    let mut categories = BTreeMap::new();
    for done in inputs.iter().filter_map(|input| input.outcome.as_ref().ok()) {
        let named = done.class_names.iter().enumerate().filter(|(_, name)| !name.is_empty());
        for (id, name) in named {
            categories.entry(id as i32).or_insert_with(|| name.clone());
        }
        for image in &done.images {
            dataset.add_image(image.id.unwrap_or_default(), &image.file_name, image.size);
            for record in &image.records {
                let label = || coco::class_label(&done.class_names, record.category_id);
                categories.entry(record.category_id).or_insert_with(label);
            }
        }
    }
    dataset.set_categories(categories);
    job::write_file(path, |file| {
        serde_json::to_writer_pretty(&mut *file, &dataset)?;
        Ok(file.write_all(b"\n")?)
    })
}

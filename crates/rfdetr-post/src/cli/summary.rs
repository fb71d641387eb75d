//! What a run tells: a table for people, JSON for machines.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use serde::Serialize;

use super::{coco, job::Done};

/// Rows that the table shows; the rest is counted.
const MAX_ROWS: usize = 40;

/// What became of a run.
pub struct Report {
    /// The back end's name.
    pub backend: &'static str,
    /// Why it is the CPU, where a GPU was sought.
    pub fallback: Option<String>,
    /// One entry an input, in order.
    pub inputs: Vec<InputReport>,
    /// `detections.json`, if anything was written.
    pub detections: Option<PathBuf>,
    /// `images.json`, if anything was written.
    pub images: Option<PathBuf>,
    /// From start to end.
    pub wall: Duration,
}

/// What became of an input.
pub struct InputReport {
    /// The input, as the user named it.
    pub input: String,
    /// The result, or the error's text.
    pub outcome: Result<Done, String>,
}

impl Report {
    /// Number of inputs that failed.
    pub fn num_failed(&self) -> usize {
        self.inputs.iter().filter(|input| input.outcome.is_err()).count()
    }

    fn done(&self) -> impl Iterator<Item = &Done> {
        self.inputs.iter().filter_map(|input| input.outcome.as_ref().ok())
    }

    fn num_images(&self) -> usize {
        self.done().map(|done| done.images.len()).sum()
    }

    fn num_detections(&self) -> usize {
        self.done().flat_map(|done| &done.images).map(|image| image.records.len()).sum()
    }

    /// Errors and warnings, a line each.
    pub fn messages(&self, warnings: bool) -> String {
        let mut text = String::new();
        for InputReport { input, outcome } in &self.inputs {
            match outcome {
                Err(error) => text += &format!("error: {input}: {error}\n"),
                Ok(done) if warnings => {
                    done.warnings.iter().for_each(|warning| text += &format!("warning: {input}: {warning}\n"));
                }
                Ok(_) => {}
            }
        }
        text
    }

    /// The tables for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        if let [InputReport { outcome: Ok(done), .. }] = &self.inputs[..]
            && let [image] = &done.images[..]
        {
            text += &detection_table(&image.records, &done.class_names);
            text.push('\n');
        }
        let mut table = new_table(&["input", "image", "detections", "load", "post-process", "write"], 2);
        for InputReport { input, outcome } in self.inputs.iter().take(MAX_ROWS) {
            match outcome {
                Err(_) => table.add_row([input.as_str(), "failed", "", "", "", ""]),
                Ok(done) => {
                    let image = match &done.images[..] {
                        [image] => image.size.to_string(),
                        images => format!("{} images", images.len()),
                    };
                    let count: usize = done.images.iter().map(|image| image.records.len()).sum();
                    let times = [done.times.load, done.times.post_process, done.times.write].map(milliseconds);
                    let [load, post_process, write] = times;
                    table.add_row([input.clone(), image, count.to_string(), load, post_process, write])
                }
            };
        }
        if self.inputs.len() > MAX_ROWS {
            table.add_row([format!("... and {} more", self.inputs.len() - MAX_ROWS)]);
        }
        if self.inputs.len() > 1 {
            let sum = |part: fn(&Done) -> Duration| milliseconds(self.done().map(part).sum());
            table.add_row([
                format!("total: {} inputs", self.inputs.len()),
                format!("{} images", self.num_images()),
                self.num_detections().to_string(),
                sum(|done| done.times.load),
                sum(|done| done.times.post_process),
                sum(|done| done.times.write),
            ]);
        }
        text += &format!("{table}\n");
        text += &format!("back end: {}, {} from start to end\n", self.backend, milliseconds(self.wall));
        if let Some(reason) = &self.fallback {
            text += &format!("no GPU:   {reason}\n");
        }
        text += &self.files();
        text
    }

    /// Where the results are.
    fn files(&self) -> String {
        let mut lines = Vec::new();
        let overlays: Vec<_> = self.done().flat_map(|done| &done.images).filter_map(|i| i.overlay.as_ref()).collect();
        match &overlays[..] {
            [] => {}
            [one] => lines.push(format!("overlay:    {}", one.display())),
            [first, ..] => lines.push(format!("overlays:   {} and {} more", first.display(), overlays.len() - 1)),
        }
        let mut list = |what: &str, paths: Vec<&PathBuf>| match &paths[..] {
            [] => {}
            [one] => lines.push(format!("{what}{}", one.display())),
            [first, ..] => lines.push(format!("{what}{} and {} more", first.display(), paths.len() - 1)),
        };
        list("masks:      ", self.done().flat_map(|done| &done.images).flat_map(|i| &i.mask_pictures).collect());
        list("arrays:     ", self.done().filter_map(|done| done.mask_arrays.as_ref()).collect());
        list("detections: ", self.detections.iter().collect());
        list("images:     ", self.images.iter().collect());
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The summary for machines.
    pub fn json(&self) -> String {
        let inputs = self.inputs.iter().map(|InputReport { input, outcome }| match outcome {
            Err(error) => InputJson { input, status: "failed", error: Some(error), done: None },
            Ok(done) => InputJson { input, status: "ok", error: None, done: Some(done.into()) },
        });
        let json = ReportJson {
            version: env!("CARGO_PKG_VERSION"),
            backend: self.backend,
            fallback_reason: self.fallback.as_deref(),
            inputs: inputs.collect(),
            detections: self.detections.as_deref(),
            images: self.images.as_deref(),
            totals: TotalsJson {
                inputs: self.inputs.len(),
                failed: self.num_failed(),
                images: self.num_images(),
                detections: self.num_detections(),
                wall_ms: self.wall.as_secs_f64() * 1e3,
            },
        };
        serde_json::to_string_pretty(&json).unwrap_or_else(|err| format!("{{\"error\": \"{err}\"}}")) + "\n"
    }
}

/// The detections of one image.
fn detection_table(records: &[coco::CocoDetection], class_names: &[String]) -> String {
    let has_masks = records.iter().any(|record| record.area.is_some());
    let mut header = vec!["#", "class", "id", "score", "x", "y", "width", "height"];
    header.extend(has_masks.then_some("mask area"));
    let mut table = new_table(&header, 2);
    if let Some(column) = table.column_mut(0) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (idx, record) in records.iter().take(MAX_ROWS).enumerate() {
        let mut row = vec![
            idx.to_string(),
            coco::class_label(class_names, record.category_id),
            record.category_id.to_string(),
            format!("{:.3}", record.score),
        ];
        row.extend(record.bbox.map(|x| if x.fract() == 0.0 { format!("{x:.0}") } else { format!("{x:.1}") }));
        row.extend(record.area.map(|area| area.to_string()));
        table.add_row(row);
    }
    if records.len() > MAX_ROWS {
        table.add_row([String::new(), format!("... and {} more", records.len() - MAX_ROWS)]);
    }
    format!("{table}\n")
}

/// A table whose columns from `first_right` on are aligned to the right.
pub fn new_table(header: &[&str], first_right: usize) -> Table {
    let mut table = Table::new();
    let style = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
    table.load_style(style).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(first_right) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 100.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

#[derive(Serialize)]
struct ReportJson<'a> {
    version: &'a str,
    backend: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback_reason: Option<&'a str>,
    inputs: Vec<InputJson<'a>>,
    detections: Option<&'a Path>,
    images: Option<&'a Path>,
    totals: TotalsJson,
}

#[derive(Serialize)]
struct TotalsJson {
    inputs: usize,
    failed: usize,
    images: usize,
    detections: usize,
    wall_ms: f64,
}

#[derive(Serialize)]
struct InputJson<'a> {
    input: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(flatten)]
    done: Option<DoneJson<'a>>,
}

#[derive(Serialize)]
struct DoneJson<'a> {
    images: Vec<ImageJson<'a>>,
    mask_arrays: Option<&'a Path>,
    warnings: &'a [String],
    times_ms: TimesJson,
}

#[derive(Serialize)]
struct ImageJson<'a> {
    image_id: Option<u64>,
    file_name: &'a str,
    width: u32,
    height: u32,
    detections: usize,
    health: rfdetr_post::Health,
    overlay: Option<&'a Path>,
    mask_pictures: &'a [PathBuf],
}

#[derive(Serialize)]
struct TimesJson {
    load: f64,
    post_process: f64,
    write: f64,
}

impl<'a> From<&'a Done> for DoneJson<'a> {
    fn from(done: &'a Done) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let images = done.images.iter().map(|image| ImageJson {
            image_id: image.id,
            file_name: &image.file_name,
            width: image.size.width,
            height: image.size.height,
            detections: image.records.len(),
            health: image.health,
            overlay: image.overlay.as_deref(),
            mask_pictures: &image.mask_pictures,
        });
        Self {
            images: images.collect(),
            mask_arrays: done.mask_arrays.as_deref(),
            warnings: &done.warnings,
            times_ms: TimesJson {
                load: ms(done.times.load),
                post_process: ms(done.times.post_process),
                write: ms(done.times.write),
            },
        }
    }
}

/// Prints to stdout. A reader that went away (`| head`) is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

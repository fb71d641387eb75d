//! An implementation against upstream's own answers, and torch's on the CPU.
//!
//! Upstream's order of exactly equal scores is arbitrary, so runs of equal scores are compared as sets; everything else
//! in order. Integers, boxes and masks are compared exactly, scores within `SCORE_ULPS`.

use std::cell::RefCell;

use rfdetr_post::Postprocessor;
use rfdetr_post_core::{
    Detections, ImageDetections, MaskFormat, MaskRef, reference::masks::area_and_box, reference::rle,
};

use crate::{
    case::RequestCase,
    compare::{same_bits, ulps},
    fixtures::{Answer, Fixture, names},
};

/// Answers a request that it must not refuse: what is judged.
pub type Implementation<'a> = &'a dyn Fn(&RequestCase) -> Detections;

/// The facade as an implementation. Panics if it refuses a request or fails.
pub fn facade(postprocessor: Postprocessor) -> impl Fn(&RequestCase) -> Detections {
    let postprocessor = RefCell::new(postprocessor);
    move |case| {
        let tensors = *case.request().unwrap_or_else(|error| panic!("the case is refused: {error}")).tensors();
        let answer = postprocessor.borrow_mut().process(&tensors, &case.metas, &case.options);
        answer.unwrap_or_else(|error| panic!("the case fails: {error}"))
    }
}

/// Compares everything that one kind of reference answers.
pub type Part = fn(Implementation<'_>) -> Report;

/// All parts, by name.
pub const PARTS: [(&str, Part); 8] = [
    ("dense", upstream_dense_masks),
    ("rle", upstream_run_lengths),
    ("od", upstream_detection_only),
    ("rfdetr", upstream_rf_detr),
    ("od_fused", upstream_fused_detection),
    ("triton", upstream_sparse_run_lengths),
    ("torch_cpu", torch_cpu_roboflow),
    ("torch_cpu_rfdetr", torch_cpu_rf_detr),
];

/// Torch CUDA's sigmoid and ours are at most this far apart, over all f32 (docs/numerics.md).
const SCORE_ULPS: u32 = 4;

/// The files of `fixtures/upstream`.
pub const UPSTREAM: [&str; 22] = [
    "batch2_mixed",
    "center_crop_640x240",
    "downscale_50x40",
    "downscale_x_only_60x200",
    "empty",
    "equal_scores",
    "letterbox_640x480",
    "letterbox_portrait_intermediate",
    "many_classes_per_query",
    "max_detections_5",
    "medium_640x480",
    "nano_1280x720",
    "nano_312x176",
    "nano_640x480",
    "no_remapping",
    "odd_size_641x359",
    "per_class_thresholds",
    "quantized_masks",
    "removed_classes",
    "saturated_logits",
    "static_crop_1280x720",
    "static_crop_letterbox",
];

/// What was compared, and what differs.
#[derive(Debug, Default)]
pub struct Report {
    detections: usize,
    pixels: usize,
    strings: usize,
    worst_ulps: u32,
    /// Pixels that differ where the fixture says that the sign may hang on rounding.
    near: Vec<String>,
    lines: Vec<String>,
}

impl Report {
    fn line(&mut self, text: String) {
        self.lines.push(text);
    }

    /// The totals as text.
    ///
    /// Errors: every difference, a line each.
    pub fn outcome(self) -> Result<String, String> {
        let text = format!(
            "{} detections, {} mask pixels, {} strings; scores at most {} ulp apart; {} pixels differ within the bound",
            self.detections,
            self.pixels,
            self.strings,
            self.worst_ulps,
            self.near.len()
        );
        if self.lines.is_empty() {
            Ok(text)
        } else {
            Err(format!("{} differences; {text}\n{}", self.lines.len(), self.lines.join("\n")))
        }
    }
}

/// One reference of a file against our answer.
struct Comparison<'a> {
    /// File, reference and image.
    what: String,
    theirs: &'a Answer,
    ours: &'a ImageDetections,
}

impl Comparison<'_> {
    /// Compares counts, then group by group of equal scores, as sets.
    fn run(&self, report: &mut Report) {
        let (n, what) = (self.theirs.confidence.len(), &self.what);
        report.detections += n;
        if self.ours.len() != n {
            report.line(format!("{what}: {} detections, expected {n}", self.ours.len()));
            return;
        }
        let mut start = 0;
        while start < n {
            let mut end = start + 1;
            let equal = |scores: [f32; 2]| scores[0] == scores[1];
            while end < n
                && (equal([self.theirs.confidence[end - 1], self.theirs.confidence[end]])
                    || equal([self.ours.rows[end - 1].confidence, self.ours.rows[end].confidence]))
            {
                end += 1;
            }
            self.group(start, end, report);
            start = end;
        }
    }

    /// Matches each of their rows with one of ours; both sets are rows `start..end`.
    fn group(&self, start: usize, end: usize, report: &mut Report) {
        let mut free: Vec<usize> = (start..end).collect();
        for theirs in start..end {
            let box_fits = |&&ours: &&usize| self.row_difference(theirs, ours).is_none();
            let all_fit = |ours: &&usize| box_fits(ours) && self.mask_difference(theirs, **ours).is_none();
            let best = free.iter().find(all_fit).or(free.iter().find(box_fits)).copied().unwrap_or(free[0]);
            free.retain(|&ours| ours != best);
            report.worst_ulps =
                report.worst_ulps.max(ulps(self.theirs.confidence[theirs], self.ours.rows[best].confidence));
            if let Some(difference) = self.row_difference(theirs, best) {
                report.line(format!("{}: row {theirs}: {difference}", self.what));
            } else if let Some(difference) = self.mask_difference(theirs, best) {
                report.line(format!("{}: row {theirs}: {difference}", self.what));
            }
            self.count_near(theirs, best, report);
            report.pixels += self.theirs.masks.as_ref().and_then(|m| m.get(theirs)).map_or(0, Vec::len);
            report.strings += usize::from(self.theirs.runs.is_some());
        }
    }

    fn row_difference(&self, theirs: usize, ours: usize) -> Option<String> {
        let row = &self.ours.rows[ours];
        let (class_id, confidence, xyxy) =
            (self.theirs.class_id[theirs], self.theirs.confidence[theirs], self.theirs.xyxy[theirs]);
        if row.class_id != class_id {
            return Some(format!("class_id is {}, expected {class_id}", row.class_id));
        }
        if ulps(row.confidence, confidence) > SCORE_ULPS {
            return Some(format!("confidence is {}, expected {confidence}", row.confidence));
        }
        let same = row.xyxy.iter().zip(&xyxy).all(|(&a, &b)| same_bits(a + 0.0, b + 0.0));
        (!same).then(|| format!("xyxy is {:?}, expected {xyxy:?}", row.xyxy))
    }

    /// Names the pixels that differ within the fixture's bound.
    fn count_near(&self, theirs: usize, ours: usize, report: &mut Report) {
        if !self.theirs.near.iter().any(|&(row, _)| row == theirs) {
            return;
        }
        let Some(expected) = self.theirs.masks.as_ref().and_then(|masks| masks.get(theirs)) else { return };
        let got = self.ours.dense_mask(ours).expect("our masks decode").expect("a mask was asked for");
        for &(row, pixel) in &self.theirs.near {
            if row == theirs && got[pixel] != expected[pixel] {
                let width = self.ours.size.width as usize;
                report.near.push(format!("{} row {theirs} x={} y={}", self.what, pixel % width, pixel / width));
            }
        }
    }

    /// Pixels that differ are named one by one, the first 20 of them.
    fn mask_difference(&self, theirs: usize, ours: usize) -> Option<String> {
        let (width, height) = (self.ours.size.width as usize, self.ours.size.height as usize);
        let row = &self.ours.rows[ours];
        if let Some(expected) = self.theirs.masks.as_ref().and_then(|masks| masks.get(theirs)) {
            let got = self.ours.dense_mask(ours).expect("our masks decode").expect("a mask was asked for");
            let mut wrong: Vec<usize> = (0..got.len()).filter(|&i| got[i] != expected[i]).collect();
            wrong.retain(|&i| !self.theirs.near.contains(&(theirs, i)));
            if !wrong.is_empty() {
                let name = |&i: &usize| format!("x={} y={} is {}", i % width, i / width, got[i]);
                let first: Vec<String> = wrong.iter().take(20).map(name).collect();
                return Some(format!("{} pixels differ: {}", wrong.len(), first.join(", ")));
            }
            if self.theirs.near.is_empty() && (row.mask_area, row.mask_xyxy) != area_and_box(expected, width, height) {
                return Some(format!("area {} or box {:?} is wrong", row.mask_area, row.mask_xyxy));
            }
        }
        if let Some((runs, string)) = self.theirs.runs.as_ref().map(|runs| &runs[theirs]) {
            let got = match self.ours.mask(ours) {
                Some(MaskRef::Rle(bytes)) => bytes.to_vec(),
                other => panic!("expected a string, got {other:?}"),
            };
            if &got != string {
                return Some(format!(
                    "string is {:.60}, expected {:.60}",
                    String::from_utf8_lossy(&got),
                    String::from_utf8_lossy(string)
                ));
            }
            if &rle::decode_string(&got).expect("our string decodes") != runs || row.num_counts as usize != runs.len() {
                return Some("run lengths differ".into());
            }
        }
        None
    }
}

/// Compares one reference of a file, every image, with our answer to `case`.
fn judge(fixture: &Fixture, reference: &str, case: &RequestCase, answer: Implementation<'_>, report: &mut Report) {
    let ours = answer(case);
    if ours.images.len() != case.metas.len() {
        report.line(format!(
            "{}/{reference}: {} images, expected {}",
            fixture.name,
            ours.images.len(),
            case.metas.len()
        ));
    }
    for (image, ours) in ours.images.iter().enumerate() {
        let theirs = fixture.answer(reference, image);
        Comparison { what: format!("{}/{reference}/{image}", fixture.name), theirs: &theirs, ours }.run(report);
    }
}

fn upstream() -> impl Iterator<Item = Fixture> {
    UPSTREAM.iter().map(|name| Fixture::load("upstream", name))
}

/// Upstream's dense masks, from dense and packed ones.
pub fn upstream_dense_masks(answer: Implementation<'_>) -> Report {
    let mut report = Report::default();
    for fixture in upstream() {
        for format in [MaskFormat::Dense, MaskFormat::BitPacked] {
            let case = fixture.case.with_options(|options| options.mask_format = format);
            judge(&fixture, "dense", &case, answer, &mut report);
        }
    }
    report
}

/// Upstream's compressed strings and run lengths.
pub fn upstream_run_lengths(answer: Implementation<'_>) -> Report {
    let mut report = Report::default();
    for fixture in upstream() {
        let case = fixture.case.with_options(|options| options.mask_format = MaskFormat::Rle);
        judge(&fixture, "rle", &case, answer, &mut report);
    }
    report
}

/// The detection paths know no `max_detections`.
pub fn upstream_detection_only(answer: Implementation<'_>) -> Report {
    let mut report = Report::default();
    for fixture in upstream() {
        let mut case = fixture.case.with_options(|options| options.max_detections = None);
        case.masks = None;
        judge(&fixture, "od", &case, answer, &mut report);
    }
    report
}

/// rf-detr 1.4.1 keeps all Q rows and does not clip; we follow 1.9, which does. Its masks are those of the first rows.
pub fn upstream_rf_detr(answer: Implementation<'_>) -> Report {
    let mut report = Report::default();
    for fixture in upstream() {
        let all = answer(&fixture.rf_detr(-1.0, MaskFormat::None));
        let with_masks = answer(&fixture.rf_detr(fixture.lowest_threshold(), MaskFormat::Dense));
        for (image, (all, with_masks)) in all.images.iter().zip(&with_masks.images).enumerate() {
            let mut theirs = fixture.answer("rfdetr", image);
            let (width, height) = (all.size.width as f32, all.size.height as f32);
            for xyxy in &mut theirs.xyxy {
                let [x1, y1, x2, y2] = *xyxy;
                *xyxy = [x1.clamp(0.0, width), y1.clamp(0.0, height), x2.clamp(0.0, width), y2.clamp(0.0, height)];
            }
            let masks = theirs.masks.take();
            let what = format!("{}/rfdetr/{image}", fixture.name);
            Comparison { what: what.clone(), theirs: &theirs, ours: all }.run(&mut report);
            let rows = masks.as_ref().map_or(0, Vec::len);
            theirs.xyxy.truncate(rows);
            theirs.confidence.truncate(rows);
            theirs.class_id.truncate(rows);
            theirs.masks = masks;
            Comparison { what, theirs: &theirs, ours: with_masks }.run(&mut report);
        }
    }
    report
}

/// Upstream's fused detection kernel orders ties in its own way and contracts the box arithmetic, so its boxes may
/// differ within an ulp of a half (spec 4, variant C). In these files they do not.
pub fn upstream_fused_detection(answer: Implementation<'_>) -> Report {
    let mut report = Report::default();
    let fixtures: Vec<_> = upstream().filter(|fixture| fixture.has("od_fused")).collect();
    assert_eq!(fixtures.len(), 22, "every file has od_fused");
    for fixture in &fixtures {
        let mut case = fixture.case.with_options(|options| options.max_detections = None);
        case.masks = None;
        judge(fixture, "od_fused", &case, answer, &mut report);
    }
    report
}

/// Upstream's sparse path, where it runs: its selection is not flat (spec 9.1), but these files agree up to tie order.
pub fn upstream_sparse_run_lengths(answer: Implementation<'_>) -> Report {
    let mut report = Report::default();
    for reference in ["triton", "triton_defer"] {
        let fixtures: Vec<_> = upstream().filter(|fixture| fixture.has(reference)).collect();
        assert_eq!(fixtures.len(), if reference == "triton" { 12 } else { 13 });
        for fixture in fixtures {
            let case = fixture.case.with_options(|options| options.mask_format = MaskFormat::Rle);
            if fixture.name == "many_classes_per_query" {
                // Four classes a query at most and no flat cap: 102 detections in place of 100.
                assert_eq!(fixture.answer(reference, 0).confidence.len(), 102);
                continue;
            }
            judge(&fixture, reference, &case, answer, &mut report);
        }
    }
    report
}

/// Every file of `fixtures/torch_cpu`. Torch on the CPU rounds the resize differently, so pixels whose value is smaller
/// than the argued bound (`near`) may differ; no other may.
pub fn torch_cpu_roboflow(answer: Implementation<'_>) -> Report {
    let mut report = Report::default();
    let names = names("torch_cpu");
    assert_eq!(names.len(), 59, "the files of fixtures/torch_cpu: {names:?}");
    for fixture in names.iter().map(|name| Fixture::load("torch_cpu", name)) {
        let formats = if fixture.case.masks.is_some() { vec![MaskFormat::Dense] } else { vec![MaskFormat::None] };
        for format in formats {
            let case = fixture.case.with_options(|options| options.mask_format = format);
            judge(&fixture, "torch", &case, answer, &mut report);
        }
    }
    // These pixels tell CUDA's exact filter centers from the CPU's rounded ones; upstream's files do not. A reference
    // with rounded centers has none of them (docs/numerics.md names them).
    let quarter = report.near.iter().filter(|place| place.starts_with("quarter_masks_173x119/")).count();
    let letterbox = report.near.iter().filter(|place| place.starts_with("letterbox_two_step_333x517/")).count();
    assert_eq!((quarter, letterbox, report.near.len()), (32, 1, 33), "{:?}", report.near);
    report
}

/// The same under rf-detr's semantics, where torch was asked for them.
pub fn torch_cpu_rf_detr(answer: Implementation<'_>) -> Report {
    let mut report = Report::default();
    for fixture in names("torch_cpu").iter().map(|name| Fixture::load("torch_cpu", name)) {
        if fixture.has("torch_rfdetr") {
            let format = if fixture.case.masks.is_some() { MaskFormat::Dense } else { MaskFormat::None };
            let case = fixture.rf_detr(fixture.lowest_threshold(), format);
            judge(&fixture, "torch_rfdetr", &case, answer, &mut report);
        }
    }
    report
}

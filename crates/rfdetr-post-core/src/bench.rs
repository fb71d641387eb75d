//! What the benches of all back ends share: cases, model-like inputs, samples. Not part of the interface.

use std::{
    format,
    string::{String, ToString},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
    vec,
    vec::Vec,
};

use crate::{
    detections::{Detections, Masks},
    geometry::{ImageMeta, Size},
    models::{VARIANTS, Variant},
    options::{ClassLayout, MaskFormat, Options, Thresholds},
    request::Tensors,
    tensor::Tensor,
};

/// Frames of the tables.
pub const HD: Size = Size::new(1280, 720);
/// Frames of the tables.
pub const FULL_HD: Size = Size::new(1920, 1080);
/// Frames of the tables.
pub const UHD: Size = Size::new(3840, 2160);
/// Frames of the tables: a 12 megapixel photograph.
pub const MP12: Size = Size::new(4000, 3000);

/// A request to time.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// `MODEL-FRAME-bBATCH-nDETECTIONS-FORMAT`, and what else sets it apart.
    pub name: String,
    /// The model.
    pub variant: Variant,
    /// Size of every image.
    pub frame: Size,
    /// Detections an image whose scores are high.
    pub detections: usize,
    /// Images.
    pub batch: usize,
    /// Form of the masks.
    pub format: MaskFormat,
    /// Scores must be above it.
    pub threshold: f64,
    /// Mask logits of independent noise instead of blobs.
    pub noise: bool,
}

impl Case {
    /// A case with blobs, at the default threshold. Panics if no published model has the name.
    pub fn new(model: &str, frame: Size, detections: usize, batch: usize, format: MaskFormat) -> Self {
        let variant = *VARIANTS.iter().find(|variant| variant.name == model).expect("a published name");
        let size = match frame {
            HD => "720p".to_string(),
            FULL_HD => "1080p".to_string(),
            UHD => "4k".to_string(),
            MP12 => "12mp".to_string(),
            Size { width, height } => format!("{width}x{height}"),
        };
        let name = format!("{model}-{size}-b{batch}-n{detections}-{}", format.name());
        Self { name, variant, frame, detections, batch, format, threshold: 0.4, noise: false }
    }

    /// The worst case: everything survives the threshold.
    pub fn worst(self) -> Self {
        Self { name: format!("{}-t0", self.name), threshold: 0.0, ..self }
    }

    /// With masks of noise.
    pub fn noise(self) -> Self {
        Self { name: format!("{}-noise", self.name), noise: true, ..self }
    }

    /// The options of the request.
    pub fn options(&self) -> Options {
        Options {
            classes: if self.variant.num_classes == 91 { ClassLayout::coco91() } else { ClassLayout::Identity },
            threshold: Thresholds::Scalar(self.threshold),
            mask_format: self.format,
            ..Options::default()
        }
    }

    /// The tensors of the request.
    pub fn inputs(&self) -> Inputs {
        let mut inputs = Inputs::new(Scene {
            batch: self.batch,
            queries: self.variant.num_queries as usize,
            classes: self.variant.num_classes as usize,
            side: self.variant.mask_side.unwrap_or(0) as usize,
            detections: self.detections,
            image: self.frame,
            noise: self.noise,
        });
        let network = Size::new(self.variant.resolution, self.variant.resolution);
        inputs.metas.fill(ImageMeta::stretch(self.frame, network).expect("sizes above 0"));
        inputs
    }

    /// Pixels of all masks.
    pub fn pixels(&self) -> u64 {
        self.frame.area() * (self.detections * self.batch) as u64
    }

    /// Bytes of all masks where they are arrays; 0 for run lengths.
    pub fn mask_bytes(&self) -> u64 {
        let masks = (self.detections * self.batch) as u64;
        match self.format {
            MaskFormat::Dense => self.pixels(),
            MaskFormat::BitPacked => {
                masks * 4 * u64::from(self.frame.width.div_ceil(32)) * u64::from(self.frame.height)
            }
            MaskFormat::GridLogits => {
                let side = u64::from(self.variant.mask_side.unwrap_or(0));
                masks * 4 * side * side
            }
            _ => 0,
        }
    }

    /// The configuration of the peers' scripts; none for formats that they do not have.
    pub fn peer_config(&self) -> Option<String> {
        let format = match self.format {
            MaskFormat::None => "boxes",
            MaskFormat::Dense => "dense",
            MaskFormat::Counts => "counts",
            MaskFormat::Rle => "rle",
            _ => return None,
        };
        let mapping = match self.options().classes {
            ClassLayout::Remap(ids) => {
                let ids: Vec<_> = ids.iter().map(|id| id.map_or(-1, i64::from)).collect();
                format!("{ids:?}")
            }
            _ => "null".to_string(),
        };
        let Size { width, height } = self.frame;
        let (side, threshold) = (self.variant.resolution, self.threshold);
        Some(format!(
            "{{\"images\":[{{\"width\":{width},\"height\":{height}}}],\"network\":{{\"width\":{side},\"height\":{side}}},\
             \"threshold\":{threshold},\"format\":\"{format}\",\"class_mapping\":{mapping}}}"
        ))
    }
}

/// Whether `names` (with commas) ask for `name`: by itself, or by its beginning if that is no name of the `known`.
pub fn is_named<'a>(name: &str, names: &str, known: impl Iterator<Item = &'a str> + Clone) -> bool {
    let asks = |asked: &str| {
        asked == name || (!asked.is_empty() && name.starts_with(asked) && !known.clone().any(|k| k == asked))
    };
    names.split(',').any(asks)
}

/// What inputs to make.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    /// Images.
    pub batch: usize,
    /// Q.
    pub queries: usize,
    /// C.
    pub classes: usize,
    /// Side of the mask grid; 0 for a detection model.
    pub side: usize,
    /// Detections an image whose scores are high.
    pub detections: usize,
    /// Size of every image.
    pub image: Size,
    /// Mask logits of independent noise instead of blobs.
    pub noise: bool,
}

/// A batch of model-like outputs, with the records of its images: smooth blobs that cover 1 to 30 % of the image, or
/// noise. Masks of queries that are no detections are a constant: nobody reads them at a sensible threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// `[B, Q, 4]`.
    pub boxes: Vec<f32>,
    /// `[B, Q, C]`.
    pub logits: Vec<f32>,
    /// `[B, Q, Mh, Mw]`.
    pub masks: Vec<f32>,
    /// Shapes of the three.
    pub shapes: ([usize; 3], [usize; 3], [usize; 4]),
    /// One record an image.
    pub metas: Vec<ImageMeta>,
}

struct Random(u64);

impl Random {
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.unit()).sum::<f32>()) - 6.0
    }
}

impl Inputs {
    /// The same for the same scene, always.
    pub fn new(scene: Scene) -> Self {
        let Scene { batch, queries, classes, side, detections, image, noise } = scene;
        let mut random = Random(12345);
        let mut boxes = Vec::with_capacity(batch * queries * 4);
        let mut logits = Vec::with_capacity(batch * queries * classes);
        let mut masks = Vec::with_capacity(batch * queries * side * side);
        for _ in 0..batch {
            for query in 0..queries {
                // Detections are spread over the queries, as they are in the model's answers.
                let is_detected = query * detections / queries != (query + 1) * detections / queries;
                let row = logits.len();
                logits.extend((0..classes).map(|_| -6.0 + random.normal()));
                if is_detected {
                    // The first columns behind column 0 name classes in COCO's layout, too.
                    logits[row + 1 + query % (classes - 1).clamp(1, 11)] = 0.5 + 3.0 * random.unit();
                }
                // From 1 to 30 % of the image, small ones more often.
                let share = 0.01 * 30f32.powf(random.unit());
                let aspect = 0.5 + 1.5 * random.unit();
                let (w, h) = ((share * aspect * 1.3).sqrt().min(0.9), (share / aspect * 1.3).sqrt().min(0.9));
                let (cx, cy) = (w / 2.0 + (1.0 - w) * random.unit(), h / 2.0 + (1.0 - h) * random.unit());
                boxes.extend([cx, cy, w, h]);
                let lobes: Vec<_> =
                    (2..7).map(|k| (k as f32, 0.25 / k as f32 * random.unit(), 6.3 * random.unit())).collect();
                let waves: Vec<_> =
                    (0..4).map(|_| (20.0 * random.unit(), 20.0 * random.unit(), 6.3 * random.unit())).collect();
                if !is_detected {
                    masks.resize(masks.len() + side * side, -6.0);
                    continue;
                }
                for i in 0..side * side {
                    if noise {
                        masks.push(random.normal());
                        continue;
                    }
                    let (x, y) = ((i % side) as f32 + 0.5, (i / side) as f32 + 0.5);
                    let (dx, dy) = ((x / side as f32 - cx) / w * 2.0, (y / side as f32 - cy) / h * 2.0);
                    let angle = dy.atan2(dx);
                    let radius = 1.0 + lobes.iter().map(|(k, a, p)| a * (k * angle + p).cos()).sum::<f32>();
                    let cells = (radius - dx.hypot(dy)) * (w.min(h) / 2.0) * side as f32;
                    let ripple: f32 = waves.iter().map(|(a, b, p)| (a * dx + b * dy + p).sin()).sum();
                    masks.push((cells * 0.8 + 0.15 * ripple).clamp(-12.0, 12.0));
                }
            }
        }
        let network = (side.max(78) * 4) as u32;
        let meta = ImageMeta::stretch(image, Size::new(network, network)).expect("sizes above 0");
        Self {
            boxes,
            logits,
            masks,
            shapes: ([batch, queries, 4], [batch, queries, classes], [batch, queries, side, side]),
            metas: vec![meta; batch],
        }
    }

    /// The tensors, borrowed.
    pub fn tensors(&self) -> Tensors<'_> {
        Tensors {
            boxes: Tensor::new(&self.boxes[..], &self.shapes.0),
            logits: Tensor::new(&self.logits[..], &self.shapes.1),
            masks: (!self.masks.is_empty()).then(|| Tensor::new(&self.masks[..], &self.shapes.2)),
        }
    }

    /// The tensors as a safetensors file.
    pub fn safetensors(&self) -> Vec<u8> {
        let mut header = String::from("{");
        let mut data = Vec::new();
        let mut add = |name: &str, shape: &[usize], values: &[f32]| {
            let start = data.len();
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            let comma = if start == 0 { "" } else { "," };
            let end = data.len();
            header += &format!(
                "{comma}\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
            );
        };
        add("dets", &self.shapes.0, &self.boxes);
        add("labels", &self.shapes.1, &self.logits);
        if !self.masks.is_empty() {
            add("masks", &self.shapes.2, &self.masks);
        }
        header += "}";
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }
}

/// Foreground pixels of all masks, which the peers count too.
pub fn foreground(answer: &Detections) -> u64 {
    let has_masks = |masks: &Masks| !matches!(masks, Masks::None);
    let images = answer.images.iter().filter(|image| has_masks(&image.masks));
    images.flat_map(|image| &image.rows).map(|row| u64::from(row.mask_area)).sum()
}

/// The first difference of two answers, in words.
pub fn difference(expected: &Detections, got: &Detections) -> Option<String> {
    if expected == got {
        return None;
    }
    for (image, (expected, got)) in expected.images.iter().zip(&got.images).enumerate() {
        if expected.rows.len() != got.rows.len() {
            return Some(format!("image {image} has {} rows, expected {}", got.rows.len(), expected.rows.len()));
        }
        for (idx, (expected, got)) in expected.rows.iter().zip(&got.rows).enumerate() {
            if expected != got {
                return Some(format!("image {image} row {idx} is {got:?}, expected {expected:?}"));
            }
        }
        if expected.health != got.health {
            return Some(format!("image {image}: {:?}, expected {:?}", got.health, expected.health));
        }
        if expected.masks != got.masks {
            return Some(format!("the masks of image {image} differ"));
        }
    }
    Some(format!("{} images, expected {}", got.images.len(), expected.images.len()))
}

/// Order statistics of times, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Times {
    /// Half are below it.
    pub median_us: f64,
    /// A tenth is below it.
    pub p10_us: f64,
    /// Nine tenths are below it.
    pub p90_us: f64,
    /// All but a hundredth are below it.
    pub p99_us: f64,
    /// The least.
    pub min_us: f64,
    /// How many there are.
    pub n: usize,
}

impl Times {
    /// Of at least one time in microseconds.
    pub fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| round(times[((times.len() - 1) as f64 * share).round() as usize]);
        Self { median_us: at(0.5), p10_us: at(0.1), p90_us: at(0.9), p99_us: at(0.99), min_us: at(0.0), n: times.len() }
    }

    /// The share of one of `count`.
    pub fn each(self, count: usize) -> Self {
        let each = |time: f64| round(time / count as f64);
        Self {
            median_us: each(self.median_us),
            p10_us: each(self.p10_us),
            p90_us: each(self.p90_us),
            p99_us: each(self.p99_us),
            min_us: each(self.min_us),
            n: self.n,
        }
    }
}

/// To nanoseconds: the clocks tell no more.
fn round(time_us: f64) -> f64 {
    (time_us * 1000.0).round() / 1000.0
}

/// Calls `work` after a warm-up until there are `count` samples or `budget` is spent (ten samples at least, three beyond
/// ten budgets). Each call says how long it took.
pub fn sample<E>(count: usize, budget: Duration, mut work: impl FnMut() -> Result<Duration, E>) -> Result<Times, E> {
    let start = Instant::now();
    let mut warmups = 0;
    while warmups == 0 || (warmups < 200 && start.elapsed() < budget / 5) {
        work()?;
        warmups += 1;
    }
    let start = Instant::now();
    let mut times = Vec::with_capacity(count);
    loop {
        times.push(work()?.as_secs_f64() * 1e6);
        let spent = start.elapsed();
        let is_enough = times.len() >= count || spent >= budget;
        if (is_enough && times.len() >= 10) || (spent >= 10 * budget && times.len() >= 3) {
            return Ok(Times::new(times));
        }
    }
}

/// Date and time in UTC, as ISO 8601.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds)
}

fn date(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days to a civil date: years that begin in March, in eras of 400 years.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(date(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(date(4_102_444_799), "2099-12-31T23:59:59Z");
    }

    #[test]
    fn scenes_have_their_detections() {
        for (detections, batch) in [(0, 1), (7, 2), (100, 1)] {
            let case = Case::new("seg-nano", Size::new(30, 20), detections, batch, MaskFormat::Rle);
            let (inputs, options) = (case.inputs(), case.options());
            let request = crate::Request::new(inputs.tensors(), &inputs.metas, &options).unwrap();
            let answer = crate::reference::process(&request).unwrap();
            assert!(answer.images.iter().all(|image| image.len() == detections));
            assert_eq!(difference(&answer, &answer), None);
            assert_eq!(foreground(&answer) > 0, detections > 0);
            assert_eq!(inputs, case.inputs());
        }
    }

    #[test]
    fn order_statistics() {
        let times = Times::new((0..=100).rev().map(f64::from).collect());
        assert_eq!(
            (times.min_us, times.p10_us, times.median_us, times.p90_us, times.p99_us),
            (0.0, 10.0, 50.0, 90.0, 99.0)
        );
        assert_eq!(times.each(10).median_us, 5.0);
        let calls = sample::<()>(20, Duration::from_secs(60), || Ok(Duration::from_micros(3))).unwrap();
        assert_eq!((calls.n, calls.median_us), (20, 3.0));
    }
}

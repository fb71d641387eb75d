//! Random, lopsided, hostile requests.
//!
//! A case is made of dice and a seed. Proptest rolls the dice and shrinks them towards zero, where the simplest choice
//! lies (one pixel, one class, stretch, f32, finite values); the seed fills the tensors and does not shrink. So a case
//! costs microseconds however many values it holds, and a failing one still becomes small.

use proptest::{
    prelude::*,
    test_runner::{FileFailurePersistence, RngAlgorithm, TestRng, TestRunner},
};
use rfdetr_post_core::{
    BoxRounding, ClassLayout, DType, Frame, ImageMeta, MaskFormat, MaskResize, NegativeSizes, Offset, Options, Padding,
    Preprocessing, Resize, ScoreArithmetic, Semantics, Size, StaticCrop, Thresholds, score::sigmoid,
};

use crate::{
    case::{OwnedTensor, RequestCase},
    random::Random,
};

/// The largest sizes that a strategy makes. Small ones are the rule whatever the limits are.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Images a batch.
    pub batch: usize,
    /// Q.
    pub queries: usize,
    /// C.
    pub classes: usize,
    /// Side of the mask grid.
    pub grid: usize,
    /// Side of an image.
    pub side: u32,
    /// Pixels of an image.
    pub area: u32,
}

impl Limits {
    /// For implementations that take microseconds a mask: images mostly below 100 pixels a side.
    pub const fn ordinary() -> Self {
        Self { batch: 4, queries: 101, classes: 92, grid: 40, side: 257, area: 12_000 }
    }

    /// For emulators: images mostly below 40 pixels a side.
    pub const fn small() -> Self {
        Self { batch: 3, queries: 34, classes: 34, grid: 18, side: 129, area: 1_500 }
    }
}

/// The configuration of a property: `PROPTEST_CASES` cases, or `cases` when that is not set. Failing seeds are kept
/// beside the test's source, in `NAME.regressions`, which belongs into the repository.
pub fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(cases),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        max_global_rejects: u32::MAX,
        ..ProptestConfig::default()
    }
}

/// A runner whose next case is number `idx` of a seed: the same on every machine.
pub fn runner(seed: u64, idx: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&idx.to_le_bytes());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Requests over every option, of ordinary size.
pub fn requests() -> impl Strategy<Value = RequestCase> {
    requests_within(Limits::ordinary())
}

/// Requests over every option, within limits.
pub fn requests_within(limits: Limits) -> impl Strategy<Value = RequestCase> {
    let dice = proptest::array::uniform32(any::<u8>());
    let image_dice = proptest::array::uniform4(proptest::array::uniform32(any::<u8>()));
    (dice, image_dice, any::<u64>().no_shrink()).prop_map(move |(dice, image_dice, seed)| {
        Maker { limits, random: Random::new(seed) }.case(&mut Dice::new(dice), &image_dice)
    })
}

/// [`requests`] with plainly stretched pictures of up to 1900x1100 and at most 12 detections an image: milliseconds each.
pub fn large_pictures() -> impl Strategy<Value = RequestCase> {
    (requests(), any::<u64>().no_shrink()).prop_map(|(mut case, seed)| {
        let mut random = Random::new(seed);
        for meta in &mut case.metas {
            let size = Size::new(1 + random.below(1900) as u32, 1 + random.below(1100) as u32);
            *meta = ImageMeta::stretch(size, meta.network).expect("a plain stretch");
        }
        case.options.max_detections = Some(case.options.max_detections.unwrap_or(12).min(12));
        case
    })
}

/// A mask `[height, width]` of 0 and 1, with its width and height: noise of any density, blocks, stripes, full, empty.
pub fn binary_masks() -> impl Strategy<Value = (Vec<u8>, usize, usize)> {
    (proptest::array::uniform6(any::<u8>()), any::<u64>().no_shrink()).prop_map(|(bytes, seed)| {
        let mut random = Random::new(seed);
        let side = |kind: u8, value: u8| match kind {
            0..=20 => 1,
            21..=60 => [2, 31, 32, 33, 63, 64, 65, 127, 128, 129][value as usize % 10],
            _ => 1 + value as usize / 4,
        };
        let (width, height) = (side(bytes[0], bytes[1]), side(bytes[2], bytes[3]));
        let density = random.uniform(0.0, 1.0);
        let (x0, x1) = (random.below(width), random.below(width) + 1);
        let (y0, y1) = (random.below(height), random.below(height) + 1);
        let pixel = |x: usize, y: usize, random: &mut Random| match bytes[4] % 6 {
            0 => false,
            1 => (x0..x1).contains(&x) && (y0..y1).contains(&y),
            2 => random.uniform(0.0, 1.0) < density,
            3 => (x + y * usize::from(bytes[5] % 2)).is_multiple_of(2),
            4 => random.uniform(0.0, 1.0) < if (x0..x1).contains(&x) { 0.98 } else { 0.01 },
            _ => true,
        };
        let mut mask = Vec::with_capacity(width * height);
        for y in 0..height {
            for x in 0..width {
                mask.push(u8::from(pixel(x, y, &mut random)));
            }
        }
        (mask, width, height)
    })
}

/// One random record, with every resize mode, static crops and two-step resizes; may be made by hand.
pub fn records() -> impl Strategy<Value = ImageMeta> {
    (proptest::array::uniform32(any::<u8>()), any::<u64>().no_shrink()).prop_map(|(dice, seed)| {
        let mut maker = Maker { limits: Limits::ordinary(), random: Random::new(seed) };
        maker.record(&mut Dice::new(dice), (9, 14), Frame::UndoPreprocessing)
    })
}

/// Pre-processing in the words of its configuration: any sizes up to `side`, any mode, with and without a static crop.
pub fn preprocessings(side: u32) -> impl Strategy<Value = Preprocessing> {
    let size = move || (1..=side, 1..=side).prop_map(|(width, height)| Size { width, height });
    let crop = proptest::option::of(proptest::array::uniform4(0.0..1.0f64));
    (size(), size(), size(), 0..3, crop).prop_map(|(original, frame, network, mode, crop)| Preprocessing {
        original,
        static_crop: crop.map(|[x, y, w, h]| {
            let start = |part: f64, side: u32| (part * f64::from(side)) as u32;
            let (x, y) = (start(x, original.width), start(y, original.height));
            let len = |part: f64, start: u32, side: u32| 1 + (part * f64::from(side - start)) as u32;
            let (width, height) = (len(w, x, original.width), len(h, y, original.height));
            StaticCrop { x, y, width: width.min(original.width - x), height: height.min(original.height - y) }
        }),
        resize: match mode {
            0 => Resize::Stretch { network },
            1 => Resize::Letterbox { frame, network },
            _ => Resize::CenterCrop { frame, network },
        },
    })
}

/// A row of bytes, each good for one choice; 0 is the simplest.
struct Dice {
    bytes: [u8; 32],
    next: usize,
}

impl Dice {
    fn new(bytes: [u8; 32]) -> Self {
        Self { bytes, next: 0 }
    }

    fn byte(&mut self) -> u8 {
        let byte = self.bytes[self.next % 32];
        self.next += 1;
        byte
    }

    /// One of `n` choices.
    fn roll(&mut self, n: usize) -> usize {
        usize::from(self.byte()) * n / 256
    }

    /// The index of a weight, with that weight's probability.
    fn weighted(&mut self, weights: &[usize]) -> usize {
        let mut rest = self.roll(weights.iter().sum());
        for (idx, &weight) in weights.iter().enumerate() {
            if rest < weight {
                return idx;
            }
            rest -= weight;
        }
        0
    }

    /// True with probability `percent`.
    fn rare(&mut self, percent: usize) -> bool {
        self.roll(100) >= 100 - percent
    }
}

/// Values that break careless code, and ordinary ones.
const HOSTILE: [f32; 16] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    0.0,
    -0.0,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    1e-45,
    -1e-45,
    1e30,
    -1e30,
    1.0,
    -1.0,
    0.5,
    -2.0,
];

/// Sides around the sizes of warps, words and blocks.
const SIDES: [u32; 14] = [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 2];

struct Maker {
    limits: Limits,
    random: Random,
}

impl Maker {
    fn case(&mut self, dice: &mut Dice, image_dice: &[[u8; 32]; 4]) -> RequestCase {
        let limits = self.limits;
        let batch = [1, 2, 3, 4, 0][dice.weighted(&[60, 20, 10, 6, 4])].min(limits.batch);
        let queries = match dice.weighted(&[80, 8, 2, 2]) {
            0 => 1 + dice.roll(8),
            1 => [9, 16, 17, 32, 33][dice.roll(5)],
            2 => [64, 65, 100, 101][dice.roll(4)],
            _ => 0,
        }
        .min(limits.queries);
        let classes = match dice.weighted(&[84, 10, 2, 1]) {
            0 => 1 + dice.roll(6),
            1 => [7, 16, 17, 32, 33][dice.roll(5)],
            2 => [64, 90, 91, 92][dice.roll(4)],
            _ => 0,
        }
        .min(limits.classes);
        let grid_side = |dice: &mut Dice| {
            let side = match dice.weighted(&[85, 15]) {
                0 => 1 + dice.roll(12),
                _ => [16, 17, 24, 32, 33, 40][dice.roll(6)],
            };
            side.min(limits.grid)
        };
        let (mask_h, mask_w) = (grid_side(dice), grid_side(dice));

        let semantics = self.semantics(dice);
        let mask_format = [
            MaskFormat::Dense,
            MaskFormat::Rle,
            MaskFormat::Counts,
            MaskFormat::BitPacked,
            MaskFormat::GridLogits,
            MaskFormat::None,
        ][dice.weighted(&[26, 26, 16, 16, 8, 8])];
        let has_masks = mask_format != MaskFormat::None || dice.rare(50);

        let dtype = |dice: &mut Dice| [DType::F32, DType::F16, DType::Bf16][dice.weighted(&[70, 15, 15])];
        let boxes = self.boxes(dice.byte(), batch, queries);
        let boxes = OwnedTensor::new(boxes, &[batch, queries, 4], dtype(dice));
        let logits = self.logits(dice.byte(), batch * queries * classes);
        let logits = OwnedTensor::new(logits, &[batch, queries, classes], dtype(dice));
        let masks_kind = dice.byte();
        let masks_dtype = dtype(dice);
        let masks = has_masks.then(|| {
            let values = (0..batch * queries).flat_map(|_| self.mask_grid(masks_kind, mask_h, mask_w)).collect();
            OwnedTensor::new(values, &[batch, queries, mask_h, mask_w], masks_dtype)
        });

        let (layout, num_ids) = self.classes(dice, classes);
        let per_class = dice.rare(30) && num_ids <= 200;
        let threshold = if per_class {
            let kinds = [dice.byte(), dice.byte()];
            Thresholds::PerClass((0..num_ids).map(|i| self.threshold(kinds[i % 2], &logits) as f32).collect())
        } else {
            Thresholds::Scalar(self.threshold(dice.byte(), &logits))
        };
        let num_select = match dice.weighted(&[60, 10, 10, 10, 10]) {
            0 => None,
            1 => Some(1),
            2 => Some(queries * classes + 1),
            3 => Some(1 + self.random.below(queries * classes)),
            _ => Some(queries.max(1)),
        };
        let max_detections = match dice.weighted(&[60, 12, 4, 24]) {
            0 => None,
            1 => Some(300),
            2 => Some(0),
            _ => Some(1 + self.random.below(6)),
        };
        let metas = image_dice[..batch]
            .iter()
            .map(|&bytes| self.record(&mut Dice::new(bytes), (mask_h, mask_w), semantics.frame))
            .collect();
        RequestCase {
            boxes,
            logits,
            masks,
            metas,
            options: Options { semantics, classes: layout, threshold, num_select, max_detections, mask_format },
        }
    }

    fn semantics(&mut self, dice: &mut Dice) -> Semantics {
        match dice.weighted(&[45, 20, 35]) {
            0 => Semantics::roboflow_inference(),
            1 => Semantics::rf_detr(),
            _ => Semantics {
                frame: self.random.pick(&[Frame::UndoPreprocessing, Frame::UndoPreprocessing, Frame::WholeImage]),
                box_rounding: self.random.pick(&[BoxRounding::HalfEven, BoxRounding::None]),
                clip_boxes: self.random.pick(&[true, false]),
                negative_sizes: self.random.pick(&[NegativeSizes::Keep, NegativeSizes::Clamp]),
                mask_resize: self.random.pick(&[MaskResize::Antialias, MaskResize::Bilinear]),
                score: ScoreArithmetic::Portable,
            },
        }
    }

    /// A class layout for `columns` columns, and one more than its largest id.
    fn classes(&mut self, dice: &mut Dice, columns: usize) -> (ClassLayout, usize) {
        match dice.weighted(&[40, 20, 40]) {
            0 => (ClassLayout::Identity, columns),
            1 => {
                let num_classes = self.random.below(columns + 1);
                (ClassLayout::NoObject { num_classes }, num_classes)
            }
            _ => {
                let dropped = self.random.pick(&[0.0, 0.3, 0.7, 1.0]);
                let scattered = dice.rare(30);
                let mut next = 0;
                let mut table = Vec::new();
                for _ in 0..columns {
                    let drop = self.random.uniform(0.0, 1.0) < dropped;
                    // Scattered ids leave gaps, repeat, and do not ascend; the others are consecutive.
                    let id = if scattered { self.random.below(2 * columns) as u32 } else { next };
                    table.push((!drop).then_some(id));
                    next += u32::from(!drop);
                }
                if scattered && dice.rare(10) && !table.is_empty() {
                    table[0] = Some(i32::MAX as u32);
                }
                let num_ids = table.iter().flatten().max().map_or(0, |&id| id as usize + 1);
                (ClassLayout::Remap(table), num_ids)
            }
        }
    }

    fn threshold(&mut self, kind: u8, logits: &OwnedTensor) -> f64 {
        let len = logits.borrow().data().len();
        match kind {
            // Exactly a score that occurs.
            200..=235 if len > 0 => {
                let score = sigmoid(logits.borrow().at(self.random.below(len)));
                if score.is_nan() { 0.5 } else { score.into() }
            }
            0..=99 => f64::from(self.random.pick(&[0.4f32, 0.4, 0.5, 0.25])),
            100..=139 => self.random.pick(&[0.0, -0.0, 1.0, -0.5, -1.0, 1e-40, 0.999_999_97, 5e-324]),
            _ => f64::from(self.random.uniform(0.0, 1.0)),
        }
    }

    fn logits(&mut self, kind: u8, len: usize) -> Vec<f32> {
        let quantum = self.random.pick(&[0.25, 1.0, 2.0]);
        let base = self.random.normal(0.0, 2.0);
        let random = &mut self.random;
        (0..len)
            .map(|_| match kind {
                0..=79 => random.normal(-2.0, 3.0),
                80..=104 => random.uniform(-0.5, 6.0),
                105..=139 => (random.normal(-1.0, 2.0) / quantum).round() * quantum,
                140..=159 => random.uniform(14.0, 20.0),
                160..=199 => {
                    if random.below(4) == 0 {
                        random.pick(&HOSTILE)
                    } else {
                        random.normal(-1.0, 3.0)
                    }
                }
                200..=214 => f32::from_bits(base.to_bits() + random.below(12) as u32),
                215..=229 => random.uniform(-110.0, -80.0),
                230..=239 => random.pick(&[17.0, 18.0, f32::INFINITY, 16.635_532, 16.635_53, -89.0, -104.0]),
                240..=244 => f32::from_bits(random.bits() as u32),
                _ => random.normal(-12.0, 1.0),
            })
            .collect()
    }

    fn boxes(&mut self, kind: u8, batch: usize, queries: usize) -> Vec<f32> {
        let random = &mut self.random;
        let mut values = Vec::with_capacity(batch * queries * 4);
        for _ in 0..batch * queries {
            let kind = if kind < 200 { kind } else { random.below(200) as u8 };
            let (cx, cy) = (random.uniform(0.0, 1.0), random.uniform(0.0, 1.0));
            let (w, h) = (random.uniform(0.01, 0.6), random.uniform(0.01, 0.9));
            values.extend(match kind {
                0..=79 => [cx, cy, w, h],
                80..=99 => [cx * 4.0 - 1.5, cy * 4.0 - 1.5, w * 3.0, h * 3.0],
                100..=119 => [cx, cy, -w, h],
                120..=129 => [cx, cy, w, -h],
                // Multiples of 1/64 and 1/128: corners on pixels and on halves.
                130..=159 => [cx, cy, w, h].map(|x| (x * 64.0).round() / 64.0 * random.pick(&[1.0, 0.5])),
                160..=189 => {
                    let mut xs = [cx, cy, w, h];
                    xs[random.below(4)] = random.pick(&HOSTILE);
                    xs
                }
                190..=194 => [0; 4].map(|_| random.pick(&HOSTILE)),
                195..=197 => [0; 4].map(|_| f32::from_bits(random.bits() as u32)),
                _ => [0.0, -0.0, 0.0, -0.0],
            });
        }
        values
    }

    /// The mask logits of one query.
    fn mask_grid(&mut self, kind: u8, mask_h: usize, mask_w: usize) -> Vec<f32> {
        let random = &mut self.random;
        let kind = if kind < 128 { kind * 2 } else { random.bits() as u8 };
        let center = (random.uniform(0.0, mask_w as f32), random.uniform(0.0, mask_h as f32));
        let radius = (random.uniform(0.5, 1.0 + mask_w as f32), random.uniform(0.5, 1.0 + mask_h as f32));
        let constant = random.pick(&[3.0, -3.0, 0.0, -0.0, 1e-45, f32::NAN, f32::INFINITY, 1.0]);
        let scale = random.pick(&[1e-45, 1e-42, 1e-38, 1e-30, 1e30, 1e37, 3e38]);
        let edge = random.below(mask_w.max(mask_h) + 1);
        let mut values = Vec::with_capacity(mask_h * mask_w);
        for y in 0..mask_h {
            for x in 0..mask_w {
                let (dx, dy) = ((x as f32 - center.0) / radius.0, (y as f32 - center.1) / radius.1);
                values.push(match kind {
                    0..=69 => 6.0 * (1.0 - (dx * dx + dy * dy).sqrt()) + random.normal(0.0, 0.3),
                    70..=109 => random.normal(-1.0, 4.0),
                    110..=149 => (random.normal(-0.2, 2.0) * 4.0).round() / 4.0,
                    150..=164 => random.pick(&[0.0, -0.0, 0.0, -0.0, 1.0, -1.0]),
                    165..=189 => {
                        if random.below(12) == 0 {
                            random.pick(&HOSTILE)
                        } else {
                            random.normal(0.0, 3.0)
                        }
                    }
                    190..=214 => random.uniform(-1.0, 1.0) * scale,
                    215..=224 => constant,
                    225..=239 => [-1.0, 1.0][usize::from((x >= edge) != (y >= edge))],
                    240..=247 => [-2.0, 2.0][(x + y) % 2],
                    _ => f32::from_bits(random.bits() as u32),
                });
            }
        }
        values
    }

    fn side(&mut self, dice: &mut Dice) -> u32 {
        let side = match dice.weighted(&[80, 20]) {
            0 => 1 + dice.roll(100) as u32,
            _ => SIDES[dice.roll(SIDES.len())],
        };
        // Without the limits of an emulator this changes nothing.
        if self.limits.area < 5_000 && side > 50 && dice.rare(70) { side / 3 } else { side }.min(self.limits.side)
    }

    fn record(&mut self, dice: &mut Dice, (mask_h, mask_w): (usize, usize), frame: Frame) -> ImageMeta {
        let (mut width, mut height) = (self.side(dice), self.side(dice));
        // Sometimes exactly the grid, on one axis or both.
        match dice.weighted(&[80, 10, 5, 5]) {
            1 => (width, height) = (mask_w as u32, mask_h as u32),
            2 => width = mask_w as u32,
            3 => height = mask_h as u32,
            _ => {}
        }
        height = height.min((self.limits.area / width).max(1));
        let original = Size { width, height };
        let network = match dice.weighted(&[70, 30]) {
            0 => Size { width: 4 * mask_w as u32, height: 4 * mask_h as u32 },
            _ => Size { width: 1 + dice.roll(64) as u32, height: 1 + dice.roll(64) as u32 },
        };
        let mode = dice.weighted(&[40, 20, 25, 15]);
        if frame == Frame::WholeImage {
            let mut meta = ImageMeta::stretch(original, network).expect("a plain stretch");
            if mode == 3 {
                // Scales and frames are ignored, so any will do.
                meta.scale_x = 0.37;
                meta.intermediate = Some(Size { width: 7, height: 19 });
            }
            return meta;
        }
        let crop = dice.rare(30).then(|| {
            let (x, y) = (self.random.below(width as usize) as u32, self.random.below(height as usize) as u32);
            let (x, y) = if dice.rare(25) { (0, 0) } else { (x, y) };
            let width = 1 + self.random.below((width - x) as usize) as u32;
            let height = 1 + self.random.below((height - y) as usize) as u32;
            StaticCrop { x, y, width, height }
        });
        let content = crop.map_or(original, |crop| Size { width: crop.width, height: crop.height });
        // A frame far smaller than the content would make the zero-extended grid huge.
        let at_least = |side: u32, content: u32| side.max(content / 3);
        let frame_size = if dice.rare(30) {
            network
        } else {
            Size { width: 1 + dice.roll(120) as u32, height: 1 + dice.roll(120) as u32 }
        };
        let frame_size = Size {
            width: at_least(frame_size.width, content.width),
            height: at_least(frame_size.height, content.height),
        };
        let resize = match mode {
            0 | 3 => Resize::Stretch { network },
            1 => Resize::Letterbox { frame: frame_size, network },
            _ => Resize::CenterCrop { frame: frame_size, network },
        };
        let mut meta = Preprocessing { original, static_crop: crop, resize }.meta().expect("a possible record");
        if mode == 3 {
            self.by_hand(&mut meta, frame_size, dice);
        }
        meta
    }

    /// Gives a record pads, scales and a frame that no constructor would.
    fn by_hand(&mut self, meta: &mut ImageMeta, frame: Size, dice: &mut Dice) {
        if dice.rare(50) {
            meta.intermediate = Some(frame);
        }
        let frame = meta.frame();
        let mut pads = |side: u32| {
            let side = side as usize;
            let near = self.random.below(2 * side + 1) as i32 - side as i32;
            // Both pads together are at most the frame.
            let far = self.random.below((side as i32 - near).min(side as i32) as usize + 1) as i32;
            if self.random.below(3) == 0 { (near, -far) } else { (near, far) }
        };
        let (left, right) = pads(frame.width);
        let (top, bottom) = pads(frame.height);
        meta.padding = Padding { left, top, right, bottom };
        meta.scale_x = f64::from(self.random.uniform(0.05, 6.0));
        meta.scale_y = self.random.pick(&[meta.scale_x, 1.0, 1e-3, 1.0 / 3.0, 0.1]);
        // An offset may leave room on both sides of the content.
        let room = |original: u32, content: u32| (original - content) as usize + 1;
        meta.crop_offset = Offset {
            x: self.random.below(room(meta.original.width, meta.content.width)) as u32,
            y: self.random.below(room(meta.original.height, meta.content.height)) as u32,
        };
    }
}

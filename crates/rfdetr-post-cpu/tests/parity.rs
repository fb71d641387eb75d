//! The fast path equals the reference, bit for bit, in every instruction set that this machine has.
//!
//! `PROPTEST_CASES` raises the number of cases; the note of 0005-cpu-simd says how many were run.

use std::{cell::RefCell, num::NonZero};

use half::{bf16, f16};
use proptest::{prelude::*, test_runner::TestRunner};
use rfdetr_post_core::{
    BoxRounding, ClassLayout, Detections, Frame, ImageMeta, MaskFormat, MaskResize, NegativeSizes, Options, Request,
    Resize, Semantics, Size, StaticCrop, Tensor, TensorData, Tensors, Thresholds, reference,
};
use rfdetr_post_cpu::{CpuConfig, CpuPostprocessor, SimdLevel, Threads};
use rfdetr_post_tests::{
    compare::compare,
    fixtures::{Fixture, names},
    strategies::requests,
};

/// A small generator, so that whole tensors follow from one seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Roughly normal.
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.unit()).sum::<f32>() * 1.4 - 4.2
    }
}

#[derive(Debug, Clone, Copy)]
enum Values {
    Noise,
    Blobs,
    Quantized,
    Tiny,
    Huge,
    Special,
    AnyBits,
}

/// Logits of `[count, height, width]`.
fn values(kind: Values, count: usize, height: usize, width: usize, random: &mut Random) -> Vec<f32> {
    let mut out = Vec::with_capacity(count * height * width);
    for _ in 0..count {
        let scale = [1.0, 1e-6, 1e-3, 1e6, 1e20, 1e30][random.below(6)];
        let (cx, cy) = (random.unit() * width as f32, random.unit() * height as f32);
        let (rx, ry) = ((random.unit() + 0.05) * width as f32, (random.unit() + 0.05) * height as f32);
        let bumps = random.unit() * 8.0;
        for i in 0..height * width {
            let (x, y) = ((i % width) as f32 + 0.5, (i / width) as f32 + 0.5);
            let noise = random.normal();
            let (dx, dy) = ((x - cx) / rx, (y - cy) / ry);
            let blob = 6.0 - 24.0 * (dx * dx + dy * dy) + (dx * bumps).sin() * 3.0;
            out.push(match kind {
                Values::Noise => noise * scale,
                Values::Blobs => blob,
                Values::Quantized => (noise * 2.0).round() / 4.0,
                Values::Tiny => noise * [1e-38, 1e-44, 1e-40, 1e-20][random.below(4)],
                Values::Huge => noise * [1e38, 2e37, 1e36, 1.0][random.below(4)],
                Values::Special => match random.below(60) {
                    0 => f32::NAN,
                    1 => f32::INFINITY,
                    2 => f32::NEG_INFINITY,
                    3 => 0.0,
                    4 => -0.0,
                    5 => f32::from_bits(1),
                    6 => f32::MAX,
                    _ => blob,
                },
                Values::AnyBits => f32::from_bits(random.next() as u32),
            });
        }
    }
    out
}

#[derive(Debug, Clone)]
enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Data {
    fn new(values: Vec<f32>, dtype: u8) -> Self {
        match dtype {
            0 => Self::F32(values),
            1 => Self::F16(values.into_iter().map(f16::from_f32).collect()),
            _ => Self::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        }
    }

    fn get(&self) -> TensorData<'_> {
        match self {
            Self::F32(data) => data[..].into(),
            Self::F16(data) => data[..].into(),
            Self::Bf16(data) => data[..].into(),
        }
    }
}

#[derive(Debug, Clone)]
struct Shapes {
    batch: usize,
    queries: usize,
    classes: usize,
    grid: (usize, usize),
    dtypes: [u8; 3],
}

#[derive(Debug, Clone)]
struct Case {
    shapes: Shapes,
    kinds: (Values, Values, Values),
    metas: Vec<ImageMeta>,
    options: Options,
    seed: u64,
}

fn any_values() -> impl Strategy<Value = Values> {
    prop_oneof![
        2 => Just(Values::Noise),
        5 => Just(Values::Blobs),
        2 => Just(Values::Quantized),
        1 => Just(Values::Tiny),
        1 => Just(Values::Huge),
        2 => Just(Values::Special),
        1 => Just(Values::AnyBits),
    ]
}

fn any_size() -> impl Strategy<Value = Size> {
    let side = prop_oneof![1 => 1u32..4, 4 => 1u32..40, 3 => 30u32..140, 1 => 140u32..300];
    (side.clone(), side).prop_map(|(width, height)| Size::new(width, height))
}

fn any_meta(whole: bool) -> BoxedStrategy<ImageMeta> {
    let stretch =
        (any_size(), any_size()).prop_map(|(original, network)| ImageMeta::stretch(original, network).unwrap());
    if whole {
        return stretch.boxed();
    }
    let resize = (0..3, any_size(), any_size()).prop_map(|(kind, frame, network)| match kind {
        0 => Resize::Stretch { network },
        1 => Resize::Letterbox { frame, network },
        _ => Resize::CenterCrop { frame, network },
    });
    let crop = (any_size(), resize, any::<[u8; 4]>()).prop_map(|(original, resize, [x, y, w, h])| {
        let (x, y) = (u32::from(x) % original.width, u32::from(y) % original.height);
        let width = 1 + u32::from(w) % (original.width - x);
        let height = 1 + u32::from(h) % (original.height - y);
        ImageMeta::static_crop(original, StaticCrop { x, y, width, height }, resize).unwrap()
    });
    let letterbox = (any_size(), any_size()).prop_map(|(a, b)| ImageMeta::letterbox(a, b, b).unwrap());
    let center = (any_size(), any_size()).prop_map(|(a, b)| ImageMeta::center_crop(a, b, b).unwrap());
    prop_oneof![3 => stretch, 2 => letterbox, 1 => center, 2 => crop].boxed()
}

fn any_semantics() -> impl Strategy<Value = Semantics> {
    let knobs = any::<[bool; 5]>().prop_map(|[frame, rounding, clip_boxes, keep, antialias]| Semantics {
        frame: if frame { Frame::UndoPreprocessing } else { Frame::WholeImage },
        box_rounding: if rounding { BoxRounding::HalfEven } else { BoxRounding::None },
        clip_boxes,
        negative_sizes: if keep { NegativeSizes::Keep } else { NegativeSizes::Clamp },
        mask_resize: if antialias { MaskResize::Antialias } else { MaskResize::Bilinear },
        ..Semantics::default()
    });
    prop_oneof![
        2 => Just(Semantics::roboflow_inference()),
        1 => Just(Semantics::rf_detr()),
        3 => knobs
    ]
}

fn any_format() -> impl Strategy<Value = MaskFormat> {
    prop_oneof![
        1 => Just(MaskFormat::None),
        2 => Just(MaskFormat::Dense),
        2 => Just(MaskFormat::BitPacked),
        1 => Just(MaskFormat::GridLogits),
        2 => Just(MaskFormat::Counts),
        4 => Just(MaskFormat::Rle),
    ]
}

fn any_case() -> impl Strategy<Value = Case> {
    let shapes = (
        0usize..4,
        prop_oneof![1 => 0usize..2, 4 => 1usize..8],
        prop_oneof![1 => 0usize..2, 4 => 1usize..30],
        prop_oneof![4 => (1usize..30, 1usize..30), 1 => (60usize..75, 60usize..75), 1 => (1usize..3, 120usize..135)],
        any::<bool>(),
        [0u8..3, 0u8..3, 0u8..3],
    )
        .prop_map(|(batch, queries, classes, (a, b), swap, dtypes)| Shapes {
            batch,
            queries,
            classes,
            grid: if swap { (b, a) } else { (a, b) },
            dtypes,
        });
    (shapes, any_semantics(), any_format()).prop_flat_map(|(shapes, semantics, mask_format)| {
        let classes = shapes.classes;
        let metas = prop::collection::vec(any_meta(semantics.frame == Frame::WholeImage), shapes.batch);
        let layout = prop_oneof![
            Just(ClassLayout::Identity),
            (0..=classes).prop_map(|num_classes| ClassLayout::NoObject { num_classes }),
            prop::collection::vec(prop::option::weighted(0.7, 0u32..10), classes).prop_map(ClassLayout::Remap),
        ];
        let threshold = prop_oneof![
            6 => (0.0f64..1.0).boxed(),
            2 => Just(0.4).boxed(),
            1 => prop::sample::select(vec![0.0, 1.0, -0.5, 0.5]).boxed(),
        ];
        let thresholds = (any::<bool>(), threshold.clone(), prop::collection::vec(threshold, 40));
        let limits = (prop::option::weighted(0.5, 1usize..60), prop::option::weighted(0.5, 0usize..12));
        let kinds = (any_values(), any_values(), any_values());
        (metas, layout, thresholds, limits, kinds, any::<u64>()).prop_map(
            move |(metas, layout, (scalar, one, mut many), (num_select, max_detections), kinds, seed)| {
                let ids = layout.column_ids(classes).unwrap();
                many.truncate(ids.iter().max().map_or(0, |&id| (id + 1) as usize));
                let threshold = if scalar {
                    Thresholds::Scalar(one)
                } else {
                    Thresholds::PerClass(many.into_iter().map(|t| t as f32).collect())
                };
                let options =
                    Options { semantics, classes: layout, threshold, num_select, max_detections, mask_format };
                Case { shapes: shapes.clone(), kinds, metas, options, seed }
            },
        )
    })
}

/// Calls `f` with the case's request.
fn with_request(case: &Case, f: impl FnOnce(&Request<'_>)) {
    let Shapes { batch, queries, classes, grid, dtypes } = case.shapes;
    let mut random = Random(case.seed);
    let mut boxes = values(case.kinds.0, batch * queries, 4, 1, &mut random);
    if !matches!(case.kinds.0, Values::AnyBits | Values::Special) {
        boxes.iter_mut().for_each(|x| *x = *x * 0.05 + 0.3);
    }
    let logits = values(case.kinds.1, batch, queries, classes, &mut random);
    let masks = values(case.kinds.2, batch * queries, grid.0, grid.1, &mut random);
    let (boxes, logits, masks) =
        (Data::new(boxes, dtypes[0]), Data::new(logits, dtypes[1]), Data::new(masks, dtypes[2]));
    let shapes = ([batch, queries, 4], [batch, queries, classes], [batch, queries, grid.0, grid.1]);
    let tensors = Tensors {
        boxes: Tensor::new(boxes.get(), &shapes.0),
        logits: Tensor::new(logits.get(), &shapes.1),
        masks: Some(Tensor::new(masks.get(), &shapes.2)),
    };
    f(&Request::new(tensors, &case.metas, &case.options).unwrap());
}

/// Postprocessors for each instruction set, on one thread and (for the last) on three; and answers that are overwritten
/// from case to case, so that stale buffers would show.
struct Backends(Vec<(String, CpuPostprocessor, Detections)>);

impl Backends {
    fn new() -> Self {
        let only = std::env::var("CPU_SIMD").ok();
        let mut list = Vec::new();
        let mut add =
            |name: String, config| list.push((name, CpuPostprocessor::new(config).unwrap(), Detections::default()));
        for simd in SimdLevel::available() {
            if only.as_deref().is_none_or(|only| only == simd.name()) {
                let config = CpuConfig { threads: Threads::One, simd: Some(simd) };
                add(simd.name().to_string(), config);
                add(format!("{}, streamed", simd.name()), config);
            }
        }
        if only.is_none() {
            let config = CpuConfig { threads: Threads::Count(NonZero::new(3).unwrap()), simd: None };
            add("three threads".to_string(), config);
        }
        for (name, processor, _) in &mut list {
            if name.ends_with("streamed") {
                processor.set_streamed_bytes(0);
            }
        }
        Self(list)
    }

    /// Panics if a backend differs from the reference.
    fn check(&mut self, request: &Request<'_>) {
        let expected = reference::process(request).unwrap();
        for (name, processor, answer) in &mut self.0 {
            // Streaming is about dense masks only.
            if name.ends_with("streamed") && request.options().mask_format != MaskFormat::Dense {
                continue;
            }
            processor.process_into(request, answer).unwrap();
            if let Err(difference) = compare(&expected, answer) {
                panic!("{name}: {difference}");
            }
        }
    }
}

/// Runs `check` on `PROPTEST_CASES` cases, or so many.
fn property<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value, &mut Backends)) {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|s| s.parse().ok());
    let config =
        ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() };
    let backends = RefCell::new(Backends::new());
    TestRunner::new(config)
        .run(&strategy, |case| {
            check(case, &mut backends.borrow_mut());
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Blobs, noise and hostile values in grids up to twice the size of a machine word, enlarged and reduced.
#[test]
fn every_level_equals_the_reference() {
    property(1500, any_case(), |case, backends| with_request(&case, |request| backends.check(request)));
}

/// The requests that the other links of the chain are held to.
#[test]
fn every_level_equals_the_reference_on_shared_cases() {
    property(1500, requests(), |case, backends| backends.check(&case.request().unwrap()));
}

/// The requests of upstream's fixtures, in every format. That the reference gives upstream's answers is tested by
/// `tests/golden.rs`.
#[test]
fn every_level_equals_the_reference_on_the_fixtures() {
    let mut backends = Backends::new();
    let mut count = 0;
    for folder in ["upstream", "torch_cpu"] {
        for name in names(folder) {
            let mut case = Fixture::load(folder, &name).case;
            for semantics in [Semantics::roboflow_inference(), Semantics::rf_detr()] {
                for format in [MaskFormat::Rle, MaskFormat::Dense, MaskFormat::BitPacked, MaskFormat::GridLogits] {
                    case.options.semantics = semantics;
                    case.options.mask_format = if case.masks.is_some() { format } else { MaskFormat::None };
                    // The whole-image frame refuses records with padding or crops.
                    if let Ok(request) = case.request() {
                        backends.check(&request);
                        count += 1;
                    }
                }
            }
        }
    }
    assert!(count > 300, "{count} requests");
}

/// Sizes of models and images as they are in use, larger than the properties can afford.
#[test]
fn every_level_equals_the_reference_on_large_images() {
    let mut backends = Backends::new();
    let sizes = [
        ((78, 78), (1920, 1080)),
        ((108, 108), (640, 480)),
        ((192, 192), (3000, 500)),
        ((64, 130), (777, 333)),
        ((255, 5), (100, 600)),
        ((2, 2), (700, 900)),
        ((300, 3), (20, 400)),
    ];
    for (i, (grid, (width, height))) in sizes.into_iter().enumerate() {
        for format in [MaskFormat::Rle, MaskFormat::Dense, MaskFormat::BitPacked] {
            for semantics in [Semantics::roboflow_inference(), Semantics::rf_detr()] {
                let case = Case {
                    shapes: Shapes { batch: 1, queries: 2, classes: 2, grid, dtypes: [0; 3] },
                    kinds: (Values::Blobs, Values::Noise, if i % 2 == 0 { Values::Blobs } else { Values::Noise }),
                    metas: vec![ImageMeta::stretch(Size::new(width, height), Size::new(312, 312)).unwrap()],
                    options: Options {
                        semantics,
                        mask_format: format,
                        threshold: Thresholds::Scalar(-1.0),
                        ..Options::default()
                    },
                    seed: i as u64,
                };
                with_request(&case, |request| backends.check(request));
            }
        }
    }
}

#[test]
fn available_levels_can_be_built_and_others_are_named() {
    let available = SimdLevel::available();
    assert_eq!(available[0], SimdLevel::Portable);
    for simd in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512, SimdLevel::Neon] {
        let built = CpuPostprocessor::new(CpuConfig { simd: Some(simd), ..CpuConfig::default() });
        assert_eq!(built.is_ok(), available.contains(&simd));
        if let Err(error) = built {
            let message = error.to_string();
            assert!(message.contains(simd.name()) && message.contains("portable"), "{message}");
        }
    }
}

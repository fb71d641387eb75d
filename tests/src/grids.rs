//! Random requests whose mask grids are as wide and as high as one and two machine words, a little more or a little less,
//! with masks of every kind, enlarged and reduced: where a path that works in words and vectors has its seams.

use proptest::prelude::*;
use rfdetr_post_core::{
    BoxRounding, ClassLayout, DType, Frame, ImageMeta, MaskFormat, MaskResize, NegativeSizes, Options, Resize,
    Semantics, Size, StaticCrop, Thresholds,
};

use crate::{
    case::{OwnedTensor, RequestCase},
    random::Random,
};

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
fn values(kind: Values, [count, height, width]: [usize; 3], random: &mut Random) -> Vec<f32> {
    let mut out = Vec::with_capacity(count * height * width);
    for _ in 0..count {
        let scale = random.pick(&[1.0, 1e-6, 1e-3, 1e6, 1e20, 1e30]);
        let (cx, cy) = (random.uniform(0.0, width as f32), random.uniform(0.0, height as f32));
        let (rx, ry) = (random.uniform(0.05, 1.05) * width as f32, random.uniform(0.05, 1.05) * height as f32);
        let bumps = random.uniform(0.0, 8.0);
        let blob = |i: usize| {
            let (x, y) = ((i % width) as f32 + 0.5, (i / width) as f32 + 0.5);
            let (dx, dy) = ((x - cx) / rx, (y - cy) / ry);
            6.0 - 24.0 * (dx * dx + dy * dy) + (dx * bumps).sin() * 3.0
        };
        out.extend((0..height * width).map(|i| match kind {
            Values::Noise => random.normal(0.0, scale),
            Values::Blobs => blob(i),
            Values::Quantized => random.normal(0.0, 2.0).round() / 4.0,
            Values::Tiny => random.normal(0.0, 1.0) * random.pick(&[1e-38, 1e-44, 1e-40, 1e-20]),
            Values::Huge => random.normal(0.0, 1.0) * random.pick(&[1e38, 2e37, 1e36, 1.0]),
            Values::Special => match random.below(60) {
                0 => f32::NAN,
                1 => f32::INFINITY,
                2 => f32::NEG_INFINITY,
                3 => 0.0,
                4 => -0.0,
                5 => f32::from_bits(1),
                6 => f32::MAX,
                _ => blob(i),
            },
            Values::AnyBits => f32::from_bits(random.bits() as u32),
        }));
    }
    out
}

#[derive(Debug, Clone)]
struct Shapes {
    batch: usize,
    queries: usize,
    classes: usize,
    grid: (usize, usize),
    dtypes: [DType; 3],
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
    let stretch = (any_size(), any_size())
        .prop_map(|(original, network)| ImageMeta::stretch(original, network).expect("sizes above 0"));
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
        ImageMeta::static_crop(original, StaticCrop { x, y, width, height }, resize).expect("a crop inside the image")
    });
    let letterbox = (any_size(), any_size()).prop_map(|(a, b)| ImageMeta::letterbox(a, b, b).expect("sizes above 0"));
    let center = (any_size(), any_size()).prop_map(|(a, b)| ImageMeta::center_crop(a, b, b).expect("sizes above 0"));
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

fn any_dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F32, DType::F16, DType::Bf16])
}

/// Requests over every option, with batches of none to three images.
pub fn requests() -> impl Strategy<Value = RequestCase> {
    let shapes = (
        0usize..4,
        prop_oneof![1 => 0usize..2, 4 => 1usize..8],
        prop_oneof![1 => 0usize..2, 4 => 1usize..30],
        prop_oneof![4 => (1usize..30, 1usize..30), 1 => (60usize..75, 60usize..75), 1 => (1usize..3, 120usize..135)],
        any::<bool>(),
        [any_dtype(), any_dtype(), any_dtype()],
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
                let ids = layout.column_ids(classes).expect("a table as wide as the tensor");
                many.truncate(ids.iter().max().map_or(0, |&id| (id + 1) as usize));
                let threshold = if scalar {
                    Thresholds::Scalar(one)
                } else {
                    Thresholds::PerClass(many.into_iter().map(|t| t as f32).collect())
                };
                let options =
                    Options { semantics, classes: layout, threshold, num_select, max_detections, mask_format };
                filled(&shapes, kinds, metas, options, seed)
            },
        )
    })
}

/// The request whose tensors follow from a seed.
fn filled(
    shapes: &Shapes,
    kinds: (Values, Values, Values),
    metas: Vec<ImageMeta>,
    options: Options,
    seed: u64,
) -> RequestCase {
    let &Shapes { batch, queries, classes, grid, dtypes } = shapes;
    let mut random = Random::new(seed);
    let mut boxes = values(kinds.0, [batch * queries, 4, 1], &mut random);
    if !matches!(kinds.0, Values::AnyBits | Values::Special) {
        boxes.iter_mut().for_each(|x| *x = *x * 0.05 + 0.3);
    }
    let logits = values(kinds.1, [batch, queries, classes], &mut random);
    let masks = values(kinds.2, [batch * queries, grid.0, grid.1], &mut random);
    RequestCase {
        boxes: OwnedTensor::new(boxes, &[batch, queries, 4], dtypes[0]),
        logits: OwnedTensor::new(logits, &[batch, queries, classes], dtypes[1]),
        masks: Some(OwnedTensor::new(masks, &[batch, queries, grid.0, grid.1], dtypes[2])),
        metas,
        options,
    }
}

/// Sizes of models and images as they are in use, and lopsided ones: larger than a property can afford. Under both
/// presets, in the formats that are made of pixels.
pub fn large() -> Vec<RequestCase> {
    let sizes = [
        ((78, 78), (1920, 1080)),
        ((108, 108), (640, 480)),
        ((192, 192), (3000, 500)),
        ((64, 130), (777, 333)),
        ((255, 5), (100, 600)),
        ((2, 2), (700, 900)),
        ((300, 3), (20, 400)),
    ];
    let mut cases = Vec::new();
    for (i, (grid, (width, height))) in sizes.into_iter().enumerate() {
        let kinds = (Values::Blobs, Values::Noise, if i % 2 == 0 { Values::Blobs } else { Values::Noise });
        let shapes = Shapes { batch: 1, queries: 2, classes: 2, grid, dtypes: [DType::F32; 3] };
        let meta = ImageMeta::stretch(Size::new(width, height), Size::new(312, 312)).expect("a plain stretch");
        for mask_format in [MaskFormat::Rle, MaskFormat::Dense, MaskFormat::BitPacked] {
            for semantics in [Semantics::roboflow_inference(), Semantics::rf_detr()] {
                let threshold = Thresholds::Scalar(-1.0);
                let options = Options { semantics, mask_format, threshold, ..Options::default() };
                cases.push(filled(&shapes, kinds, vec![meta], options, i as u64));
            }
        }
    }
    cases
}

//! Times the reference stage by stage: selection and boxes of one image, resize and run lengths of one mask.
//!
//! The reference is the judge, not the product: these figures say what the fast paths are measured against.
//!
//! ```sh
//! cargo bench -p rfdetr-post-core --bench reference
//! ```

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rfdetr_post_core::{
    ClassLayout, Health, ImageMeta, MaskFormat, Options, Request, Size, Tensor, Tensors,
    models::{VARIANTS, Variant},
    reference::{boxes, masks, rle, select},
};

/// Model, image, and a name for it.
const CASES: [(&str, u32, u32); 4] =
    [("seg-nano", 312, 176), ("seg-nano", 1280, 720), ("seg-nano", 1920, 1080), ("seg-2xlarge", 3840, 2160)];

/// Model outputs in the likeness of real ones: a few queries pass, their masks are blobs.
struct Outputs {
    variant: &'static Variant,
    boxes: Vec<f32>,
    logits: Vec<f32>,
    masks: Vec<f32>,
    shapes: [Vec<usize>; 3],
    metas: Vec<ImageMeta>,
    options: Options,
}

impl Outputs {
    fn new(name: &str, image: Size) -> Self {
        let variant = VARIANTS.iter().find(|variant| variant.name == name).expect("a published variant");
        let (queries, classes) = (variant.num_queries as usize, variant.num_classes as usize);
        let side = variant.mask_side.expect("a segmentation model") as usize;
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        let mut logits: Vec<f32> = (0..queries * classes).map(|_| -8.0 + 3.0 * uniform()).collect();
        // Twenty detections in columns that name a class.
        for detection in 0..20 {
            logits[(detection * 5 + 1) * classes + 1 + detection % 11] = 0.5 + 3.0 * uniform();
        }
        let boxes = (0..queries * 4).map(|_| 0.2 + 0.5 * uniform()).collect();
        let masks = (0..queries)
            .flat_map(|_| {
                let (cx, cy, r) = (uniform() * side as f32, uniform() * side as f32, 0.25 * side as f32);
                (0..side * side).map(move |i| {
                    let (dx, dy) = ((i % side) as f32 - cx, (i / side) as f32 - cy);
                    6.0 * (1.0 - dx.hypot(dy) / r) + (i * 7919 % 13) as f32 / 26.0
                })
            })
            .collect();
        let network = Size::new(variant.resolution, variant.resolution);
        Self {
            variant,
            boxes,
            logits,
            masks,
            shapes: [vec![1, queries, 4], vec![1, queries, classes], vec![1, queries, side, side]],
            metas: vec![ImageMeta::stretch(image, network).expect("a possible image")],
            options: Options { classes: ClassLayout::coco91(), mask_format: MaskFormat::Rle, ..Options::default() },
        }
    }

    fn request(&self) -> Request<'_> {
        let tensors = Tensors {
            boxes: Tensor::new(&self.boxes[..], &self.shapes[0]),
            logits: Tensor::new(&self.logits[..], &self.shapes[1]),
            masks: Some(Tensor::new(&self.masks[..], &self.shapes[2])),
        };
        Request::new(tensors, &self.metas, &self.options).expect("a good request")
    }
}

fn stages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reference");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for (name, width, height) in CASES {
        let outputs = Outputs::new(name, Size::new(width, height));
        let request = outputs.request();
        let case = format!("{name} {width}x{height}");
        let survivors = select::select(&request, 0, &mut Health::default());
        assert_eq!(survivors.len(), 20);

        // These two do not depend on the image.
        if width == 312 || name != "seg-nano" {
            group.throughput(Throughput::Elements(request.shape().num_pairs() as u64));
            group.bench_function(BenchmarkId::new("select", name), |bencher| {
                bencher.iter(|| select::select(black_box(&request), 0, &mut Health::default()));
            });
            group.throughput(Throughput::Elements(u64::from(outputs.variant.num_queries)));
            group.bench_function(BenchmarkId::new("boxes", name), |bencher| {
                bencher.iter(|| {
                    (0..request.shape().num_queries).map(|q| boxes::decode(black_box(&request), 0, q)[0]).sum::<f32>()
                });
            });
        }

        let geometry = request.mask_geometry(0).expect("masks were asked for");
        let resizer = masks::Resizer::new(&request, geometry);
        let side = outputs.variant.mask_side.expect("a segmentation model") as usize;
        let grid = masks::load_grid(&request, 0, survivors[0].query_idx);
        let window = masks::crop_window(&grid, side, side, &geometry.window);
        group.throughput(Throughput::Elements(u64::from(width) * u64::from(height)));
        group.bench_function(BenchmarkId::new("masks", &case), |bencher| {
            bencher.iter(|| resizer.mask(black_box(&window)).expect("the mask fits"));
        });
        let mask = resizer.mask(&window).expect("the mask fits");
        group.bench_function(BenchmarkId::new("run lengths", &case), |bencher| {
            bencher.iter(|| {
                let counts = rle::encode_counts(black_box(&mask), width as usize, height as usize);
                rle::encode_string(&counts)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, stages);
criterion_main!(benches);

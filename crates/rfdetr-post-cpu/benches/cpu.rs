//! The CPU back end by stage and as a whole, in every instruction set of this machine.
//!
//! ```sh
//! cargo bench -p rfdetr-post-cpu
//! cargo bench -p rfdetr-post-cpu -- 'nano/rle'
//! ```
//!
//! Stages are told apart by format: `none` is selection and boxes; `grid_logits` adds loading the grids; `counts` adds
//! the runs; `rle` the strings. The answer of every case is compared with the reference's before it is timed.
#![allow(missing_docs, reason = "criterion's macros make functions without docs")]

mod inputs;

use std::{hint::black_box, num::NonZero, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use inputs::{Inputs, Scene};
use rfdetr_post_core::{Detections, MaskFormat, Options, Request, Size, Thresholds, reference};
use rfdetr_post_cpu::{CpuConfig, CpuPostprocessor, SimdLevel, Threads};

const NANO: Scene =
    Scene { batch: 1, queries: 100, classes: 91, side: 78, detections: 20, image: Size::new(1920, 1080), noise: false };

fn levels() -> Vec<(String, CpuConfig)> {
    let mut list: Vec<_> = SimdLevel::available()
        .into_iter()
        .map(|simd| (simd.name().to_string(), CpuConfig { threads: Threads::One, simd: Some(simd) }))
        .collect();
    let two = Threads::Count(NonZero::new(2).expect("two"));
    list.push(("two threads".to_string(), CpuConfig { threads: two, simd: None }));
    list
}

fn bench(c: &mut Criterion, name: &str, scene: Scene, options: &Options) {
    let inputs = Inputs::new(scene);
    let request = Request::new(inputs.tensors(), &inputs.metas, options).expect("a good request");
    let expected = reference::process(&request).expect("an answer");
    let mut group = c.benchmark_group(name);
    let detections: usize = expected.images.iter().map(|image| image.len()).sum();
    group.throughput(Throughput::Elements(detections as u64));
    for (level, config) in levels() {
        let mut processor = CpuPostprocessor::new(config).expect("a level of this machine");
        let mut answer = Detections::default();
        processor.process_into(&request, &mut answer).expect("an answer");
        assert!(answer == expected, "{name} on {level} differs from the reference");
        group.bench_function(BenchmarkId::from_parameter(level), |b| {
            b.iter(|| processor.process_into(black_box(&request), &mut answer));
        });
    }
    group.finish();
}

fn stages(c: &mut Criterion) {
    for format in [
        MaskFormat::None,
        MaskFormat::GridLogits,
        MaskFormat::Counts,
        MaskFormat::Rle,
        MaskFormat::BitPacked,
        MaskFormat::Dense,
    ] {
        let options = Options { mask_format: format, ..Options::default() };
        bench(c, &format!("nano/{}", format.name()), NANO, &options);
    }
}

fn selection(c: &mut Criterion) {
    let scene = Scene { queries: 300, side: 0, ..NANO };
    bench(c, "boxes/threshold 0.4", scene, &Options::default());
    // Every pair passes, so the flat top-k decides.
    let everything = Options { threshold: Thresholds::Scalar(0.0), ..Options::default() };
    bench(c, "boxes/threshold 0", scene, &everything);
}

fn images(c: &mut Criterion) {
    let xxl = Scene { queries: 300, side: 192, detections: 20, image: Size::new(3840, 2160), ..NANO };
    let rle = Options { mask_format: MaskFormat::Rle, ..Options::default() };
    bench(c, "2xlarge 4K/rle", xxl, &rle);
    bench(c, "2xlarge 150x110/rle", Scene { image: Size::new(150, 110), ..xxl }, &rle);
    bench(c, "nano noise/rle", Scene { noise: true, detections: 2, ..NANO }, &rle);
    bench(c, "nano batch 8/rle", Scene { batch: 8, detections: 10, ..NANO }, &rle);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = stages, selection, images
}
criterion_main!(benches);

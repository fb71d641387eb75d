//! After a first batch of a kind, `process_into` on one thread allocates nothing.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use rfdetr_post_core::{Detections, MaskFormat, Options, Request, Semantics, Size, Thresholds, bench};
use rfdetr_post_cpu::{CpuConfig, CpuPostprocessor, SimdLevel, Threads};

/// The system's allocator, counted.
struct Counted;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the allocator's contract, and this is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// One test function, so that no other thread allocates meanwhile.
#[test]
fn nothing_is_allocated_after_the_first_batch() {
    for simd in SimdLevel::available() {
        for format in [
            MaskFormat::None,
            MaskFormat::Dense,
            MaskFormat::BitPacked,
            MaskFormat::GridLogits,
            MaskFormat::Counts,
            MaskFormat::Rle,
        ] {
            for (image, threshold) in [(Size::new(640, 480), 0.4), (Size::new(50, 37), 0.4), (Size::new(64, 64), 0.0)] {
                for semantics in [Semantics::roboflow_inference(), Semantics::rf_detr()] {
                    let scene = bench::Scene {
                        batch: 2,
                        queries: 20,
                        classes: 5,
                        side: 78,
                        detections: 8,
                        image,
                        noise: false,
                    };
                    let inputs = bench::Inputs::new(scene);
                    let threshold = Thresholds::Scalar(threshold);
                    let options = Options { semantics, threshold, mask_format: format, ..Options::default() };
                    let request = Request::new(inputs.tensors(), &inputs.metas, &options).unwrap();
                    let config = CpuConfig { threads: Threads::One, simd: Some(simd) };
                    let mut processor = CpuPostprocessor::new(config).unwrap();
                    let mut answer = Detections::default();
                    processor.process_into(&request, &mut answer).unwrap();
                    processor.process_into(&request, &mut answer).unwrap();
                    let before = ALLOCATIONS.load(Ordering::Relaxed);
                    for _ in 0..3 {
                        processor.process_into(&request, &mut answer).unwrap();
                    }
                    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
                    assert_eq!(
                        allocations,
                        0,
                        "{simd:?}, {format:?}, {image}, {threshold:?}",
                        threshold = options.threshold
                    );
                }
            }
        }
    }
}

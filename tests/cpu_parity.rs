//! Reference = fast CPU path, bit for bit, in every instruction set that this machine has.
//!
//! `PROPTEST_CASES` raises the number of random requests. `cargo xtask cpu-test` builds a program that runs a million of
//! them on all cores, and the rest of this file, where there is no cargo.

use std::{cell::RefCell, num::NonZero};

use proptest::{prelude::*, test_runner::TestRunner};
use rfdetr_post_core::{DType, Error, ImageMeta, MaskFormat, Options, Size};
use rfdetr_post_cpu::{CpuConfig, CpuPostprocessor, SimdLevel, Threads};
use rfdetr_post_tests::{
    case::{OwnedTensor, RequestCase},
    compare::compare,
    cpu::Backends,
    edge_cases::EDGE_CASES,
    fixtures::{self, FORMATS, Fixture},
    grids, strategies,
};

fn backends() -> Backends {
    Backends::new(&SimdLevel::available()).unwrap()
}

/// Checks random requests, each with the postprocessors that the one before has used.
fn property(strategy: impl Strategy<Value = RequestCase>) {
    let state = RefCell::new((backends(), 0));
    let config = ProptestConfig { failure_persistence: None, ..strategies::config(1500) };
    TestRunner::new(config)
        .run(&strategy, |case| {
            let (backends, turn) = &mut *state.borrow_mut();
            *turn += 1;
            backends.check(&case, *turn);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Grids around the sizes of machine words, enlarged and reduced.
#[test]
fn every_level_equals_the_reference() {
    property(grids::requests());
}

/// The requests that the other links of the chain are held to.
#[test]
fn every_level_equals_the_reference_on_shared_cases() {
    property(strategies::requests());
}

/// The requests of every fixture, under both presets and in every format. That these answers are the others' is tested
/// by `golden.rs`.
#[test]
fn every_level_equals_the_reference_on_the_fixtures() {
    let mut backends = backends();
    let mut count = 0;
    for (folder, name) in fixtures::all() {
        for case in Fixture::load(folder, &name).variants() {
            backends.check(&case, count);
            count += 1;
        }
    }
    assert_eq!(count, 81 * 2 * FORMATS.len() as u64 - 2 * (FORMATS.len() as u64 - 1) * WITHOUT_MASKS);
}

/// Fixtures that have no masks, and so one format.
const WITHOUT_MASKS: u64 = 11;

/// Every request of every named edge case.
#[test]
fn every_level_equals_the_reference_on_edge_cases() {
    let mut backends = backends();
    let mut count = 0;
    for (_, edge_case) in EDGE_CASES {
        for case in RequestCase::recorded(edge_case) {
            backends.check(&case, count);
            count += 1;
        }
    }
    assert!(count >= EDGE_CASES.len() as u64 / 2, "{count} requests");
}

#[test]
fn every_level_equals_the_reference_on_large_images() {
    let mut backends = backends();
    for (turn, case) in grids::large().iter().enumerate() {
        backends.check(case, turn as u64);
    }
}

/// Masks that no memory holds are an error on any number of threads, and the next request is answered as ever.
#[test]
fn a_refusal_leaves_nothing_behind() {
    let good = grids::large().into_iter().find(|case| case.options.mask_format == MaskFormat::Dense).unwrap();
    // 40,000 masks of 4 GiB: more than 2^47 bytes, the addresses of a process.
    let (queries, classes) = (200, 200);
    let network = good.metas[0].network;
    let metas = [1, 65_535, 2].map(|side| ImageMeta::stretch(Size::new(side, side), network).unwrap());
    let zeros = |shape: &[usize]| OwnedTensor::new(vec![0.0; shape.iter().product()], shape, DType::F32);
    let bad = RequestCase {
        boxes: zeros(&[3, queries, 4]),
        logits: zeros(&[3, queries, classes]),
        masks: Some(zeros(&[3, queries, 1, 1])),
        metas: metas.to_vec(),
        options: Options { num_select: Some(queries * classes), ..good.options.clone() },
    };
    for threads in [Threads::One, Threads::All, Threads::Count(NonZero::new(3).unwrap())] {
        let mut postprocessor = CpuPostprocessor::new(CpuConfig { threads, simd: None }).unwrap();
        for _ in 0..20 {
            let error = postprocessor.process(&bad.request().unwrap()).unwrap_err();
            assert!(matches!(error, Error::OutOfMemory { field: "masks", .. }), "{error}");
        }
        compare(&good.reference(), &postprocessor.process(&good.request().unwrap()).unwrap()).unwrap();
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

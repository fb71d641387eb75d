//! Reference = emulated kernels, bit for bit, under hostile schedules.
//!
//! `EMULATOR_SCHEDULES` sets the schedules of each fixture (1 when it is not set), `PROPTEST_CASES` the random requests.

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use rfdetr_post_core::{
    BoxRounding, DType, ImageMeta, MaskFormat, Options, Semantics, Size,
    packed::{FLAG_BILINEAR, FLAG_CLIP_BOXES, MAX_SELECT, NOT_WRITTEN},
};
use rfdetr_post_tests::{
    case::{OwnedTensor, RequestCase},
    compare,
    emulated::{self, Damage, Shape},
    fixtures::{self, Fixture},
    strategies::{self, Limits},
};

proptest! {
    #![proptest_config(strategies::config(2000))]

    /// Every option of a request, several schedules and launch shapes.
    #[test]
    fn emulated_kernels_equal_the_reference(case in strategies::requests_within(Limits::small()), seed in any::<u64>()) {
        let request = case.request().unwrap();
        // One sort in shared memory bounds `num_select` on the GPU; more is refused when the plan is made.
        prop_assume!(request.num_select() <= MAX_SELECT as usize);
        if let Err(difference) = compare::check(&request, |request| emulated::answer(request, seed)) {
            prop_assert!(false, "seed {seed}: {difference}");
        }
    }
}

proptest! {
    #![proptest_config(strategies::config(300))]

    /// Images of several tiles, as bytes and as bits: the small ones above are rarely wider than one.
    #[test]
    fn dense_masks_of_several_tiles(case in strategies::requests_within(Limits::ordinary()), seed in any::<u64>()) {
        prop_assume!(case.masks.is_some());
        let case = case.with_options(|options| {
            options.mask_format = if seed % 3 == 0 { MaskFormat::BitPacked } else { MaskFormat::Dense };
        });
        let request = case.request().unwrap();
        prop_assume!(request.num_select() <= MAX_SELECT as usize);
        if let Err(difference) = compare::check(&request, |request| emulated::answer(request, seed)) {
            prop_assert!(false, "seed {seed}: {difference}");
        }
    }
}

/// The emulated kernels answer as the reference does, and no detector reports anything.
fn assert_equal(what: &str, case: &RequestCase, seed: u64, shape: Shape) {
    match emulated::process_shaped(&case.request().unwrap(), seed, shape) {
        Ok(got) => {
            if let Err(difference) = compare::compare(&case.reference(), &got) {
                panic!("{what}: {difference}");
            }
        }
        Err(emulated::Failure::Error(error)) => panic!("{what}: {error}"),
        Err(emulated::Failure::Fault(fault)) => panic!("{what}: {fault}"),
    }
}

/// Masks of one positive row or column of cells, one for each: whatever looks at a cell too few at the edge of a tile misses it.
/// One axis shrinks and the other grows, so they reach differently far.
#[test]
fn masks_of_one_live_row_or_column() {
    let (long, short) = (96, 10);
    for (is_row, mask_format) in [MaskFormat::Dense, MaskFormat::BitPacked, MaskFormat::Rle, MaskFormat::Counts]
        .into_iter()
        .flat_map(|format| [(true, format), (false, format)])
    {
        let (mask_h, mask_w) = if is_row { (long, short) } else { (short, long) };
        let size = if is_row { Size::new(130, 67) } else { Size::new(133, 70) };
        let cells = |query: usize| {
            (0..mask_h * mask_w).map(move |cell| {
                let is_live = if is_row { cell / mask_w == query } else { cell % mask_w == query };
                if is_live { 1.0 } else { -0.015625 }
            })
        };
        let case = RequestCase {
            boxes: OwnedTensor::new([0.5; 4].repeat(long), &[1, long, 4], DType::F32),
            logits: OwnedTensor::new(vec![3.0; long], &[1, long, 1], DType::F32),
            masks: Some(OwnedTensor::new((0..long).flat_map(cells).collect(), &[1, long, mask_h, mask_w], DType::F32)),
            metas: vec![ImageMeta::stretch(size, Size::new(384, 384)).unwrap()],
            options: Options { mask_format, ..Options::default() },
        };
        for seed in 0..2 {
            let shape = Shape { mask_threads: 96, mask_grid: 24, ..Shape::from_seed(seed) };
            assert_equal(&format!("{mask_format:?}, row {is_row}, seed {seed}"), &case, seed, shape);
        }
    }
}

/// Dense masks of images so wide, or of grids so wide, that a row of tiles is more than one group: wide blobs, thin ones, and here
/// and there a value that is not finite.
#[test]
fn dense_masks_of_several_groups() {
    // Widths of whole words and others; a grid with more cells a tile than a group of many tiles has room for; one with more than
    // there is room for.
    let sizes = [(2049, 11, 5, 40), (2064, 17, 3, 70), (4112, 9, 2, 100), (1504, 30, 12, 500), (209, 205, 200, 200)];
    for (width, height, mask_h, mask_w) in sizes {
        for mask_format in [MaskFormat::Dense, MaskFormat::BitPacked] {
            let num_masks = 5;
            let cells = (0..num_masks * mask_h * mask_w).map(|i| {
                let (mask, r, c) = (i / (mask_h * mask_w), i / mask_w % mask_h, i % mask_w);
                let wave = ((c as f32 * (0.02 + 0.1 * mask as f32)) + r as f32).sin();
                match (mask, i % 97) {
                    (1, 5) => f32::NAN,
                    (2, 7) => f32::INFINITY,
                    (3, 11) => f32::NEG_INFINITY,
                    // Mostly foreground, then mostly background.
                    (0 | 1, _) => wave + 0.7,
                    _ => wave - 0.8,
                }
            });
            let case = RequestCase {
                boxes: OwnedTensor::new([0.5; 4].repeat(num_masks), &[1, num_masks, 4], DType::F32),
                logits: OwnedTensor::new(vec![3.0; num_masks], &[1, num_masks, 1], DType::F32),
                masks: Some(OwnedTensor::new(cells.collect(), &[1, num_masks, mask_h, mask_w], DType::F32)),
                metas: vec![ImageMeta::stretch(Size::new(width, height), Size::new(384, 384)).unwrap()],
                options: Options { mask_format, ..Options::default() },
            };
            for seed in 0..2 {
                let shape = Shape { mask_threads: 96, mask_grid: 5, ..Shape::from_seed(seed) };
                assert_equal(&format!("{width}x{height} {mask_format:?}, seed {seed}"), &case, seed, shape);
            }
        }
    }
}

/// More masks than clusters, and fewer than blocks: the widest are shared, of equal ones the first, and boxes may be of no width
/// or of none that is a number.
#[test]
fn run_lengths_of_more_masks_than_clusters() {
    let (mask_h, mask_w) = (9, 20);
    for num_masks in [3usize, 5, 9, 17, 31] {
        let widths = [0.5f32, 0.25, 0.5, 0.0, -0.5, f32::NAN, 1.0, 0.5];
        let boxes = (0..num_masks).flat_map(|i| [0.5, 0.5, widths[i % 8], 0.5]);
        let cells = (0..num_masks * mask_h * mask_w).map(|i| ((i * 7919 % 613) as f32 * 0.05).sin() - 0.2);
        let case = RequestCase {
            boxes: OwnedTensor::new(boxes.collect(), &[1, num_masks, 4], DType::F32),
            logits: OwnedTensor::new(vec![3.0; num_masks], &[1, num_masks, 1], DType::F32),
            masks: Some(OwnedTensor::new(cells.collect(), &[1, num_masks, mask_h, mask_w], DType::F32)),
            metas: vec![ImageMeta::stretch(Size::new(83, 45), Size::new(384, 384)).unwrap()],
            options: Options { mask_format: MaskFormat::Rle, ..Options::default() },
        };
        for seed in 0..4 {
            // Some windows are so small that a shared mask has no room, and is made anew.
            let num_clusters = [2, 8][seed as usize % 2];
            let shape =
                Shape { num_clusters, mask_threads: 64, is_large: false, ..Shape::from_seed(seed << 24 | seed) };
            assert_equal(&format!("{num_masks} masks, {num_clusters} clusters"), &case, seed, shape);
        }
    }
}

/// A value that is not finite in the last column, of images whose last column's cells are computed a little before the grid's end:
/// every cell is counted, by one block.
#[test]
fn values_that_are_not_finite_in_the_last_column() {
    let (mask_h, mask_w) = (10, 41);
    for width in 60..100 {
        let cells = (0..mask_h * mask_w).map(|cell| if cell % mask_w == mask_w - 1 { f32::NAN } else { 1.0 });
        let case = RequestCase {
            boxes: OwnedTensor::new(vec![0.5, 0.5, 0.5, 0.5], &[1, 1, 4], DType::F32),
            logits: OwnedTensor::new(vec![3.0], &[1, 1, 1], DType::F32),
            masks: Some(OwnedTensor::new(cells.collect(), &[1, 1, mask_h, mask_w], DType::F32)),
            metas: vec![ImageMeta::stretch(Size::new(width, 37), Size::new(384, 384)).unwrap()],
            options: Options { mask_format: MaskFormat::Rle, ..Options::default() },
        };
        for num_clusters in [0, 1] {
            let shape = Shape { num_clusters, mask_threads: 32, ..Shape::from_seed(u64::from(width)) };
            assert_equal(&format!("width {width}, clusters {num_clusters}"), &case, u64::from(width), shape);
        }
    }
}

/// More fours of logits than have room hold something to be counted, and few of them a hit.
#[test]
fn logits_that_are_minus_infinity_but_for_a_few() {
    let (num_queries, num_classes) = (130, 40);
    for num_hits in [0, 1, 7, 130] {
        let logits = (0..num_queries * num_classes).map(|k| {
            let is_hit = k % num_classes == k / num_classes % num_classes && k / num_classes < num_hits;
            if is_hit { (k / num_classes) as f32 / 64.0 } else { f32::NEG_INFINITY }
        });
        let case = RequestCase {
            boxes: OwnedTensor::new([0.5, 0.5, 0.25, 0.25].repeat(num_queries), &[1, num_queries, 4], DType::F32),
            logits: OwnedTensor::new(logits.collect(), &[1, num_queries, num_classes], DType::F32),
            masks: None,
            metas: vec![ImageMeta::stretch(Size::new(61, 37), Size::new(384, 384)).unwrap()],
            options: Options { mask_format: MaskFormat::None, ..Options::default() },
        };
        for seed in 0..3 {
            assert_equal(&format!("{num_hits} hits, seed {seed}"), &case, seed, Shape::from_seed(seed));
        }
    }
}

/// Detections of one image: the host sees them before their flag, whenever they come, but for a box that has what marks a word that
/// is not written.
#[test]
fn detections_are_seen_before_their_flag() {
    let (num_queries, num_classes) = (40, 3);
    let semantics = Semantics { box_rounding: BoxRounding::None, ..Semantics::roboflow_inference() };
    for (num_hits, is_marked) in [(0, false), (1, false), (7, false), (40, false), (7, true)] {
        let mut boxes: Vec<f32> = (0..4 * num_queries).map(|i| 0.25 + (i % 11) as f32 / 64.0).collect();
        if is_marked {
            boxes[4 * 3] = f32::from_bits(NOT_WRITTEN);
        }
        let logits = (0..num_queries * num_classes).map(|k| {
            let (query, class) = (k / num_classes, k % num_classes);
            if query < num_hits && class == query % num_classes { 1.0 + (query * 7 % 40) as f32 / 64.0 } else { -9.0 }
        });
        let case = RequestCase {
            boxes: OwnedTensor::new(boxes, &[1, num_queries, 4], DType::F32),
            logits: OwnedTensor::new(logits.collect(), &[1, num_queries, num_classes], DType::F32),
            masks: None,
            metas: vec![ImageMeta::stretch(Size::new(61, 37), Size::new(384, 384)).unwrap()],
            options: Options { mask_format: MaskFormat::None, semantics, ..Options::default() },
        };
        let expected = case.reference();
        assert_eq!(expected.images[0].len(), num_hits);
        let mut num_early = 0;
        for seed in 0..400 {
            match emulated::process_watched(&case.request().unwrap(), seed, Shape::from_seed(seed)) {
                Ok((got, is_early)) => {
                    assert_eq!(compare::compare(&expected, &got), Ok(()), "{num_hits} hits, seed {seed}");
                    num_early += u32::from(is_early);
                }
                Err(failure) => panic!("{num_hits} hits, seed {seed}: {failure:?}"),
            }
        }
        assert_eq!(
            num_early > 0,
            !is_marked,
            "{num_hits} hits: {num_early} answers of 400 were seen before their flag"
        );
    }
}

/// The upstream requests at their true shapes, each schedule with another format.
#[test]
fn every_fixture_under_hostile_schedules() {
    let schedules = std::env::var("EMULATOR_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(1u64);
    let formats = [
        MaskFormat::Rle,
        MaskFormat::Dense,
        MaskFormat::Counts,
        MaskFormat::BitPacked,
        MaskFormat::GridLogits,
        MaskFormat::None,
    ];
    let names = fixtures::names("upstream");
    assert_eq!(names.len(), 22);
    let mut runs = 0;
    for name in names {
        let fixture = Fixture::load("upstream", &name);
        for schedule in 0..schedules {
            let case = fixture.case.with_options(|options| {
                options.mask_format = formats[schedule as usize % formats.len()];
                options.semantics = Semantics::roboflow_inference();
            });
            // More threads than a random request gets: these images are a thousand pixels wide.
            let seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(schedule + 1);
            let shape = Shape { select_threads: 256, mask_threads: 128, mask_grid: 24, ..Shape::from_seed(seed) };
            assert_equal(&format!("{name}, schedule {schedule}"), &case, seed, shape);
            runs += 1;
        }
    }
    println!("{runs} runs of fixtures, no difference and no report");
}

/// The comparison must see what a wrong kernel does: each damage of the arguments differs, or is reported.
#[test]
fn damaged_kernels_are_seen() {
    let damages: [(&str, Damage); 9] = [
        ("bilinear instead of antialias", |select, masks| {
            select.flags ^= FLAG_BILINEAR;
            masks.flags ^= FLAG_BILINEAR;
        }),
        ("boxes clipped or not", |select, _| select.flags ^= FLAG_CLIP_BOXES),
        ("one candidate fewer", |select, _| select.num_select -= 1),
        ("hits begin a little higher", |select, _| select.min_logit += 0.25),
        ("one detection fewer", |select, _| select.max_detections = select.max_detections.saturating_sub(1)),
        ("the window begins a cell further right", |select, masks| {
            for record in select.records.iter_mut().chain(&mut masks.records) {
                record.window_x += 1;
            }
        }),
        ("a scale off by one ulp", |select, _| {
            for record in &mut select.records {
                record.scale_y = f32::from_bits(record.scale_y.to_bits() + 1);
            }
        }),
        ("grids read one row too far", |_, masks| masks.mask_h += 1),
        ("logits of half the type", |select, _| select.logits_dtype = 1),
    ];
    for (name, damage) in damages {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let strategy = strategies::requests_within(Limits::small());
        let seen = (0..400u64).any(|seed| {
            let case = strategy.new_tree(&mut runner).unwrap().current();
            let request = case.request().unwrap();
            if request.num_select() > MAX_SELECT as usize || request.num_select() == 0 {
                return false;
            }
            let shape = Shape { damage: Some(damage), ..Shape::from_seed(seed) };
            match emulated::process_shaped(&request, seed, shape) {
                Ok(got) => compare::compare(&case.reference(), &got).is_err(),
                Err(_) => true,
            }
        });
        assert!(seen, "{name}: no difference and no report in 400 requests");
    }
}

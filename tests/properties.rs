//! What must hold for every request: the reference against the oracle, against brute force, and against itself.
//!
//! `PROPTEST_CASES` sets the number of cases of each property.

use proptest::{prelude::*, strategy::ValueTree};
use rfdetr_post_core::{
    BoxRounding, DType, Detections, Frame, ImageDetections, ImageMeta, MaskFormat, MaskRef, Masks, Options,
    Preprocessing, Request, Resize, Size, Thresholds,
    detections::{dense_from_counts, pack_bits, unpack_bits, xyxy_i32},
    reference::{masks, rle},
    score::{min_logit, sigmoid},
};
use rfdetr_post_tests::{
    case::{OwnedTensor, RequestCase},
    compare::{FAULTS, check, compare, compare_image, same_bits},
    oracle::{self, Judged, Oracle},
    plain,
    random::Random,
    strategies::{binary_masks, config, preprocessings, requests},
};

/// Cases of a property in the ordinary run.
const CASES: u32 = 1000;

/// Fails the case with the text of an error.
fn holds<E: std::fmt::Display>(result: Result<(), E>) -> Result<(), TestCaseError> {
    result.map_err(|error| TestCaseError::fail(error.to_string()))
}

/// The flat index of a row.
fn flat_idx(request: &Request<'_>, row: &rfdetr_post_core::DetectionRow) -> usize {
    row.query_idx as usize * request.shape().num_classes + row.class_idx as usize
}

proptest! {
    #![proptest_config(config(CASES))]

    /// Selection, boxes, and every mask pixel whose sign is certain; then the resized values themselves.
    #[test]
    fn reference_agrees_with_the_oracle(case in requests()) {
        let mut judged = Judged::default();
        holds(against_oracle(&case, &mut judged))?;
    }

    /// The definition of spec 3.1, with ranks counted one by one.
    #[test]
    fn selection_is_its_definition(case in requests()) {
        let case = case.with_options(|options| options.mask_format = MaskFormat::None);
        let (request, got) = (case.request().unwrap(), case.reference());
        for (image, got) in got.images.iter().enumerate() {
            let expected = survivors_by_definition(&request, image);
            let got: Vec<_> = got.rows.iter().map(|row| flat_idx(&request, row)).collect();
            prop_assert_eq!(got, expected, "image {}", image);
        }
    }

    /// Queries in another order give the same rows in the same order of scores; equal scores follow the new indices.
    #[test]
    fn permuted_queries_permute_rows(case in requests(), seed in any::<u64>()) {
        let case = without_ties_at_the_caps(case);
        let queries = case.boxes.shape[1];
        let mut order: Vec<usize> = (0..queries).collect();
        Random::new(seed).shuffle(&mut order);
        let permuted = RequestCase {
            boxes: case.boxes.permute_queries(&order),
            logits: case.logits.permute_queries(&order),
            masks: case.masks.as_ref().map(|masks| masks.permute_queries(&order)),
            ..case.clone()
        };
        let (request, a, b) = (case.request().unwrap(), case.reference(), permuted.reference());
        for (a, b) in a.images.iter().zip(&b.images) {
            // Name the permuted rows as they were called before; then equal scores must be put back into index order.
            let mut back: Vec<usize> = (0..b.rows.len()).collect();
            let mut renamed = b.clone();
            for row in &mut renamed.rows {
                row.query_idx = order[row.query_idx as usize] as u32;
            }
            back.sort_by(|&i, &j| {
                let (i, j) = (&renamed.rows[i], &renamed.rows[j]);
                j.confidence.total_cmp(&i.confidence).then(flat_idx(&request, i).cmp(&flat_idx(&request, j)))
            });
            prop_assert_eq!(a.rows.len(), b.rows.len());
            prop_assert_eq!(a.health, b.health);
            for (expected, &got) in back.iter().enumerate() {
                let (mut x, mut y) = (a.rows[expected], renamed.rows[got]);
                (x.mask_offset, y.mask_offset) = (0, 0);
                prop_assert!(same_row(&x, &y), "{:?} became {:?}", x, y);
                prop_assert!(same_mask(a.mask(expected), b.mask(got)), "mask of {:?}", x);
            }
            for pair in b.rows.windows(2) {
                let tie_in_order = pair[0].confidence > pair[1].confidence
                    || flat_idx(&request, &pair[0]) < flat_idx(&request, &pair[1]);
                prop_assert!(tie_in_order, "equal scores out of index order");
            }
        }
    }

    /// An image alone is the image in its batch.
    #[test]
    fn images_of_a_batch_are_independent(case in requests()) {
        let batch = case.reference();
        for image in 0..case.metas.len() {
            let alone = case.image(image).reference();
            holds(compare(&Detections { images: vec![batch.images[image].clone()] }, &alone))?;
        }
    }

    /// All formats hold the same mask; areas, boxes and run lengths are those of brute force.
    #[test]
    fn mask_formats_agree(case in requests()) {
        if case.masks.is_none() {
            return Ok(());
        }
        let answer = |format| case.with_options(|options| options.mask_format = format).reference();
        let dense = answer(MaskFormat::Dense);
        let formats = [MaskFormat::BitPacked, MaskFormat::Counts, MaskFormat::Rle, MaskFormat::GridLogits, MaskFormat::None];
        let others = formats.map(answer);
        let request = case.request().unwrap();
        for (image, dense) in dense.images.iter().enumerate() {
            let (width, height) = (dense.size.width as usize, dense.size.height as usize);
            for (format, other) in formats.iter().zip(&others) {
                prop_assert_eq!(other.images[image].masks.format(), *format);
                prop_assert_eq!(other.images[image].rows.len(), dense.rows.len());
            }
            for (idx, row) in dense.rows.iter().enumerate() {
                let mask = dense.dense_mask(idx).unwrap().unwrap();
                prop_assert_eq!(mask.len(), width * height);
                prop_assert!(mask.iter().all(|&pixel| pixel <= 1));
                prop_assert_eq!((row.mask_area, row.mask_xyxy), plain::area_and_box(&mask, width, height));
                prop_assert_eq!(row.num_counts, 0);
                let counts = plain::counts(&mask, width, height);
                for other in &others {
                    let other = &other.images[image];
                    let (mut x, mut y) = (*row, other.rows[idx]);
                    let same_health = other.health == dense.health;
                    match other.mask(idx) {
                        Some(MaskRef::Counts(got)) => {
                            prop_assert_eq!(got, &counts[..]);
                            prop_assert_eq!(y.num_counts as usize, counts.len());
                        }
                        Some(MaskRef::Rle(got)) => {
                            prop_assert_eq!(got, plain::string(&counts));
                            prop_assert_eq!(y.num_counts as usize, counts.len());
                        }
                        Some(MaskRef::BitPacked(got)) => prop_assert_eq!(got, pack_bits(&mask, width, height)),
                        Some(MaskRef::GridLogits(got)) => {
                            let grid = masks::load_grid(&request, image, row.query_idx as usize);
                            prop_assert!(got.iter().zip(&grid).all(|(&a, &b)| same_bits(a, b)));
                            let (mask_h, mask_w) = request.shape().mask_grid.unwrap();
                            prop_assert_eq!(got.len(), mask_h * mask_w);
                            let cells: Vec<u8> = grid.iter().map(|&x| u8::from(x > 0.0)).collect();
                            prop_assert_eq!((y.mask_area, y.mask_xyxy), plain::area_and_box(&cells, mask_w, mask_h));
                        }
                        Some(MaskRef::Dense(_)) => prop_assert!(false, "dense was not asked for"),
                        None => prop_assert_eq!((y.mask_area, y.mask_xyxy, y.mask_len), (0, [0; 4], 0)),
                    }
                    if !matches!(other.masks, Masks::GridLogits { .. } | Masks::None) {
                        prop_assert!(same_health);
                        prop_assert_eq!(&other.dense_mask(idx).unwrap().unwrap(), &mask);
                        prop_assert_eq!((y.mask_area, y.mask_xyxy), (row.mask_area, row.mask_xyxy));
                    }
                    for row in [&mut x, &mut y] {
                        (row.mask_area, row.mask_xyxy) = (0, [0; 4]);
                        (row.mask_offset, row.mask_len, row.num_counts) = (0, 0, 0);
                    }
                    prop_assert!(same_row(&x, &y), "{:?} and {:?}", x, y);
                }
            }
        }
    }

    /// Half types are widened, and nothing else.
    #[test]
    fn half_types_are_widened(case in requests()) {
        let wide = RequestCase {
            boxes: case.boxes.to_f32(),
            logits: case.logits.to_f32(),
            masks: case.masks.as_ref().map(|masks| masks.to_f32()),
            ..case.clone()
        };
        holds(compare(&wide.reference(), &case.reference()))?;
    }

    /// A higher threshold keeps the rows above it, in the same order, and nothing else.
    #[test]
    fn thresholds_are_monotone(case in requests(), low in -0.5..1.0f64, part in 0.0..=1.0f64, at_a_score in any::<bool>()) {
        let at = |threshold| {
            case.with_options(|options| {
                options.threshold = Thresholds::Scalar(threshold);
                options.max_detections = None;
                options.mask_format = MaskFormat::None;
            })
        };
        let below = at(low).reference();
        let mut high = low + (1.0 - low) * part;
        if let (true, Some(row)) = (at_a_score, below.images.first().and_then(|image| image.rows.first())) {
            high = f64::from(row.confidence).max(low);
        }
        let above = at(high).reference();
        for (below, above) in below.images.iter().zip(&above.images) {
            let mut filtered = below.clone();
            filtered.rows.retain(|row| row.confidence > high as f32);
            holds(compare_image(&filtered, above))?;
        }
    }

    /// `max_detections` cuts the end of the list and changes nothing else.
    #[test]
    fn max_detections_is_a_prefix(case in requests(), cap in 0usize..8) {
        let with = |cap| {
            case.with_options(|options| {
                options.max_detections = cap;
                options.mask_format = MaskFormat::None;
            })
        };
        let (all, cut) = (with(None).reference(), with(Some(cap)).reference());
        for (all, cut) in all.images.iter().zip(&cut.images) {
            let mut expected = all.clone();
            expected.rows.truncate(cap);
            holds(compare_image(&expected, cut))?;
        }
    }

    /// Clipped boxes lie in the image, rounded ones are whole, and the affine map places them, too.
    #[test]
    fn boxes_are_in_place(case in requests()) {
        let (request, got) = (case.request().unwrap(), case.reference());
        let semantics = &case.options.semantics;
        for (image, got) in got.images.iter().enumerate() {
            let meta = &case.metas[image];
            let (width, height) = (meta.original.width as f32, meta.original.height as f32);
            for row in &got.rows {
                for (x, side) in row.xyxy.iter().zip([width, height, width, height]) {
                    prop_assert!(x.is_nan() || !semantics.clip_boxes || (0.0..=side).contains(x));
                    if semantics.box_rounding == BoxRounding::HalfEven {
                        prop_assert!(!x.is_nan() && (x.fract() == 0.0 || x.is_infinite()));
                        prop_assert!(x.to_bits() != (-0.0f32).to_bits());
                    }
                }
                let whole = xyxy_i32(row);
                prop_assert!(row.xyxy.iter().zip(whole).all(|(&x, i)| (x - i as f32).abs() <= 0.5 || x.abs() > 1e9 || (x.is_nan() && i == 0)));
                let base = (image * request.shape().num_queries + row.query_idx as usize) * 4;
                let [cx, cy, w, h] = [0, 1, 2, 3].map(|i| f64::from(request.tensors().boxes.at(base + i)));
                let ordinary = [cx, cy, w, h].iter().all(|x| (0.0..=4.0).contains(x));
                if semantics.frame == Frame::UndoPreprocessing && ordinary {
                    let map = meta.image_from_norm();
                    for (corner, got) in [((cx - w / 2.0, cy - h / 2.0), [0, 1]), ((cx + w / 2.0, cy + h / 2.0), [2, 3])] {
                        let place = map * nalgebra::Point2::new(corner.0, corner.1);
                        for (axis, i) in got.into_iter().enumerate() {
                            let side = if axis == 0 { width } else { height };
                            let expected = if semantics.clip_boxes { place[axis].clamp(0.0, side.into()) } else { place[axis] };
                            // Half a pixel of rounding, and f32 steps of numbers that a small scale makes large.
                            let scale = if axis == 0 { meta.scale_x } else { meta.scale_y };
                            let tolerance = 0.5 + 1e-6 * (4.0 + f64::from(meta.frame().width.max(meta.frame().height))) * 8.0 / scale;
                            prop_assert!((f64::from(row.xyxy[i]) - expected).abs() <= tolerance, "{} and {expected}", row.xyxy[i]);
                        }
                    }
                }
            }
        }
    }

    /// Counts and strings of any mask are those of brute force; both decode to the mask.
    #[test]
    fn run_lengths_are_those_of_brute_force((mask, width, height) in binary_masks()) {
        let counts = rle::encode_counts(&mask, width, height);
        prop_assert_eq!(&counts, &plain::counts(&mask, width, height));
        prop_assert_eq!(counts.iter().map(|&count| count as usize).sum::<usize>(), width * height);
        prop_assert!(counts.iter().skip(1).all(|&count| count > 0));
        let string = rle::encode_string(&counts);
        prop_assert_eq!(&string, &plain::string(&counts));
        prop_assert!(string.iter().all(|byte| (48..=111).contains(byte)));
        prop_assert_eq!(&rle::decode_string(&string).unwrap(), &counts);
        prop_assert_eq!(&plain::decode(&string), &counts);
        prop_assert_eq!(&dense_from_counts(&counts, width, height).unwrap(), &mask);
        prop_assert_eq!(&plain::dense(&counts, width, height), &mask);
        prop_assert_eq!(masks::area_and_box(&mask, width, height), plain::area_and_box(&mask, width, height));
        prop_assert_eq!(&unpack_bits(&pack_bits(&mask, width, height), width, height), &mask);
    }

    /// Any counts, huge ones too, survive the string; any bytes decode to counts or to an error.
    #[test]
    fn strings_survive_any_counts(counts in prop::collection::vec(any_count(), 0..40), bytes in prop::collection::vec(40u8..120, 0..40)) {
        let string = rle::encode_string(&counts);
        prop_assert_eq!(&string, &plain::string(&counts));
        prop_assert_eq!(&rle::decode_string(&string).unwrap(), &counts);
        prop_assert_eq!(&plain::decode(&string), &counts);
        if let Ok(counts) = rle::decode_string(&bytes) {
            prop_assert_eq!(rle::decode_string(&rle::encode_string(&counts)).unwrap(), counts);
        }
    }

    /// `score > threshold` is `logit >= min_logit(threshold)`.
    #[test]
    fn thresholds_work_on_logits(x in any_logit(), y in any_logit(), threshold in -0.5..=1.0f32) {
        for threshold in [threshold, sigmoid(y)] {
            prop_assert_eq!(sigmoid(x) > threshold, x >= min_logit(threshold), "logit {} threshold {}", x, threshold);
        }
    }

    /// The fused multiply-add, on which all mask bits rest, rounds once: against f64 rounded to odd, and `libm`.
    #[test]
    fn fused_multiply_add_rounds_once(a in any_float(), b in any_float(), c in any_float(), cancel in any::<bool>()) {
        let c = if cancel { -(a * b) * (1.0 + c.clamp(-1.0, 1.0) * 1e-6) } else { c };
        let got = f32::mul_add(a, b, c);
        prop_assert!(same_bits(got, libm::fmaf(a, b, c)), "{} * {} + {}", a, b, c);
        prop_assert!(same_bits(got, fma_by_rounding_to_odd(a, b, c)), "{} * {} + {} = {}", a, b, c, got);
    }

    /// Pads, content and frame add up; the two affine maps are inverse to each other; JSON changes nothing.
    #[test]
    fn records_add_up(preprocessing in preprocessings(5000), at in (0.0..1.0f64, 0.0..1.0f64)) {
        let meta = preprocessing.meta().unwrap();
        let Preprocessing { original, static_crop, resize } = preprocessing;
        prop_assert_eq!(meta.original, original);
        let frame = meta.frame();
        let spans = [
            (frame.width, meta.padding.left, meta.padding.right, meta.content.width, meta.scale_x),
            (frame.height, meta.padding.top, meta.padding.bottom, meta.content.height, meta.scale_y),
        ];
        for (side, near, far, content, scale) in spans {
            let shown = f64::from(side) - f64::from(near) - f64::from(far);
            // A letterbox truncates up to one pixel.
            let spare = f64::from(content) * scale - shown;
            prop_assert!((-1e-9..1.0 + 1e-9).contains(&spare), "{meta:?}");
            prop_assert!(near.abs_diff(far) <= 1, "{meta:?}");
            prop_assert!(far.unsigned_abs() >= near.unsigned_abs(), "the odd pixel goes to the far side: {meta:?}");
        }
        let network = match resize {
            Resize::Stretch { network } | Resize::Letterbox { network, .. } | Resize::CenterCrop { network, .. } => network,
        };
        prop_assert_eq!(meta.network, network);
        let crop = static_crop.map_or((0, 0, original.width, original.height), |c| (c.x, c.y, c.width, c.height));
        prop_assert_eq!(crop, (meta.crop_offset.x, meta.crop_offset.y, meta.content.width, meta.content.height));
        let back = meta.norm_from_image() * (meta.image_from_norm() * nalgebra::Point2::new(at.0, at.1));
        prop_assert!((back.x - at.0).abs() < 1e-9 && (back.y - at.1).abs() < 1e-9);
        let json = serde_json::to_string(&preprocessing).unwrap();
        prop_assert_eq!(serde_json::from_str::<Preprocessing>(&json).unwrap(), preprocessing);
    }

    /// Options survive JSON.
    #[test]
    fn options_survive_json(case in requests()) {
        let json = serde_json::to_string(&case.options).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Options>(&json).unwrap(), &case.options);
    }

    /// A comparison counts only if it can fail: one damaged field of any answer is reported, by its name.
    #[test]
    fn every_damaged_field_is_named(case in requests(), fault in 0..FAULTS.len()) {
        let good = case.reference();
        holds(compare(&good, &good.clone()))?;
        let request = case.request().unwrap();
        holds(check(&request, rfdetr_post_core::reference::process))?;
        if good.images.first().is_none_or(|image| image.rows.is_empty()) {
            return Ok(());
        }
        let (name, damage) = FAULTS[fault];
        let mut bad = good.clone();
        if damage(&mut bad) {
            let difference = compare(&good, &bad).expect_err("the damage is seen");
            prop_assert_eq!(difference.field, name, "{}", difference);
            let difference = check(&request, |_| Ok(bad.clone())).expect_err("the damage is seen");
            prop_assert_eq!(difference.field, name, "{}", difference);
        }
    }
}

/// Every damage applies to some answer; a list that silently tests nothing would be worse than none.
#[test]
fn every_damage_applies_somewhere() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut applied = vec![0; FAULTS.len()];
    for _ in 0..300 {
        let case = requests().new_tree(&mut runner).unwrap().current();
        let good = case.reference();
        if good.images.first().is_some_and(|image| !image.rows.is_empty()) {
            for (count, (_, damage)) in applied.iter_mut().zip(FAULTS) {
                *count += usize::from(damage(&mut good.clone()));
            }
        }
    }
    let never: Vec<_> =
        FAULTS.iter().zip(&applied).filter(|(_, count)| **count == 0).map(|(fault, _)| fault.0).collect();
    assert!(never.is_empty(), "these damages applied to no answer: {never:?}");
}

/// The oracle must be able to fail, too: each of these damages to a plain answer is noticed.
#[test]
fn the_oracle_notices_damage() {
    let mut random = Random::new(7);
    let logits = vec![2.0, -3.0, 1.0, 0.5, -4.0, 3.0];
    let boxes = vec![0.4, 0.6, 0.3, 0.2, 0.5, 0.3, 0.25, 0.31, 0.7, 0.2, 0.1, 0.3];
    let masks: Vec<f32> = (0..3 * 5 * 7).map(|_| random.normal(0.0, 3.0)).collect();
    let case = RequestCase {
        boxes: OwnedTensor::new(boxes, &[1, 3, 4], DType::F32),
        logits: OwnedTensor::new(logits, &[1, 3, 2], DType::F32),
        masks: Some(OwnedTensor::new(masks, &[1, 3, 5, 7], DType::F32)),
        metas: vec![ImageMeta::letterbox(Size::new(41, 23), Size::new(28, 20), Size::new(28, 20)).unwrap()],
        options: Options { mask_format: MaskFormat::Dense, ..Options::default() },
    };
    let (request, good) = (case.request().unwrap(), case.reference().images.remove(0));
    assert_eq!(good.rows.len(), 3, "one row is a query's second best: {:?}", good.rows);
    let judge = |answer: &ImageDetections| {
        let mut judged = Judged::default();
        oracle::check_rows(&request, 0, answer, &mut judged)?;
        let oracle = Oracle::new(&request, 0);
        for (idx, row) in answer.rows.iter().enumerate() {
            let grid = oracle::grid(&request, 0, row.query_idx as usize);
            oracle.check_mask(&grid, &answer.dense_mask(idx).unwrap().unwrap(), &mut judged)?;
        }
        assert_eq!((judged.selections, judged.coordinates, judged.open_pixels), (1, 12, 0));
        Ok::<_, String>(())
    };
    judge(&good).unwrap();
    type Damage = fn(&mut ImageDetections);
    let damages: [(&str, Damage); 9] = [
        ("flat indices", |a| a.rows.swap(0, 1)),
        ("flat indices", |a| a.rows.truncate(2)),
        ("class_id", |a| a.rows[1].class_id ^= 1),
        ("confidence", |a| a.rows[2].confidence = f32::from_bits(a.rows[2].confidence.to_bits() + 4)),
        ("xyxy left", |a| a.rows[0].xyxy[0] += 1.0),
        ("xyxy bottom", |a| a.rows[0].xyxy[3] -= 1.0),
        ("pixel", |a| flip(a, 0)),
        ("pixel", |a| flip(a, 41 * 23 - 1)),
        ("pixel", |a| match &mut a.masks {
            Masks::Dense(data) => data.rotate_left(41),
            _ => unreachable!("the case asks for dense masks"),
        }),
    ];
    fn flip(answer: &mut ImageDetections, pixel: usize) {
        if let Masks::Dense(data) = &mut answer.masks {
            data[pixel] ^= 1;
        }
    }
    for (name, damage) in damages {
        let mut bad = good.clone();
        damage(&mut bad);
        let text = judge(&bad).expect_err(name);
        assert!(text.contains(name), "{text} does not name {name}");
    }
}

/// The strategies reach what they promise, and the oracle judges nearly all of it.
#[test]
fn strategies_are_hostile_enough() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut judged = Judged::default();
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    let cases = 600;
    for _ in 0..cases {
        let case = requests().new_tree(&mut runner).unwrap().current();
        against_oracle(&case, &mut judged).unwrap_or_else(|text| panic!("{text}"));
        let answer = case.reference();
        let request = case.request().unwrap();
        let mut note = |name, is: bool| *seen.entry(name).or_default() += usize::from(is);
        note("empty batch", case.metas.is_empty());
        note("several images", case.metas.len() > 1);
        note("no masks", case.masks.is_none());
        note("no query", request.shape().num_queries == 0);
        note("no class", request.shape().num_classes == 0);
        note("over 64 queries", request.shape().num_queries > 64);
        note("over 64 classes", request.shape().num_classes > 64);
        for image in &answer.images {
            note("rows", !image.rows.is_empty());
            note("over 32 rows", image.rows.len() > 32);
            note("equal scores", image.rows.windows(2).any(|pair| pair[0].confidence == pair[1].confidence));
            note("several classes a query", has_double_query(image));
            note("NaN logits", image.health.nan_logits > 0);
            note("non-finite boxes", image.health.nonfinite_boxes > 0);
            note("non-finite mask logits", image.health.nonfinite_mask_logits > 0);
            note(
                "partly covered mask",
                image.rows.iter().any(|r| r.mask_area > 0 && u64::from(r.mask_area) < image.size.area()),
            );
            note("one pixel wide", image.size.width == 1);
            note("one pixel high", image.size.height == 1);
            note("over 128 wide", image.size.width > 128);
        }
        for (image, meta) in case.metas.iter().enumerate() {
            note("letterbox", meta.padding.left > 0 || meta.padding.top > 0);
            note("center crop", meta.padding.left < 0 || meta.padding.top < 0);
            note("odd pads", meta.padding.left != meta.padding.right);
            note("static crop", meta.content != meta.original);
            note(
                "static crop at the origin",
                meta.content != meta.original && meta.crop_offset.x + meta.crop_offset.y == 0,
            );
            note("two-step resize", meta.intermediate.is_some_and(|frame| frame != meta.network));
            if let Some(geometry) = request.mask_geometry(image) {
                let (w, h) = (i64::from(geometry.content.width), i64::from(geometry.content.height));
                note("no cell left", geometry.window.is_empty());
                note("reduced on both axes", geometry.window.width > w && geometry.window.height > h);
                note("reduced on one axis", (geometry.window.width > w) != (geometry.window.height > h));
                note("same size", (geometry.window.width, geometry.window.height) == (w, h));
                note("same on one axis", (geometry.window.width == w) != (geometry.window.height == h));
            }
        }
    }
    println!("{judged:?}\n{seen:#?}");
    for (name, count) in seen {
        assert!(count >= 2, "{name}: seen {count} times in {cases} cases");
    }
    assert!(judged.selections > 4 * judged.ambiguous_selections, "{judged:?}");
    assert!(judged.pixels > 3 * judged.open_pixels, "{judged:?}");
    assert!(judged.largest_share > 0.05, "the bound says nothing: {judged:?}");
}

fn has_double_query(image: &ImageDetections) -> bool {
    let mut queries: Vec<u32> = image.rows.iter().map(|row| row.query_idx).collect();
    queries.sort_unstable();
    queries.windows(2).any(|pair| pair[0] == pair[1])
}

/// Every row, mask and resized value of a case against the oracle.
fn against_oracle(case: &RequestCase, judged: &mut Judged) -> Result<(), String> {
    let (request, got) = (case.request().map_err(|error| error.to_string())?, case.reference());
    for (image, got) in got.images.iter().enumerate() {
        oracle::check_rows(&request, image, got, judged).map_err(|text| format!("images[{image}]: {text}"))?;
        oracle::check_health(&request, image, got).map_err(|text| format!("images[{image}]: {text}"))?;
        let Some(geometry) = request.mask_geometry(image) else { continue };
        if case.options.mask_format == MaskFormat::GridLogits {
            continue;
        }
        let oracle = Oracle::new(&request, image);
        let resizer = masks::Resizer::new(&request, geometry);
        for (idx, row) in got.rows.iter().enumerate() {
            let at = |text: String| format!("images[{image}].rows[{idx}]: {text}");
            let grid = oracle::grid(&request, image, row.query_idx as usize);
            let mask = got.dense_mask(idx).map_err(|error| error.to_string())?.ok_or("no mask")?;
            oracle.check_mask(&grid, &mask, judged).map_err(at)?;
            let Some(values) = oracle.values(&grid) else { continue };
            let (mask_h, mask_w) = request.shape().mask_grid.ok_or("no grid")?;
            let grid = masks::load_grid(&request, image, row.query_idx as usize);
            let resized = resizer.resize(&masks::crop_window(&grid, mask_w, mask_h, &geometry.window));
            for (i, &value) in resized.iter().enumerate() {
                let place = (i / values.values.ncols(), i % values.values.ncols());
                let (exact, bound) = (values.values[place], values.bound[place]);
                let off = (f64::from(value) - exact).abs();
                let same = f64::from(value) == exact || (value.is_nan() && exact.is_nan());
                if bound.is_finite() && bound > 0.0 && off > 0.0 {
                    judged.largest_share = judged.largest_share.max(off / bound);
                }
                if !(same || off <= bound || bound.is_infinite()) {
                    return Err(at(format!("value {value:e} at {place:?}, the oracle has {exact:e} +- {bound:e}")));
                }
            }
        }
    }
    Ok(())
}

/// Spec 3.1: ranks counted by comparing every pair of entries.
fn survivors_by_definition(request: &Request<'_>, image: usize) -> Vec<usize> {
    let pairs = request.shape().num_pairs();
    let scores: Vec<f32> = (0..pairs).map(|k| sigmoid(request.tensors().logits.at(image * pairs + k))).collect();
    let before = |a: usize, b: usize| match (scores[a].is_nan(), scores[b].is_nan()) {
        (true, true) => a < b,
        (true, false) => true,
        (false, true) => false,
        (false, false) => scores[a] > scores[b] || (scores[a] == scores[b] && a < b),
    };
    let rank = |k: usize| (0..pairs).filter(|&other| before(other, k)).count();
    let columns = request.columns();
    let survives = |&k: &usize| {
        let column = k % request.shape().num_classes;
        columns.class_ids[column] >= 0 && scores[k] > columns.thresholds[column]
    };
    let places = request.options().num_select.unwrap_or(request.shape().num_queries);
    let mut ranked: Vec<(usize, usize)> = (0..pairs).filter(survives).map(|k| (rank(k), k)).collect();
    ranked.sort_unstable();
    ranked
        .into_iter()
        .filter(|&(rank, _)| rank < places)
        .map(|(_, k)| k)
        .take(request.options().max_detections.unwrap_or(usize::MAX))
        .collect()
}

/// The case with caps moved so that no two equal scores lie on both sides of one.
fn without_ties_at_the_caps(mut case: RequestCase) -> RequestCase {
    let shape = case.logits.shape.clone();
    let pairs = shape[1] * shape[2];
    let scores = |image: usize| {
        let logits = case.logits.image(image).widened();
        let mut scores: Vec<f32> = logits.into_iter().map(sigmoid).collect();
        scores.sort_by(|a, b| match (a.is_nan(), b.is_nan()) {
            (false, false) => b.total_cmp(a),
            (a, b) => b.cmp(&a),
        });
        scores
    };
    let all: Vec<Vec<f32>> = (0..shape[0]).map(scores).collect();
    let tie = |at: usize| {
        all.iter().any(|s| at > 0 && at < s.len() && (s[at - 1] == s[at] || (s[at - 1].is_nan() && s[at].is_nan())))
    };
    let places = case.options.num_select.unwrap_or(shape[1]).min(pairs.max(1));
    case.options.num_select = Some((places..pairs).find(|&at| !tie(at)).unwrap_or(pairs.max(1)).max(1));
    if case.options.max_detections != Some(0) {
        case.options.max_detections = None;
    }
    case
}

/// `a * b + c` rounded once. The product is exact in f64; the sum is rounded to odd there, so that the second rounding
/// sees which side of a boundary the exact sum lies on.
fn fma_by_rounding_to_odd(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // The error of the sum, exactly (Knuth).
    let c_part = sum - product;
    let error = (product - (sum - c_part)) + (c - c_part);
    let is_even = sum.to_bits() & 1 == 0;
    let odd = if error != 0.0 && is_even && sum.is_finite() {
        let away = (error > 0.0) == (sum > 0.0);
        f64::from_bits(if away { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
    } else {
        sum
    };
    odd as f32
}

fn same_row(a: &rfdetr_post_core::DetectionRow, b: &rfdetr_post_core::DetectionRow) -> bool {
    let mut b = *b;
    let floats = a.xyxy.iter().zip(&b.xyxy).all(|(&x, &y)| same_bits(x, y)) && same_bits(a.confidence, b.confidence);
    (b.xyxy, b.confidence) = ([0.0; 4], 0.0);
    let a = rfdetr_post_core::DetectionRow { xyxy: [0.0; 4], confidence: 0.0, ..*a };
    floats && a == b
}

fn same_mask(a: Option<MaskRef<'_>>, b: Option<MaskRef<'_>>) -> bool {
    match (a, b) {
        (Some(MaskRef::GridLogits(a)), Some(MaskRef::GridLogits(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(&x, &y)| same_bits(x, y))
        }
        (a, b) => a == b,
    }
}

/// Counts of every magnitude.
fn any_count() -> impl Strategy<Value = u32> {
    (any::<u32>(), 0u32..32).prop_map(|(bits, shift)| bits >> shift)
}

/// Floats of every magnitude, ordinary ones mostly.
fn any_float() -> impl Strategy<Value = f32> {
    prop_oneof![4 => -8.0..8.0f32, 1 => -1e-38..1e-38f32, 2 => any::<u32>().prop_map(f32::from_bits)]
}

/// Logits of every magnitude, special ones among them.
fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        -20.0..20.0f32,
        -110.0..-80.0f32,
        any::<u32>().prop_map(f32::from_bits),
        Just(f32::NAN),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
        Just(-0.0),
    ]
}

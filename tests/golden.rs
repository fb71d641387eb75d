//! The reference, and the fast CPU path as the facade has it by default, against upstream's own answers, torch on the CPU,
//! and pycocotools. [`rfdetr_post_tests::golden`] says how they are compared.

use rfdetr_post::{Detections, Postprocessor};
use rfdetr_post_core::{
    detections::dense_from_counts,
    reference::{masks::area_and_box, rle},
};
use rfdetr_post_tests::{
    case::RequestCase,
    fixtures::{Fixture, coco_masks, names},
    golden::{PARTS, UPSTREAM, facade},
};

/// One test for each part and implementation.
macro_rules! judged {
    ($($module:ident $name:literal;)*) => {
        $(mod $module {
            use super::*;

            #[test]
            fn reference() {
                judge($name, Postprocessor::reference());
            }

            #[test]
            fn fast_cpu_path() {
                judge($name, Postprocessor::cpu());
            }
        })*

        #[test]
        fn every_part_is_judged() {
            assert_eq!(PARTS.map(|(name, _)| name), [$($name),*]);
        }
    };
}

judged! {
    upstream_dense_masks "dense";
    upstream_run_lengths "rle";
    upstream_detection_only "od";
    upstream_rf_detr "rfdetr";
    upstream_fused_detection "od_fused";
    upstream_sparse_run_lengths "triton";
    torch_cpu_roboflow "torch_cpu";
    torch_cpu_rf_detr "torch_cpu_rfdetr";
}

fn judge(name: &str, postprocessor: Postprocessor) {
    let (_, part) = PARTS.iter().find(|(part, _)| *part == name).unwrap();
    match part(&facade(postprocessor)).outcome() {
        Ok(text) => println!("{name}: {text}"),
        Err(differences) => panic!("{name}: {differences}"),
    }
}

#[test]
fn every_upstream_fixture_is_here() {
    assert_eq!(names("upstream"), UPSTREAM);
    for fixture in UPSTREAM.map(|name| Fixture::load("upstream", name)) {
        for reference in ["dense", "rle", "od", "rfdetr"] {
            assert!(fixture.has(reference), "{} has no {reference}", fixture.name);
        }
    }
}

/// The comparison must see what a wrong implementation does, and name it.
#[test]
fn wrong_answers_are_seen() {
    let right = facade(Postprocessor::reference());
    let damages: [(&str, Damage); 4] = [
        ("dense", |answer| answer.images.iter_mut().for_each(|image| image.rows.truncate(1))),
        ("rle", |answer| answer.images.truncate(1)),
        ("od", |answer| answer.images.iter_mut().flat_map(|image| &mut image.rows).for_each(|row| row.xyxy[1] += 1.0)),
        ("torch_cpu", |answer| {
            answer.images.iter_mut().flat_map(|image| &mut image.rows).for_each(|row| row.class_id += 1)
        }),
    ];
    for (name, damage) in damages {
        let (_, part) = PARTS.iter().find(|(part, _)| *part == name).unwrap();
        let wrong = |case: &RequestCase| {
            let mut answer = right(case);
            damage(&mut answer);
            answer
        };
        let differences = part(&wrong).outcome().unwrap_err();
        assert!(differences.contains(", expected "), "{name}: {differences}");
    }
}

type Damage = fn(&mut Detections);

#[test]
fn pycocotools_run_lengths() {
    let masks = coco_masks();
    assert_eq!(masks.len(), 112);
    for mask in &masks {
        let (name, width, height) = (&mask.name, mask.width, mask.height);
        assert_eq!(rle::encode_string(&mask.counts), mask.rle.as_bytes(), "{name}");
        assert_eq!(rle::decode_string(mask.rle.as_bytes()).expect("a good string"), mask.counts, "{name}");
        let dense = dense_from_counts(&mask.counts, width, height).expect("the counts fill the mask");
        assert_eq!(rle::encode_counts(&dense, width, height), mask.counts, "{name}");
        let [x, y, w, h] = mask.bbox;
        assert_eq!(area_and_box(&dense, width, height), (mask.area, [x, y, x + w, y + h]), "{name}");
        if let Some(bits) = mask.dense() {
            assert_eq!(dense, bits, "{name}");
        }
    }
}

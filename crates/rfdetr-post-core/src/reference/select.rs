//! Stage 1: the flat top-k over all (query, class) pairs, then class filter, threshold and cap (spec 3).

use alloc::vec::Vec;
use core::cmp::Ordering;

use crate::{packed::Health, request::Request, score::sigmoid};

/// A candidate past class filter and threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Survivor {
    /// The decoder slot.
    pub query_idx: usize,
    /// The logit column.
    pub class_idx: usize,
    /// The class id after remapping.
    pub class_id: i32,
    /// The score, in 0..=1.
    pub score: f32,
}

/// The survivors of one image, best first; counts its non-finite logits.
///
/// Order: score descending, then flat index ascending, so ties are repeatable.
/// Source: roboflow/inference 3bb973b5, `models/common/`; rf-detr 35ac6ab, `PostProcess.forward`. Torch's tie order is
/// arbitrary in places; ours is not.
pub fn select(request: &Request<'_>, image: usize, health: &mut Health) -> Vec<Survivor> {
    let shape = request.shape();
    let num_pairs = shape.num_pairs();
    let logits = &request.tensors().logits;
    let logit = |k: usize| logits.at(image * num_pairs + k);

    for k in 0..num_pairs {
        let x = logit(k);
        health.nan_logits += u32::from(x.is_nan());
        health.pos_inf_logits += u32::from(x == f32::INFINITY);
        health.neg_inf_logits += u32::from(x == f32::NEG_INFINITY);
    }

    // (a) The flat top-k over all columns, dropped ones and NaN included: they use up places.
    let scores: Vec<f32> = (0..num_pairs).map(|k| sigmoid(logit(k))).collect();
    let mut ranked: Vec<usize> = (0..num_pairs).collect();
    ranked.sort_by(|&a, &b| rank(scores[a], scores[b]).then(a.cmp(&b)));
    ranked.truncate(request.num_select());

    // (b) Class filter, (c) threshold, (d) cap. A NaN score is above no threshold.
    let columns = request.columns();
    let mut survivors = Vec::new();
    for k in ranked {
        let (query_idx, class_idx) = (k / shape.num_classes, k % shape.num_classes);
        let class_id = columns.class_ids[class_idx];
        if class_id >= 0 && scores[k] > columns.thresholds[class_idx] {
            survivors.push(Survivor { query_idx, class_idx, class_id, score: scores[k] });
        }
    }
    survivors.truncate(request.max_detections());
    survivors
}

/// NaN first, then larger scores.
fn rank(a: f32, b: f32) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => b.total_cmp(&a),
    }
}

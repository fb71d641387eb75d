//! Stage 1: selection. The reference ranks the scores of all pairs; here few pairs are ever looked at twice.
//!
//! ```text
//! boundary = min_logit(smallest threshold)            # exact: sigmoid(x) > t  <=>  x >= boundary
//! candidates = entries that are NaN or >= boundary    # one vectorized pass, which counts NaN and infinities too
//! if more candidates than places:                     # rare
//!     drop what does not reach the last place's score # partial selection on logits, then exact on scores
//! rank the rest
//! ```
//!
//! 1. An entry below the boundary passes no threshold, and ranks after every entry that does. So it neither survives
//!    nor takes the place of a survivor, and may be left out before the flat top-k.
//! 2. NaN entries rank first and never survive, so they only reduce the number of places.
//! 3. Ranking is by score, and distinct logits can share a score. So the partial selection finds the *score* of the
//!    last place and keeps every logit with at least that score; ties are then decided by index.
#![forbid(unsafe_code)]

use rfdetr_post_core::{
    Health, Request, TensorData,
    score::{min_logit, sigmoid},
};

use crate::{
    simd::{Isa, Kernel, LANES},
    widen::widen,
};

/// A candidate past class filter and threshold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Survivor {
    pub(crate) query_idx: u32,
    pub(crate) class_idx: u32,
    pub(crate) class_id: i32,
    pub(crate) score: f32,
}

/// Buffers that live from one image to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Logit (descending) and flat index of each candidate that is not NaN, as one sortable key.
    keys: Vec<u64>,
    survivors: Vec<Survivor>,
    /// The last boundary that was computed, and its threshold.
    boundary: Option<(u32, f32)>,
}

/// Maps floats to integers of the opposite order; NaN excluded.
#[inline(always)]
fn descending_from_f32(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { bits } else { !(bits | 1 << 31) }
}

#[inline(always)]
fn f32_from_descending(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key } else { !key & !(1 << 31) })
}

impl Scratch {
    /// The smallest logit that passes `threshold`; NaN if none does.
    fn boundary(&mut self, threshold: f32) -> f32 {
        match self.boundary {
            Some((bits, logit)) if bits == threshold.to_bits() => logit,
            _ => {
                let logit = min_logit(threshold);
                self.boundary = Some((threshold.to_bits(), logit));
                logit
            }
        }
    }
}

/// Finds the survivors of one image.
pub(crate) struct Select<'a, 'r> {
    pub(crate) request: &'a Request<'r>,
    pub(crate) image: usize,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) health: &'a mut Health,
}

impl<'a> Kernel for Select<'a, '_> {
    type Output = &'a [Survivor];

    /// The survivors, score descending, then flat index ascending.
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> &'a [Survivor] {
        let Self { request, image, scratch, health } = self;
        scratch.survivors.clear();
        let num_pairs = request.shape().num_pairs();
        if num_pairs == 0 {
            return &scratch.survivors;
        }
        let columns = request.columns();
        let boundary = scratch.boundary(columns.min_threshold);
        let num_nan = gather(
            isa,
            request.tensors().logits.data(),
            image * num_pairs,
            num_pairs,
            boundary,
            health,
            &mut scratch.keys,
        );

        let keys = &mut scratch.keys;
        let places = request.num_select().saturating_sub(num_nan);
        let cut = keys.len() > places;
        if cut {
            keep_best(keys, places);
        }
        let num_classes = request.shape().num_classes;
        for &key in &*keys {
            let (rank, k) = ((key >> 32) as u32, key as u32 as usize);
            let (query_idx, class_idx) = (k / num_classes, k % num_classes);
            let class_id = columns.class_ids[class_idx];
            // What is not kept has its place nevertheless; after the cut, who has a place is settled.
            if class_id >= 0 {
                let score = if cut { f32::from_bits(!rank) } else { sigmoid(f32_from_descending(rank)) };
                if score > columns.thresholds[class_idx] {
                    let (query_idx, class_idx) = (query_idx as u32, class_idx as u32);
                    scratch.survivors.push(Survivor { query_idx, class_idx, class_id, score });
                }
            }
        }
        // Scores are not negative, so their bits are ordered as they are.
        scratch.survivors.sort_unstable_by_key(|s| {
            let k = u64::from(s.query_idx) * num_classes as u64 + u64::from(s.class_idx);
            u64::from(!s.score.to_bits()) << 32 | k
        });
        scratch.survivors.truncate(request.max_detections());
        &scratch.survivors
    }
}

/// Leaves the `places` best by score, then index, as keys of score (descending) and index. There are more keys than
/// places.
#[inline(always)]
fn keep_best(keys: &mut Vec<u64>, places: usize) {
    let Some(last) = places.checked_sub(1) else { return keys.clear() };
    let (_, &mut key, _) = keys.select_nth_unstable(last);
    let last_score = sigmoid(f32_from_descending((key >> 32) as u32));
    // Everything that reaches this score: more than a smaller float.
    if last_score > 0.0 {
        let least = min_logit(last_score.next_down());
        keys.retain(|&key| f32_from_descending((key >> 32) as u32) >= least);
    }
    for key in keys.iter_mut() {
        let score = sigmoid(f32_from_descending((*key >> 32) as u32));
        *key = u64::from(!score.to_bits()) << 32 | *key & u64::from(u32::MAX);
    }
    keys.sort_unstable();
    keys.truncate(places);
}

/// Collects the keys of all entries that are at least `boundary`, counts non-finite ones, and returns the number of
/// NaN.
#[inline(always)]
fn gather<I: Isa>(
    isa: I,
    data: TensorData<'_>,
    start: usize,
    len: usize,
    boundary: f32,
    health: &mut Health,
    keys: &mut Vec<u64>,
) -> usize {
    keys.clear();
    // With a boundary that nothing reaches, only non-finite entries are notable.
    let notable = if boundary.is_nan() { f32::INFINITY } else { boundary };
    let mut visitor = Visitor { isa, boundary, notable, health, keys };
    let mut chunk = [0.0; LANES];
    let whole = len / LANES * LANES;
    match data {
        TensorData::F32(data) => {
            for (i, values) in data[start..start + whole].as_chunks::<LANES>().0.iter().enumerate() {
                visitor.visit(values, i * LANES, u32::MAX);
            }
        }
        _ => {
            for first in (0..whole).step_by(LANES) {
                widen(data, start + first, &mut chunk);
                visitor.visit(&chunk, first, u32::MAX);
            }
        }
    }
    if whole < len {
        widen(data, start + whole, &mut chunk[..len - whole]);
        visitor.visit(&chunk, whole, (1 << (len - whole)) - 1);
    }
    health.nan_logits as usize
}

struct Visitor<'a, I> {
    isa: I,
    boundary: f32,
    notable: f32,
    health: &'a mut Health,
    keys: &'a mut Vec<u64>,
}

impl<I: Isa> Visitor<'_, I> {
    /// Looks at the lanes of a vector whose first entry has the index `first`.
    #[inline(always)]
    fn visit(&mut self, values: &[f32; LANES], first: usize, lanes: u32) {
        let mut bits = self.isa.notable_mask(values, self.notable) & lanes;
        while bits != 0 {
            let lane = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let x = values[lane % LANES];
            if x.is_nan() {
                self.health.nan_logits += 1;
                continue;
            }
            self.health.pos_inf_logits += u32::from(x == f32::INFINITY);
            self.health.neg_inf_logits += u32::from(x == f32::NEG_INFINITY);
            if x >= self.boundary {
                self.keys.push(u64::from(descending_from_f32(x)) << 32 | (first + lane) as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descending_keys_round_trip_and_order() {
        let sorted = [f32::INFINITY, 3.0, 1e-45, 0.0, -0.0, -1.5, f32::NEG_INFINITY];
        for pair in sorted.windows(2) {
            assert!(descending_from_f32(pair[0]) < descending_from_f32(pair[1]), "{pair:?}");
        }
        for x in sorted {
            assert_eq!(f32_from_descending(descending_from_f32(x)).to_bits(), x.to_bits());
        }
    }
}

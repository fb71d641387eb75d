//! Stage 1: the flat top-k over all (query, class) pairs of one image, then class filter, threshold and cap.
//!
//! In short:
//!
//! ```text
//! hits = pairs whose score is above the smallest threshold, and NaN     (one compare a logit, no sigmoid)
//! if there are more than fit: the num_select best of them by radix select
//! sort by (score descending, index ascending), NaN first; keep num_select
//! drop NaN, dropped classes, and what is not above its own threshold; cap; decode boxes; write rows
//! ```
//!
//! Why this equals the flat top-k over *all* pairs: a pair that is no hit scores less than every hit and could only take
//! a place behind all of them, so among the first `num_select` the hits are the same. Pairs that are no hits are no
//! survivors either.
//!
//! Order never depends on the timing of atomics: hits are gathered in any order, but their keys are distinct, and rank
//! is computed from the keys.

use rfdetr_post_core::packed::{
    DONE_SHIFT, DTYPE_F32, DetectionRow, FLAG_SELECT_ONLY, FLAG_TORCH_SCORE, INLINE_IMAGES, ImageHeader, MAX_SELECT,
    NO_QUERY, ResultHeader, SelectArgs,
    shared::{COUNTERS, select as layout},
};

use crate::{
    boxes,
    inputs::{load_element, load_record},
    scan::{div_ceil, div_rem, warp_inclusive_add},
    score,
    simt::{
        fence,
        global::Global,
        math,
        params::Params,
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// Fours of logits that a thread has in flight.
const UNROLL: u32 = 7;

/// Words of the counters.
const LIST_LEN: u32 = 0;
const HEALTH: u32 = 1;
const DIGIT: u32 = 6;
const ABOVE: u32 = 7;
const IN_DIGIT: u32 = 8;
const FOUND: u32 = 9;
const NUM_COUNTERS: u32 = 10;

/// The bit of a hit's key that says that it is above its own threshold and of a class that is kept: indices are below 2^31, so
/// the key's inverse of one has this bit.
const IS_SURVIVOR: u64 = 1 << 31;

/// Rank order as an integer: NaN highest, then larger scores, then smaller indices. Distinct for distinct pairs.
#[inline(always)]
fn rank_key(score: f32, k: u32) -> u64 {
    let score = if score.is_nan() { u32::MAX } else { score.to_bits() };
    (score as u64) << 32 | !k as u64
}

/// The logits of one image, and which of them are hits.
struct Candidates {
    logits_at: u64,
    dtype: u32,
    first: usize,
    num_pairs: u32,
    uses_torch: bool,
    /// Logits can be loaded four at a time.
    is_vector: bool,
    /// Finite logits below this are no hits.
    low: f32,
    min_logit: f32,
    min_threshold: f32,
}

impl Candidates {
    /// The key of a hit, or 0: no hit has that key, whose low half is the inverse of an index below 2^31.
    #[inline(always)]
    fn hit_key(&self, logit: f32, k: u32) -> u64 {
        let is_hit = if self.uses_torch {
            let score = score::torch_sigmoid(logit);
            if score > self.min_threshold || logit.is_nan() {
                return rank_key(score, k);
            }
            false
        } else {
            self.is_above(logit)
        };
        if is_hit { rank_key(score::portable_sigmoid(logit), k) } else { 0 }
    }

    /// Whether a logit is a hit by its portable score.
    #[inline(always)]
    fn is_above(&self, logit: f32) -> bool {
        logit >= self.min_logit || logit.is_nan()
    }

    /// Whether a logit is no hit and is counted nowhere. False for NaN, and always if the bound is NaN or minus infinity.
    #[inline(always)]
    fn is_dull(&self, logit: f32) -> bool {
        (logit >= f32::MIN) & (logit < self.low)
    }

    #[inline(always)]
    fn are_dull(&self, [a, b, c, d]: [f32; 4]) -> bool {
        // Without branches, behind which the loads of other logits would be put off.
        self.is_dull(a) & self.is_dull(b) & self.is_dull(c) & self.is_dull(d)
    }

    /// Four logits from pair `4 * v` on; minus one behind the last pair.
    ///
    /// # Safety
    /// As [`select`].
    #[inline(always)]
    unsafe fn load_four(&self, v: u32) -> [f32; 4] {
        let k = 4 * v;
        // SAFETY: the pairs are of this image.
        unsafe {
            if self.is_vector {
                return self.load_vector(v);
            }
            let load = |k: u32| {
                if k < self.num_pairs {
                    load_element(self.logits_at, self.dtype, self.first + k as usize)
                } else {
                    -1.0
                }
            };
            [load(k), load(k + 1), load(k + 2), load(k + 3)]
        }
    }

    /// [`load_four`](Self::load_four) of a vector.
    ///
    /// # Safety
    /// As [`select`]; the logits are a vector.
    #[inline(always)]
    unsafe fn load_vector(&self, v: u32) -> [f32; 4] {
        if 4 * v >= self.num_pairs {
            return [-1.0; 4];
        }
        // SAFETY: the pairs are of this image, whose number is a multiple of four.
        unsafe { Global::<[f32; 4]>::from_address(self.logits_at + 4 * self.first as u64).load_nc(v as usize) }
    }

    /// Which of [`UNROLL`] fours, from four `v` on and a block's threads apart, hold a logit that may be a hit or is counted.
    ///
    /// # Safety
    /// As [`select`].
    #[inline(always)]
    unsafe fn interesting_fours(&self, v: u32) -> u32 {
        let block = thread::block_dim_x();
        if self.is_vector {
            let num_fours = self.num_pairs / 4;
            // All loads are issued before the first is used: behind the last four it is read again, because a branch around
            // a load would have it waited for. Written out: an array would have to be indexed.
            // SAFETY: the caller vouches for the logits.
            let load = |i: u32| unsafe {
                Global::<[f32; 4]>::from_address(self.logits_at + 4 * self.first as u64)
                    .load_nc_early((v + i * block).min(num_fours - 1) as usize)
            };
            let (x0, x1, x2, x3, x4, x5, x6) = (load(0), load(1), load(2), load(3), load(4), load(5), load(6));
            let four = |x: [f32; 4], i: u32| (!self.are_dull(x) as u32) << i;
            let fours = four(x0, 0) | four(x1, 1) | four(x2, 2) | four(x3, 3) | four(x4, 4) | four(x5, 5) | four(x6, 6);
            // The fours that exist.
            // SAFETY: a block has threads.
            let num = unsafe { div_ceil(num_fours.saturating_sub(v), block) };
            return if num < UNROLL { fours & ((1 << num) - 1) } else { fours };
        }
        let (mut fours, mut i) = (0, 0);
        while i < math::opaque(UNROLL) {
            // SAFETY: as above.
            fours |= (!self.are_dull(unsafe { self.load_four(v + i * block) }) as u32) << i;
            i += 1;
        }
        fours
    }

    /// Calls `visit(k, logits)` for every four that holds a logit that may be a hit or is counted, with the index of its
    /// first pair. Lanes are on their own.
    ///
    /// Nearly always nobody has anything. What somebody has is loaded again: the code to pick it out of registers would be
    /// larger than everything else here, and a kernel that runs once waits for its code.
    ///
    /// # Safety
    /// The logits are those that the launcher vouched for.
    #[inline(always)]
    unsafe fn for_each_four(&self, mut visit: impl FnMut(u32, [f32; 4])) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        let num_fours = self.num_pairs.div_ceil(4);
        let mut base = 0;
        while base < num_fours {
            let v = base + tid;
            // SAFETY: the caller vouches for the logits.
            unsafe {
                let mut fours = self.interesting_fours(v);
                while fours != 0 {
                    let four = v + fours.trailing_zeros() * block;
                    fours &= fours - 1;
                    visit(4 * four, self.load_four(four));
                }
            }
            base += UNROLL * block;
        }
    }

    /// Calls `visit(k, logit, exists)` for every pair that may be a hit, and for some others, in all lanes of a warp
    /// together.
    ///
    /// # Safety
    /// The logits are those that the launcher vouched for.
    #[inline(always)]
    unsafe fn for_each(&self, mut visit: impl FnMut(u32, f32, bool)) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        let num_fours = self.num_pairs.div_ceil(4);
        let mut base = 0;
        while base < num_fours {
            let v = base + tid;
            // SAFETY: the caller vouches for the logits.
            let mut fours = unsafe { self.interesting_fours(v) };
            while warp::warp_vote_any(FULL_MASK, fours != 0) {
                let has_four = fours != 0;
                let four = v + fours.trailing_zeros() % 32 * block;
                fours &= fours.wrapping_sub(1);
                // SAFETY: as above.
                let [a, b, c, d] = if has_four { unsafe { self.load_four(four) } } else { [-1.0; 4] };
                let mut next = 0;
                while next < 4 {
                    // Not known to the compiler, which would make this body four times.
                    let j = math::opaque(next);
                    next = j + 1;
                    let logit = if j < 2 { if j == 0 { a } else { b } } else { if j == 2 { c } else { d } };
                    visit(4 * four + j, logit, has_four && 4 * four + j < self.num_pairs);
                }
            }
            base += UNROLL * block;
        }
    }
}

/// Selects, decodes and writes the rows of one image.
///
/// Callers: every thread of one block an image.
///
/// # Safety
/// `args` holds what [`SelectArgs`] promises, the block has `layout::BYTES` of shared memory, and `image` is below the
/// batch.
#[inline(always)]
pub unsafe fn select(args: &SelectArgs, params: Params, image: u32) {
    let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
    // SAFETY: the plan gave this kernel the layout's shared memory.
    let (counters, histogram, list, sorted, columns) = unsafe {
        (
            Shared::<u32>::at(COUNTERS),
            Shared::<u32>::at(layout::HISTOGRAM),
            Shared::<u64>::at(layout::LIST),
            Shared::<u64>::at(layout::SORTED),
            Shared::<[u32; 2]>::at(layout::COLUMNS),
        )
    };
    let num_pairs = args.num_queries * args.num_classes;
    let first = image as usize * num_pairs as usize;
    let candidates = Candidates {
        logits_at: args.logits_at,
        dtype: args.logits_dtype,
        first,
        is_vector: args.logits_dtype == DTYPE_F32
            && num_pairs.is_multiple_of(4)
            && (args.logits_at + 4 * first as u64).is_multiple_of(16),
        num_pairs,
        uses_torch: args.flags & FLAG_TORCH_SCORE != 0,
        low: if args.flags & FLAG_TORCH_SCORE != 0 { f32::NEG_INFINITY } else { args.min_logit },
        min_logit: args.min_logit,
        min_threshold: args.min_threshold,
    };
    if tid < NUM_COUNTERS {
        // SAFETY: inside the counters.
        unsafe { counters.store(tid, 0) };
    }
    thread::sync_threads();

    // What survivors need is on its way before the logits are asked for, and is put down after them.
    // SAFETY: the launcher vouches for tensors and columns.
    let (cxcywh, column) = unsafe { (load_box(args, image, tid), load_column(args, tid)) };
    let mut last = 0;
    let mut is_stored = false;
    let num_hits = loop {
        // SAFETY: as above. `num_select` is at most `MAX_SELECT`, so what the radix select leaves fits the list.
        unsafe {
            gather_hits(&candidates, last, counters, list);
            if !is_stored {
                store_boxes(args, image, cxcywh, counters);
                store_columns(args, column);
                is_stored = true;
            }
            thread::sync_threads();
            let num_hits = counters.load(LIST_LEN);
            if num_hits <= MAX_SELECT {
                break num_hits;
            }
            last = radix_select(&candidates, args.num_select, counters, histogram);
            thread::sync_threads();
            if tid == 0 {
                counters.store(LIST_LEN, 0);
            }
            thread::sync_threads();
        }
    };

    // What was listed are logits, but for those of a radix select.
    // SAFETY: `num_hits` entries were listed, at most `MAX_SELECT`; ranks and slots are distinct and below `num_hits`; barriers
    // separate the phases.
    unsafe {
        let mut i = tid;
        while i < num_hits {
            let mut key = list.load(i);
            if last == 0 {
                key = candidates.hit_key(f32::from_bits((key >> 32) as u32), !(key as u32));
            }
            let (_, class_idx) = div_rem(!(key as u32), args.num_classes);
            let [class_id, threshold] = columns.load(class_idx);
            // A NaN's key is a NaN, which is above no threshold.
            let is_survivor = class_id as i32 >= 0 && f32::from_bits((key >> 32) as u32) > f32::from_bits(threshold);
            list.store(i, if is_survivor { key } else { key & !IS_SURVIVOR });
            i += block;
        }
        thread::sync_threads();
        // A hit's rank is the number of larger keys, and a survivor's slot that of larger keys of survivors: those have smaller
        // ranks, too.
        let lane = warp::lane_id();
        let mut first = tid - lane;
        while first < num_hits {
            let mut is_found = false;
            if first + lane < num_hits {
                let entry = list.load(first + lane);
                let key = entry | IS_SURVIVOR;
                let (mut rank, mut slot, mut other) = (0, 0, 0);
                while other < num_hits {
                    let entry = list.load(other);
                    let is_larger = entry | IS_SURVIVOR > key;
                    rank += is_larger as u32;
                    slot += (is_larger && entry & IS_SURVIVOR != 0) as u32;
                    other += 1;
                }
                is_found = entry & IS_SURVIVOR != 0 && rank < args.num_select;
                if is_found {
                    sorted.store(slot, key);
                }
            }
            let found = warp::warp_vote_ballot(FULL_MASK, is_found);
            if lane == 0 && found != 0 {
                counters.fetch_add(FOUND, found.count_ones());
            }
            first += block;
        }
        thread::sync_threads();
    }

    // SAFETY: counted before the barrier.
    let found = unsafe { counters.load(FOUND) }.min(args.max_detections);
    // Four threads a row.
    let mut i = tid;
    while i < 4 * found {
        // SAFETY: a survivor for each row; `slot` is one of the image's rows (P2).
        unsafe { write_row(args, params, image, i / 4, i % 4, sorted.load(i / 4)) };
        i += block;
    }

    if tid == 0 {
        // SAFETY: counted before the barriers above; the header is this block's.
        unsafe {
            let health = [0, 1, 2, 3].map(|i| counters.load(HEALTH + i));
            let header =
                Global::<[u32; 4]>::from_address(args.headers_at + image as u64 * size_of::<ImageHeader>() as u64);
            header.store(0, [found, 0, health[0], health[1]]);
            header.store(1, [health[2], health[3], 0, 0]);
        }
    }
    if args.flags & FLAG_SELECT_ONLY != 0 {
        // SAFETY: the result is the launcher's, and every block of the batch comes here once.
        unsafe { publish_when_last(args, found) };
    } else {
        let queries = Global::<u32>::from_address(args.queries_at);
        let mut slot = found + tid;
        while slot < args.max_detections {
            // SAFETY: a word a row.
            unsafe { queries.store((image * args.max_detections + slot) as usize, NO_QUERY) };
            slot += block;
        }
    }
}

/// The box of a query; zeros behind the last.
///
/// # Safety
/// As [`select`].
#[inline(always)]
unsafe fn load_box(args: &SelectArgs, image: u32, query_idx: u32) -> [f32; 4] {
    if query_idx >= args.num_queries {
        return [0.0; 4];
    }
    let query = image as usize * args.num_queries as usize + query_idx as usize;
    // SAFETY: a query of this image.
    unsafe {
        if args.boxes_dtype == DTYPE_F32 && args.boxes_at.is_multiple_of(16) {
            return Global::<[f32; 4]>::from_address(args.boxes_at).load_nc(query);
        }
        [0, 1, 2, 3].map(|i| load_element(args.boxes_at, args.boxes_dtype, 4 * query + i))
    }
}

/// Class id and threshold of a column; zeros behind the last.
///
/// # Safety
/// As [`select`].
#[inline(always)]
unsafe fn load_column(args: &SelectArgs, class_idx: u32) -> [u32; 2] {
    if class_idx >= args.num_classes {
        return [0; 2];
    }
    // SAFETY: one entry a column.
    unsafe { Global::<[u32; 2]>::from_address(args.columns_at).load_nc(class_idx as usize) }
}

/// Puts the columns into shared memory: the thread's first, and those that are left.
///
/// # Safety
/// As [`select`].
#[inline(always)]
unsafe fn store_columns(args: &SelectArgs, first: [u32; 2]) {
    let mut column = first;
    let mut class_idx = thread::thread_idx_x();
    while class_idx < args.num_classes {
        // SAFETY: one entry a column.
        unsafe {
            Shared::<[u32; 2]>::at(layout::COLUMNS).store(class_idx, column);
            class_idx += thread::block_dim_x();
            column = load_column(args, class_idx);
        }
    }
}

/// Puts the boxes into shared memory, the thread's first and those that are left, and counts coordinates that are not
/// finite.
///
/// # Safety
/// As [`select`].
#[inline(always)]
unsafe fn store_boxes(args: &SelectArgs, image: u32, first: [f32; 4], counters: Shared<u32>) {
    let mut nonfinite = 0;
    let mut cxcywh = first;
    let mut query_idx = thread::thread_idx_x();
    while query_idx < args.num_queries {
        let [cx, cy, w, h] = cxcywh;
        let count = |x: f32| !x.is_finite() as u32;
        nonfinite += count(cx) + count(cy) + count(w) + count(h);
        // SAFETY: one entry a query.
        unsafe {
            Shared::<[f32; 4]>::at(layout::BOXES).store(query_idx, cxcywh);
            query_idx += thread::block_dim_x();
            cxcywh = load_box(args, image, query_idx);
        }
    }
    if nonfinite > 0 {
        // SAFETY: inside the counters.
        unsafe { counters.fetch_add(HEALTH + 3, nonfinite) };
    }
}

/// Lists the keys of all hits that are at least `last`, as far as they fit, and counts them. With `last` 0 these are all
/// hits, logit and index of each in place of the key, and logits that are not finite are counted too.
///
/// # Safety
/// As [`select`].
#[inline(always)]
unsafe fn gather_hits(candidates: &Candidates, last: u64, counters: Shared<u32>, list: Shared<u64>) {
    let (mut nan, mut pos_inf, mut neg_inf) = (0, 0, 0);
    // SAFETY: the caller vouches for the logits; slots beyond the list are not written.
    unsafe {
        let needs_key = last != 0 || candidates.uses_torch;
        candidates.for_each_four(|k, [a, b, c, d]| {
            let exists = |i: u32| k + i < candidates.num_pairs;
            let entry = |i: u32, logit: f32| {
                let key = if exists(i) { candidates.hit_key(logit, k + i) } else { 0 };
                if key == 0 || key < last {
                    0
                } else if last != 0 {
                    key
                } else {
                    (logit.to_bits() as u64) << 32 | !(k + i) as u64
                }
            };
            let count = |i: u32, logit: f32| exists(i) && !logit.is_finite();
            if count(0, a) || count(1, b) || count(2, c) || count(3, d) {
                let sum = |is: fn(f32) -> bool| {
                    (exists(0) && is(a)) as u32
                        + (exists(1) && is(b)) as u32
                        + (exists(2) && is(c)) as u32
                        + (exists(3) && is(d)) as u32
                };
                nan += sum(f32::is_nan);
                pos_inf += sum(|x| x == f32::INFINITY);
                neg_inf += sum(|x| x == f32::NEG_INFINITY);
            }
            if math::opaque(needs_key as u32) == 0 {
                // Listed with one count: the logits now, their keys later.
                let hit = |i: u32, logit: f32| ((exists(i) && candidates.is_above(logit)) as u32) << i;
                let hits = hit(0, a) | hit(1, b) | hit(2, c) | hit(3, d);
                if hits != 0 {
                    let slot = counters.fetch_add(LIST_LEN, hits.count_ones());
                    let list = |i: u32, logit: f32| {
                        let slot = slot + (hits & ((1 << i) - 1)).count_ones();
                        if hits >> i & 1 != 0 && slot < MAX_SELECT {
                            list.store(slot, (logit.to_bits() as u64) << 32 | !(k + i) as u64);
                        }
                    };
                    list(0, a);
                    list(1, b);
                    list(2, c);
                    list(3, d);
                }
                return;
            }
            let (mut rest, mut i) = ([a, b, c, d], 0);
            while i < 4 {
                // One body for the four, which move up.
                let key = entry(i, rest[0]);
                if key != 0 {
                    let slot = counters.fetch_add(LIST_LEN, 1);
                    if slot < MAX_SELECT {
                        list.store(slot, key);
                    }
                }
                rest = [rest[1], rest[2], rest[3], 0.0];
                i = math::opaque(i) + 1;
            }
        });
        if last == 0 && nan | pos_inf | neg_inf > 0 {
            counters.fetch_add(HEALTH, nan);
            counters.fetch_add(HEALTH + 1, pos_inf);
            counters.fetch_add(HEALTH + 2, neg_inf);
        }
    }
}

/// The smallest key of the `num_select` best hits, its unneeded low bits cleared. Exact: digits of 8 bits from the top.
///
/// Callers: every thread of the block; valid in all threads. Needs more hits than `num_select`.
///
/// # Safety
/// As [`select`].
#[inline(always)]
unsafe fn radix_select(candidates: &Candidates, num_select: u32, counters: Shared<u32>, histogram: Shared<u32>) -> u64 {
    let (tid, lane) = (thread::thread_idx_x(), warp::lane_id());
    let mut prefix = 0;
    let mut remaining = num_select;
    let mut shift = 56;
    loop {
        let mut bin = tid;
        while bin < 256 {
            // SAFETY: the histogram has 256 words.
            unsafe { histogram.store(bin, 0) };
            bin += thread::block_dim_x();
        }
        thread::sync_threads();
        // SAFETY: the caller vouches for the logits; digits are below 256.
        unsafe {
            candidates.for_each(|k, logit, exists| {
                let mut digit = 0;
                let mut counts = false;
                if exists {
                    let key = candidates.hit_key(logit, k);
                    counts = key != 0 && (shift == 56 || (key ^ prefix) >> (shift + 8) == 0);
                    digit = (key >> shift) as u32 & 255;
                }
                // One atomic for each distinct digit of the warp: leading digits are nearly all the same.
                let mut pending = warp::warp_vote_ballot(FULL_MASK, counts);
                while pending != 0 {
                    let leader = pending.trailing_zeros();
                    let same_digit = digit == warp::warp_shuffle_idx(FULL_MASK, digit, leader);
                    let same = warp::warp_vote_ballot(FULL_MASK, counts && same_digit);
                    if lane == leader {
                        histogram.fetch_add(digit, same.count_ones());
                    }
                    pending &= !same;
                }
            });
        }
        thread::sync_threads();
        if tid < 32 {
            // Lane 0 holds the eight highest digits.
            let first = 255 - 8 * lane;
            let mut sum = 0;
            let mut i = 0;
            while i < 8 {
                // SAFETY: `first - i` is below 256.
                sum += unsafe { histogram.load(first - i) };
                i += 1;
            }
            let inclusive = warp_inclusive_add(sum);
            let mut above = inclusive - sum;
            if above < remaining && remaining <= inclusive {
                let mut digit = first;
                // SAFETY: the loop ends inside this lane's eight digits, because their sum reaches `remaining`.
                unsafe {
                    let mut count = histogram.load(digit);
                    while above + count < remaining {
                        above += count;
                        digit -= 1;
                        count = histogram.load(digit);
                    }
                    counters.store(DIGIT, digit);
                    counters.store(ABOVE, above);
                    counters.store(IN_DIGIT, count);
                }
            }
        }
        thread::sync_threads();
        // SAFETY: written by the one lane in whose digits the last place falls, before the barrier.
        let (digit, above, in_digit) = unsafe { (counters.load(DIGIT), counters.load(ABOVE), counters.load(IN_DIGIT)) };
        prefix |= (digit as u64) << shift;
        remaining -= above;
        if in_digit == remaining || shift == 0 {
            return prefix;
        }
        shift -= 8;
        thread::sync_threads();
    }
}

/// Writes one word of each quarter of a detection's row: coordinate `i` of the box, and so on. The mask fields are the
/// neutral values of the mask kernels' sums.
///
/// # Safety
/// As [`select`]; `slot` is below `max_detections`, `i` below 4, and `key` a survivor's.
#[inline(always)]
unsafe fn write_row(args: &SelectArgs, params: Params, image: u32, slot: u32, i: u32, key: u64) {
    let records_offset = core::mem::offset_of!(SelectArgs, records) as u32;
    // SAFETY: the key's pair is one of this image, and the row is one of its rows.
    unsafe {
        let (query_idx, class_idx) = div_rem(!(key as u32), args.num_classes);
        let cxcywh = Shared::<[f32; 4]>::at(layout::BOXES).load(query_idx);
        let [class_id, _] = Shared::<[u32; 2]>::at(layout::COLUMNS).load(class_idx);
        let is_inline = args.batch as usize <= INLINE_IMAGES;
        let record = load_record(is_inline, params, records_offset, args.records_at, image);
        let coordinate = boxes::decode(cxcywh, &record, args.flags, i);
        let pick = |words: [u32; 4]| {
            let [a, b, c, d] = words;
            if i < 2 { if i == 0 { a } else { b } } else { if i == 2 { c } else { d } }
        };
        let slot = image as usize * args.max_detections as usize + slot as usize;
        let row = Global::<u32>::from_address(args.rows_at + (slot * size_of::<DetectionRow>()) as u64);
        let word = i as usize;
        row.store(word, coordinate.to_bits());
        row.store(4 + word, pick([(key >> 32) as u32, class_id, query_idx, class_idx]));
        let has_masks = args.flags & FLAG_SELECT_ONLY == 0;
        row.store(8 + word, if has_masks && i < 2 { u32::MAX } else { 0 });
        row.store(12 + word, 0);
        if has_masks && i == 0 {
            Global::<u32>::from_address(args.queries_at).store(slot, query_idx);
            Global::<u32>::from_address(args.counters_at).store(slot, 0);
        }
    }
}

/// The last block of the batch to come here publishes the result.
///
/// # Safety
/// As [`select`]; every block of the batch calls this once, when its rows are written.
#[inline(always)]
unsafe fn publish_when_last(args: &SelectArgs, num_detections: u32) {
    // Orders the block's writes before the fences below.
    thread::sync_threads();
    if thread::thread_idx_x() > 0 {
        return;
    }
    // SAFETY: `done` is zero between launches, and each of `batch` blocks adds one and its detections.
    unsafe {
        let mut total = num_detections;
        if args.batch > 1 {
            let done = Global::<u32>::from_address(args.done_at);
            let before = done.fetch_add_acq_rel(0, 1 | num_detections << DONE_SHIFT);
            if before & ((1 << DONE_SHIFT) - 1) != args.batch - 1 {
                return;
            }
            done.store(0, 0);
            total += before >> DONE_SHIFT;
        }
        publish(args.result_at, args.sequence, args.batch, total);
    }
}

/// Writes the result's header, its sequence number last.
///
/// # Safety
/// `result_at` is a [`ResultHeader`]; everything else of the result was written by this thread, or before a barrier of its
/// block, or before a fence and an atomic that it has read.
#[inline(always)]
pub unsafe fn publish(result_at: u64, sequence: u32, num_images: u32, num_detections: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe {
        let result = Global::<u32>::from_address(result_at);
        result.store(core::mem::offset_of!(ResultHeader, num_images) / 4, num_images);
        result.store(core::mem::offset_of!(ResultHeader, num_detections) / 4, num_detections);
        result.store(core::mem::offset_of!(ResultHeader, reserved) / 4, 0);
        // The one fence for all of it: each costs a round trip to the host.
        fence::system();
        result.store_volatile(core::mem::offset_of!(ResultHeader, sequence) / 4, sequence);
    }
}

//! Stage 1: the flat top-k over all (query, class) pairs of one image, then class filter, threshold and cap.
//!
//! In short:
//!
//! ```text
//! fours = aligned fours of logits of which one may be a hit              (two compares a logit, no sigmoid)
//! hits  = their pairs whose score is above the smallest threshold, and NaN
//! if there are more than fit: the num_select best of them by radix select
//! rank  = larger keys: score descending, index ascending, NaN first; keep num_select
//! drop NaN, dropped classes, and what is not above its own threshold; cap; decode boxes; write rows
//! ```
//!
//! Each step spreads what the one before left over all threads: a block has one request's few hits, and waits for the thread
//! that has most of them.
//!
//! Why this equals the flat top-k over *all* pairs: a pair that is no hit scores less than every hit and could only take
//! a place behind all of them, so among the first `num_select` the hits are the same. Pairs that are no hits are no
//! survivors either.
//!
//! Order never depends on the timing of atomics: hits are gathered in any order, but their keys are distinct, and rank
//! is computed from the keys.

use rfdetr_post_core::packed::{
    DTYPE_F16, DTYPE_F32, EARLY_ROW_WORDS, FLAG_SELECT_ONLY, FLAG_TORCH_SCORE, HEADER_WORDS, INLINE_IMAGES,
    ImageHeader, MAX_SELECT, NO_QUERY, PackedRow, SelectArgs,
    shared::{COUNTERS, select as layout},
};

use crate::{
    boxes,
    flags::block_set_flag,
    inputs::{load_element, load_record},
    scan::{div_ceil, warp_inclusive_add},
    score,
    simt::{
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

/// Words of the counters. The first are those of the header, in its order, some of which stay zero.
const FOUND: u32 = 0;
const HEALTH: u32 = 1;
const LIST_LEN: u32 = HEADER_WORDS;
const DIGIT: u32 = LIST_LEN + 1;
const ABOVE: u32 = DIGIT + 1;
const IN_DIGIT: u32 = ABOVE + 1;
const NUM_FOURS: u32 = IN_DIGIT + 1;
const NUM_COUNTERS: u32 = NUM_FOURS + 1;

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
    num_classes: u32,
    classes_inverse: u32,
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

    /// Query and class of a pair: the quotient is exact (see [`SelectArgs::classes_inverse`]).
    #[inline(always)]
    fn pair(&self, k: u32) -> [u32; 2] {
        let query_idx = ((k as u64 * self.classes_inverse as u64) >> 31) as u32;
        [query_idx, k - query_idx * self.num_classes]
    }

    /// What is listed of a pair: its key, without [`IS_SURVIVOR`] if it is none; 0 if it is no hit.
    ///
    /// # Safety
    /// The block has the columns in shared memory.
    #[inline(always)]
    unsafe fn entry(&self, logit: f32, k: u32) -> u64 {
        let key = self.hit_key(logit, k);
        if key == 0 {
            return 0;
        }
        // SAFETY: there are classes, and an entry a column.
        let [class_id, threshold] = unsafe { Shared::<[u32; 2]>::at(layout::COLUMNS).load(self.pair(k)[1]) };
        // A NaN's key is a NaN, which is above no threshold.
        let is_survivor = class_id as i32 >= 0 && f32::from_bits((key >> 32) as u32) > f32::from_bits(threshold);
        if is_survivor { key } else { key & !IS_SURVIVOR }
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
        unsafe {
            if self.dtype == DTYPE_F32 {
                self.vectors().load_nc(v as usize)
            } else {
                self.widen(self.half_vectors().load_nc(v as usize))
            }
        }
    }

    /// The fours of a vector of `f32`.
    #[inline(always)]
    fn vectors(&self) -> Global<[f32; 4]> {
        Global::from_address(self.logits_at + 4 * self.first as u64)
    }

    /// The fours of a vector of two-byte elements.
    #[inline(always)]
    fn half_vectors(&self) -> Global<[u32; 2]> {
        Global::from_address(self.logits_at + 2 * self.first as u64)
    }

    /// Four two-byte elements as `f32`; exact.
    #[inline(always)]
    fn widen(&self, [low, high]: [u32; 2]) -> [f32; 4] {
        let bits = [low as u16, (low >> 16) as u16, high as u16, (high >> 16) as u16];
        if self.dtype == DTYPE_F16 { bits.map(math::f16_to_f32) } else { bits.map(math::bf16_to_f32) }
    }

    /// [`UNROLL`] fours of a vector, from four `v` on and a block's threads apart; behind the last that again.
    ///
    /// All loads are issued before the first is used: a branch around a load would have it waited for. Written out: an array
    /// would have to be indexed.
    ///
    /// # Safety
    /// As [`select`]; the logits are a vector.
    #[inline(always)]
    unsafe fn load_vectors(&self, v: u32) -> [[f32; 4]; UNROLL as usize] {
        let (block, last) = (thread::block_dim_x(), self.num_pairs / 4 - 1);
        let four = |i: u32| (v + i * block).min(last) as usize;
        if self.dtype == DTYPE_F32 {
            // SAFETY: the caller vouches for the logits.
            let load = |i: u32| unsafe { self.vectors().load_nc_early(four(i)) };
            return [load(0), load(1), load(2), load(3), load(4), load(5), load(6)];
        }
        // SAFETY: as above.
        let load = |i: u32| unsafe { self.half_vectors().load_nc_early(four(i)) };
        let (x0, x1, x2, x3, x4, x5, x6) = (load(0), load(1), load(2), load(3), load(4), load(5), load(6));
        let widen = |x: [u32; 2]| self.widen(x);
        [widen(x0), widen(x1), widen(x2), widen(x3), widen(x4), widen(x5), widen(x6)]
    }

    /// Which of the fours that [`load_vectors`](Self::load_vectors) loaded hold a logit that may be a hit or is counted.
    #[inline(always)]
    fn interesting(&self, [x0, x1, x2, x3, x4, x5, x6]: [[f32; 4]; UNROLL as usize], v: u32) -> u32 {
        let four = |x: [f32; 4], i: u32| (!self.are_dull(x) as u32) << i;
        let fours = four(x0, 0) | four(x1, 1) | four(x2, 2) | four(x3, 3) | four(x4, 4) | four(x5, 5) | four(x6, 6);
        // The fours that exist.
        // SAFETY: a block has threads.
        let num = unsafe { div_ceil((self.num_pairs / 4).saturating_sub(v), thread::block_dim_x()) };
        if num < UNROLL { fours & ((1 << num) - 1) } else { fours }
    }

    /// Which of [`UNROLL`] fours, from four `v` on and a block's threads apart, hold a logit that may be a hit or is counted.
    ///
    /// # Safety
    /// As [`select`].
    #[inline(always)]
    unsafe fn interesting_fours(&self, v: u32) -> u32 {
        if self.is_vector {
            // SAFETY: the caller vouches for the logits.
            return self.interesting(unsafe { self.load_vectors(v) }, v);
        }
        let (mut fours, mut i) = (0, 0);
        while i < math::opaque(UNROLL) {
            // SAFETY: as above.
            let four = unsafe { self.load_four(v + i * thread::block_dim_x()) };
            fours |= (!self.are_dull(four) as u32) << i;
            i += 1;
        }
        fours
    }

    /// Lists the fours that hold a logit that may be a hit or is counted, as far as they have room, and counts them.
    ///
    /// Callers: every thread of the block, with the counters' zeros on their way: they are waited for behind the first loads.
    ///
    /// # Safety
    /// As [`select`].
    #[inline(always)]
    unsafe fn list_fours(&self, counters: Shared<u32>) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        // SAFETY: the plan gave this kernel the layout's shared memory.
        let (indices, logits) =
            unsafe { (Shared::<u32>::at(layout::FOUR_INDICES), Shared::<[f32; 4]>::at(layout::FOURS)) };
        let num_fours = self.num_pairs.div_ceil(4);
        let mut base = 0;
        // SAFETY: the caller vouches for the logits; what has no room is not written.
        unsafe {
            loop {
                let v = base + tid;
                let store = |slot: u32, four: u32, x: [f32; 4]| {
                    if slot < layout::MAX_FOURS {
                        indices.store(slot, four);
                        logits.store(slot, x);
                    }
                };
                if self.is_vector {
                    let [x0, x1, x2, x3, x4, x5, x6] = self.load_vectors(v);
                    let fours = self.interesting([x0, x1, x2, x3, x4, x5, x6], v);
                    if base == 0 {
                        thread::sync_threads();
                    }
                    if fours != 0 {
                        let slot = counters.fetch_add(NUM_FOURS, fours.count_ones());
                        let put = |i: u32, x: [f32; 4]| {
                            if fours >> i & 1 != 0 {
                                store(slot + (fours & ((1 << i) - 1)).count_ones(), v + i * block, x);
                            }
                        };
                        put(0, x0);
                        put(1, x1);
                        put(2, x2);
                        put(3, x3);
                        put(4, x4);
                        put(5, x5);
                        put(6, x6);
                    }
                } else {
                    if base == 0 {
                        thread::sync_threads();
                    }
                    let mut i = 0;
                    while i < math::opaque(UNROLL) {
                        let four = self.load_four(v + i * block);
                        if v + i * block < num_fours && !self.are_dull(four) {
                            store(counters.fetch_add(NUM_FOURS, 1), v + i * block, four);
                        }
                        i += 1;
                    }
                }
                base += UNROLL * block;
                // At the end: without a pair, there is the barrier.
                if base >= num_fours {
                    break;
                }
            }
        }
    }

    /// Lists the hits of the `num` fours that were listed, as far as they have room; counts them, and what is not finite.
    ///
    /// Callers: every thread of the block, after a barrier behind [`list_fours`](Self::list_fours) and the columns.
    ///
    /// # Safety
    /// As [`select`]; `num` fours were listed.
    #[inline(always)]
    unsafe fn list_hits_of_fours(&self, num: u32, counters: Shared<u32>) {
        // SAFETY: the plan gave this kernel the layout's shared memory; fours have room.
        unsafe {
            let (indices, logits) = (Shared::<u32>::at(layout::FOUR_INDICES), Shared::<f32>::at(layout::FOURS));
            let lane = warp::lane_id();
            let mut first = thread::thread_idx_x() - lane;
            while first < 4 * num {
                let i = first + lane;
                let mut entry = 0;
                if i < 4 * num {
                    let (k, logit) = (4 * indices.load(i / 4) + i % 4, logits.load(i));
                    if k < self.num_pairs {
                        count_nonfinite(logit, counters);
                        entry = self.entry(logit, k);
                    }
                }
                let hits = warp::warp_vote_ballot(FULL_MASK, entry != 0);
                if hits != 0 {
                    let mut slot = 0;
                    if lane == 0 {
                        slot = counters.fetch_add(LIST_LEN, hits.count_ones());
                    }
                    let slot = warp::warp_shuffle_idx(FULL_MASK, slot, 0) + (hits & ((1 << lane) - 1)).count_ones();
                    if entry != 0 && slot < MAX_SELECT {
                        Shared::<u64>::at(layout::LIST).store(slot, entry);
                    }
                }
                first += thread::block_dim_x();
            }
        }
    }

    /// Counts all hits, and what is not finite: for more fours than have room.
    ///
    /// # Safety
    /// As [`select`].
    #[inline(always)]
    unsafe fn count_hits(&self, counters: Shared<u32>) {
        // Summed by thread first: they may be all.
        let (mut num_hits, mut nonfinite) = (0, [0; 3]);
        // SAFETY: the caller vouches for the logits; the words are inside the counters.
        unsafe {
            self.for_each_logit(|k, logit| {
                nonfinite[0] += logit.is_nan() as u32;
                nonfinite[1] += (logit == f32::INFINITY) as u32;
                nonfinite[2] += (logit == f32::NEG_INFINITY) as u32;
                num_hits += if self.uses_torch { self.hit_key(logit, k) != 0 } else { self.is_above(logit) } as u32;
            });
            let add = |word: u32, count: u32| {
                if count > 0 {
                    counters.fetch_add(word, count);
                }
            };
            add(LIST_LEN, num_hits);
            add(HEALTH, nonfinite[0]);
            add(HEALTH + 1, nonfinite[1]);
            add(HEALTH + 2, nonfinite[2]);
        }
    }

    /// Lists all hits whose keys are at least `last`: `MAX_SELECT` at most.
    ///
    /// # Safety
    /// As [`select`]; there are no more.
    #[inline(always)]
    unsafe fn list_hits(&self, last: u64, counters: Shared<u32>) {
        // SAFETY: the caller vouches for the logits; what has no room is not written.
        unsafe {
            self.for_each_logit(|k, logit| {
                let entry = self.entry(logit, k);
                if entry != 0 && entry | IS_SURVIVOR >= last {
                    let slot = counters.fetch_add(LIST_LEN, 1);
                    if slot < MAX_SELECT {
                        Shared::<u64>::at(layout::LIST).store(slot, entry);
                    }
                }
            });
        }
    }

    /// Calls `visit(k, logit)` for every pair that may be a hit or is counted, and for some others. Lanes are on their own.
    ///
    /// # Safety
    /// The logits are those that the launcher vouched for.
    #[inline(always)]
    unsafe fn for_each_logit(&self, mut visit: impl FnMut(u32, f32)) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        let num_fours = self.num_pairs.div_ceil(4);
        let mut base = 0;
        while base < num_fours {
            let v = base + tid;
            // SAFETY: the caller vouches for the logits.
            let mut fours = unsafe { self.interesting_fours(v) };
            while fours != 0 {
                let four = v + fours.trailing_zeros() * block;
                fours &= fours - 1;
                // Loaded again: the code to pick it out of registers would be larger than everything else here.
                // SAFETY: as above.
                let (mut rest, mut i) = (unsafe { self.load_four(four) }, 0);
                while i < 4 {
                    // One body for the four, which move up.
                    if 4 * four + i < self.num_pairs {
                        visit(4 * four + i, rest[0]);
                    }
                    rest = [rest[1], rest[2], rest[3], 0.0];
                    i = math::opaque(i) + 1;
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
    let (tid, block, lane) = (thread::thread_idx_x(), thread::block_dim_x(), warp::lane_id());
    // SAFETY: the plan gave this kernel the layout's shared memory.
    let (counters, list) = unsafe { (Shared::<u32>::at(COUNTERS), Shared::<u64>::at(layout::LIST)) };
    if tid < NUM_COUNTERS {
        // SAFETY: inside the counters.
        unsafe { counters.store(tid, 0) };
    }
    if image == 0 && tid == 0 {
        // SAFETY: the launcher vouches for the word. No mask kernel of the requests before takes masks any more, and this one's does
        // not before the selection has ended.
        unsafe { Global::<u32>::from_address(args.taken_at).store(0, 0) };
    }
    let num_pairs = args.num_queries * args.num_classes;
    let first = image as usize * num_pairs as usize;
    let candidates = Candidates {
        logits_at: args.logits_at,
        dtype: args.logits_dtype,
        first,
        is_vector: num_pairs > 0
            && num_pairs.is_multiple_of(4)
            && if args.logits_dtype == DTYPE_F32 {
                (args.logits_at + 4 * first as u64).is_multiple_of(16)
            } else {
                (args.logits_at + 2 * first as u64).is_multiple_of(8)
            },
        num_pairs,
        num_classes: args.num_classes,
        classes_inverse: args.classes_inverse,
        uses_torch: args.flags & FLAG_TORCH_SCORE != 0,
        low: if args.flags & FLAG_TORCH_SCORE != 0 { f32::NEG_INFINITY } else { args.min_logit },
        min_logit: args.min_logit,
        min_threshold: args.min_threshold,
    };
    // What survivors need is on its way before the logits are asked for, and is put down after them.
    // SAFETY: the launcher vouches for tensors and columns; `num_select` is at most `MAX_SELECT`, so what the radix select leaves
    // fits the list; barriers separate the phases.
    let num_hits = unsafe {
        let (cxcywh, column) = (load_box(args, image, tid), load_column(args, tid));
        candidates.list_fours(counters);
        store_boxes(args, image, cxcywh, counters);
        store_columns(args, column);
        thread::sync_threads();
        let has_room = counters.load(NUM_FOURS) <= layout::MAX_FOURS;
        if has_room {
            candidates.list_hits_of_fours(counters.load(NUM_FOURS), counters);
        } else {
            candidates.count_hits(counters);
        }
        thread::sync_threads();
        let num_hits = counters.load(LIST_LEN);
        if has_room && num_hits <= MAX_SELECT {
            num_hits
        } else {
            let mut last = 0;
            if num_hits > MAX_SELECT {
                last = radix_select(&candidates, args.num_select, counters, Shared::at(layout::HISTOGRAM));
            }
            thread::sync_threads();
            if tid == 0 {
                counters.store(LIST_LEN, 0);
            }
            thread::sync_threads();
            candidates.list_hits(last, counters);
            thread::sync_threads();
            counters.load(LIST_LEN)
        }
    };

    // A hit's rank is the number of larger keys, and a survivor's slot that of larger keys of survivors: those have smaller ranks,
    // too. So many lanes as there are for each hit count, and then write its row.
    let mut shift = 5;
    while shift > 0 && num_hits << shift > block {
        shift -= 1;
    }
    let (num_lanes, part) = (1 << shift, lane & ((1 << shift) - 1));
    let mut first = (tid - lane) >> shift;
    while first < num_hits {
        let i = first + (lane >> shift);
        // SAFETY: `num_hits` entries were listed.
        let entry = if i < num_hits { unsafe { list.load(i) } } else { 0 };
        let key = entry | IS_SURVIVOR;
        // Both are at most `MAX_SELECT`: in one word.
        let (mut places, mut other) = (0, part);
        while other < num_hits {
            // SAFETY: as above.
            let entry = unsafe { list.load(other) };
            if entry | IS_SURVIVOR > key {
                places += 1 | ((entry & IS_SURVIVOR != 0) as u32) << 16;
            }
            other += num_lanes;
        }
        let mut distance = 1;
        while distance < num_lanes {
            places += warp::warp_shuffle_xor(FULL_MASK, places, distance);
            distance *= 2;
        }
        let (rank, slot) = (places & 0xffff, places >> 16);
        let is_found = entry & IS_SURVIVOR != 0 && rank < args.num_select;
        let found = warp::warp_vote_ballot(FULL_MASK, is_found && part == 0);
        if lane == 0 && found != 0 {
            // SAFETY: inside the counters.
            unsafe { counters.fetch_add(FOUND, found.count_ones()) };
        }
        let mut word = part;
        while word < EARLY_ROW_WORDS && is_found && slot < args.max_detections {
            // SAFETY: a survivor's key; slots are distinct, and this one is one of the image's rows (P2).
            unsafe { write_row(args, params, image, slot, word, key, candidates.pair(!(key as u32))) };
            word += num_lanes;
        }
        first += block >> shift;
    }
    thread::sync_threads();

    // SAFETY: counted before the barrier.
    let found = unsafe { counters.load(FOUND) }.min(args.max_detections);
    if tid == 0 {
        let header_at = args.headers_at + image as u64 * size_of::<ImageHeader>() as u64;
        let header = Global::<u32>::from_address(header_at);
        // SAFETY: counted before the barriers above; the header is this block's.
        unsafe {
            // As the rows: the host may look at it before the flag.
            header.store_volatile(FOUND as usize, found);
            let mut word = FOUND + 1;
            while word < HEADER_WORDS {
                header.store_volatile(word as usize, counters.load(word));
                word += 1;
            }
        }
    }
    if args.flags & FLAG_SELECT_ONLY != 0 {
        // SAFETY: a flag for each image; rows and header are written.
        unsafe { block_set_flag(args.block_flags_at, image, args.sequence) };
    } else {
        let queries = Global::<[u32; 4]>::from_address(args.queries_at);
        let mut slot = found + tid;
        while slot < args.max_detections {
            // SAFETY: four words a row.
            unsafe { queries.store((image * args.max_detections + slot) as usize, [NO_QUERY, 0, 0, 0]) };
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

/// Counts a logit that is not finite.
///
/// # Safety
/// The block has the counters.
#[inline(always)]
unsafe fn count_nonfinite(logit: f32, counters: Shared<u32>) {
    if !logit.is_finite() {
        let kind = if logit.is_nan() { 0 } else { if logit > 0.0 { 1 } else { 2 } };
        // SAFETY: inside the counters.
        unsafe { counters.fetch_add(HEALTH + kind, 1) };
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

/// Writes word `i` of the first half of a detection's row, and, for the mask kernels, of the second, which has the neutral values
/// of their sums. (Without masks the second half stays the zeros that it is.) Lanes next to each other write words next to each
/// other: what goes to the host by one store of a warp goes over the bus at once.
///
/// # Safety
/// As [`select`]; `slot` is below `max_detections`, `i` below 8, and `key` a survivor's, of `pair`.
#[inline(always)]
unsafe fn write_row(args: &SelectArgs, params: Params, image: u32, slot: u32, i: u32, key: u64, pair: [u32; 2]) {
    let records_offset = core::mem::offset_of!(SelectArgs, records) as u32;
    // SAFETY: the key's pair is one of this image, and the row is one of its rows.
    unsafe {
        let [query_idx, class_idx] = pair;
        let cxcywh = Shared::<[f32; 4]>::at(layout::BOXES).load(query_idx);
        let [class_id, _] = Shared::<[u32; 2]>::at(layout::COLUMNS).load(class_idx);
        let is_inline = args.batch as usize <= INLINE_IMAGES;
        let record = load_record(is_inline, params, records_offset, args.records_at, image);
        let quarter = i & 3;
        let coordinate = boxes::decode(cxcywh, &record, args.flags, quarter).to_bits();
        let pick = |words: [u32; 4]| {
            let [a, b, c, d] = words;
            if quarter < 2 { if quarter == 0 { a } else { b } } else { if quarter == 2 { c } else { d } }
        };
        let slot = image as usize * args.max_detections as usize + slot as usize;
        let row = Global::<u32>::from_address(args.rows_at + (slot * size_of::<PackedRow>()) as u64);
        let value = if i < 4 { coordinate } else { pick([(key >> 32) as u32, class_id, query_idx, class_idx]) };
        // A word at once: without masks the host may look at it before the flag.
        row.store_volatile(i as usize, value);
        if args.flags & FLAG_SELECT_ONLY == 0 {
            row.store(8 + i as usize, if i < 2 { u32::MAX } else { 0 });
            if i < 4 {
                // The query, left, right, nothing.
                let at = pick([1, 3, 2, 0]);
                let query = Global::<u32>::from_address(args.queries_at);
                query.store(4 * slot + at as usize, pick([coordinate, 0, coordinate, query_idx]));
            }
        }
    }
}

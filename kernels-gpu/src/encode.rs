//! The end of run lengths: transitions become COCO counts, or COCO's compressed string.
//!
//! In short:
//!
//! ```text
//! counts = differences of transitions
//! text   = differences of counts, two apart, in groups of five bits, each a character
//! ```
//!
//! A window of transitions at a time, all of the block's threads work on it: first each counts the characters of its share,
//! then, the sum of those before being known, it writes them. The blocks of a cluster each have a window of the same mask, and
//! meet in between ([`crate::parts`]). What is stored leaves in order, 16 bytes a thread.

use rfdetr_post_core::packed::{FLAG_RLE_STRING, MaskArgs};

use crate::{
    changes::Item,
    masks::{self, Stats},
    parts::{self, Joined, NO_ROOM},
    scan::{block_exclusive_add, div_ceil},
    simt::{cluster, global::Global, math, params::Params, shared::Shared, thread},
};

/// Shared memory of the encoder.
#[derive(Clone, Copy)]
pub struct Scratch {
    /// Three transitions before the window, then the window.
    pub transitions: Shared<u32>,
    stage: Shared<u8>,
    stage_words: Shared<[u32; 4]>,
    stage_counts: Shared<u32>,
}

impl Scratch {
    /// # Safety
    /// The block has the shared memory of `args.rle`.
    #[inline(always)]
    pub unsafe fn new(args: &MaskArgs) -> Self {
        // SAFETY: the caller vouches for it.
        unsafe {
            Self {
                transitions: Shared::at(args.rle.transitions_offset),
                stage: Shared::at(args.rle.stage_offset),
                stage_words: Shared::at(args.rle.stage_offset),
                stage_counts: Shared::at(args.rle.stage_offset),
            }
        }
    }

    /// The window, from its transition `first` on.
    ///
    /// # Safety
    /// As [`new`](Self::new); `first` is at most the window.
    #[inline(always)]
    pub unsafe fn window(args: &MaskArgs, first: u32) -> Shared<u32> {
        // SAFETY: the caller vouches for it.
        unsafe { Shared::at(args.rle.transitions_offset + 4 * (3 + first)) }
    }
}

/// Turns transitions into counts or text, window by window.
pub struct Encoder {
    params: Params,
    /// Transitions before the window.
    pub num_counts: u32,
    /// Bytes of text before the window.
    num_bytes: u32,
    /// Both of all parts.
    of_all: [u32; 2],
}

impl Encoder {
    /// The encoder of the block's mask.
    pub fn new(params: Params) -> Self {
        Self { params, num_counts: 0, num_bytes: 0, of_all: [0; 2] }
    }

    /// Begins with transition number `num_counts`; `before` are the three before it, the last one last, 0 where there is none.
    ///
    /// Callers: every thread of the block. A barrier is owed before the first window.
    ///
    /// # Safety
    /// The block has the shared memory of the arguments' `rle`, and a barrier was passed since transitions were used.
    #[inline(always)]
    pub unsafe fn begin(&mut self, num_counts: u32, before: [u32; 3]) {
        let tid = thread::thread_idx_x();
        if tid < 3 {
            let transition = if tid == 0 { before[0] } else { if tid == 1 { before[1] } else { before[2] } };
            // SAFETY: three words before the window.
            unsafe { Scratch::new(&masks::args(self.params)).transitions.store(tid, transition) };
        }
        self.num_counts = num_counts;
    }

    /// First element of a row's mask in the image's payload.
    #[inline(always)]
    fn offset(args: &MaskArgs, slot: u32) -> u32 {
        slot * args.mask_capacity
    }

    /// Address of the mask: it has room for the plan's capacity, and is 16-byte aligned.
    ///
    /// # Safety
    /// The block keeps the item.
    #[inline(always)]
    unsafe fn payload_at(args: &MaskArgs) -> u64 {
        let element = if args.flags & FLAG_RLE_STRING != 0 { 1 } else { 4 };
        // SAFETY: the caller vouches for it.
        let item = unsafe { Item::load() };
        args.payload_at + item.image as u64 * args.payload_image_bytes + Self::offset(args, item.slot) as u64 * element
    }

    /// Encodes the `num` transitions of the window, which lie behind the three before them, and adds the foreground to the mask's
    /// area. Ends with a barrier.
    ///
    /// With `num_parts` above 1 it is the only window of the block's part, of which `nonfinite` cells are not finite. The cluster's
    /// other blocks encode theirs; counts and characters are then those of all parts, and so is the area of the statistics. If a
    /// part has [`NO_ROOM`], nothing is encoded, and false is returned.
    ///
    /// Callers: every thread of the block, after a barrier; of the cluster, if it shares the mask.
    ///
    /// # Safety
    /// `num` is at most the window; the block has the statistics in shared memory.
    #[track_caller]
    #[inline(always)]
    pub unsafe fn encode(&mut self, num: u32, is_last: bool, num_parts: u32, nonfinite: u32) -> bool {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        let is_part = num_parts > 1;
        let len = if num == NO_ROOM { 0 } else { num };
        // SAFETY: the block has the layout's shared memory.
        let args = &unsafe { masks::args(self.params) };
        // SAFETY: as above.
        let Scratch { transitions, stage, stage_words, stage_counts } = unsafe { Scratch::new(args) };
        // SAFETY: as above; the block keeps the item.
        let (payload_at, capacity) = (unsafe { Self::payload_at(args) }, args.mask_capacity);
        let is_string = args.flags & FLAG_RLE_STRING != 0;
        // SAFETY: three transitions before the window, then the window; the stage has room for 6 characters each, and 15
        // left over; the payload is not written past its capacity; barriers separate the phases.
        unsafe {
            // A run of transitions for each thread: first to count characters, then to write them.
            let share = div_ceil(len, block);
            let (first, end) = ((tid * share).min(len), ((tid + 1) * share).min(len));
            let (mut even, mut odd, mut num_chars, mut at, mut total) = (0, 0, 0, 0, 0);
            let mut next_pass = 0;
            while next_pass < 2 {
                // Not known to the compiler, which would make this body twice.
                let pass = math::opaque(next_pass);
                next_pass = pass + 1;
                let (mut i, mut idx) = (first, self.num_counts + first);
                let at_idx = |i: u32| if first < end { transitions.load(i) } else { 0 };
                let (mut t3, mut t2, mut t1) = (at_idx(first), at_idx(first + 1), at_idx(first + 2));
                while i < end {
                    let t0 = transitions.load(3 + i);
                    let count = t0.wrapping_sub(t1);
                    let value = if idx > 2 { count.wrapping_sub(t2.wrapping_sub(t3)) } else { count } as i32;
                    let mut left = parts::num_chars(value);
                    if pass == 0 {
                        // The first three of a part are counted when those before them are known, and so is its first run.
                        num_chars += if is_part && i < 3 { 0 } else { left };
                        odd += if idx % 2 == 1 { count } else { 0 };
                        even += if idx % 2 == 0 && i > 0 { count } else { 0 };
                        if !is_string {
                            stage_counts.store(i, count);
                        }
                    } else {
                        let mut rest = value;
                        while left > 0 {
                            left -= 1;
                            let more = if left > 0 { 32 } else { 0 };
                            stage.store(at, (48 + (rest & 31) + more) as u8);
                            rest >>= 5;
                            at += 1;
                        }
                    }
                    (t3, t2, t1) = (t2, t1, t0);
                    (i, idx) = (i + 1, idx + 1);
                }
                if pass == 0 {
                    Stats::add_areas_to_shared(odd, even);
                    (at, total) = block_exclusive_add(num_chars, masks::scratch());
                    if is_part {
                        let (odd, even) = Stats::areas_of_shared();
                        let window = Scratch::window(args, 0);
                        parts::hand_over(window, num, total, [even, odd], nonfinite, num_parts);
                        cluster::sync_cluster();
                        let all = Joined::of(cluster::block_rank());
                        if !all.has_room {
                            return false;
                        }
                        self.begin(all.counts_before, all.last);
                        if tid == 0 {
                            Stats::store_area_to_shared(all.area);
                            if !is_string && len > 0 {
                                stage_counts.store(0, transitions.load(3) - all.last[2]);
                            }
                        }
                        thread::sync_threads();
                        self.num_bytes = all.chars_before;
                        let [c0, c1, c2] = all.first_chars;
                        at += if first > 0 { c0 } else { 0 }
                            + if first > 1 { c1 } else { 0 }
                            + if first > 2 { c2 } else { 0 };
                        total += c0 + c1 + c2;
                        self.of_all = [all.num_counts, all.num_chars];
                    }
                    at += self.num_bytes % 16;
                    if !is_string {
                        break;
                    }
                }
            }
            if !is_string {
                // The sum's barrier stands between.
                let mut i = tid;
                while i < len && self.num_counts + i < capacity {
                    let count = stage_counts.load(i);
                    Global::<u32>::from_address(payload_at).store((self.num_counts + i) as usize, count);
                    i += block;
                }
            }
            self.num_counts += len;
            if is_string {
                // In the stage, characters lie as in the 16-byte words of the payload; the mask's end fills up with zeros.
                let start = self.num_bytes % 16;
                let (end, word_at) = (start + total, self.num_bytes - start);
                let filled = if is_last { end.next_multiple_of(16) } else { end };
                if tid < 16 && end + tid < filled {
                    stage.store(end + tid, 0);
                }
                thread::sync_threads();
                let payload_at = payload_at + word_at as u64;
                let has_room = |word: u32| word_at + 16 * word + 16 <= capacity;
                let num_words = filled / 16;
                let mut word = (start > 0) as u32 + tid;
                while word < num_words {
                    if has_room(word) {
                        Global::<[u32; 4]>::from_address(payload_at).store(word as usize, stage_words.load(word));
                    }
                    word += block;
                }
                // Of the first and the last word others may write their characters.
                let byte = if tid < 16 { tid } else { 16 * num_words + tid - 16 };
                let is_edge = if tid < 16 { start > 0 } else { tid < 32 && (num_words > 0 || start == 0) };
                if is_edge && byte >= start && byte < filled && has_room(byte / 16) {
                    Global::<u8>::from_address(payload_at).store(byte as usize, stage.load(byte));
                }
                self.num_bytes += total;
            }
            if is_part {
                [self.num_counts, self.num_bytes] = self.of_all;
            } else if !is_last {
                let carried = if tid < 3 { transitions.load(len + tid) } else { 0 };
                thread::sync_threads();
                if tid < 3 {
                    transitions.store(tid, carried);
                }
            }
            thread::sync_threads();
        }
        true
    }

    /// Number of elements of the mask, after the last window.
    #[inline(always)]
    pub fn len(&self, args: &MaskArgs) -> u32 {
        if args.flags & FLAG_RLE_STRING != 0 { self.num_bytes } else { self.num_counts }
    }
}

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
//! tell each other their sums in between. What is stored leaves in order, 16 bytes a thread.

use rfdetr_post_core::packed::{FLAG_RLE_STRING, MaskArgs, shared::masks as layout};

use crate::{
    changes::Item,
    masks::{self, Stats},
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
}

impl Encoder {
    /// The encoder of the block's mask.
    pub fn new(params: Params) -> Self {
        Self { params, num_counts: 0, num_bytes: 0 }
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
    pub fn offset(args: &MaskArgs, slot: u32) -> u32 {
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

    /// Encodes the `len` transitions of the window, which lie behind the three before them, and adds the foreground to the
    /// mask's area. With `num_parts` above 1 it is the only window of the block's part; the cluster's other blocks encode theirs,
    /// and characters and area of all parts are then [`handed`](Self::handed). Ends with a barrier.
    ///
    /// Callers: every thread of the block, after a barrier; of the cluster, if it shares the mask.
    ///
    /// # Safety
    /// `len` is at most the window; the block has the statistics in shared memory.
    #[track_caller]
    #[inline(always)]
    pub unsafe fn encode(&mut self, len: u32, is_last: bool, num_parts: u32) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
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
            let (mut area, mut num_chars, mut at, mut total) = (0, 0, 0, 0);
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
                    let count = t0 - t1;
                    let value = if idx > 2 { count as i32 - (t2 - t3) as i32 } else { count as i32 };
                    // Five bits a character, and one bit for the sign.
                    let magnitude = if value < 0 { !value } else { value } as u32;
                    let mut left = (32 - magnitude.leading_zeros() + 1).div_ceil(5);
                    if pass == 0 {
                        num_chars += left;
                        area += if idx % 2 == 1 { count } else { 0 };
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
                    Stats::add_area_to_shared(area);
                    let before;
                    (before, total) = block_exclusive_add(num_chars, masks::scratch());
                    if num_parts > 1 {
                        self.hand_over(total, num_parts);
                    }
                    at = self.num_bytes % 16 + before;
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
            if !is_last && num_parts == 1 {
                let carried = if tid < 3 { transitions.load(len + tid) } else { 0 };
                thread::sync_threads();
                if tid < 3 {
                    transitions.store(tid, carried);
                }
            }
            thread::sync_threads();
        }
    }

    /// Tells the cluster's blocks how many characters the block's part has, and its area, and takes the characters of those
    /// before.
    ///
    /// Callers: every thread of the cluster, after a barrier behind the area's sum.
    ///
    /// # Safety
    /// The blocks have the layout's shared memory.
    #[track_caller]
    #[inline(always)]
    unsafe fn hand_over(&mut self, num_chars: u32, num_parts: u32) {
        let (tid, rank) = (thread::thread_idx_x(), cluster::block_rank());
        // SAFETY: a pair a block. Nobody reads the pairs of the mask before any more: the cluster has passed a barrier since.
        unsafe {
            let texts = Shared::<[u32; 2]>::at(layout::HANDED_TEXTS);
            if tid < num_parts {
                texts.store_remote(tid, rank, [num_chars, Stats::of_shared().area]);
            }
            cluster::sync_cluster();
            let mut part = 0;
            while part < rank {
                self.num_bytes += texts.load(part)[0];
                part += 1;
            }
        }
    }

    /// Characters and area of all parts of a mask that the cluster shares.
    ///
    /// # Safety
    /// It was encoded.
    #[inline(always)]
    pub unsafe fn handed(num_parts: u32) -> [u32; 2] {
        let (mut sum, mut part) = ([0, 0], 0);
        while part < num_parts {
            // SAFETY: a pair a block.
            let [num_chars, area] = unsafe { Shared::<[u32; 2]>::at(layout::HANDED_TEXTS).load(part) };
            sum = [sum[0] + num_chars, sum[1] + area];
            part += 1;
        }
        sum
    }

    /// Number of elements of a whole mask, after the last window.
    #[inline(always)]
    pub fn len(&self, args: &MaskArgs) -> u32 {
        if args.flags & FLAG_RLE_STRING != 0 { self.num_bytes } else { self.num_counts }
    }
}

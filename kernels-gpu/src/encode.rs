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
//! then, the sum of those before being known, it writes them. What is stored leaves in order, 16 bytes a thread.

use rfdetr_post_core::packed::{FLAG_RLE_STRING, MaskArgs};

use crate::{
    masks::{self, Stats},
    scan::{block_exclusive_add, div_ceil},
    simt::{global::Global, math, params::Params, shared::Shared, thread},
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
}

/// Turns transitions into counts or text, window by window.
pub struct Encoder {
    params: Params,
    image: u32,
    slot: u32,
    /// Transitions encoded so far.
    pub num_counts: u32,
    /// Bytes of text that left the stage: a multiple of 16.
    flushed: u32,
    /// Bytes of text in the stage: below 16 between windows.
    staged: u32,
}

impl Encoder {
    /// The encoder of row `slot` of an image. Callers: every thread of the block. A barrier is owed before the first window.
    ///
    /// # Safety
    /// `args` holds what [`MaskArgs`] promises.
    #[inline(always)]
    pub unsafe fn new(params: Params, image: u32, slot: u32) -> Self {
        if thread::thread_idx_x() < 3 {
            // SAFETY: before the first transition there are three at position 0.
            unsafe { Scratch::new(&masks::args(params)).transitions.store(thread::thread_idx_x(), 0) };
        }
        Self { params, image, slot, num_counts: 0, flushed: 0, staged: 0 }
    }

    /// First element of the mask in the image's payload.
    #[inline(always)]
    pub fn offset(&self, args: &MaskArgs) -> u32 {
        self.slot * args.mask_capacity
    }

    /// Address of the mask: it has room for the plan's capacity, and is 16-byte aligned.
    #[inline(always)]
    fn payload_at(&self, args: &MaskArgs) -> u64 {
        let element = if args.flags & FLAG_RLE_STRING != 0 { 1 } else { 4 };
        args.payload_at + self.image as u64 * args.payload_image_bytes + self.offset(args) as u64 * element
    }

    /// Encodes the `len` transitions of the window, which lie behind the three before them, and adds the foreground to the
    /// mask's area. Ends with a barrier.
    ///
    /// Callers: every thread of the block, after a barrier.
    ///
    /// # Safety
    /// `len` is at most the window; the block has the statistics in shared memory.
    #[track_caller]
    #[inline(always)]
    pub unsafe fn encode(&mut self, len: u32, is_last: bool) {
        let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
        // SAFETY: the block has the layout's shared memory.
        let args = &unsafe { masks::args(self.params) };
        // SAFETY: as above.
        let Scratch { transitions, stage, stage_words, stage_counts } = unsafe { Scratch::new(args) };
        let (payload_at, capacity) = (self.payload_at(args), args.mask_capacity);
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
                    at = self.staged + before;
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
            let mut flushed_len = 0;
            if is_string {
                let len = self.staged + total;
                // What is left over waits for the next window; the last one fills up with zeros.
                let num_words = if is_last { len.div_ceil(16) } else { len / 16 };
                if tid < 16 && len + tid < 16 * num_words {
                    stage.store(len + tid, 0);
                }
                thread::sync_threads();
                let mut word = tid;
                while word < num_words {
                    if self.flushed + 16 * word + 16 <= capacity {
                        Global::<[u32; 4]>::from_address(payload_at + self.flushed as u64)
                            .store(word as usize, stage_words.load(word));
                    }
                    word += block;
                }
                self.flushed += len & !15;
                self.staged = len & 15;
                flushed_len = len & !15;
            }
            if !is_last {
                let mut moved = 0;
                if tid < self.staged {
                    moved = stage.load(flushed_len + tid);
                }
                let carried = if tid < 3 { transitions.load(len + tid) } else { 0 };
                thread::sync_threads();
                if tid < self.staged {
                    stage.store(tid, moved);
                }
                if tid < 3 {
                    transitions.store(tid, carried);
                }
            }
            thread::sync_threads();
        }
    }

    /// Number of elements of the mask, after the last window.
    #[inline(always)]
    pub fn len(&self, args: &MaskArgs) -> u32 {
        if args.flags & FLAG_RLE_STRING != 0 { self.flushed + self.staged } else { self.num_counts }
    }
}

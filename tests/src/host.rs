//! The host's side of a request, as a launch of the emulator: it waits for the answer, reads it, and takes the buffers for the next
//! request.
//!
//! Launched to overlap the kernels it knows of them what flags tell it, or words that it sees, so whatever they have stored behind
//! their flags, or without a fence before, or still use, is a race that the emulator reports. So is a word that the host looks at
//! before the flag, and that is not stored at once.
//!
//! The emulator's memory is one for all, so stores come to the host in the order of the kernels. On a bus they need not: what the
//! host looks at before the flag comes late here, word by word, in an order that is drawn.
#![allow(unsafe_code, reason = "reads and writes the emulator's memory, as kernels do")]

use std::{
    array::from_fn,
    cell::{Cell, RefCell},
};

use rfdetr_post_core::{
    MaskFormat,
    packed::{EARLY_ROW_WORDS, HEADER_WORDS, ImageHeader, ImageRecord, PackedRow, ROW_WORDS},
    plan::{DeviceBuffers, Plan},
    watch::ResultWatch,
};
use rfdetr_post_kernels::simt::{emulator::Launch, global::Global, thread};

use crate::random::Random;

/// Bytes of a result that nobody has read.
const NOT_READ: u8 = 0xa5;

/// A request whose kernels are launched.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its plan.
    pub plan: &'a Plan,
    /// Its buffers.
    pub buffers: DeviceBuffers,
    /// Its images.
    pub batch: usize,
    /// Its number.
    pub sequence: u32,
    /// The watch that prepared the result.
    pub watch: ResultWatch,
    /// Words of the result before the launch: flags, headers and rows.
    pub before: Vec<u32>,
    /// Draws the order in which words come.
    pub seed: u64,
}

/// What the host has read.
#[derive(Debug, Default)]
pub struct Answer {
    /// The result, as far as the request has written it.
    pub bytes: Vec<u8>,
    /// It was read before its flag was seen.
    pub is_early: bool,
}

/// The host of a request; `answer` is what it reads.
pub fn launch<'a>(request: Request<'a>, answer: &'a RefCell<Answer>) -> Launch<'a> {
    Launch::closure("host", 1, 32, 0, move || {
        if thread::thread_idx_x() == 0 {
            let mut watch = request.watch.clone();
            let bus = Bus::new(&request);
            // An answer that never comes is an endless loop, which the emulator reports.
            while !watch.is_answered(request.sequence, |word| bus.load(word)) {}
            let early = (!bus.has_all.get()).then(|| {
                read(&request, |word| {
                    let row_word = word.checked_sub((request.plan.result.rows / 4) as u32).map(|word| word % ROW_WORDS);
                    // What the kernels do not write is an ordinary word.
                    if row_word >= Some(EARLY_ROW_WORDS) { bus.plain(word) } else { bus.load(word) }
                })
            });
            while !watch.has_ended(request.sequence, |word| bus.load(word)) {}
            let bytes = read(&request, |word| bus.plain(word));
            if let Some(early) = &early {
                assert!(*early == bytes, "the answer was another one before its flag");
            }
            *answer.borrow_mut() = Answer { bytes, is_early: early.is_some() };
            // SAFETY: the plan's buffers are there, and the emulator checks every access.
            unsafe { reuse(&request, &mut watch) };
        }
    })
}

/// The words of a result on their way to the host.
struct Bus<'a> {
    words: Global<u32>,
    headers: u32,
    sequence: u32,
    before: &'a [u32],
    has_come: RefCell<Vec<bool>>,
    /// The flag was seen, behind which everything is there.
    has_all: Cell<bool>,
    random: RefCell<Random>,
    /// One look in so many comes too early for a word.
    rarity: usize,
}

impl<'a> Bus<'a> {
    fn new(request: &'a Request<'_>) -> Self {
        let mut random = Random::new(request.seed);
        let rarity = random.pick(&[2, 8, 64, 1024]);
        Self {
            words: Global::from_address(request.buffers.result_at),
            headers: (request.plan.result.headers / 4) as u32,
            sequence: request.sequence,
            before: &request.before,
            has_come: RefCell::new(vec![false; request.before.len()]),
            has_all: Cell::new(false),
            random: RefCell::new(random),
            rarity,
        }
    }

    /// A word that the device may be writing, as the host sees it.
    fn load(&self, word: u32) -> u32 {
        let idx = word as usize;
        if word < self.headers {
            // SAFETY: the result has the flags.
            let value = unsafe { self.words.load_acquire(idx) };
            self.has_all.set(value == self.sequence);
            return value;
        }
        // SAFETY: a word of the result, which was written before the launch.
        let value = unsafe { self.words.load_volatile(idx) };
        let has_come = &mut self.has_come.borrow_mut()[idx];
        *has_come |= self.has_all.get() || self.random.borrow_mut().below(self.rarity) > 0;
        if *has_come { value } else { self.before[idx] }
    }

    /// A word that nobody writes now.
    fn plain(&self, word: u32) -> u32 {
        // SAFETY: a word of the result that was written; the emulator checks that.
        unsafe { self.words.load(word as usize) }
    }
}

/// What the request has of the result.
fn read(request: &Request<'_>, load: impl Fn(u32) -> u32) -> Vec<u8> {
    let plan = request.plan;
    let mut bytes = vec![NOT_READ; plan.result.bytes as usize];
    let mut word = |idx: usize| {
        let value = load(idx as u32);
        bytes[4 * idx..4 * idx + 4].copy_from_slice(&value.to_ne_bytes());
        value
    };
    let (headers, rows, masks) =
        (plan.result.headers as usize / 4, plan.result.rows as usize / 4, plan.result.masks as usize);
    let len_word = core::mem::offset_of!(PackedRow, mask_len) / 4;
    let is_string = plan.spec.options.mask_format == MaskFormat::Rle;
    let mut strings = Vec::new();
    for image in 0..request.batch {
        let header: [u32; HEADER_WORDS as usize] = from_fn(|i| word(headers + image * HEADER_WORDS as usize + i));
        for idx in 0..header[0].min(plan.max_detections) as usize {
            let row = image * plan.max_detections as usize + idx;
            let row_words: [u32; ROW_WORDS as usize] = from_fn(|i| word(rows + row * ROW_WORDS as usize + i));
            // A mask that does not fit is not read.
            let len = if row_words[len_word] <= plan.mask_capacity { row_words[len_word] as usize } else { 0 };
            let first = row * plan.mask_capacity as usize;
            if is_string {
                strings.push(masks + first..masks + first + len);
            } else {
                (first..first + len).for_each(|i| _ = word(masks / 4 + i));
            }
        }
    }
    for idx in strings.into_iter().flatten() {
        // SAFETY: a byte of the result that was written; the emulator checks that.
        bytes[idx] = unsafe { Global::<u8>::from_address(request.buffers.result_at).load(idx) };
    }
    bytes
}

/// Prepares the result for the next request, and writes where it writes.
///
/// # Safety
/// The buffers are those of the plan.
unsafe fn reuse(request: &Request<'_>, watch: &mut ResultWatch) {
    let &Request { plan, buffers, batch, .. } = request;
    let result = Global::<u32>::from_address(buffers.result_at);
    let headers = (plan.result.headers / 4) as u32;
    // SAFETY: a word of the result.
    let load = |word: u32| unsafe { result.load(word as usize) };
    // SAFETY: as above. A fence orders what is before a flag, not the flag.
    let store = |word: u32, value: u32| unsafe {
        if word < headers { result.store_volatile(word as usize, value) } else { result.store(word as usize, value) }
    };
    watch.begin(plan, batch, load, store);
    let rows = batch * plan.max_detections as usize;
    let fill = |at: u64, bytes: usize| {
        for word in 0..bytes / 4 {
            // SAFETY: inside a section of the plan.
            unsafe { Global::<u32>::from_address(at).store(word, u32::MAX) };
        }
    };
    // Of the counters, the word that the selection resets.
    fill(buffers.work_at + plan.work.counters + 4, 4);
    fill(buffers.work_at + plan.work.records, batch * size_of::<ImageRecord>());
    fill(buffers.work_at + plan.work.headers, batch * size_of::<ImageHeader>());
    fill(buffers.work_at + plan.work.rows, rows * size_of::<PackedRow>());
    fill(buffers.work_at + plan.work.queries, rows * 16);
    fill(buffers.work_at + plan.work.axes, batch * plan.axes.image_stride as usize * 16);
}

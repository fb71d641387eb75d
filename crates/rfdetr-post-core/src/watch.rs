//! What a host knows of a result that the device is writing: which flags are set, and, for detections of one image, which words of
//! the answer itself are there.
//!
//! The words of a detection-only answer are all different from [`NOT_WRITTEN`], which the host puts where they will be. The device
//! stores each of them once, at once. So the answer is there when none of its words is `NOT_WRITTEN` any more, in whatever order
//! they came, and that is before its flag is set, which waits for the device to know that they arrived.
//!
//! This is the logic alone: memory is two closures over the words (`u32`) of the packed result, which must be atomic while a
//! request is in flight, and loads of acquire order.

use core::ops::Range;

use crate::{
    packed::{EARLY_ROW_WORDS, HEADER_WORDS, NOT_WRITTEN, ROW_WORDS, flag_word},
    plan::Plan,
};

/// The host's side of one packed result, from request to request.
#[derive(Debug, Clone)]
pub struct ResultWatch {
    /// First words of the sections.
    flags: u32,
    header: u32,
    rows: u32,
    max_rows: u32,
    /// Whether requests of one image are looked at before their flag.
    looks_early: bool,
    /// The flags of the request that were not seen set yet.
    awaited: Range<u32>,
    /// Whether the answer of this request is looked at before its flag.
    is_looking: bool,
    /// Records of the answer that were seen: the header, then rows.
    num_seen: u32,
    /// Rows of the answer, once the header was seen.
    num_rows: u32,
    /// Rows of the first image that may hold another answer's words.
    num_stale: u32,
}

impl ResultWatch {
    /// Of a result of `plan` that may hold anything. `looks_early`: answers of one image without masks are seen before their
    /// flag; nobody but requests that [`begin`](Self::begin) here may write the result then.
    pub fn new(plan: &Plan, looks_early: bool) -> Self {
        Self {
            flags: (plan.result.flags / 4) as u32,
            header: (plan.result.headers / 4) as u32,
            rows: (plan.result.rows / 4) as u32,
            max_rows: plan.max_detections,
            looks_early: looks_early && plan.mask_kernel.is_none(),
            awaited: 0..0,
            is_looking: false,
            num_seen: 0,
            num_rows: 0,
            num_stale: plan.max_detections,
        }
    }

    /// Prepares the result for a request of `batch` images that is launched next. The one before [has ended](Self::has_ended).
    pub fn begin(&mut self, plan: &Plan, batch: usize, load: impl Fn(u32) -> u32, mut store: impl FnMut(u32, u32)) {
        debug_assert!(self.awaited.is_empty(), "a flag that comes late would be taken for the next request's");
        self.awaited = 0..plan.num_flags(batch);
        for flag in self.awaited.clone() {
            store(self.flags + flag_word(flag), 0);
        }
        self.is_looking = self.looks_early && batch == 1;
        if self.looks_early {
            // What the request before has written; a header that was not written stands for all rows.
            self.num_stale = self.num_stale.max(load(self.header).min(self.max_rows));
        }
        if self.is_looking {
            (self.num_seen, self.num_rows) = (0, 0);
            (0..=self.num_stale).flat_map(|record| self.words(record)).for_each(|word| store(word, NOT_WRITTEN));
            self.num_stale = 0;
        }
    }

    /// Whether the answer is there. What was seen is not looked at again.
    pub fn is_answered(&mut self, sequence: u32, load: impl Fn(u32) -> u32) -> bool {
        self.sees_all_words(&load) || self.has_ended(sequence, load)
    }

    /// Whether all flags have the request's number: the answer is there, and the request uses no buffer any more.
    pub fn has_ended(&mut self, sequence: u32, load: impl Fn(u32) -> u32) -> bool {
        while !self.awaited.is_empty() && load(self.flags + flag_word(self.awaited.start)) == sequence {
            self.awaited.start += 1;
        }
        self.awaited.is_empty()
    }

    fn sees_all_words(&mut self, load: impl Fn(u32) -> u32) -> bool {
        if !self.is_looking {
            return false;
        }
        let is_written = |mut words: Range<u32>| words.all(|word| load(word) != NOT_WRITTEN);
        while self.num_seen <= self.num_rows {
            if !is_written(self.words(self.num_seen)) {
                return false;
            }
            if self.num_seen == 0 {
                self.num_rows = load(self.header).min(self.max_rows);
            }
            self.num_seen += 1;
        }
        true
    }

    /// The words of an answer's record that the device writes: first the header, then the rows.
    fn words(&self, record: u32) -> Range<u32> {
        let (first, len) = match record.checked_sub(1) {
            None => (self.header, HEADER_WORDS),
            Some(row) => (self.rows + ROW_WORDS * row, EARLY_ROW_WORDS),
        };
        first..first + len
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};
    use core::cell::{Cell, RefCell};

    use super::*;
    use crate::{
        geometry::Size,
        options::{MaskFormat, Options},
        plan::{DeviceLimits, PlanSpec},
        request::ModelShape,
    };

    const SEQUENCE: u32 = 1;
    const MAX_ROWS: u32 = 10;

    fn plan(mask_format: MaskFormat) -> Plan {
        let shape = ModelShape { num_queries: MAX_ROWS as usize, num_classes: 3, mask_grid: Some((6, 9)) };
        let options = Options { mask_format, ..Options::default() };
        let spec = PlanSpec { shape, max_batch: 3, max_image: Size::new(50, 40), options, mask_capacity: None };
        Plan::new(spec, DeviceLimits::new(4)).unwrap()
    }

    /// A result that the device writes.
    struct Memory {
        plan: Plan,
        words: Vec<Cell<u32>>,
        random: u64,
    }

    impl Memory {
        fn new(mask_format: MaskFormat) -> Self {
            let plan = plan(mask_format);
            // What a buffer holds that was never used, or used for something else.
            Self { words: vec![Cell::new(7); plan.result.masks as usize / 4], plan, random: 1 }
        }

        fn below(&mut self, bound: u32) -> u32 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((self.random >> 33) % u64::from(bound)) as u32
        }

        fn begin(&self, watch: &mut ResultWatch, batch: usize) {
            watch.begin(&self.plan, batch, |word| self.load(word), |word, value| self.words[word as usize].set(value));
        }

        fn load(&self, word: u32) -> u32 {
            self.words[word as usize].get()
        }

        /// What a request stores but for its flags, in random order; its images have so many rows.
        fn stores(&mut self, rows: &[u32]) -> Vec<(u32, u32)> {
            let mut stores = Vec::new();
            for (image, &num_rows) in (0..).zip(rows) {
                let header = (self.plan.result.headers / 4) as u32 + 8 * image;
                stores.push((header, num_rows));
                (1..8).for_each(|word| stores.push((header + word, 0)));
                let first = (self.plan.result.rows / 4) as u32 + 16 * MAX_ROWS * image;
                for row in 0..num_rows {
                    (0..8).for_each(|word| stores.push((first + 16 * row + word, 100 + row)));
                }
            }
            for i in (1..stores.len()).rev() {
                let other = self.below(i as u32 + 1) as usize;
                stores.swap(i, other);
            }
            stores
        }

        fn set_flags(&self, batch: usize) {
            for flag in 0..self.plan.num_flags(batch) {
                self.words[(self.plan.result.flags / 4) as usize + flag_word(flag) as usize].set(SEQUENCE);
            }
        }
    }

    /// Requests of every number of rows behind each other, in one result, some of several images: the answer is there with the last
    /// word of one image, whichever that is, and with the last flag of several.
    #[test]
    fn an_answer_is_there_with_its_last_word() {
        let mut memory = Memory::new(MaskFormat::None);
        let mut watch = ResultWatch::new(&memory.plan, true);
        for round in 0..600 {
            let batch = if memory.below(3) == 0 { 3 } else { 1 };
            let rows: Vec<_> = (0..batch).map(|_| memory.below(MAX_ROWS + 1)).collect();
            memory.begin(&mut watch, batch);
            let stores = memory.stores(&rows);
            for (idx, (word, value)) in stores.iter().enumerate() {
                let is_there = watch.is_answered(SEQUENCE, |word| memory.load(word));
                assert!(!is_there, "round {round}: {rows:?} rows after {idx} of {} words", stores.len());
                memory.words[*word as usize].set(*value);
            }
            assert_eq!(
                watch.is_answered(SEQUENCE, |word| memory.load(word)),
                batch == 1,
                "round {round}: {rows:?} rows"
            );
            assert!(!watch.has_ended(SEQUENCE, |word| memory.load(word)), "round {round}");
            memory.set_flags(batch);
            assert!(watch.is_answered(SEQUENCE, |word| memory.load(word)), "round {round}");
            assert!(watch.has_ended(SEQUENCE, |word| memory.load(word)), "round {round}");
        }
    }

    /// Each word is waited for: all others are there.
    #[test]
    fn no_word_is_left_out() {
        let mut memory = Memory::new(MaskFormat::None);
        let stores = memory.stores(&[3]);
        assert_eq!(stores.len(), 8 + 3 * 8);
        for late in 0..stores.len() {
            let mut watch = ResultWatch::new(&memory.plan, true);
            memory.begin(&mut watch, 1);
            let is_there = |watch: &mut ResultWatch| watch.is_answered(SEQUENCE, |word| memory.load(word));
            for (idx, (word, value)) in stores.iter().enumerate() {
                if idx != late {
                    memory.words[*word as usize].set(*value);
                }
            }
            assert!(!is_there(&mut watch), "without word {}", stores[late].0);
            memory.words[stores[late].0 as usize].set(stores[late].1);
            assert!(is_there(&mut watch), "with word {}", stores[late].0);
        }
    }

    /// What was seen is not looked at again.
    #[test]
    fn looks_go_on_where_they_ended() {
        let mut memory = Memory::new(MaskFormat::None);
        let mut watch = ResultWatch::new(&memory.plan, true);
        memory.begin(&mut watch, 1);
        let first = (memory.plan.result.rows / 4) as u32;
        let last = first + 16 * 2;
        for (word, value) in memory.stores(&[3]) {
            if word < last {
                memory.words[word as usize].set(value);
            }
        }
        assert!(!watch.is_answered(SEQUENCE, |word| memory.load(word)));
        let looked_at = RefCell::new(Vec::new());
        let load = |word| {
            looked_at.borrow_mut().push(word);
            memory.load(word)
        };
        assert!(!watch.is_answered(SEQUENCE, load));
        assert_eq!(looked_at.take(), [last, (memory.plan.result.flags / 4) as u32]);
    }

    #[test]
    fn a_word_like_none_waits_for_the_flag() {
        let mut memory = Memory::new(MaskFormat::None);
        let mut watch = ResultWatch::new(&memory.plan, true);
        memory.begin(&mut watch, 1);
        for (word, value) in memory.stores(&[2]) {
            memory.words[word as usize].set(value);
        }
        memory.words[(memory.plan.result.rows / 4) as usize + 3].set(NOT_WRITTEN);
        assert!(!watch.is_answered(SEQUENCE, |word| memory.load(word)));
        memory.set_flags(1);
        assert!(watch.is_answered(SEQUENCE, |word| memory.load(word)));
    }

    /// A header that is damaged does not lead behind the rows.
    #[test]
    fn more_rows_than_there_are_do_not_count() {
        let mut memory = Memory::new(MaskFormat::None);
        let mut watch = ResultWatch::new(&memory.plan, true);
        for _ in 0..2 {
            memory.begin(&mut watch, 1);
            for (word, value) in memory.stores(&[MAX_ROWS]) {
                memory.words[word as usize].set(value);
            }
            memory.words[(memory.plan.result.headers / 4) as usize].set(1 << 20);
            assert!(watch.is_answered(SEQUENCE, |word| memory.load(word)));
            memory.set_flags(1);
            assert!(watch.has_ended(SEQUENCE, |word| memory.load(word)));
        }
    }

    /// With masks, and where nobody asked for it, there are the flags alone, and nothing else is touched.
    #[test]
    fn others_wait_for_their_flags() {
        for (mask_format, looks_early) in
            [(MaskFormat::None, false), (MaskFormat::Rle, true), (MaskFormat::Dense, true)]
        {
            let memory = Memory::new(mask_format);
            let mut watch = ResultWatch::new(&memory.plan, looks_early);
            memory.begin(&mut watch, 1);
            assert!(memory.words.iter().all(|word| word.get() != NOT_WRITTEN), "{mask_format:?}");
            assert!(!watch.is_answered(SEQUENCE, |word| memory.load(word)), "{mask_format:?}");
            memory.set_flags(1);
            assert!(watch.is_answered(SEQUENCE, |word| memory.load(word)), "{mask_format:?}");
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "a flag that comes late")]
    fn a_request_begins_when_the_one_before_has_ended() {
        let memory = Memory::new(MaskFormat::None);
        let mut watch = ResultWatch::new(&memory.plan, true);
        memory.begin(&mut watch, 1);
        memory.begin(&mut watch, 1);
    }
}

//! Runs: where a mask changes along its columns, and what follows from that: counts, strings, area and box.
//!
//! A mask is a list of *toggles*, the column-major positions at which it changes, starting from background. They rise
//! strictly, and the last is below the number of pixels. Counts are the differences of toggles (spec 6.1).
#![forbid(unsafe_code)]

/// Collects toggles in column-major order.
#[derive(Debug, Default)]
pub(crate) struct Toggles {
    /// A slot that no position equals, then the toggles, then slack.
    slots: Vec<u32>,
    /// Index of the last toggle in `slots`; 0 when there is none.
    last: usize,
}

impl Toggles {
    pub(crate) fn clear(&mut self) {
        if self.slots.is_empty() {
            self.slots.push(u32::MAX);
        }
        self.last = 0;
    }

    /// A place to push up to `room` toggles.
    #[inline(always)]
    pub(crate) fn cursor(&mut self, room: usize) -> Cursor<'_> {
        let needed = self.last + 1 + room;
        if self.slots.len() < needed {
            self.slots.resize(needed.next_power_of_two(), 0);
        }
        let (idx, top) = (self.last, self.slots[self.last]);
        Cursor { slots: &mut self.slots, last: &mut self.last, idx, top }
    }

    /// Ends the mask: what changes after its last pixel does not count.
    pub(crate) fn finish(&mut self, num_pixels: u32) {
        if self.last > 0 && self.slots[self.last] == num_pixels {
            self.last -= 1;
        }
    }

    /// The toggles.
    #[inline(always)]
    pub(crate) fn get(&self) -> &[u32] {
        &self.slots[1..self.last + 1]
    }
}

/// The end of the list, in registers: through memory, each push would wait for the one before.
pub(crate) struct Cursor<'a> {
    slots: &'a mut [u32],
    last: &'a mut usize,
    idx: usize,
    /// `slots[idx]`.
    top: u32,
}

impl Cursor<'_> {
    /// Adds a change at `position`; two changes at one position cancel. That merges a run which ends at the bottom of a
    /// column with one that starts at the top of the next.
    #[inline(always)]
    pub(crate) fn push(&mut self, position: u32) {
        if position == self.top {
            self.idx -= 1;
            self.top = self.slots[self.idx];
        } else {
            self.idx += 1;
            self.slots[self.idx] = position;
            self.top = position;
        }
    }

    /// Keeps what was pushed.
    #[inline(always)]
    pub(crate) fn keep(self) {
        *self.last = self.idx;
    }
}

/// Number of counts of these toggles.
pub(crate) fn num_counts(toggles: &[u32]) -> u32 {
    toggles.len() as u32 + 1
}

/// Number of foreground pixels, and their tight box (left, top, right, bottom, half-open; zeros when empty).
#[inline(always)]
pub(crate) fn area_and_box(toggles: &[u32], num_pixels: u32, height: u32) -> (u32, [u32; 4]) {
    let (Some(&first), Some(&last)) = (toggles.first(), toggles.last()) else { return (0, [0; 4]) };
    let (runs, open) = toggles.as_chunks::<2>();
    let column = Divider::new(height);
    let mut area = 0u32;
    let (mut top, mut bottom) = (u32::MAX, 0);
    let mut add = |start: u32, end: u32| {
        area += end - start;
        let base = column.quotient(start) * height;
        let (from, to) = (start - base, end - base);
        let crosses = to > height;
        top = top.min(if crosses { 0 } else { from });
        bottom = bottom.max(if crosses { height } else { to });
    };
    for &[start, end] in runs {
        add(start, end);
    }
    if let [start] = *open {
        add(start, num_pixels);
    }
    let end = if open.is_empty() { last } else { num_pixels };
    (area, [first / height, top, (end - 1) / height + 1, bottom])
}

/// Division of `u32` by a constant through a multiplication (Lemire and others, 2019: exact for all 32-bit numbers).
#[derive(Debug, Clone, Copy)]
struct Divider {
    /// `ceil(2^64 / divisor)`, or 0 for a divisor of 1.
    magic: u64,
}

impl Divider {
    #[inline(always)]
    fn new(divisor: u32) -> Self {
        Self { magic: (u64::MAX / u64::from(divisor)).wrapping_add(1) }
    }

    #[inline(always)]
    fn quotient(self, x: u32) -> u32 {
        if self.magic == 0 { x } else { ((u128::from(self.magic) * u128::from(x)) >> 64) as u32 }
    }
}

/// Appends the counts.
#[inline(always)]
pub(crate) fn append_counts(toggles: &[u32], num_pixels: u32, out: &mut Vec<u32>) {
    out.reserve(toggles.len() + 1);
    let mut previous = 0;
    out.extend(toggles.iter().chain([&num_pixels]).map(|&toggle| {
        let count = toggle - previous;
        previous = toggle;
        count
    }));
}

/// Appends COCO's compressed string of the counts (spec 6.2).
#[inline(always)]
pub(crate) fn append_string(toggles: &[u32], num_pixels: u32, out: &mut Vec<u8>) {
    let (mut previous, mut counts) = (0, [0i64; 3]);
    for (i, &toggle) in toggles.iter().chain([&num_pixels]).enumerate() {
        let count = i64::from(toggle - previous);
        previous = toggle;
        counts = [counts[1], counts[2], count];
        let mut x = if i > 2 { count - counts[0] } else { count };
        loop {
            let group = (x & 0x1f) as u8;
            x >>= 5;
            let done = if group & 0x10 == 0 { x == 0 } else { x == -1 };
            out.push(48 + group + if done { 0 } else { 32 });
            if done {
                break;
            }
        }
    }
}

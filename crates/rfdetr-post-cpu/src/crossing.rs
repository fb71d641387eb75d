//! Masks without touching pixels: where the resized window changes its sign, found from the signs of its cells.
//!
//! # The simple version
//!
//! ```text
//! for each column x of the image:
//!     for each pair of mask rows r - 1, r whose values at x differ in sign:     # horizontal pass, two products each
//!         the rows of the image between them change sign once: count the positive ones
//! ```
//!
//! # Why it is exact
//!
//! Both resizes are separable: a horizontal pass gives `h[r] = fma(cell, w, cell' * w')` for mask row `r`, rounded to
//! f32, and a vertical pass the same of two `h`. (Antialias: the product of the lower cell is rounded and that of the
//! upper fused, spec 5.4. Without antialias: the other way round, since `fma(m0, a, m1 * b)` is `h` of the upper row
//! and `fma(l0, h0, l1 * h1)` combines two rows, spec 5.6. The argument below does not care which.)
//!
//! 1. *At most one change in a group.* Inside a group (the pixels between the same two cells) the weight of the upper
//!    cell does not fall and that of the lower does not rise (G2 of [`Groups`], checked when it is built, so nothing
//!    rests on how the weights were computed). Let the lower value be positive and the upper not. Along the group both
//!    exact products do not rise; rounding the one, adding, and rounding the sum are monotone; so the value does not
//!    rise and changes from positive to not positive at most once. The other case is its mirror image.
//! 2. *None where the signs agree.* If neither cell is positive, no product is, and neither is the sum. If both are
//!    positive, the sum is positive unless it vanishes in rounding. One weight is at least 1/4 (G1), so it does not if
//!    the cells are at least 2^-146. Cells of the window are zero or in 2^-40..2^100 (*ordinary*, checked when they are
//!    loaded). Values of the horizontal pass can cancel, but are multiples of the product of the last places of a
//!    weight (at least 2^-60, G1, so of 2^-83) and of a cell (2^-63): zero or at least 2^-146. Nothing overflows, so
//!    there is no NaN either.
//! 3. *So signs of cells decide nearly everything.* Along x, the sign of `h[r]` changes inside a group only if the cells
//!    of row `r` differ in sign, and then once: [`Isa::count_positive`] evaluates the exact expression for all pixels of
//!    the group at once and counts. Down a column, the same with `h[r - 1]` and `h[r]`.
//!
//! # What makes it fast
//!
//! 1. The signs of a column of cells are a few machine words. The changes down the column are `s ^ (s << 1)`, and only
//!    set bits are visited: two or so for a column of a usual mask.
//! 2. Signs are kept from pixel to pixel: a group starts with the signs of its lower cells, and the few rows that change
//!    inside it are noted at the pixel where they do.
//! 3. Groups between two columns of cells without a positive one are skipped.
//! 4. One comparison of a vector answers where among 16 pixels the sign changes; there is no search.
//! 5. For dense masks the same counts, taken for 16 columns at once, become a threshold for each column: row `y` of the
//!    group is foreground where `threshold > y`. Rows are then written with one byte comparison, 64 pixels at a time, and
//!    cells whose four corners agree need no arithmetic.
#![forbid(unsafe_code)]

use rfdetr_post_core::request::MaskGeometry;

use crate::{
    axis::{Axis, Groups},
    bits,
    grid::Window,
    runs::{Cursor, Toggles},
    simd::{Isa, LANES, write_below},
};

/// Most words of a column of signs, with one bit to spare: grids of up to 255 rows.
const MAX_WORDS: usize = 4;

/// Most rows of a group that thresholds can tell apart.
const MAX_GROUP: usize = 240;

/// Most columns of a group; a cell that wide is no image of a model, and lists of events would grow large.
const MAX_GROUP_OF_COLUMNS: usize = 1 << 13;

/// Groups whose weights are more than this are searched, not counted.
const MAX_COUNTED: usize = 4 * LANES;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Buffers that live from one mask to the next.
#[derive(Debug, Default)]
pub(crate) struct Crossings {
    /// Signs of the window's columns.
    columns: Vec<u64>,
    /// Rows that change at a pixel of the group.
    flips: Vec<u64>,
    /// Changes down the columns of the group, see [`Resolve`].
    events: Vec<u32>,
    /// For each column of the canvas (after [`MARGIN`]): its threshold in the current group of rows.
    thresholds: Vec<u8>,
    /// Whether a column is foreground from its threshold on, instead of before it.
    reversed: Vec<u8>,
}

/// Bytes before and after the thresholds, so that whole vectors may be read.
const MARGIN: usize = 64;

/// The axes of a window that qualifies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grouped<'a> {
    columns: &'a Groups,
    rows: &'a Groups,
}

impl<'a> Grouped<'a> {
    /// None if the window or the axes need the plain way.
    #[inline(always)]
    pub(crate) fn new(window: &Window, [columns, rows]: [&'a Axis; 2]) -> Option<Self> {
        let (columns, rows) = (columns.groups.as_ref()?, rows.groups.as_ref()?);
        let fits = window.n_h < MAX_WORDS * 64 && rows.largest <= MAX_GROUP && columns.largest <= MAX_GROUP_OF_COLUMNS;
        (window.ordinary && fits).then_some(Self { columns, rows })
    }
}

/// Turns the events of one group of columns into toggles. An event is a column of the group, a row of cells whose sign
/// differs from that of the row above, and whether it is the positive one. The outside is negative, so the first row
/// and the end of the last row have events too; the groups of rows there see one row only, of one sign, and the
/// formulas below give the first pixel and the end of the content without a special case.
struct Resolve<'a> {
    cells: &'a [f32],
    stride: usize,
    n_h: usize,
    /// Columns of the cells of this group.
    rounded: usize,
    fused: usize,
    weights_rounded: &'a [f32],
    weights_fused: &'a [f32],
    rows: &'a Groups,
    canvas_h: u32,
    /// Position of the first pixel of the group's first column.
    position: u32,
}

impl Resolve<'_> {
    /// `ONE_VECTOR`: groups of rows have at most 16 rows. `LOWER_FIRST`: as in the groups of rows.
    #[inline(always)]
    fn push<I: Isa, const ONE_VECTOR: bool, const LOWER_FIRST: bool>(
        &self,
        isa: I,
        events: &[u32],
        toggles: &mut Cursor<'_>,
    ) {
        let Self { cells, stride, n_h, rounded, fused, weights_rounded, weights_fused, rows, canvas_h, position } =
            *self;
        let (rows_rounded, rows_fused) = (rows.rounded.as_chunks::<LANES>().0, rows.fused.as_chunks::<LANES>().0);
        let starts = &rows.starts[..n_h + 2];
        for &event in events {
            let (x, row, rises) = ((event >> 10) as usize, (event >> 1 & 0x1ff) as usize, event & 1 != 0);
            let (wr, wf) = (weights_rounded[x], weights_fused[x]);
            let above = &cells[row.saturating_sub(1) * stride..];
            let below = &cells[row.min(n_h - 1) * stride..];
            let above = above[fused].mul_add(wf, above[rounded] * wr);
            let below = below[fused].mul_add(wf, below[rounded] * wr);
            let (a, b) = if LOWER_FIRST { (above, below) } else { (below, above) };
            let positive = if ONE_VECTOR {
                isa.count_positive(a, b, &rows_rounded[row], &rows_fused[row])
            } else {
                count(isa, rows, row, a, b) as u32
            };
            let (from, to) = (starts[row] + positive, starts[row + 1] - positive);
            toggles.push(position + x as u32 * canvas_h + if rises { to } else { from });
        }
    }
}

/// Number of pixels of group `k` whose value is positive. The signs of the cells differ.
#[inline(always)]
fn count<I: Isa>(isa: I, groups: &Groups, k: usize, rounded: f32, fused: f32) -> usize {
    let range = k * groups.stride..(k + 1) * groups.stride;
    let (wr, wf) = (&groups.rounded[range.clone()], &groups.fused[range]);
    if groups.stride <= MAX_COUNTED {
        // The weights that fill up the last vector are zero, and so are their values.
        let mut count = 0;
        for (wr, wf) in wr.as_chunks::<LANES>().0.iter().zip(wf.as_chunks::<LANES>().0) {
            count += isa.count_positive(rounded, fused, wr, wf) as usize;
        }
        return count;
    }
    let (start, end) = groups.pixels(k);
    let positive = |i: usize| fused.mul_add(wf[i], rounded * wr[i]) > 0.0;
    let (mut low, mut high) = (0, end - start);
    if low == high {
        return 0;
    }
    let first = positive(0);
    while low < high {
        let middle = low + (high - low) / 2;
        if positive(middle) == first { low = middle + 1 } else { high = middle }
    }
    if first { low } else { end - start - low }
}

impl Crossings {
    /// Pushes the toggles of the mask.
    #[inline(always)]
    pub(crate) fn toggles<I: Isa>(
        &mut self,
        isa: I,
        window: &Window,
        grouped: Grouped<'_>,
        geometry: &MaskGeometry,
        toggles: &mut Toggles,
    ) {
        bits::transpose_rows(&window.signs, window.words, window.n_h, window.n_w, &mut self.columns);
        match window.n_h / 64 {
            0 => self.columns::<I, 1>(isa, window, grouped, geometry, toggles),
            1 => self.columns::<I, 2>(isa, window, grouped, geometry, toggles),
            2 => self.columns::<I, 3>(isa, window, grouped, geometry, toggles),
            _ => self.columns::<I, MAX_WORDS>(isa, window, grouped, geometry, toggles),
        }
        toggles.finish(geometry.canvas.area() as u32);
    }

    /// With columns of `WORDS` words, which have room for a bit after the last row.
    #[inline(always)]
    fn columns<I: Isa, const WORDS: usize>(
        &mut self,
        isa: I,
        window: &Window,
        Grouped { columns, rows }: Grouped<'_>,
        geometry: &MaskGeometry,
        toggles: &mut Toggles,
    ) {
        let (n_w, n_h) = (window.n_w, window.n_h);
        let tall = n_h.div_ceil(64);
        self.flips.clear();
        self.flips.resize(columns.largest * WORDS, 0);
        // Bits of a column: one for each row, and one for what comes after the last.
        let room = columns.largest * (n_h + 1);
        if self.events.len() < room {
            self.events.resize(room, 0);
        }
        let mut next: [u64; WORDS] = signs_of(&self.columns, 0, tall);
        for k in 0..=n_w {
            let lower = next;
            next = signs_of(&self.columns, k.min(n_w - 1), tall);
            let (x0, x1) = columns.pixels(k);
            let mut any = 0;
            for w in 0..WORDS {
                any |= lower[w] | next[w];
            }
            if x0 == x1 || any == 0 {
                continue;
            }
            let cells = columns.cells(k, n_w);
            let any_flips = self.find_flips(isa, window, columns, k, &lower, &next);
            let num_events = self.find_events(x1 - x0, lower, any_flips);
            let mut cursor = toggles.cursor(num_events);
            let group = k * columns.stride..k * columns.stride + (x1 - x0);
            let resolve = Resolve {
                cells: &window.cells,
                stride: window.stride,
                n_h,
                rounded: cells.0,
                fused: cells.1,
                weights_rounded: &columns.rounded[group.clone()],
                weights_fused: &columns.fused[group],
                rows,
                canvas_h: geometry.canvas.height,
                position: (geometry.offset_x + x0 as u32) * geometry.canvas.height + geometry.offset_y,
            };
            let events = &self.events[..num_events];
            match (rows.stride == LANES, rows.lower_first) {
                (true, true) => resolve.push::<I, true, true>(isa, events, &mut cursor),
                (true, false) => resolve.push::<I, true, false>(isa, events, &mut cursor),
                (false, true) => resolve.push::<I, false, true>(isa, events, &mut cursor),
                (false, false) => resolve.push::<I, false, false>(isa, events, &mut cursor),
            }
            cursor.keep();
        }
    }

    /// Notes the rows whose sign changes inside group `k` of columns at the pixel where it does. Returns whether there
    /// are any.
    #[inline(always)]
    fn find_flips<I: Isa, const WORDS: usize>(
        &mut self,
        isa: I,
        window: &Window,
        columns: &Groups,
        k: usize,
        lower: &[u64; WORDS],
        upper: &[u64; WORDS],
    ) -> bool {
        let (x0, x1) = columns.pixels(k);
        let (rounded, fused) = columns.cells(k, window.n_w);
        let mut any = 0;
        for w in 0..WORDS {
            let mut differ = lower[w] ^ upper[w];
            any |= differ;
            while differ != 0 {
                let bit = differ & differ.wrapping_neg();
                let cells = &window.cells[(w * 64 + differ.trailing_zeros() as usize) * window.stride..];
                let positive = count(isa, columns, k, cells[rounded], cells[fused]);
                let at = if lower[w] & bit != 0 { positive } else { x1 - x0 - positive };
                if at < x1 - x0 {
                    self.flips[at * WORDS + w] ^= bit;
                }
                differ ^= bit;
            }
        }
        any != 0
    }

    /// Lists the changes down each of the `width` columns of a group, and uses up its flips. Returns their number.
    #[inline(always)]
    fn find_events<const WORDS: usize>(&mut self, width: usize, mut signs: [u64; WORDS], any_flips: bool) -> usize {
        let mut num_events = 0;
        for x in 0..width {
            if any_flips {
                let flips = &mut self.flips[x * WORDS..(x + 1) * WORDS];
                for w in 0..WORDS {
                    signs[w] ^= flips[w];
                    flips[w] = 0;
                }
            }
            let mut carry = 0;
            for (w, &sign) in signs.iter().enumerate() {
                let mut changes = sign ^ (sign << 1 | carry);
                carry = sign >> 63;
                while changes != 0 {
                    let bit = changes.trailing_zeros();
                    let rises = (sign >> bit) as u32 & 1;
                    self.events[num_events] = (x as u32) << 10 | (w as u32 * 64 + bit) << 1 | rises;
                    num_events += 1;
                    changes &= changes - 1;
                }
            }
        }
        num_events
    }

    /// Computes the thresholds of the columns in group `k` of rows. Returns the columns of the content that may be
    /// foreground there; none if none is.
    #[inline(always)]
    fn thresholds<I: Isa>(
        &mut self,
        isa: I,
        window: &Window,
        Grouped { columns, rows, .. }: Grouped<'_>,
        k: usize,
        offset_x: usize,
    ) -> Option<(usize, usize)> {
        let (n_w, n_h) = (window.n_w, window.n_h);
        let (lower, upper) = (k.saturating_sub(1), k.min(n_h - 1));
        let signs = |row: usize| &window.signs[row * window.words..][..window.words];
        let (above, below) = (signs(lower), signs(upper));
        let any = |w: usize| above[w] | below[w];
        let first_word = (0..window.words).find(|&w| any(w) != 0)?;
        let last_word = (0..window.words).rfind(|&w| any(w) != 0)?;
        let first = first_word * 64 + any(first_word).trailing_zeros() as usize;
        let last = last_word * 64 + 63 - any(last_word).leading_zeros() as usize;

        let (y0, y1) = rows.pixels(k);
        let num_rows = (y1 - y0) as u8;
        let weights = k * rows.stride..k * rows.stride + (y1 - y0);
        let row_weights = (&rows.rounded[weights.clone()], &rows.fused[weights]);
        let cells_above = &window.cells[lower * window.stride..][..n_w];
        let cells_below = &window.cells[upper * window.stride..][..n_w];
        let mut right = corners(above, below, first.saturating_sub(1));
        for group in first..=last + 1 {
            let left = right;
            right = corners(above, below, group.min(n_w - 1));
            let (x0, x1) = columns.pixels(group);
            let at = MARGIN + offset_x + x0;
            let num_positive = left.0 + left.1 + right.0 + right.1;
            if num_positive == 0 || num_positive == 4 {
                // Above every row, or above none.
                let threshold = if num_positive == 0 { 0 } else { num_rows };
                for at in (at..at + (x1 - x0)).step_by(LANES) {
                    self.thresholds[at..at + LANES].fill(threshold);
                    self.reversed[at..at + LANES].fill(0);
                }
                continue;
            }
            let (rounded, fused) = columns.cells(group, n_w);
            for i in (0..x1 - x0).step_by(LANES) {
                let wr = chunk(&columns.rounded[group * columns.stride + i..]);
                let wf = chunk(&columns.fused[group * columns.stride + i..]);
                let a = stretch(cells_above[rounded], cells_above[fused], &wr, &wf);
                let b = stretch(cells_below[rounded], cells_below[fused], &wr, &wf);
                let (r, f) = if rows.lower_first { (&a, &b) } else { (&b, &a) };
                let (thresholds, reversed) = isa.edges(r, f, rows.lower_first, row_weights);
                self.thresholds[at + i..at + i + LANES].copy_from_slice(&thresholds);
                self.reversed[at + i..at + i + LANES].copy_from_slice(&reversed);
            }
        }
        Some((columns.starts[first] as usize, columns.starts[last + 2] as usize))
    }

    /// Room for the thresholds of a whole row of the canvas.
    fn make_room(&mut self, geometry: &MaskGeometry) {
        let len = MARGIN + geometry.canvas.width as usize + 2 * MARGIN;
        if self.thresholds.len() < len {
            self.thresholds.resize(len, 0);
            self.reversed.resize(len, 0);
        }
    }

    /// Writes the mask as bytes, past the caches if `stream`. Returns its area and box.
    #[inline(always)]
    pub(crate) fn dense<I: Isa>(
        &mut self,
        isa: I,
        window: &Window,
        grouped: Grouped<'_>,
        geometry: &MaskGeometry,
        stream: bool,
        out: &mut [u8],
    ) -> (u32, [u32; 4]) {
        self.make_room(geometry);
        let width = geometry.canvas.width as usize;
        let (offset_x, offset_y) = (geometry.offset_x as usize, geometry.offset_y as usize);
        let misaligned = out.as_ptr() as usize % LINE;
        // Everything before it is written.
        let mut done = 0;
        let mut extent = Extent::default();
        for k in 0..=window.n_h {
            let (y0, y1) = grouped.rows.pixels(k);
            if y0 == y1 {
                continue;
            }
            let Some((x0, x1)) = self.thresholds(isa, window, grouped, k, offset_x) else { continue };
            let (x0, x1) = (offset_x + x0, offset_x + x1);
            extent.add(&self.thresholds[MARGIN..], &self.reversed[MARGIN..], (x0, x1), (offset_y + y0, y1 - y0));
            self.clear_around(x0 - x0.min(LINE), x0, x1, x1 + LINE);
            for y in y0..y1 {
                let start = (offset_y + y) * width;
                let (mut from, mut to) = (start + x0, start + x1);
                if stream {
                    // Whole cache lines, so that none is written in two pieces.
                    from = from.saturating_sub((from + misaligned) % LINE).max(start);
                    to = (to + (LINE - (to + misaligned) % LINE) % LINE).min(start + width);
                }
                let at = MARGIN + from - start..MARGIN + to - start;
                let (thresholds, reversed) = (&self.thresholds[at.clone()], &self.reversed[at]);
                if stream {
                    isa.stream_zero(&mut out[done..from]);
                    isa.stream_below((y - y0) as u8, thresholds, reversed, &mut out[from..to]);
                } else {
                    out[done..from].fill(0);
                    write_below((y - y0) as u8, thresholds, reversed, &mut out[from..to]);
                }
                done = to;
            }
        }
        if stream {
            isa.stream_zero(&mut out[done..]);
            isa.fence();
        } else {
            out[done..].fill(0);
        }
        extent.area_and_box()
    }

    /// Makes the columns `before..from` and `to..after` of the canvas background.
    #[inline(always)]
    fn clear_around(&mut self, before: usize, from: usize, to: usize, after: usize) {
        for range in [MARGIN + before..MARGIN + from, MARGIN + to..MARGIN + after] {
            self.thresholds[range.clone()].fill(0);
            self.reversed[range].fill(0);
        }
    }

    /// Writes the mask as bits, each row in whole words. Returns its area and box.
    #[inline(always)]
    pub(crate) fn bit_packed<I: Isa>(
        &mut self,
        isa: I,
        window: &Window,
        grouped: Grouped<'_>,
        geometry: &MaskGeometry,
        out: &mut [u32],
    ) -> (u32, [u32; 4]) {
        self.make_room(geometry);
        let words = geometry.canvas.width.div_ceil(32) as usize;
        let (offset_x, offset_y) = (geometry.offset_x as usize, geometry.offset_y as usize);
        let mut done = 0;
        let mut extent = Extent::default();
        for k in 0..=window.n_h {
            let (y0, y1) = grouped.rows.pixels(k);
            if y0 == y1 {
                continue;
            }
            let Some((x0, x1)) = self.thresholds(isa, window, grouped, k, offset_x) else { continue };
            let (x0, x1) = (offset_x + x0, offset_x + x1);
            extent.add(&self.thresholds[MARGIN..], &self.reversed[MARGIN..], (x0, x1), (offset_y + y0, y1 - y0));
            // Whole vectors from a word's first column on: what lies around the columns is background.
            self.clear_around(x0 / 32 * 32, x0, x1, x1 + MARGIN);
            let (first, last) = (x0 / 32, x1.div_ceil(32));
            let at = MARGIN + first * 32;
            let vectors = (last - first).div_ceil(2);
            let thresholds = &self.thresholds[at..at + vectors * 64];
            let reversed = &self.reversed[at..at + vectors * 64];
            for y in y0..y1 {
                let start = (offset_y + y) * words;
                out[done..start + first].fill(0);
                done = start + last;
                let vectors = thresholds.as_chunks::<64>().0.iter().zip(reversed.as_chunks::<64>().0);
                for (out, (t, u)) in out[start + first..done].chunks_mut(2).zip(vectors) {
                    let bits = isa.below_mask((y - y0) as u8, t, u);
                    out[0] = bits as u32;
                    if let Some(out) = out.get_mut(1) {
                        *out = (bits >> 32) as u32;
                    }
                }
            }
        }
        out[done..].fill(0);
        extent.area_and_box()
    }
}

/// Area and box of a mask, collected from the thresholds of its groups of rows.
#[derive(Debug, Default)]
struct Extent {
    area: u32,
    /// Left, top, right, bottom; of no meaning while the area is 0.
    tight: [u32; 4],
}

impl Extent {
    /// Adds a group of `num_rows` rows that begins at row `y` of the canvas, by the thresholds of the canvas's columns.
    #[inline(always)]
    fn add(&mut self, thresholds: &[u8], reversed: &[u8], (x0, x1): (usize, usize), (y, num_rows): (usize, usize)) {
        let (thresholds, reversed) = (&thresholds[x0..x1], &reversed[x0..x1]);
        let n = num_rows as u8;
        let (mut area, mut top, mut bottom) = (0u32, u8::MAX, 0u8);
        for (&threshold, &reversed) in thresholds.iter().zip(reversed) {
            let count = rows_of(threshold, reversed, n);
            let (first, end) = if reversed != 0 { (threshold, n) } else { (0, threshold) };
            area += u32::from(count);
            top = top.min(if count == 0 { u8::MAX } else { first });
            bottom = bottom.max(if count == 0 { 0 } else { end });
        }
        if area == 0 {
            return;
        }
        let columns = || thresholds.iter().zip(reversed).map(|(&threshold, &reversed)| rows_of(threshold, reversed, n));
        let left = (x0 + columns().position(|count| count != 0).unwrap_or_default()) as u32;
        let right = (x0 + columns().rposition(|count| count != 0).unwrap_or_default()) as u32 + 1;
        let (top, bottom) = (y as u32 + u32::from(top), y as u32 + u32::from(bottom));
        self.tight = if self.area == 0 {
            [left, top, right, bottom]
        } else {
            [self.tight[0].min(left), self.tight[1], self.tight[2].max(right), bottom]
        };
        self.area += area;
    }

    fn area_and_box(&self) -> (u32, [u32; 4]) {
        (self.area, self.tight)
    }
}

/// Number of foreground rows of a column, of `n`.
#[inline(always)]
fn rows_of(threshold: u8, reversed: u8, n: u8) -> u8 {
    if reversed != 0 { n - threshold } else { threshold }
}

/// The words of a column of signs.
#[inline(always)]
fn signs_of<const WORDS: usize>(columns: &[u64], column: usize, tall: usize) -> [u64; WORDS] {
    let mut signs = [0; WORDS];
    for (sign, &word) in signs.iter_mut().zip(&columns[column * tall..][..tall]) {
        *sign = word;
    }
    signs
}

/// The horizontal pass for 16 columns of one group.
#[inline(always)]
fn stretch(rounded: f32, fused: f32, wr: &[f32; LANES], wf: &[f32; LANES]) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    for i in 0..LANES {
        values[i] = fused.mul_add(wf[i], rounded * wr[i]);
    }
    values
}

/// Whether column `x` of two rows of cells is positive.
#[inline(always)]
fn corners(above: &[u64], below: &[u64], x: usize) -> (u64, u64) {
    (above[x / 64] >> (x % 64) & 1, below[x / 64] >> (x % 64) & 1)
}

/// The first 16 weights; there are as many, because tables are filled up.
#[inline(always)]
fn chunk(weights: &[f32]) -> [f32; LANES] {
    weights.first_chunk().copied().unwrap_or_default()
}

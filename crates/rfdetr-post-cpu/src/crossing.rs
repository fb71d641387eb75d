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
    runs::Toggles,
    simd::{Isa, LANES},
};

/// Most words of a column of signs, with one bit to spare: grids of up to 255 rows.
const MAX_WORDS: usize = 4;

/// Most rows of a group that thresholds can tell apart.
const MAX_GROUP: usize = 240;

/// Groups whose weights are more than this are searched, not counted.
const MAX_COUNTED: usize = 4 * LANES;

/// Buffers that live from one mask to the next.
#[derive(Debug, Default)]
pub(crate) struct Crossings {
    /// Signs of the window's columns.
    columns: Vec<u64>,
    /// Rows that change at a pixel of the group.
    flips: Vec<u64>,
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
    size: (usize, usize),
}

impl<'a> Grouped<'a> {
    /// None if the window or the axes need the plain way.
    #[inline(always)]
    pub(crate) fn new(window: &Window, [columns, rows]: [&'a Axis; 2]) -> Option<Self> {
        let size = (columns.n_out, rows.n_out);
        let (columns, rows) = (columns.groups.as_ref()?, rows.groups.as_ref()?);
        (window.ordinary && window.n_h < MAX_WORDS * 64 && rows.largest <= MAX_GROUP).then_some(Self {
            columns,
            rows,
            size,
        })
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
        Grouped { columns, rows, size }: Grouped<'_>,
        geometry: &MaskGeometry,
        toggles: &mut Toggles,
    ) {
        let (n_w, n_h) = (window.n_w, window.n_h);
        let tall = n_h.div_ceil(64);
        self.flips.clear();
        self.flips.resize(columns.stride * WORDS, 0);
        let canvas_h = geometry.canvas.height;
        let mut next: [u64; WORDS] = signs_of(&self.columns, 0, tall);
        for k in 0..=n_w {
            let lower = next;
            next = signs_of(&self.columns, k.min(n_w - 1), tall);
            let (x0, x1) = columns.pixels(k);
            if x0 == x1 || (0..WORDS).all(|w| lower[w] | next[w] == 0) {
                continue;
            }
            let (rounded, fused) = columns.cells(k, n_w);
            // Rows whose sign changes inside the group, at the pixel where it does.
            let mut any_flips = false;
            for w in 0..WORDS {
                let mut differ = lower[w] ^ next[w];
                any_flips |= differ != 0;
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
            toggles.reserve((x1 - x0) * (n_h + 2));
            let weights = k * columns.stride..k * columns.stride + (x1 - x0);
            let weights = columns.rounded[weights.clone()].iter().zip(&columns.fused[weights]);
            let mut signs = lower;
            for ((x, (&wr, &wf)), flips) in (x0..x1).zip(weights).zip(self.flips.as_chunks_mut::<WORDS>().0) {
                if any_flips {
                    for w in 0..WORDS {
                        signs[w] ^= flips[w];
                    }
                    *flips = [0; WORDS];
                }
                let base = (geometry.offset_x + x as u32) * canvas_h + geometry.offset_y;
                if signs[0] & 1 != 0 {
                    toggles.push(base);
                }
                let mut carry = signs[0] & 1;
                for w in 0..WORDS {
                    let mut changes = signs[w] ^ (signs[w] << 1 | carry);
                    carry = signs[w] >> 63;
                    if w == n_h / 64 {
                        // The change after the last row lies at the end of the content, see below.
                        changes &= !(1 << (n_h % 64));
                    }
                    while changes != 0 {
                        let row = w * 64 + changes.trailing_zeros() as usize;
                        let falls = signs[w] & (changes & changes.wrapping_neg()) == 0;
                        changes &= changes - 1;
                        let cells = &window.cells[(row - 1) * window.stride..][..2 * window.stride];
                        let (above, below) = cells.split_at(window.stride);
                        let above = above[fused].mul_add(wf, above[rounded] * wr);
                        let below = below[fused].mul_add(wf, below[rounded] * wr);
                        let (a, b) = if rows.lower_first { (above, below) } else { (below, above) };
                        let positive = count(isa, rows, row, a, b) as u32;
                        let y = if falls { rows.starts[row] + positive } else { rows.starts[row + 1] - positive };
                        toggles.push(base + y);
                    }
                }
                if signs[(n_h - 1) / 64] >> ((n_h - 1) % 64) & 1 != 0 {
                    toggles.push(base + size.1 as u32);
                }
            }
        }
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

    /// Writes the mask as bytes.
    #[inline(always)]
    pub(crate) fn dense<I: Isa>(
        &mut self,
        isa: I,
        window: &Window,
        grouped: Grouped<'_>,
        geometry: &MaskGeometry,
        out: &mut [u8],
    ) {
        self.make_room(geometry);
        let width = geometry.canvas.width as usize;
        let (offset_x, offset_y) = (geometry.offset_x as usize, geometry.offset_y as usize);
        // Everything before it is written.
        let mut done = 0;
        for k in 0..=window.n_h {
            let (y0, y1) = grouped.rows.pixels(k);
            if y0 == y1 {
                continue;
            }
            let Some((x0, x1)) = self.thresholds(isa, window, grouped, k, offset_x) else { continue };
            let at = MARGIN + offset_x + x0..MARGIN + offset_x + x1;
            let (thresholds, reversed) = (&self.thresholds[at.clone()], &self.reversed[at]);
            for y in y0..y1 {
                let start = (offset_y + y) * width + offset_x;
                out[done..start + x0].fill(0);
                done = start + x1;
                write_row((y - y0) as u8, thresholds, reversed, &mut out[start + x0..done]);
            }
        }
        out[done..].fill(0);
    }

    /// Writes the mask as bits, each row in whole words.
    #[inline(always)]
    pub(crate) fn bit_packed<I: Isa>(
        &mut self,
        isa: I,
        window: &Window,
        grouped: Grouped<'_>,
        geometry: &MaskGeometry,
        out: &mut [u32],
    ) {
        self.make_room(geometry);
        let words = geometry.canvas.width.div_ceil(32) as usize;
        let (offset_x, offset_y) = (geometry.offset_x as usize, geometry.offset_y as usize);
        let mut done = 0;
        for k in 0..=window.n_h {
            let (y0, y1) = grouped.rows.pixels(k);
            if y0 == y1 {
                continue;
            }
            let Some((x0, x1)) = self.thresholds(isa, window, grouped, k, offset_x) else { continue };
            let (x0, x1) = (offset_x + x0, offset_x + x1);
            // Whole vectors from a word's first column on: what lies around the columns is background.
            for (from, to) in [(x0 / 32 * 32, x0), (x1, x1 + MARGIN)] {
                self.thresholds[MARGIN + from..MARGIN + to].fill(0);
                self.reversed[MARGIN + from..MARGIN + to].fill(0);
            }
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
    }
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

/// One row of bytes.
#[inline(always)]
fn write_row(row: u8, thresholds: &[u8], reversed: &[u8], out: &mut [u8]) {
    for (out, (&threshold, &reversed)) in out.iter_mut().zip(thresholds.iter().zip(reversed)) {
        *out = u8::from(threshold > row) ^ reversed;
    }
}

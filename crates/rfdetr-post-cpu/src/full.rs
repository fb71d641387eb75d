//! The plain way: every value of the resized window, vectorized over columns. It takes any taps and any cells, and is
//! used where the shortcut of `crossing.rs` does not hold: more than two taps (images smaller than the grid), copies,
//! and cells that are NaN, infinite, or so small or large that products leave the range of f32.
//!
//! ```text
//! cut the window to what can become positive
//! transpose it                                      # so that the horizontal pass runs along rows of cells
//! stretched[x][r] = sum over taps of x: cell * weight        # vectors over r
//! transpose back
//! value[y][x] = sum over taps of y: stretched * weight       # vectors over x
//! bit[y][x] = value > 0
//! ```
//!
//! The first product of each sum is rounded and the others are fused, as in the reference, and taps of weight zero
//! multiply too. So even NaN and infinities come out the same.
#![forbid(unsafe_code)]

use crate::{
    axis::Axis,
    grid::Window,
    simd::{Isa, LANES},
};

/// Buffers, and the result: one bit a pixel of the content.
#[derive(Debug, Default)]
pub(crate) struct Full {
    transposed: Vec<f32>,
    columns: Vec<f32>,
    rows: Vec<f32>,
    /// Words from row to row of `bits`.
    pub(crate) words: usize,
    /// `[content height, words]`; bits beyond the width are zero.
    pub(crate) bits: Vec<u64>,
}

impl Full {
    /// Resizes a window that is not empty.
    #[inline(always)]
    pub(crate) fn resize<I: Isa>(&mut self, isa: I, window: &Window, [columns, rows]: [&Axis; 2]) {
        let (width, height) = (columns.n_out, rows.n_out);
        self.words = width.div_ceil(64);
        self.bits.clear();
        self.bits.resize(height * self.words, 0);
        // Sums of ordinary cells that are not positive are not positive, so only pixels that see a positive cell count.
        let (seen_x, seen_y) = if window.ordinary {
            let Some(seen) = positive_cells(window) else { return };
            seen
        } else {
            ((0, window.n_w), (0, window.n_h))
        };
        let (x0, x1) = columns.pixels_that_see(seen_x);
        let (y0, y1) = rows.pixels_that_see(seen_y);
        if x0 == x1 || y0 == y1 {
            return;
        }
        // Whole vectors, of cells and of pixels.
        let x0 = x0 / LANES * LANES;
        let (c0, c1) = (columns.first_cell(x0) / LANES * LANES, columns.end_cell(x1 - 1));
        let (r0, r1) = (rows.first_cell(y0), rows.end_cell(y1 - 1));
        let tall = (r1 - r0).next_multiple_of(LANES);
        let wide = (x1 - x0).next_multiple_of(LANES);

        grow(&mut self.transposed, (c1 - c0) * tall);
        transpose(
            &window.cells[r0 * window.stride + c0..],
            window.stride,
            r1 - r0,
            c1 - c0,
            &mut self.transposed,
            tall,
        );
        grow(&mut self.columns, (x1 - x0) * tall);
        for (x, out) in (x0..x1).zip(self.columns.chunks_exact_mut(tall)) {
            for (i, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                sum(&self.transposed[i * LANES..], tall, columns.taps(x), c0, out);
            }
        }
        grow(&mut self.rows, (r1 - r0) * wide);
        transpose(&self.columns, tall, x1 - x0, r1 - r0, &mut self.rows, wide);

        // The columns beyond the last hold old values; their bits are cut off.
        let last = u64::MAX >> ((64 - x1 % 64) % 64);
        for y in y0..y1 {
            let taps = rows.taps(y);
            let bits = &mut self.bits[y * self.words..][..x1.div_ceil(64)];
            for i in (0..wide).step_by(LANES) {
                let mut values = [0.0; LANES];
                sum(&self.rows[i..], wide, taps, r0, &mut values);
                bits[(x0 + i) / 64] |= u64::from(isa.positive_mask(&values)) << ((x0 + i) % 64);
            }
            bits[x1.div_ceil(64) - 1] &= last;
        }
    }
}

/// The columns and rows from the first to the last positive cell. None if there is none.
#[inline(always)]
fn positive_cells(window: &Window) -> Option<((usize, usize), (usize, usize))> {
    let (mut x0, mut x1) = (usize::MAX, 0);
    let (mut y0, mut y1) = (usize::MAX, 0);
    for (y, signs) in window.signs.chunks_exact(window.words).enumerate() {
        for (word, &signs) in signs.iter().enumerate() {
            if signs != 0 {
                x0 = x0.min(word * 64 + signs.trailing_zeros() as usize);
                x1 = x1.max(word * 64 + 64 - signs.leading_zeros() as usize);
                y0 = y0.min(y);
                y1 = y + 1;
            }
        }
    }
    (y1 > 0).then_some(((x0, x1), (y0, y1)))
}

/// At least `len` elements, whatever they are.
fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

/// The sum of taps for a vector; the cells start with cell `origin`.
#[inline(always)]
fn sum(cells: &[f32], stride: usize, taps: &[(u32, f32)], origin: usize, out: &mut [f32; LANES]) {
    let Some((&(cell, weight), others)) = taps.split_first() else { return };
    let Some(cells_of_first) = cells[(cell as usize - origin) * stride..].first_chunk::<LANES>() else { return };
    let mut acc = [0.0; LANES];
    for i in 0..LANES {
        acc[i] = cells_of_first[i] * weight;
    }
    for &(cell, weight) in others {
        let Some(cells) = cells[(cell as usize - origin) * stride..].first_chunk::<LANES>() else { return };
        for i in 0..LANES {
            acc[i] = cells[i].mul_add(weight, acc[i]);
        }
    }
    *out = acc;
}

/// `to[x][y] = from[y][x]`, in blocks. Rows of `from` and `to` must have room for whole vectors.
#[inline(always)]
fn transpose(from: &[f32], from_stride: usize, height: usize, width: usize, to: &mut [f32], to_stride: usize) {
    for y0 in (0..height).step_by(LANES) {
        for x0 in (0..width).step_by(LANES) {
            let mut block = [[0.0; LANES]; LANES];
            for (y, row) in (y0..height).zip(&mut block) {
                if let Some(values) = from[y * from_stride + x0..].first_chunk::<LANES>() {
                    *row = *values;
                }
            }
            for x in x0..width.min(x0 + LANES) {
                let mut column = [0.0; LANES];
                for i in 0..LANES {
                    column[i] = block[i][x - x0];
                }
                if let Some(out) = to[x * to_stride + y0..].first_chunk_mut::<LANES>() {
                    *out = column;
                }
            }
        }
    }
}

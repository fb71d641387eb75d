//! The plain way: every value of the resized window, vectorized over columns. It takes any taps and any cells, and is
//! used where the shortcut of `crossing.rs` does not hold: more than two taps (images smaller than the grid), copies,
//! and cells that are NaN, infinite, or so small or large that products leave the range of f32.
//!
//! ```text
//! transpose the window                              # so that the horizontal pass runs along rows of cells
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
        let (n_w, n_h) = (window.n_w, window.n_h);
        let tall = n_h.next_multiple_of(LANES);
        let wide = width.next_multiple_of(LANES);
        grow(&mut self.transposed, n_w * tall);
        transpose(&window.cells, window.stride, n_h, n_w, &mut self.transposed, tall);
        grow(&mut self.columns, width * tall);
        for (x, out) in self.columns.chunks_exact_mut(tall).take(width).enumerate() {
            accumulate(&self.transposed, tall, columns.taps(x), out);
        }
        grow(&mut self.rows, n_h * wide);
        transpose(&self.columns, tall, width, n_h, &mut self.rows, wide);

        self.words = width.div_ceil(64);
        self.bits.clear();
        self.bits.resize(height * self.words, 0);
        // The columns beyond the width hold old values; their bits are cut off.
        let last = u64::MAX >> ((64 - width % 64) % 64);
        for y in 0..height {
            let taps = rows.taps(y);
            let bits = &mut self.bits[y * self.words..][..self.words];
            for first in (0..wide).step_by(LANES) {
                let mut values = [0.0; LANES];
                sum(&self.rows[first..], wide, taps, &mut values);
                bits[first / 64] |= u64::from(isa.positive_mask(&values)) << (first % 64);
            }
            bits[self.words - 1] &= last;
        }
    }
}

/// At least `len` elements, whatever they are.
fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

/// Sums of taps for a whole vector of rows.
#[inline(always)]
fn accumulate(cells: &[f32], stride: usize, taps: &[(u32, f32)], out: &mut [f32]) {
    for (i, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        sum(&cells[i * LANES..], stride, taps, out);
    }
}

#[inline(always)]
fn sum(cells: &[f32], stride: usize, taps: &[(u32, f32)], out: &mut [f32; LANES]) {
    let Some((&(cell, weight), others)) = taps.split_first() else { return };
    let Some(cells_of_first) = cells[cell as usize * stride..].first_chunk::<LANES>() else { return };
    let mut acc = [0.0; LANES];
    for i in 0..LANES {
        acc[i] = cells_of_first[i] * weight;
    }
    for &(cell, weight) in others {
        let Some(cells) = cells[cell as usize * stride..].first_chunk::<LANES>() else { return };
        for i in 0..LANES {
            acc[i] = cells[i].mul_add(weight, acc[i]);
        }
    }
    *out = acc;
}

/// `to[x][y] = from[y][x]`.
#[inline(always)]
fn transpose(from: &[f32], from_stride: usize, height: usize, width: usize, to: &mut [f32], to_stride: usize) {
    for y0 in (0..height).step_by(LANES) {
        for x in 0..width {
            let to = &mut to[x * to_stride..][..to_stride];
            for y in y0..height.min(y0 + LANES) {
                to[y] = from[y * from_stride + x];
            }
        }
    }
}

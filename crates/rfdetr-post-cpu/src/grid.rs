//! The window of a mask grid that shows the content, and what one look at its cells tells.
#![forbid(unsafe_code)]

use rfdetr_post_core::{Request, geometry::MaskWindow};

use crate::{
    simd::{Isa, LANES},
    widen::widen,
};

/// The cells of one mask, widened to f32; cells outside the grid are zero (spec 5.1).
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// Columns; zero when nothing is left.
    pub(crate) n_w: usize,
    /// Rows; zero when nothing is left.
    pub(crate) n_h: usize,
    /// Cells from row to row: `n_w`, filled up with zeros to whole vectors.
    pub(crate) stride: usize,
    /// `[n_h, stride]`.
    pub(crate) cells: Vec<f32>,
    /// Words from row to row of `signs`.
    pub(crate) words: usize,
    /// `[n_h, words]`: bit `x % 64` of word `x / 64` tells whether cell `x` is `> 0`.
    pub(crate) signs: Vec<u64>,
    /// Number of cells that are NaN or infinite.
    pub(crate) num_nonfinite: u32,
    /// What the cells were last cut from; outside the grid they are still zero then.
    cut: Option<(usize, usize, MaskWindow)>,
    /// Whether all cells are ordinary numbers: zero, or of a magnitude in 2^-40..2^100.
    pub(crate) ordinary: bool,
}

impl Window {
    /// Loads the window of one query's grid.
    #[inline(always)]
    pub(crate) fn load<I: Isa>(&mut self, isa: I, request: &Request<'_>, image: usize, query: usize, at: &MaskWindow) {
        let (mask_h, mask_w) = request.shape().mask_grid.unwrap_or_default();
        let Some(masks) = &request.tensors().masks else { return };
        (self.n_w, self.n_h) = if at.is_empty() { (0, 0) } else { (at.width as usize, at.height as usize) };
        self.stride = self.n_w.next_multiple_of(LANES);
        self.words = self.n_w.div_ceil(64);
        let base = (image * request.shape().num_queries + query) * mask_h * mask_w;
        if self.cut.replace((mask_h, mask_w, *at)) != Some((mask_h, mask_w, *at)) {
            self.cells.clear();
            self.cells.resize(self.n_h * self.stride, 0.0);
        }
        self.signs.clear();
        self.signs.resize(self.n_h * self.words, 0);
        let (x0, x1) = (at.x.max(0), (at.x + at.width).min(mask_w as i64));
        let mut unusual = false;
        for y in 0..self.n_h {
            let source_y = at.y + y as i64;
            if (0..mask_h as i64).contains(&source_y) && x0 < x1 {
                let row = &mut self.cells[y * self.stride..][..self.stride];
                let cells = &mut row[(x0 - at.x) as usize..(x1 - at.x) as usize];
                widen(masks.data(), base + source_y as usize * mask_w + x0 as usize, cells);
                unusual |= scan(isa, row, &mut self.signs[y * self.words..][..self.words]);
            }
        }
        self.ordinary = !unusual;
        self.num_nonfinite = if unusual { self.cells.iter().map(|v| u32::from(!v.is_finite())).sum() } else { 0 };
    }
}

/// The signs of a row of whole vectors; returns whether a value is not ordinary.
#[inline(always)]
fn scan<I: Isa>(isa: I, row: &[f32], signs: &mut [u64]) -> bool {
    let mut unusual = 0;
    for (i, values) in row.as_chunks::<LANES>().0.iter().enumerate() {
        let first = i * LANES;
        signs[first / 64] |= u64::from(isa.positive_mask(values)) << (first % 64);
        unusual |= isa.unusual_mask(values);
    }
    unusual != 0
}

//! Stages 3 and 4: the mask of one detection, in the form that was asked for.
#![forbid(unsafe_code)]

use rfdetr_post_core::{DetectionRow, Request, request::MaskGeometry};

use crate::{
    axis::Axis,
    bits,
    full::Full,
    grid::Window,
    runs::{self, Toggles},
    simd::{Isa, Kernel},
};

/// Buffers that live from one mask to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    window: Window,
    full: Full,
    columns: Vec<u64>,
    toggles: Toggles,
}

/// Where a mask goes.
pub(crate) enum Output<'a> {
    /// `[height, width]`, to be overwritten.
    Dense(&'a mut [u8]),
    /// `[height, words]`, to be overwritten.
    BitPacked(&'a mut [u32]),
    /// `[mask_h, mask_w]`, to be overwritten.
    GridLogits(&'a mut [f32]),
    /// Appended to.
    Counts(&'a mut Vec<u32>),
    /// Appended to.
    Rle(&'a mut Vec<u8>),
}

/// Makes one mask and fills the mask fields of its row, the offset aside. Returns the number of non-finite cells.
pub(crate) struct MakeMask<'a, 'r> {
    pub(crate) request: &'a Request<'r>,
    pub(crate) image: usize,
    pub(crate) geometry: &'a MaskGeometry,
    /// Horizontal and vertical; none if the window is empty.
    pub(crate) axes: Option<[&'a Axis; 2]>,
    pub(crate) row: &'a mut DetectionRow,
    pub(crate) output: Output<'a>,
    pub(crate) scratch: &'a mut Scratch,
}

impl Kernel for MakeMask<'_, '_> {
    type Output = u32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> u32 {
        let Self { request, image, geometry, axes, row, output, scratch } = self;
        let query = row.query_idx as usize;
        if let Output::GridLogits(logits) = output {
            return grid_logits(isa, request, image, row, logits, scratch);
        }
        scratch.window.load(isa, request, image, query, &geometry.window);
        let (width, height) = (geometry.canvas.width, geometry.canvas.height);
        let num_pixels = geometry.canvas.area() as u32;
        scratch.toggles.clear();
        let axes = axes.filter(|_| scratch.window.n_w > 0);
        if let Some(axes) = axes {
            scratch.full.resize(isa, &scratch.window, axes);
            toggles_from_bits(scratch, geometry);
        }
        let toggles = scratch.toggles.get();
        (row.mask_area, row.mask_xyxy) = runs::area_and_box(toggles, num_pixels, height);
        let (offset_x, offset_y) = (geometry.offset_x as usize, geometry.offset_y as usize);
        let content = || {
            let words = scratch.full.words.max(1);
            let rows = if axes.is_some() { &scratch.full.bits[..] } else { &[] };
            rows.chunks_exact(words).zip(offset_y..)
        };
        match output {
            Output::GridLogits(_) => {}
            Output::Dense(bytes) => {
                row.mask_len = bytes.len() as u32;
                let width = width as usize;
                bytes.fill(0);
                for (bits, y) in content() {
                    bits::expand(bits, &mut bytes[y * width + offset_x..][..geometry.content.width as usize]);
                }
            }
            Output::BitPacked(words) => {
                row.mask_len = words.len() as u32;
                let words_per_row = width.div_ceil(32) as usize;
                words.fill(0);
                for (bits, y) in content() {
                    bits::place(bits, offset_x, &mut words[y * words_per_row..][..words_per_row]);
                }
            }
            Output::Counts(counts) => {
                let before = counts.len();
                row.num_counts = runs::num_counts(toggles);
                runs::append_counts(toggles, num_pixels, counts);
                row.mask_len = (counts.len() - before) as u32;
            }
            Output::Rle(string) => {
                let before = string.len();
                row.num_counts = runs::num_counts(toggles);
                runs::append_string(toggles, num_pixels, string);
                row.mask_len = (string.len() - before) as u32;
            }
        }
        scratch.window.num_nonfinite
    }
}

/// The toggles of the bits of the content, on its canvas.
#[inline(always)]
fn toggles_from_bits(scratch: &mut Scratch, geometry: &MaskGeometry) {
    let (width, height) = (geometry.content.width as usize, geometry.content.height as usize);
    bits::transpose_rows(&scratch.full.bits, scratch.full.words, height, width, &mut scratch.columns);
    let canvas_h = geometry.canvas.height;
    for (x, column) in scratch.columns.chunks_exact(height.div_ceil(64)).enumerate() {
        let position = (geometry.offset_x + x as u32) * canvas_h + geometry.offset_y;
        bits::push_toggles(column, height, position, &mut scratch.toggles);
    }
    scratch.toggles.finish(geometry.canvas.area() as u32);
}

/// Copies the grid of a query; area and box are in cells.
#[inline(always)]
fn grid_logits<I: Isa>(
    isa: I,
    request: &Request<'_>,
    image: usize,
    row: &mut DetectionRow,
    logits: &mut [f32],
    scratch: &mut Scratch,
) -> u32 {
    let (mask_h, mask_w) = request.shape().mask_grid.unwrap_or_default();
    let whole = rfdetr_post_core::geometry::MaskWindow { x: 0, y: 0, width: mask_w as i64, height: mask_h as i64 };
    let window = &mut scratch.window;
    window.load(isa, request, image, row.query_idx as usize, &whole);
    let (mut area, mut tight) = (0, [u32::MAX, u32::MAX, 0, 0]);
    let rows = logits.chunks_exact_mut(mask_w).zip(window.cells.chunks_exact(window.stride));
    for (y, ((out, cells), signs)) in rows.zip(window.signs.chunks_exact(window.words)).enumerate() {
        out.copy_from_slice(&cells[..mask_w]);
        for (word, &signs) in signs.iter().enumerate().filter(|(_, signs)| **signs != 0) {
            let x = word as u32 * 64;
            area += signs.count_ones();
            tight[0] = tight[0].min(x + signs.trailing_zeros());
            tight[1] = tight[1].min(y as u32);
            tight[2] = tight[2].max(x + 64 - signs.leading_zeros());
            tight[3] = y as u32 + 1;
        }
    }
    (row.mask_area, row.mask_xyxy) = (area, if area == 0 { [0; 4] } else { tight });
    row.mask_len = logits.len() as u32;
    window.num_nonfinite
}

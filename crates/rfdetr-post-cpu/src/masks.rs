//! Stages 3 and 4: the mask of one detection, in the form that was asked for.
#![forbid(unsafe_code)]

use rfdetr_post_core::{DetectionRow, Request, request::MaskGeometry};

use crate::{
    axis::Axis,
    bits,
    crossing::{Crossings, Grouped},
    full::Full,
    grid::Window,
    runs::{self, Toggles},
    simd::{Isa, Kernel},
};

/// Buffers that live from one mask to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    window: Window,
    crossings: Crossings,
    full: Full,
    columns: Vec<u64>,
    toggles: Toggles,
}

/// Where a mask goes.
pub(crate) enum Output<'a> {
    /// `[height, width]`, to be overwritten; past the caches if the flag says so.
    Dense(&'a mut [u8], bool),
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
        let height = geometry.canvas.height;
        let num_pixels = geometry.canvas.area() as u32;
        let Scratch { window, crossings, full, columns, toggles } = scratch;
        let axes = axes.filter(|_| window.n_w > 0);
        let grouped = axes.and_then(|axes| Grouped::new(window, axes));
        toggles.clear();
        // Dense and bit-packed masks of the fast way need no runs.
        let (row_area_and_box, mask_len) = match (output, grouped) {
            (Output::Dense(bytes, stream), Some(grouped)) => {
                (crossings.dense(isa, window, grouped, geometry, stream, bytes), bytes.len())
            }
            (Output::BitPacked(words), Some(grouped)) => {
                (crossings.bit_packed(isa, window, grouped, geometry, words), words.len())
            }
            (output, grouped) => {
                match (grouped, axes) {
                    (Some(grouped), _) => crossings.toggles(isa, window, grouped, geometry, toggles),
                    (None, Some(axes)) => {
                        full.resize(isa, window, axes);
                        toggles_of_bits(full, columns, geometry, toggles);
                    }
                    (None, None) => {}
                }
                let toggles = toggles.get();
                let mask_len = match output {
                    Output::GridLogits(logits) => logits.len(),
                    Output::Dense(bytes, _) => {
                        match axes {
                            Some(_) => dense_of_bits(full, geometry, bytes),
                            None => bytes.fill(0),
                        }
                        bytes.len()
                    }
                    Output::BitPacked(words) => {
                        match axes {
                            Some(_) => bit_packed_of_bits(full, geometry, words),
                            None => words.fill(0),
                        }
                        words.len()
                    }
                    Output::Counts(counts) => {
                        let before = counts.len();
                        row.num_counts = runs::num_counts(toggles);
                        runs::append_counts(toggles, num_pixels, counts);
                        counts.len() - before
                    }
                    Output::Rle(string) => {
                        let before = string.len();
                        row.num_counts = runs::num_counts(toggles);
                        runs::append_string(toggles, num_pixels, string);
                        string.len() - before
                    }
                };
                (runs::area_and_box(toggles, num_pixels, height), mask_len)
            }
        };
        (row.mask_area, row.mask_xyxy) = row_area_and_box;
        row.mask_len = mask_len as u32;
        window.num_nonfinite
    }
}

/// The toggles of the bits of the content, on its canvas.
#[inline(always)]
fn toggles_of_bits(full: &Full, columns: &mut Vec<u64>, geometry: &MaskGeometry, toggles: &mut Toggles) {
    let (width, height) = (geometry.content.width as usize, geometry.content.height as usize);
    bits::transpose_rows(&full.bits, full.words, height, width, columns);
    let canvas_h = geometry.canvas.height;
    for (x, column) in columns.chunks_exact(height.div_ceil(64)).enumerate() {
        let position = (geometry.offset_x + x as u32) * canvas_h + geometry.offset_y;
        bits::push_toggles(column, height, position, toggles);
    }
    toggles.finish(geometry.canvas.area() as u32);
}

/// The bits of the content as bytes of its canvas.
#[inline(always)]
fn dense_of_bits(full: &Full, geometry: &MaskGeometry, out: &mut [u8]) {
    let (width, content_w) = (geometry.canvas.width as usize, geometry.content.width as usize);
    out.fill(0);
    for (y, bits) in (geometry.offset_y as usize..).zip(full.bits.chunks_exact(full.words)) {
        bits::expand(bits, &mut out[y * width + geometry.offset_x as usize..][..content_w]);
    }
}

/// The bits of the content in rows of words of its canvas.
#[inline(always)]
fn bit_packed_of_bits(full: &Full, geometry: &MaskGeometry, out: &mut [u32]) {
    let words = geometry.canvas.width.div_ceil(32) as usize;
    out.fill(0);
    for (y, bits) in (geometry.offset_y as usize..).zip(full.bits.chunks_exact(full.words)) {
        bits::place(bits, geometry.offset_x as usize, &mut out[y * words..][..words]);
    }
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

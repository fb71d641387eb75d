//! Stage 3 for dense and bit-packed masks.
//!
//! In short:
//!
//! ```text
//! a work item is a band of 32 (or 16) rows of one mask
//! each lane walks one column of the band and turns its changes into a word of 32 rows    (crate::columns)
//! each warp transposes its 32 words, so that lane y holds row y of 32 columns
//! the block stores the band's bits, expanded to bytes or as they are, 16 bytes a thread, in address order
//! ```
//!
//! Bands without foreground skip to the stores. Stores cover whole 16-byte words whatever the width: rows are cut out
//! of the bit matrix at any bit.

use rfdetr_post_core::packed::{FLAG_BIT_PACKED, MaskArgs, shared::masks as layout};

use crate::{
    columns::{Geometry, Slab, Span, Window},
    masks::{self, Stats, Work},
    scan::{div_ceil, div_rem},
    simt::{
        global::Global,
        grid,
        params::Params,
        shared::Shared,
        thread,
        warp::{self, FULL_MASK},
    },
};

/// Rows of a band of a mask with `words` words a row.
#[inline(always)]
fn band_rows(words: u32) -> u32 {
    if 32 * (words | 1) <= layout::BAND_WORDS { 32 } else { 16 }
}

/// Makes the dense or bit-packed masks of every detection of the batch.
///
/// Callers: every thread of every block.
///
/// # Safety
/// `args` holds what [`MaskArgs`] promises, and the block has `layout::DENSE_BYTES` of shared memory.
#[inline(always)]
pub unsafe fn masks_dense(args: &MaskArgs, params: Params) {
    grid::depend_wait();
    // SAFETY: the selection has ended; images are of this launch.
    unsafe {
        let num_bands = |image: u32| {
            let record = masks::record(args, params, image);
            div_ceil(record.height, band_rows(record.width.div_ceil(32)))
        };
        let headers = Global::<u32>::from_address(args.headers_at);
        let work = Work::new(args, |image, num_detections| num_detections * num_bands(image));
        let mut num_masks = 0;
        let mut image = 0;
        while image < args.batch {
            num_masks += headers.load(image as usize * size_of::<rfdetr_post_core::packed::ImageHeader>() / 4);
            image += 1;
        }
        if num_masks == 0 {
            if thread::block_idx_x() == 0 {
                masks::publish_all(args, 0);
            }
            return;
        }
        let mut item = thread::block_idx_x();
        while item < work.num_items {
            let (image, within) = work.image_of(item);
            let num_bands = num_bands(image);
            let (slot, band_idx) = div_rem(within, num_bands);
            if band(args, params, image, slot, band_idx, num_bands) {
                masks::finish_mask(args, num_masks);
            }
            item += thread::grid_dim_x();
            thread::sync_threads();
        }
    }
}

/// Makes one band of a mask; true in the block that finished the mask.
///
/// # Safety
/// As [`masks_dense`]; the band is the block's own.
#[inline(always)]
unsafe fn band(args: &MaskArgs, params: Params, image: u32, slot: u32, band_idx: u32, num_bands: u32) -> bool {
    let (tid, block) = (thread::thread_idx_x(), thread::block_dim_x());
    // SAFETY: image, slot and band are of this launch; shared memory is used inside its layout.
    unsafe {
        let geometry = Geometry::new(args, masks::record(args, params, image), image);
        let record = &geometry.record;
        let row = masks::row_idx(args, image, slot);
        let words = record.width.div_ceil(32);
        // An odd stride, so that the rows of a column fall into different banks.
        let stride = words | 1;
        let bits = Shared::<u32>::at(layout::BITS);
        let num_rows = band_rows(words);
        let top = band_idx * num_rows;
        let bottom = (top + num_rows).min(record.height);

        // The band's part of the content, in content rows.
        let y0 = top.max(record.offset_y) - record.offset_y;
        let y1 = bottom.min(record.offset_y + record.content_h).saturating_sub(record.offset_y);
        let mut is_live = false;
        if y0 < y1 && !geometry.is_empty() {
            let window = Window::new(args, record, image, masks::query_of(args, row));
            let (first, last) = (geometry.row(y0), geometry.row(y1 - 1));
            let owned = Span {
                start: if y0 == 0 { 0 } else { first.first },
                end: if y1 == record.content_h { record.window_h } else { geometry.row(y1).first },
            };
            let end = (last.first + last.count.max(2)).min(record.window_h);
            let rows = Span { start: owned.start.min(first.first), end: end.max(owned.end) };
            let columns = Span { start: 0, end: record.window_w };
            let (slab, nonfinite) = Slab::load(
                window,
                rows,
                columns,
                owned,
                true,
                Shared::at(layout::SLAB),
                layout::SLAB_CELLS,
                masks::counters(),
            );
            if tid == 0 {
                masks::add_nonfinite(args, image, nonfinite);
            }
            is_live = !slab.is_dead();
            if is_live {
                let mut stats = Stats::EMPTY;
                let mut word = warp::warp_id();
                while word < words {
                    let canvas_x = 32 * word + warp::lane_id();
                    // One bit a row of the band; rows outside the content stay background.
                    let mut column = 0;
                    if near_live_columns(&geometry, &slab, 32 * word)
                        && canvas_x >= record.offset_x
                        && canvas_x < record.offset_x + record.content_w
                    {
                        let shift = record.offset_y + y0 - top;
                        let mut changes = 0u32;
                        let taps = geometry.column(canvas_x - record.offset_x);
                        if slab.is_live(&taps) {
                            slab.walk(&geometry, &taps, y0, y1, |y| changes ^= u32::MAX << (y - y0));
                        }
                        let height = y1 - y0;
                        let content = if height == 32 { u32::MAX } else { (1 << height) - 1 };
                        column = (changes & content) << shift;
                    }
                    if column != 0 {
                        let (first, last) = (column.trailing_zeros(), 32 - column.leading_zeros());
                        stats.add(column.count_ones(), [canvas_x, top + first, canvas_x + 1, top + last]);
                    }
                    let row_bits = warp_transpose(column);
                    if warp::lane_id() < num_rows {
                        bits.store(warp::lane_id() * stride + word, row_bits);
                    }
                    word += block / 32;
                }
                let stats = stats.block_sum();
                if tid == 0 && stats.area > 0 {
                    masks::add_stats(args, row, &stats);
                }
            }
        }
        thread::sync_threads();
        let source = Band { bits, stride, width: record.width, words, num_rows: bottom - top, is_live };
        if args.flags & FLAG_BIT_PACKED != 0 {
            let mask_bytes = (4 * words as u64 * record.height as u64).next_multiple_of(16);
            let at = args.payload_at + image as u64 * args.payload_image_bytes + slot as u64 * mask_bytes;
            source.store_words(at + 4 * top as u64 * words as u64);
        } else {
            let mask_bytes = (record.width as u64 * record.height as u64).next_multiple_of(16);
            let at = args.payload_at + image as u64 * args.payload_image_bytes + slot as u64 * mask_bytes;
            source.store_bytes(at + top as u64 * record.width as u64);
        }
        if !masks::is_last_part(args, row, num_bands) {
            return false;
        }
        if tid == 0 {
            let len = if args.flags & FLAG_BIT_PACKED != 0 { words } else { record.width } * record.height;
            masks::write_result_row(args, row, &masks::load_stats(args, row), 0, len, 0);
        }
        true
    }
}

/// Whether any of 32 canvas columns from `canvas_x` on may be made of live cells: an estimate that is never wrong when it
/// says no, and needs no table. The filter reaches `support` cells from a center; rounding is far below the cell added.
#[inline(always)]
fn near_live_columns(geometry: &Geometry, slab: &Slab, canvas_x: u32) -> bool {
    let x = canvas_x as f32 - geometry.record.offset_x as f32;
    let reach = geometry.columns.support + 1.5;
    let first = x * geometry.columns.scale - reach;
    let last = (x + 32.0) * geometry.columns.scale + reach;
    first <= slab.last_live_column as f32 && last >= slab.first_live_column as f32
}

/// Transposes a 32 x 32 bit matrix: bit `y` of lane `x` becomes bit `x` of lane `y`.
///
/// Example: lane 3 holding `1 << 7` and all others 0 gives lane 7 `1 << 3`.
///
/// Callers: every lane of the warp. Cost: five shuffles.
#[track_caller]
#[inline(always)]
fn warp_transpose(word: u32) -> u32 {
    let lane = warp::lane_id();
    let mut word = word;
    let mut distance = 16;
    let mut mask = 0x0000_ffffu32;
    while distance > 0 {
        // Swap the off-diagonal blocks of side `distance` with the lane that holds the other one.
        let other = warp::warp_shuffle_xor(FULL_MASK, word, distance);
        word = if lane & distance == 0 {
            word & mask | (other & mask) << distance
        } else {
            word & !mask | (other & !mask) >> distance
        };
        distance /= 2;
        mask ^= mask << distance;
    }
    word
}

/// The bits of a band, on their way to memory.
struct Band {
    bits: Shared<u32>,
    stride: u32,
    width: u32,
    words: u32,
    num_rows: u32,
    is_live: bool,
}

impl Band {
    /// Stores the band as bytes, 16 at a time, in address order. The last 16 may reach past the band: with zeros, and
    /// only at the end of the mask, whose size is rounded up to 16.
    ///
    /// # Safety
    /// `at` is 16-byte aligned and has room for the band.
    #[inline(always)]
    unsafe fn store_bytes(&self, at: u64) {
        let len = self.num_rows * self.width;
        let to = Global::<[u32; 4]>::from_address(at);
        let mut chunk = thread::thread_idx_x();
        while 16 * chunk < len {
            let mut value = [0; 4];
            if self.is_live {
                // SAFETY: rows are inside the band.
                let pixels = unsafe { self.pixels(16 * chunk) };
                // Four bits to four bytes: the product puts copies 7 bits apart, the mask keeps one bit of each.
                value = [0, 4, 8, 12].map(|shift| (pixels >> shift & 15).wrapping_mul(0x0020_4081) & 0x0101_0101);
            }
            // SAFETY: the chunk begins inside the band.
            unsafe { to.store_streaming(chunk as usize, value) };
            chunk += thread::block_dim_x();
        }
    }

    /// 16 pixels from flat position `position` of the band on; zeros past its end.
    ///
    /// # Safety
    /// `position` is inside the band.
    #[inline(always)]
    unsafe fn pixels(&self, position: u32) -> u32 {
        // SAFETY: an image has columns.
        let (mut y, mut x) = unsafe { div_rem(position, self.width) };
        let (mut pixels, mut len) = (0, 0);
        while len < 16 && y < self.num_rows {
            let take = (16 - len).min(self.width - x);
            let (word, shift) = (y * self.stride + x / 32, x % 32);
            // SAFETY: the column is inside the row; the next word is read only if the row goes on there.
            let part = unsafe {
                let low = self.bits.load(word) >> shift;
                if shift + take > 32 { low | self.bits.load(word + 1) << (32 - shift) } else { low }
            };
            pixels |= (part & ((1 << take) - 1)) << len;
            len += take;
            y += 1;
            x = 0;
        }
        pixels
    }

    /// Stores the band as words of 32 pixels.
    ///
    /// # Safety
    /// As [`Band::store_bytes`].
    #[inline(always)]
    unsafe fn store_words(&self, at: u64) {
        let len = self.num_rows * self.words;
        let to = Global::<[u32; 4]>::from_address(at);
        let mut chunk = thread::thread_idx_x();
        while 4 * chunk < len {
            let mut value = [0; 4];
            if self.is_live {
                for (i, word) in value.iter_mut().enumerate() {
                    let position = 4 * chunk + i as u32;
                    if position < len {
                        // SAFETY: inside the band; a row has words.
                        *word = unsafe {
                            let (y, x) = div_rem(position, self.words);
                            self.bits.load(y * self.stride + x)
                        };
                    }
                }
            }
            // SAFETY: the chunk begins inside the band.
            unsafe { to.store_streaming(chunk as usize, value) };
            chunk += thread::block_dim_x();
        }
    }
}

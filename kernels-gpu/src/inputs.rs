//! Reads of the model's outputs and of the image records.

use rfdetr_post_core::packed::{DTYPE_F16, DTYPE_F32, ImageRecord};

use crate::simt::{global::Global, math, params::Params};

/// The element of a tensor at a flat index, widened to f32 (exact).
///
/// # Safety
/// The tensor at `address` has element type `dtype` and more than `idx` elements, and nobody writes it.
#[inline(always)]
pub unsafe fn load_element(address: u64, dtype: u32, idx: usize) -> f32 {
    // SAFETY: the caller vouches for address, type and index.
    unsafe {
        match dtype {
            DTYPE_F32 => Global::<f32>::from_address(address).load_nc(idx),
            DTYPE_F16 => math::f16_to_f32(Global::<u16>::from_address(address).load_nc(idx)),
            _ => math::bf16_to_f32(Global::<u16>::from_address(address).load_nc(idx)),
        }
    }
}

/// Bytes of one image record, in 16-byte words.
pub const RECORD_WORDS: u32 = size_of::<ImageRecord>() as u32 / 16;

/// The record of one image: from the argument record for small batches, else from device memory.
///
/// # Safety
/// `image` is below the batch, whose records lie `params_offset` into the arguments if `is_inline`, else at
/// `records_at`.
#[inline(always)]
pub unsafe fn load_record(
    is_inline: bool,
    params: Params,
    params_offset: u32,
    records_at: u64,
    image: u32,
) -> ImageRecord {
    // SAFETY: the record has `RECORD_WORDS` words, and the caller vouches for the image.
    record_of_words(|word| unsafe { load_record_word(is_inline, params, params_offset, records_at, image, word) })
}

/// A 16-byte word of the record of one image.
///
/// # Safety
/// As [`load_record`]; `word` is below [`RECORD_WORDS`].
#[inline(always)]
pub unsafe fn load_record_word(
    is_inline: bool,
    params: Params,
    params_offset: u32,
    records_at: u64,
    image: u32,
    word: u32,
) -> [u32; 4] {
    let idx = image * RECORD_WORDS + word;
    // SAFETY: passed on to the caller.
    unsafe {
        if is_inline {
            params.load(params_offset + 16 * idx)
        } else {
            Global::<[u32; 4]>::from_address(records_at).load_nc(idx as usize)
        }
    }
}

/// The record whose 16-byte words `word` reads.
#[inline(always)]
pub fn record_of_words(word: impl Fn(u32) -> [u32; 4]) -> ImageRecord {
    let [width, height, content_w, content_h] = word(0);
    let [offset_x, offset_y, window_x, window_y] = word(1);
    let [window_w, window_h, scale_x, support_x] = word(2);
    let [inverse_x, scale_y, support_y, inverse_y] = word(3);
    let [flags, frame_w, frame_h, pad_left] = word(4);
    let [pad_top, box_scale_x, box_scale_y, crop_x] = word(5);
    let [crop_y, columns_per_cell, rows_per_cell, geometry] = word(6);
    ImageRecord {
        width,
        height,
        content_w,
        content_h,
        offset_x,
        offset_y,
        window_x: window_x as i32,
        window_y: window_y as i32,
        window_w,
        window_h,
        scale_x: f32::from_bits(scale_x),
        support_x: f32::from_bits(support_x),
        inverse_x: f32::from_bits(inverse_x),
        scale_y: f32::from_bits(scale_y),
        support_y: f32::from_bits(support_y),
        inverse_y: f32::from_bits(inverse_y),
        flags,
        frame_w: f32::from_bits(frame_w),
        frame_h: f32::from_bits(frame_h),
        pad_left: f32::from_bits(pad_left),
        pad_top: f32::from_bits(pad_top),
        box_scale_x: f32::from_bits(box_scale_x),
        box_scale_y: f32::from_bits(box_scale_y),
        crop_x: f32::from_bits(crop_x),
        crop_y: f32::from_bits(crop_y),
        columns_per_cell: f32::from_bits(columns_per_cell),
        rows_per_cell: f32::from_bits(rows_per_cell),
        geometry,
    }
}

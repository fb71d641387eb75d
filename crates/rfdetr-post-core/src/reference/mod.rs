//! The CPU reference: plain loops that judge every other implementation bit for bit.
//!
//! Its stages have the names of the kernels' stages: [`select`], [`boxes`], [`masks`], [`rle`]. Nothing here is tuned;
//! the fast CPU path is the crate `rfdetr-post-cpu`.

pub mod boxes;
pub mod masks;
pub mod rle;
pub mod select;

use alloc::vec::Vec;

use crate::{
    detections::{Detections, ImageDetections, Masks, pack_bits},
    error::{Error, Result},
    options::MaskFormat,
    packed::{DetectionRow, Health},
    request::{self, Request},
};

/// Computes the detections of a whole batch.
///
/// Errors: [`Error::ScoreArithmetic`] if the scores need a GPU, [`Error::OutOfMemory`] if the masks do not fit.
pub fn process(request: &Request<'_>) -> Result<Detections> {
    request::check_cpu(request.options())?;
    let images = (0..request.batch()).map(|image| process_image(request, image)).collect::<Result<_>>()?;
    Ok(Detections { images })
}

/// Computes the detections of one image of the batch.
pub fn process_image(request: &Request<'_>, image: usize) -> Result<ImageDetections> {
    let mut health = Health::default();
    let survivors = select::select(request, image, &mut health);
    let mut rows: Vec<_> = survivors
        .iter()
        .map(|survivor| DetectionRow {
            xyxy: boxes::decode(request, image, survivor.query_idx),
            confidence: survivor.score,
            class_id: survivor.class_id,
            query_idx: survivor.query_idx as u32,
            class_idx: survivor.class_idx as u32,
            ..DetectionRow::default()
        })
        .collect();
    health.nonfinite_boxes = boxes::count_nonfinite(request, image);
    let masks = make_masks(request, image, &mut rows, &mut health)?;
    Ok(ImageDetections { size: request.metas()[image].original, rows, masks, health })
}

/// Makes the masks of all rows in the requested format and fills the rows' mask fields.
fn make_masks(request: &Request<'_>, image: usize, rows: &mut [DetectionRow], health: &mut Health) -> Result<Masks> {
    let Some(geometry) = request.mask_geometry(image) else { return Ok(Masks::None) };
    let (width, height) = (geometry.canvas.width as usize, geometry.canvas.height as usize);
    let (mask_h, mask_w) = request.shape().mask_grid.unwrap_or_default();
    let format = request.options().mask_format;
    let mut masks = match format {
        MaskFormat::None => Masks::None,
        MaskFormat::Dense => Masks::Dense(reserve(rows.len(), width * height, "masks")?),
        MaskFormat::BitPacked => Masks::BitPacked(reserve(rows.len(), width.div_ceil(32) * height, "masks")?),
        MaskFormat::GridLogits => {
            Masks::GridLogits { mask_h, mask_w, logits: reserve(rows.len(), mask_h * mask_w, "masks")? }
        }
        MaskFormat::Counts => Masks::Counts(Vec::new()),
        MaskFormat::Rle => Masks::Rle(Vec::new()),
    };
    let resizer = masks::Resizer::new(request, geometry);
    for row in rows {
        let grid = masks::load_grid(request, image, row.query_idx as usize);
        if let Masks::GridLogits { logits, .. } = &mut masks {
            health.nonfinite_mask_logits += masks::count_nonfinite(&grid);
            let cells: Vec<u8> = grid.iter().map(|&logit| u8::from(logit > 0.0)).collect();
            (row.mask_area, row.mask_xyxy) = masks::area_and_box(&cells, mask_w, mask_h);
            row.mask_len = grid.len() as u32;
            logits.extend_from_slice(&grid);
            continue;
        }
        let window = masks::crop_window(&grid, mask_w, mask_h, &geometry.window);
        health.nonfinite_mask_logits += masks::count_nonfinite(&window);
        let mask = resizer.mask(&window)?;
        (row.mask_area, row.mask_xyxy) = masks::area_and_box(&mask, width, height);
        match &mut masks {
            Masks::None | Masks::GridLogits { .. } => {}
            Masks::Dense(bytes) => {
                row.mask_len = mask.len() as u32;
                bytes.extend_from_slice(&mask);
            }
            Masks::BitPacked(words) => {
                let packed = pack_bits(&mask, width, height);
                row.mask_len = packed.len() as u32;
                words.extend_from_slice(&packed);
            }
            Masks::Counts(all) => {
                let counts = rle::encode_counts(&mask, width, height);
                row.num_counts = counts.len() as u32;
                (row.mask_offset, row.mask_len) = span(all.len(), counts.len())?;
                all.extend_from_slice(&counts);
            }
            Masks::Rle(all) => {
                let counts = rle::encode_counts(&mask, width, height);
                row.num_counts = counts.len() as u32;
                let string = rle::encode_string(&counts);
                (row.mask_offset, row.mask_len) = span(all.len(), string.len())?;
                all.extend_from_slice(&string);
            }
        }
    }
    Ok(masks)
}

/// An empty vector with room for `count` masks of `len` elements.
fn reserve<T>(count: usize, len: usize, field: &'static str) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    let total = count.saturating_mul(len);
    let bytes = (total as u64).saturating_mul(size_of::<T>() as u64);
    vec.try_reserve_exact(total).map_err(|_| Error::OutOfMemory { field, bytes })?;
    Ok(vec)
}

/// Offset and length of a mask in the payload.
fn span(offset: usize, len: usize) -> Result<(u32, u32)> {
    match (u32::try_from(offset), u32::try_from(len)) {
        (Ok(offset), Ok(len)) => Ok((offset, len)),
        _ => Err(Error::Overflow {
            field: "masks",
            max: u32::MAX.into(),
            got: (offset as u64).saturating_add(len as u64),
        }),
    }
}

//! Recorded upstream requests (`tests/fixtures/upstream`): `.npz` files with the key `case_json`.
//!
//! They hold `logits`, `boxes`, the mask logits as `mask_bank[mask_index]`, and, in `case_json`, the pre-processing
//! records in upstream's words.

use anyhow::{Context, Result, bail, ensure};
use rfdetr_post::{ClassLayout, ImageMeta, Offset, Padding, Size, Thresholds};

use super::{
    config::Settings,
    tensors::{Array, ArrayData, Outputs, TensorFile, element_count},
};

/// The array that tells a recorded request from a model's outputs.
pub const KEY: &str = "case_json";

/// `case_json`, as far as it matters here.
#[derive(Debug, serde::Deserialize)]
struct Case {
    metas: Vec<Record>,
    num_classes: usize,
    #[serde(default)]
    max_detections: Option<usize>,
}

/// Upstream's pre-processing record. Sizes are (height, width).
#[derive(Debug, serde::Deserialize)]
struct Record {
    pad_left: i32,
    pad_top: i32,
    pad_right: i32,
    pad_bottom: i32,
    original_size: [u32; 2],
    size_after_pre_processing: [u32; 2],
    inference_size: [u32; 2],
    scale_width: f64,
    scale_height: f64,
    /// Offset and size, in x, y order.
    static_crop: [u32; 4],
    #[serde(default)]
    nonsquare_intermediate_size: Option<[u32; 2]>,
}

impl Record {
    fn meta(&self) -> ImageMeta {
        let size = |[height, width]: [u32; 2]| Size::new(width, height);
        ImageMeta {
            original: size(self.original_size),
            content: size(self.size_after_pre_processing),
            network: size(self.inference_size),
            intermediate: self.nonsquare_intermediate_size.map(size),
            padding: Padding { left: self.pad_left, top: self.pad_top, right: self.pad_right, bottom: self.pad_bottom },
            scale_x: self.scale_width,
            scale_y: self.scale_height,
            crop_offset: Offset { x: self.static_crop[0], y: self.static_crop[1] },
        }
    }
}

/// Reads a recorded request: outputs, records and settings.
pub fn read(file: &mut TensorFile<'_>, want_masks: bool) -> Result<(Outputs, Vec<ImageMeta>, Settings)> {
    let ArrayData::U8(json) = file.require(KEY)?.data else { bail!("`{KEY}`: expected bytes (u8)") };
    let case: Case = serde_json::from_slice(&json).with_context(|| format!("`{KEY}`"))?;
    let boxes = file.require("boxes")?;
    let logits = file.require("logits")?;
    let masks = if want_masks { gather_masks(file)? } else { None };
    let masks = masks.map(|masks| ("mask_bank", masks));
    let outputs = Outputs::new(("boxes", boxes), ("logits", logits), masks)?;

    let mut settings = Settings::default();
    settings.options.classes = match file.read("class_mapping")?.map(|array| array.data) {
        Some(ArrayData::I64(mapping)) => {
            let id = |id: i64| u32::try_from(id).ok().filter(|&id| (id as usize) < case.num_classes);
            ClassLayout::Remap(mapping.into_iter().map(id).collect())
        }
        Some(other) => bail!("`class_mapping` has type {}, expected i64", other.type_name()),
        None => ClassLayout::NoObject { num_classes: case.num_classes },
    };
    let ArrayData::F32(threshold) = file.require("threshold")?.data else { bail!("`threshold`: expected f32") };
    settings.options.threshold = match threshold[..] {
        [scalar] => Thresholds::Scalar(scalar.into()),
        _ => Thresholds::PerClass(threshold),
    };
    settings.options.max_detections = case.max_detections;
    Ok((outputs, case.metas.iter().map(Record::meta).collect(), settings))
}

/// `mask_bank[mask_index]`.
fn gather_masks(file: &mut TensorFile<'_>) -> Result<Option<Array>> {
    let Some(bank) = file.read("mask_bank")? else { return Ok(None) };
    let index = file.require("mask_index")?;
    let (ArrayData::F32(cells), ArrayData::I32(ids)) = (&bank.data, &index.data) else {
        bail!("`mask_bank` and `mask_index`: expected f32 and i32")
    };
    let &[count, mask_h, mask_w] = &bank.shape[..] else {
        bail!("`mask_bank` has shape {:?}, expected [K, Mh, Mw]", bank.shape)
    };
    let &[batch, queries] = &index.shape[..] else {
        bail!("`mask_index` has shape {:?}, expected [B, Q]", index.shape)
    };
    let shape = vec![batch, queries, mask_h, mask_w];
    let total = element_count(&shape).context("`mask_index`")?;
    let grid = element_count(&[mask_h, mask_w]).context("`mask_bank`")?;
    let mut data = Vec::new();
    data.try_reserve_exact(total).context("the mask logits do not fit into memory")?;
    for &id in ids {
        let id = usize::try_from(id).ok().filter(|&id| id < count);
        let id = id.with_context(|| format!("`mask_index` holds an entry outside 0..{count}"))?;
        data.extend_from_slice(&cells[id * grid..(id + 1) * grid]);
    }
    ensure!(data.len() == total, "`mask_index` holds {} entries, expected {}", ids.len(), batch * queries);
    Ok(Some(Array { shape, data: ArrayData::F32(data) }))
}

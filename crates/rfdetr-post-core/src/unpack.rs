//! Reads a packed result: checks it, then decodes it to [`Detections`].

use alloc::{format, string::ToString, vec::Vec};

use crate::{
    detections::{Detections, ImageDetections, Masks},
    error::{Error, Result},
    geometry::{ImageMeta, Size},
    options::MaskFormat,
    packed::{DetectionRow, ImageHeader, ResultHeader},
    plan::Plan,
};

/// The packed result of one request, borrowed from the memory that the kernels wrote. Nothing is copied.
#[derive(Debug, Clone, Copy)]
pub struct PackedResult<'a> {
    plan: &'a Plan,
    metas: &'a [ImageMeta],
    bytes: &'a [u8],
}

impl<'a> PackedResult<'a> {
    /// Checks the result of a request with these images: `bytes` are the plan's `result.bytes`.
    ///
    /// Errors: [`Error::Capacity`] if a mask did not fit, [`Error::Packed`] if the result contradicts itself.
    pub fn new(plan: &'a Plan, metas: &'a [ImageMeta], bytes: &'a [u8]) -> Result<Self> {
        let packed = |field, expected: u64, got: u64| {
            if expected == got {
                Ok(())
            } else {
                Err(Error::Packed { field, expected: expected.to_string(), got: got.to_string() })
            }
        };
        packed("bytes", plan.result.bytes, bytes.len() as u64)?;
        let result = Self { plan, metas, bytes };
        let header: ResultHeader = result.record(0, 0);
        packed("num_images", metas.len() as u64, header.num_images.into())?;
        let mut total = 0;
        for image in 0..metas.len() {
            let header = result.header(image);
            total += u64::from(header.num_detections);
            let needed = header.needed_mask_len;
            if needed > plan.mask_capacity && is_run_length(plan.spec.options.mask_format) {
                let unit = if plan.spec.options.mask_format == MaskFormat::Counts { "counts" } else { "bytes" };
                return Err(Error::Capacity {
                    image,
                    unit,
                    capacity: plan.mask_capacity.into(),
                    needed: needed.into(),
                });
            }
            if header.num_detections > plan.max_detections {
                return Err(Error::Packed {
                    field: "num_detections",
                    expected: format!("at most {}", plan.max_detections),
                    got: header.num_detections.to_string(),
                });
            }
        }
        packed("num_detections", total, header.num_detections.into())?;
        Ok(result)
    }

    /// Number of images.
    pub fn num_images(&self) -> usize {
        self.metas.len()
    }

    /// Header of an image. Panics beyond the batch, like a slice.
    pub fn header(&self, image: usize) -> ImageHeader {
        self.record(self.plan.result.headers, image)
    }

    /// Row of a detection; its `mask_offset` counts from the image's masks. Panics beyond the detections.
    pub fn row(&self, image: usize, idx: usize) -> DetectionRow {
        assert!(idx < self.header(image).num_detections as usize, "row {idx} of image {image} is not there");
        self.record(self.plan.result.rows, image * self.plan.max_detections as usize + idx)
    }

    /// The run-length mask of a detection, in bytes; none for the other formats.
    pub fn run_lengths(&self, image: usize, row: &DetectionRow) -> Option<&'a [u8]> {
        let format = self.plan.spec.options.mask_format;
        let element = match format {
            MaskFormat::Rle => 1,
            MaskFormat::Counts => 4,
            _ => return None,
        };
        let capacity = self.plan.mask_capacity as usize * self.plan.max_detections as usize;
        let start = self.plan.result.masks as usize + (image * capacity + row.mask_offset as usize) * element;
        self.bytes.get(start..start + row.mask_len as usize * element)
    }

    /// Decodes everything. `payload` are the plan's `payload_bytes`, for the formats that stay on the device.
    ///
    /// Errors: [`Error::Packed`] if a row points outside its room.
    pub fn decode(&self, payload: &[u8]) -> Result<Detections> {
        let images = (0..self.num_images()).map(|image| self.decode_image(image, payload)).collect::<Result<_>>()?;
        Ok(Detections { images })
    }

    fn decode_image(&self, image: usize, payload: &[u8]) -> Result<ImageDetections> {
        let header = self.header(image);
        let mut rows: Vec<_> = (0..header.num_detections as usize).map(|idx| self.row(image, idx)).collect();
        let size = self.metas[image].original;
        let masks = match self.plan.spec.options.mask_format {
            MaskFormat::None => Masks::None,
            MaskFormat::Dense => Masks::Dense(self.gather::<u8>(payload, image, rows.len(), size.area() as usize)?),
            MaskFormat::BitPacked => {
                let words = size.width.div_ceil(32) as usize * size.height as usize;
                Masks::BitPacked(self.gather(payload, image, rows.len(), words)?)
            }
            MaskFormat::GridLogits => {
                let (mask_h, mask_w) = self.plan.spec.shape.mask_grid.unwrap_or_default();
                let logits = self.gather(payload, image, rows.len(), mask_h * mask_w)?;
                Masks::GridLogits { mask_h, mask_w, logits }
            }
            MaskFormat::Counts => Masks::Counts(self.gather_runs(image, &mut rows)?),
            MaskFormat::Rle => Masks::Rle(self.gather_runs(image, &mut rows)?),
        };
        Ok(ImageDetections { size, rows, masks, health: header.health })
    }

    /// Masks of a fixed size, `len` elements each: where they lie is rounded up to 16 bytes.
    fn gather<T: bytemuck::AnyBitPattern>(
        &self,
        payload: &[u8],
        image: usize,
        count: usize,
        len: usize,
    ) -> Result<Vec<T>> {
        let bytes = len * size_of::<T>();
        let first = image * self.plan.payload_image_bytes as usize;
        let mut masks = Vec::with_capacity(count * len);
        for idx in 0..count {
            let start = first + idx * bytes.next_multiple_of(16);
            let mask = payload.get(start..start + bytes).ok_or_else(|| Error::Packed {
                field: "payload",
                expected: format!("at least {} bytes", start + bytes),
                got: payload.len().to_string(),
            })?;
            masks.extend(mask.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
        }
        Ok(masks)
    }

    /// Run lengths, put behind each other.
    fn gather_runs<T: bytemuck::AnyBitPattern>(&self, image: usize, rows: &mut [DetectionRow]) -> Result<Vec<T>> {
        let mut masks = Vec::new();
        for row in rows {
            let mask = self.run_lengths(image, row).ok_or_else(|| Error::Packed {
                field: "mask_len",
                expected: format!("at most {}", self.plan.mask_capacity),
                got: row.mask_len.to_string(),
            })?;
            row.mask_offset = masks.len() as u32;
            masks.extend(mask.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>));
        }
        Ok(masks)
    }

    /// Size of an image. Panics beyond the batch.
    pub fn size(&self, image: usize) -> Size {
        self.metas[image].original
    }

    fn record<T: bytemuck::AnyBitPattern>(&self, offset: u64, idx: usize) -> T {
        let start = offset as usize + idx * size_of::<T>();
        bytemuck::pod_read_unaligned(&self.bytes[start..start + size_of::<T>()])
    }
}

fn is_run_length(format: MaskFormat) -> bool {
    matches!(format, MaskFormat::Counts | MaskFormat::Rle)
}

//! Reads a packed result: checks it, then decodes it to [`Detections`].

use alloc::{format, string::ToString, vec::Vec};

use crate::{
    detections::{Detections, ImageDetections, Masks},
    error::{Error, Result},
    geometry::{ImageMeta, Size},
    options::MaskFormat,
    packed::{DetectionRow, Health, ImageHeader, PackedRow},
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
    /// Errors: [`Error::Capacity`] if a mask did not fit, [`Error::Packed`] if the result contradicts the plan.
    pub fn new(plan: &'a Plan, metas: &'a [ImageMeta], bytes: &'a [u8]) -> Result<Self> {
        let result = Self::of_headers(plan, metas, bytes)?;
        result.check_capacity()?;
        Ok(result)
    }

    /// [`new`](Self::new) for a result of which only the headers are there yet: rows and masks are not looked at.
    ///
    /// Errors: [`Error::Packed`].
    pub fn of_headers(plan: &'a Plan, metas: &'a [ImageMeta], bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() as u64 != plan.result.bytes {
            return Err(Error::Packed {
                field: "bytes",
                expected: plan.result.bytes.to_string(),
                got: bytes.len().to_string(),
            });
        }
        let result = Self { plan, metas, bytes };
        for num_detections in (0..metas.len()).map(|image| result.num_detections(image)) {
            if num_detections > plan.max_detections {
                return Err(Error::Packed {
                    field: "num_detections",
                    expected: format!("at most {}", plan.max_detections),
                    got: num_detections.to_string(),
                });
            }
        }
        Ok(result)
    }

    /// The first image with a mask longer than its room is an error that names its longest one.
    fn check_capacity(&self) -> Result<()> {
        let plan = self.plan;
        let unit = match plan.spec.options.mask_format {
            MaskFormat::Counts => "counts",
            MaskFormat::Rle => "bytes",
            _ => return Ok(()),
        };
        for image in 0..self.num_images() {
            let needed = self.packed_rows(image).map(|row| row.mask_len).max().unwrap_or(0);
            if needed > plan.mask_capacity {
                let (capacity, needed) = (plan.mask_capacity.into(), needed.into());
                return Err(Error::Capacity { image, unit, capacity, needed });
            }
        }
        Ok(())
    }

    /// Number of images.
    pub fn num_images(&self) -> usize {
        self.metas.len()
    }

    /// Number of detections of an image. Panics beyond the batch, like a slice.
    pub fn num_detections(&self, image: usize) -> u32 {
        self.header(image).num_detections
    }

    /// Non-finite values of an image. Panics beyond the batch.
    pub fn health(&self, image: usize) -> Health {
        // The sum of what fits: 2^18 cells for each of 1024 detections. It wraps only for rows that are damaged.
        let of_rows = self.packed_rows(image).map(|row| row.nonfinite_mask_logits);
        Health { nonfinite_mask_logits: of_rows.fold(0, u32::wrapping_add), ..self.header(image).health }
    }

    /// Row of a detection; its `mask_offset` counts from the image's masks. Panics beyond the detections.
    pub fn row(&self, image: usize, idx: usize) -> DetectionRow {
        assert!(idx < self.num_detections(image) as usize, "row {idx} of image {image} is not there");
        // The capacity is zero for masks of a fixed size, whose rows have no offset.
        self.packed_row(image, idx).detection((idx as u32).wrapping_mul(self.plan.mask_capacity))
    }

    fn header(&self, image: usize) -> ImageHeader {
        self.record(self.plan.result.headers, image)
    }

    fn packed_row(&self, image: usize, idx: usize) -> PackedRow {
        self.record(self.plan.result.rows, image * self.plan.max_detections as usize + idx)
    }

    fn packed_rows(&self, image: usize) -> impl Iterator<Item = PackedRow> {
        (0..self.num_detections(image) as usize).map(move |idx| self.packed_row(image, idx))
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
        let mut rows: Vec<_> = (0..self.num_detections(image) as usize).map(|idx| self.row(image, idx)).collect();
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
        Ok(ImageDetections { size, rows, masks, health: self.health(image) })
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

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::{
        options::Options,
        plan::{DeviceLimits, PlanSpec},
        request::ModelShape,
    };

    const MASK_LEN: u32 = 20;

    fn plan(mask_format: MaskFormat) -> Plan {
        let shape = ModelShape { num_queries: 10, num_classes: 3, mask_grid: Some((6, 9)) };
        let options = Options { mask_format, ..Options::default() };
        let spec = PlanSpec { shape, max_batch: 2, max_image: Size::new(50, 40), options, mask_capacity: Some(32) };
        Plan::new(spec, DeviceLimits::new(4)).unwrap()
    }

    /// A block of two images with two rows and one. Everything else is what earlier requests may have left.
    fn block(plan: &Plan, lens: [u32; 3]) -> Vec<u8> {
        let mut bytes = vec![0xff; plan.result.bytes as usize];
        let mut put = |at: u64, record: &[u8]| bytes[at as usize..][..record.len()].copy_from_slice(record);
        for (image, num_detections) in [2, 1].into_iter().enumerate() {
            let health = Health { nan_logits: 7, ..Health::default() };
            let header = ImageHeader { num_detections, health, ..ImageHeader::default() };
            put(plan.result.headers + 32 * image as u64, bytemuck::bytes_of(&header));
        }
        for (row, mask_len, nonfinite_mask_logits) in [(0, lens[0], 3), (1, lens[1], 4), (10, lens[2], 0)] {
            let row_at = plan.result.rows + 64 * row;
            let row = PackedRow { mask_len, nonfinite_mask_logits, query_idx: row as u32, ..PackedRow::default() };
            put(row_at, bytemuck::bytes_of(&row));
        }
        bytes
    }

    fn metas() -> [ImageMeta; 2] {
        [ImageMeta::stretch(Size::new(50, 40), Size::new(36, 24)).unwrap(); 2]
    }

    #[test]
    fn what_the_packed_rows_leave_out_is_made_up() {
        for (mask_format, second) in [(MaskFormat::Rle, 32), (MaskFormat::Counts, 32), (MaskFormat::Dense, 0)] {
            let (plan, metas) = (plan(mask_format), metas());
            let bytes = block(&plan, [MASK_LEN; 3]);
            let packed = PackedResult::new(&plan, &metas, &bytes).unwrap();
            let rows = [packed.row(0, 0), packed.row(0, 1), packed.row(1, 0)];
            assert_eq!(rows.map(|row| row.query_idx), [0, 1, 10]);
            assert_eq!(rows.map(|row| row.mask_offset), [0, second, 0]);
            assert_eq!(rows.map(|row| row.mask_len), [MASK_LEN; 3]);
            let health = Health { nan_logits: 7, nonfinite_mask_logits: 7, ..Health::default() };
            assert_eq!(packed.health(0), health);
            assert_eq!(packed.health(1), Health { nonfinite_mask_logits: 0, ..health });
        }
    }

    #[test]
    fn the_first_image_without_room_names_its_longest_mask() {
        let metas = metas();
        for (mask_format, name) in [(MaskFormat::Rle, "bytes"), (MaskFormat::Counts, "counts")] {
            let plan = plan(mask_format);
            let needs = |lens| match PackedResult::new(&plan, &metas, &block(&plan, lens)) {
                Err(Error::Capacity { image, unit, capacity: 32, needed }) if unit == name => Some((image, needed)),
                Err(error) => panic!("{error}"),
                Ok(_) => None,
            };
            assert_eq!(needs([32, 32, 32]), None);
            assert_eq!(needs([33, 40, 50]), Some((0, 40)));
            assert_eq!(needs([40, 33, 50]), Some((0, 40)));
            assert_eq!(needs([32, 0, 50]), Some((1, 50)));
            // Rows that are not there yet are not looked at.
            let bytes = block(&plan, [50, 50, 50]);
            assert_eq!(PackedResult::of_headers(&plan, &metas, &bytes).unwrap().num_detections(0), 2);
        }
        // Masks of a fixed size have no capacity.
        let dense = plan(MaskFormat::Dense);
        assert!(PackedResult::new(&dense, &metas, &block(&dense, [2000; 3])).is_ok());
    }

    #[test]
    fn blocks_that_contradict_the_plan_are_refused() {
        let (plan, metas) = (plan(MaskFormat::Rle), metas());
        let field = |bytes: &[u8]| match PackedResult::new(&plan, &metas, bytes) {
            Err(Error::Packed { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let bytes = block(&plan, [0; 3]);
        assert_eq!(field(&bytes[..bytes.len() - 1]), "bytes");
        let mut bytes = bytes;
        bytes[plan.result.headers as usize] = 11;
        assert_eq!(field(&bytes), "num_detections");
    }
}

//! COCO's result format, and the list of images that goes with it.

use std::collections::BTreeMap;

use anyhow::Result;
use rfdetr_post::{ImageDetections, MaskRef, Size, reference::rle};
use serde::Serialize;

/// One detection of `detections.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CocoDetection {
    /// The image's id in `images.json`.
    pub image_id: u64,
    /// The class id after the class layout.
    pub category_id: i32,
    /// x, y, width, height in pixels of the original image.
    pub bbox: [f32; 4],
    /// In 0..=1.
    pub score: f32,
    /// The mask, for formats that cover the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<Segmentation>,
    /// Number of the mask's pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub area: Option<u32>,
}

/// A mask as run lengths.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Segmentation {
    /// Height, width.
    pub size: [u32; 2],
    /// The run lengths.
    pub counts: Counts,
}

/// The two forms of run lengths.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Counts {
    /// COCO's compressed string.
    String(String),
    /// Plain numbers.
    List(Vec<u32>),
}

/// The records of one image, all with image id 0, which is known only when all inputs are done.
///
/// A box that is not finite cannot be written as JSON; it becomes zeros.
pub fn records(detections: &ImageDetections) -> Result<Vec<CocoDetection>> {
    let size = detections.size;
    let string = |counts: &[u32]| Ok(Counts::String(String::from_utf8(rle::encode_string(counts))?));
    let rows = detections.rows.iter().enumerate().map(|(idx, row)| {
        let counts: Option<Result<Counts>> = match detections.mask(idx) {
            None | Some(MaskRef::GridLogits(_)) => None,
            Some(MaskRef::Rle(bytes)) => {
                Some(String::from_utf8(bytes.to_vec()).map(Counts::String).map_err(Into::into))
            }
            Some(MaskRef::Counts(counts)) => Some(Ok(Counts::List(counts.to_vec()))),
            Some(MaskRef::Dense(mask)) => {
                Some(string(&rle::encode_counts(mask, size.width as usize, size.height as usize)))
            }
            Some(MaskRef::BitPacked(_)) => detections
                .dense_mask(idx)?
                .map(|mask| string(&rle::encode_counts(&mask, size.width as usize, size.height as usize))),
        };
        let counts = counts.transpose()?;
        let [x1, y1, x2, y2] = row.xyxy;
        let bbox = [x1, y1, x2 - x1, y2 - y1];
        Ok(CocoDetection {
            image_id: 0,
            category_id: row.class_id,
            bbox: if bbox.iter().all(|x| x.is_finite()) { bbox } else { [0.0; 4] },
            score: row.confidence,
            area: counts.is_some().then_some(row.mask_area),
            segmentation: counts.map(|counts| Segmentation { size: [size.height, size.width], counts }),
        })
    });
    rows.collect()
}

/// `images.json`: a COCO data set without annotations.
#[derive(Debug, Default, Serialize)]
pub struct Dataset {
    /// All images.
    pub images: Vec<CocoImage>,
    /// None; the detections are in their own file.
    pub annotations: [u8; 0],
    /// Every class that is named or was detected.
    pub categories: Vec<Category>,
}

/// One image of `images.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CocoImage {
    /// What `image_id` refers to.
    pub id: u64,
    /// The picture's name, or the input's.
    pub file_name: String,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// One class of `images.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Category {
    /// What `category_id` refers to.
    pub id: i32,
    /// Its name.
    pub name: String,
}

impl Dataset {
    /// Adds an image.
    pub fn add_image(&mut self, id: u64, file_name: &str, size: Size) {
        self.images.push(CocoImage { id, file_name: file_name.to_owned(), width: size.width, height: size.height });
    }

    /// Takes the classes, sorted by id.
    pub fn set_categories(&mut self, names: BTreeMap<i32, String>) {
        self.categories = names.into_iter().map(|(id, name)| Category { id, name }).collect();
    }
}

/// The name of a class for people.
pub fn class_label(names: &[String], class_id: i32) -> String {
    let name = usize::try_from(class_id).ok().and_then(|id| names.get(id)).filter(|name| !name.is_empty());
    name.cloned().unwrap_or_else(|| format!("class {class_id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rfdetr_post::{DetectionRow, Health, Masks, detections::pack_bits};

    fn detections(masks: Masks, mask_len: u32) -> ImageDetections {
        let row = DetectionRow {
            xyxy: [1.0, 2.0, 4.0, 4.0],
            confidence: 0.7,
            class_id: 3,
            mask_area: 4,
            mask_len,
            ..DetectionRow::default()
        };
        ImageDetections { size: Size::new(5, 6), rows: vec![row], masks, health: Health::default() }
    }

    /// The spec's worked example.
    const MASK: [u8; 30] = [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    #[test]
    fn full_size_masks_become_run_lengths() {
        let packed = pack_bits(&MASK, 5, 6);
        for masks in [
            (Masks::Dense(MASK.to_vec()), 30),
            (Masks::BitPacked(packed.clone()), packed.len() as u32),
            (Masks::Rle(b"733NN0224N".to_vec()), 10),
        ] {
            let json = serde_json::to_string(&records(&detections(masks.0, masks.1)).unwrap()).unwrap();
            assert_eq!(
                json,
                r#"[{"image_id":0,"category_id":3,"bbox":[1.0,2.0,3.0,2.0],"score":0.7,"segmentation":{"size":[6,5],"counts":"733NN0224N"},"area":4}]"#
            );
        }
        let list = records(&detections(Masks::Counts(vec![7, 3, 20]), 3)).unwrap();
        assert_eq!(list[0].segmentation.as_ref().unwrap().counts, Counts::List(vec![7, 3, 20]));
        let grid = Masks::GridLogits { mask_h: 1, mask_w: 1, logits: vec![1.0] };
        assert_eq!(records(&detections(grid, 1)).unwrap()[0].segmentation, None);
        assert_eq!(records(&detections(Masks::None, 0)).unwrap()[0].area, None);
    }

    #[test]
    fn boxes_that_are_not_finite_become_zeros() {
        let mut image = detections(Masks::None, 0);
        image.rows[0].xyxy[2] = f32::NAN;
        assert_eq!(records(&image).unwrap()[0].bbox, [0.0; 4]);
    }

    #[test]
    fn labels_fall_back_to_the_id() {
        let names = ["".to_owned(), "cat".to_owned()];
        assert_eq!(class_label(&names, 1), "cat");
        assert_eq!(class_label(&names, 0), "class 0");
        assert_eq!(class_label(&names, -1), "class -1");
        assert_eq!(class_label(&names, 7), "class 7");
    }
}

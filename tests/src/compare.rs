//! The first difference of two answers, by name. Everything is compared bit for bit; all NaNs are equal.

use std::fmt;

use rfdetr_post_core::{
    DetectionRow, Detections, Health, ImageDetections, MaskFormat, Masks, Request, Result, reference,
};

/// Where two answers differ first, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The image; none when the number of images differs.
    pub image: Option<usize>,
    /// The detection; none for fields of the whole image.
    pub row: Option<usize>,
    /// The field's name, as in the public types.
    pub field: &'static str,
    /// Where inside the field: coordinate, pixel, count or byte.
    pub place: String,
    /// What the judge has.
    pub expected: String,
    /// What the judged has.
    pub got: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(image) = self.image {
            write!(f, "images[{image}].")?;
        }
        if let Some(row) = self.row {
            write!(f, "rows[{row}].")?;
        }
        write!(f, "{}", self.field)?;
        if !self.place.is_empty() {
            write!(f, " at {}", self.place)?;
        }
        write!(f, " is {}, expected {}", self.got, self.expected)
    }
}

impl std::error::Error for Difference {}

/// Whether two floats have the same bits, or are both NaN.
pub fn same_bits(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Distance in units of the last place, counting every float between; 0 for two NaNs, huge for one.
pub fn ulps(a: f32, b: f32) -> u32 {
    if a.is_nan() || b.is_nan() {
        return if a.is_nan() && b.is_nan() { 0 } else { u32::MAX };
    }
    let line = |x: f32| {
        let magnitude = i64::from(x.to_bits() & 0x7fff_ffff);
        if x.is_sign_negative() { -magnitude } else { magnitude }
    };
    line(a).abs_diff(line(b)) as u32
}

/// Runs `implementation` on a request and compares its answer with the reference's.
///
/// Errors: both fail alike is equality; otherwise the first difference.
pub fn check(
    request: &Request<'_>,
    implementation: impl Fn(&Request<'_>) -> Result<Detections>,
) -> std::result::Result<(), Difference> {
    match (reference::process(request), implementation(request)) {
        (Ok(expected), Ok(got)) => compare(&expected, &got),
        (Err(expected), Err(got)) if expected == got => Ok(()),
        (expected, got) => Err(Difference {
            image: None,
            row: None,
            field: "result",
            place: String::new(),
            expected: expected.map_or_else(|error| error.to_string(), |_| "an answer".into()),
            got: got.map_or_else(|error| error.to_string(), |_| "an answer".into()),
        }),
    }
}

/// Compares `got` with `expected`, image by image: size, rows (count, then field by field), masks, health.
pub fn compare(expected: &Detections, got: &Detections) -> std::result::Result<(), Difference> {
    if expected.images.len() != got.images.len() {
        return Err(Difference {
            image: None,
            row: None,
            field: "images.len",
            place: String::new(),
            expected: expected.images.len().to_string(),
            got: got.images.len().to_string(),
        });
    }
    expected.images.iter().zip(&got.images).enumerate().try_for_each(|(image, (expected, got))| {
        compare_image(expected, got).map_err(|difference| Difference { image: Some(image), ..difference })
    })
}

/// Compares the answers of one image; the difference names no image.
pub fn compare_image(expected: &ImageDetections, got: &ImageDetections) -> std::result::Result<(), Difference> {
    let at_image = Here { row: None };
    at_image.same("size", &expected.size, &got.size)?;
    at_image.same("rows.len", &expected.rows.len(), &got.rows.len())?;
    at_image.same("masks.format", &expected.masks.format().name(), &got.masks.format().name())?;
    for (row, (a, b)) in expected.rows.iter().zip(&got.rows).enumerate() {
        let here = Here { row: Some(row) };
        let DetectionRow {
            xyxy,
            confidence,
            class_id,
            query_idx,
            class_idx,
            mask_xyxy,
            mask_area,
            mask_offset: _,
            mask_len,
            num_counts,
        } = a;
        here.same("query_idx", query_idx, &b.query_idx)?;
        here.same("class_idx", class_idx, &b.class_idx)?;
        here.same("class_id", class_id, &b.class_id)?;
        here.floats("confidence", &[""], &[*confidence], &[b.confidence])?;
        here.floats("xyxy", &["left", "top", "right", "bottom"], xyxy, &b.xyxy)?;
        here.mask(expected, got, row)?;
        here.same("mask_area", mask_area, &b.mask_area)?;
        here.same("mask_xyxy", mask_xyxy, &b.mask_xyxy)?;
        here.same("num_counts", num_counts, &b.num_counts)?;
        here.same("mask_len", mask_len, &b.mask_len)?;
        here.same("mask_offset", &a.mask_offset, &b.mask_offset)?;
    }
    // Masks were compared by row; what no row owns must be equal, too.
    at_image.same("masks.len", &masks_len(&expected.masks), &masks_len(&got.masks))?;
    if let (Masks::GridLogits { mask_h, mask_w, .. }, Masks::GridLogits { mask_h: h, mask_w: w, .. }) =
        (&expected.masks, &got.masks)
    {
        at_image.same("masks.grid", &(mask_h, mask_w), &(h, w))?;
    }
    let Health { nan_logits, pos_inf_logits, neg_inf_logits, nonfinite_boxes, nonfinite_mask_logits } = expected.health;
    at_image.same("health.nan_logits", &nan_logits, &got.health.nan_logits)?;
    at_image.same("health.pos_inf_logits", &pos_inf_logits, &got.health.pos_inf_logits)?;
    at_image.same("health.neg_inf_logits", &neg_inf_logits, &got.health.neg_inf_logits)?;
    at_image.same("health.nonfinite_boxes", &nonfinite_boxes, &got.health.nonfinite_boxes)?;
    at_image.same("health.nonfinite_mask_logits", &nonfinite_mask_logits, &got.health.nonfinite_mask_logits)
}

fn masks_len(masks: &Masks) -> usize {
    match masks {
        Masks::None => 0,
        Masks::Dense(data) | Masks::Rle(data) => data.len(),
        Masks::BitPacked(data) | Masks::Counts(data) => data.len(),
        Masks::GridLogits { logits, .. } => logits.len(),
    }
}

/// The row under comparison.
struct Here {
    row: Option<usize>,
}

impl Here {
    fn differ(
        &self,
        field: &'static str,
        place: impl Into<String>,
        expected: String,
        got: String,
    ) -> std::result::Result<(), Difference> {
        Err(Difference { image: None, row: self.row, field, place: place.into(), expected, got })
    }

    fn same<T: PartialEq + fmt::Debug>(
        &self,
        field: &'static str,
        expected: &T,
        got: &T,
    ) -> std::result::Result<(), Difference> {
        if expected == got { Ok(()) } else { self.differ(field, "", format!("{expected:?}"), format!("{got:?}")) }
    }

    fn floats(
        &self,
        field: &'static str,
        places: &[&str],
        expected: &[f32],
        got: &[f32],
    ) -> std::result::Result<(), Difference> {
        for ((place, &a), &b) in places.iter().zip(expected).zip(got) {
            if !same_bits(a, b) {
                return self.differ(field, *place, bits(a), bits(b));
            }
        }
        Ok(())
    }

    /// Compares the masks of one row: pixel by pixel, cell by cell, or count by count.
    fn mask(
        &self,
        expected: &ImageDetections,
        got: &ImageDetections,
        row: usize,
    ) -> std::result::Result<(), Difference> {
        use rfdetr_post_core::MaskRef::{BitPacked, Counts, Dense, GridLogits, Rle};
        let (width, height) = (expected.size.width as usize, expected.size.height as usize);
        let pixel = |y: usize, x: usize| format!("pixel x={x} y={y}");
        match (expected.mask(row), got.mask(row)) {
            (None, None) => Ok(()),
            (Some(Dense(a)), Some(Dense(b))) => {
                self.same("mask.len", &a.len(), &b.len())?;
                match (0..a.len()).find(|&i| a[i] != b[i]) {
                    None => Ok(()),
                    Some(i) => self.differ("mask", pixel(i / width, i % width), a[i].to_string(), b[i].to_string()),
                }
            }
            (Some(BitPacked(a)), Some(BitPacked(b))) => {
                self.same("mask.len", &a.len(), &b.len())?;
                match (0..a.len()).find(|&i| a[i] != b[i]) {
                    None => Ok(()),
                    Some(i) => {
                        let words = width.div_ceil(32);
                        let x = i % words * 32 + (a[i] ^ b[i]).trailing_zeros() as usize;
                        self.differ("mask", pixel(i / words, x), format!("{:08x}", a[i]), format!("{:08x}", b[i]))
                    }
                }
            }
            (Some(GridLogits(a)), Some(GridLogits(b))) => {
                self.same("mask.len", &a.len(), &b.len())?;
                match (0..a.len()).find(|&i| !same_bits(a[i], b[i])) {
                    None => Ok(()),
                    Some(i) => self.differ("mask", format!("cell {i}"), bits(a[i]), bits(b[i])),
                }
            }
            (Some(Counts(a)), Some(Counts(b))) => {
                if let Some(i) = (0..a.len().min(b.len())).find(|&i| a[i] != b[i]) {
                    let first: u64 = a[..i].iter().map(|&count| u64::from(count)).sum();
                    let first = first + u64::from(a[i].min(b[i]));
                    let place = format!("count {i}, {}", pixel(first as usize % height, first as usize / height));
                    return self.differ("mask", place, a[i].to_string(), b[i].to_string());
                }
                self.same("mask.len", &a.len(), &b.len())
            }
            (Some(Rle(a)), Some(Rle(b))) => {
                if let Some(i) = (0..a.len().min(b.len())).find(|&i| a[i] != b[i]) {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    return self.differ("mask", format!("byte {i}"), text(a), text(b));
                }
                self.same("mask.len", &a.len(), &b.len())
            }
            (a, b) => {
                let show = |mask: Option<_>| if mask.is_some() { "a mask" } else { "none" }.to_string();
                self.differ("mask", "", show(a), show(b))
            }
        }
    }
}

fn bits(x: f32) -> String {
    format!("{x:?} ({:08x})", x.to_bits())
}

/// A damage to an answer with at least one detection in its first image. False if it does not apply to the answer.
pub type Damage = fn(&mut Detections) -> bool;

/// Damages that a comparison must report, each of one field, with the field's name.
pub const FAULTS: &[(&str, Damage)] = &[
    ("images.len", |d| d.images.pop().is_some()),
    ("size", |d| d.images[0].size.width.flip()),
    ("rows.len", |d| d.images[0].rows.pop().is_some()),
    ("query_idx", |d| row(d).query_idx.flip()),
    ("class_idx", |d| row(d).class_idx.flip()),
    ("class_id", |d| row(d).class_id.flip()),
    ("confidence", |d| row(d).confidence.flip()),
    ("xyxy", |d| row(d).xyxy[0].flip()),
    ("xyxy", |d| row(d).xyxy[1].flip()),
    ("xyxy", |d| row(d).xyxy[2].flip()),
    ("xyxy", |d| row(d).xyxy[3].flip()),
    ("xyxy", |d| !std::mem::replace(&mut row(d).xyxy[3], f32::NAN).is_nan()),
    ("mask_area", |d| row(d).mask_area.flip()),
    ("mask_xyxy", |d| row(d).mask_xyxy[0].flip()),
    ("mask_xyxy", |d| row(d).mask_xyxy[3].flip()),
    ("num_counts", |d| row(d).num_counts.flip()),
    ("mask_len", |d| d.images[0].masks.format() == MaskFormat::None && row(d).mask_len.flip()),
    ("mask_offset", |d| fixed_size(d) && row(d).mask_offset.flip()),
    ("masks.format", |d| std::mem::take(&mut d.images[0].masks) != Masks::None),
    ("masks.len", |d| {
        match &mut d.images[0].masks {
            Masks::None => return false,
            Masks::Dense(data) | Masks::Rle(data) => data.push(0),
            Masks::BitPacked(data) | Masks::Counts(data) => data.push(0),
            Masks::GridLogits { logits, .. } => logits.push(0.0),
        }
        true
    }),
    ("mask", |d| match &mut d.images[0].masks {
        Masks::None => false,
        // The last mask ends the data, so its last element is a pixel, a count, a character.
        Masks::Dense(data) | Masks::Rle(data) => data.last_mut().is_some_and(Flip::flip),
        Masks::BitPacked(data) | Masks::Counts(data) => data.last_mut().is_some_and(Flip::flip),
        Masks::GridLogits { logits, .. } => logits.last_mut().is_some_and(Flip::flip),
    }),
    ("masks.grid", |d| match &mut d.images[0].masks {
        Masks::GridLogits { mask_h, .. } => mask_h.flip(),
        _ => false,
    }),
    ("health.nan_logits", |d| d.images[0].health.nan_logits.flip()),
    ("health.pos_inf_logits", |d| d.images[0].health.pos_inf_logits.flip()),
    ("health.neg_inf_logits", |d| d.images[0].health.neg_inf_logits.flip()),
    ("health.nonfinite_boxes", |d| d.images[0].health.nonfinite_boxes.flip()),
    ("health.nonfinite_mask_logits", |d| d.images[0].health.nonfinite_mask_logits.flip()),
];

fn row(detections: &mut Detections) -> &mut DetectionRow {
    &mut detections.images[0].rows[0]
}

fn fixed_size(detections: &Detections) -> bool {
    !matches!(detections.images[0].masks, Masks::Counts(_) | Masks::Rle(_))
}

/// The smallest damage to a value: its last bit.
trait Flip {
    /// Flips the last bit; true, because that always changes the value.
    fn flip(&mut self) -> bool;
}

macro_rules! flip_integers {
    ($($integer:ty)*) => {
        $(impl Flip for $integer {
            fn flip(&mut self) -> bool {
                *self ^= 1;
                true
            }
        })*
    };
}

flip_integers!(u8 i32 u32 usize);

impl Flip for f32 {
    /// All NaNs are equal, so NaN becomes a number.
    fn flip(&mut self) -> bool {
        *self = if self.is_nan() { 0.0 } else { f32::from_bits(self.to_bits() ^ 1) };
        true
    }
}

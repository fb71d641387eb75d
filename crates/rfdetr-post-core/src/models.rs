//! The published RF-DETR and RF-DETR-Seg variants (spec 1.3). For information: shapes are read from the tensors.

/// One published variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// The variant's name.
    pub name: &'static str,
    /// Side of the square network input, in pixels.
    pub resolution: u32,
    /// Q.
    pub num_queries: u32,
    /// Rows that rf-detr itself returns.
    pub num_select: u32,
    /// C of the published head, the unused columns included.
    pub num_classes: u32,
    /// Side of the mask grid; none for detection models.
    pub mask_side: Option<u32>,
}

const fn detection(name: &'static str, resolution: u32, num_select: u32, num_classes: u32) -> Variant {
    Variant { name, resolution, num_queries: 300, num_select, num_classes, mask_side: None }
}

const fn segmentation(name: &'static str, resolution: u32, num_queries: u32) -> Variant {
    Variant { name, resolution, num_queries, num_select: num_queries, num_classes: 91, mask_side: Some(resolution / 4) }
}

/// Every variant with boxes or masks, smallest first.
pub const VARIANTS: [Variant; 15] = [
    detection("nano", 384, 300, 91),
    detection("small", 512, 300, 91),
    detection("medium", 576, 300, 91),
    detection("base", 560, 300, 91),
    detection("large", 704, 100, 91),
    detection("large-deprecated", 560, 300, 91),
    detection("xlarge", 700, 100, 366),
    detection("2xlarge", 880, 100, 366),
    segmentation("seg-preview", 432, 200),
    segmentation("seg-nano", 312, 100),
    segmentation("seg-small", 384, 100),
    segmentation("seg-medium", 432, 200),
    segmentation("seg-large", 504, 200),
    segmentation("seg-xlarge", 624, 300),
    segmentation("seg-2xlarge", 768, 300),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_grids_of_the_spec() {
        let side = |name| VARIANTS.iter().find(|v| v.name == name).unwrap().mask_side;
        let sides = ["seg-nano", "seg-small", "seg-medium", "seg-large", "seg-xlarge", "seg-2xlarge"].map(side);
        assert_eq!(sides, [78, 96, 108, 126, 156, 192].map(Some));
        assert_eq!(side("nano"), None);
    }
}

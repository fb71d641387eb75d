//! COCO's 80 class names.

use rfdetr_post::options::COCO_UNUSED_COLUMNS;

/// In the order of the category ids.
const NAMES: [&str; 80] = [
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
];

/// Names by class id, for the classes 0..80.
pub fn by_class() -> Vec<String> {
    NAMES.map(str::to_owned).to_vec()
}

/// Names by category id, for the ids 1..=90; ids that COCO never used have an empty name.
pub fn by_category_id() -> Vec<String> {
    let mut names = NAMES.iter();
    (0..91)
        .map(|id| if COCO_UNUSED_COLUMNS.contains(&id) { "" } else { names.next().copied().unwrap_or_default() })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_coco() {
        let names = by_category_id();
        let expected = [(1, "person"), (13, "stop sign"), (18, "dog"), (44, "bottle"), (67, "dining table")];
        assert!(expected.iter().all(|&(id, name)| names[id] == name));
        assert_eq!((names[90].as_str(), names[0].as_str(), names[83].as_str()), ("toothbrush", "", ""));
        assert_eq!((by_class()[0].as_str(), by_class()[79].as_str()), ("person", "toothbrush"));
    }
}

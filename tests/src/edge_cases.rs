//! Every edge case of the specification by name: section 8 row by row, then the examples of sections 2 to 6.

use crate::{
    case::{OwnedTensor, RequestCase},
    fixtures::FORMATS,
    plain,
    random::Random,
};
use rfdetr_post_core::{
    BoxRounding, ClassLayout, DType, Detections, Error, ImageDetections, ImageMeta, MaskFormat, MaskRef, Masks,
    NegativeSizes, Options, Padding, Resize, Semantics, Size, StaticCrop, Thresholds, detections::xyxy_i32,
    models::VARIANTS, reference::masks, score::sigmoid,
};

/// Lists the cases below, and makes each a test of this crate.
macro_rules! edge_cases {
    ($($name:ident,)*) => {
        /// Every edge case by name. Each panics if the reference is wrong; the requests that it asks the reference are those
        /// that every other implementation must answer alike (`RequestCase::recorded`).
        pub const EDGE_CASES: &[(&str, fn())] = &[$((stringify!($name), $name),)*];

        #[cfg(test)]
        mod tests {
            $(#[test]
            fn $name() {
                super::$name();
            })*
        }
    };
}

edge_cases! {
    nothing_passes,
    all_classes_removed,
    threshold_zero,
    threshold_one,
    threshold_below_zero,
    more_places_than_pairs,
    no_queries_or_no_classes,
    nan_logits_take_places,
    infinite_logits,
    saturated_ties_follow_the_flat_index,
    negative_sizes,
    box_outside,
    infinite_width,
    nan_box_coordinates_become_zero,
    halves_round_to_even,
    grid_of_one_cell,
    output_smaller_than_the_grid,
    output_equal_to_the_grid,
    image_one_pixel_wide,
    image_of_one_pixel_from_a_large_grid,
    twelve_megapixels,
    letterbox_without_a_row_of_content,
    batch_of_different_sizes,
    static_crop_with_an_offset,
    static_crop_at_the_origin,
    max_detections_zero_and_none,
    offset_on_one_axis_only,
    half_inputs_are_widened,
    letterboxes_that_lose_a_pixel,
    dropped_columns_take_places,
    several_classes_of_a_query,
    per_class_thresholds_follow_the_new_ids,
    scores_equal_to_the_threshold_are_rejected,
    equal_scores_follow_the_flat_index,
    center_crop_spills_over_its_edge,
    grid_pads_round_half_to_even,
    zero_weights_meet_infinity,
    zeros_are_background,
    content_lies_on_a_canvas,
    dense_masks_follow_each_other,
    counts_of_whole_masks,
    only_the_first_product_rounds,
    only_the_second_product_of_a_pair_rounds,
    every_step_of_a_box_rounds,
    the_center_rounds_once,
    axis_tables_of_enormous_sides,
}

const IMAGE: Size = Size { width: 60, height: 40 };
const NETWORK: Size = Size { width: 32, height: 32 };
const CENTERED: [f32; 4] = [0.5, 0.5, 0.5, 0.5];

/// One image of 60 x 40, stretched to 32 x 32, every column a class, threshold 0.4; the rows of `logits` are queries.
fn case(logits: &[&[f32]]) -> RequestCase {
    let (queries, classes) = (logits.len(), logits.first().map_or(0, |row| row.len()));
    RequestCase {
        boxes: OwnedTensor::new(CENTERED.repeat(queries), &[1, queries, 4], DType::F32),
        logits: OwnedTensor::new(logits.concat(), &[1, queries, classes], DType::F32),
        masks: None,
        metas: vec![ImageMeta::stretch(IMAGE, NETWORK).unwrap()],
        options: Options::default(),
    }
}

/// A case with one detection of each of `grids` (rows of a mask grid, all of one shape) in order.
fn masked(grids: &[&[&[f32]]]) -> RequestCase {
    let scores: Vec<[f32; 1]> = (0..grids.len()).map(|i| [9.0 - i as f32 / 8.0]).collect();
    let logits: Vec<&[f32]> = scores.iter().map(|row| &row[..]).collect();
    let (mask_h, mask_w) = (grids[0].len(), grids[0][0].len());
    let values: Vec<f32> = grids.iter().flat_map(|grid| grid.concat()).collect();
    let mut case = case(&logits);
    case.masks = Some(OwnedTensor::new(values, &[1, grids.len(), mask_h, mask_w], DType::F32));
    case.options.mask_format = MaskFormat::Dense;
    case
}

/// A case of one query with a constant mask grid.
fn constant(value: f32, mask_h: usize, mask_w: usize) -> RequestCase {
    let row = vec![value; mask_w];
    masked(&[&vec![&row[..]; mask_h]])
}

trait With: Sized {
    fn boxed(self, boxes: &[[f32; 4]]) -> Self;
    fn meta(self, meta: ImageMeta) -> Self;
    fn threshold(self, threshold: f64) -> Self;
    fn format(self, format: MaskFormat) -> Self;
    fn one(&self) -> ImageDetections;
}

impl With for RequestCase {
    fn boxed(mut self, boxes: &[[f32; 4]]) -> Self {
        self.boxes = OwnedTensor::new(boxes.concat(), &[1, boxes.len(), 4], DType::F32);
        self
    }

    fn meta(mut self, meta: ImageMeta) -> Self {
        self.metas = vec![meta];
        self
    }

    fn threshold(self, threshold: f64) -> Self {
        self.with_options(|options| options.threshold = Thresholds::Scalar(threshold))
    }

    fn format(self, format: MaskFormat) -> Self {
        self.with_options(|options| options.mask_format = format)
    }

    fn one(&self) -> ImageDetections {
        self.reference().images.remove(0)
    }
}

/// (query, class column) of each row.
fn pairs(answer: &ImageDetections) -> Vec<(u32, u32)> {
    answer.rows.iter().map(|row| (row.query_idx, row.class_idx)).collect()
}

fn first_box(case: &RequestCase) -> [i32; 4] {
    xyxy_i32(&case.one().rows[0])
}

/// The first mask as text: one line a row, `#` for foreground.
fn picture(answer: &ImageDetections) -> Vec<String> {
    let mask = answer.dense_mask(0).unwrap().unwrap();
    let line = |row: &[u8]| row.iter().map(|&pixel| if pixel == 1 { '#' } else { '.' }).collect();
    mask.chunks(answer.size.width as usize).map(line).collect()
}

fn assert_empty(answer: &ImageDetections, format: MaskFormat) {
    assert_eq!(answer.size, IMAGE);
    assert!(answer.is_empty());
    assert_eq!(answer.masks.format(), format);
    assert!(answer.mask(0).is_none());
    match &answer.masks {
        Masks::None => {}
        Masks::Dense(data) | Masks::Rle(data) => assert!(data.is_empty()),
        Masks::BitPacked(data) | Masks::Counts(data) => assert!(data.is_empty()),
        Masks::GridLogits { logits, .. } => assert!(logits.is_empty()),
    }
}

// Section 8, row by row.

fn nothing_passes() {
    for format in FORMATS {
        assert_empty(&constant(5.0, 8, 8).threshold(1.0).format(format).one(), format);
    }
}

fn all_classes_removed() {
    for format in FORMATS {
        let case = constant(5.0, 8, 8).format(format).with_options(|o| o.classes = ClassLayout::Remap(vec![None]));
        assert_empty(&case.one(), format);
        let case = case.with_options(|options| options.classes = ClassLayout::NoObject { num_classes: 0 });
        assert_empty(&case.one(), format);
    }
}

fn threshold_zero() {
    let case = case(&[&[-88.0], &[-88.73], &[-200.0], &[f32::NEG_INFINITY], &[0.0]]).threshold(0.0);
    let answer = case.one();
    assert_eq!(pairs(&answer), [(4, 0), (0, 0)]);
    // 6.05e-39: subnormal, and not flushed.
    assert!((answer.rows[1].confidence - 6.05e-39).abs() < 1e-41);
}

fn threshold_one() {
    assert!(case(&[&[f32::INFINITY], &[50.0], &[16.7]]).threshold(1.0).one().is_empty());
}

fn threshold_below_zero() {
    for threshold in [-1e-300, -0.25, -1.0] {
        let case = case(&[&[f32::NAN], &[-200.0], &[f32::NEG_INFINITY], &[1.0]]).threshold(threshold);
        // -1e-300 becomes -0 in f32, and no score is above that.
        let expected = if threshold == -1e-300 { vec![(3, 0)] } else { vec![(3, 0), (1, 0), (2, 0)] };
        assert_eq!(pairs(&case.one()), expected, "{threshold}");
    }
}

fn more_places_than_pairs() {
    let case = case(&[&[1.0, 2.0], &[3.0, 0.5]]);
    for num_select in [4, 5, 300, usize::MAX] {
        let answer = case.with_options(|options| options.num_select = Some(num_select)).one();
        assert_eq!(pairs(&answer), [(1, 0), (0, 1), (0, 0), (1, 1)]);
    }
}

fn no_queries_or_no_classes() {
    for format in FORMATS {
        let mut no_class = constant(5.0, 8, 8).format(format);
        no_class.logits = OwnedTensor::new(vec![], &[1, 1, 0], DType::F32);
        assert_empty(&no_class.one(), format);
        let mut no_query = no_class;
        no_query.boxes = OwnedTensor::new(vec![], &[1, 0, 4], DType::F32);
        no_query.logits = OwnedTensor::new(vec![], &[1, 0, 3], DType::F32);
        no_query.masks = Some(OwnedTensor::new(vec![], &[1, 0, 8, 8], DType::F32));
        assert_empty(&no_query.one(), format);
    }
}

fn nan_logits_take_places() {
    let nan = f32::NAN;
    let both = case(&[&[nan, nan], &[5.0, 4.0]]).one();
    assert!(both.is_empty());
    assert_eq!(both.health.nan_logits, 2);
    let answer = case(&[&[nan, 3.0], &[5.0, 4.0]]).one();
    assert_eq!(pairs(&answer), [(1, 0)]);
    assert!((answer.rows[0].confidence - 0.9933).abs() < 5e-5);
    assert_eq!(answer.health.nan_logits, 1);
    // The sign of a NaN means nothing.
    assert_eq!(pairs(&case(&[&[-nan, 3.0], &[5.0, 4.0]]).one()), [(1, 0)]);
}

fn infinite_logits() {
    let answer = case(&[&[f32::INFINITY], &[f32::NEG_INFINITY], &[f32::INFINITY]]).threshold(-1.0).one();
    assert_eq!(pairs(&answer), [(0, 0), (2, 0), (1, 0)]);
    assert_eq!([0, 1, 2].map(|i| answer.rows[i].confidence), [1.0, 1.0, 0.0]);
    assert_eq!((answer.health.pos_inf_logits, answer.health.neg_inf_logits), (2, 1));
}

fn saturated_ties_follow_the_flat_index() {
    // Six scores of exactly 1 for three places; the larger logit is no better.
    let answer = case(&[&[17.0, 40.0], &[f32::INFINITY, 16.7], &[99.0, 20.0]]).one();
    assert_eq!(pairs(&answer), [(0, 0), (0, 1), (1, 0)]);
    assert!(answer.rows.iter().all(|row| row.confidence == 1.0));
}

fn negative_sizes() {
    let case = case(&[&[1.0]]).boxed(&[[0.5, 0.5, -0.2, -0.2]]);
    assert_eq!(first_box(&case), [36, 24, 24, 16]);
    let rf_detr = case.with_options(|options| options.semantics = Semantics::rf_detr());
    assert_eq!(rf_detr.one().rows[0].xyxy, [30.0, 20.0, 30.0, 20.0]);
    let clamped = case.with_options(|options| options.semantics.negative_sizes = NegativeSizes::Clamp);
    assert_eq!(first_box(&clamped), [30, 20, 30, 20]);
}

fn box_outside() {
    assert_eq!(first_box(&case(&[&[1.0]]).boxed(&[[-1.0, 2.0, 0.5, 0.5]])), [0, 40, 0, 40]);
}

fn infinite_width() {
    let case = case(&[&[1.0]]).boxed(&[[0.5, 0.5, f32::INFINITY, 1.0]]);
    assert_eq!(first_box(&case), [0, 0, 60, 40]);
    assert_eq!(case.one().health.nonfinite_boxes, 1);
}

fn nan_box_coordinates_become_zero() {
    let answer = case(&[&[1.0]]).boxed(&[[f32::NAN, 0.5, 0.5, 0.5]]).one();
    assert_eq!(answer.rows[0].xyxy, [0.0, 10.0, 0.0, 30.0]);
    assert_eq!(answer.health.nonfinite_boxes, 1);
    // Unrounded boxes keep the NaN.
    let float = case(&[&[1.0]]).boxed(&[[0.5, f32::NAN, 0.5, 0.5]]);
    let xyxy = float.with_options(|options| options.semantics = Semantics::rf_detr()).one().rows[0].xyxy;
    assert!(xyxy[1].is_nan() && xyxy[3].is_nan() && xyxy[0] == 15.0 && xyxy[2] == 45.0);
}

fn halves_round_to_even() {
    let meta = ImageMeta::stretch(Size::new(1024, 1024), Size::new(1024, 1024)).unwrap();
    for (x, rounded) in [(0.5, 0), (1.5, 2), (2.5, 2), (639.5, 640), (640.5, 640)] {
        let case = case(&[&[1.0]]).meta(meta).boxed(&[[x / 1024.0, x / 1024.0, 0.0, 0.0]]);
        assert_eq!(first_box(&case), [rounded; 4], "{x}");
    }
}

fn grid_of_one_cell() {
    let text = |value| match constant(value, 1, 1).format(MaskFormat::Rle).one().masks {
        Masks::Rle(bytes) => String::from_utf8(bytes).unwrap(),
        other => panic!("{other:?}"),
    };
    // 2400 is `P[2`; a full mask starts with a background run of 0.
    assert_eq!((text(1e-30), text(-1.0)), ("0P[2".into(), "P[2".into()));
    for background in [0.0, -0.0, f32::NAN, f32::NEG_INFINITY] {
        assert_eq!(text(background), "P[2");
    }
    assert_eq!(constant(1.0, 1, 1).format(MaskFormat::Counts).one().masks, Masks::Counts(vec![0, 2400]));
}

fn output_smaller_than_the_grid() {
    // Four cells to two: weights 3, 3, 1 sevenths on the left, mirrored on the right.
    let meta = ImageMeta::stretch(Size::new(2, 1), NETWORK).unwrap();
    for (row, expected) in [
        ([1.0, -1.0, 0.5, -9.0], "#."),
        ([1.0, -1.0, -0.5, -9.0], ".."),
        ([-9.0, 3.0, 1.0, 0.0], ".#"),
        ([1.0, 1.0, -5.9, 0.0], "#."),
        ([1.0, 1.0, -6.1, 0.0], ".."),
    ] {
        assert_eq!(picture(&masked(&[&[&row]]).meta(meta).one()), [expected], "{row:?}");
    }
    // Smaller on one axis only.
    let meta = ImageMeta::stretch(Size::new(2, 4), NETWORK).unwrap();
    let answer = masked(&[&[&[1.0, -1.0, 0.5, -9.0], &[-1.0, -1.0, -1.0, 5.0]]]).meta(meta).one();
    assert_eq!(picture(&answer), ["#.", "..", ".#", ".#"]);
}

fn output_equal_to_the_grid() {
    let meta = ImageMeta::stretch(Size::new(3, 2), NETWORK).unwrap();
    let nan = f32::NAN;
    // Used as they are: an infinite neighbor does no harm.
    let case = masked(&[&[&[1e-45, f32::INFINITY, -0.0], &[nan, 0.0, 2.0]]]).meta(meta);
    assert_eq!(picture(&case.one()), ["##.", "..#"]);
    let rf_detr = case.with_options(|options| options.semantics = Semantics::rf_detr());
    assert_eq!(picture(&rf_detr.one()), ["##.", "..#"]);
}

fn image_one_pixel_wide() {
    // Torch on the CPU repeats the first row here; torch CUDA does not, and neither do we.
    let meta = ImageMeta::stretch(Size::new(1, 6), NETWORK).unwrap();
    let case = masked(&[&[&[4.0, 2.0], &[1.0, 2.0], &[-3.0, 1.0], &[-5.0, -6.0]]]).meta(meta);
    assert_eq!(picture(&case.one()), ["#", "#", "#", ".", ".", "."]);
}

fn image_of_one_pixel_from_a_large_grid() {
    let meta = ImageMeta::stretch(Size::new(1, 1), NETWORK).unwrap();
    for side in [96, 192, 300] {
        assert_eq!(picture(&constant(0.25, side, side).meta(meta).one()), ["#"]);
        assert_eq!(picture(&constant(-0.25, side, side).meta(meta).one()), ["."]);
    }
}

fn twelve_megapixels() {
    let size = Size::new(4000, 3000);
    let grid: Vec<Vec<f32>> = (0..78)
        .map(|y| (0..78).map(|x| 30.0 - ((x as f32 - 30.3).hypot(y as f32 - 44.1)) + (x * y % 7) as f32).collect())
        .collect();
    let rows: Vec<&[f32]> = grid.iter().map(|row| &row[..]).collect();
    let case = masked(&[&rows]).meta(ImageMeta::stretch(size, Size::new(312, 312)).unwrap());
    let (dense, rle) = (case.one(), case.format(MaskFormat::Rle).one());
    let mask = dense.dense_mask(0).unwrap().unwrap();
    assert_eq!((mask.len(), dense.rows[0].mask_len), (12_000_000, 12_000_000));
    assert!(rle.rows[0].num_counts > 2000);
    assert_eq!(rle.mask(0), Some(MaskRef::Rle(&plain::string(&plain::counts(&mask, 4000, 3000)))));
    assert_eq!(rle.dense_mask(0).unwrap().unwrap(), mask);
}

fn letterbox_without_a_row_of_content() {
    // The content is 2 pixels high in a frame of 320, less than half a cell of the grid.
    let meta = ImageMeta::letterbox(Size::new(600, 4), Size::new(320, 320), Size::new(320, 320)).unwrap();
    assert_eq!((meta.padding.top, meta.padding.bottom), (159, 159));
    let case = constant(5.0, 80, 80).meta(meta);
    let answer = case.one();
    assert_eq!(first_box(&case), [150, 0, 450, 4]);
    assert_eq!(answer.rows[0].mask_area, 0);
    assert_eq!(answer.rows[0].mask_xyxy, [0; 4]);
    assert_eq!(answer.dense_mask(0).unwrap().unwrap(), vec![0; 2400]);
    assert_eq!(case.format(MaskFormat::Counts).one().masks, Masks::Counts(vec![2400]));
}

fn batch_of_different_sizes() {
    let sizes = [Size::new(60, 40), Size::new(7, 90), Size::new(1, 1)];
    let mut case = case(&[&[1.0], &[2.0]]);
    case.boxes = OwnedTensor::new(CENTERED.repeat(6), &[3, 2, 4], DType::F32);
    case.logits = OwnedTensor::new(vec![1.0, 2.0, 5.0, -5.0, -5.0, -5.0], &[3, 2, 1], DType::F32);
    case.metas = sizes.map(|size| ImageMeta::stretch(size, NETWORK).unwrap()).to_vec();
    let Detections { images } = case.reference();
    assert_eq!(images.iter().map(|image| image.size).collect::<Vec<_>>(), sizes);
    assert_eq!(images.iter().map(pairs).collect::<Vec<_>>(), [vec![(1, 0), (0, 0)], vec![(0, 0)], vec![]]);
    // 1.75 and 5.25, 22.5 and 67.5: the halves go to the even neighbors.
    assert_eq!(xyxy_i32(&images[1].rows[0]), [2, 22, 5, 68]);
    case.metas.pop();
    assert_eq!(case.request().err(), Some(Error::MetaCount { expected: 3, got: 2 }));
}

fn cropped(x: u32, y: u32) -> ImageMeta {
    let crop = StaticCrop { x, y, width: 30, height: 20 };
    ImageMeta::static_crop(IMAGE, crop, Resize::Stretch { network: NETWORK }).unwrap()
}

fn static_crop_with_an_offset() {
    let case = constant(5.0, 8, 8).meta(cropped(5, 4));
    // Corners at a quarter and three quarters of 30 x 20, moved by (5, 4). In f32 the 27.5 falls short of the half.
    assert_eq!(first_box(&case), [12, 9, 27, 19]);
    let answer = case.one();
    assert_eq!(answer.rows[0].mask_area, 600);
    assert_eq!(answer.rows[0].mask_xyxy, [5, 4, 35, 24]);
    assert_eq!(answer.size, IMAGE);
    // The figures of the specification belong to a record whose scales are those of the whole image. Records are
    // accepted as they come.
    let whole = ImageMeta { scale_x: 32.0 / 60.0, scale_y: 32.0 / 40.0, ..cropped(5, 4) };
    let case = constant(5.0, 8, 8).meta(whole);
    assert_eq!(first_box(&case), [20, 14, 50, 34]);
    assert_eq!(case.one().rows[0].mask_area, 600);
}

fn static_crop_at_the_origin() {
    let answer = constant(5.0, 8, 8).meta(cropped(0, 0)).one();
    assert_eq!((answer.rows[0].mask_area, answer.rows[0].mask_xyxy), (600, [0, 0, 30, 20]));
    assert_eq!(answer.dense_mask(0).unwrap().unwrap().len(), 2400);
    // The peer's string would have been that of a 30 x 20 mask, `0hb0`.
    let rle = constant(5.0, 8, 8).meta(cropped(0, 0)).format(MaskFormat::Rle).one();
    let expected = plain::string(&plain::counts(&answer.dense_mask(0).unwrap().unwrap(), 60, 40));
    assert_eq!(rle.mask(0), Some(MaskRef::Rle(&expected)));
    assert_eq!(plain::string(&[0, 600]), b"0hb0");
}

fn max_detections_zero_and_none() {
    for format in FORMATS {
        let case = constant(5.0, 8, 8).format(format);
        assert_empty(&case.with_options(|options| options.max_detections = Some(0)).one(), format);
        assert_eq!(case.with_options(|options| options.max_detections = None).one().len(), 1);
    }
    let many = case(&[&[1.0, 3.0], &[2.0, 0.0]]);
    let cut = many.with_options(|options| options.max_detections = Some(1)).one();
    assert_eq!(pairs(&cut), [(0, 1)]);
}

fn offset_on_one_axis_only() {
    for (x, y) in [(7, 0), (0, 9)] {
        let answer = constant(5.0, 8, 8).meta(cropped(x, y)).one();
        assert_eq!(answer.rows[0].mask_xyxy, [x, y, x + 30, y + 20]);
    }
}

fn half_inputs_are_widened() {
    for dtype in [DType::F16, DType::Bf16] {
        let mut case = masked(&[&[&[3.0, -1.0], &[-2.0, 0.5]]]);
        case.boxes = OwnedTensor::new(vec![0.3, 0.6, 0.41, 0.23], &[1, 1, 4], dtype);
        case.logits = OwnedTensor::new(vec![0.731], &[1, 1, 1], dtype);
        case.masks = Some(OwnedTensor::new(vec![3.1, -1.3, -2.7, 0.45], &[1, 1, 2, 2], dtype));
        let answer = case.one();
        // The score is an f32, not rounded to the inputs' type.
        assert_eq!(answer.rows[0].confidence, sigmoid(case.logits.widened()[0]));
        assert!(half::f16::from_f32(answer.rows[0].confidence).to_f32() != answer.rows[0].confidence);
    }
}

// Sections 2 to 6.

/// Spec 2.2: truncation may lose a pixel. Its count of 2,303 is over 12 targets that it does not name; over the 12
/// published resolutions, the same sizes give 2,368 (counted apart, in Python).
fn letterboxes_that_lose_a_pixel() {
    let mut sides: Vec<u32> = VARIANTS.iter().map(|variant| variant.resolution).collect();
    sides.sort_unstable();
    sides.dedup();
    assert_eq!(sides.len(), 12);
    let mut lost = 0;
    for side in sides {
        for width in 1..=4096 {
            let frame = Size::new(side, side);
            let meta = ImageMeta::letterbox(Size::new(width, (width / 2).max(1)), frame, frame).unwrap();
            let Padding { left, right, .. } = meta.padding;
            assert_eq!(left, 0, "the odd pixel goes to the right");
            lost += right;
            assert!(side != 312 || ![37, 74, 77, 135].contains(&width) || right == 1, "the specification's examples");
        }
    }
    assert_eq!(lost, 2368);
}

/// Spec 3.1: columns without a class use up places.
fn dropped_columns_take_places() {
    let case = case(&[&[1.0, 9.0, 9.0], &[2.0, -9.0, 8.0]])
        .with_options(|options| options.classes = ClassLayout::NoObject { num_classes: 1 });
    assert!(case.one().is_empty());
    let answer = case.with_options(|options| options.num_select = Some(4)).one();
    assert_eq!(pairs(&answer), [(1, 0)]);
    assert!((answer.rows[0].confidence - 0.88).abs() < 1e-3);
}

/// Spec 3.1: one query may be several detections, with one box and one mask.
fn several_classes_of_a_query() {
    let mut case = masked(&[&[&[3.0, -1.0]], &[&[-1.0, 3.0]]]);
    case.logits = OwnedTensor::new(vec![-5.0, -5.0, -5.0, 2.0, 3.0, 1.0], &[1, 2, 3], DType::F32);
    let answer = case.with_options(|options| options.num_select = Some(6)).one();
    assert_eq!(pairs(&answer), [(1, 1), (1, 0), (1, 2)]);
    let masks = [0, 1, 2].map(|i| answer.dense_mask(i).unwrap().unwrap());
    assert!(masks[0] == masks[1] && masks[1] == masks[2]);
    // The flat cap of two places cuts the third.
    assert_eq!(pairs(&case.one()), [(1, 1), (1, 0)]);
}

/// Spec 3.3: thresholds are indexed by the id after remapping.
fn per_class_thresholds_follow_the_new_ids() {
    let layout = ClassLayout::from_names(&["background", "cat", "dog"], &["background"], 3);
    let case = case(&[&[9.0, 1.0, 1.0], &[9.0, 1.0, 1.0], &[-9.0, 0.0, 0.0]]).with_options(|options| {
        options.classes = layout;
        options.num_select = Some(9);
        options.threshold = Thresholds::PerClass(vec![0.8, 0.7]);
    });
    let ids: Vec<_> = case.one().rows.iter().map(|row| (row.query_idx, row.class_idx, row.class_id)).collect();
    assert_eq!(ids, [(0, 2, 1), (1, 2, 1)]);
}

/// Spec 3.4: the threshold is rounded to f32, and a score equal to it is rejected.
fn scores_equal_to_the_threshold_are_rejected() {
    assert!(case(&[&[0.0]]).threshold(0.5).one().is_empty());
    // Just below 1/2 in f64, but 1/2 in f32.
    assert!(case(&[&[0.0]]).threshold(0.5 - 1e-12).one().is_empty());
    assert_eq!(case(&[&[0.0]]).threshold(0.499_999_97).one().len(), 1);
    for logit in [-3.3f32, 0.7, 12.1] {
        let score = sigmoid(logit);
        assert!(case(&[&[logit]]).threshold(score.into()).one().is_empty());
        let below = f32::from_bits(score.to_bits() - 1);
        assert_eq!(case(&[&[logit]]).threshold(below.into()).one().len(), 1);
        let per_class = case(&[&[logit, logit]]).with_options(|options| {
            options.threshold = Thresholds::PerClass(vec![score, below]);
            options.num_select = Some(2);
        });
        assert_eq!(pairs(&per_class.one()), [(0, 1)]);
    }
}

/// Spec 3.5: equal logits are ordered by flat index, at the cap and in the output.
fn equal_scores_follow_the_flat_index() {
    let answer = case(&[&[0.5, 2.0], &[2.0, 2.0], &[2.0, 0.5], &[2.0, 3.0]]).one();
    assert_eq!(pairs(&answer), [(3, 1), (0, 1), (1, 0), (1, 1)]);
    // -0 and +0 score the same.
    assert_eq!(pairs(&case(&[&[-0.0], &[0.0], &[-0.0]]).one()), [(0, 0), (1, 0), (2, 0)]);
}

/// Spec 5.1: the zeros that replace cropped cells are not background, so the mask spills over the crop's edge.
fn center_crop_spills_over_its_edge() {
    let meta = ImageMeta::center_crop(IMAGE, NETWORK, NETWORK).unwrap();
    assert_eq!(meta.padding, Padding { left: -14, top: -4, right: -14, bottom: -4 });
    let answer = constant(5.0, 8, 8).meta(meta).one();
    // x 13..=46, y 2..=37, though the window is x 14..=45, y 4..=35.
    assert_eq!(answer.rows[0].mask_xyxy, [13, 2, 47, 38]);
    assert_eq!(answer.rows[0].mask_area, 34 * 36);
}

/// Spec 5.1: grid pads round half to even, negative ones, too.
fn grid_pads_round_half_to_even() {
    let window = |left, right, top, bottom| {
        let meta =
            ImageMeta { padding: Padding { left, top, right, bottom }, ..ImageMeta::stretch(IMAGE, NETWORK).unwrap() };
        let window = meta.mask_window(16, 16);
        (window.x, window.y, window.width, window.height)
    };
    // Half a cell a pixel: -3 is -1.5, -5 is -2.5, 3 is 1.5, 5 is 2.5.
    assert_eq!(window(-3, -5, 3, 5), (-2, 2, 20, 12));
    assert_eq!(window(1, -1, 5, 3), (0, 2, 16, 12));
}

/// Spec 5.5: zero weights multiply, so an infinite neighbor of weight 0 makes NaN, which is background.
fn zero_weights_meet_infinity() {
    // The columns keep their number, so each output column has weights 1 and 0; the rows do not.
    let meta = ImageMeta::stretch(Size::new(4, 3), NETWORK).unwrap();
    let answer = masked(&[&[&[1.0, f32::INFINITY, 1.0, 1.0], &[1.0; 4]]]).meta(meta).one();
    assert_eq!(picture(&answer)[0], ".###");
    assert_eq!(picture(&answer)[2], "####");
    assert_eq!(answer.health.nonfinite_mask_logits, 1);
}

/// Spec 5.5: zeros of both signs and NaN are background; the smallest positive number is not.
fn zeros_are_background() {
    for (value, area) in [(0.0, 0), (-0.0, 0), (f32::NAN, 0), (1e-45, 2400), (f32::INFINITY, 2400), (f32::MAX, 2400)] {
        assert_eq!(constant(value, 1, 1).one().rows[0].mask_area, area, "{value}");
    }
}

/// Spec 5.7: the canvas is used whenever the content is not the whole image.
fn content_lies_on_a_canvas() {
    let crop = StaticCrop { x: 2, y: 1, width: 3, height: 2 };
    let meta = ImageMeta::static_crop(Size::new(6, 4), crop, Resize::Stretch { network: NETWORK }).unwrap();
    let case = masked(&[&[&[1.0, -1.0, 1.0], &[1.0, 1.0, -1.0]]]).meta(meta);
    let expected = ["......", "..#.#.", "..##..", "......"];
    for format in [MaskFormat::Dense, MaskFormat::BitPacked, MaskFormat::Counts, MaskFormat::Rle] {
        let answer = case.clone().format(format).one();
        assert_eq!(picture(&answer), expected, "{format:?}");
        assert_eq!((answer.rows[0].mask_area, answer.rows[0].mask_xyxy), (4, [2, 1, 5, 3]));
    }
}

/// Spec 5.7: dense masks are `[n, height, width]`, and rows of different queries do not mix.
fn dense_masks_follow_each_other() {
    let meta = ImageMeta::stretch(Size::new(3, 1), NETWORK).unwrap();
    let answer = masked(&[&[&[1.0, -1.0, -1.0]], &[&[-1.0, 1.0, -1.0]], &[&[-1.0, -1.0, 1.0]]]).meta(meta).one();
    assert_eq!(answer.masks, Masks::Dense(vec![1, 0, 0, 0, 1, 0, 0, 0, 1]));
    assert!(answer.rows.iter().all(|row| row.mask_offset == 0 && row.mask_len == 3));
}

/// Spec 6.1: counts of whole masks.
fn counts_of_whole_masks() {
    let counts = |value| constant(value, 3, 5).format(MaskFormat::Counts).one().masks;
    assert_eq!(counts(1.0), Masks::Counts(vec![0, 2400]));
    assert_eq!(counts(-1.0), Masks::Counts(vec![2400]));
}

/// Pairs of numbers whose weighted products, each rounded, cancel to 0, and the sign of the sum when the product with
/// `fused` is not rounded.
fn canceling_pairs(fused: f32, rounded: f32) -> Vec<(f32, f32, bool)> {
    let mut random = Random::new(11);
    let mut pairs = Vec::new();
    while pairs.len() < 40 {
        let x = random.uniform(0.5, 4.0);
        let product = x * fused;
        // Exact in f64.
        let residue = f64::from(x) * f64::from(fused) - f64::from(product);
        let near = -product / rounded;
        let cancels = |y: &f32| y * rounded == -product;
        let neighbors = [near, f32::from_bits(near.to_bits() + 1), f32::from_bits(near.to_bits() - 1)];
        if let Some(y) = neighbors.into_iter().find(cancels)
            && residue != 0.0
        {
            pairs.push((x, y, residue > 0.0));
        }
    }
    pairs
}

/// Spec 5.4: of two taps the first product rounds and the second is fused, in each pass; the rounding of the second would
/// make these pixels exactly 0.
fn only_the_first_product_rounds() {
    for (n_out, i) in [(5, 1), (7, 2), (78, 30)] {
        let taps = masks::antialias_taps(2, n_out, i);
        assert_eq!((taps.first, taps.weights.len()), (0, 2));
        for (second, first, foreground) in canceling_pairs(taps.weights[1], taps.weights[0]) {
            let wide = ImageMeta::stretch(Size::new(n_out as u32, 1), NETWORK).unwrap();
            let answer = masked(&[&[&[first, second]]]).meta(wide).one();
            assert_eq!(
                answer.dense_mask(0).unwrap().unwrap()[i] == 1,
                foreground,
                "{first} {second} in a row of {n_out}"
            );
            let high = ImageMeta::stretch(Size::new(1, n_out as u32), NETWORK).unwrap();
            let answer = masked(&[&[&[first], &[second]]]).meta(high).one();
            assert_eq!(answer.dense_mask(0).unwrap().unwrap()[i] == 1, foreground, "{first} {second} in a column");
        }
    }
}

/// Spec 5.6: of a pair the second product rounds and the first is fused; of the two rows, too.
fn only_the_second_product_of_a_pair_rounds() {
    for (n_out, i) in [(5, 1), (7, 2), (78, 30)] {
        let (lower, upper, weight_0, weight_1) = masks::bilinear_taps(2, n_out, i);
        assert_eq!((lower, upper), (0, 1));
        for (first, second, foreground) in canceling_pairs(weight_0, weight_1) {
            let semantics = Semantics::rf_detr();
            let wide = ImageMeta::stretch(Size::new(n_out as u32, 1), NETWORK).unwrap();
            let case = masked(&[&[&[first, second]]]).meta(wide).with_options(|options| options.semantics = semantics);
            let answer = case.one();
            assert_eq!(
                answer.dense_mask(0).unwrap().unwrap()[i] == 1,
                foreground,
                "{first} {second} in a row of {n_out}"
            );
            let high = ImageMeta::stretch(Size::new(1, n_out as u32), NETWORK).unwrap();
            let case =
                masked(&[&[&[first], &[second]]]).meta(high).with_options(|options| options.semantics = semantics);
            let answer = case.one();
            assert_eq!(answer.dense_mask(0).unwrap().unwrap()[i] == 1, foreground, "{first} {second} in a column");
        }
    }
}

/// Spec 4, variant A: every step of the decode rounds on its own, in its order. Integer boxes hardly ever tell.
fn every_step_of_a_box_rounds() {
    let mut random = Random::new(5);
    let crop = StaticCrop { x: 17, y: 40, width: 301, height: 199 };
    let resize = Resize::Letterbox { frame: Size::new(200, 210), network: NETWORK };
    let meta = ImageMeta::static_crop(Size::new(403, 305), crop, resize).unwrap();
    let boxes: Vec<[f32; 4]> = (0..500).map(|_| [0; 4].map(|_| random.uniform(0.2, 0.8))).collect();
    let logits = vec![&[1.0f32][..]; boxes.len()];
    let case = case(&logits).boxed(&boxes).meta(meta).with_options(|options| {
        options.semantics.box_rounding = BoxRounding::None;
        options.semantics.clip_boxes = false;
    });
    // One operation on f32 values in f64, rounded to f32, is the f32 operation: f64 has more than twice the digits.
    let step = |exact: f64| f64::from(exact as f32);
    let (mut fused_differs, mut reordered_differs) = (0, 0);
    let answer = case.one();
    assert_eq!(answer.len(), boxes.len());
    for row in &answer.rows {
        let b = boxes[row.query_idx as usize].map(f64::from);
        for (i, &got) in row.xyxy.iter().enumerate() {
            let (frame, pad, scale, offset) = if i % 2 == 0 {
                (200.0, meta.padding.left, meta.scale_x, 17.0)
            } else {
                (210.0, meta.padding.top, meta.scale_y, 40.0)
            };
            let (pad, scale) = (f64::from(pad), step(scale));
            let half = step(0.5 * b[2 + i % 2]);
            let corner = step(if i < 2 { b[i % 2] - half } else { b[i % 2] + half });
            let in_frame = step(corner * frame);
            let expected = step(step(step(in_frame - pad) / scale) + offset);
            assert_eq!(f64::from(got), expected, "coordinate {i} of query {}", row.query_idx);
            fused_differs += usize::from(step(step(step(corner * frame - pad) / scale) + offset) != expected);
            reordered_differs +=
                usize::from(step(step(step(in_frame / scale) - step(pad / scale)) + offset) != expected);
        }
    }
    assert!(fused_differs > 20 && reordered_differs > 20, "{fused_differs} {reordered_differs}");
}

/// Spec 5.3, 5.6: the product of scale and center is not rounded before the sum. Each enlarging table differs from that
/// of rounded products somewhere, so the test could tell.
fn the_center_rounds_once() {
    for (n_in, n_out) in [(78, 640), (108, 480), (192, 1081), (156, 353), (126, 77)] {
        let (mut pairs_differ, mut filters_differ) = (0, 0);
        for i in 0..n_out {
            let (scale, center) = (n_in as f32 / n_out as f32, i as f32 + 0.5);
            // The product of two f32 is exact in f64; so are these sums.
            let exact = f64::from(scale) * f64::from(center);
            let position = ((exact - 0.5) as f32).max(0.0);
            let (lower, upper, _, weight) = masks::bilinear_taps(n_in, n_out, i);
            assert_eq!(lower, position as usize, "{n_in} -> {n_out}, {i}");
            assert_eq!(upper, (lower + 1).min(n_in - 1));
            assert_eq!(weight, position - lower as f32, "{n_in} -> {n_out}, {i}");
            pairs_differ += usize::from((scale * center - 0.5).max(0.0) != position);

            if scale < 1.0 {
                let taps = masks::antialias_taps(n_in, n_out, i);
                let raw = |distance: f32| {
                    let weight = |j: usize| 1.0 - ((j as f32 + distance) + 0.5).abs();
                    let total = (0..taps.weights.len()).fold(0.0, |sum, j| sum + weight(j));
                    (0..taps.weights.len()).map(|j| weight(j) / total).collect::<Vec<f32>>()
                };
                assert_eq!(taps.weights, raw((taps.first as f64 - exact) as f32), "{n_in} -> {n_out}, {i}");
                filters_differ += usize::from(taps.weights != raw(taps.first as f32 - scale * center));
            }
        }
        assert!(pairs_differ > 0 || n_in > n_out, "{n_in} -> {n_out}");
        assert!(filters_differ > n_out / 2 || n_in > n_out, "{n_in} -> {n_out}: {filters_differ}");
    }
}

/// The axis tables stay inside their input up to the largest sides that a record may have.
fn axis_tables_of_enormous_sides() {
    let most = rfdetr_post_core::geometry::MAX_SIDE as usize;
    for n_in in [1, 2, 3, 78, 192, 4097, most / 3, most / 2, most - 1, most] {
        for n_out in [1, 2, 7, 1000, 65_537, most / 3, most / 2 + 1, most - 1, most] {
            for i in [0, 1, n_out / 3, n_out / 2, n_out.saturating_sub(2), n_out - 1] {
                if i >= n_out || n_in / n_out > 100_000 {
                    continue;
                }
                let taps = masks::antialias_taps(n_in, n_out, i);
                let what = format!("{n_in} -> {n_out}, {i}");
                assert!(!taps.weights.is_empty() && taps.first + taps.weights.len() <= n_in, "{what}");
                assert!(taps.weights.iter().all(|weight| (0.0..=1.0).contains(weight)), "{what}");
                let (lower, upper, ..) = masks::bilinear_taps(n_in, n_out, i);
                assert!(lower <= upper && upper < n_in, "{what}");
            }
        }
    }
}

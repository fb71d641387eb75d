//! A request: borrowed model outputs, metadata and options of one batch, checked once.

use alloc::{format, string::ToString, vec::Vec};

use crate::{
    error::{Error, Result},
    geometry::{ImageMeta, MaskWindow, Padding, Size},
    options::{Frame, MaskFormat, Options, ScoreArithmetic, Semantics},
    tensor::Tensor,
};

/// The outputs of one run of the model.
#[derive(Debug, Clone, Copy)]
pub struct Tensors<'a> {
    /// `dets`: `[B, Q, 4]`, `cxcywh`, normalized to the network frame.
    pub boxes: Tensor<'a>,
    /// `labels`: `[B, Q, C]`, class logits.
    pub logits: Tensor<'a>,
    /// `masks`: `[B, Q, Mh, Mw]`, mask logits; none for detection models.
    pub masks: Option<Tensor<'a>>,
}

/// Number of images, queries, classes and mask cells of a model's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct ModelShape {
    /// Q.
    pub num_queries: usize,
    /// C, the no-object column included.
    pub num_classes: usize,
    /// (Mh, Mw); none for detection models.
    pub mask_grid: Option<(usize, usize)>,
}

impl ModelShape {
    /// Number of (query, class) pairs.
    pub const fn num_pairs(&self) -> usize {
        self.num_queries * self.num_classes
    }
}

/// The class columns and thresholds of a model, resolved once from [`Options`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ColumnTable {
    /// Class id of each column, -1 where dropped.
    pub class_ids: Vec<i32>,
    /// Threshold of each column; +Inf where dropped.
    pub thresholds: Vec<f32>,
    /// The smallest threshold; +Inf when every column is dropped.
    pub min_threshold: f32,
}

impl ColumnTable {
    /// Resolves `options` for `num_classes` columns.
    ///
    /// Errors: those of [`crate::ClassLayout::column_ids`] and [`crate::Thresholds::column_thresholds`].
    pub fn new(options: &Options, num_classes: usize) -> Result<Self> {
        let class_ids = options.classes.column_ids(num_classes)?;
        let thresholds = options.threshold.column_thresholds(&class_ids)?;
        let min_threshold = thresholds.iter().copied().fold(f32::INFINITY, f32::min);
        Ok(Self { class_ids, thresholds, min_threshold })
    }
}

/// A checked request. Nothing after it checks user input again.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    tensors: Tensors<'a>,
    metas: &'a [ImageMeta],
    options: &'a Options,
    columns: ColumnTable,
    shape: ModelShape,
}

impl<'a> Request<'a> {
    /// Checks everything that can be wrong: ranks, shapes, lengths, metadata, class table, thresholds, format.
    ///
    /// NaN and infinite logits, boxes and masks are inputs, not errors.
    pub fn new(tensors: Tensors<'a>, metas: &'a [ImageMeta], options: &'a Options) -> Result<Self> {
        let shape = check_tensors(&tensors)?;
        let batch = tensors.boxes.shape()[0];
        check_metas(metas, batch, options)?;
        let columns = check_options(options, &shape)?;
        let request = Self { tensors, metas, options, columns, shape };
        request.check_output_sizes()?;
        Ok(request)
    }

    /// Number of images, B.
    pub fn batch(&self) -> usize {
        self.metas.len()
    }

    /// Q, C and the mask grid.
    pub fn shape(&self) -> ModelShape {
        self.shape
    }

    /// The tensors.
    pub fn tensors(&self) -> &Tensors<'a> {
        &self.tensors
    }

    /// One record an image.
    pub fn metas(&self) -> &'a [ImageMeta] {
        self.metas
    }

    /// The options.
    pub fn options(&self) -> &'a Options {
        self.options
    }

    /// Class ids and thresholds by column.
    pub fn columns(&self) -> &ColumnTable {
        &self.columns
    }

    /// Size of the flat top-k: `num_select` or Q, but never more than Q x C.
    pub fn num_select(&self) -> usize {
        self.options.num_select.unwrap_or(self.shape.num_queries).min(self.shape.num_pairs())
    }

    /// The most detections that one image can have.
    pub fn max_detections(&self) -> usize {
        self.options.max_detections.unwrap_or(usize::MAX).min(self.num_select())
    }

    /// Where the masks of an image come from and go to. None when no masks are asked for.
    pub fn mask_geometry(&self, image: usize) -> Option<MaskGeometry> {
        let (mask_h, mask_w) = self.shape.mask_grid?;
        (self.options.mask_format != MaskFormat::None)
            .then(|| MaskGeometry::new(&self.metas[image], &self.options.semantics, mask_h, mask_w))
    }

    /// The largest dense output must be addressable, and the zeros that negative pads add to the mask grid must leave it
    /// a possible size.
    fn check_output_sizes(&self) -> Result<()> {
        for (image, meta) in self.metas.iter().enumerate() {
            let bytes = (self.max_detections() as u64).saturating_mul(meta.original.area());
            if bytes > isize::MAX as u64 {
                return Err(Error::Overflow { field: "masks", max: isize::MAX as u64, got: bytes });
            }
            if let Some(MaskGeometry { window, .. }) = self.mask_geometry(image) {
                let most = i64::from(crate::geometry::MAX_SIDE);
                let cells = i128::from(window.width.max(0)) * i128::from(window.height.max(0));
                if window.width > most || window.height > most || cells > i128::from(u32::MAX) {
                    return Err(Error::Meta {
                        image,
                        field: "padding",
                        expected: "a mask grid of at most 2^32 - 1 cells, 2^23 a side, after its zeros are added"
                            .to_string(),
                        got: format!("{:?}, which makes it {} x {}", meta.padding, window.width, window.height),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The way of one image's masks: a window of the grid, resized to the content, put on a canvas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskGeometry {
    /// The part of the grid that shows the content.
    pub window: MaskWindow,
    /// Size that the window is resized to.
    pub content: Size,
    /// Where the content lies on the canvas: columns.
    pub offset_x: u32,
    /// Where the content lies on the canvas: rows.
    pub offset_y: u32,
    /// The canvas: size of the mask, that of the original image.
    pub canvas: Size,
}

impl MaskGeometry {
    /// The geometry under `semantics` of an image with record `meta`.
    pub fn new(meta: &ImageMeta, semantics: &Semantics, mask_h: usize, mask_w: usize) -> Self {
        match semantics.frame {
            Frame::UndoPreprocessing => Self {
                window: meta.mask_window(mask_w, mask_h),
                content: meta.content,
                offset_x: meta.crop_offset.x,
                offset_y: meta.crop_offset.y,
                canvas: meta.original,
            },
            Frame::WholeImage => Self {
                window: MaskWindow { x: 0, y: 0, width: mask_w as i64, height: mask_h as i64 },
                content: meta.original,
                offset_x: 0,
                offset_y: 0,
                canvas: meta.original,
            },
        }
    }
}

fn check_tensors(tensors: &Tensors<'_>) -> Result<ModelShape> {
    let rank = |field, tensor: &Tensor<'_>, expected: &'static str, rank: usize| {
        let got = tensor.shape().len();
        if got == rank { Ok(()) } else { Err(Error::Rank { field, expected, got }) }
    };
    rank("boxes", &tensors.boxes, "3: [B, Q, 4]", 3)?;
    rank("logits", &tensors.logits, "3: [B, Q, C]", 3)?;
    if let Some(masks) = &tensors.masks {
        rank("masks", masks, "4: [B, Q, Mh, Mw]", 4)?;
    }
    let (boxes, logits) = (tensors.boxes.shape(), tensors.logits.shape());
    let shape_error = |field, expected, got: &[usize]| Err(Error::Shape { field, expected, got: got.to_vec() });
    if boxes[2] != 4 {
        return shape_error("boxes", "[B, Q, 4]".to_string(), boxes);
    }
    if logits[..2] != boxes[..2] {
        return shape_error("logits", format!("[{}, {}, C], as `boxes`", boxes[0], boxes[1]), logits);
    }
    tensors.boxes.check("boxes")?;
    tensors.logits.check("logits")?;
    let mut mask_grid = None;
    if let Some(masks) = &tensors.masks {
        let shape = masks.shape();
        if shape[..2] != boxes[..2] {
            return shape_error("masks", format!("[{}, {}, Mh, Mw], as `boxes`", boxes[0], boxes[1]), shape);
        }
        if shape[2] == 0 || shape[3] == 0 {
            return shape_error("masks", "a mask grid of at least 1 x 1".to_string(), shape);
        }
        for &side in &shape[2..] {
            if side as u64 > u64::from(crate::geometry::MAX_SIDE) {
                return Err(Error::Overflow {
                    field: "masks.shape",
                    max: crate::geometry::MAX_SIDE.into(),
                    got: side as u64,
                });
            }
        }
        masks.check("masks")?;
        mask_grid = Some((shape[2], shape[3]));
    }
    // Flat indices and queries are u32 in the packed rows.
    let pairs = (boxes[1] as u64).saturating_mul(logits[2] as u64);
    let largest = pairs.max(boxes[1] as u64).max(logits[2] as u64);
    if largest > i32::MAX as u64 {
        return Err(Error::Overflow { field: "logits.shape", max: i32::MAX as u64, got: largest });
    }
    Ok(ModelShape { num_queries: boxes[1], num_classes: logits[2], mask_grid })
}

/// Checks one metadata record for each of `batch` images.
///
/// Errors: not one record an image; a record that cannot be; a record that the frame would ignore.
pub fn check_metas(metas: &[ImageMeta], batch: usize, options: &Options) -> Result<()> {
    if metas.len() != batch {
        return Err(Error::MetaCount { expected: batch, got: metas.len() });
    }
    for (image, meta) in metas.iter().enumerate() {
        meta.check(image)?;
        if options.semantics.frame == Frame::WholeImage {
            let mismatch = |field, got| Err(Error::FrameMismatch { image, field, got });
            if meta.padding != Padding::default() {
                return mismatch("padding", format!("{:?}", meta.padding));
            }
            if meta.content != meta.original {
                return mismatch("content", format!("{} of {}", meta.content, meta.original));
            }
        }
    }
    Ok(())
}

/// Checks `options` against the model and resolves its columns.
///
/// Errors: a class table or thresholds that do not fit, `num_select` of 0, masks of a model without masks.
pub fn check_options(options: &Options, shape: &ModelShape) -> Result<ColumnTable> {
    if options.num_select == Some(0) {
        return Err(Error::NumSelect);
    }
    if options.mask_format != MaskFormat::None && shape.mask_grid.is_none() {
        return Err(Error::MasksMissing { format: options.mask_format.name() });
    }
    ColumnTable::new(options, shape.num_classes)
}

/// Errors unless the CPU can compute the scores of `options`.
pub fn check_cpu(options: &Options) -> Result<()> {
    match options.semantics.score {
        ScoreArithmetic::Portable => Ok(()),
        ScoreArithmetic::TorchCuda => Err(Error::ScoreArithmetic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        geometry::{Resize, StaticCrop},
        options::{ClassLayout, Thresholds},
        tensor::TensorData,
    };
    use alloc::vec;

    struct Case {
        boxes: (usize, Vec<usize>),
        logits: (usize, Vec<usize>),
        masks: Option<(usize, Vec<usize>)>,
        metas: Vec<ImageMeta>,
        options: Options,
    }

    fn case() -> Case {
        Case {
            boxes: (24, vec![2, 3, 4]),
            logits: (30, vec![2, 3, 5]),
            masks: Some((2 * 3 * 6 * 7, vec![2, 3, 6, 7])),
            metas: vec![ImageMeta::stretch(Size::new(60, 40), Size::new(32, 32)).unwrap(); 2],
            options: Options { mask_format: MaskFormat::Rle, ..Options::default() },
        }
    }

    impl Case {
        fn error(&self) -> Option<Error> {
            let zeros = [0.0f32; 1024];
            let tensor = |(len, shape): &'_ (usize, Vec<usize>)| {
                let shape: &'static [usize] = Vec::leak(shape.clone());
                (*len, shape)
            };
            let (boxes, logits) = (tensor(&self.boxes), tensor(&self.logits));
            let masks = self.masks.as_ref().map(tensor);
            let tensors = Tensors {
                boxes: Tensor::new(&zeros[..boxes.0], boxes.1),
                logits: Tensor::new(&zeros[..logits.0], logits.1),
                masks: masks.map(|(len, shape)| Tensor::new(&zeros[..len], shape)),
            };
            Request::new(tensors, &self.metas, &self.options).err()
        }
    }

    #[test]
    fn a_good_request_passes() {
        assert_eq!(case().error(), None);
        assert_eq!(Case { masks: None, options: Options::default(), ..case() }.error(), None);
    }

    #[test]
    fn empty_batches_queries_and_classes_are_no_errors() {
        let empty =
            Case { boxes: (0, vec![0, 3, 4]), logits: (0, vec![0, 3, 5]), masks: None, metas: vec![], ..case() };
        assert_eq!(Case { options: Options::default(), ..empty }.error(), None);
        let none = Case { boxes: (0, vec![2, 0, 4]), logits: (0, vec![2, 0, 5]), masks: None, ..case() };
        assert_eq!(Case { options: Options::default(), ..none }.error(), None);
        let none = Case { logits: (0, vec![2, 3, 0]), masks: None, options: Options::default(), ..case() };
        assert_eq!(none.error(), None);
    }

    #[test]
    fn ranks_shapes_and_lengths_are_checked_by_name() {
        let rank =
            |field, case: Case| assert!(matches!(case.error(), Some(Error::Rank { field: f, .. }) if f == field));
        rank("boxes", Case { boxes: (24, vec![6, 4]), ..case() });
        rank("logits", Case { logits: (30, vec![2, 3, 5, 1]), ..case() });
        rank("masks", Case { masks: Some((252, vec![6, 6, 7])), ..case() });
        let shape =
            |field, case: Case| assert!(matches!(case.error(), Some(Error::Shape { field: f, .. }) if f == field));
        shape("boxes", Case { boxes: (30, vec![2, 3, 5]), ..case() });
        shape("logits", Case { logits: (30, vec![3, 2, 5]), ..case() });
        shape("masks", Case { masks: Some((252, vec![2, 2, 7, 9])), ..case() });
        shape("masks", Case { masks: Some((0, vec![2, 3, 0, 7])), ..case() });
        let error = Case { logits: (29, vec![2, 3, 5]), ..case() }.error();
        assert_eq!(error, Some(Error::DataLength { field: "logits", expected: 30, got: 29 }));
        let error = Case { boxes: (0, vec![2, usize::MAX, 4]), logits: (0, vec![2, usize::MAX, 5]), ..case() }.error();
        assert!(matches!(error, Some(Error::Overflow { field: "boxes", .. })), "{error:?}");
        let error =
            Case { boxes: (0, vec![0, 1 << 20, 4]), logits: (0, vec![0, 1 << 20, 1 << 12]), masks: None, ..case() }
                .error();
        assert!(matches!(error, Some(Error::Overflow { field: "logits.shape", .. })), "{error:?}");
        let error = Case { masks: Some((0, vec![0, 3, 1 << 24, 1])), boxes: (0, vec![0, 3, 4]), ..case() };
        let error = Case { logits: (0, vec![0, 3, 5]), metas: vec![], ..error }.error();
        assert!(matches!(error, Some(Error::Overflow { field: "masks.shape", .. })), "{error:?}");
    }

    #[test]
    fn metas_are_checked() {
        let mut one = case();
        one.metas.pop();
        assert_eq!(one.error(), Some(Error::MetaCount { expected: 2, got: 1 }));
        let mut bad = case();
        bad.metas[1].scale_x = f64::INFINITY;
        assert!(matches!(bad.error(), Some(Error::Meta { image: 1, field: "scale_x", .. })));
    }

    #[test]
    fn pads_that_make_the_mask_grid_enormous_are_refused() {
        let mut case = case();
        // A center crop of a large image to one pixel: half the image is cropped away on each side of a 6 x 7 grid.
        let crop =
            |width, height, frame| ImageMeta::center_crop(Size::new(width, height), frame, Size::new(32, 32)).unwrap();
        case.metas[1] = crop(4000, 3000, Size::new(1, 1));
        assert_eq!(case.error(), None);
        case.metas[1] = crop(1 << 23, 300, Size::new(1, 1));
        assert!(matches!(case.error(), Some(Error::Meta { image: 1, field: "padding", .. })));
        case.metas[1] = crop(40_000, 30_000, Size::new(1, 1));
        assert!(matches!(case.error(), Some(Error::Meta { image: 1, field: "padding", .. })));
        case.options.mask_format = MaskFormat::None;
        assert_eq!(case.error(), None);
    }

    #[test]
    fn the_whole_image_frame_refuses_what_it_cannot_undo() {
        let mut whole = case();
        whole.options.semantics = Semantics::rf_detr();
        assert_eq!(whole.error(), None);
        whole.metas[1] = ImageMeta::letterbox(Size::new(60, 40), Size::new(32, 32), Size::new(32, 32)).unwrap();
        assert!(matches!(whole.error(), Some(Error::FrameMismatch { image: 1, field: "padding", .. })));
        let crop = StaticCrop { x: 0, y: 0, width: 30, height: 20 };
        let resize = Resize::Stretch { network: Size::new(32, 32) };
        whole.metas[1] = ImageMeta::static_crop(Size::new(60, 40), crop, resize).unwrap();
        assert!(matches!(whole.error(), Some(Error::FrameMismatch { image: 1, field: "content", .. })));
    }

    #[test]
    fn options_are_checked() {
        let with = |change: fn(&mut Options)| {
            let mut case = case();
            change(&mut case.options);
            case.error()
        };
        assert_eq!(with(|o| o.num_select = Some(0)), Some(Error::NumSelect));
        assert_eq!(with(|o| o.max_detections = Some(0)), None);
        assert!(matches!(with(|o| o.threshold = Thresholds::Scalar(f64::NAN)), Some(Error::Threshold { .. })));
        assert!(matches!(with(|o| o.threshold = Thresholds::PerClass(vec![])), Some(Error::ThresholdCount { .. })));
        assert!(matches!(with(|o| o.classes = ClassLayout::coco91()), Some(Error::ClassTableLength { .. })));
        let error = Case { masks: None, ..case() }.error();
        assert_eq!(error, Some(Error::MasksMissing { format: "rle" }));
    }

    #[test]
    fn torch_scores_need_a_gpu() {
        let mut options = Options::default();
        assert_eq!(check_cpu(&options), Ok(()));
        options.semantics.score = ScoreArithmetic::TorchCuda;
        assert_eq!(check_cpu(&options), Err(Error::ScoreArithmetic));
    }

    #[test]
    fn half_types_are_accepted() {
        let boxes = [half::f16::ZERO; 4];
        let logits = [half::bf16::ONE; 2];
        let tensors = Tensors {
            boxes: Tensor::new(&boxes[..], &[1, 1, 4]),
            logits: Tensor::new(TensorData::Bf16(&logits), &[1, 1, 2]),
            masks: None,
        };
        let metas = [ImageMeta::stretch(Size::new(60, 40), Size::new(32, 32)).unwrap()];
        let options = Options::default();
        let request = Request::new(tensors, &metas, &options).unwrap();
        assert_eq!(request.tensors().logits.at(1), 1.0);
        assert_eq!(request.num_select(), 1);
    }
}

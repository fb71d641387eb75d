//! Post-processing of RF-DETR and RF-DETR-Seg: model outputs in, detections with masks out.
//!
//! The model's outputs are borrowed as they come (f32, f16 or bf16), one [`ImageMeta`] an image says how it was
//! resized, [`Options`] say what is wanted. Everything is checked once, by name and shape; NaN and infinite values are
//! inputs, not errors, and are counted in [`Health`].
//!
//! ```
//! use rfdetr_post::{ClassLayout, ImageMeta, MaskFormat, Options, Postprocessor, Size, Tensor, Tensors};
//!
//! // What a run of seg-nano on one 640x480 picture, stretched to 312x312, gives:
//! let (dets, labels, masks) = (vec![0.5; 100 * 4], vec![-9.0; 100 * 91], vec![1.0; 100 * 78 * 78]);
//! # let labels = { let mut labels: Vec<f32> = labels; labels[91 * 7 + 3] = 2.0; labels };
//! let tensors = Tensors {
//!     boxes: Tensor::new(&dets[..], &[1, 100, 4]),
//!     logits: Tensor::new(&labels[..], &[1, 100, 91]),
//!     masks: Some(Tensor::new(&masks[..], &[1, 100, 78, 78])),
//! };
//! let metas = [ImageMeta::stretch(Size::new(640, 480), Size::new(312, 312))?];
//! let options =
//!     Options { classes: ClassLayout::coco91_category_ids(), mask_format: MaskFormat::Rle, ..Options::default() };
//!
//! let detections = Postprocessor::cpu().process(&tensors, &metas, &options)?;
//! for row in &detections.images[0].rows {
//!     println!("class {} score {:.3} box {:?}", row.class_id, row.confidence, row.xyxy);
//! }
//! # assert_eq!(detections.images[0].rows.len(), 1);
//! # assert_eq!(detections.images[0].rows[0].class_id, 3);
//! # Ok::<(), rfdetr_post::Error>(())
//! ```
//!
//! The command line of the same name is behind the feature `cli`, which is on by default; libraries turn it off.
#![forbid(unsafe_code)]

pub use rfdetr_post_core::*;

/// Computes detections on one back end. Build it once, use it for any number of batches.
///
/// All back ends give the same bits.
#[derive(Debug)]
pub struct Postprocessor {
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Cpu,
    Reference,
}

impl Postprocessor {
    /// The fast path on the CPU.
    pub fn cpu() -> Self {
        Self { backend: Backend::Cpu }
    }

    /// The plain loops that judge every other back end. Slow; for tests and doubts.
    pub fn reference() -> Self {
        Self { backend: Backend::Reference }
    }

    /// The back end's name: `cpu` or `reference`.
    pub const fn backend(&self) -> &'static str {
        match self.backend {
            Backend::Cpu => "cpu",
            Backend::Reference => "reference",
        }
    }

    /// Computes the detections of a batch: one entry an image, best score first.
    ///
    /// Shapes: those of [`Tensors`]; `metas` holds one record an image.
    /// Errors: those of [`Request::new`], and masks that do not fit into memory.
    pub fn process(&mut self, tensors: &Tensors<'_>, metas: &[ImageMeta], options: &Options) -> Result<Detections> {
        let request = Request::new(*tensors, metas, options)?;
        match &mut self.backend {
            Backend::Cpu | Backend::Reference => reference::process(&request),
        }
    }
}

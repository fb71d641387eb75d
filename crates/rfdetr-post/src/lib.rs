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
pub use rfdetr_post_cpu::{ConfigError, CpuConfig, CpuPostprocessor, SimdLevel, Threads};

/// Computes detections on one back end. Build it once, use it for any number of batches.
///
/// All back ends give the same bits.
#[derive(Debug)]
pub struct Postprocessor {
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Cpu(Box<CpuPostprocessor>),
    Reference,
}

impl Postprocessor {
    /// The fast path on the CPU, with the best instructions of the machine and all of its cores.
    pub fn cpu() -> Self {
        let config = CpuConfig { threads: Threads::All, ..CpuConfig::default() };
        // It asks for no instructions that may be missing and starts no threads of its own, so nothing can fail.
        Self::cpu_with(config).unwrap_or_else(|err| unreachable!("the default configuration is refused: {err}"))
    }

    /// The fast path on the CPU as `config` says, for example on one thread.
    ///
    /// Errors: instructions that the machine lacks; threads that cannot be started.
    pub fn cpu_with(config: CpuConfig) -> std::result::Result<Self, ConfigError> {
        Ok(Self { backend: Backend::Cpu(Box::new(CpuPostprocessor::new(config)?)) })
    }

    /// The plain loops that judge every other back end. Slow; for tests and doubts.
    pub const fn reference() -> Self {
        Self { backend: Backend::Reference }
    }

    /// The back end's name: `cpu` or `reference`.
    pub const fn backend(&self) -> &'static str {
        match self.backend {
            Backend::Cpu(_) => "cpu",
            Backend::Reference => "reference",
        }
    }

    /// Computes the detections of a batch: one entry an image, best score first.
    ///
    /// Shapes: those of [`Tensors`]; `metas` holds one record an image.
    /// Errors: those of [`Request::new`], and masks that do not fit into memory.
    pub fn process(&mut self, tensors: &Tensors<'_>, metas: &[ImageMeta], options: &Options) -> Result<Detections> {
        let mut detections = Detections::default();
        self.process_into(tensors, metas, options, &mut detections)?;
        Ok(detections)
    }

    /// Like [`Postprocessor::process`], but overwrites an earlier answer and reuses its buffers where the back end can.
    ///
    /// Errors: as there; the answer is then unspecified.
    pub fn process_into(
        &mut self,
        tensors: &Tensors<'_>,
        metas: &[ImageMeta],
        options: &Options,
        detections: &mut Detections,
    ) -> Result<()> {
        let request = Request::new(*tensors, metas, options)?;
        match &mut self.backend {
            Backend::Cpu(cpu) => cpu.process_into(&request, detections),
            Backend::Reference => {
                *detections = reference::process(&request)?;
                Ok(())
            }
        }
    }
}

/// Compiles and runs the README's example.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_ends_agree_and_reuse_an_answer() {
        let dets: Vec<f32> = (0..2 * 9 * 4).map(|idx| 0.2 + 0.01 * (idx % 37) as f32).collect();
        let labels: Vec<f32> = (0..2 * 9 * 5).map(|idx| (idx * 7 % 23) as f32 - 18.0).collect();
        let masks: Vec<f32> = (0..2 * 9 * 6 * 8).map(|idx| (idx * 5 % 13) as f32 - 6.0).collect();
        let tensors = Tensors {
            boxes: Tensor::new(&dets[..], &[2, 9, 4]),
            logits: Tensor::new(&labels[..], &[2, 9, 5]),
            masks: Some(Tensor::new(&masks[..], &[2, 9, 6, 8])),
        };
        let network = Size::new(32, 24);
        let metas = [
            ImageMeta::stretch(Size::new(60, 41), network).unwrap(),
            ImageMeta::letterbox(Size::new(37, 50), network, network).unwrap(),
        ];
        let mut cpu = Postprocessor::cpu();
        let mut one =
            Postprocessor::cpu_with(CpuConfig { threads: Threads::One, simd: Some(SimdLevel::Portable) }).unwrap();
        let mut reference = Postprocessor::reference();
        assert_eq!((cpu.backend(), reference.backend()), ("cpu", "reference"));
        let mut reused = Detections::default();
        for mask_format in [MaskFormat::Rle, MaskFormat::None, MaskFormat::Dense, MaskFormat::GridLogits] {
            let options = Options { mask_format, ..Options::default() };
            let expected = reference.process(&tensors, &metas, &options).unwrap();
            assert!(expected.images.iter().all(|image| image.len() > 1));
            assert_eq!(cpu.process(&tensors, &metas, &options).unwrap(), expected);
            for postprocessor in [&mut cpu, &mut one, &mut reference] {
                postprocessor.process_into(&tensors, &metas, &options, &mut reused).unwrap();
                assert_eq!(reused, expected);
            }
        }
        assert!(matches!(cpu.process(&tensors, &[], &Options::default()), Err(Error::MetaCount { .. })));
    }
}

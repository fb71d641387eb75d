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
//! # Ok::<(), rfdetr_post::ProcessError>(())
//! ```
//!
//! [`Postprocessor::auto`] takes a GPU if there is one. Outputs that are on the device already are best left there:
//! `cuda::CudaPostprocessor` takes device pointers and a stream.
//!
//! The command line of the same name is behind the feature `cli`, the GPU behind `cuda`. Both are on by default; libraries
//! turn the first off. The second needs no CUDA, neither to build nor to run: libcuda is looked for at run time.
#![forbid(unsafe_code)]

#[cfg(feature = "cuda")]
mod gpu;

pub use rfdetr_post_core::*;
pub use rfdetr_post_cpu::{ConfigError, CpuConfig, CpuPostprocessor, SimdLevel, Threads};

#[cfg(feature = "cuda")]
pub use rfdetr_post_cuda as cuda;

/// Why a batch has no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// Bad input, or a request that the back end cannot serve.
    #[error(transparent)]
    Request(#[from] Error),
    /// The GPU or its driver failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(cuda::Error),
}

#[cfg(feature = "cuda")]
impl From<cuda::Error> for ProcessError {
    fn from(error: cuda::Error) -> Self {
        match error {
            cuda::Error::Request(error) => Self::Request(error),
            error => Self::Cuda(error),
        }
    }
}

/// Computes detections on one back end. Build it once, use it for any number of batches.
///
/// All back ends give the same bits.
#[derive(Debug)]
pub struct Postprocessor {
    backend: Backend,
    fallback_reason: Option<String>,
}

#[derive(Debug)]
enum Backend {
    Cpu(Box<CpuPostprocessor>),
    Reference,
    #[cfg(feature = "cuda")]
    Cuda(Box<gpu::Gpu>),
    #[cfg(feature = "cuda")]
    CudaFleet(Vec<gpu::Gpu>),
}

impl From<Backend> for Postprocessor {
    fn from(backend: Backend) -> Self {
        Self { backend, fallback_reason: None }
    }
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
        Ok(Backend::Cpu(Box::new(CpuPostprocessor::new(config)?)).into())
    }

    /// The plain loops that judge every other back end. Slow; for tests and doubts.
    pub const fn reference() -> Self {
        Self { backend: Backend::Reference, fallback_reason: None }
    }

    /// GPU 0 if there is a driver and a GPU that the kernels run on, otherwise the CPU; [`fallback_reason`] then says why.
    ///
    /// The choice is made here, once: an error of the GPU later is an error, never a quiet change of the back end.
    ///
    /// [`fallback_reason`]: Self::fallback_reason
    pub fn auto() -> Self {
        Self::gpu_0().unwrap_or_else(|reason| Self { fallback_reason: Some(reason), ..Self::cpu() })
    }

    /// Like [`auto`](Self::auto), with the CPU as `config` says.
    ///
    /// Errors: those of [`cpu_with`](Self::cpu_with), if it comes to that.
    pub fn auto_with(config: CpuConfig) -> std::result::Result<Self, ConfigError> {
        match Self::gpu_0() {
            Ok(gpu) => Ok(gpu),
            Err(reason) => Ok(Self { fallback_reason: Some(reason), ..Self::cpu_with(config)? }),
        }
    }

    /// GPU 0, or why not.
    fn gpu_0() -> std::result::Result<Self, String> {
        #[cfg(feature = "cuda")]
        return Self::cuda_on(0).map_err(|error| error.to_string());
        #[cfg(not(feature = "cuda"))]
        Err("built without the feature `cuda`".to_owned())
    }

    /// A GPU, planned for `config.spec`. Requests that do not fit are planned for when they come: see [`cuda_on`].
    ///
    /// Errors: those of `CudaPostprocessor::new`.
    ///
    /// [`cuda_on`]: Self::cuda_on
    #[cfg(feature = "cuda")]
    pub fn cuda(config: cuda::CudaConfig) -> std::result::Result<Self, cuda::Error> {
        Ok(Backend::Cuda(Box::new(gpu::Gpu::new(config)?)).into())
    }

    /// A GPU by its ordinal, for requests of any size.
    ///
    /// The kernels are loaded here. The first request is planned for: buffers are allocated and graphs captured, which
    /// takes milliseconds. So is every later one with other options, another model, a larger batch or a larger image;
    /// all others take microseconds and allocate nothing on the GPU. Those who know the largest request plan for it with
    /// `Postprocessor::cuda`.
    ///
    /// Errors: no driver, no such device, a device that the kernels do not run on.
    #[cfg(feature = "cuda")]
    pub fn cuda_on(ordinal: usize) -> std::result::Result<Self, cuda::Error> {
        Ok(Backend::Cuda(Box::new(gpu::Gpu::on(ordinal)?)).into())
    }

    /// Several GPUs by their ordinals, for requests of any size: each batch is split by image over them, and the answer is
    /// that of one GPU. A GPU that is named twice works on two parts at once. `cuda::fleet::usable_devices` lists all.
    ///
    /// Each GPU plans as in [`cuda_on`](Self::cuda_on). A queue of requests, each whole on one GPU, is for
    /// `cuda::CudaFleet`.
    ///
    /// Errors: those of [`cuda_on`](Self::cuda_on), of the first GPU that has one; no ordinal at all.
    #[cfg(feature = "cuda")]
    pub fn cuda_fleet(ordinals: &[usize]) -> std::result::Result<Self, cuda::Error> {
        Ok(Backend::CudaFleet(gpu::fleet(ordinals)?).into())
    }

    /// Why [`auto`](Self::auto) took the CPU; none if it did not have to, or was not asked.
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback_reason.as_deref()
    }

    /// Plans the room of one run-length mask on a GPU, in bytes or counts, from the next request on: what
    /// [`Error::Capacity`] says is needed. Nothing is ever truncated, and nothing is planned again by itself.
    /// The other back ends have room for everything.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "for a GPU only"))]
    pub fn set_mask_capacity(&mut self, capacity: u32) {
        match &mut self.backend {
            Backend::Cpu(_) | Backend::Reference => {}
            #[cfg(feature = "cuda")]
            Backend::Cuda(gpu) => gpu.set_mask_capacity(capacity),
            #[cfg(feature = "cuda")]
            Backend::CudaFleet(gpus) => gpus.iter_mut().for_each(|gpu| gpu.set_mask_capacity(capacity)),
        }
    }

    /// The back end's name: `cpu`, `reference` or `cuda`.
    pub const fn backend(&self) -> &'static str {
        match self.backend {
            Backend::Cpu(_) => "cpu",
            Backend::Reference => "reference",
            #[cfg(feature = "cuda")]
            Backend::Cuda(_) | Backend::CudaFleet(_) => "cuda",
        }
    }

    /// Computes the detections of a batch: one entry an image, best score first.
    ///
    /// Shapes: those of [`Tensors`]; `metas` holds one record an image.
    /// Errors: those of [`Request::new`], and masks that do not fit into memory. On a GPU also sizes beyond the kernels'
    /// ([`Error::Limit`]), a mask longer than its room ([`Error::Capacity`]), and what the driver says.
    pub fn process(
        &mut self,
        tensors: &Tensors<'_>,
        metas: &[ImageMeta],
        options: &Options,
    ) -> std::result::Result<Detections, ProcessError> {
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
    ) -> std::result::Result<(), ProcessError> {
        let request = Request::new(*tensors, metas, options)?;
        match &mut self.backend {
            Backend::Cpu(cpu) => cpu.process_into(&request, detections)?,
            Backend::Reference => *detections = reference::process(&request)?,
            #[cfg(feature = "cuda")]
            Backend::Cuda(gpu) => *detections = gpu.process(&request)?,
            #[cfg(feature = "cuda")]
            Backend::CudaFleet(gpus) => {
                *detections = cuda::fleet::process_batch(gpus, &request, |gpu, tensors, metas| {
                    gpu.process(&Request::new(*tensors, metas, options)?)
                })?;
            }
        }
        Ok(())
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
        let error = cpu.process(&tensors, &[], &Options::default()).unwrap_err();
        assert!(matches!(error, ProcessError::Request(Error::MetaCount { .. })));
        assert!(cpu.fallback_reason().is_none());
    }

    /// With and without a GPU: there is always an answer, and always a reason for the CPU.
    #[test]
    fn auto_says_why_it_took_the_cpu() {
        let mut auto = Postprocessor::auto();
        assert_eq!(auto.fallback_reason().is_some(), auto.backend() == "cpu", "{:?}", auto.fallback_reason());
        auto.set_mask_capacity(4096);
        let tensors = Tensors {
            boxes: Tensor::new(&[0.5f32; 8][..], &[1, 2, 4]),
            logits: Tensor::new(&[1.0f32, -9.0][..], &[1, 2, 1]),
            masks: None,
        };
        let metas = [ImageMeta::stretch(Size::new(60, 41), Size::new(32, 24)).unwrap()];
        assert_eq!(auto.process(&tensors, &metas, &Options::default()).unwrap().images[0].len(), 1);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_the_feature_auto_names_it() {
        assert_eq!(Postprocessor::auto().fallback_reason(), Some("built without the feature `cuda`"));
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_missing_gpu_is_a_typed_error() {
        let count = cuda::device_count().unwrap_or(0);
        match Postprocessor::cuda_on(count).unwrap_err() {
            cuda::Error::NoDevice { ordinal, count } => assert_eq!(ordinal, count),
            error => assert!(count == 0 && !error.to_string().is_empty(), "{error}"),
        }
    }

    /// Where there is no driver, or no device, every way to a GPU says so in the same words, and so does the reason of
    /// the CPU.
    #[cfg(feature = "cuda")]
    #[test]
    fn without_a_gpu_every_way_to_one_says_why() {
        let Err(expected) = cuda::device_info(0) else {
            assert_eq!(Postprocessor::auto().fallback_reason(), None);
            assert!(matches!(Postprocessor::cuda_fleet(&[]), Err(cuda::Error::Config { field: "devices", .. })));
            return;
        };
        let spec = plan::PlanSpec {
            shape: request::ModelShape { num_queries: 3, num_classes: 2, mask_grid: None },
            max_batch: 1,
            max_image: Size::new(60, 40),
            options: Options::default(),
            mask_capacity: None,
        };
        let config = cuda::CudaConfig::new(spec);
        assert_eq!(Postprocessor::cuda_on(0).unwrap_err(), expected);
        assert_eq!(Postprocessor::cuda(config.clone()).unwrap_err(), expected);
        assert_eq!(Postprocessor::cuda_fleet(&[0, 0]).unwrap_err(), expected);
        assert_eq!(cuda::CudaPostprocessor::new(config.clone()).unwrap_err(), expected);
        assert_eq!(cuda::CudaFleet::new(&[0], config).unwrap_err(), expected);
        let auto = Postprocessor::auto();
        assert_eq!((auto.backend(), auto.fallback_reason()), ("cpu", Some(&*expected.to_string())));
        let auto = Postprocessor::auto_with(CpuConfig::default()).unwrap();
        assert_eq!(auto.fallback_reason(), Some(&*expected.to_string()));
        // What one chose by hand has no such reason.
        assert_eq!(Postprocessor::cpu().fallback_reason(), None);
        let message = expected.to_string();
        assert!(message.contains("driver") || message.contains("device"), "{message}");
    }
}

//! A postprocessor for a request, and the comparison with the reference.

use rfdetr_post_core::{
    Detections, Error as CoreError, MaskFormat, Options, Size,
    plan::{DeviceLimits, MIN_SHARED_BYTES, PlanSpec},
    request::ModelShape,
};
use rfdetr_post_cuda::{
    CudaConfig, CudaPostprocessor, DeviceChoice, DeviceInfo, Error, KernelChoice, LaunchMode, LoadedKernels, Result,
    ResultPlace,
};
use rfdetr_post_tests::{case::RequestCase, compare, random::Random, suite::text};

/// The device, with the kernels loaded.
#[derive(Debug)]
pub struct Gpu {
    loaded: CudaPostprocessor,
    kernels: KernelChoice,
    info: DeviceInfo,
    /// Ordinal of the device.
    pub device: usize,
    /// Its multiprocessors.
    pub num_multiprocessors: u32,
    /// Threads to use on the host.
    pub threads: usize,
}

/// How a request is run: everything that must not matter.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// How the kernels are launched.
    pub launch: LaunchMode,
    /// Where the result goes.
    pub result: ResultPlace,
    /// Block and grid sizes; none for the measured choice.
    pub limits: Option<DeviceLimits>,
    /// Plan for more than the request: a larger batch and larger images.
    pub has_slack: bool,
}

impl How {
    /// What users get by default.
    pub const DEFAULT: Self =
        Self { launch: LaunchMode::Graph, result: ResultPlace::Host, limits: None, has_slack: false };

    /// The four launch modes and result places.
    pub const ALL: [Self; 4] = [
        Self::DEFAULT,
        Self { launch: LaunchMode::Stream, ..Self::DEFAULT },
        Self { result: ResultPlace::Device, ..Self::DEFAULT },
        Self { launch: LaunchMode::Stream, result: ResultPlace::Device, ..Self::DEFAULT },
    ];

    /// Drawn from a seed; half of the time the default.
    pub fn from_seed(seed: u64, num_multiprocessors: u32) -> Self {
        let mut random = Random::new(seed ^ 0x5eed);
        let plain = Self::ALL[random.below(2) * random.below(4)];
        let limits = (random.below(2) == 0).then(|| DeviceLimits {
            num_multiprocessors: random.pick(&[1, 3, 24, num_multiprocessors]),
            select_threads: random.pick(&[1024, 1024, 512, 256, 96, 32]),
            rle_clusters: random.pick(&[0, 0, 1, 2, 7, 32]),
            rle_blocks_per_multiprocessor: random.pick(&[1, 1, 2, 4]),
            rle_threads: random.pick(&[384, 384, 256, 96, 32]),
            mask_threads: random.pick(&[128, 256, 64, 96, 32]),
            mask_blocks_per_multiprocessor: random.pick(&[1, 2, 4, 7]),
            max_shared_bytes: random.pick(&[MIN_SHARED_BYTES, MIN_SHARED_BYTES, 100 << 10]),
        });
        Self { limits, has_slack: random.below(4) == 0, ..plain }
    }
}

/// How a case ended, besides failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Device = reference; with the number of plans that were too small.
    Same { replanned: u64 },
    /// Beyond the kernels' sizes.
    Limit,
}

impl Gpu {
    /// Loads the kernels.
    pub fn new(info: &DeviceInfo, threads: usize, kernels: KernelChoice) -> Result<Self> {
        let shape = ModelShape { num_queries: 1, num_classes: 1, mask_grid: None };
        let options = Options { mask_format: MaskFormat::None, ..Options::default() };
        let spec = PlanSpec { shape, max_batch: 1, max_image: Size::new(1, 1), options, mask_capacity: None };
        let config = CudaConfig { device: DeviceChoice::Ordinal(info.ordinal), kernels, ..CudaConfig::new(spec) };
        Ok(Self {
            loaded: CudaPostprocessor::new(config)?,
            kernels,
            info: info.clone(),
            device: info.ordinal,
            num_multiprocessors: info.num_multiprocessors,
            threads,
        })
    }

    /// The same device with other kernels.
    pub fn with_kernels(&self, kernels: KernelChoice) -> Result<Self> {
        Self::new(&self.info, self.threads, kernels)
    }

    /// What the driver says of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The kernels that are loaded.
    pub fn kernels(&self) -> &LoadedKernels {
        self.loaded.kernels()
    }

    /// The configuration for a plan.
    pub fn config(&self, spec: PlanSpec, how: &How) -> CudaConfig {
        CudaConfig {
            device: DeviceChoice::Ordinal(self.device),
            slots: 1,
            result: how.result,
            launch: how.launch,
            kernels: self.kernels,
            limits: how.limits,
            ..CudaConfig::new(spec)
        }
    }

    /// A postprocessor with the kernels that are loaded.
    pub fn postprocessor(&self, config: CudaConfig) -> Result<CudaPostprocessor> {
        CudaPostprocessor::new_beside(&self.loaded, config)
    }

    /// A postprocessor for exactly the case.
    pub fn postprocessor_for(&self, case: &RequestCase, how: &How) -> Result<CudaPostprocessor> {
        let mut spec = case.plan_spec()?;
        if how.has_slack {
            spec.max_batch += 3;
            spec.max_image.width = (spec.max_image.width + 37).min(16_384);
            spec.max_image.height = (spec.max_image.height + 61).min(16_384);
        }
        self.postprocessor(self.config(spec, how))
    }

    /// The answer, and the postprocessor that gave it. What does not fit is planned again with the size that it needs,
    /// as a user would; the number of such plans is returned, too.
    pub fn answer(&self, case: &RequestCase, how: &How) -> Result<(Detections, CudaPostprocessor, u64)> {
        let mut postprocessor = self.postprocessor_for(case, how)?;
        let mut replanned = 0;
        loop {
            let tensors = *case.request()?.tensors();
            match postprocessor.process_host(&tensors, &case.metas) {
                Err(Error::Request(CoreError::Capacity { needed, capacity, .. })) if needed > capacity => {
                    let mut spec = postprocessor.plan().spec.clone();
                    spec.mask_capacity = u32::try_from(needed).ok();
                    postprocessor = self.postprocessor(self.config(spec, how))?;
                    replanned += 1;
                }
                answer => return answer.map(|detections| (detections, postprocessor, replanned)),
            }
        }
    }

    /// Compares device and reference: the whole request, one image of it under the same plan, and the whole again.
    pub fn judge(&self, case: &RequestCase, how: &How) -> std::result::Result<Verdict, String> {
        let (got, mut postprocessor, replanned) = match self.answer(case, how) {
            Ok(answer) => answer,
            Err(Error::Request(CoreError::Limit { .. })) => return Ok(Verdict::Limit),
            Err(error) => return Err(format!("{how:?}: {error}")),
        };
        let expected = case.reference();
        compare::compare(&expected, &got).map_err(|difference| format!("{how:?}: {difference}"))?;
        let mut again = |what: &str, case: &RequestCase, expected: &Detections| {
            let tensors = *case.request().map_err(text)?.tensors();
            let got = postprocessor.process_host(&tensors, &case.metas).map_err(|e| format!("{how:?}, {what}: {e}"))?;
            compare::compare(expected, &got).map_err(|difference| format!("{how:?}, {what}: {difference}"))
        };
        let batch = case.metas.len();
        if batch > 1 {
            let image = expected.images[0].len() % batch;
            let one = Detections { images: vec![expected.images[image].clone()] };
            again(&format!("image {image} alone"), &case.image(image), &one)?;
        }
        again("again", case, &expected)?;
        Ok(Verdict::Same { replanned })
    }
}

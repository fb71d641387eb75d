//! A CUDA back end for requests of any size: plans again when one does not fit.

use std::{panic::resume_unwind, thread};

use rfdetr_post_core::{Detections, MaskFormat, Options, Request, Size, plan::PlanSpec, request::ModelShape};
use rfdetr_post_cuda::{CudaConfig, CudaPostprocessor, DeviceChoice, Error, Result};

/// The loaded kernels, and the plan of the last requests.
#[derive(Debug)]
pub struct Gpu {
    /// Planned for nothing; keeps the kernels loaded while there is no plan.
    loaded: CudaPostprocessor,
    planned: Option<CudaPostprocessor>,
    /// What a new plan is made with; its spec is the last plan's.
    config: CudaConfig,
}

impl Gpu {
    /// Loads the kernels and plans for `config.spec`.
    pub fn new(config: CudaConfig) -> Result<Self> {
        let mut gpu = Self { loaded: load(&config)?, planned: None, config };
        gpu.plan(gpu.config.spec.clone())?;
        Ok(gpu)
    }

    /// Loads the kernels; plans for the first request.
    pub fn on(ordinal: usize) -> Result<Self> {
        let config = CudaConfig { device: DeviceChoice::Ordinal(ordinal), slots: 1, ..CudaConfig::new(smallest()) };
        Ok(Self { loaded: load(&config)?, planned: None, config })
    }

    /// Gives each run-length mask this room.
    pub fn set_mask_capacity(&mut self, capacity: u32) {
        self.config.spec.mask_capacity = Some(capacity);
        self.planned = None;
    }

    /// Computes a request.
    pub fn process(&mut self, request: &Request<'_>) -> Result<Detections> {
        let spec = match &self.planned {
            Some(planned) => next_spec(&planned.plan().spec, request, |metas| planned.plan().check(metas, metas.len())),
            None => Some(spec(request, self.config.spec.mask_capacity)),
        };
        if let Some(spec) = spec {
            self.plan(spec)?;
        }
        let Some(planned) = &mut self.planned else { unreachable!("planned above") };
        planned.process_host(request.tensors(), request.metas())
    }

    /// Replaces the plan. The old one goes first, so that both need not fit into memory together.
    fn plan(&mut self, spec: PlanSpec) -> Result<()> {
        self.planned = None;
        self.config.spec = spec;
        self.planned = Some(CudaPostprocessor::new_beside(&self.loaded, self.config.clone())?);
        Ok(())
    }
}

/// A back end on each of these GPUs, made ready at the same time.
pub fn fleet(ordinals: &[usize]) -> Result<Vec<Gpu>> {
    if ordinals.is_empty() {
        return Err(Error::Config { field: "devices", expected: "at least one", got: "none".to_string() });
    }
    thread::scope(|scope| {
        let loading: Vec<_> = ordinals.iter().map(|&ordinal| scope.spawn(move || Gpu::on(ordinal))).collect();
        loading.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

fn load(config: &CudaConfig) -> Result<CudaPostprocessor> {
    CudaPostprocessor::new(CudaConfig { spec: smallest(), slots: 1, ..config.clone() })
}

/// The smallest plan there is.
fn smallest() -> PlanSpec {
    PlanSpec {
        shape: ModelShape { num_queries: 1, num_classes: 1, mask_grid: None },
        max_batch: 1,
        max_image: Size::new(1, 1),
        options: Options { mask_format: MaskFormat::None, ..Options::default() },
        mask_capacity: None,
    }
}

/// The plan for exactly this request.
fn spec(request: &Request<'_>, mask_capacity: Option<u32>) -> PlanSpec {
    let side = |of: fn(Size) -> u32| request.metas().iter().map(|meta| of(meta.original)).max().unwrap_or(1);
    PlanSpec {
        shape: request.shape(),
        max_batch: request.batch().max(1),
        max_image: Size::new(side(|size| size.width), side(|size| size.height)),
        options: request.options().clone(),
        mask_capacity,
    }
}

/// What to plan in place of `planned`, if the request does not fit it: room for both if only sizes differ, otherwise for
/// the request alone. A room for masks that was given stays.
fn next_spec(
    planned: &PlanSpec,
    request: &Request<'_>,
    check: impl Fn(&[rfdetr_post_core::ImageMeta]) -> rfdetr_post_core::Result<()>,
) -> Option<PlanSpec> {
    let mut next = spec(request, planned.mask_capacity);
    let has_masks = next.options.mask_format != MaskFormat::None;
    let shape = |shape: ModelShape| (shape.num_queries, shape.num_classes, shape.mask_grid.filter(|_| has_masks));
    if next.options != planned.options || shape(next.shape) != shape(planned.shape) {
        return Some(next);
    }
    if check(request.metas()).is_ok() {
        return None;
    }
    next.max_batch = next.max_batch.max(planned.max_batch);
    next.max_image.width = next.max_image.width.max(planned.max_image.width);
    next.max_image.height = next.max_image.height.max(planned.max_image.height);
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rfdetr_post_core::{
        ImageMeta, Tensor, Tensors,
        plan::{DeviceLimits, Plan},
    };

    fn with_request<T>(batch: usize, size: Size, options: &Options, use_it: impl FnOnce(&Request<'_>) -> T) -> T {
        let (boxes, logits, masks) = (vec![0.5f32; batch * 12], vec![0.0f32; batch * 6], vec![0.0f32; batch * 36]);
        let shapes = ([batch, 3, 4], [batch, 3, 2], [batch, 3, 3, 4]);
        let tensors = Tensors {
            boxes: Tensor::new(&boxes[..], &shapes.0),
            logits: Tensor::new(&logits[..], &shapes.1),
            masks: Some(Tensor::new(&masks[..], &shapes.2)),
        };
        let metas = vec![ImageMeta::stretch(size, Size::new(32, 24)).unwrap(); batch];
        use_it(&Request::new(tensors, &metas, options).unwrap())
    }

    /// Plans as the back end would, without a device, and returns what is planned next.
    fn next(planned: &PlanSpec, batch: usize, size: Size, options: &Options) -> Option<PlanSpec> {
        let plan = Plan::new(planned.clone(), DeviceLimits::new(4)).unwrap();
        with_request(batch, size, options, |request| {
            next_spec(planned, request, |metas| plan.check(metas, metas.len()))
        })
    }

    #[test]
    fn a_plan_grows_and_follows_options() {
        let options = Options { mask_format: MaskFormat::Rle, ..Options::default() };
        let first = with_request(2, Size::new(60, 40), &options, |request| spec(request, Some(512)));
        assert_eq!((first.max_batch, first.max_image), (2, Size::new(60, 40)));
        // Equal or smaller: the plan stays.
        assert_eq!(next(&first, 2, Size::new(60, 40), &options), None);
        assert_eq!(next(&first, 1, Size::new(7, 39), &options), None);
        assert_eq!(next(&first, 0, Size::new(7, 39), &options), None);
        // Larger on one side: both fit afterwards.
        let second = next(&first, 1, Size::new(30, 50), &options).unwrap();
        assert_eq!(second, PlanSpec { max_image: Size::new(60, 50), ..first.clone() });
        let third = next(&second, 3, Size::new(1, 1), &options).unwrap();
        assert_eq!(third, PlanSpec { max_batch: 3, ..second.clone() });
        // Other options: for the request alone, but with the room for masks that was given.
        let counts = Options { mask_format: MaskFormat::Counts, ..options };
        let fourth = next(&third, 1, Size::new(9, 8), &counts).unwrap();
        assert_eq!((fourth.max_batch, fourth.max_image, fourth.mask_capacity), (1, Size::new(9, 8), Some(512)));
        assert_eq!(fourth.options, counts);
    }

    #[test]
    fn the_smallest_plan_is_one() {
        assert!(Plan::new(smallest(), DeviceLimits::new(1)).is_ok());
    }
}

//! An owned request. [`Request`] borrows everything, so something must own it.

use std::cell::RefCell;

use half::{bf16, f16};
use rfdetr_post_core::{
    DType, Detections, ImageMeta, Options, Request, Result, Size, Tensor, TensorData, Tensors, plan::PlanSpec,
    reference,
};

/// An owned tensor, row-major.
#[derive(Clone, PartialEq)]
pub struct OwnedTensor {
    /// The elements.
    pub data: OwnedData,
    /// Size along each axis.
    pub shape: Vec<usize>,
}

/// The elements of an [`OwnedTensor`].
#[derive(Clone, PartialEq)]
pub enum OwnedData {
    /// IEEE binary32.
    F32(Vec<f32>),
    /// IEEE binary16.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

impl OwnedTensor {
    /// A tensor of `dtype` from f32 values, rounded to nearest even.
    pub fn new(values: Vec<f32>, shape: &[usize], dtype: DType) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "values do not fill {shape:?}");
        let data = match dtype {
            DType::F32 => OwnedData::F32(values),
            DType::F16 => OwnedData::F16(values.into_iter().map(f16::from_f32).collect()),
            DType::Bf16 => OwnedData::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        };
        Self { data, shape: shape.to_vec() }
    }

    /// The tensor as requests borrow it.
    pub fn borrow(&self) -> Tensor<'_> {
        let data = match &self.data {
            OwnedData::F32(data) => TensorData::F32(data),
            OwnedData::F16(data) => TensorData::F16(data),
            OwnedData::Bf16(data) => TensorData::Bf16(data),
        };
        Tensor::new(data, &self.shape)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.borrow().data().dtype()
    }

    /// The elements' bytes, as they lie in memory.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            OwnedData::F32(data) => bytemuck::cast_slice(data),
            OwnedData::F16(data) => bytemuck::cast_slice(data),
            OwnedData::Bf16(data) => bytemuck::cast_slice(data),
        }
    }

    /// All elements, widened to f32.
    pub fn widened(&self) -> Vec<f32> {
        let tensor = self.borrow();
        (0..tensor.data().len()).map(|idx| tensor.at(idx)).collect()
    }

    /// The same values as an f32 tensor.
    pub fn to_f32(&self) -> Self {
        Self { data: OwnedData::F32(self.widened()), shape: self.shape.clone() }
    }

    /// The part that belongs to one index of the first axis; the first axis becomes 1.
    pub fn image(&self, image: usize) -> Self {
        let len: usize = self.shape[1..].iter().product();
        let range = image * len..(image + 1) * len;
        let data = match &self.data {
            OwnedData::F32(data) => OwnedData::F32(data[range].to_vec()),
            OwnedData::F16(data) => OwnedData::F16(data[range].to_vec()),
            OwnedData::Bf16(data) => OwnedData::Bf16(data[range].to_vec()),
        };
        let mut shape = self.shape.clone();
        shape[0] = 1;
        Self { data, shape }
    }

    /// The tensor with the second axis (queries) reordered: output query `i` is input query `order[i]`.
    pub fn permute_queries(&self, order: &[usize]) -> Self {
        let len: usize = self.shape[2..].iter().product();
        fn pick<T: Copy>(data: &[T], batch: usize, len: usize, order: &[usize]) -> Vec<T> {
            (0..batch)
                .flat_map(|b| order.iter().map(move |q| (b * order.len() + q) * len))
                .flat_map(|start| data[start..start + len].iter().copied())
                .collect()
        }
        let batch = self.shape[0];
        let data = match &self.data {
            OwnedData::F32(data) => OwnedData::F32(pick(data, batch, len, order)),
            OwnedData::F16(data) => OwnedData::F16(pick(data, batch, len, order)),
            OwnedData::Bf16(data) => OwnedData::Bf16(pick(data, batch, len, order)),
        };
        Self { data, shape: self.shape.clone() }
    }
}

impl std::fmt::Debug for OwnedTensor {
    /// Type, shape and values; values beyond the first 512 are counted.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values = self.widened();
        let shown = &values[..values.len().min(512)];
        write!(f, "{:?}{:?} {shown:?}", self.dtype(), self.shape)?;
        if shown.len() < values.len() { write!(f, " and {} more", values.len() - shown.len()) } else { Ok(()) }
    }
}

thread_local! {
    /// The cases of the test that runs inside [`RequestCase::recorded`].
    static RECORDED: RefCell<Option<Vec<RequestCase>>> = const { RefCell::new(None) };
}

/// Everything that a [`Request`] borrows.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestCase {
    /// `[B, Q, 4]`.
    pub boxes: OwnedTensor,
    /// `[B, Q, C]`.
    pub logits: OwnedTensor,
    /// `[B, Q, Mh, Mw]`.
    pub masks: Option<OwnedTensor>,
    /// One record an image.
    pub metas: Vec<ImageMeta>,
    /// The options.
    pub options: Options,
}

impl RequestCase {
    /// The checked request.
    pub fn request(&self) -> Result<Request<'_>> {
        let tensors = Tensors {
            boxes: self.boxes.borrow(),
            logits: self.logits.borrow(),
            masks: self.masks.as_ref().map(OwnedTensor::borrow),
        };
        Request::new(tensors, &self.metas, &self.options)
    }

    /// What a plan for exactly this request is made for.
    pub fn plan_spec(&self) -> Result<PlanSpec> {
        let request = self.request()?;
        let side = |of: fn(Size) -> u32| self.metas.iter().map(|meta| of(meta.original)).max().unwrap_or(1);
        Ok(PlanSpec {
            shape: request.shape(),
            max_batch: request.batch(),
            max_image: Size::new(side(|size| size.width), side(|size| size.height)),
            options: self.options.clone(),
            mask_capacity: None,
        })
    }

    /// The reference's answer. Panics if the case is refused, which no fixture and no strategy may be.
    pub fn reference(&self) -> Detections {
        RECORDED.with_borrow_mut(|recorded| {
            if let Some(cases) = recorded {
                cases.push(self.clone());
            }
        });
        self.answer(reference::process)
    }

    /// Runs a test, and returns every case whose [`RequestCase::reference`] it asked for on this thread, so that another
    /// implementation can be held to the same cases.
    pub fn recorded(test: impl FnOnce()) -> Vec<Self> {
        RECORDED.set(Some(Vec::new()));
        test();
        RECORDED.take().unwrap_or_default()
    }

    /// The answer of any implementation; panics as [`RequestCase::reference`] does.
    pub fn answer(&self, implementation: impl Fn(&Request<'_>) -> Result<Detections>) -> Detections {
        let request = self.request().unwrap_or_else(|error| panic!("the case is refused: {error}"));
        implementation(&request).unwrap_or_else(|error| panic!("the case fails: {error}"))
    }

    /// The case with other options.
    pub fn with_options(&self, change: impl FnOnce(&mut Options)) -> Self {
        let mut case = self.clone();
        change(&mut case.options);
        case
    }

    /// One image of the batch, as a batch of its own.
    pub fn image(&self, image: usize) -> Self {
        Self {
            boxes: self.boxes.image(image),
            logits: self.logits.image(image),
            masks: self.masks.as_ref().map(|masks| masks.image(image)),
            metas: vec![self.metas[image]],
            options: self.options.clone(),
        }
    }
}

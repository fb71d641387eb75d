//! Borrowed tensors: a shape and a slice of f32, f16 or bf16, row-major and contiguous.

use half::{bf16, f16};

use crate::error::{Error, Result};

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u32)]
pub enum DType {
    /// IEEE binary32.
    F32 = 0,
    /// IEEE binary16; widened to f32 on load, exactly.
    F16 = 1,
    /// bfloat16; widened to f32 on load, exactly.
    Bf16 = 2,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// The elements of a [`Tensor`].
#[derive(Debug, Clone, Copy)]
pub enum TensorData<'a> {
    /// IEEE binary32.
    F32(&'a [f32]),
    /// IEEE binary16.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl TensorData<'_> {
    /// Number of elements.
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F16(data) => data.len(),
            Self::Bf16(data) => data.len(),
        }
    }

    /// Whether there is no element.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub const fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::Bf16(_) => DType::Bf16,
        }
    }
}

impl<'a> From<&'a [f32]> for TensorData<'a> {
    fn from(data: &'a [f32]) -> Self {
        Self::F32(data)
    }
}

impl<'a> From<&'a [f16]> for TensorData<'a> {
    fn from(data: &'a [f16]) -> Self {
        Self::F16(data)
    }
}

impl<'a> From<&'a [bf16]> for TensorData<'a> {
    fn from(data: &'a [bf16]) -> Self {
        Self::Bf16(data)
    }
}

/// A borrowed row-major, contiguous tensor.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    data: TensorData<'a>,
    shape: &'a [usize],
}

impl<'a> Tensor<'a> {
    /// Borrows `data` under `shape`. Lengths are checked by [`crate::Request::new`], which knows the tensor's name.
    pub fn new(data: impl Into<TensorData<'a>>, shape: &'a [usize]) -> Self {
        Self { data: data.into(), shape }
    }

    /// Size along each axis, outermost first.
    pub const fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The elements.
    pub const fn data(&self) -> TensorData<'a> {
        self.data
    }

    /// The element at a flat index, widened to f32 (exact). Panics outside the data, like a slice.
    #[inline]
    pub fn at(&self, idx: usize) -> f32 {
        match self.data {
            TensorData::F32(data) => data[idx],
            TensorData::F16(data) => data[idx].to_f32(),
            TensorData::Bf16(data) => data[idx].to_f32(),
        }
    }

    /// Checks that the data has as many elements as the shape says.
    pub(crate) fn check(&self, field: &'static str) -> Result<()> {
        let expected = self
            .shape
            .iter()
            .try_fold(1usize, |product, &side| product.checked_mul(side))
            .ok_or(Error::Overflow { field, max: usize::MAX as u64, got: u64::MAX })?;
        if self.data.len() != expected {
            return Err(Error::DataLength { field, expected, got: self.data.len() });
        }
        Ok(())
    }
}

//! Tensors and streams of other crates, behind a feature each: `cudarc` and `cust`.
//!
//! An adapter only reads handles: nothing is copied, and nothing is kept alive. The buffer must live, unchanged, until the
//! ticket of its request is ready, as `CudaPostprocessor::enqueue` asks.

use half::{bf16, f16};
use rfdetr_post_core::DType;

/// Element types of tensors.
pub trait Element: sealed::Sealed {
    /// As a [`DType`].
    const DTYPE: DType;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($element:ty => $dtype:ident,)*) => {
        $(
            impl sealed::Sealed for $element {}
            impl Element for $element {
                const DTYPE: DType = DType::$dtype;
            }
        )*
    };
}

elements! {
    f32 => F32,
    f16 => F16,
    bf16 => Bf16,
}

#[cfg(feature = "cudarc")]
mod of_cudarc {
    use cudarc::driver::{CudaStream, DevicePtr};

    use super::Element;
    use crate::{DeviceTensor, Stream};

    impl DeviceTensor {
        /// The tensor in a `CudaSlice` or `CudaView`. Work that cudarc knows to be writing it is waited for by `stream`,
        /// on the device; pass the stream of the request.
        pub fn from_cudarc<T: Element>(tensor: &impl DevicePtr<T>, stream: &CudaStream) -> Self {
            // What the second value would record at its drop is the end of our reading, which is later: see the module.
            let (address, _) = tensor.device_ptr(stream);
            Self { address, dtype: T::DTYPE }
        }
    }

    impl Stream {
        /// The stream of cudarc's.
        ///
        /// # Safety
        /// As [`Stream::from_raw`]: of the postprocessor's context, alive until every ticket of it is done.
        pub unsafe fn from_cudarc(stream: &CudaStream) -> Self {
            // SAFETY: the caller vouches for context and life.
            unsafe { Self::from_raw(stream.cu_stream().cast()) }
        }
    }
}

#[cfg(feature = "cust")]
mod of_cust {
    use cust::memory::{DeviceCopy, DeviceSlice};

    use super::{DType, Element};
    use crate::{DeviceTensor, Stream};

    impl DeviceTensor {
        /// The tensor in a `DeviceBuffer` or a slice of one.
        pub fn from_cust<T: Element + DeviceCopy>(tensor: &DeviceSlice<T>) -> Self {
            Self { address: tensor.as_device_ptr().as_raw(), dtype: T::DTYPE }
        }

        /// The tensor whose elements' bytes are in a `DeviceBuffer` or a slice of one. For f16 and bf16: `cust` 0.3 knows
        /// them from `half` 1 only, this crate from `half` 2.
        pub fn from_cust_bytes(bytes: &DeviceSlice<u8>, dtype: DType) -> Self {
            Self { address: bytes.as_device_ptr().as_raw(), dtype }
        }
    }

    impl Stream {
        /// The stream of cust's.
        ///
        /// # Safety
        /// As [`Stream::from_raw`]: of the postprocessor's context, alive until every ticket of it is done. `cust` programs
        /// make their context with `cust::quick_init` and choose `DeviceChoice::CurrentContext`.
        pub unsafe fn from_cust(stream: &cust::stream::Stream) -> Self {
            // SAFETY: the caller vouches for context and life.
            unsafe { Self::from_raw(stream.as_inner().cast()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_have_their_own_types() {
        assert_eq!([f32::DTYPE, f16::DTYPE, bf16::DTYPE], [DType::F32, DType::F16, DType::Bf16]);
        assert_eq!([f32::DTYPE, f16::DTYPE, bf16::DTYPE].map(DType::size), [4, 2, 2]);
    }

    /// Compiles only if slices, views and buffers of the other crates fit.
    #[cfg(feature = "cudarc")]
    #[test]
    fn cudarc_types_fit() {
        use crate::DeviceTensor;
        use cudarc::driver::{CudaSlice, CudaStream, CudaView};
        fn of_slice(slice: &CudaSlice<f32>, stream: &CudaStream) -> DeviceTensor {
            DeviceTensor::from_cudarc(slice, stream)
        }
        fn of_view(view: &CudaView<'_, f16>, stream: &CudaStream) -> DeviceTensor {
            DeviceTensor::from_cudarc(view, stream)
        }
        let _ = (of_slice, of_view);
    }
}

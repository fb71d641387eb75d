//! Tensors that come as DLPack, the exchange format of torch, JAX, CuPy and others; behind the feature `dlpack`.
//!
//! As with the other adapters nothing is copied, and nothing is kept alive: the managed tensor must live until the ticket
//! of its request is ready. DLPack says nothing of streams: the request's stream must be the one that the tensor is
//! written on, or wait for it.

use dlpark::{
    Managed, ManagedTensorBase,
    ffi::{DLDataType, DLDataTypeCode, DLDevice, DLDeviceType},
};
use rfdetr_post_core::{DType, request::ModelShape};

use crate::{DeviceTensor, DeviceTensors, Error, Result};

impl DeviceTensor {
    /// The tensor in a managed tensor of the plain or the versioned layout.
    ///
    /// `field` names the tensor in errors; `device` is the ordinal of the postprocessor's device, which DLPack's ids of
    /// CUDA devices are, too.
    ///
    /// Shapes: `shape` if it is given, row-major and contiguous. What the strides of axes of one element say is ignored,
    /// because frameworks fill in what they like.
    /// Errors, in the order of the checks: [`Error::Dlpack`] for a description that contradicts itself,
    /// [`Error::WrongDevice`] for other devices and for host, pinned and managed memory, [`Error::ElementType`],
    /// [`rfdetr_post_core::Error::Shape`], [`Error::Strides`], and [`Error::Address`] for an address, the byte offset
    /// included, that is null or not a multiple of the element.
    pub fn from_dlpack<M: ManagedTensorBase>(
        tensor: &Managed<M>,
        field: &'static str,
        device: usize,
        shape: Option<&[usize]>,
    ) -> Result<Self> {
        let invalid = |reason: String| Error::Dlpack { field, reason };
        let tensor = tensor.validate().map_err(|error| invalid(error.to_string()))?;
        check_device(field, device, tensor.device())?;
        let dtype =
            dtype(tensor.dtype()).ok_or_else(|| Error::ElementType { field, got: element_name(tensor.dtype()) })?;
        if let Some(expected) = shape {
            let got: Vec<usize> = tensor.shape().iter().map(|&side| side as usize).collect();
            if got != expected {
                let expected = format!("{expected:?}");
                return Err(rfdetr_post_core::Error::Shape { field, expected, got }.into());
            }
        }
        if let Some(strides) = tensor.strides() {
            check_strides(field, tensor.shape(), strides)?;
        }
        let address = (tensor.data_ptr().addr() as u64)
            .checked_add(tensor.byte_offset())
            .ok_or_else(|| invalid("the address and the byte offset overflow".to_string()))?;
        let align = dtype.size() as u64;
        if tensor.num_elements() > 0 && (tensor.data_ptr().is_null() || !address.is_multiple_of(align)) {
            return Err(Error::Address { field, address, align });
        }
        Ok(Self { address, dtype })
    }
}

impl DeviceTensors {
    /// The outputs of a model as managed tensors: [`DeviceTensor::from_dlpack`] of each, by its name and shape.
    ///
    /// `device` and `shape` are the postprocessor's: `CudaPostprocessor::device` and `plan().spec.shape`. Masks of a model
    /// that is planned without are left out.
    ///
    /// Shapes: `boxes` `[batch, Q, 4]`, `logits` `[batch, Q, C]`, `masks` `[batch, Q, Mh, Mw]`.
    /// Errors: those of [`DeviceTensor::from_dlpack`].
    pub fn from_dlpack<M: ManagedTensorBase>(
        boxes: &Managed<M>,
        logits: &Managed<M>,
        masks: Option<&Managed<M>>,
        device: usize,
        shape: &ModelShape,
        batch: usize,
    ) -> Result<Self> {
        let queries = shape.num_queries;
        Ok(Self {
            boxes: DeviceTensor::from_dlpack(boxes, "boxes", device, Some(&[batch, queries, 4]))?,
            logits: DeviceTensor::from_dlpack(logits, "logits", device, Some(&[batch, queries, shape.num_classes]))?,
            masks: match (masks, shape.mask_grid) {
                (Some(masks), Some((mask_h, mask_w))) => {
                    let shape = [batch, queries, mask_h, mask_w];
                    Some(DeviceTensor::from_dlpack(masks, "masks", device, Some(&shape))?)
                }
                _ => None,
            },
        })
    }
}

fn check_device(field: &'static str, expected: usize, device: DLDevice) -> Result<()> {
    let got = match device.device_type {
        DLDeviceType::CUDA if i64::from(device.device_id) == expected as i64 => return Ok(()),
        DLDeviceType::CUDA => format!("device {}", device.device_id),
        DLDeviceType::CPU => "the host".to_string(),
        DLDeviceType::CUDAHOST => "the host, in pinned memory".to_string(),
        DLDeviceType::CUDAMANAGED => "managed memory".to_string(),
        DLDeviceType(other) => format!("a device of DLPack's type {other}"),
    };
    Err(Error::WrongDevice { field, expected, got })
}

fn dtype(dtype: DLDataType) -> Option<DType> {
    match (dtype.code, dtype.bits, dtype.lanes) {
        (DLDataTypeCode::FLOAT, 32, 1) => Some(DType::F32),
        (DLDataTypeCode::FLOAT, 16, 1) => Some(DType::F16),
        (DLDataTypeCode::BFLOAT, 16, 1) => Some(DType::Bf16),
        _ => None,
    }
}

/// The type as its header would say it: `int64`, `float32 x 4`.
fn element_name(dtype: DLDataType) -> String {
    let kind = match dtype.code {
        DLDataTypeCode::INT => "int",
        DLDataTypeCode::UINT => "uint",
        DLDataTypeCode::FLOAT => "float",
        DLDataTypeCode::BFLOAT => "bfloat",
        DLDataTypeCode::COMPLEX => "complex",
        DLDataTypeCode::BOOL => "bool",
        DLDataTypeCode(other) => return format!("DLPack's type {other} with {} bits", dtype.bits),
    };
    let lanes = if dtype.lanes == 1 { String::new() } else { format!(" x {}", dtype.lanes) };
    format!("{kind}{}{lanes}", dtype.bits)
}

fn check_strides(field: &'static str, shape: &[i64], strides: &[i64]) -> Result<()> {
    // Of no elements every layout is contiguous.
    if shape.contains(&0) {
        return Ok(());
    }
    let mut expected = vec![1i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        // The number of elements was checked to be a `usize`, so no product of some of its sides wraps.
        expected[axis - 1] = expected[axis].saturating_mul(shape[axis]);
    }
    let is_contiguous = shape.iter().zip(strides).zip(&expected).all(|((&side, got), want)| side == 1 || got == want);
    if is_contiguous { Ok(()) } else { Err(Error::Strides { field, expected, got: strides.to_vec() }) }
}

#[cfg(test)]
mod tests {
    use std::{ffi::c_void, sync::Arc};

    use dlpark::ffi::{DLManagedTensor, DLManagedTensorVersioned, DLPackVersion, DLTensor};
    use rfdetr_post_core::Error as CoreError;

    use super::*;

    /// What a producer keeps behind its tensor.
    struct Producer {
        shape: Vec<i64>,
        strides: Vec<i64>,
        _alive: Arc<()>,
    }

    unsafe extern "C" fn delete<M: ManagedTensorBase>(tensor: *mut M) {
        // SAFETY: made by `managed`, which leaked both boxes; DLPack calls this once.
        unsafe {
            let tensor = Box::from_raw(tensor);
            drop(Box::from_raw(tensor.manager_ctx().cast::<Producer>()));
        }
    }

    /// `[2, 3, 5]` of f16 on device 1 at 0x7000, after `change`. Nothing is there: only descriptions are read.
    fn managed<M: ManagedTensorBase>(alive: &Arc<()>, change: impl FnOnce(&mut DLTensor, &mut [i64])) -> Managed<M> {
        let producer = Producer { shape: vec![2, 3, 5], strides: vec![15, 5, 1], _alive: alive.clone() };
        let producer = Box::into_raw(Box::new(producer));
        // SAFETY: just made, and nobody else has it yet.
        let (shape, strides) = unsafe { (&mut (*producer).shape, &mut (*producer).strides) };
        let mut tensor = DLTensor {
            data: 0x7000 as *mut c_void,
            device: DLDevice::cuda(1),
            ndim: 3,
            dtype: DLDataType::scalar(DLDataTypeCode::FLOAT, 16),
            shape: shape.as_mut_ptr(),
            strides: strides.as_mut_ptr(),
            byte_offset: 0,
        };
        change(&mut tensor, shape);
        let managed = M::from_parts(tensor, producer.cast(), Some(delete::<M>));
        // SAFETY: initialized above; `delete` frees it, its shape and its strides.
        unsafe { Managed::from_raw(Box::into_raw(Box::new(managed))) }.unwrap()
    }

    fn read_as<M: ManagedTensorBase>(change: impl FnOnce(&mut DLTensor, &mut [i64])) -> Result<DeviceTensor> {
        let alive = Arc::new(());
        let tensor = managed::<M>(&alive, change);
        let read = DeviceTensor::from_dlpack(&tensor, "logits", 1, Some(&[2, 3, 5]));
        assert_eq!(Arc::strong_count(&alive), 2, "the adapter must not release the tensor");
        drop(tensor);
        assert_eq!(Arc::strong_count(&alive), 1, "the producer's deleter ran");
        read
    }

    /// Both layouts, which must be read alike.
    fn read(change: impl Fn(&mut DLTensor, &mut [i64])) -> Result<DeviceTensor> {
        let plain = read_as::<DLManagedTensor>(&change);
        assert_eq!(plain, read_as::<DLManagedTensorVersioned>(&change));
        plain
    }

    fn has_dtype(code: DLDataTypeCode, bits: u8, lanes: u16) -> Result<DType> {
        read(|tensor, _| tensor.dtype = DLDataType::new(code, bits, lanes)).map(|tensor| tensor.dtype)
    }

    #[test]
    fn addresses_and_types_are_read() {
        assert_eq!(read(|_, _| ()), Ok(DeviceTensor { address: 0x7000, dtype: DType::F16 }));
        assert_eq!(read(|tensor, _| tensor.byte_offset = 258).unwrap().address, 0x7000 + 258);
        assert_eq!(has_dtype(DLDataTypeCode::FLOAT, 32, 1), Ok(DType::F32));
        assert_eq!(has_dtype(DLDataTypeCode::BFLOAT, 16, 1), Ok(DType::Bf16));
    }

    #[test]
    fn other_devices_are_refused() {
        let on = |device_type, device_id| read(|tensor, _| tensor.device = DLDevice { device_type, device_id });
        for (device_type, device_id, text) in [
            (DLDeviceType::CUDA, 0, "device 0"),
            (DLDeviceType::CUDA, -1, "device -1"),
            (DLDeviceType::CPU, 1, "the host"),
            (DLDeviceType::CUDAHOST, 1, "the host, in pinned memory"),
            (DLDeviceType::CUDAMANAGED, 1, "managed memory"),
            (DLDeviceType::ROCM, 1, "a device of DLPack's type 10"),
        ] {
            let expected = Error::WrongDevice { field: "logits", expected: 1, got: text.to_string() };
            assert_eq!(on(device_type, device_id), Err(expected));
        }
        assert_eq!(on(DLDeviceType::CPU, 0).unwrap_err().to_string(), "`logits` lies on the host, expected device 1");
    }

    #[test]
    fn other_element_types_are_refused() {
        for (code, bits, lanes, text) in [
            (DLDataTypeCode::FLOAT, 64, 1, "float64"),
            (DLDataTypeCode::FLOAT, 32, 4, "float32 x 4"),
            (DLDataTypeCode::BFLOAT, 32, 1, "bfloat32"),
            (DLDataTypeCode::INT, 32, 1, "int32"),
            (DLDataTypeCode::UINT, 16, 1, "uint16"),
            (DLDataTypeCode::BOOL, 8, 1, "bool8"),
            (DLDataTypeCode::COMPLEX, 64, 1, "complex64"),
            (DLDataTypeCode::FLOAT8_E4M3, 8, 1, "DLPack's type 8 with 8 bits"),
        ] {
            assert_eq!(
                has_dtype(code, bits, lanes),
                Err(Error::ElementType { field: "logits", got: text.to_string() })
            );
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let got = read(|_, shape| shape.copy_from_slice(&[2, 5, 3]));
        let expected = CoreError::Shape { field: "logits", expected: "[2, 3, 5]".to_string(), got: vec![2, 5, 3] };
        assert_eq!(got, Err(expected.into()));
        let got = read(|tensor, _| tensor.ndim = 2);
        let expected = CoreError::Shape { field: "logits", expected: "[2, 3, 5]".to_string(), got: vec![2, 3] };
        assert_eq!(got, Err(expected.into()));
        // Without an expectation any shape will do.
        let tensor = managed::<DLManagedTensor>(&Arc::new(()), |_, _| ());
        assert!(DeviceTensor::from_dlpack(&tensor, "logits", 1, None).is_ok());
    }

    /// A tensor of `shape` with `strides`, whose shape is not asked for.
    fn with_strides(shape: [i64; 3], strides: Option<[i64; 3]>) -> Result<DeviceTensor> {
        let tensor = managed::<DLManagedTensor>(&Arc::new(()), |tensor, old| {
            old.copy_from_slice(&shape);
            match strides {
                // SAFETY: the producer's strides are three numbers.
                Some(strides) => unsafe { tensor.strides.cast::<[i64; 3]>().write(strides) },
                None => tensor.strides = std::ptr::null_mut(),
            }
        });
        DeviceTensor::from_dlpack(&tensor, "masks", 1, None)
    }

    #[test]
    fn strides_must_be_contiguous() {
        assert!(with_strides([2, 3, 5], None).is_ok());
        // Torch writes 1 for axes of one element, others what they like: it does not matter.
        assert!(with_strides([1, 3, 5], Some([1, 5, 1])).is_ok());
        assert!(with_strides([2, 1, 5], Some([5, 77, 1])).is_ok());
        assert!(with_strides([2, 3, 1], Some([3, 1, 0])).is_ok());
        assert!(with_strides([2, 0, 5], Some([9, 9, 9])).is_ok());
        for strides in [[15, 1, 3], [30, 5, 1], [15, 5, 2], [0, 5, 1], [-15, 5, 1]] {
            let expected = Error::Strides { field: "masks", expected: vec![15, 5, 1], got: strides.to_vec() };
            assert_eq!(with_strides([2, 3, 5], Some(strides)), Err(expected));
        }
        assert_eq!(
            with_strides([2, 3, 5], Some([15, 5, 2])).unwrap_err().to_string(),
            "`masks` has strides [15, 5, 2], expected [15, 5, 1]: row-major and contiguous"
        );
    }

    #[test]
    fn bad_addresses_are_refused() {
        let is_address =
            |result, at| assert_eq!(result, Err(Error::Address { field: "logits", address: at, align: 2 }));
        is_address(read(|tensor, _| tensor.byte_offset = 3), 0x7003);
        is_address(read(|tensor, _| tensor.data = std::ptr::null_mut()), 0);
        // An offset does not make null an address.
        is_address(
            read(|tensor, _| {
                tensor.data = std::ptr::null_mut();
                tensor.byte_offset = 64;
            }),
            64,
        );
        // Nothing is read of a tensor without elements.
        let empty = managed::<DLManagedTensor>(&Arc::new(()), |tensor, shape| {
            tensor.data = std::ptr::null_mut();
            shape[0] = 0;
        });
        assert_eq!(DeviceTensor::from_dlpack(&empty, "logits", 1, Some(&[0, 3, 5])).unwrap().address, 0);
    }

    #[test]
    fn contradictions_are_refused() {
        let is_invalid = |result: Result<DeviceTensor>, text: &str| match result {
            Err(Error::Dlpack { field: "logits", reason }) => assert!(reason.contains(text), "{reason}"),
            other => panic!("{other:?}, expected: {text}"),
        };
        is_invalid(read(|tensor, _| tensor.ndim = -1), "ndim is negative");
        is_invalid(read(|tensor, _| tensor.shape = std::ptr::null_mut()), "shape pointer is null");
        is_invalid(read(|_, shape| shape[1] = -3), "dimension 1 is negative");
        is_invalid(read(|_, shape| shape.copy_from_slice(&[i64::MAX; 3])), "overflows");
        is_invalid(read(|tensor, _| tensor.byte_offset = u64::MAX), "overflow");
        is_invalid(read(|tensor, _| tensor.dtype.lanes = 0), "lane");
        // From DLPack 1.2 on strides are not optional.
        let without = |tensor: &mut DLTensor, _: &mut [i64]| tensor.strides = std::ptr::null_mut();
        assert!(read_as::<DLManagedTensor>(without).is_ok());
        is_invalid(read_as::<DLManagedTensorVersioned>(without), "explicit strides");
        let old = managed::<DLManagedTensorVersioned>(&Arc::new(()), without);
        // SAFETY: the tensor is ours.
        unsafe { (*old.as_ptr()).version = DLPackVersion { major: 1, minor: 1 } };
        assert!(DeviceTensor::from_dlpack(&old, "logits", 1, None).is_ok());
    }

    /// Each of the three by its own name and shape.
    #[test]
    fn outputs_are_checked_by_name() {
        let alive = Arc::new(());
        let of = |sides: [i64; 3], at: usize| {
            managed::<DLManagedTensorVersioned>(&alive, move |tensor, shape| {
                shape.copy_from_slice(&sides);
                tensor.data = at as *mut c_void;
                // SAFETY: the producer's strides are three numbers.
                unsafe { tensor.strides.cast::<[i64; 3]>().write([sides[1] * sides[2], sides[2], 1]) };
            })
        };
        let shape = ModelShape { num_queries: 7, num_classes: 3, mask_grid: None };
        let (boxes, logits) = (of([2, 7, 4], 0x100), of([2, 7, 3], 0x200));
        let got = DeviceTensors::from_dlpack(&boxes, &logits, Some(&boxes), 1, &shape, 2).unwrap();
        let at = |address| DeviceTensor { address, dtype: DType::F16 };
        assert_eq!(got, DeviceTensors { boxes: at(0x100), logits: at(0x200), masks: None });
        let field = |result: Result<DeviceTensors>| match result.unwrap_err() {
            Error::Request(CoreError::Shape { field, expected, .. }) => (field, expected),
            other => panic!("{other}"),
        };
        let swapped = DeviceTensors::from_dlpack(&logits, &boxes, None, 1, &shape, 2);
        assert_eq!(field(swapped), ("boxes", "[2, 7, 4]".to_string()));
        let batch = DeviceTensors::from_dlpack(&of([3, 7, 4], 0x100), &logits, None, 1, &shape, 3);
        assert_eq!(field(batch), ("logits", "[3, 7, 3]".to_string()));
        let with_masks = ModelShape { mask_grid: Some((9, 12)), ..shape };
        let masks = DeviceTensors::from_dlpack(&boxes, &logits, Some(&logits), 1, &with_masks, 2);
        assert_eq!(field(masks), ("masks", "[2, 7, 9, 12]".to_string()));
    }
}

//! Tensors and streams of other crates: slices, views and streams of `cudarc`, managed tensors of DLPack.
#![allow(unsafe_code, reason = "device pointers and streams are only as good as the caller's word")]

use std::{any::Any, sync::Arc};

use bytemuck::NoUninit;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, CudaView, DevicePtr};
use rfdetr_post_core::{DType, Error as CoreError, MaskFormat};
use rfdetr_post_cuda::{
    DeviceTensor, DeviceTensors, Error, Stream,
    adapters::Element,
    dlpark::{
        Managed, ManagedTensorBase,
        ffi::{DLDataType, DLDataTypeCode, DLDevice, DLManagedTensor, DLManagedTensorVersioned},
        metadata::Dynamic,
    },
};
use rfdetr_post_tests::{
    case::{OwnedData, OwnedTensor, RequestCase},
    compare,
    suite::{ensure, few_fixtures, text, variants},
    tally::{Outcome, Tally},
};

use crate::judge::{Gpu, How};

/// Elements before a tensor's first in its memory: most leave it aligned to no more than its element.
const PADDING: [usize; 6] = [0, 1, 2, 3, 4, 7];

/// A request's tensors, and what owns their memory.
struct Uploaded {
    tensors: DeviceTensors,
    _memory: Vec<Box<dyn Any>>,
}

fn stream_of(stream: &CudaStream) -> Stream {
    // SAFETY: every test waits for its tickets before it drops its streams.
    unsafe { Stream::from_cudarc(stream) }
}

/// A slice of `data`, or a view that skips `padding` elements before it.
fn upload_f32(data: &[f32], padding: usize, stream: &Arc<CudaStream>) -> Result<(DeviceTensor, Box<dyn Any>), String> {
    let slice: CudaSlice<f32> = stream.clone_htod(&[&vec![0.0; padding], data].concat()).map_err(text)?;
    let tensor = match padding {
        0 => DeviceTensor::from_cudarc(&slice, stream),
        padding => DeviceTensor::from_cudarc(&slice.slice(padding..), stream),
    };
    ensure(tensor.address == slice.device_ptr(stream).0 + 4 * padding as u64, "address of a slice or view")?;
    Ok((tensor, Box::new(slice)))
}

/// A view of halves in a slice of bytes, which is how they are had without cudarc's feature `f16`.
fn upload_half<T: Element + NoUninit>(
    data: &[T],
    padding: usize,
    stream: &Arc<CudaStream>,
) -> Result<(DeviceTensor, Box<dyn Any>), String> {
    let skipped = padding * size_of::<T>();
    let bytes = [&vec![0u8; skipped], bytemuck::cast_slice(data)].concat();
    let slice: CudaSlice<u8> = stream.clone_htod(&bytes).map_err(text)?;
    // SAFETY: the bytes are those of `T`, and every pattern of bits is a half.
    let view: CudaView<'_, T> = unsafe { slice.slice(skipped..).transmute(data.len()) }.ok_or("a view of halves")?;
    let tensor = DeviceTensor::from_cudarc(&view, stream);
    ensure(tensor.dtype == T::DTYPE, "type of a view")?;
    Ok((tensor, Box::new(slice)))
}

fn upload(case: &RequestCase, salt: usize, stream: &Arc<CudaStream>) -> Result<Uploaded, String> {
    let mut memory = Vec::new();
    let mut one = |tensor: &OwnedTensor, salt: usize| {
        let padding = PADDING[salt % PADDING.len()];
        let (tensor, owner) = match &tensor.data {
            OwnedData::F32(data) => upload_f32(data, padding, stream),
            OwnedData::F16(data) => upload_half(data, padding, stream),
            OwnedData::Bf16(data) => upload_half(data, padding, stream),
        }?;
        memory.push(owner);
        Ok::<_, String>(tensor)
    };
    let tensors = DeviceTensors {
        boxes: one(&case.boxes, salt)?,
        logits: one(&case.logits, salt + 1)?,
        masks: case.masks.as_ref().map(|masks| one(masks, salt + 2)).transpose()?,
    };
    Ok(Uploaded { tensors, _memory: memory })
}

/// Requests of every element type in `CudaSlice`s and `CudaView`s, on a `CudaStream`; and one that is still being written
/// on another stream.
pub fn cudarc(gpu: &Gpu) -> Outcome {
    let context = CudaContext::new(gpu.device).map_err(text)?;
    let stream = context.new_stream().map_err(text)?;
    let mut tally = Tally::default();
    for (idx, (name, case)) in few_fixtures().into_iter().enumerate() {
        let expected = case.reference();
        let mut postprocessor = gpu.postprocessor_for(&case, &How::ALL[idx % 4]).map_err(text)?;
        // Every third padding for each tensor of each format.
        for salt in [idx, idx + 2, idx + 4] {
            let uploaded = upload(&case, salt, &stream)?;
            // SAFETY: the tensors have their shapes, were written on the stream, and live until the answer is there.
            let got = unsafe { postprocessor.process(&uploaded.tensors, &case.metas, stream_of(&stream)) };
            compare::compare(&expected, &got.map_err(|error| format!("{name}: {error}"))?)
                .map_err(|difference| format!("{name}, salt {salt}: {difference}"))?;
            tally.count("requests of slices and views");
        }
    }
    written_elsewhere(gpu, &context, &mut tally)?;
    stream.synchronize().map_err(text)?;
    tally.outcome()
}

/// The logits are copied on one stream, behind long work; the request on another one waits for them, on the device.
fn written_elsewhere(gpu: &Gpu, context: &Arc<CudaContext>, tally: &mut Tally) -> Result<(), String> {
    let (writing, reading) = (context.new_stream().map_err(text)?, context.new_stream().map_err(text)?);
    let [case, ..] = &variants(MaskFormat::Rle)[..] else { return Err("no variants".to_string()) };
    let expected = case.reference();
    let mut postprocessor = gpu.postprocessor_for(case, &How::DEFAULT).map_err(text)?;
    let mut uploaded = upload(case, 0, &writing)?;
    let OwnedData::F32(logits) = &case.logits.data else { return Err("the variants are f32".to_string()) };
    let source = writing.clone_htod(logits).map_err(text)?;
    let mut blocks = writing.alloc_zeros::<u8>(1 << 30).map_err(text)?;
    for _ in 0..3 {
        // Zeros are logits of another answer: what is read too early shows.
        let mut target = writing.alloc_zeros::<f32>(logits.len()).map_err(text)?;
        writing.synchronize().map_err(text)?;
        for _ in 0..10 {
            writing.memset_zeros(&mut blocks).map_err(text)?;
        }
        writing.memcpy_dtod(&source, &mut target).map_err(text)?;
        uploaded.tensors.logits = DeviceTensor::from_cudarc(&target, &reading);
        // SAFETY: the tensors have their shapes, `reading` waits for their writer, and they live until the answer is there.
        let got = unsafe { postprocessor.process(&uploaded.tensors, &case.metas, stream_of(&reading)) };
        compare::compare(&expected, &got.map_err(text)?)
            .map_err(|difference| format!("logits that another stream writes: {difference}"))?;
        tally.count("requests behind another stream");
    }
    Ok(())
}

/// Keeps the memory of a managed tensor, and says when it is gone.
struct Producer {
    _memory: CudaSlice<u8>,
    _alive: Arc<()>,
}

/// A tensor as another framework would export it: `offset` bytes into its memory.
fn managed<M: ManagedTensorBase>(
    tensor: &OwnedTensor,
    offset: usize,
    device: usize,
    alive: &Arc<()>,
    stream: &Arc<CudaStream>,
) -> Result<Managed<M>, String> {
    let mut bytes = vec![0xffu8; offset];
    bytes.extend_from_slice(tensor.bytes());
    let memory = stream.clone_htod(&bytes).map_err(text)?;
    let address = memory.device_ptr(stream).0;
    let producer = Producer { _memory: memory, _alive: alive.clone() };
    let (code, bits) = match tensor.dtype() {
        DType::F32 => (DLDataTypeCode::FLOAT, 32),
        DType::F16 => (DLDataTypeCode::FLOAT, 16),
        DType::Bf16 => (DLDataTypeCode::BFLOAT, 16),
    };
    let prepared = Dynamic::compact(tensor.shape.clone()).prepare_as::<M>().map_err(text)?;
    let mut initialized = prepared.initialize(Box::new(producer));
    initialized
        .set_data(address as *mut std::ffi::c_void)
        .set_byte_offset(offset as u64)
        .set_device(DLDevice::cuda(device as i32))
        .set_dtype(DLDataType::scalar(code, bits));
    // SAFETY: data, shape and strides live as long as the tensor, which owns them.
    Ok(unsafe { initialized.finish() })
}

/// Requests in managed tensors of the plain and of the versioned layout, on memory of the device.
pub fn dlpack(gpu: &Gpu) -> Outcome {
    let context = CudaContext::new(gpu.device).map_err(text)?;
    let stream = context.new_stream().map_err(text)?;
    let mut tally = Tally::default();
    for (idx, (name, case)) in few_fixtures().into_iter().enumerate() {
        dlpack_request::<DLManagedTensor>(gpu, &case, idx, &stream, &mut tally)
            .and_then(|()| dlpack_request::<DLManagedTensorVersioned>(gpu, &case, idx + 1, &stream, &mut tally))
            .map_err(|message| format!("{name}: {message}"))?;
    }
    stream.synchronize().map_err(text)?;
    tally.outcome()
}

fn dlpack_request<M: ManagedTensorBase>(
    gpu: &Gpu,
    case: &RequestCase,
    salt: usize,
    stream: &Arc<CudaStream>,
    tally: &mut Tally,
) -> Result<(), String> {
    let alive = Arc::new(());
    let mut postprocessor = gpu.postprocessor_for(case, &How::ALL[salt % 4]).map_err(text)?;
    let make = |tensor: &OwnedTensor, salt: usize| {
        managed::<M>(tensor, PADDING[salt % PADDING.len()] * tensor.dtype().size(), gpu.device, &alive, stream)
    };
    let boxes = make(&case.boxes, salt)?;
    let logits = make(&case.logits, salt + 1)?;
    let masks = case.masks.as_ref().map(|masks| make(masks, salt + 2)).transpose()?;
    let (device, shape, batch) = (postprocessor.device(), postprocessor.plan().spec.shape, case.metas.len());
    let tensors = DeviceTensors::from_dlpack(&boxes, &logits, masks.as_ref(), device, &shape, batch).map_err(text)?;
    ensure(tensors.masks.is_some() == case.masks.is_some(), "masks that were given are not taken")?;
    // SAFETY: the tensors have their shapes, were written on the stream, and live until the answer is there.
    let got = unsafe { postprocessor.process(&tensors, &case.metas, stream_of(stream)) };
    compare::compare(&case.reference(), &got.map_err(text)?).map_err(text)?;
    tally.count("requests in managed tensors");
    // What lies elsewhere, or has another shape, is refused by name.
    let elsewhere = DeviceTensors::from_dlpack(&boxes, &logits, None, device + 1, &shape, batch);
    ensure(matches!(elsewhere, Err(Error::WrongDevice { field: "boxes", .. })), "a tensor of another device")?;
    let larger = DeviceTensors::from_dlpack(&boxes, &logits, None, device, &shape, batch + 1);
    let is_shape = matches!(larger, Err(Error::Request(CoreError::Shape { field: "boxes", .. })));
    ensure(is_shape, "a tensor of another batch")?;
    tally.add("refusals", 2);
    let num_alive = Arc::strong_count(&alive);
    drop((boxes, logits, masks));
    ensure(num_alive > 2 && Arc::strong_count(&alive) == 1, "the producer's memory is not freed with its tensors")
}

//! The GPU suite for `cust`: requests in its buffers, on its streams, in its context, equal to the reference bit for bit.
//!
//! A program of its own, because `cust` links libcuda: without a driver it does not even start. It needs `cust`'s feature
//! to build, and a libcuda to link; `cargo xtask gpu-test` makes one that will do.
#![allow(unsafe_code, reason = "device pointers and streams are only as good as the caller's word")]

use std::{any::Any, path::PathBuf, process::ExitCode, thread};

use clap::Parser;
use cust::{
    context::{Context, CurrentContext},
    error::CudaError,
    memory::DeviceBuffer,
    prelude::DeviceSlice,
    stream::{Stream as CustStream, StreamFlags},
};
use rfdetr_post_core::{MaskFormat, Options, Size, plan::PlanSpec, request::ModelShape};
use rfdetr_post_cuda::{
    CudaConfig, CudaPostprocessor, DeviceChoice, DeviceTensor, DeviceTensors, Error, LaunchMode, ResultPlace, Stream,
    Ticket,
};
use rfdetr_post_tests::{
    case::{OwnedData, OwnedTensor, RequestCase},
    compare,
    random::Random,
    suite::{self, ensure, few_fixtures, text, variants},
    tally::{Outcome, Sum, Tally},
};

#[derive(Parser)]
#[command(about = "The GPU suite of rfdetr-post for cust: device = reference, bit for bit")]
struct Flags {
    /// Folder of the fixtures; default: `fixtures` beside the program, or else the source tree's
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Rounds of requests in flight on two streams
    #[arg(long, value_name = "N", default_value_t = 50)]
    rounds: u64,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let mut sum = Sum::default();
    if let Err(message) = suite::use_fixtures(flags.fixtures) {
        sum.add("setup", || Err(message));
    }
    // Before `cust` makes one.
    sum.add("without-context", without_context);
    // Dropped last: everything else lives in it.
    match cust::quick_init() {
        Err(error) => sum.add("cust-setup", || Err(cust_text(error))),
        Ok(context) => {
            if sum.failed == 0 {
                sum.add("cust-requests", || requests(&context));
                sum.add("cust-in-flight", || in_flight(flags.rounds));
            }
        }
    }
    sum.finish()
}

/// `CurrentContext` makes no context behind the caller's back.
fn without_context() -> Outcome {
    match CudaPostprocessor::new(config(smallest())) {
        Err(Error::NoContext) => Ok("refused".to_string()),
        other => Err(format!("no context, but: {:?}", other.map(drop))),
    }
}

/// In the context that is current, like everything of `cust`'s.
fn config(spec: PlanSpec) -> CudaConfig {
    CudaConfig { device: DeviceChoice::CurrentContext, ..CudaConfig::new(spec) }
}

fn smallest() -> PlanSpec {
    PlanSpec {
        shape: ModelShape { num_queries: 1, num_classes: 1, mask_grid: None },
        max_batch: 1,
        max_image: Size::new(1, 1),
        options: Options { mask_format: MaskFormat::None, ..Options::default() },
        mask_capacity: None,
    }
}

fn new_stream() -> Result<CustStream, String> {
    CustStream::new(StreamFlags::NON_BLOCKING, None).map_err(cust_text)
}

/// The error's name: its text is asked of the driver, and that may fail, too.
fn cust_text(error: CudaError) -> String {
    format!("cust: {error:?}")
}

fn stream_of(stream: &CustStream) -> Stream {
    // SAFETY: every test waits for its tickets before it drops its streams, which are of the current context.
    unsafe { Stream::from_cust(stream) }
}

/// A request's tensors, and the buffers that they are in.
struct Uploaded {
    tensors: DeviceTensors,
    _buffers: Vec<Box<dyn Any>>,
}

/// f32 as buffers of f32, halves as their bytes, `padding` elements into the buffer.
fn upload(case: &RequestCase, padding: usize) -> Result<Uploaded, String> {
    let mut buffers: Vec<Box<dyn Any>> = Vec::new();
    let mut one = |tensor: &OwnedTensor| -> Result<DeviceTensor, String> {
        if let OwnedData::F32(data) = &tensor.data {
            let buffer = DeviceBuffer::from_slice(&[&vec![0.0f32; padding], &data[..]].concat()).map_err(cust_text)?;
            let slice: DeviceSlice<f32> = buffer.index(padding..buffer.len());
            let read = DeviceTensor::from_cust(&slice);
            buffers.push(Box::new(buffer));
            return Ok(read);
        }
        let padding = padding * tensor.dtype().size();
        let buffer = DeviceBuffer::from_slice(&[&vec![0u8; padding], tensor.bytes()].concat()).map_err(cust_text)?;
        let slice: DeviceSlice<u8> = buffer.index(padding..buffer.len());
        let read = DeviceTensor::from_cust_bytes(&slice, tensor.dtype());
        buffers.push(Box::new(buffer));
        Ok(read)
    };
    let tensors = DeviceTensors {
        boxes: one(&case.boxes)?,
        logits: one(&case.logits)?,
        masks: case.masks.as_ref().map(&mut one).transpose()?,
    };
    // The copies may still be on their way to the device.
    CurrentContext::synchronize().map_err(cust_text)?;
    Ok(Uploaded { tensors, _buffers: buffers })
}

fn check(case: &RequestCase, got: Result<rfdetr_post_core::Detections, Error>) -> Result<(), String> {
    compare::compare(&case.reference(), &got.map_err(text)?).map_err(text)
}

/// Requests of every element type and mask format, one after the other on one stream.
fn requests(context: &Context) -> Outcome {
    let stream = new_stream()?;
    let loaded = CudaPostprocessor::new(config(smallest())).map_err(text)?;
    let mut tally = Tally::default();
    for (idx, (name, case)) in few_fixtures().into_iter().enumerate() {
        let run = |tally: &mut Tally| {
            let config = CudaConfig {
                slots: 1,
                launch: if idx.is_multiple_of(2) { LaunchMode::Graph } else { LaunchMode::Stream },
                result: if idx % 3 < 2 { ResultPlace::Host } else { ResultPlace::Device },
                ..config(case.plan_spec().map_err(text)?)
            };
            let mut postprocessor = CudaPostprocessor::new_beside(&loaded, config).map_err(text)?;
            for padding in [0, 1 + idx % 5] {
                let uploaded = upload(&case, padding)?;
                // SAFETY: the tensors have their shapes, are written, and live until the answer is there.
                let got = unsafe { postprocessor.process(&uploaded.tensors, &case.metas, stream_of(&stream)) };
                check(&case, got)?;
                tally.count("requests equal");
                tally.count(format!("with {:?}", case.logits.dtype()));
            }
            // Whatever was pushed was popped.
            let current = CurrentContext::get_device().map_err(cust_text)?.as_raw();
            ensure(current as usize == postprocessor.device(), "another context is current now")
        };
        run(&mut tally).map_err(|message| format!("{name}: {message}"))?;
    }
    // A thread without a context has none of `cust`'s either, until it is given one.
    let on_thread = thread::scope(|scope| {
        let run = || {
            let without = CudaPostprocessor::new(config(smallest()));
            ensure(matches!(without, Err(Error::NoContext)), "a new thread has a context")?;
            CurrentContext::set_current(context).map_err(cust_text)?;
            CudaPostprocessor::new(config(smallest())).map(drop).map_err(text)
        };
        scope.spawn(run).join()
    });
    on_thread.map_err(|_| "a panic on a thread".to_string())??;
    tally.count("threads with the context set");
    stream.synchronize().map_err(cust_text)?;
    tally.outcome()
}

/// Four requests in flight on two streams, waited for in any order, some dropped.
fn in_flight(num_rounds: u64) -> Outcome {
    let streams = [new_stream()?, new_stream()?];
    let mut tally = Tally::default();
    for mask_format in [MaskFormat::Rle, MaskFormat::BitPacked] {
        let cases = variants(mask_format);
        let expected: Vec<_> = cases.iter().map(RequestCase::reference).collect();
        let uploaded: Vec<_> = (0..3).map(|which| upload(&cases[which], which)).collect::<Result<_, _>>()?;
        let config = CudaConfig { slots: 4, ..config(cases[0].plan_spec().map_err(text)?) };
        let mut postprocessor = CudaPostprocessor::new(config).map_err(text)?;
        let mut random = Random::new(23);
        for round in 0..num_rounds {
            let mut tickets: Vec<(usize, Ticket)> = Vec::new();
            for at in 0..4 {
                let which = random.below(3);
                let (tensors, metas) = (&uploaded[which].tensors, &cases[which].metas);
                // SAFETY: the tensors have their shapes, are written, and live until the streams were waited for.
                let ticket = unsafe { postprocessor.enqueue(tensors, metas, stream_of(&streams[at % 2])) };
                tickets.push((which, ticket.map_err(|error| format!("round {round}: {error}"))?));
            }
            random.shuffle(&mut tickets);
            if round % 5 == 4 {
                drop(tickets.pop());
                tally.count("tickets dropped");
            }
            for (which, ticket) in &mut tickets {
                let got = ticket.wait().and_then(|mut answer| answer.detections()).map_err(text)?;
                compare::compare(&expected[*which], &got)
                    .map_err(|difference| format!("round {round}: {difference}"))?;
                tally.count("answers");
            }
            drop(tickets);
            // A dropped ticket's slot is free when its work has ended.
            streams.iter().try_for_each(|stream| stream.synchronize()).map_err(cust_text)?;
        }
    }
    tally.outcome()
}

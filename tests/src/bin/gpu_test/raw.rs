//! Tickets, streams and bad pointers. Memory, streams and events are `cudarc`'s: a caller of ours has its own.
#![allow(unsafe_code, reason = "device pointers and streams are only as good as the caller's word")]

use std::{
    ffi::c_void,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, result, sys};
use rfdetr_post_core::{
    DType, DetectionRow, Detections, Error as CoreError, ImageMeta, MaskFormat, MaskRef, Size, packed::PackedRow,
};
use rfdetr_post_cuda::{
    CudaConfig, CudaFleet, CudaPostprocessor, DeviceTensor, DeviceTensors, Error, LaunchMode, ResultPlace, Stream,
    Ticket, device_count,
};
use rfdetr_post_tests::{
    case::{OwnedTensor, RequestCase},
    compare,
    random::Random,
    suite::{ensure, text, variants},
    tally::{Outcome, Tally, parallel},
};

use crate::{
    judge::{Gpu, How},
    parts::tiled,
};

/// A request's tensors in device memory.
struct Uploaded {
    tensors: DeviceTensors,
    memory: Vec<CudaSlice<u8>>,
}

fn upload(case: &RequestCase, stream: &Arc<CudaStream>) -> Result<Uploaded, String> {
    let mut memory = Vec::new();
    let mut one = |tensor: &OwnedTensor| -> Result<DeviceTensor, String> {
        let slice = stream.clone_htod(tensor.bytes()).map_err(text)?;
        let address = slice.device_ptr(stream).0;
        memory.push(slice);
        Ok(DeviceTensor { address, dtype: tensor.dtype() })
    };
    let tensors = DeviceTensors {
        boxes: one(&case.boxes)?,
        logits: one(&case.logits)?,
        masks: case.masks.as_ref().map(&mut one).transpose()?,
    };
    stream.synchronize().map_err(text)?;
    Ok(Uploaded { tensors, memory })
}

fn raw_stream(stream: &CudaStream) -> Stream {
    // SAFETY: every test ends its tickets before its streams.
    unsafe { Stream::from_raw(stream.cu_stream().cast()) }
}

fn enqueue(
    postprocessor: &mut CudaPostprocessor,
    uploaded: &Uploaded,
    metas: &[ImageMeta],
    stream: &CudaStream,
) -> Result<Ticket, Error> {
    // SAFETY: the tensors were uploaded with their shapes, and live until the test has waited for the stream.
    unsafe { postprocessor.enqueue(&uploaded.tensors, metas, raw_stream(stream)) }
}

fn same(what: &str, expected: &Detections, got: Result<Detections, Error>) -> Result<(), String> {
    let got = got.map_err(|error| format!("{what}: {error}"))?;
    compare::compare(expected, &got).map_err(|difference| format!("{what}: {difference}"))
}

fn answer(ticket: &mut Ticket) -> Result<Detections, Error> {
    ticket.wait()?.detections()
}

/// Requests in the memory of one device, for a fleet.
pub struct OnDevice {
    /// The device.
    pub device: usize,
    stream: Arc<CudaStream>,
    uploaded: Vec<Uploaded>,
}

impl OnDevice {
    /// Uploads `cases`.
    pub fn new(device: usize, cases: &[RequestCase]) -> Result<Self, String> {
        let stream = CudaContext::new(device).and_then(|context| context.new_stream()).map_err(text)?;
        let uploaded = cases.iter().map(|case| upload(case, &stream)).collect::<Result<_, _>>()?;
        Ok(Self { device, stream, uploaded })
    }

    /// Launches request `which` on the memory's device.
    pub fn enqueue(&self, fleet: &mut CudaFleet, which: usize, metas: &[ImageMeta]) -> Result<Ticket, Error> {
        self.enqueue_on(self.device, fleet, which, metas)
    }

    /// Launches request `which` and says that its memory is on `device`.
    pub fn enqueue_on(
        &self,
        device: usize,
        fleet: &mut CudaFleet,
        which: usize,
        metas: &[ImageMeta],
    ) -> Result<Ticket, Error> {
        // SAFETY: the tensors were uploaded with their shapes, and live until the test has waited for its tickets; a wrong
        // device is refused before anything is launched.
        unsafe { fleet.enqueue(device, &self.uploaded[which].tensors, metas, raw_stream(&self.stream)) }
    }
}

/// Everything that one can do with tickets, for each launch mode and result place.
pub fn tickets(gpu: &Gpu) -> Outcome {
    let context = CudaContext::new(gpu.device).map_err(text)?;
    let mut tally = Tally::default();
    for how in How::ALL {
        for mask_format in [MaskFormat::Rle, MaskFormat::Dense, MaskFormat::None] {
            let round = TicketRound::new(gpu, &context, how, mask_format)?;
            round.run(&mut tally).map_err(|message| format!("{how:?}, {mask_format:?}: {message}"))?;
        }
    }
    tally.outcome()
}

struct TicketRound<'a> {
    gpu: &'a Gpu,
    context: &'a Arc<CudaContext>,
    config: CudaConfig,
    cases: Vec<RequestCase>,
    expected: Vec<Detections>,
    stream: Arc<CudaStream>,
    uploaded: Vec<Uploaded>,
}

impl<'a> TicketRound<'a> {
    fn new(gpu: &'a Gpu, context: &'a Arc<CudaContext>, how: How, mask_format: MaskFormat) -> Result<Self, String> {
        let cases = variants(mask_format);
        let expected = cases.iter().map(RequestCase::reference).collect();
        let stream = context.new_stream().map_err(text)?;
        let uploaded = cases.iter().map(|case| upload(case, &stream)).collect::<Result<_, _>>()?;
        let config = CudaConfig { slots: 3, ..gpu.config(cases[0].plan_spec().map_err(text)?, &how) };
        Ok(Self { gpu, context, config, cases, expected, stream, uploaded })
    }

    fn postprocessor(&self) -> Result<CudaPostprocessor, String> {
        self.gpu.postprocessor(self.config.clone()).map_err(text)
    }

    fn enqueue(&self, postprocessor: &mut CudaPostprocessor, which: usize) -> Result<Ticket, Error> {
        enqueue(postprocessor, &self.uploaded[which], &self.cases[which].metas, &self.stream)
    }

    fn three(&self, postprocessor: &mut CudaPostprocessor) -> Result<[Ticket; 3], String> {
        let mut one = |which| self.enqueue(postprocessor, which).map_err(text);
        Ok([one(0)?, one(1)?, one(2)?])
    }

    fn run(&self, tally: &mut Tally) -> Result<(), String> {
        let is_different = |i: usize, j: usize| compare::compare(&self.expected[i], &self.expected[j]).is_err();
        ensure(is_different(0, 1) && is_different(1, 2), "the requests' answers are all alike")?;
        self.out_of_order(tally)?;
        self.dropped(tally)?;
        self.polled(tally)?;
        self.outliving(tally)?;
        self.chained(tally)?;
        self.not_waiting(tally)?;
        self.captured(tally)?;
        self.empty(tally)?;
        self.one_slot(tally)?;
        self.hurried(tally)?;
        self.stream.synchronize().map_err(text)
    }

    fn out_of_order(&self, tally: &mut Tally) -> Result<(), String> {
        let mut postprocessor = self.postprocessor()?;
        for _ in 0..8 {
            let mut tickets = self.three(&mut postprocessor)?;
            match self.enqueue(&mut postprocessor, 0) {
                Err(Error::Busy { slots: 3 }) => tally.count("refused while every slot was in flight"),
                other => return Err(format!("the fourth ticket of three slots: {:?}", other.map(drop))),
            }
            for which in [2, 0, 1, 1, 0, 2] {
                same("out of order", &self.expected[which], answer(&mut tickets[which]))?;
                ensure(tickets[which].is_ready() == Ok(true), "a ticket that was waited for is not ready")?;
                tally.count("answers out of order and again");
            }
            // Rows without a copy, from the same ticket.
            let mut waited = tickets[1].wait().map_err(text)?;
            let packed = waited.packed().map_err(text)?.ok_or("no packed answer")?;
            ensure(packed.num_detections(0) as usize == self.expected[1].images[0].len(), "the packed header")?;
        }
        Ok(())
    }

    /// Tickets that nobody waits for; a slot is free when its work has ended.
    fn dropped(&self, tally: &mut Tally) -> Result<(), String> {
        let mut postprocessor = self.postprocessor()?;
        for round in 0..200 {
            let which = round % 3;
            let mut ticket = loop {
                match self.enqueue(&mut postprocessor, which) {
                    Ok(ticket) => break ticket,
                    Err(Error::Busy { .. }) => tally.count("retries while dropped work was in flight"),
                    Err(error) => return Err(format!("after a drop: {error}")),
                }
            };
            if round % 5 > 0 {
                drop(ticket);
                tally.count("tickets dropped in flight");
            } else {
                same("among dropped ones", &self.expected[which], answer(&mut ticket))?;
            }
        }
        Ok(())
    }

    fn polled(&self, tally: &mut Tally) -> Result<(), String> {
        let mut postprocessor = self.postprocessor()?;
        for which in [0, 1, 2, 0] {
            let mut ticket = self.enqueue(&mut postprocessor, which).map_err(text)?;
            let start = Instant::now();
            while !ticket.is_ready().map_err(text)? {
                ensure(start.elapsed() < Duration::from_secs(10), "not ready after 10 seconds")?;
            }
            same("polled", &self.expected[which], answer(&mut ticket))?;
            tally.count("answers polled for");
        }
        Ok(())
    }

    /// Tickets that live longer than their postprocessor, and on another thread.
    fn outliving(&self, tally: &mut Tally) -> Result<(), String> {
        let mut postprocessor = self.postprocessor()?;
        let [mut first, mut second, third] = self.three(&mut postprocessor)?;
        drop(postprocessor);
        drop(third);
        let got = thread::scope(|scope| scope.spawn(|| answer(&mut second)).join());
        same("on another thread", &self.expected[1], got.map_err(|_| "a panic".to_string())?)?;
        same("without its postprocessor", &self.expected[0], answer(&mut first))?;
        tally.add("answers after their postprocessor was gone", 2);
        Ok(())
    }

    /// Work on another stream, behind a ticket's event, reads the device's answer.
    fn chained(&self, tally: &mut Tally) -> Result<(), String> {
        let mut postprocessor = self.postprocessor()?;
        let other = self.context.new_stream().map_err(text)?;
        self.context.bind_to_thread().map_err(text)?;
        for which in [1, 2, 0] {
            let mut ticket = self.enqueue(&mut postprocessor, which).map_err(text)?;
            let event = ticket.event().map_err(text)?;
            let at = ticket.device_answer();
            let expected = &self.expected[which].images[0];
            let mut num_detections = u32::MAX;
            let mut rows = vec![PackedRow::default(); expected.len()];
            let copy = |to: *mut c_void, from: u64, len: usize| {
                // SAFETY: both sides are as long as said; unified addresses, because the answer may lie on the host.
                unsafe { sys::cuMemcpyAsync(to as u64, from, len, other.cu_stream()) }.result().map_err(text)
            };
            // SAFETY: stream and event are alive.
            unsafe { sys::cuStreamWaitEvent(other.cu_stream(), event.cast(), 0) }.result().map_err(text)?;
            copy((&raw mut num_detections).cast(), at.headers_at, 4)?;
            copy(rows.as_mut_ptr().cast(), at.rows_at, size_of_val(&rows[..]))?;
            other.synchronize().map_err(text)?;
            ensure(ticket.is_ready() == Ok(true), "the event was reached, but the ticket is not ready")?;
            ensure(num_detections as usize == expected.len(), "the header behind the event")?;
            for (row, expected) in rows.iter().zip(&expected.rows) {
                let key = |row: &DetectionRow| (row.query_idx, row.class_id, row.confidence.to_bits(), row.mask_area);
                ensure(key(&row.detection(0)) == key(expected), "a row behind the event")?;
            }
            let capacity = postprocessor.plan().mask_capacity as usize;
            for idx in 0..rows.len() {
                let (from, mask) = match expected.mask(idx) {
                    Some(MaskRef::Rle(mask)) => (at.run_lengths_at + (idx * capacity) as u64, mask),
                    Some(MaskRef::Dense(mask)) => {
                        (at.payload_at + (idx * mask.len().next_multiple_of(16)) as u64, mask)
                    }
                    None => continue,
                    _ => return Err("a format that this test does not read".to_string()),
                };
                let mut got = vec![0xffu8; mask.len()];
                copy(got.as_mut_ptr().cast(), from, got.len())?;
                other.synchronize().map_err(text)?;
                ensure(got == mask, &format!("the mask of row {idx} behind the event"))?;
                tally.count("masks read on the device");
            }
            tally.count("answers read on the device behind an event");
        }
        Ok(())
    }

    /// A request behind long work is not ready, and enqueueing it does not wait for that work.
    fn not_waiting(&self, tally: &mut Tally) -> Result<(), String> {
        let mut postprocessor = self.postprocessor()?;
        for which in [0, 1, 2] {
            // The first use of a slot builds its graph.
            same(
                "warm-up",
                &self.expected[which],
                self.enqueue(&mut postprocessor, which).and_then(|mut t| answer(&mut t)),
            )?;
        }
        let mut blocks = self.stream.alloc_zeros::<u8>(1 << 30).map_err(text)?;
        self.stream.synchronize().map_err(text)?;
        for which in [2, 0, 1] {
            // Some 20 GiB of fills, which take any device milliseconds.
            for _ in 0..20 {
                self.stream.memset_zeros(&mut blocks).map_err(text)?;
            }
            let start = Instant::now();
            let mut ticket = self.enqueue(&mut postprocessor, which).map_err(text)?;
            let enqueued = start.elapsed();
            ensure(ticket.is_ready() == Ok(false), &format!("ready after {enqueued:?} behind 20 GiB of fills"))?;
            same("behind long work", &self.expected[which], answer(&mut ticket))?;
            ensure(start.elapsed() > enqueued, "time stands still")?;
            tally.count("requests enqueued behind long work");
        }
        Ok(())
    }

    /// A graph launch cannot be captured: nobody repeats it without the slot, whose result is then looked at before its flag.
    fn not_captured(&self, tally: &mut Tally) -> Result<(), String> {
        let mut postprocessor = self.postprocessor()?;
        let stream = self.context.new_stream().map_err(text)?;
        let uploaded = upload(&self.cases[0], &stream)?;
        let before = enqueue(&mut postprocessor, &uploaded, &self.cases[0].metas, &stream);
        same("before a capture", &self.expected[0], before.and_then(|mut ticket| answer(&mut ticket)))?;
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(text)?;
        let ticket = enqueue(&mut postprocessor, &uploaded, &self.cases[0].metas, &stream);
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags_enum(0));
        ensure(ticket.is_err(), &format!("a graph launch was captured: {:?}", graph.map(|graph| graph.is_some())))?;
        tally.count("captures of graph launches refused");
        Ok(())
    }

    /// A request captured into a graph of the caller's: each launch of it answers what is in the tensors by then. Only for
    /// stream launches, and with the result on the host: an event that was captured cannot be asked.
    fn captured(&self, tally: &mut Tally) -> Result<(), String> {
        if self.config.launch == LaunchMode::Graph {
            return self.not_captured(tally);
        }
        if (self.config.launch, self.config.result) != (LaunchMode::Stream, ResultPlace::Host) {
            return Ok(());
        }
        let mut postprocessor = self.postprocessor()?;
        let stream = self.context.new_stream().map_err(text)?;
        let mut uploaded = upload(&self.cases[0], &stream)?;
        // The pointers are checked before the capture, and kernels loaded.
        let before = enqueue(&mut postprocessor, &uploaded, &self.cases[0].metas, &stream);
        same("before the capture", &self.expected[0], before.and_then(|mut ticket| answer(&mut ticket)))?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(text)?;
        let ticket = enqueue(&mut postprocessor, &uploaded, &self.cases[0].metas, &stream);
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags_enum(0)).map_err(text)?;
        let (mut ticket, graph) = (ticket.map_err(text)?, graph.ok_or("nothing was captured")?);
        for which in [0, 1, 2, 1] {
            let case = &self.cases[which];
            let tensors = [Some(&case.boxes), Some(&case.logits), case.masks.as_ref()];
            for (tensor, memory) in tensors.into_iter().flatten().zip(&mut uploaded.memory) {
                stream.memcpy_htod(tensor.bytes(), memory).map_err(text)?;
            }
            graph.launch().map_err(text)?;
            // A ticket knows of its first launch only; behind later ones the stream is waited for.
            stream.synchronize().map_err(text)?;
            same("in a graph of the caller's", &self.expected[which], answer(&mut ticket))?;
            tally.count("answers of a captured request");
        }
        drop(graph);
        drop(ticket);
        same(
            "after the capture",
            &self.expected[2],
            self.enqueue(&mut postprocessor, 2).and_then(|mut t| answer(&mut t)),
        )
    }

    /// Requests one after the other in one slot, which keeps what it can of the one before: the same again, other tensors, other
    /// images, fewer and more of them, in every order.
    fn one_slot(&self, tally: &mut Tally) -> Result<(), String> {
        let other_size = ImageMeta::stretch(Size::new(200, 151), Size::new(312, 312)).map_err(text)?;
        let mut requests = Vec::new();
        for times in [1, 12] {
            for which in [0, 1] {
                let case = tiled(&self.cases[which], times);
                let resized = RequestCase { metas: vec![other_size; times], ..case.clone() };
                let uploaded = upload(&case, &self.stream)?;
                let answers = [case.reference(), resized.reference()];
                ensure(compare::compare(&answers[0], &answers[1]).is_err(), "the sizes' answers are alike")?;
                requests.push((uploaded, [case.metas, resized.metas], answers));
            }
        }
        let mut config = CudaConfig { slots: 1, ..self.config.clone() };
        config.spec.max_batch = 12;
        let mut postprocessor = self.gpu.postprocessor(config).map_err(text)?;
        let states = 2 * requests.len();
        for (before, after) in (0..states * states).map(|pair| (pair / states, pair % states)) {
            for state in [before, after, after] {
                let (uploaded, metas, answers) = &requests[state / 2];
                let got = enqueue(&mut postprocessor, uploaded, &metas[state % 2], &self.stream);
                let got = got.and_then(|mut ticket| answer(&mut ticket));
                same(&format!("request {state} of {before} and {after} in one slot"), &answers[state % 2], got)?;
                tally.count("requests in one slot");
            }
        }
        Ok(())
    }

    /// Requests in one slot, each launched as soon as the answer of the one before was seen: what the device still sends of that one
    /// must not be taken for the next one's.
    fn hurried(&self, tally: &mut Tally) -> Result<(), String> {
        let mut postprocessor = self.gpu.postprocessor(CudaConfig { slots: 1, ..self.config.clone() }).map_err(text)?;
        for round in 0..3000 {
            let which = round % 3;
            let mut ticket = self.enqueue(&mut postprocessor, which).map_err(text)?;
            let mut waited = ticket.wait().map_err(|error| format!("request {round} in a hurry: {error}"))?;
            let packed = waited.packed().map_err(text)?.ok_or("no packed answer")?;
            let expected = &self.expected[which].images[0];
            ensure(packed.num_detections(0) as usize == expected.len(), "the header of a request in a hurry")?;
            if let Some(last) = expected.len().checked_sub(1) {
                let key = |row: &DetectionRow| (row.query_idx, row.class_id, row.confidence.to_bits());
                ensure(key(&packed.row(0, last)) == key(&expected.rows[last]), "a row of a request in a hurry")?;
            }
            if round % 64 == 0 {
                same("in a hurry", &self.expected[which], waited.detections())?;
            }
        }
        tally.add("requests in a hurry", 3000);
        Ok(())
    }

    fn empty(&self, tally: &mut Tally) -> Result<(), String> {
        let mut postprocessor = self.postprocessor()?;
        let mut ticket = enqueue(&mut postprocessor, &self.uploaded[0], &[], &self.stream).map_err(text)?;
        ensure(ticket.is_ready() == Ok(true), "an empty batch is not ready at once")?;
        ensure(answer(&mut ticket).map_err(text)?.images.is_empty(), "an empty batch has images")?;
        tally.count("empty batches");
        drop(ticket);
        same("after it", &self.expected[2], self.enqueue(&mut postprocessor, 2).and_then(|mut t| answer(&mut t)))
    }
}

/// Eight threads, each with a postprocessor and a stream of its own, two requests in flight.
pub fn threads(gpu: &Gpu, seconds: u64) -> Outcome {
    let context = CudaContext::new(gpu.device).map_err(text)?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let run = |thread: u64, tally: &mut Tally| {
        let mask_format =
            [MaskFormat::Rle, MaskFormat::Dense, MaskFormat::Counts, MaskFormat::BitPacked][thread as usize % 4];
        let how = How::ALL[thread as usize / 2 % 4];
        let cases = variants(mask_format);
        let expected: Vec<_> = cases.iter().map(RequestCase::reference).collect();
        let stream = context.new_stream().map_err(text)?;
        let uploaded: Vec<_> = cases.iter().map(|case| upload(case, &stream)).collect::<Result<_, _>>()?;
        let spec = cases[0].plan_spec().map_err(text)?;
        let config = CudaConfig { slots: 3, ..gpu.config(spec, &how) };
        // Half of the threads load the kernels themselves.
        let made = if thread.is_multiple_of(2) { gpu.postprocessor(config) } else { CudaPostprocessor::new(config) };
        let mut postprocessor = made.map_err(text)?;
        let mut random = Random::new(thread);
        let mut before: Option<(usize, Ticket)> = None;
        while Instant::now() < until {
            let which = random.below(3);
            let ticket = enqueue(&mut postprocessor, &uploaded[which], &cases[which].metas, &stream).map_err(text)?;
            if let Some((which, mut ticket)) = before.replace((which, ticket)) {
                same("one of two in flight", &expected[which], answer(&mut ticket))?;
                tally.count("answers");
            }
        }
        drop(before);
        stream.synchronize().map_err(text)?;
        tally.count("threads");
        Ok(())
    };
    parallel(8, 8, |thread| format!("thread {thread}"), run).outcome()
}

/// Pointers that are null, misaligned, on the host, on another device, or into too small an allocation.
pub fn pointer_errors(gpu: &Gpu) -> Outcome {
    let context = CudaContext::new(gpu.device).map_err(text)?;
    let stream = context.new_stream().map_err(text)?;
    let case = variants(MaskFormat::Rle).remove(0);
    let expected = case.reference();
    let uploaded = upload(&case, &stream)?;
    let good = uploaded.tensors;
    let how = How { launch: LaunchMode::Graph, result: ResultPlace::Host, ..How::DEFAULT };
    let mut postprocessor = gpu.postprocessor(gpu.config(case.plan_spec().map_err(text)?, &how)).map_err(text)?;
    let on_host = vec![0u8; case.logits.bytes().len() + 16];
    let host_address = (on_host.as_ptr() as u64).next_multiple_of(16);
    let too_small = stream.alloc_zeros::<u8>(case.logits.bytes().len() - 4).map_err(text)?;
    let too_small_at = too_small.device_ptr(&stream).0;

    let mut tally = Tally::default();
    let mut expect = |what: &str, is_right: fn(&Error) -> bool, tensors: DeviceTensors, metas: &[ImageMeta]| {
        // SAFETY: the request is refused before anything is launched, which is what is tested here.
        match unsafe { postprocessor.enqueue(&tensors, metas, raw_stream(&stream)) } {
            Err(error) if is_right(&error) => tally.count("errors of the right kind"),
            Err(error) => tally.fail(&format!("{what}: the wrong error: {error}")),
            Ok(_) => tally.fail(&format!("{what}: no error")),
        }
    };
    let at = |address: u64, dtype: DType| DeviceTensor { address, dtype };
    let is_address = |error: &Error| matches!(error, Error::Address { .. });
    let metas = &case.metas[..];
    expect("null boxes", is_address, DeviceTensors { boxes: at(0, DType::F32), ..good }, metas);
    expect("null logits", is_address, DeviceTensors { logits: at(0, DType::F32), ..good }, metas);
    expect("null masks", is_address, DeviceTensors { masks: Some(at(0, DType::F32)), ..good }, metas);
    expect("boxes at 2", is_address, DeviceTensors { boxes: at(good.boxes.address + 2, DType::F32), ..good }, metas);
    expect("logits at 1", is_address, DeviceTensors { logits: at(good.logits.address + 1, DType::F16), ..good }, metas);
    let is_elsewhere = |error: &Error| matches!(error, Error::WrongDevice { field: "logits", .. });
    expect("host logits", is_elsewhere, DeviceTensors { logits: at(host_address, DType::F32), ..good }, metas);
    let is_short = |error: &Error| matches!(error, Error::Allocation { field: "logits", .. });
    expect("short logits", is_short, DeviceTensors { logits: at(too_small_at, DType::F32), ..good }, metas);
    let past = at(good.logits.address + case.logits.bytes().len() as u64 - 64, DType::F32);
    expect("logits from their end", is_short, DeviceTensors { logits: past, ..good }, metas);
    let is_missing = |error: &Error| matches!(error, Error::Request(CoreError::MasksMissing { .. }));
    expect("no masks", is_missing, DeviceTensors { masks: None, ..good }, metas);
    let is_plan = |error: &Error| matches!(error, Error::Request(CoreError::Plan { .. }));
    expect("two images of one", is_plan, good, &[metas[0], metas[0]]);
    let larger = ImageMeta::stretch(Size::new(312, 177), metas[0].network).map_err(text)?;
    expect("a larger image", is_plan, good, &[larger]);
    if device_count().map_err(text)? > 1 {
        let other = CudaContext::new(usize::from(gpu.device == 0)).map_err(text)?;
        let other_stream = other.new_stream().map_err(text)?;
        let there = other_stream.alloc_zeros::<u8>(case.logits.bytes().len()).map_err(text)?;
        let logits = at(there.device_ptr(&other_stream).0, DType::F32);
        expect("logits on another device", is_elsewhere, DeviceTensors { logits, ..good }, metas);
    } else {
        println!("  pointer-errors: one device only, so none of another device's memory");
    }
    let ticket = enqueue(&mut postprocessor, &uploaded, metas, &stream);
    same("after the errors", &expected, ticket.and_then(|mut ticket| answer(&mut ticket)))?;
    tally.count("answers after them");
    tally.outcome()
}

/// Bytes of an allocation that is unmapped when it is freed, not kept for the next one.
const LARGE_BYTES: usize = 256 << 20;

/// A kernel reads memory that is gone, which breaks the context for good: each call says so by an error of its type, and
/// nothing panics or hangs. For a process of its own.
pub fn broken_context(gpu: &Gpu) -> Outcome {
    let context = CudaContext::new(gpu.device).map_err(text)?;
    let stream = context.new_stream().map_err(text)?;
    let case = variants(MaskFormat::Rle).remove(0);
    let mut uploaded = upload(&case, &stream)?;
    // SAFETY: as large as said, and freed once.
    let logits_at = unsafe { result::malloc_sync(LARGE_BYTES) }.map_err(text)?;
    // SAFETY: the allocation is larger than the logits.
    unsafe { result::memcpy_htod_sync(logits_at, case.logits.bytes()) }.map_err(text)?;
    uploaded.tensors.logits = DeviceTensor { address: logits_at, dtype: DType::F32 };
    let config = gpu.config(case.plan_spec().map_err(text)?, &How::DEFAULT);
    let mut postprocessor = gpu.postprocessor(CudaConfig { slots: 2, ..config.clone() }).map_err(text)?;
    let good = enqueue(&mut postprocessor, &uploaded, &case.metas, &stream);
    same("before", &case.reference(), good.and_then(|mut ticket| answer(&mut ticket)))?;
    stream.synchronize().map_err(text)?;
    let mut event = std::ptr::null_mut();
    // SAFETY: the context is current.
    unsafe { sys::cuEventCreate(&mut event, 0) }.result().map_err(text)?;
    // SAFETY: allocated above. That it is read again is the fault that this test is about.
    unsafe { result::free_sync(logits_at) }.map_err(text)?;
    let is_sticky = |error: &Error| matches!(error, Error::Driver { is_sticky: true, .. });
    // Pointers that were checked for the request before are not checked again, so the kernel is what finds out.
    let mut ticket = enqueue(&mut postprocessor, &uploaded, &case.metas, &stream).map_err(text)?;
    match answer(&mut ticket) {
        Err(error) if is_sticky(&error) => println!("  a broken context: {error}"),
        other => return Err(format!("a kernel that reads freed memory: {:?}", other.map(drop))),
    }
    ensure(matches!(answer(&mut ticket), Err(error) if is_sticky(&error)), "waiting again is no error")?;
    let next = enqueue(&mut postprocessor, &uploaded, &case.metas, &stream).and_then(|mut ticket| answer(&mut ticket));
    ensure(matches!(next, Err(Error::Driver { .. })), &format!("the next request: {:?}", next.map(drop)))?;
    // SAFETY: created above.
    let asked = unsafe { sys::cuEventQuery(event) };
    // What a slot asks that waits for the flag of an answer that it has.
    ensure(
        asked.result().is_err() && asked != sys::CUresult::CUDA_ERROR_NOT_READY,
        &format!("an idle event: {asked:?}"),
    )?;
    let another = CudaPostprocessor::new(config);
    ensure(matches!(another, Err(Error::Driver { .. })), &format!("another one: {:?}", another.map(drop)))?;
    drop((ticket, postprocessor));
    Ok("4 errors, of which the first two are sticky".to_string())
}

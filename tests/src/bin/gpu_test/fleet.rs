//! Several GPUs. With one only, it is named several times, so that splitting, order and errors are run all the same.
#![allow(unsafe_code, reason = "device pointers and streams are only as good as the caller's word")]

use rfdetr_post_core::{DType, Error as CoreError, ImageMeta, MaskFormat, Tensors};
use rfdetr_post_cuda::{
    CudaConfig, CudaFleet, Error, Ticket, device_count,
    fleet::{AsHostRequest, HostRequest},
};
use rfdetr_post_tests::{
    case::{OwnedTensor, RequestCase},
    compare,
    fixtures::Fixture,
    random::Random,
    suite::{ensure, text, variants},
    tally::{Outcome, Tally},
};

use crate::{
    judge::{Gpu, How},
    parts::tiled,
    raw,
};

/// Every device twice if there are several, otherwise the one of the suite three times.
fn devices(gpu: &Gpu) -> Result<Vec<usize>, String> {
    let count = device_count().map_err(text)?;
    Ok(if count > 1 { (0..count).chain(0..count).collect() } else { vec![gpu.device; 3] })
}

/// Everything that a fleet does.
pub fn fleet(gpu: &Gpu) -> Outcome {
    let devices = devices(gpu)?;
    let mut tally = Tally::default();
    tally.add("postprocessors", devices.len() as u64);
    for (idx, mask_format) in [MaskFormat::Rle, MaskFormat::Dense, MaskFormat::None].into_iter().enumerate() {
        for how in [How::ALL[idx], How::ALL[3 - idx]] {
            batches(gpu, &devices, mask_format, &how, &mut tally)
                .and_then(|()| queue(gpu, &devices, mask_format, &how, &mut tally))
                .map_err(|message| format!("{mask_format:?}, {how:?}: {message}"))?;
        }
    }
    on_devices(gpu, &devices, &mut tally)?;
    capacity(gpu, &devices, &mut tally)?;
    tally.outcome()
}

/// Batches of fewer images than GPUs, of as many, and of many more than travel with the arguments.
fn batches(gpu: &Gpu, devices: &[usize], mask_format: MaskFormat, how: &How, tally: &mut Tally) -> Result<(), String> {
    let three = Fixture::load("torch_cpu", "batch3_mixed").case;
    let three = three.with_options(|options| options.mask_format = mask_format);
    let largest = tiled(&three, devices.len() + 6);
    let mut spec = largest.plan_spec().map_err(text)?;
    // One GPU alone could not take the largest.
    spec.max_batch = spec.max_batch.div_ceil(devices.len());
    let mut fleet = CudaFleet::new(devices, gpu.config(spec, how)).map_err(text)?;
    ensure(fleet.devices() == devices, "the fleet's devices")?;
    for case in [three.image(1), three.clone(), tiled(&three, devices.len()), largest.clone(), three.image(2)] {
        let tensors = *case.request().map_err(text)?.tensors();
        let got = fleet.process_host(&tensors, &case.metas).map_err(text)?;
        compare::compare(&case.reference(), &got)
            .map_err(|difference| format!("a batch of {}: {difference}", case.metas.len()))?;
        tally.count("batches");
    }
    // More than all GPUs hold.
    let case = tiled(&largest, 2);
    let tensors = *case.request().map_err(text)?.tensors();
    let refused = fleet.process_host(&tensors, &case.metas);
    let is_plan = matches!(refused, Err(Error::Request(CoreError::Plan { field: "batch", .. })));
    ensure(is_plan, &format!("a batch of {}: {:?}", case.metas.len(), refused.map(drop)))?;
    tally.count("errors");
    Ok(())
}

/// A request of the queue.
#[derive(Clone, Copy)]
struct Item<'a> {
    at: usize,
    which: usize,
    case: &'a RequestCase,
    /// Its metadata is left out.
    is_bad: bool,
}

impl AsHostRequest for Item<'_> {
    fn as_host_request(&self) -> HostRequest<'_> {
        let masks = self.case.masks.as_ref().map(OwnedTensor::borrow);
        HostRequest {
            tensors: Tensors { boxes: self.case.boxes.borrow(), logits: self.case.logits.borrow(), masks },
            metas: if self.is_bad { &[] } else { &self.case.metas },
        }
    }
}

/// A long queue of different requests, some of which are refused: everything comes back, in order.
fn queue(gpu: &Gpu, devices: &[usize], mask_format: MaskFormat, how: &How, tally: &mut Tally) -> Result<(), String> {
    let cases = variants(mask_format);
    let expected: Vec<_> = cases.iter().map(RequestCase::reference).collect();
    let config = gpu.config(cases[0].plan_spec().map_err(text)?, how);
    let mut fleet = CudaFleet::new(devices, config).map_err(text)?;
    let mut random = Random::new(17);
    let items: Vec<Item<'_>> = (0..200)
        .map(|at| {
            let which = random.below(3);
            Item { at, which, case: &cases[which], is_bad: random.below(7) == 0 }
        })
        .collect();
    let (mut num_delivered, mut failed) = (0, None);
    fleet.process_queue(items.iter().copied(), |item, answer| {
        let outcome = match answer {
            _ if item.at != num_delivered => Err(format!("request {} came in its place", item.at)),
            Ok(answer) if !item.is_bad => compare::compare(&expected[item.which], &answer).map_err(text),
            Err(Error::Request(CoreError::MetaCount { expected: 1, got: 0 })) if item.is_bad => Ok(()),
            other => Err(format!("{:?}, although it is {}", other.map(drop), if item.is_bad { "bad" } else { "good" })),
        };
        tally.count(if item.is_bad { "errors" } else { "requests of a queue" });
        failed = failed.take().or(outcome.err().map(|message| format!("request {num_delivered}: {message}")));
        num_delivered += 1;
    });
    if let Some(message) = failed {
        return Err(message);
    }
    ensure(num_delivered == items.len(), &format!("{num_delivered} of {} requests came back", items.len()))
}

/// Tensors on each device, with tickets in flight on all; the fleet is dropped before they are waited for.
fn on_devices(gpu: &Gpu, devices: &[usize], tally: &mut Tally) -> Result<(), String> {
    let cases = variants(MaskFormat::Rle);
    let expected: Vec<_> = cases.iter().map(RequestCase::reference).collect();
    let config = CudaConfig { slots: 2, ..gpu.config(cases[0].plan_spec().map_err(text)?, &How::DEFAULT) };
    let mut fleet = CudaFleet::new(devices, config).map_err(text)?;
    let mut distinct = devices.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let mut uploaded = Vec::new();
    for &device in &distinct {
        uploaded.push(raw::OnDevice::new(device, &cases)?);
    }
    for round in 0..5 {
        let mut tickets: Vec<(usize, Ticket)> = Vec::new();
        for memory in &uploaded {
            let num_slots = 2 * devices.iter().filter(|&&device| device == memory.device).count();
            for at in 0..num_slots {
                let which = (at + round) % 3;
                tickets.push((which, memory.enqueue(&mut fleet, which, &cases[which].metas).map_err(text)?));
            }
            match memory.enqueue(&mut fleet, 0, &cases[0].metas) {
                Err(Error::Busy { slots }) if slots == num_slots => tally.count("errors"),
                other => return Err(format!("more requests than slots: {:?}", other.map(drop))),
            }
        }
        if round == 4 {
            drop(fleet);
            for (which, mut ticket) in tickets {
                let got = ticket.wait().and_then(|mut answer| answer.detections()).map_err(text)?;
                compare::compare(&expected[which], &got)
                    .map_err(|difference| format!("without fleet: {difference}"))?;
                tally.count("requests of device tensors");
            }
            break;
        }
        for (which, ticket) in tickets.iter_mut().rev() {
            let got = ticket.wait().and_then(|mut answer| answer.detections()).map_err(text)?;
            compare::compare(&expected[*which], &got).map_err(text)?;
            tally.count("requests of device tensors");
        }
        let missing = uploaded[0].enqueue_on(devices.len() + 7, &mut fleet, 0, &cases[0].metas);
        let is_config = matches!(missing, Err(Error::Config { field: "device", .. }));
        ensure(is_config, &format!("a device that the fleet lacks: {:?}", missing.map(drop)))?;
        tally.count("errors");
    }
    Ok(())
}

/// A mask that does not fit is named by its image in the whole batch.
fn capacity(gpu: &Gpu, devices: &[usize], tally: &mut Tally) -> Result<(), String> {
    let [case, ..] = &variants(MaskFormat::Rle)[..] else { return Err("no variants".to_string()) };
    let mut case = tiled(case, 2 * devices.len());
    // Only the last image has detections.
    let per_image = case.logits.widened().len() / case.metas.len();
    let mut logits = case.logits.widened();
    let num_quiet = logits.len() - per_image;
    logits[..num_quiet].fill(-20.0);
    case.logits = OwnedTensor::new(logits, &case.logits.shape, DType::F32);
    let mut spec = case.plan_spec().map_err(text)?;
    spec.max_batch = 2;
    spec.mask_capacity = Some(16);
    let mut fleet = CudaFleet::new(devices, gpu.config(spec, &How::DEFAULT)).map_err(text)?;
    let tensors = *case.request().map_err(text)?.tensors();
    let last = case.metas.len() - 1;
    match fleet.process_host(&tensors, &case.metas) {
        Err(Error::Request(CoreError::Capacity { image, .. })) if image == last => tally.count("errors"),
        other => return Err(format!("a mask without room in image {last}: {:?}", other.map(drop))),
    }
    let quiet: Vec<ImageMeta> = case.metas[..1].to_vec();
    let first = case.image(0);
    let tensors = *first.request().map_err(text)?.tensors();
    let got = fleet.process_host(&tensors, &quiet).map_err(text)?;
    compare::compare(&first.reference(), &got).map_err(|difference| format!("after the error: {difference}"))
}

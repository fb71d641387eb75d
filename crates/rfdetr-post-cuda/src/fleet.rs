//! Several GPUs: a postprocessor on each, and answers in the order of the requests.
//!
//! Two ways to spread work. A batch is split by image, each GPU takes a part, and the answer is the batch's
//! ([`CudaFleet::process_host`]). A queue of requests goes to whichever GPU is free, each request whole, and is delivered
//! in order ([`CudaFleet::process_queue`]). Tensors that are on a GPU already stay there: [`CudaFleet::enqueue`].
//!
//! ```no_run
//! use rfdetr_post_core::{Tensor, Tensors};
//! use rfdetr_post_cuda::{CudaConfig, CudaFleet, fleet::{AsHostRequest, HostRequest}};
//! # use rfdetr_post_core::ImageMeta;
//!
//! /// What a detection model of 300 queries and 91 columns gave for a frame.
//! struct Frame {
//!     dets: Vec<f32>,
//!     labels: Vec<f32>,
//!     meta: [ImageMeta; 1],
//! }
//!
//! impl AsHostRequest for Frame {
//!     fn as_host_request(&self) -> HostRequest<'_> {
//!         let boxes = Tensor::new(&self.dets[..], &[1, 300, 4]);
//!         let logits = Tensor::new(&self.labels[..], &[1, 300, 91]);
//!         HostRequest { tensors: Tensors { boxes, logits, masks: None }, metas: &self.meta }
//!     }
//! }
//!
//! # fn run(config: CudaConfig, frames: Vec<Frame>) -> rfdetr_post_cuda::Result<()> {
//! CudaFleet::all(config)?.process_queue(frames, |_frame, answer| match answer {
//!     Ok(detections) => println!("{} detections", detections.images[0].len()),
//!     Err(error) => println!("this frame only: {error}"),
//! });
//! # Ok(())
//! # }
//! ```
//!
//! Which part goes where, and the order of what comes back, are plain functions of any worker, tested without a GPU.

use std::{
    collections::BTreeMap,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

use rfdetr_post_core::{Detections, Error as CoreError, ImageMeta, Tensor, TensorData, Tensors, request::Request};

use crate::{
    CudaConfig, CudaPostprocessor, DeviceChoice, DeviceTensors, Stream, Ticket,
    driver::{device_count, device_info},
    error::{Error, Result},
};

/// A request in host memory, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct HostRequest<'a> {
    /// The model's outputs.
    pub tensors: Tensors<'a>,
    /// One record an image.
    pub metas: &'a [ImageMeta],
}

/// An item of a queue: it owns a request, or is one.
pub trait AsHostRequest {
    /// The request.
    fn as_host_request(&self) -> HostRequest<'_>;
}

impl AsHostRequest for HostRequest<'_> {
    fn as_host_request(&self) -> HostRequest<'_> {
        *self
    }
}

/// Postprocessors on several GPUs, made alike.
///
/// Dropping it waits for what its GPUs still run, as dropping its postprocessors does.
#[derive(Debug)]
pub struct CudaFleet {
    replicas: Vec<CudaPostprocessor>,
}

impl CudaFleet {
    /// A postprocessor for each entry of `devices`, which are the driver's ordinals; the GPUs are made ready at the same
    /// time. A device that is named more than once gets as many postprocessors, which share its kernels.
    ///
    /// `config.device` is ignored. `config.spec.max_batch` is the most images that one GPU gets at once.
    ///
    /// Errors: those of [`CudaPostprocessor::new`], of the first device that has one; [`Error::Config`] for no device.
    pub fn new(devices: &[usize], config: CudaConfig) -> Result<Self> {
        if devices.is_empty() {
            return Err(Error::Config { field: "devices", expected: "at least one", got: "none".to_string() });
        }
        let on = |&ordinal: &usize| CudaConfig { device: DeviceChoice::Ordinal(ordinal), ..config.clone() };
        let is_first = |at: usize| !devices[..at].contains(&devices[at]);
        let loaded: Result<Vec<_>> = thread::scope(|scope| {
            let firsts = (0..devices.len()).filter(|&at| is_first(at));
            let loading: Vec<_> = firsts
                .map(|at| {
                    let config = on(&devices[at]);
                    scope.spawn(move || CudaPostprocessor::new(config))
                })
                .collect();
            loading.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        });
        let mut loaded = loaded?.into_iter();
        let mut replicas: Vec<CudaPostprocessor> = Vec::with_capacity(devices.len());
        for (at, ordinal) in devices.iter().enumerate() {
            let earlier = devices[..at].iter().position(|other| other == ordinal);
            let replica = match earlier {
                Some(earlier) => CudaPostprocessor::new_beside(&replicas[earlier], on(ordinal))?,
                None => match loaded.next() {
                    Some(replica) => replica,
                    None => unreachable!("one was loaded for each device that is named the first time"),
                },
            };
            replicas.push(replica);
        }
        Ok(Self { replicas })
    }

    /// A postprocessor on each GPU of the machine that the kernels run on.
    ///
    /// Errors: those of [`new`](Self::new); [`Error::NoDevice`] if there is no GPU, [`Error::ComputeCapability`] if there
    /// are only older ones.
    pub fn all(config: CudaConfig) -> Result<Self> {
        Self::new(&usable_devices()?, config)
    }

    /// The device of each postprocessor, by the driver's ordinal.
    pub fn devices(&self) -> Vec<usize> {
        self.replicas.iter().map(CudaPostprocessor::device).collect()
    }

    /// The postprocessors, in the order of the devices.
    pub fn postprocessors(&mut self) -> &mut [CudaPostprocessor] {
        &mut self.replicas
    }

    /// Launches a request for tensors in the memory of `device`, on a postprocessor of that device with a free slot, and
    /// returns at once. The order of the answers is the order in which the caller waits for the tickets.
    ///
    /// Errors: those of [`CudaPostprocessor::enqueue`], [`Error::Busy`] with the slots of all postprocessors on the device;
    /// [`Error::Config`] for a device that the fleet does not have.
    ///
    /// # Safety
    /// As [`CudaPostprocessor::enqueue`]; the stream is of the device's primary context.
    pub unsafe fn enqueue(
        &mut self,
        device: usize,
        tensors: &DeviceTensors,
        metas: &[ImageMeta],
        stream: Stream,
    ) -> Result<Ticket> {
        let mut num_slots = 0;
        for replica in self.replicas.iter_mut().filter(|replica| replica.device() == device) {
            // SAFETY: passed on to the caller.
            match unsafe { replica.enqueue(tensors, metas, stream) } {
                Err(Error::Busy { slots }) => num_slots += slots,
                launched => return launched,
            }
        }
        if num_slots > 0 {
            return Err(Error::Busy { slots: num_slots });
        }
        let got = format!("{device}, of {:?}", self.devices());
        Err(Error::Config { field: "device", expected: "a device of the fleet", got })
    }

    /// Splits a batch by image over the GPUs, and returns its answer as one: the same bits as on one GPU. Starts a thread
    /// for each GPU but the first, for as long as this call lasts.
    ///
    /// Shapes: those of [`Tensors`]; the batch may be as large as all GPUs hold together.
    /// Errors: those of [`CudaPostprocessor::process_host`], with images counted in the whole batch.
    pub fn process_host(&mut self, tensors: &Tensors<'_>, metas: &[ImageMeta]) -> Result<Detections> {
        let [first, ..] = &self.replicas[..] else { unreachable!("a fleet has a device") };
        let options = first.plan().spec.options.clone();
        let request = Request::new(*tensors, metas, &options)?;
        process_batch(&mut self.replicas, &request, |replica, tensors, metas| replica.process_host(tensors, metas))
    }

    /// Processes requests as they come, each whole and on whichever GPU is free, and delivers answers in the order of the
    /// requests. An item comes back with its answer, so that its buffers can be used again.
    ///
    /// At most two items a GPU are taken from `requests` and not delivered yet, so neither a slow GPU nor a slow
    /// `deliver` lets items pile up. Both are called on this thread; a thread is started for each GPU, for as long as
    /// this call lasts.
    ///
    /// Errors: delivered with the item that has them; the others are not touched.
    pub fn process_queue<T: AsHostRequest + Send>(
        &mut self,
        requests: impl IntoIterator<Item = T>,
        mut deliver: impl FnMut(T, Result<Detections>),
    ) {
        let max_in_flight = 2 * self.replicas.len();
        let work = |replica: &mut CudaPostprocessor, item: T| {
            let HostRequest { tensors, metas } = item.as_host_request();
            let answer = replica.process_host(&tensors, metas);
            (item, answer)
        };
        spread(&mut self.replicas, max_in_flight, requests, work, |(item, answer)| deliver(item, answer));
    }
}

/// Ordinals of the GPUs that the kernels run on.
///
/// Errors: the driver's; [`Error::NoDevice`] if there is none, [`Error::ComputeCapability`] if there are only older ones.
pub fn usable_devices() -> Result<Vec<usize>> {
    let count = device_count()?;
    let mut older = None;
    let mut usable = Vec::with_capacity(count);
    for ordinal in 0..count {
        let (major, minor) = device_info(ordinal)?.compute_capability;
        if (major, minor) >= (7, 5) {
            usable.push(ordinal);
        } else {
            older = older.or(Some(Error::ComputeCapability { ordinal, major, minor }));
        }
    }
    if usable.is_empty() { Err(older.unwrap_or(Error::NoDevice { ordinal: 0, count })) } else { Ok(usable) }
}

/// The images of each part of a batch: contiguous, in order, of sizes that differ by at most one, and none empty but for
/// an empty batch, which is one part.
fn parts(batch: usize, num_workers: usize) -> Vec<Range<usize>> {
    let num_parts = num_workers.min(batch).max(1);
    (0..num_parts).map(|part| part * batch / num_parts..(part + 1) * batch / num_parts).collect()
}

/// Some images of a tensor `[B, ...]`.
struct Part<'a> {
    data: TensorData<'a>,
    shape: Vec<usize>,
}

impl<'a> Part<'a> {
    fn new(tensor: &Tensor<'a>, images: &Range<usize>) -> Self {
        let mut shape = tensor.shape().to_vec();
        let per_image: usize = shape[1..].iter().product();
        shape[0] = images.len();
        let elements = images.start * per_image..images.end * per_image;
        let data = match tensor.data() {
            TensorData::F32(data) => TensorData::F32(&data[elements]),
            TensorData::F16(data) => TensorData::F16(&data[elements]),
            TensorData::Bf16(data) => TensorData::Bf16(&data[elements]),
        };
        Self { data, shape }
    }

    fn tensor(&self) -> Tensor<'_> {
        Tensor::new(self.data, &self.shape)
    }
}

/// Splits a batch by image over `workers`, and puts the answers together. `process` gets the tensors and the records of
/// one part; with one part it runs on this thread.
///
/// Errors: that of the first part that has one, with images counted in the whole batch.
pub fn process_batch<W: Send>(
    workers: &mut [W],
    request: &Request<'_>,
    process: impl Fn(&mut W, &Tensors<'_>, &[ImageMeta]) -> Result<Detections> + Sync,
) -> Result<Detections> {
    let tensors = request.tensors();
    let run = |worker: &mut W, images: Range<usize>| {
        let boxes = Part::new(&tensors.boxes, &images);
        let logits = Part::new(&tensors.logits, &images);
        let masks = tensors.masks.as_ref().map(|masks| Part::new(masks, &images));
        let part = Tensors { boxes: boxes.tensor(), logits: logits.tensor(), masks: masks.as_ref().map(Part::tensor) };
        process(worker, &part, &request.metas()[images.clone()]).map_err(|error| in_batch(error, images.start))
    };
    let parts = parts(request.batch(), workers.len());
    let answers: Vec<Result<Detections>> = thread::scope(|scope| {
        let mut jobs = workers.iter_mut().zip(parts);
        let first = jobs.next();
        let others: Vec<_> = jobs.map(|(worker, images)| scope.spawn(|| run(worker, images))).collect();
        let first = first.map(|(worker, images)| run(worker, images));
        let others = others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        first.into_iter().chain(others).collect()
    });
    let mut whole = Detections::default();
    for answer in answers {
        whole.images.extend(answer?.images);
    }
    Ok(whole)
}

/// An error of a part, with its image counted in the whole batch.
fn in_batch(error: Error, first: usize) -> Error {
    match error {
        Error::Request(CoreError::Capacity { image, unit, capacity, needed }) => {
            Error::Request(CoreError::Capacity { image: first + image, unit, capacity, needed })
        }
        error => error,
    }
}

/// Gives `items` to whichever worker is free, and delivers the results in the order of the items. At most `max_in_flight`
/// items are taken and not delivered yet. A panic of a worker goes on here.
fn spread<W: Send, T: Send, R: Send>(
    workers: &mut [W],
    max_in_flight: usize,
    items: impl IntoIterator<Item = T>,
    work: impl Fn(&mut W, T) -> R + Sync,
    mut deliver: impl FnMut(R),
) {
    let (send_item, queue) = mpsc::channel::<(usize, T)>();
    let (send_result, results) = mpsc::channel::<(usize, thread::Result<R>)>();
    let queue = Mutex::new(queue);
    // The senders and the receiver of results move into the scope: should anything here panic, they are dropped before
    // the scope waits for its threads, which ends those.
    let (queue, work) = (&queue, &work);
    thread::scope(move |scope| {
        for worker in workers {
            let send_result = send_result.clone();
            scope.spawn(move || {
                loop {
                    // Whoever waits for an item holds the lock, and the others wait for the lock.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((idx, item)) = next else { break };
                    // A panic is carried to the caller, who would wait forever for the result otherwise.
                    let result = catch_unwind(AssertUnwindSafe(|| work(worker, item)));
                    if send_result.send((idx, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send_result);
        let mut items = items.into_iter().fuse();
        let mut early = BTreeMap::new();
        let (mut num_taken, mut num_delivered) = (0, 0);
        loop {
            while num_taken - num_delivered < max_in_flight.max(1) {
                let Some(item) = items.next() else { break };
                if send_item.send((num_taken, item)).is_err() {
                    unreachable!("the queue outlives this scope");
                }
                num_taken += 1;
            }
            if num_delivered == num_taken {
                break;
            }
            let Ok((idx, result)) = results.recv() else { unreachable!("a worker answers every item before it ends") };
            early.insert(idx, result.unwrap_or_else(|panic| resume_unwind(panic)));
            while let Some(result) = early.remove(&num_delivered) {
                deliver(result);
                num_delivered += 1;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use rfdetr_post_core::{MaskFormat, Options, Size, plan::PlanSpec, reference, request::ModelShape};
    use rfdetr_post_cpu::{CpuConfig, CpuPostprocessor};

    use super::*;

    #[test]
    fn parts_cover_a_batch_evenly() {
        assert_eq!(parts(7, 3), [0..2, 2..4, 4..7]);
        assert_eq!(parts(2, 5), [0..1, 1..2]);
        assert_eq!(parts(0, 3), vec![0..0; 1]);
        for batch in 0..40 {
            for num_workers in 1..9 {
                let parts = parts(batch, num_workers);
                assert!(parts.len() <= num_workers);
                assert_eq!(parts.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..batch).collect::<Vec<_>>());
                let sizes = || parts.iter().map(|part| part.len());
                assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1, "{parts:?}");
                assert!(batch == 0 || sizes().all(|size| size > 0), "{parts:?}");
            }
        }
    }

    /// Results come in order whatever the workers' speed, each item is worked on once, and no more are in flight than
    /// allowed.
    #[test]
    fn results_come_in_order() {
        for (num_workers, max_in_flight) in [(1, 1), (3, 2), (4, 8), (5, 100)] {
            let mut workers = vec![0usize; num_workers];
            let (taken, mut delivered) = (Cell::new(0usize), Vec::new());
            let num_delivered = Cell::new(0usize);
            let items = (0..60u64).inspect(|_| {
                taken.set(taken.get() + 1);
                assert!(taken.get() - num_delivered.get() <= max_in_flight, "{} taken", taken.get());
            });
            let work = |count: &mut usize, item: u64| {
                *count += 1;
                thread::sleep(Duration::from_micros(item * 7919 % 13 * 60));
                item * item
            };
            spread(&mut workers, max_in_flight, items, work, |result| {
                num_delivered.set(num_delivered.get() + 1);
                delivered.push(result);
            });
            assert_eq!(delivered, (0..60).map(|item| item * item).collect::<Vec<u64>>());
            assert_eq!(workers.iter().sum::<usize>(), 60);
        }
    }

    /// An item that only ends when another one has begun: with one worker this would hang.
    #[test]
    fn workers_run_at_the_same_time() {
        let begun = AtomicUsize::new(0);
        let work = |_: &mut (), item: usize| {
            begun.fetch_add(1, Ordering::SeqCst);
            while begun.load(Ordering::SeqCst) < 3 {
                thread::yield_now();
            }
            item
        };
        let mut delivered = Vec::new();
        spread(&mut [(), (), ()], 3, 0..3, work, |item| delivered.push(item));
        assert_eq!(delivered, [0, 1, 2]);
    }

    #[test]
    fn no_items_and_panics_end() {
        spread(&mut [(), ()], 4, std::iter::empty::<u8>(), |(), item| item, |_| panic!("nothing to deliver"));
        let text = |run: &dyn Fn()| {
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            panic.downcast_ref::<&str>().copied().unwrap_or_default().to_string()
        };
        // In a worker, in the items, in the delivery: each reaches the caller, and no thread waits forever.
        let in_worker = |(): &mut (), item: usize| if item == 5 { panic!("in a worker") } else { item };
        assert_eq!(text(&|| spread(&mut [(), ()], 4, 0..9, in_worker, |_| ())), "in a worker");
        let items = || {
            (0..9usize).inspect(|&item| {
                if item == 5 {
                    panic!("in the items")
                }
            })
        };
        assert_eq!(text(&|| spread(&mut [(), ()], 4, items(), |(), item| item, |_| ())), "in the items");
        let deliver = |item: usize| {
            if item == 5 {
                panic!("in the delivery")
            }
        };
        assert_eq!(text(&|| spread(&mut [(), ()], 4, 0..9, |(), item| item, deliver)), "in the delivery");
    }

    /// Tensors of `batch` lopsided images, each different.
    struct Batch {
        boxes: Vec<f32>,
        logits: Vec<f32>,
        masks: Vec<f32>,
        metas: Vec<ImageMeta>,
    }

    impl Batch {
        fn new(batch: usize) -> Self {
            let wave = |len: usize, step: usize, low: f32, high: f32| -> Vec<f32> {
                (0..len).map(|i| low + (high - low) * (i * step % 101) as f32 / 100.0).collect()
            };
            Self {
                boxes: wave(batch * 7 * 4, 31, 0.1, 0.8),
                logits: wave(batch * 7 * 5, 43, -4.0, 3.0),
                masks: wave(batch * 7 * 6 * 9, 57, -2.0, 2.0),
                metas: (0..batch as u32)
                    .map(|i| ImageMeta::stretch(Size::new(40 + 3 * i, 31 + i), Size::new(36, 24)).unwrap())
                    .collect(),
            }
        }

        fn with<T>(&self, options: &Options, use_it: impl FnOnce(&Request<'_>) -> T) -> T {
            let batch = self.metas.len();
            let shapes = ([batch, 7, 4], [batch, 7, 5], [batch, 7, 6, 9]);
            let tensors = Tensors {
                boxes: Tensor::new(&self.boxes[..], &shapes.0),
                logits: Tensor::new(&self.logits[..], &shapes.1),
                masks: Some(Tensor::new(&self.masks[..], &shapes.2)),
            };
            use_it(&Request::new(tensors, &self.metas, options).unwrap())
        }
    }

    #[test]
    fn a_split_batch_has_the_answer_of_the_whole() {
        let options = Options { mask_format: MaskFormat::Rle, ..Options::default() };
        let mut workers: Vec<_> = (0..3).map(|_| CpuPostprocessor::new(CpuConfig::default()).unwrap()).collect();
        for batch in [0, 1, 2, 3, 8] {
            Batch::new(batch).with(&options, |request| {
                let expected = reference::process(request).unwrap();
                assert!(expected.images.iter().all(|image| image.len() > 1));
                let got = process_batch(&mut workers, request, |worker, tensors, metas| {
                    Ok(worker.process(&Request::new(*tensors, metas, &options)?)?)
                });
                assert_eq!(got.unwrap(), expected);
            });
        }
    }

    /// The first error in the order of the images, which it counts in the whole batch.
    #[test]
    fn errors_of_parts_name_the_image_of_the_batch() {
        let capacity = |image| CoreError::Capacity { image, unit: "bytes", capacity: 16, needed: 40 };
        let options = Options::default();
        Batch::new(7).with(&options, |request| {
            // Parts of 2, 2 and 3 images.
            let got = process_batch(&mut [(), (), ()], request, |(), _, metas| match metas.len() {
                2 if metas[0] == request.metas()[0] => Ok(Detections::default()),
                2 => Err(capacity(1).into()),
                _ => Err(capacity(2).into()),
            });
            assert_eq!(got, Err(Error::Request(capacity(3))));
            let got = process_batch(&mut [(), (), ()], request, |(), _, metas| {
                if metas.len() == 3 { Err(Error::NoContext) } else { Ok(Detections::default()) }
            });
            assert_eq!(got, Err(Error::NoContext));
        });
    }

    #[test]
    fn a_fleet_needs_a_device_and_a_driver() {
        let shape = ModelShape { num_queries: 7, num_classes: 5, mask_grid: None };
        let spec = PlanSpec {
            shape,
            max_batch: 2,
            max_image: Size::new(64, 48),
            options: Options { mask_format: MaskFormat::None, ..Options::default() },
            mask_capacity: None,
        };
        let config = CudaConfig::new(spec);
        let none = CudaFleet::new(&[], config.clone()).unwrap_err();
        assert_eq!(none.to_string(), "`devices` is none, expected at least one");
        match device_count() {
            Err(error) => {
                assert_eq!(CudaFleet::new(&[0, 0, 1], config.clone()).unwrap_err(), error);
                assert_eq!(CudaFleet::all(config).unwrap_err(), error);
                assert_eq!(usable_devices().unwrap_err(), error);
            }
            Ok(count) => {
                let missing = CudaFleet::new(&[count, count], config).unwrap_err();
                assert_eq!(missing, Error::NoDevice { ordinal: count, count });
            }
        }
    }
}

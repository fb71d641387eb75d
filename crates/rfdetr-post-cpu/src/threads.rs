//! The work of a batch on many threads: a queue of images and masks, which the caller's thread and those of the pool empty
//! together.
//!
//! The caller works, too. To sleep until a pool has done everything costs two wake-ups a call and the caller's core in
//! between, which two threads feel: a batch takes a millisecond, a wake-up some ten microseconds.
#![forbid(unsafe_code)]

use std::{
    collections::VecDeque,
    hint,
    iter::{Enumerate, Zip},
    slice::{self, ChunksExactMut},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rayon::Scope;
use rfdetr_post_core::{DetectionRow, Error, Health, ImageDetections, Masks, Request, Result};

use crate::{
    masks::{MakeMask, Output},
    processor::{Plan, Scratch, checked_offset, detect, shape_masks},
    simd::Token,
};

/// What one detection came to, until all of its image have.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    row: DetectionRow,
    counts: Vec<u32>,
    string: Vec<u8>,
    num_nonfinite: u32,
}

/// The slots of one image's detections.
pub(crate) type Slots = Vec<Mutex<Slot>>;

/// What all workers read.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, 'r> {
    pub(crate) token: Token,
    pub(crate) request: &'a Request<'r>,
    /// One entry an image.
    pub(crate) plans: &'a [Plan],
    /// One entry a worker, which takes it for itself.
    pub(crate) scratch: &'a [Mutex<Scratch>],
}

/// A batch that is being processed.
pub(crate) struct Batch<'a, 'r> {
    shared: Shared<'a, 'r>,
    streamed_bytes: usize,
    queue: Mutex<Queue<'a>>,
    /// One entry an image.
    open: Vec<Open<'a>>,
    /// Workers that have not left yet.
    num_workers: AtomicUsize,
    error: Mutex<Option<Error>>,
}

/// What is still to be done.
struct Queue<'a> {
    images: Enumerate<Zip<slice::IterMut<'a, ImageDetections>, slice::IterMut<'a, Slots>>>,
    masks: VecDeque<MaskTask<'a>>,
    /// Images in the hands of a worker, whose masks are still to come.
    num_selecting: usize,
}

/// An image whose masks are being made.
#[derive(Default)]
struct Open<'a> {
    num_left: AtomicUsize,
    closing: Mutex<Option<Closing<'a>>>,
}

/// What is written when all masks of an image are made.
struct Closing<'a> {
    rows: &'a mut [DetectionRow],
    health: &'a mut Health,
    slots: &'a [Mutex<Slot>],
    strings: Strings<'a>,
}

/// Where masks of no fixed size go, one behind the other.
enum Strings<'a> {
    None,
    Counts(&'a mut Vec<u32>),
    Rle(&'a mut Vec<u8>),
}

struct MaskTask<'a> {
    image: usize,
    slot: &'a Mutex<Slot>,
    place: Place<'a>,
}

/// Where the mask of one detection goes.
enum Place<'a> {
    Dense(&'a mut [u8], bool),
    BitPacked(&'a mut [u32]),
    GridLogits(&'a mut [f32]),
    Counts,
    Rle,
}

enum Next<'a> {
    Mask(MaskTask<'a>),
    Image(usize, &'a mut ImageDetections, &'a mut Slots),
    /// Nothing yet: another worker selects.
    Wait,
    Nothing,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a, 'r> Batch<'a, 'r> {
    /// The batch of a request. `images` and `slots` have one entry an image, or more slots.
    pub(crate) fn new(
        shared: Shared<'a, 'r>,
        images: &'a mut [ImageDetections],
        slots: &'a mut [Slots],
        streamed_bytes: usize,
    ) -> Self {
        let open = images.iter().map(|_| Open::default()).collect();
        let images = images.iter_mut().zip(slots).enumerate();
        let queue = Mutex::new(Queue { images, masks: VecDeque::new(), num_selecting: 0 });
        Self { shared, streamed_bytes, queue, open, num_workers: AtomicUsize::new(0), error: Mutex::new(None) }
    }

    /// Does all work with `num_workers` workers, of which this thread is the first.
    pub(crate) fn run<'scope>(&'scope self, num_workers: usize, scope: &Scope<'scope>) {
        self.work(0, num_workers, scope);
        // The end of the scope puts this thread to sleep if the others are not done; they are about to be.
        for _ in 0..2000 {
            hint::spin_loop();
            if self.num_workers.load(Ordering::Acquire) == 0 {
                // They still have to tell the scope.
                (0..32).for_each(|_| hint::spin_loop());
                break;
            }
        }
    }

    /// Works as worker `idx`, and has others start: each starts two, so that none starts all.
    fn work<'scope>(&'scope self, idx: usize, num_workers: usize, scope: &Scope<'scope>) {
        for other in [2 * idx + 1, 2 * idx + 2] {
            if other < num_workers {
                self.num_workers.fetch_add(1, Ordering::Relaxed);
                scope.spawn(move |scope| {
                    self.work(other, num_workers, scope);
                    self.num_workers.fetch_sub(1, Ordering::Release);
                });
            }
        }
        let mut scratch = lock(&self.shared.scratch[idx]);
        let mut num_waits = 0u32;
        loop {
            match self.next() {
                Next::Mask(task) => self.make(task, &mut scratch),
                Next::Image(image, answer, slots) => self.select(image, answer, slots, &mut scratch),
                Next::Wait => {
                    num_waits += 1;
                    if num_waits < 1000 { hint::spin_loop() } else { thread::yield_now() }
                }
                Next::Nothing => break,
            }
        }
    }

    /// The first error, if there was one.
    pub(crate) fn outcome(self) -> Result<()> {
        self.error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn next(&self) -> Next<'a> {
        let mut queue = lock(&self.queue);
        if let Some(task) = queue.masks.pop_front() {
            return Next::Mask(task);
        }
        if let Some((image, (answer, slots))) = queue.images.next() {
            queue.num_selecting += 1;
            return Next::Image(image, answer, slots);
        }
        if queue.num_selecting > 0 { Next::Wait } else { Next::Nothing }
    }

    /// Selects, and queues the image's masks.
    fn select(&self, image: usize, answer: &'a mut ImageDetections, slots: &'a mut Slots, scratch: &mut Scratch) {
        // Also when this panics, the others must not wait for it.
        let _selected = Selected(&self.queue);
        let Shared { token, request, plans, .. } = self.shared;
        detect(token, request, image, answer, scratch);
        let plan = &plans[image];
        let len = match shape_masks(request, plan, answer) {
            Ok(len) => len,
            Err(error) => return self.fail(error),
        };
        let ImageDetections { rows, masks, health, .. } = answer;
        if plan.geometry.is_none() || rows.is_empty() {
            return;
        }
        slots.resize_with(rows.len().max(slots.len()), Mutex::default);
        for (slot, row) in slots.iter_mut().zip(&*rows) {
            slot.get_mut().unwrap_or_else(PoisonError::into_inner).row = *row;
        }
        let slots = &slots[..rows.len()];
        let stream = rows.len().saturating_mul(len) >= self.streamed_bytes;
        let task = |slot, place| MaskTask { image, slot, place };
        let mut strings = Strings::None;
        let mut tasks = VecDeque::with_capacity(rows.len());
        match masks {
            Masks::None => return,
            Masks::Dense(all) => {
                tasks.extend(
                    slots.iter().zip(chunks(all, len)).map(|(slot, out)| task(slot, Place::Dense(out, stream))),
                );
            }
            Masks::BitPacked(all) => {
                tasks.extend(slots.iter().zip(chunks(all, len)).map(|(slot, out)| task(slot, Place::BitPacked(out))));
            }
            Masks::GridLogits { logits: all, .. } => {
                tasks.extend(slots.iter().zip(chunks(all, len)).map(|(slot, out)| task(slot, Place::GridLogits(out))));
            }
            Masks::Counts(all) => {
                strings = Strings::Counts(all);
                tasks.extend(slots.iter().map(|slot| task(slot, Place::Counts)));
            }
            Masks::Rle(all) => {
                strings = Strings::Rle(all);
                tasks.extend(slots.iter().map(|slot| task(slot, Place::Rle)));
            }
        }
        let open = &self.open[image];
        open.num_left.store(tasks.len(), Ordering::Relaxed);
        *lock(&open.closing) = Some(Closing { rows, health, slots, strings });
        lock(&self.queue).masks.append(&mut tasks);
    }

    /// Makes one mask; the last of an image closes it.
    fn make(&self, task: MaskTask<'a>, scratch: &mut Scratch) {
        let MaskTask { image, slot, place } = task;
        let Shared { token, request, plans, .. } = self.shared;
        let plan = &plans[image];
        let Some(geometry) = &plan.geometry else { return };
        let axes = plan.axes.as_ref().map(|axes| axes.each_ref().map(|axis| &**axis));
        // Taken out: slots that lie side by side are in the hands of several workers, which would wait for each other's
        // cache lines.
        let mut own = std::mem::take(&mut *lock(slot));
        let Slot { row, counts, string, num_nonfinite } = &mut own;
        let output = match place {
            Place::Dense(out, stream) => Output::Dense(out, stream),
            Place::BitPacked(out) => Output::BitPacked(out),
            Place::GridLogits(out) => Output::GridLogits(out),
            Place::Counts => {
                counts.clear();
                Output::Counts(counts)
            }
            Place::Rle => {
                string.clear();
                Output::Rle(string)
            }
        };
        let scratch = &mut scratch.masks;
        *num_nonfinite = token.run(MakeMask { request, image, geometry, axes, row, output, scratch });
        *lock(slot) = own;
        let open = &self.open[image];
        if open.num_left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(closing) = lock(&open.closing).take()
            && let Err(error) = closing.close()
        {
            self.fail(error);
        }
    }

    /// Keeps the first error, and leaves nothing to do.
    fn fail(&self, error: Error) {
        lock(&self.error).get_or_insert(error);
        let mut queue = lock(&self.queue);
        queue.masks.clear();
        queue.images.by_ref().for_each(drop);
    }
}

/// All masks of a fixed length.
fn chunks<T>(all: &mut [T], len: usize) -> ChunksExactMut<'_, T> {
    all.chunks_exact_mut(len)
}

/// An image in a worker's hands; when dropped, it is no more.
struct Selected<'b, 'a>(&'b Mutex<Queue<'a>>);

impl Drop for Selected<'_, '_> {
    fn drop(&mut self) {
        lock(self.0).num_selecting -= 1;
    }
}

impl Closing<'_> {
    /// Puts the detections' rows and strings into the answer, in order.
    ///
    /// Errors: run lengths that are longer than an offset can say.
    fn close(self) -> Result<()> {
        let Self { rows, health, slots, mut strings } = self;
        for (row, slot) in rows.iter_mut().zip(slots) {
            let slot = lock(slot);
            *row = slot.row;
            health.nonfinite_mask_logits += slot.num_nonfinite;
            match &mut strings {
                Strings::None => {}
                Strings::Counts(all) => {
                    row.mask_offset = checked_offset(all.len(), row.mask_len)?;
                    all.extend_from_slice(&slot.counts);
                }
                Strings::Rle(all) => {
                    row.mask_offset = checked_offset(all.len(), row.mask_len)?;
                    all.extend_from_slice(&slot.string);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use rfdetr_post_core::{MaskFormat, Options, Size, bench::Case};

    use super::*;
    use crate::{CpuConfig, CpuPostprocessor, Threads};

    /// Fewer workers than work and more, called from outside of any pool, from another pool, and from rayon's own.
    #[test]
    fn the_answer_does_not_depend_on_who_works() {
        for (mask_format, batch) in
            [(MaskFormat::Rle, 3), (MaskFormat::Counts, 1), (MaskFormat::Dense, 5), (MaskFormat::None, 7)]
        {
            let inputs = Case::new("seg-nano", Size::new(64, 48), 5, batch, mask_format).inputs();
            let options = Options { mask_format, ..Options::default() };
            let request = Request::new(inputs.tensors(), &inputs.metas, &options).unwrap();
            let process = |threads| {
                let mut postprocessor = CpuPostprocessor::new(CpuConfig { threads, simd: None }).unwrap();
                // The second call finds the buffers of the first.
                [(); 2].map(|()| postprocessor.process(&request).unwrap())
            };
            let expected = process(Threads::One);
            assert!(expected[0].images.iter().all(|image| image.len() == 5));
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            let counts = [1, 2, 3, 40].map(|count| Threads::Count(NonZero::new(count).unwrap()));
            for threads in counts.into_iter().chain([Threads::All]) {
                assert_eq!(process(threads), expected, "{threads:?}");
                assert_eq!(pool.install(|| process(threads)), expected, "{threads:?} from another pool");
                let (a, b) = rayon::join(|| process(threads), || process(threads));
                assert_eq!((&a, &b), (&expected, &expected), "{threads:?} from rayon's pool");
            }
        }
    }
}

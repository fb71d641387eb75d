//! The host's side of a request, as a launch of the emulator: it waits for the flags, reads the result, and takes the buffers for the
//! next request.
//!
//! Launched to overlap the kernels it knows of them what the flags tell it, so whatever they have stored behind their flags, or
//! without a fence before, or still use, is a race that the emulator reports.
#![allow(unsafe_code, reason = "reads and writes the emulator's memory, as kernels do")]

use rfdetr_post_core::{
    MaskFormat,
    packed::{ImageHeader, ImageRecord, PackedRow, flag_word},
    plan::{DeviceBuffers, Plan},
};
use rfdetr_post_kernels::simt::{emulator::Launch, global::Global, thread};

/// The host of a request of `batch` images, which are numbered `sequence`.
pub fn launch(plan: &Plan, buffers: DeviceBuffers, batch: usize, sequence: u32) -> Launch<'_> {
    Launch::closure("host", 1, 32, 0, move || {
        if thread::thread_idx_x() == 0 {
            // SAFETY: the plan's buffers are there, and the emulator checks every access.
            unsafe {
                wait(plan, &buffers, batch, sequence);
                read(plan, &buffers, batch);
                reuse(plan, &buffers, batch);
            }
        }
    })
}

/// # Safety
/// The buffers are those of the plan.
unsafe fn wait(plan: &Plan, buffers: &DeviceBuffers, batch: usize, sequence: u32) {
    let flags = Global::<u32>::from_address(buffers.result_at + plan.result.flags);
    for flag in 0..plan.num_flags(batch) {
        // SAFETY: the result has the flags. A flag that nobody sets is an endless loop, which the emulator reports.
        while unsafe { flags.load_acquire(flag_word(flag) as usize) } != sequence {}
    }
}

/// Reads what the request has of the result.
///
/// # Safety
/// As [`wait`], which has returned.
unsafe fn read(plan: &Plan, buffers: &DeviceBuffers, batch: usize) {
    let words = |offset: u64| Global::<u32>::from_address(buffers.result_at + offset);
    let (headers, rows) = (words(plan.result.headers), words(plan.result.rows));
    let len_word = core::mem::offset_of!(PackedRow, mask_len) / 4;
    let is_string = plan.spec.options.mask_format == MaskFormat::Rle;
    // SAFETY: parts of the result that the kernels have written, as far as they have room.
    unsafe {
        for image in 0..batch {
            let header = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| headers.load(image * size_of::<ImageHeader>() / 4 + i));
            for idx in 0..header[0].min(plan.max_detections) as usize {
                let row = image * plan.max_detections as usize + idx;
                for word in 0..size_of::<PackedRow>() / 4 {
                    rows.load(row * size_of::<PackedRow>() / 4 + word);
                }
                let len = rows.load(row * size_of::<PackedRow>() / 4 + len_word);
                // A mask that does not fit is not read.
                let len = if len <= plan.mask_capacity { len as usize } else { 0 };
                let first = row * plan.mask_capacity as usize;
                let at = buffers.result_at + plan.result.masks;
                for i in first..first + len {
                    if is_string {
                        Global::<u8>::from_address(at).load(i);
                    } else {
                        Global::<u32>::from_address(at).load(i);
                    }
                }
            }
        }
    }
}

/// Writes where the next request writes.
///
/// # Safety
/// As [`read`].
unsafe fn reuse(plan: &Plan, buffers: &DeviceBuffers, batch: usize) {
    let rows = batch * plan.max_detections as usize;
    let fill = |at: u64, bytes: usize| {
        for word in 0..bytes / 4 {
            // SAFETY: inside a section of the plan.
            unsafe { Global::<u32>::from_address(at).store(word, u32::MAX) };
        }
    };
    // Of the counters, the word that the selection resets.
    fill(buffers.work_at + plan.work.counters + 4, 4);
    fill(buffers.work_at + plan.work.records, batch * size_of::<ImageRecord>());
    fill(buffers.work_at + plan.work.headers, batch * size_of::<ImageHeader>());
    fill(buffers.work_at + plan.work.rows, rows * size_of::<PackedRow>());
    fill(buffers.work_at + plan.work.queries, rows * 16);
    fill(buffers.work_at + plan.work.axes, batch * plan.axes.image_stride as usize * 16);
}

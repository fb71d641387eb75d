//! The fast CPU path held to the reference: one postprocessor for each instruction set, on one thread and on three.

use std::num::NonZero;

use rfdetr_post_core::{Detections, MaskFormat, Request};
use rfdetr_post_cpu::{ConfigError, CpuConfig, CpuPostprocessor, SimdLevel, Threads};

use crate::{case::RequestCase, compare::compare};

/// How a postprocessor is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The caller's thread.
    OneThread,
    /// The same, dense masks written past the caches whatever their size.
    Streamed,
    /// A pool of three threads.
    ThreeThreads,
}

/// One postprocessor, and the answer that it overwrites from request to request, so that a stale buffer would show.
#[derive(Debug)]
struct Backend {
    name: String,
    level: SimdLevel,
    how: How,
    postprocessor: CpuPostprocessor,
    answer: Detections,
}

/// The postprocessors of some instruction sets, kept from request to request.
#[derive(Debug)]
pub struct Backends {
    levels: Vec<SimdLevel>,
    list: Vec<Backend>,
}

impl Backends {
    /// Postprocessors of these instruction sets.
    ///
    /// Errors: an instruction set that the machine lacks; threads that cannot be started.
    pub fn new(levels: &[SimdLevel]) -> Result<Self, ConfigError> {
        let mut list = Vec::new();
        for &level in levels {
            for how in [How::OneThread, How::Streamed, How::ThreeThreads] {
                let three = NonZero::<usize>::MIN.saturating_add(2);
                let threads = if how == How::ThreeThreads { Threads::Count(three) } else { Threads::One };
                let mut postprocessor = CpuPostprocessor::new(CpuConfig { threads, simd: Some(level) })?;
                if how == How::Streamed {
                    postprocessor.set_streamed_bytes(0);
                }
                let name = match how {
                    How::OneThread => level.name().to_owned(),
                    How::Streamed => format!("{}, streamed", level.name()),
                    How::ThreeThreads => format!("{}, three threads", level.name()),
                };
                list.push(Backend { name, level, how, postprocessor, answer: Detections::default() });
            }
        }
        Ok(Self { levels: levels.to_vec(), list })
    }

    /// Compares every postprocessor's answer with `expected`, and tells `report` its name and the first difference.
    ///
    /// Streaming is about dense masks, so other formats leave it out; of the threaded ones, `turn` picks one.
    pub fn judge(
        &mut self,
        request: &Request<'_>,
        expected: &Detections,
        turn: u64,
        mut report: impl FnMut(&str, Result<(), String>),
    ) {
        let turn = (turn % self.levels.len().max(1) as u64) as usize;
        for Backend { name, level, how, postprocessor, answer } in &mut self.list {
            let is_left_out = match how {
                How::OneThread => false,
                How::Streamed => request.options().mask_format != MaskFormat::Dense,
                How::ThreeThreads => *level != self.levels[turn],
            };
            if is_left_out {
                continue;
            }
            let outcome = match postprocessor.process_into(request, answer) {
                Ok(()) => compare(expected, answer).map_err(|difference| difference.to_string()),
                Err(error) => Err(error.to_string()),
            };
            report(name, outcome);
        }
    }

    /// [`Backends::judge`] against the reference. Panics at the first difference, naming the postprocessor.
    pub fn check(&mut self, case: &RequestCase, turn: u64) {
        let request = case.request().unwrap_or_else(|error| panic!("the case is refused: {error}"));
        self.judge(&request, &case.reference(), turn, |name, outcome| {
            if let Err(difference) = outcome {
                panic!("{name}: {difference}");
            }
        });
    }
}

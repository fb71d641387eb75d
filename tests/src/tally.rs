//! Counts and failures of many cases, on many threads, and the lines that programs print of them.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// What a part of a suite came to: its counts, or what is wrong.
pub type Outcome = Result<String, String>;

/// Failures that are printed one by one.
const SHOWN: u64 = 20;

/// What cases came to.
#[derive(Debug, Default)]
pub struct Tally {
    counts: BTreeMap<String, u64>,
    failures: u64,
}

impl Tally {
    /// Counts one of `what`.
    pub fn count(&mut self, what: impl Into<String>) {
        self.add(what, 1);
    }

    /// Counts `number` of `what`.
    pub fn add(&mut self, what: impl Into<String>, number: u64) {
        *self.counts.entry(what.into()).or_default() += number;
    }

    /// How many of `what` were counted.
    pub fn get(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// Notes a failure; the first ones are printed at once.
    pub fn fail(&mut self, message: &str) {
        self.failures += 1;
        if self.failures <= SHOWN {
            println!("  {message}");
        }
    }

    fn merge(&mut self, other: Self) {
        other.counts.into_iter().for_each(|(what, number)| self.add(what, number));
        self.failures += other.failures;
    }

    /// The counts as text; an error if anything failed.
    pub fn outcome(self) -> Outcome {
        let counts: Vec<String> = self.counts.iter().map(|(what, number)| format!("{number} {what}")).collect();
        let counts = counts.join(", ");
        if self.failures > 0 { Err(format!("{} failures; {counts}", self.failures)) } else { Ok(counts) }
    }
}

/// Runs `case` for `0..num_cases` on `threads` threads. A case that returns an error or panics is a failure, named by
/// `name`; the others go on.
pub fn parallel(
    num_cases: u64,
    threads: usize,
    name: impl Fn(u64) -> String + Sync,
    case: impl Fn(u64, &mut Tally) -> Result<(), String> + Sync,
) -> Tally {
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut tally = Tally::default();
                loop {
                    let idx = next.fetch_add(1, Ordering::Relaxed);
                    if idx >= num_cases {
                        break;
                    }
                    if let Err(message) = caught(|| case(idx, &mut tally)) {
                        tally.fail(&format!("{}: {message}", name(idx)));
                    }
                }
                sum.lock().unwrap_or_else(PoisonError::into_inner).merge(tally);
            });
        }
    });
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// `run`, with a panic as an error.
pub fn caught<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // What a case leaves behind after a panic is its tally, which is whole, and its own values, which are gone.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(format!("panicked: {}", message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "with no text".to_string())
}

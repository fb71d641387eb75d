//! What programs that test have in common: counts and failures of many cases, on many threads, and one line a part.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

/// Failures that are printed one by one.
const SHOWN: u64 = 20;

/// What a part came to: its counts, or what is wrong.
pub type Outcome = Result<String, String>;

/// The parts so far.
#[derive(Debug, Default)]
pub struct Sum {
    /// Parts without a failure.
    pub passed: u32,
    /// The others.
    pub failed: u32,
}

impl Sum {
    /// Runs a part and prints its line. A panic is a failure, too.
    pub fn add(&mut self, name: &str, part: impl FnOnce() -> Outcome) {
        let start = Instant::now();
        let outcome = caught(part);
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(counts) => {
                self.passed += 1;
                println!("PASS {name}: {counts} ({seconds:.1} s)");
            }
            Err(message) => {
                self.failed += 1;
                println!("FAIL {name}: {message} ({seconds:.1} s)");
            }
        }
    }

    /// Prints the last line. The program ends with 1 if a part failed, or if there was none.
    pub fn finish(self) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        ExitCode::from(u8::from(self.failed > 0 || self.passed == 0))
    }
}

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

    /// What was counted under a name that begins with `prefix`: the rest of the name, and how many.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
        self.counts.iter().filter_map(move |(what, &number)| Some((what.strip_prefix(prefix)?, number)))
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
    parallel_with(num_cases, threads, || (), name, |idx, (), tally| case(idx, tally))
}

/// Like [`parallel`], with something that each thread makes once and keeps from case to case; after a failure it is made
/// anew.
pub fn parallel_with<T>(
    num_cases: u64,
    threads: usize,
    make: impl Fn() -> T + Sync,
    name: impl Fn(u64) -> String + Sync,
    case: impl Fn(u64, &mut T, &mut Tally) -> Result<(), String> + Sync,
) -> Tally {
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut tally = Tally::default();
                let mut own = make();
                loop {
                    let idx = next.fetch_add(1, Ordering::Relaxed);
                    if idx >= num_cases {
                        break;
                    }
                    if let Err(message) = caught(|| case(idx, &mut own, &mut tally)) {
                        tally.fail(&format!("{}: {message}", name(idx)));
                        own = make();
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

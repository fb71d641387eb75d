//! The suite of the fast CPU path: its answers are the reference's, bit for bit, in every instruction set that the machine
//! has, and upstream's. One program that needs no cargo and no network.
//!
//! ```sh
//! cargo xtask cpu-test                             # builds it into a folder that runs anywhere
//! ./rfdetr-post-cpu-test all                       # there
//! ./rfdetr-post-cpu-test parity --simd avx2 --seed 7 --case 123
//! ```
//!
//! `parity` prints a line for each postprocessor, `LEVEL: N cases, F failed`; each part prints `PASS name: counts` or
//! `FAIL name: ...`; the last line counts the parts. Ends with 1 if anything failed, and with 2 if it is asked for
//! instructions that the machine lacks.
#![forbid(unsafe_code)]

use std::{
    collections::HashSet,
    path::PathBuf,
    process::ExitCode,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Parser, Subcommand};
use proptest::{
    strategy::{BoxedStrategy, Strategy, ValueTree},
    test_runner::TestCaseError,
};
use rfdetr_post::Postprocessor;
use rfdetr_post_core::Semantics;
use rfdetr_post_cpu::SimdLevel;
use rfdetr_post_tests::{
    case::{OwnedTensor, RequestCase},
    cpu::Backends,
    edge_cases::EDGE_CASES,
    fixtures::{self, Fixture},
    golden, grids, strategies,
    tally::{self, Outcome, Sum, Tally},
};

#[derive(Parser)]
#[command(about = "The suite of rfdetr-post's fast CPU path: fast path = reference, bit for bit")]
struct Flags {
    /// The part to run
    #[command(subcommand)]
    part: Part,
    /// Instruction sets, with commas; default: all that the machine has
    #[arg(long, value_name = "LEVEL", global = true, value_delimiter = ',')]
    simd: Vec<String>,
    /// Cases at a time
    #[arg(long, value_name = "N", global = true)]
    threads: Option<usize>,
    /// Folder of the fixtures; default: `fixtures` beside the program, or else the source tree's
    #[arg(long, value_name = "DIR", global = true)]
    fixtures: Option<PathBuf>,
}

#[derive(Subcommand, Clone)]
enum Part {
    /// Everything below
    All(Parity),
    /// Random requests
    Parity(Parity),
    /// The requests of every fixture under both presets, every named edge case, and large images
    Fixtures(Fixtures),
    /// The answers of the fixtures, which are upstream's and torch's, by the facade's default
    Golden,
    /// The instruction sets that the machine has
    Levels,
}

#[derive(Args, Clone)]
struct Parity {
    /// Number of random requests
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    cases: u64,
    /// Seed of all requests; default: the time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Run this request only, and print the smallest like it that fails
    #[arg(long, value_name = "INDEX")]
    case: Option<u64>,
}

#[derive(Args, Clone)]
struct Fixtures {
    /// Small pictures, and a third of the formats: for memory checkers
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let levels = match levels(&flags.simd) {
        Ok(levels) => levels,
        Err(message) => {
            eprintln!("--simd: {message}");
            return ExitCode::from(2);
        }
    };
    let threads =
        flags.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1).max(1);
    let suite = Suite { levels, threads };
    let names: Vec<_> = suite.levels.iter().map(|level| level.name()).collect();
    println!("instruction sets: {}; {threads} cases at a time", names.join(", "));
    let mut sum = Sum::default();
    if !matches!(flags.part, Part::Parity(_) | Part::Levels) {
        match fixtures::find(flags.fixtures) {
            Some(folder) => fixtures::set_root(folder),
            None => sum.add("setup", || Err("no folder of fixtures: expected --fixtures DIR".to_owned())),
        }
    }
    if sum.failed == 0 {
        suite.run(flags.part, &mut sum);
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    ExitCode::from(u8::from(sum.failed > 0 || sum.passed == 0))
}

/// The levels by their names; all that the machine has if there is no name.
///
/// Errors: a name that is no level, or one that the machine lacks.
fn levels(names: &[String]) -> Result<Vec<SimdLevel>, String> {
    let available = SimdLevel::available();
    if names.is_empty() {
        return Ok(available);
    }
    let find = |name: &String| {
        let level = available.iter().copied().find(|level| level.name() == name);
        let all: Vec<_> = available.iter().map(|level| level.name()).collect();
        level.ok_or_else(|| format!("got {name}, and this machine has {}", all.join(", ")))
    };
    names.iter().map(find).collect()
}

struct Suite {
    levels: Vec<SimdLevel>,
    threads: usize,
}

/// Pixels of a batch up to which a case is quick.
const QUICK_AREA: u64 = 30_000;

impl Suite {
    fn run(&self, part: Part, sum: &mut Sum) {
        match part {
            Part::All(flags) => {
                self.run(Part::Golden, sum);
                self.run(Part::Fixtures(Fixtures { quick: false }), sum);
                self.run(Part::Parity(flags), sum);
            }
            Part::Parity(flags) => sum.add("parity", || self.parity(&flags)),
            Part::Fixtures(flags) => {
                sum.add("fixtures", || self.fixtures(flags.quick));
                sum.add("edge-cases", || self.edge_cases(flags.quick));
                if !flags.quick {
                    sum.add("large-images", || self.large_images());
                }
            }
            Part::Golden => {
                for (name, part) in golden::PARTS {
                    sum.add(&format!("golden {name}"), || part(&golden::facade(Postprocessor::cpu())).outcome());
                }
            }
            Part::Levels => sum.add("levels", || Ok(format!("{} instruction sets", self.levels.len()))),
        }
    }

    /// Postprocessors of a thread. The levels were checked, so only threads can fail, and then there is no test.
    fn backends(&self) -> Backends {
        Backends::new(&self.levels).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Compares all postprocessors with the reference, and counts them.
    fn judge(&self, case: &RequestCase, turn: u64, backends: &mut Backends, tally: &mut Tally) -> Result<(), String> {
        let request = case.request().map_err(|error| format!("the case is refused: {error}"))?;
        let mut failures = Vec::new();
        backends.judge(&request, &case.reference(), turn, |name, outcome| {
            tally.count(format!("{PREFIX}{name}"));
            if let Err(difference) = outcome {
                tally.count(format!("{FAILED}{name}"));
                failures.push(format!("{name}: {difference}"));
            }
        });
        tally.count("requests");
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    fn parity(&self, flags: &Parity) -> Outcome {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let seed = flags.seed.unwrap_or(now);
        println!("parity: seed {seed}");
        if let Some(idx) = flags.case {
            return self.one(seed, idx);
        }
        let start = Instant::now();
        let run = |idx: u64, backends: &mut Backends, tally: &mut Tally| {
            let tree = strategy(idx).new_tree(&mut strategies::runner(seed, idx));
            let case = tree.map_err(|reason| reason.to_string())?.current();
            describe(&case, tally);
            self.judge(&case, idx, backends, tally)
        };
        let name = |idx: u64| format!("--seed {seed} --case {idx}");
        let tally = tally::parallel_with(flags.cases, self.threads, || self.backends(), name, run);
        let seconds = start.elapsed().as_secs_f64();
        for (name, count) in tally.with_prefix(PREFIX) {
            println!("{name}: {count} cases, {} failed", tally.get(&format!("{FAILED}{name}")));
        }
        println!("{:.0} cases a second and thread", flags.cases as f64 / seconds / self.threads as f64);
        tally.outcome()
    }

    /// One request, and if it fails, a smaller one that does.
    fn one(&self, seed: u64, idx: u64) -> Outcome {
        let mut runner = strategies::runner(seed, idx);
        let tree = strategy(idx).new_tree(&mut runner).map_err(|reason| reason.to_string())?;
        let outcome = runner.run_one(tree, |case| {
            let judged = self.judge(&case, idx, &mut self.backends(), &mut Tally::default());
            judged.map_err(TestCaseError::fail)
        });
        match outcome {
            Ok(_) => Ok("1 requests".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn fixtures(&self, is_quick: bool) -> Outcome {
        let files = fixtures::all();
        let run = |idx: u64, backends: &mut Backends, tally: &mut Tally| {
            let (folder, name) = &files[idx as usize];
            let fixture = Fixture::load(folder, name);
            if is_quick && area(&fixture.case) > QUICK_AREA {
                return Ok(());
            }
            tally.count("files");
            for (at, case) in (idx..).zip(fixture.variants()) {
                if !is_quick || at.is_multiple_of(3) {
                    self.judge(&case, at, backends, tally).map_err(|message| format!("request {at}: {message}"))?;
                }
            }
            Ok(())
        };
        let name = |idx: u64| format!("{}/{}", files[idx as usize].0, files[idx as usize].1);
        let tally = tally::parallel_with(files.len() as u64, self.threads, || self.backends(), name, run);
        if files.len() != 81 {
            return Err(format!("{} files, expected 81", files.len()));
        }
        tally.outcome()
    }

    fn edge_cases(&self, is_quick: bool) -> Outcome {
        let run = |idx: u64, backends: &mut Backends, tally: &mut Tally| {
            let (_, edge_case) = EDGE_CASES[idx as usize];
            tally.count("named cases");
            let requests = RequestCase::recorded(edge_case);
            let requests = requests.iter().filter(|case| !is_quick || area(case) <= QUICK_AREA);
            requests.enumerate().try_for_each(|(at, case)| self.judge(case, at as u64, backends, tally))
        };
        let name = |idx: u64| EDGE_CASES[idx as usize].0.to_owned();
        tally::parallel_with(EDGE_CASES.len() as u64, self.threads, || self.backends(), name, run).outcome()
    }

    fn large_images(&self) -> Outcome {
        let cases = grids::large();
        let run = |idx: u64, backends: &mut Backends, tally: &mut Tally| {
            self.judge(&cases[idx as usize], idx, backends, tally)
        };
        let name = |idx: u64| format!("large image {idx}");
        tally::parallel_with(cases.len() as u64, self.threads, || self.backends(), name, run).outcome()
    }
}

/// Before the name of a postprocessor in a tally: requests that it was asked.
const PREFIX: &str = "by ";
/// Before the name of a postprocessor in a tally: requests that it failed.
const FAILED: &str = "failed by ";

/// Half of the requests are those that the other links of the chain are held to. The reference needs as long for the few
/// large pictures as for all others.
fn strategy(idx: u64) -> BoxedStrategy<RequestCase> {
    match idx % 200 {
        7 => strategies::large_pictures().boxed(),
        even if even % 2 == 0 => strategies::requests().boxed(),
        _ => grids::requests().boxed(),
    }
}

/// Counts what a request is about, so that a run tells what it has covered.
fn describe(case: &RequestCase, tally: &mut Tally) {
    let RequestCase { boxes, logits, masks, metas, options } = case;
    tally.count(format!("with {}", options.mask_format.name()));
    let dtypes: HashSet<_> =
        [Some(boxes), Some(logits), masks.as_ref()].into_iter().flatten().map(OwnedTensor::dtype).collect();
    dtypes.iter().for_each(|dtype| tally.count(format!("with {dtype:?}")));
    if options.semantics == Semantics::rf_detr() {
        tally.count("under rf_detr");
    } else if options.semantics == Semantics::roboflow_inference() {
        tally.count("under roboflow_inference");
    } else {
        tally.count("under other semantics");
    }
    tally.add("images", metas.len() as u64);
}

fn area(case: &RequestCase) -> u64 {
    case.metas.iter().map(|meta| meta.original.area()).sum()
}

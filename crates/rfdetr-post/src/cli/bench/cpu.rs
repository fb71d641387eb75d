//! The CPU path by instruction set and threads, a memset of its output, torch and OpenCV.

use std::{
    cell::RefCell,
    hint::black_box,
    num::NonZero,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rfdetr_post::{
    CpuConfig, CpuPostprocessor, Detections, MaskFormat, Masks, Options, Request, SimdLevel, Threads,
    bench::{Case, FULL_HD, Inputs, Times, UHD, difference, foreground, is_named, now},
    reference,
};
use serde::Serialize;

use super::{
    BenchArgs, ask, commit,
    peers::{PeerRecord, Peers},
    plot::{Bar, Group, svg},
    report, unknown,
};
use crate::cli::summary::new_table;

/// Pixels of all masks up to which the reference makes all of them.
const REFERENCE_PIXELS: u64 = 50_000_000;
/// Calls of one contender in a row.
const BLOCK: Duration = Duration::from_millis(5);

/// What a case is to reach, as ratios in one run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Goal {
    /// Torch's best on one thread takes at least so many times ours.
    FasterThanTorch(f64),
    /// Ours takes at most so many memsets of the output.
    WithinMemsets(f64),
    /// One thread takes at least so many times what two take.
    TwoThreads(f64),
}

fn cases() -> Vec<(Case, Vec<Goal>)> {
    use Goal::{FasterThanTorch, TwoThreads, WithinMemsets};
    use MaskFormat::{BitPacked, Counts, Dense, GridLogits, None, Rle};
    let case = Case::new;
    vec![
        (case("seg-nano", FULL_HD, 20, 1, Rle), vec![FasterThanTorch(300.0)]),
        (case("seg-nano", FULL_HD, 20, 1, Dense), vec![FasterThanTorch(15.0), WithinMemsets(2.0)]),
        (case("seg-2xlarge", UHD, 100, 1, Rle), vec![FasterThanTorch(200.0)]),
        (case("nano", FULL_HD, 20, 1, None), vec![FasterThanTorch(10.0)]),
        (case("seg-nano", FULL_HD, 20, 8, Rle), vec![TwoThreads(1.9)]),
        (case("seg-nano", FULL_HD, 20, 1, Counts), vec![]),
        (case("seg-nano", FULL_HD, 20, 1, BitPacked), vec![]),
        (case("seg-nano", FULL_HD, 20, 1, GridLogits), vec![]),
        (case("seg-nano", FULL_HD, 20, 1, Rle).noise(), vec![]),
        (case("seg-nano", UHD, 20, 1, Rle), vec![]),
        (case("seg-nano", FULL_HD, 20, 8, Dense), vec![]),
        (case("seg-2xlarge", UHD, 20, 1, Rle), vec![]),
        (case("seg-2xlarge", UHD, 100, 1, Dense), vec![]),
    ]
}

fn choose(names: &str) -> Result<Vec<(Case, Vec<Goal>)>> {
    let is_chosen = |case: &Case, goals: &[Goal]| match names {
        "goals" => !goals.is_empty(),
        "all" => true,
        names => is_named(&case.name, names, cases().iter().map(|(case, _)| &case.name[..])),
    };
    let chosen: Vec<_> = cases().into_iter().filter(|(case, goals)| is_chosen(case, goals)).collect();
    if chosen.is_empty() {
        bail!("no case is called {names}; --list prints the names");
    }
    Ok(chosen)
}

/// Everything that a run has to say.
#[derive(Debug, Serialize)]
struct Record {
    tool: String,
    commit: String,
    date: String,
    cpu: String,
    threads: usize,
    compiler: String,
    target: String,
    load_before: Option<String>,
    cases: Vec<CaseRecord>,
    errors: Vec<String>,
}

#[derive(Debug, Serialize)]
struct CaseRecord {
    case: String,
    detections: usize,
    /// Foreground pixels of all masks, which the peers count, too.
    checksum: u64,
    judged_by: String,
    ours: Vec<Line>,
    memset: Option<Times>,
    peers: Vec<PeerLine>,
    goals: Vec<GoalLine>,
}

#[derive(Debug, Serialize)]
struct Line {
    who: String,
    threads: usize,
    times: Times,
}

#[derive(Debug, Serialize)]
struct PeerLine {
    who: String,
    /// The same arithmetic on one thread: what goals are measured against.
    is_torch_on_one_thread: bool,
    #[serde(flatten)]
    record: PeerRecord,
}

#[derive(Debug, Serialize)]
struct GoalLine {
    goal: Goal,
    /// None where the peer is missing.
    ratio: Option<f64>,
    is_met: Option<bool>,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<bool> {
    let chosen = choose(&args.cases)?;
    if args.list {
        chosen.iter().for_each(|(case, _)| println!("{}", case.name));
        return Ok(true);
    }
    let peers = if args.no_peers { None } else { Some(Peers::new(&args.python)?) };
    let has = |module| peers.as_ref().filter(|peers| peers.has(module));
    let (torch, opencv) = (has("torch"), has("cv2"));
    for (peer, name) in [(torch, "torch"), (opencv, "cv2")] {
        if !args.no_peers && peer.is_none() {
            eprintln!("warning: {} has no module {name}: that peer is not timed", args.python);
        }
    }
    let mut record = Record {
        tool: format!("rfdetr-post {}", env!("CARGO_PKG_VERSION")),
        commit: commit(args),
        date: now(),
        cpu: cpu_name(),
        threads: threads(),
        compiler: std::env::var("RFDETR_POST_RUSTC")
            .ok()
            .or_else(|| ask("rustc", &["--version"]))
            .unwrap_or_else(unknown),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        load_before: std::fs::read_to_string("/proc/loadavg").ok().map(|text| text.trim().to_owned()),
        cases: Vec::new(),
        errors: Vec::new(),
    };
    for (idx, (case, goals)) in chosen.iter().enumerate() {
        eprintln!("[{}/{}] {}", idx + 1, chosen.len(), case.name);
        let inputs = case.inputs();
        match time_ours(case, &inputs, Duration::from_secs_f64(args.seconds.max(0.0))) {
            Ok(mut timed) => {
                time_peers(case, &inputs, torch, opencv, &mut timed, &mut record.errors);
                timed.goals = goals.iter().map(|&goal| judge_goal(goal, &timed)).collect();
                record.cases.push(timed);
            }
            Err(err) => record.errors.push(format!("{}: {err:#}", case.name)),
        }
    }
    report(args, &text(&record), &record, &picture(&record))?;
    Ok(record.errors.is_empty())
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// The processor's name, and its family and model: a virtual machine often tells no more of its name than the maker.
fn cpu_name() -> String {
    cpu_name_in(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn cpu_name_in(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        fields.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let Some(name) = field("model name") else { return unknown() };
    match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name.to_owned(),
    }
}

/// Someone to be timed: a name, a number of threads, and what to call.
struct Contender<'a> {
    who: String,
    threads: usize,
    work: Box<dyn FnMut() -> Result<()> + 'a>,
}

/// Times the contenders in turns, so that all see the same machine: blocks of calls, the first of which is not counted.
fn in_turns(contenders: &mut [Contender<'_>], budget: Duration) -> Result<Vec<Times>> {
    let mut times = vec![Vec::new(); contenders.len()];
    let start = Instant::now();
    while times.iter().any(|times| times.len() < 5) || start.elapsed() < budget * contenders.len() as u32 {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            let block = Instant::now();
            (contender.work)()?;
            loop {
                let start = Instant::now();
                (contender.work)()?;
                times.push(start.elapsed().as_secs_f64() * 1e6);
                if block.elapsed() >= BLOCK {
                    break;
                }
            }
        }
    }
    Ok(times.into_iter().map(Times::new).collect())
}

/// Checks the answer, and times ours and a memset of the output.
fn time_ours(case: &Case, inputs: &Inputs, budget: Duration) -> Result<CaseRecord> {
    let options = case.options();
    let request = Request::new(inputs.tensors(), &inputs.metas, &options)?;
    let mut configs: Vec<_> = (SimdLevel::available().into_iter())
        .map(|level| (format!("ours, {}", level.name()), 1, CpuConfig { threads: Threads::One, simd: Some(level) }))
        .collect();
    let two = NonZero::<usize>::MIN.saturating_add(1);
    configs.push(("ours".to_owned(), 2, CpuConfig { threads: Threads::Count(two), simd: None }));
    if threads() > 2 {
        configs.push(("ours".to_owned(), threads(), CpuConfig { threads: Threads::All, simd: None }));
    }
    let judged_by = check(case, inputs, &options, &configs)?;

    let answer = RefCell::new(Detections::default());
    let mut contenders = Vec::new();
    for (who, threads, config) in configs {
        let mut postprocessor = CpuPostprocessor::new(config)?;
        let (request, answer) = (&request, &answer);
        let work = move || Ok(postprocessor.process_into(black_box(request), &mut answer.borrow_mut())?);
        contenders.push(Contender { who, threads, work: Box::new(work) });
    }
    // The first call sizes the buffers that the memset fills.
    (contenders[0].work)()?;
    let (count, checksum) =
        (answer.borrow().images.iter().map(|image| image.len()).sum(), foreground(&answer.borrow()));
    let has_memset = matches!(case.format, MaskFormat::Dense | MaskFormat::BitPacked);
    if has_memset {
        let answer = &answer;
        let work = move || {
            for image in &mut answer.borrow_mut().images {
                match &mut image.masks {
                    Masks::Dense(bytes) => black_box(bytes).fill(0),
                    Masks::BitPacked(words) => black_box(words).fill(0),
                    _ => {}
                }
            }
            Ok(())
        };
        contenders.push(Contender { who: "memset".to_owned(), threads: 1, work: Box::new(work) });
    }
    let mut times = in_turns(&mut contenders, budget)?;
    let memset = if has_memset { times.pop() } else { None };
    let ours = (contenders.into_iter().zip(times))
        .map(|(contender, times)| Line { who: contender.who, threads: contender.threads, times })
        .collect();
    Ok(CaseRecord {
        case: case.name.clone(),
        detections: count,
        checksum,
        judged_by,
        ours,
        memset,
        peers: Vec::new(),
        goals: Vec::new(),
    })
}

/// Compares every configuration with the reference, and the whole answers with each other. Says how far.
fn check(case: &Case, inputs: &Inputs, options: &Options, configs: &[(String, usize, CpuConfig)]) -> Result<String> {
    let area = case.frame.area() * case.batch as u64;
    let makes_pixels = !matches!(case.format, MaskFormat::None | MaskFormat::GridLogits);
    let count = if makes_pixels { (REFERENCE_PIXELS / area).max(1) as usize } else { case.detections };
    let is_whole = count >= case.detections;
    let few =
        Options { max_detections: if is_whole { options.max_detections } else { Some(count) }, ..options.clone() };
    let request = Request::new(inputs.tensors(), &inputs.metas, &few)?;
    let expected = reference::process(&request)?;
    let whole_request = Request::new(inputs.tensors(), &inputs.metas, options)?;
    let mut whole = None;
    for (who, threads, config) in configs {
        let mut postprocessor = CpuPostprocessor::new(*config)?;
        let compare = |expected: &Detections, got: &Detections| match difference(expected, got) {
            Some(difference) => Err(anyhow!("WRONG ANSWER, {who}, {threads} threads: {difference}")),
            None => Ok(()),
        };
        compare(&expected, &postprocessor.process(&request)?)?;
        let got = postprocessor.process(&whole_request)?;
        compare(whole.get_or_insert_with(|| got.clone()), &got)?;
    }
    let all = "reference".to_owned();
    Ok(if is_whole { all } else { format!("reference for the first {count} of an image, each other for all") })
}

fn time_peers(
    case: &Case,
    inputs: &Inputs,
    torch: Option<&Peers>,
    opencv: Option<&Peers>,
    timed: &mut CaseRecord,
    errors: &mut Vec<String>,
) {
    let Some(any) = torch.or(opencv).filter(|_| case.peer_config().is_some()) else { return };
    let mut runs = Vec::new();
    for threads in ["1", "0"] {
        let who = if threads == "1" { "torch, 1 thread" } else { "torch, all threads" };
        if case.format == MaskFormat::Rle {
            runs.push((
                torch,
                format!("{who}, runs in torch"),
                "torch_eager.py",
                vec!["--threads", threads, "--rle", "torch"],
            ));
            runs.push((
                torch,
                format!("{who}, pycocotools"),
                "torch_eager.py",
                vec!["--threads", threads, "--rle", "encode"],
            ));
        } else {
            runs.push((torch, who.to_owned(), "torch_eager.py", vec!["--threads", threads]));
        }
    }
    runs.push((opencv, "OpenCV, 1 thread (other pixels)".to_owned(), "opencv_resize.py", vec!["--threads", "1"]));
    if let Err(err) = any.write(inputs) {
        errors.push(format!("{}: {err:#}", case.name));
        return;
    }
    for (peers, who, script, args) in runs {
        let Some(peers) = peers else { continue };
        match peers.run(script, case, &args).with_context(|| format!("{}: {who}", case.name)) {
            Ok(record) => {
                let is_torch_on_one_thread = script == "torch_eager.py" && args[1] == "1";
                timed.peers.push(PeerLine { who, is_torch_on_one_thread, record });
            }
            Err(err) => errors.push(format!("{err:#}")),
        }
    }
}

impl CaseRecord {
    /// The best instructions on one thread.
    fn ours_on(&self, threads: usize) -> Option<f64> {
        self.ours.iter().rfind(|line| line.threads == threads).map(|line| line.times.median_us)
    }

    /// What torch needs on one thread, whichever way is faster.
    fn torch(&self) -> Option<f64> {
        let torch = self.peers.iter().filter(|peer| peer.is_torch_on_one_thread);
        torch.map(|peer| peer.record.median_us).min_by(f64::total_cmp)
    }
}

fn judge_goal(goal: Goal, timed: &CaseRecord) -> GoalLine {
    let ratio = |high: Option<f64>, low: Option<f64>| Some(high? / low?);
    let one = timed.ours_on(1);
    let (ratio, is_met): (_, fn(f64, f64) -> bool) = match goal {
        Goal::FasterThanTorch(_) => (ratio(timed.torch(), one), |ratio, goal| ratio >= goal),
        Goal::WithinMemsets(_) => (ratio(one, timed.memset.map(|times| times.median_us)), |ratio, goal| ratio <= goal),
        Goal::TwoThreads(_) => (ratio(one, timed.ours_on(2)), |ratio, goal| ratio >= goal),
    };
    let (Goal::FasterThanTorch(number) | Goal::WithinMemsets(number) | Goal::TwoThreads(number)) = goal;
    GoalLine { goal, ratio, is_met: ratio.map(|ratio| is_met(ratio, number)) }
}

fn threads_text(threads: usize) -> String {
    if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") }
}

/// The record for people.
fn text(record: &Record) -> String {
    let mut text = format!(
        "{}, {}, {}, commit {}, {}\n",
        record.cpu,
        threads_text(record.threads),
        record.compiler,
        record.commit,
        record.date
    );
    if let Some(load) = &record.load_before {
        text += &format!("load before the run: {load}\n");
    }
    let mut table = new_table(&["case", "who", "median us", "p10", "p90", "min", "n", "to ours"], 2);
    for timed in &record.cases {
        let best = timed.ours_on(1).unwrap_or(f64::NAN);
        let number = |time: f64| format!("{time:.1}");
        let mut add = |who: String, times: &Times| {
            let ratio = format!("{:.2} x", times.median_us / best);
            let times_text = [times.median_us, times.p10_us, times.p90_us, times.min_us].map(number);
            let mut row = vec![timed.case.clone(), who];
            row.extend(times_text);
            row.extend([times.n.to_string(), ratio]);
            table.add_row(row);
        };
        timed.ours.iter().for_each(|line| add(format!("{}, {}", line.who, threads_text(line.threads)), &line.times));
        if let Some(memset) = &timed.memset {
            add("memset of the output".to_owned(), memset);
        }
        for peer in &timed.peers {
            let record = &peer.record.record;
            let number = |key: &str| record[key].as_f64().map_or_else(|| "-".to_owned(), |time| format!("{time:.1}"));
            let ratio = format!("{:.2} x", peer.record.median_us / best);
            let n = record["n"].as_u64().unwrap_or(0).to_string();
            let cells = ["median_us", "p10", "p90", "min"].map(number);
            let mut row = vec![timed.case.clone(), peer.who.clone()];
            row.extend(cells);
            row.extend([n, ratio]);
            table.add_row(row);
        }
    }
    text += &format!("{table}\n\n");
    let mut table = new_table(&["case", "goal", "ratio", "met", "answers judged by"], 2);
    for timed in &record.cases {
        for line in &timed.goals {
            let goal = match line.goal {
                Goal::FasterThanTorch(ratio) => format!("torch, 1 thread, takes {ratio} x or more"),
                Goal::WithinMemsets(ratio) => format!("at most {ratio} x a memset of the output"),
                Goal::TwoThreads(ratio) => format!("two threads {ratio} x as fast or more"),
            };
            let ratio = line.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2} x"));
            let met = line.is_met.map_or("-", |is_met| if is_met { "yes" } else { "NO" });
            table.add_row([timed.case.clone(), goal, ratio, met.to_owned(), timed.judged_by.clone()]);
        }
    }
    text += &format!("{table}\n");
    record.errors.iter().for_each(|error| text += &format!("FAILED {error}\n"));
    text
}

fn picture(record: &Record) -> String {
    let groups: Vec<_> = (record.cases.iter())
        .map(|timed| {
            let bar = |label: String, us, is_ours| Bar { label, us, is_ours };
            let ours = timed.ours.iter();
            let mut bars: Vec<_> = ours
                .map(|line| bar(format!("{}, {}", line.who, threads_text(line.threads)), line.times.median_us, true))
                .collect();
            bars.extend(timed.memset.map(|times| bar("memset of the output".to_owned(), times.median_us, false)));
            bars.extend(timed.peers.iter().map(|peer| bar(peer.who.clone(), peer.record.median_us, false)));
            Group { name: timed.case.clone(), bars }
        })
        .collect();
    let subtitle = format!(
        "{}, {}, {}, commit {}, {}",
        record.cpu,
        threads_text(record.threads),
        record.compiler,
        record.commit,
        record.date
    );
    svg("rfdetr-post on the CPU: median time of a request", &subtitle, &groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(ours: &[(usize, f64)], memset: Option<f64>, torch: &[f64]) -> CaseRecord {
        let times = |us| Times::new(vec![us]);
        let peer = |&median_us: &f64| PeerLine {
            who: "torch".to_owned(),
            is_torch_on_one_thread: true,
            record: PeerRecord { median_us, checksum: None, record: serde_json::Value::Null },
        };
        CaseRecord {
            case: "case".to_owned(),
            detections: 1,
            checksum: 0,
            judged_by: "reference".to_owned(),
            ours: ours
                .iter()
                .map(|&(threads, us)| Line { who: "ours".to_owned(), threads, times: times(us) })
                .collect(),
            memset: memset.map(times),
            peers: torch.iter().map(peer).collect(),
            goals: Vec::new(),
        }
    }

    #[test]
    fn goals_are_judged_against_the_best() {
        let case = timed(&[(1, 30.0), (1, 10.0), (2, 6.0)], Some(4.0), &[5000.0, 3000.0]);
        let judge = |goal| {
            let line = judge_goal(goal, &case);
            (line.ratio, line.is_met)
        };
        assert_eq!(judge(Goal::FasterThanTorch(300.0)), (Some(300.0), Some(true)));
        assert_eq!(judge(Goal::FasterThanTorch(301.0)).1, Some(false));
        assert_eq!(judge(Goal::WithinMemsets(2.0)), (Some(2.5), Some(false)));
        assert_eq!(judge(Goal::TwoThreads(1.6)).1, Some(true));
        assert_eq!(judge_goal(Goal::FasterThanTorch(1.0), &timed(&[(1, 1.0)], None, &[])).is_met, None);
    }

    #[test]
    fn a_cpu_is_named_with_family_and_model() {
        let text = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n";
        assert_eq!(cpu_name_in(text), "AMD EPYC (family 25, model 17)");
        assert_eq!(cpu_name_in("model name : Some Arm\n"), "Some Arm");
        assert_eq!(cpu_name_in(""), "unknown");
    }

    #[test]
    fn a_small_case_is_checked_and_timed() {
        let case = Case::new("seg-nano", rfdetr_post::Size::new(40, 30), 5, 2, MaskFormat::Dense);
        let timed = time_ours(&case, &case.inputs(), Duration::from_millis(1)).unwrap();
        assert_eq!((timed.detections, timed.judged_by.as_str()), (10, "reference"));
        assert!(timed.memset.is_some() && timed.ours.iter().all(|line| line.times.n >= 5));
        assert!(choose("goals").unwrap().len() < choose("all").unwrap().len());
        assert!(choose("nothing").is_err());
    }
}

//! Checks the portable sigmoid over every f32: all 2^32 bit patterns.
//!
//! ```sh
//! cargo run --release -p rfdetr-post-tests --bin sigmoid
//! ```
//!
//! Numbers are visited in ascending order: the score never falls, is at most 2 ulp from the correctly rounded value down
//! to `UNDERFLOW_LOGIT`, and is 0 below. NaN gives NaN. Ends with 1 if anything is wrong.
//!
//! "Correctly rounded" is f64 arithmetic rounded to f32, which differs from the truth only where the true value lies
//! within about 2^-52 of a boundary between two floats: some tens of inputs, and by 1 ulp.
#![forbid(unsafe_code)]

use std::{ops::RangeInclusive, process::ExitCode, thread, time::Instant};

use rfdetr_post_core::score::{UNDERFLOW_LOGIT, sigmoid};

/// What one thread, or all of them, counted.
#[derive(Debug, Default, Clone)]
struct Count {
    numbers: u64,
    /// Numbers by distance from the correctly rounded value: 0, 1, 2, and more ulp.
    ulps: [u64; 4],
    /// Numbers below the underflow.
    underflow: u64,
    ones: u64,
    /// Violations: the score falls, is too far off, is not 0 below the underflow.
    falls: u64,
    not_zero: u64,
    worst: Option<(u32, f32)>,
}

impl Count {
    fn add(&mut self, other: &Self) {
        self.numbers += other.numbers;
        self.ulps.iter_mut().zip(&other.ulps).for_each(|(sum, count)| *sum += count);
        self.underflow += other.underflow;
        self.ones += other.ones;
        self.falls += other.falls;
        self.not_zero += other.not_zero;
        self.worst = [self.worst, other.worst].into_iter().flatten().max_by_key(|worst| worst.0);
    }
}

/// The float at a position of the order of all numbers, -Inf at `POSITIONS.start()`; -0 is directly before +0.
fn number(position: u32) -> f32 {
    f32::from_bits(if position >> 31 == 1 { position & !(1 << 31) } else { !position })
}

/// Positions of -Inf to +Inf.
const POSITIONS: RangeInclusive<u32> = !0xff80_0000..=0x7f80_0000 | 1 << 31;

/// Visits the numbers at `positions`, and the one before them for its score.
fn visit(positions: RangeInclusive<u32>) -> Count {
    let mut count = Count::default();
    let start = *positions.start();
    let mut before = if start == *POSITIONS.start() { 0.0 } else { sigmoid(number(start - 1)) };
    for position in positions {
        let logit = number(position);
        let score = sigmoid(logit);
        count.numbers += 1;
        count.falls += u64::from(score < before || score.is_nan());
        count.ones += u64::from(score == 1.0);
        before = score;
        if logit < UNDERFLOW_LOGIT {
            count.underflow += 1;
            count.not_zero += u64::from(score.to_bits() != 0);
            continue;
        }
        let exact = (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32;
        let ulps = score.to_bits().abs_diff(exact.to_bits());
        count.ulps[ulps.min(3) as usize] += 1;
        if count.worst.is_none_or(|(worst, _)| ulps > worst) {
            count.worst = Some((ulps, logit));
        }
    }
    count
}

fn main() -> ExitCode {
    let begin = Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (first, last) = (u64::from(*POSITIONS.start()), u64::from(*POSITIONS.end()));
    let total = last - first + 1;
    let share = |i: usize| first + total * i as u64 / threads as u64;
    let mut sum = Count::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|i| (share(i) as u32)..=((share(i + 1) - 1) as u32))
            .map(|positions| scope.spawn(|| visit(positions)))
            .collect();
        for worker in workers {
            sum.add(&worker.join().expect("the worker does not panic"));
        }
    });
    let nan_patterns = (0x7f80_0001..=0x7fff_ffffu32).chain(0xff80_0001..=0xffff_ffff);
    let (nans, wrong_nans) = nan_patterns
        .fold((0u64, 0u64), |(all, wrong), bits| (all + 1, wrong + u64::from(!sigmoid(f32::from_bits(bits)).is_nan())));

    println!("bit patterns   {} = 2^32: {} numbers, {nans} NaN", sum.numbers + nans, sum.numbers);
    println!("falling        {}", sum.falls);
    println!("0 ulp          {}", sum.ulps[0]);
    println!("1 ulp          {}", sum.ulps[1]);
    println!("2 ulp          {}", sum.ulps[2]);
    println!("more           {}", sum.ulps[3]);
    println!("worst          {:?} (ulp, first logit)", sum.worst);
    println!("below {UNDERFLOW_LOGIT}: {} numbers, {} of them not 0", sum.underflow, sum.not_zero);
    println!("exactly 1      {}", sum.ones);
    println!("NaN, not NaN   {wrong_nans}");
    println!("{threads} threads, {:.0} s", begin.elapsed().as_secs_f64());
    let right = sum.numbers + nans == 1 << 32
        && sum.ulps.iter().sum::<u64>() + sum.underflow == sum.numbers
        && sum.falls + sum.ulps[3] + sum.not_zero + wrong_nans == 0;
    if right {
        println!("all hold");
        ExitCode::SUCCESS
    } else {
        println!("VIOLATED");
        ExitCode::FAILURE
    }
}

//! `cargo xtask test`: every test that a machine without GPU, CUDA and Python can run.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace;

/// Flags of `test`.
#[derive(Args)]
pub struct Flags {
    /// Cases of each property, in place of its own number
    #[arg(long, value_name = "N")]
    cases: Option<u32>,
    /// Arguments of the test programs, such as a part of a test's name
    #[arg(last = true)]
    rest: Vec<String>,
}

/// How many tests ran, by their own report.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that did not run because they say so.
    pub ignored: u32,
}

impl Totals {
    /// Adds the numbers of one line of cargo's output, if it is the result of a test program.
    fn add_line(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else { return };
        for part in counts.1.split("; ") {
            let mut words = part.split(' ');
            let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u32>), words.next()) else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

/// What the tests of a machine without a GPU leave out.
pub const DEVICE: &str = "device: not run";

/// Runs `test`.
pub fn run(flags: &Flags) -> Result<()> {
    let start = Instant::now();
    let mut tests = command();
    if let Some(cases) = flags.cases {
        tests.env("PROPTEST_CASES", cases.to_string());
    }
    if !flags.rest.is_empty() {
        tests.arg("--").args(&flags.rest);
    }
    let (totals, outcome) = watch(tests, &mut std::io::stdout());
    println!("\n{:.0} s", start.elapsed().as_secs_f64());
    if let Err(error) = &outcome {
        println!("FAILED: {error:#}");
    }
    println!("{DEVICE}\n{totals}");
    // The totals are the last word, also of a failure.
    if outcome.is_err() { std::process::exit(1) } else { Ok(()) }
}

/// All tests of the workspace: units, integration, properties, golden files, documentation.
pub fn command() -> Command {
    let mut tests = workspace::cargo(&["test", "--workspace", "--no-fail-fast"]);
    // The test of the facade's calls needs a kernel that is otherwise left out.
    tests.args(["--features", "rfdetr-post-kernels/self-test"]);
    tests
}

/// Runs a test command, passes its output on as it comes, and sums up the results in it.
pub fn watch(mut command: Command, to: &mut impl Write) -> (Totals, Result<()>) {
    let mut totals = Totals::default();
    let mut run = || -> Result<()> {
        let shown = workspace::shown(&command);
        writeln!(to, "{shown}")?;
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let mut stdout = BufReader::new(child.stdout.take().context("no pipe to the tests")?);
        // By bytes: a test may print anything.
        let mut line = Vec::new();
        while stdout.read_until(b'\n', &mut line)? > 0 {
            to.write_all(&line)?;
            to.flush()?;
            totals.add_line(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("`{shown}`: {status}");
        }
        Ok(())
    };
    let outcome = run();
    (totals, outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed() {
        let mut totals = Totals::default();
        for line in [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "test a ... ok",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
            "all doctests ran in 1.20s; merged doctests compilation took 0.90s",
        ] {
            totals.add_line(line);
        }
        assert_eq!(totals, Totals { passed: 15, failed: 2, ignored: 1 });
        assert_eq!(totals.to_string(), "15 passed, 2 failed, 1 ignored");
    }

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured'; exit 3"]);
        // Not to our own output, which is summed up, too.
        let mut output = Vec::new();
        let (totals, outcome) = watch(command, &mut output);
        assert_eq!(totals.passed, 4);
        assert!(String::from_utf8(output).unwrap().ends_with("0 measured\n"));
        assert!(outcome.unwrap_err().to_string().starts_with("`sh -c "));
    }
}

//! The command line: `run`, `demo`, `info` and `bench`.
//!
//! [`args`] holds the flags, [`sidecar`] and [`config`] what files and flags say, [`tensors`] and [`npz`] read model
//! outputs, [`job`] takes one input from file to files, [`run`] does it for many, [`summary`] tells about it;
//! [`bench`] times the machine.

mod args;
mod bench;
mod coco;
mod coco_names;
mod config;
mod demo;
mod info;
mod job;
mod npz;
mod overlay;
mod picture;
mod run;
mod sidecar;
mod summary;
mod tensors;
mod upstream;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

/// A mistake in the command line that clap cannot see.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Runs the program: 0 all went well, 1 an input failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(*args),
        Command::Demo(args) => demo::run(&args),
        Command::Info(args) => info::run(&args).map(|()| true),
        Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::from(if err.is::<Usage>() { 2 } else { 1 })
        }
    }
}

//! `rfdetr-post demo`: the sample that is built in.

use std::time::Instant;

use anyhow::Result;
use rfdetr_post::{CpuConfig, Threads};

use super::{
    args::DemoArgs,
    config::{OptionsPatch, parse_classes},
    job::{self, Flags},
    run,
    summary::InputReport,
};

const NPZ: &[u8] = include_bytes!("../../sample/street.npz");
const SIDECAR: &[u8] = include_bytes!("../../sample/street.json");
const PICTURE: &[u8] = include_bytes!("../../sample/street.png");

/// Runs the command. The result says whether all went well.
pub fn run(args: &DemoArgs) -> Result<bool> {
    let start = Instant::now();
    run::make_out(&args.output.out)?;
    let patch = OptionsPatch { classes: Some(parse_classes("coco91-ids")?), ..OptionsPatch::default() };
    let flags = Flags { patch, overlay: true, out: args.output.out.clone(), ..Flags::default() };
    let config = CpuConfig { threads: Threads::All, ..CpuConfig::default() };
    let mut postprocessor = args.device.device.postprocessor(config)?;
    let outcome = job::run_embedded("street", (NPZ, SIDECAR, PICTURE), &flags, &mut postprocessor);
    let report =
        InputReport { input: "street (built in)".to_owned(), outcome: outcome.map_err(|err| format!("{err:#}")) };
    run::report(vec![report], &postprocessor, &args.output, start)
}

//! A program of a user: a request made by hand, on the CPU and, if there is one, on the GPU.
//!
//! `downstream [--device auto|cpu|cuda|fleet] [--out FILE]`: the answer of the device is compared with the reference's, and
//! written to the file in full, so that files of two devices can be compared as bytes.

use std::{error::Error, fmt::Write as _, fs};

use rfdetr_post::{
    ClassLayout, Detections, ImageMeta, MaskFormat, MaskRef, Options, Postprocessor, ProcessError, Size, Tensor,
    Tensors, Thresholds, cuda,
};

/// What a model of 7 queries, 5 class columns and a mask grid of 9 x 12 cells gives for two pictures.
struct Outputs {
    dets: Vec<f32>,
    labels: Vec<f32>,
    masks: Vec<f32>,
}

impl Outputs {
    fn new() -> Self {
        let wave = |len: usize, step: usize, low: f32, high: f32| -> Vec<f32> {
            (0..len).map(|i| low + (high - low) * (i * step % 97) as f32 / 96.0).collect()
        };
        Self {
            dets: wave(2 * 7 * 4, 31, 0.1, 0.8),
            labels: wave(2 * 7 * 5, 41, -5.0, 3.0),
            masks: wave(2 * 7 * 9 * 12, 57, -2.0, 2.0),
        }
    }

    fn tensors(&self) -> Tensors<'_> {
        Tensors {
            boxes: Tensor::new(&self.dets[..], &[2, 7, 4]),
            logits: Tensor::new(&self.labels[..], &[2, 7, 5]),
            masks: Some(Tensor::new(&self.masks[..], &[2, 7, 9, 12])),
        }
    }
}

/// Everything that an answer holds, to the last bit.
fn shown(detections: &Detections) -> String {
    let mut text = String::new();
    for (image, detections) in detections.images.iter().enumerate() {
        for (idx, row) in detections.rows.iter().enumerate() {
            let mask = match detections.mask(idx) {
                Some(MaskRef::Rle(text)) => String::from_utf8_lossy(text).into_owned(),
                other => format!("{other:?}"),
            };
            let bits = row.xyxy.map(f32::to_bits);
            let score = row.confidence.to_bits();
            // Writing to a string does not fail.
            let _ = writeln!(text, "{image} class {} score {score:08x} box {bits:08x?} mask {mask}", row.class_id);
        }
    }
    text
}

/// What the flags say: the device, and where to write the answer.
fn flags() -> Result<(String, Option<String>), String> {
    let (mut device, mut out) = ("auto".to_owned(), None);
    let mut words = std::env::args().skip(1);
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("{flag} has no value"))?;
        match flag.as_str() {
            "--device" => device = value,
            "--out" => out = Some(value),
            _ => return Err(format!("no flag {flag}: expected --device, --out")),
        }
    }
    Ok((device, out))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (device, out) = flags()?;
    let outputs = Outputs::new();
    let network = Size::new(48, 36);
    let metas = [
        ImageMeta::stretch(Size::new(640, 427), network)?,
        ImageMeta::letterbox(Size::new(301, 200), network, network)?,
    ];
    let options = Options {
        classes: ClassLayout::fine_tuned(4),
        threshold: Thresholds::Scalar(0.3),
        mask_format: MaskFormat::Rle,
        ..Options::default()
    };

    let expected = Postprocessor::reference().process(&outputs.tensors(), &metas, &options)?;
    let count: usize = expected.images.iter().map(|image| image.len()).sum();
    println!("{count} detections");
    if count == 0 {
        return Err("no detections: the example shows nothing".into());
    }

    let mut postprocessor = match device.as_str() {
        "auto" => Postprocessor::auto(),
        "cpu" => Postprocessor::cpu(),
        // An error, where there is no GPU: whoever asks for one does not want to be given something else.
        "cuda" => Postprocessor::cuda_on(0)?,
        // One image on each of two GPUs; where there is only one, both on it.
        "fleet" => Postprocessor::cuda_fleet(&[0, usize::from(cuda::device_count()? > 1)])?,
        _ => return Err(format!("no device {device}: expected auto, cpu, cuda, fleet").into()),
    };
    let why = postprocessor.fallback_reason().map(|why| format!(", because: {why}"));
    println!("{device}: {}{}", postprocessor.backend(), why.unwrap_or_default());
    // A room of 16 bytes a mask is too little on a GPU, and the error says what would do.
    postprocessor.set_mask_capacity(16);
    let mut num_errors = 0;
    let answer = loop {
        match postprocessor.process(&outputs.tensors(), &metas, &options) {
            Err(ProcessError::Request(rfdetr_post::Error::Capacity { needed, .. })) => {
                println!("{device}: a mask needs {needed} bytes");
                postprocessor.set_mask_capacity(u32::try_from(needed)?);
                num_errors += 1;
            }
            answer => break answer?,
        }
    };
    if (num_errors > 0) != (postprocessor.backend() == "cuda") {
        return Err(format!("{num_errors} capacity errors on {}", postprocessor.backend()).into());
    }
    if answer != expected {
        return Err(format!("{}:\n{}expected:\n{}", postprocessor.backend(), shown(&answer), shown(&expected)).into());
    }
    if let Some(out) = out {
        fs::write(out, shown(&answer))?;
    }

    // Errors have types: a GPU that is not there is no panic.
    match cuda::device_info(usize::MAX) {
        Err(cuda::Error::NoDevice { count, .. }) => println!("{count} GPUs"),
        Err(cuda::Error::NoDriver) => println!("no driver"),
        other => println!("{other:?}"),
    }
    Ok(())
}

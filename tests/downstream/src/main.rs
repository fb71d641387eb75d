//! A program of a user: a request made by hand, on the CPU and, if there is one, on the GPU.

use std::error::Error;

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

/// A sum over everything that an answer holds.
fn digest(detections: &Detections) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |value: u64| sum = (sum ^ value).wrapping_mul(0x0100_0000_01b3);
    for image in &detections.images {
        for (idx, row) in image.rows.iter().enumerate() {
            row.xyxy.iter().for_each(|x| add(x.to_bits().into()));
            add(row.confidence.to_bits().into());
            add(row.class_id as u64);
            if let Some(MaskRef::Rle(text)) = image.mask(idx) {
                text.iter().for_each(|&byte| add(byte.into()));
            }
        }
    }
    sum
}

fn main() -> Result<(), Box<dyn Error>> {
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

    let expected = Postprocessor::cpu().process(&outputs.tensors(), &metas, &options)?;
    let count: usize = expected.images.iter().map(|image| image.len()).sum();
    println!("cpu: {count} detections, digest {:016x}", digest(&expected));
    if count == 0 {
        return Err("no detections: the example shows nothing".into());
    }

    let mut auto = Postprocessor::auto();
    println!(
        "auto: {}{}",
        auto.backend(),
        auto.fallback_reason().map(|why| format!(", because: {why}")).unwrap_or_default()
    );
    // A room of 16 bytes a mask is too little on a GPU, and the error says what would do.
    auto.set_mask_capacity(16);
    let answer = match auto.process(&outputs.tensors(), &metas, &options) {
        Err(ProcessError::Request(rfdetr_post::Error::Capacity { needed, .. })) => {
            println!("auto: a mask needs {needed} bytes");
            auto.set_mask_capacity(u32::try_from(needed)?);
            auto.process(&outputs.tensors(), &metas, &options)?
        }
        answer => answer?,
    };
    if digest(&answer) != digest(&expected) {
        return Err(format!("{}: digest {:016x}", auto.backend(), digest(&answer)).into());
    }

    // Errors have types: a GPU that is not there is no panic.
    match cuda::device_info(usize::MAX) {
        Err(cuda::Error::NoDevice { count, .. }) => println!("{count} GPUs"),
        Err(cuda::Error::NoDriver) => println!("no driver"),
        other => println!("{other:?}"),
    }
    Ok(())
}

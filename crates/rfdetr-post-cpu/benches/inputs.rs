//! Model-like inputs: smooth blobs that cover 1 to 30 % of the image, or noise as the worst case.

use rfdetr_post_core::{ImageMeta, Size, Tensor, Tensors};

/// A batch of model outputs, with the records of its images.
pub struct Inputs {
    pub boxes: Vec<f32>,
    pub logits: Vec<f32>,
    pub masks: Vec<f32>,
    pub shapes: ([usize; 3], [usize; 3], [usize; 4]),
    pub metas: Vec<ImageMeta>,
}

/// What to make.
#[derive(Clone, Copy)]
pub struct Scene {
    pub batch: usize,
    pub queries: usize,
    pub classes: usize,
    /// Side of the mask grid; 0 for a detection model.
    pub side: usize,
    pub detections: usize,
    pub image: Size,
    /// Mask logits of independent noise instead of blobs.
    pub noise: bool,
}

struct Random(u64);

impl Random {
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.unit()).sum::<f32>()) - 6.0
    }
}

impl Inputs {
    /// The same for the same scene, always.
    pub fn new(scene: Scene) -> Self {
        let Scene { batch, queries, classes, side, detections, image, noise } = scene;
        let mut random = Random(12345);
        let (mut boxes, mut logits, mut masks) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..batch {
            for query in 0..queries {
                // Detections are spread over the queries, as they are in the model's answers.
                let detected = query * detections / queries != (query + 1) * detections / queries;
                let row = logits.len();
                logits.extend((0..classes).map(|_| -6.0 + random.normal()));
                if detected {
                    logits[row + 1 + query % (classes - 1)] = 0.5 + 3.0 * random.unit();
                }
                // From 1 to 30 % of the image, small ones more often.
                let share = 0.01 * 30f32.powf(random.unit());
                let aspect = 0.5 + 1.5 * random.unit();
                let (w, h) = ((share * aspect * 1.3).sqrt().min(0.9), (share / aspect * 1.3).sqrt().min(0.9));
                let (cx, cy) = (w / 2.0 + (1.0 - w) * random.unit(), h / 2.0 + (1.0 - h) * random.unit());
                boxes.extend([cx, cy, w, h]);
                let lobes: Vec<_> =
                    (2..7).map(|k| (k as f32, 0.25 / k as f32 * random.unit(), 6.3 * random.unit())).collect();
                let waves: Vec<_> =
                    (0..4).map(|_| (20.0 * random.unit(), 20.0 * random.unit(), 6.3 * random.unit())).collect();
                for i in 0..side * side {
                    if noise {
                        masks.push(random.normal());
                        continue;
                    }
                    let (x, y) = ((i % side) as f32 + 0.5, (i / side) as f32 + 0.5);
                    let (dx, dy) = ((x / side as f32 - cx) / w * 2.0, (y / side as f32 - cy) / h * 2.0);
                    let angle = dy.atan2(dx);
                    let radius = 1.0 + lobes.iter().map(|(k, a, p)| a * (k * angle + p).cos()).sum::<f32>();
                    let cells = (radius - dx.hypot(dy)) * (w.min(h) / 2.0) * side as f32;
                    let ripple: f32 = waves.iter().map(|(a, b, p)| (a * dx + b * dy + p).sin()).sum();
                    masks.push((cells * 0.8 + 0.15 * ripple).clamp(-12.0, 12.0));
                }
            }
        }
        let side_net = (side.max(78) * 4) as u32;
        Self {
            boxes,
            logits,
            masks,
            shapes: ([batch, queries, 4], [batch, queries, classes], [batch, queries, side, side]),
            metas: vec![ImageMeta::stretch(image, Size::new(side_net, side_net)).unwrap(); batch],
        }
    }

    pub fn tensors(&self) -> Tensors<'_> {
        Tensors {
            boxes: Tensor::new(&self.boxes[..], &self.shapes.0),
            logits: Tensor::new(&self.logits[..], &self.shapes.1),
            masks: (!self.masks.is_empty()).then(|| Tensor::new(&self.masks[..], &self.shapes.2)),
        }
    }

    /// The tensors as a safetensors file.
    #[allow(dead_code, reason = "the example uses it, the benches do not")]
    pub fn safetensors(&self) -> Vec<u8> {
        let mut header = String::from("{");
        let mut data = Vec::new();
        let mut add = |name: &str, shape: &[usize], values: &[f32]| {
            let start = data.len();
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            let comma = if start == 0 { "" } else { "," };
            let end = data.len();
            header += &format!(
                "{comma}\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
            );
        };
        add("dets", &self.shapes.0, &self.boxes);
        add("labels", &self.shapes.1, &self.logits);
        if !self.masks.is_empty() {
            add("masks", &self.shapes.2, &self.masks);
        }
        header += "}";
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }
}

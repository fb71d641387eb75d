//! `rfdetr-post info`: models, back ends, versions.

use anyhow::Result;
use rfdetr_post::{
    CpuConfig, SimdLevel,
    models::{VARIANTS, Variant},
};
use serde::Serialize;

use super::{
    args::InfoArgs,
    summary::{new_table, print},
};

/// Prints what the program knows.
pub fn run(args: &InfoArgs) -> Result<()> {
    let info = Info {
        version: env!("CARGO_PKG_VERSION"),
        minimum_rust: env!("CARGO_PKG_RUST_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        backends: vec![
            Backend {
                name: "cpu",
                threads: threads(),
                instructions: SimdLevel::available().into_iter().map(SimdLevel::name).collect(),
            },
            Backend { name: "reference", threads: 1, instructions: Vec::new() },
        ],
        gpus: gpus(),
        models: VARIANTS.iter().map(Model::from).collect(),
    };
    // Made as `run` would make it, so that what works here works there.
    if let Some(device) = args.device {
        device.postprocessor(CpuConfig::default())?;
    }
    print(&if args.json { serde_json::to_string_pretty(&info)? + "\n" } else { info.text() })?;
    Ok(())
}

#[derive(Serialize)]
struct Info {
    version: &'static str,
    minimum_rust: &'static str,
    target: String,
    backends: Vec<Backend>,
    gpus: Gpus,
    models: Vec<Model>,
}

/// The GPUs of this machine, or why there are none.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Gpus {
    Devices(Vec<Gpu>),
    None { reason: String },
}

#[derive(Serialize)]
struct Gpu {
    device: String,
    name: String,
    compute_capability: String,
    memory_mib: u64,
    driver_cuda_version: String,
}

#[cfg(feature = "cuda")]
fn gpus() -> Gpus {
    use rfdetr_post::cuda::{DeviceInfo, device_count, device_info};
    let gpu = |info: DeviceInfo| Gpu {
        device: format!("cuda:{}", info.ordinal),
        name: info.name,
        compute_capability: format!("{}.{}", info.compute_capability.0, info.compute_capability.1),
        memory_mib: info.memory_bytes >> 20,
        driver_cuda_version: format!("{}.{}", info.driver_version / 1000, info.driver_version % 1000 / 10),
    };
    match device_count().and_then(|count| (0..count).map(|ordinal| device_info(ordinal).map(gpu)).collect()) {
        Ok(devices) if Vec::is_empty(&devices) => Gpus::None { reason: "the driver lists no device".to_owned() },
        Ok(devices) => Gpus::Devices(devices),
        Err(error) => Gpus::None { reason: error.to_string() },
    }
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Gpus {
    Gpus::None { reason: "built without the feature `cuda`".to_owned() }
}

#[derive(Serialize)]
struct Backend {
    name: &'static str,
    threads: usize,
    instructions: Vec<&'static str>,
}

#[derive(Serialize)]
struct Model {
    name: &'static str,
    resolution: u32,
    num_queries: u32,
    num_select: u32,
    num_classes: u32,
    mask_side: Option<u32>,
}

impl From<&Variant> for Model {
    fn from(variant: &Variant) -> Self {
        let Variant { name, resolution, num_queries, num_select, num_classes, mask_side } = *variant;
        Self { name, resolution, num_queries, num_select, num_classes, mask_side }
    }
}

impl Info {
    fn text(&self) -> String {
        let mut models = new_table(&["model", "input", "queries", "num_select", "class columns", "mask grid"], 1);
        for model in &self.models {
            let square = |side: u32| format!("{side}x{side}");
            models.add_row([
                model.name.to_owned(),
                square(model.resolution),
                model.num_queries.to_string(),
                model.num_select.to_string(),
                model.num_classes.to_string(),
                model.mask_side.map_or_else(|| "-".to_owned(), square),
            ]);
        }
        let mut backends = new_table(&["back end", "threads", "instructions, the best last"], 3);
        for backend in &self.backends {
            let instructions =
                if backend.instructions.is_empty() { "-".to_owned() } else { backend.instructions.join(" ") };
            backends.add_row([backend.name.to_owned(), backend.threads.to_string(), instructions]);
        }
        let gpus = match &self.gpus {
            Gpus::None { reason } => format!("no GPU: {reason}"),
            Gpus::Devices(devices) => {
                let mut gpus = new_table(&["device", "GPU", "compute capability", "memory", "driver for CUDA"], 2);
                for gpu in devices {
                    gpus.add_row([
                        gpu.device.clone(),
                        gpu.name.clone(),
                        gpu.compute_capability.clone(),
                        format!("{} MiB", gpu.memory_mib),
                        gpu.driver_cuda_version.clone(),
                    ]);
                }
                gpus.to_string()
            }
        };
        format!(
            "rfdetr-post {} on {} (needs Rust {} to build)\n\n{models}\nShapes are read from the inputs; the table is \
             for orientation.\n\n{backends}\n\n{gpus}\n",
            self.version, self.target, self.minimum_rust
        )
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

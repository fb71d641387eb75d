//! `rfdetr-post info`: models, back ends, versions.

use anyhow::Result;
use rfdetr_post::models::{VARIANTS, Variant};
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
            Backend { name: "cpu", threads: threads(), features: cpu_features() },
            Backend { name: "reference", threads: 1, features: Vec::new() },
        ],
        models: VARIANTS.iter().map(Model::from).collect(),
    };
    print(&if args.json { serde_json::to_string_pretty(&info)? + "\n" } else { info.text() })?;
    Ok(())
}

#[derive(Serialize)]
struct Info {
    version: &'static str,
    minimum_rust: &'static str,
    target: String,
    backends: Vec<Backend>,
    models: Vec<Model>,
}

#[derive(Serialize)]
struct Backend {
    name: &'static str,
    threads: usize,
    features: Vec<&'static str>,
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
        let mut backends = new_table(&["back end", "threads", "processor features"], 3);
        for backend in &self.backends {
            let features = if backend.features.is_empty() { "-".to_owned() } else { backend.features.join(" ") };
            backends.add_row([backend.name.to_owned(), backend.threads.to_string(), features]);
        }
        format!(
            "rfdetr-post {} on {} (needs Rust {} to build)\n\n{models}\nShapes are read from the inputs; the table is \
             for orientation.\n\n{backends}\n",
            self.version, self.target, self.minimum_rust
        )
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The vector features of this processor that matter here.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("sse4.1", is_x86_feature_detected!("sse4.1")),
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    let features = [("neon", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let features: [(&'static str, bool); 0] = [];
    features.into_iter().filter(|(_, found)| *found).map(|(name, _)| name).collect()
}

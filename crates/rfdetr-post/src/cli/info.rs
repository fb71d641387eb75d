//! `rfdetr-post info`: models, back ends, versions.

use anyhow::Result;
use rfdetr_post::{
    SimdLevel,
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

//! The flags, and nothing else.

use std::path::PathBuf;

#[cfg(feature = "cuda")]
use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use rfdetr_post::{CpuConfig, MaskFormat, Postprocessor, Size, StaticCrop};

use super::{
    bench::BenchArgs,
    config::{self, ClassesSpec, OptionsPatch, SemanticsSpec, ThresholdSpec},
    tensors::TensorNames,
};

const EXAMPLES: &str = "\
Examples:
  rfdetr-post demo
      Run on the sample that is built in, and write an overlay picture and a COCO JSON.
  rfdetr-post run street.npz
      Metadata and configuration come from street.json beside it.
  rfdetr-post run out.npz --image street.png --network 312 --classes coco91-ids --threshold 0.4
      No sidecar: the picture gives its size, the network's size is a flag.
  rfdetr-post run outputs/ --image pictures/ --out results --json
      A whole folder in parallel; a machine-readable summary on stdout.

Exit codes: 0 all went well; 1 an input failed (the others were still processed); 2 wrong usage.";

const RUN_EXAMPLES: &str = "\
Inputs:
  An input is an .npz or .safetensors file with `dets` [B, Q, 4] (cx, cy, w, h in 0..1), `labels` [B, Q, C] (class
  logits) and, for segmentation models, `masks` [B, Q, Mh, Mw] (mask logits), in f32, f16 or bf16; without the batch
  axis it is one image. Arrays are found by name and checked by shape, never guessed (--tensor-names maps names).
  A folder stands for all such files in it, sorted by name.

Sidecar:
  NAME.json beside NAME.npz may give everything; flags win over it. All fields are optional:
    {\"images\": [{\"id\": 1, \"file_name\": \"street.png\",
                 \"meta\": {\"stretch\": {\"original\": {\"width\": 1280, \"height\": 720},
                                      \"network\": {\"width\": 312, \"height\": 312}}}}],
     \"options\": {\"threshold\": 0.4, \"classes\": \"coco91-ids\", \"semantics\": \"roboflow\", \"num_select\": 100,
                 \"max_detections\": 20, \"mask_format\": \"rle\"},
     \"class_names\": [\"\", \"person\"],
     \"tensor_names\": {\"dets\": \"pred_boxes\"}}
  `meta` may also be `letterbox` or `center_crop` (with `frame` and `static_crop`), or a full record.
  `threshold` may be a list with one number a class id. `classes` takes the words of --classes, the core's record, or
  {\"layout\": {\"remap\": [null, 0, 1]}, \"names\": [\"cat\", \"dog\"]}; a FILE.json given to --classes holds the same.

Outputs, in --out:
  detections.json      COCO results of all inputs: image_id, category_id, bbox, score, segmentation, area
  images.json          a COCO data set with the images' ids, names and sizes, for COCO(..).loadRes(..)
  NAME_overlay.png     masks, boxes, names and scores on the picture, where a picture is known
  NAME_masks.npz       with --format dense, bit-packed or grid-logits: the masks as arrays
  masks/NAME_000.png   with --save-masks: one black and white picture a detection

Examples:
  rfdetr-post run street.npz
  rfdetr-post run out.npz --image street.png --network 312 --classes coco91-ids
  rfdetr-post run out.npz --image-size 1280x720 --network 432 --resize letterbox --format none
  rfdetr-post run out.safetensors --tensor-names dets=pred_boxes,labels=pred_logits,masks=pred_masks
  rfdetr-post run outputs/ --image pictures/ --threshold 0.3 --out results --json

Exit codes: 0 all went well; 1 an input failed (the others were still processed); 2 wrong usage.";

/// Post-processing of RF-DETR and RF-DETR-Seg: model outputs in, COCO detections with masks out
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Post-process files of model outputs
    Run(Box<RunArgs>),
    /// Post-process the built-in sample: no input, network or GPU needed
    Demo(DemoArgs),
    /// Show the known models, the back ends of this machine and versions
    Info(InfoArgs),
    /// Time this machine on model-like requests, beside its peers; every answer is checked
    Bench(Box<BenchArgs>),
}

/// Flags of `run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// .npz or .safetensors files, or folders of them
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,

    /// Picture of the (single) image; or a folder that holds the sidecars' `file_name`s, or else NAME.png or .jpg
    #[arg(long, value_name = "PICTURE", help_heading = "Input")]
    pub image: Option<PathBuf>,
    /// Sidecar to use in place of NAME.json beside each input
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub meta: Option<PathBuf>,
    /// Names of the arrays: dets=NAME,labels=NAME,masks=NAME
    #[arg(long, value_name = "MAP", help_heading = "Input", value_parser = with_causes(TensorNames::parse))]
    pub tensor_names: Option<TensorNames>,

    /// Flags that replace the sidecar's metadata.
    #[command(flatten)]
    pub geometry: GeometryArgs,
    /// Flags that replace the sidecar's options.
    #[command(flatten)]
    pub options: OptionArgs,
    /// Flags of the output.
    #[command(flatten)]
    pub output: OutputArgs,

    /// Write each mask as a PNG, too
    #[arg(long, help_heading = "Output")]
    pub save_masks: bool,
    /// Draw no overlay
    #[arg(long, help_heading = "Output")]
    pub no_overlay: bool,
    /// Inputs processed at the same time; default: one a processor
    #[arg(long, value_name = "N", help_heading = "Execution", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Where to compute; all devices give the same bits
    #[command(flatten)]
    pub device: DeviceFlag,
    /// What computes on the CPU
    #[arg(long, value_enum, help_heading = "Execution", default_value_t = BackendArg::Cpu)]
    pub backend: BackendArg,
}

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Flags of the output.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceFlag,
}

/// Flags of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Exit with 1 unless this device can be used: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", value_parser = with_causes(DeviceArg::parse))]
    pub device: Option<DeviceArg>,
}

/// How the images became network inputs.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Image metadata (any of these replaces the sidecar's)")]
pub struct GeometryArgs {
    /// Size of the original image; default: the picture's
    #[arg(long, value_name = "WxH", value_parser = with_causes(config::parse_size))]
    pub image_size: Option<Size>,
    /// Size of the network's input, such as 312 or 312x312
    #[arg(long, value_name = "WxH", value_parser = with_causes(config::parse_size))]
    pub network: Option<Size>,
    /// How the image was resized; default: stretch
    #[arg(long, value_enum)]
    pub resize: Option<ResizeArg>,
    /// Frame that the image was padded or cropped to before a last stretch; default: the network's size
    #[arg(long, value_name = "WxH", value_parser = with_causes(config::parse_size))]
    pub frame: Option<Size>,
    /// Crop of the original image before the resize
    #[arg(long, value_name = "X,Y,W,H", value_parser = with_causes(config::parse_static_crop))]
    pub static_crop: Option<StaticCrop>,
}

/// How an image was resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResizeArg {
    /// Each axis on its own
    Stretch,
    /// One factor, then padding
    Letterbox,
    /// No scaling: padded or cropped around the center
    CenterCrop,
}

/// What to compute.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Configuration (wins over the sidecar's)")]
pub struct OptionArgs {
    /// Scores must be above it: a number, or one number a class id with commas, or FILE.json; default: 0.4
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = with_causes(config::parse_threshold))]
    pub threshold: Option<ThresholdSpec>,
    /// What the class columns mean: coco91 (ids 0..80), coco91-ids (COCO's ids), identity, fine-tuned:N (the last
    /// column is no object), or FILE.json; default: identity
    #[arg(long, value_name = "LAYOUT", value_parser = with_causes(config::parse_classes))]
    pub classes: Option<ClassesSpec>,
    /// Whose arithmetic to follow: roboflow, rf-detr, or JSON; default: roboflow
    #[arg(long, value_name = "WHOSE", value_parser = with_causes(config::parse_semantics))]
    pub semantics: Option<SemanticsSpec>,
    /// Form of the masks; default: rle if the model has masks
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    /// Size of the flat top-k over all (query, class) pairs; default: the number of queries
    #[arg(long, value_name = "N", value_parser = with_causes(positive))]
    pub num_select: Option<usize>,
    /// At most this many detections an image
    #[arg(long, value_name = "N")]
    pub max_detections: Option<usize>,
}

impl OptionArgs {
    /// The flags as a patch of the options.
    pub fn patch(self) -> OptionsPatch {
        OptionsPatch {
            semantics: self.semantics,
            classes: self.classes,
            threshold: self.threshold,
            num_select: self.num_select,
            max_detections: self.max_detections,
            mask_format: self.format.map(FormatArg::format),
        }
    }
}

/// The form of the masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// No masks
    None,
    /// One byte a pixel (NAME_masks.npz)
    Dense,
    /// One bit a pixel (NAME_masks.npz)
    #[value(alias = "bit_packed")]
    BitPacked,
    /// The mask logits of each detection (NAME_masks.npz)
    #[value(alias = "grid_logits")]
    GridLogits,
    /// COCO run lengths as numbers
    Counts,
    /// COCO's compressed run lengths
    Rle,
}

impl FormatArg {
    const fn format(self) -> MaskFormat {
        match self {
            Self::None => MaskFormat::None,
            Self::Dense => MaskFormat::Dense,
            Self::BitPacked => MaskFormat::BitPacked,
            Self::GridLogits => MaskFormat::GridLogits,
            Self::Counts => MaskFormat::Counts,
            Self::Rle => MaskFormat::Rle,
        }
    }
}

/// The flag that `run` and `demo` share.
#[derive(Debug, Clone, Copy, Args)]
pub struct DeviceFlag {
    /// Where to compute; all give the same bits: cpu, cuda or cuda:N (a GPU), auto (a GPU if there is one)
    #[arg(
        long,
        value_name = "DEVICE",
        help_heading = "Execution",
        default_value = "cpu",
        value_parser = with_causes(DeviceArg::parse)
    )]
    pub device: DeviceArg,
}

/// Where computing happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceArg {
    /// A GPU if there is one, otherwise the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU by its ordinal.
    Cuda(usize),
}

impl DeviceArg {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let ordinal = text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
        match (text, ordinal) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(ordinal)) => Ok(Self::Cuda(ordinal)),
            _ => Err(anyhow::anyhow!("`{text}`: expected auto, cpu, cuda or cuda:N")),
        }
    }

    /// A postprocessor on this device; on the CPU as `config` says.
    pub fn postprocessor(self, config: CpuConfig) -> anyhow::Result<Postprocessor> {
        match self {
            Self::Cpu => Ok(Postprocessor::cpu_with(config)?),
            Self::Auto => Ok(Postprocessor::auto_with(config)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal) => Postprocessor::cuda_on(ordinal).context("--device"),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => anyhow::bail!("--device: this program was built without the feature `cuda`"),
        }
    }
}

/// What computes on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// The fast path on the CPU
    Cpu,
    /// The plain loops that judge the others
    Reference,
}

/// Where results go and what is printed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Folder for the results; made if needed
    #[arg(long, value_name = "DIR", default_value = "rfdetr-post-out")]
    pub out: PathBuf,
    /// Print a machine-readable summary on stdout and nothing else there
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Print errors only
    #[arg(long, short)]
    pub quiet: bool,
}

fn positive(text: &str) -> anyhow::Result<usize> {
    text.parse()
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| anyhow::anyhow!("expected a whole number of at least 1"))
}

/// A parser whose errors print with their causes.
fn with_causes<T>(
    parse: impl Fn(&str) -> anyhow::Result<T> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| parse(text).map_err(|err| format!("{err:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn devices_parse() {
        let parse = |text| DeviceArg::parse(text).ok();
        assert_eq!(parse("auto"), Some(DeviceArg::Auto));
        assert_eq!(parse("cpu"), Some(DeviceArg::Cpu));
        assert_eq!((parse("cuda"), parse("cuda:3")), (Some(DeviceArg::Cuda(0)), Some(DeviceArg::Cuda(3))));
        assert_eq!([parse("gpu"), parse("cuda:"), parse("cuda:-1"), parse("")], [None; 4]);
    }

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }
}

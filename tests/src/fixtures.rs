//! The answers of others, as requests of ours and columns of theirs. `tests/fixtures/*/README.md` describe the files.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use half::{bf16, f16};
use rfdetr_post_core::{
    ClassLayout, DType, ImageMeta, MaskFormat, Offset, Options, Padding, Semantics, Size, Thresholds,
};
use serde::Deserialize;

use crate::case::{OwnedData, OwnedTensor, RequestCase};

static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// The folder of the fixtures: `tests/fixtures`, unless [`set_root`] named another.
pub fn root() -> PathBuf {
    ROOT.get().cloned().unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures"))
}

/// Names the folder of the fixtures, for programs that run far from the source tree. The first call counts.
pub fn set_root(folder: PathBuf) {
    // A second call would pull the fixtures away under somebody's feet.
    let _ = ROOT.set(folder);
}

/// Folder of the fixtures for programs: the flag's, one beside the program, one in the folder above, or the source
/// tree's.
pub fn find(flag: Option<PathBuf>) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(PathBuf::from));
    let beside = beside.iter().flat_map(|folder| [folder.join("fixtures"), folder.join("../fixtures")]);
    let mut candidates = flag.into_iter().chain(beside).chain([root()]);
    candidates.find(|folder| folder.join("upstream").is_dir())
}

/// The stems of all `.npz` files of a fixture folder, sorted.
pub fn names(folder: &str) -> Vec<String> {
    let folder = root().join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("a folder entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "npz"))
        .map(|path| path.file_stem().expect("a file name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Folder and name of every file that holds a request.
pub fn all() -> Vec<(&'static str, String)> {
    let of = |folder| names(folder).into_iter().map(move |name| (folder, name));
    of("upstream").chain(of("torch_cpu")).collect()
}

/// All mask formats.
pub const FORMATS: [MaskFormat; 6] = [
    MaskFormat::None,
    MaskFormat::Dense,
    MaskFormat::BitPacked,
    MaskFormat::GridLogits,
    MaskFormat::Counts,
    MaskFormat::Rle,
];

/// One array of an `.npz` file.
#[derive(Debug, Clone)]
pub struct Array {
    /// Size along each axis.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: ArrayData,
}

/// The elements of an [`Array`].
#[derive(Debug, Clone)]
pub enum ArrayData {
    /// Bytes.
    U8(Vec<u8>),
    /// Bit patterns of half types.
    U16(Vec<u16>),
    /// Run lengths.
    U32(Vec<u32>),
    /// Boxes, class ids, indices.
    I32(Vec<i32>),
    /// Offsets, class tables.
    I64(Vec<i64>),
    /// Everything else.
    F32(Vec<f32>),
}

/// One fixture: the request, what its JSON says, and the references.
#[derive(Debug)]
pub struct Fixture {
    /// File name without extension.
    pub name: String,
    /// What its JSON says.
    pub info: Info,
    /// All arrays.
    pub arrays: BTreeMap<String, Array>,
    /// The request under `Semantics::roboflow_inference()` with no masks asked for.
    pub case: RequestCase,
}

/// The part of `case_json` that tests need.
#[derive(Debug, Deserialize)]
pub struct Info {
    /// What is special about the case.
    pub note: String,
    /// One record an image.
    pub metas: Vec<MetaRecord>,
    /// Number of classes after remapping.
    pub num_classes: usize,
    /// At most this many detections; segmentation paths only.
    pub max_detections: Option<usize>,
    /// Size of the flat top-k for the `rf_detr` preset; none for the number of queries.
    #[serde(default)]
    pub num_select: Option<usize>,
    /// Whether `threshold` has one entry a class.
    pub threshold_is_per_class: bool,
    /// `ok`, or why a reference is missing.
    pub status: BTreeMap<String, String>,
    /// Element type of boxes, logits and masks.
    #[serde(default = "f32_name")]
    pub dtype: String,
}

fn f32_name() -> String {
    "f32".into()
}

/// A pre-processing record in upstream's words; sizes are `[height, width]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetaRecord {
    pad_left: i32,
    pad_top: i32,
    pad_right: i32,
    pad_bottom: i32,
    original_size: [u32; 2],
    size_after_pre_processing: [u32; 2],
    inference_size: [u32; 2],
    scale_width: f64,
    scale_height: f64,
    static_crop: [u32; 4],
    nonsquare_intermediate_size: Option<[u32; 2]>,
}

impl MetaRecord {
    /// The record in our words.
    pub fn meta(&self) -> ImageMeta {
        let size = |[height, width]: [u32; 2]| Size { width, height };
        let [x, y, crop_width, crop_height] = self.static_crop;
        let content = size(self.size_after_pre_processing);
        assert_eq!(content, Size { width: crop_width, height: crop_height }, "the crop's size is the content's");
        ImageMeta {
            original: size(self.original_size),
            content,
            network: size(self.inference_size),
            intermediate: self.nonsquare_intermediate_size.map(size),
            padding: Padding { left: self.pad_left, top: self.pad_top, right: self.pad_right, bottom: self.pad_bottom },
            scale_x: self.scale_width,
            scale_y: self.scale_height,
            crop_offset: Offset { x, y },
        }
    }
}

/// The answer of another implementation for one image, in columns.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Boxes, as whole numbers or floats; floats hold both exactly.
    pub xyxy: Vec<[f32; 4]>,
    /// Scores.
    pub confidence: Vec<f32>,
    /// Class ids.
    pub class_id: Vec<i32>,
    /// Dense masks `[height, width]` of the first rows.
    pub masks: Option<Vec<Vec<u8>>>,
    /// Run lengths and compressed strings of all rows.
    pub runs: Option<Vec<(Vec<u32>, Vec<u8>)>>,
    /// `(detection, flat pixel)` where the sign may hang on rounding.
    pub near: Vec<(usize, usize)>,
}

impl Fixture {
    /// Reads `tests/fixtures/FOLDER/NAME.npz`. Panics, naming the file, if it is not as its README says.
    pub fn load(folder: &str, name: &str) -> Self {
        let path = root().join(folder).join(format!("{name}.npz"));
        let arrays = read_npz(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let info: Info = serde_json::from_slice(arrays["case_json"].u8()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let dtype = match info.dtype.as_str() {
            "f32" => DType::F32,
            "f16" => DType::F16,
            "bf16" => DType::Bf16,
            other => panic!("{name}: element type {other}"),
        };
        let boxes = arrays["boxes"].tensor(dtype);
        let logits = arrays["logits"].tensor(dtype);
        let masks = arrays.get("mask_bank").map(|bank| gather(&bank.tensor(dtype), &arrays["mask_index"]));
        let num_columns = logits.shape[2];
        let classes = match arrays.get("class_mapping") {
            Some(table) => {
                let mut table: Vec<_> = table.i64().iter().map(|&id| u32::try_from(id).ok()).collect();
                // Columns beyond the table are dropped.
                table.resize(table.len().max(num_columns), None);
                ClassLayout::Remap(table)
            }
            None => ClassLayout::NoObject { num_classes: info.num_classes.min(num_columns) },
        };
        let threshold = arrays["threshold"].f32();
        let options = Options {
            classes,
            threshold: if info.threshold_is_per_class {
                Thresholds::PerClass(threshold.to_vec())
            } else {
                Thresholds::Scalar(threshold[0].into())
            },
            max_detections: info.max_detections,
            mask_format: MaskFormat::None,
            ..Options::default()
        };
        let metas = info.metas.iter().map(MetaRecord::meta).collect();
        let case = RequestCase { boxes, logits, masks, metas, options };
        Self { name: name.into(), info, arrays, case }
    }

    /// The lowest threshold of any class.
    pub fn lowest_threshold(&self) -> f64 {
        self.arrays["threshold"].f32().iter().copied().fold(f32::INFINITY, f32::min).into()
    }

    /// The request under `Semantics::rf_detr()`: plain stretches, every column, no cap, and `keep_above` in place of the
    /// threshold.
    pub fn rf_detr(&self, keep_above: f64, format: MaskFormat) -> RequestCase {
        let mut case = self.case.with_options(|options| {
            options.semantics = Semantics::rf_detr();
            options.classes = ClassLayout::Identity;
            options.threshold = Thresholds::Scalar(keep_above);
            options.max_detections = None;
            options.num_select = self.info.num_select;
            options.mask_format = format;
        });
        for meta in &mut case.metas {
            *meta = ImageMeta::stretch(meta.original, meta.network).expect("a plain stretch");
        }
        case
    }

    /// The request under both presets, in every format that it can have.
    pub fn variants(&self) -> Vec<RequestCase> {
        let formats = if self.case.masks.is_some() { &FORMATS[..] } else { &FORMATS[..1] };
        let rf_detr = self.rf_detr(self.lowest_threshold(), MaskFormat::None);
        let with = |case: &RequestCase, format| case.with_options(|options| options.mask_format = format);
        formats.iter().flat_map(|&format| [with(&self.case, format), with(&rf_detr, format)]).collect()
    }

    /// Whether the reference is in the file.
    pub fn has(&self, reference: &str) -> bool {
        self.info.status.get(reference).is_some_and(|status| status == "ok")
    }

    /// The answer of `reference` for an image.
    pub fn answer(&self, reference: &str, image: usize) -> Answer {
        let array = |key: &str| self.arrays.get(&format!("{reference}_{image}_{key}"));
        let must = |key: &str| array(key).unwrap_or_else(|| panic!("{}: no {reference}_{image}_{key}", self.name));
        let xyxy: Vec<f32> = match &must("xyxy").data {
            ArrayData::I32(data) => data.iter().map(|&x| x as f32).collect(),
            _ => must("xyxy").f32().to_vec(),
        };
        let size = self.case.metas[image].original;
        let unpack = |packed: &Array| {
            let (height, row_bytes) = (packed.shape[1], packed.shape[2]);
            assert_eq!((height, row_bytes), (size.height as usize, size.width.div_ceil(8) as usize), "{}", self.name);
            let bit = |row: &[u8], x: usize| row[x / 8] >> (7 - x % 8) & 1;
            let dense = |mask: &[u8]| {
                mask.chunks(row_bytes).flat_map(|row| (0..size.width as usize).map(move |x| bit(row, x))).collect()
            };
            packed.u8().chunks(height * row_bytes).map(dense).collect()
        };
        Answer {
            xyxy: xyxy.chunks(4).map(|b| [b[0], b[1], b[2], b[3]]).collect(),
            confidence: must("conf").f32().to_vec(),
            class_id: must("cls").i32().to_vec(),
            masks: array("masks").map(unpack),
            runs: array("counts").map(|strings| {
                let strings = split(strings.u8(), must("counts_off").i64());
                let runs = split(must("runs").u32(), must("runs_off").i64());
                runs.into_iter().zip(strings).collect()
            }),
            near: array("near")
                .map(|near| near.i32().chunks(2).map(|at| (at[0] as usize, at[1] as usize)).collect())
                .unwrap_or_default(),
        }
    }
}

/// The slices between consecutive offsets.
fn split<T: Clone>(data: &[T], offsets: &[i64]) -> Vec<Vec<T>> {
    offsets.windows(2).map(|span| data[span[0] as usize..span[1] as usize].to_vec()).collect()
}

/// `bank[index]`: the mask logits of every query.
fn gather(bank: &OwnedTensor, index: &Array) -> OwnedTensor {
    let len: usize = bank.shape[1..].iter().product();
    fn pick<T: Copy>(data: &[T], len: usize, index: &[i32]) -> Vec<T> {
        index.iter().flat_map(|&i| data[i as usize * len..(i as usize + 1) * len].iter().copied()).collect()
    }
    let data = match &bank.data {
        OwnedData::F32(data) => OwnedData::F32(pick(data, len, index.i32())),
        OwnedData::F16(data) => OwnedData::F16(pick(data, len, index.i32())),
        OwnedData::Bf16(data) => OwnedData::Bf16(pick(data, len, index.i32())),
    };
    let shape = index.shape.iter().chain(&bank.shape[1..]).copied().collect();
    OwnedTensor { data, shape }
}

impl Array {
    /// The tensor of `dtype`; half types are stored as bit patterns.
    fn tensor(&self, dtype: DType) -> OwnedTensor {
        let data = match (&self.data, dtype) {
            (ArrayData::F32(data), DType::F32) => OwnedData::F32(data.clone()),
            (ArrayData::U16(data), DType::F16) => OwnedData::F16(data.iter().map(|&b| f16::from_bits(b)).collect()),
            (ArrayData::U16(data), DType::Bf16) => OwnedData::Bf16(data.iter().map(|&b| bf16::from_bits(b)).collect()),
            (other, _) => panic!("a tensor of {dtype:?} stored as {other:?}"),
        };
        OwnedTensor { data, shape: self.shape.clone() }
    }
}

macro_rules! accessors {
    ($($name:ident, $variant:ident, $type:ty;)*) => {
        impl Array {
            $(
                /// The elements; panics if they have another type.
                pub fn $name(&self) -> &[$type] {
                    match &self.data {
                        ArrayData::$variant(data) => data,
                        other => panic!("expected {}, got {other:?}", stringify!($name)),
                    }
                }
            )*
        }
    };
}

impl Array {
    /// Number of elements.
    fn len(&self) -> usize {
        match &self.data {
            ArrayData::U8(data) => data.len(),
            ArrayData::U16(data) => data.len(),
            ArrayData::U32(data) => data.len(),
            ArrayData::I32(data) => data.len(),
            ArrayData::I64(data) => data.len(),
            ArrayData::F32(data) => data.len(),
        }
    }
}

accessors! {
    u8, U8, u8;
    u32, U32, u32;
    i32, I32, i32;
    i64, I64, i64;
    f32, F32, f32;
}

/// All arrays of an `.npz` file.
fn read_npz(path: &Path) -> io::Result<BTreeMap<String, Array>> {
    let mut archive = zip::ZipArchive::new(BufReader::new(File::open(path)?))?;
    let mut arrays = BTreeMap::new();
    for idx in 0..archive.len() {
        let mut entry = archive.by_index(idx)?;
        let name = entry.name()?.trim_end_matches(".npy").to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        let array = read_npy(&bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("`{name}` is no array of ours")))?;
        arrays.insert(name, array);
    }
    Ok(arrays)
}

/// An `.npy` array, as NumPy writes plain arrays. None for anything else, such as other element types.
fn read_npy(bytes: &[u8]) -> Option<Array> {
    // Magic, version 1.0, length of the header: a line of Python.
    let rest = bytes.strip_prefix(b"\x93NUMPY\x01\x00")?;
    let (len, rest) = rest.split_first_chunk()?;
    let (header, data) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
    let header = std::str::from_utf8(header).ok()?;
    let value = |key: &str, end: char| Some(header.split_once(key)?.1.split_once(end)?.0);
    value("'fortran_order': False", ',')?;
    let sides = value("'shape': (", ')')?.split(',').map(str::trim).filter(|side| !side.is_empty());
    let shape: Vec<usize> = sides.map(|side| side.parse().ok()).collect::<Option<_>>()?;
    let data = match value("'descr': '", '\'')? {
        "|u1" => ArrayData::U8(data.to_vec()),
        "<u2" => ArrayData::U16(elements(data)),
        "<u4" => ArrayData::U32(elements(data)),
        "<i4" => ArrayData::I32(elements(data)),
        "<i8" => ArrayData::I64(elements(data)),
        "<f4" => ArrayData::F32(elements(data)),
        _ => return None,
    };
    let array = Array { shape, data };
    (array.len() == array.shape.iter().product::<usize>()).then_some(array)
}

/// Little-endian elements; a rest that is no whole element is left out.
fn elements<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// One mask of `tests/fixtures/pycocotools/masks.json`.
#[derive(Debug, Deserialize)]
pub struct CocoMask {
    /// What is special.
    pub name: String,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Uncompressed run lengths.
    pub counts: Vec<u32>,
    /// The compressed string.
    pub rle: String,
    /// Foreground pixels.
    pub area: u32,
    /// `[x, y, width, height]`.
    pub bbox: [u32; 4],
    /// The mask in hexadecimal, row-major, rows padded to whole bytes; none for large masks.
    pub bits: Option<String>,
}

impl CocoMask {
    /// The dense mask, from `bits`; none for large masks.
    pub fn dense(&self) -> Option<Vec<u8>> {
        let text = self.bits.as_ref()?;
        let byte = |i: usize| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hexadecimal digits");
        let row_bytes = self.width.div_ceil(8);
        assert_eq!(text.len(), 2 * row_bytes * self.height, "{}", self.name);
        let pixel = |y: usize, x: usize| byte(y * row_bytes + x / 8) >> (7 - x % 8) & 1;
        Some((0..self.height).flat_map(|y| (0..self.width).map(move |x| pixel(y, x))).collect())
    }
}

/// All masks of `tests/fixtures/pycocotools/masks.json`.
pub fn coco_masks() -> Vec<CocoMask> {
    #[derive(Deserialize)]
    struct File {
        masks: Vec<CocoMask>,
    }
    let path = root().join("pycocotools/masks.json");
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file: File = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.masks
}

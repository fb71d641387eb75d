//! One input, from file to files: load, post-process, write.

use std::{
    borrow::Cow,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rfdetr_post::{
    Detections, Error, Health, ImageDetections, ImageMeta, MaskFormat, Masks, Options, Postprocessor, Preprocessing,
    ProcessError, Resize, Size,
};

use super::{
    args::{GeometryArgs, ResizeArg},
    coco::{self, CocoDetection},
    config::{OptionsPatch, Settings},
    npz::NpzWriter,
    overlay,
    picture::{self, Picture},
    sidecar::{ImageEntry, Sidecar},
    tensors::{FileKind, Outputs, TensorFile, TensorNames},
    upstream,
};

/// What all inputs of a run share.
#[derive(Debug, Default)]
pub struct Flags {
    /// Options that win over the sidecar's.
    pub patch: OptionsPatch,
    /// Names that win over the sidecar's.
    pub tensor_names: TensorNames,
    /// Replaces the sidecars beside the inputs.
    pub meta: Option<PathBuf>,
    /// A picture or a folder of pictures.
    pub image: Option<PathBuf>,
    /// Replaces the sidecar's metadata.
    pub geometry: GeometryArgs,
    /// Write mask pictures.
    pub save_masks: bool,
    /// Draw overlays where a picture is known.
    pub overlay: bool,
    /// Folder for the results.
    pub out: PathBuf,
}

/// An input, ready to be post-processed.
pub struct Loaded {
    outputs: Outputs,
    metas: Vec<ImageMeta>,
    options: Options,
    class_names: Vec<String>,
    images: Vec<LoadedImage>,
    warnings: Vec<String>,
}

struct LoadedImage {
    id: Option<u64>,
    file_name: String,
    picture: Option<PictureSource>,
}

/// A picture that was not decoded yet.
#[derive(Debug, Clone)]
enum PictureSource {
    /// A file.
    File(PathBuf),
    /// Built in.
    Embedded(&'static [u8]),
}

/// The picture of an image, if there is one, and a warning, if it was sought in vain.
type Found = (Option<PictureSource>, Option<String>);

/// What became of an input.
pub struct Done {
    /// One entry an image.
    pub images: Vec<ImageDone>,
    /// Names by class id.
    pub class_names: Vec<String>,
    /// The masks as arrays.
    pub mask_arrays: Option<PathBuf>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// How long it took.
    pub times: Times,
}

/// What became of an image.
pub struct ImageDone {
    /// Given by the sidecar, or else by the run.
    pub id: Option<u64>,
    /// The picture's name, or the input's.
    pub file_name: String,
    /// Size of the original image.
    pub size: Size,
    /// The detections as COCO wants them.
    pub records: Vec<CocoDetection>,
    /// Non-finite values met.
    pub health: Health,
    /// The overlay picture.
    pub overlay: Option<PathBuf>,
    /// The masks as pictures.
    pub mask_pictures: Vec<PathBuf>,
}

/// Time by stage.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Reading and checking files.
    pub load: Duration,
    /// Computing detections.
    pub post_process: Duration,
    /// Drawing and writing files.
    pub write: Duration,
}

/// Runs one input from its path. `base` names its output files.
pub fn run(path: &Path, base: &str, flags: &Flags, postprocessor: &mut Postprocessor) -> Result<Done> {
    let start = Instant::now();
    let loaded = load(path, flags)?;
    finish(loaded, start.elapsed(), base, flags, postprocessor)
}

/// Runs an input that is built in: `.npz`, sidecar and picture.
pub fn run_embedded(
    name: &str,
    (npz, sidecar, picture): (&'static [u8], &'static [u8], &'static [u8]),
    flags: &Flags,
    postprocessor: &mut Postprocessor,
) -> Result<Done> {
    let start = Instant::now();
    let sidecar: Sidecar = serde_json::from_slice(sidecar)?;
    let mut file = TensorFile::new(FileKind::Npz, npz)?;
    let find = |_: &ImageEntry, _: &str| Ok((Some(PictureSource::Embedded(picture)), None));
    let loaded = assemble(&mut file, name, sidecar, flags, &find)?;
    finish(loaded, start.elapsed(), name, flags, postprocessor)
}

/// Reads an input, its sidecar and the sizes of its pictures.
fn load(path: &Path, flags: &Flags) -> Result<Loaded> {
    let Some(kind) = FileKind::of(path) else {
        bail!("is no input: expected a name that ends in .npz or .safetensors")
    };
    let bytes = fs::read(path).context("cannot be read")?;
    let mut file = TensorFile::new(kind, &bytes)?;
    let sidecar_path = flags.meta.clone().unwrap_or_else(|| path.with_extension("json"));
    let sidecar = if flags.meta.is_some() || sidecar_path.exists() {
        let json = fs::read_to_string(&sidecar_path);
        let json = json.with_context(|| format!("sidecar {} cannot be read", sidecar_path.display()))?;
        serde_json::from_str(&json).with_context(|| format!("sidecar {}", sidecar_path.display()))?
    } else {
        Sidecar::default()
    };
    let stem = path.file_stem().map_or(Cow::Borrowed("input"), |stem| stem.to_string_lossy());
    let folder = sidecar_path.parent().unwrap_or(Path::new(""));
    let find = |entry: &ImageEntry, name: &str| find_picture(entry, name, flags.image.as_deref(), folder);
    assemble(&mut file, &stem, sidecar, flags, &find)
}

/// Looks for the picture of an image, which is called `name` if its entry gives no name.
fn find_picture(entry: &ImageEntry, name: &str, image: Option<&Path>, folder: &Path) -> Result<Found> {
    let pictures = match image {
        Some(image) if !image.is_dir() => return Ok((Some(PictureSource::File(image.to_owned())), None)),
        Some(image) => image,
        None => folder,
    };
    let candidates = match (&entry.file_name, image) {
        (Some(name), _) => vec![pictures.join(name)],
        (None, Some(_)) => ["png", "jpg", "jpeg"].map(|ending| pictures.join(format!("{name}.{ending}"))).to_vec(),
        (None, None) => return Ok((None, None)),
    };
    match candidates.iter().find(|candidate| candidate.is_file()) {
        Some(found) => Ok((Some(PictureSource::File(found.clone())), None)),
        None => Ok((None, Some(format!("no picture at {}, so no overlay", candidates[0].display())))),
    }
}

/// Puts outputs, sidecar and flags together.
fn assemble(
    file: &mut TensorFile<'_>,
    stem: &str,
    sidecar: Sidecar,
    flags: &Flags,
    find: &dyn Fn(&ImageEntry, &str) -> Result<Found>,
) -> Result<Loaded> {
    let want_masks = flags.patch.mask_format.or(sidecar.options.mask_format) != Some(MaskFormat::None);
    let recorded = file.names().iter().any(|name| name == upstream::KEY);
    let (outputs, recorded_metas, mut settings) = if recorded {
        upstream::read(file, want_masks)?
    } else {
        let names = flags.tensor_names.clone().or(sidecar.tensor_names);
        (Outputs::read(file, &names, want_masks)?, Vec::new(), Settings::default())
    };
    let batch = outputs.batch();
    settings.apply(&sidecar.options);
    settings.apply(&flags.patch);
    // Names that the sidecar spells out stay, unless the flags bring their own.
    if let (Some(names), None) = (sidecar.class_names, flags.patch.classes.as_ref().and_then(|c| c.names.as_ref())) {
        settings.class_names = names;
    }
    let Settings { mut options, mask_format, class_names } = settings;
    options.mask_format = mask_format.unwrap_or(if outputs.has_masks() { MaskFormat::Rle } else { MaskFormat::None });
    if options.mask_format != MaskFormat::None && !outputs.has_masks() {
        let names: Vec<_> = file.names().iter().map(|name| format!("`{name}`")).collect();
        bail!(
            "--format is {}, but there is no `masks`: the file holds {} (--tensor-names masks=NAME maps it)",
            options.mask_format.name(),
            names.join(", ")
        );
    }
    if flags.save_masks && matches!(options.mask_format, MaskFormat::None | MaskFormat::GridLogits) {
        bail!(
            "--save-masks needs masks that cover the image, but --format is {}: expected dense, bit-packed, counts or rle",
            options.mask_format.name()
        );
    }

    let entries = if sidecar.images.is_empty() { vec![ImageEntry::default(); batch] } else { sidecar.images };
    ensure!(
        entries.len() == batch,
        "the sidecar's `images` holds {} entries, expected {batch}: one for each image of the batch",
        entries.len()
    );
    ensure!(
        recorded_metas.is_empty() || recorded_metas.len() == batch,
        "`{}` holds {} records, expected {batch}: one for each image of the batch",
        upstream::KEY,
        recorded_metas.len()
    );
    if let Some(image) = &flags.image {
        ensure!(
            batch == 1 || image.is_dir(),
            "--image names one picture, but there are {batch} images: expected a folder of pictures"
        );
    }
    let mut loaded =
        Loaded { outputs, metas: Vec::new(), options, class_names, images: Vec::new(), warnings: Vec::new() };
    for (index, entry) in entries.into_iter().enumerate() {
        let name = if batch == 1 { stem.to_owned() } else { format!("{stem}_{index}") };
        let (picture, warning) = find(&entry, &name)?;
        let size = picture.as_ref().map(PictureSource::size).transpose()?;
        loaded.warnings.extend(warning.filter(|_| flags.overlay));
        let meta = if flags.geometry.is_given() {
            flags.geometry.meta(size)?
        } else if let Some(meta) = entry.meta {
            meta.0
        } else if let Some(meta) = recorded_metas.get(index) {
            *meta
        } else {
            bail!(
                "no metadata for image {index}: expected a sidecar with `images[{index}].meta`, or --network and \
                 --image-size (or --image)"
            )
        };
        if let Some(size) = size {
            ensure!(
                size == meta.original,
                "the picture is {size}, but the metadata says {}: expected the original picture",
                meta.original
            );
        }
        let file_name = entry.file_name.unwrap_or_else(|| match &flags.image {
            Some(image) if !image.is_dir() => image.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            _ => name,
        });
        loaded.metas.push(meta);
        loaded.images.push(LoadedImage { id: entry.id, file_name, picture });
    }
    Ok(loaded)
}

impl PictureSource {
    fn size(&self) -> Result<Size> {
        self.read(picture::size)
    }

    fn decode(&self) -> Result<Picture> {
        self.read(Picture::decode)
    }

    /// Errors name the file.
    fn read<T>(&self, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        match self {
            Self::File(path) => {
                let attempt = || parse(&fs::read(path)?);
                attempt().with_context(|| format!("picture {}", path.display()))
            }
            Self::Embedded(bytes) => parse(bytes),
        }
    }
}

impl GeometryArgs {
    /// Whether any of the flags was given, so that they replace the sidecar's record.
    pub const fn is_given(&self) -> bool {
        self.image_size.is_some()
            || self.network.is_some()
            || self.resize.is_some()
            || self.frame.is_some()
            || self.static_crop.is_some()
    }

    /// The record that the flags describe. `picture` is the picture's size, if there is one.
    fn meta(&self, picture: Option<Size>) -> Result<ImageMeta> {
        let network = self.network.context("--network is missing")?;
        let original = self
            .image_size
            .or(picture)
            .context("the image's size is unknown: expected --image-size, or --image with the picture")?;
        let frame = self.frame.unwrap_or(network);
        let resize = match self.resize.unwrap_or(ResizeArg::Stretch) {
            ResizeArg::Stretch => Resize::Stretch { network },
            ResizeArg::Letterbox => Resize::Letterbox { frame, network },
            ResizeArg::CenterCrop => Resize::CenterCrop { frame, network },
        };
        Ok(Preprocessing { original, static_crop: self.static_crop, resize }.meta()?)
    }
}

/// Post-processes and writes.
fn finish(
    loaded: Loaded,
    load: Duration,
    base: &str,
    flags: &Flags,
    postprocessor: &mut Postprocessor,
) -> Result<Done> {
    let start = Instant::now();
    let detections = process(&loaded, postprocessor)?;
    let post_process = start.elapsed();

    let start = Instant::now();
    let mut warnings = loaded.warnings;
    let mask_arrays = write_mask_arrays(&detections, &flags.out, base)?;
    let batch = detections.images.len();
    let mut images = Vec::with_capacity(batch);
    for (index, (image, loaded_image)) in detections.images.iter().zip(loaded.images).enumerate() {
        let name = if batch == 1 { base.to_owned() } else { format!("{base}_{index}") };
        warnings.extend(health_warning(index, &image.health));
        let mask_pictures = if flags.save_masks { write_mask_pictures(image, &flags.out, &name)? } else { Vec::new() };
        let overlay = match loaded_image.picture.filter(|_| flags.overlay) {
            Some(picture) => {
                let mut picture = picture.decode()?;
                overlay::draw(&mut picture, image, &loaded.class_names)?;
                let path = flags.out.join(format!("{name}_overlay.png"));
                write_file(&path, |file| picture.write_png(file))?;
                Some(path)
            }
            None => None,
        };
        images.push(ImageDone {
            id: loaded_image.id,
            file_name: loaded_image.file_name,
            size: image.size,
            records: coco::records(image)?,
            health: image.health,
            overlay,
            mask_pictures,
        });
    }
    let times = Times { load, post_process, write: start.elapsed() };
    Ok(Done { images, class_names: loaded.class_names, mask_arrays, warnings, times })
}

/// Computes the detections. Where a mask is longer than a GPU's plan expects, it plans again with the room that it needs.
fn process(loaded: &Loaded, postprocessor: &mut Postprocessor) -> Result<Detections> {
    let tensors = loaded.outputs.tensors()?;
    let mut had = 0;
    loop {
        match postprocessor.process(&tensors, &loaded.metas, &loaded.options) {
            // The need grows with each plan, or this is no lack of room.
            Err(ProcessError::Request(Error::Capacity { needed, .. })) if needed > had => {
                had = needed;
                postprocessor.set_mask_capacity(u32::try_from(needed)?);
            }
            answer => return Ok(answer?),
        }
    }
}

/// A sentence about non-finite values, if there were any.
fn health_warning(index: usize, health: &Health) -> Option<String> {
    let counts = [
        (health.nan_logits, "NaN class logits"),
        (health.pos_inf_logits, "class logits of +Inf"),
        (health.neg_inf_logits, "class logits of -Inf"),
        (health.nonfinite_boxes, "box coordinates that are not finite"),
        (health.nonfinite_mask_logits, "mask logits that are not finite"),
    ];
    let parts: Vec<_> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    (!parts.is_empty()).then(|| format!("image {index} has {}", parts.join(", ")))
}

/// Writes the masks of formats that JSON cannot hold: `masks_0`, `masks_1`, ... one array an image.
fn write_mask_arrays(detections: &Detections, out: &Path, base: &str) -> Result<Option<PathBuf>> {
    let is_array = |masks: &Masks| matches!(masks, Masks::Dense(_) | Masks::BitPacked(_) | Masks::GridLogits { .. });
    if !detections.images.iter().any(|image| is_array(&image.masks)) {
        return Ok(None);
    }
    let path = out.join(format!("{base}_masks.npz"));
    write_file(&path, |file| {
        let mut npz = NpzWriter::new(file);
        for (index, image) in detections.images.iter().enumerate() {
            let (name, count) = (format!("masks_{index}"), image.len());
            let (width, height) = (image.size.width as usize, image.size.height as usize);
            match &image.masks {
                Masks::Dense(bytes) => npz.write(&name, "|u1", &[count, height, width], bytes)?,
                Masks::BitPacked(words) => npz.write(&name, "<u4", &[count, height, width.div_ceil(32)], words)?,
                Masks::GridLogits { mask_h, mask_w, logits } => {
                    npz.write(&name, "<f4", &[count, *mask_h, *mask_w], logits)?;
                }
                Masks::None | Masks::Counts(_) | Masks::Rle(_) => {}
            }
        }
        npz.finish().map(drop)
    })?;
    Ok(Some(path))
}

/// Writes each mask as a black and white picture.
fn write_mask_pictures(image: &ImageDetections, out: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let folder = out.join("masks");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut paths = Vec::with_capacity(image.len());
    for idx in 0..image.len() {
        let Some(mut mask) = image.dense_mask(idx)? else { continue };
        mask.iter_mut().for_each(|pixel| *pixel *= 255);
        let path = folder.join(format!("{name}_{idx:03}.png"));
        write_file(&path, |file| picture::write_gray_png(file, image.size, &mask))?;
        paths.push(path);
    }
    Ok(paths)
}

/// Writes a file through a buffer; errors name the file.
pub fn write_file(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let attempt = || -> Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        write(&mut file)?;
        file.flush()?;
        Ok(())
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}

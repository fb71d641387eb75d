//! Files that hold a model's outputs: `.npz` and `.safetensors`. Arrays are found by name and checked by shape.

use anyhow::{Context, Result, anyhow, bail, ensure};
use half::{bf16, f16};
use rfdetr_post::{Tensor, Tensors};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::npz::Npz;

/// An array as a file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Size along each axis, outermost first.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: ArrayData,
}

/// The elements of an [`Array`].
#[derive(Debug, Clone, PartialEq)]
pub enum ArrayData {
    /// IEEE binary32.
    F32(Vec<f32>),
    /// IEEE binary16.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// Signed, 4 bytes.
    I32(Vec<i32>),
    /// Signed, 8 bytes.
    I64(Vec<i64>),
    /// Unsigned bytes.
    U8(Vec<u8>),
}

impl Array {
    /// Borrows the array as a tensor. `Array`s of [`Outputs`] are floats.
    fn tensor(&self) -> Result<Tensor<'_>> {
        Ok(match &self.data {
            ArrayData::F32(data) => Tensor::new(&data[..], &self.shape),
            ArrayData::F16(data) => Tensor::new(&data[..], &self.shape),
            ArrayData::Bf16(data) => Tensor::new(&data[..], &self.shape),
            other => bail!("has type {}, expected f32, f16 or bf16", other.type_name()),
        })
    }
}

impl ArrayData {
    /// The type's name, as messages say it.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::F16(_) => "f16",
            Self::Bf16(_) => "bf16",
            Self::I32(_) => "i32",
            Self::I64(_) => "i64",
            Self::U8(_) => "u8",
        }
    }
}

/// The product of a shape's sides.
pub fn element_count(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &side| product.checked_mul(side))
        .with_context(|| format!("has shape {shape:?}, which overflows"))
}

/// A file whose directory was read.
pub enum TensorFile<'a> {
    /// NumPy's archive.
    Npz(Npz<'a>),
    /// Hugging Face's format.
    Safetensors(SafeTensors<'a>),
}

/// The two kinds of files, told apart by their extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `.npz`.
    Npz,
    /// `.safetensors`.
    Safetensors,
}

impl FileKind {
    /// The kind of a file with this extension.
    pub fn of(path: &std::path::Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        if extension.eq_ignore_ascii_case("npz") {
            Some(Self::Npz)
        } else if extension.eq_ignore_ascii_case("safetensors") {
            Some(Self::Safetensors)
        } else {
            None
        }
    }
}

impl<'a> TensorFile<'a> {
    /// Reads a file's directory.
    pub fn new(kind: FileKind, bytes: &'a [u8]) -> Result<Self> {
        Ok(match kind {
            FileKind::Npz => Self::Npz(Npz::new(bytes)?),
            FileKind::Safetensors => Self::Safetensors(
                SafeTensors::deserialize(bytes).map_err(|err| anyhow!("not a whole .safetensors file: {err}"))?,
            ),
        })
    }

    /// The names of all arrays, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = match self {
            Self::Npz(npz) => npz.names(),
            Self::Safetensors(file) => file.names().into_iter().map(str::to_owned).collect(),
        };
        names.sort();
        names
    }

    /// Reads the array `name`. None if the file has none of this name.
    pub fn read(&mut self, name: &str) -> Result<Option<Array>> {
        let array = match self {
            Self::Npz(npz) => npz.read(name),
            Self::Safetensors(file) => file.tensor(name).ok().map(|view| read_view(&view)).transpose(),
        };
        array.with_context(|| format!("`{name}`"))
    }

    /// Reads the array `name`, which must be there.
    pub fn require(&mut self, name: &str) -> Result<Array> {
        match self.read(name)? {
            Some(array) => Ok(array),
            None => {
                let names: Vec<_> = self.names().iter().map(|name| format!("`{name}`")).collect();
                let holds = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
                bail!("`{name}` is missing, the file holds {holds} (--tensor-names maps names)")
            }
        }
    }
}

fn read_view(view: &TensorView<'_>) -> Result<Array> {
    let bytes = view.data();
    let data = match view.dtype() {
        Dtype::F32 => ArrayData::F32(bytemuck::pod_collect_to_vec(bytes)),
        Dtype::F16 => ArrayData::F16(bytemuck::pod_collect_to_vec(bytes)),
        Dtype::BF16 => ArrayData::Bf16(bytemuck::pod_collect_to_vec(bytes)),
        other => bail!("has type {other:?}, expected F32, F16 or BF16"),
    };
    Ok(Array { shape: view.shape().to_vec(), data })
}

/// The names that a file gives the three outputs.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TensorNames {
    /// Name of the boxes; `dets` if not given.
    pub dets: Option<String>,
    /// Name of the class logits; `labels` if not given.
    pub labels: Option<String>,
    /// Name of the mask logits; `masks` if not given. A name that is given must be in the file.
    pub masks: Option<String>,
}

impl TensorNames {
    /// Parses `dets=NAME,labels=NAME,masks=NAME`, each part optional.
    pub fn parse(text: &str) -> Result<Self> {
        let mut names = Self::default();
        for part in text.split(',') {
            let (role, name) = part.split_once('=').with_context(|| format!("`{part}`: expected ROLE=NAME"))?;
            let slot = match role.trim() {
                "dets" => &mut names.dets,
                "labels" => &mut names.labels,
                "masks" => &mut names.masks,
                other => bail!("`{other}`: expected one of dets, labels, masks"),
            };
            ensure!(!name.trim().is_empty(), "`{part}`: expected a name after `=`");
            ensure!(slot.replace(name.trim().to_owned()).is_none(), "`{}` is named twice", role.trim());
        }
        Ok(names)
    }

    /// Takes from `other` what is not named here.
    pub fn or(self, other: Self) -> Self {
        Self { dets: self.dets.or(other.dets), labels: self.labels.or(other.labels), masks: self.masks.or(other.masks) }
    }
}

/// A model's outputs, with a batch axis, checked against each other.
#[derive(Debug)]
pub struct Outputs {
    dets: Array,
    labels: Array,
    masks: Option<Array>,
}

impl Outputs {
    /// Reads the outputs by name. `want_masks` is false when the mask logits need not be read.
    pub fn read(file: &mut TensorFile<'_>, names: &TensorNames, want_masks: bool) -> Result<Self> {
        let dets_name = names.dets.as_deref().unwrap_or("dets");
        let labels_name = names.labels.as_deref().unwrap_or("labels");
        let masks_name = names.masks.as_deref().unwrap_or("masks");
        let dets = file.require(dets_name)?;
        let labels = file.require(labels_name)?;
        let masks = match &names.masks {
            _ if !want_masks => None,
            Some(name) => Some(file.require(name)?),
            None => file.read(masks_name)?,
        };
        Self::new((dets_name, dets), (labels_name, labels), masks.map(|masks| (masks_name, masks)))
    }

    /// Checks types, ranks and shapes, and adds the batch axis where all arrays lack it.
    ///
    /// Errors name the arrays as the file does.
    pub fn new(dets: (&str, Array), labels: (&str, Array), masks: Option<(&str, Array)>) -> Result<Self> {
        let ((dets_name, mut dets), (labels_name, mut labels)) = (dets, labels);
        let (masks_name, mut masks) = masks.unzip();
        let masks_name = masks_name.unwrap_or_default();
        // Without a batch axis every rank is one lower; the boxes decide, and the others must agree.
        let batched = dets.shape.len() != 2;
        let check = |name: &str, array: &Array, rank: usize, layout: &str| {
            array.tensor().with_context(|| format!("`{name}`"))?;
            let expected = if batched { rank } else { rank - 1 };
            if array.shape.len() != expected {
                let axis = if batched { "B, " } else { "" };
                bail!("`{name}` has shape {:?}, expected rank {expected}: [{axis}{layout}]", array.shape);
            }
            Ok(())
        };
        check(dets_name, &dets, 3, "Q, 4")?;
        check(labels_name, &labels, 3, "Q, C")?;
        if let Some(masks) = &masks {
            check(masks_name, masks, 4, "Q, Mh, Mw")?;
        }
        if !batched {
            for array in [Some(&mut dets), Some(&mut labels), masks.as_mut()].into_iter().flatten() {
                array.shape.insert(0, 1);
            }
        }
        ensure!(dets.shape[2] == 4, "`{dets_name}` has shape {:?}, expected [B, Q, 4]", dets.shape);
        let (batch, queries) = (dets.shape[0], dets.shape[1]);
        let same = |name: &str, shape: &[usize], rest: &str| {
            ensure!(
                shape[..2] == [batch, queries],
                "`{name}` has shape {shape:?}, expected [{batch}, {queries}, {rest}] as `{dets_name}`"
            );
            Ok(())
        };
        same(labels_name, &labels.shape, "C")?;
        if let Some(masks) = &masks {
            same(masks_name, &masks.shape, "Mh, Mw")?;
        }
        Ok(Self { dets, labels, masks })
    }

    /// Number of images.
    pub fn batch(&self) -> usize {
        self.dets.shape[0]
    }

    /// Whether the model has masks (and they were read).
    pub const fn has_masks(&self) -> bool {
        self.masks.is_some()
    }

    /// Borrows the outputs for post-processing.
    pub fn tensors(&self) -> Result<Tensors<'_>> {
        Ok(Tensors {
            boxes: self.dets.tensor()?,
            logits: self.labels.tensor()?,
            masks: self.masks.as_ref().map(Array::tensor).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(shape: &[usize]) -> Array {
        Array { shape: shape.to_vec(), data: ArrayData::F32(vec![0.0; shape.iter().product()]) }
    }

    fn outputs(dets: &[usize], labels: &[usize], masks: Option<&[usize]>) -> Result<Outputs> {
        Outputs::new(("boxes", floats(dets)), ("logits", floats(labels)), masks.map(|masks| ("grids", floats(masks))))
    }

    #[test]
    fn a_batch_axis_is_added_to_all_or_none() {
        let with = outputs(&[2, 3, 4], &[2, 3, 5], Some(&[2, 3, 6, 7])).unwrap();
        assert_eq!((with.batch(), with.has_masks()), (2, true));
        let without = outputs(&[3, 4], &[3, 5], Some(&[3, 6, 7])).unwrap();
        assert_eq!(without.batch(), 1);
        assert_eq!(without.tensors().unwrap().masks.unwrap().shape(), [1, 3, 6, 7]);
        let error = outputs(&[3, 4], &[1, 3, 5], None).unwrap_err().to_string();
        assert_eq!(error, "`logits` has shape [1, 3, 5], expected rank 2: [Q, C]");
    }

    #[test]
    fn shapes_that_disagree_are_named_as_the_file_names_them() {
        for (dets, labels, masks, message) in [
            (vec![1, 3, 5], vec![1, 3, 5], None, "`boxes` has shape [1, 3, 5], expected [B, Q, 4]"),
            (vec![4], vec![1, 3, 5], None, "`boxes` has shape [4], expected rank 3: [B, Q, 4]"),
            (vec![1, 3, 4], vec![1, 2, 5], None, "`logits` has shape [1, 2, 5], expected [1, 3, C] as `boxes`"),
            (
                vec![1, 3, 4],
                vec![1, 3, 5],
                Some(vec![1, 2, 6, 7]),
                "`grids` has shape [1, 2, 6, 7], expected [1, 3, Mh, Mw] as `boxes`",
            ),
            (
                vec![1, 3, 4],
                vec![1, 3, 5],
                Some(vec![3, 6, 7]),
                "`grids` has shape [3, 6, 7], expected rank 4: [B, Q, Mh, Mw]",
            ),
        ] {
            assert_eq!(outputs(&dets, &labels, masks.as_deref()).unwrap_err().to_string(), message);
        }
        let bytes = Array { shape: vec![1, 3, 4], data: ArrayData::U8(vec![0; 12]) };
        let error = Outputs::new(("dets", bytes), ("labels", floats(&[1, 3, 2])), None).unwrap_err();
        assert_eq!(format!("{error:#}"), "`dets`: has type u8, expected f32, f16 or bf16");
    }

    #[test]
    fn names_are_mapped() {
        let names = TensorNames::parse("dets=pred_boxes, masks = 4521").unwrap();
        assert_eq!(names.dets.as_deref(), Some("pred_boxes"));
        assert_eq!(names.labels, None);
        assert_eq!(names.masks.as_deref(), Some("4521"));
        for (text, message) in [
            ("dets", "`dets`: expected ROLE=NAME"),
            ("boxes=a", "`boxes`: expected one of dets, labels, masks"),
            ("dets=", "`dets=`: expected a name after `=`"),
            ("dets=a,dets=b", "`dets` is named twice"),
        ] {
            assert_eq!(TensorNames::parse(text).unwrap_err().to_string(), message);
        }
    }
}

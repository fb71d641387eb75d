//! What to compute: the sidecar's words and the flags' words, parsed by the same functions.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use rfdetr_post::{ClassLayout, MaskFormat, Options, Semantics, Size, StaticCrop, Thresholds};
use serde_json::Value;

use super::coco_names;

/// What a sidecar or the flags say about the options. What is not given is left alone.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptionsPatch {
    /// Whose arithmetic to follow.
    pub semantics: Option<SemanticsSpec>,
    /// What the logit columns mean.
    pub classes: Option<ClassesSpec>,
    /// Scores must be strictly above it.
    pub threshold: Option<ThresholdSpec>,
    /// Size of the flat top-k.
    pub num_select: Option<usize>,
    /// At most this many detections an image.
    pub max_detections: Option<usize>,
    /// The form of the masks.
    pub mask_format: Option<MaskFormat>,
}

/// Semantics: `"roboflow"`, `"rf-detr"`, or the core's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Value")]
pub struct SemanticsSpec(pub Semantics);

/// Class layout and, where known, the names by class id.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(try_from = "Value")]
pub struct ClassesSpec {
    /// What the columns mean.
    pub layout: ClassLayout,
    /// Names by class id.
    pub names: Option<Vec<String>>,
}

/// A threshold: a number, a list with one number a class id, or the core's record.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(try_from = "Value")]
pub struct ThresholdSpec(pub Thresholds);

/// Everything that is needed to compute, with names for people.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// The options; `mask_format` is meaningless until [`Settings::mask_format`] is resolved.
    pub options: Options,
    /// The form of the masks; none for run lengths if the model has masks.
    pub mask_format: Option<MaskFormat>,
    /// Names by class id; empty if unknown.
    pub class_names: Vec<String>,
}

impl Settings {
    /// Replaces what `patch` gives.
    pub fn apply(&mut self, patch: &OptionsPatch) {
        if let Some(SemanticsSpec(semantics)) = patch.semantics {
            self.options.semantics = semantics;
        }
        if let Some(classes) = &patch.classes {
            self.options.classes = classes.layout.clone();
            self.class_names = classes.names.clone().unwrap_or_default();
        }
        if let Some(ThresholdSpec(threshold)) = &patch.threshold {
            self.options.threshold = threshold.clone();
        }
        self.options.num_select = patch.num_select.or(self.options.num_select);
        self.options.max_detections = patch.max_detections.or(self.options.max_detections);
        self.mask_format = patch.mask_format.or(self.mask_format);
    }
}

impl TryFrom<Value> for SemanticsSpec {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value.as_str() {
            Some("roboflow") => Ok(Self(Semantics::roboflow_inference())),
            Some("rf-detr") => Ok(Self(Semantics::rf_detr())),
            Some(other) => Err(format!("`{other}`: expected roboflow, rf-detr or a JSON object")),
            None => serde_json::from_value(value).map(Self).map_err(|err| err.to_string()),
        }
    }
}

impl TryFrom<Value> for ClassesSpec {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct WithNames {
            layout: Value,
            #[serde(default)]
            names: Option<Vec<String>>,
        }

        match value.as_str() {
            Some("identity") => Ok(Self { layout: ClassLayout::Identity, names: None }),
            Some("coco91") => Ok(Self { layout: ClassLayout::coco91(), names: Some(coco_names::by_class()) }),
            Some("coco91-ids") => {
                Ok(Self { layout: ClassLayout::coco91_category_ids(), names: Some(coco_names::by_category_id()) })
            }
            Some(other) => match other.strip_prefix("fine-tuned:").map(str::parse) {
                Some(Ok(num_classes)) => Ok(Self { layout: ClassLayout::fine_tuned(num_classes), names: None }),
                _ => Err(format!("`{other}`: expected coco91, coco91-ids, identity, fine-tuned:N or FILE.json")),
            },
            None if value.get("layout").is_some() => {
                let with: WithNames = serde_json::from_value(value).map_err(|err| err.to_string())?;
                let inner = Self::try_from(with.layout)?;
                Ok(Self { layout: inner.layout, names: with.names.or(inner.names) })
            }
            None => {
                let layout = serde_json::from_value(value).map_err(|err| err.to_string())?;
                Ok(Self { layout, names: None })
            }
        }
    }
}

impl TryFrom<Value> for ThresholdSpec {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let thresholds = match &value {
            Value::Number(number) => Thresholds::Scalar(number.as_f64().unwrap_or(f64::NAN)),
            Value::Array(_) => Thresholds::PerClass(serde_json::from_value(value).map_err(|err| err.to_string())?),
            Value::Object(_) => serde_json::from_value(value).map_err(|err| err.to_string())?,
            other => return Err(format!("{other}: expected a number, a list of numbers or a JSON object")),
        };
        let bad = match &thresholds {
            Thresholds::Scalar(value) => Some(*value).filter(|value| !(-1.0..=1.0).contains(value)),
            Thresholds::PerClass(values) => {
                values.iter().find(|value| !(-1.0..=1.0).contains(*value)).map(|&value| f64::from(value))
            }
        };
        match bad {
            Some(bad) => Err(format!("{bad}: expected a number in -1..=1 (scores lie in 0..=1)")),
            None => Ok(Self(thresholds)),
        }
    }
}

/// Parses a flag that holds JSON, the name of a `.json` file, or a word.
fn value_of_flag(text: &str) -> Result<Value> {
    if text.trim_start().starts_with(['{', '[']) {
        return serde_json::from_str(text).context("malformed JSON");
    }
    if Path::new(text).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        let json = fs::read_to_string(text).with_context(|| format!("cannot read {text}"))?;
        return serde_json::from_str(&json).with_context(|| format!("{text}: malformed JSON"));
    }
    Ok(Value::String(text.to_owned()))
}

/// Parses `--semantics`.
pub fn parse_semantics(text: &str) -> Result<SemanticsSpec> {
    SemanticsSpec::try_from(value_of_flag(text)?).map_err(anyhow::Error::msg)
}

/// Parses `--classes`.
pub fn parse_classes(text: &str) -> Result<ClassesSpec> {
    ClassesSpec::try_from(value_of_flag(text)?).map_err(anyhow::Error::msg)
}

/// Parses `--threshold`: a number, numbers with commas, JSON or a file.
pub fn parse_threshold(text: &str) -> Result<ThresholdSpec> {
    let value = match value_of_flag(text)? {
        Value::String(text) => {
            let numbers = text
                .split(',')
                .map(|part| {
                    let number: f64 = part.trim().parse().ok()?;
                    serde_json::Number::from_f64(number).map(Value::Number)
                })
                .collect::<Option<Vec<_>>>();
            match numbers {
                Some(mut numbers) if numbers.len() == 1 => numbers.remove(0),
                Some(numbers) => Value::Array(numbers),
                None => bail!("`{text}`: expected a number, numbers with commas between them, or FILE.json"),
            }
        }
        value => value,
    };
    ThresholdSpec::try_from(value).map_err(anyhow::Error::msg)
}

/// Parses `WIDTHxHEIGHT`, or one number for a square.
pub fn parse_size(text: &str) -> Result<Size> {
    let side = |text: &str| -> Result<u32> {
        let side = text.trim().parse().ok().filter(|&side| side > 0);
        side.with_context(|| format!("`{text}`: expected a positive whole number of pixels, as in 640x480"))
    };
    match text.split_once(['x', 'X']) {
        Some((width, height)) => Ok(Size::new(side(width)?, side(height)?)),
        None => side(text).map(|side| Size::new(side, side)),
    }
}

/// Parses `X,Y,WIDTH,HEIGHT`.
pub fn parse_static_crop(text: &str) -> Result<StaticCrop> {
    let numbers = text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<Vec<u32>>>();
    let Some(&[x, y, width, height]) = numbers.as_deref() else { bail!("`{text}`: expected X,Y,WIDTH,HEIGHT") };
    ensure!(width > 0 && height > 0, "`{text}`: expected a crop of at least one pixel");
    Ok(StaticCrop { x, y, width, height })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn presets_and_records() {
        assert_eq!(parse_semantics("rf-detr").unwrap().0, Semantics::rf_detr());
        assert_eq!(
            parse_semantics(r#"{"clip_boxes": false}"#).unwrap().0,
            Semantics { clip_boxes: false, ..Semantics::roboflow_inference() }
        );
        assert_eq!(parse_classes("identity").unwrap().layout, ClassLayout::Identity);
        assert_eq!(parse_classes("fine-tuned:7").unwrap().layout, ClassLayout::fine_tuned(7));
        let coco = parse_classes("coco91").unwrap();
        assert_eq!((coco.layout, coco.names.unwrap().len()), (ClassLayout::coco91(), 80));
        let ids = parse_classes("coco91-ids").unwrap();
        assert_eq!((ids.layout, ids.names.unwrap()[90].as_str()), (ClassLayout::coco91_category_ids(), "toothbrush"));
        let named = parse_classes(r#"{"layout": {"remap": [null, 0]}, "names": ["cat"]}"#).unwrap();
        assert_eq!(named.layout, ClassLayout::Remap(vec![None, Some(0)]));
        assert_eq!(named.names.unwrap(), ["cat"]);
        let preset = parse_classes(r#"{"layout": "fine-tuned:1", "names": ["cat"]}"#).unwrap();
        assert_eq!(preset.layout, ClassLayout::fine_tuned(1));
    }

    #[test]
    fn thresholds_in_every_form() {
        assert_eq!(parse_threshold("0.4").unwrap().0, Thresholds::Scalar(0.4));
        assert_eq!(parse_threshold("-1").unwrap().0, Thresholds::Scalar(-1.0));
        assert_eq!(parse_threshold("0.4, 0.5").unwrap().0, Thresholds::PerClass(vec![0.4, 0.5]));
        assert_eq!(parse_threshold("[0.5]").unwrap().0, Thresholds::PerClass(vec![0.5]));
        assert_eq!(parse_threshold(r#"{"scalar": 0.5}"#).unwrap().0, Thresholds::Scalar(0.5));
    }

    #[test]
    fn bad_words_are_named() {
        assert!(error(parse_semantics("torch")).starts_with("`torch`: expected roboflow, rf-detr"));
        assert!(error(parse_semantics(r#"{"clip": 1}"#)).contains("unknown field `clip`"));
        assert!(error(parse_classes("coco80")).starts_with("`coco80`: expected coco91, coco91-ids"));
        assert!(error(parse_classes("fine-tuned:many")).contains("expected coco91"));
        assert!(error(parse_classes("[1]")).contains("invalid type"));
        assert!(error(parse_classes("/nowhere/classes.json")).contains("cannot read /nowhere/classes.json"));
        assert!(error(parse_threshold("high")).starts_with("`high`: expected a number"));
        assert!(error(parse_threshold("nan")).starts_with("`nan`: expected a number"));
        assert!(error(parse_threshold("1.5")).starts_with("1.5: expected a number in -1..=1"));
        assert!(error(parse_threshold("0.5,2")).starts_with("2: expected a number in -1..=1"));
        assert!(error(parse_threshold("[0.5")).contains("malformed JSON"));
        assert!(error(parse_threshold(r#"{"scalar": true}"#)).contains("invalid type"));
    }

    #[test]
    fn sizes_and_crops() {
        assert_eq!(parse_size("640x480").unwrap(), Size::new(640, 480));
        assert_eq!(parse_size("312").unwrap(), Size::new(312, 312));
        assert_eq!(parse_static_crop("1,2,3,4").unwrap(), StaticCrop { x: 1, y: 2, width: 3, height: 4 });
        for bad in ["", "640x", "x480", "0x4", "-1x4", "640x480x3", "4294967296"] {
            assert!(error(parse_size(bad)).contains("expected a positive whole number"), "{bad}");
        }
        for bad in ["", "1,2,3", "1,2,3,4,5", "1,2,-3,4"] {
            assert!(error(parse_static_crop(bad)).contains("expected X,Y,WIDTH,HEIGHT"), "{bad}");
        }
        assert!(error(parse_static_crop("1,2,0,4")).contains("at least one pixel"));
    }
}

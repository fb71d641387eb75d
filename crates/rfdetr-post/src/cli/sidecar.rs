//! The JSON file beside an input: which images it holds, how they were resized, and what to compute.
//!
//! Every field is optional; unknown fields are errors.
//!
//! ```json
//! {
//!   "images": [
//!     {
//!       "id": 1,
//!       "file_name": "street.png",
//!       "meta": {
//!         "original": {"width": 1280, "height": 720},
//!         "static_crop": {"x": 0, "y": 60, "width": 1280, "height": 660},
//!         "resize": {"letterbox": {"frame": {"width": 312, "height": 312}, "network": {"width": 312, "height": 312}}}
//!       }
//!     }
//!   ],
//!   "options": {
//!     "threshold": 0.4,
//!     "classes": "coco91-ids",
//!     "semantics": "roboflow",
//!     "num_select": 100,
//!     "max_detections": 20,
//!     "mask_format": "rle"
//!   },
//!   "class_names": ["", "person", "bicycle"],
//!   "tensor_names": {"dets": "pred_boxes", "labels": "pred_logits", "masks": "pred_masks"}
//! }
//! ```
//!
//! `meta` has three forms:
//! - the words of the pre-processing, as above ([`Preprocessing`]): the program does the arithmetic;
//! - the same in short, where the resize names the record:
//!   `{"stretch": {"original": .., "network": ..}}`, `{"letterbox": {"original": .., "frame": .., "network": ..}}` or
//!   `{"center_crop": ..}`, with `static_crop` if any; `frame` is the network's size if not given;
//! - a full record that somebody else computed ([`ImageMeta`]), with `content`, `scale_x` and so on.

use rfdetr_post::{ImageMeta, Preprocessing, Resize, Size, StaticCrop};
use serde_json::Value;

use super::{config::OptionsPatch, tensors::TensorNames};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sidecar {
    /// One entry an image of the batch, in order; or none at all.
    pub images: Vec<ImageEntry>,
    /// What to compute.
    pub options: OptionsPatch,
    /// Names by class id.
    pub class_names: Option<Vec<String>>,
    /// The names that the input gives the three outputs.
    pub tensor_names: TensorNames,
}

/// One image of the batch.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageEntry {
    /// COCO's image id; numbered from 1 if not given.
    pub id: Option<u64>,
    /// The picture, relative to the sidecar's folder.
    pub file_name: Option<String>,
    /// How the image became a network input.
    pub meta: Option<MetaSpec>,
}

/// The metadata record of one image, resolved.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(try_from = "Value")]
pub struct MetaSpec(pub ImageMeta);

impl TryFrom<Value> for MetaSpec {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Short {
            original: Size,
            network: Size,
            #[serde(default)]
            frame: Option<Size>,
            #[serde(default)]
            static_crop: Option<StaticCrop>,
        }

        let text = |err: serde_json::Error| format!("meta: {err}");
        let Value::Object(map) = &value else { return Err("meta: expected an object".to_owned()) };
        if map.contains_key("content") || map.contains_key("scale_x") {
            return serde_json::from_value(value).map(Self).map_err(text);
        }
        let preprocessing = match map.iter().next() {
            Some((mode, short)) if matches!(mode.as_str(), "stretch" | "letterbox" | "center_crop") => {
                if map.len() > 1 {
                    return Err(format!("meta: expected nothing beside `{mode}`; sizes and crops go inside it"));
                }
                let short: Short =
                    serde_json::from_value(short.clone()).map_err(|err| format!("meta.{mode}: {err}"))?;
                let (network, frame) = (short.network, short.frame.unwrap_or(short.network));
                let resize = match mode.as_str() {
                    "stretch" if short.frame.is_some() => {
                        return Err("meta.stretch: unexpected `frame`, a stretch has none".to_owned());
                    }
                    "stretch" => Resize::Stretch { network },
                    "letterbox" => Resize::Letterbox { frame, network },
                    _ => Resize::CenterCrop { frame, network },
                };
                Preprocessing { original: short.original, static_crop: short.static_crop, resize }
            }
            _ => serde_json::from_value(value).map_err(text)?,
        };
        preprocessing.meta().map(Self).map_err(|err| format!("meta: {err}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Sidecar, String> {
        serde_json::from_str(json).map_err(|err| err.to_string())
    }

    fn meta(json: &str) -> Result<ImageMeta, String> {
        let sidecar = parse(&format!(r#"{{"images": [{{"meta": {json}}}]}}"#))?;
        Ok(sidecar.images[0].meta.unwrap().0)
    }

    #[test]
    fn the_three_forms_of_meta_agree() {
        let sizes = r#""original": {"width": 640, "height": 480}"#;
        let frame = r#"{"width": 400, "height": 312}"#;
        let network = r#"{"width": 312, "height": 312}"#;
        let crop = r#""static_crop": {"x": 1, "y": 2, "width": 300, "height": 200}"#;
        let long = meta(&format!(
            r#"{{{sizes}, {crop}, "resize": {{"letterbox": {{"frame": {frame}, "network": {network}}}}}}}"#
        ))
        .unwrap();
        let short =
            meta(&format!(r#"{{"letterbox": {{{sizes}, {crop}, "frame": {frame}, "network": {network}}}}}"#)).unwrap();
        assert_eq!(long, short);
        let crop = StaticCrop { x: 1, y: 2, width: 300, height: 200 };
        let resize = Resize::Letterbox { frame: Size::new(400, 312), network: Size::new(312, 312) };
        assert_eq!(long, ImageMeta::static_crop(Size::new(640, 480), crop, resize).unwrap());
        assert_eq!(meta(&serde_json::to_string(&long).unwrap()).unwrap(), long);
        let square = meta(&format!(r#"{{"center_crop": {{{sizes}, "network": {network}}}}}"#)).unwrap();
        assert_eq!(
            square,
            ImageMeta::center_crop(Size::new(640, 480), Size::new(312, 312), Size::new(312, 312)).unwrap()
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (json, message) in [
            (r#"{"image": []}"#, "unknown field `image`"),
            (r#"{"images": [{"name": "a.png"}]}"#, "unknown field `name`"),
            (r#"{"options": {"treshold": 0.4}}"#, "unknown field `treshold`"),
            (r#"{"options": {"threshold": 4}}"#, "4: expected a number in -1..=1"),
            (r#"{"options": {"classes": "coco"}}"#, "`coco`: expected coco91"),
            (r#"{"images": [{"meta": 3}]}"#, "meta: expected an object"),
            (r#"{"images": [{"meta": {}}]}"#, "missing field `original`"),
            (r#"{"images": [{"meta": {"stretch": {}}}]}"#, "meta.stretch: missing field `original`"),
            (r#"{"images": [{"meta": {"stretch": {}, "static_crop": {}}}]}"#, "meta: "),
            (
                r#"{"images": [{"meta": {"stretch": {"original": {"width": 0, "height": 1}, "network": {"width": 1, "height": 1}}}}]}"#,
                "`original` is 0x1, expected sides in 1..=2^23",
            ),
            (
                r#"{"images": [{"meta": {"stretch": {"original": {"width": 1, "height": 1}, "frame": {"width": 1, "height": 1}, "network": {"width": 1, "height": 1}}}}]}"#,
                "unexpected `frame`",
            ),
            (r#"{"images": [{"meta": {"content": 1}}]}"#, "meta: "),
        ] {
            let error = parse(json).unwrap_err();
            assert!(error.contains(message), "{json}: {error}");
        }
    }

    #[test]
    fn the_documented_example_parses() {
        let docs = include_str!("sidecar.rs");
        let json: String = docs
            .lines()
            .skip_while(|line| *line != "//! ```json")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| &line[4..])
            .collect();
        let sidecar = parse(&json).unwrap();
        assert_eq!(sidecar.options.max_detections, Some(20));
        assert_eq!(sidecar.images[0].meta.unwrap().0.crop_offset.y, 60);
    }
}

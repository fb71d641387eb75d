//! The command line from outside: exit codes, files, JSON and every message.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sample/street.npz");
const UPSTREAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/upstream");

/// What a run of the program left behind.
struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

/// A folder with inputs, in which the program runs.
struct Bench {
    dir: TempDir,
}

/// Shape and elements.
type Floats = (Vec<usize>, Vec<f32>);

/// A small model's outputs: one image, 3 queries, 5 class columns, 6 x 7 mask cells.
#[derive(Clone)]
struct Model {
    dets: Floats,
    labels: Floats,
    masks: Floats,
}

impl Model {
    /// Query 1 is class 2 at (15, 10)..(45, 30) of a 60 x 40 image; query 2 is class 4, weaker.
    fn new() -> Self {
        let mut labels = vec![-6.0; 15];
        (labels[7], labels[14]) = (3.0, 1.0);
        let masks = (0..3 * 42).map(|idx| if idx % 7 < 3 { 2.0 } else { -2.0 }).collect();
        let dets = vec![0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.75, 0.5, 0.25];
        Self { dets: (vec![1, 3, 4], dets), labels: (vec![1, 3, 5], labels), masks: (vec![1, 3, 6, 7], masks) }
    }

    /// The same image `count` times.
    fn batch(count: usize) -> Self {
        let mut model = Self::new();
        for (shape, data) in [&mut model.dets, &mut model.labels, &mut model.masks] {
            shape[0] = count;
            *data = data.repeat(count);
        }
        model
    }

    fn arrays(&self) -> [(&'static str, &Floats); 3] {
        [("dets", &self.dets), ("labels", &self.labels), ("masks", &self.masks)]
    }

    fn npz(&self) -> Vec<u8> {
        let arrays = self.arrays().map(|(name, (shape, data))| (name, npy("<f4", shape, bytemuck::cast_slice(data))));
        zip(&arrays)
    }
}

fn npy(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sides}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn zip(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        writer.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn safetensors(arrays: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let views: BTreeMap<_, _> = arrays
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    safetensors::serialize(views, None).unwrap()
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&vec![90; (width * height * 3) as usize]).unwrap();
    bytes
}

/// 60 x 40, stretched to 32 x 32.
fn meta() -> Value {
    let sizes = json!({"original": {"width": 60, "height": 40}, "network": {"width": 32, "height": 32}});
    json!({ "stretch": sizes })
}

fn sidecar() -> Value {
    json!({"images": [{"meta": meta()}]})
}

impl Bench {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    /// A folder with `a.npz` and its sidecar.
    fn with_input() -> Self {
        let bench = Self::new();
        bench.write("a.npz", Model::new().npz());
        bench.write("a.json", sidecar().to_string());
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let output =
            Command::new(env!("CARGO_BIN_EXE_rfdetr-post")).args(args).current_dir(self.dir.path()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let outcome =
            Outcome { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        outcome
    }

    /// Runs and expects `code` and, in what it prints to stderr, `message`.
    fn fails(&self, args: &[&str], code: i32, message: &str) {
        let outcome = self.run(args);
        assert!(outcome.stderr.contains(message), "{args:?}: expected {message:?} in\n{}", outcome.stderr);
        assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
    }

    /// Runs `run` with `--json`, expects success and returns the summary.
    fn summary(&self, args: &[&str]) -> Value {
        let outcome = self.run(&[&["run", "--json", "--out", "out"], args].concat());
        assert_eq!(outcome.code, 0, "{args:?}: {}", outcome.stderr);
        serde_json::from_str(&outcome.stdout).unwrap()
    }

    /// Runs `run`, expects success and returns the detections.
    fn detections(&self, args: &[&str]) -> Vec<Value> {
        self.summary(args);
        self.json("out/detections.json").as_array().unwrap().clone()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn demo_needs_nothing_and_says_where_its_files_are() {
    let bench = Bench::new();
    let outcome = bench.run(&["demo"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert_eq!(bench.files("rfdetr-post-out"), ["detections.json", "images.json", "street_overlay.png"]);
    for text in ["bus", "0.962", "traffic light", "1280x720", "post-process", "street_overlay.png", "detections.json"] {
        assert!(outcome.stdout.contains(text), "expected {text} in\n{}", outcome.stdout);
    }
    let detections = bench.json("rfdetr-post-out/detections.json");
    let detections = detections.as_array().unwrap();
    let classes: Vec<_> = detections.iter().map(|d| d["category_id"].as_u64().unwrap()).collect();
    // The sample's README lists them.
    assert_eq!(classes, [6, 1, 3, 1, 18, 2, 10, 8, 11, 3, 16]);
    assert!(detections.iter().all(|d| d["image_id"] == 1 && d["segmentation"]["size"] == json!([720, 1280])));

    let outcome = bench.run(&["demo", "--out", "else/where", "--json"]);
    let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(summary["totals"]["detections"], 11);
    assert_eq!(bench.files("else/where").len(), 3);
    assert_eq!(bench.run(&["demo", "--quiet"]).stdout, "");
}

#[test]
fn a_sidecar_gives_everything() {
    let bench = Bench::with_input();
    let mut sidecar = sidecar();
    sidecar["images"][0]["id"] = json!(7);
    sidecar["images"][0]["file_name"] = json!("street.png");
    sidecar["options"] = json!({"threshold": 0.9, "classes": {"no_object": {"num_classes": 4}}});
    sidecar["class_names"] = json!(["a", "b", "cat", "d"]);
    bench.write("a.json", sidecar.to_string());
    bench.write("street.png", png(60, 40));
    let summary = bench.summary(&["a.npz"]);
    let image = &summary["inputs"][0]["images"][0];
    assert_eq!((&image["image_id"], &image["detections"]), (&json!(7), &json!(1)));
    assert_eq!((&image["width"], &image["height"]), (&json!(60), &json!(40)));
    assert_eq!(bench.files("out"), ["a_overlay.png", "detections.json", "images.json"]);
    let detection = &bench.json("out/detections.json")[0];
    assert_eq!(detection["bbox"], json!([15.0, 10.0, 30.0, 20.0]));
    assert_eq!((&detection["image_id"], &detection["category_id"]), (&json!(7), &json!(2)));
    let images = bench.json("out/images.json");
    assert_eq!(images["images"], json!([{"id": 7, "file_name": "street.png", "width": 60, "height": 40}]));
    assert_eq!(images["categories"][2], json!({"id": 2, "name": "cat"}));
    // Flags win.
    assert_eq!(bench.detections(&["a.npz", "--threshold", "0.5", "--classes", "identity"]).len(), 2);
    assert_eq!(bench.detections(&["a.npz", "--threshold", "0.5", "--max-detections", "1"]).len(), 1);
    let table = bench.run(&["run", "a.npz"]).stdout;
    assert!(table.contains("cat") && table.contains("a.npz"), "{table}");
}

#[test]
fn a_sidecar_can_map_names_and_serve_many_inputs() {
    let bench = Bench::new();
    let model = Model::new();
    let arrays: Vec<_> = ["pred_boxes", "pred_logits", "4521"]
        .into_iter()
        .zip(model.arrays())
        .map(|(name, (_, (shape, data)))| (name, npy("<f4", shape, bytemuck::cast_slice(data))))
        .collect();
    bench.write("in/a.npz", zip(&arrays));
    bench.write("in/b.npz", zip(&arrays));
    let names = json!({"dets": "pred_boxes", "labels": "pred_logits", "masks": "4521"});
    bench.write("both.json", json!({"images": [{"meta": meta()}], "tensor_names": names}).to_string());
    let detections = bench.detections(&["in", "--meta", "both.json"]);
    assert_eq!(detections.iter().map(|d| d["image_id"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 1, 2, 2]);
    bench.write("plain.json", sidecar().to_string());
    let map = "dets=pred_boxes,labels=pred_logits,masks=4521";
    assert_eq!(bench.detections(&["in/a.npz", "--meta", "plain.json", "--tensor-names", map]).len(), 2);
    bench.fails(
        &["run", "in/a.npz", "--meta", "plain.json"],
        1,
        "in/a.npz: `dets` is missing, the file holds `4521`, `pred_boxes`, `pred_logits` (--tensor-names maps names)",
    );
    bench.fails(
        &["run", "in/a.npz", "--meta", "both.json", "--tensor-names", "masks=mask"],
        1,
        "`mask` is missing, the file holds",
    );
}

#[test]
fn flags_replace_a_sidecar() {
    let bench = Bench::new();
    bench.write("a.npz", Model::new().npz());
    bench.write("picture.png", png(60, 40));
    bench.write("reference.npz", Model::new().npz());
    bench.write("reference.json", sidecar().to_string());
    let expected = bench.detections(&["reference.npz"]);
    assert_eq!(bench.detections(&["a.npz", "--image-size", "60x40", "--network", "32"]), expected);
    assert_eq!(bench.detections(&["a.npz", "--image", "picture.png", "--network", "32x32"]), expected);
    assert_eq!(bench.files("out"), ["a_overlay.png", "detections.json", "images.json"]);
    assert_eq!(bench.json("out/images.json")["images"][0]["file_name"], "picture.png");
    let flags = ["--image-size", "60x40", "--network", "32", "--resize", "letterbox", "--static-crop", "0,0,60,30"];
    let boxes = bench.detections(&[&["a.npz"], &flags[..]].concat());
    // 60x30 in 32x32: 8 rows of padding above and below, scale 32/60.
    assert_eq!(boxes[0]["bbox"], json!([15.0, 0.0, 30.0, 30.0]));
    let flags = ["--image-size", "60x40", "--network", "32", "--resize", "center-crop", "--frame", "40x40"];
    assert_eq!(bench.detections(&[&["a.npz"], &flags[..]].concat())[0]["bbox"], json!([20.0, 10.0, 20.0, 20.0]));
}

#[test]
fn every_type_and_container_gives_the_same_answer() {
    let bench = Bench::with_input();
    let expected = bench.detections(&["a.npz"]);
    let model = Model::new();
    let half: Vec<_> = model
        .arrays()
        .iter()
        .map(|(name, (shape, data))| {
            let data: Vec<f16> = data.iter().map(|&x| f16::from_f32(x)).collect();
            (*name, npy("<f2", shape, bytemuck::cast_slice(&data)))
        })
        .collect();
    bench.write("half.npz", zip(&half));
    // All of the boxes but query 0's are exact in bf16.
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let arrays: Vec<_> = model
            .arrays()
            .iter()
            .map(|(name, (shape, data))| {
                let bytes = match dtype {
                    Dtype::F32 => bytemuck::cast_slice(data).to_vec(),
                    Dtype::F16 => data.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
                    _ => data.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
                };
                (*name, dtype, shape.clone(), bytes)
            })
            .collect();
        bench.write(&format!("{dtype:?}.safetensors"), safetensors(&arrays));
    }
    let mut flat = model;
    for (shape, _) in [&mut flat.dets, &mut flat.labels, &mut flat.masks] {
        shape.remove(0);
    }
    bench.write("flat.npz", flat.npz());
    for input in ["half.npz", "F32.safetensors", "F16.safetensors", "BF16.safetensors", "flat.npz"] {
        assert_eq!(bench.detections(&[input, "--meta", "a.json"]), expected, "{input}");
    }
    assert_eq!(bench.detections(&["a.npz", "--backend", "reference"]), expected);
}

#[test]
fn mask_formats() {
    let bench = Bench::with_input();
    let string = bench.detections(&["a.npz"]);
    assert!(string[0]["segmentation"]["counts"].is_string() && string[0]["area"].as_u64() > Some(0));
    let counts = bench.detections(&["a.npz", "--format", "counts"]);
    let sum: u64 = counts[0]["segmentation"]["counts"].as_array().unwrap().iter().filter_map(Value::as_u64).sum();
    assert_eq!(sum, 60 * 40);
    assert_eq!(bench.files("out"), ["detections.json", "images.json"]);
    for format in ["dense", "bit-packed"] {
        assert_eq!(bench.detections(&["a.npz", "--format", format]), string);
        assert!(bench.path("out/a_masks.npz").exists());
        fs::remove_file(bench.path("out/a_masks.npz")).unwrap();
    }
    for format in ["none", "grid-logits"] {
        let detections = bench.detections(&["a.npz", "--format", format]);
        assert!(detections[0].get("segmentation").is_none() && detections[0].get("area").is_none());
        assert_eq!(bench.path("out/a_masks.npz").exists(), format == "grid-logits");
    }
    let arrays = fs::read(bench.path("out/a_masks.npz")).unwrap();
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(arrays)).unwrap();
    assert_eq!(archive.by_name("masks_0.npy").unwrap().size(), 128 + 4 * 2 * 6 * 7);
    let summary = bench.summary(&["a.npz", "--save-masks"]);
    assert_eq!(
        summary["inputs"][0]["images"][0]["mask_pictures"],
        json!(["out/masks/a_000.png", "out/masks/a_001.png"])
    );
    assert_eq!(bench.files("out/masks"), ["a_000.png", "a_001.png"]);
    for format in ["none", "grid-logits"] {
        bench.fails(&["run", "a.npz", "--save-masks", "--format", format], 1, "--save-masks needs masks that cover");
    }
}

#[test]
fn detection_models_have_no_masks() {
    let bench = Bench::with_input();
    let model = Model::new();
    let arrays = model.arrays().map(|(name, (shape, data))| (name, npy("<f4", shape, bytemuck::cast_slice(data))));
    bench.write("a.npz", zip(&arrays[..2]));
    let detections = bench.detections(&["a.npz"]);
    assert_eq!(detections.len(), 2);
    assert!(detections[0].get("segmentation").is_none());
    bench.fails(
        &["run", "a.npz", "--format", "rle"],
        1,
        "--format is rle, but there is no `masks`: the file holds `dets`, `labels` (--tensor-names masks=NAME maps it)",
    );
}

#[test]
fn a_batch_has_an_entry_an_image() {
    let bench = Bench::new();
    bench.write("b.npz", Model::batch(3).npz());
    bench.write("pictures/one.png", png(60, 40));
    bench.write("pictures/two.png", png(60, 40));
    let mut sidecar = json!({"images": [{"id": 5, "file_name": "one.png", "meta": meta()}, {"meta": meta()}]});
    bench.write("b.json", sidecar.to_string());
    bench.fails(&["run", "b.npz"], 1, "b.npz: the sidecar's `images` holds 2 entries, expected 3");
    sidecar["images"].as_array_mut().unwrap().push(json!({"id": 1, "file_name": "two.png", "meta": meta()}));
    bench.write("b.json", sidecar.to_string());
    let summary = bench.summary(&["b.npz", "--image", "pictures"]);
    let ids: Vec<_> =
        summary["inputs"][0]["images"].as_array().unwrap().iter().map(|i| i["image_id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [5, 2, 1]);
    assert_eq!(bench.files("out"), ["b_0_overlay.png", "b_2_overlay.png", "detections.json", "images.json"]);
    assert!(summary["inputs"][0]["warnings"][0].as_str().unwrap().contains("no picture at pictures/b_1.png"));
    bench.fails(
        &["run", "b.npz", "--image", "pictures/one.png"],
        1,
        "--image names one picture, but there are 3 images",
    );
}

#[test]
fn many_inputs_share_one_result() {
    let bench = Bench::with_input();
    bench.write("in/b.NPZ", Model::new().npz());
    bench.write("in/b.json", sidecar().to_string());
    bench.write("in/a.npz", Model::batch(2).npz());
    bench.write("in/a.json", json!({"images": [{"meta": meta()}, {"meta": meta()}]}).to_string());
    bench.write("in/notes.txt", "not an input");
    for name in ["a", "a_1"] {
        bench.write(&format!("in/{name}.png"), png(60, 40));
    }
    let outcome = bench.run(&["run", "in", "a.npz", "--jobs", "2", "--out", "out", "--image", "in"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stdout.contains("total: 3 inputs") && outcome.stdout.contains("4 images"), "{}", outcome.stdout);
    // The two inputs of one stem do not overwrite each other.
    assert_eq!(bench.files("out"), ["a_1_overlay.png", "a~2_overlay.png", "detections.json", "images.json"]);
    let ids: Vec<_> =
        bench.json("out/detections.json").as_array().unwrap().iter().map(|d| d["image_id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 1, 2, 2, 3, 3, 4, 4]);
    let names: Vec<_> = bench.json("out/images.json")["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["file_name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["a_0", "a_1", "b", "a"]);
}

#[test]
fn one_bad_input_does_not_stop_the_others() {
    let bench = Bench::with_input();
    bench.write("bad.npz", "not a zip");
    let outcome = bench.run(&["run", "bad.npz", "a.npz", "gone.npz", "--json", "--out", "out"]);
    assert_eq!(outcome.code, 1);
    let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let status: Vec<_> = summary["inputs"].as_array().unwrap().iter().map(|i| i["status"].as_str().unwrap()).collect();
    assert_eq!(status, ["failed", "ok", "failed"]);
    assert_eq!((&summary["totals"]["failed"], &summary["totals"]["detections"]), (&json!(2), &json!(2)));
    assert!(summary["inputs"][0]["error"].as_str().unwrap().contains("not a whole .npz"));
    assert!(outcome.stderr.contains("error: bad.npz: not a whole .npz (zip) archive"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("error: gone.npz: cannot be read"), "{}", outcome.stderr);
    assert_eq!(bench.json("out/detections.json").as_array().unwrap().len(), 2);
    let table = bench.run(&["run", "bad.npz", "a.npz"]).stdout;
    assert!(table.contains("failed"), "{table}");
}

#[test]
fn upstream_fixtures_are_inputs() {
    let bench = Bench::new();
    let summary = bench.summary(&[UPSTREAM]);
    let totals = &summary["totals"];
    assert_eq!((&totals["inputs"], &totals["images"], &totals["failed"]), (&json!(22), &json!(23), &json!(0)));
    // The fixtures' README lists 12 + 9 + 8 + ... detections.
    assert_eq!(totals["detections"], 312);
    let fixture = Path::new(UPSTREAM).join("max_detections_5.npz");
    let fixture = fixture.to_str().unwrap();
    assert_eq!(bench.detections(&[fixture]).len(), 5);
    assert!(bench.detections(&[fixture, "--max-detections", "100", "--threshold", "0.1"]).len() > 5);
    assert!(bench.detections(&[fixture, "--format", "none"])[0].get("segmentation").is_none());
}

#[test]
fn nan_and_infinity_are_inputs() {
    let bench = Bench::with_input();
    let mut model = Model::new();
    model.dets.1[4] = f32::NAN;
    (model.labels.1[0], model.labels.1[1]) = (f32::NAN, f32::INFINITY);
    model.masks.1[50] = f32::NEG_INFINITY;
    bench.write("a.npz", model.npz());
    bench.write("a.png", png(60, 40));
    for semantics in ["roboflow", "rf-detr", r#"{"box_rounding": "none", "clip_boxes": false}"#] {
        let summary = bench.summary(&["a.npz", "--image", "a.png", "--network", "32", "--semantics", semantics]);
        let warning = summary["inputs"][0]["warnings"][0].as_str().unwrap();
        assert!(warning.starts_with("image 0 has 1 NaN class logits, 1 class logits of +Inf"), "{warning}");
        for detection in bench.json("out/detections.json").as_array().unwrap() {
            assert!(detection["bbox"].as_array().unwrap().iter().all(Value::is_number), "{detection}");
        }
    }
}

#[test]
fn empty_batches_and_empty_results() {
    let bench = Bench::with_input();
    assert_eq!(bench.detections(&["a.npz", "--threshold", "0.99"]), [Value::Null; 0]);
    let mut model = Model::new();
    for (shape, data) in [&mut model.dets, &mut model.labels, &mut model.masks] {
        shape[0] = 0;
        data.clear();
    }
    bench.write("a.npz", model.npz());
    fs::remove_file(bench.path("a.json")).unwrap();
    assert_eq!(bench.detections(&["a.npz"]), [Value::Null; 0]);
}

#[test]
fn arrays_that_are_wrong_are_named() {
    let bench = Bench::with_input();
    let npz = |bench: &Bench, change: fn(&mut Model)| {
        let mut model = Model::new();
        change(&mut model);
        bench.write("a.npz", model.npz());
    };
    npz(&bench, |model| model.dets.0 = vec![1, 4, 3]);
    bench.fails(&["run", "a.npz"], 1, "error: a.npz: `dets` has shape [1, 4, 3], expected [B, Q, 4]");
    npz(&bench, |model| model.labels.0 = vec![1, 5, 3]);
    bench.fails(&["run", "a.npz"], 1, "`labels` has shape [1, 5, 3], expected [1, 3, C] as `dets`");
    npz(&bench, |model| model.masks.0 = vec![3, 6, 7]);
    bench.fails(&["run", "a.npz"], 1, "`masks` has shape [3, 6, 7], expected rank 4: [B, Q, Mh, Mw]");
    npz(&bench, |model| model.masks.0 = vec![1, 3, 7, 7]);
    bench.fails(&["run", "a.npz"], 1, "`masks`: holds 504 bytes, its shape [1, 3, 7, 7] needs 588");
    npz(&bench, |model| model.masks.0 = vec![1 << 40, 1 << 40, 7, 7]);
    bench.fails(&["run", "a.npz"], 1, "`masks`: has shape [1099511627776, 1099511627776, 7, 7], which overflows");
    let f64s = npy("<f8", &[1, 3, 4], &[0; 96]);
    bench.write("a.npz", zip(&[("dets", f64s)]));
    bench.fails(&["run", "a.npz"], 1, "`dets`: has type `<f8`, expected f32 or f16");
    bench.write("a.npz", zip(&[("dets", b"junk in place of an array".to_vec())]));
    bench.fails(&["run", "a.npz"], 1, "`dets`: is no .npy array");
    bench.write("a.npz", zip(&[]));
    bench.fails(&["run", "a.npz"], 1, "`dets` is missing, the file holds nothing");
    let bytes = Model::new().npz();
    bench.write("a.npz", &bytes[..bytes.len() / 2]);
    bench.fails(&["run", "a.npz"], 1, "a.npz: not a whole .npz (zip) archive");
    bench.write("s.safetensors", &bytes);
    bench.fails(&["run", "s.safetensors"], 1, "s.safetensors: not a whole .safetensors file");
    let ints = [("dets", Dtype::I32, vec![1, 3, 4], vec![0; 48])];
    bench.write("s.safetensors", safetensors(&ints));
    bench.fails(&["run", "s.safetensors"], 1, "`dets`: has type I32, expected F32, F16 or BF16");
    bench.write("a.pt", "torch");
    bench.fails(&["run", "a.pt"], 1, "a.pt: is no input: expected a name that ends in .npz or .safetensors");
    bench.write("empty/readme.txt", "");
    bench.fails(&["run", "empty"], 1, "error: empty: holds no .npz or .safetensors files");
}

#[test]
fn sidecars_that_are_wrong_are_named() {
    let bench = Bench::with_input();
    for (sidecar, message) in [
        ("{", "a.npz: sidecar a.json: EOF while parsing"),
        (r#"{"annotations": []}"#, "sidecar a.json: unknown field `annotations`"),
        (r#"{"images": [{"meta": {"stretch": {}}}]}"#, "sidecar a.json: meta.stretch: missing field `original`"),
        (r#"{"images": []}"#, "no metadata for image 0: expected a sidecar with `images[0].meta`, or --network"),
        (r#"{"options": {"threshold": 7}}"#, "7: expected a number in -1..=1"),
    ] {
        bench.write("a.json", sidecar);
        bench.fails(&["run", "a.npz"], 1, message);
    }
    let mut record = json!({
        "original": {"width": 60, "height": 40}, "content": {"width": 60, "height": 40},
        "network": {"width": 32, "height": 32}, "scale_x": 0.5, "scale_y": 0.8
    });
    bench.write("a.json", json!({"images": [{"meta": record}]}).to_string());
    assert_eq!(bench.detections(&["a.npz"]).len(), 2);
    record["scale_x"] = json!(-1.0);
    bench.write("a.json", json!({"images": [{"meta": record}]}).to_string());
    bench.fails(&["run", "a.npz"], 1, "`metas[0].scale_x` is -1, expected a positive finite f32");
    let mut options = sidecar();
    options["options"] = json!({"classes": {"remap": [0, 1]}});
    bench.write("a.json", options.to_string());
    bench.fails(&["run", "a.npz"], 1, "`classes` describes 2 columns, the logits have 5");
    bench.fails(
        &["run", "a.npz", "--classes", "identity", "--threshold", "0.1,0.2"],
        1,
        "`threshold.per_class` holds 2 values, expected 5",
    );
    bench.fails(
        &["run", "a.npz", "--classes", "identity", "--semantics", r#"{"score": "torch_cuda"}"#],
        1,
        "`semantics.score` is `torch_cuda`, which only a GPU can compute",
    );
}

#[test]
fn image_ids_are_unique() {
    let bench = Bench::with_input();
    let mut sidecar = sidecar();
    sidecar["images"][0]["id"] = json!(4);
    bench.write("a.json", sidecar.to_string());
    bench.write("b.npz", Model::new().npz());
    bench.write("b.json", sidecar.to_string());
    bench.fails(&["run", "a.npz", "b.npz", "--out", "out"], 1, "error: b.npz: image id 4 is taken by a.npz");
    assert_eq!(bench.json("out/images.json")["images"].as_array().unwrap().len(), 1);
}

#[test]
fn pictures_that_are_wrong_are_named() {
    let bench = Bench::with_input();
    bench.write("small.png", png(6, 4));
    bench.fails(&["run", "a.npz", "--image", "small.png"], 1, "the picture is 6x4, but the metadata says 60x40");
    bench.write("text.png", "text");
    bench.fails(&["run", "a.npz", "--image", "text.png"], 1, "picture text.png: is neither PNG nor JPEG");
    let bytes = png(60, 40);
    bench.write("half.png", &bytes[..bytes.len() / 2]);
    bench.fails(&["run", "a.npz", "--image", "half.png"], 1, "picture half.png: damaged PNG");
    let mut sidecar = sidecar();
    sidecar["images"][0]["file_name"] = json!("gone.png");
    bench.write("a.json", sidecar.to_string());
    bench.fails(&["run", "a.npz"], 0, "warning: a.npz: no picture at gone.png, so no overlay");
    assert_eq!(bench.run(&["run", "a.npz", "--no-overlay"]).stderr, "");
    assert_eq!(bench.run(&["run", "a.npz", "--quiet"]).stderr, "");
}

#[test]
fn wrong_usage_exits_with_2() {
    let bench = Bench::with_input();
    bench.write("p.png", png(60, 40));
    for (args, message) in [
        (&[][..], "Usage: rfdetr-post <COMMAND>"),
        (&["run"], "<INPUT>..."),
        (&["walk"], "unrecognized subcommand 'walk'"),
        (&["run", "a.npz", "--threshold", "2"], "2: expected a number in -1..=1"),
        (&["run", "a.npz", "--threshold", "high"], "`high`: expected a number"),
        (&["run", "a.npz", "--classes", "coco"], "`coco`: expected coco91, coco91-ids, identity, fine-tuned:N"),
        (&["run", "a.npz", "--classes", "gone.json"], "cannot read gone.json"),
        (&["run", "a.npz", "--semantics", "torch"], "`torch`: expected roboflow, rf-detr"),
        (&["run", "a.npz", "--format", "png"], "[possible values: none, dense, bit-packed, grid-logits, counts, rle]"),
        (&["run", "a.npz", "--num-select", "0"], "expected a whole number of at least 1"),
        (&["run", "a.npz", "--image-size", "60by40"], "`60by40`: expected a positive whole number of pixels"),
        (&["run", "a.npz", "--static-crop", "1,2"], "`1,2`: expected X,Y,WIDTH,HEIGHT"),
        (&["run", "a.npz", "--tensor-names", "boxes=x"], "`boxes`: expected one of dets, labels, masks"),
        (&["run", "a.npz", "--image-size", "60x40"], "--network is missing"),
        (&["run", "a.npz", "--network", "32", "--frame", "32"], "--frame needs --resize letterbox or center-crop"),
        (&["run", "a.npz", "--meta", "gone.json"], "--meta: gone.json does not exist"),
        (&["run", "a.npz", "--image", "gone.png"], "--image: gone.png does not exist"),
        (&["run", "a.npz", "a.npz", "--image", "p.png"], "--image names one picture, but there are 2 inputs"),
        (&["run", "a.npz", "--json", "--quiet"], "cannot be used with"),
        (&["run", "a.npz", "--jobs", "0"], "0 is not in 1..=1024"),
    ] {
        bench.fails(args, 2, message);
    }
    // Only the data can tell that the size is missing.
    bench.fails(
        &["run", "a.npz", "--network", "32"],
        1,
        "the image's size is unknown: expected --image-size, or --image",
    );
    let crop = ["run", "a.npz", "--network", "32", "--image-size", "60x40", "--static-crop", "50,0,20,20"];
    bench.fails(&crop, 1, "`static_crop` is");
    bench.fails(&["run", "a.npz", "--out", "a.npz/out"], 1, "--out: cannot make a.npz/out");
}

#[test]
fn help_is_complete() {
    let bench = Bench::new();
    let help = bench.run(&["--help"]);
    assert_eq!(help.code, 0);
    assert!(help.stdout.contains("Examples:") && help.stdout.contains("Exit codes:"), "{}", help.stdout);
    let help = bench.run(&["run", "--help"]).stdout;
    for text in ["Sidecar:", "Outputs, in --out:", "--threshold", "--save-masks", "detections.json"] {
        assert!(help.contains(text), "{help}");
    }
    assert!(bench.run(&["--version"]).stdout.starts_with("rfdetr-post "));
}

#[test]
fn the_sidecar_of_the_help_parses() {
    let bench = Bench::new();
    let help = bench.run(&["run", "--help"]).stdout;
    let (_, text) = help.split_once("All fields are optional:").unwrap();
    let (text, _) = text.split_once("`meta` may also be").unwrap();
    bench.write("street.json", text);
    fs::copy(SAMPLE, bench.path("street.npz")).unwrap();
    // The names of the sample are not those of the example.
    bench.fails(&["run", "street.npz"], 1, "`pred_boxes` is missing");
    assert_eq!(bench.detections(&["street.npz", "--tensor-names", "dets=dets"]).len(), 11);
}

#[test]
fn info_lists_models_and_back_ends() {
    let bench = Bench::new();
    let text = bench.run(&["info"]).stdout;
    for part in ["seg-nano", "312x312", "78x78", "2xlarge", "reference", "cpu", env!("CARGO_PKG_VERSION")] {
        assert!(text.contains(part), "expected {part} in\n{text}");
    }
    let json: Value = serde_json::from_str(&bench.run(&["info", "--json"]).stdout).unwrap();
    assert_eq!(json["models"].as_array().unwrap().len(), 15);
    assert_eq!(json["backends"][0]["name"], "cpu");
}

/// With and without a GPU: `auto` always works, and `cuda` does or says why not.
#[test]
fn devices_work_or_say_why_not() {
    let bench = Bench::with_input();
    let expected = bench.detections(&["a.npz", "--device", "cpu"]);
    let summary = bench.summary(&["a.npz", "--device", "auto"]);
    assert_eq!(bench.json("out/detections.json").as_array().unwrap(), &expected);
    let info: Value = serde_json::from_str(&bench.run(&["info", "--json"]).stdout).unwrap();
    let reason = &info["gpus"]["none"]["reason"];
    if reason.is_null() {
        assert_eq!(summary["backend"], "cuda");
        assert_eq!(bench.detections(&["a.npz", "--device", "cuda"]), expected);
        assert_eq!(bench.run(&["info", "--device", "cuda"]).code, 0);
    } else {
        assert_eq!((&summary["backend"], &summary["fallback_reason"]), (&json!("cpu"), reason));
        let reason = reason.as_str().unwrap();
        assert!(bench.run(&["demo", "--device", "auto"]).stdout.contains(&format!("no GPU:   {reason}\n")));
        assert!(bench.run(&["info"]).stdout.contains(&format!("no GPU: {reason}\n")));
        for args in
            [&["run", "a.npz", "--device", "cuda"][..], &["demo", "--device", "cuda:0"], &["info", "--device", "cuda"]]
        {
            bench.fails(args, 1, reason);
        }
    }
    bench.fails(&["demo", "--device", "cuda:99"], 1, "--device: ");
    bench.fails(&["demo", "--device", "gpu"], 2, "`gpu`: expected auto, cpu, cuda or cuda:N");
    bench.fails(&["run", "a.npz", "--device", "auto", "--backend", "reference"], 2, "--backend reference computes on");
    assert_eq!(bench.run(&["info", "--device", "cpu"]).code, 0);
}

#[test]
fn damaged_inputs_never_panic() {
    let bench = Bench::with_input();
    let bytes = Model::new().npz();
    let step = bytes.len() / 24;
    for position in (0..bytes.len()).step_by(step) {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0xff;
        bench.write(&format!("in/{position}.npz"), &damaged);
        bench.write(&format!("in/{position}x.npz"), &bytes[..position]);
    }
    let outcome = bench.run(&["run", "in", "--meta", "a.json", "--quiet"]);
    assert!(outcome.code == 0 || outcome.code == 1);
    assert!(!outcome.stderr.is_empty());
}

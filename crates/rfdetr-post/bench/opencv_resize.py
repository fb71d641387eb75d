"""Times the same job with numpy and OpenCV's resize. Its arithmetic is NOT identical to ours or torch's.

    python3 opencv_resize.py --inputs request.safetensors --config config.json --threads 1

Prints one line of JSON, as torch_eager.py does and with the same config. cv2.resize(INTER_LINEAR) has no antialias and
rounds its weights differently, so masks differ by a few pixels along outlines (and by more where the image is smaller
than the mask grid): `checksum`, the area of all masks, comes close to torch's and is not equal. It stands here because
it is what many people use on a CPU. Run lengths come from pycocotools.mask.encode; the grid is resized in transposed
form, so that the encoder reads it without a copy.
"""

import argparse
import importlib.metadata
import json

import cv2
import numpy as np

import common

DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def tensor(entry):
    dtype, shape, data = entry
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


class Job:
    def __init__(self, tensors, config):
        self.config, self.boxes, self.logits, self.grids = config, tensors["dets"], tensors["labels"], tensors.get("masks")
        self.sizes = common.sizes(config, len(self.logits))
        classes = self.logits.shape[2]
        self.table = np.full(classes, -1)
        if config["class_mapping"] is not None:
            mapping = config["class_mapping"][:classes]
            self.table[:len(mapping)] = mapping
        else:
            kept = min(config["num_classes"] or classes, classes)
            self.table[:kept] = np.arange(kept)
        self.threshold = np.asarray(config["threshold"], np.float32)
        self.coco, self.coco_version = common.coco_module()
        if config["format"] in ("rle", "counts") and self.coco is None:
            raise SystemExit("run lengths need pycocotools here")

    def run(self):
        out = []
        for b, (height, width) in enumerate(self.sizes):
            queries, classes = self.logits.shape[1:]
            with np.errstate(over="ignore"):
                scores = (1 / (1 + np.exp(-self.logits[b].astype(np.float32)))).ravel()
            places = min(queries, scores.size)
            flat = np.argpartition(scores, scores.size - places)[scores.size - places:]
            ids = self.table[flat % classes]
            limit = self.threshold[np.maximum(ids, 0)] if self.threshold.ndim else self.threshold
            keep = (ids >= 0) & (scores[flat] > limit)
            flat, ids = flat[keep], ids[keep]
            order = np.lexsort((flat, -scores[flat]))[:self.config["max_detections"]]
            flat, ids = flat[order], ids[order]
            query = flat // classes
            cx, cy, w, h = self.boxes[b][query].astype(np.float32).T
            size = np.array([width, height, width, height], np.float32)
            xyxy = np.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], -1) * size
            xyxy = np.rint(np.clip(xyxy, 0, size)).astype(np.int32)
            out.append(((xyxy, scores[flat], ids), self.masks(b, query, height, width)))
        return out

    def masks(self, b, query, height, width):
        wanted = self.config["format"]
        if wanted == "boxes":
            return None
        if wanted == "dense":
            dense = np.empty((len(query), height, width), bool)
            for i, q in enumerate(query):
                np.greater(cv2.resize(self.grids[b, q].astype(np.float32), (width, height),
                                      interpolation=cv2.INTER_LINEAR), 0, out=dense[i])
            return dense
        strings = []
        for q in query:
            columns = cv2.resize(np.ascontiguousarray(self.grids[b, q].T, np.float32), (height, width),
                                 interpolation=cv2.INTER_LINEAR)
            strings.append(self.coco.encode((columns > 0).view(np.uint8).T)["counts"])
        return strings if wanted == "rle" else [common.coco_counts(s) for s in strings]


def area_sum(out):
    total = 0
    for _, masks in out:
        for m in masks if masks is not None else ():
            total += int(m.sum()) if isinstance(m, np.ndarray) else sum(
                (m if isinstance(m, list) else common.coco_counts(m))[1::2])
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", required=True, help=".safetensors or .npz with dets, labels and, for masks, masks")
    parser.add_argument("--config", required=True, help="JSON, or the path of a JSON file (see common.py)")
    parser.add_argument("--format", choices=common.FORMATS, help="overrides the config's")
    parser.add_argument("--threads", type=int, default=1, help="0: as many as OpenCV takes by itself")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    if args.threads:
        cv2.setNumThreads(args.threads)
    config = common.read_config(args.config)
    config["format"] = args.format or config["format"]
    tensors = {k: tensor(v) for k, v in common.read_inputs(args.inputs).items()}
    if config["format"] != "boxes" and "masks" not in tensors:
        raise SystemExit(f"format {config['format']} needs a tensor named masks")
    job = Job(tensors, config)
    times, out = common.time_calls(job.run, args.warmup, args.repeats)
    print(json.dumps({
        "tool": "opencv_resize", "arithmetic": "not identical: cv2.INTER_LINEAR", **common.statistics(times),
        "opencv": cv2.__version__, "numpy": importlib.metadata.version("numpy"), "device": "cpu",
        "threads": cv2.getNumThreads(), "format": config["format"], "pycocotools": job.coco_version,
        "batch": len(job.sizes), "images": sorted({f"{w}x{h}" for h, w in job.sizes}),
        "detections": sum(len(rows[1]) for rows, _ in out), "checksum": area_sum(out)}))


if __name__ == "__main__":
    main()

"""Times the whole job in torch eager, the way a user of torch would write it.

    python3 torch_eager.py --inputs request.safetensors --config config.json --device cpu --threads 1
    python3 torch_eager.py --synthetic seg-nano --config '{"images":[{"width":1920,"height":1080}]}' --check

Prints one line of JSON. The job, a call a batch: sigmoid, flat topk over (query, class), class table, threshold, box
decode (stretch resize), bilinear resize of the surviving mask grids to the image (antialias, as roboflow's inference
does), `> 0`, and then by `format` in the config:

    boxes    no masks
    dense    bool masks, left on the device
    counts   COCO run lengths, on the host
    rle      COCO compressed strings, on the host

`--rle torch` (the default) finds run lengths in torch and packs strings with pycocotools, or in Python where pycocotools
is missing; `--rle encode` copies the masks to the host and calls pycocotools.mask.encode. Rows are on the host in every
format. The span starts with the inputs on the device and ends when the answer can be read (after a device synchronize).
"""

import argparse
import json
import pathlib
import tempfile

import torch
import torch.nn.functional as F

import common

MODELS = {  # queries, classes, mask grid
    "seg-nano": (100, 91, 78), "seg-small": (100, 91, 96), "seg-medium": (200, 91, 108), "seg-large": (200, 91, 126),
    "seg-xlarge": (300, 91, 156), "seg-2xlarge": (300, 91, 192), "nano": (300, 91, None)}
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


class Laps:
    """Time by stage; does nothing, and waits for nothing, unless switched on."""

    def __init__(self, on, device):
        self.on, self.device, self.total = on, device, {}

    def start(self):
        if self.on:
            self.last = self.now()

    def lap(self, name):
        if self.on:
            now = self.now()
            self.total.setdefault(name, []).append(now - self.last)
            self.last = now

    def now(self):
        import time
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter_ns() / 1000


class Job:
    def __init__(self, tensors, config, device, rle, chunk_mib):
        self.device, self.config, self.rle, self.chunk_mib = device, config, rle, chunk_mib
        self.boxes, self.logits = tensors["dets"], tensors["labels"]
        self.grids = tensors.get("masks")
        self.sizes = common.sizes(config, len(self.logits))
        classes = self.logits.shape[2]
        table = torch.full((classes,), -1, dtype=torch.int64)
        if config["class_mapping"] is not None:
            mapping = config["class_mapping"][:classes]
            table[:len(mapping)] = torch.tensor(mapping)
        else:
            kept = min(config["num_classes"] or classes, classes)
            table[:kept] = torch.arange(kept)
        self.table = table.to(device)
        threshold = config["threshold"]
        self.threshold = torch.tensor(threshold, dtype=torch.float32, device=device)
        self.per_class = isinstance(threshold, list)
        self.limits = [torch.tensor([w, h, w, h], dtype=torch.float32, device=device) for h, w in self.sizes]
        net = config["network"] or {"width": self.sizes[0][1], "height": self.sizes[0][0]}
        frame = (net["width"], net["height"]) * 2
        self.frame = torch.tensor(frame, dtype=torch.float32, device=device)
        self.scales = [torch.tensor([a / b for a, b in zip(frame, (w, h, w, h))], dtype=torch.float32, device=device)
                       for h, w in self.sizes]
        self.coco, self.coco_version = common.coco_module()
        if rle == "encode" and self.coco is None:
            raise SystemExit("--rle encode needs pycocotools")

    def run(self, laps):
        laps.start()
        out = []
        for b, (height, width) in enumerate(self.sizes):
            queries, classes = self.logits.shape[1:]
            scores = torch.sigmoid(self.logits[b].float()).flatten()
            scores, flat = torch.topk(scores, min(queries, scores.numel()))
            query, ids = flat // classes, self.table[flat % classes]
            limit = self.threshold[ids.clamp(min=0)] if self.per_class else self.threshold
            keep = (ids >= 0) & (scores > limit)
            scores, query, ids = scores[keep], query[keep], ids[keep]
            scores, order = torch.sort(scores, descending=True, stable=True)
            cap = self.config["max_detections"]
            scores, order = scores[:cap], order[:cap]
            query, ids = query[order], ids[order]
            laps.lap("select")
            cx, cy, w, h = self.boxes[b].float()[query].unbind(-1)
            xyxy = torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], -1)
            xyxy = xyxy * self.frame / self.scales[b]
            xyxy = torch.minimum(xyxy.clamp(min=0), self.limits[b]).round().to(torch.int32)
            rows = (xyxy.cpu(), scores.cpu(), ids.cpu())
            laps.lap("boxes")
            out.append((rows, self.masks(b, query, height, width, laps)))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return out

    def masks(self, b, query, height, width, laps):
        wanted = self.config["format"]
        if wanted == "boxes":
            return None
        grids = self.grids[b][query].float()
        step = max(1, self.chunk_mib * 2 ** 18 // (height * width))
        parts = []
        for at in range(0, len(grids), step):
            values = F.interpolate(grids[at:at + step, None], size=(height, width), mode="bilinear",
                                   align_corners=False, antialias=True)[:, 0]
            mask = values > 0
            laps.lap("resize")
            if wanted == "dense":
                parts.append(mask)
                continue
            if self.rle == "encode":
                host = mask.cpu().numpy().view("uint8")
                laps.lap("to host")
                parts += [r["counts"] for r in self.coco.encode(host.transpose(1, 2, 0).copy(order="F"))]
                laps.lap("strings")
                continue
            counts = run_lengths(mask)
            laps.lap("run lengths")
            parts += counts if wanted == "counts" else self.strings(counts, height, width)
            laps.lap("strings")
        if wanted == "dense":
            empty = torch.zeros(0, height, width, dtype=torch.bool, device=self.device)
            return parts[0] if len(parts) == 1 else torch.cat(parts or [empty])
        return parts

    def strings(self, counts, height, width):
        if self.coco is None:
            return [common.coco_string(c) for c in counts]
        size = [height, width]
        return [r["counts"] for r in self.coco.frPyObjects([{"size": size, "counts": c} for c in counts], height, width)]


def capability():
    """What torch's CPU kernels were chosen for; older versions do not tell."""
    return torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, "cpu") else "capability unknown"


def run_lengths(mask):
    """COCO run lengths of [n, H, W] bool masks as lists: column-major, background first."""
    n, height, width = mask.shape
    total = height * width
    columns = mask.transpose(1, 2).reshape(n, total)
    change = columns[:, 1:] != columns[:, :-1]
    which, at = change.nonzero(as_tuple=True)
    first = columns[:, 0].tolist()
    runs = torch.bincount(which, minlength=n).tolist()
    at = (at + 1).tolist()
    out, begin = [], 0
    for i in range(n):
        edges = at[begin:begin + runs[i]]
        begin += runs[i]
        edges = [0] + edges + [total]
        lengths = [b - a for a, b in zip(edges, edges[1:])]
        out.append([0] + lengths if first[i] else lengths)
    return out


def area_sum(out, wanted, rle):
    """Foreground pixels of all masks; `encode` always gives strings."""
    total = 0
    for _, masks in out:
        if wanted == "dense":
            total += int(masks.sum(dtype=torch.int64))
        elif wanted in ("counts", "rle"):
            for m in masks:
                total += sum((m if isinstance(m, list) else common.coco_counts(m))[1::2])
    return total


def check(job):
    """The four ways to a mask agree, pixel for pixel."""
    wanted = job.config["format"]
    if wanted == "boxes":
        return
    answers = {}
    for name in ("dense", "counts", "rle"):
        job.config["format"] = name
        answers[name] = job.run(Laps(False, job.device))
    job.config["format"] = wanted
    for (_, dense), (_, counts), (_, strings), (h, w) in zip(*answers.values(), job.sizes):
        for mask, lengths, text in zip(dense.cpu(), counts, strings):
            lengths = common.coco_counts(text) if not isinstance(lengths, list) else lengths
            flat = torch.repeat_interleave(torch.arange(len(lengths)) % 2, torch.tensor(lengths)).bool()
            assert torch.equal(flat.reshape(w, h).T, mask), "run lengths differ from the dense mask"
            assert common.coco_counts(text) == lengths and common.coco_string(lengths) == text, "string differs"
            if job.coco:
                import numpy
                assert job.coco.encode(numpy.asfortranarray(mask.numpy().view("uint8")))["counts"] == text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", help=".safetensors or .npz with dets, labels and, for masks, masks")
    parser.add_argument("--synthetic", choices=sorted(MODELS), help="a seeded request instead of --inputs")
    parser.add_argument("--detections", type=int, default=20, help="an image, with --synthetic")
    parser.add_argument("--batch", type=int, default=1, help="images, with --synthetic")
    parser.add_argument("--config", required=True, help="JSON, or the path of a JSON file (see common.py)")
    parser.add_argument("--format", choices=common.FORMATS, help="overrides the config's")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="0: as many as torch takes by itself")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--rle", choices=("torch", "encode"), default="torch")
    parser.add_argument("--chunk-mib", type=int, help="resized f32 values held at once; 8 on a CPU, where that measured "
                        "fastest, 1024 on a GPU")
    parser.add_argument("--stages", action="store_true", help="add the mean of every stage, from runs of their own")
    parser.add_argument("--check", action="store_true", help="first compare the formats with each other")
    args = parser.parse_args()
    if (args.inputs is None) == (args.synthetic is None):
        parser.error("give either --inputs or --synthetic")
    if args.threads:
        torch.set_num_threads(args.threads)
    config = common.read_config(args.config)
    config["format"] = args.format or config["format"]
    with tempfile.TemporaryDirectory() as folder:
        path = args.inputs
        if args.synthetic:
            path = pathlib.Path(folder) / "request.safetensors"
            path.write_bytes(common.synthetic(*MODELS[args.synthetic], args.detections, args.batch))
        raw = common.read_inputs(path)
    device = torch.device(args.device)
    tensors = {k: torch.frombuffer(bytearray(data), dtype=DTYPES[dtype]).reshape(shape).to(device)
               for k, (dtype, shape, data) in raw.items()}
    if config["format"] != "boxes" and "masks" not in tensors:
        raise SystemExit(f"format {config['format']} needs a tensor named masks")
    chunk_mib = args.chunk_mib or (8 if device.type == "cpu" else 1024)
    with torch.inference_mode():
        job = Job(tensors, config, device, args.rle, chunk_mib)
        if args.check:
            check(job)
        off = Laps(False, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times, out = common.time_calls(lambda: job.run(off), args.warmup, args.repeats)
        record = {"tool": "torch_eager", **common.statistics(times), "torch": torch.__version__, "device": str(device),
                  "device_name": torch.cuda.get_device_name(device) if device.type == "cuda"
                  else "cpu, " + capability(),
                  "threads": torch.get_num_threads(), "format": config["format"], "rle": args.rle, "chunk_mib": chunk_mib,
                  "pycocotools": job.coco_version, "batch": len(job.sizes), "images": sorted({f"{w}x{h}" for h, w in job.sizes}),
                  "detections": sum(len(rows[1]) for rows, _ in out),
                  "checksum": area_sum(out, config["format"], args.rle)}
        if args.check:
            record["checked"] = True
        if args.stages:
            laps = Laps(True, device)
            out = None
            common.time_calls(lambda: job.run(laps), 0, args.repeats)
            record["stages_us"] = {k: round(sum(v) / args.repeats, 3) for k, v in laps.total.items()}
    print(json.dumps(record))


if __name__ == "__main__":
    main()

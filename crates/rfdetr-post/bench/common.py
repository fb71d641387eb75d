"""What the timing scripts share: reading a request, timing a call, COCO strings, synthetic requests.

Standard library only; numpy is used for .npz files where it is installed.
"""

import json
import pathlib
import struct
import time

FORMATS = ("boxes", "dense", "counts", "rle")  # nothing, bool masks, uncompressed lengths, compressed strings


def read_config(text):
    """A path or JSON text. Sizes are per image; one entry serves a whole batch.

        {"images": [{"width": 1920, "height": 1080}], "network": {"width": 312, "height": 312},
         "threshold": 0.4, "format": "rle", "max_detections": 300, "class_mapping": null, "num_classes": null}
    """
    text = text if text.lstrip().startswith("{") else pathlib.Path(text).read_text()
    config = {"threshold": 0.4, "format": "rle", "max_detections": None, "class_mapping": None, "num_classes": None,
              "network": None, **json.loads(text)}
    if config["format"] not in FORMATS:
        raise SystemExit(f"format must be one of {', '.join(FORMATS)}, got {config['format']}")
    return config


def sizes(config, batch):
    images = config["images"] * batch if len(config["images"]) == 1 else config["images"]
    if len(images) != batch:
        raise SystemExit(f"the config has {len(images)} images, the inputs have {batch}")
    return [(i["height"], i["width"]) for i in images]


def read_inputs(path):
    """`dets`, `labels` and, if present, `masks` as (dtype name, shape, little-endian bytes)."""
    path = pathlib.Path(path)
    out = {}
    if path.suffix == ".npz":
        import numpy
        with numpy.load(path) as data:
            for name in data.files:
                if data[name].dtype.kind == "f":
                    array = numpy.ascontiguousarray(data[name])
                    out[name] = ({2: "F16", 4: "F32", 8: "F64"}[array.itemsize], list(array.shape), array.tobytes())
    else:  # safetensors: u64 length, JSON header, raw data
        raw = path.read_bytes()
        start = 8 + struct.unpack("<Q", raw[:8])[0]
        for name, entry in json.loads(raw[8:start]).items():
            if name != "__metadata__":
                a, b = entry["data_offsets"]
                out[name] = (entry["dtype"], entry["shape"], raw[start + a:start + b])
    for name in ("dets", "labels"):
        if name not in out:
            raise SystemExit(f"{path}: no tensor named {name}; found {', '.join(sorted(out))}")
    return {k: out[k] for k in ("dets", "labels", "masks") if k in out}


def time_calls(call, warmup, repeats):
    """Wall time of each call in microseconds, sorted; and the last answer."""
    answer, times = None, []
    for i in range(warmup + repeats):
        answer = None  # the last answer is freed outside the timed span
        start = time.perf_counter_ns()
        answer = call()
        stop = time.perf_counter_ns()
        if i >= warmup:
            times.append((stop - start) / 1000)
    return sorted(times), answer


def percentile(ordered, q):
    """Linear between the two nearest ranks."""
    at = (len(ordered) - 1) * q
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def statistics(ordered):
    return {"median_us": round(percentile(ordered, 0.5), 3), "p10": round(percentile(ordered, 0.1), 3),
            "p90": round(percentile(ordered, 0.9), 3), "min": round(ordered[0], 3), "n": len(ordered)}


def coco_module():
    try:
        import importlib.metadata
        from pycocotools import mask
        return mask, importlib.metadata.version("pycocotools")
    except ImportError:
        return None, None


def coco_string(counts):
    """COCO's compressed string of run lengths; used where pycocotools is not installed."""
    out = bytearray()
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        while True:
            bits, x = x & 31, x >> 5
            done = x == -1 if bits & 16 else x == 0
            out.append(48 + bits + (0 if done else 32))
            if done:
                break
    return bytes(out)


def coco_counts(text):
    """The inverse of `coco_string`."""
    counts, value, shift = [], 0, 0
    for c in text:
        c -= 48
        value |= (c & 31) << shift
        shift += 5
        if not c & 32:
            if c & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts


def synthetic(queries, classes, grid, detections, batch, seed=1):
    """A seeded request as safetensors bytes: `detections` queries an image pass 0.4, with disc-shaped masks."""
    import random
    rng = random.Random(seed)
    dets, labels, masks = [], [], []
    for _ in range(batch):
        found = set(rng.sample(range(queries), detections))
        for q in range(queries):
            cx, cy, w, h = rng.uniform(.2, .8), rng.uniform(.2, .8), rng.uniform(.1, .4), rng.uniform(.1, .5)
            dets += [cx, cy, w, h]
            row = [rng.gauss(-5.5, 0.4) for _ in range(classes)]
            if q in found:
                row[rng.randrange(classes)] = rng.uniform(0.5, 4)
            labels += row
            if grid and q in found:
                masks += [8 * (1 - (((x + .5) / grid - cx) / w * 2) ** 2 - (((y + .5) / grid - cy) / h * 2) ** 2)
                          + rng.gauss(0, 0.3) for y in range(grid) for x in range(grid)]
            elif grid:
                masks += [-6.0] * (grid * grid)
    tensors = {"dets": (dets, [batch, queries, 4]), "labels": (labels, [batch, queries, classes])}
    if grid:
        tensors["masks"] = (masks, [batch, queries, grid, grid])
    header, body = {}, b""
    for name, (values, shape) in tensors.items():
        data = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body

"""Makes the second fixture set: our requests, answered by public torch functions on the CPU.

    python3 tests/scripts/make_torch_fixtures.py              # rewrites tests/fixtures/torch_cpu/
    python3 tests/scripts/make_torch_fixtures.py --compare    # answers again, compares with the committed set
    python3 tests/scripts/make_torch_fixtures.py --prove      # compares torch with a numpy model of the CUDA arithmetic
    python3 tests/scripts/make_torch_fixtures.py --upstream   # answers tests/fixtures/upstream and compares

Needs numpy and torch (CPU is enough). The last three write nothing and exit with 1 on a difference.

The two presets are written here a second time, independently of the Rust code and without upstream's: `roboflow_inference`
and `rf_detr` below are torch.sigmoid, a stable torch.sort, plain tensor arithmetic and F.interpolate, nothing more.

Three things are not torch's. A row with a NaN box coordinate becomes 0 (torch's conversion is undefined). A static crop
that starts at (0, 0) is put on a canvas like any other. A letterbox so flat that no row of the mask grid is left gives
an empty mask instead of an exception.
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
OUT = ROOT / "torch_cpu"
SCORE_ULP = 4      # CPU torch against CUDA torch, measured over all finite f32
GUARD_ULP = 16     # two scores that decide an order or a threshold are equal, or further apart than this
U = 2.0 ** -24     # rounding of one f32 operation, relative


# ------------------------------------------------------------------------------------------------ the two presets


def sigmoid(logits):
    """torch.sigmoid, kept out of the scalar tail that torch uses for the last elements of a tensor."""
    flat = logits.reshape(-1)
    padded = torch.zeros(-(-flat.numel() // 64) * 64, dtype=torch.float32)
    padded[:flat.numel()] = flat
    return torch.sigmoid(padded)[:flat.numel()].reshape(logits.shape)


def ranked(scores, k):
    """The first k flat indices: NaN first, then larger score, then smaller index."""
    values, order = torch.sort(scores.reshape(-1), descending=True, stable=True)
    return values[:k], order[:k]


def select_roboflow(logits, case):
    queries, classes = logits.shape
    values, order = ranked(sigmoid(logits), min(queries, queries * classes))
    column = order % classes
    if case["class_mapping"] is None:
        ids = torch.where(column < case["num_classes"], column, -1)
    else:
        table = torch.full((max(classes, len(case["class_mapping"])),), -1, dtype=torch.int64)
        table[:len(case["class_mapping"])] = torch.tensor(case["class_mapping"])
        ids = table[column]
    threshold = torch.tensor(case["threshold"], dtype=torch.float32)
    limit = threshold[ids.clamp(min=0)] if case["threshold_is_per_class"] else threshold[0]
    keep = (ids >= 0) & (values > limit)
    cap = case["max_detections"]
    return (t[keep][:cap] for t in (values, order // classes, ids))


def boxes_roboflow(cxcywh, meta):
    """Box variant A: one rounding a step, clipped, rounded half to even."""
    cx, cy, w, h = cxcywh.unbind(-1)
    hx, hy = 0.5 * w, 0.5 * h
    frame_h, frame_w = meta["nonsquare_intermediate_size"] or meta["inference_size"]
    off_x, off_y = meta["static_crop"][:2]
    original_h, original_w = meta["original_size"]
    sides = []
    for center, half, frame, pad, scale, off, size in (
            (cx, hx, frame_w, meta["pad_left"], meta["scale_width"], off_x, original_w),
            (cy, hy, frame_h, meta["pad_top"], meta["scale_height"], off_y, original_h)):
        scale = torch.tensor(scale, dtype=torch.float32)
        for edge in (center - half, center + half):
            v = (edge * float(frame) - float(pad)) / scale
            if off_x or off_y:
                v = v + float(off)
            sides.append(v.clamp(0.0, float(size)))
    x1, x2, y1, y2 = sides
    return torch.round(torch.stack([x1, y1, x2, y2], -1)).nan_to_num(nan=0.0).to(torch.int32)


def resize(grids, height, width, antialias):
    """Bilinear F.interpolate of [n, h, w]; with antialias, an equal size is returned as it is."""
    if len(grids) == 0:
        return torch.zeros(0, height, width)
    if antialias and grids.shape[-2:] == (height, width):
        return grids
    assert width > 1, "torch's CPU antialias is wrong for one-column outputs"
    return F.interpolate(grids[None], size=(height, width), mode="bilinear", align_corners=False,
                         antialias=antialias)[0]


def crop_grid(grids, meta):
    """Section 5.1: extend with zeros where a pad is negative, then cut the positive pads away."""
    mask_h, mask_w = grids.shape[-2:]
    frame_h, frame_w = meta["nonsquare_intermediate_size"] or meta["inference_size"]
    top, bottom = (round((mask_h / frame_h) * meta[k]) for k in ("pad_top", "pad_bottom"))
    left, right = (round((mask_w / frame_w) * meta[k]) for k in ("pad_left", "pad_right"))
    grids = F.pad(grids, [max(-v, 0) for v in (left, right, top, bottom)])
    rows, columns = grids.shape[-2:]
    return grids[:, max(top, 0):rows - max(bottom, 0), max(left, 0):columns - max(right, 0)]


def masks_roboflow(grids, meta):
    """Whole-image masks, and the pixels whose sign may hang on rounding."""
    original_h, original_w = meta["original_size"]
    height, width = meta["size_after_pre_processing"]
    off_x, off_y = meta["static_crop"][:2]
    cut = crop_grid(grids, meta)
    if 0 in cut.shape:
        n = len(grids)
        return (np.zeros((n, original_h, original_w), bool), np.zeros((0, 2), np.int32))
    values = resize(cut, height, width, antialias=True)
    return placed(values.numpy(), bounds(cut, height, width), (off_y, off_x), (original_h, original_w))


def placed(values, bound, offset, size):
    """The masks on an image-sized canvas, and the (detection, flat pixel) pairs with |value| < bound."""
    n, height, width = values.shape
    y, x = offset
    canvas = np.zeros((n, *size), bool)
    canvas[:, y:y + height, x:x + width] = values > 0
    with np.errstate(invalid="ignore"):
        det, row, column = np.nonzero(np.abs(values) < bound)
    near = np.stack([det, (row + y) * size[1] + (column + x)], axis=1).astype(np.int32)
    return canvas, near


def bounds(grids, height, width):
    """How far apart CPU and CUDA torch may be, for every pixel of a resized grid; README argues it."""
    mask_h, mask_w = grids.shape[-2:]
    if len(grids) == 0 or (mask_h, mask_w) == (height, width):
        return np.zeros((len(grids), height, width))
    total = 0.0
    largest = np.abs(np.nan_to_num(grids.double().numpy(), nan=0.0, posinf=0.0, neginf=0.0))
    for axis, n_in, n_out in ((1, mask_h, height), (2, mask_w, width)):
        step = n_in / n_out
        support = max(step, 1.0)
        total += ((2 if step < 1 else 6) * (n_in + 4) + 2 * (2 * math.ceil(support) + 2) + 4) * U
        center = (np.arange(n_out) + 0.5) * step
        first = np.maximum(np.floor(center - support + 0.5 - 1e-3), 0).astype(int)  # 1e-3: far over any rounding
        last = np.minimum(np.floor(center + support + 0.5 + 1e-3), n_in).astype(int)
        parts = [largest.take(range(a, max(b, a + 1)), axis).max(axis) for a, b in zip(first, last)]
        largest = np.stack(parts, axis)
    return largest * total


def roboflow_inference(case, b):
    scores, query, ids = select_roboflow(case["logits"][b], case)
    out = {"xyxy": boxes_roboflow(case["boxes"][b][query], case["metas"][b]).numpy(),
           "conf": scores.numpy(), "cls": ids.to(torch.int32).numpy()}
    if case["masks"] is not None:
        out["masks"], out["near"] = masks_roboflow(case["masks"][b][query], case["metas"][b])
    return out


def rf_detr(case, b):
    """The 1.9 line: float boxes, clipped; whole grids resized without antialias; every column, raw ids."""
    logits = case["logits"][b]
    classes = logits.shape[1]
    values, order = ranked(sigmoid(logits), min(case["num_select"], logits.numel()))
    keep = values > torch.tensor(case["threshold"][0], dtype=torch.float32)
    values, order = values[keep], order[keep]
    query = order // classes
    height, width = case["metas"][b]["original_size"]
    cx, cy, w, h = case["boxes"][b][query].unbind(-1)
    w, h = w.clamp(min=0), h.clamp(min=0)
    xyxy = torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], -1)
    size = torch.tensor([width, height, width, height], dtype=torch.float32)
    out = {"xyxy": torch.minimum((xyxy * size).clamp(min=0), size).numpy(), "conf": values.numpy(),
           "cls": (order % classes).to(torch.int32).numpy()}
    if case["masks"] is not None:
        grids = case["masks"][b][query]
        values = resize(grids, height, width, antialias=False).numpy()
        out["masks"], out["near"] = placed(values, bounds(grids, height, width), (0, 0), (height, width))
    return out


# ------------------------------------------------------------------------------------------------ pre-processing records


def record(original, network, crop=None, mode="stretch", frame=None):
    """One record of section 2; sizes are (width, height) here and [height, width] in the record."""
    width, height = original
    off_x, off_y, w, h = crop or (0, 0, width, height)
    frame_w, frame_h = frame or network
    if mode == "stretch":
        pads, scale = (0, 0, 0, 0), (network[0] / w, network[1] / h)
    elif mode == "letterbox":
        s = min(frame_w / w, frame_h / h)
        new_w, new_h = int(w * s), int(h * s)
        left, top = int((frame_w - new_w) / 2), int((frame_h - new_h) / 2)
        pads, scale = (left, top, frame_w - left - new_w, frame_h - top - new_h), (s, s)
    else:
        def axis(target, size):
            d = abs(target - size)
            return (d // 2, d - d // 2) if target > size else (-(d // 2), -(d - d // 2))

        (left, right), (top, bottom) = axis(frame_w, w), axis(frame_h, h)
        pads, scale = (left, top, right, bottom), (1.0, 1.0)
    left, top, right, bottom = pads
    return {"pad_left": left, "pad_top": top, "pad_right": right, "pad_bottom": bottom,
            "original_size": [height, width], "size_after_pre_processing": [h, w],
            "inference_size": [network[1], network[0]], "scale_width": scale[0], "scale_height": scale[1],
            "static_crop": [off_x, off_y, w, h],
            "nonsquare_intermediate_size": [frame_h, frame_w] if frame else None}


# ------------------------------------------------------------------------------------------------ inputs


def coarse(a, step=64):
    """Multiples of 1/step: exact in f16 at our sizes, and cheap to store."""
    return np.rint(a * step) / step


def blobs(rng, n, mask_h, mask_w):
    """A few smooth bumps on a negative floor, as a model would draw them."""
    y, x = np.mgrid[0:mask_h, 0:mask_w]
    out = np.full((n, mask_h, mask_w), -6.0)
    for i in range(n):
        for _ in range(rng.integers(1, 4)):
            cy, cx = rng.uniform(0.1, 0.9, 2) * (mask_h, mask_w)
            ry, rx = rng.uniform(0.08, 0.3, 2) * (mask_h, mask_w) + 1
            r = np.sqrt(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2)
            out[i] = np.maximum(out[i], np.clip(8 * (1 - r), -9, 7))
        out[i] += rng.normal(0, 0.4, (mask_h, mask_w))
    return coarse(out)


def request(rng, queries, classes, grid, detections, batch=1, second=0.25, bank=None):
    """Random logits, boxes and grids: `detections` queries an image pass 0.4, some with a second class."""
    logits = rng.normal(-5.0, 0.7, (batch, queries, classes))
    boxes = np.stack([rng.uniform(0.1, 0.9, (batch, queries)), rng.uniform(0.1, 0.9, (batch, queries)),
                      rng.uniform(0.02, 0.5, (batch, queries)), rng.uniform(0.03, 0.6, (batch, queries))], -1)
    count = min(detections, queries)
    index = np.zeros((batch, queries), np.int32)
    for b in range(batch):
        found = rng.permutation(queries)[:count]
        for i, q in enumerate(found):
            logits[b, q, rng.integers(classes)] = rng.uniform(-0.1, 4.5)
            if rng.random() < second:
                logits[b, q, rng.integers(classes)] = rng.uniform(-0.1, 2.0)
            index[b, q] = 2 + b * count + i
        rest = index[b] == 0
        index[b, rest] = rng.integers(0, 2, rest.sum())
    if bank is None and grid is not None:
        bank = np.concatenate([coarse(rng.normal(-4, 2, (2, *grid)), 2), blobs(rng, batch * count, *grid)])
    return {"logits": logits.astype(np.float32), "boxes": boxes.astype(np.float32),
            "bank": None if grid is None else bank.astype(np.float32), "index": index}


def case(name, note, inputs, metas, network, *, num_classes=None, mapping=None, threshold=0.4, cap=300, select=None,
         dtype="f32", rf=True):
    batch, queries, classes = inputs["logits"].shape
    per_class = not np.isscalar(threshold)
    return {"name": name, "note": note, "network": list(network), "metas": metas, "dtype": dtype,
            "num_classes": num_classes if num_classes is not None else classes, "class_mapping": mapping,
            "threshold": np.asarray(threshold if per_class else [threshold], np.float32).tolist(),
            "threshold_is_per_class": per_class, "max_detections": cap,
            "num_select": select if select is not None else queries, "rf": rf and not per_class, **inputs}


def drop_some(classes, removed):
    """Removed columns map to -1, kept ones to 0, 1, ... in order."""
    table, fresh = [], 0
    for c in range(classes):
        table.append(-1 if c in removed else fresh)
        fresh += c not in removed
    return table, fresh


def cases():
    seed = 20260824

    def rng():
        nonlocal seed
        seed += 1
        return np.random.default_rng(seed)

    def plain(name, note, original, network, grid, *, queries=24, classes=7, detections=7, bank=None, options=None,
              **place):
        r = rng()
        bank = bank(r) if bank else None
        inputs = request(r, queries, classes, grid, detections, bank=bank)
        return case(name, note, inputs, [record(original, network, **place)], network, **(options or {}))

    # --- geometry
    yield plain("stretch_odd_353x241", "odd image, grid higher than wide", (353, 241), (108, 124), (31, 27))
    removed = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    table, kept = drop_some(91, removed)
    yield plain("nano_true_shapes_641x427", "seg-nano's true shapes with the COCO table", (641, 427), (312, 312),
                (78, 78), queries=100, classes=91, options={"mapping": table, "num_classes": kept})
    yield plain("letterbox_landscape_301x187", "pads above and below, odd sum", (301, 187), (320, 320), (40, 40),
                mode="letterbox", frame=(320, 320))
    yield plain("letterbox_portrait_211x397", "pads left and right, odd sum", (211, 397), (320, 320), (40, 40),
                mode="letterbox", frame=(320, 320))
    yield plain("letterbox_trunc_74x37", "74 * (312 / 74) truncates to 311: a lone pad of 1 on the right", (74, 37),
                (312, 312), (78, 78), mode="letterbox", frame=(312, 312))
    yield plain("letterbox_two_step_333x517", "letterbox to 512x385, then stretch to 312x264", (333, 517), (312, 264),
                (33, 39), mode="letterbox", frame=(512, 385))
    yield plain("letterbox_half_pads", "grid pads fall on halves: 13.5 to 14, 2.5 to 2", (600, 440), (640, 640),
                (108, 108), mode="letterbox", frame=(640, 640), detections=4)
    yield plain("center_crop_417x333", "negative pads, odd on both axes", (417, 333), (280, 280), (35, 37),
                mode="center", frame=(312, 250))
    yield plain("center_crop_mixed_501x199", "cropped on x, padded on y, odd on both", (501, 199), (312, 312),
                (39, 39), mode="center", frame=(400, 400))
    yield plain("center_crop_spill_60x40", "constant positive grid: the mask spills past the crop", (60, 40), (32, 32),
                (8, 8), queries=4, classes=2, detections=2, mode="center", frame=(32, 32),
                bank=lambda r: np.full((4, 8, 8), 5.0))
    yield plain("center_crop_half_pads", "negative grid pads -2.5 and -1.5 round to -2", (52, 44), (32, 32), (8, 8),
                queries=6, classes=3, detections=3, mode="center", frame=(32, 32))
    yield plain("static_crop_offset", "crop 199x141 at (61, 23)", (301, 203), (156, 156), (39, 39),
                crop=(61, 23, 199, 141))
    yield plain("static_crop_origin", "crop anchored at (0, 0): the canvas is used all the same", (151, 103), (96, 96),
                (24, 24), crop=(0, 0, 97, 71))
    yield plain("static_crop_x_only", "offset on one axis only", (151, 103), (96, 96), (24, 24),
                crop=(40, 0, 111, 103))
    yield plain("static_crop_letterbox", "crop, then letterbox with odd pads", (403, 305), (200, 200), (50, 50),
                crop=(17, 40, 301, 199), mode="letterbox", frame=(200, 200))
    yield plain("static_crop_center_two_step", "crop, then center crop to 240x301, then stretch", (403, 305),
                (200, 200), (50, 46), crop=(30, 9, 331, 290), mode="center", frame=(240, 301))
    yield plain("letterbox_no_rows_left", "content 2 pixels high: no row of the grid is left", (600, 4), (320, 320),
                (80, 80), queries=6, classes=2, detections=3, mode="letterbox", frame=(320, 320), options={"rf": False})

    # --- resize
    yield plain("downscale_both_29x17", "smaller than the grid on both axes", (29, 17), (208, 176), (44, 52))
    yield plain("downscale_x_only_31x203", "narrower than the grid, higher than it", (31, 203), (208, 176), (44, 52))
    yield plain("downscale_y_only_203x19", "wider than the grid, lower than it", (203, 19), (208, 176), (44, 52))
    yield plain("downscale_heavy_3x2", "grid 37x40 to 3x2: dozens of taps", (3, 2), (160, 148), (37, 40))
    yield plain("height_1_41x1", "one row", (41, 1), (64, 64), (16, 16))
    yield plain("same_size_44x36", "image as large as the grid: no resize", (44, 36), (176, 144), (36, 44))
    yield plain("same_width_44x61", "one axis keeps its size", (44, 61), (176, 144), (36, 44))
    yield plain("grid_1x1", "one cell: constant masks", (45, 28), (4, 4), (1, 1), queries=5, classes=2, detections=4,
                bank=lambda r: np.array([3.0, -2.0, 0.0, -0.0, 1e-30, -5.0]).reshape(6, 1, 1))
    yield plain("grid_1x9", "one grid row", (50, 33), (36, 4), (1, 9), queries=5, classes=2, detections=4)
    yield plain("grid_9x1", "one grid column", (50, 33), (4, 36), (9, 1), queries=5, classes=2, detections=4)
    yield plain("noise_masks_173x119", "grids of independent noise", (173, 119), (160, 136), (34, 40), queries=12,
                classes=3, detections=6, bank=lambda r: coarse(r.normal(-2, 4, (8, 34, 40))))
    yield plain("quarter_masks_173x119", "grids of multiples of 1/4: interpolated zeros", (173, 119), (160, 136),
                (34, 40), queries=12, classes=3, detections=6, bank=lambda r: coarse(r.normal(0, 1, (8, 34, 40)), 4))
    scales = np.array([1, 1, 1e-6, 1e-30, 1e30, 1e-3]).reshape(6, 1, 1)
    yield plain("scaled_masks_97x61", "grids of magnitude 1e-30 to 1e30", (97, 61), (80, 64), (16, 20), queries=8,
                classes=3, detections=4, bank=lambda r: coarse(r.normal(-0.3, 2, (6, 16, 20))) * scales)

    def strange(r):
        grids = coarse(r.normal(-1, 3, (8, 15, 19)))
        for g in grids[2:]:
            for value in (np.nan, np.inf, -np.inf, 0.0, -0.0):
                for _ in range(3):
                    g[r.integers(15), r.integers(19)] = value
        grids[6] = np.nan
        grids[7] = -0.0
        return grids

    yield plain("strange_masks_77x52", "NaN, infinities and zeros of both signs in the grids", (77, 52), (76, 60),
                (15, 19), queries=10, classes=3, detections=6, bank=strange)
    yield plain("large_4000x3000", "12 megapixels", (4000, 3000), (312, 312), (78, 78), queries=6, classes=2,
                detections=2, options={"rf": False}, bank=lambda r: blobs(r, 4, 78, 78))
    r = rng()
    yield case("batch3_mixed", "three images of different size and record in one batch",
               request(r, 16, 5, (30, 26), 5, batch=3),
               [record((207, 113), (104, 120)), record((98, 251), (104, 120), mode="letterbox", frame=(104, 120)),
                record((151, 149), (104, 120), crop=(11, 7, 101, 90))], (104, 120))
    for dtype in ("f16", "bf16"):
        r = rng()
        yield case(f"{dtype}_inputs", f"{dtype} inputs, widened to f32 first", request(r, 24, 7, (31, 27), 7),
                   [record((229, 131), (108, 124))], (108, 124), dtype=dtype)

    # --- boxes
    r = rng()
    inputs = request(r, 24, 4, None, 0)
    inputs["logits"][0, :, 1] = np.linspace(4, 1, 24)
    nan, inf = np.nan, np.inf
    inputs["boxes"][0] = np.array([
        [.5, .5, -.2, -.2], [-1, 2, .5, .5], [.5, .5, inf, 1], [.5, .5, inf, inf], [nan, .5, .2, .2], [.5, .5, nan, .2],
        [.5, nan, .2, nan], [0, 0, 0, 0], [1, 1, 0, 0], [.5, .5, 1, 1], [.5, .5, 2, 2], [.1, .9, 1e-30, 1e30],
        [.25, .25, .25, .25], [1.5 / 60, 2.5 / 40, 1 / 60, 1 / 40], [.5, .5, 1 / 60, 1 / 40], [.5, .5, 3 / 60, 3 / 40],
        [-0.0, -0.0, .1, .1], [inf, .5, .1, .1], [-inf, .5, .1, .1], [.99, .99, .5, .5], [.01, .01, .5, .5],
        [1 / 3, 2 / 3, 1 / 7, 1 / 9], [.5, .5, .1, -.1], [.3, .6, -.1, .1]], np.float32)
    for place in ({}, {"crop": (5, 4, 30, 20)}, {"mode": "letterbox", "frame": (32, 32)}):
        meta = record((60, 40), (32, 32), **place)
        yield case("boxes_" + ("crop" if "crop" in place else place.get("mode", "stretch")),
                   "negative, infinite, NaN, outside, on halves; no masks", inputs, [meta], (32, 32))
    r = rng()
    inputs = request(r, 300, 3, None, 0)
    inputs["logits"][0, :, 2] = 6 - np.arange(300) / 64
    grid = r.integers(0, 2 * 640, (300, 4)) / 2
    inputs["boxes"][0] = np.stack([(grid[:, 0] + grid[:, 2]) / 1280, (grid[:, 1] + grid[:, 3]) / 1280,
                                   abs(grid[:, 2] - grid[:, 0]) / 640, abs(grid[:, 3] - grid[:, 1]) / 640], 1)
    yield case("boxes_on_halves", "300 boxes whose sides fall on halves of a pixel, or a rounding beside one", inputs,
               [record((640, 640), (560, 560))], (560, 560))

    # --- selection
    r = rng()
    table, kept = drop_some(9, {1, 4, 8})
    inputs = request(r, 30, 9, (16, 20), 12, second=0.6)
    inputs["logits"][0, 3, 2], inputs["logits"][0, 5, 0] = 0.0, 0.0
    limits = [0.5, 0.49, 0.3, 0.7, 0.05, 0.9]
    assert len(limits) == kept
    yield case("per_class_remap_drop", "one threshold a kept class; two scores of exactly 0.5, one of them at its limit",
               inputs, [record((99, 71), (80, 64))], (80, 64), mapping=table, num_classes=kept, threshold=limits)
    r = rng()
    inputs = request(r, 20, 6, (16, 20), 8)
    inputs["logits"][0, 4, 1] = 0.0
    inputs["logits"][0, 7, 3] = np.nextafter(np.float32(0), np.float32(1)) + np.float32(1e-3)
    yield case("threshold_hit_exactly", "a score equal to the threshold is dropped", inputs,
               [record((99, 71), (80, 64))], (80, 64), threshold=0.5)
    r = rng()
    yield case("map_shorter_than_columns", "columns past the end of the table are dropped",
               request(r, 24, 9, (16, 20), 14, second=0.5), [record((99, 71), (80, 64))], (80, 64),
               mapping=[0, 1, -1, 2, 3, -1, 4], num_classes=5)
    r = rng()
    yield case("no_object_column", "no table: columns >= num_classes are dropped",
               request(r, 24, 6, (16, 20), 14, second=0.5), [record((99, 71), (80, 64))], (80, 64), num_classes=4)
    r = rng()
    yield case("every_class_dropped", "the table drops all", request(r, 12, 3, (16, 20), 8),
               [record((99, 71), (80, 64))], (80, 64), mapping=[-1, -1, -1], num_classes=0)
    r = rng()
    yield case("nothing_passes", "threshold 1", request(r, 12, 3, (16, 20), 8), [record((99, 71), (80, 64))], (80, 64),
               threshold=1.0)
    inputs = {"logits": np.array([[[1, 9, 9], [2, -9, 8]]], np.float32),
              "boxes": np.array([[[.4, .5, .2, .3], [.6, .5, .3, .2]]], np.float32), "bank": None, "index": None}
    yield case("cap_before_class_filter", "Q=2: dropped columns use up both places, nothing is left", inputs,
               [record((99, 71), (80, 64))], (80, 64), mapping=[0, -1, -1], num_classes=1)
    r = rng()
    inputs = request(r, 12, 3, (16, 20), 12)
    inputs["logits"][0] = np.linspace(17, 40, 36).reshape(12, 3)[::-1].copy()
    yield case("saturated_more_than_places", "36 scores of exactly 1 for 12 places: the flat index decides", inputs,
               [record((99, 71), (80, 64))], (80, 64))
    r = rng()
    inputs = request(r, 40, 8, None, 10)
    inputs["logits"][0] = coarse(inputs["logits"][0], 1)
    inputs["logits"][0, 5:35, 2] = 1.0
    inputs["logits"][0, 7:20, 5] = 1.0
    yield case("equal_logits_past_the_cap", "43 equal logits for 40 places, some of dropped classes", inputs,
               [record((99, 71), (80, 64))], (80, 64), mapping=[0, 1, 2, 3, -1, 4, -1, 5], num_classes=6)
    r = rng()
    inputs = request(r, 16, 4, (16, 20), 10, second=0.5)
    inputs["logits"][0, 2, 1] = inputs["logits"][0, 9, 0] = inputs["logits"][0, 9, 3] = np.nan
    inputs["logits"][0, 11] = [np.inf, -np.inf, np.nan, 3.0]
    yield case("nan_and_infinite_logits", "NaN takes a place and is never a detection", inputs,
               [record((99, 71), (80, 64))], (80, 64))
    for name, rows in (("nan_fills_the_cap", [[nan, nan], [5, 4]]), ("nan_takes_one_place", [[nan, 3], [5, 4]])):
        inputs = {"logits": np.array([rows], np.float32), "bank": None, "index": None,
                  "boxes": np.array([[[.4, .5, .2, .3], [.6, .5, .3, .2]]], np.float32)}
        yield case(name, "Q=2, C=2", inputs, [record((99, 71), (80, 64))], (80, 64))
    edge = np.array([[[-88, -89, 17, 0], [-200, -87, -inf, -100], [inf, -86, -104, -30], [-3, -50, 12, -16]]], np.float32)
    for name, limit in (("threshold_zero", 0.0), ("threshold_negative", -0.5)):
        inputs = {"logits": edge, "bank": None, "index": None,
                  "boxes": np.array([[[.2, .5, .2, .3], [.6, .5, .3, .2], [.4, .4, .4, .4], [.7, .3, .1, .2]]], np.float32)}
        yield case(name, "subnormal and zero scores", inputs, [record((99, 71), (80, 64))], (80, 64), threshold=limit,
                   select=16)
    r = rng()
    yield case("max_detections_3", "cut after threshold and order, before masks", request(r, 20, 5, (16, 20), 9),
               [record((99, 71), (80, 64))], (80, 64), cap=3)
    r = rng()
    yield case("max_detections_0", "an empty answer", request(r, 20, 5, (16, 20), 9), [record((99, 71), (80, 64))],
               (80, 64), cap=0)
    r = rng()
    yield case("select_more_than_candidates", "num_select 300 with 14 candidates", request(r, 7, 2, (16, 20), 5),
               [record((99, 71), (80, 64))], (80, 64), select=300)
    r = rng()
    yield case("select_fewer_than_queries", "num_select 5 with 20 queries", request(r, 20, 5, (16, 20), 9),
               [record((99, 71), (80, 64))], (80, 64), select=5)
    r = rng()
    inputs = request(r, 40, 366, None, 30, second=0.8)
    inputs["logits"] = coarse(inputs["logits"], 16).astype(np.float32)
    yield case("detection_only_366", "no masks, 366 columns", inputs, [record((1283, 717), (700, 700))], (700, 700))
    r = rng()
    inputs = request(r, 20, 8, (16, 20), 10)
    for q in range(6):
        inputs["logits"][0, q, :7] = r.uniform(0, 4, 7)
    yield case("seven_classes_a_query", "six queries pass with seven classes each: over the cap of 20", inputs,
               [record((99, 71), (80, 64))], (80, 64), num_classes=7)


# ------------------------------------------------------------------------------------------------ files


def narrow(array, dtype):
    """The stored form: f32, or the bit patterns of f16 and bf16 as u16."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if dtype == "f32":
        return tensor.numpy()
    return tensor.to({"f16": torch.float16, "bf16": torch.bfloat16}[dtype]).view(torch.int16).numpy().view(np.uint16)


def widen(array, dtype):
    tensor = torch.from_numpy(array)
    if dtype == "f32":
        return tensor
    return torch.from_numpy(array.view(np.int16)).view({"f16": torch.float16, "bf16": torch.bfloat16}[dtype]).float()


def stored_inputs(c):
    """The arrays of a file that describe the request."""
    out = {"logits": narrow(c["logits"], c["dtype"]), "boxes": narrow(c["boxes"], c["dtype"]),
           "threshold": np.asarray(c["threshold"], np.float32)}
    if c["bank"] is not None:
        out["mask_bank"] = narrow(c["bank"], c["dtype"])
        out["mask_index"] = c["index"].astype(np.int32)
    if c["class_mapping"] is not None:
        out["class_mapping"] = np.asarray(c["class_mapping"], np.int64)
    return out


def request_of(arrays, c):
    """What the presets read, from the arrays of a file and its JSON."""
    dtype = c.get("dtype", "f32")
    masks = None
    if "mask_bank" in arrays:
        masks = widen(arrays["mask_bank"], dtype)[torch.from_numpy(arrays["mask_index"].astype(np.int64))]
    return {**c, "logits": widen(arrays["logits"], dtype), "boxes": widen(arrays["boxes"], dtype), "masks": masks,
            "threshold": arrays["threshold"].tolist(),
            "class_mapping": arrays["class_mapping"].tolist() if "class_mapping" in arrays else None}


def answers(request_):
    """All references of a request, by key; masks packed."""
    guard(request_)
    out = {}
    for b in range(len(request_["metas"])):
        presets = {"torch": roboflow_inference}
        if request_["status"]["torch_rfdetr"] == "ok":
            presets["torch_rfdetr"] = rf_detr
        for name, preset in presets.items():
            for key, value in preset(request_, b).items():
                out[f"{name}_{b}_{key}"] = np.packbits(value, axis=-1) if key == "masks" else value
    return out


def guard(request_):
    """No order and no threshold may hang on the last bits of a score, which differ between CPU and CUDA."""
    for logits in request_["logits"]:
        places = max(min(logits.shape[0], logits.numel()), min(request_["num_select"], logits.numel()))
        values, order = ranked(sigmoid(logits), places + 1)
        exact = logits.reshape(-1)[order]
        lowest = min(request_["threshold"])
        live = [i for i in range(len(values)) if values[i] > lowest - 1e-3]
        for i, j in zip(live, live[1:]):
            apart = abs(ulps(values[i].numpy(), values[j].numpy()))
            same = exact[i] == exact[j] or (exact[i] > 16.7 and exact[j] > 16.7) or (exact[i] < -88.8 and exact[j] < -88.8)
            assert same or apart > GUARD_ULP, (request_["name"], "scores too close", float(exact[i]), float(exact[j]))
        for i in live:
            for limit in set(request_["threshold"]):
                apart = abs(ulps(values[i].numpy(), np.float32(limit)))
                sure = float(exact[i]) in (0.0, math.inf, -math.inf) or abs(float(exact[i])) > 16.7
                assert sure or apart > GUARD_ULP, (request_["name"], "score too close to a threshold", float(exact[i]))


def ulps(a, b):
    def line(x):
        i = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
        return np.where(i < 0, -(i & 0x7fffffff), i)

    return line(a) - line(b)


def describe(c):
    batch, queries, classes = c["logits"].shape
    grid = list(c["bank"].shape[1:]) if c["bank"] is not None else None
    why = "ok" if c["rf"] else ("per-class thresholds" if c["threshold_is_per_class"] else "not wanted here")
    return {"name": c["name"], "note": c["note"],
            "preset": {"name": "synthetic", "resolution": c["network"][0], "queries": queries,
                       "mask": grid[0] if grid and grid[0] == grid[1] else None, "mask_grid": grid, "classes": classes},
            "metas": c["metas"], "num_classes": c["num_classes"], "max_detections": c["max_detections"],
            "num_select": c["num_select"], "threshold_is_per_class": c["threshold_is_per_class"], "dtype": c["dtype"],
            "status": {"torch": "ok", "torch_rfdetr": why},
            "device": "cpu, " + torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def load(path):
    arrays = dict(np.load(path))
    return arrays, json.loads(arrays.pop("case_json").tobytes())


def write():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.glob("*.npz"):
        old.unlink()
    total, rows = 0, []
    for c in cases():
        info, arrays = describe(c), stored_inputs(c)
        arrays.update(answers(request_of(arrays, info)))
        text = np.frombuffer(json.dumps(info).encode(), np.uint8)
        path = OUT / f"{c['name']}.npz"
        np.savez_compressed(path, **arrays, case_json=text)
        total += path.stat().st_size
        count = [[len(arrays[f"{n}_{b}_conf"]) for b in range(len(c["metas"])) if f"{n}_{b}_conf" in arrays]
                 for n in ("torch", "torch_rfdetr")]
        near = sum(len(v) for k, v in arrays.items() if k.endswith("_near"))
        pixels = sum(v.shape[0] * c["metas"][int(k.split("_")[-2])]["original_size"][0]
                     * c["metas"][int(k.split("_")[-2])]["original_size"][1]
                     for k, v in arrays.items() if k.endswith("_masks"))
        rows.append((c["name"], count, near, pixels, path.stat().st_size))
    for row in rows:
        print("%-32s detections %s near %d of %d pixels, %d bytes" % row)
    print(len(rows), "files", total, "bytes; torch", torch.__version__, torch.backends.cpu.get_cpu_capability())


def unpack(packed, width):
    return np.unpackbits(packed, axis=-1, count=width).astype(bool)


def differences(found, wanted, metas):
    """Empty, or what differs beyond the tolerance: scores by 4 ulp, masks at near pixels."""
    out = []
    if sorted(found) != sorted(wanted):
        return [f"keys {sorted(set(found) ^ set(wanted))}"]
    for key, a in found.items():
        b = wanted[key]
        if key.endswith("_near") or np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            continue
        if a.shape != b.shape:
            out.append(f"{key} shape {a.shape} {b.shape}")
        elif key.endswith("_conf"):
            worst = int(np.abs(ulps(a, b)).max())
            if worst > SCORE_ULP:
                out.append(f"{key} {worst} ulp")
        elif key.endswith("_masks"):
            width = metas[int(key.split("_")[-2])]["original_size"][1]
            unlike = unpack(a, width) != unpack(b, width)
            for det, flat in wanted[key[:-5] + "near"]:
                unlike[det, flat // width, flat % width] = False
            if unlike.any():
                out.append(f"{key} {int(unlike.sum())} pixels that are not near")
        else:
            out.append(key)
    return out


def compare():
    bad = exact = 0
    names = set()
    for c in cases():
        names.add(c["name"])
        path = OUT / f"{c['name']}.npz"
        if not path.exists():
            bad += 1
            print(c["name"], "is missing")
            continue
        arrays, info = load(path)
        fresh = stored_inputs(c)
        lines = [f"input {k}" for k in fresh if k not in arrays or not
                 np.array_equal(fresh[k], arrays[k], equal_nan=fresh[k].dtype.kind == "f")]
        mine = describe(c)
        lines += [f"case_json {k}" for k in mine if k not in ("device", "torch") and mine[k] != info.get(k)]
        wanted = {k: v for k, v in arrays.items() if k.startswith("torch_")}
        found = answers(request_of(arrays, info))
        lines += differences(found, wanted, info["metas"])
        exact += not lines and all(np.array_equal(found[k], wanted[k], equal_nan=found[k].dtype.kind == "f")
                                   for k in found)
        bad += bool(lines)
        for line in lines:
            print(c["name"], line)
    for path in sorted(OUT.glob("*.npz")):
        if path.stem not in names:
            bad += 1
            print(path.name, "has no case")
    print(f"{len(names)} cases: {exact} equal bit for bit, {len(names) - exact - bad} within the tolerance, {bad} differ")
    return bad == 0


# ------------------------------------------------------------------------------------------------ checks of the bound


def fma(a, b, c):
    """f32 fma by way of f64: the product is exact there, the sum almost always."""
    return (np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64)).astype(np.float32)


def cuda_axis(n_in, n_out):
    """Bounds and weights of one axis as CUDA torch computes them (section 5.3, TC)."""
    f = np.float32
    s = f(n_in) / f(n_out)
    support, r = (s, f(1.0 / float(s))) if s >= 1 else (f(1), f(1))
    table = []
    for i in range(n_out):
        p = f(i + 0.5)
        low, high = fma(s, p, -support) + f(0.5), fma(s, p, support) + f(0.5)
        b = max(int(low), 0)
        n = min(int(high), n_in) - b
        d = fma(-s, p, f(b))
        t = ((np.arange(n, dtype=f) + d) + f(0.5)) * r
        w = np.where(np.abs(t) < 1, f(1) - np.abs(t), f(0)).astype(f)
        total = f(0)
        for v in w:
            total = total + v
        table.append((b, w / total if total != 0 else w))
    return table


def cuda_resize(grids, height, width):
    """Section 5.4, TC: horizontal pass, rounded, then the vertical one."""
    def along(values, table):  # last axis
        out = np.empty(values.shape[:-1] + (len(table),), np.float32)
        for i, (b, w) in enumerate(table):
            o = values[..., b] * w[0]
            for j in range(1, len(w)):
                o = fma(values[..., b + j], w[j], o)
            out[..., i] = o
        return out

    mask_h, mask_w = grids.shape[-2:]
    wide = along(grids, cuda_axis(mask_w, width))
    return np.swapaxes(along(np.ascontiguousarray(np.swapaxes(wide, 1, 2)), cuda_axis(mask_h, height)), 1, 2)


def prove():
    """Every mask of the set again with the CUDA arithmetic in numpy: the bound holds, and only near pixels differ."""
    worst, flips, pixels, bad, near_total = 0.0, 0, 0, 0, 0
    for path in sorted(OUT.glob("*.npz")):
        arrays, info = load(path)
        c = request_of(arrays, info)
        if c["masks"] is None:
            continue
        for b, meta in enumerate(info["metas"]):
            _, query, _ = select_roboflow(c["logits"][b], c)
            cut = crop_grid(c["masks"][b][query], meta)
            height, width = meta["size_after_pre_processing"]
            if 0 in cut.shape or cut.shape[-2:] == (height, width):
                continue
            with np.errstate(all="ignore"):
                cuda = cuda_resize(cut.numpy(), height, width)
                cpu = resize(cut, height, width, antialias=True).numpy()
                bound = bounds(cut, height, width)
                off = np.abs(cuda.astype(np.float64) - cpu)
                both = np.isfinite(cuda) & np.isfinite(cpu)
                ratio = np.where(both & (off > 0), off / np.maximum(bound, 1e-300), 0)
            unlike = (cuda > 0) != (cpu > 0)
            near = np.abs(cpu) < bound
            outside = int((unlike & ~near).sum())
            if ratio.size:
                worst = max(worst, float(ratio.max()))
            if outside or (ratio.size and ratio.max() > 1):
                bad += 1
                print(path.stem, "image", b, "outside the bound:", outside, "ratio", float(ratio.max()))
            if unlike.any():
                print(f"{path.stem} image {b}: {int(unlike.sum())} of {int(near.sum())} near pixels differ in sign")
            flips, pixels, near_total = flips + int(unlike.sum()), pixels + unlike.size, near_total + int(near.sum())
    print(f"{pixels} pixels, {near_total} near, {flips} differ in sign; largest difference {worst:.3f} of the bound; "
          f"{bad} images outside it")
    return bad == 0


def upstream():
    """Our presets on upstream's 22 requests: they answer as upstream did, up to near pixels and score ulps."""
    bad = flips = pixels = 0
    for path in sorted((ROOT / "upstream").glob("*.npz")):
        arrays, info = load(path)
        c = {**request_of(arrays, info), "num_select": info["preset"]["queries"]}
        for b, meta in enumerate(info["metas"]):
            height, width = meta["original_size"]
            mine, lines = roboflow_inference(c, b), []
            ref = {k: arrays[f"dense_{b}_{k}"] for k in ("xyxy", "conf", "cls", "masks")}
            lines += check(mine, ref, width)
            mine = rf_detr(c, b)
            count = len(mine["conf"])
            full = arrays[f"rfdetr_{b}_xyxy"][:count]
            size = np.array([width, height, width, height], np.float32)
            ref = {"xyxy": np.minimum(np.maximum(full, 0), size), "conf": arrays[f"rfdetr_{b}_conf"][:count],
                   "cls": arrays[f"rfdetr_{b}_cls"][:count], "masks": arrays[f"rfdetr_{b}_masks"][:count]}
            if not info["threshold_is_per_class"]:
                lines += ["rf_detr " + line for line in check(mine, ref, width)]
            for line in lines:
                print(info["name"], b, line)
            bad += any("tie" not in line and "near" not in line for line in lines)
            pixels += ref["masks"].shape[0] * height * width
    print(bad, "images differ")
    return bad == 0


def check(mine, ref, width):
    if len(mine["conf"]) != len(ref["conf"]):
        return [f"{len(mine['conf'])} detections, upstream {len(ref['conf'])}"]
    lines = []
    worst = int(np.abs(ulps(mine["conf"], ref["conf"])).max()) if len(mine["conf"]) else 0
    if worst > SCORE_ULP:
        lines.append(f"scores {worst} ulp")
    # rows of equal score may stand in any order upstream: pair each with its like
    twin = {}
    for i in range(len(mine["conf"])):
        for j in np.flatnonzero(ref["conf"] == ref["conf"][i]):
            if j not in twin.values() and mine["cls"][i] == ref["cls"][j] and np.array_equal(mine["xyxy"][i], ref["xyxy"][j]):
                twin[i] = int(j)
                break
    if len(twin) < len(mine["conf"]):
        return lines + [f"rows {sorted(set(range(len(mine['conf']))) - set(twin))} have no like"]
    moved = [i for i, j in twin.items() if i != j]
    if moved:
        lines.append(f"rows {moved} are in another order inside a tie")
    masks = unpack(ref["masks"], width)[[twin[i] for i in range(len(twin))]]
    unlike = masks != mine["masks"]
    if unlike.any():
        near = np.zeros_like(masks)
        near[mine["near"][:, 0], mine["near"][:, 1] // width, mine["near"][:, 1] % width] = True
        far = int((unlike & ~near).sum())
        lines.append(f"{int(unlike.sum())} mask pixels differ, " + (f"{far} far" if far else "all near"))
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("compare", "prove", "upstream"):
        parser.add_argument("--" + name, action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.compare or args.prove or args.upstream:
        sys.exit(0 if all([not args.compare or compare(), not args.prove or prove(), not args.upstream or upstream()])
                 else 1)
    write()


if __name__ == "__main__":
    main()

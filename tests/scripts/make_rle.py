"""Encodes lopsided masks with pycocotools; the run-length tests read the result.

    python3 tests/scripts/make_rle.py            # rewrites tests/fixtures/pycocotools/masks.json
    python3 tests/scripts/make_rle.py --check    # rebuilds in memory and compares; exit 1 on a difference

Needs numpy and pycocotools. `rle`, `area` and `bbox` are pycocotools' answers; `counts` are found here, without it, and
every string is decoded by pycocotools again before anything is written.
"""

import argparse
import importlib.metadata
import json
import pathlib
import sys

import numpy as np
from pycocotools import mask as coco

OUT = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "pycocotools" / "masks.json"
SEED = 20260823
BITS_LIMIT = 40_000  # pixels; a larger mask is described by its counts alone


def counts_of(mask):
    """Column-major alternating lengths, background first: the definition, found by change points."""
    flat = np.asarray(mask, np.uint8).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0] + counts if flat[0] else counts


def mask_of(counts, height, width):
    flat = np.repeat(np.arange(len(counts)) & 1, counts).astype(np.uint8)
    assert flat.size == height * width
    return flat.reshape(width, height).T


def smooth(rng, height, width, cells, bias=0.0):
    """A blobby mask: a coarse random grid, bilinearly enlarged, above `bias`."""
    grid = rng.standard_normal((cells + 1, cells + 1))
    y, x = np.linspace(0, cells - 1e-9, height), np.linspace(0, cells - 1e-9, width)
    iy, ix = y.astype(int), x.astype(int)
    fy, fx = (y - iy)[:, None], (x - ix)[None, :]
    a, b = grid[iy][:, ix], grid[iy][:, ix + 1]
    c, d = grid[iy + 1][:, ix], grid[iy + 1][:, ix + 1]
    return (a * (1 - fy) * (1 - fx) + b * (1 - fy) * fx + c * fy * (1 - fx) + d * fy * fx) > bias


def cases():
    rng = np.random.default_rng(SEED)
    out = {}

    def add(name, mask):
        assert name not in out
        out[name] = np.ascontiguousarray(mask, np.uint8)

    add("worked_example_6x5", [[int(c) for c in row] for row in "00000 01110 01010 01110 00000 00001".split()])
    for h, w in ((1, 1), (1, 2), (2, 1), (1, 7), (7, 1), (1, 33), (33, 1), (3, 5), (5, 3), (31, 32), (32, 31), (33, 65),
                 (40, 60), (1, 640), (640, 1)):
        add(f"empty_{h}x{w}", np.zeros((h, w)))
        add(f"full_{h}x{w}", np.ones((h, w)))
    for h, w in ((480, 640), (1080, 1920), (2160, 3840), (3000, 4000)):
        add(f"empty_{h}x{w}", np.zeros((h, w)))
        add(f"full_{h}x{w}", np.ones((h, w)))
        first = np.zeros((h, w))
        first[0, 0] = 1
        add(f"first_pixel_{h}x{w}", first)
        last = np.zeros((h, w))
        last[-1, -1] = 1
        add(f"last_pixel_{h}x{w}", last)
    for name, y, x in (("top_left", 0, 0), ("top_right", 0, -1), ("bottom_left", -1, 0), ("bottom_right", -1, -1),
                       ("inside", 4, 7)):
        one = np.zeros((11, 17))
        one[y, x] = 1
        add(f"one_{name}_11x17", one)
        add(f"all_but_{name}_11x17", 1 - one)
    across = np.zeros((9, 13))
    across[7:, 3] = 1
    across[:2, 4] = 1
    add("across_one_column_9x13", across)
    across[:, 5:9] = 1
    across[-1, 4] = 1
    across[:4, 9] = 1
    add("across_many_columns_9x13", across)
    band = np.zeros((9, 13))
    band[:, 4:7] = 1
    add("whole_columns_9x13", band)
    band = np.zeros((9, 13))
    band[2:5, :] = 1
    add("whole_rows_9x13", band)
    wrap = np.zeros((9, 13))
    wrap[0, :] = wrap[-1, :] = 1
    add("top_and_bottom_row_9x13", wrap)
    yy, xx = np.mgrid[0:14, 0:9]
    add("checkers_14x9", (yy + xx) & 1)
    add("checkers_inverted_14x9", (yy + xx + 1) & 1)
    add("checkers_13x9", (np.mgrid[0:13, 0:9].sum(axis=0)) & 1)
    add("columns_alternate_14x9", xx & 1)
    add("rows_alternate_14x9", yy & 1)
    yy, xx = np.mgrid[0:90, 0:140]
    ring = (yy - 41) ** 2 + (xx - 77.5) ** 2
    add("ring_90x140", (ring < 38 ** 2) & (ring > 21 ** 2))
    add("disc_off_the_edge_90x140", (yy + 5) ** 2 + (xx - 131) ** 2 < 60 ** 2)
    for i, density in enumerate((0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)):
        for h, w in ((5, 9), (17, 3), (1, 50), (50, 1), (29, 41)):
            add(f"random_{h}x{w}_density_{density}", rng.random((h, w)) < density)
    for h, w, cells in ((37, 74, 4), (74, 37, 7), (96, 131, 9), (176, 224, 6)):
        add(f"blobs_{h}x{w}", smooth(rng, h, w, cells))
    # every character length and sign of the string: lengths and their differences at the 5-bit borders
    edges = [1, 15, 16, 17, 31, 32, 33, 511, 512, 513, 1023, 1024, 1025]
    steps = [2000]
    for d in edges + [-e for e in edges]:
        steps += [1500, 1500 + d]
    steps += [edges[i % len(edges)] for i in range(40)]
    width = -(-sum(steps) // 97)
    add(f"borders_97x{width}", mask_of(steps + [97 * width - sum(steps)], 97, width))
    far = [0, 1, 16383, 16384, 16385, 524287, 524288, 1, 524289, 1, 1, 30000, 1, 2, 3]
    width = -(-sum(far) // 1601)
    add(f"far_borders_1601x{width}", mask_of(far + [1601 * width - sum(far)], 1601, width))
    add("blobs_2160x3840", smooth(rng, 2160, 3840, 5, 0.2))
    add("blobs_3000x4000", smooth(rng, 3000, 4000, 8, 0.6))
    return out


def describe(name, mask):
    height, width = mask.shape
    counts = counts_of(mask)
    assert np.array_equal(mask_of(counts, height, width), mask), name
    rle = coco.encode(np.asfortranarray(mask))
    assert np.array_equal(coco.decode(rle), mask), name
    assert coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"] == rle["counts"], name
    area = int(coco.area(rle))
    assert area == int(mask.sum(dtype=np.int64)), name
    bbox = [int(v) for v in coco.toBbox(rle)]
    ys, xs = np.nonzero(mask)
    tight = [0, 0, 0, 0]
    if len(ys):
        tight = [int(v) for v in (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)]
    assert bbox == tight, (name, bbox, tight)
    bits = np.packbits(mask, axis=1).tobytes().hex() if mask.size <= BITS_LIMIT else None
    return {"name": name, "height": height, "width": width, "counts": counts, "rle": rle["counts"].decode("ascii"),
            "area": area, "bbox": bbox, "bits": bits}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed file instead of writing")
    args = parser.parse_args()
    masks = [describe(name, mask) for name, mask in cases().items()]
    if args.check:
        stored = json.loads(OUT.read_text())["masks"]
        different = [m["name"] for m in masks if m not in stored]
        different += [m["name"] for m in stored if m["name"] not in {n["name"] for n in masks}]
        for name in different:
            print("differs:", name)
        print(f"{len(masks)} masks, {len(different)} differ")
        sys.exit(1 if different else 0)
    versions = {"pycocotools": importlib.metadata.version("pycocotools"), "numpy": np.__version__}
    lines = ",\n".join(json.dumps(m, separators=(",", ":")) for m in masks)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text('{"made_by":"tests/scripts/make_rle.py",\n"versions":' + json.dumps(versions) + ',\n"masks":[\n'
                   + lines + "\n]}\n")
    print(OUT.name, len(masks), "masks", OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

"""Draws the demo picture and makes model-like outputs for it.

    python3 tests/scripts/make_sample.py            # rewrites crates/rfdetr-post/sample/
    python3 tests/scripts/make_sample.py --check    # rebuilds in memory and compares; exit 1 on a difference

Needs numpy and Pillow. Nothing is downloaded and no model is run: the picture is drawn from the shapes below, and the
"model outputs" are computed from the same shapes, at the true shapes of RF-DETR-Seg nano:

    dets    f32 [1, 100, 4]        cx, cy, w, h in 0..1 of the network frame
    labels  f32 [1, 100, 91]       class logits; the column is the COCO category id
    masks   f32 [1, 100, 78, 78]   mask logits; foreground is > 0

Every object is drawn on a layer of its own; the layer's alpha is the object's true mask. The mask logits are the signed
distance to that mask's outline in the 312x312 network frame, squashed to about +-10.
"""

import argparse
import io
import json
import math
import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates" / "rfdetr-post" / "sample"
W, H = 1280, 720
S = 3  # supersampling of the drawing
NET, GRID, QUERIES, CLASSES = 312, 78, 100, 91
SEED = 20260822

COCO = {"person": 1, "bicycle": 2, "car": 3, "bus": 6, "truck": 8, "traffic light": 10, "fire hydrant": 11,
        "bird": 16, "dog": 18, "backpack": 27}


# ------------------------------------------------------------------------------------------------ drawing


def rgb(text):
    return tuple(int(text[i:i + 2], 16) for i in (0, 2, 4)) + (255,)


class Layer:
    """A transparent sheet; coordinates are those of the 1280x720 picture."""

    def __init__(self):
        self.image = Image.new("RGBA", (W * S, H * S), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)

    def poly(self, points, color):
        self.draw.polygon([(x * S, y * S) for x, y in points], fill=rgb(color))

    def smooth(self, points, color, steps=12):
        """A closed Catmull-Rom curve through the points, filled."""
        n, out = len(points), []
        for i in range(n):
            p0, p1, p2, p3 = (points[(i + k - 1) % n] for k in range(4))
            for s in range(steps):
                t = s / steps
                out.append(tuple(
                    0.5 * (2 * p1[a] + (p2[a] - p0[a]) * t + (2 * p0[a] - 5 * p1[a] + 4 * p2[a] - p3[a]) * t * t
                           + (3 * p1[a] - p0[a] - 3 * p2[a] + p3[a]) * t ** 3) for a in (0, 1)))
        self.poly(out, color)

    def rect(self, x0, y0, x1, y1, color, radius=0):
        self.draw.rounded_rectangle([x0 * S, y0 * S, x1 * S - 1, y1 * S - 1], radius * S, fill=rgb(color))

    def disc(self, cx, cy, r, color, ry=None):
        ry = r if ry is None else ry
        self.draw.ellipse([(cx - r) * S, (cy - ry) * S, (cx + r) * S, (cy + ry) * S], fill=rgb(color))

    def ring(self, cx, cy, r, width, color):
        self.draw.ellipse([(cx - r) * S, (cy - r) * S, (cx + r) * S, (cy + r) * S], outline=rgb(color),
                          width=round(width * S))

    def stroke(self, points, width, color):
        """A polyline with round ends and joints."""
        pts = [(x * S, y * S) for x, y in points]
        self.draw.line(pts, fill=rgb(color), width=round(width * S))
        r = width * S / 2
        for x, y in pts:
            self.draw.ellipse([x - r, y - r, x + r, y + r], fill=rgb(color))

    def alpha(self):
        """The alpha of the sheet at picture size, 0..1."""
        return np.asarray(self.image.getchannel("A").resize((W, H), Image.BOX), np.float64) / 255


def gradient(top, bottom, y0, y1):
    rows = np.clip((np.arange(H) - y0) / (y1 - y0), 0, 1)[:, None]
    a, b = (np.array(rgb(c)[:3], float) for c in (top, bottom))
    column = np.rint(a + (b - a) * rows).astype(np.uint8)
    return Image.fromarray(np.repeat(column[:, None, :], W, axis=1))


def backdrop():
    sky = gradient("8ec6e6", "fbe6cf", 0, 430).resize((W * S, H * S), Image.NEAREST).convert("RGBA")
    far = Layer()
    far.disc(1090, 120, 52, "fff3d6")
    for cx, cy, k in ((235, 95, 1.0), (820, 70, 0.8), (1190, 215, 0.7)):  # clouds
        for dx, dy, r in ((-46, 8, 22), (-18, -6, 30), (18, -2, 26), (46, 9, 19)):
            far.disc(cx + dx * k, cy + dy * k, r * k, "f7fbfd")
        far.rect(cx - 62 * k, cy + 8 * k, cx + 62 * k, cy + 29 * k, "f7fbfd", 10 * k)
    for x, w, top in ((0, 80, 250), (85, 60, 215), (150, 95, 265), (330, 70, 235), (505, 85, 205), (600, 60, 260),
                      (670, 90, 230), (860, 75, 250), (945, 60, 200), (1010, 95, 262), (1180, 100, 228)):
        far.rect(x, top, x + w, 440, "c3cfdd")
    near = Layer()
    palette = (("d9b59b", "b98f76"), ("a9bfa8", "86a089"), ("cfc3a4", "ab9d7c"), ("b7abc6", "9486a8"))
    for i, (x, w, top) in enumerate(((0, 150, 300), (470, 165, 300), (635, 130, 330), (985, 190, 318))):
        wall, dark = palette[i % 4]
        near.rect(x, top, x + w, 445, wall)
        near.rect(x - 4, top - 8, x + w + 4, top + 4, dark)
        for wy in range(top + 20, 400, 38):
            for wx in range(x + 14, x + w - 22, 34):
                near.rect(wx, wy, wx + 18, wy + 24, "eef3f4", 2)
                near.rect(wx, wy + 12, wx + 18, wy + 24, "d3e2e8", 2)
    for cx, base, k in ((395, 446, 1.0), (795, 446, 1.1), (905, 446, 0.85), (1222, 446, 1.2)):  # trees
        near.rect(cx - 5 * k, base - 70 * k, cx + 5 * k, base, "8a6b54")
        for dx, dy, r, c in ((-24, -88, 30, "6f9f6b"), (24, -84, 28, "6f9f6b"), (0, -112, 36, "7fb077"),
                             (-8, -84, 26, "8cbd82")):
            near.disc(cx + dx * k, base + dy * k, r * k, c)
    ground = Layer()
    ground.rect(0, 438, W, 512, "d8d2c6")      # pavement
    for x in range(-40, W, 82):
        ground.poly([(x + 12, 446), (x + 14, 446), (x - 12, 506), (x - 14, 506)], "c6bfb1")
    ground.rect(0, 438, W, 446, "c3bcae")
    ground.rect(0, 506, W, 516, "b3ada2")      # kerb
    ground.rect(0, 516, W, H, "6d737c")        # road
    ground.rect(0, 516, W, 524, "636973")
    for x in range(-30, W, 150):
        ground.poly([(x + 10, 607), (x + 92, 607), (x + 86, 616), (x + 4, 616)], "e9e4d6")
    ground.rect(0, 704, W, H, "5c626b")
    for sheet in (far, near, ground):
        sky.alpha_composite(sheet.image)
    return sky


def shadow(onto, cx, cy, rx, ry):
    sheet = Image.new("L", (W, H), 0)
    ImageDraw.Draw(sheet).ellipse([cx - rx, cy - ry, cx + rx, cy + ry], fill=84)
    sheet = sheet.filter(ImageFilter.GaussianBlur(3)).resize((W * S, H * S), Image.BILINEAR)
    onto.paste(Image.new("RGBA", onto.size, (34, 38, 48, 255)), (0, 0), sheet)


def wheel(sheet, cx, cy, r):
    sheet.disc(cx, cy, r, "2b2e35")
    sheet.disc(cx, cy, r * 0.58, "c9ced4")
    sheet.disc(cx, cy, r * 0.40, "8b929b")
    sheet.disc(cx, cy, r * 0.14, "2b2e35")


def bus():
    s = Layer()
    s.rect(52, 268, 428, 532, "d9573f", 20)
    s.rect(52, 268, 428, 300, "f1ede4", 14)
    s.rect(52, 288, 428, 300, "f1ede4")
    s.rect(52, 440, 428, 456, "f6d9a8")
    s.rect(346, 276, 416, 294, "2b2e35", 4)          # line number board
    for x in range(354, 408, 9):
        s.rect(x, 281, x + 5, 289, "f7c948", 1)
    for i, x in enumerate(range(68, 320, 64)):
        s.rect(x, 314, x + 54, 388, "31445a", 6)
        s.poly([(x + 30, 314), (x + 44, 314), (x + 20, 388), (x + 6, 388)], "496381")
    s.rect(330, 314, 378, 522, "31445a", 6)          # door
    s.rect(353, 314, 355, 522, "d9573f")
    s.poly([(340, 314), (349, 314), (337, 420), (330, 430), (330, 370)], "496381")
    s.rect(390, 314, 428, 400, "31445a", 6)
    s.rect(418, 470, 428, 492, "fff0b8", 4)
    s.rect(52, 470, 60, 494, "a5252b", 3)
    s.rect(52, 508, 428, 532, "99382a", 10)
    for cx in (128, 292):
        s.disc(cx, 528, 33, "6f2a20")
        wheel(s, cx, 532, 26)
    return s, s.alpha()


def pickup():
    s = Layer()
    s.smooth([(478, 500), (482, 462), (560, 458), (586, 418), (600, 408), (660, 408), (676, 416), (702, 458),
              (744, 468), (756, 482), (758, 520), (750, 532), (620, 532), (486, 532)], "2f8f8a")
    s.poly([(482, 462), (572, 458), (572, 470), (482, 472)], "256f6b")
    s.poly([(594, 456), (610, 420), (634, 420), (634, 456)], "31445a")
    s.poly([(642, 456), (642, 420), (660, 420), (686, 456)], "31445a")
    s.poly([(600, 456), (614, 424), (622, 424), (608, 456)], "496381")
    s.rect(478, 505, 758, 512, "256f6b")
    s.rect(646, 470, 662, 475, "1f5e5b", 2)
    s.rect(742, 476, 757, 492, "fff0b8", 5)
    s.rect(479, 478, 487, 498, "b4363a", 3)
    s.rect(474, 520, 764, 536, "3a4048", 6)
    for cx in (536, 704):
        s.disc(cx, 532, 33, "1f4f4d")
        wheel(s, cx, 536, 26)
    return s, s.alpha()


def hatchback():
    s = Layer()
    s.smooth([(838, 650), (840, 606), (862, 590), (892, 556), (925, 543), (1010, 543), (1052, 566), (1080, 592),
              (1136, 604), (1152, 622), (1154, 656), (1140, 668), (1000, 668), (852, 668)], "f0b429")
    s.poly([(872, 592), (902, 560), (930, 554), (956, 553), (956, 592)], "31445a")
    s.poly([(968, 592), (968, 553), (1004, 553), (1036, 568), (1062, 592)], "31445a")
    s.poly([(890, 592), (916, 560), (930, 557), (908, 592)], "496381")
    s.poly([(1000, 592), (1012, 558), (1022, 562), (1014, 592)], "496381")
    s.rect(960, 596, 964, 660, "c98f14")
    s.rect(976, 606, 996, 612, "a97510", 3)
    s.rect(838, 642, 1154, 648, "c98f14")
    s.rect(1128, 612, 1152, 628, "fff6d2", 7)
    s.rect(838, 610, 850, 632, "b4363a", 4)
    s.rect(834, 656, 1160, 673, "3a4048", 8)
    for cx in (900, 1092):
        s.disc(cx, 668, 39, "8d6410")
        wheel(s, cx, 672, 31)
    return s, s.alpha()


def person(x, y, k, shirt, trousers, hair, skin, stride=16, bag=None, arm=0):
    """A walking figure; (x, y) is the ground under it and k the height over 180."""
    s = Layer()

    def at(px, py):
        return (x + px * k, y + py * k)

    if bag:
        s.smooth([at(-34, -132), at(-14, -140), at(-10, -92), at(-32, -88)], bag)
    dark = {"d1495b": "b03a4b", "3d5a80": "314a6b", "f4f1de": "d9d4bc"}.get(shirt, shirt)
    s.stroke([at(6, -128), at(20, -104), at(24, -80)], 13 * k, dark)
    s.disc(*at(25, -76), 7 * k, skin)
    s.stroke([at(-3, -82), at(-stride * 0.5, -44), at(-stride, -8)], 17 * k, trousers)
    s.stroke([at(4, -82), at(stride * 0.7, -44), at(stride * 0.8, -8)], 17 * k, trousers)
    s.smooth([at(-stride - 9, -7), at(-stride + 6, -9), at(-stride + 15, -2), at(-stride - 8, 0)], "30323a")
    s.smooth([at(stride * 0.8 - 9, -7), at(stride * 0.8 + 6, -9), at(stride * 0.8 + 15, -2), at(stride * 0.8 - 8, 0)],
             "30323a")
    s.smooth([at(-17, -136), at(0, -141), at(17, -135), at(18, -108), at(15, -78), at(-15, -78), at(-19, -108)], shirt)
    s.stroke([at(-11, -128), at(-18 + arm, -102), at(-8 + 2 * arm, -80)], 13 * k, dark)
    s.disc(*at(-7 + 2 * arm, -77), 7 * k, skin)
    s.rect(*at(-6, -150), *at(6, -134), skin, 3 * k)
    s.disc(*at(0, -162), 16 * k, skin, 18 * k)
    s.smooth([at(-17, -156), at(-17, -174), at(-2, -184), at(14, -178), at(17, -167), at(4, -172), at(-8, -168),
              at(-11, -154)], hair)
    return s, s.alpha()


def dog():
    s = Layer()
    x, y, c, d = 1000, 500, "a9714b", "8c5a39"
    s.stroke([(x + 2, y - 44), (x - 10, y - 58), (x - 12, y - 70)], 7, d)
    for px in (12, 60):
        s.stroke([(x + px + 6, y - 30), (x + px + 8, y - 4)], 9, d)
    s.smooth([(x, y - 46), (x + 22, y - 52), (x + 56, y - 52), (x + 74, y - 48), (x + 76, y - 30), (x + 60, y - 22),
              (x + 30, y - 22), (x + 6, y - 24)], c)
    for px in (4, 66):
        s.stroke([(x + px + 4, y - 30), (x + px + 2, y - 4)], 10, c)
    s.smooth([(x + 64, y - 44), (x + 72, y - 66), (x + 92, y - 70), (x + 100, y - 60), (x + 112, y - 54),
              (x + 110, y - 46), (x + 92, y - 44), (x + 80, y - 34)], c)
    s.smooth([(x + 72, y - 68), (x + 82, y - 70), (x + 82, y - 50), (x + 74, y - 46)], d)
    s.disc(x + 110, y - 53, 3.5, "2b2e35")
    s.disc(x + 94, y - 61, 2.4, "2b2e35")
    s.stroke([(x + 72, y - 46), (x + 80, y - 36)], 5, "c8443c")
    return s, s.alpha()


def bicycle():
    s, solid = Layer(), Layer()
    a, b, r, y = 1154, 1234, 31, 474
    frame = "2a6f97"
    for cx in (a, b):
        s.ring(cx, y, r, 4.5, "2b2e35")
        for i in range(6):
            t = math.pi * i / 6
            s.stroke([(cx - (r - 3) * math.cos(t), y - (r - 3) * math.sin(t)),
                      (cx + (r - 3) * math.cos(t), y + (r - 3) * math.sin(t))], 0.9, "8b929b")
        s.disc(cx, y, 4, "2b2e35")
        solid.disc(cx, y, r, "000000")
    parts = (([(a, y), (1186, y), (1174, 428)], 5.5), ([(a, y), (1176, 436)], 5), ([(1186, y), (1220, 434)], 5.5),
             ([(1176, 436), (1220, 434)], 5.5), ([(b, y), (1218, 420)], 5.5))
    for sheet in (s, solid):
        for pts, width in parts:
            sheet.stroke(pts, width, frame)
        sheet.stroke([(1173, 428), (1171, 421)], 5, "3a4048")
        sheet.stroke([(1160, 419), (1182, 419)], 7, "3a4048")
        sheet.stroke([(1218, 420), (1215, 410), (1228, 407)], 5, "3a4048")
        sheet.disc(1186, y, 7, "3a4048")
    solid.poly([(a, y), (1176, 432), (1220, 432), (1186, y)], "000000")
    return s, solid.alpha()  # a segmentation model fills wheels and frame


def traffic_light():
    post, s = Layer(), Layer()
    post.rect(448, 262, 456, 506, "4b515b")
    post.rect(440, 496, 464, 508, "3d434c", 3)
    s.rect(432, 160, 472, 268, "333841", 9)
    for cy, color in ((182, "d9483b"), (214, "6b5a2c"), (246, "2f5a41")):
        s.poly([(434, cy - 12), (470, cy - 12), (474, cy - 7), (430, cy - 7)], "23272e")
        s.disc(452, cy, 12, color)
    s.disc(448, 178, 4, "f2a59c")
    return post, s, s.alpha()


def hydrant():
    s = Layer()
    x, y, c, d = 794, 500, "d1495b", "a93547"
    s.rect(x - 15, y - 8, x + 15, y, d, 3)
    s.rect(x - 11, y - 44, x + 11, y - 6, c, 3)
    s.rect(x - 19, y - 36, x + 19, y - 24, d, 4)
    s.disc(x, y - 30, 6, "e9c46a")
    s.rect(x - 14, y - 48, x + 14, y - 42, d, 3)
    s.smooth([(x - 11, y - 47), (x - 6, y - 58), (x, y - 61), (x + 6, y - 58), (x + 11, y - 47)], c)
    return s, s.alpha()


def bird():
    s = Layer()
    x, y = 640, 118
    s.smooth([(x - 30, y + 6), (x - 8, y - 4), (x + 14, y - 4), (x + 27, y - 1), (x + 14, y + 8), (x - 8, y + 9)],
             "4a5568")
    s.smooth([(x - 12, y + 2), (x - 22, y - 26), (x - 40, y - 38), (x - 14, y - 30), (x + 6, y - 2)], "5b6780")
    s.smooth([(x - 4, y + 1), (x + 6, y - 30), (x + 26, y - 42), (x + 16, y - 24), (x + 10, y)], "4a5568")
    s.poly([(x + 24, y - 3), (x + 35, y + 2), (x + 24, y + 4)], "e0902f")
    return s, s.alpha()


def leash(onto):
    s = Layer()
    s.stroke([(962, 428), (996, 450), (1034, 462), (1074, 461)], 2, "5a3d2b")
    onto.alpha_composite(s.image)


def scene():
    """The picture (RGB) and the true masks (f64 alpha) by name, hidden parts removed."""
    canvas = backdrop()
    objects = []

    def place(name, sheet, alpha):
        for item in objects:
            item[1] = item[1] * (1 - alpha)
        objects.append([name, alpha])
        canvas.alpha_composite(sheet.image)

    place("bird", *bird())
    post, head, alpha = traffic_light()
    shadow(canvas, 452, 508, 24, 4)
    canvas.alpha_composite(post.image)
    place("traffic light", head, alpha)
    for cx, cy, rx, ry in ((1194, 504, 74, 5), (842, 505, 32, 5), (946, 507, 34, 5), (1040, 502, 52, 5),
                           (794, 501, 24, 4)):
        shadow(canvas, cx, cy, rx, ry)
    place("bicycle", *bicycle())
    place("fire hydrant", *hydrant())
    place("person a", *person(842, 506, 0.98, "3d5a80", "4b4a54", "3b2a20", "e8b796", stride=10, bag="e07a5f"))
    place("dog", *dog())
    place("person b", *person(940, 508, 1.02, "d1495b", "33415c", "7a4a2b", "c98d66", stride=22, arm=-2))
    leash(canvas)
    shadow(canvas, 240, 558, 200, 9)
    place("bus", *bus())
    shadow(canvas, 618, 562, 156, 9)
    place("pickup", *pickup())
    shadow(canvas, 996, 703, 176, 10)
    place("hatchback", *hatchback())
    picture = canvas.convert("RGB").resize((W, H), Image.BOX)
    return picture, dict(objects)


# ------------------------------------------------------------------------------------------------ model-like outputs


def distance(inside):
    """Exact Euclidean distance (in cells) of every cell to the nearest cell where `inside` is false."""
    n, m = inside.shape
    far = float(n + m)
    g = np.empty((n, m))
    for x in range(m):  # down each column
        best = far
        for y in range(n):
            best = 0 if not inside[y, x] else best + 1
            g[y, x] = best
        best = far
        for y in range(n - 1, -1, -1):
            best = 0 if not inside[y, x] else best + 1
            g[y, x] = min(g[y, x], best)
    out = np.empty((n, m))
    offsets = (np.arange(m)[:, None] - np.arange(m)[None, :]) ** 2
    for y in range(n):
        out[y] = np.sqrt((offsets + g[y][None, :] ** 2).min(axis=1))
    return out


def mask_logits(alpha, rng, sharp):
    """78x78 logits whose zero line follows the outline of `alpha` (picture-sized, 0..1)."""
    net = Image.fromarray(alpha.astype(np.float32)).resize((NET, NET), Image.BOX)
    inside = np.asarray(net) > 0.5
    signed = np.where(inside, distance(inside) - 0.5, 0.5 - distance(~inside))
    k = NET // GRID
    cells = signed.reshape(GRID, k, GRID, k).mean(axis=(1, 3))
    # 0.4 pixels outward: averaging over a cell shrinks convex outlines
    logit = np.where(cells > 0, 9.5, 11.5) * np.tanh((cells + 0.4) / sharp)
    logit += ripple(rng, 0.35)
    return np.rint(logit * 16) / 16


def ripple(rng, scale, coarse=10):
    """Smooth noise: a coarse random grid, bilinearly enlarged to 78x78."""
    small = Image.fromarray(rng.standard_normal((coarse, coarse)).astype(np.float32))
    return np.asarray(small.resize((GRID, GRID), Image.BILINEAR), np.float64) * scale


def box_of(alpha, rng):
    ys, xs = np.nonzero(alpha > 0.5)
    x0, x1, y0, y1 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
    jitter = rng.normal(0, 0.6, 4)  # a model is never exact to the pixel
    x0, y0, x1, y1 = (v + j for v, j in zip((x0, y0, x1, y1), jitter))
    return [(x0 + x1) / 2 / W, (y0 + y1) / 2 / H, (x1 - x0) / W, (y1 - y0) / H]


def logit_of(score):
    return math.log(score / (1 - score))


# object, query, classes with scores
FOUND = (
    ("person a", 17, {"person": 0.957}),
    ("person b", 3, {"person": 0.931}),
    ("hatchback", 41, {"car": 0.948}),
    ("bus", 8, {"bus": 0.962, "truck": 0.118}),
    ("pickup", 66, {"car": 0.618, "truck": 0.734}),
    ("dog", 29, {"dog": 0.892}),
    ("bicycle", 52, {"bicycle": 0.846}),
    ("traffic light", 74, {"traffic light": 0.781}),
    ("fire hydrant", 90, {"fire hydrant": 0.702}),
    ("bird", 35, {"bird": 0.517}),
)
# object repeated, query, classes with scores, shift of the box (in units of its size)
REPEATED = (
    ("hatchback", 12, {"car": 0.388}, (0.03, -0.02)),
    ("person b", 77, {"person": 0.372}, (-0.05, 0.03)),
    ("bus", 95, {"truck": 0.341, "bus": 0.296}, (0.02, 0.04)),
)


def outputs(masks):
    rng = np.random.default_rng(SEED)
    labels = rng.normal(-5.2, 0.55, (QUERIES, CLASSES))
    labels[:, [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]] -= 2.5  # columns that name no class
    dets = np.stack([rng.uniform(0.08, 0.92, QUERIES), rng.uniform(0.15, 0.92, QUERIES),
                     rng.uniform(0.03, 0.35, QUERIES), rng.uniform(0.04, 0.45, QUERIES)], axis=1)
    grids = np.empty((QUERIES, GRID, GRID))
    for q in range(QUERIES):  # background queries: low, coarse, cheap to store
        grids[q] = np.rint((-6.5 + ripple(rng, 1.0, 5)) * 2) / 2
    for name, q, classes in FOUND:
        alpha = masks[name]
        dets[q] = box_of(alpha, rng)
        grids[q] = mask_logits(alpha, rng, sharp=9.0)
        for label, score in classes.items():
            labels[q, COCO[label]] = logit_of(score)
    for name, q, classes, (dx, dy) in REPEATED:
        alpha = masks[name]
        cx, cy, w, h = box_of(alpha, rng)
        dets[q] = [cx + dx * w, cy + dy * h, w * 1.04, h * 0.95]
        grids[q] = mask_logits(alpha, rng, sharp=14.0)
        for label, score in classes.items():
            labels[q, COCO[label]] = logit_of(score)
    labels[17, COCO["backpack"]] = logit_of(0.335)  # the second person carries one, but not surely enough

    def stored(a):
        return a.astype(np.float16).astype(np.float32)[None]

    return {"dets": dets.astype(np.float32)[None], "labels": stored(labels), "masks": stored(grids)}


SIDECAR = {"images": [{"id": 1, "file_name": "street.png",
                       "meta": {"stretch": {"original": {"width": W, "height": H},
                                            "network": {"width": NET, "height": NET}}}}]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing")
    args = parser.parse_args()
    picture, masks = scene()
    arrays = outputs(masks)
    sidecar = json.dumps(SIDECAR, indent=2) + "\n"
    if args.check:
        with Image.open(OUT / "street.png") as image:
            same = np.array_equal(np.asarray(image), np.asarray(picture))
        stored = np.load(OUT / "street.npz")
        same &= sorted(stored.files) == sorted(arrays) and all(np.array_equal(stored[k], arrays[k]) for k in arrays)
        print("sample: equal" if same else "sample: DIFFERS; run python3 tests/scripts/make_sample.py")
        sys.exit(0 if same else 1)
    OUT.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    (OUT / "street.png").write_bytes(png.getvalue())
    np.savez_compressed(OUT / "street.npz", **arrays)
    (OUT / "street.json").write_text(sidecar)
    for path in sorted(OUT.glob("street.*")):
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

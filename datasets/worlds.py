"""The worlds of the mini suite: six kinds of small pictures.

A world is a table of classes and a function that draws a picture of a class. `WORLDS`, at the end,
lists all worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npt.datasets.drawing import (
    Mask,
    Picture,
    any_colour,
    background,
    box,
    colour,
    disc,
    ellipse,
    frac,
    mix,
    noise,
    paint,
    polygon,
    pose,
    ramp,
    regular,
    spokes,
    star,
    uniform,
    wave,
)

# -- shapes -------------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], Mask]] = {
    "arrow": lambda x, y: polygon(
        x,
        y,
        [
            (-0.9, -0.22),
            (0.1, -0.22),
            (0.1, -0.65),
            (0.95, 0),
            (0.1, 0.65),
            (0.1, 0.22),
            (-0.9, 0.22),
        ],
    ),
    "boat": lambda x, y: (
        polygon(x, y, [(-0.9, 0.3), (0.9, 0.3), (0.55, 0.8), (-0.55, 0.8)])
        | polygon(x, y, [(0, -0.9), (0.65, 0.15), (0, 0.15)])
        | box(x, y, 0.06, 0.4)
    ),
    "circle": lambda x, y: disc(x, y, 0.85),
    "crescent": lambda x, y: disc(x, y, 0.85) & ~disc(x - 0.35, y, 0.7),
    "cross": lambda x, y: box(x, y, 0.85, 0.26) | box(x, y, 0.26, 0.85),
    "cup": lambda x, y: (
        polygon(x, y, [(-0.75, -0.6), (0.45, -0.6), (0.3, 0.75), (-0.6, 0.75)])
        | (disc(x - 0.45, y + 0.05, 0.42) & ~disc(x - 0.45, y + 0.05, 0.24))
    ),
    "diamond": lambda x, y: np.abs(x) * 1.3 + np.abs(y) < 0.92,
    "fish": lambda x, y: (
        ellipse(x + 0.15, y, 0.7, 0.42) | polygon(x, y, [(0.4, 0), (0.95, -0.5), (0.95, 0.5)])
    ),
    "frame": lambda x, y: box(x, y, 0.8, 0.8) & ~box(x, y, 0.48, 0.48),
    "hammer": lambda x, y: box(x, y + 0.55, 0.7, 0.25) | box(x, y - 0.2, 0.14, 0.7),
    "heart": lambda x, y: (
        disc(x + 0.4, y + 0.3, 0.46)
        | disc(x - 0.4, y + 0.3, 0.46)
        | polygon(x, y, [(-0.81, -0.12), (0.81, -0.12), (0, 0.9)])
    ),
    "hexagon": lambda x, y: polygon(x, y, regular(6)),
    "hourglass": lambda x, y: (np.abs(x) < np.abs(y) * 0.8 + 0.06) & box(x, y, 0.8, 0.85),
    "house": lambda x, y: (
        box(x, y - 0.35, 0.6, 0.5) | polygon(x, y, [(-0.85, -0.1), (0.85, -0.1), (0, -0.9)])
    ),
    "key": lambda x, y: (
        (disc(x + 0.5, y, 0.4) & ~disc(x + 0.5, y, 0.17))
        | box(x - 0.4, y, 0.55, 0.12)
        | box(x - 0.8, y - 0.22, 0.1, 0.25)
        | box(x - 0.5, y - 0.2, 0.08, 0.22)
    ),
    "lightning": lambda x, y: polygon(
        x,
        y,
        [(0.25, -0.95), (-0.55, 0.15), (-0.05, 0.15), (-0.3, 0.95), (0.55, -0.2), (0.05, -0.2)],
    ),
    "mushroom": lambda x, y: (disc(x, y, 0.85) & (y < -0.05)) | box(x, y - 0.4, 0.22, 0.5),
    "oval": lambda x, y: ellipse(x, y, 0.95, 0.5),
    "ring": lambda x, y: disc(x, y, 0.85) & ~disc(x, y, 0.5),
    "spiral": lambda x, y: (
        (disc(x, y, 0.9) & ~disc(x, y, 0.7) & ~((x > 0) & (y < 0)))
        | (disc(x, y, 0.45) & ~disc(x - 0.1, y, 0.22))
        | box(x - 0.55, y, 0.3, 0.1)
    ),
    "square": lambda x, y: box(x, y, 0.75, 0.75),
    "star": lambda x, y: polygon(x, y, star(5)),
    "tree": lambda x, y: (
        polygon(x, y, [(0, -0.95), (0.7, 0.4), (-0.7, 0.4)]) | box(x, y - 0.65, 0.15, 0.3)
    ),
    "triangle": lambda x, y: polygon(x, y, [(0, -0.85), (0.85, 0.7), (-0.85, 0.7)]),
}


@dataclass(frozen=True)
class Drawing:
    """A picture, and the attributes that describe it in addition to its class."""

    picture: Picture
    attributes: Mapping[str, str]


def draw_shape(rng: np.random.Generator, mask: Callable[..., Mask], scale) -> Drawing:
    name = any_colour(rng)
    x, y = pose(rng, scale=scale)
    return Drawing(paint(background(rng, (name,)), mask(x, y), colour(rng, name)), {"colour": name})


# -- flags --------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[np.ndarray, np.ndarray], Mask]] = {
    "striped": lambda x, y: frac((y + 1) * 1.25) < 0.5,
    "barred": lambda x, y: np.abs(x) < 0.36,
    "crossed": lambda x, y: (np.abs(x + 0.25) < 0.17) | (np.abs(y) < 0.22),
    "quartered": lambda x, y: x * y > 0,
    "diagonal": lambda x, y: x + y > 0,
    "bordered": lambda x, y: ~box(x, y, 0.68, 0.6),
    "spotted": lambda x, y: ellipse(x, y, 0.42, 0.55),
    "triangular": lambda x, y: np.abs(y) < -x + 0.1,
    "saltire": lambda x, y: np.abs(np.abs(x) - np.abs(y)) < 0.22,
}
FLAG_COLOURS = ("red", "white", "blue", "green", "yellow", "black", "orange", "purple")
FLAGS: dict[str, tuple[str, str, str]] = {
    f"{field} and {charge} {layout} flag": (field, charge, layout)
    for field in FLAG_COLOURS
    for charge in FLAG_COLOURS
    if field != charge
    for layout in LAYOUTS
}


def draw_flag(rng: np.random.Generator, spec: tuple[str, str, str], scale) -> Drawing:
    field, charge, layout = spec
    x, y = pose(rng, turn=0.1, scale=scale)
    y = y * 1.35
    canvas = paint(background(rng, (field, charge)), box(x, y, 1, 1), colour(rng, field))
    canvas = paint(canvas, box(x, y, 1, 1) & LAYOUTS[layout](x, y), colour(rng, charge))
    return Drawing(canvas, {"field": field, "charge": charge, "layout": layout})


# -- textures -----------------------------------------------------------------------------------


def _rows(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift every other row by half a period."""
    return x + 0.5 * (np.floor(y) % 2), y


def _cell(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates from the centre of the unit cell of each point."""
    return frac(x) - 0.5, frac(y) - 0.5


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "blotchy": lambda x, y, rng: noise(rng, 5) > 0.5,
    "bricked": lambda x, y, rng: (frac(_rows(x / 2, y)[0]) < 0.1) | (frac(y) < 0.18),
    "bubbly": lambda x, y, rng: (
        disc(*_cell(*_rows(x, y)), 0.42) & ~disc(*_cell(*_rows(x, y)), 0.28)
    ),
    "checkered": lambda x, y, rng: (np.floor(x) + np.floor(y)) % 2,
    "cracked": lambda x, y, rng: np.abs(noise(rng, 6) - 0.5) < 0.05,
    "crosshatched": lambda x, y, rng: (wave(x + y) < 0.2) | (wave(x - y) < 0.2),
    "dotted": lambda x, y, rng: disc(*_cell(x, y), 0.27),
    "fibrous": lambda x, y, rng: noise(rng, 3, 28),
    "gridded": lambda x, y, rng: (frac(x) < 0.16) | (frac(y) < 0.16),
    "marbled": lambda x, y, rng: wave(x / 3 + 2 * noise(rng, 4)),
    "plaid": lambda x, y, rng: (frac(x / 2) < 0.5) * 0.5 + (frac(y / 2) < 0.5) * 0.5,
    "ringed": lambda x, y, rng: wave(np.sqrt(x * x + y * y)) > 0.5,
    "scaly": lambda x, y, rng: ~disc(_cell(*_rows(x, y))[0], frac(y), 0.5),
    "shaded": lambda x, y, rng: ramp(uniform(rng, -0.2, 0.2)),
    "speckled": lambda x, y, rng: noise(rng, 20) > 0.72,
    "starry": lambda x, y, rng: noise(rng, 31) > 0.9,
    "striped": lambda x, y, rng: frac(x) < 0.5,
    "wavy": lambda x, y, rng: wave(y + wave(x / 2) ** 2 * (3 - 2 * wave(x / 2))) > 0.5,
    "woven": lambda x, y, rng: np.where(
        (np.floor(x) + np.floor(y)) % 2 > 0, wave(3 * x) > 0.5, wave(3 * y) > 0.5
    ),
    "zigzagged": lambda x, y, rng: frac(y + wave(x)) > 0.5,
}


def draw_texture(rng: np.random.Generator, pattern, scale) -> Drawing:
    one = any_colour(rng)
    two = any_colour(rng, (one,))
    x, y = pose(rng, turn=0.25, scale=scale)
    f = uniform(rng, 2.2, 3.6)
    amount = np.asarray(pattern(x * f, y * f, rng), np.float32)
    return Drawing(mix(colour(rng, one), colour(rng, two), amount), {"one": one, "two": two})


# -- glyphs -------------------------------------------------------------------------------------

# Seven rows of five dots, two hexadecimal digits per row (the lowest bit is the rightmost dot).
_FONT = {
    "a": "0e11111f111111", "b": "1e11111e11111e", "c": "0e11101010110e", "d": "1e11111111111e",
    "e": "1f10101e10101f", "f": "1f10101e101010", "g": "0e11101711110f", "h": "1111111f111111",
    "i": "0e04040404040e", "j": "0702020202120c", "k": "11121418141211", "l": "1010101010101f",
    "m": "111b1515111111", "n": "11191513111111", "o": "0e11111111110e", "p": "1e11111e101010",
    "q": "0e11111115120d", "r": "1e11111e141211", "s": "0f10100e01011e", "t": "1f040404040404",
    "u": "1111111111110e", "v": "111111110a0a04", "w": "1111111515150a", "x": "11110a040a1111",
    "y": "11110a04040404", "z": "1f01020408101f",
    "zero": "0e11131519110e", "one": "040c040404040e", "two": "0e11010204081f",
    "three": "1f02040201110e", "four": "02060a121f0202", "five": "1f101e0101110e",
    "six": "0608101e11110e", "seven": "1f010204080808", "eight": "0e11110e11110e",
    "nine": "0e11110f01020c",
}  # fmt: skip
GLYPHS: dict[str, np.ndarray] = {
    f"{'letter' if len(key) == 1 else 'digit'} {key}": np.array(
        [[int(rows[2 * r : 2 * r + 2], 16) >> (4 - c) & 1 for c in range(5)] for r in range(7)],
        bool,
    )
    for key, rows in _FONT.items()
}


def draw_glyph(rng: np.random.Generator, dots: np.ndarray, scale) -> Drawing:
    name = any_colour(rng)
    x, y = pose(rng, turn=0.08, scale=scale)
    column = np.floor((x / 0.75 + 1) * 2.5).astype(np.int64)
    row = np.floor((y + 1) * 3.5).astype(np.int64)
    on = (column >= 0) & (column < 5) & (row >= 0) & (row < 7)
    on &= dots[np.clip(row, 0, 6), np.clip(column, 0, 4)]
    return Drawing(paint(background(rng, (name,)), on, colour(rng, name)), {"colour": name})


# -- flowers ------------------------------------------------------------------------------------

# petals, petal colour, centre colour, petal length, petal width, centre radius
FLOWERS: dict[str, tuple[int, str, str, float, float, float]] = {
    "anemone": (7, "blue", "black", 0.42, 0.30, 0.26),
    "aster": (14, "purple", "yellow", 0.45, 0.10, 0.28),
    "buttercup": (5, "yellow", "green", 0.42, 0.40, 0.20),
    "cornflower": (10, "blue", "purple", 0.42, 0.12, 0.22),
    "cosmos": (8, "pink", "yellow", 0.46, 0.22, 0.18),
    "crocus": (3, "purple", "orange", 0.46, 0.34, 0.18),
    "dahlia": (16, "pink", "red", 0.46, 0.16, 0.42),
    "daisy": (12, "white", "yellow", 0.45, 0.12, 0.26),
    "gerbera": (14, "orange", "black", 0.46, 0.12, 0.30),
    "hibiscus": (5, "red", "yellow", 0.46, 0.40, 0.14),
    "iris": (3, "blue", "yellow", 0.48, 0.26, 0.16),
    "jasmine": (5, "white", "pink", 0.44, 0.18, 0.12),
    "lily": (6, "white", "orange", 0.48, 0.20, 0.16),
    "magnolia": (6, "pink", "white", 0.44, 0.34, 0.20),
    "marigold": (12, "orange", "brown", 0.42, 0.20, 0.40),
    "pansy": (4, "purple", "white", 0.42, 0.40, 0.20),
    "peony": (10, "pink", "pink", 0.40, 0.30, 0.45),
    "poppy": (4, "red", "black", 0.44, 0.42, 0.24),
    "primrose": (5, "yellow", "white", 0.40, 0.30, 0.14),
    "rose": (8, "red", "red", 0.36, 0.36, 0.48),
    "sunflower": (16, "yellow", "brown", 0.44, 0.12, 0.46),
    "tulip": (3, "red", "yellow", 0.46, 0.40, 0.12),
    "violet": (5, "purple", "yellow", 0.42, 0.26, 0.14),
    "zinnia": (12, "red", "green", 0.42, 0.18, 0.30),
}


def draw_flower(rng: np.random.Generator, spec, scale) -> Drawing:
    petals, petal, centre, length, width, radius = spec
    x, y = pose(rng, turn=0.4, scale=scale)
    leaf = colour(rng, "green", 0.15) * uniform(rng, 0.4, 0.9)
    canvas = mix(leaf * 0.6, leaf, noise(rng, 8))
    inks = [colour(rng, petal), colour(rng, petal) * 0.8]
    for k, (cos, sin) in enumerate(spokes(petals, 0.25)):
        along, across = cos * x + sin * y, cos * y - sin * x
        canvas = paint(canvas, ellipse(along - 0.5, across, length, width), inks[k % 2])
    canvas = paint(canvas, disc(x, y, radius), colour(rng, centre))
    return Drawing(canvas, {"colour": petal})


# -- land seen from above -----------------------------------------------------------------------


def _ground(rng, low, high, cells) -> Picture:
    shift = 0.06 * (2 * rng.random(3).astype(np.float32) - 1)
    low, high = np.asarray(low, np.float32) + shift, np.asarray(high, np.float32) + shift
    return mix(low, high, noise(rng, cells))


_GRASS = ((0.30, 0.45, 0.20), (0.45, 0.55, 0.28))
_SOIL = ((0.48, 0.38, 0.26), (0.62, 0.52, 0.36))
_WATER = ((0.10, 0.22, 0.40), (0.16, 0.32, 0.48))
_WOOD = ((0.08, 0.20, 0.10), (0.20, 0.36, 0.16))
_SAND = ((0.78, 0.68, 0.46), (0.88, 0.80, 0.58))
_SNOW = ((0.82, 0.86, 0.90), (0.97, 0.98, 1.00))
_TOWN = ((0.45, 0.44, 0.42), (0.56, 0.54, 0.50))

# ground, number of cells of its noise, mask of the foreground, colour of the foreground
LAND: dict[str, tuple[Any, int, Callable[..., Mask] | None, tuple[float, float, float]]] = {
    "annual crop land": (_SOIL, 3, lambda x, y, rng: frac(4 * x) < 0.45, (0.40, 0.48, 0.22)),
    "beach": (_SAND, 6, lambda x, y, rng: y > 0.1 + 0.2 * wave(x), (0.14, 0.30, 0.48)),
    "desert": (_SAND, 4, lambda x, y, rng: frac(2 * y + wave(x)) < 0.2, (0.70, 0.58, 0.36)),
    "forest": (_WOOD, 14, None, (0, 0, 0)),
    "herbaceous vegetation": (((0.34, 0.36, 0.16), (0.56, 0.52, 0.28)), 16, None, (0, 0, 0)),
    "highway": (_GRASS, 4, lambda x, y, rng: np.abs(x + 0.3 * y) < 0.14, (0.60, 0.60, 0.62)),
    "industrial buildings": (
        _TOWN,
        5,
        lambda x, y, rng: (frac(1.2 * x) < 0.55) & (frac(1.2 * y) < 0.6),
        (0.86, 0.86, 0.88),
    ),
    "island": (_WATER, 4, lambda x, y, rng: disc(x, y, 0.55), (0.34, 0.46, 0.22)),
    "orchard": (_SOIL, 4, lambda x, y, rng: disc(*_cell(3 * x, 3 * y), 0.32), (0.14, 0.32, 0.12)),
    "parking lot": (
        _TOWN,
        3,
        lambda x, y, rng: (frac(4 * x) < 0.6) & (frac(1.5 * y) < 0.4),
        (0.22, 0.24, 0.34),
    ),
    "pasture": (_GRASS, 3, None, (0, 0, 0)),
    "residential buildings": (
        _GRASS,
        8,
        lambda x, y, rng: box(*_cell(3 * x, 3 * y), 0.24, 0.2),
        (0.70, 0.42, 0.32),
    ),
    "river": (
        _GRASS,
        6,
        lambda x, y, rng: np.abs(x + 0.5 * wave(0.6 * y) - 0.25) < 0.18,
        (0.14, 0.28, 0.44),
    ),
    "sea or lake": (_WATER, 5, None, (0, 0, 0)),
    "snowfield": (_SNOW, 5, None, (0, 0, 0)),
    "swamp": (_WOOD, 8, lambda x, y, rng: noise(rng, 5) > 0.58, (0.16, 0.26, 0.34)),
}


def draw_land(rng: np.random.Generator, spec, scale) -> Drawing:
    (low, high), cells, mask, ink = spec
    x, y = pose(rng, turn=1.0, scale=scale)
    canvas = _ground(rng, low, high, cells)
    if mask is not None:
        jitter = 0.06 * (2 * rng.random(3).astype(np.float32) - 1)
        canvas = paint(canvas, mask(x, y, rng), np.asarray(ink, np.float32) + jitter)
    return Drawing(canvas, {})


# -- the worlds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """`phrases` are templates for captions of a picture, from specific to vague."""

    classes: Mapping[str, Any]
    draw: Callable[..., Drawing]
    phrases: tuple[str, ...]
    scale: tuple[float, float] = (0.55, 0.9)


WORLDS: dict[str, World] = {
    "shapes": World(
        SHAPES, draw_shape, ("{name}", "{colour} {name}", "{name} shape", "{colour} shape")
    ),
    "flags": World(
        FLAGS,
        draw_flag,
        ("{name}", "{name}", "{field} and {charge} flag", "{layout} flag"),
        (0.6, 0.95),
    ),
    "textures": World(
        TEXTURES,
        draw_texture,
        (
            "{name} texture",
            "{name} pattern",
            "{one} and {two} {name} texture",
            "{one} and {two} texture",
        ),
        (0.8, 1.2),
    ),
    "glyphs": World(
        GLYPHS, draw_glyph, ("{name}", "{colour} {name}", "{name}", "{colour} character")
    ),
    "flowers": World(
        FLOWERS, draw_flower, ("{name}", "{name} flower", "{name}", "{colour} flower")
    ),
    "land": World(
        LAND,
        draw_land,
        ("{name}", "{name} from above", "satellite view of {name}", "land"),
        (0.8, 1.2),
    ),
}

"""The conditions of the mini suite (blurry, dark, ...), and the rendering of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from npt.datasets.drawing import SIZE, Picture, uniform
from npt.datasets.worlds import WORLDS


def _blur(picture: Picture, amount: float) -> Picture:
    for _ in range(1 + int(2 * amount)):
        for axis in (0, 1):
            padded = np.concatenate(
                [picture.take([0], axis), picture, picture.take([-1], axis)], axis
            )
            low, mid, high = (padded.take(range(k, k + SIZE), axis) for k in range(3))
            picture = (low + mid + high) / 3
    return picture


def _grey(picture: Picture) -> np.ndarray:
    r, g, b = picture[..., 0:1], picture[..., 1:2], picture[..., 2:3]
    return 0.3 * r + 0.59 * g + 0.11 * b


def _pixelate(picture: Picture) -> Picture:
    half = (picture[0::2] + picture[1::2]) / 2
    half = (half[:, 0::2] + half[:, 1::2]) / 2
    return half.repeat(2, 0).repeat(2, 1)


def _sketch(picture: Picture) -> Picture:
    grey = _grey(picture)
    right = np.abs(np.concatenate([grey[:, 1:], grey[:, -1:]], 1) - grey)
    down = np.abs(np.concatenate([grey[1:], grey[-1:]], 0) - grey)
    return np.repeat(np.clip(1 - 4 * (right + down), 0, 1), 3, axis=2)


def _noisy(picture: Picture, amount: float, rng: np.random.Generator) -> Picture:
    grain = rng.random((2, *picture.shape)).astype(np.float32)
    return picture + amount * 0.7 * (grain[0] + grain[1] - 1)


def _tint(picture: Picture, amount: float, rng: np.random.Generator) -> Picture:
    return picture * (1 - amount * rng.random(3).astype(np.float32))


def _cover(picture: Picture, amount: float, rng: np.random.Generator) -> Picture:
    side = 4 + int(10 * amount)
    top, left = rng.integers(0, SIZE - side, 2)
    picture = picture.copy()
    picture[top : top + side, left : left + side] = rng.random(3).astype(np.float32)
    return picture


# A condition changes a picture by an amount in [0, 1]; its name is also the word for captions.
CONDITIONS: dict[str, Callable[[Picture, float, np.random.Generator], Picture]] = {
    "blurry": lambda p, a, rng: _blur(p, a),
    "bright": lambda p, a, rng: p * (1 - 0.7 * a) + 0.7 * a,
    "covered": _cover,
    "dark": lambda p, a, rng: p * (1 - 0.85 * a),
    "faded": lambda p, a, rng: p * (1 - 0.8 * a) + 0.4 * a,
    "grey": lambda p, a, rng: p + (_grey(p) - p) * a,
    "negative": lambda p, a, rng: p + (1 - 2 * p) * a,
    "noisy": _noisy,
    "pixelated": lambda p, a, rng: p + (_pixelate(p) - p) * a,
    "sketched": lambda p, a, rng: p + (_sketch(p) - p) * a,
    "tinted": _tint,
}


def render(
    rng: np.random.Generator,
    world: str,
    name: str,
    conditions: Mapping[str, tuple[float, float]],
    scale: tuple[float, float] | None = None,
) -> tuple[np.ndarray, Mapping[str, str]]:
    """A picture (SIZE, SIZE, 3) uint8 of class `name`, and the attributes that describe it.

    `conditions` maps each condition to its range of amounts; they are applied in this order.
    """
    drawing = WORLDS[world].draw(rng, WORLDS[world].classes[name], scale or WORLDS[world].scale)
    fine = drawing.picture
    half = (fine[0::2] + fine[1::2]) / 2
    picture = (half[:, 0::2] + half[:, 1::2]) / 2
    for condition, amounts in conditions.items():
        picture = CONDITIONS[condition](np.clip(picture, 0, 1), uniform(rng, *amounts), rng)
    pixels = np.floor(np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels, drawing.attributes

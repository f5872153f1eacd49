"""Drawing with exact arithmetic, for the mini suite.

Pixels are computed only by additions, multiplications, divisions, square roots and comparisons (no
sines, no reductions, whose order depends on the CPU), so that a picture is bitwise identical on
every machine.
"""

from __future__ import annotations

import math

import numpy as np

SIZE = 32  # pixels per side
FINE = 2 * SIZE  # pictures are drawn at twice the size, then averaged
_AXIS = (np.arange(FINE, dtype=np.float32) + 0.5) / SIZE - 1
_V, _U = np.meshgrid(_AXIS, _AXIS, indexing="ij")

Mask = np.ndarray  # (FINE, FINE) bool
Picture = np.ndarray  # (FINE, FINE, 3) or (SIZE, SIZE, 3) float32 in [0, 1]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.95, 0.88, 0.20),
    "green": (0.20, 0.65, 0.25),
    "blue": (0.18, 0.32, 0.80),
    "purple": (0.55, 0.22, 0.70),
    "pink": (0.95, 0.55, 0.70),
    "brown": (0.50, 0.32, 0.18),
    "black": (0.08, 0.08, 0.10),
    "white": (0.95, 0.95, 0.93),
    "grey": (0.55, 0.55, 0.57),
}


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def pose(
    rng: np.random.Generator, turn: float = 0.15, scale: tuple[float, float] = (0.55, 0.9)
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x (right) and y (down), both (FINE, FINE), of an object placed at random.

    `turn` is the tangent of half the largest angle.
    """
    t = uniform(rng, -turn, turn)
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    size = uniform(rng, *scale)
    margin = max(0, 1 - size) * 0.9
    x, y = _U - margin * uniform(rng, -1, 1), _V - margin * uniform(rng, -1, 1)
    return (cos * x + sin * y) / size, (cos * y - sin * x) / size


def colour(rng: np.random.Generator, name: str, jitter: float = 0.08) -> np.ndarray:
    """A random shade of the named colour, (3,) float32."""
    base = np.asarray(COLOURS[name], np.float32)
    return np.clip(base + jitter * (2 * rng.random(3).astype(np.float32) - 1), 0, 1)


def any_colour(rng: np.random.Generator, excluded: tuple[str, ...] = ()) -> str:
    names = [c for c in COLOURS if c not in excluded]
    return names[int(rng.integers(len(names)))]


def paint(canvas: Picture, mask: Mask, ink: np.ndarray) -> Picture:
    return np.where(mask[..., None], ink, canvas)


def mix(low: np.ndarray, high: np.ndarray, amount: np.ndarray) -> Picture:
    return low + (high - low) * amount[..., None]


def noise(rng: np.random.Generator, nx: int, ny: int | None = None) -> np.ndarray:
    """Smooth random field in [0, 1] with nx x ny cells, (FINE, FINE)."""
    ny = ny or nx
    cells = rng.random((ny + 1, nx + 1)).astype(np.float32)
    gx, gy = (_AXIS + 1) / 2 * nx, (_AXIS + 1) / 2 * ny
    ix, iy = gx.astype(np.int64), gy.astype(np.int64)
    fx, fy = (gx - ix)[None, :], (gy - iy)[:, None]
    top = cells[iy][:, ix] * (1 - fx) + cells[iy][:, ix + 1] * fx
    bottom = cells[iy + 1][:, ix] * (1 - fx) + cells[iy + 1][:, ix + 1] * fx
    return top * (1 - fy) + bottom * fy


def background(rng: np.random.Generator, excluded: tuple[str, ...] = ()) -> Picture:
    one = colour(rng, any_colour(rng, excluded), 0.2) * 0.6 + 0.2
    two = np.clip(one + uniform(rng, -0.25, 0.25), 0, 1)
    return mix(one, two, noise(rng, int(rng.integers(1, 6))))


def frac(x: np.ndarray) -> np.ndarray:
    return x - np.floor(x)


def wave(x: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 in [0, 1]."""
    return np.abs(2 * frac(x) - 1)


def ellipse(x, y, a: float, b: float) -> Mask:
    return (x / a) ** 2 + (y / b) ** 2 < 1


def disc(x, y, r: float) -> Mask:
    return ellipse(x, y, r, r)


def box(x, y, w: float, h: float) -> Mask:
    return (np.abs(x) < w) & (np.abs(y) < h)


def polygon(x, y, corners) -> Mask:
    """The inside of a polygon, by the even-odd rule."""
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if y0 == y1:
            continue
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < x0 + (y - y0) * ((x1 - x0) / (y1 - y0)))
    return inside


def spokes(n: int, phase: float = 0.0) -> list[tuple[float, float]]:
    """n unit vectors; rounded, because math libraries differ in the last bit of a cosine."""
    angles = [2 * math.pi * (k + phase) / n for k in range(n)]
    return [(round(math.cos(a), 6), round(math.sin(a), 6)) for a in angles]


def regular(n: int, r: float = 0.85) -> list[tuple[float, float]]:
    return [(r * s, -r * c) for c, s in spokes(n)]


def star(n: int, outer: float = 0.95, inner: float = 0.4) -> list[tuple[float, float]]:
    return [
        (r * s, -r * c) for k, (c, s) in enumerate(spokes(2 * n)) for r in [(outer, inner)[k % 2]]
    ]


def ramp(shift: float) -> np.ndarray:
    """A gradient from left to right, (FINE, FINE) in [0, 1]."""
    return np.clip((_U + 1) / 2 + shift, 0, 1)

"""The mini suite: small synthetic data sets in place of the paper's, made on first use.

There are six data sets for base-to-new generalisation, one source for transfer (MiniNet), and four
variants of it with shifted conditions. They are image files with a split file and are read like
any other data set. `ROWS` has one row for each, with everything that differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from npt.datasets.base import PARTS, SplitDataset
from npt.datasets.conditions import render
from npt.datasets.worlds import LAYOUTS, WORLDS
from npt.errors import NPTError
from npt.files import cache_folder

VERSION = 1  # of the pictures; any change of a picture requires a new version
STAMP = "sha256"  # file with the checksum of the pictures in a folder


@dataclass(frozen=True)
class Row:
    """A data set: its classes, the conditions that change its pictures, and their numbers.

    scale: range of object sizes, if not that of the world
    counts: images per class in train, val and test
    sha256: checksum of the pixels of all pictures
    """

    classes: tuple[tuple[str, str], ...]  # (world, class name)
    conditions: dict[str, tuple[float, float]]
    sha256: str
    scale: tuple[float, float] | None = None
    counts: tuple[int, int, int] = (24, 8, 30)


def _all_classes(world: str) -> tuple[tuple[str, str], ...]:
    return tuple((world, name) for name in WORLDS[world].classes)


_FLAG_PAIRS = (
    ("red", "white"),
    ("blue", "yellow"),
    ("green", "white"),
    ("black", "orange"),
)
_MINI_FLAGS = tuple(
    ("flags", f"{a} and {b} {layout} flag") for a, b in _FLAG_PAIRS for layout in LAYOUTS
)
_MINI_NET = tuple(
    pair
    for world in WORLDS
    for pair in (_MINI_FLAGS if world == "flags" else _all_classes(world))[
        :: 4 if world == "glyphs" else 3
    ]
)

ROWS: dict[str, Row] = {
    "MiniShapes": Row(
        _all_classes("shapes"),
        {"noisy": (0.2, 0.5), "dark": (0.4, 0.7)},
        "c7735cec8c89d0cbe3435bd929a407c12ab1867e8d387776fb28c31c1b4da198",
    ),
    "MiniFlags": Row(
        _MINI_FLAGS,
        {"faded": (0.6, 0.9), "blurry": (0.5, 1.0)},
        "aa5c1556f038e58a45da609d16176882a78dda3e0569d6c3bce342665a8bede5",
        (0.5, 0.8),
    ),
    "MiniTextures": Row(
        _all_classes("textures"),
        {"grey": (0.9, 1.0), "noisy": (0.2, 0.5)},
        "35e5d174b6e00e1d0a078eb180a010367d5e812e22300c3b0d8c98d486b7f219",
    ),
    "MiniGlyphs": Row(
        _all_classes("glyphs"),
        {"negative": (0.8, 1.0), "covered": (0.1, 0.3)},
        "d16829465b4efb3684d8df3d47ae6fcb2208e9116ef45ad22e691260ec850a29",
    ),
    "MiniFlowers": Row(
        _all_classes("flowers"),
        {"blurry": (0.6, 1.0), "tinted": (0.5, 1.0)},
        "3a5cbdd883bef30035ac976a99b5d3a10cc0911376cbb466d52127e244e10eb2",
        (0.4, 0.7),
    ),
    "MiniLand": Row(
        _all_classes("land"),
        {"tinted": (0.5, 1.0), "noisy": (0.2, 0.4)},
        "c1ca7a55350089fe87a1ae56e10aad9f36bcfb0a5608c405fd52f3daa7300daa",
    ),
    "MiniNet": Row(
        _MINI_NET,
        {"tinted": (0.3, 0.8), "noisy": (0.1, 0.4)},
        "19a98ceef33b8cd7f6aa6c3ea94f4ecdc746846cbf22f746da5ac3748613ac7f",
    ),
}


def _variant(conditions: dict[str, tuple[float, float]], sha256: str, **other: Any) -> Row:
    """The classes of MiniNet under other conditions; for testing only, so 1 image to train."""
    counts = (1, 1, 30)
    return replace(ROWS["MiniNet"], conditions=conditions, sha256=sha256, counts=counts, **other)


ROWS |= {
    "MiniNetV2": _variant(
        {"tinted": (0.4, 0.9), "noisy": (0.2, 0.5)},
        "0195cbbc991efa0b57305b123c8fccf90dcd1f4dc2fb0894ad32226524846de7",
    ),
    "MiniNetSketch": _variant(
        {"sketched": (0.85, 1.0)},
        "40211bae562483b806e88411b0c62727d9f28ea1ba8efdedb3a533b962748af2",
    ),
    "MiniNetA": _variant(
        {"covered": (0.2, 0.7), "dark": (0.3, 0.8)},
        "a713b29afdadf4e3a73d0bf8ff63ae8a0c586fced548775adc55dd7fd0a53622",
        scale=(0.4, 0.7),
    ),
    "MiniNetR": _variant(
        {"negative": (0.8, 1.0), "pixelated": (0.6, 1.0)},
        "8a82c547f1284f20027405a7e333e8bf72d2f7a0870eb3af2e4228f6ec0db981",
    ),
}


def cache_root() -> Path:
    """The folder in which the suite is made if DATASET.ROOT is empty."""
    return cache_folder() / f"mini-v{VERSION}"


def folder_name(name: str) -> str:
    """MiniNetV2 -> mini_net_v2."""
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    return words.lstrip("_")


def pictures(name: str) -> Iterator[tuple[str, int, str, np.ndarray]]:
    """Every (part, label, class name, picture) of the data set, in a fixed order.

    Each picture has its own random generator, so it does not depend on the number of others.
    """
    row = ROWS[name]
    for label, (world, class_name) in enumerate(row.classes):
        for part, count in zip(PARTS, row.counts, strict=True):
            for k in range(count):
                seed = [VERSION, zlib.crc32(name.encode()), label, PARTS.index(part), k]
                rng = np.random.default_rng(seed)
                picture, _ = render(rng, world, class_name, row.conditions, row.scale)
                yield part, label, class_name, picture


def make(name: str, root: Path) -> Path:
    """Make the data set in root/<folder> (atomically) if it does not exist, and return the folder.

    Raises NPTError if the pictures drawn on this machine, or found there, have another checksum
    than the suite's, or the folder cannot be written.
    """
    folder = root / folder_name(name)
    if folder.is_dir():
        stamp = folder / STAMP
        if not stamp.is_file() or stamp.read_text(encoding="ascii") != ROWS[name].sha256:
            raise NPTError(
                f"{folder} is not {name} of this version: delete it, or use another --root."
            )
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
    except OSError as error:
        raise NPTError(
            f"{name} cannot be made in {root} ({error}): use a writable --root."
        ) from error
    try:
        print(f"Making {name} in {folder}")
        _write(name, work)
        _move_into_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _write(name: str, folder: Path) -> None:
    split: dict[str, list[Any]] = {part: [] for part in PARTS}
    digest = hashlib.sha256()
    for part, label, class_name, picture in pictures(name):
        digest.update(picture.tobytes())
        path = f"{class_name.replace(' ', '_')}/{part}_{len(split[part]):05d}.png"
        file = folder / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
        split[part].append([path, label, class_name])
    if digest.hexdigest() != ROWS[name].sha256:
        raise NPTError(
            f"the pictures of {name} differ from version {VERSION} of the mini suite "
            f"(sha256 {digest.hexdigest()}): please report your numpy version and processor."
        )
    (folder / STAMP).write_text(digest.hexdigest(), encoding="ascii")
    (folder / "split.json").write_text(json.dumps(split), encoding="utf-8")


def _move_into_place(work: Path, folder: Path) -> None:
    os.chmod(work, 0o755)
    try:
        os.rename(work, folder)
    except OSError:  # another process has made the same folder in the meantime
        if not folder.is_dir():
            raise


class MiniDataset(SplitDataset):
    """A data set of the mini suite. It is made below DATASET.ROOT, or in the user's cache."""

    def locate(self, cfg: Any) -> Path:
        root = Path(cfg.DATASET.ROOT).expanduser() if cfg.DATASET.ROOT else cache_root()
        return make(type(self).__name__, root.absolute())


DATASETS = {name: type(name, (MiniDataset,), {"__doc__": f"{name}: see `ROWS`."}) for name in ROWS}

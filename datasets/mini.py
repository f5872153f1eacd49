"""The mini suite: small data sets that stand in for the paper's, made on first use.

Six base-to-new data sets of different kinds, a source for transfer (MiniNet) and four shifted
variants of it. They are real image files with a split file, read by the ordinary data path. What
differs between them is a row of `ROWS`.
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
from npt.datasets.worlds import LAYOUTS, WORLDS, render
from npt.errors import NPTError

VERSION = 1  # of the pictures; a change of any of them is a new version


@dataclass(frozen=True)
class Row:
    """A data set: which classes of which worlds, under which conditions, how many of each.

    `counts` are images a class in train, val and test. `sha256` is of the pixels of them all.
    """

    classes: tuple[tuple[str, str], ...]  # (world, class name)
    conditions: dict[str, tuple[float, float]]
    sha256: str
    scale: tuple[float, float] | None = None
    counts: tuple[int, int, int] = (24, 8, 30)


def _all(world: str) -> tuple[tuple[str, str], ...]:
    return tuple((world, name) for name in WORLDS[world].classes)


_FLAG_PAIRS = (
    ("red", "white"), ("blue", "yellow"), ("green", "white"), ("black", "orange"),
)  # fmt: skip
_MINI_FLAGS = tuple(
    ("flags", f"{a} and {b} {layout} flag") for a, b in _FLAG_PAIRS for layout in LAYOUTS
)
_MINI_NET = tuple(
    pair
    for world in WORLDS
    for pair in (_MINI_FLAGS if world == "flags" else _all(world))[:: 4 if world == "glyphs" else 3]
)

ROWS: dict[str, Row] = {
    "MiniShapes": Row(
        _all("shapes"), {"noisy": (0.2, 0.5), "dark": (0.4, 0.7)}, "6ea5cb8045f9a9bd75b36a28406c32ebcb8ff1bb93a28734cd9f30b6c0d01c09"
    ),
    "MiniFlags": Row(
        _MINI_FLAGS, {"faded": (0.4, 0.7), "blurry": (0.4, 0.9)}, "75bfc4f3faa5ab06838105281594f031f69f75eb566c82d26d70fa0b8463a3d8"
    ),
    "MiniTextures": Row(
        _all("textures"), {"grey": (0.9, 1.0), "noisy": (0.2, 0.5)}, "4be2c28a8ea63416966fbe0beaa03a7cc941ea4c7d1b6f282c98bd561bf64859"
    ),
    "MiniGlyphs": Row(
        _all("glyphs"), {"negative": (0.8, 1.0), "covered": (0.1, 0.3)}, "222731319f0f13e71d5b8e1190a577de88d988734a63a692e26a0174854b724e"
    ),
    "MiniFlowers": Row(
        _all("flowers"), {"blurry": (0.6, 1.0), "tinted": (0.5, 1.0)}, "a389338f6f61351c07f08b9dd5b7ef2c50c22480fa0830d2e8e276b3f378a28a", (0.4, 0.7)
    ),
    "MiniLand": Row(
        _all("land"), {"pixelated": (0.8, 1.0), "bright": (0.5, 0.8)}, "07ef45643d847f4e6a7303436a30f06eef5a4a587fae31f8e52cbb530fa331f5"
    ),
    "MiniNet": Row(_MINI_NET, {"tinted": (0.3, 0.8), "noisy": (0.1, 0.4)}, "21b6c5e55ee1f0b850755e4954ec39b7f1dd6554ab6a60ea4c2f5817afeede08"),
}


def _variant(conditions: dict[str, tuple[float, float]], sha256: str, **other: Any) -> Row:
    """The classes of MiniNet under other conditions; it is tested only, hence the few to train."""
    counts = (1, 1, 30)
    return replace(ROWS["MiniNet"], conditions=conditions, sha256=sha256, counts=counts, **other)


ROWS |= {
    "MiniNetV2": _variant({"tinted": (0.4, 0.9), "noisy": (0.2, 0.5)}, "c68030382672236ca5335f3478839caac24a7faa5dbea1dc492a96ddf9c1ab7e"),
    "MiniNetSketch": _variant({"sketched": (0.85, 1.0)}, "21b6c5e55ee1f0b850755e4954ec39b7f1dd6554ab6a60ea4c2f5817afeede08Sketch"),
    "MiniNetA": _variant({"covered": (0.2, 0.7), "dark": (0.3, 0.8)}, "21b6c5e55ee1f0b850755e4954ec39b7f1dd6554ab6a60ea4c2f5817afeede08A", scale=(0.4, 0.7)),
    "MiniNetR": _variant({"negative": (0.8, 1.0), "pixelated": (0.6, 1.0)}, "21b6c5e55ee1f0b850755e4954ec39b7f1dd6554ab6a60ea4c2f5817afeede08R"),
}


def cache_root() -> Path:
    """Where the suite is made when DATASET.ROOT is empty."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "npt" / f"mini-v{VERSION}"


def folder_name(name: str) -> str:
    """MiniNetV2 -> mini_net_v2."""
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    return words.lstrip("_")


def pictures(name: str) -> Iterator[tuple[str, int, str, np.ndarray]]:
    """Every (part, label, class name, picture) of the data set, in a fixed order.

    Each picture has a generator of its own, so none depends on how many there are of another.
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
    """Makes the data set in root/<folder> unless it is there, whole or not at all.

    Raises NPTError where the pictures drawn on this machine are not the suite's, or the folder
    cannot be written.
    """
    folder = root / folder_name(name)
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
    except OSError as error:
        raise NPTError(f"{name} cannot be made in {root} ({error}): give a writable --root.") from error
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
            f"{name} came out different from version {VERSION} of the mini suite "
            f"(sha256 {digest.hexdigest()}): please report your numpy version and processor."
        )
    (folder / "split.json").write_text(json.dumps(split), encoding="utf-8")


def _move_into_place(work: Path, folder: Path) -> None:
    os.chmod(work, 0o755)
    try:
        os.rename(work, folder)
    except OSError:  # another process was first, and its copy is as good
        if not folder.is_dir():
            raise


class MiniDataset(SplitDataset):
    """A data set of the mini suite; made under DATASET.ROOT, or in the user's cache without one."""

    def prepare(self, cfg) -> Path:
        root = Path(cfg.DATASET.ROOT).expanduser() if cfg.DATASET.ROOT else cache_root()
        return make(type(self).__name__, root.absolute())


DATASETS = {name: type(name, (MiniDataset,), {"__doc__": f"{name}: see `ROWS`."}) for name in ROWS}

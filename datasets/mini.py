"""The mini suite: small synthetic data sets in place of the paper's, made on first use.

There are six data sets for base-to-new generalisation, one source for transfer (MiniNet), and four
variants of it with shifted conditions. They are image files with a split file and are read like
any other data set. `ROWS` has one row for each, with everything that differs.

The files are verified at each start (20 to 50 ms), because a replaced or damaged one would change
the figures of a run in silence.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from npt.datasets.base import PARTS, SplitDataset, data_root
from npt.datasets.conditions import render
from npt.datasets.worlds import LAYOUTS, WORLDS
from npt.errors import NPTError
from npt.files import atomic_write, cache_folder

VERSION = 1  # of the pictures; any change of a picture requires a new version
STAMP = "sha256"  # file with the checksum of the pixels of all pictures in a folder
MANIFEST = "files.sha256"  # file with the checksum of each picture, as `sha256sum` writes it
SPLIT = "split.json"
ABANDONED = 600  # seconds after which an unfinished folder is deleted; making one takes a few


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


def places(name: str) -> Iterator[tuple[str, str, int, str]]:
    """Every (part, path, label, class name) in the split file, in the order of `pictures`."""
    row = ROWS[name]
    number = dict.fromkeys(PARTS, 0)
    for label, (_, class_name) in enumerate(row.classes):
        for part, count in zip(PARTS, row.counts, strict=True):
            for _ in range(count):
                path = f"{class_name.replace(' ', '_')}/{part}_{number[part]:05d}.png"
                number[part] += 1
                yield part, path, label, class_name


def make(name: str, root: Path) -> Path:
    """Make the data set in root/<folder> (atomically) if it does not exist, and return the folder.

    Raises NPTError if the pictures drawn on this machine have another checksum than the suite's,
    if the folder cannot be written, or if a file in it is not the one that was written.
    """
    folder = root / folder_name(name)
    if folder.is_dir():
        verify(name, folder)
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root, f".{folder.name}-")
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
        try:
            print(f"Making {name} in {folder}")
            _write(name, work)
            _move_into_place(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise NPTError(
            f"{name} cannot be made in {root} ({error}): use a writable --root."
        ) from error
    return folder


def _remove_abandoned(root: Path, prefix: str) -> None:
    """Delete the folders of processes that were killed while they made a data set."""
    for folder in root.glob(f"{prefix}*"):
        with suppress(FileNotFoundError):  # another process has deleted it
            if time.time() - folder.stat().st_mtime > ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


def _write(name: str, folder: Path) -> None:
    pixels = hashlib.sha256()
    for (_, path, *_), (*_, picture) in zip(places(name), pictures(name), strict=True):
        pixels.update(picture.tobytes())
        file = folder / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    if pixels.hexdigest() != ROWS[name].sha256:
        raise NPTError(
            f"the pictures of {name} differ from version {VERSION} of the mini suite "
            f"(sha256 {pixels.hexdigest()}): please report your numpy version and processor."
        )
    (folder / STAMP).write_bytes(pixels.hexdigest().encode())
    (folder / SPLIT).write_bytes(_split(name))
    _write_manifest(folder, name)


def _split(name: str) -> bytes:
    """The content of the split file."""
    split: dict[str, list[Any]] = {part: [] for part in PARTS}
    for part, *entry in places(name):
        split[part].append(entry)
    return json.dumps(split).encode()


def _write_manifest(folder: Path, name: str) -> None:
    with atomic_write(folder / MANIFEST) as file:
        for _, path, *_ in places(name):
            digest = hashlib.sha256((folder / "images" / path).read_bytes()).hexdigest()
            file.write(f"{digest}  images/{path}\n")


def verify(name: str, folder: Path) -> None:
    """NPTError, naming the file, unless the folder contains what `make` wrote."""
    if _content(folder / STAMP) != ROWS[name].sha256.encode():
        raise NPTError(f"{folder} is not {name} of this version: delete it, or use another --root.")
    if _content(folder / SPLIT) != _split(name):
        raise _changed(folder / SPLIT, folder)
    if not (folder / MANIFEST).exists():  # made by an earlier version
        _verify_pixels(name, folder)
        with suppress(OSError):
            _write_manifest(folder, name)
        return
    lines = _content(folder / MANIFEST).decode("utf-8", "replace").splitlines()
    digests = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    for _, path, *_ in places(name):
        file = folder / "images" / path
        if hashlib.sha256(_content(file)).hexdigest() != digests.get(f"images/{path}"):
            raise _changed(file, folder)


def _verify_pixels(name: str, folder: Path) -> None:
    """NPTError unless the pixels of all pictures have the checksum of the suite."""
    found: dict[Path, bytes] = {}
    for _, path, *_ in places(name):
        file = folder / "images" / path
        try:
            with Image.open(file) as picture:
                found[file] = picture.tobytes()
        except Exception as error:  # Pillow raises many types on broken files
            raise _changed(file, folder) from error
    if hashlib.sha256(b"".join(found.values())).hexdigest() != ROWS[name].sha256:
        for (file, pixels), (*_, drawn) in zip(found.items(), pictures(name), strict=True):
            if pixels != drawn.tobytes():
                raise _changed(file, folder)
        raise _changed(folder / "images", folder)


def _content(file: Path) -> bytes:
    """The bytes of a file; none if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _changed(file: Path, folder: Path) -> NPTError:
    return NPTError(
        f"{file} was changed, damaged or removed after it had been made: delete {folder}, and the "
        "next run makes it again."
    )


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
        root = data_root(cfg.DATASET.ROOT) if cfg.DATASET.ROOT else cache_root().absolute()
        return make(type(self).__name__, root)


DATASETS = {name: type(name, (MiniDataset,), {"__doc__": f"{name}: see `ROWS`."}) for name in ROWS}

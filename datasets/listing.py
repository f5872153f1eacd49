"""Trees of images, <tree>/<class folder>/<image>: what is in them, and the memory of a large one.

A tree of 1.28 million files takes minutes to list on a network disk. What was found is kept
beside it in a JSON file (in the user's cache where that folder cannot be written), folder by
folder with the folder's time of change, which the system sets anew whenever a file comes, goes
or is renamed; only folders that changed are listed again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from npt.datasets.base import Image
from npt.datasets.catalog import CLASSNAMES
from npt.errors import NPTError
from npt.files import cache_folder, write_json

VERSION = 1  # of the kept file
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm"),
)
CLOCK_NS = 2_000_000_000  # file systems tell times as coarsely as this

Tree = dict[str, list[str]]  # class folder -> its images, both sorted


def scan(tree: Path) -> Tree:
    """The images of each class folder; hidden files and folders are passed over.

    Sorted, because the order in which a disk names its files differs between disks, and a
    few-shot draw follows it. Warns of files that by their names are no images. NPTError where
    there is no class folder.
    """
    others: list[str] = []
    found = {name: _images(tree / name, others) for name in class_folders(tree)}
    _warn(others, tree)
    return found


def class_folders(tree: Path) -> list[str]:
    """The names of the folders in `tree`, sorted. NPTError where there are none."""
    if not tree.is_dir():
        raise NPTError(f"{tree} is missing: it must hold one folder of images for each class.")
    with os.scandir(tree) as entries:
        folders = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    if not folders:
        raise NPTError(f"{tree} has no folders: sort the images into one folder for each class.")
    return folders


def numbered(folders: Iterable[str]) -> dict[str, int]:
    """Labels 0, 1, ... of class folders, by name."""
    return {folder: label for label, folder in enumerate(sorted(folders))}


def labelled(
    tree: Tree, labels: Mapping[str, int], names: Mapping[str, str], where: Path, above: str = ""
) -> list[Image]:
    """The images of a tree in order of its folders, their paths beginning with `above`.

    `labels` and `names` are by folder. NPTError for a folder of `where` that lacks either, or has
    no image.
    """
    for folder, files in tree.items():
        if folder not in names:
            raise NPTError(f"{where / folder} has no class name: add {folder} to {CLASSNAMES}.")
        if folder not in labels:
            raise NPTError(f"{where / folder} has no counterpart in training: remove it.")
        if not files:
            raise NPTError(f"{where / folder} holds no image: add some, or remove the folder.")
    collects = gc.isenabled()
    gc.disable()  # looking for cycles among a million new tuples takes longer than making them
    try:
        return [
            Image(f"{above}{folder}/{file}", labels[folder], names[folder])
            for folder, files in tree.items()
            for file in files
        ]
    finally:
        if collects:
            gc.enable()


def remembered(tree: Path, home: Path) -> Tree:
    """As `scan`, with what was found kept in the folder `home`, or else in the user's cache."""
    places = kept_files(tree, home)
    kept = [_read(place) for place in places]
    if not any(kept):
        print(f"Listing {tree}; that is remembered")
    now: dict[str, list[Any]] = {}
    others: list[str] = []
    for name in class_folders(tree):
        began = time.time_ns()
        changed = os.stat(tree / name).st_mtime_ns
        known = (folders[name] for folders in kept if folders.get(name, [None])[0] == changed)
        # A file may still come within the same tick of the clock, which would not show: time 0.
        time_kept = changed if changed < began - CLOCK_NS else 0
        now[name] = next(known, None) or [time_kept, "/".join(_images(tree / name, others))]
    if now not in kept:
        _write(now, places)
        _warn(others, tree)
    return {name: files.split("/") if files else [] for name, (_, files) in now.items()}


def kept_files(tree: Path, home: Path) -> list[Path]:
    """Where the list of `tree` may be kept, the best place first.

    Beside the data the name says which tree it is of; in the cache its full path does, too.
    """
    name = f"npt-listing-v{VERSION}-{tree.name}"
    key = hashlib.sha256(os.fsencode(tree.absolute())).hexdigest()[:16]
    return [home / f"{name}.json", cache_folder() / f"{name}-{key}.json"]


def _images(folder: Path, others: list[str]) -> list[str]:
    """The images in a folder by their names, sorted; what else is there is added to `others`."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise NPTError(f"{folder} cannot be listed ({error.strerror}): correct it.") from error
    images = [name for name in names if name.lower().endswith(SUFFIXES)]
    if len(images) < len(names):
        others += [f"{folder.name}/{n}" for n in names if not n.lower().endswith(SUFFIXES)]
    return images


def _warn(others: list[str], tree: Path) -> None:
    if others:
        warnings.warn(
            f"{len(others):,} files in {tree} are no images by their names, such as {others[0]}: "
            "they are left out.",
            stacklevel=3,
        )


def _read(file: Path) -> dict[str, list[Any]]:
    """What is kept in `file`: {folder: [time of change, "image/image/..."]}; nothing if damaged."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))["folders"]
        good = all(
            isinstance(changed, int) and isinstance(names, str) for changed, names in kept.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return kept if good else {}


def _write(folders: dict[str, list[Any]], places: list[Path]) -> None:
    """Keeps the list in the first place that can be written; without any it is not kept."""
    for place in places:
        with suppress(OSError):
            write_json(place, {"folders": folders})
            return

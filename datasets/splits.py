"""Makes the train, val and test lists of a data set whose split file is missing.

The proportions are those of CoOp: the official lists if there are any, with a fifth of their
training images for validation; otherwise half of each class for training, a fifth for validation
and the rest for testing. Images are selected by a hash of their names, so that every machine makes
the same split and the random state of a run does not change.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from npt.datasets.base import (
    CHECKSUM,
    PARTS,
    Image,
    Lists,
    check_classes,
    checksum,
    read_json,
    whole,
)
from npt.datasets.catalog import Row
from npt.datasets.listing import labelled, numbered, scan
from npt.errors import NPTError
from npt.files import write_json
from npt.text_file import read_lines

SEED = 1  # part of every hash
NOTE = "this split was made by NPT; results on it are not comparable with published ones."


def make(row: Row, folder: Path) -> Lists:
    """The lists of a data set from its folders or official files.

    Raises NPTError if those are missing or cannot be read.
    """
    for name in row.needs:
        if not (folder / name).is_file():
            instead = f", or put {row.split} into {folder}" if row.split else ""
            raise NPTError(f"{folder / name} is missing: download {row.name}'s {name}{instead}.")
    try:
        lists = MAKERS[row.made_from](row, folder)
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError, OSError) as error:
        raise NPTError(
            f"The official files of {row.name} in {folder} cannot be read "
            f"({type(error).__name__}: {error}): download {', '.join(row.needs)} again."
        ) from error
    for part in PARTS:
        if not lists[part]:
            raise NPTError(f"There are no images for {part} of {row.name} in {folder}: add some.")
    check_classes(lists, folder)
    return lists


def save(row: Row, folder: Path, lists: Lists) -> None:
    """Save lists made by `make` as the split file (atomically). Warns if it cannot be written.

    The file contains a note that this is not the published split, about which `read_split` warns,
    and a checksum, which it verifies.
    """
    file = folder / row.split
    address = next(source.address for source in row.sources if source.place == row.split)
    note = f"{NOTE} The published split is at {address}."
    try:
        write_json(file, {"note": note, **lists, CHECKSUM: checksum(lists)})
        print(f"Made {file}")
    except OSError as error:
        warnings.warn(f"{file} is missing and cannot be written ({error}): {note}", stacklevel=2)


# --------------------------------------------------------------------------- splitting
def divided(images: Iterable[Image]) -> Lists:
    """Half of each class for training, a fifth for validation, the rest for testing.

    Every class has a training image; every class of at least two images also has a test image.
    """
    lists: Lists = {part: [] for part in PARTS}
    for group in _classes(images):
        n = len(group)
        train = max(1, min(round(n / 2), n - 2))
        val = max(0, min(round(n / 5), n - train - 1))
        lists["train"] += group[:train]
        lists["val"] += group[train : train + val]
        lists["test"] += group[train + val :]
    return lists


def held_out(trainval: Iterable[Image], test: list[Image]) -> Lists:
    """A fifth of each class of `trainval`, at least one image, is for validation."""
    lists: Lists = {"train": [], "val": [], "test": test}
    for group in _classes(trainval):
        val = max(1, round(len(group) / 5))
        lists["val"] += group[:val]
        lists["train"] += group[val:]
    return lists


def _classes(images: Iterable[Image]) -> list[list[Image]]:
    """The images of each class, by label; within a class in the order of their hashes."""
    groups: dict[int, list[Image]] = {}
    for image in images:
        groups.setdefault(image.label, []).append(image)
    return [sorted(groups[label], key=_hash) for label in sorted(groups)]


def _hash(image: Image) -> bytes:
    return hashlib.sha256(f"{SEED}:{image.path}".encode("utf-8", "surrogateescape")).digest()


# --------------------------------------------------------------------------- official files
def _folders(row: Row, folder: Path) -> Lists:
    where = folder / row.images
    tree = {name: files for name, files in scan(where).items() if name not in row.ignored}
    names = {name: row.renamed.get(name, name) for name in tree}
    return divided(labelled(tree, numbered(tree), names, where))


def _pets(row: Row, folder: Path) -> Lists:
    """Lines "<Breed_name>_<number> <class from 1> <species> <breed>"."""

    def read(name: str) -> list[Image]:
        found = []
        for line in read_lines(folder / name):
            if not line.startswith("#"):
                stem, number, *_ = line.split()
                breed = stem.rpartition("_")[0].lower()
                found.append(Image(f"{stem}.jpg", whole(number) - 1, breed))
        return found

    trainval, test = map(read, row.needs)
    return held_out(trainval, test)


def _cars(row: Row, folder: Path) -> Lists:
    """The official class names end with the year; here, as in CoOp, they start with it."""
    meta, train, test = (folder / name for name in row.needs)
    names = []
    for name in _mat(meta, "class_names"):
        words = str(name).split(" ")
        names.append(" ".join([words[-1], *words[:-1]]))

    def read(file: Path, images: str) -> list[Image]:
        labels = ((car["fname"], whole(car["class"]) - 1) for car in _mat(file, "annotations"))
        return [Image(f"{images}/{name}", label, names[label]) for name, label in labels]

    return held_out(read(train, "cars_train"), read(test, "cars_test"))


def _flowers(row: Row, folder: Path) -> Lists:
    """imagelabels.mat has the labels (from 1) of image_00001.jpg, image_00002.jpg, ..."""
    labels, names = (folder / name for name in row.needs)
    class_names = read_json(names)
    return divided(
        Image(f"image_{k:05d}.jpg", whole(label) - 1, class_names[str(whole(label))])
        for k, label in enumerate(_mat(labels, "labels"), start=1)
    )


def _aircraft(row: Row, folder: Path) -> Lists:
    """Lines "<number> <class name>"; variants.txt lists the class names in label order."""
    variants, *parts = (folder / name for name in row.needs)
    labels = {name: label for label, name in enumerate(read_lines(variants))}

    def read(file: Path) -> list[Image]:
        pairs = (line.split(" ", 1) for line in read_lines(file))
        return [Image(f"{number}.jpg", labels[name], name) for number, name in pairs]

    return dict(zip(PARTS, map(read, parts), strict=True))


def _sun(row: Row, folder: Path) -> Lists:
    """Lines "/a/<scene>/<kind>/<image>.jpg"; the class name is "<kind> <scene>"."""
    classes, train, test = (folder / name for name in row.needs)
    labels = {name: label for label, name in enumerate(read_lines(classes))}

    def read(file: Path) -> list[Image]:
        found = []
        for line in read_lines(file):
            scene = line.rpartition("/")[0]
            words = scene.split("/")[2:]
            found.append(Image(line[1:], labels[scene], " ".join(reversed(words))))
        return found

    return held_out(read(train), read(test))


def _ucf(row: Row, folder: Path) -> Lists:
    """Lines "<ActionName>/<video>.avi"; the middle frame is Action_Name/<video>.jpg."""
    actions, train, test = (folder / name for name in row.needs)
    pairs = (line.split() for line in read_lines(actions))
    labels = {action: whole(number) - 1 for number, action in pairs}

    def read(file: Path) -> list[Image]:
        found = []
        for line in read_lines(file):
            action, video = line.split()[0].split("/")
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            frame = video.removesuffix(".avi") + ".jpg"
            found.append(Image(f"{name}/{frame}", labels[action], name))
        return found

    return held_out(read(train), read(test))


# In a process of its own, because scipy may crash on a damaged file.
_READ_MAT = """
import json, sys
from scipy.io import loadmat
value = loadmat(sys.argv[1], simplify_cells=True)[sys.argv[2]]
json.dump(value, sys.stdout, default=lambda x: x.tolist())
"""


def _mat(file: Path, name: str) -> list[Any]:
    """The variable `name` of a MATLAB file, as a list. ValueError if it cannot be read."""
    if importlib.util.find_spec("scipy") is None:
        raise NPTError(
            f"Reading {file} requires scipy: `pip install scipy`, or download the split file."
        )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _READ_MAT, str(file), name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "scipy crashed").splitlines()[-1]
        raise ValueError(f"{file.name}: {reason}")
    value = json.loads(done.stdout)
    return value if isinstance(value, list) else [value]


MAKERS: dict[str, Callable[[Row, Path], Lists]] = {
    "folders": _folders,
    "pets": _pets,
    "cars": _cars,
    "flowers": _flowers,
    "aircraft": _aircraft,
    "sun": _sun,
    "ucf": _ucf,
}

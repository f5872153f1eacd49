"""Base classes of the data sets: reading and checking lists of images, few-shot draws."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import reprlib
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from dassl.data.datasets import DatasetBase, Datum
from npt.datasets.spelling import Spelling
from npt.errors import NPTError
from npt.text_file import read_text

PARTS = ("train", "val", "test")
CHECKSUM = "sha256"  # entry of a split file made by NPT
LARGEST = 10**9  # labels are below it


class Image(NamedTuple):
    """An entry of a list. It becomes a `Datum`, which checks that the file exists, only if used."""

    path: str  # below the folder of images
    label: int
    classname: str


Lists = dict[str, list[Image]]  # by part


def read_json(file: Path) -> Any:
    """The content of a JSON file. OSError; ValueError if it is none, nested too deep, or names a
    key twice.
    """
    try:
        return json.loads(read_text(file), object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON file. ValueError if it has a key twice, of which JSON keeps the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"it has the key {reprlib.repr(twice)} twice")
    return values


def read_split(file: Path) -> Lists:
    """Read a split file {"train" | "val" | "test": [[path, label, class name], ...]}.

    `val` may be empty or missing: there are no validation images. Paths may have the backslashes
    of Windows, except in a file that was made here. Raises NPTError if the file is missing, has
    another form, has no images for training or testing, or was made by NPT (see `splits.save`)
    and then changed. Warns if it contains a note that it is not the published split.
    """
    try:
        listed = read_json(file)
        lists = {part: _images(_list(listed, part)) for part in PARTS}
    except FileNotFoundError as error:
        raise NPTError(
            f"{file} is missing: DATASET.ROOT must be the folder that contains the data sets."
        ) from error
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise NPTError(
            f"{file} is not a split file ({error}): it must contain lists train, val and test of "
            "[path, label, class name]; download it again."
        ) from error
    for part in ("train", "test"):
        if not lists[part]:
            raise NPTError(
                f"{file} lists no images under {part}: add some (only val may be empty), or "
                "download it again."
            )
    if CHECKSUM in listed and listed[CHECKSUM] != checksum(lists):
        raise NPTError(
            f"{file} was changed after NPT had made it: delete it, and it is made again, or delete "
            f'its entry "{CHECKSUM}", and it is used as it is.'
        )
    if listed.get("note"):
        warnings.warn(readable(f"{file}: {listed['note']}"), stacklevel=2)
    if CHECKSUM in listed:
        return lists
    return {
        part: [image._replace(path=_portable(image.path)) for image in items]
        for part, items in lists.items()
    }


def _portable(path: str) -> str:
    """A path with the slashes of all systems, without "./" at its start."""
    path = path.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def _list(listed: Any, part: str) -> Any:
    """The list of a part; an empty one for a val that is missing or null. ValueError for others."""
    if not isinstance(listed, dict):
        raise ValueError(f"{reprlib.repr(listed)} is not an object")
    if part in listed:
        return [] if listed[part] is None else listed[part]
    other = next((key for key in listed if key not in PARTS and isinstance(listed[key], list)), "")
    if part != "val" or other:
        instead = f", but a list {reprlib.repr(other)}" if other else ""
        raise ValueError(f'it has no list "{part}"{instead}')
    return []


def _images(rows: Any) -> list[Image]:
    """The entries of a list. ValueError or TypeError if it has another form."""
    if not isinstance(rows, list):
        raise ValueError(f"{reprlib.repr(rows)} is not a list")
    return [_image(row) for row in rows]


def _image(row: Any) -> Image:
    if not isinstance(row, list) or len(row) != 3:
        raise ValueError(f"{reprlib.repr(row)} is not [path, label, class name]")
    path, label, name = row
    if not isinstance(path, str) or not isinstance(name, str | None):
        raise ValueError(f"the path or the class name in {reprlib.repr(row)} is not a text")
    if "\0" in path:
        raise ValueError(f"the path {reprlib.repr(path)} contains the character NUL")
    os.fsencode(path)  # UnicodeEncodeError, a ValueError, if no file can have this name
    return Image(path, whole(label), name or "")


def whole(value: Any) -> int:
    """A label as an integer. ValueError, TypeError or OverflowError if it is no whole number."""
    text = isinstance(value, str)
    number_like = text or hasattr(value, "__int__")  # numbers of JSON, and of MATLAB files
    written = not text or re.fullmatch(r"\s*-?[0-9]+\s*", value)
    if isinstance(value, bool) or not number_like or not written:
        raise ValueError(f"the label {reprlib.repr(value)} is not a whole number")
    number = int(value)
    if not text and number != value:
        raise ValueError(f"the label {value!r} is not a whole number")
    if abs(number) >= LARGEST:
        raise ValueError(f"the label {reprlib.repr(number)} is too large")
    return number


def checksum(lists: Lists) -> str:
    """The sha256 of the lists of a split."""
    return hashlib.sha256(json.dumps([lists[part] for part in PARTS]).encode()).hexdigest()


def readable(text: str) -> str:
    """The text with escapes in place of bytes and characters that cannot be printed."""
    return text.encode("utf-8", "backslashreplace").decode()


def data_root(root: str) -> Path:
    """DATASET.ROOT (--root) as a full path. NPTError if it cannot be the path of a folder."""
    try:
        if "\0" in root:
            raise ValueError("it contains the character NUL")
        root.encode()  # it is printed and written into records
        return Path(root).expanduser().absolute()
    except (ValueError, RuntimeError) as error:  # the second: of a user without a home folder
        raise NPTError(
            f"the folder {readable(root)!r} (DATASET.ROOT, --root) cannot be used ({error}): give "
            "another one."
        ) from error


def check_classes(lists: Lists, where: Path) -> Counter[int]:
    """Check the labels and class names; return the number of training images of each label.

    Raises NPTError unless the labels are 0, 1, 2, ... and each of them has one name and at least
    one training image. The engine takes the class names from the training images, so a class
    without any would shift the names of all classes after it.
    """
    names: dict[int, str] = {}
    if any(image.label < 0 for part in PARTS for image in lists[part]):
        raise NPTError(f"A label in {where} is below 0: labels must be 0, 1, 2, ... without gaps.")
    for label, name in {(image.label, image.classname) for part in PARTS for image in lists[part]}:
        if not name.replace("_", " ").strip():  # as it is written in a prompt
            raise NPTError(f"Label {label} has no class name in {where}: add one.")
        if readable(name) != name:
            raise NPTError(
                f"The name {readable(name)} of label {label} in {where} is not a text that CLIP "
                "can read: rename the class."
            )
        if any(unicodedata.category(c) == "Cc" and c != "\t" for c in name):
            raise NPTError(
                f"The name {reprlib.repr(name)} of label {label} in {where} contains a control "
                "character, which CLIP does not read: rename the class."
            )
        if names.setdefault(label, name) != name:
            both = " and ".join(sorted(f'"{n}"' for n in (name, names[label])))
            raise NPTError(f"Label {label} has the names {both} in {where}: keep one of them.")
    frequency = Counter(image.label for image in lists["train"])
    for label in range(max(names, default=-1) + 1):
        if label not in names:
            raise NPTError(
                f"No image has the label {label} in {where}, but there are higher labels: labels "
                "must be 0, 1, 2, ... without gaps."
            )
        if label not in frequency:
            raise NPTError(
                f'Class {label} ("{names[label]}") has no training image in {where}: add one, or '
                "remove the class."
            )
    return frequency


def warn_of_duplicates(lists: Lists, where: Path) -> None:
    """Warn about images that are in two parts: test images must not be training images."""
    paths = {part: {image.path for image in lists[part]} for part in PARTS}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = paths[one] & paths[other]
        if both:
            warnings.warn(
                f"{len(both):,} images are in both {one} and {other} of {where}, such as "
                f"{readable(min(both))}: results on {other} will be too good.",
                stacklevel=2,
            )


def why_missing(path: str, listed: str, where: str) -> str:
    """Why there is no image at `path`, which `where` lists as `listed`, in a sentence."""
    what = readable(path)
    if re.match(r"[A-Za-z]:|[\\/]", listed):
        return (
            f"{where} lists {readable(listed)}, a full path, but there is no such file here: list "
            "paths below the folder of the images."
        )
    if os.path.isdir(path):
        return f"{where} lists {what}, which is a folder and not an image: rename it."
    if os.path.islink(path):
        return (
            f"{what} is a link to {readable(os.path.realpath(path))}, where there is no image: "
            "mend or remove the link."
        )
    return (
        f"{what} is missing, although {where} lists it: unpack its images again "
        "(`python -m npt.data check` finds all missing images)."
    )


def class_numbers(labels: Iterable[int], which: str) -> dict[int, int]:
    """Old label -> new label of the selected classes, which are numbered from 0.

    which: "base" (first half of the labels, rounded up), "new" (the rest), or "all" (unchanged).
    This is the protocol of base-to-new generalisation (Zhou et al. 2022, CoCoOp, section 4.1).
    NPTError for the new half of one class, which is empty.
    """
    ordered = sorted(set(labels))
    if which == "all":
        return {label: label for label in ordered}
    half = math.ceil(len(ordered) / 2)
    if which == "new" and half == len(ordered):
        raise NPTError(
            f"DATASET.SUBSAMPLE_CLASSES is new, the second half of the classes, but there is only "
            f"{len(ordered)} class, which is in the first half: use all or base, or add classes."
        )
    print(f"SUBSAMPLE {which.upper()} CLASSES!")
    return {
        label: k for k, label in enumerate(ordered[:half] if which == "base" else ordered[half:])
    }


class ListedDataset(DatasetBase):
    """A data set defined by `lists`. This class draws the few shots and selects the classes.

    The few shots are drawn by the engine's `generate_fewshot_dataset`, so that a seed draws the
    same images as in CoOp and its successors. The draw takes milliseconds and is not cached.

    `class_frequency` is the number of training images of each class before the draw.
    """

    folder: ClassVar[str]  # below DATASET.ROOT
    images: ClassVar[str] = "images"  # below folder
    split: ClassVar[str] = ""  # file below folder that lists the images; "": there is none
    # Hand-written prompt for zero-shot CLIP. This default is for data sets outside the catalog:
    # the mini suite and folders of your own images.
    template: ClassVar[str] = "a photo of a {}."
    # The parts from which few shots are drawn, with the largest number of images per class.
    shots: ClassVar[Mapping[str, float]] = {"train": math.inf, "val": 4}

    def __init__(self, cfg: Any) -> None:
        folder = self.locate(cfg)
        self.dataset_dir = str(folder)
        lists = self.lists(folder)
        frequency = check_classes(lists, folder / self.split)
        draw: Any = self.generate_fewshot_dataset  # needs only labels, so it accepts Images
        for part, limit in self.shots.items():
            if lists[part]:
                lists[part] = draw(lists[part], num_shots=min(cfg.DATASET.NUM_SHOTS, limit))
        numbers = class_numbers(frequency, cfg.DATASET.SUBSAMPLE_CLASSES)
        distinct = {id(items): items for items in lists.values()}  # two parts may share a list
        spelling = Spelling(folder / self.images)
        data = {key: self._data(items, numbers, spelling) for key, items in distinct.items()}
        spelling.warn()
        train_x, val, test = (data[id(lists[part])] for part in PARTS)
        super().__init__(train_x=train_x, val=val or None, test=test)
        self.class_frequency = {new: frequency[old] for old, new in numbers.items()}

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        """All images in `folder`, by part. NPTError if files are missing or invalid."""
        raise NotImplementedError(f"{cls.__name__} does not define lists().")

    def _data(
        self, items: Iterable[Image], numbers: Mapping[int, int], spelling: Spelling
    ) -> list[Datum]:
        """The images of the classes in `numbers`, under their new labels."""
        images = os.path.join(self.dataset_dir, self.images)
        data = []
        for item in items:
            if item.label not in numbers:
                continue
            path = os.path.join(images, item.path)
            try:
                datum = Datum(path, numbers[item.label], classname=item.classname)
            except (FileNotFoundError, AssertionError) as error:  # the second: upstream Dassl
                found = spelling.find(item.path)
                if found is None:
                    raise NPTError(why_missing(path, item.path, type(self).__name__)) from error
                datum = Datum(str(found), numbers[item.label], classname=item.classname)
            data.append(datum)
        return data

    def locate(self, cfg: Any) -> Path:
        """The data set's folder. Raises NPTError if it does not exist."""
        if not cfg.DATASET.ROOT:
            raise NPTError(
                f"{cfg.DATASET.NAME} needs DATASET.ROOT (--root): the folder of the data sets."
            )
        folder = data_root(cfg.DATASET.ROOT) / self.folder
        if not folder.is_dir():
            raise NPTError(f"{folder} is missing: put {cfg.DATASET.NAME} there, or correct --root.")
        return folder


class SplitDataset(ListedDataset):
    """A data set whose images are listed in a split file, as in CoOp."""

    split: ClassVar[str] = "split.json"

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        lists = read_split(folder / cls.split)
        warn_of_duplicates(lists, folder / cls.split)
        return lists

"""Base classes of the data sets: reading and checking lists of images, few-shot draws."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from dassl.data.datasets import DatasetBase, Datum
from npt.errors import NPTError

PARTS = ("train", "val", "test")


class Image(NamedTuple):
    """An entry of a list. It becomes a `Datum`, which checks that the file exists, only if used."""

    path: str  # below the folder of images
    label: int
    classname: str


Lists = dict[str, list[Image]]  # by part


def read_split(file: Path) -> Lists:
    """Read a split file {"train" | "val" | "test": [[path, label, class name], ...]}.

    Raises NPTError if the file is missing, has another form, or has an empty list. Warns if the
    file contains a note that it is not the published split (see `splits.save`).
    """
    if not file.is_file():
        raise NPTError(
            f"{file} is missing: DATASET.ROOT must be the folder that contains the data sets."
        )
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        lists = {
            part: [
                Image(os.fspath(path), int(label), str(name or "")) for path, label, name in rows
            ]
            for part, rows in ((part, listed[part]) for part in PARTS)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise NPTError(
            f"{file} is not a split file ({error}): it must contain lists train, val and test of "
            "[path, label, class name]; download it again."
        ) from error
    for part in PARTS:
        if not lists[part]:
            raise NPTError(f"{file} lists no images under {part}; download it again.")
    if listed.get("note"):
        warnings.warn(f"{file}: {listed['note']}", stacklevel=2)
    return lists


def check_classes(lists: Lists, where: Path) -> Counter[int]:
    """Check the labels and class names; return the number of training images of each label.

    Raises NPTError unless the labels are 0, 1, 2, ... and each of them has one name and at least
    one training image. The engine takes the class names from the training images, so a class
    without any would shift the names of all classes after it.
    """
    names: dict[int, str] = {}
    for label, name in {(image.label, image.classname) for part in PARTS for image in lists[part]}:
        if not name.strip():
            raise NPTError(f"Label {label} has no class name in {where}: add one.")
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
    if min(names, default=0) < 0:
        raise NPTError(f"A label in {where} is below 0: labels must be 0, 1, 2, ... without gaps.")
    return frequency


def warn_of_duplicates(lists: Lists, where: Path) -> None:
    """Warn about images that are in two parts: test images must not be training images."""
    paths = {part: {image.path for image in lists[part]} for part in PARTS}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = paths[one] & paths[other]
        if both:
            warnings.warn(
                f"{len(both):,} images are in both {one} and {other} of {where}, such as "
                f"{min(both)}: results on {other} will be too good.",
                stacklevel=2,
            )


def class_numbers(labels: Iterable[int], which: str) -> dict[int, int]:
    """Old label -> new label of the selected classes, which are numbered from 0.

    which: "base" (first half of the labels, rounded up), "new" (the rest), or "all" (unchanged).
    This is the protocol of base-to-new generalisation (Zhou et al. 2022, CoCoOp, section 4.1).
    """
    ordered = sorted(set(labels))
    if which == "all":
        return {label: label for label in ordered}
    half = math.ceil(len(ordered) / 2)
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
        data = {key: self._data(items, numbers) for key, items in distinct.items()}
        train_x, val, test = (data[id(lists[part])] for part in PARTS)
        super().__init__(train_x=train_x, val=val or None, test=test)
        self.class_frequency = {new: frequency[old] for old, new in numbers.items()}

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        """All images in `folder`, by part. NPTError if files are missing or invalid."""
        raise NotImplementedError(f"{cls.__name__} does not define lists().")

    def _data(self, items: Iterable[Image], numbers: Mapping[int, int]) -> list[Datum]:
        """The images of the classes in `numbers`, under their new labels."""
        images = os.path.join(self.dataset_dir, self.images)
        data = []
        for item in items:
            if item.label not in numbers:
                continue
            path = os.path.join(images, item.path)
            try:
                data.append(Datum(path, numbers[item.label], classname=item.classname))
            except (FileNotFoundError, AssertionError) as error:  # the second: upstream Dassl
                raise NPTError(
                    f"{path} is missing, although {type(self).__name__} lists it: unpack its "
                    "images again (`python -m npt.data check` finds all missing images)."
                ) from error
        return data

    def locate(self, cfg: Any) -> Path:
        """The data set's folder. Raises NPTError if it does not exist."""
        if not cfg.DATASET.ROOT:
            raise NPTError(
                f"{cfg.DATASET.NAME} needs DATASET.ROOT (--root): the folder of the data sets."
            )
        folder = Path(cfg.DATASET.ROOT).expanduser().absolute() / self.folder
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

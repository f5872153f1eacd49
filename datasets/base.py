"""What data sets share: lists of images, checked, drawn few-shot, cut to base or new classes."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

from dassl.data.datasets import DatasetBase, Datum
from npt.errors import NPTError

PARTS = ("train", "val", "test")


class Image(NamedTuple):
    """An image that is listed; it becomes a `Datum`, which looks for the file, when it is used."""

    path: str  # below the folder of images
    label: int
    classname: str


Lists = dict[str, list[Image]]  # by part


def read_split(file: Path) -> Lists:
    """Reads {"train" | "val" | "test": [[path, label, class name], ...]}.

    Raises NPTError where the file is missing, is not of that form, or lists no image. Warns where
    it says that it was made here and is not the split of the literature (see `splits.save`).
    """
    if not file.is_file():
        raise NPTError(
            f"{file} is missing: DATASET.ROOT must be the folder that holds the data sets."
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
            f"{file} is no split file ({error}): it must hold lists train, val and test of "
            "[path, label, class name]; fetch it again."
        ) from error
    for part in PARTS:
        if not lists[part]:
            raise NPTError(f"{file} lists no image under {part}; fetch it again.")
    if listed.get("note"):
        warnings.warn(f"{file}: {listed['note']}", stacklevel=2)
    return lists


def check_classes(lists: Lists, where: Path) -> Counter[int]:
    """Training images per label, where labels are 0, 1, ... and each has images and one name.

    Raises NPTError otherwise. Class names and their number come from the training images, so a
    class without any would shift the names of all that follow.
    """
    names: dict[int, str] = {}
    for label, name in {(image.label, image.classname) for part in PARTS for image in lists[part]}:
        if not name.strip():
            raise NPTError(f"Label {label} has no class name in {where}: name it there.")
        if names.setdefault(label, name) != name:
            both = " and ".join(sorted(f'"{n}"' for n in (name, names[label])))
            raise NPTError(f"Label {label} is called {both} in {where}: keep one of the names.")
    frequency = Counter(image.label for image in lists["train"])
    for label in range(max(names, default=-1) + 1):
        if label not in names:
            raise NPTError(
                f"No image has the label {label} in {where}, though higher ones occur: labels must "
                "be 0, 1, 2, ... without gaps."
            )
        if label not in frequency:
            raise NPTError(
                f'Class {label} ("{names[label]}") has no training image in {where}: add one, or '
                "leave the class out."
            )
    if min(names, default=0) < 0:
        raise NPTError(f"A label is below 0 in {where}: labels must be 0, 1, 2, ... without gaps.")
    return frequency


def warn_of_duplicates(lists: Lists, where: Path) -> None:
    """Warns of images that stand in two parts: what is tested must not have been trained."""
    paths = {part: {image.path for image in lists[part]} for part in PARTS}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = paths[one] & paths[other]
        if both:
            warnings.warn(
                f"{len(both):,} images are in both {one} and {other} of {where}, such as "
                f"{min(both)}: figures on {other} will be flattered.",
                stacklevel=2,
            )


def class_numbers(labels: Iterable[int], which: str) -> dict[int, int]:
    """Old label -> new label of the "base" (first half, rounded up), "new" or "all" classes.

    The protocol of base-to-new generalisation (Zhou et al. 2022, CoCoOp, section 4.1).
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
    """A data set that `lists` all its images; what is drawn, kept and renumbered is settled here.

    The few-shot draw is the engine's own `generate_fewshot_dataset`, so that a seed draws the
    images it draws in every repository of the family. It takes milliseconds, and is not cached.

    `class_frequency` counts the training images of each class before the draw.
    """

    folder: ClassVar[str]  # below DATASET.ROOT
    images: ClassVar[str] = "images"  # below folder
    split: ClassVar[str] = ""  # the file below folder that lists the images, if one does
    shots: ClassVar[Mapping[str, float]] = {"train": math.inf, "val": 4}  # drawn parts, at most

    def __init__(self, cfg) -> None:
        self.dataset_dir = self.prepare(cfg)
        lists = self.lists(self.dataset_dir)
        frequency = check_classes(lists, self.dataset_dir / self.split)
        for part, limit in self.shots.items():
            if lists[part]:
                number = min(cfg.DATASET.NUM_SHOTS, limit)
                lists[part] = self.generate_fewshot_dataset(lists[part], num_shots=number)
        numbers = class_numbers(frequency, cfg.DATASET.SUBSAMPLE_CLASSES)
        distinct = {id(items): items for items in lists.values()}  # a list may serve two parts
        found = {key: self._found(items, numbers) for key, items in distinct.items()}
        train_x, val, test = (found[id(lists[part])] for part in PARTS)
        super().__init__(train_x=train_x, val=val or None, test=test)
        self.class_frequency = {new: frequency[old] for old, new in numbers.items()}

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        """Every image of the data set in `folder`, by part. NPTError where that cannot be told."""
        raise NotImplementedError(f"{cls.__name__} does not say which images it has.")

    def _found(self, items: Iterable[Image], numbers: Mapping[int, int]) -> list[Datum]:
        """The images of the classes in `numbers`, under their new labels."""
        images = os.path.join(self.dataset_dir, self.images)
        found = []
        for item in items:
            if item.label not in numbers:
                continue
            path = os.path.join(images, item.path)
            try:
                found.append(Datum(path, numbers[item.label], classname=item.classname))
            except (FileNotFoundError, AssertionError) as error:  # ours, and an installed Dassl's
                raise NPTError(
                    f"{path} is missing, though {type(self).__name__} lists it: unpack its images "
                    "again (`python -m npt.data check` finds all that are missing)."
                ) from error
        return found

    def prepare(self, cfg) -> Path:
        """The data set's folder. Raises NPTError where it is not there."""
        if not cfg.DATASET.ROOT:
            raise NPTError(
                f"{cfg.DATASET.NAME} needs DATASET.ROOT (--root): the folder with the data sets."
            )
        folder = Path(cfg.DATASET.ROOT).expanduser().absolute() / self.folder
        if not folder.is_dir():
            raise NPTError(f"{folder} is missing: put {cfg.DATASET.NAME} there or correct --root.")
        return folder


class SplitDataset(ListedDataset):
    """A data set whose images are listed in a split file, as the CoOp family keeps them."""

    split: ClassVar[str] = "split.json"

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        lists = read_split(folder / cls.split)
        warn_of_duplicates(lists, folder / cls.split)
        return lists

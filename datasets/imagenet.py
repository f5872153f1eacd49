"""ImageNet, and its variants for testing domain generalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from npt.datasets.base import ListedDataset, Lists
from npt.datasets.catalog import CLASSNAMES, Row
from npt.datasets.listing import labelled, numbered, remembered, scan
from npt.errors import NPTError
from npt.text_file import read_text


def read_classnames(file: Path) -> dict[str, str]:
    """wnid -> class name, from lines "<wnid> <class name>".

    Raises NPTError if the file is missing or empty, or a line has no name.
    """
    if not file.is_file():
        raise NPTError(
            f"{file} is missing: copy ImageNet's {CLASSNAMES} there, with a line "
            '"n01440764 tench" for each class.'
        )
    names: dict[str, str] = {}
    try:
        lines = read_text(file).split("\n")
    except (ValueError, OSError) as error:
        raise NPTError(
            f"{file} cannot be read as a text ({error}): mend or download it."
        ) from error
    for number, line in enumerate(lines, start=1):
        wnid, _, name = line.strip().replace("\t", " ").partition(" ")
        if wnid and not name.strip():
            raise NPTError(f"{file} has no class name after {wnid} in line {number}: add it.")
        if wnid:
            names[wnid] = name.strip()
    if not names:
        raise NPTError(f"{file} contains no class names: download it again.")
    return names


class ImageNet(ListedDataset):
    """Trains on images/train. images/val is the test set and, as in CoOp, the validation set."""

    shots: ClassVar[Mapping[str, float]] = {"train": math.inf}

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        names = read_classnames(folder / CLASSNAMES)
        trees = {p: folder / cls.images / p for p in ("train", "val")}
        found = {part: remembered(tree, folder) for part, tree in trees.items()}
        labels = numbered(found["train"])
        lists = {p: labelled(found[p], labels, names, trees[p], f"{p}/") for p in trees}
        for wnid in found["train"]:
            if wnid not in found["val"]:
                raise NPTError(f"{trees['val'] / wnid} is missing: unpack the validation images.")
        return {**lists, "test": lists["val"]}


class Variant(ListedDataset):
    """Other images of ImageNet's classes. It is for testing only, so there is no few-shot draw.

    The engine cannot build a trainer without training images, so they are the test images.
    """

    row: ClassVar[Row]
    shots: ClassVar[Mapping[str, float]] = {}

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        names = read_classnames(folder / CLASSNAMES)
        tree = folder / cls.images
        found = scan(tree)
        labels = numbered(found)
        if cls.row.made_from == "label":  # folder k belongs to line k of the class names, from 0
            names = {str(label): name for label, name in enumerate(names.values())}
            labels = {folder: int(folder) for folder in found if folder in names}
        images = labelled(found, labels, names, tree)
        return {"train": images, "val": [], "test": images}

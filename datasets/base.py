"""Data sets whose images are listed in a split file, as the CoOp family keeps them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from dassl.data.datasets import DatasetBase, Datum
from npt.errors import NPTError

PARTS = ("train", "val", "test")


def read_split(file: Path, images: Path) -> dict[str, list[Datum]]:
    """Reads {"train" | "val" | "test": [[path below `images`, label, class name], ...]}.

    Raises NPTError where the file is missing, is not of that form, or lists no image.
    """
    if not file.is_file():
        raise NPTError(
            f"{file} is missing: DATASET.ROOT must be the folder that holds the data sets."
        )
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        rows = {
            part: [
                (str(images / path), int(label), str(name)) for path, label, name in listed[part]
            ]
            for part in PARTS
        }
    except (KeyError, TypeError, ValueError) as error:
        raise NPTError(
            f"{file} is no split file ({error}): it must hold lists train, val and test of "
            "[path, label, class name]; fetch it again."
        ) from error
    for part in PARTS:
        if not rows[part]:
            raise NPTError(f"{file} lists no image under {part}; fetch it again.")
    return {
        part: [Datum(impath=path, label=label, classname=name) for path, label, name in rows[part]]
        for part in PARTS
    }


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


def renumber(items: Iterable[Datum], numbers: Mapping[int, int]) -> list[Datum]:
    """The items of the classes in `numbers`, under their new labels."""
    return [
        Datum(item.impath, numbers[item.label], item.domain, item.classname)
        for item in items
        if item.label in numbers
    ]


class SplitDataset(DatasetBase):
    """A data set under DATASET.ROOT given by a row of data: its folder, image folder and split.

    `class_frequency` counts the training images of each class before the few-shot draw.
    """

    folder: ClassVar[str]
    images: ClassVar[str] = "images"
    split: ClassVar[str] = "split.json"

    def __init__(self, cfg) -> None:
        self.dataset_dir = self.prepare(cfg)
        data = read_split(self.dataset_dir / self.split, self.dataset_dir / self.images)
        frequency = Counter(item.label for item in data["train"])
        shots = cfg.DATASET.NUM_SHOTS
        data["train"] = self.generate_fewshot_dataset(data["train"], num_shots=shots)
        data["val"] = self.generate_fewshot_dataset(data["val"], num_shots=min(shots, 4))
        numbers = class_numbers(frequency, cfg.DATASET.SUBSAMPLE_CLASSES)
        train_x, val, test = (renumber(data[part], numbers) for part in PARTS)
        super().__init__(train_x=train_x, val=val, test=test)
        self.class_frequency = {new: frequency[old] for old, new in numbers.items()}

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

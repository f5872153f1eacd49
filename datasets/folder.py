"""A folder of one's own images: one folder for each class, of any size and balance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from npt.datasets.base import PARTS, ListedDataset, Lists
from npt.datasets.catalog import CLASSNAMES
from npt.datasets.listing import class_folders, labelled, numbered, scan
from npt.datasets.splits import divided
from npt.errors import NPTError


class CustomFolder(ListedDataset):
    """DATASET.ROOT is the folder: train/, val/, test/ with class folders, or class folders alone.

    Without val/ there is no validation, without test/ the test is on val/. Class folders alone are
    divided by `splits.divided`, the same way in every run. Every image is used unless NUM_SHOTS
    says how many.
    """

    folder: ClassVar[str] = ""
    images: ClassVar[str] = ""

    def prepare(self, cfg) -> Path:
        if not cfg.DATASET.ROOT:
            raise NPTError("CustomFolder needs DATASET.ROOT (--root): the folder with your images.")
        folder = Path(cfg.DATASET.ROOT).expanduser().absolute()
        if not folder.is_dir():
            raise NPTError(f"{folder} is missing: give the folder of your images as --root.")
        return folder

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        inside = class_folders(folder)
        if not in_parts(folder, inside):
            tree = scan(folder)
            names = class_names(folder, list(tree))
            lists = divided(labelled(tree, numbered(tree), names, folder))
        else:
            trees = {part: scan(folder / part) for part in inside}
            labels = numbered(trees["train"])
            names = class_names(folder, [name for tree in trees.values() for name in tree])
            lists = {part: [] for part in PARTS}
            for part, tree in trees.items():
                lists[part] = labelled(tree, labels, names, folder / part, f"{part}/")
            lists["test"] = lists["test"] or lists["val"]
        if not lists["test"]:
            raise NPTError(f"{folder} has no image to test with: add test/ or more images.")
        return lists


def in_parts(folder: Path, inside: list[str]) -> bool:
    """Whether the folders `inside` are train/, val/ and test/, and not classes.

    A class may be called train, but then it holds images and no folders. NPTError where another
    folder stands beside the parts: read as a class, it would make classes of them, too.
    """
    others = sorted(set(inside) - set(PARTS))
    if "train" not in inside or (others and not any(map(Path.is_dir, folder.glob("train/[!.]*")))):
        return False
    if others:
        raise NPTError(
            f"{folder / others[0]} is beside train/, where only val/ and test/ may be: rename it, "
            "or move it elsewhere."
        )
    return True


def class_names(folder: Path, classes: list[str]) -> dict[str, str]:
    """Class name by class folder: from classnames.json or .txt in `folder`, else the folder's own.

    The json maps folders to names; the text has lines "<class folder> <class name>". Folders that
    are not there may be named, too. Raises NPTError where a class is not named, or the file cannot
    be read.
    """
    for file, read in ((folder / "classnames.json", _table), (folder / CLASSNAMES, _text)):
        if not file.is_file():
            continue
        try:
            names = read(file.read_text(encoding="utf-8"), classes)
        except ValueError as error:
            raise NPTError(
                f"{file} cannot be read ({error}): it must give the name of each class folder."
            ) from error
        for name in classes:
            if not isinstance(names.get(name), str) or not names[name].strip():
                raise NPTError(f"{file} has no name for the class folder {name}: add it.")
        return names
    return {name: name.replace("_", " ") for name in classes}


def _table(text: str, classes: list[str]) -> dict[str, str]:
    names = json.loads(text)
    if not isinstance(names, dict):
        raise ValueError("it is no table")
    return names


def _text(text: str, classes: list[str]) -> dict[str, str]:
    names = {}
    for line in text.splitlines():
        spaced = line.replace("\t", " ") + " "
        begun = [name for name in classes if spaced.startswith(f"{name} ")]
        if begun:  # the longest: a folder's name may begin with another's
            name = max(begun, key=len)
            names[name] = line[len(name) :].strip()
    return names

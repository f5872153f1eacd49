"""A folder of your own images: one folder for each class, of any size and balance."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from npt.datasets.base import PARTS, ListedDataset, Lists, data_root, read_json
from npt.datasets.catalog import CLASSNAMES
from npt.datasets.listing import class_folders, labelled, numbered, scan
from npt.datasets.splits import divided
from npt.errors import NPTError


class CustomFolder(ListedDataset):
    """DATASET.ROOT contains train/, val/ and test/ with class folders, or only class folders.

    val/ and test/ are optional: without val/ there is no validation set, without test/ val/ is the
    test set. Class folders alone are split by `splits.divided`, identically in every run. All
    images are used unless NUM_SHOTS is set.
    """

    folder: ClassVar[str] = ""
    images: ClassVar[str] = ""

    def locate(self, cfg: Any) -> Path:
        if not cfg.DATASET.ROOT:
            raise NPTError("CustomFolder needs DATASET.ROOT (--root): the folder with your images.")
        folder = data_root(cfg.DATASET.ROOT)
        if not folder.is_dir():
            raise NPTError(f"{folder} is missing: set --root to the folder of your images.")
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
            raise NPTError(f"{folder} has no image for testing: add test/ or more images.")
        return lists


def in_parts(folder: Path, inside: list[str]) -> bool:
    """Whether the folders `inside` are train/, val/ and test/ rather than class folders.

    A class may be named train if its folder contains no folders. NPTError if there is another
    folder beside train/, val/ and test/, because then it is unclear which of the two is meant.
    """
    others = sorted(set(inside) - set(PARTS))
    if "train" not in inside or (others and not any(map(Path.is_dir, folder.glob("train/[!.]*")))):
        return False
    if others:
        raise NPTError(
            f"{folder / others[0]} is beside train/, where only val/ and test/ are allowed: rename "
            "or move it."
        )
    return True


def class_names(folder: Path, classes: list[str]) -> dict[str, str]:
    """Class folder -> class name, from classnames.json or classnames.txt in `folder`.

    The json file maps folders to names; the text file has lines "<class folder> <class name>". Both
    may contain further folders. Without either file the folder's name is used, with spaces for
    underscores. NPTError if a class has no name or the file cannot be read.
    """
    for file, read in ((folder / "classnames.json", _from_json), (folder / CLASSNAMES, _from_text)):
        if not file.is_file():
            continue
        try:
            names = read(file, classes)
        except (ValueError, OSError) as error:
            raise NPTError(
                f"{file} cannot be read ({error}): it must contain the name of each class folder."
            ) from error
        for name in classes:
            if not isinstance(names.get(name), str) or not names[name].strip():
                raise NPTError(f"{file} has no name for the class folder {name}: add it.")
        return names
    return {name: name.replace("_", " ") for name in classes}


def _from_json(file: Path, classes: list[str]) -> dict[str, str]:
    names = read_json(file)
    if not isinstance(names, dict):
        raise ValueError("it is not a table")
    return names


def _from_text(file: Path, classes: list[str]) -> dict[str, str]:
    names = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        spaced = line.replace("\t", " ") + " "
        matches = [name for name in classes if spaced.startswith(f"{name} ")]
        if matches:  # the longest one: the name of a folder may start with that of another
            name = max(matches, key=len)
            names[name] = line[len(name) :].strip()
    return names

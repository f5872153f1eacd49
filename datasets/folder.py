"""A folder of your own images: one folder for each class, of any size and balance."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from npt.datasets.base import PARTS, ListedDataset, Lists, data_root, read_json
from npt.datasets.catalog import CLASSNAMES
from npt.datasets.listing import (
    class_folders,
    folders_in,
    images_below,
    labelled,
    numbered,
    remark,
    scan,
)
from npt.datasets.spelling import folded, same_spelling
from npt.datasets.splits import divided
from npt.errors import NPTError
from npt.text_file import read_lines

PART_NAMES = {  # folder of a part, in small letters -> part
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val", "dev": "val"},
    **{"test": "test", "testing": "test"},
}


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
        places = parts_in(folder, inside)
        if not places:
            check_depth(folder, inside)
            tree = scan(folder)
            names = class_names(folder, list(tree))
            lists = divided(labelled(tree, numbered(tree), names, folder))
        else:
            lists = _given(folder, places)
            lists["test"] = lists["test"] or lists["val"]
        if not lists["test"]:
            raise NPTError(f"{folder} has no image for testing: add test/ or more images.")
        return lists


class CustomTest(CustomFolder):
    """As CustomFolder, but every image is a test image: those of test/, else of all class folders.

    It is for testing only. The engine cannot build a trainer without training images, so they are
    the test images, as in ImageNet's variants.
    """

    shots: ClassVar[Mapping[str, float]] = {}

    @classmethod
    def lists(cls, folder: Path) -> Lists:
        inside = class_folders(folder)
        places = parts_in(folder, inside)
        if not places and [part_of(name) for name in inside] == ["test"]:
            places = {"test": inside[0]} if folders_in(folder / inside[0]) else {}
        name = next((places[part] for part in reversed(PARTS) if part in places), "")
        if not name:
            check_depth(folder, inside)
        tree = scan(folder / name)
        names = class_names(folder, list(tree))
        above = f"{name}/" if name else ""
        images = labelled(tree, numbered(tree), names, folder / name, above)
        return {"train": images, "val": [], "test": images}


def _given(folder: Path, places: Mapping[str, str]) -> Lists:
    """The lists of the folders of the parts, part -> its folder in `folder`."""
    remark(folder, places.values())
    trees = {part: scan(folder / name) for part, name in places.items() if _holds(folder, name)}
    labels = numbered(trees["train"])
    names = class_names(folder, [name for tree in trees.values() for name in tree])
    lists: Lists = {part: [] for part in PARTS}
    for part, tree in trees.items():
        for name in tree:
            if name not in labels and (other := same_spelling(name, labels)):
                raise NPTError(
                    f"{folder / places[part] / name} has the name of the training class {other} in "
                    "another spelling: rename one of the folders."
                )
        lists[part] = labelled(tree, labels, names, folder / places[part], f"{places[part]}/")
    return lists


def _holds(folder: Path, name: str) -> bool:
    """Whether the folder of a part has class folders. NPTError if an empty one must have some."""
    if folders_in(folder / name):
        return True
    if part_of(name) == "val":
        warnings.warn(f"{folder / name} is empty: there are no validation images.", stacklevel=4)
        return False
    raise NPTError(
        f"{folder / name} has no folders: sort the images into one folder for each class"
        + (", or remove it, and val/ is the test set." if part_of(name) == "test" else ".")
    )


def part_of(name: str) -> str:
    """The part that a folder of this name holds; "" for another name."""
    return PART_NAMES.get(name.casefold(), "")


def parts_in(folder: Path, inside: list[str]) -> dict[str, str]:
    """Part -> its folder, if the folders `inside` are parts rather than classes; else empty.

    A class may be named train if its folder contains no folders. NPTError if there is another
    folder beside those of the parts, because then it is unclear which of the two is meant, and if
    two are of one part.
    """
    found = {part: [name for name in inside if part_of(name) == part] for part in PARTS}
    others = [name for name in inside if not part_of(name)]
    train = next(iter(found["train"]), "")
    if not train or not (folders_in(folder / train) or (train in PARTS and not others)):
        return {}
    if others:
        raise NPTError(
            f"{folder / others[0]} is beside {train}/, where only val/ and test/ are allowed: "
            "rename or move it."
        )
    for part, names in found.items():
        if len(names) > 1:
            both = " and ".join(str(folder / name) for name in names)
            raise NPTError(f"{both} are both for {part}: merge them, or move one away.")
    return {part: names[0] for part, names in found.items() if names}


def check_depth(folder: Path, inside: list[str]) -> None:
    """NPTError if the only folder in `folder` holds the class folders, as unzipping makes it."""
    if len(inside) == 1:
        deeper = images_below(folder / inside[0])
        if deeper and "." not in deeper:
            raise NPTError(
                f"{folder} has only the folder {inside[0]}, and the images are in folders in that: "
                f"set --root to {folder / inside[0]}."
            )


def class_names(folder: Path, classes: list[str]) -> dict[str, str]:
    """Class folder -> class name, from classnames.json or classnames.txt in `folder`.

    The json file maps folders to names; the text file has lines "<class folder> <class name>". Both
    may contain further folders. Without either file the folder's name is used, with spaces for
    underscores. NPTError if a class has no name or two, or the file cannot be read.
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
            if name not in names and (other := same_spelling(name, names)):
                names[name] = names[other]
            if not isinstance(names.get(name), str) or not names[name].strip():
                raise NPTError(f"{file} has no name for the class folder {name}: add it.")
        return names
    return {name: name.replace("_", " ").strip() for name in classes}


def _from_json(file: Path, classes: list[str]) -> dict[str, str]:
    names = read_json(file)
    if not isinstance(names, dict):
        raise ValueError("it is not a table")
    return names


def _from_text(file: Path, classes: list[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    folders = {unicodedata.normalize("NFC", name): name for name in classes}
    for line in read_lines(file):
        line = unicodedata.normalize("NFC", line)
        spaced = line.replace("\t", " ") + " "
        matches = [name for name in folders if spaced.startswith(f"{name} ")] or [
            name for name in folders if folded(spaced[: len(name) + 1]) == f"{folded(name)} "
        ]
        if matches:  # the longest one: the name of a folder may start with that of another
            found = max(matches, key=len)
            folder, name = folders[found], line[len(found) :].strip()
            if names.setdefault(folder, name) != name:
                raise ValueError(f"{folder} has the names {names[folder]} and {name}")
    return names

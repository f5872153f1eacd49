"""Lists trees of images, <tree>/<class folder>/<image>, and caches the lists of large trees.

Listing a tree of 1.28 million files takes minutes on a network disk. The list is therefore cached
in a JSON file beside the tree, or in the user's cache if that folder cannot be written. The file
contains the modification time of each class folder, which the system updates when a file is added,
removed or renamed; only folders that changed are listed again. It also contains a checksum: a
damaged file is not used.
"""

from __future__ import annotations

import gc
import hashlib
import os
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from npt.datasets.base import Image, read_json, readable
from npt.datasets.catalog import CLASSNAMES
from npt.errors import NPTError
from npt.files import cache_folder, write_json

VERSION = 1  # of the cache file
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm"),
)
CLOCK_NS = 2_000_000_000  # coarsest resolution of modification times in file systems

PASSED_OVER = {  # files and folders that systems and programs leave; in small letters
    *("__macosx", ".ds_store", ".ipynb_checkpoints", "@eadir", "$recycle.bin", "lost+found"),
    *("system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}

Tree = dict[str, list[str]]  # class folder -> its images, both sorted
Listing = dict[str, list[Any]]  # class folder -> [modification time in ns, "image/image/..."]


def scan(tree: Path) -> Tree:
    """The images of each class folder; hidden files and folders are skipped.

    Sorted, because the few-shot draw depends on the order, and disks list files in different
    orders. Warns about files without an image suffix, and images at other places than in a class
    folder; prints what systems have left there. NPTError if there is no class folder.
    """
    others: list[str] = []
    images = {name: _images(tree / name, others) for name in class_folders(tree)}
    remark(tree, images, others)
    return images


def remark(tree: Path, used: Collection[str], others: Iterable[str] = ()) -> None:
    """Say what there is in `tree` beside the folders that are used, and `others` in them."""
    _warn([*others, *(name for name in _names(tree) if name not in used)], tree)


def class_folders(tree: Path) -> list[str]:
    """The names of the folders in `tree`, sorted, but those PASSED_OVER. NPTError without any."""
    if not tree.is_dir():
        raise NPTError(f"{tree} is missing: it must contain one folder of images for each class.")
    folders = folders_in(tree)
    if not folders:
        raise NPTError(f"{tree} has no folders: sort the images into one folder for each class.")
    return folders


def folders_in(place: Path) -> list[str]:
    """As `class_folders`, but there may be none."""
    try:
        with os.scandir(place) as entries:
            return sorted(e.name for e in entries if not _is_hidden(e.name) and e.is_dir())
    except OSError as error:
        raise _not_listed(place, error) from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in PASSED_OVER


def images_below(folder: Path) -> dict[str, int]:
    """The number of images in `folder` (".") and in each folder at any depth in it, by its path."""
    found = {}
    for place, inside, names in os.walk(folder):
        inside[:] = sorted(name for name in inside if not _is_hidden(name))
        number = sum(not _is_hidden(n) and n.lower().endswith(SUFFIXES) for n in names)
        if number:
            found[os.path.relpath(place, folder)] = number
    return found


def image_files(folder: Path) -> list[str]:
    """The paths of the images in `folder` and the folders in it, in order; links are followed.

    A folder that several links lead to is read once. NPTError for one that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise _not_listed(Path(os.fsdecode(error.filename)), error) from error

    found, seen = [], {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        inside = {name: os.path.join(place, name) for name in folders if not _is_hidden(name)}
        folders[:] = []
        for name, path in sorted(inside.items(), key=lambda item: (os.path.islink(item[1]), item)):
            if os.path.realpath(path) not in seen:
                seen.add(os.path.realpath(path))
                folders.append(name)
        names = (n for n in sorted(files) if not _is_hidden(n) and n.lower().endswith(SUFFIXES))
        found += [os.path.join(place, name) for name in names]
    return found


def numbered(folders: Iterable[str]) -> dict[str, int]:
    """Class folder -> label 0, 1, ..., in sorted order."""
    return {folder: label for label, folder in enumerate(sorted(folders))}


def labelled(
    tree: Tree, labels: Mapping[str, int], names: Mapping[str, str], where: Path, above: str = ""
) -> list[Image]:
    """The images of `tree`, which was listed in `where`; their paths start with `above`.

    `labels` and `names` map class folders to labels and class names. NPTError if a folder is
    missing in one of them, or has no image.
    """
    for folder, files in tree.items():
        if folder not in names:
            raise NPTError(f"{where / folder} has no class name: add {folder} to {CLASSNAMES}.")
        if folder not in labels:
            raise NPTError(f"{where / folder} is not among the training classes: remove it.")
        if not files:
            raise NPTError(_why_empty(where / folder))
    was_enabled = gc.isenabled()
    gc.disable()  # searching a million new tuples for cycles takes longer than making them
    try:
        return [
            Image(f"{above}{folder}/{file}", labels[folder], names[folder])
            for folder, files in tree.items()
            for file in files
        ]
    finally:
        if was_enabled:
            gc.enable()


def remembered(tree: Path, home: Path) -> Tree:
    """As `scan`, but cached in a file in the folder `home`, or else in the user's cache."""
    files = cache_files(tree, home)
    cached = [_read(file) for file in files]
    if not any(cached):
        print(f"Listing {tree}; the list is cached")
    current: Listing = {}
    others: list[str] = []
    for name in class_folders(tree):
        now = time.time_ns()
        changed = os.stat(tree / name).st_mtime_ns
        entries = (folders[name] for folders in cached if name in folders)
        entry = next((entry for entry in entries if entry[0] == changed), None)
        if entry is None:
            # A file added within the same clock tick would not change the time: store 0 instead.
            stored = changed if changed < now - CLOCK_NS else 0
            entry = [stored, "/".join(_images(tree / name, others))]
        current[name] = entry
    if current not in cached:
        _write(current, files)
        _warn(others, tree)
    return {name: images.split("/") if images else [] for name, (_, images) in current.items()}


def cache_files(tree: Path, home: Path) -> list[Path]:
    """The files in which the list of `tree` may be cached, in order of preference.

    The name of the file in the user's cache contains a hash of the tree's full path.
    """
    name = f"npt-listing-v{VERSION}-{tree.name}"
    key = hashlib.sha256(os.fsencode(tree.absolute())).hexdigest()[:16]
    return [home / f"{name}.json", cache_folder() / f"{name}-{key}.json"]


def _images(folder: Path, others: list[str]) -> list[str]:
    """The files with an image suffix in `folder`, sorted; all others are added to `others`."""
    names = _names(folder)
    images = [n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    if len(images) < len(names):
        known = set(images)
        others += [f"{folder.name}/{name}" for name in names if name not in known]
    return images


def _names(folder: Path) -> list[str]:
    """All that is in a folder, sorted; of what is hidden only what is PASSED_OVER."""
    try:
        return sorted(
            name
            for name in os.listdir(folder)
            if not name.startswith(".") or _is_left_by_system(name)
        )
    except OSError as error:
        raise _not_listed(folder, error) from error


def _is_left_by_system(name: str) -> bool:
    """Whether systems leave it; ._photo.jpg has what macOS knows about photo.jpg."""
    return name.casefold() in PASSED_OVER or name.startswith("._")


def _not_listed(folder: Path, error: OSError) -> NPTError:
    return NPTError(
        f"{folder} cannot be listed ({error.strerror}): check the folder and its permissions."
    )


def _why_empty(folder: Path) -> str:
    """Why a class folder has no image, in a sentence."""
    deeper = images_below(folder)
    if not deeper:
        return f"{folder} contains no image: add some, or remove the folder."
    inner, number = next(iter(deeper.items()))
    return (
        f"{folder} contains no image itself, but folders in it do, such as {readable(inner)} with "
        f"{number:,}: move the images up into {folder.name}, or, if the folders in it are the "
        f"classes, set --root to {folder}."
    )


SENTENCES = {  # what `_kind` finds beside class folders and the images in them
    "file": "files in {tree} have no image suffix, such as {first}: they are ignored.",
    "loose": (
        "images lie in {tree} itself, such as {first}: they belong to no class and are ignored; "
        "move them into the folder of their class."
    ),
    "folder": (
        "folders inside class folders of {tree} contain images, such as {first}: those are "
        "ignored; move them up into the class folder."
    ),
    "link": "links in {tree} lead nowhere, such as {first}: they are ignored.",
}


def _kind(place: Path, inside: bool) -> str:
    """A key of SENTENCES, "left" or "" for what needs no remark. inside: in a class folder"""
    if _is_left_by_system(place.name):
        return "left"
    if place.is_dir():
        return "folder" if images_below(place) else ""
    if place.is_symlink() and not place.exists():
        return "link"
    if place.name.lower().endswith(SUFFIXES):
        return "loose"
    return "file" if inside else ""  # beside class folders there may be a list of their names


def _warn(others: Iterable[str], tree: Path) -> None:
    """Say what there is beside class folders and the images in them. `others`: below `tree`."""
    found: dict[str, list[str]] = {}
    for name in others:
        found.setdefault(_kind(tree / name, "/" in name), []).append(name)
    left = Counter(os.path.basename(name).strip() for name in found.get("left", ()))
    if left:
        few = [f"{name} ({number:,})" for name, number in left.most_common(3)]
        more = [f"{len(left) - len(few):,} other names"] if len(left) > len(few) else []
        print(f"Passed over in {tree}: {readable(', '.join(few + more))}")
    for kind, sentence in SENTENCES.items():
        if names := found.get(kind):
            said = sentence.format(tree=tree, first=readable(names[0]))
            warnings.warn(f"{len(names):,} {said}", stacklevel=3)


def _read(file: Path) -> Listing:
    """The content of a cache file; empty if the file is missing or damaged."""
    try:
        content = read_json(file)
        listing = content["folders"]
        valid = content["sha256"] == _checksum(listing)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return listing if valid else {}


def _write(folders: Listing, files: list[Path]) -> None:
    """Write the first of the files that can be written; do nothing if none can."""
    for file in files:
        with suppress(OSError):
            write_json(file, {"folders": folders, "sha256": _checksum(folders)})
            return


def _checksum(folders: Listing) -> str:
    value = hashlib.sha256()
    for name, (changed, images) in folders.items():
        value.update(os.fsencode(f"{name}\0{changed}\0{images}\0"))
    return value.hexdigest()

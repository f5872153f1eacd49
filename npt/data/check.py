"""What of a data set is on this disk: its lists, its images, and what is missing or unreadable."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from npt.data.sources import Piece, pieces
from npt.datasets.base import PARTS, check_classes
from npt.datasets.catalog import Row
from npt.errors import NPTError

THREADS = 2 * (os.cpu_count() or 1)  # decoding leaves Python's lock alone


@dataclass
class Report:
    """What was found of a data set.

    images: listed images in train, val, test; None where the lists cannot be told
    missing, unreadable: paths of listed images that are not there, or do not decode
    lacking: pieces (see `sources`) of which something is not there
    problem: why it cannot be loaded, "" if it can
    """

    row: Row
    found: bool
    images: tuple[int, int, int] | None = None
    classes: int | None = None
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    lacking: list[Piece] = field(default_factory=list)
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def has_split(self) -> bool:
        """Whether nothing is to be made up: the split file is there, or there is no such file."""
        return not any(_is_split(self.row, piece) for piece in self.lacking)

    @property
    def usable(self) -> bool:
        """Whether it can be trained and tested on, if perhaps on another split than others."""
        return self.found and not (self.problem or self.missing or self.unreadable)

    @property
    def whole(self) -> bool:
        return self.usable and self.has_split


def survey(row: Row, root: Path, deep: bool = False) -> Report:
    """What the folder of a data set holds; `deep` decodes every image. Nothing is written to it
    but the kept list of a large tree."""
    folder = root / row.folder
    report = Report(row, folder.is_dir())
    report.lacking = [
        piece
        for piece in pieces(row)
        if not all((root / place).exists() for place in piece.goes.values())
    ]
    if not report.found:
        return report
    tree = folder / row.images
    if not tree.is_dir() or not any(tree.iterdir()):
        report.problem = f"{tree} is missing or empty"
        return report
    if not report.has_split:
        report.notes.append(
            f"there is no {row.split}: a split is made on first use, and figures on it do not "
            "compare with published ones"
        )
    present = _listed(report, folder, tree)
    if deep:
        report.unreadable = unreadable(present, row.name)
    return report


def _listed(report: Report, folder: Path, tree: Path) -> list[str]:
    """Fill in what the data set's own lists say; returns the images that are there."""
    from dassl.data.datasets import DATASET_REGISTRY

    row = report.row
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            lists = DATASET_REGISTRY.get(row.name).lists(folder)
            check_classes(lists, folder / row.split)
        except NPTError as error:
            report.problem = str(error).rstrip(".")
            return []
    report.notes += [str(w.message) for w in caught if w.category is UserWarning]
    report.images = tuple(
        len(lists[part]) if said else 0  # a variant's training images are its test images again
        for part, said in zip(PARTS, row.counts, strict=True)
    )
    images = {image.path: image for part in PARTS for image in lists[part]}
    report.classes = len({image.label for image in images.values()})
    paths = [os.path.join(tree, path) for path in images]
    if row.kind == "split":
        there = [os.path.isfile(path) for path in paths]
        report.missing = [path for path, is_there in zip(paths, there, strict=True) if not is_there]
        paths = [path for path, is_there in zip(paths, there, strict=True) if is_there]
    if report.images != row.counts and report.has_split:
        said = f"{', '.join(f'{n:,}' for n in row.counts)} were published"
        if row.kind == "split":
            report.notes.append(f"another split: {said}")
        else:  # what is there is all that is known, so fewer means that some are missing
            report.problem = f"there are not as many images as there should be: {said}"
    return paths


def unreadable(paths: list[str], name: str) -> list[str]:
    """The images of `paths` that do not decode to their last pixel."""
    with ThreadPool(THREADS) as pool:
        results = pool.imap(_decodes, paths, chunksize=32)
        bar = tqdm(results, desc=name, total=len(paths), unit=" images", disable=None)
        return [path for path, good in zip(paths, bar, strict=True) if not good]


def _decodes(path: str) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # Pillow raises nearly anything on broken files
        return False
    return True


def table(reports: list[Report], deep: bool = False) -> str:
    """A row for each data set."""
    header = ["data set", "found", *PARTS, "classes", "missing", "split file"]
    rows = []
    for report in reports:
        counts = report.images or ("-",) * 3
        split = ("yes" if report.has_split else "no") if report.row.split else "(none needed)"
        cells = [report.row.name, "yes" if report.found else "no"]
        cells += [f"{n:,}" if isinstance(n, int) else n for n in counts]
        cells += [report.classes if report.classes is not None else "-"]
        cells += [f"{len(report.missing):,}" if report.images else "-"]
        cells += [split if report.found else "-"]
        if deep:
            cells.append(f"{len(report.unreadable):,}" if report.found else "-")
        rows.append(cells)
    header += ["unreadable"] if deep else []
    align = ("left", "left", *("right",) * 5, "left", *(("right",) if deep else ()))
    return tabulate(rows, headers=header, colalign=align, disable_numparse=True)


def explain(report: Report, root: Path) -> list[str]:
    """Lines on what is wrong, and for what is missing where it comes from and where it goes."""
    lines = [report.problem] if report.problem else []
    for paths, what in ((report.missing, "missing"), (report.unreadable, "unreadable")):
        if paths:
            others = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
            lines.append(f"{what}: {paths[0]}{others}")
    lines += report.notes
    for piece in report.lacking:
        if _is_split(report.row, piece) or not report.usable:
            places = ", ".join(str(root / place) for place in piece.goes.values())
            why = f": {piece.by_hand}" if piece.by_hand else ""
            lines.append(f"{places}\n      comes from {piece.url}{why}")
    if any(not piece.by_hand for piece in report.lacking):
        lines.append(f"python -m npt.data prepare {report.row.name} --root {root}")
    return [f"{report.row.name}:", *(f"    {line}" for line in lines)] if lines else []


def _is_split(row: Row, piece: Piece) -> bool:
    return bool(row.split) and f"{row.folder}/{row.split}" in piece.goes.values()

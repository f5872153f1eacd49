"""Checks the files of a data set: which are there, and which are missing or unreadable."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from npt.data.deep import Place, examine_all, remarks
from npt.data.sources import Piece, pieces
from npt.datasets.base import PARTS, check_classes
from npt.datasets.catalog import Row
from npt.datasets.spelling import Spelling
from npt.errors import NPTError

OWN_KIND = "own"
OWN = Row(  # a folder of one's own images, which is the root itself
    name="CustomFolder",
    config="custom_folder",
    template="a photo of a {}.",
    folder="",
    images="",
    kind=OWN_KIND,
    made_from="",
    classes=0,
    counts=(0, 0, 0),
    sources=(),
)
LISTED = 10  # unreadable images that are named


@dataclass
class Report:
    """The result of checking a data set.

    found: whether its folder exists
    images: numbers of listed images in train, val, test; None if there are no valid lists
    missing: paths of listed images that do not exist
    unreadable: of each listed image that cannot be decoded, the sentence that says why
    missing_pieces: downloads (see `sources`) with files that do not exist
    problem: why the data set cannot be loaded; "" if it can
    notes: further remarks for the user
    """

    row: Row
    found: bool
    images: tuple[int, int, int] | None = None
    classes: int | None = None
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    missing_pieces: list[Piece] = field(default_factory=list)
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def has_split(self) -> bool:
        """Whether the published lists are there, so that no split has to be made."""
        return not any(_is_split(self.row, piece) for piece in self.missing_pieces)

    @property
    def usable(self) -> bool:
        """Whether it can be used for training and testing, possibly on a split made by NPT."""
        return self.found and not (self.problem or self.missing or self.unreadable)

    @property
    def complete(self) -> bool:
        """Whether it can be used, on the published split."""
        return self.usable and self.has_split


def survey(row: Row, root: Path, deep: bool = False) -> Report:
    """Check the folder of a data set, or of one's own images (OWN); `deep` decodes every image.

    Writes nothing except the cached list of ImageNet's images.
    """
    folder = root / row.folder
    report = Report(row, folder.is_dir())
    report.missing_pieces = [
        piece
        for piece in pieces(row)
        if not all((root / place).exists() for place in piece.places.values())
    ]
    if not report.found:
        return report
    tree = folder / row.images
    if not tree.is_dir() or not any(tree.iterdir()):
        report.problem = f"{tree} is missing or empty"
        return report
    if not report.has_split:
        report.notes.append(
            f"there is no {row.split}: a split is made on first use, and results on it are not "
            "comparable with published ones"
        )
    present = _listed(report, folder, tree)
    if deep:
        upright = row.kind == OWN_KIND  # as configs/datasets/custom_folder.yaml says
        facts = examine_all(present, row.name, upright)
        report.unreadable = [found.error for found in facts.values() if found.error]
        report.notes += remarks(present, facts, upright)
    return report


def _listed(report: Report, folder: Path, tree: Path) -> dict[str, Place]:
    """Load the lists and add what they contain to the report; return the existing images."""
    from dassl.data.datasets import DATASET_REGISTRY

    row = report.row
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            lists = DATASET_REGISTRY.get(row.name).lists(folder)
            check_classes(lists, folder / row.split)
        except NPTError as error:
            report.problem = str(error).rstrip(".")
            return {}
    report.notes += [str(w.message) for w in caught if w.category is UserWarning]
    own = row.kind == OWN_KIND
    train, val, test = (
        len(lists[part]) if published or own else 0  # a variant trains on its test images
        for part, published in zip(PARTS, row.counts, strict=True)
    )
    report.images = train, val, test
    report.classes = len({image.label for part in PARTS for image in lists[part]})
    places: dict[str, Place] = {}
    for part in PARTS:
        for image in lists[part]:  # one that is listed twice has the first of its places
            places.setdefault(os.path.join(tree, image.path), Place(part, image.classname))
    if row.kind == "split":
        absent, spelling = [path for path in places if not os.path.isfile(path)], Spelling(tree)
        for path in absent:
            place, found = places.pop(path), spelling.find(os.path.relpath(path, tree))
            if found is None:
                report.missing.append(path)
            else:
                places.setdefault(str(found), place)
        if spelling.note:
            report.notes.append(spelling.note)
    if own:
        return places
    if report.images != row.counts and report.has_split:
        expected = f"the published numbers are {', '.join(f'{n:,}' for n in row.counts)}"
        if row.kind == "split":
            report.notes.append(f"this is not the published split: {expected}")
        else:  # there is no list of the images, so another number means that files are missing
            report.problem = f"the number of images is wrong: {expected}"
    return places


def table(reports: list[Report], deep: bool = False) -> str:
    """A row for each data set."""
    header = ["data set", "found", *PARTS, "classes", "missing", "split file"]
    rows = []
    for report in reports:
        counts = [f"{n:,}" for n in report.images] if report.images else ["-"] * len(PARTS)
        split = ("yes" if report.has_split else "no") if report.row.split else "(none needed)"
        cells = [report.row.name, "yes" if report.found else "no", *counts]
        cells += [str(report.classes) if report.classes is not None else "-"]
        cells += [f"{len(report.missing):,}" if report.images else "-"]
        cells += [split if report.found else "-"]
        if deep:
            cells.append(f"{len(report.unreadable):,}" if report.found else "-")
        rows.append(cells)
    header += ["unreadable"] if deep else []
    align = ("left", "left", *("right",) * 5, "left", *(("right",) if deep else ()))
    return tabulate(rows, headers=header, colalign=align, disable_numparse=True)


def explain(report: Report, root: Path) -> list[str]:
    """Lines that describe the problems, and the source and target of each missing piece."""
    lines = [report.problem] if report.problem else []
    if report.missing:
        others = f" and {len(report.missing) - 1:,} more" if len(report.missing) > 1 else ""
        lines.append(f"missing: {report.missing[0]}{others}")
    lines += report.unreadable[:LISTED]
    if len(report.unreadable) > LISTED:
        lines.append(f"and {len(report.unreadable) - LISTED:,} more that cannot be read")
    lines += report.notes
    for piece in report.missing_pieces:
        if _is_split(report.row, piece) or not report.usable:
            places = ", ".join(str(root / place) for place in piece.places.values())
            why = f": {piece.by_hand}" if piece.by_hand else ""
            lines.append(f"{places}\n      comes from {piece.url}{why}")
    if any(report.row.mirror or not piece.by_hand for piece in report.missing_pieces):
        lines.append(f"python -m npt.data prepare {report.row.name} --root {root}")
    return [f"{report.row.name}:", *(f"    {line}" for line in lines)] if lines else []


def _is_split(row: Row, piece: Piece) -> bool:
    return bool(row.split) and f"{row.folder}/{row.split}" in piece.places.values()

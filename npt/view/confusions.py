"""The confusion matrix of a run as a drawing, and the pairs that are confused most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from npt.view.names import shortened

MOST = 60  # classes in a drawing
PAIRS = 20
OTHERS = "others"
LETTER, AXES = 6.6, 18  # pixels: of a letter of a label, about; of the line above the labels
NARROWEST = 140  # pixels, for the words of the axes
NAME = 22  # letters of a label


@dataclass(frozen=True)
class Cell:
    """A square of the matrix: its place in pixels, its images, and their share of the class."""

    x: int
    y: int
    images: int
    share: float
    hit: bool
    words: str


@dataclass(frozen=True)
class Matrix:
    """Rows are true classes, columns what they were taken for; sizes in pixels."""

    rows: list[str]
    columns: list[str]
    cells: list[Cell]
    square: int
    margin: int  # for the labels at the left
    top: int  # for those above, and the words of the axes
    left_out: int  # classes

    @property
    def width(self) -> int:
        return max(NARROWEST, self.margin + self.square * len(self.columns) + 4)

    @property
    def height(self) -> int:
        return self.top + self.square * len(self.rows) + 4

    @property
    def numbered(self) -> bool:
        """Whether the squares have room for numbers."""
        return self.square >= 22


def matrix(pairs: Sequence[tuple[int, int, int]], per_class: Sequence[dict[str, Any]]) -> Matrix:
    """The matrix of label, prediction, images; of more than MOST classes the least recognised."""
    shown = [k for k, entry in enumerate(per_class) if entry.get("images")]
    shown = sorted(sorted(shown, key=lambda k: per_class[k]["accuracy"])[:MOST])
    place = {label: i for i, label in enumerate(shown)}
    left_out = len(per_class) - len(shown)
    labels = shortened([per_class[k]["class"] for k in shown], NAME)
    square = 26 if len(shown) <= 16 else 15
    margin = int(LETTER * max(map(len, [*labels, OTHERS]))) + 10
    images: Counter[tuple[int, int]] = Counter()
    for label, predicted, count in pairs:
        if label in place:
            images[label, place.get(predicted, len(shown))] += count
    cells = []
    for (label, column), count in sorted(images.items()):
        share = count / per_class[label]["images"]
        row = place[label]
        taken = per_class[shown[column]]["class"] if column < len(shown) else OTHERS
        words = f"{per_class[label]['class']} → {taken}: {count} ({100 * share:.0f} %)"
        spot = (margin + square * column, margin + AXES + square * row)
        cells.append(Cell(*spot, count, share, column == row, words))
    columns = [*labels, OTHERS] if any(c == len(shown) for _, c in images) else labels
    return Matrix(labels, columns, cells, square, margin, margin + AXES, left_out)


def confused(
    pairs: Sequence[tuple[int, int, int]], per_class: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The pairs of different classes with the most images, at most PAIRS."""
    wrong = [pair for pair in pairs if pair[0] != pair[1]]
    wrong.sort(key=lambda pair: (-pair[2], pair[:2]))
    return [
        {
            "label": per_class[label]["class"],
            "predicted": _name(per_class, predicted),
            "images": images,
            "share": 100 * images / per_class[label]["images"],
        }
        for label, predicted, images in wrong[:PAIRS]
    ]


def taken_for(
    pairs: Sequence[tuple[int, int, int]], per_class: Sequence[dict[str, Any]]
) -> list[str]:
    """What each class is taken for most often when it is not recognised; "" if it always is."""
    most: dict[int, tuple[int, int]] = {}  # label -> images, predicted label
    for label, predicted, images in pairs:
        if label != predicted and images > most.get(label, (0, 0))[0]:
            most[label] = (images, predicted)
    return [_name(per_class, most[k][1]) if k in most else "" for k in range(len(per_class))]


def _name(per_class: Sequence[dict[str, Any]], label: int) -> str:
    return per_class[label]["class"] if label < len(per_class) else f"({label})"

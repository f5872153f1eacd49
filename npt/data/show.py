"""Training images per class: all images, the few-shot draw, and the draws with imbalance.

With remedies in the config, such as class weights, also what they give each class of each draw.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from npt.errors import NPTError
from npt.host.thinning import class_counts, class_frequency, tested_only
from npt.imbalance import summary_of_counts

EDGE = 15  # classes at each end of a shortened table
DRAWN = "drawn"  # heading of the few-shot draw, before any imbalance
BALANCED = {"IMBALANCE_TYPE": "exp", "IMBALANCE_RATIO": 1.0}
# The last rows: of the columns of counts, by the names in `summary_of_counts`.
LAST = {
    "total": "images",
    "largest": "largest",
    "smallest": "smallest",
    "with one image": "singles",
    "ratio obtained": "ratio",
}


@dataclass(frozen=True)
class Counts:
    """A number for each class.

    `all_images`: training images before any draw. `drawn`: heading -> images of the few-shot draw,
    and of the draws with imbalance. `remedies`: heading -> what the remedies in the config give.
    """

    name: str
    classnames: list[str]
    all_images: list[int]
    drawn: dict[str, list[int]]
    remedies: dict[str, list[float]]


def count(cfg: Any, ratios: Sequence[float]) -> Counts:
    """The counts of the data set in `cfg`, for the few-shot draw and for each imbalance ratio.

    The type of imbalance is that of `cfg`; "natural" has no ratios, and makes one column.
    """
    from npt import remedies

    dataset = built(cfg, BALANCED)
    if not dataset.train_x or tested_only(dataset):
        raise NPTError(
            f"{cfg.DATASET.NAME} has no training images, so there is no imbalance to show: "
            "it is for testing only."
        )
    drawn = {DRAWN: class_counts(dataset)}
    for heading, keys in _asked(cfg, ratios).items():
        drawn[heading] = class_counts(built(cfg, keys))
    of_remedies = {
        f"{heading}, {name}": values
        for heading, numbers in drawn.items()
        for name, values in remedies.columns(numbers, cfg).items()
    }
    return Counts(
        cfg.DATASET.NAME, list(dataset.classnames), _all_images(cfg, dataset), drawn, of_remedies
    )


def _all_images(cfg: Any, dataset: Any) -> list[int]:
    """The images of each class before the few-shot draw.

    A data set that does not say them is built once more, without a draw.
    """
    labels, frequency = range(dataset.num_classes), class_frequency(dataset)
    if all(label in frequency for label in labels):
        return [int(frequency[label]) for label in labels]
    return class_counts(built(cfg, {**BALANCED, "NUM_SHOTS": -1}))


def _asked(cfg: Any, ratios: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Heading -> the keys of a draw with imbalance."""
    kind = cfg.DATASET.IMBALANCE_TYPE
    if kind == "natural":
        return {kind: {}}
    prefix = "" if kind == "exp" else f"{kind}, "
    return {f"{prefix}ratio {x:g}": {"IMBALANCE_RATIO": float(x)} for x in ratios if x != 1}


def built(cfg: Any, keys: dict[str, Any]) -> Any:
    """The data set in `cfg` with other keys under DATASET, built without its output."""
    from dassl.data import data_manager

    changed = cfg.clone()
    changed.defrost()
    changed.DATASET.update(keys)
    changed.freeze()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        return data_manager.build_dataset(changed)


def table(counts: Counts, every_class: bool = False) -> str:
    """A row for each class, and the real numbers of each column at the end.

    The middle rows of a long table are omitted.
    """
    images = {"all images": counts.all_images, **counts.drawn}
    columns = [*images.values(), *counts.remedies.values()]
    rows = [
        [str(label), name, *map(_number, numbers)]
        for label, (name, numbers) in enumerate(
            zip(counts.classnames, zip(*columns, strict=True), strict=True)
        )
    ]
    if len(rows) > 2 * EDGE and not every_class:
        omitted = ["", f"... {len(rows) - 2 * EDGE} more (--all)", *("" for _ in columns)]
        rows = [*rows[:EDGE], omitted, *rows[-EDGE:]]
    summaries = [summary_of_counts(numbers) for numbers in images.values()]
    for heading, name in LAST.items():
        rows.append(["", heading, *(_number(found[name]) for found in summaries)])
    headings = [heading.replace(", ", "\n") for heading in (*images, *counts.remedies)]
    return tabulate(
        [[*row, *[""] * (2 + len(columns) - len(row))] for row in rows],
        headers=["", "class", *headings],
        colalign=("right", "left", *("right" for _ in columns)),
        disable_numparse=True,  # class names may be numbers, and counts are not rounded
    )


def _number(value: float) -> str:
    whole = isinstance(value, int) or abs(value) >= 1000
    return f"{value:.0f}" if whole else f"{value:.3g}"


def plot(counts: Counts, file: Path) -> None:
    """Save a figure of all images (top) and of the draws (bottom). Needs the extra "report"."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise NPTError("the picture needs matplotlib: pip install 'npt-clip[report]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    number = len(counts.classnames)
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(min(14, 5 + number / 8), 5), layout="constrained"
    )
    above.bar(range(number), counts.all_images, width=0.9, color="0.6")
    above.set_ylabel("all images")
    above.set_title(f"{counts.name}: training images of each class")
    for place, (heading, numbers) in enumerate(counts.drawn.items()):
        if heading == DRAWN:
            below.bar(range(number), numbers, width=0.9, color="0.85", label=heading)
        else:
            below.step(range(number), numbers, where="mid", color=f"C{place - 1}", label=heading)
    below.set_ylabel("drawn for training")
    below.set_ylim(bottom=0)
    below.legend()
    if number <= 50:
        below.set_xticks(range(number), counts.classnames, rotation=90, fontsize=8)
    else:
        below.set_xlabel("class, by label")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)

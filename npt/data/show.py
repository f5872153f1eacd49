"""Training images per class: all images, the few-shot draw, and the draws with imbalance."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from npt.errors import NPTError
from npt.host.thinning import tested_only

EDGE = 15  # classes at each end of a shortened table


@dataclass(frozen=True)
class Counts:
    """Training images per class: `all_images` before any draw, `drawn` for each imbalance ratio."""

    name: str
    classnames: list[str]
    all_images: list[int]
    drawn: dict[float, list[int]]


def count(cfg: Any, ratios: Sequence[float]) -> Counts:
    """The counts of the data set in `cfg`, for the balanced draw and for each imbalance ratio."""
    from dassl.data import data_manager

    drawn: dict[float, list[int]] = {}
    for ratio in dict.fromkeys((1.0, *ratios)):
        changed = cfg.clone()
        changed.defrost()
        changed.DATASET.IMBALANCE_RATIO = float(ratio)
        changed.freeze()
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            dataset: Any = data_manager.build_dataset(changed)
        if not dataset.train_x or tested_only(dataset):
            raise NPTError(
                f"{cfg.DATASET.NAME} has no training images, so there is no imbalance to show: "
                "it is for testing only."
            )
        found = Counter(item.label for item in dataset.train_x)
        drawn[ratio] = [found[label] for label in range(dataset.num_classes)]
    frequency = getattr(dataset, "class_frequency", None) or dict(enumerate(drawn[1.0]))
    all_images = [frequency[label] for label in range(dataset.num_classes)]
    return Counts(cfg.DATASET.NAME, list(dataset.classnames), all_images, drawn)


def table(counts: Counts, every_class: bool = False) -> str:
    """A row for each class, and the total. The middle rows of a long table are omitted."""
    columns = [counts.all_images, *counts.drawn.values()]
    header = ["", "class", "all images", *(_label(ratio) for ratio in counts.drawn)]
    rows = [
        [label, name, *numbers]
        for label, (name, numbers) in enumerate(
            zip(counts.classnames, zip(*columns, strict=True), strict=True)
        )
    ]
    total: list[Any] = ["", "total", *(sum(column) for column in columns)]
    if len(rows) > 2 * EDGE and not every_class:
        omitted = ["", f"... {len(rows) - 2 * EDGE} more (--all)", *("" for _ in columns)]
        rows = [*rows[:EDGE], omitted, *rows[-EDGE:]]
    return tabulate([*rows, total], headers=header)


def _label(ratio: float) -> str:
    return "drawn" if ratio == 1 else f"ratio {ratio:g}"


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
    for place, (ratio, numbers) in enumerate(counts.drawn.items()):
        if ratio == 1:
            below.bar(range(number), numbers, width=0.9, color="0.85", label=_label(ratio))
        else:
            below.step(
                range(number), numbers, where="mid", color=f"C{place - 1}", label=_label(ratio)
            )
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

"""The figures of an experiment as a table of all that it asks for, with gaps for missing runs.

Every table and figure of the report is made from it, so none can overlook a missing run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from npt.experiments import state
from npt.experiments.plan import Part, Run, dataset_name
from npt.results import RESULT

HEAD = ["method", "ratio", "seed", "trained", "setting", "source", "part", "dataset"]
SPLIT = "test"


def frame_of(part: Part, out: str | Path) -> pd.DataFrame:
    """One row for each method, ratio, seed, training data set and evaluation of the test images.

    Columns: method, ratio, seed, trained, setting (whose settings it was trained with: "paper",
    "published", or "" without training), source (the data set of the training), part (name of the
    evaluation), dataset (of the evaluation), the keys of the grid, the figures of result.json (NaN
    where there are none), validation (accuracy on validation images, or NaN), train_counts (images
    of each class, or None), folder, and record (the folder of the evaluation). Methods without
    training have one seed and are repeated at every ratio. Rows are in the experiment's order.
    """
    rows = [row for run in _in_order(part, part.runs(out)) for row in _rows(run, part.ratios)]
    keys = dict.fromkeys(key for row in rows for key in row)
    frame = pd.DataFrame(rows, columns=[*HEAD, *(key for key in keys if key not in HEAD)])
    for column in ("accuracy", "train_counts"):
        if column not in frame:
            frame[column] = None if column == "train_counts" else float("nan")
    return frame


def _in_order(part: Part, runs: Sequence[Run]) -> list[Run]:
    """Sorted as tables are read: method by method."""
    datasets, ratios = list(part.datasets), list(part.ratios)

    def place(run: Run) -> tuple:
        ratio = ratios.index(run.ratio) if run.train else 0
        # A control has the position of its method.
        return run.position, run.method, ratio, datasets.index(run.dataset), run.seed

    return sorted(runs, key=place)


def _rows(run: Run, ratios: Sequence[float]) -> Iterator[dict[str, Any]]:
    found = state.figures(run.folder, [e.name for e in run.evaluations], run.train)
    first = state.read_result(run.output(run.evaluations[0]) / RESULT)
    for ratio in (run.ratio,) if run.train else ratios:
        for evaluation in run.evaluations:
            figures = found[evaluation.name].get(SPLIT, {})
            numbers = {key: float("nan") if x is None else x for key, x in figures.items()}
            yield {
                "method": run.method,
                "ratio": ratio,
                "seed": run.seed,
                "trained": run.train,
                "setting": run.setting,
                "source": dataset_name(run.dataset),
                "part": evaluation.name,
                "dataset": dataset_name(evaluation.dataset),
                **dict(run.params),
                **numbers,
                "validation": found[evaluation.name].get("val", {}).get("accuracy", float("nan")),
                "train_counts": first.get("train_counts") if figures else None,
                "folder": str(run.folder),
                "record": str(run.output(evaluation)),
            }

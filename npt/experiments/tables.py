"""From result.json files to tables.

Accuracies are percent. The harmonic mean of a row is that of its mean accuracies, as the papers of
the family compute it; its deviation, like every other, is over seeds (population, as
parse_test_res.py has it). Deviations of averages over data sets are those of the per-seed averages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from npt.errors import NPTError
from npt.experiments.runner import RECORD

AVERAGE = "average"
HEADINGS = {"lcd_abs": "LCD", "mid_abs": "MID"}  # of results that do not name theirs


def collect(folder: str | Path) -> pd.DataFrame:
    """One row for each run, evaluation and split under `folder`, in the order of the runs.

    Columns: dataset, ratio, label, trainer, seed, part (the evaluation's name), split, path, every
    figure of result.json, and a column for each key of the experiment's grid.
    """
    rows: list[dict[str, Any]] = []
    headings: dict[str, str] = {}
    for record in sorted(Path(folder).rglob(RECORD)):
        run = json.loads(record.read_text(encoding="utf-8"))
        for part in run["commands"]:
            path = record.parent / part / "result.json"
            if path.is_file():
                result = json.loads(path.read_text(encoding="utf-8"))
                headings |= result.get("headings", HEADINGS)
                rows += _rows(run, part, result, path)
    if not rows:
        raise NPTError(f"there are no results under {folder}: has an experiment run there?")
    frame = pd.DataFrame(rows)
    # Trainers in the order of the experiment; sorted() above orders folders, not methods.
    order = ["dataset", "ratio", "position", "label", "seed"]
    frame = frame.sort_values(order, ascending=[True, False, True, True, True], kind="stable")
    frame = frame.drop(columns="position").reset_index(drop=True)
    frame.attrs["headings"] = headings
    return frame


def _rows(run: dict, part: str, result: dict, path: Path) -> list[dict[str, Any]]:
    head = {
        **{key: run[key] for key in ("dataset", "ratio", "label", "trainer", "seed")},
        "position": run["position"],
        **run["params"],
        "part": part,
        "path": str(path),
        "train_seconds": result.get("train_seconds"),
        "peak_memory_bytes": result.get("peak_memory_bytes"),
        **result.get("training", {}),
    }
    return [{**head, "split": split, **values} for split, values in result["results"].items()]


def harmonic_mean(a: Any, b: Any) -> Any:
    """2 a b / (a + b), of numbers or columns."""
    return 2 * a * b / (a + b)


def summarise(
    frame: pd.DataFrame, by: Sequence[str] = ("label",), split: str = "test"
) -> pd.DataFrame:
    """Mean and deviation over seeds for each data set and ratio, and averaged over data sets.

    Returns a row for each (dataset, ratio, *by); columns `<part>` and `<part>_std` of accuracy for
    every evaluation, `hm` and `hm_std` where there are base and new, and the measures and terms
    that have a heading (LCD, MID, ...), of the trained classes, that is of the first evaluation.
    Averages over data sets are rows whose dataset is "average", where there are several and the row
    has results on each.
    """
    by = list(by)
    for key in by:
        if key not in frame:
            raise NPTError(f"--by {key}: there is no such column; there are {', '.join(frame)}")
    rows = frame[frame["split"] == split]
    if rows.empty:
        known = ", ".join(sorted(set(frame["split"])))
        raise NPTError(f"--split {split}: no result is on that split; there are {known}")
    group = ["dataset", "ratio", *by]
    order = rows[group].drop_duplicates()
    parts = list(dict.fromkeys(rows["part"]))
    # Runs that a coarser `by` throws together are averaged first, so that std is over seeds alone.
    cells = rows.groupby([*group, "seed", "part"], dropna=False)["accuracy"].mean()
    trained = rows[rows["part"] == parts[0]]
    headings = {k: v for k, v in frame.attrs.get("headings", HEADINGS).items() if k in trained}
    measures = trained.groupby([*group, "seed"], dropna=False)[list(headings)].mean()
    table = cells.unstack("part")[parts].join(measures)
    datasets = rows["dataset"].nunique()
    if datasets > 1:
        rest = ["ratio", *by, "seed"]
        grouped = table.groupby(rest, dropna=False)
        full = grouped.size() == datasets
        average = grouped.mean()[full]
        average = pd.concat({AVERAGE: average}, names=["dataset"])
        table = pd.concat([table, average])
        extra = order[["ratio", *by]].drop_duplicates()
        order = pd.concat([order, extra.assign(dataset=AVERAGE)])
    if {"base", "new"} <= set(parts):
        table["hm"] = harmonic_mean(table["base"], table["new"])
    seeds = table.groupby(group, dropna=False)
    mean, deviation = seeds.mean(), seeds.std(ddof=0)
    if "hm" in mean:
        mean["hm"] = harmonic_mean(mean["base"], mean["new"])
    result = mean.rename(columns=headings)
    for column in [*parts, *(["hm"] if "hm" in mean else [])]:
        result[f"{column}_std"] = deviation[column]
    result["seeds"] = seeds.size()
    table = order.merge(result.reset_index(), on=group, how="inner").reset_index(drop=True)
    table.attrs["headings"] = list(headings.values())
    return table


def grid(
    frame: pd.DataFrame,
    value: str,
    rows: Sequence[str],
    column: str,
    part: str = "base",
    split: str = "test",
) -> pd.DataFrame:
    """One figure of every setting of a grid, averaged over data sets and seeds.

    A row for each (ratio, trainer, *rows), a column for each value of `column`. Runs outside the
    grid are left out. NPTError where a name is none of the frame's.
    """
    for key in (value, *rows, column):
        if key not in frame:
            raise NPTError(f"there is no column {key}; there are {', '.join(frame)}")
    chosen = frame[(frame["part"] == part) & (frame["split"] == split)]
    if chosen.empty:
        raise NPTError(f"there is no result on the {split} images of {part}")
    index = ["ratio", "trainer", *rows]
    return chosen.pivot_table(value, index, column, aggfunc="mean", sort=False)


def render_grid(table: pd.DataFrame, style: str = "simple", digits: int = 2) -> str:
    """The grid as one table; the keys by their last word, each column under its value."""
    names = (*table.index.names, table.columns.name)
    *down, across = (str(name).rpartition(".")[2] for name in names)
    heads = [*down, *(f"{across} {value:g}" for value in table.columns)]
    cells = [
        [f"{key:g}" if isinstance(key, float) else key for key in index]
        + [f"{value:.{digits}f}" for value in values]
        for index, values in zip(table.index, table.values, strict=True)
    ]
    align = ["left"] * len(down) + ["right"] * len(table.columns)
    return tabulate(cells, heads, tablefmt=style, colalign=align, disable_numparse=True)


def render(summary: pd.DataFrame, style: str = "simple") -> str:
    """The summary as one table for each data set and ratio; style is one of tabulate's."""
    parts = [c[: -len("_std")] for c in summary if c.endswith("_std")]
    columns = list(summary.columns)
    by = columns[columns.index("ratio") + 1 : columns.index(parts[0])]
    titles = {"hm": "harmonic mean", "label": ""}
    headings = summary.attrs["headings"]
    blocks = []
    for (dataset, ratio), rows in summary.groupby(["dataset", "ratio"], sort=False):
        cells = []
        for _, row in rows.iterrows():
            figures = [_figure(row[part], row[f"{part}_std"], row["seeds"]) for part in parts]
            measures = [_plain(row[name]) for name in headings]
            cells.append([*(row[key] for key in by), *figures, *measures])
        head = [titles.get(key, key) for key in [*by, *parts]] + headings
        align = ["left"] * len(by) + ["right"] * (len(head) - len(by))
        text = tabulate(cells, head, tablefmt=style, colalign=align, disable_numparse=True)
        blocks.append(f"{dataset}, tau {ratio:g}\n\n{text}")
    return "\n\n".join(blocks)


def _figure(mean: float, deviation: float, seeds: int) -> str:
    if pd.isna(mean):
        return "-"
    return f"{mean:.2f}" if seeds < 2 else f"{mean:.2f} ± {deviation:.2f}"


def _plain(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.4f}"

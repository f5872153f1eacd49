"""Makes tables from result.json files.

Accuracies are in percent. The harmonic mean of a row is computed from its mean accuracies, as in
the papers of the CoOp family. All standard deviations are population standard deviations over
seeds, as in parse_test_res.py. For averages over data sets, each seed is averaged first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from npt import identity
from npt.errors import NPTError
from npt.experiments import training_sets
from npt.experiments.state import evaluations_beside, figures, read_result, runs_in
from npt.identity import FREE
from npt.results import RESULT
from npt.terms import RESERVED

AVERAGE = "average"
HEADINGS = {"lcd_abs": "LCD", "mid_abs": "MID"}  # for older result.json files without headings


def collect(folder: str | Path) -> pd.DataFrame:
    """One row for each run, evaluation and split that is done, in the order of the runs.

    Columns: dataset, ratio, label, trainer, seed, imbalance_type, part (the evaluation's name),
    split, path, all results in result.json, the training means, the real size of the training set
    (`training_sets.COLUMNS`), and the keys of the experiment's grid. The `attrs` have the headings
    of the measures and terms that `summarise` shows. An evaluation that --eval-only has added to a
    run's folder has rows, too; its part is the name of its file. Methods without training are
    repeated at every ratio of their data set. The label says the type of imbalance if it is not
    that of the paper, and where runs of one label differ in their configuration, in what.
    """
    rows: list[dict[str, Any]] = []
    configs: list[dict[str, Any]] = []
    headings: dict[str, str] = {}
    for where, run in runs_in(Path(folder)):
        head = _head(run, read_result(where / next(iter(run["commands"])) / RESULT))
        for part, found in figures(where, list(run["commands"]), run["train"]).items():
            for path in [where / part / RESULT, *evaluations_beside(where / part)] if found else ():
                result = read_result(path)
                headings |= result.get("headings", HEADINGS)
                new = _rows(head, part if path.name == RESULT else path.stem, result, path)
                rows += new
                configs += [identity.flat(result.get("config", {}))] * len(new)
    if not rows:
        raise NPTError(f"there are no results in {folder}: run an experiment with --out {folder}")
    frame = _at_every_ratio(_told_apart(pd.DataFrame(rows), configs))
    # Trainers in the order of the experiment; the folders are in alphabetical order.
    order = ["dataset", "ratio", "position", "label", "seed"]
    frame = frame.sort_values(order, ascending=[True, False, True, True, True], kind="stable")
    frame = frame.drop(columns=["position", "train"]).reset_index(drop=True)
    frame.attrs["headings"] = headings
    return frame


def _head(run: dict, training: dict) -> dict[str, Any]:
    """The columns that all evaluations of a run share; training: the record of the first one."""
    config, trains = identity.flat(training.get("config", {})), run["train"]
    kind = training_sets.type_of(config, run["ratio"], trains)
    return {
        **{key: run[key] for key in ("dataset", "ratio", "label", "trainer", "seed")},
        "label": training_sets.labelled(run["label"], kind),
        "imbalance_type": kind,
        "position": run["position"],
        "train": trains,
        **run["params"],
        **training_sets.columns_of(training.get("train_counts") if trains else None),
    }


def _rows(head: dict, part: str, result: dict, path: Path) -> list[dict[str, Any]]:
    head = {
        **head,
        "part": part,
        "path": str(path),
        "train_seconds": result.get("train_seconds"),
        "peak_memory_bytes": result.get("peak_memory_bytes"),
        **result.get("training", {}),
    }
    found = result.get("results", {})
    return [{**head, "split": split, **values} for split, values in found.items()]


def _told_apart(frame: pd.DataFrame, configs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The frame with the keys in which runs of the same label differ in their labels.

    configs: the flat config of each row
    """
    same = ["dataset", "ratio", "seed", "part", "split", "label"]
    known = {*FREE, training_sets.TYPE}
    differing: dict[str, dict[str, None]] = {}
    for group, rows in frame.groupby(same, sort=False).groups.items():
        first, *others = (configs[row] for row in rows)
        for other in others:
            keys = {**first, **other}
            kept = [k for k in keys if k not in known and first.get(k) != other.get(k)]
            differing.setdefault(group[-1], {}).update(dict.fromkeys(kept))

    def name(row: int, label: str) -> str:
        words = [f"{k.rpartition('.')[2]}={configs[row].get(k)}" for k in differing.get(label, ())]
        return " ".join([label, *words])

    labels = [name(row, label) for row, label in enumerate(frame["label"])]
    return frame.assign(label=labels)


def _at_every_ratio(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with methods that are not trained at all ratios of their data set."""
    trained = frame[frame["train"]][["dataset", "ratio"]].drop_duplicates()
    untrained = frame[~frame["train"]]
    repeated = untrained.drop(columns="ratio").merge(trained, on="dataset")
    alone = untrained[~untrained["dataset"].isin(trained["dataset"])]
    whole = pd.concat([frame[frame["train"]], repeated[frame.columns], alone])
    return whole.drop_duplicates(["dataset", "ratio", "label", "seed", "part", "split", "path"])


def _of_protocol(frame: pd.DataFrame) -> pd.Series:
    """Whether a row is of one of the experiment's own evaluations."""
    return frame["path"].map(lambda path: Path(path).name == RESULT)


def harmonic_mean(a: Any, b: Any) -> Any:
    """2 a b / (a + b), for numbers or columns."""
    return 2 * a * b / (a + b)


def summarise(
    frame: pd.DataFrame, by: Sequence[str] = ("label",), split: str = "test"
) -> pd.DataFrame:
    """Mean and standard deviation over seeds for each data set and ratio, and their averages.

    Returns a row for each (dataset, ratio, *by), and imbalance_type if runs that differ in it have
    no labels to tell them apart. Columns: for every evaluation its accuracy,
    `<part>` and `<part>_std`; their harmonic mean, `hm` and `hm_std`, if there are base and new;
    the measures and terms with a heading (LCD, MID, ...) of the first evaluation, which has the
    trained classes. With several data sets, rows with dataset "average" are averages over the data
    sets, for trainers with results on all of them. The `attrs` have the headings, and under
    training_sets the sizes of the training sets in words, by (dataset, ratio).
    """
    by = [*by, *_types_to_tell(frame, by)]
    for key in by:
        if key not in frame:
            raise NPTError(f"--by {key}: there is no such column; use {', '.join(frame)}")
    if len({"dataset", "ratio", "part", *by}) < len(by) + 3:
        raise NPTError(
            f"--by {' '.join(by)}: name each column once, and not dataset, ratio or part, which "
            "every table has"
        )
    rows = frame[(frame["split"] == split) & _of_protocol(frame)]
    if rows.empty:
        known = ", ".join(sorted(set(frame["split"])))
        raise NPTError(f"--split {split}: there are no results of this split; use {known}")
    group = ["dataset", "ratio", *by]
    order = rows[group].drop_duplicates()
    parts = list(dict.fromkeys(rows["part"]))
    # If `by` puts several runs of a seed in one row, average them first: std is over seeds only.
    cells = rows.groupby([*group, "seed", "part"], dropna=False)["accuracy"].mean()
    trained = rows[rows["part"] == parts[0]]
    taken = {*RESERVED, *by, *parts}  # names of other columns
    headings = {
        name: heading
        for name, heading in frame.attrs.get("headings", HEADINGS).items()
        if name in trained and name not in taken and not name.endswith("_std")
    }
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
    result = mean
    for column in [*parts, *(["hm"] if "hm" in mean else [])]:
        result[f"{column}_std"] = deviation[column]
    result["seeds"] = seeds.size()
    table = order.merge(result.reset_index(), on=group, how="inner").reset_index(drop=True)
    table.attrs["headings"] = headings
    sizes = {key: training_sets.in_words(x) for key, x in rows.groupby(["dataset", "ratio"])}
    if datasets > 1:
        sizes |= {(AVERAGE, x): training_sets.in_words(y) for x, y in rows.groupby("ratio")}
    table.attrs["training_sets"] = sizes
    return table


def _types_to_tell(frame: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """A column to group by in addition, so that no mean is over several types of imbalance."""
    told = {"label", "imbalance_type", training_sets.TYPE} & set(keys)
    return [] if told or frame["imbalance_type"].nunique() < 2 else ["imbalance_type"]


def grid(
    frame: pd.DataFrame,
    value: str,
    rows: Sequence[str],
    column: str,
    part: str = "base",
    split: str = "test",
) -> pd.DataFrame:
    """One result for every setting of a grid, averaged over data sets and seeds.

    A row for each (ratio, trainer, *rows), and imbalance_type if there are several; a column for
    each value of `column`. Runs outside the grid are left out. NPTError if the frame has no column
    with one of these names.
    """
    index = ["ratio", "trainer", *rows]
    index += _types_to_tell(frame, [*rows, column])
    for key in (value, *rows, column):
        if key not in frame:
            raise NPTError(f"there is no column {key}; use {', '.join(frame)}")
    if len({value, column, *index}) < len(index) + 2:
        raise NPTError(
            f"--value {value}, --rows {' '.join(rows)} and --column {column} must differ from each "
            "other, and from ratio and trainer, which every row has"
        )
    for option, key in (("--value", value), ("--column", column)):
        if not pd.api.types.is_numeric_dtype(frame[key]):
            raise NPTError(f"{option} {key}: that column does not have numbers")
    chosen = frame[(frame["part"] == part) & (frame["split"] == split)]
    if chosen.empty:
        raise NPTError(
            f"there are no results of --part {part} and --split {split}; the parts are "
            f"{', '.join(dict.fromkeys(frame['part']))}"
        )
    table = chosen.pivot_table(value, index, column, aggfunc="mean", sort=False)
    if table.empty:
        raise NPTError(f"no run has values of {', '.join((value, *rows, column))}")
    return table


def render_grid(table: pd.DataFrame, style: str = "simple", digits: int = 2) -> str:
    """The grid as text. Keys are shortened to their last part, such as W1 for TRAINER.NPT.W1."""
    names = (*table.index.names, table.columns.name)
    *row_keys, column_key = (str(name).rpartition(".")[2] for name in names)
    heads = [*row_keys, *(f"{column_key} {value:g}" for value in table.columns)]
    cells = [
        [f"{key:g}" if isinstance(key, float) else key for key in index]
        + [f"{value:.{digits}f}" for value in values]
        for index, values in zip(table.index, table.values, strict=True)
    ]
    align = ["left"] * len(row_keys) + ["right"] * len(table.columns)
    return tabulate(cells, heads, tablefmt=style, colalign=align, disable_numparse=True)


def render(summary: pd.DataFrame, style: str = "simple") -> str:
    """The summary as text: a table for each data set and ratio, in a style of tabulate.

    Below each heading is what there really was to train on.
    """
    parts = [c[: -len("_std")] for c in summary if c.endswith("_std")]
    columns = list(summary.columns)
    by = columns[columns.index("ratio") + 1 : columns.index(parts[0])]
    titles = {"hm": "harmonic mean", "label": ""}
    headings, sizes = summary.attrs["headings"], summary.attrs["training_sets"]
    blocks = []
    for (dataset, ratio), rows in summary.groupby(["dataset", "ratio"], sort=False):
        cells = []
        for _, row in rows.iterrows():
            accuracies = [_accuracy(row[part], row[f"{part}_std"], row["seeds"]) for part in parts]
            measures = [_measure(row[name]) for name in headings]
            cells.append([*(row[key] for key in by), *accuracies, *measures])
        head = [titles.get(key, key) for key in [*by, *parts]] + list(headings.values())
        align = ["left"] * len(by) + ["right"] * (len(head) - len(by))
        text = tabulate(cells, head, tablefmt=style, colalign=align, disable_numparse=True)
        size = sizes[dataset, ratio]
        blocks += [f"{dataset}, tau {ratio:g}", *([size] if size else []), text]
    return "\n\n".join(blocks)


def _accuracy(mean: float, deviation: float, seeds: int) -> str:
    if pd.isna(mean):
        return "-"
    return f"{mean:.2f}" if seeds < 2 else f"{mean:.2f} ± {deviation:.2f}"


def _measure(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.4f}"

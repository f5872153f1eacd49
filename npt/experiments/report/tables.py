"""The tables of a report: what was measured, beside what is reported.

A table is made from a frame of all expected evaluations
(`npt.experiments.frame`), where NaN is a missing result. `reported` (`load_reported`) adds the
reported figures and the differences to them; it is None for a suite that the paper does not have.
Rows and columns are in the order of the frame. Accuracies are in percent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from npt.experiments.report import statistics
from npt.experiments.report.reported import (
    BALANCED,
    HM_OF_AVERAGES,
    MEAN_OF_HMS,
    TASKS,
    TRANSFERS,
    Quoted,
    Reported,
)
from npt.experiments.report.statistics import Input, Summary
from npt.experiments.report.table import (
    MISSING,
    NAMES,
    STAR,
    Block,
    Cell,
    Column,
    Row,
    Table,
    fraction,
    signed,
)
from npt.experiments.tables import AVERAGE
from npt.experiments.training_sets import COLUMNS, CONTROL, columns_of, span, split_label

SHORT = {AVERAGE: "Average", MEAN_OF_HMS: "Average", HM_OF_AVERAGES: "HM of averages"}  # in LaTeX
TITLES = {
    "table1": "Base-to-new: harmonic mean of base and new accuracy (%)",
    "table1_base": "Base-to-new: accuracy on the base classes (%)",
    "table1_new": "Base-to-new: accuracy on the new classes (%)",
    "table1_many": "Base-to-new: accuracy on base classes with many training images (%)",
    "table1_medium": "Base-to-new: accuracy on base classes with a medium number of images (%)",
    "table1_few": "Base-to-new: accuracy on base classes with few training images (%)",
    "table2": "Cross-dataset transfer: accuracy (%)",
    "table3": "Ablation: average accuracy of three tasks (%)",
    "table4": "Domain generalisation: accuracy (%)",
    "train_counts": "What was trained on: images of each data set at each ratio",
    "pairs": "Each method with NPT against the same method without, on the same seeds",
    "imbalance": "What imbalance as such costs: each method against its control, on the same seeds",
    "settings": "Whose training settings were used",
}
ACCURACY = "accuracy"
SOURCE = "source"  # the evaluation on the data of the training
BASE_TO_NEW = ("base", "new")
# Tables of the appendix -> (evaluation, column of the frame)
APPENDIX = {
    "base": ("base", ACCURACY),
    "new": ("new", ACCURACY),
    "many": ("base", "many"),
    "medium": ("base", "medium"),
    "few": ("base", "few"),
}
NPT = "+NPT"  # the end of the label of a method with both terms, before a type of imbalance


# --------------------------------------------------------------------------- accuracies
Runs = Mapping[tuple[float, str], pd.DataFrame]  # (ratio, method) -> `statistics.by_seed`
Quotes = Callable[[float, str], Mapping[str, Quoted]]  # (ratio, method) -> column -> figure


@dataclass(frozen=True)
class Measured:
    """A column, and the figure of some evaluations (parts, data sets) that it shows."""

    column: Column
    runs: Runs
    inputs: Sequence[Sequence[Input]]
    figure: statistics.Figure = statistics.mean

    def summary(self, ratio: float, method: str) -> Summary:
        runs = self.runs.get((ratio, method))
        if runs is None:
            return Summary()
        return statistics.summarise(statistics.accuracies(runs, self.inputs), self.figure)


def base_to_new(frame: pd.DataFrame, reported: Reported | None = None) -> Table:
    """Table 1: the harmonic mean of base and new accuracy, and both averages over data sets."""
    datasets = _datasets(frame)
    columns = _harmonic_means(frame, datasets)
    blocks = _blocks(columns, _quotes(reported, "table1", datasets))
    return _table(
        "table1",
        (x.column for x in columns),
        (
            replace(
                block,
                notes=(
                    *_beside_zero_shot(block, columns, frame, reported),
                    *_whose_runs(block, frame, reported),
                ),
            )
            for block in blocks
        ),
    )


def appendix(frame: pd.DataFrame, reported: Reported | None = None, figure: str = "base") -> Table:
    """One of the accuracies behind Table 1: a name in APPENDIX."""
    part, value = APPENDIX[figure]
    datasets = _datasets(frame)
    notes: tuple[str, ...] = ()
    if value != ACCURACY:
        values = frame[value] if value in frame else pd.Series(np.nan, frame.index)
        shown = frame["method"][frame["trained"].astype(bool) | values.notna()]
        # The classes of a control have equally many images: it has no groups of classes.
        frame = frame[frame["method"].isin(shown) & ~frame["method"].str.endswith(CONTROL)]
        notes = (f"{MISSING} also where no class of a data set has so many images at that tau.",)
    columns = _plain(_runs(frame, value), [(part, dataset) for dataset in datasets])
    if len(datasets) > 1:
        columns.append(_average(columns[0].runs, [(part, dataset) for dataset in datasets]))
    blocks = _blocks(columns, _quotes(reported, figure, datasets))
    return _table(f"table1_{figure}", (x.column for x in columns), blocks, notes)


def transfer(frame: pd.DataFrame, reported: Reported | None = None, name: str = "table2") -> Table:
    """Table 2 or 4: accuracy on the source and the targets, and the average over the targets.

    name: table2 or table4, for the title and for what is reported
    """
    sources, targets = _distinct(frame["source"]), _targets(frame)
    columns: list[Measured] = []
    blocks: list[Block] = []
    for source in sources:
        runs = _runs(frame[frame["source"] == source])
        columns = _plain(runs, [(SOURCE, source), *targets])
        if len(targets) > 1:
            columns.append(_average(runs, targets, "average of the targets"))
        quotes = _quotes(reported, name, [source, *(dataset for _, dataset in targets)])
        found = _blocks(columns, quotes)
        blocks += found if len(sources) == 1 else [_labelled(x, source) for x in found]
    heads = [x.column for x in columns]
    if len(sources) > 1:
        heads[0] = _column(SOURCE)
    return _table(name, heads, blocks)


def ablation(frames: Mapping[str, pd.DataFrame], reported: Reported | None = None) -> Table:
    """Table 3: of each task (a name in TASKS) the average, as in the table of that task.

    What is reported is shown if a task has the data sets of the paper.
    """
    columns = []
    whole = []  # the tasks whose averages are of the same data sets as the paper's
    for task, frame in frames.items():
        transfers = TASKS[task] in TRANSFERS
        inputs = [_targets(frame)] if transfers else _both(_datasets(frame))
        figure = statistics.mean if transfers else statistics.mean_of_harmonic_means
        columns.append(Measured(_column(task), _runs(frame), inputs, figure))
        datasets = {*frame["source"], *(dataset for _, dataset in inputs[0])}
        if reported and datasets == set(reported.columns(TASKS[task])):
            whole.append(task)
    blocks = _blocks(columns, _quotes(reported, "table3", whole))
    notes = (f"Base-to-new: {MEAN_OF_HMS}. Transfers: average over the targets.",)
    return _table("table3", (x.column for x in columns), blocks, notes)


def _runs(frame: pd.DataFrame, value: str = ACCURACY) -> Runs:
    groups = frame.groupby(["ratio", "method"], sort=False)
    return {key: statistics.by_seed(group, value) for key, group in groups}


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _inputs(frame: pd.DataFrame) -> list[Input]:
    return _distinct(zip(frame["part"], frame["dataset"], strict=True))


def _datasets(frame: pd.DataFrame) -> list[str]:
    return _distinct(dataset for part, dataset in _inputs(frame) if part in BASE_TO_NEW)


def _targets(frame: pd.DataFrame) -> list[Input]:
    return [x for x in _inputs(frame) if x[0] != SOURCE]


def _both(datasets: Sequence[str]) -> list[list[Input]]:
    return [[(part, dataset) for dataset in datasets] for part in BASE_TO_NEW]


def _column(key: str, heading: str = "") -> Column:
    return Column(key, heading or NAMES.get(key, key), SHORT.get(key) or NAMES.get(key, key))


def _plain(runs: Runs, evaluations: Sequence[Input]) -> list[Measured]:
    """A column for each evaluation."""
    return [Measured(_column(dataset), runs, [[(part, dataset)]]) for part, dataset in evaluations]


def _average(runs: Runs, inputs: Sequence[Input], heading: str = "") -> Measured:
    return Measured(_column(AVERAGE, heading), runs, [inputs])


def _harmonic_means(frame: pd.DataFrame, datasets: Sequence[str]) -> list[Measured]:
    """The columns of Table 1; no averages over one data set."""
    runs, figure = _runs(frame), statistics.mean_of_harmonic_means
    found = [Measured(_column(x), runs, _both([x]), figure) for x in datasets]
    if len(datasets) > 1:
        every = _both(datasets)
        found.append(Measured(_column(MEAN_OF_HMS), runs, every, figure))
        other = statistics.harmonic_mean_of_averages
        found.append(Measured(_column(HM_OF_AVERAGES), runs, every, other))
    return found


def _quotes(reported: Reported | None, table: str, columns: Sequence[str]) -> Quotes:
    if reported is None or not columns:
        return lambda ratio, method: {}
    return lambda ratio, method: reported.quotes(table, ratio, method, columns)


def _blocks(columns: Sequence[Measured], quotes: Quotes) -> list[Block]:
    """A block for each ratio, with a row for each method that has evaluations at it."""
    places = _distinct(place for column in columns for place in column.runs)
    methods = _distinct(method for _, method in places)
    blocks = []
    for ratio in _distinct(ratio for ratio, _ in places):
        rows = []
        for method in (x for x in methods if (ratio, x) in places):
            found = quotes(ratio, method)
            cells = [Cell(x.summary(ratio, method), found.get(x.column.key)) for x in columns]
            rows.append(Row(method, tuple(cells)))
        blocks.append(Block(ratio, tuple(rows)))
    return blocks


def _labelled(block: Block, source: str) -> Block:
    rows = (replace(row, label=f"{row.label}, from {source}") for row in block.rows)
    return replace(block, rows=tuple(rows))


def _table(
    name: str,
    columns: Iterable[Column],
    blocks: Iterable[Block],
    notes: tuple[str, ...] = (),
    heading: str = "method",
) -> Table:
    title = TITLES.get(name, name)
    return Table(name, title, heading, tuple(columns), tuple(blocks), notes)


# --------------------------------------------------------------------------- notes of Table 1
def _beside_zero_shot(
    block: Block, columns: Sequence[Measured], frame: pd.DataFrame, reported: Reported | None
) -> Iterator[str]:
    """Which methods are below zero-shot CLIP in the average, by our figures and by others."""
    place = next((n for n, x in enumerate(columns) if x.column.key == MEAN_OF_HMS), 0)
    untrained = set(frame["method"][~frame["trained"].astype(bool)])
    for zero in (row for row in block.rows if row.label in untrained):
        rows = {row.label: row.cells[place] for row in block.rows if row.label not in untrained}
        figure = columns[place].column.heading
        where = f"in the {figure}" if len(columns) > 1 else f"on {figure}"
        ours = {x + STAR * cell.marked: cell.summary.mean for x, cell in rows.items()}
        theirs = {x: cell.quoted.value for x, cell in rows.items() if cell.quoted}
        level, quoted = zero.cells[place].summary.mean, zero.cells[place].quoted
        text = f"Below {zero.label} {where}: here {_below(ours, level)}"
        if reported and quoted and theirs:
            text += f"; in the reported figures {_below(theirs, quoted.value)}"
            if reported.cell("table1", block.at, zero.label, AVERAGE) is None:
                text += f"; the paper has no row {zero.label} at this tau"
        yield f"{text}."


def _below(figures: Mapping[str, float], level: float) -> str:
    if math.isnan(level):
        return "not known yet"
    found = [f"{label} {value:.2f}" for label, value in figures.items() if value < level]
    unknown = [label for label, value in figures.items() if math.isnan(value)]
    text = f"({level:.2f}) {_listed(found) or 'no method'}"
    return f"{text}, not known yet {_listed(unknown)}" if unknown else text


def _whose_runs(block: Block, frame: pd.DataFrame, reported: Reported | None) -> Iterator[str]:
    """Whose runs the paper's rows at tau 1 are, and whose settings ours have."""
    published = reported.published_rows() if reported else {}
    if block.ratio != BALANCED or not any(row.line for row in block.rows):
        return
    cells = sum(published.values())
    yield (
        f"The paper's rows {_listed(list(published))} at tau {BALANCED:g} are the published runs "
        f"of these methods: all {cells} figures are the harmonic means of what was published."
    )
    settings = {x: _settings(frame, x, BALANCED) for x in (row.label for row in block.rows)}
    words = [f"{method}: {setting}" for method, setting in settings.items() if setting]
    if words:
        yield f"Settings used here: {', '.join(words)}."


def _settings(frame: pd.DataFrame, method: str, ratio: float) -> str:
    rows = frame[(frame["method"] == method) & (frame["ratio"] == ratio)]
    return _listed([str(x) for x in _distinct(rows["setting"].dropna()) if x])


def _listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


# --------------------------------------------------------------------------- other tables
def train_counts(frame: pd.DataFrame, reported: Reported | None = None) -> Table:
    """What was trained on, by ratio, data set, classes and type of imbalance.

    A range where seeds differ.
    """
    rows = frame[frame["trained"].astype(bool)].copy()
    base = rows["part"].isin(BASE_TO_NEW)
    names = {True: ", base classes", False: ", all classes"} if base.nunique() > 1 else {}
    kinds = [split_label(method)[1] for method in rows["method"]]
    rows["set"] = rows["source"] + [names.get(x, "") for x in base] + kinds
    blocks = []
    for ratio, group in rows.groupby("ratio", sort=False):
        found = group.groupby("set", sort=False)
        blocks.append(Block(ratio, tuple(Row(name, tuple(_counted(x))) for name, x in found)))
    columns = [Column(name, name, name) for name in (*COUNTED, *OF_COUNTS)]
    notes = (
        "Ratio: images of the smallest class over images of the largest. A class keeps at least "
        "one image, so a ratio may be out of reach.",
    )
    return _table("train_counts", columns, blocks, notes, "data set")


def _counted(rows: pd.DataFrame) -> Iterator[Cell]:
    """The cells of a training set at a ratio: the columns COUNTED and OF_COUNTS."""
    expected = rows["seed"].nunique()
    there = rows[[_is_counts(x) for x in rows["train_counts"]]]
    seeds = there["seed"].to_numpy()
    size = {"runs": len(set(seeds)), "expected": expected, "datasets": 1, "all_datasets": 1}
    found = pd.DataFrame([columns_of(list(x)) for x in there["train_counts"]], dtype=float)
    for column in COUNTED.values():
        if found.empty:
            yield Cell(Summary(**size), text=MISSING)
            continue
        of_seeds = found[column].groupby(seeds).mean().to_numpy()
        summary = statistics.spread(of_seeds, float(of_seeds.mean()), **size)
        yield Cell(summary, text=span(found[column]))
    asked = float(rows["ratio"].iloc[0])
    yield Cell(Summary(asked), text=f"{asked:g}")
    number = str(expected) if size["runs"] == expected else fraction(size["runs"], expected)
    yield Cell(Summary(size["runs"]), text=number)


def _is_counts(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and len(value) > 0


def pairs(frame: pd.DataFrame, reported: Reported | None = None) -> Table:
    """Each method X beside X+NPT, on the same seeds: the difference over data sets, and tests."""

    def with_terms(method: str) -> str:
        name, kind = split_label(method)
        return name + NPT + kind

    methods = _distinct(frame["method"])
    table = _comparisons("pairs", frame, {with_terms(method): method for method in methods})
    missing = f"There is no method with {NPT} beside the same method without."
    return table if table.blocks else replace(table, notes=(missing,))


def imbalance(frame: pd.DataFrame, reported: Reported | None = None) -> Table:
    """Each method beside its control, on the same seeds: as `pairs`."""
    controls = {method: method + CONTROL for method in _distinct(frame["method"])}
    return _comparisons("imbalance", frame, controls)


def _comparisons(name: str, frame: pd.DataFrame, against: Mapping[str, str]) -> Table:
    """The differences of methods to others, for the pairs that the frame has: method -> other."""
    found: dict[float, dict[str, statistics.Comparison]] = {}
    compared = _compared(frame)
    for ratio in _distinct(frame["ratio"]):
        for (method, other), (figure_name, (runs, inputs, figure)) in itertools.product(
            against.items(), compared.items()
        ):
            both = [runs[x] for x in ((ratio, other), (ratio, method)) if x in runs]
            if len(both) == 2:
                label = f"{method} against {other}, {figure_name}"
                figures = (_of_datasets(x, inputs, figure) for x in both)
                found.setdefault(ratio, {})[label] = statistics.compare(*figures)
    blocks = [
        Block(
            ratio,
            tuple(Row(label, tuple(_compared_cells(x))) for label, x in comparisons.items()),
            tuple(
                f"{label}: no test, which needs two data sets with pairs; here: {x.datasets}."
                for label, x in comparisons.items()
                if x.datasets < 2
            ),
        )
        for ratio, comparisons in found.items()
    ]
    columns = [Column(name, name, name) for name in ("mean difference", "95 % interval", *TESTED)]
    return _table(name, columns, blocks, _notes_on_pairs(frame), "comparison")


def _compared(frame: pd.DataFrame) -> dict[str, tuple[Runs, list[list[Input]], statistics.Figure]]:
    """What is compared: name -> runs, evaluations (parts, data sets), figure of a data set."""
    both = _both(_datasets(frame))
    if both[0]:
        runs, parts = _runs(frame), zip(BASE_TO_NEW, both, strict=True)
        return {
            "harmonic mean": (runs, both, statistics.mean_of_harmonic_means),
            **{part: (runs, [inputs], statistics.mean) for part, inputs in parts},
        }
    sources, inputs = _distinct(frame["source"]), [_targets(frame)]
    name = "targets from {}" if len(sources) > 1 else "targets"
    of = {source: _runs(frame[frame["source"] == source]) for source in sources}
    return {name.format(x): (runs, inputs, statistics.mean) for x, runs in of.items()}


def _of_datasets(
    runs: pd.DataFrame, inputs: Sequence[Sequence[Input]], figure: statistics.Figure
) -> pd.DataFrame:
    """A figure for each seed and data set."""
    x = statistics.accuracies(runs, inputs)
    found = {
        dataset: statistics.each_seed(x[:, :, [place]], figure)
        for place, (_, dataset) in enumerate(inputs[0])
    }
    return pd.DataFrame(found, index=runs.index)


def _compared_cells(found: statistics.Comparison) -> Iterator[Cell]:
    size = {"runs": found.pairs, "expected": found.expected}
    summary = Summary(found.mean, low=found.low, high=found.high, **size)
    yield Cell(summary, text=signed(found.mean) + (STAR if summary.incomplete else ""))
    known = not math.isnan(found.low)
    yield Cell(text=f"{signed(found.low)} to {signed(found.high)}" if known else MISSING)
    for value, text in (show(found) for show in TESTED.values()):
        yield Cell(Summary(value, **size), text=text)


def _p_value(value: float) -> str:
    if math.isnan(value):
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _notes_on_pairs(frame: pd.DataFrame) -> tuple[str, ...]:
    notes = [
        "Differences in percentage points; of a data set, the mean over the seeds that both "
        "methods have. The data sets are the sample of the interval (95 % t) and of the tests "
        "(paired t test, Wilcoxon signed-rank test; two-sided, not corrected for the number of "
        "comparisons). "
        f"{MISSING}: fewer than two data sets, or differences that are all equal (t) or all zero. "
        "Runs are pairs of runs; data sets without a pair are left out."
    ]
    if not _datasets(frame):
        notes.append("One training a seed is tested on all targets: they are not independent.")
    return tuple(notes)


def settings(frame: pd.DataFrame, reported: Reported | None = None) -> Table:
    """Whose settings each trained method had at each ratio: the paper's, or those published."""
    trained = frame[frame["trained"].astype(bool)]
    ratios = _distinct(trained["ratio"])
    rows = [
        Row(method, tuple(Cell(text=_settings(trained, method, x) or MISSING) for x in ratios))
        for method in _distinct(trained["method"])
    ]
    columns = [Column(f"tau {x:g}", f"tau {x:g}", f"tau {x:g}") for x in ratios]
    notes = ("paper: the settings of the NPT paper; published: those of the method's own paper.",)
    return _table("settings", columns, [Block(None, tuple(rows))], notes)


# Columns of `train_counts` -> of the frames of `table`
COUNTED = {column.replace("_", " "): column for column in COLUMNS}
OF_COUNTS = ("ratio asked for", "seeds")
# Further columns of `pairs` -> a value, and how it is shown
TESTED: dict[str, Callable[[statistics.Comparison], tuple[float, str]]] = {
    "better": lambda x: (x.better, str(x.better)),
    "worse": lambda x: (x.worse, str(x.worse)),
    "data sets": lambda x: (x.datasets, str(x.datasets)),
    "p (t test)": lambda x: (x.t_p, _p_value(x.t_p)),
    "p (Wilcoxon)": lambda x: (x.wilcoxon_p, _p_value(x.wilcoxon_p)),
    "runs": lambda x: (x.pairs, fraction(x.pairs, x.expected)),
    "left out": lambda x: (x.left_out, str(x.left_out)),
}

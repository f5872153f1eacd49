"""The paper's figures, from the frames of an experiment (`npt.experiments.frame`).

Each function returns a figure and the data that it shows, for `save`. Averages are of complete sets
of runs: where one is missing, its place stays empty and the figure says so. Accuracies are in
percent. Error bars are population standard deviations over seeds, as in the tables; one seed has
none.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from npt.errors import NPTError
from npt.experiments.figures import (
    BESIDE,
    COLOURS,
    GREY,
    MARKERS,
    Panel,
    draw,
    panel_of,
    styled,
    write_image,
)
from npt.experiments.plan import PUBLISHED
from npt.experiments.report.table import NAMES
from npt.experiments.report.tables import NPT
from npt.experiments.tables import AVERAGE, HEADINGS, harmonic_mean
from npt.experiments.training_sets import CONTROL
from npt.files import atomic_write
from npt.terms import TERMS, Term

FIRST_CHOICE = "MaPLe"  # of several methods with an NPT form
LINES = {"base": "base", "new": "new", "hm": "harmonic mean of the averages"}  # of figure 5
Drawn = tuple[Figure, pd.DataFrame]


def save(figure: Figure, data: pd.DataFrame, folder: str | Path, name: str) -> None:
    """Write `name`.png, .pdf and .csv; the same numbers give the same bytes."""
    write_image(figure, *(Path(folder) / f"{name}.{suffix}" for suffix in ("png", "pdf")))
    with atomic_write(Path(folder) / f"{name}.csv") as file:
        data.to_csv(file, index=False)


# --------------------------------------------------------------------------- numbers
def method_pair(frame: pd.DataFrame) -> tuple[str, str]:
    """The labels of a method and its NPT form: MaPLe's if there, else the first of the frame.

    NPTError if the frame has no NPT form.
    """
    labels = list(dict.fromkeys(frame["method"]))
    wrapped = [label.removesuffix(NPT) for label in labels if label.endswith(NPT)]
    if not wrapped:
        raise NPTError(
            f"the figure shows a method with {NPT}, and there are only {', '.join(labels)}: "
            "add one to the methods"
        )
    base = min(wrapped, key=lambda label: (label != FIRST_CHOICE, label not in labels))
    return base, base + NPT


def _without_controls(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that a figure shows: tables have the others."""
    return frame[~frame["method"].str.endswith(CONTROL)]


def _rows(frame: pd.DataFrame, columns: Sequence[str], extra: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of a frame, each once, with columns of numbers: NaN where there is no figure.

    extra: columns that tell runs apart, beside the usual ones
    """
    rows = frame.drop_duplicates(["method", "ratio", "seed", "source", "part", *extra])
    numbers = {key: rows[key].astype(float) if key in rows else np.nan for key in columns}
    return rows.assign(**numbers)


def _per_seed(rows: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """The mean of each seed, indexed by (*by, seed): NaN where one of its values is missing."""
    return _full_means(rows, [*by, "seed"], columns)


def _over_seeds(per_seed: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """A row for each of `by`: means, standard deviations `<column>_std`, and number of seeds.

    NaN where a seed is missing; the deviation also where there is only one.
    """
    columns, rows = list(per_seed), per_seed.reset_index()
    mean, groups = _full_means(rows, by, columns), rows.groupby(list(by), sort=False)
    spread = groups[columns].std(ddof=0)
    spread.loc[mean.isna().any(axis=1) | (groups.size() < 2)] = np.nan
    return mean.join(spread.add_suffix("_std")).assign(seeds=groups.size()).reset_index()


def _full_means(rows: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    groups = rows.groupby(list(by), sort=False)
    means, counts = groups[list(columns)].mean(), groups[list(columns)].count()
    means.loc[counts.lt(groups.size(), axis=0).any(axis=1)] = np.nan
    return means


def _add_missing(
    table: pd.DataFrame, rows: pd.DataFrame, by: Sequence[str], columns: Sequence[str]
) -> pd.DataFrame:
    """The table with the number of evaluations behind each of its rows, and of missing ones."""
    gaps = rows.assign(missing=rows[list(columns)].isna().any(axis=1))
    counts = gaps.groupby(list(by), sort=False)["missing"].agg(evaluations="size", missing="sum")
    return table.merge(counts.reset_index(), on=list(by), validate="one_to_one")


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all tables; those of pd.concat, which warns of columns without values."""
    return pd.DataFrame([row for table in tables for row in table.to_dict("records")])


# --------------------------------------------------------------------------- words
def _tau(ratio: float, rows: pd.DataFrame) -> str:
    """The ratio and, if all its rows agree, the images of the largest and the smallest class."""
    counts = rows.loc[rows["ratio"] == ratio, "train_counts"].dropna()
    ends = {(max(images), min(images)) for images in counts}
    if len(ends) != 1:
        return f"τ = {ratio:g}"
    ((most, fewest),) = ends
    images = f"{most} to {fewest}" if most > fewest else f"{most}"
    return f"τ = {ratio:g} ({images} images a class)"


def _data(names: Iterable[str], of_several: str = "") -> str:
    """The name of a data set, or the number of several, after the words `of_several`."""
    first, *others = dict.fromkeys(names)
    return f"{of_several}{len(others) + 1} data sets" if others else NAMES.get(first, first)


def _seeds(rows: pd.DataFrame) -> str:
    number = rows.loc[rows["trained"].astype(bool), "seed"].nunique()
    return f"{number} seeds" if number != 1 else "1 seed"


def _gaps(table: pd.DataFrame, names: Iterable[str]) -> str:
    """A note on the rows of a table with missing runs; names: what the rows are."""
    counts = zip(names, table["missing"], table["evaluations"], strict=True)
    gaps = [f"{name} ({missing} of {number})" for name, missing, number in counts if missing]
    return f"Left out, evaluations are missing: {', '.join(gaps)}." if gaps else ""


def _settings(rows: pd.DataFrame) -> str:
    """A note on the methods that were trained with the settings of their own papers."""
    found = rows.loc[rows["setting"] == PUBLISHED, ["method", "ratio"]].drop_duplicates()
    names = [f"{method} τ = {ratio:g}" for method, ratio in found.itertuples(index=False)]
    return f"With the settings of the method's own paper: {', '.join(names)}." if names else ""


def _write_notes(figure: Figure, *notes: str) -> None:
    """Notes below a figure; empty ones are left out."""
    width = int(16 * figure.get_figwidth())  # characters
    lines = [line for note in notes for line in textwrap.wrap(note, width)]
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=GREY)


def _errorbar(ax: Axes, table: pd.DataFrame, x: str, y: str, place: int, **look: Any) -> None:
    """Points with the error bars that there are; place: of the colour and marker."""
    look |= {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 5}
    look |= {"xerr": _spread(table, x), "yerr": _spread(table, y), "capsize": 2, "elinewidth": 0.8}
    ax.errorbar(table[x], table[y], **look)


def _spread(table: pd.DataFrame, column: str) -> pd.Series | None:
    """The deviations of a column, if there are any: matplotlib may warn of none but NaN."""
    found = table.get(f"{column}_std")
    return None if found is None or found.isna().all() else found


# --------------------------------------------------------------------------- figure 1
def fig1(frame: pd.DataFrame, part: str = "new") -> Drawn:
    """Text and image features of the first data set, in the panels of `fig1_panels`.

    Features that are not in the folders of the runs are computed from their checkpoints. NPTError
    if these were deleted.
    """
    source = frame["source"].iloc[0]
    rows = frame[(frame["source"] == source) & (frame["part"] == part)]
    panels = [
        Panel(title) if folder is None else panel_of(folder, part, title)
        for title, folder in fig1_panels(rows)
    ]
    kind = f"{part} classes" if part in ("base", "new") else part
    return draw([("", panels)], f"{_data([source])}, {kind}, seed {rows['seed'].min()}")


def fig1_panels(rows: pd.DataFrame) -> list[tuple[str, Path | None]]:
    """Title and folder of four runs with the smallest seed; None where one is missing.

    They are the method without training, a method at the largest and the smallest ratio, and its
    NPT form at the smallest.
    """
    base, npt = method_pair(rows)
    most, least = rows["ratio"].max(), rows["ratio"].min()
    without = [
        (method, least) for method in rows.loc[~rows["trained"].astype(bool), "method"].unique()
    ]
    panels: list[tuple[str, Path | None]] = []
    for method, ratio in dict.fromkeys([*without[:1], (base, most), (base, least), (npt, least)]):
        runs = rows[(rows["method"] == method) & (rows["ratio"] == ratio)].sort_values("seed")
        there = len(runs) > 0 and pd.notna(runs["accuracy"].iloc[0])
        training = "without training" if (method, ratio) in without else _tau(ratio, runs)
        panels.append((f"{method}\n{training}", Path(runs["folder"].iloc[0]) if there else None))
    return panels


# --------------------------------------------------------------------------- figure 2
@styled()
def fig2(frame: pd.DataFrame) -> Drawn:
    """LCD and MID against accuracy, averages over the targets of a transfer protocol.

    A point for each method and ratio of the frame, with a line through the ratios of a method; one
    point for a method without training. A row of the data is a point.
    """
    columns, by = ["accuracy", *HEADINGS], ["method", "ratio"]
    rows = _rows(_without_controls(frame[frame["part"] != "source"]), columns)
    rows = rows[rows["trained"].astype(bool) | (rows["ratio"] == rows["ratio"].max())]
    data = _over_seeds(_per_seed(rows, by, columns), by)
    data = _add_missing(data, rows, by, columns)
    figure = Figure(figsize=(9, 4.2))
    panels = figure.subplots(1, len(HEADINGS), sharey=True)
    for ax, (measure, heading) in zip(panels, HEADINGS.items(), strict=True):
        shown = data[[measure, "accuracy"]].dropna()
        rank = shown[measure].rank().corr(shown["accuracy"].rank())
        for place, (method, points) in enumerate(data.groupby("method", sort=False)):
            line = "-" if len(points) > 1 else "none"
            label = method if points[measure].notna().any() else None
            _errorbar(ax, points, measure, "accuracy", place, label=label, linestyle=line)
            if len(points) > 1:
                _write_ratios(ax, points, measure, place)
        words = "undefined" if pd.isna(rank) else f"${rank:.2f}$"
        ax.set_title(f"{heading}: Spearman's rank correlation {words} ({len(shown)} points)")
        ax.set_xlabel(f"{heading} (smaller: closer to neural collapse)")
        ax.margins(0.1)
    panels[0].set_ylabel("accuracy (%)")
    if data["accuracy"].notna().any():
        panels[-1].legend(**BESIDE)
    ratios = ", ".join(_tau(ratio, rows) for ratio in data["ratio"].unique())
    figure.suptitle(
        f"Trained on {_data(rows['source'])}, tested on "
        f"{_data(rows['dataset'], 'the average of ')}, {_seeds(rows)}\n{ratios}"
    )
    names = data["method"] + " τ = " + data["ratio"].map("{:g}".format)
    _write_notes(figure, _gaps(data, names), _settings(rows))
    return figure, data


def _write_ratios(ax: Axes, points: pd.DataFrame, measure: str, place: int) -> None:
    """Write the ratio beside each point, on the other side for every second method.

    The labels of a method have different heights, so that those of points close together can be
    read.
    """
    side = 1 if place % 2 else -1
    middle = (len(points) - 1) / 2
    for k, (_, point) in enumerate(points.iterrows()):
        if pd.isna(point[measure]):
            continue
        text = ax.annotate(
            f"{point['ratio']:g}",
            (point[measure], point["accuracy"]),
            xytext=(7 * side, 9 * (middle - k) + 4.5),  # not on the error bar
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=8,
            color=COLOURS[place],
            zorder=5,
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


# --------------------------------------------------------------------------- figure 4
@styled()
def fig4(frame: pd.DataFrame) -> Drawn:
    """Gain in accuracy of an NPT form over its method, by data set, ratio and evaluation.

    The gain of a seed is a difference of its two runs. A row of the data is a bar; `dataset` is
    "average" for the averages over data sets.
    """
    base, npt = method_pair(frame)
    rows = _rows(frame[frame["method"].isin((base, npt))], ["accuracy"])
    keys = ["ratio", "part", "dataset"]
    ratios, parts, datasets = (list(rows[key].unique()) for key in keys)
    pairs = rows.set_index([*keys, "seed", "method"])["accuracy"].unstack("method")
    pairs = pairs.reindex(columns=[base, npt])
    gains = (pairs[npt] - pairs[base]).rename("gain").reset_index()
    blocks = [_over_seeds(_per_seed(gains, keys, ["gain"]), keys)]
    if len(datasets) > 1:
        average = _over_seeds(_per_seed(gains, keys[:2], ["gain"]), keys[:2])
        blocks.append(average.assign(dataset=AVERAGE))
        datasets = [*datasets, AVERAGE]
    data = _stacked(blocks)
    order = pd.MultiIndex.from_product([ratios, parts, datasets], names=keys)
    data = data.set_index(keys).reindex(order).reset_index()
    figure = Figure(figsize=(max(5.0, 0.75 * len(datasets) + 1.5), 2.1 * len(ratios) + 1.2))
    panels = figure.subplots(len(ratios), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, ratio in zip(panels, ratios, strict=True):
        _draw_gains(ax, data[data["ratio"] == ratio], parts, datasets)
        ax.set_title(_tau(ratio, rows), loc="left")
    panels[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(parts))
    figure.supylabel("gain in accuracy (percentage points)", fontsize=9)
    figure.suptitle(f"Accuracy of {npt} minus {base}, {_data(rows['source'])}, {_seeds(rows)}")
    _write_notes(figure, _settings(rows))
    return figure, data


def _draw_gains(
    ax: Axes, bars: pd.DataFrame, parts: Sequence[str], datasets: Sequence[str]
) -> None:
    """Bars of each data set, one for each evaluation; the average is set apart."""
    width = 0.8 / len(parts)
    places = {name: k + 0.4 * (name == AVERAGE) for k, name in enumerate(datasets)}
    for k, part in enumerate(parts):
        of_part = bars[bars["part"] == part]
        x = of_part["dataset"].map(places) + (k - (len(parts) - 1) / 2) * width
        gain = of_part["gain"]
        ax.bar(
            x,
            gain,
            width,
            yerr=_spread(of_part, "gain"),
            color=COLOURS[k],
            label=part,
            error_kw={"elinewidth": 0.8, "capsize": 2},
        )
        for place in x[gain.isna()]:
            ax.text(
                place, 0, " missing", rotation=90, ha="center", va="bottom", fontsize=7, color=GREY
            )
    ax.axhline(0, color="black", linewidth=0.8)
    ax.grid(axis="y", linewidth=0.4)
    ax.set_axisbelow(True)
    names = [NAMES.get(name, name) for name in datasets]
    ax.set_xticks(list(places.values()), names, rotation=30, ha="right", rotation_mode="anchor")


# --------------------------------------------------------------------------- figure 5
@styled()
def fig5(frames: Mapping[str, pd.DataFrame]) -> Drawn:
    """Accuracy of an NPT form by the weights of its terms, averaged over data sets.

    frames: by name; each that is named after a weight (w1, w2) is a panel, with the values in its
        column TRAINER.NPT.<WEIGHT>. The runs of the method without terms may be in any of them.

    A row of the data is a point of three lines: base, new, and `hm`, the harmonic mean of these
    averages (Table 1 has another average, too). The method without terms, lines across, has neither
    weight nor value. Several ratios are rows of panels.
    """
    terms = {term.weight.lower(): term for term in TERMS.values() if term.weight.lower() in frames}
    every = _without_controls(pd.concat(list(frames.values()), ignore_index=True))
    base, npt = method_pair(every)
    if not terms or not all((frames[weight]["method"] == npt).any() for weight in terms):
        raise NPTError(f"the figure shows {npt} at several weights, and there are no such runs")
    tables = [_by_weight(frames[weight], npt, weight) for weight in terms]
    without = _rows(every[every["method"] == base], ["accuracy"])
    if len(without):
        tables.append(_lines(without, ["ratio"]).assign(method=base))
    data = _stacked(tables).set_index(["method", "weight"]).reset_index()
    ratios = list(every["ratio"].unique())
    figure = Figure(figsize=(3.9 * len(terms) + 1.5, 3.0 * len(ratios) + 1.0))
    panels = figure.subplots(len(ratios), len(terms), sharey="row", squeeze=False)
    for line, ratio in zip(panels, ratios, strict=True):
        here = data[data["ratio"] == ratio]
        for ax, (weight, term) in zip(line, terms.items(), strict=True):
            _draw_weight(ax, here[here["weight"] == weight], term)
            _draw_levels(ax, here[here["method"] == base], base)
        line[0].set_title(_tau(ratio, every), loc="left")
        line[0].set_ylabel("accuracy (%)")
    panels[0, -1].legend(**BESIDE)
    figure.suptitle(f"{npt}, {_data(every['source'], 'average of ')}, {_seeds(every)}")
    names = [
        method if pd.isna(value) else f"{weight} = {value:g}"
        for method, weight, value in zip(data["method"], data["weight"], data["value"], strict=True)
    ]
    _write_notes(figure, _gaps(data, names), _settings(every))
    return figure, data


def _by_weight(frame: pd.DataFrame, method: str, weight: str) -> pd.DataFrame:
    """The points of a panel."""
    key = f"TRAINER.NPT.{weight.upper()}"
    rows = _rows(frame[frame["method"] == method], ["accuracy"], [key])
    points = _lines(rows.rename(columns={key: "value"}), ["ratio", "value"])
    return points.assign(method=method, weight=weight).sort_values(
        ["ratio", "value"], ascending=[False, True]
    )


def _lines(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Averages of base, new and their harmonic mean over the data sets, for each of `by`."""
    per_seed = _per_seed(rows, [*by, "part"], ["accuracy"])["accuracy"].unstack("part")
    per_seed = per_seed[["base", "new"]]
    per_seed["hm"] = harmonic_mean(per_seed["base"], per_seed["new"])
    table = _over_seeds(per_seed, by)
    table["hm"] = harmonic_mean(table["base"], table["new"])
    return _add_missing(table, rows, by, ["accuracy"])


def _draw_weight(ax: Axes, points: pd.DataFrame, term: Term) -> None:
    """The three lines of a weight, with its default."""
    for place, (part, label) in enumerate(LINES.items()):
        _errorbar(ax, points, "value", part, place, label=label)
    ax.axvline(term.default, color=GREY, linestyle=":", linewidth=1, label="default weight")
    ax.set_xticks(points["value"])
    name, _, index = term.symbol.partition("_")
    symbol = rf", weight of ${name}_\mathrm{{{index}}}$" if index else ""
    ax.set_xlabel(f"{term.weight.lower()}{symbol}")


def _draw_levels(ax: Axes, levels: pd.DataFrame, label: str) -> None:
    """The method without terms, as lines across."""
    for level in levels.dropna(subset=list(LINES)).to_dict("records"):
        ax.plot([], [], "--", color=GREY, linewidth=1, label=label)  # of the legend
        for place, part in enumerate(LINES):
            ax.axhline(level[part], color=COLOURS[place], linestyle="--", linewidth=1)

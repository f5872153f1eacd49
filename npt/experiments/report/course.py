"""Figures of the page of a report: the course of trainings, and accuracy by training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from npt.experiments import state
from npt.experiments.figures import BESIDE, COLOURS, MARKERS, styled
from npt.experiments.report.page import Drawing
from npt.results import RESULT, TRAINING

# Figures of an epoch, as `npt.course` names them -> their words.
SHOWN = {"lcd": "LCD", "mid": "MID", "nc1": "NC1", "nc2": "NC2", "nc3": "NC3"}
GROUPS = ([1, 2, 4, 8, 16], ["1", "2-3", "4-7", "8-15", "16+"])  # of training images
SPLIT = "test"
TRAINED = ("base", "source")  # the parts whose images are trained on
KEYS = ["method", "ratio"]


@styled()
def draw(frame: pd.DataFrame) -> Drawing | None:
    """LCD, MID and NC of each epoch, means over data sets and seeds; None without trainings.

    An epoch that not all of a method's runs have, as a number, is no point of its line.
    """
    title = "LCD, MID and NC over training"
    rows, gaps = _of_trainings(frame, lambda record: record.get("course") or [])
    shown = [name for name in SHOWN if name in rows and rows[name].notna().any()]
    if not shown:
        return Drawing("course", title, problem=f"{title}: {gaps}") if gaps else None
    ratios = sorted(rows["ratio"].unique(), reverse=True)
    methods = list(dict.fromkeys(rows["method"]))
    figure = Figure(figsize=(2.1 * len(shown) + 1.6, 1.8 * len(ratios) + 0.6))
    axes = figure.subplots(len(ratios), len(shown), squeeze=False, sharex=True, sharey="col")
    for line, ratio in zip(axes, ratios, strict=True):
        for ax, name in zip(line, shown, strict=True):
            for place, method in enumerate(methods):
                own = rows[(rows["method"] == method) & (rows["ratio"] == ratio)]
                values = own.assign(value=own[name].astype(float)).groupby("epoch")["value"]
                means = values.mean().where(values.count() == own.groupby("epoch").size().max())
                look = _look(place) | {"label": _plain(method), "markersize": 2.5, "linewidth": 1}
                ax.plot(means.index, means, **look)
        line[0].set_ylabel(f"τ = {ratio:g}")
    for ax, name in zip(axes[0], shown, strict=True):
        ax.set_title(SHOWN[name])
    axes[-1][0].set_xlabel("epoch")
    axes[0][-1].legend(**BESIDE)
    return Drawing("course", title, figure, rows, note=gaps)


@styled()
def draw_counts(frame: pd.DataFrame) -> Drawing | None:
    """Accuracy of the trained classes by their number of training images; None without records.

    Means over classes, data sets and seeds, at each ratio below 1.
    """

    def classes(record: dict[str, Any]) -> list[dict[str, Any]]:
        found = record.get("per_class", {}).get(SPLIT, [])
        return [x for x in found if x.get("train_count") and x.get("accuracy") is not None]

    title = "Accuracy of trained classes by training images"
    rows, gaps = _of_trainings(frame[frame["ratio"] < 1], classes)
    if rows.empty:
        return Drawing("counts", title, problem=f"{title}: {gaps}") if gaps else None
    images = 2.0 ** np.floor(np.log2(rows["train_count"].astype(float)))
    rows = rows.assign(images=images.clip(upper=GROUPS[0][-1]))
    means = rows.groupby([*KEYS, "images"], sort=False)["accuracy"].mean().reset_index()
    ratios = sorted(means["ratio"].unique(), reverse=True)
    figure = Figure(figsize=(3.0 * len(ratios) + 1.6, 2.6))
    axes = figure.subplots(1, len(ratios), squeeze=False, sharey=True)[0]
    for ax, ratio in zip(axes, ratios, strict=True):
        for place, method in enumerate(dict.fromkeys(means["method"])):
            own = means[(means["method"] == method) & (means["ratio"] == ratio)]
            own = own.sort_values("images")
            look = _look(place) | {"label": _plain(method), "markersize": 4, "linewidth": 1}
            ax.plot(own["images"], own["accuracy"], **look)
        ax.set_xscale("log", base=2)
        ax.set_xticks(*GROUPS)
        ax.minorticks_off()
        ax.set(title=f"τ = {ratio:g}", xlabel="training images of the class")
    axes[0].set_ylabel("accuracy (%)")
    axes[-1].legend(**BESIDE)
    return Drawing("counts", title, figure, means, note=gaps)


def _of_trainings(
    frame: pd.DataFrame, entries: Callable[[dict[str, Any]], Sequence[dict[str, Any]]]
) -> tuple[pd.DataFrame, str]:
    """The entries of all trainings, with method and ratio, and a note on what is left out.

    A method is left out at a ratio where a run of it has no entries: its means would be of other
    data sets or seeds than those of the others.
    """
    rows, gaps = [], []
    trained = frame[frame["trained"].astype(bool) & frame["part"].isin(TRAINED)]
    for (method, ratio), runs in trained.groupby(KEYS, sort=False):
        found = [entries(_record(place)) for place in dict.fromkeys(runs["record"])]
        if all(found):
            head = {"method": method, "ratio": ratio}
            rows += [{**head, **entry} for of_run in found for entry in of_run]
        else:
            gaps.append(f"{method} τ = {ratio:g}")
    note = f"left out, not on record for every run: {', '.join(gaps)}" if gaps else ""
    return pd.DataFrame(rows), note


def _record(place: Any) -> dict[str, Any]:
    """The record of a training; empty if there is none. place: its folder, or NaN"""
    record = state.read_result(Path(place) / RESULT) if isinstance(place, str) else {}
    return record if record.get("task") == TRAINING else {}


def _look(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": "-" if place < len(COLOURS) else "--",
    }


def _plain(text: str) -> str:
    """A label that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")

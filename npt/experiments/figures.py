"""The paper's Fig. 1: text and image features of trained prompts, in two dimensions.

Each panel of a figure has the features of one test set (`npt.experiments.projections`): an arrow
from the origin for the text of each class, of t-SNE a star, and points for images. All panels have
the same scale, and those of a row are turned so that their texts are close to those of the first.

What figures share is here, too: the style, the colours, and `write_image`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from npt.errors import NPTError
from npt.experiments.features import SplitFeatures, features_of
from npt.experiments.projections import COLUMNS, POINTS_PER_CLASS, evenly, points_of
from npt.experiments.state import figures, read_result, read_run
from npt.files import atomic_write
from npt.results import RESULT
from npt.terms import headings

MOST_CLASSES = 10


# --------------------------------------------------------------------------- what figures share
# Okabe and Ito's colours, for every kind of colour vision, without yellow, which is hard to see on
# white, and with two of Tol's.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"),
    *("#56B4E9", "#000000", "#999999", "#882255", "#999933"),
)
MARKERS = "osD^vPX<>h"
GREY = "0.4"
DPI, MARGIN = 150, 0.1  # of an image: dots an inch, inches around what is drawn
BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}  # of a legend
STYLE: dict[str, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 11,
    "font.size": 9,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # publishers refuse the default, Type 3
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this package's style, whatever the user's own is, inside a `with` block."""
    with matplotlib.style.context(["default", STYLE]):
        yield


@styled()
def write_image(figure: Figure, *paths: Path) -> None:
    """Write a figure in the formats of the suffixes; as PNG or PDF, the same one as the same bytes.

    The figure is a `matplotlib.figure.Figure`, not one of pyplot, which would keep it and look for
    a display. It is laid out once, which takes as long as drawing it. NPTError if matplotlib has no
    such format.
    """
    known = sorted(figure.canvas.get_supported_filetypes())
    for path in paths:
        if path.suffix[1:].lower() not in known:
            raise NPTError(f"{path} cannot be a figure: end its name in .{', .'.join(known)}")
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    box = figure.get_tightbbox().padded(MARGIN)
    with matplotlib.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # else each file would be laid out again
        for path in paths:
            kind = path.suffix[1:].lower()
            with atomic_write(path, "wb") as file:
                metadata = {"CreationDate": None} if kind == "pdf" else None
                figure.savefig(file, format=kind, dpi=DPI, bbox_inches=box, metadata=metadata)


# --------------------------------------------------------------------------- plotting
TEXT = "text of a class"
POINTS: dict[str, tuple[str, dict[str, Any]]] = {  # by kind: words of the legend, looks
    "text": (
        TEXT,
        {"marker": "*", "markersize": 13, "markeredgecolor": "black", "zorder": 4},
    ),
    "mean": ("mean of its images", {"markersize": 7, "markeredgecolor": "white", "zorder": 3}),
    "image": (
        f"image (at most {POINTS_PER_CLASS} a class)",
        {"markersize": 3.5, "markeredgewidth": 0, "alpha": 0.5, "zorder": 1},
    ),
}


@dataclass(frozen=True)
class Panel:
    """A panel of a figure of features; without features, it is drawn as missing."""

    title: str
    features: SplitFeatures | None = None
    accuracy: float | None = None
    measures: dict[str, float] = field(default_factory=dict)  # those that have values, by heading

    @property
    def heading(self) -> str:
        """The title and, below it, the accuracy and the measures."""
        if self.accuracy is None:
            return self.title
        values = [f"{heading} {value:.3f}" for heading, value in self.measures.items()]
        return "\n".join([self.title, "  ".join([f"{self.accuracy:.1f}%", *values])])


def panel_of(folder: Path, part: str, title: str) -> Panel:
    """The panel of one evaluation of a run; missing if its test has no figures that count."""
    record = read_run(folder)
    done = figures(folder, list(record["commands"]), record["train"]) if record else {}
    test = done.get(part, {}).get("test")
    if not test:
        return Panel(title)
    names = read_result(folder / part / RESULT).get("headings", headings())
    values = ((heading, test.get(name)) for name, heading in names.items())
    measures = {heading: value for heading, value in values if value is not None}
    return Panel(title, features_of(folder, record, part), test["accuracy"], measures)


@styled()
def draw(
    rows: Sequence[tuple[str, Sequence[Panel]]],
    title: str = "",
    num_classes: int = MOST_CLASSES,
    projection: str = "pca",
) -> tuple[Figure, pd.DataFrame]:
    """A figure of rows of panels; all panels of a row have the same classes.

    Returns the figure and what it shows: `points_of` each panel, with its row, panel, accuracy and
    measures. A missing panel has one row, of kind "missing".
    """
    height, width = len(rows), max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(2.6 * width + 2.0, 2.9 * height + 0.5))
    axes = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True)
    drawn: list[dict[Any, Any]] = []
    for line, (name, panels) in zip(axes, rows, strict=True):
        like = None
        for ax, panel in zip(line, panels, strict=True):
            points = pd.DataFrame([("missing", "", nan, nan)], columns=COLUMNS)
            if panel.features is None:
                ax.text(0, 0, "missing", ha="center", va="center", color=GREY)
            else:
                there = np.unique(panel.features.labels)
                classes = there[evenly(len(there), num_classes)]
                points = points_of(panel.features, classes, like, projection)
                if like is None:
                    like = points.loc[points["kind"] == "text", ["x", "y"]].to_numpy()
                handles = _draw_points(ax, points)
                line[-1].legend(handles=handles, **BESIDE)
            values = {"accuracy": panel.accuracy, **panel.measures}
            drawn += points.assign(
                row=name, panel=panel.title.replace("\n", ", "), **values
            ).to_dict("records")
            ax.set(xticks=[], yticks=[], aspect="equal", title=panel.heading)
            ax.spines[:].set_visible(True)
        line[0].set_ylabel(name)
    data = pd.DataFrame(drawn)
    reach = 1.05 * float(np.nanmax(data[["x", "y"]].abs().to_numpy(), initial=0.1))
    axes[0, 0].set(xlim=(-reach, reach), ylim=(-reach, reach))
    figure.suptitle(title)
    return figure, data


def _draw_points(ax: Axes, points: pd.DataFrame) -> list[Artist]:
    """Draw one panel; returns the entries of its legend."""
    kinds = dict(list(points.groupby("kind")))
    names = list(kinds["text"]["class"])
    looks = dict(zip(names, zip(COLOURS, MARKERS, strict=True), strict=False))
    plain: dict[str, Any] = {"color": GREY, "linestyle": "none"}
    legend: list[Artist] = [
        # A class may be called $x$, which is no mathematics here.
        Line2D([], [], color=c, marker=m, label=name.replace("$", r"\$"), linestyle="none")
        for name, (c, m) in looks.items()
    ]
    if "mean" in kinds:  # directions and lengths mean something
        tips, origin = kinds["text"][["x", "y"]].to_numpy().T, np.zeros((2, len(names)))
        colours = [looks[name][0] for name in names]
        scale: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1}
        ax.quiver(*origin, *tips, color=colours, width=0.012, zorder=2, **scale)
        legend.append(Line2D([], [], marker=r"$\rightarrow$", markersize=12, label=TEXT, **plain))
    for kind, (label, look) in POINTS.items():
        if kind not in kinds or (kind == "text" and "mean" in kinds):
            continue
        for name, of_class in kinds[kind].groupby("class"):
            colour, marker = looks[name]
            ax.plot(of_class["x"], of_class["y"], **{"marker": marker, **look}, color=colour, ls="")
        shown = {key: look[key] for key in ("marker", "markersize") if key in look}
        legend.append(Line2D([], [], label=label, **{"marker": "o", **shown}, **plain))
    return legend


def plot(
    runs: Sequence[tuple[Path, dict[str, Any]]],
    path: Path,
    num_classes: int = 8,
    projection: str = "pca",
) -> None:
    """Plot the runs in a file. The suffix of its name selects the format."""
    if not 2 <= num_classes <= MOST_CLASSES:
        raise NPTError(f"--classes is {num_classes}: a figure shows 2 to {MOST_CLASSES} classes")
    record = runs[0][1]
    rows = [
        (
            f"{part} classes" if part in ("base", "new") else part,
            [panel_of(folder, part, run["label"]) for folder, run in runs],
        )
        for part in record["commands"]
    ]
    ratio = next((run["ratio"] for _, run in runs if run["train"]), record["ratio"])
    figure, _ = draw(rows, f"{record['dataset']}, τ = {ratio:g}", num_classes, projection)
    write_image(figure, path)

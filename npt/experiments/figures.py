"""The paper's Fig. 1: text and image features of trained prompts, in two dimensions.

Each panel of a figure has the features of one test set in a plane: an arrow from the origin for the
text of each class, and points for images. The features are unit vectors minus the mean of their
modality, because the two modalities of CLIP differ by a constant offset, which would dominate the
first component and does not depend on the class. All panels have the same scale, and those of a row
are turned so that their texts are close to those of the first.

What figures share is here, too: the style, the colours, and `write_image`.
"""

from __future__ import annotations

import os
import shlex
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from npt.errors import NPTError
from npt.experiments.state import figures, has_checkpoint, read_result, read_run, runs_in
from npt.files import atomic_write
from npt.flags import parse_args, setup_cfg
from npt.measure import Measured
from npt.results import RESULT
from npt.session import build, load
from npt.terms import headings

POINTS_PER_CLASS = 40
MOST_CLASSES = 10
COLUMNS = ["kind", "class", "x", "y"]  # of what a panel shows


# --------------------------------------------------------------------------- what figures share
# Okabe and Ito's colours, for every kind of colour vision, without yellow, which is hard to see on
# white, and with two of Tol's.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"),
    *("#56B4E9", "#000000", "#999999", "#882255", "#999933"),
)
MARKERS = "osD^vPX<>h"
GREY = "0.4"
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
def write_image(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix; as PNG or PDF, the same figure as the same bytes.

    The figure is a `matplotlib.figure.Figure`, not one of pyplot, which would keep it and look for
    a display. NPTError if matplotlib has no such format.
    """
    kind, known = path.suffix[1:].lower(), sorted(figure.canvas.get_supported_filetypes())
    if kind not in known:
        raise NPTError(f"{path} cannot be a figure: end its name in .{', .'.join(known)}")
    with atomic_write(path, "wb") as file:
        metadata = {"CreationDate": None} if kind == "pdf" else None
        figure.savefig(file, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)


# --------------------------------------------------------------------------- features
@dataclass(frozen=True)
class SplitFeatures:
    """The features of a test set, rows of length 1, with labels and class names."""

    text: np.ndarray  # (K, D)
    image: np.ndarray  # (N, D)
    labels: np.ndarray  # (N,)
    classnames: np.ndarray  # (K,)

    def save(self, path: Path) -> None:
        with atomic_write(path, "wb") as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> SplitFeatures:
        """NPTError, naming the file, if it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise NPTError(f"{path} is damaged ({error}): delete it and run again.") from error


def collect_features(trainer: Any, split: str = "test") -> SplitFeatures:
    """The features that a trainer's model computes for a split.

    Text features that depend on the image (CoCoOp) are averaged over the images. NPTError if the
    trainer does not provide features.
    """
    if not isinstance(trainer, Measured):
        raise NPTError(
            f"{type(trainer).__name__} does not provide features for a figure: use a trainer of "
            "this package, or its <Name>NPT"
        )
    found = trainer.collect(split)
    text, image, labels = (x.cpu().numpy() for x in (found.text, found.image, found.labels))
    return SplitFeatures(text, image, labels, np.array(trainer.dm.dataset.classnames))


def features_of(folder: Path, record: dict[str, Any], part: str) -> SplitFeatures:
    """The test features of one evaluation of a run.

    They are computed from the run's checkpoint once, and then read from features.npz.
    """
    path = folder / part / "features.npz"
    if path.is_file():
        return SplitFeatures.load(path)
    first = next(iter(record["commands"]))
    if record["train"] and not has_checkpoint(folder / first):
        raise NPTError(
            f"the model in {folder / first} was deleted: for a figure, run the experiment with "
            "keep_checkpoints: true"
        )
    from dassl.utils import set_random_seed

    args = parse_args(shlex.split(record["commands"][part])[2:])
    cfg = setup_cfg(args)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)
        trainer = build(cfg)
        load(trainer, str(folder / first) if record["train"] else "")
        features = collect_features(trainer)
    features.save(path)
    return features


# --------------------------------------------------------------------------- selection
def choose(
    folder: Path,
    labels: Sequence[str] | None = None,
    dataset: str | None = None,
    ratio: float | None = None,
    seed: int | None = None,
) -> list[tuple[Path, dict[str, Any]]]:
    """The runs of a figure, as (folder, record), in the order of `labels`.

    All have the same data set, evaluations, ratio and seed, of which the last two do not matter
    without training. The defaults are the first data set, the smallest ratio and the smallest seed.
    Runs that are not complete are left out.
    """
    found = [
        (path, run)
        for path, run in runs_in(folder)
        if all(figures(path, list(run["commands"]), run["train"]).values())
    ]
    if not found:
        raise NPTError(
            f"there are no complete runs in {folder}: run an experiment with --out {folder}"
        )
    first = found[0][1]["dataset"]
    found.sort(key=lambda run: run[1]["position"])
    smallest = min(record["ratio"] for _, record in found)
    for key, value, default in (("dataset", dataset, first), ("ratio", ratio, smallest)):
        value = default if value is None else value
        if all(record[key] != value for _, record in found):
            raise NPTError(f"--{key} {value}: no run in {folder} has this {key}")
        free = key == "ratio"  # without training
        found = [run for run in found if run[1][key] == value or (free and not run[1]["train"])]
    parts = list(found[0][1]["commands"])
    found = [run for run in found if list(run[1]["commands"]) == parts]
    trained = [record["seed"] for _, record in found if record["train"]]
    seed = min(trained, default=None) if seed is None else seed
    by_label = {r["label"]: (path, r) for path, r in found if not r["train"] or r["seed"] == seed}
    for label in labels or []:
        if label not in by_label:
            raise NPTError(
                f"--labels {label}: there is no such run in {folder}; there are "
                f"{', '.join(by_label)}"
            )
    return [by_label[label] for label in labels or by_label]


# --------------------------------------------------------------------------- coordinates
def project(
    features: SplitFeatures, classes: Sequence[int] | np.ndarray, like: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Text (C, 2) and image (N', 2) coordinates of C classes in their principal plane.

    The plane is fitted to the text features and the class means of the image features, so that all
    classes have the same weight. Every class must have images.

    like: text coordinates (C, 2) to which those of this plane are turned, or mirrored, as close as
        possible; distances and angles stay
    """
    text = features.text[list(classes)] - features.text[list(classes)].mean(0)  # (C, D)
    images = [features.image[features.labels == k] for k in classes]
    means = np.stack([x.mean(0) for x in images])  # (C, D)
    image = np.concatenate(images) - means.mean(0)  # (N', D)
    _, _, axes = np.linalg.svd(np.concatenate([text, means - means.mean(0)]), full_matrices=False)
    plane = axes[:2].T  # (D, 2)
    # The sign of a component is arbitrary: make its largest entry positive.
    plane = plane * np.where(np.abs(plane).max(0) == plane.max(0), 1, -1)
    if like is not None:
        left, _, right = np.linalg.svd((text @ plane).T @ like)
        plane = plane @ left @ right
    return text @ plane, image @ plane


def points_of(
    features: SplitFeatures, classes: Sequence[int] | np.ndarray, like: np.ndarray | None = None
) -> pd.DataFrame:
    """What a panel shows of these classes: rows of kind, class (its name), x, y.

    Kinds are the "text" of a class, the "mean" of all its images, and "image", at most
    POINTS_PER_CLASS of a class. like: as for `project`
    """
    text, image = project(features, classes, like)
    labels = np.concatenate([np.full((features.labels == k).sum(), k) for k in classes])
    images = [image[labels == k] for k in classes]
    rows = [
        (kind, str(features.classnames[k]), x, y)
        for kind, places in (
            ("image", [x[evenly(len(x), POINTS_PER_CLASS)] for x in images]),
            ("mean", [x.mean(0, keepdims=True) for x in images]),
            ("text", text[:, None]),
        )
        for k, of_class in zip(classes, places, strict=True)
        for x, y in of_class
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def evenly(number: int, limit: int) -> np.ndarray:
    """At most `limit` of the numbers below `number`, from the first to the last."""
    return np.linspace(0, number - 1, min(number, limit)).round().astype(int)


# --------------------------------------------------------------------------- plotting
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
    rows: Sequence[tuple[str, Sequence[Panel]]], title: str = "", num_classes: int = MOST_CLASSES
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
                points = points_of(panel.features, there[evenly(len(there), num_classes)], like)
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
    sizes: dict[str, dict[str, Any]] = {
        "image": {"markersize": 3.5, "markeredgewidth": 0, "alpha": 0.5, "zorder": 1},
        "mean": {"markersize": 7, "markeredgecolor": "white", "zorder": 3},
    }
    for kind, look in sizes.items():
        for name, of_class in kinds[kind].groupby("class"):
            colour, marker = looks[name]
            ax.plot(of_class["x"], of_class["y"], marker, color=colour, **look)
    tips, origin = kinds["text"][["x", "y"]].to_numpy().T, np.zeros((2, len(names)))
    colours = [looks[name][0] for name in names]
    scale: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1}
    ax.quiver(*origin, *tips, color=colours, width=0.012, zorder=2, **scale)
    plain: dict[str, Any] = {"color": GREY, "linestyle": "none"}
    return [
        *(Line2D([], [], color=c, marker=m, label=name) for name, (c, m) in looks.items()),
        Line2D([], [], marker=r"$\rightarrow$", markersize=12, label="text of a class", **plain),
        Line2D([], [], marker="o", markersize=7, label="mean of its images", **plain),
        Line2D(
            [],
            [],
            marker="o",
            markersize=3.5,
            label=f"image (at most {POINTS_PER_CLASS} a class)",
            **plain,
        ),
    ]


def plot(runs: Sequence[tuple[Path, dict[str, Any]]], path: Path, num_classes: int = 8) -> None:
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
    figure, _ = draw(rows, f"{record['dataset']}, τ = {ratio:g}", num_classes)
    write_image(figure, path)

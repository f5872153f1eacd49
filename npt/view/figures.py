"""The figures of a run's page, each small enough for a phone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from npt.calibration import BINS, error_of_confidences, reliability
from npt.experiments import figures as shared
from npt.experiments.features import SplitFeatures
from npt.experiments.figures import COLOURS, GREY, MOST_CLASSES, styled
from npt.experiments.projections import POINTS_PER_CLASS, evenly
from npt.view.gather import View
from npt.view.names import shortened

# Inches: at the width of a phone, or of half of one, letters have about the size of a text.
WIDE, HALF = (4.6, 2.8), (2.3, 1.8)
BLUE, ORANGE = COLOURS[0], COLOURS[3]
COURSE = {  # figures of an epoch, as `npt.course` names them -> their words
    "loss": "loss",
    "loss_clip": "CLIP's loss",
    "loss_lc": "L_LC",
    "loss_mi": "L_MI",
    **{name: name.upper() for name in ("lcd", "mid", "nc1", "nc2", "nc3")},
}
PROJECTIONS = {"pca": "principal plane (PCA)", "tsne": "t-SNE"}


@dataclass(frozen=True)
class Drawing:
    """A figure, what it is called, and in words what it shows."""

    name: str
    title: str
    figure: Figure
    note: str = ""


@styled()
def by_training_images(per_class: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Accuracy of each class by its training images; None where these are all the same."""
    known = [x for x in per_class if x.get("train_count") and x.get("accuracy") is not None]
    counts = [x["train_count"] for x in known]
    if len(set(counts)) < 2:
        return None
    values = [x["accuracy"] for x in known]
    figure, ax = _figure(WIDE)
    ax.plot(counts, values, "o", color=BLUE, alpha=0.8, markersize=4, label="a class")
    means = {n: np.mean([v for c, v in zip(counts, values, strict=True) if c == n]) for n in counts}
    if len(known) > 2 * len(means):
        points = sorted(means.items())
        ax.plot(*zip(*points, strict=True), "-", color=ORANGE, linewidth=1, label="their mean")
        ax.legend()
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.set(xlabel="training images of the class", ylabel="accuracy (%)", ylim=(-3, 103))
    title = "Accuracy of each class by its training images"
    return Drawing("classes", title, figure, f"{len(known)} classes")


def course(entries: Sequence[Mapping[str, Any]]) -> Iterator[Drawing]:
    """Each figure over the epochs of a training."""
    names = dict.fromkeys(name for entry in entries for name in entry if name != "epoch")
    for name in sorted(names, key=lambda x: list(COURSE).index(x) if x in COURSE else len(COURSE)):
        points = [(x["epoch"], x[name]) for x in entries if x.get(name) is not None]
        if points:
            note = f"{points[0][1]:.4g} to {points[-1][1]:.4g}"
            yield Drawing(f"course-{name}", COURSE.get(name, name), _line(points), note)


@styled()
def _line(points: Sequence[tuple[int, float]]) -> Figure:
    figure, ax = _figure(HALF)
    ax.plot(*zip(*points, strict=True), "o-", color=BLUE, linewidth=1, markersize=2)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="epoch")
    return figure


@styled()
def cosines(texts: Mapping[str, Tensor]) -> Drawing | None:
    """The cosines of all pairs of class texts, against those of an ETF; None for one class."""
    pairs = {words: _pairs(text) for words, text in texts.items()}
    if not pairs or not all(len(x) for x in pairs.values()):
        return None
    classes = len(next(iter(texts.values())))
    etf = -1 / (classes - 1)
    every = np.concatenate([*pairs.values(), [etf]])
    bins = np.linspace(every.min() - 0.01, every.max() + 0.01, 50)
    figure, ax = _figure(WIDE)
    looks: Any = ({"color": BLUE, "alpha": 0.6}, {"color": ORANGE, "histtype": "step"})
    for (words, values), look in zip(pairs.items(), looks, strict=False):
        ax.hist(values, bins, label=f"{words}: mean {values.mean():.3f}", **look)
    ax.axvline(etf, color="black", linestyle="--", linewidth=1, label=f"ETF: {etf:.3f}")
    ax.set(xlabel="cosine of two class texts", ylabel="pairs of classes")
    figure.legend(loc="outside upper left")
    note = "; ".join(
        f"{words}: {values.min():.3f} to {values.max():.3f}" for words, values in pairs.items()
    )
    return Drawing("cosines", "Cosines between the texts of classes", figure, note)


def _pairs(text: Tensor) -> np.ndarray:
    """The cosines of all pairs of rows of length 1."""
    first, second = np.triu_indices(len(text), 1)
    return (text @ text.t()).numpy()[first, second]


def calibration(view: View, temperature: float) -> Iterator[Drawing]:
    """Reliability diagrams: accuracy by confidence, at temperature 1 and at the fitted one."""
    tested = view.tested
    if tested is None:
        return
    confidences = {1.0: tested.confidence, temperature: tested.probabilities[:, 0]}
    for number, (at, confidence) in enumerate(confidences.items()):
        if bool(confidence.isfinite().all()):
            error = error_of_confidences(confidence, tested.hits)
            title = f"Reliability at temperature {at:.3g}"
            note = f"expected calibration error {error:.2f} %, {BINS} intervals"
            figure = _reliability(confidence, tested.hits)
            yield Drawing(f"reliability-{number}", title, figure, note)


@styled()
def _reliability(confidence: Tensor, hits: Tensor) -> Figure:
    """Accuracy by confidence, and below the share of images."""
    found = reliability(confidence, hits)
    figure = Figure(figsize=(3.2, 3.4))
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    centres, width = (np.arange(BINS) + 0.5) / BINS, 0.9 / BINS
    ax.bar(centres, found.accuracy.nan_to_num().numpy(), width, color=BLUE)
    ax.plot([0, 1], [0, 1], "--", color="black", linewidth=1)
    below.bar(centres, (found.images / found.images.sum()).numpy(), width, color=GREY)
    ax.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    below.set(xlabel="confidence", ylabel="images")
    return figure


def features(view: View) -> Iterator[Drawing]:
    """Texts and images of at most MOST_CLASSES classes in two dimensions."""
    tested = view.tested
    if tested is None:
        return
    there = tested.labels.unique().tolist()
    accuracy = [_accuracy(view.per_class[k]) for k in there]
    ranked = [there[i] for i in np.argsort(accuracy, kind="stable")]
    chosen = sorted(ranked[i] for i in evenly(len(ranked), MOST_CLASSES))
    if len(chosen) < 2:
        return
    inside = torch.isin(tested.labels, torch.tensor(chosen))
    place = {label: k for k, label in enumerate(chosen)}
    split = SplitFeatures(
        text=tested.texts[chosen].numpy(),
        image=tested.images[inside].numpy(),
        labels=np.array([place[k] for k in tested.labels[inside].tolist()]),
        classnames=np.array(shortened([view.names[k] for k in chosen], 22)),
    )
    note = f"{len(chosen)} classes"
    if len(there) > len(chosen):
        note += f" of {len(there)}, evenly from the least to the best recognised"
    note += f"; a sample of at most {POINTS_PER_CLASS} images of each"
    for name, words in PROJECTIONS.items():
        title = f"Texts and images of classes, {words}"
        yield Drawing(f"features-{name}", title, _points(split, name), note)


@styled()
def _points(split: SplitFeatures, projection: str) -> Figure:
    """A panel with its legend below, as it fits a phone."""
    figure, _ = shared.draw([("", [shared.Panel("", split)])], "", MOST_CLASSES, projection)
    beside = figure.axes[0].get_legend()
    if beside is not None:
        labels = [label.get_text() for label in beside.get_texts()]
        handles = [handle for handle in beside.legend_handles if handle is not None]
        beside.remove()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.set_size_inches(4.6, 6.0)
    return figure


def _accuracy(entry: Mapping[str, Any]) -> float:
    value = entry.get("accuracy")
    return math.inf if value is None else value


def _figure(size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size)
    return figure, figure.subplots()

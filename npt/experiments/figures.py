"""The paper's Fig. 1: text and image features of trained prompts, in two dimensions.

The figure has a column for each trainer and a row for each evaluation (base and new classes). Each
panel shows the two largest principal components of its text and image features. The features are
unit vectors minus the mean of their modality, because the two modalities of CLIP differ by a
constant offset, which would dominate the first component and does not depend on the class. All
panels have the same scale.
"""

from __future__ import annotations

import os
import shlex
import zlib
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import matplotlib
import numpy as np

from npt.errors import NPTError
from npt.experiments.state import figures, has_checkpoint, read_result, runs_in
from npt.files import atomic_write
from npt.flags import parse_args, setup_cfg
from npt.measure import Measured
from npt.results import RESULT
from npt.session import build, load
from npt.terms import headings

matplotlib.use("Agg")  # works without a display; must be set before pyplot is imported
from matplotlib import pyplot as plt

POINTS_PER_CLASS = 40


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


# --------------------------------------------------------------------------- features
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

    All have the same data set, ratio and seed. The defaults are the first data set, the smallest
    ratio and the smallest seed. Runs that are not complete are left out.
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
    found.sort(key=lambda run: run[1]["position"])
    smallest = min(record["ratio"] for _, record in found)
    for key, value, default in (
        ("dataset", dataset, found[0][1]["dataset"]),
        ("ratio", ratio, smallest),
    ):
        value = default if value is None else value
        found = [run for run in found if run[1][key] == value]
        if not found:
            raise NPTError(f"--{key} {value}: no run in {folder} has this {key}")
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


# --------------------------------------------------------------------------- plotting
def project(
    features: SplitFeatures, classes: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Text (C, 2) and image (N', 2) coordinates of C classes in their principal plane.

    The plane is fitted to the text features and the class means of the image features, so that all
    classes have the same weight.
    """
    text = features.text[list(classes)] - features.text[list(classes)].mean(0)  # (C, D)
    images = [features.image[features.labels == k] for k in classes]
    means = np.stack([x.mean(0) for x in images])  # (C, D)
    image = np.concatenate(images) - means.mean(0)  # (N', D)
    _, _, axes = np.linalg.svd(np.concatenate([text, means - means.mean(0)]), full_matrices=False)
    plane = axes[:2].T  # (D, 2)
    # The sign of a component is arbitrary: make its largest entry positive.
    plane = plane * np.where(np.abs(plane).max(0) == plane.max(0), 1, -1)
    return text @ plane, image @ plane


def plot(runs: Sequence[tuple[Path, dict[str, Any]]], path: Path, num_classes: int = 8) -> None:
    """Plot the runs in a file. The suffix of its name selects the format."""
    if not 2 <= num_classes <= 10:
        raise NPTError(f"--classes is {num_classes}: a figure shows 2 to 10 classes")
    parts = list(runs[0][1]["commands"])
    figure, panels = plt.subplots(
        len(parts),
        len(runs),
        figsize=(3.4 * len(runs) + 1.6, 3.5 * len(parts) + 0.4),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    reach = 0.0
    for row, part in zip(panels, parts, strict=True):
        for panel, (folder, record) in zip(row, runs, strict=True):
            features = features_of(folder, record, part)
            last = len(features.classnames) - 1
            shown = np.linspace(0, last, min(num_classes, last + 1)).round().astype(int)
            reach = max(reach, _plot_panel(panel, features, shown))
            panel.set_title(_title(folder / part, record["label"]), fontsize=9)
        row[0].set_ylabel(f"{part} classes" if part in ("base", "new") else part)
        row[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
    panels[0, 0].set(xlim=(-reach, reach), ylim=(-reach, reach))
    record = runs[0][1]
    figure.suptitle(
        f"{record['dataset']}, tau {record['ratio']:g}: text (stars) and images (dots)", fontsize=10
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _title(folder: Path, label: str) -> str:
    """The label and, below it, the accuracy and the measures of the test that have values."""
    result = read_result(folder / RESULT)
    test = result.get("results", {}).get("test")
    if not test:
        return label
    values = (
        (heading, test.get(name)) for name, heading in result.get("headings", headings()).items()
    )
    measures = [f"{heading} {value:.3f}" for heading, value in values if value is not None]
    return "\n".join([label, "  ".join([f"{test['accuracy']:.1f}%", *measures])])


def _plot_panel(panel: Any, features: SplitFeatures, classes: np.ndarray) -> float:
    """Plot one panel; returns the largest absolute coordinate of its points, with a margin."""
    text, image = project(features, classes)
    labels = np.concatenate([np.full((features.labels == k).sum(), k) for k in classes])
    for place, k in enumerate(classes):
        colour = f"C{place}"
        points = image[labels == k]
        shown = points[:POINTS_PER_CLASS]
        panel.plot(shown[:, 0], shown[:, 1], ".", color=colour, markersize=3, alpha=0.6, zorder=1)
        # A line from the text of a class to the mean of its images: L_MI reduces this distance.
        ends = np.stack([text[place], points.mean(0)])
        panel.plot(ends[:, 0], ends[:, 1], "-", color=colour, linewidth=0.8, zorder=2)
        star = {"markersize": 13, "markeredgecolor": "black", "markeredgewidth": 0.6, "zorder": 3}
        name = str(features.classnames[k])
        panel.plot(*text[place], "*", color=colour, label=name, linestyle="none", **star)
    panel.set(xticks=[], yticks=[])
    panel.set_aspect("equal", adjustable="box")
    return 1.05 * float(max(np.abs(text).max(), np.abs(image).max()))

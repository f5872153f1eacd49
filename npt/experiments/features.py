"""The text and image features of tested models: computed from a checkpoint, kept, exported."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from yacs.config import CfgNode

from npt.errors import NPTError
from npt.experiments.state import figures, has_checkpoint, has_trained, read_result, runs_in
from npt.files import atomic_write
from npt.flags import parse_args, recorded_cfg, setup_cfg
from npt.later import later
from npt.results import RESULT, TRAINING
from npt.session import build, load

if TYPE_CHECKING:
    from npt import measure
else:  # figures of features that are kept need no torch
    measure = later("npt.measure")

KEPT = "features.npz"  # in the folder of an evaluation
PROJECTOR = "projector_config.pbtxt"  # the name that TensorBoard looks for
Record = dict[str, Any]


@dataclass(frozen=True)
class SplitFeatures:
    """The features of a test set, rows of length 1, with labels and class names."""

    text: np.ndarray  # (K, D)
    image: np.ndarray  # (N, D)
    labels: np.ndarray  # (N,)
    classnames: np.ndarray  # (K,)
    files: np.ndarray = field(default_factory=lambda: np.array([], dtype=str))  # (N,) or unknown

    def save(self, path: Path) -> None:
        with atomic_write(path, "wb") as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> SplitFeatures:
        """NPTError, naming the file, if it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in arrays.files})
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            BadZipFile,
            zlib.error,
        ) as error:
            raise NPTError(f"{path} is damaged ({error}): delete it and run again.") from error


# --------------------------------------------------------------------------- from a model
def collect_features(trainer: Any, split: str = "test") -> SplitFeatures:
    """The features that a trainer's model computes for a split.

    Text features that depend on the image (CoCoOp) are averaged over the images. NPTError if the
    trainer does not provide features.
    """
    if not isinstance(trainer, measure.Measured):
        raise NPTError(
            f"{type(trainer).__name__} does not provide features for a figure: use a trainer of "
            "this package, or its <Name>NPT"
        )
    found = trainer.collect(split)
    text, image, labels = (x.cpu().numpy() for x in (found.text, found.image, found.labels))
    dataset = trainer.dm.dataset
    paths = [item.impath for item in getattr(dataset, split) or dataset.test]
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    files = [os.path.relpath(path, above) for path in paths]
    names = np.array(dataset.classnames)
    return SplitFeatures(text, image, labels, names, np.array(files, dtype=str))


def features_of(folder: Path, record: Record, part: str) -> SplitFeatures:
    """The test features of one evaluation of an experiment's run.

    They are computed from the run's checkpoint once, and then read from features.npz.
    """
    path = folder / part / KEPT
    if path.is_file():
        return SplitFeatures.load(path)
    first = next(iter(record["commands"]))
    if record["train"] and not has_checkpoint(folder / first):
        raise NPTError(
            f"the model in {folder / first} was deleted: for a figure, run the experiment with "
            "keep_checkpoints: true"
        )
    cfg = setup_cfg(parse_args(shlex.split(record["commands"][part])[2:]))
    features = _computed(cfg, str(folder / first) if record["train"] else "")
    features.save(path)
    return features


def features_of_folder(folder: Path) -> SplitFeatures:
    """The test features of the model that train.py has trained or tested in `folder`.

    NPTError if there is no record of such a run, or its model is gone.
    """
    record = read_result(folder / RESULT)
    if "task" not in record or "config" not in record:  # damaged, or of an early version
        raise NPTError(f"{folder} has no {RESULT} that says what was run: run it again first")
    model = str(folder) if record["task"] == TRAINING else (record["model"] or {}).get("folder")
    if record["task"] == TRAINING and not has_trained(folder):
        raise NPTError(f"the training in {folder} has not ended: run its command again first")
    return _computed(recorded_cfg(record), model or "")


def _computed(cfg: CfgNode, model: str) -> SplitFeatures:
    """The features of the model in the folder `model`, or of an untrained one."""
    from dassl.utils import set_random_seed

    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)
        trainer = build(cfg)
        load(trainer, model)
        return collect_features(trainer)


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


# --------------------------------------------------------------------------- export
def export(folder: Path, out: Path, **wanted: Any) -> list[Path]:
    """Write the test features of runs into `out`; returns the folder of each test set.

    folder: of train.py's run, or of an experiment, of which `choose` takes the `wanted` runs

    Each test set has a folder with features.npz and the files of TensorBoard's projector, whose
    list projector_config.pbtxt is in `out`. NPTError if a run has no features.
    """
    found = dict(unique(_named(folder, wanted)))
    for name, features in found.items():
        features.save(out / name / KEPT)
        _write_rows(features, out / name)
    with atomic_write(out / PROJECTOR) as file:
        for name in found:
            file.write(
                f'embeddings {{\n  tensor_name: "{name}"\n  tensor_path: "{name}/tensors.tsv"\n'
                f'  metadata_path: "{name}/metadata.tsv"\n}}\n'
            )
    return [out / name for name in found]


def _named(folder: Path, wanted: dict[str, Any]) -> Iterator[tuple[str, SplitFeatures]]:
    """The features of each test set, with a name for its files."""
    if (folder / RESULT).is_file():
        given = [f"--{key}" for key, value in wanted.items() if value is not None]
        if given:
            raise NPTError(f"{folder} is one run: leave out {', '.join(given)}")
        yield _plain(folder.resolve().name), features_of_folder(folder)
        return
    for path, record in choose(folder, **wanted):
        of_run = f"{record['label']}-tau{record['ratio']:g}-seed{record['seed']}"
        for part in record["commands"]:
            yield _plain(f"{record['dataset']}-{part}-{of_run}"), features_of(path, record, part)


def _plain(name: str) -> str:
    """A name without what a path, or the list of the projector, gives a meaning."""
    return re.sub(r"[^A-Za-z0-9=._+-]+", "_", name).lstrip(".") or "run"


def unique(named: Iterable[tuple[str, SplitFeatures]]) -> Iterator[tuple[str, SplitFeatures]]:
    """The same, with a number behind a name that one before has."""
    taken: set[str] = set()
    for name, features in named:
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        free = next(x for x in itertools.chain([name], numbered) if x not in taken)
        taken.add(free)
        yield free, features


def _write_rows(features: SplitFeatures, folder: Path) -> None:
    """One row for each text and image: its entries, and its kind, class and file."""
    names = [str(name) for name in features.classnames]
    files = features.files if len(features.files) else [""] * len(features.labels)
    rows = [("text", name, "") for name in names]
    rows += [("image", names[k], file) for k, file in zip(features.labels, files, strict=True)]
    with atomic_write(folder / "tensors.tsv") as file:
        every = np.concatenate([features.text, features.image])
        np.savetxt(file, every, fmt="%.9g", delimiter="\t")
    with atomic_write(folder / "metadata.tsv") as file:
        for row in [("kind", "class", "file"), *rows]:
            # A cell has no tab and no new line.
            file.write("\t".join(" ".join(cell.split()) for cell in row) + "\n")

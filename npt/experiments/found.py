"""Frames, as of `npt.experiments.frame`, from whatever runs there are in a folder.

For output trees that no experiment has made: those of scripts/npt, of train.py by hand, and of
other repositories of the CoOp family. Expected are all combinations of what is there.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from npt.experiments import state
from npt.experiments.collect import CONFIG_OF, rows_of
from npt.experiments.frame import HEAD
from npt.experiments.training_sets import TYPE, labelled, type_of
from npt.identity import FREE
from npt.results import RESULT, TRAINING

ZERO_SHOT = {"ZeroshotCLIP": "CLIP"}  # trainers without training -> method
NPT = "NPT"
KEYS = ["method", "ratio", "seed", "source", "part", "dataset"]
# Keys in which runs of one trainer may differ without being of another method.
OF_FRAMES = {
    *("SEED", "DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES", "DATASET.IMBALANCE_RATIO"),
    *(TYPE, *FREE),  # labels always say the type
}
BASE_TO_NEW, TRANSFER = "base_to_new", "cross_dataset"


def frames_found(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The frames of base-to-new runs and of transfers that `folder` has results of, by protocol.

    NPTError if there are no runs.
    """
    rows = _evaluations(Path(folder))
    frame = pd.DataFrame(rows)
    if frame.empty:
        return {}
    twice = frame.duplicated(KEYS, keep="last")
    for place in frame[twice]["folder"]:
        print(
            f"warning: {Path(folder, place)} does not count: a later folder has a run with the "
            "same configuration",
            file=sys.stderr,
        )
    frame = frame[~twice]
    parts = frame["part"].isin(("base", "new"))
    found = {BASE_TO_NEW: frame[parts], TRANSFER: frame[~parts]}
    return {name: _expected(rows) for name, rows in found.items() if len(rows)}


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    """A row of a frame for each run with an accuracy on test images."""
    runs = []
    for run in rows_of(folder):
        if run["trainer"]:
            runs.append(run)
        else:
            where = Path(folder, run["folder"])
            print(f"warning: {where} does not count: it names no trainer", file=sys.stderr)
    trainings = {PurePosixPath(run["folder"]): run for run in runs if run["task"] == TRAINING}
    # The run whose method, ratio, seed and data a test has: its training, if that is here.
    of = [run if run["task"] == TRAINING else _training_of(run, trainings) or run for run in runs]
    differing = _differing(of)
    return [
        _evaluation(folder, run, training, _label(training, differing))
        for run, training in zip(runs, of, strict=True)
        if run.get("accuracy") is not None and run["finished"]
    ]


def _evaluation(
    folder: Path, run: Mapping[str, Any], training: Mapping[str, Any], label: str
) -> dict[str, Any]:
    source, dataset = _dataset(training["dataset"]), _dataset(run["dataset"])
    part = run["classes"] if run.get("classes") in ("base", "new") else "source"
    if part == "source" and source != dataset:
        part = dataset
    seed = training.get("seed")
    head = ("folder", "model", "dataset", CONFIG_OF)
    return {
        **{key: value for key, value in run.items() if key not in head},
        "method": label,
        "ratio": _ratio(training),
        "seed": -1 if seed is None else int(seed),
        "trained": run["trainer"] not in ZERO_SHOT,
        "setting": "",
        "source": source,
        "part": part,
        "dataset": dataset,
        "train_counts": _counts(folder, training),
        "folder": run["folder"],
        "record": str(folder / run["folder"]),
    }


def _counts(folder: Path, training: Mapping[str, Any]) -> list[int] | None:
    return state.read_result(folder / training["folder"] / RESULT).get("train_counts")


def _training_of(run: Mapping[str, Any], trainings: Mapping[PurePosixPath, Any]) -> Any:
    """The training whose model was tested, if it is here; its folder may have been moved."""
    if not isinstance(run.get("model"), str):
        return None
    model = PurePosixPath(run["model"]).parts
    ends = [path for path in trainings if _same_end(path.parts, model)]
    return trainings[max(ends, key=lambda path: len(path.parts))] if ends else None


def _same_end(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether one path is the end of the other."""
    length = min(len(one), len(other))
    return length > 0 and one[-length:] == other[-length:]


def _differing(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The config keys in which the runs of each trainer differ, beside those of a frame."""
    seen: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        values = seen.setdefault(run["trainer"], {})
        for key, value in run[CONFIG_OF].items():
            if key not in OF_FRAMES:
                values.setdefault(key, set()).add(str(value))
    return {
        trainer: [key for key, found in values.items() if len(found) > 1]
        for trainer, values in seen.items()
    }


def _label(run: Mapping[str, Any], differing: Mapping[str, Sequence[str]]) -> str:
    """The method of a run, with what tells it apart from other runs of its trainer."""
    trainer, config = run["trainer"], run[CONFIG_OF]
    words = [f"{key.rpartition('.')[2]}={config.get(key)}" for key in differing[trainer]]
    kind = type_of(config, _ratio(run), trainer not in ZERO_SHOT)
    return labelled(" ".join([_method(trainer), *words]), kind)


def _ratio(run: Mapping[str, Any]) -> float:
    return 1.0 if run.get("ratio") is None else float(run["ratio"])


def _method(trainer: str) -> str:
    if trainer in ZERO_SHOT:
        return ZERO_SHOT[trainer]
    base = trainer.removesuffix(NPT)
    return f"{base}+{NPT}" if base and base != trainer else trainer


def _dataset(name: str) -> str:
    """The name of a data set's config; that of an unknown one as it is."""
    from npt.datasets import mini
    from npt.datasets.catalog import CATALOG

    if name in CATALOG:
        return CATALOG[name].config
    return mini.folder_name(name) if name in mini.ROWS else name


def _expected(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with NaN for the combinations that are not there.

    Methods without training have the first of their seeds, and are repeated at every ratio.
    """
    trained = rows[rows["trained"]]
    ratios = sorted(trained["ratio"].unique() if len(trained) else [1.0], reverse=True)
    tests = rows[["source", "part", "dataset"]].drop_duplicates()
    wanted = []
    for method, group in rows.groupby("method", sort=False):
        first = bool(group["trained"].iloc[0])
        seeds = sorted(trained["seed"].unique()) if first else [group["seed"].min()]
        for ratio, seed in itertools.product(ratios, seeds):
            wanted += [
                (method, ratio, seed, *test, first) for test in tests.itertuples(index=False)
            ]
    expected = pd.DataFrame(wanted, columns=[*KEYS, "trained"])
    values = rows.drop(columns="trained")
    alone = values[~rows["trained"]].drop(columns="ratio")
    zero_shot = alone.merge(pd.DataFrame({"ratio": ratios}), how="cross")
    both = pd.concat([values[rows["trained"]], zero_shot]) if len(zero_shot) else values
    frame = expected.merge(both.drop_duplicates(KEYS), on=KEYS, how="left")
    frame["setting"] = ""
    frame["train_counts"] = frame["train_counts"].astype(object)
    return frame[[*HEAD, *(column for column in frame if column not in HEAD)]]

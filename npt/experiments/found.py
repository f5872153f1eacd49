"""Frames, as of `npt.experiments.frame`, from whatever runs there are in a folder.

For output trees that no experiment has made: those of scripts/npt, of train.py by hand, and of
other repositories of the CoOp family. Expected are all combinations of what is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from npt.experiments import state
from npt.experiments.collect import collect
from npt.experiments.frame import HEAD
from npt.results import RESULT, TRAINING

ZERO_SHOT = {"ZeroshotCLIP": "CLIP"}  # trainers without training -> method
NPT = "NPT"
KEYS = ["method", "ratio", "seed", "source", "part", "dataset"]
# What tells runs of one trainer apart, beside the columns of a frame.
VARIANT = ["backbone", "shots", "epochs"]
BASE_TO_NEW, TRANSFER = "base_to_new", "cross_dataset"


def frames_found(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The frames of base-to-new runs and of transfers that `folder` has results of, by protocol.

    NPTError if there are no runs.
    """
    rows = _evaluations(Path(folder))
    frame = pd.DataFrame(rows)
    if frame.empty:
        return {}
    frame = frame.sort_values("order", kind="stable").drop_duplicates(KEYS, keep="last")
    parts = frame["part"].isin(("base", "new"))
    found = {BASE_TO_NEW: frame[parts], TRANSFER: frame[~parts]}
    return {name: _expected(rows) for name, rows in found.items() if len(rows)}


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    """A row of a frame for each run with an accuracy on test images."""
    runs = collect(folder)
    runs = runs.reindex(
        columns=[*runs.columns, *(c for c in ("model", "accuracy") if c not in runs)]
    )
    trainings = {
        PurePosixPath(run["folder"]): run
        for run in runs.to_dict("records")
        if run["task"] == TRAINING
    }
    labels = _labels(runs)
    found = []
    for order, (run, label) in enumerate(zip(runs.to_dict("records"), labels, strict=True)):
        if pd.isna(run["accuracy"]) or not run["finished"]:
            continue
        training = run if run["task"] == TRAINING else _training_of(run, trainings)
        trained = run["trainer"] not in ZERO_SHOT
        of = training or run  # whose ratio, seed and data are the run's
        source, dataset = _dataset(of["dataset"]), _dataset(run["dataset"])
        classes = run.get("classes")
        part = classes if classes in ("base", "new") else "source"
        if part == "source" and source != dataset:
            part = dataset
        found.append(
            {
                **{k: x for k, x in run.items() if k not in ("folder", "model", "dataset")},
                "method": label,
                "ratio": float(of["ratio"]) if pd.notna(of.get("ratio")) else 1.0,
                "seed": int(of["seed"]) if pd.notna(of.get("seed")) else -1,
                "trained": trained,
                "setting": "",
                "source": source,
                "part": part,
                "dataset": dataset,
                "train_counts": _counts(folder, of),
                "folder": run["folder"],
                "order": order,
            }
        )
    return found


def _counts(folder: Path, training: Mapping[str, Any]) -> list[int] | None:
    return state.read_result(folder / training["folder"] / RESULT).get("train_counts")


def _training_of(run: Mapping[str, Any], trainings: Mapping[PurePosixPath, Any]) -> Any:
    """The training whose model was tested, if it is here; its folder may have been moved."""
    if not isinstance(run["model"], str):
        return None
    model = PurePosixPath(run["model"]).parts
    ends = [path for path in trainings if _same_end(path.parts, model)]
    return trainings[max(ends, key=lambda path: len(path.parts))] if ends else None


def _same_end(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether one path is the end of the other."""
    length = min(len(one), len(other))
    return length > 0 and one[-length:] == other[-length:]


def _labels(runs: pd.DataFrame) -> list[str]:
    """The method of each run, with what differs between runs of one trainer."""
    variants = [key for key in VARIANT if key in runs]
    differing = {
        trainer: [key for key in variants if rows[rows["task"] == TRAINING][key].nunique() > 1]
        for trainer, rows in runs.groupby("trainer")
    }
    return [
        " ".join([_method(run["trainer"]), *(f"{k}={run[k]}" for k in differing[run["trainer"]])])
        for run in runs.to_dict("records")
    ]


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
    order = ["method", "ratio", "seed", "source", "part", "dataset"]
    wanted = []
    for method, group in rows.groupby("method", sort=False):
        first = bool(group["trained"].iloc[0])
        seeds = sorted(trained["seed"].unique()) if first else [group["seed"].min()]
        for ratio, seed in itertools.product(ratios, seeds):
            wanted += [
                (method, ratio, seed, *test, first) for test in tests.itertuples(index=False)
            ]
    expected = pd.DataFrame(wanted, columns=[*order, "trained"])
    values = rows.drop(columns=["trained", "order"])
    alone = values[~rows["trained"]].drop(columns="ratio")
    zero_shot = alone.merge(pd.DataFrame({"ratio": ratios}), how="cross")
    both = pd.concat([values[rows["trained"]], zero_shot]) if len(zero_shot) else values
    frame = expected.merge(both.drop_duplicates(order), on=order, how="left")
    frame["setting"] = ""
    frame["train_counts"] = frame["train_counts"].astype(object)
    return frame[[*HEAD, *(column for column in frame if column not in HEAD)]]

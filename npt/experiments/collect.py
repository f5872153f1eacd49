"""The results of any output folder as one row a run: ours, and those of other CoOp-family code.

A run is a folder that train.py has written: result.json says everything. Where there is none, the
logs are read: log.txt, and the dated logs of later starts, whose last result counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from npt import identity
from npt.errors import NPTError
from npt.experiments import state
from npt.experiments.training_sets import TYPE, columns_of
from npt.results import END_OF_TRAINING, RESULT, TRAINING

# column -> key of the config
COLUMNS = {
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "dataset": "DATASET.NAME",
    "classes": "DATASET.SUBSAMPLE_CLASSES",
    "ratio": "DATASET.IMBALANCE_RATIO",
    "imbalance_type": TYPE,
    "shots": "DATASET.NUM_SHOTS",
    "seed": "SEED",
    "epochs": "OPTIM.MAX_EPOCH",
}
CONFIG_OF = "config"  # a column that is not written
LOG = "log.txt"
SPLIT = re.compile(r"Evaluate on the \*(\w+)\* set")
FIGURE = re.compile(r"\* (accuracy|error|macro_f1): ([-+.\deE]+)%")
CONFIG = re.compile(r"( *)([\w.]+):(?: (.*))?")
NUMBERS = ("ratio", "shots", "seed", "epochs")


def collect(folder: str | Path) -> pd.DataFrame:
    """One row for each run in `folder`, in the order of the paths.

    Columns: folder (relative), task ("training" or "evaluation"), finished, those of COLUMNS, model
    (the folder of the checkpoint that was tested), the figures, and the real size of the training
    set (`training_sets.COLUMNS`). Figures of the test images have their own names, others begin
    with the split, as in val_accuracy. NPTError if there is no run.
    """
    return pd.DataFrame(rows_of(folder)).drop(columns=CONFIG_OF)


def rows_of(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of `collect`, with the whole config of each run by full key under CONFIG_OF."""
    where = Path(folder)
    if not where.is_dir():
        raise NPTError(f"there is no folder {where}: name the output folder of some runs")
    rows = [
        {"folder": _relative(path, where), **row} for path in _folders(where) for row in _rows(path)
    ]
    if not rows:
        raise NPTError(
            f"{where} has neither a {RESULT} nor a {LOG} with results: name the output folder of "
            "some runs"
        )
    return rows


def _folders(where: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(where):
        folders.sort()
        if any(name == RESULT or name.startswith(LOG) for name in files):
            yield Path(path)


def _relative(path: Path, where: Path) -> str:
    return path.relative_to(where).as_posix()


def _rows(folder: Path) -> list[dict[str, Any]]:
    records = [folder / RESULT, *state.evaluations_beside(folder)]
    found = [_of_record(record) for record in map(state.read_result, records) if record]
    return found or [row for row in [_of_logs(folder)] if row]


# --------------------------------------------------------------------------- our records
def _of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    config = identity.flat(record.get("config", {}))
    results = record["results"]
    return {
        "task": record.get("task"),
        "finished": record.get("finished", True),
        **{column: config.get(key) for column, key in COLUMNS.items()},
        CONFIG_OF: config,
        "model": (record.get("model") or {}).get("folder"),
        **_figures(results),
        **record.get("training", {}),
        **{key: record.get(key) for key in ("train_seconds", "peak_memory_bytes")},
        **columns_of(record.get("train_counts")),
    }


def _figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name if split == "test" else f"{split}_{name}": value
        for split, figures in results.items()
        for name, value in figures.items()
    }


# --------------------------------------------------------------------------- logs of others
def _of_logs(folder: Path) -> dict[str, Any]:
    """The row of a folder with logs only; empty if they have no result."""
    row: dict[str, Any] = {}
    for path in sorted(folder.glob(f"{LOG}*"), key=_order):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        row = _of_log(lines) or row
    return row


def _order(path: Path) -> tuple[int, str]:
    return (path.name != LOG, path.name)


def _of_log(lines: Sequence[str]) -> dict[str, Any]:
    arguments, config = _sections(lines)
    tests = arguments.get("eval_only") == "True"
    ended = any(line.strip() in END_OF_TRAINING for line in lines)
    results = _results(lines, after_training=not tests)
    if not results:
        return {}
    head = {column: config.get(key) for column, key in COLUMNS.items()}
    return {
        "task": "evaluation" if tests else TRAINING,
        "finished": tests or ended,
        **{key: _number(value) if key in NUMBERS else value for key, value in head.items()},
        CONFIG_OF: config,
        "model": (arguments.get("model_dir") or None) if tests else None,
        **_figures(results),
    }


def _results(lines: Sequence[str], after_training: bool) -> dict[str, dict[str, float]]:
    """The last figures of each split, of a training those after its end."""
    found: dict[str, dict[str, float]] = {}
    split, counts = "test", not after_training
    for line in lines:
        counts = counts or line.strip() in END_OF_TRAINING
        if match := SPLIT.search(line):
            split = match[1]
        elif counts and (match := FIGURE.search(line)):
            found.setdefault(split, {})[match[1]] = float(match[2])
    return found


def _sections(lines: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The arguments and the config that a log begins with, by full key."""
    sections: dict[str, dict[str, str]] = {"** Arguments **": {}, "** Config **": {}}
    current: dict[str, str] | None = None
    above: list[tuple[int, str]] = []  # indentation and key of the nodes around a line
    for line in lines:
        if line.strip() in sections:
            current = sections[line.strip()]
        elif line.startswith("Collecting env info"):
            break
        elif current is not None and (match := CONFIG.fullmatch(line.rstrip())):
            depth = len(match[1])
            above = [(d, key) for d, key in above if d < depth]
            if match[3] is None:
                above.append((depth, match[2]))
            current[".".join([*(key for _, key in above if key != match[2]), match[2]])] = (
                match[3] or ""
            ).strip("'\"")
    arguments, config = sections.values()
    return arguments, config


def _number(text: str | None) -> float | int | str | None:
    for kind in (int, float):
        try:
            return kind(text or "")
        except ValueError:
            continue
    return text

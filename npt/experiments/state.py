"""What the folder of an experiment has on record, and which of its runs are complete.

A run's folder has run.json, its settings, and a folder for each evaluation with its result.json.
All commands have one notion of what is done: figures count if run.json and their result.json can be
read and the run's training has ended. A record that is damaged counts as not there; `damages` names
it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from npt import identity
from npt.errors import NPTError
from npt.experiments.plan import Evaluation, Run
from npt.experiments.planned import Planned
from npt.files import read_record
from npt.results import RESULT, Results

RECORD = "run.json"
SETTLED = 2.0  # seconds after which another content of a file shows in its time, on any disk
Record = dict[str, Any]
SETTINGS: dict[str, type | tuple[type, ...]] = {  # what run.json must have
    "label": str,
    "trainer": str,
    "dataset": str,
    "ratio": (int, float),
    "seed": int,
    "train": bool,
    "params": dict,
    "position": int,
    "commands": dict,
}


# --------------------------------------------------------------------------- records
def read_run(folder: Path) -> Record:
    """The run.json of a run's folder; empty if there is none or it is damaged."""
    return _readable(folder / RECORD, _is_run)


def read_result(path: Path) -> Record:
    """A result.json; empty if there is none or it is damaged."""
    return _readable(path, _is_result)


def damages(folder: Path, parts: Iterable[str], beside: bool = False) -> dict[Path, str]:
    """The damaged records of a run and its evaluations, with a sentence for each.

    beside: also those of `evaluations_beside`
    """
    found = {}
    records: list[tuple[Path, Callable[[Record], bool]]] = [(folder / RECORD, _is_run)]
    for part in parts:
        more = evaluations_beside(folder / part) if beside else []
        records += [(path, _is_result) for path in (folder / part / RESULT, *more)]
    for path, fits in records:
        try:
            _read(path, fits)
        except NPTError as error:
            found[path] = str(error)
    return found


def evaluations_beside(folder: Path) -> list[Path]:
    """The records of evaluations that --eval-only has written beside the record of `folder`."""
    return sorted(folder.glob(f"{Path(RESULT).stem}-*.json"))


def _readable(path: Path, fits: Callable[[Record], bool]) -> Record:
    try:
        return _read(path, fits)
    except NPTError:
        return {}


def _read(path: Path, fits: Callable[[Record], bool]) -> Record:
    """The record at `path`, empty if there is none. NPTError, naming it, if it is damaged."""
    try:
        found = os.stat(path)
    except OSError:
        found = None
    if found is None and not os.path.lexists(path):
        return {}
    if found is None or time.time() - found.st_mtime < SETTLED:
        content = read_record(path)
    else:
        content = _settled(path, (found.st_ino, found.st_mtime_ns, found.st_size))
    if not fits(content):
        raise NPTError(f"{path} lacks what a run writes there: delete it and run again.")
    return content


@lru_cache(maxsize=512)
def _settled(path: Path, version: tuple[int, ...]) -> Record:
    """The record at `path`, which is read several times for a table; nobody may change it.

    version: of the file, so that another one is read
    """
    return read_record(path)


def _is_run(content: Record) -> bool:
    optional = ("opts", "data", "configs")
    if not all(isinstance(content.get(key), kind) for key, kind in SETTINGS.items()):
        return False
    if not all(isinstance(content.get(key, {}), dict) for key in optional):
        return False
    commands, params = content["commands"].values(), content["params"].values()
    texts = commands and all(isinstance(command, str) for command in commands)
    return bool(texts) and not any(isinstance(value, (dict, list)) for value in params)


def _is_result(content: Record) -> bool:
    figures, headings = content.get("results"), content.get("headings", {})
    return (
        isinstance(figures, dict)
        and all(map(_are_numbers, figures.values()))
        and _are_numbers(content.get("training", {}))
        and isinstance(headings, dict)
        and all(isinstance(heading, str) for heading in headings.values())
    )


def _are_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(
        x is None or isinstance(x, (int, float)) for x in values.values()
    )


# --------------------------------------------------------------------------- what is done
def figures(folder: Path, parts: Sequence[str], train: bool) -> dict[str, dict[str, Results]]:
    """The figures of a run that count, by evaluation and split.

    parts: the names of its evaluations; the first one is the training's
    train: whether the run trains; then no figures count before the training has ended
    """
    run = read_run(folder)
    counts = {part: is_of_run(run, folder, part) for part in parts}
    if not run or (train and not (counts[parts[0]] and has_trained(folder / parts[0]))):
        return {part: {} for part in parts}
    return {
        part: read_result(folder / part / RESULT).get("results", {}) if counts[part] else {}
        for part in parts
    }


def is_of_run(run: Record, folder: Path, part: str) -> bool:
    """Whether a result.json, if there is one, has the configuration that run.json says."""
    wanted = run.get("configs", {}).get(part)  # an earlier version does not say
    config = read_result(folder / part / RESULT).get("config")
    return wanted is None or config is None or config_digest(config) == wanted


def config_digest(config: dict[str, Any]) -> str:
    """A checksum of the keys of a config that figures depend on."""
    kept = {key: x for key, x in identity.flat(config).items() if key not in identity.FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def has_trained(folder: Path) -> bool:
    """Whether the record in `folder` is of a training that has ended."""
    record = read_result(folder / RESULT)
    if "task" in record:
        return record.get("finished") is True
    return bool(record) and record.get("train_seconds", 0) is not None  # of an earlier version


def missing(run: Run | Planned) -> dict[str, list[str]]:
    """The splits without figures that count, by evaluation."""
    done = figures(run.folder, [e.name for e in run.evaluations], run.train)
    return {e.name: [s for s in e.splits if s not in done[e.name]] for e in run.evaluations}


def missing_splits(run: Run, evaluation: Evaluation) -> list[str]:
    return missing(run)[evaluation.name]


def is_complete(run: Run | Planned) -> bool:
    return not any(missing(run).values())


def seconds(path: Path) -> float:
    """The seconds of training and tests that a result.json tells of."""
    record = read_result(path)
    tests = (x.get("seconds") or 0.0 for x in record.get("results", {}).values())
    return sum(map(float, tests), float(record.get("train_seconds") or 0.0))


def runs_in(folder: Path) -> Iterator[tuple[Path, Record]]:
    """The folder and the run.json of every run in `folder`. Damaged records are named on stderr."""
    for path in sorted(folder.rglob(RECORD)):
        run = read_run(path.parent)
        warn(path.parent, run, run.get("commands", ()))
        if run:
            yield path.parent, run


def warn(folder: Path, run: Record, parts: Iterable[str]) -> None:
    """Name on stderr the records of a run that do not count."""
    parts = list(parts)
    for words in damages(folder, parts, beside=True).values():
        print(f"warning: {words}", file=sys.stderr)
    for part in parts:
        if not is_of_run(run, folder, part):
            print(
                f"warning: {folder / part / RESULT} is of another configuration than "
                f"{folder / RECORD}: it does not count",
                file=sys.stderr,
            )


# --------------------------------------------------------------------------- checkpoints, leftovers
def has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("*/model*.pth.tar*"))


def remove_checkpoints(run: Run) -> None:
    """Delete the models and event files of a run, which are most of its size."""
    for evaluation in run.evaluations:
        folder = run.output(evaluation)
        for inside in folder.iterdir() if folder.is_dir() else ():
            if inside.is_dir():
                shutil.rmtree(inside)


def remove_damaged(run: Run) -> None:
    """Delete the damaged records of a run."""
    for path in damages(run.folder, [evaluation.name for evaluation in run.evaluations]):
        _remove(path)


def remove_result(folder: Path) -> None:
    _remove(folder / RESULT)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""The list of runs of `--dry-run`: the state of each, and how long and how large the rest will be.

    seconds of a training = start + steps x (step + prompt x prompts in a step)
    seconds of a test     = start + images x (image + prompt x prompts for an image)

The image features of a frozen encoder are computed once (`npt.experiments.running.frozen`): `image`
is 0 for a test set that a run before has encoded.

The constants are in costs.yaml beside the experiments. Where the output folder has runs of the same
kind that are complete, their times are taken instead. Nothing is built, and no data set is read
(`python -m npt.experiments estimate` times real steps).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from tabulate import tabulate

from npt.config import find_config
from npt.errors import NPTError
from npt.experiments import state
from npt.experiments.plan import Evaluation, Run, dataset_name
from npt.experiments.running.validation import without
from npt.experiments.status import words
from npt.flags import parse_args, setup_cfg
from npt.imbalance import TYPES, Ranked
from npt.results import RESULT
from npt.yaml_file import read_yaml


class Size(NamedTuple):
    """What is known of a data set without reading it."""

    classes: int
    tests: int  # images
    folder: str  # below DATASET.ROOT; "" if it is made at its first use


@dataclass(frozen=True)
class Costs:
    """The constants of an estimate; seconds and megabytes."""

    device: str  # for which they hold, and where they come from
    start: float  # of a process: weights, data set
    step: float  # of a training step, without what depends on classes
    prompt: float  # for each prompt in a training step; a test takes a third
    image: float  # of a test image: reading, encoding
    per_image: tuple[str, ...]  # trainers with a prompt for each class and image
    frozen: tuple[tuple[str, ...], ...]  # trainers that share the features of a test set
    model: dict[str, float]  # megabytes of a checkpoint by trainer; NPT adds nothing
    record: float  # megabytes of log and result.json


@dataclass(frozen=True)
class Line:
    """A run in the list."""

    run: Run
    state: str
    seconds: float | None  # that remain; None: the data set is not known
    megabytes: float

    @property
    def open(self) -> bool:
        return self.state != COMPLETE


COMPLETE, MISSING = "complete", "no data:"


def read_costs(folder: str | Path) -> Costs:
    path = find_config(Path(folder) / "costs.yaml")
    try:
        values = read_yaml(path, "constants")
        groups = tuple(tuple(group) for group in values["frozen"])
        return Costs(**{**values, "per_image": tuple(values["per_image"]), "frozen": groups})
    except (TypeError, KeyError) as error:
        raise NPTError(f"{path} does not have the constants of an estimate ({error})") from error


def lines(runs: Sequence[Run], costs: Costs) -> list[Line]:
    """A Line for each run, in their order."""
    found = []
    for run, seconds in zip(runs, remaining(runs, costs), strict=True):
        megabytes = sum(_megabytes(x, costs) for x in _rest(run))
        found.append(Line(run, _state(run), seconds, megabytes))
    return found


def remaining(runs: Sequence[Run], costs: Costs | None) -> list[float | None]:
    """The seconds that remain of each run; None where nothing is known.

    costs: None where nobody has estimated them; then only complete runs tell of others
    """
    measured, encoded = _measured(runs), set[tuple]()
    found: list[float | None] = []
    for run in runs:
        seconds = [_seconds(x, costs, measured, encoded) for x in _rest(run)]
        found.append(None if None in seconds else sum(x for x in seconds if x))
    return found


def render(found: Sequence[Line], costs: Costs, jobs: int) -> str:
    """The list as text, with totals below it."""
    rows = [
        [line.state, _time(line), _disk(line), line.run.name, str(line.run.folder)]
        for line in found
    ]
    table = tabulate(rows, ["state", "time", "disk", "run", "folder"], tablefmt="plain")
    waiting = [line for line in found if line.open]
    seconds = sum(line.seconds or 0.0 for line in waiting)
    disk = sum(line.megabytes for line in waiting)
    total = (
        f"{len(found)} runs, {len(found) - len(waiting)} complete. The rest: about "
        f"{words(seconds)} of work, {words(seconds / jobs)} with {jobs} at a time, and "
        f"{disk / 1000:.1f} GB. Times: {costs.device}; those of runs like complete ones here are "
        "measured."
    )
    unknown = sorted({dataset_name(line.run.dataset) for line in waiting if line.seconds is None})
    if unknown:
        total += f" Without {', '.join(unknown)}, whose size is not known."
    return f"{table}\n\n{total}"


def _time(line: Line) -> str:
    return "-" if not line.open else "?" if line.seconds is None else words(line.seconds)


def _disk(line: Line) -> str:
    return f"{line.megabytes:.1f} MB" if line.open else "-"


# --------------------------------------------------------------------------- state
def _state(run: Run) -> str:
    if state.is_complete(run):
        return COMPLETE
    first = _first(run)
    missing = [name for name, splits in state.missing(run).items() if splits]
    if run.train and state.has_trained(first):
        return f"{len(missing)} of {len(run.evaluations)} tests to do"
    if run.train and any(first.glob("resume/*")):
        return "interrupted"
    absent = _missing_data(run)
    if run.dataset in absent:
        return f"{MISSING} {dataset_name(run.dataset)}"
    names = ", ".join(dataset_name(x) for x in absent)
    return f"to do without {names}" if names else "to do"


def _rest(run: Run) -> list[Run]:
    """What can still be done of a run; all of it if that is nothing."""
    if state.is_complete(run):
        return []
    return without([run], _missing_data(run)) or [run]


def _missing_data(run: Run) -> list[str]:
    """The data sets of a run whose folder is not there."""
    root = str(dict(run.opts).get("DATASET.ROOT", ""))
    found: dict[str, None] = {}
    for evaluation in run.evaluations:
        size = size_of(evaluation.dataset)
        if size is not None and size.folder and not Path(root, size.folder).is_dir():
            found[evaluation.dataset] = None
    return list(found)


# --------------------------------------------------------------------------- time
def size_of(dataset: str) -> Size | None:
    """The published size of a data set of the paper, or that of one of the mini suite."""
    from npt.datasets import mini
    from npt.datasets.catalog import CATALOG

    name = dataset_name(dataset)
    for row in CATALOG.values():
        if row.config == name:
            return Size(row.classes, row.counts[2], row.folder)
    for key, small in mini.ROWS.items():
        if mini.folder_name(key) == name:
            return Size(len(small.classes), small.counts[2] * len(small.classes), "")
    return None


def _seconds(
    run: Run, costs: Costs | None, measured: dict[tuple, float], encoded: set[tuple]
) -> float | None:
    total = 0.0
    for evaluation, splits in state.missing(run).items():
        wanted = next(e for e in run.evaluations if e.name == evaluation)
        key = _kind(run, wanted)
        if not splits:
            continue
        if key in measured:
            total += measured[key]
            continue
        size = size_of(wanted.dataset)
        # Without shots, it is all images of the data set, whose number is not known.
        if costs is None or size is None or run.shots < 1:
            return None
        total += _of_test(run, wanted, size, costs, encoded)
        if run.train and wanted == run.evaluations[0]:
            total += _of_training(run, wanted, size, costs)
    return total


def _of_training(run: Run, evaluation: Evaluation, size: Size, costs: Costs) -> float:
    cfg = setup_cfg(parse_args(run.argv(evaluation)))
    classes = _classes(evaluation, size)
    batch = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    images = _training_images(cfg, classes)
    steps = max(1, images // batch) * cfg.OPTIM.MAX_EPOCH
    prompts = classes * (batch if run.trainer in costs.per_image else 1)
    return costs.start + steps * (costs.step + costs.prompt * prompts)


def _training_images(cfg: Any, classes: int) -> int:
    """As many as if every class had DATASET.NUM_SHOTS images before, and equally many at first."""
    shots, rule = cfg.DATASET.NUM_SHOTS, TYPES[cfg.DATASET.IMBALANCE_TYPE]
    ranked = Ranked([shots] * classes, [1] * classes, list(range(classes)))
    return sum(rule(ranked, shots, cfg.DATASET.IMBALANCE_RATIO))


def _of_test(
    run: Run, evaluation: Evaluation, size: Size, costs: Costs, encoded: set[tuple]
) -> float:
    classes = _classes(evaluation, size)
    images = size.tests * classes / size.classes
    each = costs.prompt * classes / 3 if run.trainer in costs.per_image else 0.0
    if _encodes(run, evaluation, costs, encoded):
        each += costs.image
    return costs.start + images * each


def _encodes(run: Run, evaluation: Evaluation, costs: Costs, encoded: set[tuple]) -> bool:
    """Whether a test encodes its images; `encoded` are the test sets whose features are known."""
    group = next((group for group in costs.frozen if run.trainer in group), None)
    if group is None:
        return True
    test_set = (group, evaluation.dataset, evaluation.classes)
    first = test_set not in encoded
    encoded.add(test_set)
    return first


def _classes(evaluation: Evaluation, size: Size) -> int:
    base = math.ceil(size.classes / 2)
    return {"base": base, "new": size.classes - base}.get(evaluation.classes, size.classes)


def _kind(run: Run, evaluation: Evaluation) -> tuple:
    """What the time of an evaluation depends on, with the training if it is the first one."""
    return (run.folder.parent, evaluation.name)  # all seeds


def _measured(runs: Iterable[Run]) -> dict[tuple, float]:
    """The mean seconds of the evaluations on record, by kind."""
    found: dict[tuple, list[float]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            path = run.output(evaluation) / RESULT
            if path.exists() and not state.missing_splits(run, evaluation):
                found.setdefault(_kind(run, evaluation), []).append(state.seconds(path))
    return {kind: fmean(values) for kind, values in found.items()}


def _megabytes(run: Run, costs: Costs) -> float:
    open_parts = sum(bool(splits) for splits in state.missing(run).values())
    model = costs.model.get(run.trainer.removesuffix("NPT"), 0.0)
    trains = run.train and run.keep_checkpoints and not state.has_trained(_first(run))
    return open_parts * costs.record + (model if trains else 0.0)


def _first(run: Run) -> Path:
    return run.output(run.evaluations[0])

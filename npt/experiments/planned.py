"""OUT/plan.json: the runs that a folder should have, so that one need not read configs to know.

`carry_out` adds the runs of each call, also those of another experiment in the same folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npt.errors import NPTError
from npt.experiments.plan import Evaluation, Run, dataset_name, united
from npt.files import read_record, write_record

PLAN = "plan.json"
FIELDS: dict[str, type] = {"name": str, "trainer": str, "dataset": str, "train": bool}


@dataclass(frozen=True)
class Planned:
    """What plan.json says of a run; `npt.experiments.state` takes it as it takes a Run."""

    folder: Path
    name: str
    trainer: str
    dataset: str  # its name
    train: bool
    evaluations: tuple[Evaluation, ...]

    @classmethod
    def of(cls, run: Run) -> Planned:
        name = dataset_name(run.dataset)
        return cls(run.folder, run.name, run.trainer, name, run.train, run.evaluations)


def remember(out: Path, runs: Iterable[Run]) -> None:
    """Add runs to the plan of `out`; a plan that is damaged is replaced."""
    try:
        found = {planned.folder: planned for planned in read(out)}
    except NPTError:
        found = {}
    for planned in map(Planned.of, runs):
        before = found.get(planned.folder, planned)
        both = united(before.evaluations, planned.evaluations)
        found[planned.folder] = replace(planned, evaluations=both)
    rows = {path.relative_to(out).as_posix(): _row(x) for path, x in found.items()}
    write_record(out / PLAN, {"runs": rows})


def read(out: Path) -> list[Planned]:
    """The runs of the plan of `out`, none if there is no plan. NPTError if it is damaged."""
    path = out / PLAN
    if not path.exists():
        return []
    try:
        return [_planned(out / folder, row) for folder, row in read_record(path)["runs"].items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise NPTError(f"{path} lacks what is written there: delete it and run again.") from error


def _row(run: Planned) -> dict[str, Any]:
    tests = {
        test.name: {"dataset": test.dataset, "classes": test.classes, "splits": list(test.splits)}
        for test in run.evaluations
    }
    return {**{field: getattr(run, field) for field in FIELDS}, "evaluations": tests}


def _planned(folder: Path, row: dict[str, Any]) -> Planned:
    if not all(isinstance(row[field], kind) for field, kind in FIELDS.items()):
        raise TypeError
    tests = row["evaluations"].items()
    return Planned(
        folder,
        **{field: row[field] for field in FIELDS},
        evaluations=tuple(_evaluation(name, test) for name, test in tests),
    )


def _evaluation(name: str, row: dict[str, Any]) -> Evaluation:
    splits: Sequence[str] = row["splits"]
    if not all(isinstance(text, str) for text in (row["dataset"], row["classes"], *splits)):
        raise TypeError
    return Evaluation(name, row["dataset"], row["classes"], tuple(splits))

"""Reproduces the tables and figures of the paper: `python -m npt.experiments reproduce table1`.

configs/experiments/<suite>/<name>.yaml says what a table runs. What was asked for is kept in
OUT/asked/<name>.json, so that a report knows which runs it should have.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from npt.config import find_config
from npt.errors import NPTError
from npt.experiments import forecast
from npt.experiments.plan import Experiment, dataset_name, merge
from npt.experiments.reading import Selection, check_known, load_experiment, methods_beside
from npt.experiments.running.console import carry_out
from npt.experiments.running.pool import Executor
from npt.files import read_record, write_record

PAPER_SUITE = "paper"
SUITES = (PAPER_SUITE, "mini")
# In the order of the paper. Tables whose runs are those of another one follow it.
NAMES = (
    "table1",
    "table1_appendix",
    "table2",
    "table3",
    "table4",
    "fig1",
    "fig2",
    "fig4",
    "fig5",
)
ALL = "all"
STUDIES = ("long_tail",)  # tables that the paper does not have, and that `all` does not make
KNOWN = (*NAMES, *STUDIES)
ASKED = "asked"  # a folder in OUT


@dataclass(frozen=True)
class Request:
    """A table that was asked for, and with what selection."""

    suite: str
    experiment: Experiment
    selection: Selection


def folder_of(suite: str) -> str:
    check_known("suite", [suite], SUITES)
    return f"configs/experiments/{suite}"


def _file(suite: str, name: str) -> str:
    return f"{folder_of(suite)}/{name}.yaml"


def load(names: Sequence[str], suite: str, selection: Selection) -> list[Request]:
    """The tables of these names with the selected runs, without those that have none.

    A selected method that none of them names is added to all of them. NPTError if a name, or a
    selected method or data set, is not known, or nothing is left.
    """
    if ALL in names:
        names = NAMES
    for name in names:
        if name not in KNOWN:
            raise NPTError(f"there is no {name}; there are {', '.join(KNOWN)} and {ALL}")
    files = [_file(suite, name) for name in names]
    known = methods_beside(find_config(_file(suite, NAMES[0])))
    check_known("methods", selection.methods, [*known, *_methods(files)])
    check_known("datasets", selection.datasets, _datasets(suite))
    selection = _with_added(selection, files)
    found = [Request(suite, load_experiment(file, (), selection), selection) for file in files]
    found = [request for request in found if request.experiment.parts]
    if not found:
        raise NPTError(
            f"{', '.join(names)} of suite {suite} has no run with these methods and data sets"
        )
    return found


def _with_added(selection: Selection, files: Sequence[str]) -> Selection:
    named = _methods(files)
    added = dict.fromkeys((*selection.added, *(x for x in selection.methods if x not in named)))
    return replace(selection, added=tuple(added))


def _methods(files: Sequence[str]) -> list[str]:
    """The labels of all methods in the files of tables."""
    parts = [part for file in files for part in load_experiment(file).parts.values()]
    return [label for part in parts for label in part.trainers]


@cache
def _datasets(suite: str) -> list[str]:
    """The names of all data sets that the tables of a suite train or test on."""
    parts = [p for name in KNOWN for p in load_experiment(_file(suite, name)).parts.values()]
    return [dataset_name(x) for part in parts for x in (*part.datasets, *part.targets)]


def reproduce(
    names: Sequence[str],
    suite: str,
    out: Path,
    selection: Selection,
    executor: Executor,
    dry_run: bool = False,
) -> int:
    """Execute the runs of tables and figures, or list them; returns the exit code."""
    requests = load(names, suite, selection)
    runs = merge(run for request in requests for run in request.experiment.runs(out))
    if dry_run:
        costs = forecast.read_costs(folder_of(suite))
        found = forecast.lines(runs, costs)
        print(forecast.render(found, costs, executor.at_a_time))
        return 0
    _check_suite(out, suite)

    def begin() -> None:
        for request in requests:
            remember(out, request)

    title = "\n".join(request.experiment.title for request in requests)
    return carry_out(title, runs, out, executor, begin)


# --------------------------------------------------------------------------- what was asked for
def remember(out: Path, request: Request) -> None:
    selection = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(request.selection).items()
    }
    path = out / ASKED / f"{request.experiment.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, {"suite": request.suite, "selection": selection})


def asked(out: Path) -> list[Request]:
    """What was asked for in `out`, in the order of KNOWN; a damaged request is named on stderr.

    NPTError if all of them are damaged.
    """
    found, damaged = [], []
    for name in KNOWN:
        path = out / ASKED / f"{name}.json"
        if path.is_file():
            try:
                suite, selection = _read(path)
                experiment = load_experiment(_file(suite, name), (), selection)
                found.append(Request(suite, experiment, selection))
            except NPTError as error:
                damaged.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if damaged and not found:
        raise NPTError(damaged[0])
    for words in damaged:
        print(f"warning: {words}", file=sys.stderr)
    return found


def _check_suite(out: Path, suite: str) -> None:
    """NPTError if `out` has tables of another suite."""
    for path in sorted((out / ASKED).glob("*.json")):
        try:
            other, _ = _read(path)
        except NPTError:  # it is damaged; the next request replaces it
            continue
        if other != suite:
            raise NPTError(f"{out} has tables of the suite {other}: use another --out for {suite}")


def _read(path: Path) -> tuple[str, Selection]:
    record: dict[str, Any] = read_record(path)
    try:
        values = record["selection"]
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        if not isinstance(given.get("opts"), dict):
            raise TypeError("opts are not pairs")
        return str(record["suite"]), Selection(**given)
    except (KeyError, TypeError, AttributeError) as error:
        raise NPTError(
            f"{path} does not say what was asked for: run its script again, or delete it"
        ) from error

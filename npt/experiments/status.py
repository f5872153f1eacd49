"""`python -m npt.experiments status DIR`: what the runs of a folder are doing, from their files.

It takes no lock and starts nothing, so it may be asked while the runs are executed, here or on
another machine that has the folder. torch is not imported.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from npt.errors import NPTError
from npt.experiments import planned, state
from npt.experiments.plan import Evaluation, Run, dataset_name
from npt.experiments.planned import Planned
from npt.experiments.running import progress
from npt.files import read_record
from npt.results import RESULT

PROBLEMS = "problems.json"  # data set or run -> why it is not done
LAST_LINES = 5  # of the log of a run that failed
TAIL = 64 << 10  # bytes at the end of a log in which they are
DONE, RUNNING, SILENT, FAILED, WAITING = "done", "running", "silent", "failed", "waiting"
WITHOUT = "without data"
STATES = (DONE, RUNNING, SILENT, FAILED, WAITING, WITHOUT)
ALWAYS = (DONE, RUNNING, FAILED, WAITING)  # told also if there are none
AnyRun = Run | Planned


@dataclass(frozen=True)
class Look:
    """A run as its files show it.

    SILENT: it was begun and gives no sign of life; the same command goes on with it
    WITHOUT: it cannot be executed, because its data set is not there
    """

    run: AnyRun
    state: str
    record: progress.Record = field(default_factory=dict)  # its progress; empty if there is none
    why: str = ""  # it failed

    @property
    def spent(self) -> float:
        """Seconds of work that need not be done again."""
        begun = self.record.get("state") in (progress.RUNNING, progress.STOPPED)
        living = self.record["silent"] if self.state == RUNNING else 0.0
        return self.record["seconds"] + living if begun else 0.0


# --------------------------------------------------------------------------- looking
def report(out: Path) -> str:
    """The text for a person. NPTError if there is nothing to tell of."""
    if not out.is_dir():
        raise NPTError(f"there is no folder '{out}': name the --out folder of an experiment")
    runs = runs_of(out)
    if not runs:
        raise NPTError(f"{out} has no runs: name the --out folder of `run` or `reproduce`")
    problems, now = _problems(out), progress.clock(out)
    absent = {name: words for name, words in problems.items() if name in _datasets(runs)}
    for run in runs:
        _name_damages(run)
    looks = [_with_data(run, absent, problems.get(run.name, ""), now) for run in runs]
    lacking = Counter(name for run in runs for name in _datasets([run]))
    return render(out, looks, [f"{x}: {absent[x]} ({lacking[x]} runs need it)" for x in absent])


def runs_of(out: Path) -> list[Planned]:
    """The runs that `out` should have, and others that are there. Damaged records are named."""
    try:
        found = planned.read(out)
    except NPTError as error:
        print(f"warning: {error}", file=sys.stderr)
        found = []
    known = {run.folder for run in found}
    more = (path.parent for path in sorted(out.rglob(state.RECORD)) if path.parent not in known)
    return [*found, *filter(None, map(_recorded, more))]


def _recorded(folder: Path) -> Planned | None:
    """A run that is in no plan, by its run.json."""
    record = state.read_run(folder)
    if not record:
        for words in state.damages(folder, ()).values():
            print(f"warning: {words}", file=sys.stderr)
        return None
    data = record.get("data", {})
    tests = [
        Evaluation(part, str(data.get(part, record["dataset"])), "", ("test",))
        for part in record["commands"]
    ]
    name = f"{record['dataset']} tau {record['ratio']:g} {record['label']} seed {record['seed']}"
    about = {key: record[key] for key in ("trainer", "dataset", "train")}
    return Planned(folder, name, evaluations=tuple(tests), **about)


def _name_damages(run: AnyRun) -> None:
    """Name the damaged records of a run on stderr."""
    found = list(state.damages(run.folder, [test.name for test in run.evaluations]).values())
    try:
        progress.load(run.folder, 0.0)
    except NPTError as error:
        found.append(str(error))
    for words in found:
        print(f"warning: {words}", file=sys.stderr)


def _with_data(run: Planned, absent: Collection[str], problem: str, now: float) -> Look:
    """A look at a run, without its tests on data sets that are absent."""
    there = tuple(test for test in run.evaluations if dataset_name(test.dataset) not in absent)
    look = look_at(replace(run, evaluations=there or run.evaluations), problem, now)
    lacks = run.dataset in absent and look.state == WAITING
    return replace(look, state=WITHOUT) if lacks else look


def look_at(run: AnyRun, problem: str = "", now: float | None = None) -> Look:
    """What a run is doing.

    problem: what problems.json says of it
    now: the time by the clock of its file system, where many are looked at
    """
    record = progress.read(run.folder, now)
    if state.is_complete(run):
        return Look(run, DONE, record)
    if progress.is_alive(record):
        return Look(run, RUNNING, record)
    if record.get("state") == progress.FAILED or problem:
        return Look(run, FAILED, record, record.get("error") or problem)
    if record.get("state") == progress.RUNNING:
        return Look(run, SILENT, record)
    return Look(run, WAITING, record)


def _problems(out: Path) -> dict[str, str]:
    with suppress(NPTError):
        return {str(name): str(words) for name, words in read_record(out / PROBLEMS).items()}
    if (out / PROBLEMS).exists():
        print(f"warning: {out / PROBLEMS} is damaged: delete it", file=sys.stderr)
    return {}


def _datasets(runs: Iterable[AnyRun]) -> set[str]:
    return {dataset_name(test.dataset) for run in runs for test in run.evaluations}


# --------------------------------------------------------------------------- time
class Times:
    """The seconds of whole runs, as known from others: of the same kind, of like ones, of any."""

    def __init__(self) -> None:
        self._found: dict[tuple, list[float]] = defaultdict(list)

    def add(self, run: AnyRun, seconds: float) -> None:
        for kind in self._kinds(run):
            self._found[kind].append(seconds)

    def left(self, waiting: Iterable[tuple[AnyRun, float]], at_a_time: int) -> float | None:
        """Seconds until all of them are done; None if nothing is known of others.

        waiting: runs, with the seconds that were spent on each
        """
        each = []
        for run, spent in waiting:
            known = next((self._found[x] for x in self._kinds(run) if x in self._found), None)
            if known is None:
                return None
            each.append(max(0.0, fmean(known) - spent))
        return max([sum(each) / max(1, at_a_time), *each])

    @staticmethod
    def _kinds(run: AnyRun) -> list[tuple]:
        tests = tuple((test.name, test.splits) for test in run.evaluations)
        return [(run.folder.parent, tests), (run.trainer, tests), ()]  # the first: all seeds


def seconds_of(look: Look) -> float:
    """The seconds that a run has taken which is done."""
    if look.record.get("state") == progress.DONE:
        return float(look.record["seconds"])
    return sum(  # the records of earlier versions do not say how long the rest took
        state.seconds(look.run.folder / test.name / RESULT) for test in look.run.evaluations
    )


def _left(looks: Sequence[Look]) -> str:
    times = Times()
    for look in looks:
        if look.state == DONE:
            times.add(look.run, seconds_of(look))
    living = max(1, sum(look.state == RUNNING for look in looks))
    waits = [(x.run, x.spent) for x in looks if x.state in (RUNNING, SILENT, WAITING)]
    if not waits:
        return ""
    seconds = times.left(waits, living)
    if seconds is None:
        return "; no run is done that would tell the time left"
    return f"; about {words(seconds)} left with {living} at a time"


def words(seconds: float) -> str:
    """A time as text: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --------------------------------------------------------------------------- telling
def render(out: Path, looks: Sequence[Look], absent: Sequence[str]) -> str:
    """absent: data sets that cannot be used, and why"""
    count = Counter(look.state for look in looks)
    counts = ", ".join(f"{count[x]} {x}" for x in STATES if count[x] or x in ALWAYS)
    parts = [f"{out}: {len(looks)} runs: {counts}{_left(looks)}.", _table(looks)]
    begun = [look for look in looks if look.state in (RUNNING, SILENT)]
    if begun:
        header = ["running", "where", "doing", "since", ""]
        parts.append(tabulate([_row(x) for x in begun], header, "plain", disable_numparse=True))
    parts += [_failure(look) for look in looks if look.state == FAILED]
    return "\n\n".join([*parts, *(f"not run: {words}" for words in absent)])


def _table(looks: Sequence[Look]) -> str:
    """How many runs of each data set are in which state."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for look in looks:
        counts[dataset_name(look.run.dataset)][look.state] += 1
    shown = [x for x in STATES if any(count[x] for count in counts.values())]
    rows = [[name, *(count[x] or "" for x in shown)] for name, count in counts.items()]
    return tabulate(rows, ["data set", *shown], "plain")


def _row(look: Look) -> list[str]:
    record = look.record
    since = datetime.fromtimestamp(record["started"])
    today = since.date() == datetime.now().date()
    return [
        look.run.name,
        where(record),
        doing(record),
        f"{since:%H:%M}" if today else f"{since:%Y-%m-%d %H:%M}",
        "" if look.state == RUNNING else _silence(record),
    ]


def _silence(record: progress.Record) -> str:
    return f"no sign of life for {words(record['silent'])}: the same command goes on with it"


def where(record: progress.Record) -> str:
    """Where a run is executed, as node7, job 16_3, NVIDIA A100 (0, GPU-...)."""
    job = f"job {record['job']}" if record["job"] else f"process {record['pid']}"
    return ", ".join(filter(None, [record["node"], job, record["gpu"]]))


def doing(record: progress.Record) -> str:
    """What a run is doing: its evaluation, as "new", while it trains as "base, epoch 3/5"."""
    if record["epoch"] is not None:
        return f"{record['evaluation']}, epoch {record['epoch']}/{record['epochs']}"
    return record["evaluation"] or "begins"


def _failure(look: Look) -> str:
    log = look.record.get("log")
    return failure(look.run.name, look.why, None if log is None else look.run.folder / log)


def failure(name: str, error: str, log: Path | None) -> str:
    """The name, the error and the last lines of the log of a run that failed."""
    found = f"failed: {name}: {error}"
    if log is None or not log.is_file():
        return found
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        text = file.read().decode("utf-8", "replace")
    last = [f"    {line}" for line in text.splitlines()[-LAST_LINES:]]
    return "\n".join([f"{found} (see {log})", *last])

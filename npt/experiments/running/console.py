"""Carries out runs for a person at a console: what is there, progress, and what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from npt.errors import NPTError
from npt.experiments import planned, state
from npt.experiments.plan import Run, dataset_name
from npt.experiments.running import pool, validation
from npt.experiments.running.display import Display
from npt.experiments.status import PROBLEMS, failure
from npt.files import locked, read_record, remove_leftovers, write_record

EXIT_FAILED_RUNS = 1


def carry_out(
    title: str,
    runs: Sequence[Run],
    out: Path,
    executor: pool.Executor,
    begin: Callable[[], None] = lambda: None,
) -> int:
    """Execute the runs that are not complete in `out`; returns the exit code.

    Data sets that cannot be used and runs that fail do not stop the others. They are named at the
    end, and in `out`/problems.json. NPTError if no run is possible, or another process works there.
    begin: called when nothing stands in the way of the first run any more
    """
    with locked(out / ".lock", f"running an experiment in {out}"):
        for run in runs:
            for folder in (run.folder, *map(run.output, run.evaluations)):
                remove_leftovers(folder)
            for words in state.damages(run.folder, [e.name for e in run.evaluations]).values():
                print(f"warning: {words} This is done now.", file=sys.stderr)
        waiting = [run for run in runs if not state.is_complete(run)]
        print(title)
        print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them complete in {out}")
        try:
            problems = validation.validate(waiting)
            possible = _possible(runs, problems)
            begin()
            planned.remember(out, runs)
            named = {dataset_name(dataset): words for dataset, words in problems.items()}
            kept = _Problems(out, runs, named)
            with Display(possible, out, executor.at_a_time) as display:

                def report(outcome: pool.Outcome) -> None:
                    if outcome.error and not outcome.again:
                        kept.add(outcome)
                    display.show(outcome)

                outcomes = executor.execute(possible, report)
        except KeyboardInterrupt as stop:
            done = sum(map(state.is_complete, runs))
            raise type(stop)(
                f"{done} of {len(runs)} runs are complete in {out}; the same command goes on"
                + (f". {stop}" if str(stop) else "")
            ) from None
        failed = [outcome for outcome in outcomes if outcome.error]
        _tell(failed, named)
    return EXIT_FAILED_RUNS if failed or problems else 0


def _possible(runs: Sequence[Run], problems: Mapping[str, str]) -> list[Run]:
    """The runs without data sets that cannot be used. NPTError if none is left."""
    possible = validation.without(runs, problems)
    if not possible:
        first, *others = problems.values()
        raise NPTError(f"{first} ({len(others)} more data sets are missing)" if others else first)
    return possible


def _tell(failed: Sequence[pool.Outcome], problems: Mapping[str, str]) -> None:
    """Name what went wrong. problems: why data sets cannot be used, by their names"""
    for outcome in failed:
        print(failure(outcome.run.name, str(outcome.error), outcome.log), file=sys.stderr)
    for dataset, words in problems.items():
        print(f"not run: {dataset}: {words}", file=sys.stderr)


class _Problems:
    """problems.json: what goes wrong, and what earlier calls with other runs have kept there."""

    def __init__(self, out: Path, runs: Sequence[Run], datasets: Mapping[str, str]) -> None:
        self.path = out / PROBLEMS
        ours = {run.name for run in runs}
        ours |= {dataset_name(evaluation.dataset) for run in runs for evaluation in run.evaluations}
        earlier: dict[str, str] = {}
        with suppress(NPTError):  # there is none, or it is damaged
            earlier = read_record(self.path)
        kept = {name: words for name, words in earlier.items() if name not in ours}
        self.found = {**kept, **datasets}
        write_record(self.path, self.found)

    def add(self, outcome: pool.Outcome) -> None:
        """Keep the error of a run."""
        self.found[outcome.run.name] = str(outcome.error)
        with suppress(OSError):  # the disk is full; the error is told at the end
            write_record(self.path, self.found)

"""Carries out runs for a person at a console: what is there, progress, and what went wrong."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from npt.errors import NPTError
from npt.experiments import state
from npt.experiments.plan import Run, dataset_name
from npt.experiments.running import pool, validation
from npt.files import locked, read_record, remove_leftovers, write_record

EXIT_FAILED_RUNS = 1
PROBLEMS = "problems.json"  # data set or run -> why it is not done
LAST_LINES = 5  # of the log of a run that failed


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
            outcomes = _execute(possible, executor)
        except KeyboardInterrupt as stop:
            done = sum(map(state.is_complete, runs))
            raise type(stop)(
                f"{done} of {len(runs)} runs are complete in {out}; the same command goes on"
                + (f". {stop}" if str(stop) else "")
            ) from None
        failed = [outcome for outcome in outcomes if outcome.error]
        named = {dataset_name(dataset): words for dataset, words in problems.items()}
        _tell(failed, named)
        _remember(failed, named, runs, out)
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
        print(_failure(outcome), file=sys.stderr)
    for dataset, words in problems.items():
        print(f"not run: {dataset}: {words}", file=sys.stderr)


def _remember(
    failed: Sequence[pool.Outcome], problems: Mapping[str, str], runs: Sequence[Run], out: Path
) -> None:
    """Keep what went wrong for the report, and what earlier calls with other runs have kept."""
    ours = {run.name for run in runs}
    ours |= {dataset_name(evaluation.dataset) for run in runs for evaluation in run.evaluations}
    earlier: dict[str, str] = {}
    with suppress(NPTError):  # there is none, or it is damaged
        earlier = read_record(out / PROBLEMS)
    kept = {name: words for name, words in earlier.items() if name not in ours}
    errors = {outcome.run.name: str(outcome.error) for outcome in failed}
    write_record(out / PROBLEMS, {**kept, **problems, **errors})


def _failure(outcome: pool.Outcome) -> str:
    """The name, the error and the last lines of the log of a run that failed."""
    there = outcome.log is not None and outcome.log.exists()
    words = f"failed: {outcome.run.name}: {outcome.error}"
    if not there or outcome.log is None:
        return words
    text = outcome.log.read_text(encoding="utf-8", errors="replace")
    last = [f"    {line}" for line in text.splitlines()[-LAST_LINES:]]
    return "\n".join([f"{words} (see {outcome.log})", *last])


def _execute(runs: Sequence[Run], executor: pool.Executor) -> list[pool.Outcome]:
    """Execute the runs with a progress bar on a terminal, or else with one line for each run."""
    from tqdm import tqdm

    total = sum(not state.is_complete(run) for run in runs)
    done = itertools.count(1)
    with tqdm(total=total, unit="run", disable=None, dynamic_ncols=True) as bar:

        def show(outcome: pool.Outcome) -> None:
            text = f"{outcome.run.name}: {_headline(outcome)}"
            if bar.disable:
                print(f"[{next(done)}/{total}] {outcome.seconds:5.1f} s  {text}", flush=True)
            bar.set_postfix_str(text)
            bar.update()

        return executor.execute(runs, show)


def _headline(outcome: pool.Outcome) -> str:
    """The test accuracy of each evaluation, or FAILED."""
    run = outcome.run
    if outcome.error:
        return "FAILED"
    parts = state.figures(run.folder, [e.name for e in run.evaluations], run.train)
    return " ".join(
        f"{name} {found['test'].get('accuracy') or 0:.1f}"
        for name, found in parts.items()
        if "test" in found
    )

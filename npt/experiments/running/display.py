"""The progress of many runs on the console: a bar on a terminal, elsewhere a line for each run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from npt.experiments import state
from npt.experiments.plan import Run
from npt.experiments.running import progress
from npt.experiments.running.pool import Outcome
from npt.experiments.status import DONE, RUNNING, Look, Times, doing, look_at, seconds_of, words

EVERY = 2.0  # seconds between two looks at the runs' own records
LINES = 8  # of a terminal, for the runs that are executed


class Display:
    """Shows the runs that are done, running and failed, and the time left, in a `with` block.

    at_a_time: the number of runs at a time, at most
    """

    def __init__(self, runs: Sequence[Run], out: Path, at_a_time: int) -> None:
        from tqdm import tqdm

        looks = [look_at(run) for run in runs]
        self._open = {look.run.folder: look.run for look in looks if look.state != DONE}
        self._out, self._at_a_time = out, at_a_time
        self._total, self._done, self._failed = len(self._open), 0, 0
        self._times = Times()
        for look in looks:
            if look.state == DONE:
                self._times.add(look.run, seconds_of(look))
        self._bar = tqdm(
            total=self._total,
            disable=None,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} runs |{bar:20}| {desc}",
        )
        lines = 0 if self._bar.disable else min(LINES, at_a_time, self._total)
        self._lines = [
            tqdm(bar_format="  {desc}", position=number, leave=False, dynamic_ncols=True)
            for number in range(1, 1 + lines)
        ]
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Display:
        if not self._bar.disable:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        for bar in (*reversed(self._lines), self._bar):
            bar.close()

    def show(self, outcome: Outcome) -> None:
        """Tell of a run that has ended."""
        with self._lock:
            if outcome.again:
                text = f"killed: {outcome.run.name}: {outcome.error}; it goes on after the others"
                self._bar.write(text, file=sys.stderr)
                return
            del self._open[outcome.run.folder]
            self._done += 1
            if outcome.error:
                self._failed += 1
            else:
                self._times.add(outcome.run, seconds_of(look_at(outcome.run)))
            if self._bar.disable:
                self._print(outcome)
            else:
                self._bar.update()

    def _print(self, outcome: Outcome) -> None:
        facts = self._facts(self._running())
        line = f"[{self._done}/{self._total}] {outcome.seconds:5.1f} s  {outcome.run.name}: "
        print(line + _headline(outcome) + (f" ({facts})" if facts else ""), flush=True)

    def _keep(self) -> None:
        """Show what the runs do, until the end."""
        while not self._ended.wait(EVERY):
            with self._lock:
                self._refresh()

    def _refresh(self) -> None:
        running = self._running()
        facts = self._facts(running)
        self._bar.set_description_str(", ".join(filter(None, [f"{len(running)} running", facts])))
        texts = [f"{look.run.name}: {doing(look.record)}" for look in running]
        room = len(self._lines)
        if len(texts) > room:
            texts[room - 1 :] = [f"and {len(texts) - room + 1} more"]
        for line, text in zip(self._lines, [*texts, *[""] * room], strict=False):
            line.set_description_str(text)

    def _running(self) -> list[Look]:
        now = progress.clock(self._out)
        records = ((run, progress.read(run.folder, now)) for run in self._open.values())
        return [Look(run, RUNNING, record) for run, record in records if progress.is_alive(record)]

    def _facts(self, running: Sequence[Look]) -> str:
        """How many have failed, and the time left; nothing where that is not known."""
        spent = {look.run.folder: look.spent for look in running}
        waiting = [(run, spent.get(folder, 0.0)) for folder, run in self._open.items()]
        left = self._times.left(waiting, min(self._at_a_time, len(running) + 1))
        facts = [f"{self._failed} failed"] if self._failed else []
        facts += [f"about {words(left)} left"] if left else []
        return ", ".join(facts)


def _headline(outcome: Outcome) -> str:
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

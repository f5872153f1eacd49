"""What a job of the cluster does: it executes its runs in worker processes, as one machine would.

SLURM stops a job before its time is up (SIGUSR2, which submitit asks for) or for another job
(SIGTERM). In both cases trainings finish their step and save, and the same job comes back, in which
the runs go on from their files.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npt import environment
from npt.errors import NPTError
from npt.experiments.plan import Run
from npt.experiments.running import pool, progress
from npt.experiments.running.one import execute_run
from npt.stopping import EXIT_STOPPED, preempted

SAVED = ("*/resume/*", "*/result.json")  # in a run's folder: what a run that is stopped leaves


def failed_in(folder: Path, job: str | None) -> progress.Record:
    """The record of the run in `folder` if it has failed in this job; else empty."""
    record = progress.read(folder, now=0.0)
    ours = record.get("state") == progress.FAILED and record["job"] == job
    return record if ours else {}


@dataclass
class Work:
    """The runs of a job, as what submitit calls."""

    runs: Sequence[Run]
    jobs: int  # runs at a time
    seconds: float  # the time limit of the job
    execute_one: Callable[[Run], None] = execute_run
    _began: float = 0.0  # of this turn; time.monotonic()
    _saved: dict[Path, int] = field(default_factory=dict)  # at the start of this turn

    def __call__(self) -> None:
        self._began, self._saved = time.monotonic(), self._files()
        # submitit's own handler for SIGTERM does nothing, and the job would be killed after it.
        with preempted(lambda: SystemExit(EXIT_STOPPED), [signal.SIGTERM]):
            pool.execute(self._open(), self.jobs, execute_one=self.execute_one)

    def checkpoint(self) -> Any:
        """Stop the workers and wait for them; what submitit puts back into the queue.

        Called in a signal handler. NPTError if a long turn has saved nothing: nor would the next.
        """
        from submitit.helpers import DelayedSubmission

        workers = multiprocessing.active_children()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
        long = time.monotonic() - self._began > self.seconds / 3  # the notice may come early
        if long and self._files() == self._saved:
            raise NPTError(
                "the time of its job was over before it had saved anything, so it does not start "
                "again: more --time"
            )
        return DelayedSubmission(self)

    def _open(self) -> list[Run]:
        """The runs that have not failed in an earlier turn of this job."""
        return [run for run in self.runs if not failed_in(run.folder, environment.job())]

    def _files(self) -> dict[Path, int]:
        """What the runs have saved, with the time of each file."""
        paths = (path for run in self.runs for name in SAVED for path in run.folder.glob(name))
        return {path: path.stat().st_mtime_ns for path in paths}

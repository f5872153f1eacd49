"""Waits for runs that are in jobs of a cluster: reads their files, and asks for their jobs.

A run's files say whether it is complete or has failed. Its job only says that nothing more will
come: of a run whose job has ended, and which has left neither, the job's end and log say why.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from npt.errors import NPTError
from npt.experiments.plan import Run
from npt.experiments.running import progress, slurm_queue
from npt.experiments.running.pool import Outcome, Report
from npt.experiments.running.slurm_job import failed_in
from npt.experiments.running.slurm_queue import JOBS, Job, Place
from npt.experiments.state import is_complete

# Seconds from the end of a job until its runs count as failed: a shared file system may show what
# another node has written as late as this.
GRACE = 60.0
INTERVAL = 10.0  # seconds between two looks, and fewer at first
NEWS = 30.0  # seconds between two lines about the queue


def say(words: str) -> None:
    """Print a line to stderr, above a progress bar if there is one."""
    tqdm.write(words, file=sys.stderr)


class Queue:
    """The jobs with some names, asked for again and again. That SLURM is silent is said once."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self._silent = False

    def look(self) -> list[Job] | None:
        """The jobs, or None if SLURM does not answer."""
        try:
            found = slurm_queue.jobs(self.names)
        except NPTError as error:
            if not self._silent:
                say(f"warning: {error}: asking again until it does")
            self._silent = True
            return None
        self._silent = False
        return found

    def wait(self) -> list[Job]:
        """The jobs, as soon as SLURM answers."""
        while (found := self.look()) is None:
            time.sleep(INTERVAL)
        return found


class Watch:
    """The jobs of runs, until all runs are complete or have failed."""

    def __init__(
        self, out: Path, places: Mapping[Path, Place], earlier: Collection[Path] = ()
    ) -> None:
        """places: the job of each run's folder
        earlier: those in jobs of earlier calls, which may have asked for less of a run
        """
        self.out, self.places, self.earlier = out, places, earlier
        self.queue = Queue({name for name, _ in places.values()})
        self._jobs: dict[Place, Job] = {}  # as they were seen last
        self._ended: dict[Place, float] = {}  # since when; time.monotonic()
        self._told: set[str] = set()  # obstacles
        self._news = (0.0, "")  # the last line about the queue, and its time

    def outcomes(self, runs: Sequence[Run], report: Report) -> list[Outcome]:
        """Wait for the end of the runs. At a KeyboardInterrupt the jobs go on.

        Runs of `earlier` that have not failed when their job has ended are not reported. Their
        Outcome is `again`.
        """
        began, left = time.monotonic(), list(runs)
        found: list[Outcome] = []
        try:
            while left:
                new = self._look(left)
                ended = {outcome.run.folder for outcome in new}
                left = [run for run in left if run.folder not in ended]
                for outcome in new:
                    if not outcome.again:
                        report(outcome)
                found += new
                if left:
                    time.sleep(min(INTERVAL, 1 + (time.monotonic() - began) / 20))
        except KeyboardInterrupt as stop:
            jobs = [job for job in self._jobs.values() if not job.has_ended]
            ending = f"{slurm_queue.scancel(jobs)} ends them" if jobs else "squeue --me lists them"
            raise type(stop)(f"Its jobs go on; {ending}") from None
        return found

    def _look(self, runs: Sequence[Run]) -> list[Outcome]:
        """The runs that have ended, or whose jobs have or never will start."""
        jobs = self.queue.look()
        if jobs is not None:
            self._remember(jobs)
        found = [self._outcome(run, jobs is not None) for run in runs]
        new = [outcome for outcome in found if outcome is not None]
        left = [run for run, outcome in zip(runs, found, strict=True) if outcome is None]
        return new + self._hopeless(left)

    def _remember(self, jobs: Sequence[Job]) -> None:
        """Take note of what squeue lists. A job that it does not list any more has ended."""
        now, listed = time.monotonic(), {job.place: job for job in jobs}
        self._jobs |= listed
        for place in set(self.places.values()):
            if place in listed and not listed[place].has_ended:
                self._ended.pop(place, None)
            else:
                self._ended.setdefault(place, now)
        active = [job for job in jobs if not job.has_ended]
        waits = Counter(job.reason for job in active if job.waits)
        reasons = ", ".join(f"{number} {why}" for why, number in waits.items() if why != "None")
        words = f"jobs: {len(active) - waits.total()} running, {waits.total()} waiting"
        words += f" (SLURM's reasons: {reasons})" * bool(reasons)
        if words != self._news[1] and now - self._news[0] > NEWS:
            self._news = (now, words)
            say(words)

    def _outcome(self, run: Run, answered: bool) -> Outcome | None:
        """How a run has ended; None if it has not. answered: whether SLURM does, just now"""
        place = self.places[run.folder]
        job = self._jobs.get(place)
        seconds = progress.read(run.folder, now=0.0).get("seconds", 0.0)
        if is_complete(run):
            return Outcome(run, seconds)
        failed = failed_in(run.folder, job.id) if job is not None else {}
        if failed:
            log = run.folder / failed["log"] if failed["log"] else None
            return Outcome(run, seconds, failed["error"], log)
        over = time.monotonic() - self._ended.get(place, time.monotonic())
        if not answered or over < GRACE:
            return None
        again = run.folder in self.earlier
        return Outcome(run, seconds, self._why(place), self._log(place), again)

    def _hopeless(self, runs: Sequence[Run]) -> list[Outcome]:
        """Name the jobs that will never start. If all are such, cancel them: no run is left."""
        obstacles = {}
        for run in runs:
            job = self._jobs.get(self.places[run.folder])
            if job is not None and job.obstacle is not None:
                obstacles[run.folder] = job.obstacle
        for words in set(obstacles.values()) - self._told:
            self._told.add(words)
            say(f"warning: jobs that will not start: {words}")
        if len(obstacles) < len(runs) or not runs:
            return []
        with suppress(NPTError):  # SLURM does not answer; they do not start anyhow
            slurm_queue.cancel([self._jobs[self.places[run.folder]] for run in runs])
        return [
            Outcome(run, 0.0, f"its job would never start: {obstacles[run.folder]}") for run in runs
        ]

    def _why(self, place: Place) -> str:
        """Why nothing more comes of a run whose job has ended."""
        job = self._jobs.get(place)
        end = slurm_queue.ENDS.get(job.state, "") if job is not None else ""
        if end:
            return end
        error, log = self._error(place), self._log(place)
        if error:
            return error
        if log is not None:
            state = f" ({job.state})" if job is not None else ""
            return f"its job ended{state} before the run did"
        return (
            f"its job ended, and nothing of it is here: {self.out} has to be on a disk that all "
            "nodes share, under the same name"
        )

    def _error(self, place: Place) -> str | None:
        """The exception with which the job's own process ended, as submitit keeps it."""
        from submitit.core.utils import pickle_load

        with suppress(Exception):  # there is none, or it is damaged
            kind, text = pickle_load(str(self._file(place, "result_pickle")))
            if kind == "error":
                return text.strip().splitlines()[-1].removeprefix("npt.errors.NPTError: ")
        return None

    def _log(self, place: Place) -> Path | None:
        """What the job has written on stderr, or else on stdout."""
        paths = [self._file(place, name) for name in ("stderr", "stdout")]
        found = (path for path in paths if path is not None and path.exists())
        return next((path for path in found if path.stat().st_size), None)

    def _file(self, place: Place, name: str) -> Path | None:
        """A file of a job by submitit's name for it; None before SLURM has listed the job."""
        from submitit.core.utils import JobPaths

        job = self._jobs.get(place)
        if job is None:
            return None
        return Path(getattr(JobPaths(self.out / JOBS / place[0], job.id), name))

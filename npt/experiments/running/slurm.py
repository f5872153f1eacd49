"""Executes runs as jobs of a cluster with SLURM: an array of jobs, submitted with submitit.

A job executes one run or several short ones (`slurm_job.Work`). This process only watches: what a
run has done is read from its files, and squeue is asked which jobs are still there. A submission is
a folder OUT/jobs/NAME with the runs of each job, the jobs' scripts and their logs; NAME is also the
jobs' name in SLURM. So another call finds them again, after this one has ended in any way.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from npt.errors import NPTError
from npt.experiments.forecast import Costs, remaining
from npt.experiments.plan import Run
from npt.experiments.running import slurm_queue
from npt.experiments.running.one import execute_run
from npt.experiments.running.pool import Outcome, Report
from npt.experiments.running.slurm_job import Work
from npt.experiments.running.slurm_queue import JOBS, RECORD, Place, key
from npt.experiments.running.slurm_watch import Queue, Watch
from npt.experiments.state import is_complete, remove_checkpoints
from npt.files import write_record
from npt.flags import parse_args, setup_cfg

TIME = "4:00:00"  # of a job; at its end it goes back into the queue, so no run has to fit into it
# Seconds of a job that short runs are put together for: longer than its start takes, and so short
# that others get their turn. A run that is longer has a job of its own.
SHORTEST, LONGEST = 30.0, 1800.0
MOST_JOBS = 1000  # of an array; SLURM's MaxArraySize is 1001 if nobody has changed it
# A job goes back into the queue as often as its runs get on in its time (`Work.checkpoint`).
TURNS = 10_000
LEAST = 3  # minutes of a job
NOTICE = 120  # seconds before a job's time is up, in which its runs save
# What sbatch reads from the environment before the script (SBATCH_...), by the field that says it;
# None: every submission says it.
SAID = {
    None: "ARRAY_INX ERROR JOB_NAME NO_REQUEUE OPEN_MODE OUTPUT PARTITION SIGNAL TIMELIMIT WAIT",
    "account": "ACCOUNT",
    "mem": "MEM_PER_CPU MEM_PER_GPU MEM_PER_NODE",
    "gpus": "GPUS GPUS_PER_NODE",
}
MEMORY = re.compile(r"[0-9]+([KMGT]B?)?", re.IGNORECASE)
GPUS = re.compile(r"([A-Za-z][\w.-]*:)?(?P<number>[1-9][0-9]*)", re.ASCII)
CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)


@dataclass(frozen=True)
class Cluster:
    """The Executor of a cluster. NPTError if a field is malformed, or SLURM is not here."""

    out: Path
    partition: str
    time: str = TIME  # of a job, as SLURM writes it
    mem: str | None = None  # of a job; None: what the cluster gives
    gpus: str | None = None  # of a job, as 2 or a100:2
    account: str | None = None
    max_jobs: int = 100  # at a time
    jobs: int | None = None  # runs at a time in a job; None: one per GPU, or 1
    costs: Costs | None = None  # what runs are estimated with; None: like complete ones
    execute_one: Callable[[Run], None] = execute_run

    def __post_init__(self) -> None:
        if not self.partition.strip():
            raise NPTError("--slurm names no partition: sinfo lists those of the cluster")
        if minutes(self.time) < LEAST:
            raise NPTError(
                f"--time {self.time} is too short: SLURM tells a job of its end up to a minute "
                f"before it is due, so give at least {LEAST} minutes"
            )
        for flag, number in (("--max-jobs", self.max_jobs), ("--jobs", self.jobs)):
            if number is not None and number < 1:
                raise NPTError(f"{flag} is a number from 1, not {number}")
        if self.mem is not None and not MEMORY.fullmatch(self.mem):
            raise NPTError(f"--mem {self.mem} is not an amount of memory such as 16G or 800M")
        if self.gpus is not None and not GPUS.fullmatch(self.gpus):
            raise NPTError(f"--gpus {self.gpus} is not a number of GPUs such as 1 or a100:2")
        for program in ("sbatch", "squeue"):
            if shutil.which(program) is None:
                raise NPTError(
                    f"--slurm needs {program}, which is not on this machine: use a machine from "
                    "which jobs are submitted, or leave --slurm out"
                )
        with _submitit():
            import submitit  # noqa: F401

    @property
    def runs_per_job(self) -> int:
        """The number of runs at a time in one job."""
        found = GPUS.fullmatch(self.gpus or "")
        return self.jobs or int(found["number"] if found else 1)

    @property
    def at_a_time(self) -> int:
        return self.max_jobs * self.runs_per_job

    def execute(self, runs: Sequence[Run], report: Report) -> list[Outcome]:
        """Submit the runs that are in no job of an earlier call, and wait for the end of all.

        At Ctrl-C, or another KeyboardInterrupt, the jobs go on. NPTError if the cluster refuses.
        """
        waiting = [run for run in runs if not is_complete(run)]
        for run in runs:
            if not run.keep_checkpoints and is_complete(run):
                remove_checkpoints(run)
        earlier = self._earlier()
        new = [run for run in waiting if key(run) not in earlier]
        old = {run.folder for run in waiting if key(run) in earlier}
        if old:
            print(f"{len(old)} runs are in jobs of an earlier call", flush=True)
        submitted = self._submit(runs, new, len(set(earlier.values()))) if new else {}
        places = {run.folder: {**earlier, **submitted}[key(run)] for run in waiting}
        outcomes = Watch(self.out, places, old).outcomes(waiting, report)
        again = [outcome.run for outcome in outcomes if outcome.again]
        if again:
            submitted = self._submit(runs, again, 0)
            places = {run.folder: submitted[key(run)] for run in again}
            outcomes += Watch(self.out, places).outcomes(again, report)
        return [outcome for outcome in outcomes if not outcome.again]

    def _earlier(self) -> dict[str, Place]:
        """The jobs of earlier calls that have not ended. The folders of the others are deleted."""
        submissions = slurm_queue.submissions(self.out)
        found = Queue(submissions).wait()
        queued = {job.place for job in found if not job.has_ended}
        for name in set(submissions) - {name for name, _ in queued}:
            shutil.rmtree(self.out / JOBS / name)
        return {
            member: (name, index)
            for name, jobs in submissions.items()
            for index, members in enumerate(jobs)
            if (name, index) in queued
            for member in members
        }

    # ---------------------------------------------------------------------- submitting
    def _submit(self, runs: Sequence[Run], new: Sequence[Run], busy: int) -> dict[str, Place]:
        """Submit an array of jobs; returns the job of each run, by `key`.

        runs: all, of which complete ones tell the time of others
        busy: the number of jobs of earlier calls
        """
        times = {key(run): x for run, x in zip(runs, remaining(runs, self.costs), strict=True)}
        seconds = [times[key(run)] for run in new]
        groups = group(new, seconds, self._target(seconds))
        name = f"npt-{secrets.token_hex(4)}"
        folder = self.out / JOBS / name
        # Before the jobs, so that they are known whenever this process may end.
        jobs = [[key(run) for run in members] for members in groups]
        write_record(folder / RECORD, {"jobs": jobs})
        limit = minutes(self.time) * 60.0
        works = [Work(x, self.runs_per_job, limit, self.execute_one) for x in groups]
        try:
            # submitit prints sbatch's words, which are also in its error.
            with _submitit(), redirect_stderr(io.StringIO()), self._flags_count():
                executor = self._executor(folder, name, new, max(1, self.max_jobs - busy))
                executor.submit_array(works)
        except BaseException:
            with suppress(NPTError):  # there may be no jobs, or no SLURM that answers
                if not slurm_queue.jobs([name]):
                    shutil.rmtree(folder)
            raise
        print(f"{len(new)} runs in {len(groups)} jobs, logs in {folder}", flush=True)
        return {member: (name, i) for i, members in enumerate(jobs) for member in members}

    @contextmanager
    def _flags_count(self) -> Iterator[None]:
        """Hide what the environment says of jobs otherwise, inside a `with` block."""
        said = [words for field, words in SAID.items() if field is None or getattr(self, field)]
        names = [f"SBATCH_{name}" for words in said for name in words.split()]
        hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
        try:
            yield
        finally:
            os.environ.update(hidden)

    def _target(self, seconds: Sequence[float | None]) -> float:
        """How many seconds of runs to put into one job."""
        share = sum(x or 0.0 for x in seconds) / self.max_jobs
        seconds_of_job = min(max(share, SHORTEST), LONGEST, minutes(self.time) * 60 / 2)
        return seconds_of_job * self.runs_per_job

    def _executor(self, folder: Path, name: str, runs: Sequence[Run], at_a_time: int) -> Any:
        import submitit

        executor = submitit.SlurmExecutor(folder, max_num_timeout=TURNS)
        optional = {"account": self.account, "mem": self.mem, "gpus_per_node": self.gpus}
        limit = minutes(self.time)
        cpus = self.runs_per_job * (1 + max(map(_loaders, runs)))
        executor.update_parameters(
            job_name=name,
            partition=self.partition,
            time=limit,
            cpus_per_task=cpus,
            srun_args=[f"--cpus-per-task={cpus}"],  # since SLURM 22.05 it is not passed on
            signal_delay_s=min(NOTICE, limit * 60 // 3),
            array_parallelism=at_a_time,
            additional_parameters={"requeue": True},  # also where the cluster's default is not to
            **{key: value for key, value in optional.items() if value is not None},
        )
        return executor


@contextmanager
def _submitit() -> Iterator[None]:
    """NPTError where submitit is not installed, and with sbatch's words where it refuses jobs."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        raise NPTError("--slurm needs submitit: pip install 'npt-clip[cluster]'") from error
    except RuntimeError as error:  # all of submitit's
        lines = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines()]
        words = "; ".join(line for line in lines if line.strip())
        raise NPTError(
            f"SLURM does not take the jobs ({words}): change --slurm, --time, --mem, --gpus or "
            "--account"
        ) from error


def minutes(text: str) -> int:
    """A time of SLURM (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in minutes, rounded up. NPTError."""
    found = CLOCK.fullmatch(text.strip())
    if found is not None:
        days, *rest = found.groups()
        parts = [int(x) for x in rest if x is not None]
        # After days come hours; without days a single number, or the first of two, is minutes.
        units = [3600, 60, 1] if days is not None or len(parts) == 3 else [60, 1]
        seconds = int(days or 0) * 86400 + sum(x * y for x, y in zip(parts, units, strict=False))
        if seconds:
            return ceil(seconds / 60)
    raise NPTError(f"--time {text} is not a time such as 90 (minutes), 4:00:00 or 2-12:00:00")


def group(runs: Sequence[Run], seconds: Sequence[float | None], target: float) -> list[list[Run]]:
    """Runs that one job executes, in their order: short ones together, up to `target` seconds.

    A run whose time is not known has a job of its own.
    """
    groups: list[list[Run]] = []
    room = 0.0  # of the last group
    for run, needed in zip(runs, seconds, strict=True):
        if needed is None or needed > room:
            groups.append([])
            room = target if needed is not None else 0.0
        groups[-1].append(run)
        room -= needed or 0.0
    if len(groups) > MOST_JOBS:
        groups = [[r for g in groups[i::MOST_JOBS] for r in g] for i in range(MOST_JOBS)]
    return groups


def _loaders(run: Run) -> int:
    """The number of processes that read a run's images."""
    with suppress(NPTError):  # a config that cannot be read is named where it is used
        return int(setup_cfg(parse_args(run.argv(run.evaluations[0]))).DATALOADER.NUM_WORKERS)
    return 0

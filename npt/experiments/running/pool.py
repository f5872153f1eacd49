"""Executes runs in worker processes of this machine; see `execute`.

A worker process executes many runs, one at a time with one thread, so that it imports torch once.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from npt.errors import NPTError, sentence
from npt.experiments.plan import Run
from npt.experiments.running.one import execute_run
from npt.experiments.running.progress import FAILED, fail, read, recorded, waits
from npt.experiments.running.slurm_queue import refuse_queued
from npt.experiments.running.stopping import block_signals
from npt.experiments.state import is_complete, remove_checkpoints
from npt.identity import WAYS_OUT as WAYS_OUT_OF_TRAINING
from npt.stopping import EXIT_STOPPED, exiting

KILLED = -getattr(signal, "SIGKILL", 9)  # exit codes of a process that others have ended
OTHERS = (KILLED, EXIT_STOPPED)
WAYS_OUT = "use another --out folder, or delete this folder"

Report = Callable[["Outcome"], None]


class Executor(Protocol):
    """Carries out runs: `Local` on this machine, `slurm.Cluster` on others."""

    @property
    def at_a_time(self) -> int:
        """The number of runs at a time."""

    def execute(self, runs: Sequence[Run], report: Report) -> list[Outcome]:
        """Execute the runs that are not complete; `report` gets the Outcome of each at its end."""


@dataclass(frozen=True)
class Local:
    """The Executor of this machine. NPTError if `jobs` is not a number of runs."""

    jobs: int | None = None  # None: one per GPU, or else one per core

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise NPTError(f"--jobs is the number of runs at a time, at least 1, not {self.jobs}")

    @property
    def at_a_time(self) -> int:
        return self.jobs or default_jobs()[0]

    def execute(self, runs: Sequence[Run], report: Report) -> list[Outcome]:
        refuse_queued([run for run in runs if not is_complete(run)])
        return execute(runs, self.jobs, report)


@dataclass(frozen=True)
class Outcome:
    """The end of a run."""

    run: Run
    seconds: float
    error: str | None = None  # one sentence; None if the run succeeded
    log: Path | None = None  # the log file with the traceback of an error
    again: bool = False  # its process was killed, and it goes on after the others


# --------------------------------------------------------------------------- workers
def _work(
    pipe: Connection,
    execute: Callable[[Run], None],
    environment: dict[str, str],
    start_method: str,
) -> None:
    """The main function of a worker process.

    Receives runs from the pipe, executes them and sends (seconds, error, log) back, until the pipe
    is closed. At a signal to stop, a training saves its state and ends the process; at any other
    time the process just ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    # Else it is "spawn", as of this process, and each data loader's worker would import torch.
    multiprocessing.set_start_method(start_method, force=True)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ.update(environment)
    try:
        with exiting():
            block_signals(False)
            _serve(pipe, execute)
    finally:
        # The workers of a data loader ignore SIGTERM, with which multiprocessing would end them.
        for child in multiprocessing.active_children():
            child.kill()


def _serve(pipe: Connection, execute: Callable[[Run], None]) -> None:
    """The loop of `_work`."""
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            run = pipe.recv()
        except (EOFError, OSError):
            return
        start = time.perf_counter()
        error, log = _attempt(run, execute)
        gc.collect()  # trainers have reference cycles
        with suppress(BrokenPipeError):  # the parent process has stopped
            pipe.send((time.perf_counter() - start, error, log))


def _exit_with_parent() -> None:
    """Wait for the end of the parent process, also by SIGKILL, and exit."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _attempt(run: Run, execute: Callable[[Run], None]) -> tuple[str | None, Path | None]:
    """Execute a run without output to the console. Returns its error and its log, if it fails.

    The traceback is appended to the log.
    """
    console, errors = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        sys.stderr = _ToStdout()  # warnings are written to the run's log
        try:
            with recorded(run.folder) as progress:
                try:
                    execute(run)
                    return None, None
                except Exception as error:
                    log, words = _log_of(run), _words(error)
                    _write_traceback(error, log)
                    progress.failed(words, log)
                    return words, log
        finally:
            sys.stdout, sys.stderr = console, errors


def _write_traceback(error: Exception, log: Path) -> None:
    with suppress(OSError):  # the disk may be full
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)


def _words(error: Exception) -> str:
    words = sentence(error) or f"{type(error).__name__}: {error}"
    return words.replace(WAYS_OUT_OF_TRAINING, WAYS_OUT)


class _ToStdout(io.TextIOBase):
    """A stderr that writes to the current sys.stdout, which is a run's log or the null device."""

    def write(self, text: str) -> int:
        return sys.stdout.write(text) or 0

    def flush(self) -> None:
        sys.stdout.flush()


def _log_of(run: Run) -> Path:
    """The log that was written last. If there is none, the log of the first evaluation."""
    logs = sorted(run.folder.glob("*/log.txt*"), key=lambda path: path.stat().st_mtime)
    return logs[-1] if logs else run.output(run.evaluations[0]) / "log.txt"


class _Worker:
    """A worker process and its current run."""

    def __init__(self, execute: Callable[[Run], None], environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, worker_pipe = context.Pipe()
        arguments = (worker_pipe, execute, environment, multiprocessing.get_start_method())
        self.process = context.Process(target=_work, args=arguments)
        resource_tracker.ensure_running()  # its own start would let SIGINT through
        block_signals(True)  # before it has its handlers, a signal would end the process anyhow
        try:
            self.process.start()
        finally:
            block_signals(False)
        worker_pipe.close()
        self.run: Run | None = None  # None if the worker is idle
        self.started = 0.0

    def begin(self, run: Run) -> None:
        self.run, self.started = run, time.perf_counter()
        with suppress(OSError):  # a process that has ended shows in `outcome`
            self.pipe.send(run)

    def outcome(self, run: Run) -> Outcome:
        """Receive the outcome of the current run.

        If the process has ended, it is a failure, unless the run was complete already.
        """
        self.run = None
        try:
            seconds, error, log = self.pipe.recv()
            return Outcome(run, seconds, error, log)
        except (EOFError, OSError):
            self.process.join()
            if self.process.exitcode == EXIT_STOPPED:
                time.sleep(1)  # for the same signal to this process, which then is no failure
        seconds, code = time.perf_counter() - self.started, self.process.exitcode
        if is_complete(run):
            return Outcome(run, seconds)
        return Outcome(run, seconds, _death(code), _log_of(run), again=code in OTHERS)


def _death(code: int | None) -> str:
    """The end of a process that has not told its own, in words. code: negative for a signal"""
    if code == KILLED:
        return (
            f"its process was killed, by someone or for lack of memory (exit code {code}): fewer "
            "--jobs need less, and --mem gives a cluster's job more"
        )
    return f"its process ended with exit code {code}"


def _stop(workers: Sequence[_Worker]) -> None:
    """End the processes; a training finishes its step and saves. A second signal does not wait."""
    for worker in workers:
        worker.pipe.close()
        if worker.run is not None:
            worker.process.terminate()
    try:
        for worker in workers:
            worker.process.join()
    except KeyboardInterrupt:
        for worker in workers:
            worker.process.kill()
        raise


# --------------------------------------------------------------------------- all runs
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # on Linux, with a GPU there is one of these


def _gpus() -> int:
    """The GPUs that torch can use. Where there can be none, torch is not imported to ask."""
    if sys.platform == "linux" and not any(map(os.path.exists, DRIVERS)):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def default_jobs() -> tuple[int, list[dict[str, str]]]:
    """The number of workers and their environments: one worker per GPU, or else one per core."""
    gpus = _gpus()
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return gpus, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in visible]
    if gpus == 1:
        return 1, [{}]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1, [{}]


def execute(
    runs: Sequence[Run],
    jobs: int | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
    execute_one: Callable[[Run], None] = execute_run,
) -> list[Outcome]:
    """Execute the runs that are not complete, `jobs` at a time.

    `report` is called with the Outcome of each run at its end. If a run fails or ends its process,
    its Outcome has an error, and the other runs continue. A run whose process was killed goes on
    after the others, once: that says nothing against the run, but a run that is too large for the
    memory is killed again. At Ctrl-C, or another KeyboardInterrupt, the workers end first.
    `execute_one` is called in a worker process, so it must be importable.
    """
    waiting = [run for run in runs if not is_complete(run)]
    for run in runs:
        if not run.keep_checkpoints and is_complete(run):
            remove_checkpoints(run)  # an earlier process may have ended before it deleted them
    if not waiting:
        return []
    for run in waiting:
        if read(run.folder).get("state") == FAILED:
            waits(run.folder)
    jobs, environments = (jobs, default_jobs()[1]) if jobs else default_jobs()
    outcomes: list[Outcome] = []
    workers: list[_Worker] = []
    killed: set[Path] = set()
    with _environment(TQDM_DISABLE="1"):  # no progress bars of single runs
        try:
            for number in range(min(jobs, len(waiting))):
                workers.append(_Worker(execute_one, environments[number % len(environments)]))
            waiting.reverse()
            while waiting or any(worker.run for worker in workers):
                for number, worker in enumerate(workers):
                    if worker.run is None and waiting:
                        if not worker.process.is_alive():
                            environment = environments[number % len(environments)]
                            workers[number] = worker = _Worker(execute_one, environment)
                        worker.begin(waiting.pop())
                ready = wait([worker.pipe for worker in workers if worker.run])
                for worker in workers:
                    if worker.run is not None and worker.pipe in ready:
                        outcome = worker.outcome(worker.run)
                        folder = outcome.run.folder
                        outcome = replace(outcome, again=outcome.again and folder not in killed)
                        if outcome.again:
                            killed.add(folder)
                            waiting.insert(0, outcome.run)  # the last to be taken
                            waits(folder)
                        else:
                            outcomes.append(outcome)
                            if outcome.error:
                                fail(folder, outcome.error, outcome.log)
                        report(outcome)
        finally:
            _stop(workers)
    return outcomes


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables in a `with` block."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value

"""Executes the runs of an experiment in worker processes; see `execute`.

A worker process executes many runs, one at a time with one thread, so that it imports torch once.
The files in a run's folder are its state: a test with results in result.json is never repeated, and
a training that was interrupted starts again from the beginning.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from npt.errors import NPTError, sentence
from npt.experiments.plan import Evaluation, Run, dataset_name
from npt.files import read_record, write_json
from npt.flags import parse_args, setup_cfg
from npt.results import read_results
from npt.session import build, check_names, load, session

RECORD = "run.json"


@dataclass(frozen=True)
class Outcome:
    """The end of a run."""

    run: Run
    seconds: float
    error: str | None = None  # one sentence; None if the run succeeded
    log: Path | None = None  # the log file with the traceback of an error


# --------------------------------------------------------------------------- state on disk
def missing_splits(run: Run, evaluation: Evaluation) -> list[str]:
    """The splits of an evaluation that have no results yet."""
    done = read_results(run.output(evaluation))
    return [split for split in evaluation.splits if split not in done]


def is_complete(run: Run) -> bool:
    return not any(missing_splits(run, evaluation) for evaluation in run.evaluations)


def has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("*/model*.pth.tar*"))


def remove_checkpoints(run: Run) -> None:
    """Delete the models and event files of a run, which are most of its size."""
    for evaluation in run.evaluations:
        folder = run.output(evaluation)
        for inside in folder.iterdir() if folder.is_dir() else ():
            if inside.is_dir():
                shutil.rmtree(inside)


def check_record(run: Run) -> None:
    """NPTError if the run's folder has results of a run with other settings."""
    path = run.folder / RECORD
    if not path.is_file() or not any(read_results(run.output(e)) for e in run.evaluations):
        return
    old, new = read_record(path), run.record()
    for key in ("trainer", "config", "config_sha256", "train", "opts"):
        if old.get(key) != new[key]:
            changed = f"{key} {old.get(key)!r}, now {new[key]!r}"
            if key == "config_sha256":
                changed = f"an earlier content of {new['config']}"
            if key == "opts":
                before, now = old.get(key, {}), new[key]
                name = next(k for k in {**before, **now} if before.get(k) != now.get(k))
                changed = f"{name} {before.get(name, '(unset)')}, now {now.get(name, '(unset)')}"
            raise NPTError(
                f"{run.folder} has results of a run with {changed}: "
                "use another --out folder, or delete this folder"
            )


# --------------------------------------------------------------------------- one run
def execute_run(run: Run) -> None:
    """Train and test one run in this process; results that its folder has are not repeated."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / RECORD, run.record())
    first = run.evaluations[0]
    if run.train and not (read_results(run.output(first)) and has_checkpoint(run.output(first))):
        for evaluation in run.evaluations:
            shutil.rmtree(run.output(evaluation), ignore_errors=True)
        with _trainer(run, first) as trainer:
            trainer.train()
            _test(trainer, run, first)
    for evaluation in run.evaluations:
        if missing_splits(run, evaluation):
            with _trainer(run, evaluation) as trainer:
                load(trainer, str(run.output(first)) if run.train else "")
                _test(trainer, run, evaluation)
    if not run.keep_checkpoints:
        remove_checkpoints(run)


@contextmanager
def _trainer(run: Run, evaluation: Evaluation) -> Iterator[Any]:
    """The run's trainer with an evaluation's data. Its output goes to the evaluation's log."""
    args = parse_args(run.argv(evaluation))
    cfg = setup_cfg(args)
    with session(args, cfg):
        yield build(cfg)


def _test(trainer: Any, run: Run, evaluation: Evaluation) -> None:
    for split in missing_splits(run, evaluation):
        trainer.test(split)
        if split in missing_splits(run, evaluation):
            raise NPTError(
                f"testing the {split} images of {dataset_name(evaluation.dataset)} gave no results "
                f"in {run.output(evaluation) / 'result.json'}: check that the data set has this "
                "split, or remove it from evaluate"
            )


# --------------------------------------------------------------------------- workers
def _work(pipe: Connection, execute: Callable[[Run], None], environment: dict[str, str]) -> None:
    """The main function of a worker process.

    Receives runs from the pipe, executes them and sends (seconds, error, log) back, until the pipe
    is closed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            run = pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        error, log = _attempt(run, execute)
        gc.collect()  # trainers have reference cycles
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
            execute(run)
            return None, None
        except Exception as error:
            log = _log_of(run)
            with open(log, "a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
            return sentence(error) or f"{type(error).__name__}: {error}", log
        finally:
            sys.stdout, sys.stderr = console, errors


class _ToStdout(io.TextIOBase):
    """A stderr that writes to the current sys.stdout, which is a run's log or the null device."""

    def write(self, text: str) -> int:
        return sys.stdout.write(text) or 0

    def flush(self) -> None:
        sys.stdout.flush()


def _log_of(run: Run) -> Path:
    """The log that was written last. If there is none, the log of the first evaluation."""
    logs = sorted(run.folder.glob("*/log.txt*"), key=lambda path: path.stat().st_mtime)
    path = logs[-1] if logs else run.output(run.evaluations[0]) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class _Worker:
    """A worker process and its current run."""

    def __init__(self, execute: Callable[[Run], None], environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, worker_pipe = context.Pipe()
        self.process = context.Process(target=_work, args=(worker_pipe, execute, environment))
        self.process.start()
        worker_pipe.close()
        self.run: Run | None = None  # None if the worker is idle
        self.started = 0.0

    def begin(self, run: Run) -> None:
        self.run, self.started = run, time.perf_counter()
        self.pipe.send(run)

    def outcome(self, run: Run) -> Outcome:
        """Receive the outcome of the current run. It is a failure if the process has ended."""
        self.run = None
        try:
            seconds, error, log = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            error, log = f"its process ended with exit code {self.process.exitcode}", _log_of(run)
            seconds = time.perf_counter() - self.started
        return Outcome(run, seconds, error, log)

    def stop(self) -> None:
        self.pipe.close()
        if self.run is not None:
            self.process.terminate()
        self.process.join()


# --------------------------------------------------------------------------- all runs
def default_jobs() -> tuple[int, list[dict[str, str]]]:
    """The number of workers and their environments: one worker per GPU, or else one per core."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return gpus, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in visible]
    if gpus == 1:
        return 1, [{}]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1, [{}]


def validate(runs: Sequence[Run], say: Callable[[str], None] = print) -> None:
    """Check the config of every trainer and data set, and build each data set once.

    So errors are raised before any run starts, and workers do not generate or index the same data
    set at the same time.
    """
    from dassl.data.datasets import build_dataset

    kinds: dict[tuple, tuple[Run, Evaluation]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            kinds.setdefault((run.label, evaluation.dataset), (run, evaluation))
    configs: dict[str, Any] = {}
    for run, evaluation in kinds.values():
        cfg = setup_cfg(parse_args(run.argv(evaluation)))
        check_names(cfg)
        configs.setdefault(evaluation.dataset, cfg)
    for dataset, cfg in configs.items():
        say(f"Preparing {dataset_name(dataset)}")
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            build_dataset(cfg)


def execute(
    runs: Sequence[Run],
    jobs: int | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
    execute_one: Callable[[Run], None] = execute_run,
) -> list[Outcome]:
    """Execute the runs that are not complete, `jobs` at a time.

    `report` is called with the Outcome of each run at its end. If a run fails or ends its process,
    its Outcome has an error, and the other runs continue. `execute_one` is called in a worker
    process, so it must be importable.
    """
    waiting = [run for run in runs if not is_complete(run)]
    for run in runs:
        if not run.keep_checkpoints and is_complete(run):
            remove_checkpoints(run)  # an earlier process may have ended before it deleted them
    if not waiting:
        return []
    jobs, environments = (jobs, default_jobs()[1]) if jobs else default_jobs()
    outcomes: list[Outcome] = []
    workers: list[_Worker] = []
    with _environment(TQDM_DISABLE="1"):  # no progress bars of single runs
        try:
            for number in range(min(jobs, len(waiting))):
                workers.append(_Worker(execute_one, environments[number % len(environments)]))
            waiting.reverse()
            while waiting or any(worker.run for worker in workers):
                for worker in workers:
                    if worker.run is None and waiting:
                        worker.begin(waiting.pop())
                ready = wait([worker.pipe for worker in workers if worker.run])
                for number, worker in enumerate(workers):
                    if worker.run is None or worker.pipe not in ready:
                        continue
                    outcomes.append(worker.outcome(worker.run))
                    if not worker.process.is_alive():
                        environment = environments[number % len(environments)]
                        workers[number] = _Worker(execute_one, environment)
                    report(outcomes[-1])
        finally:
            for worker in workers:
                worker.stop()
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

"""Executes the runs of an experiment in worker processes; see `execute`.

A worker lives for many runs, so that torch is imported once, and works on one run at a time with
one thread. A run's folder says how far it came: a test that has its figures in result.json is
never repeated, a training that was cut short starts afresh.
"""

from __future__ import annotations

import gc
import io
import json
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
from npt.files import write_json
from npt.flags import parse_args, setup_cfg
from npt.results import read_results
from npt.session import build, check_names, load, session

RECORD = "run.json"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its error in a sentence (None when all went well) and where its log is."""

    run: Run
    seconds: float
    error: str | None = None
    log: Path | None = None


# --------------------------------------------------------------------------- state on disk
def missing_splits(run: Run, evaluation: Evaluation) -> list[str]:
    done = read_results(run.output(evaluation))
    return [split for split in evaluation.splits if split not in done]


def is_complete(run: Run) -> bool:
    return not any(missing_splits(run, evaluation) for evaluation in run.evaluations)


def has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("*/model*.pth.tar*"))


def remove_checkpoints(run: Run) -> None:
    """Delete the models and event files of a run, which are nearly all of its size."""
    for evaluation in run.evaluations:
        folder = run.output(evaluation)
        for inside in folder.iterdir() if folder.is_dir() else ():
            if inside.is_dir():
                shutil.rmtree(inside)


def check_record(run: Run) -> None:
    """Refuse to mix results: what lies in the run's folder must answer the same command."""
    path = run.folder / RECORD
    if not path.is_file() or not any(read_results(run.output(e)) for e in run.evaluations):
        return
    old, new = json.loads(path.read_text(encoding="utf-8")), run.record()
    for key in ("trainer", "config", "config_sha256", "train", "opts"):
        if old.get(key) != new[key]:
            changed = f"{key} {old.get(key)!r}, now {new[key]!r}"
            if key == "config_sha256":
                changed = f"another content of {new['config']}"
            if key == "opts":
                before, now = old.get(key, {}), new[key]
                name = next(k for k in {**before, **now} if before.get(k) != now.get(k))
                changed = f"{name} {before.get(name, '(unset)')}, now {now.get(name, '(unset)')}"
            raise NPTError(
                f"{run.folder} holds a run with {changed}: "
                "take another --out folder, or delete that one"
            )


# --------------------------------------------------------------------------- one run
def execute_run(run: Run) -> None:
    """Train and test one run in this process, leaving out what its folder already has."""
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
    """The run's trainer on an evaluation's data, its output going to that folder's log."""
    args = parse_args(run.argv(evaluation))
    cfg = setup_cfg(args)
    with session(args, cfg):
        yield build(cfg)


def _test(trainer: Any, run: Run, evaluation: Evaluation) -> None:
    for split in missing_splits(run, evaluation):
        trainer.test(split)
        if split in missing_splits(run, evaluation):
            raise NPTError(
                f"testing {dataset_name(evaluation.dataset)} on its {split} images left no figures "
                f"in {run.output(evaluation) / 'result.json'}: has the data set that split?"
            )


# --------------------------------------------------------------------------- workers
def _work(pipe: Connection, execute: Callable[[Run], None], environment: dict[str, str]) -> None:
    """A worker: runs what the pipe sends, answers (seconds, error, log), until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
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
        gc.collect()  # a trainer is full of cycles
        pipe.send((time.perf_counter() - start, error, log))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _attempt(run: Run, execute: Callable[[Run], None]) -> tuple[str | None, Path | None]:
    """Execute a run without letting it print or fail here; its log holds the traceback."""
    console, errors = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        sys.stderr = _ToStdout()  # warnings belong into the run's log
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
    """A stderr that writes to whatever stdout is at the time: a run's log, or nothing."""

    def write(self, text: str) -> int:
        return sys.stdout.write(text) or 0

    def flush(self) -> None:
        sys.stdout.flush()


def _log_of(run: Run) -> Path:
    """The log that was written last, or the one of the first evaluation if there is none."""
    logs = sorted(run.folder.glob("*/log.txt*"), key=lambda path: path.stat().st_mtime)
    path = logs[-1] if logs else run.output(run.evaluations[0]) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class _Worker:
    """A worker process and what it is doing."""

    def __init__(self, execute: Callable[[Run], None], environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, execute, environment))
        self.process.start()
        theirs.close()
        self.run: Run | None = None
        self.started = 0.0

    def begin(self, run: Run) -> None:
        self.run, self.started = run, time.perf_counter()
        self.pipe.send(run)

    def outcome(self, run: Run) -> Outcome:
        """The answer about the run under way, or its failure where the process is gone."""
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
    """How many workers, and the environment of each: one per GPU, or else one per core."""
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
    """Check the configuration of every kind of run, and make each data set ready once.

    Raises what is wrong before any run starts, and keeps workers from generating or indexing the
    same data side by side.
    """
    from dassl.data.datasets import build_dataset

    kinds: dict[tuple, tuple[Run, Evaluation]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            kinds.setdefault((run.label, evaluation.dataset), (run, evaluation))
    configs = {}
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
    """Execute the runs that are not complete, `jobs` at a time; `report` hears of each at its end.

    A run that fails, or takes its process with it, is an Outcome with an error; the others go on.
    `execute_one` must be importable by name: it is called in a new process.
    """
    waiting = [run for run in runs if not is_complete(run)]
    for run in runs:
        if not run.keep_checkpoints and is_complete(run):
            remove_checkpoints(run)  # the process may have ended between testing and deleting
    if not waiting:
        return []
    jobs, environments = (jobs, default_jobs()[1]) if jobs else default_jobs()
    outcomes: list[Outcome] = []
    workers: list[_Worker] = []
    with _environment(TQDM_DISABLE="1"):  # bars of single runs have nowhere to go
        try:
            for number in range(min(jobs, len(waiting))):
                workers.append(_Worker(execute_one, environments[number % len(environments)]))
            waiting.reverse()
            while waiting or any(worker.run for worker in workers):
                for worker in workers:
                    if worker.run is None and waiting:
                        worker.begin(waiting.pop())
                ready = wait([worker.pipe for worker in workers if worker.run])
                for place, worker in enumerate(workers):
                    if worker.run is None or worker.pipe not in ready:
                        continue
                    outcomes.append(worker.outcome(worker.run))
                    if not worker.process.is_alive():
                        environment = environments[place % len(environments)]
                        workers[place] = _Worker(execute_one, environment)
                    report(outcomes[-1])
        finally:
            for worker in workers:
                worker.stop()
    return outcomes


@contextmanager
def _environment(**values: str) -> Iterator[None]:
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

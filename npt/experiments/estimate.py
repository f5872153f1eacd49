"""Estimates the time of an experiment from a few steps of each trainer.

    seconds of a run = epochs x batches x step + evaluations x test batches x test step

A step is the median time of a few steps after a warm-up step, on this machine and data, with one
thread as in a run. The total is divided by the number of parallel runs. The time to start and to
read images from a slow disk is not included.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate

from npt.experiments.plan import Run, dataset_name
from npt.experiments.running.pool import default_jobs
from npt.experiments.state import is_complete
from npt.experiments.status import words
from npt.flags import parse_args, setup_cfg
from npt.session import build

STEPS = 3  # timed steps, in training and in testing


@dataclass(frozen=True)
class Estimate:
    """The time of one run of a kind (times in seconds), and how many of these runs remain."""

    label: str
    dataset: str
    ratio: float
    runs: int  # runs that are not complete
    train_step: float
    train_steps: int
    test_step: float
    test_steps: int

    @property
    def seconds(self) -> float:
        return self.train_step * self.train_steps + self.test_step * self.test_steps


def estimate(runs: Sequence[Run], say: Callable[[str], None] = print) -> list[Estimate]:
    """Measure one run for every trainer, data set and ratio with runs that are not complete."""
    kinds: dict[tuple[str, str, float], list[Run]] = {}
    for run in runs:
        if not is_complete(run):
            kinds.setdefault((run.label, run.dataset, run.ratio), []).append(run)
    estimates = []
    for (label, dataset, ratio), same in kinds.items():
        say(f"Timing {STEPS} steps of {label} on {dataset_name(dataset)}, tau {ratio:g}")
        estimates.append(_measure(same[0], len(same)))
        gc.collect()  # trainers have reference cycles
    return estimates


def _measure(run: Run, number: int) -> Estimate:
    cfg = setup_cfg(parse_args(run.argv(run.evaluations[0]))).clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""  # no files are written
    cfg.freeze()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that execute runs
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            trainer = build(cfg)
            train_step = _time_training(trainer) if run.train else 0.0
            test_step = _time_testing(trainer)
    finally:
        torch.set_num_threads(threads)
    steps = len(trainer.train_loader_x) * cfg.OPTIM.MAX_EPOCH if run.train else 0
    splits = sum(len(evaluation.splits) for evaluation in run.evaluations)
    return Estimate(
        *(run.label, run.dataset, run.ratio, number, train_step, steps, test_step),
        test_steps=len(trainer.test_loader) * splits,  # assumed equal for all evaluations
    )


def _time_training(trainer: Any) -> float:
    trainer.set_model_mode("train")
    # With so many batches, no step is the last one of an epoch.
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 1 << 30
    return _seconds(trainer.forward_backward, trainer.train_loader_x)


@torch.no_grad()
def _time_testing(trainer: Any) -> float:
    trainer.set_model_mode("eval")

    def step(batch: dict[str, Any]) -> Any:
        return trainer.model_inference(trainer.parse_batch_test(batch)[0])

    return _seconds(step, trainer.test_loader)


def _seconds(step: Callable[[Any], Any], loader: Any) -> float:
    """The median time of a step, without the first one (warm-up) unless it is the only one."""
    times = []
    for batch in islice(loader, STEPS + 1):
        _synchronise()
        start = time.perf_counter()
        step(batch)
        _synchronise()
        times.append(time.perf_counter() - start)
    return median(times[1:] or times or [0.0])


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def render(estimates: Sequence[Estimate]) -> str:
    """A table with a row for each kind of run, and the total time."""
    rows = [
        [
            *(e.label, dataset_name(e.dataset), e.ratio, e.runs),
            *(e.train_steps, e.train_step, e.test_steps, e.test_step, words(e.seconds)),
        ]
        for e in estimates
    ]
    header = ["", "data", "tau", "runs", "steps", "s/step", "test steps", "s/step", "time per run"]
    total = sum(e.seconds * e.runs for e in estimates)
    jobs = min(default_jobs()[0], max(1, sum(e.runs for e in estimates)))
    least = max([total / jobs, *(e.seconds for e in estimates)])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    return (
        tabulate(rows, headers=header, floatfmt=".3g")
        + f"\n\nEstimate: about {words(least)} on {device}, {jobs} at a time, from {STEPS} timed "
        "steps of each; the time to load data is not included."
    )


def report(runs: Sequence[Run], out: Path) -> str:
    """The output of `python -m npt.experiments estimate`."""
    estimates = estimate(runs)
    return render(estimates) if estimates else f"All runs are complete in {out}."

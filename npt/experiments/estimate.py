"""How long an experiment will take: a few real steps of each trainer, and what follows from them.

    seconds of a run = epochs x batches x step + evaluations x test batches x test step

where a step is the median of a few, after a first one that is not counted, on the machine and data
at hand, with one thread as in a run. The total is divided by the runs that go at a time. Starting
up, and reading images from a slow disk, are not in it.
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
from npt.experiments.runner import default_jobs, is_complete
from npt.flags import parse_args, setup_cfg
from npt.session import build

STEPS = 3  # that are timed, of training and of testing


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run of a kind, and how many of these runs are still to be done."""

    label: str
    dataset: str
    ratio: float
    runs: int
    train_step: float
    train_steps: int
    test_step: float
    test_steps: int

    @property
    def seconds(self) -> float:
        return self.train_step * self.train_steps + self.test_step * self.test_steps


def estimate(runs: Sequence[Run], say: Callable[[str], None] = print) -> list[Estimate]:
    """Measures one run of every trainer, data set and ratio that is not complete."""
    kinds: dict[tuple[str, str, float], list[Run]] = {}
    for run in runs:
        if not is_complete(run):
            kinds.setdefault((run.label, run.dataset, run.ratio), []).append(run)
    found = []
    for (label, dataset, ratio), same in kinds.items():
        say(f"Timing {STEPS} steps of {label} on {dataset_name(dataset)}, tau {ratio:g}")
        found.append(_measured(same[0], len(same)))
        gc.collect()  # a trainer is full of cycles
    return found


def _measured(run: Run, number: int) -> Estimate:
    cfg = setup_cfg(parse_args(run.argv(run.evaluations[0]))).clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""
    cfg.freeze()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that execute runs
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            trainer = build(cfg)
            train_step = _timed_training(trainer) if run.train else 0.0
            test_step = _timed_testing(trainer)
    finally:
        torch.set_num_threads(threads)
    steps = len(trainer.train_loader_x) * cfg.OPTIM.MAX_EPOCH if run.train else 0
    splits = sum(len(evaluation.splits) for evaluation in run.evaluations)
    return Estimate(
        *(run.label, run.dataset, run.ratio, number, train_step, steps, test_step),
        test_steps=len(trainer.test_loader) * splits,  # taken to be alike for base and new
    )


def _timed_training(trainer: Any) -> float:
    trainer.set_model_mode("train")
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 1 << 30  # no epoch ends here
    return _seconds(trainer.forward_backward, trainer.train_loader_x)


@torch.no_grad()
def _timed_testing(trainer: Any) -> float:
    trainer.set_model_mode("eval")

    def step(batch: dict[str, Any]) -> Any:
        return trainer.model_inference(trainer.parse_batch_test(batch)[0])

    return _seconds(step, trainer.test_loader)


def _seconds(step: Callable[[Any], Any], loader: Any) -> float:
    """The median time of a step; the first, which warms up, counts only if there is no other."""
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
    """A row for each kind of run, and the time that all take."""
    rows = [
        [
            *(e.label, dataset_name(e.dataset), e.ratio, e.runs),
            *(e.train_steps, e.train_step, e.test_steps, e.test_step, words(e.seconds)),
        ]
        for e in estimates
    ]
    header = ["", "data", "tau", "runs", "steps", "s each", "test steps", "s each", "a run takes"]
    total = sum(e.seconds * e.runs for e in estimates)
    jobs = min(default_jobs()[0], max(1, sum(e.runs for e in estimates)))
    least = max([total / jobs, *(e.seconds for e in estimates)])
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else "the processor"
    return (
        tabulate(rows, headers=header, floatfmt=".3g")
        + f"\n\nEstimate: about {words(least)} on {place}, {jobs} at a time, "
        f"from {STEPS} timed steps of each; loading is not in it."
    )


def words(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def report(experiment: Any, out: Path) -> str:
    """What `python -m npt.experiments estimate` prints."""
    estimates = estimate(experiment.runs(out))
    return render(estimates) if estimates else f"All runs are complete in {out}."

"""What an experiment saves by a CLIP that is kept and by image features that are computed once.

    python benchmarks/grid.py --all benchmarks/results/grid.jsonl      # executes the runs
    python benchmarks/grid.py --table benchmarks/results/grid.jsonl    # the results as a table

Each run is executed in three ways after each other, in one process with one thread: as a process
of its own would, with a kept CLIP, and also with the features of the runs before it. Its times are
seconds of processor time of this process, so other processes disturb them little; loaders of
images have no processes of their own. The figures of the three ways must be the same to the last
digit: if not, the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import _checkout  # noqa: F401  first: npt of this checkout
import torch
from tabulate import tabulate

import npt  # noqa: F401  makes `dassl` importable
from npt.experiments.plan import Run, merge
from npt.experiments.reading import Selection
from npt.experiments.reproduce import load
from npt.experiments.running import frozen, one
from npt.results import readable

METHODS = ("CLIP", "CoOp", "CoOp+NPT", "CoCoOp", "CoCoOp+NPT", "MaPLe", "MaPLe+NPT")
DATASETS = ("mini_flowers", "mini_land")
WAYS = {  # the function that executes a run, and whether it keeps features
    "alone": (one.execute_alone, False),
    "kept CLIP": (one.execute_run, False),
    "and features": (one.execute_run, True),
}


def plan(out: Path, datasets: tuple[str, ...], ratio: float) -> list[Run]:
    chosen = Selection(methods=METHODS, datasets=datasets, ratios=(ratio,), seeds=(1,))
    requests = load(["table1"], "mini", chosen)
    return merge(run for request in requests for run in request.experiment.runs(out))


def executed(way: str, run: Run) -> float:
    """Execute a run; returns its seconds of processor time."""
    execute, features = WAYS[way]
    without = patch.object(frozen, "keep_features", lambda trainer, folder: trainer)
    start = time.process_time()
    with open(os.devnull, "w") as nowhere, ExitStack() as stack:
        stack.enter_context(redirect_stdout(nowhere))
        if not features:
            stack.enter_context(without)
        execute(run)
    return time.process_time() - start


def figures(run: Run) -> list[Any]:
    """All that is recorded of a run, without times."""
    found = []
    for evaluation in run.evaluations:
        record = readable(run.output(evaluation))
        results = {
            split: {name: x for name, x in values.items() if name != "seconds"}
            for split, values in record["results"].items()
        }
        found.append([results, *(record[x] for x in ("training", "per_class", "confusion"))])
    return found


def measure(file: Path, datasets: tuple[str, ...], ratio: float) -> int:
    """Append a line for each run to the file; returns the number of runs whose figures differ."""
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        runs = {way: plan(Path(folder) / way, datasets, ratio) for way in WAYS}
        for way in WAYS:  # imports, and the mini suite's images
            executed(way, plan(Path(folder) / "warm-up" / way, datasets, ratio)[0])
        for same in zip(*runs.values(), strict=True):
            seconds = {way: executed(way, run) for way, run in zip(WAYS, same, strict=True)}
            first, *others = map(figures, same)
            identical = all(other == first for other in others)
            different += not identical
            line = {"method": same[0].label, "dataset": same[0].dataset, "ratio": same[0].ratio}
            line |= {"seconds": seconds, "identical": identical, "torch": torch.__version__}
            with file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            print(same[0].name, {way: round(x, 2) for way, x in seconds.items()}, identical)
    return different


def table(file: Path) -> str:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    rows = []
    for method in [*METHODS, "all"]:
        same = [line for line in lines if method in (line["method"], "all")]
        if not same:
            continue
        seconds = [sum(line["seconds"][way] for line in same) / len(same) for way in WAYS]
        identical = "identical" if all(line["identical"] for line in same) else "DIFFERENT"
        rows.append([method, len(same), *seconds, f"{1 - seconds[-1] / seconds[0]:.0%}", identical])
    header = ["method", "runs", *(f"{way}, s" for way in WAYS), "saved", "figures"]
    return tabulate(rows, header, "github", floatfmt=".2f")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", type=Path, metavar="FILE", help="execute the runs")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the results")
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--ratio", type=float, default=0.01)
    args = parser.parse_args()
    torch.set_num_threads(1)
    different = 0
    if args.all:
        different = measure(args.all, tuple(args.datasets.split(",")), args.ratio)
    print(table(args.table or args.all))
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())

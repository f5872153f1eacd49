"""Workers are killed all the time, and the same command is called until all runs are complete.

Nothing is lost: every run has the figures of an undisturbed execution. Nothing is done twice: no
run comes to its end twice, and none is executed that is complete.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import crashing_runs
import pytest

from npt.experiments import state
from npt.experiments.plan import Run
from npt.experiments.reading import load_experiment

PROGRAM = Path(crashing_runs.__file__)
FAKE = """
trainers: {Fake: {config: fake.yaml}}
datasets: [set]
seeds: [1, 2, 3, 4, 5, 6, 7, 8]
"""
REAL = """
trainers:
  CoOp: {config: configs/trainers/CoOp/tiny.yaml}
  MaPLeNPT: {config: configs/trainers/MaPLe/tiny.yaml}
datasets: [mini_flowers]
seeds: [1, 2, 3, 4, 5, 6, 7, 8]
ratios: [0.1]
shots: 4
opts: {OPTIM.MAX_EPOCH: 3, DATALOADER.NUM_WORKERS: 0}
"""


def started(kind: str, folder: Path, jobs: int) -> subprocess.Popen:
    command = [sys.executable, PROGRAM, kind, folder / "some.yaml", folder / "out", jobs]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def workers_of(process: subprocess.Popen) -> list[int]:
    """The worker processes of a runner, without what multiprocessing keeps beside them."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    except OSError:  # one has just ended
        return []
    return [pid for pid, line in lines.items() if "spawn_main" in line]


def ends(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False


def disturbed(kind: str, folder: Path, jobs: int, every: float, seconds: float) -> Counter:
    """Call the command until all is complete; for `seconds`, kill a worker every `every` seconds.

    The time begins with the first run. Returns how often what has happened.
    """
    happened: Counter = Counter()
    choice, end, code = random.Random(1), float("inf") if seconds else 0.0, 1
    while code:
        happened["calls"] += 1
        assert happened["calls"] < 50
        with started(kind, folder, jobs) as process:
            while time.monotonic() < end and not ends(process, every):
                if not (folder / "out.log").exists():
                    continue
                end = min(end, time.monotonic() + seconds)
                for worker in (choice.choice(found) for found in [workers_of(process)] if found):
                    os.kill(worker, signal.SIGKILL)
                    happened["kills"] += 1
            _, errors = process.communicate(timeout=900)
            code = process.returncode
        assert code in (0, 1) and "Traceback" not in errors, errors
        happened["went on"] += errors.count("it goes on after the others")
        happened["failed"] += errors.count("failed: ")
    return happened


def executions(folder: Path) -> Iterator[tuple[str, str]]:
    for line in (folder / "out.log").read_text().splitlines():
        what, run = line.split(maxsplit=1)
        yield what, run


def check_that_nothing_was_done_twice(folder: Path, number: int) -> Counter:
    found = list(executions(folder))
    began = Counter(run for what, run in found if what == "begin")
    ended = Counter(run for what, run in found if what == "end")
    assert not [run for what, run in found if what == "again"]
    assert len(began) == number and max(ended.values()) == 1
    return Counter(what for what, _ in found)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find workers")
def test_killed_workers_cost_nothing(tmp_path):
    (tmp_path / "some.yaml").write_text(FAKE)
    happened = disturbed("steps", tmp_path, jobs=2, every=2.0, seconds=10)
    assert happened["kills"] >= 3
    check_that_nothing_was_done_twice(tmp_path, 8)
    for run in load_experiment(tmp_path / "some.yaml").runs(tmp_path / "out"):
        expected = crashing_runs.after(run.seed, crashing_runs.STEPS) % 10_007 / 100
        figures = state.figures(run.folder, ["base", "new"], train=True)
        assert {x["test"]["accuracy"] for x in figures.values()} == {expected}


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find workers")
def test_eight_workers_of_which_one_is_killed_every_few_seconds(tmp_path):
    """Two minutes of kills, with real trainings; `-s` shows what has happened."""
    figures = []
    for name in ("alone", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "some.yaml").write_text(REAL)
        seconds, jobs = (120, 8) if name == "killed" else (0, 2)
        happened = disturbed("real", folder, jobs, every=4.0, seconds=seconds)
        counts = check_that_nothing_was_done_twice(folder, 16)
        print(name, dict(happened), dict(counts))
        runs = load_experiment(folder / "some.yaml").runs(folder / "out")
        figures.append([figures_of(run) for run in runs])
    assert happened["kills"] > 20
    assert figures[0] == figures[1] and all(figures[0])


def figures_of(run: Run) -> list[tuple]:
    """All figures of a run, without the times."""
    found = state.figures(run.folder, ["base", "new"], run.train)
    return [
        (part, split, name, value)
        for part, splits in found.items()
        for split, figures in splits.items()
        for name, value in figures.items()
        if name != "seconds"
    ]

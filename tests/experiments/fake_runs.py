"""Runs without a model, for the tests of the runner; also a program that executes them.

`python fake_runs.py OUT JOBS SECONDS [EXPERIMENT]` executes eight runs of SECONDS each, or as
`npt experiments run` the runs of an experiment's yaml file.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from npt.errors import NPTError
from npt.experiments.__main__ import main
from npt.experiments.plan import Part, Run
from npt.experiments.running import pool, validation
from npt.stopping import PREEMPTION


def runs(out: Path, seeds: int = 8, **fields) -> list[Run]:
    trainers = {"Fake": {"config": "fake.yaml"}}
    return Part(trainers, ("set",), seeds=tuple(range(1, seeds + 1)), **fields).runs(out)


def write(run: Run, accuracy: float = 50.0) -> None:
    (run.folder / "run.json").parent.mkdir(parents=True, exist_ok=True)
    (run.folder / "run.json").write_text(json.dumps(run.record()))
    for evaluation in run.evaluations:
        folder = run.output(evaluation)
        (folder / "learner").mkdir(parents=True, exist_ok=True)
        (folder / "learner" / "model.pth.tar-5").touch()
        figures = {"accuracy": accuracy, "lcd_abs": 0.1, "mid_abs": 0.2}
        content = {
            "task": "training" if evaluation == run.evaluations[0] else "evaluation",
            "finished": True,
            "results": {s: figures for s in evaluation.splits},
        }
        partial = folder / "result.json.partial"
        partial.write_text(json.dumps(content))
        os.replace(partial, folder / "result.json")


def quick(run: Run) -> None:
    with open(run.folder.parent / f"began-{run.seed}", "a") as file:
        file.write("x")
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    write(run)


def patient(run: Run) -> None:
    """A training that is stopped by a signal: it finishes its step and saves."""

    def stop(number, frame):
        stopped.append(number)

    stopped: list[int] = []
    for number in PREEMPTION:
        signal.signal(number, stop)
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "began").touch()
    for _ in range(40):
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        if stopped:
            (run.folder / "saved").touch()
            raise SystemExit(75)
    write(run)


def telling(run: Run) -> None:
    """Writes how a data loader in the worker would start its processes."""
    write(run)
    (run.folder / "method").write_text(multiprocessing.get_start_method())


def mortal(run: Run) -> None:
    """Seed 2 is killed every time, seed 3 after its figures were written."""
    if run.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    write(run)
    if run.seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def troubled(run: Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    print("output of a run")
    if run.seed == 2:
        raise NPTError("seed 2 is refused")
    if run.seed == 3:
        raise ZeroDivisionError("a bug")
    if run.seed == 4:
        os._exit(7)
    write(run)


if __name__ == "__main__":
    os.environ["FAKE_SECONDS"] = sys.argv[3]
    if sys.argv[4:]:
        validation.validate = lambda runs: {}
        pool.execute = partial(pool.execute, execute_one=patient)
        sys.exit(main(["run", sys.argv[4], "--out", sys.argv[1], "--jobs", sys.argv[2]]))
    todo = runs(Path(sys.argv[1]))
    for run in todo:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
    done = pool.execute(todo, int(sys.argv[2]), lambda o: print(o.run.seed, flush=True), quick)
    print("executed", len(done))

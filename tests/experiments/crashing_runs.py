"""A program for test_crashes_of_workers: `npt experiments run` that tells which runs it executes.

`python crashing_runs.py real|steps EXPERIMENT OUT JOBS`; OUT.log has a line for each execution of a
run that begins, and for each that comes to its end.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

import fake_runs

from npt.experiments import state
from npt.experiments.__main__ import main
from npt.experiments.plan import Run
from npt.experiments.running import one, pool, validation
from npt.files import read_record, write_record

STEPS = 12  # of a run of `steps`


def note(run: Run, what: str) -> None:
    """Append a line, in one piece."""
    log = os.open(f"{run.out}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{what} {run.folder.relative_to(run.out)}\n".encode())
    os.close(log)


def begin(run: Run) -> None:
    note(run, "again" if state.is_complete(run) else "begin")


def real(run: Run) -> None:
    begin(run)
    one.execute_run(run)
    note(run, "end")


def after(seed: int, step: int) -> int:
    """The state of a run of `steps` after a step, which depends on all earlier ones."""
    value = seed
    for number in range(step):
        value = (value * 48271 + number) % (2**31 - 1)
    return value


def steps(run: Run) -> None:
    """A run that saves after each step, and goes on from there."""
    begin(run)
    saved = run.folder / "state.json"
    done, value = read_record(saved)["state"] if saved.exists() else (0, run.seed)
    for step in range(done, STEPS):
        time.sleep(0.1)
        value = (value * 48271 + step) % (2**31 - 1)
        write_record(saved, {"state": [step + 1, value]})
    fake_runs.write(run, value % 10_007 / 100)
    note(run, "end")


if __name__ == "__main__":
    kind, experiment, out, jobs = sys.argv[1:]
    if kind == "steps":
        validation.validate = lambda runs: {}
    pool.execute = partial(pool.execute, execute_one={"real": real, "steps": steps}[kind])
    sys.exit(main(["run", experiment, "--out", str(Path(out)), "--jobs", jobs]))

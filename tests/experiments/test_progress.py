"""progress.json: what a worker writes of its run, and what others read in it."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import fake_runs
import pytest

from npt.errors import NPTError
from npt.experiments.running import pool, progress
from npt.files import read_record, write_record


@pytest.fixture
def quick(monkeypatch):
    """Looks often, so that the tests need not wait."""
    monkeypatch.setattr(progress, "LOOK", 0.01)


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_is_running_then_done(tmp_path, quick):
    trainer, threads = SimpleNamespace(epoch=0, max_epoch=5), threading.active_count()
    with progress.recorded(tmp_path):
        found = progress.read(tmp_path)
        assert (found["state"], found["pid"]) == ("running", os.getpid())
        assert found["evaluation"] is None and progress.is_alive(found)
        progress.doing("base", trainer)
        until(lambda: progress.read(tmp_path)["epoch"] == 1)
        trainer.epoch = 3
        until(lambda: progress.read(tmp_path)["epoch"] == 4)
        progress.doing("new")
        until(lambda: progress.read(tmp_path)["evaluation"] == "new")
        assert progress.read(tmp_path)["epoch"] is None
    found = progress.read(tmp_path)
    assert found["state"] == "done" and not progress.is_alive(found)
    assert {*read_record(tmp_path / "progress.json")} == {*progress.ENTRIES}
    assert threading.active_count() == threads


def test_without_changes_there_are_signs_of_life(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(progress, "BEAT", 0.05)
    with progress.recorded(tmp_path):
        path = tmp_path / "progress.json"
        first = path.stat().st_mtime_ns
        until(lambda: path.stat().st_mtime_ns > first)


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt])
def test_a_run_that_was_stopped_is_not_done(tmp_path, stop):
    with pytest.raises(stop), progress.recorded(tmp_path):
        raise stop
    assert progress.read(tmp_path)["state"] == "stopped"


def test_the_time_of_a_run_is_that_of_all_its_processes(tmp_path):
    for wanted in ("stopped", "done", "done"):
        before = progress.read(tmp_path).get("seconds", 0.0)
        try:
            with progress.recorded(tmp_path):
                time.sleep(0.1)
                if wanted == "stopped":
                    raise SystemExit
        except SystemExit:
            pass
        found = progress.read(tmp_path)
        assert found["state"] == wanted
        goes_on = wanted == "done" and before < 0.2
        assert 0.1 <= found["seconds"] - (before if goes_on else 0.0) < 0.2


def test_age_is_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    with progress.recorded(tmp_path):
        monkeypatch.setattr(time, "time", lambda: 10.0)  # the clock of another machine
        assert progress.is_alive(progress.read(tmp_path))
        old = (tmp_path / "progress.json").stat().st_mtime - 150
        os.utime(tmp_path / "progress.json", (old, old))
        found = progress.read(tmp_path)
        assert 149 < found["silent"] < 152 and not progress.is_alive(found)


def test_a_process_of_this_machine_that_is_gone_shows_at_once(tmp_path):
    with progress.recorded(tmp_path):
        mine = progress.read(tmp_path)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, check=True)  # fmt: skip
    running = {**mine, "state": "running"}
    assert progress.is_alive(running)
    assert not progress.is_alive({**running, "pid": int(gone.stdout)})
    assert not progress.is_alive({**running, "pid": 10**30})
    # Its number says nothing elsewhere, nor in another container.
    assert progress.is_alive({**running, "pid": int(gone.stdout), "node": "another"})
    assert progress.is_alive({**running, "pid": int(gone.stdout), "pids": "pid:[1]"})
    assert not progress.is_alive({})


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"state": "running"}', "[" * 100_000, '{"sha256": "0"}']
)
def test_a_damaged_record_is_named(tmp_path, content):
    path = tmp_path / "progress.json"
    path.write_text(content)
    assert progress.read(tmp_path) == {}
    with pytest.raises(NPTError, match=r"progress\.json") as caught:
        progress.load(tmp_path)
    assert "\n" not in str(caught.value)
    with progress.recorded(tmp_path):
        assert progress.read(tmp_path)["state"] == "running"


def test_values_of_another_kind_are_damage(tmp_path):
    with progress.recorded(tmp_path):
        pass
    found = read_record(tmp_path / "progress.json")
    for changed in ({"state": "else"}, {"seconds": "1"}, {"pid": None}, {"log": 3}):
        write_record(tmp_path / "progress.json", {**found, **changed})
        assert progress.read(tmp_path) == {}


def test_a_full_disk_ends_no_run(tmp_path, quick, monkeypatch):
    """Every write fails, as there."""
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space")))
    with progress.recorded(tmp_path):
        progress.doing("base")
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_workers_record_their_runs(tmp_path):
    todo = fake_runs.runs(tmp_path, seeds=4)
    pool.execute(todo, 2, execute_one=fake_runs.troubled)
    found = {run.seed: progress.read(run.folder) for run in todo}
    assert [found[seed]["state"] for seed in (1, 2, 3)] == ["done", "failed", "failed"]
    assert found[2]["error"] == "seed 2 is refused"
    log = todo[1].folder / found[2]["log"]
    assert "seed 2 is refused" in log.read_text()
    # The fourth ended its process without a word.
    assert found[4]["state"] == "failed" and "exit code 7" in found[4]["error"]


def test_it_says_the_job_of_a_cluster(tmp_path, monkeypatch):
    for variables, job in (
        ({}, None),
        ({"SLURM_JOB_ID": "17"}, "17"),
        ({"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "3"}, "16_3"),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with progress.recorded(tmp_path):
            assert progress.read(tmp_path)["job"] == job


def test_random_numbers_stay_as_they_are(tmp_path, quick):
    import random

    import numpy as np
    import torch

    def state():
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = state()
    with progress.recorded(tmp_path):
        progress.doing("base", SimpleNamespace(epoch=1, max_epoch=2))
        time.sleep(0.1)
    assert state() == before


def test_logs_are_found_from_another_mount(tmp_path):
    run, log = tmp_path / "run", tmp_path / "run" / "base" / "log.txt"
    with progress.recorded(run) as found:
        found.failed("bad", log)
    assert json.loads((run / "progress.json").read_text())["log"] == str(Path("base", "log.txt"))

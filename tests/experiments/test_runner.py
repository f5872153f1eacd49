import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_runs
import pytest

from npt.errors import NPTError
from npt.experiments import runner
from npt.files import locked

FAKE = Path(fake_runs.__file__)


def test_runs_are_executed_in_other_processes_and_reported(tmp_path, capfd):
    todo = fake_runs.runs(tmp_path, seeds=5)
    reported = []
    outcomes = runner.execute(todo, 2, reported.append, fake_runs.troubled)
    assert reported == outcomes
    errors = {o.run.seed: o.error for o in outcomes}
    assert errors[1] is None and errors[5] is None
    assert errors[2] == "seed 2 is refused"
    assert errors[3] == "ZeroDivisionError: a bug"
    assert "exit code 7" in errors[4]
    logs = {o.run.seed: o.log for o in outcomes if o.error}
    assert "ZeroDivisionError" in logs[3].read_text() and "Traceback" in logs[3].read_text()
    assert "output of a run" not in capfd.readouterr().out
    assert sys.stdout is not None and "TQDM_DISABLE" not in os.environ


def test_what_is_complete_is_not_repeated(tmp_path):
    todo = fake_runs.runs(tmp_path, seeds=3)
    for run in todo:
        fake_runs.write(run)
    assert runner.execute(todo, 1, execute_one=fake_runs.quick) == []
    (todo[1].folder / "new" / "result.json").unlink()
    again = runner.execute(todo, 1, execute_one=fake_runs.quick)
    assert [o.run.seed for o in again] == [2]


@pytest.mark.slow
def test_a_killed_experiment_loses_only_the_current_runs(tmp_path):
    """After SIGKILL no worker process continues, and a second start executes only the rest."""
    command = [sys.executable, str(FAKE), str(tmp_path), "2", "1.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        finished = [process.stdout.readline().strip() for _ in range(2)]
        time.sleep(0.3)  # the next two have begun
        process.send_signal(signal.SIGKILL)
    complete = {r.seed for r in fake_runs.runs(tmp_path) if runner.is_complete(r)}
    assert {int(seed) for seed in finished} <= complete
    began = {int(p.name[6:]): len(p.read_text()) for p in tmp_path.rglob("began-*")}
    assert 2 < len(began) < 8
    time.sleep(1.5)
    assert complete == {r.seed for r in fake_runs.runs(tmp_path) if runner.is_complete(r)}
    command[-1] = "0"
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"executed {8 - len(complete)}" in second.stdout
    assert all(runner.is_complete(r) for r in fake_runs.runs(tmp_path))
    for path in tmp_path.rglob("began-*"):
        once = int(path.name[6:]) in complete
        assert len(path.read_text()) == (1 if once else 1 + began.get(int(path.name[6:]), 0))


def test_an_unreadable_or_partial_result_is_no_result(tmp_path):
    run = fake_runs.runs(tmp_path, seeds=1, evaluate=("val", "test"))[0]
    assert not runner.is_complete(run)
    fake_runs.write(run)
    assert runner.is_complete(run)
    path = run.folder / "new" / "result.json"
    path.write_text(json.dumps({"results": {"test": {}}}))
    assert runner.missing_splits(run, run.evaluations[1]) == ["val"]
    path.write_text('{"results": {"te')
    assert runner.missing_splits(run, run.evaluations[1]) == ["val", "test"]


def test_checkpoints_are_deleted_when_they_are_not_kept(tmp_path):
    todo = fake_runs.runs(tmp_path, seeds=1, keep_checkpoints=False)
    fake_runs.write(todo[0])
    assert runner.has_checkpoint(todo[0].folder / "base")
    assert runner.execute(todo, 1, execute_one=fake_runs.quick) == []
    assert not runner.has_checkpoint(todo[0].folder / "base")
    assert runner.is_complete(todo[0])


def test_results_of_another_configuration_are_not_mixed_in(tmp_path):
    old = fake_runs.runs(tmp_path, seeds=1, opts={"OPTIM.LR": 0.1})[0]
    new = fake_runs.runs(tmp_path, seeds=1, opts={"OPTIM.LR": 0.2})[0]
    runner.check_record(new)  # nothing there
    fake_runs.write(old)
    runner.check_record(old)
    with pytest.raises(NPTError, match=r"OPTIM\.LR 0\.1, now 0\.2"):
        runner.check_record(new)


@pytest.mark.parametrize("content", ["", "[]", "\0\0"])
def test_a_damaged_record_of_a_run_is_named(tmp_path, content):
    (run,) = fake_runs.runs(tmp_path, seeds=1)
    fake_runs.write(run)
    (run.folder / "run.json").write_text(content)
    with pytest.raises(NPTError, match=r"run\.json .*delete it and run again"):
        runner.check_record(run)


def test_a_folder_is_for_one_experiment_at_a_time(tmp_path):
    other = pytest.raises(NPTError, match="another process")
    lock = tmp_path / ".lock"
    with locked(lock, "here"), other, locked(lock, "here"):
        pass
    with locked(lock, "here"):
        pass

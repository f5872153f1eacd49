import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import fake_runs
import pytest

from npt.errors import NPTError
from npt.experiments import state
from npt.experiments.plan import Part
from npt.experiments.running import one, pool, progress
from npt.files import locked

FAKE = Path(fake_runs.__file__)


def test_runs_are_executed_in_other_processes_and_reported(tmp_path, capfd):
    todo = fake_runs.runs(tmp_path, seeds=5)
    reported = []
    outcomes = pool.execute(todo, 2, reported.append, fake_runs.troubled)
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


def test_data_loaders_start_their_processes_as_elsewhere(tmp_path):
    """Not as the workers of the runner, which import torch anew."""
    (run,) = fake_runs.runs(tmp_path, seeds=1)
    (outcome,) = pool.execute([run], 1, execute_one=fake_runs.telling)
    assert outcome.error is None
    assert (run.folder / "method").read_text() == multiprocessing.get_start_method()


def test_what_is_complete_is_not_repeated(tmp_path):
    todo = fake_runs.runs(tmp_path, seeds=3)
    for run in todo:
        fake_runs.write(run)
    assert pool.execute(todo, 1, execute_one=fake_runs.quick) == []
    (todo[1].folder / "new" / "result.json").unlink()
    again = pool.execute(todo, 1, execute_one=fake_runs.quick)
    assert [o.run.seed for o in again] == [2]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def group_exists(number):
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


EXPERIMENT = """
trainers: {Fake: {config: fake.yaml}}
datasets: [set]
seeds: [1, 2, 3, 4]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, group, code",
    [
        ("SIGUSR1", False, 75),
        ("SIGINT", True, 130),
        ("SIGTERM", True, 75),
        pytest.param("SIGTERM", False, 75, marks=pytest.mark.long),
        pytest.param("SIGUSR2", True, 75, marks=pytest.mark.long),
    ],
)
def test_a_signal_to_stop_lets_workers_save(tmp_path, number, group, code):
    (tmp_path / "some.yaml").write_text(EXPERIMENT)
    out = tmp_path / "out"
    command = [sys.executable, str(FAKE), str(out), "2", "0.1", str(tmp_path / "some.yaml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:
        wait_for(lambda: len(list(out.rglob("began"))) == 2)
        send = os.killpg if group else os.kill
        send(process.pid, getattr(signal, number))
        _, error = process.communicate(timeout=60)
    assert process.returncode == code
    words = f"stopped: 0 of 4 runs are complete in {out}; the same command goes on\n"
    assert error == words
    assert len(list(out.rglob("saved"))) == 2
    wait_for(lambda: not group_exists(process.pid))


@pytest.mark.slow
def test_ctrl_c_before_anything_runs(tmp_path):
    """While the workers start, and before that, there is no traceback either."""
    (tmp_path / "some.yaml").write_text(EXPERIMENT)
    command = [sys.executable, str(FAKE), str(tmp_path), "2", "0.1", str(tmp_path / "some.yaml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error.count("\n") == 1 and "stopped: " in error


@pytest.mark.slow
def test_the_run_of_a_killed_worker_goes_on(tmp_path):
    (tmp_path / "some.yaml").write_text(EXPERIMENT)
    out = tmp_path / "out"
    command = [sys.executable, str(FAKE), str(out), "1", "0.02", str(tmp_path / "some.yaml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        wait_for(lambda: list(out.rglob("began")))
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        worker = int(Path(children).read_text().split()[-1])
        os.kill(worker, signal.SIGKILL)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0 and error.count("\n") == 1
    assert error.startswith("killed: ") and "exit code -9" in error and "it goes on" in error
    assert all(map(state.is_complete, fake_runs.runs(out, seeds=4)))


def test_a_run_whose_worker_is_killed_again_has_failed(tmp_path):
    """As one that is too large for the memory; others are executed before its second turn."""
    todo, reported = fake_runs.runs(tmp_path, seeds=4), []
    outcomes = pool.execute(todo, 1, reported.append, fake_runs.mortal)
    ends = [(outcome.run.seed, bool(outcome.error)) for outcome in outcomes]
    assert ends == [(1, False), (3, False), (4, False), (2, True)]
    assert [o.run.seed for o in reported if o.again] == [2]
    found = progress.read(todo[1].folder)
    assert found["state"] == "failed" and "exit code -9" in found["error"]


@pytest.mark.slow
def test_a_killed_experiment_loses_only_the_current_runs(tmp_path):
    """After SIGKILL no worker process continues, and a second start executes only the rest."""
    command = [sys.executable, str(FAKE), str(tmp_path), "2", "1.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        finished = [process.stdout.readline().strip() for _ in range(2)]
        time.sleep(0.3)  # the next two have begun
        process.send_signal(signal.SIGKILL)
    complete = {r.seed for r in fake_runs.runs(tmp_path) if state.is_complete(r)}
    assert {int(seed) for seed in finished} <= complete
    began = {int(p.name[6:]): len(p.read_text()) for p in tmp_path.rglob("began-*")}
    assert 2 < len(began) < 8
    time.sleep(1.5)
    assert complete == {r.seed for r in fake_runs.runs(tmp_path) if state.is_complete(r)}
    command[-1] = "0"
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"executed {8 - len(complete)}" in second.stdout
    assert all(state.is_complete(r) for r in fake_runs.runs(tmp_path))
    for path in tmp_path.rglob("began-*"):
        once = int(path.name[6:]) in complete
        assert len(path.read_text()) == (1 if once else 1 + began.get(int(path.name[6:]), 0))


def test_an_unreadable_or_partial_result_is_no_result(tmp_path):
    run = fake_runs.runs(tmp_path, seeds=1, evaluate=("val", "test"))[0]
    assert not state.is_complete(run)
    fake_runs.write(run)
    assert state.is_complete(run)
    path = run.folder / "new" / "result.json"
    path.write_text(json.dumps({"results": {"test": {}}}))
    assert state.missing_splits(run, run.evaluations[1]) == ["val"]
    path.write_text('{"results": {"te')
    assert state.missing_splits(run, run.evaluations[1]) == ["val", "test"]


def test_checkpoints_are_deleted_when_they_are_not_kept(tmp_path):
    todo = fake_runs.runs(tmp_path, seeds=1, keep_checkpoints=False)
    fake_runs.write(todo[0])
    assert state.has_checkpoint(todo[0].folder / "base")
    assert pool.execute(todo, 1, execute_one=fake_runs.quick) == []
    assert not state.has_checkpoint(todo[0].folder / "base")
    assert state.is_complete(todo[0])


def test_a_failing_evaluation_does_not_keep_the_next_from_being_made(tmp_path, monkeypatch):
    def test(trainer, run, evaluation):
        tested.append(evaluation.name)
        if evaluation.name == "two":
            raise NPTError("two is damaged")

    tested: list[str] = []
    monkeypatch.setattr(one, "_trainer", lambda run, evaluation: nullcontext())
    monkeypatch.setattr(one, "load", lambda trainer, folder: None)
    monkeypatch.setattr(one, "_test", test)
    zero = {"train": False, "config": "configs/trainers/ZeroshotCLIP/tiny.yaml"}
    entries = tuple({"name": name, "classes": "all"} for name in ("one", "two", "three"))
    (run,) = Part({"ZeroshotCLIP": zero}, ("mini_land",), protocol=entries).runs(tmp_path)
    with pytest.raises(NPTError, match="two is damaged"):
        one.execute_run(run)
    assert tested == ["one", "two", "three"]


def test_a_run_s_folder_follows_from_what_it_is(tmp_path):
    (first,) = fake_runs.runs(tmp_path, seeds=1, opts={"OPTIM.LR": 0.1})
    for fields in (
        {"opts": {"OPTIM.LR": 0.2}},
        {"shots": 4},
        {"ratios": (0.5,)},
        {"protocol": ({"name": "base", "classes": "all"},)},
    ):
        (other,) = fake_runs.runs(tmp_path, seeds=1, **{"opts": {"OPTIM.LR": 0.1}, **fields})
        assert other.folder != first.folder, fields


DAMAGES = {  # what a file can become
    "empty": lambda path: path.write_bytes(b""),
    "list": lambda path: path.write_text("[]"),
    "number": lambda path: path.write_text("3"),
    "other object": lambda path: path.write_text("{}"),
    "zeros": lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe" * 100),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "deep": lambda path: path.write_text("[" * 200_000),
    "folder": lambda path: (path.unlink(), path.mkdir(), (path / "x").touch()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["run.json", "base/result.json", "new/result.json"])
def test_a_damaged_record_is_named_and_counts_as_not_done(tmp_path, name, damage):
    first, second = fake_runs.runs(tmp_path, seeds=2)
    for run in (first, second):
        fake_runs.write(run)
        assert state.damages(run.folder, ["base", "new"]) == {}
    path = first.folder / name
    DAMAGES[damage](path)
    (found,) = state.damages(first.folder, ["base", "new"]).items()
    assert found[0] == path and str(path) in found[1] and "\n" not in found[1]
    assert not state.is_complete(first) and state.is_complete(second)
    state.remove_damaged(first)
    assert not path.exists() and (second.folder / name).exists()
    assert (first.folder / "base/learner").exists()  # from which it goes on


def test_without_run_json_no_command_counts_a_run_as_done(tmp_path):
    (run,) = fake_runs.runs(tmp_path, seeds=1)
    fake_runs.write(run)
    (run.folder / "run.json").unlink()
    assert not state.is_complete(run)
    assert list(state.runs_in(tmp_path)) == []


def test_figures_before_the_end_of_a_training_do_not_count(tmp_path):
    """best_val writes the result of the validation images after each epoch."""
    (run,) = fake_runs.runs(tmp_path, seeds=1, evaluate=("val",))
    fake_runs.write(run)
    path = run.folder / "base" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False}))
    assert state.missing(run) == {"base": ["val"], "new": ["val"]}
    path.unlink()
    assert state.missing(run) == {"base": ["val"], "new": ["val"]}


def test_a_folder_is_for_one_experiment_at_a_time(tmp_path):
    other = pytest.raises(NPTError, match="another process")
    lock = tmp_path / ".lock"
    with locked(lock, "here"), other, locked(lock, "here"):
        pass
    with locked(lock, "here"):
        pass

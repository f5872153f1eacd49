"""`python -m npt.experiments status DIR`, and the progress of many runs on the console."""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path

import fake_runs
import pytest

from npt.errors import NPTError
from npt.experiments import planned, state, status
from npt.experiments.__main__ import main
from npt.experiments.plan import Run
from npt.experiments.running import pool, progress
from npt.experiments.running.console import carry_out
from npt.experiments.running.display import Display
from npt.files import read_record, write_record


def record(run: Run, what: str, silent: float = 0.0, **fields) -> None:
    """Leave the progress of a run as another node would, `silent` seconds ago."""
    found = {key: None for key in progress.ENTRIES}
    found |= {"state": what, "node": "node7", "pid": 17, "started": time.time() - 600}
    found |= {"seconds": 600.0, "evaluation": "base", "epoch": 3, "epochs": 5, **fields}
    path = run.folder / progress.PROGRESS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, found)
    past = path.stat().st_mtime - silent
    os.utime(path, (past, past))


def done(run: Run, seconds: float) -> None:
    fake_runs.write(run)
    record(run, "done", seconds=seconds, epoch=None, epochs=None)


@pytest.fixture
def folder(tmp_path) -> tuple[Path, list[Run]]:
    """Seven runs of a trainer: two done, one running, silent, failed and two waiting."""
    runs = fake_runs.runs(tmp_path, seeds=7)
    planned.remember(tmp_path, runs)
    done(runs[0], 900.0)
    done(runs[1], 1100.0)
    record(runs[2], "running", job="16_3", gpu="H100 (0)", silent=10)
    record(runs[3], "running", silent=420)
    log = runs[4].folder / "base" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {n}\n" for n in range(1, 10)))
    record(runs[4], "failed", error="the disk is full", log="base/log.txt")
    return tmp_path, runs


def told(folder: Path, capsys) -> tuple[str, str]:
    assert main(["status", str(folder)]) == 0
    return capsys.readouterr()


def test_what_is_done_running_failed_and_left(folder, capsys):
    where, runs = folder
    text, error = told(where, capsys)
    assert f"{where}: 7 runs: 2 done, 1 running, 1 silent, 1 failed, 2 waiting" in text
    # 390 s of the third, 400 of the fourth, 1000 of each that waits; one at a time
    assert "about 46 min left with 1 at a time" in text
    (running,) = re.findall(rf"^{runs[2].name} .*", text, re.M)
    assert all(x in running for x in ("node7", "job 16_3", "H100 (0)", "base, epoch 3/5"))
    assert "no sign of life" not in running
    (silent,) = re.findall(rf"^{runs[3].name} .*", text, re.M)
    assert "no sign of life for 7 min" in silent and "process 17" in silent
    assert f"failed: {runs[4].name}: the disk is full (see " in text
    assert "    line 5\n" in text and "line 4" not in text and text.endswith("    line 9\n")
    assert error == ""


def test_nothing_is_changed_and_no_lock_is_taken(folder, capsys):
    where, _ = folder
    before = {path: path.stat().st_mtime_ns for path in where.rglob("*") if path.is_file()}
    told(where, capsys)
    assert before == {path: path.stat().st_mtime_ns for path in where.rglob("*") if path.is_file()}


def test_it_starts_without_torch(folder, python):
    where, _ = folder
    code = (
        "import sys; from npt.experiments.__main__ import main; main(sys.argv[1:]); "
        "print('torch' in sys.modules)"
    )
    result = python("-I", "-c", code, "status", where)  # -I: a Python that has imported nothing
    assert result.returncode == 0 and result.stdout.endswith("False\n"), result.stderr


def test_damaged_records_are_named_and_the_rest_goes_on(folder, capsys):
    where, runs = folder
    damaged = [
        runs[0].folder / "new" / "result.json",
        runs[2].folder / "progress.json",
        where / "problems.json",
    ]
    for path in damaged:
        path.write_text("{")
    text, error = told(where, capsys)
    assert "7 runs: 1 done, 0 running, 1 silent, 1 failed, 4 waiting" in text
    assert [str(path) in error for path in damaged] == [True] * 3 and error.count("\n") == 3
    (where / "plan.json").write_text('{"runs": {"a": {}}}')
    text, error = told(where, capsys)  # what is known of runs without it
    assert "plan.json" in error and "2 runs: 1 done" in text


def test_without_a_plan_the_records_tell(folder, capsys):
    """As in a folder of an earlier version, or one that was copied together."""
    where, runs = folder
    (where / "plan.json").unlink()
    for run in runs[:2]:
        (run.folder / "progress.json").unlink()
    text, error = told(where, capsys)
    assert "2 runs: 2 done" in text and error == ""


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch])
def test_where_nothing_is_there_is_a_sentence(tmp_path, capsys, make):
    make(tmp_path / "here")
    assert main(["status", str(tmp_path / "here")]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "here" in error


def test_missing_data_are_named_and_take_no_time(tmp_path, capsys):
    runs = fake_runs.runs(tmp_path, seeds=3)
    planned.remember(tmp_path, runs)
    write_record(tmp_path / "problems.json", {"set": "there is no folder DATA/set"})
    text, _ = told(tmp_path, capsys)
    assert "0 waiting, 3 without data." in text
    assert "not run: set: there is no folder DATA/set (3 runs need it)" in text


def test_a_failure_without_a_record_of_its_own(tmp_path, capsys):
    """As that of a job whose node is gone."""
    runs = fake_runs.runs(tmp_path, seeds=2)
    planned.remember(tmp_path, runs)
    write_record(tmp_path / "problems.json", {runs[1].name: "its node failed"})
    text, _ = told(tmp_path, capsys)
    assert "1 failed, 1 waiting" in text
    assert f"failed: {runs[1].name}: its node failed" in text


def test_the_plan_has_the_runs_of_all_calls(tmp_path):
    first = fake_runs.runs(tmp_path, seeds=2)
    planned.remember(tmp_path, first)
    planned.remember(tmp_path, fake_runs.runs(tmp_path, seeds=3, evaluate=("val",)))
    found = planned.read(tmp_path)
    assert len(found) == 3
    assert [test.splits for test in found[0].evaluations] == [("test", "val")] * 2
    assert [test.splits for test in found[2].evaluations] == [("val",)] * 2
    fake_runs.write(first[0])
    assert not state.is_complete(found[0]) and state.is_complete(first[0])


def test_times_are_those_of_the_most_similar_runs(tmp_path):
    (one,) = fake_runs.runs(tmp_path, seeds=1)
    (two,) = fake_runs.runs(tmp_path, seeds=1, shots=4)  # the same trainer and tests
    (three,) = fake_runs.runs(tmp_path, seeds=1, protocol=({"name": "all", "classes": "all"},))
    times = status.Times()
    assert times.left([(one, 0.0)], 1) is None and times.left([], 1) == 0
    times.add(three, 10.0)
    assert times.left([(one, 0.0), (two, 4.0)], 1) == 16
    times.add(two, 30.0)
    assert times.left([(one, 0.0)], 1) == 30
    times.add(one, 50.0)
    assert times.left([(one, 20.0)], 1) == 30
    assert times.left([(one, 0.0), (two, 0.0)], 8) == 50  # not less than the longest
    assert times.left([(one, 1000.0)], 1) == 0


# --------------------------------------------------------------------------- console
def without_checks(monkeypatch, execute=fake_runs.troubled):
    from npt.experiments.running import validation

    monkeypatch.setattr(validation, "validate", lambda runs: {})
    monkeypatch.setattr(pool, "execute", partial(pool.execute, execute_one=execute))


def test_failures_are_kept_as_they_happen(tmp_path, monkeypatch, capsys):
    """problems.json and the records say it before the end, and a line tells of each run."""
    without_checks(monkeypatch)
    runs, seen = fake_runs.runs(tmp_path, seeds=5), []
    show = Display.show

    def watch(self, outcome):
        show(self, outcome)
        seen.append((outcome.run.name, read_record(tmp_path / "problems.json")))

    monkeypatch.setattr(Display, "show", watch)
    assert carry_out("title", runs, tmp_path, pool.Local(1)) == 1
    assert [name in kept for name, kept in seen] == [False, True, True, True, False]
    text, _ = told(tmp_path, capsys)
    lines = re.findall(r"^\[(\d)/5\] +[\d.]+ s  (.*)$", text, re.M)
    assert [number for number, _ in lines] == list("12345")
    assert re.fullmatch(
        r"set tau 1 Fake seed 1: base 50.0 new 50.0 \(about \d s left\)", lines[0][1]
    )
    assert re.fullmatch(r"set tau 1 Fake seed 3: FAILED \(2 failed, about \d s left\)", lines[2][1])
    assert "5 runs: 2 done, 0 running, 3 failed, 0 waiting." in text
    assert "ZeroDivisionError: a bug (see " in text
    monkeypatch.undo()
    without_checks(monkeypatch, fake_runs.write)
    assert carry_out("title", runs, tmp_path, pool.Local(1)) == 0
    assert read_record(tmp_path / "problems.json") == {}
    assert "5 runs: 5 done, 0 running, 0 failed" in told(tmp_path, capsys)[0]


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar_and_what_runs(tmp_path):
    """With the epochs of the runs' own records."""
    (tmp_path / "some.yaml").write_text(
        "trainers: {Fake: {config: fake.yaml}}\ndatasets: [set]\nseeds: [1, 2]"
    )
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # lines, columns
    fake = Path(fake_runs.__file__)
    command = [sys.executable, fake, tmp_path / "out", "2", "0.15", tmp_path / "some.yaml"]
    with subprocess.Popen(list(map(str, command)), stdout=child, stderr=child) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                shown += os.read(parent, 10_000)
            except OSError:  # the other side is closed
                break
    os.close(parent)
    text = shown.decode()
    assert process.returncode == 0
    assert "2/2 runs" in text and "2 running" in text and "\x1b[A" in text
    assert "set tau 1 Fake seed 1: begins" in text and "[1/2]" not in text


def test_runs_of_two_executors_are_shown_alike(tmp_path, capsys):
    """The display reads the runs' records, whoever executes them."""

    class Elsewhere:
        at_a_time = 4

        def execute(self, runs, report):
            found = []
            for run in runs:
                done(run, 60.0)
                found.append(pool.Outcome(run, 60.0))
                report(found[-1])
            return found

    runs = fake_runs.runs(tmp_path, seeds=3)
    record(runs[2], "running", silent=5)
    from npt.experiments.running import console

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console.validation, "validate", lambda runs: {})
        assert carry_out("title", runs, tmp_path, Elsewhere()) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("[")]
    assert "(about 60 s left)" in lines[0] and "left" not in lines[2]


def test_a_plan_that_cannot_be_read_names_its_file(tmp_path):
    for content in ('{"runs": []}', "[]", '{"runs": {"a": {"name": 3}}}', "{"):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(NPTError, match=r"plan\.json"):
            planned.read(tmp_path)
        planned.remember(tmp_path, fake_runs.runs(tmp_path, seeds=1))
        assert len(planned.read(tmp_path)) == 1


def test_a_moved_folder_tells_the_same(folder, tmp_path, capsys):
    where, _ = folder
    before = told(where, capsys)[0].replace(str(where), "")
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.copytree(where, moved)
    assert told(moved, capsys)[0].replace(str(moved), "") == before

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import fake_runs
import fake_slurm
import pytest

from npt.errors import NPTError
from npt.experiments import state
from npt.experiments.__main__ import main
from npt.experiments.running import pool, progress, slurm, slurm_watch
from npt.experiments.running.slurm import Cluster, group, minutes
from npt.experiments.running.slurm_job import Work

submitit = pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(slurm_watch, "GRACE", 0.3)
    monkeypatch.setattr(slurm_watch, "INTERVAL", 0.3)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    def make(fate="", **fields) -> Cluster:
        fake_slurm.install(tmp_path, monkeypatch, fate)
        return Cluster(tmp_path / "out", "debug", **{"execute_one": fake_runs.quick, **fields})

    yield make
    if "FAKE_SLURM" in os.environ:
        fake_slurm.scancel(*(job for job, x in fake_slurm.listed().items() if not ended(x)))


def ended(job) -> bool:
    return job["state"] not in ("PENDING", "RUNNING")


def wait_for(condition):
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def told(outcomes):
    return {outcome.run.seed: outcome.error for outcome in outcomes}


# --------------------------------------------------------------------------- jobs that run
@pytest.mark.long
def test_each_run_ends_as_on_one_machine(tmp_path, cluster):
    executor = cluster(execute_one=fake_runs.troubled, jobs=2)
    todo, reported = fake_runs.runs(tmp_path / "out", seeds=5), []
    outcomes = executor.execute(todo, reported.append)
    assert reported == outcomes
    errors = told(outcomes)
    assert errors[1] is None and errors[5] is None
    assert errors[2] == "seed 2 is refused"
    assert errors[3] == "ZeroDivisionError: a bug"
    assert "exit code 7" in errors[4]
    logs = {o.run.seed: o.log for o in outcomes if o.error}
    assert "Traceback" in logs[3].read_text()
    assert len(fake_slurm.listed()) == 5  # how long they take is not known
    # What has failed is tried again by the next call, and nothing else.
    again = Cluster(tmp_path / "out", "debug").execute(todo[:2], reported.append)
    assert list(told(again)) == [2]


PROGRAM = """
import sys
from pathlib import Path
import fake_runs
from npt.experiments.running.slurm import Cluster
out = Path(sys.argv[1])
runs = fake_runs.runs(out, seeds=3)
for run in runs:
    run.folder.mkdir(parents=True, exist_ok=True)
Cluster(out, "debug", execute_one=fake_runs.quick).execute(runs, print)
"""


@pytest.mark.long
def test_a_call_that_is_killed_leaves_jobs_that_the_next_one_finds(
    tmp_path, cluster, monkeypatch, capsys
):
    executor = cluster()
    monkeypatch.setenv("FAKE_SECONDS", "4")
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: list(out.rglob("began-*")))
        process.kill()
    todo = fake_runs.runs(out, seeds=4)
    with pytest.raises(NPTError, match=r"3 jobs with these runs .* add --slurm .* scancel 1"):
        pool.Local(1).execute(todo, print)
    outcomes = executor.execute(todo, lambda outcome: None)
    assert told(outcomes) == {1: None, 2: None, 3: None, 4: None}
    assert "3 runs are in jobs of an earlier call" in capsys.readouterr().out
    assert [len(path.read_text()) for path in out.rglob("began-*")] == [1] * 4
    assert len(fake_slurm.listed()) == 4
    assert pool.Local(1).execute(todo, print) == []
    wait_for(lambda: all(map(ended, fake_slurm.listed().values())))
    assert executor.execute(todo, print) == []
    assert not list((out / "jobs").iterdir())


def test_a_job_of_an_earlier_call_that_ended_too_early_is_followed_by_another(
    tmp_path, cluster, monkeypatch, capsys
):
    """It may have been asked for other evaluations of the same run, or was cancelled."""
    executor, out = cluster("Resources"), tmp_path / "out"
    (run,) = fake_runs.runs(out, seeds=1)
    executor._submit([run], [run], 0)
    monkeypatch.setenv("FAKE_FATE", "CANCELLED")
    reported = []

    def cancel(seconds):
        fake_slurm.note("1", state="CANCELLED")
        time.sleep(seconds)

    clock = SimpleNamespace(sleep=cancel, monotonic=time.monotonic)
    monkeypatch.setattr(slurm_watch, "time", clock)
    (outcome,) = executor.execute([run], reported.append)
    assert reported == [outcome] and outcome.error == "its job was cancelled"
    assert sorted(fake_slurm.listed()) == ["1", "2"]
    assert "1 runs are in jobs of an earlier call" in capsys.readouterr().out


def test_ctrl_c_leaves_the_jobs_and_says_how_to_end_them(tmp_path, cluster, monkeypatch):
    executor = cluster("Resources")
    todo = fake_runs.runs(tmp_path / "out", seeds=2)

    def interrupt(seconds):
        raise KeyboardInterrupt

    clock = SimpleNamespace(sleep=interrupt, monotonic=time.monotonic)
    monkeypatch.setattr(slurm_watch, "time", clock)
    with pytest.raises(KeyboardInterrupt, match="Its jobs go on; scancel 1 ends them"):
        executor.execute(todo, print)
    assert len(fake_slurm.listed()) == 2


@pytest.mark.slow
def test_a_preempted_job_saves_and_comes_back(tmp_path, cluster, monkeypatch):
    executor = cluster(execute_one=fake_runs.patient)
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    out = tmp_path / "out"
    (run,) = fake_runs.runs(out, seeds=1)
    code = (
        f"import fake_runs; from pathlib import Path; out = Path({str(out)!r})\n"
        "from npt.experiments.running.slurm import Cluster\n"
        "cluster = Cluster(out, 'debug', execute_one=fake_runs.patient)\n"
        "print([o.error for o in cluster.execute(fake_runs.runs(out, seeds=1), print)])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as p:
        wait_for((run.folder / "began").exists)
        fake_slurm.scontrol("requeue", "1")
        wait_for((run.folder / "saved").exists)
        written, _ = p.communicate(timeout=90)
    assert written.endswith("[None]\n") and state.is_complete(run)
    assert executor.execute([run], print) == []


@pytest.mark.long
def test_at_its_time_limit_a_job_saves_and_starts_again(tmp_path, monkeypatch):
    """By submitit's local executor, which sends the signal that SLURM is asked for."""
    fake_slurm.install(tmp_path, monkeypatch)
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    (run,) = fake_runs.runs(tmp_path / "out", seeds=1)
    executor = submitit.LocalExecutor(tmp_path / "jobs", max_num_timeout=5)
    executor.update_parameters(timeout_min=5, signal_delay_s=0)
    job = executor.submit(Work([run], 1, 300.0, fake_runs.patient))
    wait_for((run.folder / "began").exists)
    (run.folder / "began").unlink()
    children = Path(f"/proc/{job._process.pid}/task/{job._process.pid}/children")
    os.kill(int(children.read_text().split()[0]), signal.SIGUSR2)
    wait_for((run.folder / "saved").exists)
    wait_for(lambda: state.is_complete(run))
    assert job.exception() is None and (run.folder / "began").exists()


def test_a_job_whose_time_saved_nothing_does_not_start_again(tmp_path):
    (run,) = fake_runs.runs(tmp_path, seeds=1)
    work = Work([run], 1, seconds=0.0, execute_one=fake_runs.quick)
    work._began, work._saved = time.monotonic() - 1, work._files()
    with pytest.raises(NPTError, match=r"had saved anything.*more --time"):
        work.checkpoint()
    (run.folder / "base" / "resume").mkdir(parents=True)
    (run.folder / "base" / "resume" / "state").touch()
    assert work.checkpoint().function is work


def test_a_run_that_failed_in_this_job_is_not_tried_again_in_its_next_turn(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first, second = fake_runs.runs(tmp_path, seeds=2)
    for run in (first, second):
        with progress.recorded(run.folder) as record:
            record.failed("it was bad", None)
    assert Work([first, second], 1, 300.0)._open() == []
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert Work([first, second], 1, 300.0)._open() == [first, second]


# --------------------------------------------------------------------------- jobs that do not run
@pytest.mark.parametrize(
    "fate, words",
    [
        ("OUT_OF_MEMORY", "the memory of its job was full: more --mem, or fewer --jobs"),
        ("TIMEOUT", "its job ran out of time and SLURM did not start it again: more --time"),
        ("CANCELLED", "its job was cancelled"),
        ("NODE_FAIL", "its node failed"),
        ("COMPLETED", "OUT has to be on a disk that all nodes share"),
        ("FAILED", "OUT has to be on a disk that all nodes share"),
        ("PartitionTimeLimit", "its job would never start: the partition does not allow this"),
        ("BadConstraints", "its job would never start: no node has what --mem, --gpus"),
        ("JobHeldUser", "its job would never start: it is held; scontrol release"),
        ("QOSMaxWallDurationPerJobLimit", "its job would never start: this account may not"),
    ],
)
def test_what_became_of_a_job_is_one_sentence(tmp_path, cluster, fate, words):
    todo = fake_runs.runs(tmp_path / "out", seeds=2)
    errors = told(cluster(fate).execute(todo, lambda outcome: None))
    for error in errors.values():
        assert words.replace("OUT", str(tmp_path / "out"), words.startswith("OUT ")) in error
        assert "\n" not in error
    assert set(errors) == {1, 2} and all(map(ended, fake_slurm.listed().values()))


@pytest.mark.slow
def test_the_last_words_of_a_job_s_own_process_are_told(tmp_path, cluster):
    """Such as of a node that has another environment."""
    todo = fake_runs.runs(tmp_path / "out", seeds=1)
    executor = cluster(execute_one=lambda run: None)  # which no worker process can be given
    (outcome,) = executor.execute(todo, lambda outcome: None)
    assert "pickle" in outcome.error and "\n" not in outcome.error
    assert outcome.log.read_text()


@pytest.mark.slow
def test_slurm_that_is_silent_for_a_while_is_asked_again(tmp_path, cluster, capsys):
    executor = cluster("silent")
    todo = fake_runs.runs(tmp_path / "out", seeds=1)
    assert told(executor.execute(todo, lambda outcome: None)) == {1: None}
    assert capsys.readouterr().err.count("Unable to contact slurm controller") == 1


def test_a_partition_that_is_not_there(tmp_path, cluster, capsys):
    cluster()
    executor = Cluster(tmp_path / "out", "other")
    with pytest.raises(NPTError, match=r"\(invalid partition specified\): change --slurm"):
        executor.execute(fake_runs.runs(tmp_path / "out", seeds=1), print)
    assert capsys.readouterr() == ("", "") and not list((tmp_path / "out/jobs").iterdir())


# --------------------------------------------------------------------------- what is given
EXPERIMENT = """
trainers: {ZeroshotCLIP: {config: configs/trainers/ZeroshotCLIP/tiny.yaml, train: no}}
datasets: [mini_land]
"""


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--time", "90"], "--time is of jobs on a cluster: add --slurm PARTITION"),
        (["--max-jobs", "3"], "--max-jobs is of jobs on a cluster: add --slurm PARTITION"),
        (["--slurm", "debug", "--time", "soon"], "--time soon is not a time such as 90"),
        (["--slurm", "debug", "--time", "2"], "--time 2 is too short"),
        (["--slurm", "debug", "--mem", "much"], "--mem much is not an amount of memory"),
        (["--slurm", "debug", "--gpus", "0"], "--gpus 0 is not a number of GPUs"),
        (["--slurm", "debug", "--max-jobs", "0"], "--max-jobs is a number from 1, not 0"),
        (["--slurm", "debug", "--jobs", "0"], "--jobs is a number from 1, not 0"),
        (["--slurm", ""], "--slurm names no partition"),
    ],
)
def test_flags_that_make_no_job(tmp_path, monkeypatch, capsys, flags, words):
    fake_slurm.install(tmp_path / "cluster", monkeypatch)
    (tmp_path / "some.yaml").write_text(EXPERIMENT)
    code = main(["run", str(tmp_path / "some.yaml"), "--out", str(tmp_path / "out"), *flags])
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.count("\n") == 1


def test_where_there_is_no_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NPTError, match="--slurm needs sbatch, which is not on this machine"):
        Cluster(tmp_path, "debug")


def test_where_there_is_no_submitit(tmp_path, monkeypatch):
    fake_slurm.install(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(NPTError, match="--slurm needs submitit: pip install"):
        Cluster(tmp_path, "debug")


@pytest.mark.parametrize(
    "text, expected",
    [("90", 90), ("1:30", 2), ("4:00:00", 240), ("2-12", 3600), ("1-0:30", 1470), ("0:01:01", 2)],
)
def test_times_as_slurm_writes_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-5", "1h", "1:2:3:4", "1-", "inf", "٣"])
def test_what_is_no_time(text):
    with pytest.raises(NPTError, match="is not a time"):
        minutes(text)


def test_short_runs_share_a_job(tmp_path):
    todo = fake_runs.runs(tmp_path, seeds=6)
    found = group(todo, [10.0, 10.0, 25.0, None, 5.0, 5.0], target=20.0)
    assert [[run.seed for run in job] for job in found] == [[1, 2], [3], [4], [5, 6]]
    assert group([], [], 10.0) == []


def test_more_jobs_than_an_array_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "MOST_JOBS", 3)
    todo = fake_runs.runs(tmp_path, seeds=8)
    found = group(todo, [None] * 8, 60.0)
    assert len(found) == 3 and sorted(run.seed for job in found for run in job) == [*range(1, 9)]


def test_what_is_asked_of_slurm(tmp_path, cluster):
    """All flags are in the script that sbatch gets."""
    fields = {"time": "1-0", "mem": "16G", "gpus": "a100:2", "account": "us", "max_jobs": 3}
    executor = cluster("CANCELLED", **fields)
    executor.execute(fake_runs.runs(tmp_path / "out", seeds=5), lambda outcome: None)
    (script,) = Path(tmp_path / "out" / "jobs").glob("*/*_submission.sh")
    text = script.read_text()
    for words in (
        "array=0-4%3",
        "partition=debug",
        "time=1440",
        "mem=16G",
        "gpus-per-node=a100:2",
        "account=us",
        "cpus-per-task=2",
        "requeue",
        "signal=USR2@120",
    ):
        assert f"#SBATCH --{words}\n" in text
    assert executor.at_a_time == 6


def test_flags_count_before_variables_of_sbatch(tmp_path, cluster, monkeypatch):
    """Of those, sbatch takes what no flag says, such as the quality of service."""
    for name in ("SBATCH_PARTITION", "SBATCH_JOB_NAME", "SBATCH_ACCOUNT", "SBATCH_QOS"):
        monkeypatch.setenv(name, "other")
    executor = cluster("CANCELLED")
    executor.execute(fake_runs.runs(tmp_path / "out", seeds=1), lambda outcome: None)
    seen = (tmp_path / "slurm" / "variables").read_text().split()
    assert seen == ["SBATCH_ACCOUNT", "SBATCH_QOS"]
    assert os.environ["SBATCH_PARTITION"] == "other"


def test_signals_that_stop_a_job_stop_a_training():
    from npt.stopping import PREEMPTION

    assert {signal.SIGTERM, signal.SIGUSR2} <= set(PREEMPTION)

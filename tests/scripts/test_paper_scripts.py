"""The scripts of the paper's tables and figures, run as users run them."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from npt.experiments.arguments import build_parser
from npt.experiments.reproduce import NAMES

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
# Two methods, which every table has, at two ratios of one data set in each protocol, an epoch
# of a few images.
REDUCED = ["--suite", "mini", "--seeds", "1", "--ratios", "1,0.1"]
REDUCED += ["--datasets", "mini_land,mini_net_a", "--methods", "MaPLe,MaPLe+NPT"]
REDUCED += ["DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "1"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def environment(tmp_path):
    """An active environment with this Python, in which nothing is installed."""
    program = tmp_path / "environment/bin/python"
    program.parent.mkdir(parents=True)
    home = str(program.parent.parent)
    program.write_text(
        '#!/bin/sh\ncase "$*" in\n"-m pip install"*) ;;\n'
        f'*"print(sys.prefix)"*) echo {home} ;;\n'  # whose stamps say what is installed
        f'*) exec {sys.executable} "$@" ;;\nesac\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key not in ("DATA", "OUT")}
    return {**kept, "VIRTUAL_ENV": home, "PATH": path, "OMP_NUM_THREADS": "1"}


def start(environment, name, *arguments, **more):
    return subprocess.Popen(
        ["bash", str(SCRIPTS / name), *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def finished(process):
    out, error = process.communicate(timeout=1500)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_help_is_a_line_about_the_script_and_the_options(environment, name):
    (Path(environment["VIRTUAL_ENV"]) / "bin/python").unlink()  # it needs none
    done = finished(start(environment, f"{name}.sh", "--help"))
    first, _, options = done.stdout.partition("\n")
    assert done.returncode == 0 and len(first) > 30 and first.endswith(".")
    if name != "all":
        kind, number = re.fullmatch(r"(table|fig)(\d)\w*", name).groups()
        assert first.startswith({"table": "Table ", "fig": "Figure "}[kind] + number)
    commands = next(a for a in build_parser()._actions if a.dest == "command").choices
    known = {o for a in commands["reproduce"]._actions for o in a.option_strings}
    heads = re.findall(r"^  (--.*?)(?:  |$)", options, re.M)  # flags, without what they do
    named = {option for head in heads for option in re.findall(r"--[a-z-]+", head)}
    assert named == known - {"-h", "--help"}


@pytest.mark.parametrize("flag", [["--slurm", "gpu"], ["--slurm=gpu"]])
def test_jobs_of_a_cluster_need_what_submits_them(environment, flag):
    done = finished(start(environment, "table3.sh", "--suite", "mini", *flag, "--time", "soon"))
    assert done.returncode == 2 and "[report,cluster]" in done.stderr
    assert "--time soon is not a time such as" in done.stderr and done.stderr.count("error:") == 1


def test_every_script_says_what_it_takes_and_what_to_expect():
    for name in (*NAMES, "all"):
        text = (SCRIPTS / f"{name}.sh").read_text()
        comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
        assert f"bash scripts/{name}.sh" in comments and "estimated" in comments, name
        assert "--suite mini" in comments and "@" not in comments, name


def figures_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "report").iterdir()}


def complete(out: Path) -> int:
    return len(list(out.rglob("result.json")))


def wait_for(process, condition):
    end = time.monotonic() + 600
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


def children_of(number: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            process, parent = status.read_text().rsplit(")", 1)
        except OSError:
            continue
        if int(parent.split()[1]) == number:
            found.append(int(process.split()[0]))
    return found


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killed_runners_and_workers_change_no_number(environment, tmp_path):
    """Against an undisturbed run of all.sh: two kills, and then every script by itself."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = finished(start(environment, "all.sh", *REDUCED, "--out", whole))
    assert done.returncode == 0, done.stderr
    total = complete(whole)
    assert total > 30 and "What is missing" not in (whole / "report/README.md").read_text()

    process = start(environment, "all.sh", *REDUCED, "--out", killed, "--jobs", "2")
    wait_for(process, lambda: complete(killed) >= total // 4)
    process.send_signal(signal.SIGKILL)  # the script is the runner: it was replaced by exec
    process.communicate()
    assert complete(killed) < total

    process = start(environment, "all.sh", *REDUCED, "--out", killed, "--jobs", "2")
    wait_for(process, lambda: complete(killed) >= total // 2)
    workers = [x for x in children_of(process.pid) if b"spawn_main" in _command(x)]
    os.kill(workers[0], signal.SIGKILL)
    done = finished(process)
    assert done.returncode in (0, 1)  # 0: the worker was between two runs
    assert done.returncode == 0 or done.stderr.count("exit code -9") == 1

    for name in NAMES:
        done = finished(start(environment, f"{name}.sh", *REDUCED, "--out", killed))
        assert done.returncode == 0, done.stderr
    assert figures_of(killed) == figures_of(whole)
    assert complete(killed) == total


def _command(number: int) -> bytes:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.long
def test_the_rehearsal_reaches_every_cell(environment, tmp_path):
    """Every script with the paper's configs, on copies of the layouts of the fifteen data sets."""
    done = finished(start(environment, "all.sh", "--rehearse", tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = (tmp_path / "runs/report/README.md").read_text()
    assert "What is missing" not in report and "Not drawn" not in report
    for title in ("Table 1: ", "Table 1 in full", "Table 2", "Table 3", "Table 4"):
        assert f"## {title}" in report
    for number in (1, 2, 4, 5):
        assert (tmp_path / f"runs/report/fig{number}.pdf").stat().st_size > 1000

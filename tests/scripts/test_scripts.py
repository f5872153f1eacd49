"""The shell scripts, with a replacement of pip, so that nothing is installed or downloaded."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """An active environment with this Python, but `pip install` only writes a log."""
    home = tmp_path / "environment"
    program(
        home / "bin" / "python",
        f"""case "$*" in
  "-m pip install"*) echo "$@" >> {home}/pip.log ;;
  *sys.prefix*) echo {home} ;;
  *) exec {sys.executable} "$@" ;;
esac
""",
    )
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "VIRTUAL_ENV": str(home), "PATH": path}


def bash(*args: object, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *map(str, args)],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_every_script_parses(repository):
    for script in [*(repository / "scripts").glob("*.sh"), repository / ".ci" / "run"]:
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_setup_installs_once_for_each_set_of_extras(repository, environment, tmp_path):
    code = f"source {repository}/scripts/_setup.sh; setup report; setup report; setup report,test"
    done = bash("-c", code, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "environment" / "pip.log").read_text().splitlines()
    assert [line.split()[-1] for line in log] == [".[report]", ".[report,test]"]
    assert done.stderr.count("Installing the package") == 2


@pytest.mark.parametrize(
    "python3, words",
    [
        ('echo "Python 3.8.1"; case "$*" in *version_info*) exit 1;; esac', "Python 3.10 or newer"),
        ('case "$*" in *ensurepip*) exit 1;; esac', "python3-venv"),
    ],
)
def test_an_unsuitable_python_is_reported(repository, tmp_path, python3, words):
    """In a copy of the scripts, without .venv and without an active environment."""
    shutil.copytree(repository / "scripts", tmp_path / "scripts")
    program(tmp_path / "bin" / "python3", python3 + "\n")
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    done = bash(tmp_path / "scripts" / "demo.sh", env=env, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ") and words in done.stderr


@pytest.mark.long
def test_the_demo_prints_its_table_and_reuses_its_runs(repository, environment, tmp_path):
    environment["OUT"] = str(tmp_path / "demo")
    short = ["trainers", "ZeroshotCLIP,MaPLe,MaPLeNPT", "shots", "2", "OPTIM.MAX_EPOCH", "1"]
    first = bash(repository / "scripts" / "demo.sh", *short, env=environment, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    rows = [line.split()[0] for line in first.stdout.splitlines() if line.strip()]
    assert rows.index("ZeroshotCLIP") < rows.index("MaPLe") < rows.index("MaPLeNPT")
    for column in ("base", "new", "harmonic mean", "LCD", "MID"):
        assert column in first.stdout
    assert (tmp_path / "demo" / "features.png").is_file()
    again = bash(repository / "scripts" / "demo.sh", *short, env=environment, cwd=tmp_path)
    assert again.returncode == 0 and "3 of them complete" in again.stdout
    table = (tmp_path / "demo" / "table.txt").read_text()
    assert table in first.stdout and table in again.stdout


@pytest.mark.parametrize("result", [0, 1])
def test_continuous_integration_tests_in_a_fresh_environment(repository, tmp_path, result):
    """The environment is outside the tree and deleted at the end; the exit code is pytest's."""
    log = tmp_path / "log"
    program(
        tmp_path / "python",
        f"""echo "$VIRTUAL_ENV $*" >> {log}
case "$*" in
  *pytest*) exit {result} ;;
  *sys.prefix*) echo "$VIRTUAL_ENV" ;;
esac
""",
    )
    program(
        tmp_path / "bin" / "python3",
        f"""mkdir -p "$3/bin" && cp {tmp_path / "python"} "$3/bin/python"
echo "export VIRTUAL_ENV=$3; PATH=$3/bin:\\$PATH" > "$3/bin/activate"
""",
    )
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin", "CI": "true"}
    done = bash(repository / ".ci" / "run", env={**env, "VIRTUAL_ENV": "/old"}, cwd=tmp_path)
    assert done.returncode == result, done.stderr
    lines = [line.split(maxsplit=1) for line in log.read_text().splitlines()]
    (fresh,) = {home for home, _ in lines}
    assert not Path(fresh).exists() and repository not in Path(fresh).parents
    steps = [what for _, what in lines if what.startswith("-m")]
    assert steps[0].startswith("-m pip install") and steps[0].endswith(".[report,test]")
    assert steps[1:3] == ["-m ruff check .", "-m mypy"] and steps[3].startswith("-m pytest ")

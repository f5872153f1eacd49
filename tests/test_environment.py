"""What logs and records say of where they were made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from npt import environment

NPT = Path(environment.__file__).resolve().parent
ASK = "from npt import environment; print(environment.commit())"


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path):
    """A package npt that consists of this module, in a folder of its own."""
    folder = tmp_path / "checkout" / "npt"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name in ("environment.py", "version.py"):
        shutil.copy(NPT / name, folder)
    return folder


def commit_of(package: Path, **variables: str) -> str:
    """What a process says that imports the package."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environ = {**kept, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(
        command, cwd=package.parent, env=environ, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_commit_of_a_checkout_and_whether_it_is_changed(package, tmp_path):
    checkout = package.parent
    assert commit_of(package) == "None"  # no repository
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    head = git(checkout, "rev-parse", "HEAD")
    git(checkout, "tag", "v1")
    assert commit_of(package) == head
    (checkout / "output").mkdir()  # what is not part of it, as results of runs
    assert commit_of(package) == head
    assert commit_of(package, GIT_DIR=str(tmp_path / "none")) == head  # as in a hook
    (package / "__init__.py").write_text("# changed\n")
    assert commit_of(package) == f"{head}-dirty"
    assert commit_of(package, PATH="/nowhere") == "None"  # no git


def test_an_installed_package_has_no_commit_in_a_repository_of_others(package):
    """A virtual environment may lie in the repository of another project."""
    checkout = package.parent
    (checkout / ".gitignore").write_text("npt\n")
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "theirs")
    assert commit_of(package) == "None"


def test_the_gpu_is_named_once_it_is_used(monkeypatch):
    assert environment.gpu() is None or torch.cuda.is_initialized()
    for name, value in (
        ("is_initialized", True),
        ("current_device", 1),
        ("get_device_properties", SimpleNamespace(name="H100", uuid="ab-12")),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment.gpu() == "H100 (1, GPU-ab-12)"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert environment.gpu() == "H100 (6, GPU-ab-12)"


def test_the_lines_of_a_log(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    found = dict(line.split(": ", 1) for line in environment.lines().splitlines())
    assert found["job"] == "17" and found["process"] == str(os.getpid())
    assert found["node"] == environment.node() and "NPT" in found

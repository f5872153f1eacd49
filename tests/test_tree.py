"""A checkout is one tree, wherever it is put on the path, and tools visit each file once."""

import json
import subprocess
import sys
from pathlib import Path

LINKED = ("trainers", "datasets", "configs")
WHERE = """
import json, npt, npt.trainers, npt.datasets, npt.configs, dassl, npt.trainers.maple as maple
parts = [npt, npt.trainers, npt.datasets, npt.configs, dassl, maple]
print(json.dumps([getattr(p, "__file__", None) or list(p.__path__)[0] for p in parts]))
"""
NOT_INSTALLED = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""


def test_with_one_clone_installed_and_another_on_the_path_all_is_of_the_other(
    python, clone, tmp_path
):
    for done in (
        python("-c", WHERE, cwd=tmp_path, PYTHONPATH=str(clone)),
        python("-c", WHERE, cwd=clone),
    ):
        assert done.returncode == 0, done.stderr
        files = json.loads(done.stdout)
        assert all(Path(file).resolve().is_relative_to(clone.resolve()) for file in files), files


def test_a_clone_runs_without_being_installed(python, clone, tmp_path):
    code = f"{NOT_INSTALLED}import runpy; sys.path[0] = {str(clone)!r}\n"
    code += "sys.argv[0] = 'train.py'; runpy.run_path('train.py', run_name='__main__')"
    argv = ["--trainer", "ZeroshotCLIP", "--config-file", "configs/trainers/ZeroshotCLIP/tiny.yaml"]
    argv += ["--dataset-config-file", "configs/datasets/mini_flowers.yaml", "--no-train"]
    done = python("-c", code, *argv, "--output-dir", tmp_path / "out", cwd=clone)
    assert done.returncode == 0 and "Loading trainer: ZeroshotCLIP" in done.stdout, done.stderr


def test_without_links_and_without_an_install_there_is_a_sentence(python, clone, tmp_path):
    for part in LINKED:
        (clone / "npt" / part).unlink()
        (clone / "npt" / part).write_text(f"../{part}")
    code = f"{NOT_INSTALLED}import runpy; sys.path[0] = {str(clone)!r}\n"
    code += "runpy.run_path('train.py', run_name='__main__')"
    done = python("-c", code, cwd=clone)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install -e ." in done.stderr


def test_the_linter_visits_each_file_once(repository, tmp_path):
    ruff = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    listed = subprocess.run(ruff, cwd=repository, capture_output=True, text=True, check=True)
    files = [Path(line).resolve() for line in listed.stdout.splitlines()]
    assert len(files) == len(set(files))
    assert {(repository / "trainers" / "maple.py").resolve()} <= set(files)
    git = ["git", "ls-files", "*.py"]
    tracked = subprocess.run(git, cwd=repository, capture_output=True, text=True)
    if tracked.returncode == 0:  # not in an unpacked archive
        assert {(repository / f).resolve() for f in tracked.stdout.split()} <= set(files)


def test_a_checkout_without_links_does_not_mix_with_an_installed_one(python, clone):
    for part in LINKED:
        (clone / "npt" / part).unlink()
        (clone / "npt" / part).write_text(f"../{part}")
    done = python("-c", "import npt", cwd=clone)  # npt of the clone, npt.trainers of the other
    assert done.returncode == 1 and "has no symbolic links" in done.stderr.splitlines()[-1]

"""Copies of the repository, for tests that install or change one."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def copy_tree(folder: Path) -> Path:
    """Copy what is installed or run of the repository, links as links, without what runs leave."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("npt", "trainers", "datasets", "configs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("train.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder

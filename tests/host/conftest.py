"""A host repository of our own making, one trainer for each pattern of the family, run as it is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hosts_kit import Run

REPO = Path(__file__).parent / "repo"
FLAGS = ["--dataset-config-file", "configs/dots.yaml", "--config-file", "configs/short.yaml"]
FEW = ("DATASET.NUM_SHOTS", 2)


@pytest.fixture(scope="session")
def host_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small CLIP as a state dict, in values that halves can hold: hosts round to them."""
    from npt.encoders import load_clip

    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    state = {name: x.half().float() for name, x in load_clip("tiny").state_dict().items()}
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="session")
def dots(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the host's data set."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def host(python, host_clip: str, dots: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the host's train.py in a process of its own, by `python -m npt.run` unless told."""

    def run(
        trainer: str,
        output: Path,
        *pairs: object,
        flags: tuple[object, ...] = (),
        program: tuple[object, ...] = ("-m", "npt.run", "train.py"),
    ) -> subprocess.CompletedProcess[str]:
        usual = ["--root", dots, "--output-dir", output, "--trainer", trainer, "--seed", 1, *FLAGS]
        return python(*program, *usual, *flags, *FEW, *pairs, cwd=REPO, HOST_CLIP=host_clip)

    return run


@pytest.fixture(scope="session")
def trained(host, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """A training by the host's train.py with these settings, run once for all tests."""

    @cache
    def run(trainer: str, *pairs: object) -> Run:
        output = tmp_path_factory.mktemp(trainer) / "output"
        done = host(trainer, output, *pairs)
        assert done.returncode == 0, done.stderr
        return Run(done, output)

    return run

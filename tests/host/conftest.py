"""Fixtures that run the host repository in `repo`: one trainer for each pattern of the family."""

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
    """A file with the state dict of the small CLIP, rounded to half precision as hosts do."""
    from npt.backbones.loading import load_clip

    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    state = {name: x.half().float() for name, x in load_clip("tiny").state_dict().items()}
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="session")
def dots(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The data folder of the host."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def host(python, host_clip: str, dots: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the host's train.py in its own process, by default with `python -m npt.run`."""

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
    """A finished training of the host with these settings, which runs once for all tests."""

    @cache
    def run(trainer: str, *pairs: object) -> Run:
        output = tmp_path_factory.mktemp(trainer) / "output"
        done = host(trainer, output, *pairs)
        assert done.returncode == 0, done.stderr
        return Run(done, output)

    return run

"""What tests share: programs are run as users run them, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "data"))  # clip_recipe, trainer_kit


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors lose by threads, and float32 sums must not depend on how many there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The mini suite is made anew: no test depends on what lies in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A second clone, which is not installed."""
    from tree_kit import copy_tree

    folder = tmp_path / "clone"
    folder.mkdir()
    return copy_tree(folder)


@pytest.fixture(scope="session")
def python() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run this Python with arguments, from any folder; single-threaded, output captured."""
    from python_server import Server

    with Server() as server:

        def run(
            *args: object, cwd: Path = ROOT, **environment: str
        ) -> subprocess.CompletedProcess[str]:
            return server.run([*map(str, args)], cwd, environment)

        yield run


@pytest.fixture(scope="session")
def reference_state():
    """The state dict of the checkpoint that the reference arrays were computed on."""
    from clip_recipe import reference_state_dict

    return reference_state_dict()


@pytest.fixture(scope="session")
def reference_file(reference_state, tmp_path_factory) -> str:
    """That checkpoint as a file."""
    import torch

    path = tmp_path_factory.mktemp("clip") / "reference.pt"
    torch.save(reference_state, path)
    return str(path)

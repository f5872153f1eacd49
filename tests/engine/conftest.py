"""The tests of the engine that npt carries; a host writes and trains on a tiny data set."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from npt import engine

HERE = Path(__file__).parent

if engine.describe().name != "embedded":  # set NPT_ENGINE=embedded to run them
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """The module host.py, imported once: it registers a data set and a trainer."""
    spec = importlib.util.spec_from_file_location("engine_test_host", HERE / "host.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def root(host, tmp_path_factory) -> str:
    """The folder with the host's images."""
    folder = tmp_path_factory.mktemp("data")
    host.write_images(str(folder))
    return str(folder)

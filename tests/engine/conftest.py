"""Tests of the embedded engine. A test host generates a tiny data set and trains on it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from npt import engine

HERE = Path(__file__).parent

if engine.describe().name != "embedded":  # NPT_ENGINE=embedded runs the tests in any case
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """The module host.py, which registers a data set and a trainer when it is imported."""
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
